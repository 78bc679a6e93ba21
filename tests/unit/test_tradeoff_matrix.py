import pytest

from fairpriv.metrics import Metric
from fairpriv.report.comparison import Comparison
from fairpriv.report.tradeoff_matrix import aimed_at, classifier_matrix_figure, matrix_figure
from fairpriv.result import Result


def result(defense, dimensions, changes, ident, **more):
    metrics, intervals = ({"train/loss": 1.0} if defense == "lora" else {}), {}  # by which it is seen to be trained
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


AUROC = Metric("eval/utility/auroc", "AUROC", better="greater", low=0.0, high=1.0, headline=True)
LEAK = Metric("eval/membership/lira_auc", "LiRA AUC", better="less", low=0.0, high=1.0, headline=True)


def classifier(defense, dataset, seed, auroc, leak):
    config = {"seed": seed, "model": {"name": "mlp"}, "dataset": {"name": dataset}, "defense": {"name": defense}}
    config |= {
        "task": "classifier",
        "game": {"alpha": 1.0, "world": 0},
        "dimensions": {"utility": {}, "membership": {}},
    }
    return Result(
        f"{defense}{dataset}{seed}",
        "completed",
        config,
        {AUROC.name: auroc, LEAK.name: leak},
        described={AUROC.name: AUROC, LEAK.name: LEAK},
    )


def test_what_each_defence_of_a_classifier_does_to_each_dimension_against_none():
    shifts = {"a": 0.1, "b": 0.0}  # what the defence costs in AUROC on each dataset
    apart = [-0.001, 0.0, 0.001]  # seeds whose differences are all the same settle nothing
    results = [
        classifier(
            name,
            data,
            seed,
            0.8 - (cost + apart[seed]) * (name != "none"),
            0.7 - (0.2 + apart[seed]) * (name != "none"),
        )
        for data, cost in shifts.items()
        for name in ("none", "dp_sgd")
        for seed in range(3)
    ]
    figure = classifier_matrix_figure(Comparison.of(results))
    of_a, of_b, _ = figure.axes
    assert [ax.get_title(loc="left") for ax in (of_a, of_b)] == ["a", "b"]
    assert [label.get_text() for label in of_b.get_xticklabels()] == ["LiRA AUC", "AUROC"]
    protects, costs = [text.get_text() for text in of_a.texts]
    assert protects.startswith("-0.200")
    assert costs.startswith("-0.100")
    shades = of_a.images[0].get_array()
    assert shades[0][0] > 0 > shades[0][1]  # better, and worse
    assert [text.get_fontweight() for text in of_a.texts] == ["bold", "bold"]
    assert "of 4, 3 exclude zero" in of_b.get_xlabel()


def test_one_dimension_or_no_other_arm_makes_no_matrix_of_classifiers():
    results = [classifier("none", "a", seed, 0.8, 0.6) for seed in range(3)]
    assert classifier_matrix_figure(Comparison.of(results)) is None


def test_bold_is_what_is_settled_after_correction_for_all_intervals_of_the_picture():
    def cells(defences):
        noise = [-0.02, 0.0, 0.02]
        return [
            classifier(name, "a", seed, 0.8 - 0.1 * (name == "d1") + noise[(seed + k) % 3] * (k > 0), 0.7)
            for k, name in enumerate(["none", *defences])
            for seed in range(3)
        ]

    def bold(defences):
        figure = classifier_matrix_figure(Comparison.of(cells(defences)))
        told = figure.axes[0].texts
        label, shades = figure.axes[0].get_xlabel(), abs(figure.axes[0].images[0].get_array())
        assert (shades > 0.3).sum() == 1  # pale where the own interval contains 0, so that noise has no strong colour
        return {text.get_text()[:6] for text in told if text.get_fontweight() == "bold"}, label

    alone, label = bold(["d1"])
    assert alone == {"-0.100"}
    assert "of 2, 1 exclude zero" in label
    among, label = bold([f"d{i}" for i in range(1, 9)])
    assert among == set()  # p = 0.013, the smallest of 16
    assert "of 16, 1 exclude zero, where chance alone gives about 1\nbold: 0 that" in label
