import pytest

from fairpriv.identity import content_hash
from fairpriv.report.analysis_plots import (
    MOST,
    caution_figure,
    coupling_figure,
    dependence_figure,
    flip_figure,
)
from fairpriv.report.comparison import Comparison
from fairpriv.result import Result, write_rows

FIGURES = (coupling_figure, dependence_figure, caution_figure, flip_figure)


@pytest.fixture
def cell(tmp_path):
    """Makes a result as it is found, with the files that it keeps."""

    def make(defence="spin", seed=0, metrics=None, intervals=None, files=None, **options) -> Result:
        config = {
            "seed": seed,
            "dataset": {"name": "pairs"},
            "defense": {"name": defence, "dimensions": ["privacy", "fairness"], **options},
            "model": {"name": "tiny"},
            "dimensions": {"fairness": {}, "privacy": {}},
        }
        digest = content_hash(config)
        folder = tmp_path / digest
        artifacts = {name: f"{name}.jsonl" for name in files or {}}
        for name, rows in (files or {}).items():
            write_rows(folder / artifacts[name], rows)
        return Result(
            digest, "completed", config, metrics or {}, intervals=intervals or {}, artifacts=artifacts, folder=folder
        )

    return make


def drawn(figure, *cells):
    made = figure(Comparison.of(cells))
    assert made is not None
    made.canvas.draw()
    return made


