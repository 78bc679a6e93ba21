"""Intervals that can cover zero: Wilson's, those of pairs, and simultaneous bootstrap intervals of rates' differences.

A percentile bootstrap of a maximum of absolute differences never covers zero. Here the signed differences of all pairs
of groups get simultaneous intervals, and functions of them (the gap, the bound) are bounded over the box that these
form. Cells are resampled as binomial or multinomial counts of fixed size; compositions and priors are taken as given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from fairpriv.functional.bounds import label_recall, require_distributions
from fairpriv.functional.fairness import observed_counts, shares, total_variation


def t_quantile(degrees: float, level: float = 0.95) -> float:
    """Return the value within which Student's t, of either sign, lies with chance ``level``."""
    from scipy.special import stdtrit  # takes a quarter of a second, which most cells need not spend

    return float(stdtrit(degrees, (1 + level) / 2))


def wilson_interval(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval (1927) of a rate, ``successes`` out of ``n``: within [0, 1], never of zero width.

    Raises:
        ValueError: ``n`` is not positive, or ``successes`` lies outside 0 to ``n``.
    """
    _require_rate(successes, n)
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate, spread = successes / n, z * z / n
    middle = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    # at a rate of 0 or 1 the end is exactly the rate; rounding would give another number
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def effective_rows(values: Tensor, units: Tensor, keys: Tensor | None = None, count: int = 1) -> Tensor:
    """Compute how many independent rows tell as much of a rate as these, where rows of one unit come together.

    Rows that are equal in features, label and group, say, are dealt to parts as one and get the same answer. The number
    of rows is divided by the larger of two design effects. One is the variance of the rate between units over that of
    independent rows (for several classes, both summed over classes: Rao and Scott 1981). A unit that outweighs the
    others pulls the rate towards itself, which hides its own variance. So the other is Kish's (1965),
    1 + (sum_k m_k^2 / sum_k m_k - 1) icc for units of m_k rows, whose values have the intraclass correlation icc (by
    analysis of variance; 1 where the values of every unit agree).

    Args:
        values: what the rate is the mean of, such as hits, ``[N]``, or one column a class, ``[N, C]``.
        units: the unit of each row, integers ``[N]``.
        keys: codes in 0 to ``count`` - 1, ``[N]``, such as labels: each has a rate of its own.
        count: number of keys.

    Returns:
        float64 ``[count]``, at most the number of rows; 0 for a key without rows, else at least 1.
    """
    values = (values if values.dim() > 1 else values[:, None]).double()
    units = units.to(values.device).long()
    keys = torch.zeros_like(units) if keys is None else keys.to(values.device).long()

    def summed(of: Tensor, by: Tensor, size: int) -> Tensor:
        return of.new_zeros(size, of.shape[1]).index_add_(0, by, of)

    ones = torch.ones_like(values[:, :1])
    rows = summed(ones, keys, count)
    apart = values - (summed(values, keys, count) / rows)[keys]
    (of, _), pair = torch.stack((keys, units)).unique(dim=1, return_inverse=True)
    sizes = summed(ones, pair, len(of))
    squares = summed(apart, pair, len(of)).square().sum(1, keepdim=True)  # of the units' sums
    between = summed(squares, of, count)
    total = summed(apart.square().sum(1, keepdim=True), keys, count)
    free = rows - summed(torch.ones_like(sizes), of, count)
    inside = (total - summed(squares / sizes, of, count)) / free.clamp(min=1)
    varies = total > 1e-9
    icc = torch.where(varies, 1 - rows * inside / total, 1)
    kish = 1 + icc * (summed(sizes.square(), of, count) / rows.clamp(min=1) - 1)
    effect = torch.where(varies, torch.maximum(between / total, kish), kish)
    return (rows / effect.clamp(min=1))[:, 0]


def placement(values: Tensor, others: Tensor) -> Tensor:
    """Return the share of others that lie below each value, ties counting half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)
    return below.double() / (2 * len(others))


