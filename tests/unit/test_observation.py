"""What two models say on the same prompts, compared; and parts that do not inherit from the base of their kind."""

import functools
import importlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fairpriv import processes
from fairpriv.data.sources import Bundled, Files
from fairpriv.data.texts import Example, Texts
from fairpriv.errors import InputError
from fairpriv.functional.verdicts import Known
from fairpriv.language_models import observation
from fairpriv.language_models.contract import Tuned, Tuning, require_base
from fairpriv.language_models.defenses.spin import Spin
from fairpriv.language_models.dimensions.awareness import awareness, over_refusal
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.judges.judge import Judge, Verdict
from fairpriv.language_models.judges.refusal import Refusal
from fairpriv.language_models.observation import Observation, Observer, PromptSet, compare
from fairpriv.language_models.records import response_rows, score_rows
from fairpriv.language_models.scorers.scorer import SCORE, Scored, Scorer
from fairpriv.store import Store

PROMPTS = [Example(f"the prompt {i}", None, f"line {i}") for i in range(4)]
SAFE, UNSAFE = Verdict(True, "it refuses"), Verdict(False, "it answers")
NO = "I cannot help with that."


class Length(Scorer):
    """Counts letters."""

    required = ("prompt",)

    def score(self, subject, examples, responses):
        raise NotImplementedError

    def rescore(self, records):
        return sum(record["letters"] for record in records) / (10 * len(records))

    def digest(self):
        return None


def dimension(name, scorer=None) -> Dimension:
    return Dimension(name, evaluate=Texts(Bundled(["fairness_evaluate.csv"]), {"prompt": "prompt"}), scorer=scorer)


def scored(*letters) -> Scored:
    return Scored(SCORE.of(sum(letters) / 40), [{"letters": n, "same": 0} for n in letters])


def observed(answers, verdicts, letters) -> list[Observation]:
    judged, lengths = dimension("privacy"), dimension("length", Length())
    return [
        Observation(PromptSet(judged, "evaluate", PROMPTS), answers, verdicts, None, "wordlist"),
        Observation(PromptSet(judged, "benign", PROMPTS), answers, [], None),
        Observation(PromptSet(lengths, "scored", PROMPTS), [], [], scored(*letters)),
    ]


BEFORE = observed(["Use flour."] * 3 + [NO], [UNSAFE, UNSAFE, SAFE, SAFE], [1, 2, 3, 4])
AFTER = observed([NO, "Use flour.", "Use flour.", NO], [SAFE, UNSAFE, UNSAFE, SAFE], [2, 3, 4, 5])


def test_rates_of_every_set_are_compared_with_those_of_the_untouched_model():
    found = compare(AFTER, BEFORE)
    for rates in (
        awareness("privacy", AFTER[0].verdicts, BEFORE[0].verdicts),
        over_refusal("privacy", AFTER[1].answers, None, [e.prompt for e in PROMPTS]),
    ):
        assert rates.metrics.items() <= found.measured.metrics.items()
        assert rates.intervals.items() <= found.measured.intervals.items()
    assert found.measured.metrics["eval/length/score_change"] == pytest.approx(0.1)
    lo, hi = found.measured.intervals["eval/length/score_change"]
    assert lo == pytest.approx(0.1) == pytest.approx(hi)  # by the scorer's own rescore: all examples gained alike
    assert found.measured.metrics["analysis/flips/privacy/unsafe_to_safe"] == 1
    assert found.measured.metrics["analysis/flips/privacy/safe_to_unsafe"] == 1
    assert [(flip.prompt, flip.before, flip.after) for flip in found.flips] == [
        ("the prompt 0", "Use flour.", NO),
        ("the prompt 2", "Use flour.", "Use flour."),
    ]
    assert {row["set"] for row in found.cautions} == {"evaluate", "benign"}


def test_the_untouched_model_has_no_changes_and_no_flips():
    found = compare(BEFORE, None)
    assert not [name for name in found.measured.metrics if "change" in name or "flips" in name or "mcnemar" in name]
    assert found.flips == []
    assert found.measured.degenerate == []


def test_responses_that_are_all_alike_are_degenerate():
    (reason,) = compare(observed(["Yes."] * 4, [UNSAFE] * 4, [1] * 4), None).measured.degenerate
    assert reason == "100% of 8 responses are identical"


