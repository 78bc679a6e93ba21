"""Log-likelihood of many short continuations under a causal language model."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, GenerationMixin

from fairpriv.functional.cross_entropy import rows_at_once
from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, collate
from fairpriv.language_models.engines.generation import (
    evaluating,
    in_batches,
    not_finite,
    require_room,
    selects_rows,
    token_bar,
)
from fairpriv.language_models.models.reft import ReftModel

_SHARED = 8  # tokens of a context from which on it pays to read it once for all that follows it

Row = tuple[tuple[int, ...], tuple[int, ...]]  # tokens and labels
R = TypeVar("R")
Found = tuple[float, bool]  # sum of log-probabilities; whether each target is the likeliest token


def log_likelihoods(
    model: nn.Module, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int, progress: str | None = None
) -> list[float]:
    """Sum the log-probabilities of each row's targets, each given all that stands before it.

    What several rows have before their first targets is read once: their continuations go on from its cache. Other
    rows are padded on the right and sorted by length; equal ones are computed once. The result does not depend on how
    rows are batched, up to rounding. Where memory is short, batches are halved, once.

    Args:
        model: causal LM of transformers, or a wrapper of one (PEFT, ReFT). Left in the mode it was in. ReFT takes what
            stands before a row's first target for the prompt.
        rows: as from ``encode_continuation``: targets are the tokens whose label is not -100; the first has none.
        pad_id: fills up shorter rows.
        batch_tokens: of a batch, padding included.
        progress: what a progress bar on stderr is called; None: no bar.

    Returns:
        Natural logarithms, summed in float64 over log-probabilities in float32; as long as ``rows``.

    Raises:
        ValueError: ``batch_tokens`` below 1; a row that is longer than the model's positions or has a token that its
            embedding has no row for, or a log-likelihood that is not finite (each an InputError).
        RuntimeError: memory is too small; says what to lower.
    """
    found = likelihoods(model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress)
    return [value for value, _ in found]


def likelihoods(
    model: nn.Module, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int, progress: str | None = None
) -> list[Found]:
    """Compute `log_likelihoods`, and beside each whether the model, greedily, would have written the targets."""
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens}: must be at least 1")
    keys: list[Row] = [(tuple(row.input_ids), tuple(row.labels)) for row in rows]
    unique = list(dict.fromkeys(keys))
    require_room(model, [ids[:-1] for ids, _ in unique])  # the last token predicts nothing, and is not read
    require_room(model, [ids[-1:] for ids, _ in unique])
    hf: Any = next(module for module in model.modules() if isinstance(module, GenerationMixin))
    shared, alone = _by_context(unique, hf)
    found: dict[Row, Found] = {}
    started = time.perf_counter()
    lower = f"the batch size (evaluation.batch_size or utility.batch_size; now {batch_tokens} tokens)"
    with evaluating(model), _shared_heads(model), token_bar(progress, len(unique)) as bar:

        def tell(batch: Sequence[Row], told: Sequence[Found]) -> None:
            found.update(zip(batch, told, strict=True))
            rate = f"{sum(len(ids) for ids, _ in found) / (time.perf_counter() - started):,.0f} tokens/s"
            bar.update(bar.task_ids[0], advance=len(batch), rate=rate)

        def room(group: list[Row]) -> int:
            return len(group) * max(len(ids) for ids, _ in group)

        for groups, values in in_batches(
            lambda part: _continued(model, hf, part, pad_id),
            sorted(shared, key=room, reverse=True),
            batch_tokens,
            room,
            lambda part: f"scoring {len(part)} contexts and what follows them",
            lower,
        ):
            for group, told in zip(groups, values, strict=True):
                tell(group, told)
        for batch, found_alone in _read(model, hf, alone, pad_id, batch_tokens, _summed, lower):
            tell(batch, found_alone)
    if not all(math.isfinite(value) for value, _ in found.values()):
        raise not_finite("log-likelihoods")
    return [found[key] for key in keys]


def token_likelihoods(
    model: nn.Module, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int, progress: str | None = None
) -> list[Tensor]:
    """Compute the log-probability of every target, and what the model expects of it; see `log_likelihoods`.

    Returns:
        Of each row float32 ``[3, T]`` over its targets: the log-probability of the target, and mean and standard
        deviation of the log-probability of a token drawn from the model's prediction there.

    Raises:
        As `log_likelihoods`.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens}: must be at least 1")
    keys: list[Row] = [(tuple(row.input_ids), tuple(row.labels)) for row in rows]
    require_room(model, [ids for ids, _ in keys])
    hf: Any = next(module for module in model.modules() if isinstance(module, GenerationMixin))
    unique = list(dict.fromkeys(keys))
    found: dict[Row, Tensor] = {}
    lower = f"the batch size (evaluation.batch_size; now {batch_tokens} tokens)"
    with evaluating(model), _shared_heads(model), token_bar(progress, len(unique)) as bar:
        for batch, told in _read(model, hf, unique, pad_id, batch_tokens, _spread, lower):
            found.update(zip(batch, told, strict=True))
            bar.update(bar.task_ids[0], advance=len(batch))
    if not all(bool(values.isfinite().all()) for values in found.values()):
        raise not_finite("log-likelihoods")
    return [found[key] for key in keys]


