from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairpriv.data.game import GameDataModule, interleave
from fairpriv.data.sources import Files
from fairpriv.data.tabular import TabularDataset
from fairpriv.errors import InputError
from fairpriv.schema import GameConfig

CONF = Path(__file__).parents[2] / "conf" / "dataset"
PARTS = ("train", "validation", "rates", "gap")


def write_people(path, counts, seed=0):
    """A CSV with so many rows of every (group, label), shuffled; ``x`` is a row's own number."""
    rows = [(group, label) for (group, label), count in counts.items() for _ in range(count)]
    order = np.random.default_rng(seed).permutation(len(rows))
    lines = [f"{n},{'uvw'[n % 3]},{rows[i][0]},{rows[i][1]}" for n, i in enumerate(order)]
    path.write_text("\n".join(["x,kind,group,label", *lines, ""]))


COUNTS = {("a", 0): 1500, ("a", 1): 500, ("b", 0): 600, ("b", 1): 600, ("c", 0): 250, ("c", 1): 50}


def game(tmp_path, counts=None, seed=0, groups=("a", "b", "c"), **changes):
    write_people(tmp_path / "people.csv", counts or COUNTS)
    source = Files(["people.csv"], folder=str(tmp_path))
    dataset = TabularDataset("people", source, "label", "group", positive=[1], groups={"group": list(groups)})
    module = GameDataModule(dataset, GameConfig(**changes), seed)
    module.setup()
    return module


def all_rows(module):
    return {(part, world): module.part(part, world) for part in PARTS for world in (0, 1)}


def test_no_row_serves_twice(tmp_path):
    module = game(tmp_path, alpha=0.7)
    used = [set(rows.index.tolist()) for rows in all_rows(module).values()] + [set(module.adversary.index.tolist())]
    assert sum(map(len, used)) == len(set.union(*used))
    assert all(used)


def test_rows_carry_their_own_label_and_group(tmp_path):
    module = game(tmp_path)
    for rows in [*all_rows(module).values(), module.adversary]:
        assert rows.y.tolist() == module.table.y[rows.index].tolist()
        assert rows.s.tolist() == module.table.s[rows.index].tolist()
        frame = module.table.features.iloc[rows.index.numpy()]
        kind = {f"kind={value}": (frame["kind"] == value).tolist() for value in "uvw"}
        for name, wanted in kind.items():
            assert rows.X[:, module.encoder.feature_names.index(name)].bool().tolist() == wanted
        assert (rows.X.dtype, rows.y.dtype, rows.s.dtype, rows.index.dtype) == (torch.float32, *[torch.int64] * 3)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("group", ["a", "b", "c"])
def test_worlds_mirror_each_other(tmp_path, alpha, group):
    module = game(tmp_path, alpha=alpha, property=group, min_cell=0)
    code = module.group_names.index(group)
    others = [other for other in range(3) if other != code]
    weights = np.array([sum(n for (g, _), n in COUNTS.items() if g == module.group_names[other]) for other in others])
    for part in PARTS:
        zero, one = module.part(part, 0), module.part(part, 1)
        n = len(zero.y)
        assert len(one.y) == n
        assert int((zero.s == code).sum()) == round(alpha * n)
        assert int((one.s == code).sum()) == n - round(alpha * n)
        for rows in (zero, one):
            rest = np.array([int((rows.s == other).sum()) for other in others])
            np.testing.assert_allclose(rest, rest.sum() * weights / weights.sum(), atol=2.01)


def test_worlds_are_as_large_as_the_smaller_side_allows(tmp_path):
    module = game(tmp_path, property="c", adversary_share=0.0, test_share=0.4, validation_share=0.1)
    # 300 rows of c: 10 % validation, 20 % rates, 20 % gap, the rest train
    sizes = [len(module.part(part, 0).y) for part in PARTS]
    np.testing.assert_allclose(sizes, [150, 30, 60, 60], atol=2.01)


