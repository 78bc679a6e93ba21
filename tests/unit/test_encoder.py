"""Encoders of texts and images as classifiers, with tiny random models of the real formats."""

import contextlib
import copy
import functools
import json
import shutil

import lightning
import numpy as np
import pytest
import torch

from fairpriv.classifiers.data.batches import ShuffledBatches
from fairpriv.classifiers.data.images import Images
from fairpriv.classifiers.data.reader import Standardized
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.defenses.dp_sgd import DPSGD
from fairpriv.classifiers.defenses.threshold_optimizer import ThresholdOptimizer
from fairpriv.classifiers.experiment import DistributionInference
from fairpriv.classifiers.nets.architecture import architecture_of
from fairpriv.classifiers.nets.classifier import Classifier, fit, predict
from fairpriv.classifiers.nets.encoder import (
    EncoderClassifier,
    ImageBody,
    TextBody,
    TextClassifier,
    augmented,
    image_body,
)
from fairpriv.data.pretrained_encoder import PretrainedEncoder
from fairpriv.data.sources import Folder
from fairpriv.errors import InputError
from fairpriv.store import Store

SETTINGS = {  # of a cell, beside its model
    "seed": 0,
    "game": {},
    "training": {},
    "attack": {},
    "dimensions": {},
    "trainer": {"accelerator": "cpu"},
    "logger": None,
    "paths": {"root": "outputs"},
}
TEXTS = np.array(["nurse", "he is a surgeon", "she is a nurse and he is not", ""], dtype=object)
RESNET = {
    "_target_": "transformers.ResNetConfig",
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "layer_type": "basic",
}
VIT = {
    "_target_": "transformers.ViTConfig",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
}


def described(**model):
    return architecture_of({"model": model})


def reader(**model):
    return described(**model).reader(torch.device("cpu"))


def text_model(tiny_encoder, tmp_path, **changes):
    keys = {"name": "tiny", "path": str(tiny_encoder), "cache": str(tmp_path / "features")} | changes
    return {"_target_": "fairpriv.classifiers.nets.encoder.TextClassifier", **keys}


def image_model(**changes):
    return {"_target_": "fairpriv.classifiers.nets.encoder.ImageClassifier", "name": "tiny", "config": RESNET} | changes


