"""The ``fairpriv`` command: Hydra runs the cells, a few verbs stand beside it. Nothing heavy is imported here."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairpriv import __version__
from fairpriv.errors import InputError
from fairpriv.schema import nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fairpriv.tracking.result import Result

CONF = next(p for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir())

HELP = f"""\
fairpriv {__version__}: measure, attack and mend the trade-offs between fairness, privacy and other dimensions.

  fairpriv experiment=NAME [key=value ...]   run one cell, or a study's whole grid
  fairpriv -m key=a,b,c ...                  run a grid; issued again, it skips the cells that are finished
  fairpriv compare DIR... [--out DIR]        table, report.html, table.csv and plots of the results below DIR
  fairpriv ls [GROUP]                        the datasets, models, defences, experiments ... that exist
  fairpriv validate [--deep]                 compose and check every config; --deep also opens data and builds models

Start with
  fairpriv experiment=quickstart             four datasets x six defences x three seeds
  fairpriv dataset=compas defense=fair_finetune defense.penalty=2 seed=1
  fairpriv -m dataset=adult defense=none,fair_finetune seed=0,1 && fairpriv compare outputs

Useful keys (fairpriv --cfg job prints them all)
  dataset=  model=  defense=  game=  logger=offline|wandb|none  seed=0  game.alpha=1.0  game.world=0
  debug=fast      shrink any experiment to seconds
  retry=all       run cells again that are finished already (failed cells always are; retry=none keeps them)
  paths.root=DIR  where results go (outputs)

Hydra's options work as they are: --cfg job, --config-dir DIR (your own configs), --info, --hydra-help,
--shell-completion.
Exit status: 0 done, 2 the input is wrong, 1 anything else.
"""

QUIET_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc", "--version")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script and of ``python -m fairpriv``; exits with the documented status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        status = dispatch(args)
    except InputError as error:
        print(f"fairpriv: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("fairpriv: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        status = 1
    except BrokenPipeError:  # the reader, head for example, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def dispatch(args: list[str]) -> int:
    """Carry out one command line; returns the exit status."""
    verb = args[0] if args else ""
    if verb in ("--help", "-h", "help") or ("--help" in args or "-h" in args):
        print(HELP, end="")
        return 0
    if verb == "--version":
        print(f"fairpriv {__version__}")
        return 0
    if verb == "ls":
        from fairpriv.configs import list_configs

        words, folder = config_dir(args[1:])
        return list_configs([CONF, *folder], words)
    if verb == "validate":
        from fairpriv.configs import validate

        words, folder = config_dir(args[1:])
        if set(words) - {"--deep"}:
            raise InputError(f"validate {' '.join(words)}: takes --deep and --config-dir DIR only")
        return validate(CONF, folder, deep="--deep" in words)
    if verb == "compare":
        from fairpriv.tracking.compare import compare

        words, out = option(args[1:], "--out")
        if not words:
            raise InputError("compare: name the folders whose results are to be compared, for example outputs")
        return compare([Path(word) for word in words], Path(out[0]) if out else None)
    if verb and re.fullmatch(r"[a-z_-]+", verb) and not verb.startswith("-"):
        raise InputError(f"unknown command {verb!r}{nearest(verb, ['compare', 'ls', 'validate'])}; see fairpriv --help")
    return hydra_run(args)


def option(args: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Split ``--name VALUE`` and ``--name=VALUE`` from the other words."""
    words, values, rest = [], [], list(args)
    while rest:
        word = rest.pop(0)
        if word == name:
            if not rest:
                raise InputError(f"{name} needs a value")
            values.append(rest.pop(0))
        elif word.startswith(f"{name}="):
            values.append(word.partition("=")[2])
        else:
            words.append(word)
    return words, values


def config_dir(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Split ``--config-dir DIR`` from the other words; the folder must exist."""
    words, values = option(args, "--config-dir")
    for value in values:
        if not Path(value).is_dir():
            raise InputError(f"--config-dir {value}: there is no such folder")
    return words, [Path(value) for value in values]


def hydra_run(args: list[str]) -> int:
    """Hand the command line to Hydra; its errors become one line, a sweep ends with its table."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from fairpriv.configs import explain, register_schema
    from fairpriv.sweep import progress

    if not args:
        raise InputError("nothing is asked for; see fairpriv --help, or start with: fairpriv experiment=quickstart")
    overrides, folders = config_dir(args)
    register_schema()
    if not any(arg.split("=")[0] in (*QUIET_FLAGS, "sweep") for arg in args):
        args = [*args, f"sweep={sweep_name(overrides)}"]
    wrong: list[InputError] = []
    failed: list[bool] = []

    def job(cfg: DictConfig) -> dict[str, str | None]:
        single = HydraConfig.get().mode is RunMode.RUN
        if single:
            cfg.sweep = None
        from fairpriv.run import run

        logging.getLogger("fairpriv").setLevel(logging.INFO if single else logging.ERROR)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips, no list of devices
        try:
            result = run(cfg)
        except InputError as error:  # kept from Hydra, which would add a line of its own
            wrong.append(error)
            return {"status": "failed", "error": str(error)}
        except SystemExit:  # how Lightning ends a fit after Ctrl-C
            raise KeyboardInterrupt from None
        failed.append(result.status == "failed")
        if single:
            show(result)
        return {"status": result.status, "error": result.error}

    old_argv, sys.argv = sys.argv, ["fairpriv", *args]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting, so that we can translate
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except (hydra.errors.HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, CONF, folders, overrides)) from None
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; paths.root must be a writable folder") from None
    finally:
        sys.argv = old_argv
        progress.stop()
    if (sweep := progress.finished_sweep()) is not None:
        from fairpriv.tracking.compare import compare
        from fairpriv.tracking.result import find_results

        compare([sweep])
        return int(any(result.status == "failed" for result in find_results([sweep])[0]))
    if wrong:
        raise wrong[0]
    return int(any(failed))


def sweep_name(overrides: Sequence[str]) -> str:
    """A name that the same command gets again: the experiment's, with a hash of other overrides if there are any."""
    keys = dict(word.split("=", 1) for word in overrides if "=" in word)
    name = keys.pop("experiment", "sweep")
    if not keys and name != "sweep":
        return name
    return f"{name}-{hashlib.sha256(repr(sorted(keys.items())).encode()).hexdigest()[:8]}"


def show(result: Result) -> None:
    """Print one cell's metrics with their 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    config = result.config
    names = f"{config['dataset']['name']}, {config['defense']['name']}"
    title = f"{names}, world {config['game']['world']}, seed {config['seed']}: {result.status}"
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left", min_width=len(title))
    for name, value in result.metrics.items():
        low, high = result.intervals.get(name, (None, None))
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        table.add_row(name, "-" if value is None else f"{value:.4g}", interval)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for reason in result.degenerate:
        console.print(f"degenerate: {reason}")
    if result.error:
        console.print(f"failed: {result.error}", markup=False)
    console.print(str(Path(config["paths"]["root"], "cells", result.id, "result.json")), soft_wrap=True)
