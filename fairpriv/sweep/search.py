"""Multi-objective search over config keys: Optuna's ask and tell, kept as plain JSON beside the sweep's results."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from fairpriv.config.schema import nearest
from fairpriv.earlier import known
from fairpriv.errors import InputError
from fairpriv.identity import OUTCOME_VERSION, content_hash, outcome_config
from fairpriv.result import write_whole
from fairpriv.sweep.grids import choices

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

FILE = "search.json"
UNKNOWN = "unknown"  # the direction of a metric that no cell has told yet


class Search:
    """A study with one objective or several, in ``folder``; it continues from what is there.

    A trial is a choice of values for the searched keys. It is written down before it runs. A trial that was interrupted
    or failed is asked for again; its cells are found finished or are run. Only one process may search at a time.

    Args:
        objectives: metrics of result.json, each as ``METRIC`` or ``METRIC:maximize|minimize``. Without a direction, it
            is that of an earlier version's metric, else the one that the first completed cell tells.
        space: Optuna's distribution of every searched key.
        folder: the sweep's folder.
        seed: seed of the sampler (TPE).
        fixed: what all trials have in common, as `parts` returns it.

    Raises:
        InputError: an objective has no direction, Optuna is not installed, or the folder holds another study.
    """

    def __init__(
        self,
        objectives: Sequence[str],
        space: Mapping[str, BaseDistribution],
        folder: Path,
        seed: int,
        fixed: Mapping[str, str],
    ):
        self.directions = dict(map(_objective, objectives))
        if not self.directions or len(self.directions) < len(objectives):
            raise InputError(
                f"hydra.sweeper.objectives={list(objectives)}: name one metric or several, each once, such as "
                "'[eval/privacy/awareness,eval/utility/perplexity]'"
            )
        optuna = optuna_module()
        self.space, self.fixed = dict(space), dict(fixed)
        self.path = folder / FILE
        stored = self._read()
        self._sampler = optuna.samplers.TPESampler(seed=seed + len(stored))  # otherwise it would repeat its first draws
        # One whose direction is not known yet is maximised; its sign is turned where it is to be minimised.
        self._turned = {metric: 1 for metric, way in self.directions.items() if way == UNKNOWN}
        ways = ["maximize" if way == UNKNOWN else way for way in self.directions.values()]
        self.study = optuna.create_study(directions=ways, sampler=self._sampler)
        self.trials = [row for row in stored if row["state"] == "completed"]
        self._again = [row for row in stored if row["state"] != "completed"]  # not asked for yet
        for row in self.trials:
            self._add(row)
        for row in self._again:
            self.study.enqueue_trial(row["params"])

    def ask(self, count: int) -> list[tuple[Trial, dict[str, Any]]]:
        """Choose the next trials, each with its values for the searched keys, and write them down as running."""
        asked = []
        for _ in range(count):
            trial = self.study.ask(self.space)  # those that are to be run again come first
            self._again = self._again[1:]
            asked.append((trial, dict(trial.params)))
            self.trials.append({"params": dict(trial.params), "state": "running"})
        self._write()
        return asked

    def tell(self, trial: Trial, outcomes: Sequence[Mapping[str, Any]]) -> None:
        """Record a trial's cells: objectives are means over them; a failed cell, or a missing metric, fails the trial.

        Args:
            trial: a trial that `ask` returned.
            outcomes: ``id``, ``status``, ``error``, ``metrics`` and ``degenerate`` of each cell, the content of its
                ``inputs``, and what metrics are for who ``guess``es, beyond which a value is no better.

        Raises:
            InputError: a cell read other content than earlier trials, as of a file that was changed; or has no
                direction for an objective.
        """
        inputs = {key: content for one in outcomes for key, content in one.get("inputs", {}).items()}
        self._require_same(inputs)
        row = next(r for r in self.trials if r["state"] == "running" and r["params"] == trial.params)
        row["cells"] = [outcome.get("id") for outcome in outcomes]
        row["inputs"] = inputs
        row["degenerate"] = sum(bool(outcome.get("degenerate")) for outcome in outcomes)
        reasons = [outcome.get("error") or "failed" for outcome in outcomes if outcome.get("status") != "completed"]
        values = []
        for metric in self.directions:
            if metric in self._turned and not reasons:
                self._learn(metric, outcomes[0])
            found = [outcome["metrics"].get(metric) for outcome in outcomes if not reasons]
            if not reasons and any(value is None or not math.isfinite(value) for value in found):
                known = sorted(outcomes[0]["metrics"])
                reasons.append(f"no value of {metric}; there are {', '.join(known)}")
            values.append(statistics.fmean(found) if found and not reasons else math.nan)
        if reasons:
            row |= {"state": "failed", "error": reasons[0]}
        else:
            row |= {"state": "completed", "values": values}
            row["guess"] = [outcomes[0].get("guess", {}).get(metric) for metric in self.directions]
        # A trivial outcome counts as infeasible, or the search would end at a constant predictor.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental in Optuna
            trial.set_constraint("degenerate", float(row["degenerate"]))
        state = optuna_module().trial.TrialState
        if reasons:
            self.study.tell(trial, state=state.FAIL)
        else:
            signs = [self._turned.get(metric, 1) for metric in self.directions]
            ranked = _ranked(row, self.directions)
            self.study.tell(trial, [sign * value for sign, value in zip(signs, ranked, strict=True)])
        self._write()

    def _require_same(self, inputs: Mapping[str, str]) -> None:
        searched = {key.partition(".")[0] for key in self.space}  # may choose an input
        for row in self.trials:
            before = row.get("inputs", {})
            differ = sorted(key for key in inputs.keys() & before.keys() if inputs[key] != before[key])
            if differ := [key for key in differ if key.partition(".")[0] not in searched]:
                raise InputError(
                    f"{self.path}: the content of {', '.join(differ)} is not that of its earlier trials: name another "
                    "sweep=NAME"
                )

    def _learn(self, metric: str, outcome: Mapping[str, Any]) -> None:
        """Take a metric's direction from the first completed cell; raise `InputError` where the cell has none."""
        way = {"greater": "maximize", "less": "minimize"}.get(outcome["better"].get(metric, ""))
        if way is None:
            near = "" if metric in outcome["metrics"] else nearest(metric, outcome["metrics"])
            raise InputError(
                f"hydra.sweeper.objectives: {metric}{near}: write METRIC:maximize or METRIC:minimize, of a metric that "
                "cells have"
            )
        self.directions[metric] = way
        self._turned[metric] = 1 if way == "maximize" else -1

    @property
    def done(self) -> int:
        """Number of trials that are completed, or have failed in this process."""
        return sum(row["state"] != "running" for row in self.trials)

    @property
    def cells(self) -> list[str]:
        """Ids of the trials' cells."""
        return [cell for row in self.trials if row["state"] != "running" for cell in row["cells"] if cell]

    def _add(self, row: Mapping[str, Any]) -> None:
        optuna = optuna_module()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial: FrozenTrial = optuna.trial.create_trial(
                values=_ranked(row, self.directions),
                params=row["params"],
                distributions=self.space,
                constraints={"degenerate": float(row["degenerate"])},
            )
        self.study.add_trial(trial)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        stored = read(self.path)
        own = self._described()
        if stored["objectives"].keys() == self.directions.keys():  # known directions are not learned again
            learned = {m: stored["objectives"][m] for m, way in self.directions.items() if way == UNKNOWN}
            self.directions |= learned
            own["objectives"] = self.directions
        other = [key for key in ("objectives", "space") if stored[key] != own[key]]
        if differ := other or sorted(dict(stored["fixed"].items() ^ self.fixed.items())):
            raise InputError(
                f"{self.path}: holds a search that differs in {', '.join(differ)}: name another sweep=NAME"
            )
        trials: list[dict[str, Any]] = stored["trials"]
        return trials

    def _described(self) -> dict[str, Any]:
        space = {key: str(values) for key, values in self.space.items()}
        return {"objectives": self.directions, "space": space, "fixed": self.fixed}

    def _write(self) -> None:
        document = self._described() | {"trials": [*self.trials, *self._again]}
        write_whole(self.path, (json.dumps(document, indent=1) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Read the file of a search.

    Raises:
        InputError: it is damaged.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_bytes())
        if set(stored) != {"objectives", "space", "fixed", "trials"}:
            raise ValueError("other keys")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: no record of a search, or a damaged one ({error}); name another sweep=NAME"
        ) from None
    return stored


