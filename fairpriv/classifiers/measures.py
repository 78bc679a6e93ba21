"""What is measured of one model on the two worlds of the game: accuracy, fairness, the accuracy gap and its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairpriv import functional
from fairpriv.functional.fairness import shares


@dataclass(frozen=True)
class Sample:
    """One world's share of a test split, ``[N]`` int64 each, with codes that index the label and group names."""

    preds: Tensor
    target: Tensor
    groups: Tensor


@dataclass(frozen=True)
class Measures:
    """What was measured of a model.

    Attributes:
        metrics: flat, by name.
        intervals: the 95 % intervals of those that have one.
        signed: of the gaps, the rows of signed differences that they are the largest magnitude of; as in
            :class:`~fairpriv.result.Result`.
        degenerate: the reasons why the outcome is trivial, if it is.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    signed: dict[str, list[list[float]]]
    degenerate: list[str]


def measure(
    rates: tuple[Sample, Sample],
    gap: tuple[Sample, Sample],
    *,
    label_names: Sequence[str],
    group_names: Sequence[str],
    tau: float,
) -> Measures:
    """Measure one model.

    Rates and the bound come from one split and the gaps from another: on the same rows, "the bound holds" would be an
    identity for pure groups. Rates pool both worlds, since P(x | y, s) is common to them; a group may be absent from a
    world, where its composition is 0. The bound is one of this fixed model's gap between two test worlds; it bounds no
    adversary. Its interval, and the bound itself, take compositions and priors as known.

    Args:
        rates: rows of world 0 and of world 1 on the split where the group rates and the bound are estimated.
        gap: likewise on the other split, where the gaps are.
        label_names: names of the labels, in the order of their codes; predictions have the same codes.
        group_names: names of the groups, in the order of their codes.
        tau: an accuracy gap below it counts as hidden.

    Returns:
        metrics, all finite; yes-or-no ones (``privacy/bound_holds``, ``bound_refuted``, ``below_tau``,
        ``tau_in_interval``) are 1.0 or 0.0. A gap's ``<metric>_floor`` is its mean with predictions dealt at random
        among the rows of a label: what it would be if predictions knew nothing of the group. The plain accuracy gap's
        floor holds what base rates make of it.

    Raises:
        ValueError: a label without rows in a world, a (label, group) cell without rows in the rates split, a code
            without a name, or shapes and dtypes as in ``group_counts``.
    """
    counts = {
        split: [_count(sample, label_names, group_names, split, world) for world, sample in enumerate(samples)]
        for split, samples in (("rates", rates), ("gap", gap))
    }
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    signed: dict[str, list[list[float]]] = {}

    worlds = [counts["rates"][world] + counts["gap"][world] for world in (0, 1)]
    hits, rows = _recalled(worlds[0] + worlds[1])
    metrics["eval/accuracy"] = sum(hits) / sum(rows)
    intervals["eval/accuracy"] = functional.wilson_interval(sum(hits), sum(rows))
    metrics["eval/balanced_accuracy"] = _mean_rate(hits, rows)
    intervals["eval/balanced_accuracy"] = functional.mean_rate_interval(hits, rows)

    (hits0, rows0), (hits1, rows1) = (_recalled(count) for count in counts["gap"])
    accuracy = sum(hits0) / sum(rows0), sum(hits1) / sum(rows1)
    metrics["eval/accuracy_world0"], metrics["eval/accuracy_world1"] = accuracy
    intervals["eval/accuracy_world0"] = functional.wilson_interval(sum(hits0), sum(rows0))
    intervals["eval/accuracy_world1"] = functional.wilson_interval(sum(hits1), sum(rows1))
    difference, balanced = accuracy[1] - accuracy[0], _mean_rate(hits1, rows1) - _mean_rate(hits0, rows0)
    signed["privacy/accuracy_gap"], signed["privacy/balanced_accuracy_gap"] = [[difference]], [[balanced]]
    metrics["privacy/accuracy_gap"], metrics["privacy/balanced_accuracy_gap"] = abs(difference), abs(balanced)
    intervals["privacy/accuracy_gap"] = functional.mean_rate_gap_interval(
        [sum(hits0)], [sum(rows0)], [sum(hits1)], [sum(rows1)]
    )
    intervals["privacy/balanced_accuracy_gap"] = functional.mean_rate_gap_interval(hits0, rows0, hits1, rows1)
    dealt = functional.permuted_counts(torch.stack([count.sum(1) for count in counts["gap"]], 1))  # among the worlds
    right, of = dealt.diagonal(dim1=1, dim2=3).double(), dealt.sum(-1).transpose(1, 2)  # [draws, worlds, Y]
    for name, rate in (("accuracy", right.sum(-1) / of.sum(-1)), ("balanced_accuracy", (right / of).mean(-1))):
        metrics[f"privacy/{name}_gap_floor"] = float((rate[:, 1] - rate[:, 0]).abs().mean())

    pooled = counts["rates"][0] + counts["rates"][1]
    absent = (pooled.sum(-1) == 0).nonzero().tolist()
    if absent:
        label, group = label_names[absent[0][0]], group_names[absent[0][1]]
        raise ValueError(f"no rows with label {label!r} and group {group!r} in the rates split, so no rates of them")
    cell_rates = shares(pooled)
    deltas = functional.label_gaps(cell_rates)
    delta_lo, delta_hi = functional.delta_intervals(pooled)
    metrics["fairness/equalized_odds_gap"] = float(deltas.amax())
    intervals["fairness/equalized_odds_gap"] = float(delta_lo.amax()), float(delta_hi.amax())
    first, second = torch.triu_indices(len(group_names), len(group_names), 1)
    pairs = cell_rates[:, first] - cell_rates[:, second]
    rows_of = (pairs[..., 1:] if len(label_names) == 2 else pairs).tolist()  # of two classes one says it all
    signed["fairness/equalized_odds_gap"] = [row for rows in rows_of for row in rows]
    floors = functional.label_gaps(shares(functional.permuted_counts(pooled)))
    metrics["fairness/equalized_odds_gap_floor"] = float(floors.amax(1).mean())
    for label, name in enumerate(label_names):
        metrics[f"fairness/delta/{name}"] = float(deltas[label])
        metrics[f"fairness/delta/{name}_floor"] = float(floors[:, label].mean())
        intervals[f"fairness/delta/{name}"] = float(delta_lo[label]), float(delta_hi[label])
        signed[f"fairness/delta/{name}"] = rows_of[label]

    (composition0, prior0), (composition1, prior1) = (_make_up(count) for count in counts["rates"])
    metrics["privacy/shift_weight"] = float(
        functional.shift_weight(rates[0].target, rates[0].groups, rates[1].target, rates[1].groups)
    )
    metrics["privacy/label_shift"] = float(functional.label_shift(cell_rates, composition0, prior0, prior1))
    bound = functional.accuracy_gap_bound(cell_rates, composition0, composition1, prior0, prior1)
    metrics["privacy/bound"] = float(bound)
    intervals["privacy/bound"] = functional.accuracy_gap_bound_interval(
        pooled, composition0, composition1, prior0, prior1
    )
    bound = functional.balanced_accuracy_gap_bound(cell_rates, composition0, composition1)
    metrics["privacy/balanced_bound"] = float(bound)
    intervals["privacy/balanced_bound"] = functional.balanced_accuracy_gap_bound_interval(
        pooled, composition0, composition1
    )

    rounding = 1e-9
    for kind in ("", "balanced_"):
        holds = metrics[f"privacy/{kind}accuracy_gap"] <= metrics[f"privacy/{kind}bound"] + rounding
        metrics[f"privacy/{kind}bound_holds"] = float(holds)
    gap_lo, gap_hi = intervals["privacy/accuracy_gap"]
    # 1 only where sampling error of rates and gap does not explain it
    metrics["privacy/bound_refuted"] = float(gap_lo > intervals["privacy/bound"][1] + rounding)
    metrics["privacy/below_tau"] = float(metrics["privacy/accuracy_gap"] < tau)
    metrics["privacy/tau_in_interval"] = float(gap_lo <= tau <= gap_hi)

    degenerate = []
    for world, count in enumerate(worlds):
        predicted = count.sum((0, 1)).tolist()
        top = max(predicted)
        metrics[f"eval/majority_share_world{world}"] = top / sum(predicted)
        if 100 * (sum(predicted) - top) < sum(predicted):
            name = label_names[predicted.index(top)]
            degenerate.append(f"world {world}: {top / sum(predicted):.2%} of the predictions are {name!r}, above 99 %")
    lo, hi = intervals["eval/balanced_accuracy"]
    chance = 1 / len(label_names)
    if lo <= chance <= hi:
        value = metrics["eval/balanced_accuracy"]
        degenerate.append(
            f"balanced accuracy {value:.3f} [{lo:.3f}, {hi:.3f}] cannot be told from chance, {chance:.3f}"
        )
    return Measures(metrics, intervals, signed, degenerate)


def _count(sample: Sample, label_names: Sequence[str], group_names: Sequence[str], split: str, world: int) -> Tensor:
    """Rows ``[Y, S, C]`` of a world's share of a split."""
    labels, groups = len(label_names), len(group_names)
    try:
        count = functional.group_counts(
            sample.preds, sample.target, sample.groups, labels=labels, group_count=groups, classes=labels
        )
    except ValueError as why:
        raise ValueError(f"world {world} in the {split} split: {why}") from why
    for name, rows in zip(label_names, count.sum((1, 2)).tolist(), strict=True):
        if not rows:
            raise ValueError(f"no rows with label {name!r} in world {world} in the {split} split, so no recall of it")
    return count.cpu()


def _recalled(count: Tensor) -> tuple[list[int], list[int]]:
    """Right predictions and rows per label."""
    return count.diagonal(dim1=0, dim2=2).sum(0).tolist(), count.sum((1, 2)).tolist()


def _mean_rate(hits: Sequence[int], rows: Sequence[int]) -> float:
    return sum(hit / row for hit, row in zip(hits, rows, strict=True)) / len(rows)


def _make_up(count: Tensor) -> tuple[Tensor, Tensor]:
    """p(s | y) ``[Y, S]`` and pi(y) ``[Y]`` of a world."""
    rows = count.sum(-1).double()
    return rows / rows.sum(1, keepdim=True), rows.sum(1) / rows.sum()
