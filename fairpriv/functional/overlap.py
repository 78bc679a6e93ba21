"""How far sets of entries overlap, compared with random sets of the same sizes from the same matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Overlap(NamedTuple):
    """The overlap of two sets, and what it would be by chance for sets of these sizes."""

    sizes: tuple[int, int]
    shared: int
    jaccard: float  # shared entries over the entries in either set; NaN where both are empty
    expected: float  # mean of jaccard by chance; NaN where both are empty
    interval: tuple[float, float]  # central interval of jaccard by chance; NaN where both are empty


def overlap(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], numel: Mapping[str, int], *, level: float = 0.95
) -> Overlap:
    """Compute Jaccard's index of two sets of entries of matrices, and its distribution for sets drawn at random.

    The comparison is ours: in every matrix, two sets of the given sizes are drawn uniformly and independently. The
    number that they share is then hypergeometric in each matrix, and its sum over matrices has an exact distribution,
    which gives mean and interval.

    Args:
        first: per matrix, distinct flat indices.
        second: the same for the second set, of the same matrices.
        numel: number of entries of each matrix.
        level: level of the interval, from the (1 - level) / 2 quantile to the (1 + level) / 2 quantile.

    Raises:
        ValueError: the arguments name different matrices, or there are more indices than a matrix has entries.
    """
    if not set(first) == set(second) == set(numel):
        raise ValueError(f"sets of {sorted(first)}, {sorted(second)} and numel of {sorted(numel)}: not the same")
    sizes = {name: (len(first[name]), len(second[name])) for name in numel}
    if over := [name for name in numel if max(sizes[name]) > numel[name]]:
        raise ValueError(f"{over[0]}: {max(sizes[over[0]])} indices of {numel[over[0]]} entries")
    shared = sum(int(torch.isin(first[name], second[name]).sum()) for name in numel)
    a, b = (sum(size[side] for size in sizes.values()) for side in (0, 1))
    if not a + b:
        return Overlap((a, b), 0, math.nan, math.nan, (math.nan, math.nan))
    start, mass = 0, torch.ones(1, dtype=torch.float64)
    for name, total in numel.items():
        least, more = _hypergeometric(total, *sizes[name])
        start, mass = _trimmed(start + least, _convolved(mass, more))
    counts = start + torch.arange(len(mass), dtype=torch.float64)
    indices = counts / (a + b - counts)
    below = mass.cumsum(0)
    # slightly less, so that rounding of the sums does not skip a quantile that is met exactly
    quantiles = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = torch.searchsorted(below, quantiles - 1e-12)
    low, high = indices[ends.clamp(max=len(mass) - 1)].tolist()
    return Overlap((a, b), shared, shared / (a + b - shared), float(mass @ indices), (low, high))


def _hypergeometric(numel: int, a: int, b: int) -> tuple[int, Tensor]:
    """Return how many entries two random sets of ``a`` and ``b`` of ``numel`` share: the least value, and the mass.

    It uses the ratio of neighbouring terms, which stays exact where factorials of millions would not.
    """
    least, most = max(0, a + b - numel), min(a, b)
    k = torch.arange(least, most, dtype=torch.float64)
    steps = torch.log(a - k) + torch.log(b - k) - torch.log(k + 1) - torch.log(numel - a - b + k + 1)
    mass = torch.cat((torch.zeros(1, dtype=torch.float64), steps.cumsum(0))).softmax(0)
    return _trimmed(least, mass)


def _trimmed(start: int, mass: Tensor) -> tuple[int, Tensor]:
    """Drop the tails that no interval reaches, so that many distributions can be added up."""
    kept = (mass > 1e-18).nonzero()
    low, high = int(kept[0]), int(kept[-1]) + 1
    return start + low, mass[low:high]


def _convolved(a: Tensor, b: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(a, (len(b) - 1, len(b) - 1))
    return torch.nn.functional.conv1d(padded[None, None], b.flip(0)[None, None])[0, 0]
