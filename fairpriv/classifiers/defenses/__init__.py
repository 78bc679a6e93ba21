"""Defences: thin objects that train or tune a model."""
