"""The attacks on simulated pools: chance, certainty, and what a decision may depend on."""

import itertools
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from scipy import stats

from fairpriv.classifiers.attacks.attack import (
    Attack,
    AttackGame,
    AttackResult,
    Query,
    floor_of_leakage,
    guess,
    measures_of,
    shadows_to_calibrate,
    spread,
)
from fairpriv.classifiers.attacks.black_box_meta_classifier import BlackBoxMetaClassifier
from fairpriv.classifiers.attacks.kl import KL
from fairpriv.classifiers.attacks.label_only_kl import LabelOnlyKL
from fairpriv.classifiers.attacks.loss import LossTest
from fairpriv.classifiers.attacks.meta_classifier import MetaClassifier
from fairpriv.classifiers.attacks.per_point_threshold import PerPointThreshold
from fairpriv.classifiers.attacks.threshold import ThresholdTest, selected_scores
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.pool import fit_pool
from fairpriv.errors import InputError
from fairpriv.functional.attacks import threshold_test_scores

LINEAR = BlackBoxMetaClassifier(penalties=[1.0, 100.0], shrinkages=[0.01, 0.3])  # few candidates, to be fast
BLACK_BOX = [LossTest(), ThresholdTest(), PerPointThreshold(), KL(), LabelOnlyKL(), LINEAR]
ATTACKS = [*BLACK_BOX, MetaClassifier(folds=2, epochs=25)]  # fewer steps than by default, to be fast

each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
each_black_box = pytest.mark.parametrize("attack", BLACK_BOX, ids=lambda attack: attack.name)


class Outputs(Models):
    """Models that are nothing but their outputs ``[M, N]``."""

    def __init__(self, probs):
        self.probs, self.asked = probs, 0

    def __len__(self):
        return len(self.probs)

    def __getitem__(self, index):
        return Outputs(self.probs[index])

    def predict_proba(self, X):
        self.asked += 1
        return self.probs


class Networks(Models):
    """One hidden layer, ``logit = a x0 + c x1`` written as relu(x) - relu(-x), neurons in an order of their own."""

    def __init__(self, first, second, seed):
        generator = torch.Generator().manual_seed(seed)
        M = len(first)
        W = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]]).repeat(M, 1, 1)
        W = W + 0.02 * torch.randn(W.shape, generator=generator)
        out = torch.stack((first, -first, second, -second), 1)
        order = torch.rand(M, 4, generator=generator).argsort(1)
        W, out = W.gather(2, order[:, None].expand(-1, 2, -1)), out.gather(1, order)
        self.weights = [(W, torch.zeros(M, 4)), (torch.stack((-out / 2, out / 2), 2), torch.zeros(M, 2))]

    def __len__(self):
        return len(self.weights[0][0])

    def predict_proba(self, X):
        (W, b), (W_out, b_out) = self.weights
        hidden = (X @ W + b[:, None]).relu()
        return torch.softmax(hidden @ W_out + b_out[:, None], -1)[..., 1]

    def __getitem__(self, index):
        part = object.__new__(Networks)
        part.weights = [(W[index], b[index]) for W, b in self.weights]
        return part


