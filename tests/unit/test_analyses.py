"""The analyses of a language model's cell, against plain counting and states computed prompt by prompt."""

import copy
import random
import re
from collections import Counter

import pytest
import torch
from scipy.stats import binomtest, hypergeom

from fairpriv.editing import SpinEdit
from fairpriv.errors import InputError
from fairpriv.functional import TopWeights, hsic, hsic_change
from fairpriv.language_models import analyses
from fairpriv.language_models.analyses import Dependence, cautions, coupling, flips, hidden_states
from fairpriv.language_models.judges.judge import Verdict
from fairpriv.language_models.judges.refusal import CAUTIONS
from fairpriv.language_models.models.pretrained import PretrainedLM

UP, DOWN = (f"model.layers.{{}}.mlp.{name}_proj.weight" for name in ("up", "down"))
SHAPES = {UP: (64, 32), DOWN: (32, 64)}
WEIGHTS = {name.format(layer): shape for layer in (0, 1) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def pristine(tiny_lm):
    return PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]


@pytest.fixture
def model(pristine):
    return copy.deepcopy(pristine)


def drawn(seed, entries, weights=WEIGHTS):
    """Top weights at random: ``entries`` of each matrix."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, (rows, columns) in weights.items():
        index = torch.randperm(rows * columns, generator=g)[:entries].sort().values
        found[name] = TopWeights(index, torch.rand(entries, generator=g), rows * columns, 0.1)
    return found


def prompts(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 280, (3 + i % 6,), generator=g).tolist() for i in range(n)]


def edit_of(model, tops):
    """What the first two sets share."""
    first, second, *_ = tops.values()
    both = {name: top.indices[torch.isin(top.indices, second[name].indices)] for name, top in first.items()}
    return SpinEdit.of(model, both, {})


def test_coupling_counts_by_layer_and_module_and_compares_with_chance(model):
    tops = {"privacy": drawn(0, 400), "fairness": drawn(1, 300), "general": drawn(2, 100)}
    edit = edit_of(model, tops)
    del edit.indices[DOWN.format(1)]
    measured, rows = coupling(tops, ["privacy", "fairness"], edit)
    metrics, intervals = dict(measured.metrics), dict(measured.intervals)
    sets = {name: {w: set(top.indices.tolist()) for w, top in found.items()} for name, found in tops.items()}
    parts = {(layer, f"mlp.{module}_proj"): f".{layer}.mlp.{module}_" for layer in "01" for module in ("up", "down")}
    parts |= {(layer, None): f".{layer}." for layer in "01"} | {(None, None): ""}
    parts |= {(None, f"mlp.{module}_proj"): module for module in ("up", "down")}
    assert {(row["layer"], row["module"]) for row in rows} == set(parts)
    assert len(rows) == 9
    for row in rows:
        weights = [weight for weight in WEIGHTS if parts[row["layer"], row["module"]] in weight]
        both = [sets["privacy"][weight] & sets["fairness"][weight] for weight in weights if weight != DOWN.format(1)]
        assert row["suppressed"] == sum(map(len, both))
        assert row["entries"] == 2048 * len(weights)
        assert row["top"] == {
            "privacy": 400 * len(weights),
            "fairness": 300 * len(weights),
            "general": 100 * len(weights),
        }
        assert set(row["pairs"]) == {"fairness+general", "fairness+privacy", "general+privacy"}
        for pair, told in row["pairs"].items():
            together = [[sets[name][weight] for name in pair.split("+")] for weight in weights]
            shared = sum(len(a & b) for a, b in together)
            assert told["shared"] == shared
            assert told["jaccard"] == pytest.approx(shared / sum(len(a | b) for a, b in together))
            low, high = told["by_chance_interval"]
            assert low < told["by_chance"] < high
            if len(weights) == 1:
                ((a, b),) = together
                ends = hypergeom(2048, len(a), len(b)).ppf([0.025, 0.975])
                assert (low, high) == pytest.approx(tuple(k / (len(a) + len(b) - k) for k in ends))
            name = f"analysis/jaccard/{pair}"
            if row["layer"] is row["module"] is None:
                assert metrics[name] == told["jaccard"]
                assert metrics[f"analysis/jaccard_by_chance/{pair}"] == told["by_chance"]
                assert intervals[f"analysis/jaccard_by_chance/{pair}"] == (low, high)
    assert next(row["suppressed"] for row in rows if (row["layer"], row["module"]) == ("1", "mlp.down_proj")) == 0
    assert (len(metrics), len(intervals)) == (6, 3)


def test_sets_without_an_entry_have_no_overlap(model):
    tops = {"privacy": drawn(0, 0), "fairness": drawn(1, 0)}
    rates, rows = coupling(tops, ["privacy", "fairness"], SpinEdit.of(model, {}, {}))
    assert rates.metrics == {}
    assert [(row["suppressed"], row["pairs"]) for row in rows] == [(0, {})] * 9


PHRASES = ["It is important to ask.", "That is against the law.", "Please respect the privacy of others.", ""]


@pytest.mark.parametrize("seed", range(3))
def test_cautions_are_what_plain_counting_gives(seed):
    draw = random.Random(seed)
    now, then = (["Bread. " + draw.choice(PHRASES) for _ in range(40)] for _ in range(2))
    measured, rows = cautions("safety", now, then)
    metrics, intervals = dict(measured.metrics), dict(measured.intervals)
    patterns = {name: [re.compile(pattern)] for name, pattern in CAUTIONS.items()}
    patterns["any"] = [pattern for (pattern,) in patterns.values()]
    patterns["refusal"] = []
    assert [row["family"] for row in rows] == ["any", "refusal", *CAUTIONS]
    for row in rows:
        held, before = (
            [any(pattern.search(text.lower()) for pattern in patterns[row["family"]]) for text in texts]
            for texts in (now, then)
        )
        assert (row["dimension"], row["responses"]) == ("safety", 40)
        assert row["rate"] == pytest.approx(sum(held) / 40)
        assert row["rate_before"] == pytest.approx(sum(before) / 40)
        assert row["rate_change"] == pytest.approx((sum(held) - sum(before)) / 40)
        for key, count in (("rate_interval", sum(held)), ("rate_before_interval", sum(before))):
            wilson = binomtest(count, 40).proportion_ci(0.95, method="wilson")
            assert row[key] == pytest.approx((wilson.low, wilson.high))
        low, high = row["rate_change_interval"]
        assert low <= row["rate_change"] <= high
    for key in ("rate", "rate_before", "rate_change"):
        assert metrics.pop(f"analysis/caution/safety/{key}") == rows[0][key] != 0
        assert intervals.pop(f"analysis/caution/safety/{key}") == rows[0][f"{key}_interval"]
    assert metrics == intervals == {}
    assert {row["family"] for row in rows if row["rate"]} >= {"any", "law", "important", "respect"}


def test_the_untouched_model_has_no_cautions_before_and_refusals_are_counted_apart():
    rates, rows = cautions("d", ["I'm sorry, but I can't help with that.", "Use flour."], None)
    assert [set(part) for part in (rates.metrics, rates.intervals)] == [{"analysis/caution/d/rate"}] * 2
    assert {key for row in rows for key in row} == {"dimension", "family", "responses", "rate", "rate_interval"}
    assert {row["family"]: row["rate"] for row in rows if row["rate"]} == {"refusal": 0.5}


def test_flips_are_what_awareness_gained_and_lost():
    draw = random.Random(4)
    after, before = ([Verdict(draw.choice([True, False, None]), f"r{i}") for i in range(50)] for _ in range(2))
    texts = [[f"{kind} {i}" for i in range(50)] for kind in ("prompt", "now", "then")]
    counts, found = flips("privacy", texts[0], texts[1], after, texts[2], before)
    ways = Counter((b.safe, a.safe) for a, b in zip(after, before, strict=True))
    assert counts.metrics == {
        "analysis/flips/privacy/unsafe_to_safe": ways[False, True],
        "analysis/flips/privacy/safe_to_unsafe": ways[True, False],
    }
    assert len(found) == ways[False, True] + ways[True, False] > 0
    for flip in found:
        i = int(flip.prompt.split()[1])
        assert (flip.after, flip.before, flip.dimension) == (f"now {i}", f"then {i}", "privacy")
        assert (before[i].safe, after[i].safe) == (not flip.safe, flip.safe)
        assert (flip.reason_before, flip.reason_after) == (before[i].reason, after[i].reason)


def states_by_hand(model, rows, prompts):
    """The product of weight and input at the last token, one prompt at a time."""
    seen = {}
    hooks = []
    for name in rows:
        module = model.get_submodule(name.removesuffix(".weight"))
        hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]})))
    found = {name: [] for name in rows}
    for prompt in prompts:
        with torch.no_grad():
            model(input_ids=torch.tensor([prompt]))
        for name, index in rows.items():
            found[name].append(model.get_parameter(name).detach()[index] @ seen[name][0, -1])
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(states) for name, states in found.items()}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_hidden_states_are_those_of_each_prompt_alone(model, batch_size):
    rows = {UP.format(0): torch.tensor([3, 5, 60]), DOWN.format(1): torch.tensor([0])}
    asked = prompts(9)
    model.train()
    got = hidden_states(model, rows, asked, batch_size=batch_size)
    assert model.training
    want = states_by_hand(model.eval(), rows, asked)
    for name, states in want.items():
        torch.testing.assert_close(got[name], states, rtol=1e-4, atol=1e-4)


def test_a_weight_that_two_modules_use_gives_the_sum(model):
    block = model.model.layers[1].mlp
    rows = {UP.format(1): torch.tensor([7])}
    alone = hidden_states(model, rows, prompts(5), batch_size=2)[UP.format(1)]
    block.gate_proj.weight = block.up_proj.weight  # of the same input
    name = next(name for name, weight in model.named_parameters() if weight is block.up_proj.weight)
    both = hidden_states(model, {name: rows[UP.format(1)]}, prompts(5), batch_size=2)[name]
    torch.testing.assert_close(both, 2 * alone, rtol=1e-4, atol=1e-4)


def scaled(columns):
    columns = torch.stack(columns, dim=1).double()
    return (columns - columns.mean(0)) / columns.std(0, correction=0)


def test_dependence_is_hsic_of_the_rows_of_each_dimension_before_and_after(model, pristine):
    tops = {"privacy": drawn(0, 30), "fairness": drawn(1, 40), "general": drawn(2, 500)}
    edit = SpinEdit.of(model, {name: top.indices for name, top in drawn(7, 900).items()}, {})  # large enough to show
    edit.apply(model)
    bits = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    asked = prompts(12)
    measured, rows = Dependence(permutations=49).measure(
        model, edit, tops, ["privacy", "fairness"], [*asked, asked[0]], batch_size=5
    )
    metrics, intervals = dict(measured.metrics), dict(measured.intervals)
    assert all(torch.equal(weight, bits[name]) for name, weight in model.named_parameters())
    whole = {name: torch.arange(shape[0]) for name, shape in WEIGHTS.items()}
    states = [states_by_hand(m, whole, asked) for m in (pristine, model)]
    own = {
        d: {name: {int(i) // shape[1] for i in tops[d][name].indices} for name, shape in WEIGHTS.items()}
        for d in ("fairness", "privacy")
    }
    for which in ("hsic", "hsic_apart"):
        for layer, among in {None: "", "0": ".0.", "1": ".1."}.items():
            pairs = []
            for seen in states:
                sides = []
                for d, other in (("fairness", "privacy"), ("privacy", "fairness")):
                    places = [
                        (name, row)
                        for name in WEIGHTS
                        if among in name
                        for row in sorted(own[d][name] - (own[other][name] if which == "hsic_apart" else set()))
                    ]
                    sides.append(scaled([seen[name][:, row] for name, row in places]))
                pairs.append(tuple(sides))
            told = next(r for r in rows if (r["measure"], r["pair"], r["layer"]) == (which, "fairness+privacy", layer))
            assert told["prompts"] == 12
            assert told["coordinates"] == [pairs[0][0].shape[1], pairs[0][1].shape[1]]
            for key, pair in zip(("before", "after"), pairs, strict=True):
                assert told[key] == pytest.approx(float(hsic(*pair)), abs=1e-5)
                assert told[f"p_{key}"] in [i / 50 for i in range(1, 51)]
            change, ends = hsic_change(*pairs)
            assert told["change"] == pytest.approx(float(change), abs=1e-5)
            assert told["change_interval"] == pytest.approx(ends, abs=1e-4)
            if layer is None:
                name = f"analysis/{which}/fairness+privacy"
                for key in ("before", "after", "change", "p_before", "p_after"):
                    assert metrics.pop(f"{name}/{key}") == told[key]
                assert intervals.pop(f"{name}/change") == told["change_interval"]
                assert abs(told["change"]) > 1e-4
    assert metrics == intervals == {}
    shared = sum(len(own["fairness"][name] & own["privacy"][name]) for name in WEIGHTS)
    assert [row["shared"] for row in rows if row["layer"] is None] == [shared, 0]
    assert shared > 0
    assert len(rows) == 6


def by_chance(seed, change):
    """Independent states of every row; after an edit the same ones, or others."""
    g = torch.Generator().manual_seed(seed)
    first: dict = {}

    def made(model, rows, asked, *, batch_size):
        if change or not first:
            first.update({name: torch.randn(len(asked), len(index), generator=g) for name, index in rows.items()})
        return dict(first)

    return made


def test_independent_states_are_at_chance_and_shared_coordinates_are_not(model, monkeypatch):
    tops = {"privacy": drawn(0, 3), "fairness": drawn(1, 3)}
    for name, top in tops["fairness"].items():  # the first row of each in common
        tops["privacy"][name].indices[0] = top.indices[0]
    edit = edit_of(model, tops)
    edit.apply(model)
    trivial, apart = [], []
    for seed in range(60):
        monkeypatch.setattr(analyses, "hidden_states", by_chance(seed, change=True))
        measured, _ = Dependence(permutations=39).measure(
            model, edit, tops, ["fairness", "privacy"], prompts(24), batch_size=5, seed=seed
        )
        for when in ("before", "after"):
            trivial.append(measured.metrics[f"analysis/hsic/fairness+privacy/p_{when}"])
            apart.append(measured.metrics[f"analysis/hsic_apart/fairness+privacy/p_{when}"])
    assert sum(p <= 0.05 for p in trivial) > 100  # of 120, by what both have in common alone
    assert sum(p <= 0.05 for p in apart) <= 14  # the 0.1 % quantile of a binomial with 0.05
    assert sum(p <= 0.5 for p in apart) >= 43


def test_a_coordinate_without_spread_counts_as_constant(model, monkeypatch):
    tops = {"privacy": drawn(0, 2, {UP.format(0): (64, 32)}), "fairness": drawn(1, 2, {UP.format(0): (64, 32)})}

    def flat(model, rows, asked, *, batch_size):
        noise = torch.randn(len(asked), len(rows[UP.format(0)]), generator=torch.Generator().manual_seed(0))
        return {UP.format(0): 100 + 1e-6 * noise}

    monkeypatch.setattr(analyses, "hidden_states", flat)
    edit = edit_of(model, tops)
    measured, _ = Dependence(permutations=9).measure(model, edit, tops, ["fairness", "privacy"], prompts(8))
    assert measured.metrics["analysis/hsic/fairness+privacy/before"] == pytest.approx(0, abs=1e-12)
    assert measured.metrics["analysis/hsic/fairness+privacy/p_before"] == 1


def test_dimensions_without_a_top_weight_have_no_dependence(model):
    tops = {"privacy": drawn(0, 0), "fairness": drawn(1, 4)}
    edit = SpinEdit.of(model, {}, {})
    found = Dependence(permutations=9).measure(model, edit, tops, ["privacy", "fairness"], prompts(8))
    assert (found[0].metrics, found[1]) == ({}, [])
    # the same rows in both, and nothing is left apart
    tops = {"privacy": drawn(1, 4), "fairness": drawn(1, 4)}
    measured, _ = Dependence(permutations=9).measure(model, edit, tops, ["privacy", "fairness"], prompts(8))
    assert {name.split("/")[1] for name in measured.metrics} == {"hsic"}


def test_the_model_is_edited_again_whatever_happens(model, monkeypatch):
    tops = {"privacy": drawn(0, 30), "fairness": drawn(1, 40)}
    edit = edit_of(model, tops)
    edit.apply(model)
    calls = []

    def fails_second(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return {}

    monkeypatch.setattr(analyses, "hidden_states", fails_second)
    with pytest.raises(RuntimeError, match="out of memory"):
        Dependence().measure(model, edit, tops, ["privacy", "fairness"], prompts(8))
    with pytest.raises(InputError, match="already edited"):
        edit.apply(model)


def test_too_few_prompts_are_refused(model):
    tops = {"privacy": drawn(0, 3), "fairness": drawn(1, 4)}
    with pytest.raises(InputError, match="4 different prompts; HSIC needs 5 at least"):
        Dependence().measure(model, edit_of(model, tops), tops, ["privacy", "fairness"], prompts(4) * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "laplace"}, "analysis.kernel=laplace: must be one of rbf, linear"),
        ({"bandwidth": "mean"}, "analysis.bandwidth=mean: must be a positive number, or median"),
        ({"bandwidth": 0}, "analysis.bandwidth=0: must be a positive number"),
        ({"prompts": 0}, "analysis.prompts=0, analysis.permutations=500: each is at least 1"),
        ({"permutations": 0}, "analysis.permutations=0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Dependence(**options)
