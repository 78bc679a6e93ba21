"""Hydra plugins of fairpriv, in the one package where Hydra looks for them."""
