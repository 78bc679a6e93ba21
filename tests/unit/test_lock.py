import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fairpriv.sweep import lock as module
from fairpriv.sweep.lock import HeldError, Owner, holder, lock, started

HOLD = """
import sys, time
from pathlib import Path
from fairpriv.sweep.lock import lock
with lock(Path(sys.argv[1]), "adult none seed 0"):
    print("held", flush=True)
    time.sleep(600)
"""
# Takes the lock over and over; the file `inside` is there while somebody is inside.
CONTEND = """
import sys
from pathlib import Path
from fairpriv.sweep.lock import HeldError, lock
inside = Path(sys.argv[1]).parents[1] / "inside"
taken = 0
while taken < 100:
    try:
        with lock(Path(sys.argv[1])):
            inside.touch(exist_ok=False)
            taken += 1
            inside.unlink()
    except HeldError:
        pass
"""


@contextlib.contextmanager
def other_process(path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def left_behind(path: Path, owner: Owner, age: float = 0.0) -> None:
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "cells" / "a" / "lock"


@pytest.fixture(params=["proc", "ps"])
def system(request, monkeypatch):
    """Linux, and a system that has no /proc."""
    if request.param == "ps":
        monkeypatch.setattr(module, "PROC", Path("/nowhere"))
        monkeypatch.setattr(module, "machine", lambda: "here")


def test_a_lock_lasts_as_long_as_its_block(path):
    with lock(path, "adult none seed 0"):
        owner = holder(path)
        assert (owner.pid, owner.task) == (os.getpid(), "adult none seed 0")
    assert holder(path) is None
    assert not path.parent.exists()
    with lock(path):
        path.with_name("result.json").touch()
    with pytest.raises(ZeroDivisionError), lock(path):
        raise ZeroDivisionError
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_live_process_keeps_others_out_and_is_named(path):
    with other_process(path) as process:
        with pytest.raises(HeldError, match=f"process {process.pid} on ") as refused, lock(path):
            pass
        assert (refused.value.owner.pid, refused.value.owner.task) == (process.pid, "adult none seed 0")
        assert holder(path) == refused.value.owner
        os.utime(path, (0, 0))  # one of this machine is looked up, however long it has been silent
        assert holder(path).pid == process.pid


def test_a_killed_process_s_lock_is_taken_over_even_before_the_process_is_reaped(path):
    with other_process(path) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        assert json.loads(path.read_text())["pid"] == process.pid
        assert holder(path) is None
        with lock(path):
            assert holder(path).pid == os.getpid()


def test_a_pid_that_is_used_again_is_another_process(path, system):
    with other_process(path.with_name("another")) as process:
        owner = Owner("here", module.machine(), process.pid, started(process.pid), time.time())
        left_behind(path, owner)
        assert holder(path) == owner
        left_behind(path, replace(owner, started="Thu Jan  1 00:00:00 1970"))
        assert holder(path) is None


def test_when_a_process_started_stays_the_same_and_is_known_until_its_end(system):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    began = started(process.pid)
    assert began
    assert began == started(process.pid)
    process.communicate("\n")
    assert started(process.pid) is None


def test_of_another_machine_only_the_signs_of_life_are_seen(path):
    path.parent.mkdir(parents=True)
    owner = Owner("gpu7", "gpu7 another boot", os.getppid(), "1", time.time())
    left_behind(path, owner, age=module.SILENCE / 2)
    with pytest.raises(HeldError, match="on gpu7"), lock(path):
        pass
    left_behind(path, owner, age=module.SILENCE * 2)
    with lock(path):
        assert holder(path).pid == os.getpid()


def test_where_nothing_tells_when_a_process_started_signs_of_life_decide(path, monkeypatch):
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "PROC", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    owner = Owner("here", module.machine(), os.getppid(), "", time.time())
    left_behind(path, owner)
    assert holder(path) == owner
    left_behind(path, owner, age=module.SILENCE * 2)
    assert holder(path) is None


def test_a_held_lock_gives_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    with lock(path):
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1', "[]", '{"other": 1}'])
def test_a_file_that_a_crash_left_torn_is_no_lock(path, content):
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert holder(path) is None
    with lock(path):
        assert holder(path).pid == os.getpid()


def test_a_sign_of_life_far_in_the_future_is_none(path):
    path.parent.mkdir(parents=True)
    owner = Owner("gpu7", "gpu7 another boot", os.getppid(), "1", time.time() + 1e6)
    left_behind(path, owner, age=-module.SILENCE / 2)  # clocks differ
    assert holder(path) == owner
    left_behind(path, owner, age=-1e6)
    assert holder(path) is None
    with lock(path):
        assert holder(path).pid == os.getpid()


@pytest.mark.parametrize(
    "change",
    [{"pid": value} for value in ("12", None, [1], -1, 0, 1.5, True, 2**40, 10**30, {"a": 1})]
    + [{"machine": 3}, {"host": None}, {"started": 7}, {"task": ["a"]}]
    + [{"since": value} for value in ("now", None, 1e300, -1, 10**400, float("nan"))],
)
def test_a_lock_that_names_no_process_is_none(path, change):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(Owner.this_process()) | {"pid": os.getppid(), "started": ""} | change))
    assert holder(path) is None
    with lock(path):
        assert holder(path).pid == os.getpid()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"null", b"3"])
