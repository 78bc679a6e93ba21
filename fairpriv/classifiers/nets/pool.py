"""Pools of many small classifiers, which are trained at once: stacked weights, and one optimiser step for all.

Up to floating-point tolerance, member i of a pool is the `MLP` that `classifier.fit` makes of its rows. Its initial
weights and batches follow from the seed ``member_seed(seed, i)`` and do not depend on the other members.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, cast

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairpriv import processes
from fairpriv.classifiers.data.rows import Rows, content
from fairpriv.classifiers.nets.classifier import MLP
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.pool_training import (
    BLOCK,
    Dual,
    HeldOut,
    PoolBatches,
    PoolClassifier,
    PoolSettings,
    Private,
    member_seed,
    pool_logits,
)
from fairpriv.classifiers.nets.stopping import refuse_few_rows
from fairpriv.errors import InputError
from fairpriv.functional.arrays import Values, as_tensor
from fairpriv.store import Store, checksum
from fairpriv.trainer import EXPECTED_WARNINGS, without_tips

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Pool(Models):
    """M classifiers of one architecture, on the CPU.

    ``pool[2:5]``, ``pool[[0, 7]]`` and ``pool[mask]`` are pools of these members, ``pool[3]`` is a pool of one.

    Attributes:
        weights: per layer ``(W [M, in, out], b [M, out])``; a member's layer is ``x @ W[i] + b[i]``.
        diverged: members whose training broke off, in ascending order.
        told: what the last training reports of every member, ``[M]`` each: ``epoch``, the epoch that was kept, from 1;
            ``lambda``, the penalty's weight in it; ``constraint_met``, 1 or 0, under dual ascent.
    """

    weights: list[tuple[Tensor, Tensor]] = field()  # the base has a default, and a pool has none
    diverged: list[int] = field(default_factory=list)
    told: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, nets: Sequence[nn.Sequential]) -> Pool:
        """Make a pool of these `MLP` s, which have one architecture; their weights are copied."""
        layers = zip(*([layer for layer in net if isinstance(layer, nn.Linear)] for net in nets), strict=True)
        return cls(
            [
                (torch.stack([a.weight.detach().T for a in layer]), torch.stack([a.bias.detach() for a in layer]))
                for layer in layers
            ]
        )

    @staticmethod
    def join(pools: Sequence[Pool]) -> Pool:
        """Join the members of all pools, in this order.

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
        """Return member i as a module of its own, in eval mode."""
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
        rows = max(1, BLOCK["cpu"] // (members * max(self.sizes)))
        for i, j in itertools.product(range(0, len(self), members), range(0, len(X), rows)):
            part = slice(i, i + members)
            h = X[j : j + rows].expand(len(self.weights[0][0][part]), -1, -1)
            logits = pool_logits([(W[part], b[part]) for W, b in self.weights], h)
            probs[part, j : j + rows] = logits.softmax(-1) if classes > 2 else logits.sigmoid()
        return probs


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
    smoothing: float = 0.0,
    steps_per_epoch: int | None = None,
    numbers: Sequence[int] | None = None,
    store: Store | None = None,
    accelerator: str = "auto",
    progress: bool = False,
) -> Pool:
    """Train one classifier per dataset, all at once: ``mean(weight * cross-entropy) + penalty * gap`` each, by AdamW.

    A member takes ``epochs`` times the batches of its own rows, and then stays as it is while larger ones continue.
    With ``patience`` it stops early and returns to its best epoch, by the rule of `Classifier`. Under an initialised
    process group rank r trains the members ``r::world_size``, and every rank returns all.

    Args:
        datasets: per member ``(X, y)``, ``(X, y, groups)`` or ``(X, y, groups, weights)``: features ``[N, F]``, labels
            0 to ``classes - 1`` ``[N]``, integer groups ``[N]``, weights of the rows' cross-entropies ``[N]``; tensors
            or arrays. N may differ between members.
        hidden: sizes of the hidden layers.
        classes: number of labels, two or more.
        epochs: passes over a member's batches; a number, or one for every member.
        batch_size: rows of a member in a batch; fewer if it has fewer. Not used with ``private``.
        lr, weight_decay: of AdamW.
        smoothing: share of every training label that is spread evenly over all labels, in [0, 1).
        seed: member i draws initial weights and batches from ``member_seed(seed, i)``.
        penalty: lambda, the weight of ``equalized_odds_penalty`` on P(y=1); needs groups.
        validation: per member rows that it is not trained on, in the form of ``datasets`` without weights.
        patience: epochs without a smaller objective on these rows after which a member stops; None: no member stops,
            and the last epoch is kept.
        dual: moves every member's lambda, which starts at ``penalty``; needs groups and ``validation``.
        private: trains every member by DP-SGD, with noise from a seed of its own; needs ``steps_per_epoch``.
        initial: the pool to start from, member by member, instead of fresh weights. Members that diverged there are
            not trained further.
        vectorized: False trains the same models one after another.
        steps_per_epoch: number of stratified batches per epoch (`StratifiedBatches`); None: shuffled epochs.
        numbers: the members' numbers, which decide their seeds; None: 0, 1, 2, ...
        store: keeps finished pools by all that determines them.
        accelerator: of the Trainer.
        progress: whether Lightning's progress bar is shown.

    Returns:
        The pool, members in the order of ``datasets``. A member whose loss or gradient is NaN or infinite stays as it
        was before that step, with a warning, and is listed in ``diverged``.

    Raises:
        InputError: datasets, sizes or hyperparameters that cannot be trained; names the member.
    """
    settings = PoolSettings(
        batch_size, steps_per_epoch, lr, weight_decay, penalty, patience, seed, dual, private, smoothing
    )
    fit = _PoolFit.of(datasets, validation, settings, epochs, numbers, classes, hidden, initial)

    def make() -> Pool:
        rank, world = processes.rank(), processes.count()
        own = list(range(rank, len(datasets), world))
        with torch.random.fork_rng(devices=[]):
            parts = [part for part in ([own] if vectorized else [[i] for i in own]) if part]
            trained = [fit.train(part, accelerator, progress) for part in parts]
        # A rank has no members if there are more ranks than members.
        shards = processes.gather(Pool.join(trained) if trained else None)
        by_rank = torch.cat([torch.arange(r, len(datasets), world) for r in range(world)])
        return Pool.join([shard for shard in shards if shard is not None])[by_rank.argsort()]

    if store is None:
        return make()
    return store.cached("pools", fit.key | {"vectorized": vectorized}, make, save=_parts, load=_whole, together=True)


