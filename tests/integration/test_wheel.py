import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
VALIDATE = """
import atexit, sys
heavy = {"torch", "lightning", "transformers", "peft", "torchmetrics", "wandb"}
atexit.register(lambda: print(heavy & set(sys.modules) or "nothing heavy"))
from fairpriv import validation
from fairpriv.cli import main
ours = validation.groups
validation.groups = lambda folders: {group: ours(folders)[group] for group in ("attack", "logger", "model")}
main(["validate"])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and installed into a folder outside the checkout; runs its console script or a module of it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = (folder / "dist").iterdir()
    install = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *install, str(wheel)], check=True, capture_output=True)
    (folder / "work").mkdir()

    def call(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
        command = [sys.executable, *words]
        ended = subprocess.run(command, cwd=folder / "work", env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    call.script = str(folder / "site" / "bin" / "fairpriv")
    call.site = folder / "site"
    return call


def test_the_wheel_works_outside_the_checkout(installed):
    assert Path(installed("-c", "import fairpriv; print(fairpriv.__file__)").strip()).is_relative_to(installed.site)
    assert (installed.site / "fairpriv" / "conf" / "config.yaml").is_file()
    assert "fairpriv compare DIR" in installed(installed.script, "--help")
    assert "quickstart" in installed(installed.script, "ls", "experiment")
    assert installed("-c", VALIDATE).endswith(" configs checked, 0 with problems\nnothing heavy\n")
    assert str(installed.site) in installed(installed.script, "--info", "searchpath")
    small = ["dataset=german", "defense=none,fine_tune", "debug=fast", "paths.root=out"]
    assert "report: out/sweeps/" in installed("-m", "fairpriv", "-m", *small)
    assert "fine_tune" in installed(installed.script, "compare", "out")


def test_the_wheel_holds_every_config_and_nothing_else_at_its_top(installed):
    shipped = {path.relative_to(installed.site / "fairpriv") for path in installed.site.rglob("conf/**/*.yaml")}
    assert shipped == {path.relative_to(REPOSITORY) for path in REPOSITORY.glob("conf/**/*.yaml")}
    tops = {path.name for path in installed.site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"fairpriv", "hydra_plugins", "bin"}
