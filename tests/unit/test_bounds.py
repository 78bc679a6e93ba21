"""The accuracy-gap bound against exact populations, random cases and explicit witnesses."""

import pytest
import torch

from fairpriv.functional import (
    accuracy_gap_bound,
    balanced_accuracy_gap_bound,
    group_rates,
    label_gaps,
    label_recall,
    label_shift,
)

T = torch.float64


def dirichlet(generator, *shape):
    """Uniformly random distributions over the last dimension."""
    weights = -(1 - torch.rand(shape, generator=generator, dtype=T)).log()
    return weights / weights.sum(-1, keepdim=True)


def world(seed, labels, groups, classes):
    generator = torch.Generator().manual_seed(seed)
    return (
        dirichlet(generator, labels, groups, classes),
        dirichlet(generator, labels, groups),
        dirichlet(generator, labels, groups),
        dirichlet(generator, labels),
        dirichlet(generator, labels),
    )


def loop_recall(rates, composition):
    return [
        sum(composition[y][s].item() * rates[y][s][y].item() for s in range(rates.shape[1]))
        for y in range(rates.shape[0])
    ]


def loop_accuracy(rates, composition, prior):
    """P(prediction = label), summed over every (label, group, class) of the exact population."""
    labels, groups, classes = rates.shape
    return sum(
        prior[y].item() * composition[y][s].item() * rates[y][s][c].item()
        for y in range(labels)
        for s in range(groups)
        for c in range(classes)
        if c == y
    )


def loop_bound(rates, composition0, composition1, prior0, prior1):
    labels, groups, classes = rates.shape
    total = 0.0
    for y in range(labels):
        delta = max(
            sum(abs(rates[y][s][c].item() - rates[y][t][c].item()) for c in range(classes)) / 2
            for s in range(groups)
            for t in range(groups)
        )
        moved = sum(abs(composition0[y][s].item() - composition1[y][s].item()) for s in range(groups)) / 2
        total += prior1[y].item() * delta * moved
    recall = loop_recall(rates, composition0)
    shift = sum(abs(prior0[y].item() - prior1[y].item()) for y in range(labels)) / 2 * (max(recall) - min(recall))
    return total + shift, shift


@pytest.mark.parametrize(("labels", "groups", "classes"), [(2, 2, 2), (2, 5, 2), (3, 2, 3), (4, 3, 6), (1, 2, 2)])
@pytest.mark.parametrize("seed", range(20))
def test_bound_equals_its_formula_and_holds_on_exact_populations(seed, labels, groups, classes):
    rates, composition0, composition1, prior0, prior1 = case = world(seed, labels, groups, classes)
    expected, shift = loop_bound(*case)
    bound = accuracy_gap_bound(*case).item()
    assert bound == pytest.approx(expected, abs=1e-12)
    assert label_shift(rates, composition0, prior0, prior1).item() == pytest.approx(shift, abs=1e-12)
    gap = abs(loop_accuracy(rates, composition0, prior0) - loop_accuracy(rates, composition1, prior1))
    assert gap <= bound + 1e-12

    recalls = loop_recall(rates, composition0), loop_recall(rates, composition1)
    balanced = abs(sum(recalls[0]) - sum(recalls[1])) / labels
    balanced_bound = balanced_accuracy_gap_bound(rates, composition0, composition1).item()
    moved = (composition0 - composition1).abs().sum(-1) / 2
    assert balanced <= balanced_bound + 1e-12
    assert balanced_bound == pytest.approx((label_gaps(rates) * moved).mean().item(), abs=1e-12)
    assert balanced_bound <= (label_gaps(rates).max() * moved.max()).item() + 1e-12


