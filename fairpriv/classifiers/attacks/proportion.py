"""The game of proportions and its attack: which share of a model's training rows is of the property group?"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack, Query, outputs
from fairpriv.classifiers.attacks.black_box_meta_classifier import logits, span
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError


@dataclass(frozen=True, eq=False)
class ProportionGame:
    """Victims that are each trained with one of several shares of the property group, as the adversary sees them.

    Attributes:
        victims: V models.
        shadows: the adversary's own M models.
        shares: those of the shadows, ``[M]`` in [0, 1]. The victims' shares are as frequent, which the adversary knows.
        query: the rows it may ask about.
        seed: of all random draws of an attack.
    """

    victims: Models
    shadows: Models
    shares: Tensor
    query: Query
    seed: int

    @cached_property
    def victim_probs(self) -> Tensor:
        """Outputs of the victims at the query's rows, ``[V, N]`` or ``[V, N, C]``."""
        return outputs(self.victims, self.query, "victim")

    @cached_property
    def shadow_probs(self) -> Tensor:
        """Outputs of the shadows, ``[M, N]`` or ``[M, N, C]``."""
        return outputs(self.shadows, self.query, "shadow")


class ProportionAttack(Attack):
    """Base class of attacks on the proportion: ``run`` estimates every victim's share, ``[V]``."""

    game: ClassVar[str] = "proportion"

    def run(self, game: ProportionGame) -> Tensor:
        """Estimate every victim's share; raise InputError if the game lacks what the attack needs."""
        raise NotImplementedError


@dataclass
class ShareRegression(ProportionAttack):
    """Ridge regression of the share on the shadows' logits at the query rows, with a calibrated estimate.

    Direct regression of the share is that of Suri and Evans (PETS 2022), who regress on weights; the details are ours.
    The penalty has the smallest leave-one-out error on the shadows. Predictions for shadows that were left out (five
    folds) give one normal distribution for each share, with a common spread. The estimate is the median share given the
    victim's prediction, if all shares are equally likely: the middle one where the predictions tell nothing.

    Attributes:
        penalties: candidates, each above 0. Logits are scaled to a mean squared length of 1 about their mean.
        clip: probabilities are clipped to [clip, 1 - clip] before the logit, inside (0, 1/2).
    """

    kind: ClassVar[str] = "share_regression"
    needs: ClassVar[int] = 2

    name: str = "share_regression"
    penalties: list[float] = field(default_factory=lambda: [10.0**power for power in range(-6, 5)])
    clip: float = 1e-6

    def __post_init__(self) -> None:
        if not self.penalties or not all(0 < penalty < math.inf for penalty in self.penalties):
            raise InputError(f"{self.name}.penalties={self.penalties}: one or more numbers are needed, each above 0")
        if not 0 < self.clip < 0.5:
            raise InputError(f"{self.name}.clip={self.clip}: must lie between 0 and 0.5")

    def run(self, game: ProportionGame) -> Tensor:
        """Estimate every victim's share, ``[V]``, each one of the shadows' shares."""
        from scipy.linalg import LinAlgWarning
        from scipy.special import softmax
        from sklearn.linear_model import Ridge, RidgeCV
        from sklearn.model_selection import KFold, cross_val_predict

        shadows, victims = span(logits(game.shadow_probs, self.clip), logits(game.victim_probs, self.clip))
        shares = game.shares.double().numpy()
        grid = np.unique(shares)
        if not shadows.shape[1]:  # all shadows give the same answers
            return torch.full((len(victims),), float(grid[(len(grid) - 1) // 2]), dtype=torch.double)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LinAlgWarning)
            model = RidgeCV(alphas=self.penalties).fit(shadows, shares)
            folds = KFold(min(5, len(shares)), shuffle=True, random_state=game.seed % 2**32)
            left_out = cross_val_predict(Ridge(model.alpha_), shadows, shares, cv=folds)
        means = np.array([left_out[shares == share].mean() for share in grid])
        spread = np.sqrt(np.mean((left_out - means[np.searchsorted(grid, shares)]) ** 2)) + 1e-12
        chances = softmax(-(((model.predict(victims)[:, None] - means) / spread) ** 2) / 2, axis=1)
        return torch.from_numpy(grid[(chances.cumsum(1) < 0.5).sum(1).clip(max=len(grid) - 1)])
