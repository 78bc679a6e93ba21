"""Classes and configs of the user's own: of a --config-dir folder, and of an installed package."""

import importlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fairpriv.config.plugins import plugin_folders
from fairpriv.config.schema import forget_sources
from fairpriv.report.finding import find_results

LAB = Path(__file__).parents[1] / "plugin"  # a package of attack, defence, judge, scorer, dimension and dataset
ATTACK = """
from dataclasses import dataclass

from fairpriv.classifiers.attacks.attack import Attack


@dataclass
class MeanOutput(Attack):
    name: str

    def run(self, game):
        zero, one = (probs.mean() for probs in game.shadow_probs(self.name))
        return game.result(self.name, (one - zero) * game.victim_probs.mean(1))
"""
NODE = """# @package attack.mean_output
# Mean output
_target_: my_attack.MeanOutput
name: mean_output
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with an attack: its class and its config."""
    (tmp_path / "own" / "attack").mkdir(parents=True)
    (tmp_path / "own" / "my_attack.py").write_text(ATTACK)
    (tmp_path / "own" / "attack" / "mean_output.yaml").write_text(NODE)
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("my_attack", "my_atack", "there is no module my_atack, neither installed nor in the --config-dir folder (did"),
        ("MeanOutput", "MeanOutputs", "of that name (did you mean 'my_attack.MeanOutput'?)"),
        ("my_attack.MeanOutput", "builtins.dict", "builtins has no Python source to read parameters from"),
        ("my_attack.MeanOutput", "subprocess.run", "is no attack, which is a class with run"),
        ("name:", "nam:", "unknown key attack.mean_output.nam (did you mean 'attack.mean_output.name'?)"),
    ],
)  # fmt: skip
def test_a_config_beside_its_class_is_checked_against_it(fairpriv, folder, old, new, said):
    (folder / "attack" / "mean_output.yaml").write_text(NODE.replace(old, new))
    ended = fairpriv("--config-dir", folder, "attack=[mean_output]")
    assert (ended.status, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("words", [["ls"], ["show", "attack=mean_output"], ["validate"], ["seed=1", "debug=fast"]])
def test_a_config_that_is_not_utf8_is_refused_with_its_line(fairpriv, folder, words):
    (folder / "attack" / "mean_output.yaml").write_bytes(NODE.encode() + "label: Männer\n".encode("latin-1"))
    ended = fairpriv("--config-dir", folder, *words)
    assert (ended.status, ended.out) == (2, "")
    assert "mean_output.yaml, line 5: is not UTF-8" in ended.err


def test_a_file_whose_name_is_read_as_a_value_is_refused(fairpriv, folder):
    (folder / "attack" / "2018.yaml").write_text((folder / "attack" / "mean_output.yaml").read_text())
    ended = fairpriv("--config-dir", folder, "validate")
    assert (ended.status, ended.out) == (2, "")
    assert "2018.yaml: 2018 is read as a value, and not as a name: rename it" in ended.err


@pytest.mark.parametrize(("group", "place"), [("attack", "attack"), ("dimension", "dimensions")])
def test_a_part_whose_file_does_not_say_its_name_is_refused(fairpriv, folder, group, place):
    words = wrong(folder, group, "Scores")
    file = folder / group / "x.yaml"
    file.write_text(file.read_text().split("\n", 1)[1])
    ended = fairpriv("--config-dir", folder, *words)
    assert (ended.status, ended.out) == (2, "")
    assert f"x.yaml: its first line must be '# @package {place}.x', or another name there" in ended.err


def test_an_attack_without_a_name_is_refused(fairpriv, folder):
    words = wrong(folder, "attack", "Nameless")
    file = folder / "attack" / "x.yaml"
    file.write_text(file.read_text().replace("name: x\n", ""))
    ended = fairpriv("--config-dir", folder, *words)
    assert (ended.status, ended.out) == (2, "")
    assert "attack=x has no name for its metrics: declare name: str, and set it in the YAML" in ended.err


def test_a_class_that_cannot_be_imported_is_told_of_in_one_line(fairpriv, folder):
    (folder / "my_attack.py").write_text("import nothing_of_that_name\n" + ATTACK)
    ended = fairpriv("--config-dir", folder, "attack=[mean_output]", "dataset=german", "debug=fast")
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1
    assert "No module named 'nothing_of_that_name'" in ended.err


WRONG = """
from torch.nn import Sequential, Softmax

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.contract import Defended, Defense
from fairpriv.classifiers.dimensions.probe import Probe


class Scores(Attack):
    def __init__(self, name):
        self.name = name

    def run(self, game):
        return game.victim_probs.mean(1)


class Nameless(Attack):
    def run(self, game):
        return game.result("x", game.victim_probs.mean(1))


class Net(Defense):
    def __init__(self, name):
        self.name = name

    def defend(self, owner):
        return owner.base()

    def defend_pool(self, owner):
        return owner.base()


class Sure(Net):
    def defend(self, owner):
        return Defended(Sequential(owner.base(), Softmax(1)))


class Codes(Net):
    def defend(self, owner):
        return Defended(None, predict=lambda rows: rows.y + 1)


class Number(Probe):
    def __init__(self, name):
        self.name = name

    def measure(self, subject):
        return 0.5


class Broken(Number):
    def measure(self, subject):
        return subject.nothing_of_that_name
"""


@pytest.mark.parametrize(
    ("group", "part", "said"),
    [
        ("attack", "Scores", "attack x: run must return fairpriv.classifiers.attacks.attack.AttackResult, not Tensor"),
        ("defense", "Net", "defense=x: defend must return fairpriv.classifiers.contract.Defended, not MLP"),
        (
            "defense",
            "Sure",
            "defense=x: net must give logits of shape [4, 2] for 4 rows, and gives probabilities: leave out the "
            "softmax",
        ),
        ("defense", "Codes", "the defence's predict must return labels from 0 to 1, and returned [1, 2]"),
        ("dimension", "Number", "dimensions.x: measure must return fairpriv.metrics.Measured, not float"),
    ],
)
def test_a_part_that_returns_something_else_is_told_what_it_must_return(fairpriv, folder, group, part, said):
    ended = fairpriv("--config-dir", folder, *wrong(folder, group, part))
    assert ended.status == 2
    assert ended.err.splitlines()[-1] == f"fairpriv: {said}"


def test_an_error_of_a_part_s_own_says_how_to_see_where(fairpriv, folder):
    ended = fairpriv("--config-dir", folder, *wrong(folder, "dimension", "Broken"))
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert ended.err.endswith("has no attribute 'nothing_of_that_name' (hydra.verbose=true shows where)\n")


def test_where_a_part_raises_an_error_is_shown_on_demand(fairpriv, folder):
    logging.getLogger("fairpriv").setLevel(logging.INFO)  # as an earlier call in the same process leaves it
    ended = fairpriv("--config-dir", folder, *wrong(folder, "dimension", "Broken"), "hydra.verbose=true")
    assert "return subject.nothing_of_that_name" in ended.err
    assert ended.err.endswith("has no attribute 'nothing_of_that_name'\n")


def wrong(folder, group, part):
    """Write a config of one of the classes in ``WRONG``, and return the words that choose it."""
    (folder / "my_wrong.py").write_text(WRONG)
    (folder / group).mkdir(exist_ok=True)
    package = {"attack": "# @package attack.x\n", "defense": "", "dimension": "# @package dimensions.x\n"}[group]
    (folder / group / "x.yaml").write_text(f"{package}# X\n_target_: my_wrong.{part}\nname: x\n")
    return ["dataset=german", "debug=fast", f"{group}={'x' if group == 'defense' else '[x]'}"]


def test_a_file_that_would_hide_behind_an_installed_module_is_refused(fairpriv, folder):
    (folder / "datasets.py").write_text("")
    ended = fairpriv("--config-dir", folder, "ls")
    assert ended.status == 2
    assert "datasets.py: Python has a module datasets (" in ended.err
    assert "rename it" in ended.err


@pytest.mark.parametrize("name", ["plot.v2.py", "._my_attack.py", "my.package/__init__.py"])
def test_a_file_that_no_module_can_be_is_passed_over(fairpriv, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    ended = fairpriv("--config-dir", folder, "ls", "attack")
    assert (ended.status, ended.err) == (0, "")
    assert "mean_output" in ended.out


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The lab's wheel, built and installed without a network."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(LAB, folder / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=folder / "lab", check=True, capture_output=True)
    (wheel,) = (folder / "dist").iterdir()
    install = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *install, str(wheel)], check=True, capture_output=True)
    return folder / "site"


