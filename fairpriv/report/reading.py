"""What a comparison settles, what it does not, and why: the sentences that a report begins with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fairpriv.metrics import Metric
from fairpriv.report.comparison import UNDEFENDED, Comparison, Estimate, Group

LEVEL = 0.05
_TOLD = 4  # differences that the first sentence names
_TWO, _ONE = "of two seeds, which cannot tell", "of one seed, which cannot tell"
_ALIKE, _NONE = "of one and the same value at every seed, whose spread cannot tell", "without an interval"


class Difference(NamedTuple):
    """A row's difference to its baseline in one metric."""

    group: Group
    metric: Metric
    estimate: Estimate


def number(metric: Metric, value: float, sign: str = "") -> str:
    """Write three decimals for a share, else four significant digits."""
    return f"{value:{sign}.3f}" if metric.fraction else f"{value:{sign}.4g}"


def interval_text(metric: Metric, estimate: Estimate, n: int, sign: str = "") -> str:
    """Write the interval behind a mean, and its n where that is not ``n``.

    It is ``±half-width`` or ``[lo, hi]``; of two seeds ``±?``, since they cannot tell.
    """
    text = ""
    if estimate.n == 2 and estimate.lo is not None:
        text = "±?"
    elif estimate.half is not None:
        text = f"±{number(metric, estimate.half)}"
    elif estimate.lo is not None and estimate.hi is not None:
        text = f"[{number(metric, estimate.lo, sign)}, {number(metric, estimate.hi, sign)}]"
    return text if estimate.n == n else f"{text} (n={estimate.n})".strip()


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Tell which of several hypotheses are rejected, so that the chance of one false rejection is at most ``level``.

    Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure: the k-th smallest of n is rejected if it is at
    most level / (n - k + 1), and all smaller ones are.
    """
    rejected = [False] * len(p_values)
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] > level / (len(p_values) - k):
            break
        rejected[i] = True
    return rejected


def differences(table: Comparison) -> list[Difference]:
    """List the differences that the table shows, of every row without degenerate cells that is no control.

    Its baseline has no degenerate cell either. They are of the metrics that have a direction. Where a cell has measured
    its change against the untouched model on the same prompts, this is the difference to ``defense=none``.
    """
    metrics = [metric for metric in table.columns.values() if metric.sign]
    found = []
    for group in table.groups:
        if not _able(group):
            continue
        for metric in metrics:
            whole = metric.name.removesuffix("_change")
            if whole != metric.name and whole in table.columns:
                continue  # the same difference
            change = group.estimates.get(f"{whole}_change") if table.baseline == UNDEFENDED else None
            if estimate := change or group.differences.get(metric.name):
                found.append(Difference(group, metric, estimate))
    return found


def reading(table: Comparison) -> list[str]:
    """Write two or three sentences on what is settled, what is not, and why.

    A difference is settled where its 95 % interval leaves out 0 after Holm's correction for all that the table shows.
    """
    found = differences(table)
    against = ",".join(map(str, table.baseline))
    told = [(one, p) for one in found if (p := one.estimate.p) is not None]
    settled = holm([p for _, p in told])
    clear = sorted(
        ((p, one) for (one, p), yes in zip(told, settled, strict=True) if yes),
        key=lambda item: (item[0], -abs(item[1].estimate.mean)),
    )
    n = len(found)
    if not n:
        first = f"Nothing is settled: {_nothing(table, against)}."
    elif not told:
        first = f"Nothing is settled: none of {n} differences to {against} has an interval."
    elif not clear:
        first = (
            f"Nothing is settled: after correction for {len(told)} comparisons (Holm), no interval of a difference to "
            f"{against} leaves out 0."
        )
    else:
        texts = [_told(table, one) for _, one in clear[:_TOLD]]
        more = f"; and {len(clear) - _TOLD} more" if len(clear) > _TOLD else ""
        first = (
            f"Settled: {len(clear)} of {n} differences to {against}, whose 95 % intervals leave out 0 after correction "
            f"for {len(told)} comparisons (Holm): {'; '.join(texts)}{more}."
        )
    return [
        first,
        *_open(found, len(told), sum(p < LEVEL for _, p in told) - len(clear), len(clear)),
        *_why(table, found),
    ]


def _nothing(table: Comparison, against: str) -> str:
    """Say why the table has no difference that could settle anything."""
    if table.ambiguous and not any(group.partners for group in table.groups):
        return f"of {against} there are several rows that a row could be compared with"
    if not any(group.partners for group in table.groups if _able(group)):
        return f"no row that could settle anything has a row of {against} to be compared with"
    if not any(metric.sign for metric in table.columns.values()):
        return "the table has no mean of which higher or lower is better"
    return f"no metric of the table was measured at one seed both in a row and in its row of {against}"


def _able(group: Group) -> bool:
    """Tell whether a row's differences could settle anything: no control, and neither it nor its baseline trivial."""
    return not (group.degenerate or group.control is not None or any(other.degenerate for other in group.partners))


