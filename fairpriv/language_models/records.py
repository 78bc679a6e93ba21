"""The records of one cell of a language model: files of lines beside ``result.json``, one JSON object a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairpriv.language_models.analyses import Flip, Row
from fairpriv.language_models.observation import Observation
from fairpriv.result import write_rows

FLIPS_KEPT = 25  # flips of a dimension and direction; the metrics count all
TEXT_KEPT = 1000  # characters of a text of a flip


class Records:
    """Writes the files of one cell.

    Args:
        folder: of the cell.
        artifacts: of the cell's result, which list every file by its stem.
    """

    def __init__(self, folder: Path, artifacts: dict[str, str]) -> None:
        self.folder = folder
        self.artifacts = artifacts

    def file(self, name: str) -> Path:
        """List a file of this name in the result, and return where it is to be written."""
        self.artifacts[Path(name).stem] = name
        return self.folder / name

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``<name>.jsonl``, whole or not at all."""
        write_rows(self.file(f"{name}.jsonl"), rows)


def response_rows(after: Sequence[Observation], before: Sequence[Observation] | None) -> list[Row]:
    """Tell of every response: its prompt, its verdict and those of other judges, and what the untouched model answered.

    Args:
        after: what was observed of the model.
        before: what was observed of the untouched model; None: this is the untouched model.
    """
    rows: list[Row] = []
    for i, seen in enumerate(after):
        for k, answer in enumerate(seen.answers):
            row: Row = {"dimension": seen.prompts.name, "set": seen.prompts.kind}
            row |= {"prompt": seen.prompts.examples[k].prompt, "response": answer}
            if seen.verdicts:
                row |= {"safe": seen.verdicts[k].safe, "reason": seen.verdicts[k].reason, "judge": seen.judge}
            if seen.others:
                row["judges"] = {name: [said[k].safe, said[k].reason] for name, said in seen.others.items()}
            if before is not None:
                row["before"] = before[i].answers[k]
                if then := before[i].verdicts:
                    row |= {"safe_before": then[k].safe, "reason_before": then[k].reason}
                if others := before[i].others:
                    row["judges_before"] = {name: [said[k].safe, said[k].reason] for name, said in others.items()}
            rows.append(row)
    return rows


def judge_rows(after: Sequence[Observation]) -> list[Row]:
    """Tell who says what: of each dimension that several judges read, how many responses got each set of verdicts."""
    rows: list[Row] = []
    words = {True: "safe", False: "unsafe", None: "no verdict"}
    for seen in after:
        said = {seen.judge: seen.verdicts, **seen.others} if seen.others else {}
        counts = Counter(tuple(words[verdict.safe] for verdict in row) for row in zip(*said.values(), strict=True))
        for verdicts, n in counts.most_common():
            rows.append(
                {"dimension": seen.prompts.name, "said": dict(zip(said, verdicts, strict=True)), "responses": n}
            )
    return rows


def score_rows(after: Sequence[Observation], before: Sequence[Observation] | None) -> list[Row]:
    """Tell of every example that a scorer read: what it found, and what was different in the untouched model."""
    rows: list[Row] = []
    for i, seen in enumerate(after):
        for k, record in enumerate(seen.scored.records if seen.scored else ()):
            row = {"dimension": seen.prompts.name, **record}
            if before is not None and (then := before[i].scored) is not None:
                row["before"] = {name: value for name, value in then.records[k].items() if value != record.get(name)}
            rows.append(row)
    return rows


def flip_rows(flips: Iterable[Flip]) -> list[Row]:
    """Tell of the first ``FLIPS_KEPT`` flips of each dimension and direction, with texts cut to ``TEXT_KEPT``."""
    kept: dict[tuple[str, bool], list[Flip]] = {}
    for flip in flips:
        kept.setdefault((flip.dimension, flip.safe), []).append(flip)
    return [
        {key: _cut(value) for key, value in asdict(flip).items()}
        for group in kept.values()
        for flip in group[:FLIPS_KEPT]
    ]


def _cut(value: Any) -> Any:
    return f"{value[:TEXT_KEPT]} …" if isinstance(value, str) and len(value) > TEXT_KEPT else value
