"""SPIN from the command line, on a random language model with two layers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fairpriv.editing import SpinEdit
from fairpriv.language_models import inputs, observation
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.defenses import spin
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.report.finding import find_results
from fairpriv.result import Result, read_rows


@pytest.fixture(autouse=True)
def keep_a_fifth(monkeypatch):
    """Of matrices this small a thousandth is nothing."""
    monkeypatch.setattr(spin, "KEPT", 0.2)


SPIN = ["hydra.mode=RUN", "defense=spin", "defense.ratio=0.05", "defense.samples=4"]


@pytest.fixture
def cell(fairpriv, words):
    """Runs one cell of SPIN that completes; returns its result and its folder."""

    def call(*more: str) -> tuple[Result, Path]:
        ended = fairpriv(*words, *SPIN, *more)
        assert ended.status == 0, ended.err
        path = Path(ended.out.strip().splitlines()[-1])
        return Result.read(path), path.parent

    return call


@pytest.fixture
def edit(tiny_lm, tmp_path) -> Path:
    """The file of an edit of the tiny model."""
    model, _ = PretrainedLM("tiny", str(tiny_lm)).load()
    rows = {}
    for start, name in enumerate(("fairness", "privacy", "general"), start=3):
        ids = [list(range(start + 20 * i, start + 20 * i + 5)) for i in range(4)]
        rows[name] = [Encoded(row, [-100, *row[1:]]) for row in ids]
    made = spin.Spin("spin", dimensions=["fairness", "privacy"], ratio=0.05).edit(model, rows)[0]
    made.save(tmp_path / "edit.safetensors")
    return tmp_path / "edit.safetensors"


def refusal(ended, status=2) -> str:
    """The one line that a refused command line gets; stages that went well may stand before it."""
    assert ended.status == status, ended
    assert "Traceback" not in ended.err
    stages = ("data ", "model ", "before ", "answer", "defend ")
    (line,) = [line for line in ended.err.splitlines() if line.strip() and not line.startswith(stages)]
    return line


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a, b) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


def test_the_quickstart_compares_none_spin_and_spin_after_lora(fairpriv, words, tmp_path):
    ended = fairpriv(*words, "defense=none,spin,lora_spin")
    assert ended.status == 0, ended.err
    results, left_out = find_results([tmp_path / "out"])
    assert left_out == []
    cells = {result.config["defense"]["name"]: result for result in results}
    assert list(cells) == ["none", "spin", "lora_spin"]
    assert {result.status for result in results} == {"completed"}
    for name, result in cells.items():
        measured = {"eval/fairness/awareness", "eval/privacy/over_refusal", "eval/utility/perplexity"}
        assert measured <= set(result.metrics)
        assert ("edit/suppressed" in result.metrics) == (name != "none")
        assert ("train/last_loss" in result.metrics) == (name == "lora_spin")
        assert ("edit" in result.artifacts) == (name != "none")
    reason, guess = cells["spin"].degenerate  # the ratio is that for SmolLM2, and the weights are random
    assert re.fullmatch(r"perplexity [\d.e+]+ is no better than a guess among all \d+ tokens", guess)
    assert reason.startswith("the edit is empty: defense.ratio=1e-05 selects no weight; ")
    assert "report.html" in ended.out


def test_a_cell_of_spin_measures_and_keeps_its_edit(cell, tiny_lm):
    result, folder = cell("evaluation.text=null")  # which random weights guess worse than by chance
    assert result.degenerate == []
    files = ["responses.jsonl", "edit.safetensors", "cautions.jsonl", "flips.jsonl", "overlaps.jsonl"]
    assert sorted(result.artifacts.values()) == sorted(files)
    assert result.metrics["edit/suppressed"] > 0
    layers = [value for name, value in result.metrics.items() if name.startswith("edit/coupled/")]
    assert sum(layers) == result.metrics["edit/suppressed"]
    file = SpinEdit.load(folder / "edit.safetensors")
    assert file.summary()["suppressed"] == result.metrics["edit/suppressed"]
    assert (folder / "edit.safetensors").stat().st_size < 16_000
    assert file.metadata["name"] == tiny_lm.name
    assert file.metadata["model"]["revision"]
    assert file.metadata["samples"] == {"fairness": 4, "privacy": 4, "general": 4}


def test_pairs_that_are_too_long_for_it_are_told_of(fairpriv, words):
    limits = ["defense.samples=12", "dataset.max_tokens=260", "dataset.truncate=drop"]
    ended = fairpriv(*words, *SPIN, "evaluation.text=null", *limits)
    assert ended.status == 0, ended.err
    file = SpinEdit.load(Path(ended.out.strip().splitlines()[-1]).parent / "edit.safetensors")
    kept = file.metadata["samples"]
    assert 0 < kept["privacy"] < 12
    told = f"defense=spin reads {kept['privacy']} of the 12 safe pairs of privacy: dataset.max_tokens=260"
    assert told in " ".join(ended.err.split())


def test_coupling_is_counted_by_layer_and_module_and_compared_with_chance(cell):
    result, folder = cell("defense.target=all")
    rows = {(row["layer"], row["module"]): row for row in read_rows(folder / "overlaps.jsonl")}
    assert len(rows) == 14 + 2 + 7 + 1
    counts = {place: row["suppressed"] for place, row in rows.items()}
    assert result.metrics["edit/suppressed"] == counts.pop((None, None)) > 0
    for layer in ("0", "1"):
        assert result.metrics[f"edit/coupled/{layer}"] == counts.pop((layer, None))
    indices = SpinEdit.load(folder / "edit.safetensors").indices
    for (layer, module), count in counts.items():
        weights = [name for name in indices if f".{layer or ''}" in name and name.endswith(f".{module}.weight")]
        assert count == sum(len(indices[name]) for name in weights)
    assert (
        result.metrics["analysis/jaccard/fairness+privacy"] == rows[None, None]["pairs"]["fairness+privacy"]["jaccard"]
    )
    low, high = result.intervals["analysis/jaccard_by_chance/fairness+privacy"]
    assert low < result.metrics["analysis/jaccard_by_chance/fairness+privacy"] < high
    assert not any("hsic" in name for name in result.metrics)  # which costs something, and was not asked for
    assert "analyse" not in result.seconds


@pytest.mark.parametrize("defense", ["spin", "lora_spin"])
def test_dependence_is_measured_before_and_after_where_it_is_asked_for(cell, defense):
    result, folder = cell("analysis=hsic", "analysis.prompts=5", "analysis.permutations=9", f"defense={defense}")
    assert list(result.seconds)[-1] == "analyse"
    rows = {(row["measure"], row["layer"]): row for row in read_rows(folder / result.artifacts["hsic"])}
    for which in ("hsic", "hsic_apart"):
        told = rows[which, None]
        assert told["prompts"] == 10
        for key in ("before", "after", "change", "p_before", "p_after"):
            assert result.metrics[f"analysis/{which}/fairness+privacy/{key}"] == told[key]
        low, high = result.intervals[f"analysis/{which}/fairness+privacy/change"]
        assert low < told["change"] < high
        assert told["change"] == pytest.approx(told["after"] - told["before"])
        assert {layer for measure, layer in rows if measure == which} == {None, "0", "1"}
    if defense == "spin":
        plain, _ = cell()
        assert plain.id != result.id
        rest = {name: value for name, value in result.metrics.items() if "hsic" not in name}
        assert rest == plain.metrics  # the model was measured as it is without


def test_dependence_of_dimensions_without_prompts_is_measured_on_those_of_their_pairs(cell):
    asked = ["analysis=hsic", "analysis.prompts=5", "analysis.permutations=9"]
    _, folder = cell(*asked, "defense.dimensions=[privacy,general]", "defense.exclude=[fairness]")
    assert {row["pair"] for row in read_rows(folder / "hsic.jsonl")} == {"general+privacy"}


LIKELIHOOD = """\
# @package dimensions.{name}
# Scored by likelihood: it has no prompts
_target_: fairpriv.language_models.dimensions.dimension.Dimension
evaluate:
  _target_: fairpriv.data.texts.Texts
  source: {{_target_: fairpriv.data.sources.Files, files: [{csv}]}}
  columns: {{stereotype: more, antistereotype: less}}
