import csv
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fairpriv.cli import dispatch
from fairpriv.earlier import earlier
from fairpriv.errors import InputError
from fairpriv.identity import content_hash
from fairpriv.metrics import Metric
from fairpriv.report.comparison import Comparison, Estimate, described, pareto_front
from fairpriv.report.finding import find_results
from fairpriv.report.page import compare
from fairpriv.report.reading import holm, reading
from fairpriv.report.selection import Condition
from fairpriv.result import Result


@pytest.fixture
def pictures():
    """For tests that look at the plots, which take longer than all else."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("fairpriv.report.page._write_plots", lambda table, folder: ({}, []))


def cell(dataset="adult", defence="none", seed=0, metrics=None, game=None, config=None, paths=None, **fields):
    config = {
        "seed": seed,
        "dataset": {"name": dataset, "target": f"target of {dataset}"},
        "defense": {"name": defence, "_target_": f"fairpriv.defenses.{defence}"},
        "model": {"name": "mlp", "seed": seed},
        "game": {"alpha": 1.0, "tau": 0.1} | (game or {}),
        "paths": paths or {"root": "/here", "data": "/here/data"},
        "logger": None,
    } | (config or {})
    fields = {"id": content_hash(config), "status": "completed", "config": config} | fields
    return Result(metrics={"eval/accuracy": 0.8, "privacy/accuracy_gap": 0.1} if metrics is None else metrics, **fields)


STUDIES = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("study", sorted({path.parents[1].name for path in STUDIES.glob("*/results/*.json")}))
def test_results_of_before_kinds_stay_readable(study):
    results, skipped = find_results([STUDIES / study / "results"])
    assert skipped == []
    assert not any(result.outcome for result in results)
    table = Comparison.of(results)
    assert sum(len(group.completed) for group in table.groups) + len(table.replaced) == len(results)
    assert table.columns


def hashed(folder, content, seed=0, **fields):
    """A cell that has kept what was hashed: its data by content."""
    made = cell(seed=seed, config={"dataset": {"name": "adult", "source": {"folder": folder}}}, **fields)
    kept = {"seed": seed, "dataset": {"name": "adult", "source": {"content": content}}, "defense": {"name": "none"}}
    return replace(made, outcome={"outcome_version": 2, "config": kept})


def test_cells_are_grouped_by_what_was_hashed():
    elsewhere = [hashed("/one/adult", "01ab"), hashed("/two/adult", "01ab", seed=1, game={"alpha": 0.7})]
    (group,) = Comparison.of(elsewhere).groups
    assert [*group.completed] == ["0", "1"]
    assert group.leaves["dataset.source.folder"] == "/one/adult"  # where it was seen first
    table = Comparison.of([*elsewhere, hashed("/one/adult", "02cd", seed=2)])
    assert [[*group.completed] for group in table.groups] == [["0", "1"], ["2"]]
    assert table.place == ["dataset.name", "defense.name", "dataset.source.content"]
    (changed,) = [
        g for g in Comparison.of([*elsewhere, hashed("/one/adult", "02cd" * 16)]).groups if len(g.completed) == 1
    ]
    assert changed.leaves["dataset.source.content"] == "02cd02cd02cd"


def test_a_cell_that_failed_before_its_inputs_were_read_stands_in_the_row_of_its_config():
    done = [hashed("/one/adult", "01ab", seed) for seed in (0, 1)]
    source = {"_kind_": "files", "folder": "/one/adult"}
    early = hashed("/one/adult", "01ab", 2, status="failed", error="data: no connection")
    early.outcome["config"]["dataset"]["source"] = source
    table = Comparison.of([early, *done])
    assert [[*group.completed, *group.failed] for group in table.groups] == [["0", "1", "2"]]
    assert table.place == ["dataset.name", "defense.name"]
    later = Comparison.of([early, *done, hashed("/one/adult", "01ab", 2)])  # the same cell, with what it has read
    assert [[*group.completed] for group in later.groups] == [["0", "1", "2"]]
    assert later.replaced == [early]
    early.config["dataset"]["source"]["folder"] = source["folder"] = "/two/adult"
    assert [[*group.completed] for group in Comparison.of([early, *done]).groups] == [["0", "1"], []]


def test_equal_data_below_two_roots_tell_no_rows_apart():
    cells = [hashed(f"/{root}/adult", "01ab", seed) for seed, root in enumerate("aab")]
    for made, root in zip(cells, "aab", strict=True):
        made.config["paths"] = {"root": f"/{root}"}
    (group,) = Comparison.of([*cells, hashed("/b/adult", "02cd", 3)]).groups[:1]
    assert [*group.completed] == ["0", "1", "2"]
    assert group.leaves["dataset.source.folder"] == "${paths.root}/adult"


def test_words_that_begin_like_a_root_tell_no_rows_apart():
    data = {"name": "german", "columns": ["duration", "credit"]}
    cells = [cell(seed=seed, config={"dataset": dict(data)}) for seed in (0, 1)]
    for made, root in zip(cells, ("dur", "/runs/outputs/"), strict=True):
        made.config["paths"] = {"root": root}
        made.config["dataset"]["folder"] = f"{root.rstrip('/')}/german"
    (group,) = Comparison.of(cells).groups
    assert group.leaves["dataset.columns"] == ["duration", "credit"]
    assert group.leaves["dataset.folder"] == "${paths.root}/german"


def written(tmp_path, *cells):
    for i, result in enumerate(cells):
        path = tmp_path / "cells" / str(i) / "result.json"
        result.write(path)
        os.utime(path, (1000 + i, 1000 + i))
    return tmp_path


def rows(path):
    with (path / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def only(table, **wanted):
    (row,) = [row for row in table if all(row[key] == value for key, value in wanted.items())]
    return row


@pytest.mark.parametrize("n", [2, 3, 10])
def test_interval_over_seeds_is_students_t(n):
    values = np.random.default_rng(n).normal(0.5, 0.1, n)
    estimate = Estimate.of([*values], (-np.inf, np.inf))
    lo, hi = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (estimate.mean, estimate.lo, estimate.hi, estimate.n) == pytest.approx((values.mean(), lo, hi, n))


def limits(name, values=()):
    return earlier(name, min(values, default=None), {}).limits(values)


def test_interval_of_a_rate_stays_in_its_range():
    estimate = Estimate.of([0.0, 0.2], limits("privacy/accuracy_gap"))
    assert (estimate.lo, estimate.hi) == (0.0, 1.0)
    assert Estimate.of([0.9, 1.1], limits("privacy/bound")).hi > 1
    assert limits("attack/kl/leakage") == (0, 0.5)
    assert limits("attack/kl/auc", [0.6]) == (0.5, 1)
    assert limits("attack/kl/auc", [0.6, 0.4]) == (0, 1)  # of a design that did not fold it
    assert limits("attack/kl/share_of_optimum", [1.02])[1] > 1.02
    assert limits("privacy/accuracy_gap", [-0.1, 0.2]) == (-1, 1)
    assert limits("analysis/jaccard_by_chance/fairness+privacy") == (0, 1)
    assert limits("analysis/caution/privacy/rate") == (0, 1)
    assert limits("analysis/caution/privacy/rate_change") == (-1, 1)
    assert limits("analysis/hsic/fairness+privacy/before")[1] > 1


def test_one_seed_shows_the_cells_own_interval(tmp_path, capsys):
    written(tmp_path, cell(intervals={"eval/accuracy": [0.71, 0.83]}))
    compare([tmp_path])
    out = capsys.readouterr().out
    assert "0.800 [0.710, 0.830]" in out
    assert "one seed" in out
    row = only(rows(tmp_path), metric="eval/accuracy")
    assert (row["n"], row["lo"], row["hi"], row["interval"]) == ("1", "0.71", "0.83", "one cell")
    assert only(rows(tmp_path), metric="privacy/accuracy_gap")["interval"] == ""
    half_known = Estimate.of([0.8], (0, 1), (0.71, None))
    assert (half_known.lo, half_known.hi) == (None, None)
    apart = [cell(dataset, intervals={"eval/accuracy": [0.71, 0.83]}) for dataset in ("adult", "german")]
    (pooled,) = Comparison.of(apart, by=["defense.name"]).groups  # of one seed, and two cells
    assert pooled.estimates["eval/accuracy"].ends is None


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("eval/accuracy", 1),
        ("eval/balanced_accuracy", 1),
        ("eval/accuracy_world0", 1),
        ("eval/privacy/awareness", 1),
        ("eval/utility/boolq", 1),
        ("eval/utility/boolq/acc_norm", 1),
        ("eval/utility/wikitext/word_perplexity", 0),
        ("eval/utility/perplexity", -1),
        ("eval/privacy/over_refusal", -1),
        ("fairness/equalized_odds_gap", -1),
        ("privacy/accuracy_gap", -1),
        ("privacy/bound", -1),
        ("attack/loss_test/accuracy", 0),  # below one half an attack tells as much as above it
        ("attack/loss_test/advantage", 0),
        ("attack/loss_test/auc", 0),
        ("attack/loss_test/auc_inverted", 0),
        ("attack/loss_test/p_value", 0),
        ("attack/loss_test/leakage", -1),
        ("attack/loss_test/leakage_floor", 0),
        ("attack/loss_test/share_of_optimum", 1),
        ("game/optimal_advantage", 0),
        ("fairness/equalized_odds_gap_floor", 0),
        ("fairness/delta/yes", -1),
        ("fairness/delta/yes_floor", 0),
        ("privacy/accuracy_gap_floor", 0),
        ("eval/truthfulness/score", 1),
        ("eval/truthfulness/score_change", 1),
        ("eval/bbq/accuracy_ambiguous", 1),
        ("eval/bbq/bias_ambiguous", 0),
        ("eval/fairness/mcnemar_p", 0),
        ("eval/wage_gap/awareness", 1),  # what a dimension is called says nothing
        ("eval/wage_gap/unparsable", 0),
        ("eval/accuracy_of_dates/over_refusal", -1),
        ("privacy/shift_weight", 0),
        ("privacy/bound_holds", 0),
        ("edit/suppressed", 0),
    ],
)
def test_direction_follows_from_the_name(metric, expected):
    assert earlier(metric, None, {}).sign == expected


@pytest.mark.parametrize("better", [(1, -1), (1, 1), (-1, -1), (1, -1, 1), (-1, 1, 1, -1)])
def test_pareto_front_agrees_with_a_double_loop(better):
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 8, (40, len(better))).tolist()]
    for best in range(len(better)):  # extremes, so that one point cannot better all others
        points.append(tuple(b * (9 if i == best else -9) for i, b in enumerate(better)))
    expected = []
    for i, p in enumerate(points):
        dominated = False
        for q in points:
            no_worse = all(b * (v - u) >= 0 for u, v, b in zip(p, q, better, strict=True))
            dominated |= no_worse and q != p
        if not dominated:
            expected.append(i)
    assert pareto_front(points, better) == expected
    assert len(better) < len(expected) < len(points)


def test_cells_that_differ_only_in_seed_are_one_row():
    elsewhere = cell(
        seed=2,
        paths={"root": "/there", "data": "/data"},
        config={"dataset": {"name": "adult", "folder": "/data/adult"}},
    )
    here = [cell(seed=s, config={"dataset": {"name": "adult", "folder": "/here/data/adult"}}) for s in (0, 1)]
    table = Comparison.of([*here, elsewhere, cell(seed=3, defence="scratch")])
    assert [(group.defence, len(group.completed)) for group in table.groups] == [("none", 3), ("scratch", 1)]


def test_equal_values_have_no_spread():
    value = 24.959805069859208  # three times which, rounded, is not three of it
    estimate = (
        Comparison.of(cell(seed=s, metrics={"eval/loss": value}) for s in range(3)).groups[0].estimates["eval/loss"]
    )
    assert (estimate.mean, estimate.half) == (value, 0.0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0), (0, 2)])
def test_a_seed_that_is_fixed_distinguishes_no_cells_where_it_is_the_cell_s_own_by_chance(order):
    def made(seed, draw, split):
        return cell(seed=seed, config={"dataset": {"name": "adult", "draw": {"seed": draw}, "split": {"seed": split}}})

    fixed = [made(seed, draw, 1) for draw in (0, 5) for seed in order]
    table = Comparison.of(fixed)
    assert sorted(tuple(sorted(group.completed)) for group in table.groups) == [tuple(map(str, sorted(order)))] * 2
    assert table.keys == ["dataset.draw.seed"]
    alone = cell(defence="scratch", config=made(0, 0, 1).config | {"defense": {"name": "scratch"}})
    assert Comparison.of([*fixed, alone]).keys == ["dataset.draw.seed"]
    following = Comparison.of([*(made(seed, seed, 7) for seed in order), made(3, 0, 7)])
    assert sorted(len(group.completed) for group in following.groups) == [1, len(order)]


@pytest.mark.parametrize("draws", [(0, 1), (1, 0, 2), (0, 1, 7)])
def test_seeds_that_are_crossed_with_those_of_a_part_make_whole_rows(draws):
    def made(seed, draw, split, defence):
        parts = {"name": "adult", "draw": {"seed": draw}, "split": {"seed": split}}
        status = "failed" if (seed, draw) == (1, 1) else "completed"
        return cell(defence=defence, seed=seed, config={"dataset": parts}, status=status)

    cells = [made(s, d, p, f) for f in ("none", "rehearsal") for s in (0, 1, 2) for d in draws for p in (0, 1)]
    table = Comparison.of(cells)
    assert len(table.groups) == 4 * len(draws)
    for group in table.groups:
        draw, split = group.leaves["dataset.draw.seed"], group.leaves["dataset.split.seed"]
        found = group.completed | group.failed
        assert sorted(found) == ["0", "1", "2"]
        assert [*group.failed] == (["1"] if draw == 1 else [])
        for result in found.values():
            assert result.config["dataset"]["draw"]["seed"] == draw
            assert result.config["dataset"]["split"]["seed"] == split
    pooled = Comparison.of([one for one in cells if one.status == "completed"], by=["defense.name"])
    assert [group.seeds for group in pooled.groups] == [3, 3]


def test_only_keys_that_a_reader_needs_become_columns():
    grid = [
        cell(dataset, defence, game={"alpha": alpha}, config={"trainer": {"max_epochs": 5 if defence == "none" else 9}})
        for dataset in ("adult", "compas")
        for defence in ("none", "scratch")
        for alpha in (0.7, 1.0)
    ]
    assert Comparison.of(grid).keys == ["game.alpha"]
    penalties = [cell(defence="fair_finetune", config={"defense": {"name": "f", "penalty": p}}) for p in (1, 5)]
    assert Comparison.of([*grid, *penalties]).keys == ["defense.penalty", "game.alpha"]


def test_a_part_that_some_rows_lack_becomes_one_column():
    general = {"_target_": "D", "train": {"safe": "a.csv", "columns": {"prompt": "p"}}}
    variants = [{}, {"general": general}, {"general": general | {"scorer": {"normalise": "tokens"}}}]
    cells = [cell(config={"dimensions": {"fairness": {"_target_": "D"}} | more}, game={}) for more in variants]
    assert Comparison.of(cells).keys == [
        "dimensions.general.scorer.normalise",
        "dimensions.general.train.columns.prompt",
    ]


def test_keys_that_were_varied_together_are_all_columns():
    cells = [cell(defence="lora", config={"defense": {"name": "lora", "lr": x, "rank": 10 * x}}) for x in (1, 2)]
    assert Comparison.of(cells).keys == ["defense.lr", "defense.rank"]


def test_game_is_shown_even_when_it_follows_from_the_dataset():
    table = Comparison.of([cell("adult", game={"alpha": 0.7}), cell("compas", game={"alpha": 1.0})])
    assert table.keys == ["game.alpha"]


def test_none_comes_first_and_numbers_are_ordered_as_numbers():
    cells = [cell(defence=d, game={"rows": r}) for d in ("fair", "none") for r in (1000, 200)]
    table = Comparison.of(cells)
    assert [(g.defence, g.leaves["game.rows"]) for g in table.groups] == [
        ("none", 200),
        ("none", 1000),
        ("fair", 200),
        ("fair", 1000),
    ]


def test_difference_to_none_is_paired_by_seed_within_the_same_game(tmp_path):
    rng = np.random.default_rng(0)
    accuracy = {
        (defence, alpha, seed): float(rng.uniform(0.6, 0.9))
        for defence in ("none", "scratch")
        for alpha in (0.7, 1.0)
        for seed in range(4)
        if (defence, seed) not in (("none", 3), ("scratch", 0))
    }
    cells = [
        cell(defence=d, seed=s, game={"alpha": a}, metrics={"eval/accuracy": value})
        for (d, a, s), value in accuracy.items()
    ]
    compare([written(tmp_path, *cells)])
    for alpha in (0.7, 1.0):
        row = only(rows(tmp_path), defense="scratch", **{"game.alpha": str(alpha)})
        there, here = ([accuracy[d, alpha, s] for s in (1, 2)] for d in ("none", "scratch"))
        lo, hi = stats.ttest_rel(here, there).confidence_interval(0.95)
        assert row["minus_baseline_n"] == "2"
        got = [float(row[name]) for name in ("minus_baseline", "minus_baseline_lo", "minus_baseline_hi")]
        assert got == pytest.approx([np.mean(here) - np.mean(there), max(-1, lo), min(1, hi)])
        assert only(rows(tmp_path), defense="none", **{"game.alpha": str(alpha)})["minus_baseline"] == ""


def test_two_seeds_show_no_interval_and_a_line_says_why(tmp_path, capsys):
    compare([written(tmp_path, *(cell(seed=s, metrics={"eval/accuracy": 0.5 + s / 5}) for s in range(2)))])
    out = capsys.readouterr().out
    assert "0.600 ±?" in out
    assert "±?: two seeds cannot tell" in out
    assert float(only(rows(tmp_path), metric="eval/accuracy")["hi"]) == 1.0  # the t interval, clipped


def pretrained(defence, samples, seed=0, awareness=0.5, change=None, **fields):
    """A language model's cell, trained on pairs if it is lora."""
    config = {
        "task": "language_model",
        "dataset": {"name": "pairs", "samples": samples, "dimensions": ["privacy"]},
        "dimensions": {"privacy": {"name": "privacy"}},
    }
    metrics = {"eval/privacy/awareness": awareness, "eval/fairness/awareness": 0.2}
    metrics |= {"train/pairs": samples} if defence == "lora" else {}
    metrics |= {} if change is None else {"eval/privacy/awareness_change": change[0]}
    intervals = {} if change is None else {"eval/privacy/awareness_change": change[1:]}
    return cell("pairs", defence, seed, metrics, config=config, intervals=intervals, **fields)


