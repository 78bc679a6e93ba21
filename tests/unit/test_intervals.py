"""Intervals against scipy, published examples, and their coverage in simulation."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linprog
from scipy.stats import binomtest

from fairpriv.functional import (
    accuracy_gap_bound,
    accuracy_gap_bound_interval,
    balanced_accuracy_gap_bound,
    balanced_accuracy_gap_bound_interval,
    delta_intervals,
    effective_rows,
    equalized_odds_gap,
    equalized_odds_interval,
    label_gaps,
    mcnemar,
    mean_rate_gap_interval,
    mean_rate_interval,
    paired_rate_difference_interval,
    wilson_interval,
)
from fairpriv.functional.intervals import crossed_rate_interval, placement, range_interval, t_quantile

T = torch.float64


@pytest.mark.parametrize("degrees", [1, 2.5, 30])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_student_s_t_lies_within_its_quantile_with_the_chance_asked_for(degrees, level):
    low, high = stats.t.interval(level, degrees)
    assert t_quantile(degrees, level) == pytest.approx(high)
    assert low == pytest.approx(-high)


def rows_of(counts):
    """preds, target, groups of counts ``[Y, S, C]``."""
    cells = counts.nonzero()
    return tuple(cells.repeat_interleave(counts[tuple(cells.T)], 0)[:, column] for column in (2, 0, 1))


def draw_counts(rates, rows, trials, seed):
    """Samples of counts ``[trials, Y, S, C]``, with ``rows[y][s]`` rows a cell, from each row's own class."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(trials, *rates.shape, dtype=torch.long)
    for y, s in torch.cartesian_prod(*(torch.arange(size) for size in rates.shape[:2])).tolist():
        classes = torch.multinomial(rates[y, s].expand(trials, -1), rows[y][s], replacement=True, generator=generator)
        counts[:, y, s] = torch.nn.functional.one_hot(classes, rates.shape[2]).sum(1)
    return counts


