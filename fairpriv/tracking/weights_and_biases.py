"""Weights & Biases through Lightning's WandbLogger. Results never depend on it: where it fails, a warning says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
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
    attempts = sum(1 for _ in Path(node["save_dir"], "wandb").glob(f"offline-run-*-{cell}-*"))
    try:
        Path(node["save_dir"]).mkdir(parents=True, exist_ok=True)
        logger = instantiate(dict(node), _partial_=True, _convert_="all")(
            id=f"{cell}-{attempts}" if offline else cell,
            name=f"{' '.join(names.values())} world {config['game']['world']} seed {config['seed']}",
            group=config["sweep"],
            job_type=names["defense"],
            tags=list(names.values()),
            config=dict(config),
            resume=None if offline else "allow",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
            ),
        )
        logger.experiment  # noqa: B018  the property starts the run, so that a failure shows here
    except Exception as error:  # a service that cannot be reached must not cost a result
        log.warning("W&B is left out: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
        logger = None
    try:
        yield logger
    finally:
        wandb.finish()


def summarise(logger: Logger | None, result: Result) -> None:
    """Write a result's metrics, status and seconds into the run's summary."""
    if logger is None:
        return
    summary: dict[str, Any] = {name: value for name, value in result.metrics.items() if value is not None}
    summary |= {"status": result.status, "degenerate": result.degenerate}
    summary |= {f"seconds/{stage}": seconds for stage, seconds in result.seconds.items()}
    logger.experiment.summary.update(summary)  # type: ignore[attr-defined]
