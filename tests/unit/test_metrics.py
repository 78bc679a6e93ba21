"""What a measured number means is declared beside what measures it, and goes with it into the result."""

import json
import math

import pytest

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
    with pytest.raises(ValueError, match="b: measured twice"):
        Metric("b").of(1) | Metric("b").of(1)
    found = result()
    found.add(Metric("b").of(1))
    with pytest.raises(ValueError, match="b: measured twice"):
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


@pytest.mark.parametrize("told", [3, {"better": "more"}, {"label": 3}, {"low": "0"}, {"meaning": ["a"]}])
def test_what_is_no_description_of_a_metric_is_refused(tmp_path, told):
    path = tmp_path / "result.json"
    result(metrics={"a": 1.0}).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"described": {"a": told}}))
    with pytest.raises(InputError, match="described: what it says of a is no description"):
        Result.read(path)


def test_a_description_of_a_later_version_is_read_without_what_is_not_known():
    assert read_metric("a", {"label": "an a", "colour": "red"}) == Metric("a", "an a")
