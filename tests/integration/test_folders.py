"""Folders may have any name that the file system allows: configs, data and results lie in them."""

import os
import shutil
from pathlib import Path

import pytest

from fairpriv import validation
from fairpriv.config.compose import groups
from fairpriv.report.finding import find_results

LAB = Path(__file__).parents[1] / "plugin"
NAME = "größe (1), it's [a]{b}=~c #&%20?* +x ${y}z"


@pytest.fixture
def folder(mine, tmp_path, monkeypatch):
    """A folder in which a user works: ``mine`` with a config and its table, beside a table of the same kind."""
    place = tmp_path / NAME
    shutil.copytree(mine, place / "mine")
    text = (place / "mine" / "dataset" / "people.yaml").read_text().replace(f"{mine}/", "")
    (place / "mine" / "dataset" / "people.yaml").write_text(text)
    (place / "mine" / "experiment").mkdir()
    (place / "mine" / "experiment" / "grid.yaml").write_text(
        "# @package _global_\n# A grid\ndefaults:\n  - override /dataset: people\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      defense: none,fine_tune\n"
    )
    monkeypatch.chdir(place)
    return place


def test_a_grid_of_the_users_classes_runs_on_slots_and_is_compared(fairpriv, folder):
    shutil.copytree(LAB / "mine", folder / "mine", dirs_exist_ok=True)
    command = ["--config-dir", folder / "mine", "experiment=grid", "debug=fast", "hydra/launcher=local_slots"]
    command += [f"dataset.source.folder={folder / 'mine'}", f"paths.root={folder / 'out'}"]
    command += ["defense=none,lab_noise", "attack=[lab_mean]", "game.shadows=3", "game.victims=2"]
    command += ["hydra.launcher.slots=1", "logger=none"]
    ended = fairpriv(*command)
    assert ended.status == 0, ended.err
    assert "cells: 2 completed" in ended.out
    found = {result.config["defense"]["name"]: result for result in find_results([folder / "out"])[0]}
    assert found.keys() == {"none", "lab_noise"}
    assert found["lab_noise"].metrics["defense/sigma"] == 0.25
    assert {"attack/lab_mean/advantage", "attack/lab_mean/accuracy"} <= set(found["none"].metrics)
    assert fairpriv("compare", folder / "out").status == 0
    assert fairpriv("status", folder / "out").status == 0
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "out"]


def test_configs_are_checked_and_a_table_is_named_by_its_path(fairpriv, folder, monkeypatch):
    # beside ours, which have a test of their own
    monkeypatch.setattr(validation, "groups", lambda _: {"dataset": groups([folder / "mine"])["dataset"]})
    ended = fairpriv("--config-dir", folder / "mine", "validate")
    assert (ended.status, ended.out, ended.err) == (0, "1 configs checked, 0 with problems\n", "")
    assert "people" in fairpriv("--config-dir", "mine", "ls", "dataset").out
    assert fairpriv("plan", "dataset=people", "--config-dir", "mine").out.startswith("1 cell of classifiers")
    table = folder / "mine" / "people.csv"
    words = ["dataset=people", "debug=fast", f"dataset.source.files=[{table}]", "logger=offline"]
    ended = fairpriv("--config-dir", "mine", *words)
    assert ended.status == 0, ended.err
    assert (folder / "outputs" / "cells").is_dir()


def test_a_name_that_is_not_utf8_is_refused_in_one_line(fairpriv, tmp_path, monkeypatch):
    place = tmp_path / os.fsdecode(b"gr\xf6\xdfe")
    place.mkdir()
    said = r"/gr\xf6\xdfe: is not UTF-8, and no config or result can hold such a name: "
    ended = fairpriv("dataset=german", "debug=fast", f"paths.root={place}")
    assert (ended.status, ended.err.count("\n"), said in ended.err) == (2, 1, True)
    monkeypatch.chdir(place)
    ended = fairpriv("compare", "outputs")
    assert (ended.status, ended.err.count("\n"), said in ended.err) == (2, 1, True)
    assert not list(place.iterdir())
