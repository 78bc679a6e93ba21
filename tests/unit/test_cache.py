import errno
import json
import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from fairpriv import store
from fairpriv.store import Store, read_json, read_tensors, write_json, write_tensors
from fairpriv.sweep.lock import lock

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


KEY = {"rows": ["abc"], "seed": 0}


def keep(root, made=(1.0,), kind="fits", key=KEY, **how):
    """What the store gives, and how often it was made."""
    calls = []

    def make():
        calls.append(1)
        return torch.tensor(made)

    found = Store(root).cached(
        kind, key, make, save=lambda t: ({"t": t}, {"n": len(t)}), load=lambda tensors, told: tensors["t"], **how
    )
    return found.tolist(), len(calls)


def test_what_is_made_once_is_then_read(tmp_path):
    assert keep(tmp_path) == ([1.0], 1)
    assert keep(tmp_path, made=(2.0,)) == ([1.0], 0)
    assert keep(tmp_path, made=(2.0,), together=True) == ([1.0], 0)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


@pytest.mark.parametrize("change", [{"kind": "pools"}, {"key": KEY | {"seed": 1}}])
def test_another_kind_or_key_is_another_entry(tmp_path, change):
    keep(tmp_path)
    assert keep(tmp_path, made=(2.0,), **change) == ([2.0], 1)


def test_another_outcome_version_or_library_is_another_entry(tmp_path, monkeypatch):
    keep(tmp_path)
    monkeypatch.setattr(store, "OUTCOME_VERSION", store.OUTCOME_VERSION + 1)
    assert keep(tmp_path, made=(2.0,)) == ([2.0], 1)
    monkeypatch.setattr(store, "version", lambda name: f"another {name}")
    assert keep(tmp_path, made=(3.0,)) == ([3.0], 1)


def test_plain_data_are_kept_as_json(tmp_path):
    content = {"a": [1, None, "x"]}
    assert Store(tmp_path).cached("answers", KEY, lambda: content) == content
    assert Store(tmp_path).cached("answers", KEY, lambda: pytest.fail("made again")) == content
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


def test_a_damaged_entry_is_made_again_with_one_line(tmp_path, caplog):
    keep(tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert keep(tmp_path, made=(2.0,)) == ([2.0], 1)
    assert [record.message for record in caplog.records] == [
        f"cache: {file} is damaged, or not what its name says: it is made again"
    ]
    assert keep(tmp_path) == ([2.0], 0)


def test_a_disk_that_cannot_be_written_costs_only_the_entry(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    assert keep(tmp_path) == ([1.0], 1)
    assert "cannot be written (No space left on device)" in caplog.text
    monkeypatch.setattr(store, "lock", full)
    assert keep(tmp_path) == ([1.0], 1)


def test_an_error_is_raised_and_lets_go_of_the_entry(tmp_path):
    def make():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Store(tmp_path).cached("fits", KEY, make)
    assert Store(tmp_path).cached("fits", KEY, lambda: [1]) == [1]


# Processes forked from one without threads: a fork of the tests' own process, which has some, may wait for ever.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["fairpriv.store"])


def work(root, number):
    """One of several processes that want the same entry."""

    def make():
        Path(root, f"made by {number}").touch()
        time.sleep(0.3)
        return [number]

    Path(root, f"{number} found {Store(root).cached('answers', KEY, make)}").touch()


def test_of_several_processes_one_makes_what_all_read(tmp_path):
    workers = [CLEAN.Process(target=work, args=(tmp_path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    (made,) = tmp_path.glob("made by *")
    number = made.name[-1]
    assert {path.name for path in tmp_path.glob("* found *")} == {f"{n} found [{number}]" for n in range(4)}


def hold(path):
    """One that dies while it makes an entry."""
    with lock(path):
        path.with_name("held").touch()
        time.sleep(60)


def test_an_entry_whose_maker_died_is_made_by_another(tmp_path):
    Store(tmp_path).cached("answers", KEY, lambda: [1])
    (entry,) = tmp_path.rglob("*.json")
    entry.unlink()
    other = CLEAN.Process(target=hold, args=(entry.with_suffix(".lock"),))
    other.start()
    while other.is_alive() and not entry.with_name("held").exists():
        time.sleep(0.01)
    other.kill()
    other.join()
    assert Store(tmp_path).cached("answers", KEY, lambda: [2]) == [2]


def test_of_many_only_those_that_are_missing_are_made(tmp_path, caplog):
    made = []

    def lengths(names):
        made.append(names)
        return {name: len(name) for name in names if name != "later"}  # which is asked for again

    def get(*wanted, judge="a"):
        return Store(tmp_path).cached_each("lengths", {"judge": judge}, wanted, lengths)

    assert get("a", "bb", "a", "later") == {"a": 1, "bb": 2}
    assert get("bb", "ccc") == {"bb": 2, "ccc": 3}
    assert get("ccc", "a") == {"ccc": 3, "a": 1}
    assert get("later") == {}
    assert get("a", judge="b") == {"a": 1}
    assert made == [["a", "bb", "later"], ["ccc"], ["later"], ["a"]]
    for path in (tmp_path / "cache" / "lengths").glob("*/*.json"):
        path.write_text("{")
    assert get("a") == {"a": 1}
    assert made[-1] == ["a"]
    assert any("is damaged" in record.message for record in caplog.records)
