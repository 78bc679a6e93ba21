"""The pages of the site: the repository's own, a reference written from configs and docstrings, and a gallery."""

import contextlib
import io
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
# What each group of configs is. The others are Hydra's, or chosen by another name or key.
GROUPS = {
    "experiment": "Studies and quickstarts, by `experiment=NAME`.",
    "dataset": "By `dataset=NAME`.",
    "model": "By `model=NAME`.",
    "defense": "By `defense=NAME`.",
    "attack": "By `attack=[NAME,...]`.",
    "dimension": "By `dimension=[NAME,...]`.",
    "judge": "By `judge=NAME`.",
    "engine": "By `engine=NAME`.",
    "game": "By `game=NAME`.",
    "training": "By `training=NAME`.",
    "evaluation": "By `evaluation=NAME`.",
    "utility": "By `utility=NAME`.",
    "analysis": "By `analysis=NAME`.",
    "trainer": "By `trainer=NAME`.",
    "logger": "By `logger=NAME`.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put every page where it lies in the repository, so that its links hold there and here."""
    theme = [file for file in files if not (file.abs_src_path or "").startswith(str(ROOT / "docs"))]
    places = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")]
    for folder in ("docs", "experiments"):
        places += [
            path for ending in ("md", "png", "svg", "ipynb") for path in sorted((ROOT / folder).rglob(f"*.{ending}"))
        ]
    found = [File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)) for path in places]
    found += [File.generated(config, f"reference/{name}.md", content=text) for name, text in reference().items()]
    found += [File.generated(config, f"gallery/{name}", content=content) for name, content in gallery().items()]
    return Files([*theme, *found])


def gallery() -> dict[str, str | bytes]:
    """Draw every picture of every study's stored results, and write the page that shows them."""
    from fairpriv.report.page import compare

    text = "# Gallery\n\nEvery picture that `fairpriv compare` draws of the studies' stored results.\n"
    found: dict[str, str | bytes] = {}
    for results in sorted((ROOT / "experiments").glob("*/results")):
        study = results.parent.name
        text += f"\n## {study}\n\n```\nfairpriv compare experiments/{study}/results\n```\n"
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
            compare([results], Path(out))
            for picture in sorted(Path(out, "plots").glob("*.svg")):
                name = f"{study}_{picture.name}"
                found[name] = picture.read_bytes()
                text += f"\n![{study}: {picture.stem.replace('_', ' ')}]({name})\n"
        text += f"\n[What it shows](../experiments/{study}/README.md)\n"
    return found | {"index.md": text}


def reference() -> dict[str, str]:
    """Write the pages that nobody writes by hand."""
    return {
        "configs": configs(),
        "mathematics": module("Mathematics", "functional", "bounds", "coupling", "fairness", "hsic", "importance"),
        "attacks": modules("Attacks", "classifiers/attacks"),
        "defences": modules("Defences", "classifiers/defenses", "language_models/defenses"),
    }


def configs() -> str:
    """Show every config with its keys, defaults and comments."""
    text = "# Configs\n\nEvery config that comes with fairpriv, as `fairpriv show GROUP=NAME` prints it.\n"
    text += f"\n## The root\n\n{shown(CONF / 'config.yaml')}"
    for group, about in GROUPS.items():
        text += f"\n## {group}\n\n{about}\n"
        for path in sorted((CONF / group).glob("*.yaml")):
            text += f"\n### {group}={path.stem}\n\n{shown(path)}"
    return text


def shown(path: Path) -> str:
    """Put a file into a fence."""
    return f"```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"


def modules(title: str, *folders: str) -> str:
    """Show every public class of the folders' files."""
    named = [
        (folder.replace("/", "."), path.stem)
        for folder in folders
        for path in sorted((ROOT / "fairpriv" / folder).glob("*.py"))
        if path.stem != "__init__"
    ]
    return f"# {title}\n" + "".join(f"\n::: fairpriv.{folder}.{name}\n" for folder, name in named)


def module(title: str, package: str, *names: str) -> str:
    """Show the named files of a package."""
    return f"# {title}\n" + "".join(f"\n::: fairpriv.{package}.{name}\n" for name in names)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let a list begin right after a line of text, as on GitHub: Python-Markdown wants an empty line between them."""
    lines: list[str] = []
    fenced = listed = False
    for line in markdown.split("\n"):
        item = not fenced and line.startswith(("- ", "1. "))
        if item and not listed and lines and lines[-1].strip():
            lines.append("")
        fenced ^= line.startswith("```")
        listed = bool(line.strip()) and (item or listed)
        lines.append(line)
    return "\n".join(lines)