def names(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("figure", FIGURES)
def test_cells_without_the_analysis_are_not_drawn(cell, figure):
    assert figure(Comparison.of([cell("none", metrics={"eval/fairness/awareness": 0.5})])) is None


@pytest.mark.parametrize(("figure", "name"), [*zip(FIGURES, ("overlaps", "hsic", "cautions"), strict=False)])
def test_results_that_have_lost_their_files_are_not_drawn(cell, figure, name):
    result = cell(files={name: []})
    (result.folder / f"{name}.jsonl").unlink()
    assert figure(Comparison.of([result])) is None
    result.folder = None
    assert figure(Comparison.of([result])) is None


def overlaps(values):
    """Rows as a cell keeps them: of matrices, of layers, and of modules and all, which are not drawn."""
    rows = [
        {"layer": layer, "module": f"mlp.{name}", "suppressed": n, "pairs": {}} for (layer, name), n in values.items()
    ]
    for layer in dict.fromkeys(layer for layer, _ in values):
        told = {"jaccard": 0.1 * int(layer), "by_chance": 0.01, "by_chance_interval": [0.0, 0.02]}
        pairs = {"fairness+general": told | {"jaccard": 0.3}, "fairness+privacy": told}
        rows.append({"layer": layer, "module": None, "suppressed": 9999, "pairs": pairs})
    for module in ("mlp.up", None):
        far = {"jaccard": 1.0, "by_chance": 1.0, "by_chance_interval": [1, 1]}
        rows.append({"layer": None, "module": module, "suppressed": 9999, "pairs": {"fairness+privacy": far}})
    return {"overlaps": rows}


def test_counts_are_a_heat_map_of_layers_and_modules_and_overlaps_lie_beside_chance(cell):
    values = {(str(layer), name): 10 * layer + len(name) for layer in (0, 1, 10) for name in ("up", "down")}
    more = {key: value + 2 for key, value in values.items()}
    figure = drawn(coupling_figure, cell(files=overlaps(values)), cell(files=overlaps(more), seed=1))
    left, right = figure.axes[:2]
    assert left.images[0].get_array().tolist() == [[3, 13, 103], [5, 15, 105]]  # means over seeds
    assert left.images[0].get_clim() == (0, 106)
    assert [label.get_text() for label in left.get_yticklabels()] == ["mlp.up", "mlp.down"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["0", "1", "10"]
    index, chance, excluded = right.lines
    assert list(index.get_xdata()) == [0, 1, 10]
    assert list(index.get_ydata()) == pytest.approx([0, 0.1, 1.0])
    assert list(chance.get_ydata()) == pytest.approx([0.01] * 3)
    assert list(excluded.get_ydata()) == pytest.approx([0.3] * 3)
    assert excluded.get_linestyle() == ":"
    band = next(c.get_paths()[0].vertices[:, 1] for c in right.collections if c.get_facecolor()[0][0] == 0.45)
    assert (band.min(), band.max()) == (0.0, 0.02)  # what chance does, not how little its mean varies over seeds
    assert names(figure) == ["fairness+privacy", "by chance, with its 95 %", "fairness+general"]


def test_a_layer_without_a_suppressed_weight_is_drawn_as_zero(cell):
    figure = drawn(coupling_figure, cell(files=overlaps({("0", "up"): 0, ("1", "up"): 0})))
    assert figure.axes[0].images[0].get_array().tolist() == [[0, 0]]


def test_only_the_first_groups_are_drawn_and_it_says_so(cell):
    some = [cell(files=overlaps({("0", "up"): 1}), ratio=10**-i) for i in range(1, MOST + 4)]
    figure = drawn(coupling_figure, *some)
    assert len([ax for ax in figure.axes if ax.images]) == MOST
    assert f"the first {MOST} of {MOST + 3} rows of the table" in [text.get_text() for text in figure.texts]
    assert drawn(coupling_figure, *some[:2]).texts == []


def test_dependence_is_drawn_by_layer_before_and_after(cell):
    rows = [
        {"measure": which, "pair": "fairness+privacy", "layer": layer, "before": before, "after": before / 4}
        for which in ("hsic", "hsic_apart")
        for layer, before in (("2", 0.04), ("10", 0.08), (None, 0.5))
    ]
    name = "analysis/hsic/fairness+privacy/change"
    result = cell(metrics={name: -0.015}, intervals={name: [-0.025, -0.005]}, files={"hsic": rows})
    left, right = drawn(dependence_figure, result).axes
    before, after = (line for line in left.lines if line.get_label().startswith("fairness"))
    assert list(before.get_xdata()) == list(after.get_xdata()) == [2, 10]
    assert list(before.get_ydata()) == [0.04, 0.08]
    assert list(after.get_ydata()) == [0.01, 0.02]
    assert "change over all layers -0.015 [-0.025, -0.005]" in left.get_title(loc="left")
    assert "without those that both share" in right.get_title(loc="left")
    assert "change over all layers none" in right.get_title(loc="left")


def said(rate, before=None, kind="evaluate"):
    rows = []
    for family, share in (("any", rate), ("law", rate / 2), ("not right", 0.0)):
        row = {"set": kind, "dimension": "privacy", "family": family, "rate": share}
        row["rate_interval"] = [share - 0.1, share + 0.1]
        rows.append(row if before is None else row | {"rate_before": before * bool(share)})
    return rows


def test_cautions_are_drawn_by_family_hollow_before_and_filled_after(cell):
    none = cell("none", files={"cautions": [*said(0.2), *said(0.9, kind="benign")]})
    tuned = [cell("lora", seed, files={"cautions": said(rate, 0.2)}) for seed, rate in enumerate((0.59, 0.6, 0.61))]
    figure = drawn(caution_figure, none, *tuned)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["any", "law"]  # the third is in no response
    points = [line for line in ax.lines if line.get_marker() == "o"]
    hollow = [float(line.get_xdata()[0]) for line in points if line.get_markerfacecolor() == "white"]
    filled = [float(line.get_xdata()[0]) for line in points if line.get_markerfacecolor() != "white"]
    assert hollow == pytest.approx([0.2, 0.2])
    assert filled == pytest.approx([0.2, 0.6, 0.1, 0.3])
    one, over_seeds, *_ = [list(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 2.4]
    assert one == pytest.approx([0.1, 0.3])
    half = 4.3027 * 0.01 / 3**0.5
    assert over_seeds == pytest.approx([0.6 - half, 0.6 + half], rel=1e-3)
    assert names(figure) == ["none", "lora", "hollow: before"]


def test_flips_go_both_ways(cell):
    def turned(gained, lost, *place):
        name = "analysis/flips/privacy"
        return cell(*place, metrics={f"{name}/unsafe_to_safe": gained, f"{name}/safe_to_unsafe": lost})

    cells = turned(4.0, 1.0), turned(6.0, 2.0, "spin", 1), turned(0.0, 9.0, "full")
    figure = drawn(flip_figure, *cells)
    (ax,) = figure.axes
    assert sorted(patch.get_width() for patch in ax.patches) == [-9, -1.5, 0, 5]
    assert sorted(label.get_text() for label in ax.get_yticklabels()) == ["full", "spin"]
    assert ax.get_xlim()[1] > 9
