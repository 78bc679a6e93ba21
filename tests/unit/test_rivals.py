"""The defences of others: against fairlearn itself, against counts, and one model against a pool's member."""

import dataclasses
import functools
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import fairlearn.reductions
import lightning
import numpy as np
import pytest
import torch
from fairlearn.adversarial import AdversarialFairnessClassifier
from fairlearn.postprocessing import ThresholdOptimizer as FairlearnsOptimizer
from scipy import stats
from sklearn.linear_model import LogisticRegression

from fairpriv.classifiers.attacks.attack import AttackGame, Query
from fairpriv.classifiers.attacks.game import playable
from fairpriv.classifiers.attacks.kl import KL
from fairpriv.classifiers.attacks.meta_classifier import MetaClassifier
from fairpriv.classifiers.contract import ClassifierOwner, PoolOwner
from fairpriv.classifiers.data.batches import StratifiedBatches
from fairpriv.classifiers.data.game import Deal
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.defenses.adversarial_debiasing import AdversarialDebiasing, Score
from fairpriv.classifiers.defenses.exponentiated_gradient import ExponentiatedGradient, Mixtures, together
from fairpriv.classifiers.defenses.fair_finetune import FairFineTuning
from fairpriv.classifiers.defenses.limited_answers import LimitedAnswers, keyed_noise
from fairpriv.classifiers.defenses.own_training import OwnTraining
from fairpriv.classifiers.defenses.reweighting import Reweighting
from fairpriv.classifiers.defenses.threshold_optimizer import Scores, ThresholdOptimizer, chances
from fairpriv.classifiers.nets.classifier import MLP, Classifier, fit, predict, scores
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.classifiers.nets.pool_training import member_seed
from fairpriv.config.settings import TrainingSettings
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gap, equalized_odds_penalty
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning

SHORT = {"epochs": 3, "patience": None, "steps_per_epoch": 4, "batch_size": 10_000, "lr": 0.03}
ARM = FairFineTuning(name="rehearsal", penalty=0.0, rehearsal=0.5, **SHORT)
FIT = functools.partial(fit_pool, hidden=[8], accelerator="cpu")
TRAINER = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)


def world_rows(group: int, n: int, seed: int) -> Rows:
    """One group's rows: labels that x0 follows loosely, and x1 that tells the group."""
    g = torch.Generator().manual_seed(seed)
    s = torch.full((n,), group)
    y = (torch.rand(n, generator=g) < (0.7 if group else 0.3)).long()
    X = torch.stack([y + torch.randn(n, generator=g), s + 0.1 * torch.randn(n, generator=g)], 1)
    return Rows(X.float(), y, s, torch.arange(n) + 10_000 * group)


ASKED = world_rows(0, 200, 11) + world_rows(1, 200, 12)


@dataclass
class PureGroups:
    """A game with pure groups, as much of it as a defence sees."""

    label_names: tuple[str, ...] = ("no", "yes")

    def part(self, name: str, world: int) -> Rows:
        return world_rows(world, 400, seed=world + 10 * (name == "validation"))


@functools.cache
def base_pool() -> Pool:
    rows = world_rows(0, 400, 0)
    return FIT([(rows.X, rows.y)], epochs=10, batch_size=64, lr=0.03, seed=0)


def fresh() -> MLP:
    torch.manual_seed(0)
    return MLP(2, 2, hidden=[8])


def victim(data=None) -> ClassifierOwner:
    return ClassifierOwner(
        data or PureGroups(),
        world=0,
        seed=0,
        base=lambda: base_pool().member(0),
        fresh=fresh,
        fit=functools.partial(fit, trainer=TRAINER),
    )


def owner(count: int = 2) -> PoolOwner:
    training = TrainingSettings(epochs=3, patience=2, batch_size=64, lr=0.03, weight_decay=0.0)
    half = world_rows(0, 300, 1) + world_rows(1, 300, 2)

    def deal(member: int) -> Deal:
        order = torch.randperm(300, generator=torch.Generator().manual_seed(member))
        return Deal(half, (order[:150], 300 + order[:150]), (order[150:200], 300 + order[150:200]))

    return PoolOwner([deal(member) for member in range(2 * count)], count, 5, FIT, training)


def rates(chance, rows: Rows) -> np.ndarray:
    """Mean chance of the answer 1 by label and group, cell by cell."""
    groups = sorted(set(rows.s.tolist()))
    return np.array([[float(chance[(rows.y == y) & (rows.s == s)].double().mean()) for s in groups] for y in (0, 1)])


# Re-weighting


def uneven() -> Rows:
    """Every label in every group, in counts that say nothing to one another."""
    counts = {(0, 0): 60, (1, 0): 7, (0, 1): 20, (1, 1): 33, (0, 2): 5, (1, 2): 25}
    y, s = (torch.tensor([cell[k] for cell, n in counts.items() for _ in range(n)]) for k in (0, 1))
    g = torch.Generator().manual_seed(0)
    return Rows(torch.randn(len(y), 2, generator=g), y, s, torch.arange(len(y)))


