"""The precision in which a machine computes fastest: what ``model.dtype=fastest`` means there."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from fairpriv.config.compose import build
from fairpriv.language_models.contract import Tuning, require_base
from fairpriv.trainer import device_of

log = logging.getLogger(__name__)

CLEARLY = 1.5  # times as fast as float32 must bfloat16 be, since it rounds more
_SHAPE = (64, 576, 1536)  # of the timed product: 64 tokens in the widest layer of SmolLM2-135M
_ROUNDS = 5


def settled(config: Mapping[str, Any], device: str | None = None) -> dict[str, Any]:
    """Return a language model's config with ``model.dtype=fastest`` decided, so that it is identified by what it is.

    It is float32 where the defence trains the model's weights or merges an adapter into them, or where a server is to
    be given a trained model: half precision would round most of that away. Else it is what `fastest` says.

    Args:
        config: of a cell, resolved.
        device: its type; None: the one that the config's trainer chooses.

    Raises:
        InputError: the defence cannot be built.
    """
    model = dict(config["model"])
    if model.get("dtype") == "fastest":
        defense: Tuning = build(config, "defense")
        require_base(defense, Tuning, f"defense={config['defense']['name']}")
        exact = defense.full_precision or (defense.trains and config["evaluation"]["engine"] is not None)
        model["dtype"] = "float32" if exact else fastest(device or device_of(config).type)
    return {**config, "model": model}


@functools.cache  # said once, and the same in all cells of a process
def fastest(device: str) -> str:
    """Return ``bfloat16`` where a device computes it clearly faster than float32, else ``float32``.

    A GPU does where it supports it, one that is not here is taken to. A processor is timed, for a tenth of a second
    at most.

    Args:
        device: its type, such as ``cpu`` or ``cuda``.
    """
    if device == "cuda":
        told = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
        found = "bfloat16" if told else "float32"
        log.info("model.dtype=fastest: %s on this GPU", found)
        return found
    if device != "cpu":
        return "float32"
    times = gain()
    found = "bfloat16" if times >= CLEARLY else "float32"
    log.info("model.dtype=fastest: %s, as this processor computes bfloat16 %.1f times as fast", found, times)
    return found


def gain() -> float:
    """Time one matrix product on the processor: how many times as fast it is in bfloat16 as in float32."""
    rows, width, out = _SHAPE
    sides = [
        (torch.ones(rows, width, dtype=dtype), torch.ones(out, width, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    best = [float("inf")] * 2
    with torch.inference_mode():
        for _ in range(_ROUNDS):  # in turns, the best counts: others use the cores, too
            for side, (x, weight) in enumerate(sides):
                start = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                best[side] = min(best[side], time.perf_counter() - start)
    return best[0] / best[1]
