"""Prompts whose verdict a defence turned, either way, with the model's answers before and after side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairpriv.report.templates import environment
from fairpriv.result import Result, read_rows

FLIPS = "flips.jsonl"
COLUMNS = {"dimension", "prompt", "before", "after", "safe", "reason_before", "reason_after"}


def read_flips(path: Path) -> list[dict[str, Any]]:
    """Read what a cell kept; return nothing where the file is missing or damaged."""
    rows = read_rows(path)
    return rows if all(set(row) == COLUMNS for row in rows) else []


def flips_html(cells: Iterable[tuple[str, Result]]) -> str:
    """Write a piece of the report: a folded table for each cell that kept flips; an empty string where none has.

    Everything that comes from a file is escaped.

    Args:
        cells: each cell's name and its result, as it was found.
    """
    found = [(name, read_flips(r.folder / FLIPS), _counted(r)) for name, r in cells if r.folder is not None]
    found = [(name, flips, counted) for name, flips, counted in found if flips]
    if not found:
        return ""
    return environment().get_template("flips.html.j2").render(cells=found)


def _counted(result: Result) -> int:
    return sum(int(value or 0) for name, value in result.metrics.items() if name.startswith("analysis/flips/"))
