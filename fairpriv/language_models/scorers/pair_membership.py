"""Membership of training pairs: how well it can be told which pairs a language model was tuned on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.functional.membership import membership_auc, min_k_plus_plus, rates_at
from fairpriv.functional.verdicts import auc
from fairpriv.language_models.data.pairs import Pairs
from fairpriv.language_models.data.tokens import encode, pad_token_id
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.engines.log_likelihood import token_likelihoods
from fairpriv.language_models.scorers.scorer import SCORE, Scored, Scorer, Subject, mean_interval
from fairpriv.metrics import SHARE, Measured, Metric

LEAST = 20  # pairs of each kind, below which an interval of the AUC says nothing

AUC = Metric(
    "{attack}_auc",
    "{attack} AUC",
    "Chance that a pair that is trained on scores above one that is not, by {attack}; 0.5 is guessing.",
    SHARE,
    "less",
    0.0,
    1.0,
    guess=0.5,
)
TPR = Metric(
    "{attack}_tpr_at_{percent}",
    "{attack} TPR at {percent} %",
    "Trained-on pairs found where {percent} % of the others are taken for such, by {attack}.",
    SHARE,
    "less",
    0.0,
    1.0,
)
PAIRS = Metric("{which}", "{which}", "Pairs.", "pairs", low=0.0)
LOSS = Metric(
    "{which}_loss",
    "{which} loss",
    "Mean over {which} pairs of the mean loss of the response's tokens, as training computes it.",
    "nats per token",
    "less",
    0.0,
)


@dataclass
class PairMembership(Scorer):
    """Attacks that tell pairs that the model is trained on from pairs of the same source that it is not.

    - ``loss``: the mean loss of the response's tokens, as training computes it; lower is more like a member (Yeom et
      al., CSF 2018).
    - ``min_k``: Min-K%++ (Zhang et al., ICLR 2025, arXiv 2404.02936): the mean, over the share ``k`` of tokens where it
      is least, of the token's log-probability in standard deviations above what the model expects there. Here of the
      response's tokens only, since no others are trained on.
    - ``difference``: the untouched model's loss minus this one's, which takes out how easy a pair is in itself
      (Mireshghallah et al., EMNLP 2022). An untouched model has none.

    Held-out pairs are what ``dataset.samples`` leaves of the same dimensions and split, mixed alike; beside a defence
    that trains on preferences, of those that stand against another. Of copies one is attacked, since intervals take
    pairs for independent. Where a defence trains on nothing these are the pairs that others are trained on: AUCs are
    then about 0.5, or the two kinds differ without any model.

    Metrics of each attack: ``<attack>_auc`` with the interval of method 5 of Newcombe (2006), and
    ``<attack>_tpr_at_1`` at 1 % false positives with the exact one of Clopper and Pearson (1934), where so many pairs
    are held out; ``members`` and ``held_out``, and the mean loss of each with Student's interval over pairs. That of
    held-out pairs is a validation loss, by which a learning rate can be chosen. The headline ``score`` (ours) is
    2 (1 - AUC) of ``difference``, at most 1: 1 where it is not better than guessing, as for an untouched model, and 0
    where every pair is told.

    Attributes:
        pairs: of each kind, at most; None: all.
        k: share of a response's tokens that Min-K%++ looks at.
        fpr: false-positive rates at which true-positive ones are told; None: 0.01, if so many pairs can tell it.
    """

    kind: ClassVar[str] = "pair_membership"

    pairs: int | None = 500
    k: float = 0.2
    fpr: list[float] | None = None

    def __post_init__(self) -> None:
        if self.pairs is not None and self.pairs < LEAST:
            raise InputError(f"scorer.pairs={self.pairs}: must be at least {LEAST}, or null for all")
        if not 0 < self.k <= 1:
            raise InputError(f"scorer.k={self.k}: it is a share of tokens, above 0 and at most 1")
        if any(not 0 < rate < 1 for rate in self.fpr or []):
            raise InputError(f"scorer.fpr={self.fpr}: rates lie between 0 and 1")

    def of_training(self, pairs: Pairs, dimensions: Mapping[str, Dimension], seed: int) -> list[Example]:
        members = _different(pairs.chosen(dimensions, seed))[: self.pairs]
        others = _different(pairs.held_out(dimensions, seed))[: self.pairs]
        least = max([float(LEAST), *(1 / rate for rate in self.fpr or [])])
        if len(members) < LEAST or len(others) < least - 1e-9:
            raise InputError(
                f"dataset.samples={pairs.samples}: {len(members)} pairs to train on and {len(others)} held out, and "
                f"leakage_membership needs {LEAST} and {least:.0f}: choose another number, or dimensions of more pairs"
            )
        cut = {"max_tokens": pairs.max_tokens, "truncate": pairs.truncate}
        return [
            replace(example, fields={"member": member} | cut)
            for member, examples in ((True, members), (False, others))
            for example in examples
        ]

    def score(self, subject: Subject, examples: Sequence[Example], responses: Sequence[str]) -> Scored:
        """Measure loss and Min-K%++; one record a pair. A pair that is dropped as too long has none."""
        rows, records = [], []
        for example in examples:
            cut = {key: example.fields[key] for key in ("max_tokens", "truncate")}
            row = encode(subject.tokenizer, example.asked, str(example.response), form=subject.form, **cut)
            if row is not None:
                rows.append(row)
                records.append({"prompt": example.prompt, "member": example.fields["member"]})
        told = token_likelihoods(
            subject.model,
            rows,
            pad_id=pad_token_id(subject.tokenizer),
            batch_tokens=subject.batch_tokens,
            progress="membership" if subject.progress else None,
        )
        for record, values in zip(records, told, strict=True):
            record |= {"loss": -float(values[0].mean()), "min_k": min_k_plus_plus(*values, share=self.k)}
        return Scored(self._measure(records), records)

    def against(self, now: Scored, before: Scored) -> Scored:
        records = [
            {**record, "reference": then["loss"]} for record, then in zip(now.records, before.records, strict=True)
        ]
        return Scored(self._measure(records), records)

    def rescore(self, records: Sequence[Mapping[str, Any]]) -> float | None:
        member = torch.tensor([record["member"] for record in records])
        if member.all() or not member.any():
            return None
        return _score(membership_auc(torch.tensor(_differences(records)), member))

    def digest(self) -> Any:
        return [self.pairs, self.k, self.fpr, "losses"]

    def _measure(self, records: Sequence[Mapping[str, Any]]) -> Measured:
        member = torch.tensor([record["member"] for record in records])
        n1, n0 = int(member.sum()), int((~member).sum())
        if not n1 or not n0:
            raise InputError(f"dataset.truncate=drop leaves {n1} pairs to train on and {n0} held out: raise max_tokens")
        scores = {"loss": [-record["loss"] for record in records], "min_k": [record["min_k"] for record in records]}
        if "reference" in records[0]:
            scores["difference"] = _differences(records)
        measured = PAIRS.named(which="members").of(n1) | PAIRS.named(which="held_out").of(n0)
        for which, chosen in (("members", member), ("held_out", ~member)):
            losses = [record["loss"] for record, taken in zip(records, chosen.tolist(), strict=True) if taken]
            about = LOSS.named(which=which)
            interval = mean_interval(losses, (0.0, math.inf)) if len(losses) > 1 else None
            measured |= about.of(statistics.fmean(losses), interval)
        for attack, values in scores.items():
            area, (low, high) = auc(values, member)
            about = replace(AUC.named(attack=attack), column=73 if attack == "difference" else None)
            measured |= about.of(area, (low, high), floor=0.5)
            for rate in self.fpr or ([0.01] if n0 >= 100 else []):
                found, interval = rates_at(torch.tensor(values), member, rate)
                about = replace(TPR.named(attack=attack, percent=f"{100 * rate:g}"), guess=rate)
                measured |= about.of(found, interval, floor=rate)
            if attack == "difference":
                measured |= SCORE.of(_score(area), (_score(high), _score(low)))
        return measured if "difference" in scores else measured | SCORE.of(1.0)


def _different(examples: Sequence[Example]) -> list[Example]:
    """Leave out copies of a pair, behind the first."""
    found: dict[tuple[str, str | None], Example] = {}
    for one in examples:
        found.setdefault((one.prompt, one.response), one)
    return list(found.values())


def _differences(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return how much lower each pair's loss is than the untouched model's; 0 for that model itself."""
    return [record.get("reference", record["loss"]) - record["loss"] for record in records]


def _score(area: float) -> float:
    """Turn an AUC into a score: 1 for guessing or worse, 0 where every pair is told."""
    return min(1.0, 2 * (1 - area))
