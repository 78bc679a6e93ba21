"""Build the wheel and the sdist, check both, and install the wheel with each extra in turn (`make packages`).

Every extra is added to a clean environment that holds the wheel alone, under constraints.txt, imported, and taken away
again.
Arguments are the names of extras; none: all of them.
"""

import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CONSTRAINTS = ["--quiet", "--disable-pip-version-check", "-c", str(REPOSITORY / "constraints.txt")]
PROMISED = {  # what a user of the extra imports, or what imports it for them
    "acs": "folktables",
    "bitsandbytes": "bitsandbytes",
    "dp": "opacus",
    "gguf": "gguf",
    "lm-eval": "lm_eval",
    "parquet": "pyarrow.parquet",
    "ray": "ray, fairpriv.sweep.ray_tasks",
    "search": "optuna",
    "serve": "fastapi, uvicorn, openai",
    "slurm": "hydra_plugins.hydra_submitit_launcher.submitit_launcher",
    "wandb-view": "wandb_workspaces.workspaces, wandb_workspaces.reports.v2",
    "docs": "mkdocs, material, mkdocstrings",
    "dev": "pytest, xdist, mypy, ruff, hatchling",
}


def run(*command: object) -> str:
    """Run a command; return what it says, or end with it."""
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def environment(folder: Path) -> tuple[Path, list[str]]:
    """Make an environment; return its interpreter, and the words that install into it."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    return python, [str(python), "-m", "pip", "install", *CONSTRAINTS]


def main(extras: list[str]) -> None:
    """Check the packages."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert declared.keys() == PROMISED.keys(), f"PROMISED differs in {declared.keys() ^ PROMISED.keys()}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python, install = environment(folder / "tools")
        run(*install, "hatchling", "twine")
        run("env", "-C", REPOSITORY, python, "-m", "hatchling", "build", "-d", folder / "dist")
        print(run(python, "-m", "twine", "--no-color", "check", "--strict", *(folder / "dist").iterdir()), end="")
        (wheel,) = (folder / "dist").glob("*.whl")

        python, install = environment(folder / "clean")
        run(*install, wheel)
        run(python, "-m", "fairpriv", "validate")
        freeze = (python, "-m", "pip", "freeze", "--disable-pip-version-check")
        alone = set(run(*freeze).splitlines())
        for extra in extras or declared:
            began = time.monotonic()
            run(*install, f"{wheel}[{extra}]")
            run(python, "-m", "pip", "check")
            run(python, "-W", "ignore", "-c", f"import {PROMISED[extra]}")
            added = sorted(set(run(*freeze).splitlines()) - alone)
            print(f"{extra}: {time.monotonic() - began:.0f} s, adds {', '.join(added) or 'nothing'}", flush=True)
            if added:
                run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *(line.partition("==")[0] for line in added))


if __name__ == "__main__":
    main(sys.argv[1:])
