"""Supervised fine-tuning of a language model: all weights, LoRA, DoRA, or LoReFT."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fairpriv.errors import InputError
from fairpriv.identity import code_of, described, kind_of
from fairpriv.language_models.contract import ModelOwner, Tuned, Tuning
from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, collate
from fairpriv.language_models.models.causal_lm import CausalLM, require_masters
from fairpriv.language_models.models.pretrained import quantised
from fairpriv.metrics import Metric
from fairpriv.store import checksum

log = logging.getLogger(__name__)


_COUNT = Metric("train/{what}", "training {what}", low=0.0)
_LOSS = Metric("train/{which}_loss", "{which} loss", "Training loss of the {which} step.", "nats", low=0.0)
TRAINED_PARAMETERS = Metric("defense/trained_parameters", "trained parameters", unit="parameters", low=0.0)


@dataclass
class SupervisedTuning(Tuning):
    """Trains the model on the owner's pairs, with the loss on response tokens only.

    ``adapter`` says what is trained: nothing (null) for all weights, a PEFT config (LoRA, DoRA, whatever PEFT has), or
    a ``LoReFTConfig``. Weights that are trained are float32. PEFT adapters are merged into the weights after training
    where the merge is exact: those can be merged, the weights are float32, and no adapted one has a second use (as the
    output layer that is also the embedding). Otherwise the model is measured with its adapter beside it.
    """

    kind: ClassVar[str] = "supervised_tuning"

    name: str
    adapter: Any = None
    epochs: int = 1
    batch_size: int = 16  # pairs of an optimiser step, all processes together
    # pairs of one forward pass: lower it when memory runs out; dropout then draws other masks
    micro_batch_size: int = field(default=4, metadata={"outcome": False})
    optimizer: Any = None  # makes it of parameters, lr and weight_decay; null: AdamW
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.1  # share of the steps in which the learning rate rises; it falls linearly thereafter
    clip: float = 1.0  # largest norm of a step's gradient; 0: any
    # true: the adapter (all weights, where there is none) is kept in the cell's folder
    save: bool = field(default=False, metadata={"outcome": False})

    def __post_init__(self) -> None:
        least = {
            "epochs": 1,
            "batch_size": 1,
            "micro_batch_size": 1,
            "lr": 0,
            "weight_decay": 0,
            "warmup": 0,
            "clip": 0,
        }
        for key, bound in least.items():
            value = getattr(self, key)
            if not bound <= value < math.inf or (key == "lr" and value == 0) or (key == "warmup" and value > 1):
                raise InputError(f"defense.{key}={value}: out of range")
        if getattr(self.adapter, "is_prompt_learning", False):
            raise InputError(
                f"defense.adapter: {type(self.adapter).__name__} learns virtual tokens, which are not trained here: "
                "choose one that adapts weights, such as peft.LoraConfig, or defense=reft"
            )

    @property
    def trains(self) -> bool:
        """Whether it trains on the owner's pairs."""
        return True

    @property
    def full_precision(self) -> bool:
        """Whether all weights are trained."""
        return self.adapter is None

    def check(self, model: nn.Module, *, merged: bool = False) -> None:
        """Refuse a model that the adapter does not fit, and weights that it cannot be trained in or merged into."""
        from fairpriv.language_models.models.reft import LoReFTConfig, places

        if isinstance(self.adapter, LoReFTConfig):
            places(model, self.adapter)
        method = quantised(model)
        if method and (self.adapter is None or merged):  # the files themselves may be quantised
            wanted = "trains all weights" if self.adapter is None else "merges its adapter into the weights"
            raise InputError(
                f"defense={self.name} {wanted}, and {method} has quantised them: train an adapter alone, such as "
                "defense=lora, or give weights that are not quantised"
            )
        if self.adapter is None:
            require_masters(model, f"defense={self.name}")
        elif merged and not hasattr(self.adapter, "peft_type"):
            raise InputError(f"defense={self.name}: the adapter is to be merged, and it changes no weights")
        elif merged and _half(model):
            raise InputError(
                f"defense={self.name}: the adapter is to be merged, and in half precision much of it would be rounded "
                "away: set model.dtype=float32"
            )
        if not (self.adapter is None or isinstance(self.adapter, LoReFTConfig) or method):
            own = copy.deepcopy(self.adapter)  # PEFT writes the names of what it adapts into it
            with torch.random.fork_rng(devices=[]), contextlib.suppress(RuntimeError):  # PiSSA, say, reads weights
                adapted = replace(self, adapter=own)._adapted(_outline(model))
                if merged and _shared(adapted):
                    raise InputError(
                        f"defense={self.name}: the adapter cannot be merged, as an adapted weight has a second use: "
                        "adapt other modules by its adapter.target_modules"
                    )

    def tune(self, owner: ModelOwner) -> Tuned:
        """Train, merge what can be merged, and report what was trained on.

        What was trained is kept in the cache: another cell with the same fit, or this one if it is killed later, reads
        it.
        """
        rows, dropped = owner.pairs()
        key = {
            "model": [owner.origin, owner.fitting],
            "tuning": self.recipe(),
            "rows": [[ids for part in row.parts for ids in (part.input_ids, part.labels)] for row in rows],
            "seed": owner.seed,
            "pad_id": owner.pad_id,
        }
        rows = self._prepared(owner, rows)
        torch.manual_seed(owner.seed)
        model: Any = self._adapted(owner.model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        module = self._module(model, owner.pad_id)

        def made() -> CausalLM:
            owner.fit(module, rows, epochs=self.epochs, batch_size=self.batch_size, seed=owner.seed)
            return module

        def kept(tensors: dict[str, Tensor], losses: list[float]) -> CausalLM:
            module.load_state_dict(tensors, strict=False)
            module.losses = losses
            module.model.eval()  # as a fit leaves it; an adapter's layers are made in training mode
            return module

        owner.store.cached(
            "tuned", key, made, save=lambda module: (module.state_dict(), module.losses), load=kept, together=True
        )
        # The recipe too: what an adapter scales its weights by, say, is no weight.
        content = [self.recipe(), checksum({name: tensor.cpu() for name, tensor in module.state_dict().items()})]
        targets = sum(label != NO_TARGET for row in rows for part in row.parts for label in part.labels)
        measured = (
            _COUNT.named(what="pairs").of(len(rows))
            | _COUNT.named(what="dropped").of(dropped)
            | _COUNT.named(what="target_tokens").of(targets)
            | _COUNT.named(what="steps").of(len(module.losses))
            | _LOSS.named(which="first").of(module.losses[0])
            | _LOSS.named(which="last").of(module.losses[-1])
            | TRAINED_PARAMETERS.of(trained)
        )
        if self.save:
            owner.keep(model)
        return Tuned(self._merged(module, rows).eval(), measured, content)

    def _prepared(self, owner: ModelOwner, rows: list[Encoded]) -> list[Encoded]:
        """Add to the rows what training needs to know of the untouched model."""
        return rows

    def _module(self, model: nn.Module, pad_id: int, make: Callable[..., CausalLM] = CausalLM) -> CausalLM:
        """Make what trains ``model``."""
        return make(
            model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            clip=self.clip,
            micro_batch_size=self.micro_batch_size,
            pad_id=pad_id,
            optimizer=self.optimizer,
            stage=self.name,
        )

    def recipe(self) -> Any:
        """Return plain data that determine the fit of given pairs."""
        counted = [one.name for one in fields(self) if one.metadata.get("outcome") is not False and one.name != "name"]
        code = code_of(type(self), type(self.adapter), getattr(self.optimizer, "func", object))
        told = [kind_of(type(self)), {name: described(getattr(self, name)) for name in counted}]
        return [*told, code] if code else told

    def _merged(self, module: CausalLM, rows: list[Encoded]) -> nn.Module:
        """Return the trained model without its adapter where the merge is exact, else as it is."""
        model: Any = module.model
        if not (hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")):
            whole: nn.Module = model
            return whole
        if _half(model) or quantised(model) or _shared(model):
            log.info("%s: measured with its adapter beside the weights, in which a merge would not be exact", self.name)
            return model

        @torch.inference_mode()
        def loss() -> float:
            return float(module.token_losses(collate(rows[: self.micro_batch_size], module.pad_id)).mean())

        before = loss()
        module.model = model.merge_and_unload()
        after = loss()
        if not math.isclose(before, after, rel_tol=1e-3, abs_tol=1e-3):
            raise InputError(
                f"defense={self.name}: the loss on its own pairs is {before:.4f} with the adapter and {after:.4f} with "
                "the adapter merged: adapt other modules by defense.adapter.target_modules"
            )
        return module.model

    def _adapted(self, model: Any) -> nn.Module:
        from fairpriv.language_models.models.reft import LoReFTConfig, ReftModel

        if self.adapter is None:
            trained: nn.Module = model.requires_grad_(True)
            return trained
        model.requires_grad_(False)
        if isinstance(self.adapter, LoReFTConfig):
            return ReftModel(model, self.adapter)
        from peft import PeftConfig, get_peft_model

        if not isinstance(self.adapter, PeftConfig):
            raise InputError(
                f"defense.adapter: a {type(self.adapter).__name__} is no adapter; give a PEFT config, such as "
                "peft.LoraConfig, fairpriv.language_models.models.reft.LoReFTConfig, or null for all weights"
            )
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5 under an old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            # which is not merged, see `_shared`
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`", UserWarning)
            try:
                adapted: nn.Module = get_peft_model(model, self.adapter)
            except ValueError as error:  # no such target modules, say
                raise InputError(f"defense.adapter: {' '.join(str(error).split())}") from error
        return adapted


def _half(model: nn.Module) -> bool:
    """Tell whether some weight is in half precision."""
    return any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())


def _outline(model: nn.Module) -> nn.Module:
    """Copy a model without the values of its tensors, which take no memory."""
    memo: dict[int, Any] = {id(one): nn.Parameter(one.to("meta"), False) for one in model.parameters()}
    memo |= {id(one): one.to("meta") for one in model.buffers()}
    return copy.deepcopy(model, memo)


def _shared(model: nn.Module) -> bool:
    """Tell whether an adapted weight has a second use, which a merge would change as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    adapted = (module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer))
    return any(uses[id(p)] > 1 for layer in adapted for p in layer.parameters(recurse=False))
