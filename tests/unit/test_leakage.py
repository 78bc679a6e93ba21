"""Leakage of what a language model is trained on, against enumeration, double loops and simulation."""

import functools
import json
import math
import random
import statistics
from types import SimpleNamespace

import numpy
import pytest
import scipy.stats
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairpriv.data.sources import Files
from fairpriv.data.texts import Texts
from fairpriv.errors import InputError
from fairpriv.functional.intervals import wilson_interval
from fairpriv.functional.membership import membership_auc, min_k_plus_plus
from fairpriv.language_models.data.canaries import Canaries, alternatives, require_written
from fairpriv.language_models.data.pairs import Pairs
from fairpriv.language_models.data.tokens import NO_TARGET, PLAIN, Encoded
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.engines.log_likelihood import token_likelihoods
from fairpriv.language_models.models.reft import LoReFTConfig, ReftModel
from fairpriv.language_models.observation import Observer, PromptSet
from fairpriv.language_models.scorers.exposure import Exposure, mean_exposure
from fairpriv.language_models.scorers.extraction import Extraction, digits_told, holds, least_distance
from fairpriv.language_models.scorers.pair_membership import PairMembership
from fairpriv.language_models.scorers.scorer import Scored, Subject
from fairpriv.store import Store

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
        ({"secret": "#" * 19}, r"dataset\.canaries\.secret has more than 18 #"),
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


