"""Log-likelihood of many short continuations under a causal language model."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin

from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, collate
from fairpriv.language_models.engines.generation import evaluating, not_finite, require_room, token_bar
from fairpriv.language_models.models.reft import ReftModel

_ROW = (
    128  # tokens of a row that ``batch_size`` is meant for: of shorter rows more go into a batch, of longer ones less
)
_CHUNK = 256  # targets whose logits are in float32 at a time: a vocabulary has up to 256,000 entries


def log_likelihoods(
    model: nn.Module, rows: Sequence[Encoded], *, pad_id: int, batch_size: int, progress: str | None = None
) -> list[float]:
    """Sum the log-probabilities of each row's targets, each given all that stands before it.

    Rows are padded on the right and sorted by length; equal ones are computed once. The result does not depend on how
    they are batched, up to rounding.

    Args:
        model: causal LM of transformers, or a wrapper of one (PEFT, ReFT). Left in the mode it was in. ReFT takes what
            stands before a row's first target for the prompt.
        rows: as from ``encode_continuation``: targets are the tokens whose label is not -100; the first has none.
        pad_id: fills up shorter rows.
        batch_size: rows of 128 tokens in a batch; of shorter ones more, of longer ones fewer.
        progress: what a progress bar on stderr is called; None: no bar.

    Returns:
        Natural logarithms, summed in float64 over log-probabilities in float32; as long as ``rows``.

    Raises:
        ValueError: ``batch_size`` below 1; a row that is longer than the model's positions or has a token that its
            embedding has no row for, or a log-likelihood that is not finite (each an InputError).
        RuntimeError: the GPU's memory is too small; says what to lower.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    keys = [(tuple(row.input_ids), tuple(row.labels)) for row in rows]
    unique = sorted(dict.fromkeys(keys), key=lambda key: len(key[0]), reverse=True)
    require_room(model, [ids for ids, _ in unique])
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    tokens, started = 0, time.perf_counter()
    with evaluating(model), token_bar(progress, len(unique)) as bar:
        for batch in _batches(unique, batch_size * _ROW):
            parts = collate([Encoded([*ids], [*labels]) for ids, labels in batch], pad_id)
            try:
                sums = _sums(model, parts)
            except torch.OutOfMemoryError as error:
                raise RuntimeError(
                    f"out of memory while scoring {len(batch)} rows of up to {len(batch[0][0])} tokens: lower "
                    f"batch_size (now {batch_size})"
                ) from error
            found |= dict(zip(batch, sums, strict=True))
            tokens += sum(len(ids) for ids, _ in batch)
            rate = f"{tokens / (time.perf_counter() - started):,.0f} tokens/s"
            bar.update(bar.task_ids[0], advance=len(batch), rate=rate)
    if not all(math.isfinite(value) for value in found.values()):
        raise not_finite("log-likelihoods")
    return [found[key] for key in keys]


def _batches(keys: Sequence[Any], tokens: int) -> Iterator[list[Any]]:
    """Divide ``keys``, longest first, into runs of at most ``tokens`` with their padding; at least one key each."""
    first = 0
    while first < len(keys):
        count = max(1, tokens // len(keys[first][0]))
        yield list(keys[first : first + count])
        first += count


def _sums(model: nn.Module, parts: dict[str, Tensor]) -> list[float]:
    lm: Any = model
    labels = parts["labels"][:, 1:]
    chosen = labels != NO_TARGET
    first = int(chosen.any(0).float().argmax())  # positions before predict no row's target
    hf = next(module for module in model.modules() if isinstance(module, GenerationMixin))
    more: dict[str, Any] = {}
    if isinstance(model, ReftModel):
        more["labels"] = parts["labels"].to(lm.device)  # by which it finds the prompt
    elif "logits_to_keep" in inspect.signature(hf.forward).parameters:
        more["logits_to_keep"] = torch.arange(first, labels.shape[1], device=lm.device)
    ids, mask = parts["input_ids"].to(lm.device), parts["attention_mask"].to(lm.device)
    logits: Tensor = lm(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits
    if "logits_to_keep" not in more:
        logits = logits[:, first:]
    row, place = (index.to(logits.device) for index in chosen[:, first:].nonzero(as_tuple=True))
    targets = labels[chosen].to(logits.device)
    sums = torch.zeros(len(labels), dtype=torch.float64)
    for part in torch.arange(len(targets), device=logits.device).split(_CHUNK):
        scores = logits[row[part], place[part]].float()
        lost = cross_entropy(scores, targets[part], reduction="none")
        sums.index_add_(0, row[part].cpu(), -lost.double().cpu())
    return sums.tolist()
