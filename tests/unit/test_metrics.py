"""What a measured number means is declared beside what measures it, and goes with it into the result."""

import json
import math
import re

import pytest
import torch

from fairpriv.errors import InputError
from fairpriv.metrics import Measured, Metric, read_metric
from fairpriv.result import Result

DEPTH = Metric("probe/{layer}/depth", "depth of {layer}", "How deep {layer} goes.", "metres", "less", low=0.0)


def result(**changed):
    return Result(**{"id": "a" * 16, "status": "completed", "config": {}, "metrics": {}} | changed)


def test_words_in_braces_are_filled_in_and_labels_have_blanks():
    metric = DEPTH.named(layer="first_one")
    assert (metric.name, metric.label) == ("probe/first_one/depth", "depth of first one")
    assert metric.meaning == "How deep first_one goes."


def test_parts_are_joined_and_their_parents_stay_as_they_were():
    one = Metric("a").of(1, (0, 2), signed=[[1.0]])
    both = one | Metric("b", better="less").of(2) | Measured(degenerate=["trivial"])
    assert both.metrics == {"a": 1.0, "b": 2.0}
    assert both.intervals == {"a": (0.0, 2.0)}
    assert both.signed == {"a": [[1.0]]}
    assert both.degenerate == ["trivial"]
    assert both.described["b"].sign == -1
    assert one.metrics == {"a": 1.0}


def test_a_metric_that_two_parts_have_measured_is_named():
    with pytest.raises(InputError, match="b: measured twice; give one of the two another name"):
        Metric("b").of(1) | Metric("b").of(1)
    twice = Measured(dict.fromkeys("hdgafbec", 1.0))
    with pytest.raises(InputError, match="a, b, c, d, e, f, g, h: measured twice"):
        twice | twice
    found = result()
    found.add(Metric("b").of(1))
    with pytest.raises(InputError, match="b: measured twice; give one of the two another name"):
        found.add(Metric("b").of(2))


def test_a_floor_is_a_metric_of_its_own_in_the_same_range_and_never_better():
    found = Metric("gap", "gap", better="less", low=0.0, high=1.0).of(0.3, floor=0.1)
    assert found.metrics == {"gap": 0.3, "gap_floor": 0.1}
    assert found.described["gap_floor"].sign == 0
    assert found.described["gap_floor"].limits() == (0, 1)


def test_a_range_that_a_value_contradicts_does_not_hold():
    metric = Metric("sum", low=0.0, high=1.0)
    assert metric.limits([0.2, 0.9]) == (0, 1)
    assert metric.limits([0.2, 1.6]) == (0, math.inf)
    assert metric.limits([-0.2, 0.5]) == (-math.inf, 1)
    assert Metric("any").limits([3.0]) == (-math.inf, math.inf)


@pytest.mark.parametrize("turned", [False, True])
def test_two_descriptions_are_joined_to_one_that_holds_for_both(turned):
    one = Metric("x", better="less", low=0.0, high=1.0)
    other = Metric("x", better="greater", low=-1.0, high=3.0, column=4, magnitude=True)
    both = other.joined(one) if turned else one.joined(other)
    assert (both.better, both.low, both.high, both.column, both.magnitude) == ("neither", -1, 3, 4, True)
    open_ended = Metric("x", better="less", column=7)
    both = open_ended.joined(one) if turned else one.joined(open_ended)
    assert (both.better, both.low, both.high, both.column, both.magnitude) == ("less", None, None, 7, False)


@pytest.mark.parametrize(
    ("described", "three_decimals"),
    [
        ({"unit": "share"}, True),
        ({"low": -1.0, "high": 1.0}, True),
        ({"low": 0.0, "high": 0.5}, True),
        ({"low": -1.5, "high": 1.0}, False),
        ({"low": 0.0, "high": 2.0}, False),
        ({"low": 0.0}, False),
        ({"high": 1.0}, False),
        ({"unit": "rows"}, False),
    ],
)
def test_shares_and_what_lies_between_minus_1_and_1_have_three_decimals(described, three_decimals):
    assert Metric("x", **described).fraction == three_decimals


def test_a_metric_without_a_label_has_its_name_for_a_title():
    assert (Metric("x").title, Metric("x", "depth").title) == ("x", "depth")


def test_what_is_stored_of_a_description_are_its_main_fields_and_those_that_are_set():
    main = {"label": "", "meaning": "", "unit": "", "better": "neither", "low": None, "high": None}
    assert Metric("x").plain() == main
    assert Metric("x", column=3, magnitude=True).plain() == main | {"column": 3, "magnitude": True}


def test_a_metric_is_removed_with_its_interval_and_differences():
    one = Metric("a").of(1, (0, 2), signed=[[1.0]])
    left = (one | Metric("b").of(2, (1, 3), signed=[[2.0]])).without("b")
    assert (left.metrics, left.intervals, left.signed) == (one.metrics, one.intervals, one.signed)


