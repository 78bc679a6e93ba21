"""The black-box meta-classifier, a logistic regression or discriminant analysis on the shadows' answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.errors import InputError
from fairpriv.functional.attacks import calibrate

Array = NDArray[np.float64]


@dataclass
class BlackBoxMetaClassifier(Attack):
    """Black-box attack by linear classifiers that are trained on the shadows' logits at the query rows.

    The idea is that of Zhang, Tople and Ohrimenko (USENIX Security 2021), who train a meta-classifier on the outputs of
    shadows; the details are ours. Candidates are logistic regression with a ridge penalty, and linear discriminant
    analysis with its covariance shrunk towards a multiple of the identity; both worlds have the same weight. The
    candidate with the smallest held-out loss is fitted to all shadows, and its held-out scores set the border. All
    candidates are computed within the span of the shadows, in which their weights lie, so that many query rows cost
    little.

    Attributes:
        penalties: candidates C of logistic regression, each above 0; a larger C penalises less. Logits are scaled to a
            mean squared length of 1 about their mean.
        shrinkages: candidates of discriminant analysis, each in (0, 1].
        folds: of the cross-validation, 2 or more; at most as many as a world has shadows.
        clip: probabilities are clipped to [clip, 1 - clip] before the logit, inside (0, 1/2). With several classes the
            logits are log probabilities (of probabilities of at least ``clip``) minus their mean over a row's classes.
    """

    kind: ClassVar[str] = "black_box_meta_classifier"
    needs: ClassVar[int] = 2

    name: str = "black_box_meta_classifier"
    penalties: list[float] = field(default_factory=lambda: [0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0])
    shrinkages: list[float] = field(default_factory=lambda: [0.0001, 0.001, 0.01, 0.1, 0.3, 1.0])
    folds: int = 5
    clip: float = 1e-6

    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.penalties + self.shrinkages:
            raise InputError(f"attack.{self.name}: needs one or more penalties or shrinkages")
        if not all(penalty > 0 for penalty in self.penalties):
            raise InputError(f"attack.{self.name}.penalties={self.penalties}: each must be above 0")
        if not all(0 < shrinkage <= 1 for shrinkage in self.shrinkages):
            raise InputError(f"attack.{self.name}.shrinkages={self.shrinkages}: each must be above 0 to 1")
        if self.folds < 2:
            raise InputError(f"attack.{self.name}.folds={self.folds}: must be 2 or more")
        if not 0 < self.clip < 0.5:
            raise InputError(f"attack.{self.name}.clip={self.clip}: must lie between 0 and 0.5")

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the distance of its linear score from the border, in the direction of world 1."""
        pools = [logits(probs, self.clip) for probs in game.shadow_probs(self.name, least=self.needs)]
        shadows, victims = span(torch.cat(pools), logits(game.victim_probs, self.clip))
        if not shadows.shape[1]:  # all shadows give the same answers, which reveal nothing
            return game.result(self.name, torch.zeros(len(victims)))
        world = np.repeat([0, 1], [len(pool) for pool in pools])
        fold = np.concatenate([np.arange(len(pool)) for pool in pools]) % min(self.folds, *map(len, pools))
        smallest, chosen, held_out = np.inf, None, np.zeros(len(world))
        for candidate in self._candidates():
            scores = np.zeros(len(world))
            for part in range(fold.max() + 1):
                out = fold == part
                _fit(candidate, shadows[~out], world[~out])
                scores[out] = candidate.decision_function(shadows[out])
            turned = np.where(world == 1, scores, -scores)
            losses = np.logaddexp(0, -turned)
            loss = (losses[world == 0].mean() + losses[world == 1].mean()) / 2
            if loss < smallest:
                smallest, chosen, held_out = loss, candidate, scores
        assert chosen is not None
        _fit(chosen, shadows, world)
        border, direction = calibrate(*(torch.from_numpy(held_out[world == b]) for b in (0, 1)))
        return game.result(self.name, direction * (torch.from_numpy(chosen.decision_function(victims)) - border))

    def _candidates(self) -> Iterator[Any]:
        """Make the candidates; the strongest penalty of a kind comes first and wins at equal losses."""
        from sklearn.linear_model import LogisticRegression

        for penalty in sorted(self.penalties):
            yield LogisticRegression(C=penalty, class_weight="balanced", solver="newton-cholesky", max_iter=1000)
        for shrinkage in sorted(self.shrinkages, reverse=True):
            yield Discriminant(shrinkage)


def _fit(candidate: Any, X: Array, y: NDArray[np.int64]) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # between distant worlds, weights near the limit serve as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        candidate.fit(X, y)


class Discriminant:
    """Linear discriminant analysis of two classes with equal weight.

    The score is the log odds of class 1 for normal classes with one covariance. This is the mean of their covariances,
    of which the share ``shrinkage`` in (0, 1] is replaced by a multiple of the identity with the same trace.
    """

    def __init__(self, shrinkage: float) -> None:
        self.shrinkage = shrinkage

    def fit(self, X: Array, y: NDArray[np.int64]) -> None:
        """Fit rows ``[M, r]`` of classes ``[M]``."""
        classes = [X[y == c] for c in (0, 1)]
        means = [rows.mean(0) for rows in classes]
        centred = [(rows - mean) / np.sqrt(2 * len(rows)) for rows, mean in zip(classes, means, strict=True)]
        covariance = sum(rows.T @ rows for rows in centred)
        identity = np.eye(X.shape[1]) * np.trace(covariance) / X.shape[1]
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * identity
        self.weights = np.linalg.lstsq(shrunk, means[1] - means[0], rcond=None)[0]  # shrunk is 0 if no rows differ
        self.middle = (means[0] + means[1]) / 2

    def decision_function(self, X: Array) -> Array:
        """Return scores ``[N]`` of rows ``[N, r]``, above 0 for class 1."""
        scores: Array = (X - self.middle) @ self.weights
        return scores


def logits(probs: Tensor, clip: float) -> Tensor:
    """Return the log odds ``[M, N]`` of P(y=1); for several classes, centred log probabilities ``[M, N * C]``."""
    probs = probs.double().clamp(clip, 1 - clip)
    if probs.dim() == 2:
        return probs.logit()
    logs = probs.log()
    return (logs - logs.mean(-1, keepdim=True)).flatten(1)


def span(shadows: Tensor, victims: Tensor) -> tuple[Array, Array]:
    """Return coordinates ``[M, r]`` and ``[V, r]`` within the span of the shadows ``[M, D]`` about their mean, r < M.

    Distances among shadows are kept up to a common scale, by which their mean squared length is 1. The component of a
    victim outside the span is dropped, because every ridge classifier of the shadows has weight 0 there.
    """
    mean = shadows.mean(0)
    U, size, axes = torch.linalg.svd(shadows - mean, full_matrices=False)
    size[size <= 1e-10 * shadows.norm()] = 0  # of equal shadows only rounding errors are left
    kept = size > 0
    scale = (size.square().sum() / len(shadows)).sqrt()
    return (U[:, kept] * size[kept] / scale).numpy(), ((victims - mean) @ axes[kept].T / scale).numpy()
