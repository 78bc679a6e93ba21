"""The state of a sweep's cells: ``fairpriv status``, and the summary at a sweep's end."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fairpriv.errors import InputError
from fairpriv.report.comparison import code_version
from fairpriv.result import SCHEMA_VERSION, NotOursError, Result, from_document
from fairpriv.sweep.listing import Entry, entries, plan
from fairpriv.sweep.lock import Owner, holder


@dataclass
class Survey:
    """The cells of a sweep, or of a whole root, by id."""

    name: str
    total: int | None = None  # None where nobody knows
    completed: dict[str, Result] = field(default_factory=dict)  # without config and metrics
    failed: dict[str, Result] = field(default_factory=dict)
    running: dict[str, Owner] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)  # asked for, but neither of the above
    skipped: set[str] = field(default_factory=set)  # of the completed, those the last sweep found finished
    alive: bool = False  # a process runs it
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def of_sweep(cls, folder: Path, since: float | None = None) -> Survey:
        """Read a sweep's list and the cells on it.

        Args:
            folder: the sweep's folder.
            since: when the sweep began, in seconds since 1970; None: when it last did by its own file. Cells that a
                live sweep has not come to since then count as left, whatever an earlier sweep made of them, since data
                may have changed.
        """
        planned, asked = plan(folder), entries(folder)
        since = planned.started if since is None else since
        at_work = holder(folder / "lock") is not None
        survey = cls(folder.name, planned.total, entries=asked)
        survey._read(folder.parents[1] / "cells", [c for c, e in asked.items() if not at_work or e.asked >= since])
        survey.skipped = {cell for cell in survey.completed if asked[cell].begun < since <= asked[cell].asked}
        survey.alive = at_work or bool(survey.running)
        return survey

    @classmethod
    def of_root(cls, root: Path) -> Survey:
        """Read all cells of a root."""
        survey = cls("all cells")
        survey._read(root / "cells", sorted(path.name for path in (root / "cells").iterdir() if path.is_dir()))
        return survey

    def _read(self, cells: Path, ids: Iterable[str]) -> None:
        for cell in ids:
            if owner := holder(cells / cell / "lock"):
                self.running[cell] = owner
                continue
            try:
                result = _glimpse(cells / cell / "result.json") or Result.read(cells / cell / "result.json")
            except InputError:  # there is none, or one of another version, which would be made again
                self.unfinished.append(cell)
            else:
                (self.completed if result.status == "completed" else self.failed)[cell] = result

    @property
    def left(self) -> int | None:
        """Number of cells that are neither finished nor running."""
        settled = len(self.completed) + len(self.failed) + len(self.running)
        return None if self.total is None else max(0, self.total - settled)

    def seconds_left(self) -> float | None:
        """Estimate the remaining time from the cells that completed; None where it cannot be estimated."""
        times = [sum(filter(None, result.seconds.values())) for result in self.completed.values()]
        if self.left is None or not (self.left or self.running):
            return None
        if not times:
            return None
        mean = sum(times) / len(times)
        begun = (max(0.0, mean - (time.time() - owner.since)) for owner in self.running.values())
        return (mean * self.left + sum(begun)) / max(1, len(self.running))

    def name_of(self, cell: str) -> str:
        """Name a cell by its id and, as far as known, what distinguishes it from the others."""
        own = " ".join(w for w in self.entries.get(cell, Entry()).words if w not in self._common)
        if not own and cell in self.running:
            own = self.running[cell].task
        if not own and cell in self.failed:
            config = self.failed[cell].config
            own = " ".join(str(config.get(group, {}).get("name", "")) for group in ("dataset", "model", "defense"))
            own += f" seed {config.get('seed')}"
        return f"{cell} {own}".strip()

    @cached_property
    def _common(self) -> set[str]:
        """The overrides that all cells have; none of a single one."""
        words = [entry.words for entry in self.entries.values() if entry.words]
        return set(words[0]).intersection(*words) if len(words) > 1 else set()

    def failure(self, cell: str) -> str:
        """Describe a failed cell on one line: which, at what stage, and why."""
        return f"failed: {self.name_of(cell)}: {self.failed[cell].reason}"

    def codes(self) -> list[str]:
        """Say on one line how many results come from which code, where versions differ; else return an empty list."""
        codes = Counter(map(code_version, (*self.completed.values(), *self.failed.values())))
        told = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
        return [f"its cells come from {len(codes)} versions of the code: {told}"] if len(codes) > 1 else []


_BEGIN = f'{{{{\n "schema_version": {SCHEMA_VERSION},\n "id": "{{}}",\n "status": "completed",\n'
_TAIL = 4096  # bytes, in which lie versions, commit, device and seconds


def _glimpse(path: Path) -> Result | None:
    """Read how a completed cell ran from the two ends of its file; None where they do not tell, as of a failed one.

    Of ten thousand cells that takes a tenth of the time and memory of reading the files, which are written whole.
    """
    try:
        with path.open("rb") as file:
            if not file.read(200).startswith(_BEGIN.format(path.parent.name).encode()):
                return None
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            _, found, tail = file.read().decode("utf-8", "replace").rpartition('\n "versions": ')
        told = json.loads('{"versions": ' + tail) if found else {}
        ends = {key: told[key] for key in ("versions", "git", "seconds")}
        begin = {"schema_version": SCHEMA_VERSION, "id": path.parent.name, "status": "completed"}
        return from_document(begin | {"config": {}, "metrics": {}} | ends, path.parent)
    except (OSError, ValueError, KeyError, NotOursError):
        return None


def status(folders: Sequence[Path]) -> int:
    """Print what is done, running, failed and left of every sweep below ``folders``; return the exit status.

    Each is a root (``paths.root``) or one sweep's folder.

    Raises:
        InputError: a folder is neither.
    """
    surveys = [survey for folder in folders for survey in _surveys(folder)]
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("sweep", "done", "running", "failed", "left", "of", "time left"):
        grid.add_column(column, justify="left" if column in ("sweep", "time left") else "right")
    for survey in surveys:
        seconds = survey.seconds_left()
        counts = [len(survey.completed), len(survey.running), len(survey.failed), survey.left, survey.total]
        texts = ["" if count is None else str(count) for count in counts]
        when = "" if seconds is None else f"about {duration(seconds)}"
        grid.add_row(survey.name, *texts, when if survey.alive or not when else f"{when}, once it goes on")
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200)
    console.print(grid)
    lines: dict[str, str] = {}  # by cell, which may be of several sweeps
    for survey in surveys:
        for cell, owner in survey.running.items():
            lines.setdefault(cell, f"running: {survey.name_of(cell)}: {owner}")
        for cell in survey.failed:
            lines.setdefault(cell, survey.failure(cell))
        if survey.total is not None:
            lines |= {f"code of {survey.name}": f"{survey.name}: {line}" for line in survey.codes()}
            if survey.left and not survey.alive:
                lines[survey.name] = f"{survey.name}: no process is at it; the same command goes on from there"
    for line in lines.values():
        console.print(line, soft_wrap=True)
    return 0


def _surveys(folder: Path) -> list[Survey]:
    if (folder / "cells.txt").is_file():
        return [Survey.of_sweep(folder.resolve())]
    if (folder / "cells").is_dir():
        sweeps = sorted(path.parent for path in folder.resolve().glob("sweeps/*/cells.txt"))
        return [*map(Survey.of_sweep, sweeps), Survey.of_root(folder)]
    raise InputError(f"status {folder}: holds no cells: name paths.root (outputs, say), or a folder of its sweeps")


def closing(survey: Survey, lost: Mapping[str, str]) -> list[str]:
    """Write the summary at a sweep's end: the number of cells by outcome, and the cells that left no result.

    Args:
        survey: survey of the sweep.
        lost: name and reason of cells that failed, including those that could not leave a result.
    """
    reasons = {" ".join((result.error or "").split()) for result in survey.failed.values()}
    traceless = [f"failed: {name}: {why}" for name, why in lost.items() if " ".join(why.split()) not in reasons]
    counts = {
        "completed": len(survey.completed) - len(survey.skipped),
        "failed": len(survey.failed) + len(traceless),
        "skipped (finished before)": len(survey.skipped),
        "running elsewhere": len(survey.running),
        "not finished": 0 if traceless else len(survey.unfinished),
    }
    lines = [f"cells: {', '.join(f'{count} {name}' for name, count in counts.items() if count)}"]
    lines += traceless
    lines += [f"running elsewhere: {survey.name_of(cell)}: {owner}" for cell, owner in survey.running.items()]
    if not traceless:
        lines += [f"not finished: {survey.name_of(cell)}: its process is gone" for cell in survey.unfinished]
    return lines


def duration(seconds: float) -> str:
    """Write seconds for people: ``40 s``, ``12 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
