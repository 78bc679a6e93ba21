"""Measures of one model on the two worlds of the game: accuracy, fairness, the accuracy gap and its bound."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairpriv import functional
from fairpriv.functional.fairness import shares
from fairpriv.metrics import SHARE, YES_OR_NO, Measured, Metric, share_metric

Ends = tuple[float, float]  # of an interval


@dataclass(frozen=True)
class Sample:
    """One world's share of a test split: ``[N]`` int64 each, codes that index the label and group names.

    Rows with the same number in ``units`` are equal and were dealt together; None: every row by itself.
    """

    preds: Tensor
    target: Tensor
    groups: Tensor
    units: Tensor | None = None


_FLOORED = (
    "Its floor is what it would be on average if predictions knew nothing of the group, given the label: an absolute "
    "gap of a finite sample is hardly ever 0."
)
_accuracy = functools.partial(Metric, unit=SHARE, better="greater", low=0.0, high=1.0)
_gap = functools.partial(Metric, unit=SHARE, better="less", low=0.0, high=1.0, magnitude=True)
_answer = functools.partial(Metric, unit=YES_OR_NO, low=0.0, high=1.0)

ACCURACY = _accuracy(
    "eval/accuracy",
    "accuracy",
    "Share of test rows, both worlds together, that the model classifies correctly.",
    column=10,
)
BALANCED_ACCURACY = _accuracy(
    "eval/balanced_accuracy",
    "balanced accuracy",
    "Mean over labels of the share classified correctly. A constant model has one half (two labels), however common "
    "one label is.",
    column=11,
    spared=True,
)
WORLD_ACCURACY = _accuracy(
    "eval/accuracy_world{world}", "accuracy in world {world}", "Accuracy on the gap half of world {world}'s test rows."
)
MAJORITY_SHARE = share_metric(
    "eval/majority_share_world{world}",
    "majority share in world {world}",
    "Share of the predictions on world {world}'s test rows that are of the most frequent class.",
)
EQUALIZED_ODDS_GAP = _gap(
    "fairness/equalized_odds_gap",
    "equalized-odds gap",
    "Largest range over groups, at the worst label, of the rate of positive predictions among rows of that label. A "
    f"constant model has 0. {_FLOORED}",
    column=40,
)
LABEL_GAP = _gap(
    "fairness/delta/{label}", "gap at {label}", "Range over groups of the rate of predictions at label {label}."
)
ACCURACY_GAP = _gap(
    "privacy/accuracy_gap",
    "accuracy gap",
    "Difference of one model's accuracy between the two worlds' test rows (our reading a). It mixes the model with "
    "base rates: where labels are not equally common in both worlds, a constant model, perfect by equalized odds, has "
    f"a large accuracy gap. {_FLOORED}",
    column=50,
    against=ACCURACY.name,
    instead="privacy/balanced_accuracy_gap",
)
BALANCED_ACCURACY_GAP = _gap(
    "privacy/balanced_accuracy_gap",
    "balanced gap",
    f"The same difference for balanced accuracy (our reading b), which base rates do not move. {_FLOORED}",
    column=51,
    against=BALANCED_ACCURACY.name,
)
SHIFT_WEIGHT = share_metric(
    "privacy/shift_weight",
    "shift weight",
    "W: how far the worlds' groups differ, the largest total variation over labels.",
)
LABEL_SHIFT = share_metric(
    "privacy/label_shift", "label shift", "What unequal base rates alone add to the accuracy gap."
)
BOUND = Metric(
    "privacy/bound",
    "bound",
    "Upper bound on the accuracy gap (derived): from group rates, the worlds' compositions and their label shift. It "
    "bounds the two gaps of one fixed model between two test worlds; it bounds no adversary that guesses which world "
    "the model was trained on. With pure groups (shift weight W = 1) it is close to an identity and cannot be tested: "
    "sweep game.alpha.",
    SHARE,
    "less",
    low=0.0,
    column=52,
)
BALANCED_BOUND = Metric(
    "privacy/balanced_bound", "balanced bound", "The same bound on the balanced gap.", SHARE, "less", low=0.0
)
BELOW_TAU = _answer(
    "privacy/below_tau",
    "below tau",
    "Seeds whose accuracy gap lies below game.tau. That alone hides nothing: tau may lie inside the interval, and an "
    "attack may use more than this gap.",
    column=70,
)
TAU_IN_INTERVAL = _answer(
    "privacy/tau_in_interval",
    "tau within",
    "Seeds whose interval of the accuracy gap contains game.tau: there, below or above is not settled.",
    column=71,
)
BOUND_HOLDS = _answer(
    "privacy/bound_holds",
    "bound holds",
    "Seeds whose accuracy gap, on one half of the test rows, is at most the bound, from the other half. Both carry "
    "sampling error, so a miss by little refutes nothing.",
    column=72,
)
BALANCED_BOUND_HOLDS = _answer(
    "privacy/balanced_bound_holds", "balanced bound holds", "Whether the balanced gap is at most its bound."
)
BOUND_REFUTED = _answer(
    "privacy/bound_refuted",
    "bound refuted",
    "Whether the accuracy gap exceeds the bound by more than the sampling error of both explains.",
)
TRAIN_ACCURACY = share_metric(
    "eval/train_accuracy", "training accuracy", "Accuracy on the rows that the model was trained or tuned on last."
)


def measure(
    rates: tuple[Sample, Sample],
    gap: tuple[Sample, Sample],
    *,
    label_names: Sequence[str],
    group_names: Sequence[str],
    tau: float,
) -> Measured:
    """Measure one model.

    Rates and the bound are estimated on one split and the gaps on another, because on the same rows "the bound holds"
    would be an identity for pure groups. Rates pool both worlds, which have P(x | y, s) in common; a group may be
    absent from a world, and its composition there is 0. Intervals and floors count rows that were dealt together by
    what they are worth (``effective_rows``). The bound limits this fixed model's gap between two test
    worlds; it bounds no adversary. The bound and its interval take compositions and priors as known.

    Args:
        rates: rows of world 0 and of world 1 on the split that gives the group rates and the bound.
        gap: likewise on the split that gives the gaps.
        label_names: names of the labels, in the order of their codes; predictions have the same codes.
        group_names: names of the groups, in the order of their codes.
        tau: an accuracy gap below it counts as hidden.

    Returns:
        Metrics, all finite; yes-or-no ones (``privacy/bound_holds``, ``bound_refuted``, ``below_tau``,
        ``tau_in_interval``) are 1.0 or 0.0. A gap's ``<metric>_floor`` is its mean with predictions dealt at random
        among the rows of a label, which is its value if predictions do not depend on the group. The floor of the plain
        accuracy gap includes the effect of base rates.

    Raises:
        ValueError: a label without rows in a world, a (label, group) cell without rows in the rates split, a code
            without a name, or shapes and dtypes as in ``group_counts``.
    """
    counts = {
        split: [_count(sample, label_names, group_names, split, world) for world, sample in enumerate(samples)]
        for split, samples in (("rates", rates), ("gap", gap))
    }
    worlds = [counts["rates"][world] + counts["gap"][world] for world in (0, 1)]
    labels = len(label_names)
    measured, balanced, balanced_ends = _overall(worlds, _Worth.of([*rates, *gap], labels))
    gaps, difference, balanced_difference, gap_ends = _gaps(counts["gap"], [_Worth.of([one], labels) for one in gap])
    measured |= gaps

    pooled = counts["rates"][0] + counts["rates"][1]
    absent = (pooled.sum(-1) == 0).nonzero().tolist()
    if absent:
        label, group = label_names[absent[0][0]], group_names[absent[0][1]]
        raise ValueError(f"no rows with label {label!r} and group {group!r} in the rates split, so no rates of them")
    cells = _Worth.of(rates, labels, len(group_names)).cells
    measured |= _equalized_odds(pooled, cells, label_names)
    measured |= SHIFT_WEIGHT.of(
        functional.shift_weight(rates[0].target, rates[0].groups, rates[1].target, rates[1].groups)
    )
    bounds, bound, balanced_bound, bound_ends = _bounds(pooled, cells, counts["rates"])
    measured |= bounds

    rounding = 1e-9
    measured |= BOUND_HOLDS.of(abs(difference) <= bound + rounding)
    measured |= BALANCED_BOUND_HOLDS.of(abs(balanced_difference) <= balanced_bound + rounding)
    # 1 only where sampling error of rates and gap does not explain it
    measured |= BOUND_REFUTED.of(gap_ends[0] > bound_ends[1] + rounding)
    measured |= BELOW_TAU.of(abs(difference) < tau) | TAU_IN_INTERVAL.of(gap_ends[0] <= tau <= gap_ends[1])
    return measured | _triviality(worlds, label_names, balanced, balanced_ends)


@dataclass(frozen=True)
class _Worth:
    """What a row of some samples is worth as an independent one: 1 where no two were dealt together."""

    whole: float
    labels: list[float]  # [Y]
    cells: Tensor  # [Y, S, 1]

    @classmethod
    def of(cls, samples: Sequence[Sample], labels: int, groups: int = 1) -> _Worth:
        preds, target, group = (
            torch.cat([getattr(one, of) for one in samples]).cpu().long() for of in ("preds", "target", "groups")
        )
        units = [one.units.cpu() for one in samples if one.units is not None]
        unit = torch.cat(units) if len(units) == len(samples) else torch.arange(len(target))

        def per_row(values: Tensor, keys: Tensor, count: int) -> Tensor:
            rows = torch.bincount(keys, minlength=count)
            return functional.effective_rows(values, unit, keys, count) / rows.clamp(min=1)

        hits, answers = preds == target, torch.nn.functional.one_hot(preds, labels)
        cell = target * groups + group if groups > 1 else target
        return cls(
            float(per_row(hits, torch.zeros_like(target), 1)),
            per_row(hits, target, labels).tolist(),
            per_row(answers, cell, labels * groups).view(labels, groups, 1),
        )


def _overall(worlds: Sequence[Tensor], worth: _Worth) -> tuple[Measured, float, Ends]:
    """Measure plain and balanced accuracy of both worlds together; return the latter with its interval, too."""
    hits, rows = _recalled(worlds[0] + worlds[1])
    balanced, ends = _mean_rate(hits, rows), functional.mean_rate_interval(*_scaled(hits, rows, worth.labels))
    return _accuracy_of(ACCURACY, hits, rows, worth) | BALANCED_ACCURACY.of(balanced, ends), balanced, ends


def _gaps(counts: Sequence[Tensor], worths: Sequence[_Worth]) -> tuple[Measured, float, float, Ends]:
    """Measure each world's accuracy and the gaps between the worlds.

    Also returned are the signed differences of plain and of balanced accuracy, and the interval of the plain gap.
    """
    (hits0, rows0), (hits1, rows1) = (_recalled(count) for count in counts)
    measured = _accuracy_of(WORLD_ACCURACY.named(world="0"), hits0, rows0, worths[0])
    measured |= _accuracy_of(WORLD_ACCURACY.named(world="1"), hits1, rows1, worths[1])
    predicted = [
        count.sum(1) * torch.tensor(worth.labels)[:, None] for count, worth in zip(counts, worths, strict=True)
    ]
    dealt = functional.permuted_counts(_whole(torch.stack(predicted, 1)))  # among the worlds
    recall = dealt.diagonal(dim1=1, dim2=3) / dealt.sum(-1).transpose(1, 2).double()  # [draws, worlds, Y]
    rows = torch.tensor([rows0, rows1]).double()
    prior = rows / rows.sum(1, keepdim=True)  # not that of the effective rows
    difference = sum(hits1) / sum(rows1) - sum(hits0) / sum(rows0)
    sums = [
        _scaled([sum(hits)], [sum(n)], [w.whole])
        for (hits, n), w in zip(((hits0, rows0), (hits1, rows1)), worths, strict=True)
    ]
    ends = functional.mean_rate_gap_interval(*sums[0], *sums[1])
    measured |= _gap_of(ACCURACY_GAP, difference, ends, (recall * prior).sum(-1))
    balanced = _mean_rate(hits1, rows1) - _mean_rate(hits0, rows0)
    balanced_ends = functional.mean_rate_gap_interval(
        *_scaled(hits0, rows0, worths[0].labels), *_scaled(hits1, rows1, worths[1].labels)
    )
    measured |= _gap_of(BALANCED_ACCURACY_GAP, balanced, balanced_ends, recall.mean(-1))
    return measured, difference, balanced, ends


def _scaled(hits: Sequence[float], rows: Sequence[float], worth: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the hits and rows that are worth as much, were all rows independent."""
    return [hit * w for hit, w in zip(hits, worth, strict=True)], [n * w for n, w in zip(rows, worth, strict=True)]


