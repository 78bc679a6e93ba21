"""The fine-tuning arms: what they share, what lambda does, and games in which they are undefined."""

import functools
from dataclasses import dataclass, replace

import lightning
import pytest
import torch
from fairlearn.metrics import equalized_odds_difference

from fairpriv.classifiers.contract import ClassifierOwner
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.defenses.fair_finetune import FairFineTuning, choose
from fairpriv.classifiers.nets.classifier import MLP, fit, predict
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gap, equalized_odds_penalty


def world_rows(group: int, n: int, seed: int) -> Rows:
    """One group's rows: labels that x0 follows loosely, and x1 that tells the group."""
    g = torch.Generator().manual_seed(seed)
    s = torch.full((n,), group)
    y = (torch.rand(n, generator=g) < (0.7 if group else 0.3)).long()
    X = torch.stack([y + torch.randn(n, generator=g), s + 0.1 * torch.randn(n, generator=g)], 1)
    return Rows(X.float(), y, s, torch.arange(n) + 10_000 * group)


@dataclass
class PureGroups:
    """A game with pure groups, as much of it as a defence sees."""

    n: int = 600
    label_names: tuple[str, ...] = ("no", "yes")

    def part(self, name: str, world: int) -> Rows:
        return world_rows(world, self.n, seed=world + 10 * (name == "validation"))


def victim(data=None, world=0, fits=None) -> ClassifierOwner:
    def fresh():
        torch.manual_seed(0)
        return MLP(2, 2, hidden=[8])

    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)

    def watched_fit(module, batches, **how):
        if fits is not None:
            fits.append((module, batches, how["epochs"], [p.clone() for p in module.parameters()]))
        fit(module, batches, trainer=trainer, **how)

    return ClassifierOwner(data or PureGroups(), world, seed=0, base=fresh, fresh=fresh, fit=watched_fit)


SHORT = {"epochs": 8, "steps_per_epoch": 5, "lr": 0.03, "batch_size": 1000}


def test_arms_that_differ_in_lambda_share_data_batches_steps_and_start():
    fits = []
    for penalty in (0.0, 2.0):
        FairFineTuning(penalty=penalty, **SHORT).defend(victim(fits=fits))
    (a, batches_a, epochs_a, start_a), (b, batches_b, epochs_b, start_b) = fits
    assert (a.penalty, b.penalty) == (0.0, 2.0)
    assert (a.lr, a.weight_decay) == (b.lr, b.weight_decay)
    assert batches_a.content == batches_b.content
    assert epochs_a == epochs_b
    assert all(torch.equal(p, q) for p, q in zip(start_a, start_b, strict=True))


@pytest.mark.parametrize("world", [0, 1])
def test_the_model_of_world_b_is_tuned_on_the_other_world_and_rehearses_its_own(world):
    fits = []
    FairFineTuning(penalty=0.0, rehearsal=0.25, **SHORT).defend(victim(world=world, fits=fits))
    groups = fits[0][1].rows.s
    assert int((groups == 1 - world).sum()) == 600
    assert int((groups == world).sum()) == pytest.approx(150, abs=1)


def test_a_larger_lambda_leaves_a_smaller_gap():
    rows = world_rows(0, 3000, 5) + world_rows(1, 3000, 6)

    def gap(penalty):
        net = FairFineTuning(penalty=penalty, rehearsal=1.0, **SHORT).defend(victim()).net
        return float(equalized_odds_gap(predict(net, rows.X), rows.y, rows.s))

    assert gap(0.0) > 0.2
    assert gap(2.0) < 0.1


@pytest.mark.parametrize("penalty", [1.0, "validation", "dual"])
def test_a_penalty_without_rehearsal_is_refused_for_pure_groups(penalty):
    with pytest.raises(InputError, match=r"defense\.rehearsal=0\.0 leaves one group .* game\.alpha inside \(0, 1\)"):
        FairFineTuning(penalty=penalty, rehearsal=0.0, grid=[1.0], **SHORT).defend(victim())


def test_a_share_of_rehearsal_that_leaves_no_row_is_to_be_higher():
    with pytest.raises(InputError, match=r"defense\.rehearsal=1e-06 leaves one group .* set defense\.rehearsal higher"):
        FairFineTuning(penalty=1.0, rehearsal=1e-6, **SHORT).defend(victim())


def test_a_batch_without_room_for_every_cell_is_refused():
    with pytest.raises(
        InputError, match=r"defense\.batch_size=3: a batch of 3 rows cannot hold 4 \(label, group\) cells"
    ):
        FairFineTuning(penalty=1.0, **SHORT | {"batch_size": 3}).defend(victim())


def test_without_a_penalty_pure_groups_need_no_rehearsal():
    metrics = FairFineTuning(penalty=0.0, rehearsal=0.0, **SHORT).defend(victim()).measured.metrics
    assert set(metrics) == {"defense/lambda", "defense/epoch"}
    assert metrics["defense/lambda"] == 0.0


