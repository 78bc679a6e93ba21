"""Published figures, with their source, beside those of ours that are about the same model and defence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairpriv.report.comparison import Comparison, Group
from fairpriv.report.reading import interval_text, number
from fairpriv.report.selection import value_at


@dataclass(frozen=True)
class Published:
    """A figure of others beside ours: what it is of, as it was published, by whom, and what is measured here."""

    row: str
    metric: str
    value: str
    source: str
    by: str
    ours: str

    def __str__(self) -> str:
        return f"published: {self.row}, {self.metric}: {self.value} ({self.source}; by {self.by}); here {self.ours}"


def published(table: Comparison, folder: Path) -> list[Published]:
    """List the published figures that a row of the table is about.

    Args:
        table: our results.
        folder: of YAML files with ``source``, ``by`` (who measured, and how) and ``figures``. Each figure says
            ``what`` it is and has a ``metric`` of ours, its ``value`` as published, and ``where``: config keys and
            values of what it is about; no single row is about one that names neither a model nor a dataset. ``needs``
            and ``settled_by`` say what it takes to measure it, and what would settle it.
    """
    import yaml  # type: ignore[import-untyped]

    found = []
    for file in sorted(folder.glob("*.yaml")):
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        for figure in told["figures"]:
            if figure["where"].keys() & {"model.name", "dataset.name"}:
                for group, ours in measured(table, figure):
                    of = (table.name(group), table.described[figure["metric"]].title, str(figure["value"]))
                    found.append(Published(*of, told["source"], told["by"], ours))
    return found


def measured(table: Comparison, figure: Mapping[str, Any]) -> Iterator[tuple[Group, str]]:
    """Yield the rows that a published figure is about, each with what was measured there and its interval."""
    metric = table.described.get(figure["metric"])
    for group in table.groups if metric is not None else ():
        estimate = group.estimates.get(figure["metric"])
        if metric is not None and estimate is not None and _about(group, figure["where"]):
            told = f"{number(metric, estimate.mean)} {interval_text(metric, estimate, group.seeds)}".strip()
            yield group, group.tally(metric.name) if metric.counted else told


def _about(group: Group, where: dict[str, Any]) -> bool:
    cells: Sequence[Any] = [*group.completed.values()]
    return all(value_at(cell.config, key) == value for cell in cells for key, value in where.items())
