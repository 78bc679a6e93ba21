"""Supervised fine-tuning of a causal language model on response tokens, as one LightningModule."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import lightning
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from fairpriv import processes
from fairpriv.errors import InputError, NonFiniteLossError, short_of_memory
from fairpriv.functional.cross_entropy import cross_entropies
from fairpriv.language_models.data.pairs import TokenBatches
from fairpriv.language_models.data.tokens import NO_TARGET, Encoded, collate
from fairpriv.language_models.models.reft import ReftModel
from fairpriv.language_models.models.sharding import gather, shard
from fairpriv.trainer import EXPECTED_WARNINGS


class Step:
    """The rows of one optimiser step. Not a list or dataclass: Lightning takes those apart to cast what they hold."""

    def __init__(self, rows: list[Encoded]) -> None:
        self.rows = rows


class CausalLM(lightning.LightningModule):
    """Trains what of ``model`` requires a gradient.

    A batch is a `Step`, worked off in parts of ``micro_batch_size`` rows. The loss is the mean over all terms of the
    step, which are its target tokens, whatever the parts and the number of processes: gradient accumulation and DDP
    change no gradient.
    Checkpoints hold the trained parameters only.

    Args:
        model: a Hugging Face causal LM, plain or with adapters, or a ``ReftModel``.
        lr: peak learning rate; it rises over the first ``warmup`` of the steps and falls to zero, linearly.
        weight_decay: of the optimiser.
        warmup: share of the steps, in [0, 1].
        clip: largest norm of a step's gradient; 0: any.
        micro_batch_size: rows of one forward pass.
        pad_id: the token id that fills up shorter rows.
        optimizer: makes the optimiser of parameters, ``lr`` and ``weight_decay``; None: AdamW.
        stage: what messages and curves call this training.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        clip: float = 0.0,
        micro_batch_size: int = 4,
        pad_id: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        stage: str = "train",
    ) -> None:
        super().__init__()
        self.model = model
        self.lr, self.weight_decay, self.warmup, self.clip = lr, weight_decay, warmup, clip
        self.micro_batch_size, self.pad_id, self.stage = micro_batch_size, pad_id, stage
        self.optimizer = optimizer or torch.optim.AdamW
        self.automatic_optimization = False
        self.strict_loading = False
        self.losses: list[float] = []  # mean loss of every step, over its terms

    def to(self, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Self:
        """Move; ``dtype`` is for frozen weights: in half precision most steps of a trained one would be rounded away.

        Lightning asks for it where ``trainer.precision`` is ``bf16-true`` or ``16-true``.
        """
        if dtype is not None:
            for parameter in self.model.parameters():
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
        return super().to(*args, **kwargs) if args or kwargs else self

    @property
    def sharded(self) -> bool:
        """Whether the weights are spread over the processes, as ``trainer.strategy=fsdp`` asks."""
        return self.device_mesh is not None

    def configure_model(self) -> None:
        """Shard the model, where that is asked for."""
        if self.sharded:
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"], half=self.trainer.precision == "bf16-mixed")

    def on_fit_start(self) -> None:
        """Set training mode: Hugging Face models come in eval mode, and Lightning leaves a module in its mode."""
        self.model.train()

    def training_step(self, step: Step, index: int) -> None:
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        # Sorted by length, so that little is padded; the sum over rows does not mind.
        rows = sorted(step.rows, key=lambda row: len(row.input_ids))
        total = self._over_processes(torch.tensor(self.terms(rows), device=self.device), "sum")
        shares = self.trainer.world_size
        summed = torch.zeros((), device=self.device)
        # DDP waits for every process in every part, so all take as many as the one with most rows.
        parts = self._over_processes(torch.tensor(-(-len(rows) // self.micro_batch_size), device=self.device), "max")
        for part in range(int(parts)):
            start = part * self.micro_batch_size
            with self._exchanging(last=part + 1 == parts):
                # The mean over processes is taken where the loss needs the sum.
                loss = self.summed_loss(rows[start : start + self.micro_batch_size]) / total
                self.manual_backward(loss * shares)
            summed += loss.detach()
        mean = float(self._over_processes(summed, "sum"))
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"{self.stage}: the loss is {mean} at step {len(self.losses) + 1}: lower defense.lr, or train with "
                "model.dtype=float32"
            )
        if self.clip:
            # With trainer.precision=16-mixed gradients are scaled up until the optimiser's step.
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            self.clip_gradients(optimizer, self.clip * (scaler.get_scale() if scaler else 1.0), "norm")
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.losses.append(mean)
        self.log(f"{self.stage}/loss", mean, prog_bar=True, batch_size=len(rows))

    @contextlib.contextmanager
    def _exchanging(self, *, last: bool) -> Iterator[None]:
        """Add up gradients in each process, and exchange them after the last part of a step only.

        Sharded full fine-tuning exchanges after every part: whole gradients of all weights are what it has no room for.
        """
        if self.sharded:
            wanted = [p.requires_grad for p in self.model.parameters()]
            self.model.set_requires_gradient_sync(last or all(wanted))  # type: ignore[operator]
        with contextlib.ExitStack() as waiting:
            if not last and isinstance(self.trainer.strategy, DDPStrategy):
                waiting.enter_context(self.trainer.strategy.block_backward_sync())
            yield

    def terms(self, rows: Sequence[Encoded]) -> int:
        """Count what the loss is a mean over."""
        return sum(label != NO_TARGET for row in rows for label in row.labels[1:])

    def summed_loss(self, rows: Sequence[Encoded]) -> Tensor:
        """Sum the loss over the terms of some rows of a step; 0 without rows, after a pass as every process makes."""
        filler = Encoded([self.pad_id] * 2, [NO_TARGET] * 2)
        return self.token_losses(collate(rows or [filler], self.pad_id)).sum()

    def token_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute the cross-entropy [K] of the batch's target tokens, in float32."""
        device = next(self.model.parameters()).device
        batch = {name: values.to(device) for name, values in batch.items()}
        labels = batch.pop("labels")  # with which the model would compute a loss of its own, on all logits in float32
        if isinstance(self.model, ReftModel):
            batch["targets"] = labels
        logits = self.model(**batch, use_cache=False).logits
        targets = pad(labels[:, 1:], (0, 1), value=NO_TARGET).flatten()
        rows = (targets != NO_TARGET).nonzero()[:, 0]
        return cross_entropies(logits.flatten(0, 1), rows, targets[rows])

    def _over_processes(self, value: Tensor, how: str) -> Tensor:
        return self.trainer.strategy.reduce(value, reduce_op=how) if self.trainer.world_size > 1 else value

    def configure_optimizers(self) -> Any:
        """Make the optimiser of what is trained, with the warm-up and the linear fall."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        try:
            optimizer = self.optimizer(trained, lr=self.lr, weight_decay=self.weight_decay)
        except (TypeError, ValueError) as error:  # it takes no weight decay, say
            raise InputError(f"defense.optimizer: {error}") from error
        steps = int(self.trainer.estimated_stepping_batches)
        rise = max(1, round(self.warmup * steps))

        def factor(step: int) -> float:
            return min((step + 1) / rise, (steps - step) / max(1, steps - rise + 1)) if step < steps else 0.0

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return what is trained: an adapter's checkpoint does not repeat the model's weights."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        found: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in found.items() if name in trained}


def require_masters(model: nn.Module, stage: str) -> None:
    """Raise `InputError` where weights in half precision are to be trained: most of their changes would be lost.

    Args:
        model: what requires a gradient in it is trained.
        stage: what is trained, for the message.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"{stage} trains {name} in {str(parameter.dtype).removeprefix('torch.')}, which rounds most of its "
                "steps away: set model.dtype=float32 (trainer.precision=bf16-mixed computes in half precision)"
            )


def fit_causal_lm(
    module: CausalLM,
    rows: list[Encoded],
    *,
    epochs: int,
    batch_size: int,
    trainer: Callable[..., lightning.Trainer],
    seed: int,
    logger: Logger | None = None,
) -> None:
    """Fit ``module`` in place and leave its model in eval mode, on the device and in the precision it came in.

    Raises:
        InputError: weights would be trained in half precision.
        NonFiniteLossError: the loss became NaN or infinite.
        RuntimeError: out of memory; says what to lower.
    """
    processes.gather(None)  # the first one may have measured for hours, and groups are made within minutes
    before = next(module.model.parameters()).device
    made = trainer(
        max_epochs=epochs,
        logger=logger or False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    require_masters(module.model, module.stage)
    exact: list[tuple[nn.Parameter, Tensor]] = []
    if made.precision in ("bf16-true", "16-true"):
        exact = [(p, p.data) for p in module.model.parameters() if not p.requires_grad]
        mixed = f"set trainer.precision={made.precision.removesuffix('-true')}-mixed"
        if not exact:
            raise InputError(
                f"trainer.precision={made.precision}: {module.stage} trains all weights, which it would round to half "
                f"precision in every step: {mixed}"
            )
        if isinstance(made.strategy, ModelParallelStrategy):
            raise InputError(f"trainer.precision={made.precision} with trainer.strategy=fsdp: {mixed}")
    torch.manual_seed(seed + made.global_rank)  # of dropout, which each process draws for other rows
    batches = TokenBatches(rows, batch_size, seed, made.global_rank, made.world_size)
    try:
        with warnings.catch_warnings():
            for expected in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", expected)
            made.fit(module, DataLoader(batches, batch_size=None, collate_fn=Step))
    except (MemoryError, RuntimeError) as error:
        if not short_of_memory(error):
            raise
        raise RuntimeError(
            f"out of memory in {module.stage}: lower defense.micro_batch_size={module.micro_batch_size} or "
            "dataset.max_tokens, or set model.gradient_checkpointing=true, trainer.precision=bf16-mixed"
        ) from error
    if isinstance(made.strategy, ModelParallelStrategy):
        gather(module.model)
    for parameter, values in exact:
        parameter.data = values
    if next(module.model.parameters()).device != before:  # which some quantised models refuse to be asked
        module.model.to(before)
    module.model.eval()
    if not module.losses:
        raise InputError(
            f"{module.stage}: no step was taken: defense.epochs and trainer.limit_train_batches are above 0"
        )
