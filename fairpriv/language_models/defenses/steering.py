"""Steering: add to hidden states the direction in which they differ between safe and unsafe responses."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fairpriv.errors import InputError
from fairpriv.language_models.contract import Draw, ModelOwner, Tuned, Tuning, require_choice
from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, collate
from fairpriv.language_models.models.reft import decoder_layers, layer_indices
from fairpriv.metrics import Measured, Metric
from fairpriv.store import checksum

ADDED = Metric(
    "edit/steering/{layer}",
    "added in layer {layer}",
    "Norm of what steering adds, over the mean norm of the layer's states at response tokens.",
    low=0.0,
)


@dataclass
class Steering(Tuning):
    """Adds a vector to the output of some decoder layers, at every position of prompt and response.

    The vector of a layer is the mean hidden state of safe responses minus that of unsafe ones, times ``coefficient``.
    A response's state is the mean over its tokens, so that long ones do not count for more; of several dimensions the
    differences are averaged. Nothing is trained.

    Sources: activation addition, Turner et al. 2023 (arXiv 2308.10248), from one pair of prompts; difference of means
    over many pairs, Rimsky et al. 2024 (CAA, arXiv 2312.06681), who read the state at the token of a multiple-choice
    answer and add it after the prompt. Free responses have no such token: the mean over tokens, and to steer the prompt
    too, are ours.
    """

    kind: ClassVar[str] = "steering"

    name: str
    dimensions: list[str]
    layers: list[int] | None = None  # by index, negative ones from the end; null: the middle one
    coefficient: float = 1.0  # times the difference of means; negative: away from safe responses
    direction: Literal["difference", "random"] = "difference"  # random: as long a vector in a random direction
    samples: int | None = 32  # pairs of each dimension and split; null: all
    batch_size: int = 8  # pairs of one forward pass

    def __post_init__(self) -> None:
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
            raise InputError(f"defense.dimensions={self.dimensions}: name one dimension or several different ones")
        if self.layers is not None and not self.layers:
            raise InputError("defense.layers=[]: name one layer or more, or null for the middle one")
        require_choice(self, "defense", "direction")
        if not math.isfinite(self.coefficient):
            raise InputError(f"defense.coefficient={self.coefficient}: must be a number")
        if self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise InputError(
                f"defense.batch_size={self.batch_size}, defense.samples={self.samples}: each is at least 1"
            )

    @property
    def sets(self) -> list[Draw]:
        """Safe and unsafe pairs of every dimension."""
        return [(name, split, self.samples) for name in self.dimensions for split in ("safe", "unsafe")]

    def check(self, model: nn.Module, *, merged: bool = False) -> None:
        """Refuse a layer that the model does not have, and to be followed by a defence that reads its weights."""
        if merged:
            raise InputError(f"defense={self.name} changes no weight, so no defence of weights can come after it")
        self._places(model)

    def tune(self, owner: ModelOwner) -> Tuned:
        """Find the vectors, and have the model add them from now on."""
        rows = {which: owner.rows(*which) for which in self.sets}
        vectors, measured = self.vectors(owner.model, rows, pad_id=owner.pad_id, seed=owner.seed)
        decoder = decoder_layers(owner.model)
        for index, vector in vectors.items():
            vector = vector.to(next(decoder[index].parameters()).device)  # once, and not with each token
            decoder[index].register_forward_hook(functools.partial(_add, vector))
        content = [self.kind, checksum({str(index): vector for index, vector in vectors.items()})]
        return Tuned(owner.model, measured, content)

    def vectors(
        self, model: nn.Module, rows: Mapping[Draw, Sequence[Encoded]], *, pad_id: int = 0, seed: int = 0
    ) -> tuple[dict[int, Tensor], Measured]:
        """Return what is added to the output of each layer, by index, [d] in float32; and how large it is.

        Args:
            model: the causal language model, untouched.
            rows: encoded pairs, by what ``sets`` asks for.
            pad_id: fills up shorter rows of a batch.
            seed: of ``direction=random``.
        """
        layers = self._places(model)
        states = {which: self._states(model, encoded, layers, pad_id) for which, encoded in rows.items()}
        generator = torch.Generator().manual_seed(seed)
        vectors, measured = {}, Measured()
        for place, index in enumerate(layers):
            means = {which: mean[place] for which, (mean, _) in states.items()}
            differences = [
                means[name, "safe", self.samples] - means[name, "unsafe", self.samples] for name in self.dimensions
            ]
            vector = torch.stack(differences).mean(0)
            if self.direction == "random":
                drawn = torch.randn(len(vector), generator=generator, dtype=vector.dtype)
                vector = drawn * vector.norm() / drawn.norm()
            vectors[index] = (self.coefficient * vector).float()
            usual = torch.stack([norm[place] for _, norm in states.values()]).mean()
            measured |= ADDED.named(layer=str(index)).of(float(vectors[index].norm() / usual))
        if not any(vector.any() for vector in vectors.values()):
            why = "defense.coefficient=0" if self.coefficient == 0 else "safe and unsafe responses have equal states"
            measured |= Measured(degenerate=[f"steering adds nothing: {why}"])
        return vectors, measured

    def _places(self, model: nn.Module) -> list[int]:
        count = len(decoder_layers(model))
        return layer_indices([count // 2] if self.layers is None else self.layers, count, "defense.layers")

    @torch.no_grad()
    def _states(
        self, model: nn.Module, rows: Sequence[Encoded], layers: Sequence[int], pad_id: int
    ) -> tuple[Tensor, Tensor]:
        """Average the states at response tokens, row by row and then over rows: [layers, d]; and their norms."""
        outputs: list[Tensor] = []

        def keep(layer: nn.Module, args: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        decoder, device = decoder_layers(model), next(model.parameters()).device
        handles = [decoder[index].register_forward_hook(keep) for index in layers]
        means, norms = [], []
        try:
            ordered = sorted(rows, key=lambda row: -len(row.input_ids))  # so that little is padded
            for start in range(0, len(ordered), self.batch_size):
                batch = collate(ordered[start : start + self.batch_size], pad_id)
                asked = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
                outputs.clear()
                model(**asked, use_cache=False)
                said = batch["labels"] != NO_TARGET  # [B, T]
                for row in range(len(said)):
                    found = torch.stack([states[row].cpu()[said[row]].double() for states in outputs])
                    means.append(found.mean(1))
                    norms.append(found.norm(dim=-1).mean(1))
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(means).mean(0), torch.stack(norms).mean(0)


def _add(vector: Tensor, layer: nn.Module, args: Any, output: Any) -> Any:
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden + vector.to(hidden.device, hidden.dtype)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
