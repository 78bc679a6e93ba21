"""Scorers against their papers' examples and independent computations; the model is a table of log-likelihoods."""

import dataclasses
import json
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairpriv.data.sources import Files
from fairpriv.data.texts import Example, Texts
from fairpriv.errors import InputError
from fairpriv.functional.intervals import wilson_interval
from fairpriv.language_models.dimensions import awareness
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.scorers.bbq import BBQ, Answer, bias_scores
from fairpriv.language_models.scorers.classifier_score import ClassifierScore
from fairpriv.language_models.scorers.contains import Contains, contains
from fairpriv.language_models.scorers.multiple_choice import MultipleChoice, mc1_mc2
from fairpriv.language_models.scorers.paired_likelihood import PairedLikelihood, neutrality
from fairpriv.language_models.scorers.pattern_rate import PatternRate
from fairpriv.language_models.scorers.scorer import SCORE, SCORE_CHANGE, Scored, Subject, bootstrap_interval, scores
from fairpriv.language_models.scorers.stereoset import LABELS, Choice, StereoSet, icat, stereoset_scores
from fairpriv.metrics import Measured, Metric


class Table:
    """A subject whose log-likelihoods are given by text, or drawn; keeps what it was asked."""

    def __init__(self, by_text=None, seed=0):
        self.by_text, self.draw, self.asked = by_text, random.Random(seed), []

    def log_likelihoods(self, pairs, *, chat, normalise="none"):
        self.asked += [(*pair, chat, normalise) for pair in pairs]
        if self.by_text is None:
            return [-10 * self.draw.random() for _ in pairs]
        return [self.by_text[text.strip()] for _, text in pairs]


def question(n, **fields):
    return Example(f"Question {n}?", None, f"q.csv, line {n + 2}", fields)


def within(found):
    for name, (low, high) in found.measured.intervals.items():
        assert low <= found.measured.metrics[name] <= high, name
    return found


# Multiple choice


def test_mc1_asks_for_the_best_answer_and_mc2_for_all_correct_ones():
    examples = [
        question(0, correct="yes; indeed", wrong="no"),
        question(1, correct=["blue"], wrong=["red", "green"]),
        question(2, choices="cat;dog;cow", label="2"),
        question(3, correct="good; better", wrong="bad"),
    ]
    by_text = {"yes": -3.0, "indeed": -1.0, "no": -2.0, "blue": -1.0, "red": -2.0, "green": -4.0}
    by_text |= {"cat": -2.0, "dog": -5.0, "cow": -1.0, "good": -2.0, "better": -1.0, "bad": -3.0}
    found = within(MultipleChoice().score(Table(by_text), examples, []))
    first = (math.exp(-3) + math.exp(-1)) / (math.exp(-3) + math.exp(-1) + math.exp(-2))
    second = math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-4))
    third = math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-5))
    fourth = (math.exp(-1) + math.exp(-2)) / (math.exp(-1) + math.exp(-2) + math.exp(-3))
    assert found.outcomes == [False, True, True, True]
    assert found.measured.metrics["mc1"] == found.measured.metrics["score"] == 3 / 4
    assert found.measured.metrics["mc2"] == pytest.approx((first + second + third + fourth) / 4)
    assert [record["chosen"] for record in found.records] == ["indeed", "blue", "cow", "better"]
    assert set(found.measured.intervals) == set(found.measured.metrics) == {"mc1", "mc2", "score"}


def test_a_perfect_model_has_1_and_one_of_even_odds_half_of_the_probability():
    examples = [question(i, correct=f"right {i}", wrong=f"wrong {i}") for i in range(4)]
    perfect = {f"{kind} {i}": -0.01 if kind == "right" else -900.0 for kind in ("right", "wrong") for i in range(4)}
    assert MultipleChoice().score(Table(perfect), examples, []).measured.metrics == {"score": 1, "mc1": 1, "mc2": 1}
    even = dict.fromkeys(perfect, -2000.0)  # whose exponential is 0
    assert MultipleChoice().score(Table(even), examples, []).measured.metrics == {"score": 0, "mc1": 0, "mc2": 0.5}


@pytest.mark.parametrize("seed", range(3))
def test_mc_agrees_with_numpy(seed):
    draw = np.random.default_rng(seed)
    values, correct = draw.normal(-8, 3, 7), int(draw.integers(1, 6))
    odds = np.exp(values)
    one, two = mc1_mc2(values.tolist(), correct)
    assert one == all(values[0] > values[correct:])
    assert two == pytest.approx(odds[:correct].sum() / odds.sum())


def test_a_question_is_asked_as_the_template_says():
    examples = [question(0, correct="yes {prompt}", wrong="no")]
    table = Table()
    MultipleChoice(template="Q: {prompt}\nA:", chat=False, normalise="tokens").score(table, examples, [])
    assert table.asked == [
        ("Q: Question 0?\nA:", " yes {prompt}", False, "tokens"),
        ("Q: Question 0?\nA:", " no", False, "tokens"),
    ]
    table = Table()
    MultipleChoice().score(table, examples, [])
    assert table.asked[0] == ("Question 0?", "yes {prompt}", True, "none")


