import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fairpriv.errors import InputError
from fairpriv.report import status
from fairpriv.report.finding import NOT_FINISHED, find_results
from fairpriv.report.status import Survey, duration
from fairpriv.result import Result
from fairpriv.sweep import listing, lock
from fairpriv.sweep.listing import Listing, Plan, enlist, entries, plan


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def words(monkeypatch) -> list[str]:
    """The overrides of the cell that is asked for."""
    given: list[str] = []
    monkeypatch.setattr(listing, "_overrides", lambda: given)
    return given


def settle(root: Path, cell: str, state: str = "completed", seconds: float = 60.0, **fields) -> None:
    config = {"dataset": {"name": "adult"}, "model": {"name": "mlp"}, "defense": {"name": "none"}, "seed": 0}
    result = Result(cell, state, config, {}, seconds={"base": seconds / 2, "defend": seconds / 2})
    replace(result, **fields).write(root / "cells" / cell / "result.json")


def run_by(root: Path, cell: str, **of) -> None:
    path = root / "cells" / cell / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = replace(lock.Owner.this_process("adult mlp none"), since=time.time(), **of)
    path.write_text(json.dumps(asdict(owner)))


def row(out: str, name: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith(f"{name}  ")]
    return line.removeprefix(name).split()


def test_status_counts_what_is_done_running_failed_and_left(root, words, capsys):
    sweep = Listing(root / "sweeps" / "study", 6)
    for cell in "abcd":
        words[:] = [f"seed={ord(cell) - 97}", "dataset=adult", "retry=all", "paths.root=out"]
        enlist(root / "sweeps" / "study", cell, finished=False)
    settle(root, "a", seconds=60)
    settle(root, "b", seconds=120)
    settle(root, "c", "failed", error="ValueError: bad\nvalue")
    run_by(root, "d")
    assert status.status([root]) == 0
    out = capsys.readouterr().out
    assert row(out, "study") == ["2", "1", "1", "2", "6", "about", "4", "min"]  # three cells of 90 s, by one process
    assert row(out, "all cells") == ["2", "1", "1"]
    assert "failed: c seed=2: defend: ValueError: bad value\n" in out
    assert f"running: d seed=3: process {lock.Owner.this_process().pid} on " in out
    assert out.count("seed=3") == 1
    assert "no process" not in out
    sweep.end(finished=False, failed=True)
    (root / "cells" / "d" / "lock").unlink()
    status.status([root / "sweeps" / "study"])
    out = capsys.readouterr().out
    assert row(out, "study") == ["2", "0", "1", "3", "6", "about", "4", "min,", "once", "it", "goes", "on"]
    assert "study: no process is at it; the same command goes on from there\n" in out
    assert "all cells" not in out


def test_completed_cells_are_counted_from_the_ends_of_their_files(root, words, capsys, monkeypatch):
    read = []
    whole = Result.read
    monkeypatch.setattr(Result, "read", lambda path: read.append(path.parent.name) or whole(path))
    git = {"commit": "c" * 40, "dirty": False}
    settle(root, "a", seconds=60, versions={"torch": "2"}, git=git, error='"versions": {}')
    settle(root, "b", "failed", error="boom")
    settle(root, "c", seconds=90, metrics={f"eval/{i}": 0.5 for i in range(1000)}, git=git | {"dirty": True})
    settle(root, "d")
    torn = root / "cells" / "d" / "result.json"
    torn.write_bytes(torn.read_bytes()[:-20])
    settle(root, "e", versions={"torch": 2})
    survey = Survey.of_root(root)
    assert (list(survey.completed), list(survey.failed), survey.unfinished) == (["a", "c"], ["b"], ["d", "e"])
    assert read == ["b", "d", "e"]
    assert [sum(one.seconds.values()) for one in survey.completed.values()] == [60, 90]
    assert "cccccccccccc (1)" in survey.codes()[0]
    assert "cccccccccccc with changes (1)" in survey.codes()[0]


def test_the_time_left_is_shared_by_the_cells_that_run(root, words):
    sweep = Listing(root / "sweeps" / "study", 12)
    for cell in "ab":
        enlist(root / "sweeps" / "study", cell, finished=False)
    assert Survey.of_sweep(root / "sweeps" / "study").seconds_left() is None  # nobody knows yet
    settle(root, "a", seconds=100)
    run_by(root, "b")
    assert Survey.of_sweep(root / "sweeps" / "study").seconds_left() == pytest.approx(1000 + 100, abs=5)
    enlist(root / "sweeps" / "study", "c", finished=False)
    run_by(root, "c")
    assert Survey.of_sweep(root / "sweeps" / "study").seconds_left() == pytest.approx((900 + 200) / 2, abs=5)
    sweep.end(finished=False, failed=False)


