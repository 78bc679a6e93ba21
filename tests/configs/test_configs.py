import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fairpriv import validation
from fairpriv.cli import CONF, main
from fairpriv.config.compose import build, compose, groups, is_grid, left_to_cells, plain, readable, target_of
from fairpriv.config.schema import check, parameters, tasks_of
from fairpriv.errors import InputError
from fairpriv.language_models.scorers.scorer import Scorer
from fairpriv.report.finding import find_results
from fairpriv.sweep.grids import choices

OPTIONS = groups([CONF])
GIVEN_BY_THE_RUN = {"fairpriv.classifiers.nets.classifier.MLP": {"features", "classes"}}
TINY = [  # a language model's cells with a model of the tests
    "model=hf",
    "dimension=[fairness,privacy,general]",
    "dataset.samples=4",
    "evaluation.prompts=2",
    "evaluation.benign=2",
    "evaluation.max_new_tokens=2",
    "evaluation.text_tokens=40",
    "threads=1",
]
DRAWN = {"quickstart", "tug_of_war"}  # reports with pictures, which take longer than the cells of a miniature
# What makes an experiment small beyond debug=fast.
IN_MINIATURE = {
    "quickstart": ["dataset=german"],
    "distribution_inference": [
        "dataset=german",
        "game.alpha=1.0,0.5",
        "defense=fine_tune",
        "game.adaptive=true",
        "game.shadows=4",
        "game.victims=2",
        "game.repeats=2",
        "attack.meta_classifier.epochs=5",
    ],
    "trade_off_classifier": ["dataset=german", "defense=none,rehearsal", "game.shadows=4", "game.victims=2"],
    "bound": ["dataset=compas", "defense=none", "game.alpha=0.6,0.8", "game.shadows=4", "game.victims=2"],
    "quickstart_llm": TINY,
    "tug_of_war": [*TINY, "defense=none,reft"],
    "training_samples": [*TINY, "defense=lora", "dataset.samples=2,4"],
    "data_mix": [*TINY, "defense=lora", "dataset.shares=[1,0],[0.5,0.5]"],
    "spin": [*TINY, "dataset.samples=8", "defense=none,spin", "defense.rule=intersection", "defense.ratio=1e-3"],
    "spin_rivals": [
        *TINY,
        "defense=none,dpo,task_arithmetic,steering",
        "defense.beta=0.1",
        "defense.samples=4",
        "defense.coefficient=-1",
        "defense.direction=random",
    ],
    "spin_paper": [
        *(word.replace("dataset.samples=4", "dataset.samples=8") for word in TINY),
        "defense=none,spin",
        "judge=refusal",
        "evaluation=default",
        "evaluation.window=null",
        "evaluation.stride=null",
        "utility.tasks=[]",
        "utility.limit=null",
        "defense.rule=intersection",
        "defense.ratio=1e-3",
    ],
    "spin_ablations": [*TINY, "defense=none"],
    "trade_off_matrix": [*TINY, "dataset.samples=8", "defense=none,spin", "defense.dimensions=[fairness,privacy]"],
    "awareness_and_leakage": [
        *(word for word in TINY if not word.startswith("dimension=")),
        "dataset.samples=24",
        "dataset.canaries.n=2",
        "dimensions.leakage_exposure.scorer.candidates=4",
        "defense=lora",
        "defense.epochs=1",
        "dataset.canaries.repeats=1,2",
    ],
    "known_truth": [
        "dataset.strength=0,2",
        "game.shadows=8",
        "game.victims=4",
        "game.repeats=2",
        "attack.meta_classifier.epochs=5",
        "attack.own_queries.steps=5",
    ],
}


@pytest.fixture
def fairpriv(imported, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]

    def call(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words])
        return int(ended.value.code), capfd.readouterr().out

    yield call
    root.setLevel(level)
    root.handlers[:] = handlers


