"""DP-SGD, a training whose result reveals little about any single row (Abadi et al. 2016)."""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fairpriv.classifiers.contract import EPOCH, ClassifierOwner, Defended, Defense, PoolOwner, check_training
from fairpriv.classifiers.data.batches import Batch, PoissonBatches
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import Classifier
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.classifiers.nets.pool_training import Private, mask_seed, noise_seed
from fairpriv.errors import InputError, NonFiniteLossError
from fairpriv.metrics import Metric

EPSILON = Metric(
    "defense/epsilon", "epsilon", "Privacy budget that the training has spent, at delta.", better="less", low=0.0
)
DELTA = Metric("defense/delta", "delta", "Of (epsilon, delta)-differential privacy.", low=0.0, high=1.0)
NOISE_MULTIPLIER = Metric(
    "defense/noise_multiplier",
    "noise multiplier",
    "Standard deviation of the noise, in units of the clipping norm.",
    low=0.0,
)


_MOST_BY_PRV = 200  # epsilon; at 300 the search for the noise does not end, as steps of the certified one are too large


@dataclass
class DPSGD(Defense):
    """Training or tuning by DP-AdamW: Poisson batches, rows' gradients clipped one by one, Gaussian noise.

    One model is trained by Opacus; a pool by the same rule on stacked weights (`Private`). The noise is the smallest
    that suffices for ``epsilon`` by Opacus's accountant. Besides the budget it depends only on ``epochs`` and
    ``steps_per_epoch``, and it is the same for one model and for a pool. Protected is the presence or absence of one
    training row, in the output of this training. Not accounted for are the validation rows that stop it, the encoder's
    means and deviations, the choice of these settings and, with ``start=base``, the training of the base model, which
    is not private and has seen the rehearsed rows. The budget is counted for all ``epochs``, even if training stops
    earlier. Epsilon is that of the algorithm with secret random draws, not that of a run whose seed is published. The
    privacy of a row is not the privacy of the distribution: nothing is promised about the secret bit of the game.

    Attributes:
        start: from the base model, as the arms of fine-tuning are, or from fresh weights.
        rows: ``tuning``: G_(1-b) and a share ``rehearsal`` of G_b, as the arms of fine-tuning; ``own``: G_b alone, the
            rows of ``none``. From fresh weights on all rows of both worlds it is a null control.
        rehearsal: rehearsed rows of G_b per row of G_(1-b), in [0, 1].
        epsilon, delta: the budget; delta below 1 / rows.
        accountant: of Opacus: ``prv`` (Gopi et al. 2021) or ``rdp`` (Mironov 2017).
        clip: largest norm of a row's gradient.
        epochs: largest number of epochs.
        patience: epochs without a smaller loss on validation rows after which it stops; None: never.
        steps_per_epoch: steps per epoch; a row is in a step's batch with probability 1 / steps_per_epoch.
        lr, weight_decay: of AdamW, which uses only noised gradients.
    """

    kind: ClassVar[str] = "dp_sgd"

    name: str = "dp_sgd"
    start: Literal["base", "scratch"] = "base"
    rows: Literal["tuning", "own"] = "tuning"
    rehearsal: float = 0.5
    epsilon: float = 3.0
    delta: float = 1e-5
    accountant: Literal["prv", "rdp"] = "prv"
    clip: float = 1.0
    epochs: int = 20
    patience: int | None = 5
    steps_per_epoch: int = 10
    lr: float = 0.01
    weight_decay: float = 0.0001

    features_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise InputError(
                f"defense.epsilon={self.epsilon}, delta={self.delta}: epsilon is above 0, delta between 0 and 1"
            )
        if not 0 <= self.rehearsal <= 1:
            raise InputError(f"defense.rehearsal={self.rehearsal}: must be a share in [0, 1] of the rows of G_world")
        if min(self.epochs, self.steps_per_epoch) < 1 or not (self.lr > 0 and 0 < self.clip < math.inf):
            raise InputError(
                f"defense.epochs={self.epochs}, steps_per_epoch={self.steps_per_epoch}, lr={self.lr}, "
                f"clip={self.clip}: the first two are at least 1, lr and clip above 0"
            )
        check_training(self.weight_decay, self.patience)

    @property
    def control(self) -> bool:
        """Whether it trains fresh weights on all rows of both worlds: a null control."""
        return self.start == "scratch" and self.rows == "tuning" and self.rehearsal == 1

    def defend(self, owner: ClassifierOwner) -> Defended:
        """Train one model by Opacus; report the spent budget and the noise multiplier."""
        own = self.rows == "own"
        rows = owner.own_rows if own else owner.tuning_rows(self.rehearsal)
        self._check_delta(rows)
        module = PrivateClassifier(
            owner.base() if self.start == "base" else owner.fresh(),
            classes=len(owner.data.label_names),
            lr=self.lr,
            weight_decay=self.weight_decay,
            patience=self.patience,
            stage=self.name,
            private=self.private,
            expected=len(rows.y) / self.steps_per_epoch,
            seed=noise_seed(owner.seed),
        )
        batches = PoissonBatches(rows, self.steps_per_epoch, mask_seed(owner.seed))
        held_out = owner.data.part("validation", owner.world) if own else owner.validation
        owner.fit(module, batches, epochs=self.epochs, validation=held_out)
        spent = epsilon_spent(self.accountant, self.private.noise, self.delta, *self._sampling)
        budget = EPSILON.of(spent) | DELTA.of(self.delta) | NOISE_MULTIPLIER.of(self.private.noise)
        kept = (spent, self.delta) if self.start == "scratch" else None  # the base model's training is not private
        return Defended(module.net, budget | EPOCH.of(module.epoch), rows=rows, budget=kept)

    def defend_pool(self, owner: PoolOwner) -> Pool:
        """Train every member, each within the same budget."""
        own = self.rows == "own"
        samples = owner.samples(own=True) if own else owner.tuning_samples(self.rehearsal)
        for rows in samples:
            self._check_delta(rows)
        held_out = owner.own_validation() if own else owner.validation()
        return owner.fit(
            [(rows.X, rows.y) for rows in samples],
            validation=[(rows.X, rows.y) for rows in held_out],
            initial=owner.base() if self.start == "base" else None,
            epochs=self.epochs,
            patience=self.patience,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=1,  # not read: Poisson batches have no fixed size
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=owner.seed,
            private=self.private,
        )

    def _check_delta(self, rows: Rows) -> None:
        if self.delta >= 1 / len(rows.y):
            raise InputError(
                f"defense.delta={self.delta}: publishing one of the {len(rows.y)} rows would satisfy it; set it below "
                f"{1 / len(rows.y):.1g}"
            )

    @property
    def private(self) -> Private:
        """The clipping, and the noise for the budget; errors as in `noise_multiplier`."""
        return Private(noise_multiplier(self.accountant, self.epsilon, self.delta, *self._sampling), self.clip)

    @property
    def _sampling(self) -> tuple[float, int]:
        """The chance of a row to be in a step's batch, and the number of steps."""
        return 1 / self.steps_per_epoch, self.epochs * self.steps_per_epoch