def pixels(n, size=16, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_texts_features_are_the_mean_over_its_own_tokens(tiny_encoder, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    ids = torch.from_numpy(reader(**text_model(tiny_encoder, tmp_path, tune="all")).read(TEXTS))
    assert ids.dtype == torch.int32
    model, tokenizer = AutoModel.from_pretrained(tiny_encoder).eval(), AutoTokenizer.from_pretrained(tiny_encoder)
    features = TextBody(model).eval()(ids)
    for text, row in zip(TEXTS, features, strict=True):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert torch.allclose(row, torch.stack(list(states)).mean(0), atol=1e-5)


def test_frozen_features_are_those_of_the_encoder_and_are_computed_once(tiny_encoder, tmp_path, monkeypatch):
    texts = np.array([f"{TEXTS[i % 3]} {'he ' * (i % 7)}" for i in range(300)], dtype=object)
    frozen = reader(**text_model(tiny_encoder, tmp_path))
    features = frozen.read(texts)
    ids = torch.from_numpy(reader(**text_model(tiny_encoder, tmp_path, tune="all")).read(texts))
    assert np.allclose(features, TextBody(frozen.spec.weights.load())(ids).detach(), atol=1e-5)
    monkeypatch.setattr(TextBody, "forward", None)  # would be called again
    again = reader(**text_model(tiny_encoder, tmp_path))
    assert np.array_equal(again.read(texts), features)
    with pytest.raises(TypeError):
        reader(**text_model(tiny_encoder, tmp_path, max_tokens=4)).read(texts)  # other features


def test_standardised_features_have_mean_0_and_deviation_1_and_constants_are_0():
    train = np.random.default_rng(0).normal(3, 2, (500, 4)).astype(np.float32)
    train[:, 2] = 0.1
    fitted = Standardized.fit(train)
    X = fitted.transform(train)
    assert fitted.features == 4
    assert np.allclose(X.mean(0), 0, atol=1e-5)
    assert np.allclose(X.std(0), [1, 1, 0, 1], atol=1e-5)
    assert X.dtype == np.float32
    assert np.allclose(fitted.transform(train[:1] + 1)[0, 0] - X[0, 0], 1 / train[:, 0].std(), atol=1e-4)


def test_long_texts_lose_their_end(tiny_encoder, tmp_path):
    short, whole = (
        reader(**text_model(tiny_encoder, tmp_path, tune="all", max_tokens=n)).read(TEXTS) for n in (5, 128)
    )
    assert short.shape[1] == 5
    assert (short[2, :4] == whole[2, :4]).all()


@pytest.mark.parametrize("model", ["text", "image"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny_encoder, tmp_path, model):
    if model == "text":
        keys = text_model(tiny_encoder, tmp_path, tune="all", hidden=[4])
        X = torch.from_numpy(reader(**keys).read(np.tile(TEXTS, 3)))
    else:
        keys = image_model(config=VIT, augment=False, hidden=[4])
        X = pixels(12)
    y = torch.arange(12) % 3
    gradients = []
    for size in (5, 12):
        torch.manual_seed(0)
        net = described(**keys | {"micro_batch_size": size}).network(X.shape[-1], 3).eval()
        torch.nn.functional.cross_entropy(net(X), y).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    parts, whole = (torch.cat([g.flatten() for g in each.values()]) for each in gradients)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    assert all(p is not None for p in gradients[0].values())  # nothing that is never trained


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_images_are_learned_in_training_mode_and_answered_without_chance(config):
    X = pixels(64)
    y = torch.arange(64) % 2
    X[y == 1, 0] = 220  # red
    X[y == 0, 0] = 30
    torch.manual_seed(0)
    net = described(**image_model(config=config, encoder_lr=0.5)).network(16, 2)
    rows = Rows(X, y, y, torch.arange(64))
    module = Classifier(net, classes=2, lr=0.01, weight_decay=0.0)
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)
    fit(module, ShuffledBatches(rows, 16, 0), epochs=6, trainer=trainer, validation=rows)
    assert (predict(net, X) == y).float().mean() > 0.9
    assert torch.equal(net(X), net(X))
    net.train()
    assert not torch.equal(net.body(X), net.body(X))


def test_the_encoder_learns_at_its_share_of_the_rate(tiny_encoder, tmp_path):
    keys = {key: value for key, value in text_model(tiny_encoder, tmp_path).items() if key != "_target_"}
    net = TextClassifier(**keys | {"tune": "all", "encoder_lr": 0.1}).network(0, 2)
    optimizer = Classifier(net, classes=2, lr=0.02, weight_decay=0.0).configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in net.body.parameters()} == {0.02 * 0.1}
    assert {rates[id(p)] for p in net.head.parameters()} == {0.02}
    assert len(rates) == len(list(net.parameters()))


def test_augmented_images_are_mirrored_moved_and_scaled_within_bounds():
    torch.manual_seed(0)
    x = torch.zeros(400, 3, 16, 16)
    x[..., :8] = 1.0  # the left half
    seen = augmented(x)
    assert seen.shape == x.shape
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1 + 1e-4
    left = seen[..., 0, 0, 0] > 0.5
    assert 0.4 < left.float().mean() < 0.6
    share = torch.where(left, seen.mean((1, 2, 3)), 1 - seen.mean((1, 2, 3)))
    assert 0.5 - 0.16 < float(share.min()) < 0.42  # an eighth of a side at most, and a tenth of what is left
    assert 0.58 < float(share.max()) < 0.5 + 0.16


def test_pretrained_images_take_their_size_and_normalisation(tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {key: value for key, value in VIT.items() if key != "_target_"}
    ViTModel(ViTConfig(image_size=16, **sizes)).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    described = image_model(path=str(tmp_path / "vit"), tune="head", cache=str(tmp_path / "cache"))
    features = reader(**described).read(pixels(5).numpy())
    assert features.shape == (5, 16)
    model = ViTModel.from_pretrained(tmp_path / "vit").eval()
    x = pixels(5).float() / 255
    x = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    assert np.allclose(features, model(x).last_hidden_state.mean(1).detach(), atol=1e-5)
    with pytest.raises(InputError, match=r"dataset.size=32: .* takes images of 16 pixels"):
        reader(**described).read(pixels(5, size=32).numpy())


def test_a_resnets_features_are_the_mean_over_places():
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(ResNetConfig(**{key: value for key, value in RESNET.items() if key != "_target_"})).eval()
    body = ImageBody(model, [0.5] * 3, [0.5] * 3, augment=True).eval()
    expected = model((pixels(3).float() / 255 - 0.5) / 0.5).pooler_output.flatten(1)
    assert body.width == 12
    assert torch.allclose(body(pixels(3)), expected, atol=1e-5)


def test_wrong_keys_are_refused(tiny_encoder, tmp_path):
    with pytest.raises(InputError, match=r"tune=head freezes an encoder that was never trained: set model.path"):
        reader(**image_model(tune="head"))
    with pytest.raises(InputError, match="tune=some: it is head or all"):
        reader(**text_model(tiny_encoder, tmp_path, tune="some"))
    with pytest.raises(InputError, match=r"model.path, the weights, or model.config"):
        reader(**image_model(config=None))
    with pytest.raises(InputError, match="max_tokens=2"):
        reader(**text_model(tiny_encoder, tmp_path, max_tokens=2))
    assert reader(_target_="fairpriv.classifiers.nets.classifier.MLP", name="mlp") is None


def image_net(mean=0.5, **config):
    from transformers import AutoModel, ViTConfig

    sizes = {key: value for key, value in VIT.items() if key != "_target_"} | {"image_size": 16} | config
    torch.manual_seed(0)
    body = ImageBody(AutoModel.from_config(ViTConfig(**sizes)), [mean] * 3, [0.5] * 3, augment=False)
    return EncoderClassifier(body, 16, 2, hidden=[4], dropout=0.0, encoder_lr=1.0, micro_batch_size=8).eval()


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 4}, {"attention_probs_dropout_prob": 0.5}, {"mean": 0.1}], ids=str
)
def test_a_finished_fit_is_not_read_for_an_encoder_that_computes_something_else(tmp_path, monkeypatch, change):
    X, y = pixels(8), torch.arange(8) % 2
    rows = Rows(X, y, y, torch.arange(8))
    fits = []
    whole = lightning.Trainer.fit
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *args, **rest: (fits.append(1), whole(*args, **rest)))
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)
    for keys, done in (({}, 1), ({"name_or_path": "elsewhere"}, 1), (change, 2)):
        module = Classifier(image_net(**keys), classes=2, lr=0.01, weight_decay=0.0)
        fit(module, ShuffledBatches(rows, 8, 0), epochs=1, trainer=trainer, validation=rows, store=Store(tmp_path))
        assert len(fits) == done


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(tiny_encoder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "n")
    code = "open(__file__ + '.ran', 'w').close()"
    auto = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
    for name in ("config.json", "tokenizer_config.json"):
        folder = shutil.copytree(tiny_encoder, tmp_path / name)
        (folder / "code.py").write_text(code)
        keys = json.loads((folder / name).read_text()) | {"model_type": "own", "auto_map": auto}
        (folder / name).write_text(json.dumps(keys | {"tokenizer_class": "Own"}))
        weights = PretrainedEncoder("own", str(folder))
        for reading in (weights.load, weights.tokenizer):
            with contextlib.suppress(InputError):
                reading()
    assert not asked
    assert not list(tmp_path.rglob("*.ran"))
    with pytest.raises(InputError, match=r"wants to run code of its own: choose an encoder that transformers itself"):
        PretrainedEncoder("own", str(tmp_path / "config.json")).load()


