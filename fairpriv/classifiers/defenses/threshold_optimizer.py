"""Fairlearn's ThresholdOptimizer, which sets thresholds per group after training (Hardt et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import fairlearn.postprocessing
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from fairpriv.classifiers.contract import ClassifierOwner, Defended, Defense, PoolOwner, refuse_one_group
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import scores
from fairpriv.classifiers.nets.models import Models, draw
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.errors import InputError
from fairpriv.undefended import Undefended

Rules = Mapping[int, Mapping[str, Any]]  # by group: fairlearn's interpolation of two threshold operations


@dataclass
class ThresholdOptimizer(Defense):
    """Thresholds on a trained network's scores, fitted to the rows that FFt is tuned on.

    The result is the network behind its thresholds. It needs the sensitive attribute of every row that it answers, and
    shows no score; if a group has two thresholds, it draws one of them for every answer. Attacks get the chance of the
    answer 1, which anyone can learn by asking often enough; accuracies and rates are those of drawn answers. There is
    no single network, so attacks that read weights are left out.

    Attributes:
        estimator: the defence whose network is post-processed; ``none``: the base model, trained on G_b.
        rehearsal: rows of G_b per row of G_(1-b) among those that thresholds are fitted to, in [0, 1].
        constraints: the quantity that is to be equal in all groups.
        objective: the quantity that is maximised under these constraints.
    """

    kind: ClassVar[str] = "threshold_optimizer"

    name: str = "threshold_optimizer"
    estimator: Defense = field(default_factory=Undefended)
    rehearsal: float = 0.5
    constraints: Literal["equalized_odds", "demographic_parity"] = "equalized_odds"
    objective: Literal["accuracy_score", "balanced_accuracy_score"] = "accuracy_score"

    one_network: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.rehearsal <= 1:
            raise InputError(f"defense.rehearsal={self.rehearsal}: must be a share in [0, 1] of the rows of G_world")
        if not (isinstance(self.estimator, Defense) and self.estimator.one_network):
            raise InputError(
                f"defense.estimator={getattr(self.estimator, 'name', self.estimator)} leaves no single classifier, "
                "whose scores could have thresholds: choose none, rehearsal, scratch or another that trains a network"
            )

    @property
    def control(self) -> bool:
        """Whether its estimator is a null control and its thresholds are fitted to all rows of both worlds."""
        return self.estimator.control and self.rehearsal == 1

    @property
    def answers_only(self) -> bool:
        """Whether it tells labels: it does, drawn by chance."""
        return True

    def refuse_inputs(self) -> None:
        """Refuse the inputs that its estimator refuses."""
        self.estimator.refuse_inputs()

    def defend(self, owner: ClassifierOwner) -> Defended:
        owner.two_classes(self.name)
        before = self.estimator.defend(owner)
        net = cast(nn.Module, before.net)
        rows = owner.tuning_rows(self.rehearsal)
        rules = self._rules(scores(net, rows.X), rows)
        generator = torch.Generator().manual_seed(owner.seed)

        def predict(asked: Rows) -> Tensor:
            return draw(chances(rules, scores(net, asked.X), asked.s), generator)

        return Defended(None, before.measured, predict, before.rows)

    def defend_pool(self, owner: PoolOwner) -> Thresholded:
        """Fit thresholds of its own for every member."""
        pool = cast(Pool, self.estimator.defend_pool(owner))
        samples = enumerate(owner.tuning_samples(self.rehearsal))
        return Thresholded(pool, [self._rules(pool[[i]].predict_proba(rows.X)[0], rows) for i, rows in samples])

    def _rules(self, scored: Tensor, rows: Rows) -> Rules:
        """Fit fairlearn's thresholds to scores ``[N]`` of rows."""
        refuse_one_group(rows, "defense.rehearsal", self.rehearsal, f"{self.constraints} between groups")
        optimizer = fairlearn.postprocessing.ThresholdOptimizer(
            estimator=Scores(),
            constraints=self.constraints,
            objective=self.objective,
            prefit=True,
            predict_method="predict_proba",
        )
        try:
            optimizer.fit(scored.double().numpy()[:, None], rows.y.numpy(), sensitive_features=rows.s.numpy())
        except ValueError as error:  # a group whose rows have one label
            raise InputError(f"defense={self.name}: {' '.join(str(error).split())}") from error
        return optimizer.interpolated_thresholder_.interpolation_dict


class Scores(BaseEstimator):
    """An estimator for fairlearn whose only feature is the score, so that there is nothing to train."""

    def fit(self, X: Any, y: Any) -> Scores:
        """Do nothing, since there is nothing to learn."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return both classes' probabilities ``[N, 2]`` for scores ``[N, 1]``."""
        return np.hstack([1 - X, X])


def chances(rules: Rules, scored: Tensor, groups: Tensor) -> Tensor:
    """Return the chance ``[N]`` of the answer 1 at scores and groups ``[N]``, which fairlearn does not expose.

    Raises:
        InputError: a group that the thresholds were not fitted to.
    """
    chance = np.zeros(len(scored))
    for group in groups.unique().tolist():
        if group not in rules:
            raise InputError(f"group number {group} has no thresholds: no row of it is among those they are fitted to")
        rule, here = rules[group], (groups == group).numpy()
        score = scored[groups == group].double().numpy()
        chance[here] = rule["p0"] * rule["operation0"](score) + rule["p1"] * rule["operation1"](score)
        if "p_ignore" in rule:
            chance[here] += rule["p_ignore"] * (rule["prediction_constant"] - chance[here])
    return torch.from_numpy(chance.clip(0, 1)).float()


class Thresholded(Models):
    """M networks, each with its own thresholds."""

    needs_groups: ClassVar[bool] = True
    randomized: ClassVar[bool] = True

    def __init__(self, networks: Pool, rules: Sequence[Rules]) -> None:
        self.networks, self.rules = networks, rules
        self.diverged, self.told = networks.diverged, networks.told

    def __len__(self) -> int:
        return len(self.networks)

    def __getitem__(self, index: Sequence[int]) -> Thresholded:
        return Thresholded(self.networks[index], [self.rules[i] for i in index])

    def predict_proba(self, X: Tensor, *groups: Tensor) -> Tensor:
        """Return every member's chance of the answer 1, ``[M, N]``, at features ``[N, F]`` and groups ``[N]``."""
        scored = self.networks.predict_proba(X)
        return torch.stack([chances(rules, s, *groups) for rules, s in zip(self.rules, scored, strict=True)])
