"""Cells as tasks of a Ray cluster, in worker processes that Ray keeps, wherever there is room for one."""

from __future__ import annotations

import functools
import os
import pickle
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fairpriv.errors import InputError
from fairpriv.sweep.progress import SweepProgress
from fairpriv.sweep.slots import LAST_WORDS, devices_of, join, run_one

Task = tuple[HydraContext, DictConfig, TaskFunction]


def connect(address: str | None) -> None:
    """Connect to the cluster at the address, else to the one that Ray finds, else start one on this machine.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
    except ImportError:
        raise InputError("hydra/launcher=ray: ray is not installed: pip install 'fairpriv[ray]'") from None
    if ray.is_initialized():
        return
    try:
        if at := re.fullmatch(r"([^:/]+):(\d+)", address or ""):  # Ray would try for minutes, and then abort
            socket.create_connection((at[1], int(at[2])), timeout=10).close()
        ray.init(address=address, include_dashboard=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"hydra.launcher.address={address or 'null'}: {said}") from error
    if display := SweepProgress.current:
        display.at_end.callback(ray.shutdown)


def resources(config: DictConfig, cpus: float | None, gpus: float | None) -> dict[str, float]:
    """Return what Ray keeps for a cell, as ``num_cpus`` and ``num_gpus``; what is None follows from the config.

    Raises:
        InputError: no machine of the cluster has as many, so that the cell would wait for ever.
    """
    import ray

    have = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    devices = devices_of(config)
    if cpus is None:
        cpus = devices * (config.get("threads") or 1)
    if gpus is None:
        on_cpu = OmegaConf.select(config, "trainer.accelerator") == "cpu"
        gpus = 0 if on_cpu or not any(gpu for _, gpu in have) else devices
    if not any(0 <= cpus <= cpu and 0 <= gpus <= gpu for cpu, gpu in have):
        listed = ", ".join(f"{cpu:g} and {gpu:g}" for cpu, gpu in have)
        raise InputError(
            f"hydra.launcher.cpus={cpus:g}, hydra.launcher.gpus={gpus:g}: no machine of the cluster gives a cell as "
            f"many; CPUs and GPUs of each: {listed}"
        )
    return {"num_cpus": cpus, "num_gpus": gpus}


def run(task: Task, jobs: Mapping[int, Sequence[str]], needs: Mapping[str, float]) -> list[JobReturn]:
    """Run jobs, given by number with their overrides; Ray begins one where its needs are free.

    If a worker dies, its job has failed, as its return value says, and the others go on. After the first Ctrl-C no
    further job is started; after the next one the running jobs are stopped.

    Raises:
        KeyboardInterrupt: after Ctrl-C, if there are jobs without a result.
    """
    import ray

    display = SweepProgress.current
    shared = ray.put(pickle.dumps((*task, Singleton.get_state()["instances"])))
    remote = ray.remote(num_returns="streaming", max_retries=0, **needs)(cell)
    waiting = {remote.remote(shared, sys.path, str(Path.cwd()), number, list(jobs[number])): number for number in jobs}
    running: dict[Any, int] = {}
    returned: dict[int, JobReturn] = {}
    try:
        while running or waiting:
            ready, _ = ray.wait([*running, *waiting], timeout=1, fetch_local=False)
            for stream in ready:
                number = (waiting if stream in waiting else running).pop(stream)
                words = filter_overrides(jobs[number])
                said = _next(stream, words)
                if said is None:
                    running[stream] = number
                    if display:
                        display.begin(number, words)
                else:
                    returned[number] = said
                    if display:
                        display.end(number, words, said._return_value)
            while waiting and display and display.interrupted:
                ray.cancel(waiting.popitem()[0])
        if len(returned) < len(jobs):
            raise KeyboardInterrupt
    finally:  # nothing is left, unless Ctrl-C came twice
        for stream in [*running, *waiting]:
            ray.cancel(stream)
        if running:
            ray.wait([*running], num_returns=len(running), timeout=LAST_WORDS, fetch_local=False)
    return [returned[number] for number in jobs]


def _next(stream: Any, words: Sequence[str]) -> JobReturn | None:
    """Return what the task says next: None where it has begun, then its result, or why there is none."""
    import ray

    try:
        said = ray.get(next(stream))
        assert said is None or isinstance(said, JobReturn)
        return said
    except (ray.exceptions.RayError, StopIteration) as error:
        lost = JobReturn(overrides=words, status=JobStatus.COMPLETED)
        text = next(iter(str(error).strip().splitlines()), "")
        lost.return_value = {"id": None, "status": "failed", "error": f"{type(error).__name__}: {text}"}
        return lost


def cell(task: bytes, path: list[str], folder: str, number: int, words: list[str]) -> Iterator[JobReturn | None]:
    """Run as a task of Ray: say that the job begins, then what it returned."""
    yield None
    os.chdir(folder)
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
    yield run_one(*_joined(task), number, words)


_joined = functools.lru_cache(maxsize=1)(join)  # a worker meets the same sweep again
