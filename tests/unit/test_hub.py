"""What reads the Hugging Face hub, over HTTP, against a stand-in of it on this machine."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import torch
from huggingface_hub import ModelCard

from fairpriv.cli import main
from fairpriv.data import sources
from fairpriv.data.pretrained_encoder import PretrainedEncoder
from fairpriv.data.sources import Hub
from fairpriv.editing import SpinEdit
from fairpriv.errors import InputError
from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.judges.judge import load_pretrained
from fairpriv.language_models.judges.pairs import Pairs
from fairpriv.language_models.models.pretrained import PretrainedLM

TOKEN = "hf_a_token_of_an_account"


class StandIn(ThreadingHTTPServer):
    """The few routes that the hub's client asks; commits are the hashes of what a revision holds."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}  # by "models/OWNER/NAME": files, by revision and path
        self.gated: set[str] = set()  # names whose terms TOKEN's account has accepted
        self.made: dict[str, str | None] = {}  # who may see the repositories that were made
        self.cuts = 0  # transfers that are still to break, in their middle
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo, revision):
        """The commit that a branch or a commit names; None: there is none."""
        found = {hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest(): name for name, files in repo.items()}
        return revision if revision in found else next((sha for sha, name in found.items() if name == revision), None)

    def files(self, repo, commit):
        return next(files for name, files in repo.items() if self.commit(repo, name) == commit)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        path, hub = urlsplit(self.path).path, self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.send(401)
        if path == "/api/repos/create":
            told = json.loads(body)
            owner, name = told.get("organization", "owner"), told["name"]
            hub.made[f"{owner}/{name}"] = told.get("visibility")
            hub.repos.setdefault(f"models/{owner}/{name}", {"main": {}})
            return self.send(200, json.dumps({"url": f"{hub.url}/{owner}/{name}"}).encode())
        if path == "/api/validate-yaml":
            return self.send(200, b'{"errors": [], "warnings": []}')
        repo = hub.repos["/".join(path.split("/")[2:5])]
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.send(200, json.dumps({"files": files}).encode())
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repo["main"] = repo["main"] | {line["value"]["path"]: base64.b64decode(line["value"]["content"])}
        commit = hub.commit(repo, "main")
        url = f"{hub.url}/owner/edit/commit/{commit}"
        return self.send(200, json.dumps({"success": True, "commitOid": commit, "commitUrl": url}).encode())

    def answer(self):
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.asked.append((self.command, path))
        api = re.fullmatch(r"/api/(models|datasets)/([\w-]+/[\w.-]+)(?:/(revision|tree)/([^/]+).*)?", path)
        file = re.fullmatch(r"/(datasets/)?([\w-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if not (api or file):
            return self.send(404)
        kind = api[1] if api else "datasets" if file[1] else "models"
        repo = hub.repos.get(f"{kind}/{(api or file)[2]}")
        if repo is None:
            return self.send(404, code="RepoNotFound")
        commit = hub.commit(repo, (api[4] if api else file[3]) or "main")
        if commit is None:
            return self.send(404, code="RevisionNotFound")
        if file and file[2] in hub.gated and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.send(403 if self.headers["Authorization"] else 401, code="GatedRepo")
        files = hub.files(repo, commit)
        if api and api[3] == "tree":
            rows = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            return self.send(200, json.dumps(rows if kind == "datasets" else []).encode())
        if api:
            siblings = [{"rfilename": name} for name in files]
            return self.send(200, json.dumps({"id": api[2], "sha": commit, "siblings": siblings}).encode())
        if file[4] not in files:
            return self.send(404, code="EntryNotFound", commit=commit)
        return self.send(200, files[file[4]], commit=commit)

    def send(self, status, data=b"", *, code=None, commit=None):
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(begin[1]) if begin and status == 200 else 0
        self.send_response(206 if first else status)
        named = {"X-Error-Code": code, "X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if first:
            named["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        for name, value in {"Content-Length": len(data) - first, **named}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            whole = data[first:]
            if self.server.cuts and len(whole) > 1000:
                self.server.cuts -= 1
                whole = whole[: len(whole) // 2]
            self.wfile.write(whole)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of the test's own, and an empty cache; no account is known."""
    stand_in = StandIn()
    threading.Thread(target=stand_in.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, value in {
        "ENDPOINT": stand_in.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": stand_in.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)  # before a transfer is resumed
    sources._from_hub.cache_clear()
    yield stand_in
    sources._from_hub.cache_clear()
    stand_in.shutdown()
    stand_in.server_close()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights(model):
    return model.state_dict()["lm_head.weight"]


def judge():
    return load_pretrained(
        "mine",
        "AutoModelForCausalLM",
        "owner/tiny",
        revision=None,
        dtype="float32",
        device_map=None,
        trust_remote_code=False,
    )


LOADERS = {
    "language model": lambda: PretrainedLM("tiny", "owner/tiny").load(),
    "judge": judge,
    "encoder": lambda: PretrainedEncoder("tiny", "owner/tiny").load(),
    "judge of pairs": lambda: Pairs(path="owner/tiny")._loaded,
}


@pytest.fixture(params=LOADERS)
def loader(request, hub, tiny_lm, tiny_encoder):
    """What loads a model of the hub, from the stand-in that has it."""
    folder = tiny_lm if request.param in ("language model", "judge") else tiny_encoder
    hub.repos["models/owner/tiny"] = {"main": content(folder)}
    return LOADERS[request.param]


def test_a_model_is_found_by_its_revision_and_loaded(hub, tiny_lms):
    hub.repos["models/owner/tiny"] = {"main": content(tiny_lms["llama"]), "v2": content(tiny_lms["qwen2"])}
    first, second = PretrainedLM("tiny", "owner/tiny"), PretrainedLM("tiny", "owner/tiny", revision="v2")
    digests = [first.digest(), second.digest()]
    assert digests == [hub.commit(hub.repos["models/owner/tiny"], name) for name in ("main", "v2")]
    model, tokenizer = second.load()
    assert type(model).__name__ == "Qwen2ForCausalLM"
    own = PretrainedLM("tiny", str(tiny_lms["qwen2"])).load()
    assert torch.equal(weights(model), weights(own[0]))
    assert tokenizer.chat_template == own[1].chat_template
    assert type(first.load()[0]).__name__ == "LlamaForCausalLM"
    hub.asked.clear()
    again = [PretrainedLM("tiny", "owner/tiny", revision=revision).digest() for revision in (None, "v2")]
    assert (again, hub.asked) == (digests, [])  # what is in the cache is not asked for


@pytest.mark.parametrize(
    ("path", "revision", "message"),
    [
        ("owner/other", None, "the hub has no model of that name (a private one needs HF_TOKEN)"),
        ("owner/tiny", "v3", "the hub has no revision 'v3' of it"),
    ],
)
def test_a_model_that_is_not_there_is_said(hub, path, revision, message):
    hub.repos["models/owner/tiny"] = {"main": {}}
    with pytest.raises(InputError) as raised:
        PretrainedLM("tiny", path, revision=revision).load()
    assert str(raised.value) == f"model.path={path}: {message}; or give a local folder as model.path"


def test_a_gated_model_says_what_to_accept_and_loads_with_the_token(hub, loader, monkeypatch):
    hub.gated.add("owner/tiny")
    with pytest.raises(
        InputError, match=r"accept its terms at https://huggingface.co/owner/tiny .* HF_TOKEN"
    ) as raised:
        loader()
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    loader()


def test_a_judge_that_has_been_fetched_needs_no_network(hub, tiny_lm):
    hub.repos["models/owner/tiny"] = {"main": content(tiny_lm)}
    judge()
    hub.asked.clear()
    judge()
    assert hub.asked == []


def test_a_transfer_that_breaks_is_resumed_and_the_file_is_whole(hub, tiny_lm):
    hub.repos["models/owner/tiny"] = {"main": content(tiny_lm)}
    hub.cuts = 2
    model = PretrainedLM("tiny", "owner/tiny").load()[0]
    assert hub.cuts == 0
    assert torch.equal(weights(model), weights(PretrainedLM("tiny", str(tiny_lm)).load()[0]))


def test_of_a_transfer_that_keeps_breaking_no_half_file_is_used(hub, loader):
    hub.cuts = 1000
    with pytest.raises(InputError) as raised:
        loader()
    assert "\n" not in str(raised.value)
    hub.cuts = 0
    loader()


def test_a_data_set_is_read_by_its_revision(hub):
    hub.repos["datasets/owner/pairs"] = {
        "main": {"data/a.csv": b"prompt\none\n"},
        "v2": {"data/a.csv": b"prompt\ntwo\n"},
    }
    first, second = (Hub("owner/pairs", ["data/a.csv"], revision=revision) for revision in (None, "v2"))
    assert [path.read_text() for path in first.locate() + second.locate()] == ["prompt\none\n", "prompt\ntwo\n"]
    assert first.digest() != second.digest()


def test_a_data_set_that_cannot_be_had_is_said_on_one_line(hub):
    hub.repos["datasets/owner/pairs"] = {"main": {"a.csv": b"prompt\n" + b"x\n" * 9000}}
    for source in (
        Hub("owner/no", ["a.csv"]),
        Hub("owner/pairs", ["b.csv"]),
        Hub("owner/pairs", ["a.csv"], revision="v3"),
    ):
        with pytest.raises(InputError, match="the hub did not give it") as raised:
            source.locate()
        assert "\n" not in str(raised.value)
    hub.gated.add("owner/pairs")
    with pytest.raises(InputError, match=r"accept its terms at \S+/datasets/owner/pairs .* HF_TOKEN"):
        Hub("owner/pairs", ["a.csv"]).locate()
    hub.gated.clear()
    hub.cuts = 1000
    with pytest.raises(InputError, match="the hub did not give it"):
        Hub("owner/pairs", ["a.csv"]).locate()
    hub.cuts = 1
    assert Hub("owner/pairs", ["a.csv"]).locate()[0].stat().st_size == 18007


def test_a_task_of_lm_eval_has_its_data_from_the_hub(hub, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    import datasets

    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_DATASETS_CACHE": tmp_path / "datasets",
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    rows = "".join(json.dumps({"question": f"Who may read letter {i}?", "label": i % 2}) + "\n" for i in range(50))
    hub.repos["datasets/owner/letters"] = {"main": {"test.jsonl": rows.encode()}}
    task = {
        "task": "letters",
        "dataset_path": "owner/letters",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["me", "you"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    assert Harness([task]).metrics() == {"letters": ["acc"]}
    missing = task | {"dataset_path": "owner/none"}
    with pytest.raises(InputError, match="its data is on the Hugging Face hub, and neither there to be had"):
        Harness([missing]).metrics()
    hub.gated.add("owner/gated")
    hub.repos["datasets/owner/gated"] = hub.repos["datasets/owner/letters"]
    with pytest.raises(InputError, match=r"accept its terms at https://huggingface.co/datasets/owner/gated"):
        Harness([task | {"dataset_path": "owner/gated"}]).metrics()


@pytest.fixture
def edit(tiny_lm, tmp_path) -> Path:
    """The file of an edit of the tiny model."""
    model = PretrainedLM("tiny", str(tiny_lm)).load()[0]
    told = {"name": "owner/tiny", "base": {"revision": "abc"}, "dimensions": ["fairness", "privacy"], "ratio": 0.1}
    SpinEdit.of(model, {"lm_head.weight": torch.tensor([3, 5])}, told | {"seed": 7}).save(tmp_path / "edit.safetensors")
    return tmp_path / "edit.safetensors"


def push(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["edit", "push", *map(str, words)])
    return int(ended.value.code)


def test_an_edit_is_pushed_with_its_provenance(hub, edit, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert push(edit, "--repo", "owner/edit") == 0
    assert capsys.readouterr().out == f"{hub.url}/owner/edit\n"
    assert hub.made == {"owner/edit": "private"}
    fetched = huggingface_hub.hf_hub_download("owner/edit", "edit.safetensors")
    assert SpinEdit.load(fetched).metadata == SpinEdit.load(edit).metadata
    card = ModelCard.load("owner/edit")
    assert (card.data.base_model, card.data.tags) == ("owner/tiny", ["fairpriv"])
    for row in ("| weights suppressed | 2 |", '| dimensions | ["fairness", "privacy"] |', "| seed | 7 |"):
        assert row in card.text
    hub.repos["models/owner/edit"]["main"]["README.md"] = b"mine"
    assert push(edit, "--repo", "owner/edit") == 0
    assert hub.repos["models/owner/edit"]["main"]["README.md"] == b"mine"


@pytest.mark.parametrize(
    ("repo", "message"),
    [("owner/edit", "set HF_TOKEN to a token that may write to owner/edit"), ("a/b/c", "must be OWNER/NAME")],
)
def test_an_edit_that_the_hub_does_not_take_is_one_line(hub, edit, capsys, repo, message):
    assert push(edit, "--repo", repo) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_edit_is_not_pushed_where_there_is_no_hub(hub, edit, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(edit, "--repo", "owner/edit") == 2
    assert "edit push: the hub cannot be reached (ConnectError)" in capsys.readouterr().err
