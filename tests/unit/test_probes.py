"""Dimensions of a classifier, on worlds where the right value is known."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchmetrics.classification import BinaryAccuracy, BinaryConfusionMatrix

from fairpriv.classifiers.attacks.kl import KL
from fairpriv.classifiers.attacks.membership import LabelProbability, LiRA, MembershipAttack
from fairpriv.classifiers.contract import Defended, PoolOwner
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.classifiers.data.tabular import TabularDataset
from fairpriv.classifiers.dimensions.attribute import AttributeInference
from fairpriv.classifiers.dimensions.membership import Membership
from fairpriv.classifiers.dimensions.prediction import PredictionMetric, Predictions
from fairpriv.classifiers.dimensions.probe import Subject
from fairpriv.classifiers.dimensions.robustness import Robustness
from fairpriv.classifiers.nets.pool import fit_pool
from fairpriv.config.settings import GameSettings, TrainingSettings
from fairpriv.data.sources import Files
from fairpriv.errors import InputError
from fairpriv.functional import predictions
from fairpriv.metrics import Measured
from fairpriv.undefended import Undefended


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> GameDataModule:
    """3,200 people of two groups; label and features follow a number x, and one feature the group."""
    folder, g = tmp_path_factory.mktemp("people"), torch.Generator().manual_seed(0)
    x, noise = torch.randn(3200, generator=g), torch.rand(3200, generator=g)
    lines = ["x,z,group,label"]
    for i, (a, b) in enumerate(zip(x.tolist(), noise.tolist(), strict=True)):
        lines.append(f"{a:.5f},{(i * 7919) % 1009},{'ab'[i % 2]},{int(a + 0.5 * b > 0.25)}")
    (folder / "people.csv").write_text("\n".join(lines))
    module = GameDataModule(
        TabularDataset(
            name="people",
            source=Files(files=["people.csv"], folder=str(folder)),
            target="label",
            positive=[1],
            sensitive="group",
            groups={"group": ["a", "b"]},
        ),
        GameSettings(alpha=0.5),
        seed=0,
    )
    module.setup()
    return module


def linear(*weights: float, bias: float = 0.0) -> nn.Module:
    """A network of two classes whose log odds are linear in the features."""
    net = nn.Linear(len(weights), 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0] * len(weights), list(weights)]))
        net.bias.copy_(torch.tensor([0.0, bias]))
    return net


@pytest.fixture
def subject(data):
    def make(net: nn.Module | None = None, *, epochs: int = 2, hidden=(4,)) -> Subject:
        fit = functools.partial(fit_pool, hidden=list(hidden))
        training = TrainingSettings(epochs=epochs, patience=None, batch_size=32, lr=0.01, weight_decay=0.0)
        net = linear(4.0, 0.0) if net is None else net
        return Subject(
            Defended(net),
            Undefended(),
            data,
            0,
            owner=lambda deals: PoolOwner(deals, len(deals), 0, fit, training),
            play=lambda attacks: Measured(),
        )

    return make


def dimension(**metric) -> Predictions:
    return Predictions("mine", {"it": PredictionMetric(**metric)})


def test_a_torchmetrics_metric_is_a_dimension(subject):
    one = subject()
    found = dimension(measure=BinaryAccuracy(), better="greater", low=0, high=1, headline=True).measure(one)
    right = float((one.answers(one.rows) == one.rows.y).double().mean())
    assert found.metrics["eval/mine/it"] == pytest.approx(right)
    low, high = found.intervals["eval/mine/it"]
    half = 1.96 * (right * (1 - right) / len(one.rows.y)) ** 0.5
    assert (low, high) == pytest.approx((right - half, right + half), abs=half / 3)
    about = found.described["eval/mine/it"]
    assert (about.better, about.low, about.high, about.headline) == ("greater", 0, 1, True)


def test_a_metric_may_name_its_own_interval(subject):
    measure, own = functools.partial(predictions.expected_calibration_error), predictions.calibration_error_interval
    one = subject()
    found = dimension(measure=measure, interval=own, low=0, high=1, per_group=True).measure(one)
    expected = own(one.probabilities(one.rows, "mine"), one.rows.y)
    assert found.intervals["eval/mine/it"] == pytest.approx(expected)
    assert found.intervals["eval/mine/it/a"] != found.intervals["eval/mine/it/b"]
    with pytest.raises(InputError, match=r"interval=0\.95: must be a function"):
        dimension(measure=measure, interval=0.95)


def test_a_function_is_told_the_groups_where_it_takes_them(subject):
    found = dimension(
        measure=functools.partial(predictions.worst_group_accuracy), better="greater", low=0, high=1, floor="groups"
    ).measure(subject())
    plain = dimension(measure=functools.partial(predictions.accuracy)).measure(subject())
    assert found.metrics["eval/mine/it"] <= plain.metrics["eval/mine/it"]
    # The groups are alike here: the worst of them is as bad as one dealt at random.
    assert found.metrics["eval/mine/it"] == pytest.approx(found.metrics["eval/mine/it_floor"], abs=0.03)


def test_every_group_is_measured_and_the_gap_has_a_floor(subject):
    one = subject()
    found = dimension(measure=functools.partial(predictions.accuracy), low=0, high=1, per_group=True).measure(one)
    right = one.answers(one.rows) == one.rows.y
    of_groups = [float(right[one.rows.s == code].double().mean()) for code in (0, 1)]
    assert [found.metrics[f"eval/mine/it/{name}"] for name in "ab"] == pytest.approx(of_groups)
    assert found.metrics["eval/mine/it_gap"] == pytest.approx(abs(of_groups[0] - of_groups[1]))
    assert 0 < found.metrics["eval/mine/it_gap_floor"] < 0.05
    assert found.described["eval/mine/it_gap"].better == "less"
    low, high = found.intervals["eval/mine/it_gap"]
    assert low == 0  # the groups are alike here
    assert found.metrics["eval/mine/it_gap"] < high < 0.15


def test_a_draw_in_which_a_group_has_no_value_is_left_out_of_the_gap_s_floor(subject):
    told = itertools.chain([0.8, 0.9, 0.7], itertools.cycle([0.9, math.nan, 0.9, 0.7, math.nan, 0.9]))
    found = dimension(measure=lambda probs, y: next(told), interval=lambda probs, y: (0, 1), per_group=True)
    assert found.measure(subject()).metrics["eval/mine/it_gap_floor"] == pytest.approx(0.2)


def test_the_floor_of_a_calibration_error_is_that_of_a_calibrated_model(subject):
    ece = {"measure": functools.partial(predictions.expected_calibration_error), "better": "less", "low": 0, "high": 1}
    off = dimension(**ece, floor="calibrated").measure(subject(linear(40.0, 0.0))).metrics
    assert off["eval/mine/it"] > 4 * off["eval/mine/it_floor"]  # it is far too sure


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"measure": lambda probs, y: probs}, "eval/mine/it: returned a tensor of shape [1280], not one number"),
        ({"measure": lambda probs, y: "good"}, "eval/mine/it: returned a str, not one number"),
        ({"measure": lambda probs, y: float("nan")}, "eval/mine/it is nan on 1280 rows: it is undefined there"),
        ({"measure": lambda probs, y: 1.5, "high": 1}, "eval/mine/it is 1.5, outside its own range [-inf, 1]"),
        ({"measure": lambda probs, y: 1 / 0}, "eval/mine/it: ZeroDivisionError: division by zero"),
        ({"measure": BinaryConfusionMatrix()}, "eval/mine/it: returned a tensor of shape [2, 2], not one number"),
    ],
)
def test_what_is_no_number_within_its_range_is_refused(subject, metric, message):
    with pytest.raises(InputError) as error:
        dimension(**metric).measure(subject())
    assert message in str(error.value).replace(str(len(subject().rows.y)), "1280")


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (lambda probs, y: 0.4, "interval: TypeError: 'float' object is not iterable"),
        (lambda probs, y: (0.1, 0.2, 0.3), "interval: too many values to unpack"),
        (lambda probs, y: None, "interval: TypeError: 'NoneType' object is not iterable"),
        (lambda probs, y: {}["x"], "interval: KeyError: 'x'"),
        (lambda probs, y: (0.9, 0.1), "interval: returned 0.9 and 0.1, not its lower and its upper end"),
    ],
)
def test_what_is_no_interval_is_refused_by_the_metric_s_name(subject, ends, message):
    with pytest.raises(InputError, match=f"eval/mine/it, {message}"):
        dimension(measure=lambda probs, y: 0.5, interval=ends).measure(subject())


def test_a_metric_without_an_interval_on_some_rows_says_so_by_nan(subject):
    found = dimension(measure=lambda probs, y: 0.5, interval=lambda probs, y: (math.nan, math.nan)).measure(subject())
    assert found.metrics == {"eval/mine/it": 0.5}
    assert found.intervals == {}


@pytest.mark.parametrize("more", [{}, {"floor": "groups"}, {"floor": "calibrated"}, {"per_group": True}])
def test_an_error_on_rows_drawn_at_random_is_told_as_such(subject, more):
    one, given = subject(), []
    groups = one.rows.s.unique()

    def undefined_in_draws(probs, y):
        given.append(len(y))
        if len(given) > (1 + len(groups) if "per_group" in more else 1):
            raise ValueError("only one label")
        return 0.5

    def ends(probs, y):
        return 0.4, 0.6

    with pytest.raises(InputError, match="on rows drawn at random, where a label or a group can be absent; return NaN"):
        dimension(measure=undefined_in_draws, interval=ends if more else None, **more).measure(one)


def test_two_metrics_of_one_name_are_refused(subject):
    metrics = {
        "it": PredictionMetric(measure=lambda probs, y: 0.5, per_group=True),
        "it_gap": PredictionMetric(measure=lambda probs, y: 0.5),
    }
    with pytest.raises(InputError, match="eval/mine/it_gap: measured twice; give one of the two another name"):
        Predictions("mine", metrics).measure(subject())


def test_probabilities_are_asked_of_answers_in_vain(subject):
    one = subject()
    labels_only = replace(one, defended=Defended(None, predict=lambda rows: rows.y), defense=Undefended("mine"))
    with pytest.raises(InputError, match=r"dimension=mine needs probabilities, which defense=mine does not give"):
        dimension(measure=BinaryAccuracy()).measure(labels_only)
    found = dimension(measure=BinaryAccuracy(), takes="answers").measure(labels_only)
    assert found.metrics["eval/mine/it"] == 1
    assert one.rows.y.shape == labels_only.rows.y.shape


@pytest.mark.parametrize(
    "tell",
    [
        lambda net, rows: net(rows.X),
        lambda net, rows: net(rows.X).softmax(1)[:, 1],
        lambda net, rows: net(rows.X).softmax(1) * math.nan,
        lambda net, rows: net(rows.X).softmax(1)[1:],
        lambda net, rows: net(rows.X).softmax(1).tolist(),
    ],
)
def test_what_a_defence_tells_must_be_probabilities(subject, tell):
    one = subject()
    net = one.defended.net
    wrong = replace(one, defended=Defended(net, tells=functools.partial(tell, net)), defense=Undefended("mine"))
    with pytest.raises(InputError, match=r"what defense=mine tells must be probabilities of shape \["):
        wrong.probabilities(one.rows, "utility")


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (lambda rows: rows.X[:, 0], "torch.float32 of shape"),
        (lambda rows: rows.y[1:], "torch.int64 of shape"),
        (lambda rows: rows.y.tolist(), "list"),
        (lambda rows: None, "NoneType"),
    ],
)
def test_what_a_defence_predicts_must_be_labels(subject, answer, given):
    one = subject()
    with pytest.raises(InputError, match=rf"predict must return integer labels of shape \[\d+\], and returned {given}"):
        replace(one, defended=Defended(None, predict=answer)).answers(one.rows)


@pytest.mark.parametrize(
    ("defended", "message"),
    [
        (Defended(None), "defense=mine: defend must return a Defended with net or predict, and this has neither"),
        (Defended(linear(1.0, 0.0), {"epoch": 3}), "whose measured is Measured and rows are Rows, not .'dict'"),
        (Defended(linear(1.0, 0.0), rows=torch.zeros(3)), "measured is Measured and rows are Rows, not .*'Tensor'"),
        (Defended(nn.Linear(2, 1)), r"defense=mine: net must give logits of shape \[4, 2\]"),
    ],
)
def test_a_defended_model_whose_parts_are_of_another_kind_is_refused(subject, defended, message):
    with pytest.raises(InputError, match=message):
        defended.checked("mine", subject().rows.take(torch.arange(4)), 2)


def test_a_defended_network_is_measured_in_eval_mode(subject):
    some = subject().rows.take(torch.arange(4))
    net = nn.Sequential(linear(1.0, 0.0), nn.Dropout(0.9)).train()
    assert not Defended(net).checked("mine", some, 2).net.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pool: None, "defend_pool must return fairpriv.classifiers.nets.models.Models, not NoneType"),
        (lambda pool: [pool.member(i) for i in range(8)], "fairpriv.classifiers.nets.models.Models, not list"),
        (lambda pool: pool[list(range(7))], "must return 8 models, one for each deal, and returned 7"),
    ],
)
def test_a_pool_that_is_none_or_too_small_is_refused(subject, change, message):
    class Mine(Undefended):
        def defend_pool(self, owner):
            return change(super().defend_pool(owner))

    with pytest.raises(InputError, match=f"defense=mine: .*{message}"):
        Membership("membership", models=8, victims=1, rows=100).measure(replace(subject(), defense=Mine("mine")))


def test_a_network_without_a_gradient_is_refused_by_robustness(subject):
    class Table(nn.Module):
        def forward(self, x):
            return torch.stack((x[:, 0] <= 0, x[:, 0] > 0), 1).float() * 2

    with pytest.raises(InputError, match="dimension=robustness: the network gives logits without a gradient"):
        Robustness("robustness").measure(replace(subject(), defended=Defended(Table())))


def test_a_linear_model_is_as_robust_as_its_margin(subject):
    one = subject(linear(1.0, 0.0))
    x = one.rows.X[:, 0]
    expected = ((x.abs() >= 0.3) & ((x > 0) == one.rows.y.bool())).double().mean()
    found = Robustness("robustness", epsilon=0.3).measure(one).metrics
    assert found["eval/robustness/attack_accuracy"] == pytest.approx(float(expected), abs=0.002)
    assert found["eval/robustness/noise_accuracy"] > found["eval/robustness/attack_accuracy"]
    still = Robustness("robustness", epsilon=0.0).measure(one).metrics
    clean = float((one.answers(one.rows) == one.rows.y).double().mean())
    assert still["eval/robustness/attack_accuracy"] == still["eval/robustness/noise_accuracy"] == pytest.approx(clean)


@pytest.mark.parametrize("sureness", [1, 50, 1e6])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_sure_network_is_attacked_like_an_unsure_one_with_the_same_borders(subject, classes, sureness):
    one = subject()
    net = nn.Linear(2, classes)
    slopes = torch.tensor([3.0, 4.0, 3.5])[:classes]  # as if a constant multiple of the feature were in every logit
    with torch.no_grad():
        net.weight.copy_(sureness * torch.stack((slopes, torch.zeros(classes)), 1))
        net.bias.copy_(sureness * torch.tensor([0.0, 0.0, -0.05])[:classes])
    x, y = one.rows.X[:, 0], one.rows.y
    attacked = [(x[:, None] + move) * slopes + net.bias.detach() / sureness for move in (-0.3, 0.3)]
    expected = ((attacked[0].argmax(1) == y) & (attacked[1].argmax(1) == y)).double().mean()
    found = Robustness("robustness", epsilon=0.3).measure(replace(one, defended=Defended(net))).metrics
    assert found["eval/robustness/attack_accuracy"] == pytest.approx(float(expected), abs=0.002)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_accuracy_after_label_noise_is_that_of_models_trained_on_so_many_wrong_labels(subject, share):
    """Labels follow one feature, so noise below a half hardly moves a model; where all are wrong, it learns them so."""
    one, pools = subject(), []

    class Watched(Undefended):
        def defend_pool(self, owner):
            pools.append(owner)
            return super().defend_pool(owner)

    owner = one.owner
    one = replace(
        one,
        defense=Watched(),
        owner=lambda deals: replace(owner(deals), training=replace(owner(deals).training, epochs=8)),
    )
    probe = Robustness("robustness", steps=1, restarts=1, draws=1, label_noise=share, label_noise_models=3)
    assert probe.trains
    found, name = probe.measure(one), "eval/robustness/label_noise_accuracy"
    learnt = 1 - found.metrics[name] if share == 1 else found.metrics[name]
    assert learnt > 0.88
    low, high = found.intervals[name]
    assert low < found.metrics[name] < high
    (pool,) = pools
    true = one.data.part("train", one.world)
    wrong = torch.stack([rows.y != true.y for rows in pool.samples(own=True)])
    assert all(torch.equal(rows.X, true.X) for rows in pool.samples(own=True))
    assert float(wrong.double().mean()) == pytest.approx(share, abs=0.03)
    held_out = torch.cat([one.data.part("validation", world).y for world in (one.world, 1 - one.world)])
    assert float((pool.validation()[0].y != held_out).double().mean()) == pytest.approx(share, abs=0.08)
    if share == 0.25:
        assert not torch.equal(wrong[0], wrong[1])  # every model has a draw of its own


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, 1e39])
def test_a_change_of_features_that_overflows_is_refused(epsilon):
    with pytest.raises(InputError, match=r"dimensions\.robustness\.epsilon=.*: deviations from 0 to 1e6 are needed"):
        Robustness("robustness", epsilon=epsilon)


def test_label_noise_is_left_out_where_no_share_is_given(subject):
    probe = Robustness("robustness")
    assert not probe.trains
    assert "eval/robustness/label_noise_accuracy" not in probe.measure(subject()).metrics


def test_models_that_memorise_leak_membership_and_those_that_hardly_learn_do_not(subject):
    probe = Membership("membership", models=32, victims=8, rows=200, fpr=[0.05])
    sure = probe.measure(subject(epochs=150, hidden=(64,))).metrics
    shy = probe.measure(subject(epochs=1, hidden=(2,)))
    assert sure["eval/membership/lira_auc"] > 0.55
    low, high = shy.intervals["eval/membership/lira_auc"]
    assert low < 0.5 + 0.02
    assert high > 0.5 - 0.02
    assert sure["eval/membership/lira_auc"] > shy.metrics["eval/membership/lira_auc"] + 0.04
    for attack in ("lira", "lira_offline", "rmia", "loss", "confidence"):
        assert {f"eval/membership/{attack}_{of}" for of in ("auc", "accuracy", "tpr_at_5")} <= set(sure)
    assert {"eval/membership/lira_auc/a", "eval/membership/lira_auc/b"} <= set(sure)


def test_what_differential_privacy_allows_stands_beside_what_is_found(subject):
    probe = Membership("membership", models=8, victims=2, rows=200, fpr=[0.05, 0.1])
    free = subject(epochs=1)
    private = replace(free, defended=replace(free.defended, budget=(1.0, 1e-5)))
    assert not any("bound" in name for name in probe.measure(free).metrics)
    found = probe.measure(private).metrics
    for percent in (5, 10):
        allowed = found[f"eval/membership/tpr_bound_at_{percent}"]
        assert allowed == pytest.approx(math.e * percent / 100 + 1e-5)


def test_the_deviations_of_lira_are_chosen_by_a_word(subject):
    given = {"models": 16, "victims": 4, "rows": 200, "fpr": [0.05]}
    one, own = subject(epochs=10), "eval/membership/lira_auc"
    attacks = [{"lira": LiRA(variance=v), "loss": LabelProbability()} for v in ("row", "global")]
    row, together = (Membership("membership", each, **given).measure(one).metrics for each in attacks)
    assert row[own] != together[own]
    assert row["eval/membership/loss_auc"] == together["eval/membership/loss_auc"]
    with pytest.raises(InputError, match="variance=points: must be row or global"):
        LiRA(variance="points")


def test_labels_and_groups_are_told_apart_and_one_without_non_members_is_told(caplog):
    probe = Membership("membership", models=8, victims=2)
    member = torch.tensor([[True, True, False, False], [True, False, True, False]])
    codes = torch.tensor([0, 0, 1, 1])
    found = probe._by_group(member.double(), member, codes, ["a", "b", "absent"], "label/").metrics
    assert found["eval/membership/lira_auc/label/a"] == found["eval/membership/lira_auc/label/b"] == 1
    assert "label a has no members or no non-members in 1 of 2 attacked models" in caplog.text
    assert "absent" not in caplog.text


class Knows(MembershipAttack):
    """An attack that scores the rows as a function says."""

    needs = 10

    def __init__(self, how):
        self.how = how

    def run(self, game):
        return self.how(game)


def test_an_attack_of_the_user_s_is_played_on_every_victim_and_measured_as_ours_are(subject):
    seen = []

    def how(game):
        seen.append(game)
        return game.own[0][0]

    one = subject(epochs=1)
    found = Membership("mine", {"sure": Knows(how), "loss": LabelProbability()}, models=12, victims=3, rows=60).measure(
        one
    )
    assert found.metrics["eval/mine/sure_auc"] == found.metrics["eval/mine/loss_auc"]
    assert [name for name, about in found.described.items() if about.headline] == ["eval/mine/sure_auc"]
    assert {"eval/mine/sure_auc/a", "eval/mine/sure_auc/b"} <= set(found.metrics)
    assert [tuple(game.references.shape) for game in seen] == [(11, 60)] * 3
    assert not any(
        (game.references == game.victim).all(1).any() for game in seen
    )  # a victim is no reference of its own


@pytest.mark.parametrize(
    ("attacks", "options", "message"),
    [
        ({}, {}, r"dimensions\.mine\.attacks: name one at least"),
        (
            {"kl": KL()},
            {},
            r"dimensions\.mine\.attacks\.kl plays the game of distribution, and this one is the game of memb",
        ),
        ({"odd": object()}, {}, r"dimensions\.mine\.attacks\.odd: must be given by a _target_ that inherits from"),
        (
            {"sure": Knows(None)},
            {"models": 8, "victims": 2},
            r"dimensions\.mine\.models=8: attack sure needs 10 reference models and has 7: set models to 11 or more",
        ),
        ({"lira": LiRA()}, {"rows": -5}, r"dimensions\.mine\.rows=-5: must be at least 40, or null to audit all"),
    ],
)
def test_a_game_without_what_its_attacks_need_is_refused_before_anything_is_trained(attacks, options, message):
    with pytest.raises(InputError, match=message):
        Membership("mine", attacks, **options)


@pytest.mark.parametrize("wrong", [3.0, torch.zeros(2), torch.full((60,), math.nan)], ids=["number", "few", "NaN"])
def test_what_is_no_score_of_every_row_is_refused_by_name(subject, wrong):
    probe = Membership("mine", {"sure": Knows(lambda game: wrong)}, models=12, victims=1, rows=60)
    with pytest.raises(InputError, match=r"dimensions\.mine\.attacks\.sure: run must return one score for each of 60"):
        probe.measure(subject(epochs=1))


def test_a_rate_that_so_few_rows_cannot_tell_is_refused_before_a_pool_is_trained(subject):
    probe = Membership("membership", models=8, victims=1, rows=100, fpr=[0.02, 0.001])
    asked = replace(subject(), owner=lambda deals: pytest.fail("a pool is trained"))
    with pytest.raises(InputError, match=r"0\.001 needs 1000 non-members at least, there are 50: raise"):
        probe.measure(asked)


def test_only_what_the_model_adds_counts_as_attribute_inference(subject):
    nothing = AttributeInference("attribute", iterations=20).measure(subject()).metrics
    assert nothing["eval/attribute/gain"] == pytest.approx(0, abs=0.04)

    def tells(rows):  # a model whose answer is the group
        return rows.s

    everything = AttributeInference("attribute", iterations=20).measure(
        replace(subject(), defended=Defended(None, predict=tells))
    )
    assert everything.metrics["eval/attribute/accuracy"] == 1
    assert everything.metrics["eval/attribute/gain"] == pytest.approx(
        1 - everything.metrics["eval/attribute/imputation_accuracy"]
    )
    assert everything.described["eval/attribute/gain"].guess == 0
    low, _ = everything.intervals["eval/attribute/gain"]
    assert low > 0.3