def parts(config: Mapping[str, Any], seeds: Sequence[str]) -> dict[str, str]:
    """Hash what trials have in common, part by part of the outcome's config, each by its `content_hash`.

    Args:
        config: the resolved plain config of one trial, the same one each time that the search is started.
        seeds: seeds over which trials are averaged; none: the config's own.
    """
    found = outcome_config(config) | {"outcome_version": OUTCOME_VERSION}
    found["seed"] = sorted(seeds) or [str(config["seed"])]
    return {part: content_hash(value) for part, value in found.items()}


def front(stored: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the trials on the Pareto front; those with a degenerate cell are left out.

    No other completed trial is at least as good in every objective and better in one.
    """
    sign = [1 if way == "maximize" else -1 for way in stored["objectives"].values()]
    points = {
        number: [s * v for s, v in zip(sign, _ranked(row, stored["objectives"]), strict=True)]
        for number, row in enumerate(stored["trials"])
        if row["state"] == "completed" and not row["degenerate"]
    }

    def beaten(here: Sequence[float], there: Sequence[float]) -> bool:
        return there != here and all(u >= v for u, v in zip(there, here, strict=True))

    return [n for n, here in points.items() if not any(beaten(here, there) for there in points.values())]


def _ranked(row: Mapping[str, Any], ways: Mapping[str, str]) -> list[float]:
    """Return a completed trial's values, those beyond what guessing comes to moved back to that; see `Metric.guess`."""
    guesses = row.get("guess") or [None] * len(ways)
    ends = [(max if way == "minimize" else min, guess) for way, guess in zip(ways.values(), guesses, strict=True)]
    return [v if guess is None else end(v, guess) for v, (end, guess) in zip(row["values"], ends, strict=True)]


def report(path: Path) -> None:
    """Print a search's Pareto front, and how its trials ended."""
    from rich.console import Console
    from rich.table import Table

    stored = read(path)
    best = front(stored)
    trials = stored["trials"]
    title = "Pareto front" if len(stored["objectives"]) > 1 else "best trial"
    headers = [f"{metric} {'↑' if way == 'maximize' else '↓'}" for metric, way in stored["objectives"].items()]
    table = Table("trial", *stored["space"], *headers, title=title, title_justify="left")
    for number in sorted(best, key=lambda n: trials[n]["values"]):
        row = trials[number]
        numbers = [f"{value:.4g}" for value in row["values"]]
        keys = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row["params"][k] for k in stored["space"])]
        table.add_row(str(number), *keys, *numbers)
    console = Console()
    if best:
        console.print(table)
    ended = [row["state"] for row in trials]
    degenerate = sum(bool(row.get("degenerate")) for row in trials)
    console.print(
        f"{len(trials)} trials: {ended.count('completed')} completed ({degenerate} of them degenerate or controls, "
        f"never on the front), {ended.count('failed')} failed",
        markup=False,
        soft_wrap=True,
    )
    for number, row in enumerate(trials):
        if row["state"] == "failed":
            console.print(f"failed: trial {number}: {' '.join(str(row['error']).split())}", markup=False)
    console.print(f"search: {path}", markup=False, soft_wrap=True)


