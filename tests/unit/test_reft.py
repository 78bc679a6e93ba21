"""LoReFT: the intervention itself, where it acts, and the model around it."""

import copy
import functools
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MambaConfig, Qwen2Config

from fairpriv.errors import InputError
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.models.reft import LoReFT, LoReFTConfig, ReftModel, decoder_layers, prompt_positions

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SIZES),
}
PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [21, 22, 23, 24], [31]]
RESPONSES = [[40, 41], [42, 43, 44, 45], [46], [47, 48, 49]]


def language_model(family: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], dtype=dtype)
    with torch.no_grad():  # the usual 0.02 makes every hidden state and every argmax alike
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.4)
    return model.eval()


def reft_model(family: str = "llama", dtype: torch.dtype = torch.float32, **config) -> ReftModel:
    model = language_model(family, dtype)
    torch.manual_seed(1)
    return ReftModel(model, LoReFTConfig(**{"rank": 3, **config})).eval()


def padded(side: str, rows: list[list[int]], responses: list[list[int]] | None = None) -> dict[str, torch.Tensor]:
    """Rows of different lengths as one batch; with responses, rows are prompts and responses their targets."""
    responses = responses or [[] for _ in rows]
    width = max(len(p) + len(r) for p, r in zip(rows, responses, strict=True))
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, response in zip(rows, responses, strict=True):
        n = width - len(prompt) - len(response)
        for name, pad, values in (
            ("input_ids", 0, prompt + response),
            ("attention_mask", 0, [1] * (width - n)),
            ("labels", -100, [-100] * len(prompt) + response),
        ):
            batch[name].append([pad] * n + values if side == "left" else values + [pad] * n)
    tensors = {name: torch.tensor(values) for name, values in batch.items()}
    if not any(responses):
        del tensors["labels"]
    return tensors


def expected_positions(batch: dict[str, torch.Tensor], lengths: list[int], first: int, last: int) -> set:
    """Rows and columns by counting in each row's own tokens."""
    chosen = set()
    for row, length in enumerate(lengths):
        start = batch["attention_mask"][row].tolist().index(1)
        of_prompt = [i for i in range(length) if i < first or i >= length - last]
        chosen |= {(row, start + i) for i in of_prompt}
    return chosen


def layer_outputs(model: nn.Module, call) -> list[torch.Tensor]:
    """What every decoder layer hands on, hooks that came before included."""
    outputs: list[torch.Tensor] = []

    def keep(layer, args, output):
        outputs.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    handles = [layer.register_forward_hook(keep) for layer in decoder_layers(model)]
    call()
    for handle in handles:
        handle.remove()
    return outputs


def changed(before: torch.Tensor, after: torch.Tensor) -> set:
    """Rows and columns whose hidden state is another, by more than rounding: none."""
    return {tuple(place) for place in (before != after).any(-1).nonzero().tolist()}


def randomised(reft: ReftModel) -> ReftModel:
    """Interventions far from where they started."""
    torch.manual_seed(2)
    for parameter in reft.trainable_parameters():
        parameter.data += torch.randn_like(parameter)
    return reft


# --- the intervention ---


