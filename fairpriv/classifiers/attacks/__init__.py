"""Attacks of the distribution-inference game: one file each, with ``run(game) -> AttackResult``."""