@pytest.fixture(params=["folder", "wheel"])
def lab(request, fairpriv, monkeypatch):
    """Runs a command line that knows the lab's parts."""
    before = plugin_folders()
    if request.param == "folder":
        yield lambda *words: fairpriv("--config-dir", LAB / "mine", *words)
    else:
        monkeypatch.syspath_prepend(request.getfixturevalue("site"))
        plugin_folders.cache_clear()
        forget_sources()
        yield fairpriv
        monkeypatch.undo()
        plugin_folders.cache_clear()
    for name in [name for name in sys.modules if name.startswith("fairpriv_lab")]:
        del sys.modules[name]
    assert plugin_folders() == before


def test_the_parts_of_a_plug_in_are_listed_and_shown(lab):
    ended = lab("ls")
    assert ended.status == 0, ended.err
    for name in ("lab_mean", "lab_noise", "lab_words", "lab_brief", "lab_people"):
        assert f"  {name} " in ended.out
    assert "sigma: 0.25" in lab("show", "defense=lab_noise").out
    assert "did you mean 'lab_noise'?" in lab("defense=lab_noize").err


@pytest.mark.parametrize("lab", ["wheel"], indirect=True)
def test_a_language_model_s_parts_of_a_plug_in_run_on_slots(lab, words):
    more = ["dimension=[lab_brief,fairness]", "judge=lab_words", "defense=none", "dataset.dimensions=[fairness]"]
    ended = lab("-m", *words, *more, "hydra/launcher=local_slots", "hydra.launcher.slots=1")
    assert ended.status == 0, ended.err
    (result,) = find_results([Path("out")])[0]
    assert {"eval/lab_brief/score", "eval/fairness/awareness"} <= set(result.metrics)
    assert result.config["judge"]["unsafe"] == ["never"]


