"""The training of a pool: batches of all members, one optimiser step for all, and early stopping of each."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, softplus
from torch.nn.utils.rnn import pad_sequence
from torch.optim.adamw import adamw
from torch.utils.data import IterableDataset

from fairpriv import signs
from fairpriv.classifiers.data.batches import PoissonBatches, StratifiedBatches
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.stopping import BestEpoch, constrained
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gaps, label_gaps

log = logging.getLogger(__name__)

Step = tuple[Tensor | None, Tensor]  # places [k, B] in the stacked rows (None: all rows), weights [k, B]
RUN = 8  # steps that Lightning hands over together, since what it does around a batch takes longer than a small step


# Largest size of the widest activation of the members that pass through the network together. It is about what the
# caches of a core hold, so that large batches do not wait for memory, and it bounds memory for any M.
BLOCK = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True, eq=False)
class Dual:
    """Dual ascent on ``gap <= epsilon`` on validation rows, with a lambda per member, by the rule of `Classifier`.

    Attributes:
        rate: above 0; after every epoch of a member ``lambda <- max(0, lambda + rate * (gap - epsilon))``.
        epsilon: target of the gap, at least 0.
    """

    rate: float
    epsilon: float


@dataclass(frozen=True)
class Private:
    """DP-SGD (Abadi et al. 2016): a step sums its rows' gradients, clipped one by one, and adds Gaussian noise.

    An epoch has ``steps_per_epoch`` batches, each of which holds every row with probability ``1 / steps_per_epoch``.
    The noised sum is divided by the batches' expected size.

    Attributes:
        noise: the noise multiplier, at least 0: the noise's standard deviation in units of ``clip``.
        clip: above 0, the largest norm of a row's gradient, all parameters together.
    """

    noise: float
    clip: float


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member's initial weights and batches: the first word of ``SeedSequence([seed, member])``.

    Unlike ``seed + member`` it gives two pools with neighbouring seeds no members with equal seeds.
    """
    return int(np.random.SeedSequence([seed, member]).generate_state(1)[0])


def mask_seed(seed: int) -> int:
    """Return the seed of DP-SGD's Poisson samples; it is not that of the initial weights, which a release reveals."""
    return member_seed(seed, 2)


def noise_seed(seed: int) -> int:
    """Return the seed of DP-SGD's noise; noise with the seed of the batches or initial weights would hide nothing."""
    return member_seed(seed, 1)


@dataclass(frozen=True)
class PoolSettings:
    """Training settings of a pool's members, named as the arguments of `fit_pool`.

    Raises:
        InputError: a value outside its range, or values that exclude each other.
    """

    batch_size: int
    steps_per_epoch: int | None
    lr: float
    weight_decay: float
    penalty: float
    patience: int | None
    seed: int
    dual: Dual | None
    private: Private | None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        dual, private = self.dual, self.private
        if self.batch_size < 1 or (self.steps_per_epoch is not None and self.steps_per_epoch < 1):
            raise InputError(
                f"batch_size={self.batch_size}, steps_per_epoch={self.steps_per_epoch}: each is at least 1"
            )
        if self.seed < 0 or not (self.lr > 0 and self.weight_decay >= 0 and self.penalty >= 0):
            raise InputError(
                f"seed={self.seed}, lr={self.lr}, weight_decay={self.weight_decay}, penalty={self.penalty}: lr is "
                "above 0, the rest at least 0"
            )
        if dual is not None and not (0 < dual.rate < math.inf and dual.epsilon >= 0):
            raise InputError(f"dual.rate={dual.rate}, dual.epsilon={dual.epsilon}: rate is above 0, epsilon at least 0")
        if private is not None and not (0 < private.clip < math.inf and 0 <= private.noise < math.inf):
            raise InputError(f"private.clip={private.clip}, noise={private.noise}: clip is above 0, noise at least 0")
        if private is not None and (self.penalty or dual is not None or self.steps_per_epoch is None):
            raise InputError(
                "private: rows are clipped one by one, so it takes steps_per_epoch, no penalty and no weights"
            )
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience={self.patience}: it is at least 1, or None")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing={self.smoothing}: it is a share of a label, from 0 to below 1")

    @property
    def compares_groups(self) -> bool:
        """Whether training rows need groups."""
        return self.penalty > 0 or self.dual is not None

    @property
    def selects(self) -> bool:
        """Whether validation rows decide which epoch is kept."""
        return self.patience is not None or self.dual is not None