def test_bound_needs_label_shift():
    """20,000 random binary cases: none breaks the bound, and without label shift many do: priors of all sorts."""
    generator = torch.Generator().manual_seed(0)
    cases = 20_000
    rates = dirichlet(generator, cases, 2, 2, 2)
    composition0, composition1 = (dirichlet(generator, cases, 2, 2) for _ in range(2))
    prior0, prior1 = (dirichlet(generator, cases, 2) for _ in range(2))
    # accuracy as an explicit sum over the cells, the same for all cases
    right = torch.stack((rates[:, 0, :, 0], rates[:, 1, :, 1]), dim=1)
    accuracy0 = (prior0[:, :, None] * composition0 * right).sum((1, 2))
    accuracy1 = (prior1[:, :, None] * composition1 * right).sum((1, 2))
    gap = (accuracy1 - accuracy0).abs()
    bound = accuracy_gap_bound(rates, composition0, composition1, prior0, prior1)
    assert bound.shape == (cases,)
    assert (gap <= bound + 1e-12).all()
    shift = label_shift(rates, composition0, prior0, prior1)
    assert (gap > bound - shift + 1e-12).double().mean() > 0.05
    coarse = label_gaps(rates).amax(-1) * (composition0 - composition1).abs().sum(-1).amax(-1) / 2
    assert (gap > coarse + 1e-12).double().mean() > 0.05  # Delta_EO * W does not bound plain accuracy either


