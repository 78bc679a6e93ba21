"""SPIN on a random language model with two layers: what it edits, caches, reports and refuses."""

import copy
import csv
import functools
import logging
from importlib.metadata import version
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from fairpriv.editing import SpinEdit
from fairpriv.errors import InputError
from fairpriv.functional import coupled_weights, importance_scores
from fairpriv.functional.wanda import wanda_scores
from fairpriv.language_models.contract import ModelOwner
from fairpriv.language_models.data.tokens import Encoded, collate
from fairpriv.language_models.defenses import spin as module
from fairpriv.language_models.defenses.spin import Spin
from fairpriv.language_models.defenses.spin_callback import SpinCallback
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.models.causal_lm import CausalLM, fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.store import Store, read_tensors
from fairpriv.undefended import Undefended

DIMENSIONS = ["fairness", "privacy"]
RATIO = 0.05  # of 2,048 weights, as many as each matrix of a tiny MLP has
TRAINER = functools.partial(lightning.Trainer, accelerator="cpu", devices=1, enable_progress_bar=False)


@pytest.fixture(autouse=True)
def keep_a_fifth(monkeypatch):
    """Of matrices this small a thousandth is nothing."""
    monkeypatch.setattr(module, "KEPT", 0.2)


@pytest.fixture(scope="module")
def pristine(tiny_lm):
    return PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]


@pytest.fixture
def model(pristine):
    return copy.deepcopy(pristine)


def pairs(seed, n=6):
    g = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        ids = torch.randint(3, 280, (5 + (3 * i) % 7,), generator=g).tolist()
        made.append(Encoded(ids, [-100, -100, *ids[2:]]))
    return made


ROWS = {name: pairs(seed) for seed, name in enumerate([*DIMENSIONS, "general"])}


def spin(**options):
    return Spin("spin", **{"dimensions": DIMENSIONS, "ratio": RATIO, **options})


def indices(model, rows=ROWS, store=None, seed=0, **options):
    return spin(**options).edit(model, rows, store=store, seed=seed)[0].indices


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def chosen(coupled):
    return {name: index for name, index in coupled.items() if len(index)}


def bits(model):
    return {name: weight.detach().clone().view(torch.uint8) for name, weight in model.named_parameters()}


def counts(found):
    return {name: len(index) for name, index in found.items()}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"rule": "released"},
        {"target": "self_attn"},
        {"target": "all", "exclude_ratio": 0.01},
        {"exclude": []},
        {"dimensions": ["general", "privacy"], "exclude": ["fairness"], "rule": "released"},
    ],
    ids=str,
)
def test_the_edit_is_what_scores_computed_directly_couple(model, how):
    target = how.get("target", "mlp")
    scores = {
        name: importance_scores(model, [collate([row], 0) for row in rows], target=target)
        for name, rows in ROWS.items()
    }
    rest = {key: value for key, value in how.items() if key != "target"}
    want = chosen(coupled_weights(scores, **{"dimensions": DIMENSIONS, "ratio": RATIO, **rest}))
    before = bits(model)
    edit, measured = spin(**how).edit(model, ROWS)
    metrics, degenerate = measured.metrics, measured.degenerate
    assert want
    assert same(edit.indices, want)
    assert same(bits(model), before)  # not yet applied
    total = sum(counts(want).values())
    layers = {n: sum(c for name, c in counts(want).items() if f".layers.{n}." in name) for n in "01"}
    of_target = sum(score.numel() for score in scores["privacy"].values())
    assert metrics == {
        "edit/suppressed": total,
        "edit/share": total / of_target,
        **{f"edit/coupled/{n}": count for n, count in layers.items()},
    }
    assert degenerate == []


def test_it_does_not_depend_on_the_batch_size_or_the_memory_budget(model):
    want = indices(model)
    assert same(want, indices(model, batch_size=1))
    assert same(want, indices(model, batch_size=100))
    assert same(want, indices(model, memory_budget=20_000))


SWEEP = [
    {"ratio": 0.01},
    {"ratio": 0.2},
    {"rule": "released"},
    {"exclude_ratio": 0.01},
    {"exclude": []},
    {"target": "self_attn"},
    {"target": "all"},
    {"strength": 0.5},
    {"score": "random"},
    {"score": "first_dimension"},
    {"dimensions": ["privacy", "general"], "exclude": ["fairness"]},
]


