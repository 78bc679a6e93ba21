"""One cell of distribution inference: a classifier, its defence, its measures, and attacks on pools of such models."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import nn

from fairpriv.classifiers.attacks.attack import Attack, refuse_few_shadows, refuse_unpoisoned
from fairpriv.classifiers.attacks.game import deal, playable
from fairpriv.classifiers.attacks.play import Played, Split, play
from fairpriv.classifiers.contract import ClassifierOwner, Defended, Defense, PoolOwner
from fairpriv.classifiers.data.batches import ShuffledBatches
from fairpriv.classifiers.data.dataset import Dataset
from fairpriv.classifiers.data.game import GameDataModule, Part
from fairpriv.classifiers.dimensions.probe import Subject, refuse_answers
from fairpriv.classifiers.known_truth import KnownTruth, World
from fairpriv.classifiers.measures import TRAIN_ACCURACY, Sample, measure
from fairpriv.classifiers.nets.classifier import Classifier, fit
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.classifiers.settings import Settings
from fairpriv.config.compose import require
from fairpriv.errors import InputError, returned
from fairpriv.metrics import Measured, Metric
from fairpriv.processes import rank
from fairpriv.result import Cell, Result, Stage, write_whole

log = logging.getLogger(__name__)

BASE_EPOCH = Metric(
    "base/epoch",
    "epoch of the base model",
    "The epoch whose weights are kept, of those that were trained.",
    "epochs",
    low=0.0,
)


def cell_of(config: Mapping[str, Any], dataset: Any, defense: Any) -> Cell:
    """Build the cell of a dataset: `KnownTruth` for drawn models, which are only attacked, else one that trains."""
    kind = KnownTruth if isinstance(dataset, World) else DistributionInference
    return kind(config, dataset, defense)


class DistributionInference:
    """One cell: a model is trained, defended and measured, and pools of such models are attacked.

    Raises:
        InputError: parts that exclude each other.
    """

    def __init__(self, config: Mapping[str, Any], dataset: Dataset, defense: Defense) -> None:
        self.defense = require(Defense, defense, "defense")
        self.dataset = require(Dataset, dataset, "dataset")
        self.settings = settings = Settings.read(config)
        settings.architecture.refuse_other_than(dataset.modality, dataset.name)
        if not settings.architecture.reads_features:
            defense.refuse_inputs()
            for dimension in settings.dimensions:
                dimension.refuse_inputs()
        for dimension in settings.dimensions:
            if dimension.needs_probabilities and defense.answers_only:
                refuse_answers(dimension.name, defense.name)
        if settings.attacks or any(dimension.trains for dimension in settings.dimensions):
            settings.architecture.pool_hidden()
        if settings.distribution_attacks:
            settings.game.refuse_unattackable()
        self.attacks, self.omitted = playable(settings.distribution_attacks, defense, adaptive=settings.game.adaptive)
        for attack in self.attacks:
            refuse_few_shadows(attack.name, settings.game.shadows, attack.needs)
            if attack.poisons:
                refuse_unpoisoned(attack.name, settings.game.poison)

    def digests(self) -> dict[str, str]:
        """Return the digest of every input, by the config key that locates it."""
        return {"dataset.source": self.dataset.source.digest()} | self.settings.architecture.digests()

    def measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        """Run the cell and add the measures to ``result``; write the victims' scores to a file in ``folder``."""
        settings = self.settings
        with stage("data"):
            reader = settings.architecture.reader(settings.device)
            data = GameDataModule(self.dataset, settings.game, settings.seed, reader)
            data.setup()
            tell(data)
            if self.attacks:
                data.model_rows()  # which raises where there are too few, before anything is trained
        owner = self._owner(data, logger)
        with stage("base"):
            owner.base()
        with stage("defend"):
            name, some = self.defense.name, owner.own_rows.take(torch.arange(min(4, len(owner.own_rows.y))))
            defended = returned(Defended, self.defense.defend(owner), f"defense={name}: defend")
            defended = defended.checked(name, some, len(data.label_names))
        with stage("evaluate"):
            measured = evaluate(defended, data, settings.game.tau)
            trained = TRAIN_ACCURACY.of(defended.accuracy(owner.own_rows if defended.rows is None else defended.rows))
        base = Measured(owner.told, described={BASE_EPOCH.name: BASE_EPOCH})
        result.add(data.measured | measured | defended.measured | base | trained)
        result.overlap = data.overlap
        if self.defense.control:
            result.control = "its training rows do not depend on the training world"

        def attack(attacks: Sequence[Attack]) -> Measured:
            """Play the game of distributions; the processes share its pools, and the first one measures."""
            played = [one for one in attacks if one.name not in self.omitted]
            for name, why in self.omitted.items():
                log.warning("attack %s is left out: it %s", name, why)
            splits, game = self.splits(data), settings.game
            if rank() > 0:
                return Measured()
            return record(
                result, play(splits, played, pure=data.pure, shares=(game.alpha, 1 - game.alpha)), self.omitted, folder
            )

        if settings.attacks:
            with stage("attack"):
                result.add(attack(settings.attacks))
        if settings.dimensions:
            with stage("dimensions"):
                fit_one = self._fit_pool(data)
                subject = Subject(
                    defended,
                    self.defense,
                    data,
                    settings.seed,
                    lambda deals: PoolOwner(deals, len(deals), settings.seed, fit_one, settings.training),
                    attack,
                )
                for dimension in settings.dimensions:
                    found = returned(Measured, dimension.measure(subject), f"dimensions.{dimension.name}: measure")
                    if rank() == 0:
                        result.add(found)

    def _owner(self, data: GameDataModule, logger: Logger | None) -> ClassifierOwner:
        """Make the owner's side, with its ways to make a model, to train it, and to get the base model."""
        settings, world, classes = self.settings, data.game.world, len(data.label_names)
        training = settings.training
        told: dict[str, float] = {}
        fit_once = functools.partial(
            fit,
            trainer=settings.trainer(),
            seed=settings.seed,
            logger=logger,
            measured=settings.logged,  # also in the processes that have no logger: they validate together
            store=settings.store,
        )

        def fresh() -> nn.Module:
            torch.manual_seed(settings.seed)
            return settings.architecture.network(data.features, classes)

        def base() -> nn.Module:
            """Train the model on G_b; later calls read it from the cache."""
            module = Classifier(
                fresh(),
                classes=classes,
                lr=training.lr,
                weight_decay=training.weight_decay,
                patience=training.patience,
                stage="base",
            )
            batches = ShuffledBatches(data.part("train", world), training.batch_size, settings.seed)
            fit_once(module, batches, epochs=training.epochs, validation=data.part("validation", world))
            told[BASE_EPOCH.name] = float(module.epoch)
            return module.net

        return ClassifierOwner(data, world, settings.seed, base, fresh, fit_once, told)

    def splits(self, data: GameDataModule) -> list[Split]:
        """Train and defend pools of victims and of shadows, on every repeated split."""
        fit_one, training = self._fit_pool(data), self.settings.training
        return [
            deal(data.repeat(number), self.defense.pool, fit_one, training)
            for number in range(self.settings.game.repeats)
        ]

    def _fit_pool(self, data: GameDataModule) -> Callable[..., Pool]:
        """Return `fit_pool` with the arguments that are the same for every pool of the cell."""
        settings = self.settings

        def fit_one(*args: Any, **more: Any) -> Pool:
            same: dict[str, Any] = {
                "hidden": settings.architecture.pool_hidden(),
                "classes": len(data.label_names),
                "store": settings.store,
                "accelerator": settings.accelerator,
            }
            return fit_pool(*args, **same | more)  # a defence may give its own: `store=None` keeps nothing

        return fit_one


