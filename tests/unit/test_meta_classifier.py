"""The meta-classifier: what its network is blind to, what it learns, and what it refuses to read."""

import itertools

import pytest
import torch

from fairpriv.classifiers.attacks import meta_classifier
from fairpriv.classifiers.attacks.attack import AttackGame, Query
from fairpriv.classifiers.attacks.meta_classifier import MetaClassifier, NeuronSets
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError
from fairpriv.functional.attacks import calibrate

SIZES = [5, 7, 6, 2]


class Weights(Models):
    """Models that are nothing but their weights."""

    def __init__(self, weights):
        self.weights, self.size = weights, len(weights[0][0])

    def __len__(self):
        return self.size

    def predict_proba(self, X):
        raise AssertionError("white box: nobody asks")


def random_weights(M, seed, sizes=SIZES, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        weights.append(
            (torch.randn(M, fan_in, fan_out, generator=generator), torch.randn(M, fan_out, generator=generator))
        )
    weights[0][0][:, 0] += shift
    return weights


def permuted(weights, seed):
    """The same functions: hidden neurons of every model in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    weights = [(W.clone(), b.clone()) for W, b in weights]
    for layer in range(len(weights) - 1):
        (W, b), (W_next, b_next) = weights[layer], weights[layer + 1]
        order = torch.rand(b.shape, generator=generator).argsort(1)
        weights[layer] = (W.gather(2, order[:, None].expand_as(W)), b.gather(1, order))
        weights[layer + 1] = (W_next.gather(1, order[..., None].expand_as(W_next)), b_next)
    return weights


def make_game(shadows0, shadows1, victims, seed=0):
    query = Query(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]))
    victims = Weights(victims)
    return AttackGame(victims, (Weights(shadows0), Weights(shadows1)), query, seed, torch.arange(len(victims)) % 2)


def shifted_game(seed=0):
    """Every other victim is of world 1, whose first-layer weights of feature 0 lie higher."""
    pairs = zip(random_weights(20, 3), random_weights(20, 4, shift=1.5), strict=True)
    victims = [
        (torch.stack((W0, W1), 1).flatten(0, 1), torch.stack((b0, b1), 1).flatten(0, 1)) for (W0, b0), (W1, b1) in pairs
    ]
    return make_game(random_weights(40, 1), random_weights(40, 2, shift=1.5), victims, seed)


def stacked(weights):
    return [torch.cat((W.mT, b[..., None]), -1).double() for W, b in weights]


@torch.no_grad()
def network():
    torch.manual_seed(0)
    return NeuronSets([(5, 7), (7, 6), (6, 2)], width=16, dropout=0.0).eval().double()


def test_network_does_not_see_the_order_of_hidden_neurons():
    net, weights = network(), random_weights(9, 0)
    logits = net(stacked(weights))
    assert logits.shape == (9,)
    torch.testing.assert_close(net(stacked(permuted(weights, 1))), logits, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_logit_is_that_of_a_loop_over_neurons():
    net, layers = network(), stacked(random_weights(3, 0))
    for m, logit in enumerate(net(layers)):
        below = [net.neurons[0](neuron) for neuron in layers[0][m]]
        summary = []
        for layer, read in zip(layers[1:], list(net.neurons)[1:], strict=True):
            summary.append(sum(below) / len(below))
            above = []
            for neuron in layer[m]:
                scale = len(below) ** 0.5
                signed = sum(w * features for w, features in zip(neuron, below, strict=False)) / scale
                sized = sum(abs(w) * features for w, features in zip(neuron, below, strict=False)) / scale
                above.append(read(torch.cat((signed, sized, neuron[-1:]))))
            below = above
        assert float(logit) == pytest.approx(float(net.judge(torch.cat((*summary, *below)))))


@pytest.mark.parametrize(("layer", "dim"), [(0, 1), (2, 2)])
def test_network_sees_the_order_of_inputs_and_outputs(layer, dim):
    net, weights = network(), random_weights(9, 0)
    turned = [(W.clone(), b.clone()) for W, b in weights]
    W, b = turned[layer]
    turned[layer] = (W.flip(dim), b.flip(1) if dim == 2 else b)
    assert (net(stacked(turned)) - net(stacked(weights))).abs().min() > 1e-6


def test_network_sees_how_hidden_layers_are_wired():
    net, weights = network(), random_weights(9, 0)
    (W, b), rest = weights[0], weights[1:]
    rewired = [(W.flip(2), b.flip(1)), *rest]  # the next layer does not follow
    assert (net(stacked(rewired)) - net(stacked(weights))).abs().min() > 1e-6


def test_attack_scores_do_not_see_the_order_of_the_victims_neurons():
    game = shifted_game()
    scores = MetaClassifier().run(game).scores
    other = make_game(game.shadows[0].weights, game.shadows[1].weights, permuted(game.victims.weights, 3))
    torch.testing.assert_close(MetaClassifier().run(other).scores, scores, rtol=1e-3, atol=1e-3)


def test_a_shift_of_one_features_weights_is_found():
    assert MetaClassifier().run(shifted_game()).accuracy > 0.9


def test_the_scale_of_a_features_weights_and_of_a_layer_does_not_matter():
    game, attack = shifted_game(), MetaClassifier(epochs=5)
    scaled = []
    for pool in (*game.shadows, game.victims):
        (W, b), second, (W_out, b_out) = pool.weights
        scaled.append([(W * 2.0 ** torch.tensor([[-9], [3], [0], [9], [1]]), b * 16), second, (W_out / 32, b_out)])
    assert torch.equal(attack.run(make_game(*scaled)).scores, attack.run(game).scores)


def test_the_epoch_that_serves_the_shadows_left_out_is_kept():
    """With nothing to be found, longer training only makes surer of noise."""
    pools = [random_weights(24, seed) for seed in range(3)]
    longer = MetaClassifier(lr=0.01, epochs=40, patience=40).run(make_game(*pools))
    assert longer.scores.abs().mean() < 3  # at the last epoch it is above 10


def test_the_border_is_set_by_logits_of_networks_that_did_not_see_the_shadow(monkeypatch):
    game, given = shifted_game(), []
    scores = MetaClassifier(epochs=3).run(game).scores

    def calibrate(scores0, scores1):
        given.append((scores0, scores1))
        return 1.5, -1.0

    monkeypatch.setattr(meta_classifier, "calibrate", calibrate)
    turned = MetaClassifier(epochs=3).run(game).scores
    ((zero, one),) = given
    assert len(zero) == len(one) == 40
    assert min(zero.abs().min(), one.abs().min()) > 0  # each got a logit
    border = float(zero.quantile(0.5) + one.quantile(0.5)) / 2
    torch.testing.assert_close(1.5 - turned, scores + border, rtol=1e-4, atol=1e-5)
    nothing = [random_weights(24, seed) for seed in range(3)]  # shadows that were seen would be told apart all the same
    MetaClassifier(lr=0.01, epochs=20, patience=20).run(make_game(*nothing))
    zero, one = given[-1]
    assert float((one[:, None] > zero).double().mean()) < 0.7


def test_weights_that_never_differ_do_no_harm():
    pools = [random_weights(12, seed) for seed in range(3)]
    for pool in pools:
        pool[0][0][:, 1] = 0.25
        pool[1][1][:] = 0.0
    assert MetaClassifier().run(make_game(*pools)).scores.isfinite().all()


def test_seeds_make_other_networks():
    first, again, other = (MetaClassifier(epochs=3).run(shifted_game(seed)).scores for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_without_hidden_layers_is_read_too():
    pools = [random_weights(20, seed, sizes=[3, 2], shift=2.0 * (seed == 1)) for seed in range(3)]
    result = MetaClassifier().run(make_game(*pools))
    assert result.decisions.float().mean() < 0.3  # all victims are of world 0


@pytest.mark.parametrize("missing", [None, []])
def test_models_without_weights_are_refused(missing):
    game = shifted_game()
    game.shadows[1].weights = missing
    with pytest.raises(InputError, match="attack meta_classifier reads weights of fully connected layers: Weights has"):
        MetaClassifier().run(game)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda W, b: (W[..., None], b),  # a convolution
        lambda W, b: (W.mT, b),
        lambda W, b: (W, b[:, :-1]),
    ],
)
def test_layers_that_are_not_fully_connected_are_refused(spoil):
    pools = [random_weights(4, seed) for seed in range(3)]
    for pool in pools:
        pool[1] = spoil(*pool[1])
    with pytest.raises(InputError, match=r"attack meta_classifier reads fully connected layers alone.*layer 1"):
        MetaClassifier().run(make_game(*pools))


def test_layers_that_do_not_follow_one_another_are_refused():
    pools = [random_weights(4, seed)[::-1] for seed in range(3)]
    with pytest.raises(InputError, match="fully connected layers alone"):
        MetaClassifier().run(make_game(*pools))


def test_unlike_architectures_are_refused():
    pools = [random_weights(4, 0), random_weights(4, 1), random_weights(4, 2, sizes=[5, 8, 6, 2])]
    with pytest.raises(InputError, match="shadows and victims of one architecture"):
        MetaClassifier().run(make_game(*pools))


def test_weights_that_are_not_finite_are_refused():
    pools = [random_weights(4, seed) for seed in range(3)]
    pools[2][1][0][1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="layer 1 are not finite"):
        MetaClassifier().run(make_game(*pools))


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"dropout": 1.0}, {"epochs": 0}, {"lr": 0.0}])
def test_a_parameter_out_of_range_is_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        MetaClassifier(**wrong)


def test_training_ends_after_its_patience_and_keeps_the_epoch_of_the_least_held_out_loss(monkeypatch):
    losses, seen = [5.0, 3.0, 4.0, 2.0, 6.0, 7.0, 8.0, 1.0], []

    def loss(logits, target, weight):
        if torch.is_grad_enabled():
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weight)
        seen.append((logits, target, weight))
        return torch.tensor(losses[len(seen) - 1])

    monkeypatch.setattr(meta_classifier, "binary_cross_entropy_with_logits", loss)
    layers = [layer.float() for layer in stacked(random_weights(20, 0))]
    world, held_out = (torch.arange(20) < 8).float(), torch.arange(20) % 4 == 0
    torch.manual_seed(0)
    net = MetaClassifier(epochs=20, patience=3, dropout=0.5, width=8, batch_size=8)._train(layers, world, held_out)
    assert len(seen) == 7
    with torch.no_grad():
        kept = net([layer[held_out] for layer in layers])
    assert [torch.equal(kept, logits) for logits, *_ in seen] == [epoch == 3 for epoch in range(7)]
    for _, target, weight in seen:
        assert target.tolist() == world[held_out].tolist()
        # both worlds have the same weight, of 8 and of 12 shadows
        assert weight.tolist() == pytest.approx([0.5 * 20 / (8 if w else 12) for w in target.tolist()])


def test_scores_are_the_mean_of_all_networks_less_the_border_of_held_out_shadows(monkeypatch):
    game, parts = make_game(*(random_weights(m, m, shift=m / 9) for m in (9, 7, 4))), []

    def train(self, layers, world, held_out):
        parts.append(held_out)
        scale = len(parts)
        return lambda layers: scale * layers[0][:, 1, 2] + layers[1][:, 0, 6] + layers[2][:, 1, -1]

    monkeypatch.setattr(MetaClassifier, "_train", train)
    scores = MetaClassifier(folds=3).run(game).scores
    assert [part.nonzero()[:, 0].tolist() for part in parts] == [
        [m for m in range(16) if (m if m < 9 else m - 9) % 3 == fold] for fold in range(3)
    ]
    pools = [stacked(pool.weights) for pool in (*game.shadows, game.victims)]
    own = [torch.cat(pair) for pair in zip(*pools[:2], strict=True)]
    # per input in the first layer, one for all weights in the others, and one for the biases
    place = own[0][:, :, 2], own[1][:, :, :-1], own[2][:, :, -1]

    def terms(layers):
        values = layers[0][:, 1, 2], layers[1][:, 0, 6], layers[2][:, 1, -1]
        return [(v - p.mean()) / p.std(correction=0) for v, p in zip(values, place, strict=True)]

    (a, b, c), (d, e, f) = terms(own), terms(pools[2])
    held = torch.stack([((m if m < 9 else m - 9) % 3 + 1) * a[m] + b[m] + c[m] for m in range(16)])
    border, direction = calibrate(held[:9], held[9:])
    assert scores.tolist() == pytest.approx((direction * (2 * d + e + f - border)).tolist(), rel=1e-4, abs=1e-5)
