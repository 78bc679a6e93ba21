"""lm-eval on a model in memory, against a loop over the documents; every task's data is written here."""

import copy
import dataclasses
import json
import logging
import math
import random
import statistics
from dataclasses import asdict

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairpriv.cli import CONF
from fairpriv.config.compose import build, compose, plain
from fairpriv.errors import InputError
from fairpriv.functional.intervals import wilson_interval
from fairpriv.identity import outcome_config
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.engines import harness
from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.models.reft import LoReFTConfig, ReftModel
from fairpriv.language_models.scorers.harness_task import HarnessTask
from fairpriv.language_models.scorers.scorer import Scored, Subject, scores
from fairpriv.metrics import Metric

pytest.importorskip("lm_eval")
import datasets
import huggingface_hub.constants
import tqdm

SENTENCE = "Who may see my medical file? A nurse can be a man or a woman, and so can a doctor."
METRICS = "metric_list: [{metric: acc}, {metric: acc_norm}]"
BRIER = "metric_list: [{metric: brier_score}, {metric: acc}]"


def documents(n=24):
    draw = random.Random(0)

    def words(most):
        return " ".join(draw.choices(SENTENCE.split(), k=draw.randint(1, most)))

    return [{"text": words(12), "choices": [words(4) for _ in range(3)], "label": i * 3 // n} for i in range(n)]


def write_data(folder, rows, name="data"):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_task(folder, name, data, more=METRICS):
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}, train: {data}}}}}\n"
        "output_type: multiple_choice\ntraining_split: train\ntest_split: test\n"
        f'doc_to_text: "{{{{text}}}}"\ndoc_to_choice: choices\ndoc_to_target: label\n{more}\n'
    )


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder of tasks; lm-eval's own are indexed once for it."""
    folder = tmp_path_factory.mktemp("tasks")
    data = write_data(folder, documents())
    write_task(folder, "plain", data)
    write_task(folder, "bare", data, f"num_fewshot: 0\n{METRICS}")
    write_task(folder, "calibrated", data, BRIER)
    write_task(folder, "small", write_data(folder, documents()[:6], "small"), f"tag: sizes\n{METRICS}")
    write_task(folder, "large", data, f"tag: sizes\n{METRICS}")
    (folder / "averaged.yaml").write_text(
        "group: averaged\ntask: [small, large]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    (folder / "even.yaml").write_text(
        "group: even\ntask: [small, large]\naggregate_metric_list: [{metric: acc, weight_by_size: false}]\n"
    )
    return str(folder)


