"""Prompts, and pairs of prompt and response, read from files of many formats with a column map and a filter."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import logging
import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from fairpriv.config.schema import nearest
from fairpriv.data.sources import Source
from fairpriv.data.spelling import unnamed
from fairpriv.errors import InputError, how_many

log = logging.getLogger(__name__)

_CONDITIONS: dict[str, Callable[[str, list[str]], bool]] = {
    "in": lambda value, listed: _whole(value) in map(_whole, listed),
    "not_in": lambda value, listed: _whole(value) not in map(_whole, listed),
    "contains": lambda value, parts: any(part.casefold() in value.casefold() for part in parts),
    "not_contains": lambda value, parts: not any(part.casefold() in value.casefold() for part in parts),
}


@dataclass(frozen=True)
class Example:
    """A prompt, and its response where there is one."""

    prompt: str  # of a conversation the text, each message after who says it
    response: str | None
    row: str  # where it was read, as 'pairs.csv, line 12'
    fields: dict[str, Any] = field(default_factory=dict, hash=False)  # by name, what further columns hold
    messages: list[dict[str, str]] = field(default_factory=list, hash=False)  # of a conversation, the user's last
    rejected: Example | None = field(default=None, hash=False)  # whose response is to be less likely than this one

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """What a model is asked: the conversation where there is one."""
        return self.messages or self.prompt


_examples: dict[tuple[str, ...], list[Example]] = {}  # by content, and the paths that messages name


@dataclass
class Texts:
    """Description of a set of prompts or pairs, and its reader.

    The ending of a file tells its format: .csv, .tsv, .jsonl or .ndjson (one object a line), .json (a list of objects),
    .txt (one prompt a line, in a column ``prompt``), each also packed as .gz, and .parquet. All are UTF-8. Dots name a
    column inside another: ``category.privacy_violation``. Where a .json file is not a list, ``under`` names the lists
    inside it in the same way; they are read one after another. A .txt file that is no prompt a line is read by
    ``pattern``, a regular expression whose matches are the rows and whose named groups their columns.

    ``columns`` names a column for ``prompt``, for pairs one for ``response``, and one for anything else a scorer reads.
    Several columns together give the list of their values, up to the last that is not empty. A prompt is a text, or a
    conversation: a list of ``{role: system | user | assistant, content: text}`` whose last message is the user's.
    ``template`` is what a model is asked, with ``{prompt}`` in it, such as a jailbreak; of a conversation it is about
    the last message. Judges and records keep to the prompt alone.

    ``where`` keeps the rows that fulfil every condition: a value, a list of values, or some of
    ``{in: [...], not_in: [...], contains: text or [...], not_contains: text or [...]}``. Values are compared as text
    (1, 1.0, "1" and "1.0" are the same, and so are true and "True"; a list is its items, joined by commas), and parts
    of a text without regard to case. A row whose value is null, NaN or absent is left out.
    """

    kind: ClassVar[str] = "texts"

    source: Source
    columns: dict[str, str | list[str]]  # name: the column of the files that holds it
    where: dict[str, Any] = field(default_factory=dict)  # column: condition
    under: list[str] = field(default_factory=list)  # where the rows lie in a .json file that is no list
    pattern: str | None = None  # of a row of a .txt file; None: a line each
    template: str | None = None  # what is asked, with {prompt} in it; None: the prompt

    def __post_init__(self) -> None:
        for name in ("prompt", "response"):
            if isinstance(self.columns.get(name), list):
                raise InputError(f"columns.{name}={self.columns[name]}: must be one column")
        if self.template is not None and ("{prompt}" not in self.template or "prompt" not in self.columns):
            raise InputError(f"template={self.template!r}: must hold {{prompt}}, and columns must name a prompt")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groupindex
            except re.error as error:
                raise InputError(f"pattern={self.pattern!r}: is no regular expression: {error}") from None
            if not groups:
                raise InputError(f"pattern={self.pattern!r}: names no column: write one as (?P<prompt>...)")
        for column, condition in self.where.items():
            if condition is None:
                raise InputError(f"where.{column} has no value: give the value wanted, or conditions")
            for name in condition if isinstance(condition, Mapping) else ():
                if name not in _CONDITIONS:
                    raise InputError(
                        f"where.{column}.{name}: there is no such condition, only {', '.join(_CONDITIONS)}"
                    )

    def takes(self, required: Sequence[str], optional: Sequence[str], where: str) -> None:
        """Raise `InputError` unless ``columns`` names everything required, and nothing but required and optional names.

        Args:
            required: names that the reader needs.
            optional: further names that it knows.
            where: the config key of these texts, for the message.
        """
        known = [*required, *optional]
        for name in self.columns:
            if name not in known:
                raise InputError(
                    f"{where}.columns.{name}: there is no such name{nearest(name, known)}; it takes {', '.join(known)}"
                )
        if missing := [name for name in required if name not in self.columns]:
            named = ", ".join(self.columns) or "nothing"
            raise InputError(
                f"{where}.columns names no {missing[0]}, only {named}; it takes {', '.join(known)}{self._there()}"
            )

    def load(self) -> list[Example]:
        """Read the rows that `where` keeps, in the files' order; raise an `InputError` that names file and line.

        Unchanged files are read once a process, since a sweep asks in every cell.
        """
        paths = self.source.locate()
        key = (f"{type(self).__module__}.{type(self).__qualname__}", self.digest(), *map(str, paths))
        if key not in _examples:
            _examples[key] = self._load(paths)
        return list(_examples[key])

    def digest(self) -> str:
        """Hash the files' content and all that tells how they are read."""
        more = {name: value for name in ("pattern", "template") if (value := getattr(self, name)) is not None}
        told = [self.source.digest(), self.columns, self.where, self.under, *([more] if more else [])]
        described = json.dumps(told, sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()

    def table(self) -> dict[str, list[Any]]:
        """Return columns by the names in ``columns``, None where empty, and as ``row`` where each row was read."""
        table: dict[str, list[Any]] = {name: [] for name in ("row", *self.columns)}
        for where, row in self._rows(self.source.locate()):
            table["row"].append(where)
            for name, column in self.columns.items():
                value = _value(row, str(column))
                table[name].append(None if _empty(value) else value)
        return table

    def _load(self, paths: Sequence[Path]) -> list[Example]:
        examples = []
        for where, row in self._rows(paths):
            told = {name: _held(row, column, where) for name, column in self.columns.items()}
            messages = _messages(told, where)
            prompt, response = (_text(told, name, self.columns, where) for name in ("prompt", "response"))
            if self.template is not None and prompt is not None:
                last = messages[-1]["content"] if messages else prompt
                messages = [*messages[:-1], {"role": "user", "content": self.template.replace("{prompt}", last)}]
            examples.append(Example(prompt or "", response, where, told, messages))
        return examples

    def _rows(self, paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows that ``where`` keeps, at least one, and where each was read."""
        kept = total = 0
        values: dict[str, Counter[str]] = {column: Counter() for column in self.where}
        for path in paths:
            rows = _read(path, self.under, self.pattern)
            total += len(rows)
            self._require(path, [row for _, row in rows])
            for place, row in rows:
                for column, counts in values.items():
                    if (value := _value(row, column)) is not None and value is not _ABSENT:
                        counts[_spelling(value)] += 1
                if self._keeps(row):
                    kept += 1
                    yield f"{path.name}, {place}", row
        self._tell_of_spellings(values)
        if not kept:
            files = ", ".join(path.name for path in paths)
            raise InputError(f"where: none of the {total} rows of {files} is left; it asks for {self.where}")

    def _tell_of_spellings(self, values: Mapping[str, Counter[str]]) -> None:
        """Warn of values that hardly differ from one that ``where`` names, and are not named."""
        for column, condition in self.where.items():
            conditions = condition if isinstance(condition, Mapping) else {"in": condition}
            for operand in (conditions[name] for name in ("in", "not_in") if name in conditions):
                listed = {_whole(_spelling(item)) for item in (operand if isinstance(operand, list) else [operand])}
                for odd in unnamed({_whole(value) for value in values[column]}, listed):
                    log.warning(
                        "where.%s does not name %s (%s), which differs in spelling only from what it names",
                        column,
                        repr(odd),
                        how_many(sum(n for value, n in values[column].items() if _whole(value) == odd), "row"),
                    )

    def _require(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        wanted = [
            (f"columns.{name}", column)
            for name, columns in self.columns.items()
            for column in (columns if isinstance(columns, list) else [columns])
        ]
        wanted += [(f"where.{column}", column) for column in self.where]
        for key, column in wanted:
            if all(_value(row, column) is _ABSENT for row in rows):
                there = _names(rows)
                near = get_close_matches(column, there)
                hint = f"the nearest is {' or '.join(near)}; " if near else ""
                raise InputError(f"{key}: no column '{column}' in {path.name}; {hint}there are {_shown(there)}")

    def _there(self) -> str:
        """Name the first file's columns for a message, where it can be read."""
        with contextlib.suppress(InputError, OSError):
            path = self.source.locate()[0]
            return f"; {path.name} has {_shown(_names([row for _, row in _read(path, self.under, self.pattern)]))}"
        return ""

    def _keeps(self, row: Mapping[str, Any]) -> bool:
        for column, condition in self.where.items():
            value = _value(row, column)
            if value is None or value is _ABSENT:
                return False
            conditions = condition if isinstance(condition, Mapping) else {"in": condition}
            for name, operand in conditions.items():
                listed = [_spelling(item) for item in (operand if isinstance(operand, list) else [operand])]
                if not _CONDITIONS[name](_spelling(value), listed):
                    return False
        return True


def choose(examples: Sequence[Example], n: int | None, seed: int, *, key: str = "dataset.samples") -> list[Example]:
    """Take the first ``n`` of a seeded permutation, so that a smaller ``n`` gives a prefix; ``None`` takes all.

    Raises:
        InputError: there are fewer than asked for; names ``key``, the config key that asks.
    """
    if n is not None and n < 1:
        raise InputError(f"{key}={n}: must be at least 1, or null for all")
    if n is not None and n > len(examples):
        where = examples[0].row.partition(",")[0] if examples else "it"
        raise InputError(f"{key}={n}: there are {len(examples)} in {where}")
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    return [examples[i] for i in order[:n]]


def mix(sets: Mapping[str, Sequence[Example]], shares: Mapping[str, float], n: int, seed: int) -> list[Example]:
    """Draw ``n`` examples from several sets by their shares, and shuffle them together.

    Shares need not sum to one. Counts follow the largest remainder, with ties to the set named first; `choose` draws
    them.
    """
    unknown = [name for name in shares if name not in sets]
    if unknown:
        raise InputError(f"mix: no set {', '.join(unknown)}; there are {', '.join(sets)}")
    total = sum(shares.values())
    if any(share < 0 for share in shares.values()) or not 0 < total < math.inf:
        raise InputError(f"mix: shares {dict(shares)} must be at least 0, and not all of them 0")
    quotas = {name: n * share / total for name, share in shares.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: counts[name] - quotas[name])
    for name in by_remainder[: n - sum(counts.values())]:
        counts[name] += 1
    mixed: list[Example] = []
    for name, count in counts.items():
        if count > len(sets[name]):
            raise InputError(f"mix.{name}: asked for {count} of {n}, there are {len(sets[name])} (dataset.samples)")
        mixed += choose(sets[name], count, seed) if count else []
    random.Random(seed).shuffle(mixed)
    return mixed


_ABSENT = object()


def _value(row: Mapping[str, Any], column: str) -> Any:
    """Return a row's value in a column, whose dots may be in its name or lead inside another; else ``_ABSENT``."""
    if column in row:
        value = row[column]
        return None if isinstance(value, float) and math.isnan(value) else value
    outer, dot, inner = column.partition(".")
    return _value(row[outer], inner) if dot and isinstance(row.get(outer), Mapping) else _ABSENT


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the columns that any row has; dots name one inside another."""
    found: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            inside = [f"{name}.{inner}" for inner in _names([value])] if isinstance(value, Mapping) else [name]
            found |= dict.fromkeys(inside)
    return list(found)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def _held(row: Mapping[str, Any], column: str | list[str], where: str) -> Any:
    """Return a row's value in a column, or values in several; raise `InputError` if all are empty."""
    columns = column if isinstance(column, list) else [column]
    values = ["" if _empty(value := _value(row, name)) else value for name in columns]
    while values and values[-1] == "":
        values.pop()
    if not values:
        raise InputError(f"{where}: '{', '.join(columns)}' is empty; fill it in, or leave the row out by where")
    return values if isinstance(column, list) else values[0]


def _empty(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else value is None or value is _ABSENT or value == []


def _messages(told: dict[str, Any], where: str) -> list[dict[str, str]]:
    """Return the messages of a prompt that is a conversation, and leave its text in their place."""
    turns = told.get("prompt")
    if isinstance(turns, str) and re.match(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""", turns):
        raise InputError(
            f"{where}: its prompt is a conversation written as text: .jsonl, .json and .parquet hold lists"
        )
    if not isinstance(turns, list):
        return []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise InputError(f"{where}: message {number} of its prompt is not {{role: ..., content: text}}")
        role, known = turn.get("role"), ("user", "assistant") if number > 1 else ("system", "user", "assistant")
        if role not in known:
            raise InputError(f"{where}: message {number} of its prompt has the role {role}, not {' or '.join(known)}")
        if not turn["content"].strip():
            raise InputError(f"{where}: message {number} of its prompt is empty")
    if turns[-1]["role"] != "user":
        raise InputError(f"{where}: the last message of its prompt is not the user's: there is nothing to answer")
    messages = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in turns]
    said = [f"{turn['role']}: {turn['content']}" for turn in messages]
    told["prompt"] = messages[0]["content"] if len(messages) == 1 else "\n\n".join(said)
    return messages


def _text(told: dict[str, Any], name: str, columns: Mapping[str, Any], where: str) -> str | None:
    """Remove and return a text from what was read, if it is there."""
    value = told.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: '{columns[name]}' holds a {type(value).__name__}, not text")
    return value


def _spelling(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_spelling(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    spelled = str(value).strip()
    return spelled.lower() if spelled.lower() in ("true", "false") else spelled


def _whole(spelled: str) -> str:
    """Spell a whole number without decimals, as tables write codes beside empty cells."""
    return re.sub(r"\A([+-]?[0-9]+)\.0*\Z", r"\1", spelled)


_Rows = list[tuple[str, dict[str, Any]]]  # place in the file, as 'line 12', and the row's columns


def _read(path: Path, under: Sequence[str], pattern: str | None) -> _Rows:
    packed = path.suffix.lower() == ".gz"
    ending = Path(path.stem if packed else path.name).suffix.lower()
    if ending == ".parquet" and not packed:
        rows = _parquet(path)
    elif ending == ".json":
        rows = _json(_decoded(path, packed), path, under)
    elif ending == ".txt" and pattern is not None:
        rows = _matches(_decoded(path, packed), path, pattern)
    elif ending in _READERS:
        rows = _READERS[ending](_decoded(path, packed), path)
    else:
        known = ", ".join([".parquet", *_READERS, ".json"])
        raise InputError(f"{path}: not a known format; it may end in {known}, or these and .gz")
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def _decoded(path: Path, packed: bool) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line} is not UTF-8 ({error.reason}): save the file as UTF-8") from error
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def _separated(text: str, path: Path, delimiter: str = ",") -> _Rows:
    # strict: a quote that is never closed is an error, and does not swallow the rest of the file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: _Rows = []
    header: list[str] = []
    line = 1  # on which the next record begins; quoted fields may span several
    try:
        for values in reader:
            begins, line = line, reader.line_num + 1
            if not values:
                continue
            if not header:
                header = [name.strip() for name in values]
                twice = {name for name in header if header.count(name) > 1}
                if twice:
                    raise InputError(f"{path} has two columns '{min(twice)}': rename one of them in the file")
                continue
            if len(values) != len(header):
                raise InputError(f"{path}, line {begins} has {len(values)} fields, its header {len(header)}")
            rows.append((f"line {begins}", dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path}, line {line} cannot be read: {error}") from error
    return rows


def _tab_separated(text: str, path: Path) -> _Rows:
    return _separated(text, path, "\t")


def _json_lines(text: str, path: Path) -> _Rows:
    rows: _Rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_once)
            except ValueError as error:
                raise InputError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} is not an object: one {{...}} a line is wanted")
            rows.append((f"line {number}", row))
    return rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; raise ValueError for a key that stands twice, of which one would win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' stands twice in an object")
    return found


def _json(text: str, path: Path, under: Sequence[str]) -> _Rows:
    try:
        whole = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; one object a line is .jsonl") from error
    lists = {f" of {key}": _value({"": whole}, f".{key}") for key in under} or {"": whole}
    found: _Rows = []
    for place, rows in lists.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            inside = "" if under else "; under names a list inside it"
            raise InputError(f"{path}{place} is not a list of objects: [{{...}}, ...] is wanted{inside}")
        found += [(f"item {number}{place}", row) for number, row in enumerate(rows, start=1)]
    return found


def _lines(text: str, path: Path) -> _Rows:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    rows: _Rows = [(f"line {number}", {"prompt": line}) for number, line in enumerate(lines, start=1) if line.strip()]
    where, first = rows[0]
    names = [name.strip(' "') for name in re.split("[,\t]", first["prompt"])]
    if "prompt" in names and all(re.fullmatch(r"\w+", name) for name in names):
        # As a table it has the same bytes, and a cell's id does not tell how they were read.
        raise InputError(
            f"{path}, {where} is {first['prompt'].strip()!r}, as a table begins: name the file .csv or .tsv, or leave "
            "that line out"
        )
    return rows


def _matches(text: str, path: Path, pattern: str) -> _Rows:
    found = [*re.finditer(pattern, text)]
    if not found:
        raise InputError(f"{path}: nothing in it matches the pattern {pattern!r}")
    if rest := sum(bool(line.strip()) for line in re.sub(pattern, "", text).splitlines()):
        log.warning("%s: the pattern passes over %s of no row", path, how_many(rest, "line"))
    return [(f"line {text.count(chr(10), 0, one.start()) + 1}", one.groupdict()) for one in found]


def _parquet(path: Path) -> _Rows:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(f"{path}: reading parquet needs pyarrow: `pip install pyarrow`") from error
    try:
        rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise InputError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


_READERS: dict[str, Callable[[str, Path], _Rows]] = {
    ".csv": _separated,
    ".tsv": _tab_separated,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".txt": _lines,
}
