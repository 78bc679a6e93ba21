"""Encoded rows, which models are trained on and measured with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows of one part and world, in random order."""

    X: Tensor  # float32 [N, F]; or int32 [N, T] tokens, -1 after the end; or uint8 [N, 3, S, S] pixels
    y: Tensor  # int64 [N], code of the label
    s: Tensor  # int64 [N], code of the sensitive group
    index: Tensor  # int64 [N], row numbers in the table

    def take(self, index: Tensor) -> Rows:
        """Return the rows at these places."""
        return Rows(self.X[index], self.y[index], self.s[index], self.index[index])

    def __add__(self, other: Rows) -> Rows:
        """Return these rows, followed by the other ones."""
        return Rows(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


def cells(rows: Rows) -> list[Tensor]:
    """Return the indices into ``rows`` of every (label, group) cell that has rows."""
    code = rows.y * (int(rows.s.max()) + 1) + rows.s
    return [torch.nonzero(code == c).flatten() for c in code.unique()]


def content(rows: Rows, *settings: object) -> str:
    """Hash the rows' values and whatever else determines the batches drawn from them."""
    digest = hashlib.sha256(repr(settings).encode())
    for values in (rows.X, rows.y, rows.s):
        digest.update(repr((values.dtype, tuple(values.shape))).encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
