"""Cells side by side on this machine, in worker processes that stay, each with device slots of its own.

A slot is a GPU (or a share of one), or on the CPU the cores of ``threads``. The process that runs the sweep trains
nothing. It hands out cells, shows their outcomes, and replaces a worker that dies.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from multiprocessing.connection import Connection, Pipe, wait
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fairpriv.errors import InputError
from fairpriv.sweep.ddp import cores
from fairpriv.sweep.progress import SweepProgress

LAST_WORDS = 10.0  # seconds in which a worker may end by itself: a stopped cell puts away what it holds


def environments(config: DictConfig, devices: int | None, slots: int | None) -> list[dict[str, str]]:
    """Return the environment variables to add for each worker, one entry for each worker that fits.

    Args:
        config: config of the sweep; ``threads``, ``trainer.accelerator`` and ``trainer.devices`` matter.
        devices: slots of a cell; None: as many as ``trainer.devices`` says, else 1.
        slots: total number of slots. None: one for each GPU of CUDA_VISIBLE_DEVICES, or of the machine; without GPUs as
            many as the cores hold ``threads``. With more slots than GPUs, several cells share a GPU.

    Raises:
        InputError: a cell asks for more slots than there are.
    """
    gpus = [] if OmegaConf.select(config, "trainer.accelerator") == "cpu" else visible_gpus()
    threads = OmegaConf.select(config, "threads")
    if devices is None:
        devices = devices_of(config)
    if slots is None:
        slots = len(gpus) or max(devices, cores() // (threads or cores()))
    for key, value in {"devices": devices, "slots": slots}.items():
        if value < 1:
            raise InputError(f"hydra.launcher.{key}={value}: must be at least 1")
    if gpus and devices > len(gpus):
        raise InputError(f"hydra.launcher.devices={devices}: a cell asks for more than there are, {len(gpus)} GPUs")
    if devices > slots:
        raise InputError(f"hydra.launcher.devices={devices}: a cell asks for more than hydra.launcher.slots={slots}")
    found = []
    handed_out = itertools.cycle(gpus)
    for _ in range(slots // devices):
        own = {"OMP_NUM_THREADS": str(threads)} if threads and "OMP_NUM_THREADS" not in os.environ else {}
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(itertools.islice(handed_out, devices))
        found.append(own)
    return found


def devices_of(config: DictConfig) -> int:
    """Return how many devices ``trainer.devices`` gives a cell; 1 where it leaves that open."""
    asked = OmegaConf.select(config, "trainer.devices")
    return len(asked) if isinstance(asked, ListConfig) else asked if isinstance(asked, int) else 1


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without starting CUDA."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        named = [name.strip() for name in visible.split(",") if name.strip()]
        return list(itertools.takewhile(lambda name: name != "-1", named))  # as CUDA reads it
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        return said.split()
    return []


class Worker:
    """A process that runs one cell after another.

    It has a session of its own, so that Ctrl-C reaches it only through this process. It ends when this process ends, in
    whatever way that happens.

    Args:
        own: variables added to its environment.
        task: the part that all jobs have in common, pickled.
        say: called with each line that the worker prints.
    """

    def __init__(self, own: Mapping[str, str], task: bytes, say: Callable[[str], None]) -> None:
        self.own = own
        self.job: int | None = None  # the number of the one it runs
        self.connection, other = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairpriv.sweep.slots", str(other.fileno())],
            env={**os.environ, **own},
            stdin=subprocess.PIPE,  # nothing is sent; when it closes, the worker knows that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[other.fileno()],
            start_new_session=True,
        )
        other.close()
        self._last_line = ""
        self._silent = False
        self._reader = threading.Thread(target=self._read, args=(say,), daemon=True)
        self._reader.start()
        with contextlib.suppress(OSError):  # it has died, which is seen when it is waited for
            self.connection.send(sys.path)
            self.connection.send_bytes(task)

    def start(self, job: int, words: Sequence[str]) -> None:
        """Give the worker a job: a number and overrides."""
        self.job = job
        with contextlib.suppress(OSError):
            self.connection.send((job, list(words)))

    def over(self) -> bool:
        """Return whether the worker or its job has ended."""
        return self.process.poll() is not None or self.connection.poll()

    def result(self) -> JobReturn | None:
        """Return the job's result; None where the worker died instead."""
        with contextlib.suppress(EOFError, OSError):
            if self.connection.poll():
                received = self.connection.recv()
                assert isinstance(received, JobReturn)
                return received
        return None

    def fate(self) -> str:
        """Describe how a worker ended, with its last words."""
        status = self.stop(LAST_WORDS)
        if status < 0:
            reason = " (as when memory runs out)" if status == -signal.SIGKILL else ""
            return f"its process was killed by {signal.Signals(-status).name}{reason}"
        return f"its process ended with status {status}" + (f": {self._last_line}" if self._last_line else "")

    def interrupt(self) -> None:
        """Send Ctrl-C to the running job, and show nothing of it."""
        self._silent = True
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.SIGINT)

    def stop(self, seconds: float) -> int:
        """Give the worker that time to end, then end it with all that it started; return its exit status."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(seconds, 0.1))
        with contextlib.suppress(OSError):  # nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        self._reader.join(1)
        assert self.process.stdin is not None
        self.process.stdin.close()
        return status

    def _read(self, say: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line := line.rstrip():
                    self._last_line = line
                    if not self._silent:
                        say(line)


class Staff:
    """Workers for the jobs of a sweep; each is started when there is a job for it, and stays.

    Args:
        task: the part that all jobs have in common: Hydra's context, the config, the task function.
        environments: environments of the workers; there is at most one worker for each.
    """

    def __init__(
        self, task: tuple[HydraContext, DictConfig, TaskFunction], environments: Sequence[Mapping[str, str]]
    ) -> None:
        self.workers: list[Worker] = []
        self._free = deque(environments)  # which no worker has
        self._task = pickle.dumps((*task, Singleton.get_state()["instances"]))
        self._display = SweepProgress.current
        if self._display:
            self._display.at_end.callback(self.dismiss)
        else:
            atexit.register(self.dismiss)

    def run(self, jobs: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        """Run jobs, given by number with their overrides.

        If a worker dies, its job has failed, as its return value says, and the others go on. After the first Ctrl-C no
        further job is started; after the next one the running jobs are stopped.

        Raises:
            KeyboardInterrupt: after Ctrl-C, if there are jobs without a result.
        """
        display = self._display
        left = deque(jobs)
        returned: dict[int, JobReturn] = {}
        try:
            while True:
                while left and not (display and display.interrupted) and (worker := self._idle()):
                    number = left.popleft()
                    if display:
                        display.begin(number, filter_overrides(jobs[number]))
                    worker.start(number, jobs[number])
                busy = [(worker, worker.job) for worker in self.workers if worker.job is not None]
                if not busy:
                    break
                wait([worker.connection for worker, _ in busy], timeout=1)
                for worker, number in busy:
                    if worker.over():
                        returned[number] = self._end(worker, filter_overrides(jobs[number]))
                        if display:
                            display.end(number, filter_overrides(jobs[number]), returned[number]._return_value)
        except BaseException:
            for worker in self.workers:
                worker.interrupt()
            self.dismiss()
            raise
        if left:
            raise KeyboardInterrupt
        return [returned[number] for number in jobs]

    def _idle(self) -> Worker | None:
        for worker in self.workers:
            if worker.job is None:
                return worker
        if not self._free:
            return None
        self.workers.append(Worker(self._free.popleft(), self._task, self._display.say if self._display else _print))
        return self.workers[-1]

    def _end(self, worker: Worker, words: Sequence[str]) -> JobReturn:
        """Return the outcome of the worker's job; a dead worker gives its place to another."""
        worker.job = None
        result = worker.result()
        if result is None:
            self.workers.remove(worker)
            self._free.append(worker.own)
            result = JobReturn(overrides=words, status=JobStatus.COMPLETED)
            result.return_value = {"id": None, "status": "failed", "error": worker.fate()}
        return result

    def dismiss(self) -> None:
        """End all workers."""
        deadline = time.monotonic() + LAST_WORDS
        try:
            for worker in self.workers:
                worker.connection.close()
            for worker in self.workers:
                worker.stop(deadline - time.monotonic())
        finally:  # also after a third Ctrl-C
            for worker in self.workers:
                worker.process.kill()
            self.workers.clear()


