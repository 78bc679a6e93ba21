"""The distribution-inference game dealt: samples, and pools of victims and shadows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fairpriv.attacks.attack import AttackGame, Query, ask
from fairpriv.attacks.play import Split
from fairpriv.data.game import GameDataModule, Part, Rows
from fairpriv.defenses.defense import Members, PoolOwner, draw
from fairpriv.errors import InputError
from fairpriv.functional import equalized_odds_gaps
from fairpriv.functional.attacks import answers
from fairpriv.modules.pool import Pool
from fairpriv.tracking.identity import content_hash

LARGEST_SAMPLE = 2000  # rows of a model where game.model_rows does not say


def own_pool(
    data: GameDataModule,
    part: Part,
    validation: Rows,
    count: int,
    fit: Callable[..., Pool],
    training: Mapping[str, Any],
) -> PoolOwner:
    """The owner of ``count`` models per world, each with samples of its own from one part of the data.

    Raises:
        InputError: the part has fewer rows than ``game.model_rows``; says how many are missing.
    """
    worlds = data.part(part, 0), data.part(part, 1)
    held = len(worlds[0].y)
    size = data.game.model_rows or min(LARGEST_SAMPLE, held // 2)
    if size > held:
        raise InputError(
            f"game.model_rows={size}: part '{part}' of {data.table.name} holds {held} rows per world, "
            f"{size - held} too few"
        )
    # Shadows must not start from the victims' initial weights: each part has a seed of its own.
    seed = int(content_hash([data.seed, part]), 16) % 2**31
    return PoolOwner(worlds, size / held, count, validation, seed, fit, training)


def refuse_overlap(data: GameDataModule) -> None:
    """Raise InputError where a row of the victims' half is also the adversary's: the attack would be no inference."""
    parts: dict[bool, tuple[Part, ...]] = {True: ("train", "validation", "rates", "gap"), False: ("shadow", "query")}
    victim, adversary = (
        torch.cat([data.part(part, world).index for part in parts[side] for world in (0, 1)]) for side in (True, False)
    )
    if shared := int(torch.isin(victim, adversary).sum()):
        raise InputError(f"{data.table.name}: {shared} rows are in the victims' half and in the adversary's")


def deal(
    data: GameDataModule,
    defend: Callable[[PoolOwner], Members],
    fit: Callable[..., Pool],
    training: Mapping[str, Any],
    *,
    shadows: bool,
) -> Split:
    """Train and defend the pools of one split.

    Victims pass through the defence in both directions: those of world b are trained on G_b and tuned on G_(1-b).
    Shadows are trained on the adversary's half, and pass through the defence only where ``game.adaptive`` says that the
    adversary knows it.

    Args:
        data: the split's data.
        defend: the defence of a pool.
        fit: ``fit_pool`` with architecture and cache given.
        training: epochs, batch_size, lr and weight_decay of base models.
        shadows: whether an attack needs them.
    """
    game = data.game
    refuse_overlap(data)
    validation = data.part("validation", 0) + data.part("validation", 1)
    victims = defend(own_pool(data, "train", validation, game.victims, fit, training))
    truth = torch.arange(2).repeat_interleave(game.victims)
    own: tuple[Members, Members] | None = None
    diverged = len(victims.diverged)
    asked = data.part("query", 0), data.part("query", 1)
    if shadows and game.shadows:
        adversary = own_pool(data, "shadow", asked[0] + asked[1], game.shadows, fit, training)
        pool = defend(adversary) if game.adaptive else adversary.base()
        sound = [i for i in range(len(pool)) if i not in pool.diverged]
        own = pool[[i for i in sound if i < game.shadows]], pool[[i for i in sound if i >= game.shadows]]
        diverged += len(pool.diverged)
    kept = [i for i in range(len(victims)) if i not in victims.diverged]
    victims, truth = victims[kept], truth[kept]
    rows = asked[0] + asked[1]
    query = Query(rows.X, rows.y, rows.s, torch.arange(2).repeat_interleave(len(asked[0].y)))
    test = [data.part(part, world) for part in ("rates", "gap") for world in (0, 1)]
    tested = test[0] + test[1] + test[2] + test[3]
    probs = ask(victims, tested.X, tested.s)
    generator = torch.Generator().manual_seed(data.seed)
    preds = draw(probs, generator) if getattr(victims, "randomized", False) else answers(probs)
    classes = probs.shape[2] if probs.dim() == 3 else 2
    largest = torch.stack([(preds == c).double().mean(1) for c in range(classes)]).amax(0)
    return Split(
        game=AttackGame(victims, own, query, data.seed, truth),
        accuracy=(preds == tested.y).double().mean(1),
        gap=equalized_odds_gaps(preds, tested.y, tested.s, classes=classes),
        constant=1 - largest < 0.01,
        diverged=diverged,
    )
