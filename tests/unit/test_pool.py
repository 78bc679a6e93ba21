"""Pools against the single-model path, torch's own AdamW and the functional penalty, member by member."""

import functools
import itertools
import logging
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch

from fairpriv.classifiers.data.batches import ShuffledBatches, StratifiedBatches
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets import pool_training
from fairpriv.classifiers.nets.classifier import MLP, Classifier, fit
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.classifiers.nets.pool_training import (
    Dual,
    PoolAdamW,
    Private,
    equalized_odds_penalties,
    member_seed,
    penalties_and_slopes,
)
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gap, equalized_odds_gaps, equalized_odds_penalty
from fairpriv.store import Store

HOW = {"hidden": (8, 4), "epochs": 3, "batch_size": 32, "lr": 0.01, "seed": 3, "accelerator": "cpu"}
PENALISED = {"penalty": 0.7, "steps_per_epoch": 4}
# A hundredth of a step of Adam, which enlarges rounding: another batch, order or loss moves a weight further.
ROUNDING = 0.01 * HOW["lr"]


def dataset(n: int, seed: int, groups: int = 2, features: int = 5):
    """Labels that follow x0, and x1 that tells the group."""
    g = torch.Generator().manual_seed(seed)
    s = torch.randint(0, groups, (n,), generator=g)
    y = (torch.rand(n, generator=g) < 0.3 + 0.4 * (s == 0)).long()
    X = torch.randn(n, features, generator=g)
    X[:, 0] += y
    X[:, 1] = s + X[:, 1] / 10
    return X, y, s


UNEVEN = [dataset(n, seed=n) for n in (100, 230, 20, 64, 130)]
HELD_OUT = [dataset(n, seed=9 + n) for n in (300, 250, 40, 300, 120)]
DUAL = {"dual": Dual(rate=4.0, epsilon=0.05), "validation": HELD_OUT, "epochs": 6, "lr": 0.02}
STOPPING = {"validation": HELD_OUT, "patience": 1, "epochs": 8, "lr": 0.03}


def largest_difference(a: Pool, b: Pool) -> float:
    assert len(a) == len(b)
    return max(
        float((p - q).abs().max()) for x, y in zip(a.weights, b.weights, strict=True) for p, q in zip(x, y, strict=True)
    )


def same(a: Pool, b: Pool) -> bool:
    return largest_difference(a, b) == 0 and a.diverged == b.diverged


def single(
    data,
    i: int,
    *,
    hidden,
    epochs,
    batch_size,
    lr,
    seed,
    penalty=0.0,
    weight_decay=0.0,
    smoothing=0.0,
    steps_per_epoch=None,
    dual=None,
    validation=None,
    patience=None,
    net=None,
    **_,
):
    """The member as ``classifier.fit`` trains it."""
    rows = Rows(*data, torch.arange(len(data[1])))
    torch.manual_seed(member_seed(seed, i))
    net = net or MLP(rows.X.shape[1], 2, hidden=list(hidden))
    driven = {"dual_rate": dual.rate, "epsilon": dual.epsilon} if dual else {}
    more = driven | {"smoothing": smoothing}
    module = Classifier(net, classes=2, lr=lr, weight_decay=weight_decay, penalty=penalty, patience=patience, **more)
    if steps_per_epoch is None:
        batches = ShuffledBatches(rows, batch_size, member_seed(seed, i))
    else:
        batches = StratifiedBatches(rows, batch_size, steps_per_epoch, member_seed(seed, i))
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)
    held_out = Rows(*validation[i], torch.arange(len(validation[i][1]))) if validation else rows
    fit(module, batches, epochs=epochs, trainer=trainer, validation=held_out)
    return module


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"weight_decay": 0.3, "penalty": 0.7},
        {"batch_size": 500},
        {"batch_size": 150, "penalty": 0.7},
        PENALISED,
        {"steps_per_epoch": 5, "batch_size": 90},
        {"steps_per_epoch": 5, "batch_size": 500, "penalty": 0.7, "weight_decay": 0.1},
        {"hidden": (), "smoothing": 0.4},
        DUAL,
        DUAL | {"steps_per_epoch": 4, "penalty": 0.5},
        DUAL | {"steps_per_epoch": 4, "batch_size": 500, "weight_decay": 0.1},
        STOPPING,
        STOPPING | {"penalty": 0.7, "patience": 2},
        STOPPING | {"steps_per_epoch": 4, "batch_size": 500, "penalty": 0.7},
    ],
    ids=lambda how: ", ".join(how),
)
def test_every_member_is_the_model_that_the_single_path_trains(how):
    how = HOW | how
    fitted = fit_pool(UNEVEN, **how)
    modules = [single(data, i, **how) for i, data in enumerate(UNEVEN)]
    alone = Pool.of([module.net for module in modules])
    assert fitted.told["epoch"] == [module.epoch for module in modules]
    assert fitted.told["lambda"] == pytest.approx([module.penalty for module in modules], abs=1e-4)
    if "dual" not in how:
        assert set(fitted.told["lambda"]) == {how.get("penalty", 0.0)}  # as it is asked for, and not as float32 has it
    if "patience" in how:
        assert len(set(fitted.told["epoch"])) > 1
        assert min(fitted.told["epoch"]) < how["epochs"]
    assert largest_difference(fitted, alone) < ROUNDING
    assert largest_difference(fitted, fit_pool(UNEVEN, **(how | {"lr": 1e-9}))) > 0.01  # it did learn
    if "dual" in how:
        free = fit_pool(UNEVEN, **how | {"dual": None})
        assert all(largest_difference(fitted[i], free[i]) > 0.01 for i in range(5))


