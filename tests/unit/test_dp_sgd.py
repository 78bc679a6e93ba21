"""DP-SGD: Opacus for one model, stacked weights for a pool, and what the accountant makes of both."""

import copy
import functools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch.nn.functional import cross_entropy

from fairpriv.classifiers.contract import ClassifierOwner, Defended, PoolOwner
from fairpriv.classifiers.data.batches import PoissonBatches
from fairpriv.classifiers.data.game import Deal
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.defenses.dp_sgd import DPSGD, PrivateClassifier, epsilon_spent, noise_multiplier
from fairpriv.classifiers.nets import pool as pools
from fairpriv.classifiers.nets import pool_training
from fairpriv.classifiers.nets.classifier import MLP, fit
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.classifiers.nets.pool_training import Private, clip_rows, mask_seed, member_seed, noise_seed
from fairpriv.config.settings import TrainingSettings
from fairpriv.errors import InputError

QUICK = {"epsilon": 1.0, "accountant": "rdp", "epochs": 2, "steps_per_epoch": 4}
CONTROL = QUICK | {"start": "scratch", "rehearsal": 1.0}
TRAINER = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)


def table(n: int, seed: int = 0, group: int = 0) -> Rows:
    g = torch.Generator().manual_seed(seed)
    X = 3 * torch.randn(n, 5, generator=g)
    return Rows(X, (X[:, 0] + torch.randn(n, generator=g) > 0).long(), torch.full((n,), group), torch.arange(n))


def net(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(5, 2, hidden=[8, 4])


def private_module() -> PrivateClassifier:
    return PrivateClassifier(
        net(), classes=2, lr=0.01, weight_decay=0.0, private=Private(1.0, 1.0), expected=10.0, seed=0
    )


def opacus_sums(model: MLP, X, y, clip: float) -> list[torch.Tensor]:
    """Opacus's sums of clipped gradients, parameter by parameter."""
    model = copy.deepcopy(model)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=1
    )
    cross_entropy(wrapped(X.clone().requires_grad_()), y, reduction="sum").backward()
    optimizer.clip_and_accumulate()
    return [parameter.summed_grad for parameter in model.parameters()]


@pytest.mark.parametrize("clip", [0.01, 1.0, 1000.0])
def test_a_pools_sums_of_clipped_gradients_are_opacus_s_and_a_loops(monkeypatch, clip):
    """The gradient of a pool's first step, before noise; at clip 1 some rows are clipped and some are not."""
    rows, model, noised = table(60), net(), []
    monkeypatch.setattr(pools, "_fresh", lambda sizes, seeds: Pool.of([model] * len(seeds)))
    seen = pool_training.PoolClassifier._add_noise

    def watched(self, private, k):
        noised.append([grad.clone() for grad in (*self.weights_grad, *self.biases_grad)])
        seen(self, private, k)

    monkeypatch.setattr(pool_training.PoolClassifier, "_add_noise", watched)
    how = {"hidden": (8, 4), "epochs": 1, "batch_size": 1, "lr": 0.01, "seed": 3, "accelerator": "cpu"}
    fit_pool([(rows.X, rows.y)] * 2, private=Private(0.0, clip), steps_per_epoch=3, **how)
    for member in range(2):
        X, y, *_ = next(iter(PoissonBatches(rows, 3, mask_seed(member_seed(3, member)))))
        mine = [grad[member] for grad in noised[0]]  # of all layers the weights, then the biases
        mine = [part for W, b in zip(mine[:3], mine[3:], strict=True) for part in (W.T, b)]
        expected = opacus_sums(model, X, y, clip)
        rounding = 1e-4 * max(float(total.abs().max()) for total in expected)
        for ours, theirs in zip(mine, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=rounding)
        looped = [torch.zeros_like(parameter) for parameter in model.parameters()]
        norms = []
        for i in range(len(y)):
            gradients = torch.autograd.grad(cross_entropy(model(X[i : i + 1]), y[i : i + 1]), list(model.parameters()))
            norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
            for total, gradient in zip(looped, gradients, strict=True):
                total += gradient * min(1.0, clip / norms[-1])
        for ours, total in zip(mine, looped, strict=True):
            assert torch.allclose(ours, total, rtol=0, atol=rounding)
        if clip == 1.0:
            assert min(norms) < clip < max(norms)


