"""Fair fine-tuning (FFt), and the arms that differ from it only in lambda, rehearsal or start.

After Naidu (arXiv 2606.01719): a model trained on G_b is fine-tuned on G_(1-b) under an equalized-odds constraint, with
rehearsal of G_b. Lambda, rehearsal ratio and schedules are ours, because we do not know those of the paper.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fairpriv.classifiers.contract import (
    EPOCH,
    ClassifierOwner,
    Defended,
    Defense,
    PoolOwner,
    check_training,
    refuse_one_group,
)
from fairpriv.classifiers.data.batches import StratifiedBatches
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import Classifier, logits, predict
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.classifiers.nets.pool_training import Dual
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gap, equalized_odds_penalty
from fairpriv.functional.attacks import answers
from fairpriv.metrics import SHARE, YES_OR_NO, Measured, Metric

log = logging.getLogger(__name__)

LAMBDA = Metric("defense/lambda", "lambda", "Weight of the equalized-odds penalty.", low=0.0)
CONSTRAINT_MET = Metric(
    "defense/constraint_met",
    "constraint met",
    "Whether the epoch that is kept has an equalized-odds gap of at most defense.epsilon on the validation rows.",
    YES_OR_NO,
    low=0.0,
    high=1.0,
)
VALIDATION_ACCURACY = Metric(
    "validation/lambda_{penalty}/balanced_accuracy",
    "balanced accuracy at lambda {penalty}",
    "On the validation rows, by which lambda is chosen.",
    SHARE,
    low=0.0,
    high=1.0,
)
VALIDATION_GAP = Metric(
    "validation/lambda_{penalty}/equalized_odds_gap",
    "equalized-odds gap at lambda {penalty}",
    "On the validation rows, by which lambda is chosen.",
    SHARE,
    low=0.0,
    high=1.0,
    magnitude=True,
)
PENALTY = Metric(
    "fairness/penalty",
    "equalized-odds penalty",
    "The penalty of the trained model in batches of training rows: the sum over labels of the range over groups of the "
    "mean probability.",
    better="less",
    low=0.0,
)
PENALTY_AT_ZERO_GAP = Metric(
    "fairness/penalty_at_zero_gap",
    "penalty at zero gap",
    "The same with groups permuted within labels: what small batches show where there is no gap.",
    low=0.0,
)


@dataclass
class FairFineTuning(Defense):
    """Tuning on ``CE(G_(1-b) and rehearsed G_b) + lambda * sum_y range_g mean score(y, g)``, in stratified batches.

    Attributes:
        start: from the base model, or from scratch.
        rehearsal: rehearsed rows of G_b per row of G_(1-b), in [0, 1].
        penalty: lambda. A number; or ``validation``: chosen from ``grid`` and 0 by the rule of `choose`; or ``dual``:
            dual ascent from 0 on ``gap <= epsilon``, measured every epoch on the validation rows. Among the epochs that
            meet this constraint, the one with the smallest cross-entropy is kept. If there is none, the one with the
            smallest gap is kept, and ``defense/constraint_met`` is 0. The gap on other rows may be larger than epsilon.
        grid_epochs: with ``validation``, lambda is chosen after so many epochs of every candidate, and the chosen one
            alone is tuned in full, from the start: one round of successive halving (Jamieson and Talwalkar, AISTATS
            2016). None: every candidate is tuned in full.
        tolerance: with ``validation``, largest loss of balanced accuracy against lambda 0.
        epochs: largest number of epochs.
        patience: epochs without a smaller objective on the validation rows of both worlds after which tuning stops and
            the best epoch is kept, see `Classifier`; None: all epochs are trained, as always under dual ascent.
        steps_per_epoch, batch_size, lr, weight_decay: the same for every arm.
    """

    kind: ClassVar[str] = "fair_finetune"

    name: str = "fair_finetune"
    start: Literal["base", "scratch"] = "base"
    rehearsal: float = 0.5
    penalty: float | Literal["validation", "dual"] = "validation"
    grid: list[float] = field(default_factory=list)
    grid_epochs: int | None = field(default=None, metadata={"outcome": "unless None"})
    tolerance: float = 0.02
    epsilon: float = 0.05
    dual_rate: float = 0.5
    epochs: int = 40
    patience: int | None = 5
    steps_per_epoch: int = 10
    batch_size: int = 4096
    lr: float = 0.003
    weight_decay: float = 0.0001

    def __post_init__(self) -> None:
        if not 0 <= self.rehearsal <= 1:
            raise InputError(f"defense.rehearsal={self.rehearsal}: must be a share in [0, 1] of the rows of G_world")
        if min(self.epochs, self.steps_per_epoch, self.batch_size) < 1 or not self.lr > 0:
            raise InputError(
                f"defense.epochs={self.epochs}, steps_per_epoch={self.steps_per_epoch}, batch_size={self.batch_size}, "
                f"lr={self.lr}: the first three are at least 1, lr is above 0"
            )
        check_training(self.weight_decay, self.patience)
        if not self.tolerance >= 0:
            raise InputError(f"defense.tolerance={self.tolerance}: a loss of balanced accuracy, at least 0")
        fixed = [] if isinstance(self.penalty, str) else [self.penalty]
        if not all(0 <= value < math.inf for value in [*fixed, *self.grid]):
            raise InputError("defense.penalty and defense.grid: lambda must be a number of at least 0")
        if self.penalty == "validation" and not self.grid:
            raise InputError("defense.penalty=validation: defense.grid lists no lambda, for example [0.1, 0.3, 1]")
        if self.grid_epochs is not None and not 1 <= self.grid_epochs <= self.epochs:
            raise InputError(
                f"defense.grid_epochs={self.grid_epochs}: must be from 1 to defense.epochs={self.epochs}, or null to "
                "tune every candidate in full"
            )
        if self.grid_epochs is not None and self.penalty != "validation":
            raise InputError(
                f"defense.grid_epochs={self.grid_epochs}: is read with defense.penalty=validation, not {self.penalty}"
            )
        if self.penalty == "dual" and not (0 < self.dual_rate < math.inf and self.epsilon >= 0):
            raise InputError(
                f"defense.dual_rate={self.dual_rate}, epsilon={self.epsilon}: with defense.penalty=dual the rate is "
                "above 0 and epsilon at least 0"
            )

    @property
    def control(self) -> bool:
        """Whether it trains fresh weights on all rows of both worlds: a null control."""
        return self.start == "scratch" and self.rehearsal == 1

    def defend(self, owner: ClassifierOwner) -> Defended:
        """Train the arm; with a penalty, also report lambda, the penalty, and its value without any gap."""
        rows = self._two_groups(owner.tuning_rows(self.rehearsal))
        if self.penalty == "validation":
            module, measured = self._choose(owner, rows)
        else:
            module = self.tune_on(owner, rows, 0.0 if self.penalty == "dual" else float(self.penalty))
            measured = LAMBDA.of(module.penalty)
        measured |= EPOCH.of(module.epoch)
        if self.penalty == "dual":
            measured |= CONSTRAINT_MET.of(module.constraint_met)
            if not module.constraint_met:
                log.warning(
                    "defense.penalty=dual: no epoch has an equalized-odds gap of at most defense.epsilon=%g on the "
                    "validation rows; the one with the smallest is kept (defense/constraint_met = 0)",
                    self.epsilon,
                )
        if self.penalty != 0:
            measured |= self._bias(module.net, rows, owner.seed)
        return Defended(module.net, measured, rows=rows)

    def defend_pool(self, owner: PoolOwner) -> Pool:
        """Train the arm for every member at once; if validation rows decide lambda, each member has its own."""
        samples = [self._two_groups(rows) for rows in owner.tuning_samples(self.rehearsal)]
        weights = [self.weights(rows) for rows in samples]
        datasets = [
            (rows.X, rows.y, rows.s) + ((weight,) if weight is not None else ())
            for rows, weight in zip(samples, weights, strict=True)
        ]
        start = owner.base() if self.start == "base" else None

        def fitted(penalty: float, **more: Any) -> Pool:
            return self.tune_pool(owner, datasets, start, penalty=penalty, **more)

        if self.penalty == "dual":
            return fitted(0.0, dual=Dual(self.dual_rate, self.epsilon))
        if self.penalty != "validation":
            return fitted(float(self.penalty))
        grid, held_out = sorted({0.0, *self.grid}), owner.validation()
        pools = [fitted(penalty, epochs=self.grid_epochs or self.epochs) for penalty in grid]
        members: dict[float, list[int]] = {penalty: [] for penalty in grid}
        for member, rows in enumerate(held_out):
            preds = [answers(pool[[member]].predict_proba(rows.X))[0] for pool in pools]
            members[choose(dict(zip(grid, preds, strict=True)), rows, self.tolerance)[0]].append(member)

        def tuned(pool: Pool, penalty: float) -> Pool:
            """Return the members that have chosen this lambda, tuned in full."""
            own = members[penalty]
            if self.grid_epochs is None:
                return pool[own]
            return self.tune_pool(
                owner,
                [datasets[i] for i in own],
                start[own] if start is not None else None,
                penalty=penalty,
                numbers=own,
                validation=[(held_out[i].X, held_out[i].y, held_out[i].s) for i in own],
            )

        joined = Pool.join([tuned(pool, lam) for lam, pool in zip(grid, pools, strict=True) if members[lam]])
        return joined[torch.tensor([i for lam in grid for i in members[lam]]).argsort()]

    def weights(self, rows: Rows) -> Tensor | None:
        """Return the weights of the rows ``[N]`` in the cross-entropy; None: all 1."""
        return None

    def tune_on(
        self, owner: ClassifierOwner, rows: Rows, penalty: float = 0.0, epochs: int | None = None
    ) -> Classifier:
        """Train one model on ``rows``, with their `weights`; ``epochs`` None: in full."""
        weights = self.weights(rows)
        return self.tune_for(owner, rows, weights, epochs or self.epochs, penalty=penalty, patience=self.patience)

    def tune_for(
        self,
        owner: ClassifierOwner,
        rows: Rows,
        weights: Tensor | None,
        epochs: int,
        *,
        penalty: float = 0.0,
        patience: int | None = None,
    ) -> Classifier:
        """Train one model on weighted ``rows`` for these ``epochs``, or until ``patience`` stops it."""
        module = Classifier(
            owner.base() if self.start == "base" else owner.fresh(),
            classes=len(owner.data.label_names),
            lr=self.lr,
            weight_decay=self.weight_decay,
            penalty=penalty,
            patience=patience,
            dual_rate=self.dual_rate if self.penalty == "dual" else 0.0,
            epsilon=self.epsilon,
            stage=f"{self.name}/lambda={penalty:g}" if self.penalty == "validation" else self.name,  # a curve for each
        )
        try:
            batches = StratifiedBatches(rows, self.batch_size, self.steps_per_epoch, owner.seed, weights)
        except ValueError as error:
            raise InputError(f"defense.batch_size={self.batch_size}: {error}") from None
        owner.fit(module, batches, epochs=epochs, validation=owner.validation)
        return module

    def tune_pool(
        self, owner: PoolOwner, datasets: Sequence[Sequence[Tensor]], start: Pool | None, **more: Any
    ) -> Pool:
        """Train a pool on ``datasets`` from ``start``, as `fit_pool` does with ``more``."""
        settings: dict[str, Any] = {
            "epochs": self.epochs,
            "patience": self.patience,
            "validation": [(rows.X, rows.y, rows.s) for rows in owner.validation()],
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "seed": owner.seed,
            "initial": start,
        }
        return owner.fit(datasets, **settings | more)

    def _two_groups(self, rows: Rows) -> Rows:
        """Return the rows; raise InputError if there is a penalty and it is undefined on them."""
        if self.penalty != 0:
            refuse_one_group(rows, "defense.rehearsal", self.rehearsal, "the equalized-odds penalty")
        return rows

    def _choose(self, owner: ClassifierOwner, rows: Rows) -> tuple[Classifier, Measured]:
        held_out = owner.validation
        modules = {
            penalty: self.tune_on(owner, rows, penalty, self.grid_epochs) for penalty in sorted({0.0, *self.grid})
        }
        preds = {penalty: predict(module.net, held_out.X) for penalty, module in modules.items()}
        chosen, table = choose(preds, held_out, self.tolerance)
        measured = LAMBDA.of(chosen)
        for penalty, (accuracy, gap) in table.items():
            given = f"{penalty:g}"
            measured |= VALIDATION_ACCURACY.named(penalty=given).of(accuracy) | VALIDATION_GAP.named(penalty=given).of(
                gap
            )
        return (modules[chosen] if self.grid_epochs is None else self.tune_on(owner, rows, chosen)), measured

    @torch.inference_mode()
    def _bias(self, net: nn.Module, rows: Rows, seed: int, draws: int = 20) -> Measured:
        """Measure the trained model's penalty, and its mean with groups permuted within labels: noise without a gap."""
        batches = StratifiedBatches(rows, self.batch_size, draws, seed + 1)
        seen, at_zero = [], []
        for X, y, s, _ in batches:
            probs = logits(net, X).softmax(-1)
            seen.append(equalized_odds_penalty(probs, y, s))
            shuffled = s.clone()
            for label in y.unique():
                index = torch.nonzero(y == label).flatten()
                shuffled[index] = s[index[torch.randperm(len(index), generator=batches.generator)]]
            at_zero.append(equalized_odds_penalty(probs, y, shuffled))
        penalty, zero = float(torch.stack(seen).mean()), float(torch.stack(at_zero).mean())
        log.info("penalty %.4f after training; batches of this size would show %.4f with no gap at all", penalty, zero)
        return PENALTY.of(penalty) | PENALTY_AT_ZERO_GAP.of(zero)


