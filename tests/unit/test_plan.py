"""What a cell needs in memory is told without its weights, and is what a real fit or scoring then takes."""

import gc
import json
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fairpriv.api import compose
from fairpriv.cli import main
from fairpriv.config.compose import plain
from fairpriv.functional.importance import iter_importance_scores
from fairpriv.language_models.data.tokens import Encoded, collate
from fairpriv.language_models.engines.log_likelihood import log_likelihoods, token_likelihoods
from fairpriv.language_models.inputs import checkpoint_activations
from fairpriv.language_models.models.causal_lm import CausalLM, fit_causal_lm
from fairpriv.language_models.plan import Planner

SIZES = {
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
TOKENS, ROWS = 64, 4


@pytest.fixture
def folder(tmp_path):
    """Holds a config.json and no weights."""
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    return tmp_path


def planner(folder, *words, gpu=False, devices=1):
    given = [f"model.path={folder}", f"dataset.max_tokens={TOKENS}", f"paths.root={folder}", *words]
    config = compose(["dataset=pairs", "dimension=[fairness,privacy,general]", "model=hf", *given])
    return Planner(plain(config), gpu=gpu, devices=devices)


def measured(work):
    """Return the largest sum of bytes that PyTorch has given out and not got back during ``work``."""
    gc.collect()  # what an earlier test has left would count as given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def real(folder):
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()


ROW = Encoded(list(range(TOKENS)), [-100, *range(1, TOKENS)])


# whose layers return a tuple
BLOOM = {"model_type": "bloom", "dtype": "float32", "vocab_size": 512, "hidden_size": 64, "n_layer": 6, "n_head": 4}


@pytest.mark.parametrize(
    ("defense", "checkpointing", "sizes"),
    [
        ("full", "false", SIZES),
        ("full", "true", SIZES),
        ("lora", "false", SIZES),
        ("reft", "false", SIZES),
        ("reft", "false", BLOOM),
    ],
)
def test_a_planned_fit_is_what_a_real_one_takes(folder, defense, checkpointing, sizes):
    (folder / "config.json").write_text(json.dumps(sizes))
    words = ["evaluation.window=64", "evaluation.stride=64"]  # Bloom names no length of its own
    planned = planner(folder, f"defense={defense}", f"model.gradient_checkpointing={checkpointing}", *words)
    stage = planned.training(planned.defense)
    model = real(folder)
    if checkpointing == "true":
        checkpoint_activations(model)
    module = CausalLM(planned.defense._adapted(model), lr=1e-4, micro_batch_size=ROWS)
    fit = {"epochs": 2, "batch_size": ROWS, "seed": 0}

    def trainer(**settings):
        plain = LightningEnvironment()  # on a machine with Slurm, too
        return lightning.Trainer(accelerator="cpu", devices=1, enable_progress_bar=False, plugins=plain, **settings)

    peak = measured(lambda: fit_causal_lm(module, [ROW] * ROWS, trainer=trainer, **fit))
    assert stage.total - stage.parts["weights"] == pytest.approx(peak, rel=0.25)


def test_a_planned_scoring_is_what_a_real_one_takes(folder):
    planned = planner(folder, "defense=spin")
    stage = planned.scoring(planned.defense, 0)
    model, batch = real(folder), collate([ROW] * ROWS, 0)
    peak = measured(lambda: dict(iter_importance_scores(model, [batch], target="all")))
    assert stage.parts["scores"] + stage.parts["passes"] == pytest.approx(peak, rel=0.25)


def test_rivals_of_spin_are_planned_by_what_they_run(folder):
    dpo = planner(folder, "defense=dpo", "defense.micro_batch_size=2")
    words = ["defense=task_arithmetic", "defense.tuning.adapter.lora_dropout=0", "defense.tuning.micro_batch_size=4"]
    arithmetic = planner(folder, *words)
    tuned, preferring = (one.training(one.defenses[0]).parts for one in (arithmetic, dpo))
    assert tuned.pop("before") == arithmetic.weights
    assert tuned == preferring  # both responses of a pair are read
    assert dpo.work() > arithmetic.work()


def test_a_planned_steering_is_what_a_real_one_takes(folder):
    steered = planner(folder, "defense=steering")
    stage, model = steered.steering(steered.defense, 0), real(folder)
    rows = {which: [ROW] * 8 for which in steered.defense.sets}
    assert stage.parts["passes"] == pytest.approx(measured(lambda: steered.defense.vectors(model, rows)), rel=0.25)


@pytest.mark.parametrize("dimension", ["crows_pairs", "leakage_membership"])
def test_a_planned_scoring_of_whole_texts_is_what_a_real_one_takes(folder, dimension):
    """Logits of every token are asked for: with a vocabulary of usual size they are most of it."""
    (folder / "config.json").write_text(json.dumps(SIZES | {"vocab_size": 8192}))
    told = planner(folder, "evaluation.batch_size=16", f"dimension=[privacy,{dimension}]").evaluating()
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(8192, (64,), generator=draw).tolist() for _ in range(32)]
    rows, lm = [Encoded(ids, [-100, *ids[1:]]) for ids in texts], real(folder)
    work = log_likelihoods if dimension == "crows_pairs" else token_likelihoods
    assert measured(lambda: work(lm, rows, pad_id=0, batch_tokens=16 * 128)) == pytest.approx(told, rel=0.25)