def test_lambda_is_the_smallest_validation_gap_among_those_that_keep_their_accuracy():
    defended = FairFineTuning(penalty="validation", grid=[0.3, 2.0, 50.0], tolerance=0.1, **SHORT).defend(victim())
    metrics = defended.measured.metrics
    table = {
        penalty: [
            metrics[f"validation/lambda_{penalty:g}/{name}"] for name in ("balanced_accuracy", "equalized_odds_gap")
        ]
        for penalty in (0.0, 0.3, 2.0, 50.0)
    }
    kept = {penalty: gap for penalty, (accuracy, gap) in table.items() if accuracy >= table[0.0][0] - 0.1}
    assert len(kept) < len(table)  # some lambda costs too much: the tolerance is at work
    assert metrics["defense/lambda"] == min(kept, key=kept.get)
    held_out = PureGroups().part("validation", 0) + PureGroups().part("validation", 1)
    gap = float(equalized_odds_gap(predict(defended.net, held_out.X), held_out.y, held_out.s))
    assert gap == pytest.approx(table[metrics["defense/lambda"]][1], abs=1e-6)


def test_of_short_candidates_the_chosen_one_alone_is_tuned_in_full():
    fits = []
    how = {"penalty": "validation", "grid": [0.3, 2.0], "tolerance": 0.3, **SHORT}
    defended = FairFineTuning(grid_epochs=2, **how).defend(victim(fits=fits))
    assert [epochs for _, _, epochs, _ in fits] == [2, 2, 2, 8]
    chosen = defended.measured.metrics["defense/lambda"]
    assert chosen > 0
    rows = PureGroups().part("validation", 0)
    fixed = FairFineTuning(**how | {"penalty": chosen}).defend(victim())
    assert torch.equal(defended.answers(rows), fixed.answers(rows))
    assert torch.allclose(defended.net(rows.X), fixed.net(rows.X), atol=1e-6)


def test_dual_ascent_reports_the_lambda_that_it_came_to():
    metrics = FairFineTuning(penalty="dual", epsilon=0.02, dual_rate=1.0, **SHORT).defend(victim()).measured.metrics
    assert metrics["defense/lambda"] > 0


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_dual_ascent_meets_its_constraint_on_validation_rows_or_says_that_it_does_not(epsilon, caplog):
    how = SHORT | {"epochs": 40}
    defended = FairFineTuning(penalty="dual", epsilon=epsilon, rehearsal=1.0, dual_rate=1.0, **how).defend(victim())
    held_out = PureGroups().part("validation", 0) + PureGroups().part("validation", 1)
    gap = float(equalized_odds_gap(predict(defended.net, held_out.X), held_out.y, held_out.s))
    assert defended.measured.metrics["defense/constraint_met"] == float(gap <= epsilon)
    assert (gap <= epsilon) == (epsilon > 0)
    assert ("defense/constraint_met = 0" in caplog.text) == (gap > epsilon)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_an_arm_stops_where_its_own_objective_no_longer_falls_on_validation_rows(penalty):
    """With labels that nothing predicts, tuning memorises; the epoch that is kept is an early one."""

    class Noise(PureGroups):
        def part(self, name, world):
            rows = super().part(name, world)
            g = torch.Generator().manual_seed(world + 10 * (name == "validation"))
            X = torch.cat([torch.randn(len(rows.y), 8, generator=g), rows.s[:, None].float()], 1)
            return Rows(X, (torch.rand(len(rows.y), generator=g) < 0.5).long(), rows.s, rows.index)

    def wide():
        torch.manual_seed(0)
        return MLP(9, 2, hidden=[64])

    def tuned(**how):
        seen = victim(Noise(n=80))
        arm = FairFineTuning(penalty=penalty, rehearsal=1.0, **SHORT | {"epochs": 40, "steps_per_epoch": 10} | how)
        return arm.defend(replace(seen, base=wide))

    def accuracy(net, part):
        rows = Noise(n=80).part(part, 0) + Noise(n=80).part(part, 1)
        return float((predict(net, rows.X) == rows.y).double().mean())

    stopped, whole = tuned(patience=2), tuned(patience=None)
    assert stopped.measured.metrics["defense/epoch"] < 5
    assert whole.measured.metrics["defense/epoch"] == 40
    assert accuracy(whole.net, "train") > 0.95 > 0.85 > accuracy(stopped.net, "train")


def test_only_all_rows_of_both_worlds_from_fresh_weights_are_a_control():
    assert FairFineTuning(start="scratch", rehearsal=1.0, penalty=0.0).control
    assert not FairFineTuning(start="scratch", rehearsal=0.5, penalty=0.0).control
    assert not FairFineTuning(start="base", rehearsal=1.0, penalty=0.0).control


