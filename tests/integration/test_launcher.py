"""Launchers: most tests give them a light job (light.py) in place of a cell, the others run a small sweep."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import light
import pytest
from hydra.errors import ConfigCompositionException
from light import until
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress, TextColumn

from fairpriv.cli import CONF
from fairpriv.config.compose import explain
from fairpriv.errors import InputError
from fairpriv.report.finding import find_results
from fairpriv.sweep.lock import started
from fairpriv.sweep.progress import SweepProgress
from fairpriv.sweep.ray_tasks import connect, resources
from fairpriv.sweep.slots import Staff, environments

REPOSITORY = Path(__file__).parents[2]
WITH_LIGHT = os.pathsep.join([str(Path(light.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
SLOTS = "hydra/launcher=local_slots"


def alive(pid: int) -> bool:
    return started(pid) is not None


@pytest.fixture
def notes(tmp_path):
    """Reads what the light jobs have noted: by their names, of those that began; and the names of those that ended."""
    folder = tmp_path / "out" / "notes"

    class Notes:
        go = folder / "go"

        @property
        def began(self) -> dict[str, dict]:
            return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.began")}

        @property
        def ended(self) -> set[str]:
            return {path.stem for path in folder.glob("*.ended")}

        @property
        def callbacks(self) -> dict[str, str]:
            return {path.stem: path.read_text() for path in folder.glob("*.callback")}

    return Notes()


def jobs(*names: str) -> list[str]:
    words = f"game.property={','.join(names)}"  # any name goes where the dataset lists none
    return ["-m", words, "~dataset.groups", "paths.root=out"]


@pytest.mark.parametrize(
    ("settings", "cores", "visible", "expected"),
    [
        ({"threads": 1}, 4, None, [{"OMP_NUM_THREADS": "1"}] * 4),
        ({"threads": 3}, 8, None, [{"OMP_NUM_THREADS": "3"}] * 2),
        ({"threads": None}, 8, None, [{}]),  # torch takes all cores
        ({"threads": 16}, 8, None, [{"OMP_NUM_THREADS": "16"}]),  # one cell always fits
        ({"threads": 1, "slots": 3}, 8, None, [{"OMP_NUM_THREADS": "1"}] * 3),
        ({"threads": 1, "trainer": {"devices": 2}}, 8, None, [{"OMP_NUM_THREADS": "1"}] * 4),
        ({"threads": None, "trainer": {"devices": 2}}, 2, None, [{}]),
        ({"threads": None}, 8, "0,1,2", [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "012"]),
        ({"threads": None, "devices": 2}, 8, "GPU-a,1,2", [{"CUDA_VISIBLE_DEVICES": "GPU-a,1"}]),
        ({"threads": None, "trainer": {"devices": [0, 1]}}, 8, "6,7", [{"CUDA_VISIBLE_DEVICES": "6,7"}]),
        ({"threads": None, "slots": 4}, 8, "6,7", [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "6767"]),  # shared
        ({"threads": None, "slots": 1}, 8, "6,7", [{"CUDA_VISIBLE_DEVICES": "6"}]),
        ({"threads": 4, "trainer": {"accelerator": "cpu"}}, 8, "0,1,2", [{"OMP_NUM_THREADS": "4"}] * 2),
        ({"threads": 4}, 8, "", [{"OMP_NUM_THREADS": "4"}] * 2),
        ({"threads": None}, 8, "5,-1,6", [{"CUDA_VISIBLE_DEVICES": "5"}]),  # as CUDA reads it
    ],
)  # fmt: skip
def test_as_many_cells_as_fit_each_with_its_own_devices(monkeypatch, settings, cores, visible, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slots, devices = settings.pop("slots", None), settings.pop("devices", None)
    assert environments(OmegaConf.create(settings), devices, slots) == expected


def test_the_machine_s_gpus_are_asked_for_where_nothing_names_them(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\n[ "$1" = --query-gpu=index ] && printf "0\\n1\\n"\n')
    script.chmod(0o755)
    found = environments(OmegaConf.create({"threads": None}), None, None)
    assert found == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    script.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert environments(OmegaConf.create({"threads": None}), None, None) == [{}]


@pytest.mark.parametrize(
    ("devices", "slots", "said"),
    [
        (3, None, "hydra.launcher.devices=3: a cell asks for more than there are, 2 GPUs"),
        (3, 4, "hydra.launcher.devices=3: a cell asks for more than there are, 2 GPUs"),
        (2, 1, "hydra.launcher.devices=2: a cell asks for more than hydra.launcher.slots=1"),
        (0, None, "hydra.launcher.devices=0: must be at least 1"),
        (1, 0, "hydra.launcher.slots=0: must be at least 1"),
    ],
)
def test_a_cell_that_does_not_fit_is_refused(monkeypatch, devices, slots, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match=f"^{re.escape(said)}"):
        environments(OmegaConf.create({"threads": 1}), devices, slots)


def test_workers_stay_have_devices_of_their_own_and_are_replaced_when_they_die(fairpriv, monkeypatch, notes):
    returned = []
    run = Staff.run
    monkeypatch.setattr(Staff, "run", lambda *args: returned.extend(run(*args)) or returned)
    monkeypatch.setattr("fairpriv.cli.job", light.job)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for name in ("OMP_NUM_THREADS", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    names = ["meet1", "meet2", "die", "noise", "leave", "join1", "join2"]
    ended = fairpriv(*jobs(*names), SLOTS, "+hydra.callbacks.mine._target_=light.Noting")
    assert ended.status == 1
    lines = ended.err.splitlines()
    died = "failed: its process was killed by SIGKILL (as when memory runs out)"
    left = "failed: its process ended with status 3: last words"
    fates = [{"die": died, "leave": left}.get(name, "completed") for name in names]
    cells = [re.sub(r"^\[ +\d/7\] |, [0-9.]+ s", "", line) for line in lines if line.startswith("[")]
    assert sorted(cells) == sorted(f"game.property={name}: {fate}" for name, fate in zip(names, fates, strict=True))
    assert {"said to stdout", "said to stderr", "words before the last", "last words"} <= set(lines)
    assert [job.overrides[0] for job in returned] == [f"game.property={name}" for name in names]
    assert [f"failed: {job.return_value['error']}" for job in returned if job.return_value["error"]] == [died, left]
    for name, fate in (("die", died), ("leave", left)):
        assert fate.replace("failed:", f"failed: game.property={name}:") in ended.out.splitlines()

    began = notes.began
    assert began.keys() == set(names)
    assert notes.ended == set(names) - {"die", "leave"}
    assert {began["meet1"]["CUDA_VISIBLE_DEVICES"], began["meet2"]["CUDA_VISIBLE_DEVICES"]} == {"3", "5"}  # at once
    workers = {note["pid"]: note["CUDA_VISIBLE_DEVICES"] for note in began.values()}
    assert len(workers) == 4  # two, and two in the places of those that died
    for note in began.values():
        assert note["CUDA_VISIBLE_DEVICES"] == workers[note["pid"]]
        assert (note["torch"], note["OMP_NUM_THREADS"]) == (False, "1")
        assert not alive(note["pid"])
    assert notes.callbacks["noise"].split() == [str(began["noise"]["pid"])] * 2


class Command:
    """A command line in a process and a session of its own, as in a terminal."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.err = folder / "err"
        environment = {**os.environ, "PYTHONPATH": WITH_LIGHT}
        with self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    @property
    def said(self) -> list[str]:
        return [re.sub(r", [0-9.]+ s", "", line) for line in self.err.read_text().splitlines()]

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for_interrupted(self) -> None:
        until(lambda: any("Ctrl-C again stops" in line for line in self.said), 30)

    def ends(self) -> int:
        return self.process.wait(60)


