"""How good a judge is, how far two judges agree, and what a judge's known errors do to a rate that it measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

_Z = NormalDist().inv_cdf(0.975)


def auc(scores: ArrayLike, positive: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Compute the area under the ROC curve and its 95 % interval.

    The area is the chance that a positive row scores above a negative one, ties counting half. The interval is
    :func:`auc_interval`, which takes rows as independent.

    Args:
        scores: ``[n]``.
        positive: ``[n]`` bool; both kinds occur.

    Raises:
        ValueError: only one kind occurs.
    """
    from scipy import stats  # takes a second

    ranks, truth = stats.rankdata(np.asarray(scores, float)), np.asarray(positive, bool)
    n1, n0 = int(truth.sum()), int((~truth).sum())
    if not (n1 and n0):
        raise ValueError(f"{n1} positive and {n0} negative rows have no ROC curve")
    area = float((ranks[truth].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
    return area, auc_interval(area, n1, n0)


def auc_interval(area: float, positive: float, negative: float) -> tuple[float, float]:
    """Return a 95 % interval of an area under the ROC curve from so many positive and negative rows, at least 1 each.

    It is method 5 of Newcombe (2006, Statistics in Medicine 25, 559-573), a score interval with the variance of Hanley
    and McNeil: it lies within [0, 1], and is never of zero width.
    """
    more = (positive + negative) / 2 - 1

    def half(value: float) -> float:
        spread = 1 + more * ((1 - value) / (2 - value) + value / (1 + value))
        return _Z * math.sqrt(value * (1 - value) * spread / (positive * negative))

    low = _root(lambda value: area - value - half(value), 0.0, area)
    high = _root(lambda value: area - value + half(value), area, 1.0)
    return low, high


def calibration_slope(probabilities: ArrayLike, positive: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Compute the calibration slope of probabilities (Cox 1958), and its 95 % interval by Wald.

    It is the slope of a logistic regression of the truth on the probabilities' log-odds. 1: as sure as it is right;
    below 1: too sure; above 1: not sure enough.

    Args:
        probabilities: of being positive, ``[n]``; clipped to [1e-6, 1 - 1e-6].
        positive: ``[n]`` bool; both kinds occur.

    Returns:
        Slope and interval; infinite where no slope fits, as the probabilities separate the two kinds, or are all alike.
    """
    clipped = np.clip(np.asarray(probabilities, float), 1e-6, 1 - 1e-6)
    rows = np.stack([np.ones_like(clipped), np.log(clipped / (1 - clipped))], 1)
    truth, weights = np.asarray(positive, float), np.zeros(2)
    for _ in range(50):  # Newton's method
        fitted = 1 / (1 + np.exp(-np.clip(rows @ weights, -500, 500)))
        information = (rows * (fitted * (1 - fitted))[:, None]).T @ rows
        if np.linalg.cond(information) > 1e12:
            return math.inf, (-math.inf, math.inf)
        step = np.linalg.solve(information, rows.T @ (truth - fitted))
        weights += step
        if abs(step).max() < 1e-9:
            break
    half = _Z * math.sqrt(np.linalg.inv(information)[1, 1])
    return float(weights[1]), (float(weights[1] - half), float(weights[1] + half))


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, tuple[float, float]] | None:
    """Compute Cohen's kappa (1960) of two judges on the same rows, and its 95 % interval.

    The interval has the large-sample variance of Fleiss, Cohen and Everitt (1969), computed with half a row added to
    each of the four cells, so that it is not of zero width where the two agree on every row (the half rows are ours).

    Args:
        first, second: verdicts, ``[n]``.

    Returns:
        Kappa in [-1, 1] and an interval within it; None without rows, or where both say the same of all rows, which
        leaves kappa undefined.
    """
    table = np.zeros((2, 2))
    for a, b in zip(first, second, strict=True):
        table[int(a), int(b)] += 1
    if table.sum() in (table[0, 0], table[1, 1]):
        return None
    value = _kappa(table / table.sum())
    shares = (table + 0.5) / (table.sum() + 2)
    middle, rows, columns = _kappa(shares), shares.sum(1), shares.sum(0)
    chance = float(rows @ columns)
    agreed = sum(shares[i, i] * (1 - (rows[i] + columns[i]) * (1 - middle)) ** 2 for i in range(2))
    apart = (1 - middle) ** 2 * sum(
        shares[i, j] * (columns[i] + rows[j]) ** 2 for i in range(2) for j in range(2) if i != j
    )
    variance = (agreed + apart - (middle - chance * (1 - middle)) ** 2) / ((table.sum() + 2) * (1 - chance) ** 2)
    half = _Z * math.sqrt(max(0.0, variance))
    return value, (max(-1.0, min(value, middle - half)), min(1.0, max(value, middle + half)))


@dataclass(frozen=True)
class Known:
    """What a judge said of rows whose truth is known.

    Attributes:
        safe: rows that are safe.
        found_safe: those of them that it calls safe.
        unsafe: rows that are unsafe.
        found_unsafe: those of them that it calls unsafe.
    """

    safe: int
    found_safe: int
    unsafe: int
    found_unsafe: int


def rogan_gladen(successes: int, n: int, known: Known) -> tuple[float, tuple[float, float]] | None:
    """Correct a rate of safe responses for the errors of the judge that measured it (Rogan and Gladen 1978).

    The estimate is (rate + specificity - 1) / (sensitivity + specificity - 1), brought into [0, 1]; being safe is what
    the judge is to be sensitive to. The 95 % interval is that of Lang and Reiczigel (2014, Preventive Veterinary
    Medicine 113, 13-22): the delta method about adjusted counts, which counts the errors of all three rates.

    Args:
        successes: responses that the judge calls safe.
        n: responses with a verdict.
        known: its verdicts on rows whose truth is known, apart from these responses.

    Returns:
        Estimate and interval, within [0, 1]; None where nothing is known, or where the judge does no better than chance
        on the known rows, so that nothing can be corrected.
    """
    if not (n and known.safe and known.unsafe):
        return None
    excess = known.found_safe / known.safe + known.found_unsafe / known.unsafe - 1
    if excess <= 0:
        return None
    value = (successes / n + known.found_unsafe / known.unsafe - 1) / excess
    rate = (successes + _Z**2 / 2) / (n + _Z**2)
    sensitivity = (known.found_safe + 1) / (known.safe + 2)
    specificity = (known.found_unsafe + 1) / (known.unsafe + 2)
    excess = sensitivity + specificity - 1
    if excess <= 0:
        return None
    middle = (rate + specificity - 1) / excess
    of_safe = sensitivity * (1 - sensitivity) / (known.safe + 2)
    of_unsafe = specificity * (1 - specificity) / (known.unsafe + 2)
    shift = 2 * _Z**2 * (middle * of_safe - (1 - middle) * of_unsafe)
    variance = rate * (1 - rate) / (n + _Z**2) + middle**2 * of_safe + (1 - middle) ** 2 * of_unsafe
    half = _Z * math.sqrt(variance) / excess

    def within(share: float) -> float:
        return min(1.0, max(0.0, share))

    value = within(value)
    return value, (min(value, within(middle + shift - half)), max(value, within(middle + shift + half)))


def _kappa(shares: np.ndarray) -> float:
    chance = float(shares.sum(1) @ shares.sum(0))
    return float((np.trace(shares) - chance) / (1 - chance))


def _root(falls: Callable[[float], float], low: float, high: float) -> float:
    """Find by bisection where a function changes its sign from positive to negative."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) > 0 else (low, middle)
    return (low + high) / 2
