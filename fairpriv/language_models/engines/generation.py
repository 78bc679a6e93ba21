"""Greedy answers of a causal language model to many prompts."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    DynamicLayer,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from fairpriv import signs
from fairpriv.errors import InputError, short_of_memory

log = logging.getLogger(__name__)
K = TypeVar("K")
R = TypeVar("R")
_SHARED = 8  # tokens that all prompts of a batch have in common are worth reading once from here on
_STEP = 8  # tokens after which rows that have ended leave their batch


def respond(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_tokens: int,
    end: tuple[int | None, str] = (None, ""),
    setting: str = "model.dtype",
    lower: str = "max_prompt_tokens",
    progress: str | None = None,
) -> list[str]:
    """Answer prompts greedily, in their order; equal prompts are answered once.

    Each next token is the argmax of the model's logits: sampling flags, beams, penalties and length limits of the
    model's generation_config do not count, its end tokens do, and so does the tokenizer's. The answers do not depend
    on ``batch_tokens``, up to rounding: in half precision padding can turn a near tie. What all prompts of a batch
    begin with is read once, and rows that have ended leave their batch every few tokens. Where memory is short, batches
    are halved, once.

    Args:
        model: causal LM of transformers, or a wrapper of one (PEFT, ReFT). Left in the mode it was in.
        tokenizer: decodes the answers.
        prompts: token ids of each prompt as the model is to see them, templates applied; lengths differ.
        max_new_tokens: tokens of an answer, its end token included, at most.
        batch_tokens: of a batch, padding and answers included; longest prompts go first, so that a shortage of memory
            shows at once.
        end: what ends an answer beside EOS, as from ``response_end``: a token, or a text.
        setting: the config key by which the precision of the model's weights is set, for messages.
        lower: what makes prompts shorter, for messages.
        progress: what a progress bar on stderr is called; None: no bar.

    Returns:
        Texts without special tokens, as long as ``prompts``.

    Raises:
        InputError: ``max_new_tokens`` or ``batch_tokens`` below 1, a prompt without tokens, a token that
            the model's embedding has no row for, a prompt that leaves no room for its answer in the model's positions,
            or logits that are not finite.
        RuntimeError: memory is too small; says what to lower.
    """
    if max_new_tokens < 1 or batch_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}, batch_tokens={batch_tokens}: each is at least 1")
    if empty := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
        raise InputError(f"prompt {empty[0]} of {len(prompts)} has no tokens; it needs at least one")
    keys = [tuple(prompt) for prompt in prompts]
    unique = sorted(dict.fromkeys(keys), key=len, reverse=True)
    hf = next(module for module in model.modules() if isinstance(module, GenerationMixin))
    config = _greedy(hf, tokenizer, max_new_tokens, end[0])
    require_room(model, unique, max_new_tokens, lower=lower)
    ends = set(config.eos_token_id or ())
    answers: dict[tuple[int, ...], str] = {}
    tokens, started, rate = 0, time.perf_counter(), 0.0
    with evaluating(model), _generation_config(hf, config), token_bar(progress, len(unique)) as bar:
        for batch, rows in in_batches(
            lambda part: _generate(model, hf, part, config, setting),
            unique,
            batch_tokens,
            lambda prompt: len(prompt) + max_new_tokens,
            lambda part: f"answering prompts of up to {len(part[0])} tokens",
            f"batches (now of {batch_tokens} tokens), then max_new_tokens (now {max_new_tokens})",
        ):
            for prompt, row in zip(batch, rows, strict=True):
                length = next((i for i, token in enumerate(row) if token in ends), len(row))
                text = str(tokenizer.decode(row[:length], skip_special_tokens=True))
                answers[prompt] = text.partition(end[1])[0] if end[1] else text
                tokens += min(length + 1, len(row))
            rate = tokens / (time.perf_counter() - started)
            bar.update(bar.task_ids[0], advance=len(batch), rate=f"{rate:,.0f} tokens/s")
    log.info("answers: %s prompts, %s tokens, %s tokens/s", f"{len(prompts):,}", f"{tokens:,}", f"{rate:,.0f}")
    return [answers[key] for key in keys]


def answer_with_leads(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    end: tuple[int | None, str] = (None, ""),
) -> tuple[list[int], list[float]]:
    """Answer one prompt as `respond` does, and tell how sure each token was.

    Returns:
        The answer's tokens without an end token; and by how much the logit of each was above the next best, that of
        the end token included.
    """
    hf = next(module for module in model.modules() if isinstance(module, GenerationMixin))
    config = _greedy(hf, tokenizer, max_new_tokens, end[0])
    ids = torch.tensor([list(prompt)], device=model.device)
    with evaluating(model), _generation_config(hf, config):
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            return_dict_in_generate=True,
            output_logits=True,
        )
    row = out.sequences[0, len(prompt) :].tolist()
    best = [logits[0].float().topk(2).values for logits in out.logits]
    length = next((i for i, token in enumerate(row) if token in (config.eos_token_id or ())), len(row))
    return row[:length], [float(first - second) for first, second in best]


@contextlib.contextmanager
def greedy_defaults(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, end: int | None
) -> Iterator[None]:
    """Make greedy answers, with our end tokens, the model's own generation config for a while."""
    with _generation_config(model, _greedy(model, tokenizer, max_new_tokens, end)):
        yield


