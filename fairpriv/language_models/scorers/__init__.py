"""Scorers, which measure a dimension without a judge."""
