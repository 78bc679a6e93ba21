"""The notebooks of the docs run from top to bottom."""

import json
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]  # of whatever machine: they are made where the notebook is read
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
    pyplot.close("all")
    said = capsys.readouterr().out
    assert said.count("completed") == 4 if path.stem == "trade_off" else said.count("bound 0.") == 5
