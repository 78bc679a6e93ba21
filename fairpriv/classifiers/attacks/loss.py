"""The loss test, which compares the victim's accuracy on both worlds' rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.functional.attacks import loss_test_scores


@dataclass
class LossTest(Attack):
    """Guess world 1 if the victim is more accurate on world 1's query rows than on world 0's.

    After Suri and Evans (PETS 2022). A tie says world 0. The test ignores how hard the worlds are: if every model is
    more accurate on world 1, wherever it was trained, it always guesses world 1.
    """

    kind: ClassVar[str] = "loss_test"

    name: str = "loss_test"

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by its accuracy on world 1's rows minus that on world 0's."""
        query = game.query
        return game.result(self.name, loss_test_scores(game.victim_probs, query.y, query.world))