def binary(rates):
    """``[Y, S]`` P(pred=1) -> ``[Y, S, 2]``."""
    positive = torch.tensor(rates, dtype=T)
    return torch.stack((1 - positive, positive), dim=-1)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 3), (37, 113), (5000, 20000), (0, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_interval_agrees_with_scipy(successes, n, level):
    expected = binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson_interval(successes, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_ends_exactly_at_a_rate_of_zero_or_one():
    for n in range(1, 50):  # at some of which rounding would give another number
        assert wilson_interval(0, n)[0] == 0
        assert wilson_interval(n, n)[1] == 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_what_is_no_rate(successes, n):
    with pytest.raises(ValueError, match="are no rate"):
        wilson_interval(successes, n)


def test_gap_interval_of_single_rates_is_newcombes():
    # Newcombe (1998), table II, method 10: 56/70 - 48/80, and 10/10 - 0/20 by the same rule
    assert mean_rate_gap_interval([48], [80], [56], [70]) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert mean_rate_gap_interval([56], [70], [48], [80]) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert mean_rate_gap_interval([0], [20], [10], [10]) == pytest.approx((0.6791, 1), abs=5e-5)


def test_gap_interval_that_covers_zero_starts_at_zero():
    lo, hi = mean_rate_gap_interval([50, 30], [100, 60], [52, 30], [100, 60])
    assert lo == 0
    assert 0.01 < hi < 0.2


def test_interval_of_one_rate_is_wilsons():
    assert mean_rate_interval([37], [113]) == pytest.approx(wilson_interval(37, 113), abs=1e-12)


def test_interval_of_perfect_recalls_has_a_width():
    lo, hi = mean_rate_interval([30, 10], [30, 10])
    assert hi == 1
    assert 0.8 < lo < 0.95


def test_unequal_numbers_of_rates_and_none_are_refused():
    with pytest.raises(ValueError, match="zip"):
        mean_rate_interval([1, 2], [3, 4, 5])
    with pytest.raises(ValueError, match="the mean of no rates"):
        mean_rate_interval([], [])


def test_mean_rate_intervals_cover():
    generator = torch.Generator().manual_seed(0)
    rates, n = torch.tensor([[0.93, 0.4], [0.9, 0.55]], dtype=T), torch.tensor([[300.0, 40], [150, 60]], dtype=T)
    means = rates.mean(1)
    trials = 1000
    hits = torch.binomial(n.repeat(trials, 1, 1), rates.repeat(trials, 1, 1), generator=generator).tolist()
    mean = gap = 0
    for first, second in hits:
        lo, hi = mean_rate_interval(first, n[0].tolist())
        mean += lo <= means[0] <= hi
        lo, hi = mean_rate_gap_interval(first, n[0].tolist(), second, n[1].tolist())
        gap += lo <= (means[1] - means[0]).abs() <= hi
    assert 0.93 < mean / trials < 0.98
    assert gap / trials > 0.93


@pytest.mark.parametrize(
    ("rates", "n"), [([0.5] * 30, 1), ([0.8] * 28, 5), ([0.8] * 10, 20), ([0.2, 0.5, 0.9] * 20, 3), ([0.8, 0.95], 6)]
)
def test_mean_rate_intervals_cover_many_rates_of_few_rows(rates, n):
    generator = torch.Generator().manual_seed(0)
    true, trials = torch.tensor(rates, dtype=T), 600
    hits = torch.binomial(torch.full((trials, 2, len(rates)), n, dtype=T), true.expand(trials, 2, -1), generator)
    rows, mean, gap = [n] * len(rates), 0, 0
    for first, second in hits.tolist():
        lo, hi = mean_rate_interval(first, rows)
        mean += lo <= float(true.mean()) <= hi
        assert lo - 1e-12 <= sum(first) / sum(rows) <= hi + 1e-12
        gap += mean_rate_gap_interval(first, rows, second, rows)[0] == 0
    assert mean >= 553  # 3 standard errors below 95 %
    assert gap >= 553


@pytest.mark.parametrize("only_first", [0, 1, 2, 5, 13, 200])
@pytest.mark.parametrize("only_second", [0, 1, 3, 5, 40, 1500])
def test_mcnemar_is_the_binomial_test_of_discordant_pairs(only_first, only_second):
    n = only_first + only_second
    expected = binomtest(only_first, n).pvalue if n else 1
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_refuses_a_negative_count():
    with pytest.raises(ValueError, match="-1 and 4"):
        mcnemar(-1, 4)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe (1998), method 10
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen and Laake (2014), airway reactivity
    ],
)
def test_paired_difference_interval_agrees_with_published_examples(pairs, expected):
    assert paired_rate_difference_interval(*pairs) == pytest.approx(expected, abs=5e-4)


def test_a_paired_difference_s_correlation_is_moved_towards_zero_by_half_of_the_pairs():
    both, first, second, neither = 30, 12, 4, 20  # Newcombe's method 10, from scipy's intervals of the two rates
    (a, lo_a, hi_a), (b, lo_b, hi_b) = (
        (k / 66, *binomtest(k, 66).proportion_ci(method="wilson")) for k in (both + first, both + second)
    )
    phi = (both * neither - first * second - 66 / 2) / math.sqrt(42 * 24 * 34 * 32)
    low = a - b - math.sqrt((a - lo_a) ** 2 - 2 * phi * (a - lo_a) * (hi_b - b) + (hi_b - b) ** 2)
    high = a - b + math.sqrt((hi_a - a) ** 2 - 2 * phi * (hi_a - a) * (b - lo_b) + (b - lo_b) ** 2)
    assert paired_rate_difference_interval(both, first, second, neither) == pytest.approx((low, high), abs=1e-12)


