"""A sweep's progress: how many cells are done, which run, and how long the rest will take."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fairpriv import signs
from fairpriv.errors import InputError
from fairpriv.secrets import masked
from fairpriv.sweep.listing import Listing

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from rich.progress import Progress


class SweepProgress(Callback):
    """Hydra callback that shows a live bar on a terminal, else a line a cell, and collects the cells' outcomes.

    Hydra swallows what a callback raises and returns, so the command line asks the module for the sweep's end.
    Launchers with processes of their own get a copy that does nothing. Of these, `local_slots` and `ray` report events
    to `current`; the outcomes of other launchers' jobs are known when all have ended.

    In a sweep that is shown live, the first Ctrl-C lets running cells finish, and the next one stops them.
    """

    current: SweepProgress | None = None

    def __init__(self) -> None:
        self.folder: Path | None = None  # None: a single run
        self.listing: Listing | None = None
        self.outcomes: list[dict[str, Any]] = []  # what each job returned, in the order of their ends
        self.failed: dict[str, str] = {}  # reasons by the cell's name
        self.finished = False
        self.total: int | None = None
        self.common: frozenset[str] = frozenset()
        self.running: dict[int, tuple[str, float]] = {}  # name and start, by the job's number
        self.bar: Progress | None = None
        self.interrupted = False
        self.launcher = ""
        self.shown = True  # whether it is shown live
        self.at_end = contextlib.ExitStack()  # callbacks for the end of the sweep

    def __reduce__(self) -> tuple[type[SweepProgress], tuple[()]]:
        return SweepProgress, ()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Prepare for a single run, which has an outcome but nothing to show."""
        SweepProgress.current = self

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that the run reached its end."""
        self.finished = True

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep's list of cells, and the display."""
        SweepProgress.current = self
        self.folder = Path(config.hydra.sweep.dir)
        cells: list[list[str]] = []
        with contextlib.suppress(HydraException):  # which the sweeper meets next, and raises
            cells = cells_of(config)
        if cells:
            self.total = len(cells)
            self.common = frozenset.intersection(*map(frozenset, cells)) if len(cells) > 1 else frozenset()
        else:
            self.common = frozenset(config.hydra.overrides.task)
        with contextlib.suppress(OSError):  # Hydra meets the same error next, and raises it
            self.listing = Listing(self.folder, self.total)
        self.launcher = config.hydra.runtime.choices["hydra/launcher"]
        self.shown = self.launcher in ("basic", "local_slots", "ray")
        if not self.shown:
            here = os.path.relpath(self.folder)
            self.say(f"{self.total or '?'} cells go to {self.launcher}; how far they are: fairpriv status {here}")
            return
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                Task,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.text import Text

            class _Doing(TextColumn):
                """Which cells run, and what the one in this process is doing; read anew at every refresh."""

                def render(self, task: Task) -> Text:
                    return Text(": ".join(filter(None, [task.description, signs.now()])))

            self.bar = Progress(
                BarColumn(20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                "left",
                TimeRemainingColumn(elapsed_when_finished=False),
                _Doing("{task.description}", markup=False),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.bar.add_task("", total=self.total)

    def expect(self, total: int, done: int) -> None:
        """Set the number of cells where the sweeper knows better, the highest possible one, and how many are over."""
        self.total = total - done
        if self.bar:
            self.bar.update(self.bar.task_ids[0], total=self.total)
        if self.listing:
            self.listing.expect(total)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Show which cell runs."""
        if SweepProgress.current is self and self.folder:
            if self.interrupted:
                raise KeyboardInterrupt
            self.begin(config.hydra.job.num, config.hydra.overrides.task)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Count the cell."""
        if SweepProgress.current is self:
            self.end(config.hydra.job.get("num", 0), config.hydra.overrides.task, job_return._return_value)

    def begin(self, number: int, words: Sequence[str]) -> None:
        """Note that a job begins, with its number and overrides."""
        self.running[number] = self.name(words), time.monotonic()
        self._describe()

    def end(self, number: int, words: Sequence[str], returned: Any) -> None:
        """Count a job that has ended, and name it with its reason if it failed; ``returned`` is its result."""
        outcome = returned if isinstance(returned, dict) else {"status": "failed", "error": str(returned)}
        self.outcomes.append(outcome)
        if not self.folder:
            return
        name, started = self.running.pop(number, (self.name(words), None))
        line = f"[{len(self.outcomes):>3}/{self.total or '?'}] {name}: {outcome['status']}"
        if started is not None:
            line += f", {time.monotonic() - started:.1f} s"
        if outcome["status"] == "failed":
            self.failed[name] = str(outcome["error"])
        if outcome.get("error"):
            line += f": {outcome['error']}"
        if not self.bar or outcome["status"] == "failed":
            self.say(line)
        if self.bar:
            self.bar.advance(self.bar.task_ids[0])
            self._describe()

    def say(self, line: str) -> None:
        """Print a line to standard error, above the bar if there is one. Threads may call it."""
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece: print writes the end apart

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted or not self.running:
            raise KeyboardInterrupt
        self.interrupted = True
        several = len(self.running) > 1
        text = "the cells that run come to their end" if several else "the cell that runs comes to its end"
        text = f"fairpriv: interrupted: {text}, the rest waits; Ctrl-C again stops {'them' if several else 'it'}"
        saying = threading.Thread(target=self.say, args=(text,))  # not here, since another print may be in progress
        saying.start()
        self.at_end.callback(saying.join)

    def _describe(self) -> None:
        if self.bar:
            names = ", ".join(name for name, _ in self.running.values())
            several = f"{len(self.running)} run: " if len(self.running) > 1 else ""
            self.bar.update(self.bar.task_ids[0], description=several + names)

    def name(self, words: Sequence[str]) -> str:
        """Return what distinguishes the cell of these overrides from the others of its sweep."""
        own = (word for word in words if not word.startswith(("sweep=", "experiment=")))
        return " ".join(masked(word) for word in own if word not in self.common)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that the sweep reached its end."""
        self.finished = True


def end() -> SweepProgress | None:
    """End the current display; return a sweep or a run that reached its end, else None."""
    current, SweepProgress.current = SweepProgress.current, None
    if current is None:
        return None
    try:
        current.at_end.close()
    finally:
        if current.folder and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if current.bar:
            current.bar.stop()
        if current.listing:
            current.listing.end(finished=current.finished, failed=bool(current.failed))
    return current if current.finished else None


def cells_of(config: DictConfig) -> list[list[str]]:
    """List the overrides of each cell that the sweeper will make; none for one that chooses as it goes."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fairpriv.sweep.grids import cells

    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(("BasicSweeper", "GridSweeper")):
        return []
    loader = GlobalHydra.instance().config_loader()
    given = OverridesParser.create(loader).parse_overrides(list(config.hydra.overrides.task))
    return cells(sweeper.params or {}, sweeper.get("grids") or [], given, loader)


def cell_configs(conf: Path, folders: Sequence[Path], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Compose every cell that a command line asks for, without running any.

    Args:
        conf: the configs that are shipped.
        folders: those of the user.
        overrides: of the command line.

    Raises:
        InputError: a cell's config is wrong; or a search chooses its cells as it goes.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from fairpriv.config.compose import (
        compose,
        emptied,
        left_to_cells,
        plain,
        prepare_hydra,
        readable,
        search_path,
        several_judges,
    )
    from fairpriv.config.schema import check

    prepare_hydra()
    words = left_to_cells(emptied(several_judges(map(readable, overrides))))
    with initialize_config_dir(str(conf), version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        found = cells_of(
            hydra.compose_config(
                "config", [*search_path(folders), *words], RunMode.MULTIRUN, with_log_configuration=False
            )
        )
    if not found:
        raise InputError("plan: a search chooses its cells as it goes; name one of them")
    composed = [plain(compose(conf, folders, [w for w in cell if not w.startswith("hydra.")])) for cell in found]
    cells = list({json.dumps(cell, sort_keys=True, default=str): cell for cell in composed}.values())  # grids overlap
    for cell in cells:
        check(cell)
    return cells
