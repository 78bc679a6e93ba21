from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.language_models.data.tokens import (
    PLAIN,
    Encoded,
    Preference,
    PromptFormat,
    collate,
    encode,
    encode_all,
    encode_continuation,
    encode_prompt,
    opens_thinking,
    pad_token_id,
    response_end,
    without_thinking,
)

SENTENCES = [
    "Who may see my file? Only those who treat you may see it.",
    "A nurse can be a man or a woman, and so can a doctor.",
    "USER: yes or no? ASSISTANT: yes, and that is the whole of it.",
]
PROMPT, RESPONSE = "Who may see my file, nurse or doctor?", "Only those who treat you.\n\nEt voilà. "
OPTIONS = {"max_tokens": 1000, "truncate": "drop"}

# As of SmolLM2 and Qwen2 (a newline after the end mark), of Llama 2 (BOS, stripped, EOS), and of Vicuna without an end.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + '</s>' }}"
    "{% else %}{{ raise_exception('no system message here') }}{% endif %}{% endfor %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def bpe(template=None, **tokens):
    """Byte-level BPE as of GPT-2, Llama 3, Qwen2 and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **tokens)


def spaced(template, **tokens):
    """With runs of blanks among the added tokens, as of GPT-NeoX."""
    tokenizer = bpe(template, **tokens)
    tokenizer.add_tokens(["  ", "   "])
    return tokenizer


def with_bos(tokenizer):
    """Make it write its BOS of itself, as Llama's does."""
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )
    assert tokenizer("a")["input_ids"][0] == bos[1]
    return tokenizer


