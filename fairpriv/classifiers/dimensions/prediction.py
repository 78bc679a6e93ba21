"""Dimensions that measure predictions, by any torchmetrics metric or any function of ``(probs, y, groups)``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fairpriv.classifiers.dimensions.probe import Probe, Subject
from fairpriv.errors import InputError
from fairpriv.functional import predictions
from fairpriv.functional.fairness import first_of_unit, permuted_groups
from fairpriv.functional.intervals import range_interval
from fairpriv.metrics import Better, Measured, Metric

_DRAWS = 200  # of the bootstrap, and of the floor


class Sample(NamedTuple):
    """Rows as a metric gets them: probabilities or answers, labels and groups."""

    given: Tensor  # [N] or [N, C]
    y: Tensor  # [N]
    groups: Tensor  # [N]
    units: Tensor  # [N], the same number for equal rows, which were dealt together

    def take(self, index: Tensor) -> Sample:
        """Choose rows, by place or by a mask."""
        return Sample(self.given[index], self.y[index], self.groups[index], self.units[index])


@dataclass
class PredictionMetric:
    """One measure of predictions on test rows, with its direction and range.

    Attributes:
        measure: a torchmetrics metric whose ``update`` takes ``(probs, y)`` or ``(probs, y, groups)``, ``probs`` being
            P(y=1) ``[N]`` of two classes (``[N, 2]`` for its metrics of any number), else ``[N, C]``; or a function
            with these arguments that returns one number (in YAML with ``_partial_: true``). One whose first parameter
            is called ``y_true``, such as scikit-learn's, gets the labels first, and groups as ``sensitive_features``.
        better: which values are better.
        low: smallest possible value, null: none.
        high: largest possible value, null: none.
        label: a few words for the head of a column.
        meaning: what it measures, in one sentence.
        takes: probabilities, or answers (predicted classes), which every defence gives.
        per_group: whether it is also measured for every sensitive group, with the gap between the worst and the best.
        headline: whether trade-offs are drawn of it.
        floor: how its value without any effect is estimated: ``groups`` deals the groups at random among the rows of a
            label, and so keeps the groups' base rates; ``calibrated`` draws labels from the probabilities; null: none.
        interval: a function of the arguments of ``measure`` that returns the ends of a 95 % interval, or NaN where
            it has none (in YAML with ``_partial_: true``), and of ``units`` if it has such a parameter: the same number
            ``[N]`` for equal rows, which were dealt together. null: percentiles of a bootstrap over rows, but for
            ``auroc``, which has ``auroc_interval``. Percentiles do not cover a quantity that is biased upward in small
            samples, such as a calibration error or a gap.
    """

    kind: ClassVar[str] = "prediction_metric"
    measure: Any
    better: Better = "neither"
    low: float | None = None
    high: float | None = None
    label: str = ""
    meaning: str = ""
    takes: Literal["probabilities", "answers"] = "probabilities"
    per_group: bool = False
    headline: bool = False
    floor: Literal["groups", "calibrated"] | None = None
    interval: Any = None

    def __post_init__(self) -> None:
        if not callable(self.measure):
            raise InputError(
                f"measure={self.measure!r}: must be a torchmetrics metric, or a function given with _partial_: true"
            )
        if self.interval is not None and not callable(self.interval):
            raise InputError(f"interval={self.interval!r}: must be a function, given with _partial_: true")
        if self.floor == "calibrated" and self.takes == "answers":
            raise InputError("floor=calibrated draws labels from probabilities: set takes=probabilities")

    def value(self, sample: Sample) -> float:
        """Return the measured number; raise ValueError, with the result, if it is not one number."""
        if sample.given.dim() == 1 and sample.given.is_floating_point() and _for_any_classes(self.measure):
            # it would take P(y=1) for the number of a class, rounded down: for class 0
            sample = sample._replace(given=torch.stack((1 - sample.given, sample.given), 1))
        if hasattr(self.measure, "update"):
            self.measure.reset()
            _handed(self.measure.update, sample)
            found = self.measure.compute()
        else:
            found = _handed(self.measure, sample)
        if isinstance(found, Tensor) and found.numel() != 1:
            raise ValueError(f"returned a tensor of shape {list(found.shape)}, not one number")
        try:
            return float(found)
        except (TypeError, ValueError):
            raise ValueError(f"returned a {type(found).__name__}, not one number") from None


def _for_any_classes(measure: Callable[..., Any]) -> bool:
    """Tell whether a measure is one of torchmetrics' for any number of classes, or a class that inherits from one."""
    function = getattr(measure, "func", measure)
    kinds = [function] if inspect.isfunction(function) else type(function).__mro__
    names = [kind.__name__.lower() for kind in kinds if kind.__module__.partition(".")[0] == "torchmetrics"]
    asked = bool(names) and getattr(measure, "keywords", {}).get("task") == "multiclass"
    return asked or any(name.startswith("multiclass") for name in names)


