"""The game's plots: where a gap stands to the bound, and which figures are drawn."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fairpriv.identity import content_hash
from fairpriv.report.comparison import Comparison
from fairpriv.report.finding import find_results
from fairpriv.report.game_plots import (
    NOT_COVERED,
    advantage_figure,
    attack_figure,
    bound_figure,
    membership_figure,
    standing,
)
from fairpriv.report.page import compare
from fairpriv.result import Result


def cell(
    alpha=1.0, seed=0, gap=0.1, balanced=0.02, delta=0.2, weight=0.5, bound=0.12, intervals=None, **extra
) -> Result:
    config = {
        "seed": seed,
        "dataset": {"name": "adult"},
        "defense": {"name": "none"},
        "model": {"name": "mlp"},
        "game": {"alpha": alpha},
    }
    metrics = {
        "eval/accuracy": 0.8,
        "privacy/accuracy_gap": gap,
        "privacy/balanced_accuracy_gap": balanced,
        "fairness/equalized_odds_gap": delta,
        "privacy/shift_weight": weight,
        "privacy/bound": bound,
        "attack/kl/advantage": alpha - 0.5,
        **extra,
    }
    return Result(content_hash(config), "completed", config, metrics, intervals=intervals or {})


def rates(delta, bound):
    return {"fairness/equalized_odds_gap": [0.1, delta], "privacy/bound": [0.05, bound]}


@pytest.mark.parametrize(
    ("gap", "intervals", "expected"),
    [
        (0.09, {}, "under the diagonal"),
        (0.2, {}, "over it: sampling error"),
        (0.2, {"privacy/accuracy_gap": [0.12, 0.25]}, "over it: sampling error"),  # without an interval of the rates
        (0.2, {"privacy/accuracy_gap": [0.12, 0.25], **rates(0.25, 0.5)}, "over it: sampling error"),
        (0.2, {"privacy/accuracy_gap": [0.14, 0.25], **rates(0.25, 0.14)}, "over it: label shift"),
        (0.2, {"privacy/accuracy_gap": [0.14, 0.25], **rates(0.25, 0.13)}, "over it: refuted"),
    ],
)
def test_an_accuracy_gap_contradicts_the_diagonal_by_intervals_and_is_then_explained_by_label_shift(
    gap, intervals, expected
):
    """The weight is 0.5, so that rates up to 0.25 reach up to 0.125."""
    assert standing(cell(gap=gap, intervals=intervals), "privacy/accuracy_gap") == expected


@pytest.mark.parametrize(
    ("least", "expected"), [(0.19, "over it: sampling error"), (0.21, "over it: refuted")]
)  # delta's upper end 0.4 times the weight 0.5
def test_a_balanced_gap_has_no_label_shift_to_hide_behind(least, expected):
    intervals = {"privacy/balanced_accuracy_gap": [least, 0.5], "fairness/equalized_odds_gap": [0.1, 0.4]}
    assert standing(cell(balanced=0.3, intervals=intervals), "privacy/balanced_accuracy_gap") == expected


def test_the_stored_cells_that_contradict_the_plain_form_are_counted_by_intervals():
    results, _ = find_results([Path(__file__).parents[2] / "experiments" / "bound" / "results"])
    kinds = Counter(standing(result, "privacy/accuracy_gap") for result in results)
    # by hand: the estimates alone would count 210 cells against the plain form
    over = [
        r
        for r in results
        if r.metrics["privacy/accuracy_gap"]
        > r.metrics["fairness/equalized_odds_gap"] * r.metrics["privacy/shift_weight"]
    ]
    assert (len(results), len(over)) == (405, 210)
    assert kinds == {"under the diagonal": 195, "over it: sampling error": 201, "over it: label shift": 9}
    panel = bound_figure(Comparison.of(results)).axes[0]
    told = [text.get_text() for text in panel.texts]
    assert any(text.startswith("9 of 405 cells contradict the diagonal by their intervals") for text in told)


def test_mixtures_are_drawn_with_what_the_bound_does_not_cover():
    table = Comparison.of([cell(alpha, seed) for alpha in (0.5, 1.0) for seed in (0, 1)])
    figure = bound_figure(table)
    assert figure is not None
    assert NOT_COVERED in [text.get_text() for text in figure.texts]
    points = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "o")
    assert points == 4


def test_advantage_is_drawn_against_alpha():
    figure = advantage_figure(Comparison.of([cell(alpha, seed) for alpha in (1.0, 0.5, 0.75) for seed in (0, 1)]))
    assert figure is not None
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "kl")
    assert list(line.get_xdata()) == [0.5, 0.75, 1.0]
    assert list(line.get_ydata()) == [0.0, 0.25, 0.5]


def test_a_defence_of_one_alpha_is_drawn_there_on_the_axis_of_the_others():
    attacks = {"attack/kl/leakage": 0.2, "attack/meta_classifier/leakage": 0.1}
    cells = [cell(alpha, **attacks) for alpha in (0.5, 0.8, 1.0)]
    alone = cell(1.0, **attacks)
    alone.config["defense"] = {"name": "rehearsal"}
    figure = advantage_figure(Comparison.of([*cells, alone]))
    assert figure is not None
    left, right = figure.axes
    assert right.get_title(loc="left") == "adult, rehearsal"
    assert [*right.get_xticks()] == [*left.get_xticks()] == [0.5, 0.8, 1.0]
    assert right.get_xlim() == left.get_xlim()


def test_leakage_is_drawn_against_alpha_with_what_nothing_looks_like():
    cells = [
        cell(alpha, seed, **{"attack/kl/leakage": max(alpha - 0.55, 0.03)})
        for alpha in (1.0, 0.5, 0.75)
        for seed in (0, 1)
    ]
    axes = advantage_figure(Comparison.of(cells)).axes[0]
    (line,) = (line for line in axes.lines if line.get_label() == "kl")
    assert list(line.get_ydata()) == pytest.approx([0.03, 0.2, 0.45])
    assert axes.get_ylabel() == "leakage (0: guessing)"
    (null,) = (line for line in axes.lines if line.get_linestyle() == ":")
    assert set(null.get_ydata()) == {0.03}


def test_leakage_is_a_heat_map_in_which_alpha_one_half_is_a_row():
    def leaks(alpha, defence="none", **leakage):
        found = cell(alpha, **{f"attack/{name}/leakage": value for name, value in leakage.items()})
        found.config["defense"] = {"name": defence}
        return found

    cells = [leaks(1.0, kl=0.4, loss_test=0.1), leaks(0.5, kl=0.02, loss_test=0.03), leaks(1.0, "scratch", kl=0.01)]
    cells[2].control = "no world"
    axes = attack_figure(Comparison.of(cells)).axes[0]
    names = ["none, alpha 0.5: nothing", "none", "scratch (control)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert axes.images[0].get_clim() == (0, 0.5)
    assert [text.get_text() for text in axes.texts] == ["0.02", "0.03", "0.40", "0.10", "0.01"]
    assert attack_figure(Comparison.of([*cells, leaks(0.8, kl=0.2)])) is None


def test_attacks_are_a_heat_map_with_intervals_in_its_fields_but_for_two_seeds_which_cannot_tell():
    both = {"attack/kl/accuracy": 0.9, "attack/loss_test/accuracy": 0.5}
    texts = {2: ["0.90", "0.50"], 3: ["0.90 [0.90, 0.90]", "0.50 [0.50, 0.50]"]}
    for seeds, told in texts.items():
        figure = attack_figure(Comparison.of([cell(1.0, seed, **both) for seed in range(seeds)]))
        assert figure is not None
        assert [text.get_text() for text in figure.axes[0].texts] == told
    assert figure.axes[0].images[0].get_array().tolist() == [[0.9, 0.5]]
    assert attack_figure(Comparison.of([cell(1.0)])) is None  # one attack
    assert attack_figure(Comparison.of([cell(alpha, **both) for alpha in (0.8, 1.0)])) is None


def test_one_alpha_tests_no_bound_and_draws_none():
    table = Comparison.of([cell(1.0, seed) for seed in (0, 1)])
    assert bound_figure(table) is None
    assert advantage_figure(table) is None


def test_the_report_holds_the_games_plots(tmp_path, capsys):
    for i, alpha in enumerate((0.5, 1.0)):
        cell(alpha).write(tmp_path / str(i) / "result.json")
    compare([tmp_path])
    assert {"bound.png", "bound.svg", "advantage.svg"} <= {path.name for path in (tmp_path / "plots").iterdir()}
    report = (tmp_path / "report.html").read_text()
    assert "It bounds no adversary" in report
    assert "advantage (0: guessing)" in report


def test_membership_at_low_rates_is_drawn_beside_what_privacy_allows():
    found = {"eval/membership/lira_tpr_at_1": 0.03, "eval/membership/lira_tpr_at_0.1": 0.01}
    open_, private = (cell(seed=seed, **found) for seed in (0, 1))
    private.config["defense"] = {"name": "dp_sgd_own"}
    private.metrics |= {"eval/membership/tpr_bound_at_1": 0.2, "eval/membership/tpr_bound_at_0.1": 0.02}
    (ax,) = membership_figure(Comparison.of([open_, private])).axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    bound = lines.pop("dp_sgd_own: bound by epsilon")
    assert [*bound.get_xdata()] == [0.001, 0.01]
    assert [*bound.get_ydata()] == [0.02, 0.2]
    assert set(lines) == {"guessing", "none", "dp_sgd_own"}
    assert sorted(lines["none"].get_ydata()) == [0.01, 0.03]
    assert membership_figure(Comparison.of([cell()])) is None


@pytest.mark.parametrize("rate", [0.0007, 0.001, 0.003, 0.01])
def test_guessing_stands_at_its_rate_on_the_drawn_axes(rate):
    found = {"eval/membership/lira_tpr_at_1": 0.03, "eval/membership/lira_tpr_at_0.1": 0.01}
    (ax,) = membership_figure(Comparison.of([cell(**found)])).axes
    (guessing,) = (line for line in ax.get_lines() if line.get_label() == "guessing")
    drawn = ax.transData.transform(guessing.get_xydata())
    at = ax.transData.transform((rate, rate))
    assert np.interp(at[0], *drawn.T) == pytest.approx(at[1], abs=0.2)  # of a pixel
