from importlib.util import find_spec, module_from_spec

import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, _utils, base

from fairpriv.cli import CONF
from fairpriv.config.compose import compose, prepare_hydra
from fairpriv.sweep.composition import shared_composition

GRIDS = [
    [["seed=0", "threads=1"], ["seed=1", "threads=null"]],
    [["defense=fine_tune", "defense.lr=1e-3", "seed=0"], ["defense=fine_tune", "defense.lr=0.1", "seed=1"]],
    [["defense=fine_tune", "seed=0"], ["defense=rehearsal", "seed=0"], ["defense=fine_tune", "seed=1"]],
    [["logger=offline"], ["logger=none"], ["logger=offline"]],  # whose value may be null, as that of a plain key
    [["dataset=csv", "dataset.target=a"], ["dataset=csv", "dataset.target='b c'"]],
    [["+dataset.recode.x={from: a}", "seed=1"], ["+dataset.recode.x={from: b}", "seed=2"]],
    [["dataset.source.files=[a.csv]", "seed=1"], ["dataset.source.files=[b.csv,c.csv]", "seed=2"]],
    [["attack=[kl]", "game.alpha=1"], ["attack=[kl,loss_test]", "game.alpha=0.9"], ["attack=[kl]", "game.alpha=0.8"]],
    [["paths.root=a", "sweep=x"], ["paths.root=${paths.data}", "sweep=y"]],
    [["game={rows: 5}", "game.rows=6"], ["game={rows: 5}", "game.rows=7"], ["game.rows=7", "game={rows: 5}"]],
    [["~logger"], ["~trainer"]],
    [["hydra.job.name=a", "seed=1"], ["hydra.job.name=b", "seed=1"]],
    [["experiment=quickstart", "seed=0"], ["experiment=quickstart", "seed=5"]],
]


@pytest.fixture
def loader():
    prepare_hydra()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize("grid", GRIDS)
def test_a_cell_composed_from_another_is_what_hydra_would_compose(loader, grid):
    master = loader.load_configuration("config", ["hydra.verbose=false"], RunMode.MULTIRUN)
    wanted = [loader.load_sweep_config(master, cell) for cell in grid]
    with shared_composition():
        for _ in range(2):
            for cell, plain in zip(grid, wanted, strict=True):
                got = loader.load_sweep_config(master, cell)
                assert OmegaConf.to_container(got) == OmegaConf.to_container(plain)
                assert OmegaConf.is_struct(got)
                got.seed = 99  # each is a cell's own


def test_cells_of_one_form_are_composed_once(loader, monkeypatch):
    composed = []
    compose = ConfigLoaderImpl.load_sweep_config

    def spy(self, master, words):
        composed.append(words)
        return compose(self, master, words)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", spy)
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    with shared_composition():
        for seed in range(3):
            for defense in ("none", "fine_tune"):
                loader.load_sweep_config(
                    master, ["dataset=adult", "dataset.target=x", f"defense={defense}", f"seed={seed}"]
                )
    assert [words[2:] for words in composed] == [["defense=none", "seed=0"], ["defense=fine_tune", "seed=0"]]
    assert ConfigLoaderImpl.load_sweep_config is spy


@pytest.mark.parametrize("wrong", ["seed=abc", "seeds=1", "defense.epoch=1"])
def test_what_hydra_refuses_is_refused(loader, wrong):
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    with shared_composition():
        loader.load_sweep_config(master, ["defense=fine_tune", "seed=1"])
        with pytest.raises(HydraException):
            loader.load_sweep_config(master, ["defense=fine_tune", wrong])


@pytest.fixture
def unspared(monkeypatch):
    """Gives Hydra and OmegaConf back, on demand, what they do by themselves."""

    def as_installed(module):
        spec = find_spec(module.__name__)
        found = module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    def give_back():
        monkeypatch.setattr(_utils, "get_yaml_loader", as_installed(_utils).get_yaml_loader)
        name = "_create_interpolation_map"
        monkeypatch.setattr(defaults_list, name, getattr(as_installed(defaults_list), name))
        monkeypatch.delattr(ConfigRepository, "__deepcopy__")
        name = "_invalidate_flags_cache"
        monkeypatch.setattr(base.Container, name, getattr(as_installed(base).Container, name))

    return give_back


MINE = """\
# @package _global_
defaults:
  - optional /more@game: ${experiment}
  - _self_
  - override /dataset: german
seed: 017
game: {rows: 1_000}  # as YAML 1.1 has it
paths: {data: "~/größe: 1"}
"""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["experiment=quickstart", "debug=fast"],
        ["experiment=spin_paper", "debug=fast", "judge=[refusal,pairs]"],
        ["dataset=csv", "attack=[kl,loss_test]", "dimension=[membership]", "+dataset.recode.x={from: a}"],
        ["dataset=pairs", "~judge", "evaluation.text=null"],
        ["experiment=mine"],
    ],
)
def test_a_config_is_the_same_whatever_work_hydra_is_spared(tmp_path, unspared, words):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(MINE, encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.yaml").write_text("rows: 3\nalpha: .5\n")

    def composed():
        return OmegaConf.to_container(compose(CONF, [tmp_path], words, hydra=True))

    spared = composed()
    assert "mine" not in "".join(words) or (spared["game"]["rows"], spared["game"]["alpha"]) == (1000, 0.5)
    assert yaml.CSafeLoader in _utils.get_yaml_loader().__mro__
    unspared()
    assert yaml.CSafeLoader not in _utils.get_yaml_loader().__mro__
    assert composed() == spared


def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: [1\nthreads: 2\n")
    with pytest.raises(yaml.MarkedYAMLError) as raised:
        compose(CONF, [tmp_path], ["experiment=mine"])
    assert raised.value.problem_mark.name == str(tmp_path / "experiment" / "mine.yaml")
    assert raised.value.problem_mark.line in (2, 3)