def _handed(called: Callable[..., Any], sample: Sample, **more: Tensor) -> Any:
    """Call a function with probs, y, and those of groups and ``more`` that it takes; return the result.

    Labels come first where it calls its first parameter ``y_true``, as scikit-learn's and fairlearn's functions do.
    """
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = inspect.signature(called).parameters
    taken = [p for p in named.values() if p.kind in positional]
    required = [p for p in taken if p.default is p.empty]
    args = [sample.given, sample.y]
    if taken and taken[0].name == "y_true":
        args.reverse()
    if len(required) > 2 or any(p.name == "groups" for p in taken):
        args.append(sample.groups)
    more |= {"sensitive_features": sample.groups}
    return called(*args, **{name: values for name, values in more.items() if name in named})


@dataclass
class Predictions(Probe):
    """A dimension of one or several measures of predictions, on the test rows of both worlds together.

    Intervals are those that a metric names, else percentiles of a bootstrap over rows, 200 draws, in which equal rows,
    which were dealt together, are drawn together. They take the model as given. The interval of a gap between groups is
    made of those of the groups.
    """

    kind: ClassVar[str] = "predictions"
    name: str
    metrics: dict[str, PredictionMetric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise InputError(f"dimensions.{self.name}.metrics: name one at least")
        for key, metric in self.metrics.items():
            if not isinstance(metric, PredictionMetric):
                raise InputError(
                    f"dimensions.{self.name}.metrics.{key}: must be a "
                    "{_target_: fairpriv.classifiers.dimensions.prediction.PredictionMetric}"
                )

    @property
    def needs_probabilities(self) -> bool:
        """Whether one of its metrics does."""
        return any(metric.takes == "probabilities" for metric in self.metrics.values())

    def measure(self, subject: Subject) -> Measured:
        """Measure every metric on the test rows, and on those of every group if the metric says so."""
        rows, found = subject.rows, Measured()
        for key, metric in self.metrics.items():
            answers = metric.takes == "answers"
            given = subject.answers(rows) if answers else subject.probabilities(rows, self.name)
            generator = torch.Generator().manual_seed(subject.seed)
            sample = Sample(given, rows.y, rows.s, subject.data.units(rows))
            found |= self._whole(key, metric, sample, generator)
            if metric.per_group:
                found |= self._by_group(key, metric, sample, subject.data.group_names, generator)
        return found

    def _whole(self, key: str, metric: PredictionMetric, sample: Sample, generator: torch.Generator) -> Measured:
        about = replace(self._about(key, metric), headline=metric.headline, column=30)
        value, floor = _value(about, metric, sample), None
        if metric.floor is not None:
            draw = {"groups": _dealt, "calibrated": _calibrated}[metric.floor]
            floor = _mean(_drawn(about.name, metric, (draw(sample, generator) for _ in range(_DRAWS))))
        return about.of(value, _interval(about.name, metric, sample, generator), floor=floor)

    def _by_group(
        self, key: str, metric: PredictionMetric, sample: Sample, names: Sequence[str], generator: torch.Generator
    ) -> Measured:
        found, values, ends = Measured(), [], []
        for code, name in enumerate(names):
            about, own = self._about(f"{key}/{name}", metric, f", {name}"), sample.take(sample.groups == code)
            values.append(_value(about, metric, own))
            interval = _interval(about.name, metric, own, generator)
            ends += [] if interval is None else [interval]
            found |= about.of(values[-1], interval)
        whole = self._about(key, metric)
        high = None if metric.low is None or metric.high is None else metric.high - metric.low
        gap = replace(
            whole,
            name=f"{whole.name}_gap",
            label=f"{whole.label} gap",
            meaning=f"Range over groups of {whole.name}.",
            better="less",
            low=0.0,
            high=high,
        )

        def dealt() -> float:
            drawn = _dealt(sample, generator)
            of_group = _drawn(gap.name, metric, (drawn.take(drawn.groups == code) for code in range(len(names))))
            return max(of_group) - min(of_group) if all(map(math.isfinite, of_group)) else math.nan

        interval = None
        if len(ends) == len(values):
            low, largest = range_interval(values, ends)
            interval = low, min(largest, gap.limits()[1])
        return found | gap.of(max(values) - min(values), interval, floor=_mean(dealt() for _ in range(_DRAWS)))

    def _about(self, key: str, metric: PredictionMetric, more: str = "") -> Metric:
        label = f"{metric.label or key.replace('_', ' ')}{more}"
        return self.metric(key, label, metric.meaning, better=metric.better, low=metric.low, high=metric.high)


def _value(about: Metric, metric: PredictionMetric, sample: Sample) -> float:
    """Measure a metric; raise `InputError` if the result is not a number within the metric's range."""
    with _told(about.name):
        value = metric.value(sample)
    if not math.isfinite(value):
        raise InputError(
            f"{about.name} is {value} on {len(sample.y)} rows: it is undefined there, for want of a label or a group; "
            "leave the metric out, or give more rows"
        )
    about.of(value).within_ranges()
    return value


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an error of a user's function, or of torchmetrics, into an `InputError` that says where it is raised."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise InputError(f"{what}: {kind}{' '.join(str(error).split())[:300]}") from error


def _drawn(name: str, metric: PredictionMetric, samples: Iterable[Sample]) -> list[float]:
    """Return the values of samples that are drawn from the rows, in which labels or groups can be absent."""
    with _told(f"{name}, on rows drawn at random, where a label or a group can be absent; return NaN if undefined"):
        return [metric.value(sample) for sample in samples]


def _interval(
    name: str, metric: PredictionMetric, sample: Sample, generator: torch.Generator
) -> tuple[float, float] | None:
    """Return the metric's own interval, or percentiles over draws of rows; None if it, or half of these, are NaN."""
    interval = metric.interval
    if interval is None and getattr(metric.measure, "func", metric.measure) is predictions.auroc:
        interval = predictions.auroc_interval  # percentiles have no width where it is 1
    if interval is not None:
        with _told(f"{name}, interval"):
            low, high = map(float, _handed(interval, sample, units=sample.units))
        if math.isnan(low) or math.isnan(high):
            return None
        if low > high:
            raise InputError(f"{name}, interval: returned {low:g} and {high:g}, not its lower and its upper end")
        return low, high
    drawn = _drawn(name, metric, (sample.take(index) for index in _resampled(sample.units, generator)))
    values = torch.tensor([value for value in drawn if math.isfinite(value)], dtype=torch.double)
    if len(values) < _DRAWS // 2:
        return None
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high


def _resampled(units: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Draw units with replacement, as many as there are, and yield the places of their rows."""
    first_seen = first_of_unit(units)
    order = first_seen.argsort(stable=True)  # equal rows side by side; as it is where there are none
    rows = first_seen[order].unique_consecutive(return_counts=True)[1]
    first = rows.cumsum(0) - rows
    for _ in range(_DRAWS):
        drawn = torch.randint(len(rows), (len(rows),), generator=generator)
        counts = rows[drawn]
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        yield order[first[drawn].repeat_interleave(counts) + within]


def _mean(drawn: Iterable[float]) -> float | None:
    values = [value for value in drawn if math.isfinite(value)]
    return sum(values) / len(values) if values else None


def _dealt(sample: Sample, generator: torch.Generator) -> Sample:
    """Deal the groups anew among the units of each label, whose rows stay together."""
    return sample._replace(groups=permuted_groups(sample.y, sample.groups, sample.units, generator))


def _calibrated(sample: Sample, generator: torch.Generator) -> Sample:
    """Draw labels from the probabilities, one for each unit, so that the model is calibrated for them."""
    probs = sample.given
    if probs.dim() == 2:
        y = torch.multinomial(probs, 1, generator=generator)[:, 0]
    else:
        y = (torch.rand(len(probs), generator=generator, dtype=probs.dtype) < probs).long()
    return sample._replace(y=y[first_of_unit(sample.units)])