def mean_rate_interval(successes: Sequence[float], n: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Compute an interval of the plain mean of independent rates, such as balanced accuracy as a mean of recalls.

    Wilson's interval of the mean, on as many rows as would give it the variance that it has (ours). In that variance a
    rate is (k + 1) / (n + 2), since a rate of few rows is often 0 or 1. For a single rate it is Wilson's. Intervals of
    each rate, combined by the method of variance estimates recovery, covered 80 to 92 % of means of 10 to 30 rates with
    1 to 20 rows each in simulations, this one 93 % or more.

    Args:
        successes: successes of each rate, ``[K]``.
        n: rows of each rate, ``[K]``.
        level: coverage.

    Returns:
        (lo, hi) within [0, 1].

    Raises:
        ValueError: as :func:`wilson_interval`, or unequal lengths or no rate.
    """
    return _mean_rate(successes, n, level)[1:]


def mean_rate_gap_interval(
    successes0: Sequence[float],
    n0: Sequence[float],
    successes1: Sequence[float],
    n1: Sequence[float],
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute an interval of the absolute difference of two samples' mean rates, such as a model's gap between worlds.

    The ends of both intervals of :func:`mean_rate_interval` are combined in squares (for single rates this is
    Newcombe's hybrid score interval, 1998). That of the signed difference is then mapped to the absolute value: its
    lower end is 0 if the signed one covers 0.

    Args:
        successes0: successes of each rate in sample 0, ``[K]``; K = 1 for accuracy, one a label for balanced accuracy.
        n0: rows of each rate in sample 0, ``[K]``.
        successes1: successes of each rate in sample 1, ``[K]``.
        n1: rows of each rate in sample 1, ``[K]``.
        level: coverage.

    Returns:
        (lo, hi) within [0, 1].

    Raises:
        ValueError: as :func:`mean_rate_interval`.
    """
    mean0, lo0, hi0 = _mean_rate(successes0, n0, level)
    mean1, lo1, hi1 = _mean_rate(successes1, n1, level)
    lo = mean1 - mean0 - math.hypot(mean1 - lo1, hi0 - mean0)
    hi = mean1 - mean0 + math.hypot(hi1 - mean1, mean0 - lo0)
    return max(lo, -hi, 0.0), max(hi, -lo)


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute McNemar's exact two-sided p value (1947) of equal rates in pairs: a binomial test of the discordant ones.

    It has no mid-p correction, so it is conservative: the type I error stays below its nominal level.

    Args:
        only_first: pairs in which only the first succeeds.
        only_second: pairs in which only the second succeeds.

    Returns:
        p in [0, 1]; 1 without discordant pairs.

    Raises:
        ValueError: a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"{only_first} and {only_second} discordant pairs: counts are at least 0")
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_rate_difference_interval(
    both: float, only_first: float, only_second: float, neither: float, level: float = 0.95
) -> tuple[float, float]:
    """Compute an interval of the first rate minus the second in pairs, such as two models' answers to the same prompts.

    Method 10 of Newcombe (1998, Statistics in Medicine 17, 2635-2650): Wilson intervals of the two rates, combined in
    squares with their correlation phi, whose numerator is moved towards 0 by n/2 where it is positive.

    Args:
        both: pairs in which both succeed.
        only_first: pairs in which only the first succeeds.
        only_second: pairs in which only the second succeeds.
        neither: pairs in which neither succeeds.
        level: coverage.

    Returns:
        (lo, hi) within [-1, 1], never of zero width.

    Raises:
        ValueError: a negative count, or no pairs.
    """
    n = both + only_first + only_second + neither
    if min(both, only_first, only_second, neither) < 0 or n == 0:
        raise ValueError(f"{both}, {only_first}, {only_second} and {neither} pairs: counts are at least 0, not all 0")
    first, second = both + only_first, both + only_second
    lo1, hi1 = wilson_interval(first, n, level)
    lo2, hi2 = wilson_interval(second, n, level)
    rate1, rate2 = first / n, second / n
    association = float(both * neither - only_first * only_second)
    if association > 0:
        association = max(association - n / 2, 0.0)
    margins = first * (n - first) * second * (n - second)
    phi = association / math.sqrt(margins) if margins else 0.0

    def half(one: float, other: float) -> float:
        return math.sqrt(one**2 - 2 * phi * one * other + other**2)

    difference = rate1 - rate2
    return difference - half(rate1 - lo1, hi2 - rate2), difference + half(hi1 - rate1, rate2 - lo2)


