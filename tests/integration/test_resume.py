import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from light import until

from fairpriv.cli import main
from fairpriv.report.finding import NOT_FINISHED, find_results
from fairpriv.result import Result
from fairpriv.sweep import lock
from fairpriv.sweep.listing import entries

# Sweeps that are killed run in processes forked from one that has the heavy imports behind it: see tests/conftest.py.
WARM = multiprocessing.get_context("forkserver")
KILLS = int(os.environ.get("FAIRPRIV_KILLS", "5"))
SEED = int(os.environ.get("FAIRPRIV_SEED", "0"))
CHANGES = ("open", "os.rename", "os.remove", "os.utime", "os.truncate", "fcntl.flock")
WRITING = os.O_WRONLY | os.O_RDWR
HOLD = """
import sys, time
from pathlib import Path
from fairpriv.sweep.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def sweep(words: list[str], folder: Path, die_at: int | None) -> None:
    """The body of a process: the command line, in ``folder``, without the report at its end.

    ``die_at``: the process kills itself before its n-th change of a file, or with half of it written. ``made``
    gets a line for each result that it writes.
    """
    import torch

    from fairpriv.report import page as compare

    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    made = os.open("made", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fsync, changes = os.fsync, 0

    def dies() -> bool:
        nonlocal changes
        changes += 1
        return changes == die_at

    def note(event: str, args: tuple) -> None:
        if event not in CHANGES or (event == "open" and (not args[2] & WRITING or Path(str(args[0])).is_dir())):
            return
        if dies():
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "os.rename" and Path(args[1]).name == "result.json":
            os.write(made, f"{Path(args[1]).parent.name}\n".encode())

    def torn_or_whole(file: int) -> None:
        if dies():
            with contextlib.suppress(OSError):  # a folder
                os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    sys.addaudithook(note)
    os.fsync = torn_or_whole
    torch.set_num_threads(1)
    compare.compare = lambda folders: 0
    try:
        main(words)
    finally:
        Path("changes").write_text(str(changes))


def start(words: list[str], folder: Path, die_at: int | None = None) -> multiprocessing.Process:
    folder.mkdir(exist_ok=True)
    process = WARM.Process(target=sweep, args=(words, folder, die_at))
    process.start()
    return process


def status(process: multiprocessing.Process) -> int | None:
    process.join()
    return process.exitcode


def alive(processes: list[multiprocessing.Process]) -> bool:
    return any(process.is_alive() for process in processes)


def results(root: Path) -> dict[str, Result]:
    return {result.id: result for result in find_results([root])[0]}


def stamps(root: Path) -> dict[Path, tuple[int, int]]:
    """What tells a result from one that was written again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.glob("cells/*/result.json")}


def the_sweep(root: Path) -> Path:
    (found,) = (root / "sweeps").iterdir()
    return found


@pytest.fixture
def grid(mine) -> list[str]:
    own = ["--config-dir", str(mine), "dataset=people"]
    return ["-m", *own, "debug=fast", "paths.root=out", "defense=none,fine_tune", "seed=0,1"]


