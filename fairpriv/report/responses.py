"""The responses of language models, before and after a defence: a page for each cell, beside the report."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairpriv.result import Result, read_rows, write_whole

RESPONSES, FOLDER = "responses.jsonl", "responses"
MOST_PAGES, MOST_ROWS = 60, 5000  # what a folder and a browser hold well
TURNS = ("became safe", "became unsafe", "stayed safe", "stayed unsafe", "safe", "unsafe", "not judged")


def turn(row: dict[str, Any]) -> str:
    """Name what happened to the verdict of a response, one of ``TURNS``: the last three where nothing was before."""
    after, before = row.get("safe"), row.get("safe_before")
    if not isinstance(after, bool):
        return "not judged"
    word = "safe" if after else "unsafe"
    return word if not isinstance(before, bool) else f"stayed {word}" if before == after else f"became {word}"


def write_responses(cells: Iterable[tuple[str, Result]], out: Path) -> tuple[list[tuple[str, str, int]], int]:
    """Write ``responses/<id>.html`` for each cell that has kept its responses, and remove ours of other cells.

    Everything that comes from a file is escaped.

    Args:
        cells: each cell's name and its result, as it was found.
        out: the report's folder.

    Returns:
        For each page its cell's name, its address seen from the report, and its number of responses; and how many
        cells have none because there are more than ``MOST_PAGES``.
    """
    pages: list[tuple[str, str, int]] = []
    left = 0
    for name, result in cells:
        if "responses" not in result.artifacts or result.folder is None or not re.fullmatch(r"[\w-]+", result.id):
            continue
        if len(pages) == MOST_PAGES:
            left += 1
        elif rows := [row for row in read_rows(result.folder / RESPONSES) if _whole(row)]:
            address = f"{FOLDER}/{result.id}.html"
            write_whole(out / address, _page(name, rows).encode("utf-8", "replace"))
            pages.append((name, address, len(rows)))
    kept = {address for _, address, _ in pages}
    for old in (out / FOLDER).glob("*.html"):
        if f"{FOLDER}/{old.name}" not in kept and re.fullmatch(r"[0-9a-f]{16}", old.stem):
            old.unlink()
    return pages, left


def _whole(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(key), str) for key in ("dimension", "prompt", "response"))


def _page(name: str, rows: list[dict[str, Any]]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (here / "responses.js").read_text(encoding="utf-8")
    turns = Counter(map(turn, rows))
    return environment.get_template("responses.html.j2").render(
        name=name,
        rows=[(turn(row), row) for row in rows[:MOST_ROWS]],
        total=len(rows),
        turns={word: turns[word] for word in TURNS if turns[word]},
        dimensions=[*dict.fromkeys(row["dimension"] for row in rows)],
        before=any("before" in row for row in rows),
        style=Markup((here / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
