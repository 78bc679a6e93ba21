"""``hydra/sweeper=grids``: Hydra's basic sweeper for a union of grids. Chosen by default."""

# no annotations from the future: Hydra runs this file before it is a known module, where dataclasses cannot read them
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fairpriv.errors import InputError
from fairpriv.result import write_whole
from fairpriv.secrets import without_secrets
from fairpriv.sweep.grids import cells, distinct, left_alone
from fairpriv.sweep.launchers import watched
from fairpriv.sweep.progress import SweepProgress


@dataclass
class GridSweeperConf:
    """Keys of ``hydra.sweeper``."""

    _target_: str = "hydra_plugins.fairpriv_sweep.grids.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None  # of every grid
    grids: list[dict[str, Any]] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridSweeperConf, provider="fairpriv")


class GridSweeper(BasicSweeper):
    """The union of the products of ``params`` with each of ``grids``; without grids what Hydra's own does."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, grids: list[dict[str, Any]]) -> None:
        super().__init__(max_batch_size, params)
        self.grids = grids

    def _parse_config(self) -> list[str]:
        return []  # params stay apart from what the command line gives

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Build the launcher."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = watched(self.launcher)

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        """The next cells. Before the first ones the config that Hydra has just written is freed of secrets."""
        assert self.config is not None
        if self.batch_index == 0:
            kept = without_secrets(OmegaConf.to_container(self.config, enum_to_str=True))
            write_whole(Path(self.config.hydra.sweep.dir, "multirun.yaml"), OmegaConf.to_yaml(kept).encode())
        return super().get_job_batch()

    def split_arguments(  # type: ignore[override]  # static in the parent, which calls it on the instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The cells, in batches."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        listed = cells(self.params, self.grids, overrides, loader)
        if not listed:
            raise InputError("the grid has no cells: one of its keys, a glob(...) or range(...), has no values")
        grid = distinct(listed, self.config, loader)
        if display := SweepProgress.current:
            if len(grid) < len(listed):
                display.expect(len(grid), 0)
            for line in left_alone(grid, overrides):
                display.say(line)
        return list(self.split_overrides_to_chunks(grid, max_batch_size))
