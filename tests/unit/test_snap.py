"""The poisoning adversary: which rows it adds, what they tell, and how near it comes to the best there is."""

import functools
from dataclasses import replace

import pytest
import torch
from scipy import stats

from fairpriv.classifiers.attacks.attack import AttackGame, Query, guess
from fairpriv.classifiers.attacks.game import deal, own_pool, refuse_overlap
from fairpriv.classifiers.attacks.snap import SNAP
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.classifiers.data.tabular import TabularDataset
from fairpriv.classifiers.experiment import DistributionInference
from fairpriv.classifiers.known_truth import KnownGaussian, KnownTruth
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.config.settings import GameSettings, TrainingSettings
from fairpriv.data.sources import Files
from fairpriv.errors import InputError
from fairpriv.undefended import Undefended

TRAINING = TrainingSettings(epochs=20, patience=None, batch_size=64, lr=0.05, weight_decay=0.0)
FIT = functools.partial(fit_pool, hidden=[4])


@pytest.fixture
def people(tmp_path) -> TabularDataset:
    """1,600 people of two groups, which a model sees; one in five has label 1, in both alike."""
    lines = ["x,y,group,label"]
    lines += [f"{i % 11},{i % 13},{'ab'[i % 2]},{int(i // 2 % 5 == 0)}" for i in range(1600)]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    return TabularDataset(
        name="people",
        source=Files(files=["people.csv"], folder=str(tmp_path)),
        target="label",
        positive=[1],
        sensitive="group",
        groups={"group": ["a", "b"]},
        include_sensitive=True,
    )


def dealt(dataset, **changes) -> GameDataModule:
    module = GameDataModule(dataset, GameSettings(**{"alpha": 0.9, "model_rows": 90} | changes), seed=0)
    module.setup()
    return module


@pytest.mark.parametrize("added", [0, 3])
def test_on_tables_of_one_cell_it_is_as_good_as_the_best_adversary_and_finds_nothing_without_its_rows(added):
    """A table answers with the frequency of label 1, added / (added + T), for T binomial with the world's share."""
    rows, shares, generator = 21, (0.6, 0.4), torch.Generator().manual_seed(0)

    def tables(world: int, count: int) -> list[float]:
        seen = (torch.rand(count, rows, generator=generator) < shares[world]).sum(1)
        return (added / (added + seen)).tolist()

    def pool(frequencies: list[float]) -> Pool:
        b = torch.tensor(frequencies).clamp(1e-9).logit()
        return Pool([(torch.zeros(len(b), 1, 2), torch.stack((-b, b), 1) / 2)])

    shadows = pool(tables(0, 100)), pool(tables(1, 100))
    victims, truth = pool(tables(0, 500) + tables(1, 500)), torch.arange(2).repeat_interleave(500)
    query = Query(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4), torch.tensor([0, 0, 1, 1]))
    found = guess(SNAP(), AttackGame(victims, shadows, query, 0, truth, (0, 1)))
    k = torch.arange(rows + 1).numpy()
    optimum = abs(stats.binom.pmf(k, rows, shares[0]) - stats.binom.pmf(k, rows, shares[1])).sum() / 2
    best = (1 + optimum) / 2 if added else 0.5
    assert found.accuracy == pytest.approx(best, abs=4 * (best * (1 - best) / 1000) ** 0.5)


def test_without_rows_to_ask_about_it_is_refused_rather_than_found_to_leak_nothing():
    game = KnownGaussian("x").game(0, shadows=3, victims=2)
    query = replace(game.query, y=torch.ones(len(game.query.X)), s=torch.zeros(len(game.query.X)))
    with pytest.raises(InputError, match="attack snap has no rows of the property group to ask about"):
        guess(SNAP(), replace(game, query=query, poison=(0, 1)))


