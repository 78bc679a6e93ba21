"""What a scorer is: it measures a language model on what a dimension is evaluated on."""

from __future__ import annotations

import functools
import math
import random
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.functional.intervals import t_quantile
from fairpriv.language_models.dimensions.awareness import change
from fairpriv.metrics import SHARE, Measured, Metric, share_metric

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from fairpriv.language_models.data.pairs import Pairs
    from fairpriv.language_models.data.tokens import Prompt, PromptFormat
    from fairpriv.language_models.dimensions.dimension import Dimension

Normalise = Literal["none", "tokens", "characters"]

SCORE = share_metric(
    "score",
    "score",
    "What the dimension's own scorer found, from 0 to 1, where 1 is what the dimension asks for.",
    better="greater",
    column=22,
    headline=True,
)
SCORE_CHANGE = Metric(
    "eval/{dimension}/score_change",
    "{dimension} change",
    "Score minus that of the untouched model; where it is a share, one cell has Newcombe's interval for pairs.",
    SHARE,
    "greater",
    low=-1.0,
    high=1.0,
    column=23,
)


def _form() -> PromptFormat:
    from fairpriv.language_models.data.tokens import PromptFormat

    return PromptFormat()


@dataclass(frozen=True)
class Subject:
    """The model that is measured, and how it is asked.

    Attributes:
        model: causal LM of transformers, or a wrapper of one (PEFT, ReFT).
        tokenizer: its tokenizer.
        form: how the cell writes prompts.
        max_prompt_tokens: longer prompts lose their beginning.
        batch_size: texts of 128 tokens worked on at a time; of shorter ones more, of longer ones fewer.
        progress: whether a person watches, and wants a bar.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    form: PromptFormat = field(default_factory=_form)
    max_prompt_tokens: int = 1024
    batch_size: int = 64
    progress: bool = False

    @property
    def batch_tokens(self) -> int:
        """Tokens worked on at a time."""
        return 128 * self.batch_size

    @property
    def asked(self) -> list[Any]:
        """Plain data that determine how a text is put to the model: under it, what is found is kept in the cache."""
        return [asdict(self.form), str(self.tokenizer.chat_template), self.max_prompt_tokens]

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Encode prompts, each as the tokens from which its response is generated."""
        from fairpriv.language_models.data.tokens import encode_prompt

        return [
            encode_prompt(
                self.tokenizer,
                prompt,
                form=self.form,
                max_tokens=self.max_prompt_tokens,
            )
            for prompt in prompts
        ]

    def end(self) -> tuple[int | None, str]:
        """Return the mark that training puts after a response, at which answers end: a token's id, else a text."""
        from fairpriv.language_models.data.tokens import response_end

        return response_end(self.tokenizer, self.form)

    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], *, chat: bool, normalise: Normalise = "none"
    ) -> list[float]:
        """Compute the log-likelihood of each pair's second text given its first, without an end mark.

        Args:
            pairs: with ``chat`` a message and the whole response to it; without, a text and what goes on from it,
                leading blank included.
            chat: ask as the cell asks for answers; else plain text, without template and system message.
            normalise: ``none``: the sum over tokens; ``tokens`` and ``characters``: divided by how many there are.
        """
        from fairpriv.language_models.data.tokens import NO_TARGET, PLAIN, encode_continuation, pad_token_id
        from fairpriv.language_models.engines.log_likelihood import log_likelihoods

        form = self.form if chat else PLAIN
        rows = [
            encode_continuation(self.tokenizer, prompt, text, form=form, max_tokens=self.max_prompt_tokens)
            for prompt, text in pairs
        ]
        sums = log_likelihoods(
            self.model,
            rows,
            pad_id=pad_token_id(self.tokenizer),
            batch_tokens=self.batch_tokens,
            progress="likelihoods" if self.progress else None,
        )
        if normalise == "none":
            return sums
        tokens = [sum(label != NO_TARGET for label in row.labels) for row in rows]
        lengths = tokens if normalise == "tokens" else [len(text.strip()) for _, text in pairs]
        return [value / length for value, length in zip(sums, lengths, strict=True)]


