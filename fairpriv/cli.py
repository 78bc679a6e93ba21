"""The ``fairpriv`` command: Hydra runs the cells, a few verbs stand beside it. Nothing heavy is imported here."""

from __future__ import annotations

import errno
import gc
import hashlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fairpriv import __version__
from fairpriv.errors import InputError
from fairpriv.schema import check, nearest
from fairpriv.secrets import masked
from fairpriv.sweep.ddp import refuse_torchrun
from fairpriv.sweep.lock import HeldError

if TYPE_CHECKING:
    from argparse import Namespace

    from hydra.plugins.sweeper import Sweeper
    from omegaconf import DictConfig

    from fairpriv.result import Result
    from fairpriv.sweep.progress import SweepProgress

CONF = next(p for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir())

HELP = f"""\
fairpriv {__version__}: measure, attack and mend the trade-offs between fairness, privacy and other dimensions.

  fairpriv experiment=NAME [key=value ...]   run one cell, or a study's whole grid
  fairpriv -m key=a,b,c ...                  run a grid; issued again, it skips the cells that are finished
  fairpriv compare DIR... [options]          table, report.html, table.csv and plots of the results below DIR
  fairpriv status DIR...                     what is done, running, failed and left of the sweeps in DIR
  fairpriv log DIR... [logger=NAME]          log the finished cells below DIR, whatever logger they were run with
  fairpriv wandb-view GROUP                  a W&B workspace and report of a sweep [--project NAME] [--entity NAME]
  fairpriv edit show|apply|revert FILE       a SPIN edit: what it holds; put it on a saved model, or take it off
  fairpriv ls [GROUP]                        the datasets, models, defences, experiments ... that exist
  fairpriv validate [--deep]                 compose and check every config; --deep also opens data, tries five samples

Start with
  fairpriv experiment=quickstart             four datasets x six defences x three seeds
  fairpriv experiment=quickstart_llm         a small language model: none, LoRA, SPIN
  fairpriv dataset=compas defense=fair_finetune defense.penalty=2 seed=1
  fairpriv -m dataset=adult defense=none,fair_finetune seed=0,1 && fairpriv compare outputs

Options of compare
  --where KEY=VALUE[,VALUE]   cells that fulfil this only (also != < <= > >=; may be given again: all must hold)
  --by KEY,KEY                group by these config keys, and average over all others
  --baseline KEY=VALUE,...    what differences refer to (defense=none)
  --pareto METRIC,METRIC      mark the front of these metrics
  --format table|csv|markdown|html   what is printed; --out DIR: where the files go (the first DIR)

Useful keys (fairpriv --cfg job prints them all)
  dataset=  model=  defense=  game=  logger=offline|wandb|none  seed=0  game.alpha=1.0  game.world=0
  debug=fast      shrink any experiment to seconds
  trainer=ddp trainer.devices=2   train each cell in two processes; on GPUs, one process each
  retry=all       run cells again that are finished already (failed cells always are; retry=none keeps them)
  paths.root=DIR  where results go (outputs)
  hydra/launcher=local_slots   a grid's cells side by side: one for each GPU, or as many as the cores take

Hydra's options work as they are: --cfg job, --config-dir DIR (your own configs), --info, --hydra-help,
--shell-completion.
Exit status: 0 done, 2 the input is wrong, 130 interrupted (Ctrl-C), 1 anything else.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script and of ``python -m fairpriv``; exits with the documented status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        status = dispatch(args)
        sys.stdout.flush()  # while a full disk, or a reader that has gone, can still be answered
    except InputError as error:
        print(f"fairpriv: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("fairpriv: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader, head for example, has all it wants
        status = 0
        leave_output()
    except OSError as error:
        print(f"fairpriv: {error}", file=sys.stderr)
        status = 1
        leave_output()
    sys.exit(status)


def leave_output() -> None:
    """Let what is left of the output go nowhere if it cannot be written, or Python would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dispatch(args: list[str]) -> int:
    """Carry out one command line; returns the exit status."""
    if "--help" in args or "-h" in args or args[:1] == ["help"]:
        print(HELP, end="")
        return 0
    if args[:1] == ["--version"]:
        print(f"fairpriv {__version__}")
        return 0
    words, folders = config_dir(args)
    verb = words.pop(0) if words else ""
    if verb == "ls":
        from fairpriv.configs import list_configs

        return list_configs([CONF, *folders], words)
    if verb == "validate":
        from fairpriv.validation import validate

        if set(words) - {"--deep"}:
            raise InputError(f"validate {' '.join(words)}: takes --deep and --config-dir DIR only")
        return validate(CONF, folders, deep="--deep" in words)
    if verb == "compare":
        return compare_results(words)
    if verb == "status":
        from fairpriv.sweep.status import status

        if not words or any(word.startswith("-") for word in words):
            raise InputError(f"status {' '.join(words)}: takes folders: paths.root (outputs, say) or those of sweeps")
        return status([Path(word) for word in words])
    if verb == "log":
        return log_cells(words, folders)
    if verb == "edit":
        return edit(words, folders)
    if verb == "wandb-view":
        return view(words)
    if re.fullmatch(r"[a-z][a-z_-]*", verb):
        known = [
            "compare",
            "edit",
            "log",
            "ls",
            "status",
            "validate",
            "wandb-view",
            *(f"experiment={file.stem}" for file in CONF.glob("experiment/*.yaml")),
        ]
        raise InputError(f"unknown command {verb!r}{nearest(verb, known)}; see fairpriv --help")
    refuse_torchrun(args)
    return hydra_run(args, folders)