def test_a_lock_of_any_content_is_taken_over(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert holder(path) is None
    with lock(path):
        assert holder(path).pid == os.getpid()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/nowhere/at/all")])
def test_what_is_no_file_is_moved_out_of_the_lock_s_place(path, make, caplog):
    path.parent.mkdir(parents=True)
    make(path)
    if path.is_dir():
        (path / "kept").write_text("by somebody")
    assert holder(path) is None
    with lock(path):
        assert holder(path).pid == os.getpid()
    (aside,) = path.parent.iterdir()
    assert not aside.is_dir() or (aside / "kept").read_text() == "by somebody"
    assert [record.message for record in caplog.records] == [f"{path} is no file: it is renamed to {aside.name}"]


def test_what_another_took_over_is_left_to_it(path):
    with lock(path):
        other = Owner("gpu7", "gpu7 another boot", 1, "1", time.time())
        left_behind(path, other)
    assert holder(path) == other


def test_a_file_system_without_locks_does(path, monkeypatch):
    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(path):
        assert holder(path).pid == os.getpid()
    assert not path.exists()


def test_without_fcntl_as_on_windows_no_process_is_signalled_and_silence_decides(path, monkeypatch):
    monkeypatch.setattr(module, "fcntl", None)
    monkeypatch.setattr(os, "kill", None)
    with lock(path):
        assert holder(path).pid == os.getpid()
        assert started(os.getpid()) == ""
    assert not path.exists()
    path.parent.mkdir(parents=True)
    left_behind(path, Owner("here", module.machine(), 2**30, "", time.time()))
    with pytest.raises(HeldError), lock(path):
        pass
    os.utime(path, (0, time.time() - module.SILENCE - 1))
    with lock(path):
        pass


def test_fairpriv_is_imported_without_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; import fairpriv.cli, fairpriv.store"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_lock_that_is_removed_while_another_waits_for_it_is_made_anew(path, monkeypatch):
    path.parent.mkdir(parents=True)
    flock, waits = fcntl.flock, threading.Event()
    held, release = threading.Event(), threading.Event()

    def announced(file, how):
        waits.set()
        flock(file, how)

    def take():
        with lock(path):
            held.set()
            release.wait()

    with path.open("a+") as file:  # as a process that is about to remove its lock
        flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", announced)
        other = threading.Thread(target=take)
        other.start()
        waits.wait()
        path.unlink()
    held.wait()
    assert holder(path).pid == os.getpid()
    release.set()
    other.join()
    assert not path.exists()


def test_a_folder_that_is_removed_while_it_is_made_is_made_anew(path, monkeypatch):
    mkdir, races = os.mkdir, iter([FileExistsError(17, "File exists", str(path.parent))])

    def removed_meanwhile(*args, **options):
        for race in races:
            raise race
        mkdir(*args, **options)

    path.parents[1].mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(os, "mkdir", removed_meanwhile)
    with lock(path):
        assert holder(path).pid == os.getpid()


def test_a_file_in_the_place_of_the_folder_is_an_error(path):
    path.parents[1].mkdir(parents=True, exist_ok=True)
    path.parent.touch()
    with pytest.raises(FileExistsError), lock(path):
        pass


def test_no_two_processes_are_ever_inside(path):
    processes = [subprocess.Popen([sys.executable, "-c", CONTEND, str(path)], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3
    assert list(path.parents[1].iterdir()) == []
