import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fairpriv
from fairpriv import functional
from fairpriv.errors import InputError

HEAVY = {"torch", "lightning", "transformers", "peft", "torchmetrics", "wandb", "hydra", "pandas", "numpy"}


def test_the_package_is_light_and_names_what_it_has():
    program = f"import fairpriv, sys; print(dir(fairpriv)); print(sorted({HEAVY!r} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    names, loaded = told.splitlines()
    assert set(fairpriv.__all__) <= set(json.loads(names.replace("'", '"')))
    assert loaded == "[]"


@pytest.mark.parametrize("name", fairpriv.__all__)
def test_every_name_loads(name):
    assert callable(getattr(fairpriv, name))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fairpriv' has no attribute 'fit_pol'"):
        fairpriv.fit_pol  # noqa: B018


@pytest.mark.parametrize("first", ["package", "module"])
def test_run_is_called_by_either_name_whichever_is_imported_first(monkeypatch, first):
    import fairpriv.run  # which binds the name in the package

    if first == "package":
        monkeypatch.delattr(fairpriv, "run")  # as before anything was imported
    from fairpriv.run import run

    monkeypatch.setattr("fairpriv.run.run", lambda cfg, config_dirs: (cfg, config_dirs))
    assert fairpriv.run(["seed=1"], config_dirs=["mine"]) == (["seed=1"], ["mine"])
    assert callable(run)
    assert fairpriv.run is sys.modules["fairpriv.run"]


def test_a_config_is_composed_as_on_the_command_line(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "people.yaml").write_text("defaults: [csv]\nname: people\n")
    cfg = fairpriv.compose(["dataset=people", "seed=7", "game.alpha=0.5"], config_dirs=[tmp_path])
    assert (cfg.dataset.name, cfg.seed, cfg.game.alpha, cfg.sweep) == ("people", 7, 0.5, None)
    assert fairpriv.compose().seed == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=germn"], "dataset=germn: there is no such dataset .did you mean 'german'"),
        (["game.alhpa=1"], "unknown key game.alhpa .did you mean 'game.alpha'"),
        (["seed=0,1"], "seed=0,1: several values make a grid"),
        (["experiment=quickstart"], "experiment=quickstart: is a grid"),
        ("seed=1", "overrides are a list"),
        (["dimension=[privacy,privacy]"], "are both the dimension privacy"),
        (["attack=[null]"], "attack=null: name one of its options .fairpriv ls attack., or leave it out: attack=..$"),
    ],
)
def test_what_cannot_be_composed_is_refused_in_one_line(words, said):
    with pytest.raises(InputError, match=said) as error:
        fairpriv.compose(words)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="--config-dir nowhere: there is no such folder"):
        fairpriv.compose(config_dirs=["nowhere"])


def written(root: Path, seed: int, **fields) -> None:
    config = {"seed": seed, "dataset": {"name": "adult"}, "defense": {"name": "none", "hidden": [8, seed]}}
    result = {"schema_version": 1, "id": f"{seed:016x}", "status": "completed", "config": config, "metrics": {}}
    folder = root / "cells" / f"{seed:016x}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result | fields))


def test_results_become_a_table_with_a_row_for_each_cell(tmp_path):
    written(tmp_path, 0, metrics={"eval/accuracy": 0.5}, intervals={"eval/accuracy": [0.4, 0.6]})
    written(tmp_path, 1, metrics={"eval/accuracy": None, "x": 2}, degenerate=["one", "two"], control="all rows")
    written(tmp_path, 2, status="failed", error="boom")
    table = fairpriv.load_results(tmp_path).set_index("seed")
    assert list(table.status) == ["completed", "completed", "failed"]
    assert list(table["defense.hidden"]) == [(8, 0), (8, 1), (8, 2)]
    assert (table.at[2, "error"], table.at[1, "degenerate"]) == ("boom", "one; two")
    assert [*table["control"]] == ["", "all rows", ""]
    assert table.loc[0, ["eval/accuracy", "eval/accuracy.low", "eval/accuracy.high"]].tolist() == [0.5, 0.4, 0.6]
    assert table["eval/accuracy"].isna().tolist() == [False, True, True]
    assert table["x"].dtype == float
    assert "trainer" not in table
    assert table.groupby(["dataset.name", "defense.hidden"])["eval/accuracy"].mean().iloc[0] == 0.5


def test_a_table_has_what_differs_unless_every_key_is_asked_for(tmp_path):
    for seed in range(2):
        config = {"seed": seed, "dataset": {"name": "adult", "target": "income"}, "game": {"alpha": 1.0}}
        written(tmp_path, seed, config=config)
    assert set(fairpriv.load_results([tmp_path])) == {
        *("id", "status", "error", "degenerate", "control", "seed", "dataset.name")
    }
    assert {"dataset.target", "game.alpha"} <= set(fairpriv.load_results(tmp_path, all_keys=True))


