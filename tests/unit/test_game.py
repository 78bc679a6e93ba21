from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairpriv.classifiers.data.game import GameDataModule, interleave, twins
from fairpriv.classifiers.data.tabular import TabularDataset
from fairpriv.config.settings import GameSettings
from fairpriv.data.sources import Files
from fairpriv.errors import InputError

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
    module = GameDataModule(dataset, GameSettings(**changes), seed)
    module.setup()
    return module


def all_rows(module):
    return {(part, world): module.part(part, world) for part in PARTS for world in (0, 1)}


def adversary(module):
    """Row numbers of the adversary's half: what its shadows draw from, and what it asks about."""
    return np.concatenate([module.half("adversary").index.numpy(), module.parts["query"]])


def test_no_row_serves_twice(tmp_path):
    module = game(tmp_path, alpha=0.7)
    used = [set(rows.index.tolist()) for rows in all_rows(module).values()] + [set(adversary(module).tolist())]
    assert sum(map(len, used)) == len(set.union(*used))
    assert all(used)


def test_rows_carry_their_own_label_and_group(tmp_path):
    module = game(tmp_path)
    for rows in [*all_rows(module).values(), module.half("victim"), module.half("adversary")]:
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
    for rows in [*all_rows(module).values(), module.half("victim"), module.half("adversary")]:
        for code, name in enumerate(module.group_names):
            in_group = rows.s == code
            positive = COUNTS[name, 1] / (COUNTS[name, 0] + COUNTS[name, 1])
            assert abs(int(rows.y[in_group].sum()) - positive * int(in_group.sum())) <= 2.01


def test_halves_are_stratified(tmp_path):
    module = game(tmp_path, adversary_share=0.3)
    rows = adversary(module)
    assert len(rows) == round(0.3 * len(module.table.y))
    for (name, label), count in COUNTS.items():
        cell = (module.table.s[rows] == module.group_names.index(name)) & (module.table.y[rows] == label)
        assert abs(int(cell.sum()) - 0.3 * count) <= 1.01


def test_seed_determines_the_game(tmp_path):
    first, again, other = (all_rows(game(tmp_path, seed=seed, alpha=0.7)) for seed in (0, 0, 1))
    for key, rows in first.items():
        assert torch.equal(rows.index, again[key].index)
        assert torch.equal(rows.X, again[key].X)
        assert not torch.equal(rows.index, other[key].index)


def test_direction_and_other_options_of_the_game_leave_the_halves_alone(tmp_path):
    half = set(adversary(game(tmp_path)).tolist())
    for changes in ({"world": 1}, {"alpha": 0.5}, {"property": "b", "min_cell": 1}, {"rows": 20}, {"tau": 0.5}):
        assert set(adversary(game(tmp_path, **changes)).tolist()) == half
    both = game(tmp_path), game(tmp_path, world=1)
    assert torch.equal(both[0].part("train", 0).index, both[1].part("train", 0).index)


def test_rows_may_be_more_than_other_parts_have(tmp_path):
    whole = game(tmp_path).counts["data/rows_of_each_world/train"]
    counts = game(tmp_path, rows=int(whole)).counts
    assert counts["data/rows_of_each_world/train"] == whole > counts["data/rows_of_each_world/rates"]


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
            r"game\.rows=100000: people has \d+ training rows per world \(\d+ of a, \d+ of the others\): lower it, or",
        ),
        (
            {"min_cell": 11},
            r"part 'rates' has \d+ rows with label '1' and group 'c'.*all the data: 50\), fewer than 11",
        ),
    ],
)
def test_bad_game_is_named_in_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        game(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_group_of_one_row_is_named(tmp_path):
    told = "group 'b' of 'group' has one row in people: it cannot be both trained on and measured: "
    with pytest.raises(InputError, match=f"^{told}leave the group out of dataset.groups.group, or pool it with"):
        game(tmp_path, COUNTS | {("b", 0): 0, ("b", 1): 1})
    with pytest.raises(InputError, match=f"^{told}name another dataset.sensitive$"):  # of two none can be left out
        game(tmp_path, {("a", 0): 50, ("a", 1): 50, ("b", 1): 1}, groups=("a", "b"))


def test_group_with_one_label_only_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"0 rows with label '0' and group 'b' in its two worlds of \d+ rows \(in all the data: 0\)"
    ):
        game(tmp_path, {("a", 0): 50, ("a", 1): 50, ("b", 1): 100}, groups=("a", "b"))


