"""The adversary of queries of its own making: what it makes, and how near it comes to the best there is."""

import math
from dataclasses import replace

import pytest
import torch

from fairpriv.classifiers.attacks.attack import AttackGame, Query, guess
from fairpriv.classifiers.attacks.game import playable
from fairpriv.classifiers.attacks.kl import KL
from fairpriv.classifiers.attacks.own_queries import OwnQueries
from fairpriv.classifiers.defenses.threshold_optimizer import ThresholdOptimizer
from fairpriv.classifiers.known_truth import KnownGaussian, KnownOffset
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError


def test_rows_made_tell_what_no_row_of_the_data_does():
    world = KnownOffset("x", strength=4.0)
    game = world.game(0, shadows=128, victims=50)
    assert guess(KL(), game).advantage < 0.3 * world.optimal_advantage
    assert guess(OwnQueries(), game).advantage > 0.9 * world.optimal_advantage


def test_rows_made_answer_further_apart_than_those_they_start_from_and_stay_in_range():
    game = KnownGaussian("x", strength=2.0).game(0, shadows=64, victims=1)
    X, chosen = game.query.X, torch.arange(8)
    made = OwnQueries().made(X, chosen, [pool.weights for pool in game.shadows])

    def apart(rows):
        zero, one = (pool.predict_proba(rows).double().logit() for pool in game.shadows)
        return (one.mean(0) - zero.mean(0)).square() / ((zero.var(0) + one.var(0)) / 2)

    assert made.shape == (8, X.shape[1])
    assert (made >= X.amin(0) - 1e-5).all()
    assert (made <= X.amax(0) + 1e-5).all()
    assert float(apart(made).min()) > float(apart(X[chosen]).median())


@pytest.mark.parametrize("classes", [2, 3])
def test_rows_are_moved_by_adam_along_a_cosine_within_the_range_of_each_feature(classes):
    draw = torch.Generator().manual_seed(classes)

    def drawn(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.double)

    pools = [[(drawn(m, 3, 5), drawn(m, 5)), (drawn(m, 5, classes), drawn(m, classes))] for m in (6, 4)]
    X, chosen = drawn(20, 3) * torch.tensor([1.0, 10.0, 0.0]) + 2, torch.tensor([4, 0, 7, 11])  # one is constant
    low, high = X.min(0).values, X.max(0).values

    def answers(rows, weights):
        (W, b), (V, c) = weights
        said = [((rows @ W[m] + b[m]).relu() @ V[m] + c[m]).log_softmax(1) for m in range(len(W))]
        return torch.stack(
            [s[:, 1] - s[:, 0] if classes == 2 else (s - s.mean(1, keepdim=True)).flatten() for s in said]
        )

    scale = torch.tensor([float(high[0] - low[0]), float(high[1] - low[1]), 1e-6]).double()
    rows = [X.mean(0) + i / 3 * (X[n] - X.mean(0)) for i, n in enumerate(chosen.tolist())]
    place, first, second = (torch.stack(rows) - low) / scale, 0.0, 0.0
    for step in range(1, 9):
        place.requires_grad_(True)
        zero, one = (answers(low + scale * place, weights) for weights in pools)
        apart = (one.mean(0) - zero.mean(0)) ** 2 / ((zero.var(0) + one.var(0)) / 2 + 1e-9)
        (slope,) = torch.autograd.grad(-(1e-9 + apart).log().sum(), place)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        rate = 0.3 * (1 + math.cos(math.pi * (step - 1) / 8)) / 2
        moved = rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        place = (place.detach() - moved).clamp(0, 1)
    assert ((place == 0) | (place == 1))[:, :2].any()  # the range is felt
    made = OwnQueries(steps=8, lr=0.3).made(X, chosen, pools)
    assert torch.allclose(made, low + scale * place, atol=1e-9)


def test_between_identical_worlds_rows_made_tell_nothing():
    results = [
        guess(OwnQueries(steps=10), KnownGaussian("x", strength=0.0).game(s, shadows=16, victims=60)) for s in (0, 1)
    ]
    assert sum(result.correct for result in results) / 240 == pytest.approx(0.5, abs=4 * 0.5 / 240**0.5)


class Silent(Models):
    """Members that are no networks."""

    def __len__(self):
        return 3

    def predict_proba(self, X):
        return torch.full((3, len(X)), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, r"attack\.own_queries: rows=0 and steps=60 must be 1 or more"),
        ({"lr": 0.0}, r"attack\.own_queries\.lr=0\.0: must be above 0"),
        ({"shrinkage": 0.0}, r"attack\.own_queries\.shrinkage=0\.0"),
        ({"shrinkage": 1.1}, r"attack\.own_queries\.shrinkage=1\.1"),
        ({"clip": 0.0}, r"attack\.own_queries\.clip=0\.0"),
        ({"clip": 0.5}, r"attack\.own_queries\.clip=0\.5"),
    ],
)
def test_settings_without_rows_or_steps_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        OwnQueries(**options)


def test_it_needs_shadows_that_are_networks_and_rows_of_features():
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    game = AttackGame(Silent(), (Silent(), Silent()), query, 0, torch.tensor([0, 0, 1]))
    with pytest.raises(InputError, match="own_queries needs shadows that are networks"):
        OwnQueries().run(game)
    with pytest.raises(InputError, match="own_queries needs shadow models and has 0 per world"):
        OwnQueries().run(KnownGaussian("x").game(0, shadows=0, victims=1))
    game = KnownGaussian("x").game(0, shadows=2, victims=1)
    with pytest.raises(InputError, match="own_queries makes rows of features"):
        OwnQueries().run(replace(game, query=replace(game.query, X=game.query.X.long())))


def test_it_is_left_out_only_where_shadows_pass_through_a_defence_that_leaves_no_network():
    attacks = [KL(), OwnQueries()]
    assert playable(attacks, ThresholdOptimizer()) == (attacks, {})
    left, omitted = playable(attacks, ThresholdOptimizer(), adaptive=True)
    assert [attack.name for attack in left] == ["kl"]
    assert list(omitted) == ["own_queries"]
