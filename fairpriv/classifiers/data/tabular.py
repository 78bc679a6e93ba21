"""Tables of people, read from CSV or parquet files: typed features, a binary label and a sensitive group."""

from __future__ import annotations

import filecmp
import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairpriv.classifiers.data.columns import (
    MISSING,
    Notation,
    are_codes,
    check_quotes,
    content_of,
    is_rectangular,
    missing_codes,
    notation,
    oddities,
    profile,
    refuse_odd_numbers,
    text,
    without_answer,
)
from fairpriv.classifiers.data.dataset import Dataset, Table
from fairpriv.data.sources import Source
from fairpriv.data.spelling import alike, unnamed
from fairpriv.errors import InputError, how_many, typed, unquoted

log = logging.getLogger(__name__)

_MOVED = 0.05  # change of a group's share by leaving out rows with missing values above which a warning says so
_LARGEST = 1e150  # number of a feature, whose square is still one
_POOLED = 0.25  # share of a feature's rows in rare categories above which a warning says that these become one
_MOST_GROUPS = 20  # a sensitive column with more values and no list of groups is an error

_FILTERS: dict[str, Callable[[pd.Series, Any], pd.Series]] = {
    "min": lambda column, bound: column >= bound,
    "max": lambda column, bound: column <= bound,
    "above": lambda column, bound: column > bound,
    "below": lambda column, bound: column < bound,
    "in": lambda column, values: _texts(column).isin([text(value) for value in values]),
    "not_in": lambda column, values: ~_texts(column).isin([text(value) for value in values]),
}