@pytest.fixture
def command(tmp_path):
    started = []

    def start(*words: str) -> Command:
        started.append(Command(tmp_path, *words))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_ctrl_c_once_lets_running_cells_end_and_starts_no_other(command, notes):
    sweep = command("light", *jobs("wait1", "wait2", "a", "b"), SLOTS, "hydra.launcher.slots=2")
    until(lambda: len(notes.began) == 2)
    sweep.ctrl_c()
    sweep.wait_for_interrupted()
    notes.go.touch()
    assert sweep.ends() == 130
    assert notes.began.keys() == notes.ended == {"wait1", "wait2"}
    first, *cells, last = sweep.said
    assert first.startswith("fairpriv: interrupted: the cells that run come to their end, the rest waits")
    assert {line.partition("] ")[2] for line in cells} == {f"game.property=wait{i}: completed" for i in (1, 2)}
    assert last.startswith("fairpriv: interrupted; what is finished is kept")


@pytest.mark.parametrize("how", ["Ctrl-C twice", "SIGKILL"])
def test_no_worker_outlives_its_sweep(command, notes, how):
    sweep = command("light", *jobs("wait1", "wait2", "a"), SLOTS, "hydra.launcher.slots=2")
    until(lambda: len(notes.began) == 2)
    workers = [note["pid"] for note in notes.began.values()]
    if how == "SIGKILL":
        sweep.process.kill()
        assert sweep.ends() == -signal.SIGKILL
    else:
        sweep.ctrl_c()
        sweep.wait_for_interrupted()
        assert all(map(alive, workers))
        sweep.ctrl_c()
        assert sweep.ends() == 130
        assert len(sweep.said) == 2
        assert sweep.said[-1].startswith("fairpriv: interrupted; what is finished is kept")
    until(lambda: not any(map(alive, workers)), 30)
    assert notes.began.keys() == {"wait1", "wait2"}
    assert notes.ended == set()