def _told(table: Comparison, one: Difference) -> str:
    mean = number(one.metric, one.estimate.mean, "+")
    interval = interval_text(one.metric, one.estimate, one.estimate.n, "+")
    return f"{table.name(one.group)}: {one.metric.title} {mean} {interval} ({_worth(one)})"


def _worth(one: Difference) -> str:
    """Say whether a difference is for the better; it is not between two values that are both beyond guessing."""
    difference, metric = one.estimate.mean, one.metric
    if own := one.group.estimates.get(metric.name):
        difference = metric.ranked(own.mean) - metric.ranked(own.mean - difference)
    if not difference:
        return "neither is better than guessing"
    return "better" if difference * metric.sign > 0 else "worse"


def _open(found: Sequence[Difference], told: int, alone: int, clear: int) -> list[str]:
    """Write the sentence on the differences that are not settled."""
    if not found or len(found) == clear:
        return []
    parts = []
    if rest := told - clear - alone:
        parts.append(f"{rest} whose interval holds 0")
    if alone:
        parts.append(f"{alone} whose interval leaves out 0 only without the correction")
    why = Counter(_untested(one.estimate) for one in found if one.estimate.p is None)
    parts += [f"{why[text]} {text}" for text in (_TWO, _ONE, _ALIKE, _NONE) if why[text]]
    return [f"Not settled: {', '.join(parts)}."] if parts else []


def _untested(estimate: Estimate) -> str:
    """Say why a difference has no p value."""
    if estimate.ends is not None:
        return _ALIKE
    return {2: _TWO, 1: _ONE}.get(estimate.n, _NONE)


def _why(table: Comparison, found: Sequence[Difference]) -> list[str]:
    """Write the sentence on what weakens the rest: trivial rows, unlike ones, controls, floors, one seed."""
    parts = []
    trivial = [group for group in table.groups if group.degenerate]
    if trivial:
        parts.append(f"{len(trivial)} of {len(table.groups)} rows have a degenerate cell and settle nothing")
    if beside := [g for g in table.groups if not g.degenerate and any(other.degenerate for other in g.partners)]:
        parts.append(f"{len(beside)} {'is' if len(beside) == 1 else 'are'} compared with such a row")
    if unlike := [g for g in table.groups if g.unlike]:
        keys = sorted({key for group in unlike for key in group.unlike})
        told = ", ".join(keys[:_TOLD]) + (" ..." if len(keys) > _TOLD else "")
        them = "differs from the row that it is" if len(unlike) == 1 else "differ from the row that they are"
        parts.append(f"{len(unlike)} {them} compared with in {told}, too")
    if unpaired := sum(g.unpaired > 0 for g in table.groups):
        parts.append(f"differences of {unpaired} are of a part of their cells, the others having no such row")
    if controls := sum(group.control is not None for group in table.groups):
        parts.append(f"{controls} are controls" if controls > 1 else "1 is a control")
    floored = [
        (estimate, group.floors[name][1])
        for group in table.groups
        for name, metric in table.columns.items()
        if metric.sign <= 0  # where higher is better, as for the worst group's accuracy, what is found lies below
        and name in group.floors
        and (estimate := group.estimates.get(name))
        and estimate.n != 2
    ]
    if floored:
        low = sum((one.ends[0] if one.ends else one.mean) <= floor for one, floor in floored)
        if low:
            parts.append(f"{low} of {len(floored)} gaps and leakages do not rise above their floor")
    if any(one.estimate.n == 1 and one.estimate.ends for one in found):
        parts.append("intervals of one seed are over test rows, so that another seed may say otherwise")
    return [f"Caution: {'; '.join(parts)}."] if parts else []
