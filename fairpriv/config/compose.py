"""The available configs: listing, checking and explaining them. Hydra and omegaconf are the heaviest imports here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

from fairpriv import patches
from fairpriv.config.plugins import NO_NAME, plugin_folders
from fairpriv.config.schema import TASKS, nearest, of_other_task, tasks_of
from fairpriv.errors import InputError, typed

Part = TypeVar("Part")

HIDDEN_GROUPS = ("hydra", "paths", "published")  # nothing to choose from
SECTIONS = {
    "dimension": "dimensions",
    "engine": "evaluation",
}  # where a group's choice stands, if not under its own name
_LAUNCHERS = {  # of other packages: the extra of ours that installs them, and the package
    "submitit_local": ("slurm", "hydra-submitit-launcher"),
    "submitit_slurm": ("slurm", "hydra-submitit-launcher"),
}
CONFIG_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)  # what a wrong config or override raises


def groups(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Find every config group with its options, ``{group: {option: file}}``; later folders win."""
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for file in sorted(folder.glob("*/*.yaml")):
            found.setdefault(file.parent.name, {})[file.stem] = file
    return {name: options for name, options in sorted(found.items()) if name not in HIDDEN_GROUPS}


def describe(file: Path) -> str:
    """Read what the option is: the first sentence of its YAML file's first comment that is no directive."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("# @")]
    comment = [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    text = ""
    for line, after in zip(comment, [*comment[1:], ""], strict=False):
        end = re.search(r"(?<!et al)[.;:?!](?=\s|$)", line) if text else None
        text = f"{text} {line[: end.start()] if end else line}".strip()
        # A line that stops short of the margin, before a capital letter, has ended without a full stop.
        if end or not after or text[-1] in ".:;?!" or (len(line) < 100 and not after[0].islower()):
            break
    return text


def list_configs(folders: Sequence[Path], words: Sequence[str]) -> int:
    """Print the options of every group, or of the groups named; return the exit status."""
    known = groups(folders)
    for word in words:
        if word not in known:
            raise InputError(f"ls {word}: there is no such group{nearest(word, known)}; there are {', '.join(known)}")
    for name in words or known:
        print(name)
        width = max(len(option) for option in known[name])
        mixed = name in TASKS["classifier"].parts
        for option, file in known[name].items():
            tasks = tasks_of(name, target_of(known[name], option)) if mixed else []
            whose = "any task" if len(tasks) == len(TASKS) else " and ".join(tasks)
            print(f"  {option:<{width}}  {f'{whose:<14}  ' if mixed else ''}{describe(file)}".rstrip())
    return 0


def target_of(options: Mapping[str, Path], name: str) -> str:
    """Find the class that an option names, itself or through an option in its defaults list."""
    from omegaconf import OmegaConf

    read: Any = None
    with contextlib.suppress(*CONFIG_ERRORS, UnicodeDecodeError):  # an error that composing it will report
        read = OmegaConf.to_container(OmegaConf.load(options[name]))
    read = read if isinstance(read, dict) else {}
    parents = [parent.partition("@")[0] for parent in read.get("defaults", []) if isinstance(parent, str)]
    parents = [parent for parent in parents if parent in options]
    return str(
        read.get("_target_") or next((found for p in parents if p != name and (found := target_of(options, p))), "")
    )


def show_configs(folders: Sequence[Path], options: Sequence[str]) -> int:
    """Print the files of options, each given as ``group=name``, and of those of the group in their defaults lists.

    Returns:
        The exit status, 0.

    Raises:
        InputError: there is no such option; names the nearest one.
    """
    known = groups(folders)
    for option in options:
        group, _, name = option.partition("=")
        if group not in known:
            raise InputError(
                f"show {option}: there is no group {group}{nearest(group, known)}; there are {', '.join(known)}"
            )
        if name not in known[group]:
            raise InputError(
                f"show {option}: there is no such {group}{nearest(name, known[group])}; "
                f"there are {', '.join(known[group])}"
            )
        names = [name]
        for one in names:  # which grows by the files that these begin with
            file = known[group][one]
            text = file.read_text(encoding="utf-8")
            print(f"# {file}\n{text}")
            inside = [other for where, other in _defaults(text, group) if where == group and other in known[group]]
            names += [other for other in inside if other not in names]
    return 0


def _defaults(text: str, group: str) -> list[tuple[str, str]]:
    """List group and option of each config that the defaults list of a group's file names, wherever it is put."""
    from omegaconf import OmegaConf

    read: Any = None
    with contextlib.suppress(*CONFIG_ERRORS):  # an error that composing it will report
        read = OmegaConf.to_container(OmegaConf.create(text)) if "defaults" in text else None
    listed = read.get("defaults") if isinstance(read, dict) else None
    found = []
    for item in listed if isinstance(listed, list) else []:
        for key, options in item.items() if isinstance(item, dict) else [(f"/{group}", item)]:
            where = key.split()[-1].partition("@")[0].rpartition("/")[2]
            named = options if isinstance(options, list) else [options]
            found += [(where, str(option).partition("@")[0]) for option in named]
    return found


