"""The threshold test, and the choice of query points, which the per-point threshold also uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.errors import InputError
from fairpriv.functional.attacks import threshold_test_scores


@dataclass
class ThresholdTest(Attack):
    """A threshold on the victim's accuracy at the points where the worlds differ most (Suri and Evans, PETS 2022).

    Query points are ranked by how differently the two worlds' shadows label them, and the first ``fractions`` of the
    rows of one world are kept; threshold and direction are the best on the shadows. As in the released code, the rows
    of world 0 and of world 1 are tried separately, and the better world and fraction are used. Ours: held-out shadows
    decide which is better (``folds``-fold cross-validation), where the released code uses the shadows it was fitted to.
    A tie says world 0.

    Attributes:
        fractions: candidate shares of one world's query rows, each in (0, 1].
        folds: of the cross-validation, 2 or more.
    """

    kind: ClassVar[str] = "threshold_test"
    needs: ClassVar[int] = 2

    name: str = "threshold_test"
    fractions: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.5, 1.0])
    folds: int = 4

    def __post_init__(self) -> None:
        check_selection(self.name, self.fractions, self.folds)

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the distance of its accuracy from the threshold, in the direction of world 1."""
        return game.result(
            self.name, selected_scores(game, self.name, threshold_test_scores, self.fractions, self.folds)
        )


def check_selection(attack: str, fractions: Sequence[float], folds: int) -> None:
    """Raise InputError if the settings leave no points to choose from."""
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise InputError(f"attack.{attack}.fractions={list(fractions)}: needs one or more shares, above 0 to 1")
    if folds < 2:
        raise InputError(f"attack.{attack}.folds={folds}: must be 2 or more")


def selected_scores(
    game: AttackGame,
    attack: str,
    statistic: Callable[[Tensor, Tensor, Tensor, Tensor, Sequence[int]], Tensor],
    fractions: Sequence[float],
    folds: int,
) -> Tensor:
    """Score victims by ``statistic`` on the query points that work best for held-out shadows.

    Args:
        game: the victims and shadows; its victims are used only after the choice.
        attack: its name, for errors.
        statistic: a function like :func:`fairpriv.functional.attacks.threshold_test_scores`.
        fractions: candidates; at equal balanced accuracy the first one wins, and rows of world 0 win over those of 1.
        folds: of the cross-validation; at most as many as a world has shadows.

    Returns:
        Scores ``[V]``.
    """
    shadows0, shadows1 = game.shadow_probs(attack, least=2)
    folds = min(folds, len(shadows0), len(shadows1))
    fold0, fold1 = (torch.arange(len(shadows)) % folds for shadows in (shadows0, shadows1))
    best, chosen = -1.0, torch.empty(0)
    for world in (0, 1):
        rows = (game.query.world == world).nonzero()[:, 0]
        probs0, probs1, y = shadows0[:, rows], shadows1[:, rows], game.query.y[rows]
        counts = [max(1, round(fraction * len(rows))) for fraction in fractions]
        right0, right1 = torch.zeros(2, len(counts), dtype=torch.double)
        for fold in range(folds):
            held0, held1 = fold0 == fold, fold1 == fold
            unseen = torch.cat((probs0[held0], probs1[held1]))
            says1 = statistic(probs0[~held0], probs1[~held1], unseen, y, counts).cpu() > 0
            right0 += (~says1[: held0.sum()]).sum(0)
            right1 += says1[held0.sum() :].sum(0)
        accuracy = right0 / len(shadows0) + right1 / len(shadows1)
        if accuracy.max() > best:
            best, place = float(accuracy.max()), int(accuracy.argmax())
            chosen = statistic(probs0, probs1, game.victim_probs[:, rows], y, counts)[:, place]
    return chosen
