"""Early stopping: one rule for single models and for pools, for every defence and for none."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairpriv.errors import InputError

LEAST_ROWS = 10  # of validation: with fewer, the epoch that is kept is an accident
LEAST_GAIN = 1e-4  # a smaller fall of the loss is no improvement: rounding on another processor could undo it


class BestEpoch:
    """Which epoch of each of M models is kept, and which of them have stopped.

    A model stops once its value has not fallen by ``LEAST_GAIN`` for ``patience`` epochs; the last epoch at which it
    fell so is kept. The value is the training objective on validation rows or, under a constraint, `constrained`.

    Args:
        models: M.
        patience: epochs; None: no model stops, and the best epoch is kept all the same.
    """

    def __init__(self, models: int, patience: int | None) -> None:
        self.patience = math.inf if patience is None else patience
        self.value = torch.full((models,), math.inf, dtype=torch.float64)
        self.epoch = torch.zeros(models, dtype=torch.int64)

    def update(self, which: Tensor, epoch: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the values of some models.

        Args:
            which: the models, ``[k]`` distinct numbers.
            epoch: the epoch each of them has ended, from 1, ``[k]``.
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
    """The value to be made small under ``gap <= epsilon``: the loss where that holds, else the gap, which counts more.

    Args:
        loss: cross-entropy, ``[k]``.
        gap: ``[k]``.
        epsilon: at least 0.
    """
    return torch.where(gap <= epsilon, loss.double(), 1e6 * (1 + gap.double()))


def refuse_few_rows(rows: int, patience: int | None) -> None:
    """Raise InputError where training is to be stopped by fewer validation rows than ``LEAST_ROWS``."""
    if patience is not None and rows < LEAST_ROWS:
        raise InputError(
            f"{rows} validation rows are too few to stop training by ({LEAST_ROWS} at least): raise "
            "game.validation_share or game.model_validation_rows, or train every epoch with training.patience=null and "
            "defense.patience=null"
        )
