"""Classes and configs of the user's own: of a --config-dir folder, and of an installed package."""

import pytest

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


def test_a_class_that_cannot_be_imported_is_told_of_in_one_line(fairpriv, folder):
    (folder / "my_attack.py").write_text("import nothing_of_that_name\n" + ATTACK)
    ended = fairpriv("--config-dir", folder, "attack=[mean_output]", "dataset=german", "debug=fast")
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1
    assert "No module named 'nothing_of_that_name'" in ended.err


def test_a_file_that_would_hide_behind_an_installed_module_is_refused(fairpriv, folder):
    (folder / "datasets.py").write_text("")
    ended = fairpriv("--config-dir", folder, "ls")
    assert ended.status == 2
    assert "datasets.py: Python has a module datasets (" in ended.err
    assert "rename it" in ended.err
