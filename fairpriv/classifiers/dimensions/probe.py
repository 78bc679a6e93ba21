"""The base class of a classifier's dimensions, and their input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.contract import Defended, Defense, PoolOwner
from fairpriv.classifiers.data.game import Deal, GameDataModule
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import logits
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError
from fairpriv.metrics import Measured, Metric


def refuse_answers(dimension: str, defense: str) -> NoReturn:
    """Raise `InputError`: the dimension needs probabilities, and the defence gives none."""
    raise InputError(
        f"dimension={dimension} needs probabilities, which defense={defense} does not give, only answers: leave one of "
        "them out"
    )


@dataclass(frozen=True)
class Subject:
    """A defended classifier as a probe gets it: its answers, the game's rows, and the means to train similar models.

    Attributes:
        defended: the model.
        defense: the defence of the model.
        data: the game's rows, set up.
        seed: of the cell; a probe derives every random choice from it.
        owner: makes the owner of a pool of such models from their deals; only probes with ``trains`` call it.
        play: plays the game of distributions with these attacks, and measures them; likewise.
    """

    defended: Defended
    defense: Defense
    data: GameDataModule
    seed: int
    owner: Callable[[Sequence[Deal]], PoolOwner]
    play: Callable[[Sequence[Attack]], Measured]

    @property
    def world(self) -> int:
        """The bit b: the model was trained on G_b first."""
        return self.data.game.world

    @cached_property
    def rows(self) -> Rows:
        """Test rows of both worlds, on which no model was trained, stopped or tuned."""
        return self.data.test

    @torch.inference_mode()
    def probabilities(self, rows: Rows, dimension: str) -> Tensor:
        """Return the P(y=1) ``[N]`` that the model tells, or ``[N, C]`` with more than two classes.

        Raises:
            InputError: the defended model gives only answers, or something else than probabilities; the message names
                the dimension.
        """
        net, told = self.defended.net, self.defended.tells
        if net is None and told is None:
            refuse_answers(dimension, self.defense.name)
        probs = told(rows) if told is not None else logits(cast(nn.Module, net), rows.X).softmax(1)
        shape = [len(rows.y), len(self.data.label_names)]
        if (
            not isinstance(probs, Tensor)
            or list(probs.shape) != shape
            or not (probs >= 0).all()
            or not ((probs.double().sum(1) - 1).abs() < 1e-3).all()
        ):
            raise InputError(
                f"dimension={dimension}: what defense={self.defense.name} tells must be probabilities of shape "
                f"{shape}, and the sum of every row 1"
            )
        return probs[:, 1] if probs.shape[1] == 2 else probs

    def answers(self, rows: Rows) -> Tensor:
        """Return predicted labels ``[N]``."""
        return self.defended.answers(rows)

    def pool(self, deals: Sequence[Deal]) -> Models:
        """Train a pool of such models, each on its deal, and defend it."""
        return self.defense.pool(self.owner(deals))


class Probe(ABC):
    """Base class of a classifier's dimensions: built from its YAML, called once per cell.

    Metrics are named ``eval/<name>/...``. A `Metric` that declares one decides its column, goal, axis and search
    direction. The metric of which trade-offs are drawn has ``headline=True``.

    Attributes:
        name: of the dimension; the YAML's ``@package dimensions.<name>`` gives it.
        features_only: whether it measures only on rows of features, and neither on tokens nor on pixels.
    """

    name: str
    features_only: ClassVar[bool] = False

    @property
    def trains(self) -> bool:
        """Whether it trains pools of models, which is most of its cost and needs a model that pools can hold."""
        return False

    @property
    def needs_probabilities(self) -> bool:
        """Whether it cannot measure a model that tells only predicted labels; such a defence is refused beside it."""
        return False

    def refuse_inputs(self) -> None:
        """Raise InputError if it cannot measure on tokens or pixels; called for models that read these."""
        if self.features_only:
            raise InputError(
                f"dimension={self.name} takes rows of features: choose a table, or model.tune=head, which trains on "
                "those of a frozen encoder"
            )

    @abstractmethod
    def measure(self, subject: Subject) -> Measured:
        """Measure the subject; raise InputError if that is undefined."""

    def metric(self, name: str, label: str, meaning: str, **more: object) -> Metric:
        """Describe a metric of this dimension, ``eval/<dimension>/<name>``."""
        about = Metric(f"eval/{self.name}/{name}", label, meaning)
        return replace(about, **more)  # type: ignore[arg-type]
