"""Judges, which say whether a response is safe."""
