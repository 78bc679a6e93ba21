"""Membership inference against double loops, closed forms, and worlds where nothing or everything leaks."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from fairpriv.classifiers.attacks.membership import RMIA, LabelProbability, LargestProbability, LiRA, MembershipGame
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.dimensions.membership import Membership
from fairpriv.functional.membership import (
    balanced_accuracy_of,
    confidences,
    dp_true_positive_bound,
    label_probabilities,
    lira_scores,
    mean_auc_interval,
    membership_auc,
    rates_at,
    rmia_scores,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def world(rng):
    """Confidences of victims and references, and which reference had which row."""
    inside = torch.as_tensor(rng.random((24, 7)) < 0.5)
    inside[:2], inside[2:4] = True, False  # two of each kind at least
    references = torch.as_tensor(rng.normal(size=(24, 7)) + 1.5 * inside.numpy())
    return torch.as_tensor(rng.normal(size=(5, 7))), references, inside


@pytest.mark.parametrize("variance", ["row", "global"])
@pytest.mark.parametrize("online", [True, False])
def test_lira_is_the_ratio_of_two_normal_densities(world, online, variance):
    victims, references, inside = world
    found = lira_scores(victims, references, inside, online=online, variance=variance)

    def normal(row: int, chosen: bool):
        columns = [references[inside[:, n] == chosen, n].numpy() for n in range(7)]
        own = columns[row]
        if variance == "row":
            return own.mean(), own.std(ddof=1)
        squares = sum(((column - column.mean()) ** 2).sum() for column in columns)
        return own.mean(), math.sqrt(squares / sum(len(column) - 1 for column in columns))

    for v in range(5):
        for n in range(7):
            c, out = float(victims[v, n]), stats.norm(*normal(n, False))
            expected = stats.norm(*normal(n, True)).logpdf(c) - out.logpdf(c) if online else out.logcdf(c)
            assert float(found[v, n]) == pytest.approx(expected, rel=1e-9)


def test_lira_reaches_the_power_of_the_neyman_pearson_test_on_gaussian_means(rng):
    # A confidence is N(0, 1) outside and N(1.5, 1) inside: the AUC of the best test is Phi(1.5 / sqrt 2).
    rows, shift = 4000, 1.5
    inside = torch.as_tensor(rng.random((200, rows)) < 0.5)
    references = torch.as_tensor(rng.normal(size=(200, rows)) + shift * inside.numpy())
    member = torch.as_tensor(rng.random(rows) < 0.5)
    victim = torch.as_tensor(rng.normal(size=(1, rows)) + shift * member.numpy())
    best = stats.norm.cdf(shift / math.sqrt(2))
    for options in ({}, {"online": False}, {"variance": "global"}):
        scores = lira_scores(victim, references, inside, **options)[0]
        assert membership_auc(scores, member) == pytest.approx(best, abs=0.02)  # standard error 0.006
    power = 1 - stats.norm.cdf(stats.norm.ppf(0.99) - shift)
    assert rates_at(scores, member, 0.01)[0] == pytest.approx(
        power, abs=0.1
    )  # four standard errors, the threshold's in


@pytest.mark.parametrize("online", [True, False])
def test_rmia_counts_the_population_rows_that_a_row_dominates(rng, online):
    inside = torch.as_tensor(rng.random((9, 6)) < 0.5)
    inside[0], inside[1] = True, False
    victims, references = torch.as_tensor(rng.random((3, 6))), torch.as_tensor(rng.random((9, 6)))
    population, beside = torch.as_tensor(rng.random((3, 40))), torch.as_tensor(rng.random((9, 40)))
    found = rmia_scores(victims, references, inside, population, beside, gamma=1.3, offline_slope=0.4, online=online)
    for v in range(3):
        for n in range(6):
            out = np.mean([float(references[m, n]) for m in range(9) if not inside[m, n]])
            within = np.mean([float(references[m, n]) for m in range(9) if inside[m, n]])
            marginal = (within + out) / 2 if online else 0.7 * out + 0.3
            ratio = float(victims[v, n]) / marginal
            wins = [
                ratio / (float(population[v, z]) / np.mean([float(beside[m, z]) for m in range(9)])) >= 1.3
                for z in range(40)
            ]
            assert float(found[v, n]) == pytest.approx(np.mean(wins))


@pytest.mark.parametrize("classes", [2, 3])
def test_attacks_score_the_rows_of_their_game_by_the_probability_of_their_own_label(classes):
    draw = torch.Generator().manual_seed(classes)
    y, other = torch.arange(7) % classes, torch.arange(9) % classes

    def asked(models, n):
        probs = torch.rand(models, n, classes, generator=draw).softmax(-1)
        return probs if classes > 2 else probs[..., 1]

    def own(probs, labels):
        one = [[p[n] if classes > 2 else torch.stack((1 - p[n], p[n])) for n in range(len(labels))] for p in probs]
        return torch.tensor([[float(p[label]) for p, label in zip(row, labels, strict=True)] for row in one])

    inside = (torch.arange(6)[:, None] + torch.arange(7)) % 2 == 0
    rows, population = (Rows(torch.zeros(len(of), 1), of, of, torch.arange(len(of))) for of in (y, other))
    answers = asked(1, 7), asked(1, 9), asked(6, 7), asked(6, 9)
    game = MembershipGame(rows, population, *answers, inside, seed=0)
    victim, others, references, beside = (
        own(probs, labels) for probs, labels in zip(answers, (y, other, y, other), strict=True)
    )
    odds = victim.logit(), references.logit(), inside
    largest = [max(p.tolist()) if classes > 2 else max(float(p), 1 - float(p)) for p in answers[0][0]]
    for attack, expected in (
        (LiRA(), lira_scores(*odds, variance="global")[0]),
        (LiRA(online=False, variance="row"), lira_scores(*odds, online=False)[0]),
        (RMIA(), rmia_scores(victim, references, inside, others, beside)[0]),
        (LabelProbability(), victim[0]),
        (LargestProbability(), torch.tensor(largest)),
    ):
        assert attack.run(game).tolist() == pytest.approx(expected.tolist(), rel=1e-4), attack.name


def test_nothing_is_found_of_a_model_that_ignores_its_data(rng):
    inside = torch.as_tensor(rng.random((64, 3000)) < 0.5)
    references = torch.as_tensor(rng.normal(size=(64, 3000)))
    member = torch.as_tensor(rng.random(3000) < 0.5)
    victim = torch.as_tensor(rng.normal(size=(1, 3000)))
    scores = lira_scores(victim, references, inside)[0]
    assert membership_auc(scores, member) == pytest.approx(0.5, abs=4 * 0.0106)  # four standard errors of no signal
    assert rates_at(scores, member, 0.01)[0] < 0.03  # 0.01, and five standard errors with the threshold's


def test_everything_is_found_of_a_table_look_up(rng):
    # It is sure of what it has seen, and guesses otherwise.
    inside = torch.as_tensor(rng.random((16, 500)) < 0.5)
    inside[:2], inside[2:4] = True, False
    member = torch.as_tensor(rng.random(500) < 0.5)
    own, victim = (torch.where(known, 0.999, 0.5) for known in (inside, member[None]))
    for options in ({}, {"online": False}):
        scores = lira_scores(confidences(victim), confidences(own), inside, **options)[0]
        assert membership_auc(scores, member) == 1
        assert rates_at(scores, member, 0.01)[0] == 1
        assert balanced_accuracy_of(scores, member) == 1
    population = torch.full((1, 100), 0.5)
    scores = rmia_scores(victim, own, inside, population, torch.full((16, 100), 0.5), gamma=1.1)[0]
    assert membership_auc(scores, member) == 1


def test_rates_agree_with_scikit_learn(rng):
    scores = torch.as_tensor(rng.integers(0, 30, 800).astype(float))  # with ties
    member = torch.as_tensor(rng.random(800) < 0.4 + scores.numpy() / 100)
    false, true, _ = roc_curve(member, scores, drop_intermediate=False)
    assert membership_auc(scores, member) == pytest.approx(roc_auc_score(member, scores))
    assert balanced_accuracy_of(scores, member) == pytest.approx(0.5 + (true - false).max() / 2)
    for fpr in (0.01, 0.1, 0.5):
        found, (low, high) = rates_at(scores, member, fpr)
        assert found == pytest.approx(true[false <= fpr + 1e-12].max())
        assert low <= found < high


def test_the_interval_of_a_rate_is_exact_where_the_threshold_is_certain(rng):
    # 20 members above all 300 non-members, which are equal: no threshold finds more or fewer of the 50
    scores, member = torch.cat((torch.ones(20), torch.zeros(330))), torch.arange(350) < 50
    found, interval = rates_at(scores, member, 0.05)
    exact = stats.binomtest(20, 50).proportion_ci(method="exact")
    assert found == 0.4
    assert interval == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("m", "fpr"), [(100, 0.29), (100, 0.07), (50, 0.02), (10, 0.95)])  # 100 * 0.29 is below 29
def test_the_interval_of_a_rate_joins_those_of_hits_and_of_the_threshold(rng, m, fpr):
    positive, negative = rng.normal(0.5, 1, 40), rng.normal(0, 1, m)
    for shift in (0, -9):  # then none is found
        scores, member = torch.from_numpy(np.r_[positive + shift, negative]), torch.arange(40 + m) < 40
        largest = [math.inf, *sorted(negative, reverse=True), -math.inf]

        def found(place, shift=shift, largest=largest):
            return float((positive + shift > largest[place]).mean())

        rate = max(found(place) for place in range(m + 1) if place - 1 <= fpr * m + 1e-9)
        exact = stats.binomtest(round(40 * rate), 40).proportion_ci(method="exact")
        first, last = (int(stats.binom.ppf(q, m, fpr)) for q in (0.025, 0.975))  # of a quantile, by order statistics
        low = rate - math.hypot(rate - exact.low, rate - found(first))
        high = rate + math.hypot(exact.high - rate, found(last + 1) - rate)
        value, interval = rates_at(scores, member, fpr)
        assert value == pytest.approx(rate)
        assert interval == pytest.approx((max(0, low), min(1, high)))


@pytest.mark.parametrize(
    ("rows", "fpr", "shift"), [(4000, 0.001, 1), (4000, 0.001, 0), (4000, 0.01, 1), (800, 0.01, 0), (200, 0.05, 2)]
)
def test_the_interval_of_a_rate_covers_it_over_draws_of_the_non_members_too(rng, rows, fpr, shift):
    truth = stats.norm.sf(stats.norm.isf(fpr) - shift)
    member = torch.arange(2 * rows) < rows
    covered = 0
    for _ in range(200):
        scores = torch.from_numpy(rng.normal(size=2 * rows)) + shift * member
        low, high = rates_at(scores, member, fpr)[1]
        covered += low <= truth <= high
    assert covered >= 182  # of 95 %, less than one in two hundred such tests would have fewer


@pytest.mark.parametrize("fpr", [0.02, 0.3, 0.98])
def test_the_interval_of_a_rate_holds_it_where_scores_are_tied(rng, fpr):
    for levels in (1, 2, 5):
        scores = torch.from_numpy(rng.integers(0, levels, 120).astype(float))
        found, (low, high) = rates_at(scores, torch.arange(120) % 2 == 0, fpr)
        assert 0 <= low <= found <= high <= 1


@pytest.mark.parametrize("alike", [False, True])
def test_the_interval_of_a_mean_auc_is_that_of_two_ways_of_clustering(rng, alike):
    scores, member = (
        torch.from_numpy(rng.integers(0, 9, (7, 30)).astype(float)),
        torch.from_numpy(rng.random((7, 30)) < 0.5),
    )
    if alike:
        scores = scores[:1] + 3 * member  # so that rows make more of the variance than victims do
    added, auc = np.zeros((7, 30)), np.zeros(7)
    for v in range(7):
        inside, outside = (np.flatnonzero(member[v] == kind) for kind in (True, False))
        won = {(i, j): float(torch.sign(scores[v, i] - scores[v, j])) / 2 + 0.5 for i in inside for j in outside}
        auc[v] = np.mean(list(won.values()))
        assert auc[v] == pytest.approx(membership_auc(scores[v], member[v]))
        for i in inside:
            added[v, i] = (np.mean([won[i, j] for j in outside]) - auc[v]) / len(inside)
        for j in outside:
            added[v, j] = (np.mean([won[i, j] for i in inside]) - auc[v]) / len(outside)
    rows, victims = (added.sum(0) ** 2).sum() / 49 * 30 / 29, stats.sem(auc) ** 2
    variance = max(rows + victims - (added**2).sum() / 49, rows, victims)
    half = stats.t.ppf(0.975, 6) * math.sqrt(variance)
    low, high = mean_auc_interval(scores, member)
    assert 0 < low < high < 1  # it is not cut off
    assert (low, high) == pytest.approx((auc.mean() - half, auc.mean() + half))
    assert mean_auc_interval(scores[:2], member[:2])[0] == 0
    with pytest.raises(ValueError, match="1 victims: two are needed"):
        mean_auc_interval(scores[:1], member[:1])


def test_where_nothing_leaks_the_interval_of_a_mean_auc_covers_one_half():
    covered = 0
    for draw in range(200):
        g = torch.Generator().manual_seed(draw)
        inside = torch.stack([torch.randperm(60, generator=g) < 30 for _ in range(24)])
        own = torch.randn(60, generator=g) + torch.randn(24, 60, generator=g)  # of models that ignore their data
        scores = []
        for victim in range(16):
            others = [model for model in range(24) if model != victim]
            scores.append(lira_scores(own[[victim]], own[others], inside[others], variance="global")[0])
        low, high = mean_auc_interval(torch.stack(scores), inside[:16])
        covered += low <= 0.5 <= high
    assert covered >= 182  # of 95 %, less than one in two hundred such tests would have fewer


def test_an_attack_that_is_worse_than_guessing_protects_no_better(rng):
    scores, member = torch.from_numpy(rng.normal(size=(2, 400))), torch.arange(400).repeat(2, 1) % 2 == 0
    dimension = Membership(name="m")
    found = dimension._rates("lira", scores, member, [0.05]) | dimension._by_group(
        scores, member, torch.arange(400) % 3, ["a", "b", "c"]
    )
    floors = {name: found.metrics[f"{name}_floor"] for name in found.metrics if f"{name}_floor" in found.metrics}
    assert floors == {"eval/m/lira_tpr_at_5": 0.05} | dict.fromkeys(
        ["eval/m/lira_auc", *(f"eval/m/lira_auc/{group}" for group in "abc")], 0.5
    )
    assert {name: found.described[name].guess for name in floors} == floors


def test_a_rate_below_what_can_be_told_is_refused():
    scores, member = torch.arange(100.0), torch.arange(100) % 2 == 0
    assert rates_at(scores, member, 0.02)[0] >= 0
    with pytest.raises(ValueError, match=r"0\.001 needs 1000 non-members at least, there are 50"):
        rates_at(scores, member, 0.001)
    with pytest.raises(ValueError, match="100 members and 0 non-members"):
        rates_at(scores, torch.ones(100, dtype=torch.bool), 0.1)


def test_a_row_without_references_is_named():
    inside = torch.ones(6, 3, dtype=torch.bool)
    inside[:3, :2] = False
    with pytest.raises(ValueError, match="row 2 has 0 reference models trained without it"):
        lira_scores(torch.zeros(1, 3), torch.zeros(6, 3), inside)
    with pytest.raises(ValueError, match="row 2 has no reference model trained without it"):
        rmia_scores(torch.zeros(1, 3), torch.zeros(6, 3), inside, torch.zeros(1, 4), torch.zeros(6, 4))
    inside = torch.tensor([[True, True], [True, False], [False, False], [False, False]])
    with pytest.raises(ValueError, match="row 1 has 1 reference models trained with it"):
        lira_scores(torch.zeros(1, 2), torch.zeros(4, 2), inside)


def test_rmia_counts_a_tie_as_dominated_and_a_population_row_of_probability_0_too():
    inside = torch.tensor([[True], [False]])
    half = torch.full((2, 1), 0.5)
    # the row's ratio is 1 / 0.5 = 2, and those of the population are 1, 1.2 and, of 0 by 0, none
    population, beside = torch.tensor([[0.5, 0.6, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]] * 2)
    scores = rmia_scores(torch.ones(1, 1), half, inside, population, beside, gamma=2.0, online=True)
    assert scores.item() == pytest.approx(2 / 3)


def test_the_label_s_own_probability():
    two = torch.tensor([[0.2, 0.7]])
    assert label_probabilities(two, torch.tensor([0, 1]))[0].tolist() == pytest.approx([0.8, 0.7])
    three = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]])
    assert label_probabilities(three, torch.tensor([2, 0]))[0].tolist() == pytest.approx([0.7, 0.5])
    assert confidences(torch.tensor([0.5, 1.0])).isfinite().all()


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.0), (1.0, 1e-5), (8.0, 0.01)])
def test_randomised_response_meets_the_bound_of_differential_privacy_and_nothing_exceeds_it(epsilon, delta):
    # Randomised response tells the truth with e^eps / (1 + e^eps): the corner of the region for delta = 0.
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert dp_true_positive_bound(epsilon, 0.0, 1 - truth) == pytest.approx(truth)
    grid = np.linspace(0, 1, 101)
    bounds = [dp_true_positive_bound(epsilon, delta, fpr) for fpr in grid]
    assert all(np.diff(bounds) >= -1e-12)
    assert bounds[-1] == 1
    assert all(bound >= fpr for bound, fpr in zip(bounds, grid, strict=True))
    assert dp_true_positive_bound(1e4, delta, 0.001) == 1


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["victims", "references", "population", "reference_population"])
def test_a_value_that_is_not_finite_is_refused(value, where):
    of_rows = {"victims": torch.full((1, 3), 0.5), "references": torch.full((4, 3), 0.5)}
    others = {"population": torch.full((1, 5), 0.5), "reference_population": torch.full((4, 5), 0.5)}
    inside = torch.tensor([True, True, False, False])[:, None].expand(4, 3)
    assert lira_scores(**of_rows, inside=inside).isfinite().all()
    assert rmia_scores(**of_rows, inside=inside, **others).isfinite().all()
    (of_rows | others)[where][0, 1] = value  # of a model that some sums leave out
    with pytest.raises(ValueError, match="a model's value is not finite: leave diverged models out"):
        rmia_scores(**of_rows, inside=inside, **others)
    if where in of_rows:
        with pytest.raises(ValueError, match="a model's value is not finite"):
            lira_scores(**of_rows, inside=inside)
