"""Robustness: accuracy with features that are disturbed at random or against the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fairpriv.classifiers.dimensions.probe import Probe, Subject
from fairpriv.errors import InputError
from fairpriv.functional.intervals import wilson_interval
from fairpriv.metrics import SHARE, Measured

log = logging.getLogger(__name__)


@dataclass
class Robustness(Probe):
    """Accuracy on test rows under noise and under a projected-gradient attack, both bounded for each feature.

    Encoded numeric features have mean 0 and deviation 1, so ``epsilon`` is in deviations. Features with two values stay
    unchanged unless ``categories``, because a category cannot change by a tenth. The attack is that of Madry et al.
    (ICLR 2018): steps along the sign of the loss' gradient from a random start, projected into the bounds.
    """

    kind: ClassVar[str] = "robustness"
    name: str
    epsilon: float = 0.1  # greatest change of a feature, in deviations
    steps: int = 10  # of the attack
    restarts: int = 2  # of the attack, each from another random start; a row is correct if it is so after all of them
    categories: bool = False  # whether features with two values, such as categories as 0 and 1, may be disturbed too
    draws: int = 5  # of the noise, normal with deviation epsilon

    def __post_init__(self) -> None:
        for key, least in {"epsilon": 0.0, "steps": 1, "restarts": 1, "draws": 1}.items():
            if getattr(self, key) < least:
                raise InputError(f"dimensions.{self.name}.{key}={getattr(self, key)}: must be at least {least:g}")

    def measure(self, subject: Subject) -> Measured:
        """Measure accuracy under noise, and under attack if the model is one network."""
        rows = subject.rows
        if rows.X.dim() != 2 or not rows.X.is_floating_point():
            raise InputError(f"dimension={self.name} disturbs features: choose a table, or model.tune=head")
        moved = torch.ones(rows.X.shape[1], dtype=torch.bool)
        if not self.categories:
            moved = torch.tensor([len(column.unique()) > 2 for column in rows.X.T])
            if not moved.any():
                raise InputError(
                    f"dimension={self.name}: no feature has more than two values; set dimensions.{self.name}"
                    ".categories=true to disturb the others"
                )
        generator = torch.Generator().manual_seed(subject.seed)
        right = []
        for _ in range(self.draws):
            noise = torch.randn(rows.X.shape, generator=generator) * self.epsilon * moved
            right.append(subject.answers(type(rows)(rows.X + noise, rows.y, rows.s, rows.index)) == rows.y)
        meaning = f"Accuracy with normal noise of deviation {self.epsilon:g} on every feature that may be disturbed."
        found = self._accuracy("noise_accuracy", "accuracy under noise", meaning, torch.stack(right).double().mean(0))
        if subject.defended.net is None or subject.defended.predict is not None:
            log.warning(
                "dimension=%s: defense=%s gives answers and no gradient: accuracy under attack is left out",
                self.name,
                subject.defense.name,
            )
            return found
        alive = self._attacked(subject.defended.net, rows.X, rows.y, moved, generator)
        meaning = f"Accuracy under a projected-gradient attack that moves a feature by {self.epsilon:g} at most."
        return found | self._accuracy(
            "attack_accuracy", "accuracy under attack", meaning, alive.double(), headline=True
        )

    def _accuracy(self, key: str, label: str, meaning: str, right: Tensor, *, headline: bool = False) -> Measured:
        about = self.metric(
            key, label, meaning, unit=SHARE, better="greater", low=0.0, high=1.0, column=31, headline=headline
        )
        n = len(right)
        return about.of(right.mean(), wilson_interval(float(right.sum()), n))

    def _attacked(self, net: nn.Module, X: Tensor, y: Tensor, moved: Tensor, generator: torch.Generator) -> Tensor:
        """Return whether each row is classified correctly in all attempts of the attack, ``[N]`` bool."""
        with torch.inference_mode():
            right = net(X).argmax(1) == y
        step = 2.5 * self.epsilon / self.steps
        for _ in range(self.restarts):
            change = (2 * torch.rand(X.shape, generator=generator) - 1) * self.epsilon * moved
            for _ in range(self.steps):
                change.requires_grad_(True)
                loss = cross_entropy(net(X + change), y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, change)
                change = (change.detach() + step * gradient.sign() * moved).clamp(-self.epsilon, self.epsilon)
            with torch.inference_mode():
                right &= net(X + change).argmax(1) == y
        return right
