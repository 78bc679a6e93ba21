"""Importance of every weight for a set of samples, as SPIN defines it, at the cost of one backward pass."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from fairpriv.functional.arrays import Values, as_tensor
from fairpriv.functional.cross_entropy import cross_entropies
from fairpriv.functional.decoder import text_decoder

_TARGETS = {
    "mlp": re.compile(r"mlp|ffn|feed_?forward|moe|^ff$|^fc\d*$", re.IGNORECASE),
    "self_attn": re.compile(r"attn|attention", re.IGNORECASE),
    "all": re.compile(""),
}
_BLOCK = re.compile(r"(.*?\.)?\d+(?=\.|$)")  # the path up to the first number: the decoder block

_KEYS = ("input_ids", "labels", "attention_mask")  # of a batch

Matrices = dict[str, list[nn.Linear]]  # a weight's name, and the layers that use it


def importance_scores(
    model: nn.Module,
    batches: Iterable[Mapping[str, Values]],
    *,
    target: str = "mlp",
    memory_budget: int | None = None,
    gradient_checkpointing: bool = False,
) -> dict[str, Tensor]:
    """Score weights of linear layers by ``|W| * mean_i |dL_i/dW|``, L_i being sample i's mean loss over target tokens.

    Source: Qian et al., ACL 2025. The scores do not depend on batching, padding, ``memory_budget`` or checkpointing,
    beyond floating-point noise. The model is scored in eval mode and then restored. Where ``torch.distributed`` is
    initialised every process must call this, with its own samples; all receive the scores over all samples.

    Args:
        model: a causal language model that returns ``.logits``; a DistributedDataParallel wrapper is removed.
        batches: ``{"input_ids", "labels"[, "attention_mask"]}``, each ``[B, T]``; labels -100 where no loss, shifted
            here; tensors, arrays or lists. Every row is a sample of its own. Padding without an attention mask must be
            on the right.
        target: ``mlp``, ``self_attn`` or ``all`` linear layers of the decoder blocks, chosen by the module's path.
        memory_budget: bytes for the accumulators (float32, one number a weight) and one matrix's gradient. Matrices
            are then scored in groups that fit, with one pass over the batches each, and the scores kept in main memory.
        gradient_checkpointing: recompute each decoder block in the backward pass instead of keeping its activations.

    Returns:
        float32 scores >= 0, shaped as the weight, by its name in ``model.named_parameters()``, in that order. A weight
        that is used several times in a forward pass has its gradients summed per sample before the absolute value.

    Raises:
        ValueError: a layer cannot be scored exactly (named by class), there is no layer or sample at all, a row has no
            target token, or the memory budget is too small for one matrix.
        FloatingPointError: a gradient is not finite; names the sample.
        MemoryError: out of memory; says what to change.
    """
    scores = iter_importance_scores(
        model, batches, target=target, memory_budget=memory_budget, gradient_checkpointing=gradient_checkpointing
    )
    return {name: score if memory_budget is None else score.cpu() for name, score in scores}


def iter_importance_scores(
    model: nn.Module,
    batches: Iterable[Mapping[str, Values]],
    *,
    target: str = "mlp",
    memory_budget: int | None = None,
    gradient_checkpointing: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield :func:`importance_scores` matrix by matrix, for a caller that keeps less than a score per weight."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    groups = _groups(matrices_of(model, target), memory_budget)
    if len(groups) > 1:
        batches = list(batches)  # each group needs a pass over them
    for group in groups:
        totals, samples = _reduced(model, batches, group, gradient_checkpointing)
        for name, layers in group.items():
            score = totals.pop(name).mul_(layers[0].weight.detach().abs()).div_(samples)
            if not score.isfinite().all():
                raise FloatingPointError(f"{name}: a gradient overflowed {layers[0].weight.dtype}: score in float32")
            yield name, score


def matrices_of(model: nn.Module, target: str) -> Matrices:
    """Find the linear layers of the decoder blocks by the name of their weight: ``mlp``, ``self_attn`` or ``all``.

    Of a multimodal model those of its text decoder are found.

    Raises:
        ValueError: the target is unknown, no layer fits, or one cannot be scored exactly (named by class).
    """
    if target not in _TARGETS:
        raise ValueError(f"target '{target}' must be one of {', '.join(_TARGETS)}")
    names = {parameter: name for name, parameter in model.named_parameters()}
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for path, module in model.named_modules():
        if type(module).__module__.startswith("peft."):
            where = path or "the model"
            raise ValueError(
                f"{where} is an adapter ({type(module).__name__}): merge it first, with merge_and_unload()"
            )
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    found: Matrices = {}
    for path, module in text_decoder(model).named_modules():
        block = _BLOCK.match(path)
        parts = path[block.end() + 1 :].split(".") if block else []
        if not any(part and _TARGETS[target].search(part) for part in parts) or isinstance(module, nn.Embedding):
            continue
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() > 1]
        if not own and "Linear" in type(module).__name__:
            raise _refusal(path, module)  # quantised layers keep buffers
        for weight in own:
            layers = [user for user in users[weight] if type(user) is nn.Linear]
            if len(layers) < len(users[weight]) or type(weight) is not nn.Parameter:
                raise _refusal(path, module)
            found[names[weight]] = layers
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer in a decoder block that is of target '{target}'")
    return {name: found[name] for name in names.values() if name in found}


def require_apart(name: str, inputs: Tensor, rows: int) -> None:
    """Raise `ValueError` where a layer's input does not tell the rows of a batch apart, as by [rows, ...] it does."""
    if inputs.dim() < 3 or len(inputs) != rows:
        raise ValueError(
            f"{name}: its layer is given {list(inputs.shape)} for {rows} rows, of which it cannot be told what is of "
            "which: give one row a batch, as batch_size=1 does"
        )


