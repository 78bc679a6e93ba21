"""The one style of all pictures: colours, marks, grid, layout, and labels that do not cover one another."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; black is kept for the baseline, pale yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a name with $ is no mathematics
    "text.hinting": "no_hinting",  # text is as wide in a file of any resolution as where room is found for it
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
    "svg.hashsalt": "fairpriv",  # the same numbers give the same file
}
_AROUND = [(math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)) for turn in (1, 7, 3, 5, 0, 4, 2, 6)]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in our style, under whatever matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches that finds room for all titles, labels and legends."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    apart = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
    return Figure(figsize=(width, height), layout=apart)


def laid_out(figure: Figure) -> None:
    """Lay out the figure once, so that saving it in several formats does not do so again."""
    figure.draw_without_rendering()
    if figure.get_layout_engine() is not None:
        figure.set_layout_engine("none")


def plain(ax: Axes) -> None:
    """Draw a pale grid behind the data, and no box around them."""
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def place_labels(ax: Axes, labels: Sequence[tuple[tuple[float, float], str]], *, size: float = 7) -> None:
    """Write a label beside each point, where it covers no mark and no other label; farther ones with a line to it.

    The figure is laid out first, since places are in points on the page. A label that finds no free place near its
    point is written at the nearest place all the same.
    """
    figure: Any = ax.figure
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    frame = [edge * scale for edge in ax.get_window_extent().extents]
    points = [tuple(ax.transData.transform(at) * scale) for at, _ in labels]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for (x, y), (at, text) in zip(points, labels, strict=True):
        wide, tall = 0.55 * size * max(map(len, text.split("\n"))), 1.25 * size * (1 + text.count("\n"))
        best: tuple[float, float, float, float, tuple[float, float, float, float]] | None = None
        for away in (6.0, 14.0, 24.0, 36.0, 50.0, 66.0, 84.0):
            for right, up in _AROUND:
                left = x + away * right - (0 if right > 0.1 else wide if right < -0.1 else wide / 2)
                low = y + away * up - (0 if up > 0.1 else tall if up < -0.1 else tall / 2)
                box = (left, low, left + wide, low + tall)
                outside = max(frame[0] - box[0], 0) + max(frame[1] - box[1], 0)
                outside += max(box[2] - frame[2], 0) + max(box[3] - frame[3], 0)
                cost = outside * 50 + sum(_common(box, other) for other in taken)
                if best is None or cost < best[0]:
                    best = (cost, left - x, low - y, away, box)
            if best is not None and best[0] == 0:
                break
        assert best is not None
        _, dx, dy, away, box = best
        taken.append(box)
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3} if away > 6 else None
        ax.annotate(
            text,
            at,
            xytext=(dx, dy),
            textcoords="offset points",
            fontsize=size,
            color="0.25",
            arrowprops=line,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
            zorder=4,
        )


def _common(one: Sequence[float], other: Sequence[float]) -> float:
    """Compute the area that two boxes have in common."""
    wide, tall = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return wide * tall if wide > 0 and tall > 0 else 0.0