@dataclass(frozen=True)
class Encoder:
    """Encoder of features as numbers, fitted to the training rows only.

    Numeric columns are standardised; a column that is constant in training is 0 everywhere. A missing number becomes
    the mean. If training rows miss the number too, an indicator column is 1 where it is missing. Categorical columns
    are one-hot over the training categories, with the rare ones pooled as ``other``. A category that does not occur in
    training is all zeros.
    """

    numeric: dict[str, tuple[float, float, bool]]  # column: mean, standard deviation (0: constant), indicator
    categorical: dict[str, dict[str, int]]  # column: category -> offset in the column's block
    feature_names: tuple[str, ...]

    @property
    def features(self) -> int:
        """Number of encoded features, F."""
        return len(self.feature_names)

    @classmethod
    def fit(cls, train: pd.DataFrame, max_categories: int | None = None) -> Encoder:
        """Fit to training rows; a categorical column gets at most ``max_categories`` columns, ``other`` included."""
        numeric: dict[str, tuple[float, float, bool]] = {}
        categorical: dict[str, dict[str, int]] = {}
        names: list[str] = []
        for column in train.columns:
            if isinstance(train[column].dtype, pd.CategoricalDtype):
                counts = train[column].value_counts()
                present = sorted(counts[counts > 0].index, key=lambda value: (-counts[value], value))
                kept = (
                    present
                    if max_categories is None or len(present) <= max_categories
                    else present[: max_categories - 1]
                )
                kept = sorted(kept)
                categorical[column] = {value: kept.index(value) if value in kept else len(kept) for value in present}
                names += [f"{column}={value}" for value in kept] + [f"{column}=other"] * (len(kept) < len(present))
            else:
                values = train[column].to_numpy(np.float64)
                known = values[~np.isnan(values)]
                mean = float(known.mean()) if len(known) else 0.0
                # Not the deviation itself: rounding leaves 1e-17 for a constant like 0.1
                deviation = float(known.std()) if len(known) and np.ptp(known) > 0 else 0.0
                numeric[column] = (mean, deviation, len(known) < len(values))
                names += [column] + [f"{column}=missing"] * (len(known) < len(values))
        return cls(numeric, categorical, tuple(names))

    def transform(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """Encode rows ``[N]`` as float32 ``[N, F]``, columns as in ``feature_names``."""
        encoded = np.zeros((len(frame), len(self.feature_names)), dtype=np.float32)
        start = 0
        for column in frame.columns:
            if column in self.numeric:
                mean, deviation, indicator = self.numeric[column]
                values = frame[column].to_numpy(np.float64)
                missing = np.isnan(values)
                if deviation > 0:
                    encoded[:, start] = np.where(missing, 0.0, (values - mean) / deviation)
                if indicator:
                    encoded[:, start + 1] = missing
                start += 1 + indicator
            else:
                offsets = self.categorical[column]
                place = np.array([offsets.get(value, -1) for value in frame[column].cat.categories] or [-1])
                place = place[frame[column].cat.codes.to_numpy()]
                rows = np.flatnonzero(place >= 0)
                encoded[rows, start + place[rows]] = 1.0
                start += 1 + max(offsets.values(), default=-1)
        return encoded


@dataclass
class TabularDataset(Dataset):
    """Description of a dataset of CSV or parquet files, and its reader.

    The steps, in order: read and concatenate the files, ``rename``, ``decode``, ``recode``, ``filters``, missing
    values, groups, label. Values are compared by their spelling: 1, 1.0 and "1" are the same. The sensitive column is
    left out of the features (unless ``include_sensitive``), together with the column it was recoded from and all
    columns that were recoded from the same one. The target is treated likewise. Features that reveal the sensitive
    attribute stay, and a log line says so, unless ``keep_proxies`` is False.

    A column is numeric if all its cells are numbers. A column with a few cells that are not numbers is an error that
    shows these cells, unless it is listed as ``numeric`` or as ``categorical``.
    """

    kind: ClassVar[str] = "table"

    name: str
    source: Source
    target: str  # column of the label
    sensitive: str  # column of the sensitive attribute
    # sensitive column: its groups in order, the first being the property group. Rows of other groups are left out.
    # A column without an entry: every value found, by falling frequency.
    groups: dict[str, list[Any] | None] = field(default_factory=dict)
    positive: list[Any] | None = None  # target values with label 1
    negative: list[Any] | None = None  # target values with label 0; null: the only other value
    positive_above: float | None = None  # instead of ``positive``: label 1 where the target is above this number
    label_names: list[str] | None = None  # names of label 0 and label 1; null: from the values
    columns: list[str] | None = None  # column names of a file without a header line; null: it has one
    separator: str = ","
    skip_initial_space: bool = False
    comment: str | None = None  # character that begins a comment
    skip_rows: int = 0  # lines at the top of each file
    missing_values: list[str] = field(default_factory=lambda: list(MISSING))  # in any case; "" is a blank cell
    decimal: str = "."  # decimal mark of numbers
    thousands: str | None = None  # mark between their thousands
    units: list[str] = field(default_factory=list)  # signs beside numbers that do not count, such as "$"
    rename: dict[str, str] = field(default_factory=dict)  # old name: new name, where a file has the old one
    decode: dict[str, str] = field(default_factory=dict)  # new column: prefix of the 0/1 columns that it replaces
    # new column: {from: column, values: {old: new}, other: new value of all that is not listed, else an error}
    recode: dict[str, dict[str, Any]] = field(default_factory=dict)
    # column: conditions among min, max, above, below, in, not_in. Rows with a missing value there are left out.
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    features: list[str] | None = None  # null: every column but ``drop``
    drop: list[str] = field(default_factory=list)
    numeric: list[str] | None = None  # features in neither list are typed by what the file holds
    categorical: list[str] | None = None
    max_categories: int | None = 50  # one-hot columns per categorical feature; rare values are pooled as other
    include_sensitive: bool = False
    proxies: dict[str, list[str]] = field(default_factory=dict)  # sensitive column: features that give it away
    keep_proxies: bool = True  # False leaves those of ``sensitive`` out of the features
    # Missing values. drop: rows with one are left out. category: a missing feature is a value of its own (Encoder).
    # Or one by one, as {target: drop, sensitive: category, features: error}; one that is not named is an error.
    missing: Literal["error", "drop", "category"] | dict[str, str] = "error"

    def __post_init__(self) -> None:
        if self.sensitive == self.target:
            raise InputError(f"dataset.sensitive and dataset.target are both '{self.target}': they must differ")
        if (self.positive is None) == (self.positive_above is None):
            raise InputError("dataset.positive (values) or dataset.positive_above (a threshold): exactly one is wanted")
        if both := {*map(text, self.positive or ())} & {*map(text, self.negative or ())}:
            raise InputError(f"dataset.positive and dataset.negative both name {', '.join(map(repr, sorted(both)))}")
        names = [*map(text, self.label_names or ())]
        if self.label_names is not None and not len(names) == len(set(names)) == 2:
            raise InputError(
                f"dataset.label_names: {self.label_names}; two different names are wanted, of label 0 and of label 1"
            )
        if self.separator == r"\t":  # as a command line, or YAML without quotes, hands a tab on
            self.separator = "\t"
        if len(self.separator) != 1 and self.separator != r"\s+":
            raise InputError(
                rf"dataset.separator: '{self.separator}'; one character is wanted, \t for a tab or \s+ for any blanks"
            )
        apart = self.missing if isinstance(self.missing, Mapping) else {"features": self.missing}
        for key, how in apart.items():
            if how not in ("error", "drop", "category") or (key, how) == ("target", "category"):
                raise InputError(f"dataset.missing: '{self.missing}'; it is error, drop or category (no target)")
            if key not in ("target", "sensitive", "features"):
                raise InputError(f"dataset.missing.{key}: it takes target, sensitive and features")
        marks = [self.decimal, *([self.thousands] if self.thousands is not None else [])]
        if any(len(mark) != 1 for mark in marks) or len(set(marks)) < len(marks):
            raise InputError(
                f"dataset.decimal='{self.decimal}', thousands='{self.thousands}': two different characters"
            )
        for unit in self.units:
            if re.fullmatch(rf"[+-]?[\d{re.escape(''.join(marks))}]*", unit):
                raise InputError(f"dataset.units: '{unit}' is a part of numbers themselves; name signs beside them")
        if self.max_categories is not None and self.max_categories < 2:
            raise InputError(f"dataset.max_categories: {self.max_categories}; it is at least 2, or null for no limit")
        for column in set(self.numeric or ()) & set(self.categorical or ()):
            raise InputError(f"dataset: '{column}' is listed both as numeric and as categorical")
        for column, conditions in self.filters.items():
            for condition, bound in conditions.items():
                if condition not in _FILTERS:
                    raise InputError(
                        f"dataset.filters.{column}.{condition}: a condition is one of {', '.join(_FILTERS)}"
                    )
                listed = condition in ("in", "not_in")
                if not isinstance(bound, list if listed else int | float):
                    wanted = "a list of values" if listed else "a number"
                    raise InputError(f"dataset.filters.{column}.{condition}: {bound}; {wanted} is wanted")
        for column, rule in self.recode.items():
            if not {"from", "values"} <= set(rule) <= {"from", "values", "other"}:
                raise InputError(
                    f"dataset.recode.{column}: has {', '.join(map(str, rule))}; it takes from, values and other, as in "
                    "{from: sex, values: {1: male, 2: female}}"
                )
            if not isinstance(rule["from"], str) or not isinstance(rule["values"], Mapping):
                raise InputError(
                    f"dataset.recode.{column}: from is a column's name, and values are old: new, as in "
                    "{from: sex, values: {1: male, 2: female}}"
                )
            told = [*rule["values"].values(), *filter(None, [rule.get("other")])]
            if odd := [value for value in told if isinstance(value, list | Mapping | None)]:
                raise InputError(f"dataset.recode.{column}: {str(odd[0])[:60]} is no value: a text or number is wanted")

    def encode(self, train: pd.DataFrame) -> Encoder:
        """Fit an encoder to training rows of ``Table.features``."""
        return Encoder.fit(train, self.max_categories)

    def _load(self) -> Table:
        paths = self.source.locate()
        return self._table(self._read(paths), ", ".join(path.name for path in paths))

    def profile(self) -> Iterator[str]:
        """Describe every column that is read in one line, before any row is left out; raises `InputError`."""
        paths = self.source.locate()
        frame = self._derive(self._read(paths), ", ".join(path.name for path in paths))
        yield from profile(frame, self.target, self.sensitive, self.categorical or ())

    def _table(self, frame: pd.DataFrame, files: str) -> Table:
        frame = self._derive(frame, files)
        for key, names in {
            "target": [self.target],
            "sensitive": [self.sensitive],
            "filters": self.filters,
            "features": self.features or [],
            "drop": self.drop,
            "numeric": self.numeric or [],
            "categorical": self.categorical or [],
            "groups": self.groups,
            "proxies": self.proxies,
            **{f"proxies.{sensitive}": given_away for sensitive, given_away in self.proxies.items()},
        }.items():
            for name in names:
                _require(frame, name, f"dataset.{key}", files)
        dropped = {}
        kept = self._filter(frame, files)
        dropped["filters"] = len(frame) - len(kept)
        if kept.empty:
            raise InputError(f"dataset.filters: none of the {len(frame)} rows of {files} is left")

        hidden = self._family(self.sensitive) | self._family(self.target)
        listed = self.features if self.features is not None else list(kept.columns)
        names = [name for name in dict.fromkeys(listed) if name not in hidden and name not in self.drop]
        proxies = [name for name in names if name in self.proxies.get(self.sensitive, [])]
        if not self.keep_proxies:
            names = [name for name in names if name not in proxies]
        elif proxies:
            log.warning(
                "%s: features that give %s away are kept: %s; dataset.keep_proxies=false leaves them out",
                self.name,
                self.sensitive,
                ", ".join(proxies),
            )
        if self.include_sensitive:
            names.append(self.sensitive)
        if not names:
            raise InputError(f"dataset: no feature is left of the columns of {files}")
        for name in names:
            if name not in (*(self.numeric or ()), *(self.categorical or ())):
                self._notation.refuse_misplaced(kept[name], files)
                refuse_odd_numbers(kept[name], files)
        frame = self._complete(kept, names, files)
        dropped["missing"] = len(kept) - len(frame)
        self._tell_moved(kept, frame)
        self._tell_oddities(frame[[*names, *({self.target, self.sensitive} - set(names))]], names)

        codes, group_names = coded(frame[self.sensitive], f"sensitive column '{self.sensitive}'", self.groups, files)
        dropped["groups"] = int((codes < 0).sum())
        frame, codes = frame[codes >= 0], codes[codes >= 0]
        y, label_names = self._label(frame[self.target], files)
        return Table(
            name=self.name,
            sensitive=self.sensitive,
            features=pd.DataFrame({name: self._typed(frame[name], files) for name in names}).reset_index(drop=True),
            y=y,
            s=codes,
            label_names=label_names,
            group_names=group_names,
            dropped=dropped,
        )

    def _read(self, paths: Sequence[Path]) -> pd.DataFrame:
        frames: list[pd.DataFrame] = []
        for first, second in itertools.combinations(paths, 2):
            if first.stat().st_size == second.stat().st_size and filecmp.cmp(first, second, shallow=False):
                raise InputError(f"dataset.source.files: {first.name} and {second.name} hold the same rows: name one")
        for path in paths:
            try:
                if path.suffix.lower() == ".parquet":
                    frame = self._parse_parquet(path)
                    header: list[str] = []
                else:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
                        frame, header = self._parse_text(path)
            except InputError:
                raise
            except pd.errors.EmptyDataError as error:
                raise InputError(f"{path} is empty") from error
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
                ) from error
            except pd.errors.ParserWarning as error:
                raise InputError(
                    f"{path} cannot be read as a table: some lines have more fields than the first line: mend them, or "
                    "leave out what stands above the names of the columns by dataset.skip_rows"
                ) from error
            except (ValueError, TypeError, OSError, EOFError, BadZipFile) as error:
                raise InputError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error
            if frame.empty:
                raise InputError(f"{path} has no rows")
            frame = _without_copies(frame, header, path)
            taken = {old: new for old, new in self.rename.items() if old in frame.columns and new not in frame.columns}
            for new in taken.values():
                if len(olds := [old for old, name in taken.items() if name == new]) > 1:
                    raise InputError(
                        f"dataset.rename: {path.name} has {' and '.join(map(repr, olds))}, which cannot both be '{new}'"
                        ": rename one of them"
                    )
            frame = frame.rename(columns=taken)
            if frames and set(frame.columns) != set(frames[0].columns):
                differing = ", ".join(sorted(set(frame.columns) ^ set(frames[0].columns))[:10])
                raise InputError(f"{paths[0].name} and {path.name} do not have the same columns: {differing}")
            frames.append(frame)
        whole = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
        typed = {*(self.numeric or ()), *(self.categorical or ()), *[self.target] * (self.positive_above is not None)}
        # All files are typed together, because one may write a code as 1 and another as 1.0
        return pd.DataFrame({name: self._notation.read(whole[name], name not in typed) for name in whole.columns})

    @property
    def _notation(self) -> Notation:
        return Notation(self.missing_values, self.decimal, self.thousands, self.units)

    def _numbers(self, column: pd.Series, files: str) -> pd.Series:
        self._notation.refuse_misplaced(column, files)
        return _numbers(column, files)

    def _parse_text(self, path: Path) -> tuple[pd.DataFrame, list[str]]:
        """Read all cells of the needed columns as text; also return these columns' names in the header line."""
        content = content_of(path)

        def parse(dtype: Any = "category", **how: Any) -> pd.DataFrame:  # fast if few values occur often
            return pd.read_csv(
                io.BytesIO(content),
                sep=self.separator,
                dtype=dtype,
                index_col=False,
                skipinitialspace=self.skip_initial_space,
                comment=self.comment,
                skiprows=self.skip_rows,
                keep_default_na=False,
                **how,
            )

        first = parse(header=None, nrows=1)
        if self.columns is not None and len(first.columns) != len(self.columns):
            raise ValueError(f"it has {len(first.columns)} columns, dataset.columns {len(self.columns)} names")
        names = [str(name) for name in (self.columns or first.iloc[0])]
        if len(names) == 1 and (marks := [mark for mark in (";", "\t", "|", ",") if mark in names[0]]):
            separator = max(marks, key=names[0].count).replace("\t", r"\t")
            raise InputError(
                f"{path.name} has one column, '{names[0]}', where dataset.separator='{self.separator}': "
                f"set {typed('dataset.separator', separator)}"
            )
        needed = self._needed(names)
        # pandas overlooks lines that are too long if it is told which columns to read
        only = needed if is_rectangular(content, self.separator, len(names)) else None
        frame = parse(header=None if self.columns is not None else 0, names=self.columns, usecols=only)
        check_quotes(content, path, self.separator, len(names))
        # pandas makes categories that are all numbers into numbers, and forgets how they were written: 1.500 or 1.5,
        # and 01234 or 1234
        lossy = (np.float64, np.int64) if re.search(rb"(?<![\d.])0\d", content) else (np.float64,)
        if lost := [place for place, name in enumerate(frame) if frame[name].cat.categories.dtype in lossy]:
            places = [only[place] for place in lost] if only else lost
            whole = parse(str, header=None if self.columns is not None else 0, names=self.columns, usecols=places)
            frame = frame.assign(**{str(name): whole[name] for name in whole})
        if only is None:
            frame = frame.iloc[:, needed]
        return frame, [] if self.columns is not None else [names[place] for place in needed]

    def _parse_parquet(self, path: Path) -> pd.DataFrame:
        try:
            frame = pd.read_parquet(path)
        except ImportError as error:
            raise InputError(f"{path}: reading parquet needs pyarrow: `pip install pyarrow`") from error
        # What pandas had as an index with a name is a column of the file like any other, unless it is one already
        own = [name for name in frame.index.names if name is not None and name not in frame.columns]
        frame = frame.reset_index(level=own)
        for name, column in frame.items():
            if column.dtype in ("object", "category") and any(isinstance(cell, bytes) for cell in column):
                frame[name] = column.map(lambda cell: cell.decode() if isinstance(cell, bytes) else cell)
        names = [str(name) for name in frame.columns]
        return frame.set_axis(names, axis=1).iloc[:, self._needed(names)].reset_index(drop=True)

    def _needed(self, names: Sequence[str]) -> list[int]:
        """Return the places of the columns to read; all, if ``features`` is None or a named column is missing."""
        everything = list(range(len(names)))
        if self.features is None:
            return everything
        wanted = {self.target, self.sensitive, *self.features, *self.filters, *self.drop}
        wanted |= {*(self.numeric or ()), *(self.categorical or ()), *self.proxies, *self.groups}
        wanted |= {name for given_away in self.proxies.values() for name in given_away}
        wanted |= {rule["from"] for rule in self.recode.values()}
        there = {self.rename.get(name, name) for name in names} | set(names) | set(self.recode) | set(self.decode)
        if wanted - there:  # a later error shows all columns
            return everything
        prefixes = tuple(self.decode.values())
        return [
            place
            for place, name in enumerate(names)
            if {name, self.rename.get(name, name)} & wanted or (prefixes and name.startswith(prefixes))
        ]

    def _derive(self, frame: pd.DataFrame, files: str) -> pd.DataFrame:
        for name, prefix in self.decode.items():
            parts = [column for column in frame.columns if column.startswith(prefix)]
            if len(parts) < 2:
                raise InputError(
                    f"dataset.decode.{name}: '{prefix}' begins {how_many(len(parts), 'column')} of {files}, not several"
                )
            ones = frame[parts].isin([1]) | frame[parts].isin(["True"])
            wrong = int((ones.sum(axis=1) != 1).sum())
            if wrong:
                told = f"{how_many(wrong, 'row')} of {files} without exactly one 1 or True in '{prefix}*'"
                raise InputError(f"dataset.decode.{name}: {told}")
            values = np.array([part.removeprefix(prefix) for part in parts], dtype=object)
            frame = frame.drop(columns=parts).assign(**{name: values[ones.to_numpy().argmax(axis=1)]})
        for name, rule in self.recode.items():
            _require(frame, rule["from"], f"dataset.recode.{name}.from", files)
            old = _texts(frame[rule["from"]])
            mapping = {text(key): text(value) for key, value in rule["values"].items()}
            new = old.map(mapping)
            unlisted = new.isna() & old.notna()
            if odd := unnamed(old.dropna().unique(), mapping):
                raise InputError(
                    f"dataset.recode.{name}: '{rule['from']}' of {files} holds {', '.join(map(repr, odd))}, which "
                    "differs in spelling only from what is listed: list all spellings"
                )
            if rule.get("other") is not None:
                new = new.mask(unlisted, text(rule["other"]))
            elif unlisted.any():
                raise InputError(
                    f"dataset.recode.{name}: values of '{rule['from']}' in {files} that are not listed: "
                    f"{_counted(old[unlisted])}; list them or set other"
                )
            frame = pd.concat([frame.drop(columns=name, errors="ignore"), new.rename(name)], axis=1)
        return frame

    def _filter(self, frame: pd.DataFrame, files: str) -> pd.DataFrame:
        keep = pd.Series(True, index=frame.index)
        for name, conditions in self.filters.items():
            keep &= frame[name].notna()
            for condition, bound in conditions.items():
                column = frame[name] if condition in ("in", "not_in") else self._numbers(frame[name], files)
                keep &= _FILTERS[condition](column, bound)
                if condition in ("in", "not_in"):
                    values = _texts(column)
                    for odd in unnamed(values.dropna().unique(), map(text, bound)):
                        log.warning(
                            "dataset.filters.%s.%s of %s does not name '%s' (%s), which differs in spelling only "
                            "from what it names",
                            name,
                            condition,
                            files,
                            odd,
                            how_many((values == odd).sum(), "row"),
                        )
        return frame[keep]

    def _family(self, name: str) -> set[str]:
        """Return the column, the columns it was recoded from, and those that were recoded from these."""

        def root(column: str) -> str:
            while column in self.recode and self.recode[column]["from"] != column:
                column = self.recode[column]["from"]
            return column

        derived = {column for column in self.recode if root(column) == root(name)}
        return derived | {self.recode[column]["from"] for column in derived} | {name}

    def _complete(self, frame: pd.DataFrame, features: Iterable[str], files: str) -> pd.DataFrame:
        how = dict.fromkeys(features, self._missing("features"))
        how |= {self.target: self._missing("target"), self.sensitive: self._missing("sensitive")}
        for name, answer in how.items():
            empty = frame[name].isna()
            if not empty.any() or (answer == "category" and name != self.sensitive):
                continue
            if empty.all():
                leaves = f"dataset.missing=drop leaves no row of {files}: " if answer == "drop" else ""
                raise InputError(
                    f"{leaves}column '{name}' of {files} has no value in any of {len(frame)} rows: leave it out by "
                    "dataset.drop, or name another column"
                )
            if answer == "category":
                frame = frame.assign(**{name: _texts(frame[name]).fillna("missing")})
            elif answer == "error":
                key = "dataset.missing" if isinstance(self.missing, str) else f"dataset.missing.{self._role(name)}"
                or_keep = f" or {key}=category to keep them" if self._role(name) == "features" else ""
                raise InputError(
                    f"column '{name}' of {files} has no value in {int(empty.sum())} of {len(frame)} rows: set "
                    f"{key}=drop to leave them out{or_keep}"
                )
        complete = frame.dropna(subset=[name for name, answer in how.items() if answer == "drop"])
        if complete.empty:
            worst = frame[list(how)].isna().sum().idxmax()
            raise InputError(
                f"dataset.missing=drop leaves no row of {files}: '{worst}' misses the most values; leave it out by "
                "dataset.drop, or keep such rows by dataset.missing=category"
            )
        return complete

    def _role(self, name: str) -> str:
        return {self.target: "target", self.sensitive: "sensitive"}.get(name, "features")

    def _missing(self, role: str) -> str:
        """Return what is done with missing values of the target, the sensitive attribute or the features."""
        if isinstance(self.missing, Mapping):
            return self.missing.get(role, "error")
        return self.missing if role == "features" or self.missing != "category" else "error"

    def _tell_oddities(self, frame: pd.DataFrame, features: Sequence[str]) -> None:
        """Warn about features that hardly describe a person, and about categories that may be the same."""
        for kind, names in oddities(frame, self.target, self.sensitive).items():
            log.warning(
                "%s: features that look like %s: %s; dataset.drop leaves them out", self.name, kind, ", ".join(names)
            )
        for twins in alike([*features, *({self.target, self.sensitive} - set(features))]):
            log.warning(
                "%s: columns whose names differ in spelling only: %s; dataset.drop leaves one out",
                self.name,
                " and ".join(f"'{name}'" for name in twins),
            )
        counted = [name for name in features if name not in (self.categorical or ())]
        for name in counted + [self.target] * (self.positive_above is not None):
            for code in missing_codes(frame[name]):
                log.warning(
                    "%s: '%s' has %d rows of %g, which looks like a code for missing values, and counts as a number: "
                    "list it in dataset.missing_values if it is one",
                    self.name,
                    name,
                    (frame[name] == code).sum(),
                    code,
                )
        for name in features:
            plain = pd.api.types.is_numeric_dtype(frame[name]) or name in (self.categorical or ())
            if not plain and name not in (self.numeric or ()) and are_codes(frame[name].dropna().unique()):
                log.warning(
                    "%s: '%s' has digits of one width, as '%s', and is read as categories: dataset.numeric reads "
                    "numbers",
                    self.name,
                    name,
                    frame[name].dropna().min(),
                )
        for name in features:
            if not pd.api.types.is_numeric_dtype(frame[name]) and (same := alike(frame[name].dropna().unique())):
                shown = "; ".join(" and ".join(f"'{value}'" for value in values) for values in same[:3])
                log.warning(
                    "%s: '%s' has values that differ in spelling only: %s; dataset.recode makes them one",
                    self.name,
                    name,
                    shown,
                )
            if self.max_categories and not pd.api.types.is_numeric_dtype(frame[name]):
                counts = frame[name].value_counts()
                pooled = counts.iloc[self.max_categories - 1 :].sum() if len(counts) > self.max_categories else 0
                if pooled > _POOLED * len(frame):
                    log.warning(
                        "%s: '%s' has %d categories, as '%s'; %.0f %% of the rows have one of the rare ones, which "
                        "become one ('other'): dataset.max_categories, recode or drop",
                        self.name,
                        name,
                        len(counts),
                        counts.index[0],
                        100 * pooled / len(frame),
                    )

    def _tell_moved(self, before: pd.DataFrame, after: pd.DataFrame) -> None:
        """Warn if leaving out rows with missing values changes the shares of groups or labels."""
        if len(before) == len(after):
            return
        for name in (self.sensitive, self.target):
            then, now = (_texts(frame[name]).value_counts(normalize=True) for frame in (before, after))
            change = (now.reindex(then.index).fillna(0) - then).abs()
            if len(then) <= _MOST_GROUPS and change.max() > _MOVED:
                moved = str(change.idxmax())
                empty = before.drop(index=after.index).isna().sum()
                log.warning(
                    "%s: leaving out rows with missing values changes who is left: %s=%s is %.1f %% of the rows before "
                    "and %.1f %% after; most are missing in '%s'",
                    self.name,
                    name,
                    moved,
                    100 * then[moved],
                    100 * now.get(moved, 0),
                    empty.idxmax(),
                )

    def _label(self, column: pd.Series, files: str) -> tuple[NDArray[np.int64], tuple[str, str]]:
        """Return labels ``[N]`` in {0, 1} and their names."""
        values = _texts(column)
        rule = f"dataset.positive={self.positive}"
        if self.positive_above is not None:
            rule = f"dataset.positive_above={self.positive_above}"
            y = np.asarray(self._numbers(column, files) > self.positive_above, dtype=np.int64)
            names = (f"<={text(self.positive_above)}", f">{text(self.positive_above)}")
        else:
            positive = [text(value) for value in self.positive or ()]
            rest = sorted(set(values) - set(positive))
            negative = [text(value) for value in self.negative] if self.negative is not None else rest
            if len(rest) > 1 and not set(positive) & set(values) and self.negative is None:
                raise InputError(
                    f"{rule}: no row of {files} has such a value in target '{self.target}'; it holds {_counted(values)}"
                    + unquoted(self.positive or ())
                )
            if set(rest) - set(negative) or (self.negative is None and len(rest) > 1):
                raise InputError(
                    f"target '{self.target}' of {files} is not binary: it holds {_counted(values)}, and {rule}: "
                    "name the values of label 0 in dataset.negative, or leave the others out by dataset.filters"
                )
            for same in alike(values.unique()):
                if len({(value in positive, self.negative is not None and value in negative) for value in same}) > 1:
                    raise InputError(
                        f"target '{self.target}' of {files} holds {', '.join(map(repr, same))}, which differ in "
                        f"spelling only, under two labels, and {rule}: list them all under one"
                    )
            y = np.asarray(values.isin(positive), dtype=np.int64)
            names = ("/".join(negative), "/".join(positive))
        if y.min() == y.max():
            raise InputError(
                f"target '{self.target}' of {files} has label {y[0]} in all {len(y)} rows: it holds "
                f"{_counted(values)}, and {rule}"
            )
        if self.label_names is not None:
            names = (text(self.label_names[0]), text(self.label_names[1]))
        return y, names

    def _typed(self, column: pd.Series, files: str) -> pd.Series:
        name = str(column.name)
        inferred = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        if name in (self.numeric or ()) or (inferred and name not in (self.categorical or ())):
            numbers = self._numbers(column, files)
            if infinite := np.isinf(numbers).sum():
                raise InputError(f"column '{name}' of {files} has {how_many(infinite, 'infinite value')}")
            if (largest := numbers.abs().max()) > _LARGEST:
                raise InputError(
                    f"column '{name}' of {files} holds numbers as large as {largest:g}, which cannot be standardised: "
                    "mend them, or list those that stand for missing values in dataset.missing_values"
                )
            return numbers
        return _texts(column).fillna("missing").astype(object).astype("category")


