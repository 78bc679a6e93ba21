"""The report: whole in one file, harmless whatever a name holds, and alive in a browser."""

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fairpriv.identity import content_hash
from fairpriv.report import page as compare_module
from fairpriv.report.comparison import Comparison
from fairpriv.report.page import compare
from fairpriv.report.tradeoff import tradeoff_figure
from fairpriv.result import Result

HOSTILE = "</script><script>document.title='$x_1$'</script><!--<script> \u2028 & \"' ${1}"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="runs the report's script in node")
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="opens the report in chromium")


def cell(dataset="adult", defence="none", seed=0, metrics=None, config=None, **fields):
    config = {"seed": seed, "dataset": {"name": dataset, "target": f"target of {dataset}"}} | (config or {})
    config |= {"defense": {"name": defence}, "model": {"name": "mlp"}, "game": {"alpha": 1.0, "tau": 0.1}}
    metrics = {"eval/accuracy": 0.8 + seed / 100, "privacy/accuracy_gap": 0.1} if metrics is None else metrics
    return Result(**{"id": content_hash(config), "status": "completed", "config": config, "metrics": metrics} | fields)


def report(tmp_path, *cells, **options):
    for i, result in enumerate(cells):
        result.write(tmp_path / "cells" / str(i) / "result.json")
    compare([tmp_path], tmp_path / "out", **options)
    return Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Tags, addresses, ids, and the words outside scripts; and what scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.addresses, self.words, self.scripts, self.rows = text, [], [], [], [], []
        self.feed(text)
        self.data = json.loads(self.scripts[0]) if len(self.scripts) == 2 else None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        self.rows += [dict(attrs)] if tag == "tr" else []

    def handle_data(self, data):
        (self.scripts if self.lasttag == "script" and data.strip() else self.words).append(data)

    def handle_endtag(self, tag):
        self.lasttag = ""


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_trade_off_has_no_interval_of_two_seeds(tmp_path, seeds):
    cells = [cell(seed=seed) for seed in range(seeds)]
    (group,) = report(tmp_path, *cells).data["groups"]
    mean, low, high, n, _ = group["values"][0]
    assert (mean, n, low is None, high is None) == (0.8 + (seeds - 1) / 200, seeds, seeds == 2, seeds == 2)
    table = Comparison.of(cells)
    bars = [bar for bar in tradeoff_figure(table, table.settings).axes[0].collections if len(bar.get_segments())]
    assert bool(bars) == (seeds == 3)


@pytest.fixture
def hostile(tmp_path):
    kept = {"artifacts": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}, "device": HOSTILE}
    cells = [
        cell(
            HOSTILE,
            HOSTILE if defence else "none",
            s,
            config={"note": {HOSTILE: HOSTILE}},
            degenerate=[HOSTILE],
            **kept,
        )
        for defence in (0, 1)
        for s in (0, 1)
    ]
    (tmp_path / "<img src=x>").mkdir()
    (tmp_path / "<img src=x>" / "result.json").write_text("{")
    metrics = {f"eval/{HOSTILE}/awareness": 0.5, "eval/accuracy": 0.7, "privacy/accuracy_gap": 0.2}
    failed = cell(HOSTILE, "failing", metrics={}, status="failed", error=HOSTILE, git={"commit": HOSTILE})
    return report(tmp_path, *cells, failed, cell(HOSTILE, "other", metrics=metrics))


def test_report_is_one_file_without_addresses_and_only_its_own_script(hostile):
    assert hostile.tags.count("script") == 2
    assert not {"iframe", "object", "embed", "img", "link", "base", "form"} & set(hostile.tags)
    assert all(address.startswith("#") for address in hostile.addresses)
    assert not re.search(r"https?:|@import|url\((?!#)", hostile.text)
    own = Path(compare_module.__file__).with_name("report.js").read_text(encoding="utf-8")
    assert hostile.scripts[1] == own
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', hostile.text)
    assert policy.split("; ")[0] == "default-src 'none'"
    assert f"script-src 'sha256-{digest}'" in policy.split("; ")


