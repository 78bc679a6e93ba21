"""Dealing and playing the game with pools: who is trained on what, and what is counted."""

import functools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import lightning
import pytest
import torch
from scipy import stats

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult, Query, guess
from fairpriv.classifiers.attacks.black_box_meta_classifier import BlackBoxMetaClassifier
from fairpriv.classifiers.attacks.game import deal, gap_floor, own_pool, refuse_overlap
from fairpriv.classifiers.attacks.kl import KL
from fairpriv.classifiers.attacks.label_only_kl import LabelOnlyKL
from fairpriv.classifiers.attacks.loss import LossTest
from fairpriv.classifiers.attacks.meta_classifier import MetaClassifier
from fairpriv.classifiers.attacks.per_point_threshold import PerPointThreshold
from fairpriv.classifiers.attacks.play import Played, Split, play, welch_interval
from fairpriv.classifiers.attacks.threshold import ThresholdTest
from fairpriv.classifiers.contract import ClassifierOwner
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.defenses.fair_finetune import FairFineTuning
from fairpriv.classifiers.defenses.threshold_optimizer import ThresholdOptimizer
from fairpriv.classifiers.experiment import DistributionInference, record
from fairpriv.classifiers.nets.classifier import fit
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.pool import Pool, fit_pool
from fairpriv.config.settings import GameSettings, TrainingSettings
from fairpriv.errors import InputError
from fairpriv.functional.fairness import group_counts, label_gaps, permuted_counts, shares
from fairpriv.metrics import Measured
from fairpriv.result import Result
from fairpriv.undefended import Undefended

TRAINING = TrainingSettings(epochs=30, patience=None, batch_size=64, lr=0.03, weight_decay=0.0)
FIT = functools.partial(fit_pool, hidden=[4])
CONFIG = {
    "seed": 0,
    "model": {"_target_": "fairpriv.classifiers.nets.classifier.MLP", "name": "mlp", "dropout": 0.0},
    "game": {},
    "training": {},
    "attack": {},
    "dimensions": {},
    "trainer": {"accelerator": "cpu"},
    "logger": None,
    "paths": {"root": "outputs"},
}
GAME = GameSettings(shadows=6, victims=4, model_rows=40)


def people(tmp_path, seed=0) -> GameDataModule:
    """1,600 people of two groups; the label follows a feature, and in group b the other way round."""
    from fairpriv.classifiers.data.tabular import TabularDataset
    from fairpriv.data.sources import Files

    g = torch.Generator().manual_seed(seed)
    lines = ["x,z,group,label"]
    for i in range(1600):
        group, label = "ab"[i % 2], int(torch.rand((), generator=g) < 0.5)
        sign = 1 if group == "a" else -1
        lines.append(f"{sign * (2 * label - 1) + float(torch.randn((), generator=g)):.3f},{i % 7},{group},{label}")
    path = tmp_path / "people.csv"
    path.write_text("\n".join(lines))
    dataset = TabularDataset(
        name="people",
        source=Files(files=["people.csv"], folder=str(tmp_path)),
        target="label",
        positive=[1],
        sensitive="group",
        groups={"group": ["a", "b"]},
    )
    return dataset


@pytest.fixture
def data(tmp_path):
    module = GameDataModule(people(tmp_path), GAME, seed=0)
    module.setup()
    return module


def test_a_property_that_turns_the_label_round_is_found_by_attacks_and_hidden_by_training_on_both_worlds(data):
    attacks = [LossTest(), KL()]
    bare = play([deal(data, Undefended().defend_pool, FIT, TRAINING)], attacks, pure=True).measured.metrics
    assert bare["attack/loss_test/accuracy"] == bare["attack/kl/accuracy"] == 1.0
    assert bare["privacy/victim_accuracy_gap"] < 0.2  # on both worlds' rows together the victims are alike
    union = FairFineTuning(name="scratch", start="scratch", rehearsal=1.0, penalty=0.0, epochs=3, lr=0.03)
    hidden = play([deal(data, union.defend_pool, FIT, TRAINING)], attacks, pure=True).measured.metrics
    assert hidden["attack/loss_test/accuracy"] < 0.9


