"""Classifiers: what they are trained on, how they are defended and attacked, and what is measured of them."""
