"""Which pairs are trained on, and in which step and process each row is read."""

import logging

import pytest

from fairpriv.data.sources import Bundled, Files
from fairpriv.data.texts import Example, Texts
from fairpriv.errors import InputError
from fairpriv.language_models.data.canaries import Canaries
from fairpriv.language_models.data.pairs import Pairs, TokenBatches
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.inputs import Data, trained_on
from fairpriv.language_models.observation import PromptSet
from fairpriv.language_models.scorers.contains import Contains
from fairpriv.language_models.scorers.pair_membership import PairMembership

COLUMNS = {"prompt": "prompt", "response": "response"}


def texts(folder, name, n):
    lines = ["prompt,response", *(f"{name} {i}?,{name} answer {i}" for i in range(n))]
    (folder / f"{name}.csv").write_text("\n".join(lines))
    return Texts(Files([f"{name}.csv"], folder=str(folder)), COLUMNS)


@pytest.fixture
def dimensions(tmp_path):
    return {
        "privacy": Dimension("privacy", {"safe": texts(tmp_path, "p", 20), "unsafe": texts(tmp_path, "u", 8)}),
        "fairness": Dimension("fairness", {"safe": texts(tmp_path, "f", 20)}),
        "asked": Dimension("asked", evaluate=texts(tmp_path, "e", 5)),
    }


def prompts(pairs, dimensions, seed=0):
    return [example.prompt for example in pairs.draw(dimensions, seed)]


def test_copies_among_the_pairs_are_told_of_once(tmp_path, caplog):
    (tmp_path / "c.csv").write_text("prompt,response\n" + "a?,b\n" * 614 + "".join(f"c {i}?,d\n" for i in range(386)))
    copied = Dimension("copied", {"safe": Texts(Files(["c.csv"], folder=str(tmp_path)), COLUMNS)})
    assert len(copied.pairs("safe")) == len(copied.pairs("safe")) == 1000
    message = (
        "dimension copied: of 1,000 safe pairs 387 are different: the others are copies, each as likely to be drawn"
    )
    assert caplog.messages == [message]


def test_copies_and_categories_of_one_meaning_among_what_is_asked_are_told_of(tmp_path, caplog):
    (tmp_path / "e.csv").write_text(
        "prompt,kind\n" + "a?,Gender\n" * 3 + "".join(f"c {i}?,gender\n" for i in range(97))
    )
    read = Texts(Files(["e.csv"], folder=str(tmp_path)), {"prompt": "prompt", "category": "kind", "truth": "prompt"})
    asked = Dimension("twice", evaluate=read, scorer=Contains())
    assert len(asked.measured_on()) == len(asked.measured_on()) == 100
    assert caplog.messages == [
        "dimensions.twice.evaluate: of 100 rows 98 are different: intervals count the others, which are copies, as if "
        "they were further questions",
        "dimensions.twice.evaluate: categories that differ in spelling only: 'Gender' and 'gender'",
    ]
    caplog.clear()
    bare = Texts(Files(["e.csv"], folder=str(tmp_path)), {"prompt": "prompt"})
    assert len(Dimension("mild", benign=bare).benign_prompts()) == 100
    assert len(caplog.messages) == 1


def test_the_split_and_the_dimension_say_what_is_read(dimensions):
    assert sorted(prompts(Pairs(["privacy"], "unsafe"), dimensions)) == [f"u {i}?" for i in range(8)]
    (example,) = Pairs(["fairness"], samples=1).draw(dimensions, 0)
    assert example.response == example.prompt.replace(" ", " answer ").rstrip("?")


def test_fewer_samples_are_the_beginning_of_more(dimensions):
    every = prompts(Pairs(["privacy"]), dimensions)
    assert len(every) == 20
    for n in (1, 7, 20):
        assert prompts(Pairs(["privacy"], samples=n), dimensions) == every[:n]
    assert prompts(Pairs(["privacy"]), dimensions, seed=1) != every


def test_fewer_samples_of_a_mix_are_among_those_of_a_larger_one(dimensions):
    def mixed(n):
        return prompts(Pairs(["privacy", "fairness"], samples=n, shares=[0.75, 0.25]), dimensions)

    large = mixed(24)
    assert [sum(p.startswith(letter) for p in large) for letter in "pf"] == [18, 6]
    assert set(mixed(8)) < set(large)
    assert [sum(p.startswith(letter) for p in mixed(8)) for letter in "pf"] == [6, 2]
    equal = prompts(Pairs(["privacy", "fairness"], samples=9), dimensions)
    assert sorted(sum(p.startswith(letter) for p in equal) for letter in "pf") == [4, 5]


