"""``result.json``, the record of a cell: writing it whole, and finding it again."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fairpriv.earlier import earlier
from fairpriv.errors import InputError
from fairpriv.metrics import Measured, Metric, read_metric
from fairpriv.secrets import masked, without_secrets

SCHEMA_VERSION = 1
LARGEST = 8_000_000  # bytes of a file; a result has some ten thousand
NOT_FINISHED = "not finished"
_LARGEST_NUMBER = 1e100


@dataclass
class Result:
    """Record of one cell. The file holds these fields by name; NaN and infinities are null in it and None here.

    For metrics that are magnitudes, such as an absolute gap, ``signed`` holds the signed differences behind them, a row
    each: the metric is its base (0 for a gap, one half for a folded AUC) plus the largest magnitude of its rows. The
    magnitude of a row of one number is its absolute value. A row of several numbers is the difference of two
    distributions over the classes, and its magnitude their total variation, half the sum of absolute values. Intervals
    over seeds need these rows, since an interval of the magnitudes themselves never covers zero difference.
    """

    id: str
    status: str  # completed | failed
    config: dict[str, Any]  # resolved, secrets removed
    metrics: dict[str, float | None]
    described: dict[str, Metric] = field(default_factory=dict)  # what each of the metrics means
    outcome: dict[str, Any] = field(default_factory=dict)  # what the id is the hash of; older files have none
    degenerate: list[str] = field(default_factory=list)  # why the outcome is trivial, one sentence each
    error: str | None = None
    intervals: dict[str, list[float | None]] = field(default_factory=dict)  # [lo, hi], 95 %
    signed: dict[str, list[list[float]]] = field(default_factory=dict)  # the same rows in the same order at every seed
    control: str | None = None  # why the training rows do not depend on the training world, so that there is no leak
    overlap: float | None = None  # test rows per training row, where seeds are overlapping splits of one data set
    artifacts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    device: str = ""
    seconds: dict[str, float | None] = field(default_factory=dict)  # by stage
    schema_version: int = SCHEMA_VERSION
    folder: Path | None = field(default=None, compare=False)  # where it was found, with its artifacts; not in the file

    @property
    def reason(self) -> str:
        """Why the cell failed, on one line, after the name of the stage in which it failed."""
        stage = [list(self.seconds)[-1]] if self.seconds else []
        return ": ".join([*stage, " ".join((self.error or "").split())])

    def metric(self, name: str) -> Metric:
        """Describe one of the metrics, from the file or, where that says nothing, as an earlier version meant it."""
        return self.described.get(name) or earlier(name, self.metrics.get(name), self.metrics)

    def add(self, measured: Measured) -> None:
        """Add the measurements of a part of the cell.

        Raises:
            ValueError: the result already has one of the metrics.
        """
        if doubles := sorted(self.metrics.keys() & measured.metrics.keys()):
            raise ValueError(f"{', '.join(doubles)}: measured twice")
        self.metrics |= measured.metrics
        self.intervals |= {name: list(ends) for name, ends in measured.intervals.items()}
        self.signed |= measured.signed
        self.degenerate += measured.degenerate
        self.described |= measured.described

    def write(self, path: Path) -> None:
        """Write the file whole or not at all, without secrets; after a failure the former file is still there."""
        document = {"schema_version": self.schema_version, **asdict(self)}
        document["described"] = {name: metric.plain() for name, metric in self.described.items()}
        document |= {"config": without_secrets(self.config), "outcome": without_secrets(self.outcome)}
        document |= {"error": masked(self.error) if self.error else self.error}
        del document["folder"]
        write_whole(path, (json.dumps(_finite(document), indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read one file.

        Raises:
            InputError: it cannot be read, is truncated, or is not a result of this schema version; says which.
        """
        try:
            return _result(_document(path), path.parent)
        except _NotOursError as error:
            raise InputError(f"{path}: {error}") from None


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the details of an analysis beside a result, one JSON object a line; whole or not at all."""
    lines = [json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) for row in rows]
    write_whole(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the output of :func:`write_rows`; return nothing where there is no such file, or a line is damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, RecursionError):
        return []
    return rows if all(isinstance(row, dict) for row in rows) else []


class _NotOursError(Exception):
    """The reason why a file is not a result."""


def _document(path: Path) -> Any:
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise _NotOursError(f"{size / 1e6:.0f} MB: no result is that large")
        return json.loads(path.read_bytes(), parse_constant=lambda _: None, parse_float=_finite_or_none)
    except OSError as error:
        raise _NotOursError(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _NotOursError(f"truncated or not JSON ({error})") from None


def _result(document: Any, folder: Path) -> Result:
    if not isinstance(document, dict) or "schema_version" not in document:
        raise _NotOursError("no result of fairpriv: it has no schema_version")
    if document["schema_version"] != SCHEMA_VERSION:
        said = repr(document["schema_version"])[:40]
        raise _NotOursError(f"schema version {said}; this fairpriv reads {SCHEMA_VERSION}")
    required = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in document]:
        raise _NotOursError(f"incomplete: it has no {', '.join(missing)}")
    for name, (wanted, holds) in _SHAPES.items():
        if name in document and not holds(document[name]):
            raise _NotOursError(f"{name} should be {wanted}, not {json.dumps(document[name])[:60]}")
    if re.fullmatch(r"cells/[0-9a-f]{16}", "/".join(folder.parts[-2:])) and folder.name != document["id"]:
        raise _NotOursError(f"it is of cell {document['id'][:40]}: it has come here from another folder")
    known = {f.name: document[f.name] for f in fields(Result) if f.name in document}
    metrics, told = document["metrics"], document.get("described", {})
    described = {name: _metric(name, told[name]) for name in metrics if name in told}
    return Result(**known | {"described": described, "folder": folder})


def _metric(name: str, told: Any) -> Metric:
    """Read a metric's description from a result; equal descriptions are one object."""
    try:
        return _shared_metric(name, tuple(told.items()))
    except (AttributeError, TypeError):  # no mapping, or one that holds lists
        raise _NotOursError(f"described: what it says of {name[:60]} is no description of a metric") from None


