"""General capability: tasks of EleutherAI's lm-evaluation-harness on a language model that is in memory."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fairpriv.config.schema import nearest
from fairpriv.data.sources import gated
from fairpriv.errors import InputError, short_of_memory
from fairpriv.identity import code_of, content_hash
from fairpriv.metrics import SHARE, Better, Measured, Metric
from fairpriv.patches import hidden_bars

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_SEED = 1234  # of the examples before a document, as lm-eval has it
_SHARES = r"acc(_\w+)?|exact_match|em|f1"  # metrics that most tasks have in [0, 1]
_SHARE = Metric("", unit=SHARE, low=0.0, high=1.0)
_LIBRARIES = ("lm_eval", "datasets", "huggingface_hub")


@dataclass(frozen=True)
class TaskScore:
    """What one task came to, or a group of tasks that lm-eval averages.

    Attributes:
        measured: lm-eval's metrics, in the task's order; ``<metric>/<filter>`` where a task filters responses. lm-eval
            says which way is better. Intervals, 95 %, are the value and 1.96 of lm-eval's standard errors on either
            side, within [0, 1] for shares; none where lm-eval has no standard error, or one of 0.
        documents: one record a document, as lm-eval logs them.
    """

    measured: Measured
    documents: list[dict[str, Any]]


@dataclass(frozen=True)
class _Loaded:
    """Tasks with their data, and which of them have results of their own, by what was asked for."""

    tasks: dict[str, Any]
    groups: dict[str, Any]
    reported: dict[str, list[str]]
    digests: dict[str, str]


@dataclass
class Harness:
    """Tasks of lm-eval, found by name; nothing is imported for an empty list.

    Their data comes from the Hugging Face hub, or from where a task file of the user's says. No code that comes with a
    data set is run, none from the hub's library of metrics, and none that a model writes.

    Attributes:
        tasks: names of lm-eval's tasks, groups and tags, or tasks written out as lm-eval's task files are.
        limit: documents of each task, at most, drawn at random and the same in every cell; None: all. Or a mapping
            from what is asked for to such limits; those of a group hold for each task in it.
        fewshot: examples before each document; None: as many as a task says, else none. A task that insists on none
            has none.
        batch_size: texts of 128 tokens worked on at a time; of tasks that write answers, requests.
        chat: ask by the tokenizer's chat template.
        include: folder of the user's own task files.
        first: whether ``limit`` takes the first documents, and no random ones.
    """

    kind: ClassVar[str] = "harness"

    tasks: list[Any] = field(default_factory=list)
    limit: Any = None
    fewshot: int | None = None
    batch_size: int = field(default=64, metadata={"outcome": False})
    chat: bool = False
    include: str | None = field(default=None, metadata={"outcome": False})  # tasks count by what they ask
    first: bool = False

    def __post_init__(self) -> None:
        for task in self.tasks:
            if not isinstance(task, str) and not (isinstance(task, Mapping) and {"task", "group"} & task.keys()):
                raise InputError(f"lm-eval task {task!r}: it is a name, or a mapping with the key task")
        limits = self.limit if isinstance(self.limit, Mapping) else {"": self.limit}
        named = [_name(task) for task in self.tasks]
        if unknown := [name for name in limits if name and name not in named]:
            raise InputError(f"lm-eval: limit.{unknown[0]}: there is no such task{nearest(unknown[0], named)}")
        values = {f"limit.{name}".rstrip("."): value for name, value in limits.items()}
        for key, value in (values | {"fewshot": self.fewshot, "batch_size": self.batch_size}).items():
            least = 0 if key == "fewshot" else 1
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"lm-eval: {key}={value}: must be at least {least}, or null")

    def apart(self) -> list[Harness]:
        """Return one for each of the tasks, groups and tags that are asked for."""
        limits = self.limit if isinstance(self.limit, Mapping) else {_name(task): self.limit for task in self.tasks}
        return [replace(self, tasks=[task], limit=limits.get(_name(task))) for task in self.tasks]

    def metrics(self) -> dict[str, list[str]]:
        """Name the metrics of every reported task; loads the tasks, and their data.

        Raises:
            InputError: a task that there is not, whose data cannot be had, or that runs code.
        """
        loaded = self._loaded()
        found = {}
        for name in (name for names in loaded.reported.values() for name in names):
            group = loaded.groups.get(name)
            found[name] = (
                [one.metric for one in group.aggregate_metric_list] if group else [*loaded.tasks[name].aggregation()]
            )
        return found

    def require_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `InputError` where tasks are to be asked by a chat template, and there is none."""
        if self.tasks and self.chat and not tokenizer.chat_template:
            raise InputError("lm-eval: chat=true, and the tokenizer has no chat template")

    def digest(self) -> str:
        """Hash what every task asks: its definition and its documents, but not where they lie."""
        return content_hash(self._loaded().digests)

    def measure(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, **asked: Any) -> Measured:
        """Measure general capability: ``eval/utility/<task>``, with further metrics below it.

        The name alone is a task's first metric, where higher is better; arguments and errors as of `scores`.
        """
        measured = Measured()
        for task, score in self.scores(model, tokenizer, **asked).items():
            first = next(iter(score.measured.metrics), None)
            measured |= score.measured.renamed(functools.partial(_of_task, task, first))
        return measured

    def scores(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        system: str | None = None,
        end: tuple[int | None, str] = (None, ""),
        progress: bool = False,
    ) -> dict[str, TaskScore]:
        """Score every reported task.

        Args:
            model: causal LM of transformers, or a wrapper of one (PEFT, ReFT). Left in the mode it was in.
            tokenizer: its tokenizer; a copy of it is used.
            batch_size: texts of 128 tokens in a batch; of tasks that write answers, requests.
            system: system message, with ``chat``.
            end: what ends an answer beside EOS and what a task names, as from ``response_end``: a token, or a text.
            progress: whether a person watches, and wants lm-eval's bars.

        Raises:
            InputError: as `metrics`; or a chat template is wanted, and there is none; or logits that are not finite.
            RuntimeError: the GPU's memory is too small; says what to lower.
        """
        self.require_template(tokenizer)
        if isinstance(self.limit, Mapping):
            asked: dict[str, Any] = {"batch_size": batch_size, "system": system, "end": end, "progress": progress}
            each = [one.scores(model, tokenizer, **asked) for one in self.apart()]
            return {name: score for scores in each for name, score in scores.items()}
        loaded = self._loaded()
        from lm_eval.evaluator import evaluate  # type: ignore[import-untyped]

        from fairpriv.language_models.engines.generation import evaluating

        drawn = {}
        for name, task in loaded.tasks.items():
            task.set_fewshot_seed(seed=_SEED)
            there = len(task.eval_docs)
            if self.limit is not None and self.limit < there:  # the first ones may all be of one kind
                chosen = range(self.limit) if self.first else random.Random(0).sample(range(there), self.limit)
                drawn[name] = sorted(chosen)
        try:
            with evaluating(model), _finite(model), _quiet(progress):
                told = evaluate(
                    lm=_subject(model, tokenizer, batch_size, end, progress),
                    task_dict={"tasks": loaded.tasks, "groups": loaded.groups, "group_map": {}},
                    samples=drawn,
                    bootstrap_iters=1000,
                    system_instruction=system if self.chat else None,
                    apply_chat_template=self.chat,
                    fewshot_as_multiturn=self.chat,
                )
        except (MemoryError, RuntimeError) as error:
            if not short_of_memory(error):
                raise
            raise RuntimeError(
                f"out of memory in lm-eval's {', '.join(loaded.reported)} with batches of {batch_size}: lower "
                "utility.batch_size (evaluation.batch_size for a dimension)"
            ) from error
        return {
            name: _score(
                told["results"][name],
                order,
                told["higher_is_better"].get(name) or {},
                told["samples"].get(name) or [],
            )
            for name, order in self.metrics().items()
        }

    def _loaded(self) -> _Loaded:
        return _load(json.dumps(self.tasks), self.include, self.fewshot)


