"""A pool trained by two processes is the pool trained by one."""

import logging

import pytest
import torch
from torch import distributed

from fairpriv.classifiers.nets import pool as pools
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.classifiers.nets.pool_training import Dual
from fairpriv.store import Store

HOW = {"hidden": (8, 4), "epochs": 2, "batch_size": 16, "lr": 0.01, "seed": 3, "accelerator": "cpu"}
ROUNDING = 0.01 * HOW["lr"]  # a hundredth of a step of Adam, which enlarges rounding
HELD_OUT = [
    (torch.randn(60, 5, generator=torch.Generator().manual_seed(i)), torch.arange(60) % 2, torch.arange(60) // 2 % 2)
    for i in range(5)
]
ARMS = {
    "shuffled": HOW | {"weight_decay": 0.1},
    "stratified": HOW | {"penalty": 0.7, "steps_per_epoch": 3},
    "dual": HOW | {"dual": Dual(rate=4.0, epsilon=0.05), "validation": HELD_OUT, "epochs": 4},
    "early stopping": HOW | {"patience": 1, "validation": HELD_OUT, "epochs": 9, "lr": 0.03},
    "one after another": HOW | {"vectorized": False},
}


def datasets():
    """Five members, so that one rank has three and the other two with more steps; the last one diverges."""
    g = torch.Generator().manual_seed(0)
    members = []
    for n in (40, 90, 20, 130, 50):
        s = torch.randint(0, 2, (n,), generator=g)
        y = torch.randint(0, 2, (n,), generator=g)
        members.append((torch.randn(n, 5, generator=g) + y[:, None], y, s))
    members[4][0][3] = torch.nan
    return members


def train(rank: int, folder) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    trained = {name: fit_pool(datasets(), **how, store=Store(folder / f"cache{rank}")) for name, how in ARMS.items()}
    trained["fewer members than ranks"] = fit_pool(datasets()[:1], **HOW)
    # only the first rank has it, and tells the other, which would else train alone and wait for ever
    cached = folder / "cache0"
    trained["cache of one rank"] = fit_pool(
        datasets(), **ARMS["shuffled"], store=Store(cached if rank == 0 else folder / "new")
    )
    pools._PoolFit.train = None  # all ranks find it: none trains
    trained["read"] = fit_pool(datasets(), **ARMS["shuffled"], store=Store(folder / f"cache{rank}"))
    parts = {name: (pool.weights, pool.diverged, pool.told) for name, pool in trained.items()}
    torch.save(parts, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory, in_two_processes):
    folder = tmp_path_factory.mktemp("pool")
    in_two_processes(train, folder)
    return [{name: Pool(*parts) for name, parts in torch.load(folder / f"{rank}.pt").items()} for rank in range(2)]


def difference(a: Pool, b: Pool) -> float:
    assert len(a) == len(b)
    pairs = [(p, q) for x, y in zip(a.weights, b.weights, strict=True) for p, q in zip(x, y, strict=True)]
    return max(float((p - q).abs().max()) for p, q in pairs)


@pytest.mark.parametrize("name", ARMS)
def test_every_rank_has_the_pool_that_one_process_trains(by_rank, name):
    alone = fit_pool(datasets(), **ARMS[name])
    for trained in by_rank:
        assert difference(trained[name], alone) < ROUNDING
        assert trained[name].diverged == alone.diverged == [4]
        assert trained[name].told["epoch"] == alone.told["epoch"]


def test_a_rank_without_members_receives_those_of_the_others(by_rank):
    alone = fit_pool(datasets()[:1], **HOW)
    assert max(difference(trained["fewer members than ranks"], alone) for trained in by_rank) < ROUNDING


@pytest.mark.parametrize("name", ["cache of one rank", "read"])
def test_ranks_agree_whether_a_pool_is_cached(by_rank, name):
    for trained in by_rank:
        assert difference(trained[name], trained["shuffled"]) == 0
        assert trained[name].diverged == [4]
