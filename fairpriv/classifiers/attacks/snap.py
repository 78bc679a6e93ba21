"""SNAP: an adversary that adds rows to the training data, and asks how much they weigh there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult, refuse_unpoisoned
from fairpriv.errors import InputError


@dataclass
class SNAP(Attack):
    """A poisoning adversary: added rows of the property group weigh less where there are more of that group.

    After Chaudhari et al. (IEEE S&P 2023). The adversary adds rows of the property group with another label, by
    ``game.poison``. It asks about rows of that group that have other labels, and takes the logit of the added label.
    Every answer votes by the side of a threshold on which it lies, midway between the medians of all answers of the two
    worlds' shadows. Ours: the added label is the group's rarest.

    Attributes:
        clip: probabilities are clipped to [clip, 1 - clip] before the logit, inside (0, 1/2).
    """

    kind: ClassVar[str] = "snap"
    needs: ClassVar[int] = 1
    poisons: ClassVar[bool] = True

    name: str = "snap"
    clip: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.clip < 0.5:
            raise InputError(f"attack.{self.name}.clip={self.clip}: must lie between 0 and 0.5")

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the share of its answers that vote for world 1, minus one half.

        Raises:
            InputError: no rows were added, or none is left to ask about.
        """
        refuse_unpoisoned(self.name, game.poison)
        assert game.poison is not None
        group, label = game.poison
        asked = (game.query.s == group) & (game.query.y != label)
        if not asked.any():
            raise InputError(
                f"attack {self.name} has no rows of the property group to ask about but such with the label that it "
                "adds: raise game.query_share, or lower game.poison"
            )

        def logits(probs: Tensor) -> Tensor:
            of_label = probs[..., label] if probs.dim() == 3 else probs if label == 1 else 1 - probs
            return of_label[:, asked].double().logit(self.clip)

        zero, one = (logits(probs).flatten().median() for probs in game.shadow_probs(self.name))
        side = (logits(game.victim_probs) - (zero + one) / 2).sign().mean(1) / 2
        return game.result(self.name, (one - zero).sign() * side)
