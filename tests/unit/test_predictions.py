"""Measures of predictions against scikit-learn, torchmetrics and fairlearn."""

import functools
import inspect
import math

import numpy as np
import pytest
import torch
import torchmetrics.functional
from fairlearn import metrics as fairlearn
from scipy import stats
from sklearn import metrics as sklearn
from torchmetrics import classification
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from fairpriv.classifiers.dimensions.prediction import (
    PredictionMetric,
    Sample,
    _calibrated,
    _dealt,
    _interval,
    _resampled,
)
from fairpriv.functional import delta_intervals, predictions
from fairpriv.functional.verdicts import auc


@pytest.fixture(params=[2, 4])
def sample(request):
    """Probabilities, labels and groups of 600 rows with two or four classes, some probabilities equal."""
    rng = np.random.default_rng(request.param)
    probs = rng.dirichlet(np.ones(request.param), 600).round(2) + 1e-3
    probs = torch.as_tensor(probs / probs.sum(1, keepdims=True))
    y, groups = (torch.as_tensor(rng.integers(0, n, 600)) for n in (request.param, 3))
    return probs if request.param > 2 else probs[:, 1], y, groups


def columns(probs):
    return probs if probs.dim() == 2 else torch.stack([1 - probs, probs], 1)


def test_utility_agrees_with_scikit_learn(sample):
    probs, y, _ = sample
    preds = columns(probs).argmax(1)
    assert predictions.accuracy(probs, y) == pytest.approx(sklearn.accuracy_score(y, preds))
    assert predictions.balanced_accuracy(probs, y) == pytest.approx(sklearn.balanced_accuracy_score(y, preds))
    assert predictions.log_loss(probs, y) == pytest.approx(sklearn.log_loss(y, columns(probs)))
    assert predictions.auroc(probs, y) == pytest.approx(sklearn.roc_auc_score(y, probs, multi_class="ovr"))


def test_brier_s_score_agrees_with_scikit_learn(sample):
    probs, y, _ = sample
    if probs.dim() == 1:
        assert predictions.brier_score(probs, y) == pytest.approx(sklearn.brier_score_loss(y, probs))
    else:
        hot = np.eye(4)[y]
        assert predictions.brier_score(probs, y) == pytest.approx(((probs.numpy() - hot) ** 2).sum(1).mean() / 2)


def test_calibration_error_agrees_with_torchmetrics(sample):
    probs, y, _ = sample
    if probs.dim() == 2:
        oracle = multiclass_calibration_error(probs, y, num_classes=4, n_bins=15)
    else:  # torchmetrics bins P(y=1) of two classes; confidence is of the predicted class here
        preds = (probs > 0.5).long()
        oracle = binary_calibration_error(torch.where(preds == 1, probs, 1 - probs), (preds == y).long(), n_bins=15)
    assert predictions.expected_calibration_error(probs, y) == pytest.approx(float(oracle), abs=1e-6)


def test_a_calibrated_model_s_error_falls_as_rows_grow():
    rng = np.random.default_rng(0)
    errors = []
    for n in (200, 20_000):
        probs = torch.as_tensor(rng.random(n))
        errors.append(predictions.expected_calibration_error(probs, torch.as_tensor(rng.random(n) < probs.numpy())))
    assert errors[1] < errors[0] / 4


def test_group_fairness_agrees_with_fairlearn(sample):
    probs, y, groups = sample
    if probs.dim() == 2:
        pytest.skip("fairlearn knows two classes")
    preds = (probs > 0.5).long()
    given = {"sensitive_features": groups.numpy()}
    y_, preds_ = y.numpy(), preds.numpy()
    assert predictions.demographic_parity_gap(probs, y, groups) == pytest.approx(
        fairlearn.demographic_parity_difference(y_, preds_, **given)
    )
    assert predictions.equal_opportunity_gap(probs, y, groups) == pytest.approx(
        fairlearn.equal_opportunity_difference(y_, preds_, **given)
    )
    assert predictions.equalized_odds(probs, y, groups) == pytest.approx(
        fairlearn.equalized_odds_difference(y_, preds_, **given)
    )
    frame = fairlearn.MetricFrame(metrics=sklearn.precision_score, y_true=y_, y_pred=preds_, **given)
    assert predictions.predictive_parity_gap(probs, y, groups) == pytest.approx(frame.difference())
    frame = fairlearn.MetricFrame(metrics=sklearn.accuracy_score, y_true=y_, y_pred=preds_, **given)
    assert predictions.worst_group_accuracy(probs, y, groups) == pytest.approx(frame.group_min())


