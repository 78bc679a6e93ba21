"""The configs that exist: listing, checking and explaining them. Hydra and omegaconf are the heaviest imports here."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from fairpriv.errors import InputError
from fairpriv.schema import Config, check, nearest

HIDDEN_GROUPS = ("hydra", "paths")  # nothing to choose from


def groups(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Every config group with its options, ``{group: {option: file}}``; later folders win."""
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for file in sorted(folder.glob("*/*.yaml")):
            found.setdefault(file.parent.name, {})[file.stem] = file
    return {name: options for name, options in sorted(found.items()) if name not in HIDDEN_GROUPS}


def describe(file: Path) -> str:
    """The first comment of a YAML file that is no directive: what the option is."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ")
        if line and not line.startswith("#"):
            break
    return ""


def list_configs(folders: Sequence[Path], words: Sequence[str]) -> int:
    """Print the options of every group, or of the groups named; returns the exit status."""
    known = groups(folders)
    for word in words:
        if word not in known:
            raise InputError(f"ls {word}: there is no such group{nearest(word, known)}; there are {', '.join(known)}")
    for name in words or known:
        print(name)
        width = max(len(option) for option in known[name])
        for option, file in known[name].items():
            print(f"  {option:<{width}}  {describe(file)}".rstrip())
    return 0


def register_schema() -> None:
    """Make the root's dataclass known to Hydra, under the name that config.yaml's defaults list gives it."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="fairpriv_schema", node=Config)


def compose(conf: Path, folders: Sequence[Path], overrides: Sequence[str]) -> Any:
    """The config that the command line would make of ``overrides``, outside a Hydra run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register_schema()
    search = [f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in folders)}]"] if folders else []
    with initialize_config_dir(str(conf), version_base="1.3"):
        return hydra_compose("config", [*search, *overrides])


def validate(conf: Path, folders: Sequence[Path], *, deep: bool) -> int:
    """Compose every option of every group and check keys, types and targets; returns the exit status (0 or 2)."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    known = groups([conf, *folders])
    # One composition takes about 0.1 s, so options of different groups share it; experiments may override them.
    words = {group: [f"{group}={option}" for option in options] for group, options in known.items()}
    alone = [[word] for group in ("experiment", "debug") for word in words.pop(group, [])]
    together = [[word for word in row if word] for row in itertools.zip_longest(*words.values())]

    def problem(overrides: list[str]) -> str | None:
        try:
            cfg = compose(conf, folders, overrides)
            check(plain(cfg), missing_allowed=True)
            if deep:
                _try(plain(cfg))
        except InputError as error:
            return str(error)
        except (HydraException, OmegaConfBaseException) as error:
            return explain(error, conf, folders, overrides)
        return None

    problems = []
    for overrides in alone + together:
        if text := problem(overrides):  # whose fault it is shows one at a time
            each = [f"{override}: {p}" for override in overrides if (p := problem([override]))]
            problems += each or [f"{' '.join(overrides)}: {text}"]
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    print(f"{sum(map(len, known.values()))} configs checked, {len(problems)} with problems")
    return 2 if problems else 0


def plain(cfg: Any) -> dict[str, Any]:
    """A composed config as plain containers with interpolations resolved; ``???`` stays as it is."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _try(config: dict[str, Any]) -> None:
    """Open the data, build the model and run five samples through it; a dataset that waits for a file is left alone."""
    if MISSING in str(config["dataset"]):
        return
    import torch
    from hydra.utils import instantiate

    dataset = instantiate(config["dataset"], _convert_="all")
    table = dataset.load()
    features = dataset.encode(table.features).transform(table.features.head(5))
    net = instantiate(config["model"], features.shape[1], len(table.label_names), _convert_="all").eval()
    logits = net(torch.as_tensor(features))
    if tuple(logits.shape) != (5, len(table.label_names)):
        raise InputError(f"model gives {tuple(logits.shape)} for five samples, not (5, {len(table.label_names)})")


def explain(error: Exception, conf: Path, folders: Sequence[Path], overrides: Sequence[str]) -> str:
    """One line for an error of Hydra or omegaconf: the full key, and the nearest right one."""
    text = "\n".join(str(e) for e in _chain(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if option := re.search(r"Could not find '([\w/.-]+)/([^/']+)'", text):
        group, name = option.groups()
        known = groups([conf, *folders]).get(group, {})
        return f"{group}={name}: there is no such {group}{nearest(name, known)}; there are {', '.join(known)}"
    key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{ambiguous[1]}: several values make a grid, which needs -m; a list is written key=[a,b]"
    if re.search(r"[Kk]ey '[^']*' (is )?not in ", text) and (key or unknown):
        name = (key or unknown)[1]  # type: ignore[index]
        return f"unknown key {name}{nearest(name, _known_keys(conf, folders, overrides))}"
    reasons = [line for line in lines if line.startswith(("Value ", "Cannot convert", "field"))]
    if key and reasons:
        return f"{key[1]}: {reasons[0]}"
    return "; ".join(line for line in lines[:2] if not line.startswith("Set the environment"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _known_keys(conf: Path, folders: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    """Every dotted key of the config with the groups chosen on the command line, else of the default config."""
    from hydra.core.global_hydra import GlobalHydra

    choices = [w for w in overrides if re.fullmatch(r"\w+=\w+", w)]
    for attempt in (choices, []):
        GlobalHydra.instance().clear()
        try:
            return list(_flatten(plain(compose(conf, folders, attempt))))
        except Exception:  # the choices themselves are wrong: fall back to the defaults
            continue
    return []


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
