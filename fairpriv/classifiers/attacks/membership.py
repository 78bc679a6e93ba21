"""The game of membership, one victim at a time, and its attacks: was the victim trained on a row?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.data.rows import Rows
from fairpriv.errors import InputError
from fairpriv.functional import membership


@dataclass(frozen=True, eq=False)
class MembershipGame:
    """One victim and the adversary's reference models, which are trained as the victim is.

    Outputs are P(y=1) ``[M, N]`` of M models at N rows, or ``[M, N, C]`` with more than two classes.

    Attributes:
        rows: N audited rows, some of which the victim was trained on.
        population: Z other rows of the same world, on which no model was trained.
        victim: its outputs at the audited rows, ``[1, N]``.
        victim_population: its outputs at the population's rows, ``[1, Z]``.
        references: outputs of M reference models at the audited rows, ``[M, N]``.
        references_population: their outputs at the population's rows, ``[M, Z]``.
        inside: whether reference m was trained on row n, ``[M, N]`` bool.
        seed: of all random draws of an attack.
    """

    rows: Rows
    population: Rows
    victim: Tensor
    victim_population: Tensor
    references: Tensor
    references_population: Tensor
    inside: Tensor
    seed: int

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Probabilities of the audited rows' own labels: the victim's ``[1, N]``, the references' ``[M, N]``."""
        return self._own(self.victim, self.rows), self._own(self.references, self.rows)

    @cached_property
    def own_population(self) -> tuple[Tensor, Tensor]:
        """The same at the population's rows, ``[1, Z]`` and ``[M, Z]``."""
        return self._own(self.victim_population, self.population), self._own(
            self.references_population, self.population
        )

    def _own(self, probs: Tensor, rows: Rows) -> Tensor:
        return membership.label_probabilities(probs, rows.y)


class MembershipAttack(Attack):
    """Base class of attacks on membership: ``run`` scores every audited row, ``[N]``; larger is more like a member."""

    game: ClassVar[str] = "membership"

    def run(self, game: MembershipGame) -> Tensor:
        """Score every audited row; raise InputError if the game lacks what the attack needs."""
        raise NotImplementedError


@dataclass
class LiRA(MembershipAttack):
    """Likelihood ratio of the victim's confidence, with references that saw the row and without (S&P 2022).

    See :func:`fairpriv.functional.membership.lira_scores`.

    Attributes:
        online: use references with the row, too.
        variance: of confidences: of every row, or one for all rows, which is steadier with few references.
    """

    kind: ClassVar[str] = "lira"
    needs: ClassVar[int] = 4  # about half of them have the row

    name: str = "lira"
    online: bool = True
    variance: Literal["row", "global"] = "global"

    def __post_init__(self) -> None:
        if self.variance not in ("row", "global"):
            raise InputError(f"attack {self.name}: variance={self.variance}: must be row or global")

    def run(self, game: MembershipGame) -> Tensor:
        """Score every audited row by its likelihood ratio, ``[N]``."""
        victim, references = map(membership.confidences, game.own)
        return membership.lira_scores(victim, references, game.inside, online=self.online, variance=self.variance)[0]


@dataclass
class RMIA(MembershipAttack):
    """Share of other rows over which the row's likelihood ratio dominates, offline (Zarifzadeh et al., ICML 2024).

    See :func:`fairpriv.functional.membership.rmia_scores`.
    """

    kind: ClassVar[str] = "rmia"
    needs: ClassVar[int] = 2

    name: str = "rmia"

    def run(self, game: MembershipGame) -> Tensor:
        """Score every audited row by that share, ``[N]`` in [0, 1]."""
        victim, references = game.own
        return membership.rmia_scores(victim, references, game.inside, *game.own_population)[0]


@dataclass
class LabelProbability(MembershipAttack):
    """Probability of the row's own label, with one threshold for all rows; that of its loss (Yeom et al., CSF 2018)."""

    kind: ClassVar[str] = "label_probability"

    name: str = "loss"

    def run(self, game: MembershipGame) -> Tensor:
        """Score every audited row by the probability of its label, ``[N]``."""
        return game.own[0][0]


@dataclass
class LargestProbability(MembershipAttack):
    """Probability of the predicted label, with one threshold for all rows; the true label is not needed."""

    kind: ClassVar[str] = "largest_probability"

    name: str = "confidence"

    def run(self, game: MembershipGame) -> Tensor:
        """Score every audited row by the largest probability, ``[N]``."""
        probs = game.victim[0]
        return (probs.amax(1) if probs.dim() == 2 else torch.maximum(probs, 1 - probs)).double()
