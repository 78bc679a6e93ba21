"""The game of proportions: the best error against simulation, the regression on known truth, and what is measured."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.model_selection import KFold

from fairpriv.classifiers.attacks.attack import Query
from fairpriv.classifiers.attacks.proportion import ProportionAttack, ProportionGame, ShareRegression
from fairpriv.classifiers.dimensions.proportion import Proportion
from fairpriv.classifiers.known_truth import KnownBernoulli, KnownGaussian, KnownOffset
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.errors import InputError
from fairpriv.functional.attacks import leaked_by_accuracy, leaked_by_estimates

GRID = [0.1, 0.5, 0.9]
WORLDS = [KnownGaussian, KnownBernoulli, KnownOffset]


def likelihoods(world, grid, worlds):
    """The likelihood ``[M, G]`` of every share of the grid, of models drawn in these worlds; from the docstrings."""
    ((W, b),) = world.models(worlds, torch.Generator().manual_seed(0)).weights
    w, b = (W[..., 1] - W[..., 0]).double().numpy(), (b[:, 1] - b[:, 0]).double().numpy()
    if isinstance(world, KnownOffset):
        return [stats.norm.pdf(b, (a - 0.5) * world.strength * world.spread, world.spread) for a in grid]
    if isinstance(world, KnownGaussian):
        along = w.sum(1) / math.sqrt(world.features)
        return [stats.norm.pdf(along, (a - 0.5) * world.strength) for a in grid]
    ones = ((world.rows + 2) / (1 + torch.from_numpy(-w).exp()) - 1).round().numpy()
    return [stats.binom.pmf(ones, world.rows, world.chances(a).numpy()).prod(1) for a in grid]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)
def test_the_least_error_is_that_of_the_posterior_s_median(world):
    world, each = world("x", strength=3.0), 1000
    truth = torch.tensor(GRID, dtype=torch.double).repeat_interleave(each)
    found = torch.stack([torch.from_numpy(values) for values in likelihoods(world, GRID, truth)], 1)
    median = torch.tensor(GRID)[(found.cumsum(1) / found.sum(1, keepdim=True) < 0.5).sum(1)]
    errors = (median - truth).abs()
    error = float(errors.std()) / len(errors) ** 0.5
    assert float(errors.mean()) == pytest.approx(world.optimal_error(GRID), abs=4 * error)


def test_where_worlds_are_alike_the_least_error_is_that_of_guessing():
    assert KnownGaussian("x", strength=0.0).optimal_error(GRID) == pytest.approx(0.8 / 3)


def test_regression_nearly_reaches_the_least_error_where_it_can():
    world = KnownOffset("x", strength=4.0)
    game, truth = world.proportion_game(0, GRID, shadows=32, victims=100)
    found = Proportion("p", grid=GRID).played(game, truth, world.optimal_error(GRID)).metrics
    assert found["attack/share_regression/share_of_optimum"] > 0.8
    assert found["attack/share_regression/error"] < 0.7 * found["attack/share_regression/error_floor"]


def test_regression_is_ridge_s_with_the_least_error_left_out_and_a_normal_error_of_each_share():
    world = KnownOffset("x", strength=5.0)
    game, _ = world.proportion_game(3, GRID, shadows=16, victims=40)
    own, asked = (probs.double().logit(1e-6).numpy() for probs in (game.shadow_probs, game.victim_probs))
    X, y = own - own.mean(0), game.shares.double().numpy()
    scale = math.sqrt((X**2).sum() / len(X))
    X, Z = X / scale, (asked - own.mean(0)) / scale

    def ridge(rows, shares, penalty, at):
        middle, mean = rows.mean(0), shares.mean()
        kernel = (rows - middle) @ (rows - middle).T
        return mean + (at - middle) @ (rows - middle).T @ np.linalg.solve(
            kernel + penalty * np.eye(len(rows)), shares - mean
        )

    def error(penalty):
        left = [ridge(np.delete(X, i, 0), np.delete(y, i), penalty, X[[i]])[0] for i in range(len(X))]
        return float(((np.array(left) - y) ** 2).mean())

    penalties = [0.01, 0.3, 10.0]
    best = min(penalties, key=error)
    left_out = np.zeros(len(y))
    for fitted, held in KFold(5, shuffle=True, random_state=3).split(X):
        left_out[held] = ridge(X[fitted], y[fitted], best, X[held])
    means = [left_out[y == share].mean() for share in GRID]
    spread = math.sqrt(
        np.mean([(value - means[GRID.index(share)]) ** 2 for value, share in zip(left_out, y, strict=True)])
    )
    chances = np.stack([stats.norm.pdf(ridge(X, y, best, Z), mean, spread) for mean in means], 1)
    expected = [GRID[int((np.cumsum(row / row.sum()) < 0.5).sum())] for row in chances]
    assert game.seed == 3
    assert len(set(expected)) > 1
    assert ShareRegression(penalties=penalties).run(game).tolist() == expected


@pytest.mark.parametrize("grid", [[0.1, 0.5, 0.9], [0.2, 0.8]])
def test_regression_says_the_middle_share_where_all_shadows_answer_alike(grid):
    pool = Pool([(torch.zeros(6, 1, 2), torch.zeros(6, 2))])
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    alike = ProportionGame(pool, pool, torch.tensor(grid).repeat(6 // len(grid)), query, 0)
    assert ShareRegression().run(alike).tolist() == pytest.approx([grid[(len(grid) - 1) // 2]] * 6)


def test_regression_guesses_the_mean_where_shadows_tell_nothing():
    game, truth = KnownGaussian("x", strength=0.0).proportion_game(0, GRID, shadows=16, victims=60)
    errors = (ShareRegression().run(game) - truth).abs()
    assert float(errors.mean()) == pytest.approx(0.8 / 3, abs=0.03)


@pytest.mark.parametrize("grid", [[0.1, 0.5, 0.9], [0.1, 0.9, 0.2], [0.2, 0.8]])
def test_nothing_is_removed_of_the_error_where_nothing_is_told(grid):
    least = KnownGaussian("x", strength=0.0).optimal_error(grid)
    middle = Says(*[sorted(grid)[(len(grid) - 1) // 2]] * len(grid))
    truth = torch.tensor(grid, dtype=torch.double)
    found = Proportion("p", {"it": middle}, grid=grid).played(game(), truth, least).metrics
    assert found["attack/it/error_removed"] == pytest.approx(0, abs=1e-6)
    assert "attack/it/share_of_optimum" not in found  # there is nothing to have a share of


class Says(ProportionAttack):
    """An attack with given estimates."""

    def __init__(self, *estimates):
        self.estimates = estimates

    def run(self, game):
        return torch.tensor(self.estimates, dtype=torch.double)


def game() -> ProportionGame:
    pool = Pool([(torch.zeros(3, 1, 2), torch.zeros(3, 2))])
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    return ProportionGame(pool, pool, torch.tensor(GRID), query, 0)


def test_an_error_stands_beside_that_of_the_middle_share():
    found = Proportion("p", {"it": Says(0.1, 0.5, 0.7)}, grid=GRID).played(game(), torch.tensor(GRID).double())
    assert found.metrics["attack/it/error"] == pytest.approx(0.2 / 3)
    assert found.metrics["attack/it/error_floor"] == pytest.approx(0.8 / 3)
    assert found.metrics["attack/it/error_removed"] == pytest.approx(0.75)
    assert found.metrics["attack/it/n_leaked"] == pytest.approx((0.09 + 0.25 + 0.09) / 0.04, rel=1e-5)
    assert found.described["attack/it/error_removed"].headline
    for name in ("error_removed", "n_leaked"):  # an estimate that is worse than guessing protects no better
        assert found.described[f"attack/it/{name}"].guess == found.metrics[f"attack/it/{name}_floor"]
    assert not found.described["attack/it/error"].sign
    assert "attack/it/share_of_optimum" not in found.metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": [0.5, 0.5]}, r"dimensions\.p\.grid=\[0\.5, 0\.5\]: two or more shares are needed"),
        ({"grid": [0.1, 0.9, 0.9]}, r"dimensions\.p\.grid=.*: two or more shares are needed, all different"),
        ({"grid": [0.5, 1.5]}, r"dimensions\.p\.grid"),
        ({"victims": 0}, r"dimensions\.p\.victims=0: must be at least 1"),
        ({"shadows": 1}, r"dimensions\.p\.shadows=1: attack share_regression needs 2 shadow models with each share"),
    ],
)
def test_a_game_that_cannot_be_played_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Proportion("p", **options)


@pytest.mark.parametrize("wrong", [(0.1,), (0.1, 0.2, math.nan)])
def test_what_is_no_estimate_of_every_victim_is_refused(wrong):
    with pytest.raises(InputError, match=r"dimensions\.p\.attacks\.it: run must return one finite estimate for each"):
        Proportion("p", {"it": Says(*wrong)}, grid=GRID).played(game(), torch.tensor(GRID).double())


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.8), (0.3, 0.4), (0.9, 0.5)])
def test_rows_leaked_invert_the_bound_and_never_exceed_the_rows_that_were_seen(low, high):
    p, q = sorted((low, high))
    ratio = max(p / q, (1 - q) / (1 - p))
    for n in (1, 5, 20):
        bound = (1 + math.sqrt(1 - ratio**n)) / 2
        assert leaked_by_accuracy(bound, (low, high)) == pytest.approx(n)
        assert leaked_by_accuracy(1 - bound, (high, low)) == pytest.approx(n)
        seen = range(n + 1)  # the best test on how many of n rows are of the group
        best = 0.5 + abs(stats.binom.pmf(seen, n, p) - stats.binom.pmf(seen, n, q)).sum() / 4
        assert leaked_by_accuracy(best, (low, high)) <= n + 1e-9
    assert str(leaked_by_accuracy(0.5, (low, high))) == "0.0"  # and not -0.0
    assert leaked_by_accuracy(1.0, (low, high)) == math.inf
    with pytest.raises(ValueError, match="two different ones inside"):
        leaked_by_accuracy(0.7, (0.0, 1.0))


def test_rows_leaked_of_estimates_are_the_rows_whose_frequency_is_as_exact():
    shares = torch.full((20_000,), 0.3).double()
    frequencies = torch.binomial(torch.full((20_000,), 25.0), torch.full((20_000,), 0.3)) / 25
    squared = float((frequencies - 0.3).square().mean())
    assert leaked_by_estimates(shares, squared) == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("penalties", [[], [0.0, 1.0], [1.0, math.nan], [math.inf]])
def test_penalties_that_are_no_positive_numbers_are_refused(penalties):
    with pytest.raises(InputError, match=r"share_regression\.penalties=.*: one or more numbers are needed, each"):
        ShareRegression(penalties=penalties)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_clip_outside_its_range_is_refused(clip):
    with pytest.raises(InputError, match=rf"share_regression\.clip={clip}: must lie between 0 and 0\.5"):
        ShareRegression(clip=clip)
