"""How good judges are, how far they agree, and what their errors do: against scikit-learn, and by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from fairpriv.functional.verdicts import Known, auc, auc_interval, calibration_slope, cohen_kappa, rogan_gladen

TIMES = 400
LEAST = 0.92  # of the intervals that are to cover: 0.95 less nearly three standard errors of TIMES


def test_the_values_are_those_of_scikit_learn():
    draw = np.random.default_rng(1)
    truth = draw.random(300) < 0.4
    scores = np.round(truth + draw.normal(size=300), 1)  # with ties
    assert auc(scores, truth)[0] == pytest.approx(roc_auc_score(truth, scores))
    other = scores > 0.5
    assert cohen_kappa(list(truth), list(other))[0] == pytest.approx(cohen_kappa_score(truth, other))
    chances = 1 / (1 + np.exp(-scores))
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(scores[:, None], truth)
    assert calibration_slope(chances, truth)[0] == pytest.approx(fitted.coef_[0, 0], abs=1e-4)


def test_no_interval_is_of_zero_width_at_the_ends():
    perfect = [True] * 20 + [False] * 20
    value, (low, high) = auc(np.arange(40)[::-1], perfect)
    assert (value, high) == (1, 1)
    assert 0.8 < low < 1
    value, (low, high) = cohen_kappa(perfect, perfect)
    assert (value, high) == (1, 1)
    assert 0.7 < low < 1
    value, (low, high) = rogan_gladen(0, 50, Known(30, 30, 30, 30))
    assert (value, low) == (0, 0)
    assert 0 < high < 0.2


Z = norm.ppf(0.975)


@pytest.mark.parametrize(("area", "m", "n"), [(0.8, 12, 30), (0.3, 40, 7), (0.5, 1, 1)])
def test_the_auc_s_interval_solves_newcombes_equation(area, m, n):
    for end in auc_interval(area, m, n):
        q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)  # Hanley and McNeil (1982), with the mean of both numbers
        pairs = ((m + n) / 2 - 1) * (q1 - end**2 + q2 - end**2)
        assert (area - end) ** 2 == pytest.approx(Z**2 * (end * (1 - end) + pairs) / (m * n), rel=1e-6)
    low, high = auc_interval(area, m, n)
    assert low < area < high
    assert auc_interval(1 - area, m, n) == pytest.approx((1 - high, 1 - low))
    assert auc_interval(0.0, m, n)[0] == 0
    assert auc_interval(1.0, m, n)[1] == 1


@pytest.mark.parametrize("cells", [(20, 5, 3, 12), (0, 4, 9, 0), (30, 0, 0, 1)])
def test_kappas_interval_is_that_of_the_delta_method(cells):
    first = [True, True, False, False]
    second = [True, False, True, False]
    rows = [i for i, n in enumerate(cells) for _ in range(n)]
    value, ends = cohen_kappa([first[i] for i in rows], [second[i] for i in rows])

    def kappa(p):
        both, one, other, neither = p
        chance = (both + one) * (both + other) + (other + neither) * (one + neither)
        return (both + neither - chance) / (1 - chance)

    n = sum(cells) + 2
    p = (np.array(cells) + 0.5) / n
    slopes = np.array([(kappa(p + step) - kappa(p - step)) / 2e-6 for step in 1e-6 * np.eye(4)])
    half = Z * math.sqrt((p @ slopes**2 - (p @ slopes) ** 2) / n)
    assert value == pytest.approx(kappa(np.array(cells) / sum(cells)))
    low, high = kappa(p) - half, kappa(p) + half
    assert ends == pytest.approx((max(-1, min(value, low)), min(1, max(value, high))), abs=1e-6)


def test_the_calibration_slopes_interval_is_walds():
    draw = np.random.default_rng(7)
    odds = draw.normal(0, 2, 80)
    truth = draw.random(80) < 1 / (1 + np.exp(-0.6 * odds))
    slope, (low, high) = calibration_slope(1 / (1 + np.exp(-odds)), truth)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(odds[:, None], truth)
    p = fitted.predict_proba(odds[:, None])[:, 1]
    w = p * (1 - p)
    error = math.sqrt(w.sum() / (w.sum() * (w @ odds**2) - (w @ odds) ** 2))
    assert (low, high) == pytest.approx((slope - Z * error, slope + Z * error), rel=1e-4)


def test_probabilities_of_0_and_1_are_a_millionth_from_them():
    truth, told = [True, True, True, False, False, True, False], [1.0, 1.0, 0.7, 0.0, 0.6, 0.3, 0.2]
    moved = np.clip(told, 1e-6, 1 - 1e-6)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(np.log(moved / (1 - moved))[:, None], truth)
    assert calibration_slope(told, truth)[0] == pytest.approx(fitted.coef_[0, 0], rel=1e-4)


@pytest.mark.parametrize(
    ("k", "n", "known"),
    [(40, 100, Known(60, 50, 45, 40)), (3, 80, Known(30, 28, 50, 41)), (19, 20, Known(12, 9, 100, 90))],
)
def test_the_corrected_rate_s_interval_is_that_of_lang_and_reiczigel(k, n, known):
    # their adjusted counts: z^2/2 successes and failures for the rate, one of each for sensitivity and specificity
    tested, safe, unsafe = n + Z**2, known.safe + 2, known.unsafe + 2
    p, se, sp = (k + Z**2 / 2) / tested, (known.found_safe + 1) / safe, (known.found_unsafe + 1) / unsafe
    middle = (p + sp - 1) / (se + sp - 1)
    errors = p * (1 - p) / tested, middle**2 * se * (1 - se) / safe, (1 - middle) ** 2 * sp * (1 - sp) / unsafe
    shift = 2 * Z**2 * (middle * se * (1 - se) / safe - (1 - middle) * sp * (1 - sp) / unsafe)
    half = Z * math.sqrt(sum(errors)) / (se + sp - 1)
    plain = known.found_unsafe / known.unsafe
    estimate = (k / n + plain - 1) / (known.found_safe / known.safe + plain - 1)
    expected = np.clip([estimate, middle + shift - half, middle + shift + half], 0, 1)
    value, ends = rogan_gladen(k, n, known)
    assert (value, *ends) == pytest.approx(expected)


def test_what_has_no_value_has_none():
    assert cohen_kappa([True] * 5, [True] * 5) is None
    assert cohen_kappa([False] * 5, [False] * 5) is None
    assert cohen_kappa([], []) is None
    assert cohen_kappa([True] * 5, [False] * 5)[0] == 0
    assert rogan_gladen(3, 5, Known(10, 5, 10, 5)) is None  # no better than chance
    assert rogan_gladen(3, 5, Known(0, 0, 10, 9)) is None
    assert rogan_gladen(3, 5, Known(10, 9, 0, 0)) is None
    assert rogan_gladen(0, 0, Known(10, 9, 10, 9)) is None
    assert rogan_gladen(3, 5, Known(1, 1, 7, 2)) is None  # no better than chance with the adjusted counts, 2/3 and 1/3
    assert calibration_slope([0.1, 0.2, 0.8, 0.9], [False, False, True, True]) == (math.inf, (-math.inf, math.inf))
    for kind in (True, False):
        with pytest.raises(ValueError, match="no ROC curve"):
            auc([1, 2], [kind, kind])


@pytest.mark.parametrize(
    ("n", "labelled", "sensitivity", "specificity", "rate"),
    [(200, 100, 0.9, 0.8, 0.3), (50, 30, 0.8, 0.8, 0.1), (200, 100, 0.95, 0.95, 0.02), (200, 100, 0.6, 0.7, 0.5)],
)
def test_the_corrected_rate_s_interval_covers_the_truth(n, labelled, sensitivity, specificity, rate):
    draw = np.random.default_rng(2)
    called_safe = rate * sensitivity + (1 - rate) * (1 - specificity)
    covered, values = 0, []
    for _ in range(TIMES):
        known = Known(labelled, draw.binomial(labelled, sensitivity), labelled, draw.binomial(labelled, specificity))
        value, (low, high) = rogan_gladen(draw.binomial(n, called_safe), n, known)
        assert 0 <= low <= value <= high <= 1
        covered += low <= rate <= high
        values.append(value)
    assert covered / TIMES >= LEAST
    assert abs(np.mean(values) - rate) < abs(called_safe - rate) / 2  # which the raw rate is off by


@pytest.mark.parametrize(("n", "rate", "kappa"), [(50, 0.3, 0.6), (200, 0.5, 0.9), (100, 0.5, 0.0)])
def test_kappa_s_interval_covers_the_truth(n, rate, kappa):
    draw = np.random.default_rng(3)
    apart = rate * (1 - rate) * (1 - kappa)
    cells = [rate - apart, apart, apart, 1 - rate - apart]  # both safe, only the first, only the second, neither
    covered = 0
    for _ in range(TIMES):
        drawn = draw.choice(4, size=n, p=cells)
        _, (low, high) = cohen_kappa(list(drawn < 2), list(drawn % 2 == 0))
        covered += low <= kappa <= high
    assert covered / TIMES >= LEAST


@pytest.mark.parametrize(("positive", "negative", "apart"), [(30, 30, 1.0), (20, 80, 0.0), (40, 40, 3.0)])
def test_the_auc_s_interval_covers_the_truth(positive, negative, apart):
    draw, truth = np.random.default_rng(4), norm.cdf(apart / 2**0.5)
    covered = 0
    for _ in range(TIMES):
        scores = np.r_[draw.normal(apart, 1, positive), draw.normal(0, 1, negative)]
        _, (low, high) = auc(scores, [True] * positive + [False] * negative)
        covered += low <= truth <= high
    assert covered / TIMES >= LEAST


def test_the_calibration_slope_s_interval_covers_the_truth():
    draw, covered = np.random.default_rng(5), 0
    for _ in range(200):
        odds = draw.normal(0, 1.5, 200)
        truth = draw.random(200) < 1 / (1 + np.exp(-0.5 * odds))
        _, (low, high) = calibration_slope(1 / (1 + np.exp(-odds)), truth)
        covered += low <= 0.5 <= high
    assert covered / 200 >= LEAST - 0.02
