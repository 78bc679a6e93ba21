"""Plots of the trade-off matrix: the effect of tuning or editing for some dimensions on each of the others."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

from fairpriv.report.comparison import Comparison, Estimate, Group, comparable
from fairpriv.report.reading import holm
from fairpriv.report.selection import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANGE = re.compile(r"eval/([^/]+)/(?:awareness|score)_change")


def aimed_at(group: Group) -> list[str]:
    """List the dimensions that a group is tuned on, or that its edit couples; none for the untouched model."""
    key = "defense.dimensions" if "defense.dimensions" in group.leaves else "dataset.dimensions"
    if group.leaves.get("defense.name") == "none" or not isinstance(group.leaves.get(key), list):
        return []
    return [str(name) for name in group.leaves[key]]


def matrix_figure(table: Comparison) -> Figure | None:
    """Draw the change against the untouched model, by defence and its target dimensions (rows) and dimension (columns).

    A change is of the dimension's awareness or score, with its 95 % interval; bold where it is settled (`_heat_maps`).
    The targets of a row are framed. None unless at least two rows have different targets and two dimensions are
    measured.
    """
    columns = {match[1]: metric for metric in table.metrics if (match := CHANGE.fullmatch(metric))}
    rows = [group for group in table.groups if aimed_at(group)]
    if len(columns) < 2 or len({tuple(aimed_at(group)) for group in rows}) < 2:
        return None
    told = [key for key in table.keys if key not in ("dataset.name", "dataset.dimensions", "defense.dimensions")]
    told = [key for key in told if len({comparable(group, key) for group in rows if key in group.leaves}) > 1]

    def label(group: Group) -> str:
        more = [f"{key.rpartition('.')[2]}={show(group.leaves[key])}" for key in told if key in group.leaves]
        return f"{group.defence}: {', '.join([' + '.join(aimed_at(group)), *more])}"

    tables = {
        "Rows aim at what is framed": [
            Row(
                label(group) + ("†" if group.degenerate else ""),
                [group.estimates.get(metric) for metric in columns.values()],
                [dimension in aimed_at(group) for dimension in columns],
            )
            for group in rows
        ]
    }
    heads = [name.replace("_", " ") for name in columns]
    return _heat_maps(tables, heads, [1] * len(heads), "change against the untouched model")


def classifier_matrix_figure(table: Comparison) -> Figure | None:
    """Draw a map for each dataset and game: the effect of every defence on every dimension of a classifier.

    Effects are changes against `none`: the mean paired difference over seeds with its 95 % interval, bold where it is
    settled (`_heat_maps`). Colour says better or worse, relative to the largest change of the column. None unless two
    dimensions are measured and a defence is compared with the baseline.
    """
    columns = [metric for metric in table.headlines if table.described[metric].sign]
    settings = {
        title: [group for group in groups if any(metric in group.differences for metric in columns)]
        for title, groups in table.settings.items()
        if any("game.alpha" in group.leaves for group in groups)  # classifiers; of language models see above
    }
    settings = {title: groups for title, groups in settings.items() if groups}
    if len(columns) < 2 or not settings:
        return None
    tables = {
        title: [
            Row(name + ("†" if group.degenerate else ""), [group.differences.get(m) for m in columns], [])
            for group, name in zip(groups, _names(table, groups), strict=True)
        ]
        for title, groups in settings.items()
    }
    heads = [table.described[metric].title for metric in columns]
    signs = [table.described[metric].sign for metric in columns]
    return _heat_maps(tables, heads, signs, "paired change against the baseline")


def _names(table: Comparison, groups: Sequence[Group]) -> list[str]:
    """Name the rows of one map by their defences, or where these are the same by everything that tells them apart."""
    short = [table.series(group) for group in groups]
    return short if len({*short}) == len(short) else [table.name(group) for group in groups]


class Row(NamedTuple):
    """A line of a heat map."""

    label: str
    changes: list[Estimate | None]
    framed: list[bool]


def _heat_maps(tables: Mapping[str, Sequence[Row]], heads: Sequence[str], signs: Sequence[int], about: str) -> Figure:
    """Draw maps one below another; a cell's colour is its change times its column's sign, darker where it is larger.

    Bold are changes that differ from 0 after Holm's correction for all intervals of the picture. Pale are those whose
    own interval contains 0, since a column's largest change may be noise.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    labels = [row.label for rows in tables.values() for row in rows]
    left, side, height, between, below = 0.5 + 0.065 * max(map(len, labels)), 1.25, 0.46, 0.5, 1.35
    width = left + side * len(heads) + 0.9
    tall = below + sum(between + height * len(rows) for rows in tables.values())
    figure = Figure(figsize=(width, tall))
    changes = [one for rows in tables.values() for row in rows for one in row.changes if one is not None]
    tested = {id(one): one.p for one in changes if one.p is not None}
    settled = {place for place, clear in zip(tested, holm([*tested.values()]), strict=True) if clear}
    alike = len({*signs}) == 1  # changes of one scale, which share their colours
    top = tall
    for title, rows in tables.items():
        top -= between + height * len(rows)
        box = (left / width, top / tall, side * len(heads) / width, height * len(rows) / tall)
        ax = figure.add_axes(box)
        values = [[nan if one is None else one.mean for one in row.changes] for row in rows]
        columns = [[abs(row[x]) for row in values if row[x] == row[x]] for x in range(len(heads))]
        most = [max(column, default=0.0) or 1.0 for column in columns]
        most = [max(most)] * len(most) if alike else most
        shades = [[sign * v / m for v, sign, m in zip(row, signs, most, strict=True)] for row in values]
        for y, row in enumerate(rows):
            for x, one in enumerate(row.changes):
                if one is not None and (one.ends is None or one.ends[0] <= 0 <= one.ends[1]):
                    shades[y][x] *= 0.3
        image: Any = ax.imshow(shades, cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
        for y, row in enumerate(rows):
            for x, estimate in enumerate(row.changes):
                if row.framed and row.framed[x]:
                    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6))
                if estimate is None:
                    ax.text(x, y, "not measured", ha="center", va="center", fontsize=7, color="0.4")
                    continue
                ends = estimate.ends
                text = f"{estimate.mean:+.3f}" + (f"\n[{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "")
                colour = "white" if abs(shades[y][x]) > 0.7 else "black"
                weight = "bold" if id(estimate) in settled else "normal"
                ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=colour, fontweight=weight)
        ax.set_yticks(range(len(rows)), [row.label for row in rows])
        ax.set_xticks(range(len(heads)), [textwrap.fill(head, 14) for head in heads])
        ax.set_title(title, loc="left", fontsize=9)
        ax.tick_params(length=0, labelbottom=title == [*tables][-1])
    alone = sum(not one.ends[0] <= 0 <= one.ends[1] for one in changes if one.ends)
    count = sum(one.ends is not None for one in changes)
    ax.set_xlabel(
        f"{about}, with 95 % intervals\nof {count}, {alone} exclude zero, where chance alone gives about "
        f"{count / 20:.0f}\nbold: {len(settled)} that do so after Holm's correction for all; pale: not even alone",
        labelpad=8,
    )
    bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.7 / width, top / tall, 0.15 / width, box[3])))
    bar.set_ticks([-1, 0, 1], labels=["worse", "0", "better"])
    bar.outline.set_visible(False)
    return figure
