"""What is measured of a model, against plain loops over the rows."""

import math
import random
import statistics

import pytest
import torch

from fairpriv.classifiers.measures import Sample, measure

LABELS, GROUPS = ("no", "yes"), ("A", "B")


def sample(seed, rows, share=0.5, right=0.8, labels=2, groups=2):
    """Rows with a share of group 0; ``right`` is the accuracy, or ``[Y][S]`` the accuracy of each cell."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % labels
    sensitive = torch.where(
        torch.rand(rows, generator=generator) < share, 0, torch.randint(1, groups, (rows,), generator=generator)
    )
    accuracy = torch.as_tensor(right).expand(labels, groups)[target, sensitive]
    wrong = (target + torch.randint(1, labels, (rows,), generator=generator)) % labels
    return Sample(torch.where(torch.rand(rows, generator=generator) < accuracy, target, wrong), target, sensitive)


def worlds(seed, rows=1000, alpha=0.9, **kinds):
    return sample(seed, rows, alpha, **kinds), sample(seed + 1, rows, 1 - alpha, **kinds)


def measured(rates, gap, label_names=LABELS, group_names=GROUPS, tau=0.1):
    return measure(rates, gap, label_names=label_names, group_names=group_names, tau=tau)


def rows_of(*samples):
    return [
        row
        for part in samples
        for row in zip(part.preds.tolist(), part.target.tolist(), part.groups.tolist(), strict=True)
    ]


def accuracy(rows):
    return sum(p == y for p, y, _ in rows) / len(rows)


def balanced(rows, labels):
    return sum(accuracy([row for row in rows if row[1] == label]) for label in range(labels)) / labels


def make_up(rows, labels, groups):
    prior = [sum(y == label for _, y, _ in rows) / len(rows) for label in range(labels)]
    composition = [
        [sum((y, s) == (label, g) for _, y, s in rows) / sum(y == label for _, y, _ in rows) for g in range(groups)]
        for label in range(labels)
    ]
    return composition, prior


@pytest.mark.parametrize(("labels", "groups", "alpha"), [(2, 2, 0.9), (2, 2, 1.0), (3, 4, 0.7), (2, 3, 1.0)])
def test_metrics_agree_with_loops_over_the_rows(labels, groups, alpha):
    right = torch.rand(labels, groups, generator=torch.Generator().manual_seed(groups)) / 2 + 0.5
    kinds = {"alpha": alpha, "right": right, "labels": labels, "groups": groups}
    rates, gap = worlds(0, **kinds), worlds(2, **kinds)
    names = [f"label {y}" for y in range(labels)]
    metrics = measured(rates, gap, names, [f"group {s}" for s in range(groups)]).metrics

    everything, (gap0, gap1) = rows_of(*rates, *gap), (rows_of(part) for part in gap)
    expected = {
        "eval/accuracy": accuracy(everything),
        "eval/balanced_accuracy": balanced(everything, labels),
        "eval/accuracy_world0": accuracy(gap0),
        "eval/accuracy_world1": accuracy(gap1),
        "privacy/accuracy_gap": abs(accuracy(gap0) - accuracy(gap1)),
        "privacy/balanced_accuracy_gap": abs(balanced(gap0, labels) - balanced(gap1, labels)),
    }
    for world in (0, 1):
        predicted = [p for p, _, _ in rows_of(rates[world], gap[world])]
        expected[f"eval/majority_share_world{world}"] = max(map(predicted.count, range(labels))) / len(predicted)

    def cell(y, s):
        predicted = [p for p, target, group in rows_of(*rates) if (target, group) == (y, s)]
        return [predicted.count(c) / len(predicted) for c in range(labels)]

    r = [[cell(y, s) for s in range(groups)] for y in range(labels)]
    deltas = [
        max(sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2 for one in row for other in row) for row in r
    ]
    (composition0, prior0), (composition1, prior1) = (make_up(rows_of(part), labels, groups) for part in rates)
    moved = [
        sum(abs(a - b) for a, b in zip(*both, strict=True)) / 2 for both in zip(composition0, composition1, strict=True)
    ]
    recall0 = [sum(composition0[y][s] * r[y][s][y] for s in range(groups)) for y in range(labels)]
    shift = sum(abs(a - b) for a, b in zip(prior0, prior1, strict=True)) / 2 * (max(recall0) - min(recall0))
    products = [delta * w for delta, w in zip(deltas, moved, strict=True)]
    expected |= {
        "fairness/equalized_odds_gap": max(deltas),
        **{f"fairness/delta/{name}": delta for name, delta in zip(names, deltas, strict=True)},
        "privacy/shift_weight": max(moved),
        "privacy/label_shift": shift,
        "privacy/bound": sum(p * q for p, q in zip(prior1, products, strict=True)) + shift,
        "privacy/balanced_bound": sum(products) / labels,
    }
    expected["privacy/bound_holds"] = float(expected["privacy/accuracy_gap"] <= expected["privacy/bound"])
    expected["privacy/balanced_bound_holds"] = float(
        expected["privacy/balanced_accuracy_gap"] <= expected["privacy/balanced_bound"]
    )
    expected["privacy/below_tau"] = float(expected["privacy/accuracy_gap"] < 0.1)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    others = {name for name in metrics if not name.endswith("_floor")} - set(expected)
    assert others == {"privacy/bound_refuted", "privacy/tau_in_interval"}


def test_every_metric_is_finite_and_every_interval_holds_its_metric():
    for seed in range(5):
        outcome = measured(worlds(seed, 60), worlds(seed + 50, 60))
        assert all(type(value) is float and math.isfinite(value) for value in outcome.metrics.values())
        for name, (lo, hi) in outcome.intervals.items():
            assert lo - 1e-9 <= outcome.metrics[name] <= hi + 1e-9, name
            assert hi - lo > 0.01, name
    assert set(outcome.intervals) == {
        "eval/accuracy",
        "eval/balanced_accuracy",
        "eval/accuracy_world0",
        "eval/accuracy_world1",
        "fairness/equalized_odds_gap",
        "fairness/delta/no",
        "fairness/delta/yes",
        "privacy/accuracy_gap",
        "privacy/balanced_accuracy_gap",
        "privacy/bound",
        "privacy/balanced_bound",
    }


def magnitude(row):
    return abs(row[0]) if len(row) == 1 else sum(map(abs, row)) / 2


@pytest.mark.parametrize(("labels", "groups"), [(2, 2), (2, 3), (3, 3)])
def test_a_gap_is_the_largest_magnitude_of_its_signed_differences(labels, groups):
    right = torch.rand(labels, groups, generator=torch.Generator().manual_seed(labels)) / 2 + 0.5
    kinds = {"right": right, "labels": labels, "groups": groups}
    names = [f"label {y}" for y in range(labels)]
    rates, gap = worlds(0, **kinds), worlds(2, **kinds)
    outcome = measured(rates, gap, names, [f"group {s}" for s in range(groups)])
    for name, rows in outcome.signed.items():
        assert outcome.metrics[name] == pytest.approx(max(map(magnitude, rows)), abs=1e-12), name
    gaps = {name for name in outcome.metrics if f"{name}_floor" in outcome.metrics}
    assert set(outcome.signed) == gaps
    assert outcome.signed["privacy/accuracy_gap"] == [
        [pytest.approx(accuracy(rows_of(gap[1])) - accuracy(rows_of(gap[0])))]
    ]
    pairs = groups * (groups - 1) // 2
    assert {len(row) for row in outcome.signed["fairness/delta/label 1"]} == {1 if labels == 2 else labels}
    assert len(outcome.signed["fairness/delta/label 1"]) == pairs
    assert len(outcome.signed["fairness/equalized_odds_gap"]) == labels * pairs
    first, second = ([p for p, y, s in rows_of(*rates) if (y, s) == (1, group)] for group in (0, 1))
    difference = first.count(labels - 1) / len(first) - second.count(labels - 1) / len(second)
    assert outcome.signed["fairness/delta/label 1"][0][-1] == pytest.approx(difference)


def test_a_floor_is_the_mean_gap_of_predictions_dealt_within_labels():
    """Against permutations row by row."""
    rates, gap = worlds(0, 60, right=[[0.9, 0.7], [0.5, 0.8]]), worlds(2, 200, right=[[0.9, 0.7], [0.5, 0.8]])
    shuffle = random.Random(0)

    def dealt(parts):
        rows = rows_of(*parts)
        for label in (0, 1):
            at = [i for i, row in enumerate(rows) if row[1] == label]
            preds = [rows[i][0] for i in at]
            shuffle.shuffle(preds)
            for i, pred in zip(at, preds, strict=True):
                rows[i] = (pred, *rows[i][1:])
        return rows

    found = {}
    for _ in range(1000):
        rows, cut = dealt(rates), len(gap[0].target)
        ones = {(y, s): [p for p, target, group in rows if (target, group) == (y, s)] for y in (0, 1) for s in (0, 1)}
        share = {cell: sum(preds) / len(preds) for cell, preds in ones.items()}
        deltas = [abs(share[y, 0] - share[y, 1]) for y in (0, 1)]
        rows = dealt(gap)
        for name, value in {
            "fairness/equalized_odds_gap": max(deltas),
            "fairness/delta/no": deltas[0],
            "fairness/delta/yes": deltas[1],
            "privacy/accuracy_gap": abs(accuracy(rows[:cut]) - accuracy(rows[cut:])),
            "privacy/balanced_accuracy_gap": abs(balanced(rows[:cut], 2) - balanced(rows[cut:], 2)),
        }.items():
            found.setdefault(name, []).append(value)
    metrics = measured(rates, gap).metrics
    for name, values in found.items():
        mean, error = statistics.fmean(values), statistics.stdev(values) * (1 / 1000 + 1 / 500) ** 0.5
        assert abs(metrics[f"{name}_floor"] - mean) < 4 * error, name
        assert mean > 0.01, name


def test_floors_do_not_change_from_run_to_run():
    assert measured(worlds(0), worlds(2)).metrics == measured(worlds(0), worlds(2)).metrics


def test_pure_groups_are_normal_and_have_shift_weight_one():
    metrics = measured(worlds(0, alpha=1.0), worlds(2, alpha=1.0)).metrics
    assert metrics["privacy/shift_weight"] == 1
    assert metrics["privacy/bound"] > 0


def test_a_fair_model_is_not_refuted_by_sampling_error_alone():
    """With equal rates the bound is near 0, and a gap above it by chance is no refutation."""
    exceeded = 0
    for seed in range(20):
        metrics = measured(worlds(seed, 300, alpha=1.0), worlds(seed + 100, 300, alpha=1.0)).metrics
        exceeded += metrics["privacy/bound_holds"] == 0
        assert metrics["privacy/bound_refuted"] == 0
    assert exceeded > 0


def test_a_wide_interval_of_the_gap_is_no_refutation():
    """A large rates split gives a sharp bound, a small gap split a wide gap: only a lower end above it refutes."""
    outcome = measured(worlds(0, 20_000), worlds(2, 100))
    assert outcome.intervals["privacy/accuracy_gap"][1] > outcome.intervals["privacy/bound"][1]
    assert outcome.metrics["privacy/bound_refuted"] == 0


def test_worlds_that_break_the_assumption_refute_the_bound():
    """Equal rates on one split, accuracy that differs between the worlds on the other: P(x | y, s) is not common."""
    metrics = measured(worlds(0), (sample(5, 1000, right=0.9), sample(6, 1000, right=0.6))).metrics
    assert metrics["privacy/bound_holds"] == 0
    assert metrics["privacy/balanced_bound_holds"] == 0
    assert metrics["privacy/bound_refuted"] == 1


def test_tau_inside_and_outside_the_interval():
    rates, gap = worlds(0), (sample(5, 300, right=0.9), sample(6, 300, right=0.75))
    for tau, inside in ((0.15, 1), (0.01, 0), (0.4, 0)):
        metrics = measured(rates, gap, tau=tau).metrics
        assert metrics["privacy/tau_in_interval"] == inside
        assert metrics["privacy/below_tau"] == (metrics["privacy/accuracy_gap"] < tau)


def constant(part, share, code=0):
    """The same rows with all but the last ``share`` of the predictions made ``code``."""
    preds = torch.full_like(part.preds, code)
    rest = round(share * len(preds))
    preds[len(preds) - rest :] = 1 - code
    return Sample(preds, part.target, part.groups)


def test_a_useful_model_is_not_degenerate():
    assert measured(worlds(0), worlds(2)).degenerate == []


def test_a_constant_model_is_degenerate_in_both_worlds_and_at_chance():
    rates, gap = (tuple(constant(part, 0) for part in worlds(seed)) for seed in (0, 2))
    outcome = measured(rates, gap)
    assert len(outcome.degenerate) == 3
    assert "world 0: 100.00% of the predictions are 'no'" in outcome.degenerate[0]
    assert "world 1: 100.00%" in outcome.degenerate[1]
    assert "balanced accuracy 0.500" in outcome.degenerate[2]


@pytest.mark.parametrize(("share", "marked"), [(0.009, True), (0.01, False)])
def test_under_one_per_cent_in_one_world_is_degenerate(share, marked):
    rates, gap = worlds(0), worlds(2)
    rates, gap = (rates[0], constant(rates[1], share)), (gap[0], constant(gap[1], share))
    assert any("world 1" in reason for reason in measured(rates, gap).degenerate) == marked


def test_guessing_is_degenerate_for_any_number_of_classes():
    names = ("a", "b", "c", "d")
    kinds = {"right": 0.25, "labels": 4}
    (reason,) = measured(worlds(0, **kinds), worlds(2, **kinds), names).degenerate
    assert "chance, 0.250" in reason
    kinds["right"] = 0.5
    assert measured(worlds(0, **kinds), worlds(2, **kinds), names).degenerate == []


def without(part, label=None, group=None):
    drop = torch.ones(len(part.target), dtype=torch.bool)
    if label is not None:
        drop &= part.target == label
    if group is not None:
        drop &= part.groups == group
    return Sample(part.preds[~drop], part.target[~drop], part.groups[~drop])


@pytest.mark.parametrize("split", ["rates", "gap"])
@pytest.mark.parametrize("world", [0, 1])
def test_a_label_without_rows_in_a_world_is_an_error(split, world):
    parts = {"rates": list(worlds(0)), "gap": list(worlds(2))}
    parts[split][world] = without(parts[split][world], label=1)
    with pytest.raises(ValueError, match=f"no rows with label 'yes' in world {world} in the {split} split"):
        measured(parts["rates"], parts["gap"])


def test_a_cell_without_rows_is_an_error_in_the_rates_split_only():
    def pair(seed):
        return tuple(without(part, 0, 1) for part in worlds(seed))

    with pytest.raises(ValueError, match="label 'no' and group 'B'"):
        measured(pair(0), worlds(2))
    assert measured(worlds(0), pair(2)).metrics["privacy/bound"] > 0


def test_an_unnamed_code_and_no_rows_are_errors_that_say_where():
    rates, gap = worlds(0), worlds(2)
    with pytest.raises(ValueError, match="world 0 in the rates split: groups holds codes 0 to 1, outside 0 to 0"):
        measured(rates, gap, group_names=("A",))
    unknown = Sample(rates[1].preds + 1, rates[1].target, rates[1].groups)
    with pytest.raises(ValueError, match="world 1 in the rates split: preds holds codes 1 to 2, outside 0 to 1"):
        measured((rates[0], unknown), gap)
    empty = Sample(*(torch.zeros(0, dtype=torch.long),) * 3)
    with pytest.raises(ValueError, match="world 1 in the gap split: there are no rows"):
        measured(rates, (gap[0], empty))


def copied(seed, units=220, groups=2):
    """Units of 1 to 8 equal rows, which are right or wrong together, in one world; no gap between worlds or groups."""
    draw = torch.Generator().manual_seed(seed)
    target, sensitive = torch.arange(units) % 2, torch.arange(units) // 2 % groups
    right = torch.rand(units, generator=draw) < 0.7
    rows = torch.randint(1, 9, (units,), generator=draw)
    every = torch.where(right, target, 1 - target), target, sensitive, torch.arange(units) + units * seed
    return Sample(*(of.repeat_interleave(rows) for of in every))


def test_intervals_cover_and_floors_are_reached_where_rows_come_in_copies():
    names = ("privacy/accuracy_gap", "privacy/balanced_accuracy_gap", "fairness/equalized_odds_gap")
    wrong, gaps, floors = [torch.zeros(2, 3) for _ in range(3)]
    games = (20, 60)  # it takes few to see that rows taken as independent mislead
    for game in range(60):
        parts = [copied(4 * game + part) for part in range(4)]
        for known in (0, 1) if game < games[0] else (1,):
            given = parts if known else [Sample(part.preds, part.target, part.groups) for part in parts]
            found = measured(given[:2], given[2:])
            for i, name in enumerate(names):
                wrong[known, i] += found.intervals[name][0] > 0
                gaps[known, i] += found.metrics[name] / games[known]
                floors[known, i] += found.metrics[f"{name}_floor"] / games[known]
    assert (wrong[0] >= 4).all()  # P(4 or more of 20 at 5 %) is 1.6 %
    assert (wrong[1] <= 7).all()  # P(more than 7 of 60 at 5 %) is 0.8 %
    assert (floors[0] / gaps[0] < 0.8).all()
    torch.testing.assert_close(floors[1], gaps[1], rtol=0.25, atol=0)


def test_the_floor_of_a_constant_model_is_what_base_rates_make_of_its_accuracy_gap():
    parts = [copied(part) for part in range(4)]
    parts = [Sample(torch.zeros_like(part.preds).int(), part.target, part.groups, part.units) for part in parts]
    found = measured(parts[:2], parts[2:]).metrics
    assert found["privacy/accuracy_gap"] > 0.01
    assert found["privacy/accuracy_gap_floor"] == pytest.approx(found["privacy/accuracy_gap"])
