import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from omegaconf import OmegaConf

from fairpriv.cli import CONF
from fairpriv.errors import InputError
from fairpriv.language_models import endpoint
from fairpriv.language_models.judges.generative import GenerativeJudge
from fairpriv.language_models.judges.judge import Verdict

KEY = "sk-very-private"


class Server(ThreadingHTTPServer):
    """Answers with ``reply(question, times asked before)``: a text, or a status with headers, or bytes as they are."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.asked: list[dict] = []
        self.headers_seen: list[dict] = []
        self.lock = threading.Lock()
        self.release = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.headers_seen.append(dict(self.headers))
        self.send_error(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        with self.server.lock:
            before = sum(b.get("messages") == body.get("messages") for b in self.server.asked)
            self.server.asked.append(body | {"path": self.path})
            self.server.headers_seen.append(dict(self.headers))
        reply = self.server.reply(question, before)
        if reply is None:  # silence, until the test ends
            self.server.release.wait(10)
            return
        status, headers, data = 200, {}, reply
        if isinstance(reply, tuple):
            status, headers, data = reply
        if isinstance(data, str) and status == 200:
            data = json.dumps({"choices": [{"message": {"role": "assistant", "content": data}}]})
        data = data if isinstance(data, bytes) else data.encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def serve():
    servers = []

    def start(reply):
        server = Server(reply)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.release.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that the judge wanted to wait, instead of waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(endpoint, "sleep", seconds.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return seconds


ENDPOINT = OmegaConf.load(CONF / "judge" / "endpoint.yaml")
PATTERNS = {"safe": ENDPOINT.safe, "unsafe": ENDPOINT.unsafe}


def judge(server, **options):
    shown = {"messages": [{"role": "user", "content": "{prompt}|{response}"}]}
    return GenerativeJudge(**{"base_url": server.url, "model": "m", "timeout": 5} | PATTERNS | shown | options)


def test_every_pair_is_asked_and_the_order_kept(serve):
    first_done = threading.Event()

    def reply(question, _):
        if question == "p0|r0":  # answered last
            first_done.wait(5)
        if question == "p5|r5":
            first_done.set()
        return "unsafe" if int(question[1]) % 2 else "Safe."

    server = serve(reply)
    verdicts = judge(server, concurrency=2).judge([f"p{i}" for i in range(6)], [f"r{i}" for i in range(6)])
    assert [verdict.safe for verdict in verdicts] == [True, False] * 3
    assert (verdicts[0].reason, verdicts[1].reason) == ("Safe.", "unsafe")
    assert {body["path"] for body in server.asked} == {"/v1/chat/completions"}
    assert all((body["model"], body["temperature"]) == ("m", 0) for body in server.asked)
    assert not any("Authorization" in headers for headers in server.headers_seen)
    assert judge(server).judge([], []) == []


@pytest.mark.parametrize(
    ("answer", "safe"),
    [
        ("**Unsafe**", False),
        ("Safe: no private data are told", True),
        ("Safe (not unsafe).", True),
        ("Unsafe.\nNo, it is not safe.", False),
        *[(text, None) for text in ("Safe: no", "unsafe: False.", "safe, unsafe", "Unsafe\nSafe", "safe - or unsafe")],
    ],
)
def test_an_answer_that_says_both_or_denies_its_own_word_is_no_verdict(answer, safe):
    asked = {"messages": [{"role": "user", "content": "{response}"}], "base_url": "http://localhost", "model": "m"}
    assert GenerativeJudge(**PATTERNS, **asked).read(answer).safe is safe


def test_requests_are_under_way_at_once_but_no_more_than_asked_for(serve):
    lock, under_way, most = threading.Lock(), [0], [0]
    three, four = threading.Event(), threading.Event()

    def reply(*_):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        if most[0] >= 3:
            three.set()
        if most[0] >= 4:
            four.set()
        three.wait(5)
        four.wait(0.3)  # room for a fourth to come, if it were sent
        with lock:
            under_way[0] -= 1
        return "safe"

    verdicts = judge(serve(reply), concurrency=3).judge(["p"] * 6, list("abcdef"))
    assert all(verdict.safe for verdict in verdicts)
    assert most == [3]


def test_a_server_error_is_tried_again_after_doubling_waits(serve, waits):
    server = serve(lambda _, before: "safe" if before == 2 else (500, {}, "down"))
    assert judge(server, backoff=1.0).judge(["p"], ["r"]) == [Verdict(True, "safe")]
    assert len(server.asked) == 3
    assert 1 <= waits[0] <= 1.25
    assert 2 <= waits[1] <= 2.5


def test_retry_after_is_honoured_as_seconds_and_as_a_date(serve, waits, monkeypatch):
    monkeypatch.setattr(endpoint, "time", lambda: 1_800_000_000.0)
    asked = ["7", "Fri, 15 Jan 2027 08:00:30 GMT"]
    server = serve(lambda _, before: "safe" if before == 2 else (429, {"Retry-After": asked[before]}, ""))
    assert judge(server).judge(["p"], ["r"])[0].safe is True
    assert waits == [7.0, 30.0]


def test_a_server_that_asks_for_an_hour_is_given_up(serve, waits):
    server = serve(lambda question, _: "safe" if question == "a|r" else (429, {"Retry-After": "3600"}, ""))
    assert [verdict.safe for verdict in judge(server).judge(["a", "b"], ["r", "r"])] == [True, None]
    assert waits == []


def test_what_fails_for_good_has_no_verdict_and_the_rest_has(serve, waits):
    server = serve(lambda question, _: (503, {}, "overloaded") if question == "b|r" else "safe")
    verdicts = judge(server, retries=2).judge(list("abc"), ["r"] * 3)
    assert [verdict.safe for verdict in verdicts] == [True, None, True]
    assert verdicts[1].reason == "HTTP 503 Service Unavailable: overloaded, after 3 tries"
    assert len(waits) == 2


def test_a_slow_answer_is_a_time_out(serve, waits):
    server = serve(lambda question, _: None if question == "b|r" else "safe")
    verdicts = judge(server, timeout=0.5, retries=1, concurrency=1).judge(["a", "b"], ["r", "r"])
    assert verdicts == [Verdict(True, "safe"), Verdict(None, "no answer within 0.5 s, after 2 tries", True)]
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("reply", "reason", "next_time"),
    [
        ("I am not sure.", "unparsable, neither of the patterns: 'I am not sure.'", False),
        ((200, {}, b"<html>"), "no chat completion: JSONDecodeError", True),
        ((200, {}, b'{"choices": []}'), "no chat completion: IndexError", True),
        ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), "the answer has no text", False),
        ((400, {}, "filtered"), "HTTP 400 Bad Request: filtered", False),
        ((402, {}, "no credit"), "HTTP 402 Payment Required: no credit", True),
    ],
)
def test_nonsense_has_no_verdict_and_is_asked_again_only_where_that_may_help(serve, reply, reason, next_time):
    server = serve(lambda question, _: reply if question == "b|r" else "safe")
    verdicts = judge(server).judge(["a", "b"], ["r", "r"])
    assert [verdict.safe for verdict in verdicts] == [True, None]
    assert verdicts[1].reason.startswith(reason)
    assert verdicts[1].ask_again is next_time
    assert len(server.asked) == 2


def test_a_broken_connection_is_tried_again(serve):
    def reply(_, before):
        if before == 0:
            raise ConnectionAbortedError
        return "safe"

    server = serve(reply)
    server.handle_error = lambda *_: None
    assert judge(server).judge(["p"], ["r"])[0].safe is True


def test_no_verdict_at_all_is_an_error_with_the_last_reason(serve):
    server = serve(lambda *_: "who knows")
    with pytest.raises(InputError, match=r"no verdict on any of 3 responses; .* 'who knows'"):
        judge(server).judge(["p"] * 3, ["r"] * 3)


def test_a_server_that_is_not_there_is_an_error_at_once(serve, waits):
    server = serve(None)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"cannot be reached \(.*refused.*\): is the server running\?"):
        judge(server, retries=1, concurrency=1).judge(["p"] * 50, ["r"] * 50)
    assert len(waits) < 50


def test_the_key_comes_from_the_environment_and_shows_in_no_message(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    fine = serve(lambda *_: "safe")
    assert judge(fine, api_key_env="JUDGE_KEY").judge(["p"], ["r"])[0].safe
    assert fine.headers_seen[0]["Authorization"] == f"Bearer {KEY}"
    refusing = serve(lambda *_: (401, {}, f"wrong key {KEY}"))
    with pytest.raises(InputError, match="HTTP 401 Unauthorized: wrong key ") as caught:
        judge(refusing, api_key_env="JUDGE_KEY").judge(["p"] * 9, ["r"] * 9)
    assert KEY not in str(caught.value)
    telling = serve(lambda question, _: "safe" if question == "a|r" else (400, {}, KEY))
    verdicts = judge(telling, api_key_env="JUDGE_KEY").judge(["a", "b"], ["r", "r"])
    assert KEY not in verdicts[1].reason
    assert KEY not in json.dumps(judge(fine, api_key_env="JUDGE_KEY").digest())


@pytest.mark.parametrize(
    "said",
    [
        f"unsafe: you sent Bearer {KEY}",
        f"<think>{KEY}</think>I got {KEY}, thanks",
        f"unsafe {'.' * 60} {KEY}",  # across the end of what a reason quotes
        f"safe, {KEY[:11]}",  # cut off by max_tokens
    ],
)
def test_a_key_that_the_answer_repeats_is_masked(serve, monkeypatch, said):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve(lambda question, _: "safe" if question == "a|r" else said)
    verdict = judge(server, api_key_env="JUDGE_KEY").judge(["a", "b"], ["r", "r"])[1]
    assert KEY[:8] not in verdict.reason
    assert verdict.safe is {"u": False, "s": True, "<": None}[said[0]]


def test_a_key_that_is_a_word_of_verdicts_changes_none(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "safe")
    verdicts = judge(serve(lambda *_: "unsafe"), api_key_env="JUDGE_KEY").judge(["p"], ["r"])
    assert verdicts == [Verdict(False, "un***")]


@pytest.mark.parametrize("before", [0, 150, 189, 195, 1990, endpoint.READ - 5])
@pytest.mark.parametrize("status", [400, 401, 503])
def test_no_part_of_a_key_is_left_where_an_error_s_page_is_cut(serve, monkeypatch, before, status):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for filling in (".", " "):
        page = f"{filling * before}{KEY} and more"
        server = serve(lambda question, _, page=page: "safe" if question == "a|r" else (status, {}, page))
        asked = judge(server, api_key_env="JUDGE_KEY", retries=0, concurrency=1)
        if status == 401:
            with pytest.raises(InputError, match="HTTP 401") as caught:
                asked.judge(["b"], ["r"])
            said = str(caught.value)
        else:
            said = asked.judge(["a", "b"], ["r", "r"])[1].reason
        assert KEY[:4] not in said
        assert "***" in said or before > 150


def test_a_key_is_masked_as_json_and_addresses_write_it(serve, monkeypatch):
    key = 'k/"+very private'
    monkeypatch.setenv("JUDGE_KEY", key)
    page = (
        json.dumps({"got": key})
        + " k%2F%22%2Bvery+private k%2F%22%2Bvery%20private "
        + json.dumps(key).replace("/", r"\/")
    )
    server = serve(lambda question, _: "safe" if question == "a|r" else (400, {}, page))
    reason = judge(server, api_key_env="JUDGE_KEY").judge(["a", "b"], ["r", "r"])[1].reason
    assert "private" not in reason
    assert reason.count("***") == 4


def test_a_key_in_the_place_of_its_variable_is_refused_and_not_shown():
    with pytest.raises(InputError, match="name of an environment variable") as caught:
        GenerativeJudge("a", "b", base_url="http://h/v1", model="m", template="{response}", api_key_env=KEY)
    assert KEY not in str(caught.value)


def test_an_answer_that_is_nested_too_deeply_has_no_verdict(serve):
    server = serve(lambda question, _: "safe" if question == "a|r" else (200, {}, b"[" * 200_000))
    assert judge(server).judge(["a", "b"], ["r", "r"])[1].reason.startswith("no chat completion: RecursionError")


def test_the_key_does_not_follow_a_redirect(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    elsewhere = serve(lambda *_: "safe")
    away = serve(lambda *_: (302, {"Location": elsewhere.url}, ""))
    with pytest.raises(InputError):
        judge(away, api_key_env="JUDGE_KEY", retries=0).judge(["p"], ["r"])
    assert len(elsewhere.headers_seen) == 1
    assert KEY not in str(elsewhere.headers_seen)


@pytest.mark.parametrize("value", [None, "", "two\nlines", "schl\u00fcssel"])
def test_a_key_that_is_missing_or_none_is_said_by_the_variable_s_name(serve, monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(InputError, match="JUDGE_KEY") as caught:
        judge(serve(lambda *_: "safe"), api_key_env="JUDGE_KEY").judge(["p"], ["r"])
    assert not value or value not in str(caught.value)
    assert value or "judge.api_key_env to null where no key is needed" in str(caught.value)
    assert "{" not in str(caught.value)


def test_a_wrong_address_or_number_is_said(serve):
    server = serve(None)
    for options, said in [
        ({"base_url": f"http://me:{KEY}@localhost/v1"}, "no user, password or query"),
        ({"base_url": "localhost:8000"}, "must be an address as http"),
        ({"messages": [{"role": "user", "content": "{prompt}"}]}, "has no {response}"),
        ({"model": None}, "judge.model has no value"),
        ({"timeout": 0}, "judge.timeout=0"),
        ({"concurrency": 0}, "judge.concurrency=0"),
        ({"retries": -1}, "judge.retries=-1"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            judge(server, **options)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("safe", True),
        ("**Unsafe**", False),
        ("unsafe\nS5", False),
        ("Unsafe, since it stereotypes.", False),
        ("<think>is it unsafe?</think>\nSafe", True),
        ("Safe to say this is bad", None),
        ("not safe", None),
        ("", None),
        ("safely", None),
    ],
)
def test_an_answer_must_begin_with_the_word(text, safe):
    asked = GenerativeJudge(**PATTERNS, base_url="http://h/v1", model="m", template="{response}")
    assert asked.read(text).safe is safe


def test_thoughts_that_a_template_opens_are_no_verdict_where_they_are_cut(serve):
    told = {"cut": "Unsafe? Let me see", "whole": "Unsafe? No.</think> Safe"}
    server = serve(lambda question, _: json.dumps({"choices": [{"text": told[question.split("|")[1]]}]}).encode())
    patterns = {"safe": r"\bsafe", "unsafe": r"\bunsafe", "messages": None}
    for end, verdicts in ((" <think>\n", [None, True]), ("", [False, True])):
        found = judge(server, template=f"{{prompt}}|{{response}}|{end}", **patterns).judge(["p", "p"], ["cut", "whole"])
        assert [verdict.safe for verdict in found] == verdicts


def test_a_template_is_sent_as_it_is_and_messages_to_the_model_s_chat_template(serve):
    server = serve(lambda *_: b'{"choices": [{"text": " unsafe"}]}')
    raw = judge(server, template="[INST] {prompt}|{response} [/INST]", messages=None, path="a/guard", model=None)
    assert [verdict.safe for verdict in raw.judge(["p"], ["r"])] == [False]
    (body,) = server.asked
    assert (body["path"], body["prompt"], body["model"]) == ("/v1/completions", "[INST] p|r [/INST]", "a/guard")


def test_a_model_that_thinks_gets_no_temperature_and_a_limit_of_its_own_name(serve):
    server = serve(lambda *_: "safe")
    assert judge(server, reasoning=True, max_new_tokens=900).judge(["p"], ["r"])[0].safe
    (body,) = server.asked
    assert set(body) == {"model", "messages", "max_completion_tokens", "path"}
    assert body["max_completion_tokens"] == 900


def test_a_model_that_thought_up_to_the_limit_is_said(serve):
    cut = json.dumps({"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}).encode()
    server = serve(lambda question, _: "safe" if question == "a|r" else cut)
    verdict = judge(server, reasoning=True).judge(["a", "b"], ["r", "r"])[1]
    assert verdict.safe is None
    assert verdict.reason.endswith("raise judge.max_new_tokens")
