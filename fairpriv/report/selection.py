"""The choice of cells to compare: config keys by name, and conditions on their values."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fairpriv.errors import InputError

if TYPE_CHECKING:
    from fairpriv.result import Result

ABSENT = "\N{EN DASH}"
_QUOTED = re.compile(r"""(?<![^=,\[\s])(?:"[^"]*"|'[^']*')(?=\s*(?:[,\]]|$))""")
_ORDERED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def show(value: Any) -> str:
    """Write a config value as on the command line, in one line."""
    if value is None:
        return ABSENT
    if type(value) in (int, float):
        return repr(value)  # as JSON has it, and faster
    return printable(value if isinstance(value, str) else json.dumps(value))


def printable(text: str) -> str:
    """Write the text in one line, without characters that control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short(key: str) -> str:
    """Shorten a config key for a heading: to the group, where it is a group's name."""
    return key.removesuffix(".name")


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of a nested config; an empty mapping is a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key; None where there is none, as for ``null``."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def find_key(word: str, known: Sequence[str], option: str) -> str:
    """Find the dotted config key that ``word`` names: itself, or ``<group>.name`` for a group such as ``defense``.

    Raises:
        InputError: no cell has it; names the nearest one.
    """
    from fairpriv.config.schema import nearest

    if word in known:
        return word
    if f"{word}.name" in known:
        return f"{word}.name"
    if inside := [key for key in known if key.startswith(f"{word}.")]:
        raise InputError(f"{option} {word}: is a section of the config; name a key in it, such as {inside[0]}")
    groups = [key.removesuffix(".name") for key in known if re.fullmatch(r"\w+\.name", key)]
    raise InputError(f"{option} {word}: no cell has that config key{nearest(word, [*known, *groups])}")


@dataclass(frozen=True)
class Condition:
    """A condition: ``key=a,b`` (one of the values), ``key!=a,b`` (none of them), or ``key<number`` and the like."""

    key: str
    relation: str
    values: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Return whether a cell's value fulfils it; no value (None) is ``null`` and is neither less nor greater."""
        if compare := _ORDERED.get(self.relation):
            number = _number(value)
            return number is not None and all(compare(number, float(wanted)) for wanted in self.values)
        return any(_equal(value, wanted) for wanted in self.values) == (self.relation == "=")

    def met(self, config: Mapping[str, Any]) -> bool:
        """Return whether a cell's config fulfils it."""
        return self.holds(value_at(config, self.key))

    def __str__(self) -> str:
        return f"{short(self.key)}{self.relation}{','.join(self.values)}"


def read_conditions(text: str, known: Sequence[str], option: str) -> list[Condition]:
    """Read ``key=value,key=value``; a part without a sign, or in quotes, is one more value of the condition before it.

    Raises:
        InputError: no condition, a key that no cell has, or an order with a value that is not a number.
    """
    found: list[Condition] = []
    for part in split(text):
        if match := re.fullmatch(r"([^=!<>\"']+)(!=|<=|>=|=|<|>)(.*)", part):
            word, relation, value = (group.strip() for group in match.groups())
            found.append(Condition(find_key(word, known, option), relation, (value,)))
        elif found and part.strip():
            last = found[-1]
            found[-1] = Condition(last.key, last.relation, (*last.values, part.strip()))
        else:
            raise InputError(f"{option} {text!r}: is no condition; write key=value, for example {option} defense=none")
        last = found[-1]
        if last.relation in _ORDERED and _number(last.values[-1]) is None:
            raise InputError(f"{option} {text!r}: {last.relation} goes with a number, not {last.values[-1]!r}")
    return found


def fulfilling(results: Sequence[Result], where: Sequence[str]) -> list[Result]:
    """Return the results of the cells that fulfil all conditions; `InputError` where none does, or as above."""
    known = list(dict.fromkeys(key for r in results for key, _ in flat(r.config))) if where else []
    conditions = [condition for text in where for condition in read_conditions(text, known, "--where")]
    kept = [r for r in results if all(condition.met(r.config) for condition in conditions)]
    if not kept:
        for condition in conditions:
            if not any(condition.met(r.config) for r in results):
                raise InputError(
                    f"--where {condition}: no cell is left; {choices(condition.key, [r.config for r in results])}"
                )
        given = " ".join(f"--where {text}" for text in where)
        raise InputError(f"{given}: no cell is left; each is true of some cells, but of none are all")
    return kept


def split(text: str) -> list[str]:
    """Split the text at commas outside brackets and quotes; a quote stands before or behind a whole item."""
    hidden = _QUOTED.sub(lambda match: "_" * len(match[0]), text)
    cuts = [-1, *(match.start() for match in re.finditer(r",(?![^\[]*\])", hidden)), len(text)]
    return [text[start + 1 : end] for start, end in pairwise(cuts)]


def unquoted(word: str) -> str:
    """Remove the quotes and spaces around a word."""
    return word.strip().strip("\"'")


def choices(key: str, configs: Iterable[Mapping[str, Any]]) -> str:
    """List the cells' values at a key, for a message; one that holds a comma stands in quotes, as it is to be given."""
    values = list(dict.fromkeys(_written(value_at(config, key)) for config in configs))
    return f"{short(key)} is {', '.join(values[:12])}{' ...' if len(values) > 12 else ''}"


def _written(value: Any) -> str:
    return printable(repr(value)) if isinstance(value, str) and "," in value else show(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _equal(value: Any, wanted: str) -> bool:
    """Return whether ``wanted``, as written on a command line, is ``value``: numbers as numbers, lists item by item."""
    if value is None:
        return wanted in ("null", "None", ABSENT)
    if isinstance(value, bool):
        return wanted.lower() == str(value).lower()
    if isinstance(value, int | float):
        return _number(wanted) == value
    if isinstance(value, list) and wanted.startswith("[") and wanted.endswith("]"):
        items = [item.strip() for item in split(wanted[1:-1])] if wanted[1:-1].strip() else []
        return len(items) == len(value) and all(map(_equal, value, items))
    return unquoted(wanted) == value if isinstance(value, str) else wanted == show(value)
