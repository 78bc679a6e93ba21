"""What an attack is given, what it returns, and how well it did: over victims, and over repeated splits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from scipy import stats
from torch import Tensor

from fairpriv.errors import InputError


class Models(Protocol):
    """M classifiers; a :class:`fairpriv.modules.pool.Pool` is one.

    Models with ``needs_groups`` are asked ``predict_proba(X, groups)``: the sensitive group is part of their input.
    White-box attacks also read ``weights``: ``(W [M, in, out], b [M, out])`` of every fully connected layer in order.
    """

    def __len__(self) -> int:
        """M."""
        ...

    @property
    def predict_proba(self) -> Callable[..., Tensor]:
        """P(y=1) of every model, ``[M, N]``, at features ``[N, F]``; of C > 2 classes all of them, ``[M, N, C]``."""
        ...


@dataclass(frozen=True, eq=False)
class Query:
    """Rows the adversary asks the victims about: its own, disjoint from the training rows of shadows and victims.

    Equally many rows of both worlds are best: means over all rows then weigh the worlds alike.
    """

    X: Tensor  # [N, F]
    y: Tensor  # [N], codes of the label
    s: Tensor  # [N], codes of the sensitive group
    world: Tensor  # [N] in {0, 1}: the distribution that the row was drawn from

    def __post_init__(self) -> None:
        if not len(self.X) == len(self.y) == len(self.s) == len(self.world):
            raise ValueError("X, y, s and world of a query have unequally many rows")
        if not all((self.world == world).any() for world in (0, 1)):
            raise ValueError("a query needs rows of both worlds")


@dataclass(frozen=True, eq=False)
class AttackGame:
    """One round of the distribution-inference game, as the adversary meets it.

    Attributes:
        victims: V models, each trained in world 0 or in world 1.
        shadows: the adversary's own models of world 0 and of world 1; None where there are none.
        query: the rows it may ask about.
        seed: of whatever an attack draws.
        truth: ``[V]`` in {0, 1}, the worlds of the victims. Only :meth:`result` reads it.
    """

    victims: Models
    shadows: tuple[Models, Models] | None
    query: Query
    seed: int
    truth: Tensor

    def __post_init__(self) -> None:
        if len(self.victims) != len(self.truth):
            raise ValueError(f"{len(self.victims)} victims, but the worlds of {len(self.truth)}")

    @cached_property
    def victim_probs(self) -> Tensor:
        """Outputs of the victims at the query's rows, ``[V, N]`` or ``[V, N, C]``; asked once for all attacks."""
        return _outputs(self.victims, self.query, "victim")

    def shadow_models(self, attack: str, *, least: int = 1) -> tuple[Models, Models]:
        """The shadows of world 0 and of world 1.

        Raises:
            InputError: there are none, or fewer than ``least`` in a world; it names the attack.
        """
        fewest = min(map(len, self.shadows)) if self.shadows else 0
        if self.shadows is None or fewest < least:
            raise InputError(
                f"attack {attack} needs shadow models and has {fewest} per world: set game.shadows to {least} or more, "
                "or leave the attack out"
            )
        return self.shadows

    def shadow_probs(self, attack: str, *, least: int = 1) -> tuple[Tensor, Tensor]:
        """Outputs of the shadows of either world, as `victim_probs`; asked once; errors as above."""
        self.shadow_models(attack, least=least)
        return self._shadow_probs

    @cached_property
    def _shadow_probs(self) -> tuple[Tensor, Tensor]:
        assert self.shadows is not None
        first, second = (_outputs(pool, self.query, f"world {b}'s shadow") for b, pool in enumerate(self.shadows))
        return first, second

    def result(self, attack: str, scores: Tensor) -> AttackResult:
        """Set an attack's scores ``[V]`` beside the truth."""
        return AttackResult(attack, scores.double().cpu(), self.truth.cpu())


def ask(models: Models, X: Tensor, groups: Tensor) -> Tensor:
    """Every model's outputs, ``[M, N]`` or ``[M, N, C]``, told the rows' groups ``[N]`` where it needs them."""
    return models.predict_proba(X, groups) if getattr(models, "needs_groups", False) else models.predict_proba(X)


def _outputs(models: Models, query: Query, who: str) -> Tensor:
    probs = ask(models, query.X, query.s)
    wrong = ~((probs >= 0) & (probs <= 1)).flatten(1).all(1)
    if wrong.any():
        raise ValueError(f"{who} number {int(wrong.nonzero()[0])} gives no probabilities: did its training diverge?")
    return probs