def test_paired_difference_interval_changes_sign_with_the_order_of_the_two():
    lo, hi = paired_rate_difference_interval(30, 12, 4, 20)
    assert paired_rate_difference_interval(30, 4, 12, 20) == pytest.approx((-hi, -lo), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_paired_difference_interval_has_a_width_and_stays_within_bounds(n):
    tables = [(a, b, c, n - a - b - c) for a in range(n + 1) for b in range(n + 1 - a) for c in range(n + 1 - a - b)]
    for a, b, c, d in tables:
        lo, hi = paired_rate_difference_interval(a, b, c, d)
        assert -1 <= lo <= (b - c) / n <= hi <= 1
        assert hi - lo > 0.1


@pytest.mark.parametrize(
    "probs", [(0.4, 0.1, 0.1, 0.4), (0.7, 0.15, 0.05, 0.1), (0.9, 0.06, 0.01, 0.03), (0.1, 0.3, 0.4, 0.2)]
)
@pytest.mark.parametrize("n", [30, 200])
def test_paired_difference_intervals_cover(probs, n):
    trials, p = 2000, torch.tensor(probs, dtype=T)
    draws = torch.multinomial(p.expand(trials, -1), n, replacement=True, generator=torch.Generator().manual_seed(n))
    true, covered = probs[1] - probs[2], 0
    for counts in torch.nn.functional.one_hot(draws, 4).sum(1).tolist():
        lo, hi = paired_rate_difference_interval(*counts)
        covered += lo <= true <= hi
    assert covered / trials > 0.93
    assert n < 200 or covered / trials < 0.97  # phi keeps it from being too wide


def test_paired_difference_interval_refuses_what_is_no_table():
    for pairs in ((0, 0, 0, 0), (5, -1, 2, 3)):
        with pytest.raises(ValueError, match="counts are at least 0"):
            paired_rate_difference_interval(*pairs)


@pytest.mark.parametrize(("rows", "width"), [(30, 0.29), (500, 0.07)])
def test_half_widths_at_rates_of_one_half(rows, width):
    lo, hi = equalized_odds_interval(*rows_of(torch.full((2, 2, 2), rows // 2)))
    assert lo == 0
    assert hi == pytest.approx(width, rel=0.08)


def test_no_true_gap_is_covered_at_the_nominal_rate():
    """With equal rates the lower end exceeds 0 in about 5 % of samples; that of a plain bootstrap does in all."""
    rates, rows = binary([[0.2] * 4, [0.7] * 4]), [[300, 80, 40, 60], [60, 50, 30, 20]]
    trials, positive = 200, 0
    for seed, counts in enumerate(draw_counts(rates, rows, trials, 0)):
        lo, _ = delta_intervals(counts, draws=300, seed=seed)
        positive += bool((lo > 0).any())
    assert 0.01 < positive / trials < 0.09


@pytest.mark.parametrize(
    ("rates", "rows"),
    [
        (binary([[0.5, 0.5], [0.5, 0.5]]), [[30, 30], [30, 30]]),
        (binary([[0.02, 0.05], [0.9, 0.97]]), [[300, 100], [60, 25]]),
        (binary([[0.1, 0.3], [0.6, 0.95]]), [[8, 5], [12, 6]]),
        (binary([[0.1, 0.4, 0.2], [0.6, 0.5, 0.9]]), [[200, 50, 30], [80, 20, 15]]),
        (torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.2, 0.3]]] * 2, dtype=T), [[100, 60], [40, 30]]),
    ],
)
def test_delta_intervals_cover_all_labels_and_the_gap(rates, rows):
    true = label_gaps(rates)
    trials, covered = 150, 0
    for seed, counts in enumerate(draw_counts(rates, rows, trials, 1)):
        lo, hi = delta_intervals(counts, draws=300, seed=seed)
        covered += bool((lo <= true).all() and (true <= hi).all() and lo.max() <= true.max() <= hi.max())
    assert covered / trials > 0.91


def test_a_large_gap_has_a_lower_end_near_it():
    counts = torch.tensor([[[900, 100], [300, 700]], [[200, 800], [250, 750]]])
    lo, hi = delta_intervals(counts)
    assert 0.5 < lo[0] < 0.6 < hi[0] < 0.7
    assert 0 <= lo[1] < 0.05 < hi[1] < 0.12
    assert equalized_odds_interval(*rows_of(counts)) == (lo[0].item(), hi[0].item())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("largest", [2, 40])