def test_ctrl_c_once_in_a_sweep_of_one_process(command, notes):
    sweep = command("light", *jobs("wait1", "a"))
    until(lambda: len(notes.began) == 1)
    sweep.ctrl_c()
    sweep.wait_for_interrupted()
    notes.go.touch()
    assert sweep.ends() == 130
    assert notes.began.keys() == notes.ended == {"wait1"}
    assert sweep.said[1] == "[  1/2] game.property=wait1: completed"


def test_a_sweep_on_slots_is_stopped_and_goes_on(command, fairpriv, mine, tmp_path):
    # One of its cells trains for ever, until a file of the user's says otherwise.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dataset").symlink_to(mine / "dataset")
    (tmp_path / "mine" / "defense").mkdir()
    long = (mine / "defense" / "long.yaml").read_text()
    (tmp_path / "mine" / "defense" / "long.yaml").write_text(long)
    words = ["--config-dir", "mine", "dataset=people", "debug=fast", "paths.root=out", "defense=long,none,fine_tune"]
    sweep = command("fairpriv", "-m", *words, SLOTS, "hydra.launcher.slots=2")
    cells = tmp_path / "out" / "cells"
    # beside the long one the others end, one after the other
    until(lambda: len(list(cells.glob("*/result.json"))) == 2 and len(list(cells.glob("*/lock"))) == 1)
    (lock,) = cells.glob("*/lock")
    sweep.ctrl_c()
    sweep.wait_for_interrupted()
    assert lock.exists()
    sweep.ctrl_c()
    assert sweep.ends() == 130
    assert sweep.said[-1].startswith("fairpriv: interrupted; what is finished is kept")
    assert not lock.exists()
    assert [path for path in (tmp_path / "out").rglob(".*") if path.is_file()] == []
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")}

    (tmp_path / "mine" / "defense" / "long.yaml").write_text(long.replace("1000000", "1"))
    ended = fairpriv("-m", *words)  # by whatever launcher
    assert ended.status == 0
    assert "cells: 1 completed, 2 skipped (finished before)" in ended.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [result.status for result in find_results([tmp_path / "out"])[0]] == ["completed"] * 3