def in_batches(
    work: Callable[[list[K]], list[R]],
    keys: Sequence[K],
    tokens: int,
    length: Callable[[K], int],
    doing: Callable[[list[K]], str],
    lower: str,
) -> Iterator[tuple[list[K], list[R]]]:
    """Work on ``keys`` in runs of at most ``tokens`` with their padding; yield each run and what became of it.

    Where memory is short, that run is tried again with half of its tokens, once, and later ones have as few.

    Args:
        work: returns a result for each key of a run.
        keys: longest first; a run has at least one.
        tokens: of a run.
        length: tokens of a key.
        doing: says what is done with a run, for messages.
        lower: what would help, for messages.

    Raises:
        RuntimeError: the memory does not suffice for half a run either.
    """
    first, halved = 0, False
    while first < len(keys):
        batch = list(keys[first : first + max(1, tokens // length(keys[first]))])
        short: Exception | None = None
        try:
            told = work(batch)
        except (MemoryError, RuntimeError) as error:
            if not short_of_memory(error):
                raise
            short = error.with_traceback(None)  # whose frames hold on to the memory
        if short is None:
            yield batch, told
            first += len(batch)
        elif halved or len(batch) == 1:
            what = f"{doing(batch)}, {len(batch)} rows at a time"
            raise RuntimeError(f"out of memory while {what}: lower {lower}") from short
        else:
            rows = (len(batch) + 1) // 2
            halved, tokens = True, rows * length(batch[0])
            log.warning("memory is short while %s: %d rows at a time, in place of %d", doing(batch), rows, len(batch))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode without gradients; afterwards each module is in the mode that it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


class _Told(Progress):
    """A progress bar that tells the signs of life how far it is, whether it is shown or not."""

    def update(self, task_id: TaskID, **more: Any) -> None:
        super().update(task_id, **more)
        task = self.tasks[0]
        signs.step(f"{task.completed:.0f} of {task.total:.0f} {task.description or 'texts'}, {task.fields['rate']}")


def token_bar(description: str | None, total: int) -> Progress:
    """Make a progress bar on stderr with one task, whose field ``rate`` is shown; None: one that shows nothing."""
    bar = _Told(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        "left",
        TimeRemainingColumn(elapsed_when_finished=False),
        console=Console(stderr=True),
        disable=description is None,
    )
    bar.add_task(description or "", total=total, rate="")
    return bar


def require_room(model: Any, rows: Sequence[Sequence[int]], more: int = 0, *, lower: str = "max_prompt_tokens") -> None:
    """Raise `InputError` for rows that the model cannot read, before it reads any.

    Args:
        model: causal LM of transformers, or a wrapper of one.
        rows: token ids of each row.
        more: tokens that the model writes after a row.
        lower: the setting that makes rows shorter, for the message.
    """
    longest = max((len(row) for row in rows), default=0)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if rows and positions is not None and longest + more > positions:
        answer = f" and an answer of up to {more} more" if more else ""
        advice = f"lower {lower} to {positions - more}" if more < positions else "lower max_new_tokens"
        raise InputError(
            f"{longest} tokens{answer} do not fit into the model's {positions} positions (max_position_embeddings): "
            f"{advice}"
        )
    known = len(model.get_input_embeddings().weight)
    if unknown := [token for row in rows for token in row if token >= known]:
        raise InputError(
            f"the tokenizer writes the token {unknown[0]}, for which the model's embedding of {known} rows has none: "
            "resize the embedding, or take the tokenizer that the model was trained with"
        )


def not_finite(what: str, setting: str = "model.dtype") -> InputError:
    """Make the error for a model that computes NaN or infinity: whatever it would say means nothing."""
    return InputError(
        f"the model gives {what} that are not finite: they overflow its weights' precision, or its training diverged; "
        f"set {setting}=float32, or bfloat16 in place of float16"
    )


def selects_rows(hf: Any) -> bool:
    """Tell whether rows of what a model of transformers has read can be taken out of it, and gone on from.

    They cannot where that is a state, or some layer keeps one, as a convolution does.
    """
    if getattr(hf, "_is_stateful", False) or not hf._supports_default_dynamic_cache():
        return False
    return all(hasattr(layer, "batch_select_indices") for layer in DynamicCache(config=hf.config).layers)


def _beginning(batch: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts begin with, such as a system prompt; 0 where reading them once saves little."""
    most = len(batch[-1]) - 1  # a token of each prompt is left, whose logits are asked
    count = next((i for i, tokens in enumerate(zip(*batch, strict=False)) if len({*tokens}) > 1 or i == most), 0)
    return count if len(batch) > 1 and count >= _SHARED else 0


def _takes_padding_within(hf: Any) -> bool:
    """Tell whether a model's positions come from the mask alone, so that padding may lie between tokens."""
    sliding = any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=hf.config).layers)
    sliding |= getattr(hf.config, "window_size", None) is not None  # GPT-Neo's local layers, which the cache knows not
    return not sliding and "position_ids" in inspect.signature(hf.forward).parameters


class _Roomy(DynamicLayer):
    """Keeps room for tokens to come: a layer of transformers copies all that it holds for each of them."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._grown(self.keys, key_states), self._grown(self.values, value_states)
        return self.keys, self.values

    def _grown(self, held: Tensor | None, new: Tensor) -> Tensor:
        assert held is not None
        rows, heads, more, width = new.shape
        count = held.shape[-2] if held.numel() else 0
        head = held.stride(1) if count else 0  # elements that a head has room for: once rows were taken out, its own
        if head < (count + more) * width or held.stride() != (heads * head, head, width, 1):
            whole = new.new_empty(rows, heads, count + more + self.room, width)
            if count:
                whole[:, :, :count] = held
            grown = whole[:, :, : count + more]
        else:
            grown = held.as_strided((rows, heads, count + more, width), held.stride(), held.storage_offset())
        grown[:, :, count:] = new
        return grown


def _roomy(hf: Any, room: int) -> DynamicCache:
    """Make an empty cache of a model, with room for as many tokens beyond those that it is first given."""
    cache = DynamicCache(config=hf.config)
    cache.layers = [_Roomy(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _Finite(LogitsProcessor):
    """Stops at logits that are not finite; of rows that have ended nothing is asked."""

    def __init__(self, width: int, ends: Sequence[int], setting: str) -> None:
        self.width, self.ends, self.setting = width, ends, setting

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ended = torch.isin(input_ids[:, self.width :], torch.tensor(self.ends, device=input_ids.device)).any(1)
        # A sum is finite only if all that it adds is, and takes a twentieth of the time of asking each.
        if not (scores.sum(1).isfinite() | ended).all():
            raise not_finite("logits", self.setting)
        return scores


def _greedy(
    hf: GenerationMixin, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, end: int | None
) -> GenerationConfig:
    own: Any = hf.generation_config
    named = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = sorted({token for token in (*named, tokenizer.eos_token_id, end) if token is not None})
    rows = len(hf.get_input_embeddings().weight)  # type: ignore[attr-defined]
    # Any token that has a row will do: it is masked.
    pad = next((token for token in (tokenizer.pad_token_id, *ends) if token is not None and token < rows), 0)
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad
    )


@contextlib.contextmanager
def _generation_config(hf: GenerationMixin, config: GenerationConfig) -> Iterator[None]:
    """Exchange the model's own for a while: ``generate`` fills what a config leaves open from the model's own."""
    owner: Any = hf
    own, owner.generation_config = owner.generation_config, config
    try:
        yield
    finally:
        owner.generation_config = own


def _generate(
    model: Any, hf: Any, batch: Sequence[Sequence[int]], config: GenerationConfig, setting: str
) -> list[list[int]]:
    """Generate the new tokens of each prompt, longest first; after an end token there may be padding."""
    leaves = selects_rows(hf)
    begin = _beginning(batch) if leaves and model is hf and _takes_padding_within(hf) else 0
    gaps = [len(batch[0]) - len(prompt) for prompt in batch]  # padding, on the left of what is read in one batch
    ids = torch.tensor(
        [[*p[:begin], *[config.pad_token_id] * gap, *p[begin:]] for p, gap in zip(batch, gaps, strict=True)]
    )
    mask = torch.tensor([[1] * begin + [0] * gap + [1] * (len(p) - begin) for p, gap in zip(batch, gaps, strict=True)])
    ids, mask, ends = ids.to(model.device), mask.to(model.device), torch.tensor(config.eos_token_id or [])
    rows: list[list[int]] = [[] for _ in batch]
    alive, left = list(range(len(batch))), int(config.max_new_tokens or 0)
    past: dict[str, Any] = {}
    if leaves and model is hf:
        past = {"past_key_values": _roomy(hf, left)}
    if begin:
        hf(input_ids=ids[:1, :begin], use_cache=True, **past)
        past["past_key_values"].batch_repeat_interleave(len(batch))
    while alive and left:
        step = copy.copy(config)
        step.max_new_tokens = min(left, _STEP) if leaves else left
        # once there is a cache, the prompt is behind: ReFT, which intervenes on prompts, is not asked again
        out = (hf if past else model).generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=step,
            logits_processor=LogitsProcessorList([_Finite(ids.shape[1], config.eos_token_id or (), setting)]),
            return_dict_in_generate=True,
            **past,
        )
        new = out.sequences[:, ids.shape[1] :]
        for row, tokens in zip(alive, new.tolist(), strict=True):
            rows[row] += tokens
        left -= step.max_new_tokens
        if not left:
            break
        keep = (~torch.isin(new, ends.to(new.device)).any(1)).nonzero()[:, 0]
        alive = [alive[i] for i in keep.tolist()]
        ids, mask = out.sequences[keep], torch.cat([mask, torch.ones_like(new)], 1)[keep]
        if len(keep) < len(new):
            out.past_key_values.batch_select_indices(keep)
        past = {"past_key_values": out.past_key_values}
    return rows
