"""The distribution-inference game played: attacks on dealt pools, and what came of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from fairpriv.attacks.attack import Attack, AttackGame, over_splits


@dataclass
class Played:
    """What the attacks of one cell came to.

    ``victims`` holds, per repeated split, the truth and every attack's scores, victim by victim.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    degenerate: list[str]
    victims: list[dict[str, Any]]


@dataclass
class Split:
    """One repeated split: its attackable game, and how the victims do on the victim half's test rows."""

    game: AttackGame
    accuracy: Tensor  # [V], of each victim's answers on all test rows, both worlds together
    gap: Tensor  # [V], equalized-odds gap on them
    constant: Tensor  # [V], whether over 99 % of the predictions are of one class
    diverged: int  # victims and shadows left out


def play(splits: Sequence[Split], attacks: Sequence[Attack]) -> Played:
    """Run every attack on every split; the spread over splits where there are several.

    Metrics: those of ``AttackResult`` (means over splits); ``privacy/victim_accuracy_gap``, the absolute difference in
    mean accuracy on the same rows between victims of world 0 and of world 1 (our reading c); ``pool/accuracy``,
    ``pool/equalized_odds_gap`` and ``pool/constant``, means over victims; ``pool/diverged``, a count. (Reading d, an
    attack's accuracy minus one half, is half its advantage.)
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    victims: list[dict[str, Any]] = [{"truth": split.game.truth.tolist(), "scores": {}} for split in splits]
    for attack in attacks:
        results = [attack.run(split.game) for split in splits]
        for record, result in zip(victims, results, strict=True):
            record["scores"][attack.name] = result.scores.tolist()
        if len(results) == 1:
            metrics |= results[0].metrics
            intervals |= results[0].intervals
            continue
        for measure, spread in over_splits(results).items():
            metrics[f"attack/{attack.name}/{measure}"] = spread.mean
            metrics[f"attack/{attack.name}/{measure}_std"] = spread.std
            intervals[f"attack/{attack.name}/{measure}"] = spread.interval
    truth = torch.cat([split.game.truth for split in splits])
    accuracy = torch.cat([split.accuracy for split in splits]).double()
    low, high = welch_interval(accuracy[truth == 0], accuracy[truth == 1])
    metrics["privacy/victim_accuracy_gap"] = abs(float(accuracy[truth == 1].mean() - accuracy[truth == 0].mean()))
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    intervals["privacy/victim_accuracy_gap"] = (nearest, max(abs(low), abs(high)))
    constant = float(torch.cat([split.constant for split in splits]).double().mean())
    metrics["pool/accuracy"] = float(accuracy.mean())
    metrics["pool/equalized_odds_gap"] = float(torch.cat([split.gap for split in splits]).mean())
    metrics["pool/constant"] = constant
    metrics["pool/diverged"] = float(sum(split.diverged for split in splits))
    degenerate = []
    if constant > 0.5:
        degenerate.append(
            f"{constant:.0%} of the victims are constant: over 99 % of their predictions are of one class"
        )
    return Played(metrics, intervals, degenerate, victims)


def welch_interval(first: Tensor, second: Tensor) -> tuple[float, float]:
    """95 % interval of ``mean(second) - mean(first)`` by Welch's t; without end where a sample has one value only."""
    if min(len(first), len(second)) < 2:
        return -math.inf, math.inf
    errors = [sample.var() / len(sample) for sample in (first, second)]
    difference, squared = float(second.mean() - first.mean()), float(errors[0] + errors[1])
    if squared == 0:
        return difference, difference
    parts = sum(float(error) ** 2 / (len(s) - 1) for error, s in zip(errors, (first, second), strict=True))
    half = float(stats.t.ppf(0.975, squared**2 / parts)) * math.sqrt(squared)
    return difference - half, difference + half
