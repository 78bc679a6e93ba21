"""The cross-entropy in blocks, against torch's of all rows in float32 at once."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fairpriv.functional.cross_entropy import BLOCK, cross_entropies, rows_at_once


@pytest.mark.parametrize("block", [1, 3 * 11, 2**19], ids=["row by row", "in blocks, the last smaller", "at once"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_losses_and_gradients_are_those_of_all_rows_in_float32(dtype, block, monkeypatch):
    monkeypatch.setitem(BLOCK, "cpu", block)
    draw = torch.Generator().manual_seed(0)
    logits, rows = (torch.randn(9, 11, generator=draw) * 5).to(dtype), torch.tensor([0, 1, 3, 8, 4, 5, 6])
    targets, weights = torch.randint(0, 11, (7,), generator=draw), torch.rand(7, generator=draw)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = cross_entropies(ours, rows, targets)
    expected = cross_entropy(plain[rows].float(), targets, reduction="none")
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, plain.grad)


def test_rows_that_mean_nothing_give_what_they_would_at_once(monkeypatch):
    monkeypatch.setitem(BLOCK, "cpu", 3)
    logits = torch.tensor([[0.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0], [-torch.inf, 0.0, 0.0]])
    losses = cross_entropies(logits, torch.arange(3), torch.tensor([0, 1, 0]))
    assert losses[:2].isnan().all()
    assert losses[2] == torch.inf


def test_a_block_holds_a_row_however_large_the_vocabulary():
    assert rows_at_once(torch.empty(1).expand(2, 2**20)) == 1
