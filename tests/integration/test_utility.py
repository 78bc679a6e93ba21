"""General capability by lm-eval from the command line, on a random language model and tasks that are written here."""

import json
from pathlib import Path

import pytest

from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.report.finding import find_results
from fairpriv.result import Result

pytest.importorskip("lm_eval")
import datasets
import huggingface_hub.constants

TASK = """\
task: {name}
dataset_path: {path}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICES = "doc_to_choice: [me, you, nobody]\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n"
WORDS = (
    "doc_to_target: answer\ngeneration_kwargs: {until: [.], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
)
DIMENSION = """\
# @package dimensions.letters
# Letters, by a task of mine
_target_: fairpriv.language_models.dimensions.dimension.Dimension
scorer: {{_target_: fairpriv.language_models.scorers.harness_task.HarnessTask, task: choices, include: {include}}}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> list[str]:
    """A user's folder: a task of choices, one of words, one on the hub, and a dimension by the first."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    rows = [{"question": f"Who may read letter {i}?", "label": i % 3, "answer": "You"} for i in range(9)]
    (tmp_path / "letters.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    local = f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'letters.jsonl'}}}}}\n"
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    kinds = {
        "choices": ("multiple_choice", "json", local + CHOICES),
        "words": ("generate_until", "json", local + WORDS),
    }
    kinds["remote"] = ("multiple_choice", "owner/letters", CHOICES)
    for name, (kind, path, more) in kinds.items():
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, path=path, kind=kind) + more)
    (tmp_path / "mine" / "dimension").mkdir(parents=True)
    (tmp_path / "mine" / "dimension" / "letters.yaml").write_text(DIMENSION.format(include=tasks))
    return ["--config-dir", str(tmp_path / "mine"), "hydra.mode=RUN", f"utility.include={tasks}"]


def test_a_cell_killed_between_two_tasks_goes_on_with_the_second(fairpriv, words, mine, monkeypatch):
    asked = [*words, *mine, "utility.tasks=[choices,words]", "utility.limit=2", "evaluation.prompts=1"]
    measure, begun, killed = Harness.measure, [], ["words"]

    def call(self, *args, **more):
        begun.append(self.tasks[0])
        if self.tasks == killed:
            raise KeyboardInterrupt
        return measure(self, *args, **more)

    monkeypatch.setattr(Harness, "measure", call)
    assert fairpriv(*asked).status == 130
    killed.clear()
    assert fairpriv(*asked).status == 0
    assert begun == ["choices", "words", "words"]


def test_tasks_are_measured_beside_perplexity_and_as_a_dimension(fairpriv, words, mine):
    asked = [
        *words,
        *mine,
        "dimension=[fairness,letters]",
        "dataset.dimensions=[fairness]",
        "utility.tasks=[choices,words]",
    ]
    results = []
    for defense in ("none", "reft"):
        ended = fairpriv(*asked, f"defense={defense}", "utility.limit=6", "evaluation.prompts=2")
        assert ended.status == 0, ended.err
        path = Path(ended.out.strip().splitlines()[-1])
        results.append(Result.read(path))
        names = {name for name in results[-1].metrics if name.startswith("eval/utility/")}
        assert names == {"eval/utility/perplexity", "eval/utility/choices", "eval/utility/words"}
        assert "utility" in results[-1].seconds
        assert 0 <= results[-1].metrics["eval/utility/choices"] <= 1
        told = [json.loads(line) for line in (path.parent / "scores.jsonl").read_text().splitlines()]
        assert [line["prompt"] for line in told] == [f"Who may read letter {i}?" for i in range(9)]
        assert results[-1].metrics["eval/letters/score"] == sum(line["acc"] for line in told) / 9
    untouched, tuned = results
    change = tuned.metrics["eval/letters/score"] - untouched.metrics["eval/letters/score"]
    assert tuned.metrics["eval/letters/score_change"] == pytest.approx(change)
    assert "eval/utility/choices" in untouched.intervals


def test_a_task_that_cannot_be_had_stops_the_cell_before_the_model_is_loaded(
    fairpriv, words, mine, tmp_path, monkeypatch
):
    monkeypatch.setattr(PretrainedLM, "load", lambda self: pytest.fail("it is loaded"))
    ended = fairpriv(*words, *mine, "defense=none", "utility.tasks=[remote]")
    assert ended.status == 2
    (line,) = [line for line in ended.err.splitlines() if line.strip()]
    assert line.startswith("fairpriv: lm-eval task remote: its data is on the Hugging Face hub")
    (result,), _ = find_results([tmp_path / "out"])
    assert (result.status, "lm-eval task remote" in result.error) == ("failed", True)


def test_a_chat_template_that_is_not_there_is_missed_before_anything_is_answered(fairpriv, words, mine, monkeypatch):
    load = PretrainedLM.load

    def without(self):
        model, tokenizer = load(self)
        tokenizer.chat_template = None
        return model, tokenizer

    monkeypatch.setattr(PretrainedLM, "load", without)
    ended = fairpriv(*words, *mine, "defense=none", "utility.tasks=[choices]", "utility.chat=true")
    assert ended.status == 2
    assert "lm-eval: chat=true, and the tokenizer has no chat template" in ended.err
    assert "answers:" not in ended.err


def test_a_task_that_is_asked_by_another_chat_template_is_measured_again(fairpriv, words, mine, monkeypatch):
    asked, measure = [], Harness.measure

    def spy(self, model, tokenizer, **more):
        asked.append(tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False))
        return measure(self, model, tokenizer, **more)

    monkeypatch.setattr(Harness, "measure", spy)
    for template in ("{{ messages[0].content }}", "Say: {{ messages[0].content }}"):
        told = ["utility.tasks=[choices]", "utility.chat=true", f"model.chat_template='{template}'"]
        ended = fairpriv(*words, *mine, "defense=none", "utility.limit=2", "evaluation.prompts=2", *told)
        assert ended.status == 0, ended.err
    assert asked == ["Why?", "Say: Why?"]


@pytest.mark.parametrize(("dtype", "cells"), [("float32", 1), ("bfloat16", 2)])
def test_the_batch_size_of_tasks_counts_where_padding_rounds_their_likelihoods(
    fairpriv, words, mine, tmp_path, dtype, cells
):
    asked = [
        *words,
        *mine,
        "utility.tasks=[choices]",
        "utility.limit=2",
        "evaluation.prompts=1",
        f"model.dtype={dtype}",
    ]
    for size in (1, 64):
        ended = fairpriv(*asked, "defense=none", f"utility.batch_size={size}")
        assert ended.status == 0, ended.err
    assert len(find_results([tmp_path / "out"])[0]) == cells
    assert len(list((tmp_path / "out" / "cache" / "utility").iterdir())) == cells
