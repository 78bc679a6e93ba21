"""Labels and groups of texts and images, from named attributes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairpriv.classifiers.data.columns import text
from fairpriv.classifiers.data.dataset import Dataset, Table
from fairpriv.classifiers.data.tabular import coded
from fairpriv.data.sources import Source
from fairpriv.errors import InputError

log = logging.getLogger(__name__)

_MOST_LABELS = 100  # a target with more values and no list of them is an error


@dataclass(kw_only=True)
class Attributed(Dataset):
    """Base class of descriptions of labelled items that are not tables, such as texts and images.

    The steps, in order: read the attributes, ``values``, ``bins``, ``groups`` of the target and of the sensitive
    attribute, ``min_cell_rows``, ``rows``; then the items themselves are read. Values are compared by their spelling,
    as in tables.
    """

    pools_groups_by: ClassVar[str] = "dataset.values"
    leaves_labels_out_by: ClassVar[str | None] = "dataset.min_cell_rows"

    name: str
    source: Source
    target: str  # attribute that is predicted, with two values or more
    sensitive: str
    values: dict[str, dict[Any, Any]] = field(default_factory=dict)  # attribute: {value as it stands there: its name}
    # new attribute: {from: attribute, edges: [30, 60]}: below 30, from 30 to below 60, from 60 on
    bins: dict[str, dict[str, Any]] = field(default_factory=dict)
    # attribute: its values in order, the first of the sensitive one being the property group. Items of other values are
    # left out. An attribute without an entry: every value found, by falling frequency.
    groups: dict[str, list[Any] | None] = field(default_factory=dict)
    min_cell_rows: int = 0  # labels with fewer items than this in one of the groups are left out, and named
    rows: int | None = None  # largest number of items, drawn by seed 0; null: all

    def __post_init__(self) -> None:
        if self.sensitive == self.target:
            raise InputError(f"dataset.sensitive and dataset.target are both '{self.target}': they must differ")
        if self.min_cell_rows < 0 or (self.rows is not None and self.rows < 1):
            raise InputError(
                f"dataset.min_cell_rows={self.min_cell_rows}, rows={self.rows}: the first is at least 0, the second at "
                "least 1, or null for all"
            )
        for name, rule in self.bins.items():
            edges: Any = rule.get("edges")
            numbers = isinstance(edges, list) and edges and all(type(edge) in (int, float) for edge in edges)
            if set(rule) != {"from", "edges"} or not (numbers and all(a < b for a, b in pairwise(edges))):
                raise InputError(
                    f"dataset.bins.{name}: {rule}; it takes from, an attribute, and edges, a list of numbers in rising "
                    "order, as [30, 60]"
                )

    def _attributes(self) -> list[str]:
        """Name the attributes to read: target and sensitive attribute, or those that they are bins of."""
        return [self.bins[name]["from"] if name in self.bins else name for name in (self.target, self.sensitive)]

    def _chosen(self, attributes: pd.DataFrame, files: str) -> Chosen:
        """Choose the items to keep, with their labels and groups; ``attributes`` has no missing value."""
        label, group = (self._named(attributes, name, files) for name in (self.target, self.sensitive))
        keys: dict[str, Any] = {"remedy": self.pools_groups_by, "left_out_by": None}
        y, label_names = coded(label, f"target '{self.target}'", self.groups, files, _MOST_LABELS, **keys)
        s, group_names = coded(group, f"sensitive attribute '{self.sensitive}'", self.groups, files, **keys)
        kept = np.flatnonzero((y >= 0) & (s >= 0))
        dropped = {"groups": len(y) - len(kept)}
        counts = np.zeros((len(label_names), len(group_names)), dtype=np.int64)
        np.add.at(counts, (y[kept], s[kept]), 1)
        common = counts.min(axis=1) >= self.min_cell_rows
        if not common.all():
            rare = [f"{label_names[i]} ({counts[i].min()})" for i in np.flatnonzero(~common)]
            log.warning(
                "%s: labels with fewer than %d rows in one group of '%s' are left out: %s",
                self.name,
                self.min_cell_rows,
                self.sensitive,
                ", ".join(rare),
            )
            if common.sum() < 2:
                raise InputError(
                    f"dataset.min_cell_rows={self.min_cell_rows} leaves {common.sum()} labels of '{self.target}' in "
                    f"{files}: two are needed; the rarest are {', '.join(rare[:5])}"
                )
            before = len(kept)
            kept = kept[common[y[kept]]]
            dropped["rare labels"] = before - len(kept)
            y = (np.cumsum(common) - 1)[y]
            label_names = tuple(name for name, stays in zip(label_names, common, strict=True) if stays)
        if self.rows is not None and self.rows < len(kept):
            kept = np.sort(np.random.default_rng(0).permutation(kept)[: self.rows])
        return Chosen(kept, y[kept], s[kept], label_names, group_names, dropped)

    def _named(self, attributes: pd.DataFrame, name: str, files: str) -> pd.Series:
        """Return an attribute with its values renamed or binned."""
        if name in self.bins:
            origin, edges = str(self.bins[name]["from"]), self.bins[name]["edges"]
            numbers = pd.to_numeric(attributes[origin], errors="coerce")
            if numbers.isna().any():
                wrong = attributes[origin][numbers.isna()].iloc[0]
                raise InputError(f"dataset.bins.{name}: '{origin}' of {files} holds {wrong!r}, which is no number")
            between = [f"{text(a)} to below {text(b)}" for a, b in pairwise(edges)]
            names = [f"below {text(edges[0])}", *between, f"from {text(edges[-1])}"]
            place = np.searchsorted(edges, numbers.to_numpy(), side="right")
            return pd.Series([names[i] for i in place], name=name)
        column = attributes[name]
        if name in self.values:
            told = {text(old): text(new) for old, new in self.values[name].items()}
            told = {new: new for new in told.values()} | told  # some copies of a dataset have the names themselves
            unlisted = sorted({text(value) for value in column.unique()} - set(told))
            if unlisted:
                raise InputError(
                    f"dataset.values.{name}: '{name}' of {files} holds {', '.join(unlisted[:5])}, which is not listed; "
                    f"there are {', '.join(map(text, self.values[name]))}"
                )
            column = column.map({value: told[text(value)] for value in column.unique()})
        return column


@dataclass(frozen=True, eq=False)
class Chosen:
    """The items that are kept, with their labels and groups."""

    index: NDArray[np.int64]  # [N], places among those that were read
    y: NDArray[np.int64]
    s: NDArray[np.int64]
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]
    dropped: dict[str, int]

    def table(self, dataset: Attributed, items: NDArray[Any], readable: NDArray[np.bool_], **dropped: int) -> Table:
        """Make the table of these items, without those that cannot be read."""
        return Table(
            name=dataset.name,
            sensitive=dataset.sensitive,
            features=items,
            y=self.y[readable],
            s=self.s[readable],
            label_names=self.label_names,
            group_names=self.group_names,
            dropped=self.dropped | dropped,
        )


def some(names: Sequence[str] | Mapping[str, str], shown: int = 3) -> str:
    """Join the first names, and say how many more there are."""
    listed = [f"{name} ({why})" for name, why in names.items()] if isinstance(names, Mapping) else list(names)
    return ", ".join(listed[:shown]) + (f" and {len(listed) - shown} more" if len(listed) > shown else "")
