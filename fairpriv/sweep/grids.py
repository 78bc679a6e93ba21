"""The cells of a sweep: a product of choices, or the union of several."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fairpriv.config.compose import bare_or_quoted


def cells(
    params: Mapping[str, Any], grids: Sequence[Mapping[str, Any]], given: Sequence[Override], loader: ConfigLoader
) -> list[list[str]]:
    """List the overrides of every cell: the union of the products of ``params`` with each of ``grids``.

    Without grids this is Hydra's own sweep. Overrides of the command line apply to all grids, with three exceptions:

    - a config group that a grid sets selects among the grid's values: a grid with none of them is left out, and a
      combination that no grid has is a grid of its own, made of ``params``;
    - several values of another key that some grids set replace its values there, and change no other grid; a single
      value is also set in the other grids' cells of the same defences (`left_alone` names the rest);
    - ``arms.NAME.KEY`` sets KEY in the cells with ``defense=NAME`` alone.

    Args:
        params: key to values in Hydra's syntax (``1,2``, ``range(0,3)``, ``glob(*)``), for all grids.
        grids: the same, each for one grid; they go before ``params``.
        given: the overrides of the command line.
        loader: the config loader, which knows the config groups.

    Returns:
        Cells in the order of the grids, without duplicates.

    Raises:
        HydraException: a key is given an interval, which has no values to list.
    """
    parser = OverridesParser.create(loader)
    grids = grids or [{}]
    arms = [override for override in given if override.get_key_element().startswith("arms.")]
    given = [override for override in given if override not in arms]
    words = {override.get_key_element(): choices(override) for override in given}
    groups = {
        key: values
        for key, values in words.items()
        if any(key in grid for grid in grids) and loader.get_group_options(key)
    }

    def rows(grid: Mapping[str, Any]) -> dict[str, list[str]]:
        texts = {key: "null" if value is None else value for key, value in {**params, **grid}.items()}
        overrides = parser.parse_overrides([f"{key}={text}" for key, text in texts.items()])
        return {override.get_key_element(): choices(override) for override in overrides}

    chosen: list[dict[str, list[str]]] = []
    left = dict.fromkeys(itertools.product(*groups.values()))  # combinations that no grid has
    for grid in grids:
        row = rows(grid)
        row |= {key: [v for v in values if key not in grid or v in row[key]] for key, values in groups.items()}
        for combination in itertools.product(*(row[key] for key in groups)):
            left.pop(combination, None)
        chosen.append(row)
    own = [rows({}) | {key: [value] for key, value in zip(groups, values, strict=True)} for values in left]
    chosen = [row for row in chosen if all(row.values())]
    single: list[tuple[str, set[str]]] = []  # a word, and the defences of the grids that set its key
    for key, values in words.items():
        if key not in groups:
            setting = [row for row in chosen if key in row]
            for row in [*(setting or chosen), *own]:
                row[key] = values
            if len(values) == 1:
                single.append((f"{key}={values[0]}", {arm for row in setting for arm in row.get("defense", [""])}))
    found: dict[frozenset[str], list[str]] = {}
    for row in [*chosen, *own]:
        for combination in itertools.product(*row.values()):
            cell = [f"{key}={value}" for key, value in zip(row, combination, strict=True)]
            cell += [word for word, arms_of in single if word not in cell and _arm(cell) in arms_of]
            found.setdefault(frozenset(cell), cell)
    listed = list(found.values())
    for override in arms:
        listed = list({frozenset(cell): cell for cell in _in_arm(override, listed)}.values())
    return listed


def left_alone(cells: Sequence[list[str]], given: Sequence[Override]) -> Iterator[str]:
    """Tell of each override of the command line that some cells do not have, and how they get it.

    Args:
        cells: what `cells` listed.
        given: the overrides of the command line.

    Yields:
        A line for each such override.
    """
    for override in given:
        key = override.get_key_element()
        without = [cell for cell in cells if not any(word.startswith(f"{key}=") for word in cell)]
        if 0 < len(without) < len(cells):
            arms = ", ".join(dict.fromkeys(filter(None, map(_arm, without))))
            kept = f"{key}: {len(without)} of {len(cells)} cells keep their own, since their grids do not set it"
            yield kept + (f" (defense={arms}): arms.NAME.{key}=VALUE does" if arms else "")


def distinct(cells: list[list[str]], config: DictConfig, loader: ConfigLoader) -> list[list[str]]:
    """Leave out cells whose config is an earlier one's: where grids overlap, one may say what is another's default.

    Nothing is composed where all cells set the same keys, so that their values tell them apart.
    """
    if len({frozenset(word.partition("=")[0] for word in cell) for cell in cells}) < 2:
        return cells
    found: dict[str, list[str]] = {}
    for cell in cells:
        said: Any = OmegaConf.to_container(loader.load_sweep_config(config, list(cell)), enum_to_str=True)
        del said["hydra"]
        found.setdefault(json.dumps(said, sort_keys=True, default=str), cell)
    return list(found.values())


def _in_arm(override: Override, cells: Sequence[list[str]]) -> list[list[str]]:
    """Set the key of ``arms.NAME.KEY`` in the cells of that arm, once for each value."""
    _, name, key = [*override.get_key_element().split(".", 2), ""][:3]
    arms = {word.partition("=")[2] for cell in cells for word in cell if word.startswith("defense=")}
    if name not in arms or not key:
        word = f"{override.get_key_element()}={','.join(choices(override))}"
        raise HydraException(
            f"{word}: no cell of the grid is of that arm; arms.NAME.KEY names a defence that it sets "
            f"({', '.join(sorted(arms)) or 'it sets none'}) and a key"
        )
    found = []
    for cell in cells:
        if f"defense={name}" not in cell:
            found.append(cell)
            continue
        rest = [word for word in cell if word.partition("=")[0] != key]
        found += [[*rest, f"{key}={value}"] for value in choices(override)]
    return found


def _arm(cell: Sequence[str]) -> str:
    """Return the defence that a cell sets, or nothing."""
    return next((word.partition("=")[2] for word in cell if word.startswith("defense=")), "")


def choices(override: Override) -> list[str]:
    """List the values that an override gives, as Hydra writes them."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line}: an interval cannot be listed; a grid needs values")
    # Hydra drops the quotes of choice('...'), and escapes less than its grammar needs.
    return [
        bare_or_quoted(value) if isinstance(value, str) else Transformer.str(value)
        for value in override.sweep_iterator()
    ]
