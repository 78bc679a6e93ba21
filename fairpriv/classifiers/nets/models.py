"""The base class of sets of classifiers that answer together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairpriv.functional.attacks import answers


class Models(ABC):
    """Base class of sets of M classifiers: victims, shadows, or a defended pool; a `Pool` is one.

    Attributes:
        needs_groups: whether ``predict_proba`` takes the rows' groups ``[N]`` besides their features.
        randomized: whether every answer is drawn anew; ``predict_proba`` is then the chance of the answer 1.
        weights: per fully connected layer ``(W [M, in, out], b [M, out])``; empty if no single network answers.
        diverged: members whose training broke off, in ascending order.
        told: what the training reports of every member, ``[M]`` each.
    """

    needs_groups: ClassVar[bool] = False
    randomized: ClassVar[bool] = False
    weights: Sequence[tuple[Tensor, Tensor]] = ()
    diverged: Sequence[int] = ()
    told: Mapping[str, Sequence[float]] = {}

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of classifiers, M."""

    def __getitem__(self, index: Any, /) -> Models:
        """Choose members, in this order; victims and shadows need this."""
        raise TypeError(f"{type(self).__name__} cannot leave members out: it has no __getitem__")

    @abstractmethod
    def predict_proba(self, X: Any, *groups: Tensor) -> Tensor:
        """Return every member's P(y=1) ``[M, N]`` at features ``[N, F]``; with C > 2 classes, all, ``[M, N, C]``."""

    @property
    def sound(self) -> list[int]:
        """The members whose training did not break off, in ascending order."""
        return [member for member in range(len(self)) if member not in self.diverged]

    def ask(self, X: Tensor, groups: Tensor) -> Tensor:
        """Return ``predict_proba``, with the rows' groups ``[N]`` if it needs them."""
        return self.predict_proba(X, groups) if self.needs_groups else self.predict_proba(X)

    def answers(self, probs: Tensor, generator: torch.Generator) -> Tensor:
        """Turn outputs of ``ask`` into answers, int64 ``[M, N]``; those of randomised members are drawn."""
        return draw(probs, generator) if self.randomized else answers(probs)


def draw(chance: Tensor, generator: torch.Generator) -> Tensor:
    """Draw answers, int64 ``[...]``: each is 1 with its ``chance``, else 0."""
    return (torch.rand(chance.shape, generator=generator) < chance).long()