def test_gradient_checkpointing_serves_scoring_as_well(model):
    expected, runs = indices(model), []
    model.activation_checkpointing_enable()
    handle = model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: runs.append(module))
    assert same(indices(model), expected)
    handle.remove()
    model.activation_checkpointing_disable()
    assert len(runs) == 2 * 3 * 2  # two batches of each of three sets, once more in the backward pass


def test_attention_of_a_mixture_of_experts_is_edited_and_its_experts_are_refused_by_name(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    mixture = MixtralForCausalLM(
        MixtralConfig(**sizes, vocab_size=290, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2)
    ).eval()
    found = spin(target="self_attn").edit(mixture, ROWS, store=Store(tmp_path))[0].indices
    assert found
    assert all(".self_attn." in name for name in found)
    one_by_one = spin(target="self_attn", batch_size=1).edit(mixture, ROWS)[0].indices
    assert same(found, one_by_one)  # though experts see the rows of a batch together
    with pytest.raises(InputError, match=r"^SPIN: model\.layers\.0\.mlp.* mixture of experts"):
        spin(target="mlp").edit(mixture, ROWS)


@pytest.mark.parametrize("how", [{}, {"target": "self_attn"}, {"score": "wanda"}])
def test_a_model_whose_layers_see_a_batch_as_one_row_is_edited_a_row_at_a_time(how):
    """OPT's MLP flattens its input, of which no shape tells the rows."""
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    flat = OPTForCausalLM(OPTConfig(**sizes, vocab_size=290, word_embed_proj_dim=16, init_std=0.2)).eval()
    score = wanda_scores if how.get("score") == "wanda" else importance_scores
    target = how.get("target", "mlp")
    scores = {name: score(flat, [collate([row], 0) for row in rows], target=target) for name, rows in ROWS.items()}
    found = spin(**how, batch_size=1).edit(flat, ROWS)[0].indices
    want = chosen(coupled_weights(scores, dimensions=DIMENSIONS, ratio=RATIO))
    assert want
    assert same(found, want)
    with pytest.raises(InputError, match=r"^SPIN: fairness: model.decoder.layers.*one row a batch, as batch_size=1"):
        spin(**how).edit(flat, ROWS)


def test_a_model_that_cannot_be_scored_is_refused_before_anything_is_measured(model):
    convolving = GPT2LMHeadModel(GPT2Config(vocab_size=290, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match=r"^SPIN: transformer.h.0.mlp.c_fc: Conv1D cannot be scored"):
        spin().check(convolving)
    spin().check(model)


def test_a_sweep_scores_once(model, tmp_path, monkeypatch):
    without = [spin(**how).edit(model, ROWS) for how in SWEEP]
    indices(model, store=Store(tmp_path))
    assert len(list((tmp_path / "cache" / "top_weights").iterdir())) == 3

    def fail(*args, **options):
        raise AssertionError("scored again")

    monkeypatch.setattr(module, "iter_importance_scores", fail)
    for how, (edit, measured) in zip(SWEEP, without, strict=True):
        cached, again = spin(**how).edit(model, ROWS, store=Store(tmp_path))
        assert same(cached.indices, edit.indices)
        assert same(cached.originals, edit.originals)
        assert (cached.metadata, again) == (edit.metadata, measured)
    known = ROWS["privacy"]
    relabelled = [*known[:-1], Encoded(known[-1].input_ids, [-100] * 3 + known[-1].labels[3:])]
    reworded = [Encoded([*known[0].input_ids[:-1], 7], known[0].labels), *known[1:]]
    for rows in (ROWS | {"privacy": other} for other in (known[:-1], relabelled, reworded)):
        with pytest.raises(AssertionError, match="scored again"):
            spin().edit(model, rows, store=Store(tmp_path))
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(AssertionError, match="scored again"):
        spin().edit(model, ROWS, store=Store(tmp_path))


def test_what_the_caller_calls_the_model_stands_for_its_weights_in_the_cache(model, tmp_path, monkeypatch):
    want = spin().edit(model, ROWS, store=Store(tmp_path), origin={"revision": "a"})[0]
    monkeypatch.setattr(module, "iter_importance_scores", None)
    assert same(spin().edit(model, ROWS, store=Store(tmp_path), origin={"revision": "a"})[0].indices, want.indices)
    with pytest.raises(TypeError):
        spin().edit(model, ROWS, store=Store(tmp_path), origin={"revision": "b"})
    with pytest.raises(TypeError):
        spin().edit(model.to(torch.bfloat16), ROWS, store=Store(tmp_path), origin={"revision": "a"})


def test_in_half_precision_which_padding_rounds_scores_of_another_batch_size_are_kept_apart(model, tmp_path):
    for dtype, entries in ((torch.float32, 3), (torch.bfloat16, 9)):
        for size in (1, 4):
            indices(model.to(dtype), store=Store(tmp_path), batch_size=size)
        assert len(list((tmp_path / "cache" / "top_weights").iterdir())) == entries


def test_after_another_defence_scores_of_equal_weights_in_another_model_are_kept_apart(model, tmp_path):
    for revision in ("its config", "another config"):
        spin(after=Undefended()).tune(owner(copy.deepcopy(model), tmp_path, origin={"revision": revision}))
    assert len(list((tmp_path / "cache" / "top_weights").iterdir())) == 6


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_scores_of_another_version_of_a_library_have_a_cache_entry_of_their_own(model, tmp_path, monkeypatch, library):
    def entries() -> int:
        indices(model, store=Store(tmp_path))
        return len(list((tmp_path / "cache" / "top_weights").iterdir()))

    assert entries() == entries() == 3
    monkeypatch.setattr("fairpriv.store.version", lambda name: "0.0" if name == library else version(name))
    assert entries() == 6


def test_strength_scales_what_is_suppressed(model):
    whole, half = spin().edit(model, ROWS)[0], spin(strength=0.5).edit(model, ROWS)[0]
    assert same(whole.indices, half.indices)
    edited = copy.deepcopy(model)
    half.apply(edited)
    for name, index in half.indices.items():
        old, new = (m.get_parameter(name).detach().flatten()[index] for m in (model, edited))
        torch.testing.assert_close(new, old / 2)


def wanda_by_hand(model, rows):
    """|W| times the norm of each input feature, token by token, row by row, without padding."""
    squares = {}

    def keep(name, _, inputs):
        for token in inputs[0].flatten(0, -2):
            squares[name] = squares.get(name, 0) + token.double() ** 2

    hooks = [
        layer.register_forward_pre_hook(functools.partial(keep, f"{path}.weight"))
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".mlp." in path
    ]
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.input_ids]))
    for hook in hooks:
        hook.remove()
    return {name: model.get_parameter(name).detach().abs() * square.sqrt().float() for name, square in squares.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_wanda_is_magnitude_times_the_norm_of_the_inputs(model, positions, side):
    if positions == "absolute":
        torch.manual_seed(0)
        sizes = {"vocab_size": 280, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32}
        special = {"bos_token_id": 1, "eos_token_id": 2, "embed_dropout": 0.5}  # which scoring leaves out
        model = GPTNeoForCausalLM(GPTNeoConfig(**sizes, **special, attention_types=[[["global", "local"], 1]])).eval()
    rows = ROWS["privacy"]
    want = wanda_by_hand(model, rows)
    model.train()
    got = wanda_scores(model, [collate(rows[:4], 0, side=side), collate(rows[4:], 0, side=side)])
    assert model.training
    assert set(got) == set(want)
    for name, score in want.items():
        torch.testing.assert_close(got[name], score, rtol=1e-3, atol=1e-4 if side == "left" else 0)
    one_by_one = wanda_scores(model, [{"input_ids": torch.tensor([row.input_ids])} for row in rows])
    for name, score in want.items():
        torch.testing.assert_close(one_by_one[name], score, rtol=1e-3, atol=0)


def test_wanda_couples_by_its_own_score(model, tmp_path):
    scores = {name: wanda_by_hand(model, rows) for name, rows in ROWS.items()}
    want = chosen(coupled_weights(scores, dimensions=DIMENSIONS, ratio=RATIO, exclude_ratio=0.01))
    how = {"score": "wanda", "exclude_ratio": 0.01}
    assert want
    assert same(indices(model, **how, store=Store(tmp_path)), want)
    assert same(indices(model, **how, store=Store(tmp_path)), want)
    assert not same(indices(model, exclude_ratio=0.01, store=Store(tmp_path)), want)  # importance is kept apart


def test_magnitude_takes_the_largest_weights_whatever_is_excluded(model):
    edit = spin(score="magnitude").edit(model, ROWS)[0]
    for name, index in edit.indices.items():
        sizes = model.get_parameter(name).detach().abs().flatten().tolist()
        largest = sorted(range(len(sizes)), key=lambda i: -sizes[i])[: int(RATIO * len(sizes))]
        assert index.tolist() == sorted(largest)
    assert len(edit.indices) == 6
    assert edit.metadata["exclude"] == []


@pytest.mark.parametrize("rule", ["intersection", "released"])
def test_controls_are_of_the_same_size_and_other_weights(model, rule):
    want = indices(model, rule=rule)
    controls = {name: indices(model, rule=rule, score=name) for name in ("random", "first_dimension")}
    for control in controls.values():
        assert counts(control) == counts(want)
        assert not same(control, want)
        for index in control.values():
            assert index.tolist() == sorted(set(index.tolist()))
    scores = importance_scores(model, [collate([row], 0) for row in ROWS["fairness"]])
    for name, index in controls["first_dimension"].items():
        score = scores[name].flatten().tolist()
        assert index.tolist() == sorted(sorted(range(len(score)), key=lambda i: -score[i])[: len(index)])
    assert same(controls["random"], indices(model, rule=rule, score="random"))
    assert not same(controls["random"], indices(model, rule=rule, score="random", seed=1))


def owner(model, tmp_path, rows=None, **more):
    return ModelOwner(
        model,
        tokenizer=None,
        pad_id=0,
        seed=5,
        **{
            "pairs": None,
            "fit": None,
            "keep": None,
            "rows": rows or (lambda dimension, split, samples: ROWS[dimension]),
            "file": lambda name: tmp_path / name,
            "store": Store(tmp_path),
            "origin": {"revision": "abc", "dtype": "float32"},
            "name": "owner/tiny",
            **more,
        },
    )


def test_it_asks_for_the_pairs_that_the_config_names(model, tmp_path):
    asked = []

    def rows(dimension, split, samples):
        asked.append((dimension, split, samples))
        return ROWS[dimension]

    spin(samples=7, split="unsafe").tune(owner(model, tmp_path, rows))
    assert asked == [("fairness", "unsafe", 7), ("privacy", "unsafe", 7), ("general", "safe", 7)]


def test_the_model_is_edited_and_the_edit_kept_with_its_provenance(model, pristine, tmp_path):
    tuned = spin().tune(owner(model, tmp_path))
    assert tuned.model is model
    edit = SpinEdit.load(tmp_path / "edit.safetensors")
    assert (tmp_path / "edit.safetensors").stat().st_size < 16_000
    for name, index in edit.indices.items():
        assert not model.get_parameter(name).detach().flatten()[index].any()
    assert tuned.measured.metrics["edit/suppressed"] == sum(map(len, edit.indices.values()))
    described = {
        key: edit.metadata[key] for key in ("name", "model", "base", "after", "seed", "rule", "ratio", "split")
    }
    origin = {"revision": "abc", "dtype": "float32"}
    assert described == {
        "name": "owner/tiny",
        "model": origin,
        "base": origin,
        "after": None,
        "seed": 5,
        "rule": "intersection",
        "ratio": RATIO,
        "split": "safe",
    }
    assert edit.metadata["samples"] == {"fairness": 6, "privacy": 6, "general": 6}
    assert len(set(edit.metadata["data"].values())) == 3
    edit.revert(model)
    assert same(bits(model), bits(pristine))


@pytest.mark.parametrize(
    "how",
    [{}, {"score": "random"}, {"rule": "released"}, {"exclude_ratio": 0.01}, {"score": "magnitude"}, {"target": "all"}],
    ids=str,
)
def test_what_was_selected_goes_with_the_edit(model, tmp_path, how):
    tuned = spin(**how).tune(owner(model, tmp_path))
    assert same(tuned.edit.indices, SpinEdit.load(tmp_path / "edit.safetensors").indices)
    if how.get("score") == "magnitude":  # of which every set of pairs has the same: none is excluded
        assert list(tuned.tops) == DIMENSIONS
        assert same(*({w: top.indices for w, top in tops.items()} for tops in tuned.tops.values()))
        return
    tuned.edit.revert(model)
    for name, rows in ROWS.items():
        scores = importance_scores(model, [collate([row], 0) for row in rows], target=how.get("target", "mlp"))
        ratio = how.get("exclude_ratio", RATIO) if name == "general" else RATIO
        assert set(tuned.tops[name]) == set(scores)
        for weight, score in scores.items():
            best = score.flatten().topk(int(ratio * score.numel())).indices
            assert torch.equal(tuned.tops[name][weight].indices, best.sort().values)


def test_the_cache_holds_the_top_weights_and_no_score_per_weight(model, tmp_path):
    indices(model, store=Store(tmp_path))
    scores = importance_scores(model, [collate([row], 0) for row in ROWS["general"]], target="all")
    for path in (tmp_path / "cache" / "top_weights").iterdir():
        tensors, sizes = read_tensors(path)
        assert set(sizes) == set(scores)
        for name, (numel, ratio) in sizes.items():
            index, values = tensors[f"{name}.indices"], tensors[f"{name}.values"]
            assert (numel, ratio) == (scores[name].numel(), 0.2)
            assert (index.dtype, values.dtype) == (torch.int32, torch.float32)
            assert len(index) == len(values) == int(0.2 * numel)
        assert path.stat().st_size < 8 * 0.2 * sum(score.numel() for score in scores.values()) + 4_000


def test_top_weights_of_other_pairs_under_the_same_name_are_made_again(model, tmp_path, caplog):
    want = indices(model, store=Store(tmp_path))
    other = indices(model, {name: pairs(seed + 9) for seed, name in enumerate(ROWS)}, store=Store(tmp_path / "other"))
    assert not same(other, want)
    files = [sorted((folder / "cache" / "top_weights").iterdir()) for folder in (tmp_path, tmp_path / "other")]
    for mine, theirs in zip(*files, strict=True):
        mine.write_bytes(theirs.read_bytes())
    assert same(indices(model, store=Store(tmp_path)), want)
    assert len([record for record in caplog.records if "made again" in record.message]) == len(ROWS)


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"{}" * 99]
)
def test_a_damaged_cache_file_is_made_again(model, tmp_path, damage):
    want = indices(model, store=Store(tmp_path))
    files = {path: path.read_bytes() for path in (tmp_path / "cache" / "top_weights").iterdir()}
    for path, whole in files.items():
        path.write_bytes(damage(whole))
    assert same(indices(model, store=Store(tmp_path)), want)
    assert {path: path.read_bytes() for path in files} == files


