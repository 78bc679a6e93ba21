"""Membership privacy: how well an adversary guesses whether a model was trained on a row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from scipy import stats
from torch import Tensor

from fairpriv.classifiers.data.game import Deal
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.dimensions.probe import Probe, Subject
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError
from fairpriv.functional import membership
from fairpriv.metrics import SHARE, Measured, Metric

log = logging.getLogger(__name__)


@dataclass
class Membership(Probe):
    """Membership inference on a pool of models like the subject, with the same defence.

    Every model is trained on half of the audited rows, drawn at random, and is defended. Each of ``victims`` of them is
    attacked in turn, with all others as references. The audited rows are training rows of the world that the subject
    was trained on first. A row is a member if it was trained on there, no matter which rows the defence used later.

    Attacks: LiRA online and offline (Carlini et al., S&P 2022), RMIA offline (Zarifzadeh et al., ICML 2024), and as
    baselines the loss (Yeom et al., CSF 2018) and the largest probability, with one threshold for all rows.
    """

    kind: ClassVar[str] = "membership"
    trains: ClassVar[bool] = True

    name: str
    models: int = 64  # trained in one pool
    victims: int = 16  # of them, attacked in turn
    rows: int | None = 1000  # audited, half of them members of each model; null: all training rows of the world
    # LiRA's deviation: of each row's own references, or one for all rows, the paper's advice below 64 models.
    variance: Literal["row", "global"] = "global"
    # False-positive rates at which true-positive rates are reported; null: 1 % and 0.1 %, if there are enough rows.
    fpr: list[float] | None = None

    def __post_init__(self) -> None:
        if self.models < 8 or self.models % 2:
            raise InputError(f"dimensions.{self.name}.models={self.models}: must be even, and at least 8")
        if not 1 <= self.victims <= self.models:
            raise InputError(f"dimensions.{self.name}.victims={self.victims}: must be from 1 to models={self.models}")
        if self.variance not in ("row", "global"):
            raise InputError(f"dimensions.{self.name}.variance={self.variance}: must be row or global")
        if any(not 0 < rate < 1 for rate in self.fpr or []):
            raise InputError(f"dimensions.{self.name}.fpr={self.fpr}: rates lie between 0 and 1")

    def measure(self, subject: Subject) -> Measured:
        rows, deals, inside = self._deals(subject)
        models = subject.pool(deals)
        if len(models.diverged):
            raise InputError(f"dimension={self.name}: {len(models.diverged)} models diverged: lower training.lr")
        parts = [subject.data.part(part, subject.world) for part in ("rates", "gap")]
        population = parts[0] + parts[1]  # of the same world, and no model was trained on them
        audited, others = (_answers(models, part) for part in (rows, population))
        scores = self._scores(audited, others, rows.y, population.y, inside)
        member = inside[: self.victims]
        least = 1 / int((~member).sum())
        rates = [rate for rate in _RATES if rate >= least] if self.fpr is None else self.fpr
        found = Measured()
        for name, of_victims in scores.items():
            found |= self._rates(name, of_victims, member, rates)
        found |= self._by_group(scores["lira"], member, rows.s, subject.data.group_names)
        found |= self._by_group(scores["lira"], member, rows.y, subject.data.label_names, "label/")
        return found | self._allowed(subject.defended.budget, rates) if subject.defended.budget else found

    def _deals(self, subject: Subject) -> tuple[Rows, list[Deal], Tensor]:
        """Return the audited rows, each model's deal, and which model has which row, ``[M, N]``."""
        data, world = subject.data, subject.world
        audited, other = data.part("train", world), data.part("train", 1 - world)
        held_out = [data.part("validation", b) for b in (0, 1)]
        generator = torch.Generator().manual_seed(subject.seed)
        if self.rows is not None and self.rows < len(audited.y):
            chosen = torch.randperm(len(audited.y), generator=generator)[: self.rows]
            audited = audited.take(chosen.sort().values)
        n = len(audited.y)
        if n < 40:
            raise InputError(f"dimension={self.name}: {n} training rows to audit, 40 are needed: give more data")
        half = audited + other + held_out[0] + held_out[1]
        starts = [0, n, n + len(other.y), n + len(other.y) + len(held_out[0].y), len(half.y)]
        others, *validation = (torch.arange(a, b) for a, b in pairwise(starts[1:]))
        # Halves come in pairs, so that every row is a member of exactly half of the models.
        inside = torch.zeros(self.models, n, dtype=torch.bool)
        for pair in range(0, self.models, 2):
            inside[pair, torch.randperm(n, generator=generator)[: n // 2]] = True
            inside[pair + 1] = ~inside[pair]
        deals = []
        for member in inside:
            own = member.nonzero()[:, 0]
            tuned_on = others[torch.randperm(len(others), generator=generator)[: len(own)]]
            # The first world of a deal is the one that a model is trained on first.
            deals.append(Deal(half, (own, tuned_on), (validation[world], validation[1 - world])))
        return audited, deals, inside

    def _scores(
        self, audited: Tensor, others: Tensor, y: Tensor, population_y: Tensor, inside: Tensor
    ) -> dict[str, Tensor]:
        """Return every attack's scores ``[victims, N]`` of the audited rows."""
        own = membership.label_probabilities(audited, y)
        beside = membership.label_probabilities(others, population_y)
        confident = membership.confidences(own)
        greatest = audited.amax(2) if audited.dim() == 3 else torch.maximum(audited, 1 - audited)
        found: dict[str, list[Tensor]] = {name: [] for name in _ATTACKS}
        for victim in range(self.victims):
            refs = [m for m in range(self.models) if m != victim]
            given = confident[[victim]], confident[refs], inside[refs]
            found["lira"].append(membership.lira_scores(*given, variance=self.variance))
            found["lira_offline"].append(membership.lira_scores(*given, online=False, variance=self.variance))
            found["rmia"].append(
                membership.rmia_scores(own[[victim]], own[refs], inside[refs], beside[[victim]], beside[refs])
            )
            found["loss"].append(own[[victim]])
            found["confidence"].append(greatest[[victim]].double())
        return {name: torch.cat(scores) for name, scores in found.items()}

    def _rates(self, attack: str, scores: Tensor, member: Tensor, rates: Sequence[float]) -> Measured:
        label = _ATTACKS[attack]
        auc = [membership.membership_auc(one, truth) for one, truth in zip(scores, member, strict=True)]
        about = self._about(
            f"{attack}_auc",
            f"{label} AUC",
            f"Chance that {label} scores a member above a non-member; 0.5 is guessing. Mean over victims.",
            headline=attack == "lira",
            column=60 if attack in ("lira", "rmia") else None,
        )
        found = about.of(sum(auc) / len(auc), _t_interval(auc), floor=0.5)
        scores, member = scores.flatten(), member.flatten()
        found |= self._about(
            f"{attack}_accuracy",
            f"{label} accuracy",
            "Balanced accuracy at the best threshold, which favours the attack.",
        ).of(membership.balanced_accuracy_of(scores, member))
        for rate in rates:
            try:
                tpr, interval = membership.rates_at(scores, member, rate)
            except ValueError as error:
                raise InputError(f"dimensions.{self.name}.fpr: {error}: raise rows or victims") from None
            percent = f"{100 * rate:g} %"
            found |= self._about(
                f"{attack}_tpr_at_{100 * rate:g}",
                f"{label} TPR at {percent}",
                f"Members found where {percent} of non-members are taken for members, all victims' rows together.",
            ).of(tpr, interval, floor=rate)
        return found

    def _by_group(
        self, scores: Tensor, member: Tensor, codes: Tensor, names: Sequence[str], kind: str = ""
    ) -> Measured:
        """Measure the AUC of every group, or label, which shows whose membership leaks more."""
        found = Measured()
        for code, name in enumerate(names):
            own = codes == code
            if not own.any():
                continue  # worlds of pure groups have rows of one group only
            auc = [
                membership.membership_auc(one[own], truth[own])
                for one, truth in zip(scores, member, strict=True)
                if truth[own].any() and not truth[own].all()
            ]
            if len(auc) < len(scores):
                log.warning(
                    "dimension=%s: %s%s has no members or no non-members in %d of %d attacked models, which its AUC "
                    "leaves out: raise dimensions.%s.rows",
                    *(self.name, kind.replace("/", " "), name, len(scores) - len(auc), len(scores), self.name),
                )
            if auc:
                about = self._about(f"lira_auc/{kind}{name}", f"LiRA AUC, {name}", f"LiRA's AUC among rows of {name}.")
                found |= about.of(sum(auc) / len(auc), _t_interval(auc), floor=0.5)
        return found

    def _allowed(self, budget: tuple[float, float], rates: Sequence[float]) -> Measured:
        """Return what differential privacy allows any attack, to be read beside what ours find."""
        found = Measured()
        for rate in rates:
            found |= self._about(
                f"tpr_bound_at_{100 * rate:g}",
                f"bound on TPR at {100 * rate:g} %",
                f"The largest TPR at {100 * rate:g} % of any attack, by the (epsilon, delta) of the whole training "
                "(Kairouz et al., ICML 2015), which protects even from an adversary who knows all other rows.",
            ).of(membership.dp_true_positive_bound(*budget, rate))
        return found

    def _about(self, key: str, label: str, meaning: str, **more: object) -> Metric:
        return self.metric(key, label, meaning, unit=SHARE, better="less", low=0.0, high=1.0, **more)


_RATES = (0.01, 0.001)  # false-positive rates that are common in the literature
_ATTACKS = {
    "lira": "LiRA",
    "lira_offline": "offline LiRA",
    "rmia": "RMIA",
    "loss": "loss",
    "confidence": "confidence",
}


def _answers(models: Models, rows: Rows) -> Tensor:
    with torch.inference_mode():
        return models.ask(rows.X, rows.s)


def _t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % t interval of the mean over victims, within [0, 1]; None for a single one."""
    if len(values) < 2:
        return None
    sample = torch.tensor(values, dtype=torch.double)
    half = float(stats.t.ppf(0.975, len(values) - 1) * sample.std() / len(values) ** 0.5)
    mean = float(sample.mean())
    return max(0.0, mean - half), min(1.0, mean + half)
