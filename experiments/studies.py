"""Run the studies, keep their results, and write what their READMEs show of them.

python experiments/studies.py run NAME... [KEY=VALUE...]   runs a study's commands, keeps what they give
python experiments/studies.py keep NAME FOLDER             makes what lies below FOLDER the study's results
python experiments/studies.py add NAME FOLDER              adds what lies below FOLDER to the study's results
python experiments/studies.py tables                       writes every block from "made by" to "end" anew, and pictures

A block of a page is made by the command that stands above it, so that no figure of a table is typed by hand.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fairpriv.cli import CONF, commands
from fairpriv.errors import InputError
from fairpriv.report.comparison import Comparison
from fairpriv.report.finding import find_results
from fairpriv.report.page import compare, markdown, selected
from fairpriv.report.published import measured
from fairpriv.report.reading import reading
from fairpriv.result import DESCRIBED, Result, write_whole

HERE = Path(__file__).parent
ROOT = HERE.parent
DRAWN = re.compile(r"<!-- drawn by: (fairpriv compare .+?) -->\n!\[[^]]*\]\((\w+\.png)\)")
BLOCK = re.compile(r"(<!-- made by: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
VARIABLE = re.compile(r'^(\w+)="(.*?)"$', re.DOTALL | re.MULTILINE)  # as a shell sets it

ALIKE = "alike.json"  # beside results: what their configs have in common, see `in_common`
_ALL = ("attack", "dimensions", "trainer", "training")  # sections that are left out only as a whole
_BY_NAME = ("dataset", "model", "defense", "game", "evaluation", "utility", "paths")  # and key by key
_TOLD = ("name", "alpha", "adaptive", "tau")  # what tables, pictures and published figures ask for, though it be alike
_ASKED = ("logger", "retry", "sweep", "threads")  # which sweep asked for a cell, and how
# The accuracy says it, and the sign of the AUC; of an equalized-odds gap the signed parts, label by label.
_TWICE = re.compile(r"attack/.*/(advantage|auc_inverted)|fairness/delta/.*")
_VERSIONS = ("python", "torch", "processor", "kernels")  # what is kept of a cell's environment


def studies() -> list[Path]:
    """List the folders of studies that keep cells."""
    return sorted(folder.parent for folder in HERE.glob("*/results"))


def tables() -> None:
    """Write every block of the pages anew."""
    for page in [HERE / "README.md", HERE / "published.md", *sorted(HERE.glob("*/README.md"))]:
        text = page.read_text(encoding="utf-8")
        if (new := rendered(text)) != text:
            write_whole(page, new.encode())
            print(f"{page.relative_to(ROOT)}: written anew")


def pictures() -> None:
    """Draw every picture anew above which a page names the ``fairpriv compare`` that draws it."""
    dated()
    for page in sorted(HERE.glob("*/README.md")):
        for command, name in DRAWN.findall(page.read_text(encoding="utf-8")):
            with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
                given = commands()["compare"].parse_intermixed_args(shlex.split(command)[2:])
                compare([ROOT / place for place in given.places], Path(out), where=given.where, by=given.by)
                write_whole(page.parent / name, Path(out, "plots", name).read_bytes())


def dated() -> None:
    """Date kept results in the order of their names: rows stand in the order of time, and git keeps no times."""
    for number, path in enumerate(sorted(HERE.rglob("results/*.json"))):
        os.utime(path, (number, number))


def rendered(text: str) -> str:
    """Return the page with its blocks made anew."""
    dated()
    return BLOCK.sub(lambda block: f"{block[1]}{made(block[2])}{block[4]}", text)


def made(command: str) -> str:
    """Return what a block holds: the output of one of our commands, in Markdown."""
    words = shlex.split(command)
    if words[:2] == ["fairpriv", "compare"]:
        return compared(words[2:])
    known: dict[str, Callable[[], Iterator[str]]] = {"costs": costs, "published": published}
    if words[:2] == ["python", "experiments/studies.py"] and words[2] in known:
        return "\n".join(known[words[2]]()) + "\n"
    return printed(words)


def printed(words: Sequence[str]) -> str:
    """Return what a script prints."""
    ended = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout


def compared(words: Sequence[str]) -> str:
    """Return what ``fairpriv compare`` prints with ``--format markdown``: the table, and how to read it."""
    given = commands()["compare"].parse_intermixed_args([*words])
    results, skipped = results_below(tuple(ROOT / place for place in given.places))
    if skipped:
        raise InputError(f"{skipped[0][0]}: {skipped[0][1]}")
    table = selected(results, given.where, given.by, given.baseline, given.pareto, given.metrics)
    return markdown(table, reading(table))


@functools.cache
def results_below(places: tuple[Path, ...]) -> tuple[list[Result], list[tuple[Path, str]]]:
    """Find the results below the places, once for all the blocks of a page."""
    return find_results(places)


def costs() -> Iterator[str]:
    """Write a line a study: its question, its cells and what they took."""
    yield "| study | cells | seeds | hours | on |"
    yield "|---|---:|---:|---:|---|"
    for folder in studies():
        cells = results_below((folder / "results",))[0]
        title = (folder / "README.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        hours = sum(sum(cell.seconds.values()) for cell in cells) / 3600
        seeds = len({cell.config["seed"] for cell in cells})
        devices = ", ".join(sorted({cell.device for cell in cells}))
        yield f"| [{title}]({folder.name}/README.md) | {len(cells)} | {seeds} | {hours:.1f} | {devices} |"


def published() -> Iterator[str]:
    """Write a line for every published figure, with ours beside it, or what it needs."""
    import yaml  # type: ignore[import-untyped]

    yield "| published | of | value | source | ours | what would settle it |"
    yield "|---|---|---|---|---|---|"
    for file in sorted((CONF / "published").glob("*.yaml")):
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        for figure in told["figures"]:
            here = "<br>".join(ours(figure)) or f"not run: needs {figure['needs']}"
            of = ", ".join(f"{key.removesuffix('.name')}={value}" for key, value in figure["where"].items())
            cells = [
                figure["what"],
                of,
                figure["value"],
                f"{told['source']}; by {told['by']}",
                here,
                figure["settled_by"],
            ]
            yield f"| {' | '.join(str(cell) for cell in cells)} |"


def ours(figure: Mapping[str, Any]) -> Iterator[str]:
    """Tell our figures of the same thing, a row of a study each, but for studies of the earlier design of the game."""
    for study in studies():
        cells = results_below((study / "results",))[0]
        table = Comparison.of(cell for cell in cells if cell.described)
        rows: dict[tuple[str, str], str] = {}
        for group, told in measured(table, figure):  # victims are the same, whatever their adversary knows
            rows.setdefault((re.sub(r", game\.adaptive=\w+", "", table.name(group)), told), table.name(group))
        for (_, told), name in rows.items():
            yield f"[{study.name}]({study.name}/README.md): {name}: {told}"


def run(names: Sequence[str], overrides: Sequence[str]) -> None:
    """Run the commands that a study's README begins with, below outputs/studies/NAME, and keep what they give.

    Where one cannot be run, as without its data set, the study stops, and what was kept of it stays.
    """
    stopped = False
    for name in names:
        root = ROOT / "outputs" / "studies" / name
        for words in commands_of((HERE / name / "README.md").read_text(encoding="utf-8")):
            if words[:1] == ["fairpriv"] and words[1] not in commands():
                words = [sys.executable, "-m", *words, f"paths.root={root}", *overrides]
                print(shlex.join(words), flush=True)
                status = subprocess.run(words).returncode
                if status == 2:  # says itself what is missing
                    print(f"{name} stops here, and nothing of it is kept: mend what is said above", flush=True)
                    stopped = True
                    break
                if status:
                    sys.exit(status)
        else:
            keep(name, root)
    if stopped:
        sys.exit(2)


def commands_of(page: str) -> Iterator[list[str]]:
    """Yield the words of each line of a page's first fence, with what a variable holds in place of its name."""
    fence = page.replace("\\\n", " ").split("```\n")[1]  # a later one may tell how settings were chosen
    for line in VARIABLE.sub("", fence).splitlines():
        for name, value in VARIABLE.findall(fence):
            line = line.replace(f"${name}", value.replace("\n", " "))
        yield shlex.split(line, comments=True)


