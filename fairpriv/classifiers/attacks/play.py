"""The playing of the distribution-inference game: attacks on dealt pools, and their measures."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairpriv import signs
from fairpriv.classifiers.attacks.attack import (
    CALIBRATED,
    Attack,
    AttackGame,
    AttackResult,
    folded,
    guess,
    measures_of,
    shadows_to_calibrate,
    spread,
)
from fairpriv.functional.attacks import leaked_by_accuracy
from fairpriv.functional.intervals import t_quantile
from fairpriv.metrics import SHARE, Measured, Metric, share_metric

log = logging.getLogger(__name__)

N_LEAKED = Metric(
    "attack/{attack}/n_leaked",
    "{attack} rows leaked",
    "How many rows of the training distribution, seen directly, would allow this accuracy (Suri and Evans 2022); "
    "left out if the accuracy is 0 or 1. Its floor has the root mean square advantage of guesses by coin.",
    "rows",
    "less",
    low=0.0,
)
ACCURACY_STD = Metric("attack/{attack}/accuracy_std", "{attack} accuracy, standard deviation over splits", low=0.0)
AUC_STD = Metric("attack/{attack}/auc_std", "{attack} AUC, standard deviation over splits", low=0.0)
VICTIM_ACCURACY_GAP = Metric(
    "privacy/victim_accuracy_gap",
    "victims' accuracy gap",
    "Difference in mean accuracy on the same rows between victims of world 0 and of world 1 (our reading c).",
    SHARE,
    "less",
    low=0.0,
    high=1.0,
    magnitude=True,
)
POOL_ACCURACY = share_metric(
    "pool/accuracy", "victims' accuracy", "Mean over victims, on all test rows.", better="greater"
)
POOL_TRAIN_ACCURACY = share_metric(
    "pool/train_accuracy", "victims' training accuracy", "Mean over victims, each on its own training rows."
)
POOL_GAP = share_metric(
    "pool/equalized_odds_gap",
    "victims' equalized-odds gap",
    "Mean over victims, on all test rows.",
    better="less",
    magnitude=True,
)
POOL_CONSTANT = share_metric(
    "pool/constant", "constant victims", "Share of victims over 99 % of whose predictions are of one class."
)
POOL_DIVERGED = Metric(
    "pool/diverged", "diverged models", "Victims and shadows that are left out.", "models", "less", low=0.0
)


@dataclass(frozen=True)
class Played:
    """The measures of all attacks of one cell.

    ``victims`` holds, per repeated split, the truth, every attack's scores of each victim, and the measures of this
    split alone.
    """

    measured: Measured
    victims: list[dict[str, Any]]


@dataclass
class Split:
    """One repeated split: its game for the attacks, and the victims' performance on the victim half's test rows."""

    game: AttackGame
    accuracy: Tensor  # [V], of each victim's answers on all test rows, both worlds together
    gap: Tensor  # [V], equalized-odds gap on them
    constant: Tensor  # [V], whether over 99 % of the predictions are of one class
    diverged: int  # victims and shadows left out
    gap_floor: float | None = None  # the mean gap, were groups dealt at random among the rows of a label
    train_accuracy: Tensor | None = None  # [V], on each victim's own training rows
    ratio: float = 0.0  # rows of the victims' half per row of the adversary's: how much splits overlap
    told: dict[str, Any] = field(default_factory=dict)  # of victims and shadows: the epoch, the lambda that was chosen


def play(
    splits: Sequence[Split], attacks: Sequence[Attack], *, pure: bool, shares: tuple[float, float] | None = None
) -> Played:
    """Run every attack on every split, and measure the victims.

    Metrics: those of :func:`play_attacks`; ``privacy/victim_accuracy_gap``, the absolute difference in mean accuracy on
    the same rows between victims of world 0 and of world 1 (our reading c), with its ``_floor``, its expectation for
    victims whose worlds are dealt at random; ``pool/accuracy``, ``pool/train_accuracy`` if it is known,
    ``pool/equalized_odds_gap`` with its ``_floor`` and ``pool/constant``, means over victims; ``pool/diverged``, a
    count. (Reading d, an attack's accuracy minus one half, is half its advantage.)

    The gap's interval is Welch's for one split, and Student's t over several.

    Args:
        splits: one or more.
        attacks: any number.
        pure, shares: as for :func:`play_attacks`.
    """
    ratio = splits[0].ratio
    played = play_attacks([split.game for split in splits], attacks, pure=pure, ratio=ratio, shares=shares)
    for record, split in zip(played.victims, splits, strict=True):
        record["training"] = split.told
    gaps = [_gap(split.accuracy.double(), split.game.truth) for split in splits]
    difference, interval = math.fsum(gaps) / len(gaps), None
    if len(splits) > 1:
        interval = folded(spread(gaps, ratio=ratio).interval)
    elif not pure:
        accuracy, truth = splits[0].accuracy.double(), splits[0].game.truth
        interval = folded(welch_interval(accuracy[truth == 0], accuracy[truth == 1]))
    gap = VICTIM_ACCURACY_GAP.of(abs(difference), interval, signed=[[difference]], floor=_gap_floor(splits))
    measured = played.measured | gap | POOL_ACCURACY.of(_mean_of(split.accuracy.double() for split in splits))
    if trained := [split.train_accuracy.double() for split in splits if split.train_accuracy is not None]:
        measured |= POOL_TRAIN_ACCURACY.of(_mean_of(trained))
    constant = _mean_of(split.constant.double() for split in splits)
    floors = [split.gap_floor for split in splits if split.gap_floor is not None]
    floor = math.fsum(floors) / len(floors) if floors else None
    measured |= POOL_GAP.of(_mean_of(split.gap for split in splits), floor=floor) | POOL_CONSTANT.of(constant)
    measured |= POOL_DIVERGED.of(sum(split.diverged for split in splits))
    if constant > 0.5:
        reason = f"{constant:.0%} of the victims are constant: over 99 % of their predictions are of one class"
        measured |= Measured(degenerate=[reason])
    return Played(measured, played.victims)


def play_attacks(
    games: Sequence[AttackGame],
    attacks: Sequence[Attack],
    *,
    pure: bool = False,
    ratio: float = 0.0,
    shares: tuple[float, float] | None = None,
) -> Played:
    """Run every attack on every game.

    For one game the metrics are those of :class:`AttackResult`, with intervals over its victims. For several games they
    are means of the signed accuracy and AUC, with Student's t intervals over games and without a p value; leakage and
    ``auc`` are folded from these means. Each game's own p value is stored with its victims, unless the worlds are pure.

    Args:
        games: one or more, of repeated splits or drawn independently.
        attacks: any number.
        pure: whether the worlds' rows are necessarily disjoint, as those of pure groups are. Victims are then not
            independent draws from two distributions, and p values and intervals over them mean nothing: one game's
            numbers stand without them, with a warning.
        ratio: widens the intervals over games, see :func:`spread`.
        shares: of the property group in the two worlds; if they differ and lie inside (0, 1), ``n_leaked`` is measured.
    """
    told: list[dict[str, Any]] = [{"truth": game.truth.tolist(), "scores": {}} for game in games]
    measured = Measured()
    for attack in attacks:
        results = []
        for number, game in enumerate(games, start=1):
            signs.step(f"attack {attack.name}, split {number} of {len(games)}")
            results.append(guess(attack, game))
        if not all(result.calibrated for result in results):
            log.warning(
                "attack %s is not calibrated: it keeps the border of its source; set game.shadows to %d or more",
                attack.name,
                shadows_to_calibrate(attack.needs),
            )
            measured |= CALIBRATED.named(attack=attack.name).of(False)
        for record, result in zip(told, results, strict=True):
            record["scores"][attack.name] = result.scores.tolist()
            if not pure:
                record.setdefault("p_values", {})[attack.name] = result.p_value
        outcome = _outcome(results, pure=pure, ratio=ratio)
        measured |= outcome
        if shares is not None and shares[0] != shares[1] and min(shares) > 0 and max(shares) < 1:
            measured |= _leaked(results, outcome, shares)
    if pure and len(games) == 1 and attacks:
        log.warning(
            "the worlds are pure groups, so attacks on one split have no interval: set game.repeats=5 or more for one"
        )
    return Played(measured, told)


def _outcome(results: Sequence[AttackResult], *, pure: bool, ratio: float) -> Measured:
    """Measure one attack, over the victims of one game or over several games."""
    first = results[0]
    if len(results) == 1:
        return measures_of(first.name, first.accuracy, first.signed_auc, len(first.truth)) if pure else first.measured
    accuracy, auc = (
        spread([getattr(result, key) for result in results], ratio=ratio) for key in ("accuracy", "signed_auc")
    )
    low, high = accuracy.interval
    victims = sum(len(result.truth) for result in results)
    measured = measures_of(first.name, accuracy.mean, auc.mean, victims, (max(low, 0.0), min(high, 1.0)), auc.interval)
    measured |= ACCURACY_STD.named(attack=first.name).of(accuracy.std)
    return measured | AUC_STD.named(attack=first.name).of(auc.std)


def _leaked(results: Sequence[AttackResult], outcome: Measured, shares: tuple[float, float]) -> Measured:
    """Measure n_leaked from an attack's leakage; the interval follows from that of the leakage, if it is finite."""
    leakage = f"attack/{results[0].name}/leakage"
    value = leaked_by_accuracy(0.5 + outcome.metrics[leakage], shares)
    if not math.isfinite(value):
        return Measured()
    ends = tuple(leaked_by_accuracy(min(0.5 + end, 1.0), shares) for end in outcome.intervals.get(leakage, ()))
    victims = sum(len(result.truth) for result in results)
    return N_LEAKED.named(attack=results[0].name).of(
        value,
        (ends[0], ends[1]) if ends and math.isfinite(ends[1]) else None,
        floor=leaked_by_accuracy((1 + math.sqrt(1 / victims)) / 2, shares) if victims > 1 else None,
    )


def _mean_of(parts: Iterable[Tensor]) -> float:
    return float(torch.cat([*parts]).mean())


def _gap(accuracy: Tensor, worlds: Tensor) -> float:
    """Return the mean of ``accuracy`` ``[V]`` over the victims of world 1 minus that over the victims of world 0."""
    return float(accuracy[worlds == 1].mean() - accuracy[worlds == 0].mean())


def _gap_floor(splits: Sequence[Split], draws: int = 1000) -> float:
    """Simulate the expected victim accuracy gap if the worlds of every split's victims are dealt at random."""
    generator = torch.Generator().manual_seed(0)
    means = []
    for split in splits:
        accuracy, ones = split.accuracy.double(), int(split.game.truth.sum())
        dealt = accuracy[torch.rand(draws, len(accuracy), generator=generator).argsort(1)]
        means.append(dealt[:, :ones].mean(1) - dealt[:, ones:].mean(1))
    return float(torch.stack(means).mean(0).abs().mean())


def welch_interval(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return Welch's 95 % t interval of ``mean(second) - mean(first)``; unbounded if a sample has only one value."""
    if min(len(first), len(second)) < 2:
        return -math.inf, math.inf
    errors = [sample.var() / len(sample) for sample in (first, second)]
    difference, squared = float(second.mean() - first.mean()), float(errors[0] + errors[1])
    if squared == 0:
        return difference, difference
    parts = sum(float(error) ** 2 / (len(s) - 1) for error, s in zip(errors, (first, second), strict=True))
    half = t_quantile(squared**2 / parts) * math.sqrt(squared)
    return difference - half, difference + half