@pytest.mark.parametrize("alpha", [0.5, 0.7, 1.0])
def test_labels_keep_their_proportions_within_every_group(tmp_path, alpha):
    module = game(tmp_path, alpha=alpha)
    for rows in [*all_rows(module).values(), module.adversary]:
        for code, name in enumerate(module.group_names):
            in_group = rows.s == code
            positive = COUNTS[name, 1] / (COUNTS[name, 0] + COUNTS[name, 1])
            assert abs(int(rows.y[in_group].sum()) - positive * int(in_group.sum())) <= 2.01


def test_halves_are_stratified(tmp_path):
    module = game(tmp_path, adversary_share=0.3)
    rows = module.adversary
    assert len(rows.y) == round(0.3 * len(module.table.y))
    for (name, label), count in COUNTS.items():
        cell = (rows.s == module.group_names.index(name)) & (rows.y == label)
        assert abs(int(cell.sum()) - 0.3 * count) <= 1.01


def test_seed_determines_the_game(tmp_path):
    first, again, other = (all_rows(game(tmp_path, seed=seed, alpha=0.7)) for seed in (0, 0, 1))
    for key, rows in first.items():
        assert torch.equal(rows.index, again[key].index)
        assert torch.equal(rows.X, again[key].X)
        assert not torch.equal(rows.index, other[key].index)


def test_direction_and_other_options_of_the_game_leave_the_halves_alone(tmp_path):
    half = set(game(tmp_path).adversary.index.tolist())
    for changes in ({"world": 1}, {"alpha": 0.5}, {"property": "b", "min_cell": 1}, {"rows": 20}, {"tau": 0.5}):
        assert set(game(tmp_path, **changes).adversary.index.tolist()) == half
    both = game(tmp_path), game(tmp_path, world=1)
    assert torch.equal(both[0].part("train", 0).index, both[1].part("train", 0).index)


def test_rows_limits_training_alone(tmp_path):
    free, limited = game(tmp_path, alpha=0.7), game(tmp_path, alpha=0.7, rows=50)
    assert [len(limited.part("train", world).y) for world in (0, 1)] == [50, 50]
    assert int((limited.part("train", 0).s == 0).sum()) == 35
    assert len(limited.part("gap", 0).y) == len(free.part("gap", 0).y)


def test_features_are_standardised_on_the_training_rows_of_both_worlds(tmp_path):
    module = game(tmp_path, alpha=1.0)
    x = module.encoder.feature_names.index("x")
    train = torch.cat([module.part("train", world).X[:, x] for world in (0, 1)]).double()
    assert abs(train.mean()) < 1e-5
    assert abs(train.std(correction=0) - 1) < 1e-5
    raw = torch.cat([module.part("train", world).index for world in (0, 1)]).double()  # x is the row's number
    for part in ("validation", "gap"):
        rows = module.part(part, 0)
        wanted = (rows.index - raw.mean()) / raw.std(correction=0)
        torch.testing.assert_close(rows.X[:, x].double(), wanted, atol=1e-5, rtol=1e-5)
    assert module.features == module.part("gap", 1).X.shape[1]


