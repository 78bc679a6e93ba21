import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairpriv.errors import InputError
from fairpriv.metrics import Metric
from fairpriv.report.finding import NOT_FINISHED, _Parts, find_results
from fairpriv.result import Result, decode, environment, git_state, read_rows, write_rows


def result(**changes):
    fields = {"id": "0123456789abcdef", "status": "completed", "config": {"seed": 0}, "metrics": {"eval/accuracy": 0.8}}
    return Result(**(fields | changes))


def document(tmp_path, **changes):
    result().write(tmp_path / "whole.json")
    return json.loads((tmp_path / "whole.json").read_text()) | changes


def test_a_value_outside_its_metric_s_range_is_not_added():
    cell = result(metrics={})
    with pytest.raises(InputError, match=r"attack/mine/accuracy is 1.5, outside its own range \[0, 1\]"):
        cell.add(Metric("attack/mine/accuracy", low=0, high=1).of(1.5))
    assert cell.metrics == {}


def test_result_survives_writing_and_reading(tmp_path):
    cell = result(
        outcome={"outcome_version": 2, "config": {"seed": 1}},
        degenerate=["constant"],
        intervals={"eval/accuracy": [0.7, 0.9]},
        signed={"privacy/accuracy_gap": [[-0.1]], "fairness/delta/no": [[0.1, -0.2, 0.1], [0.0, 0.0, 0.0]]},
        control="trained on both worlds",
        overlap=0.25,
        artifacts={"model": "model.safetensors"},
        versions={"torch": "2"},
        git={"commit": "abc", "dirty": True},
        device="cpu",
        seconds={"data": 0.5},
    )
    cell.write(tmp_path / "new" / "result.json")
    assert Result.read(tmp_path / "new" / "result.json") == cell


def test_file_has_the_fields_of_the_contract(tmp_path):
    contract = (
        "schema_version id status degenerate error config outcome metrics described intervals signed control overlap "
        "artifacts versions git device seconds"
    )
    assert set(document(tmp_path)) == set(contract.split())


def test_nan_and_infinities_are_null(tmp_path):
    path = tmp_path / "result.json"
    cell = result(
        metrics={"a": math.nan, "b": math.inf, "c": 1.0},
        intervals={"a": [-math.inf, math.nan]},
        config={"lr": math.nan, "list": [math.inf, 1]},
    )
    cell.write(path)
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["metrics"] == {"a": None, "b": None, "c": 1.0}
    assert read["intervals"] == {"a": [None, None]}
    assert read["config"] == {"lr": None, "list": [None, 1]}


def test_a_file_of_before_these_fields_is_read(tmp_path):
    path = tmp_path / "result.json"
    older = document(tmp_path)
    for name in ("signed", "control", "overlap"):
        del older[name]
    path.write_text(json.dumps(older))
    read = Result.read(path)
    assert (read.signed, read.control, read.overlap) == ({}, None, None)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error, step):
    path = tmp_path / "result.json"
    result().write(path)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(type(error)):
        result(device="other").write(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_file_appears_only_when_it_is_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    synced = []
    fsync = os.fsync

    def note(descriptor):
        synced.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    result().write(path)
    assert synced == [False, True]  # the file before the rename, the folder after it


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "truncated or not JSON"),
        ('{"schema_version": 1, "id": "a', "truncated or not JSON"),
        ("[1, 2]", "no schema_version"),
        ('{"id": "a"}', "no schema_version"),
        ('{"schema_version": 2}', "schema version 2; this fairpriv reads 1"),
        ('{"schema_version": 1, "id": "a", "status": "completed"}', "it has no config, metrics"),
    ],
)
def test_unreadable_file_says_why(tmp_path, text, why):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=why) as caught:
        Result.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 1),
        ("status", "running"),
        ("config", []),
        ("metrics", {"a": "0.8"}),
        ("metrics", {"a": True}),
        ("degenerate", "constant"),
        ("error", 1),
        ("intervals", {"a": [0.1]}),
        ("intervals", {"a": 0.1}),
        ("signed", {"a": [0.1]}),
        ("signed", {"a": [[]]}),
        ("signed", [[0.1]]),
        ("control", True),
        ("overlap", -0.1),
        ("overlap", "0.1"),
        ("artifacts", {"a": None}),
        ("versions", []),
        ("git", "abc"),
        ("device", None),
        ("seconds", {"data": "1"}),
    ],
)
def test_wrong_type_names_the_field(tmp_path, name, value):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(tmp_path, **{name: value})))
    with pytest.raises(InputError, match=f"{name} should be"):
        Result.read(path)


def test_file_that_is_not_text_or_not_there_is_an_input_error(tmp_path):
    (tmp_path / "result.json").write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "result.json", tmp_path / "none.json"):
        with pytest.raises(InputError):
            Result.read(path)


def test_a_result_is_written_without_secrets(tmp_path):
    config = {"source": "https://me:hidden@host/a.csv", "hf_token": "hidden", "seed": 0}
    result(config=config, error="OSError: https://host/a.csv?api_key=hidden").write(tmp_path / "result.json")
    assert "hidden" not in (tmp_path / "result.json").read_text()
    read = Result.read(tmp_path / "result.json")
    assert read.config == {"source": "https://***@host/a.csv", "seed": 0}
    assert read.error == "OSError: https://host/a.csv?api_key=***"


