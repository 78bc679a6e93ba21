"""Training as without a defence, but with smoothed labels or stopped early: the plainest defences of privacy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairpriv.classifiers.contract import EPOCH, ClassifierOwner, Defended, Defense, PoolOwner, check_training
from fairpriv.classifiers.data.batches import ShuffledBatches
from fairpriv.classifiers.nets.classifier import Classifier
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.errors import InputError


@dataclass
class OwnTraining(Defense):
    """Training from fresh weights on the rows of G_b, those of ``none``, in the same batches.

    With the settings of ``training`` and without smoothing it gives the model of ``none``. Label smoothing (Szegedy et
    al., CVPR 2016) spreads a share of every label evenly over all labels; it makes a model less sure, which need not
    protect members (Kaya and Dumitras, ICML 2021). Early stopping trains for few epochs, before a model learns rows by
    heart (Song and Mittal, USENIX Security 2021, find it a strong baseline).

    Attributes:
        smoothing: share of a label that is spread, in [0, 1).
        epochs: largest number of epochs.
        patience: epochs without a smaller loss on validation rows after which it stops; None: never.
        batch_size, lr, weight_decay: as those of base models.
    """

    kind: ClassVar[str] = "own_training"

    name: str
    smoothing: float = 0.0
    epochs: int = 40
    patience: int | None = 5
    batch_size: int = 128
    lr: float = 0.003
    weight_decay: float = 0.0001

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise InputError(f"defense.smoothing={self.smoothing}: must be a share of a label, from 0 to below 1")
        if min(self.epochs, self.batch_size) < 1 or not self.lr > 0:
            raise InputError(
                f"defense.epochs={self.epochs}, batch_size={self.batch_size}, lr={self.lr}: the first two are at least "
                "1, lr is above 0"
            )
        check_training(self.weight_decay, self.patience)

    def defend(self, owner: ClassifierOwner) -> Defended:
        module = Classifier(
            owner.fresh(),
            classes=len(owner.data.label_names),
            lr=self.lr,
            weight_decay=self.weight_decay,
            patience=self.patience,
            smoothing=self.smoothing,
            stage=self.name,
        )
        batches = ShuffledBatches(owner.own_rows, self.batch_size, owner.seed)
        owner.fit(module, batches, epochs=self.epochs, validation=owner.data.part("validation", owner.world))
        return Defended(module.net, EPOCH.of(module.epoch))

    def defend_pool(self, owner: PoolOwner) -> Pool:
        """Train every member on its own world's rows."""
        datasets, held_out = (
            [(rows.X, rows.y) for rows in parts] for parts in (owner.samples(own=True), owner.own_validation())
        )
        return owner.fit(
            datasets,
            validation=held_out,
            epochs=self.epochs,
            patience=self.patience,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            smoothing=self.smoothing,
            seed=owner.seed,
        )
