"""Speed of training a pool, as ratios against a plain PyTorch loop over the same models in the same run."""

from __future__ import annotations

import argparse
import itertools
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.classifiers.nets.pool_training import member_seed

ROWS, FEATURES, HIDDEN, LR = 2000, 100, (64, 32), 3e-3  # Adult's shape

Data = list[tuple[Tensor, Tensor]]


def datasets(members: int) -> Data:
    """Members that share a linear rule, with noise."""
    g = torch.Generator().manual_seed(0)
    rule = torch.randn(FEATURES, generator=g)
    data = []
    for _ in range(members):
        X = torch.randn(ROWS, FEATURES, generator=g)
        data.append((X, (X @ rule + 5 * torch.randn(ROWS, generator=g) > 0).long()))
    return data


def plain(data: Data, *, epochs: int, batch_size: int) -> Pool:
    """The same models, one after another, as one would write it: no Lightning, no stacking."""
    nets = []
    for i, (X, y) in enumerate(data):
        torch.manual_seed(member_seed(0, i))
        sizes = (FEATURES, *HIDDEN, 2)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
        net = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0)
        generator = torch.Generator().manual_seed(member_seed(0, i))
        for _ in range(epochs):
            for index in torch.randperm(len(y), generator=generator).split(batch_size):
                loss = cross_entropy(net(X[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        nets.append(net)
    return Pool.of(nets)


def pooled(data: Data, *, epochs: int, batch_size: int) -> Pool:
    """The same models at once."""
    return fit_pool(
        data, hidden=HIDDEN, epochs=epochs, batch_size=batch_size, lr=LR, seed=0, accelerator="cpu", progress=False
    )


def seconds(run: Callable[..., Pool], data: Data, epochs: int, batch_size: int) -> float:
    """Wall-clock time of one run."""
    start = time.perf_counter()
    run(data, epochs=epochs, batch_size=batch_size)
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Print the ratios and the growth with M; times are the best of several runs, the two sides taking turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=128)
    parser.add_argument("--growth", type=int, nargs="*", default=[32, 64, 128, 256])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)

    data = datasets(max([options.members, *options.growth]))
    epochs, members = options.epochs, options.members
    X = data[0][0]
    one = [run(data[:2], epochs=1, batch_size=options.batch_size[0]).predict_proba(X) for run in (plain, pooled)]
    print(
        f"{ROWS} rows x {FEATURES} features a member, hidden {HIDDEN}, {epochs} epochs; best of {options.repeat} runs"
    )
    print(f"the same models: after one epoch P(y=1) differs by at most {float((one[0] - one[1]).abs().max()):.0e}")
    print("threads  batch  members    loop s    pool s   loop / pool   pool ms a member")
    for threads, batch_size in itertools.product(options.threads, options.batch_size):
        torch.set_num_threads(threads)
        loops, pools = [], []
        for _ in range(options.repeat):
            loops.append(seconds(plain, data[:members], epochs, batch_size))
            pools.append(seconds(pooled, data[:members], epochs, batch_size))
        loop, pool = min(loops), min(pools)
        head = f"{threads:7} {batch_size:6}"
        print(f"{head} {members:8} {loop:9.2f} {pool:9.2f} {loop / pool:13.1f} {1000 * pool / members:18.1f}")
        for count in options.growth:
            if count != members:
                pool = min(seconds(pooled, data[:count], epochs, batch_size) for _ in range(options.repeat))
                print(f"{head} {count:8} {'':9} {pool:9.2f} {'':13} {1000 * pool / count:18.1f}")


if __name__ == "__main__":
    main()