def choose(
    preds: Mapping[float, Tensor], rows: Rows, tolerance: float
) -> tuple[float, dict[float, tuple[float, float]]]:
    """Choose lambda by validation rows.

    Among the lambdas whose balanced accuracy is within ``tolerance`` of that of lambda 0, choose the one with the
    smallest equalized-odds gap; at equal gaps, up to rounding, the smallest lambda. If a cell has few rows, a single
    score close to one half can change the choice. Processors round differently, so the same config may choose another
    lambda on another processor.

    Args:
        preds: by lambda, including 0, predicted labels ``[N]``.
        rows: the validation rows.
        tolerance: at least 0.

    Returns:
        The chosen lambda; and by lambda the balanced accuracy and the gap.
    """
    table = {}
    for penalty, answered in preds.items():
        recalls = [(answered == y)[rows.y == y].double().mean() for y in rows.y.unique()]
        gap = equalized_odds_gap(answered, rows.y, rows.s, missing="skip")
        table[penalty] = (float(torch.stack(recalls).mean()), float(gap))
    floor = table[0.0][0] - tolerance
    gaps = {penalty: gap for penalty, (accuracy, gap) in table.items() if accuracy >= floor}
    return min(penalty for penalty, gap in gaps.items() if gap <= min(gaps.values()) + 1e-9), table