def test_results_are_found_by_schema_and_not_by_name(tmp_path):
    result(id="a").write(tmp_path / "cells" / "a" / "result.json")
    result(id="b").write(tmp_path / "study" / "results" / "adult-0.json")
    (tmp_path / "package.json").write_text('{"name": "foreign"}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "sweep.json").write_text("{ not json")
    found, skipped = find_results([tmp_path])
    assert sorted(cell.id for cell in found) == ["a", "b"]
    assert skipped == []


def test_a_result_knows_where_it_was_found_and_its_file_does_not(tmp_path):
    path = tmp_path / "cells" / "0123456789abcdef" / "result.json"
    result(folder=tmp_path / "elsewhere").write(path)
    assert "folder" not in json.loads(path.read_text())
    assert Result.read(path).folder == path.parent
    (found,), _ = find_results([tmp_path])
    assert found.folder == path.parent
    assert found == result()


def test_a_result_of_another_cell_is_none_of_this_one(tmp_path):
    path = tmp_path / "cells" / "fedcba9876543210" / "result.json"
    result().write(path)
    with pytest.raises(InputError, match="it is of cell 0123456789abcdef: it has come here from another folder"):
        Result.read(path)
    assert [reason[:10] for _, reason in find_results([tmp_path])[1]] == ["it is of c"]
    elsewhere = tmp_path / "study" / "adult-0.json"
    path.rename(elsewhere.parent.mkdir() or elsewhere)
    assert Result.read(elsewhere).id == "0123456789abcdef"


def test_rows_are_written_and_read_one_a_line(tmp_path):
    rows = [{"text": 'a\u2028b\n"ü"', "ends": (0.1, math.nan)}, {}]
    write_rows(tmp_path / "deep" / "rows.jsonl", rows)
    assert read_rows(tmp_path / "deep" / "rows.jsonl") == [{"text": 'a\u2028b\n"ü"', "ends": [0.1, None]}, {}]
    write_rows(tmp_path / "rows.jsonl", [])
    assert read_rows(tmp_path / "rows.jsonl") == []
    assert find_results([tmp_path]) == ([], [])


@pytest.mark.parametrize("content", [None, b'{"a": 1}\n{"a"', b"[1]\n", b"\xff\n"])
def test_rows_that_are_missing_or_damaged_are_none(tmp_path, content):
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    assert read_rows(tmp_path / "rows.jsonl") == []


def test_truncated_and_foreign_results_are_named(tmp_path):
    result(id="a").write(tmp_path / "a" / "result.json")
    for name, text in (
        ("b/result.json", '{"schema'),
        ("c/result.json", '{"name": "foreign"}'),
        ("d.json", '{"schema_version": 9}'),
        ("e.json", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found, skipped = find_results([tmp_path])
    assert [cell.id for cell in found] == ["a"]
    assert sorted(str(path.relative_to(tmp_path.resolve())) for path, _ in skipped) == [
        "b/result.json",
        "c/result.json",
        "d.json",
        "e.json",
    ]
    assert all(reason for _, reason in skipped)


def test_what_results_share_of_their_metrics_is_said_once_beside_them(tmp_path):
    own = Metric("fairness/gap", "another gap", better="less")
    result(id="a").write(tmp_path / "a.json")
    result(id="b", metrics={"fairness/gap": 0.1, "eval/accuracy": 0.8}, described={"fairness/gap": own}).write(
        tmp_path / "b.json"
    )
    shared = {name: Metric(name, f"shared {name}").plain() for name in ("eval/accuracy", "fairness/gap")}
    (tmp_path / "described.json").write_text(json.dumps(shared))
    found, skipped = find_results([tmp_path])
    assert skipped == []
    first, second = sorted(found, key=lambda one: one.id)
    assert first.metric("eval/accuracy").label == "shared eval/accuracy"
    assert list(first.described) == ["eval/accuracy"]  # only what it has
    assert (second.metric("fairness/gap"), second.metric("eval/accuracy")) == (own, first.metric("eval/accuracy"))
    assert Result.read(tmp_path / "a.json") == first
    assert [one.described for one in find_results([tmp_path / "a.json"])[0]] == [first.described]


@pytest.mark.parametrize("content", ["[]", '{"eval/accuracy"', '{"eval/accuracy": {"better": "more"}}'])
def test_damaged_shared_descriptions_are_named(tmp_path, content):
    result(id="a").write(tmp_path / "a.json")
    (tmp_path / "described.json").write_text(content)
    (found,) = find_results([tmp_path])[1]
    assert found[0].name == "a.json"
    assert "described" in found[1]


@pytest.mark.parametrize(
    "text",
    [
        '{\n "a": 1e400,\n "config": {\n  "x": {\n   "y": 1\n  },\n  "z": 1E999\n },\n "git": null\n}\n',
        '{\n "a": {"x": 1,\n "versions": {"p": "1"},\n "y": 2},\n "b": 1\n}',  # a member of a, and not of the whole
        '{\n "a": [1,\n "versions"],\n "b": 1\n}',
        '{\n "versions": {"a": 1}, "b": 2,\n "versions": {"c": 3}\n}',
        '{\n "config": {\n  "a": 1\n }, "outcome": 2\n}',
        '{\n "a": ' + "9" * 400 + '.0,\n "b": -1e+0400\n}',
        '{\n "a": 1,,\n "b": 2\n}',
        '{\n "a": 1\n "b": 2\n}',
        '{\n "a": 1,\n "b": 2,\n}',
        '{\n "a": 1,\n "b": 2\n}}',
        '{\n "config": {\n  "a": 1\n },\n "b": "\n "\n}',
        "{\n}",
        "{}",
    ],
)
def test_what_is_read_by_parts_is_what_is_read_at_once(text):
    def read(decoder):
        try:
            return decoder(text)
        except ValueError as error:
            return str(error)

    assert read(_Parts().decode) == read(decode)


def test_results_share_what_they_have_in_common(tmp_path):
    for seed, name in enumerate("ab"):
        config = {"seed": seed, "dataset": {"name": "adult"}}
        made = result(id=name, config=config, outcome={"outcome_version": 2, "config": config}, versions={"torch": "2"})
        made.write(tmp_path / name / "result.json")
    first, second = find_results([tmp_path])[0]
    assert (first.config["seed"], second.config["seed"]) == (0, 1)
    assert first.config["dataset"] is second.config["dataset"] is second.outcome["config"]["dataset"]
    assert first.versions is second.versions


def test_sweep_folder_reads_its_own_cells_only(tmp_path, monkeypatch):
    for name in "abc":
        result(id=name).write(tmp_path / "cells" / name / "result.json")
    sweep = tmp_path / "sweeps" / "quickstart"
    sweep.mkdir(parents=True)
    (sweep / "cells.txt").write_text("a\nb\na\nmissing\n")
    result(id="stray").write(sweep / "old" / "result.json")
    monkeypatch.chdir(sweep)
    for folder in (sweep, Path(), tmp_path / "sweeps"):
        found, skipped = find_results([folder])
        assert sorted(cell.id for cell in found) == ["a", "b"]
        assert [(path.parent.name, reason) for path, reason in skipped] == [("missing", NOT_FINISHED)]


def test_cell_found_twice_counts_once_and_completed(tmp_path):
    result(status="failed", error="boom").write(tmp_path / "z" / "result.json")
    result().write(tmp_path / "a" / "result.json")
    os.utime(tmp_path / "a" / "result.json", (1, 1))
    found, _ = find_results([tmp_path, tmp_path, tmp_path / "a"])
    assert [cell.status for cell in found] == ["completed"]


def test_results_come_oldest_first(tmp_path):
    for name, time in (("a", 300), ("b", 100), ("c", 200)):
        result(id=name).write(tmp_path / f"{name}.json")
        os.utime(tmp_path / f"{name}.json", (time, time))
    assert [cell.id for cell in find_results([tmp_path])[0]] == ["b", "c", "a"]


def test_a_link_to_a_folder_elsewhere_is_named_and_not_followed(tmp_path):
    result(id="a").write(tmp_path / "out" / "cells" / "a" / "result.json")
    result(id="b").write(tmp_path / "scratch" / "cells" / "b" / "result.json")
    (tmp_path / "out" / "more").symlink_to(tmp_path / "scratch")
    (tmp_path / "out" / "latest").symlink_to(tmp_path / "out" / "cells")  # found anyway
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for folder in ("out", "link"):
        found, skipped = find_results([tmp_path / folder])
        assert [one.id for one in found] == ["a"]
        ((place, why),) = skipped
        assert place == tmp_path / "out" / "more"
        assert "not followed" in why
    assert len(find_results([tmp_path / "out", tmp_path / "out" / "more"])[0]) == 2


def test_missing_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        find_results([tmp_path / "nothing"])


def test_environment_names_versions():
    found = environment()
    assert {"python", "fairpriv", "torch", "hydra-core"} <= set(found)
    assert all(isinstance(version, str) for version in found.values())


def test_environment_names_what_the_numbers_were_computed_on():
    import torch

    environment.cache_clear()
    found = environment()
    assert found["processor"]
    assert f", {torch.backends.cpu.get_cpu_capability()}" in found["kernels"]
    assert "numpy: " in found["kernels"]


def test_environment_imports_nothing():
    code = (
        "import sys; from fairpriv.result import environment; found = environment(); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; assert 'kernels' not in found; "
        "assert found['processor']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_git_state_follows_the_repository(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    assert git_state(tmp_path) is None
    git_state.cache_clear()
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    (tmp_path / "output").write_text("untracked")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD").stdout.strip(), "dirty": False}
    (tmp_path / "file").write_text("2")
    git_state.cache_clear()
    assert git_state(tmp_path)["dirty"]


def test_git_state_without_git_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path / "elsewhere") is None
