"""Task arithmetic against the tuned model, and against an adapter that PEFT scales."""

import copy
import functools

import lightning
import pytest
import torch
from hydra.utils import instantiate
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.errors import InputError
from fairpriv.language_models.contract import ModelOwner
from fairpriv.language_models.data.tokens import Encoded, collate
from fairpriv.language_models.defenses.spin import Spin
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.defenses.task_arithmetic import TaskArithmetic
from fairpriv.language_models.models.causal_lm import fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.store import Store

TRAINER = functools.partial(lightning.Trainer, accelerator="cpu", devices=1, enable_progress_bar=False)
ROWS = [Encoded(list(range(3 + i, 12 + 2 * i)), [-100] * 4 + list(range(7 + i, 12 + 2 * i))) for i in range(8)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Fits are made once for all tests of this file."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def tuned(tiny_lm, store):
    """Tunes a fresh model as a YAML says; ``seen`` is given the model before its adapter is merged."""

    def call(*words: str, seen=lambda model: None, dtype: str = "float32", model=None):
        node = compose(CONF, [], list(words)).defense
        owner = ModelOwner(
            model or PretrainedLM("tiny", str(tiny_lm), dtype=dtype).load()[0],
            pad_id=0,
            seed=5,
            pairs=lambda: (ROWS, 0),
            fit=functools.partial(fit_causal_lm, trainer=TRAINER),
            keep=seen,
            store=store,
            **dict.fromkeys(("tokenizer", "rows", "file", "origin", "name")),
        )
        made = instantiate(node, _convert_="all")
        made.check(owner.model)
        return made.tune(owner)

    return call


def flat(model):
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


@torch.no_grad()
def logits(model):
    batch = collate(ROWS[:4], 0)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("coefficient", [-1.5, 0.25, 1])
def test_the_weights_move_by_a_multiple_of_the_way_that_tuning_goes(tuned, tiny_lm, coefficient):
    start = flat(PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0])
    way = flat(tuned("defense=full", "defense.lr=0.01").model) - start
    words = ["defense=task_arithmetic", "defense@defense.tuning=full", "defense.tuning.lr=0.01"]
    found = tuned(*words, f"defense.coefficient={coefficient}")
    torch.testing.assert_close(flat(found.model) - start, coefficient * way, rtol=0, atol=1e-6)
    expected = float(abs(coefficient) * way.norm() / start.norm())
    assert found.measured.metrics["edit/task_vector"] == pytest.approx(expected, rel=1e-3)
    assert found.measured.metrics["train/pairs"] == 8


def test_a_scaled_adapter_answers_as_one_whose_scale_peft_multiplies(tuned):
    kept = []
    lora = ["defense=task_arithmetic", "defense.tuning.lr=0.05", "defense.tuning.save=true", "defense.coefficient=-2"]
    found = tuned(*lora, seen=lambda model: kept.append(copy.deepcopy(model).eval()))
    plain = logits(kept[0])
    for module in kept[0].modules():
        if isinstance(module, BaseTunerLayer):
            module.scaling["default"] *= -2
    torch.testing.assert_close(logits(found.model), logits(kept[0]), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, logits(kept[0]), atol=0.1)


def test_a_random_change_is_as_large_in_each_matrix_and_nowhere_else(tuned, tiny_lm):
    words = ["defense=task_arithmetic", "defense.tuning.lr=0.05"]
    start = dict(PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0].named_parameters())
    task, drawn = (dict(tuned(*words, f"defense.direction={d}").model.named_parameters()) for d in ("task", "random"))
    assert torch.equal(drawn["model.norm.weight"], start["model.norm.weight"])
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        a, b = ((weights[name] - start[name]).detach().flatten() for weights in (task, drawn))
        assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-3) != 0
        assert abs(torch.cosine_similarity(a, b, dim=0)) < 0.2


def test_nothing_of_a_change_is_marked_and_each_change_has_a_content_of_its_own(tuned):
    words = ["defense=task_arithmetic", "defense.tuning.lr=0.05"]
    contents = set()
    for more in ([], ["defense.coefficient=-1"], ["defense.direction=random"], ["defense.tuning.lr=0.01"]):
        found = tuned(*words, *more)
        assert not found.measured.degenerate
        contents.add(str(found.content))
    assert len(contents) == 4
    assert tuned(*words, "defense.coefficient=0").measured.degenerate == ["defense.coefficient=0 changes no weight"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["defense@defense.tuning=reft"], r"defense=reft: the adapter is to be merged, and it changes no weights"),
        (["defense@defense.tuning=spin"], r"defense\.tuning: Spin is no SupervisedTuning"),
        (["defense.direction=back"], r"defense\.direction=back: must be one of task, random"),
        (["defense.coefficient=nan"], r"defense\.coefficient=nan"),
    ],
)
def test_what_cannot_be_is_refused(tuned, words, message):
    with pytest.raises(Exception, match=message):
        tuned("defense=task_arithmetic", *words)


def test_an_adapter_that_is_not_merged_is_refused_also_where_that_shows_late(tuned, tiny_lm):
    model = PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]
    model.lm_head.weight = model.model.embed_tokens.weight  # tied: a merge would change the embedding, too
    words = ["defense=task_arithmetic", "defense.tuning.adapter.target_modules=[lm_head]"]
    with pytest.raises(InputError, match=r"defense=lora: the adapter cannot be merged.*adapter\.target_modules"):
        tuned(*words, model=model)
    words += ["+defense.tuning.adapter.init_lora_weights=pissa"]  # which reads weights when it is put on
    with pytest.raises(InputError, match=r"its adapter cannot be merged.*defense\.tuning\.adapter\.target_modules"):
        tuned(*words, model=model)


def test_an_adapter_that_a_merge_would_spoil_is_refused_before_anything_is_measured(tiny_lm):
    model = PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]
    lora = SupervisedTuning("lora", adapter=LoraConfig(target_modules=["lm_head"]))
    defenses = [TaskArithmetic("task_arithmetic", lora), Spin("lora_spin", ["fairness", "privacy"], after=lora)]
    for defense in defenses:
        defense.check(model)
    model.lm_head.weight = model.model.embed_tokens.weight
    lora.check(model)  # measured with the adapter beside the weights
    for defense in defenses:
        with pytest.raises(InputError, match="cannot be merged, as an adapted weight has a second use"):
            defense.check(model)


def test_weights_in_half_precision_are_refused(tuned):
    with pytest.raises(InputError, match=r"model\.dtype=float32"):
        tuned("defense=task_arithmetic", dtype="bfloat16")