def test_what_an_untouched_model_does_not_read_splits_no_row_panel_or_comparison():
    cells = [pretrained("none", n, s, awareness=0.4 + s / 100) for n in (200, 64) for s in (0, 1, 2)]
    cells += [pretrained("lora", 128, s, awareness=0.5 + s / 50) for s in (0, 1, 2)]
    table = Comparison.of(cells)
    assert [(group.defence, len(group.completed)) for group in table.groups] == [("none", 3), ("lora", 3)]
    assert table.keys == []
    assert [*table.settings] == ["pairs"]
    assert len(table.replaced) == 3
    assert table.groups[1].differences["eval/privacy/awareness"].mean == pytest.approx(0.11)
    assert table.groups[1].unlike == set()
    more = Comparison.of([*cells, pretrained("lora", 512), pretrained("lora", 512, status="failed", seed=1)])
    assert [(g.defence, g.leaves.get("dataset.samples")) for g in more.groups] == [
        ("none", None),
        ("lora", 128),
        ("lora", 512),
    ]
    assert more.name(more.groups[0]) == "pairs, none"
    assert len(more.groups[2].differences) == 2
    assert [*more.settings] == ["pairs"]


def test_p_agrees_with_scipys_t_test_and_with_the_interval_of_one_cell():
    rng = np.random.default_rng(0)
    for n in (3, 8):
        values = rng.normal(0.3, 0.4, n)
        estimate = Estimate.of([*values], (-np.inf, np.inf))
        assert estimate.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    for lo, hi in ((0.0, 0.3), (-0.3, 0.0)):
        assert Estimate.of([(lo + hi) / 3], (-1, 1), (lo, hi)).p == pytest.approx(0.05)
    assert Estimate.of([0.1, 0.2], (-1, 1)).p is None
    assert Estimate.of_magnitude([0.0] * 3, (0, 1), [[(0.0, [[0.0]])] * 3]).p is None  # no t test of a magnitude
    assert Estimate.of([0.0] * 3, (-1, 1)).p == 1
    assert Estimate.of([1e-17] * 3, (-1, 1)).p == 1  # what rounding leaves of equal numbers
    assert Estimate.of([0.25] * 3, (-1, 1)).p is None
    assert Estimate.of([0.7 - 0.6, 0.4 - 0.3, 0.9 - 0.8], (-1, 1)).p is None  # the same but for rounding
    assert Estimate.of([0.25, 0.25, 0.2501], (-1, 1)).p < 1e-6


