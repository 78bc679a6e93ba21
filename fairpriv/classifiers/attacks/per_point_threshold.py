"""The per-point threshold, in which query points vote by thresholds of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.classifiers.attacks.threshold import check_selection, selected_scores
from fairpriv.functional.attacks import per_point_scores


@dataclass
class PerPointThreshold(Attack):
    """A vote of query points, each with a threshold and direction on P(y=1) from shadows (Suri et al., SaTML 2023).

    As in the released code, the vote is unweighted with border 1/2, points are ranked by the difference of the worlds'
    mean outputs, and the first ``fractions`` of the rows of one world are kept. Ours: the fraction is chosen by
    cross-validation, as in the threshold test; thresholds are exact, not on a grid; points that distinguish the
    shadows' worlds no better than chance do not vote. A tie says world 0.

    Attributes:
        fractions: candidate shares of one world's query rows, each in (0, 1].
        folds: of the cross-validation, 2 or more.
    """

    kind: ClassVar[str] = "per_point_threshold"
    needs: ClassVar[int] = 2

    name: str = "per_point_threshold"
    fractions: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.5, 1.0])
    folds: int = 4

    def __post_init__(self) -> None:
        check_selection(self.name, self.fractions, self.folds)

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the share of votes for world 1 minus that for world 0."""
        return game.result(self.name, selected_scores(game, self.name, per_point_scores, self.fractions, self.folds))
