"""``hydra/launcher=ray``: cells as tasks of a Ray cluster, each with the CPUs and GPUs that it asks for."""

# no annotations from the future: see grids.py
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class RayConf:
    """Keys of ``hydra.launcher``."""

    _target_: str = "hydra_plugins.fairpriv_sweep.ray.RayLauncher"
    address: str | None = None  # host:port of a cluster; null: RAY_ADDRESS, one that runs here, or one for this sweep
    cpus: float | None = None  # of a cell; null: as many as trainer.devices (else 1) times ``threads`` (else 1)
    gpus: float | None = None  # of a cell, 0.5 for half of one; null: trainer.devices (else 1), if the cluster has any


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayConf, provider="fairpriv")


class RayLauncher(Launcher):
    """A task for each cell: see `fairpriv.sweep.ray_tasks`."""

    def __init__(self, address: str | None, cpus: float | None, gpus: float | None) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what all jobs have in common."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what they return is in their order. A sweeper that launches again meets the same cluster."""
        from fairpriv.sweep.ray_tasks import connect, resources, run

        connect(self.address)
        needs = resources(self.config, self.cpus, self.gpus)
        task = (self.hydra_context, self.config, self.task_function)
        return run(task, dict(enumerate(job_overrides, initial_job_idx)), needs)