def test_what_is_held_out_is_the_rest_and_mixed_alike(dimensions):
    pairs = Pairs(["privacy"], samples=12)
    rest = [example.prompt for example in pairs.held_out(dimensions, 0)]
    assert rest == prompts(Pairs(["privacy"]), dimensions)[12:]
    mixed = Pairs(["privacy", "fairness"], samples=12, shares=[0.75, 0.25])
    rest = [example.prompt for example in mixed.held_out(dimensions, 0)]
    assert [sum(prompt.startswith(letter) for prompt in rest) for letter in "pf"] == [11, 3]  # 20 - 9, and a third
    assert not set(rest) & set(prompts(mixed, dimensions))
    assert Pairs(["privacy"]).held_out(dimensions, 0) == []


def test_a_pair_that_stands_twice_is_not_held_out_if_it_is_trained_on(tmp_path):
    dimensions = {"d": Dimension("d", {"safe": texts(tmp_path, "d", 4)})}
    (tmp_path / "d.csv").write_text("prompt,response\n" + "Who?,You.\n" * 3 + "Who?,Me.\n")
    for seed in range(3):
        pairs = Pairs(["d"], samples=1)
        (trained,) = pairs.draw(dimensions, seed)
        held = {example.response for example in pairs.held_out(dimensions, seed)}
        assert held == {"You.", "Me."} - {trained.response}


def test_canaries_are_trained_on_behind_the_pairs_as_often_as_they_are_repeated(dimensions):
    plain, canaries = Pairs(["privacy"], samples=5), Canaries(n=3, repeats=2)
    drawn = Pairs(["privacy"], samples=5, canaries=canaries).draw(dimensions, 1)
    assert drawn[:5] == plain.draw(dimensions, 1)
    assert drawn[5:] == canaries.draw(1)[0] * 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (Pairs(["privcy"]), r"privcy is not among the chosen dimensions privacy, fairness, asked \(did you mean"),
        (Pairs(["fairness"], "unsafe"), r"dimensions\.fairness\.train has no split 'unsafe'; it has safe$"),
        (Pairs(["asked"]), r"dimensions\.asked\.train has no split 'safe'; it has no pairs at all$"),
        (Pairs(["privacy"], samples=21), r"dataset\.samples=21: there are 20 in p\.csv$"),
        (Pairs(["privacy", "fairness"], samples=50), r"there are 20 \(dataset\.samples\)"),
    ],
)
def test_what_cannot_be_drawn_is_said(dimensions, pairs, message):
    with pytest.raises(InputError, match=message):
        pairs.draw(dimensions, 0)


def against(contrast, pairs):
    pairs.contrast = contrast
    return pairs


def test_each_pair_stands_against_a_response_of_the_other_split(dimensions, tmp_path):
    (tmp_path / "both.csv").write_text("prompt,good,bad\nA,a1,A1\nB,b1,\nA,a2,A2\nA,a3,A3\nC,,C1\n")

    def column(name, **where):
        return Texts(Files(["both.csv"], folder=str(tmp_path)), {"prompt": "prompt", "response": name}, where)

    both = Dimension("both", {"safe": column("good", prompt=["A", "B"]), "unsafe": column("bad", good=["a1", "a2"])})
    drawn = against("prompt", Pairs(["both"])).draw({"both": both}, 0)
    assert {(e.prompt, e.response, e.rejected.prompt, e.rejected.response) for e in drawn} == {
        ("A", "a1", "A", "A1"),
        ("A", "a2", "A", "A2"),
    }
    turned = against("prompt", Pairs(["both"], "unsafe")).draw({"both": both}, 0)
    assert {(e.response, e.rejected.response) for e in turned} == {("A1", "a1"), ("A2", "a2")}
    with pytest.raises(InputError, match=r"defense\.pairing=prompt, dataset\.samples=3: there are 2 in both\.csv"):
        against("prompt", Pairs(["both"], samples=3)).draw({"both": both}, 0)
    message = r"dimensions\.privacy\.train: no prompt has both a safe and an unsafe response.*defense\.pairing=any"
    with pytest.raises(InputError, match=message):
        against("prompt", Pairs(["privacy"])).draw(dimensions, 0)
    others = {e.response: e.rejected.response for e in against("any", Pairs(["privacy"])).draw(dimensions, 0)}
    assert others == {f"p answer {i}": f"u answer {i % 8}" for i in range(20)}
    with pytest.raises(InputError, match=r"dataset=pairs plants canaries.*takes dataset=pairs"):
        against("any", Pairs(["privacy"], canaries=Canaries())).draw(dimensions, 0)
    one = against("prompt", Pairs(["both"], samples=1))
    parts = [example.response for part in (one.draw, one.held_out) for example in part({"both": both}, 0)]
    assert sorted(parts) == ["a1", "a2"]  # a3 and b1 stand against nothing, and could not be trained on
    for contrast in ("prompt", "any"):
        with pytest.raises(InputError, match=r"dimensions\.fairness\.train has no split 'unsafe'; it has safe"):
            against(contrast, Pairs(["fairness"])).draw(dimensions, 0)