def test_an_empty_edit_is_degenerate_and_says_what_would_not_be(model):
    for ratio in (1e-6, 0.00048):
        edit, measured = spin(ratio=ratio).edit(model, ROWS)
        metrics, (reason,) = measured.metrics, measured.degenerate
        nothing = dict.fromkeys(["edit/suppressed", "edit/share", "edit/coupled/0", "edit/coupled/1"], 0)
        assert (edit.indices, metrics) == ({}, nothing)
        assert reason == (
            f"the edit is empty: defense.ratio={ratio!r} selects no weight; {1 / 2048!r} is the smallest that does"
        )
        edit.apply(model)
    assert spin(ratio=1 / 2048, score="magnitude").edit(model, ROWS)[1].metrics["edit/suppressed"] == 6
    assert spin(strength=0).edit(model, ROWS)[1].degenerate == ["defense.strength=0 changes no weight"]


def test_a_ratio_that_selects_nothing_is_told_of_before_anything_is_scored(model, monkeypatch, caplog):
    monkeypatch.setattr(module, "iter_importance_scores", None)
    for target, weights in (("mlp", 2048), ("self_attn", 1024)):
        caplog.clear()
        spin(target=target, ratio=1 / weights).check(model)
        assert caplog.text == ""
        none = spin(target=target, ratio=0.99 / weights)
        none.check(model)
        assert f"selects no weight, so that nothing is edited; {1 / weights!r} is the smallest that does" in caplog.text
        assert none.edit(model, ROWS)[0].indices == {}


