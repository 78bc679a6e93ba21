"""Measure, attack and mend the trade-offs between fairness, privacy and other dimensions of models.

Names load when they are first used, so that ``import fairpriv`` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairpriv.api import compose, load_results
    from fairpriv.classifiers.equalized_odds import EqualizedOddsGap
    from fairpriv.classifiers.nets.pool import Pool, fit_pool
    from fairpriv.editing import SpinEdit
    from fairpriv.functional import (
        accuracy_gap_bound,
        coupled_weights,
        equalized_odds_gap,
        equalized_odds_penalty,
        group_rates,
        hsic,
        importance_scores,
        label_shift,
        shift_weight,
        top_weights,
    )
    from fairpriv.language_models.defenses.spin_callback import SpinCallback
    from fairpriv.run import run

__version__ = "0.1.0"
__all__ = [
    "EqualizedOddsGap",
    "Pool",
    "SpinCallback",
    "SpinEdit",
    "accuracy_gap_bound",
    "compose",
    "coupled_weights",
    "equalized_odds_gap",
    "equalized_odds_penalty",
    "fit_pool",
    "group_rates",
    "hsic",
    "importance_scores",
    "label_shift",
    "load_results",
    "run",
    "shift_weight",
    "top_weights",
]
_ELSEWHERE = {  # the names that are not in fairpriv.functional
    "EqualizedOddsGap": "fairpriv.classifiers.equalized_odds",
    "Pool": "fairpriv.classifiers.nets.pool",
    "SpinCallback": "fairpriv.language_models.defenses.spin_callback",
    "SpinEdit": "fairpriv.editing",
    "compose": "fairpriv.api",
    "fit_pool": "fairpriv.classifiers.nets.pool",
    "load_results": "fairpriv.api",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "run":  # the module, which can be called: one object, whoever imports it first
        return import_module("fairpriv.run")
    if name not in __all__:
        raise AttributeError(f"module 'fairpriv' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "fairpriv.functional")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
