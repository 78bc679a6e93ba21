"""Bounds on how far one model's accuracy differs between two worlds, given its rates per label and group.

Derived (ours). The worlds differ in their composition of groups and in their base rates. r[y, s, c] is
P(prediction c | label y, group s), p_b(s | y) the composition and pi_b(y) the prior of world b; P(x | y, s) is assumed
to be the same in both. Then, for every label,
``|recall_1(y) - recall_0(y)| <= delta_y w_y`` with delta_y the range of the rates over groups and
w_y = TV(p_0(. | y), p_1(. | y)); for binary labels and groups it is an equality. These bounds are about one fixed model
measured on two worlds; they do not bound an adversary that guesses which world a model was trained on.

Every function takes tensors, arrays and lists, and returns a tensor. All its arguments may have the same leading
dimensions, for many cases at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairpriv.functional.arrays import Values, as_tensor
from fairpriv.functional.fairness import label_gaps, total_variation


def label_recall(rates: Values, composition: Values) -> Tensor:
    """Compute recall(y) = sum over s of p(s | y) r[y, s, y], the share of a world's label y predicted correctly.

    Args:
        rates: ``[..., Y, S, C]`` with C >= Y; a NaN cell is ignored where its composition is 0.
        composition: p(s | y), ``[Y, S]``, rows summing to 1.

    Returns:
        ``[..., Y]``.

    Raises:
        ValueError: shapes do not fit, a composition is not a distribution, or a NaN cell has weight.
    """
    rates, (composition,), _ = require_distributions(rates, [composition], [])
    hits = rates[..., : composition.shape[-2]].diagonal(dim1=-3, dim2=-1).mT
    return torch.where(composition > 0, hits * composition, 0.0).sum(-1)


def label_shift(rates: Values, composition0: Values, prior0: Values, prior1: Values) -> Tensor:
    """Compute the accuracy gap that different base rates alone can make. Derived.

    It is TV(pi_0, pi_1) * (range over y of recall_0(y)).

    Args:
        rates: ``[Y, S, C]`` as from ``group_rates``.
        composition0: p_0(s | y), ``[Y, S]``, rows summing to 1.
        prior0: pi_0(y), ``[Y]``, summing to 1.
        prior1: pi_1(y), ``[Y]``.

    Returns:
        scalar in [0, 1].

    Raises:
        ValueError: as :func:`label_recall`.
    """
    rates, (composition0,), (prior0, prior1) = require_distributions(rates, [composition0], [prior0, prior1])
    recall = label_recall(rates, composition0)
    return total_variation(prior0, prior1) * (recall.amax(-1) - recall.amin(-1))


def accuracy_gap_bound(
    rates: Values, composition0: Values, composition1: Values, prior0: Values, prior1: Values
) -> Tensor:
    """Bound ``|accuracy in world 1 - accuracy in world 0|`` of one model from above. Derived.

    The bound is ``sum_y pi_1(y) delta_y w_y`` plus :func:`label_shift`; without the latter it does not hold.

    Args:
        rates: ``[Y, S, C]`` as from ``group_rates``; a NaN cell is left out if no world gives it weight.
        composition0: p_0(s | y), ``[Y, S]``, rows summing to 1.
        composition1: p_1(s | y), ``[Y, S]``.
        prior0: pi_0(y), ``[Y]``, summing to 1.
        prior1: pi_1(y), ``[Y]``.

    Returns:
        scalar >= 0; it can exceed 1.

    Raises:
        ValueError: as :func:`label_recall`, for either composition.
    """
    given = require_distributions(rates, [composition0, composition1], [prior0, prior1])
    rates, (composition0, composition1), (prior0, prior1) = given
    moved = label_gaps(rates) * total_variation(composition0, composition1)
    return (prior1 * moved).sum(-1) + label_shift(rates, composition0, prior0, prior1)


def balanced_accuracy_gap_bound(rates: Values, composition0: Values, composition1: Values) -> Tensor:
    """Bound one model's gap in balanced accuracy between two worlds from above: mean over y of delta_y w_y. Derived.

    Arguments and errors are those of :func:`accuracy_gap_bound`; base rates are not needed.

    Returns:
        scalar in [0, 1], at most the equalized-odds gap times ``shift_weight``.
    """
    rates, (composition0, composition1), _ = require_distributions(rates, [composition0, composition1], [])
    return (label_gaps(rates) * total_variation(composition0, composition1)).mean(-1)


def require_distributions(
    rates: Values, compositions: Sequence[Values], priors: Sequence[Values]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Convert rates, compositions and priors to tensors, and check them.

    Raises:
        ValueError: shapes do not fit, a composition or prior is not a distribution, or a cell with weight has NaN
            rates.
    """
    rates = as_tensor(rates, "rates")
    make_up = [as_tensor(part, "composition") for part in compositions]
    base_rates = [as_tensor(part, "prior") for part in priors]
    labels, group_count, classes = rates.shape[-3:] if rates.dim() >= 3 else (0, 0, 0)
    if not labels or classes < labels:
        raise ValueError(f"rates {list(rates.shape)} must be [Y, S, C] with C >= Y")
    for name, parts, shape in (("composition", make_up, [labels, group_count]), ("prior", base_rates, [labels])):
        for part in parts:
            if list(part.shape)[-len(shape) :] != shape:
                raise ValueError(f"{name} {list(part.shape)} must be {shape}, after rates {list(rates.shape)}")
            # 1e-4: room for float32 rounding, none for counts or percentages
            if not ((part >= 0).all() and ((part.sum(-1) - 1).abs() < 1e-4).all()):
                raise ValueError(f"{name} must be non-negative and sum to 1 over its last dimension")
    weighted = torch.stack([composition > 0 for composition in make_up]).any(0)
    unknown = (rates.isnan().any(-1) & weighted).nonzero().tolist()
    if unknown:
        *_, label, group = unknown[0]
        raise ValueError(f"rates of (label {label}, group {group}) are NaN, yet a composition gives the cell weight")
    return rates, make_up, base_rates