def networks(world, *, property_, seed):
    """World 0 leans on x0 and world 1 on x1; without the property both on both alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.3 * torch.randn(2, len(world), generator=generator)
    lean = (2 * world - 1) * property_
    return Networks(1.5 - 1.5 * lean + noise[0], 1.5 + 1.5 * lean + noise[1], seed)


def make_game(*, property_, victims=60, shadows=(24, 24), rows=120, seed=0):
    """The label is the sign of x0 in world 0 and that of x1 in world 1."""
    generator = torch.Generator().manual_seed(1000 + seed)
    X = torch.randn(rows, 2, generator=generator)
    world = torch.arange(rows) % 2
    truth = (torch.arange(victims) % 2)[torch.randperm(victims, generator=generator)]
    return AttackGame(
        victims=networks(truth, property_=property_, seed=seed + 1),
        shadows=tuple(
            networks(torch.full((count,), b), property_=property_, seed=seed + 2 + b) for b, count in enumerate(shadows)
        ),
        query=Query(X, (X[torch.arange(rows), world] > 0).long(), world, world),
        seed=seed,
        truth=truth,
    )


def changed(game, **parts):
    kept = {field.name: getattr(game, field.name) for field in fields(game)}
    return AttackGame(**(kept | parts))


@each_attack
def test_with_identical_worlds_every_attack_is_at_chance(attack):
    results = [attack.run(make_game(property_=0, victims=200, seed=10 * split)) for split in range(3)]
    right = sum(result.correct for result in results)
    assert stats.binomtest(right, 600).pvalue > 0.01
    assert 0.4 < sum(result.auc for result in results) / 3 < 0.6


@each_attack
def test_with_an_obvious_property_every_attack_is_near_one(attack):
    result = attack.run(make_game(property_=1))
    assert result.accuracy > 0.95
    assert result.auc > 0.98
    assert result.p_value < 1e-6


@each_attack
def test_permuted_victim_labels_give_chance(attack):
    game = make_game(property_=1, victims=200)
    permuted = game.truth[torch.randperm(200, generator=torch.Generator().manual_seed(5))]
    result = attack.run(changed(game, truth=permuted))
    assert result.p_value > 0.01


@each_attack
@pytest.mark.parametrize("property_", [0.1, 1])
def test_a_decision_does_not_depend_on_the_other_victims(attack, property_):
    game = make_game(property_=property_)
    scores = attack.run(game).scores
    for index in (torch.tensor([17]), torch.arange(5, 25), (game.truth == 1).nonzero()[:, 0]):
        part = attack.run(changed(game, victims=game.victims[index], truth=game.truth[index]))
        torch.testing.assert_close(part.scores, scores[index], rtol=1e-3, atol=1e-4)
        assert torch.equal(part.decisions, (scores[index] > 0).long())


@each_attack
def test_scores_follow_the_seed_and_leave_the_global_generator_alone(attack):
    game = make_game(property_=0.1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    scores = attack.run(game).scores
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(attack.run(changed(game)).scores, scores)


@each_attack
def test_the_truth_is_nothing_to_the_scores(attack):
    game = make_game(property_=0.1)
    assert torch.equal(attack.run(changed(game, truth=1 - game.truth)).scores, attack.run(game).scores)


@each_attack
def test_swapped_worlds_turn_the_decisions(attack):
    game = make_game(property_=1)
    query = Query(game.query.X, game.query.y, game.query.s, 1 - game.query.world)
    swapped = changed(game, shadows=game.shadows[::-1], query=query)
    assert (attack.run(swapped).decisions != attack.run(game).decisions).float().mean() > 0.95


@each_attack
def test_worlds_may_have_unequally_many_shadows(attack):
    assert attack.run(make_game(property_=1, shadows=(30, 9))).accuracy > 0.95


@each_black_box
def test_a_tie_says_world_0(attack):
    same = Outputs(torch.rand(1, 20, generator=torch.Generator().manual_seed(0)).repeat(6, 1))
    query = Query(torch.zeros(20, 1), torch.arange(20) % 4 // 2, torch.zeros(20), torch.arange(20) % 2)
    if isinstance(attack, LossTest):  # a tie of accuracies: right on no row
        same = Outputs((1 - query.y).float().repeat(6, 1))
    result = attack.run(AttackGame(same, (same, same), query, 0, torch.tensor([0, 1, 0, 1, 0, 1])))
    assert result.scores.tolist() == [0.0] * 6
    assert result.decisions.tolist() == [0] * 6
    assert (result.accuracy, result.auc) == (0.5, 0.5)


def test_victims_and_shadows_are_asked_once_for_all_attacks():
    game = make_game(property_=1)
    pools = [Outputs(models.predict_proba(game.query.X)) for models in (game.victims, *game.shadows)]
    game = changed(game, victims=pools[0], shadows=tuple(pools[1:]))
    for attack in BLACK_BOX:
        guess(attack, game)
    assert [pool.asked for pool in pools] == [1, 1, 1]


@each_attack
def test_an_attack_without_the_shadows_it_needs_is_refused(attack):
    game = changed(make_game(property_=1), shadows=None)
    if attack.name == "loss_test":
        assert attack.run(game).accuracy > 0.95
        return
    with pytest.raises(InputError, match=rf"attack {attack.name} needs shadow models.*game\.shadows"):
        attack.run(game)


@pytest.mark.parametrize(
    "attack", [ThresholdTest(), PerPointThreshold(), BlackBoxMetaClassifier(), MetaClassifier()], ids=lambda a: a.name
)
def test_one_shadow_a_world_cannot_be_held_out(attack):
    with pytest.raises(InputError, match=r"has 1 per world: set game\.shadows to 2"):
        attack.run(make_game(property_=1, shadows=(1, 5)))
    assert len(attack.run(make_game(property_=1, shadows=(2, 5))).scores) == 60


class Shifted(KL):
    """KL whose scores are turned and have their border elsewhere, as those of a user's own attack may."""

    def run(self, game):
        return game.result(self.name, 7 - 3 * super().run(game).scores)