def test_members_sample_their_own_world_of_their_own_part(data):
    owner = own_pool(data, "adversary", 3, FIT, TRAINING)
    own, other = owner.samples(own=True), owner.samples(own=False)
    assert [set(rows.s.tolist()) for rows in own] == [{0}] * 3 + [{1}] * 3
    assert [set(rows.s.tolist()) for rows in other] == [{1}] * 3 + [{0}] * 3
    held = set(data.half("adversary").index.tolist())
    for rows in own + other:
        assert len(rows.y) == 40
        assert set(rows.index.tolist()) <= held
    assert [len(rows.y) for rows in owner.validation()] == [2 * 20] * 6
    assert [set(rows.s.tolist()) for rows in owner.own_validation()] == [{0}] * 3 + [{1}] * 3
    for trained, held_out in zip(map(Rows.__add__, own, other), owner.validation(), strict=True):
        assert not set(trained.index.tolist()) & set(held_out.index.tolist())
    assert len({tuple(sorted(rows.index.tolist())) for rows in own}) == 6  # every member its own


def test_validation_rows_in_the_same_places_are_taken_once(data):
    owner = own_pool(data, "adversary", 3, FIT, TRAINING)
    alike = replace(owner, deals=[owner.deals[0]] * 6)
    counts = [len(set(rows)) for rows in (owner.validation(), alike.validation(), alike.own_validation())]
    assert counts == [6, 1, 2]  # as objects


def test_shadows_do_not_start_from_the_victims_initial_weights(data):
    seeds = {own_pool(data, side, 1, FIT, TRAINING).seed for side in ("victim", "adversary")}
    assert len(seeds) == 2


def test_shadows_pass_through_the_defence_only_where_the_adversary_is_adaptive(data):
    seen = []

    def defence(owner):
        seen.append(len(owner.samples(own=True)))
        return owner.base()

    deal(data, defence, FIT, TRAINING)
    assert seen == [8]
    data.game.adaptive = True
    try:
        deal(data, defence, FIT, TRAINING)
    finally:
        data.game.adaptive = False
    assert seen == [8, 8, 12]


def test_members_that_diverged_are_neither_victims_nor_shadows(tmp_path):
    """Of networks that are drawn and not trained, some of which say that they broke off."""
    settings = GameSettings(shadows=5, victims=4, model_rows=20, adversary_share=0.25, adaptive=True)
    data = GameDataModule(people(tmp_path), settings, seed=0)
    data.setup()
    draw, made = torch.Generator().manual_seed(0), []

    def drawn(owner):
        members, features = 2 * owner.count, data.test.X.shape[1]
        weights = torch.randn(members, features, 2, generator=draw), torch.randn(members, 2, generator=draw)
        made.append(Pool([weights]))
        made[-1].diverged.extend([1] if owner.count == 4 else [0, 4, 6])
        return made[-1]

    split = deal(data, drawn, FIT, TRAINING)
    victims, shadows = made
    kept = [0, 2, 3, 4, 5, 6, 7]
    assert split.diverged == 1 + 3
    assert split.game.truth.tolist() == [0, 0, 0, 1, 1, 1, 1]
    for found, pool, members in [
        (split.game.victims, victims, kept),
        (split.game.shadows[0], shadows, [1, 2, 3]),
        (split.game.shadows[1], shadows, [5, 7, 8, 9]),
    ]:
        assert torch.equal(found.weights[0][0], pool.weights[0][0][members])
    samples = own_pool(data, "victim", 4, FIT, TRAINING).samples(own=True)
    for place, member in enumerate(kept):
        for rows, accuracy in ((samples[member], split.train_accuracy), (data.test, split.accuracy)):
            W, b = (part[member] for part in victims.weights[0])
            right = [int(said[1] > said[0]) == y for said, y in zip((rows.X @ W + b).tolist(), rows.y, strict=True)]
            assert float(accuracy[place]) == pytest.approx(sum(right) / len(right))
    query = split.game.query
    assert query.s.tolist() == query.world.tolist()  # the worlds are pure groups
    assert query.y.tolist() == [y for world in (0, 1) for y in data.part("query", world).y.tolist()]
    assert split.ratio == pytest.approx(3)  # rows of the victims' half to one of the adversary's


class Coins(Models):
    """Members that answer 1 with a chance of their own, whatever they are asked."""

    randomized = True

    def __init__(self, chances):
        self.chances = torch.as_tensor(chances)

    def __len__(self):
        return len(self.chances)

    def __getitem__(self, index):
        return Coins(self.chances[index])

    def predict_proba(self, X):
        return self.chances[:, None].expand(-1, len(X))