def tell(data: GameDataModule) -> None:
    """Log what was read and how it was dealt; every line only once per process."""
    for line in data.told:
        _say(logging.INFO, f"{data.table.name}: {line}")
    if data.small:
        _say(logging.WARNING, f"{data.table.name}: {data.small}")


@functools.cache  # a sweep's cells share their data
def _say(level: int, line: str) -> None:
    log.log(level, "%s", line)


def evaluate(defended: Defended, data: GameDataModule, tau: float) -> Measured:
    """Measure one model on the two test worlds: rates and bound on half of the test rows, gaps on the rest."""

    def sample(part: Part, world: int) -> Sample:
        rows, labels = data.part(part, world), len(data.label_names)
        answers = defended.answers(rows)
        if defended.predict and not ((answers >= 0) & (answers < labels)).all():
            found = sorted(set(answers.tolist()))
            raise InputError(f"the defence's predict must return labels from 0 to {labels - 1}, and returned {found}")
        return Sample(answers, rows.y, rows.s, data.units(rows))

    try:
        return measure(
            (sample("rates", 0), sample("rates", 1)),
            (sample("gap", 0), sample("gap", 1)),
            label_names=data.label_names,
            group_names=data.group_names,
            tau=tau,
        )
    except ValueError as error:
        if data.game.min_cell:
            raise
        raise InputError(
            f"game.min_cell=0 lets parts of {data.table.name} be without a label or group, and {error}: set it to 1 or "
            "more, which tells what to change before anything is trained"
        ) from error


def record(result: Result, played: Played, omitted: Mapping[str, str], folder: Path) -> Measured:
    """Write every victim's scores and the omitted attacks to a file, which ``result`` names; return the measures."""
    path = folder / "attacks.json"
    write_whole(path, json.dumps({"splits": played.victims, "omitted": dict(omitted)}).encode())
    result.artifacts["attacks"] = path.name
    return played.measured
