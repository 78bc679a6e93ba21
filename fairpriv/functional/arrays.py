"""The arguments that the functions accept: tensors, and anything that numpy can turn into an array."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Values = Tensor | ArrayLike


def as_tensor(values: Values, name: str = "values") -> Tensor:
    """Return a tensor unchanged, or a new CPU tensor of an array, a column of a table or a list.

    Raises:
        ValueError: the values are not numbers; the message calls them ``name``.
    """
    if isinstance(values, Tensor):
        return values
    array = np.array(values)  # a copy, since torch warns of an array that cannot be written to
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} holds {array.dtype}, not numbers")
    return torch.from_numpy(array)
