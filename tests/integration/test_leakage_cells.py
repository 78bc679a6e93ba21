"""Leakage of training pairs from the command line, on a random language model with two layers."""

import json
from pathlib import Path

import pytest

from fairpriv.result import Result

PLANTED = [
    "hydra.mode=RUN",
    "dataset=canaries",
    "dataset.canaries.n=3",
    "dataset.canaries.secret='##'",
    "dimension=[privacy,leakage_exposure]",
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


def test_a_model_that_is_tuned_on_canaries_gives_them_away_and_an_untouched_one_does_not(cell):
    tuned, records = cell(
        "defense=full", "defense.lr=0.02", "defense.epochs=20", "dataset.canaries.repeats=6", "evaluation.text=null"
    )
    exposure = "eval/leakage_exposure/exposure"
    assert tuned.metrics["train/pairs"] == 6 + 3 * 6
    assert tuned.metrics[exposure] > 4 > tuned.metrics["eval/leakage_exposure/exposure_unplanted"]
    assert tuned.metrics["eval/leakage_exposure/score_change"] < -0.2
    assert sum(record["planted"] for record in records) == 3
    untouched, _ = cell("defense=none", "evaluation.text=null")
    assert untouched.metrics[exposure] < 4