@each_attack
def test_with_border_and_direction_set_on_shadows_a_decision_is_still_about_one_victim(attack):
    game = make_game(property_=0.3)
    scores = guess(attack, game).scores
    index = (game.truth == 1).nonzero()[:5, 0]
    part = guess(attack, changed(game, victims=game.victims[index], truth=game.truth[index]))
    torch.testing.assert_close(part.scores, scores[index], rtol=1e-5, atol=1e-6)
    assert torch.equal(guess(attack, changed(game, truth=1 - game.truth)).scores, scores)


def test_a_wrong_border_and_direction_are_mended_on_shadows():
    game = make_game(property_=0.3, victims=200)
    bare, mended, right = Shifted().run(game), guess(Shifted(), game), guess(KL(), game)
    assert right.accuracy > 0.8
    assert bare.accuracy < 0.6
    assert torch.equal(mended.decisions, right.decisions)
    assert (bare.calibrated, mended.calibrated) == (False, True)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.full((4,), math.nan),
        torch.tensor([0.0, 1.0, math.nan, 2.0]),
        torch.zeros(3),
        torch.tensor([-math.inf, -math.inf, math.inf, math.inf]),  # whose middle is no border
    ],
    ids=["NaN", "one NaN", "few", "infinite"],
)
def test_what_is_no_score_of_every_victim_is_refused_and_not_taken_for_guesses_of_world_0(wrong):
    class Odd(Attack):
        name = "odd"

        def run(self, game):
            return game.result("odd", wrong)

    with pytest.raises(InputError, match="attack odd: run must return one score for each of 4 victims, all of them"):
        guess(Odd(), make_game(property_=1, victims=4))


def test_what_is_no_score_of_a_held_out_shadow_is_refused_and_sets_no_border():
    class Odd(Attack):
        name = "odd"

        def run(self, game):
            scores = game.victim_probs.mean(1)
            return game.result("odd", scores if len(scores) == 8 else scores * math.nan)

    with pytest.raises(InputError, match="attack odd: run must return one score for each of 4 victims, all of them"):
        guess(Odd(), make_game(property_=1, victims=8, shadows=(10, 10)))


@pytest.mark.parametrize("given", [torch.Tensor.tolist, torch.Tensor.numpy, torch.clone])
def test_scores_may_be_a_list_or_an_array_and_the_attack_s_own_name_counts(given):
    class Odd(Attack):
        name = "odd"

        def run(self, game):
            return game.result("another", given(game.victim_probs.mean(1)))

    game = make_game(property_=1, victims=4, shadows=(1, 1))
    found = guess(Odd(), game)
    assert found.name == "odd"
    assert torch.equal(found.scores, game.victim_probs.mean(1).double())
    assert set(found.measured.metrics) == {name.replace("another", "odd") for name in Odd().run(game).measured.metrics}


def test_kl_s_border_is_mended_where_one_world_s_shadows_differ_more_among_themselves():
    """Their mean KL to any model is then larger, so that KL by itself says the other world of all."""
    generator = torch.Generator().manual_seed(0)
    leans = torch.randn(50, generator=generator)

    def outputs(world):
        spread = torch.where(world == 1, 2.0, 0.1)[:, None]
        logits = (world - 0.5)[:, None] * leans + spread * torch.randn(len(world), 50, generator=generator)
        return Outputs(logits.sigmoid())

    truth, rows = torch.arange(100) % 2, torch.arange(50) % 2
    game = AttackGame(
        outputs(truth),
        (outputs(torch.zeros(40)), outputs(torch.ones(40))),
        Query(torch.zeros(50, 1), rows, rows, rows),
        0,
        truth,
    )
    assert KL().run(game).accuracy < 0.6
    assert guess(KL(), game).accuracy > 0.8


def test_the_loss_test_s_direction_is_set_on_shadows():
    game = make_game(property_=1)
    query = Query(game.query.X, game.query.y, game.query.s, 1 - game.query.world)  # each world is better on the other's
    turned = changed(game, query=query)
    assert LossTest().run(turned).accuracy < 0.05
    assert guess(LossTest(), turned).accuracy > 0.95


@pytest.mark.parametrize("shadows", [None, (2, 9)])
def test_with_too_few_shadows_the_border_of_the_source_stays(shadows):
    game = make_game(property_=1, shadows=shadows or (2, 2))
    game = changed(game, shadows=None) if shadows is None else game
    found = guess(LossTest(), game)
    assert torch.equal(found.scores, LossTest().run(game).scores)
    assert not found.calibrated
    assert guess(LossTest(), make_game(property_=1, shadows=(3, 9))).calibrated


