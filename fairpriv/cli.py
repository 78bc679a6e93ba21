"""The ``fairpriv`` command: Hydra runs the cells, and a few verbs do the rest. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fairpriv import __version__, patches
from fairpriv.config.plugins import CONF, foreign_code, own_configs, plugin_folders, put_on_path, refuse_hidden
from fairpriv.config.schema import check, check_sweep, nearest, tasks_of
from fairpriv.errors import InputError, how_many
from fairpriv.secrets import masked
from fairpriv.sweep.ddp import refuse_torchrun
from fairpriv.sweep.lock import HeldError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fairpriv.result import Result
    from fairpriv.sweep.progress import SweepProgress


HELP = """\
fairpriv {version}: measure, attack and mend the trade-offs between fairness, privacy and other dimensions.

  fairpriv experiment=NAME [key=value ...]   run one cell, or a study's whole grid
  fairpriv -m key=a,b,c ...                  run a grid; issued again, it skips the cells that are finished
{commands}
fairpriv COMMAND --help explains a command.

Start with
  fairpriv experiment=quickstart             four datasets x six defences x three seeds
  fairpriv experiment=quickstart_llm         a small language model: none, LoRA, SPIN
  fairpriv dataset=compas defense=fair_finetune defense.penalty=2 seed=1
  fairpriv -m dataset=adult defense=none,fair_finetune seed=0,1 && fairpriv compare outputs

Useful keys (fairpriv --cfg job prints them all)
  dataset=  model=  defense=  game=  logger=offline|wandb|none  seed=0  game.alpha=1.0  game.world=0
  debug=fast      shrink any experiment to seconds
  trainer=ddp trainer.devices=2   train each cell in two processes; on GPUs, one process each
  retry=all       run cells again that are finished already (failed cells always are; retry=none keeps them)
  paths.root=DIR  where results go (outputs)
  hydra/launcher=local_slots   a grid's cells side by side: one for each GPU, or as many as the cores take

