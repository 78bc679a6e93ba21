"""`make bench`: what `fairpriv compare` takes for 1,000 and 10,000 results, and what `json.loads` takes for them.

With ``--growth``: what it takes a result, for 100, 1,000 and 10,000.
"""

import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import report, report_growth, tell_machine

from fairpriv.cli import CONF
from fairpriv.config.compose import compose, plain
from fairpriv.identity import content_hash, outcome_config
from fairpriv.metrics import Metric
from fairpriv.result import Result

ATTACKS = ("loss_test", "threshold_test", "kl", "meta_classifier")
DATASETS, DEFENCES = (
    ("adult", "compas", "german", "lsac"),
    ("none", "fine_tune", "rehearsal", "fair_finetune", "scratch"),
)
GAPS = ("fairness/equalized_odds_gap", "fairness/delta/no", "fairness/delta/yes", "privacy/accuracy_gap")
GAPS += ("privacy/balanced_accuracy_gap",)
SHAPES = {
    "20 rows of 50 seeds": (DATASETS, DEFENCES, [1.0], range(50)),
    "200 rows of 5 seeds": (DATASETS, DEFENCES, np.linspace(0.5, 1, 10).round(4).tolist(), range(5)),
    "1,000 rows of one seed": (DATASETS, DEFENCES, np.linspace(0.5, 1, 50).round(4).tolist(), range(1)),
    "2,000 rows of 5 seeds": (DATASETS, DEFENCES, np.linspace(0.5, 1, 100).round(4).tolist(), range(5)),
}


def metrics(rng: np.random.Generator) -> dict[str, float]:
    """As many metrics as a cell with four attacks has, under their names."""
    names = ["eval/accuracy", "eval/balanced_accuracy", "eval/accuracy_world0", "eval/accuracy_world1"]
    names += ["fairness/equalized_odds_gap", "fairness/delta/no", "fairness/delta/yes", "privacy/accuracy_gap"]
    names += ["privacy/balanced_accuracy_gap", "privacy/shift_weight", "privacy/label_shift", "privacy/bound"]
    names += [f"attack/{name}/{key}" for name in ATTACKS for key in ("accuracy", "advantage", "auc", "leakage")]
    names += [f"{name}_floor" for name in names if name in GAPS or name.endswith("leakage")]
    found = {name: float(rng.uniform()) for name in names}
    return found | {"privacy/below_tau": 1.0, "privacy/tau_in_interval": 0.0, "privacy/bound_holds": 1.0}


def write(
    folder: Path, datasets: Sequence[str], defences: Sequence[str], alphas: Sequence[float], seeds: range
) -> None:
    """One result for each combination, with a whole config and one interval for each metric."""
    rng = np.random.default_rng(0)
    written: dict[str, Any] = {}
    for dataset, defence in itertools.product(datasets, defences):
        config = plain(compose(CONF, [], [f"dataset={dataset}", f"defense={defence}"]))
        for alpha, seed in itertools.product(alphas, seeds):
            here = config | {"seed": seed, "game": config["game"] | {"alpha": alpha}}
            found = metrics(rng)
            intervals = {name: [value - 0.01, value + 0.01] for name, value in found.items()}
            signed = {name: [[value]] for name, value in found.items() if name in GAPS or name.endswith("leakage")}
            result = Result(
                *(content_hash(here), "completed", here, found),
                intervals=intervals,
                signed=signed,
                overlap=0.4,
                seconds={"fit": 1.0},
                outcome={"config": outcome_config(here)},
                described={name: Metric(name, low=0.0, high=1.0) for name in found},
            )
            path = folder / "cells" / result.id / "result.json"
            if not written:
                result.write(path)
                written = json.loads(path.read_bytes())
            else:  # in a tenth of the time
                own = {
                    key: getattr(result, key) for key in ("id", "config", "metrics", "intervals", "signed", "outcome")
                }
                path.parent.mkdir(parents=True)
                path.write_text(json.dumps(written | own, indent=1) + "\n")


def growth(count: int) -> float:
    """Processor time of comparing so many results, of 5 seeds each."""
    with tempfile.TemporaryDirectory() as folder:
        alphas = np.linspace(0.5, 1, count // 100).round(4).tolist()
        write(Path(folder), DATASETS, DEFENCES, alphas, range(5))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fairpriv", "compare", folder], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds(action: Callable[[], object]) -> float:
    """The fastest of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    tell_machine()
    if sys.argv[1:] == ["--growth"]:
        report_growth("fairpriv compare, rows of 5 seeds, processor time", "result", [100, 1000, 10000], growth)
        sys.exit()
    for shape, axes in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), *axes)
            files = sorted(Path(folder).rglob("result.json"))
            words = [sys.executable, "-m", "fairpriv", "compare", folder]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            whole = seconds(lambda words=words: subprocess.run(words, check=True, capture_output=True))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            busy = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 3
            reading = seconds(lambda files=files: [json.loads(file.read_bytes()) for file in files])
            most = 10 if len(files) > 1000 else 5
            memory = f"at most {after.ru_maxrss / 1024:.0f} MB"
            what = f"fairpriv compare, {len(files)} results ({shape}), {busy:.2f} s of them computing, {memory}"
            report(what, whole, "json.loads of the same files", reading, f"under {most} s")