def test_holm_agrees_with_adjusted_p_values_and_holds_its_level():
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(400):
        p = rng.uniform(size=12)
        false += any(holm([*p]))
        p[:6] /= 100
        order = np.argsort(p)
        adjusted = np.maximum.accumulate((12 - np.arange(12)) * p[order])
        assert np.array_equal(np.array(holm([*p]))[order], adjusted <= 0.05)
    assert false <= stats.binom.ppf(0.999, 400, 0.05)


def test_without_any_effect_hardly_a_comparison_settles_anything_on_few_test_rows():
    rng = np.random.default_rng(2)
    metrics = {f"group{g}/recall": Metric(f"group{g}/recall", better="greater", column=g) for g in range(4)}
    false = 0
    for _ in range(150):
        cells = [
            cell(defence=d, seed=s, metrics={m: rng.binomial(8, 0.5) / 8 for m in metrics}, described=metrics)
            for d in ("none", "a", "b", "c")
            for s in range(3)
        ]
        false += reading(Comparison.of(cells))[0].startswith("Settled")
    assert false <= stats.binom.ppf(0.999, 150, 0.05)


def test_a_baseline_that_differs_in_more_than_the_defence_is_told_of():
    def arm(defence, epochs):
        return [cell(defence=defence, seed=seed, config={"training": {"epochs": epochs}}) for seed in range(3)]

    said = "1 differs from the row that it is compared with in training.epochs, too"
    assert said in reading(Comparison.of([*arm("none", 3), *arm("rehearsal", 5)]))[-1]
    assert not any(said in text for text in reading(Comparison.of([*arm("none", 3), *arm("rehearsal", 3)])))
    table = Comparison.of([*arm("none", 3), *arm("none", 5), *arm("rehearsal", 5)])  # then it tells rows apart
    assert [group.unlike for group in table.groups] == [set()] * 3


def test_a_difference_of_a_part_of_the_cells_is_told_of():
    arms = [("adult", "none", 3), ("adult", "rehearsal", 3), ("german", "rehearsal", 2)]
    cells = [cell(dataset, defence, seed) for dataset, defence, n in arms for seed in range(n)]
    table = Comparison.of(cells, by=["defense.name"])
    assert [group.unpaired for group in table.groups] == [0, 2]
    assert "differences of 1 are of a part of their cells" in reading(table)[-1]
    assert [group.unpaired for group in Comparison.of(cells).groups] == [0, 0, 0]  # no difference at all, of german


