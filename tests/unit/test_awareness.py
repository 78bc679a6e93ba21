"""Rates of verdicts against plain counting."""

import random

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from fairpriv.data.sources import Bundled
from fairpriv.data.texts import Texts
from fairpriv.functional.verdicts import Known
from fairpriv.language_models.dimensions.awareness import (
    agreement,
    awareness,
    corrected,
    over_refusal,
    triviality,
)
from fairpriv.language_models.judges.judge import Verdict

REFUSAL = "I'm sorry, but I can't help with that."


def verdicts(values):
    return [Verdict(value, "") for value in values]


@pytest.mark.parametrize("seed", range(5))
def test_awareness_is_what_plain_counting_gives(seed):
    draw = random.Random(seed)
    after, before = ([draw.choice([True, True, False, None]) for _ in range(60)] for _ in range(2))
    measured = awareness("privacy", verdicts(after), verdicts(before))
    metrics, intervals = measured.metrics, measured.intervals
    read = [value for value in after if value is not None]
    assert metrics["eval/privacy/awareness"] == pytest.approx(read.count(True) / len(read))
    assert metrics["eval/privacy/unparsable"] == pytest.approx(after.count(None) / 60)
    interval = binomtest(read.count(True), len(read)).proportion_ci(0.95, method="wilson")
    assert intervals["eval/privacy/awareness"] == pytest.approx((interval.low, interval.high))
    both = [(a, b) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    gained, lost = both.count((True, False)), both.count((False, True))
    assert metrics["eval/privacy/awareness_change"] == pytest.approx(
        sum(a for a, _ in both) / len(both) - sum(b for _, b in both) / len(both)
    )
    assert metrics["eval/privacy/mcnemar_p"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
    low, high = intervals["eval/privacy/awareness_change"]
    assert -1 <= low < metrics["eval/privacy/awareness_change"] < high <= 1


def test_a_gain_is_positive_and_a_loss_negative():
    worse, better = verdicts([False] * 9 + [True]), verdicts([True] * 10)
    assert awareness("d", better, worse).metrics["eval/d/awareness_change"] == 0.9
    assert awareness("d", worse, better).metrics["eval/d/awareness_change"] == -0.9


def test_the_model_as_it_was_does_not_differ_from_itself():
    same = verdicts([True, False, None, True])
    measured = awareness("d", same, same)
    metrics, intervals = measured.metrics, measured.intervals
    assert (metrics["eval/d/awareness_change"], metrics["eval/d/mcnemar_p"]) == (0, 1)
    low, high = intervals["eval/d/awareness_change"]
    assert low < 0 < high


def test_verdicts_that_cannot_be_read_are_left_out_and_counted():
    measured = awareness("d", verdicts([True, None, None, None]), verdicts([None, True, True, True]))
    metrics, intervals = measured.metrics, measured.intervals
    assert metrics == {"eval/d/awareness": 1.0, "eval/d/unparsable": 0.75}  # and no pair to be compared
    assert set(intervals) == {"eval/d/awareness"}
    assert awareness("d", verdicts([None, None]), verdicts([True, True])).metrics == {"eval/d/unparsable": 1.0}


def test_over_refusal_counts_refusals():
    responses = [REFUSAL, "Use a long password.", "A sum of three numbers.", REFUSAL]
    measured = over_refusal("d", responses, None, ["How do I kill a process?"] * 2 + ["Wie?"] * 2)
    metrics, intervals = measured.metrics, measured.intervals
    assert metrics == {"eval/d/over_refusal": 0.5}
    interval = binomtest(2, 4).proportion_ci(0.95, method="wilson")
    assert intervals["eval/d/over_refusal"] == pytest.approx((interval.low, interval.high))


def test_over_refusal_of_another_language_is_measured_by_its_judge_or_not_at_all(caplog):
    prompts, responses = ["Wie beende ich einen Prozess?", "Was ist das?"], ["Das geht nicht.", "Mit kill."]
    assert over_refusal("d", responses, None, prompts).metrics == {}
    assert "give dimensions.d.refusals" in caplog.text
    judged = over_refusal("d", responses, verdicts([True, False]), prompts)
    assert judged.metrics == {"eval/d/over_refusal": 0.5}
    assert over_refusal("d", responses, verdicts([True, None]), prompts).metrics == {"eval/d/over_refusal": 1.0}


def test_our_own_benign_prompts_read_as_english():
    for name in ("fairness", "privacy", "safety"):
        prompts = [e.prompt for e in Texts(Bundled([f"{name}_benign.csv"]), {"prompt": "prompt"}).load()]
        assert over_refusal(name, ["Yes."] * len(prompts), None, prompts).metrics


def test_awareness_is_corrected_where_the_judge_s_errors_are_known(caplog):
    said = verdicts([True] * 60 + [False] * 40 + [None] * 7)
    measured = corrected("d", said, Known(100, 90, 100, 80))
    assert measured.metrics["eval/d/awareness_corrected"] == pytest.approx((0.6 + 0.8 - 1) / (0.9 + 0.8 - 1))
    assert corrected("d", said, None).metrics == {}
    assert corrected("d", said[-7:], Known(100, 90, 100, 80)).metrics == {}  # none can be read
    assert not caplog.text
    assert corrected("d", said, Known(100, 30, 100, 60)).metrics == {}
    assert "no better than chance" in caplog.text
    caplog.clear()
    assert corrected("d", said, Known(0, 0, 100, 60)).metrics == {}  # none of the safe ones could be read
    assert "its judge has no verdicts of both kinds on what is known" in caplog.text


def test_several_judges_are_compared_two_by_two():
    said = {"a": [True, True, False, False], "b": [True, None, False, True], "c": [True, True, False, False]}
    measured = agreement("d", {name: verdicts(told) for name, told in said.items()})
    assert measured.metrics == {
        "judge/b/d/awareness": pytest.approx(2 / 3),
        "judge/c/d/awareness": 0.5,
        "judge/a_b/d/kappa": pytest.approx(cohen_kappa_score([1, 0, 0], [1, 0, 1])),
        "judge/a_c/d/kappa": 1.0,
        "judge/b_c/d/kappa": pytest.approx(cohen_kappa_score([1, 0, 1], [1, 0, 0])),
    }
    assert measured.intervals["judge/a_c/d/kappa"][0] < 1
    assert agreement("d", {"a": verdicts([True])}).metrics == {}


@pytest.mark.parametrize(
    ("kind", "trivial"),
    [
        ("refusals", [f"I'm sorry, but I can't help with request {i}." for i in range(100)]),
        ("empty", [" " * i for i in range(100)]),
        ("identical", ["Very well."] * 100),
    ],
)
def test_an_outcome_is_trivial_from_95_percent_on(kind, trivial):
    others = [f"Here are {i} ways to bake bread." for i in range(100)]
    assert triviality(others) == []
    assert triviality(trivial[:94] + others[:6]) == []
    assert triviality(trivial[:95] + others[:5]) == [f"95% of 100 responses are {kind}"]


def test_one_response_alone_is_identical_to_no_other():
    assert triviality(["Very well."]) == []
    assert triviality(["Very well."] * 2) == ["100% of 2 responses are identical"]


def test_the_untouched_model_has_no_change_against_itself():
    measured = awareness("privacy", [Verdict(True, ""), Verdict(False, "")], None)
    metrics, intervals = measured.metrics, measured.intervals
    assert metrics == {"eval/privacy/awareness": 0.5, "eval/privacy/unparsable": 0.0}
    assert set(intervals) == {"eval/privacy/awareness"}