def _name(task: Any) -> str:
    """Name what is asked for: a task, group or tag, or one that is written out."""
    return task if isinstance(task, str) else str(task.get("task") or task.get("group"))


@functools.cache
def _load(tasks: str, include: str | None, fewshot: int | None) -> _Loaded:
    """Load tasks with their data, once a process: a sweep asks in every cell."""
    # Read where these libraries are first imported: no count of downloads, no metrics that are code of the hub, and
    # no processes for a bootstrap.
    os.environ |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_EVALUATE_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    try:
        import lm_eval.tasks  # type: ignore[import-untyped] # noqa: F401
    except ImportError as error:
        raise InputError(f"lm-eval is not installed: pip install 'fairpriv[lm-eval]' ({error})") from None
    import datasets  # type: ignore[import-untyped]
    import huggingface_hub.constants
    from lightning.pytorch.utilities.seed import isolate_rng

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    asked: list[Any] = json.loads(tasks)
    loaded = _Loaded({}, {}, {}, {})
    with _quiet():
        index = _index(asked, include)
        for task in asked:
            name = _name(task)
            if isinstance(task, str) and task not in index.task_index:
                where = f" and none of {include}'s" if include else ""
                raise InputError(f"lm-eval task {task}: none of lm-eval's{where}{nearest(task, index.all_tasks)}")
            with isolate_rng():
                _seed()
                found = _with_data(index, task, name)
                for one in found["tasks"].values():
                    if (own := one.config.num_fewshot) is None or (fewshot is not None and own != 0):
                        one.set_config(key="num_fewshot", value=fewshot or 0)
                loaded.digests.update({leaf: _digest(one) for leaf, one in found["tasks"].items()})
            if name in loaded.reported or found["tasks"].keys() & loaded.tasks.keys():
                raise InputError(f"lm-eval task {name}: it is asked for twice, alone or in a group")
            groups = found.get("groups", {})
            loaded.tasks.update(found["tasks"])
            loaded.groups.update(groups)
            averaged = name in groups and groups[name].has_aggregation
            loaded.reported[name] = [name] if averaged else [*found["tasks"]]
            if averaged:  # another result than that of its tasks
                how = {
                    key: [map(vars, one.aggregate_metric_list or []), one.child_names] for key, one in groups.items()
                }
                if code := code_of(*_functions([one.aggregate_metric_list for one in groups.values()])):
                    how["code"] = [source for _, source in code]
                loaded.digests[f"group {name}"] = content_hash(json.dumps(how, sort_keys=True, default=_plain))
    return loaded