def test_a_pool_says_nothing_of_trainers(caplog):
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.addHandler(caplog.handler)
    log.setLevel(logging.INFO)
    try:
        fit_pool(UNEVEN, **HOW | {"epochs": 1})
    finally:
        log.removeHandler(caplog.handler)
        log.setLevel(level)
    assert caplog.records == []


@pytest.mark.parametrize(
    "how",
    [{}, PENALISED, PENALISED | {"batch_size": 500}, DUAL, DUAL | PENALISED],
    ids=["shuffled", "stratified", "whole", "dual shuffled", "dual stratified"],
)
def test_training_one_after_another_gives_the_same_members(how):
    how = HOW | how | {"penalty": 0.7, "weight_decay": 0.01}
    initial = fit_pool(UNEVEN, **HOW)
    for start in (None, initial):
        together, apart = (fit_pool(UNEVEN, **how, initial=start, vectorized=v) for v in (True, False))
        assert largest_difference(together, apart) < ROUNDING
    assert largest_difference(together, initial) > 0.01


def test_fine_tuning_starts_from_the_initial_pool_and_leaves_it_as_it_was():
    initial = fit_pool(UNEVEN, **HOW)
    before = [(W.clone(), b.clone()) for W, b in initial.weights]
    tuned = fit_pool(UNEVEN, **HOW | PENALISED, initial=initial)
    alone = [single(data, i, **HOW | PENALISED, net=initial.member(i).train()).net for i, data in enumerate(UNEVEN)]
    assert largest_difference(tuned, Pool.of(alone)) < ROUNDING
    assert same(initial, Pool(before))


@pytest.mark.parametrize(
    "how", [{}, PENALISED, DUAL, STOPPING], ids=["shuffled", "stratified", "dual", "early stopping"]
)
def test_a_member_does_not_depend_on_the_others(how):
    own = {"validation": HELD_OUT[:3]} if "validation" in how else {}
    five, three = fit_pool(UNEVEN, **HOW | how), fit_pool(UNEVEN[:3], **HOW | how | own)
    assert largest_difference(five[:3], three) < ROUNDING


def test_members_on_the_same_data_differ_and_seeds_do_not_overlap():
    first, second = (fit_pool([UNEVEN[0]] * 3, **HOW | {"seed": seed}) for seed in (0, 1))
    probs = torch.cat([first.predict_proba(UNEVEN[1][0]), second.predict_proba(UNEVEN[1][0])])
    assert (torch.cdist(probs, probs) + torch.eye(6)).min() > 0.01


