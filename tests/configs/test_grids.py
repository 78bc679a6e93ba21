"""Which cells a sweep has. Nothing is run."""

import itertools

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict, read_write

from fairpriv.cli import CONF, main
from fairpriv.config.compose import groups, is_grid, prepare_hydra
from fairpriv.sweep.grids import left_alone
from fairpriv.sweep.progress import cell_configs, cells_of
from fairpriv.validation import validate

NONE = {"defense=none"}
TUNED = [
    {f"defense={defense}", f"dataset.dimensions={dimensions}"}
    for defense in ("full", "lora", "dora", "reft")
    for dimensions in ("[privacy]", "[fairness]")
]


def spin(ratios=("2e-06", "1e-05", "0.0001"), rules=("intersection", "released")) -> list[set[str]]:
    return [
        {"defense=spin", f"defense.ratio={ratio}", f"defense.rule={rule}", f"defense.score={score}"}
        for ratio in ratios
        for rule in rules
        for score in ("importance", "random")
    ]


@pytest.fixture
def grid():
    """The cells of a command line: its words, and what ``hydra.sweeper`` says beside the experiment's."""
    prepare_hydra()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):

        def cells(*words: str, **sweeper: object) -> list[set[str]]:
            experiments = [word for word in words if word.startswith("experiment=")]
            cfg = hydra.compose("config", experiments, return_hydra_config=True)
            with read_write(cfg), open_dict(cfg):
                cfg.hydra.overrides.task = list(words)
                cfg.hydra.sweeper = OmegaConf.merge(cfg.hydra.sweeper, sweeper)
            return [set(cell) - set(experiments) for cell in cells_of(cfg)]

        yield cells


def test_the_study_of_spin_is_a_union_of_three_grids(grid):
    assert grid("experiment=spin") == [NONE, *TUNED, *spin()]


def test_an_experiment_with_grids_is_a_grid():
    assert is_grid(CONF, [], ["experiment=spin"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("defense=spin", spin()),
        ("defense=reft,none", [NONE, *TUNED[6:]]),  # grid by grid
        ("defense=glob([*or*,none],exclude=[*spin])", [NONE, *TUNED[4:6], *TUNED[2:4]]),
        # a key of one grid: replaced there
        ("defense.ratio=1e-3 defense.rule=released", [NONE, *TUNED, *spin(["0.001"], ["released"])]),
        ("defense=none,full dataset.dimensions=[general]", [NONE, {"defense=full", "dataset.dimensions=[general]"}]),
        # of none: for all
        ("seed=0,1 defense=none", [{*NONE, "seed=0"}, {*NONE, "seed=1"}]),
        # in no grid: one of its own, with all that is given
        ("defense=none,lora_spin", [NONE, {"defense=lora_spin"}]),
        ("defense=lora_spin defense.ratio=1e-3", [{"defense=lora_spin", "defense.ratio=0.001"}]),
        # not lost, but refused when it is composed
        ("defense=none defense.ratio=1e-3", [{*NONE, "defense.ratio=0.001"}]),
    ],
)
def test_the_command_line_chooses_among_grids(grid, words, expected):
    assert grid("experiment=spin", *words.split()) == expected


def test_a_single_value_is_set_in_every_cell_of_the_defences_whose_grids_set_the_key(grid):
    found = grid("experiment=distribution_inference", "seed=0", "dataset=lsac", "game.alpha=0.8")
    for cell in found:
        asked = any(f"defense={defense}" in cell for defense in ("none", "fine_tune", "rehearsal", "fair_finetune"))
        assert ("game.alpha=0.8" in cell) == asked
    several = grid("experiment=distribution_inference", "seed=0", "dataset=lsac", "game.alpha=0.8,0.5")
    rehearsal = [cell for cell in several if "defense=rehearsal" in cell]
    assert sorted(any(word.startswith("game.alpha") for word in cell) for cell in rehearsal) == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "defense.ratio=1e-3",
            "defense.ratio: 9 of 13 cells keep their own, since their grids do not set it "
            "(defense=none, full, lora, dora, reft): arms.NAME.defense.ratio=VALUE does",
        ),
        ("seed=0,1 defense=spin defense.rule=released", None),
        ("defense=none,spin dataset.dimensions=[general]", None),  # no grid that is left sets it: for all
    ],
)
def test_what_the_command_line_does_not_change_is_told(grid, words, told):
    found = [sorted(cell) for cell in grid("experiment=spin", *words.split())]
    assert [*left_alone(found, OverridesParser.create().parse_overrides(words.split()))] == ([told] if told else [])


def test_a_key_of_one_arm_leaves_the_others_alone(grid):
    found = grid(
        "experiment=spin", "defense=none,full,spin", "arms.full.defense.lr=0.1,0.2", "arms.spin.defense.ratio=1e-3"
    )
    full = [{*cell, f"defense.lr={lr}"} for cell in TUNED[:2] for lr in (0.1, 0.2)]
    assert found[0] == NONE
    assert sorted(map(sorted, found[1:5])) == sorted(map(sorted, full))
    assert sorted(map(sorted, found[5:])) == sorted(map(sorted, spin(["0.001"])))
    told = r"^arms.lora.defense.lr=0.1: no cell of the grid is of that arm; .*\(full, none, spin\)"
    for word in ("arms.lora.defense.lr=0.1", "arms.lora.defense.lr=choice(0.1)"):  # as typed, and as a grid has it
        with pytest.raises(HydraException, match=told):
            grid("experiment=spin", "defense=none,full,spin", word)


