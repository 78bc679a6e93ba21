"""Statistics of the attacks against slow direct computations."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from fairpriv.functional.attacks import (
    best_threshold,
    calibrate,
    kl_scores,
    label_only_kl_scores,
    loss_test_scores,
    mean_kl,
    per_point_scores,
    rank_points,
    threshold_test_scores,
)


def probabilities(*shape, seed, levels=None):
    """Random outputs; with ``levels``, so few different ones that many are equal."""
    probs = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return probs if levels is None else (probs * levels).floor() / levels


def binary(n, seed):
    return torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed))


def brute_cuts(values0, values1):
    """Every cut between different values, both ways: (balanced accuracy, width of the gap, threshold, direction)."""
    values = sorted({*values0, *values1})
    cuts = []
    for low, high in itertools.pairwise(values):
        above0 = Fraction(sum(v > low for v in values0), len(values0))
        above1 = Fraction(sum(v > low for v in values1), len(values1))
        for direction, accuracy in ((1, (1 - above0 + above1) / 2), (-1, (above0 + 1 - above1) / 2)):
            cuts.append((accuracy, high - low, (low + high) / 2, direction))
    return cuts


def brute_threshold(values0, values1):
    """Threshold and direction of the best cut, the one in the widest gap where several are best."""
    best = max(brute_cuts(values0, values1), default=(Fraction(1, 2), 0, 0.0, 0), key=lambda cut: cut[:2])
    return (best[2], best[3]) if best[0] > Fraction(1, 2) else (best[2], 0)


def brute_ranks(values0, values1):
    def difference(n):
        means = [math.fsum(row[n] for row in values) / len(values) for values in (values0, values1)]
        return abs(means[1] - means[0])

    return sorted(range(len(values0[0])), key=lambda n: -difference(n))


def test_loss_test_is_the_difference_of_two_accuracies():
    probs, y, world = probabilities(7, 41, seed=0, levels=8), binary(41, 1), binary(41, 2)
    scores = loss_test_scores(probs, y, world)
    for v in range(7):
        right = {0: [], 1: []}
        for n in range(41):
            right[int(world[n])].append((1 if probs[v, n] > 0.5 else 0) == int(y[n]))
        assert scores[v].item() == pytest.approx(sum(right[1]) / len(right[1]) - sum(right[0]) / len(right[0]))


def test_equal_accuracies_on_unequally_many_rows_are_an_exact_tie():
    probs = torch.tensor([[0.9, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1]])
    y, world = torch.ones(9, dtype=torch.long), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])
    assert loss_test_scores(probs, y, world).item() == 0  # 1 of 3 and 2 of 6


def test_points_are_ranked_by_the_difference_of_mean_answers():
    values0, values1 = probabilities(5, 30, seed=1), probabilities(8, 30, seed=2)
    assert rank_points(values0, values1).tolist() == brute_ranks(values0.tolist(), values1.tolist())


def test_equally_telling_points_stay_in_order():
    assert rank_points(torch.zeros(2, 9), torch.ones(3, 9)).tolist() == list(range(9))


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize(("M0", "M1"), [(6, 6), (5, 9), (1, 1)])
def test_best_threshold_is_the_best_of_all_cuts(M0, M1, levels):
    values0, values1 = (probabilities(M, 200, seed=M + 10 * i, levels=levels) for i, M in enumerate((M0, M1)))
    threshold, direction = best_threshold(values0, values1)
    for k in range(200):
        column0, column1 = values0[:, k].tolist(), values1[:, k].tolist()
        cuts = brute_cuts(column0, column1)
        best = max((cut[0] for cut in cuts), default=Fraction(1, 2))
        if best <= Fraction(1, 2):
            assert direction[k] == 0
            continue
        widest = max(cut[1] for cut in cuts if cut[0] == best)
        chosen = [cut for cut in cuts if cut[3] == direction[k] and cut[2] == pytest.approx(threshold[k].item())]
        assert [cut[0] for cut in chosen] == [best]
        assert chosen[0][1] == pytest.approx(widest, abs=1e-6)


def test_a_threshold_lies_between_neighbouring_floats():
    low = torch.tensor(0.3)
    high = torch.nextafter(low, torch.tensor(1.0))
    threshold, direction = best_threshold(low.view(1, 1), high.view(1, 1))
    assert low.double() < threshold.item() < high.double()
    assert direction.item() == 1


def test_columns_do_not_depend_on_one_another():
    values0, values1 = probabilities(4, 2500, seed=3), probabilities(4, 2500, seed=4)
    threshold, direction = best_threshold(values0, values1)
    for k in (0, 1023, 1024, 2499):
        alone = best_threshold(values0[:, k : k + 1], values1[:, k : k + 1])
        assert (threshold[k], direction[k]) == (alone[0].item(), alone[1].item())


def test_swapped_worlds_turn_the_direction_and_keep_the_threshold():
    values0, values1 = probabilities(6, 50, seed=5), probabilities(6, 50, seed=6)
    threshold, direction = best_threshold(values0, values1)
    swapped, turned = best_threshold(values1, values0)
    assert torch.equal(swapped, threshold)
    assert torch.equal(turned, -direction)


@pytest.mark.parametrize("levels", [None, 3])
def test_threshold_test_equals_a_double_loop(levels):
    shadows0, shadows1 = probabilities(6, 40, seed=1, levels=levels), probabilities(9, 40, seed=2, levels=levels)
    probs, y, counts = probabilities(5, 40, seed=3, levels=levels), binary(40, 4), [1, 13, 40]
    scores = threshold_test_scores(shadows0, shadows1, probs, y, counts)
    assert scores.shape == (5, 3)
    labels = [[[1 if p > 0.5 else 0 for p in row] for row in pool.tolist()] for pool in (shadows0, shadows1, probs)]
    order = brute_ranks(labels[0], labels[1])
    for f, count in enumerate(counts):
        accuracy = [[sum(row[n] == int(y[n]) for n in order[:count]) / count for row in pool] for pool in labels]
        threshold, direction = brute_threshold(accuracy[0], accuracy[1])
        for v in range(5):
            assert scores[v, f].item() == pytest.approx(direction * (accuracy[2][v] - threshold))


@pytest.mark.parametrize("levels", [None, 3])
def test_per_point_threshold_equals_a_double_loop(levels):
    shadows0, shadows1 = probabilities(6, 40, seed=1, levels=levels), probabilities(9, 40, seed=2, levels=levels)
    probs, counts = probabilities(5, 40, seed=3, levels=levels), [1, 13, 40]
    probs[0] = 0.5
    shadows0[:, 7] = shadows1[0, 7]  # nothing to cut at this point
    shadows1[:, 7] = shadows1[0, 7]
    scores = per_point_scores(shadows0, shadows1, probs, torch.empty(0), counts)
    order = brute_ranks(shadows0.tolist(), shadows1.tolist())
    for f, count in enumerate(counts):
        for v in range(5):
            votes = voters = 0
            for n in order[:count]:
                threshold, direction = brute_threshold(shadows0[:, n].tolist(), shadows1[:, n].tolist())
                distance = direction * (probs[v, n].item() - threshold)
                voters += direction != 0
                votes += (distance > 0) - (distance < 0)
            assert scores[v, f].item() == pytest.approx(votes / max(voters, 1))


def slow_kl(p, q, clip):
    p, q = (min(max(value, clip), 1 - clip) for value in (p, q))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("clip", [1e-4, 0.2])
def test_mean_kl_is_the_mean_over_all_pairs_and_points(clip):
    shadows, probs = probabilities(6, 20, seed=1, levels=5), probabilities(4, 20, seed=2, levels=5)  # zeros among them
    shadows[2, 3] = probs[:2, 4] = 1.0
    for v, got in enumerate(mean_kl(shadows, probs, clip=clip)):
        pairs = [slow_kl(p, probs[v, n].item(), clip) for row in shadows.tolist() for n, p in enumerate(row)]
        assert got.item() == pytest.approx(math.fsum(pairs) / len(pairs), rel=1e-6)


def test_kl_score_is_the_mean_difference_over_pairs_of_shadows():
    shadows0, shadows1 = probabilities(3, 20, seed=1), probabilities(5, 20, seed=2)
    probs = probabilities(4, 20, seed=3)
    for v, got in enumerate(kl_scores(shadows0, shadows1, probs, clip=1e-3)):
        divergences = [
            [
                sum(slow_kl(p, q, 1e-3) for p, q in zip(row, probs[v].tolist(), strict=True)) / 20
                for row in pool.tolist()
            ]
            for pool in (shadows0, shadows1)
        ]
        pairs = [first - second for first in divergences[0] for second in divergences[1]]
        assert got.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


def test_label_only_kl_sees_nothing_but_labels():
    shadows0, shadows1 = probabilities(3, 20, seed=1), probabilities(5, 20, seed=2)
    shadows0[0, 0], shadows1[1, 2] = 0.0, 1.0  # are clipped
    probs = probabilities(4, 20, seed=3)
    probs[0, 0] = 0.5
    labels = (probs > 0.5).float()
    got = label_only_kl_scores(shadows0, shadows1, probs, smoothing=0.05, clip=1e-3)
    assert torch.equal(got, label_only_kl_scores(shadows0, shadows1, labels, smoothing=0.05, clip=1e-3))
    for v in range(4):
        worlds = []
        for pool in (shadows0, shadows1):
            terms = [
                slow_kl(p, 0.95 if labels[v, n] else 0.05, 1e-3) for row in pool.tolist() for n, p in enumerate(row)
            ]
            worlds.append(math.fsum(terms) / len(terms))
        assert got[v].item() == pytest.approx(worlds[0] - worlds[1], rel=1e-5)


def test_a_border_lies_midway_between_the_worlds_medians():
    scores0, scores1 = torch.tensor([1.0, 100.0, 2.0, 3.0, -50.0]), torch.tensor([10.0, 12.0, 11.0, 13.0])
    assert calibrate(scores0, scores1) == (pytest.approx((2 + 11.5) / 2), 1.0)


@pytest.mark.parametrize(
    ("scores0", "scores1", "direction"),
    [
        # of six and six, AUC 1/2 less two standard errors is 0.153, between 5.5 and 6 of 36 pairs
        ([10, 11, 12, 13, 14, 15], [0, 0, 0, 0, 0, 16], 1.0),
        ([10, 11, 12, 13, 14, 15], [0, 0, 0, 0, 0, 15], -1.0),
        ([10, 10, 10, 10, 14, 14], [0, 0, 0, 0, 10, 12], 1.0),  # 4 pairs are won and 4 tied
    ],
)
def test_a_direction_is_turned_below_two_standard_errors(scores0, scores1, direction):
    assert calibrate(torch.tensor(scores0).double(), torch.tensor(scores1).double())[1] == direction


def test_a_direction_is_turned_by_evidence_and_not_by_noise():
    generator = torch.Generator().manual_seed(0)
    turned = {0.0: 0, -1.0: 0}
    for shift in turned:
        for _ in range(200):
            scores0, scores1 = torch.randn(2, 64, generator=generator)
            turned[shift] += calibrate(scores0, scores1 + shift)[1] < 0
    assert turned[0.0] <= 10  # two standard errors: 2.3 %
    assert turned[-1.0] == 200
    assert calibrate(torch.zeros(4), torch.zeros(4)) == (0.0, 1.0)