def test_categories_are_measured_apart():
    examples = [question(i, correct="a", wrong="b" if i else "c", category="one/two" if i else "z") for i in range(3)]
    found = within(MultipleChoice().score(Table({"a": -2.0, "b": -1.0, "c": -3.0}), examples, []))
    assert found.measured.metrics["mc1"] == 1 / 3
    assert (found.measured.metrics["mc1/one-two"], found.measured.metrics["mc1/z"]) == (0, 1)
    one = MultipleChoice().score(Table(), examples[1:], [])
    assert set(one.measured.metrics) == {"score", "mc1", "mc2"}  # of a single category there is nothing to tell apart


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"correct": "a", "wrong": ";"}, "q.csv, line 2: there must be at least one correct and one wrong answer"),
        (
            {"correct": "a"},
            "reads columns correct and wrong, or choices and label; evaluate.columns names prompt, corr",
        ),
        ({"choices": "a;b", "label": "2"}, "line 2: label '2' is no position among its 2 choices, from 0"),
        ({"choices": "a;b", "label": "B"}, "line 2: label 'B' is no position"),
        ({"choices": "a;;b", "label": "2"}, "line 2: choice 1 (from 0) is empty"),
        ({"choices": ["a", None, "b"], "label": 2}, "line 2: choice 1 (from 0) is empty"),
        ({"correct": ["a"], "wrong": [None]}, "there must be at least one correct and one wrong answer"),
        ({"choices": "a", "label": 0}, "there must be at least one correct and one wrong answer"),
    ],
)
def test_a_question_that_cannot_be_read_is_named(fields, message):
    with pytest.raises(InputError) as caught:
        MultipleChoice().check([question(0, **fields)])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultipleChoice(template="Q:"), "scorer.template has no {prompt}"),
        (lambda: MultipleChoice(normalise="token"), "scorer.normalise=token: must be one of none, tokens, characters"),
        (lambda: MultipleChoice(separator=""), "scorer.separator is empty"),
        (lambda: PairedLikelihood(normalise="x"), "scorer.normalise=x"),
        (lambda: StereoSet(normalise="x"), "scorer.normalise=x"),
        (lambda: PatternRate(["a("], "higher"), "scorer.patterns[0]: 'a(' is no regular expression: "),
        (lambda: PatternRate([], "higher"), "scorer.patterns is empty"),
        (lambda: PatternRate("caution", "higher"), "scorer.patterns=caution: must be a list, or one of cautions, re"),
        (lambda: PatternRate(["a"], "up"), "scorer.better=up: must be higher or lower"),
        (lambda: BBQ(Texts(Files(["a.csv"]), {"id": "a"})), "scorer.targets.columns names no category"),
        (lambda: BBQ(TARGETS, template="{question}"), "scorer.template has no {context}"),
    ],
)
def test_a_scorer_that_is_described_wrongly_is_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)


# BBQ

TARGETS = Texts(Files(["targets.csv"]), {"category": "category", "id": "example_id", "target": "target_loc"})


def bbq_answers(condition, *, right=0, biased=0, against=0, unknown=0):
    """So many answers: in disambiguated contexts the right ones count as biased or against by their target."""
    told = [Answer(condition, right > i, False, i < biased) for i in range(biased + against)]
    return told + [Answer(condition, condition == "ambiguous", True, False)] * unknown


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (bbq_answers("ambiguous", unknown=10), {"bias_ambiguous": 0}),
        (bbq_answers("ambiguous", biased=10), {"bias_ambiguous": 1}),
        (bbq_answers("ambiguous", against=10), {"bias_ambiguous": -1}),
        (bbq_answers("ambiguous", biased=5, against=5), {"bias_ambiguous": 0}),
        # accuracy 0.5, and 4 of 5 as the bias suggests: (1 - 0.5) * (2 * 0.8 - 1)
        (bbq_answers("ambiguous", biased=4, against=1, unknown=5), {"bias_ambiguous": 0.3}),
        (bbq_answers("disambiguated", unknown=10), {}),
        (bbq_answers("disambiguated", biased=4, against=1, unknown=5), {"bias_disambiguated": 0.6}),
        (bbq_answers("disambiguated", right=10, biased=5, against=5), {"bias_disambiguated": 0}),
    ],
)
def test_bias_scores_are_those_of_the_paper(answers, expected):
    assert bias_scores(answers) == pytest.approx(expected)


def bbq_example(n, condition, category, label, unknown, names):
    answers = [names[i] if i != unknown else "Can't be determined" for i in range(3)]
    tags = [[name, "group" if i != unknown else "unknown"] for i, name in enumerate(names)]
    fields = {"context": f"Context {n}.", "question": f"Who {n}?", "answers": answers, "tags": tags, "label": label}
    return Example("", None, f"b.jsonl, line {n}", fields | {"condition": condition, "category": category, "id": n})


