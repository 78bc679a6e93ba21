"""The study of planted trade-offs: what is planted is so by construction."""

import importlib.util
from pathlib import Path

import pytest
import torch

STUDY = Path(__file__).parents[2] / "experiments" / "planted"


@pytest.fixture(scope="module")
def planted():
    spec = importlib.util.spec_from_file_location("planted", STUDY / "planted.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(planted):
    return planted.plant(0.5, 0, planted.tasks(0), steps=3)


@pytest.mark.parametrize(("share", "both"), [(0.0, 0), (0.5, 48), (1.0, 96)])
def test_a_share_of_the_neurons_carries_both_behaviours(planted, share, both):
    own = planted.neurons(share)
    assert [int(own[name].sum()) for name in (planted.FIRST, planted.SECOND)] == [96, 96]
    assert int((own[planted.FIRST] & own[planted.SECOND]).sum()) == both


def test_routing_changes_no_output_and_lets_a_row_teach_its_own_neurons_only(planted, model):
    prompts, answers = planted.tasks(0)[planted.FIRST]
    prompts, answers = prompts[:4], answers[:4]
    own = planted.neurons(0.5)[planted.FIRST]
    noise = []
    with torch.no_grad():
        plain = model(input_ids=prompts).logits
    model.requires_grad_(True).zero_grad()
    with planted.routed(model, own.float().expand(4, 1, -1), (~own).float().expand(4, 1, -1), noise):
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


def test_frozen_entries_stay_as_they_are_while_others_are_tuned(planted, model):
    name = "model.layers.0.mlp.up_proj.weight"
    frozen = {name: torch.tensor([0, 77])}
    before = dict(model.named_parameters())[name].detach().flatten()
    after = dict(planted.tuned(model, planted.tasks(0)[planted.FIRST], frozen, 2).named_parameters())[name]
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
