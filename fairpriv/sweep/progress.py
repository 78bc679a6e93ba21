"""A sweep's progress: how many cells are done, what runs, how long it will take."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from rich.progress import Progress


class SweepProgress(Callback):
    """Hydra callback: a live bar on a terminal, a line a cell elsewhere.

    Hydra swallows what a callback raises and returns, so the command line asks the module for the sweep's end.
    """

    current: SweepProgress | None = None

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.finished = False
        self.total: int | None = None
        self.common: frozenset[str] = frozenset()
        self.done = 0
        self.started = 0.0
        self.bar: Progress | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep's folder with an empty list of cells, and the display."""
        SweepProgress.current = self
        self.folder = Path(config.hydra.sweep.dir)
        with contextlib.suppress(OSError):  # which Hydra meets next, and raises
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "cells.txt").write_text("")
        if cells := cells_of(config):
            self.total = len(cells)
            self.common = frozenset.intersection(*cells) if len(cells) > 1 else frozenset()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

            self.bar = Progress(
                BarColumn(20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                "left",
                TimeRemainingColumn(elapsed_when_finished=False),
                "{task.description}",
                console=Console(stderr=True),
            )
            self.bar.start()
            self.bar.add_task("", total=self.total)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Show which cell runs."""
        self.started = time.monotonic()
        if self.bar:
            self.bar.update(self.bar.task_ids[0], description=self.name(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Count the cell; a failed one is named with its reason."""
        if self.folder is None:  # a single run, or a worker of another launcher
            return
        self.done += 1
        outcome = job_return._return_value if isinstance(job_return._return_value, dict) else {}
        status = outcome.get("status", "failed")
        seconds = time.monotonic() - self.started
        line = f"[{self.done:>3}/{self.total or '?'}] {self.name(config)}: {status}, {seconds:.1f} s"
        if status == "failed":
            line += f": {outcome.get('error') or job_return._return_value}"
        if not self.bar:
            print(line, file=sys.stderr, flush=True)
            return
        if status == "failed":
            self.bar.console.print(line, markup=False, highlight=False)
        self.bar.advance(self.bar.task_ids[0])

    def name(self, config: DictConfig) -> str:
        """What sets this cell apart from the others of its sweep."""
        words = [word for word in config.hydra.overrides.task if not word.startswith(("sweep=", "experiment="))]
        return " ".join(word for word in words if word not in self.common)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that the sweep came to its end."""
        self.finished = True


def end() -> Path | None:
    """Take the live display down; returns the folder of a sweep that came to its end, None after anything else."""
    current, SweepProgress.current = SweepProgress.current, None
    if current and current.bar:
        current.bar.stop()
    return current.folder if current and current.finished else None


def cells_of(config: DictConfig) -> list[frozenset[str]]:
    """The overrides of each cell that Hydra's basic sweeper will make; none for another sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
        return []
    params = config.hydra.sweeper.params or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what glob(*) stands for
    batches = BasicSweeper.split_arguments(parser.parse_overrides(words), None)
    return [frozenset(cell) for batch in batches for cell in batch]
