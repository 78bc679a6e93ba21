"""Published figures stand beside the rows that they are about, with source and who measured."""

import pytest

from fairpriv.cli import CONF, main
from fairpriv.report.comparison import Comparison
from fairpriv.report.published import published
from fairpriv.result import Result

CHANGE = "eval/fairness/awareness_change"


def cell(model, defense, value=0.031):
    config = {"task": "language_model", "seed": 0, "model": {"name": model}, "dataset": {"name": "pairs"}}
    config |= {"defense": {"name": defense}, "dimensions": {"fairness": {}}}
    found = Result(f"{model}-{defense}", "completed", config, {CHANGE: value}, intervals={CHANGE: [-0.066, 0.158]})
    found.seconds = {"data": 0.0}
    return found


def test_a_figure_stands_beside_the_row_of_its_model_and_defence():
    table = Comparison.of([cell("qwen2_7b", "spin"), cell("qwen2_7b", "lora"), cell("tiny", "spin")])
    (one,) = published(table, CONF / "published")
    assert (one.value, one.row.count("qwen2_7b"), one.row.count("spin")) == ("+12.2 %", 1, 1)
    assert one.ours == "0.031 [-0.066, 0.158]"
    assert "arXiv 2410.16672" in one.source
    assert "MD-Judge" in one.by
    assert str(one).startswith("published: ")


def test_without_such_a_row_there_is_none():
    assert published(Comparison.of([cell("tiny", "spin")]), CONF / "published") == []


def test_compare_says_so_and_the_report_has_a_table(tmp_path, capsys):
    cell("qwen2_7b", "spin").write(tmp_path / "cells" / "a" / "result.json")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path)])
    assert ended.value.code == 0
    assert "fairness change: +12.2 % (Qian et al., ACL 2025" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "Published figures beside ours" in page
    assert "+12.2 %" in page