@cache
def noise_multiplier(accountant: str, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Find the smallest noise within a budget, in units of the clipping norm, by Opacus's search.

    Args:
        accountant: ``prv`` or ``rdp``.
        epsilon, delta: the budget.
        rate: the chance of a row to be in a step's batch, in (0, 1].
        steps: number of steps.

    Raises:
        InputError: no noise is enough (it names the smallest epsilon), the budget is too large for the accountant, or
            Opacus is not installed.
    """
    if accountant == "prv" and epsilon > _MOST_BY_PRV:
        raise InputError(
            f"defense.epsilon={epsilon}: the prv accountant finds no noise for more than {_MOST_BY_PRV}, a budget that "
            "promises nothing; lower it, or set defense.accountant=rdp"
        )
    utils = _opacus("accountants.utils")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus warns that more orders might show that less noise is enough
        try:
            return float(
                utils.get_noise_multiplier(
                    target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant=accountant
                )
            )
        except ValueError:
            least = epsilon_spent(accountant, utils.MAX_SIGMA, delta, rate, steps)
    raise InputError(
        f"defense.epsilon={epsilon} cannot be reached: with defense.delta={delta} and {steps} steps the {accountant} "
        f"accountant certifies {least:.2g} at best, whatever the noise; raise defense.epsilon"
    )


def epsilon_spent(accountant: str, noise: float, delta: float, rate: float, steps: int) -> float:
    """Return the epsilon that Opacus's accountant certifies; arguments as in `noise_multiplier`."""
    counted = _opacus("accountants").create_accountant(accountant)
    counted.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(counted.get_epsilon(delta=delta))


def _opacus(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"opacus.{module}")
    except ModuleNotFoundError:
        raise InputError("defense=dp_sgd needs Opacus: pip install 'fairpriv[dp]'") from None


class PrivateClassifier(Classifier):
    """A classifier that Opacus trains, with loss and optimiser of `Classifier`, without penalty and weights.

    Args:
        private: clipping and noise.
        expected: mean number of rows in a batch, which divides the noised sum of gradients.
        seed: of the noise.

    Raises:
        InputError: a layer for which Opacus cannot compute gradients by row, several processes, or several batches a
            step.
    """

    def __init__(self, *args: Any, private: Private, expected: float, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.private, self.expected, self.seed = private, expected, seed

    @property
    def hyperparameters(self) -> list[float | None]:
        """Hyperparameters of `Classifier`, clipping and noise."""
        return [*super().hyperparameters, self.private.noise, self.private.clip, self.expected, self.seed]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make an AdamW behind Opacus's clipping and noise."""
        if self.trainer.world_size > 1:
            raise InputError(f"defense={self.stage} trains in one process: leave trainer.devices at 1")
        if self.trainer.accumulate_grad_batches != 1:  # a row might be in several batches of one step
            raise InputError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: defense={self.stage} counts "
                "its budget for steps of one batch each: leave it at 1"
            )
        try:
            hooks = _opacus("grad_sample").GradSampleModule(self.net, loss_reduction="sum")
        except NotImplementedError as error:
            raise InputError(f"defense={self.stage}: Opacus cannot clip this model row by row: {error}") from error
        self.hooks = [hooks]  # in a list: no part of this module
        return _opacus("optimizers").DPOptimizer(
            super().configure_optimizers(),
            noise_multiplier=self.private.noise,
            max_grad_norm=self.private.clip,
            expected_batch_size=self.expected,
            generator=torch.Generator(self.device).manual_seed(self.seed),
        )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the sum of the rows' losses; there may be no rows."""
        X, y, _, _ = batch
        # With gradients of the inputs, torch does not warn about hooks without gradients.
        loss = cross_entropy(self.net(X.requires_grad_()), y, reduction="sum")
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"loss became {loss.item()} at step {self.global_step} of {self.stage}")
        self.train_loss.update(loss.detach() / max(1, len(y)))
        return loss

    def on_fit_end(self) -> None:
        """Remove what Opacus has attached to the network."""
        self.hooks.pop().to_standard_module()
