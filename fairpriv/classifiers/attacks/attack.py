"""The base class of attacks, their input and result, and their measures over victims and over repeated splits."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError, returned
from fairpriv.functional.arrays import Values, as_tensor
from fairpriv.functional.attacks import calibrate
from fairpriv.functional.intervals import placement, t_quantile
from fairpriv.metrics import SHARE, YES_OR_NO, Measured, Metric, share_metric

FOLDS = 5  # of the shadows, on which the border of an attack is set
EXACT = 200  # largest number of victims per world for which Mann and Whitney's p value is exact


_TURNED = "an attack below one half is no protection."
ACCURACY = share_metric(
    "attack/{attack}/accuracy",
    "{attack} attack",
    f"Share of models whose training world the attack names correctly; one half is guessing: {_TURNED}",
    instead="attack/{attack}/leakage",
)
ADVANTAGE = Metric(
    "attack/{attack}/advantage",
    "{attack} advantage",
    f"2 x accuracy - 1: {_TURNED}",
    SHARE,
    low=-1.0,
    high=1.0,
    instead="attack/{attack}/leakage",
)
LEAKAGE = Metric(
    "attack/{attack}/leakage",
    "{attack} leakage",
    "How far the attack is from guessing a model's training world: the distance of its accuracy from one half, 0 to "
    "0.5. An attack that is wrong more often than not tells as much as one that is right. Beside it stands what "
    "nothing looks like: 'nothing', the same cells with game.alpha=0.5, where both worlds are one distribution, or "
    "else 'floor', what guesses at random come to with as many models.",
    SHARE,
    "less",
    low=0.0,
    high=0.5,
    column=60,
    magnitude=True,
    null_arm=True,
)
AUC = Metric(
    "attack/{attack}/auc",
    "{attack} AUC",
    "Area under the ROC curve of the attack's scores, folded to at least one half.",
    SHARE,
    instead="attack/{attack}/leakage",
    low=0.5,
    high=1.0,
    magnitude=True,
    null_arm=True,
)
AUC_INVERTED = Metric(
    "attack/{attack}/auc_inverted",
    "{attack} AUC inverted",
    "Whether smaller scores are more like world 1.",
    YES_OR_NO,
    low=0.0,
    high=1.0,
)
CALIBRATED = Metric(
    "attack/{attack}/calibrated",
    "{attack} calibrated",
    "Whether border and direction of the attack's scores were set on shadows. Told where they were not, for want of "
    "game.shadows: the attack keeps the border of its source, and may miss what it could find.",
    YES_OR_NO,
    low=0.0,
    high=1.0,
    column=64,
)
P_VALUE = share_metric(
    "attack/{attack}/p_value", "{attack} p value", "Mann and Whitney's two-sided test of the attack's scores."
)


@dataclass(frozen=True, eq=False)
class Query:
    """The adversary's own rows that it asks the victims about, disjoint from all training rows of shadows and victims.

    Equally many rows of both worlds are best, because means over all rows then give both worlds the same weight.
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
    """One round of the distribution-inference game, as the adversary sees it.

    Attributes:
        victims: V models, each trained in world 0 or in world 1.
        shadows: the adversary's own models of world 0 and of world 1; None if there are none.
        query: the rows it may ask about.
        seed: of all random draws of an attack.
        truth: ``[V]`` in {0, 1}, the worlds of the victims. Only :meth:`result` reads it.
        poison: the group and the label of the rows that the adversary has added to all models' training rows; None:
            it has added none.
    """

    victims: Models
    shadows: tuple[Models, Models] | None
    query: Query
    seed: int
    truth: Tensor
    poison: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.victims) != len(self.truth):
            raise ValueError(f"{len(self.victims)} victims, but the worlds of {len(self.truth)}")

    @cached_property
    def victim_probs(self) -> Tensor:
        """Outputs of the victims at the query's rows, ``[V, N]`` or ``[V, N, C]``; computed once for all attacks."""
        return outputs(self.victims, self.query, "victim")

    def shadow_models(self, attack: str, *, least: int = 1) -> tuple[Models, Models]:
        """Return the shadows of world 0 and of world 1.

        Raises:
            InputError: there are none, or fewer than ``least`` in a world; it names the attack.
        """
        refuse_few_shadows(attack, min(map(len, self.shadows)) if self.shadows else 0, least)
        assert self.shadows is not None
        return self.shadows

    def shadow_probs(self, attack: str, *, least: int = 1) -> tuple[Tensor, Tensor]:
        """Return the shadows' outputs, world 0 first, shaped as `victim_probs`; errors as in `shadow_models`."""
        self.shadow_models(attack, least=least)
        return self._shadow_probs

    @cached_property
    def _shadow_probs(self) -> tuple[Tensor, Tensor]:
        assert self.shadows is not None
        first, second = (outputs(pool, self.query, f"world {b}'s shadow") for b, pool in enumerate(self.shadows))
        return first, second

    def holding_out(self, zero: Tensor, one: Tensor) -> AttackGame:
        """Return the game with the shadows where these masks are True as victims, and the other ones as shadows."""
        assert self.shadows is not None
        held, left = (
            [pool[mask.nonzero()[:, 0].tolist()] for pool, mask in zip(self.shadows, masks, strict=True)]
            for masks in ((zero, one), (~zero, ~one))
        )
        truth = torch.arange(2).repeat_interleave(torch.tensor([len(pool) for pool in held]))
        game = AttackGame(_Joined(held), (left[0], left[1]), self.query, self.seed, truth, self.poison)
        first, second = self._shadow_probs
        # known outputs are not computed again
        game.__dict__["victim_probs"] = torch.cat((first[zero], second[one]))
        game.__dict__["_shadow_probs"] = first[~zero], second[~one]
        return game

    def result(self, attack: str, scores: Values) -> AttackResult:
        """Combine an attack's scores ``[V]``, a tensor, an array or a list, with the truth."""
        return AttackResult(attack, as_tensor(scores, "scores").double().cpu(), self.truth.cpu())


