"""``result.json``, the record of a cell: what it holds, writing it whole, and reading it; and what fills it."""

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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fairpriv.earlier import earlier
from fairpriv.errors import InputError
from fairpriv.identity import is_language_model
from fairpriv.metrics import Measured, Metric, read_metric
from fairpriv.secrets import masked, without_secrets

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

SCHEMA_VERSION = 1
DESCRIBED = "described.json"
LARGEST = 8_000_000  # bytes of a file; a result has some ten thousand
_LARGEST_NUMBER = 1e100


Stage = Callable[[str], contextlib.AbstractContextManager[None]]  # times what runs in it, under a name


class Cell(Protocol):
    """What cells of all tasks have in common."""

    def digests(self) -> dict[str, str]:
        """Hash the content of every input, by the config key of its place."""
        ...

    def measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        """Run the cell and write its outcome into ``result``; further files go to ``folder``."""
        ...


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
            InputError: the result already has one of the metrics, or a value is outside its metric's range.
        """
        measured.within_ranges()
        if doubles := sorted(self.metrics.keys() & measured.metrics.keys()):
            raise InputError(f"{', '.join(doubles)}: measured twice; give one of the two another name")
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
            return from_document(parse(path), path.parent)
        except NotOursError as error:
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


class NotOursError(Exception):
    """The reason why a file is not a result."""


def decode(text: str) -> Any:
    """Read JSON; numbers that are not finite are None."""
    # A function for each number takes its time, and only such numbers can be infinite.
    alike = text.encode("utf-8", "surrogatepass").translate(_ALIKE)
    # 200 digits and an exponent below 100 are below 1e308.
    large = b"e000" in alike or b"e+000" in alike or _LONG in alike
    return (_CAREFUL if large else _DECODER).decode(text)


def parse(path: Path, decode: Callable[[str], Any] = decode) -> Any:
    """Read a file that may be a result, its text by ``decode``; raise `NotOursError` where it is no JSON."""
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise NotOursError(f"{size / 1e6:.0f} MB: no result is that large")
        text = path.read_bytes()
        return decode(text.decode(json.detect_encoding(text), "surrogatepass"))
    except OSError as error:
        raise NotOursError(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise NotOursError(f"truncated or not JSON ({error})") from None


def shared_descriptions(folder: Path) -> dict[str, Any]:
    """Read what a folder's ``described.json`` says of metrics, by their names; return nothing where there is none.

    Results that lie together say the same of their metrics, which is most of their text: this file holds it once.
    Its entries are those of ``described`` in a result. Raise `NotOursError` where it is damaged.
    """
    if not (path := folder / DESCRIBED).is_file():
        return {}
    try:
        found = parse(path)
    except NotOursError as error:
        raise NotOursError(f"{DESCRIBED} beside it: {error}") from None
    if not isinstance(found, dict):
        raise NotOursError(f"{DESCRIBED} beside it should be a mapping of metrics to what they mean")
    return found


def descriptions(
    metrics: Mapping[str, Any],
    told: Mapping[str, Any],
    folder: Path,
    shared: Callable[[Path], Mapping[str, Any]] = shared_descriptions,
) -> dict[str, Metric]:
    """Read what a result in ``folder`` says of its metrics (``told``), and else what results there ``shared`` say."""
    if not metrics.keys() <= told.keys():
        told = {**shared(folder), **told}
    return {name: _metric(name, told[name]) for name in metrics if name in told}


def from_document(document: Any, folder: Path, describe: Callable[..., dict[str, Metric]] = descriptions) -> Result:
    """Make a result of the content of a file in ``folder``; raise `NotOursError` where it is none.

    ``describe`` reads the descriptions of its metrics, as `descriptions` does.
    """
    if not isinstance(document, dict) or "schema_version" not in document:
        raise NotOursError("no result of fairpriv: it has no schema_version")
    if document["schema_version"] != SCHEMA_VERSION:
        said = repr(document["schema_version"])[:40]
        raise NotOursError(f"schema version {said}; this fairpriv reads {SCHEMA_VERSION}")
    if missing := [name for name in _REQUIRED if name not in document]:
        raise NotOursError(f"incomplete: it has no {', '.join(missing)}")
    for name, (wanted, holds) in _SHAPES.items():
        if name in document and not holds(document[name]):
            raise NotOursError(f"{name} should be {wanted}, not {json.dumps(document[name])[:60]}")
    if re.fullmatch(r"cells/[0-9a-f]{16}", "/".join(folder.parts[-2:])) and folder.name != document["id"]:
        raise NotOursError(f"it is of cell {document['id'][:40]}: it has come here from another folder")
    known = {name: document[name] for name in _FIELDS if name in document}
    described = describe(document["metrics"], document.get("described", {}), folder)
    return Result(**known | {"described": described, "folder": folder})


def _metric(name: str, told: Any) -> Metric:
    """Read a metric's description from a result; equal descriptions are one object."""
    try:
        return _shared_metric(name, tuple(told.items()))
    except (AttributeError, TypeError):  # no mapping, or one that holds lists
        raise NotOursError(f"described: what it says of {name[:60]} is no description of a metric") from None


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


