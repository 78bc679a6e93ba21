"""Speed of training a pool, against a plain PyTorch loop over the same models and against its matrix products."""

from __future__ import annotations

import argparse
import copy
import itertools
import math
from collections.abc import Callable

import torch
from bench import now, quiet, report, report_growth, tell_machine
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.classifiers.nets.pool_training import BLOCK, member_seed
from fairpriv.classifiers.nets.stopping import LEAST_GAIN

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


def plain(
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    lr: float = LR,
    seed: int = 0,
    weight_decay: float = 0.0,
    validation: Data | None = None,
    patience: int | None = None,
) -> Pool:
    """The same models, one after another, as one would write it: no Lightning, no stacking."""
    nets = []
    for i, (X, y) in enumerate(data):
        torch.manual_seed(member_seed(seed, i))
        sizes = (X.shape[1], *HIDDEN, 2)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
        net = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
        generator = torch.Generator().manual_seed(member_seed(seed, i))
        best, kept, since = math.inf, None, 0
        for _ in range(epochs):
            for index in torch.randperm(len(y), generator=generator).split(batch_size):
                loss = cross_entropy(net(X[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if validation is not None and patience is not None:
                with torch.no_grad():
                    value = float(cross_entropy(net(validation[i][0]), validation[i][1]))
                since += 1
                if value < best - LEAST_GAIN:
                    best, kept, since = value, copy.deepcopy(net.state_dict()), 0
                if since == patience:
                    break
        if kept is not None:
            net.load_state_dict(kept)
        nets.append(net)
    return Pool.of(nets)


def products(data: Data, *, epochs: int, batch_size: int) -> None:
    """The matrix products of the training alone, forward and backward, in the pool's shapes: the limit."""
    sizes = list(itertools.pairwise((FEATURES, *HIDDEN, 2)))
    k = max(1, BLOCK["cpu"] // (batch_size * FEATURES))
    for first in range(0, len(data), k):
        members = min(k, len(data) - first)
        x = [torch.randn(members, batch_size, a) for a, _ in sizes]
        W = [torch.randn(members, a, b) for a, b in sizes]
        out = [torch.randn(members, batch_size, b) for _, b in sizes]
        for _ in range(epochs * -(-ROWS // batch_size)):
            for layer in range(len(sizes)):
                torch.bmm(x[layer], W[layer], out=out[layer])
            for layer in range(len(sizes)):
                torch.bmm(x[layer].transpose(1, 2), out[layer], out=W[layer])
                if layer:
                    torch.bmm(out[layer], W[layer].transpose(1, 2), out=x[layer])
            for tensor in (*x[1:], *W):
                tensor.fill_(0.1)  # so that no number grows; this takes no time beside the products


def pooled(data: Data, *, epochs: int, batch_size: int) -> Pool:
    """The same models at once."""
    return fit_pool(
        data, hidden=HIDDEN, epochs=epochs, batch_size=batch_size, lr=LR, seed=0, accelerator="cpu", progress=False
    )


def seconds(run: Callable[..., object], data: Data, epochs: int, batch_size: int) -> float:
    """Time of one run: processor time on one thread."""
    start = now()
    run(data, epochs=epochs, batch_size=batch_size)
    return now() - start


def main(arguments: list[str] | None = None) -> None:
    """Print the ratios, or the growth with M; times are the best of several runs, the sides taking turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=128)
    parser.add_argument("--growth", type=int, nargs="*", help="growth alone, with as many models")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    quiet()
    tell_machine()
    epochs, members = options.epochs, options.members
    if options.growth is not None:
        sizes, batch_size = options.growth or [4, 40, 400], options.batch_size[0]
        data = datasets(max(sizes))
        torch.set_num_threads(options.threads[0])
        report_growth(
            f"pool, {ROWS} rows a model, {epochs} epochs, batch {batch_size}",
            *("model", sizes),
            lambda M: min(seconds(pooled, data[:M], epochs, batch_size) for _ in range(options.repeat)),
        )
        return
    data = datasets(members)
    X = data[0][0]
    one = [run(data[:2], epochs=1, batch_size=options.batch_size[0]).predict_proba(X) for run in (plain, pooled)]
    print(
        f"{ROWS} rows x {FEATURES} features a member, hidden {HIDDEN}, {epochs} epochs; best of {options.repeat} runs"
    )
    print(f"the same models: after one epoch P(y=1) differs by at most {float((one[0] - one[1]).abs().max()):.0e}")
    for threads, batch_size in itertools.product(options.threads, options.batch_size):
        torch.set_num_threads(threads)
        best = [math.inf] * 3
        for _ in range(options.repeat):
            for side, run in enumerate((pooled, plain, products)):
                best[side] = min(best[side], seconds(run, data[:members], epochs, batch_size))
        what = f"pool of {members}, batch {batch_size}, {threads} threads"
        report(what, best[0], "plain loop", best[1], "5")
        report(what, best[0], "its matrix products alone", best[2], "0.77")


if __name__ == "__main__":
    main()
