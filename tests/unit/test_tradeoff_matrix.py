import pytest

from fairpriv.report.comparison import Comparison
from fairpriv.report.tradeoff_matrix import aimed_at, matrix_figure
from fairpriv.result import Result


def result(defense, dimensions, changes, ident, **more):
    metrics, intervals = {}, {}
    for name, value in changes.items():
        metrics[f"eval/{name}/awareness_change"] = value
        intervals[f"eval/{name}/awareness_change"] = [value - 0.05, value + 0.05]
    own = {"name": defense} | ({"dimensions": dimensions} if defense == "spin" else {})
    dataset = {"name": "pairs", "dimensions": ["privacy"] if defense == "spin" else dimensions}
    config = {"seed": 0, "model": {"name": "m"}, "dataset": dataset, "defense": own | more, "dimensions": {"a": 1}}
    return Result(ident, "completed", config, metrics, intervals=intervals)


@pytest.fixture
def results():
    return [
        result("none", ["privacy"], {}, "0"),
        result("lora", ["fairness"], {"fairness": 0.2, "privacy": -0.1}, "1"),
        result("lora", ["privacy"], {"fairness": -0.04, "privacy": 0.3}, "2"),
        result("spin", ["fairness", "privacy"], {"fairness": 0.01}, "3"),
    ]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_each_row_says_what_it_aims_at_and_what_became_of_each_dimension(results):
    table = Comparison.of(results)
    assert sorted(map(aimed_at, table.groups)) == [[], ["fairness"], ["fairness", "privacy"], ["privacy"]]
    figure = matrix_figure(table)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(rows) == ["lora: fairness", "lora: privacy", "spin: fairness + privacy"]
    told = texts(figure)
    assert "+0.200\n[+0.15, +0.25]" in told
    assert told.count("not measured") == 1
    bold = {text.get_text()[:6] for text in figure.axes[0].texts if text.get_fontweight() == "bold"}
    assert bold == {"+0.200", "-0.100", "+0.300"}
    assert len(figure.axes[0].patches) == 4  # framed: fairness, privacy, and both


def test_a_single_aim_or_a_single_dimension_makes_no_matrix(results):
    assert matrix_figure(Comparison.of(results[:2])) is None
    for one in results:
        one.metrics = {name: value for name, value in one.metrics.items() if "fairness" in name}
    assert matrix_figure(Comparison.of(results)) is None
