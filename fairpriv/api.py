"""Configs and results from Python: ``fairpriv.compose`` and ``fairpriv.load_results``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairpriv.config import compose as configs
from fairpriv.config.plugins import CONF, own_configs, plugin_folders, refuse_hidden
from fairpriv.errors import InputError
from fairpriv.report.finding import NOT_FINISHED, find_results
from fairpriv.report.selection import flat

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pandas import DataFrame

log = logging.getLogger(__name__)
Place = str | Path


def compose(overrides: Sequence[str] = (), *, config_dirs: Sequence[Place] = ()) -> DictConfig:
    """Compose the config of one cell, as the command line does.

    Args:
        overrides: as on the command line, such as ``["dataset=german", "seed=1"]``.
        config_dirs: folders of your own configs, as for ``--config-dir``.

    Returns:
        The config, which `fairpriv.run` takes; it may be changed first.

    Raises:
        InputError: an override or a config is wrong, or asks for a grid.
    """
    if isinstance(overrides, str):
        raise InputError(f"{overrides!r}: overrides are a list, such as ['dataset=german', 'seed=1']")
    folders = own_configs(config_dirs)
    refuse_hidden(CONF, [*plugin_folders(), *folders])
    configs.refuse_no_names(CONF, overrides)
    try:
        configs.refuse_merged_parts([CONF, *plugin_folders(), *folders], overrides)
        if configs.is_grid(CONF, folders, overrides):
            raise InputError(f"{' '.join(overrides)}: is a grid of cells, which the command line runs: fairpriv ...")
        composed: DictConfig = configs.compose(CONF, folders, overrides)
    except configs.CONFIG_ERRORS as error:
        raise InputError(configs.explain(error, CONF, folders, overrides)) from None
    return composed


def load_results(places: Place | Sequence[Place], *, all_keys: bool = False) -> DataFrame:
    """Load every result below one folder or several, found as `fairpriv compare` finds them.

    Args:
        places: folders, such as ``outputs``.
        all_keys: return every config key, instead of those that differ and the names of dataset, model and defence.

    Returns:
        A row for each cell, the oldest first: ``id``, ``status``, ``error``, ``degenerate`` (the reasons, joined),
        ``control`` (why it is a null control, whose leakage is no merit of a defence; else empty), dotted config keys
        (lists as tuples), metrics by their names, and the ends of their 95 % intervals as ``NAME.low`` and
        ``NAME.high``. Values that a cell lacks are missing (NaN or None).

    Raises:
        InputError: there is no such folder, or no result in it.
    """
    from pandas import DataFrame

    folders = [Path(place) for place in ([places] if isinstance(places, str | Path) else places)]
    results, skipped = find_results(folders)
    for file, reason in skipped:
        if reason != NOT_FINISHED:
            log.warning("%s is left out: %s", file, reason)
    if not results:
        raise InputError(f"no result of fairpriv below {', '.join(map(str, folders))}: run an experiment first")
    leaves = [{key: _cell(value) for key, value in flat(result.config)} for result in results]
    keys = dict.fromkeys(key for leaf in leaves for key in leaf)
    named = {"dataset.name", "model.name", "defense.name", "seed"}
    shown = [key for key in keys if all_keys or key in named or len({leaf.get(key, "absent") for leaf in leaves}) > 1]
    rows = []
    for result, leaf in zip(results, leaves, strict=True):
        row: dict[str, Any] = {"id": result.id, "status": result.status, "error": result.error}
        row |= {"degenerate": "; ".join(result.degenerate), "control": result.control or ""}
        row |= {key: leaf.get(key) for key in shown} | result.metrics
        for name, (low, high) in result.intervals.items():
            row |= {f"{name}.low": low, f"{name}.high": high}
        rows.append(row)
    names = ("metrics", "intervals")
    measured = dict.fromkeys(name for part in names for result in results for name in getattr(result, part))
    numbers = [*measured, *(f"{name}.{end}" for name in measured for end in ("low", "high"))]
    table = DataFrame(rows)
    return table.astype({name: "float64" for name in numbers if name in table})


def _cell(value: Any) -> Any:
    """Convert a config value to one that can be grouped by."""
    if isinstance(value, list):
        return tuple(map(_cell, value))
    return json.dumps(value) if isinstance(value, dict) else value
