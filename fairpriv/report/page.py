"""``fairpriv compare``: results of many cells as one table, plots and a report."""

from __future__ import annotations

import base64
import contextlib
import csv
import fnmatch
import gc
import hashlib
import html
import io
import re
import shlex
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import combining, east_asian_width

from fairpriv import __version__
from fairpriv.config.plugins import CONF
from fairpriv.errors import InputError
from fairpriv.metrics import Metric
from fairpriv.report.comparison import (
    ALPHA,
    DATASET,
    DEFENCE,
    FLOOR,
    NOTHING,
    UNDEFENDED,
    Comparison,
    Estimate,
    Group,
    code_version,
    comparable,
    described,
)
from fairpriv.report.finding import NOT_FINISHED, find_results
from fairpriv.report.flips import flips_html
from fairpriv.report.judges import judges_html
from fairpriv.report.published import Published, published
from fairpriv.report.reading import interval_text, number, reading
from fairpriv.report.responses import write_responses
from fairpriv.report.selection import (
    ABSENT,
    choices,
    find_key,
    flat,
    fulfilling,
    printable,
    read_conditions,
    short,
    show,
    split,
    unquoted,
)
from fairpriv.report.templates import environment
from fairpriv.result import Result, write_whole

if TYPE_CHECKING:
    from markupsafe import Markup

FORMATS = ("table", "csv", "markdown", "html")
_DRAWN_SETTINGS, _DRAWN_GROUPS = 4, 60  # of a picture, which takes long to draw; the report's own plot takes all
_DRAWN_OF_MANY = 2  # settings, where there are more groups than that


def compare(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    where: Sequence[str] = (),
    by: str | None = None,
    baseline: str | None = None,
    pareto: str | None = None,
    metrics: str | None = None,
    form: str = "table",
) -> int:
    """Print the results below ``folders``; write ``report.html``, ``table.csv`` and ``plots/``.

    Args:
        folders: folders with results, at any depth.
        out: folder for the files, by default the first folder.
        where: conditions such as ``defense=spin``; only cells that fulfil all of them take part.
        by: config keys, with commas, to group by; by default, cells that differ only in their seed are a row.
        baseline: conditions, with commas, on the cells that differences refer to; by default ``defense=none``.
        pareto: metrics, with commas, whose front is marked.
        metrics: names or patterns (``attack/*/leakage``), with commas, of the table's columns in their order; by
            default, those that are declared for it.
        form: the printed format, one of ``FORMATS``; all but ``table`` are printed alone, and the rest goes to stderr.

    Raises:
        InputError: there is no folder, no result in it or none left after the conditions, a key or metric that no cell
            has, or ``out`` cannot be written.
    """
    with _uncollected():
        return _compare(folders, out, where, by, baseline, pareto, metrics, form)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Let the collector of circular references rest: what thousands of results make has none, and it reads it all."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _compare(
    folders: Sequence[Path],
    out: Path | None,
    where: Sequence[str],
    by: str | None,
    baseline: str | None,
    pareto: str | None,
    metrics: str | None,
    form: str,
) -> int:
    from fairpriv.config.schema import nearest

    if form not in FORMATS:
        raise InputError(f"--format {form}: must be one of {', '.join(FORMATS)}{nearest(form, FORMATS)}")
    results, skipped = find_results(folders)
    unfinished = sum(reason == NOT_FINISHED for _, reason in skipped)
    skipped = [(path, reason) for path, reason in skipped if reason != NOT_FINISHED]
    if not results:
        rest = [f"cells not finished: {unfinished}"] if unfinished else []
        rest += [f"skipped {path}: {reason}" for path, reason in skipped[:1]]
        places = ", ".join(map(str, folders))
        raise InputError("; ".join([f"no result of fairpriv below {places}: run an experiment first", *rest]))
    table = selected(results, where, by, baseline, pareto, metrics)
    about, said, theirs = number_notes(table), reading(table), published(table, CONF / "published")
    notes = [*about, *_notes(table, skipped, unfinished), *map(str, theirs)]
    if form == "table":
        _print(table, said, notes)
    if out is None:
        out = folders[0] if folders[0].is_dir() else folders[0].parent
    try:
        write_whole(out / "table.csv", (lines := _csv(table)).encode("utf-8", "replace"))
        figures, undrawn = _write_plots(table, out / "plots")
        options = [word for text in where for word in ("--where", text)]
        named = (("--by", by), ("--baseline", baseline), ("--pareto", pareto), ("--metrics", metrics))
        options += [word for option, text in named if text is not None for word in (option, text)]
        command = shlex.join(["fairpriv", "compare", *map(str, folders), *options])
        cells = _cells(table)
        named_cells = [(f"{table.name(table.groups[i])}, seed {seed}", result) for i, seed, result in cells]
        responses, left = write_responses(named_cells, out)
        if left:
            undrawn.append(f"no page of the responses of {left} more cells: choose with --where")
        read = judges_html(table) + flips_html(named_cells)
        page = _html(table, cells, figures, said, about, skipped, unfinished, command, responses, read, theirs)
        write_whole(out / "report.html", page.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"cannot write to '{out}': {error.strerror}; name another folder with --out") from None
    last = [*undrawn, f"report: {out / 'report.html'}"]
    if form == "table":
        for line in last:
            _say(line)
        return 0
    printed = {"csv": lines, "html": page, "markdown": ""}[form] or markdown(table, [*said, *notes])
    _say(printed.removesuffix("\n"))
    sys.stdout.flush()
    for line in last if form == "markdown" else [*said, *notes, *last]:
        print(line, file=sys.stderr)
    return 0


