"""Re-weighing, with row weights that make label and group independent."""

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

    Otherwise it is the arm of fine-tuning that its config describes; with the shipped config it differs from
    ``rehearsal`` only in the weights.
    """

    kind: ClassVar[str] = "reweighting"

    name: str = "reweighting"
    penalty: float = 0.0  # only a number: weights together with a search for lambda would be two defences

    def weights(self, rows: Rows) -> Tensor:
        """Return weights ``[N]`` from the shares in ``rows``; if every label occurs in every group, their mean is 1."""
        counts = torch.zeros(int(rows.y.max()) + 1, int(rows.s.max()) + 1)
        counts.index_put_((rows.y, rows.s), torch.ones(len(rows.y)), accumulate=True)
        weights = counts.sum(1, keepdim=True) * counts.sum(0) / (len(rows.y) * counts)  # of cells that have rows
        return weights[rows.y, rows.s]
