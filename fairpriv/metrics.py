"""The vocabulary of measurement: what a number means, declared once beside the code that computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, SupportsFloat, get_args

Better = Literal["greater", "less", "neither"]
YES_OR_NO = "yes or no"  # the unit of a metric that is 1 or 0 in a cell, and is counted over cells
SHARE = "share"  # the unit of a rate, or of a difference of rates: shown with three decimals


@dataclass(frozen=True)
class Metric:
    """What one number of ``result.json`` means; tables, marks, plots, searches and loggers read it from the result.

    Texts may hold words in braces, as ``eval/{dimension}/awareness``, which `named` fills in. A metric that is called
    ``<name>_floor`` is what ``<name>`` would be if there were nothing to find.

    Attributes:
        name: flat, with ``/`` between its parts.
        label: a few words for the head of a column or an axis.
        meaning: what it measures, in sentences.
        unit: ``share``, ``yes or no``, or the unit's name; empty for a plain number.
        better: which values are better; no row is the best by a metric with ``neither``.
        low: least possible value; None: none.
        high: greatest possible value; None: none.
        column: place among the table's columns, by number; None: shown in table.csv and with each cell only.
        spared: whether a terminal that is too narrow leaves its column out.
        headline: whether a dimension is measured by it, so that trade-offs are drawn of it.
        instead: the metric that searches and fronts are to name in its place.
        against: the metric that stands for its cost, on the other axis of a trade-off.
        magnitude: whether it is the size of a signed difference, so that its mean over seeds never covers 0.
        null_arm: whether its value in the same cells with game.alpha=0.5 is shown beside it.
    """

    name: str
    label: str = ""
    meaning: str = ""
    unit: str = ""
    better: Better = "neither"
    low: float | None = None
    high: float | None = None
    column: int | None = None
    spared: bool = False
    headline: bool = False
    instead: str = ""
    against: str = ""
    magnitude: bool = False
    null_arm: bool = False

    @property
    def sign(self) -> int:
        """1 where greater is better, -1 where less is, 0 where neither is."""
        return {"greater": 1, "less": -1, "neither": 0}[self.better]

    @property
    def title(self) -> str:
        """The label, or the name of a metric without one."""
        return self.label or self.name

    @property
    def arrow(self) -> str:
        """↑ where greater is better, ↓ where less is, else nothing."""
        return {"greater": "↑", "less": "↓", "neither": ""}[self.better]

    @property
    def fraction(self) -> bool:
        """Whether it is shown with three decimals: a share, or what lies between -1 and 1."""
        return self.unit == SHARE or (
            self.low is not None and self.high is not None and -1 <= self.low < self.high <= 1
        )

    @property
    def counted(self) -> bool:
        """Whether tables say in how many cells it is true, rather than its mean."""
        return self.unit == YES_OR_NO

    def limits(self, values: Sequence[float] = ()) -> tuple[float, float]:
        """Least and greatest value, without end where one of ``values`` shows that the declared end is not one."""
        low = -math.inf if self.low is None or min(values, default=self.low) < self.low else self.low
        high = math.inf if self.high is None or max(values, default=self.high) > self.high else self.high
        return low, high

    def joined(self, other: Metric) -> Metric:
        """Describe what two cells mean by one name: the range holds both, and there is a direction if both agree."""
        return replace(
            self,
            better=self.better if self.better == other.better else "neither",
            low=None if self.low is None or other.low is None else min(self.low, other.low),
            high=None if self.high is None or other.high is None else max(self.high, other.high),
            column=other.column if self.column is None else self.column,
            magnitude=self.magnitude or other.magnitude,
        )

    def named(self, **words: str) -> Metric:
        """Fill in the words in braces; a label has blanks in place of underscores."""
        told = {key: getattr(self, key) for key in ("name", "label", "meaning", "instead", "against")}
        for word, value in words.items():
            for key, text in told.items():
                told[key] = text.replace(f"{{{word}}}", value.replace("_", " ") if key == "label" else value)
        return replace(self, **told)

    def of(
        self,
        value: SupportsFloat,
        interval: tuple[SupportsFloat, SupportsFloat] | None = None,
        *,
        signed: list[list[float]] | None = None,
        floor: SupportsFloat | None = None,
    ) -> Measured:
        """Measure it.

        Args:
            value: what was found.
            interval: its 95 % interval.
            signed: the rows of signed differences that it is the largest magnitude of, see
                :class:`~fairpriv.result.Result`.
            floor: what it would be on average if there were nothing to find.
        """
        found = Measured(
            {self.name: float(value)},
            {} if interval is None else {self.name: (float(interval[0]), float(interval[1]))},
            {} if signed is None else {self.name: signed},
            described={self.name: self},
        )
        if floor is None:
            return found
        below = Metric(
            f"{self.name}_floor",
            f"{self.title} floor",
            f"The mean of {self.name} where there is nothing to find.",
            self.unit,
            low=self.low,
            high=self.high,
        )
        return found | below.of(floor)

    def plain(self) -> dict[str, Any]:
        """What a result stores of it: direction and range always, the rest where it says something."""
        kept = ("label", "meaning", "unit", "better", "low", "high")
        found = {one.name: (getattr(self, one.name), one.default) for one in fields(self) if one.name != "name"}
        return {key: value for key, (value, default) in found.items() if key in kept or value != default}


def read_metric(name: str, told: Any) -> Metric | None:
    """Read what `Metric.plain` gave; None for what is nothing of the kind. Keys that are not known are passed over."""
    if not isinstance(told, Mapping):
        return None
    defaults = {one.name: one.default for one in fields(Metric) if one.name != "name"}
    found = {key: told[key] for key in defaults if key in told}
    for key, value in found.items():
        if key in ("low", "high", "column"):
            ours = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        else:
            ours = type(value) is type(defaults[key])
        if not ours:
            return None
    return Metric(name, **found) if found.get("better", "neither") in get_args(Better) else None


@dataclass(frozen=True)
class Measured:
    """What a part of a cell has measured; parts are joined with ``|``, which refuses a metric that both have.

    Attributes:
        metrics: by the metric's name.
        intervals: the 95 % intervals of those that have one.
        signed: of magnitudes, the rows of signed differences behind them, as in :class:`~fairpriv.result.Result`.
        degenerate: why the outcome is trivial, a sentence each, if it is.
        described: what each name means; a value without one is a plain number of which neither way is better.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    signed: Mapping[str, list[list[float]]] = field(default_factory=dict)
    degenerate: list[str] = field(default_factory=list)
    described: Mapping[str, Metric] = field(default_factory=dict)

    def __or__(self, other: Measured) -> Measured:
        if doubles := sorted(self.metrics.keys() & other.metrics.keys()):
            raise ValueError(f"{', '.join(doubles)}: measured twice")
        return Measured(
            {**self.metrics, **other.metrics},
            {**self.intervals, **other.intervals},
            {**self.signed, **other.signed},
            [*self.degenerate, *other.degenerate],
            {**self.described, **other.described},
        )

    def without(self, name: str) -> Measured:
        """Leave a metric out."""
        return Measured(
            {key: value for key, value in self.metrics.items() if key != name},
            {key: ends for key, ends in self.intervals.items() if key != name},
            {key: rows for key, rows in self.signed.items() if key != name},
            self.degenerate,
            self.described,
        )

    def renamed(self, change: Callable[[Metric], Metric]) -> Measured:
        """Describe every metric as ``change`` says, names included."""
        new = {name: change(self.described.get(name) or Metric(name)) for name in self.metrics}
        return Measured(
            {new[name].name: value for name, value in self.metrics.items()},
            {new[name].name: ends for name, ends in self.intervals.items()},
            {new[name].name: rows for name, rows in self.signed.items()},
            self.degenerate,
            {metric.name: metric for metric in new.values()},
        )