def test_answers_of_randomised_victims_are_drawn_and_attacks_are_told_their_chances(data):
    chances = [0.0, 0.3, 0.3, 0.5, 0.7, 0.9, 1.0, 0.001]
    data.game.shadows = 0
    try:
        split = deal(data, lambda owner: Coins(chances), FIT, TRAINING)
    finally:
        data.game.shadows = 6
    assert split.game.shadows is None
    test = [data.part(part, world) for part in ("rates", "gap") for world in (0, 1)]
    positive = float(torch.cat([rows.y for rows in test]).double().mean())
    rows = sum(len(part.y) for part in test)
    for chance, accuracy, constant in zip(chances, split.accuracy, split.constant, strict=True):
        expected = chance * positive + (1 - chance) * (1 - positive)
        assert float(accuracy) == pytest.approx(expected, abs=4 * (chance * (1 - chance) / rows) ** 0.5 + 1e-9)
        assert bool(constant) == (chance in (0.0, 1.0, 0.001))
    assert float(split.accuracy[1]) != float(split.accuracy[2])  # each draws its own
    assert torch.equal(split.game.victim_probs[:, 0], torch.tensor(chances))


def test_too_few_rows_say_how_many_are_missing(data):
    data.game.model_rows = 10_000
    try:
        with pytest.raises(
            InputError, match=r"the victim's half has \d+ rows of group=a .* \d+ fewer than game\.model_rows=10000"
        ):
            own_pool(data, "victim", 1, FIT, TRAINING)
    finally:
        data.game.model_rows = 40


def test_halves_that_share_a_row_or_a_twin_are_refused(data):
    refuse_overlap(data)
    data.twins = data.twins.copy()
    data.twins[int(data.half("victim").index[0])] = data.twins[int(data.part("query", 0).index[0])]
    with pytest.raises(InputError, match="people: 1 rows are in the victims' half and in the adversary's"):
        refuse_overlap(data)


def test_own_accuracy_is_that_on_the_rows_a_model_was_trained_on_first(data):
    split = deal(data, Undefended().defend_pool, FIT, TRAINING)
    owner = own_pool(data, "victim", 4, FIT, TRAINING)
    pool = owner.base()
    for member, rows in enumerate(owner.samples(own=True)):
        right = sum(int(p > 0.5) == y for p, y in zip(pool[member].predict_proba(rows.X)[0], rows.y, strict=True))
        assert float(split.train_accuracy[member]) == pytest.approx(right / 40)
    assert split.told["victims"]["epoch"] == pool.told["epoch"]
    assert set(split.told) == {"victims", "shadows"}


class Guess(Attack):
    """An attack that knows the truth of a given share of the victims."""

    name = "guess"

    def run(self, game) -> AttackResult:
        return game.result(self.name, torch.linspace(-1, 1, len(game.truth)))


def split(accuracy, truth) -> Split:
    n = len(truth)
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    game = AttackGame(Pool([(torch.zeros(n, 1, 2), torch.zeros(n, 2))]), None, query, 0, torch.tensor(truth))
    return Split(game, torch.tensor(accuracy), torch.zeros(n), torch.tensor([False] * n), diverged=1)


def test_victim_gap_is_the_difference_of_the_worlds_mean_accuracies():
    played = play([split([0.8, 0.82, 0.7, 0.72], [0, 0, 1, 1])], [Guess()], pure=False)
    assert played.measured.metrics["privacy/victim_accuracy_gap"] == pytest.approx(0.1)
    low, high = played.measured.intervals["privacy/victim_accuracy_gap"]
    assert 0 < low < 0.1 < high
    assert played.measured.metrics["pool/diverged"] == 1
    assert played.victims[0]["truth"] == [0, 0, 1, 1]
    assert len(played.victims[0]["scores"]["guess"]) == 4


def test_welch_interval_is_scipys():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(9, generator=g).double(), 0.2 + 2 * torch.rand(14, generator=g).double()
    expected = stats.ttest_ind(b.numpy(), a.numpy(), equal_var=False).confidence_interval()
    assert welch_interval(a, b) == pytest.approx(tuple(expected), abs=1e-9)


def test_repeated_splits_report_mean_and_spread():
    splits = [split([0.8] * 4, [0, 0, 1, 1]), split([0.8] * 4, [0, 1, 0, 1])]
    metrics = play(splits, [Guess()], pure=False).measured.metrics
    assert metrics["attack/guess/accuracy"] == pytest.approx(0.75)
    assert metrics["attack/guess/accuracy_std"] == pytest.approx(0.3535, abs=1e-3)
    assert metrics["pool/diverged"] == 2


