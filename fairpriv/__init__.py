"""Measure, attack and mend the trade-offs between fairness, privacy and other dimensions of models."""

__version__ = "0.1.0"
