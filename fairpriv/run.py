"""One cell, top to bottom: compose, data, model, defend, evaluate, record."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from fairpriv.attacks.pools import Played, deal, play
from fairpriv.configs import build, plain
from fairpriv.data.batches import ShuffledBatches
from fairpriv.data.game import GameDataModule, Part
from fairpriv.defenses.defense import Defense, Victim
from fairpriv.errors import InputError
from fairpriv.measures import Measures, Sample, measure
from fairpriv.modules.classifier import Classifier, fit, predict
from fairpriv.modules.pool import fit_pool
from fairpriv.schema import GameConfig, TrainingConfig, check
from fairpriv.tracking.identity import cell_id, content_hash
from fairpriv.tracking.result import Result, environment, git_state, without_secrets, write_whole
from fairpriv.tracking.weights_and_biases import summarise, wandb_run

log = logging.getLogger(__name__)

FIT_SETS = {  # of lightning.Trainer
    "max_epochs",
    "logger",
    "enable_checkpointing",
    "enable_model_summary",
    "num_sanity_val_steps",
    "limit_val_batches",
    "log_every_n_steps",
}


def run(cfg: DictConfig) -> Result:
    """Run one cell and write its ``result.json``; a cell that is finished is read, not run again.

    Args:
        cfg: the composed config (``fairpriv --cfg job`` prints one). ``cfg.retry`` says which finished cells are run
            again: ``none``, ``failed`` (the default) or ``all``.

    Returns:
        The result, also when the cell failed: ``status`` and ``error`` say so.

    Raises:
        InputError: the config is wrong, or ``paths.root`` cannot be written; or the data that the config names is
            wrong, which is recorded as a failed cell.
    """
    config = plain(cfg)
    check(config)
    prepare_root(Path(config["paths"]["root"]))
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    seconds: dict[str, float | None] = {}
    result = Result(
        id=cell_id(config, {}),
        status="failed",
        degenerate=[],
        error=None,
        config=without_secrets(config),
        metrics={},
        intervals={},
        artifacts={},
        versions=environment(),
        git=git_state(Path(__file__).parent),
        device=device_name(),
        seconds=seconds,
    )
    try:
        dataset, defense = build(config, "dataset"), build(config, "defense")
        digests = {"dataset.source": dataset.source.digest()}
        result.id = cell_id(config, digests)
        if (done := finished(config, result.id)) is not None:
            return done
        with wandb_run(config["logger"], result.id, result.config) as logger:
            with stage("data", seconds):
                data = GameDataModule(dataset, GameConfig(**config["game"]), config["seed"])
                data.setup()
            victim = make_victim(config, data, logger)
            with stage("base", seconds):
                victim.base()
            with stage("defend", seconds):
                defended = defense.defend(victim)
            with stage("evaluate", seconds):
                measures = evaluate(defended.net, data, config["game"]["tau"])
            result.metrics = measures.metrics | defended.metrics
            result.intervals = {name: list(ends) for name, ends in measures.intervals.items()}
            result.degenerate = measures.degenerate
            if config["attack"]:
                with stage("attack", seconds):
                    record(result, attack(config, data, defense))
            result.status = "completed"
            summarise(logger, result)
    except Exception as error:
        result.status = "failed"
        if isinstance(error, InputError):
            result.error = str(error)
            raise
        result.error = f"{type(error).__name__}: {error}"
        log.debug("cell %s failed", result.id, exc_info=True)
    finally:
        if result.error or result.status == "completed":  # not after Ctrl-C
            result.write(cell_path(config, result.id))
        enlist(config, result.id)
    return result


def prepare_root(root: Path) -> None:
    """Make the folders that every cell writes to; what stands in the way shows here and not after the training."""
    for name in ("cells", "cache"):
        try:
            (root / name).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=root / name).close()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise InputError(
                f"paths.root={root}: {root / name} cannot be written ({error.strerror}): name another folder"
            ) from None


def cell_path(config: Mapping[str, Any], cell: str) -> Path:
    """Where a cell's result stands, whatever sweep asked for it."""
    return Path(config["paths"]["root"], "cells", cell, "result.json")


def enlist(config: Mapping[str, Any], cell: str) -> None:
    """Add the cell to its sweep's list: a sweep is a list of ids."""
    if config["sweep"]:
        folder = Path(config["paths"]["root"], "sweeps", config["sweep"])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "cells.txt").open("a") as ids:  # one short write in append mode: safe between processes
            ids.write(f"{cell}\n")


