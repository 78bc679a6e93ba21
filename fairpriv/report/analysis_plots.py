"""Plots of the analyses of language models: coupling, dependence, cautionary phrases and flipped verdicts."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairpriv.report.comparison import BASELINE, Comparison, Estimate, Group
from fairpriv.report.game_plots import varying
from fairpriv.report.selection import show
from fairpriv.report.style import COLOURS, new_figure, plain
from fairpriv.result import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
MOST = 8  # groups that a figure draws, which says so where there are more


def coupling_figure(table: Comparison) -> Figure | None:
    """Draw suppressed weights by layer and module, and by layer the overlap of the dimensions' top weights.

    Each row is a group, with means over its seeds. Left is a heat map. Right is Jaccard's index of every pair of
    dimensions, and of each with an excluded set (dotted), beside its mean and central 95 % by chance, for random sets
    of the same sizes. None where no cell has kept its details.
    """
    found = _kept(table, "overlaps", "overlaps.jsonl")
    if not found:
        return None
    figure, axes = _panels(found, 11.0, 2.0)
    _tell_of_more(figure, table, "overlaps")
    every = [row for _, cells in found for cell in cells for row in cell]
    most = max(row["suppressed"] for row in every if row["layer"] and row["module"])
    for (left, right), (group, cells) in zip(axes, found, strict=True):
        _heat_map(figure, left, cells, max(most, 1))
        left.set_title(f"{_name(table, group)}: weights suppressed", loc="left", fontsize=8.5, fontweight="bold")
        pairs = list(dict.fromkeys(pair for cell in cells for row in cell for pair in row["pairs"]))
        dimensions = group.leaves.get("defense.dimensions") or []
        for i, pair in enumerate(sorted(pairs, key=lambda pair: not _within(pair, dimensions))):
            rows = [[_overlap(row, pair) for row in cell] for cell in cells]
            style = "-" if _within(pair, dimensions) else ":"
            _draw(right, _by_layer(rows, "jaccard"), COLOURS[i % 6], pair, style)
            if i == 0:
                _draw(right, _by_layer(rows, "by_chance"), "0.45", "by chance, with its 95 %", "--")
        right.set_ylim(bottom=-0.03 * right.get_ylim()[1])  # chance lies close to zero
        right.set_title("Jaccard of the top weights", loc="left", fontsize=8.5, fontweight="bold")
        plain(right)
    _finish(figure, axes)
    return figure


def dependence_figure(table: Comparison) -> Figure | None:
    """Draw HSIC of the dimensions' representations by layer, before and after each group's edit.

    Each row is a group, with means over its seeds: left with the coordinates that two dimensions share, right without
    them. The title gives the change over all layers with its interval. An unbiased estimate can be negative for
    independent representations. None where no cell has kept its details.
    """
    found = _kept(table, "hsic", "hsic.jsonl")
    if not found:
        return None
    figure, axes = _panels(found, 9.8, 2.4)
    _tell_of_more(figure, table, "hsic")
    measures = {"hsic": "all coordinates", "hsic_apart": "without those that both share"}
    for row, (group, cells) in zip(axes, found, strict=True):
        for ax, (measure, what) in zip(row, measures.items(), strict=True):
            told = []
            for i, pair in enumerate(dict.fromkeys(r["pair"] for cell in cells for r in cell)):
                of_pair = [[r for r in cell if (r["pair"], r["measure"]) == (pair, measure)] for cell in cells]
                _draw(ax, _by_layer(of_pair, "before"), COLOURS[i % 6], f"{pair} before", "--")
                _draw(ax, _by_layer(of_pair, "after"), COLOURS[i % 6], f"{pair} after", "-")
                if change := group.estimates.get(f"analysis/{measure}/{pair}/change"):
                    told.append(f"{change.mean:+.2g}{_interval(change)}")
            title = f"{_name(table, group)}: {what}\nchange over all layers {'; '.join(told) or 'none'}"
            ax.set_title(title, loc="left", fontsize=8)
            ax.axhline(0, color="0.6", linewidth=0.8)
            plain(ax)
        row[0].set_ylabel("HSIC")
    _finish(figure, axes)
    return figure


def caution_figure(table: Comparison) -> Figure | None:
    """Draw how often responses hold each family of cautionary phrases: hollow before a defence, filled after it.

    Each panel is a dimension, with the prompts that it is measured on; bars are 95 % intervals. Families that occur in
    no response are left out. None where no cell has kept its details.
    """
    from matplotlib.lines import Line2D

    found = _kept(table, "cautions", "cautions.jsonl")
    rates: dict[str, dict[str, list[tuple[int, Estimate, Estimate | None]]]] = {}
    for number, (_, cells) in enumerate(found):
        rows = [row for cell in cells for row in cell if row["set"] != "benign"]
        for dimension, family in dict.fromkeys((row["dimension"], row["family"]) for row in rows):
            same = [row for row in rows if (row["dimension"], row["family"]) == (dimension, family)]
            if after := _estimate(same, "rate"):
                entry = (number, after, _estimate(same, "rate_before"))
                rates.setdefault(dimension, {}).setdefault(family, []).append(entry)
    for families in rates.values():
        for family, entries in [*families.items()]:
            if not any(after.mean or (before and before.mean) for _, after, before in entries):
                del families[family]
    rates = {dimension: families for dimension, families in rates.items() if families}
    if not rates:
        return None
    most = max(map(len, rates.values()))
    below = 0.28 * -(-(len(found) + 1) // 3) + 0.55
    figure = new_figure(0.9 + 4.6 * len(rates), (0.16 * len(found) + 0.14) * most + below + 0.45)
    for ax, (dimension, families) in zip(figure.subplots(1, len(rates), squeeze=False)[0], rates.items(), strict=True):
        for place, entries in enumerate(families.values()):
            for number, after, before in entries:
                colour = _colour(found[number][0], number)
                y = place + (number - (len(found) - 1) / 2) * 0.8 / len(found)
                if after.ends:
                    ax.plot(after.ends, [y, y], color=colour, linewidth=2.4, alpha=0.3)
                if before:
                    ax.plot([before.mean, after.mean], [y, y], color=colour, linewidth=0.8)
                    ax.plot(before.mean, y, marker="o", markersize=4, color=colour, markerfacecolor="white")
                ax.plot(after.mean, y, marker="o", markersize=4, color=colour)
        ax.set_yticks(range(len(families)), [*families], fontsize=8)
        ax.set_ylim(len(families) - 0.4, -0.6)
        ax.set_xlabel("share of responses")
        ax.set_title(f"{dimension}: cautionary phrases", loc="left", fontweight="bold")
        plain(ax)
    handles = [
        Line2D([], [], color=_colour(group, i), marker="o", markersize=4, label=_name(table, group))
        for i, (group, _) in enumerate(found)
    ]
    if any(before for families in rates.values() for entries in families.values() for _, _, before in entries):
        hollow = Line2D([], [], color="0.3", marker="o", markersize=4, markerfacecolor="white", linestyle="")
        hollow.set_label("hollow: before")
        handles.append(hollow)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    _tell_of_more(figure, table, "cautions")
    return figure


def flip_figure(table: Comparison) -> Figure | None:
    """Draw the prompts whose verdict turned, by group: to the right those that became safe, to the left the others.

    Each panel is a dimension, with means over seeds. None without a cell that has flips.
    """
    prefix = "analysis/flips/"
    found = [group for group in table.groups if any(metric.startswith(prefix) for metric in group.estimates)]
    dimensions = dict.fromkeys(m.split("/")[2] for group in found for m in group.estimates if m.startswith(prefix))
    if not dimensions:
        return None
    names = [textwrap.fill(_name(table, group), 44) for group in found]
    lines = sum(name.count("\n") + 1 for name in names)
    longest = max(len(line) for name in names for line in name.split("\n"))
    figure = new_figure(0.3 + 0.06 * longest + 3.4 * len(dimensions), 0.14 * lines + 0.16 * len(found) + 1.1)
    axes = figure.subplots(1, len(dimensions), squeeze=False, sharey=True)[0]
    most = 1.0
    for ax, dimension in zip(axes, dimensions, strict=True):
        for y, group in enumerate(found):
            for way, sign, colour in (("unsafe_to_safe", 1, COLOURS[0]), ("safe_to_unsafe", -1, COLOURS[1])):
                estimate = group.estimates.get(f"analysis/flips/{dimension}/{way}")
                if estimate is None:
                    continue
                most = max(most, estimate.mean)
                ax.barh(y, sign * estimate.mean, color=colour, height=0.62)
                ax.annotate(
                    f"{estimate.mean:.3g}",
                    (sign * estimate.mean, y),
                    xytext=(3 * sign, 0),
                    textcoords="offset points",
                    ha="left" if sign > 0 else "right",
                    va="center",
                    fontsize=7.5,
                )
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set_title(f"{dimension}: verdicts that turned", loc="left", fontweight="bold")
        ax.set_xlabel("← became unsafe     prompts     became safe →", fontsize=8)
        plain(ax)
    for ax in axes:
        ax.set_xlim(-1.2 * most, 1.2 * most)
        ax.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    axes[0].set_yticks(range(len(found)), names, fontsize=7.5)
    axes[0].set_ylim(len(found) - 0.4, -0.6)
    return figure


def _kept(table: Comparison, artifact: str, file: str) -> list[tuple[Group, list[list[Row]]]]:
    """Find the first groups with such an artifact, and what each cell's file holds, where it is still there."""
    found = []
    for group in _having(table, artifact):
        folders = [result.folder for result in group.completed.values() if artifact in result.artifacts]
        cells = [rows for folder in folders if folder is not None and (rows := read_rows(folder / file))]
        if cells:
            found.append((group, cells))
        if len(found) == MOST:
            break
    return found