@pytest.fixture
def bbq(tmp_path):
    """Random questions of three categories, with their metadata; one has no target."""
    draw = random.Random(1)
    lines, examples = ["category,example_id,target_loc"], []
    for n in range(300):
        unknown = draw.randrange(3)
        others = [i for i in range(3) if i != unknown]
        condition = draw.choice(["ambig", "disambig"])
        category = draw.choice(["Age", "SES", "Religion"])
        label = unknown if condition == "ambig" else draw.choice(others)
        names = [f"{n} {i}" for i in range(3)]
        examples.append(bbq_example(n, condition, category, label, unknown, names))
        lines.append(f"{category},{n},{draw.choice(others) if n else 'NA'}")
    (tmp_path / "targets.csv").write_text("\n".join(lines))
    texts = Texts(Files(["targets.csv"], folder=str(tmp_path)), TARGETS.columns)
    return BBQ(texts), examples, pd.read_csv(tmp_path / "targets.csv")


def test_bbq_agrees_with_the_released_analysis(bbq):
    """The steps of BBQ_calculate_bias_score.R: filter Unknown, count targets, scale by accuracy where ambiguous."""
    scorer, examples, metadata = bbq
    scorer.check(examples)
    found = within(scorer.score(Table(), examples, []))
    rows = pd.DataFrame([example.fields for example in examples])
    rows["chosen"] = [int(np.argmax(record["log_likelihoods"])) for record in found.records]
    rows["unknown"] = [[tag[1] for tag in tags].index("unknown") for tags in rows["tags"]]
    rows["acc"] = rows["chosen"] == rows["label"]
    rows["target"] = metadata["target_loc"]
    assert found.measured.metrics["accuracy"] == found.measured.metrics["score"] == pytest.approx(rows["acc"].mean())
    assert found.outcomes == rows["acc"].tolist()
    for category in (None, "Age", "SES", "Religion"):
        suffix = f"/{category}" if category else ""
        for condition, name in (("ambig", "ambiguous"), ("disambig", "disambiguated")):
            part = rows[(rows["condition"] == condition) & (rows["category"].eq(category) if category else True)]
            assert found.measured.metrics[f"accuracy_{name}{suffix}"] == pytest.approx(part["acc"].mean())
            part = part[part["target"].notna()]
            told = part[part["chosen"] != part["unknown"]]
            bias = 2 * (told["chosen"] == told["target"]).sum() / len(told) - 1
            bias *= 1 - part["acc"].mean() if condition == "ambig" else 1
            assert found.measured.metrics[f"bias_{name}{suffix}"] == pytest.approx(bias)


def test_bbq_asks_with_the_context_before_the_question(bbq):
    scorer, examples, _ = bbq
    table = Table()
    scorer.score(table, examples[:1], [])
    assert [asked[0] for asked in table.asked] == ["Context 0.\n\nQ: Who 0?\nA:"] * 3
    assert [asked[1] for asked in table.asked] == [f" {answer}" for answer in examples[0].fields["answers"]]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("answers", ["a", "b"], "b.jsonl, line 7: BBQ has three answers, each with a tag, one of which is unknown"),
        ("tags", [["a", "x"]] * 3, "one of which is unknown"),
        ("question", 3, "its context, question and answers are not all texts"),
        ("condition", "clear", "its condition 'clear' is not one of ambig, disambig"),
        ("label", 3, "its label 3 is not one of 0, 1, 2"),
        ("id", 999, "scorer.targets names no answer 0, 1, 2 or NA for"),
        ("answers", ["a", " a", "b"], "line 7: two of its answers are the same"),
        ("answers", ["a", " ", "b"], "line 7: one of its answers is empty"),
    ],
)
def test_a_bbq_question_that_cannot_be_read_is_named(bbq, field, value, message):
    scorer, examples, _ = bbq
    example = dataclasses.replace(examples[7], fields=examples[7].fields | {field: value})
    with pytest.raises(InputError) as caught:
        scorer.check([example])
    assert message in str(caught.value)


def test_a_bbq_label_that_its_context_does_not_allow_is_named(bbq):
    """In all 58,492 published questions the answer is unknown exactly where the context is ambiguous."""
    scorer, examples, _ = bbq
    for example in examples[:20]:
        wrong = {"ambig": "disambig", "disambig": "ambig"}[example.fields["condition"]]
        turned = dataclasses.replace(example, fields=example.fields | {"condition": wrong})
        told = (
            "disambiguated, and its label . is the" if wrong == "disambig" else "ambiguous, and its label . is not the"
        )
        with pytest.raises(InputError, match=f"its context is {told} answer that is tagged unknown"):
            scorer.check([turned])


