"""SPIN's scores against an oracle that knows nothing but autograd.grad, one row at a time."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from fairpriv.functional import importance_scores
from fairpriv.functional.importance import matrices_of, require_apart

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
GROUPED = SIZES | {"num_key_value_heads": 2}
MODELS = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "gpt_neox": SIZES | {"rotary_pct": 0.5},
    "gemma": GROUPED | {"head_dim": 4},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 4, "vocab_size": 97},
}
LENGTHS = (7, 4, 9, 5, 6)


def make(kind="llama", dtype=torch.float32, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(MODELS[kind] | more)), dtype=dtype)
    for parameter in model.parameters():  # weights large enough for gradients to differ between layers
        nn.init.normal_(parameter, std=0.2)
    return model.train()


def samples(lengths=LENGTHS):
    g = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 97, (n,), generator=g) for n in lengths]
    return [(row, torch.where(torch.arange(len(row)) < 1 + i % 3, -100, row)) for i, row in enumerate(rows)]


def batched(rows, size=5, side="right", width=None):
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        length = width or max(len(ids) for ids, _ in part)
        batch = {"input_ids": torch.full((len(part), length), 96), "labels": torch.full((len(part), length), -100)}
        batch["attention_mask"] = torch.zeros(len(part), length, dtype=torch.long)
        for i, (ids, labels) in enumerate(part):
            span = slice(0, len(ids)) if side == "right" else slice(length - len(ids), length)
            batch["input_ids"][i, span], batch["labels"][i, span], batch["attention_mask"][i, span] = ids, labels, 1
        batches.append(batch)
    return batches


def of_target(name, target):
    if name.endswith("bias") or "norm" in name or (".layers." not in name and ".h." not in name):
        return False
    return {"all": True, "mlp": "mlp" in name, "self_attn": "attn" in name or "attention" in name}[target]


def oracle(model, rows, target="mlp"):
    model = copy.deepcopy(model).eval().requires_grad_(True)
    weights = {name: weight for name, weight in model.named_parameters() if of_target(name, target)}
    sums = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    for ids, labels in rows:
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        loss = cross_entropy(logits, labels[1:], ignore_index=-100)
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            sums[name] += gradient.abs().float()
    return {name: sums[name] / len(rows) * weights[name].detach().abs().float() for name in weights}


def difference(got, want):
    assert list(got) == list(want)
    assert all(score.dtype == torch.float32 and score.max() > 1e-5 for score in got.values())
    return max(float((got[name] - want[name]).abs().max() / want[name].max()) for name in want)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("target", ["mlp", "self_attn", "all"])
def test_scores_are_those_of_one_row_at_a_time(kind, target):
    model = make(kind)
    assert (
        difference(importance_scores(model, batched(samples()), target=target), oracle(model, samples(), target)) < 1e-4
    )


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing": True}, {"memory_budget": 6200}])
def test_batching_padding_groups_and_checkpointing_change_nothing(kind, side, size, how):
    model = make(kind)
    got = importance_scores(model, batched(samples(), size, side, width=11), target="all", **how)
    assert difference(got, oracle(model, samples(), "all")) < 1e-4


def test_right_padding_needs_no_attention_mask():
    model = make()
    batches = [{key: batch[key] for key in ("input_ids", "labels")} for batch in batched(samples())]
    want = oracle(model, samples())
    assert difference(importance_scores(model, batches), want) < 1e-4
    assert difference(importance_scores(model, [batch | {"attention_mask": None} for batch in batches]), want) < 1e-4


def test_the_first_token_after_left_padding_is_no_target():
    model = make()
    rows = [(ids, ids) for ids, _ in samples()]
    assert difference(importance_scores(model, batched(rows, side="left")), oracle(model, rows)) < 1e-4


def test_a_forward_that_takes_any_argument_is_given_the_attention_mask():
    model = make()
    forward, want = model.forward, oracle(model, samples())
    model.forward = lambda **given: forward(**given)
    assert difference(importance_scores(model, batched(samples(), side="left")), want) < 1e-4


def test_a_memory_budget_is_kept_by_several_passes_over_the_batches():
    model, passes = make(), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    batches = iter(batched(samples()))  # an iterator is gone after one pass
    one = 24 * 16 * 4
    got = importance_scores(model, batches, memory_budget=3 * one)  # two accumulators and a gradient
    assert len(passes) == 3
    assert difference(got, oracle(model, samples())) < 1e-4
    with pytest.raises(ValueError, match=rf"memory_budget {2 * one - 1} is too small: .* needs {2 * one} bytes"):
        importance_scores(model, batched(samples()), memory_budget=2 * one - 1)
    half = make(dtype=torch.bfloat16)  # its gradients take two bytes, the accumulators four
    assert len(importance_scores(half, batched(samples()[:1]), memory_budget=one + one // 2)) == 6


@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("share", ["layer", "weight"])
def test_a_weight_used_twice_is_summed_before_the_absolute_value(share, how):
    model = make()
    first, second = (layer.mlp for layer in model.model.layers)
    if share == "layer":
        second.up_proj = first.up_proj
    else:
        second.up_proj.weight = first.up_proj.weight
    got = importance_scores(model, batched(samples()), **how)
    assert len(got) == 5
    assert difference(got, oracle(model, samples())) < 1e-4


def test_a_number_within_a_block_begins_no_other_block():
    model = make()
    for layer in model.model.layers:
        layer.mlp.up_proj = nn.Sequential(layer.mlp.up_proj)
    assert difference(importance_scores(model, batched(samples())), oracle(model, samples())) < 1e-4


def test_a_wrapper_for_several_devices_is_removed():
    model = make()
    assert difference(importance_scores(nn.DataParallel(model), batched(samples())), oracle(model, samples())) < 1e-4


def test_a_call_that_has_no_part_in_the_loss_adds_nothing():
    model = make()
    mlp = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda _, inputs, output: (mlp.up_proj(inputs[0]), output)[1])
    assert difference(importance_scores(model, batched(samples())), oracle(model, samples())) < 1e-4


def test_a_hole_in_the_attention_mask_is_a_hole():
    model = make()
    batches = batched(samples())
    batches[0]["attention_mask"][2, 3] = 0
    batches[0]["labels"][2, 3:5] = -100
    want = []
    for i in range(5):
        row = {key: value[i : i + 1, : LENGTHS[i]] for key, value in batches[0].items()}
        loss = model.eval()(**row).loss
        weights = [model.model.layers[0].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight]
        want.append([gradient.abs() for gradient in torch.autograd.grad(loss, weights)])
    got = importance_scores(model, batches)
    for i in range(2):
        weight = model.model.layers[i].mlp.up_proj.weight.detach()
        expected = torch.stack([row[i] for row in want]).mean(0) * weight.abs()
        assert difference({i: got[f"model.layers.{i}.mlp.up_proj.weight"]}, {i: expected}) < 1e-4


def test_layers_that_work_in_place_are_scored():
    model = make()
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.ReLU(inplace=True)
    assert difference(importance_scores(model, batched(samples())), oracle(model, samples())) < 1e-4


def test_bfloat16_weights_accumulate_in_float32():
    model = make(dtype=torch.bfloat16)
    row = samples()[:1]
    one = importance_scores(model, batched(row))
    many = importance_scores(model, batched(row) * 400)  # a bfloat16 sum stops growing at 256 equal terms
    assert difference(many, one) < 1e-4
    got = importance_scores(model, batched(samples()))
    assert difference(got, oracle(model, samples())) < 0.05


def test_weights_of_more_precision_than_the_activations_are_scored():
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(importance_scores(model, batched(samples())), oracle(model, samples())) < 0.05


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing": True}])
def test_the_model_comes_back_as_it_was(fails, how):
    model = make()
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    wrapped = model.model.layers[1].forward = model.model.layers[1].forward  # as accelerate does
    before = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    batches = batched(samples(), 2)
    if fails:
        batches[1]["labels"][:] = -100  # the first of two is named
        with pytest.raises(ValueError, match=r"sample 2 \(row 0 of its batch\) has no target token"):
            importance_scores(model, batches, **how)
    else:
        importance_scores(model, batches, **how)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None if not p.requires_grad else bool((p.grad == 1).all()) for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.model.layers[1].forward is wrapped
    assert "forward" not in vars(model.model.layers[0])


@pytest.mark.parametrize("off", [torch.inference_mode, torch.no_grad])
def test_it_works_where_gradients_are_switched_off(off):
    model = make()
    with off():
        got = importance_scores(model, batched(samples()))
    assert difference(got, oracle(model, samples())) < 1e-4


def test_checkpointing_recomputes_every_block_once():
    model, calls = make(), []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    importance_scores(model, batched(samples()))
    assert len(calls) == 1
    importance_scores(model, batched(samples()), gradient_checkpointing=True)
    assert len(calls) == 3


def test_a_gradient_that_is_not_finite_names_its_sample():
    model = make()
    batches = batched(samples(), 3)
    batches[1]["input_ids"][0, 2] = 50
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = torch.inf
    assert not any((batch["input_ids"] == 50).any() for batch in batches[:1])
    with pytest.raises(FloatingPointError, match=r"sample 3 \(row 0 of its batch\)"):
        importance_scores(model, batches)


def test_a_gradient_that_overflows_its_dtype_is_refused():
    model = make(dtype=torch.float16)
    layer = model.model.layers[1].mlp.down_proj
    nn.init.normal_(layer.weight, std=1e-5)
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1e4,))
    model.lm_head.register_forward_hook(lambda _, inputs, output: output * 1e3)
    with pytest.raises(FloatingPointError, match=r"mlp\.\w+\.weight: a gradient overflowed torch.float16"):
        importance_scores(model, batched(samples()))


def tiny(kind, **sizes):
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](vocab_size=97, **sizes))


def test_architectures_that_cannot_be_scored_exactly_are_refused_by_name():
    conv = tiny("gpt2", n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match=r"h.0.mlp.c_fc: Conv1D cannot be scored exactly"):
        importance_scores(conv, batched(samples()))
    experts = tiny("mixtral", **{key: GROUPED[key] for key in GROUPED if key != "vocab_size"}, num_local_experts=2)
    with pytest.raises(ValueError, match=r"layers.0.mlp.\w+: Mixtral\w+ cannot be scored exactly"):
        importance_scores(experts, batched(samples()))


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_that_a_layer_is_given_as_one_are_scored_one_at_a_time(side):
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    flat = tiny("opt", **sizes, word_embed_proj_dim=16, init_std=0.2)
    batches = batched(samples(), 1, side, width=11)
    want = oracle(flat, samples(), "all")
    assert difference(importance_scores(flat, batches, target="all"), want) < 1e-4
    with pytest.raises(ValueError, match=r"fc2.weight: its layer is given \[45, 24\] for 5 rows.* one row a batch"):
        importance_scores(flat, batched(samples()))


@pytest.mark.parametrize("shape", [(5, 24), (45, 24), (10, 9, 24)])
def test_inputs_that_do_not_tell_five_rows_apart_are_refused(shape):
    require_apart("w", torch.zeros(5, 9, 24), 5)
    with pytest.raises(ValueError, match=rf"^w: its layer is given \[{shape[0]}, .* for 5 rows"):
        require_apart("w", torch.zeros(shape), 5)


def test_other_linear_layers_are_refused_by_name():
    class Linear8bitLt(nn.Module):  # keeps buffers, as quantised layers do
        pass

    model = make()
    model.model.layers[1].mlp.up_proj = Linear8bitLt()
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj: Linear8bitLt cannot be scored exactly"):
        importance_scores(model, batched(samples()))


def test_a_linear_layer_of_another_kind_of_weight_is_refused():
    class Params4bit(nn.Parameter):
        pass

    model = make()
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = Params4bit(layer.weight.detach())
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj: a Linear .* or a Params4bit, cannot be scored"):
        importance_scores(model, batched(samples()))


def test_an_embedding_within_a_block_is_no_linear_layer():
    model = make()
    want = oracle(model, samples())
    model.model.layers[0].mlp.places = nn.Embedding(4, 16)
    assert difference(importance_scores(model, batched(samples())), want) < 1e-4


@pytest.mark.parametrize(
    ("target", "name"),
    [
        *(("mlp", name) for name in ("mlp", "FeedForward", "feed_forward", "ffn", "ff", "fc1", "sparse_moe")),
        *(("self_attn", name) for name in ("self_attn", "SelfAttention", "attn")),
        *(("all", name) for name in ("proj", "coffee", "fc1_proj")),
    ],
)
def test_layers_are_chosen_by_their_names(target, name):
    model = nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({name: nn.Linear(2, 2)})])})
    for other in ("mlp", "self_attn", "all"):
        if other in (target, "all"):
            assert [*matrices_of(model, other)] == [f"h.0.{name}.weight"]
        else:
            with pytest.raises(ValueError, match=f"no linear layer in a decoder block that is of target '{other}'"):
                matrices_of(model, other)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers so
def test_an_adapter_must_be_merged_first():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make(), LoraConfig(r=2, target_modules=["up_proj"]))
    with pytest.raises(ValueError, match=r"^the model is an adapter .*: merge it first, with merge_and_unload\(\)"):
        importance_scores(model, batched(samples()))
    merged = model.merge_and_unload()
    assert difference(importance_scores(merged, batched(samples())), oracle(merged, samples())) < 1e-4


def test_a_layer_that_is_never_called_is_refused():
    model = make()
    model.model.layers[0].mlp.spare = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"spare.weight: its layer is never called"):
        importance_scores(model, batched(samples()))


def test_bad_arguments_are_refused():
    model = make()
    with pytest.raises(ValueError, match="target 'attention' must be one of mlp, self_attn, all"):
        importance_scores(model, batched(samples()), target="attention")
    with pytest.raises(ValueError, match="no samples"):
        importance_scores(model, [])
    with pytest.raises(ValueError, match="no linear layer in a decoder block"):
        importance_scores(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), batched(samples()))
    with pytest.raises(ValueError, match=r"must all be \[B, T\]"):
        importance_scores(model, [{"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2, 4).long()}])
    with pytest.raises(ValueError, match=r"must all be \[B, T\]"):
        importance_scores(model, [batched(samples())[0] | {"attention_mask": torch.ones(5, 4)}])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_says_what_to_change(error):
    def fail(*_):
        raise error

    model = make()
    model.model.register_forward_hook(fail)
    with pytest.raises(MemoryError, match="give memory_budget=BYTES"):
        importance_scores(model, batched(samples()))
