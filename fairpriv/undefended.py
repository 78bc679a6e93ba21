"""No defence, of a model of either kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fairpriv.classifiers.contract import Defense


@dataclass
class Undefended(Defense):
    """The model as it is: a classifier trained on G_b and nothing else, a language model as it was pretrained."""

    kind: ClassVar[str] = "none"

    name: str = "none"
    trains: ClassVar[bool] = False  # on a language model's pairs

    def defend(self, owner: Any) -> Any:
        """Return the classifier that its owner trained on G_b."""
        return owner.untouched()

    def defend_pool(self, owner: Any) -> Any:
        """Return the classifiers that their owner trained on their own worlds."""
        return owner.base()

    def tune(self, owner: Any) -> Any:
        """Return the language model that its owner has."""
        return owner.untouched()
