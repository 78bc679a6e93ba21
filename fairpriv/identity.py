"""The identity of a cell: a hash of everything that determines its outcome, and of nothing else.

A class is identified by the ``kind`` that it declares, so that code may move; one without a kind, such as a foreign
library's, by its import path. A function of ours is identified by its name. A class also declares which of its fields
do not change the outcome::

    @dataclass
    class Spin:
        kind: ClassVar[str] = "spin"
        memory_budget: int | None = field(default=None, metadata={"outcome": False})

A class that is not a dataclass lists them: ``not_outcome: ClassVar[tuple[str, ...]] = ("cache",)``. A field that came
later, and where it is None leaves what was done before, says ``metadata={"outcome": "unless None"}``.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

from fairpriv.config.schema import class_definition
from fairpriv.config.settings import EvaluationSettings

# Raise it by one when a change of the code changes the results of an unchanged config: old cells are then run again.
OUTCOME_VERSION = 2

# Where a cell runs, what it tells meanwhile, which sweep asks for it; the task, which the dataset implies.
_NOT_OUTCOME = frozenset({"logger", "paths", "hydra", "sweep", "retry", "threads", "task"})
_LANGUAGE_MODELS_ONLY = frozenset({"judge", "evaluation", "utility", "analysis"})
_CLASSIFIERS_ONLY = frozenset({"game", "training", "attack"})
_NOT_OUTCOME_WITHIN = {  # sections that are not objects of ours
    "trainer": {  # lightning.Trainer's: a batch size in the config is the global one, so devices change no outcome
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
    "evaluation": {f.name for f in dataclasses.fields(EvaluationSettings) if f.metadata.get("outcome") is False},
}


def outcome_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Remove from a resolved plain config what cannot change the outcome, and name classes by their kind.

    Removed are logging, folders, devices, display, fields that their class declares so, and the sections that only
    the other kind of model reads; a cell with ``dimensions`` is a language model's.
    """
    unread = _NOT_OUTCOME | (_CLASSIFIERS_ONLY if is_language_model(config) else _LANGUAGE_MODELS_ONLY)
    kept = {key: _counted(value) for key, value in config.items() if key not in unread}
    if not kept.get("dimensions"):
        kept.pop("dimensions", None)
    if kept.get("analysis") is None:  # without one, a cell is the same as before this section existed
        kept.pop("analysis", None)
    if not (kept.get("utility") or {}).get("tasks"):
        kept.pop("utility", None)
    if isinstance(evaluation := kept.get("evaluation"), Mapping) and evaluation.get("engine") is None:  # likewise
        kept["evaluation"] = {key: value for key, value in evaluation.items() if key != "engine"}
    if isinstance(game := kept.get("game"), Mapping) and not game.get("poison"):  # likewise
        kept["game"] = {key: value for key, value in game.items() if key != "poison"}
    if isinstance(dataset := kept.get("dataset"), Mapping) and dataset.get("canaries") is None:
        kept["dataset"] = {key: value for key, value in dataset.items() if key != "canaries"}
    if isinstance(utility := kept.get("utility"), Mapping) and not utility.get("first"):
        kept["utility"] = {key: value for key, value in utility.items() if key != "first"}
    for name, without in _NOT_OUTCOME_WITHIN.items():
        if isinstance(kept.get(name), Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key not in without}
    return kept


def is_language_model(config: Mapping[str, Any]) -> bool:
    """Tell whether a plain config is a language model's; one of before ``task`` tells by its ``dimensions``."""
    return config["task"] == "language_model" if config.get("task") else bool(config.get("dimensions"))


