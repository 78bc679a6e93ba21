import json

import pytest
import torch

from fairpriv.store import read_json, read_tensors, write_json, write_tensors

TENSORS = {
    "weights": torch.arange(6.0).view(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "one": torch.tensor(7),
    "none": torch.zeros(0, 4),
    "mask": torch.tensor([True, False]),
}
TOLD = {"diverged": [1, 2], "lambda": [0.1, float("inf")], "text": "\ud800 ü"}


@pytest.fixture
def file(tmp_path):
    write_tensors(tmp_path / "abc.safetensors", TENSORS, TOLD)
    return tmp_path / "abc.safetensors"


def test_tensors_come_back_bit_for_bit(file):
    tensors, told = read_tensors(file)
    assert told == TOLD
    assert {name: (t.dtype, t.tolist()) for name, t in tensors.items()} == {
        name: (t.dtype, t.tolist()) for name, t in TENSORS.items()
    }


def test_the_same_content_gives_the_same_file(file):
    whole = file.read_bytes()
    for _ in range(8):
        write_tensors(file, TENSORS, TOLD)
        assert file.read_bytes() == whole


def test_nothing_is_said_of_what_is_not_there(tmp_path, caplog):
    assert read_tensors(tmp_path / "abc.safetensors") is None
    assert read_json(tmp_path / "abc.json") is None
    assert caplog.records == []


def test_no_byte_of_tensors_can_change_unseen(file, caplog):
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        found = read_tensors(file)
        assert found is None or place < whole.rindex(b"}"), place  # blanks that fill the header up are no content
    assert {record.message for record in caplog.records} == {
        f"cache: {file} is damaged, or not what its name says: it is made again"
    }


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      ", b"[" * 100_000])
def test_what_is_no_entry_is_none(file, content):
    file.write_bytes(content)
    assert read_tensors(file) is None
    json_file = file.with_suffix(".json")
    json_file.write_bytes(content)
    assert read_json(json_file) is None


def test_an_entry_in_another_s_place_is_none(file):
    (file.parent / "other").mkdir()
    (file.parent / "other" / file.name).write_bytes(file.read_bytes())
    assert read_tensors(file.parent / "other" / file.name) is None
    assert read_tensors(file.rename(file.with_stem("abd"))) is None
    write_json(file.with_name("abc.json"), [1])
    assert read_json(file.with_name("abc.json").rename(file.with_name("abd.json"))) is None


def test_plain_data_come_back(tmp_path):
    content = [[True, "ü \ud800"], [None, "why"], [0.1, {"a": [1]}]]
    write_json(tmp_path / "abc.json", content)
    assert read_json(tmp_path / "abc.json") == content


@pytest.mark.parametrize("content", [[1, 2], None, [], {}, "text", [[True, "other"]]])
def test_plain_data_of_no_checksum_or_another_are_none(tmp_path, content, caplog):
    write_json(tmp_path / "abc.json", [[True, "safe"]])
    document = json.loads((tmp_path / "abc.json").read_text())
    for text in (json.dumps(content), json.dumps(document | {"content": content})):
        (tmp_path / "abc.json").write_text(text)
        assert read_json(tmp_path / "abc.json") is None
    assert len(caplog.records) == 2
