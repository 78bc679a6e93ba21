"""A lock held by one live process, which its file names; a dead process's lock is taken over."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None  # type: ignore[no-redef]

log = logging.getLogger(__name__)

HEARTBEAT = 30.0  # seconds between two signs of life, which are touches of the file
PROC = Path("/proc")  # Linux only
_NEVER = 1e11  # seconds since 1970, too many for a date
SILENCE = 300.0  # seconds without a sign of life until a process that is not visible here counts as dead


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    machine: str  # boot and process namespace: a pid means something within these only
    pid: int
    started: str  # of the process, since pids are used again; empty where that cannot be known
    since: float  # when it took the lock, in seconds since 1970
    task: str = ""  # what it does meanwhile

    @classmethod
    def this_process(cls, task: str = "") -> Owner:
        """Describe this process as the owner of a lock that is taken now."""
        return cls(platform.node(), machine(), os.getpid(), started(os.getpid()) or "", time.time(), task)

    def same_process(self, other: Owner) -> bool:
        """Return whether both owners are the same process."""
        return (self.machine, self.pid, self.started) == (other.machine, other.pid, other.started)

    def alive(self, touched: float) -> bool:
        """Return whether the process is alive; ``touched`` is when the lock's file was last touched.

        A process of this machine is looked up. Any other is judged by its signs of life alone. A sign as far in the
        future as silence may last does not count, since after a wrong clock the lock would be kept for ever.
        """
        if self.machine == machine():
            now = started(self.pid)
            if now is None or (now and self.started):
                return now == self.started
        return abs(time.time() - touched) < SILENCE

    def __str__(self) -> str:
        clock = time.strftime("%d %b %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {clock}"


class HeldError(BlockingIOError):
    """An error because a live process holds the lock."""

    def __init__(self, path: Path, owner: Owner) -> None:
        super().__init__(f"{path.parent} is being worked at by {owner}")
        self.owner = owner


@contextlib.contextmanager
def lock(path: Path, task: str = "") -> Iterator[None]:
    """Hold the lock at ``path`` within the block; a process may take a lock again that it holds.

    The lock's folder is made, and removed again if nothing else is in it.

    On a file system without locks of its own, and on Windows, two processes that find a dead process's lock in the
    same millisecond may both take it.

    Raises:
        HeldError: a live process holds it; raised at once, without waiting.
        OSError: the file cannot be written.
    """
    me = Owner.this_process(task)
    with _exclusive(path) as file:
        if (owner := _owner(file)) and not owner.same_process(me) and owner.alive(os.fstat(file.fileno()).st_mtime):
            raise HeldError(path, owner)
        file.truncate(0)
        file.write(json.dumps(asdict(me)))
    over = threading.Event()
    threading.Thread(target=_beat, args=(path, over), name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        with contextlib.suppress(OSError), _exclusive(path) as file:
            if (owner := _owner(file)) is None or owner.same_process(me):  # else another process has taken over
                file.truncate(0)  # Windows removes no file that is open, and an empty one names no owner
                path.unlink()
                path.parent.rmdir()


def holder(path: Path) -> Owner | None:
    """Find the live process that holds the lock at ``path``, if there is one, without changing anything."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            owner = _owner(file)
            return owner if owner and owner.alive(os.fstat(file.fileno()).st_mtime) else None
    except OSError:
        return None


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[IO[str]]:
    """Open the file at ``path``, made if need be, while no other process reads or writes it in here."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _move_aside(path)
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # the folder is removed meanwhile
            continue
        except FileExistsError as error:  # the same, during mkdir's own check; or it is not a folder
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(error.filename).st_mode):
                    raise
            continue
        with file:
            with contextlib.suppress(OSError):  # a file system without locks
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
            try:
                in_place = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                in_place = False
            if in_place:  # else removed while we waited
                yield file
                return


def _move_aside(path: Path) -> None:
    """Rename what is in the lock's place and is not a file, such as a folder, since it could never be locked."""
    with contextlib.suppress(FileNotFoundError):  # there is nothing, or another process was faster
        if not stat.S_ISREG(os.lstat(path).st_mode):
            path.rename(other := path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.aside"))
            log.warning("%s is no file: it is renamed to %s", path, other.name)


def _owner(file: IO[str]) -> Owner | None:
    """Read the owner from the file; None if it is empty, damaged in a crash, or names no process."""
    try:
        file.seek(0)
        owner = Owner(**json.loads(file.read(10_000)))
        texts = (owner.host, owner.machine, owner.started, owner.task)
        if all(isinstance(text, str) for text in texts) and type(owner.pid) is int and 0 < owner.pid < 2**31:
            return owner if 0 <= owner.since < _NEVER else None
    except (ValueError, TypeError, RecursionError):
        pass
    return None


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


@functools.cache
def machine() -> str:
    """Name the scope in which a pid is unique: host, boot and process namespace, as far as the system tells them."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append((PROC / "sys/kernel/random/boot_id").read_text().strip())
        parts.append(str((PROC / "self/ns/pid").readlink()))  # containers of one host may share its name
    return " ".join(parts)


def started(pid: int) -> str | None:
    """Return when a process started, in the system's own units; empty where it cannot be known, None if it is gone."""
    if fcntl is None:  # Windows, where a signal of 0 would interrupt or end the process
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # another user's
        pass
    with contextlib.suppress(OSError, IndexError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # the name before may hold anything
        return None if fields[0] in "ZX" else fields[19]  # a zombie counts as dead; else clock ticks since the boot
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    with contextlib.suppress(OSError):
        said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout.split()
        return None if said and said[0].startswith("Z") else " ".join(said[1:])
    return ""