def outcome(config: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """Collect, as plain data, everything that determines a cell's outcome; the cell's id is its `content_hash`.

    Args:
        config: the resolved plain config.
        digests: dotted config keys of inputs (``dataset.source``), with the hash of their content or their revision,
            which replaces the place of the input.

    Raises:
        KeyError: a key of ``digests`` is not in the outcome's part of the config.
    """
    kept = outcome_config(config)
    for key, digest in digests.items():
        kept = _replaced(kept, key.split("."), {"content": digest}, key)
    return {"outcome_version": OUTCOME_VERSION, "config": kept}


def contents(outcome: Any, key: str = "") -> dict[str, str]:
    """Find the content of every input in what `outcome` returned, by its dotted config key."""
    if not isinstance(outcome, Mapping):
        return {}
    if outcome.keys() == {"content"}:
        return {key.removeprefix("config."): str(outcome["content"])}
    parts = [contents(value, f"{key}.{name}".lstrip(".")) for name, value in outcome.items()]
    return {name: content for part in parts for name, content in part.items()}


@cache
def declared(target: str) -> tuple[str, frozenset[str], frozenset[str]]:
    """Read, from its source, what the class at an import path declares about identity; nothing is imported.

    Returns:
        The ``kind`` that the class itself declares, else the path, since a subclass does something else and inherits no
        kind; the fields that change no outcome, and those that change none where they are None, those of its bases
        included.
    """
    definition = class_definition(target)
    if definition is None:  # a function, say: one of ours counts by its name, since it may move
        return target.rpartition(".")[2] if target.startswith("fairpriv.") else target, frozenset(), frozenset()
    (module, node), kind = definition, target
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != node.name]
    above = [declared(f"{module}.{base}") for base in bases]
    without, later = ({name for base in above for name in base[place]} for place in (1, 2))
    for line in node.body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                of_the_class = True
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                of_the_class = "ClassVar" in ast.unparse(annotation)
            case _:
                continue
        with contextlib.suppress(ValueError):  # not a literal
            if of_the_class and name == "kind":
                kind = str(ast.literal_eval(value))
            elif of_the_class and name == "not_outcome":
                without.update(ast.literal_eval(value))
            elif isinstance(value, ast.Call):
                said = [ast.literal_eval(word.value) for word in value.keywords if word.arg == "metadata"]
                without |= {name for metadata in said if metadata.get("outcome") is False}
                later |= {name for metadata in said if metadata.get("outcome") == "unless None"}
    return kind, frozenset(without), frozenset(later)


def kind_of(built: type) -> str:
    """Return what identifies a class in a hash: its own ``kind``, else its import path."""
    return declared(f"{built.__module__}.{built.__qualname__}")[0]


def code_of(*classes: Any) -> list[list[str]]:
    """Name those of some classes or functions, bases included, that are a user's own, each with a hash of its source.

    Its id counts such a class by its name, so that finished cells stay where code changes. What is kept for other cells
    to read has to be kept under the code as well. The source is that of the class's file, and of the files beside it
    that it imports, as they were when this process first asked.

    Returns:
        Names and hashes, in the order of names; none for classes of fairpriv and of libraries whose versions are told
        apart elsewhere.
    """
    every = {one for given in classes for one in getattr(given, "__mro__", (given,))}
    own = [one for one in every if not _of_a_library(one.__module__ or "builtins")]
    return sorted([f"{one.__module__}.{one.__qualname__}", _source_hash(one)] for one in own)


