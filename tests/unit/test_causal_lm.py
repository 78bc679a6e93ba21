"""Fine-tuning against a plain loop over single rows without padding, and what it leaves alone."""

import contextlib
import copy
import functools
import tempfile

import lightning
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins import MixedPrecision

from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.errors import InputError, NonFiniteLossError
from fairpriv.language_models.contract import ModelOwner
from fairpriv.language_models.data.pairs import TokenBatches
from fairpriv.language_models.data.tokens import Encoded, collate
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.engines.log_likelihood import log_likelihoods
from fairpriv.language_models.models.causal_lm import CausalLM, fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.models.reft import LoReFTConfig, ReftModel
from fairpriv.language_models.models.sharding import require_shardable
from fairpriv.store import Store

TRAINER = functools.partial(lightning.Trainer, accelerator="cpu", devices=1, enable_progress_bar=False)
ADAPTERS = ["lora", "dora", "reft"]


def rows(n=8):
    """Rows whose numbers of target tokens differ much: 1, 12, 23, ..."""
    g = torch.Generator().manual_seed(0)
    made = []
    for i in range(n):
        prompt, response = (torch.randint(3, 290, (k,), generator=g).tolist() for k in (2 + i % 3, 1 + 11 * (i % 4)))
        made.append(Encoded(prompt + response, [-100] * len(prompt) + response))
    return made


def language_model(folder, **options):
    return PretrainedLM("tiny", str(folder), dtype="float32", **options).load()[0]


def flat(model):
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


def fitted(model, trainer=TRAINER, *, epochs=1, batch_size=3, data=None, **options):
    module = CausalLM(model, **{"lr": 1e-4, "stage": "full", **options})
    fit_causal_lm(module, data or rows(), epochs=epochs, batch_size=batch_size, trainer=trainer, seed=5)
    return module


@functools.cache
def described(name):
    return compose(CONF, [], [f"defense={name}"]).defense


def defense(name, **options):
    """A defence as its YAML describes it."""
    return instantiate(described(name), **{"batch_size": 4, "epochs": 4, **options}, _convert_="all")


def tuned(model, name, seen=lambda model: None, trainer=TRAINER, store=None, **options):
    with contextlib.ExitStack() as ends:
        store = store or Store(ends.enter_context(tempfile.TemporaryDirectory(prefix="fairpriv-")))
        owner = ModelOwner(
            model,
            tokenizer=None,
            pad_id=0,
            seed=5,
            pairs=lambda: (rows(), 0),
            fit=functools.partial(fit_causal_lm, trainer=trainer),
            keep=seen,
            store=store,
            **dict.fromkeys(("rows", "file", "origin", "name")),  # SPIN's
        )
        return defense(name, **options).tune(owner)


@torch.no_grad()
def logits(model):
    batch = collate(rows(4), 0)
    return model(**{name: values for name, values in batch.items() if name != "labels"}).logits


def plain_loop(model, lrs, batch_size=3, clip=0.0):
    """The same fit: one row at a time, the sum of its targets' losses over the step's number of targets."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.3)
    losses = []
    for lr, step in zip(lrs, TokenBatches(rows(), batch_size, 5), strict=True):
        optimizer.param_groups[0]["lr"] = lr
        loss = 0.0
        for row in step:
            ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)
            told = model(input_ids=ids).logits[0].log_softmax(-1)
            loss = loss - sum(told[i - 1, labels[i]] for i in range(1, len(labels)) if labels[i] != -100)
        loss = loss / sum(label != -100 for row in step for label in row.labels)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 100])
def test_accumulating_gradients_changes_nothing(tiny_lms, family, micro_batch_size):
    reference = language_model(tiny_lms[family])
    start = flat(reference)
    losses = plain_loop(reference, lrs=[1e-4, 1e-4 * 2 / 3, 1e-4 / 3], clip=0.5)
    module = fitted(language_model(tiny_lms[family]), micro_batch_size=micro_batch_size, weight_decay=0.3, clip=0.5)
    assert module.losses == pytest.approx(losses, rel=1e-5)
    # Adam turns the rounding of a gradient near zero into a visible step of that weight. So all weights are compared
    # at once, in units of the way that they went: some three of 10,000 may take a whole step of their own.
    assert (flat(module.model) - flat(reference)).norm() < 0.01 * (flat(reference) - start).norm()


@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_a_gradient_that_is_scaled_up_for_float16_is_clipped_as_another(tiny_lm, clip):
    def step(scale):
        model = language_model(tiny_lm)
        before = flat(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer = functools.partial(TRAINER, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        fitted(model, trainer, batch_size=8, lr=0.1, clip=clip, optimizer=torch.optim.SGD)
        return float((flat(model) - before).norm())

    assert step(1024.0) == pytest.approx(step(1.0), rel=0.01)
    if clip:
        assert step(1024.0) == pytest.approx(0.1 * clip, rel=1e-3)


def test_padding_changes_no_loss(tiny_lm):
    module = CausalLM(language_model(tiny_lm), lr=1e-4)
    data = rows(4)
    alone = [module.token_losses(collate([row], 0)) for row in data]
    torch.testing.assert_close(module.token_losses(collate(data, 0)), torch.cat(alone), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.token_losses(collate(data, 7)), torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert [len(losses) for losses in alone] == [1, 12, 23, 34]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_is_not_asked_for_a_loss_of_its_own(tiny_lm, wrapped):
    model, asked = language_model(tiny_lm), []
    model.register_forward_hook(lambda module, args, kwargs, output: asked.append(output.loss), with_kwargs=True)
    subject = ReftModel(model, LoReFTConfig(rank=2)) if wrapped else model
    CausalLM(subject, lr=1e-4).token_losses(collate(rows(4), 0))
    log_likelihoods(subject, rows(4), pad_id=0, batch_tokens=999)
    assert len(asked) >= 2
    assert {*asked} == {None}


class Signs(torch.optim.SGD):
    """Steps by the gradient's sign, as Lion's first step does: how large the loss is makes no difference."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.sign_()
        super().step(closure)


