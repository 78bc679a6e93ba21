"""The identity of a cell: a hash of what determines its outcome, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Raised by one whenever a change of the code changes the results of an unchanged config: old cells are then run again.
OUTCOME_VERSION = 2

_NOT_OUTCOME = frozenset({"logger", "paths", "hydra", "sweep", "retry", "threads"})
_LANGUAGE_MODELS_ONLY = frozenset({"dimensions", "judge", "evaluation", "utility", "analysis"})
_CLASSIFIERS_ONLY = frozenset({"game", "training", "attack"})
_NOT_OUTCOME_WITHIN = {
    # Where and how visibly a fit runs. A batch size in the config is the global one, so devices change no outcome.
    "trainer": {
        "accelerator",
        "strategy",
        "devices",
        "num_nodes",
        "logger",
        "log_every_n_steps",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_checkpointing",
        "enable_autolog_hparams",
        "model_registry",
        "profiler",
        "barebones",
        "default_root_dir",
    },
    # Where the model is; path is replaced by what it is.
    "model": {"revision", "package", "inside", "gguf", "cache", "device_map"},
    # How much is worked on at a time, which changes rounding only.
    "evaluation": {"batch_size"},
    # Where task files are; tasks are replaced by what they ask.
    "utility": {"include"},
    "defense": {"micro_batch_size", "memory_budget"},
}


def outcome_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved plain ``config`` without what cannot change the outcome.

    That is logging, folders, devices, display, and the keys that only the other kind of model reads: a cell with
    ``dimensions`` is a language model's.
    """
    unread = _NOT_OUTCOME | (_CLASSIFIERS_ONLY if config.get("dimensions") else _LANGUAGE_MODELS_ONLY)
    kept = {key: value for key, value in config.items() if key not in unread}
    if kept.get("analysis") is None:  # cells without one are the same cells as before there were any
        kept.pop("analysis", None)
    if not (kept.get("utility") or {}).get("tasks"):
        kept.pop("utility", None)
    for group, without in _NOT_OUTCOME_WITHIN.items():
        if isinstance(kept.get(group), Mapping):
            kept[group] = {key: value for key, value in kept[group].items() if key not in without}
    return kept


def cell_id(config: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """16 hexadecimal digits that are equal exactly for cells with the same outcome.

    Args:
        config: the resolved plain config.
        digests: dotted config keys of inputs (``dataset.source``) and the hash of their content or their revision,
            which stands in the identity instead of where the input lies.

    Raises:
        KeyError: a key of ``digests`` is not in the outcome's part of the config.
    """
    outcome = outcome_config(config)
    for key, digest in digests.items():
        outcome = _replaced(outcome, key.split("."), {"content": digest}, key)
    return content_hash({"outcome_version": OUTCOME_VERSION, "config": outcome})


def content_hash(obj: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of plain data (mappings, lists, strings, numbers, booleans, None).

    The order of keys does not matter, and an integer equals the same number written as a float; every other
    difference changes the hash. Anything but plain data is a TypeError.
    """
    text = json.dumps(_canonical(obj), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        # JSON would turn the key 1 into "1": keys are written as JSON themselves to stay apart.
        return {json.dumps(_canonical(key)): _canonical(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_canonical(value) for value in obj]
    return int(obj) if isinstance(obj, float) and obj.is_integer() else obj


def _replaced(node: Any, parts: list[str], value: Any, key: str) -> Any:
    """A copy of ``node`` with ``value`` at ``parts``; ``node`` itself is left as it is."""
    if not parts:
        return value
    if not isinstance(node, Mapping) or parts[0] not in node:
        raise KeyError(f"digest for '{key}': there is no '{parts[0]}' in the outcome's part of the config")
    return {**node, parts[0]: _replaced(node[parts[0]], parts[1:], value, key)}
