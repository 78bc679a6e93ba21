"""The style of pictures: nothing that is written covers another, and nothing is cut."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from fairpriv.identity import content_hash
from fairpriv.report.analysis_plots import flip_figure
from fairpriv.report.comparison import Comparison
from fairpriv.report.game_plots import attack_figure
from fairpriv.report.style import laid_out, new_figure, place_labels, styled
from fairpriv.result import Result


def area(one, other):
    found = Bbox.intersection(one, other)
    return 0 if found is None else found.width * found.height


def test_labels_of_a_crowd_cover_neither_one_another_nor_a_mark():
    points = np.random.default_rng(2).normal(0.5, 0.03, (12, 2))
    with styled():
        figure = new_figure(4.9, 3.6)
        ax = figure.subplots()
        ax.plot(*points.T, "o", markersize=7)
        ax.set(xlim=(0.2, 0.8), ylim=(0.2, 0.8))
        place_labels(ax, [(tuple(at), f"a label, {i}") for i, at in enumerate(points)])
        laid_out(figure)
        boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the lines to the points
    assert len(boxes) == 12
    assert sum(area(a, b) for a, b in combinations(boxes, 2)) < 0.02 * sum(box.width * box.height for box in boxes)
    marks = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in ax.transData.transform(points)]
    assert max(area(box, mark) for box in boxes for mark in marks) < 20
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def cell(config, metrics):
    config = {"seed": 0, "model": {"name": "m"}} | config
    return Result(content_hash(config), "completed", config, metrics)


LEAKAGE = {"attack/kl/leakage": 0.2, "attack/black_box_meta_classifier/leakage": 0.1}
FLIPS = {f"analysis/flips/fairness/{way}": 3.0 for way in ("unsafe_to_safe", "safe_to_unsafe")}
DRAWN = {
    "one row of two attacks": (
        attack_figure,
        [cell({"dataset": {"name": "of a long name"}, "defense": {"name": "x"}, "game": {"alpha": 1.0}}, LEAKAGE)],
    ),
    "flips of rows with long names": (
        flip_figure,
        [
            cell({"dataset": {"name": "pairs"}, "defense": {"name": "spin", "ratio": r, "rule": rule * 9}}, FLIPS)
            for r, rule in ((1e-6, "released"), (1e-4, "intersection"))
        ],
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_titles_and_names_of_rows_lie_on_the_page(name):
    draw, cells = DRAWN[name]
    with styled():
        figure = draw(Comparison.of(cells))
        laid_out(figure)
        page = figure.bbox
        texts = [text for ax in figure.axes for text in (ax._left_title, *ax.get_yticklabels())]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert boxes
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1 for box in boxes)


def test_text_is_as_wide_in_every_file_as_in_the_layout():
    """Else a long name that has room where the layout is made would be cut in the file, whose resolution is another."""

    def inches(dpi):
        with styled():
            figure = new_figure(6, 1)
            figure.set_dpi(dpi)
            name = figure.text(0, 0.5, "fair_finetune, defense.penalty=validation", fontsize=7.5)
            return name.get_window_extent().width / dpi

    assert [inches(dpi) for dpi in (72, 100, 110)] == pytest.approx([inches(200)] * 3, abs=0.02)
