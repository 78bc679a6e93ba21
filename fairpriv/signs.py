"""Signs of life: what a long cell is doing, a line a minute in a log, and behind the bar of a sweep on a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

EVERY = 60.0  # seconds between two lines
FRESH = 5.0  # seconds between two looks at what costs something to look at, such as a loss on a GPU

_doing = ""  # the stage of the cell
_detail = ""  # how far it is
_looked = 0.0


def doing(stage: str) -> None:
    """Say which stage of its cell this process is in."""
    global _doing, _detail
    _doing, _detail = stage, ""


def step(detail: str) -> None:
    """Say how far the stage is, such as ``12 of 300 answers``."""
    global _detail
    _detail = detail


def due() -> bool:
    """Tell whether it is time to look again at what is not free, and begin to wait for the next time."""
    global _looked
    if (now := time.monotonic()) < _looked + FRESH:
        return False
    _looked = now
    return True


def now() -> str:
    """Return what this process is doing; empty where it is in no stage."""
    return ": ".join(filter(None, [_doing, _detail]))


@contextlib.contextmanager
def alive(name: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Print every `EVERY` seconds how long this cell has run and what it is doing, unless a person watches.

    Args:
        name: of the cell.
        say: prints a line; None: to standard error, where that is no terminal.
    """
    if say is None and not sys.stderr.isatty():
        say = _print
    over, start = threading.Event(), time.monotonic()

    def beat() -> None:
        while not over.wait(EVERY):
            minutes = (time.monotonic() - start) / 60
            assert say is not None
            say(f"{name}: {minutes:.0f} min: {now() or 'begins'}")

    thread = threading.Thread(target=beat, name="signs of life", daemon=True) if say is not None else None
    if thread:
        thread.start()
    try:
        yield
    finally:
        doing("")
        over.set()
        if thread:
            thread.join()


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece, from any thread
