"""How far one model's accuracy can differ between two worlds of unlike make-up, given its rates per label and group.

Derived (ours). r[y, s, c] = P(prediction c | label y, group s), composition p_b(s | y) and prior pi_b(y) in world b;
P(x | y, s) is assumed common to both worlds. Then, for every label,
``|recall_1(y) - recall_0(y)| <= delta_y w_y`` with delta_y the range of the rates over groups and
w_y = TV(p_0(. | y), p_1(. | y)); for binary labels and groups it is an equality. These bounds are about one fixed model
measured on two worlds; they bound no adversary that guesses which world a model was trained on.

Every function takes tensors, arrays and lists, and many cases at once, as equal leading dimensions of all its
arguments; it returns a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairpriv.functional.arrays import Values, as_tensor
from fairpriv.functional.fairness import label_gaps, total_variation


def label_recall(rates: Values, composition: Values) -> Tensor:
    """recall(y) = sum over s of p(s | y) r[y, s, y], a world's share of label y that is predicted rightly.

    Args:
        rates: ``[..., Y, S, C]`` with C >= Y; a NaN cell counts for nothing where its composition is 0.
        composition: p(s | y), ``[Y, S]``, rows summing to 1.

    Returns:
        ``[..., Y]``.

    Raises:
        ValueError: shapes that do not fit, a composition that is none, or a NaN cell that has weight.
    """
    rates, (composition,), _ = require_distributions(rates, [composition], [])
    hits = rates[..., : composition.shape[-2]].diagonal(dim1=-3, dim2=-1).mT
    return torch.where(composition > 0, hits * composition, 0.0).sum(-1)


def label_shift(rates: Values, composition0: Values, prior0: Values, prior1: Values) -> Tensor:
    """Accuracy gap that unlike base rates alone can make: TV(pi_0, pi_1) * (range over y of recall_0(y)). Derived.

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
    """Upper bound of ``|accuracy in world 1 - accuracy in world 0|`` of one model. Derived.

    ``sum_y pi_1(y) delta_y w_y`` plus :func:`label_shift`, without which it is false.

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
    """Upper bound of one model's gap in balanced accuracy between two worlds: the mean over y of delta_y w_y. Derived.

    Arguments and errors are those of :func:`accuracy_gap_bound`; base rates play no part.

    Returns:
        scalar in [0, 1], at most the equalized-odds gap times ``shift_weight``.
    """
    rates, (composition0, composition1), _ = require_distributions(rates, [composition0, composition1], [])
    return (label_gaps(rates) * total_variation(composition0, composition1)).mean(-1)


def require_distributions(
    rates: Values, compositions: Sequence[Values], priors: Sequence[Values]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return what is given as tensors.

    Raises:
        ValueError: the shapes do not fit, a distribution is none, or a cell with weight has NaN rates.
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