def _matching(patterns: str, known: Sequence[str]) -> list[str]:
    """List the metrics that the patterns name, in their order, each once."""
    from fairpriv.config.schema import nearest

    found: dict[str, None] = {}
    for pattern in split(patterns):
        word = unquoted(pattern)
        if not (named := [word] if word in known else fnmatch.filter(known, word)):
            raise InputError(f"--metrics {pattern}: no cell has such a metric{nearest(pattern, known)}")
        found |= dict.fromkeys(named)
    return [*found]


def selected(
    results: Sequence[Result],
    where: Sequence[str],
    by: str | None,
    baseline: str | None,
    pareto: str | None,
    metrics: str | None,
) -> Comparison:
    """Make the comparison that the options of `compare` ask for."""
    from fairpriv.config.schema import nearest

    kept = fulfilling(results, where)
    named = by is not None or baseline is not None
    known = list(dict.fromkeys(key for r in results for key, _ in flat(r.config))) if named else []
    keys = list(dict.fromkeys(find_key(word.strip(), known, "--by") for word in split(by))) if by is not None else []
    references = UNDEFENDED if baseline is None else tuple(read_conditions(baseline, known, "--baseline"))
    for condition in references if baseline is not None else ():
        if condition.key == "seed":
            raise InputError(f"--baseline {condition}: differences are within a seed: choose seeds by --where")
        if not any(condition.met(r.config) for r in kept):
            options = choices(condition.key, [r.config for r in kept])
            raise InputError(f"--baseline {condition}: no cell is left to compare with; {options}")
    front = [unquoted(word) for word in split(pareto)] if pareto is not None else []
    measured = described(kept) if front else {}
    for metric in front:
        if metric not in measured:
            raise InputError(f"--pareto {metric}: no cell has that metric{nearest(metric, [*measured])}")
        if not measured[metric].sign:
            instead = f": use {measured[metric].instead}" if measured[metric].instead else ""
            raise InputError(f"--pareto {metric}: has no direction, neither higher nor lower being better{instead}")
    if pareto is not None and len(set(front)) < 2:
        raise InputError(f"--pareto {pareto}: needs two metrics, as in --pareto eval/accuracy,privacy/accuracy_gap")
    table = Comparison.of(kept, keys, references, list(dict.fromkeys(front)))
    table.shown = _matching(metrics, table.metrics) if metrics is not None else ()
    return table


def floor_text(metric: Metric, floors: Mapping[str, tuple[str, float]]) -> str:
    """Write ``floor`` or ``nothing`` with its number, to stand behind the interval; empty where there is neither."""
    word, value = floors.get(metric.name, ("", 0.0))
    return f"{word} {number(metric, value)}" if word else ""


