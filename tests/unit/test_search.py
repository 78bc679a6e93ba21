import itertools
import json
import random

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fairpriv.cli import CONF
from fairpriv.config.compose import prepare_hydra
from fairpriv.errors import InputError
from fairpriv.sweep.search import Search, distribution, front, parts, read, report
from hydra_plugins.fairpriv_sweep.search import SearchSweeper

OBJECTIVES = ["eval/accuracy", "fairness/equalized_odds_gap"]
CONFIG = {"dataset": {"name": "adult"}, "training": {"epochs": 3}, "seed": 0, "sweep": "a", "retry": "failed"}


def override(text):
    return OverridesParser.create().parse_override(text)


def outcome(accuracy, gap, status="completed", degenerate=()):
    metrics = {"eval/accuracy": accuracy, "fairness/equalized_odds_gap": gap} if status == "completed" else {}
    return {"id": "x", "status": status, "error": "no luck", "metrics": metrics, "degenerate": list(degenerate)}


def search(folder, objectives=OBJECTIVES, values="tag(log,interval(1e-6,1e-3))", config=CONFIG, seeds=()):
    space = {"defense.lr": distribution(override(f"defense.lr={values}"))}
    return Search(objectives, space, folder, 0, parts(config, seeds))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1,2", CategoricalDistribution(["1", "2"])),
        ("a=choice(x,y)", CategoricalDistribution(["x", "y"])),
        ("a=[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
        ("a=range(1,10)", IntDistribution(1, 9)),
        ("a=range(1,10,4)", CategoricalDistribution(["1", "5", "9"])),
        ("a=interval(1,5)", FloatDistribution(1.0, 5.0)),
        ("a=int(interval(1,5))", IntDistribution(1, 5)),
        ("a=tag(log,interval(1e-6,1e-3))", FloatDistribution(1e-6, 1e-3, log=True)),
    ],
)
def test_values_of_a_key_are_drawn_as_hydra_writes_them(text, expected):
    assert distribution(override(text)) == expected


def test_a_logarithmic_interval_from_zero_is_refused():
    with pytest.raises(InputError, match="lr=tag"):
        distribution(override("lr=tag(log,interval(0,1))"))


def test_directions_follow_from_the_metrics_or_are_given(tmp_path):
    found = search(tmp_path, [*OBJECTIVES, "edit/suppressed:minimize"]).directions
    ways = ("maximize", "minimize", "minimize")
    assert found == dict(zip([*OBJECTIVES, "edit/suppressed"], ways, strict=True))
    for wrong in (["edit/suppressed"], ["eval/accuracy:up"], [], ["eval/accuracy", "eval/accuracy"]):
        with pytest.raises(InputError, match="objectives"):
            search(tmp_path, wrong)


def test_the_direction_of_a_metric_of_ones_own_is_that_which_its_first_cell_tells(tmp_path):
    studied = search(tmp_path, ["attack/mine/harm", "eval/accuracy"])
    ((trial, _),) = studied.ask(1)
    told = outcome(0.9, 0.1) | {"better": {"attack/mine/harm": "less"}}
    told["metrics"]["attack/mine/harm"] = 0.25
    studied.tell(trial, [told])
    assert studied.directions == {"attack/mine/harm": "minimize", "eval/accuracy": "maximize"}
    assert read(studied.path)["objectives"] == studied.directions
    assert [trial.values for trial in studied.study.trials] == [[-0.25, 0.9]]  # the study maximises both
    again = search(tmp_path, ["attack/mine/harm", "eval/accuracy"])
    assert again.directions == studied.directions
    nothing = search(tmp_path / "other", ["mine/share"])
    told = outcome(0.9, 0.1) | {"better": {"mine/share": "neither"}}
    told["metrics"]["mine/share"] = 0.5
    with pytest.raises(InputError, match="mine/share: write METRIC:maximize or METRIC:minimize"):
        nothing.tell(nothing.ask(1)[0][0], [told])


