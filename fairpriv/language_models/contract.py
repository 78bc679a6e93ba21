"""The contract of a language model's defence: what it is given, what it returns, and what it declares.

Parts that a user may bring inherit from a base class, which has a default for everything that a part may declare:
a defence from `Tuning`, a judge from `fairpriv.language_models.judges.judge.Judge`, and a scorer from
`fairpriv.language_models.scorers.scorer.Scorer`. An object of another class is refused, with the name of the base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from fairpriv.errors import InputError
from fairpriv.metrics import Measured

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from fairpriv.editing import SpinEdit
    from fairpriv.functional.coupling import TopWeights
    from fairpriv.language_models.data.tokens import Encoded
    from fairpriv.store import Store


Draw = tuple[str, str, int | None]  # a dimension, a split of its pairs, and how many of them; None: all


@dataclass(frozen=True)
class ModelOwner:
    """The side that owns a language model in one cell: the model, what it may be tuned on, and the means to train.

    Attributes:
        model: in eval mode, free to be changed in place.
        tokenizer: its tokenizer.
        pad_id: the token id that fills up shorter rows.
        seed: of the cell; a defence derives every random choice from it.
        pairs: the encoded training pairs, and how many were dropped as too long.
        fit: ``fairpriv.language_models.models.causal_lm.fit_causal_lm`` with trainer and logger given.
        keep: keeps a model or adapter in the cell's folder, by ``save_pretrained``.
        rows: encoded pairs by dimension, split and number (None: all), drawn by the cell's seed.
        file: the path of a file that the cell keeps, by name.
        store: keeps what several cells would make alike.
        origin: plain data that tells what ``model`` is before anything changed it.
        name: what people call it, as on the hub.
        fitting: plain data that determine a fit beside the defence, its pairs and the seed.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    seed: int
    pairs: Callable[[], tuple[list[Encoded], int]]
    fit: Callable[..., None]
    keep: Callable[[nn.Module], None]
    rows: Callable[[str, str, int | None], list[Encoded]]
    file: Callable[[str], Path]
    store: Store
    origin: Any
    name: str
    fitting: Any = None

    def untouched(self) -> Tuned:
        """Return the model as it is."""
        return Tuned(self.model)


@dataclass
class Tuned:
    """A language model after its defence, and what the defence has to report: see :class:`~fairpriv.metrics.Metric`.

    ``content`` is plain data that determine what became of the owner's model: under it, answers and scores are kept in
    the cache. None: they are not kept.
    """

    model: nn.Module
    measured: Measured = field(default_factory=Measured)
    content: Any = None
    edit: SpinEdit | None = None  # of its weights, applied
    tops: dict[str, dict[str, TopWeights]] = field(default_factory=dict)  # of the sets that the edit was made of


class Tuning(ABC):
    """A defence of a language model: built from its YAML, called once a cell."""

    name: str

    @property
    def trains(self) -> bool:
        """Whether it trains on the owner's pairs."""
        return False

    @property
    def full_precision(self) -> bool:
        """Whether the model's own weights must be float32: it trains them, or merges what it trains into them."""
        return False

    @property
    def contrast(self) -> Literal["prompt", "any"] | None:
        """Whether each pair that it trains on stands against a response of the other split, and to which prompt."""
        return None

    @property
    def coupled(self) -> list[str]:
        """The dimensions whose common weights it edits; none: it returns no edit, and no top weights."""
        return []

    @property
    def changes(self) -> bool:
        """Whether it changes the model at all: if not, the model is not measured a second time."""
        return True

    @property
    def sets(self) -> list[Draw]:
        """The pairs whose ``rows`` it asks its owner for."""
        return []

    def check(self, model: nn.Module, *, merged: bool = False) -> None:  # noqa: B027  most tune any model
        """Raise `InputError` for a model that it cannot tune as is needed, before anything is measured.

        Args:
            model: that is to be tuned.
            merged: the tuned weights are needed without an adapter beside them.
        """

    @abstractmethod
    def tune(self, owner: ModelOwner) -> Tuned:
        """Train, edit, or leave the model as it is."""


def require_choice(part: object, where: str, *keys: str) -> None:
    """Raise `InputError` where a field is none of the values that its annotation, a ``Literal``, names.

    Args:
        part: an object of a dataclass.
        where: the config section that it stands in.
        *keys: its fields.
    """
    hints = get_type_hints(type(part))
    for key in keys:
        if (value := getattr(part, key)) not in (known := get_args(hints[key])):
            raise InputError(f"{where}.{key}={value}: must be one of {', '.join(known)}")


def require_base(part: object, base: type, where: str) -> None:
    """Raise `InputError` for a part that does not inherit from the base class of its kind."""
    if not isinstance(part, base):
        raise InputError(
            f"{where}: {type(part).__name__} is no {base.__name__}: let it inherit from "
            f"{base.__module__}.{base.__qualname__}"
        )
