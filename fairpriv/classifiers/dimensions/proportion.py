"""Proportion privacy: how exactly an adversary estimates the share of the property group in the training rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairpriv.classifiers.attacks.game import query_of, refuse_overlap
from fairpriv.classifiers.attacks.proportion import ProportionGame, ShareRegression
from fairpriv.classifiers.data.game import Side
from fairpriv.classifiers.dimensions.game import Game
from fairpriv.classifiers.dimensions.probe import Subject
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError
from fairpriv.functional.attacks import leaked_by_estimates
from fairpriv.functional.intervals import t_quantile
from fairpriv.identity import derived_seed
from fairpriv.metrics import SHARE, Measured, Metric


@dataclass
class Proportion(Game):
    """Estimation of the share of the property group (``game.property``) that a model was trained with.

    Victims and shadows are trained as in the game of distributions, with one of the shares in ``grid`` each, equally
    many with each. An error counts beside that of guessing the middle of the grid (its median, which has the least mean
    absolute error), which needs no model.
    """

    kind: ClassVar[str] = "proportion"
    plays: ClassVar[str] = "proportion"

    attacks: dict[str, Any] = field(default_factory=lambda: {"share_regression": ShareRegression()})
    grid: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.5, 0.7, 0.9])
    shadows: int = 32  # the adversary's own models with each share
    victims: int = 16  # models with each share whose share is estimated

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"dimensions.{self.name}"
        if not 2 <= len(set(self.grid)) == len(self.grid) or not all(0 <= share <= 1 for share in self.grid):
            raise InputError(f"{where}.grid={self.grid}: two or more shares are needed, all different and from 0 to 1")
        if self.victims < 1:
            raise InputError(f"{where}.victims={self.victims}: must be at least 1")
        for key, attack in self.attacks.items():
            if self.shadows < attack.needs:
                raise InputError(
                    f"{where}.shadows={self.shadows}: attack {key} needs {attack.needs} shadow models with each share"
                )

    def measure(self, subject: Subject) -> Measured:
        """Train and defend victims and shadows, and let every attack estimate the victims' shares."""
        data = subject.data
        refuse_overlap(data)
        shares = {"victim": self._shares(self.victims), "adversary": self._shares(self.shadows)}

        def pool(side: Side, *, defended: bool) -> tuple[Models, Tensor]:
            seed = derived_seed(data.seed, f"proportion {side}")
            deals = [data.deal(side, [seed, i], float(share)) for i, share in enumerate(shares[side])]
            owner = replace(subject.owner(deals), seed=seed)
            models = subject.defense.pool(owner) if defended else owner.base()
            return models[models.sound], shares[side][models.sound]

        victims, truth = pool("victim", defended=True)
        shadows, known = pool("adversary", defended=data.game.adaptive)
        return self.played(ProportionGame(victims, shadows, known, query_of(data), subject.seed), truth)

    def played(self, game: ProportionGame, truth: Tensor, optimum: float | None = None) -> Measured:
        """Measure every attack on one game.

        Args:
            game: the game.
            truth: the victims' shares, ``[V]``.
            optimum: the least mean absolute error that any attack can have, if it is known.
        """
        found = Measured()
        for key, attack in self.attacks.items():
            estimates = attack.run(game)
            if not isinstance(estimates, Tensor) or estimates.shape != truth.shape or not estimates.isfinite().all():
                raise InputError(
                    f"dimensions.{self.name}.attacks.{key}: run must return one finite estimate for each of "
                    f"{len(truth)} victims"
                )
            found |= self._errors(key, (estimates.double() - truth).abs(), truth, optimum)
        return found

    def _shares(self, count: int) -> Tensor:
        return torch.tensor(self.grid, dtype=torch.double).repeat_interleave(count)

    def _errors(self, attack: str, errors: Tensor, truth: Tensor, optimum: float | None) -> Measured:
        grid = torch.tensor(self.grid, dtype=torch.double)
        blind = (truth - grid.median()).abs()
        error, prior, first = float(errors.mean()), float(blind.mean()), attack == next(iter(self.attacks))
        half = math.inf
        if len(errors) > 1:
            half = t_quantile(len(errors) - 1) * float(errors.std()) / math.sqrt(len(errors))
        ends = (max(error - half, 0.0), min(error + half, 1.0))
        squared, blindly = float(errors.square().mean()), float((truth - grid.mean()).square().mean())
        found = ERROR.named(attack=attack).of(error, ends, floor=prior)
        gain = replace(GAIN.named(attack=attack), headline=first)
        found |= gain.of(1 - error / prior, (1 - ends[1] / prior, 1 - ends[0] / prior), floor=0.0)
        if squared:
            least = leaked_by_estimates(truth, blindly)
            leaked = replace(N_LEAKED.named(attack=attack), guess=least)
            found |= leaked.of(leaked_by_estimates(truth, squared), floor=least)
        if optimum is not None and prior - optimum > 1e-9:
            found |= SHARE_OF_OPTIMUM.named(attack=attack).of((prior - error) / (prior - optimum))
        return found


ERROR = Metric(
    "attack/{attack}/error",
    "{attack} error",
    "Mean over victims of the distance between the estimated and the true share of the property group. Its floor is "
    "the error of who guesses the middle share and asks nothing.",
    SHARE,
    low=0.0,
    high=1.0,
    instead="attack/{attack}/error_removed",
)
GAIN = Metric(
    "attack/{attack}/error_removed",
    "{attack} error removed",
    "By which part the victims' answers lessen the error of who guesses the middle share: 0 is nothing, 1 is all. The "
    "interval is over victims, given these shadows.",
    SHARE,
    "less",
    high=1.0,
    column=61,
    guess=0.0,
)
N_LEAKED = Metric(
    "attack/{attack}/n_leaked",
    "{attack} rows leaked",
    "How many rows of the training distribution, seen directly, would give an estimate as exact (Suri and Evans 2022): "
    "mean of share x (1 - share) over the mean squared error.",
    "rows",
    "less",
    low=0.0,
)
SHARE_OF_OPTIMUM = Metric(
    "attack/{attack}/share_of_optimum",
    "{attack} share of optimum",
    "How much of the error of who guesses the middle share the attack removes, over what the best estimator removes.",
    SHARE,
    "greater",
    column=62,
)
