"""Data: where files come from, tables of typed features, and the distributions of the game."""
