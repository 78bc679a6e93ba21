"""Intervals over seeds by simulation, what stands beside a gap, and rows that are never the best."""

import csv
import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linprog

from fairpriv.identity import content_hash
from fairpriv.metrics import Metric
from fairpriv.report import tradeoff
from fairpriv.report.comparison import Comparison, Estimate, _magnitude_box
from fairpriv.report.page import compare
from fairpriv.report.reading import reading
from fairpriv.result import Result

UNIT = (0.0, 1.0)


def cell(defence="none", seed=0, alpha=1.0, metrics=None, dataset="adult", repeats=1, **fields):
    config = {
        "seed": seed,
        "dataset": {"name": dataset},
        "defense": {"name": defence},
        "model": {"name": "mlp"},
        "game": {"alpha": alpha, "repeats": repeats},
    }
    return Result(content_hash(config), "completed", config, metrics or {}, **fields)


def gap_cell(difference, seed=0, name="privacy/accuracy_gap", **more):
    return cell(seed=seed, metrics={name: abs(difference)}, signed={name: [[difference]]}, **more)


def printed(tmp_path, capsys, *cells, **options):
    for i, result in enumerate(cells):
        result.write(tmp_path / "cells" / str(i) / "result.json")
    compare([tmp_path / "cells"], tmp_path, **options)
    return capsys.readouterr().out