@dataclass
class Scored:
    """What a scorer found.

    Attributes:
        measured: by name, without the dimension's. `SCORE` is among them: the headline, in [0, 1], 1 being what the
            dimension asks for, whatever is scored and however.
        records: plain data of each example, for the cell's ``scores.jsonl``.
        outcomes: by example, where ``score`` is the share that is True; None for one that has no outcome. Two models'
            outcomes on the same examples are compared in pairs. None: the score is no such share.
    """

    measured: Measured
    records: list[dict[str, Any]]
    outcomes: list[bool | None] | None = None

    def checked(self, where: str) -> Scored:
        """Return it; raise InputError, which says where it is from, for a value outside its metric's range."""
        try:
            self.measured.within_ranges()
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return self

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Scored:
        """Read what ``asdict`` gave, from JSON."""
        return cls(Measured.of(plain["measured"]), plain["records"], plain["outcomes"])


class Scorer(ABC):
    """A scorer: built from ``dimensions.<name>.scorer``, asked once a model. A scorer of one's own inherits from it.

    Attributes:
        required: names in ``evaluate.columns`` that it reads; none: it has data of its own, and there is no
            ``evaluate``.
        optional: further names that it knows.
        answered: whether it reads the model's responses to the prompts, rather than the model.
    """

    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    answered: ClassVar[bool] = False

    def check(self, examples: Sequence[Example]) -> None:  # noqa: B027  some read any example
        """Raise `InputError` for an example that it cannot read; called before the model is loaded."""

    @abstractmethod
    def score(self, subject: Subject, examples: Sequence[Example], responses: Sequence[str]) -> Scored:
        """Measure; ``responses`` is as long as ``examples`` where it is ``answered``, else empty."""

    def of_training(self, pairs: Pairs, dimensions: Mapping[str, Dimension], seed: int) -> list[Example] | None:
        """Return what it asks about, where that is what the model is trained on, or would be; None: it is not.

        Args:
            pairs: which pairs the cell's model is trained on, where its defence trains.
            dimensions: of the cell, by name.
            seed: of the cell.

        Raises:
            InputError: it cannot ask about these pairs.
        """
        return None

    def against(self, now: Scored, before: Scored) -> Scored:
        """Return what was found of a model, with what is to be found only beside the untouched model."""
        return now

    def rescore(self, records: Sequence[Mapping[str, Any]]) -> float | Sequence[float] | None:
        """Compute the score of any of its records; None: it cannot be, or the score is a share of examples.

        Where it is the least of several numbers, each smooth where it has a bend, these are returned.
        """
        return None

    @abstractmethod
    def digest(self) -> Any:
        """Return plain data that determines what it finds: settings, and the content of files of its own."""

    def release(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of a model that was loaded; it is loaded again where the scorer is asked again."""


Rescore = Callable[[Sequence[Mapping[str, Any]]], float | Sequence[float] | None]  # as `Scorer.rescore`


def scores(dimension: str, now: Scored, before: Scored | None, rescore: Rescore | None = None) -> Measured:
    """Name a scorer's metrics as they are in a result, and add their change.

    Args:
        dimension: its name.
        now: what was found of the model.
        before: what was found of the untouched model; None: this is the untouched model.
        rescore: the scorer's own, where its score is no share of examples.

    Returns:
        ``eval/<dimension>/<metric>``, and ``.../score_change``, after minus before. Where the score is a share of
        examples the change is over those that both models have an outcome for, with Newcombe's interval for pairs and
        ``.../mcnemar_p``, exact and two-sided; else with `bootstrap_interval`, where the scorer has a ``rescore``.
    """
    label = dimension.replace("_", " ")
    measured = now.measured.renamed(
        lambda metric: replace(metric, name=f"eval/{dimension}/{metric.name}", label=f"{label} {metric.title}")
    )
    if before is None:
        return measured
    if now.outcomes is not None and before.outcomes is not None:
        return measured | change(SCORE_CHANGE, dimension, now.outcomes, before.outcomes)
    scored = [found.measured.metrics.get(SCORE.name) for found in (now, before)]
    if scored[0] is None or scored[1] is None:
        return measured
    paired = rescore is not None and len(now.records) == len(before.records)
    interval = bootstrap_interval(rescore, now.records, before.records) if rescore is not None and paired else None
    return measured | SCORE_CHANGE.named(dimension=dimension).of(scored[0] - scored[1], interval)


def bootstrap_interval(
    rescore: Rescore, after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> tuple[float, float] | None:
    """Compute the 95 % interval of a score's change: percentiles of 1,000 draws of examples, the same for both models.

    A score that is largest at a bend, such as the distance of a share from one half, is too small in a sample where the
    share is near it, and smaller still in a draw of it: percentiles of its change covered it in 83 to 89 % where one
    model was there. Ours: of smooth numbers whose least is the score, each of the one model's minus each of the other's
    has percentiles. By them the change is bounded as the difference of the least, min_i max_j (now_i - then_j). In
    simulations of 100 to 1,500 pairs that covered in 94 % or more at a bend, and it is no wider away from one.

    Args:
        rescore: what records come to.
        after, before: records of the same examples in the same order.

    Returns:
        The interval; None where the scorer cannot tell what records come to.
    """
    draw = random.Random(0)
    n = len(after)
    changes = []
    for _ in range(1000):
        drawn = draw.choices(range(n), k=n)
        now, then = rescore([after[i] for i in drawn]), rescore([before[i] for i in drawn])
        if now is None or then is None:
            return None
        parts, others = ([part] if isinstance(part, int | float) else part for part in (now, then))
        changes.append([[one - other for other in others] for one in parts])
    cuts = [
        [statistics.quantiles(same, n=40, method="inclusive") for same in zip(*row, strict=True)]
        for row in zip(*changes, strict=True)
    ]
    low = min(max(cut[0] for cut in row) for row in cuts)
    return low, max(min(cut[-1] for cut in column) for column in zip(*cuts, strict=True))


def by_category(measure: Callable[[list[int]], Measured], *labels: Sequence[str | None]) -> Measured:
    """Measure all examples, and each category apart under ``<metric>/<category>``, where there are several.

    Args:
        measure: measures the examples of these indices.
        labels: the category of every example, ``[n]``, None where it has none; one or several ways to divide them.
    """
    measured = measure(list(range(len(labels[0]))))
    for found in labels:
        names = sorted({name for name in found if name is not None})
        for category in names if len(names) > 1 else ():
            part = measure([i for i, name in enumerate(found) if name == category])
            measured |= part.renamed(functools.partial(_within, category))
    return measured


def _within(category: str, metric: Metric) -> Metric:
    label = f"{metric.title}, {category.replace('_', ' ')}"
    return replace(metric, name=f"{metric.name}/{category}", label=label, column=None, headline=False)


def category_of(example: Example) -> str | None:
    """Read what the column ``category`` holds, as part of a metric's name; None without such a column."""
    value = example.fields.get("category")
    return None if value is None else str(value).strip().replace("/", "-").replace(" ", "_")


def require_different(example: Example, what: str, texts: Sequence[str]) -> None:
    """Raise `InputError` unless texts that are compared are all there and differ: else none could be preferred."""
    stripped = [text.strip() for text in texts]
    if "" in stripped:
        raise InputError(f"{example.row}: one of its {what} is empty")
    if len(set(stripped)) < len(stripped):
        raise InputError(f"{example.row}: two of its {what} are the same, so that none could be preferred")


def several(value: Any, separator: str) -> list[str]:
    """Read the texts of a list, or those that ``separator`` divides, without outer blanks; null is an empty one."""
    texts = value if isinstance(value, list) else str(value).split(separator) if isinstance(value, str) else [value]
    whole = (int(text) if isinstance(text, float) and text.is_integer() else text for text in texts)
    return ["" if text is None else str(text).strip() for text in whole]


def mean_interval(values: Sequence[float], limits: tuple[float, float]) -> tuple[float, float]:
    """Compute Student's 95 % interval of a mean of independent values, within ``limits``; those for a single value."""
    if len(values) < 2:
        return limits
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return max(limits[0], mean - half), min(limits[1], mean + half)
