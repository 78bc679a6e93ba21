"""Defences: thin objects that say how a model is trained or tuned."""