def test_groups_that_are_the_label_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"every group of 'group' has one label only.*another dataset\.sensitive"):
        game(tmp_path, {("a", 0): 100, ("b", 1): 100, ("c", 1): 100}, min_cell=0)


def test_few_rows_are_asked_for_where_nothing_is_measured(tmp_path):
    counts = {("a", 0): 60, ("a", 1): 60, ("b", 0): 60, ("b", 1): 60}
    module = game(tmp_path, counts, groups=("a", "b"))
    rows = module.part("validation", 1)
    assert 1 <= int(((rows.s == 1) & (rows.y == 1)).sum()) < 5
    rows = game(tmp_path, rows=10).part("train", 1)
    assert not ((rows.s == 2) & (rows.y == 1)).any()


def test_worlds_without_a_row_to_train_on_are_refused(tmp_path):
    counts = dict.fromkeys([("a", 0), ("a", 1), ("b", 0), ("b", 1)], 3)
    with pytest.raises(InputError, match=r"no row of .* is left to train on: lower game\.adversary_share"):
        game(tmp_path, counts, groups=("a", "b"), min_cell=0, test_share=0.9, validation_share=0.05)


@pytest.mark.parametrize(
    ("min_cell", "message"),
    [
        (5, r"all the data: 50, 1 of them distinct: .*mends that: give features that tell these rows apart, or name"),
        (0, r"no row of group=[ab] is left to train on \(its 100 rows are 2 distinct ones: .*: give features"),
    ],
)
def test_rows_that_are_all_alike_are_said_to_be(tmp_path, min_cell, message):
    counts = dict.fromkeys([("a", 0), ("a", 1), ("b", 0), ("b", 1)], 50)
    rows = [f"1,{group},{label}\n" for (group, label), n in counts.items() for _ in range(n)]
    (tmp_path / "alike.csv").write_text("x,group,label\n" + "".join(rows))
    dataset = TabularDataset(
        "alike",
        Files(["alike.csv"], folder=str(tmp_path)),
        "label",
        "group",
        positive=[1],
        groups={"group": ["a", "b"]},
    )
    with pytest.raises(InputError, match=message):
        GameDataModule(dataset, GameSettings(min_cell=min_cell), 0).setup()


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
        ("compas", "race", (526, 105, 210, 210)),  # give or take the largest set of twins
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
        module = GameDataModule(dataset, GameSettings(alpha=alpha), seed)
        module.prepare_data()
        module.setup()
        assert sizes is None or tuple(len(module.part(part, 0).y) for part in PARTS) == pytest.approx(
            sizes, abs=8 if name == "compas" else 2
        )
        assert all(torch.isfinite(rows.X).all() for rows in all_rows(module).values())


def write_twins(path, sets=300, copies=4):
    """Rows in sets of equal ones; the label and the group follow from the set."""
    rng = np.random.default_rng(1)
    rows = [f"{n},k,{'ab'[n % 2]},{n // 2 % 2}" for n in range(sets) for _ in range(copies)]
    path.write_text("\n".join(["x,kind,group,label", *rng.permutation(rows), ""]))


def twin_game(tmp_path, seed=0, sets=300, copies=4, **changes):
    write_twins(tmp_path / "people.csv", sets, copies)
    source = Files(["people.csv"], folder=str(tmp_path))
    dataset = TabularDataset("people", source, "label", "group", positive=[1], groups={"group": ["a", "b"]})
    module = GameDataModule(dataset, GameSettings(**changes), seed)
    module.setup()
    return module