@pytest.mark.parametrize("single", [False, True])
def test_weights_are_those_under_which_label_and_group_are_independent(single):
    rows = uneven()
    if single:  # only the first row of label 0 in group 2 stays
        cell = ((rows.y == 0) & (rows.s == 2)).nonzero()[1:, 0].tolist()
        rows = rows.take(torch.tensor([i for i in range(len(rows.y)) if i not in cell]))
    weights = Reweighting().weights(rows).tolist()
    n, y, s = len(rows.y), rows.y.tolist(), rows.s.tolist()
    for i in range(n):
        joint = sum(y[j] == y[i] and s[j] == s[i] for j in range(n))
        assert weights[i] == pytest.approx(y.count(y[i]) * s.count(s[i]) / (n * joint), rel=1e-5)
    for label in (0, 1):
        for group in (0, 1, 2):
            mass = sum(w for w, a, b in zip(weights, y, s, strict=True) if (a, b) == (label, group)) / n
            assert mass == pytest.approx(y.count(label) / n * s.count(group) / n, rel=1e-5)


def test_a_label_that_a_group_lacks_weighs_nothing():
    rows = uneven()
    rows = rows.take(((rows.y == 1) | (rows.s != 2)).nonzero().flatten())
    assert torch.isfinite(Reweighting().weights(rows)).all()


def test_batches_estimate_a_weighted_mean_without_bias():
    rows, g = uneven(), torch.Generator().manual_seed(1)
    loss, weights = torch.rand(len(rows.y), generator=g), torch.rand(len(rows.y), generator=g)
    numbered = Rows(torch.arange(len(rows.y))[:, None].float(), rows.y, rows.s, rows.index)
    means = [
        float((w * loss[X[:, 0].long()]).mean()) for X, _, _, w in StratifiedBatches(numbered, 40, 2000, 0, weights)
    ]
    expected, error = float((weights * loss).mean()), np.std(means) / np.sqrt(len(means))
    assert np.mean(means) == pytest.approx(expected, abs=4 * error)
    assert StratifiedBatches(rows, 40, 1, 0, weights).content != StratifiedBatches(rows, 40, 1, 0).content


