"""Dimensions of a classifier, which are traded off; each is a probe that measures one defended model."""