@dataclass(frozen=True, eq=False)
class _PoolFit:
    """All inputs that determine a pool, checked: every member's rows, weights, number, epochs and start."""

    members: list[Rows]
    weights: list[Tensor] | None
    held_out: list[Rows]
    settings: PoolSettings
    epochs: list[int]
    numbers: list[int]
    sizes: tuple[int, ...]
    initial: Pool | None

    @classmethod
    def of(
        cls,
        datasets: Sequence[Sequence[Any]],
        validation: Sequence[Sequence[Any]] | None,
        settings: PoolSettings,
        epochs: int | Sequence[int],
        numbers: Sequence[int] | None,
        classes: int,
        hidden: Sequence[int],
        initial: Pool | None,
    ) -> _PoolFit:
        lengths = list(cast(Sequence[int], epochs)) if hasattr(epochs, "__len__") else [epochs] * len(datasets)
        if not all(isinstance(length, Integral) and length >= 1 for length in lengths):
            raise InputError(f"epochs={epochs}: each is a whole number, at least 1")
        if not hasattr(hidden, "__len__") or not all(isinstance(size, Integral) and size >= 1 for size in hidden):
            raise InputError(f"hidden={hidden}: a list of whole numbers, each at least 1")
        if classes < 2:
            raise InputError(f"classes={classes}: there are two at least")
        members, weights = _rows(datasets, classes, "datasets", grouped=settings.compares_groups)
        if settings.private is not None and weights is not None:
            raise InputError("private: rows are clipped one by one, so datasets have no weights")
        numbers = list(range(len(members)) if numbers is None else numbers)
        for name, given in {"numbers": numbers, "epochs": lengths, "validation": validation}.items():
            if given is not None and len(given) != len(members):
                raise InputError(f"{name} has {len(given)} entries for {len(members)} datasets")
        if validation is None and settings.selects:
            raise InputError("patience and dual: validation rows decide, and there are none")
        held_out: list[Rows] = []
        if validation and settings.selects:
            held_out, _ = _rows(validation, classes, "validation", grouped=settings.compares_groups)
        for rows in held_out:
            refuse_few_rows(len(rows.y), settings.patience)
            if rows.X.shape[1] != members[0].X.shape[1]:
                raise InputError(f"validation has {rows.X.shape[1]} features, datasets[0] has {members[0].X.shape[1]}")
        sizes = (members[0].X.shape[1], *hidden, classes)
        if initial is not None and (initial.sizes, len(initial)) != (sizes, len(members)):
            raise InputError(
                f"initial has {len(initial)} members of sizes {initial.sizes}; datasets and hidden ask for "
                f"{len(members)} of {sizes}"
            )
        return cls(members, weights, held_out, settings, lengths, numbers, sizes, initial)

    @property
    def key(self) -> dict[str, Any]:
        weights, hashed = self.weights, functools.cache(content)
        return {
            "rows": [hashed(rows) for rows in self.members],
            "weights": weights and [hashlib.sha256(w.numpy().tobytes()).hexdigest() for w in weights],
            "validation": [hashed(rows) for rows in self.held_out],
            "settings": asdict(self.settings),
            "epochs": self.epochs,
            "numbers": self.numbers,
            "sizes": self.sizes,
            "initial": checksum(*_parts(self.initial)) if self.initial is not None else None,
        }

    def train(self, part: list[int], accelerator: str, progress: bool) -> Pool:
        """Train the members at these places in this process."""
        names = [self.numbers[i] for i in part]
        batches = PoolBatches(
            [self.members[i] for i in part],
            names,
            self.settings,
            [self.epochs[i] for i in part],
            weights=[self.weights[i] for i in part] if self.weights is not None else None,
        )
        seeds = [member_seed(self.settings.seed, name) for name in names]
        start = self.initial[part] if self.initial is not None else _fresh(self.sizes, seeds)
        order = torch.tensor(batches.order)  # the members with the most steps come first
        held_out = HeldOut([self.held_out[part[i]] for i in batches.order]) if self.held_out else None
        first = start[order]
        module = PoolClassifier(
            first.weights, first.diverged, batches, [names[i] for i in batches.order], self.settings, held_out
        )
        # The GPU of this process, and not the first one for all ranks.
        own_gpu = processes.several() and torch.cuda.is_available() and accelerator != "cpu"
        with warnings.catch_warnings(), without_tips():
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
        return Pool(*module.trained())[order.argsort()]


