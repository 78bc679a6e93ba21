"""The schema of configs: dataclasses for the root, and the target's own signature for every ``_target_`` node.

A target is any importable class: of fairpriv, of an installed package, or of a file in the ``--config-dir`` folder. Its
constructor is its schema. Signatures are read from the source text, so that checking a config imports nothing.

There is no list of allowed packages. Whoever may write ``_target_`` into a config may also write a Python file beside
it, so a list would protect nothing. A config is a program, run by those who trust its author. The kind of a part is
checked: an attack has ``run``, a judge ``judge``. Nothing is ever built from results, edits or files of models.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import pkgutil
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from fairpriv.config.settings import EvaluationSettings, GameSettings, TrainingSettings
from fairpriv.errors import InputError, unquoted

MISSING: Any = "???"  # omegaconf's, which takes a while to import
FIT_SETS = {  # of lightning.Trainer
    "max_epochs",
    "logger",
    "enable_checkpointing",
    "enable_model_summary",
    "num_sanity_val_steps",
    "limit_val_batches",
    "log_every_n_steps",
}

STEPS = {  # of lightning.Trainer: what leaves a step of a language model's tuning as it is, and what sets that instead
    "accumulate_grad_batches": ((None, 1), "a step has defense.batch_size pairs, in parts of defense.micro_batch_size"),
    "gradient_clip_val": ((None, 0), "gradients are clipped by defense.clip"),
}


@dataclass
class PathsConfig:
    """Folders that a run reads and writes. Nothing is written outside ``root``."""

    root: str = MISSING  # cells, sweeps, cache, wandb
    data: str = MISSING  # local data folders are looked for here first


@dataclass
class Config:
    """Root of every composed config; nodes without a dataclass are checked against their target's signature."""

    task: str = MISSING
    seed: int = 0
    sweep: str | None = None  # the sweep this cell was asked for by; set by the command line
    retry: str = "failed"  # which cells that have a result are run again: none, failed or all
    threads: int | None = None  # of torch on the CPU; None: torch decides
    model: Any = MISSING
    dataset: Any = MISSING
    defense: Any = MISSING
    dimensions: dict[str, Any] = field(default_factory=dict)  # what dimension=[...] chooses
    trainer: Any = MISSING
    logger: Any = None
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class ClassifierConfig(Config):
    """Root of a classifier's config."""

    game: GameSettings = field(default_factory=GameSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    attack: dict[str, Any] = field(default_factory=dict)


@dataclass
class LanguageModelConfig(Config):
    """Root of a language model's config."""

    judge: Any = None
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    utility: Any = None  # further tasks of general capability
    analysis: Any = None  # what a language model's edit is looked at with, beside what costs nothing


@dataclass(frozen=True)
class Task:
    """Description of a kind of experiment.

    Attributes:
        experiment: the import path of what builds a cell of a config, a dataset and a defence.
        config: the root of its configs.
        parts: the methods of which each part has one, by group.
        dataset: one that implies the task.
    """

    experiment: str
    config: type[Config]
    parts: Mapping[str, tuple[str, ...]]
    dataset: str

    @property
    def sections(self) -> set[str]:
        """Keys of the root that other tasks may lack."""
        return {f.name for f in dataclasses.fields(self.config)} - {f.name for f in dataclasses.fields(Config)}

    @property
    def foreign(self) -> set[str]:
        """Keys of the root that only other tasks have."""
        return {key for other in TASKS.values() for key in other.sections} - self.sections


TASKS = {
    "classifier": Task(
        "fairpriv.classifiers.experiment.cell_of",
        ClassifierConfig,
        {
            "model": ("forward", "network"),
            "dataset": ("load", "models"),
            "defense": ("defend",),
            "dimension": ("measure",),
        },
        "adult",
    ),
    "language_model": Task(
        "fairpriv.language_models.experiment.TugOfWar",
        LanguageModelConfig,
        {"model": ("load",), "dataset": ("draw",), "defense": ("tune",), "dimension": ("measured_on",)},
        "pairs",
    ),
}
PARTS = {  # the same for parts that no task shares with another, by group or key
    "attack": ("run",),
    "judge": ("judge",),
    "engine": ("serving",),
    "scorer": ("score",),
    "source": ("locate",),
}


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the closest of ``known`` as `` (did you mean 'x'?)``; return an empty string where none is close.

    Dotted keys are compared by their last part; one elsewhere in the config must be closer than one beside ``word``.
    """
    parent, _, leaf = word.rpartition(".")
    alike = []
    for key in known:
        beside, _, other = key.rpartition(".")
        ratio = difflib.SequenceMatcher(None, leaf, other).ratio()
        if ratio >= (0.6 if beside == parent else 0.75):
            alike.append((beside == parent, ratio, key))
    return f" (did you mean {max(alike)[2]!r}?)" if alike else ""


def check(config: Mapping[str, Any], *, missing_allowed: bool = False) -> None:
    """Check a resolved plain config: ranges of the root, and every target's name, its keys and their types.

    Raises:
        InputError: something is wrong; names the full key and the nearest right one. Also raised for a value that is
            still ``???``, unless ``missing_allowed``.
    """
    if config.get("task") not in TASKS:
        raise InputError(f"task={config.get('task')}: must be one of {', '.join(TASKS)}")
    task = TASKS[config["task"]]
    if misplaced := task.foreign & set(config):
        raise InputError(of_other_task(min(misplaced)))
    _check_fields(config, task.config, "")
    if lacking := [f.name for f in dataclasses.fields(Config) if f.name not in config]:  # as after ~seed
        raise InputError(f"{lacking[0]} is not in the config, and every cell needs it: set it")
    retries = ("none", "failed", "all")
    if config["retry"] not in retries:
        raise InputError(f"retry={config['retry']}: must be one of {', '.join(retries)}")
    if config["threads"] is not None and config["threads"] < 1:
        raise InputError(f"threads={config['threads']}: must be at least 1, or null for torch's own choice")
    if config["sweep"] is not None:
        check_sweep(config["sweep"])
    if not config["paths"]["root"]:
        raise InputError("paths.root is empty: name a folder, for example outputs")
    for key, seed in {"seed": config["seed"], "evaluation.seed": config.get("evaluation", {}).get("seed", 0)}.items():
        if not 0 <= seed < 2**63:  # what torch's generators take
            raise InputError(f"{key}={seed}: must be a whole number from 0 to {2**63 - 1}")
    for section in dataclasses.fields(task.config):
        settings = section.default_factory
        if dataclasses.is_dataclass(settings) and section.name in config:
            settings(**config[section.name])  # which refuses what is out of range
    for group in ("model", "dataset", "defense", "trainer"):
        if not (isinstance(config[group], Mapping) and config[group].get("_target_")):
            raise InputError(f"{group}._target_ has no value: it names the class that the {group} is built of")
    for several in ("attack", "dimensions"):
        for name, node in (config.get(several) or {}).items():
            if not isinstance(node, Mapping):
                value = "null" if node is None else node
                raise InputError(f"{several}.{name}={value}: it is made of keys; ~{several}.{name} leaves it out")
    _check_node(config, "", missing_allowed)
    for group in ("model", "dataset", "defense"):
        if not config[group].get("name"):
            raise InputError(f"{group}.name has no value: it is what tables and reports call the {group}")
    if taken := FIT_SETS & set(config["trainer"]):
        raise InputError(
            f"trainer.{min(taken)} is set by every fit; epochs are training.epochs and those of the defence"
        )
    for key, (nothing, instead) in STEPS.items() if config["task"] == "language_model" else ():
        if (value := config["trainer"].get(key)) not in nothing:
            raise InputError(f"trainer.{key}={value}: leave it out, since here {instead}")
    devices = config["trainer"].get("devices")
    named = devices in (None, "auto", -1, "-1") or (isinstance(devices, list) and devices)
    if not (named or (str(devices).isdecimal() and int(devices) > 0)):
        raise InputError(
            f"trainer.devices={devices}: a number from 1, a list of devices such as [0,1], -1 for all, or auto"
        )
    nodes = config["trainer"].get("num_nodes", 1)
    if not isinstance(nodes, int) or nodes < 1:
        raise InputError(f"trainer.num_nodes={nodes}: a number from 1")
    if not missing_allowed:  # otherwise options are checked one by one, and need not fit together
        check_task(config)
        _check_property(config)
        _check_weights(config)


def check_sweep(name: str) -> None:
    """Raise `InputError` for a sweep's name that is none of a folder: it would lie elsewhere, and not be found."""
    if name == "null" or not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"sweep={name}: must be the name of a folder, of letters, digits, '_', '-' and '.'")


