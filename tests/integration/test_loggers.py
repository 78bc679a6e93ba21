"""Lightning's other loggers, several at once, and cells that are logged when they are finished."""

import csv
import json

import pytest
import yaml

from fairpriv.report import weights_and_biases
from fairpriv.report.finding import find_results
from fairpriv.report.weights_and_biases import clipped


@pytest.fixture(autouse=True)
def _warned_of_nothing_yet():
    weights_and_biases._warn_once.cache_clear()


def rows_of(folder):
    (file,) = folder.rglob("metrics.csv")
    with file.open(newline="") as lines:
        return file.parent, list(csv.DictReader(lines))


def test_a_cell_is_logged_as_csv_with_curves_config_and_metrics(fairpriv, small, tmp_path):
    words = ["logger=csv", "defense=fair_finetune", "defense.grid=[0.3]", "defense.epochs=2", "training.epochs=2"]
    small = [word for word in small if word != "debug=fast"]
    ended = fairpriv(*small, *words)
    assert (ended.status, "left out" in ended.err) == (0, False), ended.err
    (result,) = find_results([tmp_path / "out"])[0]
    folder, rows = rows_of(tmp_path / "out" / "logs")
    assert folder == tmp_path / "out" / "logs" / "cells" / result.id
    assert float(rows[-1]["eval/accuracy"]) == pytest.approx(result.metrics["eval/accuracy"])
    curves = {name.rpartition("/")[0] for name, value in rows[0].items() if name.endswith("/loss")}
    assert curves >= {"fair_finetune/lambda=0", "fair_finetune/lambda=0.3"}  # none on top of another
    hyperparameters = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert hyperparameters["dataset.name"] == "people"
    assert fairpriv(*small, *words, "retry=all").status == 0  # whose fits come from the cache, without a curve
    assert sorted(path.name for path in folder.parent.iterdir()) == [result.id, f"{result.id}-1"]


@pytest.mark.parametrize("logger", ["csv", "offline"])
def test_a_language_model_s_cell_is_logged_too(fairpriv, words, tmp_path, logger):
    words = [word for word in words if word != "logger=none"]
    ended = fairpriv(*words, "hydra.mode=RUN", "defense=none", f"logger={logger}")
    assert ended.status == 0
    assert "left out" not in ended.err
    assert list(tmp_path.rglob("metrics.csv" if logger == "csv" else "offline-run-*"))


def test_several_loggers_at_once_keep_the_names_that_the_user_gives(fairpriv, small, mine, tmp_path):
    own = tmp_path / "own"
    (own / "logger").mkdir(parents=True)
    (own / "logger" / "both.yaml").write_text(
        "# Two\ndefaults: [csv@one, csv@two]\none: {name: mine, version: x}\ntwo: {save_dir: elsewhere}\n"
    )
    words = [f"hydra.searchpath=['file://{mine}']" if word == str(mine) else word for word in small]
    words = ["--config-dir", str(own), *words[1:]]
    ended = fairpriv(*words)
    assert ended.status == 0, ended.err
    assert fairpriv(*words, "logger=both", "retry=all").status == 0
    assert rows_of(tmp_path / "out" / "logs")[0] == tmp_path / "out" / "logs" / "mine" / "x"
    rows_of(tmp_path / "elsewhere")


OWN = """
import json
from lightning.pytorch.loggers.logger import Logger

class Lines(Logger):
    name, version = "lines", "0"

    def __init__(self, file):
        self.file = file

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        with open(self.file, "a") as out:
            out.write(json.dumps(metrics) + "\\n")
"""


def test_a_logger_of_the_user_s_own_gets_what_the_cell_measured(fairpriv, small, tmp_path, monkeypatch):
    (tmp_path / "own_logger.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    ended = fairpriv(*small, "logger=none", "+logger._target_=own_logger.Lines", "+logger.file=lines.jsonl")
    assert (ended.status, "left out" in ended.err) == (0, False), ended.err
    (result,) = find_results([tmp_path / "out"])[0]
    *curves, last = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
    assert last["eval/accuracy"] == result.metrics["eval/accuracy"]
    assert any(name.endswith("/loss") for line in curves for name in line)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:MLFlow only allows")  # not of ours
@pytest.mark.parametrize(("logger", "files"), [("tensorboard", "logs/**/events.*"), ("mlflow", "mlflow.db")])
def test_lightning_s_other_loggers_get_a_cell(fairpriv, small, tmp_path, logger, files):
    pytest.importorskip(logger)
    ended = fairpriv(*small, f"logger={logger}")
    assert (ended.status, "left out" in ended.err) == (0, False), ended.err
    assert any(b"eval/accuracy" in path.read_bytes() for path in (tmp_path / "out").glob(files))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_logger_that_is_not_installed_costs_no_result(fairpriv, small, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    ended = fairpriv(*small, "logger=tensorboard")
    assert ended.status == 0
    assert len([line for line in ended.err.splitlines() if "TensorBoardLogger is left out: " in line]) == 1


def test_finished_cells_are_logged_later_and_once(fairpriv, small, tmp_path):
    assert fairpriv("-m", *small, "defense=none,fine_tune", "logger=none", "sweep=mine").status == 0
    assert not (tmp_path / "out" / "wandb").exists()
    ended = fairpriv("log", tmp_path / "out")
    assert (ended.status, ended.out) == (0, "2 of 2 finished cells logged\n")
    assert len(list((tmp_path / "out" / "wandb").glob("offline-run-*"))) == 2
    assert fairpriv("log", tmp_path / "out").out == "0 of 2 finished cells logged\n"
    assert fairpriv("log", tmp_path / "out", "logger=csv").out == "2 of 2 finished cells logged\n"
    (tmp_path / "file").touch()
    ended = fairpriv("log", tmp_path / "out", "logger=csv", f"logger.save_dir={tmp_path / 'file'}")
    assert (ended.status, ended.out) == (1, "0 of 2 finished cells logged\n")
    assert len(list((tmp_path / "out" / "logs" / "mine").glob("*/metrics.csv"))) == 2
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["log"], "log DIR"),
        (["log", "empty"], "no finished cell"),
        (["log", "out", "logger=none"], "none"),
    ):
        refused = fairpriv(*words)
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert said in refused.err


def test_what_is_too_long_for_wandb_is_cut_and_stays_different():
    assert clipped("x" * 64, 64) == "x" * 64
    one, other = clipped("x" * 65, 64), clipped("x" * 64 + "y", 64)
    assert len(one) == len(other) == 64
    assert one != other