def compare_results(words: list[str]) -> int:
    """``compare DIR...`` with its options."""
    from fairpriv.report.page import compare

    chosen: dict[str, str | None] = {}
    for name in ("out", "by", "baseline", "pareto", "format"):
        words, values = option(words, f"--{name}")
        chosen[name] = values[0] if values else None
    words, where = option(words, "--where", many=True)
    if unknown := [word for word in words if word.startswith("-")]:
        known = ["--where", "--by", "--baseline", "--pareto", "--format", "--out"]
        raise InputError(f"compare {unknown[0]}: takes folders, {', '.join(known)}{nearest(unknown[0], known)}")
    if not words:
        raise InputError("compare: name the folders whose results are to be compared, for example outputs")
    gc.disable()  # what a thousand results hold is needed to the end; to look through it for garbage takes long
    try:
        return compare(
            [Path(word) for word in words],
            Path(chosen["out"]) if chosen["out"] else None,
            where=where,
            by=chosen["by"],
            baseline=chosen["baseline"],
            pareto=chosen["pareto"],
            form=chosen["format"] or "table",
        )
    finally:
        gc.enable()


def edit(words: list[str], folders: Sequence[Path]) -> int:
    """``edit show FILE``, and ``edit apply|revert FILE --model MODEL [--adapter DIR] --out DIR``."""
    words, model = option(words, "--model")
    words, adapter = option(words, "--adapter")
    words, out = option(words, "--out")
    usage = "edit show FILE, or edit apply|revert FILE --model NAME_OR_FOLDER [--adapter DIR] --out DIR"
    named = bool(model or adapter or out)
    if len(words) != 2 or words[0] not in ("apply", "revert", "show") or named == (words[0] == "show"):
        raise InputError(f"edit {' '.join(words)}: the command is {usage}")
    if words[0] != "show" and not (model and out):
        raise InputError(f"edit {words[0]}: needs both --model and --out; the command is {usage}")
    file = Path(words[1])
    if not file.is_file():
        raise InputError(f"{file}: there is no such file")
    if out and Path(out[0]).exists() and (not Path(out[0]).is_dir() or any(Path(out[0]).iterdir())):
        raise InputError(f"--out {out[0]}: is there already, and not empty: name a new folder")
    if adapter and not Path(adapter[0], "adapter_config.json").is_file():
        raise InputError(f"--adapter {adapter[0]}: holds no adapter_config.json of PEFT; defense.save=true keeps one")
    from fairpriv.editing import SpinEdit, export

    found = SpinEdit.load(file)
    if words[0] == "show":
        from rich.console import Console

        Console().print_json(data={"summary": found.summary(), "metadata": found.metadata})
        return 0
    import dataclasses

    from fairpriv.configs import build, compose, plain
    from fairpriv.language_models.models.pretrained import PretrainedLM

    options = [f.stem for folder in (CONF, *folders) for f in folder.glob("model/*.yaml")]
    if model[0] in options:
        config = plain(compose(CONF, folders, [f"model={model[0]}"]))
        if not str(config["model"]["_target_"]).endswith(".PretrainedLM"):
            raise InputError(f"--model {model[0]}: is no language model")
        if config["model"]["path"] == "???":
            raise InputError(f"--model {model[0]}: its path has no value; give the model's folder or name on the hub")
        language_model: PretrainedLM = build(config, "model")
    else:
        language_model = PretrainedLM(name="model", path=model[0])
    for values in found.originals.values():  # an edit fits the dtype that it was made in
        dtype: Any = str(values.dtype).removeprefix("torch.")
        language_model = dataclasses.replace(language_model, dtype=dtype)
    loaded, tokenizer = language_model.load()
    if adapter:
        from fairpriv.language_models.models.pretrained import merged

        loaded = merged(loaded, Path(adapter[0]))
    getattr(found, words[0])(loaded)
    export(loaded, tokenizer, Path(out[0]))
    print(f"{found.summary()['suppressed']} weights {'edited' if words[0] == 'apply' else 'put back'}: {out[0]}")
    return 0


