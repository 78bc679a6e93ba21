"""Direct preference optimisation: make safe responses likelier than unsafe ones, against the untouched model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fairpriv.errors import InputError
from fairpriv.language_models.contract import ModelOwner, require_choice
from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, Preference, collate
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.models.causal_lm import CausalLM


class PreferenceLM(CausalLM):
    """Trains by the loss of DPO, the mean over a step's pairs of -log sigmoid(beta * (margin - reference)).

    A margin is the log-likelihood of the preferred response minus that of the rejected one, each given its prompt and
    summed over its tokens; the reference is the untouched model's margin, which each row holds. Trained without
    dropout, since the reference is computed without; only a layer that does dropout by itself, as OPT's, keeps it
    where it computes its activations again. The parts of a step hold ``micro_batch_size`` pairs.

    Args:
        model: as of ``CausalLM``.
        beta: how much a margin counts; the larger, the closer the model stays to the untouched one.
        **options: of ``CausalLM``.
    """

    def __init__(self, model: nn.Module, *, beta: float, **options: Any) -> None:
        super().__init__(model, **options)
        self.beta = beta

    def on_train_start(self) -> None:
        """Leave training mode, by which dropout goes, where nothing else goes by it."""
        for module in self.model.modules():  # attention drops by its own mode, and has no module for it
            # What computes its activations again in the backward pass does so in training mode only.
            module.training = bool(getattr(module, "gradient_checkpointing", False))

    def terms(self, rows: Sequence[Encoded]) -> int:
        """Count the pairs."""
        return len(rows)

    def summed_loss(self, rows: Sequence[Encoded]) -> Tensor:
        if not rows:
            return super().summed_loss(rows)
        reference = torch.tensor([row.reference for row in cast(Sequence[Preference], rows)])
        margins = self.margins(rows)
        return -logsigmoid(self.beta * (margins - reference.to(margins.device))).sum()

    def margins(self, rows: Sequence[Encoded]) -> Tensor:
        """Compute the margin of each pair, [N] in float32."""
        rejected = [row.rejected for row in cast(Sequence[Preference], rows)]
        batch = collate([*rows, *rejected], self.pad_id)
        losses = self.token_losses(batch)
        row_of = (batch["labels"][:, 1:] != NO_TARGET).nonzero()[:, 0].to(losses.device)  # of each target token
        told = -losses.new_zeros(2 * len(rows)).index_add(0, row_of, losses)
        return told[: len(rows)] - told[len(rows) :]


@dataclass
class DirectPreference(SupervisedTuning):
    """Trains the model to prefer the owner's pairs to responses of the other split, by DPO.

    ``dataset.split=safe`` prefers safe responses to unsafe ones. DPO compares responses to one prompt, of which data
    may have few (``pairing=prompt``). ``pairing=any`` sets the safe responses against unsafe ones to other prompts of
    the dimension, so that every pair is trained on as by the other defences; the normalising constants of two prompts
    do not cancel then, as they do in DPO's derivation (Yin et al. 2024, arXiv 2402.10958, contrast across prompts).

    Source: Rafailov et al., "Direct preference optimization", NeurIPS 2023 (arXiv 2305.18290), equation 7.
    """

    kind: ClassVar[str] = "dpo"

    beta: float = 0.1
    pairing: Literal["prompt", "any"] = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise InputError(f"defense.beta={self.beta}: must lie above 0")
        require_choice(self, "defense", "pairing")

    @property
    def contrast(self) -> Literal["prompt", "any"] | None:
        """To which prompt the rejected response is."""
        return self.pairing

    def _prepared(self, owner: ModelOwner, rows: list[Encoded]) -> list[Encoded]:
        """Add the untouched model's margins."""
        untouched = self._module(owner.model, owner.pad_id)
        prepared: list[Encoded] = []
        with torch.inference_mode():
            for start in range(0, len(rows), self.micro_batch_size):
                part = cast(list[Preference], rows[start : start + self.micro_batch_size])
                margins = untouched.margins(part).tolist()
                prepared += [replace(row, reference=margin) for row, margin in zip(part, margins, strict=True)]
        return prepared

    def _module(self, model: nn.Module, pad_id: int, make: Callable[..., CausalLM] = PreferenceLM) -> PreferenceLM:
        return cast(PreferenceLM, super()._module(model, pad_id, functools.partial(make, beta=self.beta)))