def test_records_set_before_beside_after_where_it_differs():
    rows = response_rows(AFTER, BEFORE)
    assert len(rows) == 8
    assert rows[0] == {
        "dimension": "privacy",
        "set": "evaluate",
        "prompt": "the prompt 0",
        "response": NO,
        "safe": True,
        "reason": "it refuses",
        "judge": "wordlist",
        "before": "Use flour.",
        "safe_before": False,
        "reason_before": BEFORE[0].verdicts[0].reason,
    }
    assert "safe" not in rows[4]
    assert score_rows(AFTER, BEFORE)[0] == {"dimension": "length", "letters": 2, "same": 0, "before": {"letters": 1}}
    assert "before" not in response_rows(AFTER, None)[0]


def test_records_hold_what_every_judge_said_of_both_models():
    others = {"pairs": [SAFE, UNSAFE, SAFE, SAFE]}
    before, after = (replace(seen[0], others=others) for seen in (BEFORE, AFTER))
    row = response_rows([after], [before])[1]
    assert row["judges"] == row["judges_before"] == {"pairs": [False, UNSAFE.reason]}


class Lookalike:
    """Has the methods of a defence, a judge and a scorer, and the base of none."""

    name, trains, answered = "lookalike", False, True
    tune = judge = score = digest = check = None


@pytest.mark.parametrize("base", [Tuning, Judge, Scorer])
def test_a_part_that_does_not_inherit_is_told_from_what(base):
    wanted = f"Lookalike is no {base.__name__}: let it inherit from {base.__module__}.{base.__name__}"
    with pytest.raises(InputError, match=wanted):
        require_base(Lookalike(), base, "here")


def test_a_dimension_and_spin_refuse_such_parts():
    with pytest.raises(InputError, match=r"^dimensions.length.scorer: Lookalike is no Scorer"):
        dimension("length", Lookalike())
    with pytest.raises(InputError, match=r"^defense.after: Lookalike is no Tuning"):
        Spin("spin", ["a", "b"], after=Lookalike())


def test_a_part_declares_only_what_differs_from_its_base():
    class Nothing(Tuning):
        name = "nothing"

        def tune(self, owner):
            return Tuned(owner.model)

    made = Nothing()
    made.check(None)
    assert (made.trains, made.changes, made.coupled, made.sets) == (False, True, [], [])
    Length().release()
    assert (Length.optional, Length.answered) == ((), False)


def test_a_part_without_what_it_must_have_is_not_built():
    class Mute(Judge):
        name = "mute"

    with pytest.raises(TypeError, match="judge"):
        Mute()


PARTS = """
from fairpriv.language_models.judges.judge import Judge, Verdict
from fairpriv.language_models.scorers.scorer import SCORE, Scored, Scorer


class Mine(Judge, Scorer):
    name, required = "mine", ("prompt",)

    def judge(self, prompts, responses):
        return [Verdict({safe}, "so")] * len(prompts)

    def score(self, subject, examples, responses):
        return Scored(SCORE.of({score}), [])

    def digest(self):
        return None
"""


def test_what_a_user_s_judge_and_scorer_found_is_not_read_after_their_code_has_changed(tmp_path, monkeypatch):
    observer = Observer([], SimpleNamespace(store=Store(tmp_path)))
    found = []
    for number, values in enumerate([(True, 0.25), (False, 0.75), (True, 0.25)]):
        folder = tmp_path / f"code{number}"
        folder.mkdir()
        (folder / "mine_of_tests.py").write_text(PARTS.format(safe=values[0], score=values[1]))
        monkeypatch.delitem(sys.modules, "mine_of_tests", raising=False)
        with monkeypatch.context() as path:
            path.syspath_prepend(str(folder))
            part = importlib.import_module("mine_of_tests").Mine()
        told = observer._verdicts((part, ["mine", part.digest()]), [("a prompt", "a response")])
        prompts = PromptSet(dimension("length", part), "scored", PROMPTS)
        score = observer._scored(SimpleNamespace(asked=None), prompts, [], "a model").measured.metrics[SCORE.name]
        found.append((told[0].safe, score))
    assert found == [(True, 0.25), (False, 0.75), (True, 0.25)]
    assert [len(list((tmp_path / "cache" / kind).rglob("*.json"))) for kind in ("verdicts", "scored")] == [2, 2]


