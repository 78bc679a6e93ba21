"""Read and check the cells of tables: their spelling, missing values, numbers, and oddities."""

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
from numpy.typing import NDArray

from fairpriv.data.spelling import trimmed
from fairpriv.errors import InputError, how_many, typed

log = logging.getLogger(__name__)

# Words that stand for a missing value, in small letters; cells are compared without outer blanks.
MISSING = ("", "null", "none", "na", "n/a", "#n/a", "nan", "<na>", "?", "empty")

_MOSTLY = 0.8  # share of cells that are numbers, above which the others are taken for mistakes
_FEW = 50  # rows; in fewer rows all values of a column may differ by chance
_REPEATED = 3  # cells; so many of one code for missing values are no chance
_CATEGORIES = 5  # distinct numbers; up to so many may be categories, as -1, 0 and 1
_SEVERAL = 20  # distinct cells; fewer, as 1st to 9th, may be categories that begin with a number
_FAR = 5  # times as large as any other number; so far beyond them 99 or 999 looks like a code
_EXACT = 2**53  # from here on a float does not hold every whole number
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})|\d{1,2}[-/.]\d{4}"
    rf"|(\d{{1,2}}[-/. ])?{_MONTH}[-/., ]+(\d{{4}}|\d{{2}})|{_MONTH} \d{{1,2}},? \d{{4}})([T ]\d{{1,2}}:\d{{2}}.*)?",
    re.ASCII | re.IGNORECASE,
)
_SIGN = re.compile(r"[A-Za-z]{0,3}([^\w\s])")  # of a currency, if the mark is one: as in R$ or US$
_UNIT = re.compile(
    r"(?<![^\W\d_])(USD|EUR|GBP|CHF|JPY|SEK|NOK|DKK|CAD|AUD|NZD|CNY|RMB|INR|BRL|MXN|ZAR|RUB|KRW|PLN|CZK|HUF|SGD|HKD"
    r"|Rs\.?|kr\.?|zł|Kč|euros?|dollars?)(?![^\W\d_])|[%‰]",
    re.IGNORECASE,
)
_MULTIPLES = ("k", "m", "mn", "mio", "million", "bn", "billion", "thousand", "lakh", "crore")
# What people write where they have no answer; some may be a group that is meant.
_NO_ANSWER = re.compile(
    r"[\W_]*|\(?null\)?|\\n|n\.?a\.?|nil|nat|-nan|#\w+[!?/]?|unknown|undefined|unspecified|refused|declined"
    r"|not (known|stated|specified|reported|recorded|available|given|disclosed|applicable)|no (answer|response|data)"
    r"|(prefer|wish)e?s? not to .*",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"([+-]?\d+)\.0*", re.ASCII)
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_GROUPED = (  # groups of three digits, the mark between them, and the decimal mark
    re.compile(r"[+-]?\d{1,3}(?:(?P<thousands>,)\d{3})+(\.\d*)?", re.ASCII),
    re.compile(r"[+-]?\d{1,3}(?:(?P<thousands>\.)\d{3})+(?P<decimal>,)\d+", re.ASCII),
    re.compile(r"[+-]?\d{1,3}(?:(?P<thousands>\.)\d{3}){2,}", re.ASCII),
    re.compile(r"[+-]?\d{1,2}(?:(?P<thousands>,)\d{2})+,\d{3}(\.\d*)?", re.ASCII),  # lakhs and crores
    re.compile(
        r"[+-]?\d{1,3}(?:(?P<thousands>[ '_\u2019\u00a0\u2009\u202f])\d{3})+(\.\d*|(?P<decimal>,)\d*)?", re.ASCII
    ),
    re.compile(r"[+-]?\d*(?P<decimal>,)\d+", re.ASCII),
)
_DOTTED = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)