def test_names_are_text_in_the_page_and_in_its_data(hostile, tmp_path):
    shown = HOSTILE.replace("\u2028", " ")
    assert "".join(hostile.words).count(shown) > 10
    (section,) = [s for s in hostile.data["sections"] if any(key.startswith("note") for key in s)]
    assert section == {f"note.{HOSTILE}": shown}
    assert {cell["error"] for cell in hostile.data["cells"]} == {None, HOSTILE}
    for svg in (tmp_path / "out" / "plots").glob("*.svg"):
        page = Page(svg.read_text(encoding="utf-8"))
        assert "script" not in page.tags
        assert shown in page.words


def test_many_settings_stand_in_one_cell_that_stays_in_sight_beside_what_was_measured(tmp_path):
    def cells(count):
        chosen = [dict.fromkeys("abcde"[:count], i) for i in (0, 1)]
        # a setting that follows from another one is no column of its own
        chosen += [{name: int(name == one) + 2 for name in "abcde"[:count]} for one in "abcde"[:count]]
        return [cell(config={name: {"x": value} for name, value in one.items()}) for one in chosen]

    few, many = report(tmp_path / "few", *cells(3)), report(tmp_path / "many", *cells(5))
    assert '<main id="main">' in few.text
    assert '<main id="main" class="joined">' in many.text
    whole = re.findall(r'<th scope="row" class="whole">(.*?)</th>', many.text)
    assert whole[0].startswith("<b>adult</b>, <b>none</b>, x=0, x=0")


def test_every_cells_config_and_environment_are_in_the_page(tmp_path):
    git = {"commit": "c" * 40, "dirty": True}
    cells = [
        cell(d, f, s, versions={"torch": f"2.{s}"}, git=git if s else None, device="cpu", seconds={"fit": 1.5})
        for d in ("adult", "compas")
        for f in ("none", "spin")
        for s in (0, 1)
    ]
    data = report(tmp_path, *cells).data
    assert len(data["cells"]) == len(cells)
    for result in cells:
        (kept,) = [c for c in data["cells"] if c["id"] == result.id]
        config = {}
        for i in kept["config"]:
            config |= data["sections"][i]
        wanted = {
            "seed": str(result.config["seed"]),
            "dataset.name": result.config["dataset"]["name"],
            "dataset.target": result.config["dataset"]["target"],
            "defense.name": result.config["defense"]["name"],
            "model.name": "mlp",
            "game.alpha": "1.0",
            "game.tau": "0.1",
        }
        assert config == wanted
        assert data["environments"][kept["environment"]] == {
            "versions": result.versions,
            "git": result.git,
            "device": "cpu",
        }
        assert {data["names"][number]: value for number, value, *_ in kept["metrics"]} == result.metrics
        assert kept["seconds"] == {"fit": 1.5}


def test_report_names_what_the_means_leave_out_and_lists_every_cell(tmp_path):
    (tmp_path / "result.json").write_text("{")
    failed = cell(seed=2, status="failed", error="boom", metrics={})
    page = report(tmp_path, *(cell(seed=s) for s in range(2)), failed)
    text = " ".join(" ".join(page.words).split())
    assert "seed 2: boom" in text
    assert "skipped: " + str((tmp_path / "result.json").resolve()) in text
    assert [row["class"] for row in page.rows if "data-cell" in row] == ["", "", "failed"]
    assert "bounds no adversary" not in text  # no bound among the metrics, so nothing is said of it
    assert "base rates" in text


def test_report_says_what_the_bound_does_not_bound(tmp_path):
    text = report(tmp_path, cell(metrics={"privacy/bound": 0.2})).text
    assert "bounds no adversary" in text
    assert "W = 1" in text


def test_degenerate_cells_and_their_reasons_are_seen(tmp_path):
    page = report(tmp_path, cell(seed=0, degenerate=["says yes"]), cell(seed=1), cell(defence="spin"))
    text = " ".join(" ".join(page.words).split())
    assert "adult, none : 1 of 2. Seed 0: says yes." in text
    assert next(row["class"].split() for row in page.rows if "data-group" in row) == ["degenerate"]
    assert [group["degenerate"] for group in page.data["groups"]] == [1, 0]