@pytest.mark.parametrize(
    "how",
    [{}, {"batch_size": 500}, {"batch_size": 500, "steps_per_epoch": 3, "penalty": 0.7}],
    ids=["batches", "whole", "whole, stratified"],
)
def test_every_member_takes_its_own_number_of_epochs(how):
    epochs, how = [2, 7, 4, 1, 7], HOW | how
    fitted = fit_pool(UNEVEN, **how | {"epochs": epochs})
    alone = [single(data, i, **how | {"epochs": epochs[i]}).net for i, data in enumerate(UNEVEN)]
    assert fitted.told["epoch"] == epochs
    assert largest_difference(fitted, Pool.of(alone)) < ROUNDING


def test_members_in_several_blocks_are_the_same(monkeypatch):
    more = ({}, PENALISED, {"batch_size": 500}, DUAL, STOPPING, STOPPING | {"batch_size": 500, "lr": 0.1})
    for how in (HOW | each for each in more):
        whole = fit_pool(UNEVEN, **how)
        with monkeypatch.context() as patch:
            patch.setitem(pool_training.BLOCK, "cpu", 4 * 8 * min(how["batch_size"], 230))
            assert largest_difference(whole, fit_pool(UNEVEN, **how)) < ROUNDING


@pytest.mark.parametrize("how", [STOPPING, STOPPING | PENALISED, DUAL | {"steps_per_epoch": 4}])
def test_validation_rows_that_all_members_share_are_held_once_and_decide_as_copies_do(monkeypatch, how):
    held = []
    made = pool_training.HeldOut.__init__

    def watched(self, members):
        made(self, members)
        held.append(self.X.untyped_storage().nbytes())

    monkeypatch.setattr(pool_training.HeldOut, "__init__", watched)
    rows = HELD_OUT[0]
    shared = fit_pool(UNEVEN, **HOW | how | {"validation": [rows] * 5})
    copies = fit_pool(UNEVEN, **HOW | how | {"validation": [tuple(part.clone() for part in rows) for _ in UNEVEN]})
    assert held == [rows[0].nbytes, 5 * rows[0].nbytes]
    assert len(set(shared.told["epoch"])) > 1
    assert shared.told == copies.told
    assert largest_difference(shared, copies) < ROUNDING


def test_members_that_have_stopped_cost_no_gradients(monkeypatch):
    counts = []
    gradients = pool_training.PoolClassifier._gradients

    def watched(self, block, *rest):
        counts.append(len(block.members))
        return gradients(self, block, *rest)

    monkeypatch.setattr(pool_training.PoolClassifier, "_gradients", watched)
    for batch_size in (32, 4096):  # batches of some rows, and of all
        counts.clear()
        data, held_out = [dataset(150 + i, i) for i in range(6)], [dataset(20, 10 + i) for i in range(6)]
        how = HOW | {"epochs": 30, "patience": 1, "validation": held_out, "batch_size": batch_size, "lr": 0.1}
        pool = fit_pool(data, **how)
        assert len(set(pool.told["epoch"])) > 1
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < 6
        one_by_one = fit_pool(data, **how, vectorized=False)
        assert pool.told == one_by_one.told
        assert largest_difference(pool, one_by_one) < ROUNDING


