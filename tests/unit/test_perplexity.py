"""Perplexity against one forward pass per token, with each token's context found by the definition."""

import logging
import math
import re
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fairpriv.errors import InputError
from fairpriv.language_models.engines.perplexity import encode_text, perplexity, windows
from fairpriv.language_models.models.reft import LoReFTConfig, ReftModel

VOCAB = 80
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    ),
}


def make(kind="llama"):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def make_ids(n):
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(3))


def first_of_context(i, window, stride):
    """Start of the first window that sees token i; windows start every ``stride`` tokens and share at least one."""
    start = 0
    while start + window <= i:
        start += min(stride, window - 1)
    return start


@torch.no_grad()
def token_by_token(model, ids, window, stride):
    losses = []
    for i in range(1, len(ids)):
        start = first_of_context(i, window, stride)
        assert i - start >= min(i, max(window - stride, 1))
        logits = model(input_ids=ids[None, start:i]).logits[0, -1].double()
        losses.append(-logits.log_softmax(0)[ids[i]].item())
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("window", [40, 41, 64])
def test_a_text_within_one_window_follows_the_chain_rule(kind, window):
    model, ids = make(kind), make_ids(40)
    value, scored = perplexity(model, ids, window=window, stride=window // 2)
    assert value == pytest.approx(token_by_token(model, ids, 40, 1), rel=1e-5)
    assert scored == 39


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("window", "stride"), [(8, 4), (8, 3), (8, 1), (8, 7), (8, 8), (2, 1), (2, 2), (16, 5), (39, 20), (40, 1)]
)
def test_windows_give_each_token_the_context_of_the_definition(kind, window, stride):
    model, ids = make(kind), make_ids(41)
    expected = token_by_token(model, ids, window, stride)
    for batch_size in (1, 3, 50):
        value, scored = perplexity(model, ids, window=window, stride=stride, batch_size=batch_size)
        assert value == pytest.approx(expected, rel=1e-5)
        assert scored == 40


@pytest.mark.parametrize("n", [2, 3, 8, 9, 11, 12, 13])
def test_every_length_of_text_is_scored_to_its_end(n):
    model, ids = make(), make_ids(n)
    value, scored = perplexity(model, ids, window=8, stride=4, batch_size=2)
    assert value == pytest.approx(token_by_token(model, ids, 8, 4), rel=1e-5)
    assert scored == n - 1


def test_long_windows_are_scored_in_chunks():
    sizes = {**SIZES, "max_position_embeddings": 700}
    torch.manual_seed(0)
    model, ids = LlamaForCausalLM(LlamaConfig(**sizes)).eval(), make_ids(600)
    with torch.no_grad():
        logs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    expected = math.exp(-logs[:-1].gather(1, ids[1:, None]).mean())
    assert perplexity(model, ids, window=600, stride=300)[0] == pytest.approx(expected, rel=1e-5)


def test_no_logits_are_computed_of_the_context_of_windows():
    model, shapes = make(), []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[:2])))
    perplexity(model, make_ids(8 + 4 * 4), window=8, stride=4, batch_size=2)
    handle.remove()
    assert shapes == [(2, 4), (2, 4), (1, 7)]


def test_log_likelihoods_are_taken_in_float32():
    model, ids = make().bfloat16(), make_ids(40)
    with torch.no_grad():
        logs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    expected = math.exp(-logs[:-1].gather(1, ids[1:, None]).mean())
    assert perplexity(model, ids, window=40, stride=20)[0] == pytest.approx(expected, rel=1e-5)


def test_a_likelihood_of_almost_zero_gives_infinity():
    model = make()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    assert perplexity(model, make_ids(30), window=8, stride=4)[0] == math.inf


def test_reft_takes_the_context_for_the_prompt():
    model, ids = make(), make_ids(30)
    reft = ReftModel(model, LoReFTConfig(rank=2, first=1, last=1)).eval()
    for intervention in reft.interventions.values():
        torch.nn.init.normal_(intervention.source.bias)
    total, seen = 0.0, 1
    for start in range(0, 26, 4):
        window = ids[None, start : start + 8]
        labels = window.clone()
        labels[:, : seen - start] = -100
        count = start + window.shape[1] - seen
        with torch.no_grad():
            total += reft(input_ids=window, labels=labels).loss.item() * count
        seen += count
    assert seen == 30
    expected = math.exp(total / 29)
    assert expected != pytest.approx(token_by_token(reft, ids, 8, 4), rel=1e-3)
    for batch_size in (1, 4):
        assert perplexity(reft, ids, window=8, stride=4, batch_size=batch_size) == (
            pytest.approx(expected, rel=1e-5),
            29,
        )


