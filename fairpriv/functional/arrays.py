"""What the functions take: tensors, and whatever numpy makes an array of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Values = Tensor | ArrayLike


def as_tensor(values: Values, name: str = "values") -> Tensor:
    """Return a tensor as it is, and an array, a column of a table or a list as a tensor of its own on the CPU.

    Raises:
        ValueError: it holds no numbers; ``name`` says what.
    """
    if isinstance(values, Tensor):
        return values
    array = np.array(values)  # a copy, since torch warns of an array that cannot be written to
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} holds {array.dtype}, not numbers")
    return torch.from_numpy(array)
