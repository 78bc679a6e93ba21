import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from fairpriv.report import weights_and_biases
from fairpriv.report.finding import find_results
from fairpriv.result import Result


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


def files_of(artifact: Any) -> dict[str, bytes]:
    """The content of what an artifact would send."""
    return {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}


def runs(root: Path) -> list[SimpleNamespace]:
    """What the offline runs' files hold, the oldest first."""
    wandb.teardown()  # till then the end of a file may not be written
    found = []
    for folder in sorted((root / "wandb").glob("offline-run-*")):
        (file,) = folder.glob("*.wandb")
        one = SimpleNamespace(folder=folder, bytes=file.read_bytes(), run=None, config={}, summary={}, history=[])
        one.goals, one.artifacts, one.exit = {}, {}, None
        for record in records(one.bytes):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                one.run = record.run
                one.config |= {item.key: json.loads(item.value_json) for item in one.run.config.update}
            for item in record.summary.update:
                one.summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            one.history.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
            if kind == "metric":
                one.goals[record.metric.name] = {"max": record.metric.summary.max, "min": record.metric.summary.min}
            if kind == "artifact":
                one.artifacts[record.artifact.name] = record.artifact
            if kind == "exit":
                one.exit = record.exit.exit_code
        found.append(one)
    return found


def test_an_offline_run_holds_the_cell(fairpriv, logged, tmp_path):
    game = ["attack=[loss_test]", "game.victims=3", "game.shadows=0"]
    ended = fairpriv(*logged, "defense=none", "sweep=mine", "seed=1", *game)
    assert ended.status == 0
    assert "wandb" not in ended.err  # no warning of the library's own
    (result,) = find_results([tmp_path / "out"])[0]
    (logged_run,) = runs(tmp_path / "out")
    run = logged_run.run
    assert run.run_id == f"{result.id}-0"
    assert run.project == "fairpriv"
    tags = ["people", "mlp", "none", "loss_test", *(["degenerate"] if result.degenerate else [])]
    assert (run.job_type, list(run.tags), run.run_group) == ("none", tags, "")
    assert run.display_name == "people mlp none world 0 seed 1"
    assert logged_run.config["dataset"]["source"]["folder"] == "."  # nested and resolved
    assert logged_run.config["game"]["alpha"] == 1.0
    assert {name: logged_run.summary[name] for name in result.metrics} == pytest.approx(result.metrics)
    assert logged_run.summary["status"] == "completed"
    assert logged_run.summary["seconds/base"] == result.seconds["base"]
    stages = {key.split("/")[0] for row in logged_run.history for key in row}
    assert "base" in stages
    assert set(result.metrics) <= set().union(*logged_run.history)  # what W&B draws panels of by itself
    assert logged_run.goals["eval/accuracy"] == {"max": True, "min": False}
    assert logged_run.goals["privacy/accuracy_gap"] == {"max": False, "min": True}
    for name in ("privacy/below_tau", "privacy/accuracy_gap_floor"):
        assert logged_run.goals[name] == {"max": False, "min": False}
    assert set(result.metrics) <= set(logged_run.goals)
    (table,) = (logged_run.folder / "files").rglob("decisions*.table.json")
    decisions = json.loads(table.read_text())
    rows = [dict(zip(decisions["columns"], row, strict=True)) for row in decisions["data"]]
    assert [row["world"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert sum(row["right"] for row in rows) / 6 == result.metrics["attack/loss_test/accuracy"]
    folder = tmp_path / "out" / "cells" / result.id
    kept = {name: (folder / name).read_bytes() for name in ("result.json", "attacks.json")}
    assert files_of(logged_run.artifacts[f"result-{result.id}"]) == kept
    assert logged_run.exit == 0
    assert "WANDB_DATA_DIR" not in os.environ
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
    both = runs(tmp_path / "out")
    assert len({one.run.run_id for one in both}) == 2
    assert wandb.run is None
    assert {(one.exit, one.summary["status"], one.summary.get("error")) for one in both} == {
        (1, "failed", "NonFiniteLossError: loss became nan at step 1 of fine_tune"),
        (0, "completed", None),
    }


def test_generations_decisions_edits_and_adapters_are_logged_and_whole_models_are_not(tmp_path):
    cell = tmp_path / "cells" / "abc"
    for path in (
        "model/adapter_config.json",
        "model/adapter_model.safetensors",
        "whole/config.json",
        "edit.safetensors",
    ):
        (cell / path).parent.mkdir(parents=True, exist_ok=True)
        (cell / path).write_bytes(path.encode())
    line = {"dimension": "privacy", "set": "evaluate", "prompt": "a\u2028b", "response": "c", "judge": "refusal"}
    lines = [line | {"safe": safe, "reason": "because"} for safe in (True, False, None)] * 50
    lines.append({"dimension": "privacy", "set": "benign", "prompt": "d", "response": "e", "before": "f"})
    (cell / "responses.jsonl").write_text("".join(json.dumps(told, ensure_ascii=False) + "\n" for told in lines))
    splits = [{"truth": [0, 1], "scores": {"kl": [-1.0, -2.0], "loss_test": [0.0, 3.0]}}, {"truth": [1], "scores": {}}]
    (cell / "attacks.json").write_text(json.dumps({"splits": splits}))
    artifacts = {"responses": "responses.jsonl", "attacks": "attacks.json", "edit": "edit.safetensors"}
    names = {group: {"name": "x" * 70} for group in ("dataset", "model", "defense")}
    config = names | {"attack": {}, "dimensions": {"privacy": {}}, "game": {"world": 0}, "seed": 0, "sweep": None}
    result = Result("abc", "completed", config, {"eval/privacy/awareness": 0.5, "train/steps": None})
    result.artifacts = artifacts | {"model": "model", "whole": "whole"}
    result.degenerate, result.control = ["it refuses everything"], "its rows do not depend on the world"
    result.intervals = {"eval/privacy/awareness": [0.4, 0.6], "train/steps": [None, None]}
    result.git = {"commit": "c" * 40, "dirty": False}
    result.write(cell / "result.json")
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True, "save_dir": str(tmp_path)}
    with weights_and_biases.wandb_run(node, "abc", config) as logger:
        weights_and_biases.summarise(logger, result, cell)
    (one,) = runs(tmp_path)
    assert list(one.run.tags) == ["x" * 64, "privacy", "degenerate", "control"]
    assert one.summary["control"] == result.control
    assert one.summary["eval/privacy/awareness"] == 0.5
    assert one.summary["degenerate"] == ["it refuses everything"]
    assert (one.summary["eval/privacy/awareness/lo"], one.summary["eval/privacy/awareness/hi"]) == (0.4, 0.6)
    assert (one.summary["git/commit"], one.summary["task"]) == ("c" * 40, "language_model")
    assert "train/steps/lo" not in one.summary
    assert "world" not in one.run.display_name
    tables = {}
    for path in (one.folder / "files" / "media" / "table").iterdir():
        table = json.loads(path.read_text())
        tables[path.name.split("_")[0]] = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    generations = tables["generations"]
    assert len(generations) == 101  # the first hundred of each set
    assert [row["verdict"] for row in generations[:4]] == ["safe", "unsafe", None, "safe"]
    assert generations[0] == {
        "dimension": "privacy",
        "set": "evaluate",
        "prompt": "a\u2028b",
        "response": "c",
        "verdict": "safe",
        "reason": "because",
        "before": None,
    }
    assert (generations[-1]["set"], generations[-1]["verdict"], generations[-1]["before"]) == ("benign", None, "f")
    assert [(row["attack"], row["victim"], row["guess"], row["right"]) for row in tables["decisions"]] == [
        ("kl", 0, 0, True),
        ("kl", 1, 0, False),
        ("loss_test", 0, 0, True),
        ("loss_test", 1, 1, True),
    ]
    kept = {name: files_of(artifact) for name, artifact in one.artifacts.items() if artifact.type != "run_table"}
    assert kept == {
        "result-abc": {name: (cell / name).read_bytes() for name in ("result.json", "responses.jsonl", "attacks.json")},
        "edit-abc": {"edit.safetensors": b"edit.safetensors"},
        "adapter-abc": {
            name: f"model/{name}".encode() for name in ("adapter_config.json", "adapter_model.safetensors")
        },
    }
    staged = [Path(entry.local_path) for artifact in one.artifacts.values() for entry in artifact.manifest.contents]
    assert all(path.is_relative_to(tmp_path / "wandb") for path in staged)  # and not in the home folder


def test_a_table_or_file_that_cannot_be_read_costs_no_number(tmp_path, caplog):
    names = {group: {"name": "x"} for group in ("dataset", "model", "defense")}
    config = names | {"attack": {}, "dimensions": {}, "game": {"world": 0}, "seed": 0, "sweep": None}
    metrics = {"fairness/delta/a*b": 0.1, "eval/accuracy": 0.5}
    result = Result("abc", "completed", config, metrics, artifacts={"responses": "responses.jsonl"})
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True, "save_dir": str(tmp_path)}
    with weights_and_biases.wandb_run(node, "abc", config) as logger:
        weights_and_biases.summarise(logger, result, tmp_path)
    (one,) = runs(tmp_path)
    assert {name: one.summary[name] for name in metrics} == metrics
    assert [record.message[:33] for record in caplog.records if "W&B" in record.message] == [
        "W&B is left out: FileNotFoundErro",
        "W&B is left out: ValueError: Path",
    ]


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


def test_the_user_s_names_are_kept_and_long_ones_fit(fairpriv, logged, tmp_path):
    own = ["+logger.group=mine", "+logger.name=called", "+logger.tags=[first,'']", f"dataset.name={'long' * 40}"]
    assert fairpriv(*logged, *own).status == 0
    (one,) = runs(tmp_path / "out")
    assert (one.run.run_group, one.run.display_name, one.run.tags[0]) == ("mine", "called", "first")
    assert max(map(len, one.run.tags)) == 64
    assert "" not in one.run.tags
    assert fairpriv(*logged, own[-1], "retry=all").status == 0
    assert len(runs(tmp_path / "out")[-1].run.display_name) == 128
