"""Plots of the game: the measured gap against its bound from the fairness gap, and attacks' gains against alpha."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairpriv.report.comparison import ALPHA, Comparison, Group, comparable
from fairpriv.report.selection import show
from fairpriv.report.style import COLOURS, MARKERS, new_figure, plain
from fairpriv.report.tradeoff import draw_bars, series_styles
from fairpriv.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIRA_RATE = re.compile(r"eval/[^/]+/lira_tpr_at_([0-9.e-]+)")
NULL = 0.5  # the alpha at which both worlds are one distribution
GAPS = (("privacy/accuracy_gap", "accuracy gap"), ("privacy/balanced_accuracy_gap", "balanced gap"))
NOT_COVERED = (
    "The bound is on the gaps of one fixed model between two test worlds. It bounds no adversary that guesses which "
    "world the model was trained on: see the attacks."
)


def bound_figure(table: Comparison) -> Figure | None:
    """Draw every cell's gap against ``Delta_EO * W``, with the diagonal; points above it are marked by the reason.

    ``Delta_EO * W`` bounds the balanced gap; the plain accuracy gap may exceed it by the label shift. Rates and gap
    come from different halves of the test rows, so that sampling error alone can lift a point. None with fewer than two
    alphas, since pure groups cannot test a bound.
    """
    from matplotlib.figure import Figure

    if len({group.leaves.get(ALPHA) for group in table.groups}) < 2:
        return None
    cells = [result for group in table.groups for result in group.completed.values()]
    cells = [r for r in cells if None not in (_reach(r), *(r.metrics.get(gap) for gap, _ in GAPS))]
    if not cells:
        return None
    figure = Figure(figsize=(9.8, 5.2))
    figure.subplots_adjust(0.07, 0.22, 0.98, 0.92, 0.18)
    for ax, (gap, label) in zip(figure.subplots(1, 2), GAPS, strict=True):
        _bound_panel(ax, cells, gap, label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 0.05))
    figure.text(0.07, 0.02, NOT_COVERED, fontsize=7.5, color="0.3")
    return figure


def _reach(result: Result) -> float | None:
    delta, weight = (result.metrics.get(name) for name in ("fairness/equalized_odds_gap", "privacy/shift_weight"))
    return None if delta is None or weight is None else delta * weight


def standing(result: Result, gap: str) -> str:
    """Compare a cell's gap with ``Delta_EO * W``: under it, or over it and why; the result is a key of ``STANDINGS``.

    Only a gap whose interval lies above that of ``Delta_EO * W`` contradicts it; any other gap above it is sampling
    error. For the plain accuracy gap, label shift is the reason where the interval of the full bound reaches it.
    """

    def end(metric: str, which: int) -> float | None:
        return result.intervals.get(metric, [None, None])[which]

    value, reach, weight = result.metrics[gap], _reach(result), result.metrics["privacy/shift_weight"]
    assert value is not None
    assert reach is not None
    assert weight is not None
    if value <= reach:
        return "under the diagonal"
    least, delta, bound = end(gap, 0), end("fairness/equalized_odds_gap", 1), end("privacy/bound", 1)
    if least is None or delta is None or least <= delta * weight:
        return "over it: sampling error"
    shifted = gap == "privacy/accuracy_gap" and (bound is None or least <= bound)
    return "over it: label shift" if shifted else "over it: refuted"


STANDINGS = {
    "under the diagonal": COLOURS[0],
    "over it: label shift": COLOURS[4],
    "over it: sampling error": COLOURS[5],
    "over it: refuted": COLOURS[1],
}


def _bound_panel(ax: Axes, cells: Sequence[Result], gap: str, label: str) -> None:
    for kind, colour in STANDINGS.items():
        chosen = [r for r in cells if standing(r, gap) == kind]
        x, y = [_reach(r) or 0.0 for r in chosen], [r.metrics[gap] or 0.0 for r in chosen]
        ax.plot(x, y, "o", color=colour, markersize=5, alpha=0.85, label=kind)
        ends = [(at, *r.intervals.get(gap, (None, None))) for r, at in zip(chosen, x, strict=True)]
        bars = [(at, low, high) for at, low, high in ends if low is not None and high is not None]
        draw_bars(ax.vlines, bars, color=colour, linewidth=0.7, alpha=0.5)
    against = [r for r in cells if standing(r, gap) in ("over it: label shift", "over it: refuted")]
    degenerate = sum(bool(r.degenerate) for r in against)
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([0, top], [0, top], "--", color="0.55", linewidth=1)
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    ax.set_xlabel("equalized-odds gap x shift weight, on one half of the test rows")
    ax.set_ylabel(f"{label}, on the other half")
    ax.set_title(label, loc="left", fontweight="bold")
    told = f"{len(against)} of {len(cells)} cells contradict the diagonal by their intervals"
    ax.text(0.02, 0.97, f"{told}, {degenerate} degenerate", transform=ax.transAxes, fontsize=7.5, color="0.3", va="top")
    plain(ax)


def advantage_figure(table: Comparison) -> Figure | None:
    """Draw each attack's leakage against alpha, by dataset (rows) and defence (columns); None with only one alpha.

    Dotted lines show the attack at alpha 0.5, where both worlds are one distribution. Results of the earlier design
    have no leakage, so the advantage is drawn.
    """
    from matplotlib.lines import Line2D

    attacks, folded = _attacks(table, "advantage")
    panels: dict[str, dict[str, list[Group]]] = {}
    for dataset, groups in table.datasets.items():
        drawn = [g for g in groups if ALPHA in g.leaves and any(attack in g.estimates for attack in attacks)]
        others = [key for key in varying(table, drawn) if key != ALPHA]
        for group in drawn:
            setting = ", ".join(
                [group.defence + group.mark, *(f"{key}={show(group.leaves.get(key))}" for key in others)]
            )
            panels.setdefault(dataset, {}).setdefault(setting, []).append(group)
    settings = list(dict.fromkeys(name for row in panels.values() for name in row))
    if not attacks or ALPHA not in table.keys:
        return None
    figure = new_figure(3.3 * len(settings), 2.7 * len(panels) + 0.8)
    axes = figure.subplots(len(panels), len(settings), squeeze=False, sharex=True, sharey=True)
    drawn = [group for row in panels.values() for groups in row.values() for group in groups]
    axes[0][0].set_xticks(sorted({float(group.leaves[ALPHA]) for group in drawn}))
    for row, (dataset, columns) in zip(axes, panels.items(), strict=True):
        for ax, setting in zip(row, settings, strict=True):
            groups = sorted(columns.get(setting, []), key=lambda group: float(group.leaves[ALPHA]))
            for i, attack in enumerate(attacks):
                _advantage_line(ax, groups, attack, i)
            if not folded:
                ax.axhline(0, color="0.55", linewidth=1, linestyle="--")
            ax.set_title(f"{dataset}, {setting}", loc="left", fontsize=8, fontweight="bold")
            ax.set_ylim(*((0, 0.52) if folded else (-1.05, 1.05)))
            plain(ax)
        row[0].set_ylabel("leakage (0: guessing)" if folded else "advantage (0: guessing)")
    for ax in axes[-1]:
        ax.set_xlabel("alpha")
    handles = axes[0][0].get_legend_handles_labels()[0]
    if any(group.leaves.get(ALPHA) == NULL for group in table.groups):
        handles.append(Line2D([], [], color="0.4", linewidth=0.8, linestyle=":", label="at alpha 0.5: nothing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(2 * len(settings), len(handles)))
    return figure


def _attacks(table: Comparison, otherwise: str) -> tuple[list[str], bool]:
    """Find the metrics by which attacks are drawn, and whether they are leakages; ``otherwise`` if no cell has one."""
    leakages, others = (
        [m for m in table.metrics if re.fullmatch(f"attack/[^/]+/{kind}", m)] for kind in ("leakage", otherwise)
    )
    return leakages or others, bool(leakages)


def varying(table: Comparison, groups: Sequence[Group]) -> list[str]:
    """List the keys of the table that distinguish these groups."""
    return [key for key in table.keys if len({comparable(group, key) for group in groups}) > 1]


def membership_figure(table: Comparison) -> Figure | None:
    """Draw LiRA's true-positive rate at low false-positive rates, a panel a setting, beside what privacy allows.

    The grey diagonal is guessing. A dashed line is the bound that the defence's (epsilon, delta) puts on every attack,
    where its whole training is private. None without such rates.
    """
    from matplotlib.figure import Figure

    rates = {metric: float(match[1]) / 100 for metric in table.metrics if (match := _LIRA_RATE.fullmatch(metric))}
    settings = {
        title: drawn
        for title, groups in table.settings.items()
        if (drawn := [group for group in groups if any(metric in group.estimates for metric in rates)])
    }
    if not settings:
        return None
    styles = series_styles(table)
    width = 4.4 * len(settings)
    figure = Figure(figsize=(width, 4.6))
    figure.subplots_adjust(0.8 / width, 0.33, 1 - 0.15 / width, 0.92, 0.25)
    axes = figure.subplots(1, len(settings), squeeze=False)[0]
    for ax, (title, groups) in zip(axes, settings.items(), strict=True):
        least, most = min(rates.values()) / 2, max(rates.values()) * 2
        # No straight line on these axes, and with a bend at the least rate.
        along = sorted({*rates.values(), *(least * (most / least) ** (k / 100) for k in range(101))})
        ax.plot(along, along, color="0.6", linewidth=1, label="guessing")
        for k, group in enumerate(groups):
            name = table.series(group)
            colour, marker = styles[name]
            shift = 1.06 ** (k - (len(groups) - 1) / 2)  # so that defences do not hide one another
            found = {rate: group.estimates[metric] for metric, rate in rates.items() if metric in group.estimates}
            ax.plot(
                [rate * shift for rate in found], [one.mean for one in found.values()], marker, color=colour, label=name
            )
            bars = [(rate * shift, *one.ends) for rate, one in found.items() if one.ends]
            draw_bars(ax.vlines, bars, color=colour, linewidth=1)
            allowed = {metric: metric.replace("lira_tpr_at", "tpr_bound_at") for metric in rates}
            bound = sorted((rates[m], group.estimates[b].mean) for m, b in allowed.items() if b in group.estimates)
            if bound:
                ax.plot(*zip(*bound, strict=True), "_--", color=colour, linewidth=1, label=f"{name}: bound by epsilon")
        ax.set_xscale("log")
        ax.set_yscale("symlog", linthresh=min(rates.values()))
        ax.set_ylim(0, 1.2)
        at = [rate for rate in (0.0, 0.0001, 0.001, 0.01, 0.1, 1.0) if not 0 < rate < min(rates.values())]
        ax.set_yticks(at, [f"{100 * rate:g} %" for rate in at], minor=False)
        ax.set_xticks([*rates.values()], [f"{100 * rate:g} %" for rate in rates.values()], minor=False)
        ax.minorticks_off()
        ax.set_xlabel("false-positive rate")
        ax.set_title(title, loc="left")
    axes[0].set_ylabel("LiRA: true-positive rate")
    told = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(told.values(), told.keys(), loc="lower center", ncols=max(2, int(width / 2.3)), frameon=False)
    return figure


def attack_figure(table: Comparison) -> Figure | None:
    """Draw a heat map a dataset: the leakage of each attack (columns) against each defence and adversary (rows).

    Each field holds the mean over seeds and its 95 % interval. Cells with alpha 0.5, where both worlds are one
    distribution, are rows of their own, which show results when there is nothing to find. Results of the earlier design
    have no leakage, so the accuracy is drawn, with one half in the middle of the colours. None with fewer than two
    attacks, or with several alphas beside 0.5, which `advantage_figure` draws.
    """

    attacks, folded = _attacks(table, "accuracy")
    alphas = {group.leaves.get(ALPHA) for group in table.groups} - {NULL}
    panels: dict[str, list[Group]] = {}
    for dataset, groups in table.datasets.items():
        if drawn := [group for group in groups if any(attack in group.estimates for attack in attacks)]:
            panels[dataset] = drawn
    if len(attacks) < 2 or len(alphas) > 1:
        return None
    rows = [len(groups) for groups in panels.values()]
    figure = new_figure(max(3.0 + 1.25 * len(attacks), 6.5), 0.27 * sum(rows) + 0.75 * len(panels) + 0.3)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    for ax, (dataset, groups) in zip(axes, panels.items(), strict=True):
        found = [[group.estimates.get(attack) for attack in attacks] for group in groups]
        means = [[estimate.mean if estimate else math.nan for estimate in row] for row in found]
        if folded:
            ax.imshow(means, cmap="Reds", vmin=0, vmax=0.5, aspect="auto")
        else:
            ax.imshow(means, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(found):
            for x, estimate in enumerate(row):
                if estimate is None:
                    continue
                interval = " [{:.2f}, {:.2f}]".format(*estimate.ends) if estimate.ends else ""
                strong = "white" if abs(estimate.mean - (0 if folded else 0.5)) > 0.3 else "black"
                ax.text(x, y, f"{estimate.mean:.2f}{interval}", ha="center", va="center", fontsize=7, color=strong)
        keys = [key for key in varying(table, groups) if key != ALPHA]
        names = [
            ", ".join(
                [
                    group.defence + group.mark,
                    *(f"{key}={show(group.leaves.get(key))}" for key in keys),
                    *(["alpha 0.5: nothing"] if group.leaves.get(ALPHA) == NULL else []),
                ]
            )
            for group in groups
        ]
        ax.set_yticks(range(len(groups)), names, fontsize=7.5)
        ax.set_xticks(range(len(attacks)), [attack.split("/")[1].replace("_", " ") for attack in attacks], fontsize=7.5)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        what = "leakage (0: guessing)" if folded else "attacks' accuracy (0.5: guessing)"
        ax.set_title(f"{dataset}: {what}", loc="left", fontweight="bold")
    return figure


def _advantage_line(ax: Axes, groups: Sequence[Group], attack: str, number: int) -> None:
    points = [(float(g.leaves[ALPHA]), g.estimates[attack]) for g in groups if attack in g.estimates]
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    name = attack.split("/")[1].replace("_", " ")
    if null := next((e for alpha, e in points if alpha == NULL), None):
        ax.axhline(null.mean, color=colour, linewidth=0.8, linestyle=":")
    shifted = [alpha + 0.004 * number for alpha, _ in points]  # so that error bars do not cover one another
    ax.plot(shifted, [e.mean for _, e in points], color=colour, marker=marker, markersize=4, linewidth=1, label=name)
    for at, (_, estimate) in zip(shifted, points, strict=True):
        if estimate.ends:
            ax.plot([at, at], estimate.ends, color=colour, linewidth=0.8)
