"""Print this study's table: `python experiments/rivals/table.py`, of the naive adversary with `naive` after it.

The strongest attack is, in each seed, the most accurate one of the adversary's. Protection is by how much it
is less accurate than the strongest one on ``none``, price by how much less accurate the victims are, paired by seed.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from fairpriv.report.comparison import Estimate
from fairpriv.report.finding import find_results
from fairpriv.result import Result

HERE = Path(__file__).parent
ATTACKS = ("threshold_test", "per_point_threshold", "kl", "label_only_kl", "meta_classifier")
DEFENCES = ["none", "fine_tune", "rehearsal", "fair_finetune", "scratch", "fair_scratch", "reweighting"]
DEFENCES += ["threshold_optimizer", "exponentiated_gradient", "adversarial_debiasing", "dp_sgd", "dp_sgd_own"]


def read(*, adaptive: bool) -> dict[tuple[str, str], dict[int, Result]]:
    """Cells with this adversary by data, defence and seed; for ``none`` both are one."""
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for cell in find_results([HERE, HERE.parent / "distribution_inference"])[0]:
        config = cell.config
        if config["game"]["adaptive"] == adaptive or config["defense"]["name"] == "none":
            found.setdefault((config["dataset"]["name"], config["defense"]["name"]), {})[config["seed"]] = cell
    return found


def values(cells: Sequence[Result], metric: str) -> list[float]:
    """A metric of the cells that have it."""
    return [value for cell in cells if (value := cell.metrics.get(metric)) is not None]


def strongest(cell: Result) -> float:
    """The accuracy of the most accurate attack."""
    return max(value for name in ATTACKS for value in values([cell], f"attack/{name}/accuracy"))


def interval(numbers: Sequence[float], sign: str = "") -> tuple[str, float, float]:
    """The mean of numbers in [-1, 1] with its t interval, as text; the mean, and the interval's lower end."""
    estimate = Estimate.of(numbers, (-1.0, 1.0))
    assert estimate is not None
    if estimate.lo is None:
        return f"{estimate.mean:{sign}.3f}, one seed", estimate.mean, -1.0
    return f"{estimate.mean:{sign}.3f} [{estimate.lo:{sign}.3f}, {estimate.hi:{sign}.3f}]", estimate.mean, estimate.lo


def row(data: str, defence: str, cells: Sequence[Result], undefended: Sequence[Result]) -> list[str]:
    """A line of the table."""
    trivial = sum(bool(cell.degenerate) for cell in cells)
    means = [values(cells, name) for name in ["pool/equalized_odds_gap", *(f"attack/{a}/accuracy" for a in ATTACKS)]]
    texts = [data, defence + (f" ({trivial} degenerate)" if trivial else ""), str(len(cells))]
    texts += [f"{statistics.fmean(numbers):.2f}" if numbers else "" for numbers in means]
    texts.append(interval([strongest(cell) for cell in cells])[0])
    if defence == "none":
        return [*texts, "", "", ""]
    pairs = list(zip(undefended, cells, strict=True))
    protection, gained, least = interval([strongest(before) - strongest(after) for before, after in pairs], "+")
    accuracies = values(undefended, "pool/accuracy"), values(cells, "pool/accuracy")
    price, paid, cheapest = interval([before - after for before, after in zip(*accuracies, strict=True)], "+")
    if least <= 0:
        return [*texts, protection, price, "no protection shown"]
    return [*texts, protection, price, f"{gained / (100 * paid):.2f} a point" if cheapest > 0 else "no price shown"]


if __name__ == "__main__":
    heads = ["data", "defence", "seeds", "EO gap", *(name.replace("_", " ") for name in ATTACKS)]
    lines = [[*heads, "strongest", "protection", "price", ""], ["---"] * (len(heads) + 4)]
    every = read(adaptive=sys.argv[1:] != ["naive"])
    for data in ("adult", "compas", "german", "lsac"):
        for defence in DEFENCES:
            seeds = sorted(every.get((data, defence), ()))
            if seeds:
                cells, undefended = ([every[data, name][seed] for seed in seeds] for name in (defence, "none"))
                lines.append(row(data, defence, cells, undefended))
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
