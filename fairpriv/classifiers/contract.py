"""The base class of a classifier's defences, their input and their result."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fairpriv.classifiers.data.batches import subsample
from fairpriv.classifiers.data.game import Deal, GameDataModule
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import predict, require_logits
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.config.settings import TrainingSettings
from fairpriv.errors import InputError, returned
from fairpriv.metrics import Measured, Metric


def tuning_rows(own: Rows, other: Rows, rehearsal: float, seed: int) -> Rows:
    """Return the rows of fine-tuning: all rows of the other world, and a share ``rehearsal`` of the own world's."""
    return other + subsample(own, rehearsal, seed) if rehearsal else other


def refuse_one_group(rows: Rows, key: str, rehearsal: float, what: str) -> None:
    """Raise InputError, naming the config's key, if no label has rows of two groups, so that ``what`` is undefined."""
    if all(len(rows.s[rows.y == label].unique()) < 2 for label in rows.y.unique()):
        raise InputError(
            f"{key}={rehearsal} leaves one group in every batch, so {what} is undefined: set {key} higher, or "
            "game.alpha inside (0, 1)"
        )


def check_training(weight_decay: float, patience: int | None) -> None:
    """Raise InputError if a defence's weight decay is no number of at least 0, or its patience is below one epoch."""
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"defense.weight_decay={weight_decay}: must be a number of at least 0")
    if patience is not None and patience < 1:
        raise InputError(f"defense.patience={patience}: must be at least 1, or null to train to the end")


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
        base: returns a copy of the model trained on G_b, which the first call trains or reads from the cache.
        fresh: returns a model of the same architecture with fresh weights.
        fit: ``fairpriv.classifiers.nets.classifier.fit`` with all but module, batches, epochs and validation given.
        told: metrics of training that are reported besides those of the defence; ``base`` adds its own.
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
        """Return the training rows of G_b."""
        return self.data.part("train", self.world)

    @property
    def validation(self) -> Rows:
        """Return the validation rows of both worlds, which stop every tuning."""
        return self.data.part("validation", 0) + self.data.part("validation", 1)

    def tuning_rows(self, rehearsal: float) -> Rows:
        """Return the training rows of the other world, and a share ``rehearsal`` of the own world's."""
        return tuning_rows(self.own_rows, self.data.part("train", 1 - self.world), rehearsal, self.seed)

    def untouched(self) -> Defended:
        """Return the base model, as a defence that does nothing does."""
        return Defended(self.base())

    def two_classes(self, defense: str) -> None:
        """Raise InputError, naming the defence, if there are more than two labels."""
        if len(self.data.label_names) > 2:
            raise InputError(
                f"defense={defense} takes two labels (fairlearn's method is defined for no more), and the target has "
                f"{len(self.data.label_names)}: choose another defence, or a target with two"
            )