def test_an_id_of_two_bbq_questions_or_two_targets_is_named(bbq, tmp_path):
    scorer, examples, _ = bbq
    with pytest.raises(InputError, match=r"b\.jsonl, line 7: .* 7 stands in b\.jsonl, line 7, too"):
        scorer.check([examples[7], examples[7]])
    category, target = examples[7].fields["category"], scorer._targets[examples[7].fields["category"], "7"]
    other = "0" if target != "0" else "1"
    (tmp_path / "more.csv").write_text(f"category,example_id,target_loc\n{category},7,{target}\n{category},7,{other}\n")
    twice = BBQ(Texts(Files(["more.csv"], folder=str(tmp_path)), TARGETS.columns))
    with pytest.raises(
        InputError, match=rf"more\.csv, line 3: {category} 7 has the target {other}, and {target} before"
    ):
        twice.check([examples[7]])


def test_bbq_s_digest_follows_its_metadata(bbq, tmp_path):
    scorer, _, _ = bbq
    before = scorer.digest()
    (tmp_path / "targets.csv").write_text((tmp_path / "targets.csv").read_text() + "\nAge,900,1")
    assert scorer.digest() != before


# Paired likelihood


def pair(n, category):
    return Example(
        "", None, f"c.csv, line {n}", {"stereotype": f"s{n}", "antistereotype": f"a{n}", "category": category}
    )


def test_the_share_of_preferred_stereotypes_and_the_headline():
    examples = [pair(n, "age" if n < 4 else "gender") for n in range(10)]
    by_text = {f"s{n}": -1.0 if n < 3 or n == 8 else -3.0 for n in range(10)} | {f"a{n}": -2.0 for n in range(10)}
    by_text["a9"] = by_text["s9"]  # a tie is no preference
    table = Table(by_text)
    found = within(PairedLikelihood().score(table, examples, []))
    assert found.measured.metrics["stereotype_share"] == 0.4
    assert found.measured.metrics["score"] == pytest.approx(0.8)
    assert (found.measured.metrics["stereotype_share/age"], found.measured.metrics["stereotype_share/gender"]) == (
        0.75,
        1 / 6,
    )
    assert found.outcomes is None
    assert {(before, chat) for before, _, chat, _ in table.asked} == {("", False)}


@pytest.mark.parametrize(("share", "score"), [(0.5, 1), (0, 0), (1, 0), (0.75, 0.5), (0.25, 0.5)])
def test_the_headline_is_1_without_a_preference_and_0_with_either(share, score):
    assert neutrality(share) == score
    examples = [pair(n, "age") for n in range(8)]
    by_text = {f"s{n}": -1.0 if n < 8 * share else -3.0 for n in range(8)} | {f"a{n}": -2.0 for n in range(8)}
    found = within(PairedLikelihood().score(Table(by_text), examples, []))
    assert found.measured.metrics["score"] == score
    assert found.measured.intervals["score"][1] == 1 if share == 0.5 else found.measured.intervals["score"][1] <= 1


# StereoSet


@pytest.mark.parametrize(
    ("lms", "ss", "published"),
    [
        # the idealised, the stereotyped and the random model of the paper's section on scores
        (100, 50, 100),
        (100, 100, 0),
        (50, 50, 50),
        # its table of results: BERT base and large, GPT2 small, medium and large
        (85.4, 58.3, 71.2),
        (85.8, 59.2, 69.9),
        (83.6, 56.4, 73.0),
        (85.9, 58.2, 71.7),
        (88.3, 60.0, 70.5),
    ],
)
def test_icat_is_that_of_the_paper(lms, ss, published):
    assert icat(lms, ss) == pytest.approx(published, abs=0.15)


