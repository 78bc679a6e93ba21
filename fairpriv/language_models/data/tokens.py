"""Prompts and responses as tokens: what the model reads, and exactly which tokens it is trained on."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from fairpriv.data.texts import Example
from fairpriv.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_SENTINEL = "Zq7sentinelK2"  # stands in for a text whose place in a template's output is looked for
NO_TARGET = -100  # the label that a loss leaves out, by torch's and transformers' convention

Prompt = str | Sequence[Mapping[str, str]]  # what the user says, or messages with role and content, the user's last
Truncate = Literal["prompt_left", "prompt_right", "response", "drop"]


@dataclass(frozen=True)
class PromptFormat:
    """How prompts and responses are written as one text.

    Attributes:
        chat_template: ``auto``: by the tokenizer's own, where it has one; ``none``: plain text.
        system: system message; None: none of ours (a template may write one of its own).
        separator: what stands between a prompt and its response in plain text.
        append_eos: whether EOS is put after a response where the template has no mark that ends it.
    """

    chat_template: Literal["auto", "none"] = "auto"
    system: str | None = None
    separator: str = ""
    append_eos: bool = True

    def __post_init__(self) -> None:
        if self.chat_template not in ("auto", "none"):
            raise InputError(f"chat_template={self.chat_template}: must be one of auto, none")


PLAIN = PromptFormat("none")


@dataclass(frozen=True)
class Encoded:
    """Tokens of one prompt and its response."""

    input_ids: list[int]  # [T]
    labels: list[int]  # [T]: the token itself where it is of the response or ends it, else -100

    @property
    def parts(self) -> list[Encoded]:
        """Everything that a model reads of this row."""
        return [self]


@dataclass(frozen=True)
class Preference(Encoded):
    """Tokens of one prompt and its response, which is to be preferred to another one."""

    rejected: Encoded
    reference: float = 0.0  # by how much the untouched model's log-likelihood of this response is the larger one

    @property
    def parts(self) -> list[Encoded]:
        """Both of them."""
        return [self, self.rejected]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    *,
    form: PromptFormat = PromptFormat(),
    max_tokens: int,
    truncate: Truncate,
) -> Encoded | None:
    """Encode a prompt and its response; the response and its end are the targets, all of them and nothing else.

    With a chat template (``auto``, where the tokenizer has one) the text is the template's, up to the mark that ends
    the response (see `response_end`); only where the template has no such mark is EOS added. What it writes between
    prompt and response, as an empty ``<think></think>``, is a target too, since an answer begins with it. Without a
    template it is [BOS] [system, line break,] prompt, separator, response, EOS; BOS once, where the tokenizer writes
    one of itself. Messages of a conversation stand on lines of their own there.

    Args:
        tokenizer: of the model that is trained.
        prompt: what the user says.
        response: what the model is to answer.
        form: how they are written.
        max_tokens: length of the whole, which is cut to it.
        truncate: what is cut. ``prompt_left`` and ``prompt_right``: the beginning or end of the user's text, and of
            the prompt with its frame only where that is not enough; ``response``: its end; ``drop``: the row.

    Returns:
        The row, or None where it is dropped: it is too long and ``truncate`` says so, or cutting as named would leave
        no token of the response, or of the prompt.

    Raises:
        InputError: the chat template takes no system message, or does not write the response after its prompt.
    """
    if truncate not in get_args(Truncate):
        raise InputError(f"truncate={truncate}: must be one of {', '.join(get_args(Truncate))}")
    before = _before(tokenizer, prompt, form)
    lead, said, end = _after(tokenizer, prompt, response, before, form)
    # What follows the end mark, as a newline to the next turn, a model never gets to write.
    after = lead + said + (_mark(tokenizer, end) if end.strip() else end)
    asked = _prompt_ids(tokenizer, before, form)
    whole = _prompt_ids(tokenizer, before + after, form)
    # Where a token spans the seam (a blank that ends the prompt joins the response's first word), the prompt's tokens
    # are not the beginning of the whole's. Generation starts from the prompt's own tokens: so does this row then, and
    # the response is tokenised by itself.
    answer = whole[len(asked) :] if whole[: len(asked)] == asked else _continuation_ids(tokenizer, after)
    eos = tokenizer.eos_token_id
    if form.append_eos and not end.strip() and eos is not None and answer[-1:] != [eos]:
        answer = [*answer, eos]

    excess = len(asked) + len(answer) - max_tokens
    if excess > 0:
        if truncate == "response":
            answer = answer[: max(0, len(answer) - excess)]
        elif truncate == "drop" or excess >= len(asked):
            return None
        else:
            place = _place(tokenizer, prompt, before, form)
            asked = _cut(tokenizer, asked, before, place, excess, left=truncate == "prompt_left")
    if not answer:
        return None
    return Encoded(input_ids=asked + answer, labels=[NO_TARGET] * len(asked) + answer)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    form: PromptFormat = PromptFormat(),
    max_tokens: int,
) -> list[int]:
    """Encode a prompt as the tokens from which its response is generated: the same that `encode` puts before it.

    Too many are cut to ``max_tokens`` at the beginning of the user's text, or of the whole where that is not enough.
    """
    before = _before(tokenizer, prompt, form)
    ids = _prompt_ids(tokenizer, before, form)
    excess = len(ids) - max_tokens
    if excess <= 0:
        return ids
    return _cut(tokenizer, ids, before, _place(tokenizer, prompt, before, form), excess, left=True)


def response_end(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> tuple[int | None, str]:
    """Return the mark that `encode` puts after a response, at which an answer ends: a token's id, else a text.

    (None, "") where it is EOS. A mark with added tokens in it, as ``<|im_end|>``, counts from the first of them.
    """
    if not _templated(tokenizer, form):
        return None, ""
    before = _before(tokenizer, "a", form)
    try:
        end = _mark(tokenizer, _after(tokenizer, "a", "a", before, form)[2])
    except InputError:  # it writes no response that training could use: there is no mark to go by
        return None, ""
    last = next(reversed(_ids(tokenizer, end)), None)
    return (last, "") if last in tokenizer.added_tokens_decoder else (None, end)


def opens_thinking(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> bool:
    """Tell whether a prompt ends with ``<think>``, so that an answer begins with thoughts and no mark of them."""
    return _before(tokenizer, "a", form).rstrip().endswith("<think>")


def without_thinking(answer: str, *, opened: bool = False) -> str:
    """Remove what stands between ``<think>`` and ``</think>``, or the end of an answer that was cut before it.

    Args:
        answer: as the model wrote it.
        opened: the prompt ends with ``<think>``.
    """
    if opened or "</think>" in answer.partition("<think>")[0]:
        answer = f"<think>{answer}"
    return re.sub(r"<think>.*?(</think>\s*|\Z)", "", answer, flags=re.DOTALL)


def as_messages(prompt: Prompt, system: str | None) -> list[dict[str, str]]:
    """Write a prompt as messages; a system message of its own takes the place of ours."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    own = messages[0]["role"] == "system"
    return messages if system is None or own else [{"role": "system", "content": system}, *messages]