def test_adapters_that_scale_equal_weights_otherwise_are_kept_apart(tiny_lm):
    def one(alpha):
        signs = {"_target_": f"{__name__}.Signs", "_partial_": True}
        options = {"optimizer": signs, "epochs": 1, "batch_size": 8, "lr": 0.1}
        return tuned(language_model(tiny_lm), "lora", adapter={"lora_alpha": alpha}, **options)

    weak, strong, again = one(2), one(32), one(2)
    assert not torch.allclose(logits(weak.model), logits(strong.model))
    assert weak.content[1] == strong.content[1]  # what was trained
    assert weak.content != strong.content
    assert weak.content == again.content


@pytest.mark.parametrize("name", ["full", *ADAPTERS])
def test_the_backbone_is_in_train_mode_while_it_trains_and_in_eval_mode_after(tiny_lm, name):
    model = language_model(tiny_lm)
    modes = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    after = tuned(model, name).model
    merging = 2 if name in ("lora", "dora") else 0  # the loss with and without the merge, in eval mode
    assert len(modes) > merging
    assert modes == [True] * (len(modes) - merging) + [False] * merging
    assert not any(module.training for module in after.modules())


@pytest.mark.parametrize(("warmup", "rise"), [(0.0, 1), (0.3, 3), (1.0, 10)])
def test_the_learning_rate_rises_and_falls_linearly(tiny_lm, monkeypatch, warmup, rise):
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fitted(language_model(tiny_lm), epochs=5, batch_size=4, lr=0.01, warmup=warmup)
    up = [0.01 * (i + 1) / rise for i in range(rise)]
    fall = 10 - rise + 1  # the step after the last one would have a rate of 0
    down = [0.01 * (fall - i) / fall for i in range(1, fall)]
    assert seen == pytest.approx([*up, *down])
    assert min(seen) > 0


def test_epochs_differ_in_their_order_and_a_seed_repeats_it(tiny_lm):
    one, two = (fitted(language_model(tiny_lm), epochs=2, lr=1e-12).losses for _ in range(2))
    assert len(one) == 6
    assert one == two
    assert one[:3] != one[3:]  # the weights are all but still: it is the rows


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_frozen_stays_bit_for_bit(tiny_lms, family, name):
    model = language_model(tiny_lms[family])
    before = [(p, p.detach().clone()) for p in model.parameters()]
    answers = logits(model)
    seen = []

    def compare(adapted):
        seen.extend(torch.equal(p, was) for p, was in before)
        assert not any(p.requires_grad for p, _ in before)

    result = tuned(model, name, compare, save=True, lr=0.01)
    assert seen
    assert all(seen)
    assert result.measured.metrics["train/last_loss"] < result.measured.metrics["train/first_loss"]
    assert (logits(result.model) - answers).abs().max() > 1e-3
    weights = sum(p.numel() for p, _ in before)
    assert 0 < result.measured.metrics["defense/trained_parameters"] < weights