@pytest.fixture(scope="module")
def models(tiny_lm):
    """A language model, or one with ReFT whose interventions do something."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)

    def make(kind="llama"):
        model = AutoModelForCausalLM.from_pretrained(tiny_lm)
        if kind == "reft":
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = ReftModel(model, LoReFTConfig(rank=4, first=1, last=2))
                for intervention in model.interventions.values():
                    torch.nn.init.normal_(intervention.source.weight)
        return model, tokenizer

    return make


@pytest.fixture
def model(models):
    return models()


def log_likelihood(model, tokenizer, text, choice, longest=512):
    """Of one choice, alone; the labels tell ReFT where the prompt ends."""
    before, whole = len(tokenizer(text)["input_ids"]), tokenizer(f"{text} {choice}")["input_ids"]
    lost = max(0, len(whole) - longest - 1)  # the last token is predicted and not read
    before, whole = before - lost, whole[lost:]
    ids = torch.tensor([whole])
    labels = torch.tensor([[-100] * before + whole[before:]])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, **({"labels": labels} if isinstance(model, ReftModel) else {})).logits
    told = torch.log_softmax(logits[0].double(), -1)
    return sum(float(told[i - 1, whole[i]]) for i in range(before, len(whole)))


@pytest.mark.parametrize("kind", ["llama", "reft"])
def test_a_prompt_that_is_too_long_loses_its_beginning(models, folder, kind):
    model, tokenizer = models(kind)
    model.config.max_position_embeddings = 24
    (found,) = Harness(["plain"], include=folder).scores(model, tokenizer, batch_size=5).values()
    for row, told in zip(documents(), found.documents, strict=True):
        values = [log_likelihood(model, tokenizer, row["text"], choice, longest=24) for choice in row["choices"]]
        assert [answer[0] for answer in told["filtered_resps"]] == pytest.approx(values, abs=1e-3)
    assert max(len(tokenizer(row["text"])["input_ids"]) for row in documents()) > 24


def test_an_answer_that_the_tokenizer_joins_to_its_question_is_refused(models, tmp_path):
    model, tokenizer = models()
    joined = min(token for token in tokenizer.get_vocab() if len(token) == 2 and token.isascii() and token.isalpha())
    rows = [{"text": joined[0], "choices": [joined[1], "zz"], "label": 0}]
    write_task(tmp_path, "joined", write_data(tmp_path, rows), f'target_delimiter: ""\n{METRICS}')
    with pytest.raises(InputError, match=f"the answer '{joined[1]}' has no tokens of its own"):
        Harness(["joined"], include=str(tmp_path)).scores(model, tokenizer, batch_size=5)


@pytest.mark.parametrize("kind", ["llama", "reft"])
def test_a_task_s_accuracy_is_that_of_a_loop_over_its_documents(models, folder, kind):
    model, tokenizer = models(kind)
    model.train()
    (found,) = Harness(["plain"], include=folder).scores(model, tokenizer, batch_size=5).values()
    assert model.training  # as it was before
    hits, normed = [], []
    for row, told in zip(documents(), found.documents, strict=True):
        values = [log_likelihood(model, tokenizer, row["text"], choice) for choice in row["choices"]]
        assert [answer[0] for answer in told["filtered_resps"]] == pytest.approx(values, abs=1e-3)
        hits.append(values.index(max(values)) == row["label"])
        per = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        normed.append(per.index(max(per)) == row["label"])
    assert found.measured.metrics == pytest.approx(
        {"acc": statistics.fmean(hits), "acc_norm": statistics.fmean(normed)}
    )
    half = 1.96 * statistics.stdev(hits) / math.sqrt(len(hits))
    assert found.measured.intervals["acc"] == pytest.approx(
        (max(0, found.measured.metrics["acc"] - half), found.measured.metrics["acc"] + half)
    )


def test_the_name_alone_is_the_first_metric_where_higher_is_better(model, folder):
    measured = Harness(["plain", "calibrated"], include=folder).measure(*model, batch_size=8)
    metrics, intervals = measured.metrics, measured.intervals
    assert set(metrics) == {
        "eval/utility/plain",
        "eval/utility/plain/acc_norm",
        "eval/utility/calibrated/brier_score",
        "eval/utility/calibrated/acc",
    }
    assert metrics["eval/utility/plain"] == metrics["eval/utility/calibrated/acc"]
    assert set(intervals) <= set(metrics)
    described = measured.described
    assert (described["eval/utility/plain"].sign, described["eval/utility/plain"].limits()) == (1, (0, 1))
    assert described["eval/utility/calibrated/brier_score"].sign == -1  # lm-eval's higher_is_better: false
    assert described["eval/utility/calibrated/brier_score"].limits() == (-math.inf, math.inf)
    assert intervals["eval/utility/plain"][0] < metrics["eval/utility/plain"] < intervals["eval/utility/plain"][1]


def test_a_limit_draws_documents_the_same_in_every_cell(model, folder):
    told = [Harness(["plain"], limit=9, include=folder).scores(*model, batch_size=8) for _ in range(2)]
    drawn = [[document["doc_id"] for document in one["plain"].documents] for one in told]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert len(drawn[0]) == 9
    assert {documents()[i]["label"] for i in drawn[0]} == {0, 1, 2}  # the first nine are of two kinds only
    assert [d["doc"]["text"] for d in told[0]["plain"].documents] == [documents()[i]["text"] for i in drawn[0]]
    assert len(Harness(["plain"], limit=99, include=folder).scores(*model, batch_size=8)["plain"].documents) == 24


def test_limits_by_task_leave_the_others_whole_and_may_take_the_first_documents(model, folder):
    limited = Harness(["plain", "bare"], limit={"plain": 3}, first=True, include=folder)
    told = limited.scores(*model, batch_size=8)
    assert [document["doc_id"] for document in told["plain"].documents] == [0, 1, 2]
    assert len(told["bare"].documents) == 24
    assert [one.limit for one in limited.apart()] == [3, None]


def test_examples_stand_before_a_document_unless_its_task_has_none(model, folder):
    told = [
        Harness(["plain", "bare"], fewshot=2, limit=2, include=folder).scores(*model, batch_size=8) for _ in range(2)
    ]
    prompts = {name: one.documents[0]["arguments"][0][0].split("\n\n") for name, one in told[0].items()}
    assert {name: len(parts) for name, parts in prompts.items()} == {"plain": 3, "bare": 1}
    assert prompts["plain"][0] in [f"{row['text']} {row['choices'][row['label']]}" for row in documents()]
    assert told[0] == told[1]  # the same examples, though the task is the same object


def test_a_chat_template_is_used_on_demand(model, folder):
    told = Harness(["plain"], chat=True, limit=1, include=folder).scores(*model, batch_size=8, system="Be brief.")
    prompt = told["plain"].documents[0]["arguments"][0][0]
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    tokenizer = AutoTokenizer.from_pretrained(model[1].name_or_path)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="chat=true, and the tokenizer has no chat template"):
        Harness(["plain"], chat=True, include=folder).scores(model[0], tokenizer, batch_size=8)


@pytest.mark.parametrize("mark", ["special", "added", "of the model", "text"])
def test_answers_end_at_the_mark_that_training_puts_after_a_response(models, tmp_path, mark):
    lm, tokenizer = models()
    tokenizer = copy.deepcopy(tokenizer)
    end = " can be" if mark == "text" else "<|turn|>"
    if end == "<|turn|>":  # which the model has a row for, and is not EOS
        tokenizer.add_tokens([AddedToken(end, special=mark == "special")])
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})  # which the model has no row for
    if mark == "of the model":
        lm.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(end)
    else:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", end)
    said = tokenizer(f"A nurse{end} and a man", add_special_tokens=False)["input_ids"]

    def write(module, args, inputs, output):
        past = inputs["past_key_values"].get_seq_length() - inputs["input_ids"].shape[1]
        step = 0 if past == 0 else past - write.width + 1
        write.width = inputs["input_ids"].shape[1] if past == 0 else write.width
        output.logits[:, -1] = -1.0
        output.logits[:, -1, said[step % len(said)]] = 1.0

    lm.register_forward_hook(write, with_kwargs=True)
    data = write_data(tmp_path, [{"text": "Who may see it?", "answer": "A nurse"}, {"text": "Who?", "answer": "a man"}])
    (tmp_path / "told.yaml").write_text(
        f"task: told\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs: {until: [STOP], max_gen_toks: 20}\nmetric_list: [{metric: exact_match}]\n"
    )
    found = HarnessTask("told", include=str(tmp_path)).score(Subject(lm, tokenizer), [], [])
    assert [record["answers"] for record in found.records] == [["A nurse"], ["A nurse"]]
    assert found.measured.metrics["score"] == 0.5


def test_a_group_is_one_result_and_a_tag_is_several(model, folder):
    (averaged,) = Harness(["averaged"], include=folder).scores(*model, batch_size=8).values()
    each = Harness(["sizes"], include=folder).scores(*model, batch_size=8)
    assert set(each) == {"small", "large"}
    expected = (6 * each["small"].measured.metrics["acc"] + 24 * each["large"].measured.metrics["acc"]) / 30
    assert averaged.measured.metrics == pytest.approx({"acc": expected})
    assert "acc" in averaged.measured.intervals


def test_nothing_is_said_and_nothing_is_left_changed(model, folder, capfd):
    level, init, state = logging.getLogger("lm_eval").level, vars(tqdm.tqdm)["__init__"], random.getstate()
    padding, size = model[1].padding_side, len(model[1])
    harness._load.cache_clear()
    Harness(["plain"], include=folder).measure(*model, batch_size=8)
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger("lm_eval").level, vars(tqdm.tqdm)["__init__"]) == (level, init)
    assert (model[1].padding_side, len(model[1]), random.getstate()) == (padding, size, state)
    assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS


def test_a_digest_is_of_what_is_asked_and_not_of_where_it_lies(tmp_path):
    def digest(place, rows, more=METRICS, **options):
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        write_task(folder, "mine", write_data(folder, rows), more)
        harness._load.cache_clear()
        return Harness(["mine"], include=str(folder), **options).digest()

    rows = documents(6)
    first = digest("a", rows)
    assert digest("b", rows) == first
    others = [
        digest("c", [*rows[:5], {**rows[5], "label": 0}]),
        digest("d", rows, f"description: Answer.\n{METRICS}"),
        digest("e", rows, fewshot=1),
    ]
    assert len({first, *others}) == 4


def test_a_digest_is_of_the_code_that_a_task_s_functions_call(tmp_path):
    def asked(place, helper):
        folder = tmp_path / place
        folder.mkdir()
        more = f"doc_to_text: !function own.shown\nprocess_results: !function own.results\n{METRICS}"
        data = write_data(folder, documents(6))
        write_task(folder, "mine", data)
        text = (folder / "mine.yaml").read_text().replace('doc_to_text: "{{text}}"\n', "").replace(METRICS, more)
        (folder / "mine.yaml").write_text(text)
        (folder / "own.py").write_text(
            f"def _asked(text):\n    return {helper}\n\n\ndef shown(doc):\n    return _asked(doc['text'])\n\n\n"
            "def results(doc, told):\n    return {'acc': told[0][0] > told[1][0], 'acc_norm': 0}\n"
        )
        harness._load.cache_clear()
        own = Harness(["mine"], include=str(folder))
        return own.digest(), own._loaded().tasks["mine"].doc_to_text({"text": "Why?"})

    (first, plain), (again, same), (other, loud) = (
        asked("here", "text"),
        asked("there", "text"),
        asked("loud", "text.upper()"),
    )
    assert (plain, same, loud) == ("Why?", "Why?", "WHY?")
    assert first == again != other


def test_a_group_asks_for_something_else_than_its_tasks_and_than_another_average(folder):
    asked = (["averaged"], ["even"], ["small", "large"])
    assert len({Harness(tasks, include=folder).digest() for tasks in asked}) == 3


def test_a_cell_without_tasks_is_the_same_cell_as_before_there_were_any():
    config = {"dimensions": {"fairness": {}}, "evaluation": {}}
    node = {"_target_": "fairpriv.language_models.engines.harness.Harness", "tasks": [], "limit": 4, "include": None}
    assert outcome_config(config) == outcome_config({**config, "utility": node})
    asked = outcome_config({**config, "utility": {**node, "tasks": ["boolq"], "include": "mine"}})
    assert asked["utility"] == {"_kind_": "harness", "tasks": ["boolq"], "limit": 4}
    assert "utility" not in outcome_config({"dimensions": {}, "utility": {**node, "tasks": ["boolq"]}})


def test_a_user_sees_every_key():
    node = plain(compose(CONF, [], ["dataset=pairs"]))["utility"]
    assert set(node) - {"_target_"} == {field.name for field in dataclasses.fields(Harness)}
    assert build({"utility": node}, "utility") == Harness()


def test_the_paper_s_tasks_are_lm_eval_s_or_written_out(folder, tmp_path, model):
    suite = build(plain(compose(CONF, [], ["dataset=pairs", "utility=paper_suite"])), "utility").tasks
    named = [task for task in suite if isinstance(task, str)]
    index = harness._index(named, folder)
    assert set(named) <= set(index.all_tasks)
    assert len(named) == 6
    for task, text in zip(suite[6:], ["A match was won.", "Dull."], strict=True):
        data = write_data(tmp_path, [{"text": text, "label": 1}] * 3, task["task"])
        local = {
            **task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": dict.fromkeys(("train", "test"), str(data))},
        }
        (score,) = Harness([local]).scores(*model, batch_size=4).values()
        prompt, answers = score.documents[0]["arguments"][0][0], [told[1] for told in score.documents[0]["arguments"]]
        assert prompt.startswith(f"{text}\nQuestion: ")
        assert prompt.endswith("?\nAnswer:")
        assert answers[1] == {"ag_news": " sports", "imdb": " positive"}[task["task"]]
        assert all(answer.strip() in prompt for answer in answers)
        assert [*score.measured.metrics] == ["acc"]


# Bad input


def refused(*tasks, **options):
    with pytest.raises(InputError) as error:
        Harness([*tasks], **options).digest()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_task_is_answered_with_the_nearest(folder):
    assert refused("helaswag", include=folder) == (
        f"lm-eval task helaswag: none of lm-eval's and none of {folder}'s (did you mean 'hellaswag'?)"
    )


def test_a_task_that_needs_the_network_is_named(folder):
    told = refused("plain", "boolq", include=folder)
    assert told.startswith("lm-eval task boolq: its data is on the Hugging Face hub, and neither there to be had nor")
    assert "aps/super_glue" in told


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("metric_list: [{metric: nosuchmetric, aggregation: mean, higher_is_better: true}]", "nosuchmetric is not lm-"),
        (f"unsafe_code: true\n{METRICS}", "it runs code that the model writes"),
        ("doc_to_text: [", "mine.yaml: while parsing"),
        ("test_split: nowhere", "lm-eval task mine: it cannot be loaded (KeyError: 'nowhere')"),
    ],
)
def test_a_task_file_that_is_wrong_is_one_line(tmp_path, more, expected):
    write_task(tmp_path, "mine", write_data(tmp_path, documents(4)), more)
    assert expected in refused("mine", include=str(tmp_path))


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    write_task(tmp_path, "mine", tmp_path / "gone.jsonl")
    told = refused("mine", include=str(tmp_path))
    assert told.startswith("lm-eval task mine: it cannot be loaded (FileNotFoundError: ")
    assert "gone.jsonl" in told
    assert refused("mine", include=str(tmp_path / "gone")).endswith("gone: there is no such folder")


def test_a_task_asked_for_twice_is_refused(folder):
    assert refused("plain", "plain", include=folder).startswith("lm-eval task plain: it is asked for twice")
    assert refused("small", "averaged", include=folder).startswith("lm-eval task averaged: it is asked for twice")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 0}, "lm-eval: limit=0: must be at least 1, or null"),
        ({"limit": {"a": 0}, "tasks": ["a"]}, "lm-eval: limit.a=0: must be at least 1, or null"),
        ({"limit": {"aa": 1}, "tasks": ["ab"]}, "lm-eval: limit.aa: there is no such task"),
        ({"fewshot": -1}, "lm-eval: fewshot=-1: must be at least 0, or null"),
        ({"tasks": [3]}, "lm-eval task 3: it is a name, or a mapping with the key task"),
    ],
)
def test_a_value_out_of_range_is_one_line(options, expected):
    with pytest.raises(InputError) as error:
        Harness(**options)
    assert str(error.value) == expected


def test_the_extra_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    harness._load.cache_clear()
    assert refused("boolq").startswith("lm-eval is not installed: pip install 'fairpriv[lm-eval]'")


def test_a_shortage_of_memory_says_what_to_lower(model, folder, monkeypatch):
    def scarce(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model[0]), "forward", scarce)
    with pytest.raises(RuntimeError, match=r"out of memory while scoring .*: lower the .*utility\.batch_size; now 384"):
        Harness(["plain"], include=folder).measure(*model, batch_size=3)


def test_logits_that_are_not_finite_stop_the_tasks_and_name_the_precision(model, folder):
    model[0].lm_head.weight.data[7] = float("nan")
    with pytest.raises(InputError, match=r"logits that are not finite.*; set model\.dtype=float32"):
        Harness(["plain"], include=folder).measure(*model, batch_size=3)
    assert not model[0]._forward_hooks


# As a dimension


def test_a_task_is_a_dimension_s_scorer(model, folder):
    dimension = Dimension("mine", scorer=HarnessTask("plain", include=folder))
    assert dimension.measured_on() == []
    found = dimension.scorer.score(Subject(*model), [], [])
    hits = round(24 * found.measured.metrics["acc"])
    assert found.measured.metrics["score"] == found.measured.metrics["acc"]
    assert found.measured.intervals["score"] == wilson_interval(hits, 24)
    assert (len(found.outcomes), sum(found.outcomes)) == (24, hits)
    assert [record["prompt"] for record in found.records] == [row["text"] for row in documents()]
    assert [record["acc"] for record in found.records] == found.outcomes
    assert Scored.of(json.loads(json.dumps(asdict(found)))) == found  # as the cache keeps it
    assert "eval/mine/score_change" in scores("mine", found, found).metrics


def test_the_metric_may_be_chosen_and_turned_round(model, folder, monkeypatch):
    first, normed = (
        HarnessTask("plain", metric, include=folder).score(Subject(*model), [], []) for metric in (None, "acc_norm")
    )
    assert normed.measured.metrics["score"] == normed.measured.metrics["acc_norm"]
    assert normed.outcomes == [record["acc_norm"] for record in normed.records] != first.outcomes
    lower = HarnessTask("calibrated", include=folder)
    value = lower.harness.scores(*model, batch_size=4)["calibrated"].measured.metrics["brier_score"]
    assert value > 1
    with pytest.raises(InputError, match=f"its brier_score is {value:g}; a dimension's score lies in"):
        lower.score(Subject(*model), [], [])
    told = harness.TaskScore(Metric("rate", better="less").of(0.3, (0.2, 0.4)), [])
    monkeypatch.setattr(Harness, "scores", lambda *args, **options: {"calibrated": told})
    found = lower.score(Subject(*model), [], [])
    assert found.measured.metrics == {"score": 0.7, "rate": 0.3}
    assert found.measured.intervals["score"] == pytest.approx((0.6, 0.8))
    assert found.outcomes is None
    same = {"filter": "none", "arguments": [("Why?", "No.")], "target": 0, "filtered_resps": []}
    told.documents.extend(same | {"doc_id": i, "rate": i < 3} for i in range(10))
    found = lower.score(Subject(*model), [], [])
    assert found.outcomes == [False] * 3 + [True] * 7
    assert found.measured.intervals["score"] == wilson_interval(7, 10)


def test_what_is_no_one_score_is_refused_before_the_model_is_loaded(folder):
    with pytest.raises(InputError, match=r"lm-eval task sizes: it is 2 tasks that lm-eval does not average: choose"):
        HarnessTask("sizes", include=folder).check([])
    with pytest.raises(InputError, match=r"lm-eval task plain: it has no metric acc_nrm \(did you mean 'acc_norm'\?\)"):
        HarnessTask("plain", metric="acc_nrm", include=folder).check([])
    assert HarnessTask("averaged", include=folder).check([]) is None


def test_a_metric_of_documents_that_are_no_numbers_and_one_called_score(model, folder, monkeypatch):
    documents = [{"filter": "none", "brier_score": (0, np.ones(2)), "doc_id": 0, "arguments": [("a", "b")]}]
    documents[0] |= {"target": 0, "filtered_resps": []}
    measured = Metric("brier_score", better="less").of(0.3) | Metric("score").of(7.0, (6.0, 8.0))
    told = harness.TaskScore(measured, documents)
    monkeypatch.setattr(Harness, "scores", lambda *args, **options: {"calibrated": told})
    found = HarnessTask("calibrated", include=folder).score(Subject(*model), [], [])
    assert (found.measured.metrics["score"], found.outcomes, found.measured.intervals) == (0.7, None, {})


def test_a_share_in_percent_as_squad_s_keeps_its_interval_and_has_no_range():
    table = {"f1,none": 83.5, "f1_stderr,none": 1.0, "acc,none": 0.75, "acc_stderr,none": 0.2}
    told = harness._score(table, ["f1", "acc"], {"f1": True, "acc": True}, []).measured.within_ranges()
    assert told.intervals == {"f1": pytest.approx((81.54, 85.46)), "acc": pytest.approx((0.358, 1))}
    assert [told.described[name].limits() for name in ("f1", "acc")] == [(-math.inf, math.inf), (0, 1)]


def test_a_dimension_s_digest_follows_its_settings(folder):
    options = [{}, {"limit": 3}, {"metric": "acc_norm"}, {"chat": True}, {"fewshot": 1}]
    digests = [Dimension("mine", scorer=HarnessTask("plain", include=folder, **one)).scoring for one in options]
    assert len(set(digests)) == len(options)