def of_other_task(section: str) -> str:
    """Name the task that has a section of the config which the task at hand lacks."""
    owner = next(name for name, task in TASKS.items() if section in task.sections)
    others = [name for name, task in TASKS.items() if section not in task.sections]
    return (
        f"{section.replace('dimensions', 'dimension')} is of task={owner}, not of task={' or '.join(others)}: choose a "
        f"dataset that implies it, such as dataset={TASKS[owner].dataset}"
    )


def tasks_of(group: str, target: str) -> list[str]:
    """List the tasks that a model, a dataset or a defence is for, judged by the methods of its class."""
    able = {name: _can(target, task.parts[group]) for name, task in TASKS.items()}
    return [name for name, can in able.items() if can] or [name for name, can in able.items() if can is None]


def _can(target: str, methods: Iterable[str]) -> bool | None:
    """Return whether the class that a target builds has one of the methods; None where its parents cannot be read."""
    owner = target.rpartition(".")[0]
    built = target if parameters(owner) is None else owner  # by a class method
    found = [parameters(f"{built}.{method}") for method in methods]
    return True if any(each not in (None, ({}, True)) for each in found) else None if any(found) else False


def check_task(config: Mapping[str, Any]) -> None:
    """Refuse parts of another task, and a language model without dimensions."""
    task, dimensions = config["task"], config.get("dimensions") or {}
    named = [(group, config[group]["name"], config[group]) for group in ("defense", "dataset", "model")]
    named += [("dimension", name, node) for name, node in dimensions.items() if "_target_" in node]
    for group, name, node in named:
        fitting = tasks_of(group, str(node["_target_"]))
        if task not in fitting:
            here = f"dataset={config['dataset']['name']} of" if group != "dataset" else "the config asks for"
            such = f", such as dataset={TASKS[task].dataset}" if group == "dataset" else ""
            other = "".join(f", or dataset={TASKS[each].dataset}" for each in fitting if group != "dataset")
            raise InputError(
                f"{group}={name} is for task={' or '.join(fitting)}, and {here} task={task}: choose a {group} of that "
                f"task{such} (fairpriv ls {group}){other}"
            )
    if task == "language_model" and not dimensions:
        raise InputError(
            f"dimension=[]: dataset={config['dataset']['name']} needs some, such as dimension=[fairness,privacy]"
        )


