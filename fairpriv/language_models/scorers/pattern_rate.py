"""Pattern rate: how many of the model's responses hold one of some phrases."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.functional.intervals import wilson_interval
from fairpriv.language_models.judges.refusal import CAUTIONS, REFUSALS, is_cautionary, is_refusal
from fairpriv.language_models.scorers.scorer import SCORE, Scored, Scorer, Subject
from fairpriv.metrics import SHARE, Metric

_OURS: dict[str, tuple[Callable[[str], bool], Any]] = {
    "cautions": (is_cautionary, CAUTIONS),
    "refusals": (is_refusal, REFUSALS),
}


RATE = Metric("rate", "rate", "Share of responses in which a pattern is found.", SHARE, low=0.0, high=1.0)


@dataclass
class PatternRate(Scorer):
    """Share of responses in which one of the patterns is found.

    Metrics: ``rate``, and the headline ``score``: the rate where ``better`` is higher, 1 minus the rate where it is
    lower.

    Attributes:
        patterns: regular expressions as Python has them, searched without regard to case; or ``cautions`` or
            ``refusals``, the refusal judge's own.
        better: ``higher`` or ``lower``.
    """

    kind: ClassVar[str] = "pattern_rate"

    patterns: list[str] | Literal["cautions", "refusals"]
    better: Literal["higher", "lower"]

    required = ("prompt",)
    optional = ("response",)
    answered = True

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise InputError(f"scorer.better={self.better}: must be higher or lower")
        if isinstance(self.patterns, str) and self.patterns not in _OURS:
            raise InputError(f"scorer.patterns={self.patterns}: must be a list, or one of {', '.join(_OURS)}")
        if not self.patterns:
            raise InputError("scorer.patterns is empty: give at least one regular expression")
        for i, pattern in enumerate(() if isinstance(self.patterns, str) else self.patterns):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"scorer.patterns[{i}]: {pattern!r} is no regular expression: {error}") from error

    def score(self, subject: Subject, examples: Sequence[Example], responses: Sequence[str]) -> Scored:
        """Measure the rate and the headline; one record a response."""
        found = [self._found(response) for response in responses]
        outcomes = [hit == (self.better == "higher") for hit in found]
        hits, good, n = sum(found), sum(outcomes), len(found)
        records = [
            {"prompt": example.prompt, "response": response, "found": hit}
            for example, response, hit in zip(examples, responses, found, strict=True)
        ]
        measured = RATE.of(hits / n, wilson_interval(hits, n)) | SCORE.of(good / n, wilson_interval(good, n))
        return Scored(measured, records, list(outcomes))

    def digest(self) -> Any:
        ours = _OURS[self.patterns][1] if isinstance(self.patterns, str) else None
        return [self.patterns, ours, self.better]

    @cached_property
    def _found(self) -> Callable[[str], bool]:
        if isinstance(self.patterns, str):
            return _OURS[self.patterns][0]
        compiled = [re.compile(pattern, re.IGNORECASE) for pattern in self.patterns]
        return lambda text: any(pattern.search(text) for pattern in compiled)