@pytest.mark.parametrize("damage", ["another size", "a pickle that is none"])
def test_an_encoder_s_files_that_cannot_be_loaded_are_said_in_one_line(tiny_encoder, tmp_path, damage):
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    if damage == "another size":
        keys = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 64}
        (folder / "config.json").write_text(json.dumps(keys))
    else:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    said = {"another size": "its weights are of other sizes than its config.json says"}.get(damage, "")
    with pytest.raises(InputError, match=f"model.path=.*: {said}") as raised:
        PretrainedEncoder("own", str(folder)).load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_defence_of_features_is_refused_for_pixels_also_inside_another(wrapped):
    defense = ThresholdOptimizer(estimator=DPSGD()) if wrapped else DPSGD()
    config = SETTINGS | {"model": image_model()}
    faces = Images(name="faces", source=Folder("faces"), target="age", sensitive="sex", pattern="(?P<age>.)(?P<sex>.)")
    with pytest.raises(InputError, match="defense=dp_sgd takes rows of features"):
        DistributionInference(config, faces, defense)
    DistributionInference(config, faces, ThresholdOptimizer())


@pytest.mark.parametrize(("kind", "most"), [("Bert", 16), ("Roberta", 13), ("XLNet", None)])
def test_texts_longer_than_an_encoders_positions_are_refused_before_anything_is_read(tmp_path, kind, most):
    import transformers

    keys = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 2}
    keys |= {"max_position_embeddings": 16, "intermediate_size": 8} if most else {"n_layer": 1, "d_head": 4}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**keys)).eval()
    model.save_pretrained(tmp_path)
    keys = {"_target_": "fairpriv.classifiers.nets.encoder.TextClassifier", "name": "tiny", "path": str(tmp_path)}
    if most is None:
        assert reader(**keys, max_tokens=1000).spec.weights.digest()
        return
    row = torch.full((1, most + 1), 5)
    model(input_ids=row[:, :most], attention_mask=torch.ones(1, most))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=row, attention_mask=torch.ones(1, most + 1))
    assert reader(**keys, max_tokens=most).spec.weights.digest()
    with pytest.raises(InputError, match=rf"model.max_tokens={most + 1}: .* has positions for {most} tokens"):
        reader(**keys, max_tokens=most + 1).spec.weights.digest()
    with pytest.raises(InputError, match="max_tokens=128"):
        TextClassifier(path=str(tmp_path), tune="all").network(128, 2)


