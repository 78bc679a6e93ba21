"""Results of many cells as groups, with means and intervals over seeds, paired differences and the Pareto front."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from typing import Any

from fairpriv.identity import is_language_model, outcome_config
from fairpriv.metrics import Metric
from fairpriv.report.selection import ABSENT, Condition, short, show, value_at
from fairpriv.result import Result

DATASET, DEFENCE, ALPHA = "dataset.name", "defense.name", "game.alpha"
BASELINE = "none"  # the defence that comes first
UNDEFENDED = (Condition(DEFENCE, "=", (BASELINE,)),)  # what paired differences refer to unless it is named

_NESTED_SEED = re.compile(r"(^|[._])seed$")  # keys of seeds other than the cell's own

FLOOR, NOTHING = "floor", "nothing"  # what stands beside an estimate: see `Group.floors`


def described(results: Iterable[Result]) -> dict[str, Metric]:
    """Describe the metrics of completed cells, by name in alphabetical order, joined where cells differ."""
    found: dict[str, Metric] = {}
    for result in results:
        for name in result.metrics if result.status == "completed" else ():
            metric = result.described.get(name) or result.metric(name)
            known = found.setdefault(name, metric)
            if known is not metric and known != metric:
                found[name] = known.joined(metric)
    return dict(sorted(found.items()))


Rows = Sequence[Sequence[float]]  # of a metric's signed differences: see `Result.signed`


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds with its 95 % interval: over seeds, or one cell's own (``n`` = 1).

    Over seeds it is Student's t interval; for the magnitude of a signed difference it follows from the t intervals of
    the differences. Where seeds are overlapping random splits of one data set, with ``overlap`` test rows per training
    row, their values are not independent: the variance of a mean is s^2 (1/n + overlap) and not s^2/n (Nadeau and
    Bengio, 2003, Machine Learning 52, 239-281), and the interval is about new data.
    """

    mean: float
    half: float | None  # half-width before clipping; None for n = 1 and for magnitudes
    lo: float | None
    hi: float | None
    n: int

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval to show: none of two seeds, whose t quantile is 12.7, so that they cannot tell."""
        return None if self.n == 2 or self.lo is None or self.hi is None else (self.lo, self.hi)

    @property
    def p(self) -> float | None:
        """Two-sided p of the mean being 0, below 0.05 where `ends` leave out 0; None without `ends`, or without spread.

        Over seeds it is that of the t test. Of one cell it is the normal one whose interval has the same end towards 0.
        Seeds that all have one difference other than 0 have no spread to hold it against: metrics are multiples of one
        over the number of test rows, so that three seeds agree by chance more often than once in a table.
        """
        if self.ends is None or (self.n > 1 and self.half is None):
            return None
        if self.n > 1:
            from scipy.special import stdtr

            half, scale = self.half or 0.0, _t_quantile(self.n - 1)
        else:
            half, scale = abs(self.mean - self.ends[self.mean < 0]), statistics.NormalDist().inv_cdf(0.975)
        if abs(self.mean) < 1e-12:
            return 1.0
        if half < 1e-9 * abs(self.mean):  # nothing but rounding
            return None
        below = -scale * abs(self.mean) / half
        return 2 * (float(stdtr(self.n - 1, below)) if self.n > 1 else statistics.NormalDist().cdf(below))

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        limits: tuple[float, float],
        own: Sequence[float | None] = (None, None),
        overlap: float | None = None,
    ) -> Estimate | None:
        """Estimate from one value per seed; the interval is clipped to ``limits``; None without a value."""
        if not values:
            return None
        if len(values) == 1:
            lo, hi = own if None not in own else (None, None)
            return cls(values[0], None, lo, hi, 1)
        mean, half = _mean_and_half(values, overlap)
        return cls(mean, half, max(limits[0], mean - half), min(limits[1], mean + half), len(values))

    @classmethod
    def of_magnitude(
        cls,
        values: Sequence[float],
        limits: tuple[float, float],
        cells: Sequence[Sequence[tuple[float, Rows | None]]],
        overlap: float | None = None,
    ) -> Estimate:
        """Estimate a magnitude, such as an absolute gap, from two or more seeds' ``values``.

        Its interval contains 0 (or the base) if those of all signed differences jointly contain 0 (Bonferroni), and it
        always contains the mean. Unless all cells have signed differences there is no interval: a t interval of the
        magnitudes never covers zero difference.

        Args:
            values: one value per seed.
            limits: lowest and highest value.
            cells: the cells as (value, signed rows or None), one sequence for each set of cells that differ only in
                their seed; the estimate is about the mean of these sets' magnitudes.
            overlap: test rows per training row, for overlapping splits.
        """
        mean = math.fsum(values) / len(values)
        ends = _magnitude_ends(cells, overlap)
        if ends is None:
            return cls(mean, None, None, None, len(values))
        lo, hi = ends
        return cls(mean, None, max(limits[0], min(lo, mean)), min(limits[1], max(hi, mean)), len(values))


def _mean_and_half(values: Sequence[float], overlap: float | None, components: int = 1) -> tuple[float, float]:
    """Return the mean, and half the width of its t interval, as one of so many ``components`` that hold jointly."""
    n = len(values)
    mean = min(max(math.fsum(values) / n, min(values)), max(values))  # not beside equal values, by rounding
    # statistics.stdev takes twenty times as long.
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, _t_quantile(n - 1, components) * math.sqrt(variance * (1 / n + (overlap or 0.0)))


def _magnitude_ends(
    sets: Sequence[Sequence[tuple[float, Rows | None]]], overlap: float | None
) -> tuple[float, float] | None:
    """Bound the mean over sets of a magnitude by the box of all components' intervals; see `of_magnitude`."""
    found: list[list[Rows]] = []
    bases, components = [], 0
    for cells in sets:
        rows = [signed for _, signed in cells if signed is not None and not any(None in row for row in signed)]
        if len(rows) < max(2, len(cells)) or len({tuple(map(len, signed)) for signed in rows}) > 1:
            return None
        found.append(rows)
        components += sum(map(len, rows[0]))
        values = (value for value, _ in cells)
        bases += [value - max(map(_magnitude, signed), default=0.0) for value, signed in zip(values, rows, strict=True)]
    if max(bases) - min(bases) > 1e-6:  # the metric is not this function of its rows
        return None
    total_lo = total_hi = 0.0
    for rows in found:
        boxes = []
        for same in zip(*rows, strict=True):  # one row of all seeds
            ends = (_mean_and_half(numbers, overlap, components) for numbers in zip(*same, strict=True))
            boxes.append(_magnitude_box([(mean - half, mean + half) for mean, half in ends]))
        total_lo += max((lo for lo, _ in boxes), default=0.0)
        total_hi += max((hi for _, hi in boxes), default=0.0)
    base = round(bases[0], 6)  # 0 or one half, without the rounding of the sums
    return base + total_lo / len(found), base + total_hi / len(found)


