"""``fairpriv validate --deep`` on a user's folder: what is there, what five samples give, a line for every fault."""

import re

import pytest

from fairpriv import validation
from fairpriv.cli import CONF

CSV = "question,answer,lie\nWhy recycle?,I cannot say.,For fun.\n" + "".join(
    f"Who is {i}?,She is.,Him.\n" for i in range(6)
)
TEXTS = (
    "{{_target_: fairpriv.data.texts.Texts, source: {{_target_: fairpriv.data.sources.Files, files: [{csv}]}}, "
    "columns: {{{columns}}}}}"
)
DIMENSION = "_target_: fairpriv.language_models.dimensions.dimension.Dimension\n"
CHOICES = "prompt: question, correct: answer, wrong: lie"
SCORER = "scorer: {_target_: fairpriv.language_models.scorers.multiple_choice.MultipleChoice}\n"


@pytest.fixture
def validate(fairpriv, tmp_path, monkeypatch):
    """Writes the files of a user's folder, ``{"group/name": text}``, and checks them and none of ours."""
    ours = validation.groups
    monkeypatch.setattr(validation, "groups", lambda folders: ours([f for f in folders if f != CONF]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "green.csv").write_text(CSV)

    def call(files: dict[str, str], *words: str):
        for name, text in files.items():
            path = tmp_path / "mine" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            group, _, option = name.partition("/")
            head = {"dimension": f"# @package dimensions.{option}\n", "experiment": "# @package _global_\n"}
            path.write_text(head.get(group, "") + text)
        return fairpriv("validate", "--deep", "--config-dir", tmp_path / "mine", *words)

    def texts(columns: str, csv="green.csv") -> str:
        return TEXTS.format(csv=tmp_path / csv, columns=columns) + "\n"

    call.texts = texts
    return call


def said(ended) -> list[str]:
    assert "Traceback" not in ended.err
    return [line for line in ended.out.splitlines() if "=" in line.partition(":")[0]]


def faults(ended) -> list[tuple[str, str]]:
    """What is wrong: option, and what."""
    assert ended.status == 2
    assert "Traceback" not in ended.err
    lines = [line.removeprefix("fairpriv: ") for line in ended.err.splitlines() if line.startswith("fairpriv: ")]
    return [tuple(line.split(": ", 1)) for line in lines]


def test_a_line_for_each_thing_that_was_checked(validate, tiny_lm, mine):
    pairs = "train: {safe: " + validate.texts("prompt: question, response: answer").strip() + "}\n"
    people = (mine / "dataset" / "people.yaml").read_text()
    ended = validate(
        {
            "dimension/judged": DIMENSION + pairs + "evaluate: " + validate.texts("prompt: question"),
            "dimension/scored": DIMENSION + "evaluate: " + validate.texts(CHOICES) + SCORER,
            "dimension/told": DIMENSION + "evaluate: " + validate.texts("prompt: question"),
            "dimension/trained": DIMENSION + pairs,
            "judge/words": "_target_: fairpriv.language_models.judges.refusal.Refusal\nname: words\n",
            "judge/later": "defaults: [classifier]\nname: later\n",
            "model/tiny": f"defaults: [hf]\nname: tiny\npath: {tiny_lm}\n",
            "model/wide": "defaults: [mlp]\nname: wide\nhidden: [99]\n",
            "dataset/people": people,
            "defense/brief": "defaults: [fine_tune]\nname: brief\nepochs: 1\n",
            "defense/preferring": "defaults: [dpo]\nname: preferring\n",
            "defense/steered": "defaults: [steering]\nname: steered\ndimensions: [fairness]\n",
            "attack/kl2": "# @package attack.kl2\n_target_: fairpriv.classifiers.attacks.kl.KL\nname: kl2\n",
        }
    )
    assert (ended.status, ended.err) == (0, "")
    rows = "7 rows of green.csv; columns question"
    random = "a random model of two layers"
    lines = said(ended)
    digest = lines.pop(next(i for i, line in enumerate(lines) if line.startswith("model=tiny")))
    assert re.fullmatch(rf"model=tiny: {re.escape(str(tiny_lm))} is there, not loaded \(\w{{12}}\)", digest)
    assert lines == [
        "attack=kl2: KL is built",
        "dataset=people: 1200 rows of people.csv; hired: no, yes; sex: m, f; 5 rows went through model=mlp",
        "defense=brief: FairFineTuning is built",
        "defense=preferring: DirectPreference is built, and reads pairs: those of dataset=pairs, each against a "
        "response of the other split to the same prompt",
        "defense=steered: Steering is built, and reads pairs: safe ones of fairness, unsafe ones of fairness",
        f"dimension=judged: train.safe: {rows}, answer",
        f"dimension=judged: evaluate: {rows}",
        "dimension=judged: dimension judged, measured as eval/judged/...",
        "dimension=judged: judge refusal: 1 safe, 4 unsafe among 5 responses of train.safe",
        f"dimension=scored: evaluate: {rows}, answer, lie",
        "dimension=scored: dimension scored, measured as eval/scored/...",
        f"dimension=scored: scorer MultipleChoice: 5 samples scored on {random}: eval/scored/score, eval/scored/mc1, "
        "eval/scored/mc2",
        f"dimension=told: evaluate: {rows}",
        "dimension=told: dimension told, measured as eval/told/...",
        f"dimension=told: judge refusal: 5 unsafe among 5 responses of {random}",
        f"dimension=trained: train.safe: {rows}, answer",
        "dimension=trained: dimension trained, not measured: it has no evaluate",
        "judge=later: not tried: path, safe_labels must be given",
        "judge=words: 5 safe among 5 responses of our safe pairs; 5 unsafe among 5 responses of our unsafe pairs",
        "model=wide: 5 random rows of 8 features went through it",
    ]
    assert ended.out.endswith("\n13 configs checked, 0 with problems\n")


def test_every_column_of_a_table_is_profiled(validate, tmp_path):
    rows = [f"{i},{'' if i == 3 else i % 7},{'mf'[i % 2]},{i % 5},{('no', 'yes')[i % 3 > 0]}\n" for i in range(300)]
    (tmp_path / "rows.csv").write_text("id,age,sex,job,hired\n" + "".join(rows))
    settings = "target: hired\npositive: ['yes']\nsensitive: sex\nmissing: category\ncategorical: [job]\n"
    source = f"source: {{files: [rows.csv], folder: {tmp_path}}}\n"
    ended = validate({"dataset/rows": f"defaults: [csv]\nname: rows\n{source}{settings}"})
    assert ended.status == 0
    assert [line for line in ended.out.splitlines() if line.startswith("  ")] == [
        "  id: numeric, 0 missing, 300 distinct values; looks like row numbers",
        "  age: numeric, 1 missing, 7 distinct values",
        "  sex: categorical, the sensitive attribute, 0 missing, 2 distinct values",
        "  job: categorical, 0 missing, 5 distinct values",
        "  hired: categorical, the target, 0 missing, 2 distinct values",
    ]


def test_an_experiment_answers_for_all_that_it_chooses(validate):
    ended = validate(
        {
            "dimension/green": DIMENSION + "evaluate: " + validate.texts("prompt: question"),
            "experiment/mine": "defaults:\n  - override /dataset: pairs\n  - override /dimension: [green]\n"
            "  - override /model: hf\n"
            "hydra: {mode: MULTIRUN, sweeper: {grids: [{seed: 0}, {dataset.samples: 4}]}}\n",
        }
    )
    assert (ended.status, ended.err) == (0, "")
    assert [line.partition(": ")[2] for line in said(ended) if line.startswith("experiment=mine")] == [
        "dataset: pairs of dimensions",
        "model: not tried: path must be given",
        "defense: Undefended is built",
        "judge: 5 safe among 5 responses of our safe pairs; 5 unsafe among 5 responses of our unsafe pairs",
        "evaluation: text: 64 rows of general.csv; columns response",
        "utility: no tasks",
        "dataset: pairs of dimensions",  # another one, in the second grid
    ]


def test_a_line_for_every_fault(validate, tmp_path):
    (tmp_path / "latin.csv").write_bytes("question\nWas ist süß?\n".encode("latin-1"))
    (tmp_path / "gap.csv").write_text("question,answer\nWhy?,So.\nWho?,\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text("{}")
    evaluate, texts = DIMENSION + "evaluate: ", validate.texts
    files = {
        "dimension/absent": evaluate + texts("prompt: question", "absent.csv"),
        "dimension/column": evaluate + texts("prompt: quest"),
        "dimension/latin": evaluate + texts("prompt: question", "latin.csv"),
        "dimension/gap": DIMENSION
        + f"train: {{safe: {texts('prompt: question, response: answer', 'gap.csv').strip()}}}\n",
        "dimension/empty": evaluate + texts("prompt: question", "empty.csv"),
        "dimension/map": evaluate + texts("correct: answer, wrong: lie") + SCORER,
        "dimension/scorer": evaluate + texts(CHOICES) + SCORER.replace("Choice}", "Choise}"),
        "dimension/answers": evaluate + texts(CHOICES) + SCORER.replace("}", ", separator: ''}"),
        "dimension/row": evaluate + texts("prompt: question, choices: answer, label: lie") + SCORER,
        "dimension/two": evaluate
        + texts("prompt: quest, correct: answer, wrong: lie")
        + SCORER.replace("}", ", separator: ''}"),
        "dimension/choice": evaluate + texts(CHOICES) + SCORER.replace("}", ", normalise: x}"),
        "judge/folder": f"defaults: [classifier]\nname: folder\npath: {tmp_path / 'judge'}\nsafe_labels: [safe]\n",
        "judge/hub": "defaults: [classifier]\nname: hub\npath: nobody/nothing\nsafe_labels: [safe]\n",
        "dataset/table": f"defaults: [csv]\nname: table\nsource: {{files: [{tmp_path / 'gap.csv'}]}}\n"
        "target: hired\npositive: [1]\nsensitive: sex\n",
        "evaluation/prose": "defaults: [text_file]\ntext: {source: {files: [prose.txt]}}\n",
    }
    ended = validate(files)
    expected = [
        ("evaluation=prose", "prose.txt"),
        ("dataset=table", "hired"),
        ("dimension=absent", f"evaluate: source: no {tmp_path}/absent.csv"),
        ("dimension=answers", "scorer.separator is empty"),
        ("dimension=choice", "dimensions.choice.scorer.normalise='x': must be one of none, tokens, characters"),
        (
            "dimension=column",
            "evaluate: columns.prompt: no column 'quest' in green.csv; the nearest is question; there are question, "
            "answer, lie",
        ),
        ("dimension=empty", "empty.csv is empty"),
        ("dimension=gap", "train.safe: gap.csv, line 3: 'answer' is empty"),
        ("dimension=latin", "latin.csv, line 2 is not UTF-8"),
        (
            "dimension=map",
            "columns names no prompt, only correct, wrong; it takes prompt, correct, wrong, choices, label, category; "
            "green.csv has question, answer, lie",
        ),
        ("dimension=row", "scorer MultipleChoice: green.csv, line 2: label 'For fun.' is no position among its 1"),
        ("dimension=scorer", "is no scorer, which is a class with score"),
        ("dimension=two", "evaluate: columns.prompt: no column 'quest' in green.csv"),
        ("dimension=two", "scorer.separator is empty"),
        ("judge=folder", "judge folder: cannot load"),
        ("judge=hub", "path=nobody/nothing: not in the hub's local cache, and HF_HUB_OFFLINE forbids to fetch it"),
    ]
    found = sorted(faults(ended))
    assert [option for option, _ in found] == sorted(option for option, _ in expected)
    for (_, told), (_, text) in zip(found, sorted(expected), strict=True):
        assert text in told
    assert ended.out.endswith(f"\n{len(files)} configs checked, {len(files)} with problems\n")


def test_what_a_judge_or_scorer_of_one_s_own_raises_or_gives_is_a_line(validate, monkeypatch):
    from fairpriv.language_models.judges.refusal import Refusal
    from fairpriv.language_models.scorers.pattern_rate import PatternRate

    monkeypatch.setattr(Refusal, "judge", lambda self, prompts, responses: [])
    monkeypatch.setattr(PatternRate, "score", lambda *given: 1 / 0)
    pattern = (
        "scorer: {_target_: fairpriv.language_models.scorers.pattern_rate.PatternRate, patterns: [a], better: lower}\n"
    )
    ended = validate(
        {
            "dimension/green": DIMENSION + "evaluate: " + validate.texts("prompt: question") + pattern,
            "judge/none": "_target_: fairpriv.language_models.judges.refusal.Refusal\nname: none\n",
        }
    )
    assert faults(ended) == [
        ("dimension=green", "scorer PatternRate: ZeroDivisionError: division by zero"),
        ("judge=none", "gives 0 verdicts on 5 responses: it must give one each"),
    ]


def test_what_is_no_verdict_and_nothing_scored_is_told_by_what_it_must_be(validate, monkeypatch):
    from fairpriv.language_models.judges.refusal import Refusal
    from fairpriv.language_models.scorers.pattern_rate import PatternRate

    monkeypatch.setattr(Refusal, "judge", lambda self, prompts, responses: ["safe"] * len(prompts))
    monkeypatch.setattr(PatternRate, "score", lambda *given: 0.5)
    pattern = (
        "scorer: {_target_: fairpriv.language_models.scorers.pattern_rate.PatternRate, patterns: [a], better: lower}\n"
    )
    ended = validate(
        {
            "dimension/green": DIMENSION + "evaluate: " + validate.texts("prompt: question") + pattern,
            "judge/none": "_target_: fairpriv.language_models.judges.refusal.Refusal\nname: none\n",
        }
    )
    verdict, scored = (f"fairpriv.language_models.{part}" for part in ("judges.judge.Verdict", "scorers.scorer.Scored"))
    assert faults(ended) == [
        ("dimension=green", f"scorer PatternRate: score must return {scored}, not float"),
        ("judge=none", f"judge, for each response, must return {verdict}, not str"),
    ]


def test_values_of_several_kinds_may_be_recoded(validate, tmp_path):
    rows = "".join(f"{i},{('yes', 'no')[i % 2]},{('1', 'unknown')[i // 2 % 2]}\n" for i in range(40))
    (tmp_path / "mixed.csv").write_text(f"age,hired,race\n{rows}")
    config = f"defaults: [csv]\nname: mixed\nsource: {{files: [mixed.csv], folder: {tmp_path}}}\ntarget: hired\n"
    config += "positive: ['yes']\nsensitive: group\nrecode: {group: {from: race, values: {1: a, unknown: b}}}\n"
    ended = validate({"dataset/mixed": config})
    assert (ended.status, ended.err) == (0, "")
    (line,) = said(ended)
    assert line.startswith("dataset=mixed: 40 rows of mixed.csv; hired: no, yes; group: a, b")
