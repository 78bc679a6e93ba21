import contextlib
import json
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from fairpriv.classifiers.nets.classifier import Classifier
from fairpriv.report.finding import find_results
from fairpriv.sweep.listing import entries
from fairpriv.sweep.lock import Owner, machine, started


def lines(ended) -> list[str]:
    """The line of each cell, without its time; not what is told of the data, once a process."""
    told = [line for line in ended.err.splitlines() if not line.startswith("people: ")]
    return [re.sub(r", [0-9.]+ s", "", line) for line in told]


def results(root: Path) -> dict[str, str]:
    return {result.id: result.status for result in find_results([root])[0]}


def test_a_sweep_prints_progress_and_a_table_and_skips_what_is_finished(fairpriv, drawn, small, tmp_path, fits):
    command = ["-m", *small, "defense=none,fine_tune", "seed=0,1"]
    ended = fairpriv(*command)
    assert ended.status == 0
    assert lines(ended) == [  # what sets the cells apart
        "[  1/4] seed=0 defense=none: completed",
        "[  2/4] seed=0 defense=fine_tune: completed",
        "[  3/4] seed=1 defense=none: completed",
        "[  4/4] seed=1 defense=fine_tune: completed",
    ]
    assert re.search(r"people +none +0\.\d{3}\*? ?±", ended.out)
    assert re.search(r"people +fine_tune +0\.\d{3}\*? ?±", ended.out)
    assert "[  1/4]" not in ended.out
    (report,) = re.findall(r"^report: (.*)$", ended.out, re.MULTILINE)
    sweep = Path(report).parent
    assert sweep.parent == tmp_path / "out" / "sweeps"
    assert {"report.html", "table.csv", "cells.txt", "plots"} <= {path.name for path in sweep.iterdir()}
    assert set(entries(sweep)) == set(results(tmp_path / "out"))

    assert fits == ["base", "fine_tune"] * 2
    again = fairpriv(*command)
    assert fits == ["base", "fine_tune"] * 2
    assert (again.status, lines(again)) == (0, lines(ended))
    assert again.out == ended.out.replace("cells: 4 completed", "cells: 4 skipped (finished before)")


def test_a_cell_is_made_once_whatever_sweep_asks_for_it(fairpriv, small, fits, tmp_path):
    fairpriv(*small, "seed=1")
    fairpriv("-m", *small, "seed=0,1")
    ended = fairpriv("-m", *small, "seed=1,2")
    assert fits == ["base"] * 3
    assert ended.status == 0
    assert "compare" not in ended.err
    assert len(results(tmp_path / "out")) == 3
    assert len(list((tmp_path / "out" / "sweeps").iterdir())) == 2
    everything = fairpriv("compare", tmp_path / "out")
    assert re.search(r"people +none .* 3 ", everything.out)


def test_a_cell_of_two_grids_is_counted_and_run_once(fairpriv, mine, tmp_path):
    shutil.copytree(mine, tmp_path / "own")
    (tmp_path / "own" / "experiment").mkdir()
    (tmp_path / "own" / "experiment" / "overlap.yaml").write_text(
        """# @package _global_
# One grid says what is the other's default
hydra:
  mode: MULTIRUN
  sweeper:
    grids:
      - {defense: none, game.adaptive: "true,false"}
      - {defense: "none,top1"}
      - {defense: top1, defense.digits: 1}
"""
    )
    words = ["experiment=overlap", "--config-dir", tmp_path / "own", "dataset=people", "debug=fast", "paths.root=out"]
    ended = fairpriv(*words)
    assert ended.status == 1
    told = [line.partition(": defense.answers=")[0] for line in lines(ended)]
    assert told == [  # top1 hides nothing of two labels
        "[  1/3] defense=none game.adaptive=True: completed",
        "[  2/3] defense=none game.adaptive=False: completed",
        "[  3/3] defense=top1: failed",
    ]
    assert fairpriv("plan", *words).out.startswith("3 cells")
    asked = fairpriv(*words, "game.adaptive=true")  # which the grids with top1 do not set
    assert "game.adaptive: 1 of 2 cells keep their own, since their grids do not set it (defense=top1): " in asked.err


def test_a_cell_that_fails_is_named_and_the_others_go_on(fairpriv, small, tmp_path, fits):
    command = ["-m", *small, "defense=fine_tune", "defense.lr=1e30,0.01"]
    ended = fairpriv(*command)
    assert ended.status == 1
    first, second = lines(ended)
    assert first == "[  1/2] defense.lr=1e+30: failed: NonFiniteLossError: loss became nan at step 1 of fine_tune"
    assert second == "[  2/2] defense.lr=0.01: completed"
    assert sorted(results(tmp_path / "out").values()) == ["completed", "failed"]
    assert "loss became nan at step 1" in ended.out
    assert len(fits) == 3
    assert fairpriv(*command, "retry=none").status == 1
    assert len(fits) == 3
    assert fairpriv(*command).status == 1
    assert len(fits) == 4  # the failed one


