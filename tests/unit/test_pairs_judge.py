"""The judge that is fitted on a dimension's pairs."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fairpriv.data.sources import Files
from fairpriv.data.texts import Texts
from fairpriv.errors import InputError
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.judges.pairs import Pairs
from fairpriv.store import Store

WIDTH = 16


def embedding(text):
    """A bag of words, hashed the same in every process."""
    row = np.zeros(WIDTH)
    for word in text.lower().split():
        row[sum(map(ord, word)) % WIDTH] += 1
    return row / max(1e-9, np.linalg.norm(row))


@pytest.fixture
def embedded(monkeypatch):
    """Texts that were embedded, by a bag of words."""
    seen = []

    def embed(self, texts):
        seen.extend(texts)
        return np.stack([embedding(text) for text in texts])

    monkeypatch.setattr(Pairs, "embed", embed)
    monkeypatch.setattr(Pairs, "encoder_digest", "a bag of words")
    return seen


@pytest.fixture
def dimension(tmp_path):
    """Makes a dimension of (prompt, response) pairs."""

    def make(safe, unsafe):
        train = {}
        for split, pairs in {"safe": safe, "unsafe": unsafe}.items():
            lines = "\n".join(["prompt,response", *(",".join(pair) for pair in pairs)])
            (tmp_path / f"{split}.csv").write_text(lines)
            source = Files([f"{split}.csv"], str(tmp_path))
            train[split] = Texts(source, {"prompt": "prompt", "response": "response"})
        return Dimension("green", train=train)

    return make


def pairs_of(word, n=30):
    return [(f"prompt {i}", f"{word} {i}") for i in range(n)]


def test_it_tells_responses_apart_as_the_pairs_do_and_says_how_well(embedded, dimension, tmp_path):
    judge = Pairs("any", folds=3).of(dimension(pairs_of("refuse"), pairs_of("comply")), Store(tmp_path))
    verdicts = judge.judge(["new"] * 3, ["refuse", "comply", " "])
    assert [verdict.safe for verdict in verdicts] == [True, False, False]
    assert [verdict.reason.split()[0] for verdict in verdicts] == ["safe", "safe", "empty"]
    quality = judge.quality()
    assert quality.metrics["judge/pairs/green/auc"] > 0.98
    assert 0.8 < quality.intervals["judge/pairs/green/auc"][0] < 1
    known = judge.known()
    assert (known.safe, known.unsafe) == (30, 30)
    assert min(known.found_safe, known.found_unsafe) >= 27
    assert ("prompt 0", "refuse 0") in judge.made_from()
    before = len(embedded)
    again = Pairs("any", folds=3).of(dimension(pairs_of("refuse"), pairs_of("comply")), Store(tmp_path))
    assert again.quality() == quality  # from the cache
    assert len(embedded) == before


@pytest.mark.usefixtures("embedded")
def test_copies_of_a_pair_make_no_interval_narrower(dimension, tmp_path):
    draw = np.random.default_rng(0)

    def noisy(word):
        return [(f"p {i} {word}", f"{draw.choice(['refuse', 'comply'])} {word} {i}") for i in range(40)]

    safe, unsafe = noisy("refuse"), noisy("comply")
    found = []
    for copies in (1, 5):
        pairs = [(prompt, said) for prompt, said in safe for _ in range(copies)]
        judge = Pairs("any", least_auc=0.0).of(dimension(pairs, unsafe), Store(tmp_path))
        assert (judge.known().safe, judge.known().unsafe) == (40, 40)
        found.append(judge.fit["auc"])
    (one, ends), (many, others) = found
    assert many == pytest.approx(one, abs=0.1)
    assert others[1] - others[0] == pytest.approx(ends[1] - ends[0], rel=0.3)


@pytest.mark.usefixtures("embedded")
def test_a_judge_that_does_not_tell_safe_from_unsafe_is_refused_with_its_quality(dimension, tmp_path):
    blind = dimension(pairs_of("the same"), pairs_of("the same"))
    with pytest.raises(InputError, match=r"AUC on the pairs of green is 0\.\d+ \(.*\), below judge\.least_auc=0\.7"):
        Pairs("any").of(blind, Store(tmp_path)).quality()
    assert Pairs("any", least_auc=0.0).of(blind, Store(tmp_path)).quality().metrics["judge/pairs/green/auc"] < 0.7


@pytest.mark.usefixtures("embedded")
def test_answers_to_one_prompt_that_are_alike_do_not_help_the_judge_where_it_is_measured(dimension, tmp_path):
    # Safe and unsafe answers repeat a word of their prompt, which is safe or unsafe by chance: on new prompts
    # there is nothing to go by, and folds that part the rows of a prompt would find everything.
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), 6)) for _ in range(40)]
    rows = [(word, f"{word} {word}") for word in words for _ in range(4)]
    judge = Pairs("any", least_auc=0.0).of(dimension(rows[:80], rows[80:]), Store(tmp_path))
    value, (low, _) = judge.fit["auc"]
    assert low < 0.5
    assert value < 0.7


def test_too_few_pairs_and_pairs_of_one_kind_are_refused(embedded, dimension, tmp_path):
    with pytest.raises(InputError, match=r"dimensions\.green\.train\.unsafe has 29 pairs, and judge\.least_pairs=30"):
        Pairs("any").of(dimension(pairs_of("a"), pairs_of("b", 29)), Store(tmp_path))
    few = [(f"prompt {i % 9}", f"b {i}") for i in range(30)]
    with pytest.raises(InputError, match=r"train\.unsafe have 9 prompts, .* and judge\.folds=5 need 10: "):
        Pairs("any").of(dimension(pairs_of("a"), few), Store(tmp_path))
    one = dimension(pairs_of("a"), pairs_of("b"))
    del one.train["unsafe"]
    with pytest.raises(InputError, match="has no split 'unsafe'"):
        Pairs("any").of(one, Store(tmp_path))
    for wrong in ({"folds": 1}, {"least_pairs": 9}, {"least_auc": 1.0}, {"samples": 5}):
        with pytest.raises(InputError, match=f"judge.{next(iter(wrong))}="):
            Pairs("any", **wrong)
    assert not embedded


def test_an_embedding_is_the_mean_of_the_encoder_s_last_states(tmp_path):
    words = ["[PAD]", "a", "b", "c"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="c"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    texts = ["a b a", "c", "b b"]
    found = Pairs(str(tmp_path), batch_size=2, device="cpu").embed(texts)
    for text, row in zip(texts, found, strict=True):
        ids = torch.tensor([[words.index(word) for word in text.split()]])
        mean = model(ids).last_hidden_state[0].mean(0)
        assert row == pytest.approx((mean / mean.norm()).detach().numpy(), abs=1e-5)
    with pytest.raises(InputError, match=r"judge\.path=/nowhere: there is no such folder"):
        Pairs("/nowhere").digest()


@pytest.fixture
def encoder(tiny_encoder, tmp_path):
    """A copy of a tiny encoder, which a test may change."""
    return shutil.copytree(tiny_encoder, tmp_path / "encoder")


def test_an_encoder_without_some_of_its_weights_or_with_damaged_ones_is_refused(encoder):
    file = encoder / "model.safetensors"
    weights = load_file(file)
    save_file({name: values for name, values in weights.items() if "query" not in name}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"judge\.path=.*: no weights for .*query.* \(2 missing\)"):
        Pairs(str(encoder)).embed(["he"])
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"judge\.path=.*not fully covered"):
        Pairs(str(encoder)).embed(["he"])


def test_texts_that_are_longer_than_the_encoder_s_positions_and_a_device_that_is_not_there_are_refused(encoder):
    with pytest.raises(InputError, match=r"judge\.max_length=513: .* has positions for 512 tokens: set 512 or less"):
        Pairs(str(encoder), max_length=513).digest()
    with pytest.raises(InputError, match=r"judge\.device=nowhere: "):
        Pairs(str(encoder), device="nowhere").embed(["he"])


@pytest.mark.parametrize("side", ["left", None])
def test_an_embedding_does_not_depend_on_the_batch_be_it_padded_left_or_without_a_pad_token(encoder, side):
    settings = json.loads((encoder / "tokenizer_config.json").read_text()) | {"padding_side": side}
    if side is None:
        del settings["pad_token"], settings["padding_side"]
    (encoder / "tokenizer_config.json").write_text(json.dumps(settings))
    judge = Pairs(str(encoder), device="cpu")
    assert judge.embed(["he", "she is a nurse"])[0] == pytest.approx(judge.embed(["he"])[0], abs=1e-6)