def distribution(override: Override) -> BaseDistribution:
    """Return the distribution of a key's values: ``1,2`` and ``choice(...)``, ``range(...)``, ``interval(...)``.

    Write ``int(interval(1,8))`` for whole numbers, and ``tag(log,interval(1e-6,1e-3))`` for a logarithmic scale.

    Raises:
        InputError: the interval is empty, or a logarithmic one does not lie above zero.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(float(value.start), float(value.end), log=log)
        if isinstance(value, RangeSweep) and isinstance(value.start, int) and value.step == 1:
            assert value.stop is not None
            return IntDistribution(value.start, int(value.stop) - 1)
        return CategoricalDistribution(choices(override))
    except ValueError as error:
        raise InputError(f"{override.input_line}: {error}") from None


def optuna_module() -> Any:
    """Import Optuna, and silence its log.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("hydra/sweeper=search needs Optuna: pip install 'fairpriv[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _objective(text: str) -> tuple[str, str]:
    """Split an objective into the metric, and ``maximize``, ``minimize`` or ``UNKNOWN``."""
    metric, _, way = text.partition(":")
    meant = known(metric)
    if meant and meant.instead and not meant.sign:  # whichever way is asked for
        raise InputError(f"hydra.sweeper.objectives: {text}: tells nothing by its direction; use {meant.instead}")
    if way in ("maximize", "minimize"):
        return metric, way
    if way or (meant and not meant.sign):
        raise InputError(f"hydra.sweeper.objectives: {text}: write METRIC:maximize or METRIC:minimize")
    return metric, UNKNOWN if meant is None else "maximize" if meant.sign > 0 else "minimize"
