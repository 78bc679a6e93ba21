"""Answers by a server: a small one of ours that loads what it is asked for, and `transformers serve`."""

import json
import os
import re
import signal
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from light import until
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairpriv.cli import CONF
from fairpriv.errors import InputError
from fairpriv.language_models import observation
from fairpriv.language_models.defenses import spin
from fairpriv.language_models.engines.generation import respond
from fairpriv.language_models.engines.server import Question, Served, ServerEngine, parting, supervised
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.scorers.scorer import Subject
from fairpriv.result import Result


class Server(ThreadingHTTPServer):
    """Loads the model that a request names, and answers greedily by its own generation config."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.loaded = {}
        self.lock = threading.Lock()
        self.bodies = []
        self.dies_after = None  # requests
        self.counts = 0  # tokens that it adds to every prompt
        self.always = None  # the model that it serves, whatever is asked for

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            if server.dies_after is not None and len(server.bodies) > server.dies_after:
                self.close_connection = True
                return
            folder = server.always or body["model"]
            if folder not in server.loaded:
                parts = AutoModelForCausalLM, AutoTokenizer
                server.loaded[folder] = [part.from_pretrained(folder) for part in parts]
            model, tokenizer = server.loaded[folder]
            if chat := "messages" in body:
                asked = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
            else:
                asked = body["prompt"] if isinstance(body["prompt"], list) else tokenizer(body["prompt"])["input_ids"]
            ids = torch.tensor([asked])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=body["max_tokens"])
            text = tokenizer.decode(out[0, len(asked) :], skip_special_tokens=True)
        choice = {"message": {"content": text}} if chat else {"text": text}
        data = json.dumps({"choices": [choice], "usage": {"prompt_tokens": len(asked) + server.counts}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    one = Server()
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def over(server) -> list[str]:
    keys = {"base_url": server.url, "concurrency": 2, "retries": 0, "backoff": 0, "compare": 2}
    return ["engine=server", *(f"evaluation.engine.{key}={value}" for key, value in keys.items())]


def result(ended) -> tuple[Result, list[str]]:
    assert ended.status == 0, ended.err
    path = Path(ended.out.strip().splitlines()[-1])
    return Result.read(path), [
        json.loads(line)["response"] for line in (path.parent / "responses.jsonl").read_text().splitlines()
    ]


def test_an_edited_model_is_served_and_a_server_that_dies_is_gone_on_from(
    fairpriv, words, server, tmp_path, monkeypatch
):
    edit = ["defense=spin", "defense.ratio=0.2", "defense.samples=2"]
    monkeypatch.setattr(spin, "KEPT", 0.2)  # of matrices this small a thousandth is nothing
    asked = [*words, *edit, "hydra.mode=RUN", "evaluation.benign=0", "evaluation.text=null"]
    here, own = result(fairpriv(*asked, f"paths.root={tmp_path / 'here'}"))
    monkeypatch.setattr(observation, "respond", None)
    server.dies_after = 8  # of the edited model's prompts some are answered
    ended = fairpriv(*asked, *over(server))
    assert ended.status == 2
    assert re.search(
        r"engine: http://\S+ gave no answer to [1-5] of 6 prompts \(.+\); what it answered is kept", ended.err
    )
    first = [[body["model"], body["prompt"]] for body in server.bodies[:8]]
    server.dies_after, server.bodies[:] = None, []
    served, told = result(fairpriv(*asked, *over(server)))
    assert told == own
    second = [body["prompt"] for body in server.bodies]
    assert len(first) + len(second) == 12
    assert len({folder for folder, _ in first}) == 2
    assert not [prompt for folder, prompt in first if folder == first[-1][0] and prompt in second]
    assert not [*tmp_path.rglob(".serving-*")]
    assert served.id != here.id
    ours = {name: value for name, value in served.metrics.items() if not name.startswith("engine/")}
    assert ours == here.metrics
    assert served.metrics["engine/ties"] == 0
    assert served.metrics["engine/compared"] >= 4


@pytest.fixture
def subject(tiny_lm) -> Subject:
    model, tokenizer = PretrainedLM(name="tiny", path=str(tiny_lm)).load()
    model.generation_config.update(do_sample=True, repetition_penalty=5.0)  # which count neither here nor there
    return Subject(model, tokenizer)


@pytest.fixture
def ask(subject, tmp_path):
    """Asks a server two prompts of the tiny model, and returns its answers with this process's."""

    def call(**settings):
        prompts = ["Who may see my file?", "Can a nurse be a man?"]
        ids = subject.prompt_ids(prompts)
        questions = {prompt: Question(tuple(tokens), prompt) for prompt, tokens in zip(prompts, ids, strict=True)}
        options = {"max_new_tokens": 8, "end": subject.end()}
        with ServerEngine(**{"retries": 0, "backoff": 0} | settings).serving(subject, root=tmp_path, **options) as one:
            told = one.ask(questions)
        own = respond(subject.model, subject.tokenizer, ids, batch_tokens=512, **options)
        return one, told, dict(zip(prompts, own, strict=True))

    return call


