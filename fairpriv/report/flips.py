"""Prompts whose verdict a defence turned, both ways: what the model answered before and after, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fairpriv.result import Result, read_rows, write_rows

FLIPS = "flips.jsonl"
CAP = 25  # flips of a dimension and direction that are kept; the metrics count all
LENGTH = 1000  # characters of a text that are kept


@dataclass(frozen=True)
class Flip:
    """One prompt whose response was safe and is not any more, or the other way round."""

    dimension: str
    prompt: str
    before: str  # the untouched model's response
    after: str
    safe: bool  # whether the response after is
    reason_before: str  # the judge's
    reason_after: str


def write_flips(path: Path, flips: Sequence[Flip]) -> None:
    """Write the first ``CAP`` flips of each dimension and direction, texts cut to ``LENGTH``."""
    kept: dict[tuple[str, bool], list[Flip]] = {}
    for flip in flips:
        kept.setdefault((flip.dimension, flip.safe), []).append(flip)
    write_rows(path, [_cut(asdict(flip)) for group in kept.values() for flip in group[:CAP]])


def _cut(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: f"{value[:LENGTH]} …" if isinstance(value, str) and len(value) > LENGTH else value
        for key, value in row.items()
    }


def read_flips(path: Path) -> list[Flip]:
    """What a cell kept; none where the file is missing or is not whole."""
    names = {field.name for field in fields(Flip)}
    rows = read_rows(path)
    return [Flip(**row) for row in rows] if all(set(row) == names for row in rows) else []


def flips_html(cells: Iterable[tuple[str, Result]]) -> str:
    """A piece of the report: for each cell that kept flips a table, folded; an empty string where none has.

    Everything that comes from a file is escaped.

    Args:
        cells: what a cell is called, and its result, as it was found.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = [(name, read_flips(r.folder / FLIPS), _counted(r)) for name, r in cells if r.folder is not None]
    found = [(name, flips, counted) for name, flips, counted in found if flips]
    if not found:
        return ""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("flips.html.j2").render(cells=found)


def _counted(result: Result) -> int:
    return sum(int(value or 0) for name, value in result.metrics.items() if name.startswith("analysis/flips/"))
