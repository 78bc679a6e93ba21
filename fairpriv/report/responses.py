"""The responses of language models, before and after a defence: in the terminal, and on pages beside the report."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fairpriv.errors import InputError
from fairpriv.report.finding import find_results
from fairpriv.report.selection import fulfilling, printable
from fairpriv.report.templates import environment
from fairpriv.result import Result, cell_name, read_rows, write_whole

RESPONSES, FOLDER = "responses.jsonl", "responses"
MOST_PAGES, MOST_ROWS = 60, 5000  # what a folder and a browser hold well
TURNS = ("became safe", "became unsafe", "stayed safe", "stayed unsafe", "safe", "unsafe", "not judged")
VERDICTS = {"safe": True, "unsafe": False, "none": None}  # as a filter has them
FLIPS = {"safe": ("became safe",), "unsafe": ("became unsafe",), "any": ("became safe", "became unsafe")}


class Said(NamedTuple):
    """What one judge says of a response, and what it said of the untouched model's: None where it said nothing."""

    safe: bool | None
    reason: str
    before: bool | None
    reason_before: str

    @property
    def turn(self) -> str:
        """Name what happened to the verdict, one of ``TURNS``: the last three where nothing was before."""
        if self.safe is None:
            return "not judged"
        word = verdict_word(self.safe)
        return word if self.before is None else f"stayed {word}" if self.before == self.safe else f"became {word}"


@dataclass(frozen=True)
class Response:
    """One line of ``responses.jsonl``, with the verdicts of its judges by name, the one that counts first."""

    row: dict[str, Any]
    said: dict[str, Said]

    @property
    def place(self) -> str:
        """The dimension, and the set of its prompts where that is not the one that is judged."""
        kind = self.row.get("set", "evaluate")
        return self.row["dimension"] if kind == "evaluate" else f"{self.row['dimension']} ({kind})"

    @property
    def turn(self) -> str:
        """What happened to the verdict that counts."""
        return next(iter(self.said.values())).turn if self.said else "not judged"

    @property
    def disputed(self) -> bool:
        """Whether its judges do not all say the same."""
        return len({said.safe for said in self.said.values()}) > 1


def verdict_word(safe: bool | None) -> str:
    """Write a verdict as a word."""
    return {True: "safe", False: "unsafe", None: "not judged"}[safe]


def read_responses(result: Result) -> list[Response]:
    """Read what a cell has kept, those on which judges differ first; nothing where it has kept none, or is damaged."""
    if "responses" not in result.artifacts or result.folder is None:
        return []
    rows = read_rows(result.folder / RESPONSES)
    whole = [row for row in rows if all(isinstance(row.get(key), str) for key in ("dimension", "prompt", "response"))]
    return sorted((Response(row, _said(row)) for row in whole), key=lambda response: not response.disputed)


def _said(row: dict[str, Any]) -> dict[str, Said]:
    """Collect the verdicts of a row; what has another form is no verdict."""

    def of(told: Any) -> tuple[bool | None, str]:
        safe, reason = told if isinstance(told, list) and len(told) == 2 else (None, "")
        return safe if isinstance(safe, bool) else None, str(reason or "")

    others, before = (found if isinstance(found := row.get(key), dict) else {} for key in ("judges", "judges_before"))
    said = {name: Said(*of(told), *of(before.get(name))) for name, told in others.items()}
    if "safe" not in row:
        return said
    first = [of([row.get(f"safe{when}"), row.get(f"reason{when}")]) for when in ("", "_before")]
    return {str(row.get("judge") or "judge"): Said(*first[0], *first[1]), **said}