def view(words: list[str]) -> int:
    """``wandb-view GROUP [--project NAME] [--entity NAME]``."""
    words, project = option(words, "--project")
    words, entity = option(words, "--entity")
    if len(words) != 1 or words[0].startswith("-"):
        raise InputError(
            f"wandb-view {' '.join(words)}: the command is wandb-view GROUP [--project NAME] [--entity NAME]; "
            "GROUP is a sweep's name, as in outputs/sweeps"
        )
    from fairpriv.report.wandb_view import wandb_view

    return wandb_view(words[0], project[0] if project else "fairpriv", entity[0] if entity else None)


def log_cells(words: list[str], folders: Sequence[Path]) -> int:
    """``log DIR... [logger=NAME] [logger.KEY=VALUE]``."""
    from fairpriv.configs import CONFIG_ERRORS, explain

    overrides = [word for word in words if re.match(r"[+~]*logger[.=]", word)]
    places = [Path(word) for word in words if word not in overrides]
    if not places or any(str(place).startswith("-") for place in places):
        raise InputError(f"log {' '.join(words)}: the command is log DIR... [logger=NAME] [logger.KEY=VALUE]")
    from fairpriv.report.loggers import log_results

    try:
        return log_results(CONF, folders, places, overrides)
    except CONFIG_ERRORS as error:
        raise InputError(explain(error, CONF, folders, overrides)) from None


def option(args: Sequence[str], *names: str, many: bool = False) -> tuple[list[str], list[str]]:
    """Split ``--name VALUE`` and ``--name=VALUE`` from the other words; there is at most one value unless ``many``."""
    words: list[str] = []
    values: list[str] = []
    rest = list(args)
    while rest:
        name, equals, value = (word := rest.pop(0)).partition("=")
        if name not in names:
            words.append(word)
        elif (values and not many) or not (equals or rest):
            raise InputError(f"{name} needs one value")
        else:
            values.append(value if equals else rest.pop(0))
    return words, values