class PoolBatches(IterableDataset[list[Step]]):
    """The batches of all members that still learn, which are the first k, `RUN` steps at a time.

    A member's batches are those of `ShuffledBatches` or, with ``steps_per_epoch``, `StratifiedBatches` under its own
    seed. A smaller batch is filled up with rows of weight 0. The weights of a batch are divided by its size, so that
    the weighted sum of a loss is its mean. Private batches are those of `PoissonBatches`, with rows of weight 1. The
    batches can be iterated over only once.

    Args:
        members: the rows of each member.
        names: the members' numbers in the whole pool, which decide their seeds.
        settings: batch_size, steps_per_epoch and seed.
        epochs: of every member.
        weights: of each member's rows; None: all 1.

    Attributes:
        order: the places in ``members`` of the first, second, ... member here; those with the most steps come first.
        X, y, s: the rows of all members in that order, end to end: ``[rows, F + 1]``, features and a 1, of which the
            first layer's bias is the weight; ``[rows]``; ``[rows]``. Filled up to equal numbers if every batch is the
            whole data.
        steps, epoch: numbers of steps of every member, in that order: ``steps`` in all epochs, ``epoch`` in one.
        width: rows of the largest batch.
    """

    def __init__(
        self,
        members: list[Rows],
        names: list[int],
        settings: PoolSettings,
        epochs: list[int],
        *,
        weights: list[Tensor] | None = None,
    ) -> None:
        self.batch_size, self.private = settings.batch_size, settings.private is not None
        epoch = [settings.steps_per_epoch or -(-len(rows.y) // self.batch_size) for rows in members]
        steps = [number * length for number, length in zip(epochs, epoch, strict=True)]
        self.order = sorted(range(len(members)), key=lambda i: (-steps[i], len(members[i].y)))
        self.steps, self.epoch = [steps[i] for i in self.order], [epoch[i] for i in self.order]
        self.draws = [_draws(members[i], names[i], settings, epochs[i]) for i in self.order]
        self.counts = [len(members[i].y) for i in self.order]
        if self.private:  # the largest batch is known once all are drawn
            drawn = (_draws(members[i], names[i], settings, epochs[i])[0] for i in self.order)
            self.width = max(1, max(len(index) for draws in drawn for index in draws))
        else:
            self.width = max(min(self.batch_size, len(weight)) for _, weight in self.draws)
        self.whole = self.batch_size >= max(self.counts) and not self.private
        ordered = [members[i] for i in self.order]
        join = _filled_up if self.whole else torch.cat
        self.X = _with_ones([rows.X for rows in ordered], self.width if self.whole else None)
        self.y, self.s = join([rows.y for rows in ordered]), join([rows.s for rows in ordered])
        self.weights = join([weights[i] for i in self.order]) if weights is not None else None

    def __len__(self) -> int:
        return -(-self.steps[0] // RUN)

    def __iter__(self) -> Iterator[list[Step]]:
        steps = self._steps()
        while run := list(itertools.islice(steps, RUN)):
            yield run

    def _steps(self) -> Iterator[Step]:
        counts = torch.tensor(self.counts)[:, None]
        if self.whole:
            weight = (torch.arange(self.width) < counts) / counts
            if self.weights is not None:
                weight = weight * self.weights.view_as(weight)
            left = len(weight)
            for step in range(self.steps[0]):
                while self.steps[left - 1] <= step:
                    left -= 1
                yield None, weight[:left]
            return
        first = counts.cumsum(0) - counts
        # Members with equal numbers of steps and rows are dealt with together.
        alike = itertools.groupby(range(len(counts)), lambda i: (self.steps[i], self.counts[i], len(self.draws[i][1])))
        groups = [(steps, [self.draws[i] for i in own]) for (steps, *_), own in alike]
        streams = [self._sampled(group) if self.private else self._stream(group) for _, group in groups]
        for step in range(self.steps[0]):
            while groups[len(streams) - 1][0] <= step:
                streams.pop()
            parts = [next(stream) for stream in streams]
            width = max(1, *(size for *_, size in parts))
            index = torch.cat([index for index, _, _ in parts])[:, :width]
            weight = torch.cat([weight for _, weight, _ in parts])[:, :width]
            places = index + first[: len(index)]
            yield places, weight if self.weights is None else weight * self.weights[places]

    def _stream(self, group: list[tuple[Iterator[Tensor], Tensor]]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield the batches of g members: row numbers [g, width], weights [g, width], and how many rows count."""
        weight = torch.stack([weight for _, weight in group])
        size = min(self.batch_size, weight.shape[1])
        start, column = torch.arange(0, weight.shape[1], size)[:, None], torch.arange(self.width)
        real = (column < size) & (start + column < weight.shape[1])
        place = torch.where(real, start + column, 0)  # filled up with a row of the member's own
        count = real.sum(1)
        weights, sizes = (weight[:, place] * real / count[:, None]).unbind(1), count.tolist()
        for drawn in zip(*(draws for draws, _ in group), strict=True):
            yield from zip(torch.stack(drawn)[:, place].unbind(1), weights, sizes, strict=True)

    def _sampled(self, group: list[tuple[Iterator[Tensor], Tensor]]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield Poisson samples of g members, in the form of `_stream`."""
        for drawn in zip(*(draws for draws, _ in group), strict=True):
            index, sizes = pad_sequence([*drawn], batch_first=True), torch.tensor([len(rows) for rows in drawn])
            index = pad(index, (0, self.width - index.shape[1]))
            yield index, (torch.arange(self.width) < sizes[:, None]).float(), int(sizes.max())


def _filled_up(parts: list[Tensor]) -> Tensor:
    return pad_sequence(parts, batch_first=True).flatten(0, 1)


def _with_ones(parts: list[Tensor], length: int | None) -> Tensor:
    """Join features ``[N, F]`` end to end, filled up to ``length`` rows each if given, with a last column of 1."""
    lengths = [length or len(part) for part in parts]
    joined = torch.empty(sum(lengths), parts[0].shape[1] + 1)
    for part, place in zip(parts, joined.split(lengths), strict=True):
        place[: len(part), :-1] = part
        place[len(part) :] = 0
        place[:, -1] = 1
    return joined


def _draws(rows: Rows, name: int, settings: PoolSettings, epochs: int) -> tuple[Iterator[Tensor], Tensor]:
    """Return the row numbers of one member, an epoch or a batch at a time, and the weights of such a draw."""
    n, seed = len(rows.y), member_seed(settings.seed, name)
    if settings.steps_per_epoch is None:  # what ShuffledBatches draws, without the rows
        generator = torch.Generator().manual_seed(seed)
        return (torch.randperm(n, generator=generator) for _ in range(epochs)), torch.ones(n)
    numbers = Rows(torch.arange(n), rows.y, rows.s, rows.index)
    if settings.private is not None:
        samples = PoissonBatches(numbers, settings.steps_per_epoch, mask_seed(seed))
        return (drawn for _ in range(epochs) for drawn, *_ in samples), torch.ones(n)
    try:
        batches = StratifiedBatches(numbers, settings.batch_size, settings.steps_per_epoch, seed)
    except ValueError as error:
        raise InputError(f"datasets[{name}]: {error}") from None
    return (drawn for _ in range(epochs) for drawn, *_ in batches), batches.weight


class HeldOut:
    """Validation rows of all members, filled up to equal numbers; those that all members share are held once.

    Args:
        members: the rows of each member, at least one.

    Attributes:
        X, y, s: ``[M, V, F]``, ``[M, V]``, ``[M, V]``.
        real: ``[M, V]``, False for rows that only fill up.
        groups: number of groups.
    """

    def __init__(self, members: list[Rows]) -> None:
        own = members[:1] if all(rows is members[0] for rows in members) else members
        X, y, s = (pad_sequence([getattr(rows, name) for rows in own], True) for name in "Xys")
        real = torch.arange(y.shape[1]) < torch.tensor([len(rows.y) for rows in own])[:, None]
        self.X, self.y, self.s, self.real = (part.expand(len(members), *part.shape[1:]) for part in (X, y, s, real))
        self.groups = int(s.max()) + 1


@dataclass(frozen=True, eq=False)
class _Block:
    """What some members read and write at every step: views, which are made once, since making them takes time.

    Attributes:
        members: their numbers, ``[k]``.
        rows: theirs among the stacked rows, if every batch is the whole data.
        inputs: of every layer, ``[k, B, in]``; of the first layer with a column of 1.
        deltas: gradients at the outputs of all layers but the last, ``[k, B, out]``.
        weights, biases, weights_grad, biases_grad: of every layer.
        own: the same parameters as the optimiser has them.
    """

    members: Tensor
    rows: slice
    inputs: list[Tensor]
    deltas: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    weights_grad: list[Tensor]
    biases_grad: list[Tensor]
    own: Share


class PoolClassifier(lightning.LightningModule):
    """A pool in training, with hand-written backpropagation, which needs no graph and allocates nothing.

    This works because the gradients of members do not mix. Members that have stopped move behind the others from time
    to time, so that a step costs what the members cost that still learn: the member in the place i of every parameter
    is ``order[i]``.

    Args:
        start: the members, in the order of ``batches``; their tensors are trained in place.
        diverged: places of the members that diverged before, which are not trained.
        batches: the members' rows.
        names: numbers of the members, for the log.
        settings: how the members are trained.
        held_out: validation rows, if they decide which epoch is kept; else None.
    """

    X: Tensor  # [rows, F + 1], the last column 1
    y: Tensor  # [rows]
    sign: (
        Tensor  # [rows]: 1 for label 0, -1 for label 1, so that the cross-entropy of two is softplus(sign * (z1 - z0))
    )
    cell: Tensor  # [rows]: code of (label, group)
    penalty: Tensor  # [M]: lambda of every member

    def __init__(
        self,
        start: Sequence[tuple[Tensor, Tensor]],
        diverged: Sequence[int],
        batches: PoolBatches,
        names: list[int],
        settings: PoolSettings,
        held_out: HeldOut | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.names = settings, names
        self.width, self.whole = batches.width, batches.whole
        self.sizes = (start[0][0].shape[1], *(b.shape[1] for _, b in start))
        self.steps, self.epoch = torch.tensor(batches.steps), torch.tensor(batches.epoch)
        self.dual, self.private, self.held_out = settings.dual, settings.private, held_out
        if self.private is not None:
            seeds = [noise_seed(member_seed(settings.seed, name)) for name in names]
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            self.expected = torch.tensor(batches.counts) / self.epoch  # rows of a batch
        # The first layer's bias is one more row of its weights: of a product that is as large, adding it takes long.
        first = torch.cat((start[0][0], start[0][1][:, None]), 1)
        # Large weights lie in one piece each, for the products that write their gradients; small parts lie together,
        # since the optimiser takes time for every tensor.
        hidden, last = start[1:-1], start[1:][-1:]
        small = [b for _, b in hidden] + [part.flatten(1) for layer in last for part in layer]
        self.small = [part.shape[1] for part in small]
        together = [torch.cat(small, 1)] if small else []
        self.stacked = nn.ParameterList([first, *(W.clone() for W, _ in hidden), *together])
        groups = int(batches.s.max()) + 1
        self.classes = self.sizes[-1]
        self.cells = self.classes * groups
        self.register_buffer("X", batches.X, persistent=False)
        self.register_buffer("y", batches.y, persistent=False)
        self.register_buffer("sign", 1 - 2 * batches.y.float(), persistent=False)
        self.register_buffer("cell", batches.y * groups + batches.s, persistent=False)
        self.register_buffer("penalty", torch.full((len(names),), float(settings.penalty)), persistent=False)
        self.order = torch.arange(len(names))
        self.learning = len(names)  # the members after these many places have stopped
        self.diverged = torch.zeros(len(names), dtype=torch.bool)
        self.diverged[list(diverged)] = True
        self.best = BestEpoch(len(names), None if self.dual is not None else settings.patience)
        self.kept: list[Tensor] | None = None  # the parameters as they were at their member's best epoch
        self.taken = 0  # steps
        self.blocks: dict[int, _Block] = {}  # by their first member's place, as they were made last
        self.kept_penalty = self.penalty.clone()
        self.met = torch.ones(len(names), dtype=torch.bool)

    def configure_optimizers(self) -> PoolAdamW:
        """Make one AdamW for all members."""
        self.optimizer = PoolAdamW(self.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        self.optimizer.frozen[self.diverged.to(self.optimizer.frozen.device)] = True
        return self.optimizer

    @property
    def stage(self) -> str:
        """Name of this fit for the signs of life."""
        return f"a pool of {len(self.names)} models"

    def on_train_start(self) -> None:
        """Allocate the memory that every step writes to."""
        budget = BLOCK.get(self.device.type, BLOCK["cpu"])
        if not self.whole:  # the caches are to hold a block's weights and moments too, from one step to the next
            budget //= 2
        self.block = max(1, budget // (self.width * max(self.sizes)))
        room = min(self.block, len(self.names)) * self.width
        self.activations = [self.X.new_empty(room * size) for size in (self.sizes[0] + 1, *self.sizes[1:-1])]
        self.difference = self.X.new_tensor([-1.0, 1.0] if self.classes == 2 else [1.0])  # of two logits
        self.deltas = [self.X.new_empty(room * size) for size in self.sizes[1:-1]]
        self.parts = [part.detach() for part in self.stacked]
        self.parts_grad = [torch.zeros_like(part) for part in self.parts]
        for part, grad in zip(self.stacked, self.parts_grad, strict=True):
            part.grad = grad
        self.weights, self.biases = self._layers(self.parts)
        self.weights_grad, self.biases_grad = self._layers(self.parts_grad)
        if self.held_out is not None:
            self.kept = [part.clone() for part in self.parts]

    def _layers(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return views of all layers' weights ``[M, in, out]`` and biases ``[M, out]`` in what `stacked` holds."""
        weights, biases = [parts[0][:, :-1]], [parts[0][:, -1]]
        if len(parts) > 1:
            *of_hidden, W, b = parts[-1].split(self.small, 1)
            weights += [*parts[1:-1], W.unflatten(1, self.sizes[-2:])]
            biases += [*of_hidden, b]
        return weights, biases

    @torch.no_grad()
    def training_step(self, batch: list[Step], _: int) -> None:
        """Take some steps."""
        while batch and not self.trainer.should_stop:
            learning = self.steps > self.taken
            until = self.epoch - self.taken % self.epoch if self.held_out is not None else self.steps - self.taken
            run = batch[: int(until[learning].min())]  # no member is validated or stops before its end
            self._take_steps(run)
            batch = batch[len(run) :]

    def _take_steps(self, run: list[Step]) -> None:
        """Take these steps with the first k members, but for those that have stopped.

        A block of members takes them all before the next block does, so that its weights and moments are still in the
        caches at its next step.
        """
        self._set_stopped_aside()
        members = self.order[: self.learning]
        members = members[: int(torch.searchsorted(members, len(run[0][1])))]  # in ascending order
        k = len(members)
        for part in (slice(i, min(i + self.block, k)) for i in range(0, k, self.block)):
            rows = part if k == len(run[0][1]) else members[part]  # of the batch
            for step, (index, weight) in enumerate(run, self.taken):
                block = self._block(part, members, weight.shape[1])
                self._step(block, None if index is None else index[rows], weight[rows], step)
                if part.stop == k and signs.due():  # all others have taken it before
                    signs.step(f"fit of {self.stage}, step {step + 1} of {int(self.steps[0])}")
        self.taken += len(run)
        frozen = self.optimizer.frozen
        ended = ((self.taken % self.epoch[members] == 0) & ~frozen[:k].cpu()).nonzero().flatten()
        if self.held_out is not None and len(ended):
            stopped = self._validate(ended, members[ended], self.taken - 1, self.held_out)
            frozen[ended[stopped]] = True
            if (frozen.cpu() | (self.steps[self.order] <= self.taken)).all():
                self.trainer.should_stop = True

    def _block(self, part: slice, members: Tensor, width: int) -> _Block:
        """Return the members in the places ``part`` with what they have for batches of ``width`` rows."""
        k, hidden = part.stop - part.start, self.sizes[1:-1]
        last = self.blocks.get(part.start)
        if last is not None and last.inputs[0].shape[:2] == (k, width):
            return last
        rows = slice(part.start * width, part.stop * width)
        x = self.X[rows].view(k, width, -1) if self.whole else _view(self.activations[0], k, width, self.sizes[0] + 1)
        outputs, deltas = (
            [_view(space, k, width, size) for space, size in zip(spaces, hidden, strict=True)]
            for spaces in (self.activations[1:], self.deltas)
        )
        weights, biases, weights_grad, biases_grad = (
            [tensor[part] for tensor in tensors]
            for tensors in (self.weights, self.biases, self.weights_grad, self.biases_grad)
        )
        own, inputs = self.optimizer.of(part), [x, *outputs]
        block = _Block(members[part], rows, inputs, deltas, weights, biases, weights_grad, biases_grad, own)
        self.blocks[part.start] = block
        return block

    def _step(self, block: _Block, index: Tensor | None, weight: Tensor, step: int) -> None:
        """Take one step with the members of this block, but for those that have stopped."""
        own = block.own
        losses = self._gradients(block, index, weight)
        finite = torch.stack([losses, *(grad.flatten(1).sum(1) for grad in own.grads)]).sum(0).isfinite()
        if self.private is not None:
            self._add_noise(self.private, block)
        if not finite.all():
            for i in block.members[(~finite & ~own.frozen).cpu()].tolist():
                log.warning("pool member %d diverged at step %d; it stays as it was before", self.names[i], step)
                self.diverged[i] = True
            own.frozen.logical_or_(~finite)
        self.optimizer.advance(own)

    def _set_stopped_aside(self) -> None:
        """Move the members that have stopped behind the others, once they are a sixteenth of those before them."""
        stopped = self.optimizer.frozen[: self.learning].cpu()
        if 16 * int(stopped.sum()) < max(self.learning, 16):
            return
        places = stopped.byte().argsort(stable=True)
        left = places[: self.learning - int(stopped.sum())]
        self.optimizer.reorder(places)
        self.blocks.clear()
        if self.whole:  # the rows of the others are not needed any more
            for name in ("X", "y", "sign", "cell"):
                rows = getattr(self, name).unflatten(0, (self.learning, self.width))
                setattr(self, name, rows[left].flatten(0, 1))
        self.order[: self.learning] = self.order[: self.learning][places]
        self.learning = len(left)

    def _add_noise(self, private: Private, block: _Block) -> None:
        """Add noise to these members' sums of clipped gradients, and divide by the batches' expected size."""
        gradients = [*block.weights_grad, *block.biases_grad]
        sizes = [grad[0].numel() for grad in gradients]
        drawn = torch.stack([torch.randn(sum(sizes), generator=self.generators[i]) for i in block.members.tolist()])
        noise = (private.noise * private.clip * drawn).to(self.X)
        for grad, own in zip(gradients, noise.split(sizes, 1), strict=True):
            grad.add_(own.view_as(grad))
        for grad in block.own.grads:
            grad.transpose(0, -1).div_(self.expected[block.members].to(grad))

    def _validate(self, places: Tensor, members: Tensor, step: int, rows: HeldOut) -> Tensor:
        """Keep the weights of members whose best epoch just ended, and move lambdas; return who is to stop, a mask."""
        y, s, real = (_of(part, members).to(self.device) for part in (rows.y, rows.s, rows.real))
        block = max(1, BLOCK.get(self.device.type, BLOCK["cpu"]) // (rows.X.shape[1] * max(self.sizes)))
        parts = zip(places.split(block), members.split(block), strict=True)
        logits = torch.cat([self._logits(part, _of(rows.X, own).to(self.device)) for part, own in parts])
        if self.classes == 2:
            each = softplus((1 - 2 * y) * logits)
        else:
            each = cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        loss = (each * real).sum(1) / real.sum(1)
        epoch = (step + 1) // self.epoch[members]
        if self.dual is not None:
            # one by one, because each member has its own rows, which fill other cells
            own = zip((logits > 0).long() if self.classes == 2 else logits.argmax(-1), y, s, real, strict=True)
            gap = torch.stack([_gap(preds[r], labels[r], groups[r], self.classes) for preds, labels, groups, r in own])
            better, stopped = self.best.update(members, epoch, constrained(loss.cpu(), gap, self.dual.epsilon))
            self._keep(places[better], members[better])
            self.met[members[better]] = gap[better] <= self.dual.epsilon
            self._ascend(members, gap, self.dual)
            return stopped
        if self.settings.penalty:
            cells = self.classes * rows.groups
            cell = torch.where(real, y * rows.groups + s, cells)
            probs = logits.sigmoid() if self.classes == 2 else logits.softmax(-1)
            loss = loss + self.penalty[members] * equalized_odds_penalties(probs, cell, cells)
        better, stopped = self.best.update(members, epoch, loss)
        self._keep(places[better], members[better])
        return stopped

    def _ascend(self, ended: Tensor, gap: Tensor, dual: Dual) -> None:
        """Move the lambdas of the members whose epoch ended."""
        excess = (gap - dual.epsilon).to(self.penalty)
        self.penalty[ended] = (self.penalty[ended] + dual.rate * excess).clamp(min=0)

    def _logits(self, places: Tensor, X: Tensor) -> Tensor:
        """Return the `pool_logits` of the members in these places."""
        layers = zip(self.weights, self.biases, strict=True)
        return pool_logits([(W[places], b[places]) for W, b in layers], X)

    def _keep(self, places: Tensor, members: Tensor) -> None:
        for kept, part in zip(cast(list[Tensor], self.kept), self.parts, strict=True):
            kept[members] = part[places]
        self.kept_penalty[members.to(self.kept_penalty.device)] = self.penalty[members].to(self.kept_penalty)

    def _gradients(self, block: _Block, index: Tensor | None, weight: Tensor) -> Tensor:
        """Write the gradients of a block's members; return their losses on this batch [k]."""
        last = len(self.weights) - 1
        rows: slice | Tensor = block.rows
        if index is not None:
            rows = index.flatten()
            torch.index_select(self.X, 0, rows, out=block.inputs[0].flatten(0, 1))
        for layer in range(last):
            h, out = block.inputs[layer : layer + 2]
            if layer == 0:
                torch.bmm(h, block.own.params[0], out=out)
            else:
                torch.baddbmm(block.biases[layer][:, None], h, block.weights[layer], out=out)
            out.relu_()
        # Rows lie along the last dimension of outputs and their gradients, because products whose result is a few
        # columns wide are slow; of two classes only the difference of logits counts.
        W, b = block.weights[last].transpose(1, 2), block.biases[last]
        if self.classes == 2:
            W, b = _differences(W), _differences(b)
        h = block.inputs[last][..., : self.sizes[last]]  # without the column of 1 if there is one layer
        losses, at_output = self._loss(torch.baddbmm(b[..., None], W, h.transpose(1, 2)), block.members, rows, weight)
        for layer in range(last, 0, -1):
            delta = block.deltas[layer - 1]  # the loss's gradient at the output of the layer before
            if layer < last:
                torch.bmm(block.deltas[layer], block.weights[layer].transpose(1, 2), out=delta)
            elif self.classes == 2:
                torch.mul(at_output.transpose(1, 2), W, out=delta)
            else:
                torch.bmm(at_output.transpose(1, 2), W, out=delta)
            torch.ops.aten.threshold_backward.grad_input(delta, block.inputs[layer], 0, grad_input=delta)
        if self.private is not None:
            both = torch.cat((-at_output, at_output), 1) if self.classes == 2 else at_output
            features = [block.inputs[0][..., : self.sizes[0]], *block.inputs[1:]]
            clip_rows(features, [*block.deltas, both.transpose(1, 2)], self.private.clip)
            at_output = both[:, 1:] if self.classes == 2 else both
        for layer, delta in enumerate(block.deltas):
            before = block.inputs[layer].transpose(1, 2)
            if layer == 0:
                torch.bmm(before, delta, out=block.own.grads[0])
            else:
                torch.bmm(before, delta, out=block.weights_grad[layer])
                torch.sum(delta, 1, out=block.biases_grad[layer])
        slope, shift = torch.bmm(at_output, h).transpose(1, 2), at_output.sum(2)
        torch.mul(slope, self.difference, out=block.weights_grad[last])
        torch.mul(shift, self.difference, out=block.biases_grad[last])
        return losses

    def _loss(self, logits: Tensor, members: Tensor, rows: slice | Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the losses of members on their batches.

        Args:
            logits: ``[k, C, B]``; of two classes their difference, ``[k, 1, B]``.
            members, rows: of the batches.
            weight: of the rows, ``[k, B]``.

        Returns:
            The losses ``[k]``, and their gradients at ``logits``.
        """
        smoothing, penalised = self.settings.smoothing, self.settings.penalty > 0 or self.dual is not None
        if penalised:
            penalty = self.penalty[members]
            cell = torch.where(weight > 0, self.cell[rows].view_as(weight), self.cells)
        if self.classes == 2:  # by hand, because a graph costs more than these few products
            z, sign = logits[:, 0], self.sign[rows].view_as(weight)
            wrong = sign * z
            losses = (weight * softplus(wrong)).sum(1)
            dz = torch.ops.aten.softplus_backward(weight.contiguous(), wrong, 1, 20)
            if smoothing:
                losses = losses - smoothing / 2 * (weight * wrong).sum(1)
                dz = dz - smoothing / 2 * weight
            dz = dz * sign
            if penalised:
                probs = z.sigmoid()
                penalties, slopes = penalties_and_slopes(probs, cell, self.cells)
                losses = losses + penalty * penalties
                dz += torch.ops.aten.sigmoid_backward(penalty[:, None] * slopes, probs)
            return losses, dz[:, None]
        with torch.enable_grad():
            z = logits.clone().requires_grad_()
            each = cross_entropy(z, self.y[rows].view_as(weight), reduction="none", label_smoothing=smoothing)
            losses = (weight * each).sum(1)
            if penalised:
                losses = losses + penalty * equalized_odds_penalties(z.softmax(1).transpose(1, 2), cell, self.cells)
            (dz,) = torch.autograd.grad(losses.sum(), z)
        return losses.detach(), dz

    def trained(self) -> tuple[list[tuple[Tensor, Tensor]], list[int], dict[str, list[float]]]:
        """Return the weights, the members that diverged, and what the training reports of every member.

        The weights are the last ones or, if validation rows decide, those of the members' best epochs.
        """
        places = self.order.argsort()
        stand = [part[places] for part in self.parts] if self.kept is None else self.kept
        weights = [
            (W.contiguous(), b.contiguous()) for W, b in zip(*self._layers([p.cpu() for p in stand]), strict=True)
        ]
        penalties = (self.penalty if self.kept is None else self.kept_penalty).tolist()
        told: dict[str, list[float]] = {
            "lambda": [float(f"{one:.6g}") for one in penalties]
        }  # 0.1, as it was asked for
        taken = self.optimizer.steps.cpu()[places]
        told["epoch"] = (taken // self.epoch if self.kept is None else self.best.epoch).tolist()
        if self.dual is not None:
            told["constraint_met"] = self.met.double().tolist()
        return weights, self.diverged.nonzero().flatten().tolist(), told


def pool_logits(layers: Sequence[tuple[Tensor, Tensor]], X: Tensor) -> Tensor:
    """Return the logits ``[M, N, C]`` of M members on rows of their own; of two classes their difference, ``[M, N]``.

    Args:
        layers: weights ``[M, in, out]`` and biases ``[M, out]``.
        X: ``[M, N, F]``.
    """
    h = X
    for W, b in layers[:-1]:
        h = torch.baddbmm(b[:, None], h, W).relu_()
    W, b = layers[-1]
    if b.shape[1] > 2:
        return torch.baddbmm(b[:, None], h, W)
    # rows along the last dimension: a product whose result is a few columns wide is slow
    W, b = _differences(W.transpose(1, 2)), _differences(b)
    return torch.baddbmm(b[..., None], W, h.transpose(1, 2))[:, 0]


def _differences(of_classes: Tensor) -> Tensor:
    """Return the second minus the first of two classes, ``[M, 1, ...]`` for ``[M, 2, ...]``.

    Strides are as of memory in one piece, for which products are fast; slices of length 1 would keep theirs.
    """
    return (of_classes[:, 1] - of_classes[:, 0])[:, None]


def _of(X: Tensor, members: Tensor) -> Tensor:
    """Return the rows of these members, in ascending order.

    Where they are the same for all, or none is left out between these members, they are not copied.
    """
    if X.stride(0) == 0:
        return X[: len(members)]
    first, last = int(members[0]), int(members[-1])
    return X[first : last + 1] if last - first < len(members) else X[members]


def _gap(preds: Tensor, y: Tensor, s: Tensor, classes: int) -> Tensor:
    """Return the equalized-odds gap of one member, on the CPU; cells without rows are left out."""
    return equalized_odds_gaps(preds[None], y, s, classes=classes)[0].cpu()


def _view(space: Tensor, *shape: int) -> Tensor:
    return space[: math.prod(shape)].view(shape)


@dataclass(frozen=True, eq=False)
class Share:
    """Some members' share of what a `PoolAdamW` has, which are views, and the steps that they have taken."""

    params: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    frozen: Tensor
    steps: Tensor
    taken: list[Tensor]


class PoolAdamW(torch.optim.Optimizer):
    """AdamW over parameters stacked along their first dimension, one entry per member.

    Members start together and stop for good, so those that still learn have the same step count. The others keep
    weights and moments bit for bit.

    Attributes:
        frozen: bool [M], True for members that do not learn; it only fills.
        steps: int64 [M], steps that each member has taken.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8})
        stacked = self.param_groups[0]["params"]
        for p in stacked:
            self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        self.frozen = torch.zeros(len(stacked[0]), dtype=torch.bool, device=stacked[0].device)
        self.steps = torch.zeros(len(stacked[0]), dtype=torch.int64, device=stacked[0].device)

    @torch.no_grad()
    def reorder(self, places: Tensor) -> None:
        """Move the members in the first ``len(places)`` places: the one in ``places[i]`` goes to the place i."""
        states = [self.state[p] for p in self.param_groups[0]["params"]]
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        for tensor in (*self.param_groups[0]["params"], *moments, self.frozen, self.steps):
            tensor[: len(places)] = tensor[places.to(tensor.device)]

    def of(self, members: slice) -> Share:
        """Return the share of these members, of which those that are not frozen have taken as many steps."""
        params = self.param_groups[0]["params"]
        frozen, steps = self.frozen[members], self.steps[members]
        return Share(
            [p.detach()[members] for p in params],
            [p.grad[members] for p in params],
            [self.state[p]["exp_avg"][members] for p in params],
            [self.state[p]["exp_avg_sq"][members] for p in params],
            frozen,
            steps,
            [steps.max().to(p) for p in params],
        )

    def advance(self, own: Share) -> None:
        """Take one step with these members, but for those that are frozen."""
        (group,) = self.param_groups
        stacked = (*own.params, *own.means, *own.squares)
        frozen = own.frozen.nonzero().flatten()
        kept = [(tensor, tensor[frozen]) for tensor in stacked] if len(frozen) else []
        adamw(
            own.params,
            own.grads,
            own.means,
            own.squares,
            [],
            own.taken,
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
        own.steps.add_(~own.frozen)


def clip_rows(inputs: Sequence[Tensor], deltas: Sequence[Tensor], clip: float) -> None:
    """Scale ``deltas`` in place so that no row's gradient, all linear layers together, is longer than ``clip``.

    A row's gradient of a layer is the outer product of its input (and 1, for the bias) and its delta, so its squared
    norm is the product of their squared norms. No gradient of a single row is ever computed (Goodfellow 2015). The
    factor is that of Opacus, ``min(1, clip / (norm + 1e-6))``.

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
    """Compute ``functional.equalized_odds_penalty`` of every member, vectorised.

    Args:
        probs: P(y=1) ``[M, B]``, or with C > 2 classes all probabilities ``[M, B, C]``.
        cell: ``label * groups + group`` ``[M, B]``, or ``cells`` for a row that does not count.
        cells: the number of classes times that of groups.

    Returns:
        Penalties ``[M]``; a (label, group) cell without rows in a member's batch contributes nothing.
    """
    if probs.dim() == 3:
        classes = probs.shape[2]
        empty = probs.new_zeros(len(probs), cells + 1, classes)
        sums = empty.scatter_add(1, cell[..., None].expand_as(probs), probs)[:, :cells]
        rows = empty[..., 0].scatter_add(1, cell, torch.ones_like(probs[..., 0]))[:, :cells, None]
        means = (sums / rows.clamp(min=1)).masked_fill(rows == 0, torch.nan)
        return label_gaps(means.view(len(probs), classes, -1, classes)).sum(1)
    return penalties_and_slopes(probs, cell, cells)[0]


def penalties_and_slopes(probs: Tensor, cell: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Compute the `equalized_odds_penalties` ``[M]`` of two classes, and their gradients at ``probs``, ``[M, B]``.

    Where several groups of a label have its largest or smallest mean, the gradient is spread evenly over them.
    """
    empty = probs.new_zeros(len(probs), cells + 1)
    sums, rows = (empty.scatter_add(1, cell, values)[:, :cells] for values in (probs, torch.ones_like(probs)))
    rows = rows.view(len(probs), 2, -1)
    means = sums.view_as(rows) / rows  # NaN without rows, which equals nothing
    high = means.nan_to_num(-torch.inf).amax(-1, keepdim=True)
    low = means.nan_to_num(torch.inf).amin(-1, keepdim=True)
    top, bottom = means == high, means == low
    spread = top / top.sum(-1, keepdim=True) - bottom / bottom.sum(-1, keepdim=True)
    slopes = (spread / rows).nan_to_num(0)  # of cells without rows; no row reads them
    penalties = torch.where(top.any(-1), (high - low)[..., 0], 0.0).sum(1)
    return penalties, pad(slopes.flatten(1), (0, 1)).gather(1, cell)
