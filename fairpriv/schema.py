"""Dataclass schema of the root config: what is not written here or in a target's own signature is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class GameConfig:
    """The distribution-inference game: which two distributions, which of them the model is trained on, and the split.

    With property group A (``property``, else the first listed group of the sensitive attribute), world 0 holds a share
    ``alpha`` of A and world 1 a share ``1 - alpha``; the other groups fill the rest in their natural proportions.
    ``alpha`` 1 gives pure groups, 0.5 twice the same distribution. Both worlds always have equally many rows.
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


@dataclass
class PathsConfig:
    """Where a run writes. Nothing is written outside ``root``."""

    root: str = MISSING  # cells, sweeps, cache, wandb
    data: str = MISSING  # local data folders are looked for here first


@dataclass
class Config:
    """Root of every composed config. ``model``, ``dataset`` and ``defense`` are checked against their target's signature."""

    seed: int = 0
    study: str | None = None  # name under which a sweep's list of cells is kept
    model: dict[str, Any] = MISSING
    dataset: dict[str, Any] = MISSING
    defense: dict[str, Any] = MISSING
    game: GameConfig = field(default_factory=GameConfig)
    trainer: dict[str, Any] = MISSING
    logger: dict[str, Any] | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
