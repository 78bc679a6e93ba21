"""Sources of configs and classes: those of fairpriv, of a ``--config-dir`` folder, and of installed packages."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from fairpriv.config.schema import forget_sources
from fairpriv.errors import InputError

CONF = next(p for p in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf") if p.is_dir())
ENTRY_POINTS = "fairpriv.plugins"  # entry points, each of a package with a folder conf
# What Hydra does not read as the name of an option, but as a number, a truth value or nothing.
NO_NAME = re.compile(r"[+-]?(?:inf|nan|\.?\d[\d._]*(?:e[+-]?\d+)?)|null|true|false", re.IGNORECASE)
_on_path: set[str] = set()  # folders of configs


@cache
def plugin_folders() -> tuple[Path, ...]:
    """Find the ``conf`` folders of installed plug-ins, without importing any.

    Raises:
        InputError: a plug-in has no such folder.
    """
    folders = []
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.value):
        top, *rest = entry.module.split(".")
        spec = find_spec(top)
        places = [Path(place, *rest, "conf") for place in (spec and spec.submodule_search_locations) or ()]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise InputError(
                f"the entry point {entry.name} = {entry.value} of {ENTRY_POINTS}: there is no package {entry.module} "
                f"with a folder conf: mend or uninstall {entry.dist.name if entry.dist else 'it'}"
            )
        folders.append(found)
    return tuple(dict.fromkeys(folders))


def put_on_path(folder: Path) -> None:
    """Let ``_target_`` name the classes of a folder's Python files; installed packages take precedence.

    Raises:
        InputError: a file has the name of another module, which would be imported in its place.
    """
    place = str(folder.resolve())
    _on_path.add(place)
    if place in sys.path:
        return
    for file in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        name = file.parent.name if file.stem == "__init__" else file.stem
        if "." in name:  # which no module is called
            continue
        spec = find_spec(name)
        if spec is not None and Path(spec.origin or "").resolve() != file.resolve():
            raise InputError(f"{file}: Python has a module {name} ({spec.origin}), which goes first: rename it")
    sys.path.append(place)  # the end: a folder model/ beside configs hides no package of that name
    forget_sources()


def foreign_code() -> bool:
    """Return whether a ``--config-dir`` folder or a plug-in has Python files, or names classes that are not ours."""
    folders = [*map(Path, _on_path), *plugin_folders()]
    if any(any(folder.glob(pattern)) for folder in folders for pattern in ("*.py", "*/__init__.py")):
        return True
    texts = (
        file.read_text(encoding="utf-8", errors="replace") for folder in folders for file in folder.glob("*/*.yaml")
    )
    return any(re.search(r"_target_['\"]?\s*:\s*['\"]?(?!fairpriv\.)\w", text) for text in texts)


def own_configs(folders: Sequence[str | Path]) -> list[Path]:
    """Make the Python files in folders of a user's own configs importable; return the folders.

    Raises:
        InputError: a folder does not exist.
    """
    found = [Path(folder) for folder in folders]
    for folder in found:
        if not folder.is_dir():
            raise InputError(f"--config-dir {folder}: there is no such folder")
        if not os.access(folder, os.R_OK | os.X_OK):  # its configs would be overlooked
            raise InputError(f"--config-dir {folder}: cannot be read (permission denied)")
        put_on_path(folder)
    return found


def refuse_hidden(conf: Path, folders: Sequence[Path]) -> None:
    """Raise `InputError` for a config of ``folders`` that cannot be found or read.

    It has another's name, of which Hydra would take the first; its name is a number for Hydra; or it is in another
    encoding than UTF-8.
    """
    first: dict[Path, Path] = {}
    for folder in (conf, *folders):
        for file in sorted(folder.glob("*/*.yaml")):
            if (other := first.setdefault(file.relative_to(folder), folder)) != folder:
                owner = "fairpriv" if other == conf else other
                raise InputError(f"{file}: {owner} has a {file.parent.name} of that name, which goes first: rename it")
            if folder != conf:
                if NO_NAME.fullmatch(file.stem) and (conf / file.parent.name).is_dir():
                    raise InputError(f"{file}: {file.stem} is read as a value, and not as a name: rename it")
                try:
                    file.read_text(encoding="utf-8")
                except UnicodeDecodeError as error:
                    line = error.object[: error.start].count(b"\n") + 1
                    raise InputError(f"{file}, line {line}: is not UTF-8: save it in that encoding") from None
