"""The KL attack on a victim that answers with labels alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.errors import InputError
from fairpriv.functional.attacks import label_only_kl_scores


@dataclass
class LabelOnlyKL(Attack):
    """The KL attack with the victim's hard labels in place of its probabilities (Suri et al., SaTML 2023).

    As in the released code, shadows keep their probabilities, and a label c counts as P(y=1) = c, moved by
    ``smoothing`` away from 0 or 1. A tie says world 0.

    Attributes:
        smoothing: distance of a label's probability from 0 or 1, inside (0, 1/2).
        clip: the shadows' probabilities are clipped to [clip, 1 - clip], inside (0, ``smoothing``].
    """

    kind: ClassVar[str] = "label_only_kl"
    needs: ClassVar[int] = 1

    name: str = "label_only_kl"
    smoothing: float = 0.01
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.smoothing < 0.5:
            raise InputError(f"attack.{self.name}.smoothing={self.smoothing}: must lie between 0 and 0.5")
        if not 0 < self.clip <= self.smoothing:
            raise InputError(f"attack.{self.name}.clip={self.clip}: must be above 0 and at most the smoothing")

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the mean KL from world 0's shadows minus that from world 1's, in nats."""
        shadows0, shadows1 = game.shadow_probs(self.name)
        scores = label_only_kl_scores(shadows0, shadows1, game.victim_probs, smoothing=self.smoothing, clip=self.clip)
        return game.result(self.name, scores)