def test_clipping_takes_layers_together_and_leaves_short_gradients():
    inputs, deltas = [torch.tensor([[[3.0], [0.0]]])], [torch.tensor([[[4.0], [0.1]]])]
    clip_rows(inputs, deltas, clip=1.0)
    assert torch.allclose(deltas[0], torch.tensor([[[4 / math.sqrt(160)], [0.1]]]), atol=1e-5)  # of norm 4 * |(3, 1)|


def test_several_batches_a_step_are_refused_since_the_budget_does_not_count_them():
    rows, trainer = table(40), functools.partial(TRAINER, accumulate_grad_batches=2)
    module = private_module()
    with pytest.raises(InputError, match=r"trainer.accumulate_grad_batches=2: .* steps of one batch each"):
        fit(module, PoissonBatches(rows, 4, 0), epochs=1, trainer=trainer, validation=rows)


def test_several_processes_are_refused_since_each_would_add_noise_of_its_own():
    module = private_module()
    module.trainer = SimpleNamespace(world_size=2, accumulate_grad_batches=1)
    with pytest.raises(InputError, match=r"trains in one process: leave trainer\.devices at 1"):
        module.configure_optimizers()


def test_the_loss_that_is_told_is_a_mean_over_rows_and_the_one_that_is_trained_a_sum():
    module, rows = private_module(), table(6)
    batch = (rows.X, rows.y, rows.s, torch.ones(6))
    expected = cross_entropy(module.net(rows.X), rows.y).item()
    assert module.training_step(batch, 0).item() == pytest.approx(6 * expected, rel=1e-5)
    assert float(module.train_loss.compute()) == pytest.approx(expected, rel=1e-5)
    assert module.training_step([part[:0] for part in batch], 1).item() == 0  # a batch without rows


