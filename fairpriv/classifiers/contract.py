"""What a classifier's defence is given and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fairpriv.classifiers.data.batches import subsample
from fairpriv.classifiers.data.game import Deal, GameDataModule
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import predict
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.errors import InputError
from fairpriv.metrics import Measured, Metric
from fairpriv.settings import TrainingSettings


def tuning_rows(own: Rows, other: Rows, rehearsal: float, seed: int) -> Rows:
    """What fine-tuning sees: all rows of the other world and a share ``rehearsal`` of the own one's."""
    return other + subsample(own, rehearsal, seed) if rehearsal else other


def refuse_one_group(rows: Rows, key: str, rehearsal: float, what: str) -> None:
    """Raise InputError, naming the config's key, where no label has rows of two groups: ``what`` is undefined then."""
    if all(len(rows.s[rows.y == label].unique()) < 2 for label in rows.y.unique()):
        raise InputError(
            f"{key}={rehearsal} leaves one group in every batch, so {what} is undefined: set {key} above 0, or "
            "game.alpha inside (0, 1)"
        )


EPOCH = Metric(
    "defense/epoch",
    "epoch of the defence",
    "The epoch whose weights are kept, of those that were trained.",
    "epochs",
    low=0.0,
)


@dataclass(frozen=True)
class ClassifierOwner:
    """The model owner's side of one cell: data, models and the means to train.

    Attributes:
        data: the game's rows, set up.
        world: the bit b; ``base`` is trained on G_b.
        seed: of the cell; a defence derives every random choice from it.
        base: a copy of the model trained on G_b (trained or read from the cache at the first call).
        fresh: a model of the same architecture with fresh weights.
        fit: ``fairpriv.classifiers.nets.classifier.fit`` with all but module, batches, epochs and validation given.
        told: metrics of training that are reported beside those of the defence; ``base`` adds its own.
    """

    data: GameDataModule
    world: int
    seed: int
    base: Callable[[], nn.Module]
    fresh: Callable[[], nn.Module]
    fit: Callable[..., None]
    told: dict[str, float] = field(default_factory=dict)

    @property
    def own_rows(self) -> Rows:
        """Training rows of G_b."""
        return self.data.part("train", self.world)

    @property
    def validation(self) -> Rows:
        """Validation rows of both worlds, by which every tuning is stopped."""
        return self.data.part("validation", 0) + self.data.part("validation", 1)

    def tuning_rows(self, rehearsal: float) -> Rows:
        """Training rows of the other world with a share of the own one's."""
        return tuning_rows(self.own_rows, self.data.part("train", 1 - self.world), rehearsal, self.seed)

    def untouched(self) -> Defended:
        """The base model, as a defence that does nothing returns it."""
        return Defended(self.base())

    def two_classes(self, defense: str) -> None:
        """Raise InputError, naming the defence, where there are more labels than two."""
        if len(self.data.label_names) > 2:
            raise InputError(
                f"defense={defense} takes two labels (fairlearn's method is defined for no more), and the target has "
                f"{len(self.data.label_names)}: choose another defence, or a target with two"
            )


@dataclass(frozen=True)
class PoolOwner:
    """What a defence is given to defend many models at once: ``count`` of world 0, then as many of world 1.

    Attributes:
        deals: what each of them is given, drawn afresh for it from its side's half.
        count: members per world.
        seed: from which every member's random choices follow.
        fit: ``fairpriv.classifiers.nets.pool.fit_pool`` with architecture and cache given.
        training: of base models.
    """

    deals: Sequence[Deal]
    count: int
    seed: int
    fit: Callable[..., Pool]
    training: TrainingSettings

    def samples(self, *, own: bool) -> list[Rows]:
        """Each member's training rows of the world it is trained on, or of the other one."""
        return [
            deal.half.take(deal.train[world if own else 1 - world])
            for world, deal in zip(self._worlds, self.deals, strict=True)
        ]

    def tuning_samples(self, rehearsal: float) -> list[Rows]:
        """Each member's training rows of the other world with a share of those of its own."""
        pairs = zip(self.samples(own=True), self.samples(own=False), strict=True)
        return [tuning_rows(own, other, rehearsal, self.seed + i) for i, (own, other) in enumerate(pairs)]

    def validation(self) -> list[Rows]:
        """Each member's validation rows of both worlds, by which every tuning is stopped."""
        return [deal.half.take(torch.cat(deal.validation)) for deal in self.deals]

    def own_validation(self) -> list[Rows]:
        """Each member's validation rows of the world it is trained on."""
        return [deal.half.take(deal.validation[world]) for world, deal in zip(self._worlds, self.deals, strict=True)]

    def base(self) -> Pool:
        """The members as trained on their own worlds; the second time they come from the cache."""
        datasets, held_out = (
            [(rows.X, rows.y) for rows in parts] for parts in (self.samples(own=True), self.own_validation())
        )
        return self.fit(datasets, validation=held_out, seed=self.seed, **vars(self.training))

    @property
    def _worlds(self) -> list[int]:
        return [member // self.count for member in range(len(self.deals))]


@dataclass
class Defended:
    """A defended model, and what the defence has to report.

    Attributes:
        net: features -> logits; None where there is ``predict``.
        measured: what the defence has to report, see :class:`~fairpriv.metrics.Metric`.
        predict: predicted labels ``[N]`` of rows, by what is more than one network: post-processed or randomised.
            It may read the rows' groups.
        rows: what it was trained or tuned on last; None: the training rows of G_b.
    """

    net: nn.Module | None
    measured: Measured = field(default_factory=Measured)
    predict: Callable[[Rows], Tensor] | None = None
    rows: Rows | None = None

    def answers(self, rows: Rows) -> Tensor:
        """Predict the labels ``[N]`` of rows."""
        return self.predict(rows) if self.predict else predict(cast(nn.Module, self.net), rows.X)

    def accuracy(self, rows: Rows) -> float:
        """Return the share of rows whose label is predicted."""
        return float((self.answers(rows) == rows.y).double().mean())


class Defense(ABC):
    """Base class of a classifier's defences: built from its YAML, called once a cell, and once a pool to be attacked.

    Attributes:
        name: in tables and reports.
        one_network: whether it leaves a network of the model's architecture; else attacks on weights are left out.
        features_only: whether it takes rows of features alone, and neither tokens nor pixels.
    """

    name: str
    one_network: ClassVar[bool] = True
    features_only: ClassVar[bool] = False

    @property
    def control(self) -> bool:
        """Whether its training rows do not depend on the training world: a null control."""
        return False

    @abstractmethod
    def defend(self, owner: ClassifierOwner) -> Defended:
        """Train or tune; raise InputError where the game makes it undefined."""

    @abstractmethod
    def defend_pool(self, owner: PoolOwner) -> Models:
        """Defend many models at once, each with data of its own, as ``defend`` would defend each."""

    def refuse_inputs(self) -> None:
        """Raise InputError where the defence cannot train on tokens or pixels; asked where a model reads such."""
        if self.features_only:
            raise InputError(
                f"defense={self.name} takes rows of features: choose a table, or model.tune=head, which trains on "
                "those of a frozen encoder"
            )