@each_attack
def test_three_shadows_a_world_are_enough_for_every_attack(attack):
    assert guess(attack, make_game(property_=1, shadows=(3, 3))).calibrated


def test_every_shadow_is_held_out_once_and_then_not_among_the_shadows():
    class Recorded(Attack):
        name = "recorded"

        def __init__(self):
            self.seen = []

        def run(self, game):
            asked = [pool.predict_proba(game.query.X) for pool in (game.victims, *game.shadows)]
            cached = [game.victim_probs, *game.shadow_probs(self.name)]
            assert all(torch.equal(first, second) for first, second in zip(asked, cached, strict=True))
            self.seen.append([pool[:, 0].tolist() for pool in cached] + [game.truth.tolist()])
            return game.result(self.name, game.victim_probs[:, 0])

    pools = [torch.arange(start, start + count)[:, None] / 100 for start, count in ((0, 7), (20, 5), (90, 4))]
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    zero, one, victims = (Outputs(pool.repeat(1, 2)) for pool in pools)
    attack = Recorded()
    result = guess(attack, AttackGame(victims, (zero, one), query, 0, torch.tensor([0, 1, 0, 1])), folds=4)
    whole, *parts = attack.seen
    assert whole[:3] == [pool[:, 0].tolist() for pool in (pools[2], pools[0], pools[1])]
    assert len(parts) == 4
    for held, left0, left1, truth in parts:
        assert sorted(held + left0 + left1) == sorted(whole[1] + whole[2])
        assert truth == [int(value in whole[2]) for value in held]
    assert sorted(value for held, *_ in parts for value in held) == sorted(whole[1] + whole[2])
    # medians 0.03 and 0.22
    torch.testing.assert_close(result.scores, pools[2][:, 0].double() - 0.125, atol=1e-6, rtol=0)


def test_weights_of_shadows_that_are_held_out_can_be_read():
    game = make_game(property_=1, shadows=(6, 4))
    held = torch.arange(6) < 2, torch.arange(4) < 1
    part = game.holding_out(*held)
    for layer, zero, one in zip(part.victims.weights, *(pool.weights for pool in game.shadows), strict=True):
        for found, first, second in zip(layer, zero, one, strict=True):
            assert torch.equal(found, torch.cat((first[:2], second[:1])))


def test_an_attack_keeps_its_border_where_a_held_out_part_would_leave_it_too_few_shadows():
    class Needy(KL):
        needs = 5

        def run(self, game):
            self.seen = [*getattr(self, "seen", []), len(game.shadow_models(self.name, least=5)[0])]
            return super().run(game)

    for shadows, calibrated in ((5, False), (6, False), (7, True), (8, True)):
        attack = Needy()
        assert guess(attack, make_game(property_=1, shadows=(shadows, 9))).calibrated == calibrated
        assert min(attack.seen) >= 5
        assert (shadows >= shadows_to_calibrate(5)) == calibrated
    assert [shadows_to_calibrate(needs) for needs in (0, 1, 2, 3, 4)] == [3, 3, 3, 4, 5]


def test_an_attack_that_calibrates_itself_is_run_once():
    class Counted(KL):
        calibrates = True
        runs = 0

        def run(self, game):
            self.runs += 1
            return super().run(game)

    attack = Counted()
    assert guess(attack, make_game(property_=1)).calibrated
    assert attack.runs == 1


def test_points_are_chosen_by_shadows_that_were_left_out():
    shadows0, shadows1 = torch.arange(10.0)[:, None] / 100, torch.arange(10.0, 17)[:, None] / 100
    victims = torch.full((4, 1), 0.5)
    calls = []

    def statistic(fitted0, fitted1, judged, y, counts):
        calls.append([sorted(round(100 * p) for p in pool[:, 0].tolist()) for pool in (fitted0, fitted1, judged)])
        if len(judged) == 4 and judged[0, 0] == 0.5:
            return torch.tensor([[1.0, 2.0, 3.0]]).repeat(4, 1)
        # right about 10 of world 0 and 4 of world 1; 8 and 6, which is best of the shares; 1 and 7
        number = (100 * judged).round()
        says1 = torch.cat((number >= 13, (number >= 8) & (number != 16), number >= 1), 1)
        return says1.double() - 0.5

    game = AttackGame(
        Outputs(victims.repeat(1, 2)),
        (Outputs(shadows0.repeat(1, 2)), Outputs(shadows1.repeat(1, 2))),
        Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1])),
        0,
        torch.tensor([0, 1, 0, 1]),
    )
    assert selected_scores(game, "x", statistic, [0.1, 0.5, 1.0], folds=3).tolist() == [2.0] * 4
    folds, (final, *other_world) = calls[:3], calls[3:]
    for fitted0, fitted1, judged in folds:
        assert sorted(fitted0 + fitted1 + judged) == list(range(17))
    assert sorted(p for *_, judged in folds for p in judged) == list(range(17))
    assert final == [list(range(10)), list(range(10, 17)), [50] * 4]
    assert len(other_world) == 3  # no better, so the victims are not asked again


