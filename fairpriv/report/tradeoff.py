"""Plots of the trade-off: a defence's cost against its protection, with intervals and the Pareto front."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairpriv.metrics import Metric
from fairpriv.report.comparison import BASELINE, Comparison, Group, comparable, pareto_front
from fairpriv.report.selection import show
from fairpriv.report.style import COLOURS, MARKERS, new_figure, place_labels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CROWD = 150  # more points than this are drawn small, and without their intervals
_NAMED = 24  # more points, or series, than this are not told apart by name


def tradeoff_figure(table: Comparison, settings: Mapping[str, list[Group]]) -> Figure:
    """Draw one row of panels per dataset and game, with one legend below them all."""
    from matplotlib.lines import Line2D

    panels = table.panels
    drawn = [group for groups in settings.values() for group in groups]
    styles = series_styles(table)
    shown = [name for name in styles if any(table.series(group) == name for group in drawn)][:_NAMED]
    handles = [Line2D([], [], color=styles[n][0], marker=styles[n][1], linestyle="none", label=n) for n in shown]
    handles.append(Line2D([], [], color="0.55", linewidth=1.2, linestyle="--", label="Pareto front"))
    if any(group.degenerate for group in drawn):
        label = "hollow: degenerate"
        handles.append(Line2D([], [], color="0.3", marker="o", markerfacecolor="white", linestyle="none", label=label))
    width = 4.9 * len(panels)
    widest = 0.5 + 0.07 * max(len(str(handle.get_label())) for handle in handles)  # of the legend's columns
    columns = max(1, min(len(handles), int(width / widest)))
    figure = new_figure(width, 3.6 * len(settings) + 0.3 + 0.2 * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    axes = figure.subplots(len(settings), len(panels), squeeze=False)
    for row, (title, groups) in zip(axes, settings.items(), strict=True):
        for ax, (x, y) in zip(row, panels, strict=True):
            _scatter(ax, table, groups, x, y, styles)
            ax.set_title(textwrap.fill(title, 60), loc="left", fontweight="bold")
    for row, groups in zip(axes, settings.values(), strict=True):  # at last, since labels keep to a finished layout
        for ax, (x, y) in zip(row, panels, strict=True):
            _name_points(ax, table, groups, x, y)
    return figure


def series_styles(table: Comparison) -> dict[str, tuple[str, str]]:
    """Choose colour and marker of each series, in the order of the table; black circles for the baseline."""
    names = dict.fromkeys(table.series(group) for group in table.groups)
    others = [name for name in names if name != BASELINE]
    found = {name: (COLOURS[i % 6], MARKERS[i % 7]) for i, name in enumerate(others)}
    return {name: found.get(name, ("black", "o")) for name in names}


def _scatter(
    ax: Axes, table: Comparison, groups: Sequence[Group], x: str, y: str, styles: Mapping[str, tuple[str, str]]
) -> None:
    """Draw one point per group with its intervals, and the front of the points that may be ranked."""
    drawn = [group for group in groups if x in group.estimates and y in group.estimates]
    for name, (colour, marker) in styles.items():  # one call for each series, since calls are slow
        members = [group for group in drawn if table.series(group) == name]
        pairs = [(group.estimates[x], group.estimates[y]) for group in members]
        level = [(b.mean, *a.ends) for a, b in pairs if a.ends]
        upright = [(a.mean, *b.ends) for a, b in pairs if b.ends]
        if len(drawn) <= _CROWD:
            draw_bars(ax.hlines, level, color=colour, linewidth=0.9)
            draw_bars(ax.vlines, upright, color=colour, linewidth=0.9)
        for hollow in (False, True):
            chosen = [pair for pair, group in zip(pairs, members, strict=True) if bool(group.degenerate) == hollow]
            ax.plot(
                [a.mean for a, _ in chosen],
                [b.mean for _, b in chosen],
                linestyle="none",
                color=colour,
                marker=marker,
                markersize=7 if len(drawn) <= _CROWD else 4,
                markerfacecolor="white" if hollow else colour,
                markeredgewidth=1.4,
                zorder=3,
            )
    sound = [group for group in drawn if group.ranked]
    points = [(group.estimates[x].mean, group.estimates[y].mean) for group in sound]
    across, up = table.described[x], table.described[y]
    better = (across.sign, up.sign)
    left, right, bottom, top = *ax.get_xlim(), *ax.get_ylim()
    ranked = [(across.ranked(a), up.ranked(b)) for a, b in points]
    if all(better) and (front := sorted(points[i] for i in pareto_front(ranked, better))):
        # The border of the dominated area runs from the best point of one axis to the best of the other.
        worst_x = left if better[0] > 0 else right
        worst_y = bottom if better[1] > 0 else top
        corners = front if better[0] > 0 else front[::-1]
        path = [(worst_x, corners[0][1]), *corners, (corners[-1][0], worst_y)]
        ax.plot(*zip(*path, strict=True), color="0.55", linewidth=1.2, linestyle="--", zorder=1, drawstyle="steps-pre")
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_xlabel(f"{across.title} ({_better(across, '→', '←')})")
    ax.set_ylabel(f"{up.title} ({_better(up, '↑', '↓')})")
    ax.locator_params(nbins=6)
    plain(ax)


def _name_points(ax: Axes, table: Comparison, groups: Sequence[Group], x: str, y: str) -> None:
    """Write beside each point what tells it from the others, where there are few."""
    drawn = [group for group in groups if x in group.estimates and y in group.estimates]
    within = [key for key in table.keys if len({comparable(group, key) for group in drawn}) > 1]
    if not within or len(drawn) > _NAMED:
        return
    told = [", ".join(show(group.leaves[key]) for key in within if key in group.leaves) for group in drawn]
    places = [(group.estimates[x].mean, group.estimates[y].mean) for group in drawn]
    place_labels(ax, [(at, text) for at, text in zip(places, told, strict=True) if text])


def draw_bars(lines: Callable[..., Any], rows: Sequence[tuple[float, float, float]], **style: Any) -> None:
    """Draw a bar for each row by ``hlines`` or ``vlines`` of an axes; a row is its place and its two ends."""
    if rows:
        lines(*zip(*rows, strict=True), **style)


def _better(metric: Metric, up: str, down: str) -> str:
    return {1: f"higher is better {up}", -1: f"lower is better {down}", 0: "no direction"}[metric.sign]