@pytest.mark.parametrize("label", [0, 2])
def test_of_several_classes_it_asks_for_the_added_label(label):
    draw = torch.Generator().manual_seed(label)
    pools = [torch.randn(m, 1, 6, generator=draw) for m in (5, 3, 4)]  # M models of one logit a class, whatever X is
    zero, one, victims = (Pool([(torch.zeros(len(b), 1, 6), b[:, 0])]) for b in pools)
    s, y = torch.tensor([0, 0, 0, 1]), torch.tensor([1, label, 1, 1])
    game = AttackGame(
        victims, (zero, one), Query(torch.zeros(4, 1), y, s, torch.tensor([0, 0, 1, 1])), 0, torch.ones(4), (0, label)
    )

    def odds(pool):  # of the added label, once for each of the two rows of group 0 with another one
        p = pool[:, 0].double().softmax(-1)[:, label]
        return (p / (1 - p)).log().tolist()

    middles = [sorted(odds(pool))[len(pool) // 2] for pool in pools[:2]]
    up = 1 if middles[1] > middles[0] else -1
    expected = [up * (0.5 if one > sum(middles) / 2 else -0.5) for one in odds(pools[2])]
    assert SNAP().run(game).scores.tolist() == expected
    with pytest.raises(InputError, match="attack snap needs rows of its own in the training data"):
        SNAP().run(replace(game, poison=None))


@pytest.mark.parametrize("label", [0, 1])
def test_of_two_classes_it_asks_how_far_models_lean_to_the_added_label(label):
    draw = torch.Generator().manual_seed(label)
    odds = [torch.randn(m, generator=draw) for m in (4, 3, 5)]  # of label 1, whatever X is
    zero, one, victims = (Pool([(torch.zeros(len(x), 1, 2), torch.stack((-x, x), 1) / 2)]) for x in odds)
    s, y = torch.tensor([0, 0, 0, 1]), torch.tensor([1 - label, label, 1 - label, 1 - label])
    query = Query(torch.zeros(4, 1), y, s, torch.tensor([0, 0, 1, 1]))
    game = AttackGame(victims, (zero, one), query, 0, torch.ones(5), (0, label))
    toward = [[x if label else -x for x in part.tolist()] for part in odds]
    middles = [sorted(values)[(len(values) - 1) // 2] for values in toward[:2]]
    up = 1 if middles[1] > middles[0] else -1
    expected = [up * (0.5 if x > sum(middles) / 2 else -0.5) for x in toward[2]]
    assert SNAP().run(game).scores.tolist() == expected
    assert set(expected) == {-0.5, 0.5}


def test_leakage_rises_with_the_share_of_rows_added_and_is_none_between_equal_worlds(people):
    def played(**changes):
        data = dealt(people, shadows=12, victims=16, **changes)
        return guess(SNAP(), deal(data, Undefended().defend_pool, FIT, TRAINING).game)

    little, much = played(poison=0.01), played(poison=0.15)
    assert much.accuracy > max(0.9, little.accuracy + 0.1)
    assert played(poison=0.15, alpha=0.5).p_value > 0.01


def test_the_same_rows_are_added_to_both_worlds_of_victims_and_shadows_and_are_not_asked_about(people):
    data, plain = dealt(people, poison=0.1), dealt(people)
    assert data.poison == (0, 1)  # group a, whose rarer label is 1
    asked = torch.cat([data.part("query", world).index for world in (0, 1)])
    assert data.measured.metrics["data/rows_poisoned"] == 10
    for side in ("victim", "adversary"):
        owner, clean = (own_pool(each, side, 2, FIT, TRAINING) for each in (data, plain))
        for own in (True, False):
            for rows, before in zip(owner.samples(own=own), clean.samples(own=own), strict=True):
                assert rows.index[:90].tolist() == before.index.tolist()
                added = rows.take(torch.arange(90, 100))
                assert added.index.tolist() == data._poison_rows.tolist()
                assert set(added.s.tolist()) == {0}
                assert set(added.y.tolist()) == {1}
                assert set(data.table.y[added.index]) == {0}  # every label was flipped
        for rows in owner.validation():
            assert not set(rows.index.tolist()) & set(data._poison_rows.tolist())
    assert not set(data.twins[asked]) & set(data.twins[data._poison_rows])
    refuse_overlap(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poison": 1.0}, r"game\.poison=1\.0: it is a share of training rows, from 0 to below 1"),
        ({"poison": 0.1, "adversary_share": 0}, r"game\.poison=0\.1: the adversary has no rows to add"),
        (
            {"poison": 0.5},
            r"game\.poison=0\.5: 90 rows of group=a with other labels than '1' are needed",
        ),
    ],
)
def test_a_share_that_cannot_be_added_is_refused(people, changes, message):
    with pytest.raises(InputError, match=message):
        dealt(people, **changes)


CONFIG = {
    "seed": 0,
    "model": {"_target_": "fairpriv.classifiers.nets.classifier.MLP", "name": "mlp", "dropout": 0.0},
    "game": {},
    "training": {},
    "attack": {"snap": {"_target_": "fairpriv.classifiers.attacks.snap.SNAP"}},
    "dimensions": {},
    "trainer": {"accelerator": "cpu"},
    "logger": None,
    "paths": {"root": "outputs"},
}


def test_it_is_refused_without_rows_of_its_own_and_rows_without_training(people):
    with pytest.raises(InputError, match=r"attack snap needs rows of its own in the training data: set game\.poison"):
        DistributionInference(CONFIG, people, Undefended())
    with pytest.raises(InputError, match=r"draws its models as they are: leave game\.poison at 0"):
        KnownTruth(CONFIG | {"game": {"poison": 0.1}}, KnownGaussian("known"), Undefended())
    for clip in (0.0, 0.5):
        with pytest.raises(InputError, match=rf"attack\.snap\.clip={clip}: must lie between 0 and 0\.5"):
            SNAP(clip=clip)