def test_what_workers_say_stays_apart_from_the_bar():
    screen = io.StringIO()
    display = SweepProgress()
    console = Console(file=screen, force_terminal=True, width=60, legacy_windows=False)
    display.folder, display.total = Path("out"), 3
    column = TextColumn("{task.completed} of {task.total}: {task.description}", markup=False)
    display.bar = Progress(column, console=console)
    with display.bar:
        display.bar.add_task("", total=3)
        for number in range(3):
            display.begin(number, [f"dataset.dimensions=[a{number}]"])
        display.bar.refresh()
        threads = [
            threading.Thread(target=lambda n=n: [display.say(f"worker {n} says [red]{i}") for i in range(20)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        display.end(1, ["dataset.dimensions=[a1]"], {"status": "failed", "error": "why"})
        display.end(2, ["dataset.dimensions=[a2]"], {"status": "completed", "error": None})
        display.bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    lines = [line.rstrip() for line in shown if "says" in line or "failed" in line]
    expected = [f"worker {n} says [red]{i}" for n in range(4) for i in range(20)]
    assert sorted(lines[:-1]) == sorted(expected)
    assert re.fullmatch(r"\[ +1/3\] dataset.dimensions=\[a1\]: failed, [0-9.]+ s: why", lines[-1])
    bars = [line.rstrip() for line in shown if " of 3" in line]
    assert "0 of 3: 3 run: dataset.dimensions=[a0], dataset.dimensions=…" in bars
    assert bars[-1] == "2 of 3: dataset.dimensions=[a0]"


SBATCH = """\
#!{python}
# Slurm in miniature: takes the script that sbatch would, and runs the tasks of its array by themselves.
import os, re, subprocess, sys
text = open(sys.argv[1]).read()
open(os.path.join({folder!r}, "script"), "w").write(text)
log = open(os.path.join({folder!r}, "log"), "w")
array = re.search(r"--array=0-([0-9]+)", text)  # of one job there is none
last = int(array[1]) if array else 0
for task in range(last + 1):
    own = {{"SLURM_JOB_ID": "77"}}
    if array:
        own = {{"SLURM_JOB_ID": str(78 + task), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)}}
    own |= {{"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}}
    own |= {{"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node1"}}
    run = f'bash "$0"; touch {folder}/{{task}}.over'
    subprocess.Popen(["bash", "-c", run, sys.argv[1]], env=os.environ | own, stdout=log, stderr=log)
print("Submitted batch job 77")
"""
SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == --unbuffered ]] && shift || shift 2; done\nexec "$@"\n'
SACCT = """\
#!/bin/bash
echo "JobID|State|NodeList"
for i in 0 1 2; do [ -e {folder}/$i.over ] && echo "77_$i|OUT_OF_MEMORY|node1" || echo "77_$i|RUNNING|node1"; done
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of one node; a folder with the script that was submitted."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable, folder=str(folder)),
        "srun": SRUN,
        "sacct": SACCT.format(folder=folder),  # asked about those that left no result
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", WITH_LIGHT)
    return folder


def test_slurm_gets_one_array_of_jobs_of_which_one_is_lost(fairpriv, monkeypatch, notes, slurm):
    monkeypatch.setattr("fairpriv.cli.job", light.job)
    monkeypatch.setattr("submitit.SlurmJob.watcher._delay_s", 0.5)  # not ten minutes
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 1)
    wanted = ["partition=gpu", "timeout_min=600", "gpus_per_node=2", "array_parallelism=2"]
    words = [f"hydra.launcher.{word}" for word in wanted]
    ended = fairpriv(*jobs("a", "die", "b"), "hydra/launcher=submitit_slurm", *words)
    assert ended.status == 1
    script = (slurm / "script").read_text()
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    asked = {"partition": "gpu", "time": "600", "gpus-per-node": "2", "array": "0-2%2", "nodes": "1"}
    assert asked.items() <= flags.items()
    assert flags["ntasks-per-node"] == "1"  # a cell starts its processes itself
    assert re.search(rf"^srun .* {sys.executable} -u -m submitit.core._submit ", script, re.MULTILINE)
    first, *lines = ended.err.splitlines()
    assert re.fullmatch(r"3 cells go to submitit_slurm; how far they are: fairpriv status out/sweeps/\S+", first)
    assert lines[0] == "[  1/3] game.property=a: completed"
    lost = r"\[  2/3\] game.property=die: failed: job 77_1 left no result \(state OUT_OF_MEMORY\); its log: \S+"
    assert re.fullmatch(lost, lines[1])
    assert lines[2] == "[  3/3] game.property=b: completed"
    assert len(lines) == 3
    assert notes.ended == {"a", "b"}
    assert len({note["pid"] for note in notes.began.values()}) == 3


def test_a_sweep_of_the_users_classes_through_submitit_goes_on_by_another_launcher(fairpriv, tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "plugin" / "mine", tmp_path / "lab")
    words = [
        "--config-dir",
        tmp_path / "lab",
        "-m",
        "dataset=lab_people",
        "debug=fast",
        "game.rows=40",
        "paths.root=out",
    ]
    ended = fairpriv(*words, "defense=lab_noise", "hydra/launcher=submitit_local")
    assert ended.status == 0, ended.err
    assert ended.err.splitlines()[-1].endswith(" defense=lab_noise: completed")
    assert re.search(r"lab_people +lab_noise +0\.\d{3}", ended.out)
    ended = fairpriv(*words, "defense=lab_noise,none")
    assert ended.status == 0
    assert "cells: 1 completed, 1 skipped (finished before)" in ended.out
    results = find_results([tmp_path / "out"])[0]
    assert [result.status for result in results] == ["completed", "completed"]
    assert [result.metrics.get("defense/sigma") for result in results].count(0.25) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_slurm: RuntimeError: Could not detect"),
        ("hydra/launcher=local_slot", "(did you mean 'local_slots'?)"),
        (f"{SLOTS} hydra.launcher.slot=2", "unknown key hydra.launcher.slot"),
        (f"{SLOTS} hydra.launcher.slots=two", "hydra.launcher.slots: Value 'two'"),
        (f"{SLOTS} hydra.launcher.slots=0", "hydra.launcher.slots=0: must be at least 1"),
    ],
)
def test_a_launcher_that_cannot_begin_says_so_in_one_line(fairpriv, monkeypatch, words, said):
    monkeypatch.setenv("PATH", "")  # a machine without Slurm
    ended = fairpriv(*jobs("a", "b"), *words.split())
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith("fairpriv: ")
    assert said in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_an_engine_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    error = ConfigCompositionException("Could not override.\nCould not find 'hydra/launcher/submitit_slurm'")
    expected = "hydra-submitit-launcher is not installed: pip install 'fairpriv[slurm]'"
    assert explain(error, CONF, [], []) == f"hydra/launcher=submitit_slurm: {expected}"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=re.escape("=ray: ray is not installed: pip install 'fairpriv[ray]'")):
        connect(None)
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert extras["slurm"][0].startswith("hydra-submitit-launcher")
    assert extras["ray"][0].startswith("ray>=")


@pytest.fixture
def ray(monkeypatch):
    """Ray in miniature: one machine of 4 CPUs and 2 GPUs, whose tasks run in this process when they are waited for."""

    class RayError(Exception):
        pass

    seen = SimpleNamespace(address="", options={}, cancelled=0)

    def remote(**options):
        seen.options = options

        def begin(function):
            def stream(*arguments):
                word = arguments[-1][0]
                for said in function(*arguments):
                    if said and "lost" in word:
                        raise RayError("The worker died.\nIts log: ...")
                    if said and "ctrl-c" in word:
                        signal.raise_signal(signal.SIGINT)
                    yield said

            return SimpleNamespace(remote=stream)

        return begin

    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda address, **_: setattr(seen, "address", address),
        shutdown=lambda: setattr(seen, "address", "left"),
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0, "memory": 1e9}}],
        put=lambda value: value,
        get=lambda value: value,
        remote=remote,
        wait=lambda streams, **_: (streams[:1], streams[1:]),
        cancel=lambda _: setattr(seen, "cancelled", seen.cancelled + 1),
        exceptions=SimpleNamespace(RayError=RayError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("fairpriv.cli.job", light.job)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    return seen


def test_ray_gets_a_task_a_cell_and_a_lost_one_fails_alone(fairpriv, ray, notes):
    ended = fairpriv(*jobs("a", "lost", "b"), "hydra/launcher=ray", "hydra.launcher.gpus=0.5", "threads=2")
    assert ended.status == 1
    lines = [re.sub(r", [0-9.]+ s", "", line) for line in ended.err.splitlines()]
    died = "failed: RayError: The worker died."
    assert lines == [
        "[  1/3] game.property=a: completed",
        f"[  2/3] game.property=lost: {died}",
        "[  3/3] game.property=b: completed",
    ]
    assert f"failed: game.property=lost: {died.removeprefix('failed: ')}" in ended.out
    assert notes.ended == {"a", "lost", "b"}
    assert ray.options == {"num_returns": "streaming", "max_retries": 0, "num_cpus": 2, "num_gpus": 0.5}
    assert (ray.address, ray.cancelled) == ("left", 0)


def test_ctrl_c_once_starts_no_other_task_of_ray_s(fairpriv, ray, notes):
    ended = fairpriv(*jobs("ctrl-c", "a", "b"), "hydra/launcher=ray")
    assert ended.status == 130
    assert (notes.ended, ray.cancelled) == ({"ctrl-c"}, 2)
    assert "[  1/3] game.property=ctrl-c: completed" in ended.err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:66000"])
def test_an_address_where_no_cluster_answers_is_named(ray, address):
    with pytest.raises(InputError, match=f"^hydra.launcher.address={address}: "):
        connect(address)
    assert ray.address == ""


@pytest.mark.parametrize(
    ("config", "cpus", "gpus", "expected"),
    [
        ({"threads": None, "trainer": {"devices": "auto"}}, None, None, (1, 1)),
        ({"threads": 2, "trainer": {"devices": 2}}, None, None, (4, 2)),
        ({"threads": 1, "trainer": {"devices": 2, "accelerator": "cpu"}}, None, None, (2, 0)),
        ({"threads": 4, "trainer": {"devices": [0, 1]}}, 0.5, 0.25, (0.5, 0.25)),
        ({"threads": 8, "trainer": {}}, None, None, "hydra.launcher.cpus=8, hydra.launcher.gpus=1: no machine"),
        ({"threads": 1, "trainer": {}}, None, 3, "gpus=3: no machine of the cluster gives a cell as many; CPUs and"),
        ({"threads": 1, "trainer": {}}, -1, None, "hydra.launcher.cpus=-1"),
    ],
)
def test_a_task_of_ray_s_asks_for_what_its_cell_uses(ray, config, cpus, gpus, expected):
    if isinstance(expected, str):
        with pytest.raises(InputError, match=re.escape(expected)):
            resources(OmegaConf.create(config), cpus, gpus)
    else:
        assert tuple(resources(OmegaConf.create(config), cpus, gpus).values()) == expected


@pytest.mark.slow
def test_a_cluster_of_ray_s_own_runs_a_sweep_that_goes_on_elsewhere(small, tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "fairpriv", "-m", *small]
    words = ["defense=none,fine_tune", "hydra/launcher=ray", "hydra.launcher.address=local", "hydra.launcher.cpus=0.5"]
    ended = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    assert [result.status for result in find_results([tmp_path / "out"])[0]] == ["completed"] * 2
    again = subprocess.run([*command, words[0]], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert "cells: 2 skipped (finished before)" in again.stdout
