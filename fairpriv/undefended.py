"""The absence of a defence, for models of either kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fairpriv.classifiers.contract import Defense
from fairpriv.language_models.contract import ModelOwner, Tuned, Tuning


@dataclass
class Undefended(Defense, Tuning):
    """The model as it is: a classifier trained on G_b and nothing else, a language model as it was pretrained."""

    kind: ClassVar[str] = "none"

    name: str = "none"

    def defend(self, owner: Any) -> Any:
        """Return the classifier that its owner trained on G_b."""
        return owner.untouched()

    def defend_pool(self, owner: Any) -> Any:
        """Return the classifiers that their owner trained on their own worlds."""
        return owner.base()

    @property
    def changes(self) -> bool:
        """Whether it changes a language model, which it never does."""
        return False

    def tune(self, owner: ModelOwner) -> Tuned:
        """Return the owner's language model unchanged."""
        return owner.untouched()