Hydra's options work as they are: --cfg job, --config-dir DIR (your own configs), --info, --hydra-help,
--shell-completion; what Tab completes: eval "$(fairpriv --shell-completion install=bash)"
Exit status: 0 done, 2 the input is wrong, 130 interrupted (Ctrl-C), 1 anything else.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the console script or ``python -m fairpriv``; exit with the documented status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding lacks arrows, say
    try:
        require_utf8(args)
        status = dispatch(args)
        sys.stdout.flush()  # while a full disk, or a reader that has gone, can still be answered
    except InputError as error:
        print(f"fairpriv: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("fairpriv: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        status = 0
        leave_output()
    except OSError as error:
        print(f"fairpriv: {error}", file=sys.stderr)
        status = 1
        leave_output()
    sys.exit(status)


def require_utf8(args: Sequence[str]) -> None:
    """Raise `InputError` where a word, or the current folder, is no UTF-8: neither YAML nor JSON can hold it."""
    try:
        here = os.getcwd()  # noqa: PTH109
    except FileNotFoundError:  # removed meanwhile
        here = ""
    for text, remedy in (*((word, "rename the file or folder") for word in args), (here, "work in another folder")):
        try:
            text.encode()
        except UnicodeEncodeError:
            name = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise InputError(f"{name}: is not UTF-8, and no config or result can hold such a name: {remedy}") from None


def leave_output() -> None:
    """Discard what is left of the output if it cannot be written, since Python would complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Command(argparse.ArgumentParser):
    """One sub-command: its arguments in any order, its help, and its action. A mistake is an `InputError`."""

    def __init__(self, usage: str, description: str, act: Callable[[argparse.Namespace], int]) -> None:
        super().__init__(f"fairpriv {usage.split()[0]}", f"fairpriv {usage}", description, allow_abbrev=False)
        self.act = act

    def option(self, name: str, **more: Any) -> None:
        """Add an option that may be given at most once."""
        self.add_argument(name, action=_Once, **more)

    def error(self, message: str) -> NoReturn:
        """Raise an `InputError` of one line that says what is wrong and how the command is written."""
        verb, _, usage = str(self.usage).removeprefix("fairpriv ").partition(" ")
        raise InputError(f"{verb}: {message}; the command is {verb} {usage}".rstrip())

    def run(self, words: Sequence[str], folders: Sequence[Path]) -> int:
        """Parse the words and act on them; return the exit status."""
        given, unknown = self.parse_known_intermixed_args(words, argparse.Namespace(folders=folders))
        if unknown:
            known = re.findall(r"--[\w-]+", self.format_help())
            self.error(f"unexpected {unknown[0]}{nearest(unknown[0].partition('=')[0], known)}")
        return self.act(given)


class _Once(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "is given twice")
        setattr(namespace, self.dest, values)


def commands() -> dict[str, Command]:
    """List every sub-command by its name, in the order of the help."""
    compare = Command(
        "compare DIR... [options]", "table, report.html, table.csv and plots of the results below DIR", compare_results
    )
    compare.add_argument(
        "places", nargs="+", type=Path, metavar="DIR", help="a folder of results, or a sweep's (outputs, say)"
    )
    compare.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE[,VALUE]",
        help="only cells that fulfil this (also != < <= > >=); may be given again: all must hold",
    )
    compare.option("--by", metavar="KEY,KEY", help="group by these config keys, and average over all others")
    compare.option("--baseline", metavar="KEY=VALUE,...", help="what differences refer to (defense=none)")
    compare.option("--pareto", metavar="METRIC,METRIC", help="mark the front of these metrics")
    compare.option("--metrics", metavar="METRIC,METRIC", help="the table's columns, as attack/*/leakage,pool/accuracy")
    compare.option("--format", metavar="FORMAT", help="what is printed: table (the default), csv, markdown or html")
    compare.option("--out", type=Path, metavar="DIR", help="where the files go (the first DIR)")

    responses = Command(
        "responses DIR... [options]",
        "what language models answered, with verdicts; where judges differ first",
        read_responses,
    )
    responses.add_argument("places", nargs="+", type=Path, metavar="DIR", help="a folder of results, or one cell's")
    responses.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE[,VALUE]",
        help="only cells that fulfil this, as for compare",
    )
    responses.option("--dimension", metavar="NAME[,NAME]", help="only prompts of these dimensions")
    responses.option("--verdict", metavar="safe|unsafe|none", help="only responses with this verdict")
    responses.option("--flip", metavar="safe|unsafe|any", help="only where the verdict became so, against no defence")
    responses.option("--judge", metavar="NAME", help="whose verdict that is (the one that counts as awareness)")
    responses.option("--limit", type=int, metavar="N", help="how many are printed (20); 0: all")

    status = Command("status DIR...", "what is done, running, failed and left of the sweeps in DIR", status_of_sweeps)
    status.add_argument("places", nargs="+", type=Path, metavar="DIR", help="paths.root (outputs, say), or a sweep's")

    log = Command("log DIR... [logger=NAME]", "log finished cells, whatever logger they were run with", log_cells)
    log.add_argument(
        "words",
        nargs="+",
        metavar="DIR",
        help="a folder of results; or logger=NAME, logger.KEY=VALUE",
    )

    view = Command("wandb-view GROUP [options]", "a W&B workspace and report of a sweep", wandb_workspace)
    view.add_argument("group", metavar="GROUP", help="the sweep's name, as in outputs/sweeps")
    view.option("--project", metavar="NAME", help="of W&B (fairpriv)")
    view.option("--entity", metavar="NAME", help="whose project it is (W&B's default for your key)")

    edit = Command(
        "edit show|apply|revert|push FILE",
        "a SPIN edit: what it holds; put it on a saved model, take it off, or share it",
        edit_model,
    )
    edit.add_argument("verb", metavar="show|apply|revert|push", help="apply, revert: --model, --out; push: --repo")
    edit.add_argument("file", type=Path, metavar="FILE", help="an edit.safetensors of a cell")
    edit.option("--model", metavar="MODEL", help="the model's folder, its name on the hub, or a config (ls model)")
    edit.option("--adapter", type=Path, metavar="DIR", help="of PEFT, merged into the model first")
    edit.option("--out", type=Path, metavar="DIR", help="a new folder, for the model with or without the edit")
    edit.option("--repo", metavar="OWNER/NAME", help="on the hub; made, private, where there is none (HF_TOKEN)")

    ls = Command("ls [GROUP...]", "the datasets, models, defences, experiments ... that exist", list_groups)
    ls.add_argument("groups", nargs="*", metavar="GROUP", help="such as dataset, defense, experiment")
    show = Command("show GROUP=NAME...", "a config with its comments, and those that it begins with", show_config)
    show.add_argument("options", nargs="+", metavar="GROUP=NAME", help="such as dataset=adult")
    validate = Command(
        "validate [--deep]", "compose and check every config; --deep also opens data, tries five samples", validate_all
    )
    validate.add_argument("--deep", action="store_true", help="try what your own configs (without: all) name")
    planned = Command("plan GROUP=NAME... [options]", "what a grid's cells need in memory and time", plan_cells)
    planned.add_argument("words", nargs="+", metavar="GROUP=NAME", help="as for a run: experiment=NAME, model=NAME ...")
    planned.option("--memory", type=float, metavar="GB", help="of each GPU (the device at hand); exit 1 if too little")
    planned.option("--devices", type=int, metavar="N", help="GPUs (those at hand)")
    planned.option("--tflops", type=float, metavar="N", help="10^12 operations a second of each GPU (100)")
    for one in (ls, show, validate, log, edit, planned):
        one.add_argument("--config-dir", metavar="DIR", help="your own configs, beside those of fairpriv")
    listed = (compare, responses, status, planned, log, view, edit, ls, show, validate)
    return {one.prog.partition(" ")[2]: one for one in listed}


def dispatch(args: list[str]) -> int:
    """Carry out one command line; return the exit status."""
    words, folders = config_dir(args)
    known = commands()
    asked = known.get(next((word for word in words if word not in ("help", "--help", "-h")), ""))
    if {"--help", "-h"} & set(words) or words[:1] == ["help"]:
        lines = [f"  {one.usage:<41}  {one.description}" for one in known.values()]
        print(asked.format_help() if asked else HELP.format(version=__version__, commands="\n".join(lines)), end="")
        return 0
    if words[:1] == ["--version"]:
        print(f"fairpriv {__version__}")
        return 0
    if {"-sc", "--shell-completion"} & set(words) and any(word.startswith("query=") for word in words):
        return complete(words, known)
    refuse_hidden(CONF, [*plugin_folders(), *folders])
    if asked:
        return asked.run(words[1:], folders)
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        left, _, right = word.partition("=")
        if "=" in word and bool(left) + bool(right) < 2:  # dataset = german, dataset= german, dataset =german
            left, right = left or before, right or after
            if left and right and "=" not in left + right and right[0] != "-":
                raise InputError(f"{left!r} and {right!r} stand apart: write {left}={right}, without spaces")
    if words and re.fullmatch(r"[a-z][a-z_-]*", words[0]):
        near = nearest(words[0], [*known, *(f"experiment={file.stem}" for file in CONF.glob("experiment/*.yaml"))])
        raise InputError(f"unknown command {words[0]!r}{near}; see fairpriv --help")
    refuse_torchrun(args)
    return hydra_run(args, folders)


def complete(query: list[str], known: Mapping[str, Command]) -> int:
    """Print what may end the line in ``COMP_LINE``: sub-commands and their words, and what Hydra knows of overrides.

    Where nothing is printed, as for the folders of ``compare``, the shell completes names of files. What is wrong with
    a line is not said while it is typed.
    """
    from fairpriv.config.compose import groups

    line = os.environ.get("COMP_LINE", "")
    with contextlib.suppress(InputError):
        words, folders = config_dir(line.split()[1:])
        last = words.pop() if words and not line[-1].isspace() else ""
        verb = words[0] if words and words[0] in known else None
        found: list[str] = []
        if last.startswith("-"):
            parser = known[verb] if verb else patches.hydra_parser()
            found = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
        elif verb in ("ls", "show"):
            options = groups([CONF, *plugin_folders(), *folders])
            found = [*options] if verb == "ls" else [f"{group}={one}" for group in options for one in options[group]]
        elif not words:
            found = [*known]
        if fitting := [name for name in found if name.startswith(last)]:
            print("\n".join(fitting), flush=True)
        if verb in (None, "plan", "log") and not last.startswith("-"):
            os.environ["COMP_LINE"] = " ".join(["fairpriv", *words[verb is not None :], last])
            return hydra_run([*query, *(f"--config-dir={folder}" for folder in folders)], folders)
    return 0


def list_groups(given: argparse.Namespace) -> int:
    """Carry out ``ls``."""
    from fairpriv.config.compose import list_configs

    return list_configs([CONF, *plugin_folders(), *given.folders], given.groups)


def show_config(given: argparse.Namespace) -> int:
    """Carry out ``show``."""
    from fairpriv.config.compose import show_configs

    return show_configs([CONF, *plugin_folders(), *given.folders], given.options)


def validate_all(given: argparse.Namespace) -> int:
    """Carry out ``validate``."""
    from fairpriv.validation import validate

    return validate(CONF, given.folders, deep=given.deep)


def status_of_sweeps(given: argparse.Namespace) -> int:
    """Carry out ``status``."""
    from fairpriv.report.status import status

    return status(given.places)


def compare_results(given: argparse.Namespace) -> int:
    """Carry out ``compare``."""
    from fairpriv.report.page import compare

    return compare(
        given.places,
        given.out,
        where=given.where,
        by=given.by,
        baseline=given.baseline,
        pareto=given.pareto,
        metrics=given.metrics,
        form=given.format or "table",
    )


def read_responses(given: argparse.Namespace) -> int:
    """Carry out ``responses``."""
    from fairpriv.report.responses import print_responses

    return print_responses(
        given.places,
        where=given.where,
        dimension=given.dimension,
        judge=given.judge,
        verdict=given.verdict,
        flip=given.flip,
        limit=20 if given.limit is None else given.limit,
    )


def edit_model(given: argparse.Namespace) -> int:
    """Carry out ``edit``."""
    verb, model, out, adapter = given.verb, given.model, given.out, given.adapter
    usage = "edit show FILE, edit push FILE --repo OWNER/NAME, or edit apply|revert FILE --model NAME_OR_FOLDER"
    usage += " [--adapter DIR] --out DIR"
    if verb not in ("show", "apply", "revert", "push"):
        near = nearest(verb, ["show", "apply", "revert", "push"])
        raise InputError(f"edit {verb}: must be show, apply, revert or push{near}; the command is {usage}")
    if verb in ("show", "push") and (model or adapter or out):
        raise InputError(f"edit {verb}: takes no --model, --adapter or --out; the command is {usage}")
    if (verb == "push") != bool(given.repo):
        raise InputError(f"edit {verb}: --repo goes with push, and push needs it; the command is {usage}")
    if verb in ("apply", "revert") and not (model and out):
        raise InputError(f"edit {verb}: needs both --model and --out; the command is {usage}")
    if not given.file.is_file():
        raise InputError(f"{given.file}: there is no such file")
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already, and not empty: name a new folder")
    if adapter and not (adapter / "adapter_config.json").is_file():
        raise InputError(f"--adapter {adapter}: holds no adapter_config.json of PEFT; defense.save=true keeps one")
    from fairpriv.editing import SpinEdit, export, push

    if verb == "push":
        print(push(given.file, given.repo))
        return 0
    found = SpinEdit.load(given.file)
    if verb == "show":
        from rich.console import Console

        Console().print_json(data={"summary": found.summary(), "metadata": found.metadata})
        return 0
    import dataclasses

    from fairpriv.config.compose import build, compose, groups, plain
    from fairpriv.language_models.models.pretrained import PretrainedLM, merged
    from fairpriv.model_card import edit_card

    if model in groups([CONF, *plugin_folders(), *given.folders])["model"]:
        config = plain(compose(CONF, given.folders, [f"model={model}"]))
        if tasks_of("model", str(config["model"]["_target_"])) != ["language_model"]:
            raise InputError(f"--model {model}: is no language model")
        if config["model"]["path"] == "???":
            raise InputError(f"--model {model}: its path has no value; give the model's folder or name on the hub")
        language_model: PretrainedLM = build(config, "model")
    else:
        language_model = PretrainedLM(name="model", path=model)
    for values in found.originals.values():  # an edit fits the dtype that it was made in
        dtype: Any = str(values.dtype).removeprefix("torch.")
        language_model = dataclasses.replace(language_model, dtype=dtype)
    loaded, tokenizer = language_model.load()
    if adapter:
        loaded = merged(loaded, adapter)
    getattr(found, verb)(loaded)
    suppressed, card = found.summary()["suppressed"], None
    if verb == "apply":
        card = edit_card(found.metadata, suppressed, "The edit is applied: load it as any model of transformers.")
    export(loaded, tokenizer, out, card)
    print(f"{suppressed} weights {'edited' if verb == 'apply' else 'put back'}: {out}")
    return 0


def wandb_workspace(given: argparse.Namespace) -> int:
    """Carry out ``wandb-view``."""
    from fairpriv.report.wandb_view import wandb_view

    return wandb_view(given.group, given.project or "fairpriv", given.entity)


def plan_cells(given: argparse.Namespace) -> int:
    """Carry out ``plan``."""
    for name in ("memory", "devices", "tflops"):
        if getattr(given, name) is not None and not getattr(given, name) > 0:
            raise InputError(f"plan: --{name} {getattr(given, name)}: must be above 0")
    from fairpriv.config.compose import CONFIG_ERRORS, explain
    from fairpriv.sweep.progress import cell_configs

    folders = [*plugin_folders(), *given.folders]
    try:
        configs = cell_configs(CONF, folders, given.words)
    except CONFIG_ERRORS as error:
        raise InputError(explain(error, CONF, folders, given.words)) from None
    if configs[0]["task"] != "language_model":
        cells = how_many(len(configs), "cell")
        print(f"{cells} of classifiers, which are small: each fits into 1 GB or so, and takes minutes")
        return 0
    from fairpriv.language_models.plan import plan

    return plan(configs, given.memory, given.devices, given.tflops)


def log_cells(given: argparse.Namespace) -> int:
    """Carry out ``log``."""
    from fairpriv.config.compose import CONFIG_ERRORS, explain

    overrides = [word for word in given.words if re.match(r"[+~]*logger[.=]", word)]
    places = [Path(word) for word in given.words if word not in overrides]
    if not places:
        raise InputError("log: name a folder of results; the command is log DIR... [logger=NAME]")
    from fairpriv.report.loggers import log_results

    try:
        return log_results(CONF, given.folders, places, overrides)
    except CONFIG_ERRORS as error:
        raise InputError(explain(error, CONF, given.folders, overrides)) from None


def config_dir(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Split ``--config-dir DIR`` from the other words, and make its Python files importable."""
    words: list[str] = []
    folders: list[Path] = []
    rest = list(args)
    while rest:
        name, equals, value = (word := rest.pop(0)).partition("=")
        if name not in ("--config-dir", "-cd"):
            words.append(word)
        elif folders or not (equals or rest):
            raise InputError(f"{name} needs one value")
        else:
            folders = [Path(value if equals else rest.pop(0))]
    return words, own_configs(folders)


def hydra_options(args: Sequence[str]) -> argparse.Namespace:
    """Parse the command line by Hydra's own parser, but flags and overrides in any order and errors on one line."""
    options = patches.hydra_parser().parse_intermixed_args(args)
    chosen = [options.run, options.multirun, options.shell_completion, options.cfg, options.info]
    if sum(map(bool, chosen)) > 1:
        raise InputError("--run, --multirun, --cfg, --info and --shell-completion: only one of them can be given")
    if options.config_path:
        raise InputError("--config-path: the root config is fairpriv's own; your configs are added by --config-dir DIR")
    if options.resolve and not options.cfg:
        raise InputError("--resolve: goes with --cfg only")
    if options.shell_completion and not re.fullmatch(
        r"(install|uninstall|query)=(bash|fish|zsh)", " ".join(options.overrides)
    ):
        raise InputError(
            "--shell-completion: takes one word, install=SHELL, uninstall=SHELL or query=SHELL, of bash, fish or zsh; "
            'as in eval "$(fairpriv --shell-completion install=bash)"'
        )
    if options.experimental_rerun:
        raise InputError("--experimental-rerun: give the same command again, with retry=all if its cells are finished")
    return options


def job(cfg: DictConfig) -> dict[str, Any]:
    """Run one cell as Hydra's task, in this process or in a launcher's, and return its outcome.

    Returns:
        ``id`` and ``status`` of the cell; ``error``: one line, or None; ``metrics`` and ``degenerate`` of its result;
        ``raised``: the exception, where there is no result. All of it can be sent between processes.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from fairpriv.config.compose import plain

    single = HydraConfig.get().mode is RunMode.RUN
    if single:
        cfg.sweep = None
    sources: Any = OmegaConf.to_container(HydraConfig.get().runtime.config_sources)
    for source in sources:
        if source["provider"] == "command-line":  # --config-dir, of which a launcher's process knows no more than this
            put_on_path(Path(source["path"]))
    log = logging.getLogger("fairpriv")
    if single and (launcher := HydraConfig.get().runtime.choices["hydra/launcher"]) != "basic":
        log.warning("hydra/launcher=%s: a single cell runs here; with -m it is a grid, and sent there", launcher)
    verbose = HydraConfig.get().verbose  # true: all loggers; or the names of some, which Hydra has set
    if verbose is True or not verbose:
        log.setLevel(logging.DEBUG if verbose else logging.INFO if single else logging.WARNING)
    try:
        check(plain(cfg))  # here, so that nobody waits for the heavy imports to hear of it
        patches.load_lightning(alone=not foreign_code())
        from fairpriv.identity import contents
        from fairpriv.run import run

        result = run(cfg)
    except SystemExit:  # how Lightning ends a fit after Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:  # kept from Hydra, which would add lines of its own
        log.debug("failed", exc_info=True)
        if isinstance(error, HeldError) and not single:
            return {"id": None, "status": "running elsewhere", "error": str(error)}
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            error.filename = str(cfg.paths.root)  # a write that fails does not say where
        known = isinstance(error, InputError | OSError)
        raised = error if known or single else RuntimeError(f"{type(error).__name__}: {error}")
        return {"id": None, "status": "failed", "error": masked(" ".join(str(raised).split())), "raised": raised}
    if single:
        show(result)
    told: dict[str, Any] = {"id": result.id, "status": result.status, "error": result.error, "metrics": result.metrics}
    told["inputs"] = contents(result.outcome)
    described = {name: result.metric(name) for name in result.metrics}
    told["better"] = {name: metric.better for name, metric in described.items()}
    told["guess"] = {name: metric.guess for name, metric in described.items() if metric.guess is not None}
    # for searches: a control is not a better find than a trivial outcome
    return told | {"degenerate": [*result.degenerate, *([result.control] if result.control else [])]}


def hydra_run(args: list[str], folders: Sequence[Path]) -> int:
    """Hand the command line to Hydra; turn its errors into one line, and end a sweep with its table."""
    if not any(args):
        raise InputError("nothing is asked for; see fairpriv --help, or start with: fairpriv experiment=quickstart")
    import hydra

    from fairpriv.config.compose import (
        CONFIG_ERRORS,
        emptied,
        explain,
        is_grid,
        left_to_cells,
        prepare_hydra,
        readable,
        refuse_merged_parts,
        refuse_no_names,
        several_judges,
    )
    from fairpriv.sweep import progress
    from fairpriv.sweep.composition import shared_composition

    options = hydra_options(args)
    overrides: list[str] = options.overrides
    rest = list(overrides)
    flags = [word for word in args if not (rest and word == rest[0] and rest.pop(0))]
    overrides = emptied(several_judges(map(readable, overrides)))
    if not (options.cfg or options.info or options.shell_completion or options.hydra_help):
        overrides = [*overrides, *sweep_override(overrides)]
    refuse_no_names(CONF, overrides)
    prepare_hydra()
    patches.check_cells_before_the_first_runs()
    patches.take_the_mode_from_the_words()
    logging.raiseExceptions = False  # it is no error if nobody reads a line of --info
    old_argv = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting, so that we can translate
    try:
        refuse_merged_parts([CONF, *plugin_folders(), *folders], overrides)
        if options.multirun or is_grid(CONF, folders, overrides):
            overrides = left_to_cells(overrides)
            if not (options.cfg or options.info or options.shell_completion):
                flags = [*(flag for flag in flags if flag not in ("-r", "--run")), "--multirun"]
        elif of_arms := [word for word in overrides if word.startswith("arms.")]:
            raise InputError(
                f"{of_arms[0]}: sets a key in one arm of a grid, and this is a single cell: leave out arms.NAME"
            )
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
    """Compare the results of a finished sweep, and say how its cells ended."""
    from fairpriv.report.page import compare
    from fairpriv.report.status import Survey, closing
    from fairpriv.sweep import search

    assert sweep.folder is not None
    survey = Survey.of_sweep(sweep.folder, sweep.listing.plan.started if sweep.listing else None)
    status = int(bool(survey.failed or survey.unfinished or sweep.failed))
    if survey.completed or survey.failed:
        try:
            compare([sweep.folder])
        except InputError as error:  # not an error in the input; the disk is full, for example
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
    except BrokenPipeError:  # which does not change the exit status
        leave_output()
    return status


def sweep_override(overrides: Sequence[str]) -> list[str]:
    """Build the override ``sweep=NAME``, unless it is given, with a name that the same command gets again.

    The name is the experiment's, with a hash of the other overrides that choose or change cells, if there are any.
    """
    for word in overrides:
        if word.startswith("sweep="):
            check_sweep(word.partition("=")[2])
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

    from fairpriv.store import Store

    config = result.config
    # labels and names of the data are printed as they are
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
    parts = [config["dataset"]["name"], config["defense"]["name"]]
    parts += [f"world {config['game']['world']}"] if "game" in config else [config["model"]["name"]]
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
    console.print(str(Store(config["paths"]["root"]).path(result.id)), soft_wrap=True, markup=False)
    if result.error:
        from hydra.core.hydra_config import HydraConfig

        where = "" if HydraConfig.get().verbose else " (hydra.verbose=true shows where)"
        print(f"failed: {result.error}{where}", file=sys.stderr)