def test_output_opens_with_what_is_settled_what_is_not_and_why(tmp_path, capsys):
    noise = (0.0, 0.01, -0.01, 0.005)
    cells = [
        cell(defence=d, seed=s, metrics={"eval/accuracy": a + n / 2 + spread * n * (-1) ** s})
        for d, a, spread in (("none", 0.8, 0), ("far", 0.6, 0.1), ("near", 0.801, 1), ("equal", 0.7, 0))
        for s, n in enumerate(noise)
    ]
    cells += [cell(defence="constant", seed=s, metrics={"eval/accuracy": 0.5}, degenerate=["no"]) for s in range(3)]
    cells += [cell(defence="hasty", seed=s, metrics={"eval/accuracy": 0.5 + s / 9}) for s in range(2)]
    compare([written(tmp_path, *cells)])
    out = " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
    assert out.startswith(
        "Settled: 1 of 4 differences to defense=none, whose 95 % intervals leave out 0 after correction"
    )
    assert "for 2 comparisons (Holm): adult, far: accuracy -0.201 ±0.001 (worse). Not settled: 1 whose" in out
    assert "interval holds 0, 1 of two seeds, which cannot tell, 1 of one and the same value at every seed," in out
    assert out.endswith("Caution: 1 of 6 rows have a degenerate cell and settle nothing.")


def test_a_change_on_the_same_prompts_is_the_difference_of_one_seed():
    cells = [pretrained("none", 1), pretrained("lora", 1, awareness=0.2, change=(-0.3, -0.4, -0.2))]
    settled, still_open, caution = reading(Comparison.of(cells))
    assert "privacy awareness -0.300 [-0.400, -0.200] (worse)" in settled
    assert still_open == "Not settled: 1 of one seed, which cannot tell."
    assert "another seed may say otherwise" in caution


@pytest.mark.parametrize("more", [[], ["eval/privacy/awareness"]])
def test_a_change_that_is_shown_alone_is_a_difference_and_counts_once_beside_what_changes(more):
    table = Comparison.of([pretrained("none", 1), pretrained("lora", 1, awareness=0.2, change=(-0.3, -0.4, -0.2))])
    table.shown = ["eval/privacy/awareness_change", *more]
    settled, *_ = reading(table)
    assert settled.startswith("Settled: 1 of 1 differences to defense=none")
    assert "-0.300 [-0.400, -0.200] (worse)" in settled


def test_the_surest_differences_are_named_first_and_only_four_of_them():
    noise = {f"arm{k}": k / 1e4 for k in (3, 1, 6, 4, 2, 5)}  # the least spread is the surest
    cells = [
        cell(defence=d, seed=s, metrics={"eval/accuracy": 0.5 + (0.1 + spread * s if d != "none" else 0)})
        for d, spread in ({"none": 0.0} | noise).items()
        for s in range(3)
    ]
    settled, *_ = reading(Comparison.of(cells))
    assert re.findall(r"arm\d", settled) == ["arm1", "arm2", "arm3", "arm4"]
    assert settled.endswith("; and 2 more.")


def test_a_row_that_is_compared_with_a_degenerate_one_settles_nothing():
    cells = [cell(seed=s, metrics={"eval/accuracy": 0.5}, degenerate=["no"]) for s in range(3)]
    cells += [cell(defence="spin", seed=s, metrics={"eval/accuracy": 0.8 + s / 1e4}) for s in range(3)]
    first, *_, caution = reading(Comparison.of(cells))
    assert first.startswith("Nothing is settled: no row that could settle anything")
    assert "1 is compared with such a row" in caution


SAME_SEED = "no metric of the table was measured at one seed both in a row and in its row of defense=none"


@pytest.mark.parametrize(
    ("baseline", "other", "shown", "why"),
    [
        ({"seeds": (0, 1, 2)}, {"seeds": (3, 4, 5)}, (), SAME_SEED),
        ({"status": "failed", "metrics": {}}, {}, (), SAME_SEED),
        ({"metrics": {"eval/accuracy": None}}, {}, (), SAME_SEED),
        ({}, {}, ["data/rows"], "the table has no mean of which higher or lower is better"),
        ({}, {"game": {"alpha": 0.8}}, (), "no row that could settle anything has a row of defense=none to be"),
        ({}, {"degenerate": ["no"]}, (), "no row that could settle anything has a row of defense=none to be"),
    ],
)
def test_a_table_without_differences_says_why(baseline, other, shown, why):
    def cells(defence, seeds=(0, 1, 2), **fields):
        fields = {"metrics": {"eval/accuracy": 0.8, "data/rows": 7.0}} | fields
        return [cell(defence=defence, seed=seed, **fields) for seed in seeds]

    table = Comparison.of([*cells("none", **baseline), *cells("rehearsal", **other)])
    table.shown = shown
    assert reading(table)[0].startswith(f"Nothing is settled: {why}")


def test_a_table_whose_baseline_is_several_rows_says_so():
    spins = [{"name": "spin", "ratio": ratio} for ratio in (0.1, 0.2)]
    cells = [cell(seed=s, defence="", config={"defense": d}) for s in (0, 1, 2) for d in ({"name": "none"}, *spins)]
    table = Comparison.of(cells, baseline=[Condition("defense.name", "=", ("spin",))])
    assert reading(table) == [
        "Nothing is settled: of defense=spin there are several rows that a row could be compared with."
    ]


def test_null_metric_counts_out_its_seed(tmp_path, capsys):
    values = [0.8, None, 0.6]
    compare([written(tmp_path, *(cell(seed=s, metrics={"eval/accuracy": v}) for s, v in enumerate(values)))])
    assert "(n=2)" in capsys.readouterr().out
    row = only(rows(tmp_path), metric="eval/accuracy")
    assert (row["n"], float(row["mean"]), row["completed"]) == ("2", pytest.approx(0.7), "3")


def test_counts_of_seeds_are_k_of_n(tmp_path, capsys):
    cells = [
        cell(
            seed=s,
            metrics={"privacy/accuracy_gap": 0.1, "privacy/below_tau": float(s > 0), "privacy/bound_holds": 1.0},
            degenerate=["says [always] no"] if s == 2 else [],
        )
        for s in range(3)
    ]
    failed = cell(seed=3, status="failed", error="NonFiniteLossError: loss\nis nan", metrics={}, id="feedfeedfeedfeed")
    compare([written(tmp_path, *cells, failed)])
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("adult")]
    assert line.split()[-4:] == ["3/4", "2/3", "3/3", "†1/3"]
    assert "† degenerate: adult, none: 1 of 3 seeds (2): says [always] no" in out
    assert "failed: feedfeedfeedfeed: adult, none, seed 3: NonFiniteLossError: loss is nan" in out
    row = only(rows(tmp_path), metric="privacy/accuracy_gap")
    assert (row["completed"], row["degenerate"], row["failed"]) == ("3", "1", "1")
    compare([tmp_path], metrics="privacy/below_tau,privacy/accuracy_gap")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("adult")]
    assert line.split()[-3:] == ["3/4", "2/3", "†1/3"]


def test_the_reason_of_one_degenerate_cell_is_told_of_that_cell_alone(tmp_path, capsys):
    shares = {11: "99.9 %", 0: "99.2 %", 2: "99.3 %"}
    cells = [cell(seed=s, degenerate=[f"{share} of one class"]) for s, share in shares.items()]
    cells += [cell("german", seed=s, degenerate=["constant"]) for s in (1, 0)]
    compare([written(tmp_path, *cells)])
    out = capsys.readouterr().out
    assert "† degenerate: adult, none: 3 of 3 seeds (0, 2, 11): seed 0: 99.2 % of one class\n" in out
    assert "† degenerate: german, none: 2 of 2 seeds (0, 1): constant\n" in out


def test_later_cell_of_the_same_config_and_seed_replaces_the_earlier(tmp_path, capsys):
    cells = [cell(metrics={"eval/accuracy": value}, id=name) for value, name in ((0.5, "old"), (0.9, "new"))]
    compare([written(tmp_path, *cells)])
    assert "left out: old" in capsys.readouterr().out
    row = only(rows(tmp_path), metric="eval/accuracy")
    assert (row["n"], row["mean"]) == ("1", "0.9")


