"""The files below ``paths.root``: results of cells, lists of sweeps, and a cache of what cells have in common.

A cache entry is a file named by the hash of everything that determines it. An entry that is damaged, or lies in
another's place, is made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

from fairpriv import processes
from fairpriv.errors import InputError
from fairpriv.identity import OUTCOME_VERSION, content_hash
from fairpriv.result import Result, write_whole
from fairpriv.sweep import listing
from fairpriv.sweep.lock import HeldError, lock

log = logging.getLogger(__name__)

T = TypeVar("T")
Saved = tuple[dict[str, Tensor], Any]  # tensors by name, and plain data

POLL = 0.2  # seconds between two looks at an entry that another process is making


class Store:
    """The files that are kept below a folder.

    Args:
        root: the folder; missing folders are made when something is written.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, cell: str) -> Path:
        """Return the path of a cell's result, which does not depend on the sweep that asked for it."""
        return self.root / "cells" / cell / "result.json"

    def finished(self, cell: str, retry: str) -> Result | None:
        """Read a cell's result if there is one and ``retry`` does not ask to make it again."""
        path = self.path(cell)
        if retry == "all" or not path.is_file():
            return None
        try:
            result = Result.read(path)
        except InputError as error:  # a torn file, or one of another version or another cell
            log.warning("%s: the cell is run again", error)
            return None
        if result.status == "completed" or retry == "none":
            log.info("cell %s is finished already (retry=all runs it again)", cell)
            return result
        return None

    def enlist(self, sweep: str | None, cell: str, *, finished: bool = False) -> None:
        """Add a cell to its sweep's list of ids, if it belongs to a sweep."""
        if sweep:
            listing.enlist(self.root / "sweeps" / sweep, cell, finished=finished)

    def cached(
        self,
        kind: str,
        key: Mapping[str, Any],
        make: Callable[[], T],
        *,
        save: Callable[[T], Saved] | None = None,
        load: Callable[[dict[str, Tensor], Any], T] | None = None,
        together: bool = False,
    ) -> T:
        """Return the result of ``make``, which the first caller makes and later ones read.

        Other processes that want it wait meanwhile. If the disk is full or cannot be written, the only cost is that it
        is made again the next time.

        Args:
            kind: the folder of such entries in ``cache``.
            key: plain data that determine it, beside the outcome version and the versions of torch and transformers.
            make: makes it.
            save, load: convert it to and from tensors and plain data; None: it is plain data, kept as JSON.
            together: all processes of a group call this, and make it together: the first one writes, and tells the
                others whether there is something to read. Otherwise each acts alone, and finds what the first has left.
        """
        path = self._place(kind, key, ".json" if save is None else ".safetensors")

        def read() -> Saved | None:
            if save is not None:
                return read_tensors(path)
            return None if (found := read_json(path)) is None else ({}, found)

        here: list[Saved | None] = []

        def there() -> bool:
            here.append(_found_or_claimed(path, read, held))
            return here[0] is not None

        with contextlib.ExitStack() as held:
            if processes.told(there) if together else there():
                found = here[0] if here else read()
                if together and not all(processes.gather(found is not None)):  # on a disk that they do not share
                    found = processes.told(lambda: here[0])
                assert found is not None
                return load(*found) if load is not None else cast(T, found[1])
            made = make()
            if not (together and processes.rank()):
                with _unkept(path):
                    if save is None:
                        write_json(path, made)
                    else:
                        write_tensors(path, *save(made))
            return made

    def cached_each(
        self, kind: str, key: Mapping[str, Any], wanted: Sequence[str], make: Callable[[list[str]], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return plain data for each name in ``wanted``, as in `cached`; only what no earlier call has left is made.

        Args:
            kind, key: as in `cached`; they determine the data together with the name.
            wanted: names of what is wanted, such as hashes.
            make: makes it for the names that are missing. What it leaves out is missing the next time, too.
        """
        folder = self._place(kind, key)

        def found() -> dict[str, Any]:
            parts = [read_json(path) or {} for path in sorted(folder.glob("*.json"))]  # one of each time
            return {name: value for part in parts for name, value in part.items()}

        def whole() -> dict[str, Any] | None:
            return None if set(wanted) - (there := found()).keys() else there

        with contextlib.ExitStack() as held:
            known = _found_or_claimed(folder, whole, held)
            if known is None:
                known = found()
                if made := make([name for name in dict.fromkeys(wanted) if name not in known]):
                    path = folder / f"{content_hash(sorted(made))}.json"
                    with _unkept(path):
                        write_json(path, made)
                known |= made
        return {name: known[name] for name in wanted if name in known}

    def cached_folder(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """Return a folder that ``make`` fills, as in `cached`; a folder whose files have changed is made again.

        Raises:
            OSError: it cannot be written.
        """
        folder = self._place(kind, key)
        with contextlib.ExitStack() as held:
            if _found_or_claimed(folder, lambda: _whole_folder(folder), held) is None:
                folder.parent.mkdir(parents=True, exist_ok=True)
                scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
                try:
                    make(scratch)
                    (scratch / _FILES).write_text(json.dumps(_file_digests(scratch)))
                    shutil.rmtree(folder, ignore_errors=True)  # a damaged folder
                    scratch.rename(folder)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
        return folder

    def _place(self, kind: str, key: Mapping[str, Any], suffix: str = "") -> Path:
        versions = {name: version(name) for name in ("torch", "transformers")}
        name = content_hash({"outcome_version": OUTCOME_VERSION, "versions": versions, "key": key})
        return self.root / "cache" / kind / f"{name}{suffix}"


_FILES = "entry.json"  # the files of a folder in the cache, each with its checksum


def _file_digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != _FILES:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _whole_folder(folder: Path) -> Path | None:
    """Return the folder if its files are those that were made; else None, with a line in the log."""
    if not folder.is_dir():
        return None
    with contextlib.suppress(OSError, ValueError):
        if json.loads((folder / _FILES).read_bytes()) == _file_digests(folder):
            return folder
    _tell(folder)
    return None


@contextlib.contextmanager
def _unkept(path: Path) -> Iterator[None]:
    """Log where an entry cannot be written: the only cost is that it is made again."""
    try:
        yield
    except OSError as error:
        log.warning("cache: %s cannot be written (%s): it is made again", path, error.strerror)


def _found_or_claimed(path: Path, read: Callable[[], T | None], held: contextlib.ExitStack) -> T | None:
    """Read an entry; where there is none, take its lock, waiting for the process that makes it, and look again."""
    before = _stamp(path)
    if (found := read()) is not None:
        return found
    waited = False
    while True:
        try:
            held.enter_context(lock(path.with_suffix(".lock"), path.parent.name))
        except HeldError as error:
            if not waited:
                log.info("cache: %s is being made by %s", path.name, error.owner)
            waited = True
            time.sleep(POLL)
        except OSError:  # it can be made without being kept
            return None
        else:
            return read() if _stamp(path) != before else None


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when a file is replaced; None where there is no file."""
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except OSError:
        return None


def checksum(tensors: Mapping[str, Tensor], told: Any = None) -> str:
    """Hash tensors on the CPU, with their names, dtypes and shapes, and plain data, by SHA-256."""
    digest = hashlib.sha256(json.dumps(told).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], told: Any = None) -> None:
    """Write tensors and plain data, whole or not at all, with their place and a checksum."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"key": _key(path), "told": told, "checksum": checksum(kept, [_key(path), told])}

    def write(part: Path) -> None:  # to the disk at once: a model's weights take much memory
        try:
            # one key: several would be written in any order
            safetensors_torch.save_file(kept, part, metadata={"entry": json.dumps(header)})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(errno.EIO, str(error)) from error

    write_whole(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any] | None:
    """Read the output of `write_tensors`; None where there is no file, or, with a line in the log, a wrong one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            header = json.loads(file.metadata()["entry"])
        if (header["key"], header["checksum"]) == (_key(path), checksum(tensors, [_key(path), header["told"]])):
            return tensors, header["told"]
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    _tell(path)
    return None


def write_json(path: Path, content: Any) -> None:
    """Write plain data, whole or not at all, with its place and a checksum."""
    document = {"key": _key(path), "checksum": checksum({}, [_key(path), content]), "content": content}
    write_whole(path, json.dumps(document).encode())


def read_json(path: Path) -> Any:
    """Read the output of `write_json`; None where there is no file, or, with a line in the log, a wrong one."""
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        content = document["content"]
        if (document["key"], document["checksum"]) == (_key(path), checksum({}, [_key(path), content])):
            return content
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        pass
    _tell(path)
    return None


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _tell(path: Path) -> None:
    log.warning("cache: %s is damaged, or not what its name says: it is made again", path)
