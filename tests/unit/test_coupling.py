"""Both rules against plain sets and lists."""

import math
import random
import warnings

import pytest
import torch

from fairpriv.functional import TopWeights, coupled_weights, selected, smallest_ratio, top_weights

SETS = ("fairness", "privacy", "safety", "general", "chat")


def ranked(score, count):
    """The top entries of a list of numbers by a plain sort: of equal ones the lower index first."""
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def random_case(seed):
    """Scores of three matrices with many ties, and the ratios to ask for."""
    g = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    shapes = {f"layers.{i}.mlp.weight": (draw.randint(4, 9), draw.randint(4, 9)) for i in range(3)}
    levels = draw.choice([3, 12, 10**6])
    scores = {s: {n: torch.randint(levels, shape, generator=g).float() for n, shape in shapes.items()} for s in SETS}
    dimensions = draw.sample(["fairness", "privacy", "safety"], draw.choice([2, 3]))
    exclude = draw.choice([(), ("general",), ("general", "chat")])
    return scores, {"dimensions": dimensions, "exclude": exclude, "ratio": draw.uniform(0.07, 0.8)}


def both_forms(scores, max_ratio):
    return scores, {name: top_weights(score, max_ratio=max_ratio) for name, score in scores.items()}


@pytest.mark.parametrize("seed", range(60))
def test_intersection_is_that_of_sets(seed):
    scores, how = random_case(seed)
    how["exclude_ratio"] = random.Random(seed).choice([None, 0.07, 0.3, 0.9])
    exclude_ratio = how["ratio"] if how["exclude_ratio"] is None else how["exclude_ratio"]
    for form in both_forms(scores, 0.9):
        coupled = coupled_weights(form, **how)
        for name, score in scores["general"].items():

            def top(which, ratio, name=name, score=score):
                return set(ranked(scores[which][name].flatten().tolist(), int(ratio * score.numel())))

            want = set.intersection(*(top(dimension, how["ratio"]) for dimension in how["dimensions"]))
            want -= set().union(*(top(other, exclude_ratio) for other in how["exclude"]))
            assert coupled[name].tolist() == sorted(want)
            assert coupled[name].dtype == torch.int64


@pytest.mark.parametrize("seed", range(60))
def test_released_goes_by_positions_in_sorted_lists(seed):
    scores, how = random_case(seed)
    for form in both_forms(scores, how["ratio"]):
        coupled = coupled_weights(form, **how, rule="released")
        for name, score in scores["general"].items():
            count = int(how["ratio"] * score.numel())
            tops = {which: ranked(scores[which][name].flatten().tolist(), count) for which in SETS}
            excluded = {index for other in how["exclude"] for index in tops[other]}
            want = [
                tops[how["dimensions"][0]][i]
                for i in range(count)
                if all(tops[dimension][i] not in excluded for dimension in how["dimensions"])
            ]
            assert coupled[name].tolist() == want


def test_released_suppresses_weights_that_are_not_coupled():
    privacy, fairness, general = (torch.zeros(1, 12) for _ in range(3))
    privacy[0, :3], fairness[0, 2:5], general[0, 8:11] = 1, 1, 1
    scores = {name: {"w": score} for name, score in [("p", privacy), ("f", fairness), ("general", general)]}
    how = {"dimensions": ["p", "f"], "ratio": 0.25}
    assert coupled_weights(scores, **how)["w"].tolist() == [2]
    assert coupled_weights(scores, **how, rule="released")["w"].tolist() == [0, 1, 2]


def test_top_weights_are_sorted_and_carry_their_values():
    top = top_weights({"w": torch.tensor([[0.5, 3.0, 1.0], [2.0, 3.0, 2.0]])}, max_ratio=0.5)["w"]
    assert top.indices.tolist() == [1, 3, 4]
    assert top.values.tolist() == [3, 2, 3]
    assert (top.indices.dtype, top.values.dtype) == (torch.int64, torch.float32)
    assert (top.numel, top.max_ratio) == (6, 0.5)
    of_halves = top_weights({"w": torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float16))}, max_ratio=0.5)
    assert of_halves["w"].values.dtype == torch.float32
    assert not of_halves["w"].values.requires_grad


def test_top_weights_are_narrowed_to_a_smaller_ratio():
    for seed in range(10):
        scores, _ = random_case(seed)
        kept = top_weights(scores["general"], max_ratio=0.9)
        want, got = top_weights(scores["general"], max_ratio=0.3), top_weights(kept, max_ratio=0.3)
        for name, top in want.items():
            assert torch.equal(top.indices, got[name].indices)
            assert torch.equal(top.values, got[name].values)
            assert top[2:] == got[name][2:]
        with pytest.raises(ValueError, match=r"above max_ratio 0\.3"):
            top_weights(got, max_ratio=0.5)


def test_equal_scores_go_by_index():
    top = top_weights({"w": torch.ones(1000)}, max_ratio=0.01)["w"]
    assert top.indices.tolist() == list(range(10))


