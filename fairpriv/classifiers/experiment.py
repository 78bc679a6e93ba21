"""One cell of distribution inference: a classifier, its defence, its measures, and the attacks on pools of its kind."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.attacks.game import deal
from fairpriv.classifiers.attacks.play import Played, play
from fairpriv.classifiers.contract import ClassifierOwner, Defended, Defense
from fairpriv.classifiers.data.batches import ShuffledBatches
from fairpriv.classifiers.data.game import Dataset, GameDataModule, Part
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.measures import TRAIN_ACCURACY, Sample, measure
from fairpriv.classifiers.nets.classifier import Classifier, fit, predict
from fairpriv.classifiers.nets.encoder import reader_of
from fairpriv.classifiers.nets.pool import fit_pool
from fairpriv.configs import build, require
from fairpriv.errors import InputError
from fairpriv.identity import content_hash
from fairpriv.metrics import Measured, Metric
from fairpriv.processes import rank
from fairpriv.result import Result, write_whole
from fairpriv.run import Stage
from fairpriv.settings import GameSettings, TrainingSettings
from fairpriv.store import Store
from fairpriv.trainer import trainer_of

log = logging.getLogger(__name__)

BASE_EPOCH = Metric(
    "base/epoch",
    "epoch of the base model",
    "The epoch whose weights are kept, of those that were trained.",
    "epochs",
    low=0.0,
)


class DistributionInference:
    """The parts of one cell, built from its config; ``measure`` runs it.

    Raises:
        InputError: the config names a part that does not belong to classifiers, or attacks on what they cannot train.
    """

    def __init__(self, config: Mapping[str, Any], dataset: Dataset, defense: Defense) -> None:
        self.config = config
        self.dataset = dataset
        self.defense = require(Defense, defense, "defense")
        if config.get("analysis"):
            raise InputError(
                f"analysis: looks at edits of language models, not at classifiers of dataset={dataset.name}"
            )
        self.reader = reader_of(config)
        reads, holds = getattr(self.reader, "modality", "table"), getattr(dataset, "modality", "table")
        if reads != holds:
            fitting = {"table": "mlp", "text": "text_encoder", "image": "resnet or vit"}[holds]
            raise InputError(
                f"model={config['model']['name']} reads {reads}s and dataset={dataset.name} holds {holds}s: choose "
                f"model={fitting}"
            )
        if getattr(self.reader, "tune", "head") == "all":
            defense.refuse_inputs()
        if not config["attack"]:
            return
        model, game = config["model"], config["game"]
        perceptron = (
            model["_target_"] == "fairpriv.classifiers.nets.classifier.MLP"
            or getattr(self.reader, "tune", "") == "head"
        )
        if not perceptron or model["dropout"]:
            raise InputError(
                f"model={model['name']}: attacks train pools of model=mlp with model.dropout=0, or of such networks on "
                "a frozen encoder's features (model.tune=head), and of no other"
            )
        if game["victims"] < 1 or game["repeats"] < 1:
            raise InputError(
                f"game.victims={game['victims']}, game.repeats={game['repeats']}: an attack needs one of each at least"
            )
        if not self._attacks()[0]:
            raise InputError(
                f"attack=[{','.join(config['attack'])}] reads the weights of one network, which defense={defense.name} "
                "does not leave: choose attacks on its answers, such as kl"
            )

    def _attacks(self) -> tuple[list[Attack], dict[str, str]]:
        """The attacks that this defence's models can be put to; the others, and why not."""
        config = self.config
        attacks = [require(Attack, build(config["attack"], name), f"attack={name}") for name in config["attack"]]
        omitted = {
            attack.name: f"reads the weights of one network, which {self.defense.name} does not leave"
            for attack in attacks
            if attack.white_box and not self.defense.one_network
        }
        return [attack for attack in attacks if attack.name not in omitted], omitted

    def digests(self) -> dict[str, str]:
        """Content of every input, by the config key that its place stands in."""
        weights = self.reader.weights if self.reader else None
        return {"dataset.source": self.dataset.source.digest()} | (
            {"model.path": weights.digest()} if weights is not None else {}
        )

    def measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        """Run the cell and write what it came to into ``result``; victims' scores go to a file of ``folder``."""
        config = self.config
        with stage("data"):
            data = GameDataModule(self.dataset, GameSettings(**config["game"]), config["seed"], self.reader)
            data.setup()
            tell(data)
            if config["attack"]:
                data.model_rows()  # which raises where there are too few, before anything is trained
        owner = owner_of(config, data, logger)
        with stage("base"):
            owner.base()
        with stage("defend"):
            defended = self.defense.defend(owner)
        with stage("evaluate"):
            measured = evaluate(defended, data, config["game"]["tau"])
        result.add(
            data.measured | measured | defended.measured | Measured(owner.told, described={BASE_EPOCH.name: BASE_EPOCH})
        )
        result.add(TRAIN_ACCURACY.of(accuracy(defended, defended.rows or owner.own_rows)))
        result.overlap = data.overlap
        if self.defense.control:
            result.control = "its training rows do not depend on the training world"
        if config["attack"]:
            with stage("attack"):  # whose pools several processes share
                attacks, omitted = self._attacks()
                for name, why in omitted.items():
                    log.warning("attack %s is left out: it %s", name, why)
                played = attack(config, data, self.defense, attacks)
                if played is not None:
                    record(result, played, omitted, folder)