def test_metrics_of_another_track_become_columns_and_the_rest_goes_to_the_csv(tmp_path, capsys, pictures):
    metrics = {
        "eval/fairness/awareness": 0.6,
        "eval/privacy/awareness": 0.7,
        "eval/utility/perplexity": 12.345,
        "edit/suppressed": 300,
    }
    compare([written(tmp_path, *(cell(seed=s, metrics=metrics) for s in range(2)))])
    head = capsys.readouterr().out.split("─")[0]
    assert "awareness ↑" in head
    assert "perplexity ↓" in head
    assert "suppressed" not in head
    assert {row["metric"] for row in rows(tmp_path)} == set(metrics)
    assert list((tmp_path / "plots").glob("*.svg"))


def test_unknown_metrics_are_shown_when_there_are_no_others(tmp_path, capsys, pictures):
    compare([written(tmp_path, cell(metrics={"edit/suppressed": 300}))])
    assert "edit/suppressed" in capsys.readouterr().out
    assert not (tmp_path / "plots").exists()


def test_nothing_is_cut_where_the_output_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    long = "a_defence_with_a_rather_long_name" * 3
    compare([written(tmp_path, cell(defence=long))])
    assert long in capsys.readouterr().out


@pytest.mark.parametrize(("columns", "whole"), [(160, True), (100, True), (80, True), (50, False)])
def test_table_fits_a_terminal_without_losing_a_number(tmp_path, capsys, monkeypatch, columns, whole):
    names = "eval/accuracy eval/balanced_accuracy fairness/equalized_odds_gap privacy/accuracy_gap"
    names += " privacy/balanced_accuracy_gap privacy/bound privacy/below_tau privacy/bound_holds"
    values = np.random.default_rng(0).uniform(0.1, 0.9, (3, 8)).round(3)
    cells = [
        cell(defence="fair_finetune", seed=s, metrics=dict(zip(names.split(), values[s], strict=True)))
        for s in range(3)
    ]
    gaps = names.split()[2:5]
    for result in cells:
        result.signed = {gap: [[result.metrics[gap]]] for gap in gaps}
        result.metrics |= {f"{gap}_floor": 0.123 for gap in gaps}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    compare([written(tmp_path, *cells)])
    out = capsys.readouterr().out
    table = out.split("mean ±")[0]
    assert (max(map(len, table.splitlines())) <= columns) == whole
    assert "…" not in table
    assert table.count("floor 0.123") + table.count("floor .123") == 3
    for i in (0, 2, 3, 4, 5):
        mean, half = values[:, i].mean(), stats.t.ppf(0.975, 2) * stats.sem(values[:, i])
        assert f"{mean:.3f}" in table
        shown = [f"±{half:.3f}"] if i in (0, 5) else [f"{max(0, mean - half):.3f}", f"{min(1, mean + half):.3f}"]
        for text in shown:
            assert text in table or text.replace("0.", ".", 1) in table


def test_every_dataset_and_game_is_a_setting_of_its_own():
    cells = [cell(d, f, game={"alpha": a}) for d in ("adult", "x y") for f in ("none", "scratch") for a in (0.7, 1)]
    found = {title: [g.defence for g in groups] for title, groups in Comparison.of(cells).settings.items()}
    titles = ["adult, game.alpha=0.7", "adult, game.alpha=1", "x y, game.alpha=0.7", "x y, game.alpha=1"]
    assert found == {title: ["none", "scratch"] for title in titles}


def test_pictures_hold_the_first_settings_and_say_so(tmp_path, capsys, pictures):
    written(tmp_path, *(cell(game={"alpha": alpha}) for alpha in (0.5, 0.6, 0.7, 0.8, 0.9)))
    compare([tmp_path])
    assert "plots/tradeoff holds 4 of 5 settings: choose with --where" in capsys.readouterr().out
    svg = (tmp_path / "plots" / "tradeoff.svg").read_text()
    assert "game.alpha=0.8" in svg
    assert "game.alpha=0.9" not in svg
    (tmp_path / "plots" / "attacks.png").write_text("of an earlier comparison")
    compare([tmp_path], where=["game.alpha>=0.9"])
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        f"tradeoff.{kind}" for kind in ("pdf", "png", "svg")
    ]
    assert "tradeoff holds" not in capsys.readouterr().out
    assert "adult" in (tmp_path / "plots" / "tradeoff.svg").read_text()


