"""What a defence is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from fairpriv.data.game import GameDataModule


@dataclass(frozen=True)
class Victim:
    """The model owner's side of one cell: data, models and the means to train.

    Attributes:
        data: the game's rows, set up.
        world: the bit b; ``base`` is trained on G_b.
        seed: of the cell; a defence derives every random choice from it.
        base: a copy of the model trained on G_b (trained or read from the cache at the first call).
        fresh: a model of the same architecture with fresh weights.
        fit: ``fairpriv.modules.classifier.fit`` with all but module, batches, epochs and validation given.
    """

    data: GameDataModule
    world: int
    seed: int
    base: Callable[[], nn.Module]
    fresh: Callable[[], nn.Module]
    fit: Callable[..., None]


@dataclass
class Defended:
    """A defended model, and what the defence has to report (metric name -> value)."""

    net: nn.Module
    metrics: dict[str, float] = field(default_factory=dict)


class Defense(Protocol):
    """A defence: built from its YAML, called once a cell."""

    name: str

    def defend(self, victim: Victim) -> Defended:
        """Train or tune; raise InputError where the game makes it undefined."""
        ...
