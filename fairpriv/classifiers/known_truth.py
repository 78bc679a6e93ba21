"""Synthetic worlds whose best possible adversary is known in closed form, and the cell that runs attacks on them.

Models are drawn, not trained: a pool of one linear layer whose weights follow the world's law. If both worlds are
equally likely, no adversary's advantage exceeds the total variation between the two laws, and the likelihood-ratio test
reaches it. Attacks are measured by their share of it: a smaller share is due to the attack, not to the models.

``strength`` is the distance of the worlds in standard deviations of the quantity in which they differ: 0 means no
difference, and 8 an almost certain decision. The worlds, and what is drawn in them, are ours.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from fairpriv.classifiers.attacks.attack import AttackGame, Query, refuse_few_shadows
from fairpriv.classifiers.attacks.play import play_attacks
from fairpriv.classifiers.attacks.proportion import ProportionGame
from fairpriv.classifiers.contract import Defense
from fairpriv.classifiers.dimensions.game import Distribution
from fairpriv.classifiers.dimensions.proportion import Proportion
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.classifiers.settings import Settings
from fairpriv.errors import InputError
from fairpriv.identity import derived_seed
from fairpriv.metrics import SHARE, Metric
from fairpriv.processes import rank
from fairpriv.result import Result, Stage, write_whole

OPTIMAL_ADVANTAGE = Metric(
    "game/optimal_advantage",
    "optimal advantage",
    "Advantage of the best adversary there can be: 0 is guessing, 1 is certainty.",
    SHARE,
    low=0.0,
    high=1.0,
    column=63,
)
SHARE_OF_OPTIMUM = Metric(
    "attack/{attack}/share_of_optimum",
    "{attack} share of optimum",
    "The attack's advantage over that of the best adversary there can be, where that is known in closed form.",
    SHARE,
    "greater",
    low=0.0,
    column=62,
    magnitude=True,
)


class KnownTruth:
    """One cell: every attack on ``game.repeats`` independent games in one world, compared with the best possible one.

    It uses ``game.shadows``, ``game.victims`` and ``game.repeats``; nothing is trained or defended.

    Raises:
        InputError: no attacks, a defence, or fewer than one victim or game.
    """

    def __init__(self, config: Mapping[str, Any], dataset: World, defense: Defense) -> None:
        self.world, self.settings = dataset, Settings.read(config)
        self.proportions = [each for each in self.settings.dimensions if isinstance(each, Proportion)]
        if not self.settings.distribution_attacks + self.proportions:
            raise InputError(
                f"dataset={dataset.name} is there to be attacked: choose attack=[...] (fairpriv ls attack)"
            )
        for dimension in self.settings.dimensions:
            if not isinstance(dimension, Distribution | Proportion):
                raise InputError(
                    f"dataset={dataset.name} is there to be attacked, and dimension={dimension.name} does not play on "
                    "it: leave it out, or choose distribution or proportion"
                )
        if defense.name != "none":
            raise InputError(f"dataset={dataset.name} draws its models as they are: choose defense=none")
        if self.settings.game.poison:
            raise InputError(f"dataset={dataset.name} draws its models as they are: leave game.poison at 0")
        self.settings.game.refuse_unattackable()
        for attack in self.settings.distribution_attacks:
            refuse_few_shadows(attack.name, self.settings.game.shadows, attack.needs)

    def digests(self) -> dict[str, str]:
        """Return no digests, since everything is drawn."""
        return {}

    def measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        """Play the games and add their measures to ``result``; write the victims' scores to a file in ``folder``."""
        if rank() > 0:
            return
        optimum, attacks, game = self.world.optimal_advantage, self.settings.distribution_attacks, self.settings.game
        with stage("attack"):
            seeds = [derived_seed(self.settings.seed, number) for number in range(game.repeats)]
            games = [self.world.game(seed, shadows=game.shadows, victims=game.victims) for seed in seeds]
            played = play_attacks(games, attacks)
        result.add(played.measured | OPTIMAL_ADVANTAGE.of(optimum))
        for attack in attacks if optimum > 0 else ():
            leakage = f"attack/{attack.name}/leakage"
            ends, ((signed,),) = played.measured.intervals.get(leakage), played.measured.signed[leakage]
            result.add(
                SHARE_OF_OPTIMUM.named(attack=attack.name).of(
                    2 * played.measured.metrics[leakage] / optimum,
                    ends and (2 * ends[0] / optimum, 2 * ends[1] / optimum),
                    signed=[[2 * signed / optimum]],
                )
            )
        for proportion in self.proportions:
            counts = {"shadows": proportion.shadows, "victims": proportion.victims}
            dealt = self.world.proportion_game(self.settings.seed, proportion.grid, **counts)
            result.add(proportion.played(*dealt, self.world.optimal_error(proportion.grid)))
        path = folder / "attacks.json"
        write_whole(path, json.dumps({"splits": played.victims, "omitted": {}}).encode())
        result.artifacts["attacks"] = path.name