@functools.cache
def prepare_hydra() -> None:
    """Register the root's dataclasses with Hydra, by the names that defaults lists of tasks use, and spare it work."""
    from hydra.core.config_store import ConfigStore

    patches.compose_with_less_work()
    for name, task in TASKS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=task.config)


def compose(conf: Path, folders: Sequence[Path], overrides: Sequence[str], *, hydra: bool = False) -> Any:
    """Compose outside a Hydra run what the command line would make of ``overrides``; on demand with Hydra's config."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    prepare_hydra()
    words = [*search_path(folders), *emptied(several_judges(map(readable, overrides)))]
    with initialize_config_dir(str(conf), version_base="1.3"):
        return hydra_compose("config", words, return_hydra_config=hydra)


def search_path(folders: Sequence[Path]) -> list[str]:
    """Write the override by which Hydra finds the configs of folders, whatever their names; none for no folder."""
    places = ",".join(_quoted(f"file://{folder.resolve()}") for folder in folders)
    return [f"hydra.searchpath=[{places}]"] if folders else []


def readable(word: str) -> str:
    """Quote those parts of an override that Hydra's grammar cannot read: many folder names, and text beyond ASCII.

    A value of ``paths`` is one folder, whatever its name; elsewhere a file that exists is one value. Quoted text, and
    anything that is wrong in another way, stays as it is.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    key, _, value = word.partition("=")
    if not value or value == "null" or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return word
    if value.startswith("~/"):  # no shell expands it behind a '='
        value = str(Path(value).expanduser())
        word = f"{key}={value}"
    place = "/" in value or re.search(r"^paths\.|(path|folder|file|dir)$", key)
    try:
        read = OverridesParser.create().parse_override(word).value()
    except HydraException:
        read = None
    if place and any(_literal(part) != part for part in value.strip("[]").split(",")):
        read = None
    if key.startswith("paths.") or ((place or read is None) and os.path.exists(value)):  # noqa: PTH110  never raises
        return word if read == value else f"{key}={_quoted(_literal(value))}"
    listed = re.fullmatch(r"\[(.*)\]", value, re.DOTALL)
    inner = listed[1] if listed else value
    if listed and place and read != [inner] and os.path.exists(inner):  # noqa: PTH110
        read = None  # of one file with a comma in its name
    if read is not None or not (place or not value.isascii()):
        return word
    if place and not listed and value[0] not in "[{":
        return f"{key}={_quoted(_literal(value))}"
    if os.path.exists(inner):  # noqa: PTH110
        inner = _quoted(_literal(inner))
    elif re.search(r"['\"]" if place else r"[][{}()'\"=]", inner):
        return word
    else:
        inner = ",".join(bare_or_quoted(_literal(part)) for part in inner.split(","))
    return f"{key}=[{inner}]" if listed else f"{key}={inner}"


def bare_or_quoted(text: str) -> str:
    """Return a word of Hydra's grammar unchanged, and any other text in quotes."""
    return text if re.fullmatch(r"[\w./:+-]+", text, re.ASCII) else _quoted(text.strip())


def _literal(text: str) -> str:
    """Escape what looks like an interpolation and is a folder's name: one that exists, or of no key and resolver."""
    from omegaconf import OmegaConf

    known = {field.name for task in TASKS.values() for field in dataclasses.fields(task.config)} | {"", "hydra"}

    def means_something(name: str, colon: str) -> bool:
        hydras = ("hydra", "now", "python_version")  # which Hydra registers later
        return OmegaConf.has_resolver(name) or name in hydras if colon else name.partition(".")[0] in known

    meant = all(means_something(*found) for found in re.findall(r"(?<!\\)\$\{([^}:]*)(:?)", text))
    folder = re.match(r".*\$\{[^/]*|", text, re.DOTALL)
    there = folder is not None and os.path.exists(folder[0])  # noqa: PTH110
    return text if meant and not there else escaped(text)


