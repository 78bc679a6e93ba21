"""The pages of the site: the repository's own, a reference written from configs and docstrings, and a gallery."""

import contextlib
import importlib
import io
import json
import pkgutil
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fairpriv.metrics import Metric

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
    "task": "The sections and defaults of each kind of experiment; the dataset implies it.",
    "debug": "By `debug=NAME`.",
    "paths": "By `paths.KEY=VALUE`.",
}
MATHEMATICS = ("bounds", "coupling", "fairness", "hsic", "importance")
PYTHON = (  # what `import fairpriv` gives, beside the mathematics
    "api",
    "run",
    "result",
    "editing",
    "classifiers.nets.pool",
    "classifiers.equalized_odds",
    "language_models.defenses.spin_callback",
)


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
        "metrics": metrics(),
        "python": modules("Python", *PYTHON),
        "mathematics": modules("Mathematics", *(f"functional.{name}" for name in MATHEMATICS)),
        "attacks": folders("Attacks", "classifiers/attacks"),
        "defences": folders("Defences", "classifiers/defenses", "language_models/defenses"),
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


def metrics() -> str:
    """List every metric that a wing's modules declare, with what it means, its direction and its range."""
    text = (
        "# Metrics\n\nWhat a result holds. Words in braces are filled in. `NAME_floor` is the value of `NAME` if there "
        "were nothing to find.\n"
    )
    notes = {
        "classifiers": "## Classifiers\n",
        "language_models": "## Language models\n\nThe name of a scorer's metric, such as `mc1`, stands behind "
        "`eval/DIMENSION/`.\n",
    }
    for wing, note in notes.items():
        package = importlib.import_module(f"fairpriv.{wing}")
        names = [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        values = (value for name in names for value in vars(importlib.import_module(name)).values())
        text += f"\n{note}{table({metric for value in values for metric in _metrics_in(value) if metric.name})}"
    text += "\n## Dimensions of classifiers\n\nAs the study of [defences and dimensions]"
    text += "(../experiments/trade_off_classifier/README.md) has them; some also of each group or label.\n"
    stored = ROOT / "experiments" / "trade_off_classifier" / "results" / "described.json"
    described = json.loads(stored.read_text(encoding="utf-8"))
    return text + table(
        Metric(**{"name": name} | one)
        for name, one in described.items()
        if re.fullmatch(r"eval/\w+/[\w.]+(?<!_floor)", name)
    )


def table(found: Iterable[Metric]) -> str:
    """Describe metrics, a row each."""
    text = "\n| metric | what it is | unit | better | range |\n|---|---|---|---|---|\n"
    for metric in sorted(found, key=lambda metric: (metric.name, metric.meaning)):
        low, high = ("" if end is None else f"{end:g}" for end in (metric.low, metric.high))
        span = f"{low} to {high}" if low and high else f"from {low}" if low else ""
        cells = [f"`{metric.name}`", metric.meaning or metric.label, metric.unit, metric.better, span]
        text += "| " + " | ".join(cell.replace("|", "&#124;").replace("<", "&lt;") for cell in cells) + " |\n"
    return text


def _metrics_in(value: object) -> Iterator[Metric]:
    """Yield a module's metric, or those in a list or table of it."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
    yield from (part for part in parts if isinstance(part, Metric))


def folders(title: str, *folders: str) -> str:
    """Show the public names of the folders' modules."""
    found = (path for folder in folders for path in sorted((ROOT / "fairpriv" / folder).glob("[a-z]*.py")))
    return modules(title, *(".".join(path.relative_to(ROOT / "fairpriv").with_suffix("").parts) for path in found))


def modules(title: str, *names: str) -> str:
    """Show the public names of modules."""
    return f"# {title}\n" + "".join(f"\n::: fairpriv.{name}\n" for name in names)


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
