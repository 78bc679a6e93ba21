"""An earlier address of `fit_pool`."""
