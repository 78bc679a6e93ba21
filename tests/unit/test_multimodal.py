"""Of a multimodal model the text decoder is loaded, scored, edited and tuned, and its vision tower is left alone."""

import logging

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from fairpriv.editing import SpinEdit
from fairpriv.functional import importance_scores
from fairpriv.functional.importance import matrices_of
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.models.reft import decoder_layers

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def whole():
    """A random Gemma 3 whose vision tower has as many layers as its text decoder."""
    text = Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8, vocab_size=320, pad_token_id=0)
    vision = SiglipVisionConfig(**SIZES, image_size=16, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=319)
        return Gemma3ForConditionalGeneration(config).eval()


@pytest.fixture
def folder(whole, tiny_lm, tmp_path):
    whole.save_pretrained(tmp_path / "gemma")
    AutoTokenizer.from_pretrained(tiny_lm).save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


@pytest.mark.parametrize("target", ["mlp", "self_attn", "all"])
def test_matrices_are_those_of_the_text_decoder(whole, target):
    names = list(matrices_of(whole, target))
    assert len(names) == {"mlp": 6, "self_attn": 8, "all": 14}[target]
    assert all(name.startswith("model.language_model.layers.") for name in names)
    assert decoder_layers(whole) is whole.model.language_model.layers


def test_an_edit_touches_no_weight_of_the_vision_tower(whole):
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    ids = torch.arange(1, 9)[None]
    scores = importance_scores(whole, [{"input_ids": ids, "labels": ids}], gradient_checkpointing=True)
    SpinEdit.of(whole, {name: score.flatten().topk(2).indices for name, score in scores.items()}, {}).apply(whole)
    changed = {name for name, p in whole.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(scores) == set(matrices_of(whole, "mlp"))


def test_the_text_decoder_of_a_checkpoint_is_loaded_and_said(whole, folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        model, tokenizer = PretrainedLM("gemma", str(folder)).load()
    (told,) = [r.getMessage() for r in caplog.records if "multimodal" in r.getMessage()]
    assert "model gemma: a multimodal checkpoint, of which the text decoder is used (Gemma3ForCausalLM)" in told
    assert isinstance(model, Gemma3ForCausalLM)
    assert model.num_parameters() == sum(p.numel() for p in whole.model.language_model.parameters())
    ids = tokenizer("Who may see my medical file?", return_tensors="pt").input_ids
    greedy = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert torch.equal(model.generate(ids, **greedy), whole.generate(ids, **greedy))
    model.train()(input_ids=ids, labels=ids).loss.backward()  # Gemma 3 as a whole trains on images only
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    again, _ = PretrainedLM("tuned", str(tmp_path / "tuned")).load()
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))
