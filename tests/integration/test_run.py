import json
import logging
import math
import shutil

import pytest
import torch

from fairpriv.classifiers.nets.classifier import Classifier
from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.errors import InputError, NonFiniteLossError
from fairpriv.identity import content_hash
from fairpriv.report.finding import find_results
from fairpriv.result import Result
from fairpriv.run import run

FIELDS = {
    "schema_version",
    "id",
    "status",
    "degenerate",
    "error",
    "config",
    "outcome",
    "metrics",
    "described",
    "intervals",
    "artifacts",
    "control",
    "overlap",
    "signed",
    "versions",
    "git",
    "device",
    "seconds",
}
METRICS = {
    "eval/accuracy",
    "eval/balanced_accuracy",
    "fairness/equalized_odds_gap",
    "privacy/accuracy_gap",
    "privacy/balanced_accuracy_gap",
    "privacy/shift_weight",
    "privacy/label_shift",
    "privacy/bound",
    "privacy/accuracy_gap_floor",
    "fairness/equalized_odds_gap_floor",
    "eval/train_accuracy",
    "base/epoch",
    "data/rows/train",
    "data/twin_rows",
}


@pytest.fixture
def cell(mine, tmp_path, monkeypatch):
    """Composes a small config and runs it."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        small = ["dataset=people", "debug=fast", f"paths.root={tmp_path / 'out'}"]
        return run(compose(CONF, [mine], [*small, *words]))

    return call


def test_a_cell_says_nothing_of_trainers_and_leaves_lightning_s_logger_as_it_was(cell, caplog):
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.addHandler(caplog.handler)
    lightning.setLevel(logging.INFO)
    try:
        assert cell("defense=none").status == "completed"
        assert lightning.level == logging.INFO
    finally:
        lightning.removeHandler(caplog.handler)
        lightning.setLevel(level)
    assert not [record for record in caplog.records if record.name.startswith("lightning")]


def test_result_json_holds_what_it_promises(cell, tmp_path):
    result = cell("defense=fair_finetune", "defense.grid=[0.3]", "seed=3")
    path = tmp_path / "out" / "cells" / result.id / "result.json"
    document = json.loads(path.read_text())
    assert set(document) == FIELDS
    assert (document["schema_version"], document["status"], document["error"]) == (1, "completed", None)
    assert document["id"] == path.parent.name == content_hash(document["outcome"])
    assert "fairpriv" not in json.dumps(document["outcome"])
    assert set(document["metrics"]) >= METRICS | {"defense/lambda", "fairness/penalty_at_zero_gap"}
    assert all(isinstance(value, float) for value in document["metrics"].values())
    assert set(document["intervals"]) <= set(document["metrics"])
    assert all(low <= high for low, high in document["intervals"].values())
    assert {"fairness/equalized_odds_gap", "privacy/accuracy_gap"} <= set(document["intervals"])
    assert document["config"]["seed"] == 3
    assert document["config"]["defense"]["grid"] == [0.3]
    assert document["config"]["dataset"]["source"]["folder"] == "."  # resolved
    assert {"python", "fairpriv", "torch", "lightning"} <= set(document["versions"])
    assert list(document["seconds"]) == ["data", "base", "defend", "evaluate"]
    assert document["device"]
    assert Result.read(path) == result


def test_a_number_that_is_none_is_written_as_null(cell, monkeypatch, tmp_path):
    from fairpriv.classifiers import experiment as module

    def half(*args, **kwargs):
        measures = measure(*args, **kwargs)
        measures.metrics["eval/accuracy"] = math.nan
        return measures

    measure = module.measure
    monkeypatch.setattr(module, "measure", half)
    result = cell()
    text = (tmp_path / "out" / "cells" / result.id / "result.json").read_text()
    assert json.loads(text)["metrics"]["eval/accuracy"] is None
    assert ": NaN" not in text


def test_secrets_stay_out_of_the_result(cell, tmp_path):
    result = cell("+dataset.recode.secret_job={from: job, values: {a: hidden-1, b: hidden-2, c: hidden-3}}")
    assert result.config["dataset"]["recode"] == {}
    assert not [path for path in (tmp_path / "out").rglob("*.json") if "hidden-1" in path.read_text()]


def test_another_cell_s_result_is_not_believed(fairpriv, small, tmp_path):
    fairpriv(*small, "seed=0")
    (first,) = (tmp_path / "out" / "cells").iterdir()
    metrics = Result.read(first / "result.json").metrics
    fairpriv(*small, "seed=1")
    (second,) = [path for path in first.parent.iterdir() if path != first]
    shutil.copy(second / "result.json", first / "result.json")
    ended = fairpriv(*small, "seed=0")
    assert ended.status == 0
    assert [line for line in ended.err.splitlines() if "another folder" in line] == [
        f"{first / 'result.json'}: it is of cell {second.name}: it has come here from another folder: the cell is run "
        "again"
    ] * 2
    assert Result.read(first / "result.json").metrics == metrics


def test_the_same_seed_gives_the_same_numbers_with_and_without_cache(cell, tmp_path, fits):
    words = ["defense=fair_finetune", "defense.grid=[0.3,1.0]", "seed=1"]
    first = cell(*words)
    shutil.rmtree(tmp_path / "out" / "cells")
    trained = len(fits)
    cached = cell(*words)
    assert len(fits) == trained
    shutil.rmtree(tmp_path / "out")
    torch.manual_seed(1234)
    again = cell(*words)
    assert len(fits) == 2 * trained
    assert first.metrics == cached.metrics == again.metrics
    assert first.intervals == again.intervals
    assert first.id == again.id
    assert cell(*words[:2], "seed=2").metrics != first.metrics


def test_equal_fits_are_done_once(cell, fits):
    cell("defense=none")
    assert fits == ["base"]
    cell("defense=rehearsal")
    assert fits == ["base", "rehearsal"]
    chosen = cell("defense=fair_finetune", "defense.grid=[0.3]")  # base and lambda 0 are there already
    assert fits == ["base", "rehearsal", "fair_finetune/lambda=0.3"]
    assert chosen.metrics["validation/lambda_0/balanced_accuracy"] > 0
    cell("defense=none", "game.world=1")
    assert fits[3:] == ["base"]


def test_a_finished_cell_is_read_and_not_run_again(cell, fits, tmp_path):
    first = cell()
    path = tmp_path / "out" / "cells" / first.id / "result.json"
    written = path.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "cache")
    assert cell() == first
    assert cell("retry=none") == first
    assert (len(fits), path.stat().st_mtime_ns) == (1, written)
    again = cell("retry=all")
    assert (len(fits), again.metrics) == (2, first.metrics)
    assert path.stat().st_mtime_ns > written


def test_half_of_a_result_is_made_again(cell, tmp_path):
    first = cell()
    path = tmp_path / "out" / "cells" / first.id / "result.json"
    path.write_text(path.read_text()[:200])
    assert cell("retry=none").metrics == first.metrics
    assert Result.read(path).status == "completed"


def test_a_loss_that_is_not_finite_fails_the_cell_and_names_stage_and_step(cell, tmp_path):
    result = cell("defense=fine_tune", "defense.lr=1e30")
    assert result.status == "failed"
    assert result.error == "NonFiniteLossError: loss became nan at step 1 of fine_tune"
    assert (result.metrics, list(result.seconds)) == ({}, ["data", "base", "defend"])
    assert Result.read(tmp_path / "out" / "cells" / result.id / "result.json") == result


def test_a_failed_cell_is_run_again_unless_it_is_kept(cell, monkeypatch):
    step = Classifier.training_step

    def broken(*_):
        raise NonFiniteLossError("loss became nan at step 0 of base")

    monkeypatch.setattr(Classifier, "training_step", broken)
    failed = cell()
    assert (failed.status, failed.error) == ("failed", "NonFiniteLossError: loss became nan at step 0 of base")
    monkeypatch.setattr(Classifier, "training_step", step)
    assert cell("retry=none") == failed
    mended = cell()
    assert (mended.id, mended.status, mended.error) == (failed.id, "completed", None)


def test_wrong_data_is_recorded_and_raised(cell, tmp_path):
    with pytest.raises(InputError, match="no column 'gender'"):
        cell("dataset.sensitive=gender")
    (result,) = find_results([tmp_path / "out"])[0]
    assert result.status == "failed"
    assert "no column 'gender'" in result.error


def test_a_wrong_config_is_raised_and_leaves_nothing(cell, tmp_path):
    with pytest.raises(InputError, match=r"model\.dropout='much'"):
        cell("model.dropout=much")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["base", "fine_tune"])
def test_after_ctrl_c_nothing_is_marked_completed_and_nothing_is_half_written(cell, tmp_path, monkeypatch, stage):
    step = Classifier.training_step

    def interrupted(self, batch, index):
        if self.stage == stage:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cell("defense=fine_tune")
    assert list((tmp_path / "out" / "cells").rglob("*")) == []
    fits = [path.suffix for path in (tmp_path / "out" / "cache").rglob("*") if path.is_file()]
    assert fits == ([] if stage == "base" else [".safetensors"])  # the whole base fit, not the broken one
    monkeypatch.setattr(Classifier, "training_step", step)
    assert cell("defense=fine_tune").status == "completed"


def test_the_id_does_not_depend_on_where_and_how_visibly_a_cell_runs(cell, tmp_path, mine):
    first = cell().id
    same = [
        [f"paths.root={tmp_path / 'elsewhere'}"],
        ["paths.data=elsewhere"],
        ["logger=offline", f"paths.root={tmp_path / 'logged'}"],
        ["threads=2"],
        ["retry=all"],
        ["sweep=any"],
        ["trainer.accelerator=cpu"],
        ["trainer.enable_progress_bar=false"],
    ]
    for words in same:
        assert cell(*words).id == first, words
    shutil.copy(mine / "people.csv", tmp_path / "copy.csv")
    assert cell("dataset.source.files=[copy.csv]").id == first


def test_the_id_changes_with_whatever_changes_the_outcome(cell, tmp_path, mine):
    ids = [
        cell(*words).id
        for words in (
            [],
            ["seed=1"],
            ["game.world=1"],
            ["training.lr=0.01"],
            ["defense=fine_tune"],
            ["model.hidden=[8]"],
        )
    ]
    lines = (mine / "people.csv").read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join(lines[:-1]))
    ids.append(cell("dataset.source.files=[other.csv]").id)
    assert len(set(ids)) == len(ids)


def test_changed_data_makes_the_fits_again(cell, tmp_path, mine, fits):
    lines = (mine / "people.csv").read_text().splitlines()
    for rows in (lines[1:], lines[:0:-1]):
        (tmp_path / "data.csv").write_text("\n".join([lines[0], *rows]))
        cell("dataset.source.files=[data.csv]")
    assert fits == ["base", "base"]


def test_what_the_trainer_does_not_take_is_a_wrong_config(cell):
    with pytest.raises(InputError, match="trainer: "):
        cell("trainer.precision=17")
    with pytest.raises(InputError, match=r"trainer\.max_epochs is set by every fit"):
        cell("+trainer.max_epochs=3")
