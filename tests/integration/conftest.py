import gc
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning
import pytest

from fairpriv.cli import main
from fairpriv.config.schema import forget_sources
from fairpriv.sweep.progress import SweepProgress


@dataclass
class Ended:
    """How a command line ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def drawn() -> None:
    """For a test that looks at the pictures of a report. Drawing them takes longer than the cells of most tests."""


@pytest.fixture
def fairpriv(request, imported, tmp_path, capfd, monkeypatch) -> Iterator[Callable[..., Ended]]:
    """Runs a command line in this process, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("fairpriv.report.page._write_plots", lambda *_: ({}, []))
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which folders of configs are added
    modules = set(sys.modules)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which waits for the disk, and no test cuts the power
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("WANDB_MODE", "offline")  # which Lightning sets and leaves
    loggers = [logging.getLogger(name) for name in (None, "fairpriv", "lightning.pytorch")]
    before = [(log.level, log.handlers[:]) for log in loggers]

    def call(*words: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert SweepProgress.current is None
        return Ended(int(ended.value.code), out, err)

    yield call
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    forget_sources()
    for log, (level, handlers) in zip(loggers, before, strict=True):
        log.setLevel(level)
        log.handlers[:] = handlers
    # What a cell has imported and read for those that follow, such as benchmarks, would be looked through by each.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def mine(tmp_path_factory) -> Path:
    """A user's config folder: a small dataset, and a defence that trains for long."""
    folder = tmp_path_factory.mktemp("mine")
    draw = random.Random(0)
    rows = ["age,job,sex,hired"]
    for _ in range(1200):
        age, job, sex = draw.randint(18, 70), draw.choice("abc"), draw.choice("fm")
        chance = 0.2 + 0.01 * (age - 18) + 0.1 * (sex == "m")
        rows.append(f"{age},{job},{sex},{'yes' if draw.random() < chance else 'no'}")
    (folder / "people.csv").write_text("\n".join(rows))
    (folder / "dataset").mkdir()
    (folder / "dataset" / "people.yaml").write_text(
        f"""# People who may be hired
defaults: [csv]
name: people
source: {{files: [{folder / "people.csv"}]}}
target: hired
positive: ["yes"]
sensitive: sex
"""
    )
    (folder / "defense").mkdir()
    (folder / "defense" / "long.yaml").write_text(
        "# Fine-tuning that somebody interrupts\ndefaults: [fine_tune]\nname: long\nepochs: 1000000\npatience: null\n"
    )
    return folder


@pytest.fixture
def small(mine, tmp_path) -> list[str]:
    """The words of a command line that make a cell small and keep it in the test's own folder."""
    return ["--config-dir", str(mine), "dataset=people", "debug=fast", f"paths.root={tmp_path / 'out'}"]


@pytest.fixture
def fits(monkeypatch):
    """The stages that were trained, in their order; what the cache gave is not among them."""
    trained = []
    fit = lightning.Trainer.fit

    def spy(self, model, *args, **kwargs):
        trained.append(model.stage)
        return fit(self, model, *args, **kwargs)

    monkeypatch.setattr(lightning.Trainer, "fit", spy)
    return trained


@pytest.fixture
def words(tiny_lm, tmp_path) -> list[str]:
    """The words of a command line that make a grid of the quickstart small."""
    return [
        "experiment=quickstart_llm",
        "model=hf",
        f"model.path={tiny_lm}",
        "model.name=tiny",
        "dataset.samples=6",
        "dataset.max_tokens=120",
        "evaluation.prompts=3",
        "evaluation.benign=2",
        "evaluation.max_new_tokens=4",
        "evaluation.text_tokens=40",
        "evaluation.window=32",
        "evaluation.stride=16",
        "threads=1",
        "logger=none",
        f"paths.root={tmp_path / 'out'}",
    ]