class World(ABC):
    """Two laws of models that differ by ``strength``, and rows to ask the models about."""

    name: str
    strength: float

    @property
    @abstractmethod
    def optimal_advantage(self) -> float:
        """Advantage of the best possible adversary, in [0, 1]: the total variation between the worlds' models."""

    @abstractmethod
    def models(self, worlds: Tensor, generator: torch.Generator) -> Pool:
        """Draw a model of each of these worlds, ``[M]`` in [0, 1]."""

    @abstractmethod
    def statistic(self, worlds: Tensor) -> Tensor:
        """Return the chances ``[W, T]`` of the T values of a sufficient statistic of one model in worlds ``[W]``."""

    @abstractmethod
    def query(self, generator: torch.Generator) -> Query:
        """Draw the rows that the adversary asks about, equally many of both worlds."""

    def game(self, seed: int, *, shadows: int, victims: int) -> AttackGame:
        """Draw one game by ``seed``, with these numbers of shadows and victims per world."""
        generator = torch.Generator().manual_seed(seed)
        query = self.query(generator)
        truth = torch.arange(2).repeat_interleave(victims)
        asked = self.models(truth, generator)
        own = (self.models(torch.full((shadows,), world), generator) for world in (0, 1))
        zero, one = own if shadows else (None, None)
        return AttackGame(asked, (zero, one) if zero and one else None, query, seed, truth)

    def proportion_game(
        self, seed: int, grid: Sequence[float], *, shadows: int, victims: int
    ) -> tuple[ProportionGame, Tensor]:
        """Draw a game with worlds between 0 and 1, those of ``grid``; return it with the victims' worlds ``[V]``."""
        generator = torch.Generator().manual_seed(seed)
        query = self.query(generator)
        known, truth = (torch.tensor(grid, dtype=torch.double).repeat_interleave(n) for n in (shadows, victims))
        own, asked = (self.models(worlds, generator) for worlds in (known, truth))
        return ProportionGame(asked, own, known, query, seed), truth

    def optimal_error(self, grid: Sequence[float]) -> float:
        """Return the least mean absolute error of an estimate of the world, if those of ``grid`` are equally likely.

        It is reached by the median of the world given the sufficient statistic, which is a value of the grid.
        """
        worlds = torch.tensor(grid, dtype=torch.double)
        cost = (worlds[:, None] - worlds).abs() @ self.statistic(worlds)
        return float(cost.amin(0).sum()) / len(worlds)


def _check(world: World, **counts: int) -> None:
    if not 0 <= world.strength < math.inf:
        raise InputError(f"dataset.strength={world.strength}: it is a distance, 0 or more")
    for key, value in counts.items():
        if value < 1:
            raise InputError(f"dataset.{key}={value}: it is 1 or more")


def _normal_chances(distance: float, worlds: Tensor) -> Tensor:
    """Return the chances ``[W, T]`` of a normal statistic in bins, with mean ``world * distance`` and spread 1."""
    edges = torch.linspace(-8, 8 + distance, 4001, dtype=torch.double)
    return torch.special.ndtr(edges - distance * worlds[:, None]).diff(dim=1)


def _linear(w: Tensor, b: Tensor) -> Pool:
    """Make models with logit ``x @ w + b`` from weights ``[M, F]`` and ``[M]``."""
    return Pool([(torch.stack((-w, w), 2).float() / 2, torch.stack((-b, b), 1).float() / 2)])