def test_an_edit_that_couples_nothing_names_a_ratio_that_does(model):
    unlike = {"fairness": pairs(0, 1), "privacy": pairs(7, 1), "general": pairs(3, 1)}
    ratio = 1 / 2048
    edit, measured = spin(ratio=ratio).edit(model, unlike)
    (reason,) = measured.degenerate
    assert edit.indices == {}
    head, _, tail = reason.partition("couples no weight; ")
    assert head == f"the edit is empty: defense.ratio={ratio!r} "
    more = float(tail.removesuffix(" couples some"))
    assert ratio < more <= 0.2
    assert spin(ratio=more).edit(model, unlike)[0].indices
    assert not spin(ratio=more / 1.3).edit(model, unlike)[0].indices
    all_excluded = ROWS | {"general": ROWS["fairness"]}
    reason = "the edit is empty: defense.ratio=0.05 couples no weight, and none up to 0.2 does"
    assert spin().edit(model, all_excluded)[1].degenerate == [reason]


def test_matrices_too_small_for_the_ratio_are_named(model, caplog):
    spin(target="all", ratio=0.0015).edit(model, ROWS)
    assert "defense.ratio=0.0015 selects no weight in 4 of 14 matrices, such as model.layers.0.self_attn.k_proj" in (
        caplog.text
    )
    caplog.clear()
    spin(ratio=0.0015).edit(model, ROWS)
    assert caplog.text == ""