def test_data_that_is_wrong_in_one_cell(fairpriv, small, tmp_path):
    ended = fairpriv("-m", *small, "game.rows=100000,60")  # which shows only when the data are read
    assert ended.status == 1
    first, second = lines(ended)
    assert re.search(r"game\.rows=100000: failed: (data: )?game\.rows=100000: people has \d+ training rows", first)
    assert second.endswith("game.rows=60: completed")
    assert sorted(results(tmp_path / "out").values()) == ["completed", "failed"]


def test_data_that_is_wrong_in_every_cell_is_wrong_input(fairpriv, small):
    ended = fairpriv("-m", *small, "dataset.sensitive=gender", "seed=0,1")
    assert (ended.status, ended.out) == (2, "")
    assert [line.startswith("fairpriv: ") for line in ended.err.splitlines()] == [False, False, True]
    assert "no column 'gender'" in ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("defense=none,fair_finetun", "defense=fair_finetun: there is no such defense"),
        ("defense=fine_tune defense.penalty=1,abc", "defense.penalty='abc'"),
        ("dataset=people,csv", "dataset.source.files has no value"),
        ("game.alpha=1,x", "game.alpha"),
        ("defense=none,fine_tune defense.epochs=2", "unknown key defense.epochs in some of the cells"),
        ("defense=fine_tune,rehearsal defense.epoch=2", "did you mean 'defense.epochs'?"),
    ],
)
def test_one_wrong_choice_stops_the_grid_before_it_begins(fairpriv, small, tmp_path, words, part):
    ended = fairpriv("-m", *small, *words.split())
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("fairpriv: ")
    assert part in line
    assert not (tmp_path / "out" / "cells").exists()


def test_a_key_of_the_groups_that_vary_is_given_to_all_of_them(fairpriv, small, tmp_path):
    assert fairpriv("-m", *small, "defense=fine_tune,rehearsal", "defense.epochs=2").status == 0
    assert [result.config["defense"]["epochs"] for result in find_results([tmp_path / "out"])[0]] == [2, 2]


def test_hydra_s_other_ways_to_a_grid(fairpriv, small):
    words = ["hydra.mode=MULTIRUN", "hydra.sweeper.params.seed='range(0,2)'", "defense=glob(n*)"]
    assert lines(fairpriv(*small, *words)) == ["[  1/2] seed=0: completed", "[  2/2] seed=1: completed"]


def test_a_sweep_that_is_interrupted_is_not_called_finished(fairpriv, small, tmp_path, monkeypatch):
    step = Classifier.training_step

    def interrupted(self, batch, index):
        if self.stage == "fine_tune":
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    command = ["-m", *small, "defense=none,fine_tune"]
    ended = fairpriv(*command)
    assert (ended.status, ended.out) == (130, "")
    assert ended.err.splitlines()[-1].startswith("fairpriv: interrupted; what is finished is kept")
    assert list(results(tmp_path / "out").values()) == ["completed"]
    assert "cells not finished: 1" in fairpriv("compare", *(tmp_path / "out" / "sweeps").iterdir()).out
    monkeypatch.setattr(Classifier, "training_step", step)
    assert fairpriv(*command).status == 0
    assert list(results(tmp_path / "out").values()) == ["completed", "completed"]


def test_a_process_that_is_interrupted_twice_leaves_whole_files_and_the_same_command_goes_on(fairpriv, mine, tmp_path):
    # The second cell trains for ever, until a file of the user's says otherwise.
    (tmp_path / "mine").mkdir()
    for folder in ("dataset", "defense"):
        (tmp_path / "mine" / folder).symlink_to(mine / folder)
    root = tmp_path / "out"
    words = ["--config-dir", "mine", "dataset=people", "debug=fast", "paths.root=out", "defense=none,long"]
    command = [sys.executable, "-m", "fairpriv", "-m", *words]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True)
        # the second cell's fits begin when its base model has come from the cache
        while process.poll() is None and not list((root / "cells").glob("*/result.json")):
            time.sleep(0.05)
        time.sleep(0.3)
        # once would let the cell end, twice stops it; and Python loses a KeyboardInterrupt that falls into a finalizer
        while process.poll() is None and "interrupted; what" not in (tmp_path / "err").read_text():
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
        out, _ = process.communicate()
    said = (tmp_path / "err").read_text().splitlines()
    assert out == ""
    assert process.returncode == 130
    assert said[-1].startswith("fairpriv: interrupted")
    assert list(results(root).values()) == ["completed"]
    assert [path for path in root.rglob(".*") if path.is_file()] == []

    (tmp_path / "mine" / "defense").unlink()
    (tmp_path / "mine" / "defense").mkdir()
    text = (mine / "defense" / "long.yaml").read_text().replace("1000000", "1")
    (tmp_path / "mine" / "defense" / "long.yaml").write_text(text)
    before = {path: path.stat().st_mtime_ns for path in root.glob("cells/*/result.json")}
    ended = fairpriv(*command[3:])
    assert ended.status == 0
    assert re.search(r"people +none ", ended.out)
    assert re.search(r"people +long ", ended.out)
    assert len(list((root / "sweeps").iterdir())) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(results(root).values()) == ["completed", "completed"]