def place_cells(texts: Sequence[str], place: Sequence[str]) -> Markup:
    """Write a row's leading cells for the report, after one cell, shown where room is short, that joins them all.

    They are one string, as in `number_cells`.
    """
    from markupsafe import Markup, escape

    texts = [str(escape(text)) for text in texts]
    joined = [
        f"<b>{text}</b>" if key in (DATASET, DEFENCE) else f"{escape(key.rpartition('.')[2])}={text}"
        for key, text in zip(place, texts, strict=True)
        if text != ABSENT
    ]
    rest = "".join(f'<th scope="row" class="place">{text}</th>' for text in texts)
    return Markup(f'<th scope="row" class="whole">{", ".join(joined)}</th>{rest}')


def number_cells(
    metrics: Iterable[Metric],
    estimates: Mapping[str, Estimate],
    n: int,
    best: Container[str] = (),
    floors: Mapping[str, tuple[str, float]] | None = None,
    sign: str = "",
) -> Markup:
    """Write a row's numbers as cells of the report, in one string; a template would take several times as long."""
    from markupsafe import Markup

    cells = []
    for metric in metrics:
        if estimate := estimates.get(metric.name):
            mean = number(metric, estimate.mean, sign)
            if metric.name in best:
                mean = f'<b class="best" title="best">{mean}</b>'
            text = f'{mean} <span class="interval">{interval_text(metric, estimate, n, sign)}</span>'
            if floor := floor_text(metric, floors or {}):
                text += f' <span class="floor">{floor}</span>'
            cells.append(f'<td class="number" data-v="{estimate.mean}">{text}</td>')
        else:
            cells.append(f'<td class="number">{ABSENT}</td>')
    return Markup("".join(cells))  # numbers only: nothing to escape


def heading(key: str) -> str:
    """Name a leading column."""
    return "defence" if key == DEFENCE else short(key)


def one_line(text: str | None) -> str:
    """Remove the line breaks from the text."""
    return " ".join((text or "").split())


def seeds(group: Group) -> str:
    """Count a group's seeds; with its cells, where they are more, and with those that were started."""
    n, started = len(group.completed), len(group.completed) + len(group.failed)
    cells = str(n) if n == started else f"{n}/{started}"
    return cells if group.seeds == n else f"{group.seeds} ({cells} cells)"


def reasons(group: Group) -> list[tuple[str, list[str]]]:
    """List why cells of a group are degenerate, each with the seeds of the cells."""
    found: dict[str, list[str]] = {}
    for seed, result in _by_seed(group.degenerate):
        found.setdefault("; ".join(result.degenerate), []).append(seed)
    return [*found.items()]


def _by_seed(cells: Mapping[str, Result]) -> list[tuple[str, Result]]:
    """Sort cells by what tells them apart, seeds as numbers."""
    return sorted(cells.items(), key=lambda item: (len(item[0]), item[0]))


def _notes(table: Comparison, skipped: Sequence[tuple[Path, str]], unfinished: int) -> list[str]:
    """Collect further notes for the reader, a line each."""
    notes = []
    if any(group.seeds != len(group.completed) for group in table.groups):
        notes.append("several cells a seed: they are averaged first, so that intervals are over seeds")
    if any(group.best for group in table.groups):
        notes.append(
            "*: best mean among the groups of its dataset and game that have no degenerate cell and are no control"
        )
    if table.pareto:
        metrics = ", ".join(table.described[name].title for name in table.pareto)
        notes.append(f"front: no other group of its dataset and game is as good in all of {metrics} and better in one")
    for group in table.groups:
        if marked := dict(_by_seed(group.degenerate)):
            pooled = group.seeds != len(group.completed)
            which = ("; " if pooled else ", ").join([*marked][:10]) + (" ..." if len(marked) > 10 else "")
            of = f"{len(marked)} of {len(group.completed)} {'cells' if pooled else 'seeds'} ({which})"
            whose = f"seed {next(iter(marked))}: " if len(reasons(group)) > 1 else ""
            reason = one_line(next(iter(marked.values())).degenerate[0])
            notes.append(f"† degenerate: {table.name(group)}: {of}: {whose}{reason}")
        if group.uneven:
            notes.append(f"uneven: {table.name(group)}: its seeds do not have the same cells, so means may mix up both")
    if table.ambiguous:
        keys = ", ".join(str(condition) for condition in table.baseline)
        first, n = table.name(table.ambiguous[0]), len(table.ambiguous)
        notes.append(
            f"no differences: {first}{f' and {n - 1} more' if n > 1 else ''}: several fit the baseline {keys}; "
            "say more with --baseline or --where"
        )
    environments = table.environments
    for key, meaning in (
        ("code", f"the cells come from {len(environments.get('code', ()))} versions"),
        ("processor", "the same cell may give other numbers on another"),
        ("kernels", "the same cell may give other numbers on others"),
    ):
        if key in environments:
            counts = ", ".join(f"{value} ({n})" for value, n in environments[key].most_common())
            notes.append(f"{key}: {meaning}: {counts}")
    for group in table.groups:
        for seed, result in group.failed.items():
            notes.append(f"failed: {result.id}: {table.name(group)}, seed {seed}: {result.reason}")
    for result in table.replaced:
        notes.append(f"left out: {result.id}: a newer cell has the same seed and config, as far as it is read")
    notes += [f"skipped: {path}: {one_line(reason)}" for path, reason in skipped]
    return [*notes, f"cells not finished: {unfinished}"] if unfinished else notes