def _print(line: str) -> None:
    print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece, from any thread


def work(connection: Connection) -> None:
    """Run as a worker: receive what all jobs have in common, then one job after another until there are no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        sys.path[:] = connection.recv()
        task = join(connection.recv_bytes())
        while True:
            number, words = connection.recv()
            connection.send(run_one(*task, number, words))


def join(pickled: bytes) -> tuple[HydraContext, DictConfig, TaskFunction]:
    """Take part in another process's sweep: take over Hydra's state, and return what all jobs have in common."""
    plugins = Plugins.instance()  # before unpickling what they define, since Hydra runs their modules anew
    hydra_context, config, task_function, instances = pickle.loads(pickled)
    setup_globals()
    Singleton.set_state({**Singleton.get_state(), "instances": {**instances, Plugins: plugins}})
    return hydra_context, config, task_function


def run_one(
    hydra_context: HydraContext, config: DictConfig, task_function: TaskFunction, number: int, words: list[str]
) -> JobReturn:
    """Run the job of this number and these overrides in this process, as Hydra's own launcher would."""
    cfg = hydra_context.config_loader.load_sweep_config(config, words)
    with open_dict(cfg):
        cfg.hydra.job.id = f"{cfg.hydra.job.name}_{number}"
        cfg.hydra.job.num = number
    HydraConfig.instance().set_config(cfg)
    return run_job(
        hydra_context=hydra_context,
        config=cfg,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    descriptor = int(sys.argv.pop())
    os.set_inheritable(descriptor, False)
    # Into a pipe, what a job prints would wait for more, and be lost where a later job ends the process.
    cast(TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    work(Connection(descriptor))
