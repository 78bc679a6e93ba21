"""HSIC against the formula of Song et al. (2012) written as plain loops, and its test against independent data."""

import math
from itertools import permutations

import pytest
import torch
from scipy.stats import binom

from fairpriv.functional import hsic, hsic_change, hsic_test


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel_by_hand(rows, kernel, bandwidth):
    """Element by element, from lists."""
    rows = rows.tolist()

    def distance(a, b):
        return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))

    if kernel == "linear":
        return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]
    if bandwidth == "median":
        pairs = sorted(distance(rows[i], rows[j]) for i in range(len(rows)) for j in range(i))
        bandwidth = pairs[(len(pairs) - 1) // 2]
    return [[math.exp(-(distance(a, b) ** 2) / (2 * bandwidth**2)) for b in rows] for a in rows]


def hsic_by_hand(x, y, kernel="rbf", bandwidth="median"):
    """The U-statistic itself: the mean over ordered quadruples (i, j, q, r) of distinct rows of its kernel."""
    k, m = (kernel_by_hand(rows, kernel, bandwidth) for rows in (x, y))
    n, total = len(k), 0.0
    for i, j, q, r in permutations(range(n), 4):
        total += k[i][j] * (m[i][j] + m[q][r] - 2 * m[i][q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize(("n", "bandwidth"), [(4, "median"), (5, 0.7), (9, "median")])
def test_it_is_the_mean_over_quadruples_of_distinct_rows(kernel, n, bandwidth):
    x = normal(n, 3, n)
    y = x[:, :2] ** 2 + normal(n, 2, n + 1)
    got = hsic(x, y, kernel=kernel, bandwidth=bandwidth)
    assert got.shape == ()
    assert float(got) == pytest.approx(hsic_by_hand(x, y, kernel, bandwidth), rel=1e-9)


def test_single_precision_integers_and_scale_make_no_difference():
    x, y = normal(12, 2, 0), normal(12, 2, 1)
    assert float(hsic(x.float(), y)) == pytest.approx(float(hsic(x, y)), rel=1e-5)
    assert float(hsic(1000 * x - 7, y / 3)) == pytest.approx(float(hsic(x, y)), rel=1e-9)
    whole = (3 * x).round()
    assert float(hsic(whole.long(), y)) == float(hsic(whole, y))


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_a_kernel_finds_as_much_far_from_the_origin(offset, kernel):
    x = normal(40, 3, 0)
    y = x[:, :2] + normal(40, 2, 1)
    (estimate, p), (same, far) = (hsic_test(x + o, y - o, kernel=kernel, permutations=200) for o in (0, offset))
    assert float(same) == pytest.approx(float(estimate), rel=1e-7)
    assert p == far == 1 / 201


def test_it_is_zero_in_the_mean_for_independent_rows_and_not_for_dependent_ones():
    independent = torch.stack([hsic(normal(12, 2, s), normal(12, 2, 999 + s)) for s in range(400)])
    error = float(independent.std()) / 20
    assert abs(float(independent.mean())) < 3.5 * error
    assert float(independent.min()) < 0  # it is no biased estimate
    dependent = torch.stack([hsic(x := normal(12, 2, s), x**2) for s in range(100)])
    assert float(dependent.mean()) > 10 * error


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_constant_rows_depend_on_nothing(kernel):
    y = normal(10, 3, 0)
    for x in (torch.zeros(10, 1), torch.full((10, 2), 1e6)):
        estimate, p = hsic_test(x, y, kernel=kernel, permutations=50)
        assert float(estimate) == pytest.approx(0, abs=1e-9 * float(x.max() ** 2 + 1))
        assert p == 1
    assert abs(float(hsic(torch.zeros(8, 1), torch.zeros(8, 2)))) < 1e-12
    # more rows, of which sums in another order round otherwise, and more permutations than are computed at a time
    for n, times in ((20, 50), (64, 1500)):
        assert hsic_test(torch.zeros(n, 1), normal(n, 3, 0), kernel=kernel, permutations=times)[1] == 1


def test_where_most_rows_coincide_the_bandwidth_is_that_of_the_others():
    x = torch.zeros(9, 1, dtype=torch.float64)
    x[0], x[1] = 3.0, -2.0
    y = normal(9, 2, 4)
    spread = 3.0  # of the distances 3 and 2, seven times each, and 5, the middle one
    one, other = (kernel_by_hand(x, "rbf", spread), kernel_by_hand(y, "rbf", "median"))
    total = sum(one[i][j] * (other[i][j] + other[q][r] - 2 * other[i][q]) for i, j, q, r in permutations(range(9), 4))
    assert float(hsic(x, y)) == pytest.approx(total / (9 * 8 * 7 * 6), rel=1e-9)


def test_distances_of_zero_count_in_the_median():
    x = normal(7, 2, 5)
    x[1:4] = x[0]
    y = normal(7, 1, 6)
    assert float(hsic(x, y)) == pytest.approx(hsic_by_hand(x, y), rel=1e-9)


def test_the_p_value_counts_permutations_that_reach_the_estimate():
    x = normal(5, 2, 3)
    y = x[:, :1] + 0.3 * normal(5, 1, 4)
    estimate, p = hsic_test(x, y, permutations=4000)
    assert float(estimate) == pytest.approx(float(hsic(x, y)), rel=1e-12)
    every = [hsic_by_hand(x, y[list(order)]) for order in permutations(range(5))]
    share = sum(value >= float(estimate) - 1e-12 for value in every) / 120
    assert p == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000) + 1 / 4001)
    assert hsic_test(x, y, permutations=4000) == (estimate, p)


def test_its_level_is_right_for_independent_rows():
    p = torch.tensor([hsic_test(normal(16, 3, s), normal(16, 2, 5000 + s), permutations=99)[1] for s in range(300)])
    for level in (0.05, 0.2, 0.5):
        low, high = binom(300, level).interval(0.999)
        assert low <= int((p <= level).sum()) <= high, level


def test_it_finds_a_dependence_that_no_correlation_shows():
    found = 0
    for seed in range(30):
        x = normal(30, 1, seed)
        found += hsic_test(x, x**2 + 0.5 * normal(30, 1, 50 + seed), permutations=99)[1] <= 0.05
    assert found >= 27
    assert hsic_test(x, x, permutations=9)[1] == 1 / 10  # as small as it can be


def test_the_change_has_the_jackknife_s_interval():
    before = (normal(7, 2, 0), normal(7, 2, 1))
    after = (before[0], before[0] + 0.5 * before[1])
    widths = []  # are held at those of all rows
    for rows in (*before, *after):
        pairs = sorted(float((rows[i] - rows[j]).norm()) for i in range(7) for j in range(i))
        widths.append(pairs[(len(pairs) - 1) // 2])

    def difference(keep):
        values = []
        for (x, y), (a, b) in zip((before, after), (widths[:2], widths[2:]), strict=True):
            scaled = (x[keep] / a, y[keep] / b)
            values.append(hsic_by_hand(*scaled, bandwidth=1.0))
        return values[1] - values[0]

    whole = difference(list(range(7)))
    without = [difference([j for j in range(7) if j != i]) for i in range(7)]
    mean = sum(without) / 7
    error = math.sqrt(6 / 7 * sum((value - mean) ** 2 for value in without))
    change, (low, high) = hsic_change(before, after)
    assert float(change) == pytest.approx(whole, rel=1e-9)
    assert (low, high) == pytest.approx((whole - 1.959964 * error, whole + 1.959964 * error), rel=1e-6)
    assert hsic_change(before, before) == (0, (0, 0))


def test_the_interval_of_the_change_covers_it():
    g = torch.Generator().manual_seed(1)

    def drawn(n):
        def noise():
            return torch.randn(n, 2, generator=g)

        common = torch.randn(n, 1, generator=g)
        return (common + noise(), common + noise()), (0.3 * common + noise(), common + noise())

    truth = sum(float(hsic_change(*drawn(300))[0]) for _ in range(20)) / 20
    ends = [hsic_change(*drawn(60))[1] for _ in range(150)]
    covered = sum(low <= truth <= high for low, high in ends)
    assert covered >= binom(150, 0.9).ppf(0.01)
    assert sum(high < 0 for _, high in ends) > 75  # and it is no wider than that


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3, 1), {}, "3 and 3 rows: .* needs four at least"),
        (torch.zeros(5, 1), torch.zeros(6, 1), {}, "5 and 6 rows: they come in pairs"),
        (torch.zeros(5), torch.zeros(5, 1), {}, r"rows are \[5\]; they must be \[n, d\]"),
        (torch.zeros(5, 1), torch.zeros(5, 0), {}, r"with d at least 1"),
        (torch.tensor([[0.0], [1.0], [torch.nan], [2.0], [4.0]]), torch.zeros(5, 1), {}, "not finite"),
        (torch.zeros(5, 1), torch.zeros(5, 1), {"kernel": "laplace"}, "kernel 'laplace' must be rbf or linear"),
        (torch.zeros(5, 1), torch.zeros(5, 1), {"bandwidth": 0.0}, "bandwidth 0.0 must be positive, or 'median'"),
        (torch.zeros(5, 1), torch.zeros(5, 1), {"bandwidth": "mean"}, "bandwidth 'mean' must be positive"),
    ],
)
def test_what_means_nothing_is_refused(x, y, options, message):
    for call in (hsic, hsic_test):
        with pytest.raises(ValueError, match=message):
            call(x, y, **options)


def test_a_change_needs_five_rows_and_as_many_before_as_after():
    four, five = torch.zeros(4, 1), torch.zeros(5, 1)
    for before, after in ((four, four), (five, four)):
        with pytest.raises(ValueError, match="five at least"):
            hsic_change((before, before), (after, after))
    assert hsic_change((five, five), (five, five))[0] == 0