def _check_property(config: Mapping[str, Any]) -> None:
    """Refuse a property group that is not among the groups that the config itself lists."""
    wanted, dataset = config.get("game", {}).get("property"), config["dataset"]
    sensitive = dataset.get("sensitive")
    listed = (dataset.get("groups") or {}).get(sensitive) if isinstance(sensitive, str) else None
    if wanted is not None and isinstance(listed, list) and wanted not in map(str, listed):
        raise InputError(
            f"game.property={wanted}: dataset.groups.{sensitive} lists {', '.join(map(str, listed))}"
            f"{nearest(wanted, map(str, listed))}"
        )


def _check_weights(config: Mapping[str, Any]) -> None:
    """Refuse full fine-tuning of weights that are quantised or in half precision, and an edit of quantised ones."""
    quantised, dtype, defense = config["model"].get("quantization"), config["model"].get("dtype"), config["defense"]
    for node in filter(None, (defense, defense.get("after"))):
        edits, trains = "after" in node, "adapter" in node and node["adapter"] is None
        if quantised and (edits or trains):
            what = "edits single weights" if edits else "trains all weights"
            raise InputError(
                f"model.quantization with defense={node['name']}, which {what}: quantised weights are frozen; train an "
                "adapter, such as defense=lora, or set model.quantization=null"
            )
        if trains and dtype in ("bfloat16", "float16"):
            raise InputError(
                f"model.dtype={dtype} with defense={node['name']}, which trains all weights: half precision rounds "
                "most of its steps away; set model.dtype=float32 (trainer.precision=bf16-mixed computes in half "
                "precision)"
            )


