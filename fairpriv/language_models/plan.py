"""What the cells of a grid need in memory and time, told before any weight is loaded.

A model is built from its config alone, without values. Its weights and gradients are counted; what passes need between
them is found by passes of tensors that have shapes and no values (PyTorch's ``FakeTensorMode``).
"""

from __future__ import annotations

import copy
import functools
import json
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairpriv.config.compose import build
from fairpriv.config.settings import EvaluationSettings
from fairpriv.data.checkpoints import Pretrained
from fairpriv.errors import InputError
from fairpriv.functional.cross_entropy import cross_entropies
from fairpriv.functional.importance import matrices_of
from fairpriv.language_models.defenses.spin import Spin
from fairpriv.language_models.defenses.steering import Steering
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.defenses.task_arithmetic import TaskArithmetic
from fairpriv.language_models.engines.perplexity import windows
from fairpriv.language_models.inputs import checkpoint_activations
from fairpriv.language_models.models.precision import settled
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.models.reft import LoReFTConfig, decoder_layers
from fairpriv.language_models.scorers.pair_membership import PairMembership
from fairpriv.language_models.scorers.paired_likelihood import PairedLikelihood
from fairpriv.language_models.scorers.stereoset import StereoSet
from fairpriv.language_models.settings import judges_of

GB = 1e9
NO_MATTER = {
    "ratio",
    "exclude_ratio",
    "rule",
    "score",
    "strength",
    "split",
    "lr",
    "weight_decay",
    "warmup",
    "clip",
    "save",
}
# Taken for what only the data would tell: rows and tokens where a config says all, tokens of one text
ROWS, TEXT, ANSWER, VERDICT, DOCUMENT = 1000, 250_000, 128, 1024, 512
WHOLE = (PairedLikelihood, StereoSet, PairMembership)  # which ask for the logits of nearly all that they read


