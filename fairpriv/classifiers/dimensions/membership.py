"""Membership privacy: how well an adversary guesses whether a model was trained on a row."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.attacks.membership import RMIA, LabelProbability, LargestProbability, LiRA, MembershipGame
from fairpriv.classifiers.data.game import Deal
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.dimensions.game import Game
from fairpriv.classifiers.dimensions.probe import Subject
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError, how_many
from fairpriv.functional import membership
from fairpriv.metrics import SHARE, Measured, Metric

log = logging.getLogger(__name__)

_LEAST_ROWS = 40  # that are audited, half of them members


@dataclass
class Membership(Game):
    """Membership inference on a pool of models like the subject, with the same defence.

    Every model is trained on half of the audited rows, drawn at random, and is defended. Each of ``victims`` of them is
    attacked in turn, with all others as references. The audited rows are training rows of the world that the subject
    was trained on first. A row is a member if it was trained on there, no matter which rows the defence used later.

    Attacks, unless others are named: LiRA online and offline (Carlini et al., S&P 2022), RMIA offline (Zarifzadeh et
    al., ICML 2024), and as baselines the loss (Yeom et al., CSF 2018) and the largest probability, with one threshold
    for all rows. The first is also measured in every sensitive group and label.
    """

    kind: ClassVar[str] = "membership"
    plays: ClassVar[str] = "membership"

    attacks: dict[str, Any] = field(
        default_factory=lambda: {
            "lira": LiRA(),
            "lira_offline": LiRA(online=False),
            "rmia": RMIA(),
            "loss": LabelProbability(),
            "confidence": LargestProbability(),
        }
    )
    models: int = 64  # trained in one pool
    victims: int = 16  # of them, attacked in turn
    rows: int | None = 1000  # audited, half of them members of each model; null: all training rows of the world
    # False-positive rates at which true-positive rates are reported; null: 1 % and 0.1 %, if there are enough rows.
    fpr: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models < 8 or self.models % 2:
            raise InputError(f"dimensions.{self.name}.models={self.models}: must be even, and at least 8")
        if not 1 <= self.victims <= self.models:
            raise InputError(f"dimensions.{self.name}.victims={self.victims}: must be from 1 to models={self.models}")
        if self.rows is not None and self.rows < _LEAST_ROWS:
            raise InputError(
                f"dimensions.{self.name}.rows={self.rows}: must be at least {_LEAST_ROWS}, or null to audit all"
            )
        rates = self.fpr or []
        if any(not 0 < rate < 1 for rate in rates) or len({f"{100 * rate:g}" for rate in rates}) < len(rates):
            raise InputError(f"dimensions.{self.name}.fpr={self.fpr}: rates lie between 0 and 1, and are all different")
        for key, attack in self.attacks.items():
            if self.models - 1 < attack.needs:
                raise InputError(
                    f"dimensions.{self.name}.models={self.models}: attack {key} needs {attack.needs} reference models "
                    f"and has {self.models - 1}: set models to {attack.needs + 1} or more"
                )

    def measure(self, subject: Subject) -> Measured:
        rows, deals, inside = self._deals(subject)
        member = inside[: self.victims]
        others = int((~member).sum())
        rates = [rate for rate in _RATES if rate * others >= 1] if self.fpr is None else self.fpr
        if rates and min(rates) * others < 1:
            raise InputError(
                f"dimensions.{self.name}.fpr: a false-positive rate of {min(rates):g} needs "
                f"{math.ceil(1 / min(rates))} non-members at least, there are {others}: raise rows or victims"
            )
        models = subject.pool(deals)
        if lost := len(models.diverged):
            raise InputError(f"dimension={self.name}: {how_many(lost, 'model')} diverged: lower training.lr")
        parts = [subject.data.part(part, subject.world) for part in ("rates", "gap")]
        population = parts[0] + parts[1]  # of the same world, and no model was trained on them
        audited, told = (_answers(models, part) for part in (rows, population))
        games = []
        for victim in range(self.victims):
            refs = [m for m in range(self.models) if m != victim]
            asked = audited[[victim]], told[[victim]], audited[refs], told[refs]
            games.append(MembershipGame(rows, population, *asked, inside[refs], subject.seed))
        scores = {
            key: torch.stack([self._scores(key, attack, game) for game in games])
            for key, attack in self.attacks.items()
        }
        found = Measured()
        for name, of_victims in scores.items():
            found |= self._rates(name, of_victims, member, rates)
        found |= self._by_group(scores[self._first], member, rows.s, subject.data.group_names)
        found |= self._by_group(scores[self._first], member, rows.y, subject.data.label_names, "label/")
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
        if n < _LEAST_ROWS:
            raise InputError(
                f"dimension={self.name}: {how_many(n, 'training row')} to audit, {_LEAST_ROWS} are needed: give more"
            )
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

    @property
    def _first(self) -> str:
        return next(iter(self.attacks))

    def _scores(self, key: str, attack: Attack, game: MembershipGame) -> Tensor:
        """Return an attack's scores ``[N]`` of the audited rows; raise InputError if they are none."""
        scores = attack.run(game)
        if not isinstance(scores, Tensor) or scores.shape != game.rows.y.shape or scores.isnan().any():
            what = f"a tensor of shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(
                f"dimensions.{self.name}.attacks.{key}: run must return one score for each of {len(game.rows.y)} rows, "
                f"none of them NaN, and returned {what}"
            )
        return scores.double()

    def _rates(self, attack: str, scores: Tensor, member: Tensor, rates: Sequence[float]) -> Measured:
        label = _label(attack)
        auc = [membership.membership_auc(one, truth) for one, truth in zip(scores, member, strict=True)]
        about = self._about(
            f"{attack}_auc",
            f"{label} AUC",
            f"Chance that {label} scores a member above a non-member; 0.5 is guessing. Mean over victims.",
            guess=0.5,
            headline=attack == self._first,
            column=60 if attack in (self._first, "rmia") else None,
        )
        found = about.of(sum(auc) / len(auc), _interval(scores, member), floor=0.5)
        scores, member = scores.flatten(), member.flatten()
        found |= self._about(
            f"{attack}_accuracy",
            f"{label} accuracy",
            "Balanced accuracy at the best threshold, which favours the attack.",
        ).of(membership.balanced_accuracy_of(scores, member))
        for rate in rates:
            tpr, interval = membership.rates_at(scores, member, rate)
            percent = f"{100 * rate:g} %"
            found |= self._about(
                f"{attack}_tpr_at_{100 * rate:g}",
                f"{label} TPR at {percent}",
                f"Members found where {percent} of non-members are taken for members, all victims' rows together.",
                guess=rate,
            ).of(tpr, interval, floor=rate)
        return found

    def _by_group(
        self, scores: Tensor, member: Tensor, codes: Tensor, names: Sequence[str], kind: str = ""
    ) -> Measured:
        """Measure the AUC of every group, or label, which shows whose membership leaks more."""
        found, attack = Measured(), _label(self._first)
        for code, name in enumerate(names):
            own = codes == code
            if not own.any():
                continue  # worlds of pure groups have rows of one group only
            truth = member[:, own]
            both = truth.any(1) & ~truth.all(1)
            asked, truth = scores[both][:, own], truth[both]
            auc = [membership.membership_auc(*victim) for victim in zip(asked, truth, strict=True)]
            if len(auc) < len(scores):
                log.warning(
                    "dimension=%s: %s%s has no members or no non-members in %d of %d attacked models, which its AUC "
                    "leaves out: raise dimensions.%s.rows",
                    *(self.name, kind.replace("/", " "), name, len(scores) - len(auc), len(scores), self.name),
                )
            if auc:
                key, meaning = f"{self._first}_auc/{kind}{name}", f"The AUC of {attack} among rows of {name}."
                about = self._about(key, f"{attack} AUC, {name}", meaning, guess=0.5)
                found |= about.of(sum(auc) / len(auc), _interval(asked, truth), floor=0.5)
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
_LABELS = {
    "lira": "LiRA",
    "lira_offline": "offline LiRA",
    "rmia": "RMIA",
    "loss": "loss",
    "confidence": "confidence",
}


def _label(attack: str) -> str:
    return _LABELS.get(attack, attack.replace("_", " "))


def _answers(models: Models, rows: Rows) -> Tensor:
    with torch.inference_mode():
        return models.ask(rows.X, rows.s)


def _interval(scores: Tensor, member: Tensor) -> tuple[float, float] | None:
    """Return the interval of the mean AUC of several victims; None for a single one."""
    return membership.mean_auc_interval(scores, member) if len(scores) > 1 else None