def escaped(node: Any) -> Any:
    """Escape the texts of a resolved config, so that what looks like an interpolation there is resolved to itself."""
    if isinstance(node, Mapping):
        return {key: escaped(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [escaped(value) for value in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=text, quote=Quote.single).with_quotes()


def several_judges(words: Iterable[str]) -> list[str]:
    """Rewrite ``judge=[a,b]`` so that Hydra puts each judge under its own name; it would merge them into one.

    Raises:
        InputError: a judge is named twice, or such a list varies in a grid.
    """
    found = []
    for word in words:
        listed = re.fullmatch(r"judge=\[([\w,\s]*)\]", word)
        if word.startswith("judge=") and "[" in word and not listed:
            raise InputError(f"{word}: a list of judges is written judge=[refusal,pairs], the same for a whole grid")
        if not listed:
            found.append(word)
            continue
        names = [name.strip() for name in listed[1].split(",") if name.strip()]
        if len(names) != len(set(names)):
            raise InputError(f"{word}: names a judge twice")
        each = [f"+judge@judge.{name}={name}" for name in names]
        found += [f"judge={names[0]}"] if len(names) == 1 else ["~judge", *each]
    return found


def emptied(words: Iterable[str]) -> list[str]:
    """Rewrite overrides so that ``key={}`` empties the key; Hydra merges mappings and would keep its content."""
    found = []
    for word in words:
        key = word.removesuffix("={}")
        found.append(word)  # which shows a key that does not exist
        if key != word and re.fullmatch(r"\w+(\.\w+)+", key):
            found += [f"~{key}", f"+{word}"]
    return found


def is_grid(conf: Path, folders: Sequence[Path], overrides: Sequence[str]) -> bool:
    """Return whether the config itself asks for Hydra's multirun, as studies do."""
    from hydra.types import RunMode

    if asked := [word for word in overrides if word.lstrip("+").startswith("hydra.mode=")]:
        return asked[-1].endswith("=MULTIRUN")
    choices = [word for word in overrides if word.startswith(("experiment=", "debug="))]
    try:
        if not _name_a_mode(groups([conf, *plugin_folders(), *folders]), choices):
            return False
        return compose(conf, folders, choices, hydra=True).hydra.mode is RunMode.MULTIRUN
    except CONFIG_ERRORS:  # an error that is explained when all overrides are composed
        return False


def _name_a_mode(known: Mapping[str, Mapping[str, Path]], words: Sequence[str]) -> bool:
    """Return whether a chosen file, or one that it is made of, has a key ``mode``; composing to see it takes long."""
    chosen = [(word.partition("=")[0], word.partition("=")[2]) for word in words]
    for group, option in chosen:  # which grows by the files that these are made of
        file = known.get(group, {}).get(option)
        text = file.read_text(encoding="utf-8") if file else ""
        if re.search(r"\bmode\b['\"]?\s*:", text):
            return True
        chosen += _defaults(text, group)
    return False


def left_to_cells(overrides: Sequence[str]) -> list[str]:
    """Write overrides for a grid, with those below a group as a choice of one value.

    Hydra also composes what a grid's cells have in common, without the groups that differ among them. There
    ``defense.epochs=3`` would be an unknown key if the default defence has no epochs. The same is true of the groups of
    one task, if the datasets, which imply it, differ.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = []
    for word in overrides:
        below, group = re.match(r"(?!hydra\.|paths\.)\w+\.[\w.]+=.", word), word.partition("=")[0]
        if below or any(SECTIONS.get(group, group) in task.foreign for task in TASKS.values()):
            override = OverridesParser.create().parse_overrides([word])[0]
            if not override.is_sweep_override():
                value = "'null'" if override.value() is None else override.get_value_element_as_str()
                word = f"{override.key_or_group}=choice({value})"  # Hydra has no choice(null), and drops the quotes
        words.append(word)
    return words


def refuse_no_names(conf: Path, overrides: Sequence[str]) -> None:
    """Raise `InputError` for a number, null or a list where a group's option belongs: Hydra has a traceback for it."""
    for word in overrides:
        group, _, value = word.partition("=")
        if not (re.fullmatch(r"\w+", group) and (conf / group).is_dir()):
            continue
        no_names = [option for option in re.split(r"[,\[\]\s]+", value) if NO_NAME.fullmatch(option)]
        no_names += re.findall(r"\[\s*(\[.*?\])", value)
        if no_names:
            how = "" if group in ("experiment", "debug") else f" with ~{group}"
            if value.startswith("["):
                how = f": {group}=[]"
            raise InputError(
                f"{group}={no_names[0]}: name one of its options (fairpriv ls {group}), or leave it out{how}"
            )


def refuse_merged_parts(folders: Sequence[Path], overrides: Sequence[str]) -> None:
    """Raise `InputError` for a choice of dimensions or attacks whose files Hydra would merge.

    Two have one name; or one does not say its name, and would be laid over the whole group.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    known = groups(folders)
    chosen: list[tuple[str, Any]] = []  # groups, and lists of options
    for word in overrides:
        group, _, value = word.partition("=")
        if group in ("dimension", "attack"):
            [override] = OverridesParser.create().parse_overrides([word])  # whose error names the word
            lists = override.sweep_iterator() if override.is_discrete_sweep() else [override.value()]
            chosen += [(group, options) for options in lists]
        elif group == "experiment" and value in known.get(group, {}):
            experiment: Any = OmegaConf.to_container(OmegaConf.load(known[group][value]))
            defaults = [item for item in experiment.get("defaults", []) if isinstance(item, dict)]
            chosen += [("dimension", item["override /dimension"]) for item in defaults if "override /dimension" in item]
    for group, options in chosen:
        named: dict[str, str] = {}
        for option in options if isinstance(options, list) else [options]:
            place = {"dimension": "dimensions", "attack": "attack"}[group]
            file = known[group].get(str(option))
            head = re.search(rf"^# @package {place}\.(\w+)", file.read_text(encoding="utf-8"), re.M) if file else None
            if file and not head:
                raise InputError(f"{file}: its first line must be '# @package {place}.{option}', or another name there")
            name = head[1] if head else str(option)
            if name in named:
                raise InputError(
                    f"{group}=[{','.join(options)}]: {named[name]} and {option} are both the {group} {name}: "
                    f"choose one, or give one of the files another name after '# @package {place}.'"
                )
            named[name] = str(option)


def plain(cfg: Any) -> dict[str, Any]:
    """Convert a composed config to plain containers with interpolations resolved; ``???`` stays as it is."""
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def build(config: Mapping[str, Any], group: str, *args: Any, **kwargs: Any) -> Any:
    """Build the object that ``config[group]`` describes; raise `InputError` for what its constructor refuses."""
    try:
        return instantiated(config[group], *args, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        inside = re.search(r"^full_key: (\S+)$", str(error), re.M)
        why = str(error.__cause__ or error)
        if "() missing" in why and "__init__()" not in why:  # of a function; a class is missing it in __init__()
            why += "; with _partial_: true it is handed on, to be called later"
        raise InputError(f"{group}{'.' + inside[1] if inside else ''}: {why}") from error


def instantiated(node: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Build the object that a resolved config describes; its texts are taken as they are."""
    from hydra.utils import instantiate

    # Hydra resolves the whole, and then each value that it reads.
    return instantiate(escaped(escaped(node)), *args, **kwargs, _convert_="all")


def require(kind: type[Part], part: Any, where: str) -> Part:
    """Return a built part; raise `InputError` where its class does not inherit from ``kind``.

    The attributes of ``kind``, which have defaults there, declare what a part can do.
    """
    if isinstance(part, Mapping):
        raise InputError(f"{where}: has no _target_, which names its class")
    if not isinstance(part, kind):
        own, base = type(part), f"{kind.__module__}.{kind.__qualname__}"
        raise InputError(f"{where}: {own.__module__}.{own.__qualname__} is none: let it inherit from {base}")
    return part


def explain(error: Exception, conf: Path, folders: Sequence[Path], overrides: Sequence[str]) -> str:
    """Explain one of `CONFIG_ERRORS` on one line: where it is, the full key, and the nearest right one."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem or error.context}"
    if isinstance(error, OverrideParseException):
        return _unparsed(error)
    if refused := next((cause for cause in _chain(error) if isinstance(cause, InputError)), None):
        return str(refused)  # by a launcher, say, that Hydra was building
    text = "\n".join(str(e) for e in _chain(error))
    options = groups([conf, *plugin_folders(), *folders])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    file = re.search(r"In '([^']+)': ", text)
    inside = file is not None and file[1] not in ("config", "hydra/config") and not file[1].startswith("task/")
    where = (
        f"{file[1]}: " if file and inside else ""
    )  # a file of the user's; what ours name comes from the command line
    if option := re.search(r"Could not (?:find|load) '([\w/.-]+)/([^/']+)'", text):
        group, name = option.groups()
        if group == "hydra/launcher" and name in _LAUNCHERS:
            extra, package = _LAUNCHERS[name]
            return f"{group}={name}: {package} is not installed: pip install 'fairpriv[{extra}]'"
        available = re.search(rf"Available options in '{group}':\n((?:\t.*\n?)+)", text)
        known = available[1].split() if available else list(options.get(group, {}))
        return f"{where}{group}={name}: there is no such {group}{nearest(name, known)}; there are {', '.join(known)}"
    if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{ambiguous[1]}: several values make a grid, which needs -m; a list is written key=[a,b]"
    if absent := re.search(r"Could not delete (?:from config. )?'([\w.]+)'", text):
        lacking, known = absent[1], _known_keys(conf, folders, overrides)
        if lacking in known:
            return f"{where}~{lacking}: there is nothing to leave out, since none is chosen"
        if any(lacking in task.foreign for task in TASKS.values()):
            return where + of_other_task(lacking)
        return f"{where}unknown key {lacking}{nearest(lacking, known)}"
    missing = re.search(r"Could not override '(\w+)'.\s+No match|[Kk]ey '(\w+)' (?:is )?not in ", text)
    section = next(filter(None, missing.groups())) if missing else ""
    section = SECTIONS.get(section, section)
    if any(section in task.foreign for task in TASKS.values()):
        return where + of_other_task(section)
    if nothing := re.search(r"Could not override '([^']+)'.\s+No match in the defaults list", text):
        return f"{where}there is no group {nothing[1]}{nearest(nothing[1], options)}"
    if removed := re.search(r"Error merging override ~([\w.]+)", text):
        return f"{where}~{removed[1]}: every cell needs this key: set it, or leave out ~{removed[1]}"
    key = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if key and re.search(r"[Kk]ey '[^']*' (is )?not in ", text):
        if key[1] in ("experiment", "debug"):
            return f"{key[1]}: the file begins with '# @package _global_', since its keys belong to the root"
        known = _known_keys(conf, folders, overrides)
        parent = key[1].rpartition(".")[0]
        hint = " in some of the cells" if key[1] in known else nearest(key[1], known)
        if "." in parent and parent in known and f"{parent}._target_" not in known:  # such as dataset.groups
            hint = f"{hint}; a new entry of {parent} is written +{key[1]}=VALUE"
        arms = (word.partition("=")[0] for word in overrides if word.startswith("arms."))
        typed_as = next((name for name in arms if name.split(".", 2)[2:] == [key[1]]), key[1])
        return f"{where}unknown key {typed_as}{hint}"
    if "Cannot merge DictConfig with ListConfig" in text:
        if wanted := re.search(r"full_key: (\S+)\n(?:.*\n)*?\s*object_type=(dict|list)", text):
            form = {"dict": "a mapping, {name: value}", "list": "a list, [a,b]"}[wanted[2]]
            return f"{where}{wanted[1]}: must be {form}"
        return f"{where}a list stands where a mapping belongs, or a mapping where a list does"
    reasons = [line for line in lines if line.startswith(("Value ", "Cannot convert", "field", "Invalid value"))]
    if key and reasons:
        return f"{where}{key[1]}: {reasons[0]}"
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _unparsed(error: OverrideParseException) -> str:
    """Say what is wrong with an override that Hydra cannot read, and how it is written."""
    word = error.override
    name, equals, value = word.partition("=")
    bare = [one.strip() for one in value[1:-1].split(",")] if value[:1] + value[-1:] == "[]" else value
    if any(word.count(begin) > word.count(end) for begin, end in ("[]", "{}")):
        why = "it ends before its bracket; write it without spaces, or in quotes"
    elif re.search(r"[=,]\s*,|[^=],\s*$", word):
        mark = f"; for a comma itself write {typed(name, ',')}" if value.strip() == "," else ""
        why = f"there is no value beside one of its commas{mark}"
    elif not equals:
        why = f"an override is written key=value ({str(error).splitlines()[0]})"
    elif set("".join(bare)) & set("'\"[]{}(),="):
        why = "quote a text that holds quotes or brackets: key='...'"
    else:
        why = f"the shell takes quotes away; write {typed(name, bare)}"
    return f"cannot read {word!r}: {why}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _known_keys(conf: Path, folders: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    """List every dotted key of the configs with the groups chosen on the command line, else of the default config."""
    from hydra.core.global_hydra import GlobalHydra

    choices = [re.findall(r"\w+(?==)|\[.*\]|\w+", word) for word in overrides if re.fullmatch(r"\w+=[\w,\[\]]+", word)]
    cells = itertools.islice(itertools.zip_longest(*(values for _, *values in choices)), 20)
    rows = [[f"{group}={value}" for (group, *_), value in zip(choices, cell, strict=True) if value] for cell in cells]
    keys: dict[str, None] = {}
    for row in [*rows, []]:
        GlobalHydra.instance().clear()
        if row or not keys:
            with contextlib.suppress(InputError, *CONFIG_ERRORS):  # since the choices themselves may be wrong
                keys |= dict.fromkeys(_flatten(plain(compose(conf, folders, row))))
    return list(keys)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