def number_notes(table: Comparison) -> list[str]:
    """Explain the intervals, the texts behind them, and which rows are controls; a line each."""
    kinds, bare, alone = set(), set(), set()
    two = False
    for group in table.groups:
        pure = group.leaves.get(ALPHA) in (0, 1)
        for metric, estimate in group.estimates.items():
            if estimate.n == 2 and estimate.lo is not None:
                two = True
            elif estimate.lo is not None:
                kinds.add((estimate.n == 1, estimate.half is None))
            elif estimate.n > 1:
                bare.add(metric)
            elif pure:
                alone.add(metric)
    notes = []
    if (False, False) in kinds:
        notes.append("mean ±half-width of the 95 % t interval over seeds")
    if (False, True) in kinds:
        notes.append(
            "mean [lo, hi] of a gap or a leakage: from t intervals over seeds of the signed differences behind it, so "
            "that it starts at 0 where no difference is shown"
        )
    if two:
        notes.append("±?: two seeds cannot tell; run three or more (table.csv has their t intervals, wide as they are)")
    if (True, True) in kinds:
        notes.append("value [lo, hi]: one seed; the interval is the cell's own, over test rows and not over seeds")
    if any(group.overlap is not None and group.seeds > 1 for group in table.groups):
        notes.append(
            "over seeds, which are overlapping splits of one data set (Nadeau-Bengio corrected): about new data, not "
            "about new splits"
        )
    columns = table.columns
    if labels := [metric.title for name, metric in columns.items() if name in bare]:
        notes.append(
            f"no interval over seeds of {', '.join(labels)}: some cells lack the signed differences that it follows "
            "from (a mean of absolute gaps has none, nor has an earlier version), or are averaged with others "
            "of one seed only; and an interval of the absolute values would never hold 0"
        )
    words = {group.floors[metric][0] for group in table.groups for metric in columns if metric in group.floors}
    if FLOOR in words:
        notes.append(
            "floor: the mean where there is nothing to find: of a gap, with predictions dealt at random among the rows "
            "of a label; of a leakage, with guesses"
        )
    if NOTHING in words:
        notes.append("nothing: the mean of the same cells with game.alpha=0.5, where both worlds are one distribution")
    if any(table.described[name].null_arm and name in columns for name in alone):
        notes.append(
            "leakage without an interval: at game.alpha=1 victims tell of their one split only: set game.repeats=5 or "
            "more, or give several seeds"
        )
    controls: dict[str, list[str]] = {}
    for group in table.groups:
        if group.control is not None:
            controls.setdefault(group.control, []).append(table.name(group))
    for reason, names in controls.items():
        which = "; ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        notes.append(f"control, never the best and on no front: {which}: {one_line(reason)}")
    return notes


def _print(table: Comparison, said: Sequence[str], notes: Sequence[str]) -> None:
    # A narrow terminal gets closer columns, then intervals below the means, and fewer columns, but nothing is cut off.
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    names = [*table.columns.values()]
    kept = [metric for metric in names if not metric.spared]
    tallies = table.tallies
    for shown, style in ((names + tallies, "wide"), (kept + tallies, "tight"), (kept, "stacked")):
        lines = _lines_of_table(table, shown, style)
        if max(map(_width, lines)) <= room:
            break
    if left_out := [printable(metric.title) for metric in names + tallies if metric not in shown]:
        notes = [*notes, f"no room for {', '.join(left_out)}: see the report"]
    wide = min(room, 120)
    _say("\n".join([*(textwrap.fill(printable(line), wide) for line in said), "", *lines, *map(printable, notes)]))