def _numbers(values: Iterable[Any]) -> bool:
    values = [*values]
    return set(map(type, values)) <= {float, type(None)} or all(map(_number, values))  # the first test is the fast one


def _intervals(values: Collection[Any]) -> bool:
    return all(isinstance(v, list) and len(v) == 2 for v in values) and _numbers(chain.from_iterable(values))


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) and row and _numbers(row) for row in value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


_SHAPES = {
    "id": ("a string", _text),
    "status": ("completed or failed", lambda v: v in ("completed", "failed")),
    "config": ("a mapping", _dict),
    "outcome": ("a mapping", _dict),
    "metrics": ("a mapping of names to numbers", lambda v: _dict(v) and _numbers(v.values())),
    "described": ("a mapping", _dict),
    "degenerate": ("a list of sentences", lambda v: isinstance(v, list) and all(map(_text, v))),
    "error": ("a string or null", lambda v: v is None or _text(v)),
    "intervals": ("a mapping of names to [lo, hi]", lambda v: _dict(v) and _intervals(v.values())),
    "signed": ("a mapping of names to rows of numbers", lambda v: _dict(v) and all(map(_rows, v.values()))),
    "control": ("a string or null", lambda v: v is None or _text(v)),
    "overlap": ("a number of at least 0 or null", lambda v: v is None or (_number(v) and v >= 0)),
    "artifacts": ("a mapping of names to strings", lambda v: _dict(v) and all(map(_text, v.values()))),
    "versions": ("a mapping of names to strings", lambda v: _dict(v) and all(map(_text, v.values()))),
    "git": ("a mapping or null", lambda v: v is None or _dict(v)),
    "device": ("a string", _text),
    "seconds": ("a mapping of stages to numbers", lambda v: _dict(v) and _numbers(v.values())),
}


_FIELDS = [f.name for f in fields(Result)]
_REQUIRED = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
# Text whose digits are all made equal is searched in a twentieth of the time of a regular expression.
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * 200


def _finite_or_none(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
_CAREFUL = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite_or_none)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def cell_name(config: Mapping[str, Any]) -> str:
    """Describe a cell in a few words for people."""
    names = [str(config[group]["name"]) for group in ("dataset", "model", "defense")]
    game = {} if is_language_model(config) else config.get("game", {})  # of before tasks, both had one
    world = f" world {game['world']}" if "world" in game else ""
    return f"{' '.join(names)}{world} seed {config['seed']}"


def write_whole(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write a file by temporary file, fsync and rename, so that a reader sees either the old file or the new one.

    Args:
        path: of the file.
        content: of the file, or what writes it to the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if callable(content):
            content(temporary)
        with temporary.open("ab") as file:
            if isinstance(content, bytes):
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


def require_computable(result: Result) -> None:
    """Raise `NotOursError` for numbers that cannot be: their squares overflow a float, or they have another range."""
    for name, metric in result.described.items():
        (low, high), value = metric.limits(), result.metrics[name]
        if value is not None and not low - 1e-6 <= value <= high + 1e-6:  # room for rounding
            raise NotOursError(f"{name} is {value:.6g}, outside its range [{low:g}, {high:g}]: damaged")
    own = (result.metrics.values(), result.seconds.values(), [result.overlap], *result.intervals.values())
    own += tuple(row for rows in result.signed.values() for row in rows)
    if max(map(abs, filter(None, chain.from_iterable(own))), default=0.0) <= _LARGEST_NUMBER:
        return
    ends = [(name, end) for name, interval in result.intervals.items() for end in interval]
    rows = [(name, value) for name, found in result.signed.items() for row in found for value in row]
    for name, value in (*result.metrics.items(), *ends, *rows, ("overlap", result.overlap), *result.seconds.items()):
        if value is not None and abs(value) > _LARGEST_NUMBER:
            raise NotOursError(f"{name} is {value:.3g}: too large to compute with")


def require_plain(part: Any) -> None:
    """Raise `NotOursError` for a part of a config that is nested too deep, or whose numbers cannot be computed with."""
    level: list[Any] = [[part]]
    for _ in range(100):
        level = [v for node in level for v in (node.values() if isinstance(node, dict) else node or ())]
        if any(isinstance(value, int) and not _number(int(value)) for value in level):
            raise NotOursError("its config holds a whole number that is too large to compute with")
        level = [value for value in level if isinstance(value, dict | list)]
    if level:
        raise NotOursError("its config is nested more than 100 levels deep")


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
    """Name the processor's model as the system does."""
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
