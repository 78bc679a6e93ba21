"""Datasets of classifiers (tables, texts and images with labels and sensitive groups), and the rows of the game."""
