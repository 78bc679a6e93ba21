"""Equalized odds against fairlearn and plain loops."""

import warnings
from collections import Counter
from itertools import combinations, permutations

import pytest
import torch
from fairlearn.metrics import equalized_odds_difference

from fairpriv.functional import (
    equalized_odds_gap,
    equalized_odds_gaps,
    equalized_odds_penalty,
    group_counts,
    group_rates,
    label_gaps,
    permuted_counts,
    shift_weight,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def draw(seed, rows, labels=2, groups=2, classes=2):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, size, (rows,), generator=generator) for size in (classes, labels, groups))


def loop_gap(preds, target, groups):
    """Max over labels and pairs of groups of half the L1 distance of the prediction shares, row by row."""
    rows = list(zip(preds.tolist(), target.tolist(), groups.tolist(), strict=True))
    classes = {p for p, _, _ in rows}
    worst = 0.0
    for label in {y for _, y, _ in rows}:
        shares = []
        for group in {g for _, y, g in rows if y == label}:
            cell = [p for p, y, g in rows if y == label and g == group]
            shares.append([cell.count(c) / len(cell) for c in sorted(classes)])
        for a, b in combinations(shares, 2):
            worst = max(worst, sum(abs(x - z) for x, z in zip(a, b, strict=True)) / 2)
    return worst


def loop_penalty(vectors, target, groups):
    total = 0.0
    for label in set(target.tolist()):
        means = []
        for group in set(groups.tolist()):
            cell = [
                v
                for v, y, g in zip(vectors.tolist(), target.tolist(), groups.tolist(), strict=True)
                if (y, g) == (label, group)
            ]
            if cell:
                means.append([sum(column) / len(cell) for column in zip(*cell, strict=True)])
        pairs = [sum(abs(x - z) for x, z in zip(a, b, strict=True)) / 2 for a, b in combinations(means, 2)]
        total += max(pairs, default=0.0)
    return total


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(5))
def test_binary_gap_agrees_with_fairlearn(seed, groups):
    preds, target, sensitive = draw(seed, 400, groups=groups)
    expected = equalized_odds_difference(target.numpy(), preds.numpy(), sensitive_features=sensitive.numpy())
    assert equalized_odds_gap(preds, target, sensitive).item() == pytest.approx(expected, abs=1e-12)


def test_gap_does_not_depend_on_the_codes():
    preds, target, groups = draw(0, 300, groups=3)
    codes = torch.tensor([-7, 2, 100])
    recoded = equalized_odds_gap(preds * 9 - 4, target.bool(), codes[groups].to(torch.int32))
    assert recoded.item() == equalized_odds_gap(preds, target, groups).item() > 0


@pytest.mark.parametrize(("labels", "classes", "groups"), [(3, 3, 2), (4, 4, 3), (3, 2, 4), (2, 5, 3)])
def test_multi_class_gap_is_the_range_in_total_variation(labels, classes, groups):
    rows = draw(labels + classes, 500, labels, groups, classes)
    assert equalized_odds_gap(*rows).item() == pytest.approx(loop_gap(*rows), abs=1e-12)


def test_gap_of_a_single_group_and_of_a_constant_model_is_zero():
    preds, target, groups = draw(0, 50)
    assert equalized_odds_gap(preds, target, torch.zeros_like(groups)) == 0
    assert equalized_odds_gap(torch.ones_like(preds), target, groups) == 0


def test_empty_cell_raises_and_is_named():
    target = torch.tensor([4, 4, 6, 6])
    groups = torch.tensor([1, 9, 9, 9])
    with pytest.raises(ValueError, match=r"\(label 6, group 1\)"):
        equalized_odds_gap(target, target, groups)


def test_empty_cell_is_skipped_with_one_warning():
    preds, target, groups = draw(3, 300, groups=3)
    kept = ~((target == 1) & (groups == 2)) & ~((target == 0) & (groups == 0))
    rows = preds[kept], target[kept], groups[kept]
    with pytest.warns(UserWarning, match=r"\(label 0, group 0\), \(label 1, group 2\)") as record:
        gap = equalized_odds_gap(*rows, missing="skip")
    assert len(record) == 1
    assert gap.item() == pytest.approx(loop_gap(*rows), abs=1e-12)


