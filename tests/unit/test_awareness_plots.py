import pytest

from fairpriv.identity import content_hash
from fairpriv.report.awareness_plots import curve_figure
from fairpriv.report.comparison import Comparison
from fairpriv.result import Result


def cell(samples=100, shares=None, defence="lora", awareness=0.5, seed=0) -> Result:
    config = {
        "seed": seed,
        "dataset": {"name": "pairs", "dimensions": ["privacy", "fairness"], "samples": samples, "shares": shares},
        "defense": {"name": defence},
        "model": {"name": "tiny"},
        "dimensions": {"fairness": {}, "privacy": {}},
    }
    metrics = {"eval/fairness/awareness": awareness, "eval/privacy/awareness": 1 - awareness, "train/loss": 1.0}
    intervals = {"eval/fairness/awareness": [awareness - 0.1, awareness + 0.1]}
    return Result(content_hash(config), "completed", config, metrics, intervals=intervals)


def drawn(cells):
    figure = curve_figure(Comparison.of(cells))
    assert figure is not None
    return figure


def test_awareness_is_drawn_over_the_number_of_samples_with_intervals():
    figure = drawn([cell(1000, awareness=0.3), cell(10, awareness=0.7), cell(100)])
    line, *bars = figure.axes[0].lines
    assert list(line.get_xdata()) == [10, 100, 1000]
    assert list(line.get_ydata()) == [0.7, 0.5, 0.3]
    assert list(bars[0].get_ydata()) == pytest.approx([0.6, 0.8])
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_xlabel() == "dataset.samples"


def test_awareness_is_drawn_over_the_share_of_the_second_dimension():
    figure = drawn([cell(shares=[1, 0], awareness=0.2), cell(shares=[3, 1], awareness=0.4), cell(shares=[1, 1])])
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 0.25, 0.5]
    assert figure.axes[0].get_xlabel() == "share of fairness pairs in the mix"


@pytest.mark.parametrize(("worst", "scale"), [(40.0, "linear"), (350000.0, "log")])
def test_a_broken_model_s_perplexity_hides_no_other(worst, scale):
    cells = [cell(10), cell(100), cell(1000)]
    for one, value in zip(cells, (20.0, 25.0, worst), strict=True):
        one.metrics["eval/utility/perplexity"] = value
    axes = drawn(cells).axes
    assert [ax.get_yscale() for ax in axes] == ["linear", "linear", scale]


def test_defences_are_lines_of_their_own():
    figure = drawn([cell(n, defence=d) for n in (10, 100) for d in ("lora", "full")])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lora", "full"]


def test_nothing_varied_draws_nothing():
    assert curve_figure(Comparison.of([cell(seed=0), cell(seed=1)])) is None