def test_intervals_hold_their_estimates(classes, largest):
    generator = torch.Generator().manual_seed(largest)
    for _ in range(20):
        counts = torch.randint(0, largest, (2, 3, classes), generator=generator)
        counts[..., 0] += counts.sum(-1) == 0
        rates = counts.double() / counts.sum(-1, keepdim=True)
        lo, hi = delta_intervals(counts, draws=200)
        gaps = label_gaps(rates)
        assert ((lo <= gaps + 1e-12) & (gaps <= hi + 1e-12)).all()
        assert ((lo >= 0) & (hi <= 1)).all()

        weights = -torch.rand(2, 2, 4, generator=generator, dtype=T).log()
        compositions = weights[..., :3] / weights[..., :3].sum(-1, keepdim=True)
        priors = weights[..., 3] / weights[..., 3].sum(-1, keepdim=True)
        case = (*compositions, *priors)
        lower, upper = accuracy_gap_bound_interval(counts, *case, draws=200)
        assert lower - 1e-12 <= accuracy_gap_bound(rates, *case) <= upper + 1e-12
        lower, upper = balanced_accuracy_gap_bound_interval(counts, *compositions, draws=200)
        assert lower - 1e-12 <= balanced_accuracy_gap_bound(rates, *compositions) <= upper + 1e-12


def test_rates_of_zero_and_one_do_not_give_zero_width():
    counts = torch.tensor([[[40, 0], [25, 0]], [[0, 30], [0, 60]]])
    lo, hi = delta_intervals(counts)
    assert (lo == 0).all()
    assert ((hi > 0.04) & (hi < 0.25)).all()
    perfect = torch.tensor([[[20, 0], [0, 20]]] * 2)
    lo, hi = delta_intervals(perfect)
    assert (hi == 1).all()
    assert ((lo > 0.6) & (lo < 0.98)).all()


@pytest.mark.parametrize("answer", [0, 1, 7])
def test_a_constant_model_s_interval_is_that_of_a_class_it_never_predicts(answer):
    counts = torch.tensor([[[40, 0], [25, 0]], [[30, 0], [60, 0]]])
    _, target, groups = rows_of(counts)
    lo, hi = equalized_odds_interval(torch.full_like(target, answer), target, groups)
    assert lo == 0
    assert hi == pytest.approx(float(delta_intervals(counts)[1].amax()), abs=1e-12)
    assert 0.04 < hi < 0.25
    assert torch.equal(delta_intervals(counts[..., :1])[1], delta_intervals(counts)[1])


def test_absent_cells_and_single_groups_have_no_interval_of_their_own():
    counts = torch.tensor([[[30, 10], [0, 0], [20, 20]], [[10, 30], [0, 0], [0, 0]]])
    lo, hi = delta_intervals(counts)
    assert 0 == lo[1] == hi[1]
    assert 0 <= lo[0] < 0.25 < hi[0] < 0.5
    assert equalized_odds_interval(*rows_of(torch.tensor([[[5, 5]], [[5, 5]]]))) == (0, 0)
    with pytest.raises(ValueError, match=r"\(label 1, group 2\)"):
        equalized_odds_interval(*rows_of(counts))
    with pytest.warns(UserWarning, match="left out"):
        interval = equalized_odds_interval(*rows_of(counts), missing="skip")
    assert interval[1] == pytest.approx(hi[0].item(), abs=0.03)


def test_intervals_are_determined_by_the_seed():
    counts = torch.tensor([[[30, 10], [12, 19]], [[10, 30], [5, 9]]])
    assert equalized_odds_interval(*rows_of(counts), seed=3) == equalized_odds_interval(*rows_of(counts), seed=3)
    assert equalized_odds_interval(*rows_of(counts), seed=3) != equalized_odds_interval(*rows_of(counts), seed=4)


def test_multi_class_interval_bounds_total_variation_from_both_sides():
    rates = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]], dtype=T)
    counts = (rates * 20_000).round().long()
    lo, hi = delta_intervals(counts)
    assert 0.37 < lo[0] < 0.4 < hi[0] < 0.43
    assert equalized_odds_gap(*rows_of(counts)).item() == pytest.approx(0.4)


