"""Log-likelihoods of continuations against one forward pass per row, token by token."""

import functools
import os

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from fairpriv.errors import InputError
from fairpriv.functional.cross_entropy import BLOCK
from fairpriv.language_models.data.tokens import NO_TARGET, PLAIN, Encoded, encode, encode_continuation
from fairpriv.language_models.engines.log_likelihood import _start, _summed, likelihoods, log_likelihoods
from fairpriv.language_models.models.reft import LoReFTConfig, ReftModel
from fairpriv.language_models.scorers.scorer import Subject


@functools.cache
def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def models(tiny_lms):
    """A random model by the name of its kind."""

    def make(kind):
        torch.manual_seed(0)
        if kind == "gpt2":
            return GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
        if kind == "lfm2":  # whose convolutions keep a state beside the cache
            config = Lfm2Config(
                vocab_size=90,
                hidden_size=16,
                block_ff_dim=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                layer_types=["conv", "full_attention"],
            )
            return Lfm2ForCausalLM(config).eval()
        if kind == "mistral":  # each position sees eight
            config = MistralConfig(
                vocab_size=90,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                sliding_window=8,
            )
            return MistralForCausalLM(config).eval()
        if kind == "reft":
            model = AutoModelForCausalLM.from_pretrained(tiny_lms["llama"], dtype=torch.float32)
            return ReftModel(model, LoReFTConfig(rank=2, first=2, last=2)).eval()
        return loaded(tiny_lms[kind])

    return make


@pytest.fixture
def tokenizer(tiny_lm):
    return AutoTokenizer.from_pretrained(tiny_lm)


def random_rows(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        before, after = (int(torch.randint(1, n, (), generator=draw)) for n in (30, 12))
        ids = torch.randint(3, 90, (before + after,), generator=draw).tolist()
        rows.append(Encoded(ids, [NO_TARGET] * before + ids[before:]))
    return rows


def one_by_one(model, row):
    """Each target's log-probability from a forward pass of its own row alone, unpadded."""
    ids = torch.tensor([row.input_ids])
    labels = {"labels": torch.tensor([row.labels])} if isinstance(model, ReftModel) else {}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **labels).logits[0].double()
    return sum(float(logits[i - 1].log_softmax(-1)[token]) for i, token in enumerate(row.labels) if token != NO_TARGET)