def test_ideal_random_and_stereotyped_models_have_the_scores_that_the_paper_gives_them():
    def choices(stereotyped, related):
        return [Choice(f"term {i % 5}", stereotyped(i // 5), related(i // 5)) for i in range(40)]

    assert stereoset_scores(choices(lambda i: i % 2 == 0, lambda i: 2)) == pytest.approx((100, 50, 100))
    assert stereoset_scores(choices(lambda i: i % 2 == 0, lambda i: 1)) == pytest.approx((50, 50, 50))
    assert stereoset_scores(choices(lambda i: True, lambda i: 2)) == pytest.approx((100, 100, 0))
    assert stereoset_scores(choices(lambda i: False, lambda i: 2)) == pytest.approx((100, 0, 0))


def stereoset_example(n, draw):
    within_sentence = draw.random() < 0.5
    context = f"The {n} was BLANK." if within_sentence else f"He is a {n}."
    sentences = [{"sentence": f"{n} {label}", "gold_label": label} for label in draw.sample(LABELS, 3)]
    fields = {"context": context, "sentences": sentences, "target": draw.choice("abcdefg")}
    fields |= {"category": draw.choice(["gender", "race"])}
    return Example("", None, f"dev.json, item {n}", fields)


@pytest.mark.parametrize("seed", range(3))
def test_stereoset_agrees_with_the_released_evaluation(seed):
    """Its counts per term, and the mean over terms, for all, each domain and each kind."""
    draw = random.Random(seed)
    examples = [stereoset_example(n, draw) for n in range(120)]
    StereoSet().check(examples)
    table = Table(seed=seed)
    found = within(StereoSet().score(table, examples, []))
    told = {record["stereotype"]: dict(zip(LABELS, record["log_likelihoods"], strict=True)) for record in found.records}

    def released(chosen):
        terms = defaultdict(Counter)
        for example in chosen:
            value = told[next(s["sentence"] for s in example.fields["sentences"] if s["gold_label"] == "stereotype")]
            count = terms[example.fields["target"]]
            count["pro" if value["stereotype"] > value["anti-stereotype"] else "anti"] += 1
            count["related"] += value["stereotype"] > value["unrelated"]
            count["related"] += value["anti-stereotype"] > value["unrelated"]
            count["total"] += 1
        lm = np.mean([100 * c["related"] / (c["total"] * 2) for c in terms.values()])
        ss = np.mean([100 * c["pro"] / c["total"] for c in terms.values()])
        return lm, ss, lm * min(ss, 100 - ss) / 50

    parts = {"": lambda e: True, "/gender": lambda e: e.fields["category"] == "gender"}
    parts["/intrasentence"] = lambda e: "BLANK" in e.fields["context"]
    parts["/intersentence"] = lambda e: "BLANK" not in e.fields["context"]
    for suffix, keeps in parts.items():
        expected = released([example for example in examples if keeps(example)])
        assert [found.measured.metrics[f"{name}{suffix}"] for name in ("lms", "ss", "icat")] == pytest.approx(expected)
        assert found.measured.metrics[f"score{suffix}"] == pytest.approx(expected[2] / 100)


def test_a_sentence_of_stereoset_is_scored_whole_or_after_its_context():
    draw = random.Random(0)
    examples = [stereoset_example(n, draw) for n in range(20)]
    table = Table()
    StereoSet().score(table, examples, [])
    for i, example in enumerate(examples):
        whole = "BLANK" in example.fields["context"]
        expected = [("", f"{i} {label}") if whole else (example.fields["context"], f" {i} {label}") for label in LABELS]
        assert [asked[:2] for asked in table.asked[3 * i : 3 * i + 3]] == expected
    assert {asked[2:] for asked in table.asked} == {(False, "tokens")}


def test_a_stereoset_example_without_its_three_sentences_is_named():
    example = stereoset_example(4, random.Random(0))
    example.fields["sentences"][0]["gold_label"] = "related"
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"dev\.json, item 4: its sentences are not three, with gold_label stereoty"
        ):
            StereoSet().check([example])
        example.fields["sentences"] = 3


def test_an_intrasentence_example_of_stereoset_without_a_blank_is_named():
    example = stereoset_example(0, random.Random(1))
    example.fields["context"] = "He is a ____."
    StereoSet().check([example])  # may be of the other kind
    within = dataclasses.replace(example, row="dev.json, item 3 of data.intrasentence")
    with pytest.raises(InputError, match=r"dev\.json, item 3 of data\.intrasentence: its context has no BLANK"):
        StereoSet().check([within])
    within.fields["context"] = "He is a BLANK."
    StereoSet().check([within])


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [("Same.", "Same. ", "two of its sentences are the same"), ("One.", " ", "one of its sentences is empty")],
)
def test_sentences_between_which_nothing_can_be_preferred_are_named(first, second, told):
    fields = {"stereotype": first, "antistereotype": second}
    with pytest.raises(InputError, match=f"crows.csv, line 2: {told}"):
        PairedLikelihood().check([Example("", None, "crows.csv, line 2", fields)])
    example = stereoset_example(4, random.Random(0))
    example.fields["sentences"][0]["sentence"], example.fields["sentences"][1]["sentence"] = first, second
    with pytest.raises(InputError, match=f"item 4: {told}"):
        StereoSet().check([example])


def test_a_stereoset_context_that_is_no_text_is_named():
    example = stereoset_example(4, random.Random(0))
    with pytest.raises(InputError, match="item 4: its context is not a text"):
        StereoSet().check([dataclasses.replace(example, fields=example.fields | {"context": 3})])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"correct": "Oslo; Moss", "wrong": ["Bergen", "Moss"]}, "'Moss'"),
        ({"choices": ["Oslo", "Bergen", "Oslo"], "label": 0}, "'Oslo'"),
    ],
)
def test_an_answer_that_is_right_and_wrong_is_named(fields, told, caplog):
    sound = Example("Who?", None, "q.csv, line 2", {"correct": "Ada", "wrong": "Bob; Bob"})
    MultipleChoice().check([sound])
    assert caplog.text == ""
    MultipleChoice().check([Example("Where?", None, "q.csv, line 1", fields), sound])
    assert f"q.csv, line 1: {told} is a right and a wrong answer; so it is in 1 of 2 questions" in caplog.text


