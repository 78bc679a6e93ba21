"""Classifiers: their datasets, networks, defences, attacks and measures."""