def test_dimensions_that_share_their_data_are_warned_of(model, caplog):
    edit = spin(exclude=[]).edit(model, ROWS | {"privacy": ROWS["fairness"][::-1]})[0]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "fairness and privacy have the same pairs: everything couples" in caplog.text
    assert counts(edit.indices) == dict.fromkeys(edit.indices, int(RATIO * 2048))
    caplog.clear()
    spin().edit(model, ROWS | {"general": ROWS["privacy"]})
    assert "privacy and general have the same pairs: what they couple is excluded" in caplog.text


def test_after_lora_the_merged_weights_are_scored(model, pristine, tmp_path):
    from peft import LoraConfig

    lora = SupervisedTuning(
        "lora", adapter=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"), lr=0.01
    )
    more = {"pairs": lambda: (pairs(8), 0), "fit": functools.partial(fit_causal_lm, trainer=TRAINER)}
    merged = lora.tune(owner(copy.deepcopy(pristine), tmp_path, **more)).model
    want = spin().edit(merged, ROWS)[0]
    indices(pristine, store=Store(tmp_path / "cache"))
    tuned = spin(after=lora).tune(owner(model, tmp_path, **more))
    edit = SpinEdit.load(tmp_path / "edit.safetensors")
    assert same(edit.indices, want.indices)
    assert same(edit.originals, want.originals)
    assert not same(edit.indices, indices(pristine))
    assert (edit.metadata["after"], edit.metadata["base"]["revision"]) == ("lora", "abc")
    assert edit.metadata["model"] == want.metadata["model"]
    assert {"train/last_loss", "edit/suppressed"} <= set(tuned.measured.metrics)
    edit.revert(tuned.model)
    assert same(bits(tuned.model), bits(merged))
    assert spin(after=lora).trains
    assert not spin().trains


