"""Cross-entropy of language models in float32, a few tokens at a time: a vocabulary has up to 256,000 entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

# Logits that are held in float32 at a time: on a CPU, what its caches hold; elsewhere enough for the kernels to pay,
# and so few that the two or three copies which a loss makes of them (64 MB each) need not be planned for.
BLOCK = {"cpu": 2**19}
ELSEWHERE = 2**24


def rows_at_once(logits: Tensor) -> int:
    """Return how many rows of ``logits`` ``[..., V]`` are worth holding in float32 at a time, at least 1."""
    return max(1, BLOCK.get(logits.device.type, ELSEWHERE) // logits.shape[-1])


def cross_entropies(logits: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy of some rows in float32, as torch's ``cross_entropy`` of ``logits[rows].float()`` does.

    Neither these logits nor their gradient are ever copied or in float32 as a whole: that would be most of the memory
    of tuning a small model, and on a CPU much of its time.

    Args:
        logits: ``[N, V]`` in any precision; the gradient is in the same.
        rows: int64 ``[K]``, which rows have a target, each once.
        targets: int64 ``[K]``, from 0 to V - 1.

    Returns:
        float32 ``[K]``, in nats.
    """
    losses: Tensor = _CrossEntropies.apply(logits, rows, targets)
    return losses


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, rows, targets)
        size = rows_at_once(logits)
        losses = [
            cross_entropy(logits[row].float(), target, reduction="none")
            for row, target in zip(rows.split(size), targets.split(size), strict=True)
        ]
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Write ``softmax(logits) - onehot(target)``, times the upstream gradient, to the rows that have a target."""
        logits, rows, targets = ctx.saved_tensors
        gradient, size = torch.zeros_like(logits), rows_at_once(logits)
        parts = (tensor.split(size) for tensor in (rows, targets[:, None], upstream[:, None]))
        for row, target, scale in zip(*parts, strict=True):
            slope = logits[row].float().softmax(1)
            slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
            gradient[row] = slope.mul_(scale).to(gradient.dtype)
        return gradient, None, None
