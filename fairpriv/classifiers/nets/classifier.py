"""Training, fine-tuning and fair fine-tuning of a classifier, as one LightningModule."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fairpriv import processes
from fairpriv.classifiers.data.batches import Batch, Batches, ShuffledBatches
from fairpriv.classifiers.data.rows import Rows, content
from fairpriv.classifiers.nets.stopping import BestEpoch, constrained, refuse_few_rows
from fairpriv.errors import InputError, NonFiniteLossError
from fairpriv.functional import equalized_odds_gap, equalized_odds_penalty
from fairpriv.identity import code_of, described, kind_of, outcome_config
from fairpriv.store import Store, checksum
from fairpriv.trainer import EXPECTED_WARNINGS


class MLP(nn.Sequential):
    """Multi-layer perceptron with ReLU: features [N, F] -> logits [N, C]."""

    kind: ClassVar[str] = "mlp"

    def __init__(
        self, features: int, classes: int, *, name: str = "mlp", hidden: list[int] | None = None, dropout: float = 0.0
    ) -> None:
        sizes = [features, *self.sizes(hidden)]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(sizes[-1], classes))
        self.name = name

    @staticmethod
    def sizes(hidden: list[int] | None) -> list[int]:
        """Return the sizes of the hidden layers for an argument ``hidden``; None stands for 64 and 32.

        Raises:
            InputError: a layer without neurons, behind which every answer is the same.
        """
        if hidden is not None and any(size < 1 for size in hidden):
            raise InputError(f"model.hidden={list(hidden)}: every layer has at least 1 neuron")
        return [64, 32] if hidden is None else list(hidden)


class LargeNetwork(nn.Module):
    """Base class of large networks, which have parameter groups of their own and answer on the GPU."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return groups of parameters for the optimiser, each with its learning rate."""
        return [{"params": self.parameters(), "lr": lr}]