def crossed_rate_interval(right: Tensor, level: float = 0.95, units: Tensor | None = None) -> tuple[float, float]:
    """Compute an interval of the mean rate of M models on the same N rows, over draws of models and of rows.

    Ours: the distances of the ends of Wilson's interval of the mean rate on N rows, and of the t interval of the
    models' rates, are combined in squares. What is due to both a row and a model counts twice, so it is a little wide.

    Args:
        right: whether each model succeeds on each row, ``[M, N]``.
        level: coverage.
        units: the unit of each row, as in :func:`effective_rows`; None: every row by itself.

    Returns:
        (lo, hi) within [0, 1].

    Raises:
        ValueError: fewer than two models, or no rows.
    """
    if len(right) < 2:
        raise ValueError(f"{len(right)} models: two are needed, because their rates differ")
    rates = right.double().mean(1)
    rate = float(rates.mean())
    rows = right.shape[1] if units is None else float(effective_rows(right.double().mean(0), units))
    lo, hi = wilson_interval(rate * rows, rows, level)
    half = t_quantile(len(rates) - 1, level) * float(rates.std()) / math.sqrt(len(rates))
    return max(0.0, rate - math.hypot(rate - lo, half)), min(1.0, rate + math.hypot(hi - rate, half))


def range_interval(
    values: Sequence[float], intervals: Sequence[tuple[float, float]], level: float = 0.95
) -> tuple[float, float]:
    """Compute an interval of the range of independent estimates, such as groups' values, from intervals of each.

    The signed differences of all pairs get intervals by the method of variance estimates recovery (Zou and Donner,
    2008, Statistics in Medicine 27, 1693-1702). Ours: these are widened as normal ones would be to hold for all pairs
    at once (Bonferroni), and bound the largest size; the lower end is 0 if every one of them covers 0.

    Args:
        values: the estimates, ``[K]``.
        intervals: the ends of an interval of each, with coverage ``level``.
        level: coverage.

    Returns:
        (lo, hi), which contains the range; at least 0.
    """
    pairs = list(itertools.combinations(range(len(values)), 2))
    quantile = NormalDist().inv_cdf
    wider = quantile(1 - (1 - level) / 2 / max(1, len(pairs))) / quantile((1 + level) / 2)
    below, above = (
        [max(0.0, sign * (value - ends[end])) for value, ends in zip(values, intervals, strict=True)]
        for end, sign in ((0, 1), (1, -1))
    )
    least = most = 0.0
    for i, j in pairs:
        lo = values[j] - values[i] - wider * math.hypot(below[j], above[i])
        hi = values[j] - values[i] + wider * math.hypot(above[j], below[i])
        least, most = max(least, lo, -hi), max(most, hi, -lo)
    return least, most