def _having(table: Comparison, artifact: str) -> list[Group]:
    return [group for group in table.groups if any(artifact in r.artifacts for r in group.completed.values())]


def _tell_of_more(figure: Figure, table: Comparison, artifact: str) -> None:
    groups = len(_having(table, artifact))
    if groups > MOST:
        text = f"the first {MOST} of {groups} rows of the table"
        figure.text(0.01, 0.05 / figure.get_figheight(), text, fontsize=7.5)


def _name(table: Comparison, group: Group) -> str:
    keys = [key for key in varying(table, table.groups) if key in group.leaves]
    told = [f"{key.rpartition('.')[2]}={show(group.leaves[key])}" for key in keys]
    return ", ".join([group.defence, *told])


def _colour(group: Group, number: int) -> str:
    return "black" if group.defence == BASELINE else COLOURS[number % len(COLOURS)]


def _interval(estimate: Estimate) -> str:
    return f" [{estimate.ends[0]:.2g}, {estimate.ends[1]:.2g}]" if estimate.ends else ""


def _within(pair: str, dimensions: Sequence[str]) -> bool:
    return pair in {f"{a}+{b}" for a in dimensions for b in dimensions}


def _overlap(row: Row, pair: str) -> Row:
    """Turn a pair's values in the row of a whole layer into a row of its own; empty for other rows."""
    return {"layer": None if row["module"] else row["layer"], **row["pairs"].get(pair, {})}