VALIDATE = """
import json, sys
from fairpriv import validation
from fairpriv.cli import main

compose, plain, composed = validation.compose, validation.plain, []

def compose_noted(conf, folders, words):
    composed.append([words])
    return compose(conf, folders, words)

def plain_noted(config):
    composed[-1].append(plain(config))
    return composed[-1][1]

validation.compose, validation.plain = compose_noted, plain_noted
try:
    main(["validate"])
finally:
    heavy = {"torch", "lightning", "transformers", "peft", "torchmetrics", "wandb"} & set(sys.modules)
    print(json.dumps({"composed": composed, "heavy": sorted(heavy)}))
"""


def test_every_option_composes_with_every_key_of_what_is_built_and_nothing_heavy_is_imported():
    ended = subprocess.run([sys.executable, "-c", VALIDATE], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    *said, noted = ended.stdout.splitlines()
    assert said == [f"{sum(map(len, OPTIONS.values()))} configs checked, 0 with problems"]
    noted = json.loads(noted)
    assert noted["heavy"] == []
    configs = {word: config for words, config in noted["composed"] for word in words}
    for group in ("dataset", "model", "defense", "attack", "judge", "analysis"):
        for option in OPTIONS[group]:
            node = configs[f"{group}={option}"][group]
            node = node[option] if group == "attack" else node
            assert group == "attack" or node["name"] == option  # the file's
            target = node["_target_"]
            known = parameters(target)
            assert known is not None
            assert set(node) - {"_target_"} == set(known[0]) - GIVEN_BY_THE_RUN.get(target, set()), option


def test_the_groups_that_users_choose_from_are_there():
    assert {"dataset", "model", "defense", "game", "logger", "experiment", "debug"} <= set(OPTIONS)
    assert {"dimension", "judge", "evaluation", "analysis"} <= set(OPTIONS)
    assert {"smollm2_135m", "qwen2_7b", "mistral_7b", "vicuna_7b", "llama2_7b", "hf"} <= set(OPTIONS["model"])
    assert {"full", "lora", "dora", "reft"} <= set(OPTIONS["defense"])
    assert {"refusal", "md_judge", "llama_guard", "wildguard", "harmbench", "endpoint"} <= set(OPTIONS["judge"])
    assert {"adult", "compas", "german", "lsac", "acs_income", "csv"} <= set(OPTIONS["dataset"])
    arms = {"none", "fine_tune", "rehearsal", "fair_finetune", "scratch", "fair_scratch"}
    assert arms <= set(OPTIONS["defense"])


@pytest.mark.parametrize("group", ["game", "training", "paths", "evaluation"])
def test_a_user_sees_every_key_of_the_root(group):
    config = plain(compose(CONF, [], [f"dataset={'pairs' if group == 'evaluation' else 'adult'}"]))
    file = CONF / group / f"{'pure' if group == 'game' else 'default'}.yaml"
    assert set(OmegaConf.load(file)) == set(config[group])


def test_every_option_says_what_it_is(fairpriv):
    status, out = fairpriv("ls")
    assert status == 0
    for group, options in OPTIONS.items():
        assert f"\n{group}\n" in f"\n{out}"
        for option in options:
            assert re.search(rf"^  {option} +\S", out, re.MULTILINE), (group, option)


def test_ls_of_one_group(fairpriv):
    lines = fairpriv("ls", "model")[1].splitlines()
    assert lines[0] == "model"
    assert "  mlp           classifier      Multi-layer perceptron with ReLU on tabular features" in lines
    assert len(lines) == 1 + len(OPTIONS["model"])


def test_a_file_of_the_user_s_adds_a_dataset_or_a_defence(fairpriv, tmp_path, monkeypatch):
    # beside ours, which the test of every option checks
    monkeypatch.setattr(validation, "groups", lambda folders: groups([f for f in folders if f != CONF]))
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "defense").mkdir()
    rows = [f"{i % 37},{'fm'[i % 2]},{i * i % 11 > 4}" for i in range(800)]
    (tmp_path / "people.csv").write_text("\n".join(["age,sex,hired", *rows]))
    (tmp_path / "mine" / "dataset" / "people.yaml").write_text(
        "# People of mine\ndefaults: [csv]\nname: people\nsource: {files: [people.csv]}\n"
        "target: hired\npositive: [True]\nsensitive: sex\n"
    )
    (tmp_path / "mine" / "defense" / "brief.yaml").write_text(
        "# Little\ndefaults: [fine_tune]\nname: brief\nepochs: 1\n"
    )
    here = ["--config-dir", "mine"]
    assert re.search(r"^  people +classifier +People of mine$", fairpriv("ls", *here)[1], re.M)
    assert re.search(r"^  brief +classifier +Little$", fairpriv(*here, "ls", "defense")[1], re.M)
    assert "People of mine" not in fairpriv("ls")[1]
    status, out = fairpriv("validate", *here)
    assert (status, out) == (0, "2 configs checked, 0 with problems\n")
    status, out = fairpriv(*here, "dataset=people", "defense=brief", "debug=fast", "paths.root=out")
    assert status == 0
    (result,) = find_results([Path("out")])[0]
    assert (result.config["dataset"]["name"], result.config["defense"]["name"]) == ("people", "brief")
    assert result.status == "completed"