@dataclass
class KnownGaussian(World):
    """Worlds of linear classifiers, fitted in closed form to Gaussian features with labels on opposite sides per world.

    Features are N(+u, I) for label 1 and N(-u, I) for label 0 in the group of world 1; in the group of world 0 the
    labels are swapped. The model's weights are sqrt(rows) times the mean of its rows, where rows of label 0 change
    sign. They are N(+-sqrt(rows) u, I), and lie ``strength`` apart. The optimal advantage is 2 Phi(strength / 2) - 1.

    Attributes:
        strength: 2 sqrt(rows) |u|, at least 0.
        features: F, at least 1; u has equal entries.
        rows: number of rows that a model is fitted to, at least 1.
        asked: number of query rows of each world.
    """

    kind: ClassVar[str] = "known_gaussian"

    name: str
    strength: float = 1.0
    features: int = 8
    rows: int = 64
    asked: int = 128

    def __post_init__(self) -> None:
        _check(self, features=self.features, rows=self.rows, asked=self.asked)

    @property
    def optimal_advantage(self) -> float:
        """2 Phi(strength / 2) - 1."""
        return _between_normals(self.strength)

    def statistic(self, worlds: Tensor) -> Tensor:
        """Return the chances ``[W, T]`` of a normal statistic, ``strength`` times the world with spread 1, in bins."""
        return _normal_chances(self.strength, worlds)

    def _rows(self, worlds: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw features ``[M, count, F]`` and labels ``[M, count]``."""
        y = torch.randint(0, 2, (len(worlds), count), generator=generator)
        shift = self.strength / (2 * math.sqrt(self.rows * self.features))
        noise = torch.randn(len(worlds), count, self.features, generator=generator)
        return noise + (shift * (2 * y - 1) * (2 * worlds - 1)[:, None])[..., None], y

    def models(self, worlds: Tensor, generator: torch.Generator) -> Pool:
        """Draw a model of each of these worlds, ``[M]`` in [0, 1]."""
        X, y = self._rows(worlds, self.rows, generator)
        return _linear(math.sqrt(self.rows) * (X * (2 * y - 1)[..., None]).mean(1), torch.zeros(len(worlds)))

    def query(self, generator: torch.Generator) -> Query:
        """Draw the rows that the adversary asks about, equally many of both worlds."""
        X, y = self._rows(torch.arange(2), self.asked, generator)
        world = torch.arange(2).repeat_interleave(self.asked)
        return Query(X.flatten(0, 1), y.flatten(), world, world)


@dataclass
class KnownBernoulli(World):
    """Worlds of frequency tables: for every cell, the model answers the smoothed frequency of label 1 that it has seen.

    In half of the cells, the informative ones, the chance of label 1 is 1/2 + e in one world and 1/2 - e in the other,
    by turns; in the other half it is the same in both, from 0.1 to 0.9. The model adds one to both counts (Laplace), so
    that its answers are inside (0, 1). Over the informative cells, the number of labels that agree with world 1 is
    binomial with chance 1/2 +- e. It is a sufficient statistic, so the optimal advantage is a sum over its values.

    Attributes:
        strength: 2 e sqrt(n / (1/4 - e^2)) for n labels in the informative cells, at least 0.
        cells: number of cells, even.
        rows: number of labels that a model has seen of each cell, at least 1.
        asked: number of query rows of each cell and world.
    """

    kind: ClassVar[str] = "known_bernoulli"

    name: str
    strength: float = 1.0
    cells: int = 32
    rows: int = 8
    asked: int = 4

    def __post_init__(self) -> None:
        _check(self, cells=self.cells, rows=self.rows, asked=self.asked)
        if self.cells % 2:
            raise InputError(f"dataset.cells={self.cells}: an even number, since half of them tell")

    @property
    def optimal_advantage(self) -> float:
        """Total variation between the two binomials."""
        from scipy import stats  # takes a second

        n = self._telling * self.rows
        k = torch.arange(n + 1).numpy()
        return float(abs(stats.binom.pmf(k, n, 0.5 + self._lean) - stats.binom.pmf(k, n, 0.5 - self._lean)).sum() / 2)

    @property
    def _telling(self) -> int:
        return self.cells // 2

    @property
    def _lean(self) -> float:
        return self.strength / (2 * math.sqrt(4 * self._telling * self.rows + self.strength**2))

    def statistic(self, worlds: Tensor) -> Tensor:
        """Return the chances ``[W, T]`` of the number of labels that agree with world 1."""
        from scipy import stats

        n = self._telling * self.rows
        chance = 0.5 + (2 * worlds[:, None].numpy() - 1) * self._lean
        return torch.from_numpy(stats.binom.pmf(range(n + 1), n, chance))

    def chances(self, world: float) -> Tensor:
        """Return the chance of label 1 in every cell, float64 ``[cells]``."""
        turn = 1 - 2 * (torch.arange(self._telling) % 2)
        alike = torch.linspace(0.1, 0.9, self._telling, dtype=torch.double)
        return torch.cat((0.5 + (2 * world - 1) * self._lean * turn.double(), alike))

    def _labels(self, worlds: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw labels ``[M, count, cells]`` in {0, 1}."""
        chances = torch.stack([self.chances(world) for world in worlds.tolist()])
        drawn = torch.rand(len(worlds), count, self.cells, dtype=torch.double, generator=generator)
        return (drawn < chances[:, None]).long()

    def models(self, worlds: Tensor, generator: torch.Generator) -> Pool:
        """Draw a model of each of these worlds, ``[M]`` in [0, 1]."""
        ones = self._labels(worlds, self.rows, generator).sum(1)
        return _linear(((ones + 1.0) / (self.rows - ones + 1.0)).log(), torch.zeros(len(worlds)))

    def query(self, generator: torch.Generator) -> Query:
        """Draw the rows that the adversary asks about, equally many of both worlds."""
        y = self._labels(torch.arange(2), self.asked, generator)
        world = torch.arange(2).repeat_interleave(self.asked * self.cells)
        return Query(torch.eye(self.cells).repeat(2 * self.asked, 1), y.flatten(), world, world)


@dataclass
class KnownOffset(World):
    """Worlds of linear models that differ in the offset of their logits; the other weights do not depend on the world.

    These weights are N(0, 4 I / F), so that logits have a standard deviation of 2; the bias is
    N(+-strength * spread / 2, spread^2), and the mean bias is also the log odds of the query's labels. The optimal
    advantage is 2 Phi(strength / 2) - 1.

    Attributes:
        strength: distance of the mean biases in units of ``spread``, at least 0.
        features: F, at least 1.
        spread: standard deviation of the bias, above 0.
        asked: number of query rows of each world.
    """

    kind: ClassVar[str] = "known_offset"

    name: str
    strength: float = 1.0
    features: int = 4
    spread: float = 0.01
    asked: int = 128

    def __post_init__(self) -> None:
        _check(self, features=self.features, asked=self.asked)
        if not 0 < self.spread < math.inf:
            raise InputError(f"dataset.spread={self.spread}: it is a standard deviation, above 0")

    @property
    def optimal_advantage(self) -> float:
        """2 Phi(strength / 2) - 1."""
        return _between_normals(self.strength)

    def statistic(self, worlds: Tensor) -> Tensor:
        """Return the chances ``[W, T]`` of a normal statistic, ``strength`` times the world with spread 1, in bins."""
        return _normal_chances(self.strength, worlds)

    def _offset(self, worlds: Tensor) -> Tensor:
        return (worlds - 0.5) * self.strength * self.spread

    def models(self, worlds: Tensor, generator: torch.Generator) -> Pool:
        """Draw a model of each of these worlds, ``[M]`` in [0, 1]."""
        w = 2 / math.sqrt(self.features) * torch.randn(len(worlds), self.features, generator=generator)
        noise = self.spread * torch.randn(len(worlds), generator=generator)
        return _linear(w, self._offset(worlds) + noise)

    def query(self, generator: torch.Generator) -> Query:
        """Draw the rows that the adversary asks about, equally many of both worlds."""
        world = torch.arange(2).repeat_interleave(self.asked)
        X = torch.randn(2 * self.asked, self.features, generator=generator)
        y = (torch.rand(2 * self.asked, generator=generator) < self._offset(world).sigmoid()).long()
        return Query(X, y, world, world)


def _between_normals(distance: float) -> float:
    """Return the total variation between normal laws of equal spread, ``distance`` standard deviations apart."""
    return math.erf(distance / math.sqrt(8))
