"""Pools and attacks with more than two classes, against single models, plain loops, and the forms for two."""

import functools
import math

import lightning
import pytest
import torch

from fairpriv.classifiers.data.batches import ShuffledBatches, StratifiedBatches
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import MLP, Classifier, fit
from fairpriv.classifiers.nets.pool import fit_pool
from fairpriv.classifiers.nets.pool_training import Dual, Private, equalized_odds_penalties, member_seed
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gap, equalized_odds_gaps, equalized_odds_penalty
from fairpriv.functional.attacks import (
    answers,
    best_threshold,
    kl_scores,
    label_only_kl_scores,
    loss_test_scores,
    mean_kl,
    per_point_scores,
    rank_points,
    threshold_test_scores,
)

CLASSES = 4


def dataset(n, seed):
    """Four labels that follow two features, which the group shifts."""
    g = torch.Generator().manual_seed(seed)
    y, s = torch.randint(0, CLASSES, (n,), generator=g), torch.randint(0, 2, (n,), generator=g)
    X = torch.randn(n, 3, generator=g)
    X[:, 0] += 2 * (y % 2) + s
    X[:, 1] += 2 * (y // 2)
    return X, y, s


def outputs(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def labels(n, seed, most=CLASSES):
    return torch.randint(0, most, (n,), generator=torch.Generator().manual_seed(seed))


HELD_OUT = Rows(*dataset(200, 99), torch.arange(200))


VALID = {"validation": [(HELD_OUT.X, HELD_OUT.y, HELD_OUT.s)] * 3}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"penalty": 0.8, "steps_per_epoch": 3},
        {"steps_per_epoch": 3, "dual": Dual(3.0, 0.05)} | VALID,
        {"penalty": 0.8, "steps_per_epoch": 3, "patience": 1} | VALID,
    ],
    ids=lambda how: ", ".join(how),
)
def test_a_member_is_the_model_that_is_trained_alone(how):
    data = [dataset(n, seed=n) for n in (90, 150, 60)]
    common = {"epochs": 3, "batch_size": 40, "lr": 0.02, "seed": 1}
    pool = fit_pool(data, hidden=(6, 5), classes=CLASSES, accelerator="cpu", **common, **how)
    assert pool.sizes == (3, 6, 5, CLASSES)
    probs = pool.predict_proba(HELD_OUT.X)
    assert probs.shape == (3, 200, CLASSES)
    dual, steps = how.get("dual"), how.get("steps_per_epoch")
    for i, (X, y, s) in enumerate(data):
        rows, seed = Rows(X, y, s, torch.arange(len(y))), member_seed(1, i)
        torch.manual_seed(seed)
        net = MLP(3, CLASSES, hidden=[6, 5])
        driven = {"dual_rate": dual.rate, "epsilon": dual.epsilon} if dual else {"patience": how.get("patience")}
        module = Classifier(net, classes=CLASSES, lr=0.02, weight_decay=0.0, penalty=how.get("penalty", 0.0), **driven)
        batches = StratifiedBatches(rows, 40, steps, seed) if steps else ShuffledBatches(rows, 40, seed)
        trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)
        fit(module, batches, epochs=3, trainer=trainer, validation=HELD_OUT)
        assert torch.allclose(probs[i], net(HELD_OUT.X).softmax(-1), atol=1e-5)
        assert torch.allclose(pool.member(i)(HELD_OUT.X), net(HELD_OUT.X), atol=1e-4)


def test_private_members_learn_several_classes():
    X, y, _ = dataset(400, 0)
    pool = fit_pool(
        [(X, y)], hidden=[16], classes=CLASSES, epochs=10, steps_per_epoch=10, batch_size=1, lr=0.02, seed=0,
        private=Private(0.5, 1.0), accelerator="cpu",
    )  # fmt: skip
    assert (answers(pool.predict_proba(HELD_OUT.X))[0] == HELD_OUT.y).float().mean() > 0.6


def test_labels_outside_the_classes_are_refused():
    X, y, _ = dataset(50, 0)
    with pytest.raises(InputError, match=r"labels .*; they are 0 to 2"):
        fit_pool([(X, y)], classes=3, epochs=1, batch_size=8, lr=0.1, seed=0)


