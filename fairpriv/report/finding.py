"""Finding the results below folders, and what is left out there."""

from __future__ import annotations

import functools
import marshal
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairpriv.errors import InputError
from fairpriv.metrics import Metric
from fairpriv.result import (
    DESCRIBED,
    LARGEST,
    NotOursError,
    Result,
    decode,
    descriptions,
    from_document,
    parse,
    require_computable,
    require_plain,
    shared_descriptions,
)
from fairpriv.sweep.listing import entries, plan

NOT_FINISHED = "not finished"


def find_results(folders: Sequence[Path]) -> tuple[list[Result], list[tuple[Path, str]]]:
    """Find every result below the folders, oldest file first, and the files left out with the reason.

    A folder with ``cells.txt`` is a sweep. Its results are those of the ids in it, in ``cells/`` two folders up, and
    the reason for a missing one is ``NOT_FINISHED``, also for cells that the sweep has not come to. Elsewhere any
    ``*.json`` with our schema version counts. Other JSON files are ignored silently unless they are called
    ``result.json``. A link to a folder elsewhere is left out, since it may lead to any amount of files. A cell found
    twice counts once; a completed one is preferred. What a result does not say of its metrics is read in
    ``described.json`` beside it.

    Raises:
        InputError: a folder does not exist.
    """
    found: dict[str, tuple[bool, float, Result]] = {}
    skipped: dict[Path, str] = {}
    parts = _Parts()
    for path in dict.fromkeys(path for folder in folders for path in _candidates(folder)):
        try:
            file = path.stat()
            if stat.S_ISDIR(file.st_mode) and path.is_symlink():
                skipped[path] = "a link to a folder elsewhere, which is not followed: name it, too"
                continue
            if path.name != "result.json" and file.st_size > LARGEST and not _begins_as_ours(path):
                continue
            document = parse(path, parts.decode)
            foreign = not isinstance(document, dict) or "schema_version" not in document
            if foreign and path.name != "result.json":
                continue
            result = from_document(document, path.parent, parts.describe)
            require_computable(result)
            parts.share(result)
        except NotOursError as error:
            skipped[path] = str(error)
            continue
        except (FileNotFoundError, NotADirectoryError):
            skipped[path] = NOT_FINISHED
            continue
        except PermissionError as error:  # it lies in a folder without rights
            skipped[path] = f"cannot be read: {error.strerror}"
            continue
        rank = (result.status == "completed", file.st_mtime, result)
        if result.id not in found or rank[:2] > found[result.id][:2]:
            found[result.id] = rank
    in_time = sorted(found.values(), key=lambda rank: (rank[1], rank[2].id))
    return [result for _, _, result in in_time], list(skipped.items())


class _Parts:
    """What results have in common: it is read, checked and kept once.

    The results of a sweep are alike in most of their text, so that thousands of them are read fast and take little
    memory, and whoever reads a part need not read it again.
    """

    def __init__(self) -> None:
        self._texts: dict[str, Any] = {}  # a member of an object, by its text
        self._parts: dict[bytes, Any] = {}  # by content
        self._kept: set[int] = set()  # the same by identity
        self._described: dict[Any, dict[str, Metric]] = {}
        self._beside = functools.cache(shared_descriptions)

    def decode(self, text: str) -> Any:
        """Read a result's text; parts whose text an earlier one has, too, are the same objects."""
        try:
            return self._members(text.removesuffix("\n"), 1)
        except (ValueError, NotOursError):  # in another layout than `Result.write` gives it, or damaged
            return decode(text)

    def _members(self, text: str, depth: int) -> dict[str, Any]:
        """Read an object that has each of its members on a line of its own, ``depth`` spaces from the left.

        A line break is never within a string of JSON, so that the text is valid where each member is. Raise
        ``ValueError`` where one is not.
        """
        head, *members = text.removesuffix(f"\n{' ' * (depth - 1)}}}").split(f'\n{" " * depth}"')
        if head != "{" or not members or not all(member.endswith(",") for member in members[:-1]):
            raise ValueError
        found: dict[str, Any] = {}
        for member in (*(member[:-1] for member in members[:-1]), members[-1]):
            name, _, value = member.partition('": ')
            if name in ("config", "outcome") and value.startswith("{\n"):
                found[name] = self._members(value, depth + 1)
            elif depth == 1 and name not in ("described", "versions", "git"):
                found |= decode(f'{{"{member}}}')
            else:
                if member not in self._texts:
                    read = decode(f'{{"{member}}}')
                    self._texts[member] = {key: self._shared(part) for key, part in read.items()}
                found |= self._texts[member]
        return found

    def describe(self, metrics: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> dict[str, Metric]:
        """Read what a result's metrics mean, see `descriptions`."""
        told = self._shared(told)
        place = (id(told), None if metrics.keys() <= told.keys() else folder, *metrics)
        if place not in self._described:
            self._described[place] = descriptions(metrics, told, folder, self._beside)
        return dict(self._described[place])

    def share(self, result: Result) -> None:
        """Replace the parts of a config and of the environment that an earlier result has too by those of that one."""
        result.config = {key: self._shared(part) for key, part in result.config.items()}
        for key, part in result.outcome.items():
            inner = {name: self._shared(value) for name, value in part.items()} if isinstance(part, dict) else None
            result.outcome[key] = self._shared(part) if inner is None else inner
        result.git, result.versions = self._shared(result.git), self._shared(result.versions)

    def _shared(self, part: Any) -> Any:
        if id(part) in self._kept:
            return part
        try:
            text = marshal.dumps(part, 2)  # equal texts are equal parts, with equal types
        except ValueError:  # nested too deep
            require_plain(part)
            raise
        if text not in self._parts:
            require_plain(part)
            self._parts[text] = part
            self._kept.add(id(part))
        return self._parts[text]


def _begins_as_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"schema_version"' in file.read(200)


def _candidates(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder.resolve()
        return
    if not folder.is_dir():
        raise InputError(f"no folder '{folder}': give a folder that holds result.json files, or a sweep's folder")
    unread: list[OSError] = []
    top = folder.resolve()
    for where, folders, files in os.walk(top, onerror=unread.append):
        here = Path(where)
        if "cells.txt" in files:
            folders.clear()
            listed = entries(here)
            yield from (here.parents[1] / "cells" / cell / "result.json" for cell in listed)
            yield from (here / f"cell {number}, to come" for number in range(len(listed), plan(here).total or 0))
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [here / name for name in folders if (here / name).is_symlink()]  # which os.walk does not follow
        yield from (link for link in links if not link.resolve().is_relative_to(top))
        yield from (
            here / name for name in sorted(files) if name.endswith(".json") and name not in ("sweep.json", DESCRIBED)
        )
    yield from (Path(error.filename) for error in unread)