def encode_continuation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    continuation: str,
    *,
    form: PromptFormat = PromptFormat(),
    max_tokens: int,
) -> Encoded:
    """Encode a prompt and what follows it, whose likelihood is asked for: it alone is the target, no end mark.

    As `encode` writes them; what a template writes between the two, as an empty ``<think></think>``, is context, unless
    it is blank. Where nothing stands before the continuation (an empty prompt, plain, without BOS) one
    token does: BOS, else EOS, else the pad token. So the first word counts too.

    Args:
        tokenizer: of the model that is asked.
        prompt: what the user says; plain, the text that is gone on from.
        continuation: what follows; with a template, the whole response.
        form: how they are written.
        max_tokens: of what stands before the continuation, cut at its beginning as in `encode_prompt`.

    Raises:
        InputError: the continuation has no tokens; a chat template as in `encode`.
    """
    before = _before(tokenizer, prompt, form)
    lead, said, _ = _after(tokenizer, prompt, continuation, before, form)
    after = said.rstrip()
    if lead.strip():
        before += lead
    elif after:
        after = lead + after  # a blank belongs to the first word's token
    asked = _prompt_ids(tokenizer, before, form)
    whole = _prompt_ids(tokenizer, before + after, form)
    answer = whole[len(asked) :] if whole[: len(asked)] == asked else _continuation_ids(tokenizer, after)
    if not answer:
        raise InputError(f"{continuation!r} has no tokens, so it has no likelihood")
    if len(asked) > max_tokens:
        place = _place(tokenizer, prompt, before, form)
        asked = _cut(tokenizer, asked, before, place, len(asked) - max_tokens, left=True)
    if not asked:
        known = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        asked = [known[0] if known else pad_token_id(tokenizer)]
    return Encoded(input_ids=asked + answer, labels=[NO_TARGET] * len(asked) + answer)