@pytest.mark.parametrize("batch_size", [40, 1000], ids=["batches", "whole"])
def test_a_weighted_member_is_the_model_that_the_single_path_trains(batch_size):
    data = [uneven(), world_rows(0, 30, 0) + world_rows(1, 50, 1)]
    weights = [Reweighting().weights(rows) for rows in data]
    how = {"epochs": 2, "lr": 0.03, "batch_size": batch_size, "steps_per_epoch": 3, "seed": 4}
    pool = FIT([(rows.X, rows.y, rows.s, w) for rows, w in zip(data, weights, strict=True)], **how)
    for i, (rows, w) in enumerate(zip(data, weights, strict=True)):
        torch.manual_seed(member_seed(4, i))
        module = Classifier(MLP(2, 2, hidden=[8]), classes=2, lr=0.03, weight_decay=0.0)
        fit(
            module,
            StratifiedBatches(rows, batch_size, 3, member_seed(4, i), w),
            epochs=2,
            trainer=TRAINER,
            validation=rows,
        )
        for ours, theirs in zip(pool.member(i).parameters(), module.net.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_weights_change_the_arm_of_fine_tuning_and_nothing_else_does():
    plain, weighted = (defense.defend(victim()).net for defense in (ARM, Reweighting(rehearsal=0.5, **SHORT)))
    assert (scores(plain, ASKED.X) - scores(weighted, ASKED.X)).abs().max() > 0.01

    class Unweighted(Reweighting):
        def weights(self, rows):
            return torch.ones(len(rows.y))

    same = Unweighted(rehearsal=0.5, **SHORT).defend(victim()).net
    assert torch.allclose(scores(plain, ASKED.X), scores(same, ASKED.X), atol=1e-4)


# fairlearn's ThresholdOptimizer


def scored(groups: int = 3, n: int = 500) -> tuple[torch.Tensor, Rows]:
    g = torch.Generator().manual_seed(2)
    s = torch.randint(0, groups, (n,), generator=g)
    y = (torch.rand(n, generator=g) < 0.3 + 0.2 * s / groups).long()
    score = (torch.randn(n, generator=g) + y + 0.5 * s).sigmoid()
    return score, Rows(score[:, None], y, s, torch.arange(n))


@pytest.mark.parametrize("objective", ["accuracy_score", "balanced_accuracy_score"])
@pytest.mark.parametrize("constraints", ["equalized_odds", "demographic_parity"])
def test_chances_are_those_that_fairlearn_draws_by(constraints, objective):
    score, rows = scored()
    rules = ThresholdOptimizer(constraints=constraints, objective=objective)._rules(score, rows)
    theirs = FairlearnsOptimizer(
        estimator=Scores(),
        constraints=constraints,
        objective=objective,
        prefit=True,
        predict_method="predict_proba",
    ).fit(score.double().numpy()[:, None], rows.y.numpy(), sensitive_features=rows.s.numpy())
    asked, groups = torch.linspace(0, 1, 301).repeat(3), torch.arange(3).repeat_interleave(301)
    expected = theirs._pmf_predict(asked.double().numpy()[:, None], sensitive_features=groups.numpy())[:, 1]
    assert np.allclose(chances(rules, asked, groups), expected, atol=1e-5)
    assert ((expected > 0) & (expected < 1)).any()  # some answers are drawn


def test_thresholds_are_a_control_where_all_rows_of_both_worlds_make_network_and_thresholds():
    both = FairFineTuning(start="scratch", rehearsal=1.0, penalty=0.0)
    assert ThresholdOptimizer(estimator=both, rehearsal=1.0).control
    assert not ThresholdOptimizer(estimator=both, rehearsal=0.5).control
    assert not ThresholdOptimizer(rehearsal=1.0).control


def test_thresholds_equalise_the_odds_of_the_rows_that_they_are_fitted_to():
    score, rows = scored()
    before = rates(score > 0.5, rows)
    after = rates(chances(ThresholdOptimizer()._rules(score, rows), score, rows.s), rows)
    assert np.ptp(before, axis=1).max() > 0.1
    assert np.ptp(after, axis=1).max() < 0.01


def test_one_model_behind_thresholds_answers_by_its_score_and_group():
    defense = ThresholdOptimizer()
    defended = defense.defend(victim())
    assert defended.net is None
    rows = victim().tuning_rows(0.5)
    assert sorted(rows.s.unique().tolist()) == [0, 1]
    model = base_pool().member(0)
    chance = chances(defense._rules(scores(model, rows.X), rows), scores(model, ASKED.X), ASKED.s)
    answers = torch.stack([defended.predict(ASKED) for _ in range(300)]).double()
    assert set(answers.unique().tolist()) == {0.0, 1.0}
    drawn = answers.mean(0)
    assert (drawn - chance).abs().max() < 4.5 * 0.5 / np.sqrt(300)
    assert (drawn - chance).abs()[(chance == 0) | (chance == 1)].max() == 0


def test_a_pools_members_have_thresholds_of_their_own():
    defense, holder = ThresholdOptimizer(), owner()
    pool = defense.defend_pool(holder)
    probs = pool.predict_proba(ASKED.X, ASKED.s)
    for i, rows in enumerate(holder.tuning_samples(0.5)):
        model = holder.base().member(i)
        rules = defense._rules(scores(model, rows.X), rows)
        assert torch.allclose(probs[i], chances(rules, scores(model, ASKED.X), ASKED.s), atol=1e-4)
    assert torch.equal(pool[[3, 1]].predict_proba(ASKED.X, ASKED.s), probs[[3, 1]])
    assert len(pool) == 4


def test_attacks_tell_models_behind_thresholds_the_group():
    pool = ThresholdOptimizer().defend_pool(owner())
    query = Query(ASKED.X, ASKED.y, ASKED.s, ASKED.s)
    game = AttackGame(pool, (pool[[0, 1]], pool[[2, 3]]), query, 0, torch.tensor([0, 0, 1, 1]))
    assert torch.equal(game.victim_probs, pool.predict_proba(ASKED.X, ASKED.s))
    assert len(KL().run(game).scores) == 4
    with pytest.raises(InputError, match=r"attack meta_classifier reads weights .*: Thresholded has none"):
        MetaClassifier().run(game)


def test_a_group_that_was_not_there_has_no_thresholds():
    score, rows = scored(groups=2)
    with pytest.raises(InputError, match="group number 2 has no thresholds"):
        chances(ThresholdOptimizer()._rules(score, rows), score, torch.full_like(rows.s, 2))


def test_a_group_with_one_label_is_refused():
    score, rows = scored()
    rows.y[rows.s == 1] = 0
    with pytest.raises(InputError, match=r"defense=threshold_optimizer: .*1"):
        ThresholdOptimizer()._rules(score, rows)


@pytest.mark.parametrize(
    "estimator",
    [ThresholdOptimizer(), SupervisedTuning("lora", None, 1, 1, 1, 1e-4)],
    ids=["randomised", "language model"],
)
def test_thresholds_need_the_scores_of_one_network(estimator):
    with pytest.raises(InputError, match=rf"defense\.estimator={estimator.name} leaves no single classifier"):
        ThresholdOptimizer(estimator=estimator)


# fairlearn's ExponentiatedGradient


fairlearns_pandas = pytest.mark.filterwarnings("ignore:Setting a")


@fairlearns_pandas
@pytest.mark.parametrize("constraints", ["equalized_odds", "demographic_parity"])
def test_the_reduction_is_fairlearns(constraints):
    """With logistic regression in place of networks, against fairlearn's own use of it."""
    _, rows = scored()
    X = torch.cat([rows.X, rows.s[:, None].float()], 1).numpy()

    def train(y, weights):
        model = LogisticRegression().fit(X, y.numpy(), sample_weight=weights.numpy())
        return model, torch.from_numpy(model.predict(X))

    mixture, _ = ExponentiatedGradient(constraints=constraints, max_iter=4)._reduce(rows, train)
    moment = {"equalized_odds": fairlearn.reductions.EqualizedOdds}.get(
        constraints, fairlearn.reductions.DemographicParity
    )
    theirs = fairlearn.reductions.ExponentiatedGradient(LogisticRegression(), moment(), max_iter=4)
    theirs.fit(X, rows.y.numpy(), sensitive_features=rows.s.numpy())
    votes = [
        chance * (np.full(len(X), model) if isinstance(model, int) else model.predict(X)) for model, chance in mixture
    ]
    assert np.allclose(sum(votes), theirs._pmf_predict(X)[:, 1], atol=1e-5)
    assert len(mixture) > 1


@fairlearns_pandas
def test_the_same_fit_is_done_once():
    _, rows = scored()
    asked = []

    def perfect(y, weights):
        asked.append((y.tolist(), weights.tolist()))
        return "the labels themselves", y

    rows.y[:] = rows.X[:, 0] > rows.X[:, 0].median()
    _, fitted = ExponentiatedGradient(max_iter=3)._reduce(rows, perfect)
    assert fitted.n_oracle_calls_ > len(asked)
    assert len({str(request) for request in asked}) == len(asked)


def test_a_mixture_of_networks_is_fairer_than_the_arm_that_it_is_made_of():
    rows = victim().tuning_rows(0.5)
    plain = ARM.defend(victim()).net
    defended = ExponentiatedGradient(estimator=ARM, max_iter=4).defend(victim())
    assert defended.measured.metrics["defense/networks"] > 1
    drawn = torch.stack([defended.predict(rows) for _ in range(50)]).double().mean(0)
    assert np.ptp(rates(drawn, rows), axis=1).max() < np.ptp(rates(predict(plain, rows.X), rows), axis=1).max() - 0.1


def test_one_mixture_draws_from_constant_answers_too(monkeypatch):
    net = base_pool().member(0)
    defense = ExponentiatedGradient(estimator=dataclasses.replace(ARM, epochs=1))
    reduced = [(net, 0.25), (1, 0.6), (0, 0.15)], SimpleNamespace(best_gap_=0.125)
    monkeypatch.setattr(defense, "_reduce", lambda rows, train: reduced)
    defended = defense.defend(victim())
    drawn = torch.stack([defended.predict(ASKED) for _ in range(300)]).double().mean(0)
    chance = 0.25 * predict(net, ASKED.X) + 0.6
    assert (drawn - chance).abs().max() < 4.5 * 0.5 / np.sqrt(300)
    assert defended.measured.metrics["defense/networks"] == 3
    assert defended.measured.metrics["defense/duality_gap"] == 0.125


@pytest.mark.parametrize(("stopped", "epochs"), [(0, 1), (3, 3)])
def test_one_models_fits_have_the_labels_and_weights_asked_for_and_the_epochs_of_the_arm(monkeypatch, stopped, epochs):
    net, fits = base_pool().member(0), []

    def tune_for(arm, owner, rows, weights, epochs):
        fits.append((rows, weights, epochs))
        return SimpleNamespace(net=net)

    def reduce(defense, rows, train):
        asked.extend((1 - rows.y, torch.rand(len(rows.y))))
        return [(train(*asked)[0], 1.0)], SimpleNamespace(best_gap_=0.0)

    asked = []
    monkeypatch.setattr(FairFineTuning, "tune_on", lambda *_: SimpleNamespace(epoch=stopped))
    monkeypatch.setattr(FairFineTuning, "tune_for", tune_for)
    monkeypatch.setattr(ExponentiatedGradient, "_reduce", reduce)
    defended = ExponentiatedGradient(estimator=ARM).defend(victim())
    ((rows, weights, given),) = fits
    assert torch.equal(rows.y, asked[0])
    assert torch.equal(rows.X, victim().tuning_rows(0.5).X)
    assert torch.equal(weights, asked[1])
    assert given == defended.measured.metrics["defense/epoch"] == epochs


def test_one_mixture_draws_by_the_seed_of_its_cell(monkeypatch):
    even = [(1, 0.5), (0, 0.5)], SimpleNamespace(best_gap_=0.0)
    monkeypatch.setattr(FairFineTuning, "tune_on", lambda *_: SimpleNamespace(epoch=1))
    monkeypatch.setattr(ExponentiatedGradient, "_reduce", lambda *_: even)
    defense = ExponentiatedGradient(estimator=ARM)
    first, again, other = (
        defense.defend(dataclasses.replace(victim(), seed=seed)).predict(ASKED).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


@fairlearns_pandas
def test_a_pools_members_are_reduced_as_each_would_be_alone():
    arm = dataclasses.replace(ARM, epochs=1)
    defense = ExponentiatedGradient(estimator=arm, max_iter=3)
    holder = owner(1)
    all_at_once = defense.defend_pool(holder).predict_proba(ASKED.X)
    start, samples = holder.base(), holder.tuning_samples(0.5)
    for i in (0, 1):

        def train(y, weights, i=i):
            data = [(samples[i].X, y, samples[i].s, weights)]
            pool = arm.tune_pool(holder, data, start[[i]], numbers=[i], validation=None)
            return pool, (pool.predict_proba(samples[i].X)[0] > 0.5).long()

        mixture, _ = defense._reduce(samples[i], train)
        alone = sum(chance * (net.predict_proba(ASKED.X)[0] > 0.5).double() for net, chance in mixture)
        assert torch.allclose(all_at_once[i].double(), alone, atol=1e-5)
        assert len(mixture) > 1  # else it does not depend on what the networks answer


def test_members_that_ask_at_one_time_keep_their_numbers_starts_and_epochs(monkeypatch):
    """Of two members, which ask once and twice."""
    holder, calls, told = owner(1), [], {"epoch": [0.0, 3.0]}  # at which epoch the arm stopped
    samples, start = holder.tuning_samples(0.5), holder.base()
    nets = Pool.join([base_pool(), Pool.of([fresh()])])

    def tune_pool(arm, owner, datasets, start, *, numbers=(0, 1), **fixed):
        calls.append((start, numbers, fixed, [data[1] for data in datasets]))
        return dataclasses.replace(nets[[*numbers]], told=told if not fixed else {})

    def reduce(defense, rows, train):
        member = int(torch.equal(rows.X, samples[1].X))
        for turn in range(member + 1):
            net, answers = train(rows.y * 0 + turn, torch.ones(len(rows.y)))
            assert torch.equal(answers, (nets[[member]].predict_proba(rows.X)[0] > 0.5).long())
        return [(net, 1.0)], None

    monkeypatch.setattr(FairFineTuning, "tune_pool", tune_pool)
    monkeypatch.setattr(ExponentiatedGradient, "_reduce", reduce)
    mixtures = ExponentiatedGradient(estimator=ARM).defend_pool(holder)
    assert torch.equal(mixtures.predict_proba(ASKED.X), (nets.predict_proba(ASKED.X) > 0.5).float())
    fixed = {"patience": None, "validation": None, "store": None}
    _, (_, *both), (_, *last) = calls
    assert both[:2] == [[0, 1], fixed | {"epochs": [1, 3]}]
    assert last[:2] == [[1], fixed | {"epochs": [3]}]
    assert [int(labels.unique()) for labels in (*both[2], *last[2])] == [0, 0, 1]
    for own, numbers, *_ in calls[1:]:
        assert torch.equal(own.predict_proba(ASKED.X), start[numbers].predict_proba(ASKED.X))
        assert len(own) == len(numbers)


def test_a_mixture_is_the_weighted_vote_of_its_networks_and_constants():
    nets = [Pool.of([fresh()]), base_pool()]
    mixtures = Mixtures.of([[(nets[0], 0.25), (1, 0.75)], [(nets[1], 1.0)], [(0, 0.5), (nets[0], 0.5)]])
    votes = [(net.predict_proba(ASKED.X)[0] > 0.5).float() for net in nets]
    expected = torch.stack([0.25 * votes[0] + 0.75, votes[1], 0.5 * votes[0]])
    assert torch.allclose(mixtures.predict_proba(ASKED.X), expected)
    assert torch.allclose(mixtures[[2, 0]].predict_proba(ASKED.X), expected[[2, 0]])
    assert len(mixtures[[2, 0]].networks) == 4
    assert mixtures.diverged == []


def test_a_mixture_with_a_network_that_broke_off_has_diverged():
    broken = Pool(base_pool().weights, [0])
    assert Mixtures.of([[(base_pool(), 1.0)], [(base_pool(), 0.5), (broken, 0.5)]]).diverged == [1]


def test_what_is_asked_at_the_same_time_is_trained_together():
    """Three algorithms that ask 1, 2 and 3 times: whoever is not done takes part in each round."""
    rounds = []

    def work(number, ask):
        time.sleep(0.01 * (2 - number))  # the first is the slowest
        return [ask(torch.tensor(number), torch.tensor(i)) for i in range(number + 1)]

    def train(asked):
        rounds.append((sorted(asked), threading.current_thread() is threading.main_thread()))
        return {number: (int(y), int(w)) for number, (y, w) in asked.items()}

    assert together(3, work, train) == [[(n, i) for i in range(n + 1)] for n in range(3)]
    assert rounds == [([0, 1, 2], True), ([1, 2], True), ([2], True)]


@pytest.mark.parametrize("where", ["work", "train"])
def test_an_error_among_them_ends_all(where):
    def work(number, ask):
        if where == "work" and number == 1:
            raise InputError("member 1 is wrong")
        return ask(torch.tensor(0), torch.tensor(0))

    def train(asked):
        if where == "train":
            raise InputError("member 1 is wrong")
        return dict.fromkeys(asked, 0)

    with pytest.raises(InputError, match="member 1 is wrong"):
        together(3, work, train)


@pytest.mark.parametrize("estimator", [FairFineTuning(grid=[1.0]), Reweighting()], ids=lambda arm: arm.name)
def test_a_reduction_trains_arms_with_lambda_zero(estimator):
    with pytest.raises(InputError, match=rf"defense\.estimator={estimator.name}: its fits are weighted ones"):
        ExponentiatedGradient(estimator=estimator)


# fairlearn's adversarial debiasing


def test_debiasing_is_fairlearns_where_a_batch_is_the_whole_data():
    rows = victim().tuning_rows(0.5)
    defense = AdversarialDebiasing(epochs=4, patience=None, batch_size=10_000, alpha=0.7, adversary=[4])
    ours = defense.defend(victim()).net
    theirs = base_pool().member(0)
    classifier = AdversarialFairnessClassifier(
        backend="torch",
        predictor_model=Score(theirs),
        adversary_model=[4, "relu"],
        predictor_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.0001),
        learning_rate=0.003,
        constraints="equalized_odds",
        alpha=0.7,
        epochs=5,  # the first step is ours, too
        batch_size=-1,
        random_state=0,
    )
    with torch.random.fork_rng(devices=[]):
        classifier.fit(rows.X.numpy(), rows.y.numpy(), sensitive_features=rows.s.numpy())
    for a, b, before in zip(ours.parameters(), theirs.parameters(), base_pool().member(0).parameters(), strict=True):
        assert torch.allclose(a, b, atol=0.01 * 0.003)  # a hundredth of a step
        assert not torch.equal(a, before)


def test_debiasing_lowers_the_gap():
    rows = victim().tuning_rows(1.0)

    def gap(alpha):
        how = {"adversary": [4], "adversary_lr": 0.01, "epochs": 20, "batch_size": 100, "lr": 0.01}
        defense = AdversarialDebiasing(rehearsal=1.0, alpha=alpha, **how)
        return float(equalized_odds_gap(predict(defense.defend(victim()).net, rows.X), rows.y, rows.s))

    assert gap(1.0) < gap(0.0) - 0.1


@pytest.mark.parametrize("start", ["base", "scratch"])
def test_a_pools_members_are_debiased_as_each_would_be_alone(start):
    defense, holder = AdversarialDebiasing(start=start, epochs=2, batch_size=50), owner()
    before = torch.random.get_rng_state()
    pool = defense.defend_pool(holder)
    assert torch.equal(torch.random.get_rng_state(), before)  # fairlearn seeds it
    for i, rows in enumerate(holder.tuning_samples(0.5)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(member_seed(holder.seed, i))
            net = holder.base().member(i) if start == "base" else MLP(2, 2, hidden=[8])
        epoch = defense._tune(net, rows, holder.validation()[i], member_seed(holder.seed, i))
        assert pool.told["epoch"][i] == epoch
        assert torch.allclose(pool.predict_proba(ASKED.X)[i], scores(net, ASKED.X), atol=1e-4)


def test_debiasing_stops_by_the_objective_of_fair_fine_tuning_and_keeps_its_best_epoch():
    rows, held_out = victim().tuning_rows(1.0), victim().validation
    how = {"adversary": [4], "batch_size": 50, "lr": 0.02, "rehearsal": 1.0}

    def tuned(epochs, patience):
        net = base_pool().member(0)
        epoch = AdversarialDebiasing(epochs=epochs, patience=patience, **how)._tune(net, rows, held_out, 0)
        logits = net(held_out.X).detach()
        loss = torch.nn.functional.cross_entropy(logits, held_out.y)
        penalty = equalized_odds_penalty(logits.softmax(-1), held_out.y, held_out.s)
        return epoch, float(loss + penalty)

    epoch, value = tuned(12, 3)
    every = [tuned(n, None) for n in range(1, 13)]
    assert [n for n, _ in every] == list(range(1, 13))
    values = [v for _, v in every]
    assert value == pytest.approx(values[epoch - 1], abs=1e-5)
    assert value <= min(values[: epoch + 3]) + 1e-4
    assert epoch < 12


def test_a_member_that_diverges_is_reported_and_stays_as_it_was():
    defense, holder = AdversarialDebiasing(epochs=2, batch_size=50, lr=1e30), owner(1)
    pool = defense.defend_pool(holder)
    assert pool.diverged == [0, 1]
    assert torch.equal(pool.predict_proba(ASKED.X), holder.base().predict_proba(ASKED.X))


# All of them

RIVALS = [ThresholdOptimizer(), ExponentiatedGradient(estimator=ARM, max_iter=2), AdversarialDebiasing(epochs=1)]
each_of_fairlearns = pytest.mark.parametrize("defense", RIVALS, ids=lambda defense: defense.name)


@each_of_fairlearns
def test_more_than_two_labels_are_refused(defense):
    with pytest.raises(InputError, match=f"defense={defense.name} takes two labels .* the target has 3"):
        defense.defend(victim(PureGroups(("no", "perhaps", "yes"))))


@pytest.mark.parametrize(
    "defense",
    [
        ThresholdOptimizer(rehearsal=0.0),
        ExponentiatedGradient(estimator=FairFineTuning(name="fine_tune", penalty=0.0, rehearsal=0.0, **SHORT)),
        AdversarialDebiasing(rehearsal=0.0),
    ],
    ids=lambda defense: defense.name,
)
def test_one_group_alone_is_refused(defense):
    with pytest.raises(InputError, match=r"rehearsal=0\.0 leaves one group in every batch, so equalized_odds"):
        defense.defend(victim())


@pytest.mark.parametrize(
    ("defense", "arguments", "message"),
    [
        (ThresholdOptimizer, {"rehearsal": 1.5}, r"defense\.rehearsal=1\.5: must be a share"),
        (ThresholdOptimizer, {"rehearsal": -0.5}, r"defense\.rehearsal=-0\.5: must be a share"),
        (AdversarialDebiasing, {"rehearsal": 1.5}, r"defense\.rehearsal=1\.5: must be a share"),
        (AdversarialDebiasing, {"rehearsal": -1.0}, r"defense\.rehearsal=-1\.0: must be a share"),
        (AdversarialDebiasing, {"alpha": -1.0}, r"defense\.alpha=-1\.0"),
        (AdversarialDebiasing, {"alpha": float("nan")}, r"defense\.alpha=nan"),
        (AdversarialDebiasing, {"lr": 0.0}, r"lr=0\.0"),
        (AdversarialDebiasing, {"adversary_lr": float("nan")}, r"adversary_lr=nan"),
        (AdversarialDebiasing, {"adversary_lr": 0.0}, r"adversary_lr=0\.0"),
        (AdversarialDebiasing, {"adversary": [4, 0]}, r"adversary=\[4, 0\]"),
        (AdversarialDebiasing, {"epochs": 0}, r"defense\.epochs=0"),
        (AdversarialDebiasing, {"weight_decay": -1.0}, r"defense\.weight_decay=-1\.0: must be a number of at least 0"),
        (ExponentiatedGradient, {"max_iter": 0}, r"max_iter=0"),
        (ExponentiatedGradient, {"difference_bound": 1.0}, r"difference_bound=1\.0"),
        (ExponentiatedGradient, {"difference_bound": 0.0}, r"difference_bound=0\.0"),
        (ExponentiatedGradient, {"eps": 0.0}, r"eps=0\.0"),
        (LimitedAnswers, {"noise": -1.0}, r"noise=-1\.0"),
        (LimitedAnswers, {"digits": 16}, r"defense\.digits=16, noise=1\.0: digits are from 0 to 15"),
        (LimitedAnswers, {"estimator": ThresholdOptimizer()}, r"threshold_optimizer leaves no single network"),
        (OwnTraining, {"name": "x", "smoothing": 1.0}, r"defense\.smoothing=1\.0: must be a share"),
        (OwnTraining, {"name": "x", "smoothing": -0.5}, r"defense\.smoothing=-0\.5: must be a share"),
        (OwnTraining, {"name": "x", "epochs": 0}, r"defense\.epochs=0"),
        (OwnTraining, {"name": "x", "batch_size": 0}, r"batch_size=0"),
        (OwnTraining, {"name": "x", "lr": 0.0}, r"lr=0\.0"),
        (OwnTraining, {"name": "x", "patience": 0}, r"defense\.patience=0"),
        (OwnTraining, {"name": "x", "weight_decay": float("nan")}, r"defense\.weight_decay=nan"),
    ],
)
def test_settings_out_of_range_are_refused(defense, arguments, message):
    more = {"estimator": ARM} if defense is ExponentiatedGradient else {}
    with pytest.raises(InputError, match=message):
        defense(**more, **arguments)


def test_the_ends_of_ranges_are_taken():
    least = {"epochs": 1, "batch_size": 1, "patience": 1, "weight_decay": 0.0}
    AdversarialDebiasing(adversary=[1], alpha=0.0, rehearsal=0.0, **least)
    ExponentiatedGradient(estimator=ARM, max_iter=1)
    LimitedAnswers(digits=15, noise=0.0)
    OwnTraining("x", smoothing=0.0, **least)


def test_debiasing_is_a_control_on_all_rows_of_both_worlds_from_fresh_weights():
    assert AdversarialDebiasing(start="scratch", rehearsal=1.0).control
    assert not AdversarialDebiasing(start="scratch", rehearsal=0.5).control
    assert not AdversarialDebiasing(start="base", rehearsal=1.0).control


@pytest.mark.parametrize("around", [ThresholdOptimizer, LimitedAnswers])
def test_what_is_around_a_defence_refuses_the_inputs_that_it_refuses(around):
    around().refuse_inputs()
    with pytest.raises(InputError, match="defense=adversarial_debiasing takes rows of features"):
        around(estimator=AdversarialDebiasing()).refuse_inputs()


@pytest.mark.parametrize(
    ("defense", "labels_alone"),
    [
        (ThresholdOptimizer(), True),
        (ExponentiatedGradient(estimator=ARM), True),
        (LimitedAnswers(answers="label"), True),
        (LimitedAnswers(answers="rounded"), False),
        (AdversarialDebiasing(), False),
    ],
)
def test_defences_say_whether_they_tell_labels_alone(defense, labels_alone):
    assert defense.answers_only == labels_alone


# Limited answers, smoothed labels, few epochs


@pytest.mark.parametrize("answers", ["label", "top1", "rounded", "noise"])
@pytest.mark.parametrize("classes", [2, 4])
def test_what_is_told_are_probabilities_with_the_label_that_the_model_gives(answers, classes):
    g = torch.Generator().manual_seed(0)
    probs = torch.rand(500, classes, generator=g).softmax(1)
    probs[0] = 1 / classes  # all alike
    probs[1] = torch.eye(classes)[1]
    told = LimitedAnswers(answers=answers, noise=3.0).limit(probs, torch.randn(500, 3, generator=g), key=7)
    assert torch.equal(told.argmax(1), probs.argmax(1))
    assert torch.allclose(told.sum(1), torch.ones(500))
    assert told.min() >= 0
    if answers == "label":
        assert set(told.unique().tolist()) == {0.0, 1.0}
    if answers == "top1":
        assert torch.equal(told.amax(1), probs.amax(1))
        assert all(len(set(row.tolist())) <= 2 for row in told)
    if answers == "rounded" and classes == 2:
        assert len(told.unique()) <= 13  # tenths, and where both classes are rounded to one half
    if answers == "noise":
        assert (told - probs).abs().max() > 0.2


@pytest.mark.parametrize("digits", [1, 2])
def test_rounded_answers_are_decimals_and_a_tie_leaves_the_label_a_quarter_of_a_step_ahead(digits):
    step = 0.1**digits
    whole = [[5, 3, 2], [3, 3, 3], [4, 1, 5], [4, 5, 5], [10, 0, 0]]  # in steps, before the shares are made to sum to 1
    moved = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.0, 0.1, 0.2], [0.0, 0.2, 0.1], [0.1, 0.0, 0.2]]
    probs = torch.tensor(whole).double() * step + torch.tensor(moved).double() * step
    told = LimitedAnswers(answers="rounded", digits=digits).limit(probs, torch.zeros(5, 1), 0)
    for row, ahead, answer in zip(whole, [None, 0, None, 1, None], told.tolist(), strict=True):
        expected = [n + 0.25 * (i == ahead) for i, n in enumerate(row)]
        assert answer == pytest.approx([n / sum(expected) for n in expected], abs=1e-6)