def test_a_plug_in_without_configs_and_one_of_a_taken_name_are_refused(fairpriv, tmp_path, monkeypatch):
    package, info = tmp_path / "site" / "other", tmp_path / "site" / "other-1.dist-info"
    for folder in (package, info):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (info / "METADATA").write_text("Name: other\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fairpriv.plugins]\nother = other\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    plugin_folders.cache_clear()
    try:
        assert "there is no package other with a folder conf: mend or uninstall other" in fairpriv("ls").err
        (package / "conf" / "model").mkdir(parents=True)
        (package / "conf" / "model" / "mlp.yaml").write_text("# Another\n")
        assert "mlp.yaml: fairpriv has a model of that name, which goes first: rename it" in fairpriv("ls").err
    finally:
        monkeypatch.undo()
        plugin_folders.cache_clear()


def test_nothing_of_a_result_is_ever_built(fairpriv, folder, tmp_path, monkeypatch):
    """Its config is data: a class named in it is not even imported."""
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n")
    monkeypatch.syspath_prepend(folder)
    assert fairpriv("dataset=german", "debug=fast", "game.rows=40", "paths.root=out").status == 0
    (path,) = Path("out").glob("cells/*/result.json")
    stored = json.loads(path.read_text())
    for group in ("model", "dataset", "defense", "trainer", "logger"):
        stored["config"][group] = {**(stored["config"][group] or {}), "_target_": "evil.Logger"}
    path.write_text(json.dumps(stored))
    assert fairpriv("compare", "out").status == 0
    assert fairpriv("log", "out", "logger=csv").status == 0
    assert fairpriv("status", "out").status in (0, 2)
    assert not (tmp_path / "imported").exists()
    importlib.import_module("evil")  # which would have shown
    assert (tmp_path / "imported").exists()
