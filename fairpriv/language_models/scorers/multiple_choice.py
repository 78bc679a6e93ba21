"""Multiple choice: which of several answers the model finds likeliest, right ones against wrong ones."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.functional.intervals import wilson_interval
from fairpriv.language_models.contract import require_choice
from fairpriv.language_models.scorers.scorer import (
    SCORE,
    Normalise,
    Scored,
    Scorer,
    Subject,
    by_category,
    category_of,
    mean_interval,
    several,
)
from fairpriv.metrics import SHARE, Measured, Metric

log = logging.getLogger(__name__)

MC1 = Metric(
    "mc1", "MC1", "Share of questions whose best answer is likelier than every wrong one.", SHARE, "greater", 0.0, 1.0
)
MC2 = Metric("mc2", "MC2", "Mean share of probability on the correct answers.", SHARE, "greater", 0.0, 1.0)


@dataclass
class MultipleChoice(Scorer):
    """Right against wrong answers by their log-likelihood given the question; nothing is generated.

    The columns are ``prompt``, and either ``correct`` and ``wrong`` (each a list, or texts divided by ``separator``;
    the first correct one is the best) or ``choices`` and ``label`` (the position of the correct one, from 0).

    Metrics: ``mc1``, the share of questions whose best answer is likelier than every wrong one, and ``mc2``, the mean
    share of probability that falls on the correct answers, both of Lin, Hilton and Evans 2022 (TruthfulQA). With one
    correct answer mc1 is plain accuracy. The headline ``score`` is mc1. With a column ``category`` also of each
    category.

    Attributes:
        template: the message, with ``{prompt}`` in it.
        chat: ask as the cell asks for answers; false: plain text, the answer after a blank, as published with
            ``template: "Q: {prompt}\\nA:"``.
        normalise: none (as published), or by the answer's tokens or characters.
        separator: between answers in one field of a table.
    """

    kind: ClassVar[str] = "multiple_choice"

    template: str = "{prompt}"
    chat: bool = True
    normalise: Normalise = "none"
    separator: str = ";"

    required = ("prompt",)
    optional = ("correct", "wrong", "choices", "label", "category")

    def __post_init__(self) -> None:
        require_choice(self, "scorer", "normalise")
        if "{prompt}" not in self.template:
            raise InputError("scorer.template has no {prompt}: the model would not see the question")
        if not self.separator:
            raise InputError("scorer.separator is empty: it must be the text between two answers, such as ;")

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `InputError` for a question without a right and a wrong answer; warn of an answer that is both."""
        answers = [self._answers(example) for example in examples]
        both = [
            (example.row, min(same))
            for example, (correct, wrong) in zip(examples, answers, strict=True)
            if (same := set(correct) & set(wrong))
        ]
        if both:  # published files hold some, and published figures count them
            log.warning(
                "%s: %r is a right and a wrong answer; so it is in %d of %d questions",
                *both[0],
                len(both),
                len(answers),
            )

    def score(self, subject: Subject, examples: Sequence[Example], responses: Sequence[str]) -> Scored:
        """Measure mc1 and mc2; one record a question with the log-likelihood of each of its answers."""
        answers = [self._answers(example) for example in examples]
        told = choice_log_likelihoods(
            subject,
            [self.template.replace("{prompt}", example.prompt) for example in examples],
            [correct + wrong for correct, wrong in answers],
            chat=self.chat,
            normalise=self.normalise,
        )
        outcomes, masses, records = [], [], []
        for example, (correct, wrong), values in zip(examples, answers, told, strict=True):
            one, mass = mc1_mc2(values, len(correct))
            outcomes.append(one)
            masses.append(mass)
            chosen = (correct + wrong)[max(range(len(values)), key=values.__getitem__)]
            record = {"prompt": example.prompt, "correct": correct, "wrong": wrong, "log_likelihoods": values}
            records.append(record | {"chosen": chosen, "mc1": one, "mc2": mass})

        def measure(indices: list[int]) -> Measured:
            hits, n = sum(outcomes[i] for i in indices), len(indices)
            two = [masses[i] for i in indices]
            interval = wilson_interval(hits, n)
            one = SCORE.of(hits / n, interval) | MC1.of(hits / n, interval)
            return one | MC2.of(statistics.fmean(two), mean_interval(two, (0.0, 1.0)))

        measured = by_category(measure, [category_of(example) for example in examples])
        return Scored(measured, records, list(outcomes))

    def digest(self) -> Any:
        return [self.template, self.chat, self.normalise, self.separator]

    def _answers(self, example: Example) -> tuple[list[str], list[str]]:
        """Read the correct answers, best first, and the wrong ones."""
        fields = example.fields
        if "correct" in fields and "wrong" in fields:
            told = (several(fields[name], self.separator) for name in ("correct", "wrong"))
            correct, wrong = ([text for text in texts if text] for texts in told)
            if not correct or not wrong:
                raise InputError(f"{example.row}: there must be at least one correct and one wrong answer")
            return correct, wrong
        if "choices" not in fields or "label" not in fields:
            raise InputError(
                f"{example.row}: multiple choice reads columns correct and wrong, or choices and label; "
                f"evaluate.columns names {', '.join(['prompt', *fields])}"
            )
        choices = several(fields["choices"], self.separator)
        if "" in choices:
            raise InputError(f"{example.row}: choice {choices.index('')} (from 0) is empty")
        label = str(fields["label"]).strip()
        if not label.isdigit() or int(label) >= len(choices):
            raise InputError(f"{example.row}: label {label!r} is no position among its {len(choices)} choices, from 0")
        correct = [choices.pop(int(label))]
        if not choices:
            raise InputError(f"{example.row}: there must be at least one correct and one wrong answer")
        return correct, choices


def choice_log_likelihoods(
    subject: Subject, prompts: Sequence[str], choices: Sequence[Sequence[str]], *, chat: bool, normalise: Normalise
) -> list[list[float]]:
    """Compute the log-likelihood of every choice given its prompt; plain text has a blank between the two."""
    pairs = [
        (prompt, text if chat else f" {text}") for prompt, texts in zip(prompts, choices, strict=True) for text in texts
    ]
    rest = iter(subject.log_likelihoods(pairs, chat=chat, normalise=normalise))
    return [[next(rest) for _ in texts] for texts in choices]


def mc1_mc2(log_likelihoods: Sequence[float], correct: int) -> tuple[bool, float]:
    """Compute MC1 and MC2 of one question (Lin et al. 2022).

    Args:
        log_likelihoods: of its answers, the correct ones first, the best of them before all.
        correct: how many are correct.

    Returns:
        Whether the first is likelier than every wrong one, and the share of probability on the correct ones.
    """
    best = max(log_likelihoods)
    weights = [math.exp(value - best) for value in log_likelihoods]
    return log_likelihoods[0] > max(log_likelihoods[correct:]), sum(weights[:correct]) / sum(weights)