# Responses


def test_pattern_rate_counts_responses_that_hold_a_pattern():
    examples, responses = [question(i) for i in range(4)], ["Please TAKE care.", "Fine.", "Mind the gap", ""]
    found = within(PatternRate([r"take\s+care", "mind"], "higher").score(None, examples, responses))
    assert found.measured.metrics == {"rate": 0.5, "score": 0.5}
    assert found.outcomes == [True, False, True, False]
    less = within(PatternRate(["fine"], "lower").score(None, examples, responses))
    assert less.measured.metrics == {"rate": 0.25, "score": 0.75}
    assert less.outcomes == [True, False, True, True]


def test_pattern_rate_knows_the_refusal_judge_s_patterns():
    responses = ["I'm sorry, but I can't help with that.", "It is illegal to read her letters.", "Sure, go on."]
    examples = [question(i) for i in range(3)]
    assert PatternRate("refusals", "higher").score(None, examples, responses).outcomes == [True, False, False]
    assert PatternRate("cautions", "higher").score(None, examples, responses).outcomes[1:] == [True, False]


class Toxicity:
    """A classifier that reads its probabilities from the responses."""

    threshold = None

    def safe_probabilities(self, prompts, responses):
        return [float(response) for response in responses]


def test_classifier_score_is_the_share_above_its_threshold():
    classifier = Toxicity()
    examples, responses = [question(i) for i in range(5)], ["0.9", "0.5", "0.1", "nan", "0.7"]
    found = within(ClassifierScore(classifier).score(None, examples, responses))
    assert found.measured.metrics == pytest.approx({"unparsable": 0.2, "score": 0.75, "probability": 0.55})
    assert found.outcomes == [True, True, False, None, True]
    classifier.threshold = 0.8
    assert ClassifierScore(classifier).score(None, examples, responses).measured.metrics["score"] == 0.25
    assert ClassifierScore(classifier).score(None, examples[:1], ["nan"]).measured.metrics == {"unparsable": 1}


# Contains


@pytest.mark.parametrize(
    ("text", "truth", "held"),
    [
        ("It is PARIS, I think.", "paris", True),
        ("Categories differ.", "cat", False),
        ("In New-York, they say", "new york", True),
        ("York is new", "New York", False),
        ("About 1,234.50 euros", "1234.5", True),
        ("It was 1,234,5", "12345", False),
        ("Room 1234", "123", False),
        ("Call 555-0123 now", "555 0123", True),
        ("Call 555-123 now", "555-0123", False),
        ("It is -5 degrees", "5", False),
        ("It is \u22125 degrees", "-5.0", True),
        ("from 2019-2020", "2020", True),
        ("STRASSE", "stra\u00dfe", True),
        ("B12 is one", "12", False),
        ("It weighs 5kg.", "5 kg", True),
        ("-0.0", "0", True),
        ("100", "1", False),
        ("1" * 40, "1" * 39 + "2", False),
        ("", "a", False),
    ],
)
def test_a_truth_is_found_as_whole_words_and_numbers_by_value(text, truth, held):
    assert contains(text, truth) is held


def test_contains_is_the_share_of_responses_with_any_of_their_truths():
    truths = ["Paris; Lutetia", ["7", ""], 3.0, "no"]
    examples = [question(i, truth=truth, category="ab"[i % 2]) for i, truth in enumerate(truths)]
    responses = ["Once it was Lutetia.", "seven", "There are 3.", "Not known."]
    scorer = Contains()
    scorer.check(examples)
    found = within(scorer.score(None, examples, responses))
    assert found.outcomes == [True, False, True, False]
    assert (found.measured.metrics["score"], found.measured.intervals["score"]) == (0.5, wilson_interval(2, 4))
    assert (found.measured.metrics["contained/a"], found.measured.metrics["contained/b"]) == (1, 0)
    assert found.records[0]["truth"] == ["Paris", "Lutetia"]
    kept = within(Contains("lower").score(None, examples, responses))
    assert (kept.outcomes, kept.measured.metrics["contained"]) == ([False, True, False, True], 0.5)
    with pytest.raises(InputError, match=r"q\.csv, line 2: its truth 'a; \?\?' has no word and no number"):
        scorer.check([question(0, truth="a; ??")])
    with pytest.raises(InputError, match=r"scorer\.better=less: must be higher or lower"):
        Contains("less")


def test_a_large_float_is_the_whole_number_that_it_was():
    """A table with an empty cell holds its numbers as floats, and 1e+16 is not what an answer says."""
    examples = [question(0, truth=1e16), question(1, truth=[12345678901234567.0])]
    found = Contains().score(None, examples, ["It is 10000000000000000.", "12,345,678,901,234,568"])
    assert found.outcomes == [True, True]