def test_a_held_out_shadow_of_score_0_counts_as_one_of_world_0():
    def statistic(fitted0, fitted1, judged, y, counts):
        world = judged[:, 0].double()
        return torch.stack((torch.full_like(world, -1), world, torch.full_like(world, -1)), 1)  # only the middle tells

    zero, one = Outputs(torch.zeros(4, 2)), Outputs(torch.ones(4, 2))
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    game = AttackGame(one, (zero, one), query, 0, torch.tensor([0, 1, 0, 1]))
    assert selected_scores(game, "x", statistic, [0.1, 0.5, 1.0], folds=2).tolist() == [1.0] * 4


def test_where_both_worlds_points_tell_as_much_those_of_world_0_are_chosen():
    def statistic(fitted0, fitted1, judged, y, counts):
        return (1.0 + y[:1]).double().expand(len(judged), 1)

    pool = Outputs(torch.full((4, 2), 0.5))
    for order in ([0, 1], [1, 0]):
        query = Query(torch.zeros(2, 1), torch.tensor(order), torch.zeros(2), torch.tensor(order))
        game = AttackGame(pool, (pool, pool), query, 0, torch.tensor([0, 1, 0, 1]))
        assert selected_scores(game, "x", statistic, [1.0], folds=2).tolist() == [1.0] * 4


def test_the_more_telling_world_and_share_of_points_are_chosen():
    generator = torch.Generator().manual_seed(0)
    rows, models = 200, 40
    telling = torch.zeros(rows, dtype=torch.bool)
    telling[1:21:2] = True  # a tenth of the rows of world 1
    truth = torch.arange(models) % 2

    def outputs(world):
        noise = torch.rand(len(world), rows, generator=generator)
        return Outputs(torch.where(telling, 0.2 + 0.6 * world[:, None] + 0.1 * noise, noise))

    query = Query(torch.zeros(rows, 1), torch.ones(rows), torch.zeros(rows), torch.arange(rows) % 2)
    game = AttackGame(outputs(truth), (outputs(torch.zeros(40)), outputs(torch.ones(40))), query, 0, truth)
    for attack in (ThresholdTest, PerPointThreshold):
        assert attack(fractions=[1.0, 0.1]).run(game).accuracy == 1.0
        alone = attack(fractions=[1.0]).run(game)
        assert alone.scores.abs().mean() < attack(fractions=[0.1]).run(game).scores.abs().mean()


@pytest.mark.parametrize("seed", range(6))
def test_the_points_chosen_are_those_of_a_loop_over_held_out_shadows(seed):
    draw = torch.Generator().manual_seed(seed)
    world, y = torch.arange(24) % 2, torch.randint(0, 2, (24,), generator=draw)
    zero, one, victims = ((torch.rand(m, 24, generator=draw) * 4).round() / 4 for m in (7, 5, 3))
    told = (world == seed % 2) & (torch.arange(24) < 8)  # these points tell more
    one[:, told] = (one[:, told] + 0.25).clamp(max=1)
    fractions, found = [0.01, 0.3, 1.0], []
    for b in (0, 1):
        rows = (world == b).nonzero()[:, 0]
        for fraction in fractions:
            count, right = [max(1, round(fraction * 12))], [0, 0]
            for fold in range(3):
                held = [[m for m in range(len(pool)) if m % 3 == fold] for pool in (zero, one)]
                kept = [[m for m in range(len(pool)) if m % 3 != fold] for pool in (zero, one)]
                for own, pool in enumerate((zero, one)):
                    fitted = zero[kept[0]][:, rows], one[kept[1]][:, rows]
                    scores = threshold_test_scores(*fitted, pool[held[own]][:, rows], y[rows], count)
                    right[own] += sum((score > 0) == own for score in scores[:, 0].tolist())
            scores = threshold_test_scores(zero[:, rows], one[:, rows], victims[:, rows], y[rows], count)
            found.append((right[0] / 7 + right[1] / 5, scores[:, 0].tolist()))
    best = max(balanced for balanced, _ in found)
    expected = next(scores for balanced, scores in found if balanced > best - 1e-12)
    query = Query(torch.zeros(24, 1), y, torch.zeros(24), world)
    game = AttackGame(Outputs(victims), (Outputs(zero), Outputs(one)), query, 0, torch.tensor([0, 1, 0]))
    assert selected_scores(game, "x", threshold_test_scores, fractions, 3).tolist() == pytest.approx(expected)


