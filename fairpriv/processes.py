"""The processes that train one model together: which of them this is, and what they tell one another.

Without ``torch.distributed`` initialised there is one, and nothing here waits for anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


def several() -> bool:
    """Whether ``torch.distributed`` is initialised."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process; the first one, 0, writes files and measures."""
    return distributed.get_rank() if several() else 0


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if several() else 1


def gather(value: T) -> list[T]:
    """The value of every process, by rank; so each has come this far."""
    if not several():
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def told(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, which alone calls it."""
    if not several():
        return make()
    value: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(value)
    found: T = value[0]
    return found
