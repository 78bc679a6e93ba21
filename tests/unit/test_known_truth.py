"""Worlds of known truth: their optimum against simulated likelihood ratios, and the cell that plays attacks on them."""

import itertools
import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy import stats

from fairpriv.classifiers.attacks.attack import floor_of_leakage, guess
from fairpriv.classifiers.attacks.black_box_meta_classifier import BlackBoxMetaClassifier
from fairpriv.classifiers.attacks.kl import KL
from fairpriv.classifiers.attacks.label_only_kl import LabelOnlyKL
from fairpriv.classifiers.attacks.loss import LossTest
from fairpriv.classifiers.attacks.meta_classifier import MetaClassifier
from fairpriv.classifiers.attacks.per_point_threshold import PerPointThreshold
from fairpriv.classifiers.attacks.threshold import ThresholdTest
from fairpriv.classifiers.defenses.fair_finetune import FairFineTuning
from fairpriv.classifiers.experiment import cell_of
from fairpriv.classifiers.known_truth import KnownBernoulli, KnownGaussian, KnownOffset, KnownTruth
from fairpriv.errors import InputError
from fairpriv.result import Result
from fairpriv.undefended import Undefended

WORLDS = [KnownGaussian, KnownBernoulli, KnownOffset]
OLD = [LossTest(), ThresholdTest(), PerPointThreshold(), KL(), LabelOnlyKL()]

ROBUSTNESS = {"_target_": "fairpriv.classifiers.dimensions.robustness.Robustness"}

each_world = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)


def drawn(world, count):
    """Weights ``[M, F]`` and biases ``[M]`` of the logit, of models of world 0 and then of world 1."""
    worlds = torch.arange(2).repeat_interleave(count)
    ((W, b),) = world.models(worlds, torch.Generator().manual_seed(0)).weights
    return (W[..., 1] - W[..., 0]).double().numpy(), (b[:, 1] - b[:, 0]).double().numpy(), worlds.numpy()


def log_ratio(world, w, b):
    """Log likelihood ratio of world 1 to world 0, from the laws that the docstrings state."""
    if isinstance(world, KnownGaussian):
        mean = np.full(world.features, world.strength / 2 / math.sqrt(world.features))
        one, zero = (stats.multivariate_normal(sign * mean, np.eye(world.features)).logpdf(w) for sign in (1, -1))
        return one - zero
    if isinstance(world, KnownBernoulli):
        ones = np.round((world.rows + 2) / (1 + np.exp(-w)) - 1)
        one, zero = (stats.binom.logpmf(ones, world.rows, world.chances(b).numpy()).sum(1) for b in (1, 0))
        return one - zero
    centre = world.strength * world.spread / 2
    return stats.norm.logpdf(b, centre, world.spread) - stats.norm.logpdf(b, -centre, world.spread)


@each_world
@pytest.mark.parametrize("strength", [0.5, 2.0, 4.0])
def test_the_optimum_is_what_the_likelihood_ratio_test_reaches(world, strength):
    world, count = world("x", strength=strength), 10_000
    w, b, worlds = drawn(world, count)
    ratio = log_ratio(world, w, b)
    right = np.where(np.abs(ratio) < 1e-6, 0.5, (ratio > 0) == worlds)
    advantage, error = 2 * right.mean() - 1, 2 * right.std() / math.sqrt(2 * count)
    assert advantage == pytest.approx(world.optimal_advantage, abs=4 * error)


def test_strength_of_a_table_is_the_distance_of_its_counts_in_standard_deviations():
    world = KnownBernoulli("x", strength=1.5)
    zero, one = (world.chances(b).numpy() for b in (0, 1))
    tells = zero != one
    assert tells.sum() == world.cells / 2
    spread = math.sqrt(world.rows * (one * (1 - one))[tells].sum())
    assert world.rows * abs(one - zero).sum() / spread == pytest.approx(1.5)


@each_world
def test_strength_leads_from_nothing_to_certainty(world):
    optima = [world("x", strength=strength).optimal_advantage for strength in (0, 0.5, 1, 2, 4, 8)]
    assert optima[0] == 0
    assert all(low < high for low, high in itertools.pairwise(optima))
    assert optima[-1] > 0.999


@each_world
def test_a_game_is_drawn_by_its_seed(world):
    first, again, other = (world("x").game(seed, shadows=3, victims=2) for seed in (0, 0, 1))
    assert torch.equal(first.victim_probs, again.victim_probs)
    assert not torch.equal(first.victim_probs, other.victim_probs)
    assert first.truth.tolist() == [0, 0, 1, 1]
    assert [len(pool) for pool in first.shadows] == [3, 3]
    assert (first.query.world == 1).double().mean() == 0.5
    assert world("x").game(0, shadows=0, victims=2).shadows is None