def as_victim(owner, member) -> ClassifierOwner:
    """One member of a pool as the owner of a single model, with the same rows."""
    deal, world = owner.deals[member], member // owner.count
    parts = {
        (part, w): deal.half.take(getattr(deal, part)[w if world == 0 else 1 - w])
        for part in ("train", "validation")
        for w in (0, 1)
    }
    seen = SimpleNamespace(part=lambda *name: parts[name], label_names=("0", "1"))
    base = functools.partial(owner.base().member, member)
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)
    return ClassifierOwner(seen, 0, 0, base, base, functools.partial(fit, trainer=trainer))


# Rehearsal of all rows and batches of all rows leave nothing to chance, so that one model and a pool see the same.
WHOLE = {"rehearsal": 1.0, "epochs": 12, "lr": 0.03, "batch_size": 4096, "steps_per_epoch": 3, "patience": 2}


@pytest.mark.parametrize(
    "how",
    [
        {"penalty": 0.0},
        {"penalty": 1.0},
        {"penalty": "validation", "grid": [1.0, 5.0], "tolerance": 0.3},
        {"penalty": "validation", "grid": [1.0, 5.0], "tolerance": 0.3, "grid_epochs": 1},
        {"penalty": "dual", "epsilon": 0.1, "dual_rate": 3.0},
    ],
    ids=lambda how: f"penalty={how['penalty']}" + (",short" if "grid_epochs" in how else ""),
)
def test_a_pool_is_defended_as_each_of_its_members_would_be(data, how):
    """The same rule stops them, and the same rule chooses lambda, each by its own validation rows."""
    owner = own_pool(data, "victim", 2, FIT, replace(TRAINING, patience=3))
    defence = FairFineTuning(**WHOLE | how)
    pool = defence.defend_pool(owner)
    told = {"epoch": [], "lambda": [], "constraint_met": []}
    for member, rows in enumerate(owner.validation()):
        defended = defence.defend(as_victim(owner, member))
        assert torch.allclose(pool.member(member)(rows.X), defended.net(rows.X), atol=1e-3)
        for name, values in told.items():
            values.append(defended.measured.metrics.get(f"defense/{name}", 1.0))
    for name, values in pool.told.items():
        assert values == pytest.approx(told[name], abs=1e-4), name
    if how["penalty"] == "dual":
        assert len(set(pool.told["lambda"])) > 1
    elif how["penalty"] != "validation":
        assert min(pool.told["epoch"]) < 12


def test_the_floor_of_the_victims_gaps_deals_groups_among_the_rows_of_a_label_and_equal_rows_together():
    generator = torch.Generator().manual_seed(3)
    preds, y, s = (torch.randint(2, (*shape, 60), generator=generator) for shape in ((3,), (), ()))
    counts = [group_counts(p, y, s, labels=2, group_count=2, classes=2) for p in preds]
    expected = [label_gaps(shares(permuted_counts(count, draws=4000))).amax(1).mean() for count in counts]
    expected = pytest.approx(float(torch.stack(expected).mean()), rel=0.05)
    rows = Rows(torch.zeros(60, 1), y, s, torch.arange(60))
    assert gap_floor(preds, rows, torch.arange(60), 2, 0, draws=1000) == expected
    four = rows.take(torch.arange(60).repeat(4))
    assert gap_floor(preds.repeat(1, 4), four, torch.arange(60).repeat(4), 2, 0, draws=1000) == expected
    assert gap_floor(preds.repeat(1, 4), four, torch.arange(240), 2, 0, draws=1000) < 0.6 * expected.expected


def test_dual_ascent_on_a_pool_changes_what_it_answers(data):
    owner = own_pool(data, "victim", 2, FIT, TRAINING)
    driven, free = (
        FairFineTuning(penalty=penalty, **WHOLE | {"epsilon": 0.1, "dual_rate": 3.0}).defend_pool(owner)
        for penalty in ("dual", 0.0)
    )
    X = data.part("query", 0).X
    assert (free.predict_proba(X) - driven.predict_proba(X)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("model", "game", "message"),
    [
        (
            {"dropout": 0.1},
            {},
            r"attacks and dimensions such as membership train pools of model=mlp with model\.dropout=0",
        ),
        ({"_target_": "torch.nn.Identity"}, {}, "attacks and dimensions such as membership train pools of model=mlp"),
        ({}, {"victims": 0}, r"game\.victims=0, game\.repeats=1: an attack needs one of each"),
        ({}, {"repeats": 0}, r"game\.victims=64, game\.repeats=0: an attack needs one of each"),
    ],
)
def test_what_attacks_cannot_train_is_refused_before_the_data_are_read(tmp_path, model, game, message):
    config = CONFIG | {"model": CONFIG["model"] | model, "game": game}
    DistributionInference(config, people(tmp_path), Undefended())
    with pytest.raises(InputError, match=message):
        DistributionInference(config | {"attack": BLACK_BOX}, people(tmp_path), Undefended())


