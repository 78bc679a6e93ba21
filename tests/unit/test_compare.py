import csv
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from fairpriv.errors import InputError
from fairpriv.tracking.compare import compare
from fairpriv.tracking.comparison import Comparison, Estimate, direction, value_range
from fairpriv.tracking.identity import content_hash
from fairpriv.tracking.result import Result
from fairpriv.tracking.tradeoff import pareto_front


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


def test_interval_of_a_rate_stays_in_its_range():
    estimate = Estimate.of([0.0, 0.2], value_range("privacy/accuracy_gap"))
    assert (estimate.lo, estimate.hi) == (0.0, 1.0)
    assert Estimate.of([0.9, 1.1], value_range("privacy/bound")).hi > 1


def test_one_seed_shows_the_cells_own_interval(tmp_path, capsys):
    written(tmp_path, cell(intervals={"eval/accuracy": [0.71, 0.83]}))
    compare([tmp_path])
    out = capsys.readouterr().out
    assert "0.800 [0.710, 0.830]" in out
    assert "one seed" in out
    row = only(rows(tmp_path), metric="eval/accuracy")
    assert (row["n"], row["lo"], row["hi"], row["interval"]) == ("1", "0.71", "0.83", "one cell")
    assert only(rows(tmp_path), metric="privacy/accuracy_gap")["interval"] == ""


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("eval/accuracy", 1),
        ("eval/balanced_accuracy", 1),
        ("eval/accuracy_world0", 1),
        ("eval/privacy/awareness", 1),
        ("eval/utility/boolq", 1),
        ("eval/utility/perplexity", -1),
        ("eval/privacy/over_refusal", -1),
        ("fairness/equalized_odds_gap", -1),
        ("privacy/accuracy_gap", -1),
        ("privacy/bound", -1),
        ("attack/loss_test/accuracy", -1),
        ("privacy/shift_weight", 0),
        ("privacy/bound_holds", 0),
        ("edit/suppressed", 0),
    ],
)
def test_direction_follows_from_the_name(metric, expected):
    assert direction(metric) == expected


@pytest.mark.parametrize("better", [(1, -1), (1, 1), (-1, -1)])
def test_pareto_front_agrees_with_a_double_loop(better):
    points = [tuple(point) for point in np.random.default_rng(0).integers(0, 8, (40, 2)).tolist()]
    expected = []
    for i, p in enumerate(points):
        dominated = False
        for q in points:
            no_worse = all(b * (v - u) >= 0 for u, v, b in zip(p, q, better, strict=True))
            dominated |= no_worse and q != p
        if not dominated:
            expected.append(i)
    assert pareto_front(points, better) == expected


def test_cells_that_differ_only_in_seed_are_one_row():
    elsewhere = cell(
        seed=2,
        paths={"root": "/there", "data": "/data"},
        config={"dataset": {"name": "adult", "folder": "/data/adult"}},
    )
    here = [cell(seed=s, config={"dataset": {"name": "adult", "folder": "/here/data/adult"}}) for s in (0, 1)]
    table = Comparison.of([*here, elsewhere, cell(seed=3, defence="scratch")])
    assert [(group.defence, len(group.completed)) for group in table.groups] == [("none", 3), ("scratch", 1)]


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
        assert row["minus_none_n"] == "2"
        got = [float(row[name]) for name in ("minus_none", "minus_none_lo", "minus_none_hi")]
        assert got == pytest.approx([np.mean(here) - np.mean(there), max(-1, lo), min(1, hi)])
        assert only(rows(tmp_path), defense="none", **{"game.alpha": str(alpha)})["minus_none"] == ""


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


def test_later_cell_of_the_same_config_and_seed_replaces_the_earlier(tmp_path, capsys):
    cells = [cell(metrics={"eval/accuracy": value}, id=name) for value, name in ((0.5, "old"), (0.9, "new"))]
    compare([written(tmp_path, *cells)])
    assert "left out: old" in capsys.readouterr().out
    row = only(rows(tmp_path), metric="eval/accuracy")
    assert (row["n"], row["mean"]) == ("1", "0.9")


def test_metrics_of_another_track_become_columns_and_the_rest_goes_to_the_csv(tmp_path, capsys):
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


