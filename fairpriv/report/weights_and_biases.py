"""Weights & Biases through Lightning's WandbLogger. Results never depend on it: where it fails, a warning says so."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairpriv.config.compose import instantiated
from fairpriv.identity import is_language_model
from fairpriv.result import cell_name
from fairpriv.secrets import masked

if TYPE_CHECKING:
    import wandb
    from lightning.pytorch.loggers import Logger

    from fairpriv.result import Result

log = logging.getLogger(__name__)

RESPONSES = 100  # a dimension and set in the table of generations; all of them are in the result's artifact
DECISIONS = 10_000  # what W&B shows of a table
RETRIES = 4  # half a minute, in which no artifact gets through
LONGEST = 128  # characters that W&B takes of a run's name, and of a group
LONGEST_TAG = 64  # and of a tag, or a type of jobs
PATIENCE = 300  # seconds that a run's last data may take to be sent


@contextmanager
def wandb_run(node: Mapping[str, Any] | None, cell: str, config: Mapping[str, Any]) -> Iterator[Logger | None]:
    """Open the cell's logger and finish it at the end in any case; the next cell would reuse an unfinished run.

    An exception within marks the run as failed. Online, a cell that is run again continues its run.

    Args:
        node: the resolved ``logger`` config, empty for none.
        cell: the cell's id, which becomes the run's; offline it gets the attempt's number, since an offline run that is
            continued would make a second folder of the same id.
        config: the resolved config without secrets; logged as the run's config.

    Yields:
        A logger, or None.
    """
    if not node:
        yield None
        return
    import wandb

    names = [str(config[group]["name"]) for group in ("dataset", "model", "defense")]
    # Attacks or dimensions, by which a whole track is found, too; the user's own come first.
    tags = [*(node.get("tags") or []), *names, *config.get("attack", ()), *config.get("dimensions", ())]
    offline = bool(node.get("offline"))
    folder = Path(node.get("save_dir") or ".", "wandb")
    with _data_folder(folder):
        try:
            attempts = sum(1 for _ in folder.glob(f"offline-run-*-{cell}-*"))
            logger = instantiated(node, _partial_=True)(
                id=f"{cell}-{attempts}" if offline else cell,
                name=clipped(node.get("name") or cell_name(config), LONGEST),
                group=clipped(node.get("group") or config["sweep"] or "", LONGEST) or None,
                job_type=clipped(node.get("job_type") or names[2], LONGEST_TAG),
                tags=list(dict.fromkeys(str(tag)[:LONGEST_TAG] for tag in tags if str(tag))),
                config=dict(config),
                resume=None if offline else "allow",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    x_disable_stats=True,
                    x_disable_machine_info=True,  # host, user and command line, in which a secret may stand
                    # By default a cell would wait for hours after the network fails. Unsent data are on the disk.
                    init_timeout=30,
                    x_graphql_retry_max=RETRIES,
                    x_file_transfer_retry_max=RETRIES,
                    finish_timeout=PATIENCE,
                    finish_timeout_raises=True,
                ),
            )
            getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # Lightning passes it, and wandb warns of it
            logger.experiment  # noqa: B018  the property starts the run, so that a failure shows here
            logger.log_metrics = harmless(logger.log_metrics)
        except Exception as error:  # a service that cannot be reached must not cost a result
            _warn(error)
            logger = None
        failed = True
        try:
            yield logger
            failed = False
        except Exception as error:
            if logger is not None and wandb.run is not None:
                told = {"status": "failed", "error": masked(f"{type(error).__name__}: {error}")}
                harmless(wandb.run.summary.update)(told)
            raise
        finally:
            harmless(wandb.finish)(exit_code=int(failed))


def clipped(text: str, longest: int) -> str:
    """Cut a text that is longer than W&B takes, with a hash at its end so that different texts stay different."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def _data_folder(folder: Path) -> Iterator[None]:
    """Let W&B keep data to be sent beside its runs and not in the home folder, unless the user says where."""
    ours = "WANDB_DATA_DIR" not in os.environ
    if ours:
        os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        if ours:
            os.environ.pop("WANDB_DATA_DIR", None)


def summarise(logger: Logger | None, result: Result, folder: Path) -> None:
    """Write a finished cell into its run.

    The metrics go into the summary with their goals, and status and seconds with them; generations and attacks'
    decisions into tables; ``result.json`` and the other files in the cell's ``folder`` into artifacts.
    """
    if logger is None:
        return
    import wandb

    if wandb.run is not None:  # as in all processes but the first
        for part in (_metrics, _tables, _files):
            harmless(part)(wandb.run, result, folder)