def test_prompts_that_are_trained_on_are_counted_and_told_of(caplog):
    def sets(kind, evaluate, *asked):
        texts = Texts(Bundled(["privacy_evaluate.csv"]), {"prompt": "prompt"}) if evaluate else None
        dimension = Dimension("privacy", evaluate=texts, scorer=None if evaluate else PairMembership())
        return PromptSet(dimension, kind, [Example(prompt, None, "a row") for prompt in asked])

    def found(*sets, pairs=(), asked=()):
        data = Data(list(sets), list(pairs), {("privacy", "safe", None): list(asked)}, [], None)
        return trained_on(data).metrics

    told = sets("evaluate", True, "Who is she?", "Where is he?", "", "Who is she?")
    pairs = [Example(" Who is she?\n", "A nurse.", "a row"), Example("", "Yes.", "a row")]
    with caplog.at_level(logging.WARNING, logger="fairpriv"):
        assert found(told, pairs=pairs) == found(told, asked=pairs) == {"eval/privacy/trained_on": 0.5}
    assert "dimension privacy: 2 of its 4 prompts are also prompts of pairs" in caplog.text
    other = Example("Another?", "No.", "a row", rejected=pairs[0])
    assert found(told, pairs=[other]) == {"eval/privacy/trained_on": 0.5}
    assert found(told) == found(told, pairs=pairs[1:]) == {}
    assert found(sets("benign", True, "Who is she?"), sets("scored", False, "Who is she?"), pairs=pairs) == {}


def test_pairs_without_responses_are_no_pairs(tmp_path):
    prompts_only = Texts(texts(tmp_path, "p", 3).source, {"prompt": "prompt"})
    with pytest.raises(InputError, match=r"dimensions\.d\.train\.safe\.columns names no response"):
        Pairs(["d"]).draw({"d": Dimension("d", {"safe": prompts_only})}, 0)
    with pytest.raises(InputError, match=r"dimensions\.d\.train\.harmless: the splits are safe and unsafe"):
        Dimension("d", {"harmless": prompts_only})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": []}, r"name one dimension or several"),
        ({"dimensions": ["a", "a"]}, r"several different ones"),
        ({"dimensions": ["a", "b"], "samples": 4, "shares": [1.0]}, r"1 shares for 2 dimensions"),
        ({"dimensions": ["a", "b"]}, r"a mix of dimensions needs the number of pairs"),
        ({"dimensions": ["a"], "max_tokens": 1}, r"must be at least 2"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Pairs(**options)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_processes_share_the_rows_of_every_step(processes):
    rows = [Encoded([i], [i]) for i in range(11)]
    steps = TokenBatches(rows, 4, seed=3)
    parts = [TokenBatches(rows, 4, seed=3, rank=rank, processes=processes) for rank in range(processes)]
    orders = []
    for _epoch in range(2):
        whole, shared = list(steps), [list(part) for part in parts]
        assert [len(step) for step in whole] == [4, 4, 3]
        assert len(steps) == 3
        for i, step in enumerate(whole):
            got = sorted(row.input_ids[0] for part in shared for row in part[i])
            assert got == sorted(row.input_ids[0] for row in step)
        orders.append([row.input_ids[0] for step in whole for row in step])
        assert sorted(orders[-1]) == list(range(11))
    assert orders[0] != orders[1]