def test_noise_is_a_function_of_row_and_key_and_otherwise_normal_and_independent():
    X = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    noise = keyed_noise(X, 1, 2)
    assert torch.equal(noise[:10].flip(0), keyed_noise(X[:10].flip(0), 1, 2))
    assert torch.equal(keyed_noise(torch.zeros(2, 3), 1, 2), keyed_noise(-torch.zeros(2, 3), 1, 2))  # equal rows, too
    assert stats.kstest(noise.flatten(), "norm").pvalue > 0.001
    near = X + torch.tensor([2**-20, 0.0, 0.0])
    for other in (keyed_noise(X, 2, 2), keyed_noise(near, 1, 2), noise.flip(1)):
        assert abs(np.corrcoef(noise[:, 0], other[:, 0])[0, 1]) < 0.06  # 3.8 standard errors


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_noise_has_its_standard_deviation_in_log_probabilities(noise):
    X = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    told = LimitedAnswers(answers="noise", noise=noise).limit(torch.full((4000, 2), 0.5), X, key=7)
    apart = (told[:, 0] / told[:, 1]).log().double()  # of two draws, and the larger one comes first
    assert float(apart.square().mean().sqrt()) == pytest.approx(noise * 2**0.5, rel=0.05)


@pytest.mark.parametrize("answers", ["label", "rounded", "noise"])
def test_a_model_and_a_pool_tell_less_and_answer_as_before(answers):
    rule = LimitedAnswers(answers=answers)
    one, pool, bare = rule.defend(victim()), rule.defend_pool(owner()), owner().base()
    assert torch.equal(one.answers(ASKED), predict(base_pool().member(0), ASKED.X))
    told, probs = pool.predict_proba(ASKED.X), bare.predict_proba(ASKED.X)
    assert torch.equal(told > 0.5, probs > 0.5)
    assert not torch.allclose(told, probs, atol=0.01)
    torch.testing.assert_close(pool[[2]].predict_proba(ASKED.X)[0], told[2])  # a member keeps its key
    assert pool.weights == ()
    if answers == "label":
        assert one.tells is None  # of labels there are no probabilities
    else:
        plain = base_pool().member(0)(ASKED.X).detach().softmax(1)
        torch.testing.assert_close(one.tells(ASKED), rule.limit(plain, ASKED.X, member_seed(0, 0)))


def test_attacks_on_weights_are_left_out_where_only_answers_are_defended():
    left, omitted = playable([KL("kl"), MetaClassifier("meta")], LimitedAnswers())
    assert [attack.name for attack in left] == ["kl"]
    assert "weights" in omitted["meta"]


def test_the_largest_of_two_probabilities_hides_nothing():
    with pytest.raises(InputError, match="answers=top1 hides nothing where there are two labels"):
        LimitedAnswers(answers="top1").defend(victim())


def test_own_training_without_a_change_is_no_defence_and_smoothing_makes_it_less_sure():
    base = vars(TrainingSettings(epochs=3, patience=2, batch_size=64, lr=0.03, weight_decay=0.0))
    plain = OwnTraining("plain", **base).defend_pool(owner()).predict_proba(ASKED.X)
    assert torch.equal(plain, owner().base().predict_proba(ASKED.X))
    smooth = OwnTraining("smooth", **base, smoothing=0.6).defend_pool(owner()).predict_proba(ASKED.X)
    assert (smooth - 0.5).abs().mean() < 0.7 * (plain - 0.5).abs().mean()
    net = OwnTraining("early", **base | {"epochs": 1}).defend(victim())
    assert net.measured.metrics["defense/epoch"] == 1