@functools.cache
def _shared_metric(name: str, told: tuple[tuple[str, Any], ...]) -> Metric:
    metric = read_metric(name, dict(told))
    if metric is None:
        raise TypeError
    return metric


def _number(value: Any) -> bool:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False  # it cannot be used in computations
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) and row and all(map(_number, row)) for row in value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


_SHAPES = {
    "id": ("a string", _text),
    "status": ("completed or failed", lambda v: v in ("completed", "failed")),
    "config": ("a mapping", _dict),
    "outcome": ("a mapping", _dict),
    "metrics": ("a mapping of names to numbers", lambda v: _dict(v) and all(map(_number, v.values()))),
    "described": ("a mapping", _dict),
    "degenerate": ("a list of sentences", lambda v: isinstance(v, list) and all(map(_text, v))),
    "error": ("a string or null", lambda v: v is None or _text(v)),
    "intervals": ("a mapping of names to [lo, hi]", lambda v: _dict(v) and all(map(_interval, v.values()))),
    "signed": ("a mapping of names to rows of numbers", lambda v: _dict(v) and all(map(_rows, v.values()))),
    "control": ("a string or null", lambda v: v is None or _text(v)),
    "overlap": ("a number of at least 0 or null", lambda v: v is None or (_number(v) and v >= 0)),
    "artifacts": ("a mapping of names to strings", lambda v: _dict(v) and all(map(_text, v.values()))),
    "versions": ("a mapping of names to strings", lambda v: _dict(v) and all(map(_text, v.values()))),
    "git": ("a mapping or null", lambda v: v is None or _dict(v)),
    "device": ("a string", _text),
    "seconds": ("a mapping of stages to numbers", lambda v: _dict(v) and all(map(_number, v.values()))),
}