def test_rows_of_different_code_are_marked_and_the_versions_counted(tmp_path):
    git = [{"commit": c * 40, "dirty": False} for c in "ab"]
    cells = [cell(seed=s, git=git[s]) for s in (0, 1)] + [cell("compas", seed=s, git=git[0]) for s in (0, 1)]
    page = report(tmp_path, *cells)
    text = " ".join(" ".join(page.words).split())
    assert "code aaaaaaaaaaaa 3 bbbbbbbbbbbb 1" in text
    assert "(1 of 2 rows)" in text
    assert page.addresses.count("#environment") == 1
    assert "environments differ" not in report(tmp_path / "same", *cells[2:]).text


def test_named_metrics_span_the_plot_and_the_front(tmp_path):
    metrics = {"eval/accuracy": 0.8, "privacy/bound": 0.3, "privacy/accuracy_gap": 0.1}
    page = report(tmp_path, cell(metrics=metrics), pareto="privacy/bound,eval/accuracy")
    assert page.data["panel"] == ["privacy/bound", "eval/accuracy"]
    better = {metric["name"]: metric["better"] for metric in page.data["metrics"]}
    assert better == {"eval/accuracy": 1, "privacy/accuracy_gap": -1, "privacy/bound": -1}


def test_head_tells_of_pictures_only_where_there_are_some(tmp_path):
    for name, metrics in (("drawn", None), ("bare", {"mine/score": 0.5})):
        text = " ".join(report(tmp_path / name, cell(metrics=metrics)).words)
        assert ("all pictures in" in text) == (tmp_path / name / "out" / "plots").is_dir() == (name == "drawn")


def test_head_tells_command_date_and_versions_and_what_is_settled(tmp_path):
    cells = [cell(seed=s, versions={"torch": "2.13", "numpy": f"2.{s}"}) for s in (0, 1)]
    page = report(tmp_path, *cells, where=["dataset=adult"], pareto="eval/accuracy,privacy/accuracy_gap")
    text = " ".join(" ".join(page.words).split())
    words = "--where dataset=adult --pareto eval/accuracy,privacy/accuracy_gap"
    assert f"by fairpriv compare {shlex.quote(str(tmp_path))} {words}" in text
    assert re.search(r"Made 20\d\d-\d\d-\d\d \d\d:\d\d", text)
    assert "The cells ran with torch 2.13." in text
    assert "Nothing is settled" in text
    assert "as good in all of accuracy, accuracy gap and better" in text


def test_every_table_has_a_caption_and_every_head_a_scope(tmp_path):
    git = [{"commit": c * 40, "dirty": False} for c in "ab"]
    cells = [cell(defence=d, seed=s, git=git[s]) for d in ("none", "spin") for s in (0, 1)]
    text = report(tmp_path, *cells).text
    assert text.count("<table") == text.count("<caption") == 4
    assert not re.findall(r"<th(?![^>]* scope=)[ >]", text)


