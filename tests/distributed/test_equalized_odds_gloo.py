"""The gap over two processes is that of all their rows together, and no mean of two gaps."""

import numpy as np
import torch
from fairlearn.metrics import equalized_odds_difference
from torch import distributed

from fairpriv import EqualizedOddsGap


def rows():
    draw = np.random.default_rng(0)
    return [draw.integers(high, size=301) for high in (2, 2, 3)]  # which two processes cannot halve


def measure(rank: int, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    metric = EqualizedOddsGap(3)
    own = [column[:100] if rank == 0 else column[100:] for column in rows()]
    for part in np.array_split(np.arange(len(own[0])), 3):
        metric.update(*(column[part] for column in own))
    torch.save(metric.compute(), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_gap_of_all_rows(tmp_path, in_two_processes):
    in_two_processes(measure, tmp_path)
    preds, target, groups = rows()
    wanted = equalized_odds_difference(target, preds, sensitive_features=groups)
    for rank in range(2):
        assert abs(float(torch.load(tmp_path / f"{rank}.pt")) - wanted) < 1e-12
