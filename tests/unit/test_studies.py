"""The studies' pages: their tables are what their commands give, and no number in their words is of another source."""

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fairpriv.metrics import Metric
from fairpriv.report.finding import find_results
from fairpriv.result import Result

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / "experiments").rglob("*.md")) if "made by:" in page.read_text()]
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?:e-?\d+)?(?!\w|\.\d)")


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("studies", ROOT / "experiments" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_every_block_is_what_its_command_gives(page, studies, monkeypatch):
    def table_of(words):  # in this process, since another one takes seconds to begin
        spec = importlib.util.spec_from_file_location("table", ROOT / words[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return "\n".join(module.table(*(word for word in words[2:] if not word.startswith("-")))) + "\n"

    monkeypatch.setattr(studies, "printed", table_of)
    text = page.read_text()
    assert text.count("<!-- made by:") == text.count("<!-- end -->")
    assert studies.rendered(text) == text, "make studies-tables"


def untold(text):
    """Numbers with a decimal point in what follows that neither a block nor the design has, as they are rounded."""
    design, _, words = text.partition("\n## What follows")
    known = [(match[0], float(match[0])) for match in NUMBER.finditer(design)]

    def told(number):
        places = len(number.partition(".")[2])
        return any(shown == number or f"{value:.{places}f}" == number for shown, value in known)

    return [number for number in NUMBER.findall(words) if not told(number)]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name == "README.md"], ids=lambda page: page.parent.name
)
def test_every_number_in_words_is_in_the_tables(page):
    assert untold(page.read_text()) == []


def test_a_number_of_no_table_is_found():
    page = "| 0.1234 | 2.5 |\n\n## What follows\nIt is {}.\n"
    assert untold(page.format("0.12, and 2.5")) == []
    assert untold(page.format("0.13")) == ["0.13"]


def test_a_study_s_commands_are_run_and_what_they_give_is_kept(studies, tmp_path, monkeypatch):
    study = tmp_path / "experiments" / "small"
    (study / "results").mkdir(parents=True)
    (study / "results" / "old.json").write_text("{}")
    (study / "README.md").write_text(
        '# Small\n```\nDATA="dataset=german\n    seed=1"\n'
        "fairpriv $DATA \\\n    a=b\nfairpriv compare outputs\n```\nChosen by\n```\nfairpriv seed=9\n```\n"
    )
    monkeypatch.setattr(studies, "HERE", study.parent)
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    ran = []

    def run(words):
        ran.append(shlex.join(words[1:]))
        if "dataset=mine" in words:
            return subprocess.CompletedProcess(words, 2)  # as a data set that is not there
        cell = tmp_path / "outputs" / "studies" / "small" / "cells" / "a"
        cell.mkdir(parents=True)
        told = {"id": "a", "metrics": {"data/rows": 3, "eval/accuracy": 0.5}, "artifacts": {"x": "y"}}
        told["config"] = {"paths": {"root": "/home/me/out", "data": "data"}, "model": {"cache": "/home/me/out/cache"}}
        told["config"]["model"]["path"] = "/home/me/output"  # another folder that begins alike
        told |= {key: {} for key in ("outcome", "described", "intervals", "signed", "versions")}
        (cell / "result.json").write_text(json.dumps(told))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(studies.subprocess, "run", run)
    studies.main(["run", "small", "threads=1"])
    last = f"paths.root={tmp_path}/outputs/studies/small threads=1"
    assert ran == [f"-m fairpriv dataset=german seed=1 a=b {last}"]
    kept = {path.stem: json.loads(path.read_text()) for path in (study / "results").iterdir()}
    assert kept["a"]["metrics"] == {"eval/accuracy": 0.5}
    assert kept.keys() == {"a", "alike"}
    assert kept["alike"] == {
        "model": {"model": {"cache": "outputs/cache", "path": "/home/me/output"}},
        "paths": {"paths": {"root": "outputs", "data": "data"}},
    }

    (study / "README.md").write_text("```\nfairpriv dataset=mine\nfairpriv dataset=german\n```\n")
    ran.clear()
    with pytest.raises(SystemExit) as ended:
        studies.main(["run", "small", "small"])
    assert (ended.value.code, len(ran)) == (2, 2)  # each study stops, and the next one goes on
    assert {path.stem for path in (study / "results").iterdir()} == {"a", "alike"}


def test_a_study_keeps_what_its_metrics_mean_once(studies, tmp_path, monkeypatch):
    def result(name, label):
        described = {"eval/accuracy": Metric("eval/accuracy", label), "data/rows": Metric("data/rows")}
        metrics = {"eval/accuracy": 0.5, "data/rows": 3.0, "attack/kl/advantage": 0.2, "attack/kl/auc_inverted": 1.0}
        metrics |= {"fairness/delta/yes": 0.1, "fairness/delta/yes_floor": 0.05}
        return Result(name, "completed", {"seed": 0}, metrics, described)

    labels = {"a": "accuracy", "b": "accuracy", "c": "another"}
    for name, label in labels.items():
        result(name, label).write(tmp_path / "cells" / name / "result.json")
    monkeypatch.setattr(studies, "HERE", tmp_path)
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    studies.keep("small", tmp_path)
    kept = tmp_path / "small" / "results"
    told = {path.stem: json.loads(path.read_text()) for path in kept.glob("*.json")}
    assert told.pop("described") == {"eval/accuracy": Metric("eval/accuracy", "accuracy").plain()}
    assert [sorted(told[name].get("described", {})) for name in "abc"] == [[], [], ["eval/accuracy"]]
    assert {key for one in told.values() for key in one["metrics"]} == {"eval/accuracy"}
    found, skipped = find_results([kept])
    assert skipped == []
    assert {one.id: one.metric("eval/accuracy").label for one in found} == labels


@pytest.fixture
def result(studies, tmp_path, monkeypatch):
    """Writes a cell of a study that is kept below ``tmp_path``."""
    monkeypatch.setattr(studies, "HERE", tmp_path)
    monkeypatch.setattr(studies, "ROOT", tmp_path)

    def write(name, root, width, columns=("x", "y"), **metrics):
        trainer = {"accelerator": "auto", "precision": "32-true"}
        config = {"seed": 0, "attack": {"meta": {"width": width}}, "dimensions": {}, "trainer": trainer}
        config |= {"training": {"epochs": 40}, "sweep": root, "retry": "none"}
        config |= {"game": {"alpha": 1.0, "min_cell": 5, "shadows": width}, "defense": {"name": name, "lr": 0.1}}
        if root == "second":
            config["defense"]["later"] = None  # a key that came after the first cells
        source = {"files": ["a"], "folder": f"/{root}/german", "cache": f"/{root}/cache"}
        config["paths"] = {"root": "outputs", "data": f"/{root}"}  # of two machines
        config["dataset"] = {"name": "german", "columns": list(columns), "source": source}
        described = {metric: Metric(metric) for metric in metrics}
        Result(name, "completed", config, metrics, described).write(tmp_path / root / "cells" / name / "result.json")

    return write


@pytest.fixture
def kept(tmp_path):
    return lambda: {path.stem: json.loads(path.read_text()) for path in (tmp_path / "small" / "results").glob("*.json")}


def test_what_is_alike_in_all_cells_is_kept_once_and_later_cells_beside_them(studies, result, tmp_path, kept):
    result("a", "first", 32, accuracy=0.5)
    result("b", "second", 32, accuracy=0.7, gap=0.1)
    studies.keep("small", tmp_path / "first")
    studies.main(["add", "small", str(tmp_path / "second")])
    told = kept()
    assert told.pop("described").keys() == {"accuracy", "gap"}
    assert told.pop("alike") == {
        "attack": {"meta": {"width": 32}},
        "game": {"game": {"min_cell": 5, "shadows": 32}},
        "defense": {"a": {"lr": 0.1}, "b": {"lr": 0.1, "later": None}},
        "paths": {"paths": {"root": "outputs", "data": "data"}},
        "dataset": {"german": {"source": {"files": ["a"], "folder": "data/german"}, "columns": ["x", "y"]}},
        "trainer": {"accelerator": "auto", "precision": "32-true"},
        "training": {"epochs": 40},
    }
    assert [told[name]["config"]["trainer"] for name in "ab"] == [{"precision": "32-true"}] * 2
    assert [told[name]["config"]["attack"] for name in "ab"] == [{"meta": {}}] * 2
    assert all({"described", "error", "artifacts"}.isdisjoint(told[name]) for name in "ab")  # empty
    assert all({"training", "sweep", "retry"}.isdisjoint(told[name]["config"]) for name in "ab")
    assert all(told[name]["config"]["dataset"] == {"name": "german"} for name in "ab")
    assert all(told[name]["config"]["game"] == {"alpha": 1.0} for name in "ab")  # which published figures ask for
    assert [told[name]["config"]["defense"] for name in "ab"] == [{"name": "a"}, {"name": "b"}]
    found, skipped = find_results([tmp_path / "small"])
    assert (sorted(one.id for one in found), skipped) == (["a", "b"], [])
    studies.keep("small", tmp_path / "second")
    assert kept().keys() == {"b", "described", "alike"}


def test_a_cell_of_other_settings_beside_kept_ones_gives_these_their_own_back(studies, result, tmp_path, kept):
    result("a", "first", 32, accuracy=0.5)
    result("b", "second", 64, columns=("y", "x"), accuracy=0.6)
    studies.keep("small", tmp_path / "first")
    studies.main(["add", "small", str(tmp_path / "second")])
    told = kept()
    alike = told.pop("alike")
    assert (alike.keys(), alike["dataset"], alike["game"]) == (
        {"dataset", "trainer", "training", "game", "defense", "paths"},
        {"german": {"source": {"files": ["a"], "folder": "data/german"}}},
        {"game": {"min_cell": 5}},
    )
    assert [told[name]["config"]["game"] for name in "ab"] == [{"alpha": 1.0, "shadows": width} for width in (32, 64)]
    assert [told[name]["config"]["attack"] for name in "ab"] == [{"meta": {"width": 32}}, {"meta": {"width": 64}}]
    assert [told[name]["config"]["dataset"]["columns"] for name in "ab"] == [["x", "y"], ["y", "x"]]


def test_without_a_command_the_commands_are_told(studies):
    with pytest.raises(SystemExit, match=r"studies\.py run NAME"):
        studies.main([])