@pytest.mark.parametrize("prompts", ["tokens", "text", "messages"])
def test_each_form_of_a_prompt_gives_this_process_s_answers(ask, server, prompts):
    _, told, own = ask(base_url=server.url, prompts=prompts, compare=1)
    assert {prompt: text for prompt, (text, _) in told.items()} == own
    assert [same for _, same in told.values()] == [True, None]
    assert {type(body.get("prompt")) for body in server.bodies} == {
        {"tokens": list, "text": str}.get(prompts, type(None))
    }


def test_a_server_that_reads_other_tokens_is_refused_at_the_first_prompt(ask, server):
    server.counts = 1
    with pytest.raises(
        InputError, match=r"reads (\d+) tokens where the prompt has \d+: its tokenizer or chat template"
    ):
        ask(base_url=server.url)
    assert len(server.bodies) == 1


def test_a_server_of_another_model_is_refused(ask, server, tiny_lms):
    server.always = str(tiny_lms["qwen2"])
    with pytest.raises(InputError, match=r"prompt 1 is answered .* they part by a logit of .* serves another model"):
        ask(base_url=server.url, model="mine")
    assert {body["model"] for body in server.bodies} == {"mine"}


FORWARD = """\
import sys, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
class Forward(BaseHTTPRequestHandler):
    looked = 0
    def do_GET(self):
        Forward.looked += 1
        self.send_response(503 if Forward.looked == 1 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with urllib.request.urlopen(urllib.request.Request(sys.argv[2] + self.path[3:], body)) as reply:
            data = reply.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Forward).serve_forever()
"""


def test_a_command_is_started_waited_for_and_stopped(ask, server, tmp_path):
    words = [sys.executable, "-c", FORWARD, "{port}", server.url, "{model}", "{dtype}"]
    one, told, own = ask(command=words, concurrency=1)
    assert {prompt: text for prompt, (text, _) in told.items()} == own
    assert one._process.args[-1] == "float32"
    assert one._process.poll() is not None
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-program", "{model}", "{port}"], "no-such-program cannot be started: is it installed"),
        (
            [sys.executable, "-c", "print('out of memory'); exit(3)", "{model}", "{port}"],
            "status 3; its last line: out of",
        ),
        ([sys.executable, "-c", "import time; time.sleep(60)", "{model}", "{port}"], r"does not answer within 0\.1 s"),
    ],
)
def test_a_command_that_does_not_serve_is_told_on_one_line(ask, words, message):
    with pytest.raises(InputError, match=message):
        ask(command=words, start=0.1 if "sleep" in words[2] else 30)


