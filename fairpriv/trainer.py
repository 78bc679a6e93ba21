"""The Trainer that every fit of a run uses."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from fairpriv import processes, signs
from fairpriv.config.compose import instantiated
from fairpriv.errors import InputError

EXPECTED_WARNINGS = (
    r"Your `IterableDataset` has `__len__` defined",  # right here: batches are made in this process
    r".*does not have many workers",  # a batch is one indexed slice: workers would only copy it
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
    r"The `srun` command is available",  # comes at every fit on a machine with Slurm; we start the processes
)


def trainer_of(config: Mapping[str, Any]) -> functools.partial[lightning.Trainer]:
    """Return a function that makes a Trainer of ``config["trainer"]``.

    A progress bar is shown, unless the config says otherwise, where a person watches.

    Raises:
        InputError: a setting that Lightning refuses.
    """
    made: functools.partial[lightning.Trainer] = instantiated(config["trainer"], _partial_=True)

    def make(**settings: Any) -> lightning.Trainer:
        strategy = strategy_of(settings.get("strategy", "auto"))
        plugins = settings.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if isinstance(strategy, str) and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins = [*plugins, LightningEnvironment()]  # as below; by default Lightning looks for Slurm
        callbacks = settings.get("callbacks") or []
        callbacks = [*(callbacks if isinstance(callbacks, list) else [callbacks]), TellLoss()]
        return made.func(**settings | {"strategy": strategy, "plugins": plugins, "callbacks": callbacks})

    # A refusal shows here, and not only at the first fit that is not read from the cache.
    try:
        make(**made.keywords, logger=False, enable_checkpointing=False, enable_model_summary=False)
    except Exception as error:
        raise InputError(f"trainer: {error}") from error

    trainer = functools.partial(make, **made.keywords)
    if trainer.keywords.get("enable_progress_bar") is None:
        trainer.keywords["enable_progress_bar"] = not config["sweep"] and sys.stderr.isatty()
    return trainer


@contextlib.contextmanager
def without_tips() -> Iterator[None]:
    """Keep back what Lightning says of every Trainer: its devices, and tips."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


class TellLoss(Callback):
    """Tell the signs of life which fit runs, how far it is, and its loss."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss every few seconds."""
        if not signs.due():
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        told = f", loss {loss.detach().float().mean():.4g}" if isinstance(loss, torch.Tensor) else ""
        each = trainer.num_training_batches
        steps = f"step {batch_idx + 1}"  # of a loader that does not know its end
        if math.isfinite(each):
            done, total = trainer.current_epoch * int(each) + batch_idx + 1, int(each) * (trainer.max_epochs or 1)
            steps = f"step {done} of {total}"
        signs.step(f"fit of {module.stage}, {steps}{told}")


def strategy_of(wanted: Any) -> Any:
    """Choose the strategy of one fit: FSDP2 or DDP where this is one of several processes, which run already."""
    if processes.count() > 1 and wanted == "fsdp":
        sharded = ModelParallelStrategy(data_parallel_size=processes.count(), tensor_parallel_size=1)
        sharded.cluster_environment = LightningEnvironment()  # as below
        return sharded
    if processes.count() > 1:
        return DDPStrategy(
            cluster_environment=LightningEnvironment(),  # on any batch system
            find_unused_parameters=str(wanted).endswith("_true"),
        )
    return "auto" if str(wanted).startswith(("ddp", "fsdp")) else wanted


def device_of(config: Mapping[str, Any]) -> torch.device:
    """Choose the device that this process trains on: ``trainer.accelerator`` and, if a list, ``trainer.devices``.

    Else it is the first one of the accelerator that Lightning would choose, as it does without ``trainer.accelerator``.
    """
    wanted, listed = config["trainer"].get("accelerator", "auto"), config["trainer"].get("devices")
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", 0))  # among the processes of this machine
        return torch.device("cuda", listed[local]) if isinstance(listed, list) else torch.device("cuda")
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