def coded(
    column: pd.Series,
    what: str,
    groups: Mapping[str, list[Any] | None],
    files: str,
    most: int = _MOST_GROUPS,
    remedy: str = "dataset.recode",
    left_out_by: str | None = "dataset.missing_values",
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Code a column's values in the order of ``dataset.groups``.

    Args:
        column: the values, none missing.
        what: name of the column in errors.
        groups: by column, the values to keep; a column without an entry keeps all, the most frequent first.
        files: where the values were read, for errors.
        most: largest number of values of a column without an entry.
        remedy: the config key that gives several values one name.
        left_out_by: the config key that lists what stands for a missing value; None if there is none.

    Returns:
        Codes ``[N]``, -1 for values that are not kept; and the names of the kept values, by code.

    Raises:
        InputError: names that differ in spelling only, too many values, fewer than two, a value named
            twice, or a listed value without rows.
    """
    values = _texts(column)
    counts = values.value_counts()
    listed = groups.get(str(column.name))
    same = alike(counts.index)
    if listed:
        kept = [text(name) for name in listed]
        lost = [
            f"'{name}' ({counts[name]})" for names in same if {*names} & {*kept} for name in names if name not in kept
        ]
        if lost:
            more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
            log.warning(
                "%s of %s: left out are %s%s, which differ from a listed group in spelling only; %s makes them one",
                what,
                files,
                ", ".join(lost[:5]),
                more,
                remedy,
            )
    elif same:
        shown = "; ".join(" and ".join(f"'{name}' ({counts[name]})" for name in names) for names in same[:3])
        raise InputError(
            f"{what} of {files} holds names that differ in spelling only: {shown}: make them one "
            f"by {remedy}, or list the groups in dataset.groups.{column.name}"
        )
    if not listed:
        _warn_of_doubtful(values, f"{what} of {files}", remedy, left_out_by)
    if not listed and len(counts) > most:
        raise InputError(f"{what} of {files} has {len(counts)} values: list the groups in dataset.groups.{column.name}")
    found = sorted(counts.index, key=lambda value: (-counts[value], value))
    names = [text(name) for name in listed] if listed else found
    if len(set(names)) < 2:
        raise InputError(f"{what} of {files}: two groups are needed, there is {names}")
    if len(set(names)) < len(names):
        raise InputError(f"dataset.groups.{column.name}: {names} names a group twice")
    for name in names:
        if name not in counts.index:
            raise InputError(
                f"dataset.groups.{column.name}: no row of {files} has '{name}'; it holds {_counted(values)}"
                + unquoted(listed or ())
            )
    return values.map({name: code for code, name in enumerate(names)}).fillna(-1).to_numpy(np.int64), tuple(names)


def _warn_of_doubtful(values: pd.Series, where: str, remedy: str, left_out_by: str | None) -> None:
    """Warn of values that may be short for others, and of those that look like no answer."""
    counts = values.value_counts()
    initials = [name for name in counts.index if len(name) == 1 and name.isalpha()]
    short = [
        n for n in initials if any(n != name and name.casefold().startswith(n.casefold()) for name in counts.index)
    ]
    if short:
        log.warning(
            "%s: %s may be short for another of its values: %s; %s makes them one",
            where,
            ", ".join(short),
            _counted(values),
            remedy,
        )
    if unsaid := without_answer(counts.index):
        log.warning(
            "%s: %s look%s like no answer, and count%s as a group: %slist the groups in dataset.groups.%s",
            where,
            ", ".join(f"'{name}' ({counts[name]})" for name in unsaid[:5]),
            *(("s", "s") if len(unsaid) == 1 else ("", "")),
            f"list it in {left_out_by}, or " if left_out_by else "",
            values.name,
        )


def _texts(column: pd.Series) -> pd.Series:
    return column.map({value: text(value) for value in column.dropna().unique()})


def _numbers(column: pd.Series, files: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = numbers.isna() & column.notna()
    if wrong.any():
        remedy = notation(column[wrong].unique())
        raise InputError(
            f"column '{column.name}' of {files} is to be numeric but holds {_counted(_texts(column[wrong]))}"
            + (f": it {remedy}" if remedy else "")
        )
    return numbers


def _counted(values: pd.Series) -> str:
    """Join the values and their counts, the most frequent first, into one line."""
    counts = values.value_counts()
    shown = ", ".join(f"'{value}' ({count})" for value, count in counts.head(10).items())
    return shown + (f" and {len(counts) - 10} more" if len(counts) > 10 else "")


def _require(frame: pd.DataFrame, name: str, key: str, files: str) -> None:
    if name not in frame.columns:
        columns = [str(column) for column in frame.columns]
        if blank := [column for column in columns if column.strip() == str(name).strip()]:
            begins = "dataset.skip_initial_space=true leaves it out" if blank[0].lstrip() == name else "name it so"
            raise InputError(f"{key}: no column '{name}' in {files}, but '{blank[0]}', with a blank: {begins}")
        near = get_close_matches(str(name), columns)
        shown = ", ".join(columns[:30]) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "")
        hint = f"the nearest is {' or '.join(near)}; " if near else ""
        raise InputError(f"{key}: no column '{name}' in {files}; {hint}there are {shown}")


def _without_copies(frame: pd.DataFrame, header: list[str], path: Path) -> pd.DataFrame:
    """Drop columns with the name and content of an earlier one, as in COMPAS; pandas has renamed them."""
    copies = []
    for place, name in enumerate(header):
        first = header.index(name)
        if first < place:
            if not frame.iloc[:, first].equals(frame.iloc[:, place].set_axis(frame.index)):
                raise InputError(f"{path} has two columns '{name}' that differ: rename one of them in the file")
            copies.append(place)
    return frame.drop(columns=frame.columns[copies])
