"""Finding the results below folders, and what is left out there."""

from __future__ import annotations

import functools
import marshal
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairpriv.errors import InputError
from fairpriv.result import (
    DESCRIBED,
    LARGEST,
    NotOursError,
    Result,
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
    ``result.json``. A cell found twice counts once; a completed one is preferred. What a result does not say of its
    metrics is read in ``described.json`` beside it.

    Raises:
        InputError: a folder does not exist.
    """
    found: dict[str, tuple[bool, float, Result]] = {}
    skipped: dict[Path, str] = {}
    parts: dict[bytes, Any] = {}
    described = functools.cache(shared_descriptions)
    for path in dict.fromkeys(path for folder in folders for path in _candidates(folder)):
        if not path.exists():
            skipped[path] = NOT_FINISHED
            continue
        try:
            if path.name != "result.json" and path.stat().st_size > LARGEST and not _begins_as_ours(path):
                continue
            document = parse(path)
            foreign = not isinstance(document, dict) or "schema_version" not in document
            if foreign and path.name != "result.json":
                continue
            result = from_document(document, path.parent, described)
            require_computable(result)
            _share(result, parts)
        except NotOursError as error:
            skipped[path] = str(error)
            continue
        rank = (result.status == "completed", path.stat().st_mtime, result)
        if result.id not in found or rank[:2] > found[result.id][:2]:
            found[result.id] = rank
    in_time = sorted(found.values(), key=lambda rank: (rank[1], rank[2].id))
    return [result for _, _, result in in_time], list(skipped.items())


def _share(result: Result, parts: dict[bytes, Any]) -> None:
    """Replace the parts of a config and of the environment that an earlier result has too by those of that one.

    The results of a sweep are alike in most of their parts, so that thousands of them take little memory, and whoever
    reads a part need not read it again.
    """

    def shared(part: Any) -> Any:
        try:
            text = marshal.dumps(part, 2)  # equal texts are equal parts, with equal types
        except ValueError:  # nested too deep
            require_plain(part)
            raise
        if text not in parts:
            require_plain(part)
            parts[text] = part
        return parts[text]

    result.config = {key: shared(part) for key, part in result.config.items()}
    result.outcome = {
        key: {name: shared(value) for name, value in part.items()} if isinstance(part, dict) else shared(part)
        for key, part in result.outcome.items()
    }
    result.git, result.versions = shared(result.git), shared(result.versions)


def _begins_as_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"schema_version"' in file.read(200)


def _candidates(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder.resolve()
        return
    if not folder.is_dir():
        raise InputError(f"no folder '{folder}': give a folder that holds result.json files, or a sweep's folder")
    for where, folders, files in os.walk(folder.resolve()):
        here = Path(where)
        if "cells.txt" in files:
            folders.clear()
            listed = entries(here)
            yield from (here.parents[1] / "cells" / cell / "result.json" for cell in listed)
            yield from (here / f"cell {number}, to come" for number in range(len(listed), plan(here).total or 0))
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            here / name for name in sorted(files) if name.endswith(".json") and name not in ("sweep.json", DESCRIBED)
        )