def test_r_has_orthonormal_rows_before_and_after_steps_with_weight_decay():
    torch.manual_seed(0)
    intervention = LoReFT(16, 4)
    start = intervention.rotation.weight.detach().clone()
    assert torch.allclose(start @ start.T, torch.eye(4), atol=1e-5)
    optimiser = torch.optim.AdamW(intervention.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        (intervention(torch.randn(8, 16)) - 1).square().mean().backward()
        optimiser.step()
    R = intervention.rotation.weight.detach()
    assert torch.allclose(R @ R.T, torch.eye(4), atol=1e-5)
    assert not torch.allclose(R, start, atol=0.05)


def test_r_starts_in_no_preferred_direction():
    torch.manual_seed(0)
    squares = torch.stack([LoReFT(8, 2).rotation.weight.detach().square() for _ in range(200)])
    assert torch.allclose(squares.mean(0), torch.full((2, 8), 1 / 8), atol=0.04)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_the_formula_is_that_of_the_paper(rank):
    torch.manual_seed(0)
    intervention, h = LoReFT(16, rank), torch.randn(2, 3, 16)
    W, b, R = intervention.source.weight, intervention.source.bias, intervention.rotation.weight
    expected = torch.stack(
        [torch.stack([x + R.T @ (W @ x + b - R @ x) for x in row]) for row in h]  # one vector at a time
    )
    assert torch.allclose(intervention(h), expected, atol=1e-4)  # of float32, of order 1


def test_it_is_the_identity_when_w_is_r_and_b_is_zero_and_a_projection_when_w_is_zero():
    torch.manual_seed(0)
    intervention, h = LoReFT(16, 4), torch.randn(5, 16)
    R = intervention.rotation.weight.detach().clone()
    with torch.no_grad():
        intervention.source.weight.copy_(R)
        intervention.source.bias.zero_()
    assert torch.allclose(intervention(h), h, atol=1e-4)
    with torch.no_grad():
        intervention.source.weight.zero_()
    assert not torch.allclose(intervention(h), h, atol=0.1)
    assert torch.allclose(intervention(h) @ R.T, torch.zeros(5, 4), atol=1e-5)


def test_parameters_stay_float32_under_conversion_and_autocast():
    torch.manual_seed(0)
    intervention, h = LoReFT(16, 4), torch.randn(5, 16)
    expected = intervention(h.bfloat16().float())
    intervention.to(torch.bfloat16)
    assert {p.dtype for p in intervention.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(intervention(h.bfloat16().float()), expected)
    assert torch.equal(intervention(h.bfloat16()), expected.bfloat16())


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    intervention, h = LoReFT(16, 4, dropout=0.5), torch.randn(50, 16)
    assert 0.3 < (intervention(h) == 0).float().mean() < 0.7
    assert (intervention.eval()(h) != 0).all()


# --- where it acts ---


@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 0), (0, 2), (3, 3)])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("labelled", [True, False])
def test_positions_are_counted_in_each_rows_own_prompt(first, last, side, labelled):
    batch = padded(side, PROMPTS, RESPONSES)
    lengths = [len(p) + (0 if labelled else len(r)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    chosen = prompt_positions(
        batch["attention_mask"].bool(), batch["labels"] if labelled else None, first=first, last=last
    )
    assert {tuple(place) for place in chosen.nonzero().tolist()} == expected_positions(batch, lengths, first, last)


def test_the_prompt_ends_at_the_first_target_whatever_follows():
    labels = torch.tensor([[-100, -100, 7, 8, -100, -100, 9]])
    chosen = prompt_positions(torch.ones(1, 7, dtype=torch.bool), labels, first=9, last=9)
    assert chosen.tolist() == [[True, True, False, False, False, False, False]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 0), (0, 3)])
def test_only_the_chosen_layers_and_positions_change(family, side, first, last):
    batch = padded(side, PROMPTS, RESPONSES)
    plain = language_model(family)
    before = layer_outputs(plain, lambda: plain(**batch))
    reft = reft_model(family, layers=[-2], first=first, last=last)
    after = layer_outputs(reft.model, lambda: reft(**batch))
    expected = expected_positions(batch, [len(p) for p in PROMPTS], first, last)
    assert changed(before[0], after[0]) == set()
    assert changed(before[1], after[1]) == expected
    assert changed(before[2], after[2]) > expected  # the next layer attends to them
    rows, columns = zip(*sorted(expected), strict=True)
    [intervention] = reft.interventions.values()
    assert torch.allclose(after[1][rows, columns], intervention(before[1][rows, columns]), atol=1e-4)


def test_a_position_that_is_first_and_last_is_intervened_on_once():
    batch = padded("right", [[7]])
    plain = language_model()
    before = layer_outputs(plain, lambda: plain(**batch))
    reft = reft_model(layers=[1], first=4, last=4)
    after = layer_outputs(reft.model, lambda: reft(**batch))
    assert torch.allclose(after[1], reft.interventions["1"](before[1]), atol=1e-4)