def _refusal(path: str, module: nn.Module) -> ValueError:
    kind = type(module).__name__
    if type(module) is nn.Linear:
        kind = f"a Linear whose weight is shared with another kind of layer, or a {type(module.weight).__name__},"
    return ValueError(
        f"{path}: {kind} cannot be scored exactly; only plain nn.Linear layers can, "
        "no Conv1D, mixture of experts, sharded or quantised layer"
    )


def _groups(matrices: Matrices, budget: int | None) -> list[Matrices]:
    if budget is None:
        return [matrices]

    def need(group: Matrices) -> int:
        weights = [layers[0].weight for layers in group.values()]
        return 4 * sum(w.numel() for w in weights) + max(w.numel() * w.element_size() for w in weights)

    groups: list[Matrices] = []
    for name, layers in matrices.items():
        one = {name: layers}
        if need(one) > budget:
            raise ValueError(f"memory_budget {budget} is too small: {name} alone needs {need(one)} bytes")
        if groups and need(groups[-1] | one) <= budget:
            groups[-1] |= one
        else:
            groups.append(one)
    return groups


def _reduced(
    model: nn.Module, batches: Iterable[Mapping[str, Values]], matrices: Matrices, checkpointing: bool
) -> tuple[dict[str, Tensor], int]:
    """Sum |gradient| over samples per matrix, and count the samples, over all processes."""
    several = distributed.is_available() and distributed.is_initialized()
    totals: dict[str, Tensor] = {}
    samples, failure = 0, None
    try:
        totals, samples = _summed(model, batches, matrices, checkpointing)
    except Exception as error:
        if not several:
            raise
        failure = error
    if several:
        device = next(iter(matrices.values()))[0].weight.device
        status = torch.tensor([samples, failure is not None], dtype=torch.int64, device=device)
        distributed.all_reduce(status)  # also tells the other processes of a failure, since they would wait for ever
        samples = int(status[0])
        if failure is not None:
            raise failure
        if status[1]:
            raise distributed.DistError("another process could not score its samples; its own error says why")
        for total in totals.values():
            distributed.all_reduce(total)
    if not samples:
        raise ValueError("no samples to score")
    return totals, samples


def _summed(
    model: nn.Module, batches: Iterable[Mapping[str, Values]], matrices: Matrices, checkpointing: bool
) -> tuple[dict[str, Tensor], int]:
    try:
        with _prepared(model, checkpointing):
            gradients = _Gradients(model, matrices)
            return gradients.totals, gradients.add(batches)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            advice = "give memory_budget=BYTES, smaller batches or gradient_checkpointing=True"
            raise MemoryError(f"out of memory while scoring: {advice}") from error
        raise


