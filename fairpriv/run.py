"""One cell, top to bottom: compose, data, model, defend, evaluate, record."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from fairpriv.configs import plain
from fairpriv.data.batches import ShuffledBatches
from fairpriv.data.game import GameDataModule, Part
from fairpriv.defenses.defense import Victim
from fairpriv.errors import InputError
from fairpriv.measures import Measures, Sample, measure
from fairpriv.modules.classifier import Classifier, fit, predict
from fairpriv.schema import GameConfig, TrainingConfig, check
from fairpriv.tracking.identity import cell_id
from fairpriv.tracking.result import Result, environment, git_state, without_secrets
from fairpriv.tracking.weights_and_biases import summarise, wandb_run

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Result:
    """Run one cell and write its ``result.json``; a cell that is finished is read, not run again.

    Args:
        cfg: the composed config (``fairpriv --cfg job`` prints one). ``cfg.retry`` says which finished cells are run
            again: ``none``, ``failed`` (the default) or ``all``.

    Returns:
        The result, also when the cell failed: ``status`` and ``error`` say so.

    Raises:
        InputError: the config or the data it names is wrong; recorded as a failed cell where there is an id.
    """
    config = plain(cfg)
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
        check(config)
        dataset = instantiate(config["dataset"], _convert_="all")
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
                defended = instantiate(config["defense"], _convert_="all").defend(victim)
            with stage("evaluate", seconds):
                measures = evaluate(defended.net, data, config["game"]["tau"])
            result.metrics = measures.metrics | defended.metrics
            result.intervals = {name: list(ends) for name, ends in measures.intervals.items()}
            result.degenerate = measures.degenerate
            result.status = "completed"
            summarise(logger, result)
    except Exception as error:
        result.status = "failed"
        if isinstance(error, InputError):
            result.error = str(error)
            raise
        result.error = f"{type(error).__name__}: {error}"
        log.error("cell %s failed: %s", result.id, result.error, exc_info=log.isEnabledFor(logging.DEBUG))
    finally:
        if result.error or result.status == "completed":  # not after Ctrl-C
            result.write(cell_path(config, result.id))
        enlist(config, result.id)
    return result


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
        return instantiate(config["model"], data.features, len(data.label_names), _convert_="all")

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


def device_name() -> str:
    """The accelerator by name, else the CPU with the threads torch may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads, {os.cpu_count()} cores"