def _estimate(rows: Sequence[Row], key: str) -> Estimate | None:
    """Estimate over cells, with the interval over them or a single cell's own; of chance, the mean of their own."""
    rows = [row for row in rows if row.get(key) is not None]
    values = [row[key] for row in rows]
    ends = [row[f"{key}_interval"] for row in rows if row.get(f"{key}_interval")]
    if key == "by_chance" and ends:
        low, high = (statistics.fmean(end) for end in zip(*ends, strict=True))
        return Estimate(statistics.fmean(values), None, low, high, 1)  # not over seeds, so that two have one, too
    limits = (-math.inf, math.inf) if key in ("before", "after") else (0.0, 1.0)  # HSIC, or shares
    return Estimate.of(values, limits, ends[0] if ends else (None, None))


def _by_layer(cells: Sequence[Sequence[Row]], key: str) -> list[tuple[int, Estimate]]:
    layers: dict[int, list[Row]] = {}
    for row in (row for cell in cells for row in cell):
        if (row["layer"] or "").isdigit():
            layers.setdefault(int(row["layer"]), []).append(row)
    return [(n, estimate) for n, rows in sorted(layers.items()) if (estimate := _estimate(rows, key))]


def _heat_map(figure: Figure, ax: Axes, cells: Sequence[Sequence[Row]], most: float) -> None:
    """Draw suppressed weights: layers to the right, modules downwards."""
    places: dict[tuple[int, str], list[float]] = {}
    for row in (row for cell in cells for row in cell if row["module"] and (row["layer"] or "").isdigit()):
        places.setdefault((int(row["layer"]), row["module"]), []).append(row["suppressed"])
    layers, modules = sorted({layer for layer, _ in places}), list(dict.fromkeys(module for _, module in places))
    means = [[statistics.fmean(places.get((layer, module), [math.nan])) for layer in layers] for module in modules]
    image = ax.imshow(means, cmap="viridis", vmin=0, vmax=most, aspect="auto")
    figure.colorbar(image, ax=ax, pad=0.01).ax.tick_params(labelsize=7)
    ax.set_yticks(range(len(modules)), modules, fontsize=7.5)
    every = max(1, len(layers) // 8)
    ax.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])


def _draw(ax: Axes, points: Sequence[tuple[int, Estimate]], colour: str, name: str, style: str) -> None:
    """Draw a line over the layers, with a band where there are intervals."""
    marker = "o" if len(points) == 1 else None
    layers, means = [layer for layer, _ in points], [estimate.mean for _, estimate in points]
    ax.plot(layers, means, color=colour, linestyle=style, marker=marker, linewidth=1.3, label=name)
    ends = [(layer, *estimate.ends) for layer, estimate in points if estimate.ends]
    if ends:
        x, low, high = zip(*ends, strict=True)
        ax.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)


def _panels(found: Sequence[Any], width: float, each: float) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with a row of two panels for each of ``found``."""
    figure = new_figure(width, each * len(found) + 0.9)
    return figure, figure.subplots(len(found), 2, squeeze=False).tolist()


def _finish(figure: Figure, axes: Sequence[Sequence[Axes]]) -> None:
    """Set the titles of the axes, and one legend for all lines."""
    handles: dict[str, Any] = {}
    for ax in (ax for row in axes for ax in row):
        handles |= {text: line for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=4)