def test_full_fine_tuning_trains_every_weight(tiny_lm):
    model = language_model(tiny_lm).requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = tuned(model, "full", lr=0.01)
    assert result.measured.metrics["defense/trained_parameters"] == sum(p.numel() for p in before.values())
    assert not [name for name, p in result.model.named_parameters() if torch.equal(p, before[name])]
    assert result.measured.metrics["train/steps"] == 8
    assert result.measured.metrics["train/target_tokens"] == sum(
        label != -100 for row in rows() for label in row.labels
    )


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_merged_adapter_answers_as_the_adapted_model(tiny_lm, name):
    adapted = []
    model = language_model(tiny_lm)
    before = logits(model)
    result = tuned(model, name, lambda model: adapted.append(logits(model)), save=True, lr=0.01)
    assert (logits(result.model) - adapted[0]).abs().max() < 1e-4
    assert (adapted[0] - before).abs().max() > 0.01
    assert not [part for part, _ in result.model.named_parameters() if "lora" in part]


@pytest.mark.filterwarnings("ignore:Found keys that are in the model state dict but not in the checkpoint")
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_checkpoint_holds_the_adapter_only_and_reloads(tiny_lm, tmp_path, name):
    def module():
        torch.manual_seed(1)
        adapted = defense(name)._adapted(language_model(tiny_lm))
        return CausalLM(adapted, lr=0.01, stage=name)

    trained, made = module(), []

    def trainer(**options):
        made.append(TRAINER(**options))
        return made[0]

    fit_causal_lm(trained, rows(), epochs=2, batch_size=4, trainer=trainer, seed=0)
    made[0].save_checkpoint(tmp_path / "adapter.ckpt")
    kept = torch.load(tmp_path / "adapter.ckpt", weights_only=True)["state_dict"]
    assert kept.keys() == trained.state_dict().keys()
    assert all("lora_" in key or "interventions" in key for key in kept)
    assert sum(value.numel() for value in kept.values()) < sum(p.numel() for p in trained.parameters()) / 2
    fresh = module()
    assert not torch.equal(logits(fresh.model.eval()), logits(trained.model))
    again = CausalLM.load_from_checkpoint(tmp_path / "adapter.ckpt", model=fresh.model, lr=0.01)
    torch.testing.assert_close(logits(again.model.eval()), logits(trained.model))


def test_a_loss_that_is_not_finite_names_stage_and_step(tiny_lm):
    with pytest.raises(NonFiniteLossError, match=r"^full: the loss is (nan|inf) at step 2: lower defense\.lr"):
        fitted(language_model(tiny_lm), lr=1e30)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_a_shortage_of_memory_names_what_to_lower(tiny_lm, monkeypatch, error):
    def scarce(self, batch):
        raise error

    monkeypatch.setattr(CausalLM, "token_losses", scarce)
    with pytest.raises(RuntimeError, match=r"^out of memory in full: lower defense\.micro_batch_size=4") as raised:
        fitted(language_model(tiny_lm))
    assert all(
        word in str(raised.value) for word in ("dataset.max_tokens", "gradient_checkpointing", "precision=bf16-mixed")
    )
    assert "model.dtype" not in str(raised.value)