@dataclass(frozen=True)
class Stage:
    """What one process needs in one stage of a cell: bytes by part."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())


class LivePeak(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is entered and still live: ``now``, and at most ``peak``."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = list(known)  # which are not counted
        self.sizes = {id(tensor.untyped_storage()): 0 for tensor in self.known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out one operation, and count what it has made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self.sizes:
                self.sizes[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, id(storage))
        return made

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class Planner:
    """Finds what one cell needs; its weights are judged by shape and dtype.

    Args:
        config: of the cell, resolved.
        devices: GPUs at hand, which ``trainer.devices=auto`` means.
        gpu: plan for GPUs, where PyTorch's optimisers update all weights at once.

    Raises:
        InputError: a part is wrong, the defence refuses the model, or a config.json cannot be had.
        NotImplementedError: nothing is known of what a part needs.
    """

    def __init__(self, config: Mapping[str, Any], *, devices: int = 1, gpu: bool = True) -> None:
        self.gpu, self.trainer, self.config = gpu, config["trainer"], config
        asked = self.trainer.get("devices", 1)
        asked = len(asked) if isinstance(asked, list) else devices if asked in ("auto", None, -1, "-1") else int(asked)
        self.processes = max(1, asked)
        self.sharded = self.trainer.get("strategy") == "fsdp" and self.processes > 1
        self.model: PretrainedLM = build(config, "model")
        self.defense = build(config, "defense")
        self.judges = judges_of(config["judge"])
        self.evaluation = EvaluationSettings(**config["evaluation"] | {"text": None})
        self.tokens = build(config, "dataset").max_tokens
        if self.model.quantization is not None:
            raise NotImplementedError("what quantised weights need is not known")
        self.architecture = architecture_of(self.model)
        self.windows = windows(self.architecture, self.evaluation.window, self.evaluation.stride)
        self.whole = self.built()
        self.defense.check(self.whole)
        self.weights = size([*self.whole.parameters(), *self.whole.buffers()])
        self.judge_weights = [weights_of(judge) for judge in self.judges.values()]

        self.defenses, one = [], self.defense
        while one is not None:
            if one.changes and not isinstance(one, TaskArithmetic):  # which its tuning stands for
                self.defenses.append(one)
            one = getattr(one, "after", None) or getattr(one, "tuning", None)
        if unknown := [one for one in self.defenses if not isinstance(one, SupervisedTuning | Spin | Steering)]:
            raise NotImplementedError(f"what a {type(unknown[0]).__name__} needs is not known")

    def stages(self) -> list[Stage]:
        """List the stages."""
        judge = sum(self.judge_weights)
        found = [Stage("evaluate", {"weights": self.weights, "judge": judge, "passes": self.evaluating()})]
        for one in self.defenses:
            kept = 0 if self.defense.trains else judge  # training lets go of it
            if isinstance(one, SupervisedTuning):
                found.append(self.training(one))
            else:
                found.append(self.scoring(one, kept) if isinstance(one, Spin) else self.steering(one, kept))
        return found

    def training(self, defense: SupervisedTuning) -> Stage:
        """Tell what a fit needs in each process, with rows of ``dataset.max_tokens``."""
        model = self.adapted(self.built(), defense)
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients, state, weights = size(trained), state_of(defense, trained), size(model.parameters())
        update = gradients if self.gpu else max(map(size, ([one] for one in trained)))  # AdamW's denominator
        precision = str(self.trainer["precision"])

        def passes(lm: nn.Module) -> int:
            for parameter in lm.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
            with peak_of(lm.train()) as live, half:
                train_on(lm, defense.micro_batch_size * _parts(defense), self.tokens)
            return live.peak

        between = self.over_layers(passes, lambda lm: self.adapted(lm, defense))
        if self.sharded:
            layers = list(decoder_layers(self.whole))
            layer = max(size(one.parameters()) for one in layers)
            ends = self.weights - sum(size(one.parameters()) for one in layers)
            shared = (weights, gradients, state, update)
            weights, gradients, state, update = (-(-part // self.processes) for part in shared)
            between += 2 * layer + ends  # a layer is computed while the next one is gathered
        elif self.processes > 1:
            between += gradients  # what DDP sends
        if precision in ("bf16-true", "16-true"):  # the weights in half precision, beside those that come back
            between += sum(2 * p.numel() for p in model.parameters() if not p.requires_grad and p.itemsize > 2)
        parts = {"weights": weights, "gradients": gradients, "optimiser": state, "passes": max(between, update)}
        if isinstance(self.defense, TaskArithmetic) and not self.gpu:
            parts["before"] = self.weights  # those that the change is taken from
        return Stage(f"train {defense.name}", parts)

    def scoring(self, defense: Spin, judge: int) -> Stage:
        """Tell what SPIN's scoring needs."""
        scope = defense._scope(self.whole)
        sizes = [4 * layers[0].weight.numel() for layers in matrices_of(self.whole, scope).values()]
        sums = min(sum(sizes), defense.memory_budget or sum(sizes))

        def prepared(lm: nn.Module) -> nn.Module:
            """Let scored weights have gradients, one at a time: what is kept for them is what scoring keeps."""
            scored = matrices_of(lm, scope)
            for name, parameter in lm.named_parameters():
                parameter.requires_grad_(name in scored)
            return lm

        def passes(lm: nn.Module) -> int:
            for parameter in lm.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
            # transformers checkpoints in training mode only, and SPIN by itself
            with peak_of(lm.train(self.model.gradient_checkpointing)) as live:
                train_on(lm, defense.batch_size, self.tokens)
            return live.peak

        between = max(self.over_layers(passes, prepared), 2 * max(sizes))  # a matrix' scores are sorted
        return Stage(defense.name, {"weights": self.weights, "scores": sums, "judge": judge, "passes": between})

    def steering(self, defense: Steering, judge: int) -> Stage:
        """Tell what finding the vectors of steering needs, which are nothing beside the passes."""

        def passes(lm: Any) -> int:
            with peak_of(lm) as live, torch.no_grad():
                lm(torch.zeros(defense.batch_size, self.tokens, dtype=torch.long), use_cache=False)
            return live.peak

        parts = {"weights": self.weights, "judge": judge, "passes": self.over_layers(passes)}
        return Stage(defense.name, parts)

    def evaluating(self) -> int:
        """Find the bytes of the answers' cache and pass, of whole texts' likelihoods, or of perplexity's: the most."""
        rows, (window, _) = self.evaluation.batch_size, self.windows
        shapes: list[tuple[int, int, dict[str, Any]]] = [(rows, ANSWER, {"use_cache": True, "logits_to_keep": 1})]
        scorers = [one["scorer"]["_target_"] for one in self.config["dimensions"].values() if one.get("scorer")]
        if any(issubclass(get_class(target), WHOLE) for target in scorers):
            shapes.append((rows, ANSWER, {"use_cache": False}))
        if self.config["evaluation"]["text"]:
            shapes.append((max(1, rows * 32 // window), window, {"use_cache": False}))

        def passes(texts: int, tokens: int, asked: dict[str, Any], lm: Any) -> int:
            with peak_of(lm) as live, torch.no_grad():
                lm(torch.zeros(texts, tokens, dtype=torch.long), **asked)
            return live.peak

        return max(self.over_layers(functools.partial(passes, *shape)) for shape in shapes)

    def work(self) -> float:
        """Count the FLOPs of one process: 6 a weight and token that is trained on or scored for SPIN, 2 otherwise.

        As Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) count them, and 4 where the weights are frozen.
        """
        weights = sum(p.numel() for p in self.whole.parameters())
        evaluation, utility = self.evaluation, self.config["utility"] or {}
        measured = [one for one in self.config["dimensions"].values() if one.get("evaluate") or one.get("scorer")]
        prompts = len(measured) * (evaluation.prompts or ROWS)
        read = prompts * ANSWER
        if self.config["evaluation"]["text"]:
            read += (evaluation.text_tokens or TEXT) * self.windows[0] // self.windows[1]
        limit = utility.get("limit")
        for task in utility.get("tasks") or []:
            read += ((limit.get(str(task)) if isinstance(limit, Mapping) else limit) or ROWS) * DOCUMENT
        work = 2.0 * weights * read
        work += 2 * sum(self.judge_weights) / 2 * prompts * VERDICT  # of bfloat16
        for defense in self.defenses:
            if isinstance(defense, Spin | Steering):
                rows, each = len(defense.sets) * (defense.samples or ROWS), 6 if isinstance(defense, Spin) else 2
            else:
                rows = defense.epochs * (self.config["dataset"]["samples"] or ROWS) * _parts(defense)
                each = 6 if defense.adapter is None else 4
            work += each * weights * rows * self.tokens / self.processes
        return work

    def built(self, layers: int | None = None) -> Any:
        """Build the model from its config, without values; with some of its layers only."""
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.architecture)
        if layers is not None:
            text = config.get_text_config()
            text.num_hidden_layers = layers
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:layers]
        given = {"attn_implementation": self.model.attn_implementation} if self.model.attn_implementation else {}
        dtype, trust = dtype_of(self.model.dtype, config), self.model.trust_remote_code
        try:
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust, **given)
        except (ValueError, ImportError) as error:
            raise InputError(f"model.path={self.model.path}: {' '.join(str(error).split())[:300]}") from error
        if self.model.gradient_checkpointing:
            checkpoint_activations(model)
        return model.eval()

    def adapted(self, model: Any, defense: SupervisedTuning) -> Any:
        """Put the adapter on a model without values. LoReFT, which reads values, is stood in for by its weights."""
        if not isinstance(defense.adapter, LoReFTConfig):
            return defense._adapted(model)
        model.requires_grad_(False)
        layers, width = list(decoder_layers(model)), self.architecture.get_text_config().hidden_size
        taken = layers if defense.adapter.layers == "all" else layers[: len(defense.adapter.layers)]
        for layer in taken:  # W, R and b
            layer.reft = nn.Linear(width, 2 * defense.adapter.rank, device="meta")

        def trained(layer: nn.Module, args: Any, output: Any) -> None:
            (output[0] if isinstance(output, tuple) else output).requires_grad_()

        taken[0].register_forward_hook(trained)
        return model

    def over_layers(self, passes: Callable[[Any], int], prepare: Callable[[Any], Any] = lambda lm: lm) -> int:
        """Find the bytes of ``passes`` from models of two and three layers: they grow evenly with the layers."""

        def of(layers: int) -> int:
            model = prepare(self.built(layers))
            with FakeTensorMode(allow_non_fake_inputs=True):
                return passes(faked(model))

        layers = self.architecture.get_text_config().num_hidden_layers
        try:
            if layers <= 3:
                return of(layers)
            few, more = of(2), of(3)
        except InputError:
            raise
        except Exception as error:  # of operations that depend on values, as a mixture of experts has
            raise NotImplementedError(
                f"its passes cannot be followed without weights ({type(error).__name__})"
            ) from error
        return few + (layers - 2) * (more - few)


