"""The meta-classifier, a permutation-invariant network that reads the victims' weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, AttackResult
from fairpriv.classifiers.nets.models import Models
from fairpriv.errors import InputError
from fairpriv.functional.attacks import calibrate

Layers = list[Tensor]  # float32 [M, out, in + 1] of every layer: a neuron's weights and, last, its bias


class NeuronSets(nn.Module):
    """Network from the weights of M multi-layer perceptrons to logits of world 1, blind to the order of hidden neurons.

    Layer by layer, as in Ganju et al. (CCS 2018), one small network turns every neuron into features, and the mean over
    its neurons summarises a layer. Ours is what a neuron reads of the layer below: the sums of the lower neurons'
    features, weighted with its weights and with their absolute values, so that any order of hidden neurons gives the
    same logit. (The code released with Suri et al., SaTML 2023, appends the lower features in their order, and is not
    invariant past the first layer.) The order of the perceptrons' inputs and outputs is used.

    Args:
        shapes: ``(in, out)`` of every layer.
        width: features of a neuron.
        dropout: on the summary of the layers.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], *, width: int, dropout: float) -> None:
        super().__init__()
        read = [shapes[0][0] + 1] + [2 * width + 1] * (len(shapes) - 1)
        self.neurons = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for inputs in read
        )
        summary = width * (len(shapes) - 1 + shapes[-1][1])
        self.judge = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(summary, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, layers: Layers) -> Tensor:
        """Return logits ``[M]``."""
        features = self.neurons[0](layers[0])
        summary = []
        for layer, network in zip(layers[1:], list(self.neurons)[1:], strict=True):
            summary.append(features.mean(1))
            weights, bias = layer[..., :-1], layer[..., -1:]
            scale = math.sqrt(weights.shape[-1])
            features = network(torch.cat((weights @ features / scale, weights.abs() @ features / scale, bias), -1))
        return self.judge(torch.cat((*summary, features.flatten(1)), 1))[:, 0]