def rows(tmp_path):
    with (tmp_path / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("fairpriv.report.page._write_plots", lambda table, folder: ({}, []))


def magnitude(row):
    return abs(row[0]) if len(row) == 1 else sum(map(abs, row)) / 2


def interval(seeds, limits=UNIT, base=0.0):
    """Estimate of the rows of signed differences of some seeds."""
    values = [base + max(map(magnitude, signed)) for signed in seeds]
    return Estimate.of_magnitude(values, limits, [[*zip(values, seeds, strict=True)]])


def coverage(draw, truth, n, times=1500):
    """Share of simulated sets of n seeds whose interval holds the truth."""
    rng = np.random.default_rng(n)
    found = [interval([draw(rng) for _ in range(n)], (0.0, math.inf)) for _ in range(times)]
    assert all(e.lo <= e.mean <= e.hi for e in found)
    return np.mean([e.lo <= truth <= e.hi for e in found])


@pytest.mark.parametrize(("n", "excluded"), [(3, 0.2), (5, 0.66), (10, 0.999)])
def test_a_gap_that_is_not_there_is_covered_where_an_interval_of_absolute_values_excludes_it(n, excluded):
    draws = np.random.default_rng(0).normal(size=(3000, n))
    absolute = [Estimate.of([*map(abs, d)], (0.0, math.inf)) for d in draws.tolist()]
    assert np.mean([e.lo > 0 for e in absolute]) == pytest.approx(excluded, abs=0.03)
    assert coverage(lambda rng: [[rng.normal()]], 0.0, n) >= 0.93


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("truth", [0.5, -2.0])
def test_a_true_gap_is_covered(n, truth):
    assert coverage(lambda rng: [[rng.normal(truth)]], abs(truth), n) >= 0.93


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(("rates", "truth"), [([0.4, 0.4, 0.4], 0.0), ([0.3, 0.5, 0.45], 0.2)])
def test_the_largest_of_several_differences_is_covered(n, rates, truth):
    """Equalized odds of three groups and two labels, from binomial counts of thirty rows a cell."""

    def draw(rng):
        seen = rng.binomial(30, [rates, [0.5] * 3]) / 30
        return [[float(row[a] - row[b])] for row in seen for a, b in itertools.combinations(range(3), 2)]

    assert coverage(draw, truth, n, 600) >= 0.93


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(("second", "truth"), [([0.5, 0.3, 0.2], 0.0), ([0.2, 0.4, 0.4], 0.3)])
def test_total_variation_of_several_classes_is_covered(n, second, truth):
    def draw(rng):
        one, other = (rng.multinomial(40, p) / 40 for p in ([0.5, 0.3, 0.2], second))
        return [[float(x) for x in one - other]]

    assert coverage(draw, truth, n, 1000) >= 0.93


def test_one_signed_difference_has_the_t_interval_folded():
    for values in ([0.1, -0.05, 0.08], [0.3, 0.2, 0.25, 0.28], [-0.3, -0.2, -0.25]):
        lo, hi = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        folded = interval([[[v]] for v in values])
        wanted = (0 if lo < 0 < hi else min(abs(lo), abs(hi)), max(abs(lo), abs(hi)))
        assert (folded.lo, folded.hi) == pytest.approx(wanted)
        assert folded.mean == pytest.approx(np.mean(np.abs(values)))
        assert folded.half is None


def test_several_differences_are_covered_at_once_by_bonferroni():
    seeds = [[[0.3], [0.01]], [[0.25], [0.0]], [[0.28], [0.02]]]
    first = [signed[0][0] for signed in seeds]
    half = stats.t.ppf(1 - 0.025 / 2, 2) * stats.sem(first)
    assert interval(seeds).lo == pytest.approx(np.mean(first) - half)
    assert interval(seeds).hi == pytest.approx(np.mean(first) + half)


@pytest.mark.parametrize("spread", [0.004, 0.03])
def test_a_difference_of_several_classes_is_bounded_over_the_box_of_its_numbers(spread):
    rng = np.random.default_rng(3)
    seeds = [[0.3, -0.25, -0.1, 0.05] + spread * rng.normal(size=4) for _ in range(6)]
    seeds = [row - row.mean() for row in seeds]
    half = stats.t.ppf(1 - 0.025 / 4, 5) * stats.sem(seeds)
    low, high = np.mean(seeds, 0) - half, np.mean(seeds, 0) + half
    ends, zero_sum = list(zip(low, high, strict=True)), {"A_eq": np.ones((1, 4)), "b_eq": [0]}
    # the least sum of positive parts t >= d, t >= 0; the most over every set of classes that may be the positive ones
    least = linprog(
        np.r_[np.zeros(4), np.ones(4)],
        np.hstack([np.eye(4), -np.eye(4)]),
        np.zeros(4),
        np.hstack([np.ones((1, 4)), np.zeros((1, 4))]),
        [0],
        [*ends, *[(0, 1)] * 4],
    ).fun
    most = max(-linprog(-np.array(some), bounds=ends, **zero_sum).fun for some in itertools.product((0, 1), repeat=4))
    found = interval([[row.tolist()] for row in seeds])
    assert (found.lo, found.hi) == pytest.approx((least, most))


@pytest.mark.parametrize(
    ("ends", "box"),
    [
        ([(0.1, 0.5), (-0.3, -0.1)], (0.1, 0.3)),  # d and -d, so that d is 0.1 to 0.3
        ([(-0.5, -0.1), (0.1, 0.3)], (0.1, 0.3)),
        ([(-0.2, 0.3), (-0.3, 0.2)], (0.0, 0.3)),
        ([(-0.4, 0.1), (-0.1, 0.4)], (0.0, 0.4)),
        ([(-0.4, 0.1)], (0.0, 0.4)),
        ([(-0.4, -0.1)], (0.1, 0.4)),
    ],
)
def test_the_total_variation_of_two_classes_is_the_size_of_one_s_difference(ends, box):
    assert _magnitude_box(ends) == pytest.approx(box)


def test_a_folded_rate_starts_at_one_half():
    estimate = interval([[[0.1]], [[-0.2]], [[0.05]]], (0.5, 1.0), base=0.5)
    assert estimate.lo == 0.5
    assert estimate.mean == pytest.approx(0.5 + 0.35 / 3)
    assert interval([[[-0.2]], [[-0.21]], [[-0.22]]], (0.5, 1.0), base=0.5).lo > 0.6


def test_the_interval_holds_the_mean_of_what_was_measured():
    """Which lies above the absolute mean where signs differ."""
    estimate = interval([[[0.3]], [[-0.3]], [[0.3]], [[-0.3]]] * 20)
    assert estimate.hi == estimate.mean == pytest.approx(0.3)
    assert estimate.lo == 0
    for k in range(1, 50):  # at some of which rounding would leave it out
        same = interval([[[k / 101]]] * 3, (0.5, 1.0), base=0.5)
        assert same.lo <= same.mean <= same.hi


def test_the_interval_of_a_magnitude_ends_where_its_range_does():
    assert interval([[[0.9]], [[0.2]], [[0.5]]]).hi == 1


def test_a_magnitude_stored_in_less_precision_than_its_differences_still_covers_zero():
    values = [0.1 + 2e-8, 0.1 + 1e-8]
    assert Estimate.of_magnitude(values, UNIT, [[(values[0], [[0.1]]), (values[1], [[-0.1]])]]).lo == 0


@pytest.mark.parametrize(
    "signed", [{}, {"privacy/accuracy_gap": [[None]]}, {"privacy/accuracy_gap": [[0.1], [0.2]]}, {"other": [[0.1]]}]
)
def test_without_the_signed_differences_of_all_cells_there_is_no_interval(tmp_path, capsys, signed):
    cells = [gap_cell(0.1 + s / 100, s) for s in (0, 1)]
    cells.append(cell(seed=2, metrics={"privacy/accuracy_gap": 0.1}, signed=signed))
    out = printed(tmp_path, capsys, *cells)
    (row,) = [row for row in rows(tmp_path) if row["metric"] == "privacy/accuracy_gap"]
    assert (row["n"], row["lo"], row["hi"], row["interval"]) == ("3", "", "", "")
    assert "no interval over seeds of accuracy gap: some cells lack the signed differences" in out
    assert float(row["mean"]) == pytest.approx((0.1 + 0.11 + 0.1) / 3)


def test_without_groups_to_compare_there_is_no_gap_and_no_width():
    estimate = interval([[[0.0]], [[0.0]]])
    assert (estimate.lo, estimate.hi) == (0, 0)
    estimate = Estimate.of_magnitude([0.0, 0.0], UNIT, [[(0.0, []), (0.0, [])]])
    assert (estimate.lo, estimate.mean, estimate.hi) == (0, 0, 0)


def test_rows_that_do_not_make_the_metric_make_no_interval():
    values = [0.1, 0.3]
    assert Estimate.of_magnitude(values, UNIT, [[(0.1, [[0.1]]), (0.3, [[0.2]])]]).lo is None
    # nor do rows of another number or length, as of cells with other groups or labels
    for more in ([[0.3], [0.1]], [[0.3, -0.3]]):
        assert Estimate.of_magnitude(values, UNIT, [[(0.1, [[0.1]]), (0.3, more)]]).lo is None


def test_cells_pooled_by_a_key_are_bounded_part_by_part():
    """Opposite differences of two data sets do not cancel: the mean is one of magnitudes."""
    cells = [
        gap_cell(sign * (0.2 + s / 1000), s, dataset=name) for name, sign in (("a", 1), ("b", -1)) for s in range(4)
    ]
    (group,) = Comparison.of(cells, by=["defense.name"]).groups
    estimate = group.estimates["privacy/accuracy_gap"]
    assert estimate.lo > 0.19
    assert estimate.hi < 0.21
    values = [0.2 + s / 1000 for s in range(4)]
    half = stats.t.ppf(1 - 0.025 / 2, 3) * stats.sem(values)  # two parts are covered at once
    assert (estimate.lo, estimate.hi) == pytest.approx((np.mean(values) - half, np.mean(values) + half))


def test_a_part_of_one_seed_leaves_the_pooled_gap_without_an_interval_and_a_line_says_so(tmp_path, capsys):
    cells = [gap_cell(0.1 + seed / 100, seed) for seed in range(3)]
    out = printed(tmp_path, capsys, *cells, gap_cell(0.2, dataset="german"), by="defense")
    assert [(row["n"], row["lo"]) for row in rows(tmp_path)] == [("3", "")]
    assert "no interval over seeds of accuracy gap: some cells" in out
    assert "or are averaged with others of one seed only;" in out


def test_a_part_without_a_gap_adds_nothing_to_the_lower_end():
    parts = {"a": (0.2, 0.201, 0.202), "b": (0.02, -0.03, 0.01)}
    cells = [gap_cell(d, s, dataset=name) for name, found in parts.items() for s, d in enumerate(found)]
    half = stats.t.ppf(1 - 0.025 / 2, 2) * stats.sem(parts["a"])
    (group,) = Comparison.of(cells, by=["defense.name"]).groups
    assert group.estimates["privacy/accuracy_gap"].lo == pytest.approx((np.mean(parts["a"]) - half) / 2)


def test_a_gap_has_no_t_interval_of_its_sizes_whether_its_name_or_its_rows_say_that_it_is_one():
    unsigned = [cell(seed=s, metrics={"privacy/accuracy_gap": 0.1 + s / 1000}) for s in range(3)]
    estimate = Comparison.of(unsigned).groups[0].estimates["privacy/accuracy_gap"]
    assert (estimate.half, estimate.lo, estimate.hi) == (None, None, None)
    unnamed = [gap_cell(d, s, name="mine/distance") for s, d in enumerate((0.1, -0.1, 0.11))]
    estimate = Comparison.of(unnamed).groups[0].estimates["mine/distance"]
    assert (estimate.half, estimate.lo) == (None, 0)


def test_a_part_in_which_the_gap_was_not_measured_takes_no_interval_from_the_others():
    measured = [gap_cell(0.1 + s / 1000, s) for s in range(3)]
    more = [cell(seed=s, dataset="german", metrics={"eval/accuracy": 0.8}) for s in range(3)]
    (alone,), (pooled,) = (Comparison.of(cells, by=["defense.name"]).groups for cells in (measured, measured + more))
    assert pooled.estimates["privacy/accuracy_gap"] == alone.estimates["privacy/accuracy_gap"]


def overlapping(rng, seeds=10, rows=60, share=0.2):
    """Test errors of the training mean over random splits of one data set: values, and test rows per training row."""
    data, test = rng.normal(size=rows), round(rows * share)
    found = []
    for _ in range(seeds):
        order = rng.permutation(rows)
        found.append(float(np.abs(data[order[:test]] - data[order[test:]].mean()).mean()))
    return found, test / (rows - test)


def test_overlapping_splits_of_one_data_set_cover_what_new_data_would_give():
    rng = np.random.default_rng(0)
    truth = math.sqrt(2 / math.pi * (1 + 1 / 48))  # E|N(0, 1 + 1/48)|
    naive, corrected = [], []
    for _ in range(1500):
        values, overlap = overlapping(rng)
        for found, estimate in (
            (naive, Estimate.of(values, UNIT)),
            (corrected, Estimate.of(values, (0.0, math.inf), overlap=overlap)),
        ):
            found.append(estimate.lo <= truth <= estimate.hi)
    assert np.mean(naive) < 0.85
    assert np.mean(corrected) >= 0.93


def test_means_and_differences_of_overlapping_splits_have_nadeau_and_bengios_variance(tmp_path, capsys):
    rng = np.random.default_rng(1)
    values = {name: rng.uniform(0.6, 0.8, 5).tolist() for name in ("none", "scratch")}
    cells = [
        cell(name, s, metrics={"eval/accuracy": values[name][s]}, overlap=0.3) for name in values for s in range(5)
    ]
    out = printed(tmp_path, capsys, *cells)
    assert "overlapping splits of one data set (Nadeau-Bengio corrected): about new data, not about new splits" in out
    (row,) = [row for row in rows(tmp_path) if row["defense"] == "scratch"]
    pairs = np.subtract(values["scratch"], values["none"])
    for sample, lo in ((values["scratch"], row["lo"]), (pairs, row["minus_baseline_lo"])):
        half = stats.t.ppf(0.975, 4) * math.sqrt(np.var(sample, ddof=1) * (1 / 5 + 0.3))
        assert float(lo) == pytest.approx(np.mean(sample) - half)
    assert row["interval"] == "t over seeds, Nadeau-Bengio"
    (tmp_path / "cells" / "3" / "result.json").unlink()
    cell(seed=3, metrics={"eval/accuracy": values["none"][3]}).write(tmp_path / "cells" / "3" / "result.json")
    compare([tmp_path / "cells"], tmp_path)  # one cell of the baseline is of other data
    (row,) = [row for row in rows(tmp_path) if row["defense"] == "scratch"]
    half = stats.t.ppf(0.975, 4) * stats.sem(pairs)
    assert float(row["minus_baseline_lo"]) == pytest.approx(np.mean(pairs) - half)


def test_signed_differences_of_overlapping_splits_are_widened_too():
    differences = [0.3, 0.25, 0.28]
    cells = [gap_cell(d, s, overlap=0.5) for s, d in enumerate(differences)]
    (group,) = Comparison.of(cells).groups
    half = stats.t.ppf(0.975, 2) * math.sqrt(np.var(differences, ddof=1) * (1 / 3 + 0.5))
    assert group.estimates["privacy/accuracy_gap"].lo == pytest.approx(np.mean(differences) - half)
    for result, overlap in zip(cells, (0.1, 0.5, 0.2), strict=True):  # the widest of what they hold stands for all
        result.overlap = overlap
    assert Comparison.of(cells).groups[0].estimates == group.estimates
    values = [0.6, 0.7, 0.75]
    for overlaps in ((0.1, 0.5), (0.5, 0.1)):
        both = [
            cell(name, s, metrics={"eval/accuracy": v if name == "fair" else 0.5}, overlap=overlap)
            for name, overlap in zip(("none", "fair"), overlaps, strict=True)
            for s, v in enumerate(values)
        ]
        half = stats.t.ppf(0.975, 2) * math.sqrt(np.var(values, ddof=1) * (1 / 3 + 0.5))
        assert Comparison.of(both).groups[1].differences["eval/accuracy"].half == pytest.approx(half)


def test_the_mean_floor_stands_beside_a_gap_in_every_form(tmp_path, capsys):
    cells = [gap_cell(d, s) for s, d in enumerate((0.3, -0.1, 0.21))]
    for result, floor in zip(cells, (0.1, 0.2, 0.15), strict=True):
        result.metrics["privacy/accuracy_gap_floor"] = floor
    out = printed(tmp_path, capsys, *cells)
    assert "0.203 [0.000, 0.658] floor 0.150" in out
    assert "floor: the mean where there is nothing to find" in out
    assert "accuracy gap floor" not in out  # no column of its own
    (row,) = [row for row in rows(tmp_path) if row["metric"] == "privacy/accuracy_gap"]
    assert (float(row["floor"]), row["floor_kind"]) == (pytest.approx(0.15), "floor")
    assert row["interval"] == "t of signed differences over seeds"
    assert '<span class="floor">floor 0.150</span>' in (tmp_path / "report.html").read_text()
    assert r"0.203 \[0.000, 0.658\] floor 0.150" in printed(tmp_path, capsys, *cells, form="markdown")


def attacked(leakage, alpha=1.0, defence="none", seed=0, **fields):
    metrics = {"attack/kl/leakage": leakage, "attack/kl/accuracy": 0.5 + leakage, "attack/kl/leakage_floor": 0.035}
    return cell(defence, seed, alpha, metrics, signed={"attack/kl/leakage": [[leakage]]}, **fields)


def test_what_does_not_rise_above_its_floor_is_counted_of_metrics_that_are_better_where_they_are_lower():
    ece, worst = Metric("eval/ece", better="less", column=1), Metric("eval/worst", better="greater", column=2)
    described = {"eval/ece": ece, "eval/worst": worst}
    values = {"eval/ece": 0.1, "eval/ece_floor": 0.02, "eval/worst": 0.5, "eval/worst_floor": 0.8}  # both tell
    cells = [cell(seed=s, metrics={k: v + s / 1000 for k, v in values.items()}, described=described) for s in range(3)]
    assert not any("floor" in line for line in reading(Comparison.of(cells)))
    low = [cell(seed=s, metrics=values | {"eval/ece": 0.02 + s / 1000}, described=described) for s in range(3)]
    assert reading(Comparison.of(low))[-1] == "Caution: 1 of 1 gaps and leakages do not rise above their floor."


def test_what_nothing_looks_like_stands_beside_the_leakage(tmp_path, capsys):
    cells = [attacked(0.4 + s / 100, seed=s) for s in range(3)] + [
        attacked(x, 0.5, seed=s) for s, x in enumerate((0.03, 0.05, 0.04))
    ]
    cells += [attacked(0.1, defence="scratch", seed=s) for s in range(3)]  # without a null arm of its own
    cells += [attacked(0.01, 0.5, seed=s, repeats=5) for s in range(3)]  # of another game
    out = printed(tmp_path, capsys, *cells, where=["game.repeats=1"])
    assert "nothing: the mean of the same cells with game.alpha=0.5" in out
    found = {(row["defense"], row["game.alpha"]): row for row in rows(tmp_path) if row["metric"] == "attack/kl/leakage"}
    floors = {place: (row["floor_kind"], float(row["floor"])) for place, row in found.items()}
    assert floors == {
        ("none", "1.0"): ("nothing", pytest.approx(0.04)),
        ("none", "0.5"): ("floor", pytest.approx(0.035)),
        ("scratch", "1.0"): ("floor", pytest.approx(0.035)),
    }
    assert "nothing 0.040" in out
    assert {row["metric"] for row in rows(tmp_path) if row["floor_kind"] == "nothing"} == {"attack/kl/leakage"}


def test_what_nothing_looks_like_is_not_told_of_a_row_of_which_a_part_has_no_such_cells():
    cells = [attacked(0.4), attacked(0.03, 0.5), attacked(0.4, dataset="german")]
    groups = Comparison.of(cells, by=["defense.name", "game.alpha"]).groups
    assert [group.floors["attack/kl/leakage"][0] for group in groups] == ["floor", "floor"]
    assert Comparison.of(cells[:2]).groups[1].floors["attack/kl/leakage"] == ("nothing", 0.03)


def test_the_accuracy_of_an_attack_is_shown_only_where_there_is_no_leakage():
    old = cell(metrics={"attack/kl/accuracy": 0.3, "attack/kl/auc": 0.2})
    assert [metric.title for metric in Comparison.of([old]).columns.values()] == ["kl attack"]
    new = attacked(0.2, defence="scratch")
    assert [metric.title for metric in Comparison.of([new]).columns.values()] == ["kl leakage"]
    assert [metric.title for metric in Comparison.of([old, new]).columns.values()] == ["kl attack", "kl leakage"]


def test_an_attack_below_guessing_is_never_the_best(tmp_path, capsys):
    accuracies = {"none": 0.5, "scratch": 0.28, "fair": 0.6}
    table = Comparison.of(
        cell(name, metrics={"attack/kl/accuracy": a, "attack/kl/leakage": abs(a - 0.5)})
        for name, a in accuracies.items()
    )
    assert {group.defence: group.best for group in table.groups} == {
        "none": {"attack/kl/leakage"},
        "scratch": set(),
        "fair": set(),
    }


def test_yardsticks_of_a_known_truth_have_columns():
    table = Comparison.of([cell(metrics={"attack/kl/share_of_optimum": 0.9, "game/optimal_advantage": 0.5})])
    assert [metric.title for metric in table.columns.values()] == ["kl share of optimum", "optimal advantage"]


def test_leakage_without_an_interval_says_what_to_set(tmp_path, capsys):
    assert "set game.repeats=5 or more" in printed(tmp_path, capsys, attacked(0.3))
    told = printed(tmp_path / "own", capsys, attacked(0.3, intervals={"attack/kl/leakage": [0.2, 0.4]}))
    assert "game.repeats" not in told
    assert "game.repeats" not in printed(tmp_path / "seeds", capsys, *(attacked(0.3, seed=s) for s in range(2)))
    assert "game.repeats" not in printed(tmp_path / "mixture", capsys, attacked(0.3, 0.8))


def test_controls_are_named_and_never_the_best_nor_on_a_front(tmp_path, capsys):
    why = "its training rows do not depend on the training world"
    points = {"none": (0.7, 0.3), "fair": (0.8, 0.2), "scratch": (0.9, 0.0)}
    names = ("eval/accuracy", "attack/kl/leakage")
    cells = [
        cell(name, metrics=dict(zip(names, p, strict=True)), control=why if name == "scratch" else None)
        for name, p in points.items()
    ]
    table = Comparison.of(cells, pareto=names)
    assert {group.defence: (group.best, group.on_front) for group in table.groups} == {
        "none": (set(), False),
        "fair": (set(names), True),
        "scratch": (set(), False),
    }
    out = printed(tmp_path, capsys, *cells)
    assert f"control, never the best and on no front: adult, scratch (control): {why}" in out
    assert "adult    scratch (control)" in out
    assert "| scratch (control) |" in printed(tmp_path, capsys, *cells, form="markdown")
    report = (tmp_path / "report.html").read_text()
    assert '<th scope="row" class="place">scratch (control)</th>' in report
    assert f'"control":"{why}"' in report
    assert {row["defense"]: row["control"] for row in rows(tmp_path)} == {"none": "0", "fair": "0", "scratch": "1"}
    figure = tradeoff.tradeoff_figure(table, table.settings)
    (front,) = (line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-pre")
    assert (0.9, 0.0) not in [*zip(*map(list, front.get_data()), strict=True)]
    assert "scratch (control)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_row_that_pools_other_cells_with_controls_is_none():
    cells = [cell(name, metrics={"eval/accuracy": 0.8}, control=why) for name, why in (("none", None), ("a", "why"))]
    for order in (1, -1):
        (group,) = Comparison.of(cells[::order], by=["dataset.name"]).groups
        assert group.control is None
    (_, control) = Comparison.of(cells, by=["defense.name"]).groups
    assert control.control == "why"


def test_the_null_arm_is_never_the_best():
    """Where both worlds are one distribution there is nothing to protect, and so nothing to win."""

    def played(defence, alpha, accuracy):
        found = cell(defence, metrics={"eval/accuracy": accuracy, "attack/kl/leakage": 1 - accuracy})
        found.config["game"] = {"alpha": alpha}
        return found

    cells = [played("none", 1.0, 0.7), played("fair", 1.0, 0.8), played("none", 0.5, 0.9), played("fair", 0.5, 0.95)]
    groups = Comparison.of(cells).groups
    best = {(group.defence, group.leaves["game.alpha"]): group.best for group in groups}
    assert best["fair", 1.0] == {"eval/accuracy", "attack/kl/leakage"}
    assert not best["none", 0.5]
    assert not best["fair", 0.5]
