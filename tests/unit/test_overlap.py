"""Overlaps against set arithmetic, scipy's hypergeometric distribution and drawing at random."""

import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from fairpriv.functional.overlap import overlap


def one(first, second, numel, **options):
    return overlap({"w": torch.tensor(first).long()}, {"w": torch.tensor(second).long()}, {"w": numel}, **options)


def test_it_counts_as_sets_do():
    draw = random.Random(0)
    for _ in range(20):
        a, b = (set(draw.sample(range(60), draw.randint(1, 40))) for _ in range(2))
        found = one(sorted(a), sorted(b), 60)
        assert found.sizes == (len(a), len(b))
        assert found.shared == len(a & b)
        assert found.jaccard == pytest.approx(len(a & b) / len(a | b))


@pytest.mark.parametrize(
    ("numel", "a", "b", "level"), [(884_736, 8, 8, 0.95), (60, 20, 30, 0.95), (60, 50, 40, 0.8), (5, 5, 5, 0.95)]
)
def test_chance_in_one_matrix_is_hypergeometric(numel, a, b, level):
    found = one(range(a), range(b), numel, level=level)
    known = hypergeom(numel, a, b)
    k = np.arange(min(a, b) + 1)
    index = k / (a + b - k)
    assert found.expected == pytest.approx(float((known.pmf(k) * index).sum()), rel=1e-9)
    ends = known.ppf([(1 - level) / 2, (1 + level) / 2]).astype(int)
    assert found.interval == pytest.approx(tuple(index[ends]))


def test_a_quantile_that_is_met_exactly_is_not_skipped():
    assert one([0], [0], 40).interval == (0, 0)  # nothing is shared by chance in 39 of 40, 0.975


def test_chance_in_a_matrix_of_a_large_model():
    n, size = 45_088_768, 45_088  # 4,096 x 11,008, a thousandth
    found = one(range(size), range(size), n)
    mean, spread = size**2 / n, math.sqrt(hypergeom(n, size, size).var())
    assert found.expected == pytest.approx(mean / (2 * size - mean), rel=1e-3)
    low, high = found.interval
    assert low == pytest.approx((mean - 1.96 * spread) / (2 * size), rel=0.05)
    assert high == pytest.approx((mean + 1.96 * spread) / (2 * size), rel=0.05)


def test_chance_over_several_matrices_is_what_drawing_gives():
    sizes = {"d": (7, 7, 3), "a": (40, 6, 9), "b": (25, 0, 4), "c": (90, 20, 15)}  # of the first all are shared
    sets = [{name: torch.arange(size[side]) for name, size in sizes.items()} for side in (1, 2)]
    found = overlap(*sets, {name: size[0] for name, size in sizes.items()})
    assert found.shared == 6 + 0 + 15 + 3
    draw = np.random.default_rng(0)
    shared = sum(draw.hypergeometric(a, n - a, b, 20_000) if a else np.zeros(20_000) for n, a, b in sizes.values())
    drawn = shared / (33 + 31 - shared)
    assert found.expected == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(20_000))
    inside = float(((drawn >= found.interval[0]) & (drawn <= found.interval[1])).mean())
    assert 0.945 <= inside <= 0.99  # no more than discreteness adds


def test_random_sets_lie_in_the_interval_as_often_as_it_says():
    g = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(300):
        sets = [{name: torch.randperm(200, generator=g)[:50] for name in "ab"} for _ in range(2)]
        found = overlap(*sets, dict.fromkeys("ab", 200))
        inside += found.interval[0] <= found.jaccard <= found.interval[1]
    assert inside >= 276  # the 0.1 % quantile for a coverage of 0.95


def test_empty_sets():
    nothing = one([], [], 9)
    assert (nothing.sizes, nothing.shared) == ((0, 0), 0)
    assert all(map(math.isnan, (nothing.jaccard, nothing.expected, *nothing.interval)))
    half = one([], [1, 2], 9)
    assert (half.jaccard, half.expected, half.interval) == (0, 0, (0, 0))


def test_sets_that_do_not_fit_are_refused():
    index = torch.arange(3)
    with pytest.raises(ValueError, match="not the same"):
        overlap({"a": index}, {"b": index}, {"a": 9})
    with pytest.raises(ValueError, match="a: 3 indices of 2 entries"):
        overlap({"a": index}, {"a": index[:1]}, {"a": 2})