def _lines_of_table(table: Comparison, shown: Sequence[Metric], style: str) -> list[str]:
    """Write the text table of the metrics and tallies ``shown``; see ``_print`` for ``style``."""
    wide = style == "wide"
    tallies = [metric for metric in table.tallies if metric in shown]
    columns = [metric for metric in shown if metric not in tallies]
    head = [heading(key).replace(".", ".\n") for key in table.place]
    for metric in columns:
        title = f"{printable(metric.title)}\N{NO-BREAK SPACE}{metric.arrow}"
        head.append(textwrap.fill(title, 12 if wide else 10, break_long_words=False).replace("\N{NO-BREAK SPACE}", " "))
    head += ["seeds", *(printable(metric.title).replace(" ", "\n") for metric in tallies)]
    right = range(len(table.place), len(head))
    head += [
        *(["front"] if table.pareto else []),
        *(["degen-\nerate" if wide else "†"] if table.any_degenerate else []),
    ]
    rows: list[list[str] | None] = []
    previous = table.groups[0].dataset
    for group in table.groups:
        if group.dataset != previous and table.place[0] == DATASET:
            rows.append(None)
        previous = group.dataset
        row = table.place_texts(group)
        for metric in columns:
            text = _estimate_text(group, metric, "*")
            if not wide:
                text = re.sub(r" (?=±)|(?<=[±[,]) ?0(?=\.)|(?<=[rg] )0(?=\.)", "", text)
            row.append(re.sub(r"(?=±)|(?<![rg]) |(?<=,)", "\n", text) if style == "stacked" else text)
        row += [seeds(group), *(group.tally(metric.name) for metric in tallies), *_marks(table, group)]
        rows.append(row)
    return _laid_out(head, rows, right, "  " if wide else " ")


def _marks(table: Comparison, group: Group) -> list[str]:
    """Write the last columns, where the table has them: on the front, degenerate."""
    marks = ["yes" if group.on_front else ""] if table.pareto else []
    if table.any_degenerate:
        marks.append(f"†{len(group.degenerate)}/{len(group.completed)}" if group.degenerate else "")
    return marks


def _laid_out(head: Sequence[str], rows: Sequence[Sequence[str] | None], right: range, gap: str) -> list[str]:
    """Align columns to their widest line; titles stand on the rule below them, and None is an empty line."""
    folded = [[cell.split("\n") for cell in row] if row else None for row in (head, *rows)]
    widths = [max(_width(line) for row in folded if row for line in row[i]) for i in range(len(head))]
    lines = []
    for place, row in enumerate(folded):
        height = max(map(len, row)) if row else 0
        for at in range(height):
            cells = []
            for i, (cell, width) in enumerate(zip(row or [], widths, strict=True)):
                text = (["", *cell] if place else [""] * (height - len(cell) + 1) + cell)[at + 1 :][:1]
                space = " " * (width - _width(text[0] if text else ""))
                cells.append(space + "".join(text) if i in right else "".join(text) + space)
            lines.append(gap.join(cells).rstrip())
        if not row:
            lines.append("")
        if place == 0:
            lines.append("─" * (sum(widths) + len(gap) * (len(widths) - 1)))
    return lines