def test_a_row_without_a_target_is_named(model):
    rows = ROWS["privacy"][:]
    rows[3] = Encoded(rows[3].input_ids, [-100] * len(rows[3].labels))
    with pytest.raises(InputError, match=r"^SPIN: privacy: sample 3 has no target token"):
        spin().edit(model, ROWS | {"privacy": rows})


def test_a_gradient_that_is_not_finite_is_named(model):
    rows = ROWS["general"][:]
    rows[4] = Encoded([285, *rows[4].input_ids[1:]], rows[4].labels)
    with torch.no_grad():
        model.get_input_embeddings().weight[285] = torch.nan  # of a token that no other row has
    with pytest.raises(InputError, match=r"^SPIN: general: sample 4: its gradient is not finite$"):
        spin().edit(model, ROWS | {"general": rows})


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_a_shortage_of_memory_names_the_budget(model, monkeypatch, kind):
    def scarce(*args, **options):
        raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(model, "forward", scarce)
    with pytest.raises(RuntimeError, match=r"out of memory.*defense\.memory_budget, in bytes"):
        spin().edit(model, ROWS)
    monkeypatch.setattr(module, "wanda_scores", scarce)
    if kind is torch.OutOfMemoryError:
        with pytest.raises(RuntimeError, match=r"out of memory.*defense\.memory_budget.*defense\.batch_size=4"):
            spin(score="wanda").edit(model, ROWS)


