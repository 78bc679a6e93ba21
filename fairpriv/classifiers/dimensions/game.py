"""The base class of dimensions that are games, and the game of distributions: who guesses what of whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.dimensions.probe import Probe, Subject
from fairpriv.errors import InputError
from fairpriv.metrics import Measured, Metric


@dataclass
class Game(Probe):
    """Base class of dimensions in which attacks guess something of models, on pools that are trained for it.

    Attributes:
        attacks: by the name that they have in metrics, each of the game that ``plays`` names. Trade-offs are drawn of
            the first.
        plays: the game, as attacks name it.
    """

    plays: ClassVar[str]

    name: str
    attacks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Always: the pools that are attacked."""
        return True

    def __post_init__(self) -> None:
        if not self.attacks:
            raise InputError(f"dimensions.{self.name}.attacks: name one at least")
        for key, attack in self.attacks.items():
            where = f"dimensions.{self.name}.attacks.{key}"
            if not isinstance(attack, Attack):
                base = f"{Attack.__module__}.{Attack.__qualname__}"
                raise InputError(f"{where}: must be given by a _target_ that inherits from {base}")
            if attack.game != self.plays:
                raise InputError(f"{where} plays the game of {attack.game}, and this one is the game of {self.plays}")
            attack.name = key


@dataclass
class Distribution(Game):
    """The game of distributions, as ``attack=[...]`` plays it: in which of two worlds was a model trained?

    It is set up by the config's section ``game``. Metrics are those of the attacks, ``attack/<name>/...``.
    """

    kind: ClassVar[str] = "distribution"
    plays: ClassVar[str] = "distribution"

    def measure(self, subject: Subject) -> Measured:
        """Train and defend victims and shadows, and let every attack guess the victims' worlds."""
        first = f"attack/{next(iter(self.attacks))}/leakage"

        def headlined(metric: Metric) -> Metric:
            return replace(metric, headline=metric.name == first)

        return subject.play(list(self.attacks.values())).renamed(headlined)