def test_models_that_are_no_encoder_of_what_is_read_are_refused_before_anything_is_read(tiny_encoder, tmp_path):
    from transformers import CLIPConfig, CLIPModel, MobileNetV2Config

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    clip = {"text_config": small | {"vocab_size": 12}, "vision_config": small | {"image_size": 16, "patch_size": 8}}
    clip["text_config"] |= {"bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(CLIPConfig(**clip, projection_dim=8)).save_pretrained(tmp_path)
    both = str(tmp_path)
    with pytest.raises(InputError, match=r"model.path=.*: the config of a clip model has no hidden_size"):
        reader(**text_model(tiny_encoder, tmp_path, path=both)).spec.weights.digest()
    with pytest.raises(InputError, match=r"model.path=.*: a clip model reads input_ids: choose an encoder of images"):
        reader(**image_model(path=both)).spec.weights.digest()
    model = image_net().body.model
    model.save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match=r"a vit model reads pixel_values: choose an encoder of texts"):
        reader(**text_model(tiny_encoder, tmp_path, path=str(tmp_path / "vit"))).spec.weights.digest()
    with pytest.raises(InputError, match=r"model.config: the config of a mobilenet_v2 model has no hidden_size"):
        image_body(None, MobileNetV2Config(), 32, augment=False)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_every_part_moves_batch_normalisation_once(momentum):
    from transformers import ResNetConfig, ResNetModel

    sizes = {key: value for key, value in RESNET.items() if key != "_target_"}
    body = ImageBody(ResNetModel(ResNetConfig(**sizes)), [0.5] * 3, [0.5] * 3, augment=False)
    net = EncoderClassifier(body, 16, 2, hidden=[], dropout=0.0, encoder_lr=1.0, micro_batch_size=4)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum
    X = pixels(8)
    alone = copy.deepcopy(net)
    for part in X.split(4):
        alone(part).sum().backward()
    net(X).sum().backward()
    expected = alone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())
    gradients = dict(alone.named_parameters())
    assert all(torch.allclose(p.grad, gradients[name].grad, atol=1e-5) for name, p in net.named_parameters())
