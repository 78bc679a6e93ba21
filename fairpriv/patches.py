"""All patches of foreign libraries: one function each, with the reason and the upstream report.

They are valid for the versions in constraints.txt; each can be removed when its report is resolved.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fairpriv.errors import InputError

if TYPE_CHECKING:
    from hydra.plugins.sweeper import Sweeper


def check_cells_before_the_first_runs() -> None:
    """Make Hydra's sweepers check the content of each cell's config, and not only that it can be composed.

    Otherwise a wrong value in the last cell of a grid would show only after all others have run.
    Upstream: https://github.com/hydra-ecosystem/hydra/issues/776
    """
    from hydra.plugins.sweeper import Sweeper

    def check_all(sweeper: Sweeper, batch: Sequence[Sequence[str]]) -> None:
        from omegaconf import open_dict, read_write

        from fairpriv.config.compose import plain
        from fairpriv.config.schema import check

        assert sweeper.hydra_context is not None
        assert sweeper.config is not None
        for cell in batch:
            cfg = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(cell))
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
            check(plain(cfg))

    Sweeper.validate_batch_is_legal = check_all  # type: ignore[method-assign, assignment]


def take_the_mode_from_the_words() -> None:
    """Spare Hydra the composition of a whole config just to find the mode, which --run and --multirun give.

    Upstream: https://github.com/hydra-ecosystem/hydra/issues/3440
    """
    from hydra._internal.hydra import Hydra

    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]


def compose_with_less_work() -> None:
    """Take a third off each composition: what Hydra and OmegaConf make and nobody asks for, and YAML read in Python.

    Upstream: https://github.com/omry/omegaconf/pull/1150 (libyaml, in OmegaConf 2.4),
    https://github.com/hydra-ecosystem/hydra/issues/1543 (copies), https://github.com/hydra-ecosystem/hydra/issues/1328
    """
    import copy

    import yaml  # type: ignore[import-untyped]
    from hydra._internal import config_repository, defaults_list
    from omegaconf import _utils
    from omegaconf.base import Container

    if yaml.__with_libyaml__:
        python_s = yaml.SafeLoader
        yaml.SafeLoader = yaml.CSafeLoader  # of which OmegaConf makes a class of its own, at each call
        try:
            loader = _utils.get_yaml_loader()
        finally:
            yaml.SafeLoader = python_s
        _utils.get_yaml_loader = lambda: loader

    choices_map = defaults_list._create_interpolation_map

    def where_a_default_asks(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        asked = any(default.is_interpolation() for default in defaults if not default.is_self())
        return choices_map(overrides, defaults, self_added) if asked else None

    defaults_list._create_interpolation_map = where_a_default_asks  # type: ignore[assignment]

    def copied(repository: Any, memo: Any) -> Any:
        """Copy a repository with its list of sources, which are never changed, rather than all that these hold."""
        other = copy.copy(repository)
        other.sources = [*repository.sources]
        return other

    config_repository.ConfigRepository.__deepcopy__ = copied  # type: ignore[attr-defined]

    invalidate = Container._invalidate_flags_cache

    def where_there_is_one(container: Container) -> None:  # before the original imports what it needs for it
        if container.__dict__["_flags_cache"] is not None:
            invalidate(container)

    Container._invalidate_flags_cache = where_there_is_one  # type: ignore[method-assign, assignment]


def load_lightning(*, alone: bool) -> None:
    """Import Lightning, and on demand without what torchmetrics, which it imports, imports beside itself.

    Those are scipy.signal, matplotlib and transformers, which take longer than all the rest. Plots and metrics of texts
    are missing from torchmetrics then, so that this is for processes that run no code but ours.
    Upstream: https://github.com/Lightning-AI/torchmetrics/issues/3457
    """
    if "lightning.pytorch" in sys.modules:
        return
    gc.disable()  # modules stay to the end, so that collecting garbage among them only takes time
    try:
        if alone:
            from lightning_utilities.core import imports

            hidden = ("scipy", "matplotlib", "transformers")
            known, available = imports.RequirementCache.__bool__, imports.package_available

            def is_met(requirement: imports.RequirementCache) -> bool:
                return not str(requirement.requirement).startswith(hidden) and known(requirement)

            imports.RequirementCache.__bool__ = is_met  # type: ignore[method-assign, assignment]
            imports.package_available = lambda name: name not in hidden and available(name)  # type: ignore[assignment]
            try:
                import torchmetrics  # noqa: F401
            finally:
                imports.RequirementCache.__bool__ = known  # type: ignore[method-assign]
                imports.package_available = available
        import lightning.pytorch  # noqa: F401  it sets the level of its logger when it is imported

        gc.freeze()
    finally:
        gc.enable()


def hydra_parser() -> ArgumentParser:
    """Return Hydra's own parser, with errors as a one-line `InputError` instead of its help and an exit.

    Its ``parse_intermixed_args`` accepts flags and overrides in any order.
    Upstream: https://github.com/hydra-ecosystem/hydra/issues/3053
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; see fairpriv --help")

    parser: ArgumentParser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser


@contextlib.contextmanager
def lost_jobs_fail() -> Iterator[None]:
    """Turn a submitit job that left no result (it was killed, or out of time) into a failed cell, not an exception.

    Without this, Hydra's launcher would stop waiting for the other jobs while they still run.
    Upstream: https://github.com/hydra-ecosystem/hydra/issues/1377
    """
    try:
        from submitit import Job
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError:
        yield
        return
    from hydra.core.utils import JobReturn, JobStatus

    results = Job.results

    def all_results(job: Any) -> list[Any]:
        try:
            return results(job)
        except (FailedJobError, UncompletedJobError) as error:
            log = job.paths.stderr if job.paths.stderr.is_file() else job.paths.stdout
            lost = JobReturn(status=JobStatus.COMPLETED)
            why = "failed" if isinstance(error, FailedJobError) else f"left no result (state {job.state})"
            lost.return_value = {"id": None, "status": "failed", "error": f"job {job.job_id} {why}; its log: {log}"}
            return [lost]

    Job.results = all_results
    try:
        yield
    finally:
        Job.results = results


@contextlib.contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once within the block.

    By itself it does so for the tokenizer, the config and the weights, five times in all, and makes a map of all names
    of weights anew for each module of the model. Upstream: https://github.com/huggingface/transformers/pull/48656

    Raises:
        ImportError: the package gguf is not installed.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    kept = {name: getattr(gguf, name) for name in names}
    for name, own in kept.items():
        setattr(gguf, name, functools.cache(own))
    try:
        yield
    finally:
        for name, own in kept.items():
            setattr(gguf, name, own)


@contextlib.contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide every progress bar of tqdm, since lm-eval has no option for those of its dozens of tasks.

    Upstream: https://github.com/EleutherAI/lm-evaluation-harness/issues/2898
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    init, kept = tqdm.__init__, vars(tqdm)["__init__"]  # not a function, but a descriptor that makes one

    def hidden(bar: Any, *args: Any, **options: Any) -> None:
        init(bar, *args, **options | {"disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = kept