def keep(name: str, folder: Path, *, beside: bool = False) -> None:
    """Put what comparing needs of a folder's cells into a study's results, in place of what is there or beside it."""
    results = HERE / name / "results"
    found = map(_read, sorted(folder.glob("cells/*/result.json")))
    cells = {told["id"]: _anywhere(told) for told in found}
    if not cells:
        raise InputError(f"{folder}: holds no cell")
    described: dict[str, Any] = {}
    there = sorted(path for path in results.glob("*.json") if path.name not in (DESCRIBED, ALIKE))
    if beside:
        described = _read(results / DESCRIBED) if (results / DESCRIBED).exists() else {}
        alike = _read(results / ALIKE) if (results / ALIKE).exists() else {}
        before = {told["id"]: told for told in map(_read, there)}
        for told in before.values():
            put_back(told["config"], alike)
        cells = before | cells
    for told in cells.values():
        ((told["config"].get("dataset") or {}).get("source") or {}).pop("cache", None)  # a place of this machine
    alike = in_common([told["config"] for told in cells.values()])
    texts: dict[str, str] = {}
    for told in cells.values():
        # What was read of the data is the same in every cell, victims' scores and what was hashed are of no use here.
        for part in ("metrics", "described", "intervals", "signed"):
            told[part] = {
                key: value
                for key, value in told.get(part, {}).items()
                if not (key.startswith("data/") or _TWICE.fullmatch(key))
            }
        told |= {"artifacts": {}, "outcome": {}}
        # constraints.txt of the commit says the rest.
        told["versions"] = {key: told["versions"][key] for key in _VERSIONS if key in told.get("versions", {})}
        told["config"] = {key: value for key, value in told["config"].items() if key not in _ASKED}
        leave_out(told["config"], alike)
        told |= {part: _rounded(told[part]) for part in ("metrics", "intervals", "signed")}
        # What metrics mean is said once, beside the results; one that says something else keeps it.
        told["described"] = {k: v for k, v in told["described"].items() if described.setdefault(k, v) != v}
        texts[f"{told['id']}.json"] = json.dumps(_said(told), separators=(",", ":"))
    if described:
        texts[DESCRIBED] = json.dumps(described, indent=1)
    if alike:
        texts[ALIKE] = json.dumps(alike, indent=1)
    for path in results.glob("*.json"):
        if path.name not in texts:
            path.unlink()
    for file, text in texts.items():
        write_whole(results / file, text.encode() + b"\n")
    print(f"{results.relative_to(ROOT)}: {len(cells)} cells")