def finished(config: Mapping[str, Any], cell: str) -> Result | None:
    """The stored result where it stands and ``retry`` does not ask for it to be made again."""
    path = cell_path(config, cell)
    if config["retry"] == "all" or not path.is_file():
        return None
    with contextlib.suppress(InputError):  # half of a file, or another version's: make it again
        result = Result.read(path)
        if result.status == "completed" or config["retry"] == "none":
            log.info("cell %s is finished already (retry=all runs it again)", cell)
            return result
    return None


@contextlib.contextmanager
def stage(name: str, seconds: dict[str, float | None]) -> Iterator[None]:
    """Time a stage and say that it is over."""
    start = time.perf_counter()
    try:
        yield
    finally:  # the last stage that has a time is the one that failed
        seconds[name] = round(time.perf_counter() - start, 3)
    log.info("%-8s %6.1f s", name, seconds[name])


def make_victim(config: Mapping[str, Any], data: GameDataModule, logger: Logger | None) -> Victim:
    """The model owner's side of the cell: how it makes a model, trains it, and gets its base model."""
    seed, world = config["seed"], config["game"]["world"]
    if taken := FIT_SETS & set(config["trainer"]):
        raise InputError(
            f"trainer.{min(taken)} is set by every fit; epochs are training.epochs and those of the defence"
        )
    # What it refuses shows here, and not after the first fit that is not read from the cache.
    build(config, "trainer", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = instantiate(config["trainer"], _partial_=True, _convert_="all")
    if trainer.keywords.get("enable_progress_bar") is None:
        trainer.keywords["enable_progress_bar"] = not config["sweep"] and sys.stderr.isatty()
    fit_once = functools.partial(
        fit,
        trainer=trainer,
        seed=seed,
        logger=logger,
        measured=logger is not None,
        cache=Path(config["paths"]["root"], "cache", "fits"),
    )

    def fresh() -> nn.Module:
        torch.manual_seed(seed)
        net: nn.Module = build(config, "model", data.features, len(data.label_names))
        return net

    def base() -> nn.Module:
        """The model trained on G_b; the second time it comes from the cache."""
        training = TrainingConfig(**config["training"])
        module = Classifier(
            fresh(),
            classes=len(data.label_names),
            lr=training.lr,
            weight_decay=training.weight_decay,
            stage="base",
        )
        batches = ShuffledBatches(data.part("train", world), training.batch_size, seed)
        fit_once(module, batches, epochs=training.epochs, validation=data.part("validation", world))
        return module.net

    return Victim(data, world, seed, base, fresh, fit_once)


def evaluate(net: nn.Module, data: GameDataModule, tau: float) -> Measures:
    """Every measure of one model on the two test worlds: rates and bound on half of the test rows, gaps on the rest."""

    def sample(part: Part, world: int) -> Sample:
        rows = data.part(part, world)
        return Sample(predict(net, rows.X), rows.y, rows.s)

    return measure(
        (sample("rates", 0), sample("rates", 1)),
        (sample("gap", 0), sample("gap", 1)),
        label_names=data.label_names,
        group_names=data.group_names,
        tau=tau,
    )


def attack(config: Mapping[str, Any], data: GameDataModule, defense: Defense) -> Played:
    """Play the distribution-inference game on pools of the cell's model, on every repeated split."""
    model, game = config["model"], data.game
    if model["_target_"] != "fairpriv.modules.classifier.MLP" or model["dropout"]:
        raise InputError(
            f"model={model['name']}: attacks train pools of model=mlp with model.dropout=0 and of no other"
        )
    if game.victims < 1 or game.repeats < 1:
        raise InputError(
            f"game.victims={game.victims}, game.repeats={game.repeats}: an attack needs one of each at least"
        )
    attacks = [build(config["attack"], name) for name in config["attack"]]
    root = Path(config["paths"]["root"])
    fit_one = functools.partial(
        fit_pool, hidden=model["hidden"], cache=root / "cache" / "pools", accelerator=config["trainer"]["accelerator"]
    )
    splits = []
    for number in range(game.repeats):
        split = data
        if number:
            split = GameDataModule(data.dataset, game, int(content_hash([data.seed, number]), 16) % 2**31)
            split.setup()
        shadows = any(attack.needs_shadows for attack in attacks)
        splits.append(deal(split, defense.defend_pool, fit_one, config["training"], shadows=shadows))
    return play(splits, attacks)


def record(result: Result, played: Played) -> None:
    """Add what the attacks came to; every victim's scores go into a file of their own."""
    result.metrics |= played.metrics
    result.intervals |= {name: list(ends) for name, ends in played.intervals.items()}
    result.degenerate += played.degenerate
    path = cell_path(result.config, result.id).with_name("attacks.json")
    write_whole(path, json.dumps({"splits": played.victims}).encode())
    result.artifacts["attacks"] = path.name


def device_name() -> str:
    """The accelerator by name, else the CPU with the threads torch may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads, {os.cpu_count()} cores"