class Attack(Protocol):
    """An attack: built from its YAML, run once a game.

    A decision is about one victim: it follows from the shadows and that victim alone, never from the other victims. An
    attack with ``white_box = True`` reads ``weights``; it is left out where a defence leaves no single network.
    """

    name: str
    needs_shadows: bool

    def run(self, game: AttackGame) -> AttackResult:
        """Guess every victim's world; raise InputError where the game lacks what the attack needs."""
        ...


@dataclass(frozen=True, eq=False)
class AttackResult:
    """An attack's guesses and how many were right.

    Attributes:
        name: of the attack, as in its metrics.
        scores: ``[V]`` float64, larger is more like world 1, on one scale for all victims; 0 is the border.
        truth: ``[V]`` in {0, 1}.
    """

    name: str
    scores: Tensor
    truth: Tensor

    @property
    def decisions(self) -> Tensor:
        """``[V]`` in {0, 1}: world 1 where the score is above 0; a tie says world 0."""
        return (self.scores > 0).long()

    @property
    def correct(self) -> int:
        """Victims whose world was guessed rightly."""
        return int((self.decisions == self.truth).sum())

    @property
    def accuracy(self) -> float:
        """Share of victims guessed rightly, in [0, 1]."""
        return self.correct / len(self.truth)

    @property
    def advantage(self) -> float:
        """2 * accuracy - 1, in [-1, 1]; with equally many victims of both worlds it is TPR - FPR."""
        return 2 * self.accuracy - 1

    @property
    def auc(self) -> float:
        """P(score of a victim of world 1 > that of one of world 0), ties by half; NaN where a world has no victim.

        It asks nothing of the border at 0: an attack with a wrong border has a higher AUC than accuracy.
        """
        zeros, ones = (self.scores[self.truth == world] for world in (0, 1))
        difference = ones[:, None] - zeros
        return float(((difference > 0).double() + (difference == 0).double() / 2).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Exact (Clopper-Pearson) 95 % interval of the accuracy.

        It counts victims as independent, given this split of the data and these shadows; another split or shadow pool
        moves the accuracy by more. :func:`over_splits` has what holds beyond them.
        """
        low, high = stats.binomtest(self.correct, len(self.truth)).proportion_ci(method="exact")
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """Exact two-sided binomial test of the accuracy against 1/2, conditional as :attr:`interval` is."""
        return float(stats.binomtest(self.correct, len(self.truth), 0.5).pvalue)

    @property
    def metrics(self) -> dict[str, float]:
        """``attack/<name>/accuracy``, ``/advantage``, ``/auc`` and ``/p_value``."""
        return {f"attack/{self.name}/{key}": getattr(self, key) for key in ("accuracy", "advantage", "auc", "p_value")}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of the accuracy and of the advantage, by metric name."""
        low, high = self.interval
        return {
            f"attack/{self.name}/accuracy": (low, high),
            f"attack/{self.name}/advantage": (2 * low - 1, 2 * high - 1),
        }


@dataclass(frozen=True)
class Spread:
    """A measure over repeated splits: mean, standard deviation (n - 1), and the 95 % t interval of the mean."""

    mean: float
    std: float
    interval: tuple[float, float]


def over_splits(results: Sequence[AttackResult]) -> dict[str, Spread]:
    """Mean and spread of ``accuracy``, ``advantage`` and ``auc`` over splits, each with data and shadows of its own.

    The binomial interval of one result is conditional on its split and shadow pool; this one is not. It takes the
    splits' values as independent and about normal, is cut to the measure's range, and has no width where all splits
    agree, as they do for an attack that never fails.

    Raises:
        ValueError: fewer than two results, or of unlike attacks.
    """
    if len(results) < 2 or len({result.name for result in results}) > 1:
        raise ValueError("a spread needs two or more results of one attack")
    spreads = {}
    for measure, least in (("accuracy", 0.0), ("advantage", -1.0), ("auc", 0.0)):
        values = torch.tensor([getattr(result, measure) for result in results], dtype=torch.double)
        mean, std = float(values.mean()), float(values.std())
        half = float(stats.t.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
        spreads[measure] = Spread(mean, std, (max(mean - half, least), min(mean + half, 1.0)))
    return spreads
