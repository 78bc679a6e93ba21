"""Time of the game of 128 shadows and 64 victims a world on Adult, all attacks: every arm, against no defence."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from bench import now, quiet, report, tell_machine

from fairpriv.classifiers.attacks.play import play
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.classifiers.experiment import DistributionInference
from fairpriv.cli import CONF
from fairpriv.config.compose import build, compose, plain

FIXED = "fair_finetune defense.penalty=0.3"
CHOSEN = ("fair_finetune", "fair_finetune defense.grid_epochs=2")  # lambda by validation rows
ARMS = ("none", "fine_tune", "rehearsal", FIXED, "reweighting", "dp_sgd", *CHOSEN)
GAME = ["dataset=adult", "experiment=distribution_inference", "game.shadows=128", "game.victims=64", "game.repeats=1"]


def config_of(arm: str, root: str) -> dict[str, Any]:
    """The resolved config of an arm, which is a defence and its settings."""
    return plain(compose(CONF, [], [*GAME, *f"defense={arm}".split(), f"paths.root={root}"]))


def seconds(arm: str) -> tuple[float, float]:
    """Time of dealing and playing one game, nothing cached, and that of its attacks: processor time on one thread."""
    with tempfile.TemporaryDirectory() as root:
        config = config_of(arm, root)
        cell = DistributionInference(config, build(config, "dataset"), build(config, "defense"))
        data = GameDataModule(cell.dataset, cell.settings.game, seed=0)
        data.setup()
        start = now()
        splits = cell.splits(data)
        trained = now()
        play(splits, cell.attacks, pure=data.pure)
        end = now()
        return end - start, end - trained


def main(arguments: list[str] | None = None) -> None:
    """Print a line an arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    quiet()
    tell_machine()
    spent: dict[str, float] = {}
    for arm in ("none", *(arm for arm in options.arms if arm != "none")):
        spent[arm], attacked = seconds(arm)
        against = FIXED if arm in CHOSEN and FIXED in spent else "none"
        goal = "over 0.5" if against == FIXED else "30 s"
        what = f"game, {arm}, {attacked:.1f} s of it attacks"
        report(what, spent[arm], f"game, {against}", spent[against], goal)


if __name__ == "__main__":
    main()
