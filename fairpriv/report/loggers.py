"""The loggers of a cell: any of Lightning's, one or several. Results never depend on them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairpriv.config.compose import build, compose, plain
from fairpriv.errors import InputError
from fairpriv.report.finding import find_results
from fairpriv.report.selection import flat
from fairpriv.report.weights_and_biases import harmless, wandb_run
from fairpriv.report.weights_and_biases import summarise as summarise_wandb
from fairpriv.result import Result, cell_name

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)


@contextlib.contextmanager
def cell_loggers(node: Mapping[str, Any] | None, cell: str, config: Mapping[str, Any]) -> Iterator[Any]:
    """Make the cell's loggers, and close each at the end; one that cannot be made is left out with a warning.

    Args:
        node: the resolved ``logger`` config: of one logger, of several by name, or empty.
        cell: the cell's id.
        config: the resolved config without secrets; logged as hyperparameters.

    Yields:
        What a Trainer accepts as ``logger``: a logger, a list of several, or None.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for one in nodes(node):
            if is_wandb(one):
                logger = stack.enter_context(wandb_run(one, cell, config))
            else:
                logger = stack.enter_context(_other(one, cell, config))
            found += [logger] if logger is not None else []
        yield found if len(found) > 1 else next(iter(found), None)


def summarise(loggers: Any, result: Result, folder: Path) -> None:
    """Write a finished cell into its loggers: metrics into all of them, tables and files into W&B."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if type(logger).__name__ == "WandbLogger":
            summarise_wandb(logger, result, folder)
        elif logger is not None:
            values = {name: float(value) for name, value in result.metrics.items() if value is not None}
            values |= {f"seconds/{stage}": float(value) for stage, value in result.seconds.items() if value is not None}
            logger.log_metrics(values, step=0)
            logger.save()


def nodes(node: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """List the config of each logger."""
    if not node:
        return []
    return [node] if "_target_" in node else [one for value in node.values() for one in nodes(value)]


def is_wandb(node: Mapping[str, Any]) -> bool:
    """Return whether a logger is of W&B, whose runs need more than others."""
    return str(node["_target_"]).endswith(".WandbLogger")


@contextlib.contextmanager
def _other(node: Mapping[str, Any], cell: str, config: Mapping[str, Any]) -> Iterator[Logger | None]:
    name = str(node["_target_"]).rpartition(".")[2]
    logger: Any = None

    def start() -> None:
        nonlocal logger
        made: Any = build({"logger": node}, "logger", **_names(node, cell, config))
        leaves = flat(config)
        made.log_hyperparams({key: leaf if isinstance(leaf, int | float | str) else str(leaf) for key, leaf in leaves})
        for method in ("log_metrics", "finalize", "save"):
            setattr(made, method, harmless(getattr(made, method), name))
        logger = made

    harmless(start, name)()
    status = "failed"
    try:
        yield logger
        status = "success"
    finally:
        if logger is not None:
            logger.finalize(status)


def _names(node: Mapping[str, Any], cell: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Name the cell for a logger, where its constructor asks for a name and the user has not given one."""
    from fairpriv.config.schema import parameters

    asked = (parameters(str(node["_target_"])) or ({},))[0]
    ours = {"run_name": cell_name(config)}  # of MLflow
    if "version" in asked:  # of files in a folder: a cell that is run again gets one of its own
        ours |= {"name": config["sweep"] or "cells"}
        folder = Path(node.get("save_dir") or ".", node.get("name") or ours["name"])
        attempts = sum(1 for _ in folder.glob(f"{cell}*"))
        ours |= {"version": f"{cell}-{attempts}" if attempts else cell}
    return {key: value for key, value in ours.items() if key in asked and node.get(key) is None}


def log_results(conf: Path, folders: Sequence[Path], places: Sequence[Path], overrides: Sequence[str]) -> int:
    """Log the finished cells below folders, as ``fairpriv log DIR...`` does; return the exit status.

    A cell that already has an offline run of W&B is left out. The status is 1 where one could not be logged.
    """
    results = find_results(places)[0]
    done = [(result, result.folder) for result in results if result.status == "completed" and result.folder]
    if not done:
        raise InputError(f"log {' '.join(map(str, places))}: holds no finished cell")
    logged = lost = 0
    for result, folder in done:
        config = plain(compose(conf, folders, [f"paths.root={folder.resolve().parents[1]}", *overrides]))
        node = config["logger"]
        if not nodes(node):
            raise InputError("logger=none: choose one that logs, such as logger=offline")
        if any(is_wandb(one) and one.get("offline") for one in nodes(node)) and list(
            Path(config["paths"]["root"], "wandb").glob(f"offline-run-*-{result.id}-*")
        ):
            continue
        with cell_loggers(node, result.id, result.config) as loggers:
            summarise(loggers, result, folder)
            logged += loggers is not None
            lost += loggers is None
    print(f"{logged} of {len(done)} finished cells logged")
    return int(lost > 0)