def _finite_or_none(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by temporary file, fsync and rename, so that a reader sees either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # after a full disk as after Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
    # Some network file systems refuse to sync a folder; the file itself is safe by then.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def find_results(folders: Sequence[Path]) -> tuple[list[Result], list[tuple[Path, str]]]:
    """Find every result below the folders, oldest file first, and the files left out with the reason.

    A folder with ``cells.txt`` is a sweep. Its results are those of the ids in it, in ``cells/`` two folders up, and
    the reason for a missing one is ``NOT_FINISHED``, also for cells that the sweep has not come to. Elsewhere any
    ``*.json`` with our schema version counts. Other JSON files are ignored silently unless they are called
    ``result.json``. A cell found twice counts once; a completed one is preferred.

    Raises:
        InputError: a folder does not exist.
    """
    found: dict[str, tuple[bool, float, Result]] = {}
    skipped: dict[Path, str] = {}
    for path in dict.fromkeys(path for folder in folders for path in _candidates(folder)):
        if not path.exists():
            skipped[path] = NOT_FINISHED
            continue
        try:
            if path.name != "result.json" and path.stat().st_size > LARGEST and not _begins_as_ours(path):
                continue
            document = _document(path)
            foreign = not isinstance(document, dict) or "schema_version" not in document
            if foreign and path.name != "result.json":
                continue
            result = _result(document, path.parent)
            _require_computable(result)
        except _NotOursError as error:
            skipped[path] = str(error)
            continue
        rank = (result.status == "completed", path.stat().st_mtime, result)
        if result.id not in found or rank[:2] > found[result.id][:2]:
            found[result.id] = rank
    in_time = sorted(found.values(), key=lambda rank: (rank[1], rank[2].id))
    return [result for _, _, result in in_time], list(skipped.items())


def _begins_as_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"schema_version"' in file.read(200)


def _require_computable(result: Result) -> None:
    """Raise `_NotOursError` for numbers whose squares overflow a float, and for a config that is nested too deep."""
    ends = [(name, end) for name, interval in result.intervals.items() for end in interval]
    rows = [(name, value) for name, found in result.signed.items() for row in found for value in row]
    for name, value in (*result.metrics.items(), *ends, *rows, ("overlap", result.overlap), *result.seconds.items()):
        if value is not None and abs(value) > _LARGEST_NUMBER:
            raise _NotOursError(f"{name} is {value:.3g}: too large to compute with")
    level: list[Any] = [result.config, result.outcome, result.git]
    for _ in range(100):
        level = [v for node in level for v in (node.values() if isinstance(node, dict) else node or ())]
        if any(isinstance(value, int) and not _number(int(value)) for value in level):
            raise _NotOursError("its config holds a whole number that is too large to compute with")
        level = [value for value in level if isinstance(value, dict | list)]
    if level:
        raise _NotOursError("its config is nested more than 100 levels deep")


def _candidates(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder.resolve()
        return
    if not folder.is_dir():
        raise InputError(f"no folder '{folder}': give a folder that holds result.json files, or a sweep's folder")
    from fairpriv.sweep.listing import entries, plan

    for where, folders, files in os.walk(folder.resolve()):
        here = Path(where)
        if "cells.txt" in files:
            folders.clear()
            listed = entries(here)
            yield from (here.parents[1] / "cells" / cell / "result.json" for cell in listed)
            yield from (here / f"cell {number}, to come" for number in range(len(listed), plan(here).total or 0))
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(files) if name.endswith(".json") and name != "sweep.json")


_PACKAGES = ["fairpriv", "torch", "lightning", "torchmetrics", "hydra-core", "omegaconf", "wandb", "fairlearn", "numpy"]
_PACKAGES += ["pandas", "scipy", "scikit-learn", "transformers", "peft", "datasets", "lm-eval"]


@functools.cache
def environment() -> dict[str, str]:
    """Describe what can change a number beside config and code, without importing anything for it.

    The entries are the versions of Python and of the installed packages; ``processor``; and ``kernels``, the linear
    algebra of NumPy and PyTorch where they are imported. On another processor the same cell may give other numbers. The
    result is looked up once per process and must not be changed.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    found["processor"] = _processor()
    if kernels := _kernels():
        found["kernels"] = kernels
    return found


def _processor() -> str:
    """The processor's model as the system names it."""
    with contextlib.suppress(OSError):
        if named := re.search(
            r"^model name\s*:\s*(.*\S)", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE
        ):
            return named[1]
    return platform.processor() or platform.machine()


def _kernels() -> str:
    """Name the BLAS of NumPy and of PyTorch where imported, and the instructions that PyTorch's own kernels use."""
    found = []
    if numpy := sys.modules.get("numpy"):
        blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        found.append(f"numpy: {blas.get('name')} {blas.get('version')}")
    if torch := sys.modules.get("torch"):
        blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
        found.append(f"torch: {blas[1] if blas else 'BLAS unknown'}, {torch.backends.cpu.get_cpu_capability()}")
    return "; ".join(found)


@functools.cache
def git_state(folder: Path) -> dict[str, Any] | None:
    """Look up the commit of the repository around ``folder``, and whether its tracked files differ from it.

    The result is None outside a repository, before its first commit, or without git. It is looked up once per process.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
