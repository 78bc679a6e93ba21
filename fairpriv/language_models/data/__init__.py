"""Pairs of prompt and response, and their tokens."""
