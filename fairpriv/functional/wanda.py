"""Wanda's score of a weight, its magnitude times the norm of its input: a control for SPIN."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairpriv.functional.importance import matrices_of, require_apart


@torch.inference_mode()
def wanda_scores(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, target: str = "mlp"
) -> dict[str, Tensor]:
    """Score weights by ``|W_ij| * ||x_j||_2``, x_j being input feature j over all attended tokens of all samples.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024. Used per
    dimension, as importance is, it is a control on SPIN, ours and the paper's: it needs no gradient and no loss.

    Args:
        model: a causal language model; its mode is restored at the end.
        batches: ``{"input_ids"[, "attention_mask"]}``, each ``[B, T]``; other entries are ignored.
        target: as in ``importance_scores``.

    Returns:
        float32 scores >= 0, shaped as the weight, by its name in ``model.named_parameters()``.

    Raises:
        ValueError: as ``importance_scores``.
    """
    matrices = matrices_of(model, target)
    squares = {name: torch.zeros(layers[0].in_features, dtype=torch.float64) for name, layers in matrices.items()}
    attended: Tensor | None = None

    def listen(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            if attended is not None:
                if x.dim() == 2 and len(x) == attended.shape[1] and len(attended) == 1:  # flattened, as by OPT
                    x = x[None]
                require_apart(name, x, len(attended))
                x = x[attended]
            squares[name] += x.reshape(-1, x.shape[-1]).square().sum(0).double().cpu()

        return hook

    hooks = [layer.register_forward_pre_hook(listen(name)) for name, layers in matrices.items() for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    takes = inspect.signature(model.forward).parameters
    model.eval()
    try:
        for batch in batches:
            device = next(model.parameters()).device
            ids, mask = batch["input_ids"].to(device), batch.get("attention_mask")
            attended = mask.to(device).bool() if mask is not None else None
            more = {"attention_mask": mask.to(device)} if mask is not None else {}
            if mask is not None and "position_ids" in takes:  # padding on the left counts for no place
                more["position_ids"] = (more["attention_mask"].cumsum(1) - 1).clamp(min=0)
            model(input_ids=ids, use_cache=False, **more)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return {
        name: layers[0].weight.detach().abs().float() * squares[name].sqrt().float().to(layers[0].weight.device)
        for name, layers in matrices.items()
    }