def test_a_damaged_result_is_left_out_with_a_warning_and_nothing_at_all_is_refused(tmp_path, caplog):
    with pytest.raises(InputError, match="no result of fairpriv below"):
        fairpriv.load_results(tmp_path)
    written(tmp_path, 0)
    written(tmp_path, 1)
    (tmp_path / "cells" / f"{1:016x}" / "result.json").write_text("{")
    assert len(fairpriv.load_results(str(tmp_path))) == 1
    assert "truncated or not JSON" in caplog.text


KINDS = {
    "list": list,
    "array": np.array,
    "read-only array": lambda values: np.broadcast_to(np.array(values), np.shape(values)),
    "column": lambda values: pd.Series(values, index=range(10, 10 + len(values))),
    "small integers": lambda values: np.array(values, dtype=np.int8),
}
PREDS, TARGET, GROUPS = [0, 1, 1, 0, 1, 0, 1, 1], [0, 1, 0, 1, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_rates_take_what_numpy_takes(kind):
    tensors, given = ([make(values) for values in (PREDS, TARGET, GROUPS)] for make in (torch.tensor, KINDS[kind]))
    for function in (fairpriv.equalized_odds_gap, fairpriv.group_rates):
        torch.testing.assert_close(function(*given), function(*tensors))
    both = fairpriv.shift_weight(*given[1:], *reversed(given[1:])), fairpriv.shift_weight(*tensors[1:], *tensors[:0:-1])
    assert both[0] == both[1]


def test_the_other_functions_take_arrays_and_lists():
    draw = np.random.default_rng(0)
    probs = draw.random(8)
    penalty = fairpriv.equalized_odds_penalty(torch.tensor(probs), torch.tensor(TARGET), torch.tensor(GROUPS))
    assert fairpriv.equalized_odds_penalty(probs, np.array(TARGET), GROUPS) == penalty > 0
    rates = fairpriv.group_rates(PREDS, TARGET, GROUPS)
    make_up = [[0.5, 0.5], [0.25, 0.75]], [[1, 0], [0, 1]]
    priors = [0.5, 0.5], [0.1, 0.9]
    for function, given in (
        (fairpriv.accuracy_gap_bound, (rates, *make_up, *priors)),
        (fairpriv.label_shift, (rates, make_up[0], *priors)),
        (functional.label_recall, (rates, make_up[0])),
        (functional.balanced_accuracy_gap_bound, (rates, *make_up)),
    ):
        wanted = function(*(torch.as_tensor(part, dtype=torch.float64) for part in given))
        torch.testing.assert_close(function(rates.tolist(), *given[1:]), wanted)
        torch.testing.assert_close(function(*map(np.asarray, given)), wanted)
    x, y = draw.normal(size=(9, 2)), draw.normal(size=(9, 3))
    assert fairpriv.hsic(x, y.tolist()) == fairpriv.hsic(torch.tensor(x), torch.tensor(y))
    scores = {"a": {"w": draw.random((3, 4))}, "b": {"w": draw.random((3, 4))}}
    tensors = {name: {"w": torch.tensor(part["w"])} for name, part in scores.items()}
    how = {"dimensions": ["a", "b"], "exclude": (), "ratio": 0.5}
    wanted = fairpriv.coupled_weights(tensors, **how)["w"]
    assert len(wanted)
    assert fairpriv.coupled_weights(scores, **how)["w"].equal(wanted)
    top = {name: fairpriv.top_weights(part, max_ratio=0.5) for name, part in scores.items()}
    assert fairpriv.coupled_weights(top, **how)["w"].equal(wanted)


def test_importance_takes_arrays_and_lists(tiny_lm):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.float32)
    ids, mask = [[5, 6, 7, 8], [9, 10, 11, 12]], [[1, 1, 1, 1], [1, 1, 1, 0]]
    labels = [[-100, 6, 7, 8], [-100, 10, 11, -100]]
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    wanted = fairpriv.importance_scores(model, [{name: torch.tensor(part) for name, part in batch.items()}])
    for make in (list, lambda part: np.array(part, dtype=np.int32)):
        found = fairpriv.importance_scores(model, [{name: make(part) for name, part in batch.items()}])
        assert all(found[name].equal(score) for name, score in wanted.items())


@pytest.mark.parametrize(
    ("groups", "said"),
    [(["f", "m"] * 4, "groups holds <U1, not numbers"), ([0.5] * 8, "groups holds torch.float64, not integer codes")],
)
def test_what_holds_no_codes_is_named(groups, said):
    with pytest.raises(ValueError, match=said):
        fairpriv.equalized_odds_gap(PREDS, TARGET, groups)


def test_a_pool_is_shown_on_one_line():
    rows = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 2
    pool = fairpriv.fit_pool([rows, rows], hidden=(3,), epochs=1, batch_size=10, lr=0.01, seed=0)
    assert repr(pool) == "Pool(2 members of sizes 4-3-2)"
    broken = fairpriv.Pool(pool.weights, [1])
    assert repr(broken) == "Pool(2 members of sizes 4-3-2, 1 diverged)"


def test_types_are_shipped():
    assert Path(fairpriv.__file__).with_name("py.typed").is_file()
