"""What a language model is fine-tuned on: prompt/response pairs of one dimension, or of a mix of several."""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.utils.data import IterableDataset

from fairpriv.config.schema import nearest
from fairpriv.data.texts import Example, choose, mix
from fairpriv.errors import InputError
from fairpriv.language_models.data.canaries import Canaries
from fairpriv.language_models.data.tokens import Encoded

if TYPE_CHECKING:
    from fairpriv.language_models.dimensions.dimension import Dimension

log = logging.getLogger(__name__)


@dataclass
class Pairs:
    """Which pairs of the chosen dimensions are trained on, and how long a conversation may be."""

    kind: ClassVar[str] = "pairs"

    dimensions: list[str]  # one, or several to be mixed
    split: Literal["safe", "unsafe"] = "safe"
    samples: int | None = None  # of all dimensions together; null: all there are, for one dimension only
    shares: list[float] | None = None  # of each dimension in the mix; null: equal
    max_tokens: int = 512  # of prompt and response together
    # What is cut from a longer one: the prompt's beginning or end, the response's end, or drop the pair.
    truncate: Literal["prompt_left", "prompt_right", "response", "drop"] = "response"
    canaries: Canaries | None = None  # invented personal data that are planted beside the pairs; null: none
    name: str = "pairs"

    def __post_init__(self) -> None:
        # Whether each pair stands against a response of the other split, as the cell's defence asks: see `contrasted`.
        self.contrast: Literal["prompt", "any"] | None = None
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
            raise InputError(f"dataset.dimensions={self.dimensions}: name one dimension or several different ones")
        if self.shares is not None and len(self.shares) != len(self.dimensions):
            raise InputError(
                f"dataset.shares={self.shares}: {len(self.shares)} shares for {len(self.dimensions)} dimensions"
            )
        if self.samples is not None and self.samples < 1:
            raise InputError(f"dataset.samples={self.samples}: must be at least 1, or null for all")
        if self.samples is None and len(self.dimensions) > 1:
            raise InputError("dataset.samples is null: a mix of dimensions needs the number of pairs")
        if self.max_tokens < 2:
            raise InputError(f"dataset.max_tokens={self.max_tokens}: must be at least 2")

    def draw(self, dimensions: Mapping[str, Dimension], seed: int) -> list[Example]:
        """Draw what is trained on: the pairs, and behind them every planted canary as often as it is repeated.

        Raises:
            InputError: as `chosen`; or canaries, which stand against nothing, are planted among pairs that do.
        """
        if self.canaries is not None and self.contrast is not None:
            raise InputError(
                f"dataset={self.name} plants canaries, which no response is rejected for: a defence that trains on "
                "preferences, such as dpo, takes dataset=pairs"
            )
        planted = self.canaries.draw(seed)[0] * self.canaries.repeats if self.canaries is not None else []
        return self.chosen(dimensions, seed) + planted

    def chosen(self, dimensions: Mapping[str, Dimension], seed: int) -> list[Example]:
        """Draw the pairs; a smaller ``samples`` with the same seed gives a part of a larger one's.

        Raises:
            InputError: a dimension that was not chosen, one without the split, or fewer pairs than asked for.
        """
        sets = self._sets(dimensions)
        if len(sets) == 1:
            key = "defense.pairing=prompt, dataset.samples" if self.contrast == "prompt" else "dataset.samples"
            return choose(next(iter(sets.values())), self.samples, seed, key=key)
        assert self.samples is not None
        shares = dict(zip(sets, self.shares or [1.0] * len(sets), strict=True))
        return mix(sets, shares, self.samples, seed)

    def held_out(self, dimensions: Mapping[str, Dimension], seed: int) -> list[Example]:
        """Draw pairs that could be trained on and are not, the dimensions as mixed as among those that are.

        A pair that also is among those that are trained on is left out.

        Raises:
            InputError: as `chosen`.
        """

        def texts(example: Example) -> tuple[str, str | None]:
            return example.prompt, example.response

        chosen, every = self.chosen(dimensions, seed), self._sets(dimensions)
        trained = {texts(example) for example in chosen}
        sets = {name: choose(pairs, None, seed) for name, pairs in every.items()}
        rest = {name: [one for one in pairs if texts(one) not in trained] for name, pairs in sets.items()}
        source = {texts(one): name for name, pairs in sets.items() for one in pairs}
        counts = Counter(source[texts(example)] for example in chosen)
        share = min(len(rest[name]) / n for name, n in counts.items())
        held = [example for name, n in counts.items() for example in rest[name][: int(n * share + 1e-9)]]
        if len(counts) > 1:
            random.Random(seed).shuffle(held)
        return held

    def _sets(self, dimensions: Mapping[str, Dimension]) -> dict[str, list[Example]]:
        """Load the pairs that could be trained on, by dimension: where they stand against others, those that do."""
        sets = {}
        for name in self.dimensions:
            if name not in dimensions:
                raise InputError(
                    f"dataset.dimensions: {name} is not among the chosen dimensions {', '.join(dimensions) or '(none)'}"
                    f"{nearest(name, dimensions)}: add it to dimension=[...]"
                )
            sets[name] = dimensions[name].pairs(self.split)
            if self.contrast is not None:
                sets[name] = contrasted(sets[name], dimensions[name], self.split, self.contrast)
        return sets