def test_small_trained_pools_are_told_apart_by_every_attack():
    def rows(world, count, seed):
        X = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
        return X, (X[:, world] > 0).long()

    def pool(worlds, seed):
        datasets = [rows(b, 64, seed + 2 * i) for i, b in enumerate(worlds)]
        return fit_pool(datasets, hidden=(6, 4), epochs=8, batch_size=16, lr=0.03, seed=seed)

    truth = torch.arange(16) % 2
    (X0, y0), (X1, y1) = rows(0, 50, 1), rows(1, 50, 3)
    world = torch.arange(100) // 50
    game = AttackGame(
        victims=pool(truth.tolist(), 1000),
        shadows=(pool([0] * 12, 2000), pool([1] * 12, 3000)),
        query=Query(torch.cat((X0, X1)), torch.cat((y0, y1)), world, world),
        seed=0,
        truth=truth,
    )
    for attack in ATTACKS:
        assert attack.run(game).accuracy > 0.9, attack.name


@each_attack
def test_the_yaml_of_an_attack_lists_every_parameter_with_its_default(attack):
    attack, name = type(attack), attack.name
    path = Path(__file__).parents[2] / "conf" / "attack" / f"{name}.yaml"
    node = yaml.safe_load(path.read_text())
    assert path.read_text().startswith(f"# @package attack.{name}\n# ")
    assert node.pop("_target_") == f"{attack.__module__}.{attack.__name__}"
    assert node == {field.name: getattr(attack(), field.name) for field in fields(attack)}


@pytest.mark.parametrize(
    ("attack", "wrong", "key"),
    [
        (ThresholdTest, {"fractions": [0.0, 0.5]}, "attack.threshold_test.fractions"),
        (ThresholdTest, {"folds": 1}, "attack.threshold_test.folds"),
        (ThresholdTest, {"fractions": []}, "attack.threshold_test.fractions"),
        (ThresholdTest, {"fractions": [0.5, 1.5]}, "attack.threshold_test.fractions"),
        (PerPointThreshold, {"folds": 1}, "attack.per_point_threshold.folds"),
        (KL, {"clip": 0.0}, "attack.kl.clip"),
        (KL, {"clip": 0.5}, "attack.kl.clip"),
        (LabelOnlyKL, {"smoothing": 0.0}, "attack.label_only_kl.smoothing"),
        (LabelOnlyKL, {"smoothing": 0.5}, "attack.label_only_kl.smoothing"),
        (LabelOnlyKL, {"clip": 0.0}, "attack.label_only_kl.clip"),
        (LabelOnlyKL, {"clip": 0.1}, "attack.label_only_kl.clip"),
        (BlackBoxMetaClassifier, {"clip": 0.0}, "attack.black_box_meta_classifier.clip"),
        (BlackBoxMetaClassifier, {"clip": 0.5}, "attack.black_box_meta_classifier.clip"),
        (BlackBoxMetaClassifier, {"folds": 1}, "attack.black_box_meta_classifier.folds"),
        (BlackBoxMetaClassifier, {"penalties": [0.0]}, "attack.black_box_meta_classifier.penalties"),
        (BlackBoxMetaClassifier, {"shrinkages": [0.0]}, "attack.black_box_meta_classifier.shrinkages"),
        (BlackBoxMetaClassifier, {"shrinkages": [1.5]}, "attack.black_box_meta_classifier.shrinkages"),
        (BlackBoxMetaClassifier, {"penalties": [], "shrinkages": []}, "attack.black_box_meta_classifier: needs"),
    ],
)
def test_a_parameter_out_of_range_is_named(attack, wrong, key):
    with pytest.raises(InputError, match=key):
        attack(**wrong)


def test_a_parameter_at_the_end_of_its_range_is_taken():
    assert LabelOnlyKL(smoothing=0.01, clip=0.01).clip == 0.01
    assert BlackBoxMetaClassifier(folds=2).folds == 2
    assert ThresholdTest(fractions=[1.0], folds=2).fractions == [1.0]


@pytest.mark.parametrize("wrong", [math.nan, -1e-6, 1 + 1e-6])
def test_outputs_that_are_no_probabilities_are_refused(wrong):
    game = make_game(property_=1, victims=4)
    probs = game.victims.predict_proba(game.query.X)
    probs[2, 5] = wrong
    with pytest.raises(ValueError, match="victim number 2 gives no probabilities"):
        LossTest().run(changed(game, victims=Outputs(probs)))