def test_one_model_by_opacus_and_a_pool_of_one_are_the_same_where_there_is_no_noise():
    rows, seed = table(100), 3
    torch.manual_seed(member_seed(seed, 0))
    module = PrivateClassifier(
        MLP(5, 2, hidden=[8, 4]),
        classes=2,
        lr=0.01,
        weight_decay=0.1,
        private=Private(0.0, 2.0),
        expected=25.0,
        seed=0,
    )
    fit(module, PoissonBatches(rows, 4, mask_seed(member_seed(seed, 0))), epochs=3, trainer=TRAINER, validation=rows)
    pool = fit_pool(
        [(rows.X, rows.y)],
        hidden=(8, 4),
        epochs=3,
        steps_per_epoch=4,
        batch_size=1,
        lr=0.01,
        weight_decay=0.1,
        seed=seed,
        private=Private(0.0, 2.0),
        accelerator="cpu",
    )
    for ours, theirs in zip(pool.member(0).parameters(), module.net.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_opacus_leaves_a_plain_module_behind():
    module = private_module()
    fit(module, PoissonBatches(table(20), 2, 0), epochs=1, trainer=TRAINER, validation=table(20))
    assert not module.net.training
    for layer in module.net.modules():
        assert not layer._forward_hooks
        assert not layer._backward_hooks
    assert not any(hasattr(parameter, "grad_sample") for parameter in module.net.parameters())


def test_noise_of_a_pool_has_the_promised_deviation_and_is_each_members_own(monkeypatch):
    rows, seen = table(40), []
    add = pool_training.PoolClassifier._add_noise

    def watched(self, private, k):
        before = [grad.clone() for grad in (*self.weights_grad, *self.biases_grad)]
        add(self, private, k)
        expected = 40 / 5
        after = (*self.weights_grad, *self.biases_grad)
        noise = [grad * expected - b for grad, b in zip(after, before, strict=True)]
        seen.append(torch.cat([part.flatten(1) for part in noise], 1))

    monkeypatch.setattr(pool_training.PoolClassifier, "_add_noise", watched)
    how = {"hidden": (64, 32), "epochs": 1, "steps_per_epoch": 5, "batch_size": 1, "lr": 0.01, "seed": 3}
    fit_pool([(rows.X, rows.y)] * 3, private=Private(2.0, 1.5), accelerator="cpu", **how)
    noise = torch.stack(seen)  # [steps, members, parameters]
    assert float(noise.std()) == pytest.approx(3.0, rel=0.03)
    flat = noise.transpose(0, 1).flatten(1)
    correlation = np.corrcoef(flat.numpy())
    assert np.abs(correlation - np.eye(3)).max() < 0.05
    assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.05


def test_noise_of_one_model_has_the_promised_deviation(monkeypatch):
    noises = []
    add = DPOptimizer.add_noise

    def watched(self):
        add(self)
        noises.append(torch.cat([(p.grad - p.summed_grad).flatten() for p in self.params]))

    monkeypatch.setattr(DPOptimizer, "add_noise", watched)
    private = Private(2.0, 1.5)
    torch.manual_seed(0)
    module = PrivateClassifier(
        MLP(5, 2, hidden=[64, 32]), classes=2, lr=0.01, weight_decay=0.0, private=private, expected=8.0, seed=1
    )
    fit(module, PoissonBatches(table(40), 5, 0), epochs=1, trainer=TRAINER, validation=table(40))
    assert float(torch.stack(noises).std()) == pytest.approx(3.0, rel=0.03)
    first = torch.normal(0, 3.0, (64, 5), generator=torch.Generator().manual_seed(1))  # its own stream, not torch's
    assert torch.allclose(noises[0][:320], first.flatten(), atol=1e-4)


def test_a_private_member_does_not_depend_on_the_others():
    how = {"hidden": (8, 4), "epochs": 2, "steps_per_epoch": 3, "batch_size": 1, "lr": 0.01, "seed": 3}
    data = [(rows.X, rows.y) for rows in (table(n, seed=n) for n in (50, 120, 31))]
    private = {"private": Private(1.0, 1.0), "accelerator": "cpu"}
    whole = fit_pool(data, **how, **private)
    loop = fit_pool(data, vectorized=False, **how, **private)
    alone = fit_pool(data[1:2], numbers=[1], **how, **private)
    for W, V in ((loop, whole), (alone, whole[[1]])):
        for (a, b), (c, d) in zip(W.weights, V.weights, strict=True):
            assert torch.allclose(a, c, atol=0.01 * how["lr"])  # a hundredth of a step
            assert torch.allclose(b, d, atol=0.01 * how["lr"])


def test_poisson_batches_hold_every_row_with_the_same_chance_and_without_regard_to_the_others():
    rows, steps = table(30), 5
    batches = PoissonBatches(
        Rows(torch.arange(30)[:, None].float(), *(getattr(rows, k) for k in ("y", "s", "index"))), steps, 0
    )
    held = torch.zeros(400 * steps, 30)
    for epoch in range(400):
        for step, (X, *_) in enumerate(batches):
            held[epoch * steps + step, X[:, 0].long()] += 1
    assert held.max() == 1
    low, high = stats.binom.interval(1 - 1e-4, len(held), 1 / steps)
    assert ((held.sum(0) >= low) & (held.sum(0) <= high)).all()
    sizes = held.sum(1)
    assert float(sizes.var()) == pytest.approx(30 * 0.2 * 0.8, rel=0.15)  # a batch of fixed size has none


def test_a_batch_without_rows_is_a_step_of_noise():
    rows = table(2)
    module = PrivateClassifier(
        net(), classes=2, lr=0.01, weight_decay=0.0, private=Private(1.0, 1.0), expected=0.1, seed=0
    )
    batches = PoissonBatches(rows, 20, 0)
    assert min(len(y) for _, y, *_ in PoissonBatches(rows, 20, 0)) == 0
    fit(module, batches, epochs=1, trainer=TRAINER, validation=rows)
    how = {"hidden": (4,), "epochs": 1, "steps_per_epoch": 20, "batch_size": 1, "lr": 0.01, "seed": 0}
    pool = fit_pool([(rows.X, rows.y)], private=Private(1.0, 1.0), accelerator="cpu", **how)
    assert not pool.diverged
    assert all(parameter.isfinite().all() for parameter in module.net.parameters())


@pytest.mark.parametrize(("noise", "steps"), [(4.0, 10), (20.0, 100)])
def test_epsilon_without_subsampling_is_that_of_the_gaussian_mechanism(noise, steps):
    """The exact delta of composed Gaussian mechanisms (Balle and Wang 2018) at the epsilon that is certified."""
    mu = math.sqrt(steps) / noise

    def delta(epsilon):
        return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)

    tight = epsilon_spent("prv", noise, 1e-5, 1.0, steps)
    assert delta(tight) <= 1e-5 <= delta(tight - 0.03)
    loose = epsilon_spent("rdp", noise, 1e-5, 1.0, steps)
    assert tight - 0.03 < loose < 1.25 * tight