def config_dir(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Split ``--config-dir DIR`` from the other words; the folder must exist and hide behind none of our names."""
    words, values = option(args, "--config-dir", "-cd")
    folders = [Path(value) for value in values]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--config-dir {folder}: there is no such folder")
        for file in sorted(folder.glob("*/*.yaml")):
            if (CONF / file.relative_to(folder)).is_file():  # Hydra would silently take ours
                raise InputError(f"{file}: fairpriv has a {file.parent.name} of that name, which goes first: rename it")
    return words, folders


def hydra_options(args: Sequence[str]) -> Namespace:
    """Read the command line by Hydra's own parser, but flags and overrides in any order and errors on one line."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; see fairpriv --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(args)
    chosen = [options.run, options.multirun, options.shell_completion, options.cfg, options.info]
    if sum(map(bool, chosen)) > 1:
        raise InputError("--run, --multirun, --cfg, --info and --shell-completion: only one of them can be given")
    if options.resolve and not options.cfg:
        raise InputError("--resolve: goes with --cfg only")
    if options.experimental_rerun:
        raise InputError("--experimental-rerun: give the same command again, with retry=all if its cells are finished")
    return options


def job(cfg: DictConfig) -> dict[str, Any]:
    """Hydra's task, in this process or in a launcher's: run one cell and say what it came to.

    Returns:
        ``id`` and ``status`` of the cell; ``error``: one line, or None; ``metrics`` and ``degenerate`` of its result;
        ``raised``: the exception, where there is no result to speak of. All of it can cross processes.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from fairpriv.configs import plain

    single = HydraConfig.get().mode is RunMode.RUN
    if single:
        cfg.sweep = None
    log = logging.getLogger("fairpriv")
    if not HydraConfig.get().verbose:
        log.setLevel(logging.INFO if single else logging.WARNING)
    try:
        check(plain(cfg))  # here, so that nobody waits for the heavy imports to hear of it
        from fairpriv.run import run

        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips, no list of devices
        result = run(cfg)
    except SystemExit:  # how Lightning ends a fit after Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:  # kept from Hydra, which would add lines of its own
        log.debug("failed", exc_info=True)
        if isinstance(error, HeldError) and not single:
            return {"id": None, "status": "running elsewhere", "error": str(error)}
        known = isinstance(error, InputError | OSError)
        raised = error if known or single else RuntimeError(f"{type(error).__name__}: {error}")
        return {"id": None, "status": "failed", "error": masked(" ".join(str(raised).split())), "raised": raised}
    if single:
        show(result)
    told = {"id": result.id, "status": result.status, "error": result.error, "metrics": result.metrics}
    # which a search goes by: a control is no more of a find than a trivial outcome
    return told | {"degenerate": [*result.degenerate, *([result.control] if result.control else [])]}


def check_grid(sweeper: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    """Compose every cell before the first one runs, as Hydra's sweepers do, and check it too."""
    from omegaconf import open_dict, read_write

    from fairpriv.configs import plain

    assert sweeper.hydra_context is not None
    assert sweeper.config is not None
    for cell in batch:
        cfg = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(cell))
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        check(plain(cfg))


def hydra_run(args: list[str], folders: Sequence[Path]) -> int:
    """Hand the command line to Hydra; its errors become one line, a sweep ends with its table."""
    if not any(args):
        raise InputError("nothing is asked for; see fairpriv --help, or start with: fairpriv experiment=quickstart")
    import hydra
    from hydra.plugins.sweeper import Sweeper

    from fairpriv.configs import (
        CONFIG_ERRORS,
        emptied,
        explain,
        is_grid,
        left_to_cells,
        readable,
        refuse_repeated_dimensions,
        register_schema,
    )
    from fairpriv.sweep import progress
    from fairpriv.sweep.composition import shared_composition

    options = hydra_options(args)
    overrides: list[str] = options.overrides
    rest = list(overrides)
    flags = [word for word in args if not (rest and word == rest[0] and rest.pop(0))]
    overrides = emptied(map(readable, overrides))
    if not (options.cfg or options.info or options.shell_completion or options.hydra_help):
        overrides = [*overrides, *sweep_override(overrides)]
    for word in overrides:  # which Hydra meets with a traceback
        group, _, value = word.partition("=")
        number = r"[+-]?(?:inf|nan|\.?\d[\d._]*(?:e[+-]?\d+)?)"
        no_name = [v for v in value.split(",") if re.fullmatch(rf"{number}|null|true|false", v, re.IGNORECASE)]
        if no_name and re.fullmatch(r"\w+", group) and (CONF / group).is_dir():
            how = "" if group in ("experiment", "debug") else f" with ~{group}"
            raise InputError(
                f"{group}={no_name[0]}: name one of its options (fairpriv ls {group}), or leave it out{how}"
            )
    register_schema()
    Sweeper.validate_batch_is_legal = check_grid  # type: ignore[method-assign, assignment]
    logging.raiseExceptions = False  # a line of --info that nobody reads is no error
    old_argv = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting, so that we can translate
    try:
        refuse_repeated_dimensions([CONF, *folders], overrides)
        if options.multirun or is_grid(CONF, folders, overrides):
            overrides = left_to_cells(overrides)
        sys.argv = ["fairpriv", *flags, *overrides]
        with shared_composition():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except CONFIG_ERRORS as error:
        raise InputError(explain(error, CONF, folders, options.overrides)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EPIPE):  # the disk is full, a reader is gone
            raise
        raise InputError(f"{error.filename}: {error.strerror}; paths.root must be a writable folder") from None
    finally:
        sys.argv = old_argv
        sweep = progress.end()
    outcomes = sweep.outcomes if sweep else []
    raised = [outcome["raised"] for outcome in outcomes if outcome.get("raised")]
    if raised and len(raised) == len(outcomes):  # nothing was measured
        raise raised[0]
    if sweep and sweep.folder:
        return conclude(sweep)
    return int(any(outcome["status"] != "completed" for outcome in outcomes))