def test_sharding_divides_what_is_trained_and_gathers_a_layer(folder):
    planned = planner(folder, "defense=full", "trainer=fsdp", devices=4)
    stage = planned.training(planned.defense)
    assert stage.parts["gradients"] * 4 == sum(p.numel() * 4 for p in planned.whole.parameters())
    assert stage.parts["optimiser"] == 2 * stage.parts["gradients"]
    # rows of one process are as many as before; the output layer, which the loss reads, is whole
    assert stage.parts["passes"] > 4 * SIZES["hidden_size"] * SIZES["vocab_size"]


def told(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_a_plan_counts_cells_by_arm_and_says_what_does_not_fit(folder, capsys):
    words = ["experiment=quickstart_llm", "model=hf", f"model.path={folder}", f"paths.root={folder}", "seed=0,1"]
    words += ["evaluation.text=null", "evaluation.batch_size=1"]
    status, out, _ = told(capsys, *words, "defense=none,spin", "--memory", "0.001")
    assert status == 1
    rows = [line.split() for line in out.splitlines() if line.startswith("│")]
    assert [(row[1], row[5]) for row in rows] == [("2", "none"), ("2", "spin")]
    assert "hf, spin: spin needs 0.0" in out
    assert " GB of 0.001: set model.gradient_checkpointing=true" in out
    assert "(--tflops): an order of magnitude" in out
    assert not (folder / "cells").exists()  # nothing is run
    assert told(capsys, *words, "defense=none", "--memory", "1")[0] == 0


def test_a_judge_that_a_package_carries_is_counted(folder, tmp_path, monkeypatch):
    (tmp_path / "carried").mkdir()
    (tmp_path / "carried" / "config.json").write_text(json.dumps(SIZES | {"num_hidden_layers": 2}))
    (tmp_path / "carried" / "model.safetensors").touch()
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: SimpleNamespace(locate_file=tmp_path.joinpath))
    judge = ["judge=pairs", "judge.path=nobody/has-this", "judge.package='carrier==1.0'", "judge.inside=carried"]
    expected = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path / "carried"), dtype=torch.float32)
    found = planner(folder, "defense=none", *judge).judge_weights
    assert found == [sum(p.numel() * p.element_size() for p in expected.parameters())]


def test_a_plan_names_a_defence_that_refuses_the_model(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    words = ["experiment=quickstart_llm", "model=hf", f"model.path={folder}", "model.dtype=auto", "defense=full"]
    status, out, _ = told(capsys, *words, "--memory", "80")
    assert status == 1
    assert "set model.dtype=float32" in out


@pytest.mark.parametrize("word", ["dataset.max_tokens=1", "dataset.samples=0"])
def test_a_plan_refuses_pairs_that_a_run_refuses(folder, capsys, word):
    words = ["experiment=quickstart_llm", "model=hf", f"model.path={folder}", "defense=lora", word]
    status, out, _ = told(capsys, *words)
    assert status == 1
    assert f"{word}: must be at least" in out


def test_a_plan_of_a_model_that_is_not_at_hand_asks_for_its_config(tmp_path, capsys, monkeypatch):
    read, asked = AutoConfig.from_pretrained, []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **more: asked.append(args) or read(*args, **more))
    words = ["experiment=quickstart_llm", "model=hf", f"model.path={tmp_path}", "defense=none,lora,spin"]
    status, out, _ = told(capsys, *words, "--memory", "80")
    assert status == 1
    assert asked == [(str(tmp_path),)]  # not once an arm: each time the hub would be waited for
    assert out.count("its config.json cannot be had") == 1
    assert f"hf, none; hf, lora; hf, spin: model.path={tmp_path}: its config.json" in out
    assert "needs no weights" in out
    assert "In all" not in out  # nothing is known


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset=german", "seed=0,1,2"], (0, "3 cells of classifiers", "")),
        (["dataset=german", "--memory", "0"], (2, "", "--memory 0.0: must be above 0")),
        (["experiment=quickstart_llm", "defence=lora"], (2, "", "did you mean 'defense'")),
    ],
)
def test_a_plan_of_classifiers_is_short_and_wrong_words_are_named(words, expected, capsys):
    status, out, err = told(capsys, *words)
    assert status == expected[0]
    assert expected[1] in out
    assert expected[2] in err