def test_bound_interval_covers_the_true_bound():
    rates, rows = binary([[0.1, 0.3], [0.6, 0.8]]), [[200, 90], [60, 40]]
    compositions = torch.tensor([[[0.9, 0.1]] * 2, [[0.2, 0.8]] * 2], dtype=T)
    priors = torch.tensor([[0.7, 0.3], [0.5, 0.5]], dtype=T)
    plain, balanced = (
        accuracy_gap_bound(rates, *compositions, *priors),
        balanced_accuracy_gap_bound(rates, *compositions),
    )
    trials, covered = 150, 0
    for seed, counts in enumerate(draw_counts(rates, rows, trials, 2)):
        lo, hi = accuracy_gap_bound_interval(counts, *compositions, *priors, draws=300, seed=seed)
        lower, upper = balanced_accuracy_gap_bound_interval(counts, *compositions, draws=300, seed=seed)
        covered += bool(lo <= plain <= hi and lower <= balanced <= upper)
    assert covered / trials > 0.93


def test_bound_interval_moves_with_label_shift_and_vanishes_for_equal_worlds():
    counts = torch.tensor([[[950, 50], [900, 100]], [[500, 500], [480, 520]]])
    even = torch.full((2, 2), 0.5, dtype=T)
    prior0, prior1 = torch.tensor([0.9, 0.1], dtype=T), torch.tensor([0.4, 0.6], dtype=T)
    assert accuracy_gap_bound_interval(counts, even, even, prior0, prior0) == (0, 0)
    # TV 0.5 times recalls 0.925 and 0.51
    lo, hi = accuracy_gap_bound_interval(counts, even, even, prior0, prior1)
    assert 0.5 * 0.36 < lo < 0.5 * 0.415 < hi < 0.5 * 0.47


@pytest.mark.parametrize("code", [0, 1])
def test_bound_interval_of_a_constant_model_with_many_groups_holds_its_estimate(code):
    counts = torch.zeros(2, 8, 2, dtype=torch.long)
    counts[..., code] = 20
    even = torch.full((2, 8), 1 / 8, dtype=T)
    priors = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=T)
    lo, hi = accuracy_gap_bound_interval(counts, even, even, *priors)
    assert 0.4 < lo < 0.5
    assert hi == pytest.approx(0.5)


def test_bound_interval_refuses_a_cell_without_rows_that_has_weight():
    counts = torch.tensor([[[950, 50], [0, 0]], [[500, 500], [480, 520]]])
    even, pure = torch.full((2, 2), 0.5, dtype=T), torch.tensor([[1.0, 0]] * 2, dtype=T)
    prior = torch.tensor([0.5, 0.5], dtype=T)
    for compositions in ((even, pure), (pure, even)):
        with pytest.raises(ValueError, match=r"\(label 0, group 1\)"):
            accuracy_gap_bound_interval(counts, *compositions, prior, prior)
        with pytest.raises(ValueError, match=r"\(label 0, group 1\)"):
            balanced_accuracy_gap_bound_interval(counts, *compositions)


def test_range_interval_of_two_rates_is_newcombes():
    ends = [wilson_interval(48, 80), wilson_interval(56, 70)]
    assert range_interval([48 / 80, 56 / 70], ends) == pytest.approx(mean_rate_gap_interval([48], [80], [56], [70]))
    assert range_interval([0.3], [(0.1, 0.5)]) == (0, 0)
    assert range_interval([56 / 70, 48 / 80], ends[::-1]) == range_interval([48 / 80, 56 / 70], ends)


def test_an_end_on_the_wrong_side_of_its_estimate_widens_no_range():
    low, high = range_interval([0.2, 0.5], [(0.3, 0.4), (0.4, 0.6)])  # as a bootstrap's may lie
    assert (low, high) == pytest.approx((0.3 - math.hypot(0.1, 0.2), 0.3 + 0.1))


@pytest.mark.parametrize("rates", [[0.7] * 4, [0.5, 0.7, 0.8]])
def test_range_intervals_cover_zero_and_more(rates):
    generator = torch.Generator().manual_seed(0)
    hits = torch.binomial(
        torch.full((400, len(rates)), 150.0), torch.tensor(rates).expand(400, -1), generator=generator
    )
    ends = [
        range_interval([hit / 150 for hit in one], [wilson_interval(hit, 150) for hit in one]) for one in hits.tolist()
    ]
    spread = max(rates) - min(rates)
    assert sum(low <= spread <= high for low, high in ends) >= 372  # 95 % less two standard errors
    if spread:
        assert sum(low > 0 for low, _ in ends) > 390