def contents(module, rows):
    frame = module.table.features.iloc[rows]
    keys = zip(*(frame[c] for c in frame), module.table.y[rows], module.table.s[rows], strict=True)
    return set(keys)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_twins_are_never_on_two_sides_of_a_split(tmp_path, alpha):
    for seed in range(5):
        module = twin_game(tmp_path, seed, alpha=alpha)
        seen = [contents(module, rows) for rows in (*module.parts.values(), module.half("adversary").index.numpy())]
        assert sum(map(len, seen)) == 300
        assert len(set.union(*seen)) == 300
        for member in range(5):
            deal = module.deal("victim", [seed, member])
            index = deal.half.index.numpy()
            train, validation = (
                contents(module, index[torch.cat(places).numpy()]) for places in (deal.train, deal.validation)
            )
            assert not train & validation


def test_rows_with_a_twin_are_counted(tmp_path):
    assert twin_game(tmp_path).counts["data/twin_rows"] == 1200
    module = game(tmp_path)
    counts = module.counts
    assert counts["data/twin_rows"] == 0
    module.twins[5] = module.twins[3]
    assert module.counts["data/twin_rows"] == 2
    assert sum(count for name, count in counts.items() if name.startswith("data/rows/")) < counts["data/rows"] == 3500


def test_rows_that_are_twins_of_one_another_cannot_be_split(tmp_path):
    with pytest.raises(InputError, match=r"in all the data: 400, 1 of them distinct: equal rows are kept together"):
        twin_game(tmp_path, sets=4, copies=400)


def test_values_alone_make_twins_not_the_kind_of_missing(tmp_path):
    frame = pd.DataFrame({"x": [1.0, 1.0, np.nan, np.nan, 1.0], "k": pd.Categorical(list("uuvvu"))})
    table = SimpleNamespace(features=frame, y=np.array([0, 0, 1, 1, 1]), s=np.array([0, 0, 0, 0, 0]))
    assert twins(table).tolist() == [0, 0, 1, 1, 2]
    signed = SimpleNamespace(features=pd.DataFrame({"x": [0.0, -0.0, 1.0]}), y=np.zeros(3), s=np.zeros(3))
    assert twins(signed).tolist() == [0, 0, 1]
    texts = SimpleNamespace(features=np.array(["a", "b", "a"], dtype=object), y=np.zeros(3), s=np.zeros(3))
    assert twins(texts).tolist() == [0, 1, 0]
    pixels = SimpleNamespace(features=np.array([[[1, 2]], [[2, 1]], [[1, 2]]], np.uint8), y=np.zeros(3), s=np.zeros(3))
    assert twins(pixels).tolist() == [0, 1, 0]


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("side", ["victim", "adversary"])
def test_every_model_draws_its_own_rows_with_its_worlds_make_up(tmp_path, alpha, side):
    module = game(tmp_path, alpha=alpha, groups=("a", "b", "c"))
    n, m = module.model_rows()
    half = set(module.half(side).index.tolist())
    tested = {i for part in ("rates", "gap", "query") for i in module.parts[part].tolist()}
    assert not half & tested
    drawn = []
    for member in range(40):
        deal = module.deal(side, [3, member])
        worlds = [deal.half.take(places) for places in (*deal.train, *deal.validation)]
        assert [len(rows.y) for rows in worlds] == [n, n, m, m]
        used = [set(rows.index.tolist()) for rows in worlds]
        assert sum(map(len, used)) == len(set.union(*used)) == 2 * (n + m)  # no row serves twice
        assert set.union(*used) <= half
        for world, rows in enumerate(worlds):
            of_a = int((rows.s == 0).sum())
            share = alpha if world % 2 == 0 else 1 - alpha
            assert of_a == pytest.approx(share * len(rows.y), abs=0.51)
            for code, name in enumerate(module.group_names):
                positive = COUNTS[name, 1] / (COUNTS[name, 0] + COUNTS[name, 1])
                here = rows.s == code
                assert abs(int(rows.y[here].sum()) - positive * int(here.sum())) <= 2.01
        drawn.append(frozenset(used[0]))
    assert len(set(drawn)) == 40
    # all of the half takes part, and not a fixed set of the world's rows
    rows = module.half(side)
    reachable = int((rows.s == 0).sum()) if alpha == 1 else len(half)
    assert len(frozenset.union(*drawn)) > 0.8 * reachable