def test_penalties_are_the_functional_ones_member_by_member():
    probs = outputs(20, 30, CLASSES, seed=0).double().requires_grad_()
    cell = torch.randint(0, 2 * CLASSES + 1, (20, 30), generator=torch.Generator().manual_seed(1))
    cell[0], cell[1] = 2 * CLASSES, 0  # none counts; one cell alone
    ours = equalized_odds_penalties(probs, cell, 2 * CLASSES)
    (gradient,) = torch.autograd.grad(ours.sum(), probs)
    for member in range(20):
        real = cell[member] < 2 * CLASSES
        p = probs[member].detach().requires_grad_()
        theirs = equalized_odds_penalty(p[real], cell[member, real] // 2, cell[member, real] % 2)
        assert ours[member].item() == pytest.approx(theirs.item(), abs=1e-12)
        assert torch.allclose(gradient[member], torch.autograd.grad(theirs, p)[0], atol=1e-12)


@pytest.mark.parametrize("classes", [3, CLASSES])
def test_gaps_of_many_models_are_those_of_each(classes):
    preds = torch.stack([labels(300, seed, classes) for seed in range(5)])
    y, s = labels(300, 7), labels(300, 8, 3)
    y[(y == 2) & (s == 1)] = 1  # an absent cell
    gaps = equalized_odds_gaps(preds, y, s, classes=classes)
    with pytest.warns(UserWarning, match="left out"):
        expected = [float(equalized_odds_gap(p, y, s, missing="skip")) for p in preds]
    assert gaps.tolist() == pytest.approx(expected, abs=1e-12)


def test_written_out_two_classes_are_scored_as_the_probability_of_one():
    """Clipping apart, which two-class outputs far from 0 and 1 never meet."""
    p0, p1, victims = (torch.rand(m, 60, generator=torch.Generator().manual_seed(m)) * 0.9 + 0.05 for m in (9, 8, 7))
    both = [torch.stack((1 - p, p), -1) for p in (p0, p1, victims)]
    y, world = labels(60, 1, 2), labels(60, 2, 2)
    counts = [3, 20, 60]
    assert torch.equal(loss_test_scores(both[2], y, world), loss_test_scores(victims, y, world))
    assert torch.equal(threshold_test_scores(*both, y, counts), threshold_test_scores(p0, p1, victims, y, counts))
    assert torch.allclose(kl_scores(*both), kl_scores(p0, p1, victims), atol=1e-5)
    assert torch.allclose(label_only_kl_scores(*both), label_only_kl_scores(p0, p1, victims), atol=1e-5)
    y = torch.ones(60, dtype=torch.long)  # then a row's own label is 1
    assert torch.equal(per_point_scores(*both, y, counts), per_point_scores(p0, p1, victims, y, counts))


def test_per_point_thresholds_are_on_the_probability_of_the_rows_own_label():
    probs = [outputs(m, 30, CLASSES, seed=m) for m in (9, 8, 7)]
    y, counts = labels(30, 5), [2, 10, 30]
    own = [torch.stack([p[:, n, y[n]] for n in range(30)], 1) for p in probs]
    assert torch.equal(per_point_scores(*probs, y, counts), per_point_scores(*own, y, counts))


def test_points_are_ranked_by_how_often_each_class_is_predicted():
    said0, said1 = (torch.stack([labels(25, seed) for seed in range(start, start + 8)]) for start in (0, 10))

    def difference(n):
        shares = [[float((said[:, n] == c).double().mean()) for c in range(CLASSES)] for said in (said0, said1)]
        return sum(abs(a - b) for a, b in zip(*shares, strict=True))

    one_hot = [torch.nn.functional.one_hot(said, CLASSES) for said in (said0, said1)]
    assert rank_points(*one_hot).tolist() == sorted(range(25), key=lambda n: -round(difference(n), 9))


@pytest.mark.parametrize("classes", [3, CLASSES])
def test_the_threshold_test_uses_the_points_whose_classes_differ_most(classes):
    pools = [outputs(m, 30, classes, seed=m) for m in (9, 8, 7)]
    y = labels(30, 5, classes)
    said = [answers(probs) for probs in pools]
    order = rank_points(*(torch.nn.functional.one_hot(each, classes) for each in said[:2]))
    for count, scores in zip((2, 11), threshold_test_scores(*pools, y, [2, 11]).T, strict=True):
        right = [(each == y)[:, order[:count]].double().mean(1, keepdim=True) for each in said]
        threshold, direction = best_threshold(*right[:2])
        assert torch.allclose(scores, direction * (right[2][:, 0] - threshold))


def test_kl_is_the_mean_over_pairs_points_and_classes():
    shadows, victims = outputs(4, 11, CLASSES, seed=3), outputs(3, 11, CLASSES, seed=4)
    victims[0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])

    def clipped(row):
        raised = [max(float(p), 0.01) for p in row]
        return [p / sum(raised) for p in raised]

    for v, got in enumerate(mean_kl(shadows, victims, clip=0.01)):
        total = 0.0
        for m in range(4):
            for n in range(11):
                pairs = zip(clipped(shadows[m, n]), clipped(victims[v, n]), strict=True)
                total += sum(p * math.log(p / q) for p, q in pairs)
        assert float(got) == pytest.approx(total / 44)


def test_label_only_kl_sees_the_predicted_class_alone():
    shadows0, shadows1, victims = (outputs(5, 20, CLASSES, seed=seed) for seed in (1, 2, 3))
    sharper = (victims.log() * 3).softmax(-1)
    assert torch.equal(
        label_only_kl_scores(shadows0, shadows1, victims), label_only_kl_scores(shadows0, shadows1, sharper)
    )
    smoothed = torch.full_like(victims, 0.02).scatter(2, victims.argmax(-1, keepdim=True), 0.94)
    scores = label_only_kl_scores(shadows0, shadows1, victims, smoothing=0.06)
    assert torch.allclose(scores, kl_scores(shadows0, shadows1, smoothed), atol=1e-5)
