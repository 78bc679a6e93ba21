"""Fairlearn's ExponentiatedGradient, a randomised classifier from a sequence of weighted fits (Agarwal et al. 2018)."""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import fairlearn.reductions
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairpriv.classifiers.contract import EPOCH, ClassifierOwner, Defended, Defense, PoolOwner, refuse_one_group
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.defenses.fair_finetune import FairFineTuning
from fairpriv.classifiers.nets.classifier import predict
from fairpriv.classifiers.nets.models import Models, draw
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.errors import InputError
from fairpriv.metrics import Metric

NETWORKS = Metric("defense/networks", "networks", "How many networks the mixture draws from.", "networks", low=0.0)
DUALITY_GAP = Metric("defense/duality_gap", "duality gap", "How far the mixture is from the saddle point.")

Model = TypeVar("Model")
Train = Callable[[Tensor, Tensor], tuple[Model, Tensor]]  # labels and weights [N] -> a model and its answers [N]


@dataclass
class ExponentiatedGradient(Defense):
    """The reduction of fair classification to weighted fits, each of which is an arm of fine-tuning.

    Fairlearn repeatedly requests the best network under labels and weights that it chooses. Here this is FFt's arm
    ``estimator`` on its own rows, from the same start. It is trained for as many epochs as that arm takes with the true
    labels until validation rows stop it, because no validation rows have the labels that fairlearn invents. The result
    is a mixture: for every answer it draws one of a few networks. Attacks get the chance of the answer 1, which anyone
    can learn by asking often enough; accuracies and rates are those of drawn answers. There is no single network, so
    attacks that read weights are left out. A pool's members request fits at the same time, and their networks are
    trained together.

    Attributes:
        estimator: an arm of fine-tuning with a fixed lambda of 0.
        constraints: the quantity that is to be equal in all groups.
        difference_bound: largest allowed difference between groups.
        eps: 1 / eps bounds the sum of the constraints' multipliers.
        max_iter: number of iterations, of about three fits each.
    """

    kind: ClassVar[str] = "exponentiated_gradient"

    name: str = "exponentiated_gradient"
    estimator: FairFineTuning = field(default_factory=lambda: FairFineTuning(name="rehearsal", penalty=0.0))
    constraints: Literal["equalized_odds", "demographic_parity"] = "equalized_odds"
    difference_bound: float = 0.01
    eps: float = 0.01
    max_iter: int = 5

    one_network: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.estimator) is not FairFineTuning or self.estimator.penalty != 0:
            raise InputError(
                f"defense.estimator={self.estimator.name}: its fits are weighted ones, of "
                "an arm of fine-tuning with lambda 0: choose fine_tune, rehearsal or scratch"
            )
        if not (0 < self.difference_bound < 1 and self.eps > 0 and self.max_iter >= 1):
            raise InputError(
                f"defense.difference_bound={self.difference_bound}, eps={self.eps}, max_iter={self.max_iter}: "
                "difference_bound lies between 0 and 1, eps is above 0, max_iter at least 1"
            )

    @property
    def control(self) -> bool:
        """Whether its arm is a null control."""
        return self.estimator.control

    @property
    def answers_only(self) -> bool:
        """Whether it tells labels: it does, drawn by chance."""
        return True

    def defend(self, owner: ClassifierOwner) -> Defended:
        """Run the reduction for one model; also report how many networks it draws from, and the duality gap."""
        owner.two_classes(self.name)
        rows = owner.tuning_rows(self.estimator.rehearsal)
        epochs = max(1, self.estimator.tune_on(owner, rows).epoch)

        def train(y: Tensor, weights: Tensor) -> tuple[nn.Module, Tensor]:
            net = self.estimator.tune_for(owner, Rows(rows.X, y, rows.s, rows.index), weights, epochs).net
            return net, predict(net, rows.X)

        with _fairlearns_warnings():
            mixture, fitted = self._reduce(rows, train)
        generator = torch.Generator().manual_seed(owner.seed)

        def answer(asked: Rows) -> Tensor:
            ones = [
                torch.full((len(asked.y),), model) if isinstance(model, int) else predict(model, asked.X)
                for model, _ in mixture
            ]
            chance = torch.stack(ones, 1).double() @ torch.tensor([weight for _, weight in mixture]).double()
            return draw(chance, generator)

        measured = NETWORKS.of(len(mixture)) | DUALITY_GAP.of(fitted.best_gap_) | EPOCH.of(epochs)
        return Defended(None, measured, answer, rows)

    def defend_pool(self, owner: PoolOwner) -> Mixtures:
        samples = owner.tuning_samples(self.estimator.rehearsal)
        start = owner.base() if self.estimator.start == "base" else None
        plain = self.estimator.tune_pool(owner, [(rows.X, rows.y, rows.s) for rows in samples], start)
        epochs = [max(1, int(epoch)) for epoch in plain.told["epoch"]]

        def reduced(member: int, train: Train[Pool]) -> list[tuple[Pool | int, float]]:
            return self._reduce(samples[member], train)[0]

        def trained(asked: dict[int, tuple[Tensor, Tensor]]) -> dict[int, tuple[Pool, Tensor]]:
            datasets = [(samples[i].X, y, samples[i].s, weights) for i, (y, weights) in asked.items()]
            numbers = list(asked)
            own = start[numbers] if start is not None else None
            fixed = {"epochs": [epochs[i] for i in numbers], "patience": None, "validation": None}
            # dozens of pools that are not read again are not kept
            pool = self.estimator.tune_pool(owner, datasets, own, numbers=numbers, store=None, **fixed)
            members = {i: pool[[place]] for place, i in enumerate(numbers)}
            return {i: (net, (net.predict_proba(samples[i].X)[0] > 0.5).long()) for i, net in members.items()}

        with _fairlearns_warnings():
            return Mixtures.of(together(len(samples), reduced, trained))

    def _reduce(self, rows: Rows, train: Train[Model]) -> tuple[list[tuple[Model | int, float]], Any]:
        """Run fairlearn on one data set; return models (or constant answers) with their chances, and the reduction."""
        refuse_one_group(rows, "defense.estimator.rehearsal", self.estimator.rehearsal, f"{self.constraints} of groups")
        moments = {
            "equalized_odds": fairlearn.reductions.EqualizedOdds,
            "demographic_parity": fairlearn.reductions.DemographicParity,
        }
        known: dict[bytes, tuple[Model, Tensor]] = {}  # once nothing is unfair, fairlearn requests the same fit again

        def once(y: Tensor, weights: Tensor) -> tuple[Model, Tensor]:
            key = y.numpy().tobytes() + weights.numpy().tobytes()
            known[key] = known[key] if key in known else train(y, weights)
            return known[key]

        reduction = fairlearn.reductions.ExponentiatedGradient(
            BestResponse(once),
            moments[self.constraints](difference_bound=self.difference_bound),
            eps=self.eps,
            max_iter=self.max_iter,
        )
        numbers = np.arange(len(rows.y))[:, None]  # fairlearn gets row numbers instead of the rows
        reduction.fit(numbers, rows.y.numpy(), sensitive_features=rows.s.numpy())
        mixture: list[tuple[Model | int, float]] = []
        for place, chance in reduction.weights_.items():
            response = reduction.predictors_[place]
            if chance > 0:
                constant = not isinstance(response, BestResponse)  # fairlearn trains nothing if all labels are equal
                mixture.append((int(response.constant_) if constant else response.model, float(chance)))
        return mixture, reduction


