"""DPO against loops over single tokens, and the pairs that it compares."""

import functools
import math

import lightning
import pytest
import torch
from hydra.utils import instantiate

from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.language_models.contract import ModelOwner
from fairpriv.language_models.data.pairs import TokenBatches
from fairpriv.language_models.data.tokens import Encoded, Preference
from fairpriv.language_models.defenses.dpo import PreferenceLM
from fairpriv.language_models.inputs import checkpoint_activations
from fairpriv.language_models.models.causal_lm import fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.store import Store

TRAINER = functools.partial(lightning.Trainer, accelerator="cpu", devices=1, enable_progress_bar=False)
BETA = 0.3


def row(prompt: int, response: int, length: int) -> Encoded:
    asked, said = list(range(prompt, prompt + 3)), list(range(response, response + length))
    return Encoded(asked + said, [-100] * 3 + said)


def preferences() -> list[Preference]:
    """Pairs whose responses have several lengths."""
    pairs = [(row(10 + i, 50 + 9 * i, 1 + i % 3), row(10 + i, 150 + 9 * i, 2 + i % 4)) for i in range(7)]
    return [Preference(chosen.input_ids, chosen.labels, rejected) for chosen, rejected in pairs]


@pytest.fixture
def model(tiny_lm):
    return PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]


def log_likelihood(model, one: Encoded) -> torch.Tensor:
    """Token by token, without padding."""
    told = model(torch.tensor([one.input_ids])).logits[0].log_softmax(-1)
    return sum(told[i - 1, label] for i, label in enumerate(one.labels) if label != -100)


def loss_of(model, reference, pair: Preference) -> torch.Tensor:
    """As equation 7 of Rafailov et al. is written, and TRL computes it: logits are a difference of log-ratios."""
    chosen, rejected = (log_likelihood(model, one) for one in pair.parts)
    with torch.no_grad():
        chosen_before, rejected_before = (log_likelihood(reference, one) for one in pair.parts)
    logits = (chosen - chosen_before) - (rejected - rejected_before)
    return -torch.log(1 / (1 + torch.exp(-BETA * logits)))


@torch.no_grad()
def with_reference(model) -> list[Preference]:
    margins = PreferenceLM(model, beta=BETA, lr=1e-3).margins(preferences()).tolist()
    return [Preference(p.input_ids, p.labels, p.rejected, m) for p, m in zip(preferences(), margins, strict=True)]


@torch.no_grad()
def test_a_margin_is_a_difference_of_log_likelihoods(model):
    expected = [log_likelihood(model, pair) - log_likelihood(model, pair.rejected) for pair in preferences()]
    module = PreferenceLM(model, beta=BETA, lr=1e-3, pad_id=7)
    torch.testing.assert_close(module.margins(preferences()), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("micro_batch_size", [2, 100])
def test_training_is_a_plain_loop_over_single_pairs(model, tiny_lm, micro_batch_size):
    reference, loop = (PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0] for _ in range(2))
    rows = with_reference(model)
    optimizer = torch.optim.SGD(loop.parameters(), lr=1.0)
    losses = []
    for lr, step in zip([0.02, 0.02 * 2 / 3, 0.02 / 3], TokenBatches(rows, 3, 5), strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = sum(loss_of(loop, reference, pair) for pair in step) / len(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    options = {"lr": 0.02, "optimizer": torch.optim.SGD, "micro_batch_size": micro_batch_size}
    module = PreferenceLM(model, beta=BETA, **options)
    fit_causal_lm(module, rows, epochs=1, batch_size=3, trainer=TRAINER, seed=5)
    assert module.losses == pytest.approx(losses, rel=1e-3)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-4)
    assert losses[-1] < losses[0]
    for ours, theirs in zip(model.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_without_dropout_that_attention_does_by_itself(model, checkpointing):
    recomputed = []
    if checkpointing:
        checkpoint_activations(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9  # as a model's own config may ask for
        own = getattr(layer, "_gradient_checkpointing_func", None)
        layer._gradient_checkpointing_func = lambda *args, own=own: recomputed.append(1) or own(*args)
    module = PreferenceLM(model, beta=BETA, lr=1e-3, micro_batch_size=100)
    fit_causal_lm(module, with_reference(model), epochs=1, batch_size=100, trainer=TRAINER, seed=5)
    assert module.losses == [pytest.approx(math.log(2), rel=1e-6)]
    assert len(recomputed) == (2 if checkpointing else 0)
    assert not any(part.training for part in model.modules())


def test_a_part_without_rows_adds_nothing_and_reaches_every_weight(model):
    loss = PreferenceLM(model, beta=BETA, lr=1e-3).summed_loss([])
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def tuned(model, folder, *words: str, trainer=TRAINER):
    node = compose(CONF, [], ["defense=dpo", *words]).defense
    owner = ModelOwner(
        model,
        pad_id=0,
        seed=5,
        pairs=lambda: (preferences(), 0),
        fit=functools.partial(fit_causal_lm, trainer=trainer),
        store=Store(folder),
        **dict.fromkeys(("tokenizer", "keep", "rows", "file", "origin", "name")),
    )
    return instantiate(node, _convert_="all").tune(owner)


@pytest.mark.parametrize("words", [["defense.lr=0.01"], ["defense.adapter=null", "defense.lr=0.001"]])
def test_a_tuned_model_prefers_what_it_is_trained_to(model, tiny_lm, tmp_path, words):
    untouched = PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]
    found = tuned(model, tmp_path, "defense.epochs=4", *words)
    with torch.no_grad():
        before, after = (PreferenceLM(m, beta=BETA, lr=1).margins(preferences()) for m in (untouched, found.model))
    assert (after > before).all()
    assert found.measured.metrics["train/first_loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert found.measured.metrics["train/last_loss"] < math.log(2)
    targets = sum(label != -100 for pair in preferences() for part in pair.parts for label in part.labels)
    assert found.measured.metrics["train/target_tokens"] == targets


def test_what_is_trained_is_kept_by_beta_and_by_what_is_rejected(model, tiny_lm, tmp_path, monkeypatch):
    def never(*args, **settings):
        raise AssertionError("trained once more")

    def fresh():
        return PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]

    made = tuned(model, tmp_path)
    read = tuned(fresh(), tmp_path, trainer=never)
    assert (read.content, read.measured) == (made.content, made.measured)
    with pytest.raises(AssertionError, match="trained once more"):
        tuned(fresh(), tmp_path, "defense.beta=0.5", trainer=never)
    others = [Preference(p.input_ids, p.labels, row(30, 200, 4)) for p in preferences()]
    monkeypatch.setitem(globals(), "preferences", lambda: others)
    with pytest.raises(AssertionError, match="trained once more"):
        tuned(fresh(), tmp_path, trainer=never)


@pytest.mark.parametrize("name", ["spin", "task_arithmetic"])
def test_a_defence_around_it_asks_for_the_same_pairs(name):
    part = "after" if name == "spin" else "tuning"
    choice = f"{'+' if name == 'spin' else ''}defense@defense.{part}=dpo"  # spin has none before it
    words = [f"defense={name}", choice, f"defense.{part}.pairing=any"]
    made = instantiate(compose(CONF, [], words).defense, _convert_="all")
    assert (made.trains, made.contrast) == (True, "any")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("defense.beta=0", r"defense\.beta=0: must lie above 0"),
        ("defense.pairing=some", r"defense\.pairing=some: must be one of prompt, any"),
    ],
)
def test_a_value_out_of_range_is_refused(word, message):
    with pytest.raises(Exception, match=message):
        instantiate(compose(CONF, [], ["defense=dpo", word]).defense, _convert_="all")
