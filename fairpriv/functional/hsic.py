"""The Hilbert-Schmidt independence criterion: how strongly two sets of paired vectors depend on each other."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from fairpriv.functional.arrays import Values, as_tensor


def hsic(x: Values, y: Values, *, kernel: str = "rbf", bandwidth: float | str = "median") -> Tensor:
    """Estimate the HSIC between paired rows without bias: zero in expectation where they are independent.

    Source: Song et al., Feature Selection via Dependence Maximization, JMLR 2012, equation 4. It can be negative.
    Row i of ``x`` must belong to row i of ``y``; for unpaired rows the estimate means nothing.

    Args:
        x: ``[n, d]``, n >= 4; a tensor, an array or a list of rows.
        y: ``[n, k]``.
        kernel: ``rbf``, ``exp(-|a - b|^2 / (2 bandwidth^2))``, or ``linear``, ``a . b``.
        bandwidth: bandwidth of the rbf kernel, for both sides; ``median``: per side, the median distance between two
            rows (the lower of two middle ones), or where that is zero, of those that differ. Where all rows coincide
            the estimate is zero, up to rounding.

    Returns:
        a float64 scalar.

    Raises:
        ValueError: fewer than four rows, unequal numbers of rows, not two-dimensional, no column, a number that is not
            finite, an unknown kernel or a bandwidth that is not positive.
    """
    return _unbiased(*_kernels(x, y, kernel, bandwidth))


def hsic_test(
    x: Values,
    y: Values,
    *,
    kernel: str = "rbf",
    bandwidth: float | str = "median",
    permutations: int = 1000,
    seed: int = 0,
) -> tuple[Tensor, float]:
    """Compute :func:`hsic`, and the p value of independence by permuting the pairs.

    Arguments and errors are those of :func:`hsic`.

    Returns:
        the estimate; and ``(1 + permutations that reach it) / (1 + permutations)``, which is valid at every level: the
        given pairing counts as one of the permutations (Phipson and Smyth, 2010). One-sided, in (0, 1].
    """
    k, m = _kernels(x, y, kernel, bandwidth)
    observed = _unbiased(k, m)
    n = len(k)
    # Whatever does not depend on the pairing is computed once.
    fixed = k.sum() * m.sum() / ((n - 1) * (n - 2))
    rows_k, rows_m = k.sum(1), m.sum(1)
    slack = 1e-9 * k.abs().amax() * m.abs().amax()  # with constant rows every permutation gives zero, up to rounding
    generator = torch.Generator().manual_seed(seed)
    reached, part = 0, max(1, 2**22 // n**2)
    for start in range(0, permutations, part):
        draws = torch.rand(min(part, permutations - start), n, generator=generator, dtype=torch.float64)
        order = draws.argsort(1).to(k.device)
        trace = m[order[:, :, None], order[:, None, :]].flatten(1) @ k.flatten()
        permuted = (trace + fixed - 2 / (n - 2) * (rows_m[order] @ rows_k)) / (n * (n - 3))
        reached += int((permuted >= observed - slack).sum())
    return observed, (1 + reached) / (1 + permutations)


def hsic_change(
    before: tuple[Values, Values],
    after: tuple[Values, Values],
    *,
    kernel: str = "rbf",
    bandwidth: float | str = "median",
    level: float = 0.95,
) -> tuple[Tensor, tuple[float, float]]:
    """Subtract :func:`hsic` of ``before`` from that of ``after``, with an interval, for the same n things seen twice.

    Ours: the jackknife over rows of the difference, with the bandwidths fixed at those of all rows, and a normal
    quantile. For dependent rows both are asymptotically normal U-statistics and the jackknife is consistent. Where
    neither shows any dependence, their distribution is not normal and the interval only gives a scale.

    Args:
        before: x and y, ``[n, d]`` and ``[n, k]``, n >= 5.
        after: x and y again; row i is about the same thing in all four.
        kernel: as in :func:`hsic`.
        bandwidth: as in :func:`hsic`.
        level: coverage.

    Returns:
        the difference, float64, and (lo, hi).

    Raises:
        ValueError: as :func:`hsic`; fewer than five rows, or unequally many before and after.
    """
    kernels = [_kernels(*pair, kernel, bandwidth) for pair in (before, after)]
    n, later = (len(k) for k, _ in kernels)
    if n < 5 or later != n:
        raise ValueError(f"{n} rows before and {later} after: there must be as many, and five at least")
    then, now = (_unbiased(*pair) for pair in kernels)
    without_then, without_now = (_leaving_one_out(*pair) for pair in kernels)
    error = math.sqrt((n - 1) ** 2 / n) * float((without_now - without_then).std())
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    change = now - then
    return change, (float(change) - half, float(change) + half)


def _kernels(x: Values, y: Values, kernel: str, bandwidth: float | str) -> tuple[Tensor, Tensor]:
    """Compute both kernel matrices ``[n, n]``, float64, with zeros on the diagonal."""
    x, y = as_tensor(x, "x"), as_tensor(y, "y")
    for rows in (x, y):
        if rows.dim() != 2 or not rows.shape[1]:
            raise ValueError(f"rows are {list(rows.shape)}; they must be [n, d] with d at least 1")
        if not rows.isfinite().all():
            raise ValueError("a number of the rows is not finite")
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"{len(x)} and {len(y)} rows: they come in pairs, and the estimate needs four at least")
    if kernel not in ("rbf", "linear"):
        raise ValueError(f"kernel '{kernel}' must be rbf or linear")
    if bandwidth != "median" and (isinstance(bandwidth, str) or not 0 < bandwidth < math.inf):
        raise ValueError(f"bandwidth {bandwidth!r} must be positive, or 'median'")
    return _kernel(x, kernel, bandwidth), _kernel(y, kernel, bandwidth)


def _kernel(rows: Tensor, kernel: str, bandwidth: float | str) -> Tensor:
    rows = rows.double()
    if kernel == "linear":
        rows = rows - rows.mean(0)  # no estimate depends on the origin, but far from it the products lose their digits
        values = rows @ rows.T
    else:
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        if isinstance(bandwidth, str):
            bandwidth = _median(distances)
        values = torch.exp(-0.5 * (distances / bandwidth).square())
    return values.fill_diagonal_(0)


def _median(distances: Tensor) -> float:
    """Return the median over pairs; 1 where all rows coincide, since the bandwidth then does not matter."""
    first, second = torch.triu_indices(len(distances), len(distances), 1, device=distances.device)
    pairs = distances[first, second]
    apart = pairs[pairs > 0]
    return float(pairs.median()) or (float(apart.median()) if len(apart) else 1.0)


def _unbiased(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    rows_k, rows_m = k.sum(1), m.sum(1)
    cross = rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2))
    return ((k * m).sum() + cross - 2 / (n - 2) * (rows_k @ rows_m)) / (n * (n - 3))


def _leaving_one_out(k: Tensor, m: Tensor) -> Tensor:
    """Compute ``_unbiased`` without row and column i of both matrices, for every i: ``[n]``."""
    n = len(k) - 1
    rows_k, rows_m = k.sum(1), m.sum(1)
    left_k, left_m = (
        (rows - kernel).fill_diagonal_(0) for rows, kernel in ((rows_k, k), (rows_m, m))
    )  # row i: the sums of the other rows
    trace = (k * m).sum() - 2 * (k * m).sum(1)
    cross = left_k.sum(1) * left_m.sum(1) / ((n - 1) * (n - 2))
    return (trace + cross - 2 / (n - 2) * (left_k * left_m).sum(1)) / (n * (n - 3))
