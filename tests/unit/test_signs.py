"""Signs of life: what a long cell is doing, said now and then where nobody watches a bar."""

import io
import threading
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from fairpriv import signs
from fairpriv.classifiers.nets.pool import fit_pool
from fairpriv.language_models.engines.generation import token_bar
from fairpriv.sweep import progress
from fairpriv.trainer import TellLoss


@pytest.fixture
def heard(monkeypatch):
    """Let the heart beat fast; waits for what is said next."""
    said, more = [], threading.Event()

    def say(line):
        said.append(line)
        more.set()

    def next_line():
        more.clear()
        assert more.wait(10)
        return said[-1]

    monkeypatch.setattr(signs, "EVERY", 0.01)
    monkeypatch.setattr(signs, "FRESH", 0.0)
    signs.doing("")  # which other tests may have left
    with signs.alive("adult lora seed 0", say):
        yield next_line
    assert not [thread for thread in threading.enumerate() if thread.name == "signs of life"]


def test_a_cell_says_how_long_it_runs_and_what_it_does(heard):
    assert heard() == "adult lora seed 0: 0 min: begins"
    signs.doing("attack")
    heard()
    assert heard() == "adult lora seed 0: 0 min: attack"
    signs.step("split 2 of 5")
    heard()
    assert heard() == "adult lora seed 0: 0 min: attack: split 2 of 5"
    signs.doing("report")
    assert signs.now() == "report"


def test_nothing_is_said_by_a_short_cell_or_where_a_person_watches(capsys, monkeypatch):
    with signs.alive("a short cell"):
        signs.doing("data")
    assert signs.now() == ""
    monkeypatch.setattr(signs, "EVERY", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with signs.alive("a watched cell"):
        assert "signs of life" not in [thread.name for thread in threading.enumerate()]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("batches", "steps"), [(10, "step 15 of 30"), (float("inf"), "step 5")])
def test_a_fit_tells_its_loss(monkeypatch, batches, steps):
    monkeypatch.setattr(signs, "FRESH", 0.0)
    trainer = SimpleNamespace(num_training_batches=batches, max_epochs=3, current_epoch=1)
    TellLoss().on_train_batch_end(trainer, SimpleNamespace(stage="base"), {"loss": torch.tensor(0.5)}, None, 4)
    assert signs.now() == f"fit of base, {steps}, loss 0.5"
    signs.doing("")


def test_a_fit_tells_its_step_of_all_and_a_bar_its_texts(monkeypatch):
    told = []
    monkeypatch.setattr(signs, "FRESH", 0.0)
    monkeypatch.setattr(signs, "step", told.append)
    X, y = torch.randn(20, 3), torch.arange(20) % 2
    fit_pool([(X, y), (X, 1 - y)], hidden=(2,), epochs=2, batch_size=10, lr=0.1, seed=0)
    assert told == [f"fit of a pool of 2 models, step {k} of 4" for k in (1, 2, 3, 4)]
    told.clear()
    with token_bar(None, 3) as bar:
        bar.update(bar.task_ids[0], advance=2, rate="7 tokens/s")
    assert told == ["2 of 3 texts, 7 tokens/s"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_of_a_sweep_says_which_cell_is_at_what(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "150")
    sweep = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"_target_": "a.Search"}, "overrides": {"task": []}}
    config = {"hydra": sweep | {"runtime": {"choices": {"hydra/launcher": "basic"}}}}
    shown = progress.SweepProgress()
    shown.on_multirun_start(OmegaConf.create(config))
    try:
        shown.begin(0, ["defense=lora"])
        signs.doing("tune")
        signs.step("fit of lora, step 3 of 9, loss 1.5")
        shown.bar.refresh()
    finally:
        progress.end()
        signs.doing("")
    assert "defense=lora: tune: fit of lora, step 3 of 9, loss 1.5" in terminal.getvalue()
