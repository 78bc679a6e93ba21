"""Plots of awareness against what was varied: training samples, the mix of dimensions, a ratio of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairpriv.report.comparison import Comparison, Group, comparable
from fairpriv.report.selection import show
from fairpriv.report.style import COLOURS, MARKERS, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Config keys that an awareness curve is drawn over, and whether their axis is logarithmic.
SWEPT = {"dataset.samples": True, "dataset.shares": False, "defense.ratio": True, "defense.strength": False}


def position(group: Group, key: str) -> float | None:
    """Return a group's place on the axis of ``key``; for several shares, the second one's part of their sum."""
    value = group.leaves.get(key)
    if isinstance(value, list) and len(value) == 2 and sum(value) > 0:
        return float(value[1]) / sum(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def label(key: str, groups: Sequence[Group]) -> str:
    """Return the axis title of ``key``."""
    if key != "dataset.shares":
        return key
    dimensions = groups[0].leaves.get("dataset.dimensions") or ["", "second"]
    return f"share of {dimensions[-1]} pairs in the mix"


def curve_figure(table: Comparison) -> Figure | None:
    """Draw awareness (and perplexity) against every key of `SWEPT` that was varied; None where none was.

    Each row is a key and each column a metric, with one line for each combination of the other keys. Bars are 95 %
    intervals, over seeds where there are several.
    """
    from matplotlib.ticker import NullFormatter

    metrics = [*table.headlines, *(metric for metric in table.metrics if metric == "eval/utility/perplexity")]
    keys = [key for key in table.keys if key in SWEPT]
    rows: list[tuple[str, dict[str, list[tuple[float, Group]]]]] = []
    for key in keys:
        lines: dict[str, list[tuple[float, Group]]] = {}
        placed = [(position(group, key), group) for group in table.groups if group.estimates.keys() & set(metrics)]
        drawn = [(at, group) for at, group in placed if at is not None]
        told = [k for k in table.keys if k != key and len({comparable(group, k) for _, group in drawn}) > 1]
        for at, group in drawn:
            parts = [f"{k.partition('.')[2]}={show(group.leaves[k])}" for k in told if k in group.leaves]
            lines.setdefault(", ".join([group.defence, *parts]), []).append((at, group))
        lines = {name: sorted(points, key=lambda p: p[0]) for name, points in lines.items() if len(points) > 1}
        if lines:
            rows.append((key, lines))
    if not rows or not metrics:
        return None
    names = list(dict.fromkeys(name for _, lines in rows for name in lines))
    figure = new_figure(3.6 * len(metrics), 2.9 * len(rows) + 0.2 * -(-len(names) // 2) + 0.3)
    axes = figure.subplots(len(rows), len(metrics), squeeze=False)
    for row, (key, lines) in zip(axes, rows, strict=True):
        for ax, metric in zip(row, metrics, strict=True):
            for name, points in lines.items():
                _line(ax, points, metric, names.index(name), name)
            if SWEPT[key] and all(at > 0 for points in lines.values() for at, _ in points):
                ax.set_xscale("log")
                values = sorted({at for points in lines.values() for at, _ in points})
                ax.set_xticks(values, [f"{value:g}" for value in values])  # powers of ten would be set as mathematics
                ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_xlabel(label(key, [group for points in lines.values() for _, group in points]))
            ax.set_ylabel(table.described[metric].title)
            means = [g.estimates[metric].mean for points in lines.values() for _, g in points if metric in g.estimates]
            if means and 0 < 100 * min(means) < max(means):  # a broken model's perplexity would hide all others
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter(NullFormatter())
            plain(ax)
    handles = {
        text: handle
        for ax in figure.axes
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)  # the same line in every panel
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


def _line(ax: Axes, points: Sequence[tuple[float, Group]], metric: str, number: int, name: str) -> None:
    drawn = [(at, group.estimates[metric]) for at, group in points if metric in group.estimates]
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    ax.plot([at for at, _ in drawn], [e.mean for _, e in drawn], color=colour, marker=marker, markersize=4, label=name)
    for at, estimate in drawn:
        if estimate.ends:
            ax.plot([at, at], estimate.ends, color=colour, linewidth=0.8)
