"""Where `fit_pool` was found before classifiers had a wing of their own; it keeps importing from here."""

from fairpriv.classifiers.nets.pool import Pool, fit_pool

__all__ = ["Pool", "fit_pool"]
