"""Cells that two processes train are those of one process; and what becomes of them when a process dies."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fairpriv.errors import InputError
from fairpriv.report.finding import find_results
from fairpriv.result import Result
from fairpriv.sweep import ddp

LAB = Path(__file__).parents[1] / "plugin"
FAKE = """#!/bin/sh
env > "$FAKE_FOLDER/$RANK"
if [ $RANK = 1 ]; then echo "first words" >&2; echo "last words" >&2; {dies}; fi
sleep 600
"""


def same(one: Result, two: Result) -> None:
    assert (one.id, one.status, one.degenerate, one.artifacts) == (two.id, two.status, two.degenerate, two.artifacts)
    assert list(one.metrics) == list(two.metrics)
    assert two.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-4)
    for name, ends in one.intervals.items():
        assert two.intervals[name] == pytest.approx(ends, rel=1e-4, abs=1e-4)


def same_weights(one: Path, two: Path, pattern: str) -> None:
    files, others = (sorted(root.glob(pattern), key=lambda file: file.stat().st_mtime_ns) for root in (one, two))
    assert files
    for file, other in zip(files, others, strict=True):
        a, b = load_file(file), load_file(other)
        assert a.keys() == b.keys()
        assert max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel()) < 1e-4


@pytest.mark.slow
def test_a_language_model_is_tuned_and_scored_by_two_processes(fairpriv, words, tmp_path):
    """LoRA, sharded, on seven pairs in steps of four, dealt 2 and 2, 2 and 1; then SPIN on five pairs a dimension."""
    more = ["hydra.mode=RUN", "defense=lora_spin", "defense.after.adapter.lora_dropout=0", "dataset.samples=7"]
    more += ["defense.after.batch_size=4", "defense.after.micro_batch_size=1", "defense.after.save=true"]
    more += ["defense.samples=5", "defense.batch_size=2", "defense.ratio=1e-3"]
    one, two = (tmp_path / name for name in ("one", "two"))
    assert fairpriv(*words, *more, f"paths.root={one}").status == 0
    ended = fairpriv(*words, *more, f"paths.root={two}", "trainer=fsdp", "trainer.devices=2")
    assert ended.status == 0, ended.err
    (alone,), (shared,) = find_results([one])[0], find_results([two])[0]
    same(alone, shared)
    assert shared.device.startswith("2 x ")
    assert alone.metrics["edit/suppressed"] > 0
    same_weights(one / "cells", two / "cells", "*/edit.safetensors")
    same_weights(one / "cells", two / "cells", "*/model/*.safetensors")
    told = [(root / "cells" / alone.id / "responses.jsonl").read_text() for root in (one, two)]
    assert told[0] == told[1]
    assert len(find_results([two])[0]) == 1
    assert "LOCAL_RANK" not in os.environ


@pytest.mark.slow
def test_fair_fine_tuning_is_shared_in_a_sweep_and_a_failing_cell_ends_alone(fairpriv, mine, tmp_path):
    """Batches of 101 rows, dealt 51 and 50; lambda follows dual ascent, which every process must do alike.

    A class of the user's folder, which every process must find, reads the data.
    """
    shutil.copytree(LAB / "mine", tmp_path / "lab")
    shutil.copy(mine / "people.csv", tmp_path / "lab" / "fairpriv_lab")
    small = ["--config-dir", tmp_path / "lab", "dataset=lab_people", "debug=fast"]
    more = ["-m", "defense=fair_finetune", "defense.penalty=dual", "defense.epochs=3", "defense.batch_size=101"]
    more += ["defense.epsilon=0", "defense.dual_rate=20", "defense.lr=1e30,0.003", "logger=none"]
    one, two = (tmp_path / name for name in ("one", "two"))
    assert fairpriv(*small, *more, f"paths.root={one}").status == 1
    ended = fairpriv(*small, *more, f"paths.root={two}", "trainer.devices=2")
    assert ended.status == 1
    alone, shared = ({r.status: r for r in find_results([root])[0]} for root in (one, two))
    same(alone["completed"], shared["completed"])
    assert shared["completed"].device.startswith("2 x ")
    assert alone["completed"].metrics["defense/lambda"] > 0.1
    assert alone["failed"].error.startswith("NonFiniteLossError: ")
    assert shared["failed"].error.startswith("RuntimeError: rank ")
    assert alone["failed"].error in shared["failed"].error
    assert list(shared["failed"].seconds) == list(alone["failed"].seconds)
    same_weights(one / "cache", two / "cache", "fits/*.safetensors")


@pytest.mark.parametrize(("dies", "how"), [("kill -9 $$", "was killed by signal 9"), ("exit 3", "ended with status 3")])
def test_a_rank_that_dies_ends_the_others_and_the_cell(tmp_path, monkeypatch, dies, how):
    python = tmp_path / "python"
    python.write_text(FAKE.format(dies=dies))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(ddp, "LAST_WORDS", 0.2)
    monkeypatch.setenv("FAKE_FOLDER", str(tmp_path))
    for name in ("PL_GLOBAL_SEED", "MASTER_PORT", "LOCAL_RANK", "GROUP_WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    before = dict(os.environ)
    result = Result(id="a", status="failed", config={}, metrics={})
    with pytest.raises(RuntimeError, match=f"^rank 1 of 2 {how}: last words$"):
        ddp.measure(print, {}, result, 2)
    assert os.environ == before
    seen = dict(line.split("=", 1) for line in (tmp_path / "0").read_text().splitlines() if "=" in line)
    assert {name: seen[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")} == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
    }
    assert not {"PL_GLOBAL_SEED", "MASTER_PORT", "GROUP_WORLD_SIZE"} & seen.keys()


def test_ranks_that_do_not_heed_a_signal_are_killed(monkeypatch):
    monkeypatch.setattr(ddp, "LAST_WORDS", 0.2)
    monkeypatch.setattr(ddp, "PATIENCE", 0.2)
    deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"], stdout=subprocess.PIPE)
    with deaf.stdout:
        deaf.stdout.readline()  # the trap is set
    ranks = [deaf, subprocess.Popen(["false"])]
    assert ddp.attend(ranks) == [None, 1]
    ddp.stop(ranks)
    assert deaf.returncode == -signal.SIGKILL


def test_a_rank_ends_when_the_process_that_started_it_is_gone():
    rank = subprocess.Popen(
        [sys.executable, "-c", "from fairpriv.sweep import ddp; ddp._end_with_parent()"], stdin=subprocess.PIPE
    )
    rank.stdin.close()
    assert rank.wait(60) == 1


@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "LOCAL_RANK", "WORLD_SIZE"])
def test_torchrun_is_refused_with_the_command_that_works(fairpriv, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    ended = fairpriv("-m", "dataset=compas", "trainer.devices=2", "seed=0,1")
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert ended.err.rstrip().endswith(": fairpriv -m dataset=compas seed=0,1 trainer=ddp trainer.devices=4")
    assert fairpriv("ls", "trainer").status == 0


def settings(**trainer):
    return {"trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu", **trainer}, "model": {"name": "mlp"}}


@pytest.mark.parametrize(
    ("trainer", "number"),
    [
        ({}, 1),
        ({"devices": None}, 1),
        ({"devices": 1, "strategy": "ddp"}, 1),
        ({"devices": "auto", "strategy": "ddp"}, 1),
        ({"devices": 3}, 3),
        ({"devices": "2", "strategy": "auto"}, 2),
        ({"devices": [0, 1], "strategy": "ddp_find_unused_parameters_true"}, 2),
    ],
)
def test_devices_say_how_many_processes_there_are(trainer, number):
    assert ddp.processes(settings(**trainer)) == number


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"devices": 2, "strategy": "deepspeed"}, "trainer.strategy=deepspeed: .* ddp, .*fsdp"),
        ({"devices": 2, "strategy": "ddp_spawn"}, "trainer.strategy=ddp_spawn: "),
        (
            {"devices": 2, "num_nodes": 2},
            r"trainer.num_nodes=2: .* in none: set .*hydra.launcher.nodes=2, or leave it 1",
        ),
        ({"devices": "two"}, "trainer.devices=two: must be a number"),
        ({"devices": 4096}, r"trainer.devices=4096: 4096 processes on \d+ cores, .*: at most \d+$"),
    ],
)
def test_what_cannot_be_shared_is_refused(trainer, message):
    with pytest.raises(InputError, match=message):
        ddp.processes(settings(**trainer))


@pytest.fixture
def job_of_slurm(tmp_path, monkeypatch):
    """A job of Slurm's with two machines, both of which are this one; ``steps`` has what ``srun`` was asked."""
    (tmp_path / "bin").mkdir()
    steps = tmp_path / "steps"
    scripts = {
        "scontrol": "printf 'here\\nthere\\n'",
        "srun": f'echo "$NODE_RANK $*" >> {steps}; while [ "${{1#--}}" != "$1" ]; do shift; done; exec "$@"',
    }
    for name, script in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "[here,there]")
    monkeypatch.setattr("socket.gethostname", lambda: "127.0.0.1")
    return steps


