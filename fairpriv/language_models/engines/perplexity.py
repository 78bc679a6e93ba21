"""Perplexity of a causal language model on a text, by sliding windows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fairpriv.errors import InputError
from fairpriv.language_models.data.tokens import NO_TARGET, Encoded
from fairpriv.language_models.engines.generation import require_room
from fairpriv.language_models.engines.log_likelihood import log_likelihoods
from fairpriv.metrics import Metric

PERPLEXITY = Metric(
    "eval/utility/perplexity", "perplexity", "Perplexity on held-out text.", "", "less", low=1.0, column=30, spared=True
)
SCORED_TOKENS = Metric("evaluation/scored_tokens", "tokens of the perplexity", unit="tokens", low=0.0)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Encode a text of any length: int64 [N], after the BOS token if the tokenizer adds one; never an EOS."""
    added = tokenizer("")["input_ids"]
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id in added[:1] else []
    return torch.tensor(bos + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def windows(config: Any, window: int | None, stride: int | None) -> tuple[int, int]:
    """Return window and stride in tokens for a model of transformers' ``config``; None: the model's length, no overlap.

    Raises:
        InputError: there is no window, and the config names no length, or one below ``stride``.
    """
    window = window or getattr(config.get_text_config(), "max_position_embeddings", None)
    if window is None:
        raise InputError("evaluation.window=null: the model's config names no max_position_embeddings: give a number")
    if stride is not None and stride > window:
        raise InputError(f"evaluation.stride={stride}: must be at most the window, the model's {window} tokens")
    return window, stride or window


def require_window(model: Any, ids: Tensor, window: int) -> None:
    """Raise `InputError` for a text that is too short, and for a window or token that the model has no place for."""
    if len(ids) < 2:
        raise InputError(f"perplexity needs a text of at least 2 tokens, this one has {len(ids)}")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise InputError(
            f"evaluation.window={window} is longer than the model's {longest} positions (max_position_embeddings)"
        )
    require_room(model, [[int(ids.max())]])


def perplexity(
    model: nn.Module, ids: Tensor, *, window: int, stride: int, batch_size: int = 1, progress: str | None = None
) -> tuple[float, int]:
    """Compute perplexity: ``exp`` of the mean negative log-likelihood of tokens given those before in their window.

    The sliding windows of the Hugging Face guide "Perplexity of fixed-length models": they start every ``stride``
    tokens, and each scores the tokens that no window before it has scored. A token has at least ``window - stride``
    tokens of context, or all there are. With ``stride = window`` the guide would leave a token of each window without
    a score; here windows then share one token. So all tokens but the first are scored, each once.

    Args:
        model: causal LM of transformers, or a wrapper of one (PEFT, ReFT). Left in the mode it was in. ReFT takes a
            window's context, or its first token, for the prompt.
        ids: token ids of the text, int64 [N], as from `encode_text`.
        window: tokens that the model sees at once, the last scored one included; at least 2.
        stride: tokens between the starts of windows, 1 to ``window``.
        batch_size: windows in a batch; it does not change the result.
        progress: what a progress bar on stderr is called; None: no bar.

    Returns:
        (perplexity, number of scored tokens N - 1). Log-likelihoods are taken in float32; a mean above 709 gives inf.

    Raises:
        ValueError: ``window``, ``stride`` or ``batch_size`` out of range; N below 2, a window longer than the model's
            ``max_position_embeddings``, a token without a row in its embedding, or logits that are not finite (each
            an InputError).
        RuntimeError: memory is too small; says what to lower.
    """
    if window < 2 or not 1 <= stride <= window or batch_size < 1:
        raise ValueError(
            f"window={window}, stride={stride}, batch_size={batch_size}: window is at least 2, stride 1 to window, "
            "batch_size at least 1"
        )
    lm: Any = model
    require_window(lm, ids, window)
    step = min(stride, window - 1)
    starts = range(0, max(len(ids) - window + step, step), step)
    rows = []
    for start in starts:  # what the window before has seen is context; the text's first token has none
        tokens, seen = ids[start : start + window].tolist(), window - step if start else 1
        rows.append(Encoded(tokens, [NO_TARGET] * seen + tokens[seen:]))
    told = log_likelihoods(model, rows, pad_id=0, batch_tokens=batch_size * window, progress=progress)
    scored = len(ids) - 1
    return torch.tensor(-math.fsum(told) / scored, dtype=torch.float64).exp().item(), scored
