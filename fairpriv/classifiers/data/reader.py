"""Readers and encodings, which turn the items of a dataset into a network's input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Encoding(Protocol):
    """Protocol of encodings, which are fitted to training rows and turn rows into a network's input."""

    @property
    def features(self) -> int:
        """Width of a row: its number of features or tokens, or pixels per side."""
        ...

    def transform(self, rows: Any, /) -> NDArray[Any]:
        """Return inputs ``[N, ...]``."""
        ...


class Reader(ABC):
    """Base class of readers of texts or images for one model; tables are encoded by their dataset."""

    @abstractmethod
    def read(self, items: NDArray[Any]) -> NDArray[Any]:
        """Turn the texts or pixels of a whole dataset into rows ``[N, ...]``."""

    @abstractmethod
    def encode(self, train: NDArray[Any]) -> Encoding:
        """Fit an encoding to training rows."""


@dataclass(frozen=True)
class Standardized:
    """Features with mean 0 and deviation 1 over the training rows; constant ones are 0."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def fit(cls, train: NDArray[np.float32]) -> Standardized:
        """Fit to training rows ``[N, F]``."""
        return cls(train.mean(0), train.std(0))

    @property
    def features(self) -> int:
        """Number of features, F."""
        return len(self.mean)

    def transform(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return features ``[N, F]``."""
        varies = self.deviation > 1e-6
        return np.where(varies, (rows - self.mean) / np.where(varies, self.deviation, 1), 0).astype(np.float32)


@dataclass(frozen=True)
class Unchanged:
    """Tokens or pixels as they are; ``features`` is the width of their last dimension."""

    features: int

    def transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        return rows
