"""Fair fine-tuning (FFt), and the arms that differ from it only in lambda, rehearsal or start.

After Naidu (arXiv 2606.01719): a model trained on G_b is fine-tuned on G_(1-b) under an equalized-odds constraint, with
rehearsal of G_b. The paper's lambda, rehearsal ratio and schedules are not known to us: those here are ours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairpriv.data.batches import StratifiedBatches
from fairpriv.data.game import Rows
from fairpriv.defenses.defense import Defended, PoolOwner, Victim, refuse_one_group
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gap, equalized_odds_gaps, equalized_odds_penalty
from fairpriv.functional.attacks import answers
from fairpriv.modules.classifier import Classifier, logits, predict
from fairpriv.modules.pool import Dual, Pool

log = logging.getLogger(__name__)


@dataclass
class FairFineTuning:
    """``CE(G_(1-b) and rehearsed G_b) + lambda * sum_y range_g mean score(y, g)`` on stratified batches.

    Attributes:
        start: from the base model, or from scratch.
        rehearsal: rehearsed rows of G_b per row of G_(1-b), in [0, 1].
        penalty: lambda: a number; or ``validation``: of ``grid`` and 0, the one with the smallest equalized-odds gap on
            the validation part among those that keep its balanced accuracy within ``tolerance`` of lambda 0; or
            ``dual``: dual ascent from 0 on ``gap <= epsilon``, measured every epoch on the validation part.
        epochs, steps_per_epoch, batch_size, lr, weight_decay: the same for every arm.
    """

    name: str = "fair_finetune"
    start: Literal["base", "scratch"] = "base"
    rehearsal: float = 0.5
    penalty: float | Literal["validation", "dual"] = "validation"
    grid: list[float] = field(default_factory=list)
    tolerance: float = 0.02
    epsilon: float = 0.05
    dual_rate: float = 0.5
    epochs: int = 20
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
        fixed = [] if isinstance(self.penalty, str) else [self.penalty]
        if not all(0 <= value < math.inf for value in [*fixed, *self.grid]):
            raise InputError("defense.penalty and defense.grid: lambda must be a number of at least 0")
        if self.penalty == "validation" and not self.grid:
            raise InputError("defense.penalty=validation: defense.grid lists no lambda, for example [0.1, 0.3, 1]")
        if self.penalty == "dual" and not (0 < self.dual_rate < math.inf and self.epsilon >= 0):
            raise InputError(
                f"defense.dual_rate={self.dual_rate}, epsilon={self.epsilon}: with defense.penalty=dual the rate is "
                "above 0 and epsilon at least 0"
            )

    def defend(self, victim: Victim) -> Defended:
        """Train the arm; with a penalty, also report lambda and what the penalty would be with no gap at all."""
        rows = self._two_groups(victim.tuning_rows(self.rehearsal))
        held_out = victim.data.part("validation", 0) + victim.data.part("validation", 1)
        if self.penalty == "validation":
            module, metrics = self._choose(victim, rows, held_out)
        else:
            module = self.tune(victim, rows, 0.0 if self.penalty == "dual" else float(self.penalty))
            metrics = {"defense/lambda": module.penalty}
        if self.penalty != 0:
            metrics |= self._bias(module.net, rows, victim.seed)
        return Defended(module.net, metrics)

    def defend_pool(self, owner: PoolOwner) -> Pool:
        """Train the arm for every member at once; a lambda that validation rows decide is each member's own."""
        samples = [self._two_groups(rows) for rows in owner.tuning_samples(self.rehearsal)]
        weights = [self.weights(rows) for rows in samples]
        datasets = [
            (rows.X, rows.y, rows.s) + ((weight,) if weight is not None else ())
            for rows, weight in zip(samples, weights, strict=True)
        ]
        start = owner.base() if self.start == "base" else None

        def fitted(penalty: float, dual: Dual | None = None) -> Pool:
            return self.tune_pool(owner, datasets, start, penalty=penalty, dual=dual)

        if self.penalty == "dual":
            return fitted(0.0, Dual(self.dual_rate, self.epsilon, owner.validation))
        if self.penalty != "validation":
            return fitted(float(self.penalty))
        X, y, s = owner.validation.X, owner.validation.y, owner.validation.s
        pools = [fitted(penalty) for penalty in sorted({0.0, *self.grid})]
        preds = [answers(pool.predict_proba(X)) for pool in pools]
        recalls = [torch.stack([(p == y)[:, y == label].double().mean(1) for label in y.unique()]) for p in preds]
        accuracy = torch.stack(recalls).mean(1)
        gap = torch.stack([equalized_odds_gaps(p, y, s, classes=pools[0].sizes[-1]) for p in preds])
        chosen = gap.masked_fill(accuracy < accuracy[0] - self.tolerance, torch.inf).argmin(0).tolist()
        return Pool.join([pools[which][[member]] for member, which in enumerate(chosen)])

    def weights(self, rows: Rows) -> Tensor | None:
        """Weights of the rows ``[N]`` in the cross-entropy; None: all 1."""
        return None

    def tune(self, victim: Victim, rows: Rows, penalty: float = 0.0, weights: Tensor | None = None) -> Classifier:
        """Train one model on ``rows``; without ``weights``, with its own."""
        module = Classifier(
            victim.base() if self.start == "base" else victim.fresh(),
            classes=len(victim.data.label_names),
            lr=self.lr,
            weight_decay=self.weight_decay,
            penalty=penalty,
            dual_rate=self.dual_rate if self.penalty == "dual" else 0.0,
            epsilon=self.epsilon,
            stage=self.name,
        )
        weights = self.weights(rows) if weights is None else weights
        batches = StratifiedBatches(rows, self.batch_size, self.steps_per_epoch, victim.seed, weights)
        held_out = victim.data.part("validation", 0) + victim.data.part("validation", 1)
        victim.fit(module, batches, epochs=self.epochs, validation=held_out)
        return module

    def tune_pool(
        self, owner: PoolOwner, datasets: Sequence[Sequence[Tensor]], start: Pool | None, **more: Any
    ) -> Pool:
        """Train a pool on ``datasets`` from ``start``, as `fit_pool` does with ``more``."""
        return owner.fit(
            datasets,
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=owner.seed,
            initial=start,
            **more,
        )

    def _two_groups(self, rows: Rows) -> Rows:
        """The rows, where a penalty is defined on them."""
        if self.penalty != 0:
            refuse_one_group(rows, "defense.rehearsal", self.rehearsal, "the equalized-odds penalty")
        return rows

    def _choose(self, victim: Victim, rows: Rows, held_out: Rows) -> tuple[Classifier, dict[str, float]]:
        candidates = {}
        for penalty in sorted({0.0, *self.grid}):
            module = self.tune(victim, rows, penalty)
            preds = predict(module.net, held_out.X)
            recalls = [(preds == y)[held_out.y == y].float().mean() for y in held_out.y.unique()]
            gap = float(equalized_odds_gap(preds, held_out.y, held_out.s, missing="skip"))
            candidates[penalty] = (module, float(torch.stack(recalls).mean()), gap)
        floor = candidates[0.0][1] - self.tolerance
        accurate = [penalty for penalty, (_, accuracy, _) in candidates.items() if accuracy >= floor]
        chosen = min(accurate, key=lambda penalty: candidates[penalty][2])
        metrics = {"defense/lambda": chosen}
        for penalty, (_, accuracy, gap) in candidates.items():
            metrics[f"validation/lambda_{penalty:g}/balanced_accuracy"] = accuracy
            metrics[f"validation/lambda_{penalty:g}/equalized_odds_gap"] = gap
        return candidates[chosen][0], metrics

    @torch.inference_mode()
    def _bias(self, net: nn.Module, rows: Rows, seed: int, draws: int = 20) -> dict[str, float]:
        """The penalty of the trained model, and its mean when groups are permuted within labels: no gap, only noise."""
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
        return {"fairness/penalty": penalty, "fairness/penalty_at_zero_gap": zero}
