"""One dimension of a trade-off: its training pairs, its prompts and how it is scored, as data."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from fairpriv.config.schema import alike
from fairpriv.data.spelling import alike as spelled_alike
from fairpriv.data.texts import Example, Texts
from fairpriv.errors import InputError
from fairpriv.identity import content_hash, kind_of
from fairpriv.language_models.contract import require_base
from fairpriv.language_models.judges.judge import Judge
from fairpriv.language_models.scorers.scorer import Scorer, category_of

log = logging.getLogger(__name__)


_COPIES = 0.01  # share of copies among what is asked above which it is told

_warn = functools.cache(log.warning)  # once a process


def _tell_of_asked(examples: Sequence[Example], where: str) -> None:
    """Warn of questions that are asked more than once, and of categories that may be the same."""
    asked = {repr((e.asked, e.response, [item for item in e.fields.items() if item[0] != "id"])) for e in examples}
    if len(examples) - len(asked) > _COPIES * len(examples):
        _warn(
            f"{where}: of {len(examples):,} rows {len(asked):,} are different: intervals count the others, which are "
            "copies, as if they were further questions"
        )
    for same in spelled_alike(sorted({name for e in examples if (name := category_of(e)) is not None})):
        _warn(f"{where}: categories that differ in spelling only: {' and '.join(map(repr, same))}")


@dataclass
class Dimension:
    """What a dimension is made of; any part that is not needed may be left out.

    ``train`` holds pairs by split: ``safe`` responses are such as the dimension asks for, ``unsafe`` ones are not.
    ``evaluate`` holds what the dimension is measured on: prompts whose responses the cell's judge reads, or what
    ``scorer`` reads, where there is one. ``benign`` holds harmless prompts that merely sound sensitive, on which
    refusals are counted: by ``refusals``, a judge that calls a refusal safe, or without one by English patterns.
    ``labelled`` holds responses by split, ``safe`` and ``unsafe``, as people judged them: awareness is also corrected
    for the errors that the cell's judge makes on them. They should be like the responses that are measured, and none
    of those that a judge was made from.
    """

    kind: ClassVar[str] = "dimension"

    name: str
    train: dict[str, Texts] = field(default_factory=dict)
    evaluate: Texts | None = None
    benign: Texts | None = None
    scorer: Scorer | None = None
    labelled: dict[str, Texts] = field(default_factory=dict)
    refusals: Judge | None = None

    def __post_init__(self) -> None:
        where = f"dimensions.{self.name}"
        for key, splits in {"train": self.train, "labelled": self.labelled}.items():
            if unknown := set(splits) - {"safe", "unsafe"}:
                raise InputError(f"{where}.{key}.{min(unknown)}: the splits are safe and unsafe")
        if self.labelled and (len(self.labelled) < 2 or self.evaluate is None or self.scorer is not None):
            raise InputError(f"{where}.labelled: needs both safe and unsafe, and evaluate with prompts that are judged")
        if self.refusals is not None:
            require_base(self.refusals, Judge, f"{where}.refusals")
            if self.benign is None:
                raise InputError(f"{where}.refusals: there are no benign prompts whose answers it could judge")
        if isinstance(self.scorer, str):
            hint = alike(f"fairpriv.language_models.scorers.{self.scorer}")
            raise InputError(
                f"{where}.scorer: {self.scorer} is no scorer{hint}; it is named as "
                "{_target_: fairpriv.language_models.scorers.multiple_choice.MultipleChoice}"
            )
        if self.scorer is not None:
            require_base(self.scorer, Scorer, f"{where}.scorer")
        for key, texts in self.texts().items():
            if key == "evaluate" and self.scorer is not None:
                texts.takes(self.scorer.required, self.scorer.optional, f"{where}.{key}")
            else:
                both = key.startswith("labelled.")
                texts.takes(["prompt", "response"] if both else ["prompt"], ["response"], f"{where}.{key}")
        if self.evaluate is None and self.scorer is not None and self.scorer.required:
            needed = ", ".join(self.scorer.required)
            raise InputError(f"{where} has a scorer and nothing to score: give {where}.evaluate with columns {needed}")
        if not self.texts() and self.scorer is None:
            raise InputError(f"{where} is empty: give it evaluate (what it is measured on), train (pairs), or both")

    def pairs(self, split: str) -> list[Example]:
        """Load the pairs of a split; `InputError` where the dimension has none, or one without responses."""
        if split not in self.train:
            has = ", ".join(self.train) or "no pairs at all"
            raise InputError(f"dimensions.{self.name}.train has no split {split!r}; it has {has}")
        if "response" not in self.train[split].columns:
            raise InputError(f"dimensions.{self.name}.train.{split}.columns names no response")
        examples = self.train[split].load()
        if (different := len({(one.prompt, one.response) for one in examples})) < len(examples):
            _warn(
                f"dimension {self.name}: of {len(examples):,} {split} pairs {different:,} are different: the others "
                "are copies, each as likely to be drawn"
            )
        return examples

    def measured_on(self) -> list[Example] | None:
        """Load what it is measured on; None: nothing. `InputError` for a row that its scorer cannot read."""
        if self.evaluate is None and self.scorer is None:
            return None
        examples = self.evaluate.load() if self.evaluate is not None else []
        if self.scorer is not None:
            self.scorer.check(examples)
        _tell_of_asked(examples, f"dimensions.{self.name}.evaluate")
        return examples

    def benign_prompts(self) -> list[Example]:
        """Load the prompts on which refusals are counted; none where it has none."""
        examples = self.benign.load() if self.benign is not None else []
        _tell_of_asked(examples, f"dimensions.{self.name}.benign")
        return examples

    def digests(self) -> dict[str, str]:
        """Hash the content of all its files and of its scorer, by their key in this dimension."""
        found = {f"{key}.source": texts.source.digest() for key, texts in self.texts().items()}
        if self.refusals is not None:
            found["refusals"] = content_hash([kind_of(type(self.refusals)), self.refusals.digest()])
        return found | ({"scorer": self.scoring} if self.scoring else {})

    @cached_property
    def scoring(self) -> str | None:
        """Content hash of what determines the scorer's outcome; reading a model's files for it takes its time."""
        if self.scorer is None:
            return None
        return content_hash([kind_of(type(self.scorer)), self.scorer.digest()])

    def texts(self) -> dict[str, Texts]:
        """Return all texts that it is made of, by key."""
        parts = {f"train.{split}": texts for split, texts in self.train.items()}
        parts |= {f"labelled.{split}": texts for split, texts in self.labelled.items()}
        return parts | {key: texts for key in ("evaluate", "benign") if (texts := getattr(self, key))}
