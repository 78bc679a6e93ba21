import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from fairpriv.tracking import weights_and_biases
from fairpriv.tracking.result import find_results


@pytest.fixture(autouse=True)
def _warned_of_nothing_yet():
    weights_and_biases._warn_once.cache_clear()


@pytest.fixture
def logged(mine, tmp_path) -> list[str]:
    """The words of a small cell that is logged."""
    folders = ["--config-dir", str(mine), f"paths.root={tmp_path / 'out'}"]
    return [*folders, "dataset=people", "training.epochs=2", "logger=offline"]


def records(log: bytes) -> Iterator[Record]:
    """Records of a ``.wandb`` file: a LevelDB log after seven bytes, in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", log, place)
        parts += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def runs(root: Path) -> list[SimpleNamespace]:
    """What the offline runs' files hold, the oldest first."""
    found = []
    for folder in sorted((root / "wandb").glob("offline-run-*")):
        (file,) = folder.glob("*.wandb")
        run, history = None, []
        config: dict[str, Any] = {}
        summary: dict[str, Any] = {}
        for record in records(file.read_bytes()):
            if record.WhichOneof("record_type") == "run":
                run = record.run
                config |= {item.key: json.loads(item.value_json) for item in run.config.update}
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            history.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
        found.append(
            SimpleNamespace(
                folder=folder, bytes=file.read_bytes(), run=run, config=config, summary=summary, history=history
            )
        )
    return found


def test_an_offline_run_holds_the_cell(fairpriv, logged, tmp_path):
    ended = fairpriv(*logged, "defense=none", "sweep=mine", "seed=1")
    assert ended.status == 0
    assert "wandb" not in ended.err  # no warning of the library's own
    (result,) = find_results([tmp_path / "out"])[0]
    (logged_run,) = runs(tmp_path / "out")
    run = logged_run.run
    assert run.run_id == f"{result.id}-0"
    assert run.project == "fairpriv"
    assert (run.job_type, list(run.tags), run.run_group) == ("none", ["people", "mlp", "none"], "")
    assert run.display_name == "people mlp none world 0 seed 1"
    assert logged_run.config["dataset"]["source"]["folder"] == "."  # nested and resolved
    assert logged_run.config["game"]["alpha"] == 1.0
    assert {name: logged_run.summary[name] for name in result.metrics} == pytest.approx(result.metrics)
    assert logged_run.summary["status"] == "completed"
    assert logged_run.summary["seconds/base"] == result.seconds["base"]
    stages = {key.split("/")[0] for row in logged_run.history for key in row}
    assert "base" in stages
    assert b"paths.root=" not in logged_run.bytes  # the command line, in which a secret may stand
    assert not list(tmp_path.glob("wandb"))


def test_the_next_cell_is_a_run_of_its_own_and_a_second_attempt_has_a_number(fairpriv, logged, tmp_path):
    command = ["-m", *logged, "defense=none,fine_tune", "sweep=mine"]
    assert fairpriv(*command).status == 0
    first = runs(tmp_path / "out")
    ids = {result.config["defense"]["name"]: result.id for result in find_results([tmp_path / "out"])[0]}
    assert sorted(one.run.run_id for one in first) == sorted(f"{cell}-0" for cell in ids.values())
    assert {one.run.job_type: one.run.run_group for one in first} == {"none": "mine", "fine_tune": "mine"}
    assert fairpriv(*command).status == 0  # read, not run: nothing to log
    assert len(runs(tmp_path / "out")) == 2
    assert fairpriv(*logged, "defense=none", "retry=all").status == 0
    assert {one.run.run_id for one in runs(tmp_path / "out")} == {
        f"{ids['none']}-0",
        f"{ids['none']}-1",
        f"{ids['fine_tune']}-0",
    }


def test_a_failed_cell_does_not_lend_its_run_to_the_next(fairpriv, logged, tmp_path):
    ended = fairpriv("-m", *logged, "defense=fine_tune", "defense.epochs=2", "defense.lr=1e30,0.01")
    assert ended.status == 1
    assert len({one.run.run_id for one in runs(tmp_path / "out")}) == 2
    assert wandb.run is None


def test_secrets_do_not_reach_the_run(fairpriv, logged, tmp_path):
    secret = "+dataset.recode.secret_job={from: job, values: {a: hidden-1, b: hidden-2, c: hidden-3}}"
    assert fairpriv(*logged, secret).status == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if b"hidden-1" in path.read_bytes()] == []


def test_logging_changes_no_number(fairpriv, logged, tmp_path):
    words = ["defense=fair_finetune", "defense.grid=[0.3]", "defense.epochs=2"]
    fairpriv(*logged, *words)
    fairpriv(*logged, *words, "logger=none", f"paths.root={tmp_path / 'silent'}")
    (one,), (other,) = (find_results([tmp_path / name])[0] for name in ("out", "silent"))
    assert one.id == other.id
    assert one.metrics == other.metrics


@pytest.mark.parametrize("broken", ["init", "finish", "log"])
def test_a_result_does_not_depend_on_wandb(fairpriv, logged, tmp_path, monkeypatch, broken):
    def fails(*_, **__):
        raise wandb.errors.CommError("the service is away\nfor good")

    if broken == "log":
        monkeypatch.setattr(wandb.Run, "log", fails)
        monkeypatch.setattr(wandb.sdk.wandb_summary.Summary, "update", fails)
    else:
        monkeypatch.setattr(wandb, broken, fails)
    ended = fairpriv(*logged)
    monkeypatch.undo()
    wandb.finish()
    assert ended.status == 0
    assert [line for line in ended.err.splitlines() if "W&B" in line] == [
        "W&B is left out: CommError: the service is away for good"
    ]
    (result,) = find_results([tmp_path / "out"])[0]
    assert result.status == "completed"
    assert fairpriv(*logged, "logger=none", f"paths.root={tmp_path / 'silent'}").status == 0
    assert result.metrics == find_results([tmp_path / "silent"])[0][0].metrics


def test_an_unwritable_log_folder_costs_no_result(fairpriv, logged, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "wandb").write_text("")
    ended = fairpriv(*logged)
    assert ended.status == 0
    assert len([line for line in ended.err.splitlines() if line.startswith("W&B is left out: ")]) == 1