@contextlib.contextmanager
def _fairlearns_warnings() -> Iterator[None]:
    """Ignore pandas 3's warnings about fairlearn 0.15; call it in the main thread, since filters affect all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Setting (a value on a Series via \.at|an item of incompatible dtype)")
        yield


class BestResponse:
    """An estimator for fairlearn, which gets row numbers in place of features."""

    def __init__(self, train: Train[Any]) -> None:
        self.train = train

    def __sklearn_clone__(self) -> BestResponse:
        return BestResponse(self.train)

    def fit(self, X: NDArray[np.int64], y: Any, sample_weight: Any) -> BestResponse:
        """Train on these labels and weights."""
        self.model, self.answers = self.train(torch.as_tensor(np.array(y)), torch.as_tensor(np.array(sample_weight)))
        return self

    def predict(self, X: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return answers ``[N]`` at row numbers ``[N, 1]``."""
        return self.answers.numpy()[np.asarray(X)[:, 0]]


def together(
    count: int,
    work: Callable[[int, Train[Any]], Any],
    train: Callable[[dict[int, tuple[Tensor, Tensor]]], dict[int, tuple[Any, Tensor]]],
) -> list[Any]:
    """Run ``count`` algorithms side by side, and train what they request at the same time in one call.

    Each algorithm runs in its own thread, one at a time, and waits until all that are not yet done have made a request.
    So the requests that are trained together do not depend on the threads' speed.

    Args:
        count: number of algorithms, which are numbered from 0.
        work: runs one algorithm; its arguments are the number and a function from labels and weights to a model and
            its answers.
        train: answers requests, by number in ascending order; called in this thread.

    Returns:
        The results of ``work``, by number.
    """
    messages: queue.SimpleQueue[tuple[int, tuple[Tensor, Tensor] | None, Future[Any]]] = queue.SimpleQueue()

    turn = threading.Lock()  # libraries change warning filters temporarily, and these affect all threads

    def run(number: int) -> Any:
        def ask(y: Tensor, weights: Tensor) -> Any:
            reply: Future[Any] = Future()
            messages.put((number, (y, weights), reply))
            turn.release()
            try:
                return reply.result()
            finally:
                turn.acquire()

        try:
            with turn:
                return work(number, ask)
        finally:
            messages.put((number, None, Future()))

    with ThreadPoolExecutor(count) as threads:
        results = [threads.submit(run, number) for number in range(count)]
        left = count
        asked: dict[int, tuple[Tensor, Tensor]] = {}
        replies: dict[int, Future[Any]] = {}
        while left:
            number, request, reply = messages.get()
            if request is None:
                left -= 1
            else:
                asked[number], replies[number] = request, reply
            if asked and len(asked) == left:
                try:
                    answers = train(dict(sorted(asked.items())))
                    for i, waiting in replies.items():
                        waiting.set_result(answers[i])
                except BaseException as error:  # otherwise the threads would wait for ever
                    for waiting in replies.values():
                        waiting.set_exception(error)
                asked, replies = {}, {}
    return [result.result() for result in results]


