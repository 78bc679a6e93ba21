"""The trade-off matrix drawn: what tuning or editing for some dimensions does to each of the others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fairpriv.report.comparison import Comparison, Group, comparable
from fairpriv.report.selection import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANGE = re.compile(r"eval/([^/]+)/(?:awareness|score)_change")


def aimed_at(group: Group) -> list[str]:
    """The dimensions that a group is tuned on, or that its edit couples; none for the untouched model."""
    key = "defense.dimensions" if "defense.dimensions" in group.leaves else "dataset.dimensions"
    if group.leaves.get("defense.name") == "none" or not isinstance(group.leaves.get(key), list):
        return []
    return [str(name) for name in group.leaves[key]]


def matrix_figure(table: Comparison) -> Figure | None:
    """One row for each defence and what it aims at, one column a dimension: the change against the untouched model.

    A change is of the dimension's awareness or score, with its 95 % interval; bold where that excludes zero. What a row
    aims at is framed. None unless at least two rows aim at different dimensions and two dimensions are measured.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = {match[1]: metric for metric in table.metrics if (match := CHANGE.fullmatch(metric))}
    rows = [group for group in table.groups if aimed_at(group)]
    if len(columns) < 2 or len({tuple(aimed_at(group)) for group in rows}) < 2:
        return None
    told = [key for key in table.keys if key not in ("dataset.name", "dataset.dimensions", "defense.dimensions")]
    told = [key for key in told if len({comparable(group, key) for group in rows if key in group.leaves}) > 1]

    def label(group: Group) -> str:
        more = [f"{key.rpartition('.')[2]}={show(group.leaves[key])}" for key in told if key in group.leaves]
        return f"{group.defence}: {', '.join([' + '.join(aimed_at(group)), *more])}"

    labels = [label(group) for group in rows]
    left, below, side, height = 0.5 + 0.065 * max(map(len, labels)), 1.05, 1.25, 0.46
    width, tall = left + side * len(columns) + 0.9, below + height * len(rows) + 0.55
    figure = Figure(figsize=(width, tall))
    ax = figure.add_axes((left / width, below / tall, side * len(columns) / width, height * len(rows) / tall))
    values: list[list[float]] = [
        [g.estimates[m].mean if m in g.estimates else float("nan") for m in columns.values()] for g in rows
    ]
    most = max((abs(v) for row in values for v in row if v == v), default=0.0) or 1.0
    image: Any = ax.imshow(values, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
    for y, group in enumerate(rows):
        for x, (dimension, metric) in enumerate(columns.items()):
            if dimension in aimed_at(group):
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6))
            estimate = group.estimates.get(metric)
            if estimate is None:
                ax.text(x, y, "not measured", ha="center", va="center", fontsize=7, color="0.4")
                continue
            known = estimate.lo is not None and estimate.hi is not None
            clear = known and not estimate.lo <= 0 <= estimate.hi  # type: ignore[operator]
            text = f"{estimate.mean:+.3f}" + (f"\n[{estimate.lo:+.2f}, {estimate.hi:+.2f}]" if known else "")
            dark = abs(estimate.mean) > 0.7 * most
            weight = "bold" if clear else "normal"
            colour = "white" if dark else "black"
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=colour, fontweight=weight)
    degenerate = ["†" if group.degenerate else "" for group in rows]
    ax.set_yticks(range(len(rows)), [name + mark for name, mark in zip(labels, degenerate, strict=True)])
    ax.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns])
    ax.set_xlabel("change against the untouched model,\n95 % interval; bold: it excludes zero", labelpad=8)
    ax.set_title("Rows aim at what is framed", loc="left", fontsize=9)
    ax.tick_params(length=0)
    bar = figure.colorbar(
        image, cax=figure.add_axes((1 - 0.7 / width, below / tall, 0.15 / width, height * len(rows) / tall))
    )
    bar.outline.set_visible(False)
    return figure