def _by_context(rows: Sequence[Row], hf: Any) -> tuple[list[list[Row]], list[Row]]:
    """Divide rows into groups of several with the same tokens before their first targets, and the others."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    able = "position_ids" in inspect.signature(hf.forward).parameters and selects_rows(hf)
    for ids, labels in rows:
        groups.setdefault(ids[: _start(labels)], []).append((ids, labels))
    shared = [group for context, group in groups.items() if len(group) > 1 and len(context) >= _SHARED and able]
    taken = {row for group in shared for row in group}
    return shared, [row for row in rows if row not in taken]


@contextlib.contextmanager
def _shared_heads(model: Any) -> Iterator[None]:
    """Have attention on a CPU read keys and values that heads share as they are, beside a mask too.

    Transformers copies them for each head: right for CUDA, whose kernels take no mask beside shared heads. The CPU's
    does, with the same result. Where tokens are written one by one transformers has a faster way of its own.
    """
    name = "TRANSFORMERS_SDPA_FORCE_GQA"
    fits = name not in os.environ and all(weight.device.type == "cpu" for weight in model.parameters())
    if fits:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if fits:
            os.environ.pop(name, None)


def _start(labels: Sequence[int]) -> int:
    """Find the first target."""
    return next(i for i, label in enumerate(labels) if label != NO_TARGET)


def _continued(model: Any, hf: Any, groups: list[list[Row]], pad_id: int) -> list[list[Found]]:
    """Read the context of each group once, padded on the left, and what follows it from a copy of its cache."""
    contexts = [Encoded(list(ids[: (n := _start(labels))]), [NO_TARGET] * n) for (ids, labels), *_ in groups]
    parts = {name: part.to(model.device) for name, part in collate(contexts, pad_id, side="left").items()}
    mask, owner = parts["attention_mask"], [i for i, group in enumerate(groups) for _ in group]
    parents = torch.tensor(owner, device=mask.device)
    lengths = mask.sum(1)
    cache = DynamicCache(config=hf.config)
    out = model(
        input_ids=parts["input_ids"],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        **_kept(hf, torch.tensor([mask.shape[1] - 1], device=mask.device)),
    )
    first: Tensor = out.logits[:, -1][parents]
    tails = [
        Encoded(list(ids[len(contexts[i].input_ids) :]), list(labels[len(contexts[i].input_ids) :]))
        for i, (ids, labels) in zip(owner, (row for group in groups for row in group), strict=True)
    ]
    after = {name: part.to(mask.device) for name, part in collate(tails, pad_id).items()}
    labels, logits = after["labels"], first[:, None]
    if labels.shape[1] > 1:  # the last token predicts nothing
        cache.batch_select_indices(parents)
        places = lengths[parents][:, None] + torch.arange(labels.shape[1] - 1, device=mask.device)
        rest = model(
            input_ids=after["input_ids"][:, :-1],
            attention_mask=torch.cat([mask[parents], after["attention_mask"][:, :-1]], 1),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, rest.logits], 1)
    told = iter(_summed(logits, labels))
    return [[next(told) for _ in group] for group in groups]


def _whole(model: Any, hf: Any, rows: list[Row], pad_id: int, told: Callable[[Tensor, Tensor], list[R]]) -> list[R]:
    """Read rows from their beginnings, padded on the right; ``told`` reads logits and the labels that they predict."""
    parts = {
        name: part.to(model.device) for name, part in collate([Encoded([*a], [*b]) for a, b in rows], pad_id).items()
    }
    labels = parts["labels"][:, 1:]
    first = int((labels != NO_TARGET).any(0).float().argmax())  # positions before predict no row's target
    more = _kept(hf, torch.arange(first, labels.shape[1], device=labels.device))
    if isinstance(model, ReftModel):
        more = {"targets": parts["labels"][:, :-1]}  # by which it finds the prompt
    read = {name: part[:, :-1] for name, part in parts.items() if name != "labels"}
    logits = model(**read, use_cache=False, **more).logits
    return told(logits if "logits_to_keep" in more else logits[:, first:], labels[:, first:])


def _read(
    model: Any,
    hf: Any,
    rows: Sequence[Row],
    pad_id: int,
    batch_tokens: int,
    told: Callable[[Tensor, Tensor], list[R]],
    lower: str,
) -> Iterator[tuple[list[Row], list[R]]]:
    """Read rows in batches, see `_whole`."""
    return in_batches(
        lambda part: _whole(model, hf, part, pad_id, told),
        # those with as long a context together: of it no logits are asked for
        sorted(rows, key=lambda row: (len(row[0]), _start(row[1])), reverse=True),
        batch_tokens,
        lambda row: len(row[0]),
        lambda part: f"scoring rows of up to {len(part[0][0])} tokens",
        lower,
    )


def _kept(hf: Any, places: Tensor) -> dict[str, Tensor]:
    """Ask for the logits of some positions only, where the model can."""
    return {"logits_to_keep": places} if "logits_to_keep" in inspect.signature(hf.forward).parameters else {}


def _summed(logits: Tensor, labels: Tensor) -> list[Found]:
    """Sum over each row's targets, for logits [B, T, V] and the labels [B, T] that they predict."""
    row, place = (labels != NO_TARGET).nonzero(as_tuple=True)
    targets = labels[row, place].to(logits.device)
    row, place = row.to(logits.device), place.to(logits.device)
    sums = torch.zeros(len(labels), dtype=torch.float64)
    missed = torch.zeros(len(labels), dtype=torch.int64)
    for part in torch.arange(len(targets), device=logits.device).split(rows_at_once(logits)):
        scores = logits[row[part], place[part]].float()
        lost = cross_entropy(scores, targets[part], reduction="none")
        sums.index_add_(0, row[part].cpu(), -lost.double().cpu())
        # Of equal logits the first counts as the likeliest. To look for it takes long: only where it may be the target.
        best = (scores.gather(1, targets[part, None])[:, 0] == scores.amax(1)).nonzero()[:, 0]
        wrong = torch.ones_like(part)
        wrong[best] = (scores[best].argmax(1) != targets[part][best]).long()
        missed.index_add_(0, row[part].cpu(), wrong.cpu())
    return list(zip(sums.tolist(), (missed == 0).tolist(), strict=True))


def _spread(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Read log-probability, expected log-probability and its deviation at each row's targets, ``[3, T]``."""
    row, place = (labels != NO_TARGET).nonzero(as_tuple=True)
    targets = labels[row, place].to(logits.device)
    told = []
    for part in torch.arange(len(targets)).split(rows_at_once(logits)):
        at = part.to(logits.device)
        scores = logits[row.to(logits.device)[at], place.to(logits.device)[at]].float().log_softmax(1)
        probs = scores.exp()
        mean = (probs * scores).nan_to_num().sum(1)  # what cannot be drawn counts nothing
        variance = (probs * (scores - mean[:, None]).square()).nan_to_num().sum(1)
        told.append(torch.stack([scores.gather(1, targets[at, None])[:, 0], mean, variance.sqrt()]).cpu())
    return list(torch.cat(told, 1).split([int(n) for n in (labels != NO_TARGET).sum(1)], 1))