@dataclass
class MetaClassifier(Attack):
    """White-box attack by permutation-invariant networks that are trained on the shadows' weights.

    After Ganju et al. (CCS 2018), as in Suri and Evans (PETS 2022); the network is :class:`NeuronSets`. Weights are
    standardised by the shadows' means and deviations over models and neurons: per input feature in the first layer, and
    one mean and deviation per layer in the others. Ours: the logit is the mean over ``folds`` networks, each of which
    holds out other shadows, and these choose its number of epochs. The border follows from the logits of the held-out
    shadows (:func:`fairpriv.functional.attacks.calibrate`); both worlds' shadows have the same weight. A tie says
    world 0.

    Attributes:
        width: features of a neuron.
        dropout: on the summary of the layers, in [0, 1).
        folds: number of networks, 2 or more; each holds out a 1/``folds`` part of either world's shadows.
        epochs: largest number; the one with the smallest loss on the held-out shadows is kept.
        patience: epochs without a smaller loss after which training ends.
        batch_size: shadows per step.
        lr, weight_decay: of AdamW.
    """

    kind: ClassVar[str] = "meta_classifier"
    needs: ClassVar[int] = 2

    name: str = "meta_classifier"
    width: int = 32
    dropout: float = 0.2
    folds: int = 4
    epochs: int = 100
    patience: int = 20
    batch_size: int = 32
    lr: float = 0.003
    weight_decay: float = 0.01

    white_box: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise InputError(f"attack.{self.name}.folds={self.folds}: must be 2 or more")
        if not 0 <= self.dropout < 1:
            raise InputError(f"attack.{self.name}.dropout={self.dropout}: must be from 0 to below 1")
        if min(self.width, self.epochs, self.patience, self.batch_size) < 1:
            raise InputError(f"attack.{self.name}: width, epochs, patience and batch_size must be 1 or more")
        if not (self.lr > 0 and self.weight_decay >= 0):
            raise InputError(f"attack.{self.name}: lr must be above 0, and weight_decay 0 or more")

    def run(self, game: AttackGame) -> AttackResult:
        """Score every victim by the distance of its mean logit from the border, in the direction of world 1.

        Raises:
            InputError: no shadows, or weights that cannot be read as layers of one fully connected architecture.
        """
        shadows = game.shadow_models(self.name, least=self.needs)
        pools = [_layers(models, self.name) for models in (*shadows, game.victims)]
        shapes = [[tuple(layer.shape[1:]) for layer in pool] for pool in pools]
        if not shapes[0] == shapes[1] == shapes[2]:
            raise InputError(
                f"attack {self.name} needs shadows and victims of one architecture; (out, in + 1) of their layers are "
                + " and ".join(dict.fromkeys(map(str, shapes)))
            )
        layers = [torch.cat(pair) for pair in zip(pools[0], pools[1], strict=True)]
        moments = [_moments(layer, first=i == 0) for i, layer in enumerate(layers)]
        layers, victims = (
            [(layer - mean) / std for layer, (mean, std) in zip(pool, moments, strict=True)]
            for pool in (layers, pools[2])
        )
        sizes = [len(models) for models in shadows]
        world = torch.cat([torch.full((size,), float(b)) for b, size in enumerate(sizes)])
        fold = torch.cat([torch.arange(size) % min(self.folds, *sizes) for size in sizes])
        logits, held_out_logits = [], torch.zeros(len(world))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(game.seed)
            for part in fold.unique():
                held_out = fold == part
                net = self._train(layers, world, held_out)
                with torch.no_grad():
                    logits.append(net(victims))
                    held_out_logits[held_out] = net([layer[held_out] for layer in layers])
        border, direction = calibrate(held_out_logits[world == 0], held_out_logits[world == 1])
        return game.result(self.name, direction * (torch.stack(logits).mean(0) - border))

    @torch.enable_grad()
    def _train(self, layers: Layers, world: Tensor, held_out: Tensor) -> NeuronSets:
        net = NeuronSets(
            [(layer.shape[2] - 1, layer.shape[1]) for layer in layers], width=self.width, dropout=self.dropout
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)
        training = (~held_out).nonzero()[:, 0]
        validation = [layer[held_out] for layer in layers]
        ones = world.mean()
        weight = 0.5 / torch.where(world == 1, ones, 1 - ones)

        def loss(models: Layers, rows: Tensor) -> Tensor:
            return binary_cross_entropy_with_logits(net(models), world[rows], weight[rows])

        smallest, best, since = math.inf, net.state_dict(), 0
        for _ in range(self.epochs):
            net.train()
            for rows in training[torch.randperm(len(training))].split(self.batch_size):
                optimizer.zero_grad()
                loss([layer[rows] for layer in layers], rows).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                current = float(loss(validation, held_out))
            since += 1
            if current < smallest:
                smallest, best, since = current, copy.deepcopy(net.state_dict()), 0
            if since == self.patience:
                break
        net.load_state_dict(best)
        return net


def _layers(models: Models, attack: str) -> Layers:
    """Return the weights of a pool; raise InputError if they are not those of fully connected layers."""
    if not models.weights:
        raise InputError(f"attack {attack} reads weights of fully connected layers: {type(models).__name__} has none")
    layers: Layers = []
    for i, (W, b) in enumerate(models.weights):
        if W.ndim != 3 or b.shape != (len(models), W.shape[2]) or (layers and W.shape[1] != layers[-1].shape[1]):
            raise InputError(
                f"attack {attack} reads fully connected layers alone, [M, in, out] with biases [M, out], in as wide as "
                f"the out before it; layer {i} of {len(models)} models has {list(W.shape)} and {list(b.shape)}"
            )
        layer = torch.cat((W.detach().mT, b.detach()[..., None]), -1).float().cpu()
        if not layer.isfinite().all():
            raise ValueError(f"weights of layer {i} are not finite: did training diverge?")
        layers.append(layer)
    return layers


def _moments(layer: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """Return mean and deviation ``[in + 1]`` over models and neurons; past the first layer, over all weights."""
    mean, square = layer.mean((0, 1)), layer.square().mean((0, 1))
    if not first:  # the inputs of later layers have no order
        mean[:-1], square[:-1] = mean[:-1].mean(), square[:-1].mean()
    return mean, (square - mean.square()).clamp(min=1e-12).sqrt()