def _whole(counts: Tensor) -> Tensor:
    """Round effective counts up, so that no class that was seen is lost."""
    return (counts.double() - 1e-9).ceil().long()


def _bounds(pooled: Tensor, worth: Tensor, counts: Sequence[Tensor]) -> tuple[Measured, float, float, Ends]:
    """Measure label shift and the bounds on both gaps; return the bounds, and the interval of the plain one, too."""
    rates = shares(pooled)
    (composition0, prior0), (composition1, prior1) = (_make_up(count) for count in counts)
    measured = LABEL_SHIFT.of(functional.label_shift(rates, composition0, prior0, prior1))
    bound = float(functional.accuracy_gap_bound(rates, composition0, composition1, prior0, prior1))
    ends = functional.accuracy_gap_bound_interval(pooled * worth, composition0, composition1, prior0, prior1)
    balanced = float(functional.balanced_accuracy_gap_bound(rates, composition0, composition1))
    balanced_ends = functional.balanced_accuracy_gap_bound_interval(pooled * worth, composition0, composition1)
    return measured | BOUND.of(bound, ends) | BALANCED_BOUND.of(balanced, balanced_ends), bound, balanced, ends


def _triviality(worlds: Sequence[Tensor], label_names: Sequence[str], balanced: float, ends: Ends) -> Measured:
    """Measure how often each world's commonest prediction is made; say where that, or chance, is all there is."""
    measured, degenerate = Measured(), []
    for world, count in enumerate(worlds):
        predicted = count.sum((0, 1)).tolist()
        top = max(predicted)
        measured |= MAJORITY_SHARE.named(world=str(world)).of(top / sum(predicted))
        if 100 * (sum(predicted) - top) < sum(predicted):
            name = label_names[predicted.index(top)]
            degenerate.append(f"world {world}: {top / sum(predicted):.2%} of the predictions are {name!r}, above 99 %")
    chance, (lo, hi) = 1 / len(label_names), ends
    if lo <= chance <= hi:
        degenerate.append(
            f"balanced accuracy {balanced:.3f} [{lo:.3f}, {hi:.3f}] cannot be told from chance, {chance:.3f}"
        )
    return measured | Measured(degenerate=degenerate)