def _check_fields(node: Mapping[str, Any], schema: Any, where: str) -> None:
    known = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in node.items():
        if key not in known:
            raise InputError(f"unknown key {where}{key}{nearest(f'{where}{key}', [where + name for name in known])}")
        inner = known[key].default_factory
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            _check_fields(value, inner, f"{where}{key}.")


def _check_node(node: Any, where: str, missing_allowed: bool) -> None:
    if node == MISSING and not missing_allowed:
        raise InputError(f"{where} has no value: set it with {where}=VALUE")
    if isinstance(node, list):
        for i, item in enumerate(node):
            _check_node(item, f"{where}[{i}]", missing_allowed)
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_target(node, where)
    for key, value in node.items():
        _check_node(value, f"{where}.{key}" if where else str(key), missing_allowed)


def _check_target(node: Mapping[str, Any], where: str) -> None:
    target = str(node["_target_"])
    found = parameters(target)
    if found is None:
        raise InputError(f"{where}._target_={target}: {_unreadable(target)}")
    keys = where.split(".")
    # those of which there are several are kept by name
    several = keys[0] == "attack" or (keys[0] == "judge" and len(keys) == 2)
    part = "attack" if keys[-2:-1] == ["attacks"] else keys[0] if several else keys[-1]
    methods = PARTS.get(part) or [method for task in TASKS.values() for method in task.parts.get(part, ())]
    if methods and _can(target, methods) is False:
        raise InputError(f"{where}._target_={target}: is no {part}, which is a class with {' or '.join(methods)}")
    if not isinstance(partial := node.get("_partial_", False), bool):
        raise InputError(f"{where}._partial_={partial!r}: must be true or false")
    hints, open_ended = found
    for key, value in node.items():
        if key in ("_target_", "_args_", "_partial_", "_convert_", "_recursive_"):
            continue
        if key not in hints:
            if open_ended:
                continue
            raise InputError(f"unknown key {where}.{key}{nearest(f'{where}.{key}', [f'{where}.{n}' for n in hints])}")
        if value != MISSING and not _fits(value, hints[key]):
            one = f": write {where}.{key}=[{value}]" if isinstance(value, str | int | float) else ""
            how = one if _fits([value], hints[key]) else ""
            how += unquoted(value if isinstance(value, list) else [value])
            raise InputError(f"{where}.{key}={value!r}: must be {_describe(hints[key])}{how}")


def _unreadable(target: str) -> str:
    """Explain why a target's parameters cannot be read, and what would be right."""
    top = target.partition(".")[0]
    spec = _spec(top)
    if spec is None:
        if top == "bitsandbytes":  # whose optimisers defense=full names
            return f"{top} is not installed: pip install 'fairpriv[{top}]'"
        modules = [module.name for module in pkgutil.iter_modules()]
        return f"there is no module {top}, neither installed nor in the --config-dir folder{nearest(top, modules)}"
    if _source(top) is None and spec.submodule_search_locations is None:
        return f"{top} has no Python source to read parameters from: wrap it in a class of your own"
    return f"there is no class or function of that name{alike(target)}"


@cache
def parameters(target: str) -> tuple[dict[str, Any], bool] | None:
    """Read the parameters of a class, function or class method from source.

    The result is ``({name: type}, takes further keywords)``; None where the name does not exist, or has no Python
    source. Types that are not plain (a class of torch, say) are ``Any``.
    """
    module = target
    names: list[str] = []
    while module and _source(module) is None:
        module, _, name = module.rpartition(".")
        names.insert(0, name)
    if not module or len(names) not in (1, 2):
        return None
    name, method = (*names, "__init__")[:2]
    return _signature(module, name, method)