def test_another_error_is_not_taken_for_a_shortage_of_memory(tiny_lm, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(CausalLM, "token_losses", broken)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        fitted(language_model(tiny_lm))


def test_no_step_is_an_error_of_the_user_s(tiny_lm):
    trainer = functools.partial(TRAINER, limit_train_batches=0)
    with pytest.raises(InputError, match=r"full: no step was taken"):
        fitted(language_model(tiny_lm), trainer)


HALF_TRUE = functools.partial(TRAINER, precision="bf16-true")


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("trainer", [TRAINER, HALF_TRUE])
def test_an_adapter_of_a_bfloat16_model_trains_in_float32(tiny_lm, name, trainer):
    model = language_model(tiny_lm).bfloat16()
    frozen = [(p, p.detach().clone()) for p in model.parameters()]
    kinds = set()
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        kinds.update(p.dtype for group in self.param_groups for p in group["params"])
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        result = tuned(model, name, trainer=trainer, lr=0.01)
    assert kinds == {torch.float32}
    assert all(torch.equal(p, was) for p, was in frozen)
    assert result.measured.metrics["train/last_loss"] < result.measured.metrics["train/first_loss"]


def test_a_precision_that_lightning_rounds_to_leaves_the_frozen_weights_as_they_were(tiny_lm):
    model = language_model(tiny_lm)
    frozen = [(p, p.detach().clone()) for p in model.parameters()]
    buffers = [(module, name, b.clone()) for module in model.modules() for name, b in module._buffers.items()]
    tuned(model, "lora", lambda model: [], trainer=HALF_TRUE, lr=1e-9)
    for p, was in frozen:
        torch.testing.assert_close(p, was, rtol=1e-6, atol=1e-6)  # merged
    assert all(torch.equal(module._buffers[name], was) for module, name, was in buffers)


@pytest.mark.parametrize(
    ("dtype", "precision", "message"),
    [
        ("bfloat16", "32-true", r"trains .* in bfloat16, .*: set model\.dtype=float32"),
        ("float16", "32-true", r"trains .* in float16, .*: set model\.dtype=float32"),
        ("bfloat16", "bf16-mixed", r"set model\.dtype=float32 \(trainer\.precision=bf16-mixed"),
        ("float32", "bf16-true", r"^trainer\.precision=bf16-true: .*: set trainer\.precision=bf16-mixed"),
    ],
)
def test_weights_in_half_precision_are_not_trained(tiny_lm, dtype, precision, message):
    model = language_model(tiny_lm).to(getattr(torch, dtype))
    with pytest.raises(InputError, match=message):
        tuned(model, "full", trainer=functools.partial(TRAINER, precision=precision))


def test_computing_in_half_precision_changes_nearly_every_weight(tiny_lm):
    model = language_model(tiny_lm)
    defense("full").check(model)
    before = flat(model.model.layers)  # of the embedding only what is read is trained
    tuned(model, "full", trainer=functools.partial(TRAINER, precision="bf16-mixed"), lr=2e-5, epochs=2)
    assert (flat(model.model.layers) != before).double().mean() > 0.95


def test_a_model_that_cannot_be_tuned_is_refused_before_it_is_measured(tiny_lm):
    model = language_model(tiny_lm).bfloat16()
    after_lora = instantiate(compose(CONF, [], ["defense=lora_spin"]).defense, _convert_="all")
    with pytest.raises(InputError, match=r"^defense=full trains .*: set model\.dtype=float32"):
        defense("full").check(model)
    with pytest.raises(InputError, match=r"^defense=lora: the adapter is to be merged, .*: set model\.dtype=float32"):
        after_lora.check(model)
    for name in ("lora", "reft"):
        defense(name).check(model)
    after_lora.check(model.float())


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_bfloat16_model_is_measured_as_it_was_trained(tiny_lm, name):
    adapted = []
    model = language_model(tiny_lm).bfloat16()
    result = tuned(model, name, lambda model: adapted.append(logits(model)), save=True, lr=1e-3)
    assert torch.equal(logits(result.model), adapted[0])


@pytest.mark.parametrize("modules", [["lm_head"], ["q_proj", "lm_head"], ["embed_tokens"]])
def test_an_adapter_on_tied_weights_is_measured_as_it_was_trained(tiny_lm, modules):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_lm, tie_word_embeddings=True, dtype=torch.float32).eval()
    model.lm_head.weight = model.model.embed_tokens.weight
    adapted = []
    options = {"adapter": {"target_modules": modules}, "lr": 0.05, "save": True}
    result = tuned(model, "lora", lambda model: adapted.append(logits(model)), **options)
    assert torch.equal(logits(result.model), adapted[0])
    assert result.measured.metrics["train/last_loss"] < result.measured.metrics["train/first_loss"]


def test_a_merge_that_changes_the_loss_stops_the_cell(tiny_lm, monkeypatch):
    from peft import PeftModel

    lora = PeftModel.__getattr__

    def broken(self, name):
        found = lora(self, name)
        if name != "merge_and_unload":
            return found

        def merge():
            whole = found()
            whole.lm_head.weight.data *= 3
            return whole

        return merge

    monkeypatch.setattr(PeftModel, "__getattr__", broken)
    message = (
        r"^defense=lora: the loss on its own pairs is \d+\.\d+ with the adapter and \d+\.\d+ with the adapter merged"
    )
    with pytest.raises(InputError, match=message):
        tuned(language_model(tiny_lm), "lora")


def test_virtual_tokens_are_refused():
    from peft import PrefixTuningConfig, PromptTuningConfig

    for kind in (PromptTuningConfig, PrefixTuningConfig):
        with pytest.raises(InputError, match=rf"{kind.__name__} learns virtual tokens"):
            SupervisedTuning("prompt", adapter=kind(task_type="CAUSAL_LM", num_virtual_tokens=4))


