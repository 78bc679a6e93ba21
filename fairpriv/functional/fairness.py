"""Equalized odds: prediction rates per (label, group) cell, their range over groups, and a differentiable form."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from fairpriv.functional.arrays import Values, as_tensor


def permuted_counts(counts: Tensor, *, draws: int = 500, seed: int = 0) -> Tensor:
    """Permute predictions among the rows of each label, to show what counts look like with no true gap.

    This is the permutation distribution, drawn as counts (hypergeometric, class by class) rather than row by row. The
    mean of a gap over the draws is its floor: an absolute gap is positive even where predictions do not depend on the
    group.

    Args:
        counts: rows per label, group and class, integers ``[Y, S, C]`` as from :func:`group_counts`; worlds may take
            the place of groups.
        draws: number of draws.
        seed: seed of the draws, which are the same on every device.

    Returns:
        int64 ``[draws, Y, S, C]`` on the CPU, each with the sums of ``counts`` over groups and over classes.
    """
    generator = np.random.default_rng(seed)
    table = counts.cpu().numpy()
    found = np.zeros((draws, *table.shape), dtype=np.int64)
    for label, cells in enumerate(table):
        left = np.broadcast_to(cells.sum(0), (draws, cells.shape[1])).copy()
        for group, rows in enumerate(cells.sum(1)):
            wanted = np.full(draws, rows)
            for c in range(cells.shape[1]):
                drawn = generator.hypergeometric(left[:, c], left[:, c + 1 :].sum(1), wanted)
                found[:, label, group, c] = drawn
                wanted -= drawn
            left -= found[:, label, group]
    return torch.from_numpy(found)


def permuted_groups(y: Tensor, groups: Tensor, units: Tensor, generator: torch.Generator) -> Tensor:
    """Deal the groups anew among the units of each label, whose rows stay together.

    Args:
        y, groups: labels and groups ``[N]``.
        units: the same number for equal rows, ``[N]``.
        generator: of the draw.
    """
    dealt, first = groups.clone(), first_of_unit(units)
    for label in y.unique():
        places = ((y == label) & (first == torch.arange(len(first)))).nonzero()[:, 0]
        dealt[places] = groups[places[torch.randperm(len(places), generator=generator)]]
    return dealt[first]


def first_of_unit(units: Tensor) -> Tensor:
    """Return the place of the first row of each row's unit, ``[N]``."""
    _, unit = units.unique(return_inverse=True)
    place = torch.arange(len(units))
    return torch.full_like(place, len(place)).scatter_reduce(0, unit, place, "amin")[unit]


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Compute the total variation distance of distributions over the last dimension, in [0, 1]; others broadcast."""
    return (p - q).abs().sum(-1) / 2


def group_counts(
    preds: Values,
    target: Values,
    groups: Values,
    *,
    labels: int | None = None,
    group_count: int | None = None,
    classes: int | None = None,
) -> Tensor:
    """Count the rows per label, group and predicted class.

    Args:
        preds: predicted classes, integers ``[N]``, codes 0 to C - 1.
        target: labels, integers ``[N]``, codes 0 to Y - 1.
        groups: sensitive groups, integers ``[N]``, codes 0 to S - 1.
        labels: Y; by default the largest code plus one.
        group_count: S; by default the largest code plus one.
        classes: C, at least Y; by default as many as labels and predictions need, at least 2.

    Returns:
        int64 ``[Y, S, C]``.

    Raises:
        ValueError: no rows, unequal shapes, a floating dtype, or a code outside its range.
    """
    preds, target, groups = _codes(preds=preds, target=target, groups=groups)
    _require_rows(target)
    labels = _size("target", target, labels)
    group_count = _size("groups", groups, group_count)
    if classes is None:
        classes = max(labels, 2, int(preds.max()) + 1)
    elif classes < labels:
        raise ValueError(f"classes={classes} is less than the number of labels, {labels}")
    _size("preds", preds, classes)
    return _tally(preds, target, groups, (labels, group_count, classes))


def group_rates(
    preds: Values,
    target: Values,
    groups: Values,
    *,
    labels: int | None = None,
    group_count: int | None = None,
    classes: int | None = None,
) -> Tensor:
    """Compute the rates r[y, s, c] = P(prediction c | label y, group s).

    Arguments and errors are those of :func:`group_counts`.

    Returns:
        float64 ``[Y, S, C]`` (float32 on MPS, which has no float64). Every cell sums to 1 over its classes; all entries
        of a cell without rows are NaN.
    """
    return shares(group_counts(preds, target, groups, labels=labels, group_count=group_count, classes=classes))


def label_gaps(rates: Tensor) -> Tensor:
    """Compute delta_y: per label, the range over groups of the prediction distribution, in total variation.

    With two classes this is the range of P(pred=1 | y, s).

    Args:
        rates: ``[..., Y, S, C]`` as from :func:`group_rates`; cells with a NaN are left out.

    Returns:
        ``[..., Y]`` in [0, 1]; 0 where a label has fewer than two groups.
    """
    present = ~rates.isnan().any(-1)
    return _spread(torch.where(present[..., None], rates, 0.0), present)


def equalized_odds_gap(preds: Values, target: Values, groups: Values, *, missing: str = "raise") -> Tensor:
    """Compute the largest violation of equalized odds (Hardt, Price and Srebro, 2016), over labels and pairs of groups.

    For binary predictions, the max over labels y of the range over groups g of P(pred=1 | y, g): fairlearn's
    ``equalized_odds_difference`` with ``agg="worst_case"``. With more classes (ours) the range is taken in total
    variation of the prediction distribution, which for two classes is the same number.

    Args:
        preds: predicted classes, integers ``[N]``; any codes, for labels and groups too.
        target: labels, integers ``[N]``.
        groups: sensitive groups, integers ``[N]``.
        missing: what to do about a (label, group) cell without rows: ``"raise"`` an error that names it, or ``"skip"``
            the cell with one warning.

    Returns:
        scalar in [0, 1] on the inputs' device, dtype as :func:`group_rates`; 0 for a single group.

    Raises:
        ValueError: no rows, unequal shapes, a floating dtype, an unknown ``missing``, or an empty cell
            with ``missing="raise"``.
    """
    return label_gaps(shares(observed_counts(preds, target, groups, missing))).amax()


def equalized_odds_gaps(preds: Tensor, target: Tensor, groups: Tensor, *, classes: int = 2) -> Tensor:
    """Compute :func:`equalized_odds_gap` of many classifiers on the same rows at once.

    Args:
        preds: predicted classes, codes 0 to C - 1, integer or, with two classes, bool ``[M, N]``.
        target, groups: codes ``[N]``. A (label, group) cell without rows is left out.
        classes: C.

    Returns:
        Gaps in [0, 1], float64 ``[M]``.
    """
    labels, y = target.unique(return_inverse=True)
    names, s = groups.unique(return_inverse=True)
    cells = torch.nn.functional.one_hot(y * len(names) + s, len(labels) * len(names)).double()
    rows = cells.sum(0)
    if classes > 2:
        counts = torch.stack([(preds == c).double() @ cells for c in range(classes)], -1)
        return label_gaps((counts / rows[:, None]).unflatten(1, (len(labels), len(names)))).amax(1)
    rates = (preds.double() @ cells / rows).unflatten(1, (len(labels), len(names)))  # an absent cell is 0 / 0
    absent = (rows == 0).unflatten(0, (len(labels), len(names)))
    highest = rates.masked_fill(absent, -torch.inf).amax(2)
    return (highest - rates.masked_fill(absent, torch.inf).amin(2)).amax(1)


def equalized_odds_penalty(probs: Values, target: Values, groups: Values) -> Tensor:
    """Compute a differentiable violation of equalized odds: over labels, sum the range over groups of mean scores.

    This is the penalty of fair fine-tuning (FFt) as this project builds it. It is biased upward in small batches: with
    no true gap, the range of the means of finite cells is still positive.

    Args:
        probs: P(pred=1) ``[N]``, or probabilities of all classes ``[N, C]``, whose range is the largest total variation
            between two groups' mean vectors (ours; for C = 2 equal to the first form).
        target: labels, integers ``[N]``, any codes.
        groups: sensitive groups, integers ``[N]``, any codes.

    Returns:
        scalar >= 0, in float32 or ``probs``' dtype if that is wider. An absent (label, group) cell contributes nothing,
        a label with a single group contributes 0, and without any rows the result is a 0 that still has a graph.

    Raises:
        ValueError: unequal lengths, ``probs`` that are integers or outside [0, 1], floating ``target`` or ``groups``.
    """
    target, groups = _codes(target=target, groups=groups)
    probs = as_tensor(probs, "probs")
    if not probs.is_floating_point():
        raise ValueError(f"probs holds {probs.dtype}, not probabilities")
    if probs.dim() not in (1, 2) or len(probs) != len(target) or (probs.dim() == 2 and probs.shape[1] < 2):
        wanted = "[N], or [N, C] with all C classes,"  # a single column would count half
        raise ValueError(f"probs {list(probs.shape)} must be {wanted} with target {list(target.shape)}")
    if probs.numel() and ((ends := probs.detach().aminmax()).min < -1e-3 or ends.max > 1 + 1e-3):  # room for rounding
        told = f"{float(ends.min):.3g} to {float(ends.max):.3g}"
        raise ValueError(f"probs holds {told}, not probabilities: softmax makes them of logits")
    probs = probs.to(torch.promote_types(probs.dtype, torch.float32))
    if probs.dim() == 1:
        probs = torch.stack((1 - probs, probs), dim=1)
    if not len(target):
        return probs.sum()
    labels, y = torch.unique(target, return_inverse=True)
    names, s = torch.unique(groups, return_inverse=True)
    cells = len(labels), len(names)
    cell = y * len(names) + s
    rows = torch.bincount(cell, minlength=cells[0] * cells[1])
    sums = probs.new_zeros(len(rows), probs.shape[1]).scatter_add(0, cell[:, None].expand_as(probs), probs)
    means = sums / rows.clamp(min=1)[:, None]
    return _spread(means.view(*cells, -1), rows.view(cells) > 0).sum()


def shift_weight(target0: Values, groups0: Values, target1: Values, groups1: Values) -> Tensor:
    """Compute W = max over labels y of TV(p_0(g | y), p_1(g | y)): how far the group compositions of two worlds differ.

    Args:
        target0: labels of world 0's rows, integers ``[N0]``, any codes.
        groups0: groups of world 0's rows, integers ``[N0]``, any codes.
        target1: labels of world 1's rows, ``[N1]``.
        groups1: groups of world 1's rows, ``[N1]``.

    Returns:
        scalar in [0, 1], dtype as :func:`group_rates`: 0 for the same composition, 1 for pure groups.

    Raises:
        ValueError: no rows, unequal shapes, a floating dtype, or a label that one world lacks, so that p(g | y) is
            undefined there.
    """
    worlds = [_codes(target0=target0, groups0=groups0), _codes(target1=target1, groups1=groups1)]
    for target, _ in worlds:
        _require_rows(target)
    labels = torch.unique(torch.cat([target for target, _ in worlds]))
    names = torch.unique(torch.cat([groups for _, groups in worlds]))
    rows = []
    for world, (target, groups) in enumerate(worlds):
        cell = torch.searchsorted(labels, target) * len(names) + torch.searchsorted(names, groups)
        counts = torch.bincount(cell, minlength=len(labels) * len(names)).view(len(labels), len(names))
        absent = labels[counts.sum(1) == 0].tolist()
        if absent:
            raise ValueError(
                f"label {absent[0]} has no rows in world {world}, so its make-up of groups there is undefined"
            )
        rows.append(shares(counts))
    return total_variation(*rows).amax()


def observed_counts(preds: Values, target: Values, groups: Values, missing: str) -> Tensor:
    """Count rows per label, group and class that occur, int64 ``[Y, S, C]``; see :func:`equalized_odds_gap`."""
    if missing not in ("raise", "skip"):
        raise ValueError(f"missing={missing!r} must be 'raise' or 'skip'")
    preds, target, groups = _codes(preds=preds, target=target, groups=groups)
    _require_rows(target)
    classes, c = torch.unique(preds, return_inverse=True)
    labels, y = torch.unique(target, return_inverse=True)
    names, s = torch.unique(groups, return_inverse=True)
    counts = _tally(c, y, s, (len(labels), len(names), len(classes)))
    return _without_absent(counts, labels.tolist(), names.tolist(), missing)


def occurring(counts: Tensor, missing: str) -> Tensor:
    """Drop labels and groups without rows from counts as of :func:`group_counts`, and handle empty cells.

    ``missing`` works as in :func:`equalized_odds_gap`.

    Raises:
        ValueError: no rows; or, with ``missing="raise"``, a cell without rows.
    """
    rows = counts.sum(-1)
    labels, names = rows.sum(1).nonzero().squeeze(1), rows.sum(0).nonzero().squeeze(1)
    _require_rows(labels)
    return _without_absent(counts[labels][:, names], labels.tolist(), names.tolist(), missing)


def _without_absent(counts: Tensor, labels: list[int], names: list[int], missing: str) -> Tensor:
    absent = (counts.sum(-1) == 0).nonzero().tolist()
    if absent:
        cells = ", ".join(f"(label {labels[y]}, group {names[s]})" for y, s in absent)
        if missing == "raise":
            raise ValueError(f"no rows in {cells}; missing='skip' leaves such cells out")
        warnings.warn(f"left out of the equalized-odds gap, having no rows: {cells}", stacklevel=4)
    return counts


def _spread(vectors: Tensor, present: Tensor) -> Tensor:
    """Return the largest total variation of two present groups: ``[..., S, C]``, ``[..., S]`` bool -> ``[...]``."""
    distance = total_variation(vectors[..., :, None, :], vectors[..., None, :, :])
    return torch.where(present[..., :, None] & present[..., None, :], distance, 0.0).amax((-2, -1))


def _tally(preds: Tensor, target: Tensor, groups: Tensor, shape: tuple[int, int, int]) -> Tensor:
    labels, group_count, classes = shape
    cell = (target * group_count + groups) * classes + preds
    return torch.bincount(cell, minlength=labels * group_count * classes).view(shape)


def shares(counts: Tensor) -> Tensor:
    """Divide counts by their sum along the last dimension; NaN where that is 0."""
    counts = counts.to(torch.float32 if counts.device.type == "mps" else torch.float64)
    return counts / counts.sum(-1, keepdim=True)


def _codes(**given: Values) -> list[Tensor]:
    columns = {name: as_tensor(column, name) for name, column in given.items()}
    for name, column in columns.items():
        if column.numel() and (column.is_floating_point() or column.is_complex()):  # an empty list is one of floats
            hint = ": take probs.argmax(-1)" if name == "preds" else ""
            raise ValueError(f"{name} holds {column.dtype}, not integer codes{hint}")
    if any(column.dim() != 1 for column in columns.values()) or len({len(c) for c in columns.values()}) > 1:
        shapes = ", ".join(f"{name} {list(column.shape)}" for name, column in columns.items())
        hint = ": argmax(-1) makes codes of a column a class" if any(c.dim() > 1 for c in columns.values()) else ""
        raise ValueError(f"{shapes} must be one-dimensional and equally long{hint}")
    return [column.long() for column in columns.values()]


def _require_rows(codes: Tensor) -> None:
    if not len(codes):
        raise ValueError("there are no rows, so there are no rates")


def _size(name: str, codes: Tensor, size: int | None) -> int:
    low, high = (int(end) for end in codes.aminmax())
    size = high + 1 if size is None else size
    if low < 0 or high >= size:
        raise ValueError(f"{name} holds codes {low} to {high}, outside 0 to {size - 1}")
    return size
