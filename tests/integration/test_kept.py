"""A cell that is killed at any stage goes on from there: nothing that was made is made again."""

import functools

import lightning
import pytest

from fairpriv.language_models import experiment, observation
from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.judges.refusal import Refusal

STAGES = ["answer", "judge", "judge", "fit", "answer", "judge", "judge", "perplexity", "record"]  # two dimensions


@pytest.fixture
def killed_at(monkeypatch):
    """What is made, in its order; the process ends before the second thing of a run, as by Ctrl-C."""
    made: list[list[str]] = []

    def watched(owner, name, stage):
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*args, **more):
            made[-1].append(stage)
            if len(made[-1]) == 2:
                raise KeyboardInterrupt
            return function(*args, **more)

        monkeypatch.setattr(owner, name, call)

    watched(observation, "respond", "answer")
    watched(Refusal, "judge", "judge")
    watched(lightning.Trainer, "fit", "fit")
    watched(experiment, "perplexity", "perplexity")
    watched(experiment, "response_rows", "record")
    watched(Harness, "measure", "task")
    return made


def test_each_run_begins_with_what_the_one_before_was_killed_in(fairpriv, words, killed_at):
    asked = [*words, "hydra.mode=RUN", "defense=lora", "defense.lr=0.05", "dataset.samples=4"]
    for _ in STAGES[1:]:
        killed_at.append([])
        assert fairpriv(*asked, f"defense.save={str(len(killed_at) > 5).lower()}").status == 130
    killed_at.append([])
    status = fairpriv(*asked).status
    assert killed_at == [STAGES[i : i + 2] for i in range(len(STAGES))]
    assert status == 0