def test_unknown_metrics_are_shown_when_there_are_no_others(tmp_path, capsys):
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
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    compare([written(tmp_path, *cells)])
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    table = out.split("mean ±")[0]
    assert (max(map(len, table.splitlines())) <= columns) == whole
    assert "…" not in table
    for i in (0, 2, 3, 4, 5):
        mean, half = values[:, i].mean(), stats.t.ppf(0.975, 2) * stats.sem(values[:, i])
        assert f"{mean:.3f}" in table
        assert f"±{half:.3f}" in table or f"±{f'{half:.3f}'.lstrip('0')}" in table


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]

    def handle_data(self, data):
        self.words.append(data)


HOSTILE = "<script>alert('$x_1$')</script>"


def test_report_is_self_contained_and_escapes_what_it_shows(tmp_path):
    cells = [
        cell(
            HOSTILE,
            HOSTILE if defence else "none",
            seed,
            config={"note": {HOSTILE: HOSTILE}},
            degenerate=[HOSTILE],
            artifacts={HOSTILE: HOSTILE},
            versions={HOSTILE: HOSTILE},
            device=HOSTILE,
        )
        for defence in (0, 1)
        for seed in (0, 1)
    ]
    failed = cell(HOSTILE, "failing", metrics={}, status="failed", error=HOSTILE)
    written(tmp_path, *cells, failed)
    (tmp_path / "<img src=x>").mkdir()
    (tmp_path / "<img src=x>" / "result.json").write_text("{")
    compare([tmp_path])
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "svg" in page.tags
    assert not {"script", "iframe", "object", "embed", "img", "link"} & set(page.tags)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert "".join(page.words).count(HOSTILE) > 10
    for svg in (tmp_path / "plots").glob("*.svg"):
        assert "<script" not in svg.read_text()
        assert HOSTILE in Page(svg.read_text()).words


def test_report_names_what_the_means_leave_out_and_shows_every_cell(tmp_path):
    written(tmp_path, *(cell(seed=s) for s in range(2)), cell(seed=2, status="failed", error="boom", metrics={}))
    (tmp_path / "result.json").write_text("{")
    compare([tmp_path], tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    text = " ".join(" ".join(page.words).split())
    assert "seed 2: boom" in text
    assert "skipped: " + str((tmp_path / "result.json").resolve()) in text
    assert page.tags.count("details") == 3
    assert "bounds no adversary" not in text  # no bound among the metrics, so nothing is said of it
    for words in ("base rates", "game.tau", "dataset.target target of adult"):
        assert words in text


def test_report_says_what_the_bound_does_not_bound(tmp_path):
    compare([written(tmp_path, cell(metrics={"privacy/bound": 0.2}))])
    text = (tmp_path / "report.html").read_text()
    assert "bounds no adversary" in text
    assert "W = 1" in text


def test_every_dataset_and_game_has_its_own_trade_off(tmp_path):
    cells = [cell(d, f, game={"alpha": a}) for d in ("adult", "x y") for f in ("none", "scratch") for a in (0.7, 1)]
    compare([written(tmp_path, *cells)])
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "tradeoff-adult-game.alpha=0.7.svg",
        "tradeoff-adult-game.alpha=1.svg",
        "tradeoff-x-y-game.alpha=0.7.svg",
        "tradeoff-x-y-game.alpha=1.svg",
        "tradeoff.png",
    ]


def test_same_results_give_the_same_files(tmp_path):
    written(tmp_path, *(cell(defence=d, seed=s) for d in ("none", "scratch") for s in range(2)))
    for out in ("a", "b"):
        compare([tmp_path / "cells"], tmp_path / out)
    for name in ("report.html", "table.csv", "plots/tradeoff-adult.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_only_failed_cells_still_give_a_report(tmp_path, capsys):
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
        "import sys, fairpriv.tracking.compare\n"
        "heavy = 'torch lightning pandas numpy matplotlib rich jinja2 scipy omegaconf hydra wandb'.split()\n"
        "print(*(name for name in heavy if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_other_defences_keep_the_order_in_which_they_came():
    cells = [cell(dataset, defence) for dataset in ("adult", "compas") for defence in ("scratch", "none", "fair")]
    assert [g.defence for g in Comparison.of(cells).groups] == ["none", "scratch", "fair"] * 2