def _accuracy_of(metric: Metric, hits: Sequence[int], rows: Sequence[int], worth: _Worth) -> Measured:
    n = sum(rows)
    return metric.of(sum(hits) / n, functional.wilson_interval(sum(hits) * worth.whole, n * worth.whole))


def _gap_of(metric: Metric, difference: float, interval: tuple[float, float], dealt: Tensor) -> Measured:
    """Measure an absolute difference between the worlds; ``dealt`` holds both rates in random draws, ``[draws, 2]``."""
    floor = float((dealt[:, 1] - dealt[:, 0]).abs().mean())
    return metric.of(abs(difference), interval, signed=[[difference]], floor=floor)


def _equalized_odds(pooled: Tensor, worth: Tensor, label_names: Sequence[str]) -> Measured:
    """Measure the range over groups of each label's rates, and the largest of these ranges."""
    cell_rates = shares(pooled)
    deltas = functional.label_gaps(cell_rates)
    lo, hi = functional.delta_intervals(pooled * worth)
    groups = cell_rates.shape[1]
    first, second = torch.triu_indices(groups, groups, 1)
    pairs = cell_rates[:, first] - cell_rates[:, second]
    rows_of = (pairs[..., 1:] if len(label_names) == 2 else pairs).tolist()  # of two classes one is enough
    floors = functional.label_gaps(shares(functional.permuted_counts(_whole(pooled * worth))))
    measured = EQUALIZED_ODDS_GAP.of(
        deltas.amax(),
        (lo.amax(), hi.amax()),
        signed=[row for rows in rows_of for row in rows],
        floor=floors.amax(1).mean(),
    )
    for label, name in enumerate(label_names):
        measured |= LABEL_GAP.named(label=name).of(
            deltas[label], (lo[label], hi[label]), signed=rows_of[label], floor=floors[:, label].mean()
        )
    return measured


def _count(sample: Sample, label_names: Sequence[str], group_names: Sequence[str], split: str, world: int) -> Tensor:
    """Count the rows ``[Y, S, C]`` of a world's share of a split."""
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
    """Count correct predictions and rows per label."""
    return count.diagonal(dim1=0, dim2=2).sum(0).tolist(), count.sum((1, 2)).tolist()


def _mean_rate(hits: Sequence[int], rows: Sequence[int]) -> float:
    return sum(hit / row for hit, row in zip(hits, rows, strict=True)) / len(rows)


def _make_up(count: Tensor) -> tuple[Tensor, Tensor]:
    """Return p(s | y) ``[Y, S]`` and pi(y) ``[Y]`` of a world."""
    rows = count.sum(-1).double()
    return rows / rows.sum(1, keepdim=True), rows.sum(1) / rows.sum()
