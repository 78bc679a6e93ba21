"""Early stopping, by one rule for single models and for pools, with and without a defence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairpriv.errors import InputError, how_many

LEAST_ROWS = 10  # of validation; with fewer, chance decides which epoch is kept
LEAST_GAIN = 1e-4  # a smaller fall of the loss does not count, since rounding on another processor could undo it


class BestEpoch:
    """Record of the best epoch of each of M models, and of the models that have stopped.

    A model stops once its value has not fallen by ``LEAST_GAIN`` for ``patience`` epochs. The last epoch in which it
    fell by that much is kept. The value is the training objective on validation rows or, under a constraint,
    `constrained`.

    Args:
        models: number of models, M.
        patience: number of epochs; None: no model stops, and the best epoch is kept all the same.
    """

    def __init__(self, models: int, patience: int | None) -> None:
        self.patience = math.inf if patience is None else patience
        self.value = torch.full((models,), math.inf, dtype=torch.float64)
        self.epoch = torch.zeros(models, dtype=torch.int64)

    def update(self, which: Tensor, epoch: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Record the values of some models after an epoch.

        Args:
            which: the models, ``[k]`` distinct numbers.
            epoch: the epoch that each of them has finished, from 1, ``[k]``.
            value: the smaller the better, ``[k]``; NaN is never better.

        Returns:
            Two masks ``[k]``: the models whose weights are the best so far, and those that stop here.
        """
        value = value.double().cpu()
        better = value < self.value[which] - LEAST_GAIN
        self.value[which[better]] = value[better]
        self.epoch[which[better]] = epoch[better]
        return better, epoch - self.epoch[which] >= self.patience


def constrained(loss: Tensor, gap: Tensor, epsilon: float) -> Tensor:
    """Return the value to minimise under ``gap <= epsilon``: the loss if that holds, else the gap, which ranks worse.

    Args:
        loss: cross-entropy, ``[k]``.
        gap: ``[k]``.
        epsilon: at least 0.
    """
    return torch.where(gap <= epsilon, loss.double(), 1e6 * (1 + gap.double()))


def refuse_few_rows(rows: int, patience: int | None) -> None:
    """Raise InputError if fewer validation rows than ``LEAST_ROWS`` are to stop the training."""
    if patience is not None and rows < LEAST_ROWS:
        raise InputError(
            f"{how_many(rows, 'validation row')}, too few to stop training by ({LEAST_ROWS} at least): raise "
            "game.validation_share or game.model_validation_rows, or train every epoch: training.patience=null, and "
            "defense.patience=null where the defence trains"
        )
