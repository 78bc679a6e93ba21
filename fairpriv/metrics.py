"""The vocabulary of measurement: what each number means, declared once beside the code that computes it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, SupportsFloat, get_args

from fairpriv.errors import InputError

Better = Literal["greater", "less", "neither"]
YES_OR_NO = "yes or no"  # the unit of a metric that is 1 or 0 in a cell, and is counted over cells
SHARE = "share"  # the unit of a rate, or of a difference of rates: shown with three decimals


@dataclass(frozen=True)
class Metric:
    """Description of one number of ``result.json``; tables, plots, searches and loggers read it from the result.

    Texts may hold words in braces, as ``eval/{dimension}/awareness``, which `named` fills in. The metric
    ``<name>_floor`` is the value of ``<name>`` if there were nothing to find.

    Attributes:
        name: flat, with ``/`` between its parts.
        label: a few words for the head of a column or an axis.
        meaning: what it measures, in sentences.
        unit: ``share``, ``yes or no``, or the unit's name; empty for a plain number.
        better: which values are better; with ``neither``, no row is marked as best by the metric.
        low: lowest possible value; None: no limit.
        high: highest possible value; None: no limit.
        column: position among the table's columns, by number; None: shown only in table.csv and with each cell.
        spared: whether its column is left out of a terminal that is too narrow.
        headline: whether it is the main measure of a dimension, for which trade-offs are drawn.
        instead: the metric that searches and fronts should name in its place.
        against: the metric of its cost, on the other axis of a trade-off.
        magnitude: whether it is the size of a signed difference, so that its mean over seeds never covers 0.
        null_arm: whether its value in the same cells with game.alpha=0.5 is shown beside it.
        guess: what it is for who guesses; a value beyond it, such as an attack's AUC of 0.4, is no better than that.
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
    guess: float | None = None

    def __post_init__(self) -> None:
        if self.better not in (known := get_args(Better)):
            raise InputError(f"metric {self.name}: better={self.better!r}: must be one of {', '.join(known)}")
        for key in ("low", "high", "guess"):
            if not (_number(end := getattr(self, key)) or end is None):
                raise InputError(f"metric {self.name}: {key}={end!r}: must be a number, or None where there is none")

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is, 0 where neither is."""
        return {"greater": 1, "less": -1, "neither": 0}[self.better]

    @property
    def title(self) -> str:
        """The label, or the name of a metric without one."""
        return self.label or self.name

    @property
    def arrow(self) -> str:
        """↑ where higher is better, ↓ where lower is, else nothing."""
        return {"greater": "↑", "less": "↓", "neither": ""}[self.better]

    @property
    def fraction(self) -> bool:
        """Whether it is shown with three decimals: a share, or a value between -1 and 1."""
        return self.unit == SHARE or (
            self.low is not None and self.high is not None and -1 <= self.low < self.high <= 1
        )

    @property
    def counted(self) -> bool:
        """Whether tables count the cells in which it is true, rather than show its mean."""
        return self.unit == YES_OR_NO

    def limits(self, values: Sequence[float] = ()) -> tuple[float, float]:
        """Return the lowest and highest value; a declared end that one of ``values`` exceeds is infinite."""
        low = -math.inf if self.low is None or min(values, default=self.low) < self.low else self.low
        high = math.inf if self.high is None or max(values, default=self.high) > self.high else self.high
        return low, high

    def ranked(self, value: float) -> float:
        """Return the value by which rows are ranked: that of guessing where ``value`` is beyond it."""
        if self.guess is None or self.sign * (value - self.guess) <= 0:
            return value
        return self.guess

    def joined(self, other: Metric) -> Metric:
        """Combine two cells' descriptions of one name: the range holds both, and a direction stays if both agree."""
        return replace(
            self,
            better=self.better if self.better == other.better else "neither",
            low=None if self.low is None or other.low is None else min(self.low, other.low),
            high=None if self.high is None or other.high is None else max(self.high, other.high),
            column=other.column if self.column is None else self.column,
            magnitude=self.magnitude or other.magnitude,
            guess=self.guess if self.guess == other.guess else None,
        )

    def named(self, **words: str) -> Metric:
        """Fill in the words in braces; a label has spaces in place of underscores."""
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
        """Record a measured value of the metric.

        Args:
            value: the measured value.
            interval: its 95 % interval.
            signed: the rows of signed differences of which it is the largest magnitude, see
                :class:`~fairpriv.result.Result`.
            floor: its average if there were nothing to find.

        Raises:
            InputError: the value is not one number, or the interval is not two, the lower one first.
        """
        try:
            number, ends = float(value), {}
            if interval is not None:
                low, high = map(float, interval)
                ends = {self.name: (low, high)}
        except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor of several elements
            raise InputError(f"{self.name}: its value is one number, its interval two ({error})") from error
        if any(low > high + 1e-9 for low, high in ends.values()):  # room for rounding
            raise InputError(f"{self.name}: from {low:g} to {high:g} is no interval: the lower end comes first")
        found = Measured(
            {self.name: number},
            ends,
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
        """Return what a result stores of it: direction and range always, other fields only where they are set."""
        kept = ("label", "meaning", "unit", "better", "low", "high")
        found = {one.name: (getattr(self, one.name), one.default) for one in fields(self) if one.name != "name"}
        return {key: value for key, (value, default) in found.items() if key in kept or value != default}


share_metric = functools.partial(Metric, unit=SHARE, low=0.0, high=1.0)  # of a rate


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_metric(name: str, told: Any) -> Metric | None:
    """Read the output of `Metric.plain`; return None for anything else. Unknown keys are ignored."""
    if not isinstance(told, Mapping):
        return None
    defaults = {one.name: one.default for one in fields(Metric) if one.name != "name"}
    found = {key: told[key] for key in defaults if key in told}
    for key, value in found.items():
        if key in ("low", "high", "column", "guess"):
            ours = value is None or _number(value)
        else:
            ours = type(value) is type(defaults[key])
        if not ours:
            return None
    return Metric(name, **found) if found.get("better", "neither") in get_args(Better) else None


@dataclass(frozen=True)
class Measured:
    """Measurements of a part of a cell; parts are joined with ``|``, which refuses a metric that both have.

    Attributes:
        metrics: values by the metric's name.
        intervals: the 95 % intervals of the metrics that have one.
        signed: for magnitudes, the rows of signed differences behind them, as in :class:`~fairpriv.result.Result`.
        degenerate: why the outcome is trivial, if it is: a sentence for each reason.
        described: what each name means; a value without a description is a plain number of which no direction is
            better.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    signed: Mapping[str, list[list[float]]] = field(default_factory=dict)
    degenerate: list[str] = field(default_factory=list)
    described: Mapping[str, Metric] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Measured:
        """Read what ``asdict`` gave, from JSON."""
        intervals = {name: (low, high) for name, (low, high) in plain["intervals"].items()}
        described = {name: Metric(**one) for name, one in plain["described"].items()}
        return cls(**{**plain, "intervals": intervals, "described": described})

    def __or__(self, other: Measured) -> Measured:
        if doubles := sorted(self.metrics.keys() & other.metrics.keys()):
            raise InputError(f"{', '.join(doubles)}: measured twice; give one of the two another name")
        return Measured(
            {**self.metrics, **other.metrics},
            {**self.intervals, **other.intervals},
            {**self.signed, **other.signed},
            [*self.degenerate, *other.degenerate],
            {**self.described, **other.described},
        )

    def within_ranges(self) -> Measured:
        """Return it; raise InputError for a value outside the range that its metric declares."""
        for name, value in self.metrics.items():
            low, high = self.described[name].limits() if name in self.described else (-math.inf, math.inf)
            if value < low - 1e-6 or value > high + 1e-6:  # room for rounding; NaN is no number
                raise InputError(f"{name} is {value:g}, outside its own range [{low:g}, {high:g}]: mend low or high")
        return self

    def without(self, name: str) -> Measured:
        """Remove a metric."""
        return Measured(
            {key: value for key, value in self.metrics.items() if key != name},
            {key: ends for key, ends in self.intervals.items() if key != name},
            {key: rows for key, rows in self.signed.items() if key != name},
            self.degenerate,
            self.described,
        )

    def renamed(self, change: Callable[[Metric], Metric]) -> Measured:
        """Replace the description of every metric, its name included, by what ``change`` returns."""
        new = {name: change(self.described.get(name) or Metric(name)) for name in self.metrics}
        return Measured(
            {new[name].name: value for name, value in self.metrics.items()},
            {new[name].name: ends for name, ends in self.intervals.items()},
            {new[name].name: rows for name, rows in self.signed.items()},
            self.degenerate,
            {metric.name: metric for metric in new.values()},
        )