def equalized_odds_interval(
    preds: Tensor,
    target: Tensor,
    groups: Tensor,
    *,
    missing: str = "raise",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute an interval of :func:`~fairpriv.functional.equalized_odds_gap`, whose arguments and errors it shares.

    Its lower end is 0 if and only if every signed difference's interval covers 0. ``draws`` is the number of bootstrap
    draws, which are the same for the same ``seed``. See :func:`delta_intervals`.
    """
    lo, hi = delta_intervals(observed_counts(preds, target, groups, missing), level=level, draws=draws, seed=seed)
    return float(lo.amax()), float(hi.amax())


def delta_intervals(counts: Tensor, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Compute intervals of delta_y, the range of each label's rates over groups, that hold for all labels at once.

    The signed differences of rates of all pairs of groups, per label and class, get simultaneous intervals by a
    parametric bootstrap of their studentised maximum. Ours: it draws from, and is centred at, rates that are smoothed
    to (k + 2/C) / (n + 2), for two classes the (k + 1) / (n + 2) of Agresti and Caffo (2000), so that rates of 0 and 1
    do not give intervals of zero width. With more than two classes the total variation is bounded over the box of the
    classes' intervals, which is conservative.

    Args:
        counts: rows ``[Y, S, C]`` as from ``group_counts``, or effective ones; cells without rows are left out.
        level: joint coverage of all intervals.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        (lo, hi), float64 ``[Y]`` each, on the CPU, within [0, 1]; both 0 for a label with fewer than two groups.
    """
    lo, hi, _ = _family(counts, None, level, draws, seed)
    return lo, hi


def balanced_accuracy_gap_bound_interval(
    counts: Tensor,
    composition0: Tensor,
    composition1: Tensor,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute a conservative interval of ``balanced_accuracy_gap_bound``, from the box of :func:`delta_intervals`.

    Args:
        counts: rows ``[Y, S, C]`` that the rates come from.
        composition0: p_0(s | y), ``[Y, S]``, taken as known.
        composition1: p_1(s | y), ``[Y, S]``, taken as known.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        (lo, hi), which contains the bound at the observed rates.

    Raises:
        ValueError: shapes do not fit, a composition is not a distribution, or a cell without rows has weight.
    """
    require_distributions(shares(counts), [composition0, composition1], [])
    lo, hi, _ = _family(counts, None, level, draws, seed)
    weight = total_variation(composition0, composition1).cpu()
    return float((lo * weight).mean()), float((hi * weight).mean())


def accuracy_gap_bound_interval(
    counts: Tensor,
    composition0: Tensor,
    composition1: Tensor,
    prior0: Tensor,
    prior1: Tensor,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute a conservative interval of ``accuracy_gap_bound``.

    It comes from one box of simultaneous intervals: the differences of :func:`delta_intervals` and, for the label
    shift, the signed differences between labels of recall in world 0. So it is a little wider than those alone.

    Args:
        counts: rows ``[Y, S, C]`` that the rates come from.
        composition0: p_0(s | y), ``[Y, S]``, taken as known.
        composition1: p_1(s | y), ``[Y, S]``, taken as known.
        prior0: pi_0(y), ``[Y]``, taken as known.
        prior1: pi_1(y), ``[Y]``, taken as known.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        (lo, hi), which contains the bound at the observed rates.

    Raises:
        ValueError: shapes do not fit, an argument is not a distribution, or a cell without rows has weight.
    """
    require_distributions(shares(counts), [composition0, composition1], [prior0, prior1])
    *deltas, recall_range = _family(counts, composition0.cpu(), level, draws, seed)
    weight = (prior1 * total_variation(composition0, composition1)).cpu()
    shift = float(total_variation(prior0, prior1))
    lo, hi = (float((delta * weight).sum()) + shift * end for delta, end in zip(deltas, recall_range, strict=True))
    return lo, hi


def _require_rate(successes: float, n: float) -> None:
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} are no rate")


def _mean_rate(successes: Sequence[float], n: Sequence[float], level: float) -> tuple[float, float, float]:
    """Return the mean of independent rates, and the ends of its interval."""
    if not len(n):
        raise ValueError("the mean of no rates has no interval")
    rates, smooth, variance = [], [], 0.0
    for hits, rows in zip(successes, n, strict=True):
        _require_rate(hits, rows)
        rates.append(hits / rows)
        smooth.append((hits + 1) / (rows + 2))
        variance += smooth[-1] * (1 - smooth[-1]) / rows / len(n) ** 2
    mean, middle = math.fsum(rates) / len(rates), math.fsum(smooth) / len(smooth)
    rows = middle * (1 - middle) / variance
    return mean, *wilson_interval(mean * rows, rows, level)


def _family(
    counts: Tensor, composition0: Tensor | None, level: float, draws: int, seed: int
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Return ends of delta_y ``[Y]``, and of the range over labels of recall in world 0 (0 without its composition)."""
    counts = counts.cpu()  # one generator, so the same draws whatever the device
    if counts.shape[-1] == 1:  # a constant model's rows do not show the class that it might have predicted
        counts = torch.nn.functional.pad(counts, (0, 1))
    labels, _, classes = counts.shape
    present = counts.sum(-1) > 0
    pairs = (present[:, :, None] & present[:, None]).triu(1)
    label, first, second = pairs.nonzero(as_tuple=True)
    one, other = torch.triu_indices(labels, labels, 1)

    def differences(rates: Tensor) -> Tensor:
        parts = [(rates[:, label, first] - rates[:, label, second]).flatten(1)]
        if composition0 is not None:
            recall = label_recall(rates, composition0)
            parts.append(recall[:, one] - recall[:, other])
        return torch.cat(parts, dim=1)

    lo, hi = _simultaneous(counts, differences, level, draws, seed)
    cells = len(label) * classes
    lower, upper = lo[:cells].view(-1, classes), hi[:cells].view(-1, classes)
    # TV is the sum of a difference's positive parts, of its negative parts, and half of both
    least = torch.maximum(lower.clamp(min=0).sum(1), (-upper).clamp(min=0).sum(1))
    most = torch.stack(
        (upper.clamp(min=0).sum(1), (-lower).clamp(min=0).sum(1), torch.maximum(upper, -lower).sum(1) / 2)
    ).amin(0)
    zero = lower.new_zeros(labels)
    delta_lo = zero.scatter_reduce(0, label, least.clamp(max=1), "amax")
    delta_hi = zero.scatter_reduce(0, label, most.clamp(max=1), "amax")
    lower, upper = lo[cells:], hi[cells:]
    range_lo = torch.cat((zero[:1], torch.maximum(lower, -upper))).amax()
    range_hi = torch.cat((zero[:1], torch.maximum(upper, -lower))).amax()
    return delta_lo, delta_hi, (float(range_lo), float(range_hi))


def _simultaneous(
    counts: Tensor, differences: Callable[[Tensor], Tensor], level: float, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Find ends ``[K]`` in [-1, 1] that jointly cover ``differences(rates [B, Y, S, C]) -> [B, K]``, a linear map."""
    n = counts.sum(-1, keepdim=True).double()
    smooth = (counts + 2 / counts.shape[-1]) / (n + 2)
    whole = n.round()  # effective numbers of rows are no integers
    drawn = differences(_draw(whole, smooth, draws, torch.Generator().manual_seed(seed)) / whole)
    centre, estimate = differences(torch.stack((smooth, counts / n)))
    if not len(centre):
        return centre, centre
    # the differences are linear: their errors follow from their coefficients and the variances of the cells
    coefficients = differences(torch.eye(counts.numel(), dtype=n.dtype).view(-1, *counts.shape))
    error = (coefficients.square().T @ (smooth * (1 - smooth) / n.clamp(min=1)).flatten()).sqrt()
    half = torch.quantile(((drawn - centre).abs() / error).amax(1), level) * error
    # smoothing moves the centre off the estimate, which the interval must hold
    return torch.minimum(centre - half, estimate).clamp(min=-1), torch.maximum(centre + half, estimate).clamp(max=1)


def _draw(n: Tensor, probs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw multinomial counts ``[B, Y, S, C]`` of n ``[Y, S, 1]``, class by class as binomials of what is left."""
    left = n.squeeze(-1).repeat(draws, 1, 1)
    rest = torch.ones_like(n.squeeze(-1))
    drawn = []
    for share in probs.unbind(-1)[:-1]:
        drawn.append(torch.binomial(left, (share / rest).clamp(0, 1).repeat(draws, 1, 1), generator=generator))
        left, rest = left - drawn[-1], rest - share
    return torch.stack([*drawn, left], dim=-1)