@pytest.mark.parametrize("name", ["full", *ADAPTERS])
def test_gradient_checkpointing_changes_no_weight(tiny_lm, name):
    plain, model = language_model(tiny_lm), language_model(tiny_lm)
    model.activation_checkpointing_enable()
    runs = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: runs.append(module))
    options = {"adapter": {"dropout": 0.0}} if name == "reft" else {}
    if name in ("lora", "dora"):
        options = {"adapter": {"lora_dropout": 0.0}}
    expected = tuned(plain, name, **options)
    result = tuned(model, name, **options)
    merging = 2 if name in ("lora", "dora") else 0  # the loss with and without the merge
    assert len(runs) == 2 * 8 + merging  # micro-batches, each of which runs a layer twice
    torch.testing.assert_close(logits(result.model), logits(expected.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["full", *ADAPTERS])
def test_what_is_trained_is_kept_and_read_again(tiny_lm, tmp_path, name):
    def never(*args, **settings):
        raise AssertionError("trained once more")

    made = tuned(language_model(tiny_lm), name, store=Store(tmp_path))
    read = tuned(language_model(tiny_lm), name, store=Store(tmp_path), trainer=never, micro_batch_size=1, save=True)
    assert torch.equal(logits(read.model), logits(made.model))
    assert (read.measured, read.content) == (made.measured, made.content)
    with pytest.raises(AssertionError, match="trained once more"):
        tuned(language_model(tiny_lm), name, store=Store(tmp_path), trainer=never, lr=0.5)


def test_any_optimiser_of_torch_is_chosen_by_the_config(tiny_lm):
    """One step of plain gradient descent without a gradient's norm clipped: the way is lr times the gradient."""
    node = compose(CONF, [], ["defense=full", "defense.optimizer._target_=torch.optim.SGD"]).defense
    model, data = language_model(tiny_lm), rows(3)
    module = CausalLM(model, lr=0.1, optimizer=instantiate(node.optimizer), micro_batch_size=3, stage="full")
    start = flat(model)
    module.token_losses(collate(data, 0)).mean().backward()
    gradient = torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])
    model.zero_grad()
    fit_causal_lm(module, data, epochs=1, batch_size=3, trainer=TRAINER, seed=5)
    torch.testing.assert_close(flat(model), start - 0.1 * gradient, rtol=0, atol=1e-6)


def test_an_optimiser_that_takes_no_weight_decay_is_refused(tiny_lm):
    with pytest.raises(InputError, match=r"^defense\.optimizer: .*weight_decay"):
        fitted(language_model(tiny_lm), optimizer=functools.partial(torch.optim.LBFGS))


def test_a_model_without_layers_of_its_own_is_not_sharded(tiny_lm):
    model = language_model(tiny_lm)
    require_shardable(model)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(InputError, match=r"fsdp .* LlamaForCausalLM uses weight 0\.mlp\.\w+\.weight .* trainer=ddp"):
        require_shardable(model)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(InputError, match=r"trainer\.strategy=fsdp .* LlamaForCausalLM has no nn\.ModuleList"):
        require_shardable(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("batch_size", 0), ("micro_batch_size", 0), ("lr", 0), ("lr", float("nan")), ("warmup", 1.5)],
)
def test_a_value_out_of_range_is_refused(key, value):
    with pytest.raises(Exception, match=rf"defense\.{key}={value}: out of range"):
        defense("full", **{key: value})


def test_an_adapter_that_fits_nowhere_is_refused(tiny_lm):
    lora = defense("lora")
    lora.adapter.target_modules = {"no_such_layer"}
    with pytest.raises(InputError, match=r"^defense\.adapter: .*no_such_layer"):
        lora.check(language_model(tiny_lm))  # before anything is measured
    lora.adapter = copy.copy
    with pytest.raises(InputError, match=r"a function is no adapter"):
        lora.check(language_model(tiny_lm))


@pytest.mark.parametrize("name", ["lora", "dora", "pissa"])
def test_checking_an_adapter_changes_nothing(tiny_lm, name):
    tuning, model = defense(name.replace("pissa", "lora")), language_model(tiny_lm)
    if name == "pissa":  # made from the weights, which the check does not read
        tuning.adapter.init_lora_weights = "pissa"
    recipe, state, before = tuning.recipe(), torch.get_rng_state(), dict(model.named_parameters())
    weights = {key: (weight.clone(), weight.requires_grad) for key, weight in before.items()}
    tuning.check(model)
    assert (tuning.recipe(), dict(model.named_parameters())) == (recipe, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(before[key], weight) and before[key].requires_grad == asked
        for key, (weight, asked) in weights.items()
    )