@pytest.mark.parametrize("wrong", ["attack/kl/accuracy", "attack/kl/advantage:minimize", "attack/kl/auc:minimize"])
def test_an_attack_is_searched_by_its_leakage_whatever_the_way(tmp_path, wrong):
    """Below one half it tells as much as above: a search that minimises its accuracy finds no protection."""
    assert search(tmp_path, ["attack/kl/leakage"]).directions == {"attack/kl/leakage": "minimize"}
    with pytest.raises(InputError, match="use attack/kl/leakage"):
        search(tmp_path, [wrong])


def test_a_search_finds_nothing_better_than_guessing_beyond_it(tmp_path):
    """It was led to attacks whose AUC lies below one half, which are unlucky, and called them its front."""
    studied = search(tmp_path, ["eval/mine/auc", "eval/accuracy"])
    for accuracy, auc in ((0.9, 0.5), (0.8, 0.3), (0.95, 0.7)):
        ((trial, _),) = studied.ask(1)
        told = outcome(accuracy, 0.1) | {"better": {"eval/mine/auc": "less"}, "guess": {"eval/mine/auc": 0.5}}
        told["metrics"]["eval/mine/auc"] = auc
        studied.tell(trial, [told])
    assert [row["values"][0] for row in studied.trials] == [0.5, 0.3, 0.7]
    assert front(read(studied.path)) == [0, 2]
    again = search(tmp_path, ["eval/mine/auc", "eval/accuracy"])
    assert [trial.values for trial in studied.study.trials] == [[-0.5, 0.9], [-0.5, 0.8], [-0.7, 0.95]]
    assert [trial.values for trial in again.study.trials] == [[0.5, 0.9], [0.5, 0.8], [0.7, 0.95]]  # known to fall


def test_a_search_that_was_cut_off_asks_for_the_unfinished_trial_again(tmp_path):
    first = search(tmp_path)
    for _ in range(3):
        ((trial, _),) = first.ask(1)
        first.tell(trial, [outcome(0.5, 0.1)])
    ((_, unfinished),) = first.ask(1)
    again = search(tmp_path)
    assert again.done == 3
    ((trial, values),) = again.ask(1)
    assert values == unfinished
    again.tell(trial, [outcome(0.6, 0.2)])
    ((_, new),) = again.ask(1)
    drawn = [row["params"]["defense.lr"] for row in read(tmp_path / "search.json")["trials"]]
    assert drawn[-1] == new["defense.lr"]
    assert len(set(drawn)) == 5  # a resumed sampler does not repeat its beginning


def test_a_search_for_other_objectives_or_values_is_not_gone_on_with(tmp_path):
    search(tmp_path).ask(1)
    for differ, other in {
        "objectives": {"objectives": ["eval/accuracy"]},
        "space": {"values": "1,2"},
        "dataset": {"config": CONFIG | {"dataset": {"name": "compas"}}},
        "defense, training": {"config": CONFIG | {"training": {"epochs": 4}, "defense": {"name": "none"}}},
        "seed": {"seeds": ["0", "1"]},
    }.items():
        with pytest.raises(InputError, match=f"differs in {differ}: name another sweep=NAME"):
            search(tmp_path, **other)
    search(tmp_path, config=CONFIG | {"retry": "none", "threads": 2, "logger": None}, seeds=["0"])  # no other outcome
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        search(tmp_path)


def test_a_search_whose_data_have_changed_is_not_gone_on_with(tmp_path):
    def told(content, model="m"):
        return outcome(0.5, 0.1) | {"inputs": {"dataset.source": content, "defense.file": model}}

    first = search(tmp_path)
    for _ in range(2):
        first.tell(first.ask(1)[0][0], [told("abc", str(_))])  # defense.lr is searched: its part may read other files
    again = search(tmp_path)
    trial = again.ask(1)[0][0]
    with pytest.raises(InputError, match=r"search\.json: the content of dataset\.source is not that of its earlier"):
        again.tell(trial, [told("abd")])
    assert [row["state"] for row in search(tmp_path).trials] == ["completed"] * 2
    again = search(tmp_path)
    again.tell(again.ask(1)[0][0], [told("abc")])