def _width(text: str) -> int:
    """Count the columns of a terminal that the text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _say(text: str) -> None:
    print(text.encode("utf-8", "replace").decode())


def _estimate_text(group: Group, metric: Metric, mark: str) -> str:
    """Write a mean, with ``mark`` where it is the best, its interval, and its value where there is nothing to find."""
    if not (estimate := group.estimates.get(metric.name)):
        return ABSENT
    best = mark if metric.name in group.best else ""
    behind = (interval_text(metric, estimate, group.seeds), floor_text(metric, group.floors))
    return " ".join([f"{number(metric, estimate.mean)}{best}", *filter(None, behind)])


def markdown(table: Comparison, notes: Sequence[str]) -> str:
    """Write the table, and a list of the notes."""

    def plain(text: str) -> str:
        return re.sub(r"([\\`*_|\[\]])", r"\\\1", html.escape(one_line(text), quote=False))

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(plain, cells))} |\n"

    heads = [heading(key) for key in table.place]
    numbers = [f"{metric.title} {metric.arrow}".strip() for metric in table.columns.values()]
    numbers += ["seeds", *(metric.title for metric in table.tallies)]
    marks = [*(["front"] if table.pareto else []), *(["degenerate"] if table.any_degenerate else [])]
    text = line([*heads, *numbers, *marks])
    text += f"|{'---|' * len(heads)}{'---:|' * len(numbers)}{'---|' * len(marks)}\n"
    for group in table.groups:
        row = table.place_texts(group)
        row += [_estimate_text(group, metric, "*") for metric in table.columns.values()]
        row += [seeds(group), *(group.tally(metric.name) for metric in table.tallies), *_marks(table, group)]
        text += line(row)
    return text + "\n" + "".join(f"- {plain(note)}\n" for note in notes)


def _csv(table: Comparison) -> str:
    """Write one line per group and metric, so that every metric has the same columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = (
        "metric better n mean lo hi interval floor floor_kind best minus_baseline minus_baseline_lo minus_baseline_hi"
    )
    header += " minus_baseline_n front seeds completed degenerate failed control"
    writer.writerow([*(_no_formula(short(key)) for key in table.place), *header.split()])
    for group in table.groups:
        place = [_no_formula(show(group.leaves.get(key))) for key in table.place]
        counts = [int(group.on_front) if table.pareto else None]
        counts += [group.seeds, len(group.completed), len(group.degenerate), len(group.failed)]
        counts += [int(group.control is not None)]
        for metric in group.estimates or [""]:
            estimate, difference = group.estimates.get(metric), group.differences.get(metric)
            sign = table.described[metric].sign if metric else 0
            cells: list[Any] = [_no_formula(metric), {1: "higher", -1: "lower", 0: ""}[sign]]
            if estimate:
                word, floor = group.floors.get(metric, ("", None))
                cells += [estimate.n, estimate.mean, estimate.lo, estimate.hi, _kind(group, estimate)]
                cells += [floor, word, int(metric in group.best)]
            else:
                cells += [0, None, None, None, "", None, "", None]
            cells += [difference.mean, difference.lo, difference.hi, difference.n] if difference else [None] * 4
            writer.writerow([*place, *cells, *counts])
    return text.getvalue()