def class_definition(target: str) -> tuple[str, ast.ClassDef] | None:
    """Find the module that defines the class at an import path, and its source; None where there is no such class."""
    module, _, name = target.rpartition(".")
    node = _definitions(module)[0].get(name) if module else None
    if isinstance(node, ast.ImportFrom):  # a re-export: follow it
        origin = next(a.name for a in node.names if (a.asname or a.name) == name)
        return class_definition(f"{_origin(module, node)}.{origin}")
    return (module, node) if isinstance(node, ast.ClassDef) else None


def forget_sources() -> None:
    """Forget what was read of modules, after a change of the path on which they lie."""
    importlib.invalidate_caches()
    parameters.cache_clear()
    _definitions.cache_clear()


def alike(target: str) -> str:
    """Suggest as `nearest` does among the classes and functions beside a target, or in all of a package of ours."""
    module = target
    while module and _source(module) is None:
        module = module.rpartition(".")[0]
    path = _source(module)
    modules = [module]
    if path is not None and path.name == "__init__.py" and module.startswith("fairpriv"):
        files = [file.relative_to(path.parent).with_suffix("") for file in sorted(path.parent.rglob("*.py"))]
        modules = [".".join([module, *file.parts]) for file in files]
    kinds = (ast.ClassDef, ast.FunctionDef)
    found = [f"{m}.{name}" for m in modules for name, node in _definitions(m)[0].items() if isinstance(node, kinds)]
    return nearest(target, found)


def _spec(top: str) -> ModuleSpec | None:
    """Find a top-level module without importing it."""
    try:
        return importlib.util.find_spec(top) if top else None
    except ValueError:  # such as __main__, which may have none
        return None


def _source(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = _spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is None:  # a single file, or built in
        file = Path(spec.origin or "")
        return file if not rest and file.suffix == ".py" and file.is_file() else None
    for path in (Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations):
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


@cache
def _definitions(module: str) -> tuple[dict[str, ast.stmt], list[str]]:
    """List what a module's top level defines, assigns or imports, by name, and modules it imports ``*`` from."""
    path = _source(module)
    if path is None:
        return {}, []
    file = path.stat()
    return _parsed(module, path, file.st_mtime_ns, file.st_size)


@cache
def _parsed(module: str, path: Path, changed: int, size: int) -> tuple[dict[str, ast.stmt], list[str]]:
    """Parse a file as it was at a time, once: parsing takes longer than all the rest of checking a config."""
    found: dict[str, ast.stmt] = {}
    stars: list[str] = []
    try:
        nodes = ast.parse(path.read_bytes()).body
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for function in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(function, ast.FunctionDef):
                    function.body = []  # nobody reads it, and the garbage collector would visit all of its nodes
            found.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*":
                    stars.append(_origin(module, node))
                else:
                    found.setdefault(alias.asname or alias.name, node)
        elif isinstance(node, ast.Assign):
            found |= {name.id: node for name in node.targets if isinstance(name, ast.Name) and name.id not in found}
        elif isinstance(node, ast.If | ast.Try):
            nodes[:0] = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found, stars


def _may_hold(module: str, name: str) -> bool:
    """Return whether a module is worth parsing: packages such as transformers import ``*`` from thousands of files."""
    path = _source(module)
    text = path.read_text(encoding="utf-8", errors="replace") if path else ""
    return name in text or "import *" in text


def _origin(module: str, node: ast.ImportFrom) -> str:
    path = _source(module)
    package = module.split(".") if path and path.name == "__init__.py" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *filter(None, [node.module])])


