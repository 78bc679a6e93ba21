"""Many small classifiers trained at once: weights stacked, one optimiser step for all.

Member i of a pool is the `MLP` that `classifier.fit` makes of its rows, to floating-point tolerance: with the seed
``member_seed(seed, i)`` it has its own initial weights and its own batches, whatever the other members are.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.nn.utils.rnn import pad_sequence
from torch.optim.adamw import adamw
from torch.utils.data import DataLoader, IterableDataset

from fairpriv import processes
from fairpriv.classifiers.data.batches import PoissonBatches, StratifiedBatches
from fairpriv.classifiers.data.rows import Rows, content
from fairpriv.classifiers.nets.classifier import MLP
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.stopping import BestEpoch, constrained, refuse_few_rows
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gaps, label_gaps
from fairpriv.functional.arrays import Values, as_tensor
from fairpriv.store import Store, checksum
from fairpriv.trainer import EXPECTED_WARNINGS

log = logging.getLogger(__name__)

PoolBatch = tuple[Tensor | None, Tensor]  # places [k, B] in the stacked rows (None: all rows), weights [k, B]

# Numbers in the widest activation of the members that pass through the network together: about what the caches of a
# core hold, so that large batches do not wait for memory, and a bound on memory whatever M is.
_BLOCK = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True, eq=False, repr=False)
class Pool(Models):
    """M classifiers of one architecture, on the CPU.

    ``pool[2:5]``, ``pool[[0, 7]]`` and ``pool[mask]`` are pools of these members, ``pool[3]`` a pool of one.

    Attributes:
        weights: per layer ``(W [M, in, out], b [M, out])``; a member's layer is ``x @ W[i] + b[i]``.
        diverged: members whose training broke off, in ascending order.
        told: what its last training has to say of every member, ``[M]`` each: ``epoch``, the one that was kept, from 1;
            ``lambda``, the penalty's weight in it; ``constraint_met``, 1 or 0, under dual ascent.
    """

    weights: list[tuple[Tensor, Tensor]] = field()  # the base has a default, and a pool has none
    diverged: list[int] = field(default_factory=list)
    told: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, nets: Sequence[nn.Sequential]) -> Pool:
        """The pool of these `MLP` s, which have one architecture; their weights are copied."""
        layers = zip(*([layer for layer in net if isinstance(layer, nn.Linear)] for net in nets), strict=True)
        return cls(
            [
                (torch.stack([a.weight.detach().T for a in layer]), torch.stack([a.bias.detach() for a in layer]))
                for layer in layers
            ]
        )

    @staticmethod
    def join(pools: Sequence[Pool]) -> Pool:
        """The members of all pools, in this order.

        Raises:
            InputError: no pools, or unequal architectures.
        """
        if len({pool.sizes for pool in pools}) != 1:
            raise InputError(f"pools of layer sizes {[pool.sizes for pool in pools]} cannot be joined: one is needed")
        first = itertools.accumulate((len(pool) for pool in pools), initial=0)
        return Pool(
            [
                (torch.cat(W), torch.cat(b))
                for W, b in (zip(*layer, strict=True) for layer in zip(*(p.weights for p in pools), strict=True))
            ],
            [start + i for pool, start in zip(pools, first, strict=False) for i in pool.diverged],
            {
                name: [value for pool in pools for value in pool.told[name]]
                for name in pools[0].told
                if all(name in pool.told for pool in pools)
            },
        )

    def __len__(self) -> int:
        return len(self.weights[0][0])

    def __repr__(self) -> str:
        broken = f", {len(self.diverged)} diverged" if self.diverged else ""
        return f"Pool({len(self)} members of sizes {'-'.join(map(str, self.sizes))}{broken})"

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Pool:
        chosen = torch.arange(len(self))[index].reshape(-1)
        return Pool(
            [(W[chosen], b[chosen]) for W, b in self.weights],
            [place for place, i in enumerate(chosen.tolist()) if i in self.diverged],
            {name: [values[i] for i in chosen.tolist()] for name, values in self.told.items()},
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Layer sizes: features, hidden ones, classes."""
        return (self.weights[0][0].shape[1], *(b.shape[1] for _, b in self.weights))

    def member(self, i: int) -> MLP:
        """Member i as a module of its own, in eval mode."""
        features, *hidden, classes = self.sizes
        with torch.device("meta"):  # no random numbers are drawn for weights that are replaced
            net = MLP(features, classes, hidden=hidden)
        values = [tensor for W, b in self.weights for tensor in (W[i].T.contiguous(), b[i].clone())]
        net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)), assign=True)
        return net.eval()

    @torch.inference_mode()
    def predict_proba(self, X: Values, *groups: Tensor) -> Tensor:
        """Return P(y=1) of every member on the same rows, float32 ``[M, N]`` in [0, 1], for features ``[N, F]``.

        With C > 2 classes, the probabilities of all of them: ``[M, N, C]``.

        Raises:
            InputError: X is not ``[N, F]``.
        """
        X = as_tensor(X, "X").detach().cpu().float()
        if X.dim() != 2 or X.shape[1] != self.sizes[0]:
            raise InputError(f"X is {list(X.shape)}; these members take [N, {self.sizes[0]}]")
        classes = self.sizes[-1]
        probs = torch.empty(len(self), len(X), *([classes] if classes > 2 else []))
        members = min(len(self), 64)
        rows = max(1, _BLOCK["cpu"] // (members * max(self.sizes)))
        for i, j in itertools.product(range(0, len(self), members), range(0, len(X), rows)):
            part = slice(i, i + members)
            h = X[j : j + rows].expand(len(self.weights[0][0][part]), -1, -1)
            for depth, (W, b) in enumerate(self.weights):
                h = torch.baddbmm(b[part, None], h.relu() if depth else h, W[part])
            probs[part, j : j + rows] = h.softmax(-1) if classes > 2 else (h[..., 1] - h[..., 0]).sigmoid()
        return probs


@dataclass(frozen=True, eq=False)
class Dual:
    """Dual ascent on ``gap <= epsilon`` on validation rows, a lambda for every member; the rule is `Classifier`'s.

    Attributes:
        rate: above 0; after every epoch of a member ``lambda <- max(0, lambda + rate * (gap - epsilon))``.
        epsilon: at least 0, the gap that is aimed at.
    """

    rate: float
    epsilon: float


@dataclass(frozen=True)
class Private:
    """DP-SGD (Abadi et al. 2016): a step sums its rows' gradients, clipped one by one, and adds Gaussian noise.

    An epoch is ``steps_per_epoch`` batches, in each of which every row is with probability ``1 / steps_per_epoch``; the
    noised sum is divided by the batches' expected size.

    Attributes:
        noise: the noise multiplier, at least 0: the noise's standard deviation in units of ``clip``.
        clip: above 0, the largest norm of a row's gradient, all parameters together.
    """

    noise: float
    clip: float


def member_seed(seed: int, member: int) -> int:
    """The seed of a member's initial weights and batches: the first word of numpy's ``SeedSequence([seed, member])``.

    Unlike ``seed + member`` it is not shared by the neighbours of two pools with neighbouring seeds.
    """
    return int(np.random.SeedSequence([seed, member]).generate_state(1)[0])


def mask_seed(seed: int) -> int:
    """The seed of DP-SGD's Poisson samples: not that of the initial weights, which a release makes known."""
    return member_seed(seed, 2)


def noise_seed(seed: int) -> int:
    """The seed of DP-SGD's noise: noise that knows the batch, or the initial weights, hides nothing."""
    return member_seed(seed, 1)


def fit_pool(
    datasets: Sequence[Sequence[Any]],
    *,
    hidden: Sequence[int] = (64, 32),
    classes: int = 2,
    epochs: int | Sequence[int],
    batch_size: int,
    lr: float,
    seed: int,
    penalty: float = 0.0,
    validation: Sequence[Sequence[Any]] | None = None,
    patience: int | None = None,
    dual: Dual | None = None,
    private: Private | None = None,
    initial: Pool | None = None,
    vectorized: bool = True,
    weight_decay: float = 0.0,
    steps_per_epoch: int | None = None,
    numbers: Sequence[int] | None = None,
    store: Store | None = None,
    accelerator: str = "auto",
    progress: bool = False,
) -> Pool:
    """Train one classifier per dataset, all at once: ``mean(weight * cross-entropy) + penalty * gap`` each, by AdamW.

    A member takes ``epochs`` times the batches that its own rows make, and is then left as it is while larger ones go
    on; with ``patience`` it stops early and goes back to its best epoch, by the rule of `Classifier`. Under an
    initialised process group rank r trains the members ``r::world_size``, and every rank returns all.

    Args:
        datasets: per member ``(X, y)``, ``(X, y, groups)`` or ``(X, y, groups, weights)``: features ``[N, F]``, labels
            0 to ``classes - 1`` ``[N]``, integer groups ``[N]``, weights of the rows' cross-entropies ``[N]``; tensors
            or arrays. N may differ between members.
        hidden: sizes of the hidden layers.
        classes: number of labels, two or more.
        epochs: passes over a member's batches; a number, or one for every member.
        batch_size: rows of a member in a batch; less where it has fewer. Not read under ``private``.
        lr, weight_decay: of AdamW.
        seed: member i draws initial weights and batches from ``member_seed(seed, i)``.
        penalty: lambda, the weight of ``equalized_odds_penalty`` on P(y=1); needs groups.
        validation: per member rows that it is not trained on, as ``datasets`` without weights.
        patience: epochs without a smaller objective on them after which a member stops; None: none stops, and the
            last epoch is kept.
        dual: drives every member's lambda, which starts at ``penalty``; needs groups and ``validation``.
        private: trains every member by DP-SGD, noise from a seed of its own; needs ``steps_per_epoch``.
        initial: the pool to start from, member for member, instead of fresh weights. Members that diverged there
            are not trained further.
        vectorized: False trains the same models one after another.
        steps_per_epoch: stratified batches (`StratifiedBatches`), so many an epoch, instead of shuffled epochs.
        numbers: the members' numbers, which decide their seeds; None: 0, 1, 2, ...
        store: keeps finished pools by all that determines them.
        accelerator: of the Trainer.
        progress: show Lightning's progress bar.

    Returns:
        The pool, members in the order of ``datasets``. A member whose loss or gradient is NaN or infinite stays as it
        was before that step, with a warning, and is listed in ``diverged``.

    Raises:
        InputError: datasets, sizes or hyperparameters that cannot be trained; names the member.
    """
    lengths = [epochs] * len(datasets) if isinstance(epochs, int) else list(epochs)
    if not (min(lengths, default=1) >= 1 and batch_size >= 1 and (steps_per_epoch is None or steps_per_epoch >= 1)):
        raise InputError(
            f"epochs={epochs}, batch_size={batch_size}, steps_per_epoch={steps_per_epoch}: each is at least 1"
        )
    if classes < 2:
        raise InputError(f"classes={classes}: there are two at least")
    if seed < 0 or not (lr > 0 and weight_decay >= 0 and penalty >= 0):
        raise InputError(
            f"seed={seed}, lr={lr}, weight_decay={weight_decay}, penalty={penalty}: lr is above 0, the rest at least 0"
        )
    if dual is not None and not (0 < dual.rate < math.inf and dual.epsilon >= 0):
        raise InputError(f"dual.rate={dual.rate}, dual.epsilon={dual.epsilon}: rate is above 0, epsilon at least 0")
    if private is not None and not (0 < private.clip < math.inf and 0 <= private.noise < math.inf):
        raise InputError(f"private.clip={private.clip}, noise={private.noise}: clip is above 0, noise at least 0")
    if private is not None and (
        penalty or dual is not None or steps_per_epoch is None or any(len(d) > 3 for d in datasets)
    ):
        raise InputError("private: rows are clipped one by one, so it takes steps_per_epoch, no penalty and no weights")
    members, weights = _rows(datasets, classes, "datasets", grouped=penalty > 0 or dual is not None)
    numbers = list(range(len(members)) if numbers is None else numbers)
    for name, given in {"numbers": numbers, "epochs": lengths, "validation": validation}.items():
        if given is not None and len(given) != len(members):
            raise InputError(f"{name} has {len(given)} entries for {len(members)} datasets")
    if validation is None and (patience is not None or dual is not None):
        raise InputError("patience and dual: validation rows decide, and there are none")
    if patience is not None and patience < 1:
        raise InputError(f"patience={patience}: it is at least 1, or None")
    if patience is None and dual is None:
        validation = None  # nothing reads them
    grouped = penalty > 0 or dual is not None
    held_out = _rows(validation, classes, "validation", grouped=grouped)[0] if validation else []
    for rows in held_out:
        refuse_few_rows(len(rows.y), patience)
        if rows.X.shape[1] != members[0].X.shape[1]:
            raise InputError(f"validation has {rows.X.shape[1]} features, datasets[0] has {members[0].X.shape[1]}")
    sizes = (members[0].X.shape[1], *hidden, classes)
    if initial is not None and (initial.sizes, len(initial)) != (sizes, len(members)):
        raise InputError(
            f"initial has {len(initial)} members of sizes {initial.sizes}; datasets and hidden ask for {len(members)} "
            f"of {sizes}"
        )
    settings = _Settings(batch_size, steps_per_epoch, lr, weight_decay, penalty, patience, seed)
    driven: dict[str, Any] = {"dual": asdict(dual)} if dual is not None else {}
    driven |= {"validation": [content(rows) for rows in held_out]} if held_out else {}
    driven |= {"private": asdict(private)} if private is not None else {}
    driven |= (
        {"weights": [hashlib.sha256(w.numpy().tobytes()).hexdigest() for w in weights]} if weights is not None else {}
    )
    driven |= {"numbers": numbers} if numbers != list(range(len(members))) else {}
    driven |= {"epochs": lengths}

    def make() -> Pool:
        rank, world = processes.rank(), processes.count()
        own = list(range(rank, len(members), world))
        with torch.random.fork_rng(devices=[]):
            trained = [
                _train(
                    PoolBatches(
                        [members[i] for i in part],
                        [numbers[i] for i in part],
                        settings,
                        [lengths[i] for i in part],
                        weights=[weights[i] for i in part] if weights is not None else None,
                        private=private is not None,
                    ),
                    initial[part]
                    if initial is not None
                    else _fresh(sizes, [member_seed(seed, numbers[i]) for i in part]),
                    [numbers[i] for i in part],
                    settings,
                    [held_out[i] for i in part] if held_out else None,
                    dual,
                    private,
                    accelerator,
                    progress,
                )
                for part in ([own] if vectorized else [[i] for i in own])
                if part
            ]
        # A rank has none where there are more ranks than members.
        shards = processes.gather(Pool.join(trained) if trained else None)
        by_rank = torch.cat([torch.arange(r, len(members), world) for r in range(world)])
        return Pool.join([shard for shard in shards if shard is not None])[by_rank.argsort()]

    if store is None:
        return make()
    key = {
        "rows": [content(rows) for rows in members],
        "sizes": sizes,
        "settings": asdict(settings),
        "initial": checksum(*_parts(initial)) if initial is not None else None,
        "vectorized": vectorized,
        **driven,
    }
    return store.cached("pools", key, make, save=_parts, load=_whole, together=True)


@dataclass(frozen=True)
class _Settings:
    batch_size: int
    steps_per_epoch: int | None
    lr: float
    weight_decay: float
    penalty: float
    patience: int | None
    seed: int


def _train(
    batches: PoolBatches,
    start: Pool,
    names: list[int],
    settings: _Settings,
    validation: list[Rows] | None,
    dual: Dual | None,
    private: Private | None,
    accelerator: str,
    progress: bool,
) -> Pool:
    order = torch.tensor(batches.order)
    held_out = HeldOut([validation[i] for i in batches.order]) if validation else None
    module = PoolClassifier(start[order], batches, [names[i] for i in batches.order], settings, held_out, dual, private)
    own_gpu = (
        processes.several() and torch.cuda.is_available() and accelerator != "cpu"
    )  # and not the first one for all ranks
    with warnings.catch_warnings():
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        lightning.Trainer(
            max_epochs=1,
            accelerator=accelerator,
            devices=[torch.cuda.current_device()] if own_gpu else 1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            plugins=[LightningEnvironment()],  # whatever batch system the machine has
        ).fit(module, DataLoader(batches, batch_size=None))
    return module.pool()[order.argsort()]


class PoolBatches(IterableDataset[PoolBatch]):
    """The batches of all members, step by step: of those that still learn, which are the first k.

    A member's batches are those of `ShuffledBatches` or, with ``steps_per_epoch``, `StratifiedBatches` under its own
    seed. A smaller batch is filled up with rows of weight 0. The weights of a batch are divided by its size: the
    weighted sum of a loss is its mean. Private batches are those of `PoissonBatches`, their rows of weight 1. To be
    walked through once.

    Args:
        members: their rows.
        names: their numbers in the whole pool, which decide their seeds.
        settings: batch_size, steps_per_epoch and seed.
        epochs: of every member.
        weights: of their rows; None: all 1.
        private: whether batches are Poisson samples.

    Attributes:
        order: the places in ``members`` of the first, second, ... member here: those with the most steps come first.
        X, y, s: the rows of all members in that order, end to end: ``[rows, F]``, ``[rows]``, ``[rows]``; filled up to
            equal numbers where every batch is the whole data.
        steps, epoch: steps of every member, in that order; of all its epochs, and of one.
        width: rows of the largest batch.
    """

    def __init__(
        self,
        members: list[Rows],
        names: list[int],
        settings: _Settings,
        epochs: list[int],
        *,
        weights: list[Tensor] | None = None,
        private: bool = False,
    ) -> None:
        self.batch_size, self.private = settings.batch_size, private
        epoch = [settings.steps_per_epoch or -(-len(rows.y) // self.batch_size) for rows in members]
        steps = [number * length for number, length in zip(epochs, epoch, strict=True)]
        self.order = sorted(range(len(members)), key=lambda i: -steps[i])
        self.steps, self.epoch = [steps[i] for i in self.order], [epoch[i] for i in self.order]
        self.draws = [_draws(members[i], names[i], settings, epochs[i], private) for i in self.order]
        self.counts = [len(members[i].y) for i in self.order]
        if private:  # the largest batch is known once all are drawn
            drawn = (_draws(members[i], names[i], settings, epochs[i], private)[0] for i in self.order)
            self.width = max(1, max(len(index) for draws in drawn for index in draws))
        else:
            self.width = max(min(self.batch_size, len(weight)) for _, weight in self.draws)
        self.whole = self.batch_size >= max(self.counts) and not private
        parts = [[getattr(members[i], name) for i in self.order] for name in "Xys"]
        if weights is not None:
            parts.append([weights[i] for i in self.order])
        end_to_end = [
            pad_sequence(part, batch_first=True).flatten(0, 1) if self.whole else torch.cat(part) for part in parts
        ]
        self.X, self.y, self.s = end_to_end[:3]
        self.weights = end_to_end[3] if weights is not None else None

    def __len__(self) -> int:
        return self.steps[0]

    def __iter__(self) -> Iterator[PoolBatch]:
        counts = torch.tensor(self.counts)[:, None]
        if self.whole:
            weight = (torch.arange(self.width) < counts) / counts
            if self.weights is not None:
                weight = weight * self.weights.view_as(weight)
            yield from itertools.repeat((None, weight), len(self))
            return
        first = counts.cumsum(0) - counts
        streams = [(self._sampled if self.private else self._stream)(*draws) for draws in self.draws]
        for step in range(len(self)):
            while self.steps[len(streams) - 1] <= step:
                streams.pop()
            index, weights, sizes = zip(*map(next, streams), strict=True)
            width = max(1, *sizes)
            places = (torch.stack(index) + first[: len(index)])[:, :width]
            weight = torch.stack(weights)[:, :width]
            yield places, weight if self.weights is None else weight * self.weights[places]

    def _stream(self, draws: Iterator[Tensor], weight: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """A member's batches: row numbers [width], weights [width], rows that count."""
        size = min(self.batch_size, len(weight))
        start, column = torch.arange(0, len(weight), size)[:, None], torch.arange(self.width)
        real = (column < size) & (start + column < len(weight))
        place = torch.where(real, start + column, 0)  # filled up with a row of the member's own
        count = real.sum(1)
        weights, sizes = (weight[place] * real / count[:, None]).unbind(), count.tolist()
        for drawn in draws:
            yield from zip(drawn[place].unbind(), weights, sizes, strict=True)

    def _sampled(self, draws: Iterator[Tensor], _: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """A member's Poisson samples, as above."""
        for drawn in draws:
            place, weight = torch.zeros(self.width, dtype=torch.int64), torch.zeros(self.width)
            place[: len(drawn)], weight[: len(drawn)] = drawn, 1.0
            yield place, weight, len(drawn)


def _draws(rows: Rows, name: int, settings: _Settings, epochs: int, private: bool) -> tuple[Iterator[Tensor], Tensor]:
    """Row numbers of one member, an epoch or a batch at a time, and the weights of such a draw."""
    n, seed = len(rows.y), member_seed(settings.seed, name)
    if settings.steps_per_epoch is None:  # what ShuffledBatches draws, without the rows
        generator = torch.Generator().manual_seed(seed)
        return (torch.randperm(n, generator=generator) for _ in range(epochs)), torch.ones(n)
    numbers = Rows(torch.arange(n), rows.y, rows.s, rows.index)
    if private:
        samples = PoissonBatches(numbers, settings.steps_per_epoch, mask_seed(seed))
        return (drawn for _ in range(epochs) for drawn, *_ in samples), torch.ones(n)
    try:
        batches = StratifiedBatches(numbers, settings.batch_size, settings.steps_per_epoch, seed)
    except ValueError as error:
        raise InputError(f"datasets[{name}]: {error}") from None
    return (drawn for _ in range(epochs) for drawn, *_ in batches), batches.weight


class HeldOut:
    """Validation rows of all members, filled up to equal numbers.

    Args:
        members: their rows, each with one at least.

    Attributes:
        X, y, s: ``[M, V, F]``, ``[M, V]``, ``[M, V]``.
        real: ``[M, V]``, False where a row only fills up.
        groups: how many there are.
    """

    def __init__(self, members: list[Rows]) -> None:
        self.X, self.y, self.s = (pad_sequence([getattr(rows, name) for rows in members], True) for name in "Xys")
        sizes = torch.tensor([len(rows.y) for rows in members])
        self.real = torch.arange(self.y.shape[1]) < sizes[:, None]
        self.groups = int(self.s.max()) + 1


class PoolClassifier(lightning.LightningModule):
    """A pool in training. Gradients of members do not mix, so backpropagation is written out: no graph, no allocation.

    Args:
        start: the members, in the order of ``batches``; their tensors are trained in place.
        batches: their rows.
        names: what the log calls the members.
        settings: lr, weight decay, penalty and patience.
        held_out: validation rows, where they decide which epoch is kept.
        dual: what drives the members' lambdas.
        private: how gradients are clipped and noised.
    """

    X: Tensor  # [rows, F]
    y: Tensor  # [rows]
    sign: (
        Tensor  # [rows]: 1 for label 0, -1 for label 1, so that the cross-entropy of two is softplus(sign * (z1 - z0))
    )
    cell: Tensor  # [rows]: code of (label, group)
    penalty: Tensor  # [M]: lambda of every member

    def __init__(
        self,
        start: Pool,
        batches: PoolBatches,
        names: list[int],
        settings: _Settings,
        held_out: HeldOut | None,
        dual: Dual | None,
        private: Private | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.names, self.sizes, self.width = settings, names, start.sizes, batches.width
        self.steps, self.epoch = torch.tensor(batches.steps), torch.tensor(batches.epoch)
        self.dual, self.private, self.held_out = dual, private, held_out
        if private is not None:
            seeds = [noise_seed(member_seed(settings.seed, name)) for name in names]
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            self.expected = torch.tensor(batches.counts) / self.epoch  # rows of a batch
        self.weights = nn.ParameterList([W for W, _ in start.weights])
        self.biases = nn.ParameterList([b for _, b in start.weights])
        groups = int(batches.s.max()) + 1
        self.classes = start.sizes[-1]
        self.cells = self.classes * groups
        self.register_buffer("X", batches.X, persistent=False)
        self.register_buffer("y", batches.y, persistent=False)
        self.register_buffer("sign", 1 - 2 * batches.y.float(), persistent=False)
        self.register_buffer("cell", batches.y * groups + batches.s, persistent=False)
        self.register_buffer("penalty", torch.full((len(names),), float(settings.penalty)), persistent=False)
        self.diverged = torch.zeros(len(names), dtype=torch.bool)
        self.diverged[start.diverged] = True
        self.best = BestEpoch(len(names), None if dual is not None else settings.patience)
        self.kept: list[Tensor] = []  # every parameter as it was at its member's best epoch
        self.kept_penalty = self.penalty.clone()
        self.met = torch.ones(len(names), dtype=torch.bool)

    def configure_optimizers(self) -> PoolAdamW:
        """One AdamW for all members."""
        self.optimizer = PoolAdamW(self.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        self.optimizer.frozen[self.diverged.to(self.optimizer.frozen.device)] = True
        return self.optimizer

    def on_train_start(self) -> None:
        """Set aside what every step writes to."""
        budget = _BLOCK.get(self.device.type, _BLOCK["cpu"])
        self.block = max(1, budget // (self.width * max(self.sizes)))
        room = min(self.block, len(self.names)) * self.width
        self.activations = [self.X.new_empty(room * size) for size in self.sizes]
        self.deltas = [self.X.new_empty(room * size) for size in self.sizes[1:-1]]
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if self.held_out is not None:
            self.kept = [parameter.detach().clone() for parameter in self.parameters()]

    @torch.no_grad()
    def training_step(self, batch: PoolBatch, step: int) -> None:
        """One step of the first k members."""
        index, weight = batch
        k = len(weight)
        finite = torch.ones(k, dtype=torch.bool, device=weight.device)
        for part in (slice(i, min(i + self.block, k)) for i in range(0, k, self.block)):
            if not self.optimizer.frozen[part].all():
                finite[part] = self._gradients(part, index, weight[part]).isfinite()
        for parameter in self.parameters():
            finite &= cast(Tensor, parameter.grad)[:k].flatten(1).sum(1).isfinite()
        if self.private is not None:
            self._add_noise(self.private, k)
        if not finite.all():
            broken = ~finite & ~self.optimizer.frozen[:k]
            for i in broken.nonzero().flatten().tolist():
                log.warning("pool member %d diverged at step %d; it stays as it was before", self.names[i], step)
            self.optimizer.frozen[:k] |= broken
            self.diverged[:k] |= broken.cpu()
        self.optimizer.active = k
        cast(LightningOptimizer, self.optimizers()).step()
        ended = ((step + 1) % self.epoch[:k] == 0) & ~self.optimizer.frozen[:k].cpu()
        if self.held_out is not None and ended.any():
            self._validate(ended.nonzero().flatten(), step, self.held_out)

    def _add_noise(self, private: Private, k: int) -> None:
        """Noise the sums of clipped gradients of the first k members, and divide by the batches' expected size."""
        sizes = [parameter[0].numel() for parameter in self.parameters()]
        drawn = torch.stack([torch.randn(sum(sizes), generator=generator) for generator in self.generators[:k]])
        noises = (private.noise * private.clip * drawn).to(self.device).split(sizes, 1)
        for parameter, noise in zip(self.parameters(), noises, strict=True):
            gradient = cast(Tensor, parameter.grad)[:k]
            expected = self.expected[:k].to(gradient).view(k, *[1] * (gradient.dim() - 1))
            gradient.add_(noise.view_as(gradient)).div_(expected)

    def _validate(self, ended: Tensor, step: int, rows: HeldOut) -> None:
        """Keep the weights of the members whose best epoch just ended; move their lambdas, or stop them."""
        X, y, s, real = (part[ended].to(self.device) for part in (rows.X, rows.y, rows.s, rows.real))
        logits = self.pool_logits(ended, X)
        count = real.sum(1)
        each = cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        loss = (each * real).sum(1) / count
        epoch = (step + 1) // self.epoch[ended]
        probs = logits.softmax(-1)
        if self.dual is not None:
            # one by one: the rows, and so the cells that they fill, are each member's own
            own = zip(probs, y, s, real, strict=True)
            gap = torch.stack([_gap(p[r], labels[r], groups[r], self.classes) for p, labels, groups, r in own])
            better, _ = self.best.update(ended, epoch, constrained(loss.cpu(), gap, self.dual.epsilon))
            self._keep(ended[better])
            self.met[ended[better]] = gap[better] <= self.dual.epsilon
            self._ascend(ended, gap, self.dual)
            return
        if self.settings.penalty:
            cells = self.classes * rows.groups
            cell = torch.where(real, y * rows.groups + s, cells)
            shown = probs[..., 1] if self.classes == 2 else probs
            loss = loss + self.penalty[ended] * equalized_odds_penalties(shown, cell, cells)
        better, stopped = self.best.update(ended, epoch, loss)
        self._keep(ended[better])
        self.optimizer.frozen[ended[stopped]] = True
        if (self.optimizer.frozen.cpu() | (self.steps <= step + 1)).all():
            self.trainer.should_stop = True

    def _ascend(self, ended: Tensor, gap: Tensor, dual: Dual) -> None:
        """Move the lambdas of the members whose epoch ended."""
        excess = (gap - dual.epsilon).to(self.penalty)
        self.penalty[ended] = (self.penalty[ended] + dual.rate * excess).clamp(min=0)

    def pool_logits(self, members: Tensor, X: Tensor) -> Tensor:
        """Logits ``[k, V, C]`` of some members, each on rows ``[k, V, F]`` of its own."""
        h = X
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(b[members, None], h.relu() if layer else h, W[members])
        return h

    def _keep(self, members: Tensor) -> None:
        for kept, parameter in zip(self.kept, self.parameters(), strict=True):
            kept[members] = parameter.detach()[members]
        self.kept_penalty[members.to(self.kept_penalty.device)] = self.penalty[members].to(self.kept_penalty)

    def _gradients(self, part: slice, index: Tensor | None, weight: Tensor) -> Tensor:
        """Write the gradients of the members in ``part``; their losses on this batch [k]."""
        k, width = weight.shape
        if index is None:
            rows: slice | Tensor = slice(part.start * width, part.stop * width)
            x = self.X[rows].view(k, width, -1)
        else:
            rows = index[part].flatten()
            x = _view(self.activations[0], k, width, self.sizes[0])
            torch.index_select(self.X, 0, rows, out=x.flatten(0, 1))
        inputs = [x]
        last = len(self.weights) - 1
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = _view(self.activations[layer + 1], k, width, self.sizes[layer + 1])
            torch.baddbmm(b[part, None], inputs[layer], W[part], out=out)
            inputs.append(out if layer == last else out.relu_())
        with torch.enable_grad():
            if self.classes == 2:
                z = (inputs[-1][..., 1] - inputs[-1][..., 0]).requires_grad_()
                each = softplus(self.sign[rows].view(k, width) * z)
            else:
                z = inputs[-1].clone().requires_grad_()
                each = cross_entropy(z.flatten(0, 1), self.y[rows], reduction="none").view(k, width)
            losses = (weight * each).sum(1)
            if self.settings.penalty or self.dual is not None:
                cell = torch.where(weight > 0, self.cell[rows].view(k, width), self.cells)
                probs = z.sigmoid() if self.classes == 2 else z.softmax(-1)
                losses = losses + self.penalty[part] * equalized_odds_penalties(probs, cell, self.cells)
            (dz,) = torch.autograd.grad(losses.sum(), z)
        # the loss's gradients at what the layers give out, first layer first
        deltas = [torch.stack((-dz, dz), -1) if self.classes == 2 else dz]
        for layer in range(last, 0, -1):
            out = _view(self.deltas[layer - 1], k, width, self.sizes[layer])
            delta = torch.bmm(deltas[0], self.weights[layer][part].transpose(1, 2), out=out)
            torch.ops.aten.threshold_backward.grad_input(delta, inputs[layer], 0, grad_input=delta)
            deltas.insert(0, delta)
        if self.private is not None:
            clip_rows(inputs[: last + 1], deltas, self.private.clip)
        for layer, delta in enumerate(deltas):
            torch.bmm(inputs[layer].transpose(1, 2), delta, out=cast(Tensor, self.weights[layer].grad)[part])
            torch.sum(delta, 1, out=cast(Tensor, self.biases[layer].grad)[part])
        return losses.detach()

    def pool(self) -> Pool:
        """The members as they stand or, where validation rows decided, as they were at their best epochs."""
        stand = self.kept or [parameter.detach() for parameter in self.parameters()]
        layers = len(self.weights)
        weights = [(W.cpu(), b.cpu()) for W, b in zip(stand[:layers], stand[layers:], strict=True)]
        told: dict[str, list[float]] = {"lambda": (self.kept_penalty if self.kept else self.penalty).tolist()}
        told["epoch"] = (self.best.epoch if self.kept else self.optimizer.steps.cpu() // self.epoch).tolist()
        if self.dual is not None:
            told["constraint_met"] = self.met.double().tolist()
        return Pool(weights, self.diverged.nonzero().flatten().tolist(), told)


def _gap(probs: Tensor, y: Tensor, s: Tensor, classes: int) -> Tensor:
    """Equalized-odds gap of one member, on the CPU; cells without rows are left out."""
    return equalized_odds_gaps(probs.argmax(-1)[None], y, s, classes=classes)[0].cpu()


def _view(space: Tensor, *shape: int) -> Tensor:
    return space[: math.prod(shape)].view(shape)


class PoolAdamW(torch.optim.Optimizer):
    """AdamW over parameters stacked along their first dimension, one entry per member.

    Members start together and stop for good, so those that still learn share a step count. The others keep weights and
    moments bit for bit.

    Attributes:
        active: the first so many members learn; it only falls.
        frozen: bool [M], those among them that do not; it only fills.
        steps: int64 [M], steps that each member has taken.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8})
        stacked = self.param_groups[0]["params"]
        for p in stacked:
            self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": p.new_zeros(())}
        self.active = len(stacked[0])
        self.frozen = torch.zeros(self.active, dtype=torch.bool, device=stacked[0].device)
        self.steps = torch.zeros(self.active, dtype=torch.int64, device=stacked[0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the members that learn."""
        loss = closure() if closure is not None else None
        (group,) = self.param_groups
        k = self.active
        params = [p[:k] for p in group["params"]]
        states = [self.state[p] for p in group["params"]]
        means, squares = ([state[name][:k] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        frozen = self.frozen[:k].nonzero().flatten()
        kept = [(tensor, tensor[frozen]) for tensor in (*params, *means, *squares)] if len(frozen) else []
        adamw(
            params,
            [p.grad[:k] for p in group["params"]],
            means,
            squares,
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for tensor, values in kept:
            tensor[frozen] = values
        self.steps[:k] += ~self.frozen[:k]
        return loss


def clip_rows(inputs: Sequence[Tensor], deltas: Sequence[Tensor], clip: float) -> None:
    """Scale ``deltas`` in place so that no row's gradient, all linear layers together, is longer than ``clip``.

    A row's gradient of a layer is the outer product of its input (and 1, for the bias) and its delta, so its squared
    norm is the product of theirs: no gradient of a single row is ever made (Goodfellow 2015). The factor is Opacus's,
    ``min(1, clip / (norm + 1e-6))``.

    Args:
        inputs: per layer ``[..., B, in]``.
        deltas: per layer ``[..., B, out]``, gradients of every row's own loss at the layer's output.
        clip: above 0.
    """
    squares = [(x.square().sum(-1) + 1) * d.square().sum(-1) for x, d in zip(inputs, deltas, strict=True)]
    factor = (clip / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1)[..., None]
    for delta in deltas:
        delta.mul_(factor)


def equalized_odds_penalties(probs: Tensor, cell: Tensor, cells: int) -> Tensor:
    """``functional.equalized_odds_penalty`` of every member, vectorised.

    Args:
        probs: P(y=1) ``[M, B]``, or with C > 2 classes all probabilities ``[M, B, C]``.
        cell: ``label * groups + group`` ``[M, B]``, or ``cells`` for a row that does not count.
        cells: the number of classes times that of groups.

    Returns:
        ``[M]``; a (label, group) cell that a member's batch lacks contributes nothing.
    """
    if probs.dim() == 3:
        classes = probs.shape[2]
        empty = probs.new_zeros(len(probs), cells + 1, classes)
        sums = empty.scatter_add(1, cell[..., None].expand_as(probs), probs)[:, :cells]
        rows = empty[..., 0].scatter_add(1, cell, torch.ones_like(probs[..., 0]))[:, :cells, None]
        means = (sums / rows.clamp(min=1)).masked_fill(rows == 0, torch.nan)
        return label_gaps(means.view(len(probs), classes, -1, classes)).sum(1)
    empty = probs.new_zeros(len(probs), cells + 1)
    sums, rows = (empty.scatter_add(1, cell, values)[:, :cells] for values in (probs, torch.ones_like(probs)))
    means = (sums / rows.clamp(min=1)).view(len(probs), 2, -1)
    present = rows.view_as(means) > 0
    high = torch.where(present, means, -torch.inf).amax(-1)
    low = torch.where(present, means, torch.inf).amin(-1)
    return torch.where(present.any(-1), high - low, 0.0).sum(1)


def _fresh(sizes: Sequence[int], seeds: Sequence[int]) -> Pool:
    features, *hidden, classes = sizes
    nets = []
    for seed in seeds:
        torch.default_generator.manual_seed(seed)
        nets.append(MLP(features, classes, hidden=hidden))
    return Pool.of(nets)


def _rows(
    datasets: Sequence[Sequence[Any]], classes: int, what: str, *, grouped: bool
) -> tuple[list[Rows], list[Tensor] | None]:
    """The datasets as rows, with group codes 0, 1, ... that all members share; and the rows' weights, if any has."""
    members: list[Rows] = []
    weights: list[Tensor] = []
    for i, dataset in enumerate(datasets):
        if len(dataset) not in (2, 3, 4) or (grouped and len(dataset) < 3):
            wanted = "(X, y, groups), since the penalty compares groups" if grouped else "(X, y) or (X, y, groups)"
            raise InputError(f"{what}[{i}] has {len(dataset)} parts; it is {wanted}")
        X, y, *rest = (as_tensor(part, f"{what}[{i}]").detach().cpu() for part in dataset)
        s = rest[0] if rest else torch.zeros(len(X), dtype=torch.int64)
        if X.dim() != 2 or not len(X) or y.shape != (len(X),) or s.shape != y.shape:
            shapes = ", ".join(str(list(part.shape)) for part in (X, y, *rest))
            raise InputError(f"{what}[{i}] has shapes {shapes}; X is [N, F] with N at least 1, the others are [N]")
        if members and X.shape[1] != members[0].X.shape[1]:
            raise InputError(f"{what}[{i}] has {X.shape[1]} features, {what}[0] has {members[0].X.shape[1]}")
        if not ((y == y.long()) & (y >= 0) & (y < classes)).all():
            known = "0 and 1" if classes == 2 else f"0 to {classes - 1}"
            raise InputError(f"{what}[{i}] has labels {y.unique().tolist()[:5]}; they are {known}")
        if s.is_floating_point():
            raise InputError(f"{what}[{i}] has groups of {s.dtype}; they are integer codes")
        weights.append(rest[1].float() if len(rest) == 2 else torch.ones(len(X)))
        if not ((weights[-1] >= 0) & weights[-1].isfinite()).all():
            raise InputError(f"{what}[{i}] has weights that are negative or not finite")
        members.append(Rows(X.float(), y.long(), s.long(), torch.arange(len(X))))
    if not members:
        raise InputError(f"{what} is empty: a pool has at least one member")
    codes = torch.cat([rows.s for rows in members]).unique()
    members = [Rows(rows.X, rows.y, torch.searchsorted(codes, rows.s), rows.index) for rows in members]
    return members, weights if any(len(dataset) == 4 for dataset in datasets) else None


def _parts(pool: Pool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A pool as tensors and plain data."""
    layers = enumerate(pool.weights)
    tensors = {f"{layer}.{name}": t for layer, pair in layers for name, t in zip("Wb", pair, strict=True)}
    return tensors, {"diverged": pool.diverged, "told": pool.told}


def _whole(tensors: dict[str, Tensor], told: dict[str, Any]) -> Pool:
    """A pool of what `_parts` made of it."""
    weights = [(tensors[f"{layer}.W"], tensors[f"{layer}.b"]) for layer in range(len(tensors) // 2)]
    return Pool(weights, told["diverged"], told["told"])