@pytest.mark.parametrize("experiment", OPTIONS["experiment"])
def test_every_experiment_runs_in_miniature(fairpriv, tiny_lm, monkeypatch, experiment):
    if experiment not in DRAWN:
        monkeypatch.setattr("fairpriv.report.page._write_plots", lambda *_: ({}, []))
    words = [f"experiment={experiment}", "debug=fast", "paths.root=out", *IN_MINIATURE.get(experiment, [])]
    status, out = fairpriv(*words, *([f"model.path={tiny_lm}"] if "model=hf" in words else []))
    results, left_out = find_results([Path("out")])
    assert (status, left_out) == (0, [])
    assert len(results) > 1
    assert {result.status for result in results} == {"completed"}
    assert {result.config["seed"] for result in results} == {0}  # one seed of the grid
    assert "report.html" in out


def test_a_grid_is_known_by_the_experiment():
    assert is_grid(CONF, [], ["experiment=quickstart", "debug=fast"])
    assert is_grid(CONF, [], ["hydra.mode=MULTIRUN"])
    assert not is_grid(CONF, [], ["experiment=quickstart", "hydra.mode=RUN"])
    assert not is_grid(CONF, [], ["seed=0", "debug=fast"])
    assert not is_grid(CONF, [], ["experiment=quickstrat"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults: [quickstart]", True),
        ("defaults:\n  - quickstart\n  - _self_\nhydra: {mode: RUN}", False),
        ("defaults:\n  - override /trainer: all", True),  # whatever file says so
        ("defaults:\n  - override /dataset: adult\nseed: 1", False),
        ("seed: 1", False),
    ],
)
def test_a_grid_is_known_by_what_the_experiment_is_made_of(tmp_path, text, expected):
    for name, content in {"experiment/mine": text, "trainer/all": "hydra: {mode: MULTIRUN}"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    assert is_grid(CONF, [tmp_path], ["experiment=mine"]) is expected


def test_what_is_below_a_group_is_left_to_the_cells_of_a_grid():
    words = ["seed=0", "defense=none,scratch", "paths.root=a", "hydra.verbose=true", "+defense.x=1", "game.alpha=0.5,1"]
    assert left_to_cells(words) == words
    assert left_to_cells(["defense.epochs=3", "defense.grid=[1,2]", "dataset.target='a b'"]) == [
        "defense.epochs=choice(3)",
        "defense.grid=choice([1,2])",
        "dataset.target=choice('a b')",
    ]


def test_null_is_left_to_the_cells_of_a_grid():
    (word,) = left_to_cells(["evaluation.text=null"])
    (override,) = OverridesParser.create().parse_overrides([word])
    assert choices(override) == ["null"]


@pytest.mark.parametrize("option", OPTIONS["dimension"])
def test_the_prompts_of_a_dimension_can_be_read(option):
    if tasks_of("dimension", target_of(OPTIONS["dimension"], option)) == ["classifier"]:
        pytest.skip("a classifier's, which has none")
    config = plain(compose(CONF, [], ["dataset=pairs", f"dimension=[{option}]"]))
    (name,) = config["dimensions"]  # one dimension, whose name the file says
    dimension = build(config["dimensions"], name, name=name)
    if dimension.scorer is not None and type(dimension.scorer).of_training is not Scorer.of_training:
        return  # it reads what is trained on
    there = [*dimension.train.values(), *filter(None, [dimension.evaluate, dimension.benign])]
    assert there
    for texts in there:
        try:
            texts.source.locate()
        except InputError:  # a user's own files, or a carrier that is not installed
            continue
        assert len(texts.load()) >= 30


def test_debug_shrinks_the_default_cell():
    config = plain(compose(CONF, [], ["debug=fast"]))
    check(config)
    assert config["game"]["rows"] < 1000
    assert config["training"]["epochs"] == 1
    assert not config["logger"]


def test_an_experiment_can_set_the_root_s_own_keys():
    assert plain(compose(CONF, [], []))["threads"] == 1
    assert plain(compose(CONF, [], ["experiment=quickstart_llm"]))["threads"] is None


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("paths.root=/data/größe (1)", "/data/größe (1)"),
        ("paths.root=a,b", "a,b"),
        ("paths.root=1e3", "1e3"),
        ("paths.root=it's #1 & [x]=~{y} ", "it's #1 & [x]=~{y} "),
        ("model.path=/models/a=b\\'c", "/models/a=b\\'c"),
        ("model.path=/models/a,/models/b", ["/models/a", "/models/b"]),  # a sweep stays one
        ("model.path='/models/a b'", "/models/a b"),
        ("+dataset.source.files=[/data/é (1)/x.csv,y.csv]", ["/data/é (1)/x.csv", "y.csv"]),
        ("game.property=Frauen,Männer", ["Frauen", "Männer"]),
        ("dataset.positive=[über 50,50]", ["über 50", "50"]),
    ],
)
def test_what_hydra_has_no_words_for_is_quoted(word, read):
    override = OverridesParser.create().parse_override(readable(word))
    value = override.value()
    if override.is_sweep_override():
        value = [getattr(item, "text", item) for item in value.list]
    elif isinstance(read, list):
        assert not override.is_sweep_override()
    assert (list(map(str, value)) if isinstance(value, list) else value) == read
    assert readable(readable(word)) == readable(word)