class _Joined(Models):
    """The models of several pools, one pool after the other."""

    def __init__(self, pools: Sequence[Models]) -> None:
        self.pools = pools
        layers = zip(*(pool.weights for pool in pools), strict=True)
        self.weights = [(torch.cat([W for W, _ in layer]), torch.cat([b for _, b in layer])) for layer in layers]

    def __len__(self) -> int:
        return sum(map(len, self.pools))

    def predict_proba(self, X: Tensor, *groups: Tensor) -> Tensor:
        return torch.cat([pool.predict_proba(X, *groups) for pool in self.pools])

    def ask(self, X: Tensor, groups: Tensor) -> Tensor:
        return torch.cat([pool.ask(X, groups) for pool in self.pools])


def outputs(models: Models, query: Query, who: str) -> Tensor:
    """Ask models about the query's rows, ``[M, N]`` or ``[M, N, C]``; ValueError if one gives no probabilities."""
    probs = models.ask(query.X, query.s)
    wrong = ~((probs >= 0) & (probs <= 1)).flatten(1).all(1)
    if wrong.any():
        raise ValueError(f"{who} number {int(wrong.nonzero()[0])} gives no probabilities: did its training diverge?")
    return probs


class Attack(ABC):
    """Base class of attacks: built from its YAML, run once per game and once per fold of the shadows.

    A decision about a victim follows from the shadows and that victim alone, never from the other victims.

    Attributes:
        name: of the attack in metrics.
        game: the game that it plays: ``distribution``, in which it guesses every victim's training world
            (:class:`AttackGame`), or ``membership`` (:mod:`fairpriv.classifiers.attacks.membership`).
        needs: how many models of its own it needs: shadows per world, or reference models.
        white_box: whether it reads ``weights``; if so, it is left out if a defence leaves no single network.
        reads_shadows: whether it reads the weights of its own shadows; likewise, if they pass through the defence, too.
        calibrates: whether it sets border and direction of its scores on shadows itself; else :func:`guess` does.
        poisons: whether it needs rows of its own among all models' training rows, ``game.poison``.
    """

    name: str
    game: ClassVar[str] = "distribution"
    needs: ClassVar[int] = 0
    white_box: ClassVar[bool] = False
    reads_shadows: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    poisons: ClassVar[bool] = False

    @abstractmethod
    def run(self, game: Any) -> Any:
        """Play the game: in that of distributions, score every victim and return an :class:`AttackResult`.

        Raises:
            InputError: the game lacks what the attack needs.
        """


def refuse_few_shadows(attack: str, shadows: int, least: int) -> None:
    """Raise InputError, naming the attack, if it has fewer ``shadows`` per world than it needs."""
    if shadows < least:
        raise InputError(
            f"attack {attack} needs shadow models and has {shadows} per world: set game.shadows to {least} or more, "
            "or leave the attack out"
        )


def refuse_unpoisoned(attack: str, poison: object) -> None:
    """Raise InputError, naming the attack, if the adversary has added no rows to those that models are trained on."""
    if not poison:
        raise InputError(f"attack {attack} needs rows of its own in the training data: set game.poison, as to 0.05")


def shadows_to_calibrate(needs: int, folds: int = FOLDS) -> int:
    """Return how many shadows a world must have, so that ``needs`` are left where a part is held out; at least 3."""
    return next(n for n in itertools.count(3) if n - math.ceil(n / min(folds, n)) >= needs)