@functools.cache
def _manager(include: str | None, defaults: bool) -> Any:
    """Make lm-eval's index of tasks; of all 14,000 that come with it, it takes some ten seconds."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml  # type: ignore[import-untyped]

    if include is not None:
        if not Path(include).expanduser().is_dir():
            raise InputError(f"lm-eval: include={include}: there is no such folder")
        for path in sorted(Path(include).expanduser().rglob("*.yaml")):  # lm-eval passes over what it cannot read
            try:
                load_yaml(path, resolve_func=False)
            except Exception as error:
                raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    return TaskManager(include_path=include and str(Path(include).expanduser()), include_defaults=defaults)


def _index(asked: Sequence[Any], include: str | None) -> Any:
    """Make an index that holds all that is asked for, without lm-eval's own tasks if those are not needed."""
    own = _manager(include, False)
    alone = all(task in own.all_subtasks if isinstance(task, str) else "task" in task for task in asked)
    return own if alone else _manager(include, True)


def _with_data(index: Any, task: Any, name: str) -> dict[str, Any]:
    """Load one task or group; `InputError` where that fails, or where it runs code that nobody has read."""
    from datasets.exceptions import DatasetNotFoundError  # type: ignore[import-untyped]
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found: dict[str, Any] = index.load([task])
    except Exception as error:  # whatever a task's own functions raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if of := re.search(r"Dataset '([^']+)' is a gated", reason):
            raise InputError(f"lm-eval task {name}: {gated(f'datasets/{of[1]}')}") from None
        if isinstance(error, ConnectionError | DatasetNotFoundError | HfHubHTTPError):
            raise InputError(
                f"lm-eval task {name}: its data is on the Hugging Face hub, and neither there to be had nor in the "
                f"local cache ({reason})"
            ) from error
        raise InputError(f"lm-eval task {name}: it cannot be loaded ({reason})") from error
    for leaf, one in found["tasks"].items():
        lost = [metric for metric, function in getattr(one, "_metric_fn_list", {}).items() if function is None]
        if lost and one.config.process_results is None:
            raise InputError(
                f"lm-eval task {leaf}: its metric {lost[0]} is not lm-eval's own, and code from the hub is not run"
            )
        if getattr(one, "UNSAFE_CODE", False):
            raise InputError(f"lm-eval task {leaf}: it runs code that the model writes, which is not done here")
        if getattr(one, "MULTIMODAL", False):
            raise InputError(f"lm-eval task {leaf}: it has images or sounds, which language models do not read")
    return found