def test_a_file_that_exists_is_one_value_and_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert readable("model.path=./a,b") == "model.path=./a,b"
    (tmp_path / "a,b").mkdir()
    assert readable("model.path=./a,b") == "model.path='./a,b'"
    assert readable("seed=a,b") == "seed=a,b"
    assert readable("paths.data=~/mine") == "paths.data=/home/someone/mine"


@pytest.mark.parametrize(
    "word", ["game.rows=[1", "seed=range(0,2", "~judge", "paths.root=", "seed=0,1", "paths.root=null"]
)
def test_other_overrides_stay_as_they_are(word):
    assert readable(word) == word


def two_arguments(probs, y):
    return probs, y


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            {"it": {"measure": {"_target_": f"{__name__}.two_arguments"}}},
            "mine.metrics.it.measure: two_arguments() missing 2 required positional arguments: 'probs' and 'y'; with "
            "_partial_: true it is handed on, to be called later",
        ),
        (
            {"it": {"measure": {"_target_": "pathlib.Path.read_text"}}},
            "mine.metrics.it.measure: Path.read_text() missing 1 required positional argument: 'self'; with "
            "_partial_: true it is handed on, to be called later",
        ),
        (
            {"it": {"measure": {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 0}}},
            "mine.metrics.it.measure: Fraction(1, 0)",
        ),
    ],
)
def test_what_cannot_be_built_is_told_by_its_key(metrics, message):
    target = "fairpriv.classifiers.dimensions.prediction.Predictions"
    with pytest.raises(InputError) as error:
        build({"mine": {"_target_": target, "metrics": metrics}}, "mine", name="mine")
    assert str(error.value) == message
