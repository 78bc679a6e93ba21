"""No defence."""

from __future__ import annotations

from dataclasses import dataclass

from fairpriv.defenses.defense import Defended, PoolOwner, Victim
from fairpriv.modules.pool import Pool


@dataclass
class Undefended:
    """The base model as it is: trained on G_b and nothing else."""

    name: str = "none"

    def defend(self, victim: Victim) -> Defended:
        """Return the base model."""
        return Defended(victim.base())

    def defend_pool(self, owner: PoolOwner) -> Pool:
        """Return the base models."""
        return owner.base()
