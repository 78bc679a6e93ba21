"""Playing the game: what is printed of one split, of several, of pure worlds, and with which intervals."""

import itertools
import logging
import math

import pytest
import torch
from scipy import stats

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, Query
from fairpriv.classifiers.attacks.play import Split, play, play_attacks, welch_interval
from fairpriv.classifiers.nets.pool import Pool

TRUTH = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


class Scores(Attack):
    """An attack whose scores are given, game by game."""

    name = "given"
    calibrates = True

    def __init__(self, *scores):
        self.scores = itertools.cycle(scores)

    def run(self, game):
        return game.result(self.name, torch.tensor(next(self.scores)))


def game(truth=TRUTH):
    n = len(truth)
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    return AttackGame(Pool([(torch.zeros(n, 1, 2), torch.zeros(n, 2))]), None, query, 0, truth)


def split(accuracy, truth=TRUTH, **parts):
    n = len(truth)
    return Split(game(truth), torch.tensor(accuracy), torch.zeros(n), torch.zeros(n).bool(), diverged=0, **parts)


RIGHT_5 = [-0.5, -0.4, -0.3, 0.35, 0.8, 0.9, -0.1, -0.2]
RIGHT_2 = [0.5, 0.4, 0.3, 0.35, -0.8, -0.9, 0.1, 0.2]
RIGHT_1 = [0.5, 0.4, 0.3, -0.35, -0.8, -0.9, -0.1, -0.2]


def test_one_split_has_a_p_value_and_intervals_over_its_victims(caplog):
    played = play_attacks([game()], [Scores(RIGHT_5)])
    assert not caplog.records
    (result,) = [Scores(RIGHT_5).run(game())]
    assert played.measured.metrics == result.measured.metrics
    assert played.measured.intervals == result.measured.intervals
    assert played.victims[0]["p_values"] == {"given": result.p_value}
    assert played.measured.signed == {
        "attack/given/leakage": [[0.125]],
        "attack/given/auc": [[result.signed_auc - 0.5]],
    }


def test_one_split_of_pure_worlds_has_neither_and_says_what_to_set(caplog):
    with caplog.at_level(logging.WARNING):
        played = play([split([0.8] * 8)], [Scores(RIGHT_5)], pure=True)
    assert [record.message for record in caplog.records] == [
        "the worlds are pure groups, so attacks on one split have no interval: set game.repeats=5 or more for one"
    ]
    assert played.measured.intervals == {}
    assert "p_values" not in played.victims[0]
    assert "attack/given/p_value" not in played.measured.metrics
    assert played.measured.metrics["attack/given/leakage"] == 0.125


def test_of_mixtures_the_rows_leaked_follow_from_the_accuracy():
    found = play_attacks([game()], [Scores(RIGHT_5)], shares=(0.8, 0.2)).measured
    assert found.metrics["attack/given/n_leaked"] == pytest.approx(math.log(1 - 0.25**2) / math.log(0.25))
    assert found.metrics["attack/given/n_leaked_floor"] == pytest.approx(math.log(1 - 1 / 8) / math.log(0.25))
    low, high = found.intervals["attack/given/n_leaked"]
    assert low == 0
    assert high == pytest.approx(math.log(1 - 4 * found.intervals["attack/given/leakage"][1] ** 2) / math.log(0.25))
    certain = play_attacks([game()], [Scores((2 * TRUTH - 1.0).tolist())], shares=(0.8, 0.2)).measured.metrics
    assert certain["attack/given/accuracy"] == 1
    assert "attack/given/n_leaked" not in certain
    for shares in ((1.0, 0.0), (1.0, 0.4), (0.0, 0.4), (0.5, 0.5), None):
        assert "attack/given/n_leaked" not in play_attacks([game()], [Scores(RIGHT_5)], shares=shares).measured.metrics


@pytest.mark.parametrize("pure", [False, True])
def test_several_splits_have_intervals_over_splits_and_no_p_value_of_the_cell(pure, caplog):
    played = play_attacks([game()] * 3, [Scores(RIGHT_5, RIGHT_2, RIGHT_1)], pure=pure, ratio=0.5)
    metrics, accuracy = played.measured.metrics, torch.tensor([5, 2, 1]).double() / 8
    assert not caplog.records
    assert metrics["attack/given/accuracy"] == pytest.approx(1 / 3)
    assert metrics["attack/given/advantage"] == pytest.approx(-1 / 3)
    assert metrics["attack/given/leakage"] == pytest.approx(1 / 6)
    half = stats.t.ppf(0.975, 2) * float(accuracy.std()) * math.sqrt(1 / 3 + 0.5)
    assert 1 / 3 + half > 0.5
    assert played.measured.intervals["attack/given/accuracy"] == pytest.approx((0, min(1 / 3 + half, 1)))
    assert played.measured.intervals["attack/given/leakage"] == pytest.approx((0, 0.5))
    assert played.measured.signed["attack/given/leakage"] == [[pytest.approx(-1 / 6)]]
    assert metrics["attack/given/accuracy_std"] == pytest.approx(float(accuracy.std()))
    aucs = [Scores(scores).run(game()).signed_auc for scores in (RIGHT_5, RIGHT_2, RIGHT_1)]
    assert metrics["attack/given/auc_std"] == pytest.approx(float(torch.tensor(aucs).std()))
    assert not any("p_value" in name for name in metrics)
    assert all(("p_values" in record) != pure for record in played.victims)


