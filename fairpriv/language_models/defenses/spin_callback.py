"""SPIN inside any Lightning run: when the fit ends, score, edit, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from torch import nn

from fairpriv.editing import SpinEdit
from fairpriv.errors import InputError
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.defenses.spin import Spin
from fairpriv.metrics import Measured


class SpinCallback(lightning.Callback):
    """Edits the language model of a LightningModule when its fit ends.

    Args:
        spin: ratio, rule, target and the rest; without ``after``, in whose place the fit stands.
        rows: encoded pairs of every dimension and excluded set that ``spin`` names.
        attribute: where the module keeps the causal LM; its adapters must be merged.
        pad_id: the token id that fills up shorter rows.
        seed: of random controls.
        path: where the edit is saved; None: nowhere.
    """

    def __init__(
        self,
        spin: Spin,
        rows: Mapping[str, Sequence[Encoded]],
        *,
        attribute: str = "model",
        pad_id: int = 0,
        seed: int = 0,
        path: Path | None = None,
    ) -> None:
        if missing := {*spin.dimensions, *spin.exclude} - set(rows):
            raise InputError(f"SpinCallback: rows has no pairs of {', '.join(sorted(missing))}")
        if spin.after is not None:
            raise InputError("SpinCallback: the fit that it ends stands in the place of spin.after: leave that None")
        self.spin, self.rows, self.attribute = spin, rows, attribute
        self.pad_id, self.seed, self.path = pad_id, seed, path
        self.applied: SpinEdit | None = None  # after the fit; ``revert`` undoes it
        self.measured = Measured()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Score the model as it was trained, apply the edit, and log its metrics."""
        model: Any = getattr(pl_module, self.attribute)
        assert isinstance(model, nn.Module)
        self.applied, self.measured = self.spin.edit(model, self.rows, pad_id=self.pad_id, seed=self.seed)
        self.applied.apply(model)
        if trainer.is_global_zero:
            if self.path is not None:
                self.applied.save(self.path)
            for logger in trainer.loggers:
                logger.log_metrics(dict(self.measured.metrics), step=trainer.global_step)
