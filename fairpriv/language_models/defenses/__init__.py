"""Defences of language models."""
