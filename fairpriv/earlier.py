"""Descriptions of metrics for results of earlier versions, which hold none. Newer results describe their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from fairpriv.metrics import SHARE, YES_OR_NO, Metric

_FLOORED = (
    "Its floor is what it would be on average if predictions knew nothing of the group, given the label: an absolute "
    "gap of a finite sample is hardly ever 0."
)


def _gain(name: str, label: str = "", meaning: str = "", **more: object) -> Metric:
    return Metric(name, label, meaning, **{"unit": SHARE, "better": "greater", "low": 0, "high": 1} | more)  # type: ignore[arg-type]


def _loss(name: str, label: str = "", meaning: str = "", **more: object) -> Metric:
    return _gain(name, label, meaning, **{"better": "less"} | more)


def _share(name: str, label: str = "", meaning: str = "", **more: object) -> Metric:
    return _gain(name, label, meaning, **{"better": "neither"} | more)


def _answer(name: str, label: str = "", meaning: str = "", column: int | None = None) -> Metric:
    return Metric(name, label, meaning, YES_OR_NO, low=0, high=1, column=column)


# The first that fits counts. {word} stands for one part of a name, {any} for the rest of it.
_TABLE = [
    _share("{any}_floor"),
    _gain("eval/accuracy", "accuracy", "Share of test rows, both worlds together, classified correctly.", column=10),
    _gain("eval/balanced_accuracy", "balanced accuracy", "Mean over labels of the share classified correctly; a "
          "constant model has one half (two labels).", column=11, spared=True),
    _gain("eval/accuracy_world{n}"),
    _share("eval/train_accuracy"),
    _share("eval/majority_share_world{n}"),
    Metric("eval/utility/perplexity", "perplexity", "Perplexity on held-out text.", better="less", low=1, column=30,
           spared=True),
    Metric("eval/utility/{task}", "{task}", "Score of a general capability task.", better="greater", column=31,
           spared=True),
    _gain("eval/utility/{task}/acc{any}", "{task} acc{any}", column=31, spared=True),
    _gain("eval/utility/{task}/exact_match{any}", "{task} exact match{any}", column=31, spared=True),
    _gain("eval/utility/{task}/em{any}", "{task} em{any}", column=31, spared=True),
    _gain("eval/utility/{task}/f1{any}", "{task} f1{any}", column=31, spared=True),
    Metric("eval/utility/{any}", "{any}", "Score of a general capability task.", column=32, spared=True),
    _gain("eval/{dimension}/awareness", "{dimension} awareness", "Share of the dimension's prompts whose response the "
          "judge finds safe. A model that refuses everything has 1: read over-refusal beside it.", column=20,
          headline=True),
    _gain("eval/{dimension}/awareness_change", "{dimension} change", "Awareness minus that of the untouched model on "
          "the same prompts; one cell has Newcombe's interval for pairs.", low=-1, column=21),
    _gain("eval/{dimension}/score", "{dimension} score", "What the dimension's own scorer found, from 0 to 1, where 1 "
          "is what the dimension asks for.", column=22, headline=True),
    _gain("eval/{dimension}/score_change", "{dimension} change", "Score minus that of the untouched model; where it is "
          "a share, one cell has Newcombe's interval for pairs.", low=-1, column=23),
    _loss("eval/{dimension}/over_refusal", "{dimension} over-refusal", "Share of matched benign prompts that the model "
          "refuses.", column=24),
    _share("eval/{dimension}/mcnemar_p"),
    _gain("eval/{dimension}/accuracy{any}"),
    _gain("eval/{dimension}/mc{any}"),
    _gain("eval/{dimension}/score/{any}"),
    Metric("eval/{dimension}/lms{any}", better="greater"),
    Metric("eval/{dimension}/icat{any}", better="greater"),
    _share("eval/{dimension}/stereotype_share{any}"),
    _share("eval/{dimension}/bias_{any}", low=-1),
    _loss("fairness/equalized_odds_gap", "equalized-odds gap", "Largest range over groups, at the worst label, of the "
          f"rate of positive predictions among rows of that label. A constant model has 0. {_FLOORED}", column=40,
          magnitude=True),
    _loss("fairness/delta/{label}", magnitude=True),
    Metric("fairness/penalty", better="less", low=0),
    Metric("fairness/penalty_at_zero_gap", low=0),
    _loss("privacy/accuracy_gap", "accuracy gap", "Difference of one model's accuracy between the two worlds' test "
          "rows (our reading a). It mixes the model with base rates: where labels are not equally common in both "
          "worlds, a constant model, perfect by equalized odds, has a large accuracy gap. " + _FLOORED, column=50,
          magnitude=True, against="eval/accuracy", instead="privacy/balanced_accuracy_gap"),
    _loss("privacy/balanced_accuracy_gap", "balanced gap", "The same difference for balanced accuracy (our reading b), "
          f"which base rates do not move. {_FLOORED}", column=51, magnitude=True, against="eval/balanced_accuracy"),
    _loss("privacy/victim_accuracy_gap", magnitude=True),
    _loss("privacy/bound", "bound", "Upper bound on the accuracy gap (derived): from group rates, the worlds' "
          "compositions and their label shift. It bounds the two gaps of one fixed model between two test worlds; it "
          "bounds no adversary that guesses which world the model was trained on. With pure groups (shift weight W = "
          "1) it is close to an identity and cannot be tested: sweep game.alpha.", high=None, column=52),
    _loss("privacy/balanced_bound", high=None),
    _answer("privacy/below_tau", "below tau", "Seeds whose accuracy gap lies below game.tau. That alone hides nothing: "
            "tau may lie inside the interval, and an attack may use more than this gap.", 70),
    _answer("privacy/tau_in_interval", "tau within", "Seeds whose interval of the accuracy gap contains game.tau: "
            "there, below or above is not settled.", 71),
    _answer("privacy/bound_holds", "bound holds", "Seeds whose accuracy gap, on one half of the test rows, is at most "
            "the bound, from the other half. Both carry sampling error, so a miss by little refutes nothing.", 72),
    _answer("privacy/balanced_bound_holds"),
    _answer("privacy/bound_refuted"),
    _share("privacy/shift_weight"),
    _share("privacy/label_shift"),
    _share("attack/{attack}/accuracy", "{attack} attack", "Share of models whose training world the attack names "
           "correctly; one half is guessing, and 0 tells as much as 1. These cells are of an earlier design, which had "
           "no leakage; no row is better than another by this.", column=60, instead="attack/{attack}/leakage"),
    _share("attack/{attack}/advantage", low=-1, instead="attack/{attack}/leakage"),
    _loss("attack/{attack}/leakage", "{attack} leakage", "How far the attack is from guessing a model's training "
          "world: the distance of its accuracy from one half, 0 to 0.5. An attack that is wrong more often than not "
          "tells as much as one that is right.", high=0.5, column=61, magnitude=True, null_arm=True),
    _share("attack/{attack}/auc", low=0.5, magnitude=True, null_arm=True, instead="attack/{attack}/leakage"),
    _gain("attack/{attack}/share_of_optimum", "{attack} share of optimum", "The attack's advantage over that of the "
          "best adversary there can be, where that is known in closed form.", high=None, column=62),
    _share("attack/{attack}/p_value"),
    _share("game/optimal_advantage", "optimal advantage", "Advantage of the best adversary there can be: 0 is "
           "guessing, 1 is certainty.", low=-1, column=63),
    _gain("pool/accuracy"),
    _share("pool/train_accuracy"),
    _loss("pool/equalized_odds_gap", magnitude=True),
    _share("analysis/jaccard/{any}"),
    _share("analysis/jaccard_by_chance/{any}"),
    _share("analysis/caution/{dimension}/rate_change", low=-1),
    _share("analysis/caution/{any}"),
    _share("analysis/hsic/{pair}/p_{any}"),
    _share("analysis/hsic_apart/{pair}/p_{any}"),
    *(Metric(f"{part}/{{any}}") for part in ("base", "data", "defense", "edit", "train", "validation")),
]  # fmt: skip


def earlier(name: str, value: float | None, names: Mapping[str, object]) -> Metric:
    """Describe a metric whose result does not describe it.

    Args:
        name: the metric's name.
        value: the metric's value; gaps were signed once, and an AUC was not folded.
        names: the names of all metrics of the result.
    """
    metric = known(name) or Metric(name)
    if value is not None and metric.low is not None and value < metric.low:
        metric = replace(metric, low=0.0 if metric.low == 0.5 else -1.0)
    # The table shows an attack by its accuracy only where there is no leakage of it.
    superseded = name.startswith("attack/") and name.replace("/accuracy", "/leakage") in names.keys() - {name}
    return replace(metric, column=None) if superseded else metric


@cache
def known(name: str) -> Metric | None:
    """Describe a metric of this name for any value; None for one that no earlier version had."""
    for template in _TABLE:
        if match := _pattern(template.name).fullmatch(name):
            return template.named(**match.groupdict())
    return None


@cache
def _pattern(name: str) -> re.Pattern[str]:
    def part(word: re.Match[str]) -> str:
        return f"(?P<{word[1]}>{'.*' if word[1] == 'any' else '[^/]+'})"

    return re.compile(re.sub(r"\\{(\w+)\\}", part, re.escape(name)))