def train_on(lm: Any, rows: int, tokens: int) -> None:
    """Pass rows of tokens, all of them targets, forward and back."""
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    logits = lm(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    loss = cross_entropies(logits, torch.arange(rows * (tokens - 1)), ids[:, 1:].flatten()).sum()
    del logits
    loss.backward()


def faked(model: nn.Module) -> nn.Module:
    """Replace weights and buffers, in place, by tensors of the mode that is entered: of the CPU, with shapes alone."""
    made: dict[int, torch.Tensor] = {}  # a tied weight stays one
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if weight else empty
                if tensor is not None:
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]
    return model


def peak_of(model: nn.Module) -> LivePeak:
    """Return a counter that leaves out the model's weights, buffers and gradients."""
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    return LivePeak([*model.parameters(), *model.buffers(), *gradients])


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Add up bytes; tensors are counted once each."""
    return sum({id(t): t.numel() * t.itemsize for t in tensors}.values())


def _parts(defense: SupervisedTuning) -> int:
    """Return how many texts a row holds: two where one is preferred to the other."""
    return 1 if defense.contrast is None else 2


def state_of(defense: SupervisedTuning, trained: Sequence[nn.Parameter]) -> int:
    """Find the bytes of the optimiser's state, from a step on one small matrix."""
    one = nn.Parameter(torch.zeros(128, 128))
    one.grad = torch.zeros_like(one)
    optimizer = (defense.optimizer or torch.optim.AdamW)([one], lr=1e-4, weight_decay=0.0)
    optimizer.step()
    state = size(t for t in tree_leaves(optimizer.state[one]) if isinstance(t, torch.Tensor) and t.numel() > 1)
    return int(state / one.numel() * sum(p.numel() for p in trained))


