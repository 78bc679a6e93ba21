"""Errors whose text is meant for the user."""

import shlex
from collections.abc import Iterable, Sequence
from typing import TypeVar

from fairpriv.secrets import masked

T = TypeVar("T")


class InputError(ValueError):
    """An error in the user's input; the message says what is wrong, where, and what would be right.

    The command line prints it as one line and exits with status 2. Secrets in it are masked, because messages quote the
    input, and are printed, kept in results and sent to loggers.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


def typed(key: str, value: str | Sequence[str]) -> str:
    """Write an override as one types it: quoted for Hydra, and quoted again for the shell, which takes quotes away."""
    quoted = ['"' + one.replace('"', r"\"") + '"' for one in ([value] if isinstance(value, str) else value)]
    return shlex.quote(f"{key}={quoted[0]}" if isinstance(value, str) else f"{key}=[{', '.join(quoted)}]")


def how_many(count: int, noun: str) -> str:
    """Write a count with its noun, as in "1 row" and "2 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def unquoted(values: Iterable[object]) -> str:
    """Return the remedy for values that YAML has made true or false, to end a message with; empty if there are none."""
    found = any(isinstance(value, bool) for value in values)
    return "; YAML reads yes, no, on and off as true and false: quote them" if found else ""


def returned(kind: type[T], found: object, method: str) -> T:
    """Return what a class of the user's gave; raise InputError, naming the method, if it is not of this kind."""
    if isinstance(found, kind):
        return found
    raise InputError(f"{method} must return {kind.__module__}.{kind.__qualname__}, not {type(found).__qualname__}")


def short_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; PyTorch has a class of its own for a GPU's only, and may not be imported here."""
    named = type(error).__name__ == "OutOfMemoryError"
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


class NonFiniteLossError(RuntimeError):
    """An error for a loss that became NaN or infinite; the message names the stage and the step where it began."""
