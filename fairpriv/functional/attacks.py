"""Statistics of distribution-inference attacks on outputs P(y=1) of shadow models and victims.

Outputs of models with two classes are P(y=1) ``[M, N]``. With C > 2 classes they are ``[M, N, C]``; how the statistics
extend to these is ours.

Every score depends on the shadows and on one victim's outputs, never on other victims. Larger scores are more like
world 1, and 0 is the border. The methods are those of [SE22] Suri and Evans, PETS 2022, and [SA23] Suri, Lu, Chen and
Evans, SaTML 2023, with their released code; each docstring says what differs from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fairpriv.functional.intervals import placement

_COLUMNS = 1024  # columns sorted at a time, which bounds memory


def answers(probs: Tensor) -> Tensor:
    """Return predicted classes ``[M, N]``, int64.

    Args:
        probs: P(y=1) ``[M, N]``, where above 1/2 means class 1; or ``[M, N, C]``.
    """
    return probs.argmax(-1) if probs.dim() == 3 else (probs > 0.5).long()


def calibrate(scores0: Tensor, scores1: Tensor) -> tuple[float, float]:
    """Find border and direction of an attack's scores, from shadows that the attack was not fitted to. Ours.

    The border lies midway between the medians of the two worlds; with few shadows this is steadier than the best cut.
    The direction is the attack's own, 1, unless the AUC lies two standard errors (of no signal) below 1/2, so that
    noise does not reverse a weak signal.

    Args:
        scores0: scores of world 0's shadows, ``[M0]``.
        scores1: scores of world 1's shadows, ``[M1]``.

    Returns:
        border, and direction, 1.0 or -1.0.
    """
    border = float(scores0.quantile(0.5) + scores1.quantile(0.5)) / 2
    auc = float(placement(scores1, scores0).mean())
    error = math.sqrt((len(scores0) + len(scores1) + 1) / (12 * len(scores0) * len(scores1)))
    return border, -1.0 if auc < 0.5 - 2 * error else 1.0


def loss_test_scores(probs: Tensor, y: Tensor, world: Tensor) -> Tensor:
    """Subtract accuracy on world 0's rows from accuracy on world 1's rows [SE22].

    Args:
        probs: outputs of the victims.
        y: labels, ``[N]``.
        world: the distribution each row was drawn from, in {0, 1}, ``[N]``; both occur.

    Returns:
        ``[V]`` float64 in [-1, 1].
    """
    right = answers(probs) == y
    return right[:, world == 1].double().mean(1) - right[:, world == 0].double().mean(1)


def leaked_by_accuracy(accuracy: float, shares: tuple[float, float]) -> float:
    """Return n_leaked of an attack that tells two shares of a group apart [SE22].

    That is the least number of rows of the training distribution that allow this accuracy to whoever sees their groups
    directly: log(4 a (1 - a)) / log max(p / q, (1 - q) / (1 - p)), for accuracy a and shares p < q. The bound behind it
    is accuracy <= (1 + sqrt(1 - r^n)) / 2, where r is that maximum and n the number of rows.

    Args:
        accuracy: in [0, 1]; one below 1/2 counts as its opposite.
        shares: of the group in the two worlds, different and inside (0, 1).

    Returns:
        0 or more; infinite if the accuracy is 0 or 1.
    """
    low, high = sorted(shares)
    if not 0 < low < high < 1:
        raise ValueError(f"shares {shares}: two different ones inside (0, 1) are needed")
    if accuracy in (0, 1):
        return math.inf
    # the size, for a quotient of 0 by a negative number would be -0
    return abs(math.log(4 * accuracy * (1 - accuracy)) / math.log(max(low / high, (1 - high) / (1 - low))))


def leaked_by_estimates(shares: Tensor, squared_error: float) -> float:
    """Return n_leaked of an attack that estimates shares of a group [SE22].

    The frequency among n rows has the mean squared error a (1 - a) / n for the share a, so n is the mean of a (1 - a)
    over the squared error; the mean over several shares is ours.

    Args:
        shares: the true ones, ``[V]`` in [0, 1].
        squared_error: mean over the same models, above 0.
    """
    return float((shares * (1 - shares)).mean()) / squared_error


def rank_points(values0: Tensor, values1: Tensor) -> Tensor:
    """Return the places ``[N]`` of the query points, in order of how differently the two worlds' shadows answer them.

    The most different come first. The measure is the absolute difference of mean answers, as in the released code,
    summed over classes where there are several; ties keep their order.

    Args:
        values0: answers of world 0's shadows, ``[M0, N]``, probabilities or labels; or ``[M0, N, C]``, labels one-hot.
        values1: answers of world 1's shadows, ``[M1, N]`` or ``[M1, N, C]``.
    """
    difference = (values1.mean(0, dtype=torch.double) - values0.mean(0, dtype=torch.double)).abs()
    difference = difference.sum(-1) if difference.dim() == 2 else difference
    return difference.argsort(descending=True, stable=True)


def best_threshold(values0: Tensor, values1: Tensor) -> tuple[Tensor, Tensor]:
    """Find, per column, the cut and direction that best separate world 0's values from world 1's.

    The criterion is balanced accuracy. The result is exact, where the released code searches a grid: cuts lie halfway
    between neighbouring values, and of equally good ones the one in the widest gap is taken (ours).

    Args:
        values0: ``[M0, K]``.
        values1: ``[M1, K]``.

    Returns:
        threshold ``[K]`` float64, and direction ``[K]`` int8: 1 where values above it say world 1, -1 where values
        below it do, 0 where no cut is better than chance.
    """
    found = [
        _best_threshold(some0, some1)
        for some0, some1 in zip(values0.split(_COLUMNS, 1), values1.split(_COLUMNS, 1), strict=True)
    ]
    thresholds, directions = zip(*found, strict=True)
    return torch.cat(thresholds), torch.cat(directions)


def _best_threshold(values0: Tensor, values1: Tensor) -> tuple[Tensor, Tensor]:
    values, order = torch.cat((values0, values1)).sort(dim=0)
    below1 = (order >= len(values0)).cumsum(0)[:-1]
    below0 = torch.arange(1, len(values), device=values.device)[:, None] - below1
    # share of world 0 below the cut minus that of world 1, in whole numbers so that equal ones compare equal
    lead = len(values1) * below0 - len(values0) * below1
    gap = values[1:] - values[:-1]
    lead[gap <= 0] = 0  # no cut can lie between equal values
    best = lead.abs().amax(0)
    cut = torch.where(lead.abs() == best, gap, -1).argmax(0, keepdim=True)
    # in float64 a midpoint differs from both float32 ends
    threshold = (values[:-1].gather(0, cut).double() + values[1:].gather(0, cut).double()) / 2
    return threshold[0], lead.gather(0, cut)[0].sign().to(torch.int8)


def threshold_test_scores(
    shadows0: Tensor, shadows1: Tensor, probs: Tensor, y: Tensor, counts: Sequence[int]
) -> Tensor:
    """Score by accuracy on the most telling points, against a threshold chosen on shadows [SE22].

    Points are ranked by the difference of the shadows' mean predicted labels, or with several classes by how often each
    label is predicted.

    Args:
        shadows0: outputs of world 0's shadows.
        shadows1: outputs of world 1's shadows.
        probs: outputs of the models to be judged.
        y: labels, ``[N]``.
        counts: how many of the first-ranked points are used, each from 1 to N, ``[F]``.

    Returns:
        ``[V, F]`` float64: signed distance from the threshold, in [-1, 1]; 0 throughout where the shadows' accuracies
        do not differ.
    """
    labels0, labels1 = answers(shadows0), answers(shadows1)
    classes = shadows0.shape[2] if shadows0.dim() == 3 else 2
    counted = [one_hot(labels, classes) if classes > 2 else labels for labels in (labels0, labels1)]
    order = rank_points(*counted)
    used = torch.as_tensor(counts, device=y.device)

    def accuracy(labels: Tensor) -> Tensor:
        return (labels == y)[:, order].cumsum(1)[:, used - 1].double() / used

    threshold, direction = best_threshold(accuracy(labels0), accuracy(labels1))
    return direction * (accuracy(answers(probs)) - threshold)


def per_point_scores(shadows0: Tensor, shadows1: Tensor, probs: Tensor, y: Tensor, counts: Sequence[int]) -> Tensor:
    """Score by an unweighted vote of the most telling points, each with its own threshold on P(y=1) [SA23].

    Points are ranked by the difference of the shadows' mean P(y=1). With several classes the probability of the row's
    own label takes its place, which needs the label. A point does not vote where no cut of the shadows is better than
    chance, and an output exactly on its point's threshold votes for neither world (ours).

    Args:
        shadows0: outputs of world 0's shadows.
        shadows1: outputs of world 1's shadows.
        probs: outputs of the models to be judged.
        y: labels, ``[N]``; not used with two classes.
        counts: how many of the first-ranked points are used, each from 1 to N, ``[F]``.

    Returns:
        ``[V, F]`` float64: votes for world 1 minus votes for world 0, over the points that may vote, in [-1, 1].
    """
    if probs.dim() == 3:
        own = y[None, :, None]
        shadows0, shadows1, probs = (
            outputs.gather(2, own.expand(len(outputs), -1, -1))[..., 0] for outputs in (shadows0, shadows1, probs)
        )
    order = rank_points(shadows0, shadows1)[: max(counts)]
    threshold, direction = best_threshold(shadows0[:, order], shadows1[:, order])
    used = torch.as_tensor(counts, device=order.device)
    votes = direction * (probs[:, order] - threshold).sign().to(torch.int8)
    voters = direction.abs().cumsum(0)[used - 1]
    return votes.cumsum(1)[:, used - 1].double() / voters.clamp(min=1)


def mean_kl(shadows: Tensor, probs: Tensor, *, clip: float) -> Tensor:
    """Average KL(shadow || victim) of the outputs over shadows and points.

    The mean of p log p/q over shadows needs only their mean entropy and mean p, so no pairs are formed.

    Args:
        shadows: outputs of the shadows.
        probs: outputs of the victims.
        clip: both are clipped to [clip, 1 - clip], inside (0, 1/2); with several classes every probability is raised to
            at least ``clip`` and each row is rescaled to sum to 1.

    Returns:
        ``[V]`` float64, nats.
    """
    if shadows.dim() == 3:
        p, q = (values.double().clamp(min=clip) for values in (shadows, probs))
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        return torch.xlogy(p, p).sum(-1).mean() - (p.mean(0) * q.log()).sum(-1).mean(1)
    p, q = (values.double().clamp(clip, 1 - clip) for values in (shadows, probs))
    negative_entropy = (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean()
    mean_p = p.mean(0)
    return negative_entropy - (mean_p * q.log() + (1 - mean_p) * (1 - q).log()).mean(1)


def kl_scores(shadows0: Tensor, shadows1: Tensor, probs: Tensor, *, clip: float = 1e-4) -> Tensor:
    """Subtract the mean KL from world 1's shadows to the victim from that of world 0's shadows [SA23].

    The score equals the mean over all pairs of one shadow of each world. The released code takes a random part of the
    pairs and rescales every pair over the set of victims, so that one victim's decision depends on the others; this
    does not.

    Args:
        shadows0: outputs of world 0's shadows.
        shadows1: outputs of world 1's shadows.
        probs: outputs of the victims.
        clip: as in :func:`mean_kl`.

    Returns:
        ``[V]`` float64, nats.
    """
    return mean_kl(shadows0, probs, clip=clip) - mean_kl(shadows1, probs, clip=clip)


def label_only_kl_scores(
    shadows0: Tensor, shadows1: Tensor, probs: Tensor, *, smoothing: float = 0.01, clip: float = 1e-4
) -> Tensor:
    """Score as :func:`kl_scores` a victim that answers with labels alone [SA23].

    As in the released code the shadows keep their probabilities, since they are the adversary's own. A victim's label c
    stands for P(y=1) = c, moved away from 0 or 1 by ``smoothing``; with several classes the other classes share
    ``smoothing``.

    Args:
        shadows0: outputs of world 0's shadows.
        shadows1: outputs of world 1's shadows.
        probs: outputs of the victims; only the predicted class is used.
        smoothing: inside (0, 1/2). It scales the part of a score that depends on the victim, by
            log((1 - smoothing) / smoothing), against the difference of the worlds' entropies, which is the same for
            all victims.
        clip: as in :func:`mean_kl`.

    Returns:
        ``[V]`` float64, nats.
    """
    others = smoothing / (probs.shape[2] - 1) if probs.dim() == 3 else smoothing
    said = one_hot(answers(probs), probs.shape[2]).bool() if probs.dim() == 3 else probs > 0.5
    hard = torch.where(said, 1 - smoothing, others)
    return kl_scores(shadows0, shadows1, hard, clip=clip)