def test_where_folders_are_changes_nothing_that_a_search_compares():
    prepare_hydra()
    sweeper = SearchSweeper(OBJECTIVES, 1, 1, 0, None)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        sweeper.hydra_context = HydraContext(loader, Callbacks())
        sweeper.config = loader.load_configuration("config", ["sweep=a"], RunMode.MULTIRUN)
        here, there, other = (
            parts(sweeper._config([word, "dataset=adult"]), [])
            for word in ("paths.data=here", "paths.data=there", "training.epochs=7")
        )
    assert here == there
    assert {part for part in here if here[part] != other[part]} == {"training"}


def test_objectives_are_means_over_a_trials_cells_and_a_failed_cell_fails_it(tmp_path):
    found = search(tmp_path)
    for outcomes in (
        [outcome(0.5, 0.1), outcome(0.7, 0.3)],
        [outcome(0.5, 0.1), outcome(0, 0, status="failed")],
        [outcome(None, 0.1)],
    ):
        ((trial, _),) = found.ask(1)
        found.tell(trial, outcomes)
    mean, failed, missing = read(tmp_path / "search.json")["trials"]
    assert mean["values"] == pytest.approx([0.6, 0.2])
    assert (failed["state"], failed["error"]) == ("failed", "no luck")
    assert missing["error"] == "no value of eval/accuracy; there are eval/accuracy, fairness/equalized_odds_gap"


def test_failed_trials_are_run_again_where_the_search_is_started_again(tmp_path):
    first = search(tmp_path)
    for status in ("failed", "completed", "failed", "failed"):
        ((trial, _),) = first.ask(1)
        first.tell(trial, [outcome(0.5, 0.1, status=status)])
    rows = read(tmp_path / "search.json")["trials"]
    again = search(tmp_path)
    assert (first.done, again.done) == (4, 1)
    asked = again.ask(2)
    assert [values for _, values in asked] == [rows[0]["params"], rows[2]["params"]]
    for trial, _ in asked:
        again.tell(trial, [outcome(0.6, 0.2)])
    kept = read(tmp_path / "search.json")["trials"]
    assert [row["state"] for row in kept] == ["completed"] * 3 + ["failed"]  # one that is not asked for is not lost
    assert kept[3] == rows[3]
    assert again.done == 3
    last = search(tmp_path)
    ((_, values),) = last.ask(1)
    assert values == rows[3]["params"]
    assert [row["state"] for row in last.trials] == ["completed"] * 3 + ["running"]


def test_the_front_is_that_of_a_double_loop_without_degenerate_trials(tmp_path, capsys):
    found, points = search(tmp_path), {}
    generator = random.Random(0)
    for number in range(30):
        ((trial, _),) = found.ask(1)
        accuracy, gap = generator.randrange(6) / 10, generator.randrange(6) / 10
        trivial = number % 5 == 0
        found.tell(trial, [outcome(2.0 if trivial else accuracy, gap, degenerate=["constant"] if trivial else [])])
        if not trivial:
            points[number] = accuracy, gap
    beaten = {
        a
        for a, b in itertools.permutations(points, 2)
        if points[b][0] >= points[a][0] and points[b][1] <= points[a][1] and points[a] != points[b]
    }
    assert front(read(tmp_path / "search.json")) == [n for n in points if n not in beaten]
    report(tmp_path / "search.json")
    printed = capsys.readouterr().out
    assert "Pareto front" in printed
    assert "30 trials: 30 completed (6 of them degenerate or controls, never on the front), 0 failed" in printed


def test_later_trials_come_closer_to_the_optimum(tmp_path):
    found = Search(["x:minimize"], {"a": FloatDistribution(0.0, 1.0)}, tmp_path, 0, {})
    errors = []
    for _ in range(40):
        ((trial, values),) = found.ask(1)
        errors.append((values["a"] - 0.3) ** 2)
        found.tell(trial, [{"id": "c", "status": "completed", "metrics": {"x": errors[-1]}, "degenerate": []}])
    assert sum(errors[-10:]) < sum(errors[:10]) / 2
    assert json.loads((tmp_path / "search.json").read_text())["objectives"] == {"x": "minimize"}
