"""A task of lm-evaluation-harness as what a dimension is measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fairpriv.config.schema import nearest
from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.functional.intervals import wilson_interval
from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.scorers.scorer import SCORE, Scored, Scorer, Subject


@dataclass
class HarnessTask(Scorer):
    """Any task of lm-eval, or group that it averages, which brings its own data: the dimension has no ``evaluate``.

    Metrics: those of the task under their own names. The headline ``score`` is ``metric``, or 1 minus it where lower is
    better, and has to lie in [0, 1].

    Attributes:
        task: its name, or the task written out as lm-eval's task files are.
        metric: of the task's metrics; None: the first.
        limit, fewshot, chat, include: as of `Harness`.
    """

    kind: ClassVar[str] = "harness_task"

    task: Any
    metric: str | None = None
    limit: int | None = None
    fewshot: int | None = None
    chat: bool = False
    include: str | None = None

    def __post_init__(self) -> None:
        self.harness = Harness([self.task], self.limit, self.fewshot, chat=self.chat, include=self.include)

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `InputError` for a task that cannot be had, that is several, or that has no such metric."""
        found = self.harness.metrics()
        if len(found) > 1:
            raise InputError(
                f"lm-eval task {self.task}: it is {len(found)} tasks that lm-eval does not average: choose one, such "
                f"as {next(iter(found))}"
            )
        ((name, known),) = found.items()
        if self.metric is not None and self.metric.partition("/")[0] not in known:
            raise InputError(
                f"lm-eval task {name}: it has no metric {self.metric}{nearest(self.metric, known)}; it has "
                f"{', '.join(known)}"
            )

    def score(self, subject: Subject, examples: Sequence[Example], responses: Sequence[str]) -> Scored:
        """Measure the task's metrics; one record a document, unless it is a group of tasks."""
        ((name, found),) = self.harness.scores(
            subject.model,
            subject.tokenizer,
            batch_size=subject.batch_size,
            system=subject.form.system,
            end=subject.end(),
            progress=subject.progress,
        ).items()
        metrics, intervals = found.measured.metrics, found.measured.intervals
        metric = self.metric or next(iter(metrics))
        if metric not in metrics:
            raise InputError(f"lm-eval task {name}: scorer.metric={metric}: it has {', '.join(metrics)}")
        value, higher = metrics[metric], found.measured.described[metric].better != "less"
        if not 0 <= value <= 1:
            raise InputError(
                f"lm-eval task {name}: its {metric} is {value:g}; a dimension's score lies in [0, 1]: choose another "
                f"metric of {', '.join(metrics)}"
            )
        ends = intervals.get(metric)
        interval = ends if ends is None or higher else (1 - ends[1], 1 - ends[0])
        kind, _, filtered = metric.partition("/")
        documents = [document for document in found.documents if document["filter"] == (filtered or "none")]
        values = [document[kind] for document in documents]
        decided = all(isinstance(value, bool | int | float) and value in (0, 1) for value in values)
        outcomes: list[bool | None] | None = None
        if values and decided and abs(sum(values) / len(values) - value) < 1e-9:
            outcomes = [bool(value) == higher for value in values]
            interval = wilson_interval(sum(map(bool, outcomes)), len(values))
        rest = found.measured.without(SCORE.name)  # a task may have a metric of that name
        scored = Scored(rest | SCORE.of(value if higher else 1 - value, interval), [], outcomes)
        for document in documents:
            record = {
                "task": name,
                "document": document["doc_id"],
                "prompt": document["arguments"][0][0],
                "target": document["target"],
                "answers": document["filtered_resps"],
                metric: document[kind],
            }
            scored.records.append(json.loads(json.dumps(record, default=str)))
        return scored

    def digest(self) -> Any:
        return [self.harness.digest(), self.metric, self.limit, self.fewshot, self.chat]
