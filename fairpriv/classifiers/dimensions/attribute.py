"""Attribute privacy: how much a model's answers help to guess a row's sensitive attribute."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.dimensions.probe import Probe, Subject
from fairpriv.errors import InputError
from fairpriv.functional.intervals import effective_rows, paired_rate_difference_interval, wilson_interval
from fairpriv.metrics import SHARE, Measured


@dataclass
class AttributeInference(Probe):
    """Infer the sensitive attribute of test rows, with the model's answers and without them.

    The adversary has rows of its own half with their attribute. It fits one classifier (gradient boosting) to features
    and label, which shows what is known without the model (imputation), and another one to these and the model's
    output. Only the difference is due to the model (Jayaraman and Evans, CCS 2022).
    """

    kind: ClassVar[str] = "attribute_inference"
    features_only: ClassVar[bool] = True
    name: str
    iterations: int = 60  # of boosting

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"dimensions.{self.name}.iterations={self.iterations}: must be at least 1")

    def measure(self, subject: Subject) -> Measured:
        """Fit both adversaries and compare them on the same rows."""
        own = subject.data.part("query", 0) + subject.data.part("query", 1)
        rows = subject.rows
        labels = len(subject.data.label_names)
        known = [torch.cat([part.X, one_hot(part.y, labels).float()], 1) for part in (own, rows)]
        answered = [torch.cat([x, self._output(subject, part)], 1) for x, part in zip(known, (own, rows), strict=True)]
        without = self._right(subject.seed, known[0], own.s, known[1], rows.s)
        given = self._right(subject.seed, answered[0], own.s, answered[1], rows.s)
        n, share = len(rows.s), functools.partial(self.metric, unit=SHARE, high=1.0)
        imputed = share(
            "imputation_accuracy", "imputation accuracy", "Rows whose attribute is guessed without the model.", low=0.0
        )
        guessed = share(
            "accuracy",
            "attribute accuracy",
            "The same with the model's answers.",
            low=0.0,
            instead=f"eval/{self.name}/gain",
        )
        gain = share(
            "gain",
            "attribute gain",
            "Rows whose sensitive attribute is guessed with the model's answers, minus those without.",
            low=-1.0,
            better="less",
            guess=0.0,
            headline=True,
            column=62,
        )
        both = [int(count.sum()) for count in (given & without, given & ~without, ~given & without, ~given & ~without)]
        units = subject.data.units(rows)

        def interval(right: Tensor) -> tuple[float, float]:
            worth = float(effective_rows(right, units))
            return wilson_interval(float(right.double().mean()) * worth, worth)

        worth = float(effective_rows(given.double() - without.double(), units)) / n
        return (
            imputed.of(without.double().mean(), interval(without))
            | guessed.of(given.double().mean(), interval(given))
            | gain.of((both[1] - both[2]) / n, paired_rate_difference_interval(*(k * worth for k in both)), floor=0.0)
        )

    def _output(self, subject: Subject, rows: Rows) -> Tensor:
        """Return the model's probabilities, or its answers if it gives nothing else; ``[N, C]``."""
        if subject.defended.net is None or subject.defended.predict is not None:
            return subject.answers(rows)[:, None].float()
        probs = subject.probabilities(rows, self.name)
        return probs if probs.dim() == 2 else probs[:, None]

    def _right(self, seed: int, train: Tensor, s: Tensor, test: Tensor, truth: Tensor) -> Tensor:
        from sklearn.ensemble import HistGradientBoostingClassifier

        model = HistGradientBoostingClassifier(max_iter=self.iterations, random_state=seed % 2**32)
        model.fit(train.numpy(), s.numpy())
        return torch.from_numpy(model.predict(test.numpy())) == truth
