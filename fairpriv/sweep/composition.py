"""Composition of a grid's cells at a fraction of Hydra's cost."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig


@contextlib.contextmanager
def shared_composition() -> Iterator[None]:
    """Let Hydra, within the block, compose each cell from a similar one where they differ in plain values only.

    Hydra composes every cell twice, once to check the grid and once to run it, and each time takes about a tenth of a
    second, as long as a small cell trains. ``python tests/bench_sweep.py`` shows a cell's whole cost here beside those
    two compositions. Upstream: https://github.com/hydra-ecosystem/hydra/issues/1324

    Here the first cell of each form is kept. A form is the cell's overrides, without the values of those that set a
    plain value. Another cell of the form puts its own values into a copy, as Hydra does in its own last step.
    """
    compose = ConfigLoaderImpl.load_sweep_config
    first: dict[tuple[str, ...], tuple[list[Override], bytes]] = {}
    groups: dict[str, bool] = {}

    def load_sweep_config(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        def is_group(key: str) -> bool:
            return groups.setdefault(key, bool(key not in groups and self.get_group_options(key)))

        words = OverridesParser.create().parse_overrides(list(sweep_overrides))
        key = form(words, is_group)
        if key not in first:
            config = compose(self, master_config, sweep_overrides)
            first[key] = words, pickle.dumps(config)
            return config
        firsts, kept = first[key]
        config = pickle.loads(kept)
        changed = [own for own, other in zip(words, firsts, strict=True) if own.input_line != other.input_line]
        ConfigLoaderImpl._apply_overrides_to_config(changed, config)
        of_task = [word for word in words if not word.is_hydra_override()]
        config.hydra.overrides.task = [word.input_line for word in of_task]
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            of_task, exclude_keys=naming.exclude_keys, item_sep=naming.item_sep, kv_sep=naming.kv_sep
        )
        return config

    ConfigLoaderImpl.load_sweep_config = load_sweep_config  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_sweep_config = compose  # type: ignore[method-assign]


def form(words: list[Override], is_group: Callable[[str], bool]) -> tuple[str, ...]:
    """Return a cell's overrides without the values of plain ones, in which cells of one form differ."""
    keys = [word.key_or_group for word in words if not is_group(word.key_or_group)]
    nested = any(one.startswith(f"{other}.") for one in keys for other in keys)  # which overlap, so that order counts

    def sets_plain_value(word: Override) -> bool:
        return (
            word.type is OverrideType.CHANGE
            and word.package is None
            and isinstance(word.value(), str | int | float | bool | None)
            and not word.is_hydra_override()
            and not is_group(word.key_or_group)
        )

    return tuple(
        f"{word.key_or_group}=" if not nested and sets_plain_value(word) else str(word.input_line) for word in words
    )