def _digest(task: Any) -> str:
    """Hash a task's definition and its documents."""
    without = ("metadata", "dataset_path", "dataset_name", "dataset_kwargs")  # where the documents lie
    asked = {key: value for key, value in task.dump_config().items() if key not in without}
    examples = task.fewshot_docs() if asked.get("num_fewshot") else []
    told = [asked, [*task.eval_docs], [*examples]]
    if code := code_of(type(task), *_functions(task.config)):  # whose helpers no definition holds
        told.append([source for _, source in code])
    text = json.dumps(told, sort_keys=True, default=_plain)
    return content_hash(re.sub(r" at 0x\w+", "", text))  # of functions


def _functions(part: Any) -> Iterator[Any]:
    """Find the functions in the definition of a task or group."""
    if is_dataclass(part):
        part = vars(part)
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, list | tuple):
        for one in part:
            yield from _functions(one)
    elif callable(part):
        yield part


def _seed() -> None:
    """Seed as lm-eval's own command line does: some tasks shuffle answers while they are loaded."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)


def _subject(
    model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int, end: tuple[int | None, str], progress: bool
) -> Any:
    """Wrap the model as lm-eval takes one; its answers end where ours do."""
    import copy

    import torch
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, pad_token_id
    from fairpriv.language_models.engines.log_likelihood import likelihoods

    class Subject(HFLM):
        """Ends answers at the model's own end tokens and at ``end`` too; lm-eval knows the tokenizer's EOS alone.

        Reads what several requests have in common once.
        """

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **more: Any) -> torch.Tensor:
            named = self.model.generation_config.eos_token_id
            ends = {*(named if isinstance(named, list) else [named]), self.tokenizer.eos_token_id, end[0]} - {None}
            more |= {"eos_token_id": sorted(ends)} if ends else {}
            rows: torch.Tensor = super()._model_generate(context, max_length, [*stop, *filter(None, end[1:])], **more)
            said = rows[:, context.shape[1] :]
            over = torch.isin(said, torch.tensor(sorted(ends), device=said.device)).cumsum(1) > 0
            # The mark may be no special token, whose text would stay in the answer.
            said[over] = self.tokenizer.pad_token_id
            return rows

        def generate_until(self, *args: Any, **more: Any) -> list[str]:
            found: list[str] = super().generate_until(*args, **more)
            return [text.partition(end[1])[0] for text in found] if end[1] else found

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **more: Any) -> list[tuple[float, bool]]:
            rows = []
            for texts, context, continuation in requests:
                if not continuation:
                    raise InputError(
                        f"lm-eval: the answer {texts[1]!r} has no tokens of its own, since the tokenizer joins it to "
                        "the question's last one: divide the two by a blank, such as the task's target_delimiter"
                    )
                ids = [*context, *continuation][-(self.max_length + 1) :]  # as lm-eval cuts one that is too long
                targets = ids[-len(continuation) :]
                rows.append(Encoded(ids, [NO_TARGET] * (len(ids) - len(targets)) + targets))
            bar = "likelihoods" if progress else None
            return likelihoods(model, rows, pad_id=own.pad_token_id, batch_tokens=128 * batch_size, progress=bar)

    own = copy.deepcopy(tokenizer)
    # lm-eval would make up a token that the embedding has no row for.
    own.pad_token_id = pad_token_id(tokenizer, len(model.get_input_embeddings().weight))
    return Subject(pretrained=model, tokenizer=own, batch_size=batch_size, softmax_dtype=torch.float32)


@contextlib.contextmanager
def _finite(model: nn.Module) -> Iterator[None]:
    """Stop at logits that are not finite, which lm-eval would go on with."""
    from transformers import GenerationMixin

    from fairpriv.language_models.engines.generation import not_finite

    def look(module: Any, args: Any, output: Any) -> None:
        if not all(ends.isfinite().all() for ends in output.logits.aminmax(dim=-1)):
            raise not_finite("logits")

    hf: Any = next(module for module in model.modules() if isinstance(module, GenerationMixin))
    handle = hf.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _score(
    table: Mapping[str, Any], order: list[str], higher: Mapping[str, bool | None], documents: list[dict[str, Any]]
) -> TaskScore:
    """Read a task's line of lm-eval's results, whose keys are ``metric,filter`` and ``metric_stderr,filter``."""
    measured = Measured()
    told = [key.partition(",") for key, value in table.items() if "," in key and isinstance(value, int | float)]
    keys = [(metric, filtered) for metric, _, filtered in told if not metric.endswith("_stderr")]
    for metric, filtered in sorted(keys, key=lambda key: order.index(key[0]) if key[0] in order else len(order)):
        value = float(table[f"{metric},{filtered}"])
        found = _SHARE if re.fullmatch(_SHARES, metric) and 0 <= value <= 1 else Metric("")  # SQuAD's f1 is in percent
        better: Better = "less" if higher.get(metric) is False else "greater" if higher.get(metric) else "neither"
        name = metric if filtered == "none" else f"{metric}/{filtered}"
        error = table.get(f"{metric}_stderr,{filtered}")
        interval = None
        if isinstance(error, int | float) and error > 0:
            lo, hi = value - 1.96 * float(error), value + 1.96 * float(error)
            interval = (max(0.0, lo), min(1.0, hi)) if found is _SHARE else (lo, hi)
        measured |= replace(found, name=name, better=better).of(value, interval)
    return TaskScore(measured, documents)


def _of_task(task: str, first: str | None, metric: Metric) -> Metric:
    """Describe a task's metric as a result has it; the first one has the task's name, unless less of it is better."""
    alone = metric.name == first and metric.better != "less"
    return replace(
        metric,
        name=f"eval/utility/{task}" if alone else f"eval/utility/{task}/{metric.name}",
        label=(task if alone else f"{task}/{metric.name}").replace("_", " "),
        meaning=f"lm-eval's {metric.name} of the task {task}.",
        column=31 if alone else 32,
        spared=True,
    )


@contextlib.contextmanager
def _quiet(progress: bool = False) -> Iterator[None]:
    """Leave out what these libraries say of themselves, and their bars unless they are wanted."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.nullcontext() if progress else hidden_bars():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _plain(value: Any) -> Any:
    """Turn an iterator into its items, a function into its name, anything else into text."""
    if isinstance(value, Iterator):
        return list(value)
    return getattr(value, "__qualname__", None) or str(value)