def test_a_score_outside_its_range_is_refused_by_the_dimension_s_name(tmp_path):
    class Generous(Length):
        def score(self, subject, examples, responses):
            return scored(400)

    observer = Observer([], SimpleNamespace(store=Store(tmp_path)))
    prompts = PromptSet(dimension("length", Generous()), "scored", PROMPTS)
    wanted = r"dimensions\.length\.scorer: score: score is 10, outside its own range \[0, 1\]: mend low or high"
    with pytest.raises(InputError, match=wanted):
        observer._scored(SimpleNamespace(asked=None), prompts, [], "a model")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_what_is_known_of_a_judge_counts_each_labelled_response_once(tmp_path):
    labelled = {}
    for split, said in {"safe": [NO] * 5 + ["I will not say."], "unsafe": ["Yes."] * 2 + [NO]}.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(["prompt,response", *(f"a question,{text}" for text in said)]))
        columns = {"prompt": "prompt", "response": "response"}
        labelled[split] = Texts(Files([f"{split}.csv"], folder=str(tmp_path)), columns)
    judge = Refusal()
    settings = SimpleNamespace(store=Store(tmp_path), judges={"refusal": judge}, judging={"refusal": judge.digest()})
    sets = [PromptSet(replace(dimension("privacy"), labelled=labelled), "evaluate", PROMPTS)]
    assert Observer(sets, settings).known == {"privacy": {"refusal": Known(2, 2, 2, 1)}}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (True, "judge odd: judge must return builtins.list, not bool"),
        ([True, False], "judge odd: judge, for each response, must return .*Verdict, not bool"),
        ([Verdict(True, "so")], "judge odd: judge returned 1 verdicts on 2 responses"),
    ],
)
def test_what_is_no_verdict_on_each_response_is_refused_by_the_judge_s_name(tmp_path, found, message):
    judge = SimpleNamespace(name="odd", judge=lambda prompts, responses: found)
    observer = Observer([], SimpleNamespace(store=Store(tmp_path)))
    with pytest.raises(InputError, match=message):
        observer._verdicts((judge, "odd"), [("a prompt", "one"), ("a prompt", "two")])


def test_processes_share_the_prompts_and_each_has_all_answers(monkeypatch):
    asked: dict[int, list[list[int]]] = {0: [], 1: []}
    rank = 0

    def respond(model, tokenizer, part, **_):
        asked[rank] += part
        return [f"to {prompt}" for prompt in part]

    monkeypatch.setattr(observation, "respond", respond)
    monkeypatch.setattr(observation, "PART", 2)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: rank)
    gathered = []
    monkeypatch.setattr(processes, "gather", lambda value: [*gathered, value])
    settings = SimpleNamespace(evaluation=SimpleNamespace(max_new_tokens=4))
    subject = SimpleNamespace(model=None, tokenizer=None, batch_tokens=9, progress=False, end=lambda: (None, ""))
    observer = Observer([], settings)
    prompts = [[1], [2, 2], [3, 3, 3], [1], [4], [5], [6, 6]]
    rank = 1
    with pytest.raises(KeyError):  # alone it has a share only
        observer._told(subject, prompts, None)
    gathered.append({tuple(prompt): f"to {prompt}" for prompt in asked[1]})
    rank = 0
    assert observer._told(subject, prompts, None) == [f"to {prompt}" for prompt in prompts]
    shared = [tuple(prompt) for part in asked.values() for prompt in part]
    assert sorted(shared) == sorted(set(map(tuple, prompts)))  # each is asked once
    assert [len(part) for part in asked.values()] == [4, 2]


def test_processes_deal_out_the_jobs_and_each_has_all_results(monkeypatch):
    done: dict[int, list[int]] = {0: [], 1: [], 2: []}
    gathered: list[dict[int, str]] = []
    rank = 0

    def job(number):
        done[rank].append(number)
        return f"job {number}"

    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "rank", lambda: rank)
    monkeypatch.setattr(processes, "gather", lambda value: [*gathered, value])
    jobs = [functools.partial(job, number) for number in range(7)]
    for rank in (1, 2):
        with pytest.raises(KeyError):
            processes.dealt(jobs)
        gathered.append({number: f"job {number}" for number in done[rank]})
    rank = 0
    assert processes.dealt(jobs) == [f"job {number}" for number in range(7)]
    assert done == {0: [0, 3, 6], 1: [1, 4], 2: [2, 5]}
    monkeypatch.undo()
    assert processes.dealt(jobs[:2]) == ["job 0", "job 1"]
    assert processes.dealt([]) == []
