"""The black-box meta-classifier: its parts against scikit-learn, and what it reads of outputs."""

import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from fairpriv.classifiers.attacks.attack import AttackGame, Query
from fairpriv.classifiers.attacks.black_box_meta_classifier import BlackBoxMetaClassifier, Discriminant, logits, span
from fairpriv.classifiers.nets.models import Models
from fairpriv.functional.attacks import calibrate


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("shrinkage", [0.01, 0.5, 1.0])
def test_discriminant_is_scikit_learns(shrinkage):
    X, y = normal(40, 6, seed=0).numpy(), np.repeat([0, 1], [15, 25])
    X[y == 1] += [1, 0.5, 0, 0, 0, -1]
    ours = Discriminant(shrinkage)
    ours.fit(X, y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.5, 0.5]).fit(X, y)
    assert ours.decision_function(X) == pytest.approx(theirs.decision_function(X), rel=1e-8)


def test_ridge_within_the_span_of_the_shadows_is_ridge():
    shadows, victims, y = normal(20, 90, seed=1), normal(7, 90, seed=2), np.arange(20) % 2
    inner, outer = span(shadows, victims)
    assert inner.shape == (20, 19)
    scale = float((shadows - shadows.mean(0)).square().sum(1).mean().sqrt())
    assert (inner**2).sum(1).mean() == pytest.approx(1)
    C = 3.0
    ours = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(inner, y).decision_function(outer)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(shadows.numpy() / scale, y)
    assert ours == pytest.approx(theirs.decision_function(victims.numpy() / scale), abs=1e-5)


def test_discriminant_within_the_span_of_the_shadows_tells_the_same():
    """Shrinking to the identity of the span and of the whole space differ by the number of dimensions alone."""
    shadows, victims, y = normal(20, 90, seed=1), normal(7, 90, seed=2), np.arange(20) % 2
    inner, outer = span(shadows, victims)
    part, whole = Discriminant(0.5), Discriminant(90 / (90 + 19))  # 1 : 1 of traces over 19, 90 : 19 over 90 dimensions
    part.fit(inner, y)
    whole.fit(shadows.numpy(), y)
    ours, theirs = part.decision_function(outer), whole.decision_function(victims.numpy())
    assert ours / ours[0] == pytest.approx(theirs / theirs[0], rel=1e-6)


def test_logits_are_log_odds_of_clipped_probabilities():
    probs = torch.tensor([[0.0, 0.2, 1.0]])
    expected = [math.log(1e-3 / (1 - 1e-3)), math.log(0.25), math.log((1 - 1e-3) / 1e-3)]
    assert logits(probs, 1e-3)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_logits_of_several_classes_are_centred_log_probabilities():
    probs = torch.tensor([[[0.2, 0.3, 0.5], [0.0, 0.4, 0.6]]])
    found = logits(probs, 1e-3)[0].tolist()
    for n, row in enumerate(probs[0].tolist()):
        logs = [math.log(max(p, 1e-3)) for p in row]
        assert found[3 * n : 3 * n + 3] == pytest.approx([value - sum(logs) / 3 for value in logs], rel=1e-5)


class Outputs(Models):
    """Models that are nothing but their outputs."""

    def __init__(self, probs):
        self.probs = probs

    def __len__(self):
        return len(self.probs)

    def predict_proba(self, X):
        return self.probs


def game(outputs):
    query = Query(torch.zeros(30, 1), torch.zeros(30), torch.zeros(30), torch.arange(30) % 2)
    truth = torch.arange(60) % 2
    pools = [Outputs(outputs(worlds)) for worlds in (truth, torch.zeros(40).long(), torch.ones(40).long())]
    return AttackGame(pools[0], (pools[1], pools[2]), query, 0, truth)


def test_worlds_of_several_classes_are_told_apart():
    generator = torch.Generator().manual_seed(0)

    def outputs(worlds):
        noise = torch.randn(len(worlds), 30, 3, generator=generator)
        noise[..., 1] += (worlds[:, None] - 0.5) * 2
        return noise.softmax(-1)

    assert BlackBoxMetaClassifier().run(game(outputs)).accuracy > 0.95


def test_answers_of_randomised_models_that_are_exactly_0_or_1_are_read():
    generator = torch.Generator().manual_seed(0)

    def outputs(worlds):
        return (torch.rand(len(worlds), 30, generator=generator) < 0.3 + 0.4 * worlds[:, None]).float()

    result = BlackBoxMetaClassifier().run(game(outputs))
    assert result.scores.isfinite().all()
    assert result.accuracy > 0.95


@pytest.mark.parametrize("apart", [0.2, 1.0])
def test_scores_are_those_of_the_candidate_with_the_least_held_out_loss_beside_its_held_out_border(apart):
    penalties, shrinkages = [100.0, 0.1, 3.0], [0.3, 0.01, 1.0]
    draw = torch.Generator().manual_seed(1)
    worlds = [torch.zeros(12), torch.ones(9), torch.arange(5) % 2]
    pools = [(torch.randn(len(w), 8, generator=draw) + apart * w[:, None]).sigmoid() for w in worlds]
    query = Query(torch.zeros(8, 1), torch.zeros(8), torch.zeros(8), torch.arange(8) % 2)
    one = AttackGame(Outputs(pools[2]), (Outputs(pools[0]), Outputs(pools[1])), query, 0, worlds[2].long())
    X, V = span(torch.cat(pools[:2]).double().logit(), pools[2].double().logit())
    y, fold = np.repeat([0, 1], [12, 9]), np.r_[np.arange(12) % 4, np.arange(9) % 4]
    ridge = [LogisticRegression(C=C, class_weight="balanced", solver="newton-cholesky") for C in penalties]
    lda = [LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s, priors=[0.5, 0.5]) for s in shrinkages]
    tried = []
    for candidate in [*ridge, *lda]:
        held = np.zeros(21)
        for part in range(4):
            held[fold == part] = candidate.fit(X[fold != part], y[fold != part]).decision_function(X[fold == part])
        loss = sum(np.log1p(np.exp(-held[y == b] * (2 * b - 1))).mean() for b in (0, 1)) / 2
        border, direction = calibrate(torch.from_numpy(held[y == 0]), torch.from_numpy(held[y == 1]))
        tried.append((loss, direction * (candidate.fit(X, y).decision_function(V) - border)))
    attack = BlackBoxMetaClassifier(penalties=penalties, shrinkages=shrinkages, folds=4)
    assert attack.run(one).scores.numpy() == pytest.approx(min(tried, key=lambda pair: pair[0])[1], rel=1e-3)


def test_shadows_that_answer_alike_tell_nothing():
    result = BlackBoxMetaClassifier().run(game(lambda worlds: torch.full((len(worlds), 30), 0.3)))
    assert result.scores.tolist() == [0.0] * 60


@pytest.mark.parametrize("kind", [{"penalties": []}, {"shrinkages": []}])
def test_one_kind_alone_will_do(kind):
    generator = torch.Generator().manual_seed(0)

    def outputs(worlds):
        return (torch.randn(len(worlds), 30, generator=generator) + worlds[:, None]).sigmoid()

    assert BlackBoxMetaClassifier(**kind).run(game(outputs)).accuracy > 0.95
