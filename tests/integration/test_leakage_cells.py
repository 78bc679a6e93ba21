"""Leakage of training pairs from the command line, on a random language model with two layers."""

import json
from pathlib import Path

import pytest

from fairpriv.result import Result

PLANTED = [
    "hydra.mode=RUN",
    "dataset=canaries",
    "dataset.samples=24",
    "dataset.canaries.n=3",
    "dataset.canaries.repeats=6",
    "dataset.canaries.secret='##'",
    "dimension=[privacy,leakage_exposure,leakage_extraction,leakage_membership]",
    "evaluation.max_new_tokens=16",
    "evaluation.text=null",
]


@pytest.fixture
def cell(fairpriv, words):
    """Runs one cell; returns its result and the records of its scorers."""

    def call(*more: str) -> tuple[Result, list[dict]]:
        ended = fairpriv(*words, *PLANTED, *more)
        assert ended.status == 0, ended.err
        path = Path(ended.out.strip().splitlines()[-1])
        lines = (path.parent / "scores.jsonl").read_text().splitlines()
        return Result.read(path), [json.loads(line) for line in lines]

    return call


def test_a_tuned_model_gives_away_what_it_is_trained_on_and_an_untouched_one_does_not(cell):
    tuned, records = cell("defense=full", "defense.lr=0.01", "defense.epochs=12")
    found, intervals = tuned.metrics, tuned.intervals
    assert found["train/pairs"] == 24 + 3 * 6
    assert found["eval/leakage_exposure/exposure"] > 4 > found["eval/leakage_exposure/exposure_unplanted"]
    assert found["eval/leakage_extraction/extracted"] > 0.5 > found["eval/leakage_extraction/extracted_unplanted"]
    assert intervals["eval/leakage_membership/difference_auc"][0] > 0.7
    for dimension in ("exposure", "extraction", "membership"):
        assert found[f"eval/leakage_{dimension}/score_change"] < -0.2
    kinds = [record["dimension"] for record in records]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "leakage_exposure": 6,
        "leakage_extraction": 6,
        "leakage_membership": 64,
    }
    untouched, _ = cell("defense=none")
    found, intervals = untouched.metrics, untouched.intervals
    low, high = intervals["eval/leakage_membership/loss_auc"]
    assert low <= 0.5 <= high
    assert found["eval/leakage_exposure/exposure"] < 4
    assert (found["eval/leakage_extraction/extracted"], found["eval/leakage_membership/score"]) == (0, 1)


def test_leakage_of_what_is_not_planted_or_not_held_out_is_refused(fairpriv, words):
    given = [*words, "hydra.mode=RUN", "defense=none"]
    ended = fairpriv(*given, "dimension=[privacy,leakage_exposure]")
    assert (ended.status, ended.err.strip().count("\n")) == (2, 0)
    assert "dataset=pairs plants no canaries, whose exposure is asked for: choose dataset=canaries" in ended.err
    ended = fairpriv(*given, "dimension=[privacy,leakage_membership]")
    assert (ended.status, ended.err.strip().count("\n")) == (2, 0)
    assert "dataset.samples=6: 6 pairs to train on and 58 held out, and leakage_membership needs 20 and 20" in ended.err