def test_same_results_give_the_same_files(tmp_path, pictures):
    written(tmp_path, *(cell(defence=d, seed=s) for d in ("none", "scratch") for s in range(2)))
    for out in ("a", "b"):
        compare([tmp_path / "cells"], tmp_path / out)
    for name in ("report.html", "table.csv", "plots/tradeoff.svg"):
        a, b = (re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", (tmp_path / out / name).read_text()) for out in "ab")
        assert a == b  # but for the minute at which the report was written


def test_only_failed_cells_still_give_a_report(tmp_path, capsys, pictures):
    assert compare([written(tmp_path, cell(status="failed", error="boom", metrics={}))]) == 0
    assert "boom" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


def test_bare_config_is_enough(tmp_path, capsys):
    compare([written(tmp_path, cell(config={"dataset": None, "defense": {}, "paths": None}))])
    assert "0.800" in capsys.readouterr().out


def test_no_results_at_all_is_an_input_error(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"no result .* truncated") as caught:
        compare([tmp_path])
    assert "\n" not in str(caught.value)


def test_unwritable_folder_is_an_input_error(tmp_path):
    written(tmp_path, cell())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        compare([tmp_path], tmp_path / "file" / "out")


def test_import_is_light():
    code = (
        "import sys, fairpriv.report.page\n"
        "heavy = 'torch lightning pandas numpy matplotlib rich jinja2 scipy omegaconf hydra wandb'.split()\n"
        "print(*(name for name in heavy if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_other_defences_keep_the_order_in_which_they_came():
    cells = [cell(dataset, defence) for dataset in ("adult", "compas") for defence in ("scratch", "none", "fair")]
    assert [g.defence for g in Comparison.of(cells).groups] == ["none", "scratch", "fair"] * 2


GRID = list(itertools.product(("adult", "compas"), ("none", "spin", "lora"), (0.7, 1.0), range(3)))


def grid(drop=(), **extra):
    """A full grid with random metrics, and the same by (dataset, defence, alpha, seed)."""
    rng = np.random.default_rng(1)
    found = {place: {"eval/accuracy": rng.uniform(), "privacy/accuracy_gap": rng.uniform()} for place in GRID}
    found = {place: metrics for place, metrics in found.items() if place not in drop}
    return [cell(d, f, s, metrics, {"alpha": a}, **extra) for (d, f, a, s), metrics in found.items()], found


def t_interval(values):
    mean, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [mean, max(0, mean - half), min(1, mean + half)]


def test_what_is_not_grouped_by_is_averaged_within_each_seed_first(tmp_path, capsys):
    cells, values = grid()
    compare([written(tmp_path, *cells)], by="defense")
    for defence in ("none", "spin", "lora"):
        by_seed = []
        for seed in range(3):
            chosen = [m["eval/accuracy"] for (_, f, _, s), m in values.items() if (f, s) == (defence, seed)]
            assert len(chosen) == 4
            by_seed.append(sum(chosen) / 4)
        row = only(rows(tmp_path), defense=defence, metric="eval/accuracy")
        assert [float(row[key]) for key in ("mean", "lo", "hi")] == pytest.approx(t_interval(by_seed))
        assert [row[key] for key in ("n", "seeds", "completed")] == ["3", "3", "12"]
        assert "dataset" not in row
    out = capsys.readouterr().out
    assert "3 (12 cells)" in out
    assert "averaged first" in out


def test_rows_and_columns_are_those_that_were_asked_for(tmp_path):
    cells, _ = grid()
    compare([written(tmp_path, *cells)], by="game.alpha,dataset,game.alpha")
    places = list(dict.fromkeys((row["game.alpha"], row["dataset"]) for row in rows(tmp_path)))
    assert places == [("0.7", "adult"), ("0.7", "compas"), ("1.0", "adult"), ("1.0", "compas")]


def test_seeds_and_keys_that_change_no_outcome_can_be_grouped_by(tmp_path):
    cells = [cell(seed=s, config={"sweep": name}) for s, name in enumerate(("a", "a", "b"))]
    compare([written(tmp_path, *cells)], by="sweep")
    assert [row["n"] for row in rows(tmp_path) if row["metric"] == "eval/accuracy"] == ["2", "1"]
    compare([tmp_path], by="seed")
    assert [row["seed"] for row in rows(tmp_path) if row["metric"] == "eval/accuracy"] == ["0", "1", "2"]


def test_seeds_with_different_cells_are_said_to_be_uneven(tmp_path, capsys):
    cells, _ = grid(drop=[("compas", "spin", 0.7, 2)])
    compare([written(tmp_path, *cells)], by="defense")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("uneven"))
    assert line.startswith("uneven: spin:")


@pytest.mark.parametrize("by", [None, "defense", "dataset,defense"])
def test_differences_to_a_named_baseline_are_paired_by_all_that_tells_cells_apart(tmp_path, by):
    cells, values = grid(drop=[("adult", "lora", 1.0, 0), ("compas", "spin", 0.7, 2)])
    compare([written(tmp_path, *cells)], by=by, baseline="defense=lora")
    checked = 0
    for row in rows(tmp_path):
        if row["metric"] != "eval/accuracy":
            continue
        pairs = {}
        for (d, f, a, s), here in values.items():
            for (d2, f2, a2, s2), there in values.items():
                same_row = (
                    f == row["defense"] and d == row.get("dataset", d) and str(a) == row.get("game.alpha", str(a))
                )
                if same_row and f != "lora" and f2 == "lora" and (d, a, s) == (d2, a2, s2):
                    pairs.setdefault(s, []).append(here["eval/accuracy"] - there["eval/accuracy"])
        got = [row["minus_baseline"], row["minus_baseline_lo"], row["minus_baseline_hi"], row["minus_baseline_n"]]
        if row["defense"] == "lora":
            assert got == ["", "", "", ""]
            continue
        means = [np.mean(differences) for differences in pairs.values()]
        lo, hi = stats.ttest_1samp(means, 0).confidence_interval(0.95)
        assert [float(x) for x in got] == pytest.approx([np.mean(means), max(-1, lo), min(1, hi), len(means)])
        checked += 1
    assert checked == {None: 8, "defense": 2, "dataset,defense": 4}[by]


def test_baseline_may_be_a_setting_of_the_same_defence(tmp_path):
    cells, values = grid()
    compare([written(tmp_path, *cells)], baseline="game.alpha=1")
    row = only(rows(tmp_path), dataset="adult", defense="spin", metric="eval/accuracy", **{"game.alpha": "0.7"})
    accuracy = [[values["adult", "spin", a, s]["eval/accuracy"] for s in range(3)] for a in (0.7, 1.0)]
    assert float(row["minus_baseline"]) == pytest.approx(np.mean(accuracy[0]) - np.mean(accuracy[1]))


def test_several_baselines_give_no_difference_and_a_line(tmp_path, capsys):
    cells = [
        cell(defence="none"),
        *(cell(defence="spin", config={"defense": {"name": "spin", "ratio": r}}) for r in (1, 2)),
    ]
    compare([written(tmp_path, *cells)], baseline="defense=spin")
    assert ": several fit the baseline defense=spin; say more" in capsys.readouterr().out
    assert {row["minus_baseline"] for row in rows(tmp_path)} == {""}
    compare([tmp_path], baseline="defense=spin,defense.ratio=2")
    assert only(rows(tmp_path), defense="none", metric="eval/accuracy")["minus_baseline"] == "0.0"


def test_best_means_are_marked_within_each_setting_by_direction_and_never_degenerate_ones(tmp_path, capsys):
    cells, values = grid()
    for result in cells:
        if result.config["dataset"]["name"] == "adult" and result.config["defense"]["name"] == "lora":
            result.degenerate = ["says yes"] if result.config["seed"] == 0 else []
    compare([written(tmp_path, *cells)])
    for dataset, alpha, metric in itertools.product(
        ("adult", "compas"), (0.7, 1.0), ("eval/accuracy", "privacy/accuracy_gap")
    ):
        means = {
            f: np.mean([values[dataset, f, alpha, s][metric] for s in range(3)])
            for f in ("none", "spin", "lora")
            if (dataset, f) != ("adult", "lora")
        }
        wanted = (max if metric == "eval/accuracy" else min)(means, key=means.get)
        place = {"dataset": dataset, "game.alpha": str(alpha), "metric": metric, "best": "1"}
        assert only(rows(tmp_path), **place)["defense"] == wanted
    assert len(re.findall(r"\d\*", capsys.readouterr().out)) == 8


def test_equal_means_are_all_best_unless_no_other_is_worse():
    metrics = {"none": (0.5, 0.2), "spin": (0.7, 0.2), "lora": (0.7, 0.2)}
    names = ("eval/accuracy", "privacy/accuracy_gap")
    table = Comparison.of(cell(defence=d, metrics=dict(zip(names, m, strict=True))) for d, m in metrics.items())
    assert {g.defence: g.best for g in table.groups} == {
        "none": set(),
        "spin": {"eval/accuracy"},
        "lora": {"eval/accuracy"},
    }


def test_front_of_named_metrics_is_marked_within_each_setting(tmp_path, capsys):
    rng = np.random.default_rng(2)
    metrics = ["eval/accuracy", "privacy/accuracy_gap", "attack/kl/leakage"]
    points = {(d, f"arm{i}"): rng.uniform(size=3) for d in ("adult", "compas") for i in range(12)}
    points |= {("adult", "trivial"): np.array([1.0, 0.0, 0.0])}
    cells = [
        cell(d, f, metrics=dict(zip(metrics, map(float, p), strict=True)), degenerate=["x"] if f == "trivial" else [])
        for (d, f), p in points.items()
    ]
    compare([written(tmp_path, *cells)], pareto=",".join(metrics))
    expected = set()
    for (d, f), (a, g, k) in points.items():
        better = [
            f2
            for (d2, f2), (a2, g2, k2) in points.items()
            if d2 == d and f2 not in (f, "trivial") and a2 >= a and g2 <= g and k2 <= k
        ]
        if not better and f != "trivial":
            expected.add((d, f))
    got = {(row["dataset"], row["defense"]) for row in rows(tmp_path) if row["front"] == "1"}
    assert got == expected
    assert 2 < len(got) < 24
    out = capsys.readouterr().out
    assert sum(line.endswith("yes") for line in out.splitlines()) == len(expected)


def test_a_row_that_lacks_a_metric_of_the_front_is_not_on_it():
    metrics = {"none": {"eval/accuracy": 0.8, "privacy/accuracy_gap": 0.1}, "spin": {"eval/accuracy": 0.9}}
    table = Comparison.of([cell(defence=d, metrics=m) for d, m in metrics.items()], pareto=[*metrics["none"]])
    assert {group.defence: group.on_front for group in table.groups} == {"none": True, "spin": False}


def test_columns_are_the_named_metrics_in_their_order(tmp_path, capsys):
    metrics = {"eval/accuracy": 0.8, "attack/kl/leakage": 0.1, "attack/loss_test/leakage": 0.2, "train/steps": 5.0}
    compare([written(tmp_path, cell(metrics=metrics))], metrics="train/steps,attack/*/leakage", form="markdown")
    heads = [head.strip(" ↑↓") for head in capsys.readouterr().out.splitlines()[0].split("|")]
    assert heads[3:6] == ["train/steps", "kl leakage", "loss test leakage"]
    assert "accuracy" not in " ".join(heads)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (["defense=spin"], lambda d, f, a, s: f == "spin"),
        (["defense=spin,none", "dataset=adult"], lambda d, f, a, s: f != "lora" and d == "adult"),
        (["defense=spin,dataset=adult"], lambda d, f, a, s: f == "spin" and d == "adult"),
        (["defense!=spin,lora"], lambda d, f, a, s: f == "none"),
        (["game.alpha=1"], lambda d, f, a, s: a == 1),
        (["game.alpha<1e0", "seed>=1"], lambda d, f, a, s: a < 1 and s >= 1),
    ],
)
def test_where_keeps_the_cells_that_fulfil_all(tmp_path, where, kept):
    cells, values = grid()
    compare([written(tmp_path, *cells)], where=where)
    got = sum(int(row["n"]) for row in rows(tmp_path) if row["metric"] == "eval/accuracy")
    assert got == sum(kept(*place) for place in values)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("dataset.path='a,b.csv'", "0"),
        ('dataset.path="a,b.csv"', "0"),
        ("dataset.path='a,b.csv',plain", "02"),
        ("dataset.path=plain,'a,b.csv'", "02"),
        ("dataset.path=O'Brien's, plain", "12"),
        ("dataset.path=plain,'<5, >9'", "23"),
        ('dataset.groups=["x, y",z]', "0"),
        ("dataset.groups=[z]", "123"),
        ("dataset.groups!=[z],seed=0", "0"),
    ],
)
def test_values_that_hold_commas_stand_in_quotes(tmp_path, where, kept):
    paths = ["a,b.csv", "O'Brien's", "plain", "<5, >9"]
    for i, path in enumerate(paths):
        groups = ["z"] if i else ["x, y", "z"]
        cell(seed=i, config={"dataset": {"name": "mine", "path": path, "groups": groups}}).write(tmp_path / f"{i}.json")
    compare([tmp_path], where=[where], by="seed")
    assert "".join(row["seed"] for row in rows(tmp_path) if row["metric"] == "eval/accuracy") == kept
    with pytest.raises(InputError, match=re.escape("""no cell is left; dataset.path is 'a,b.csv', O'Brien's, plain""")):
        compare([tmp_path], where=["dataset.path=a,b.csv"])


