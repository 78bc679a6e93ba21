"""Datasets of classifiers: the base class of descriptions, and the table that they are read into."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairpriv.classifiers.data.reader import Encoding
from fairpriv.data.sources import Source

log = logging.getLogger(__name__)

_MUCH = 0.1  # share of the rows read that is left out, above which a warning says so
_MOST_LABELS = 10  # whose sizes are told one by one
_SELECTION = ("filters", "rows")  # reasons for leaving rows out that are part of what a config asks for

_tables: dict[tuple[str, str], Table] = {}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of a dataset after filters and before any split."""

    name: str
    sensitive: str
    # [N] rows: float64 columns, and categorical columns whose categories are strings; or an array of what is no table
    features: pd.DataFrame | NDArray[Any]
    y: NDArray[np.int64]  # [N], code of the label; with two, 1 is the positive one
    s: NDArray[np.int64]  # [N], code of the sensitive group
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]  # the first is the property group unless the game says otherwise
    dropped: dict[str, int]  # rows left out: by 'filters', for 'missing' values, for being in other 'groups'

    @property
    def rows_read(self) -> int:
        """Number of rows before any was left out."""
        return len(self.y) + sum(self.dropped.values())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of rows ``[Y, S]`` of every label and group."""
        sizes = np.zeros((len(self.label_names), len(self.group_names)), dtype=np.int64)
        np.add.at(sizes, (self.y, self.s), 1)
        return sizes

    @property
    def told(self) -> list[str]:
        """Lines for the log: what was read, what was left out and why, and the sizes of labels and groups."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items() if count)
        left_out = f", {self.rows_read - len(self.y)} left out ({reasons})" if reasons else ""
        labels = list(zip(self.label_names, self.sizes, strict=True))[:_MOST_LABELS]
        return [
            f"{self.rows_read} rows read{left_out}, {len(self.y)} used",
            f"{self.sensitive}: {self._by_group(self.sizes.sum(axis=0))}",
            *(f"label {label}: {sizes.sum()} rows: {self._by_group(sizes)}" for label, sizes in labels),
        ]

    def _by_group(self, sizes: NDArray[np.int64]) -> str:
        return ", ".join(f"{name} {size}" for name, size in zip(self.group_names, sizes, strict=True))

    def warn(self) -> None:
        """Warn if many rows are left out."""
        lost = {reason: count for reason, count in self.dropped.items() if reason not in _SELECTION}
        if sum(lost.values()) > _MUCH * (len(self.y) + sum(lost.values())):
            log.warning(
                "%s: %d of %d rows are left out (%s)",
                self.name,
                sum(lost.values()),
                len(self.y) + sum(lost.values()),
                ", ".join(f"{reason} {count}" for reason, count in lost.items() if count),
            )


class Dataset(ABC):
    """Base class of dataclasses that describe a dataset; each dataset is read once per process.

    Attributes:
        name: in tables and reports.
        source: where its files come from.
        target, sensitive: names of the label and of the sensitive attribute.
        modality: what it holds: ``table``, ``text`` or ``image``.
        pools_groups_by: the config key that pools groups, which errors recommend.
        leaves_labels_out_by: the config key that leaves rare labels out, likewise; None if there is none.
    """

    name: str
    source: Source
    target: str
    sensitive: str
    modality: ClassVar[str] = "table"
    pools_groups_by: ClassVar[str] = "dataset.recode"
    leaves_labels_out_by: ClassVar[str | None] = None

    def load(self) -> Table:
        """Read everything, once per process for the same description and content; raises `InputError`."""
        described = [(f.name, getattr(self, f.name)) for f in fields(cast(Any, self)) if f.name != "source"]
        key = (self.source.digest(), repr((type(self), described)))
        if key not in _tables:
            _tables[key] = self._load()
            _tables[key].warn()
        return _tables[key]

    @abstractmethod
    def _load(self) -> Table:
        """Read everything."""

    def encode(self, train: Any) -> Encoding:
        """Fit an encoder to training rows of ``Table.features``; a model's reader does this for texts and images."""
        raise NotImplementedError(f"{type(self).__name__} holds {self.modality}s, which a model's reader encodes")