def _signature(
    module: str, name: str, method: str = "__init__", seen: tuple[str, ...] = ()
) -> tuple[dict[str, Any], bool] | None:
    if module in seen:
        return None
    definitions, stars = _definitions(module)
    node = definitions.get(name)
    if node is None:
        named = (star for star in stars if _may_hold(star, name))
        found = (_signature(star, name, method, (*seen, module)) for star in named)
        return next((signature for signature in found if signature is not None), None)
    if isinstance(node, ast.ImportFrom):  # a re-export: follow it
        origin = next(a.name for a in node.names if (a.asname or a.name) == name)
        return _signature(_origin(module, node), origin, method, (*seen, module))
    if not isinstance(node, ast.ClassDef):
        if method != "__init__":
            return None
        return _arguments(node.args, module, skip=0) if isinstance(node, ast.FunctionDef) else ({}, True)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == method:
            return _arguments(item.args, module, skip=1)
    inherited: dict[str, Any] = {}
    open_ended = found_above = False
    for parent in node.bases:
        place, above = module, parent.id if isinstance(parent, ast.Name) else ""
        if isinstance(parent, ast.Attribute) and isinstance(parent.value, ast.Name):  # such as nn.Sequential
            imported = definitions.get(parent.value.id)
            if isinstance(imported, ast.ImportFrom):
                place, above = f"{_origin(module, imported)}.{parent.value.id}", parent.attr
        if above and _signature(place, above) is not None:
            if (up := _signature(place, above, method)) is not None:
                found_above = True
                inherited |= up[0]
                open_ended |= up[1]
        elif ast.unparse(parent).partition("[")[0] not in _WITHOUT_PARAMETERS:
            open_ended = True  # a function that cannot be read may take anything
    if method != "__init__":
        return (inherited, open_ended) if found_above or open_ended else None
    fields = {
        item.target.id: _hint(item.annotation, module)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if not ast.unparse(item.annotation).startswith("ClassVar")
    }
    return inherited | (fields if node.decorator_list else {}), open_ended


_WITHOUT_PARAMETERS = ("object", "ABC", "abc.ABC", "Protocol", "typing.Protocol", "Generic", "typing.Generic")


def _arguments(args: ast.arguments, module: str, skip: int) -> tuple[dict[str, Any], bool]:
    plain = [*args.posonlyargs, *args.args][skip:] + args.kwonlyargs
    return {a.arg: _hint(a.annotation, module) for a in plain}, args.kwarg is not None


_PLAIN = {t.__name__: t for t in (int, float, str, bool, list, dict)} | {
    "Any": Any,
    "None": None,
    "Literal": typing.Literal,
    "Optional": typing.Optional,
    "Union": typing.Union,
    "Sequence": list,
    "Mapping": dict,
}


def _hint(annotation: ast.expr | None, module: str = "") -> Any:
    """Read a type from an annotation; anything but plain types, their unions and named choices becomes ``Any``."""
    if annotation is None:
        return Any
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            annotation = ast.parse(annotation.value, mode="eval").body
        except SyntaxError:  # a remark, not a type
            return Any
    unknown = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)} - _PLAIN.keys()
    choices = {name: found for name in unknown if (found := _choice(module, name)) is not None}
    if choices.keys() != unknown:
        return Any
    if any(isinstance(n, ast.Call | ast.Attribute) for n in ast.walk(annotation)):
        return Any
    try:
        return eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, _PLAIN | choices)
    except Exception:  # such as int | "Foo"
        return Any


def _choice(module: str, name: str) -> Any:
    """Read what a name stands for where it is a choice, as in ``Side = Literal["left", "right"]``; else return None."""
    node = _definitions(module)[0].get(name) if module else None
    if isinstance(node, ast.ImportFrom) and (origin := _origin(module, node)).startswith("fairpriv."):
        return _choice(origin, next(a.name for a in node.names if (a.asname or a.name) == name))
    found = _hint(node.value) if isinstance(node, ast.Assign) else None
    return found if typing.get_origin(found) is typing.Literal else None


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any or isinstance(hint, str | typing.ForwardRef):  # such as the Foo of list["Foo"]
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if hint is None or hint is type(None):
        return value is None
    if (origin or hint) is list:
        return isinstance(value, list) and all(_fits(v, args[0]) for v in value if args)
    if (origin or hint) is dict:
        return isinstance(value, Mapping) and all(_fits(v, args[1]) for v in value.values() if args)
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # an object to be built
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in typing.get_args(hint))
    if hint is None or hint is type(None):
        return "null"
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint).replace("typing.", "")