def test_exposure_is_the_rank_by_enumeration_and_in_a_sample_by_the_ranks_of_the_sample(subject):
    examples = planted(Canaries(n=2, secret="#"))
    found = Exposure(candidates=10).score(subject, examples, [])
    sampled = Exposure(candidates=5).score(subject, examples, [])
    for example, record, among in zip(examples, found.records, sampled.records, strict=True):
        asked = subject.prompt_ids([example.prompt])[0]

        def likelihood(secret, asked=asked):
            said = subject.tokenizer(f"It is {secret}.", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                told = subject.model(torch.tensor([asked + said])).logits[0].double().log_softmax(-1)
            return float(sum(told[len(asked) - 1 + i, token] for i, token in enumerate(said)))

        values = {digit: likelihood(digit) for digit in "0123456789"}
        secret = example.fields["secret"]
        rank = sorted(values, key=values.__getitem__, reverse=True).index(secret) + 1
        assert record["rank"] == rank
        assert record["exposure"] == pytest.approx(math.log2(10 / rank))
        others = alternatives("#", secret, 4)
        assert among["rank"] == 1 + sum(values[digit] > values[secret] for digit in others)
        assert among["exposure"] == pytest.approx(math.log2(5 / among["rank"]))
    told = [record["exposure"] for record in found.records]
    assert found.measured.metrics["exposure"] == pytest.approx(statistics.fmean(told[:2]))
    assert found.measured.metrics["exposure_unplanted"] == pytest.approx(statistics.fmean(told[2:]))
    assert found.measured.metrics["score"] == pytest.approx(1 - statistics.fmean(told[:2]) / math.log2(10))
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
    floor = statistics.fmean(math.log2(20 / rank) for rank in range(1, 21))
    assert mean_exposure(20) == pytest.approx(floor)
    assert mean_exposure(10**6) == pytest.approx(1 / math.log(2), abs=1e-4)
    covered, means = 0, []
    scorer, table = Exposure(candidates=20), Table(lambda _: draw.random())
    for seed in range(60):
        found = scorer.score(table, planted(Canaries(n=16), seed), []).measured
        low, high = found.intervals["exposure"]
        covered += low <= floor <= high
        means.append(found.metrics["exposure"])
        assert found.metrics["exposure_floor"] == pytest.approx(floor)
        assert found.described["exposure"].guess == pytest.approx(floor)  # by chance a rank lies below it
        assert found.described["score"].guess == pytest.approx(1 - floor / math.log2(20))
    assert statistics.fmean(means) == pytest.approx(floor, abs=4 * statistics.stdev(means) / 60**0.5)
    assert covered >= 52  # of a skewed variable Student's interval covers a little less than 95 %


def test_exposure_without_canaries_is_refused():
    with pytest.raises(InputError, match=r"dataset=pairs plants no canaries, whose exposure is asked for: choose data"):
        planted(None)
    with pytest.raises(InputError, match=r"scorer\.candidates=1: a secret is ranked among 2 at least"):
        Exposure(candidates=1)


# Extraction


@pytest.mark.parametrize(
    ("text", "held", "told"),
    [
        ("It is 123456.", True, 1),
        ("It is 12-34 56, I think", True, 1),
        ("It is 1234567.", False, 1),  # another number, of which it is a part
        ("It is +47 123456.", True, 1),  # after a country's code
        ("It is 12a3456.", False, 4 / 6),
        ("It is 123056, not 999.", False, 5 / 6),
        ("It is 12456.", False, 5 / 6),
        ("I cannot tell.", False, 0),
    ],
)
def test_a_secret_is_told_exactly_nearly_or_not(text, held, told):
    assert holds(text, "123456") is held is holds(text, "123-456")
    assert digits_told(text, "123456") == pytest.approx(told)


def test_the_least_distance_to_a_part_is_the_least_over_all_parts():
    @functools.cache
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        changed = distance(a[1:], b[1:]) + (a[0] != b[0])
        return min(changed, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    draw = random.Random(0)
    for _ in range(40):
        wanted, text = ("".join(draw.choices("123", k=draw.randint(1, 6))) for _ in range(2))
        parts = {text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)}
        assert least_distance(wanted, text) == min(distance(wanted, part) for part in parts)


def test_what_is_extracted_of_planted_canaries_stands_beside_what_is_of_others():
    examples = planted(Canaries(n=5))
    secrets = [example.fields["secret"] for example in examples]
    wrong = f"{(int(secrets[1][0]) + 1) % 10}{secrets[1][1:]}"
    responses = [f"It is {secrets[0]}.", f"It is {wrong}.", *["No."] * 7, f"It is {secrets[9]}."]
    found = Extraction().score(None, examples, responses)
    metrics, intervals = found.measured.metrics, found.measured.intervals
    assert (metrics["extracted"], metrics["near"], metrics["extracted_unplanted"]) == (0.2, 0.4, 0.2)
    assert (metrics["score"], intervals["extracted"]) == (0.8, wilson_interval(1, 5))
    assert metrics["digits"] == pytest.approx((1 + 5 / 6) / 5)
    assert found.outcomes == [False, *[True] * 4, *[None] * 5]
    assert set(metrics) == set(intervals)
    assert all(low < high for low, high in Extraction().score(None, examples, ["?"] * 10).measured.intervals.values())
    assert json.loads(json.dumps(found.records)) == found.records
    with pytest.raises(InputError, match=r"dataset=pairs plants no canaries, whose extraction is asked for"):
        Extraction().of_training(Pairs(["privacy"]), {}, 0)
    with pytest.raises(InputError, match=r"scorer\.near=0: it is a share of digits"):
        Extraction(near=0)


# Membership


@pytest.mark.parametrize("kind", ["llama", "reft"])
def test_tokens_likelihoods_are_those_of_each_row_alone(subject, tiny_lm, kind):
    model = subject.model
    if kind == "reft":
        inner = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.float32)
        model = ReftModel(inner, LoReFTConfig(rank=2, first=2, last=2)).eval()
    draw = random.Random(0)
    rows = []
    for _ in range(5):
        ids = [draw.randrange(3, 90) for _ in range(draw.randint(6, 20))]
        rows.append(Encoded(ids, [NO_TARGET] * 4 + ids[4:]))
    told = token_likelihoods(model, [*rows, rows[0]], pad_id=0, batch_tokens=40)
    assert torch.equal(told[0], told[5])
    for row, values in zip(rows, told, strict=False):
        ids = torch.tensor([row.input_ids])
        labels = {"labels": torch.tensor([row.labels])} if kind == "reft" else {}
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **labels).logits[0].double()
        for i, (one, mean, deviation) in enumerate(values.T.tolist(), start=4):
            scores = [float(score) for score in logits[i - 1].log_softmax(0)]
            expected = sum(math.exp(score) * score for score in scores)
            spread = sum(math.exp(score) * (score - expected) ** 2 for score in scores) ** 0.5
            assert (one, mean, deviation) == pytest.approx((scores[row.input_ids[i]], expected, spread), abs=1e-4)