def test_the_smallest_ratio_selects_one_and_the_next_below_none():
    sizes = [*range(1, 3000), 576 * 1536, 4096 * 11008]
    assert any(int(1 / numel * numel) == 0 for numel in sizes)  # why it is found by trying
    for numel in sizes:
        ratio = smallest_ratio(numel)
        assert int(ratio * numel) == selected(numel, ratio) == 1
        assert selected(numel, math.nextafter(ratio, 0)) == 0
        assert (selected(numel, 0), selected(numel, 1)) == (0, numel)


def test_a_ratio_that_selects_nothing_is_warned_of_with_one_that_does():
    scores = {name: {"large": torch.rand(100, 10), "small": torch.rand(7, 7)} for name in ("a", "b", "general")}
    with pytest.warns(UserWarning, match=r"ratio 0.002 selects no weight in 1 of 2 matrices, such as small") as caught:
        coupled = coupled_weights(scores, dimensions=["a", "b"], ratio=0.002)
    assert coupled["small"].tolist() == []
    assert str(smallest_ratio(49)) in str(caught[0].message)
    assert caught[0].filename == __file__  # the line that asked
    with pytest.warns(
        UserWarning, match=f"one is {smallest_ratio(1000)} in the largest.*{smallest_ratio(49)} in every"
    ):
        coupled_weights(scores, dimensions=["a", "b"], ratio=0.0005)
    with pytest.warns(UserWarning, match="exclude_ratio 0.0001 selects no weight in 2 of 2 matrices"):
        coupled_weights(scores, dimensions=["a", "b"], ratio=0.5, exclude_ratio=0.0001)
    with pytest.warns(UserWarning, match="max_ratio 0.002 selects no weight in 1 of 2"):
        assert len(top_weights(scores["a"], max_ratio=0.002)["small"].indices) == 0
    with pytest.warns(UserWarning, match="ratio 0.002 selects") as caught:
        coupled_weights(scores, dimensions=["a", "b"], ratio=0.002, exclude_ratio=0.002)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coupled_weights(scores, dimensions=["a", "b"], ratio=smallest_ratio(49))
        coupled_weights(scores, dimensions=["a", "b"], exclude=(), ratio=0.5, exclude_ratio=0.0001)


def test_what_cannot_be_answered_is_refused():
    scores = {name: {"w": torch.rand(10, 10)} for name in SETS}
    how = {"dimensions": ["fairness", "privacy"], "ratio": 0.1}
    top = {name: top_weights(score, max_ratio=0.1) for name, score in scores.items()}
    with pytest.raises(ValueError, match=r"w: ratio 0.2 is above max_ratio 0.1"):
        coupled_weights(top, **how | {"ratio": 0.2})
    with pytest.raises(ValueError, match=r"w: ratio 0.2 is above max_ratio 0.1"):
        coupled_weights(top, **how, exclude_ratio=0.2)
    with pytest.raises(ValueError, match=r"'released' needs exclude_ratio equal to ratio, not 0.2 and 0.1"):
        coupled_weights(scores, **how, exclude_ratio=0.2, rule="released")
    with pytest.raises(ValueError, match="rule 'union' must be intersection or released"):
        coupled_weights(scores, **how, rule="union")
    with pytest.raises(ValueError, match=r"no scores of 'alpaca': there are .*general.*; exclude=\(\)"):
        coupled_weights(scores, **how, exclude=("alpaca",))
    for dimensions in (["fairness"], ["fairness", "fairness"], ["fairness", "general"]):
        with pytest.raises(ValueError, match="must be two or more, each once"):
            coupled_weights(scores, **how | {"dimensions": dimensions})
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            coupled_weights(scores, **how | {"ratio": ratio})
    for which in ("privacy", "general"):
        with pytest.raises(ValueError, match=f"'{which}' and 'fairness' are not of the same weights"):
            coupled_weights(scores | {which: {"w": torch.rand(5, 5)}}, **how)
    one_nan = torch.rand(10, 10)
    one_nan[3, 4] = torch.nan
    with pytest.raises(ValueError, match="w: a score is NaN"):
        coupled_weights(scores | {"privacy": {"w": one_nan}}, **how)


def test_top_weights_of_either_form_mix():
    scores, how = random_case(5)
    _, tops = both_forms(scores, 0.9)
    mixed = {name: tops[name] if name == "general" else scores[name] for name in SETS}
    for name, index in coupled_weights(scores, **how).items():
        assert torch.equal(index, coupled_weights(mixed, **how)[name])
    assert isinstance(tops["general"]["layers.0.mlp.weight"], TopWeights)


def test_scores_may_be_arrays():
    scores, how = random_case(1)
    arrays = {which: {name: score.numpy() for name, score in of.items()} for which, of in scores.items()}
    for name, index in coupled_weights(scores, **how).items():
        assert torch.equal(index, coupled_weights(arrays, **how)[name])
