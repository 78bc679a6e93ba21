"""What the cells of a table hold: how they are spelled, which are missing, which are numbers, and what looks odd."""

from __future__ import annotations

import csv
import io
import logging
import re
import unicodedata
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairpriv.errors import InputError

log = logging.getLogger(__name__)

# Words that people and programs write where there is no value, in small letters; cells are compared without blanks.
MISSING = ("", "null", "none", "na", "n/a", "#n/a", "nan", "<na>", "?", "empty")

_MOSTLY = 0.8  # share of cells that are numbers, above which the others are taken for slips
_FEW = 50  # rows: below, that all values of a column differ is no wonder
_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2}))([T ]\d{1,2}:\d{2}.*)?", re.ASCII
)
_UNIT = re.compile(r"USD|EUR|GBP|CHF|JPY|SEK|NOK|DKK|[%‰]")
_WHOLE = re.compile(r"([+-]?\d+)\.0*", re.ASCII)
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_GROUPED = (  # digits in threes, the mark between them, and the decimal one
    re.compile(r"[+-]?\d{1,3}(?:(?P<thousands>,)\d{3})+(\.\d*)?", re.ASCII),
    re.compile(r"[+-]?\d{1,3}(?:(?P<thousands>\.)\d{3})+(?P<decimal>,)\d+", re.ASCII),
    re.compile(r"[+-]?\d{1,3}(?:(?P<thousands>\.)\d{3}){2,}", re.ASCII),
    re.compile(r"[+-]?\d{1,3}(?:(?P<thousands>[ '\u2019\u00a0\u202f])\d{3})+(\.\d*|(?P<decimal>,)\d*)?", re.ASCII),
    re.compile(r"[+-]?\d*(?P<decimal>,)\d+", re.ASCII),
)


