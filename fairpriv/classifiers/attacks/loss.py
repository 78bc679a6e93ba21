"""The loss test: on which world's data is the victim the more accurate?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.functional.attacks import loss_test_scores


@dataclass
class LossTest(Attack):
    """Say world 1 if the victim is more accurate on world 1's query rows than on world 0's (Suri and Evans, PETS 2022).

    A tie says world 0. It knows nothing of how hard the two worlds are: a model that is better on world 1 whatever it
    was trained on is always taken for one of world 1.
    """

    kind: ClassVar[str] = "loss_test"

    name: str = "loss_test"

    def run(self, game: AttackGame) -> AttackResult:
        """Score: accuracy on world 1's rows minus accuracy on world 0's."""
        query = game.query
        return game.result(self.name, loss_test_scores(game.victim_probs, query.y, query.world))