def test_a_query_needs_rows_of_both_worlds():
    for world in (0, 1):
        with pytest.raises(ValueError, match="rows of both worlds"):
            Query(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), torch.full((3,), world))
    with pytest.raises(ValueError, match="unequally many rows"):
        Query(torch.zeros(3, 1), torch.zeros(2), torch.zeros(3), torch.tensor([0, 1, 1]))


def test_a_game_needs_a_world_for_every_victim():
    game = make_game(property_=1, victims=4)
    with pytest.raises(ValueError, match="4 victims, but the worlds of 3"):
        AttackGame(game.victims, None, game.query, 0, game.truth[:3])


def result(right, wrong, name="kl", truth=None):
    """An attack that is right about so many victims and wrong about the rest; all of world 1 unless ``truth`` says."""
    truth = torch.ones(right + wrong, dtype=torch.long) if truth is None else torch.tensor(truth)
    says1 = torch.where(torch.arange(right + wrong) < right, truth, 1 - truth)
    return AttackResult(name, 2.0 * says1 - 1, truth)


def test_interval_is_clopper_and_pearsons():
    low, high = result(15, 5).interval
    assert low == pytest.approx(stats.beta.ppf(0.025, 15, 6))
    assert high == pytest.approx(stats.beta.ppf(0.975, 16, 5))
    assert result(20, 0).interval[1] == 1.0
    assert result(0, 20).interval[0] == 0.0


def test_p_value_counts_every_assignment_of_worlds_to_scores():
    scores, truth = torch.tensor([0.3, -1.0, 2.0, 0.7, -0.2, 5.0, 0.1]), torch.tensor([1, 0, 1, 1, 0, 1, 0])
    found = AttackResult("x", scores, truth)

    def distance(ones):
        zeros = [i for i in range(7) if i not in ones]
        return abs(sum(scores[i] > scores[j] for i in ones for j in zeros) - 6)

    assignments = list(itertools.combinations(range(7), 4))
    extreme = sum(distance(ones) >= distance((0, 2, 3, 5)) for ones in assignments)
    assert found.p_value == pytest.approx(extreme / len(assignments))
    shifted = AttackResult("x", scores + 100, truth)  # a border at which all say world 1
    assert (shifted.accuracy, shifted.p_value) == (4 / 7, found.p_value)
    assert math.isnan(result(3, 1).p_value)


def test_above_200_victims_of_a_world_the_p_value_is_that_of_the_normal_approximation():
    scores, truth = torch.arange(206.0).roll(100), torch.arange(206) < 5
    normal = stats.mannwhitneyu(scores[truth].numpy(), scores[~truth].numpy(), method="asymptotic").pvalue
    assert AttackResult("x", scores, truth.long()).p_value == pytest.approx(normal, rel=1e-12)


def test_the_p_value_of_tied_scores_is_that_of_the_normal_approximation_corrected_for_ties():
    scores, truth = [0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 3.0], [0, 0, 0, 1, 0, 1, 1]
    pairs = [(one, zero) for one, b in zip(scores, truth, strict=True) if b for zero in (0.0, 0.0, 1.0, 1.0)]
    wins = sum(1.0 if one > zero else 0.5 if one == zero else 0.0 for one, zero in pairs)
    tied = sum(scores.count(score) ** 3 - scores.count(score) for score in set(scores))
    variance = 3 * 4 / 12 * (7 + 1 - tied / (7 * 6))
    z = (abs(wins - 3 * 4 / 2) - 0.5) / math.sqrt(variance)  # half a win for continuity
    found = AttackResult("x", torch.tensor(scores), torch.tensor(truth))
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_tied_scores_have_a_p_value_without_warning():
    assert result(3, 1, truth=[0, 1, 0, 1]).p_value == pytest.approx(1, abs=0.5)
    assert AttackResult("x", torch.zeros(4), torch.tensor([0, 1, 0, 1])).p_value == 1.0


def test_an_attack_that_is_right_28_of_a_hundred_leaks():
    found = result(28, 72)
    assert found.accuracy == 0.28
    assert found.advantage == pytest.approx(-0.44)
    assert found.leakage == pytest.approx(0.22)
    low, high = found.measured.intervals["attack/kl/leakage"]
    assert (low, high) == pytest.approx((0.5 - found.interval[1], 0.5 - found.interval[0]))
    assert 0 < low < 0.22 < high


def test_leakage_of_a_covered_half_begins_at_0():
    low, high = result(11, 9).measured.intervals["attack/kl/leakage"]
    assert low == 0
    assert high == pytest.approx(result(11, 9).interval[1] - 0.5)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_the_floor_of_leakage_is_an_exact_expectation(n):
    expected = sum(math.comb(n, k) * abs(k / n - 0.5) for k in range(n + 1)) / 2**n
    assert floor_of_leakage(n) == pytest.approx(expected)