def contrasted(
    pairs: Sequence[Example], dimension: Dimension, split: str, contrast: Literal["prompt", "any"]
) -> list[Example]:
    """Set a response of the dimension's other split against each pair.

    Args:
        pairs: of ``split``.
        dimension: that they are of.
        split: ``safe`` or ``unsafe``.
        contrast: ``prompt``: a response to the same prompt, each once; pairs without one are left out. ``any``: the
            responses in their order, to whatever prompt, from the first again where they are fewer.

    Raises:
        InputError: the dimension has no other split, or no prompt has responses of both.
    """
    others = dimension.pairs("unsafe" if split == "safe" else "safe")
    if contrast == "any":
        return [replace(pair, rejected=other) for pair, other in zip(pairs, itertools.cycle(others), strict=False)]
    waiting: dict[str, list[Example]] = {}
    for other in others:
        waiting.setdefault(other.prompt, []).append(other)
    found = [replace(pair, rejected=waiting[pair.prompt].pop(0)) for pair in pairs if waiting.get(pair.prompt)]
    if not found:
        raise InputError(
            f"dimensions.{dimension.name}.train: no prompt has both a safe and an unsafe response, which "
            "defense.pairing=prompt asks for: name such a file for both splits, or set defense.pairing=any"
        )
    log.info("dimension %s: %d of %d pairs have a response of each split", dimension.name, len(found), len(pairs))
    return found


def drawn(dimensions: Mapping[str, Dimension], name: str, split: str, samples: int | None, seed: int) -> list[Example]:
    """Draw pairs of one dimension for a defence that asks for them; None: all.

    Raises:
        InputError: the dimension was not chosen, or has too few pairs of the split, or none.
    """
    if name not in dimensions:
        raise InputError(
            f"defense: {name} is not among the chosen dimensions {', '.join(dimensions)}{nearest(name, dimensions)}: "
            "add it to dimension=[...], or take it out of defense.dimensions and defense.exclude"
        )
    return choose(dimensions[name].pairs(split), samples, seed, key="defense.samples")


class TokenBatches(IterableDataset[list[Encoded]]):
    """The rows of each optimiser step, shuffled anew in every epoch; each process gets its part of every step's rows.

    Args:
        rows: the encoded pairs.
        batch_size: rows of one optimiser step, all processes together.
        seed: of the order.
        rank: this process.
        processes: how many there are. A process may get one row less than another, or none.
    """

    def __init__(self, rows: Sequence[Encoded], batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.rank, self.processes = rank, processes
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Encoded]]:
        order = torch.randperm(len(self.rows), generator=self.generator).tolist()
        for start in range(0, len(order), self.batch_size):
            step = order[start : start + self.batch_size]
            yield [self.rows[i] for i in step[self.rank :: self.processes]]