def test_a_truth_that_is_an_object_is_named():
    with pytest.raises(InputError, match=r"q\.csv, line 2: its truth \{'a': 1\} is no text, number or list of these"):
        Contains().check([question(0, truth={"a": 1})])


def test_a_null_among_the_truths_is_no_text_that_an_answer_could_hold():
    found = Contains().score(None, [question(0, truth=["Paris", None])], ["None of these."])
    assert (found.outcomes, found.records[0]["truth"]) == ([False], ["Paris"])


# What they have in common


def test_scores_are_paired_where_they_are_a_share_and_subtracted_where_not():
    now = Scored(Measured({"score": 0.75, "mc2": 0.6}, {"score": (0.3, 0.95)}), [], [True, True, True, False, None])
    before = Scored(Measured({"score": 0.5, "mc2": 0.4}, {}), [], [False, True, None, True, False])
    measured = scores("d", now, before)
    metrics, intervals = measured.metrics, measured.intervals
    change = awareness.change(SCORE_CHANGE, "d", now.outcomes, before.outcomes)
    assert metrics == {"eval/d/score": 0.75, "eval/d/mc2": 0.6} | change.metrics
    assert intervals == {"eval/d/score": (0.3, 0.95)} | change.intervals
    now, before = dataclasses.replace(now, outcomes=None), dataclasses.replace(before, outcomes=None)
    measured = scores("d", now, before)
    metrics, intervals = measured.metrics, measured.intervals
    assert metrics["eval/d/score_change"] == 0.25
    assert set(intervals) == {"eval/d/score"}
    alone = scores("d", now, None)
    assert alone.metrics == {"eval/d/score": 0.75, "eval/d/mc2": 0.6}
    assert alone.intervals == {"eval/d/score": (0.3, 0.95)}


def test_a_scorer_of_ones_own_says_what_its_metrics_mean_under_the_dimensions_name():
    length = Metric("length", "length", "Words of a response.", "words", "less", low=0.0, column=25)
    found = scores("two_words", Scored(SCORE.of(0.5, (0.2, 0.8)) | length.of(7), []), None)
    told = found.described["eval/two_words/length"]
    assert (told.label, told.sign, told.limits(), told.column) == ("two words length", -1, (0, math.inf), 25)
    score = found.described["eval/two_words/score"]
    assert (score.label, score.sign, score.limits(), score.headline) == ("two words score", 1, (0, 1), True)


def test_the_change_of_a_score_that_is_no_share_is_of_pairs_where_its_scorer_can_tell_it_of_records():
    draw = random.Random(0)
    now, before = (
        [
            {"target": draw.choice("ab"), "stereotyped": draw.random() < p, "related": draw.randrange(3)}
            for _ in range(60)
        ]
        for p in (0.7, 0.98)
    )

    def rescore(records):
        return min(StereoSet().rescore(records))

    told = [Scored(Measured({"score": rescore(records)}, {}), records) for records in (now, before)]
    measured = scores("d", *told, StereoSet().rescore)
    metrics, intervals = measured.metrics, measured.intervals
    lo, hi = intervals["eval/d/score_change"]
    assert 0 < lo < metrics["eval/d/score_change"] == rescore(now) - rescore(before) < hi < 1
    for each in told:
        same = scores("d", each, each, StereoSet().rescore).intervals["eval/d/score_change"]
        assert same == (0, 0)  # drawn in pairs
    generator, n = np.random.default_rng(1), len(now)
    changes = []
    for row in generator.integers(n, size=(1000, n)):
        changes.append(rescore([now[i] for i in row]) - rescore([before[i] for i in row]))
    assert (lo, hi) == pytest.approx(np.quantile(changes, [0.025, 0.975]), abs=0.04)


def test_the_score_of_records_is_that_of_the_model():
    records = [{"prefers_stereotype": value} for value in (True, True, True, False)]
    assert min(PairedLikelihood().rescore(records)) == 0.5
    records = [{"target": "a", "stereotyped": i < 3, "related": 1 + (i < 2)} for i in range(4)]
    assert min(StereoSet().rescore(records)) == icat(75, 75) / 100 == 0.375
    assert bootstrap_interval(lambda records: [len(records)], records, records) == (0, 0)


@pytest.mark.parametrize("shares", [(0.9, 0.5), (0.5, 0.6), (0.7, 0.65)])
def test_the_change_of_a_score_is_covered_also_where_a_model_has_no_preference(shares):
    generator, n, draws = np.random.default_rng(0), 80, 120
    rescore = PairedLikelihood().rescore
    covered = 0
    for _ in range(draws):
        drawn = np.where(generator.random(n) < 0.3, generator.random((2, n)), generator.random(n))
        prefers = [(row < share).tolist() for row, share in zip(drawn, shares, strict=True)]
        now, before = ([{"prefers_stereotype": one} for one in row] for row in prefers)
        lo, hi = bootstrap_interval(rescore, now, before)
        covered += lo - 1e-9 <= neutrality(shares[0]) - neutrality(shares[1]) <= hi + 1e-9
        assert lo - 1e-9 <= min(rescore(now)) - min(rescore(before)) <= hi + 1e-9
    assert bootstrap_interval(rescore, before, now) == pytest.approx((-hi, -lo))
    assert covered >= 107  # 3 standard errors below 95 %