def test_two_machines_train_what_one_process_trains(fairpriv, small, tmp_path, job_of_slurm):
    more = ["defense=fair_finetune", "defense.penalty=1", "defense.batch_size=101", "logger=none"]
    one, two = (tmp_path / name for name in ("one", "two"))
    assert fairpriv(*small, *more, f"paths.root={one}").status == 0
    ended = fairpriv(*small, *more, f"paths.root={two}", "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2")
    assert ended.status == 0, ended.err
    (alone,), (shared,) = find_results([one])[0], find_results([two])[0]
    same(alone, shared)
    same_weights(one / "cache", two / "cache", "fits/*.safetensors")
    told = sorted(line.split(sys.executable)[0] for line in job_of_slurm.read_text().splitlines())
    wanted = "--overlap --nodes=1 --ntasks=1 --nodelist="
    assert told == [f"0 {wanted}here ", f"1 {wanted}there "]


def test_more_machines_than_the_job_has_are_refused(job_of_slurm):
    with pytest.raises(InputError, match=r"trainer.num_nodes=3: this job of Slurm's has 2: hydra.launcher.nodes=3"):
        ddp.processes(settings(devices=2, num_nodes=3))
    assert ddp.processes(settings(devices=2, num_nodes=2)) == 4
    (job_of_slurm.parent / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(InputError, match=r"trainer.num_nodes=2: scontrol does not name the machines of this job"):
        ddp.processes(settings(devices=2, num_nodes=2))


def test_only_a_language_model_is_sharded():
    with pytest.raises(InputError, match=r"trainer\.strategy=fsdp shards language models.* trainer=ddp"):
        ddp.processes(settings(devices=2, strategy="fsdp") | {"task": "classifier"})


def test_a_model_that_is_spread_over_devices_is_not_shared_as_well():
    config = settings(devices=2) | {"model": {"device_map": "auto"}}
    with pytest.raises(InputError, match=r"model\.device_map=auto"):
        ddp.processes(config)