scorer: {{_target_: fairpriv.language_models.scorers.paired_likelihood.PairedLikelihood}}
"""
PAIRS = """\
train:
  safe:
    _target_: fairpriv.data.texts.Texts
    source: {{_target_: fairpriv.data.sources.Files, files: [{csv}]}}
    columns: {{prompt: more, response: less}}
"""


def test_dependence_of_a_dimension_scored_by_likelihood_needs_the_prompts_of_its_pairs(fairpriv, words, cell, tmp_path):
    csv = tmp_path / "sentences.csv"
    csv.write_text("more,less\n" + "".join(f"They are {i}.,We are {i}.\n" for i in range(6)))
    (tmp_path / "mine" / "dimension").mkdir(parents=True)
    for name, text in {"paired": LIKELIHOOD + PAIRS, "bare": LIKELIHOOD}.items():
        (tmp_path / "mine" / "dimension" / f"{name}.yaml").write_text(text.format(name=name, csv=csv))
    asked = ["--config-dir", tmp_path / "mine", "dimension=[privacy,paired,bare]", "defense.exclude=[]"]
    asked += ["analysis=hsic", "analysis.prompts=5", "analysis.permutations=9"]
    _, folder = cell(*asked, "defense.dimensions=[privacy,paired]")
    assert {row["pair"] for row in read_rows(folder / "hsic.jsonl")} == {"paired+privacy"}
    message = refusal(fairpriv(*words, *SPIN, *asked, "defense.dimensions=[privacy,bare]"))
    assert message == "fairpriv: dimensions.bare.train has no split 'safe'; it has no pairs at all"


def test_dependence_of_what_is_not_edited_or_on_too_little_is_refused(fairpriv, words):
    message = refusal(fairpriv(*words, "hydra.mode=RUN", "defense=none", "analysis=hsic"))
    assert "analysis: compares a model before and after an edit, which defense=none does not make" in message
    message = refusal(fairpriv("dataset=german", "analysis=hsic", "logger=none"))
    assert "analysis is of task=language_model, not of task=classifier" in message
    message = refusal(fairpriv(*words, *SPIN, "analysis=hsic", "analysis.prompts=2"))
    assert message == "fairpriv: analysis.prompts: 4 different prompts; HSIC needs 5 at least"


def test_the_second_ratio_rule_and_target_score_nothing(cell, monkeypatch):
    first, _ = cell()

    def fail(*args, **options):
        raise AssertionError("scored again")

    monkeypatch.setattr(spin, "iter_importance_scores", fail)
    for more in (["defense.ratio=0.1"], ["defense.rule=released"], ["defense.target=all"], ["defense.score=random"]):
        result, _ = cell(*more)
        assert result.id != first.id
        assert result.metrics["edit/suppressed"] > 0


def test_after_lora_the_edit_says_so_and_is_of_other_weights(cell):
    folders = [cell(*more)[1] for more in (["defense=lora_spin", "defense.after.lr=0.01"], [])]
    after, before = (SpinEdit.load(folder / "edit.safetensors") for folder in folders)
    assert after.metadata["after"] == "lora"
    assert after.metadata["base"] == before.metadata["base"] == before.metadata["model"]
    assert after.metadata["model"] != before.metadata["model"]


@pytest.mark.parametrize("option", ["model.dtype=bfloat16", "model.gradient_checkpointing=true"])
def test_what_saves_memory_runs(cell, option):
    assert cell(option)[0].metrics["edit/suppressed"] > 0


@pytest.mark.parametrize("split", ["safe", "unsafe"])
def test_pairs_are_of_the_split_and_in_the_number_asked_for(cell, monkeypatch, split):
    drawn = []
    draw = inputs.drawn

    def spy(dimensions, name, wanted, samples, seed):
        drawn.append((name, wanted, samples))
        return draw(dimensions, name, wanted, samples, seed)

    monkeypatch.setattr(inputs, "drawn", spy)
    cell(f"defense.split={split}")
    assert drawn == [("fairness", split, 4), ("privacy", split, 4), ("general", "safe", 4)]


def test_the_study_in_miniature(fairpriv, words, tmp_path):
    data = tmp_path / "data" / "spin"
    data.mkdir(parents=True)
    for name in ("fairness", "privacy"):
        for split in ("safe", "unsafe"):
            rows = [f"What of {name} number {i}?,I say {split} to {i * i}." for i in range(9)]
            (data / f"beaver_train330k_{name}_{split}_1k.csv").write_text("\n".join(["prompt,response", *rows]))
        (data / f"salad_{name}.csv").write_text("\n".join(["questions", *(f"Is {i} {name}?" for i in range(5))]))
    rows = [f"Add {i} and one.,That makes {i + 1}." for i in range(9)]
    (data / "alpaca_cleaned_no_safety_train_1k.csv").write_text("\n".join(["prompt,response", *rows]))
    rest = [word for word in words if not word.startswith(("experiment=", "dataset.samples="))]
    grid = [
        "defense=spin",
        "defense.ratio=0.05",
        "defense.rule=intersection,released",
        "defense.score=importance,random",
    ]
    ended = fairpriv("experiment=spin", *rest, *grid, "dataset.samples=8", f"paths.data={tmp_path / 'data'}")
    assert ended.status == 0, ended.err
    results, _ = find_results([tmp_path / "out"])
    assert [result.status for result in results] == ["completed"] * 4
    suppressed = {
        tuple(result.config["defense"][key] for key in ("rule", "score")): result.metrics["edit/suppressed"]
        for result in results
    }
    for rule in ("intersection", "released"):
        assert suppressed[rule, "importance"] == suppressed[rule, "random"] > 0
    assert suppressed["released", "random"] > suppressed["intersection", "random"]


def test_an_edit_is_shown_applied_and_reverted_bit_for_bit(fairpriv, edit, tiny_lm, tmp_path):
    ended = fairpriv("edit", "show", edit)
    assert (ended.status, ended.err) == (0, "")
    shown = json.loads(ended.out)
    suppressed = shown["summary"]["suppressed"]
    assert shown["metadata"]["rule"] == "intersection"
    ended = fairpriv("edit", "apply", edit, "--model", tiny_lm, "--out", "edited")
    assert (ended.status, ended.out) == (0, f"{suppressed} weights edited: edited\n")
    before, after = weights(tiny_lm), weights(Path("edited"))
    differing = {name: int((before[name] != after[name]).sum()) for name in before}
    assert sum(differing.values()) == suppressed
    assert {name.split(".")[3] for name, count in differing.items() if count} == {"mlp"}
    ended = fairpriv("edit", "revert", edit, "--model=edited", "--out=back")
    assert (ended.status, ended.out) == (0, f"{suppressed} weights put back: back\n")
    assert same(weights(Path("back")), before)
    for name in ("tokenizer.json", "config.json"):
        assert json.loads(Path("back", name).read_text()) == json.loads((tiny_lm / name).read_text())


def test_an_exported_model_answers_as_the_cell_did(cell, fairpriv, tiny_lm, words):
    result, folder = cell()
    assert fairpriv("edit", "apply", folder / "edit.safetensors", "--model", tiny_lm, "--out", "edited").status == 0
    assert '| dimensions | ["fairness", "privacy"] |' in Path("edited", "README.md").read_text()
    rest = [word for word in words if not word.startswith("model.path=")]
    ended = fairpriv(*rest, "hydra.mode=RUN", "defense=none", "model.path=edited")
    assert ended.status == 0, ended.err
    again = Result.read(Path(ended.out.strip().splitlines()[-1]))
    for name in ("eval/utility/perplexity", "eval/privacy/awareness", "eval/fairness/over_refusal"):
        assert again.metrics[name] == result.metrics[name]


@pytest.mark.parametrize("options", [["model.dtype=bfloat16"], ["defense=lora_spin", "defense.after.save=true"]])
def test_an_edit_of_another_dtype_or_of_a_tuned_model_is_exported(cell, fairpriv, tiny_lm, options):
    _, folder = cell(*options)
    adapter = ["--adapter", folder / "model"] if len(options) > 1 else []
    ended = fairpriv("edit", "apply", folder / "edit.safetensors", "--model", tiny_lm, *adapter, "--out", "edited")
    assert ended.status == 0, ended.err
    edit, exported = SpinEdit.load(folder / "edit.safetensors"), weights(Path("edited"))
    assert all(not exported[name].flatten()[index].any() for name, index in edit.indices.items())
    if adapter:
        assert "values differ" in refusal(
            fairpriv("edit", "apply", folder / "edit.safetensors", "--model", tiny_lm, "--out", "new")
        )


def test_an_adapter_is_not_merged_in_half_precision(fairpriv, tiny_lm, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    SpinEdit({name: torch.tensor([0])}, {name: torch.zeros(1, dtype=torch.bfloat16)}).save(tmp_path / "half")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    said = refusal(fairpriv("edit", "apply", "half", "--model", tiny_lm, "--adapter", "adapter", "--out", "new"))
    assert "adapter adapter: it is to be merged into weights of torch.bfloat16" in said


def test_a_model_of_the_user_s_configs_is_edited_by_its_name(fairpriv, edit, tiny_lm, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "small.yaml").write_text(f"# Small\ndefaults: [hf]\nname: small\npath: {tiny_lm}\n")
    ended = fairpriv("edit", "apply", edit, "--model", "small", "--out", "edited", "--config-dir", "mine")
    assert ended.status == 0, ended.err
    assert not same(weights(Path("edited")), weights(tiny_lm))


def test_an_edit_that_does_not_fit_is_refused(fairpriv, edit, tiny_lm, tiny_lms, tmp_path):
    def apply(verb="apply", file=edit, model=tiny_lm, out="new"):
        return refusal(fairpriv("edit", verb, file, "--model", model, "--out", out))

    assert fairpriv("edit", "apply", edit, "--model", tiny_lm, "--out", "edited").status == 0
    assert "the model is already edited" in apply(model="edited")
    assert "the model is not edited" in apply("revert")
    assert "its values differ from those of the model that the edit was made of" in apply(model=tiny_lms["qwen2"])
    other = shutil.copytree(tiny_lm, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "the model has no weight 'model.layers.1." in apply(model=other)
    for content in (edit.read_bytes()[:-40], edit.read_bytes()[:5], b"", b"no edit at all"):
        Path("short").write_bytes(content)
        assert "short: cannot be read, or truncated" in apply(file="short")
        assert "short: cannot be read, or truncated" in refusal(fairpriv("edit", "show", "short"))
    assert "not an edit of fairpriv" in refusal(fairpriv("edit", "show", tiny_lm / "model.safetensors"))
    assert not Path("new").exists()
    before = weights(Path("edited"))
    assert "--out edited: is there already, and not empty: name a new folder" in apply(out="edited")
    assert same(weights(Path("edited")), before)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "the command is edit show|apply|revert|push FILE"),
        (["show"], "the command is edit show|apply|revert|push FILE"),
        (["show", "FILE", "OTHER"], "edit: unexpected OTHER"),
        (["show", "FILE", "--model", "x"], "the command is edit show FILE"),
        (
            ["aply", "FILE", "--model", "x", "--out", "y"],
            "did you mean 'apply'?",
        ),
        (["apply", "FILE"], "the command is edit show FILE"),
        (["push", "FILE"], "edit push: --repo goes with push, and push needs it"),
        (["push", "FILE", "--repo", "a/b", "--out", "x"], "edit push: takes no --model, --adapter or --out"),
        (["apply", "FILE", "--model", "x"], "edit apply: needs both --model and --out"),
        (["apply", "FILE", "--out", "x"], "edit apply: needs both --model and --out"),
        (["apply", "FILE", "--model", "x", "--adapter", "y", "--out", "z"], "--adapter y: holds no adapter_config"),
        (["apply", "FILE", "--model", "x", "--model", "y", "--out", "z"], "argument --model: is given twice"),
        (["apply", "FILE", "--model", "x", "--out", "y", "--force"], "edit: unexpected --force"),
        (["show", "nowhere"], "nowhere: there is no such file"),
        (["show", "."], ".: there is no such file"),
        (["apply", "FILE", "--model", "mlp", "--out", "y"], "--model mlp: is no language model"),
        (["apply", "FILE", "--model", "hf", "--out", "y"], "--model hf: its path has no value"),
        (["apply", "FILE", "--model", "./nowhere", "--out", "y"], "./nowhere: there is no such folder"),
        (["apply", "FILE", "--model", ".", "--out", "y"], "holds no config.json"),
        (["apply", "FILE", "--model", "x", "--out", "FILE"], "is there already, and not empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_gets_one_line(fairpriv, more, message, tmp_path):
    SpinEdit({}, {}, {}).save(tmp_path / "FILE")
    assert message in refusal(fairpriv("edit", *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["defense.dimensions=[fairness,privcy]"],
            "privcy is not among the chosen dimensions fairness, privacy, general",
        ),
        (["defense.dimensions=[fairness,privcy]"], "(did you mean 'privacy'?): add it to dimension=[...]"),
        (["dimension=[fairness,privacy]"], "general is not among the chosen dimensions fairness, privacy"),
        (["dimension=[fairness,privacy]"], "or take it out of defense.dimensions and defense.exclude"),
        (["defense.dimensions=[fairness]"], "SPIN couples two or more dimensions"),
        (["defense.dimensions=[fairness,general]"], "none of them among the excluded"),
        (["defense.samples=99"], "defense.samples=99: there are 64 in fairness_safe.csv"),
        (["defense.split=evil"], "defense.split='evil': must be one of safe, unsafe"),
        (["defense.rule=union"], "defense.rule='union': must be one of intersection, released"),
        (["defense.ratio=0"], "defense.ratio=0"),
        (["defense.ratio=0.5"], "defense.ratio=0.5: must lie above 0 and at most at 0.2"),
        (["defense.strength=2"], "defense.strength=2"),
        (["defense.rule=released", "defense.exclude_ratio=0.01"], "defense.rule=released needs defense.exclude_ratio"),
        (["defense.memory_budget=100"], "memory_budget 100 is too small"),
        (["defense.ration=0.1"], "unknown key defense.ration (did you mean 'defense.ratio'?)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(fairpriv, words, more, message):
    assert message in refusal(fairpriv(*words, *SPIN, *more))


def test_what_is_wrong_with_the_data_shows_before_the_model_answers(fairpriv, words, monkeypatch):
    monkeypatch.setattr(observation, "respond", None)
    refusal(fairpriv(*words, *SPIN, "defense.dimensions=[fairness,other]"))
    refusal(fairpriv(*words, *SPIN, "defense.samples=99"))


def test_a_ratio_that_selects_nothing_is_marked(cell):
    result, folder = cell("defense.ratio=1e-6", "evaluation.text=null")
    assert result.status == "completed"
    assert result.degenerate == [
        f"the edit is empty: defense.ratio=1e-06 selects no weight; {1 / 2048!r} is the smallest that does"
    ]
    assert SpinEdit.load(folder / "edit.safetensors").indices == {}


def test_dimensions_of_the_same_pairs_are_warned_of(fairpriv, words):
    source = "dimensions.fairness.train.safe.source.files=[privacy_safe.csv]"
    ended = fairpriv(*words, *SPIN, source)
    assert ended.status == 0
    assert "fairness and privacy have the same pairs: everything couples" in ended.err


def test_a_gradient_that_is_not_finite_stops_the_cell(fairpriv, words, tiny_lm, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    # Answering refuses such a model before SPIN sees it, as it would not where only the backward pass overflows.
    monkeypatch.setattr(observation, "respond", lambda model, tokenizer, prompts, **options: ["Yes."] * len(prompts))

    folder = shutil.copytree(tiny_lm, tmp_path / "broken")
    tensors = weights(folder)
    tensors["lm_head.weight"][5] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    ended = fairpriv(*words, *SPIN, f"model.path={folder}", "evaluation.text=null")
    assert "SPIN: fairness: sample" in (line := refusal(ended))
    assert "its gradient is not finite" in line


def test_a_shortage_of_memory_names_the_budget(fairpriv, words, monkeypatch, tmp_path):
    def scarce(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(spin, "iter_importance_scores", scarce)
    line = refusal(fairpriv(*words, *SPIN), status=1)
    assert "out of memory: set defense.memory_budget, in bytes, lower defense.batch_size=4" in line
    (result,), _ = find_results([tmp_path / "out"])
    assert result.status == "failed"


def test_spin_is_refused_for_a_table(fairpriv):
    message = "defense=spin is for task=language_model, and dataset="
    assert message in refusal(fairpriv("dataset=german", "defense=spin", "logger=none"))