def test_a_layer_may_return_a_tuple():
    expected = reft_model()(**padded("left", PROMPTS)).logits
    model = language_model()
    for layer in decoder_layers(model):  # as older models do
        layer.register_forward_hook(lambda layer, args, output: (output, "more"))
    torch.manual_seed(1)
    reft = ReftModel(model, LoReFTConfig(rank=3)).eval()

    def unpack(layer, args, output):
        hidden, more = output
        assert more == "more"
        return hidden

    for layer in decoder_layers(model):
        layer.register_forward_hook(unpack)
    assert torch.equal(reft(**padded("left", PROMPTS)).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_row_depends_on_no_padding_and_no_other_row(family):
    reft = randomised(reft_model(family, first=2, last=2))
    alone = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        alone.append(reft(**padded("right", [prompt], [response])).loss * len(response))
    expected = torch.stack(alone).sum() / sum(map(len, RESPONSES))
    assert not torch.allclose(expected, language_model(family)(**padded("right", PROMPTS, RESPONSES)).loss, atol=0.05)
    for side in ("left", "right"):
        assert torch.allclose(reft(**padded(side, PROMPTS, RESPONSES)).loss, expected, atol=1e-5)


@torch.no_grad()
def test_a_call_that_extends_a_cache_is_not_intervened_on():
    reft, plain = reft_model(), language_model()
    past = plain(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
    step = torch.tensor([[3]])
    expected = plain(step, past_key_values=copy.deepcopy(past)).logits
    assert torch.equal(reft(step, past_key_values=past).logits, expected)


def test_what_no_position_can_be_found_for_is_refused():
    reft, ids = reft_model(), torch.tensor([PROMPTS[0]])
    with pytest.raises(ValueError, match=r"mask of \[1, 5\].*\[1, 1, 5, 5\]"):
        reft(ids, attention_mask=torch.ones(1, 1, 5, 5))
    with pytest.raises(RuntimeError, match="call the causal LM"):
        reft.model.model(ids)
    half = [lambda ids, scores: reft(ids[:3]).logits[:, -1]]
    with pytest.raises(RuntimeError, match="3 rows in a step that generates for 4 prompts"):
        reft.generate(**padded("left", PROMPTS), max_new_tokens=2, logits_processor=half)


# --- generation ---


def greedy(reft: ReftModel, prompt: list[int], steps: int) -> list[int]:
    """No cache, no padding, no ``generate``: the labels say where the prompt ends."""
    ids = list(prompt)
    for _ in range(steps):
        labels = torch.tensor([[-100] * len(prompt) + ids[len(prompt) :]])
        ids.append(int(reft(torch.tensor([ids]), labels=labels).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_in_a_padded_batch_is_a_plain_greedy_loop_over_one_row(family, use_cache):
    reft = randomised(reft_model(family, first=2, last=2))
    batch = padded("left", PROMPTS)
    ids = reft.generate(**batch, max_new_tokens=8, do_sample=False, use_cache=use_cache)
    expected = [greedy(reft, prompt, 8) for prompt in PROMPTS]
    assert ids[:, batch["input_ids"].shape[1] :].tolist() == expected
    one = reft.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=8, do_sample=False, use_cache=use_cache)
    assert one[0, len(PROMPTS[1]) :].tolist() == expected[1]
    plain = language_model(family).generate(**batch, max_new_tokens=8, do_sample=False)
    assert (ids != plain).any(1).sum() >= 3  # it does intervene


def test_beams_repeat_the_positions_of_their_prompt():
    reft = randomised(reft_model(first=2, last=1))
    how = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    together = reft.generate(**padded("left", PROMPTS), **how)[:, -5:]
    assert torch.equal(reft.generate(**padded("left", PROMPTS), **how, use_cache=False)[:, -5:], together)
    alone = [reft.generate(torch.tensor([prompt]), **how)[:, -5:] for prompt in PROMPTS]
    assert torch.equal(torch.cat(alone), together)


def test_a_prefill_in_chunks_is_intervened_on_as_a_whole_one():
    reft, batch = randomised(reft_model(first=2, last=2)), padded("left", PROMPTS)
    how = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(reft.generate(**batch, **how, prefill_chunk_size=2), reft.generate(**batch, **how))


def test_after_generation_a_call_has_its_own_prompt_again():
    reft, batch = reft_model(), padded("left", PROMPTS)
    before = reft(**batch).logits
    reft.generate(torch.tensor([[1, 2, 3, 4, 5, 6, 7]]), max_new_tokens=2, do_sample=False)
    with pytest.raises(ValueError, match="max_new_tokens"):
        reft.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=-1)
    assert torch.equal(reft(**batch).logits, before)


# --- training ---


def gradients(reft: ReftModel, *batches) -> list[torch.Tensor]:
    reft.zero_grad()
    for batch in batches:
        reft(**batch).loss.backward()
    return [parameter.grad.clone() for parameter in reft.trainable_parameters()]


def test_gradients_reach_every_intervention_and_nothing_else():
    reft = reft_model().train()
    trainable = {id(p) for p in reft.trainable_parameters()}
    assert {id(p) for p in reft.parameters() if p.requires_grad} == trainable
    assert all(grad.abs().sum() > 0 for grad in gradients(reft, padded("right", PROMPTS, RESPONSES)))
    assert all(p.grad is None for p in reft.model.parameters())


def test_training_lowers_the_loss_and_leaves_the_model_alone():
    reft, batch = reft_model().train(), padded("right", PROMPTS, RESPONSES)
    before, start = copy.deepcopy(reft.model.state_dict()), reft(**batch).loss.item()
    optimiser = torch.optim.AdamW(reft.trainable_parameters(), lr=0.03)
    for _ in range(30):
        optimiser.zero_grad()
        loss = reft(**batch).loss
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.7 * start
    assert all(torch.equal(value, before[name]) for name, value in reft.model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(family, reentrant):
    batches = [padded("right", PROMPTS, RESPONSES), padded("left", RESPONSES, PROMPTS)]
    reft = reft_model(family).train()
    expected = gradients(reft, *batches)
    reft.activation_checkpointing_enable({"use_reentrant": reentrant})
    runs = []
    decoder_layers(reft.model)[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    for mine, theirs in zip(gradients(reft, *batches), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    assert len(runs) == 4  # two batches, forward and again in backward


def test_checkpointing_that_runs_the_hooks_again_gives_the_same_gradients(monkeypatch):
    batches = [padded("right", PROMPTS, RESPONSES), padded("left", RESPONSES, PROMPTS)]
    batches = [{**batch, "use_cache": False} for batch in batches]
    reft = reft_model().train()
    expected = gradients(reft, *batches)
    layer_class, runs = type(decoder_layers(reft.model)[0]), []
    plain = layer_class.__call__

    def checkpointed(layer, hidden, **kwargs):
        runs.append(layer)
        return checkpoint(functools.partial(plain, layer, **kwargs), hidden, use_reentrant=False)

    monkeypatch.setattr(layer_class, "__call__", checkpointed)
    interventions = []
    reft.interventions["1"].register_forward_pre_hook(lambda *_: interventions.append(1))
    for mine, theirs in zip(gradients(reft, *batches), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    assert len(runs) == 6
    assert len(interventions) == 4


def test_a_bfloat16_model_keeps_its_dtype_and_float32_interventions_learn():
    reft = reft_model(dtype=torch.bfloat16).train()
    batch = padded("right", PROMPTS, RESPONSES)
    assert reft.dtype == torch.bfloat16
    assert {p.dtype for p in reft.trainable_parameters()} == {torch.float32}
    assert {h.dtype for h in layer_outputs(reft.model, lambda: reft(**batch))} == {torch.bfloat16}
    before = [p.detach().clone() for p in reft.trainable_parameters()]
    optimiser = torch.optim.AdamW(reft.trainable_parameters(), lr=1e-5)  # lost if the parameters were bfloat16
    reft(**batch).loss.backward()
    optimiser.step()
    assert all(not torch.equal(p, q) for p, q in zip(reft.trainable_parameters(), before, strict=True))
    for intervention in reft.interventions.values():
        R = intervention.rotation.weight
        assert torch.allclose(R @ R.T, torch.eye(3), atol=1e-5)


# --- the model around it ---


def test_it_answers_as_the_model_it_wraps():
    reft = reft_model()
    batch = padded("left", PROMPTS)
    assert torch.equal(reft.model(batch["input_ids"], batch["attention_mask"]).logits, reft(**batch).logits)
    assert reft.config is reft.model.config
    assert reft.generation_config is reft.model.generation_config
    assert reft.device == torch.device("cpu")
    reft.activation_checkpointing_enable()
    assert reft.is_activation_checkpointing
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = reft.no_such_name


def test_a_call_of_the_wrapped_model_does_not_get_the_targets_of_an_earlier_one():
    reft, batch = reft_model(), padded("right", PROMPTS, RESPONSES)
    labels = batch.pop("labels")
    before = reft.model(**batch).logits
    assert not torch.equal(reft(**batch, targets=labels).logits, before)
    assert torch.equal(reft.model(**batch).logits, before)


def test_a_copy_intervenes_with_its_own_interventions():
    reft, batch = reft_model(), padded("left", PROMPTS)
    before = reft(**batch).logits
    twin = randomised(copy.deepcopy(reft))
    assert torch.equal(reft(**batch).logits, before)
    assert not torch.allclose(twin(**batch).logits, before, atol=0.01)


def test_remove_gives_the_model_back_bit_for_bit():
    model, batch = language_model(), padded("right", PROMPTS, RESPONSES)
    model.lm_head.requires_grad_(False)
    expected = model(**batch).logits
    reft = ReftModel(model, LoReFTConfig())
    assert not torch.allclose(model(**batch).logits, expected, atol=0.01)
    reft.remove()
    assert torch.equal(model(**batch).logits, expected)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("family", "rank"), [("llama", 3), ("qwen2", 1), ("gpt_neox", 16)])
def test_a_saved_adapter_gives_the_same_outputs_on_a_fresh_model(family, rank, tmp_path):
    reft, batch = reft_model(family, rank=rank, layers=[0, -1], first=2, last=0), padded("left", PROMPTS)
    randomised(reft)
    reft.save_pretrained(tmp_path / "adapter")
    again = ReftModel.from_pretrained(language_model(family), tmp_path / "adapter").eval()
    assert torch.equal(again(**batch).logits, reft(**batch).logits)
    assert again.reft_config == LoReFTConfig(rank=rank, layers=[0, 2], first=2, last=0)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "reft_config.json",
        "reft_model.safetensors",
    ]
    held = sum(tensor.numel() for tensor in load_file(tmp_path / "adapter" / "reft_model.safetensors").values())
    assert held == 2 * (2 * rank * 16 + rank)  # R, W and b of two layers


def damage(folder, kind: str) -> None:
    settings, weights = folder / "reft_config.json", folder / "reft_model.safetensors"
    if kind == "absent":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-20])
    elif kind == "no JSON":
        settings.write_text("{")
    elif kind == "another file":
        settings.write_text("[]")
    else:
        settings.write_text(json.dumps({**json.loads(settings.read_text()), **json.loads(kind)}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", r"no ReFT adapter .*reft_model\.safetensors: No such file"),
        ("truncated", "cannot be read, truncated perhaps"),
        ("no JSON", "cannot be read, truncated perhaps"),
        ("another file", "not the settings of a ReFT adapter"),
        ('{"colour": 1}', "not the settings of a ReFT adapter.*colour"),
        ('{"hidden_size": 32}', "a ReFT adapter for hidden_size 32; this model has 16"),
        ('{"num_hidden_layers": 30}', "a ReFT adapter for num_hidden_layers 30; this model has 3"),
        ('{"rank": 2}', "does not hold the layers and rank"),
        ('{"layers": [0, 2]}', "does not hold the layers and rank"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_the_model_as_it_was(tmp_path, kind, message):
    reft_model(layers=[0, 1]).save_pretrained(tmp_path)
    damage(tmp_path, kind)
    model, ids = language_model(), torch.tensor([PROMPTS[0]])
    expected = model(ids).logits
    with pytest.raises(InputError, match=message):
        ReftModel.from_pretrained(model, tmp_path)
    assert torch.equal(model(ids).logits, expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"first": -1}, "first is -1"),
        ({"first": 0, "last": 0}, "one of them above 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"layers": "some"}, '"all" or a list'),
        ({"layers": []}, '"all" or a list'),
        ({"layers": [0.5]}, '"all" or a list'),
        ({"layers": [3]}, "layers has 3; the model's 3 layers are -3 to 2"),
        ({"layers": [-4]}, "layers has -4"),
        ({"layers": [2, -1]}, "twice"),
        ({"rank": 17}, "rank is 17, more than the model's hidden size 16"),
    ],
)
def test_values_out_of_range_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        reft_model(**config)


def test_a_model_that_goes_on_from_a_state_is_refused():
    """It tells no call how much was read before: positions of the prompt would be looked for in the answer."""
    sizes = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2}
    with pytest.raises(InputError, match=r"MambaForCausalLM goes on from a state.* choose another defence"):
        ReftModel(AutoModelForCausalLM.from_config(MambaConfig(**sizes)), LoReFTConfig())


def test_a_defence_refuses_a_model_that_the_adapter_does_not_fit_before_it_is_measured():
    tuning = SupervisedTuning("reft", LoReFTConfig(rank=17))
    with pytest.raises(InputError, match="rank is 17, more than the model's hidden size 16"):
        tuning.check(language_model())
    with pytest.raises(InputError, match="LoReFT: layers has 3; the model's 3 layers are -3 to 2"):
        SupervisedTuning("reft", LoReFTConfig(layers=[3])).check(language_model())
    SupervisedTuning("reft", LoReFTConfig()).check(language_model())


def test_decoder_layers_are_found_by_the_configs_count_and_the_outermost_list_is_taken():
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=61, n_embd=16, n_layer=3, n_head=2, n_positions=32))
    assert decoder_layers(gpt2) is gpt2.transformer.h
    neox = language_model("gpt_neox")
    assert decoder_layers(neox) is neox.gpt_neox.layers
    llama = copy.deepcopy(language_model())  # the config of which others have, too
    llama.model.layers[0].mlp.experts = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    assert decoder_layers(llama) is llama.model.layers
    llama.config.num_hidden_layers = 7
    with pytest.raises(InputError, match=r"no nn\.ModuleList of its 7 decoder layers"):
        decoder_layers(llama)
    with pytest.raises(InputError, match="Linear has no"):
        decoder_layers(nn.Linear(2, 2))