def test_metrics_are_named_by_their_whole_names_whatever_these_hold(tmp_path, capsys):
    metrics = {"of/a, b": 0.1, "of/[a]": 0.2, "of/a": 0.3}
    better = {name: Metric(name, better="less") for name in metrics}
    written(tmp_path, cell(metrics=metrics, described=better))
    compare([tmp_path], metrics="'of/a, b',of/[a]", pareto="'of/a, b',of/a", form="markdown")
    heads = [head.strip(" ↑↓") for head in capsys.readouterr().out.splitlines()[0].split("|")]
    assert heads[3:5] == ["of/a, b", r"of/\[a\]"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"where": ["defence=none"]}, "--where defence: no cell has that config key (did you mean 'defense'?)"),
        ({"where": ["game.alhpa=1"]}, "--where game.alhpa: no cell has that config key (did you mean 'game.alpha'?)"),
        ({"where": ["game=1"]}, "--where game: is a section of the config; name a key in it, such as game.alpha"),
        ({"where": ["defense"]}, "--where 'defense': is no condition; write key=value"),
        ({"where": ["game.alpha<high"]}, "--where 'game.alpha<high': < goes with a number, not 'high'"),
        ({"where": ["defense=dora"]}, "--where defense=dora: no cell is left; defense is none, spin, lora"),
        ({"where": ["defense=spin", "defense=lora"]}, "--where defense=spin --where defense=lora: no cell is left"),
        ({"by": "dataset,modle"}, "--by modle: no cell has that config key (did you mean 'model'?)"),
        ({"baseline": "defens=none"}, "--baseline defens: no cell has that config key (did you mean 'defense'?)"),
        (
            {"baseline": "defense=dora"},
            "--baseline defense=dora: no cell is left to compare with; defense is none, spin",
        ),
        (
            {"baseline": "defense=none,seed=0"},
            "--baseline seed=0: differences are within a seed: choose seeds by --where",
        ),
        (
            {"where": ["defense=spin"], "baseline": "defense=none"},
            "--baseline defense=none: no cell is left to compare with; defense is spin",
        ),
        (
            {"pareto": "eval/acuracy,privacy/accuracy_gap"},
            "--pareto eval/acuracy: no cell has that metric (did you mean 'eval/accuracy'?)",
        ),
        ({"pareto": "eval/accuracy"}, "--pareto eval/accuracy: needs two metrics"),
        ({"pareto": "eval/accuracy,eval/accuracy"}, "needs two metrics"),
        ({"pareto": "eval/accuracy,train/steps"}, "--pareto train/steps: has no direction"),
        ({"pareto": "eval/accuracy,attack/kl/auc"}, "being better: use attack/kl/leakage"),
        (
            {"metrics": "attack/*/auc,eval/acuracy"},
            "--metrics eval/acuracy: no cell has such a metric (did you mean",
        ),
        ({"form": "htm"}, "--format htm: must be one of table, csv, markdown, html (did you mean 'html'?)"),
    ],
)
def test_wrong_options_get_one_line_that_says_what_would_be_right(tmp_path, options, text):
    cells, _ = grid()
    cells[0].metrics |= {"train/steps": 5.0, "attack/kl/auc": 0.6}
    written(tmp_path, *cells)
    with pytest.raises(InputError) as caught:
        compare([tmp_path], **options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "table.csv").exists()


def test_csv_and_html_are_printed_alone_and_are_the_files(tmp_path, capsys):
    cells, _ = grid()
    written(tmp_path, *cells)
    for form, name in (("csv", "table.csv"), ("html", "report.html")):
        compare([tmp_path], form=form)
        printed = capsys.readouterr()
        assert printed.out == (tmp_path / name).read_text()
        assert f"report: {tmp_path / 'report.html'}" in printed.err
        assert "t interval over seeds" in printed.err


