"""Time of membership inference on Adult, models trained in one pool, against a plain loop over the same models."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
from bench import now, quiet, report, tell_machine
from bench_pool import plain as plain_loop

from fairpriv.classifiers.contract import Defended, PoolOwner
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.classifiers.dimensions.membership import Membership
from fairpriv.classifiers.dimensions.probe import Subject
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.cli import CONF
from fairpriv.config.compose import build, compose, plain
from fairpriv.config.settings import GameSettings, TrainingSettings
from fairpriv.metrics import Measured
from fairpriv.undefended import Undefended


def seconds(data: GameDataModule, models: int, victims: int, fit: Callable[..., Pool]) -> float:
    """Time of training the models by ``fit`` and attacking them: processor time on one thread."""
    subject = Subject(
        Defended(None),
        Undefended(),
        data,
        0,
        lambda deals: PoolOwner(deals, len(deals), 0, fit, TrainingSettings()),
        lambda attacks: Measured(),
    )
    start = now()
    Membership("membership", models=models, victims=victims).measure(subject)
    return now() - start


def main(arguments: list[str] | None = None) -> None:
    """Print the pool's time, and what as many models cost one by one, taken from a few of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=256)
    parser.add_argument("--few", type=int, default=16, help="models of the plain loop")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    quiet()
    tell_machine()
    config = plain(compose(CONF, [], ["dataset=adult"]))
    data = GameDataModule(build(config, "dataset"), GameSettings(), 0)
    data.setup()
    pooled = seconds(data, options.models, 16, functools.partial(fit_pool, hidden=[64, 32]))
    loop = seconds(data, options.few, 2, plain_loop) * options.models / options.few
    what = f"LiRA, {options.models} models, 16 victims, 1,000 rows audited"
    report(what, pooled, f"plain loop, from {options.few} of them", loop, "10")


if __name__ == "__main__":
    main()
