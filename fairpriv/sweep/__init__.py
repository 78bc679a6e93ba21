"""Sweeps: progress and outcome of a grid of cells."""
