"""The equalized-odds gap as a torchmetrics metric, for any training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fairpriv.functional import group_counts, label_gaps
from fairpriv.functional.arrays import Values
from fairpriv.functional.fairness import occurring, shares


class EqualizedOddsGap(Metric):
    """`equalized_odds_gap` of all rows seen, over all batches and processes.

    The state is counts per label, group and predicted class, which processes add up. So the gap is that of all rows
    together, and not a mean of gaps. Rows that a sampler repeats, as ``DistributedSampler`` does to fill up, count
    twice.

    Args:
        groups: number of groups S, whose codes are 0 to S - 1.
        classes: number of classes C, whose codes are 0 to C - 1.
        missing: what `compute` does if a (label, group) cell has no rows: ``raise`` a ValueError that names it, or
            ``skip`` it with a warning. A label or a group without any rows is left out either way.
        more: keyword arguments of torchmetrics' ``Metric``, such as ``dist_sync_on_step``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    counts: Tensor

    def __init__(self, groups: int, *, classes: int = 2, missing: str = "raise", **more: Any) -> None:
        super().__init__(**more)
        if groups < 1 or classes < 2 or missing not in ("raise", "skip"):
            raise ValueError(
                f"groups={groups}, classes={classes}, missing={missing!r}: at least 1 group and 2 classes, and missing "
                "is 'raise' or 'skip'"
            )
        self.groups, self.classes, self.missing = groups, classes, missing
        self.add_state("counts", torch.zeros(classes, groups, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Values, target: Values, groups: Values) -> None:
        """Count a batch: predicted classes, labels and groups, integers ``[N]``; tensors, arrays or lists.

        Raises:
            ValueError: no rows, unequal shapes, a floating dtype, or a code outside its range.
        """
        counts = group_counts(preds, target, groups, labels=self.classes, group_count=self.groups, classes=self.classes)
        self.counts += counts.to(self.counts.device)

    def compute(self) -> Tensor:
        """Return the gap, a float64 scalar in [0, 1] (float32 on MPS); 0 for a single group.

        Raises:
            ValueError: no rows have been counted; or a cell has none, with ``missing="raise"``.
        """
        return label_gaps(shares(occurring(self.counts, self.missing))).amax()