def test_noise_is_the_least_within_the_budget():
    noise = noise_multiplier("rdp", 2.0, 1e-5, 0.1, 100)
    assert 1.98 <= epsilon_spent("rdp", noise, 1e-5, 0.1, 100) <= 2.0


def test_a_budget_that_no_noise_reaches_is_refused_with_the_least_there_is():
    with pytest.raises(InputError, match=r"defense\.epsilon=0\.05 cannot be reached: .* 40 steps .* 0\.1 at best"):
        DPSGD(epsilon=0.05, accountant="rdp", epochs=10, steps_per_epoch=4).private  # noqa: B018


def test_a_budget_for_which_the_accountant_finds_no_noise_names_the_other_one():
    with pytest.raises(InputError, match=r"defense\.epsilon=300\.0: the prv accountant .* defense\.accountant=rdp"):
        DPSGD(epsilon=300.0).private  # noqa: B018
    assert DPSGD(epsilon=300.0, accountant="rdp").private.noise > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"defense\.epsilon=0\.0, delta=1e-05: epsilon is above 0"),
        ({"delta": 1.0}, r"delta between 0 and 1"),
        ({"clip": 0.0}, r"lr and clip above 0"),
        ({"steps_per_epoch": 0}, r"steps_per_epoch=0"),
        ({"rehearsal": 1.5}, r"defense\.rehearsal=1\.5: must be a share"),
        ({"rehearsal": -0.5}, r"defense\.rehearsal=-0\.5: must be a share"),
        ({"weight_decay": -1.0}, r"defense\.weight_decay=-1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        DPSGD(**arguments)


@dataclass
class TwoWorlds:
    label_names: tuple[str, ...] = ("no", "yes")

    def part(self, name: str, world: int) -> Rows:
        return table(40 if name == "train" else 10, seed=world, group=world)


def seen_by(defense: DPSGD, world: int = 0) -> tuple[Defended, Rows, Rows]:
    """What comes of it, and the rows that it is trained on and stopped by."""
    fits = []

    def watched(module, batches, **how):
        fits.append((batches.rows, how["validation"]))
        fit(module, batches, trainer=TRAINER, **how)

    defended = defense.defend(ClassifierOwner(TwoWorlds(), world, seed=0, base=net, fresh=net, fit=watched))
    return defended, *fits[0]


@pytest.mark.parametrize("world", [0, 1])
def test_it_sees_the_rows_of_scratch_or_of_none_and_reports_the_budget(world):
    defended, rows, held_out = seen_by(DPSGD(**CONTROL), world)
    metrics = defended.measured.metrics
    assert sorted(rows.s.tolist()) == [0] * 40 + [1] * 40
    assert sorted(held_out.s.tolist()) == [0] * 10 + [1] * 10
    assert defended.budget == (metrics["defense/epsilon"], 1e-5)
    assert 0.98 < metrics["defense/epsilon"] <= 1.0
    assert metrics["defense/delta"] == 1e-5
    assert metrics["defense/noise_multiplier"] == DPSGD(**QUICK).private.noise
    _, rows, held_out = seen_by(DPSGD(start="scratch", rows="own", **QUICK), world)
    assert rows.s.tolist() == [world] * 40
    assert held_out.s.tolist() == [world] * 10
    defended, rows, _ = seen_by(DPSGD(**QUICK), world)
    assert defended.budget is None  # the base model has seen rows, and is not private
    assert sorted(rows.s.tolist()) == sorted([1 - world] * 40 + [world] * 20)


def test_only_all_rows_of_both_worlds_from_fresh_weights_are_a_control():
    assert DPSGD(**CONTROL).control
    for how in ({"start": "base"}, {"rehearsal": 0.5}, {"rows": "own"}):
        assert not DPSGD(**CONTROL | how).control


def test_tuning_starts_from_the_base_model():
    moved = []
    for start in ("base", "scratch"):
        base, fresh = net(1), net(2)
        still = DPSGD(start=start, **QUICK | {"lr": 1e-9, "patience": None})
        tuned = still.defend(
            ClassifierOwner(TwoWorlds(), 0, 0, lambda: net(1), lambda: net(2), functools.partial(fit, trainer=TRAINER))
        )
        X = table(30).X
        with torch.no_grad():
            moved.append([float((tuned.net(X) - other(X)).abs().max()) for other in (base, fresh)])
    assert moved[0][0] < 1e-4 < moved[0][1]
    assert moved[1][1] < 1e-4 < moved[1][0]


def test_the_first_batchs_members_do_not_follow_from_the_initial_weights_seed():
    """Who knows the seed of the initial weights must not know who is in a batch, nor the noise."""
    rows = table(400)
    for seed in (0, 1):
        drawn, *_ = next(iter(PoissonBatches(rows, 4, mask_seed(seed))))
        guessed = torch.rand(400, generator=torch.Generator().manual_seed(seed), dtype=torch.double) < 1 / 4
        members = torch.zeros(400, dtype=torch.bool)
        members[(rows.X[:, None] == drawn[None]).all(-1).any(1)] = True
        agree = float((members == guessed).double().mean())
        assert abs(agree - 0.625) < 0.12  # 1/4^2 + 3/4^2 of independent masks
        assert len({seed, mask_seed(seed), noise_seed(seed)}) == 3


def test_a_pools_batches_are_drawn_from_the_mask_seed():
    rows = table(60)
    asked = []
    build = pool_training.PoissonBatches

    class Watched(build):
        def __init__(self, rows, steps, seed):
            asked.append(seed)
            super().__init__(rows, steps, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_training, "PoissonBatches", Watched)
        fit_pool(
            [(rows.X, rows.y)], hidden=[4], epochs=1, steps_per_epoch=2, batch_size=1, lr=0.01, seed=5,
            private=Private(1.0, 1.0), accelerator="cpu",
        )  # fmt: skip
    assert set(asked) == {mask_seed(member_seed(5, 0))}


def test_a_delta_that_allows_a_row_to_be_published_is_refused():
    with pytest.raises(InputError, match=r"defense\.delta=0\.02: publishing one of the 80 rows .* below 0\.01"):
        seen_by(DPSGD(delta=0.02, **CONTROL))


@pytest.mark.parametrize(
    ("how", "rows"),
    [({"start": "scratch", "rehearsal": 1.0}, 80), ({"start": "scratch", "rows": "own"}, 40), ({}, 60)],
    ids=["both worlds", "own world", "tuned from the base"],
)
def test_a_pool_is_trained_on_its_members_samples_within_the_same_budget(how, rows):
    asked = []

    def watched(datasets, **how):
        asked.append((datasets, how))
        return fit_pool(datasets, hidden=[4], accelerator="cpu", **how)

    defense = DPSGD(**QUICK | how)
    half = table(80, 0, 0) + table(80, 1, 1)
    places = torch.arange(40), torch.arange(80, 120)
    deals = [Deal(half, places, (torch.arange(40, 60), torch.arange(120, 140)))] * 4
    training = TrainingSettings(epochs=1, patience=None, batch_size=64, lr=0.01, weight_decay=0.0)
    owner = PoolOwner(deals, 2, 0, watched, training)
    assert len(defense.defend_pool(owner)) == 4
    datasets, asked_for = asked[-1]
    assert [len(y) for _, y in datasets] == pytest.approx([rows] * 4, abs=2)
    assert asked_for["private"] == defense.private
    assert (asked_for["initial"] is not None) == (defense.start == "base") == (len(asked) == 2)
    assert [len(y) for _, y in asked_for["validation"]] == [20 if defense.rows == "own" else 40] * 4


@pytest.mark.parametrize("more", [{"penalty": 1.0}, {"steps_per_epoch": None}])
def test_private_pools_take_no_penalty_and_need_steps(more):
    rows = table(20)
    how = {"epochs": 1, "batch_size": 1, "lr": 0.01, "seed": 0, "steps_per_epoch": 2, **more}
    with pytest.raises(InputError, match="rows are clipped one by one, so it takes steps_per_epoch, no penalty"):
        fit_pool([(rows.X, rows.y, rows.s)], private=Private(1.0, 1.0), **how)