@pytest.mark.parametrize(("of_rows", "of_models"), [(0.0, 0.0), (1.5, 0.0), (0.0, 0.4), (1.0, 0.4)])
def test_crossed_rate_intervals_cover_where_rows_or_models_differ(of_rows, of_models):
    generator = torch.Generator().manual_seed(0)

    def draw(models, rows):
        effects = of_rows * torch.randn(rows, generator=generator)
        effects = effects + of_models * torch.randn(models, 1, generator=generator)
        return torch.rand(models, rows, generator=generator) < torch.sigmoid(1 + effects)

    truth = float(draw(2000, 2000).double().mean()) if of_rows or of_models else float(torch.tensor(1.0).sigmoid())
    ends = [crossed_rate_interval(draw(8, 200)) for _ in range(300)]
    assert sum(low <= truth <= high for low, high in ends) >= 277  # 95 % less two standard errors
    assert sum(high - low for low, high in ends) / 300 < 0.3
    with pytest.raises(ValueError, match="1 models: two are needed"):
        crossed_rate_interval(draw(1, 5))


def loop_effective_rows(values, units):
    n, apart = len(values), values - values.mean(0)
    inside = [apart[units == unit] for unit in units.unique()]
    total, between = float(apart.square().sum()), sum(float(rows.sum(0).square().sum()) for rows in inside)
    within = sum(float((rows - rows.mean(0)).square().sum()) for rows in inside) / (n - len(inside))
    weighted = sum(len(rows) ** 2 for rows in inside) / n
    return n / max(between / total, 1 + (1 - within / (total / n)) * (weighted - 1))


def test_effective_rows_agree_with_a_double_loop():
    draw = torch.Generator().manual_seed(3)
    keys, units = torch.randint(3, (400,), generator=draw), torch.randint(60, (400,), generator=draw)
    values = torch.rand(400, 2, generator=draw, dtype=T) + units[:, None] % 5 / 4  # alike within a unit
    found = effective_rows(values, units, keys, 4)
    for key in range(3):
        own = keys == key
        assert found[key] == pytest.approx(loop_effective_rows(values[own], units[own]))
        assert 1 < found[key] < int(own.sum())
    assert found[3] == 0
    values, units = torch.tensor([0.5, 0.4, 0.0, 1.0, 0.45], dtype=T), torch.tensor([4, 4, 0, 1, 2])  # a single pair
    assert float(effective_rows(values, units)) == pytest.approx(loop_effective_rows(values, units))
    assert float(effective_rows(values, units)) < 5


def test_a_placement_counts_ties_half():
    values, others = torch.tensor([3.0, 1.0, 9.0, 0.0]), torch.tensor([3.0, 1.0, 3.0, 7.0, 2.0])
    won = [[(v > o) + (v == o) / 2 for o in others.tolist()] for v in values.tolist()]
    assert placement(values, others).tolist() == [pytest.approx(sum(row) / 5) for row in won]


