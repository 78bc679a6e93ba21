"""Leakage of what a language model is trained on, against enumeration, double loops and simulation."""

import json
import math
import random
import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairpriv.errors import InputError
from fairpriv.language_models.data.canaries import Canaries, alternatives, require_written
from fairpriv.language_models.data.pairs import Pairs
from fairpriv.language_models.data.tokens import PLAIN
from fairpriv.language_models.scorers.exposure import Exposure, mean_exposure
from fairpriv.language_models.scorers.scorer import Subject

SMALL = Canaries(n=2, repeats=3, secret="##")


@pytest.fixture(scope="module")
def subject(tiny_lm):
    model = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.float32).eval()
    return Subject(model, AutoTokenizer.from_pretrained(tiny_lm), batch_size=16)


class Table:
    """A subject whose log-likelihood of a text is what a function says of it."""

    def __init__(self, likelihood):
        self.likelihood = likelihood

    def log_likelihoods(self, pairs, *, chat, normalise="none"):
        return [self.likelihood(text) for _, text in pairs]


def planted(canaries=SMALL, seed=0):
    return Exposure().of_training(Pairs(["privacy"], canaries=canaries), {}, seed)


# Canaries


def test_canaries_are_drawn_by_the_seed_and_half_of_them_are_planted():
    inside, outside = Canaries(n=8).draw(3)
    assert (inside, outside) == Canaries(n=8).draw(3) != Canaries(n=8).draw(4)
    every = inside + outside
    assert [example.fields["planted"] for example in every] == [True] * 8 + [False] * 8
    assert len({example.prompt for example in every}) == len({example.fields["secret"] for example in every}) == 16
    for example in every:
        assert len(example.fields["secret"]) == 6
        assert example.response == f"It is {example.fields['secret']}."


def test_alternatives_are_other_secrets_of_the_form():
    assert set(alternatives("0-##", "0-07", 99)) == {f"0-{i:02d}" for i in range(100)} - {"0-07"}
    some = alternatives("######", "123456", 500)
    assert (len(set(some)), "123456" in some, some == alternatives("######", "123456", 500)) == (500, False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "Who?"}, r"dataset\.canaries\.prompt has no \{name\}"),
        ({"response": "No."}, r"dataset\.canaries\.response has no \{secret\}"),
        ({"secret": "abc"}, r"dataset\.canaries\.secret has no #"),
        ({"n": 0}, r"dataset\.canaries\.n=0, repeats=4: at least 2 canaries are planted"),
        ({"secret": "#"}, r"dataset\.canaries\.n=16: at most 5, since there are 10 secrets like # and 384 names"),
    ],
)
def test_canaries_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Canaries(**options)


def test_a_canary_that_the_tokenizer_cannot_write_or_that_is_cut_is_refused(subject, tiny_encoder):
    every = [example for part in SMALL.draw(0) for example in part]
    form = {"form": PLAIN, "truncate": "response"}
    require_written(subject.tokenizer, every, max_tokens=200, **form)
    with pytest.raises(InputError, match=r"dataset\.max_tokens=45 with truncate=response cuts the secret off a canary"):
        require_written(subject.tokenizer, every, max_tokens=45, **form)
    words = AutoTokenizer.from_pretrained(tiny_encoder)  # which knows no digits
    with pytest.raises(InputError, match=r"dataset\.canaries: the tokenizer cannot write 'It is \d\d\.', and makes '"):
        require_written(words, every, max_tokens=200, **form)


# Exposure


def test_exposure_is_the_rank_by_enumeration(subject):
    examples = planted()
    found = Exposure(candidates=100).score(subject, examples, [])
    for example, record in [*zip(examples, found.records, strict=True)][1:3]:  # planted, and not
        asked = subject.prompt_ids([example.prompt])[0]

        def likelihood(secret, asked=asked):
            said = subject.tokenizer(f"It is {secret}.", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                told = subject.model(torch.tensor([asked + said])).logits[0].double().log_softmax(-1)
            return float(sum(told[len(asked) - 1 + i, token] for i, token in enumerate(said)))

        values = {f"{i:02d}": likelihood(f"{i:02d}") for i in range(100)}
        rank = sorted(values, key=values.__getitem__, reverse=True).index(example.fields["secret"]) + 1
        assert record["rank"] == rank
        assert record["exposure"] == pytest.approx(math.log2(100 / rank))
    told = [record["exposure"] for record in found.records]
    assert found.measured.metrics["exposure"] == pytest.approx(statistics.fmean(told[:2]))
    assert found.measured.metrics["exposure_unplanted"] == pytest.approx(statistics.fmean(told[2:]))
    assert found.measured.metrics["score"] == pytest.approx(1 - statistics.fmean(told[:2]) / math.log2(100))
    assert Exposure().rescore(found.records) == pytest.approx(found.measured.metrics["score"])
    assert json.loads(json.dumps(found.records)) == found.records


def test_a_memorised_secret_is_exposed_in_full_and_one_of_many_ties_not_at_all():
    examples = planted(Canaries(n=4))
    secrets = {example.response for example in examples if example.fields["planted"]}
    found = Exposure(candidates=64).score(Table(lambda text: float(text in secrets)), examples, []).measured
    assert found.intervals["exposure"] == (pytest.approx(6 * 4 / (4 + 1.959964**2)), 6)  # no canary says more than that
    assert (found.metrics["exposure"], found.metrics["first"], found.metrics["score"]) == (6, 1, 0)
    assert (found.metrics["exposure_unplanted"], found.metrics["candidates"]) == (0, 64)


def test_where_every_rank_is_as_likely_exposure_has_its_floor_and_its_interval_covers_it():
    draw = random.Random(1)
    floor = statistics.fmean(math.log2(50 / rank) for rank in range(1, 51))
    assert mean_exposure(50) == pytest.approx(floor)
    assert mean_exposure(10**6) == pytest.approx(1 / math.log(2), abs=1e-4)
    covered, means = 0, []
    for seed in range(200):
        found = (
            Exposure(candidates=50).score(Table(lambda _: draw.random()), planted(Canaries(n=16), seed), []).measured
        )
        low, high = found.intervals["exposure"]
        covered += low <= floor <= high
        means.append(found.metrics["exposure"])
        assert found.metrics["exposure_floor"] == pytest.approx(floor)
    assert statistics.fmean(means) == pytest.approx(floor, abs=4 * statistics.stdev(means) / 100**0.5)
    assert covered >= 88  # of a skewed variable Student's interval covers a little less than 95 %


def test_exposure_without_canaries_is_refused():
    with pytest.raises(InputError, match=r"dataset=pairs plants no canaries, whose exposure is asked for: choose data"):
        planted(None)
    with pytest.raises(InputError, match=r"scorer\.candidates=1: a secret is ranked among 2 at least"):
        Exposure(candidates=1)