def test_what_an_earlier_sweep_made_is_left_until_a_live_one_comes_to_it(root, words):
    folder = root / "sweeps" / "study"
    first = Listing(folder, 2)
    for cell in "ab":
        enlist(folder, cell, finished=False)
        settle(root, cell)
    first.end(finished=True, failed=False)
    assert Survey.of_sweep(folder).left == 0
    second = Listing(folder, 2)  # of other data, say
    survey = Survey.of_sweep(folder)
    assert (len(survey.completed), survey.left, survey.alive) == (0, 2, True)
    enlist(folder, "a", finished=True)
    survey = Survey.of_sweep(folder)
    assert (list(survey.completed), survey.skipped, survey.left) == (["a"], {"a"}, 1)
    second.end(finished=False, failed=False)  # killed: nothing is lost
    assert set(entries(folder)) == {"a", "b"}
    third = Listing(folder, 2)
    for cell in "ac":
        enlist(folder, cell, finished=cell == "a")
    settle(root, "c")
    third.end(finished=True, failed=False)
    assert set(entries(folder)) == {"a", "c"}
    assert Survey.of_sweep(folder).left == 0


def test_the_list_of_a_sweep_that_two_processes_run_loses_nothing(root, words):
    folder = root / "sweeps" / "study"
    run_by(root, "../sweeps/study", pid=1, started=lock.started(1))  # another live process
    enlist(folder, "a", finished=False)
    mine = Listing(folder, 2)
    assert not mine.alone
    enlist(folder, "b", finished=False)
    mine.end(finished=True, failed=False)
    assert set(entries(folder)) == {"a", "b"}
    assert lock.holder(folder / "lock").pid == 1


def test_a_sweep_that_is_whole_counts_alike_cells_once(root, words):
    folder = root / "sweeps" / "study"
    sweep = Listing(folder, 3)
    for cell in "aab":
        enlist(folder, cell, finished=False)
        settle(root, cell)
    assert Survey.of_sweep(folder).left == 1
    sweep.end(finished=True, failed=False)
    assert Survey.of_sweep(folder).left == 0
    assert find_results([folder])[1] == []


def test_cells_that_a_killed_sweep_did_not_come_to_are_not_finished(root, words):
    folder = root / "sweeps" / "study"
    Listing(folder, 5).end(finished=False, failed=False)
    for cell in "ab":
        enlist(folder, cell, finished=False)
    settle(root, "a")
    found, left_out = find_results([folder])
    assert [result.id for result in found] == ["a"]
    assert [reason for _, reason in left_out] == [NOT_FINISHED] * 4


def test_a_list_that_a_full_disk_tore_goes_on_in_a_line_of_its_own(root, words):
    folder = root / "sweeps" / "study"
    enlist(folder, "a", finished=False)
    with (folder / "cells.txt").open("a") as file:
        file.write('b {"time": 17')
    enlist(folder, "c", finished=False)
    assert list(entries(folder)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "rest", ["[1]", "3", '{"time": "now"}', '{"time": null}', '{"time": 1e999}', "[" * 100_000, '{"words": 3}']
)
def test_a_damaged_line_of_the_list_costs_no_other(root, words, rest):
    folder = root / "sweeps" / "study"
    enlist(folder, "a", finished=False)
    with (folder / "cells.txt").open("a") as file:
        file.write(f"b {rest}\n")
    enlist(folder, "c", finished=False)
    assert [cell for cell in entries(folder) if cell != "b"] == ["a", "c"]


@pytest.mark.parametrize("content", ["[]", '{"total": "4"}', '{"since": "x"}', '{"started": null}', '{"since": 1e999}'])
def test_a_damaged_plan_is_none(root, words, content):
    folder = root / "sweeps" / "study"
    enlist(folder, "a", finished=False)
    (folder / "sweep.json").write_text(content)
    assert plan(folder) == Plan()
    assert Survey.of_sweep(folder).left is None


def test_secrets_stay_out_of_the_list(root, words):
    words += ["seed=1", "+judge.api_key=hidden-1", "judge={password: hidden-2}", "model.num_key_value_heads=8"]
    words += ["dataset.source=https://me:hidden-3@host/a.csv", "evaluation={max_new_tokens: 8}"]
    enlist(root / "sweeps" / "study", "a", finished=False)
    assert entries(root / "sweeps" / "study")["a"].words == [
        "seed=1",
        "model.num_key_value_heads=8",
        "dataset.source=https://***@host/a.csv",
        "evaluation={max_new_tokens: 8}",
    ]
    assert "hidden" not in (root / "sweeps" / "study" / "cells.txt").read_text()


def test_a_value_that_looks_like_a_version_is_listed(root, words):
    words += ["model.revision=1.0.0"]
    enlist(root / "sweeps" / "study", "a", finished=False)
    assert entries(root / "sweeps" / "study")["a"].words == ["model.revision=1.0.0"]


def test_status_of_what_is_neither_a_root_nor_a_sweep(tmp_path):
    with pytest.raises(InputError, match="holds no cells"):
        status.status([tmp_path])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (100, "2 min"), (7000, "117 min"), (7800, "2 h 10 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