def test_a_budget_too_small_for_one_matrix_is_refused(model):
    with pytest.raises(InputError, match="memory_budget 100 is too small"):
        spin(memory_budget=100).edit(model, ROWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": ["privacy"]}, "two or more dimensions"),
        ({"dimensions": ["privacy", "privacy"]}, "two or more dimensions, each once"),
        ({"dimensions": ["privacy", "fairness", "privacy"]}, "two or more dimensions, each once"),
        ({"dimensions": ["privacy", "general"]}, "none of them among the excluded"),
        ({"ratio": 0.3}, r"defense.ratio=0.3: must lie above 0 and at most at 0.2"),
        ({"ratio": 0}, "defense.ratio=0: must lie above 0"),
        ({"exclude_ratio": -1}, "defense.exclude_ratio=-1: must lie"),
        ({"strength": 1.5}, "defense.strength=1.5"),
        ({"rule": "released", "exclude_ratio": 0.01}, "the released code fails there as well"),
        ({"samples": 0}, "defense.samples=0: each is at least 1"),
        ({"batch_size": 0}, "defense.batch_size=0"),
        ({"score": "wnda"}, "defense.score=wnda: must be one of importance, wanda,"),
        ({"target": "mpl"}, "defense.target=mpl: must be one of mlp, self_attn, all"),
        ({"rule": "union"}, "defense.rule=union: must be one of intersection, released"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        spin(**options)


def test_a_model_that_cannot_be_scored_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=290, n_positions=32))
    with pytest.raises(InputError, match=r"SPIN: .*Conv1D cannot be scored exactly"):
        spin().edit(gpt2, ROWS)


def test_the_callback_edits_what_a_fit_has_trained(model, pristine, tmp_path):
    def fitted(lm, callbacks=(), logger=None):
        trainer = functools.partial(TRAINER, callbacks=[*callbacks], default_root_dir=tmp_path)
        trained = CausalLM(lm, lr=1e-3)
        fit_causal_lm(trained, pairs(8), epochs=1, batch_size=2, trainer=trainer, seed=3, logger=logger)
        return lm

    trained = fitted(copy.deepcopy(pristine))
    want, measured = spin().edit(trained, ROWS)
    callback = SpinCallback(spin(), ROWS, path=tmp_path / "edit.safetensors")
    logger = CSVLogger(tmp_path)
    fitted(model, [callback], logger)
    assert same(callback.applied.indices, want.indices)
    assert callback.measured == measured
    assert callback.measured.degenerate == []
    with Path(logger.log_dir, "metrics.csv").open() as file:
        logged = [line for line in csv.DictReader(file) if line["edit/suppressed"]]
    assert [{key: float(line[key]) for key in measured.metrics} for line in logged] == [measured.metrics]
    assert not same(bits(model), bits(trained))
    SpinEdit.load(tmp_path / "edit.safetensors").revert(model)
    assert same(bits(model), bits(trained))
    assert not same(bits(model), bits(pristine))


def test_the_callback_asks_for_all_its_rows():
    with pytest.raises(InputError, match="SpinCallback: rows has no pairs of general, privacy"):
        SpinCallback(spin(), {"fairness": ROWS["fairness"]})
    with pytest.raises(InputError, match=r"in the place of spin\.after: leave that None"):
        SpinCallback(spin(after=SupervisedTuning("lora")), ROWS)
