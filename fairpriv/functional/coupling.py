"""Coupled weights: those most important to every dimension at once, which carry the trade-off between them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from fairpriv.functional.arrays import Values, as_tensor


class TopWeights(NamedTuple):
    """The highest scores of one weight matrix, kept in place of a score for every weight."""

    indices: Tensor  # int64, flat, ascending
    values: Tensor  # float32, in the order of the indices
    numel: int  # of the whole matrix
    max_ratio: float  # the share of entries kept; ratios up to it can be answered


Scores = Mapping[str, Values | TopWeights]  # by weight name


def selected(numel: int, ratio: float) -> int:
    """Count the entries that a ratio in [0, 1] selects of ``numel``: rounded down, as in the released code of SPIN."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio} must lie in [0, 1]")
    return int(ratio * numel)


def smallest_ratio(numel: int) -> float:
    """Find the smallest ratio that selects one of ``numel`` >= 1 entries; 1 / numel itself can round to none."""
    ratio = 1 / numel  # the nearest number to it: the one below selects none
    while selected(numel, ratio) < 1:
        ratio = math.nextafter(ratio, 1)
    return ratio


def top_weights(scores: Scores, *, max_ratio: float) -> dict[str, TopWeights]:
    """Keep the top ``max_ratio`` of each matrix's entries; of equal scores, those of lower index.

    Args:
        scores: per weight name, tensors or arrays of any shape without NaN; or top weights, to be reduced further.
        max_ratio: share of a matrix's entries, in [0, 1].

    Returns:
        per weight name; :func:`coupled_weights` gives the same result for these as for the scores, up to ``max_ratio``.

    Raises:
        ValueError: a ratio is outside [0, 1] or above that of the top weights given, or a score is NaN.

    Warns:
        UserWarning: the ratio selects nothing in some matrix; names the smallest ratio that would.
    """
    given = _read(scores)
    _warn_if_none({name: _numel(score) for name, score in given.items()}, max_ratio, "max_ratio")
    return {name: _top(name, score, max_ratio) for name, score in given.items()}


def coupled_weights(
    scores: Mapping[str, Scores],
    *,
    dimensions: Sequence[str],
    exclude: Sequence[str] = ("general",),
    ratio: float,
    exclude_ratio: float | None = None,
    rule: str = "intersection",
) -> dict[str, Tensor]:
    """Find, per matrix, the entries in the top ``ratio`` of every dimension and in the top of no excluded set.

    Source: Qian et al., ACL 2025 for ``intersection``. ``released`` is the code published with it, which computes
    another set: each dimension's top indices are sorted, each position is marked where its index is in no excluded set,
    and the first dimension's indices are kept at the positions that every dimension marks. So most of the first
    dimension's indices are kept, coupled or not.

    Args:
        scores: per dimension and excluded set, what ``importance_scores`` or :func:`top_weights` returned for the same
            weights. Of equal scores the lower index comes first, with either of them.
        dimensions: two or more; their order matters to ``released`` only.
        exclude: sets whose top ``exclude_ratio`` is left out; ``()`` for none.
        ratio: share of a matrix's entries, in [0, 1].
        exclude_ratio: the same for the excluded sets; ``ratio`` if None.
        rule: ``intersection`` or ``released``.

    Returns:
        per weight name, flat indices, int64, ascending; empty where nothing is coupled.

    Raises:
        ValueError: sets are missing or of other weights, a ratio is outside [0, 1] or above the ``max_ratio`` of top
            weights, the rule is unknown, or ``released`` has two ratios (the released code fails there as well).

    Warns:
        UserWarning: a ratio selects nothing in some matrix; names the smallest ratio that would.
    """
    exclude_ratio = ratio if exclude_ratio is None else exclude_ratio
    if rule not in ("intersection", "released"):
        raise ValueError(f"rule '{rule}' must be intersection or released")
    if rule == "released" and exclude_ratio != ratio:
        raise ValueError(f"rule 'released' needs exclude_ratio equal to ratio, not {exclude_ratio} and {ratio}")
    if len(dimensions) < 2 or len({*dimensions, *exclude}) < len(dimensions) + len(exclude):
        raise ValueError(f"dimensions {list(dimensions)} must be two or more, each once and none in {list(exclude)}")
    if missing := [name for name in (*dimensions, *exclude) if name not in scores]:
        raise ValueError(f"no scores of '{missing[0]}': there are {', '.join(scores)}; exclude=() leaves out nothing")
    given = {name: _read(scores[name]) for name in (*dimensions, *exclude)}
    sizes = {name: _numel(score) for name, score in given[dimensions[0]].items()}
    for dimension in (*dimensions[1:], *exclude):
        if {name: _numel(score) for name, score in given[dimension].items()} != sizes:
            raise ValueError(f"scores of '{dimension}' and '{dimensions[0]}' are not of the same weights")
    _warn_if_none(sizes, ratio, "ratio")
    if exclude and exclude_ratio != ratio:
        _warn_if_none(sizes, exclude_ratio, "exclude_ratio")

    coupled = {}
    for name in sizes:
        tops = [_top(name, given[dimension][name], ratio).indices for dimension in dimensions]
        excluded = [_top(name, given[other][name], exclude_ratio).indices for other in exclude]
        allowed = [~torch.isin(top, torch.cat(excluded)) if excluded else torch.ones_like(top).bool() for top in tops]
        if rule == "released":
            coupled[name] = tops[0][reduce(torch.logical_and, allowed)]
        else:
            kept = (top[free] for top, free in zip(tops, allowed, strict=True))
            coupled[name] = reduce(lambda left, right: left[torch.isin(left, right)], kept)
    return coupled


def _read(scores: Scores) -> dict[str, Tensor | TopWeights]:
    return {name: score if isinstance(score, TopWeights) else as_tensor(score, name) for name, score in scores.items()}


def _numel(score: Tensor | TopWeights) -> int:
    return score.numel if isinstance(score, TopWeights) else score.numel()


def _top(name: str, score: Tensor | TopWeights, ratio: float) -> TopWeights:
    numel = _numel(score)
    count = selected(numel, ratio)
    if isinstance(score, TopWeights):
        if ratio > score.max_ratio:
            raise ValueError(f"{name}: ratio {ratio} is above max_ratio {score.max_ratio} of its top weights")
        indices, values = score.indices, score.values
    else:
        values = score.detach().float().flatten()
        if values.isnan().any():
            raise ValueError(f"{name}: a score is NaN")
        least = values.topk(max(count, 1)).values[-1]  # topk itself takes any of several equal scores
        indices = (values >= least).nonzero().squeeze(1)
        indices, values = indices.cpu(), values[indices].cpu()
    best = values.argsort(descending=True, stable=True)[:count].sort().values
    return TopWeights(indices[best], values[best], numel, ratio)


def _warn_if_none(sizes: Mapping[str, int], ratio: float, what: str) -> None:
    if empty := [name for name, numel in sizes.items() if selected(numel, ratio) < 1]:
        most, least = (smallest_ratio(pick(sizes[name] for name in empty)) for pick in (min, max))
        warnings.warn(
            f"{what} {ratio} selects no weight in {len(empty)} of {len(sizes)} matrices, such as {empty[0]}; the "
            f"smallest that selects one is {least!r} in the largest of them, {most!r} in every one",
            stacklevel=3,
        )
