"""Training of a causal language model whose weights, gradients and optimiser state are spread over the processes.

PyTorch's FSDP2 (``torch.distributed.fsdp.fully_shard``), one group of weights a decoder layer: a process holds its
share of everything, and the whole of one layer while that is computed.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from fairpriv.errors import InputError
from fairpriv.language_models.models.pretrained import quantised
from fairpriv.language_models.models.reft import LoReFT, decoder_layers


def require_shardable(model: nn.Module) -> None:
    """Raise `InputError` for a model that cannot be sharded layer by layer.

    Its decoder layers must be found, and own their weights: a weight of two layers would be gathered by one and freed
    under the other.
    """
    try:
        layers = decoder_layers(model)
    except InputError as error:
        raise InputError(f"trainer.strategy=fsdp shards layer by layer: {error}; set trainer=ddp") from None
    if method := quantised(model):
        raise InputError(
            f"trainer.strategy=fsdp: weights that {method} quantised are not sharded: set trainer=ddp, or "
            "model.quantization=null"
        )
    uses = Counter(id(p) for layer in layers for p in set(layer.parameters()))
    inside = {id(p): name for name, p in layers.named_parameters()}
    within = {id(module) for module in layers.modules()}
    uses.update(
        id(p) for module in model.modules() if id(module) not in within for p in module.parameters(recurse=False)
    )
    for key, name in inside.items():
        if uses[key] > 1:
            raise InputError(
                f"trainer.strategy=fsdp shards layer by layer, and {type(model).__name__} uses weight {name} of its "
                "decoder layers in another place too: set trainer=ddp"
            )


def shard(model: nn.Module, mesh: DeviceMesh, *, half: bool = False) -> None:
    """Shard ``model`` in place over the processes of ``mesh``, decoder layer by decoder layer.

    Args:
        model: whole, the same in every process; plain or with adapters.
        mesh: of one dimension.
        half: compute in bfloat16; masters, gradients that are summed, and LoReFT stay float32.
    """
    halved = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = halved if half else MixedPrecisionPolicy()
    for module in model.modules():
        if isinstance(module, LoReFT):
            fully_shard(module, mesh=mesh)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def gather(model: nn.Module) -> None:
    """Undo `shard` in every process: plain modules, whole parameters, bit for bit what the shards hold.

    All processes call it. PyTorch 2.13 has no call that undoes ``fully_shard``: its hooks, class, state and marks are
    taken off here. transformers reads the marks: ``generate`` would wait for the other processes.
    """
    for module in model.modules():
        for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            module.__dict__.pop(mark, None)
        if isinstance(module, FSDPModule):
            module.reshard()
            state = fully_shard.state(module)  # type: ignore[attr-defined]
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
            module.__class__ = type(module).__mro__[module._orig_cls_mro_index]
            module.__dict__.pop(STATE_KEY, None)
            module.__dict__.pop(REGISTRY_KEY, None)
    whole: dict[int, nn.Parameter] = {}  # a tied weight stays one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values: Tensor = parameter.data
            if isinstance(values, DTensor):
                if id(parameter) not in whole:
                    whole[id(parameter)] = nn.Parameter(values.full_tensor(), parameter.requires_grad)
                module.register_parameter(name, whole[id(parameter)])