def print_responses(
    folders: Sequence[Path],
    *,
    where: Sequence[str] = (),
    dimension: str | None = None,
    judge: str | None = None,
    verdict: str | None = None,
    flip: str | None = None,
    limit: int = 20,
) -> int:
    """Print the responses of the cells below ``folders``, those on which judges differ first.

    Args:
        folders: folders with results, at any depth.
        where: conditions such as ``defense=spin``; only cells that fulfil all of them take part.
        dimension: names, with commas; None: all.
        judge: whose verdicts ``verdict`` and ``flip`` are about; None: those that count.
        verdict: one of ``VERDICTS``.
        flip: one of ``FLIPS``: which verdict a defence has turned, and to what.
        limit: at most as many are printed; 0: all.

    Raises:
        InputError: no cell has kept responses, or the filter names what none of them has.
    """
    from fairpriv.config.schema import nearest

    for option, word, known in (("--verdict", verdict, VERDICTS), ("--flip", flip, FLIPS)):
        if word is not None and word not in known:
            raise InputError(f"{option} {word}: must be one of {', '.join(known)}{nearest(word, [*known])}")
    if limit < 0:
        raise InputError(f"--limit {limit}: must be 1 or more, or 0 for all")
    results, _ = find_results(folders)
    found = [(result, read_responses(result)) for result in (fulfilling(results, where) if results else [])]
    every = [(result, response) for result, responses in found for response in responses]
    lost = [
        Path(result.folder, RESPONSES)
        for result, responses in found
        if not responses and result.folder is not None and "responses" in result.artifacts
    ]
    for file in lost:
        if every:
            print(f"{file}: is gone or damaged, and left out", file=sys.stderr)
    if lost and not every:
        raise InputError(f"{lost[0]}: is gone or damaged: run the cell again (retry=all)")
    if not every:
        places = ", ".join(map(str, folders))
        raise InputError(f"no responses below {places}: cells of language models keep them, beside their result.json")
    dimensions = [word.strip() for word in dimension.split(",")] if dimension is not None else []
    judges = [judge] if judge is not None else []
    there = {
        "--dimension": {str(r.row["dimension"]) for _, r in every},
        "--judge": {j for _, r in every for j in r.said},
    }
    for option, words in (("--dimension", dimensions), ("--judge", judges)):
        for word in words:
            if word not in there[option]:
                names = sorted(there[option])
                raise InputError(f"{option} {word}: there is none; there are {', '.join(names)}{nearest(word, names)}")

    def fits(response: Response) -> bool:
        said = response.said.get(judge) if judge is not None else next(iter(response.said.values()), None)
        return (
            (not dimensions or response.row["dimension"] in dimensions)
            and (judge is None or said is not None)
            and (verdict is None or (said.safe if said else None) is VERDICTS[verdict])
            and (flip is None or (said is not None and said.turn in FLIPS[flip]))
        )

    kept = [(result, response) for result, response in every if fits(response)]
    kept.sort(key=lambda one: not one[1].disputed)  # over all cells
    shown = kept[: limit or None]
    room = min(shutil.get_terminal_size().columns, 120) if sys.stdout.isatty() else 120
    for result, response in shown:
        print("\n".join(_lines(result, response, room)).encode("utf-8", "replace").decode(), end="\n\n")
    disputed = sum(response.disputed for _, response in kept)
    told = f"{len(kept)} of {len(every)} responses" + (f", {disputed} on which judges differ" if disputed else "")
    print(told + (f"; {len(shown)} are shown, --limit 0 shows all" if len(shown) < len(kept) else ""))
    return 0


def _lines(result: Result, response: Response, room: int) -> list[str]:
    """Write one response for a terminal of ``room`` columns, without characters that control it."""
    row = response.row
    lines = [f"{printable(response.place)}; {printable(cell_name(result.config))} ({result.id})"]
    for name, said in response.said.items():
        lines.append(f"  {printable(name)}: {said.turn}" + (f" ({printable(said.reason)})" if said.reason else ""))
    parts = [("prompt", row["prompt"])]
    if isinstance(row.get("before"), str):
        parts += [("before", row["before"])]
    for name, text in (*parts, ("after" if len(parts) > 1 else "response", row["response"])):
        folded = [
            line for part in text.strip().splitlines() for line in textwrap.wrap(printable(part), room - 11) or [""]
        ]
        for at, line in enumerate(folded or ["(empty)"]):
            lines.append(f"  {'' if at else name:<8} {line}".rstrip())
    return lines


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
        elif responses := read_responses(result):
            address = f"{FOLDER}/{result.id}.html"
            write_whole(out / address, _page(name, responses).encode("utf-8", "replace"))
            pages.append((name, address, len(responses)))
    kept = {address for _, address, _ in pages}
    for old in (out / FOLDER).glob("*.html"):
        if f"{FOLDER}/{old.name}" not in kept and re.fullmatch(r"[0-9a-f]{16}", old.stem):
            old.unlink()
    return pages, left


def _page(name: str, responses: Sequence[Response]) -> str:
    from markupsafe import Markup

    templates = environment()
    templates.globals["verdict_word"] = verdict_word
    here = Path(__file__).parent
    script = (here / "responses.js").read_text(encoding="utf-8")
    turns = Counter(response.turn for response in responses)
    return templates.get_template("responses.html.j2").render(
        name=name,
        responses=responses[:MOST_ROWS],
        total=len(responses),
        turns={word: turns[word] for word in TURNS if turns[word]},
        verdicts=[*map(verdict_word, VERDICTS.values())],
        dimensions=[*dict.fromkeys(response.row["dimension"] for response in responses)],
        judges=[*dict.fromkeys(judge for response in responses for judge in response.said)],
        disputed=sum(response.disputed for response in responses),
        before=any("before" in response.row for response in responses),
        style=Markup((here / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