def choices(count):
    """Questions of 8 to 30 tokens, each with several answers of 1 to 6."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        before = torch.randint(3, 90, (int(torch.randint(8, 31, (), generator=draw)),), generator=draw).tolist()
        for _ in range(int(torch.randint(2, 5, (), generator=draw))):
            after = torch.randint(3, 90, (int(torch.randint(1, 7, (), generator=draw)),), generator=draw).tolist()
            rows.append(Encoded(before + after, [NO_TARGET] * len(before) + after))
    return rows


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gpt2", "lfm2", "reft"])
@pytest.mark.parametrize("batch_tokens", [1, 150, 9999])
def test_batches_give_what_each_row_alone_gives(models, kind, batch_tokens, monkeypatch):
    monkeypatch.setitem(BLOCK, "cpu", 7 * 90)
    model = models(kind).train()
    rows = [*random_rows(8), *choices(5)]
    found = log_likelihoods(model, [*rows, rows[3]], pad_id=0, batch_tokens=batch_tokens)
    assert model.training  # as it was before
    model.eval()
    expected = [one_by_one(model, row) for row in [*rows, rows[3]]]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert found[3] == found[-1]


def test_what_answers_have_in_common_is_read_once(models):
    model, rows, read = models("llama"), choices(6), []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(int(kwargs["input_ids"].numel())), with_kwargs=True
    )
    log_likelihoods(model, rows, pad_id=0, batch_tokens=9999)
    handle.remove()
    longest = max(_start(row.labels) for row in rows)
    assert read == [6 * longest, len(rows) * 5]  # padded questions, and answers without their last tokens


def test_likelihoods_tell_whether_the_targets_are_what_the_model_would_write(models):
    model = models("llama")
    prompt = list(range(3, 15))
    out = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    written = out[0, 12:].tolist()
    rows = [[*written], [*written[:2], (written[2] + 1) % 90], written[:1]]
    asked = [Encoded(prompt + row, [NO_TARGET] * 12 + row) for row in rows]
    assert [greedy for _, greedy in likelihoods(model, asked, pad_id=0, batch_tokens=999)] == [True, False, True]
    assert [likelihoods(model, [row], pad_id=0, batch_tokens=1)[0][1] for row in asked] == [True, False, True]


def test_equal_rows_are_computed_once_and_short_ones_share_a_batch(models):
    model, rows, shapes = models("llama"), random_rows(6), []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    log_likelihoods(model, rows * 3, pad_id=0, batch_tokens=256)
    handle.remove()
    assert [shape[0] for shape in shapes] == [6]
    assert all(rows * longest <= 2 * 128 for rows, longest in shapes)


def test_what_is_not_finite_is_an_error(tiny_lm):
    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(ValueError, match="log-likelihoods that are not finite"):
        log_likelihoods(model, random_rows(2), pad_id=0, batch_tokens=4)


def test_a_response_is_scored_as_it_is_trained_without_its_end_mark(tokenizer):
    asked = {"max_tokens": 100}
    whole = encode(tokenizer, "Who may see it?", "Only those who treat you.", truncate="drop", **asked)
    row = encode_continuation(tokenizer, "Who may see it?", "Only those who treat you.", **asked)
    assert whole.input_ids[: len(row.input_ids)] == row.input_ids
    assert whole.input_ids[len(row.input_ids) :] == [tokenizer.eos_token_id]
    assert whole.labels[: len(row.labels)] == row.labels


def test_a_plain_text_is_scored_from_its_first_word(tokenizer):
    plain = {"form": PLAIN, "max_tokens": 100}
    row = encode_continuation(tokenizer, "", "A nurse can be a man.", **plain)
    assert row.input_ids[0] == tokenizer.eos_token_id  # there is no BOS
    assert tokenizer.decode([label for label in row.labels if label != NO_TARGET]) == "A nurse can be a man."
    after = encode_continuation(tokenizer, "A nurse can be", " a man.", **plain)
    assert tokenizer.decode(after.input_ids) == "A nurse can be a man."
    assert tokenizer.decode([label for label in after.labels if label != NO_TARGET]) == " a man."


def test_a_long_prompt_loses_its_beginning_and_the_continuation_nothing(tokenizer):
    plain = {"form": PLAIN}
    prompt = "Who may see my medical file? " * 20
    short = encode_continuation(tokenizer, prompt, "Only those who treat you.", max_tokens=8, **plain)
    whole = encode_continuation(tokenizer, prompt, "Only those who treat you.", max_tokens=999, **plain)
    assert short.input_ids == whole.input_ids[-len(short.input_ids) :]
    assert short.labels.count(NO_TARGET) == 8
    with pytest.raises(InputError, match="has no tokens"):
        encode_continuation(tokenizer, prompt, "", max_tokens=8, **plain)


@pytest.mark.parametrize(("normalise", "length"), [("none", 1), ("tokens", None), ("characters", 9)])
def test_a_sum_is_divided_by_the_continuation_s_length_where_that_is_asked_for(tiny_lm, tokenizer, normalise, length):
    subject = Subject(loaded(tiny_lm), tokenizer)
    [value] = subject.log_likelihoods([("Who may see it?", " Only you.")], chat=False, normalise=normalise)
    row = encode_continuation(tokenizer, "Who may see it?", " Only you.", form=PLAIN, max_tokens=99)
    length = length or sum(label != NO_TARGET for label in row.labels)
    assert value == pytest.approx(one_by_one(subject.model, row) / length, rel=1e-5)


def test_rows_that_the_model_cannot_read_are_refused(models):
    model = models("gpt2")
    for row, message in (([1] * 66, "65 tokens do not fit into the model's 64 positions"), ([1, 90], "the token 90")):
        with pytest.raises(InputError, match=message):
            log_likelihoods(model, [Encoded(row, [NO_TARGET, *row[1:]])], pad_id=0, batch_tokens=1)


def test_of_equal_logits_the_first_is_what_the_model_would_write():
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0]).repeat(3, 2, 1)
    labels = torch.tensor([[1, 1], [1, 3], [NO_TARGET, 1]])
    assert [greedy for _, greedy in _summed(logits, labels)] == [True, False, True]


def test_heads_share_keys_and_values_beside_a_mask_while_a_model_scores_on_a_cpu(monkeypatch):
    attend, shared = torch.nn.functional.scaled_dot_product_attention, []

    def told(*args, **kwargs):
        shared.append((kwargs.get("attn_mask") is not None, kwargs.get("enable_gqa", False)))
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", told)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).eval()
    rows = [Encoded([3, 4, *range(5, 5 + n)], [NO_TARGET, NO_TARGET, *range(5, 5 + n)]) for n in (1, 4, 9)]
    found = log_likelihoods(model, rows, pad_id=0, batch_tokens=999)
    assert (True, True) in shared
    assert (True, False) not in shared
    assert "TRANSFORMERS_SDPA_FORCE_GQA" not in os.environ
    shared.clear()
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "0")  # what a user sets stays
    assert log_likelihoods(model, rows, pad_id=0, batch_tokens=999) == pytest.approx(found, abs=1e-5)
    assert (True, True) not in shared
    assert os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] == "0"