def guess(attack: Attack, game: AttackGame, *, folds: int = FOLDS) -> AttackResult:
    """Guess every victim's world, with border and direction of the attack's scores set on the adversary's own shadows.

    The attack is run on each part of the shadows as if they were victims, with the others as shadows. Their scores and
    their worlds, which the adversary knows, give the border (:func:`calibrate`). Scores are then shifted and turned, so
    that 0 is the border and larger scores are more like world 1. The decision about a victim does not depend on other
    victims.

    Args:
        attack: run once more for every fold, unless it ``calibrates`` itself.
        game: the victims and shadows. With fewer than `shadows_to_calibrate` in a world no shadows are held out: the
            attack's own border stays, and the result is not ``calibrated``.
        folds: number of parts of the shadows, each with about equally many of both worlds; at most as many as a world
            has shadows.

    Raises:
        InputError: the attack lacks what it needs, or does not score every victim by a finite number.
    """
    result = _scored(attack, game)
    if attack.calibrates:
        return replace(result, calibrated=True)
    fewest = min(map(len, game.shadows)) if game.shadows else 0
    if game.shadows is None or fewest < shadows_to_calibrate(attack.needs, folds):
        return result
    parts = [torch.arange(len(pool)) % min(folds, fewest) for pool in game.shadows]
    held = []
    for fold in range(min(folds, fewest)):
        part = game.holding_out(*(numbers == fold for numbers in parts))
        held.append((_scored(attack, part).scores, part.truth))
    scores, worlds = (torch.cat(each) for each in zip(*held, strict=True))
    border, direction = calibrate(scores[worlds == 0], scores[worlds == 1])
    return replace(result, scores=direction * (result.scores - border), calibrated=True)


def _scored(attack: Attack, game: AttackGame) -> AttackResult:
    """Run an attack; raise InputError if it does not score every victim by a finite number, which has a border."""
    result = returned(AttackResult, attack.run(game), f"attack {attack.name}: run")
    if result.scores.shape != game.truth.shape or not result.scores.isfinite().all():
        raise InputError(
            f"attack {attack.name}: run must return one score for each of {len(game.truth)} victims, all of them finite"
        )
    return replace(result, name=attack.name)  # by which its metrics are found, whatever the user's class says


@dataclass(frozen=True, eq=False)
class AttackResult:
    """An attack's scores of all victims and their true worlds, with the measures that follow.

    Attributes:
        name: of the attack, as in its metrics.
        scores: ``[V]`` float64, larger is more like world 1, on one scale for all victims; 0 is the border.
        truth: ``[V]`` in {0, 1}, the victims' worlds.
        calibrated: whether border and direction were set on shadows; else they are the attack's own.
    """

    name: str
    scores: Tensor
    truth: Tensor
    calibrated: bool = False

    @property
    def decisions(self) -> Tensor:
        """Guessed worlds ``[V]`` in {0, 1}: world 1 for scores above 0; a tie says world 0."""
        return (self.scores > 0).long()

    @property
    def correct(self) -> int:
        """Number of victims whose world was guessed correctly."""
        return int((self.decisions == self.truth).sum())

    @property
    def accuracy(self) -> float:
        """Share of victims guessed correctly, in [0, 1]; below 1/2 if the guesses are worse than chance."""
        return self.correct / len(self.truth)

    @property
    def advantage(self) -> float:
        """2 * accuracy - 1, in [-1, 1]; with equally many victims of both worlds it is TPR - FPR."""
        return 2 * self.accuracy - 1

    @property
    def leakage(self) -> float:
        """Distance of the accuracy from 1/2, in [0, 1/2]: opposite guesses turn an accuracy of 28 % into 72 %."""
        return abs(self.accuracy - 0.5)

    @property
    def signed_auc(self) -> float:
        """P(score of a victim of world 1 > that of one of world 0), ties count half; NaN if a world has no victim."""
        zeros, ones = (self.scores[self.truth == world] for world in (0, 1))
        return float(placement(ones, zeros).mean())

    @property
    def auc(self) -> float:
        """:attr:`signed_auc` a folded, max(a, 1 - a), in [1/2, 1]; :attr:`auc_inverted` says if a is below 1/2.

        It does not depend on the border at 0, so an attack with a wrong border has a higher AUC than accuracy.
        """
        return max(self.signed_auc, 1 - self.signed_auc)

    @property
    def auc_inverted(self) -> float:
        """1.0 if smaller scores are more like world 1, else 0.0."""
        return float(self.signed_auc < 0.5)

    @property
    def interval(self) -> tuple[float, float]:
        """Exact (Clopper-Pearson) 95 % interval of the accuracy.

        It treats victims as independent, given this split of the data and these shadows. Another split or shadow pool
        changes the accuracy by more; :func:`spread` gives intervals over several splits.
        """
        from scipy import stats  # takes a second, of which a cell without attacks has no need

        low, high = stats.binomtest(self.correct, len(self.truth)).proportion_ci(method="exact")
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """P value of Mann and Whitney's two-sided test of the scores; NaN if a world has no victim.

        Like :attr:`interval`, it holds given this split and these shadows. Unlike a test of the accuracy it does not
        depend on the border. It is exact up to 200 victims per world, and by the normal approximation above that or if
        scores are tied.
        """
        from scipy import stats

        zeros, ones = (self.scores[self.truth == world].numpy() for world in (0, 1))
        if not (len(zeros) and len(ones)):
            return math.nan
        exact = len(self.scores.unique()) == len(self.scores) and max(len(zeros), len(ones)) <= EXACT
        return float(stats.mannwhitneyu(ones, zeros, method="exact" if exact else "asymptotic").pvalue)

    @property
    def measured(self) -> Measured:
        """Accuracy, advantage, leakage, AUC and the p value, with 95 % intervals of the first three."""
        found = measures_of(self.name, self.accuracy, self.signed_auc, len(self.truth), self.interval)
        return found | P_VALUE.named(attack=self.name).of(self.p_value)


