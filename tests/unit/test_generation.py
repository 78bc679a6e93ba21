"""Answers in batches against a plain argmax loop of one prompt, without cache and padding."""

import logging
import re

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DynamicLayer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fairpriv.errors import InputError
from fairpriv.language_models.engines import generation
from fairpriv.language_models.engines.generation import respond

VOCAB = 100
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.6,  # wide enough that greedy answers do not repeat one token
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "lfm2": lambda: Lfm2ForCausalLM(  # convolutions, whose state cannot lose rows
        Lfm2Config(**SIZES, block_ff_dim=32, layer_types=["conv", "full_attention"])
    ),
    "gpt2": lambda: GPT2LMHeadModel(  # absolute positions, which left padding must not shift
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.6,
            bos_token_id=None,
            eos_token_id=None,
        )
    ),
}
LENGTHS = [5, 2, 11, 7, 7, 1, 3]


def make(kind="llama"):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def make_tokenizer(**special):
    words = {f"w{i}": i for i in range(VOCAB - 1)} | {"<unk>": VOCAB - 1}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), **special)


def make_prompts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB - 1, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def plain(model, prompt, count, ends=()):
    """Greedy answer to one prompt; its end token is left out."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def texts(answers):
    return [" ".join(f"w{token}" for token in answer) for answer in answers]


def calls_of(model, monkeypatch):
    """The shapes of input_ids that ``generate`` is called with from now on."""
    shapes, generate = [], model.generate
    monkeypatch.setattr(
        model, "generate", lambda input_ids, **rest: shapes.append(input_ids.shape) or generate(input_ids, **rest)
    )
    return shapes


@pytest.mark.parametrize("kind", MODELS)
def test_answers_are_those_of_a_plain_loop_whatever_the_batch_size(kind):
    model, prompts = make(kind), make_prompts()
    free = [plain(model, prompt, 12) for prompt in prompts]
    ends = {free[0][3], free[2][0], free[3][8]}
    expected = [plain(model, prompt, 12, ends) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 2  # some end at once, some early, some not at all
    first, *others = sorted(ends)
    model.generation_config.eos_token_id = others
    tokenizer = make_tokenizer(eos_token=f"w{first}")
    for batch_tokens in (1, 60, 999):
        assert respond(model, tokenizer, prompts, max_new_tokens=12, batch_tokens=batch_tokens) == texts(expected)


@pytest.mark.parametrize("ends", [{"config": 1}, {"tokenizer": 1}, {"config": 1, "tokenizer": 1}, {}])
def test_end_tokens_of_model_and_tokenizer_both_count(ends):
    model, (prompt, *_) = make(), make_prompts()
    free = plain(model, prompt, 12)
    end = free[4]
    if "config" in ends:
        model.generation_config.eos_token_id = end
    tokenizer = make_tokenizer(**({"eos_token": f"w{end}"} if "tokenizer" in ends else {}))
    expected = free[: free.index(end)] if ends else free
    assert respond(model, tokenizer, [prompt], max_new_tokens=12, batch_tokens=1) == texts([expected])


def test_special_tokens_are_removed_from_answers():
    model, (prompt, *_) = make(), make_prompts()
    free = plain(model, prompt, 8)
    tokenizer = make_tokenizer(additional_special_tokens=[f"w{free[2]}"])
    expected = [token for token in free if token != free[2]]
    assert respond(model, tokenizer, [prompt], max_new_tokens=8, batch_tokens=1) == texts([expected])


def test_equal_prompts_are_answered_once_and_longest_go_first(monkeypatch):
    model, prompts = make(), make_prompts()
    expected = texts(plain(model, prompt, 4) for prompt in prompts)
    shapes = calls_of(model, monkeypatch)
    tokenizer = make_tokenizer()
    answers = respond(model, tokenizer, [*prompts, prompts[1], tuple(prompts[2])], max_new_tokens=4, batch_tokens=48)
    assert answers == [*expected, expected[1], expected[2]]
    assert shapes == [(3, 11), (4, 5)]  # at most 48 tokens, answers included


def test_no_prompts_have_no_answers():
    assert respond(make(), make_tokenizer(), [], max_new_tokens=4, batch_tokens=48) == []


def test_sampling_flags_and_penalties_of_the_model_do_not_count_and_stay(caplog, capsys):
    model, prompts = make(), make_prompts()
    expected = texts(plain(model, prompt, 10) for prompt in prompts)
    own = model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        min_length=3,
        max_length=40,
        num_beams=2,
        early_stopping=True,
    )
    before = own.to_dict()
    model.config.repetition_penalty = 1.2  # as in some old checkpoints
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert respond(model, make_tokenizer(), prompts, max_new_tokens=10, batch_tokens=64) == expected
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
    assert not "".join(capsys.readouterr())
    assert model.generation_config is own
    assert own.to_dict() == before


def test_model_answers_in_eval_mode_and_is_left_in_the_mode_it_was_in():
    model, prompts = make(), make_prompts()
    expected = texts(plain(model, prompt, 6) for prompt in prompts)
    model.config.attention_dropout = 0.5
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.model.layers[0].eval()
    assert respond(model, make_tokenizer(), prompts, max_new_tokens=6, batch_tokens=64) == expected
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert model.model.layers[1].mlp.training


def test_out_of_memory_says_what_to_lower_and_restores_the_model(monkeypatch):
    model = make().train()
    own = model.generation_config

    def generate(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(model, "generate", generate)
    with pytest.raises(RuntimeError, match=r"batches \(now of 48 tokens\), then max_new_tokens \(now 4\)") as e:
        respond(model, make_tokenizer(), make_prompts(), max_new_tokens=4, batch_tokens=48)
    assert not isinstance(e.value, torch.OutOfMemoryError)
    assert "prompts of up to 11 tokens, 2 rows at a time" in str(e.value)
    assert model.training
    assert model.generation_config is own


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_batches_are_halved_once_where_the_memory_is_too_small_for_them(monkeypatch, caplog, kind):
    model, prompts = make(), make_prompts()
    expected = respond(model, make_tokenizer(), prompts, max_new_tokens=4, batch_tokens=999)
    generate, sizes = model.generate, []

    def short(input_ids, **rest):
        sizes.append(len(input_ids))
        if input_ids.numel() > 60:
            raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return generate(input_ids, **rest)

    monkeypatch.setattr(model, "generate", short)
    assert respond(model, make_tokenizer(), prompts, max_new_tokens=4, batch_tokens=999) == expected
    assert sizes == [7, 4, 3]
    assert caplog.text.count("memory is short") == 1
    assert "4 rows at a time, in place of 7" in caplog.text


def test_rows_that_have_ended_leave_their_batch():
    model, prompts = make(), make_prompts()
    free = [plain(model, prompt, 30) for prompt in prompts]
    model.generation_config.eos_token_id = [free[0][3], free[2][0]]
    expected = [plain(model, prompt, 30, set(model.generation_config.eos_token_id)) for prompt in prompts]
    rows = []
    handle = model.register_forward_hook(lambda module, args, output: rows.append(len(output.logits)))
    assert respond(model, make_tokenizer(), prompts, max_new_tokens=30, batch_tokens=999) == texts(expected)
    handle.remove()
    alive = [sum(len(answer) >= 8 * (step // 8) for answer in expected) for step in range(len(rows))]
    assert rows == alive
    assert rows[0] == 7 > rows[-1]


def test_tokens_are_counted_in_log_and_bar(caplog, capsys):
    model, prompts = make(), make_prompts()
    free = [plain(model, prompt, 6) for prompt in prompts]
    end = free[0][2]
    tokens = sum(min(len(plain(model, prompt, 6, {end})) + 1, 6) for prompt in prompts)
    model.generation_config.eos_token_id = end
    with caplog.at_level(logging.INFO, "fairpriv"):
        respond(model, make_tokenizer(), [*prompts, prompts[0]], max_new_tokens=6, batch_tokens=64, progress="privacy")
    assert re.fullmatch(rf"answers: 8 prompts, {tokens} tokens, [\d,]+ tokens/s", caplog.messages[-1])
    out, err = capsys.readouterr()
    assert not out
    assert re.search(r"privacy .*7/7 [\d,]+ tokens/s", err)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"batch_tokens": 0}])
def test_sizes_below_one_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}=0"):
        respond(make(), make_tokenizer(), [[1]], **{"max_new_tokens": 4, "batch_tokens": 2, **wrong})


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(InputError, match="prompt 1 of 2 has no tokens"):
        respond(make(), make_tokenizer(), [[1], []], max_new_tokens=4, batch_tokens=32)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_adapters_answer_through_their_wrapper():
    from peft import LoraConfig, get_peft_model

    model, prompts = make(), make_prompts()
    base = texts(plain(model, prompt, 6) for prompt in prompts)
    own = model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=1.5)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    expected = texts(plain(lora.eval(), prompt, 6) for prompt in prompts)
    assert expected != base
    assert respond(lora, make_tokenizer(), prompts, max_new_tokens=6, batch_tokens=64) == expected
    assert model.generation_config is own


def test_reft_answers_do_not_depend_on_the_batch():
    from fairpriv.language_models.models.reft import LoReFTConfig, ReftModel

    model, prompts = make(), make_prompts()
    base = texts(plain(model, prompt, 6) for prompt in prompts)
    reft = ReftModel(model, LoReFTConfig(rank=2, first=1, last=2))
    for intervention in reft.interventions.values():
        torch.nn.init.normal_(intervention.source.bias)
    rows = [reft.generate(torch.tensor([p]), max_new_tokens=6, do_sample=False, use_cache=False) for p in prompts]
    expected = texts(row[0, len(prompt) :].tolist() for row, prompt in zip(rows, prompts, strict=True))
    assert expected != base
    assert respond(reft, make_tokenizer(), prompts, max_new_tokens=6, batch_tokens=64) == expected


def test_the_mark_that_ends_responses_ends_answers():
    model, (prompt, *_) = make(), make_prompts()
    free = plain(model, prompt, 12)
    expected = free[: free.index(free[4])]
    options = {"max_new_tokens": 12, "batch_tokens": 1}
    assert respond(model, make_tokenizer(), [prompt], end=(free[4], ""), **options) == texts([expected])
    (cut,) = respond(model, make_tokenizer(), [prompt], end=(None, f" w{free[4]}"), **options)
    assert cut == texts([free])[0].partition(f" w{free[4]}")[0]
    assert cut


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_stop_the_answers_and_name_the_precision(value):
    model, prompts = make(), make_prompts()
    model.lm_head.weight.data[7] = value
    for setting in ("model.dtype", "judge.dtype"):
        with pytest.raises(InputError, match=f"logits that are not finite.*; set {setting}=float32"):
            respond(model, make_tokenizer(), prompts, max_new_tokens=4, batch_tokens=48, setting=setting)


def test_logits_after_the_end_of_an_answer_do_not_matter():
    model, prompts = make(), make_prompts([3, 3])
    free = [plain(model, prompt, 6) for prompt in prompts]
    pad = next(token for token in range(VOCAB) if token not in {token for row in [*free, *prompts] for token in row})
    model.generation_config.eos_token_id = free[0][0]
    expected = texts([[], plain(model, prompts[1], 6, {free[0][0]})])
    model.model.embed_tokens.weight.data[pad] = float("nan")  # what the ended row goes on with
    answers = respond(model, make_tokenizer(pad_token=f"w{pad}"), prompts, max_new_tokens=6, batch_tokens=32)
    assert answers == expected


def test_what_the_model_has_no_row_or_position_for_is_refused_before_anything_runs(monkeypatch):
    model = make("gpt2")
    shapes = calls_of(model, monkeypatch)
    prompts = [[1] * 60, [2] * 5]
    with pytest.raises(
        InputError, match=r"60 tokens and an answer of up to 5 more .* 64 positions .*: lower max_pro.* 59"
    ):
        respond(model, make_tokenizer(), prompts, max_new_tokens=5, batch_tokens=32)
    with pytest.raises(InputError, match="the token 100, for which the model's embedding of 100 rows has none"):
        respond(model, make_tokenizer(), [[1], [VOCAB]], max_new_tokens=5, batch_tokens=1)
    assert not shapes
    assert len(respond(model, make_tokenizer(), prompts, max_new_tokens=4, batch_tokens=32)) == 2


def test_padding_never_takes_a_token_without_a_row():
    model, prompts = make(), make_prompts()
    tokenizer = make_tokenizer()
    expected = respond(model, tokenizer, prompts, max_new_tokens=4, batch_tokens=48)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == VOCAB
    assert respond(model, tokenizer, prompts, max_new_tokens=4, batch_tokens=48) == expected


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("common", [9, 7])
def test_what_prompts_begin_with_is_read_once(kind, common):
    model, start = make(kind), make_prompts([common])[0]
    prompts = [start, *([*start, *prompt] for prompt in make_prompts())]  # the first has nothing beside it
    words = make_tokenizer()
    expected = words.batch_decode([plain(model, prompt, 6) for prompt in prompts])
    read = []
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].shape))
    assert respond(model, words, prompts, max_new_tokens=6, batch_tokens=999) == expected
    handle.remove()
    once = kind != "lfm2" and common == 9  # convolutions keep a state; seven tokens are too few
    assert read[:2] == ([(1, 8), (8, 12)] if once else [(8, common + 11), (8, 1)])


WINDOWS = {
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=12)),
    "gpt_neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=12,
            max_position_embeddings=64,
            initializer_range=0.6,
            bos_token_id=None,
            eos_token_id=None,
        )
    ),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_a_window_that_slides_over_padding_is_not_asked_to(kind):
    torch.manual_seed(0)
    model, start = WINDOWS[kind]().eval(), make_prompts([10])[0]
    prompts = [[*start, *prompt] for prompt in make_prompts()]
    words = make_tokenizer()
    expected = words.batch_decode([plain(model, prompt, 6) for prompt in prompts])
    assert respond(model, words, prompts, max_new_tokens=6, batch_tokens=999) == expected


@pytest.mark.parametrize("heads", [1, 3])
def test_a_cache_with_room_holds_what_one_without_holds(heads):
    torch.manual_seed(0)
    roomy, plain = generation._Roomy(room=6), DynamicLayer()

    def grow(rows, tokens):
        states = torch.randn(2, rows, heads, tokens, 4)
        for ours, theirs in zip(roomy.update(*states), plain.update(*states), strict=True):
            assert torch.equal(ours, theirs)

    def both(change, argument):
        getattr(roomy, change)(argument)
        getattr(plain, change)(argument)

    grow(1, 5)
    both("batch_repeat_interleave", 4)
    held = roomy.keys
    for _ in range(9):  # past what there was room for
        grow(4, 1)
    assert torch.equal(roomy.keys[:, :, :5], held)
    place = roomy.keys.data_ptr()
    grow(4, 1)
    assert roomy.keys.data_ptr() == place  # nothing was copied
    both("batch_select_indices", torch.tensor([0, 2, 3]))
    for _ in range(3):
        grow(3, 2)
    both("batch_select_indices", torch.tensor([1]))
    grow(1, 3)
    assert roomy.get_seq_length() == plain.get_seq_length() == 24
