"""Settings of a cell that are not parts of their own: the game, the training of base models, the evaluation.

They get types once, where a config is checked, and are passed on as objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fairpriv.errors import InputError


@dataclass
class GameSettings:
    """Settings of the distribution-inference game: its two distributions, the training world, and the split.

    With property group A (``property``, else the first listed group of the sensitive attribute), world 0 has a share
    ``alpha`` of A and world 1 a share ``1 - alpha``; the other groups fill the rest in their natural proportions. With
    ``alpha`` 1 the groups are pure; with 0.5 both distributions are the same (the null arm, which shows results when
    there is nothing to find). Both worlds always have the same number of rows.
    """

    world: int = 0  # the bit b: the model is trained on G_b and fine-tuned on G_(1-b)
    alpha: float = 1.0
    property: str | None = None  # a group name; null: the first group of the sensitive attribute
    rows: int | None = None  # training rows per world; null: as many as there are
    adversary_share: float = 0.5  # of all rows; kept from the victim altogether
    test_share: float = 0.4  # of the victim's rows; halved: rates and bound on one half, gaps on the other
    validation_share: float = 0.1  # of the victim's rows; lambda is chosen and driven here
    min_cell: int = 5  # rows that every (label, group) cell must have in every part that is measured
    tau: float = 0.1  # an accuracy gap below it counts as hidden
    # What follows is read where there are attacks.
    shadows: int = 128  # the adversary's own models per world
    victims: int = 64  # models per world whose world is to be guessed
    # Training rows per world of each of these models, victims and shadows alike; null: 0.4 of what the scarcer group of
    # the smaller half holds, 2,000 at most.
    model_rows: int | None = None
    model_validation_rows: int | None = None  # likewise, to stop training and to choose by; null: a fifth, at least 20
    query_share: float = 0.25  # of the adversary's half: the rows it asks about; its shadows train on the rest
    adaptive: bool = False  # the adversary knows the defence: shadows pass through it as victims do
    poison: float = 0.0  # of each of these models' training rows: added by the adversary, with flipped labels
    repeats: int = 1  # repeated splits, each with pools of its own

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"game.alpha={self.alpha}: it is a share, from 0 to 1")
        if self.world not in (0, 1):
            raise InputError(f"game.world={self.world}: it is 0 or 1")
        if not 0 <= self.adversary_share < 1:
            raise InputError(
                f"game.adversary_share={self.adversary_share}: it is a share of all rows, from 0 to below 1"
            )
        if not (self.test_share > 0 and self.validation_share > 0 and self.test_share + self.validation_share < 1):
            raise InputError(
                f"game.test_share={self.test_share}, game.validation_share={self.validation_share}: both must be above "
                "0 and their sum below 1, since the victim trains on the rest"
            )
        if not 0 < self.query_share < 1:
            raise InputError(
                f"game.query_share={self.query_share}: it is a share of the adversary's half, above 0 below 1"
            )
        if not 0 <= self.poison < 1:
            raise InputError(f"game.poison={self.poison}: it is a share of training rows, from 0 to below 1")
        if self.poison and not self.adversary_share:
            raise InputError(f"game.poison={self.poison}: the adversary has no rows to add; raise game.adversary_share")
        for key in ("rows", "model_rows", "model_validation_rows"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"game.{key}={getattr(self, key)}: it is at least 1, or null for what the data allow")
        for key in ("min_cell", "tau", "shadows", "victims", "repeats"):
            if not 0 <= getattr(self, key) < math.inf:
                raise InputError(f"game.{key}={getattr(self, key)}: it is 0 or more")

    def refuse_unattackable(self) -> None:
        """Raise `InputError` where there is nobody to attack."""
        if self.victims < 1 or self.repeats < 1:
            raise InputError(
                f"game.victims={self.victims}, game.repeats={self.repeats}: an attack needs one of each at least"
            )


@dataclass
class TrainingSettings:
    """Settings for training the base model of a seed and world."""

    epochs: int = 40  # at most
    patience: int | None = 5  # epochs without a smaller loss on validation rows after which it stops; null: never
    batch_size: int = 128
    lr: float = 0.003
    weight_decay: float = 0.0001

    def __post_init__(self) -> None:
        for key, least in {"epochs": 1, "batch_size": 1, "weight_decay": 0}.items():
            if not least <= getattr(self, key) < math.inf:
                raise InputError(f"training.{key}={getattr(self, key)}: must be a number of at least {least}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"training.lr={self.lr}: must be a number above 0")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"training.patience={self.patience}: must be at least 1, or null to train to the end")


@dataclass
class EvaluationSettings:
    """Settings for what a language model is asked, and how it answers."""

    prompts: int | None = None  # of each dimension that are measured, at most; null: all
    benign: int | None = None  # of each dimension, at most, to count refusals; null: all
    seed: int = 0  # which of them: the same in every cell, whatever its own seed
    max_new_tokens: int = 64  # of a response, which is greedy
    engine: Any = None  # what answers; null: this process, by transformers
    max_prompt_tokens: int = 1024  # longer prompts lose their beginning
    # texts of 128 tokens worked on at a time, which changes rounding only
    batch_size: int = field(default=64, metadata={"outcome": False})
    text: Any = None  # what perplexity is measured on; null: nothing
    text_tokens: int | None = 4096  # of the text, from its beginning; null: all
    window: int | None = 512  # tokens that the model sees at a time; null: as many as it has positions
    stride: int | None = 256  # by which the window moves; null: by itself, without overlap

    def __post_init__(self) -> None:
        least = {"prompts": 1, "benign": 0, "max_new_tokens": 1, "max_prompt_tokens": 2, "batch_size": 1, "stride": 1}
        for key, bound in (least | {"text_tokens": 2, "window": 2}).items():
            value = getattr(self, key)
            if value is not None and value < bound:
                raise InputError(f"evaluation.{key}={value}: must be at least {bound}")
        if self.stride and self.window and self.stride > self.window:
            raise InputError(f"evaluation.stride={self.stride}: must be at most evaluation.window={self.window}")