def test_splits_that_err_either_way_leak_no_more_than_their_mean():
    turned = [-score for score in RIGHT_1]
    played = play_attacks([game()] * 2, [Scores(RIGHT_1, turned)])
    assert played.measured.metrics["attack/given/leakage"] == 0  # and not the mean of the leakages, 3/8
    assert played.measured.metrics["attack/given/auc"] == pytest.approx(0.5)
    assert played.measured.intervals["attack/given/auc"][0] == 0.5


def test_an_auc_below_a_half_is_folded_over_splits_and_says_so():
    played = play_attacks([game()] * 2, [Scores(RIGHT_1, RIGHT_2)])
    signed = [Scores(scores).run(game()).signed_auc for scores in (RIGHT_1, RIGHT_2)]
    assert played.measured.metrics["attack/given/auc"] == pytest.approx(1 - sum(signed) / 2)
    assert played.measured.metrics["attack/given/auc_inverted"] == 1.0
    assert played.measured.signed["attack/given/auc"] == [[pytest.approx(sum(signed) / 2 - 0.5)]]


def test_the_floor_over_splits_is_that_of_all_victims_together():
    played = play_attacks([game()] * 3, [Scores(RIGHT_5)])
    expected = sum(math.comb(24, k) * abs(k / 24 - 0.5) for k in range(25)) / 2**24
    assert played.measured.metrics["attack/given/leakage_floor"] == pytest.approx(expected)


def test_an_attack_that_keeps_its_own_border_is_told_of(caplog):
    attack = Scores(RIGHT_5)
    assert "attack/given/calibrated" not in play_attacks([game()], [attack]).measured.metrics
    attack.calibrates = False
    measured = play_attacks([game()], [attack]).measured
    assert "attack given is not calibrated" in caplog.text
    assert "game.shadows to 3 or more" in caplog.text
    assert measured.metrics["attack/given/calibrated"] == 0
    assert measured.described["attack/given/calibrated"].column  # among the table's columns


def test_the_victim_gap_has_a_floor_by_dealing_the_worlds_anew():
    accuracy = [0.8, 0.82, 0.9, 0.7, 0.72, 0.66, 0.6, 0.71]
    played = play([split(accuracy)], [], pure=False)
    values = torch.tensor(accuracy).double()
    assignments = [list(ones) for ones in itertools.combinations(range(8), 4)]
    gaps = [values[ones].mean() - values[[i for i in range(8) if i not in ones]].mean() for ones in assignments]
    floor = sum(abs(gap) for gap in gaps) / len(gaps)
    error = float(torch.stack(gaps).abs().std()) / math.sqrt(1000)
    assert played.measured.metrics["privacy/victim_accuracy_gap_floor"] == pytest.approx(float(floor), abs=4 * error)
    assert played.measured.signed["privacy/victim_accuracy_gap"] == [[pytest.approx(float(gaps[-1]))]]
    assert played.measured.metrics["privacy/victim_accuracy_gap"] == pytest.approx(abs(float(gaps[-1])))


def test_the_victim_gap_over_splits_is_signed_before_it_is_folded():
    up, down = [0.6] * 4 + [0.8] * 4, [0.8] * 4 + [0.7] * 4
    played = play([split(up, ratio=0.5), split(down, ratio=0.5)], [], pure=True)
    assert played.measured.metrics["privacy/victim_accuracy_gap"] == pytest.approx(0.05)
    half = stats.t.ppf(0.975, 1) * (0.3 / math.sqrt(2)) * math.sqrt(1 / 2 + 0.5)
    assert played.measured.intervals["privacy/victim_accuracy_gap"] == pytest.approx((0, 0.05 + half))


def test_the_interval_of_one_split_s_gap_is_welch_s():
    first, second = torch.tensor([0.8, 0.82, 0.9, 0.7]).double(), torch.tensor([0.72, 0.66, 0.6]).double()
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert welch_interval(first, second) == pytest.approx((expected.low, expected.high))
    assert welch_interval(first[:1], second) == welch_interval(first, second[:1]) == (-math.inf, math.inf)
    assert welch_interval(first[[0, 0]], second[[0, 0]]) == (pytest.approx(-0.08), pytest.approx(-0.08))


def test_what_is_told_of_the_pool_are_means_over_all_victims():
    first, second = split([0.8] * 8), split([0.6] * 4, torch.tensor([0, 0, 1, 1]))
    first.gap[:] = 0.1
    second.gap[:] = 0.4
    second.constant[:2] = True
    second.diverged = 3
    metrics = play([first, second], [], pure=False).measured.metrics
    expected = {"accuracy": 8.8 / 12, "equalized_odds_gap": 0.2, "constant": 1 / 6, "diverged": 3}
    for name, value in expected.items():
        assert metrics[f"pool/{name}"] == pytest.approx(value), name


def test_a_game_is_degenerate_where_more_than_half_of_its_victims_are_constant():
    half, more = split([0.8] * 8), split([0.8] * 8)
    half.constant[:4] = True
    more.constant[:5] = True
    assert play([half], [], pure=False).measured.degenerate == []
    assert play([more], [], pure=False).measured.degenerate == [
        "62% of the victims are constant: over 99 % of their predictions are of one class"
    ]


def test_accuracy_on_training_rows_is_told_where_it_is_known():
    known = split([0.8] * 8, train_accuracy=torch.full((8,), 0.95))
    assert play([known], [], pure=False).measured.metrics["pool/train_accuracy"] == pytest.approx(0.95)
    assert "pool/train_accuracy" not in play([split([0.8] * 8)], [], pure=False).measured.metrics


def test_what_is_told_of_training_stands_with_the_victims():
    told = {"victims": {"epoch": [3, 4]}}
    assert play([split([0.8] * 8, told=told)], [], pure=False).victims[0]["training"] == told
