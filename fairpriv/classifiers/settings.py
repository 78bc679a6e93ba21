"""The typed settings that one cell of the classifiers reads from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning
import torch

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.dimensions.game import Distribution
from fairpriv.classifiers.dimensions.probe import Probe
from fairpriv.classifiers.nets.architecture import Architecture, architecture_of
from fairpriv.config.compose import build, require
from fairpriv.config.settings import GameSettings, TrainingSettings
from fairpriv.errors import InputError
from fairpriv.store import Store
from fairpriv.trainer import device_of, trainer_of


@dataclass(frozen=True)
class Settings:
    """A cell's settings, besides its dataset and its defence.

    Attributes:
        seed: of the cell.
        game, training: as in the config.
        architecture: of the model.
        attacks: on the training world, in the order of the config.
        dimensions: likewise.
        trainer: returns a function that makes a Trainer; raises InputError if Lightning refuses a setting.
        accelerator, device: what models are trained on.
        logged: whether measures of training are logged.
        store: the cache that cells have in common.
    """

    seed: int
    game: GameSettings
    training: TrainingSettings
    architecture: Architecture
    attacks: list[Attack]
    dimensions: list[Probe]
    trainer: Callable[[], partial[lightning.Trainer]]
    accelerator: str
    device: torch.device
    logged: bool
    store: Store

    @property
    def distribution_attacks(self) -> list[Attack]:
        """All attacks on the training world, of ``attack=[...]`` or of the dimension that names them."""
        named = [d for d in self.dimensions if isinstance(d, Distribution)]
        players = [*(["attack=[...]"] if self.attacks else []), *(f"dimension={d.name}" for d in named)]
        if len(players) > 1:
            raise InputError(f"{' and '.join(players)} play the same game: name all attacks in one of them")
        return [*self.attacks, *(attack for d in named for attack in d.attacks.values())]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Settings:
        """Read a resolved, checked, plain config; raise InputError if parts exclude each other."""
        return cls(
            seed=config["seed"],
            game=GameSettings(**config["game"]),
            training=TrainingSettings(**config["training"]),
            architecture=architecture_of(config),
            attacks=[_attack(config, name) for name in config["attack"]],
            dimensions=[
                require(Probe, build(config["dimensions"], name, name=name), f"dimension={name}")
                for name in config["dimensions"]
            ],
            trainer=partial(trainer_of, config),
            accelerator=config["trainer"].get("accelerator", "auto"),
            device=device_of(config),
            logged=bool(config["logger"]),
            store=Store(config["paths"]["root"]),
        )


def _attack(config: Mapping[str, Any], name: str) -> Attack:
    """Build one of ``attack=[...]``; refuse one of another game."""
    attack = require(Attack, build(config["attack"], name), f"attack={name}")
    if not hasattr(attack, "name"):
        raise InputError(f"attack={name} has no name for its metrics: declare name: str, and set it in the YAML")
    if attack.game != Distribution.plays:
        raise InputError(
            f"attack={name} plays the game of {attack.game}, and attack=[...] that of {Distribution.plays}: name it "
            f"under attacks of a dimension that plays {attack.game} (fairpriv ls dimension)"
        )
    return attack