def test_both_sides_models_have_equally_many_rows(tmp_path):
    module = game(tmp_path, adversary_share=0.3, query_share=0.4)
    sizes = {
        side: [len(places) for places in (*deal.train, *deal.validation)]
        for side in ("victim", "adversary")
        for deal in [module.deal(side, [0])]
    }
    assert sizes["victim"] == sizes["adversary"]


def test_a_model_draws_two_fifths_of_the_scarcer_side_and_a_fifth_of_that_to_validate(tmp_path, monkeypatch):
    module = game(tmp_path, adversary_share=0.4, query_share=0.3)
    halves = [module.half(side).s for side in ("victim", "adversary")]
    fewest = min(int(((s == 0) == own).sum()) for s in halves for own in (True, False))
    assert module.model_rows() == (round(0.4 * fewest), round(0.2 * round(0.4 * fewest)))
    few = game(tmp_path, model_rows=40)
    assert few.model_rows() == (40, 20)  # 20 validation rows at least
    monkeypatch.setattr("fairpriv.classifiers.data.game._LARGEST_SAMPLE", 150)
    assert game(tmp_path).model_rows() == (150, 30)


def test_no_row_trains_and_validates_where_a_model_takes_all_of_the_scarcer_side(tmp_path):
    counts = game(tmp_path, model_rows=40)._held
    fewest = min(count for side in counts.values() for count in side.values())
    module = game(tmp_path, model_rows=fewest - 30, model_validation_rows=30)
    deal = module.deal("victim", [0])
    places = torch.cat([*deal.train, *deal.validation])
    assert len(places.unique()) == len(places) == 2 * fewest


def test_a_model_may_be_dealt_another_make_up_than_the_games(tmp_path):
    module = game(tmp_path, alpha=0.8, model_rows=50)
    deal = module.deal("victim", [0], alpha=0.3)
    assert [int((deal.half.take(places).s == 0).sum()) for places in deal.train] == [15, 35]


def test_seeds_overlap_by_the_test_rows_of_a_training_row(tmp_path):
    module = game(tmp_path)
    assert module.overlap == sum(len(module.parts[part]) for part in ("rates", "gap")) / len(module.parts["train"])


def test_too_few_rows_for_a_worlds_make_up_name_the_group_and_how_many_are_missing(tmp_path):
    module = game(tmp_path, model_rows=700, model_validation_rows=100)
    held = int((module.half("victim").s == 0).sum())
    rest = len(module.half("victim").y) - held
    with pytest.raises(InputError, match="the victim's half has") as error:
        module.deal("victim", [0])
    count, group = (held, "group=a") if held < 800 else (rest, "groups other than group=a")
    assert f"has {count} rows of {group} to draw models' rows from, {800 - count} fewer than" in str(error.value)


def test_no_adversary_no_pools(tmp_path):
    module = game(tmp_path, adversary_share=0.0)
    for ask in (module.model_rows, lambda: module.part("query", 0), lambda: module.half("adversary")):
        with pytest.raises(InputError, match=r"game\.adversary_share=0 leaves an adversary no rows"):
            ask()