def test_skip_without_empty_cells_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equalized_odds_gap(*draw(0, 100), missing="skip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y, g: (p[:0], y[:0], g[:0]), "no rows"),
        (lambda p, y, g: ([], [], []), "no rows"),
        (lambda p, y, g: (p[:3], y, g), r"preds \[3\], target \[20\]"),
        (lambda p, y, g: (p.view(4, 5), y.view(4, 5), g.view(4, 5)), "one-dimensional"),
        (lambda p, y, g: (p.float(), y, g), "preds holds torch.float32"),
        (lambda p, y, g: (p, y.double(), g), "target holds torch.float64"),
        (lambda p, y, g: (p, y, g.half()), "groups holds torch.float16"),
        (lambda p, y, g: (p.cfloat(), y, g), "preds holds torch.complex64"),
        (lambda p, y, g: (p[:, None], y, g), r"preds \[20, 1\], .* must be one-dimensional"),
        (lambda p, y, g: (p, ["a"] * 20, g), "target holds <U1, not numbers"),
    ],
)
@pytest.mark.parametrize("function", [equalized_odds_gap, group_rates])
def test_bad_rows_are_refused(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(*change(*draw(0, 20)))


def test_unknown_missing_is_refused():
    with pytest.raises(ValueError, match="missing='ignore'"):
        equalized_odds_gap(*draw(0, 20), missing="ignore")


def test_group_rates_are_shares_of_each_cell():
    preds, target, groups = draw(1, 400, labels=3, groups=2, classes=3)
    rates = group_rates(preds, target, groups)
    assert rates.shape == (3, 2, 3)
    assert rates.dtype == torch.float64
    for y in range(3):
        for s in range(2):
            cell = preds[(target == y) & (groups == s)]
            for c in range(3):
                assert rates[y, s, c].item() == (cell == c).sum().item() / len(cell)


def test_codes_of_eight_bits_are_counted_as_those_of_64_are():
    rows = draw(2, 400, labels=20, groups=20)  # more cells than a byte can number
    assert group_counts(*(column.to(torch.uint8) for column in rows)).equal(group_counts(*rows))


def test_group_rates_of_an_absent_cell_are_nan_throughout():
    rates = group_rates(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    assert rates.isnan().tolist() == [[[False] * 2, [True] * 2], [[False] * 2, [False] * 2]]


def test_group_rates_sizes():
    zero = torch.tensor([0, 0])
    assert group_rates(zero, zero, zero).shape == (1, 1, 2)
    assert group_rates(zero, zero + 2, zero).shape == (3, 1, 3)
    assert group_rates(zero, zero, zero, labels=3, group_count=4).shape == (3, 4, 3)
    assert group_rates(zero, zero, zero, classes=5).shape == (1, 1, 5)
    with pytest.raises(ValueError, match="groups holds codes 3 to 3, outside 0 to 1"):
        group_rates(zero, zero, zero + 3, group_count=2)
    with pytest.raises(ValueError, match="target holds codes -1 to -1"):
        group_rates(zero, zero - 1, zero)
    with pytest.raises(ValueError, match="classes=2 is less"):
        group_rates(zero, zero + 2, zero, classes=2)
    for code in (-1, 2):
        with pytest.raises(ValueError, match=f"preds holds codes {code} to {code}, outside 0 to 1"):
            group_rates(zero + code, zero, zero, classes=2)


@pytest.mark.parametrize(("classes", "groups"), [(2, 2), (2, 4), (3, 2), (5, 3)])
def test_label_gaps_leave_absent_cells_out(classes, groups):
    preds, target, sensitive = draw(classes, 200, 3, groups, classes)
    kept = (target != 1) | (sensitive == 0)
    preds, target, sensitive = preds[kept], target[kept], sensitive[kept]
    deltas = label_gaps(group_rates(preds, target, sensitive))
    assert deltas[1] == 0
    for y in (0, 2):
        rows = target == y
        assert deltas[y].item() == pytest.approx(loop_gap(preds[rows], target[rows], sensitive[rows]), abs=1e-12)


def test_label_gaps_leave_out_a_cell_with_one_unknown_rate():
    rates = torch.tensor([[[0.2, 0.8], [float("nan"), 0.1], [0.7, 0.3]]])
    assert label_gaps(rates).item() == pytest.approx(0.5)


@pytest.mark.parametrize(("labels", "groups", "classes"), [(2, 2, 2), (2, 5, 2), (3, 4, 3), (1, 2, 4)])
def test_penalty_is_the_sum_over_labels_of_the_range_of_means(labels, groups, classes):
    generator = torch.Generator().manual_seed(labels)
    _, target, sensitive = draw(groups, 200, labels, groups)
    probs = torch.rand(200, classes, generator=generator, dtype=torch.float64).softmax(-1)
    penalty = equalized_odds_penalty(probs, target * 3 - 1, sensitive + 8)
    assert penalty.dtype == torch.float64
    assert penalty.item() == pytest.approx(loop_penalty(probs, target, sensitive), abs=1e-12)


def test_penalty_of_positive_probabilities_equals_that_of_both_classes():
    _, target, groups = draw(0, 100, groups=3)
    one = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    both = torch.stack((1 - one, one), dim=1)
    penalties = [equalized_odds_penalty(probs, target, groups) for probs in (one, both)]
    assert penalties[0].item() == pytest.approx(penalties[1].item(), abs=1e-12)
    first, second = (torch.autograd.grad(penalty, one, retain_graph=True)[0] for penalty in penalties)
    torch.testing.assert_close(first, second)
    assert first.abs().sum() > 0


def test_penalty_of_hard_predictions_bounds_the_gap():
    preds, target, groups = draw(5, 300, groups=3)
    penalty = equalized_odds_penalty(preds.double(), target, groups).item()
    assert loop_gap(preds, target, groups) <= penalty <= 2 * loop_gap(preds, target, groups)


@pytest.mark.parametrize("columns", [None, 3])
def test_penalty_gradient_is_the_numerical_one(columns):
    _, target, groups = draw(2, 12, groups=3)
    shape = (12,) if columns is None else (12, columns)
    probs = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: equalized_odds_penalty(p, target, groups), probs)


@pytest.mark.parametrize("columns", [None, 3])
def test_absent_cell_contributes_nothing_and_no_nan(columns):
    target = torch.tensor([0, 0, 0, 0, 1, 1])
    groups = torch.tensor([0, 0, 2, 2, 1, 1])  # label 1 has group 1 alone, label 0 lacks it
    shape = (6,) if columns is None else (6, columns)
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):  # no NaN inside the backward pass either
        penalty = equalized_odds_penalty(probs, target, groups)
        penalty.backward()
    vectors = torch.stack((1 - probs, probs), 1) if columns is None else probs
    assert penalty.item() == pytest.approx(loop_penalty(vectors.detach(), target, groups), abs=1e-12)
    assert probs.grad.isfinite().all()
    assert (probs.grad[4:] == 0).all()
    assert (probs.grad[:4] != 0).any()