def _no_formula(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would take for a formula; numbers stay."""
    return f"'{text}" if re.match(r"\s*(?:[=@]|[+-](?!\.?\d[\d.]*(?:e[+-]?\d+)?$))", text) else text


def _kind(group: Group, estimate: Estimate) -> str:
    """Name the kind of an interval for the CSV."""
    if estimate.lo is None:
        return ""
    if estimate.n == 1:
        return "one cell"
    kind = "t over seeds" if estimate.half is not None else "t of signed differences over seeds"
    return kind if group.overlap is None else f"{kind}, Nadeau-Bengio"


def _html(
    table: Comparison,
    cells: Sequence[tuple[int, str, Result]],
    figures: Mapping[str, str],
    said: Sequence[str],
    about: Sequence[str],
    skipped: Sequence[tuple[Path, str]],
    unfinished: int,
    command: str,
    responses: Sequence[tuple[str, str, int]],
    read: str,
    theirs: Sequence[Published],
) -> str:
    from markupsafe import Markup

    templates = environment()
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    tools: list[Callable[..., Any]] = [show, number_cells, heading, seeds, reasons, one_line]
    templates.globals |= {tool.__name__: tool for tool in [*tools, code_version]}
    script, style = (Path(__file__).with_name(f"report.{end}").read_text(encoding="utf-8") for end in ("js", "css"))
    taus = {show(group.leaves["game.tau"]) for group in table.groups if "game.tau" in group.leaves}
    meanings: dict[str, list[str]] = {}
    for metric in table.columns.values():
        meanings.setdefault(metric.meaning, []).append(metric.title)
    return templates.get_template("report.html.j2").render(
        table=table,
        columns=[*table.columns.values()],
        # matplotlib escapes what it writes
        figures={title: Markup(_inline(svg)) for title, svg in figures.items() if title},
        drawn=bool(figures),
        static=Markup(_inline(figures[""])) if "" in figures and len(table.groups) <= _DRAWN_GROUPS else None,
        style=Markup(style),
        rows=[(i, group, place_cells(table.place_texts(group), table.place)) for i, group in enumerate(table.groups)],
        said=said,
        about=about,
        cells=cells,
        responses=responses,
        read=Markup(read),
        theirs=theirs,
        total=lambda result: sum(value or 0.0 for value in result.seconds.values()),
        pooled=any(group.seeds != len(group.completed) for group in table.groups),
        mixed=[group for group in table.groups if len(group.codes) > 1],
        environments=table.environments,
        data=_data(table, cells),
        script=Markup(script),
        # The one script that may run in the page, whatever a name in it may hold.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        skipped=skipped,
        unfinished=unfinished,
        made={
            "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "command": command,
            "version": __version__,
            "versions": _versions(table),
        },
        pareto=[table.described[name].title for name in table.pareto],
        taus=sorted(taus),
        meanings=meanings,
    )


def _cells(table: Comparison) -> list[tuple[int, str, Result]]:
    """List every cell with the number of its group and its seed."""
    return [
        (i, seed, result)
        for i, group in enumerate(table.groups)
        for seed, result in _by_seed(group.completed | group.failed)
    ]


def _versions(table: Comparison) -> str:
    """List the packages whose version all cells share; `Comparison.environments` has the others."""
    cells = [result for group in table.groups for result in (group.completed | group.failed).values()]
    shared = [(name, value) for name, value in cells[0].versions.items() if name not in table.environments]
    return ", ".join(f"{name} {value}" for name, value in shared)


def _data(table: Comparison, cells: Sequence[tuple[int, str, Result]]) -> dict[str, Any]:
    """Collect what the report's script draws and shows; values that many cells share are stored once."""
    from fairpriv.report.tradeoff import series_styles

    places, labels = {}, {}
    for i, groups in enumerate(table.settings.values()):
        within = [key for key in table.keys if len({comparable(group, key) for group in groups}) > 1]
        for group in groups:
            places[id(group)] = i
            labels[id(group)] = ", ".join(show(group.leaves.get(key)) for key in within)
    columns = table.columns
    metrics = [m for m in table.described.values() if any(m.name in group.estimates for group in table.groups)]
    metrics.sort(key=lambda m: [*columns].index(m.name) if m.name in columns else len(columns))
    names: dict[str, int] = {}
    for _, _, result in cells:
        for name in result.metrics:
            names.setdefault(name, len(names))
    sections: dict[str, Any] = {}  # what cells point at by its number, under a text that tells it apart
    surroundings: dict[str, Any] = {}
    numbers: dict[str, int] = {}

    def point(store: dict[str, Any], value: Any) -> int:
        text = repr(value)
        if text not in store:
            numbers[text] = len(store)
            store[text] = value
        return numbers[text]

    def row(i: int, seed: str, result: Result) -> dict[str, Any]:
        ends = result.intervals
        found = [[names[name], *_briefly(value, *ends.get(name, ()))] for name, value in result.metrics.items()]
        environment = {"versions": result.versions, "git": result.git, "device": result.device}
        return {
            "group": i,
            "seed": seed,
            "id": result.id,
            "error": result.error,
            "degenerate": result.degenerate,
            "config": [point(sections, {key: section}) for key, section in result.config.items()],
            "metrics": found,
            "environment": point(surroundings, environment),
            "seconds": result.seconds,
            "artifacts": result.artifacts,
        }

    rows = [row(*cell) for cell in cells]
    return {
        "metrics": [
            {"name": m.name, "label": m.title, "better": m.sign} | ({} if m.guess is None else {"guess": m.guess})
            for m in metrics
        ],
        "panel": next(iter(table.panels), None),
        "place": [heading(key) for key in table.place],
        "settings": [*table.settings],
        "styles": series_styles(table),
        "groups": [
            {
                "name": table.name(group),
                "place": [group.leaves.get(key) for key in table.place],
                "setting": places[id(group)],
                "series": table.series(group),
                "label": labels[id(group)] if DEFENCE in table.place else "",
                "degenerate": len(group.degenerate),
                "completed": len(group.completed),
                "failed": len(group.failed),
                "control": group.control,
                "ranked": group.ranked,
                "values": [
                    [*_briefly(e.mean, *(e.ends or (None, None))), e.n, floor_text(m, group.floors)]
                    if (e := group.estimates.get(m.name))
                    else None
                    for m in metrics
                ],
            }
            for group in table.groups
        ],
        "names": [*names],
        "labels": _labels(table, names),
        "cells": rows,
        "sections": [
            {key: "null" if value is None else show(value) for key, value in flat(section)}
            for section in sections.values()
        ],
        "environments": [*surroundings.values()],
    }


def _labels(table: Comparison, names: Iterable[str]) -> list[str]:
    """Write the labels of the metrics, with the name behind a label that several have."""
    titles = {name: table.described[name].title if name in table.described else name for name in names}
    counts = Counter(titles.values())
    return [title if counts[title] == 1 else f"{title} ({name})" for name, title in titles.items()]


def _briefly(*values: float | None) -> list[float | None]:
    return [None if value is None else float(f"{value:.6g}") for value in values]


def _write_plots(table: Comparison, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Write the pictures; return their SVG by title (the trade-off's is empty), and what was too much to draw."""
    if not table.metrics:
        return {}, []
    from fairpriv.report.analysis_plots import caution_figure, coupling_figure, dependence_figure, flip_figure
    from fairpriv.report.awareness_plots import curve_figure
    from fairpriv.report.game_plots import advantage_figure, attack_figure, bound_figure, membership_figure
    from fairpriv.report.style import laid_out, styled
    from fairpriv.report.tradeoff import tradeoff_figure
    from fairpriv.report.tradeoff_matrix import classifier_matrix_figure, matrix_figure

    figures: dict[str, str] = {}
    undrawn: list[str] = []
    stale = {"tradeoff"}
    more = {
        "Awareness curves": ("curves", curve_figure),
        "Trade-off matrix": ("trade_off_matrix", matrix_figure),
        "Trade-off matrix of classifiers": ("trade_off_classifier", classifier_matrix_figure),
        "Membership at low false-positive rates": ("membership", membership_figure),
        "Coupled weights": ("coupling", coupling_figure),
        "Dependence of the dimensions": ("dependence", dependence_figure),
        "Cautionary phrases": ("cautions", caution_figure),
        "Verdicts that turned": ("flips", flip_figure),
        "Attacks": ("attacks", attack_figure),
        "Gap and bound": ("bound", bound_figure),
        "Attacks as the worlds part": ("advantage", advantage_figure),
    }
    stale |= {name for name, _ in more.values()}
    if len(table.groups) > _DRAWN_GROUPS:
        undrawn.append(f"no further plots of {len(table.groups)} rows: choose up to {_DRAWN_GROUPS} with --where")
        more = {}
    most = _DRAWN_SETTINGS if more else _DRAWN_OF_MANY
    settings = dict([*table.settings.items()][:most])
    if table.panels and len(settings) < len(table.settings):
        undrawn.append(f"plots/tradeoff holds {len(settings)} of {len(table.settings)} settings: choose with --where")
    with styled():
        drawn = {"": ("tradeoff", tradeoff_figure(table, settings))} if table.panels else {}
        drawn |= {title: (name, figure) for title, (name, draw) in more.items() if (figure := draw(table)) is not None}
        for title, (name, figure) in drawn.items():
            laid_out(figure)
            svg, pdf, png = io.BytesIO(), io.BytesIO(), io.BytesIO()
            # No label is cut, however long it is; "tight" would draw the picture once more for each format.
            whole: Any = {"bbox_inches": figure.get_tightbbox().padded(0.08)}
            figure.savefig(svg, format="svg", metadata={"Date": None}, **whole)
            figure.savefig(pdf, format="pdf", metadata={"CreationDate": None}, **whole)
            figure.savefig(png, format="png", dpi=110, **whole)
            for suffix, file in (("svg", svg), ("pdf", pdf), ("png", png)):
                write_whole(folder / f"{name}.{suffix}", file.getvalue())
            figures[title] = svg.getvalue().decode()
    for name in stale - {name for name, _ in drawn.values()}:  # of an earlier comparison
        for suffix in ("svg", "pdf", "png"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    return figures, undrawn


def _inline(svg: str) -> str:
    """Prepare the picture for a page: without prologue, metadata and namespaces, and so without any address."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