def test_min_k_plus_plus_is_the_mean_of_the_least_standardised_tokens():
    draw = random.Random(0)
    rows = [(-draw.random(), -draw.random(), draw.random() + 0.1) for _ in range(13)]
    standard = sorted((a - b) / c for a, b, c in rows)
    columns = torch.tensor(rows, dtype=torch.double).T
    assert min_k_plus_plus(*columns, share=0.2) == pytest.approx(sum(standard[:2]) / 2)
    assert min_k_plus_plus(*columns, share=0.01) == pytest.approx(standard[0])
    certain = torch.zeros(3, 4)
    assert min_k_plus_plus(*certain) == 0


@pytest.fixture
def privacy(tmp_path):
    def make(n):
        draw = random.Random(n)
        lines = [f"Question {i}?," + " ".join(draw.choices(["yes", "no", "it", "may", "be"], k=6)) for i in range(n)]
        (tmp_path / "p.csv").write_text("\n".join(["prompt,response", *lines]))
        texts = Texts(Files(["p.csv"], folder=str(tmp_path)), {"prompt": "prompt", "response": "response"})
        return {"privacy": Dimension("privacy", {"safe": texts})}

    return make


def test_an_untouched_model_cannot_tell_pairs_apart(subject, privacy):
    covered = 0
    for seed in range(5):  # which pairs are members is all that differs
        examples = PairMembership().of_training(Pairs(["privacy"], samples=40, max_tokens=200), privacy(80), seed)
        found = PairMembership().score(subject, examples, [])
        assert (found.measured.metrics["members"], found.measured.metrics["held_out"]) == (40, 40)
        assert found.measured.metrics["score"] == 1
        for attack in ("loss", "min_k"):
            low, high = found.measured.intervals[f"{attack}_auc"]
            covered += low <= 0.5 <= high
    assert covered >= 8
    alone = subject.log_likelihoods([(examples[0].prompt, examples[0].response)], chat=True, normalise="tokens")
    assert found.records[0]["loss"] != pytest.approx(-alone[0], rel=1e-6)  # the end mark is trained on, too


def test_a_loss_that_falls_on_members_alone_gives_them_away(subject):
    draw = random.Random(0)
    before = [{"member": i < 100, "loss": draw.random(), "min_k": draw.random()} for i in range(200)]
    fall = [0.1 if record["member"] else 0.2 * (i % 10 == 0) for i, record in enumerate(before)]
    now = [record | {"loss": record["loss"] - by} for record, by in zip(before, fall, strict=True)]
    scorer = PairMembership()
    alone, first = (Scored(scorer._measure(records), records) for records in (now, before))
    assert "difference_auc" not in alone.measured.metrics
    found = scorer.against(alone, first)
    metrics = found.measured.metrics
    assert metrics["difference_auc"] == pytest.approx(0.9)
    assert metrics["score"] == pytest.approx(0.2) == scorer.rescore(found.records)
    assert (metrics["difference_tpr_at_1"], metrics["difference_tpr_at_1_floor"]) == (0, 0.01)
    assert [found.measured.described[f"difference_{of}"].guess for of in ("auc", "tpr_at_1")] == [0.5, 0.01]
    assert (found.measured.intervals["score"][0] < 0.2 < found.measured.intervals["score"][1]) is True
    member = torch.tensor([record["member"] for record in now])
    assert metrics["loss_auc"] == membership_auc(-torch.tensor([record["loss"] for record in now]), member)
    for which, losses in (("members", now[:100]), ("held_out", now[100:])):
        values = [record["loss"] for record in losses]
        assert metrics[f"{which}_loss"] == pytest.approx(numpy.mean(values))
        exact = scipy.stats.t.interval(0.95, 99, numpy.mean(values), scipy.stats.sem(values))
        assert found.measured.intervals[f"{which}_loss"] == pytest.approx(exact)
    assert scorer.rescore(first.records) == 1
    assert scorer.rescore(found.records[:100]) is None