@pytest.mark.parametrize("chance", [0.7, 0.99])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_a_crossed_interval_joins_wilson_s_of_rows_and_student_s_of_models(chance, level):
    right = (torch.rand(4, 30, generator=torch.Generator().manual_seed(2)) < chance).repeat_interleave(2, 1)
    rates = [sum(row) / 60 for row in right.tolist()]
    rate, error = sum(rates) / 4, float(np.std(rates, ddof=1)) / 2
    student = stats.t.ppf((1 + level) / 2, 3) * error
    for units, rows in ((None, 60), (torch.arange(60) // 2, 30)):
        low, high = wilson_interval(rate * rows, rows, level)
        expected = rate - math.hypot(rate - low, student), min(1, rate + math.hypot(high - rate, student))
        assert crossed_rate_interval(right, level, units) == pytest.approx(expected)
    assert crossed_rate_interval(~right, level)[0] == pytest.approx(1 - crossed_rate_interval(right, level)[1])


def test_a_crossed_interval_stays_within_zero_and_one():
    right = torch.zeros(3, 10, dtype=torch.bool)
    right[0, :4] = True
    assert crossed_rate_interval(right)[0] == 0
    assert crossed_rate_interval(~right)[1] == 1


def test_the_balanced_bound_s_ends_are_the_mean_of_the_deltas_ends_times_the_shift():
    counts = torch.tensor([[[90, 10], [30, 70]], [[20, 80], [45, 55]]])
    composition0, composition1 = torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.5, 0.5]]], dtype=T)
    ends = [(0.7 * float(end[0]) + 0.1 * float(end[1])) / 2 for end in delta_intervals(counts)]
    assert balanced_accuracy_gap_bound_interval(counts, composition0, composition1) == pytest.approx(ends)


@pytest.mark.parametrize("seed", range(4))
def test_total_variation_is_bounded_over_the_box_of_the_classes_differences(seed, monkeypatch):
    draw = np.random.default_rng(seed)
    classes, width = 4, 0.02 if seed % 2 else 0.3  # with narrow ends every sign is certain
    middle = draw.dirichlet(np.ones(classes)) - draw.dirichlet(np.ones(classes))
    low, high = (np.clip(middle + side * width * draw.random(classes), -1, 1) for side in (-1, 1))
    box = torch.from_numpy(low), torch.from_numpy(high)
    monkeypatch.setattr("fairpriv.functional.intervals._simultaneous", lambda *_: box)
    least, most = (float(end) for end in delta_intervals(torch.ones(1, 2, classes)))
    ends, zero_sum = list(zip(low, high, strict=True)), {"A_eq": np.ones((1, classes)), "b_eq": [0]}
    # the least sum of positive parts t >= d, t >= 0; the most over every set of classes that may be the positive ones
    over = np.hstack([np.eye(classes), -np.eye(classes)])
    both = {"A_eq": np.hstack([np.ones((1, classes)), np.zeros((1, classes))]), "b_eq": [0]}
    cost = np.r_[np.zeros(classes), np.ones(classes)]
    smallest = linprog(cost, over, np.zeros(classes), bounds=[*ends, *[(0, 1)] * classes], **both).fun
    largest = max(
        -linprog(-np.array(chosen), bounds=ends, **zero_sum).fun for chosen in product((0, 1), repeat=classes)
    )
    assert least == pytest.approx(smallest)
    assert most == pytest.approx(largest) if width < 0.1 else most >= largest - 1e-9


def test_rates_are_covered_where_one_unit_outweighs_the_others():
    draw = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1] * 60 + [2] * 25 + [5] * 10 + [20] * 4 + [60])
    covered = 0
    for _ in range(200):
        hits = (torch.rand(100, generator=draw) < 0.9).double().repeat_interleave(sizes)
        n = float(effective_rows(hits, torch.arange(100).repeat_interleave(sizes)))
        low, high = wilson_interval(float(hits.mean()) * n, n)
        covered += low <= 0.9 <= high
    assert covered >= 183  # of 200; the variance between units alone gives 166


def test_rows_of_their_own_are_worth_one_each_and_copies_nothing():
    hits = torch.tensor([1, 0, 1, 1, 0])
    alone = torch.tensor([7, 3, 9, 1, 4])
    assert float(effective_rows(hits, alone)) == pytest.approx(5)
    assert effective_rows(hits.float(), alone).dtype == torch.float64
    assert float(effective_rows(hits.repeat_interleave(3), alone.repeat_interleave(3))) == pytest.approx(5)
    # without any variance: Kish's (1 + 2 + 3)^2 / (1 + 4 + 9)
    assert float(effective_rows(torch.ones(6), torch.tensor([0, 1, 1, 2, 2, 2]))) == pytest.approx(36 / 14)
    # rows of a unit that differ as much as others are no copies
    assert float(effective_rows(torch.tensor([1, 0, 1, 0, 1, 0]), torch.tensor([7, 7, 7, 2, 2, 2]))) == 6
