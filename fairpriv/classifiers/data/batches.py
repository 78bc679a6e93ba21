"""Batches of rows: shuffled epochs, stratified cells for fine-tuning, Poisson samples; and stratified subsamples.

Tables fit into memory, so a batch is one indexed slice of whole tensors, without collation or workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from fairpriv.classifiers.data.rows import Rows, cells, content

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # X [B, F], y [B], s [B], weight [B]: mean 1, unless rows have weights


class ShuffledBatches(IterableDataset[Batch]):
    """Batches with every row once per epoch, in orders drawn from ``seed``; the last batch may be smaller."""

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.content = content(rows, type(self).__name__, batch_size, seed)

    def __len__(self) -> int:
        return -(-len(self.rows.y) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for index in torch.randperm(len(self.rows.y), generator=self.generator).split(self.batch_size):
            yield self.rows.X[index], self.rows.y[index], self.rows.s[index], torch.ones(len(index))


class StratifiedBatches(IterableDataset[Batch]):
    """Batches with equally many rows of every (label, group) cell, weighted back to the distribution of ``rows``.

    A cell smaller than its share enters every batch whole, and the others share the room it leaves; so a batch as large
    as the data is the data. The weight of a row of cell c is ``(n_c / N) / (q_c / B)``, with n_c rows in the data and
    q_c in the batch. So the weighted mean of a loss is an unbiased estimate of its mean over ``rows``.

    Args:
        rows: the data.
        batch_size: rows in a batch; fewer if the data is smaller.
        steps: batches in an epoch.
        seed: of the orders in which the rows of a cell are used.
        weights: of the rows ``[N]``, at least 0; a batch's weights are multiplied by them. None: all 1.
    """

    def __init__(self, rows: Rows, batch_size: int, steps: int, seed: int, weights: Tensor | None = None) -> None:
        self.rows = rows
        self.steps = steps
        self.row_weights = weights
        settings = [batch_size, steps, seed] + ([weights.tolist()] if weights is not None else [])
        self.content = content(rows, type(self).__name__, *settings)
        self.generator = torch.Generator().manual_seed(seed)
        strata = sorted(cells(rows), key=len)  # smallest first, so that the room it leaves goes to the larger ones
        left = min(batch_size, len(rows.y))
        if left < len(strata):
            raise ValueError(f"a batch of {batch_size} rows cannot hold {len(strata)} (label, group) cells")
        self.quotas: list[int] = []
        for i, cell in enumerate(strata):
            self.quotas.append(min(len(cell), left // (len(strata) - i)))
            left -= self.quotas[-1]
        size = sum(self.quotas)
        shares = [len(cell) / len(rows.y) for cell in strata]
        self.weight = torch.cat([torch.full((q,), p * size / q) for p, q in zip(shares, self.quotas, strict=True)])
        self.orders = [self._shuffled(cell) for cell in strata]
        self.positions = [0] * len(strata)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield self.draw()

    def draw(self) -> Batch:
        """Draw the next batch; a cell's order is redrawn when fewer rows of it are left than a batch takes."""
        index = torch.cat([self._take(cell, quota) for cell, quota in enumerate(self.quotas)])
        weight = self.weight if self.row_weights is None else self.weight * self.row_weights[index]
        return self.rows.X[index], self.rows.y[index], self.rows.s[index], weight

    def _take(self, cell: int, count: int) -> Tensor:
        if self.positions[cell] + count > len(self.orders[cell]):
            self.orders[cell] = self._shuffled(self.orders[cell])
            self.positions[cell] = 0
        start = self.positions[cell]
        self.positions[cell] += count
        return self.orders[cell][start : start + count]

    def _shuffled(self, index: Tensor) -> Tensor:
        return index[torch.randperm(len(index), generator=self.generator)]


class PoissonBatches(IterableDataset[Batch]):
    """Poisson samples, the batches of DP-SGD: every row is in a batch with probability ``1 / steps``, independently.

    Batch sizes differ and may be 0; on average an epoch holds every row once.
    """

    def __init__(self, rows: Rows, steps: int, seed: int) -> None:
        self.rows = rows
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.content = content(rows, type(self).__name__, steps, seed)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            chosen = torch.rand(len(self.rows.y), generator=self.generator, dtype=torch.double) < 1 / self.steps
            index = chosen.nonzero().flatten()
            yield self.rows.X[index], self.rows.y[index], self.rows.s[index], torch.ones(len(index))


Batches = ShuffledBatches | StratifiedBatches | PoissonBatches


def subsample(rows: Rows, share: float, seed: int) -> Rows:
    """Draw a random ``share`` in [0, 1] of ``rows`` within each (label, group) cell, to the nearest whole number."""
    generator = torch.Generator().manual_seed(seed)
    kept = [cell[torch.randperm(len(cell), generator=generator)[: round(share * len(cell))]] for cell in cells(rows)]
    return rows.take(torch.cat(kept).sort().values)