def answered(tmp_path, name, rows):
    """A completed cell of a language model whose folder holds these responses."""
    result = cell("pairs", "lora", metrics={"eval/privacy/awareness": 0.5}, id=name, artifacts={"responses": ""})
    folder = tmp_path / "cells" / name
    result.write(folder / "result.json")
    (folder / "responses.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return result


def test_responses_have_a_page_a_cell_with_verdicts_before_and_after(tmp_path):
    row = {"dimension": "privacy", "set": "evaluate", "prompt": HOSTILE, "response": "I refuse", "before": HOSTILE}
    verdicts = {"safe": True, "reason": HOSTILE, "safe_before": False, "reason_before": "no caution"}
    benign = {"dimension": "privacy", "set": "benign", "prompt": "Hello?", "response": "Hello."}
    answered(tmp_path, "a" * 16, [row | verdicts, row | verdicts | {"safe_before": True}, benign, {"odd": 1}])
    stale, foreign = (tmp_path / "out" / "responses" / f"{name}.html" for name in ("c" * 16, "mine"))
    stale.parent.mkdir(parents=True)
    stale.touch()
    foreign.touch()
    page = report(tmp_path)
    assert [address for address in page.addresses if address[0] != "#"] == [f"responses/{'a' * 16}.html"]
    assert (stale.exists(), foreign.exists()) == (False, True)
    shown = Page((tmp_path / "out" / "responses" / f"{'a' * 16}.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(shown.words).split())
    assert "3 responses: 1 became safe, 1 stayed safe, 1 not judged" in text
    assert "unsafe: no caution" in text
    assert re.findall('data-turn="([^"]*)"', shown.text) == ["became safe", "stayed safe", "not judged"]
    assert shown.tags.count("script") == 1
    assert "".join(shown.words).count(HOSTILE) == 6


def test_damaged_or_missing_responses_give_no_page(tmp_path):
    answered(tmp_path, "b" * 16, [])
    (tmp_path / "cells" / ("b" * 16) / "responses.jsonl").write_text("{")
    assert all(address[0] == "#" for address in report(tmp_path).addresses)


@needs_node
@pytest.mark.parametrize("better", [(1, -1), (1, 1), (-1, -1)])
def test_front_in_the_page_agrees_with_a_double_loop(better):
    source = Path(compare_module.__file__).with_name("report.js").read_text(encoding="utf-8")
    (front,) = re.findall(r"^function front\(.*?^}$", source, re.MULTILINE | re.DOTALL)
    points = np.random.default_rng(4).integers(0, 12, (40, 2)).tolist()
    code = f"{front}\nconsole.log(JSON.stringify(front({points}, {list(better)})))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    expected = []
    for i, (x, y) in enumerate(points):
        signs = [(better[0] * (u - x), better[1] * (v - y)) for u, v in points]
        if not any(a >= 0 and b >= 0 and a + b > 0 for a, b in signs):
            expected.append(i)
    assert sorted(json.loads(done.stdout)) == expected


@needs_node
def test_the_page_ranks_a_value_beyond_guessing_as_guessing():
    source = Path(compare_module.__file__).with_name("report.js").read_text(encoding="utf-8")
    (ranked,) = re.findall(r"^const ranked = .*$", source, re.MULTILINE)
    axes = [{"better": -1, "guess": 0.5}, {"better": 1, "guess": 0.5}, {"better": -1}]
    code = f"{ranked}\nconsole.log(JSON.stringify({json.dumps(axes)}.map((a) => [0.4, 0.6].map((v) => ranked(a, v)))))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[0.5, 0.6], [0.4, 0.5], [0.4, 0.6]]


@needs_chromium
@pytest.mark.slow
def test_report_opens_from_disk_and_draws_whatever_names_hold(hostile, tmp_path):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"{(tmp_path / 'out' / 'report.html').as_uri()}#theme=dark&off=other"
    done = subprocess.run(
        [*command, "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert '<html lang="en" class="script" data-theme="dark">' in done.stdout  # the address says what is shown
    assert done.stdout.count('class="point"') == 2
    assert "save means as CSV" in done.stdout  # the last thing but drawing that the script does
    assert "<title>fairpriv: &lt;/script&gt;" in done.stdout  # no name has run


@needs_chromium
@pytest.mark.slow
def test_what_is_never_the_best_is_on_no_front_of_the_page(tmp_path):
    def arm(defence, alpha, gap, **fields):
        made = cell(defence=defence, metrics={"eval/accuracy": 0.8, "privacy/accuracy_gap": gap}, **fields)
        made.config["game"]["alpha"] = alpha
        made.id = content_hash(made.config)
        return made

    arms = [arm("none", 0.8, 0.3), arm("none", 0.5, 0.0), arm("both", 0.8, 0.1, control="the same rows")]
    page = report(tmp_path, *arms, arm("constant", 0.8, 0.0, degenerate=["one class"]))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"{(tmp_path / 'out' / 'report.html').as_uri()}#of=all"
    drawn = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert [group["ranked"] for group in page.data["groups"]] == [False, True, False, False]
    on_front = re.findall(r'aria-label="([^"]*); on the Pareto front', drawn.stdout)
    assert [name.partition(";")[0] for name in on_front] == ["adult, none, game.alpha=0.8"]
    assert "game.alpha=0.5: takes no part in the front" in drawn.stdout