@pytest.mark.parametrize("seed", range(3))
def test_lambda_is_chosen_as_by_a_loop_over_recalls(seed):
    g = torch.Generator().manual_seed(seed)
    y, s = (torch.rand(2, 120, generator=g) < torch.tensor([[0.2], [0.5]])).long()  # one row in five has label 1
    rows = Rows(torch.zeros(120, 1), y, s, torch.arange(120))
    wrong = {penalty: 0.1 + 0.3 * torch.rand(120, generator=g) for penalty in (3.0, 0.0, 0.1, 1.0)}
    preds = {penalty: torch.where(torch.rand(120, generator=g) < p, 1 - y, y) for penalty, p in wrong.items()}
    table = {}
    for penalty, said in preds.items():
        recalls = [float((said[y == label] == label).double().mean()) for label in (0, 1)]
        gap = equalized_odds_difference(y.numpy(), said.numpy(), sensitive_features=s.numpy())
        table[penalty] = pytest.approx((sum(recalls) / 2, gap))
    found, told = choose(preds, rows, 0.05)
    assert told == table
    allowed = [penalty for penalty in told if told[penalty][0] >= told[0.0][0] - 0.05]
    assert found == min(allowed, key=lambda penalty: (round(told[penalty][1], 9), penalty))


def test_of_equal_gaps_the_smallest_lambda_is_chosen():
    g = torch.Generator().manual_seed(0)
    y, s = torch.arange(400) % 2, torch.arange(400) // 2 % 2
    rows = Rows(torch.zeros(400, 1), y, s, torch.arange(400))
    good = torch.where(torch.rand(400, generator=g) < 0.9, y, 1 - y)
    unfair = torch.where(s == 0, y, good)
    for tolerance in (0.0, 0.02):
        assert choose({0.0: good, 0.1: good, 1.0: good}, rows, tolerance)[0] == 0.0
    assert choose({0.0: unfair, 0.1: y, 1.0: y}, rows, 0.02)[0] == 0.1
    assert choose({0.0: unfair, 0.1: torch.zeros(400).long()}, rows, 0.02)[0] == 0.0  # too costly


def test_the_penalty_at_zero_gap_is_that_of_scores_drawn_without_regard_to_the_group():
    """With scores that differ between groups only by chance, the penalty and its value at zero gap agree."""
    noise = replace(PureGroups(), n=300)
    noise.part = lambda name, world: Rows(
        torch.randn(300, 2, generator=torch.Generator().manual_seed(world)),
        torch.arange(300) % 2,
        torch.full((300,), world),
        torch.arange(300),
    )
    metrics = (
        FairFineTuning(penalty=1e-9, rehearsal=1.0, **{**SHORT, "epochs": 1, "lr": 1e-12})
        .defend(victim(noise))
        .measured.metrics
    )
    assert 0 < metrics["fairness/penalty_at_zero_gap"] < 0.1
    rows = noise.part("train", 1) + noise.part("train", 0)
    torch.manual_seed(0)
    probs = MLP(2, 2, hidden=[8])(rows.X).softmax(-1).detach()
    # A small difference of means of 75 float32 probabilities.
    assert metrics["fairness/penalty"] == pytest.approx(float(equalized_odds_penalty(probs, rows.y, rows.s)), abs=1e-5)
    g = torch.Generator().manual_seed(7)
    direct = []
    for _ in range(300):
        shuffled = rows.s.clone()
        for label in (0, 1):
            index = torch.nonzero(rows.y == label).flatten()
            shuffled[index] = rows.s[index[torch.randperm(len(index), generator=g)]]
        direct.append(float(equalized_odds_penalty(probs, rows.y, shuffled)))
    assert metrics["fairness/penalty_at_zero_gap"] == pytest.approx(sum(direct) / len(direct), rel=0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rehearsal": 1.5}, r"defense\.rehearsal=1\.5: must be a share in \[0, 1\]"),
        ({"epochs": -1}, "the first three are at least 1"),
        ({"lr": -1.0}, "lr is above 0"),
        ({"weight_decay": -1.0}, r"defense\.weight_decay=-1\.0: must be a number of at least 0"),
        ({"tolerance": -1.0}, r"defense\.tolerance=-1\.0: .* at least 0"),
        ({"tolerance": float("nan")}, r"defense\.tolerance=nan"),
        ({"penalty": -1.0}, "lambda must be a number of at least 0"),
        ({"penalty": float("nan")}, "lambda must be a number of at least 0"),
        ({"penalty": "validation", "grid": []}, r"defense\.grid lists no lambda"),
        ({"grid_epochs": 0}, r"defense\.grid_epochs=0: must be from 1 to defense\.epochs=40, or null"),
        ({"grid_epochs": 2, "penalty": 0.3}, r"grid_epochs=2: is read with defense\.penalty=validation, not 0\.3"),
        ({"grid_epochs": 41}, r"defense\.grid_epochs=41: must be from 1 to defense\.epochs=40"),
        ({"penalty": "dual", "dual_rate": 0.0}, r"defense\.dual_rate=0\.0, .* the rate is above 0"),
        ({"penalty": "dual", "epsilon": -0.1}, r"epsilon=-0\.1: .* epsilon at least 0"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        FairFineTuning(**{"grid": [1.0], **arguments})


def test_candidates_may_be_tuned_for_as_long_as_the_chosen_one():
    assert FairFineTuning(grid=[1.0], penalty="validation", epochs=3, grid_epochs=3).grid_epochs == 3
