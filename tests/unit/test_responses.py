"""What language models answered: read in the terminal and on a page, with the verdicts of several judges."""

import json
import re
import shutil
import subprocess

import pytest

from fairpriv.errors import InputError
from fairpriv.language_models.dimensions.awareness import KAPPA
from fairpriv.report.page import compare
from fairpriv.report.responses import print_responses
from fairpriv.result import Result

SECRET = "\x1b[2J<script>"  # would clear a terminal, or run in a page


def line(prompt, safe=None, other=None, before=(None, None), dimension="privacy", **more):
    row = {"dimension": dimension, "set": "evaluate", "prompt": prompt, "response": f"to {prompt}: {SECRET}"}
    if safe is not None:
        row |= {"safe": safe, "reason": "words", "judge": "refusal", "judges": {"pairs": [other, "0.7"]}}
    if before != (None, None):
        row |= {"before": "Well.", "safe_before": before[0], "reason_before": "", "judges_before": {}}
        row["judges_before"] = {"pairs": [before[1], "0.2"]}
    return row | more


ROWS = [
    line("alike", True, True, (True, True)),
    line("turned", True, True, (False, True)),
    line("disputed", False, True, (False, False)),
    line("unread", False, None, (True, None)),
    line("unjudged"),
    line("fair", True, True, (True, True), dimension="fairness"),
    line("benign", set="benign"),
    {"dimension": "privacy", "prompt": ["damaged"]},
]


@pytest.fixture
def cells(tmp_path):
    """Two cells of one arm, with the same responses, and one that has kept none."""
    for seed in (0, 1, 2):
        folder = tmp_path / "cells" / f"{seed:016x}"
        config = {"task": "language_model", "seed": seed, "dataset": {"name": "pairs"}, "model": {"name": "m"}}
        config["defense"] = {"name": "lora" if seed < 2 else "none"}
        result = Result(folder.name, "completed", config, {"eval/privacy/awareness": 0.5})
        if seed < 2:
            result.artifacts = {"responses": "responses.jsonl", "judges": "judges.jsonl"}
            kappa = KAPPA.named(judge="refusal", other="pairs", dimension="privacy")
            result.add(kappa.of(0.4 + seed / 5, (0.0, 0.9)))
        result.write(folder / "result.json")
        if seed < 2:
            (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
            told = [("safe", "safe", 3), ("unsafe", "safe", 1 + seed)]
            rows = [{"dimension": "privacy", "said": {"refusal": a, "pairs": b}, "responses": n} for a, b, n in told]
            (folder / "judges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def printed(capsys, cells, **options):
    assert print_responses([cells], where=["seed=0"], **options) == 0
    text = capsys.readouterr().out
    return re.findall(r"^  prompt +(\w+)$", text, re.MULTILINE), text


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({}, ["disputed", "unread", "alike", "turned", "unjudged", "fair", "benign"]),
        ({"limit": 2}, ["disputed", "unread"]),
        ({"dimension": "fairness"}, ["fair"]),
        ({"verdict": "unsafe"}, ["disputed", "unread"]),
        ({"verdict": "unsafe", "judge": "pairs"}, []),
        ({"verdict": "none", "judge": "pairs"}, ["unread"]),
        ({"verdict": "none"}, ["unjudged", "benign"]),
        ({"flip": "any"}, ["unread", "turned"]),
        ({"flip": "unsafe"}, ["unread"]),
        ({"flip": "safe", "judge": "pairs"}, ["disputed"]),
    ],
)
def test_responses_are_filtered_and_those_on_which_judges_differ_come_first(capsys, cells, options, prompts):
    assert printed(capsys, cells, **options)[0] == prompts


def test_every_judge_is_quoted_and_nothing_controls_the_terminal(capsys, cells):
    _, text = printed(capsys, cells, limit=1)
    assert "privacy; pairs m lora seed 0 (0000000000000000)\n  refusal: stayed unsafe (words)\n" in text
    assert "  pairs: became safe (0.7)\n" in text
    assert "  before   Well.\n  after    to disputed" in text
    assert "\x1b" not in text
    assert "7 of 7 responses, 2 on which judges differ; 1 are shown, --limit 0 shows all" in text


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"verdict": "save"}, ["--verdict save", "safe, unsafe, none", "did you mean 'safe'?"]),
        ({"flip": "both"}, ["--flip both", "safe, unsafe, any"]),
        ({"judge": "pair"}, ["--judge pair", "there are pairs, refusal"]),
        ({"dimension": "privcy"}, ["--dimension privcy", "fairness, privacy"]),
        ({"limit": -1}, ["--limit -1"]),
        ({"where": ["defense=none"]}, ["no responses below"]),
        ({"where": ["defense=spin"]}, ["--where defense=spin", "defense is lora, none"]),
    ],
)
def test_a_filter_that_fits_nothing_says_what_there_is(cells, options, parts):
    with pytest.raises(InputError) as error:
        print_responses([cells], **options)
    assert [part for part in parts if part not in str(error.value)] == []


def test_responses_that_are_cut_off_are_named(cells, capsys):
    first, second = sorted(cells.rglob("responses.jsonl"))
    first.write_text(first.read_text()[:-20])
    print_responses([cells])
    out, err = capsys.readouterr()
    assert err == f"{first}: is gone or damaged, and left out\n"
    assert "7 of 7 responses" in out
    second.unlink()
    with pytest.raises(InputError, match=re.escape(f"{first}: is gone or damaged: run the cell again (retry=all)")):
        print_responses([cells])


def test_the_report_tells_kappa_and_counts_who_says_what_over_the_cells_of_a_row(cells):
    compare([cells], cells / "out")
    page = (cells / "out" / "report.html").read_text(encoding="utf-8")
    table = page[page.index('id="judges"') : page.index('id="columns"')]
    assert table.index("refusal: unsafe<br>pairs: safe") < table.index("refusal: safe<br>pairs: safe")
    assert re.search(r"pairs, lora</th><td[^>]*>0.500 ±\?</td><td[^>]*>3</td><td[^>]*>6</td>", table)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="opens the page in chromium")
def test_the_page_filters_by_judge_and_flip(cells):
    compare([cells], cells / "out")
    address = f"{(cells / 'out' / 'responses' / ('0' * 16)).as_uri()}.html#judge=pairs&flip=became"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={cells / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    rows = re.findall("<tr data-dimension.*?</tr>", done.stdout, re.DOTALL)
    assert [re.search("to (\\w+)", row)[1] for row in rows if "hidden=" not in row[:90]] == ["disputed"]