@pytest.mark.parametrize("changes", [{"query_share": 0.0005}, {"adversary_share": 0.0005}])
def test_an_adversary_without_rows_to_ask_about_is_refused_before_anything_is_trained(tmp_path, changes):
    module = game(tmp_path, **changes)
    with pytest.raises(
        InputError, match=r"game\.query_share=.*: the adversary has . rows of group=a and . of groups other"
    ):
        module.model_rows()


def test_what_was_read_and_how_it_was_dealt_is_told(tmp_path):
    module = game(tmp_path, groups=("b", "a"), alpha=0.75)
    counts = module.counts
    assert counts["data/rows_read"] == 3500
    assert counts["data/rows_dropped/groups"] == 300
    assert counts["data/rows"] == 3200
    assert counts["data/cells/1/b"] == 600
    assert counts["data/cells/0/a"] == 1500
    for part in PARTS:
        rows = module.part(part, 0), module.part(part, 1)
        assert {len(world.y) for world in rows} == {counts[f"data/rows_of_each_world/{part}"]}
    for world in (0, 1):
        held = np.bincount(module.part("train", world).s, minlength=2)
        assert [counts[f"data/world_{world}/{group}"] for group in ("b", "a")] == held.tolist()
    assert "data/rows_poisoned" not in counts
    assert module.measured.described["data/rows"].unit == "rows"
    scarcer = int((module.table.s[module.parts["train"]] == 0).sum())
    assert counts["data/decided_by/group=b"] == scarcer == counts["data/rows_of_each_world/train"]
    told = "\n".join(module.told)
    assert "3500 rows read, 300 left out (groups 300), 3200 used" in told
    assert "label 1: 1100 rows: b 600, a 500" in told
    assert "world 0: 75% group=b, 25% others; world 1: 25% group=b, 75% others" in told
    assert f"group=b decides, with {scarcer} of " in told


def test_two_groups_are_called_by_name_where_the_other_one_decides(tmp_path):
    counts = game(tmp_path, groups=("a", "b")).counts
    assert "data/decided_by/group=b" in counts
    counts = game(tmp_path, property="a").counts
    assert "data/decided_by/groups other than group=a" in counts


def test_parts_with_few_rows_are_named(tmp_path):
    assert game(tmp_path, {cell: 8 * n for cell, n in COUNTS.items()}).small is None
    small = game(tmp_path, rows=20).small
    assert small is not None
    assert "fewer than 100 rows a world" in small
    assert "train 20" in small


def test_advice_helps_where_a_cell_is_empty_and_where_it_is_only_small(tmp_path):
    with pytest.raises(InputError) as error:
        game(tmp_path, COUNTS | {("c", 1): 0})
    assert "in all the data: 0" in str(error.value)
    assert "no other game.min_cell or share mends that: leave the group out of dataset.groups.group" in str(error.value)
    many = {("a", 0): 200, ("a", 1): 200, ("b", 0): 2000, ("b", 1): 2000, ("c", 0): 2000, ("c", 1): 150}
    with pytest.raises(InputError, match=r"choose game\.property=[bc], which makes worlds of") as error:
        game(tmp_path, many, property="a")
    better = str(error.value).split("game.property=")[1][0]
    game(tmp_path, many, property=better)


@pytest.mark.parametrize(("rows", "min_cell", "lower"), [(30, 8, True), (7, 5, False)], ids=["few", "none"])
def test_a_lower_min_cell_is_advised_where_a_part_has_rows_of_the_cell(tmp_path, rows, min_cell, lower):
    with pytest.raises(InputError, match=r"with label '1' and group 'b'.*raise game\.test_share") as error:
        game(tmp_path, COUNTS | {("b", 1): rows}, groups=("a", "b"), min_cell=min_cell)
    assert ("lower game.min_cell" in str(error.value)) == lower == (" has 0 rows" not in str(error.value))
    # one of two groups can be neither left out nor pooled
    assert str(error.value).endswith("or name another dataset.sensitive")
