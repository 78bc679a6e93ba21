"""The settings and parts of one cell of a language model, typed once from the config."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fairpriv.config.compose import build
from fairpriv.config.settings import EvaluationSettings
from fairpriv.data.texts import Texts
from fairpriv.identity import kind_of, outcome_config
from fairpriv.language_models.analyses import Dependence
from fairpriv.language_models.contract import Tuning, require_base
from fairpriv.language_models.data.pairs import Pairs
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.engines.server import ServerEngine
from fairpriv.language_models.judges.judge import Judge
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.store import Store
from fairpriv.trainer import device_of, trainer_of

if TYPE_CHECKING:
    import lightning
    import torch


@dataclass(frozen=True)
class Settings:
    """What one cell is made of.

    Attributes:
        seed: of the cell.
        model: that is tuned and measured.
        pairs: which pairs it is trained on, where its defence trains.
        defense: what is done to it.
        dimensions: by name.
        judges: of responses, by name; the first one's verdicts count as awareness. None: nothing is judged.
        evaluation: what it is asked, and how it answers.
        engine: answers in place of this process; None: it answers itself.
        text: what perplexity is measured on; None: nothing.
        harness: tasks of general capability.
        analysis: of an edit; None: none.
        device: makes the device that it is on.
        trainer: makes what makes a Trainer.
        fitting: plain data of the trainer that change what is trained.
        sharded: whether training spreads the model over processes, layer by layer.
        store: keeps what several cells would make alike.
        watched: whether a person watches this one cell; a sweep has a bar of its own.
    """

    seed: int
    model: PretrainedLM
    pairs: Pairs
    defense: Tuning
    dimensions: dict[str, Dimension]
    judges: dict[str, Judge]
    evaluation: EvaluationSettings
    engine: ServerEngine | None
    text: Texts | None
    harness: Harness
    analysis: Dependence | None
    device: Callable[[], torch.device]
    trainer: Callable[[], functools.partial[lightning.Trainer]]
    fitting: Any
    sharded: bool
    store: Store
    watched: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], pairs: Pairs, defense: Tuning) -> Self:
        """Build the parts of a resolved plain config, and refuse those that do not go together.

        Args:
            config: of the cell.
            pairs: its dataset.
            defense: its defence.

        Raises:
            InputError: a part cannot be built, is of a class that does not inherit from the base of its kind, or does
                not go with another.
        """
        require_base(defense, Tuning, f"defense={config['defense']['name']}")
        pairs.contrast = defense.contrast
        engine: ServerEngine | None = build(config["evaluation"], "engine") if config["evaluation"]["engine"] else None
        text: Texts | None = build(config["evaluation"], "text") if config["evaluation"]["text"] else None
        found = cls(
            seed=config["seed"],
            model=build(config, "model"),
            pairs=pairs,
            defense=defense,
            dimensions={name: build(config["dimensions"], name, name=name) for name in config["dimensions"]},
            judges=judges_of(config["judge"]),
            evaluation=EvaluationSettings(**config["evaluation"] | {"text": None, "engine": None}),
            engine=engine,
            text=text,
            harness=build(config, "utility") if config.get("utility") else Harness(),
            analysis=build(config, "analysis") if config.get("analysis") else None,
            device=functools.partial(device_of, config),
            trainer=functools.partial(trainer_of, config),
            fitting=outcome_config(config)["trainer"],
            sharded=config["trainer"].get("strategy") == "fsdp",
            store=Store(config["paths"]["root"]),
            watched=not config["sweep"] and sys.stderr.isatty(),
        )
        if engine is not None:
            require_base(engine, ServerEngine, "evaluation.engine")
        if text is not None:
            text.takes(["prompt"], ["response"], "evaluation.text")
        if defense.trains:
            found.model.require_one_device(f"defense={defense.name}")
        if found.analysis is not None:
            found.analysis.require_edit(defense)
        return found

    @functools.cached_property
    def judging(self) -> dict[str, list[Any]]:
        """What determines each judge's verdicts; reading a model's files for it takes its time, so it is done once."""
        return {name: [kind_of(type(judge)), judge.digest()] for name, judge in self.judges.items()}

    def release(self) -> None:
        """Let go of the models of judge and scorers, which are loaded again where they are asked again."""
        for judge in self.judges.values():
            judge.release()
        for dimension in self.dimensions.values():
            for part in (dimension.scorer, dimension.refusals):
                if part is not None:
                    part.release()


def judges_of(config: Mapping[str, Any] | None) -> dict[str, Judge]:
    """Build the judge that a config describes, or several that it holds by name; none where it is empty.

    Raises:
        InputError: one cannot be built, or is none.
    """
    several = {} if not config else {config.get("name", "judge"): config} if "_target_" in config else dict(config)
    found = {name: build(several, name) for name in several}
    for name, judge in found.items():
        require_base(judge, Judge, f"judge={name}")
    return found
