"""The dealing of the distribution-inference game: samples, and pools of victims and shadows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairpriv.classifiers.attacks.attack import Attack, AttackGame, Query
from fairpriv.classifiers.attacks.play import Split
from fairpriv.classifiers.contract import Defense, PoolOwner
from fairpriv.classifiers.data.game import GameDataModule, Side
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.config.settings import TrainingSettings
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gaps
from fairpriv.functional.fairness import permuted_groups
from fairpriv.identity import derived_seed


def own_pool(
    data: GameDataModule, side: Side, count: int, fit: Callable[..., Pool], training: TrainingSettings
) -> PoolOwner:
    """Make the owner of ``count`` models per world, each of which draws its own rows from one side's half of the data.

    Victims and shadows have equal numbers of training and validation rows and equal hyperparameters, because stronger
    or weaker shadows would accidentally weaken the adversary.

    Raises:
        InputError: as in `GameDataModule.model_rows`.
    """
    # Each side has a seed of its own, since shadows must not start from the victims' initial weights.
    seed = derived_seed(data.seed, side)
    deals = [data.deal(side, [seed, member]) for member in range(2 * count)]
    return PoolOwner(deals, count, seed, fit, training)


def playable(
    attacks: Sequence[Attack], defense: Defense, *, adaptive: bool = False
) -> tuple[list[Attack], dict[str, str]]:
    """Choose the attacks that can be run on a defence's models, through which shadows pass too if ``adaptive``.

    Returns:
        These attacks, and for every other one, by name, the reason against it.

    Raises:
        InputError: there are attacks, but all are ruled out.
    """
    omitted = {
        attack.name: f"reads the weights of one network, which {defense.name} does not leave"
        for attack in attacks
        if (attack.white_box or (attack.reads_shadows and adaptive)) and not defense.one_network
    }
    left = [attack for attack in attacks if attack.name not in omitted]
    if attacks and not left:
        raise InputError(
            f"attack=[{','.join(omitted)}] reads the weights of one network, which defense={defense.name} "
            "does not leave: choose attacks on its answers, such as kl"
        )
    return left, omitted


def refuse_overlap(data: GameDataModule) -> None:
    """Raise InputError if both halves have a row in common, since the attack would then not be inference.

    This includes twins, which are rows that are equal in features, label and group.
    """
    asked = [data.part("query", world).index for world in (0, 1)]
    twins = torch.from_numpy(data.twins)
    victim = twins[torch.cat([data.half("victim").index, data.test.index])]
    adversary = twins[torch.cat([data.half("adversary").index, *asked])]
    if shared := int(torch.isin(victim, adversary).sum()):
        raise InputError(f"{data.table.name}: {shared} rows are in the victims' half and in the adversary's")


def query_of(data: GameDataModule) -> Query:
    """Return the adversary's own rows that it asks about, equally many of both worlds."""
    rows = data.part("query", 0) + data.part("query", 1)
    return Query(rows.X, rows.y, rows.s, torch.arange(2).repeat_interleave(len(rows.y) // 2))


def deal(
    data: GameDataModule,
    defend: Callable[[PoolOwner], Models],
    fit: Callable[..., Pool],
    training: TrainingSettings,
) -> Split:
    """Train and defend the pools of one split.

    Victims are defended in both directions: those of world b are trained on G_b and tuned on G_(1-b). Shadows are
    trained on the adversary's half, and are defended only with ``game.adaptive``, which means that the adversary knows
    the defence.

    Args:
        data: the split's data.
        defend: the defence of a pool.
        fit: ``fit_pool`` with architecture and cache given.
        training: of base models.
    """
    game = data.game
    refuse_overlap(data)
    owner = own_pool(data, "victim", game.victims, fit, training)
    victims = defend(owner)
    truth = torch.arange(2).repeat_interleave(game.victims)
    told = {"victims": victims.told}
    own: tuple[Models, Models] | None = None
    diverged = len(victims.diverged)
    if game.shadows:
        adversary = own_pool(data, "adversary", game.shadows, fit, training)
        pool = defend(adversary) if game.adaptive else adversary.base()
        told["shadows"] = pool.told
        own = pool[[i for i in pool.sound if i < game.shadows]], pool[[i for i in pool.sound if i >= game.shadows]]
        diverged += len(pool.diverged)
    generator = torch.Generator().manual_seed(data.seed)
    trained = own_accuracy(victims, owner, generator)
    kept = victims.sound
    victims, truth, trained = victims[kept], truth[kept], trained[kept]
    tested = data.test
    probs = victims.ask(tested.X, tested.s)
    preds = victims.answers(probs, generator)
    classes = probs.shape[2] if probs.dim() == 3 else 2
    largest = torch.stack([(preds == c).double().mean(1) for c in range(classes)]).amax(0)
    return Split(
        game=AttackGame(victims, own, query_of(data), data.seed, truth, data.poison),
        accuracy=(preds == tested.y).double().mean(1),
        gap=equalized_odds_gaps(preds, tested.y, tested.s, classes=classes),
        gap_floor=gap_floor(preds, tested, data.units(tested), classes, data.seed),
        constant=1 - largest < 0.01,
        diverged=diverged,
        train_accuracy=trained,
        ratio=(1 - game.adversary_share) / game.adversary_share,
        told=told,
    )


def gap_floor(preds: Tensor, rows: Rows, units: Tensor, classes: int, seed: int, draws: int = 20) -> float:
    """Return the mean equalized-odds gap of models whose answers know nothing of the group, given the label.

    Groups are dealt at random among the rows of a label; equal rows, which have the same number in ``units`` ``[N]``,
    keep one group.

    Args:
        preds: predicted classes, ``[M, N]``.
        rows, units: the rows, and the number of each.
        classes: number of classes.
        seed: of the draws.
        draws: number of draws, the same ones for all models.
    """
    generator = torch.Generator().manual_seed(seed)
    dealt = (permuted_groups(rows.y, rows.s, units, generator) for _ in range(draws))
    gaps = [equalized_odds_gaps(preds, rows.y, groups, classes=classes).mean() for groups in dealt]
    return float(torch.stack(gaps).mean())


def own_accuracy(models: Models, owner: PoolOwner, generator: torch.Generator) -> Tensor:
    """Return every model's accuracy ``[M]`` on its own training rows of the world that it was trained on first.

    Its excess over the accuracy on test rows shows how far the model memorises.
    """
    accuracy = []
    for i, rows in enumerate(owner.samples(own=True)):
        model = models[[i]]
        preds = model.answers(model.ask(rows.X, rows.s), generator)
        accuracy.append((preds[0] == rows.y).double().mean())
    return torch.stack(accuracy)
