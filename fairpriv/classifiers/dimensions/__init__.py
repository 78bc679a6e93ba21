"""Dimensions of a classifier: what is traded off, each a probe that measures one defended model."""
