"""Pure tensor functions of the mathematics: no config, no training."""

from fairpriv.functional.bounds import accuracy_gap_bound, balanced_accuracy_gap_bound, label_recall, label_shift
from fairpriv.functional.coupling import TopWeights, coupled_weights, selected, smallest_ratio, top_weights
from fairpriv.functional.fairness import (
    equalized_odds_gap,
    equalized_odds_gaps,
    equalized_odds_penalty,
    group_counts,
    group_rates,
    label_gaps,
    permuted_counts,
    shift_weight,
    total_variation,
)
from fairpriv.functional.hsic import hsic, hsic_change, hsic_test
from fairpriv.functional.importance import importance_scores, iter_importance_scores
from fairpriv.functional.intervals import (
    accuracy_gap_bound_interval,
    balanced_accuracy_gap_bound_interval,
    delta_intervals,
    effective_rows,
    equalized_odds_interval,
    mcnemar,
    mean_rate_gap_interval,
    mean_rate_interval,
    paired_rate_difference_interval,
    wilson_interval,
)

__all__ = [
    "TopWeights",
    "accuracy_gap_bound",
    "accuracy_gap_bound_interval",
    "balanced_accuracy_gap_bound",
    "balanced_accuracy_gap_bound_interval",
    "coupled_weights",
    "delta_intervals",
    "effective_rows",
    "equalized_odds_gap",
    "equalized_odds_gaps",
    "equalized_odds_interval",
    "equalized_odds_penalty",
    "group_counts",
    "group_rates",
    "hsic",
    "hsic_change",
    "hsic_test",
    "importance_scores",
    "iter_importance_scores",
    "label_gaps",
    "label_recall",
    "label_shift",
    "mcnemar",
    "mean_rate_gap_interval",
    "mean_rate_interval",
    "paired_rate_difference_interval",
    "permuted_counts",
    "selected",
    "shift_weight",
    "smallest_ratio",
    "top_weights",
    "total_variation",
    "wilson_interval",
]