def text(value: Any) -> str:
    """Spell a value as it is compared: 1, 1.0 and "1.0" become "1", and outer blanks are removed."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    spelled = trimmed(value)
    whole = _WHOLE.fullmatch(spelled)
    return whole[1] if whole else spelled


def without_answer(names: Iterable[str]) -> list[str]:
    """List the names that people write where they have no answer, such as "-" or "unknown", or 9 beside 1 and 2."""
    names = list(names)
    found = [name for name in names if _NO_ANSWER.fullmatch("".join(c for c in name if c.isprintable()).strip())]
    codes = {int(name): name for name in names if re.fullmatch(r"-?\d{1,9}", name, re.ASCII)}
    alone = [code for code in codes if code < 0 or (code - 1 not in codes and code > 3)]
    return found + [codes[code] for code in alone if re.fullmatch(r"-(1|7+|8+|9+)|9+[6-9]?|7+|8+", str(code))]


@dataclass(frozen=True)
class Notation:
    """How a file writes missing values and numbers."""

    missing: Collection[str]  # words, compared without case and outer blanks
    decimal: str = "."
    thousands: str | None = None
    units: Sequence[str] = ()

    def read(self, column: pd.Series, codes: bool = True) -> pd.Series:
        """Return the column, NaN where missing: as numbers if all others are, else as text without outer blanks.

        What `are_codes` finds is text, unless ``codes`` is False.
        """
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            whole = column[column.abs() >= _EXACT] if pd.api.types.is_integer_dtype(column) else column[:0]
            if whole.astype(np.float64).nunique() == whole.nunique():
                return column
        if column.dtype == object and column.map(lambda cell: isinstance(cell, list | dict | np.ndarray)).any():
            column = column.map(str)  # parquet files may hold such cells
        if isinstance(column.dtype, pd.CategoricalDtype):
            places, cells = column.cat.codes.to_numpy(), column.cat.categories
        else:
            places, cells = pd.factorize(column)
        words = {str(word).strip().casefold() for word in self.missing}
        stripped = [trimmed(cell) for cell in cells]
        known = pd.Series([cell if cell.casefold() not in words else None for cell in stripped], dtype=object)
        numbers = None if codes and are_codes(known.dropna()) else self._numbers(known)
        if numbers is not None and not (self.decimal == "." and not self.thousands and _dotted(known.dropna())):
            values = numbers
        elif {cell.casefold() for cell in known.dropna()} <= {"true", "false"}:
            values = known.map(str.capitalize, na_action="ignore")
        elif self.decimal == ".":
            values = known.map(text, na_action="ignore")
        else:
            values = known
        each = values.to_numpy()
        if (places < 0).any():
            each = np.append(each, np.nan)  # place -1 reads this last entry
        return pd.Series(each[places], index=column.index, name=str(column.name))

    def _numbers(self, known: pd.Series) -> pd.Series | None:
        """Read cells as numbers, missing ones as NaN; return None if one of them is not a number.

        Whole numbers that would become one as floats, as long ids do, are text.
        """
        numbers = None
        for part in (known.iloc[:100], known):  # the first cells of most text columns already show that they are text
            numbers = pd.to_numeric(part.map(self._plain, na_action="ignore"), errors="coerce")
            if (numbers.isna() & part.notna()).any():
                return None
        if numbers is not None and len(long := known[numbers.abs() >= _EXACT]):
            whole = {plain.lstrip("+0") for cell in long if re.fullmatch(r"[+-]?\d+", plain := self._plain(cell))}
            if len(set(map(float, whole))) < len(whole):
                return None
        return None if any(map(self.misplaced, known.dropna())) else numbers

    def misplaced(self, cell: str) -> bool:
        """Tell whether a mark stands where this notation has none: as in 2,5 where commas mark thousands.

        So does the point of 1.500 where a comma is the decimal mark, unless points mark thousands.
        """
        whole, _, rest = self._bare(cell).partition(self.decimal)
        if self.thousands and self.thousands in whole + rest:
            mark = re.escape(self.thousands)
            grouped = rf"[+-]?\d{{1,3}}({mark}\d{{2,3}})*{mark}\d{{3}}"
            return self.thousands in rest or not re.fullmatch(grouped, whole, re.ASCII)
        return self.decimal != "." and bool(_DOTTED.fullmatch(whole))

    def refuse_misplaced(self, column: pd.Series, files: str) -> None:
        """Raise `InputError` if a text column is one of numbers, some of which have a mark in the wrong place."""
        if pd.api.types.is_numeric_dtype(column):
            return
        counts = column.value_counts()
        written = {cell: found for cell in counts.index if (found := _written(str(cell))) is not None}
        wrong = [  # whatever else is odd about a cell is told by `refuse_odd_numbers`
            cell
            for cell, found in written.items()
            if not {"negative", "suffix"} & dict(found).keys() and self.misplaced(str(cell))
        ]
        if wrong and counts[[*written]].sum() >= _MOSTLY * counts.sum():
            raise InputError(
                f"column '{column.name}' of {files} holds '{wrong[0]}', which is no number where dataset.decimal="
                f"'{self.decimal}' and thousands={self.thousands and repr(self.thousands)}: set them otherwise, mend "
                "the cell, or list the column in dataset.categorical"
            )

    def _plain(self, cell: str) -> str:
        cell = self._bare(cell)
        if self.thousands:
            cell = cell.replace(self.thousands, "")
        return cell.replace(self.decimal, ".").strip()

    def _bare(self, cell: str) -> str:
        """Write a cell without units."""
        cell = _ascii(cell)
        for unit in self.units:
            cell = cell.replace(unit, "")
        return cell.strip()


def are_codes(cells: Collection[str]) -> bool:
    """Tell whether cells are digits of one width, some with a 0 in front, as ZIP codes are: 01234 is not 1234."""
    padded = any(len(cell) > 1 and cell[0] == "0" for cell in cells)
    return padded and len({*map(len, cells)}) == 1 and all(cell.isdecimal() for cell in cells)


def refuse_odd_numbers(column: pd.Series, files: str) -> None:
    """Raise `InputError` if a text column holds numbers in all but a few cells; it shows these cells and a remedy.

    Args:
        column: text, as `Notation.read` returns it, or numbers, which are accepted.
        files: where it was read, for errors.
    """
    if pd.api.types.is_numeric_dtype(column):
        return
    counts = column.value_counts()
    written = [_written(str(cell)) for cell in counts.index]
    suffixes = [mark.casefold() for found in written for kind, mark in found or () if kind == "suffix"]
    unit = len(suffixes) >= _SEVERAL and len(set(suffixes)) == 1
    odd = [found is None or (not unit and "suffix" in dict(found)) for found in written]
    few = sum(odd) <= _CATEGORIES and len(odd) - sum(odd) >= _SEVERAL  # such as "." for whoever did not answer
    if counts.empty or (counts[odd].sum() > (1 - _MOSTLY) * counts.sum() and not few):
        return
    if remedy := notation(counts.index[[not one for one in odd]]):
        raise InputError(f"column '{column.name}' of {files} {remedy}; or list it in dataset.categorical")
    cells = counts[odd]
    if cells.empty:  # long ids
        return
    first = int(np.flatnonzero(column.isin(cells.index))[0]) + 1
    shown = ", ".join(f"'{cell}' ({count})" for cell, count in cells.head(5).items())
    more = f" and {len(cells) - 5} more" if len(cells) > 5 else ""
    raise InputError(
        f"column '{column.name}' of {files} is numeric but for {cells.sum()} of {counts.sum()} cells: {shown}{more}, "
        f"first in row {first}: mend them, add them to dataset.missing_values, or list the column in "
        "dataset.categorical"
    )


def notation(cells: Iterable[Any]) -> str | None:
    """Describe how cells write numbers (thousands marks, units, ...) and the settings that read them.

    Returns:
        The text of an error, without its subject; None if no cell has such a number.
    """
    cells = [str(cell) for cell in cells]
    if _dotted(cells):
        example = next(cell for cell in cells if _DOTTED.fullmatch(cell))
        return (
            f"holds whole numbers beside numbers with three digits after a point, as '{example}': set "
            f"dataset.thousands=. {typed('dataset.decimal', ',')} if the point marks thousands, and "
            f"{typed('dataset.thousands', ',')} if not"
        )
    found = [(cell, written) for cell in cells if (written := _written(cell))]
    marks = {(kind, mark) for _, written in found for kind, mark in written}
    if not marks:
        return None
    if ("decimal", ",") in marks:  # next to 2,5 the comma in 1,500 is a decimal comma too
        marks.discard(("thousands", ","))
    example = next(cell for cell, written in found if written & marks)
    units = sorted(mark for kind, mark in marks if kind == "unit")
    what, settings = [], []
    if quotes := sorted(mark for kind, mark in marks if kind == "quote"):
        what.append("quotation marks")
    if units:
        what.append(f"{'currency' if any(_is_currency(mark) for mark in units) else 'per cent'} signs")
    if suffixes := sorted(mark for kind, mark in marks if kind == "suffix"):
        what.append(f"'{suffixes[0]}' behind them")
    if multiples := [mark for mark in suffixes if mark.casefold() in _MULTIPLES]:
        settings.append(f"the whole numbers in the file instead of '{multiples[0]}'")
    elif units or suffixes or quotes:
        settings.append(typed("dataset.units", units + suffixes + quotes))
    for kind, name in (("thousands", "thousands marks"), ("decimal", "decimal commas")):
        if several := sorted(mark for k, mark in marks if k == kind):
            what.append(name)
            settings.append(typed(f"dataset.{kind}", several[0]))
    for mark, where in (("()", "in brackets"), ("-", "with a minus sign behind them")):
        if ("negative", mark) in marks:
            what.append(f"negative numbers {where}")
            settings.append("the minus sign before them in the file")
    return f"holds numbers with {' and '.join(what)}, as '{example}': set {' '.join(settings)}"


def _is_currency(mark: str) -> bool:
    return mark not in ("%", "‰")


def _written(cell: str) -> set[tuple[str, str]] | None:
    """Return the marks with which a number is written, none for a plain one; None if the cell is not a number."""
    cell = _ascii(cell)
    marks: set[tuple[str, str]] = set()
    if inner := re.fullmatch(r"""(=?")(.*)"|(')([^']*)'?""", cell):  # ="12" keeps a spreadsheet from reading a number
        cell = inner[2] or inner[4] or ""
        marks |= {("quote", mark) for mark in inner[1] or inner[3]}
    if inner := re.fullmatch(r"\((.*)\)", cell):
        cell = inner[1]
        marks.add(("negative", "()"))
    elif inner := re.fullmatch(r"(\d.*)-", cell):
        cell = inner[1]
        marks.add(("negative", "-"))
    units = {found[0] for found in _SIGN.finditer(cell) if unicodedata.category(found[1]) == "Sc"}
    for unit in sorted(units | {found[0] for found in _UNIT.finditer(cell)}, key=len, reverse=True):
        cell = cell.replace(unit, "")
        marks.add(("unit", unit))
    cell = cell.strip()
    if _PLAIN.fullmatch(cell):
        return marks
    for form in _GROUPED:
        if match := form.fullmatch(cell):
            return marks | {(kind, mark) for kind, mark in match.groupdict().items() if mark}
    if (match := re.fullmatch(r"(.*\d)\s*([^\W\d_]{1,12}\.?)", cell)) and (written := _written(match[1])) is not None:
        return marks | written | {("suffix", match[2])}
    return None