@dataclass(frozen=True)
class PoolOwner:
    """The model owner's side of many models at once: ``count`` of world 0, then as many of world 1.

    Attributes:
        deals: the rows of each member, drawn for it from its side's half.
        count: members per world.
        seed: decides every member's random choices.
        fit: ``fairpriv.classifiers.nets.pool.fit_pool`` with architecture and cache given.
        training: settings of base models.
    """

    deals: Sequence[Deal]
    count: int
    seed: int
    fit: Callable[..., Pool]
    training: TrainingSettings

    def samples(self, *, own: bool) -> list[Rows]:
        """Return each member's training rows of the world it is trained on, or of the other one."""
        return [
            deal.half.take(deal.train[world if own else 1 - world])
            for world, deal in zip(self._worlds, self.deals, strict=True)
        ]

    def tuning_samples(self, rehearsal: float) -> list[Rows]:
        """Return each member's training rows of the other world, and a share ``rehearsal`` of those of its own."""
        pairs = zip(self.samples(own=True), self.samples(own=False), strict=True)
        return [tuning_rows(own, other, rehearsal, self.seed + i) for i, (own, other) in enumerate(pairs)]

    def validation(self) -> list[Rows]:
        """Return each member's validation rows of both worlds, which stop every tuning; equal ones as one object."""
        return self._held_out([deal.validation for deal in self.deals])

    def own_validation(self) -> list[Rows]:
        """Return each member's validation rows of the world it is trained on; equal ones as one object."""
        return self._held_out([(deal.validation[world],) for world, deal in zip(self._worlds, self.deals, strict=True)])

    def _held_out(self, places: list[tuple[Tensor, ...]]) -> list[Rows]:
        """Return the rows in these places of every member's half; those of the same tensors are taken once."""
        keys = [(id(deal.half), *map(id, parts)) for deal, parts in zip(self.deals, places, strict=True)]
        taken: dict[tuple[int, ...], Rows] = {}
        for key, deal, parts in zip(keys, self.deals, places, strict=True):
            if key not in taken:
                taken[key] = deal.half.take(torch.cat(parts))
        return [taken[key] for key in keys]

    def base(self) -> Pool:
        """Train the members on their own worlds; later calls read them from the cache."""
        datasets, held_out = (
            [(rows.X, rows.y) for rows in parts] for parts in (self.samples(own=True), self.own_validation())
        )
        return self.fit(datasets, validation=held_out, seed=self.seed, **vars(self.training))

    @property
    def _worlds(self) -> list[int]:
        return [member // self.count for member in range(len(self.deals))]


@dataclass
class Defended:
    """A defended model, and what the defence reports.

    Attributes:
        net: features -> logits ``[N, C]``; it answers in eval mode. None if there is ``predict``.
        measured: what the defence reports, see :class:`~fairpriv.metrics.Metric`.
        predict: rows -> predicted labels ``[N]``, of a model that is more than one network (post-processed or
            randomised). It may read the rows' groups.
        rows: the rows of its last training or tuning; None: the training rows of G_b.
        tells: rows -> the probabilities ``[N, C]`` that it tells, if these are not all that ``net`` computes.
        budget: (epsilon, delta) of the differential privacy that its whole training keeps for each of its rows; None:
            none is claimed.
    """

    net: nn.Module | None
    measured: Measured = field(default_factory=Measured)
    predict: Callable[[Rows], Tensor] | None = None
    rows: Rows | None = None
    tells: Callable[[Rows], Tensor] | None = None
    budget: tuple[float, float] | None = None

    def checked(self, defense: str, rows: Rows, classes: int) -> Defended:
        """Return it, its network in eval mode; raise InputError, naming the defence, for parts of another kind.

        Args:
            defense: its name.
            rows: some rows, which the network must answer by logits.
            classes: number of labels C.
        """
        where = f"defense={defense}: defend must return"
        if self.net is None and self.predict is None:
            raise InputError(f"{where} a Defended with net or predict, and this has neither")
        if not isinstance(self.measured, Measured) or not isinstance(self.rows, Rows | None):
            found = type(self.measured).__name__, type(self.rows).__name__
            raise InputError(f"{where} a Defended whose measured is Measured and rows are Rows, not {found}")
        if self.net is not None:
            require_logits(self.net, rows.X, classes, f"defense={defense}: net")
        return self

    def answers(self, rows: Rows) -> Tensor:
        """Predict the labels ``[N]`` of rows; raise InputError if ``predict`` gives something else."""
        if not self.predict:
            return predict(cast(nn.Module, self.net), rows.X)
        found = self.predict(rows)
        if not isinstance(found, Tensor) or found.is_floating_point() or found.shape != rows.y.shape:
            what = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            wanted = f"integer labels of shape {list(rows.y.shape)}"
            raise InputError(f"the defence's predict must return {wanted}, and returned {what}")
        return found

    def accuracy(self, rows: Rows) -> float:
        """Return the share of rows whose label is predicted correctly."""
        return float((self.answers(rows) == rows.y).double().mean())


class Defense(ABC):
    """Base class of a classifier's defences: built from its YAML, called once per cell and once per attacked pool.

    Attributes:
        name: in tables and reports.
        one_network: whether its result is one network of the model's architecture, with nothing in front of it; if not,
            attacks on weights are left out.
        features_only: whether it accepts only rows of features, and neither tokens nor pixels.
    """

    name: str
    one_network: ClassVar[bool] = True
    features_only: ClassVar[bool] = False

    @property
    def control(self) -> bool:
        """Whether its training rows do not depend on the training world: a null control."""
        return False

    @property
    def answers_only(self) -> bool:
        """Whether the model that it leaves tells predicted labels, and no probabilities."""
        return False

    @abstractmethod
    def defend(self, owner: ClassifierOwner) -> Defended:
        """Train or tune a model; raise InputError if the game makes the defence undefined."""

    @abstractmethod
    def defend_pool(self, owner: PoolOwner) -> Models:
        """Defend many models at once, each with its own data, as ``defend`` would defend each of them."""

    def pool(self, owner: PoolOwner) -> Models:
        """Call ``defend_pool``; raise InputError if it returns no models, or not one for every deal."""
        models = returned(Models, self.defend_pool(owner), f"defense={self.name}: defend_pool")
        if len(models) != len(owner.deals):
            raise InputError(
                f"defense={self.name}: defend_pool must return {len(owner.deals)} models, one for each deal, and "
                f"returned {len(models)}"
            )
        return models

    def refuse_inputs(self) -> None:
        """Raise InputError if the defence cannot train on tokens or pixels; called for models that read these."""
        if self.features_only:
            raise InputError(
                f"defense={self.name} takes rows of features: choose a table, or model.tune=head, which trains on "
                "those of a frozen encoder"
            )