def test_a_common_offset_escapes_all_but_the_meta_classifier_on_logits():
    world = KnownOffset("x", strength=3.0)
    optimum, victims = (1 + world.optimal_advantage) / 2, 400
    assert optimum == pytest.approx(0.933, abs=1e-3)
    games = [world.game(seed, shadows=128, victims=victims // 2) for seed in range(3)]
    for attack in OLD:
        right = sum(guess(attack, game).correct for game in games)
        assert right / (3 * victims) == pytest.approx(0.5, abs=0.08), attack.name
    quick = BlackBoxMetaClassifier(penalties=[1.0, 100.0], shrinkages=[0.01])
    right = sum(guess(quick, game).correct for game in games[:2])
    assert right / (2 * victims) > optimum - 3 * math.sqrt(optimum * (1 - optimum) / (2 * victims))


@pytest.mark.parametrize("world", [KnownGaussian, KnownBernoulli], ids=lambda world: world.__name__)
def test_kl_reaches_most_of_the_optimum_where_outputs_differ_in_the_mean(world):
    world = world("x", strength=3.0)
    results = [guess(KL(), world.game(seed, shadows=128, victims=100)) for seed in range(3)]
    assert sum(result.advantage for result in results) / 3 > 0.9 * world.optimal_advantage


@pytest.mark.parametrize(
    "attack",
    [*OLD, BlackBoxMetaClassifier(penalties=[1.0, 100.0], shrinkages=[0.01]), MetaClassifier(folds=2, epochs=3)],
    ids=lambda attack: attack.name,
)
def test_between_identical_worlds_p_values_are_uniform_and_auc_spreads_as_it_should(attack):
    world, victims, games = KnownGaussian("x", strength=0.0, asked=32), 16, 80
    results = [guess(attack, world.game(seed, shadows=8, victims=victims)) for seed in range(games)]
    assert stats.kstest([result.p_value for result in results], "uniform").pvalue > 0.01
    nominal = math.sqrt((2 * victims + 1) / (12 * victims**2))
    assert np.std([result.signed_auc for result in results]) == pytest.approx(nominal, rel=0.25)
    assert np.mean([result.leakage for result in results]) < 1.25 * floor_of_leakage(2 * victims)


def config(**game):
    kl = {"_target_": "fairpriv.classifiers.attacks.kl.KL", "name": "kl"}
    return {
        "task": "classifier",
        "seed": 0,
        "attack": {"kl": kl},
        "dimensions": {},
        "model": {"_target_": "fairpriv.classifiers.nets.classifier.MLP", "name": "mlp"},
        "game": {"shadows": 20, "victims": 10, "repeats": 3} | game,
        "training": {},
        "trainer": {"accelerator": "cpu"},
        "logger": None,
        "paths": {"root": "outputs"},
    }


def measured(world, folder, **game):
    cell = cell_of(config(**game), world, Undefended())
    assert isinstance(cell, KnownTruth)
    assert cell.digests() == {}
    result = Result("id", "completed", {}, {})
    cell.measure(result, folder, None, lambda name: nullcontext())
    return result


def test_a_cell_states_each_attacks_share_of_the_optimum(tmp_path):
    world = KnownGaussian("x", strength=4.0)
    result = measured(world, tmp_path)
    name, leakage = "attack/kl/share_of_optimum", result.metrics["attack/kl/leakage"]
    assert result.metrics["game/optimal_advantage"] == world.optimal_advantage
    assert result.metrics[name] == pytest.approx(2 * leakage / world.optimal_advantage)
    assert result.metrics[name] == pytest.approx(abs(result.signed[name][0][0]))
    low, high = result.intervals[name]
    assert low < result.metrics[name] < high
    splits = json.loads((tmp_path / result.artifacts["attacks"]).read_text())["splits"]
    assert [len(split["scores"]["kl"]) for split in splits] == [20] * 3
    assert len({tuple(split["scores"]["kl"]) for split in splits}) == 3  # games of their own
    assert result.overlap is None


def test_without_a_difference_there_is_no_share(tmp_path):
    result = measured(KnownOffset("x", strength=0.0), tmp_path, repeats=1)
    assert result.metrics["game/optimal_advantage"] == 0
    assert "attack/kl/leakage_floor" in result.metrics
    assert "attack/kl/share_of_optimum" not in result.metrics


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KnownGaussian("x", strength=-1.0), r"dataset\.strength=-1\.0"),
        (lambda: KnownGaussian("x", strength=math.inf), r"dataset\.strength=inf"),
        (lambda: KnownGaussian("x", rows=0), r"dataset\.rows=0"),
        (lambda: KnownBernoulli("x", cells=7), r"dataset\.cells=7: an even number"),
        (lambda: KnownOffset("x", spread=0.0), r"dataset\.spread=0\.0"),
        (lambda: cell_of(config() | {"attack": {}}, KnownOffset("x"), Undefended()), r"choose attack=\[\.\.\.\]"),
        (lambda: cell_of(config(), KnownOffset("x"), FairFineTuning(penalty=0.0)), r"choose defense=none"),
        (lambda: cell_of(config(victims=0), KnownOffset("x"), Undefended()), r"game\.victims=0"),
        (
            lambda: cell_of(config() | {"dimensions": {"robustness": ROBUSTNESS}}, KnownOffset("x"), Undefended()),
            r"dimension=robustness does not play on it: leave it out",
        ),
    ],
)
def test_what_cannot_be_drawn_or_played_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