def test_ends_that_rounding_has_crossed_are_an_interval():
    assert Metric("a").of(0.5, (0.5 + 5e-10, 0.5)).intervals["a"] == (0.5 + 5e-10, 0.5)


def test_a_result_says_what_its_metrics_mean_and_is_read_back(tmp_path):
    found = result()
    found.add(DEPTH.named(layer="one").of(3.5))
    path = tmp_path / "result.json"
    found.write(path)
    told = json.loads(path.read_text())["described"]["probe/one/depth"]
    assert (told["better"], told["low"], told["high"], told["unit"]) == ("less", 0.0, None, "metres")
    assert Result.read(path).metric("probe/one/depth") == DEPTH.named(layer="one")


def test_a_result_of_an_earlier_version_is_read_with_what_its_names_meant(tmp_path):
    path = tmp_path / "result.json"
    result(metrics={"eval/privacy/awareness": 0.5, "fairness/penalty": 1.6, "of/nobody": 1.0}).write(path)
    document = json.loads(path.read_text())
    del document["described"]
    path.write_text(json.dumps(document))
    read = Result.read(path)
    assert (read.metric("eval/privacy/awareness").label, read.metric("eval/privacy/awareness").sign) == (
        "privacy awareness",
        1,
    )
    assert read.metric("fairness/penalty").limits() == (0, math.inf)
    assert read.metric("of/nobody") == Metric("of/nobody")


@pytest.mark.parametrize("told", [3, ["better"], {"better": "more"}, {"label": 3}, {"low": "0"}, {"meaning": ["a"]}])
def test_what_is_no_description_of_a_metric_is_refused(tmp_path, told):
    path = tmp_path / "result.json"
    result(metrics={"a": 1.0}).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"described": {"a": told}}))
    with pytest.raises(InputError, match="described: what it says of a is no description"):
        Result.read(path)


def test_a_metric_with_a_direction_that_does_not_exist_is_refused_by_name():
    with pytest.raises(InputError, match=r"metric eval/mine: .*greater, less, neither"):
        Metric("eval/mine", better="lower")  # type: ignore[arg-type]


def test_a_description_of_a_later_version_is_read_without_what_is_not_known():
    assert read_metric("a", {"label": "an a", "colour": "red"}) == Metric("a", "an a")


def cells(metric, by_defence, **changed):
    """Three seeds of each defence, which have measured ``metric``."""
    for defence, value in by_defence.items():
        for seed in range(3):
            config = {"seed": seed, "dataset": {"name": "adult"}, "defense": {"name": defence}}
            found = result(id=f"{defence}{seed}", config=config, **changed)
            found.add(metric.of(value + seed / 10))
            yield found


def test_a_metric_that_nobody_knows_has_its_column_its_mark_its_axis_and_its_goal(tmp_path, capsys):
    """All that is needed is the declaration beside what measures it."""
    from fairpriv.report.comparison import Comparison
    from fairpriv.report.page import compare
    from fairpriv.report.weights_and_biases import _metrics

    depth = Metric("probe/depth", "depth of trace", "How deep the trace is.", "metres", "less", low=0.0, column=5)
    for found in cells(depth, {"none": 7.5, "shallow": 2.5}):
        found.write(tmp_path / found.id / "result.json")
    compare([tmp_path])
    out = capsys.readouterr().out
    assert "depth of" in out
    assert "2.6*" in out
    assert "How deep the trace is." in (tmp_path / "report.html").read_text()
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "report.html").read_text())
    assert {"better": -1, "label": "depth of trace", "name": "probe/depth"} in json.loads(data[1])["metrics"]
    table = Comparison.of(cells(depth, {"none": 7.5, "shallow": 2.5}))
    assert [group.defence for group in table.groups if "probe/depth" in group.best] == ["shallow"]

    class Run:
        def __init__(self):
            self.goals, self.summary = {}, {}
            self.log = self.summary.update

        def define_metric(self, name, summary):
            self.goals[name] = summary

    run = Run()
    _metrics(run, next(cells(depth, {"none": 1.0})), tmp_path)
    assert run.goals == {"probe/depth": "min"}
    assert json.loads(run.summary["described"])["probe/depth"]["better"] == "less"


@pytest.mark.parametrize("better", ["less", "greater"])
def test_beyond_guessing_no_row_is_better_than_one_that_guesses(better):
    """An attack's AUC of 0.4 protects no more than one of 0.5: it was starred, and alone on the front."""
    from fairpriv.report.comparison import Comparison

    sign = 1 if better == "less" else -1
    auc = Metric("probe/auc", better=better, guess=0.5, column=5)
    values = {"none": 0.5 + sign * 0.2, "lucky": 0.5 - sign * 0.35, "fair": 0.5 - sign * 0.2}  # of the first seed
    for pareto in ((), ("probe/auc", "probe/auc")):
        table = Comparison.of(cells(auc, values), pareto=pareto)
        marked = {group.defence for group in table.groups if group.best}
        assert marked == {"lucky", "fair"}
        assert {group.defence for group in table.groups if group.on_front} == (marked if pareto else set())
    assert [auc.ranked(0.5 + sign * far) for far in (0.1, 0.0, -0.1)] == [0.5 + sign * 0.1, 0.5, 0.5]
    assert Metric("x", better=better).ranked(0.4) == 0.4
    assert read_metric("probe/auc", auc.plain()) == auc
    assert (auc.joined(auc).guess, auc.joined(Metric("probe/auc", guess=0.1)).guess) == (0.5, None)


