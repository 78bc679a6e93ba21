"""``hydra/launcher=local_slots``: cells side by side on this machine, each with device slots of its own."""

# no annotations from the future: see grids.py
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalSlotsConf:
    """Keys of ``hydra.launcher``."""

    _target_: str = "hydra_plugins.fairpriv_sweep.local_slots.LocalSlots"
    devices: int | None = None  # slots of a cell; null: as many as trainer.devices says, else 1
    slots: int | None = None  # in all; null: one for each GPU, without GPUs as many as ``threads`` goes into the cores


ConfigStore.instance().store(group="hydra/launcher", name="local_slots", node=LocalSlotsConf, provider="fairpriv")


class LocalSlots(Launcher):
    """Worker processes that stay for the whole grid: see `fairpriv.sweep.slots`."""

    def __init__(self, devices: int | None, slots: int | None) -> None:
        self.devices, self.slots = devices, slots
        self.staff: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what all jobs have in common."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what they return is in their order. A sweeper that launches again meets the same workers."""
        from fairpriv.sweep.slots import Staff, environments

        if self.staff is None:
            task = (self.hydra_context, self.config, self.task_function)
            self.staff = Staff(task, environments(self.config, self.devices, self.slots))
        return self.staff.run(dict(enumerate(job_overrides, initial_job_idx)))