def test_a_finished_member_stays_bit_for_bit_what_it_was(monkeypatch):
    history = []
    advance = PoolAdamW.advance

    def watched(self, own):
        advance(self, own)
        (group,) = self.param_groups
        tensors = [t for p in group["params"] for t in (p, self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"])]
        history.append([t[-1].clone() for t in tensors] + [self.steps[-1].clone()])

    monkeypatch.setattr(PoolAdamW, "advance", watched)
    fit_pool([dataset(200, 0), dataset(40, 1)], **HOW | {"weight_decay": 0.5})
    assert len(history) == 3 * 7
    changed = [any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in itertools.pairwise(history)]
    assert changed == [True] * 5 + [False] * 15  # 3 epochs of 2 batches
    assert int(history[-1][-1]) == 6


def test_adamw_is_torchs_for_every_member_with_its_own_number_of_steps():
    g = torch.Generator().manual_seed(0)
    stacked = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((4, 3, 2), (4, 2))]
    numbers = [5, 5, 3, 1]  # steps of each member; member 1 is frozen after two
    gradients = [[torch.randn(p.shape, generator=g, dtype=torch.float64) for p in stacked] for _ in range(5)]
    params = [torch.nn.Parameter(p.clone()) for p in stacked]
    ours = PoolAdamW(params, lr=0.1, weight_decay=0.2)
    for step, gradient in enumerate(gradients):
        ours.frozen[1] = step >= 2
        for p, value in zip(params, gradient, strict=True):
            p.grad = value.clone()
            p.grad[1] += torch.nan if step >= 2 else 0
        ours.advance(ours.of(slice(sum(n > step for n in numbers))))
    numbers[1] = 2
    assert ours.steps.tolist() == numbers
    for member, number in enumerate(numbers):
        alone = [torch.nn.Parameter(p[member].clone()) for p in stacked]
        theirs = torch.optim.AdamW(alone, lr=0.1, weight_decay=0.2)
        for gradient in gradients[:number]:
            for p, value in zip(alone, gradient, strict=True):
                p.grad = value[member].clone()
            theirs.step()
        for p, q in zip(params, alone, strict=True):
            assert torch.allclose(p[member], q, rtol=0, atol=1e-12)
            for name in ("exp_avg", "exp_avg_sq"):
                assert torch.allclose(ours.state[p][name][member], theirs.state[q][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_penalties_and_their_gradients_are_the_functional_ones_member_by_member(groups):
    g = torch.Generator().manual_seed(groups)
    probs = torch.rand(60, 9, generator=g, dtype=torch.float64).requires_grad_()
    cell = torch.randint(0, 2 * groups + 1, (60, 9), generator=g)  # 2 * groups: a row that does not count
    cell[0] = 2 * groups  # none counts
    cell[1] = 0  # one label, one group
    ours = equalized_odds_penalties(probs, cell, 2 * groups)
    (gradient,) = torch.autograd.grad(ours.sum(), probs)
    same, slopes = penalties_and_slopes(probs.detach(), cell, 2 * groups)
    assert torch.equal(same, ours)
    assert torch.allclose(slopes[cell < 2 * groups], gradient[cell < 2 * groups], rtol=0, atol=1e-12)
    for member in range(60):
        real = cell[member] < 2 * groups
        p = probs[member].detach().requires_grad_()
        theirs = equalized_odds_penalty(p[real], cell[member, real] // groups, cell[member, real] % groups)
        assert ours[member].item() == pytest.approx(theirs.item(), abs=1e-12)
        assert torch.allclose(gradient[member], torch.autograd.grad(theirs, p)[0], rtol=0, atol=1e-12)


def test_the_penalty_lowers_the_gap_of_every_member():
    data = [dataset(600, seed) for seed in range(3)]
    X, y, s = dataset(3000, seed=9)

    def gaps(pool):
        return [float(equalized_odds_penalty(probs, y, s)) for probs in pool.predict_proba(X)]

    how = HOW | {"epochs": 20, "batch_size": 600, "steps_per_epoch": 5}
    free = fit_pool(data, **how)
    assert min(gaps(free)) > 0.2
    assert max(gaps(fit_pool(data, **how, penalty=2.0, initial=free))) < 0.1


def lambdas(monkeypatch, **how) -> torch.Tensor:
    """What the members' lambdas are after each epoch [epochs, M], for members with equally many steps."""
    history = []
    ascend = pool_training.PoolClassifier._ascend

    def watched(self, ended, gap, dual):
        ascend(self, ended, gap, dual)
        history.append(self.penalty.clone())

    with monkeypatch.context() as patch:
        patch.setattr(pool_training.PoolClassifier, "_ascend", watched)
        fit_pool([dataset(100, seed) for seed in range(4)], **HOW | how | {"validation": HELD_OUT[:4]})
    return torch.stack(history)


def test_lambdas_are_moved_once_an_epoch_each_by_its_own_gap(monkeypatch):
    how = DUAL | {"steps_per_epoch": 4}
    moved = lambdas(monkeypatch, **how)
    assert moved.shape == (6, 4)
    assert len(set(moved[-1].tolist())) == 4
    alone = how | {"epochs": 1, "dual": None, "validation": None}
    first = fit_pool([dataset(100, seed) for seed in range(4)], **HOW | alone)
    gap = torch.stack(
        [
            equalized_odds_gap((first[i].predict_proba(X)[0] > 0.5).long(), y, s)
            for i, (X, y, s) in enumerate(HELD_OUT[:4])
        ]
    )
    assert torch.allclose(moved[0].double(), (4 * (gap - 0.05)).clamp(min=0))
    assert 0 < int((moved[0] > 0).sum()) < 4  # both sides of epsilon


def test_a_gap_that_no_member_exceeds_leaves_lambda_at_zero(monkeypatch):
    moved = lambdas(monkeypatch, dual=Dual(rate=4.0, epsilon=1.0))
    assert not moved.any()


def test_dual_ascent_lowers_the_gap_of_every_member_on_rows_it_has_not_seen():
    data = [dataset(600, seed) for seed in range(3)]
    X, y, s = dataset(3000, seed=11)
    how = HOW | {"epochs": 30, "batch_size": 600, "steps_per_epoch": 5}
    driven = fit_pool(data, **how, dual=Dual(1.0, 0.05), validation=[dataset(300, seed) for seed in (9, 10, 12)])
    before, after = (equalized_odds_gaps(pool.predict_proba(X) > 0.5, y, s) for pool in (fit_pool(data, **how), driven))
    assert before.min() > 0.3
    assert after.max() < 0.2


def iterates(data, epochs, **how):
    """The pool as it stands after 1, 2, ... epochs."""
    return [fit_pool(data, **HOW | how | {"epochs": n}) for n in range(1, epochs + 1)]


def loss_and_gap(pool, member, held_out):
    X, y, s = held_out
    probs = pool[member].predict_proba(X)[0]
    loss = torch.nn.functional.binary_cross_entropy(probs.double(), y.double())
    return float(loss), float(equalized_odds_gap((probs > 0.5).long(), y, s))


def test_a_member_keeps_the_epoch_with_the_smallest_validation_loss_and_stops_when_it_no_longer_falls():
    how = {"batch_size": 32, "lr": 0.05}
    kept = fit_pool(UNEVEN, **HOW | how | {"epochs": 12, "validation": HELD_OUT, "patience": 2})
    every = iterates(UNEVEN, 12, **how)
    for member, held_out in enumerate(HELD_OUT):
        losses = [loss_and_gap(pool, member, held_out)[0] for pool in every]
        epoch, best = 0, float("inf")
        for number, loss in enumerate(losses, 1):
            if loss < best - 1e-4:
                epoch, best = number, loss
            if number - epoch >= 2:
                break
        assert kept.told["epoch"][member] == epoch
        assert largest_difference(kept[member], every[epoch - 1][member]) < ROUNDING
    assert max(kept.told["epoch"]) < 12


def test_dual_ascent_keeps_the_best_epoch_under_its_constraint_or_says_that_none_is():
    data = [dataset(300, seed) for seed in range(3)]
    held_out = [dataset(400, seed) for seed in (20, 21, 22)]
    how = {"epochs": 12, "batch_size": 300, "steps_per_epoch": 4, "lr": 0.03, "validation": held_out}
    for epsilon, reached in ((0.1, True), (0.0, False)):
        pool = fit_pool(data, **HOW | how, dual=Dual(1.0, epsilon))
        found = [loss_and_gap(pool, member, rows)[1] for member, rows in enumerate(held_out)]
        assert pool.told["constraint_met"] == [float(gap <= epsilon) for gap in found]
        assert all(pool.told["constraint_met"]) == reached


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("how", [{}, {"batch_size": 500, "epochs": 30}], ids=["batches", "whole"])
def test_a_diverging_member_is_frozen_and_reported_and_the_others_go_on(caplog, how, vectorized):
    how = HOW | how | {"vectorized": vectorized, "weight_decay": 0.1}
    broken = [(X.clone(), y, s) for X, y, s in UNEVEN]
    broken[1][0][:] = torch.nan
    with caplog.at_level(logging.WARNING, logger="fairpriv"):
        pool = fit_pool(broken, **how)
    assert [r.getMessage() for r in caplog.records] == ["pool member 1 diverged at step 0; it stays as it was before"]
    assert pool.diverged == [1]
    others = [0, 2, 3, 4]
    assert largest_difference(pool[others], fit_pool(UNEVEN, **how)[others]) < ROUNDING
    torch.manual_seed(member_seed(HOW["seed"], 1))
    assert same(pool[1], Pool(Pool.of([MLP(5, 2, hidden=[8, 4])]).weights, [0]))


def test_a_member_that_diverges_late_keeps_its_last_finite_state(caplog):
    data = dataset(100, 0)
    (order, *_) = ShuffledBatches(Rows(torch.arange(100), *data[1:], data[1]), 100, member_seed(HOW["seed"], 0))
    data[0][order[0][-3], 2] = torch.inf
    with caplog.at_level(logging.WARNING, logger="fairpriv"):
        pool = fit_pool([data, UNEVEN[1]], **HOW | {"batch_size": 5})
    (message,) = [r.getMessage() for r in caplog.records]
    step = int(message.split("step ")[1].split(";")[0])
    torch.manual_seed(member_seed(HOW["seed"], 0))
    net = MLP(5, 2, hidden=[8, 4])
    optimizer = torch.optim.AdamW(net.parameters(), lr=HOW["lr"], weight_decay=0.0)
    rows = Rows(*data, torch.arange(100))
    for X, y, *_ in list(ShuffledBatches(rows, 5, member_seed(HOW["seed"], 0)))[:step]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    assert step == 19
    assert pool.diverged == [0]
    assert largest_difference(pool[0], Pool.of([net])) < ROUNDING


def test_a_gradient_that_is_not_finite_is_caught_where_the_loss_is():
    start = Pool([(torch.tensor([[[1.0, -1.0]]]), torch.zeros(1, 2))])  # logits inf and -inf: loss 0, gradient inf * 0
    pool = fit_pool([(torch.tensor([[torch.inf]]), torch.tensor([0]))], **HOW | {"hidden": ()}, initial=start)
    assert pool.diverged == [0]
    assert largest_difference(pool, start) == 0


def test_a_member_that_diverged_before_is_not_tuned():
    initial = fit_pool(UNEVEN, **HOW)
    initial.diverged.append(2)
    tuned = fit_pool(UNEVEN, **HOW, initial=initial)
    assert same(tuned[2], initial[2])
    assert tuned.diverged == [2]
    assert largest_difference(tuned[3], initial[3]) > 0.01


@pytest.mark.parametrize("more", [{}, {"private": Private(1.0, 1.0), "steps_per_epoch": 2}], ids=["plain", "private"])
def test_a_pool_whose_members_have_all_diverged_before_stays_as_it_is(more):
    initial = Pool(fit_pool(UNEVEN, **HOW).weights, [0, 1, 2, 3, 4])
    assert same(fit_pool(UNEVEN, **HOW | more, initial=initial), initial)


def test_probabilities_are_those_of_the_members(monkeypatch):
    pool = fit_pool(UNEVEN, **HOW | {"epochs": 1})
    pool = Pool.join([pool] * 15)
    X = UNEVEN[1][0]
    with torch.inference_mode():
        each = torch.stack([pool.member(i)(X).softmax(-1)[:, 1] for i in range(len(pool))])
    for budget in (64 * 8 * 7, 2**20):
        monkeypatch.setitem(pool_training.BLOCK, "cpu", budget)
        assert torch.allclose(pool.predict_proba(X), each, atol=1e-4)
    assert pool.predict_proba(X[:0]).shape == (75, 0)


def test_a_member_is_a_plain_module_in_eval_mode_with_weights_of_its_own():
    pool = fit_pool(UNEVEN, **HOW | {"epochs": 1})
    net = pool.member(3)
    W, b = pool.weights[0]
    assert not net.training
    assert str(net) == str(MLP(5, 2, hidden=[8, 4]))
    assert torch.allclose(net[0](torch.ones(5)), torch.ones(5) @ W[3] + b[3], atol=1e-4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert float(W[3].abs().max()) > 0
    assert float(b[3].abs().max()) > 0


def test_pools_are_selected_and_joined():
    pool = fit_pool(UNEVEN, **HOW | {"epochs": 1})
    pool.diverged.extend([1, 3])
    assert same(Pool.join([pool[:2], pool[2:]]), pool)
    assert pool[[3, 0, 1]].diverged == [0, 2]
    assert same(pool[torch.tensor([False, True, False, False, True])], pool[[1, 4]])
    assert same(pool[-1], pool[4:])
    assert len(pool[2]) == 1
    with pytest.raises(IndexError):
        pool[5]
    with pytest.raises(InputError, match=r"\(5, 8, 4, 2\), \(5, 3, 2\)\] cannot be joined"):
        Pool.join([pool, Pool.of([MLP(5, 2, hidden=[3])])])


def test_arrays_and_any_group_codes_are_taken():
    arrays = [(X.double().numpy(), y.numpy().astype(bool), 5 - 7 * s.numpy().astype(np.int32)) for X, y, s in UNEVEN]
    arrays[0][0].flags.writeable = False
    flipped = [(X, y, 1 - s) for X, y, s in UNEVEN]
    pool = fit_pool(arrays, **HOW | PENALISED)
    assert same(pool, fit_pool(flipped, **HOW | PENALISED))
    assert torch.equal(pool.predict_proba(arrays[0][0]), pool.predict_proba(UNEVEN[0][0]))


def test_epochs_may_be_a_number_of_numpys():
    assert same(fit_pool(UNEVEN, **HOW | {"epochs": np.int64(2)}), fit_pool(UNEVEN, **HOW | {"epochs": 2}))


def test_torchs_own_random_numbers_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit_pool(UNEVEN[:2], **HOW | {"epochs": 1})
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_pool_is_read_and_not_trained_again(tmp_path, monkeypatch):
    data = [(X.clone(), y, s) for X, y, s in UNEVEN]
    data[0][0][:] = torch.nan
    first = fit_pool(data, **HOW, store=Store(tmp_path))
    (file,) = tmp_path.rglob("*.safetensors")
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *a, **k: pytest.fail("trained again"))
    second = fit_pool(data, **HOW, store=Store(tmp_path))
    assert same(first, second)
    assert second.diverged == [0]
    assert [*tmp_path.rglob("*.safetensors")] == [file]


def test_a_pool_that_differs_is_not_read_from_the_cache(tmp_path):
    short = HOW | {"epochs": 1, "store": Store(tmp_path)}
    start = fit_pool(UNEVEN, **HOW)
    other = [(X + 1e-3, y, s) for X, y, s in UNEVEN]
    changes = [
        {"lr": 0.02},
        {"penalty": 0.1},
        {"epochs": 2},
        {"seed": 1},
        {"weight_decay": 0.1},
        {"batch_size": 33},
        {"steps_per_epoch": 2},
        {"hidden": (8,)},
        {"initial": start},
        {"vectorized": False},
        *(
            {"dual": replace(DUAL["dual"], **change), "validation": HELD_OUT}
            for change in ({}, {"rate": 1.0}, {"epsilon": 0.1})
        ),
        {"dual": DUAL["dual"], "validation": HELD_OUT[::-1]},
        {"patience": 1, "validation": HELD_OUT},
        {"patience": 2, "validation": HELD_OUT},
        {"patience": 1, "validation": HELD_OUT[::-1]},
    ]
    for how in ({}, *changes):
        fit_pool(UNEVEN, **short | how)
    fit_pool(other, **short)
    fit_pool(UNEVEN, **short, initial=fit_pool(other, **HOW))
    assert len([*tmp_path.rglob("*.safetensors")]) == len(changes) + 3


def test_a_broken_file_in_the_cache_is_made_again(tmp_path):
    first = fit_pool(UNEVEN, **HOW, store=Store(tmp_path))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert same(fit_pool(UNEVEN, **HOW, store=Store(tmp_path)), first)
    assert file.stat().st_size > 100


def test_a_pool_with_one_wrong_bit_or_another_pool_s_file_is_made_again(tmp_path):
    first = fit_pool(UNEVEN, **HOW, store=Store(tmp_path / "first"))
    fit_pool(UNEVEN, **HOW | {"seed": 9}, store=Store(tmp_path / "other"))
    (file,), (other,) = ((tmp_path / name).rglob("*.safetensors") for name in ("first", "other"))
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    for content in (bytes(damaged), other.read_bytes()):
        file.write_bytes(content)
        assert same(fit_pool(UNEVEN, **HOW, store=Store(tmp_path / "first")), first)


def test_a_tuned_pool_is_found_again_by_its_start(tmp_path):
    start = fit_pool(UNEVEN, **HOW)
    for _ in range(8):
        fit_pool(UNEVEN, **HOW | {"epochs": 1}, initial=start, store=Store(tmp_path))
    assert len([*tmp_path.rglob("*.safetensors")]) == 1


X, Y, S = UNEVEN[0]
VALID = {"validation": [HELD_OUT[0]]}


@pytest.mark.parametrize(
    ("datasets", "how", "message"),
    [
        ([], {}, "datasets is empty"),
        ([(X, Y), (X,)], {}, r"datasets\[1\] has 1 parts; it is \(X, y\) or"),
        ([(X, Y)], {"penalty": 1.0}, r"datasets\[0\] has 2 parts; it is \(X, y, groups\)"),
        ([(X, Y)], DUAL | VALID, r"datasets\[0\] has 2 parts; it is \(X, y, groups\)"),
        ([(X, Y, S)], DUAL, "validation has 5 entries for 1 datasets"),
        ([(X, Y)], {"patience": 3}, "validation rows decide, and there are none"),
        ([(X, Y)], {"patience": 0} | VALID, "patience=0: it is at least 1"),
        (
            [(X, Y)],
            {"patience": 3, "validation": [(X[:9], Y[:9])]},
            "9 validation rows, too few to stop training by",
        ),
        ([(X, Y, S)], {"dual": replace(DUAL["dual"], rate=0.0)}, "dual.rate=0.0, .* rate is above 0"),
        ([(X, Y, S)], {"dual": replace(DUAL["dual"], epsilon=-0.1)}, "dual.epsilon=-0.1: .* epsilon at least 0"),
        ([(X[:, 1:], Y, S)], DUAL | VALID, r"validation has 5 features, datasets\[0\] has 4"),
        ([(X, Y[1:])], {}, r"datasets\[0\] has shapes \[100, 5\], \[99\]; X is \[N, F\]"),
        ([(X, Y, S[1:])], {}, r"shapes \[100, 5\], \[100\], \[99\]"),
        ([(X[:0], Y[:0])], {}, r"shapes \[0, 5\], \[0\]; .* N at least 1"),
        ([(X, Y), (X[:, 1:], Y)], {}, r"datasets\[1\] has 4 features, datasets\[0\] has 5"),
        ([(X, Y), (X, Y + 1)], {}, r"datasets\[1\] has labels \[1, 2\]; they are 0 and 1"),
        ([(X, Y, S.float())], {}, r"groups of torch.float32; they are integer codes"),
        ([(X, Y, S)], {"steps_per_epoch": 2, "batch_size": 3}, r"datasets\[0\]: a batch of 3 rows cannot hold 4"),
        ([(X, Y, S, S[1:])], {}, r"shapes \[100, 5\], \[100\], \[100\], \[99\]"),
        ([(X, Y)], {"epochs": 0}, "epochs=0: each is a whole number, at least 1"),
        ([(X, Y)], {"epochs": [2.5]}, r"epochs=\[2\.5\]: each is a whole number"),
        ([(X, Y)], {"hidden": 8}, "hidden=8: a list of whole numbers"),
        ([(X, Y)], {"hidden": [8, 0]}, r"hidden=\[8, 0\]: .* each at least 1"),
        ([(X, Y)], {"lr": 0.0}, "lr=0.0, .* lr is above 0"),
        (
            [(X, Y)],
            {"initial": Pool.of([MLP(5, 2, hidden=[8])])},
            r"1 members of sizes \(5, 8, 2\); .* 1 of \(5, 8, 4, 2\)",
        ),
        ([(X, Y)] * 2, {"initial": Pool.of([MLP(5, 2, hidden=[8, 4])])}, "initial has 1 members .* ask for 2"),
    ],
)
def test_what_cannot_be_trained_is_refused(datasets, how, message):
    with pytest.raises(InputError, match=message):
        fit_pool(datasets, **HOW | how)


def test_features_of_another_width_are_refused_in_prediction():
    with pytest.raises(InputError, match=r"X is \[3, 4\]; these members take \[N, 5\]"):
        Pool.of([MLP(5, 2, hidden=[3])]).predict_proba(torch.zeros(3, 4))