def test_a_difference_between_two_that_do_worse_than_guessing_is_not_for_the_better():
    from fairpriv.report.comparison import Comparison
    from fairpriv.report.reading import reading

    auc, found = Metric("probe/auc", better="less", guess=0.5, column=5), []
    for defence, values in {"none": [0.48, 0.49, 0.47], "lucky": [0.305, 0.31, 0.3], "leaky": [0.6, 0.61, 0.6]}.items():
        for seed, value in enumerate(values):
            config = {"seed": seed, "dataset": {"name": "adult"}, "defense": {"name": defence}}
            found.append(result(id=f"{defence}{seed}", config=config))
            found[-1].add(auc.of(value))
    settled = reading(Comparison.of(found))[0]
    assert re.search(r"lucky: probe/auc -0.17\d* ±[\d.]+ \(neither is better than guessing\)", settled)
    assert re.search(r"leaky: probe/auc [+]0.12\d* ±[\d.]+ \(worse\)", settled)


def test_a_metric_of_which_neither_way_is_better_marks_nothing_and_is_drawn_on_no_front():
    from fairpriv.report.comparison import Comparison

    table = Comparison.of(cells(Metric("probe/depth", column=5), {"none": 7.5, "shallow": 2.5}))
    assert not any(group.best for group in table.groups)
    assert [*table.columns] == ["probe/depth"]


@pytest.mark.parametrize(
    "metric", [Metric("fairness/penalty", better="less", low=0.0), Metric("share", low=0.0, high=1.0)]
)
def test_an_interval_over_seeds_holds_its_mean_whatever_the_declared_range(metric):
    """The penalty is a sum over labels: its mean was 1.6 and the upper end of its interval 1.0."""
    from fairpriv.report.comparison import Comparison

    def told(described, **values):
        for one in cells(Metric(metric.name), values):  # undeclared, since a value beyond its range is not added
            one.described = described
            yield one

    for described in ({metric.name: metric}, {}):  # nothing in results of earlier versions
        (group,) = Comparison.of(told(described, fft=1.5)).groups
        estimate = group.estimates[metric.name]
        assert estimate.lo < estimate.mean < estimate.hi
        assert estimate.mean == pytest.approx(1.6)
    table = Comparison.of(told({metric.name: metric}, none=0.0, fft=1.5))
    difference = table.groups[1].differences[metric.name]
    assert (difference.mean, difference.hi) == pytest.approx((1.5, 1.5))


def test_cells_that_mean_different_things_by_one_name_have_no_direction_and_the_wider_range():
    one, other = (
        Metric("a", better="less", low=0.0, high=1.0),
        Metric("a", better="greater", low=-1.0, high=1.0, column=3),
    )
    joined = one.joined(other)
    assert (joined.sign, joined.limits(), joined.column) == (0, (-1, 1), 3)


@pytest.mark.parametrize(
    ("value", "interval", "message"),
    [
        ([0.1, 0.2], None, "gap: its value is one number"),
        (None, None, "gap: its value is one number"),
        (torch.ones(3), None, "gap: its value is one number"),
        (0.5, 0.4, "gap: its value is one number, its interval two .'float' object is not iterable"),
        (0.5, (0.1, 0.2, 0.3), "gap: its value is one number, its interval two .too many values"),
        (0.5, (0.9, 0.1), "gap: from 0.9 to 0.1 is no interval: the lower end comes first"),
    ],
)
def test_what_is_no_number_and_no_interval_is_refused_by_the_metric_s_name(value, interval, message):
    with pytest.raises(InputError, match=message):
        Metric("gap").of(value, interval)


@pytest.mark.parametrize("end", ["0", True, torch.zeros(2)])
def test_an_end_of_a_range_that_is_no_number_is_refused(end):
    """It would be written, and the result could not be read again."""
    with pytest.raises(InputError, match=r"metric gap: low=.*: must be a number, or None"):
        Metric("gap", low=end)


def test_a_value_outside_its_declared_range_is_refused_and_one_at_its_end_is_not():
    share = Metric("share", low=0.0, high=1.0)
    for inside in (0.0, 1.0, 1 + 1e-9, math.nan):
        share.of(inside).within_ranges()
    Measured({"plain": 7.0}).within_ranges()
    for outside in (1.1, -0.1, math.inf):
        with pytest.raises(InputError, match=r"share is .*, outside its own range \[0, 1\]: mend low or high"):
            (Metric("other").of(3) | share.of(outside)).within_ranges()
