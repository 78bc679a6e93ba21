"""Perceptrons on the pixels of images: trained from end to end, and small enough that attacks train pools of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from fairpriv.classifiers.data.reader import Encoding, Reader, Standardized
from fairpriv.classifiers.nets.architecture import Architecture
from fairpriv.classifiers.nets.classifier import MLP
from fairpriv.errors import InputError

_ROWS = 4096  # images that are averaged together


@dataclass(kw_only=True)
class PixelMLP(Architecture):
    """Multi-layer perceptron on the colours of an image, averaged over squares.

    No weight comes from elsewhere: all that it knows of images, it learned from its own training rows.

    Attributes:
        name: of the model in tables.
        side: squares per side of an image; it reads ``3 * side ** 2`` numbers.
        hidden, dropout: of the MLP.

    Raises:
        InputError: ``side`` is below 1.
    """

    kind: ClassVar[str] = "pixel_mlp"
    modality: ClassVar[str] = "image"

    name: str = "pixel_mlp"
    side: int = 16
    hidden: list[int] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.side < 1:
            raise InputError(f"model.side={self.side}: an image has at least one square per side")

    def network(self, features: int, classes: int) -> MLP:
        """Make a network with fresh weights."""
        return MLP(features, classes, hidden=self.hidden, dropout=self.dropout)

    def reader(self, device: torch.device) -> Reader:
        """Return the reader of images."""
        return _Squares(self.side)

    def pool_hidden(self) -> list[int]:
        """Return the hidden sizes of the MLP; errors as in the base class."""
        return super().pool_hidden() if self.dropout else MLP.sizes(self.hidden)


@dataclass(frozen=True)
class _Squares(Reader):
    side: int

    def read(self, items: NDArray[Any]) -> NDArray[np.float32]:
        """Return the mean colours in [0, 1] of an image's squares, ``[N, 3 * side ** 2]``, of pixels ``[N, 3, S, S]``.

        Raises:
            InputError: images have fewer pixels per side than squares.
        """
        if items.shape[-1] < self.side:
            raise InputError(f"model.side={self.side}: images have {items.shape[-1]} pixels per side (dataset.size)")
        parts = torch.from_numpy(items).split(_ROWS)
        found = [adaptive_avg_pool2d(part.float() / 255, self.side).flatten(1) for part in parts]
        means: NDArray[np.float32] = torch.cat(found).numpy()
        return means

    def encode(self, train: NDArray[Any]) -> Encoding:
        """Standardize by the training rows."""
        return Standardized.fit(train)