class Classifier(lightning.LightningModule):
    """Trainer of ``mean(weight * cross-entropy) + lambda * equalized-odds penalty``, on batches ``(X, y, s, weight)``.

    Under DDP every process gets the whole batch and uses its share of the rows. The mean and the penalty are those of
    the whole batch (the mean of the shares' penalties would differ), so the gradient is that of a single process.

    Args:
        net: features -> logits [N, C].
        classes: number of labels C.
        lr, weight_decay: of AdamW.
        penalty: lambda, the weight of ``equalized_odds_penalty`` on the predicted probabilities; 0 skips it.
        patience: number of epochs without a smaller objective on the validation rows (cross-entropy and, with a
            penalty, lambda times it) after which training stops; the weights of the best epoch are kept (`BestEpoch`).
            None: all epochs are trained and the last one is kept.
        dual_rate: above 0, lambda follows dual ascent: after every validation epoch
            ``lambda <- max(0, lambda + dual_rate * (gap - epsilon))`` with the equalized-odds gap of the validation
            rows (constrained optimisation in the manner of Cotter et al. 2019; the step rule is ours). All epochs are
            trained, and of those whose gap is at most ``epsilon`` the one with the smallest cross-entropy on the
            validation rows is kept; if there is none, the one with the smallest gap.
        epsilon: target of the gap under dual ascent.
        smoothing: share of every training label that is spread evenly over all labels, in [0, 1). Validation rows keep
            their labels.
        stage: name of this fit in errors and in the log.

    Attributes:
        epoch: the epoch whose weights were kept, from 1.
        constraint_met: under dual ascent, whether its gap on the validation rows is at most ``epsilon``.

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
        patience: int | None = None,
        dual_rate: float = 0.0,
        epsilon: float = 0.0,
        smoothing: float = 0.0,
        stage: str = "train",
    ) -> None:
        super().__init__()
        self.net = net
        self.lr, self.weight_decay = lr, weight_decay
        self.penalty, self.dual_rate, self.epsilon = penalty, dual_rate, epsilon
        self.patience, self.smoothing = patience, smoothing
        self.stage = stage
        self.epoch, self.constraint_met = 0, True
        self.best = BestEpoch(1, None if dual_rate else patience)
        self.kept: dict[str, Tensor] = {}  # of the best epoch
        self.kept_penalty = penalty
        self.train_loss = MeanMetric()
        self.val_accuracy = MulticlassAccuracy(num_classes=classes, average="micro")
        self.val_balanced_accuracy = MulticlassAccuracy(num_classes=classes, average="macro")
        self.validation: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def hyperparameters(self) -> list[float | None]:
        """Hyperparameters that the trained weights depend on, besides data, seed and start."""
        return [self.lr, self.weight_decay, self.penalty, self.patience, self.dual_rate, self.epsilon, self.smoothing]

    @property
    def selects(self) -> bool:
        """Whether validation rows decide which epoch is kept."""
        return self.patience is not None or self.dual_rate > 0

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits [N, C] of features [N, F]."""
        return self.net(X)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the penalised loss of one batch."""
        X, y, s, weight = batch
        number = self.trainer.world_size
        own = slice(self.trainer.global_rank, None, number)
        logits = self(X[own])
        each = cross_entropy(logits, y[own], reduction="none", label_smoothing=self.smoothing)
        share = (weight[own] * each).sum() / len(y)  # of the mean
        penalty = share.new_zeros(())
        if self.penalty:
            penalty = self.penalty * equalized_odds_penalty(self._whole(logits.softmax(-1), own, len(y)), y, s)
        loss = number * share.detach() + penalty.detach()  # the mean of which over processes is the loss
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"loss became {loss.item()} at step {self.global_step} of {self.stage}")
        self.train_loss.update(loss)
        return number * (share + penalty)  # DDP takes the mean of gradients, and their sum is needed

    def _whole(self, probs: Tensor, own: slice, rows: int) -> Tensor:
        """Gather the probabilities [rows, C] of the whole batch, with a gradient for this process' own rows."""
        if self.trainer.world_size == 1:
            return probs
        whole = probs.new_zeros(rows, probs.shape[1])
        whole[own] = probs.detach()
        whole = self.trainer.strategy.reduce(whole, reduce_op="sum")
        whole[own] = probs
        return whole

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss."""
        self.log(f"{self.stage}/loss", self.train_loss)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect logits, because rates of rare cells cannot be averaged over batches."""
        X, y, s, _ = batch
        logits = self(X)
        self.val_accuracy.update(logits, y)
        self.val_balanced_accuracy.update(logits, y)
        self.validation.append((logits, y, s))

    def on_validation_epoch_end(self) -> None:
        """Log the validation measures and, as the settings say, keep the best epoch, stop, and move lambda."""
        logits, y, s = (torch.cat(parts) for parts in zip(*self.validation, strict=True))
        self.validation.clear()
        # Every process has the same rows; they agree on one value, so that rounding does not drive them apart.
        agreed = self.trainer.strategy.broadcast
        gap = agreed(float(equalized_odds_gap(logits.argmax(-1), y, s, missing="skip")))
        loss = agreed(float(self.objective(logits, y, s)))
        self.log(f"{self.stage}/val_loss", loss, sync_dist=True)
        self.log(f"{self.stage}/val_accuracy", self.val_accuracy)
        self.log(f"{self.stage}/val_balanced_accuracy", self.val_balanced_accuracy)
        self.log(f"{self.stage}/val_equalized_odds_gap", gap, sync_dist=True)
        self.log(f"{self.stage}/lambda", self.penalty, sync_dist=True)
        if self.selects:
            self._select(torch.tensor([loss]).double(), gap)
        if self.dual_rate:
            self.penalty = max(0.0, self.penalty + self.dual_rate * (gap - self.epsilon))

    def objective(self, logits: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Return the value to minimise on validation rows; under dual ascent the cross-entropy, since lambda moves."""
        loss = cross_entropy(logits, y)
        if self.penalty and not self.dual_rate:
            loss = loss + self.penalty * equalized_odds_penalty(logits.softmax(-1), y, s)
        return loss

    def _select(self, loss: Tensor, gap: float) -> None:
        """Keep this epoch's weights if they are the best; stop if the last improvement is too long ago."""
        value = constrained(loss, torch.tensor([gap]), self.epsilon) if self.dual_rate else loss
        better, stopped = self.best.update(torch.tensor([0]), torch.tensor([self.current_epoch + 1]), value)
        if better:
            self.epoch, self.kept_penalty = self.current_epoch + 1, self.penalty
            self.constraint_met = gap <= self.epsilon or not self.dual_rate
            self.kept = {name: weight.detach().clone() for name, weight in self.net.state_dict().items()}
        if stopped:
            self.trainer.should_stop = True

    def keep_best(self) -> None:
        """Replace the last weights and lambda by those of the kept epoch."""
        if self.kept:
            self.net.load_state_dict(self.kept)
            self.penalty = self.kept_penalty
            self.kept = {}
        else:
            self.epoch = self.current_epoch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make an AdamW over all parameters, with the learning rates that the network sets."""
        net = self.net
        parameters = net.parameter_groups(self.lr) if isinstance(net, LargeNetwork) else self.parameters()
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


def fit(
    module: Classifier,
    batches: Batches,
    *,
    epochs: int,
    trainer: Callable[..., lightning.Trainer],
    validation: Rows,
    measured: bool = False,
    seed: int = 0,
    logger: Logger | None = None,
    store: Store | None = None,
) -> None:
    """Fit ``module`` in place and leave it on the CPU in eval mode; a finished equal fit is read from ``store``.

    Args:
        module: the classifier to train.
        batches: whole batches ``(X, y, s, weight)``.
        epochs: passes over ``batches``.
        trainer: makes a Trainer from further keyword arguments (a ``functools.partial`` of ``lightning.Trainer``).
        validation: rows that are measured after every epoch if they decide which one is kept, else about four times
            in a fit if ``measured``, else never.
        measured: whether the measures are logged.
        seed: of dropout and everything else that draws from torch's own generator.
        logger: a Lightning logger.
        store: keeps finished fits by all that determines them: initial weights, rows, batches, hyperparameters, seed,
            the trainer's settings.
    """
    refuse_few_rows(len(validation.y), module.patience)

    def make() -> Classifier:
        _train(module, batches, epochs, trainer, validation, measured, seed, logger)
        return module

    if store is None:
        make()
    else:
        key = _fit_key(module, batches, epochs, trainer, validation, seed)
        store.cached("fits", key, make, save=_saved, load=functools.partial(_restored, module), together=True)


def _train(
    module: Classifier,
    batches: Batches,
    epochs: int,
    trainer: Callable[..., lightning.Trainer],
    validation: Rows,
    measured: bool,
    seed: int,
    logger: Logger | None,
) -> None:
    torch.manual_seed(seed + processes.rank())  # of dropout, which each process draws for other rows
    loader: DataLoader[Batch] = DataLoader(batches, batch_size=None)
    # A pass over a loader draws from torch's generator, as dropout does: one for a curve alone has its own generator.
    aside = None if module.selects else torch.Generator()
    held_out = DataLoader(ShuffledBatches(validation, len(validation.y), seed=0), batch_size=None, generator=aside)
    module.train()  # Lightning keeps a module's mode, and cached models are in eval mode
    with warnings.catch_warnings():
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        trainer(
            max_epochs=epochs,
            logger=logger or False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if measured or module.selects else 0,
            # A choice needs every epoch; a curve is drawn from four points.
            check_val_every_n_epoch=1 if module.selects else max(1, epochs // 4),
            log_every_n_steps=len(loader),
        ).fit(module, loader, held_out)
    module.keep_best()
    module.cpu().eval()


_TOLD = ("penalty", "epoch", "constraint_met")  # attributes that are stored with a fit's weights


def _fit_key(
    module: Classifier,
    batches: Batches,
    epochs: int,
    trainer: Callable[..., lightning.Trainer],
    validation: Rows,
    seed: int,
) -> dict[str, Any]:
    settings = outcome_config({"trainer": getattr(trainer, "keywords", {})})
    layers = [[name, *_told(layer)] for name, layer in module.net.named_modules()]
    classes = {type(part) for part in (module, batches, *module.net.modules())}
    code = code_of(*classes)
    return {
        "initial": checksum(module.net.state_dict()),
        "net": layers,  # dropout has no weights
        "loss": module.hyperparameters,
        "batches": batches.content,
        "validation": content(validation) if module.selects else None,
        "epochs": epochs,
        "seed": seed,
        "trainer": {key: str(value) for key, value in settings["trainer"].items()},
    } | ({"code": code} if code else {})


def _told(layer: nn.Module) -> list[Any]:
    """Return plain data that tell what a layer computes, beside its weights."""
    found = [kind_of(type(layer)), layer.extra_repr()]
    if type(layer).__module__.partition(".")[0] in ("fairpriv", "transformers"):  # which `extra_repr` of ours tells
        return found
    # A number of heads, or a factor, is in no weight; nor is a buffer that is not saved.
    public = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "training"}
    settings = {name: value for name, value in public.items() if not isinstance(value, nn.Module)}
    return [*found, described(settings | dict(layer.named_buffers(recurse=False)))]


def _saved(module: Classifier) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return module.net.state_dict(), {name: getattr(module, name) for name in _TOLD}


def _restored(module: Classifier, weights: dict[str, Tensor], told: dict[str, Any]) -> Classifier:
    """Load a finished fit into ``module``."""
    module.net.load_state_dict(weights)
    for name in _TOLD:
        setattr(module, name, told[name])
    return module.eval()


@torch.inference_mode()
def predict(net: nn.Module, X: Tensor) -> Tensor:
    """Predict the classes [N] of features [N, F]; raise NonFiniteLossError if a logit is NaN or infinite."""
    return logits(net, X).argmax(-1)


@torch.inference_mode()
def scores(net: nn.Module, X: Tensor) -> Tensor:
    """Return P(y=1) [N] of features [N, F] by a model of two classes; errors as in `predict`."""
    return logits(net, X).softmax(-1)[:, 1]


def logits(net: nn.Module, X: Tensor) -> Tensor:
    """Return the logits [N, C] of features [N, F], on the CPU; raise NonFiniteLossError if one is NaN or infinite.

    A large network computes them on the GPU, if there is one.
    """
    on_gpu = isinstance(net, LargeNetwork) and torch.cuda.is_available()
    answers: Tensor = net.cuda()(X.cuda()).cpu() if on_gpu else net(X)
    if on_gpu:
        net.cpu()
    if not torch.isfinite(answers).all():
        raise NonFiniteLossError("the trained model answers with NaN or infinity: its training diverged")
    return answers


@torch.no_grad()
def require_logits(net: nn.Module, X: Tensor, classes: int, who: str) -> None:
    """Put a network of a user's into eval mode; raise InputError, in the name of ``who``, if it gives no logits [N, C].

    Probabilities in their place would be taken for logits: trained through a second softmax, and told after it. No
    random number that is drawn later is another one.
    """
    with torch.random.fork_rng(devices=[]):
        found = net.eval()(X)
    wanted = f"must give logits of shape {[len(X), classes]} for {len(X)} rows"
    if not isinstance(found, Tensor) or not found.is_floating_point() or list(found.shape) != [len(X), classes]:
        what = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{who} {wanted}, and gives {what}")
    if (found >= 0).all() and ((found.double().sum(1) - 1).abs() < 1e-5).all():
        raise InputError(f"{who} {wanted}, and gives probabilities: leave out the softmax")
