"""Weights & Biases through Lightning's WandbLogger. Results never depend on it: where it fails, a warning says so."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from fairpriv.tracking.result import Result

log = logging.getLogger(__name__)


@contextmanager
def wandb_run(node: Mapping[str, Any] | None, cell: str, config: Mapping[str, Any]) -> Iterator[Logger | None]:
    """The cell's logger, finished at the end whatever happens: an unfinished run would be reused by the next cell.

    Args:
        node: the resolved ``logger`` config, empty for none.
        cell: the cell's id, which becomes the run's; offline it gets the attempt's number, since an offline run that
            is continued would make a second folder of the same id.
        config: the resolved config without secrets; logged as the run's config.

    Yields:
        A logger, or None.
    """
    if not node:
        yield None
        return
    import wandb
    from hydra.utils import instantiate

    names = {group: config[group]["name"] for group in ("dataset", "model", "defense")}
    offline = bool(node.get("offline"))
    try:
        attempts = sum(1 for _ in Path(node["save_dir"], "wandb").glob(f"offline-run-*-{cell}-*"))
        logger = instantiate(dict(node), _partial_=True, _convert_="all")(
            id=f"{cell}-{attempts}" if offline else cell,
            name=f"{' '.join(names.values())} world {config['game']['world']} seed {config['seed']}",
            group=config["sweep"],
            job_type=names["defense"],
            tags=list(names.values()),
            config=dict(config),
            resume=None if offline else "allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_machine_info=True,  # host, user and command line, in which a secret may stand
            ),
        )
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # passed by Lightning, deplored by wandb
        logger.experiment  # noqa: B018  the property starts the run, so that a failure shows here
        logger.log_metrics = _harmless(logger.log_metrics)
    except Exception as error:  # a service that cannot be reached must not cost a result
        _warn(error)
        logger = None
    try:
        yield logger
    finally:
        _harmless(wandb.finish)()


def summarise(logger: Logger | None, result: Result) -> None:
    """Write a result's metrics, status and seconds into the run's summary."""
    if logger is None:
        return
    summary: dict[str, Any] = {name: value for name, value in result.metrics.items() if value is not None}
    summary |= {"status": result.status, "degenerate": result.degenerate}
    summary |= {f"seconds/{stage}": seconds for stage, seconds in result.seconds.items()}
    _harmless(logger.experiment.summary.update)(summary)  # type: ignore[attr-defined]


def _harmless(call: Callable[..., None]) -> Callable[..., None]:
    """The same call, but what it raises is a warning."""

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            _warn(error)

    return guarded


def _warn(error: Exception) -> None:
    _warn_once(" ".join(f"{type(error).__name__}: {error}".split())[:300])


@functools.cache
def _warn_once(reason: str) -> None:
    log.warning("W&B is left out: %s", reason)
