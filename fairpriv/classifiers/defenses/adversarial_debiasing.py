"""Adversarial debiasing by fairlearn's torch backend, against a network that reads groups from scores (Zhang 2018)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from fairlearn.adversarial import AdversarialFairnessClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from fairpriv.classifiers.contract import (
    EPOCH,
    ClassifierOwner,
    Defended,
    Defense,
    PoolOwner,
    check_training,
    refuse_one_group,
)
from fairpriv.classifiers.data.batches import ShuffledBatches
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.classifiers.nets.pool_training import member_seed
from fairpriv.classifiers.nets.stopping import BestEpoch, refuse_few_rows
from fairpriv.errors import InputError, NonFiniteLossError
from fairpriv.functional import equalized_odds_penalty


@dataclass
class AdversarialDebiasing(Defense):
    """Tuning of a network against an adversary that predicts the group from the network's score.

    For equalized odds the adversary also sees the label. After Zhang, Lemoine and Mitchell (2018). Batches are ours;
    every step is fairlearn's own, and the first one uses all rows. Fairlearn's torch backend (0.15) differs from the
    paper in two points. It projects a weight matrix's gradient by the sum of all inner products between rows of the two
    gradients, where the paper has the single inner product of the two (fairlearn's issue 1234); this makes large steps
    against the adversary unstable. And it draws the adversary's first weights from seed 0 for any ``random_state``. A
    pool's members are trained one by one.

    Attributes:
        start: from the base model, or from fresh weights.
        rehearsal: rehearsed rows of G_b per row of G_(1-b), in [0, 1].
        constraints: the fairness constraint; with demographic_parity the adversary does not see the label.
        alpha: weight of the adversary's loss.
        adversary: hidden layer sizes of the adversary.
        adversary_lr: learning rate of the adversary's Adam.
        epochs: largest number of epochs.
        patience: epochs without a smaller objective on the validation rows of both worlds after which it stops; the
            best epoch is kept (`BestEpoch`). None: all epochs are trained, and the last one is kept. The objective is
            that of FFt, cross-entropy plus alpha times the penalty on unequal mean scores (ours), because the
            adversary's own loss falls as it learns, for any network.
        batch_size, lr, weight_decay: of the network's AdamW, on shuffled batches.
    """

    kind: ClassVar[str] = "adversarial_debiasing"

    name: str = "adversarial_debiasing"
    start: Literal["base", "scratch"] = "base"
    rehearsal: float = 0.5
    constraints: Literal["equalized_odds", "demographic_parity"] = "equalized_odds"
    alpha: float = 1.0
    adversary: list[int] = field(default_factory=lambda: [16])
    adversary_lr: float = 0.003
    epochs: int = 40
    patience: int | None = 5
    batch_size: int = 256
    lr: float = 0.003
    weight_decay: float = 0.0001

    features_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.rehearsal <= 1:
            raise InputError(f"defense.rehearsal={self.rehearsal}: must be a share in [0, 1] of the rows of G_world")
        if min(self.epochs, self.batch_size, *self.adversary) < 1 or not (self.lr > 0 and self.adversary_lr > 0):
            raise InputError(
                f"defense.epochs={self.epochs}, batch_size={self.batch_size}, adversary={self.adversary}, "
                f"lr={self.lr}, adversary_lr={self.adversary_lr}: the first three are at least 1, the rates above 0"
            )
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"defense.alpha={self.alpha}: must be a number of at least 0")
        check_training(self.weight_decay, self.patience)

    @property
    def control(self) -> bool:
        """Whether it trains fresh weights on all rows of both worlds: a null control."""
        return self.start == "scratch" and self.rehearsal == 1

    def defend(self, owner: ClassifierOwner) -> Defended:
        owner.two_classes(self.name)
        net = owner.base() if self.start == "base" else owner.fresh()
        rows = owner.tuning_rows(self.rehearsal)
        epoch = self._tune(net, rows, owner.validation, owner.seed)
        return Defended(net, EPOCH.of(epoch), rows=rows)

    def defend_pool(self, owner: PoolOwner) -> Pool:
        pool = owner.base()
        nets = [pool.member(i) for i in range(len(pool))]
        diverged = pool.diverged if self.start == "base" else []
        samples = zip(nets, owner.tuning_samples(self.rehearsal), owner.validation(), strict=True)
        epochs = []
        for i, (net, rows, held_out) in enumerate(samples):
            seed = member_seed(owner.seed, i)
            if self.start == "scratch":
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    for layer in net.children():
                        if isinstance(layer, nn.Linear):
                            layer.reset_parameters()
            try:
                epochs.append(float(self._tune(net, rows, held_out, seed)))
            except NonFiniteLossError:
                net.load_state_dict(pool.member(i).state_dict())
                diverged = sorted({*diverged, i})
                epochs.append(0.0)
        return Pool(Pool.of(nets).weights, diverged, {"epoch": epochs})

    def _tune(self, net: nn.Module, rows: Rows, validation: Rows, seed: int) -> int:
        """Train in place, leave the model in eval mode, return the kept epoch; NonFiniteLossError if it diverges."""
        refuse_few_rows(len(validation.y), self.patience)
        refuse_one_group(rows, "defense.rehearsal", self.rehearsal, f"{self.constraints} between groups")
        classifier = AdversarialFairnessClassifier(
            backend="torch",
            predictor_model=Score(net),
            adversary_model=[layer for size in self.adversary for layer in (size, "relu")],
            predictor_optimizer=lambda model: torch.optim.AdamW(
                model.parameters(), lr=self.lr, weight_decay=self.weight_decay
            ),
            adversary_optimizer="Adam",
            learning_rate=self.adversary_lr,
            constraints=self.constraints,
            alpha=float(self.alpha),
            random_state=seed,
        )
        codes = rows.s.unique()
        groups = torch.searchsorted(codes, rows.s)
        coded = one_hot(groups) if len(codes) > 2 else groups[:, None]
        batches = ShuffledBatches(
            Rows(rows.X, rows.y[:, None].float(), coded.float(), rows.index), self.batch_size, seed
        )
        best, kept = BestEpoch(1, self.patience), copy.deepcopy(net.state_dict())
        with torch.random.fork_rng(devices=[]):  # fairlearn seeds torch's own generator
            X, y, s = (part.numpy() for part in (rows.X, rows.y, rows.s))
            classifier.partial_fit(X, y, classes=codes.new_tensor([0, 1]).numpy(), sensitive_features=s)
            engine = classifier.backendEngine_  # its step is partial_fit without checks, which cost more than the step
            for epoch in range(1, self.epochs + 1):
                for batch in batches:
                    engine.train_step(*batch[:3])
                value = self._objective(net, validation)
                better, stopped = best.update(torch.tensor([0]), torch.tensor([epoch]), value)
                if better or self.patience is None:
                    kept = copy.deepcopy(net.state_dict())
                if stopped:
                    break
            net.load_state_dict(kept)
            classifier.predict(X)  # the last step may have been one too many
        net.eval()
        return epoch if self.patience is None else int(best.epoch)

    @torch.inference_mode()
    def _objective(self, net: nn.Module, rows: Rows) -> Tensor:
        """Return the objective on validation rows, ``[1]``."""
        logits = net.eval()(rows.X)
        target = rows.y if self.constraints == "equalized_odds" else torch.zeros_like(rows.y)
        penalty = equalized_odds_penalty(logits.softmax(-1)[:, 1], target, rows.s)
        return (cross_entropy(logits, rows.y) + self.alpha * penalty)[None]


class Score(nn.Module):
    """P(y=1) ``[N, 1]`` of a network with two logits, in the form that fairlearn expects."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, X: Tensor) -> Tensor:
        """Return P(y=1) of features ``[N, F]``; raise NonFiniteLossError if it is not a probability."""
        logits = self.net(X)
        probs = (logits[:, 1:] - logits[:, :1]).sigmoid()
        if probs.isnan().any():
            raise NonFiniteLossError("adversarial debiasing diverged: a smaller defense.lr or defense.alpha may help")
        return probs