class Mixtures(Models):
    """M classifiers, each of which draws one of its networks for every answer.

    Args:
        networks: those of all members, K in total.
        chances: float32 ``[M, K]``: the chance that a member draws a network; rows sum to 1.
    """

    randomized: ClassVar[bool] = True

    def __init__(self, networks: Pool, chances: Tensor) -> None:
        self.networks, self.chances = networks, chances
        broken = torch.zeros(len(networks))
        broken[networks.diverged] = 1.0
        self.diverged = (chances @ broken).nonzero().flatten().tolist()

    @classmethod
    def of(cls, mixtures: Sequence[Sequence[tuple[Pool | int, float]]]) -> Mixtures:
        """Make the mixtures from every member's networks, or constant answers, with their chances."""
        like = next(net for mixture in mixtures for net, _ in mixture if isinstance(net, Pool))
        networks = [constant(like, net) if isinstance(net, int) else net for mixture in mixtures for net, _ in mixture]
        chances = [torch.tensor([chance for _, chance in mixture]) for mixture in mixtures]
        return cls(Pool.join(networks), torch.block_diag(*chances))

    def __len__(self) -> int:
        return len(self.chances)

    def __getitem__(self, index: Sequence[int]) -> Mixtures:
        chances = self.chances[index]
        drawn = chances.sum(0) > 0
        return Mixtures(self.networks[drawn], chances[:, drawn])

    def predict_proba(self, X: Tensor, *groups: Tensor) -> Tensor:
        """Return every member's chance of the answer 1, ``[M, N]``, at features ``[N, F]``."""
        return (self.chances @ (self.networks.predict_proba(X) > 0.5).float()).clamp(0, 1)


def constant(like: Pool, answer: int) -> Pool:
    """Make a network of the same architecture that always gives this answer, 0 or 1."""
    weights = [(torch.zeros_like(W[:1]), torch.zeros_like(b[:1])) for W, b in like.weights]
    weights[-1][1][0, answer] = 1.0
    return Pool(weights)