def test_a_server_and_its_model_s_folder_are_gone_when_this_process_is(tmp_path):
    folder = tmp_path / "serving"
    folder.mkdir()
    with (tmp_path / "log").open("wb") as output:
        process = supervised(["sh", "-c", "echo $$; trap '' TERM; while :; do sleep 1; done"], folder, output)
    until(lambda: (tmp_path / "log").read_text())
    server = int((tmp_path / "log").read_text())
    os.kill(server, 0)
    process.stdin.close()  # as the system does for a process that is killed
    assert process.wait(60) == -signal.SIGKILL
    assert not folder.exists()
    until(lambda: not Path(f"/proc/{server}").exists() or "Z" in Path(f"/proc/{server}/stat").read_text().split()[2])


@pytest.mark.parametrize(("what", "status"), [("exit 3", 3), ("kill -9 $$", -9)])
def test_the_exit_status_is_the_server_s(tmp_path, what, status):
    with (tmp_path / "log").open("wb") as output:
        process = supervised(["sh", "-c", what], tmp_path / "serving", output)
    assert process.wait(60) == status
    process.stdin.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either command"),
        ({"base_url": "http://a", "command": ["b"]}, "either command"),
        ({"command": ["vllm", "{model}"]}, r"\{port\} stands nowhere"),
        ({"command": ["{model}", "{port}"], "model": "m"}, "goes with base_url"),
        ({"base_url": "http://a", "prompts": "words"}, "must be tokens, text or messages"),
        ({"base_url": "http://a", "compare": 0}, r"compare=0: must be at least 1"),
        ({"base_url": "file:///a"}, r"evaluation\.engine\.base_url=file:///a: must be an address"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ServerEngine(**settings)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of PEFT
def test_a_model_with_an_adapter_beside_it_is_refused(subject):
    from peft import LoraConfig, get_peft_model

    adapted = replace(subject, model=get_peft_model(subject.model, LoraConfig(target_modules=["q_proj"])))
    with pytest.raises(InputError, match=r"the model is a PeftModel.*engine=transformers"):
        ServerEngine(base_url="http://a").require(adapted)


def test_a_model_that_is_steered_is_refused(subject):
    subject.model.model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="adds to its states"):
        ServerEngine(base_url="http://a").require(subject)


def test_texts_part_at_the_token_that_led_least_among_those_of_one_character():
    class Bytes:
        def decode(self, tokens, **_):
            return bytes(tokens).decode(errors="replace")

    row = [*"Yes, é!".encode()]
    leads = [5.0, 5.0, 5.0, 5.0, 5.0, 0.2, 3.0, 2.0, 0.7]  # é has two bytes; the last is of the end token
    assert parting(Bytes(), row, leads, " Yes, é! ") is None
    assert parting(Bytes(), row, leads, "Yes, ü!") == 0.2  # which begins with the same byte as é
    assert parting(Bytes(), row, leads, "Yes, é?") == 2.0
    assert parting(Bytes(), row, leads, "Yes") == 5.0
    assert parting(Bytes(), row, leads, "Yes, é! More") == 0.7
    assert parting(Bytes(), row, leads[:-1], "Yes, é! More") == float("inf")
    assert parting(Bytes(), row, leads, "Yes, é!", end="!") is not None


@pytest.mark.parametrize(("lead", "same"), [(0.0005, False), (0.01, None)])
def test_a_difference_counts_as_a_tie_only_where_two_tokens_are_as_likely(subject, lead, same):
    row = list(subject.tokenizer("A nurse", add_special_tokens=False)["input_ids"])
    one = Served(ServerEngine(base_url="http://a"), subject, 8, (None, ""), None, None)
    assert one._same(0, "A nurse", row, [lead] * (len(row) + 1))
    if same is None:
        with pytest.raises(InputError, match="another model or precision"):
            one._same(0, "A doctor", row, [lead] * (len(row) + 1))
    else:
        assert one._same(0, "A doctor", row, [lead] * (len(row) + 1)) is same


@pytest.mark.slow
def test_transformers_serve_answers_as_this_process(ask):
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason="pip install 'transformers[serving]'")
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "engine" / "transformers_serve.yaml").engine)
    _, told, own = ask(**settings | {"start": 120})
    assert {prompt: text for prompt, (text, _) in told.items()} == own
    assert [same for _, same in told.values()] == [True, True]