def _metrics(run: wandb.Run, result: Result, folder: Path) -> None:
    values = {name: value for name, value in result.metrics.items() if value is not None}
    for name in values:  # one by one, since Lightning has defined all others as functions of its step
        if "*" not in name:  # a label of the data may be anything
            run.define_metric(name, summary={1: "max", -1: "min", 0: None}[result.metric(name).sign])
    run.log(values)  # W&B draws panels of its own for what has a history
    summary: dict[str, Any] = {"status": result.status, "degenerate": result.degenerate, "error": result.error}
    summary["control"] = result.control  # why it is one, else None
    shown = {name: metric for name in values if (metric := result.metric(name)).column is not None}
    floors = {floor: result.metric(floor) for name in shown if (floor := f"{name}_floor") in values}
    summary["described"] = json.dumps({name: metric.plain() for name, metric in (shown | floors).items()})
    summary |= {f"seconds/{stage}": seconds for stage, seconds in result.seconds.items()}
    for name, ends in result.intervals.items():  # beside the floor, which is a metric of its own
        summary |= {f"{name}/{end}": value for end, value in zip(("lo", "hi"), ends, strict=True) if value is not None}
    summary |= {f"git/{key}": value for key, value in (result.git or {}).items()}
    summary["task"] = "language_model" if is_language_model(result.config) else "classifier"
    run.summary.update(values | summary)  # after the history, or the summary would hold {"max": value}
    marks = {"degenerate": result.degenerate, "control": result.control}
    if told := [mark for mark, why in marks.items() if why]:
        run.tags = (*(run.tags or ()), *told)


def _tables(run: wandb.Run, result: Result, folder: Path) -> None:
    import wandb

    tables = {}
    for name, artifact, rows_of in (("generations", "responses", _generations), ("decisions", "attacks", _decisions)):
        if artifact in result.artifacts:
            rows = list(islice(rows_of(folder / result.artifacts[artifact]), DECISIONS))
            if rows:
                tables[name] = wandb.Table(columns=[*rows[0]], data=[[*row.values()] for row in rows])
    if tables:
        run.log(tables)


def _generations(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the first responses of every dimension and set; cells with equal ``evaluation`` show the same prompts."""
    seen: Counter[tuple[str, str]] = Counter()
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            told = json.loads(line)
            place = told["dimension"], told["set"]
            seen[place] += 1
            if seen[place] <= RESPONSES:
                row = {name: told.get(name) for name in ("dimension", "set", "prompt", "response")}
                row["verdict"] = {True: "safe", False: "unsafe"}.get(told.get("safe"))
                yield row | {name: told.get(name) for name in ("reason", "before")}


def _decisions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield one row a victim and attack: what the victim was trained on, and what the attack says."""
    for number, split in enumerate(json.loads(path.read_bytes())["splits"]):
        for attack, scores in split["scores"].items():
            for victim, (score, world) in enumerate(zip(scores, split["truth"], strict=True)):
                guess = int(score > 0)
                row = {"attack": attack, "split": number, "victim": victim, "world": world}
                yield row | {"score": score, "guess": guess, "right": guess == world}


def _files(run: wandb.Run, result: Result, folder: Path) -> None:
    import wandb

    kept = wandb.Artifact(f"result-{result.id}", type="result")
    artifacts = [kept]
    kept.add_file(str(folder / "result.json"), skip_cache=True)
    for name, place in result.artifacts.items():
        path = folder / place
        if path.is_file() and path.suffix != ".safetensors":
            kept.add_file(str(path), skip_cache=True)
        elif path.is_file():
            artifacts.append(wandb.Artifact(f"{name}-{result.id}", type=name))
            artifacts[-1].add_file(str(path), skip_cache=True)
        elif not (path / "config.json").is_file():  # a whole model is gigabytes, and stays where it is
            artifacts.append(wandb.Artifact(f"adapter-{result.id}", type="adapter"))
            artifacts[-1].add_dir(str(path), skip_cache=True)
    for artifact in artifacts:
        run.log_artifact(artifact)


def harmless(call: Callable[..., Any], name: str = "W&B") -> Callable[..., None]:
    """Wrap a call so that what it raises becomes a warning that names the logger."""

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            _warn(error, name)

    return guarded


def _warn(error: Exception, name: str = "W&B") -> None:
    _warn_once(" ".join(f"{type(error).__name__}: {error}".split())[:300], name)


@functools.cache
def _warn_once(reason: str, name: str) -> None:
    log.warning("%s is left out: %s", name, masked(reason))
