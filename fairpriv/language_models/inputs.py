"""What one cell of a language model reads: drawn before its model is loaded, and encoded as that model's tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.language_models.contract import Draw
from fairpriv.language_models.data.canaries import require_written
from fairpriv.language_models.data.pairs import drawn
from fairpriv.language_models.data.tokens import Encoded, encode_all, pad_token_id
from fairpriv.language_models.engines.generation import require_room
from fairpriv.language_models.engines.perplexity import encode_text, require_window, windows
from fairpriv.language_models.models.pretrained import quantised
from fairpriv.language_models.models.sharding import require_shardable
from fairpriv.language_models.observation import PromptSet, prompt_sets
from fairpriv.language_models.scorers.scorer import Subject
from fairpriv.language_models.settings import Settings
from fairpriv.metrics import SHARE, Measured, Metric

log = logging.getLogger(__name__)

TRAINED_ON = Metric(
    "eval/{dimension}/trained_on",
    "{dimension} prompts trained on",
    "Share of the dimension's prompts that are also prompts of pairs that the defence trains on, or is made from; left "
    "out where none is.",
    SHARE,
    low=0.0,
    high=1.0,
)


@dataclass
class Data:
    """What a cell reads, before its model is loaded."""

    sets: list[PromptSet]  # what is asked
    pairs: list[Example]  # what is trained on
    asked: dict[Draw, list[Example]]  # what the defence asks for beside them
    common: list[Example]  # what an analysis compares dimensions on
    text: str | None  # what perplexity is measured on


@dataclass
class Loaded:
    """The cell's model, and what is read as its tokens."""

    subject: Subject
    pairs: tuple[list[Encoded], int]  # and how many were dropped
    rows: dict[Draw, list[Encoded]]  # what the defence asks for beside them
    text: Tensor | None
    pad_id: int  # fills up shorter rows


def read(settings: Settings) -> Data:
    """Draw everything that the cell reads.

    Raises:
        InputError: a file, a dimension or a number of examples is not as it should be.
    """
    dimensions, defense, evaluation = settings.dimensions, settings.defense, settings.evaluation
    pairs = settings.pairs.draw(dimensions, settings.seed) if defense.trains else []
    asked = {which: drawn(dimensions, *which, settings.seed) for which in defense.sets}
    return Data(
        prompt_sets(dimensions, evaluation, settings.pairs, settings.seed),
        pairs,
        asked,
        settings.analysis.draw(dimensions, defense, evaluation.seed) if settings.analysis is not None else [],
        "\n\n".join(map(_joined, settings.text.load())) if settings.text is not None else None,
    )


def trained_on(data: Data) -> Measured:
    """Measure which share of a dimension's prompts the defence reads pairs of, and warn of it; nothing where it is 0.

    What a model does with a prompt that it was trained on tells little of what it does with another. Prompts are
    compared without outer blanks.
    """
    pairs = [pair for some in (data.pairs, *data.asked.values()) for pair in some]
    pairs += [pair.rejected for pair in pairs if pair.rejected is not None]  # which may be to another prompt
    read = {pair.prompt.strip() for pair in pairs} - {""}
    measured = Measured()
    for prompts in data.sets:
        if prompts.kind == "benign" or prompts.dimension.evaluate is None:  # leakage asks about what is trained on
            continue
        n, known = len(prompts.examples), sum(example.prompt.strip() in read for example in prompts.examples)
        if known:
            log.warning(
                "dimension %s: %d of its %d prompts are also prompts of pairs that the defence reads",
                prompts.name,
                known,
                n,
            )
            measured |= TRAINED_ON.named(dimension=prompts.name).of(known / n)
    return measured


def load(settings: Settings, data: Data) -> Loaded:
    """Load the model, and encode what it is to read.

    Raises:
        InputError: the model cannot be had, cannot be tuned as the defence asks, or has no room for what it is to read;
            or its tokenizer has no token that could pad, or no chat template by which tasks are to be asked.
    """
    evaluation = settings.evaluation
    model, tokenizer = settings.model.load()
    settings.model.pin(tokenizer)
    settings.harness.require_template(tokenizer)
    pad_id = pad_token_id(tokenizer, len(model.get_input_embeddings().weight))  # type: ignore[arg-type]
    if settings.model.device_map is None and not quantised(model):  # which transformers has put in its place
        model.to(settings.device())  # type: ignore[arg-type]
    if settings.model.gradient_checkpointing:
        checkpoint_activations(model)
    settings.defense.check(model)
    if settings.engine is not None:
        try:
            settings.defense.check(model, merged=True)
        except InputError as error:
            raise InputError(f"{error}; or have answers from this process, by engine=transformers") from None
    if settings.sharded and settings.defense.trains:
        require_shardable(model)
    if (canaries := settings.pairs.canaries) is not None:
        require_written(
            tokenizer,
            [example for part in canaries.draw(settings.seed) for example in part],
            form=settings.model.form,
            max_tokens=settings.pairs.max_tokens,
            truncate=settings.pairs.truncate,
        )
    pairs = encoded(settings, tokenizer, data.pairs) if settings.defense.trains else ([], 0)
    rows = {}
    for which, examples in data.asked.items():
        rows[which], dropped = encoded(settings, tokenizer, examples)
        if dropped:
            log.warning(
                "defense=%s reads %d of the %d %s pairs of %s: dataset.max_tokens=%d, truncate=%s leaves no response "
                "of the others",
                settings.defense.name,
                len(rows[which]),
                len(examples),
                which[1],
                which[0],
                settings.pairs.max_tokens,
                settings.pairs.truncate,
            )
    trained = [part.input_ids for encoded in (pairs[0], *rows.values()) for row in encoded for part in row.parts]
    require_room(model, trained, lower="dataset.max_tokens")
    text = None if data.text is None else encode_text(tokenizer, data.text)[: evaluation.text_tokens]
    if text is not None:
        require_window(model, text, windows(model.config, evaluation.window, evaluation.stride)[0])
    subject = Subject(
        model,
        tokenizer,
        settings.model.form,
        evaluation.max_prompt_tokens,
        evaluation.batch_size,
        settings.watched,
    )
    if settings.engine is not None:
        settings.engine.require(subject)
    return Loaded(subject, pairs, rows, text, pad_id)


def checkpoint_activations(model: Any) -> None:
    """Let training compute activations again in the backward pass, instead of keeping them."""
    # transformers 5.23 deplores the old name, earlier ones know no other
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def encoded(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[list[Encoded], int]:
    """Encode pairs as the model is trained on them; return the rows, and how many were dropped."""
    return encode_all(
        tokenizer,
        examples,
        form=settings.model.form,
        max_tokens=settings.pairs.max_tokens,
        truncate=settings.pairs.truncate,
    )


def _joined(example: Example) -> str:
    return example.prompt if example.response is None else f"{example.prompt}\n{example.response}"