def test_per_label_inequality_is_an_equality_for_two_groups():
    """Tightness witness: |P_1(h=1|y) - P_0(h=1|y)| = delta_y w_y for binary labels and groups."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        rates = dirichlet(generator, 2, 2, 2)
        composition0, composition1 = dirichlet(generator, 2, 2), dirichlet(generator, 2, 2)
        for y in range(2):
            positive = [
                sum(composition[y, s].item() * rates[y, s, 1].item() for s in range(2))
                for composition in (composition0, composition1)
            ]
            moved = (composition0[y] - composition1[y]).abs().sum().item() / 2
            assert abs(positive[1] - positive[0]) == pytest.approx(label_gaps(rates)[y].item() * moved, abs=1e-12)


def test_per_label_inequality_can_be_strict_for_three_groups():
    rates = torch.tensor([[[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]] * 2, dtype=T)
    composition0 = torch.tensor([[0.5, 0.0, 0.5]] * 2, dtype=T)
    composition1 = torch.tensor([[0.0, 1.0, 0.0]] * 2, dtype=T)
    assert label_recall(rates, composition0).tolist() == label_recall(rates, composition1).tolist()
    assert balanced_accuracy_gap_bound(rates, composition0, composition1) == 1


def per_label_gaps(deltas, w=0.6):
    """Witness for binary labels and groups: group 1's rate of class 1 exceeds group 0's by delta_y."""
    rates = torch.tensor([[[0.9, 0.1], [0.9 - d, 0.1 + d]] for d in deltas], dtype=T)
    composition0 = torch.tensor([[1.0, 0.0]] * 2, dtype=T)
    composition1 = torch.tensor([[1 - w, w]] * 2, dtype=T)
    torch.testing.assert_close(label_gaps(rates), torch.tensor(deltas, dtype=T))
    return (label_recall(rates, composition1) - label_recall(rates, composition0)).abs()


def test_lower_maximum_needs_delta_to_fall_at_every_label_that_attains_it():
    """Necessity witness, at fixed W and two groups: delta falls at one of two attaining labels, the maximum stays."""
    before = per_label_gaps([0.5, 0.5]).max().item()
    assert before == pytest.approx(0.3)
    assert per_label_gaps([0.1, 0.5]).max().item() == pytest.approx(before)
    assert per_label_gaps([0.5, 0.1]).max().item() == pytest.approx(before)
    assert per_label_gaps([0.4, 0.4]).max().item() < before - 0.05
    # a label that does not attain it need not fall, and may rise
    assert per_label_gaps([0.5, 0.2]).max().item() == pytest.approx(before)
    assert per_label_gaps([0.4, 0.3]).max().item() < before - 0.05


def test_pure_groups_make_the_per_label_gap_the_delta():
    rates = world(0, 2, 2, 2)[0]
    pure0, pure1 = torch.tensor([[1.0, 0.0]] * 2, dtype=T), torch.tensor([[0.0, 1.0]] * 2, dtype=T)
    gaps = (label_recall(rates, pure1) - label_recall(rates, pure0)).abs()
    torch.testing.assert_close(gaps, label_gaps(rates))


def test_many_cases_at_once_equal_them_one_by_one():
    cases = [world(seed, 3, 2, 4) for seed in range(5)]
    together = accuracy_gap_bound(*(torch.stack(part) for part in zip(*cases, strict=True)))
    torch.testing.assert_close(together, torch.stack([accuracy_gap_bound(*case) for case in cases]))


def test_same_worlds_have_bound_zero():
    rates, composition, _, prior, _ = world(0, 3, 3, 3)
    assert accuracy_gap_bound(rates, composition, composition, prior, prior) == 0


def test_absent_cell_without_weight_is_left_out():
    rates, composition0, composition1, prior0, prior1 = world(4, 2, 2, 2)
    absent = torch.full((2, 1, 2), float("nan"), dtype=T)
    nothing = torch.zeros(2, 1, dtype=T)
    wider = [torch.cat((part, nothing), dim=1) for part in (composition0, composition1)]
    bound = accuracy_gap_bound(torch.cat((rates, absent), dim=1), *wider, prior0, prior1)
    assert bound.item() == pytest.approx(
        accuracy_gap_bound(rates, composition0, composition1, prior0, prior1).item(), abs=1e-12
    )


@pytest.mark.parametrize("world_with_weight", [0, 1])
def test_absent_cell_with_weight_in_either_world_is_refused_by_name(world_with_weight):
    rates = group_rates(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    even = torch.full((2, 2), 0.5, dtype=T)
    pure = torch.tensor([[1.0, 0.0]] * 2, dtype=T)
    compositions = (even, pure) if world_with_weight == 0 else (pure, even)
    prior = torch.tensor([0.5, 0.5], dtype=T)
    with pytest.raises(ValueError, match=r"\(label 0, group 1\)"):
        accuracy_gap_bound(rates, *compositions, prior, prior)
    with pytest.raises(ValueError, match=r"\(label 0, group 1\)"):
        balanced_accuracy_gap_bound(rates, *compositions)
    assert accuracy_gap_bound(rates, pure, pure, prior, prior) == 0
    rates[0, 1, 0] = 0.5  # a rate of its other class stays unknown
    with pytest.raises(ValueError, match=r"\(label 0, group 1\)"):
        accuracy_gap_bound(rates, *compositions, prior, prior)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.ones(3, 2, 2) / 2, r"rates \[3, 2, 2\] must be \[Y, S, C\] with C >= Y"),
        (0, torch.ones(2, 2) / 2, r"rates \[2, 2\] must be \[Y, S, C\]"),
        (0, torch.ones(0, 2, 2), r"rates \[0, 2, 2\] must be \[Y, S, C\]"),
        (1, torch.ones(2, 3) / 3, r"composition \[2, 3\] must be \[2, 2\]"),
        (1, torch.tensor([[0.5, 0.5], [0.3, 0.5]]), "sum to 1"),
        (2, torch.tensor([[3, 5], [1, 9]]), "sum to 1"),
        (3, torch.tensor([1.5, -0.5]), "non-negative"),
        (4, torch.tensor([0.2, 0.3, 0.5]), r"prior \[3\] must be \[2\]"),
        (4, torch.tensor([float("nan"), 0.5]), "sum to 1"),
    ],
)
def test_what_is_no_distribution_is_refused(index, bad, message):
    case = list(world(0, 2, 2, 2))
    case[index] = bad
    with pytest.raises(ValueError, match=message):
        accuracy_gap_bound(*case)


def test_float32_and_integer_distributions_are_taken():
    rates, composition0, composition1, prior0, prior1 = world(0, 2, 3, 2)
    expected = accuracy_gap_bound(rates, composition0, composition1, prior0, prior1).item()
    single = [part.float() for part in (rates, composition0, composition1, prior0, prior1)]
    assert accuracy_gap_bound(*single).item() == pytest.approx(expected, abs=1e-5)
    pure = torch.tensor([[1, 0, 0], [0, 1, 0]])
    assert accuracy_gap_bound(rates, pure, pure, prior0, prior0).item() == 0