def tell(data: GameDataModule) -> None:
    """Say what was read and how it was dealt."""
    for line in data.told:
        _say(logging.INFO, f"{data.table.name}: {line}")
    if data.small:
        _say(logging.WARNING, f"{data.table.name}: {data.small}")


@functools.cache  # a sweep's cells share their data
def _say(level: int, line: str) -> None:
    log.log(level, "%s", line)


def owner_of(config: Mapping[str, Any], data: GameDataModule, logger: Logger | None) -> ClassifierOwner:
    """The model owner's side of the cell: how it makes a model, trains it, and gets its base model."""
    seed, world = config["seed"], config["game"]["world"]
    trainer = trainer_of(config)
    told: dict[str, float] = {}
    fit_once = functools.partial(
        fit,
        trainer=trainer,
        seed=seed,
        logger=logger,
        measured=bool(config["logger"]),  # also in the processes that have no logger: they validate together
        store=Store(config["paths"]["root"]),
    )

    def fresh() -> nn.Module:
        torch.manual_seed(seed)
        net: nn.Module = build(config, "model", data.features, len(data.label_names))
        return net

    def base() -> nn.Module:
        """The model trained on G_b; the second time it comes from the cache."""
        training = TrainingSettings(**config["training"])
        module = Classifier(
            fresh(),
            classes=len(data.label_names),
            lr=training.lr,
            weight_decay=training.weight_decay,
            patience=training.patience,
            stage="base",
        )
        batches = ShuffledBatches(data.part("train", world), training.batch_size, seed)
        fit_once(module, batches, epochs=training.epochs, validation=data.part("validation", world))
        told[BASE_EPOCH.name] = float(module.epoch)
        return module.net

    return ClassifierOwner(data, world, seed, base, fresh, fit_once, told)


def evaluate(defended: Defended, data: GameDataModule, tau: float) -> Measured:
    """Every measure of one model on the two test worlds: rates and bound on half of the test rows, gaps on the rest."""

    def sample(part: Part, world: int) -> Sample:
        rows = data.part(part, world)
        return Sample(answers(defended, rows), rows.y, rows.s)

    return measure(
        (sample("rates", 0), sample("rates", 1)),
        (sample("gap", 0), sample("gap", 1)),
        label_names=data.label_names,
        group_names=data.group_names,
        tau=tau,
    )


def answers(defended: Defended, rows: Rows) -> Tensor:
    """Predicted labels ``[N]`` of rows."""
    return defended.predict(rows) if defended.predict else predict(cast(nn.Module, defended.net), rows.X)


def accuracy(defended: Defended, rows: Rows) -> float:
    """Share of rows whose label is predicted."""
    return float((answers(defended, rows) == rows.y).double().mean())


def attack(config: Mapping[str, Any], data: GameDataModule, defense: Defense, attacks: list[Attack]) -> Played | None:
    """Play the distribution-inference game on pools of the cell's model, on every repeated split.

    Several processes share the training of the pools; the first one plays, and has what came of it.
    """
    model, game = config["model"], data.game
    root = Path(config["paths"]["root"])
    fit_one = functools.partial(
        fit_pool,
        hidden=model["hidden"],
        classes=len(data.label_names),
        store=Store(root),
        accelerator=config["trainer"]["accelerator"],
    )
    splits = []
    for number in range(game.repeats):
        split = data
        if number:
            seed = int(content_hash([data.seed, number]), 16) % 2**31
            split = GameDataModule(data.dataset, game, seed, data.reader)
            split.setup()
        splits.append(deal(split, defense.defend_pool, fit_one, config["training"]))
    return play(splits, attacks, pure=data.pure) if rank() == 0 else None


def record(result: Result, played: Played, omitted: Mapping[str, str], folder: Path) -> None:
    """Add what the attacks came to; every victim's scores go into a file of their own, with what was left out."""
    result.add(played.measured)
    path = folder / "attacks.json"
    write_whole(path, json.dumps({"splits": played.victims, "omitted": dict(omitted)}).encode())
    result.artifacts["attacks"] = path.name
