"""Time of membership inference on Adult, models trained in one pool, against the same models trained one by one."""

from __future__ import annotations

import argparse
import functools
import logging
import time

import torch

from fairpriv.classifiers.contract import Defended, PoolOwner
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.classifiers.dimensions.membership import Membership
from fairpriv.classifiers.dimensions.probe import Subject
from fairpriv.classifiers.nets.pool import fit_pool
from fairpriv.cli import CONF
from fairpriv.config.compose import build, compose, plain
from fairpriv.config.settings import GameSettings, TrainingSettings
from fairpriv.metrics import Measured
from fairpriv.undefended import Undefended


def seconds(data: GameDataModule, models: int, victims: int, *, vectorized: bool) -> float:
    """Wall-clock time of training the pool and attacking it."""
    fit = functools.partial(fit_pool, hidden=[64, 32], vectorized=vectorized)
    subject = Subject(
        Defended(None),
        Undefended(),
        data,
        0,
        lambda deals: PoolOwner(deals, len(deals), 0, fit, TrainingSettings()),
        lambda attacks: Measured(),
    )
    start = time.perf_counter()
    Membership("membership", models=models, victims=victims).measure(subject)
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Print the pool's time, and what as many models cost one by one, taken from a few of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=256)
    parser.add_argument("--few", type=int, default=16, help="models of the plain loop")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = plain(compose(CONF, [], ["dataset=adult"]))
    data = GameDataModule(build(config, "dataset"), GameSettings(), 0)
    data.setup()
    pooled = seconds(data, options.models, 16, vectorized=True)
    loop = seconds(data, options.few, 2, vectorized=False) * options.models / options.few
    print(
        f"{options.models} models on Adult, 1,000 rows audited, 16 victims: {pooled:.1f} s; "
        f"a plain loop, from {options.few} models: {loop:.1f} s; ratio {loop / pooled:.1f}"
    )


if __name__ == "__main__":
    main()