def test_a_search_on_two_objectives_reports_its_front_and_goes_on_where_more_trials_are_asked_for(
    fairpriv, mine, small, fits, tmp_path
):
    head, *people = (mine / "people.csv").read_text().splitlines()
    by_age = [f"{line.rpartition(',')[0]},{'yes' if int(line.split(',')[0]) > 44 else 'no'}" for line in people]
    (tmp_path / "by_age.csv").write_text("\n".join([head, *by_age]))  # so that every model is better than guessing

    def search(trials: int, *more: str):
        return fairpriv(
            "-m",
            *small,
            f"dataset.source.files=[{tmp_path / 'by_age.csv'}]",
            "hydra/sweeper=search",
            f"hydra.sweeper.trials={trials}",
            "hydra.sweeper.objectives=[eval/accuracy,fairness/equalized_odds_gap]",
            "defense=fine_tune",
            "defense.lr=tag(log,interval(1e-4,1e-2))",
            "seed=0,1",
            "sweep=found",
            *more,
        )

    ended = search(2)
    assert ended.status == 0
    assert [line[:7] for line in lines(ended)] == [f"[  {i}/4]" for i in range(1, 5)]
    assert "Pareto front" in ended.out
    assert "2 trials: 2 completed" in ended.out
    folder = tmp_path / "out" / "sweeps" / "found"
    stored = json.loads((folder / "search.json").read_text())
    assert stored["objectives"] == {"eval/accuracy": "maximize", "fairness/equalized_odds_gap": "minimize"}
    cells = {result.id: result.metrics for result in find_results([folder])[0]}
    for trial in stored["trials"]:
        means = [statistics.fmean(cells[cell][metric] for cell in trial["cells"]) for metric in stored["objectives"]]
        assert trial["values"] == pytest.approx(means)

    fits.clear()
    more = search(3)
    assert fits == ["fine_tune"] * 2  # of the third trial alone, from the base models that the first two left
    assert [line[:7] for line in lines(more)] == ["[  1/2]", "[  2/2]"]
    assert "3 trials: 3 completed" in more.out
    results_of_all, missing = find_results([folder])
    assert (len(results_of_all), missing) == (6, [])
    assert re.search(r"^found +6 +0 +0 +0 +6", fairpriv("status", folder).out, re.MULTILINE)

    fits.clear()
    written = (folder / "search.json").read_bytes()
    same = search(3, "threads=null", "logger=none", "retry=none", "paths.data=elsewhere", "defense=fine_tune")
    assert (same.status, fits) == (0, [])
    for word, differs in {"dataset=adult": "dataset", "defense.epochs=2": "defense", "seed=2": "seed"}.items():
        refused = search(4, word)
        assert refused.status == 2
        assert f"differs in {differs}: name another sweep=NAME" in refused.err
    with subprocess.Popen(["sleep", "600"]) as other:
        owner = Owner(platform.node(), machine(), other.pid, started(other.pid) or "", time.time())
        (folder / "lock").write_text(json.dumps(asdict(owner)))
        refused = search(4)
        other.kill()
    assert refused.status == 2
    assert f"is searched by process {other.pid} on " in refused.err
    assert refused.err.count("\n") == 1
    assert (fits, (folder / "search.json").read_bytes()) == ([], written)


def test_secrets_of_a_sweep_s_command_line_are_written_nowhere(fairpriv, small, tmp_path):
    hidden = "hunter-2"
    files = next(Path(small[1]).glob("*.csv"))
    words = [
        f"dataset.source.files=['{files}'],['/me:{hidden}@host/a.csv']",
        f"+dataset.source.urls=['https://me:{hidden}@host/people.csv?api_key={hidden}']",
        "+dataset.source.sha256=[x]",
        f"+dataset.recode.secret_job={{from: job, values: {{a: {hidden}, b: b, c: c}}}}",
    ]
    ended = fairpriv("-m", *small, *words)
    assert ended.status == 1
    assert "cells: 1 completed, 1 failed" in ended.out
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"multirun.yaml", "cells.txt", "result.json", "report.html"} <= {path.name for path in written}
    assert [path for path in written if hidden.encode() in path.read_bytes()] == []
    assert hidden not in ended.out + ended.err
    assert "https://***@host" in next(path for path in written if path.name == "multirun.yaml").read_text()