def _magnitude(row: Sequence[float]) -> float:
    """Return a number's absolute value; for several, a difference of distributions, the total variation."""
    return abs(row[0]) if len(row) == 1 else math.fsum(map(abs, row)) / 2


def _magnitude_box(ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the lowest and highest magnitude of a row whose numbers lie between ``ends``."""
    if len(ends) == 1:
        ((lo, hi),) = ends
        return max(lo, -hi, 0.0), max(hi, -lo)
    # The total variation is the sum of the positive parts, that of the negative parts, and half of both.
    up, down = sum(max(hi, 0.0) for _, hi in ends), sum(max(-lo, 0.0) for lo, _ in ends)
    least = max(sum(max(lo, 0.0) for lo, _ in ends), sum(max(-hi, 0.0) for _, hi in ends))
    return least, min(up, down, sum(max(hi, -lo) for lo, hi in ends) / 2)


@cache
def _t_quantile(degrees: int, components: int = 1) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - 0.025 / components))


@dataclass
class Group:
    """Cells that differ only in their seed, or in what the table does not group by: one row of the table."""

    leaves: dict[str, Any]  # dotted config keys and values that the cells share, without the seed
    completed: dict[str, Result] = field(default_factory=dict)  # by seed, and by what else tells the cells apart
    failed: dict[str, Result] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)  # to the baseline, paired by seed
    # By metric, what it comes to where there is nothing to find, and what that is taken from: FLOOR, the mean of its
    # own <metric>_floor, or NOTHING, its mean in the same cells with game.alpha=0.5.
    floors: dict[str, tuple[str, float]] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)  # metrics whose mean no other sound group of its setting betters
    on_front: bool = False  # of the metrics that were named
    uneven: bool = False  # several cells a seed, and not the same ones for every seed
    codes: set[str] = field(default_factory=set)  # versions of the code behind the cells and what they are compared to
    unread: bool = False  # a language model that is trained on no pairs: what `dataset` says of them is left out
    partners: list[Group] = field(default_factory=list)  # the groups that its differences refer to
    unlike: set[str] = field(default_factory=set)  # config keys, beside the baseline's, in which it is not like these
    unpaired: int = 0  # completed cells of settings that have no baseline, where others have one

    @property
    def dataset(self) -> str:
        return show(self.leaves.get(DATASET))

    @property
    def defence(self) -> str:
        return show(self.leaves.get(DEFENCE))

    @property
    def degenerate(self) -> dict[str, Result]:
        """The completed cells whose outcome is trivial, by seed."""
        return {seed: result for seed, result in self.completed.items() if result.degenerate}

    @cached_property
    def control(self) -> str | None:
        """Why all its cells are null controls, whose training rows do not depend on the training world; else None."""
        reasons = [result.control for result in self.completed.values()]
        return reasons[0] if reasons and None not in reasons else None

    @property
    def mark(self) -> str:
        """Text behind the name of a control; empty for other groups."""
        return " (control)" if self.control is not None else ""

    @property
    def ranked(self) -> bool:
        """Whether it may be the best, or on a front: no cell of it is degenerate, and it is no control.

        It must not use ``game.alpha=0.5`` either: where both worlds are one distribution there is nothing to protect.
        """
        return not self.degenerate and self.control is None and self.forms.get(ALPHA) != _form(0.5)

    @cached_property
    def language_model(self) -> bool:
        """Whether its cells are of language models."""
        return any(is_language_model(result.config) for result in (self.completed | self.failed).values())

    @cached_property
    def overlap(self) -> float | None:
        """Most test rows per training row of any cell, where seeds are overlapping splits of one data set."""
        found = [result.overlap for result in self.completed.values()]
        return max((o for o in found if o is not None), default=None) if None not in found else None

    @property
    def seeds(self) -> int:
        """Number of seeds that have a completed cell."""
        return len({_seed(result) for result in self.completed.values()})

    def values(self, metric: str) -> Mapping[str, float]:
        """Return the metric by seed, where a completed cell has it; the mean where a seed has several cells."""
        return self._values.get(metric, {})

    @cached_property
    def _values(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, list[float]]] = {}
        for result in self.completed.values():
            seed = _seed(result)
            for metric, value in result.metrics.items():
                if value is not None:
                    found.setdefault(metric, {}).setdefault(seed, []).append(value)
        return {
            metric: {seed: v[0] if len(v) == 1 else statistics.fmean(v) for seed, v in values.items()}
            for metric, values in found.items()
        }

    @cached_property
    def forms(self) -> dict[str, str]:
        """The values of ``leaves`` in a form that can be compared: 1 equals 1.0, and not '1'."""
        return {key: _form(value) for key, value in self.leaves.items()}

    def tally(self, metric: str) -> str:
        """Write in how many of the cells that have it the metric is one, as 'k/n'."""
        values = [value for r in self.completed.values() if (value := r.metrics.get(metric)) is not None]
        return f"{sum(value == 1 for value in values)}/{len(values)}" if values else ABSENT


@dataclass
class Comparison:
    """All groups, and which config keys and metrics distinguish them."""

    groups: list[Group]
    place: list[str]  # dotted config keys that tell groups apart: the leading columns
    described: dict[str, Metric]  # every metric of a completed cell, in alphabetical order
    replaced: list[Result]  # older cells of the same config and seed, left out
    baseline: Sequence[Condition] = UNDEFENDED
    pareto: Sequence[str] = ()  # the metrics of the front, if they were named
    shown: Sequence[str] = ()  # the metrics of the table, if they were named
    ambiguous: list[Group] = field(default_factory=list)  # groups with several baselines, and so without differences

    @classmethod
    def of(
        cls,
        results: Iterable[Result],
        by: Sequence[str] = (),
        baseline: Sequence[Condition] = UNDEFENDED,
        pareto: Sequence[str] = (),
    ) -> Comparison:
        """Group the results; of two with the same config and seed the later one in ``results`` counts.

        Args:
            results: the cells.
            by: dotted config keys to group by. Cells of a seed that this leaves together are averaged first, so that
                intervals are over seeds. Without any key, cells that differ only in their seed are a group.
            baseline: conditions on the cells that differences refer to. Each cell is paired with the one of the same
                seed that agrees in everything that distinguishes cells, except what the baseline is about: for a
                defence, all of ``defense``.
            pareto: two or more metrics whose front is marked, within each of `settings`.
        """
        parts: dict[frozenset[tuple[str, str]], Group] = {}
        replaced = []
        asked = [*by, *(condition.key for condition in baseline)]
        inputs: dict[tuple[str, str], Any] = {}
        read: dict[Any, dict[str, Any]] = {}
        places: dict[tuple[str, str], str] = {}
        known: dict[Any, Group] = {}
        results = list(results)
        # Completed cells first: what a failed one had not read is looked up among what they read.
        first = sorted(range(len(results)), key=lambda place: results[place].status != "completed")
        sections_of = {place: _leaves(results[place], inputs, places, read) for place in first}
        for number, result in enumerate(results):
            leaves = {key: value for key in asked if (value := value_at(result.config, key)) is not None}
            unread = _reads_no_pairs(result)
            sections = sections_of[number]
            # Cells of the same sections are alike, and what they hold is not compared again.
            alike = (unread, *(_form(leaves.get(key)) for key in asked), *map(id, sections))
            if (part := known.get(alike)) is None:
                for section in sections:
                    leaves |= {key: value for key, value in section.items() if not (unread and _of_pairs(key))}
                group = Group(leaves, unread=unread)
                part = known[alike] = parts.setdefault(frozenset(group.forms.items()), group)
            seed = _seed(result)
            replaced += [old for old in (part.completed.pop(seed, None), part.failed.pop(seed, None)) if old]
            (part.completed if result.status == "completed" else part.failed)[seed] = result
        _split_by_fixed_seeds(parts)
        _join_fixed_seeds(parts)
        told = [DATASET, DEFENCE, *_varying_keys([*parts.values()])]
        merged: dict[Any, list[Group]] = {}
        for part in parts.values():
            merged.setdefault(tuple(comparable(part, key) for key in by) or id(part), []).append(part)
        place = list(by) or told
        defences = list(dict.fromkeys([BASELINE, *(part.defence for part in parts.values())]))
        rows = [(_together(members, told), members) for members in merged.values()]
        rows.sort(key=lambda row: _order(row[0], defences, place))
        meanings = described(result for part in parts.values() for result in part.completed.values())
        table = cls([group for group, _ in rows], place, meanings, replaced, baseline, pareto)
        partners = _partners([*parts.values()], told, baseline)
        for group, members in rows:
            table._estimate(group, members)
            table._subtract_baseline(group, [(part, partners[id(part)]) for part in members])
        null_arms = _null_arms([*parts.values()])
        for group, members in rows:
            table._set_floors(group, [null_arms.get(id(part)) for part in members])
        for groups in table.settings.values():
            table._mark_best(groups)
        return table

    def _estimate(self, group: Group, parts: Sequence[Group]) -> None:
        """Compute means and intervals; ``parts`` are the cells of the group that differ only in their seed."""
        group.codes |= {code_version(result) for result in group.completed.values()}
        signed = {metric for result in group.completed.values() for metric in result.signed}
        for metric, meant in self.described.items():
            values = group.values(metric)
            own: Sequence[float | None] = (None, None)
            if len(values) == 1:
                owners = [r for r in group.completed.values() if r.metrics.get(metric) is not None]
                own = owners[0].intervals.get(metric, own) if len(owners) == 1 else own
            limits = meant.limits([*values.values()])
            estimate: Estimate | None
            if len(values) > 1 and (meant.magnitude or metric in signed):
                cells = [
                    [
                        (value, r.signed.get(metric))
                        for r in part.completed.values()
                        if (value := r.metrics.get(metric)) is not None
                    ]
                    for part in parts
                ]
                estimate = Estimate.of_magnitude([*values.values()], limits, [*filter(None, cells)], group.overlap)
            else:
                estimate = Estimate.of([*values.values()], limits, own, group.overlap)
            if estimate:
                group.estimates[metric] = estimate

    def _set_floors(self, group: Group, arms: Sequence[Group | None]) -> None:
        """Set the floors beside the estimates; ``arms`` are the null arms of the group's parts, where there are any."""
        for metric in group.estimates:
            found: list[float] = []
            if None not in arms and self.described[metric].null_arm:
                found = [value for arm in arms if arm for value in arm.values(metric).values()]
            if found:
                group.floors[metric] = NOTHING, statistics.fmean(found)
            elif floor := group.estimates.get(f"{metric}_floor"):
                group.floors[metric] = FLOOR, floor.mean

    def _subtract_baseline(self, group: Group, pairs: Sequence[tuple[Group, list[Group]]]) -> None:
        """Compute paired differences: ``pairs`` are the group's parts, each with its possible baseline groups."""
        if any(part is other for part, partners in pairs for other in partners):
            return
        if any(len(partners) > 1 for _, partners in pairs):
            self.ambiguous.append(group)
            return
        matched = [(part, partners[0]) for part, partners in pairs if partners]
        group.partners = [other for _, other in matched]
        group.unlike = {key for part, other in matched for key in self._unlike(part, other)}
        group.unpaired = sum(len(part.completed) for part, partners in pairs if matched and not partners)
        group.codes |= {code_version(result) for _, other in matched for result in other.completed.values()}
        overlaps = [side.overlap for pair in matched for side in pair]
        overlap = None if None in overlaps else max((o for o in overlaps if o is not None), default=None)
        for metric in group.estimates:
            found: dict[str, list[float]] = {}
            read: list[float] = []
            for part, other in matched:
                here, there = part.values(metric), other.values(metric)
                read += [*here.values(), *there.values()]
                for seed in here.keys() & there.keys():
                    found.setdefault(seed, []).append(here[seed] - there[seed])
            lo, hi = self.described[metric].limits(read)
            estimate = Estimate.of(
                [statistics.fmean(values) for values in found.values()], (lo - hi, hi - lo), overlap=overlap
            )
            if estimate:
                group.differences[metric] = estimate

    def _unlike(self, part: Group, other: Group) -> Iterator[str]:
        """Yield the config keys in which a part differs from its baseline, beside those that the baseline is about."""
        about = [condition.key for condition in self.baseline]
        sections = tuple(key.removesuffix("name") for key in about if key.endswith(".name"))
        for key in part.forms.keys() | other.forms.keys():
            apart = key not in about and not key.startswith(sections)
            apart = apart and not ((part.unread or other.unread) and _of_pairs(key))
            if apart and comparable(part, key) != comparable(other, key):
                yield key

    def _mark_best(self, groups: Sequence[Group]) -> None:
        """Mark the best means, and the front of the named metrics, among the groups that may be ranked."""
        sound = [group for group in groups if group.ranked]
        for metric, meant in self.described.items():
            sign = meant.sign
            ranked = [(group.estimates[metric].mean, group) for group in sound if metric in group.estimates]
            scores = [(sign * meant.ranked(mean), group) for mean, group in ranked]
            most = max((score for score, _ in scores), default=0.0)
            winners = [group for score, group in scores if score == most]
            if sign and len(winners) < len(scores):  # all alike: none is best
                for group in winners:
                    group.best.add(metric)
        whole = [group for group in sound if self.pareto and set(self.pareto) <= group.estimates.keys()]
        front = [self.described[metric] for metric in self.pareto]
        points = [[metric.ranked(group.estimates[metric.name].mean) for metric in front] for group in whole]
        for i in pareto_front(points, [metric.sign for metric in front]):
            whole[i].on_front = True

    @property
    def keys(self) -> list[str]:
        """The keys of `place` beside dataset and defence."""
        return [key for key in self.place if key not in (DATASET, DEFENCE)]

    def name(self, group: Group) -> str:
        """Name the group's place in one line."""
        always = (DATASET, DEFENCE if DEFENCE in self.place else self.place[-1])  # what may be marked is one of them
        texts = zip(self.place, self._marked(group, [_value(group, key) for key in self.place]), strict=True)
        return ", ".join(text for key, text in texts if key in always or key in group.leaves)

    def place_texts(self, group: Group) -> list[str]:
        """Return the group's leading cells."""
        return self._marked(group, [show(group.leaves.get(key)) for key in self.place])

    def _marked(self, group: Group, texts: list[str]) -> list[str]:
        """Mark a control in the leading cells, behind its defence or behind the last of them."""
        texts[self.place.index(DEFENCE) if DEFENCE in self.place else -1] += group.mark
        return texts

    def series(self, group: Group) -> str:
        """Name the group in plots: by its defence, or where that is left out, by everything that is no setting."""
        if DEFENCE in self.place:
            return group.defence + group.mark
        return ", ".join(_value(group, key) for key in self.place if key not in self._setting_keys) or "all"

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics, in alphabetical order."""
        return [*self.described]

    @cached_property
    def columns(self) -> dict[str, Metric]:
        """The metrics of the table, in order."""
        if self.shown:
            return {name: self.described[name] for name in self.shown if not self.described[name].counted}
        found = {metric.name: metric for metric in self._placed if not metric.counted}
        more = self.pareto if found else [*self.pareto, *self.metrics[:6]]
        return found | {name: self.described[name] for name in more if name not in found}

    @cached_property
    def tallies(self) -> list[Metric]:
        """The metrics that are counted over cells, in order; of those that were named for the table, if any were."""
        placed = [self.described[name] for name in self.shown] or self._placed
        return [metric for metric in placed if metric.counted]

    @property
    def _placed(self) -> list[Metric]:
        placed = [(metric.column, metric.name) for metric in self.described.values() if metric.column is not None]
        return [self.described[name] for _, name in sorted(placed)]

    @property
    def panels(self) -> list[tuple[str, str]]:
        """Pairs of metrics (x: cost, y: protection) that the trade-off is drawn in."""
        if self.pareto:
            return list(combinations(self.pareto, 2))
        found = [metric for metric in self.columns.values() if metric.against in self.described]
        found.sort(key=lambda metric: metric.instead in self.described)  # last, where another is to be named instead
        return [(metric.against, metric.name) for metric in found] or list(combinations(self.headlines, 2))[:3]

    @property
    def headlines(self) -> list[str]:
        """The metrics that the dimensions are measured by."""
        return [name for name, metric in self.described.items() if metric.headline]

    @property
    def _setting_keys(self) -> list[str]:
        # What a language model is trained on belongs to its defence: it is no setting that defences could share.
        trained = {key for group in self.groups if group.language_model for key in group.leaves if _of_pairs(key)}
        return [key for key in self.place if key.startswith(("dataset.", "game.")) and key not in trained]

    @property
    def settings(self) -> dict[str, list[Group]]:
        """The groups by dataset and game; a trade-off between defences can be compared only within one."""
        keys = self._setting_keys
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            title = ", ".join(_value(group, key) for key in sorted(keys, key=DATASET.__ne__)) or "all cells"
            found.setdefault(title, []).append(group)
        return found

    @cached_property
    def any_degenerate(self) -> bool:
        """Whether some completed cell is degenerate."""
        return any(group.degenerate for group in self.groups)

    @property
    def datasets(self) -> dict[str, list[Group]]:
        """The groups by dataset, in the order of the table."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.dataset, []).append(group)
        return found

    @cached_property
    def environments(self) -> dict[str, Counter[str]]:
        """Differences in the cells' environments (code, device or a package), with the number of cells per value."""
        cells = [result for group in self.groups for result in (group.completed | group.failed).values()]
        names = dict.fromkeys(
            name for versions in {id(r.versions): r.versions for r in cells}.values() for name in versions
        )
        found = {
            "code": Counter(code_version(result) for result in cells),
            "device": Counter(result.device or ABSENT for result in cells),
        } | {name: Counter(result.versions.get(name, ABSENT) for result in cells) for name in names}
        return {name: counts for name, counts in found.items() if len(counts) > 1}


def pareto_front(points: Sequence[Sequence[float]], better: Sequence[int]) -> list[int]:
    """Return the indices of the points that no other point equals or betters in every coordinate and betters in one.

    ``better`` holds, per coordinate, 1 where higher is better and -1 where lower is.
    """
    scaled = [tuple(sign * value for sign, value in zip(better, point, strict=True)) for point in points]
    front: list[int] = []
    for i in sorted(range(len(scaled)), key=scaled.__getitem__, reverse=True):  # no later point betters an earlier
        if not any(
            scaled[j] != scaled[i] and all(a >= b for a, b in zip(scaled[j], scaled[i], strict=True)) for j in front
        ):
            front.append(i)
    return sorted(front)


def code_version(result: Result) -> str:
    """Name the code that a cell was run with, as far as it is known."""
    if not result.git:
        return f"fairpriv {result.versions.get('fairpriv', ABSENT)}, no commit recorded"
    return f"{str(result.git.get('commit', ABSENT))[:12]}{' with changes' if result.git.get('dirty') else ''}"


def _seed(result: Result) -> str:
    return show(result.config.get("seed"))


def _value(group: Group, key: str) -> str:
    value = show(group.leaves.get(key))
    return value if key in (DATASET, DEFENCE) else f"{short(key)}={value}"


def _split_by_fixed_seeds(parts: dict[frozenset[tuple[str, str]], Group]) -> None:
    """Give a nested seed back to cells in which it follows the cell's own by chance alone.

    Where ``evaluation.seed`` is 0 and 1, each with several seeds, it is left out of the cells in which it equals the
    seed, as if it followed. They are no part of their own if each of them has one of its fixed value to go to.
    """
    for key in sorted({key for part in parts.values() for key in part.leaves if _NESTED_SEED.search(key)}):
        for forms, part in [*parts.items()]:
            cells = part.completed | part.failed
            if len(cells) < 2 or key in part.leaves or (part.unread and _of_pairs(key)):
                continue
            values = {seed: value_at(result.config, key) for seed, result in cells.items()}
            hosts = {seed: parts.get(forms | {(key, _form(value))}) for seed, value in values.items()}
            if None in hosts.values():
                continue
            del parts[forms]
            for seed, host in hosts.items():
                if host is not None:
                    (host.completed if seed in part.completed else host.failed)[seed] = cells[seed]


def _join_fixed_seeds(parts: dict[frozenset[tuple[str, str]], Group]) -> None:
    """Give nested seeds back to cells in which they were taken to follow the cell's own, and do not.

    Where ``evaluation.seed`` is 0 in every cell, it is left out of those of seed 0 alone, as if it followed. Where
    other cells show it as fixed to 0, it is so in a part of seed 0 alone, too, which may then be part of another.
    """
    fixed = {
        (key, show(value)) for part in parts.values() for key, value in part.leaves.items() if _NESTED_SEED.search(key)
    }
    for forms, part in [*parts.items()] if fixed else []:
        cells = part.completed | part.failed
        lacking = {key for key, seed in fixed if {seed} == cells.keys() and key not in part.leaves}
        lacking -= {key for key in lacking if part.unread and _of_pairs(key)}
        config = next(iter(cells.values())).config
        back = {key: value for key in lacking if (value := value_at(config, key)) == config.get("seed")}
        if not back:
            continue
        del parts[forms]
        given = Group(part.leaves | back, part.completed, part.failed, unread=part.unread)
        host = parts.setdefault(frozenset(given.forms.items()), given)
        host.completed |= part.completed
        host.failed |= part.failed


def _together(parts: Sequence[Group], told: Sequence[str]) -> Group:
    """Merge groups into one; its cells are named by seed and by the keys of ``told`` that the parts differ in."""
    if len(parts) == 1:
        return parts[0]
    first, *others = parts
    shared = [k for k in first.leaves if all(comparable(first, k) == comparable(other, k) for other in others)]
    group = Group({key: first.leaves[key] for key in shared})
    differing = [key for key in told if key not in shared and key != "seed"]
    for part in parts:
        place = "".join(f", {_value(part, key)}" for key in differing)
        for cells, found in ((part.completed, group.completed), (part.failed, group.failed)):
            for seed, result in cells.items():
                label = f"{seed}{place}"
                found[label if label not in found else f"{label}, {result.id}"] = result
    group.uneven = len({frozenset(part.completed) for part in parts}) > 1
    return group


def _null_arms(parts: Sequence[Group]) -> dict[int, Group]:
    """Find, by a part's id, the one that differs only by ``game.alpha=0.5``, where both worlds are one distribution."""

    def rest(part: Group) -> frozenset[tuple[str, str]]:
        return frozenset(item for item in part.forms.items() if item[0] != ALPHA)

    null = _form(0.5)
    arms = {rest(part): part for part in parts if part.forms.get(ALPHA) == null}
    if not arms:
        return {}
    return {id(part): arms[rest(part)] for part in parts if part.forms.get(ALPHA) != null and rest(part) in arms}


def _partners(parts: Sequence[Group], told: Sequence[str], baseline: Sequence[Condition]) -> dict[int, list[Group]]:
    """Find, by the id of each part, the parts that are its baseline; differences need exactly one."""
    about = [condition.key for condition in baseline]
    sections = tuple(key.removesuffix("name") for key in about if key.endswith(".name"))
    shared = [key for key in told if key not in about and not key.startswith(sections)]
    read = {False: shared, True: [key for key in shared if not _of_pairs(key)]}  # by `unread` of the baseline
    found: dict[tuple[bool, tuple[str, ...]], list[Group]] = {}
    for part in parts:
        if all(condition.holds(part.leaves.get(condition.key)) for condition in baseline):
            place = tuple(comparable(part, key) for key in read[part.unread])
            found.setdefault((part.unread, place), []).append(part)

    def of(part: Group) -> list[Group]:
        places = ((unread, tuple(comparable(part, key) for key in keys)) for unread, keys in read.items())
        return [other for place in places for other in found.get(place, ())]

    return {id(part): of(part) for part in parts}


def _of_pairs(key: str) -> bool:
    """Tell whether a config key says which pairs a language model is trained on."""
    return key.startswith("dataset.") and key != DATASET


def _reads_no_pairs(result: Result) -> bool:
    """Tell whether a cell's language model is trained on no pairs: it is untouched, or edited as it was pretrained.

    A completed cell tells by what it measured of its training; a failed one by its config, as far as that can tell.
    """
    if not is_language_model(result.config):
        return False
    if result.status == "completed":
        return not any(name.startswith("train/") for name in result.metrics)
    defence = result.config.get("defense")
    return isinstance(defence, dict) and (defence.get("name") == BASELINE or defence.get("after", "") is None)


def _leaves(
    result: Result,
    inputs: dict[tuple[str, str], Any],
    places: dict[tuple[str, str], str],
    read: dict[Any, dict[str, Any]],
) -> list[dict[str, Any]]:
    """List dotted keys and values of what determines the outcome, without the seed; paths as they are on any machine.

    Each section of the config is a mapping. It is kept in ``read``, so that a section that cells share is read once.

    An input that was hashed by its content is shown with the path of the config that first named this content, by key
    and content in ``inputs``: where equal files lie does not distinguish cells. A cell that failed before it had read
    its inputs has no contents. Each is taken to be what the last cell found at the same place, by key and place in
    ``places``; else such a cell would differ from all others in all its inputs.
    """
    config = result.config
    seed = config.get("seed")
    paths = config.get("paths")
    named = paths.items() if isinstance(paths, dict) else ()
    folders = [(str(path).rstrip("/"), f"${{paths.{name}}}") for name, path in named if path]
    folders.sort(key=lambda item: -len(item[0]))

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        content = value["content"] if isinstance(value, dict) and set(value) == {"content"} else None
        if content is None and places and result.status != "completed":
            content = places.get((key, _form(portable(value_at(config, key)))))
        if isinstance(content, str):
            yield f"{key}.content", content[:12]  # as much as tells files apart
            here = portable(value_at(config, key))
            places[key, _form(here)] = content
            value = inputs.setdefault((key, content), here)
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else str(name))
        elif not (key.endswith("seed") and value == seed and _NESTED_SEED.search(key)):
            yield key, portable(value)

    def portable(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: portable(item) for name, item in value.items()}
        if isinstance(value, list):
            return [portable(item) for item in value]
        for folder, name in folders:
            if isinstance(value, str) and f"{value}/".startswith(f"{folder}/"):  # not a word that begins alike
                return name + value[len(folder) :]
        return value

    hashed = result.outcome.get("config")
    kept = isinstance(hashed, dict)  # else it is made here, of each section of the config
    which = {"task": config.get("task"), "dimensions": config.get("dimensions")}  # tells which kind the model is of
    found = []
    for name, section in (hashed if isinstance(hashed, dict) else config).items():
        place = (kept, is_language_model(which), name, id(section), repr(seed), id(paths))
        if place not in read:
            counted = {name: section} if kept else outcome_config(which | {name: section})
            leaves = dict(walk(counted[name], str(name))) if name in counted else {}
            text = (name, *((key, _form(value)) for key, value in leaves.items()))
            read[place] = read.setdefault(text, leaves)  # as where only the seed differs
        found.append(read[place])
    return found


