"""Attacks of the distribution-inference game: one file each, ``run(game) -> AttackResult``."""
