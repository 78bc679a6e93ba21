"""Stratified batches, their weights, and stratified samples, against counts made by hand."""

import pytest
import torch

from fairpriv.classifiers.data.batches import ShuffledBatches, StratifiedBatches, subsample
from fairpriv.classifiers.data.rows import Rows, cells


def rows(counts: dict[tuple[int, int], int], seed: int = 0) -> Rows:
    """Rows with ``counts[label, group]`` rows a cell; the only feature is the row's number."""
    y = torch.cat([torch.full((n,), label) for (label, _), n in counts.items()])
    s = torch.cat([torch.full((n,), group) for (_, group), n in counts.items()])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    number = torch.arange(len(y))
    return Rows(number[:, None].float(), y[order], s[order], number)


UNEVEN = {(0, 0): 500, (0, 1): 60, (1, 0): 37, (1, 1): 3}


def test_cells_share_a_batch_equally_as_far_as_their_rows_go():
    X, y, s, _ = StratifiedBatches(rows(UNEVEN), batch_size=200, steps=1, seed=0).draw()
    taken = {cell: int(((y == cell[0]) & (s == cell[1])).sum()) for cell in UNEVEN}
    assert taken == {(1, 1): 3, (1, 0): 37, (0, 1): 60, (0, 0): 100}
    assert len(X.unique()) == 200  # no row twice


def test_weighted_mean_of_a_batch_estimates_the_mean_over_the_rows():
    data = rows(UNEVEN)
    loss = torch.where(data.y == 1, 5.0, 1.0) + 3.0 * data.s  # constant within cells: exact in every batch
    batches = StratifiedBatches(data, batch_size=100, steps=5, seed=0)
    for X, _, _, weight in batches:
        weight = weight.double()  # then only the weights' own rounding is left, of 6e-8 of each
        assert float(weight.mean()) == pytest.approx(1.0, abs=1e-6)
        assert float((weight * loss[X[:, 0].long()]).mean()) == pytest.approx(float(loss.mean()), abs=1e-5)


def test_weighted_mean_is_unbiased_where_the_loss_varies_within_cells():
    data = rows(UNEVEN)
    loss = torch.rand(len(data.y), generator=torch.Generator().manual_seed(1))
    means = [float((w * loss[X[:, 0].long()]).mean()) for X, _, _, w in StratifiedBatches(data, 40, 4000, seed=0)]
    assert sum(means) / len(means) == pytest.approx(float(loss.mean()), abs=0.005)


def test_a_batch_as_large_as_the_data_is_the_data_with_weights_of_one():
    data = rows(UNEVEN)
    X, _, _, weight = StratifiedBatches(data, batch_size=10_000, steps=1, seed=0).draw()
    assert sorted(X[:, 0].tolist()) == list(range(600))
    assert torch.allclose(weight, torch.ones(600))


def test_every_row_of_a_cell_comes_before_any_comes_again():
    batches = StratifiedBatches(rows({(0, 0): 40, (1, 0): 40}), batch_size=20, steps=4, seed=0)
    seen = torch.cat([X[:, 0] for X, *_ in batches])
    assert sorted(seen.tolist()) == list(range(80))


def test_a_batch_smaller_than_the_number_of_cells_is_refused():
    with pytest.raises(ValueError, match=r"3 rows cannot hold 4 \(label, group\) cells"):
        StratifiedBatches(rows(UNEVEN), batch_size=3, steps=1, seed=0)


def test_shuffled_batches_hold_every_row_once_an_epoch_in_a_new_order():
    batches = ShuffledBatches(rows(UNEVEN), batch_size=64, seed=0)
    first, second = ([b[0][:, 0] for b in batches] for _ in range(2))
    assert len(first) == len(batches) == 10
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(600))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_sample_takes_its_share_of_every_cell(share):
    data = rows(UNEVEN)
    kept = subsample(data, share, seed=0)
    for cell, n in UNEVEN.items():
        assert int(((kept.y == cell[0]) & (kept.s == cell[1])).sum()) == round(share * n)
    assert len(kept.index.unique()) == len(kept.index)


def test_content_tells_rows_and_settings_apart():
    data = rows(UNEVEN)
    same = ShuffledBatches(rows(UNEVEN), 64, seed=0).content
    assert ShuffledBatches(data, 64, seed=0).content == same
    data.X[0] += 1e-3
    others = [
        ShuffledBatches(data, 64, seed=0),
        ShuffledBatches(rows(UNEVEN), 65, seed=0),
        ShuffledBatches(rows(UNEVEN), 64, seed=1),
        StratifiedBatches(rows(UNEVEN), 64, 1, seed=0),
    ]
    assert len({same, *(batches.content for batches in others)}) == 5


def test_cells_partition_the_rows():
    data = rows(UNEVEN)
    assert sorted(torch.cat(cells(data)).tolist()) == list(range(600))
    assert sorted(map(len, cells(data))) == sorted(UNEVEN.values())
