"""Training of one cell by several processes, which are started here, given the cell, and watched.

They run on this machine; on several (``trainer.num_nodes``) they are steps of a job of Slurm's, started by ``srun``.

The process that runs the cell (perhaps in the middle of a sweep) trains nothing itself. It starts ``python -m
fairpriv.sweep.ddp`` once a rank and waits, so that no part of a process group remains for the next cell. The first
rank measures and writes; its measurements come back, and are recorded like those of any other cell.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairpriv import patches
from fairpriv.config.plugins import foreign_code
from fairpriv.errors import InputError

if TYPE_CHECKING:
    from fairpriv.result import Result

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp")
LAST_WORDS = 3.0  # seconds in which the other ranks may end by themselves when one has failed
PATIENCE = 2.0  # seconds that ranks have to end after they were asked to
HOST = "127.0.0.1"
# What torchrun and Lightning leave in the environment; a rank must find its own there and nothing else.
FOREIGN = re.compile(r"((LOCAL|NODE|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|(MASTER|TORCHELASTIC|PL)_\w+")


def refuse_torchrun(words: Sequence[str]) -> None:
    """Raise `InputError` where torchrun, or a program like it, started this command line in several processes."""
    started = "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" in os.environ
    if started or os.environ.get("WORLD_SIZE", "1") != "1":
        rest = [word for word in words if not word.startswith(("trainer=", "trainer.devices="))]
        devices = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or "N"
        command = shlex.join(["fairpriv", *rest, "trainer=ddp", f"trainer.devices={devices}"])
        raise InputError(
            "torchrun (TORCHELASTIC_RUN_ID, LOCAL_RANK or WORLD_SIZE in the environment) would run every cell several "
            f"times over; fairpriv starts the processes itself: {command}"
        )


def processes(config: Mapping[str, Any]) -> int:
    """Count the processes that ``config["trainer"]`` asks for; raise `InputError` where they cannot run."""
    trainer = config["trainer"]
    devices, strategy = trainer.get("devices", "auto"), trainer.get("strategy") or "auto"
    if isinstance(devices, list):
        number = len(devices)
    elif devices in (None, "auto", "-1", -1):
        number = _gpus(trainer)
    elif str(devices).isdecimal():
        number = int(devices)
    else:
        raise InputError(f"trainer.devices={devices}: must be a number, a list such as [0,1], or auto")
    nodes = trainer.get("num_nodes") or 1
    if number * nodes <= 1:
        return 1
    machines(nodes)
    if strategy not in STRATEGIES:
        raise InputError(f"trainer.strategy={strategy}: with several devices it must be one of {', '.join(STRATEGIES)}")
    if strategy == "fsdp" and config.get("task") == "classifier":
        raise InputError("trainer.strategy=fsdp shards language models, layer by layer: set trainer=ddp")
    if config["model"].get("device_map"):
        raise InputError(
            f"model.device_map={config['model']['device_map']} spreads the model over devices, of which "
            f"trainer.devices={devices} gives each process one: leave out either"
        )
    kind = _accelerator(trainer)
    if kind == "mps" or (kind == "cuda" and number > _gpus(trainer)):
        there = "one GPU that only one process can use" if kind == "mps" else f"{_gpus(trainer)} GPUs"
        raise InputError(f"trainer.devices={devices}: this machine has {there}; try trainer.accelerator=cpu")
    if kind == "cpu" and number > (most := 4 * cores()):  # a few on one core are slow, and show that all is well
        raise InputError(
            f"trainer.devices={devices}: {number} processes on {cores()} cores, each with a model of its own: "
            f"at most {most}"
        )
    return number * nodes


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machines(number: int) -> list[str]:
    """Name the machines of this job of Slurm's, ``number`` of them; raise `InputError` where it has fewer, or is none.

    For one machine there need be no job, and none is named.
    """
    if number == 1:
        return []
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if not listed:
        raise InputError(
            f"trainer.num_nodes={number}: several machines are those of a job of Slurm's, and this is in none: set "
            f"hydra/launcher=submitit_slurm hydra.launcher.nodes={number}, or leave it 1"
        )
    try:
        asked = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"trainer.num_nodes={number}: scontrol does not name the machines of this job: {error}"
        ) from error
    names = asked.stdout.split()
    if len(names) < number:
        raise InputError(
            f"trainer.num_nodes={number}: this job of Slurm's has {len(names)}: hydra.launcher.nodes={number}"
        )
    return names[:number]


def _accelerator(trainer: Mapping[str, Any]) -> str:
    from fairpriv.trainer import device_of

    return device_of({"trainer": trainer}).type


def _gpus(trainer: Mapping[str, Any]) -> int:
    import torch

    return torch.cuda.device_count() if _accelerator(trainer) == "cuda" else 1


def measure(
    as_rank: Callable[[Mapping[str, Any], Result, int], None],
    config: Mapping[str, Any],
    result: Result,
    number: int,
) -> None:
    """Measure a cell in ``number`` processes, the first of which writes ``result.json``; update ``result`` to match it.

    Args:
        as_rank: measures it in one of the processes, given these arguments; it can be sent there.
        config: the cell's.
        result: as far as it is known.
        number: how many processes.

    Raises:
        InputError: a process found the input wrong.
        RuntimeError: a process failed or died; says which, and quotes its last words. The others are stopped.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    nodes = machines((config.get("trainer") or {}).get("num_nodes") or 1)
    host = socket.gethostname() if nodes else HOST
    shared = config["paths"]["root"] if nodes else None  # a folder that all machines see
    each = number // max(1, len(nodes))
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)  # where the ranks find one another
    job = {"as_rank": as_rank, "config": config, "result": result, "at": (host, store.port), "path": sys.path}
    job["alone"] = not foreign_code()
    job["level"] = logging.getLogger("fairpriv").getEffectiveLevel()
    environment = {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="fairpriv-", dir=shared) as folder, contextlib.ExitStack() as files:
        try:
            for rank in range(number):
                # Only the first one's output is shown; the output of the others is read if they fail.
                said = 2 if rank == 0 else files.enter_context(Path(folder, f"{rank}.log").open("wb"))
                own = {"RANK": rank, "LOCAL_RANK": rank % each, "NODE_RANK": rank // each, "WORLD_SIZE": number}
                step = (
                    ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={nodes[rank // each]}"]
                    if nodes
                    else []
                )
                started = subprocess.Popen(
                    [*step, sys.executable, "-m", "fairpriv.sweep.ddp", str(Path(folder).absolute())],
                    env=environment | {name: str(value) for name, value in own.items()},
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,  # Ctrl-C is for this process to answer
                )
                ranks.append(started)
                assert started.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it has died, which is seen below
                    pickle.dump(job, started.stdin)
                    started.stdin.flush()  # left open; when it closes, a rank knows that this process is gone
            ended = attend(ranks)
        finally:
            stop(ranks)
        outcomes = [_outcome(Path(folder, f"{rank}.pickle")) for rank in range(number)]
        if outcomes[0]:
            vars(result).update(vars(outcomes[0]["result"]))
        if any(ended) and result.status != "completed":
            raise _failure(ended, outcomes, Path(folder))


def attend(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait until all have ended, or some seconds after one has failed; return exit statuses, None for a running one."""
    deadline = float("inf")
    while None in (ended := [rank.poll() for rank in ranks]) and time.monotonic() < deadline:
        if any(ended):
            deadline = min(deadline, time.monotonic() + LAST_WORDS)
        time.sleep(0.05)
    return ended


def stop(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + PATIENCE
    for rank in ranks:
        try:
            rank.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
        if rank.stdin:
            with contextlib.suppress(BrokenPipeError):
                rank.stdin.close()


def _outcome(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = pickle.loads(path.read_bytes())
        return found
    except (OSError, EOFError, pickle.UnpicklingError):  # it died before it wrote an outcome
        return {}


def _failure(ended: Sequence[int | None], outcomes: Sequence[Mapping[str, Any]], folder: Path) -> Exception:
    """Return the error of the rank that failed first; the others' errors follow from it."""
    failed = [rank for rank, status in enumerate(ended) if status]
    first = min(failed, key=lambda rank: (outcomes[rank].get("follows", False), outcomes[rank].get("time", 0)))
    outcome, status = outcomes[first], ended[first]
    if outcome.get("input"):
        return InputError(outcome["error"])
    if "error" in outcome:
        return RuntimeError(f"rank {first} of {len(ended)}: {outcome['error']}")
    assert status is not None
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    log = folder / f"{first}.log"
    said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return RuntimeError(f"rank {first} of {len(ended)} {how}" + (f": {last[:300]}" if last else ""))


def main() -> int:
    """Run one rank: read the cell from standard input, measure it with the others, and leave the outcome in a file."""
    job = pickle.load(sys.stdin.buffer)
    sys.path[:] = job["path"]  # with the folders of the user's own classes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, number = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    logging.basicConfig(format="%(message)s", level=logging.WARNING if rank == 0 else logging.ERROR)
    logging.getLogger("fairpriv").setLevel(job["level"] if rank == 0 else logging.ERROR)
    patches.load_lightning(alone=job["alone"])
    import torch
    from torch import distributed
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from fairpriv import processes

    config, result = job["config"], job["result"]
    torch.set_num_threads(config["threads"] or max(1, cores() // number))
    gpu = _accelerator(config["trainer"]) == "cuda"
    if gpu:
        devices = config["trainer"].get("devices")
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(devices[local] if isinstance(devices, list) else local)
    host, port = job["at"]
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        store=TCPStore(host, port, is_master=False),
        rank=rank,
        world_size=number,
        timeout=timedelta(days=30),  # the first rank may measure for hours; dead ranks are seen from outside
    )
    outcome = {"result": result}
    try:
        job["as_rank"](config, result, number)
    except Exception as error:
        text = " ".join(str(error).split())
        found = isinstance(error, InputError)
        result.status = "failed"
        outcome |= {"error": text if found else f"{type(error).__name__}: {text}", "input": found, "time": time.time()}
        outcome["follows"] = isinstance(error, distributed.DistError)
    Path(sys.argv[1], f"{rank}.pickle").write_bytes(pickle.dumps(outcome))
    if "error" in outcome:
        return 1
    processes.gather(None)  # no rank leaves before the first has measured
    distributed.destroy_process_group()
    return 0


def _end_with_parent() -> None:
    """End this process when standard input closes: its parent is gone then, and nobody else would stop it."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # normal shutdown takes seconds after so many imports, and threads of a failed rank may never end