@pytest.fixture
def hold():
    """Makes another process hold the lock at a path."""
    processes = []

    def call(path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield call
    for process in processes:
        process.kill()
        process.communicate()


def test_a_sweep_that_is_killed_at_random_points_loses_nothing_and_runs_nothing_twice(grid, tmp_path):
    # Every other attempt dies before a random change of a file, since only these make a difference to what is left
    # behind, and every other one at a random time. What is finished is kept under watch until the grid is whole.
    draw = random.Random(SEED)
    start(["--version"], tmp_path / "warm").join()  # which waits for those imports
    began = time.monotonic()
    assert status(start(grid, tmp_path / "whole")) == 0, (tmp_path / "whole" / "stderr").read_text()
    seconds = time.monotonic() - began
    changes = int((tmp_path / "whole" / "changes").read_text())
    whole = {cell: result.metrics for cell, result in results(tmp_path / "whole" / "out").items()}
    assert len(whole) == 4

    kills = 0

    def attempts(folder: Path) -> Iterator[int]:
        """The same command over and over, until one of them comes to its end; yields how they ended."""
        nonlocal kills
        for how in itertools.cycle(["change", "time"]):
            process = start(grid, folder, draw.randint(1, changes) if how == "change" and kills < KILLS else None)
            if how == "time" and kills < KILLS:
                process.join(draw.uniform(0, seconds))
                process.kill()
            yield (ended := status(process))
            if ended != -signal.SIGKILL:
                return
            kills += 1

    while kills < KILLS:
        folder = tmp_path / f"after {kills}"
        root = folder / "out"
        finished: dict[Path, tuple[int, int]] = {}
        for ended in attempts(folder):
            assert ended in (0, -signal.SIGKILL), (folder / "stderr").read_text()
            assert finished.items() <= stamps(root).items()  # neither lost nor made again
            finished = stamps(root)
            if root.is_dir():
                found, left_out = find_results([root])
                assert {reason for _, reason in left_out} <= {NOT_FINISHED}  # nothing half-written
                assert {result.status for result in found} <= {"completed"}
        assert {cell: result.metrics for cell, result in results(root).items()} == whole
        assert sorted((folder / "made").read_text().split()) == sorted(whole)
        assert set(entries(the_sweep(root))) == set(whole)
        torn = [path for folder in ("cells", "sweeps") for path in (root / folder).rglob(".*.tmp")]
        assert (torn, [path for path in root.rglob("lock") if lock.holder(path)]) == ([], [])


def test_two_sweeps_side_by_side_share_the_work(grid, tmp_path):
    other = [*grid[:-1], "seed=1,2"]
    processes = [start(words, tmp_path) for words in (grid, grid, other)]
    assert [status(process) for process in processes] == [0, 0, 0], (tmp_path / "stderr").read_text()
    root = tmp_path / "out"
    assert len(results(root)) == 6
    assert sorted((tmp_path / "made").read_text().split()) == sorted(results(root))  # each was made once
    assert sorted(len(entries(folder)) for folder in (root / "sweeps").iterdir()) == [4, 4]
    assert list(root.rglob("lock")) == []


def test_three_equal_sweeps_at_once_make_each_cell_once_whatever_is_killed(grid, tmp_path):
    # The kills fall while cells run: what is made shows that, and each sweep has begun before one of them is killed.
    draw = random.Random(SEED)
    for number in range(max(1, KILLS // 10)):
        folder = tmp_path / f"round {number}"
        processes = [start(grid, folder) for _ in range(3)]
        until(lambda folder=folder, all_of=processes: list(folder.glob("out/cells/*/lock")) or not alive(all_of))
        time.sleep(draw.uniform(0, 2))
        processes.pop(draw.randrange(3)).kill()
        assert {status(process) for process in processes} <= {0, 1}, (folder / "stderr").read_text()
        assert status(start(grid, folder)) == 0  # with what the killed one held, which the others have left to it
        root = folder / "out"
        assert len(results(root)) == 4
        assert sorted((folder / "made").read_text().split()) == sorted(results(root))
        assert {result.status for result in results(root).values()} == {"completed"}
        assert [path for path in root.rglob("lock") if lock.holder(path)] == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 8 MB; only root may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_fails_in_the_middle_of_a_sweep_costs_nothing_that_is_finished(grid, tmp_path, small_disk, trouble):
    root, folder = small_disk / "out", tmp_path / "work"
    words = [f"paths.root={root}" if word.startswith("paths.root=") else word for word in grid]
    process = start(words, folder)
    until(lambda: list(root.glob("cells/*/result.json")) or not process.is_alive())
    if trouble == "full":
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as filler:
            while True:
                filler.write(b"0" * 4096)
                filler.flush()
    else:  # refused while a file is open for writing
        read_only = ["mount", "-o", "remount,ro", small_disk]
        until(lambda: not subprocess.run(read_only, capture_output=True).returncode or not process.is_alive())
    before = stamps(root)
    assert before
    assert status(process) in ({1, 2} if len(before) < 4 else {0, 1}), (folder / "stderr").read_text()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    (small_disk / "filler").unlink(missing_ok=True)
    _, left_out = find_results([root])
    assert {reason for _, reason in left_out} <= {NOT_FINISHED}  # nothing half-written
    assert before.items() <= stamps(root).items()
    assert status(start(words, folder)) == 0, (folder / "stderr").read_text()
    assert before.items() <= stamps(root).items()  # neither lost nor made again
    assert len(results(root)) == 4


def test_a_cell_that_another_process_runs_is_left_to_it(fairpriv, small, tmp_path, hold, fits):
    fairpriv(*small, "seed=1")
    (cell,) = (tmp_path / "out" / "cells").iterdir()
    (cell / "result.json").unlink()
    process = hold(cell / "lock")
    where = f"process {process.pid} on "

    alone = fairpriv(*small, "seed=1")
    (line,) = alone.err.splitlines()
    assert (alone.status, alone.out) == (1, "")
    assert line.startswith(f"fairpriv: {tmp_path / 'out' / 'cells' / cell.name} ")
    assert where in line

    command = ["-m", *small, "seed=0,1,2"]
    ended = fairpriv(*command)
    assert ended.status == 0
    assert "[  2/3] seed=1: running elsewhere" in ended.err
    assert "cells: 2 completed, 1 running elsewhere" in ended.out
    assert f"running elsewhere: {cell.name} seed=1: {where}" in ended.out
    assert len(fits) == 3

    process.kill()  # and not reaped
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    again = fairpriv(*command)
    assert again.status == 0
    assert "cells: 1 completed, 2 skipped (finished before)" in again.out
    assert not (cell / "lock").exists()


def test_the_lock_of_another_machine_counts_until_it_falls_silent(fairpriv, small, tmp_path):
    fairpriv(*small)
    (cell,) = (tmp_path / "out" / "cells").iterdir()
    owner = replace(lock.Owner.this_process(), host="gpu7", machine="gpu7 another boot", pid=12)
    (cell / "lock").write_text(json.dumps(asdict(owner)))
    assert "process 12 on gpu7" in fairpriv(*small, "retry=all").err
    long_ago = time.time() - 2 * lock.SILENCE
    os.utime(cell / "lock", (long_ago, long_ago))
    assert fairpriv(*small, "retry=all").status == 0
    assert not (cell / "lock").exists()


def test_a_full_disk_fails_the_cell_and_spares_what_is_finished(fairpriv, small, tmp_path, monkeypatch):
    write = Result.write

    def full(self, path):
        if self.config["seed"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, path)

    monkeypatch.setattr(Result, "write", full)
    command = ["-m", *small, "seed=0,1,2"]
    ended = fairpriv(*command)
    assert ended.status == 1
    assert re.search(r"\[  2/3\] seed=1: failed, .*: .*No space left on device", ended.err)
    assert "cells: 2 completed, 1 failed" in ended.out
    assert re.search(r"failed: seed=1: .*No space left on device", ended.out)
    before = stamps(tmp_path / "out")
    assert len(before) == 2
    monkeypatch.setattr(Result, "write", write)
    again = fairpriv(*command)
    assert again.status == 0
    assert "cells: 1 completed, 2 skipped (finished before)" in again.out
    assert before.items() <= stamps(tmp_path / "out").items()


def test_a_failed_cell_is_named_with_its_stage_and_reason(fairpriv, small):
    ended = fairpriv("-m", *small, "defense=fine_tune", "defense.lr=1e30,0.01")
    assert ended.status == 1
    assert "cells: 1 completed, 1 failed" in ended.out
    assert re.search(r"failed: \w{16}: people, .*lr=1e\+30.*: defend: NonFiniteLossError: loss became nan", ended.out)


def test_results_of_different_code_are_told_apart(fairpriv, small, tmp_path):
    command = ["-m", *small, "seed=0,1,2"]
    assert "code: " not in fairpriv(*command).out
    path = next((tmp_path / "out" / "cells").glob("*/result.json"))
    result = Result.read(path)
    result.git = {"commit": "0123456789abcdef", "dirty": False}
    result.write(path)
    ended = fairpriv(*command)
    assert re.search(r"^code: the cells come from 2 versions: .*\(2\), .*0123456.* \(1\)$", ended.out, re.MULTILINE)
    (line,) = [line for line in ended.err.splitlines() if "other code" in line]
    assert "0123456" in line
    assert "retry=all" in line


def test_a_sweep_s_list_drops_what_is_no_longer_asked_for_when_it_is_whole(fairpriv, small, tmp_path):
    # the data change: the cells are others, under the same name
    people = tmp_path / "people.csv"
    words = [*small, f"dataset.source.files=[{people}]", "seed=0,1"]
    source = next(Path(small[1]).glob("*.csv")).read_text()
    people.write_text(source)
    fairpriv("-m", *words)
    first = set(entries(the_sweep(tmp_path / "out")))
    people.write_text(source + "\n30,a,f,yes")
    assert "cells: 2 completed\n" in fairpriv("-m", *words).out
    second = set(entries(the_sweep(tmp_path / "out")))
    assert len(first) == len(second) == 2
    assert not first & second