def comparable(group: Group, key: str) -> str:
    """Write a key's value in a form that can be compared."""
    return group.forms.get(key, "")


def _form(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_form, value))}]"
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


def _varying_keys(groups: Sequence[Group]) -> list[str]:
    """List the config keys that a reader needs to distinguish rows, beside dataset and defence."""
    names = {key for group in groups for key in group.leaves} | {DATASET, DEFENCE}
    seen = {key: [comparable(group, key) for group in groups] for key in names}
    for key in filter(_of_pairs, names):  # what a group does not read distinguishes it from no other
        first = next(group.forms[key] for group in groups if key in group.forms)
        values = zip(groups, seen[key], strict=True)
        seen[key] = [first if group.unread and key not in group.forms else value for group, value in values]

    def follows(key: str, choice: str) -> bool:
        return len(set(zip(seen[choice], seen[key], strict=True))) == len(set(seen[choice]))

    def needed(key: str) -> bool:
        section = key.partition(".")[0]
        if len(set(seen[key])) == 1 or key in (DATASET, DEFENCE):
            return False
        if key == f"{section}.name":
            return True
        if f"{section}.name" in seen:
            return not follows(key, f"{section}.name")
        # The game is the question asked, so rows of different games must always be told apart.
        return section == "game" or not (follows(key, DATASET) or follows(key, DEFENCE))

    last = ("_target_", "_kind_", ".content")  # keys that tell a reader least
    # Where some rows lack all the keys of a part, one of these keys is enough.
    kept: dict[tuple[Any, ...], str] = {}
    for key in sorted(filter(needed, names), key=lambda key: (key.endswith(last), key)):
        number: dict[str, int] = {}
        partition = tuple(number.setdefault(value, len(number)) for value in seen[key])
        kept.setdefault((*key.split(".")[:2], partition), key)
    return sorted(kept.values())


def _order(group: Group, defences: Sequence[str], place: Sequence[str]) -> list[tuple[int, float, str]]:
    """Make a sort key: by value, but the baseline first and then the other defences as they came."""

    def rank(value: Any) -> tuple[int, float, str]:
        return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, show(value))

    return [rank(defences.index(group.defence) if key == DEFENCE else group.leaves.get(key)) for key in place]
