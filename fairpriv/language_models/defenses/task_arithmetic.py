"""Task arithmetic: add a multiple of the change that fine-tuning makes to the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fairpriv.errors import InputError
from fairpriv.language_models.contract import ModelOwner, Tuned, Tuning, require_base, require_choice
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.metrics import Measured, Metric

MOVED = Metric(
    "edit/task_vector",
    "change of the weights",
    "Norm of what task arithmetic adds to the weights, over the norm of the weights.",
    low=0.0,
)


@dataclass
class TaskArithmetic(Tuning):
    """Tunes the model, and replaces its weights W_tuned by ``W + coefficient * (W_tuned - W)``.

    A negative coefficient takes the model away from what it was tuned on: with ``dataset.split=unsafe`` it forgets
    unsafe responses. A positive one goes a part of the way, or further. The weights are float32 and held twice, once on
    the CPU. Source: Ilharco et al., "Editing models with task arithmetic", ICLR 2023 (arXiv 2212.04089).
    """

    kind: ClassVar[str] = "task_arithmetic"

    name: str
    tuning: SupervisedTuning  # makes the change
    coefficient: float = 0.5
    direction: Literal["task", "random"] = "task"  # random: as large a change of each weight matrix, at random

    def __post_init__(self) -> None:
        require_base(self.tuning, SupervisedTuning, "defense.tuning")
        require_choice(self, "defense", "direction")
        if not math.isfinite(self.coefficient):
            raise InputError(f"defense.coefficient={self.coefficient}: must be a number")

    @property
    def trains(self) -> bool:
        """Whether it trains on the owner's pairs."""
        return True

    @property
    def full_precision(self) -> bool:
        """What is trained is merged, and a part of it added."""
        return True

    @property
    def contrast(self) -> Literal["prompt", "any"] | None:
        """What the tuning asks for."""
        return self.tuning.contrast

    def check(self, model: nn.Module, *, merged: bool = False) -> None:
        """Refuse what the tuning cannot leave as plain float32 weights."""
        self.tuning.check(model, merged=True)

    @torch.no_grad()
    def tune(self, owner: ModelOwner) -> Tuned:
        """Tune, and scale the change."""
        before = {name: weight.detach().cpu().clone() for name, weight in owner.model.named_parameters()}
        with torch.enable_grad():
            tuned = self.tuning.tune(owner)
        after = dict(tuned.model.named_parameters())
        if after.keys() != before.keys():
            raise InputError(
                f"defense={self.name}: its adapter cannot be merged, as an adapted weight has a second use: adapt "
                "other modules by defense.tuning.adapter.target_modules"
            )
        generator = torch.Generator().manual_seed(owner.seed)
        added = whole = 0.0
        for name, weight in after.items():
            change = self.coefficient * self._direction(weight.cpu() - before[name], generator)
            weight.copy_(before[name] + change)
            added += float(change.square().sum(dtype=torch.float64))
            whole += float(before[name].square().sum(dtype=torch.float64))
        measured = MOVED.of(math.sqrt(added / whole))
        if self.coefficient == 0:
            measured |= Measured(degenerate=["defense.coefficient=0 changes no weight"])
        content: Any = None
        if tuned.content is not None:
            seed = owner.seed if self.direction == "random" else None
            content = [self.kind, tuned.content, self.coefficient, self.direction, seed]
        return Tuned(tuned.model, tuned.measured | measured, content)

    def _direction(self, change: Tensor, generator: torch.Generator) -> Tensor:
        if self.direction == "task":
            return change
        drawn = torch.randn(change.shape, generator=generator)
        return drawn * change.norm() / drawn.norm()
