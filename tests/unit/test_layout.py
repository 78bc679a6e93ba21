"""Which part of the package imports which: read from the source, so that nothing is imported."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fairpriv"


def imported(part):
    """The modules that a part imports anywhere, by the file that does."""
    for file in sorted((PACKAGE / part).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: a relative import"
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                yield f"{file.relative_to(PACKAGE)}: {name}"


@pytest.mark.parametrize(
    ("wing", "other"), [("classifiers", "language_models"), ("language_models", "classifiers")], ids=str
)
def test_the_wings_never_import_one_another(wing, other):
    found = list(imported(wing))
    assert any(": fairpriv.functional." in line for line in found)
    assert [line for line in found if f"{line}.".partition(": ")[2].startswith(f"fairpriv.{other}.")] == []


def test_the_mathematics_imports_nothing_of_the_project():
    names = [line.partition(": ")[2] for line in imported("functional")]
    others = {name for name in names if not name.startswith("fairpriv.functional.")}
    known = {"torch", "numpy", "scipy", *sys.stdlib_module_names}
    assert {name for name in others if name.partition(".")[0] not in known} == set()
    assert "torch.nn" in others