def weights_of(judge: Any) -> int:
    """Count the bytes of a judge's weights; none of one that has no model here."""
    path = getattr(judge, "path", None)
    if not path or getattr(judge, "base_url", None):
        return 0
    import transformers

    where = (path, getattr(judge, "revision", None), getattr(judge, "trust_remote_code", False))
    carried = getattr(judge, "package", None), getattr(judge, "inside", None)
    config = config_at(*where, f"judge={judge.name}: judge.path", *carried)
    kind = "AutoModelForCausalLM" if hasattr(judge, "max_new_tokens") else "AutoModel"
    with torch.device("meta"):
        dtype = dtype_of(getattr(judge, "dtype", "float32"), config)
        return size(getattr(transformers, kind).from_config(config, dtype=dtype).parameters())


def dtype_of(wanted: str, config: Any) -> torch.dtype:
    """Return the dtype that weights are loaded in."""
    found = (config.dtype or "float32") if wanted == "auto" else wanted
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found).removeprefix("torch."))


def architecture_of(model: PretrainedLM) -> Any:
    """Read the config of a model, from its folder, the hub or its package; of a multimodal one, its text decoder's."""
    where = (model.path, model.revision, model.trust_remote_code, "model.path")
    return config_at(*where, model.package, model.gguf).get_text_config()


@dataclass
class _Place(Pretrained):
    inside: str | None = None

    def _inside(self) -> str | None:
        return self.inside


def config_at(*where: Any) -> Any:
    """Read the config.json of a folder, or of a model on the hub, of which nothing else is fetched, or in a package.

    Args:
        where: path, revision, whether remote code is trusted, and the config key that errors name; and what a package
            carries: its name, and the file in it.

    Raises:
        InputError: it cannot be had.
    """
    found = _config_at(*where)
    if isinstance(found, InputError):
        raise found
    return found


@functools.cache  # cells of a grid ask for the same ones; what cannot be had is not waited for again
def _config_at(
    path: str, revision: str | None, trust: bool, key: str, package: str | None = None, inside: str | None = None
) -> Any:
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    try:
        where: str = str(folder)
        commit: str | None = None
        if not folder.is_dir():
            where, commit = _Place("", path, revision, package, inside)._found
        if where.startswith("gguf:"):
            file = Path(where.removeprefix("gguf:"))
            return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        return AutoConfig.from_pretrained(where, revision=commit, trust_remote_code=trust)
    except Exception as error:  # the hub's and the files' faults are of many kinds
        reason = (
            " ".join(str(error).split()).removeprefix(f"model.path={path}: ").partition("; or give a local folder")[0]
        )
        return InputError(
            f"{key}={path}: its config.json cannot be had ({reason[:300]}); give a folder that holds it, which "
            "needs no weights"
        )


