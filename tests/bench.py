"""`make bench`: speed as a ratio against a named baseline, measured in the same run; best of several repetitions."""

import functools
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def best(action: Callable[[], object], repeat: int = 5) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def now() -> float:
    """Read the clock or, where torch has one thread, processor time, which a busy machine does not lengthen."""
    torch = sys.modules.get("torch")
    return time.process_time() if torch and torch.get_num_threads() == 1 else time.perf_counter()


def report(what: str, seconds: float, baseline: str, base_seconds: float, goal: str = "") -> None:
    """One line: both times, their ratio, and what is aimed at."""
    aim = f" (goal {goal})" if goal else ""
    ratio = f"{base_seconds / seconds:.3g} times as fast"
    print(f"{what}: {seconds:.3g} s; {baseline}: {base_seconds:.3g} s; {ratio}{aim}", flush=True)


def report_growth(what: str, unit: str, sizes: Sequence[int], seconds: Callable[[int], float]) -> None:
    """One line: seconds a unit at each size, smallest first, and whether they grow."""
    costs = [seconds(size) / size for size in sizes]
    last = costs[-1] / min(costs[:-1])
    verdict = "grows" if last > 1.2 else "falls" if last < 1 / 1.2 else "is constant, to a fifth"
    each = ", ".join(f"{cost:.3g} s ({size:,})" for cost, size in zip(costs, sizes, strict=True))
    print(f"growth, {what}: {each} a {unit}; the cost {verdict}", flush=True)


def tell_machine() -> None:
    """One line: the processor, its cores and load, torch and its threads.

    It imports nothing, so that a bench of memory can call it: a process counts the memory of the one that starts it.
    """
    named = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    processor = named[0].partition(":")[2].strip() if named else platform.processor() or platform.machine()
    told = f"{processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; torch {metadata.version('torch')}"
    if torch := sys.modules.get("torch"):
        told += f", {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    print(told, flush=True)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def quiet() -> None:
    """Keep Lightning's lines out of the table."""
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def bench_fit() -> None:
    """A fit of the base model (Adult's size) by Lightning, and from the cache, against a plain loop."""
    import lightning
    import torch
    from torch.nn.functional import cross_entropy

    from fairpriv.classifiers.data.batches import ShuffledBatches
    from fairpriv.classifiers.data.rows import Rows
    from fairpriv.classifiers.nets.classifier import MLP, Classifier, fit
    from fairpriv.store import Store

    torch.set_num_threads(1)
    tell_machine()
    g = torch.Generator().manual_seed(0)
    n, features, epochs = 8000, 100, 10
    rows = Rows(
        torch.randn(n, features, generator=g),
        torch.randint(0, 2, (n,), generator=g),
        torch.randint(0, 2, (n,), generator=g),
        torch.arange(n),
    )
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)

    def by_lightning(store: Any = None) -> None:
        torch.manual_seed(0)
        module = Classifier(MLP(features, 2), classes=2, lr=0.003, weight_decay=0.0)
        fit(module, ShuffledBatches(rows, 128, 0), epochs=epochs, trainer=trainer, validation=rows, store=store)

    def by_hand() -> None:
        torch.manual_seed(0)
        net = MLP(features, 2)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.003, weight_decay=0.0)
        batches = ShuffledBatches(rows, 128, 0)
        for _ in range(epochs):
            for X, y, _s, weight in batches:
                optimizer.zero_grad()
                (weight * cross_entropy(net(X), y, reduction="none")).mean().backward()
                optimizer.step()

    by_lightning(), by_hand()
    plain = best(by_hand)
    report("fit by Lightning, 630 steps of 128 rows", best(by_lightning), "plain PyTorch loop", plain)
    with tempfile.TemporaryDirectory() as folder:
        by_lightning(Store(folder))
        report("the same fit from the cache", best(lambda: by_lightning(Store(folder))), "plain PyTorch loop", plain)


def bench_start() -> None:
    """What the command line costs before anything is asked of it."""

    def seconds(*words: str) -> float:
        return best(lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True), repeat=3)

    heavy = seconds("-c", "import lightning")
    report("fairpriv --help", seconds("-m", "fairpriv", "--help"), "python -c 'import lightning'", heavy)
    report("fairpriv validate", seconds("-m", "fairpriv", "validate"), "python -c 'import lightning'", heavy)


if __name__ == "__main__":
    bench_fit()
    bench_start()
