"""README and the pages that it leads to: short enough, and no command that does not compose."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

import fairpriv
from fairpriv.cli import CONF
from fairpriv.config.compose import compose, plain, prepare_hydra
from fairpriv.config.schema import check
from fairpriv.errors import InputError
from fairpriv.sweep.grids import choices
from fairpriv.sweep.progress import cells_of

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a fence without a language, or in a console's."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fences = re.findall(r"^ *```(?:console|bash)?\n(.*?)^ *```$", text, re.M | re.S)
    lines = [line.strip().removeprefix("$ ") for fence in fences for line in fence.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("fairpriv ")]
    return [words[1:] for words in found]


def first_cell(given):
    """The words of the first cell that a command makes, by the grid of its experiment where it has one."""
    prepare_hydra()
    if any(override.key_or_group == "experiment" for override in given):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            words = [override.input_line for override in given]
            hydra = GlobalHydra.instance().hydra
            whole = hydra.compose_config("config", words, RunMode.MULTIRUN, with_log_configuration=False)
            if cells := cells_of(whole):
                return cells[0]
    return [f"{override.input_line.partition('=')[0]}={choices(override)[0]}" for override in given]


def test_readme_can_be_read_in_ten_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_there_are_commands_to_look_at():
    assert sum(len(commands(page)) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_composes(page):
    parser = OverridesParser.create()
    for words in commands(page):
        if re.fullmatch(r"[a-z-]+", words[0]):  # a sub-command: its own tests know its words
            continue
        if "--config-dir" in words or any(word.startswith("$") for word in words):  # what the reader has
            continue
        words = [word for word in words if not re.match(r"\+?hydra|-m$|--cfg$|job$", word)]
        given = [o for o in parser.parse_overrides(words) if "interval" not in str(o.input_line)]
        try:
            check(plain(compose(CONF, [], first_cell(given))))
        except InputError as error:
            raise AssertionError(f"{page.name}: fairpriv {shlex.join(words)}: {error}") from None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fairpriv.__version__


def test_the_reference_of_the_site_has_every_group_of_configs():
    tree = ast.parse((ROOT / "docs" / "site.py").read_text(encoding="utf-8"))
    told = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GROUPS"
    ]
    there = {file.parent.name for file in CONF.glob("*/*.yaml")} - {"hydra", "published"}  # nobody chooses of these
    assert set(ast.literal_eval(told[0])) == there
