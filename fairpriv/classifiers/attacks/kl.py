"""The KL attack, which compares the victim's answers with those of both worlds' shadows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.errors import InputError
from fairpriv.functional.attacks import kl_scores


@dataclass
class KL(Attack):
    """Guess the world whose shadows have the smaller mean KL(shadow || victim) on the query rows.

    After Suri et al. (SaTML 2023); all pairs of shadows, one of each world, are compared. Ours: every victim is judged
    by itself, while their released code rescales over the set of victims, which would leak their labels. A tie says
    world 0.

    Attributes:
        clip: probabilities are clipped to [clip, 1 - clip], inside (0, 1/2).
    """

    kind: ClassVar[str] = "kl"
    needs: ClassVar[int] = 1

    name: str = "kl"
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.clip < 0.5:
            raise InputError(f"attack.{self.name}.clip={self.clip}: must lie between 0 and 0.5")

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the mean KL from world 0's shadows minus that from world 1's, in nats."""
        shadows0, shadows1 = game.shadow_probs(self.name)
        return game.result(self.name, kl_scores(shadows0, shadows1, game.victim_probs, clip=self.clip))