def text(value: Any) -> str:
    """The spelling under which a value is compared: 1, 1.0 and "1.0" are "1", blanks around it do not count."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    spelled = str(value).strip()
    whole = _WHOLE.fullmatch(spelled)
    return whole[1] if whole else spelled


def alike(names: Iterable[str]) -> list[list[str]]:
    """Those of the names that differ in case, blanks or the form of their letters only, together."""
    found: dict[str, list[str]] = {}
    for name in names:
        shown = "".join(c for c in unicodedata.normalize("NFKC", name) if c.isprintable() or c.isspace())
        found.setdefault(" ".join(shown.casefold().split()), []).append(name)
    return [sorted(same) for same in found.values() if len(same) > 1]


@dataclass(frozen=True)
class Notation:
    """How a file writes missing values and numbers."""

    missing: Collection[str]  # words, compared without case and blanks around
    decimal: str = "."
    thousands: str | None = None
    units: Sequence[str] = ()

    def read(self, column: pd.Series) -> pd.Series:
        """The column with NaN where it is missing: numbers where all the others are, else text without outer blanks."""
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            return column
        if column.dtype == object and column.map(lambda cell: isinstance(cell, list | dict | np.ndarray)).any():
            column = column.map(str)  # as parquet may hold
        if isinstance(column.dtype, pd.CategoricalDtype):
            codes, cells = column.cat.codes.to_numpy(), column.cat.categories
        else:
            codes, cells = pd.factorize(column)
        words = {word.strip().casefold() for word in self.missing}
        stripped = [str(cell).strip() for cell in cells]
        known = pd.Series([cell if cell.casefold() not in words else None for cell in stripped], dtype=object)
        if (numbers := self._numbers(known)) is not None:
            values = numbers
        elif {cell.casefold() for cell in known.dropna()} <= {"true", "false"}:
            values = known.map(str.capitalize, na_action="ignore")
        elif self.decimal == ".":
            values = known.map(text, na_action="ignore")
        else:
            values = known
        each = values.to_numpy()
        if (codes < 0).any():
            each = np.append(each, np.nan)  # where -1 points to
        return pd.Series(each[codes], index=column.index, name=str(column.name))

    def _numbers(self, known: pd.Series) -> pd.Series | None:
        """Read cells as numbers, missing ones as NaN; None where one of them is no number."""
        numbers = None
        for part in (known.iloc[:100], known):  # most columns of text show in a few cells that they are
            numbers = pd.to_numeric(part.map(self._plain, na_action="ignore"), errors="coerce")
            if (numbers.isna() & part.notna()).any():
                return None
        return numbers

    def _plain(self, cell: str) -> str:
        for unit in self.units:
            cell = cell.replace(unit, "")
        if self.thousands:
            cell = cell.replace(self.thousands, "")
        return cell.replace(self.decimal, ".").strip()


def refuse_odd_numbers(column: pd.Series, files: str, where: str = "dataset.categorical") -> None:
    """Raise `InputError` where a column of text holds numbers but for a few cells; says which, and what would mend it.

    Args:
        column: text, as `Notation.read` leaves it, or numbers, which pass.
        files: where it was read.
        where: the config key that takes the column as it is.
    """
    if pd.api.types.is_numeric_dtype(column):
        return
    counts = column.value_counts()
    written = [_written(str(cell)) for cell in counts.index]
    odd = [found is None for found in written]
    if counts.empty or counts[odd].sum() > (1 - _MOSTLY) * counts.sum():
        return
    if remedy := notation(counts.index):
        raise InputError(f"column '{column.name}' of {files} {remedy}; or list it in {where}")
    cells = counts[odd]
    first = int(np.flatnonzero(column.isin(cells.index))[0]) + 1
    shown = ", ".join(f"'{cell}' ({count})" for cell, count in cells.head(5).items())
    more = f" and {len(cells) - 5} more" if len(cells) > 5 else ""
    raise InputError(
        f"column '{column.name}' of {files} is numeric but for {cells.sum()} of {counts.sum()} cells: {shown}{more}, "
        f"first in row {first}: mend them, add them to dataset.missing_values, or list the column in {where}"
    )


def notation(cells: Iterable[Any]) -> str | None:
    """What says that cells hold numbers as people write them, and how they can be read; None where none does."""
    found = [(str(cell), written) for cell in cells if (written := _written(str(cell)))]
    marks = {(kind, mark) for _, written in found for kind, mark in written}
    if not marks:
        return None
    if ("decimal", ",") in marks:  # 1,500 beside 2,5 is a decimal comma too
        marks.discard(("thousands", ","))
    example = next(cell for cell, written in found if written & marks)
    units = sorted(mark for kind, mark in marks if kind == "unit")
    what, settings = [], []
    if units:
        what.append(f"{'currency' if any(_is_currency(mark) for mark in units) else 'per cent'} signs")
        settings.append(f"dataset.units={units}")
    for kind, name in (("thousands", "thousands marks"), ("decimal", "decimal commas")):
        if several := sorted(mark for k, mark in marks if k == kind):
            what.append(name)
            settings.append(f"dataset.{kind}='{several[0]}'")
    if ("negative", "()") in marks:
        what.append("negative numbers in brackets")
        settings.append("a minus sign in the file instead of the brackets")
    return f"holds numbers with {' and '.join(what)}, as '{example}': set {' '.join(settings)}"


def _is_currency(mark: str) -> bool:
    return mark not in ("%", "‰")


def _written(cell: str) -> set[tuple[str, str]] | None:
    """How a number is written, nothing for a plain one; None for what is no number."""
    cell = cell.replace("\u2212", "-")
    marks: set[tuple[str, str]] = set()
    if inner := re.fullmatch(r"\((.*)\)", cell):
        cell = inner[1]
        marks.add(("negative", "()"))
    units = {c for c in cell if unicodedata.category(c) == "Sc"} | set(_UNIT.findall(cell))
    for unit in units:
        cell = cell.replace(unit, "")
        marks.add(("unit", unit))
    cell = cell.strip()
    if _PLAIN.fullmatch(cell):
        return marks
    for form in _GROUPED:
        if match := form.fullmatch(cell):
            return marks | {(kind, mark) for kind, mark in match.groupdict().items() if mark}
    return None


def oddities(frame: pd.DataFrame, target: str, sensitive: str) -> dict[str, list[str]]:
    """Columns that hardly describe a person: by what they look like, their names.

    Row numbers, unique ids, dates, and copies of the target or of the sensitive attribute under other values.

    Args:
        frame: columns as `Notation.read` leaves them.
        target: name of the label's column, which is in the frame.
        sensitive: likewise of the sensitive attribute.
    """
    found: dict[str, list[str]] = {}
    copied = {f"a copy of {name}": pd.factorize(frame[name])[0] for name in (target, sensitive)}
    for name in frame.columns:
        if name not in (target, sensitive) and (kind := _oddity(frame[name], copied)):
            found.setdefault(kind, []).append(str(name))
    return found


def _oddity(column: pd.Series, copied: dict[str, Any]) -> str | None:
    name = str(column.name)
    known = column.dropna()
    distinct = known.nunique()
    if re.fullmatch(r"(Unnamed: \d+(\.\d+)?(_level_\d+)?|__index_level_\d+__|)", name):
        return "row numbers"
    if distinct < 2:
        return None
    if pd.api.types.is_numeric_dtype(column):
        whole = bool((known == np.floor(known)).all())
        if whole and distinct == len(known) >= _FEW:
            return "row numbers" if known.max() - known.min() + 1 == len(known) else "unique ids"
    elif known.head(200).map(lambda cell: bool(_DATE.fullmatch(str(cell)))).mean() > _MOSTLY:
        return "dates"
    elif distinct >= 0.95 * len(known) and len(known) >= _FEW:
        return "unique ids"
    if len(known) < _FEW:
        return None
    own = pd.factorize(column)[0]
    for what, codes in copied.items():
        if distinct == (count := codes.max() + 1):
            both = (own >= 0) & (codes >= 0)
            pairs = pd.unique(own[both] * count + codes[both])
            if len(pairs) == distinct == len(pd.unique(codes[both])):
                return what
    return None


def profile(frame: pd.DataFrame, target: str, sensitive: str, categorical: Collection[str] = ()) -> Iterator[str]:
    """A line for every column: its kind, how many cells are missing, how many values differ, and what looks odd."""
    odd = {name: kind for kind, names in oddities(frame, target, sensitive).items() for name in names}
    for name in frame.columns:
        column = frame[name]
        kind = "numeric" if pd.api.types.is_numeric_dtype(column) and name not in categorical else "categorical"
        role = {target: ", the target", sensitive: ", the sensitive attribute"}.get(name, "")
        told = f"{name}: {kind}{role}, {int(column.isna().sum())} missing, {column.nunique()} distinct values"
        if name in odd:
            told += f"; looks like {odd[name]}"
        yield told


def content_of(path: Path) -> bytes:
    """A file's content, unpacked; of a zip file with several members, its only table.

    Raises:
        InputError: the zip file holds several tables, or none.
    """
    if path.suffix.lower() != ".zip":
        from pandas.io.common import get_handle  # type: ignore[import-not-found]

        with get_handle(path, "rb", compression="infer", is_text=False) as opened:
            return bytes(opened.handle.read())
    with zipfile.ZipFile(path) as packed:
        names = [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        tables = [name for name in names if Path(name).suffix.lower() in (".csv", ".tsv", ".txt", ".data", ".parquet")]
        wanted = names if len(names) == 1 else tables
        if len(wanted) != 1:
            shown = ", ".join(names[:5]) or "nothing"
            raise InputError(f"{path} holds {len(wanted)} tables, not one ({shown}): unpack it, and name the file")
        return packed.read(wanted[0])


def check_quotes(content: bytes, path: Path, separator: str, fields: int) -> None:
    """Raise `InputError` where a quotation mark swallows rows: a field that holds as many separators as lines would.

    Where a file's fields have line breaks anyway, a few that look so are only warned of.
    """
    if b'"' not in content or len(separator) != 1 or fields < 3:
        return
    lines = csv.reader(
        io.StringIO(content.decode("utf-8", "replace"), newline=""), delimiter=separator, skipinitialspace=False
    )
    swallowed, others, line = [], 0, 0
    try:
        for row in lines:
            begins, line = line + 1, lines.line_num
            if line == begins:
                continue
            for field in row:
                breaks = len(re.findall(r"\r\n|\r|\n", field))
                if breaks and field.count(separator) >= breaks * (fields - 1):
                    swallowed.append((begins, line))
                else:
                    others += breaks > 0
    except csv.Error:  # a field beyond the reader's limit
        swallowed.append((line + 1, lines.line_num))
    if not swallowed:
        return
    begins, ends = swallowed[0]
    told = (
        f"{path}, line {begins}: a quotation mark opens a field that ends in line {ends}, and what lies between looks "
        f"like {ends - begins} more rows: take the mark out, or double it"
    )
    if len(swallowed) > others:
        raise InputError(told)
    log.warning("%s", told)


def is_rectangular(content: bytes, separator: str, fields: int) -> bool:
    """Whether every line surely has as many fields as the header, as a count of separators shows it."""
    if len(separator) != 1 or b'"' in content:
        return False
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    return content.count(separator.encode()) == lines * (fields - 1)
