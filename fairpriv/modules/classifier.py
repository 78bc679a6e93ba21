"""Training, fine-tuning and fair fine-tuning of a classifier, as one LightningModule."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import Logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fairpriv.data.batches import Batch, ShuffledBatches, StratifiedBatches, content
from fairpriv.data.game import Rows
from fairpriv.errors import NonFiniteLossError
from fairpriv.functional import equalized_odds_gap, equalized_odds_penalty
from fairpriv.tracking.identity import OUTCOME_VERSION, content_hash, outcome_config
from fairpriv.tracking.result import write_whole

EXPECTED_WARNINGS = (
    r"Your `IterableDataset` has `__len__` defined",  # right here: batches are made in this process
    r".*does not have many workers",  # a batch is one indexed slice: workers would only copy it
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)


class MLP(nn.Sequential):
    """Multi-layer perceptron with ReLU: features [N, F] -> logits [N, C]."""

    def __init__(
        self, features: int, classes: int, *, name: str = "mlp", hidden: list[int] | None = None, dropout: float = 0.0
    ) -> None:
        sizes = [features, *(hidden if hidden is not None else (64, 32))]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(sizes[-1], classes))
        self.name = name


class Classifier(lightning.LightningModule):
    """``loss = mean(weight * cross-entropy) + lambda * equalized-odds penalty`` for batches ``(X, y, s, weight)``.

    Args:
        net: features -> logits [N, C].
        classes: number of labels C.
        lr, weight_decay: of AdamW.
        penalty: lambda, the weight of ``equalized_odds_penalty`` on the predicted probabilities; 0 skips it.
        dual_rate: above 0, lambda follows dual ascent: after every validation epoch
            ``lambda <- max(0, lambda + dual_rate * (gap - epsilon))`` with the equalized-odds gap of the validation
            rows (constrained optimisation in the manner of Cotter et al. 2019; the step rule is ours).
        epsilon: the gap that dual ascent aims at.
        stage: what an error or a log line calls this fit.

    Raises:
        NonFiniteLossError: at the first step whose loss is NaN or infinite.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        classes: int,
        lr: float,
        weight_decay: float,
        penalty: float = 0.0,
        dual_rate: float = 0.0,
        epsilon: float = 0.0,
        stage: str = "train",
    ) -> None:
        super().__init__()
        self.net = net
        self.lr, self.weight_decay = lr, weight_decay
        self.penalty, self.dual_rate, self.epsilon = penalty, dual_rate, epsilon
        self.stage = stage
        self.train_loss = MeanMetric()
        self.val_accuracy = MulticlassAccuracy(num_classes=classes, average="micro")
        self.val_balanced_accuracy = MulticlassAccuracy(num_classes=classes, average="macro")
        self.validation: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, X: Tensor) -> Tensor:
        """Logits [N, C] of features [N, F]."""
        return self.net(X)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The penalised loss of one batch."""
        X, y, s, weight = batch
        logits = self(X)
        loss = (weight * cross_entropy(logits, y, reduction="none")).mean()
        if self.penalty:
            loss = loss + self.penalty * equalized_odds_penalty(logits.softmax(-1), y, s)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"loss became {loss.item()} at step {self.global_step} of {self.stage}")
        self.train_loss.update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss."""
        self.log(f"{self.stage}/loss", self.train_loss)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect predictions; rates of rare cells do not average over batches."""
        X, y, s, _ = batch
        preds = self(X).argmax(-1)
        self.val_accuracy.update(preds, y)
        self.val_balanced_accuracy.update(preds, y)
        self.validation.append((preds, y, s))

    def on_validation_epoch_end(self) -> None:
        """Log the validation measures and, where it is driven, move lambda."""
        preds, y, s = (torch.cat(parts) for parts in zip(*self.validation, strict=True))
        self.validation.clear()
        gap = float(equalized_odds_gap(preds, y, s, missing="skip"))
        self.log(f"{self.stage}/val_accuracy", self.val_accuracy)
        self.log(f"{self.stage}/val_balanced_accuracy", self.val_balanced_accuracy)
        self.log(f"{self.stage}/val_equalized_odds_gap", gap)
        self.log(f"{self.stage}/lambda", self.penalty)
        if self.dual_rate:
            self.penalty = max(0.0, self.penalty + self.dual_rate * (gap - self.epsilon))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


def fit(
    module: Classifier,
    batches: ShuffledBatches | StratifiedBatches,
    *,
    epochs: int,
    trainer: Callable[..., lightning.Trainer],
    validation: Rows,
    measured: bool = False,
    seed: int = 0,
    logger: Logger | None = None,
    cache: Path | None = None,
) -> None:
    """Fit ``module`` in place and leave it on the CPU in eval mode; the same fit is done once and then read.

    Args:
        module: what is trained.
        batches: whole batches ``(X, y, s, weight)``.
        epochs: passes over ``batches``.
        trainer: makes a Trainer from further keyword arguments (a ``functools.partial`` of ``lightning.Trainer``).
        validation: rows that are measured after every epoch under dual ascent, else four times in a fit where
        measured: says that somebody reads the measures.
        seed: of dropout and whatever else draws from torch's own generator.
        logger: a Lightning logger.
        cache: folder of finished fits, named by a hash of all that determines them: initial weights, rows, batches,
            hyperparameters, seed, the trainer's settings, torch's version.
    """
    path = cache / f"{_fit_key(module, batches, epochs, trainer, validation, seed)}.safetensors" if cache else None
    if path is not None and _restore(module, path):
        return
    torch.manual_seed(seed)
    loader: DataLoader[Batch] = DataLoader(batches, batch_size=None)
    held_out = DataLoader(ShuffledBatches(validation, len(validation.y), seed=0), batch_size=None)
    module.train()  # Lightning keeps a module in the mode it comes in, and cached models come in eval mode
    with warnings.catch_warnings():
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        trainer(
            max_epochs=epochs,
            logger=logger or False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if measured or module.dual_rate else 0,
            # Dual ascent needs every epoch; a curve is drawn from four points.
            check_val_every_n_epoch=1 if module.dual_rate else max(1, epochs // 4),
            log_every_n_steps=len(loader),
        ).fit(module, loader, held_out)
    module.cpu().eval()
    if path is not None:
        write_whole(path, save(module.net.state_dict(), metadata={"penalty": repr(module.penalty)}))


def _fit_key(
    module: Classifier,
    batches: ShuffledBatches | StratifiedBatches,
    epochs: int,
    trainer: Callable[..., lightning.Trainer],
    validation: Rows,
    seed: int,
) -> str:
    settings = outcome_config({"trainer": getattr(trainer, "keywords", {})})
    return content_hash(
        {
            "outcome_version": OUTCOME_VERSION,
            "torch": torch.__version__,
            "initial": hashlib.sha256(save(module.net.state_dict())).hexdigest(),
            "net": str(module.net),  # dropout has no weights
            "loss": [module.lr, module.weight_decay, module.penalty, module.dual_rate, module.epsilon],
            "batches": batches.content,
            "validation": content(validation) if module.dual_rate else None,
            "epochs": epochs,
            "seed": seed,
            "trainer": {key: str(value) for key, value in settings["trainer"].items()},
        }
    )


def _restore(module: Classifier, path: Path) -> bool:
    """Read a finished fit; False where there is none that can be read."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            penalty = float(file.metadata()["penalty"])
        module.net.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError):
        return False  # it will be made again
    module.penalty = penalty
    module.eval()
    return True


@torch.inference_mode()
def predict(net: nn.Module, X: Tensor) -> Tensor:
    """Predicted class [N] of features [N, F]; a NonFiniteLossError where the model answers with NaN or infinity."""
    logits = net(X)
    if not torch.isfinite(logits).all():
        raise NonFiniteLossError("the trained model answers with NaN or infinity: its training diverged")
    return logits.argmax(-1)