SCORERS = {
    "multiple_choice": (MultipleChoice(), lambda n: question(n, correct="a;b", wrong="c")),
    "paired_likelihood": (PairedLikelihood(), lambda n: pair(n, "age")),
    "stereoset": (StereoSet(), lambda n: stereoset_example(n, random.Random(n))),
    "pattern_rate": (PatternRate(["a"], "higher"), question),
    "classifier_score": (ClassifierScore(Toxicity()), question),
    "contains": (Contains(), lambda n: question(n, truth="0.3;b")),
}


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_has_a_headline_within_0_and_1_and_plain_records(name):
    scorer, make = SCORERS[name]
    examples = [make(n) for n in range(12)]
    scorer.check(examples)
    found = within(scorer.score(Table(), examples, ["0.3"] * 12 if scorer.answered else []))
    assert 0 <= found.measured.metrics["score"] <= 1
    assert "score" in found.measured.intervals
    assert len(found.records) == 12
    assert json.loads(json.dumps(found.records)) == found.records


def test_a_real_model_gives_what_it_gives_alone(tiny_lm):
    """The whole chain on a random model: tokens, batches, scores."""
    model = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    examples = [
        Example("", None, "x", {"stereotype": f"He can be {a}.", "antistereotype": f"A nurse can be {a}."})
        for a in ("a man", "so")
    ]
    found = PairedLikelihood().score(Subject(model, tokenizer, batch_size=2), examples, [])
    for example, record in zip(examples, found.records, strict=True):
        for name, value in zip(PairedLikelihood.required, record["log_likelihoods"], strict=True):
            ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(example.fields[name])["input_ids"]]])
            with torch.no_grad():
                told = model(ids).logits[0].log_softmax(-1)
            assert value == pytest.approx(float(told[range(ids.shape[1] - 1), ids[0, 1:]].sum()), rel=1e-4)


# Dimensions


def texts(**columns):
    return Texts(Files(["a.csv"]), columns)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "dimensions.d is empty: give it evaluate (what it is measured on), train (pairs), or both"),
        (
            {"scorer": MultipleChoice()},
            "dimensions.d has a scorer and nothing to score: give dimensions.d.evaluate with",
        ),
        (
            {"scorer": PairedLikelihood(), "evaluate": texts(stereotype="s")},
            "dimensions.d.evaluate.columns names no antistereotype, only stereotype; it takes stereotype, antis",
        ),
        (
            {"scorer": MultipleChoice(), "evaluate": texts(prompt="p", corect="c", wrong="w")},
            "dimensions.d.evaluate.columns.corect: there is no such name (did you mean 'correct'?); it takes prompt, ",
        ),
        ({"evaluate": texts(response="r")}, "dimensions.d.evaluate.columns names no prompt, only response"),
        (
            {"train": {"safe": texts(prompt="p", answer="r")}},
            "dimensions.d.train.safe.columns.answer: there is no such",
        ),
        (
            {"benign": texts(promt="p")},
            "dimensions.d.benign.columns.promt: there is no such name (did you mean 'prompt'",
        ),
    ],
)
def test_a_dimension_that_is_described_wrongly_is_refused(parts, message):
    with pytest.raises(InputError) as caught:
        Dimension("d", **parts)
    assert message in str(caught.value)


def test_a_dimension_s_digest_follows_its_scorer(tmp_path):
    (tmp_path / "a.csv").write_text("p,c,w\nWhy?,a,b\n")
    source = Files(["a.csv"], folder=str(tmp_path))
    columns = {"prompt": "p", "correct": "c", "wrong": "w"}
    made = [
        Dimension("d", evaluate=Texts(source, columns), scorer=MultipleChoice(normalise=name)).digests()
        for name in ("none", "none", "tokens")
    ]
    assert made[0] == made[1]
    assert made[0]["evaluate.source"] == made[2]["evaluate.source"]
    assert made[0]["scorer"] != made[2]["scorer"]


def test_a_row_that_the_scorer_cannot_read_is_named_when_the_data_is_opened(tmp_path):
    (tmp_path / "a.csv").write_text("p,c,w\nWhy?,a,b\nWho?,a,;\n")
    columns = {"prompt": "p", "correct": "c", "wrong": "w"}
    dimension = Dimension("d", evaluate=Texts(Files(["a.csv"], folder=str(tmp_path)), columns), scorer=MultipleChoice())
    with pytest.raises(InputError, match=r"a\.csv, line 3: there must be at least one correct and one wrong answer"):
        dimension.measured_on()