def encode_all(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    form: PromptFormat = PromptFormat(),
    max_tokens: int,
    truncate: Truncate,
) -> tuple[list[Encoded], int]:
    """Encode every pair, in order, and count those that were dropped; none left is an `InputError`.

    A pair that stands against another becomes a `Preference`; it is dropped if one of the two is.
    """

    def one(example: Example) -> Encoded | None:
        if example.response is None:
            raise InputError(f"{example.row}: a prompt without a response; name its column in columns.response")
        return encode(
            tokenizer,
            example.asked,
            example.response,
            form=form,
            max_tokens=max_tokens,
            truncate=truncate,
        )

    rows: list[Encoded] = []
    for example in examples:
        if (row := one(example)) is None:
            continue
        if example.rejected is None:
            rows.append(row)
        elif (rejected := one(example.rejected)) is not None:
            rows.append(Preference(row.input_ids, row.labels, rejected))
    if not rows:
        raise InputError(
            f"max_tokens={max_tokens} with truncate={truncate} leaves none of the {len(examples)} pairs a response: "
            "raise max_tokens or cut otherwise"
        )
    return rows, len(examples) - len(rows)


def collate(rows: Sequence[Encoded], pad_id: int, *, side: Literal["left", "right"] = "right") -> dict[str, Tensor]:
    """Pad the rows of a batch on one side: ``input_ids``, ``attention_mask`` and ``labels``, each ``[B, T]`` int64."""
    longest = max(len(row.input_ids) for row in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        filling = [filler] * (longest - len(values))
        return filling + values if side == "left" else values + filling

    return {
        "input_ids": torch.tensor([padded(row.input_ids, pad_id) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows]),
        "labels": torch.tensor([padded(row.labels, NO_TARGET) for row in rows]),
    }


def pad_token_id(tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> int:
    """Return the pad token; where there is none eos, then unk. Which one makes no difference: padding is masked.

    Args:
        tokenizer: of the model.
        rows: of the model's embedding; a token without a row there is passed over. None: not looked at.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if token is not None and (rows is None or token < rows):
            return int(token)
    raise InputError(
        f"the tokenizer {tokenizer.name_or_path or ''} has no pad, eos or unk token: set pad_token in its "
        "tokenizer_config.json"
    )


def _before(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, form: PromptFormat) -> str:
    """Write the text from which a response is generated."""
    messages = as_messages(prompt, form.system)
    if _templated(tokenizer, form):
        return _conversation(tokenizer, messages, asking=True)
    return "\n".join(message["content"] for message in messages) + form.separator


def _after(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    before: str,
    form: PromptFormat,
) -> tuple[str, str, str]:
    """Write what follows `_before`: the template's text up to the response, the response in it, and the rest."""
    if not _templated(tokenizer, form):
        return "", response, ""

    def written(text: str) -> str:
        messages = [*as_messages(prompt, form.system), {"role": "assistant", "content": text}]
        return _conversation(tokenizer, messages, asking=False)

    # Not searched for by its own text, which the template may write as well.
    frame, whole = written(_SENTINEL), written(response)
    lead, found, end = frame[len(before) :].partition(_SENTINEL)
    said = whole[len(before) + len(lead) : len(whole) - len(end)]
    if not found or before + lead + said + end != whole or said.strip() != response.strip():  # it may strip
        raise InputError(
            "the tokenizer's chat template does not write a response as given after its generation prompt: "
            "set chat_template=none"
        )
    return lead, said, end


def _mark(tokenizer: PreTrainedTokenizerBase, end: str) -> str:
    """Cut the text that a template puts after a response behind its first added token; where there is none, its end."""
    added = [text for token in tokenizer.added_tokens_decoder.values() if (text := str(token)).strip() and text in end]
    first = min(added, key=lambda text: (end.index(text), -len(text)), default="")
    return end[: end.index(first) + len(first)] if first else end.rstrip()


def _place(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, before: str, form: PromptFormat
) -> tuple[int, int] | None:
    """Find where the user's last text begins and ends in ``before``; None where the template writes it otherwise."""
    turns = as_messages(prompt, None)
    text = turns[-1]["content"]
    marked = _before(tokenizer, [*turns[:-1], turns[-1] | {"content": _SENTINEL}], form)
    head, found, _ = marked.partition(_SENTINEL)
    said = text if before.startswith(head + text) else text.strip()
    return (len(head), len(head) + len(said)) if found and before.startswith(head + said) else None


def _templated(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> bool:
    return form.chat_template == "auto" and bool(tokenizer.chat_template)


def _conversation(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, asking: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=asking, tokenize=False))
    except TemplateError as error:
        if len(joined := _joined(messages)) < len(messages):  # templates of Mistral, Llama 2 and Gemma want them so
            text = _conversation(tokenizer, joined, asking=asking)
            _tell_joined(str(error))
            return text
        reason = " ".join(str(error).split())
        advice = "set system to null or " if messages[0]["role"] == "system" else "set "
        raise InputError(f"the tokenizer's chat template fails: {reason}; {advice}chat_template=none") from error


def _joined(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Join turns in a row by one role, a blank line between them."""
    runs = itertools.groupby(messages, lambda turn: turn["role"])
    return [{"role": role, "content": "\n\n".join(turn["content"] for turn in run)} for role, run in runs]


@functools.cache  # told once
def _tell_joined(reason: str) -> None:
    log.warning("the tokenizer's chat template refuses two turns in a row by one role, which are joined: %s", reason)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, form: PromptFormat) -> list[int]:
    """Encode a text that begins a row: a template writes its own BOS, otherwise the tokenizer's is put before."""
    ids = _ids(tokenizer, text)
    bos = tokenizer.bos_token_id
    if _templated(tokenizer, form) or bos is None or ids[:1] == [bos]:
        return ids
    writes_bos = tokenizer("a")["input_ids"][:1] == [bos]
    return [bos, *ids] if writes_bos else ids


def _continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text that goes on from another.

    Tokenizers of the SentencePiece kind put a blank before a text; it goes before a newline here, which is cut off.
    """
    newline = _ids(tokenizer, "\n")
    ids = _ids(tokenizer, "\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else _ids(tokenizer, text)


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    before: str,
    place: tuple[int, int] | None,
    excess: int,
    *,
    left: bool,
) -> list[int]:
    """Cut ``excess`` prompt tokens: of the user's text, at ``place``, if it has as many, else of all."""
    inside: list[int] = []
    if tokenizer.is_fast and place is not None:
        spans = tokenizer(before, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        first = len(ids) - len(spans)  # 1 after a BOS of ours
        inside = [first + i for i, (a, b) in enumerate(spans) if place[0] <= a < b <= place[1]]
    if excess <= len(inside):
        gone = set(inside[:excess] if left else inside[-excess:])
        return [token for i, token in enumerate(ids) if i not in gone]
    return ids[excess:] if left else ids[: len(ids) - excess]
