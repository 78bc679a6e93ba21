"""One cell from start to end: check, build, identify, measure (see the two tracks), record."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig

from fairpriv import signs
from fairpriv.api import Place, compose
from fairpriv.config.compose import build, plain
from fairpriv.config.schema import TASKS, check
from fairpriv.errors import InputError
from fairpriv.identity import content_hash, outcome
from fairpriv.processes import rank
from fairpriv.report.comparison import code_version
from fairpriv.report.loggers import cell_loggers, summarise
from fairpriv.result import Cell, Result, cell_name, environment, git_state
from fairpriv.secrets import masked, without_secrets
from fairpriv.store import Store
from fairpriv.sweep import ddp
from fairpriv.sweep.lock import HeldError, lock

log = logging.getLogger(__name__)


def run(cfg: DictConfig | Sequence[str], *, config_dirs: Sequence[Place] = ()) -> Result:
    """Run one cell and write its ``result.json``; read a finished cell instead of running it again.

    While it runs, ``lock`` in the cell's folder names the process that runs it.

    Args:
        cfg: overrides as on the command line, such as ``["dataset=german", "seed=1"]``, or the config that
            `fairpriv.compose` makes of them. ``retry`` says which finished cells are run again: ``none``, ``failed``
            (the default) or ``all``.
        config_dirs: folders of your own configs, for overrides.

    Returns:
        The result, also of a cell that failed: see ``status`` and ``error``.

    Raises:
        InputError: the config is wrong, its parts do not go together, or ``paths.root`` cannot be written; or the data
            that the config names are wrong, which is also recorded as a failed cell.
        HeldError: another live process runs this cell.
    """
    config = plain(cfg if isinstance(cfg, DictConfig) else compose(cfg, config_dirs=config_dirs))
    check(config)
    prepare_root(Path(config["paths"]["root"]))
    processes = ddp.processes(config)
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    if config["task"] == "language_model":
        from fairpriv.language_models.models.precision import settled

        config = settled(config)
    result = Result(
        id="",
        status="failed",
        degenerate=[],
        error=None,
        config=without_secrets(config),
        metrics={},
        intervals={},
        artifacts={},
        versions=environment(),
        git=git_state(Path(__file__).parent),
        device=device_name(config),
    )
    _identify(result, config, {})  # for a failure before the inputs are read
    cell = cell_of(config)
    with contextlib.ExitStack() as alone, recorded(config, result):  # till the result is written
        _identify(result, config, cell.digests())
        store, sweep, retry = Store(config["paths"]["root"]), config["sweep"], config["retry"]
        folder = store.path(result.id).parent
        done = store.finished(result.id, retry)
        store.enlist(sweep, result.id, finished=done is not None)
        if done is None:
            alone.enter_context(lock(folder / "lock", cell_name(config)))
            done = store.finished(result.id, retry)  # by the process that held the lock till now
        if done is not None:
            tell_of_other_code(code_version(done), code_version(result))
            return done
        for torn in folder.glob(".*.tmp"):  # which a killed process was writing
            torn.unlink()
        if processes > 1:
            ddp.measure(measure_as_rank, config, result, processes)
        else:
            measure(config, cell, result)
    return result


def _identify(result: Result, config: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    result.outcome = outcome(config, digests)
    result.id = content_hash(result.outcome)


def measure(config: Mapping[str, Any], cell: Cell, result: Result) -> None:
    """Measure the cell in this process, alone or as one of several; the first of them writes ``result.json``."""
    from fairpriv.trainer import without_tips  # with Lightning, which `load_lightning` imports faster, but later

    path, timed = Store(config["paths"]["root"]).path(result.id), functools.partial(stage, seconds=result.seconds)
    living = signs.alive(cell_name(config)) if rank() == 0 else contextlib.nullcontext()
    with (
        living,
        without_tips(),
        cell_loggers(config["logger"] if rank() == 0 else None, result.id, result.config) as logger,
    ):
        cell.measure(result, path.parent, logger, timed)
        result.status = "completed"
        if rank() == 0:
            result.write(path)
            summarise(logger, result, path.parent)


def measure_as_rank(config: Mapping[str, Any], result: Result, number: int) -> None:
    """Measure the cell as one of ``number`` processes."""
    result.device = f"{number} x {device_name(config)}"
    measure(config, cell_of(config), result)


def cell_of(config: Mapping[str, Any]) -> Cell:
    """Build the cell of a config. Each task imports its own libraries, which takes seconds."""
    module, _, name = TASKS[config["task"]].experiment.rpartition(".")
    cell: Cell = getattr(importlib.import_module(module), name)(
        config, build(config, "dataset"), build(config, "defense")
    )
    return cell


def prepare_root(root: Path) -> None:
    """Make the folders that every cell writes to, so that an obstacle shows here and not after the training."""
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


@functools.cache
def tell_of_other_code(then: str, now: str) -> None:
    """Log once that finished cells are kept although the code has changed."""
    if then != now:
        log.warning(
            "cells that were finished by other code (%s; now %s) are kept; retry=all runs them again", then, now
        )


@contextlib.contextmanager
def recorded(config: Mapping[str, Any], result: Result) -> Iterator[None]:
    """Write the reason where the cell fails, except after Ctrl-C or where another process runs it.

    Only errors in the input are raised again.
    """
    try:
        yield
    except HeldError:
        raise
    except Exception as error:
        wrong_input = isinstance(error, InputError)
        result.status = "failed"
        result.error = masked(str(error) if wrong_input else f"{type(error).__name__}: {error}")
        store = Store(config["paths"]["root"])
        store.enlist(config["sweep"], result.id)
        result.write(store.path(result.id))
        if wrong_input:
            raise
        log.debug("cell %s failed", result.id, exc_info=True)


@contextlib.contextmanager
def stage(name: str, seconds: dict[str, float | None]) -> Iterator[None]:
    """Time a stage and log its end."""
    start = time.perf_counter()
    signs.doing(name)
    try:
        yield
    finally:  # the last stage that has a time is the one that failed
        seconds[name] = round(time.perf_counter() - start, 3)
    log.info("%-8s %6.1f s", name, seconds[name])


def device_name(config: Mapping[str, Any]) -> str:
    """Name the device of a config's ``trainer``: a GPU, and whether it rounds factors of float32; else torch's threads.

    A GPU that ``trainer.accelerator=cpu`` leaves alone is not named.
    """
    from fairpriv.trainer import device_of  # with Lightning, which `load_lightning` imports faster, but later

    device = device_of(config)
    if device.type == "cuda":
        matmul: Any = torch.backends.cuda.matmul
        # before PyTorch 2.9 it has `allow_tf32` alone; later ones refuse to mix the two
        rounded = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
        return torch.cuda.get_device_name(device) + (", float32 products in TF32" if rounded else "")
    return f"{device.type}, {torch.get_num_threads()} threads, {os.cpu_count()} cores"


class _Callable(ModuleType):
    """This module, callable as ``fairpriv.run(...)``: importing a module binds its name in the package."""

    def __call__(self, cfg: DictConfig | Sequence[str], *, config_dirs: Sequence[Place] = ()) -> Result:
        return run(cfg, config_dirs=config_dirs)


sys.modules[__name__].__class__ = _Callable
