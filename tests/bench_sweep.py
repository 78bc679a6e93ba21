"""`make bench`: what a sweep costs beside the work of its cells, against Hydra's own composition of them."""

import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch
from bench import best, report, tell_machine

from fairpriv import run as cells
from fairpriv.cli import CONF, main
from fairpriv.config.compose import build, compose

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


def bench_sweep(few: int = 5, many: int = 45) -> None:
    """Seconds per cell are those of a large grid minus those of a small one, so that what is paid once cancels out."""
    seconds: dict[str, dict[int, float]] = {"run": {}, "skipped": {}}
    for count in (2, few, many):  # the first one pays for the imports
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "people.csv").write_text("age,sex,hired\n" + "30,f,yes\n40,m,no\n" * 500)
            for took in seconds.values():
                start = time.perf_counter()
                sweep(count, root)
                took[count] = time.perf_counter() - start
    cost = {what: (took[many] - took[few]) / (many - few) for what, took in seconds.items()}
    composing = best(lambda: [compose(CONF, [], ["dataset=csv", "seed=1"], hydra=True) for _ in range(2)])
    baseline = "Hydra's two compositions of it"
    report(f"a sweep's own cost a cell, beside {WORK} s of work", cost["run"] - WORK, baseline, composing)
    report("a cell that is skipped", cost["skipped"], baseline, composing)
    print(f"what a sweep costs once, its report included: {seconds['skipped'][few] - few * cost['skipped']:.3f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tell_machine()
    cells.cell_of = Work
    bench_sweep()
