"""Several judges of the same responses: how far they agree, and who says what, as a piece of the report."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

from fairpriv.report.comparison import Comparison, Group
from fairpriv.report.reading import interval_text, number
from fairpriv.report.selection import ABSENT
from fairpriv.report.templates import environment
from fairpriv.result import read_rows

JUDGES = "judges.jsonl"
Words = tuple[str, ...]  # of every judge: safe, unsafe or no verdict


def judges_html(table: Comparison) -> str:
    """Write a table for each dimension that several judges have read; an empty string where there is none.

    Counts are sums over the cells of a row. Everything that comes from a file is escaped.
    """
    found: dict[tuple[str, Words], list[tuple[Group, Counter[Words]]]] = {}
    for group in table.groups:
        for read, counts in _counted(group).items():
            found.setdefault(read, []).append((group, counts))
    if not found:
        return ""
    tables = [_table(table, *read, rows) for read, rows in found.items()]
    return environment().get_template("judges.html.j2").render(tables=tables)


def _counted(group: Group) -> dict[tuple[str, Words], Counter[Words]]:
    """Count the sets of verdicts of a group's cells, by dimension and judges; lines of another form are left out."""
    counts: dict[tuple[str, Words], Counter[Words]] = {}
    for result in group.completed.values():
        for row in read_rows(result.folder / JUDGES) if result.folder is not None else []:
            said, n, dimension = row.get("said"), row.get("responses"), row.get("dimension")
            if isinstance(said, dict) and len(said) > 1 and isinstance(n, int) and isinstance(dimension, str):
                counts.setdefault((dimension, tuple(said)), Counter())[tuple(map(str, said.values()))] += n
    return counts


def _table(
    comparison: Comparison, dimension: str, judges: Words, rows: list[tuple[Group, Counter[Words]]]
) -> dict[str, Any]:
    """Collect what the template shows of one dimension: disagreements first, the frequent ones before the rare."""
    total: Counter[Words] = sum((counts for _, counts in rows), Counter())
    words = sorted(total, key=lambda said: (len(set(said)) == 1, -total[said]))
    pairs = {f"judge/{one}_{other}/{dimension}/kappa": (one, other) for one, other in combinations(judges, 2)}
    return {
        "dimension": dimension,
        "judges": judges,
        "pairs": [*pairs.values()],
        "words": [(said, len(set(said)) > 1) for said in words],
        "rows": [
            (comparison.name(group), [_kappa(comparison, group, name) for name in pairs], [c[said] for said in words])
            for group, c in rows
        ],
    }


def _kappa(comparison: Comparison, group: Group, name: str) -> str:
    if not (estimate := group.estimates.get(name)):
        return ABSENT
    metric = comparison.described[name]
    return f"{number(metric, estimate.mean)} {interval_text(metric, estimate, group.seeds)}".strip()
