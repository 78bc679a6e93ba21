"""`make bench`: what a sweep costs beside its cells' work, against Hydra's composing.

With ``locks``: what locks cost; with ``--growth``: what 10, 100 and 1,000 cells cost each.
"""

import contextlib
import io
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from bench import best, report, report_growth, tell_machine

from fairpriv import run as cells
from fairpriv.cli import CONF, main
from fairpriv.config.compose import build, compose
from fairpriv.result import Result
from fairpriv.store import Store
from fairpriv.sweep import listing
from fairpriv.sweep.lock import HeldError, lock

WORK = 0.05  # seconds of every cell


class Work:
    """Stands in for the training and the measures of a cell; its data is identified as ever."""

    def __init__(self, config) -> None:
        self.dataset = build(config, "dataset")

    def digests(self):
        return {"dataset.source": self.dataset.source.digest()}

    def measure(self, result, folder, logger, stage) -> None:
        time.sleep(WORK)
        result.metrics = {"eval/accuracy": 0.5}


def sweep(count: int, root: Path) -> None:
    """A grid of that many cells on a small table."""
    words = [f"paths.root={root}", f"dataset.source.files=[{root / 'people.csv'}]", "logger=none"]
    words += ["dataset=csv", "dataset.target=hired", "dataset.positive=[yes]", "dataset.sensitive=sex"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = None
        try:
            main(["-m", *words, f"seed=range(0,{count})"])
        except SystemExit as ended:
            status = ended.code
    assert status == 0, said.getvalue()


def timed(count: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """What a sweep of that many cells takes, and what it takes again where all of them are finished."""
    took = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "people.csv").write_text("age,sex,hired\n" + "30,f,yes\n40,m,no\n" * 500)
        for what in ("run", "skipped"):
            start = clock()
            sweep(count, root)
            took[what] = clock() - start
    return took


def bench_growth(sizes: tuple[int, ...] = (10, 100, 1000)) -> None:
    """Processor time a cell; the first sweep pays for the imports."""
    timed(2)
    took = {count: timed(count, time.process_time) for count in sizes}
    for what, told in (("run", "cells that run, beside their work"), ("skipped", "finished cells of a sweep")):
        report_growth(f"{told}, processor time", "cell", sizes, lambda count, what=what: took[count][what])


def bench_sweep(few: int = 5, many: int = 45) -> None:
    """Seconds per cell are those of a large grid minus those of a small one, so that what is paid once cancels out."""
    took = {count: timed(count) for count in (2, few, many)}  # the first one pays for the imports
    cost = {what: (took[many][what] - took[few][what]) / (many - few) for what in took[many]}
    composing = best(lambda: [compose(CONF, [], ["dataset=csv", "seed=1"], hydra=True) for _ in range(2)])
    baseline = "two compositions of it"
    report(f"a sweep's own cost a cell, beside {WORK} s of work", cost["run"] - WORK, baseline, composing)
    report("a cell that is skipped", cost["skipped"], baseline, composing)
    print(f"what a sweep costs once, its report included: {took[few]['skipped'] - few * cost['skipped']:.3f} s")


def visit(root: Path, count: int) -> Counter[str]:
    """Do what a process does with each cell of a sweep beside composing and measuring; count what came of it."""
    logging.disable(logging.CRITICAL)
    store, found = Store(root), Counter[str]()
    for cell in map("{:016x}".format, range(count)):
        done = store.finished(cell, "failed") is not None
        listing.enlist(root / "sweeps" / "locks", cell, finished=done)
        if done:
            found["skipped"] += 1
            continue
        try:
            with lock(store.path(cell).parent / "lock"):
                if store.finished(cell, "failed"):  # meanwhile
                    found["skipped"] += 1
                    continue
                Result(cell, "completed", {"seed": 0}, {"eval/accuracy": 0.5}).write(store.path(cell))
                found["made"] += 1
        except HeldError:
            found["held by another"] += 1
    return found


def bench_locks(count: int, processes: int) -> None:
    """So many processes want the same cells at the same time, which take no time of their own."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("fork").Pool(processes) as pool:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        found = sum(pool.starmap(visit, [(Path(folder), count)] * processes, chunksize=1), Counter[str]())
        wall = time.perf_counter() - start
        pool.close()
        pool.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{processes} processes, {count} cells: {wall:.1f} s, {busy:.1f} s of them computing; {dict(found)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["locks"]:
        for count, processes in ((200, 8), (2000, 8), (2000, 1)):
            bench_locks(count, processes)
        sys.exit()
    torch.set_num_threads(1)
    tell_machine()
    cells.cell_of = Work
    bench_growth() if sys.argv[1:] == ["--growth"] else bench_sweep()