def test_rows_of_a_world_are_in_random_order(tmp_path):
    module = game(tmp_path, alpha=0.5)
    s = module.part("train", 0).s
    first, second = s[: len(s) // 2], s[len(s) // 2 :]
    assert abs(float((first == 0).double().mean() - (second == 0).double().mean())) < 0.15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, r"game\.alpha=1\.5"),
        ({"alpha": -0.1}, r"game\.alpha=-0\.1"),
        ({"alpha": float("nan")}, r"game\.alpha=nan"),
        ({"world": 2}, r"game\.world=2"),
        ({"property": "z"}, r"game\.property=z: no such group of 'group' in people; there are a, b, c"),
        ({"adversary_share": 1.0}, r"game\.adversary_share=1\.0"),
        ({"test_share": 0.9, "validation_share": 0.1}, r"game\.test_share=0\.9"),
        ({"validation_share": 0.0}, r"game\.validation_share=0\.0"),
        ({"rows": 0}, r"game\.rows=0"),
        (
            {"rows": 100_000},
            r"game\.rows=100000: people has \d+ training rows per world \(\d+ of a, \d+ of the others\)",
        ),
        (
            {"min_cell": 11},
            r"part 'rates' has \d+ rows with label '1' and group 'c'.*all the data: 50\), fewer than 11",
        ),
        ({"seed": -1}, r"seed=-1"),
    ],
)
def test_bad_game_is_named_in_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        game(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_group_of_one_row_is_named(tmp_path):
    with pytest.raises(InputError, match=r"group 'b' of 'group' has one row in people.*dataset\.groups\.group"):
        game(tmp_path, {("a", 0): 50, ("a", 1): 50, ("b", 1): 1}, groups=("a", "b"))


def test_group_with_one_label_only_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"0 rows with label '0' and group 'b' in its two worlds of \d+ rows \(in all the data: 0\)"
    ):
        game(tmp_path, {("a", 0): 50, ("a", 1): 50, ("b", 1): 100}, groups=("a", "b"))


def test_few_rows_are_asked_for_where_nothing_is_measured(tmp_path):
    counts = {("a", 0): 60, ("a", 1): 60, ("b", 0): 60, ("b", 1): 60}
    module = game(tmp_path, counts, groups=("a", "b"))
    rows = module.part("validation", 1)
    assert 1 <= int(((rows.s == 1) & (rows.y == 1)).sum()) < 5
    rows = game(tmp_path, rows=10).part("train", 1)
    assert not ((rows.s == 2) & (rows.y == 1)).any()


def test_label_that_a_world_does_not_hold_is_named(tmp_path):
    with pytest.raises(InputError, match="part 'train' of world 0 has no row with label '1' among its 2"):
        game(tmp_path, rows=2, seed=next(seed for seed in range(20) if one_label(tmp_path, seed)))


def one_label(tmp_path, seed):
    return len(game(tmp_path, rows=2, seed=seed, min_cell=0).part("train", 0).y.unique()) == 1


def test_interleave_spreads_every_cell_evenly():
    rng = np.random.default_rng(0)
    cells = rng.choice(5, size=1000, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    order = interleave(cells, rng)
    assert sorted(order) == list(range(1000))
    for cell, count in enumerate(np.bincount(cells)):
        seen = np.cumsum(cells[order] == cell)
        assert np.abs(seen - count * np.arange(1, 1001) / 1000).max() <= 2.5
    assert not np.array_equal(order, interleave(cells, rng))


@pytest.mark.parametrize(
    ("name", "sensitive", "sizes"),
    [
        ("adult", "sex", (4049, 810, 1618, 1619)),
        ("adult", "race", None),
        ("compas", "race", (526, 105, 210, 210)),
        ("compas", "sex", None),
        ("german", "sex", None),
        ("lsac", "race", None),
        ("lsac", "sex", None),
        ("lsac", "ethnicity", None),
    ],
)
def test_bundled_datasets_can_be_played_as_configured(name, sensitive, sizes):
    config = OmegaConf.create({"paths": {"data": "nowhere", "root": "nowhere"}})
    config.dataset = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"sensitive": sensitive})
    dataset = instantiate(config.dataset, _convert_="all")
    for seed, alpha in ((0, 1.0), (1, 0.7), (2, 0.5)):
        module = GameDataModule(dataset, GameConfig(alpha=alpha), seed)
        module.prepare_data()
        module.setup()
        assert sizes is None or tuple(len(module.part(part, 0).y) for part in PARTS) == pytest.approx(sizes, abs=2)
        assert all(torch.isfinite(rows.X).all() for rows in all_rows(module).values())