def test_a_key_of_one_arm_is_composed_there_only():
    words = [
        "experiment=quickstart_llm",
        "defense=none,lora",
        "arms.lora.defense.lr=0.5",
        "arms.lora.model.dtype=bfloat16",
    ]
    none, lora = cell_configs(CONF, [], words)
    assert (lora["defense"]["lr"], lora["model"]["dtype"]) == (0.5, "bfloat16")
    assert none["defense"]["name"] == "none"
    assert none["model"]["dtype"] == "fastest"


def test_a_wrong_key_of_one_arm_is_shown_with_the_arm(capsys):
    words = ["-m", "experiment=quickstart_llm", "defense=none,lora", "arms.lora.defense.epoch=3"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "unknown key arms.lora.defense.epoch (did you mean 'defense.epochs'?)" in capsys.readouterr().err


def test_grids_share_params_and_go_before_them(grid):
    both = {"params": {"seed": "0,1", "game.alpha": "0.5"}, "grids": [{"seed": "7"}, {"defense": "none,scratch"}]}
    alpha = "game.alpha=0.5"
    assert grid(**both) == [
        {"seed=7", alpha},
        *({f"seed={seed}", f"defense={defense}", alpha} for seed in (0, 1) for defense in ("none", "scratch")),
    ]
    # the first grid leaves the defence to the command line, and becomes the same as the second
    assert grid("game.alpha=1,2", "seed=3", "defense=none", **both) == [
        {"seed=3", "defense=none", "game.alpha=1"},
        {"seed=3", "defense=none", "game.alpha=2"},
    ]


def test_no_combination_of_groups_that_is_asked_for_is_lost(grid):
    grids = [{"defense": "none", "dataset": "adult"}, {"defense": "scratch", "dataset": "adult,compas"}]
    found = grid("defense=none,scratch", "dataset=compas,german", grids=grids)
    assert found[0] == {"defense=scratch", "dataset=compas"}  # what the grids have goes first
    assert sorted(map(sorted, found)) == sorted(
        [f"dataset={dataset}", f"defense={defense}"]
        for defense in ("none", "scratch")
        for dataset in ("compas", "german")
    )


def test_without_grids_a_sweep_is_hydra_s_product(grid):
    found = grid("seed=range(0,2)", "defense=none,scratch", params={"seed": "5,6", "game.alpha": "1,0.5"})
    product = itertools.product(
        ("seed=0", "seed=1"), ("game.alpha=1", "game.alpha=0.5"), ("defense=none", "defense=scratch")
    )
    assert found == [set(cell) for cell in product]
    assert grid() == [set()]


@pytest.mark.parametrize("words", ["defense=glob(zzz*)", "seed=range(0,0)"])
def test_a_grid_without_cells_is_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["-m", words, f"paths.root={tmp_path}"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fairpriv: the grid has no cells")


def test_validate_looks_into_every_grid(tmp_path, capsys, monkeypatch):
    (tmp_path / "experiment").mkdir()
    wrong = {
        "option": ("defense: none,nnone", "hydra.sweeper.grids[1].defense: there is no defense=nnone"),
        "key": ("defense.ratio: 1e-3", "unknown key defense.ratio"),
    }
    for name, (grid, _) in wrong.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    grids:\n      - seed: 0\n      - {grid}\n"
        )
    few = {"experiment": groups([tmp_path])["experiment"], "defense": {"none": CONF / "defense" / "none.yaml"}}
    monkeypatch.setattr("fairpriv.validation.groups", lambda folders: few)  # all take ten seconds
    assert validate(CONF, [tmp_path], deep=False) == 2
    said = {line.split(": ", 2)[1]: line for line in capsys.readouterr().err.splitlines()}
    assert said.keys() == {f"experiment={name}" for name in wrong}
    for name, (_, reason) in wrong.items():
        assert reason in said[f"experiment={name}"]


def test_each_arm_of_the_study_of_attacks_stands_beside_no_defence_of_the_same_adversary_and_worlds(grid):
    cells = grid("experiment=distribution_inference", "dataset=adult", "seed=0")
    assert len(cells) == len({frozenset(cell) for cell in cells}) == 6 + 8 + 2 + 7 + 3 + 2
    here = {"dataset=adult", "seed=0"}
    none = {frozenset(cell - NONE - here | ({"game.alpha=1.0"} & cell)) for cell in cells if cell >= NONE}
    assert none == {
        frozenset({f"game.adaptive={adaptive}", f"game.alpha={alpha}"})
        for adaptive in ("False", "True")
        for alpha in ("1.0", "0.8", "0.5")
    }
    for cell in cells:
        game = {word for word in cell if word.startswith(("game.alpha", "game.adaptive"))}
        assert any(game <= other for other in none), cell
