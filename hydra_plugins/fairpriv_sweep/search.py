"""``hydra/sweeper=search``: cells chosen by Optuna for one objective or several, instead of a whole grid."""

# no annotations from the future: Hydra runs this file before it is a known module, where dataclasses cannot read them
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from fairpriv.config.compose import plain
from fairpriv.errors import InputError
from fairpriv.sweep.grids import choices
from fairpriv.sweep.launchers import watched
from fairpriv.sweep.listing import enlist
from fairpriv.sweep.lock import holder
from fairpriv.sweep.progress import SweepProgress
from fairpriv.sweep.search import Search, distribution, optuna_module, parts


@dataclass
class SearchSweeperConf:
    """Keys of ``hydra.sweeper``."""

    _target_: str = "hydra_plugins.fairpriv_sweep.search.SearchSweeper"
    objectives: list[str] = field(default_factory=list)  # METRIC, or METRIC:maximize|minimize
    trials: int = 20  # altogether: a finished search goes on where more are asked for
    batch: int = 1  # trials chosen at a time: as many as the launcher runs side by side
    seed: int = 0  # of the sampler
    params: dict[str, str] | None = None  # key to values, as on the command line


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchSweeperConf, provider="fairpriv")


class SearchSweeper(Sweeper):
    """Searches the keys that are given several values or an interval; ``seed=0,1`` averages a trial over seeds."""

    def __init__(self, objectives: list[str], trials: int, batch: int, seed: int, params: dict[str, str] | None):
        if trials < 1 or batch < 1:
            raise InputError(f"hydra.sweeper.trials={trials}, hydra.sweeper.batch={batch}: each is at least 1")
        if not 0 <= seed < 2**31:  # Optuna's sampler takes up to 2^32, and each start adds the trials so far
            raise InputError(f"hydra.sweeper.seed={seed}: must be a whole number from 0 to {2**31 - 1}")
        self.objectives, self.trials, self.batch, self.seed = list(objectives), trials, batch, seed
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: build the launcher."""
        from hydra.core.plugins import Plugins

        self.config = config
        self.hydra_context = hydra_context
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launcher = watched(launcher)

    def sweep(self, arguments: list[str]) -> Any:
        """Ask, launch, tell until there are as many trials as wanted; a search that was cut off goes on."""
        optuna_module()
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        words = [f"{key}={'null' if value is None else value}" for key, value in self.params.items()] + arguments
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(words)
        overrides = {
            override.get_key_element(): override for override in parsed
        }  # the command line goes last, and wins
        repeated = choices(overrides.pop("seed")) if "seed" in overrides else []
        searched = {k: o for k, o in overrides.items() if o.is_sweep_override() and not _settled(o)}
        fixed = [f"{k}={choices(o)[0]}" for k, o in overrides.items() if k not in searched]
        if not searched:
            raise InputError("hydra/sweeper=search: no key has several values: give some as key=a,b or interval(1,2)")
        space: dict[str, Any] = {key: distribution(override) for key, override in searched.items()}
        folder = Path(self.config.hydra.sweep.dir)
        progress = SweepProgress.current
        if progress and progress.listing and not progress.listing.alone:
            owner = holder(folder / "lock") or "another process"
            raise InputError(f"{folder}: is searched by {owner}: let it end, or name another sweep=NAME")
        first = [f"{k}={d.choices[0] if hasattr(d, 'choices') else d.low}" for k, d in space.items()]
        search = Search(self.objectives, space, folder, self.seed, parts(self._config([*fixed, *first]), repeated))
        seeds = [[f"seed={seed}"] for seed in repeated] or [[]]
        for cell in search.cells:  # of earlier trials, which stay on the sweep's list
            enlist(folder, cell, finished=True)
        if progress:
            progress.expect(max(self.trials, search.done) * len(seeds), done=search.done * len(seeds))
        while search.done < self.trials:
            asked = search.ask(min(self.batch, self.trials - search.done))
            cells = [
                [*fixed, *(f"{key}={value}" for key, value in values.items()), *seed]
                for (_, values), seed in itertools.product(asked, seeds)
            ]
            self.validate_batch_is_legal(cells)
            returned = self.launcher.launch(cells, initial_job_idx=search.done * len(seeds))
            for i, (trial, _) in enumerate(asked):
                search.tell(trial, [job.return_value for job in returned[i * len(seeds) : (i + 1) * len(seeds)]])
        return None

    def _config(self, words: list[str]) -> dict[str, Any]:
        """The config of a cell of these overrides, with no folders of this machine in it."""
        assert self.config is not None
        assert self.hydra_context is not None
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        for key in cfg.paths:  # others refer to them
            cfg.paths[key] = ""
        return plain(cfg)


def _settled(override: Any) -> bool:
    """Whether it lists a single value, as overrides do that the command line has left to cells."""
    return override.is_discrete_sweep() and len(choices(override)) == 1