def _ascii(cell: str) -> str:
    """Write the digits and minus signs of other scripts as the usual ones."""
    if cell.isascii():
        return cell
    return "".join(str(unicodedata.decimal(c, c)) for c in cell.replace("\u2212", "-"))


def _dotted(cells: Iterable[str]) -> bool:
    """Return whether points look like marks of thousands: three digits behind each, beside whole numbers without one.

    Numbers with three decimals end in a 0, which is not written, in one of ten cells.
    """
    pointed = [cell for cell in cells if "." in cell]
    whole = sum(bool(re.fullmatch(r"[+-]?\d{1,3}", cell, re.ASCII)) for cell in cells)
    return len(pointed) >= _FEW and whole > 0 and all(_DOTTED.fullmatch(cell) for cell in pointed)


def oddities(frame: pd.DataFrame, target: str, sensitive: str) -> dict[str, list[str]]:
    """Find columns that hardly describe a person.

    These are row numbers, unique ids, dates, and copies of the target or of the sensitive attribute under other values.

    Args:
        frame: columns as `Notation.read` returns them.
        target: name of the label's column, which is in the frame.
        sensitive: name of the sensitive attribute's column, likewise.

    Returns:
        Names of the columns, by what they look like.
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
        if whole and known.between(19000101, 21001231).all() and known.head(200).map(_is_day).mean() > _MOSTLY:
            return "dates"
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
        if (count := codes.max() + 1) < 2:
            continue
        if distinct == count:
            both = (own >= 0) & (codes >= 0)
            pairs = pd.unique(own[both] * count + codes[both])
            if len(pairs) == distinct == len(pd.unique(codes[both])):
                return what
        elif count < distinct <= len(known) / _FEW:  # each of its values stands for one value of the other
            both = (own >= 0) & (codes >= 0)
            if len(pd.unique(own[both] * count + codes[both])) == distinct:
                return f"{what} in more detail"
    return None


def missing_codes(column: pd.Series) -> list[float]:
    """List the numbers, such as -1, -999 or 99, that seem to stand for missing values of a numeric column.

    They are its only negative numbers, and each is -1 or all its digits are 7, 8 or 9; or they lie far beyond all other
    numbers, as 97, 98 and 99 do. Each occurs several times, beside numbers of which there are too many for categories.
    """
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return []
    counts = column.value_counts().sort_index()
    numbers = counts.index.to_numpy(np.float64)
    found: list[float] = []

    def keep(codes: NDArray[np.bool_], looks: str) -> None:
        alike = all(re.fullmatch(looks, str(number)) for number in numbers[codes])
        if alike and (counts[codes] >= _REPEATED).all() and (~codes).sum() >= _CATEGORIES:
            found.extend(numbers[codes].tolist())

    keep(numbers < 0, r"-(1|7+|8+|9+)\.0")
    size = np.abs(np.where(np.isin(numbers, found), 0, numbers))
    jumps = np.flatnonzero(numbers[1:] > _FAR * np.maximum.accumulate(size)[:-1])
    if len(jumps):
        keep(numbers > numbers[jumps[-1]], r"(9+[6-9]|7{2,}|8{2,})\.0")
    return found


def _named(codes: Sequence[float]) -> str:
    """Begin a sentence on such codes, as "-9 looks like"."""
    return " and ".join(f"{code:g}" for code in codes) + (" looks like" if len(codes) == 1 else " each look like")


def _is_day(number: float) -> bool:
    month, day = int(number) // 100 % 100, int(number) % 100
    return 1 <= month <= 12 and 1 <= day <= 31


def profile(frame: pd.DataFrame, target: str, sensitive: str, categorical: Collection[str] = ()) -> Iterator[str]:
    """Describe every column in one line: its kind, its missing cells, its distinct values, and what looks odd."""
    odd = {name: kind for kind, names in oddities(frame, target, sensitive).items() for name in names}
    for name in frame.columns:
        column = frame[name]
        kind = "numeric" if pd.api.types.is_numeric_dtype(column) and name not in categorical else "categorical"
        role = {target: ", the target", sensitive: ", the sensitive attribute"}.get(name, "")
        told = f"{name}: {kind}{role}, {int(column.isna().sum())} missing, {column.nunique()} distinct values"
        if name in odd:
            told += f"; looks like {odd[name]}"
        if kind == "numeric" and (codes := missing_codes(column)):
            told += f"; {_named(codes)} a code for missing values"
        yield told


def content_of(path: Path) -> bytes:
    """Read a file's content, unpacked; for a zip file with several members, that of its only table.

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
    """Raise `InputError` if a quotation mark swallows rows, so that one field holds the separators of several lines.

    If most fields with line breaks look otherwise, this only warns.
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
        f"like {how_many(ends - begins, 'more row')}: take the mark out, or double it"
    )
    if len(swallowed) > others:
        raise InputError(told)
    log.warning("%s", told)


def is_rectangular(content: bytes, separator: str, fields: int) -> bool:
    """Return True if counts of separators prove that every line has as many fields as the header."""
    if len(separator) != 1 or b'"' in content:
        return False
    mark = separator.encode()
    return all(line.count(mark) == fields - 1 for line in io.BytesIO(content))