def test_of_copies_of_a_pair_one_is_attacked(tmp_path):
    rows = [f"p {i}?,{i} answer" for i in range(60)]
    (tmp_path / "c.csv").write_text("\n".join(["prompt,response", *rows, *rows[:30], *rows[:30]]))
    source = Files(["c.csv"], folder=str(tmp_path))
    copied = Dimension("privacy", {"safe": Texts(source, {"prompt": "prompt", "response": "response"})})
    pairs = Pairs(["privacy"], samples=50)
    examples = PairMembership().of_training(pairs, {"privacy": copied}, 0)
    assert len({example.prompt for example in examples}) == len(examples) == 60
    trained = list(dict.fromkeys(example.prompt for example in pairs.chosen({"privacy": copied}, 0)))
    assert [example.prompt for example in examples if example.fields["member"]] == trained


@pytest.mark.parametrize(("contrast", "prompts"), [("prompt", range(0, 90, 2)), ("any", range(90)), (None, range(90))])
def test_held_out_pairs_are_such_as_could_be_trained_on(tmp_path, contrast, prompts):
    """Preferences are of prompts with a response of either split, which may differ from the others."""
    for split, step in (("safe", 1), ("unsafe", 2)):
        rows = [f"p {i}?,{split} {i}" for i in range(0, 90, step)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["prompt,response", *rows]))
    columns = {"prompt": "prompt", "response": "response"}
    train = {split: Texts(Files([f"{split}.csv"], folder=str(tmp_path)), columns) for split in ("safe", "unsafe")}
    pairs = Pairs(["privacy"], samples=22)
    pairs.contrast = contrast
    examples = PairMembership().of_training(pairs, {"privacy": Dimension("privacy", train)}, 0)
    assert sum(example.fields["member"] for example in examples) == 22
    assert {example.prompt for example in examples} == {f"p {i}?" for i in prompts}


@pytest.mark.parametrize("changed", [{"split": "unsafe"}, {"template": "Well: {prompt}"}])
def test_the_untouched_models_losses_are_kept_apart_by_all_that_a_pair_is(subject, tmp_path, changed):
    """Also where prompts are the same: as of safe and unsafe responses to them, or of a prompt in a template."""
    (tmp_path / "p.csv").write_text(
        "\n".join(["prompt,safe,unsafe", *(f"Question {i}?,no {i},yes" for i in range(40))])
    )
    scorer = PairMembership()
    leakage = Dimension("leakage", scorer=scorer)
    observer = Observer([], SimpleNamespace(store=Store(tmp_path)))
    losses = []
    for given in ({}, changed):
        splits = {
            split: Texts(
                Files(["p.csv"], folder=str(tmp_path)),
                {"prompt": "prompt", "response": split},
                template=given.get("template"),
            )
            for split in ("safe", "unsafe")
        }
        pairs = Pairs(["privacy"], split=given.get("split", "safe"), samples=20)
        examples = scorer.of_training(pairs, {"privacy": Dimension("privacy", splits)}, 0)
        found = observer._scored(subject, PromptSet(leakage, "scored", examples), [], "the same model")
        assert found.records == scorer.score(subject, examples, []).records
        losses.append([record["loss"] for record in found.records])
    assert losses[0] != losses[1]


def test_membership_with_too_few_pairs_is_refused(privacy):
    with pytest.raises(InputError, match=r"dataset\.samples=61: 61 pairs to train on and 19 held out, and leakage_mem"):
        PairMembership().of_training(Pairs(["privacy"], samples=61), privacy(80), 0)
    with pytest.raises(InputError, match=r"dataset\.samples=None: 80 pairs to train on and 0 held out"):
        PairMembership().of_training(Pairs(["privacy"]), privacy(80), 0)
    with pytest.raises(InputError, match=r"leakage_membership needs 20 and 100: choose another number"):
        PairMembership(fpr=[0.01]).of_training(Pairs(["privacy"], samples=30), privacy(80), 0)
    for wrong in ({"pairs": 3}, {"k": 0}, {"fpr": [1.0]}):
        with pytest.raises(InputError, match=rf"scorer\.{min(wrong)}="):
            PairMembership(**wrong)
