"""The processes that train one model together: which one this is, and how they exchange values.

Without ``torch.distributed`` initialised there is one process, and nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


def several() -> bool:
    """Return whether ``torch.distributed`` is initialised."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the number of this process; the first one, 0, writes files and measures."""
    return distributed.get_rank() if several() else 0


def count() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if several() else 1


def gather(value: T) -> list[T]:
    """Return the value of every process, by rank; this waits until every process has called it."""
    if not several():
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def dealt(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Do each job in one process, dealt in turn, and return in all processes what every one came to, in order.

    This waits until all are done. A job may be waited for by no other process meanwhile: it exchanges nothing itself.
    """
    mine = {index: jobs[index]() for index in range(rank(), len(jobs), count())}
    found = {index: value for part in gather(mine) for index, value in part.items()}
    return [found[index] for index in range(len(jobs))]


def told(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process only, and return its result in all."""
    if not several():
        return make()
    value: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(value)
    found: T = value[0]
    return found
