"""Re-weighting: rows weigh so much that label and group are independent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.defenses.fair_finetune import FairFineTuning


@dataclass
class Reweighting(FairFineTuning):
    """Re-weighing of Kamiran and Calders (2012): a row of label y and group s weighs ``P(y) P(s) / P(y, s)``.

    Otherwise the arm of fine-tuning that its config makes it; with the config that is shipped it differs from
    ``rehearsal`` in the weights alone.
    """

    kind: ClassVar[str] = "reweighting"

    name: str = "reweighting"
    penalty: float = 0.0  # a number alone: weights and a lambda that is searched for would be two defences

    def weights(self, rows: Rows) -> Tensor:
        """Weights ``[N]``, by the make-up of ``rows``; where every label meets every group their mean is 1."""
        counts = torch.zeros(int(rows.y.max()) + 1, int(rows.s.max()) + 1)
        counts.index_put_((rows.y, rows.s), torch.ones(len(rows.y)), accumulate=True)
        weights = counts.sum(1, keepdim=True) * counts.sum(0) / (len(rows.y) * counts.clamp(min=1))
        return weights[rows.y, rows.s]
