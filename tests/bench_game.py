"""Time of the game of 128 shadows and 64 victims a world on Adult: arms with a fixed lambda, against no defence."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from typing import Any

import torch

from fairpriv.classifiers.attacks.play import play
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.classifiers.experiment import DistributionInference
from fairpriv.cli import CONF
from fairpriv.config.compose import build, compose, plain

ARMS = ("none", "fine_tune", "rehearsal", "fair_finetune", "reweighting", "dp_sgd")
GAME = ["dataset=adult", "defense.penalty=0.3", "attack=[loss_test,threshold_test,kl]"]


def config_of(arm: str, root: str) -> dict[str, Any]:
    """The resolved config of one arm, its lambda fixed where it has one."""
    overrides = [word for word in GAME if arm == "fair_finetune" or not word.startswith("defense.")]
    return plain(compose(CONF, [], [*overrides, f"defense={arm}", f"paths.root={root}"]))


def seconds(arm: str) -> float:
    """Wall-clock time of dealing and playing one game, nothing being cached."""
    with tempfile.TemporaryDirectory() as root:
        config = config_of(arm, root)
        cell = DistributionInference(config, build(config, "dataset"), build(config, "defense"))
        data = GameDataModule(cell.dataset, cell.settings.game, seed=0)
        data.setup()
        start = time.perf_counter()
        play(cell.splits(data), cell.attacks, pure=data.pure)
        return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Print a line an arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bare = seconds("none")
    for arm in options.arms:
        spent = bare if arm == "none" else seconds(arm)
        print(f"{arm:>16}: {spent:6.1f} s; none: {bare:.1f} s; ratio {spent / bare:.2f}", flush=True)


if __name__ == "__main__":
    main()