def test_two_classes_that_are_written_out_have_the_gaps_of_the_probability_of_one():
    rng = np.random.default_rng(5)
    probs, (y, groups) = torch.as_tensor(rng.random(200)), torch.as_tensor(rng.integers(0, 2, (2, 200)))
    for name in ("demographic_parity", "equal_opportunity", "predictive_parity"):
        for measure in (getattr(predictions, f"{name}_gap"), getattr(predictions, f"{name}_interval")):
            assert measure(columns(probs), y, groups) == measure(probs, y, groups)


def test_a_probability_that_rounding_leaves_above_1_is_in_the_last_bin():
    probs, y = torch.tensor([[1.0000001, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    assert predictions.expected_calibration_error(probs, y) == pytest.approx(0.5, abs=1e-6)


def test_groups_by_a_loop(sample):
    probs, y, groups = sample
    preds = columns(probs).argmax(1)
    classes = range(1, 2) if probs.dim() == 1 else range(4)

    def spread(values):
        return max(values) - min(values)

    rates = [[float((preds[groups == g] == c).double().mean()) for g in range(3)] for c in classes]
    assert predictions.demographic_parity_gap(probs, y, groups) == pytest.approx(max(map(spread, rates)))
    recalls = [[float((preds[(groups == g) & (y == c)] == c).double().mean()) for g in range(3)] for c in classes]
    assert predictions.equal_opportunity_gap(probs, y, groups) == pytest.approx(max(map(spread, recalls)))
    worst = max(predictions.expected_calibration_error(probs[groups == g], y[groups == g]) for g in range(3))
    assert predictions.calibration_gap(probs, y, groups) == worst


@pytest.mark.parametrize(
    "measure",
    [
        "accuracy", "balanced_accuracy", "worst_group_accuracy", "equalized_odds", "demographic_parity_gap",
        "equal_opportunity_gap", "predictive_parity_gap", "worst_group_accuracy_interval",
        "demographic_parity_interval", "equal_opportunity_interval", "predictive_parity_interval", "calibration_gap",
        "auroc", "log_loss", "brier_score", "expected_calibration_error",
    ],
)  # fmt: skip
def test_answers_count_as_probabilities_of_one(sample, measure):
    probs, y, groups = sample
    answers = columns(probs).argmax(1)
    certain = torch.nn.functional.one_hot(answers).double() if probs.dim() == 2 else answers.double()
    called = getattr(predictions, measure)
    more = [groups] if "groups" in inspect.signature(called).parameters else []
    assert called(answers, y, *more) == pytest.approx(called(certain, y, *more))


def test_a_model_that_ignores_its_input_has_no_gap_between_groups():
    g = torch.Generator().manual_seed(0)
    y, groups = torch.randint(0, 2, (300,), generator=g), torch.randint(0, 3, (300,), generator=g)
    for constant in (0.2, 0.5, 0.9):
        probs = torch.full((300,), constant)
        assert predictions.demographic_parity_gap(probs, y, groups) == 0
        assert predictions.equal_opportunity_gap(probs, y, groups) == 0
        assert predictions.auroc(probs, y) == 0.5
    assert predictions.predictive_parity_gap(torch.full((300,), 0.2), y, groups) == 0  # nobody is predicted 1


def test_what_is_undefined_is_nan():
    probs, ones = torch.tensor([0.2, 0.7, 0.9]), torch.ones(3, dtype=torch.long)
    assert np.isnan(predictions.auroc(probs, ones))
    for gap in ("demographic_parity", "equal_opportunity", "predictive_parity"):
        assert np.isnan(getattr(predictions, f"{gap}_gap")(probs, ones, ones))


@pytest.mark.parametrize("bins", [4, 15])
def test_the_interval_of_a_calibration_error_by_a_loop(sample, bins):
    probs, y = sample[0][:80], sample[1][:80]
    n, found, variance, biases = 80, 0.0, 0.0, [0.0, 0.0]
    sure, told = columns(probs).max(1)
    place = [min(math.ceil(p * bins), bins) for p in sure.tolist()]
    for own in ([i for i in range(n) if place[i] == b] for b in set(place)):
        hits, rows = sum(int(told[i] == y[i]) for i in own), len(own)
        off = hits - float(sure[own].sum())
        rate = (hits + 1) / (rows + 2)
        error = math.sqrt(rows * (rate * (1 - rate) + (off / rows) ** 2 * (1 - rows / n))) / n
        size = abs(off) / n / error
        found, variance = found + abs(off) / n, variance + error**2
        for k, at in enumerate((max(size - 1, 0), size + 1)):
            biases[k] += error * (stats.foldnorm.mean(at) - at)  # E|at + Z| - at
    half = stats.norm.ppf(0.975) * math.sqrt(variance)
    expected = max(0, min(found, found - biases[0] - half)), min(1, max(found, found - biases[1] + half))
    assert predictions.calibration_error_interval(probs, y, bins) == pytest.approx(expected, abs=1e-5)
    thrice = [torch.cat([part] * 3) for part in (probs, y, torch.arange(n))]
    assert predictions.calibration_error_interval(*thrice[:2], bins, thrice[2]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("slope", [1.0, 0.5])
@pytest.mark.parametrize("n", [100, 1000])
def test_the_interval_of_a_calibration_error_covers_it_where_that_is_zero_and_where_it_is_not(slope, n):
    g = torch.Generator().manual_seed(n)

    def truth(p):  # log odds that are too large unless slope is 1
        return torch.sigmoid(slope * p.logit())

    many = torch.rand(400_000, generator=g, dtype=torch.double)
    hits = torch.where(many > 0.5, truth(many), 1 - truth(many))
    confidence = torch.maximum(many, 1 - many)
    place = (confidence * 15).ceil().long().clamp(1, 15) - 1
    sums = torch.zeros(15, dtype=torch.double).index_add(0, place, hits - confidence)
    expected = float(sums.abs().sum() / len(many))
    covered, tells = 0, 0
    for _ in range(200):
        probs = torch.rand(n, generator=g, dtype=torch.double)
        y = (torch.rand(n, generator=g) < truth(probs)).long()
        low, high = predictions.calibration_error_interval(probs, y)
        assert low <= predictions.expected_calibration_error(probs, y) <= high
        covered += low <= expected <= high
        tells += low > 0
    assert covered >= 183  # of 200; 95 % less two and a half standard errors
    if slope == 0.5 and n == 1000:
        assert tells > 190  # and it is not so wide that it says nothing


@pytest.mark.parametrize(
    ("name", "shift"),
    [("demographic_parity", 0.0), ("equal_opportunity", 0.0), ("predictive_parity", 0.0), ("demographic_parity", 1.0)],
)
def test_intervals_of_gaps_between_groups_cover_zero_and_more(name, shift):
    g = torch.Generator().manual_seed(1)

    def draw(n):
        groups, y = torch.randint(0, 3, (n,), generator=g), torch.randint(0, 2, (n,), generator=g)
        probs = torch.sigmoid(torch.randn(n, generator=g) + y + shift * (groups == 2))
        return probs, y, groups

    gap, interval = getattr(predictions, f"{name}_gap"), getattr(predictions, f"{name}_interval")
    expected = gap(*draw(400_000)) if shift else 0.0
    ends = [interval(*draw(300)) for _ in range(40)]
    assert sum(low <= expected <= high for low, high in ends) >= 35
    if shift:
        assert sum(low > 0 for low, _ in ends) > 20


@pytest.mark.parametrize("rights", [[7, 12, 0], [9, 12, 7], [8, 12, 10], [11, 12, 10]])
def test_the_interval_of_the_worst_group_is_the_least_of_joint_exact_ones(rights):
    sizes = [11, 12, 10]
    right = torch.cat([torch.arange(n) < k for k, n in zip(rights, sizes, strict=True)])
    groups, y = torch.repeat_interleave(torch.tensor([5, 2, 9]), torch.tensor(sizes)), torch.ones(33, dtype=torch.long)
    level = 1 - 0.05 / 3
    exact = [stats.binomtest(k, n).proportion_ci(level, "exact") for k, n in zip(rights, sizes, strict=True)]
    expected = min(e.low for e in exact), min(e.high for e in exact)
    assert predictions.worst_group_accuracy_interval(right.double(), y, groups) == pytest.approx(expected)
    copies = [part.repeat(2) for part in (right.double(), y, groups, torch.arange(33))]
    assert predictions.worst_group_accuracy_interval(*copies) == pytest.approx(expected)


def test_the_intervals_of_gaps_are_those_of_counts_by_a_loop(sample):
    probs, y, groups = (part[:90] for part in sample)
    groups = groups * 4
    preds, classes = columns(probs).argmax(1), range(1, 2) if probs.dim() == 1 else range(4)
    preds[groups == 8] = 0  # so the last group is never predicted another class
    asked = {
        "demographic_parity": lambda i, c: (True, preds[i] == c),
        "equal_opportunity": lambda i, c: (y[i] == c, preds[i] == c),
        "predictive_parity": lambda i, c: (preds[i] == c, y[i] == c),
    }
    for name, about in asked.items():
        counts = torch.zeros(len(classes), 3, 2)
        for row, c in enumerate(classes):
            for i in range(90):
                chosen, hit = about(i, c)
                counts[row, int(groups[i]) // 4, int(hit)] += bool(chosen)
        low, high = delta_intervals(counts)
        given = torch.nn.functional.one_hot(preds, 4).double() if probs.dim() == 2 else preds.double()
        expected = float(low.max()), float(high.max())
        assert getattr(predictions, f"{name}_interval")(given, y, groups) == pytest.approx(expected)
        copies = [part.repeat(*[3] + [1] * (part.dim() - 1)) for part in (given, y, groups, torch.arange(90))]
        assert getattr(predictions, f"{name}_interval")(*copies) == pytest.approx(expected)


def test_the_interval_of_the_worst_group_covers_groups_that_are_alike():
    g = torch.Generator().manual_seed(2)
    covered = 0
    for _ in range(200):
        groups, y = torch.randint(0, 4, (400,), generator=g), torch.ones(400, dtype=torch.long)
        probs = (torch.rand(400, generator=g) < 0.8).double()
        low, high = predictions.worst_group_accuracy_interval(probs, y, groups)
        covered += low <= 0.8 <= high
    assert covered >= 183


def test_the_interval_of_the_worst_group_covers_where_groups_are_small():
    g = torch.Generator().manual_seed(3)
    groups = torch.arange(5).repeat_interleave(torch.tensor([60, 20, 10, 5, 3]))
    y, covered = torch.ones(98, dtype=torch.long), 0
    for _ in range(400):
        probs = (torch.rand(98, generator=g) < 0.925).double()
        low, high = predictions.worst_group_accuracy_interval(probs, y, groups)
        assert low <= predictions.worst_group_accuracy(probs, y, groups) <= high
        covered += low <= 0.925 <= high
    assert covered >= 372  # 93 %; Wilson's covered 86 %


@pytest.mark.parametrize(
    ("slope", "middle", "spread", "classes", "truth"),
    [
        (1.0, 3.0, 1.0, 2, 0.7552),  # one row in twelve has label 0
        (3.0, 0.0, 3.0, 2, 0.9878),  # nearly all pairs are in order
        (0.0, 0.0, 1.0, 2, 0.5),
        (3.0, 0.0, 3.0, 3, 0.9925),
    ],
)
def test_the_interval_of_an_auroc_covers_it_where_rows_are_few(slope, middle, spread, classes, truth):
    g = torch.Generator().manual_seed(4)
    covered = measured = 0
    for _ in range(400):
        z = torch.randn(40, classes, generator=g).double() * spread / (2**0.5 if classes == 2 else 1)
        z[:, 1] += middle
        probs, y = z.softmax(1), torch.multinomial((slope * z).softmax(1), 1, generator=g)[:, 0]
        value = predictions.auroc(probs, y)
        if math.isnan(value):  # all rows have one label
            continue
        low, high = predictions.auroc_interval(probs, y)
        assert low <= value <= high > low
        measured += 1
        covered += low <= truth <= high
    assert covered >= 0.93 * measured > 0.93 * 350  # percentiles of a bootstrap covered 44 to 92 % of the first two


def test_the_interval_of_an_auroc_is_newcombe_s_and_counts_copies_once(sample):
    probs, y, _ = sample
    low, high = predictions.auroc_interval(probs, y)
    own = [auc(columns(probs)[:, k], y == k)[1] for k in ([1] if probs.dim() == 1 else range(4))]
    assert (low, high) == pytest.approx(np.mean(own, 0).tolist(), abs=1e-6)
    units = torch.arange(600)
    assert predictions.auroc_interval(probs, y, units) == pytest.approx((low, high), abs=1e-6)
    twice = torch.cat((probs, probs)), torch.cat((y, y))
    assert predictions.auroc_interval(*twice, torch.cat((units, units))) == pytest.approx((low, high), abs=1e-6)
    assert predictions.auroc_interval(*twice)[0] > low


@pytest.mark.parametrize(
    ("measure", "wanted"),
    [
        (sklearn.recall_score, lambda given, y, _: float(given[y == 1].double().mean())),
        (sklearn.precision_score, lambda given, y, _: float(y[given == 1].double().mean())),
        (sklearn.balanced_accuracy_score, lambda given, y, _: predictions.balanced_accuracy(given, y)),
        (fairlearn.demographic_parity_difference, predictions.demographic_parity_gap),
        (functools.partial(fairlearn.equalized_odds_difference, agg="worst_case"), predictions.equalized_odds),
    ],
)
def test_functions_of_scikit_learn_and_fairlearn_get_labels_first_and_groups_by_their_name(measure, wanted):
    g = torch.Generator().manual_seed(0)
    y, groups = torch.randint(0, 2, (300,), generator=g), torch.randint(0, 3, (300,), generator=g)
    answers = torch.where(torch.rand(300, generator=g) < 0.3, 1 - y, y) | (torch.rand(300, generator=g) < 0.3).long()
    found = PredictionMetric(measure, takes="answers").value(Sample(answers, y, groups, torch.arange(300)))
    assert found == pytest.approx(wanted(answers, y, groups))


class OwnAccuracy(classification.MulticlassAccuracy):
    """A user's, of another name."""


@pytest.mark.parametrize(
    ("measure", "binary"),
    [
        (classification.MulticlassAccuracy(2, average="micro"), predictions.accuracy),
        (classification.MulticlassAccuracy(2), predictions.balanced_accuracy),
        (OwnAccuracy(2), predictions.balanced_accuracy),
        (
            functools.partial(torchmetrics.functional.accuracy, task="multiclass", num_classes=2),
            predictions.accuracy,
        ),
        (
            functools.partial(torchmetrics.functional.classification.multiclass_matthews_corrcoef, num_classes=2),
            lambda given, y: sklearn.matthews_corrcoef(y, predictions.predicted(given)),
        ),
    ],
)
@pytest.mark.parametrize("takes", ["probabilities", "answers"])
def test_a_metric_of_any_number_of_classes_is_right_of_two(measure, binary, takes):
    g = torch.Generator().manual_seed(0)
    y, groups = torch.randint(0, 2, (300,), generator=g), torch.zeros(300, dtype=torch.long)
    probs = (0.4 * y + 0.6 * torch.rand(300, generator=g)).double()
    if takes == "answers":
        probs = (probs > 0.5).long()
    found = PredictionMetric(measure, takes=takes).value(Sample(probs, y, groups, torch.arange(300)))
    assert found == pytest.approx(binary(probs, y), abs=1e-6)


def test_a_function_of_a_user_s_gets_one_probability_whatever_its_name():
    def multiclass_share(probs, y):
        return float(probs.dim() == 1)

    assert PredictionMetric(multiclass_share).value(Sample(*torch.zeros(4, 3))) == 1


def test_a_parameter_of_a_measure_that_is_called_as_an_interval_s_keeps_its_default():
    def measure(probs, y, units="nats"):
        return 1.0 if units == "nats" else 0.0

    assert PredictionMetric(measure).value(Sample(*torch.zeros(4, 3))) == 1


def test_an_auroc_has_its_own_interval_whatever_names_it():
    probs, y = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0, 0, 1, 1])
    one = Sample(probs, y, y, torch.arange(4))
    for measure in (predictions.auroc, functools.partial(predictions.auroc)):
        low, high = _interval("it", PredictionMetric(measure), one, torch.Generator())
        assert low < 0.5
        assert high == 1
    assert _interval("it", PredictionMetric(predictions.auroc), one.take(y == 1), torch.Generator()) is None


def test_nothing_is_known_of_predictive_parity_where_nobody_is_predicted_1():
    y, groups = torch.arange(40) % 3 % 2, torch.arange(40) % 2
    assert predictions.predictive_parity_interval(torch.full((40,), 0.2), y, groups) == (0, 1)
    assert predictions.predictive_parity_interval(torch.full((40,), 0.8), y, groups)[1] < 1


@pytest.mark.parametrize("name", ["equal_opportunity", "predictive_parity"])
def test_a_class_of_one_group_is_left_out_of_a_gap_whichever_class_it_is(name):
    g = torch.Generator().manual_seed(3)
    y, groups, preds = (torch.randint(0, 3, (300,), generator=g) for _ in range(3))
    only = (y == 0) | (preds == 0)
    groups[only] = 0  # so class 0 has one group only
    gap = getattr(predictions, f"{name}_gap")
    turned = [gap(torch.eye(3)[(preds + k) % 3], (y + k) % 3, groups) for k in range(3)]
    assert turned[0] > 0
    assert turned == [turned[0]] * 3


def test_gaps_of_several_classes_have_intervals_that_hold_them(sample):
    for name in ("demographic_parity", "equal_opportunity", "predictive_parity"):
        low, high = getattr(predictions, f"{name}_interval")(*sample)
        assert 0 <= low <= getattr(predictions, f"{name}_gap")(*sample) <= high <= 1


def test_rows_that_come_together_are_drawn_together():
    units = torch.tensor([5, 2, 5, 9, 2, 5])
    draws = [*_resampled(units, torch.Generator().manual_seed(0))]
    for drawn in draws:
        counts = torch.bincount(drawn, minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
    alone = torch.tensor([4, 0, 2])  # as a draw of places
    expected = torch.randint(3, (3,), generator=torch.Generator().manual_seed(1))
    assert next(_resampled(alone, torch.Generator().manual_seed(1))).tolist() == expected.tolist()


def copied(generator, units=120):
    """Units of 1 to 8 equal rows, of a calibrated model that is right in 70 %, whatever the group."""
    y, groups = torch.arange(units) % 2, torch.arange(units) // 2 % 2
    confidence = torch.rand(units, generator=generator, dtype=torch.double) * 0.4 + 0.5
    right = torch.rand(units, generator=generator) < confidence
    probs = torch.where(right == (y == 1), confidence, 1 - confidence)
    rows = torch.randint(1, 9, (units,), generator=generator)
    return Sample(*(of.repeat_interleave(rows) for of in (probs, y, groups, torch.arange(units))))


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("demographic_parity", 0.0),
        ("equal_opportunity", 0.0),
        ("predictive_parity", 0.0),
        ("worst_group_accuracy", 0.7),
        ("calibration_error", 0.0),
    ],
)
def test_intervals_that_metrics_name_cover_where_rows_come_in_copies(name, truth):
    draw = torch.Generator().manual_seed(0)
    about = PredictionMetric(predictions.accuracy, interval=getattr(predictions, f"{name}_interval"))
    missed = torch.zeros(2)
    for _ in range(40):
        sample = copied(draw)
        for known, given in enumerate((sample._replace(units=torch.arange(len(sample.y))), sample)):
            low, high = _interval("it", about, given, draw)
            missed[known] += not low <= truth <= high
    assert missed[0] >= 8  # of 40: rows taken as independent mislead
    assert missed[1] <= 5  # P(more than 5 of 40 at 5 %) is 1.4 %


def test_floors_are_reached_where_rows_come_in_copies():
    draw = torch.Generator().manual_seed(0)
    for dealt, measure in (
        (_dealt, predictions.demographic_parity_gap),
        (_calibrated, lambda probs, y, _: predictions.expected_calibration_error(probs, y)),
    ):
        gaps, floors = torch.zeros(400), torch.zeros(400)
        for i in range(400):
            sample = copied(draw)
            drawn = dealt(sample, draw)
            changed = (drawn.y if dealt is _calibrated else drawn.groups) + 2 * sample.units
            assert len(changed.unique()) == len(sample.units.unique())  # equal rows stay together
            gaps[i], floors[i] = measure(*sample[:3]), measure(*drawn[:3])
        assert float(floors.mean() / gaps.mean()) == pytest.approx(1, abs=0.15)