def conclude(sweep: SweepProgress) -> int:
    """Compare the results of a sweep that came to its end, and say what became of its cells."""
    from fairpriv.report.page import compare
    from fairpriv.sweep import search
    from fairpriv.sweep.status import Survey, closing

    assert sweep.folder is not None
    survey = Survey.of_sweep(sweep.folder, sweep.listing.plan.started if sweep.listing else None)
    status = int(bool(survey.failed or survey.unfinished or sweep.failed))
    if survey.completed or survey.failed:
        try:
            compare([sweep.folder])
        except InputError as error:  # no fault of the input: the disk is full, say
            print(f"fairpriv: {error}", file=sys.stderr)
            status = 1
        except BrokenPipeError:
            leave_output()
    try:
        if (sweep.folder / search.FILE).is_file():
            search.report(sweep.folder / search.FILE)
        for line in closing(survey, sweep.failed):
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # which makes a cell that failed no better
        leave_output()
    return status


def sweep_override(overrides: Sequence[str]) -> list[str]:
    """``sweep=NAME``, unless it is given: a name that the same command gets again.

    It is the experiment's, with a hash of the other overrides that choose or change cells, if there are any.
    """
    for word in overrides:
        if word.startswith("sweep="):
            name = word.partition("=")[2]
            if name == "null" or not re.fullmatch(r"\w[\w.-]*", name):
                raise InputError(f"sweep={name}: must be the name of a folder, of letters, digits, '_', '-' and '.'")
            return []
    experiment = [word.partition("=")[2] for word in overrides if word.startswith("experiment=")]
    others = [
        w
        for w in overrides
        if not re.match(
            r"[+~]*(experiment=|retry=|threads=|logger|paths\.|hydra.launcher|hydra.sweeper.(trials|batch))", w
        )
    ]
    name = re.sub(r"[^\w.-]+", "-", experiment[0]) if experiment else "sweep"
    if others or not experiment:
        name += f"-{hashlib.sha256(repr(sorted(others)).encode()).hexdigest()[:8]}"
    return [f"sweep={name}"]


def show(result: Result) -> None:
    """Print one cell's metrics with their 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    config = result.config
    # labels and names of the data are printed as they are
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
    parts = [config["dataset"]["name"], config["defense"]["name"]]
    parts += [config["model"]["name"]] if config["dimensions"] else [f"world {config['game']['world']}"]
    title = f"{', '.join(parts)}, seed {config['seed']}: {result.status}"
    if result.metrics:
        floors = {name: value for name, value in result.metrics.items() if name.endswith("_floor")}
        headers = ["metric", "value", "95 % interval", *(["with no gap"] if floors else [])]
        table = Table(*headers, title=title, title_justify="left", min_width=len(title))
        for name, value in result.metrics.items():
            if name not in floors and not name.startswith("data/"):  # what was read was told before the first fit
                low, high = result.intervals.get(name, (None, None))
                interval = "" if low is None else f"{low:.3f} to {high:.3f}"
                cells = [name, "-" if value is None else f"{value:.4g}", interval]
                floor = floors.get(f"{name}_floor")
                table.add_row(*cells, *(["" if floor is None else f"{floor:.4g}"] if floors else []))
        console.print(table)
        if result.control:
            console.print(f"control: {result.control}: no attack can leak more than guessing", markup=False)
    else:
        console.print(title, markup=False, highlight=False)
    for reason in result.degenerate:
        console.print(f"degenerate: {reason}", markup=False)
    console.print(str(Path(config["paths"]["root"], "cells", result.id, "result.json")), soft_wrap=True, markup=False)
    if result.error:
        print(f"failed: {result.error}", file=sys.stderr)