def measures_of(
    attack: str,
    accuracy: float,
    auc: float,
    victims: int,
    interval: tuple[float, float] | None = None,
    auc_interval: tuple[float, float] | None = None,
) -> Measured:
    """Measure an attack by its accuracy and its signed AUC, of one split or as means over several.

    Args:
        attack: its name.
        accuracy: in [0, 1].
        auc: in [0, 1]; below one half if smaller scores are more like world 1.
        victims: number of victims, which gives the floor of the leakage.
        interval: of the accuracy; those of advantage and leakage follow from it.
        auc_interval: of the signed AUC.
    """

    def folding(ends: tuple[float, float] | None) -> tuple[float, float] | None:
        return None if ends is None else folded((ends[0] - 0.5, ends[1] - 0.5))

    folded_auc = folding(auc_interval)
    of = {"accuracy": ACCURACY, "advantage": ADVANTAGE, "leakage": LEAKAGE, "auc": AUC, "inverted": AUC_INVERTED}
    of = {key: metric.named(attack=attack) for key, metric in of.items()}
    return (
        of["accuracy"].of(accuracy, interval)
        | of["advantage"].of(2 * accuracy - 1, interval and (2 * interval[0] - 1, 2 * interval[1] - 1))
        | of["leakage"].of(
            abs(accuracy - 0.5), folding(interval), signed=[[accuracy - 0.5]], floor=floor_of_leakage(victims)
        )
        | of["auc"].of(
            max(auc, 1 - auc), folded_auc and (0.5 + folded_auc[0], min(0.5 + folded_auc[1], 1.0)), signed=[[auc - 0.5]]
        )
        | of["inverted"].of(auc < 0.5)
    )


def floor_of_leakage(victims: int) -> float:
    """Return the exact expectation of |X / n - 1/2|, where X of n fair coins (n: ``victims``) show world 1."""
    n, k = victims, victims // 2 + 1
    # de Moivre: E|X - n/2| = k C(n, k) / 2^n with k the smallest whole number above n/2
    return (
        math.exp(math.log(k) + math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)) / n
    )


def folded(interval: tuple[float, float]) -> tuple[float, float]:
    """Turn the interval of a signed difference into that of its magnitude, which starts at 0 if the former covers 0."""
    low, high = interval
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


@dataclass(frozen=True)
class Spread:
    """A signed measure over repeated splits: mean, standard deviation (n - 1), and the 95 % interval of the mean."""

    mean: float
    std: float
    interval: tuple[float, float]


def spread(values: Sequence[float], *, ratio: float) -> Spread:
    """Return mean and spread of a measure over splits, with Student's t interval corrected for overlap.

    Random halves of one data set share rows, so their values are alike, and their spread is too small for new data.
    Nadeau and Bengio (Machine Learning 2003) take s^2 (1/n + ratio) as the variance of the mean over n splits. The
    interval is about new data, not about new splits of the same data.

    Args:
        values: two or more.
        ratio: rows of the victims' half per row of the adversary's; 0 if the splits have no rows in common.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("a spread needs two or more values")
    found = torch.tensor(values, dtype=torch.double)
    mean, std, n = float(found.mean()), float(found.std()), len(values)
    half = t_quantile(n - 1) * std * math.sqrt(1 / n + ratio)
    return Spread(mean, std, (mean - half, mean + half))
