"""The list of a sweep's cells: ``cells.txt``, which all its processes extend, and ``sweep.json`` beside it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairpriv.result import write_whole
from fairpriv.secrets import masked, secret
from fairpriv.sweep.lock import HeldError, lock

NOT_OF_THE_CELL = re.compile(r"[+~]*(experiment=|sweep=|retry=|threads=|logger|paths\.|hydra[./])")


@dataclass
class Entry:
    """A cell's entry in the list. Times are seconds since 1970, 0 for never."""

    asked: float = 0.0  # when the sweep last came to it
    begun: float = 0.0  # when the sweep last came to it and it was not finished
    words: list[str] = field(default_factory=list)  # its overrides, as far as they are known


@dataclass
class Plan:
    """Content of the sweep's own file. An entry older than ``since`` is of an earlier state of code, data or config."""

    total: int | None = None  # cells; None where nobody knows
    started: float = 0.0  # when the sweep was last begun, in seconds since 1970
    since: float = 0.0


class Listing:
    """The list of a sweep that starts in this process, while other processes may run the same sweep.

    Entries stay in the list until a sweep has reached its end, so that a sweep that is killed again and again loses
    nothing. Then only the entries that this sweep has come to still count.
    """

    def __init__(self, folder: Path, total: int | None) -> None:
        self.folder = folder
        self.plan = Plan(total, time.time(), plan(folder).since)
        self._lock = contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cells.txt").touch()
        self.alone = True
        try:
            self._lock.enter_context(lock(folder / "lock"))
        except HeldError:
            self.alone = False
        else:
            for torn in folder.glob(".sweep.json.*.tmp"):  # which a killed process was writing
                torn.unlink()
            self._write()

    def expect(self, total: int) -> None:
        """Set the highest possible number of cells, where it becomes known only now."""
        self.plan.total = total
        if self.alone:
            self._write()

    def end(self, *, finished: bool, failed: bool) -> None:
        """Note that the sweep is over; ``finished``: it came to all its cells; ``failed``: some of them failed."""
        with self._lock:
            if finished and self.alone:
                self.plan.since = self.plan.started
                self._write()
                if not failed:  # cells that differ in nothing that matters are one
                    self.plan.total = len(entries(self.folder))
                    self._write()

    def _write(self) -> None:
        write_whole(self.folder / "sweep.json", json.dumps(vars(self.plan)).encode())


def plan(folder: Path) -> Plan:
    """Read the sweep's own file; an empty plan where there is none."""
    try:
        found = Plan(**json.loads((folder / "sweep.json").read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return Plan()
    whole = found.total is None or type(found.total) is int
    return found if whole and _is_time(found.started) and _is_time(found.since) else Plan()


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def enlist(folder: Path, cell: str, *, finished: bool) -> None:
    """Add a cell to the list of the sweep in ``folder`` when it is asked for; ``finished`` already or not."""
    words = [masked(word) for word in _overrides() if not NOT_OF_THE_CELL.match(word) and not _secret(word)]
    said = json.dumps({"time": time.time(), "finished": finished, "words": words})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cells.txt").open("a") as ids:  # one short write in append mode: safe between processes
        ids.write(f"\n{cell} {said}\n")  # a line of its own, even if a full disk has cut off the last one


def entries(folder: Path) -> dict[str, Entry]:
    """Read the cells of the sweep in ``folder`` by id, in the order in which they were first asked for."""
    since = plan(folder).since
    found: dict[str, Entry] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "cells.txt").read_text(encoding="utf-8", errors="replace").splitlines():
            cell, _, rest = line.partition(" ")
            said: Any = {}
            with contextlib.suppress(ValueError, RecursionError):
                said = json.loads(rest)
            if not isinstance(said, dict):
                said = {}
            asked = said.get("time", 0.0)
            if not cell or not _is_time(asked) or asked < since:
                continue
            entry = found.setdefault(cell, Entry())
            entry.asked = max(entry.asked, asked)
            entry.begun = max(entry.begun, 0.0 if said.get("finished") else asked)
            if isinstance(words := said.get("words"), list) and words:
                entry.words = [str(word) for word in words]
    return found


def _overrides() -> list[str]:
    """Return the command line's words for the running cell, where Hydra runs it."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _secret(word: str) -> bool:
    """Return whether an override sets what the name of its key, or of one within its value, marks as a secret."""
    named = re.findall(r"([\w.-]+)['\"]?\s*[=:]\s*(?=([^\s,}\]]*))", word)
    return any(secret(name, 1 if re.fullmatch(r"\d*\.?\d+|true|false|null", value) else value) for name, value in named)