class Outsider:
    """Inherits nothing."""


def test_a_part_that_does_not_inherit_is_told_what_to_inherit_from(tmp_path):
    class Alone:
        name = "alone"

    with pytest.raises(InputError, match=r"defense: .*Alone is none: .*from fairpriv\.classifiers\.contract\.Defense"):
        DistributionInference(CONFIG, people(tmp_path), Alone())
    with pytest.raises(
        InputError, match=r"dataset: .*Alone is none: .*from fairpriv\.classifiers\.data\.dataset\.Data"
    ):
        DistributionInference(CONFIG, Alone(), Undefended())
    attack = {"_target_": f"{Outsider.__module__}.Outsider"}
    with pytest.raises(InputError, match=r"attack=outsider: .*from fairpriv\.classifiers\.attacks\.attack\.Attack"):
        DistributionInference(CONFIG | {"attack": {"outsider": attack}}, people(tmp_path), Undefended())


WHITE_BOX = {"meta_classifier": {"_target_": "fairpriv.classifiers.attacks.meta_classifier.MetaClassifier"}}
BLACK_BOX = {"kl": {"_target_": "fairpriv.classifiers.attacks.kl.KL"}}


def behind_thresholds(attack, tmp_path) -> DistributionInference:
    return DistributionInference(CONFIG | {"attack": attack}, people(tmp_path), ThresholdOptimizer())


def test_attacks_on_weights_are_left_out_where_a_defence_leaves_no_single_network_and_the_result_says_so(tmp_path):
    cell = behind_thresholds(BLACK_BOX | WHITE_BOX, tmp_path)
    assert [attack.name for attack in cell.attacks] == ["kl"]
    result = Result("id", "completed", {}, {})
    record(result, Played(Measured({"attack/kl/accuracy": 0.5}), []), cell.omitted, tmp_path)
    told = json.loads((tmp_path / result.artifacts["attacks"]).read_text())["omitted"]
    assert told == {"meta_classifier": "reads the weights of one network, which threshold_optimizer does not leave"}


def test_a_game_of_attacks_on_weights_alone_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(
        InputError, match=r"attack=\[meta_classifier\] reads the weights .* defense=threshold_optimizer"
    ):
        behind_thresholds(WHITE_BOX, tmp_path)


ALIKE = GameSettings(alpha=0.5, shadows=16, victims=16, model_rows=60, model_validation_rows=20, min_cell=0)
# The meta-classifier is played with few steps, to be fast; its p value is as good as any.
ALL = [
    LossTest(),
    ThresholdTest(folds=2),
    PerPointThreshold(folds=2),
    KL(),
    LabelOnlyKL(),
    BlackBoxMetaClassifier(),
    MetaClassifier(width=4, folds=2, epochs=3),
]


@pytest.fixture(scope="module")
def splits_alike(tmp_path_factory):
    """Forty splits of a table small enough for models to memorise, both worlds being one distribution."""
    dataset = people(tmp_path_factory.mktemp("alike"))
    how = TrainingSettings(epochs=6, patience=None, batch_size=64, lr=0.05, weight_decay=0.0)
    found = []
    for seed in range(40):
        data = GameDataModule(dataset, ALIKE, seed)
        data.setup()
        found.append(deal(data, Undefended().defend_pool, functools.partial(fit_pool, hidden=[6]), how))
    return found


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_where_both_worlds_are_one_distribution_p_values_are_uniform_and_aucs_spread_as_by_chance(attack, splits_alike):
    """With one fixed set of rows a world this fails: attacks then tell the sets apart, not the distributions."""
    results = [guess(attack, split.game) for split in splits_alike]
    assert stats.kstest([result.p_value for result in results], "uniform").pvalue > 0.01
    nominal = math.sqrt((2 * 16 + 1) / (12 * 16 * 16))
    aucs = torch.tensor([result.signed_auc for result in results]).double()
    assert abs(float(aucs.mean()) - 0.5) < 3 * nominal / math.sqrt(40)
    # within 1.25 of nominal, and what forty splits may add to that by chance
    assert float(aucs.std()) < 1.25 * nominal * math.sqrt(stats.chi2.ppf(0.99, 39) / 39)
    accuracy = sum(result.correct for result in results)
    assert stats.binomtest(accuracy, 40 * 32).pvalue > 0.01
