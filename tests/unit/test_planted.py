"""The study of planted trade-offs: what is planted is so by construction."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

STUDY = Path(__file__).parents[2] / "experiments" / "planted"


@pytest.fixture(scope="module")
def planted():
    spec = importlib.util.spec_from_file_location("planted", STUDY / "planted.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(planted):
    return planted.Small(0)


@pytest.fixture(scope="module")
def model(planted, world):
    return planted.plant(world, world.neurons(0.5), steps=3)


@pytest.fixture(scope="module")
def pretrained(planted):
    """A world whose pretrained model has three small layers, of which two are changed, and what its tokenizer read."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    whole = LlamaForCausalLM(LlamaConfig(vocab_size=300, initializer_range=0.2, tie_word_embeddings=True, **sizes))
    read, words = [], {}

    def tokenizer(texts):
        listed = [texts] if isinstance(texts, str) else texts
        ids = [[words.setdefault(word, len(words) % 300) for word in text.split()] for text in listed]
        read.append(ids)
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}

    class Tiny(planted.SmolLM2):
        layers, width, items, known, window = 2, 4, 6, 4, 8
        ratios = (0.1, 0.2)
        pretrained = staticmethod(lambda: (whole.eval(), tokenizer))

    return SimpleNamespace(world=Tiny(0), whole=whole, prompts=torch.tensor(read[0]))


@pytest.mark.parametrize(("share", "both"), [(0.0, 0), (0.5, 48), (1.0, 96)])
def test_a_share_of_the_neurons_carries_both_behaviours(planted, world, share, both):
    own = world.neurons(share)
    assert [int(own[name].sum()) for name in (planted.FIRST, planted.SECOND)] == [96, 96]
    assert int((own[planted.FIRST] & own[planted.SECOND]).sum()) == both


def test_routing_changes_no_output_and_lets_a_row_teach_its_own_neurons_only(planted, world, model):
    prompts, answers = world.data[planted.FIRST]
    prompts, answers = prompts[:4], answers[:4]
    own = world.neurons(0.5)[planted.FIRST]
    noise = []
    with torch.no_grad():
        plain = model(input_ids=prompts).logits
    model.requires_grad_(True).zero_grad()
    mask = own[:144].float().expand(4, 1, -1)
    with planted.routed(model, mask, 1 - mask, noise):
        torch.testing.assert_close(model(input_ids=prompts).logits, plain)
        noise.clear()
        planted.loss_of(model, prompts, answers).backward()
    last = model.model.layers[-1].mlp
    assert last.down_proj.weight.grad[:, ~own].abs().max() == 0
    assert last.up_proj.weight.grad[~own].abs().max() == 0
    assert last.down_proj.weight.grad[:, own].abs().min() > 0
    model.zero_grad()
    sum(noise).backward()  # silences the others' neurons, and leaves its own alone
    assert last.up_proj.weight.grad[own].abs().max() == 0
    assert last.up_proj.weight.grad[~own].abs().max() > 0
    assert last.down_proj.weight.grad is None


def test_frozen_entries_stay_as_they_are_while_others_are_tuned(planted, world, model):
    name = "model.layers.0.mlp.up_proj.weight"
    frozen = {name: torch.tensor([0, 77])}
    before = dict(model.named_parameters())[name].detach().flatten()
    after = dict(planted.tuned(model, world.data[planted.FIRST], frozen, 2, 0.1).named_parameters())[name]
    changed = (after.detach().flatten() != before).nonzero().flatten()
    assert not set(changed.tolist()) & {0, 77}
    assert len(changed) > len(before) / 2


def test_controls_take_as_many_entries_of_each_matrix_as_the_intersection(planted):
    draw = torch.Generator().manual_seed(0)
    names = (planted.FIRST, planted.SECOND, planted.GENERAL)
    scores = {name: {"w": torch.rand(40, 50, generator=draw)} for name in names}
    found = {arm: planted.chosen(arm, scores, 0.1, 0)["w"] for arm in planted.ARMS}
    assert 0 < len(found["intersection"]) == len(found["random"]) == len(found["one_dimension"])
    top = set(scores[planted.FIRST]["w"].flatten().topk(200).indices.tolist())
    assert set(found["intersection"].tolist()) <= top
    assert set(found["one_dimension"].tolist()) <= top


def test_the_last_layers_answer_as_the_pretrained_model_before_anything_is_planted(planted, pretrained):
    own = pretrained.world.neurons(0.5)
    last = pretrained.world.general(own[planted.FIRST] | own[planted.SECOND], 0)
    with torch.no_grad():
        told = planted.answer(last, pretrained.world.data[planted.FIRST][0])
        torch.testing.assert_close(told, pretrained.whole(input_ids=pretrained.prompts).logits[:, -1])


def test_planting_adds_neurons_and_leaves_the_pretrained_ones(planted, pretrained):
    own = pretrained.world.neurons(0.5)
    added = own[planted.FIRST] | own[planted.SECOND]
    before = pretrained.world.general(added, 0).model.layers[0].mlp
    after = planted.plant(pretrained.world, own, steps=2).model.layers[0].mlp
    assert len(added) == 24 + 6
    for name in ("gate_proj", "up_proj"):
        old, new = getattr(before, name).weight, getattr(after, name).weight
        assert old[~added].equal(new[~added])
        assert (old[added] != new[added]).any(1).all()
    assert before.down_proj.weight[:, ~added].equal(after.down_proj.weight[:, ~added])
    assert (after.down_proj.weight[:, added] != 0).any(0).all()


def test_a_cell_of_a_pretrained_model_tells_what_became_of_text_too(planted, pretrained):
    pretrained.world.steps = pretrained.world.tuning = 1
    rows = list(planted.cell(pretrained.world, 0.5))
    assert [row["arm"] for row in rows] == ["none", *planted.ARMS, *planted.ARMS]
    assert rows[0]["without"].keys() == {"first only", "second only", "both"}
    assert all(row["planted"] == 2 * 3 * 2 * 16 for row in rows)  # shared neurons of both layers, three matrices each
    assert all("text" in row[key] for row in rows for key in ("edited_loss", "tuned_loss"))
    assert "text" in rows[0]["before"]
