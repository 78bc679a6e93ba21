"""Robustness: accuracy with features that are disturbed at random or against the model, and after wrong labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fairpriv.classifiers.data.game import Deal
from fairpriv.classifiers.dimensions.probe import Probe, Subject
from fairpriv.errors import InputError, how_many
from fairpriv.functional.intervals import crossed_rate_interval, effective_rows, wilson_interval
from fairpriv.identity import derived_seed
from fairpriv.metrics import SHARE, Measured

log = logging.getLogger(__name__)

_RATE: dict[str, Any] = {"unit": SHARE, "better": "greater", "low": 0.0, "high": 1.0, "column": 31}


@dataclass
class Robustness(Probe):
    """Accuracy on test rows under noise and under a projected-gradient attack, which is bounded for each feature.

    Encoded numeric features have mean 0 and deviation 1, so ``epsilon`` is in deviations. Features with two values stay
    unchanged unless ``categories``, because a category cannot change by a tenth. The attack is that of Madry et al.
    (ICLR 2018): steps along the sign of the loss' gradient from a random start, projected into the bounds.

    With ``label_noise``, models are trained like the subject, by the same defence on the same rows, after that share of
    all labels for training and validation was replaced by other ones, drawn evenly (symmetric noise) for each model.
    Their accuracy is told on the test rows, whose labels stay.
    """

    kind: ClassVar[str] = "robustness"
    features_only: ClassVar[bool] = True
    name: str
    epsilon: float = 0.1  # greatest change of a feature, in deviations
    steps: int = 10  # of the attack
    restarts: int = 2  # of the attack, each from another random start; a row is correct if it is so after all of them
    categories: bool = False  # whether features with two values, such as categories as 0 and 1, may be disturbed too
    draws: int = 5  # of the noise, normal with deviation epsilon
    label_noise: float | None = None  # share of labels that are replaced before training; null: nothing is trained
    label_noise_models: int = 16  # trained on such labels

    def __post_init__(self) -> None:
        if not self.epsilon <= 1e6:  # also NaN; beyond it, sums of products overflow
            raise InputError(f"dimensions.{self.name}.epsilon={self.epsilon}: deviations from 0 to 1e6 are needed")
        for key, least in {"epsilon": 0.0, "steps": 1, "restarts": 1, "draws": 1}.items():
            if getattr(self, key) < least:
                raise InputError(f"dimensions.{self.name}.{key}={getattr(self, key)}: must be at least {least:g}")
        if self.label_noise is not None and not 0 <= self.label_noise <= 1:
            raise InputError(f"dimensions.{self.name}.label_noise={self.label_noise}: a share from 0 to 1 is needed")
        if self.label_noise_models < 2:
            key, models = f"dimensions.{self.name}.label_noise_models", self.label_noise_models
            raise InputError(f"{key}={models}: must be at least 2, since every model has wrong labels of its own")

    @property
    def trains(self) -> bool:
        """Whether models are trained on wrong labels."""
        return self.label_noise is not None

    def measure(self, subject: Subject) -> Measured:
        """Measure accuracy under noise, under attack if the model is one network, and after wrong labels if asked."""
        rows = subject.rows
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
        units = subject.data.units(rows)
        found = self._accuracy(
            "noise_accuracy", "accuracy under noise", meaning, torch.stack(right).double().mean(0), units
        )
        if self.label_noise is not None:
            found |= self._mislabelled(subject, self.label_noise)
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
            "attack_accuracy", "accuracy under attack", meaning, alive.double(), units, headline=True
        )

    def _accuracy(
        self, key: str, label: str, meaning: str, right: Tensor, units: Tensor, *, headline: bool = False
    ) -> Measured:
        about = self.metric(key, label, meaning, headline=headline, **_RATE)
        n = float(effective_rows(right, units))
        return about.of(right.mean(), wilson_interval(float(right.mean()) * n, n))

    def _mislabelled(self, subject: Subject, share: float) -> Measured:
        """Measure the accuracy of models that are trained, stopped and defended by labels of which a share is wrong."""
        data, worlds, rows = subject.data, (subject.world, 1 - subject.world), subject.rows
        # A member of a pool is trained on the first world of its deal first.
        parts = [data.part(part, world) for part in ("train", "validation") for world in worlds]
        half = parts[0] + parts[1] + parts[2] + parts[3]
        n, classes = len(half.y), len(data.label_names)
        own, other, *validation = torch.arange(n).split([len(part.y) for part in parts])
        generator = torch.Generator().manual_seed(derived_seed(subject.seed, "label noise"))
        deals = []
        for _ in range(self.label_noise_models):
            wrong = torch.randperm(n, generator=generator)[: round(share * n)]
            y = half.y.clone()
            y[wrong] = (y[wrong] + torch.randint(1, classes, wrong.shape, generator=generator)) % classes
            deals.append(Deal(replace(half, y=y), (own, other), (validation[0], validation[1])))
        models = subject.pool(deals)
        if lost := len(models.diverged):
            raise InputError(f"dimension={self.name}: {how_many(lost, 'model')} diverged: lower training.lr")
        with torch.inference_mode():
            right = models.answers(models.ask(rows.X, rows.s), generator) == rows.y
        about = self.metric(
            "label_noise_accuracy",
            "accuracy after label noise",
            f"Mean accuracy of {len(models)} models like this one, each trained with {100 * share:g} % wrong labels.",
            **_RATE,
        )
        return about.of(right.double().mean(), crossed_rate_interval(right, units=data.units(rows)))

    def _attacked(self, net: nn.Module, X: Tensor, y: Tensor, moved: Tensor, generator: torch.Generator) -> Tensor:
        """Return whether each row is classified correctly in all attempts of the attack, ``[N]`` bool."""
        with torch.inference_mode():
            right = net(X).argmax(1) == y
        step = 2.5 * self.epsilon / self.steps
        for _ in range(self.restarts):
            change = (2 * torch.rand(X.shape, generator=generator) - 1) * self.epsilon * moved
            for _ in range(self.steps):
                change.requires_grad_(True)
                lead = _lead_of_others(net(X + change), y)
                if not lead.requires_grad:
                    raise InputError(
                        f"dimension={self.name}: the network gives logits without a gradient, so that nothing attacks "
                        "it: let the defence return it by predict, which leaves accuracy under attack out"
                    )
                (gradient,) = torch.autograd.grad(lead.sum(), change)
                change = (change.detach() + step * gradient.sign() * moved).clamp(-self.epsilon, self.epsilon)
            with torch.inference_mode():
                right &= net(X + change).argmax(1) == y
        return right


def _lead_of_others(logits: Tensor, y: Tensor) -> Tensor:
    """Return the log odds ``[N]`` of all other classes together against the label's own, from logits ``[N, C]``.

    The cross-entropy grows with them and with nothing else, so the sign of their gradients is the same. But its own
    gradient is rounded to that of the other classes alone, or to 0, where a network is sure.
    """
    own = y[:, None]
    return logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]