class _Gradients:
    """Sums over samples of |dL_i/dW|, in ``totals``."""

    def __init__(self, model: nn.Module, matrices: Matrices) -> None:
        self.model, self.matrices = model, matrices
        weights = {name: layers[0].weight for name, layers in matrices.items()}
        self.totals = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
        embedding: Any = getattr(model, "get_input_embeddings", lambda: model)()
        self.device = next(embedding.parameters()).device
        self.takes = inspect.signature(model.forward).parameters
        self.anchor = torch.zeros((), requires_grad=True)
        self.spans: list[slice] = []  # where each row of the batch has tokens
        self.finite = torch.ones(0, dtype=torch.bool)
        self.calls: Counter[str] = Counter()  # in this batch's forward pass
        self.waiting: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.called: set[str] = set()
        self.in_forward = False

    def add(self, batches: Iterable[Mapping[str, Values]]) -> int:
        """Add all samples of the batches; return their number."""
        samples = 0
        with ExitStack() as hooks:
            for name, layers in self.matrices.items():
                for layer in layers:
                    hooks.callback(layer.register_forward_hook(partial(self.record, name)).remove)
            for batch in batches:
                tensors = {name: as_tensor(batch[name], name) for name in _KEYS if batch.get(name) is not None}
                self.add_batch(tensors, samples)
                samples += len(tensors["input_ids"])
        if samples and (unused := [name for name in self.matrices if name not in self.called]):
            raise ValueError(f"{unused[0]}: its layer is never called in a forward pass, so it cannot be scored")
        return samples

    def add_batch(self, batch: Mapping[str, Tensor], before: int) -> None:
        ids, labels = (batch[name].to(self.device).long() for name in ("input_ids", "labels"))
        mask = batch.get("attention_mask")
        if ids.dim() != 2 or labels.shape != ids.shape or (mask is not None and mask.shape != ids.shape):
            raise ValueError(f"input_ids {list(ids.shape)}, labels and attention_mask must all be [B, T]")
        wanted = labels[:, 1:] != -100
        if mask is not None:
            # the first token after padding is not a target, just as a first token without padding is not
            wanted &= mask[:, :-1].to(self.device) != 0
        counts = wanted.sum(1)
        if not counts.all():
            row = int((counts == 0).nonzero()[0])
            raise ValueError(f"sample {before + row} (row {row} of its batch) has no target token to take a loss of")
        positions = wanted.any(0).nonzero().squeeze(1)
        extra: dict[str, Any] = {"use_cache": False, "logits_to_keep": positions}  # a prompt's logits are not needed
        self.spans = [slice(None)] * len(ids)
        if mask is not None:
            seen = [row.nonzero() for row in mask.cpu()]
            self.spans = [slice(int(row[0]), int(row[-1]) + 1) for row in seen]
            if (mask[:, 1:] > mask[:, :-1]).any():  # padding on the right alone is behind every token that counts
                places = torch.arange(ids.shape[1]) - torch.tensor([span.start for span in self.spans])[:, None]
                extra |= {"attention_mask": mask.to(self.device), "position_ids": places.clamp(min=0).to(self.device)}
        extra = {key: value for key, value in extra.items() if key in self.takes or key == "attention_mask"}
        self.calls.clear()
        self.finite = torch.ones(len(ids), dtype=torch.bool, device=self.device)
        self.in_forward = True
        logits = self.model(input_ids=ids, **extra).logits
        self.in_forward = False
        if "logits_to_keep" not in extra:
            logits = logits[:, positions]
        wanted = wanted[:, positions]
        rows = wanted.flatten().nonzero()[:, 0]
        losses = cross_entropies(logits.flatten(0, 1), rows, labels[:, positions + 1].flatten()[rows])
        loss = (losses / counts[rows // len(positions)]).sum()
        del logits, losses
        if loss.requires_grad:  # else no scored layer was called
            loss.backward()
        for name in list(self.waiting):  # one of its calls did not contribute to the loss
            self.settle(name)
        if not self.finite.all():
            row = int((~self.finite).nonzero()[0])
            raise FloatingPointError(f"sample {before + row} (row {row} of its batch): its gradient is not finite")

    def record(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.in_forward:  # and not when checkpointing repeats it
            self.calls[name] += 1
            self.called.add(name)
        return _Tap.apply(output, inputs[0], self.anchor, partial(self.receive, name))

    def receive(self, name: str, inputs: Tensor, delta: Tensor) -> None:
        rows = len(self.spans)
        if rows == 1 and inputs.dim() == 2:  # flattened, as by OPT: all of it is of this row
            inputs, delta = inputs[None, None], delta[None, None]
        require_apart(name, inputs, rows)
        # a sum is not finite if any part of it is not; a bad input gives a bad loss, and so a bad delta
        self.finite &= delta.flatten(1).sum(1, dtype=torch.float32).isfinite().to(self.device)
        self.waiting.setdefault(name, []).append((inputs, delta))
        if len(self.waiting[name]) == self.calls[name]:
            self.settle(name)

    def settle(self, name: str) -> None:
        total, waiting = self.totals[name], self.waiting.pop(name)
        gradient = torch.empty_like(total, dtype=self.matrices[name][0].weight.dtype)
        for row, span in enumerate(self.spans):
            for i, (x, d) in enumerate(waiting):
                x, d = (part[row, span] if part.dim() == 3 else part[row].flatten(0, -2) for part in (x, d))
                x, d = x.to(gradient.dtype), d.to(gradient.dtype)  # they differ under autocast
                torch.mm(d.T, x, out=gradient) if i == 0 else gradient.addmm_(d.T, x)
            total.add_(gradient.abs_())


class _Tap(torch.autograd.Function):
    """The identity; in the backward pass it gives ``receive`` a layer's input and the gradient of its output."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, receive: Callable[..., None]) -> Tensor:
        """Return the output; ``anchor`` requires a gradient, so that the backward pass reaches this function."""
        ctx.save_for_backward(inputs)  # checkpointing handles tensors that are saved this way
        ctx.receive = receive
        return output.detach()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
        """Pass the gradient on unchanged."""
        ctx.receive(*ctx.saved_tensors, delta)
        return delta, None, None, None


@contextmanager
def _prepared(model: nn.Module, checkpointing: bool) -> Iterator[None]:
    """Put the model in eval mode, with gradients of activations but not of parameters; restore it at the end."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    decoder = text_decoder(model)
    paths = {match.group() for path, _ in decoder.named_modules() if (match := _BLOCK.match(path))}
    blocks = [decoder.get_submodule(path) for path in sorted(paths)] if checkpointing else []
    forwards = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        model.eval().requires_grad_(False)
        for block in blocks:  # transformers' own switch works in training mode only
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for block, forward in forwards:
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