def _fresh(sizes: Sequence[int], seeds: Sequence[int]) -> Pool:
    features, *hidden, classes = sizes
    net = MLP(features, classes, hidden=hidden)
    drawn = []
    for seed in seeds:
        torch.default_generator.manual_seed(seed)
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()  # as when it is made
        drawn.append([parameter.detach().clone() for parameter in net.parameters()])
    stacked = [torch.stack(parts) for parts in zip(*drawn, strict=True)]
    return Pool([(W.transpose(1, 2).contiguous(), b) for W, b in zip(stacked[::2], stacked[1::2], strict=True)])


def _rows(
    datasets: Sequence[Sequence[Any]], classes: int, what: str, *, grouped: bool
) -> tuple[list[Rows], list[Tensor] | None]:
    """Return the datasets as rows, with common group codes 0, 1, ..., and the rows' weights, if there are any.

    Datasets of the same tensors are the same rows.
    """
    given = [tuple(dataset) for dataset in datasets]  # keeps the parts alive, so that unlike ones have unlike ids
    first: dict[tuple[int, ...], int] = {}
    same = [first.setdefault(tuple(map(id, dataset)), i) for i, dataset in enumerate(given)]
    members: dict[int, Rows] = {}
    weights: dict[int, Tensor] = {}
    for i in first.values():
        dataset = given[i]
        if len(dataset) not in (2, 3, 4) or (grouped and len(dataset) < 3):
            wanted = "(X, y, groups), since the penalty compares groups" if grouped else "(X, y) or (X, y, groups)"
            raise InputError(f"{what}[{i}] has {len(dataset)} parts; it is {wanted}")
        X, y, *rest = (as_tensor(part, f"{what}[{i}]").detach().cpu() for part in dataset)
        s = rest[0] if rest else torch.zeros(len(X), dtype=torch.int64)
        if X.dim() != 2 or not len(X) or any(part.shape != (len(X),) for part in (y, *rest)):
            shapes = ", ".join(str(list(part.shape)) for part in (X, y, *rest))
            raise InputError(f"{what}[{i}] has shapes {shapes}; X is [N, F] with N at least 1, the others are [N]")
        if members and X.shape[1] != members[0].X.shape[1]:
            raise InputError(f"{what}[{i}] has {X.shape[1]} features, {what}[0] has {members[0].X.shape[1]}")
        if not ((y == y.long()) & (y >= 0) & (y < classes)).all():
            known = "0 and 1" if classes == 2 else f"0 to {classes - 1}"
            raise InputError(f"{what}[{i}] has labels {y.unique().tolist()[:5]}; they are {known}")
        if s.is_floating_point():
            raise InputError(f"{what}[{i}] has groups of {s.dtype}; they are integer codes")
        weights[i] = rest[1].float() if len(rest) == 2 else torch.ones(len(X))
        if not ((weights[i] >= 0) & weights[i].isfinite()).all():
            raise InputError(f"{what}[{i}] has weights that are negative or not finite")
        members[i] = Rows(X.float(), y.long(), s.long(), torch.arange(len(X)))
    if not members:
        raise InputError(f"{what} is empty: a pool has at least one member")
    codes = torch.cat([rows.s for rows in members.values()]).unique()
    members = {i: Rows(rows.X, rows.y, torch.searchsorted(codes, rows.s), rows.index) for i, rows in members.items()}
    weighted = any(len(dataset) == 4 for dataset in given)
    return [members[i] for i in same], [weights[i] for i in same] if weighted else None


def _parts(pool: Pool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn a pool into tensors and plain data."""
    layers = enumerate(pool.weights)
    tensors = {f"{layer}.{name}": t for layer, pair in layers for name, t in zip("Wb", pair, strict=True)}
    return tensors, {"diverged": pool.diverged, "told": pool.told}


def _whole(tensors: dict[str, Tensor], told: dict[str, Any]) -> Pool:
    """Make the pool again from its `_parts`."""
    weights = [(tensors[f"{layer}.W"], tensors[f"{layer}.b"]) for layer in range(len(tensors) // 2)]
    return Pool(weights, told["diverged"], told["told"])