def test_metrics_and_intervals_bear_the_attacks_name():
    found = result(15, 5, name="loss_test")
    keys = ["accuracy", "advantage", "leakage", "leakage_floor", "auc", "auc_inverted", "p_value"]
    assert list(found.measured.metrics) == [f"attack/loss_test/{key}" for key in keys]
    assert found.measured.metrics["attack/loss_test/accuracy"] == 0.75
    assert found.measured.metrics["attack/loss_test/advantage"] == 0.5
    assert found.measured.intervals["attack/loss_test/accuracy"] == found.interval
    assert found.measured.intervals["attack/loss_test/advantage"] == pytest.approx(
        [2 * end - 1 for end in found.interval]
    )


@pytest.mark.parametrize(
    ("auc", "ends", "inverted", "folded", "told"),
    [
        (0.3, (0.2, 0.45), 1, 0.7, (0.55, 0.8)),
        (0.7, (0.4, 1.2), 0, 0.7, (0.5, 1)),
        (0.5, (0.4, 0.6), 0, 0.5, (0.5, 0.6)),
    ],
)
def test_measures_over_splits_are_folded_with_their_intervals(auc, ends, inverted, folded, told):
    found = measures_of("x", 0.4, auc, 20, (0.25, 0.48), ends)
    expected = {"accuracy": 0.4, "advantage": -0.2, "leakage": 0.1, "auc": folded, "auc_inverted": inverted}
    for name, value in expected.items():
        assert found.metrics[f"attack/x/{name}"] == pytest.approx(value), name
    intervals = {"accuracy": (0.25, 0.48), "advantage": (-0.5, -0.04), "leakage": (0.02, 0.25), "auc": told}
    for name, interval in intervals.items():
        assert found.intervals[f"attack/x/{name}"] == pytest.approx(interval), name


def test_advantage_is_tpr_minus_fpr_with_balanced_bits():
    scores = torch.tensor([0.3, -0.1, 0.2, 0.0, -0.5, 0.1, 0.7, 0.9])
    truth = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    found = AttackResult("x", scores, truth)
    assert found.advantage == pytest.approx(2 / 4 - 3 / 4)


def test_auc_counts_pairs_and_halves_ties():
    scores = torch.tensor([0.3, -0.1, 0.2, 0.0, -0.5, 0.2, 0.2, 0.9])
    truth = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1])
    pairs = [(scores[i], scores[j]) for i in range(8) for j in range(8) if truth[i] == 1 and truth[j] == 0]
    wanted = sum(1.0 if one > zero else 0.5 if one == zero else 0.0 for one, zero in pairs) / len(pairs)
    assert AttackResult("x", scores, truth).signed_auc == pytest.approx(wanted)
    assert AttackResult("x", scores, truth).auc == pytest.approx(max(wanted, 1 - wanted))
    turned = AttackResult("x", -scores, truth)
    assert turned.signed_auc == pytest.approx(1 - wanted)
    assert turned.auc == pytest.approx(max(wanted, 1 - wanted))
    assert turned.auc_inverted == 1 - AttackResult("x", scores, truth).auc_inverted
    assert math.isnan(result(3, 1).auc)
    assert AttackResult("x", torch.tensor([math.inf, 0.0, math.inf]), torch.tensor([0, 0, 1])).signed_auc == 0.75


def test_spread_over_splits_is_students_t_widened_for_overlap():
    values = [0.75, 0.6, 0.8]
    found = spread(values, ratio=0.0)
    mean, std = 43 / 60, math.sqrt(((0.75 - 43 / 60) ** 2 + (0.6 - 43 / 60) ** 2 + (0.8 - 43 / 60) ** 2) / 2)
    assert (found.mean, found.std) == pytest.approx((mean, std))
    half = 4.302652729911275 * std  # t, two degrees of freedom
    assert found.interval == pytest.approx((mean - half / math.sqrt(3), mean + half / math.sqrt(3)))
    widened = spread(values, ratio=1.0).interval
    assert widened == pytest.approx((mean - half * math.sqrt(4 / 3), mean + half * math.sqrt(4 / 3)))
    with pytest.raises(ValueError, match="two or more"):
        spread([0.75], ratio=0.0)
    quarter = 0.1 * math.tan(0.475 * math.pi)  # the t distribution of one degree of freedom is Cauchy's
    assert spread([0.6, 0.8], ratio=0.0).interval == pytest.approx((0.7 - quarter, 0.7 + quarter))
