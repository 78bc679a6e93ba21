"""Measures of predictions ``(probs, y)`` or ``(probs, y, groups)``: utility, calibration and group fairness.

``probs`` are P(y=1) ``[N]`` of two classes, or ``[N, C]``; ``y`` are labels ``[N]`` and ``groups`` codes ``[N]``. Each
function returns one number. The predicted class is the most probable one; of two classes, class 1 above one half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairpriv.functional.fairness import equalized_odds_gap

_LEAST = 1e-12  # lower probabilities are raised to this in log loss, like scikit-learn's rounding


def predicted(probs: Tensor) -> Tensor:
    """Return predicted classes ``[N]``, int64."""
    return probs.argmax(-1) if probs.dim() == 2 else (probs > 0.5).long()


def accuracy(probs: Tensor, y: Tensor) -> float:
    """Return the share of rows whose label is predicted correctly."""
    return float((predicted(probs) == y).double().mean())


def balanced_accuracy(probs: Tensor, y: Tensor) -> float:
    """Return the mean over labels of recall."""
    right = (predicted(probs) == y).double()
    return float(torch.stack([right[y == label].mean() for label in y.unique()]).mean())


def auroc(probs: Tensor, y: Tensor) -> float:
    """Return the chance that a row of a label has a greater probability of it than another row, ties counting half.

    With more than two classes it is the mean over labels, each against the rest. NaN where all rows have one label.
    """
    columns = probs if probs.dim() == 2 else torch.stack([1 - probs, probs], 1)
    labels = y.unique().tolist()
    if len(labels) < 2:
        return float("nan")
    if columns.shape[1] == 2:
        labels = [1]
    found = []
    for label in labels:
        _, inverse, counts = columns[:, label].unique(return_inverse=True, return_counts=True)
        ends = counts.cumsum(0)
        ranks = (ends - (counts - 1) / 2.0).double()[inverse]  # mean rank of equal values
        inside = y == label
        n1, n0 = int(inside.sum()), int((~inside).sum())
        found.append((float(ranks[inside].sum()) - n1 * (n1 + 1) / 2) / (n1 * n0))
    return sum(found) / len(found)


def log_loss(probs: Tensor, y: Tensor) -> float:
    """Return the mean negative log probability of the label, in nats."""
    return float(-_own(probs, y).clamp(min=_LEAST).log().mean())


def brier_score(probs: Tensor, y: Tensor) -> float:
    """Return the mean squared distance of the probabilities from the label, in [0, 1] (Brier, 1950).

    For two classes it is (p - y)^2, half of the sum over both; for more, half of the sum over all classes.
    """
    columns = (probs if probs.dim() == 2 else torch.stack([1 - probs, probs], 1)).double()
    hot = torch.nn.functional.one_hot(y.long(), columns.shape[1]).double()
    return float((columns - hot).square().sum(1).mean() / 2)


def expected_calibration_error(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Return the mean over rows of |accuracy - confidence| of their bin (Guo et al., ICML 2017).

    Confidence is the probability of the predicted class; bins have equal width. For a finite sample even a calibrated
    model has more than 0; the metric's floor says how much.
    """
    columns = (probs if probs.dim() == 2 else torch.stack([1 - probs, probs], 1)).double()
    confidence, label = columns.max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    off = torch.zeros(bins, dtype=torch.double, device=columns.device)
    off.index_add_(0, place, (label == y).double() - confidence)
    return float(off.abs().sum() / len(y))


def worst_group_accuracy(probs: Tensor, y: Tensor, groups: Tensor) -> float:
    """Return the lowest accuracy of any group."""
    right = (predicted(probs) == y).double()
    return min(float(right[groups == group].mean()) for group in groups.unique())


def demographic_parity_gap(probs: Tensor, y: Tensor, groups: Tensor) -> float:
    """Return the largest range over groups of the rate at which a class is predicted; of two classes, class 1."""
    preds = predicted(probs)
    return max(_range((preds == c).double(), groups) for c in _classes(probs))


def equal_opportunity_gap(probs: Tensor, y: Tensor, groups: Tensor) -> float:
    """Return the range over groups of the rate at which rows of label 1 are predicted 1 (Hardt et al., 2016).

    With more than two classes it is the largest over labels of the range of recall.
    """
    preds = predicted(probs)
    return max(_range((preds == c).double()[y == c], groups[y == c]) for c in _classes(probs))


def equalized_odds(probs: Tensor, y: Tensor, groups: Tensor) -> float:
    """Return :func:`~fairpriv.functional.equalized_odds_gap` of the predicted classes."""
    return float(equalized_odds_gap(predicted(probs), y, groups, missing="skip"))


def predictive_parity_gap(probs: Tensor, y: Tensor, groups: Tensor) -> float:
    """Return the range over groups of the share of rows predicted 1 whose label is 1 (Chouldechova, 2017).

    With more than two classes it is the largest over classes. 0 where nobody is predicted 1; NaN where only one group
    has rows of a prediction.
    """
    preds = predicted(probs)
    found = [_range((y == c).double()[preds == c], groups[preds == c]) for c in _classes(probs) if (preds == c).any()]
    return max(found, default=0.0)


def calibration_gap(probs: Tensor, y: Tensor, groups: Tensor, bins: int = 15) -> float:
    """Return the highest expected calibration error of any group: calibration within groups."""
    return max(
        expected_calibration_error(probs[groups == group], y[groups == group], bins) for group in groups.unique()
    )


def _own(probs: Tensor, y: Tensor) -> Tensor:
    probs = probs.double()
    return probs.gather(1, y.long()[:, None])[:, 0] if probs.dim() == 2 else torch.where(y.bool(), probs, 1 - probs)


def _classes(probs: Tensor) -> range:
    return range(probs.shape[1]) if probs.dim() == 2 else range(1, 2)


def _range(values: Tensor, groups: Tensor) -> float:
    means = [float(values[groups == group].mean()) for group in groups.unique()]
    return max(means) - min(means) if len(means) > 1 else float("nan")
