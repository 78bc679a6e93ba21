"""What a language model's defence is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from fairpriv.language_models.data.tokens import Encoded
from fairpriv.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fairpriv.editing import SpinEdit
    from fairpriv.functional.coupling import TopWeights


@dataclass(frozen=True)
class ModelOwner:
    """A language model's side of one cell: the model, what it may be tuned on, and the means to train.

    Attributes:
        model: in eval mode, free to be changed in place.
        tokenizer: its tokenizer.
        pad_id: the token id that fills up shorter rows.
        seed: of the cell; a defence derives every random choice from it.
        pairs: the encoded training pairs, and how many were dropped as too long; drawn at the first call.
        fit: ``fairpriv.language_models.models.causal_lm.fit_causal_lm`` with trainer and logger given.
        keep: keeps a model or adapter in the cell's folder, by ``save_pretrained``.
        rows: encoded pairs by dimension, split and number (None: all), drawn by the cell's seed.
        file: the path of a file that the cell keeps, by name.
        store: keeps what several cells would make alike.
        origin: plain data that tells what ``model`` is before anything changed it.
        name: what people call it, as on the hub.
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

    def untouched(self) -> Tuned:
        """The model, as a defence that does nothing returns it."""
        return Tuned(self.model)


@dataclass
class Tuned:
    """A language model after its defence, and what the defence has to report (metric name -> value)."""

    model: nn.Module
    metrics: dict[str, float] = field(default_factory=dict)
    degenerate: list[str] = field(default_factory=list)  # why the outcome is trivial, one sentence each
    edit: SpinEdit | None = None  # of its weights, applied
    tops: dict[str, dict[str, TopWeights]] = field(default_factory=dict)  # of the sets that the edit was made of


class Tuning(Protocol):
    """A defence of a language model: built from its YAML, called once a cell."""

    name: str

    @property
    def trains(self) -> bool:
        """Whether it trains on the owner's pairs."""
        ...

    def tune(self, owner: ModelOwner) -> Tuned:
        """Train, edit, or leave the model as it is."""
        ...