def _anywhere(told: dict[str, Any]) -> dict[str, Any]:
    """Return a result without paths of the machine that ran it, so that cells of two machines have these in common."""
    text, paths = json.dumps(told), told["config"].get("paths") or {}
    for place, where in (("data", "data"), ("root", "outputs")):
        if Path(paths.get(place) or "").is_absolute():
            text = re.sub(re.escape(json.dumps(paths[place])[1:-1]) + r'(?=[/"])', where, text)
    return cast(dict[str, Any], json.loads(text))


def _read(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(path.read_bytes()))


def in_common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what splits no row: sections that all have alike, and keys of others that no two cells have unlike.

    These are kept by the name of their data set, model or defence. A key is left out of them if all cells of each
    name have it alike, so that a table shows it of all names or of none.
    """
    first = configs[0]
    found = {part: first[part] for part in _ALL if first.get(part)}
    found = {part: said for part, said in found.items() if all(config.get(part) == said for config in configs)}
    for part in _BY_NAME:
        own: dict[str, list[Mapping[str, Any]]] = {}
        for config in configs:
            if section := config.get(part):
                own.setdefault(_name(part, section), []).append(section)
        unlike = {
            key for ones in own.values() for one in ones for key in {*one, *ones[0]} if not _same(key, one, ones[0])
        }
        shared = {
            name: {key: value for one in ones for key, value in one.items() if key not in unlike and key not in _TOLD}
            for name, ones in sorted(own.items())
        }
        if shared := {name: keys for name, keys in shared.items() if keys}:
            found[part] = shared
    return found


def _name(part: str, section: Mapping[str, Any]) -> str:
    """Return the name under which `in_common` keeps a section: its own, if it has one."""
    return str(section.get("name", part))


def _same(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return json.dumps(one.get(key)) == json.dumps(other.get(key))  # what came later and is null left cells as they were


def leave_out(config: dict[str, Any], alike: Mapping[str, Any]) -> None:
    """Leave of what is `in_common` the names of attacks and dimensions, and the precision of training."""
    config |= {part: {name: {} for name in alike[part]} for part in ("attack", "dimensions") if part in alike}
    if "training" in alike:
        del config["training"]
    if "trainer" in alike:
        config["trainer"] = {key: alike["trainer"][key] for key in ("precision",) if key in alike["trainer"]}
    for part in _BY_NAME:
        if section := config.get(part):
            without = alike.get(part, {}).get(_name(part, section), {})
            config[part] = {key: value for key, value in section.items() if key not in without}


def put_back(config: dict[str, Any], alike: Mapping[str, Any]) -> None:
    """Undo `leave_out`."""
    config |= {part: alike[part] for part in _ALL if part in alike}
    for part in _BY_NAME:
        if (section := config.get(part)) is not None:  # empty, where all of it was left out
            config[part] = section | alike.get(part, {}).get(_name(part, section), {})


def _said(told: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is empty or null, as a field that a file lacks is read."""
    return {key: value for key, value in told.items() if value not in (None, {}, [])}


def _rounded(value: Any) -> Any:
    """Keep seven digits of each number, where a table shows four: by six some intervals, and their ends, differ."""
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def main(words: Sequence[str]) -> None:
    """Carry out one of the commands above."""
    match [*words]:
        case ["run", *rest] if rest:
            run([word for word in rest if "=" not in word], [word for word in rest if "=" in word])
        case ["keep", name, folder]:
            keep(name, Path(folder))
        case ["add", name, folder]:
            keep(name, Path(folder), beside=True)
        case ["tables"]:
            tables()
            pictures()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