def test_penalty_of_a_constant_model_has_a_finite_gradient():
    _, target, groups = draw(0, 40)
    probs = torch.full((40,), 0.5, requires_grad=True)
    penalty = equalized_odds_penalty(probs, target, groups)
    penalty.backward()
    assert penalty == 0
    assert probs.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_penalty_of_no_rows_is_a_zero_with_a_graph(shape):
    probs = torch.zeros(shape, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    penalty = equalized_odds_penalty(probs, none, none)
    penalty.backward()
    assert penalty == 0
    assert probs.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_penalty_accumulates_in_float32_at_least(dtype):
    _, target, groups = draw(0, 4000)
    probs = torch.rand(4000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    penalty = equalized_odds_penalty(probs, target, groups)
    exact = equalized_odds_penalty(probs.detach().double(), target, groups)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(exact.item(), abs=1e-5)
    penalty.backward()
    assert probs.grad.dtype == dtype


def test_penalty_of_diverged_probabilities_is_nan_not_zero():
    _, target, groups = draw(0, 40)
    assert equalized_odds_penalty(torch.full((40,), float("nan")), target, groups).isnan()


def test_penalty_refuses_wrong_shapes_and_dtypes():
    _, target, groups = draw(0, 20)
    with pytest.raises(ValueError, match=r"probs \[19\]"):
        equalized_odds_penalty(torch.rand(19), target, groups)
    with pytest.raises(ValueError, match="not probabilities"):
        equalized_odds_penalty(target, target, groups)
    with pytest.raises(ValueError, match="groups holds"):
        equalized_odds_penalty(torch.rand(20), target, groups.float())
    with pytest.raises(ValueError, match=r"probs \[20, 1\] must be \[N\], or \[N, C\] with all C classes"):
        equalized_odds_penalty(torch.rand(20, 1), target, groups)  # as a network with one output gives them
    with pytest.raises(ValueError, match=r"probs \[20, 2, 2\] must be"):
        equalized_odds_penalty(torch.rand(20, 2, 2), target, groups)


def test_logits_and_a_column_a_class_are_refused_with_what_to_do():
    preds, target, groups = draw(0, 20)
    with pytest.raises(ValueError, match=r"^probs holds -2 to 3, not probabilities: softmax makes them of logits"):
        equalized_odds_penalty(torch.tensor([-2.0, 3.0] * 10), target, groups)
    with pytest.raises(ValueError, match=r"^preds holds torch.float32, not integer codes: take probs.argmax\(-1\)"):
        equalized_odds_gap(torch.rand(20, 2), target, groups)
    with pytest.raises(
        ValueError, match=r"preds \[20, 2\], .*equally long: argmax\(-1\) makes codes of a column a class"
    ):
        equalized_odds_gap(torch.eye(2, dtype=torch.long)[preds], target, groups)


def test_shift_weight_is_the_largest_total_variation_of_group_shares():
    _, target0, groups0 = draw(0, 200, labels=3, groups=4)
    _, target1, groups1 = draw(1, 150, labels=3, groups=3)
    expected = 0.0
    for y in range(3):
        cells = [groups0[target0 == y].tolist(), groups1[target1 == y].tolist()]
        shares = [[cell.count(g) / len(cell) for g in range(4)] for cell in cells]
        expected = max(expected, sum(abs(a - b) for a, b in zip(*shares, strict=True)) / 2)
    assert shift_weight(target0 * 2, groups0 - 5, target1 * 2, groups1 - 5).item() == pytest.approx(expected, abs=1e-12)


def test_shift_weight_is_one_for_pure_groups_and_zero_for_the_same_make_up():
    _, target, groups = draw(0, 100)
    assert shift_weight(target, torch.zeros_like(groups), target, torch.ones_like(groups)) == 1
    assert shift_weight(target, groups, target.repeat(2), groups.repeat(2)) == 0


@pytest.mark.parametrize(("world", "order"), [(1, 1), (0, -1)])
def test_shift_weight_names_a_label_that_a_world_lacks(world, order):
    full = torch.tensor([3, 8, 8]), torch.tensor([0, 0, 1])
    lacking = torch.tensor([3, 3]), torch.tensor([0, 1])
    worlds = [full, lacking][::order]
    with pytest.raises(ValueError, match=f"label 8 has no rows in world {world}"):
        shift_weight(*worlds[0], *worlds[1])


def test_shift_weight_refuses_bad_rows():
    target = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="no rows"):
        shift_weight(target, target, target[:0], target[:0])
    with pytest.raises(ValueError, match="there are no rows"):
        shift_weight(*[target[:0]] * 4)
    with pytest.raises(ValueError, match=r"target1 \[2\], groups1 \[1\]"):
        shift_weight(target, target, target, target[:1])


@pytest.mark.parametrize("device", DEVICES)
def test_results_stay_on_the_device(device):
    rows = [column.to(device) for column in draw(0, 100)]
    probs = torch.rand(100, device=device)
    for value in (
        equalized_odds_gap(*rows),
        group_rates(*rows),
        equalized_odds_penalty(probs, *rows[1:]),
        shift_weight(*rows[1:], *rows[1:]),
    ):
        assert value.device.type == device


@pytest.mark.parametrize("groups", [2, 4])
def test_gaps_of_many_models_are_the_gap_of_each(groups):
    g = torch.Generator().manual_seed(groups)
    preds = torch.rand(6, 300, generator=g) < torch.rand(6, 1, generator=g)
    target, s = torch.randint(0, 2, (300,), generator=g), torch.randint(0, groups, (300,), generator=g)
    expected = [float(equalized_odds_gap(row.long(), target, s)) for row in preds]
    assert equalized_odds_gaps(preds, target, s).tolist() == pytest.approx(expected, abs=1e-12)


def test_gaps_of_many_models_leave_an_absent_cell_out():
    preds = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]])
    target, s = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 1, 1])
    assert equalized_odds_gaps(preds, target, s).tolist() == [0.5, 0.5]


def test_dealt_counts_keep_their_sums_and_follow_the_permutations():
    preds, target, groups = (
        torch.tensor(column) for column in ([0, 1, 2, 2, 1, 0, 0], [0] * 5 + [1] * 2, [0, 0, 0, 1, 1, 0, 1])
    )
    counts = group_counts(preds, target, groups)
    dealt = permuted_counts(counts, draws=20_000)
    assert (dealt.sum(2) == counts.sum(1)).all()
    assert (dealt.sum(3) == counts.sum(2)).all()
    # every order of the first label's five predictions among its cells of three and two rows
    orders = list(permutations(preds[:5].tolist()))
    expected = Counter(tuple(sorted(order[:3])) for order in orders)
    found = Counter(tuple(c for c, rows in enumerate(cells) for _ in range(rows)) for cells in dealt[:, 0, 0].tolist())
    assert set(found) == set(expected)
    for cell, times in expected.items():
        share = times / len(orders)
        assert abs(found[cell] / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    assert dealt.equal(permuted_counts(counts, draws=20_000))