def metaspace(template=None):
    """A blank before every text, as of Llama 2 and Mistral."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=["\n"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, bos_token="<s>", eos_token="</s>"
    )


def words(**tokens):
    """Whole words, without a special token but those given."""
    vocabulary = sorted({word for sentence in SENTENCES for word in sentence.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*vocabulary, *tokens.values()])}))
    if "unk_token" in tokens:
        tokenizer.model.unk_token = tokens["unk_token"]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def written(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def split(row):
    """Prompt ids and target ids, where the targets are one piece at the end that repeats the input."""
    count = sum(label != -100 for label in row.labels)
    assert row.labels == [-100] * (len(row.input_ids) - count) + row.input_ids[len(row.input_ids) - count :]
    return row.input_ids[: len(row.input_ids) - count], row.input_ids[len(row.input_ids) - count :]


CASES = {
    "chatml": (
        lambda: bpe(CHATML, eos_token="<|im_end|>"),
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n",
        RESPONSE + "<|im_end|>",
    ),
    "template_with_bos": (
        lambda: with_bos(bpe(INST, bos_token="<s>", eos_token="</s>")),
        f"<s>[INST] {PROMPT} [/INST]",
        f" {RESPONSE.strip()} </s>",
    ),
    "template_without_the_tokenizers_bos": (
        lambda: with_bos(bpe(CHATML, bos_token="<s>", eos_token="<|im_end|>")),
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n",
        RESPONSE + "<|im_end|>",
    ),
    "template_whose_end_mark_is_not_eos": (
        lambda: bpe(CHATML, eos_token="</s>"),
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n",
        RESPONSE + "<|im_end|>",
    ),
    "template_without_end_mark": (
        lambda: bpe(ENDLESS, eos_token="</s>"),
        f"user: {PROMPT}\nassistant: ",
        RESPONSE + "\n</s>",
    ),
    "template_that_writes_more_after_its_end_mark": (
        lambda: bpe(CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", eos_token="</s>"),
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n",
        RESPONSE + "<|im_end|>",  # as Phi-3's, whose answers end there
    ),
    "no_template_with_bos": (
        lambda: with_bos(bpe(bos_token="<s>", eos_token="</s>")),
        f"<s>{PROMPT}",
        RESPONSE + "</s>",
    ),
    "no_template_bos_unused": (lambda: bpe(bos_token="<s>", eos_token="</s>"), PROMPT, RESPONSE + "</s>"),
    "no_template_no_eos": (lambda: bpe(), PROMPT, RESPONSE),
}


@pytest.mark.parametrize("case", CASES)
def test_targets_are_the_response_and_its_end_and_nothing_else(case):
    make, prompt, target = CASES[case]
    tokenizer = make()
    row = encode(tokenizer, PROMPT, RESPONSE, **OPTIONS)
    asked, answer = split(row)
    assert written(tokenizer, asked) == prompt
    assert written(tokenizer, answer) == target
    # no token of the response is lost or joined to the prompt's: as many as of the text by itself
    assert len(answer) == len(tokenizer(target, add_special_tokens=False)["input_ids"])
    options = {key: value for key, value in OPTIONS.items() if key != "truncate"}
    assert encode_prompt(tokenizer, PROMPT, **options) == asked


def test_template_is_left_aside_when_config_says_none():
    tokenizer = with_bos(bpe(CHATML, bos_token="<s>", eos_token="<|im_end|>"))
    asked, answer = split(encode(tokenizer, PROMPT, RESPONSE, **OPTIONS, form=PromptFormat("none", separator=" -> ")))
    assert written(tokenizer, asked) == f"<s>{PROMPT} -> "
    assert written(tokenizer, answer) == RESPONSE + "<|im_end|>"


def test_system_message_precedes_the_prompt_with_and_without_template():
    row = encode(bpe(CHATML, eos_token="<|im_end|>"), PROMPT, RESPONSE, **OPTIONS, form=PromptFormat(system="Be fair."))
    assert written(bpe(), split(row)[0]).startswith("<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nWho")
    row = encode(bpe(eos_token="</s>"), PROMPT, RESPONSE, **OPTIONS, form=PromptFormat(system="Be fair."))
    assert written(bpe(), split(row)[0]) == f"Be fair.\n{PROMPT}"


def test_bos_that_the_prompt_begins_with_is_not_doubled():
    tokenizer = with_bos(bpe(bos_token="<s>", eos_token="</s>"))
    for options in (OPTIONS, OPTIONS | {"truncate": "prompt_right"}):
        row = encode(tokenizer, f"<s>{PROMPT}", RESPONSE, **options)
        assert row.input_ids.count(tokenizer.bos_token_id) == 1


def test_eos_that_the_response_ends_with_is_not_doubled():
    tokenizer = bpe(eos_token="</s>")
    row = encode(tokenizer, PROMPT, "yes</s>", **OPTIONS)
    assert row.input_ids.count(tokenizer.eos_token_id) == 1


def test_blank_at_the_seam_does_not_move_a_token_into_the_prompt():
    tokenizer = bpe(ENDLESS, eos_token="</s>")
    whole = tokenizer("user: may\nassistant: yes\n", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("user: may\nassistant: ", add_special_tokens=False)["input_ids"]
    assert whole[: len(prompt)] != prompt  # ' yes' is one token: what this test is about
    asked, answer = split(encode(tokenizer, "may", "yes", **OPTIONS))
    assert asked == prompt
    assert written(tokenizer, answer) == "yes\n</s>"


def test_response_by_itself_gets_no_blank_from_the_tokenizer():
    tokenizer = metaspace(ENDLESS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("yes\n", add_special_tokens=False)["input_ids"])[0][0] == "▁"
    asked, answer = split(encode(tokenizer, "yes", "yes", **OPTIONS))
    assert [tokenizer.convert_ids_to_tokens(i) for i in asked][-1] == "▁"
    pieces = "".join(tokenizer.convert_ids_to_tokens(answer))
    assert pieces == "yes\n</s>"  # and not '▁yes'


def too_long(truncate, by):
    """A row that is ``by`` tokens too long, and the same one whole."""
    tokenizer = bpe(CHATML, eos_token="<|im_end|>")
    whole = encode(tokenizer, PROMPT, RESPONSE, **OPTIONS)
    limit = len(whole.input_ids) - by
    return (
        tokenizer,
        split(whole),
        encode(tokenizer, PROMPT, RESPONSE, **OPTIONS | {"max_tokens": limit, "truncate": truncate}),
    )


HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("truncate", ["prompt_left", "prompt_right", "response", "drop"])
def test_row_that_just_fits_is_not_cut(truncate):
    _, whole, row = too_long(truncate, 0)
    assert split(row) == whole


@pytest.mark.parametrize(("truncate", "by"), [("prompt_left", 1), ("prompt_left", 5), ("prompt_right", 5)])
def test_prompt_is_cut_inside_the_users_text(truncate, by):
    tokenizer, (asked, answer), row = too_long(truncate, by)
    kept, targets = split(row)
    assert targets == answer
    assert len(kept) == len(asked) - by
    user = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    left = user[by:] if truncate == "prompt_left" else user[:-by]
    assert written(tokenizer, kept) == HEAD + written(tokenizer, left) + TAIL


@pytest.mark.parametrize("truncate", ["prompt_left", "prompt_right"])
def test_prompt_is_cut_altogether_where_the_users_text_is_not_enough(truncate):
    tokenizer = bpe(CHATML, eos_token="<|im_end|>")
    by = len(tokenizer(PROMPT, add_special_tokens=False)["input_ids"]) + 1
    _, (asked, answer), row = too_long(truncate, by)
    assert split(row) == (asked[by:] if truncate == "prompt_left" else asked[:-by], answer)
    # at least one token must stand before the response, or its first one has nothing to be predicted from
    assert too_long(truncate, len(asked) - 1)[2] is not None
    assert too_long(truncate, len(asked))[2] is None


def test_response_is_cut_at_its_end_and_a_row_without_any_is_dropped():
    _, (asked, answer), row = too_long("response", 4)
    assert split(row) == (asked, answer[:-4])
    assert split(too_long("response", len(answer) - 1)[2]) == (asked, answer[:1])
    assert too_long("response", len(answer))[2] is None
    assert too_long("response", len(answer) + 3)[2] is None
    assert too_long("drop", 1)[2] is None


def test_bos_survives_a_cut_at_the_left():
    tokenizer = with_bos(bpe(bos_token="<s>", eos_token="</s>"))
    ids = encode_prompt(tokenizer, PROMPT, max_tokens=6)
    whole = encode_prompt(tokenizer, PROMPT, max_tokens=1000)
    assert ids == [tokenizer.bos_token_id, *whole[-5:]]


def test_long_prompt_for_generation_keeps_the_frame_of_the_template():
    tokenizer = bpe(CHATML, eos_token="<|im_end|>")
    ids = encode_prompt(tokenizer, "a doctor and " * 50 + "a nurse", max_tokens=40)
    assert len(ids) == 40
    assert written(tokenizer, ids).startswith(HEAD)
    assert written(tokenizer, ids).endswith("a doctor and a nurse" + TAIL)


def test_dropped_rows_are_counted_and_the_others_stay_in_order():
    tokenizer = bpe(eos_token="</s>")
    pairs = [
        Example("may", "yes", "a, line 2"),
        Example("may", "no " * 90, "a, line 3"),
        Example("who", "it", "a, line 4"),
    ]
    rows, dropped = encode_all(tokenizer, pairs, **OPTIONS | {"max_tokens": 20})
    assert dropped == 1
    assert rows == [encode(tokenizer, e.prompt, e.response, **OPTIONS) for e in (pairs[0], pairs[2])]


def test_a_pair_that_stands_against_another_is_dropped_with_either():
    tokenizer, good, long = bpe(eos_token="</s>"), Example("may", "yes", "a, 2"), Example("may", "no " * 90, "a, 3")
    other = Example("who", "it", "a, line 4")
    pairs = [replace(good, rejected=other), replace(good, rejected=long), replace(long, rejected=other)]
    rows, dropped = encode_all(tokenizer, pairs, **OPTIONS | {"max_tokens": 20})
    assert dropped == 2
    chosen, rejected = (encode(tokenizer, e.prompt, e.response, **OPTIONS) for e in (good, other))
    assert rows == [Preference(chosen.input_ids, chosen.labels, rejected)]


def test_all_rows_dropped_names_max_tokens():
    with pytest.raises(InputError, match=r"max_tokens=2 with truncate=drop leaves none of the 1 pairs"):
        encode_all(bpe(eos_token="</s>"), [Example(PROMPT, RESPONSE, "a, line 2")], **OPTIONS | {"max_tokens": 2})


def test_prompt_without_response_names_its_row():
    with pytest.raises(InputError, match=r"a\.csv, line 2: a prompt without a response"):
        encode_all(bpe(eos_token="</s>"), [Example(PROMPT, None, "a.csv, line 2")], **OPTIONS)


def test_template_without_system_message_says_so():
    with pytest.raises(InputError, match="no system message here; set system to null"):
        encode(bpe(INST, eos_token="</s>"), PROMPT, RESPONSE, **OPTIONS, form=PromptFormat(system="Be fair."))


def test_two_turns_in_a_row_are_joined_where_the_template_refuses_them_and_it_is_told_once(caplog):
    alternating = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
    )
    tokenizer = bpe(alternating + INST, eos_token="</s>")
    said = [{"role": "user", "content": "Ann's number is 1."}, {"role": "user", "content": "What is it?"}]
    for _ in range(2):
        row = encode(tokenizer, said, RESPONSE, **OPTIONS)
        assert row == encode(tokenizer, "Ann's number is 1.\n\nWhat is it?", RESPONSE, **OPTIONS)
    assert [record.getMessage() for record in caplog.records] == [
        "the tokenizer's chat template refuses two turns in a row by one role, which are joined: "
        "Conversation roles must alternate"
    ]
    tolerant = bpe(INST, eos_token="</s>")
    assert encode(tolerant, said, RESPONSE, **OPTIONS) != row  # left as they are
    with pytest.raises(InputError, match="Conversation roles must alternate"):
        encode(tokenizer, [{"role": "assistant", "content": "Hello"}, *said], RESPONSE, **OPTIONS)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("assistant\n'", "assistant\n<think>'"),  # a generation prompt that no response follows
        CHATML.replace("m['content']", "m['content'].upper()"),
    ],
)
def test_template_that_writes_the_response_otherwise_is_refused(template):
    with pytest.raises(InputError, match="set chat_template=none"):
        encode(bpe(template, eos_token="<|im_end|>"), PROMPT, RESPONSE, **OPTIONS)


def test_misspelt_option_lists_the_right_ones():
    with pytest.raises(InputError, match="truncate=left: must be one of "):
        encode(bpe(), PROMPT, RESPONSE, **OPTIONS | {"truncate": "left"})
    with pytest.raises(InputError, match="chat_template=on: must be one of "):
        PromptFormat("on")


@pytest.mark.parametrize("make", [lambda: with_bos(bpe(CHATML, bos_token="<s>")), metaspace, bpe])
def test_a_plain_prompt_is_the_bare_string(make):
    tokenizer = make()
    for prompt in (PROMPT, " a nurse ", "yes\n"):
        assert encode_prompt(tokenizer, prompt, form=PLAIN, max_tokens=99) == tokenizer(prompt)["input_ids"]


def test_eos_is_left_out_on_demand_and_marks_of_a_template_stay():
    for template, end in ((None, RESPONSE), (CHATML, f"{RESPONSE}<|im_end|>")):
        row = encode(bpe(template, eos_token="</s>"), PROMPT, RESPONSE, **OPTIONS, form=PromptFormat(append_eos=False))
        assert written(bpe(), split(row)[1]) == end


@pytest.mark.parametrize("form", [PromptFormat(system="Be fair."), PromptFormat("none", separator=" ->")])
def test_a_conversation_is_written_turn_by_turn_and_cut_in_its_last_message(form):
    tokenizer = bpe(CHATML, eos_token="<|im_end|>")
    talk = [{"role": "user", "content": "yes or no?"}, {"role": "assistant", "content": "yes"}]
    talk.append({"role": "user", "content": PROMPT})
    whole = encode_prompt(tokenizer, talk, form=form, max_tokens=1000)
    if form.chat_template == "none":
        assert written(tokenizer, whole) == f"yes or no?\nyes\n{PROMPT} ->"
    else:
        messages = [{"role": "system", "content": "Be fair."}, *talk]
        assert whole == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        own = [{"role": "system", "content": "Be kind."}, *talk]
        assert encode_prompt(tokenizer, own, form=form, max_tokens=1000) == encode_prompt(
            tokenizer, own, max_tokens=1000
        )
    cut = written(tokenizer, encode_prompt(tokenizer, talk, form=form, max_tokens=len(whole) - 3))
    assert "yes or no?" in cut
    assert "Who may" not in cut
    assert split(encode(tokenizer, talk, RESPONSE, **OPTIONS, form=form))[0] == whole


@pytest.mark.parametrize(
    ("said", "opened", "answer"),
    [
        ("<think>Hm. </think>\n\nNo.", False, "No."),
        ("Well. <think>Hm.</think> No.", False, "Well. No."),
        ("Hm.</think>\nNo.", False, "No."),
        ("Hm.</think>\nNo.", True, "No."),
        ("Hm, perh", True, ""),
        ("<think>Hm, perh", False, ""),
        (" No, I think. ", False, " No, I think. "),
    ],
)
def test_thoughts_are_no_part_of_an_answer(said, opened, answer):
    assert without_thinking(said, opened=opened) == answer


def test_a_template_that_opens_the_thoughts_is_found():
    assert opens_thinking(bpe(CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"), PromptFormat())
    assert not opens_thinking(bpe(CHATML), PromptFormat())


def test_pad_token_falls_back_to_eos_then_unk():
    assert pad_token_id(bpe(pad_token="<s>", eos_token="</s>")) == 0
    assert pad_token_id(bpe(eos_token="</s>")) == 1
    tokenizer = words(unk_token="<unk>")
    assert pad_token_id(tokenizer) == tokenizer.unk_token_id
    with pytest.raises(InputError, match="no pad, eos or unk token: set pad_token"):
        pad_token_id(words())


def test_tokenizer_of_whole_words_masks_as_exactly():
    tokenizer = words(unk_token="<unk>", eos_token="</s>")
    asked, answer = split(encode(tokenizer, "zebra or doctor.", "a zebra", **OPTIONS))
    assert tokenizer.convert_ids_to_tokens(asked) == ["<unk>", "or", "doctor."]
    assert tokenizer.convert_ids_to_tokens(answer) == ["a", "<unk>", "</s>"]


ROWS = [Encoded([5, 6, 7, 8], [-100, 6, 7, 8]), Encoded([9, 10, 11], [-100, -100, 11]), Encoded([12, 1], [-100, 1])]


def test_batch_is_padded_on_the_side_asked_for():
    right = collate(ROWS[:2], pad_id=3)
    assert right["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 11, 3]]
    assert right["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert right["labels"].tolist() == [[-100, 6, 7, 8], [-100, -100, 11, -100]]
    left = collate(ROWS[:2], pad_id=3, side="left")
    assert left["input_ids"].tolist() == [[5, 6, 7, 8], [3, 9, 10, 11]]
    assert left["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert left["labels"].tolist() == [[-100, 6, 7, 8], [-100, -100, -100, 11]]
    assert {tensor.dtype for tensor in left.values()} == {torch.int64}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_id", [0, 11])  # 11 is also a target
def test_padding_does_not_change_the_loss(side, pad_id):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    batch = collate(ROWS, pad_id, side=side)
    with torch.no_grad():
        together = model(**batch).loss
        losses = [
            model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss for row in ROWS
        ]
    targets = torch.tensor([3.0, 1.0, 1.0])
    torch.testing.assert_close(together, (torch.stack(losses) * targets).sum() / targets.sum())


# A template that opens every response with an empty thought, as of Qwen3.
THINKING = CHATML.replace(
    "'<|im_start|>' + m['role'] + '\n' + m['content']",
    "'<|im_start|>' + m['role'] + '\n' + ('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') "
    "+ m['content']",
)


@pytest.mark.parametrize("response", ["think", "k", "\n", "no", "<", "h"])
def test_what_a_template_writes_before_a_response_is_not_taken_for_it(response):
    tokenizer = bpe(THINKING, eos_token="<|im_end|>")
    asked = encode_prompt(tokenizer, PROMPT, max_tokens=1000)
    opened = "<think>\n\n</think>\n\n"
    before, answer = split(encode(tokenizer, PROMPT, response, **OPTIONS))
    assert (before, written(tokenizer, answer)) == (asked, f"{opened}{response}<|im_end|>")
    options = {key: value for key, value in OPTIONS.items() if key != "truncate"}
    if response.strip():
        before, scored = split(encode_continuation(tokenizer, PROMPT, response, **options))
        assert (written(tokenizer, before), written(tokenizer, scored)) == (
            written(tokenizer, asked) + opened,
            response,
        )


@pytest.mark.parametrize("prompt", ["a", "assistant", "<|im_start|>", "user"])
def test_a_prompt_that_the_template_writes_too_is_cut_where_the_user_says_it(prompt):
    tokenizer = bpe(CHATML, eos_token="<|im_end|>")
    whole = encode_prompt(tokenizer, prompt, max_tokens=1000)
    many = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = encode_prompt(tokenizer, prompt, max_tokens=len(whole) - many)
    assert written(tokenizer, ids) == HEAD + TAIL


@pytest.mark.parametrize(
    ("make", "token", "text"),
    [
        (lambda: bpe(CHATML, eos_token="</s>"), "<|im_end|>", ""),
        (lambda: bpe(INST, bos_token="<s>", eos_token="</s>"), "</s>", ""),
        (lambda: bpe(ENDLESS, eos_token="</s>"), None, ""),
        (lambda: spaced(CHATML.replace("<|im_end|>", "  <|im_end|>"), eos_token="</s>"), "<|im_end|>", ""),
        (lambda: bpe(CHATML.replace("<|im_end|>", "\n### over"), eos_token="</s>"), None, "\n### over"),
        (lambda: bpe(CHATML.replace("assistant\n'", "assistant\n<think>'"), eos_token="</s>"), None, ""),
        (lambda: bpe(eos_token="</s>"), None, ""),
    ],
)
def test_the_mark_after_a_response_is_a_token_or_a_text(make, token, text):
    tokenizer = make()
    end = response_end(tokenizer, PromptFormat())
    assert end == (None if token is None else tokenizer.convert_tokens_to_ids(token), text)


def test_a_token_without_a_row_in_the_embedding_pads_nothing():
    tokenizer = bpe(pad_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = len(tokenizer) - 1
    assert pad_token_id(tokenizer) == rows
    assert pad_token_id(tokenizer, rows) == tokenizer.eos_token_id