def test_model_is_measured_in_eval_mode_and_left_in_the_mode_it_was_in():
    model, ids = make("gpt2"), make_ids(30)  # trains with dropout 0.1
    expected = perplexity(model, ids, window=8, stride=4)
    model.train()
    model.transformer.h[0].eval()
    assert perplexity(model, ids, window=8, stride=4) == expected
    assert model.training
    assert not model.transformer.h[0].mlp.training
    assert model.transformer.h[1].mlp.training


def test_without_a_window_it_is_the_model_s_length_without_overlap():
    config = make().config
    longest = config.max_position_embeddings
    assert windows(config, None, None) == (longest, longest)
    assert windows(config, None, 5) == (longest, 5)
    assert windows(config, 8, None) == (8, 8)
    with pytest.raises(InputError, match=rf"evaluation\.stride={longest + 1}: .* the model.s {longest} tokens"):
        windows(config, None, longest + 1)
    without = SimpleNamespace(get_text_config=lambda: None)
    with pytest.raises(InputError, match="names no max_position_embeddings: give a number"):
        windows(without, None, None)


def test_windows_are_counted_in_the_bar(capsys):
    perplexity(make(), make_ids(41), window=8, stride=4, batch_size=3, progress="wikitext")
    out, err = capsys.readouterr()
    assert not out
    assert re.search(r"wikitext .*10/10 [\d,]+ tokens/s", err)
    perplexity(make(), make_ids(41), window=8, stride=4, batch_size=3)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("n", "change", "words"),
    [
        (0, {}, "this one has 0"),
        (1, {}, "this one has 1"),
        (9, {"stride": 9}, "window=8, stride=9"),
        (9, {"stride": 0}, "stride=0"),
        (9, {"window": 1, "stride": 1}, "window=1"),
        (9, {"batch_size": 0}, "batch_size=0"),
        (9, {"window": 65}, "window=65 is longer than the model's 64 positions"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_the_numbers(n, change, words):
    with pytest.raises(ValueError, match=words):
        perplexity(make(), make_ids(n), **{"window": 8, "stride": 4, **change})


def test_out_of_memory_says_what_to_lower(monkeypatch):
    model = make()

    def forward(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(RuntimeError, match=r"rows of up to 8 tokens, 1 rows at a time: lower the batch size") as e:
        perplexity(model, make_ids(30), window=8, stride=4, batch_size=2)
    assert not isinstance(e.value, torch.OutOfMemoryError)


def make_tokenizer(template=None):
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    if template:
        backend.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=4
    )


@pytest.mark.parametrize(("template", "expected"), [(None, []), ("<s> $A", [1]), ("<s> $A </s>", [1]), ("$A </s>", [])])
def test_text_gets_the_bos_token_that_the_tokenizer_adds_and_no_eos(template, expected):
    ids = encode_text(make_tokenizer(template), "a b c")
    assert ids.dtype == torch.int64
    assert ids.tolist() == [*expected, 3, 4, 0]


def test_a_text_longer_than_the_tokenizers_limit_is_whole_and_without_warning(capsys, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert len(encode_text(make_tokenizer("<s> $A"), "a b " * 500)) == 1001
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert not "".join(capsys.readouterr())


def test_an_empty_text_has_no_tokens_but_bos():
    assert encode_text(make_tokenizer(), "").tolist() == []
    assert encode_text(make_tokenizer("<s> $A"), "").tolist() == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_that_names_the_precision(value):
    model, ids = make(), make_ids(40)
    model.lm_head.weight.data[7] = value
    with pytest.raises(InputError, match=r"not finite.*; set model\.dtype=float32"):
        perplexity(model, ids, window=32, stride=16)


def test_a_token_without_a_row_is_refused():
    with pytest.raises(InputError, match="the token 80, for which the model's embedding of 80 rows has none"):
        perplexity(make(), torch.tensor([1, 2, VOCAB]), window=32, stride=16)