def described(part: Any, known: frozenset[int] = frozenset()) -> Any:
    """Turn an object into plain data that tell what it was built of: its class's kind and its public attributes.

    Args:
        part: a setting of whatever kind: plain data, a dataclass, a ``functools.partial``, a function, any object.
        known: the objects that it is a part of, which are not described again.
    """
    if part is None or isinstance(part, str | int | float):
        return part
    if id(part) in known:
        return "itself"
    tell = functools.partial(described, known=known | {id(part)})
    if isinstance(part, functools.partial):
        return [tell(part.func), *([tell(part.args)] if part.args else []), tell(part.keywords)]
    if isinstance(part, Mapping):
        return {str(key): tell(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [*map(tell, part)]
    if isinstance(part, set | frozenset):
        return sorted(map(tell, part), key=str)
    if hasattr(part, "tolist"):  # an array or a tensor
        return tell(part.tolist())
    if isinstance(part, enum.Enum):
        return str(part)
    if hasattr(part, "__qualname__"):  # a class or a function
        return f"{part.__module__}.{part.__qualname__}"
    if dataclasses.is_dataclass(part):
        return [kind_of(type(part)), {one.name: tell(getattr(part, one.name)) for one in dataclasses.fields(part)}]
    if hasattr(part, "__dict__"):
        public = {name: value for name, value in vars(part).items() if not name.startswith("_")}
        return [kind_of(type(part)), tell(public)]
    return repr(part)


def content_hash(obj: Any) -> str:
    """Hash plain data (mappings, lists, strings, numbers, booleans, None): 16 hexadecimal digits of its SHA-256.

    The order of keys does not matter, and an integer equals the same number written as a float; every other difference
    changes the hash. Other data raise a TypeError.
    """
    text = json.dumps(_canonical(obj), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derived_seed(*parts: Any) -> int:
    """Derive a seed in [0, 2^31) from plain data, such as another seed and a number."""
    return int(content_hash(parts), 16) % 2**31


# Beside Python's own: ours, told by OUTCOME_VERSION, and those whose classes are bases of others, of a version each.
_LIBRARIES = frozenset({"fairpriv", "torch", "transformers", "peft", "lightning", "torchmetrics", "lm_eval"})


def _of_a_library(module: str) -> bool:
    top = module.partition(".")[0]
    return top in _LIBRARIES or (top in sys.stdlib_module_names and top != "__main__")


@cache  # the code that runs is that of the file as it was imported
def _source_hash(built: Any) -> str:
    module = sys.modules.get(built.__module__)
    if module is None or not getattr(module, "__file__", None):  # of a notebook, say
        try:
            return content_hash(inspect.getsource(built))
        except (OSError, TypeError):
            return ""
    return content_hash(dict(_sources(module)))


def _sources(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield places, from where the package lies, and texts of a module and of what it imports from beside it."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    if getattr(top, "__file__", None) is None:  # a package without __init__.py
        top = module
    root = Path(str(top.__file__)).resolve().parent
    left, seen = [module], set[Path]()
    while left:
        one = left.pop()
        path = Path(getattr(one, "__file__", None) or "").resolve()
        inside = path.suffix == ".py" and path.is_relative_to(root)
        if path in seen or not inside or "site-packages" in path.relative_to(root).parts:
            continue
        seen.add(path)
        text = path.read_text(encoding="utf-8", errors="replace")
        yield str(path.relative_to(root)), text
        names: list[str] = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                base = resolve_name(base, getattr(one, "__package__", None) or "") if node.level else base
                names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        left += [sys.modules[name] for name in names if name in sys.modules]


def _counted(node: Any) -> Any:
    """Replace targets by kinds in a part of a config, and drop the fields that do not count."""
    if isinstance(node, list):
        return [_counted(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: _counted(value) for key, value in node.items()}
    kind, without, later = declared(str(node["_target_"]))
    without |= {"_target_"} | {key for key in later if node.get(key) is None}
    return {"_kind_": kind} | {key: _counted(value) for key, value in node.items() if key not in without}


def _canonical(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        # JSON would turn the key 1 into "1": keys are written as JSON themselves to stay apart.
        return {json.dumps(_canonical(key)): _canonical(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_canonical(value) for value in obj]
    return int(obj) if isinstance(obj, float) and obj.is_integer() else obj


def _replaced(node: Any, parts: list[str], value: Any, key: str) -> Any:
    """Copy ``node`` with ``value`` at ``parts``; ``node`` itself does not change."""
    if not parts:
        return value
    if not isinstance(node, Mapping) or parts[0] not in node:
        raise KeyError(f"digest for '{key}': there is no '{parts[0]}' in the outcome's part of the config")
    return {**node, parts[0]: _replaced(node[parts[0]], parts[1:], value, key)}
