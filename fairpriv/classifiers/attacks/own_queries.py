"""An adversary of queries of its own making: rows that are optimised until its shadows of both worlds answer apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.classifiers.attacks.black_box_meta_classifier import Discriminant, logits
from fairpriv.errors import InputError


@dataclass
class OwnQueries(Attack):
    """Ask the victim about rows that the adversary made, rather than about rows of the data. Ours.

    Rows start between the mean of the query rows and one of these each, and Adam moves them to where the worlds'
    shadows differ most: in the squared distance of their mean logits over the pooled variance. They stay within the
    range of each feature in the query, but need not be possible rows. Victims are scored by a linear discriminant of
    the logits at these rows, fitted to the shadows. Border and direction are set on shadows that neither rows nor
    discriminant were fitted to.

    Attributes:
        rows: how many are made, at least 1.
        steps: of Adam, at least 1.
        lr: of Adam in the first step, as a share of each feature's range, above 0; it falls to 0 along a cosine.
        shrinkage: share of the identity in the discriminant's covariance, in (0, 1].
        clip: probabilities are clipped to [clip, 1 - clip] before the logit, inside (0, 1/2).
    """

    kind: ClassVar[str] = "own_queries"
    needs: ClassVar[int] = 2
    reads_shadows: ClassVar[bool] = True

    name: str = "own_queries"
    rows: int = 16
    steps: int = 60
    lr: float = 0.02
    shrinkage: float = 0.1
    clip: float = 1e-6

    def __post_init__(self) -> None:
        where = f"attack.{self.name}"
        if min(self.rows, self.steps) < 1:
            raise InputError(f"{where}: rows={self.rows} and steps={self.steps} must be 1 or more")
        if not 0 < self.lr < math.inf:
            raise InputError(f"{where}.lr={self.lr}: must be above 0")
        if not 0 < self.shrinkage <= 1:
            raise InputError(f"{where}.shrinkage={self.shrinkage}: must be above 0 to 1")
        if not 0 < self.clip < 0.5:
            raise InputError(f"{where}.clip={self.clip}: must lie between 0 and 0.5")

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the discriminant of its logits at the rows made.

        Raises:
            InputError: rows that are no features, or shadows that are no networks.
        """
        shadows = game.shadow_models(self.name, least=self.needs)
        if not all(pool.weights for pool in shadows):
            raise InputError(f"attack {self.name} needs shadows that are networks: leave it out")
        if not game.query.X.is_floating_point():
            raise InputError(f"attack {self.name} makes rows of features: choose a table, or model.tune=head")
        chosen = torch.randperm(len(game.query.X), generator=torch.Generator().manual_seed(game.seed))[: self.rows]
        X = self.made(game.query.X, chosen, [pool.weights for pool in shadows])
        asked = X, game.query.s[chosen]
        pools = [logits(pool.ask(*asked), self.clip) for pool in shadows]
        spread = ((pools[0].var(0) + pools[1].var(0)) / 2).sqrt() + 1e-9  # scale is no merit of a row
        model = Discriminant(self.shrinkage)
        model.fit((torch.cat(pools) / spread).numpy(), np.repeat([0, 1], [len(pool) for pool in pools]))
        victims = (logits(game.victims.ask(*asked), self.clip) / spread).numpy()
        return game.result(self.name, torch.from_numpy(model.decision_function(victims)))

    def made(self, X: Tensor, chosen: Tensor, pools: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Tensor:
        """Make rows ``[R, F]`` from those of ``X`` ``[N, F]`` at ``chosen`` ``[R]``, for two pools' ``weights``."""
        low, high = X.amin(0), X.amax(0)
        scale = (high - low).clamp(min=1e-6)
        middle, far = X.mean(0), torch.linspace(0, 1, len(chosen))[:, None]
        place = ((middle + far * (X[chosen] - middle) - low) / scale).requires_grad_(True)  # in the unit cube
        adam = torch.optim.Adam([place], lr=self.lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps)
        for _ in range(self.steps):
            zero, one = (_scores(low + scale * place, weights) for weights in pools)
            variance = (zero.var(0) + one.var(0)) / 2
            apart = 1e-9 + (one.mean(0) - zero.mean(0)).square() / (variance + 1e-9)
            adam.zero_grad()
            (-apart.log().sum()).backward()
            adam.step()
            decay.step()
            with torch.no_grad():
                place.clamp_(0, 1)
        return (low + scale * place).detach()


def _scores(X: Tensor, weights: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the log odds ``[M, R]`` of M networks, or with more than two classes the centred logits ``[M, R * C]``."""
    h = X.expand(len(weights[0][0]), -1, -1)
    for depth, (W, b) in enumerate(weights):
        h = torch.baddbmm(b[:, None], h.relu() if depth else h, W)
    return h[..., 1] - h[..., 0] if h.shape[2] == 2 else (h - h.mean(2, keepdim=True)).flatten(1)