def test_markdown_is_one_table_whose_names_cannot_break_it(tmp_path, capsys):
    hostile = "a|b *c* <b>\nd`"
    cells = [
        cell(hostile, f, s, {"eval/accuracy": v + s / 10}) for f, v in (("none", 0.2), ("spin", 0.5)) for s in (0, 1, 2)
    ]
    compare([written(tmp_path, *cells)], form="markdown")
    head, rule, *lines = capsys.readouterr().out.splitlines()
    assert head == "| dataset | defence | accuracy ↑ | seeds |"
    assert rule == "|---|---|---:|---:|"
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    name = r"a\|b \*c\* &lt;b&gt; d\`"
    assert lines[:3] == [
        f"| {name} | none | 0.300 ±{half:.3f} | 3 |",
        rf"| {name} | spin | 0.600\* ±{half:.3f} | 3 |",
        "",
    ]
    assert all(line.startswith("- ") for line in lines[3:])


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    compare([written(tmp_path, cell(defence="\x1b[31mred\x07"), cell(status="failed", error="\x1b[2J", metrics={}))])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[31mred" in out


def test_a_metric_that_cells_describe_otherwise_is_described_as_holds_for_all():
    narrow, wide = (
        Metric("mine/x", better="less", low=0.0, high=1.0),
        Metric("mine/x", better="less", low=0.0, high=3.0),
    )
    cells = [cell(seed=s, metrics={"mine/x": 0.5}, described={"mine/x": m}) for s, m in enumerate((narrow, wide))]
    for order in (cells, cells[::-1]):
        assert Comparison.of(order).described["mine/x"].limits() == (0, 3)
    later = cell(seed=2, status="failed", metrics={"mine/x": 0.5}, described={"mine/x": replace(wide, high=9.0)})
    assert described([*cells, later])["mine/x"].limits() == (0, 3)


def test_cells_of_different_code_are_told(tmp_path, capsys):
    commits = [{"commit": "a" * 40, "dirty": False}, {"commit": "a" * 40, "dirty": True}, None]
    cells = [cell(seed=s, git=g, versions={"fairpriv": "1.0"}) for s, g in enumerate(commits)]
    table = Comparison.of([*cells, cell(defence="spin", git=commits[0])])
    assert [len(group.codes) for group in table.groups] == [3, 3]  # spin is one itself, and is compared with three
    compare([written(tmp_path, *cells)])
    counts = "aaaaaaaaaaaa (1), aaaaaaaaaaaa with changes (1), fairpriv 1.0, no commit recorded (1)"
    assert f"code: the cells come from 3 versions: {counts}" in capsys.readouterr().out
    compare([written(tmp_path / "same", cells[0], cell(seed=1, git=commits[0]))])
    assert "code:" not in capsys.readouterr().out


def test_cells_of_different_processors_are_told(tmp_path, capsys):
    cells = [cell(seed=s, versions={"processor": name}) for s, name in enumerate(("EPYC", "Xeon", "EPYC"))]
    compare([written(tmp_path, *cells)])
    told = "processor: the same cell may give other numbers on another: EPYC (2), Xeon (1)"
    assert told in capsys.readouterr().out
    compare([written(tmp_path / "same", cells[0], cells[2])])
    assert "processor" not in capsys.readouterr().out


def test_result_of_another_schema_version_is_named_and_left_out(tmp_path, capsys):
    written(tmp_path, cell(), cell(seed=1))
    other = tmp_path / "cells" / "1" / "result.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"schema_version": 99}))
    compare([tmp_path])
    assert f"skipped: {other}: schema version 99; this fairpriv reads 1" in capsys.readouterr().out
    assert only(rows(tmp_path), metric="eval/accuracy")["n"] == "1"


def test_a_folder_without_rights_is_named_and_left_out(tmp_path, capsys, monkeypatch):
    written(tmp_path, cell(), cell(seed=1))
    sweep = tmp_path / "sweeps" / "all"
    sweep.mkdir(parents=True)
    (sweep / "cells.txt").write_text("0\n1\n")
    hidden, scan, stat = tmp_path / "cells" / "1", os.scandir, Path.stat

    def refused(what, place, **options):
        if hidden in (Path(place), *Path(place).parents[:1]) and (what is scan or Path(place) != hidden):
            raise PermissionError(13, "Permission denied", str(place))
        return what(place, **options)

    monkeypatch.setattr(os, "scandir", lambda place=".": refused(scan, place))
    monkeypatch.setattr(Path, "stat", lambda place, **options: refused(stat, place, **options))
    for folder, named in ((tmp_path / "cells", hidden), (sweep, hidden / "result.json")):
        compare([folder], tmp_path / "out")
        assert f"skipped: {named}: cannot be read: " in capsys.readouterr().out
        assert only(rows(tmp_path / "out"), metric="eval/accuracy")["n"] == "1"


def test_any_number_of_folders_is_one_comparison(tmp_path, capsys):
    cells, _ = grid()
    folders = [written(tmp_path / str(i), result) for i, result in enumerate(cells)]
    compare([*folders, folders[0]], tmp_path / "out")
    assert len([row for row in rows(tmp_path / "out") if row["metric"] == "eval/accuracy"]) == 12


def test_dimensions_with_scores_of_their_own_are_axes_beside_awareness():
    metrics = {
        "eval/bbq/score": 0.4,
        "eval/fairness/awareness": 0.6,
        "eval/bbq/accuracy": 0.4,
        "eval/bbq/score/Age": 0.3,
    }
    table = Comparison.of([cell(metrics=metrics)])
    assert table.panels == [("eval/bbq/score", "eval/fairness/awareness")]
    assert [metric.title for metric in table.columns.values()] == ["fairness awareness", "bbq score"]


def test_baseline_conditions_hold_for_groups_of_a_comparison():
    cells, _ = grid()
    table = Comparison.of(cells, baseline=[Condition("defense.name", "=", ("spin",))])
    assert {g.defence for g in table.groups if g.differences} == {"none", "lora"}


def test_command_line_takes_the_options_in_any_place(tmp_path, capsys):
    cells, _ = grid()
    written(tmp_path, *cells)
    words = ["--where", "defense=spin,lora", "--where=game.alpha=1", "--baseline", "defense=lora", "--by=defense"]
    words += ["--pareto", "eval/accuracy,privacy/accuracy_gap", "--format=csv", "--out", str(tmp_path / "out")]
    assert dispatch(["compare", *words[:5], str(tmp_path), *words[5:]]) == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "table.csv").read_text()
    found = {
        (row["defense"], row["n"], row["minus_baseline"] != "", row["front"] != "") for row in rows(tmp_path / "out")
    }
    assert found == {("spin", "3", True, True), ("lora", "3", False, True)}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--wher", "a=b"], "compare: unexpected --wher .did you mean '--where'"),
        (["--where"], "argument --where: expected one argument"),
        (["--by", "a", "--by", "b"], "argument --by: is given twice"),
    ],
)
def test_command_line_says_which_options_there_are(tmp_path, words, text):
    with pytest.raises(InputError, match=text):
        dispatch(["compare", str(tmp_path), *words])


def nested(depth):
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"metrics": {"eval/accuracy": 1.7}, "described": {"eval/accuracy": {"low": 0, "high": 1}}},
            "eval/accuracy is 1.7, outside its range [0, 1]: damaged",
        ),
        ({"metrics": {"eval/accuracy": 1e200}}, "eval/accuracy is 1e+200: too large to compute with"),
        ({"metrics": {"eval/accuracy": -(10**400)}}, "metrics should be a mapping of names to numbers"),
        ({"intervals": {"eval/accuracy": [0.1, 1e300]}}, "eval/accuracy is 1e+300: too large"),
        ({"signed": {"privacy/accuracy_gap": [[1e160]]}}, "privacy/accuracy_gap is 1e+160: too large"),
        ({"overlap": 1e250}, "overlap is 1e+250: too large"),
        ({"seconds": {"data": 10**400}}, "seconds should be a mapping"),
        ({"config": {"seed": 10**400}}, "its config holds a whole number that is too large"),
        ({"config": {"dataset": {"name": "adult"}, "more": [{"a": 10**400}]}}, "a whole number that is too large"),
        ({"config": {"more": nested(200)}}, "nested more than 100 levels deep"),
        ({"device": "x" * 9_000_000}, "9 MB: no result is that large"),
    ],
)
def test_one_result_of_absurd_numbers_is_named_and_the_rest_shown(tmp_path, capsys, changes, why):
    written(tmp_path, cell(seed=0), cell(seed=1))
    document = json.loads((tmp_path / "cells" / "0" / "result.json").read_text()) | {"id": "f" * 16} | changes
    path = tmp_path / "odd" / "result.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    assert compare([tmp_path]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith(f"skipped: {path}: ") and why in line]) == 1
    assert only(rows(tmp_path), metric="eval/accuracy")["n"] == "2"
    assert max(map(len, out.splitlines())) < 400


def test_a_large_file_that_is_no_result_is_passed_over(tmp_path, capsys):
    written(tmp_path, cell())
    (tmp_path / "package.json").write_text(json.dumps(["x" * 9_000_000]))
    compare([tmp_path])
    assert "skipped" not in capsys.readouterr().out


def test_a_spreadsheet_finds_no_formula_in_the_table(tmp_path):
    names = ["=1+1", "+cmd|' /C calc'!A0", "-cmd", "-@SUM(A1)", "@SUM(A1)", " =1+1", "\t=1", "-1.5", "plain"]
    odd = {"=HYPERLINK(1)": 0.5, "@x": 0.5}
    written(tmp_path, *(cell(dataset=name, metrics=odd) for name in names))
    compare([tmp_path])
    table = rows(tmp_path)
    assert {row["metric"] for row in table} == {"'=HYPERLINK(1)", "'@x"}
    found = {row["dataset"] for row in table}
    assert {"-1.5", "plain", "'=1+1", "'-@SUM(A1)", "'-cmd"} <= found
    assert [text for text in found if text.strip()[0] in "=+-@"] == ["-1.5"]