def plan(configs: Sequence[Mapping[str, Any]], memory: float | None, devices: int | None, tflops: float | None) -> int:
    """Print what cells need, a row per arm; return the exit status: 1 where a GPU has too little memory for one.

    Args:
        configs: of the cells, resolved.
        memory: GB of each GPU; None: the device at hand.
        devices: how many GPUs there are; None: those at hand.
        tflops: 10^12 operations a second of each; None: 100 of a GPU, 0.2 of a processor.
    """
    from rich.console import Console
    from rich.table import Table

    gpus = torch.cuda.device_count()
    gpu = memory is not None or gpus > 0
    devices, speed = devices or gpus or 1, tflops or (100.0 if gpu else 0.2)
    room = memory * GB if memory is not None else at_hand()
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for config in configs:
        told = {key: value for key, value in config.items() if key not in ("seed", "sweep", "dataset")}
        told["defense"] = {key: value for key, value in config["defense"].items() if key not in NO_MATTER}
        told["dataset"] = [config["dataset"]["max_tokens"], config["dataset"]["samples"]]
        arms.setdefault(json.dumps(told, sort_keys=True, default=str), []).append(config)
    table = Table("cells", "model", "defence", "GB", "", "most in", "which is", "minutes a cell")
    unknown: dict[str, list[str]] = {}  # arms, by the reason for which nothing is known of them
    notes, seconds, status = [], 0.0, 0
    for cells in arms.values():
        config, count = cells[0], len(cells)
        arm = config["model"]["name"], config["defense"]["name"]
        try:
            config = settled(config, "cuda" if gpu else "cpu")
            planner = Planner(config, devices=devices, gpu=gpu)
            top, took = max(planner.stages(), key=lambda stage: stage.total), planner.work() / speed / 1e12
        except (InputError, NotImplementedError) as error:
            table.add_row(str(count), *arm, "?")
            unknown.setdefault(str(error), []).append(", ".join(arm))
            status |= isinstance(error, InputError)
            continue
        seconds += took * count * planner.processes / max(devices, planner.processes)
        most = room if gpu else room / planner.processes
        parts = ", ".join(f"{name} {told / GB:.2g}" for name, told in top.parts.items() if told > top.total / 100)
        fits = "fits" if top.total <= most else "TOO MUCH"
        table.add_row(str(count), *arm, f"{top.total / GB:.3g}", fits, top.name, parts, f"{took / 60:.2g}")
        if top.total > most:
            status |= gpu
            need = f"{top.name} needs {top.total / GB:.3g} GB of {most / GB:.3g}"
            notes.append(f"{', '.join(arm)}: {need}: set {advice(planner, top)}")
    notes = [*(f"{'; '.join(dict.fromkeys(told))}: {reason}" for reason, told in unknown.items()), *notes]
    console = Console(width=140, markup=False, highlight=False)
    console.print(table)
    where = f"{devices} x {room / GB:.3g} GB" if gpu else f"this machine's {room / GB:.3g} GB"
    total = f"about {seconds / 3600:.2g} hours" if seconds > 5400 else f"about {seconds / 60:.2g} minutes"
    total = total if seconds > 60 else "less than a minute"
    if seconds:  # something could be planned
        notes += [
            f"In each process, on {where}; beside it stands about 1 GB that the device's own library takes.",
            f"In all {total}, from tokens x FLOPs at {speed:g} TFLOP/s (--tflops): an order of magnitude, no more.",
        ]
    for line in notes:
        console.print(line, soft_wrap=True)
    return status


def advice(planner: Planner, top: Stage) -> str:
    """Say what to set for less of the parts that are large and can be made smaller."""
    large = {part for part, bytes_ in top.parts.items() if bytes_ > top.total / 5}
    trains, passes = top.name.startswith("train"), "passes" in large
    found = {
        "trainer=fsdp on more devices": "optimiser" in large,
        "defense=lora": "optimiser" in large,
        f"defense.memory_budget={top.parts.get('scores', 0) // 4}": "scores" in large,
        "judge.base_url, for a judge on a server": "judge" in large,
        "a lower evaluation.batch_size": passes and top.name == "evaluate",
        "model.gradient_checkpointing=true": passes
        and top.name != "evaluate"
        and not planner.model.gradient_checkpointing,
        "trainer.precision=bf16-mixed": passes and trains and planner.trainer["precision"] == "32-true",
        "model.dtype=bfloat16": planner.whole.dtype == torch.float32 and "optimiser" not in large,
    }
    return ", or ".join(word for word, helps in found.items() if helps) or "model to a smaller one"


def at_hand() -> int:
    """Return the bytes of the first GPU, else of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
