"""Greedy answers of a language model by an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal
from urllib.error import HTTPError

from fairpriv.editing import export
from fairpriv.errors import InputError
from fairpriv.language_models.endpoint import Endpoint, Reply, opened
from fairpriv.metrics import Metric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fairpriv.language_models.data.tokens import Prompt
    from fairpriv.language_models.scorers.scorer import Subject

log = logging.getLogger(__name__)

# Logits that are closer than this are a tie, which another order of the same sums can turn: a thousandth of a
# token's odds in float32, odds of 1.6 to 1 in half precision.
TIE, HALF_TIE = 1e-3, 0.5
POLL = 0.1  # seconds between two looks at a server that is starting
PATIENCE = 10.0  # seconds that a server may take to end

# Runs the server in its place, waits for it, and ends it with all that it has started, and with the model's folder,
# when its input closes: which it does in whatever way this process ends.
_SUPERVISOR = """
import os, shutil, signal, subprocess, sys, threading
folder, *words = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: None)  # the server's own business; it does not inherit this
server = subprocess.Popen(words, stdin=subprocess.DEVNULL)
def end_with_parent():
    os.read(0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_parent, daemon=True).start()
status = server.wait()
if status < 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""

COMPARED = Metric(
    "engine/compared", "compared answers", "Answers of the server that were compared with this process's.", low=0.0
)
TIES = Metric("engine/ties", "ties", "Those of them that differ, all where two tokens were as likely.", low=0.0)


@dataclass(frozen=True)
class Question:
    """A prompt: the tokens that the model is to see, and the text or messages that they were made of."""

    ids: tuple[int, ...]
    prompt: Prompt


@dataclass
class ServerEngine:
    """Has prompts answered by a server, which is given the model that a cell has tuned or edited.

    The model is written to a folder below ``paths.root`` while it is served. ``command`` starts the server, and stops
    with it; or one that runs already is asked at ``base_url``. In the command ``{model}`` is the folder, ``{port}`` a
    free port and ``{dtype}`` the precision of the weights. Where the model is on a GPU, it makes room meanwhile.

    The first prompts are answered in this process, too. Where the server's answers differ from those by more than
    ties, or it counts other tokens in a prompt, the cell ends: it has another model, tokenizer or chat template.
    Likelihoods, perplexity and lm-eval are computed in this process.

    Attributes:
        command: the words that start the server; null: it runs already.
        base_url: of a server that runs already, such as ``http://localhost:8000/v1``.
        model: as that server names it; null: by the folder, which it is to load.
        prompts: what is sent. ``tokens``: their ids, exactly ours; ``text``: the text that they stand for, for servers
            that take no ids; ``messages``: to ``/chat/completions``, for the server's own chat template.
        compare: how many prompts are answered in this process, too.
        start: seconds until a server that is started here must answer.
        api_key_env: the environment variable that holds the server's key; null: none is sent. The key is never config.
        timeout: seconds without a sign of the server before a request is given up.
        retries: further tries of a request.
        backoff: seconds before the first of them, doubled every time.
        concurrency: requests under way at once.
    """

    kind: ClassVar[str] = "server_engine"

    command: list[str] | None = None
    base_url: str | None = field(default=None, metadata={"outcome": False})
    model: str | None = None
    prompts: Literal["tokens", "text", "messages"] = "tokens"
    compare: int = field(default=8, metadata={"outcome": False})
    start: float = field(default=600.0, metadata={"outcome": False})
    api_key_env: str | None = field(default=None, metadata={"outcome": False})
    timeout: float = field(default=600.0, metadata={"outcome": False})
    retries: int = field(default=3, metadata={"outcome": False})
    backoff: float = field(default=1.0, metadata={"outcome": False})
    concurrency: int = field(default=64, metadata={"outcome": False})

    def __post_init__(self) -> None:
        if (self.command is None) == (self.base_url is None):
            raise InputError("evaluation.engine: give either command, which starts a server, or base_url of one")
        if self.command is not None:
            said = " ".join(self.command)
            for name in ("{model}", "{port}"):
                if name not in said:
                    raise InputError(f"evaluation.engine.command: {name} stands nowhere in it, and the server needs it")
            if self.model is not None:
                raise InputError("evaluation.engine.model: goes with base_url; a command serves the cell's own model")
        if self.prompts not in ("tokens", "text", "messages"):
            raise InputError(f"evaluation.engine.prompts={self.prompts}: must be tokens, text or messages")
        for key, least in {"compare": 1, "start": 0}.items():
            if getattr(self, key) < least:
                raise InputError(f"evaluation.engine.{key}={getattr(self, key)}: must be at least {least}")
        self._endpoint(self.base_url or "http://localhost/v1")  # which refuses what is out of range

    def digest(self) -> list[Any]:
        """Return what can change an answer: the server, what it is sent, and what it takes the model for."""
        return [self.kind, self.command, self.model, self.prompts]

    def require(self, subject: Subject) -> None:
        """Raise `InputError` for a model that no server loads, or prompts that cannot be sent as is asked."""
        from transformers import PreTrainedModel

        from fairpriv.language_models.models.pretrained import quantised

        model: Any = subject.model
        what = None if isinstance(model, PreTrainedModel) else f"is a {type(model).__name__}"
        if quantised(model):
            what = "is quantised"
        elif what is None and any(
            one._forward_hooks for one in model.modules() if one is not model.get_input_embeddings()
        ):
            what = "adds to its states while it computes"
        if what is not None:
            raise InputError(
                f"evaluation.engine: the model {what}, and servers are given plain weights: have it asked in this "
                "process by engine=transformers, or an adapter merged by model.dtype=float32"
            )
        if self.prompts == "messages" and not (
            subject.form.chat_template == "auto" and subject.tokenizer.chat_template
        ):
            raise InputError("evaluation.engine.prompts=messages: there is no chat template; send tokens or text")

    @contextlib.contextmanager
    def serving(
        self, subject: Subject, *, max_new_tokens: int, end: tuple[int | None, str], root: Path
    ) -> Iterator[Served]:
        """Have one model served; the server starts with the first question, and has ended afterwards.

        Args:
            subject: the model, and how it is asked.
            max_new_tokens: tokens of an answer, its end token included, at most.
            end: what ends an answer beside EOS, as from ``response_end``: a token, or a text.
            root: the folder below which the model is written.
        """
        self.require(subject)
        with contextlib.ExitStack() as held:
            yield Served(self, subject, max_new_tokens, end, root, held)

    def _endpoint(self, base_url: str) -> Endpoint:
        return Endpoint(
            "evaluation.engine",
            "evaluation.engine",
            base_url,
            self.api_key_env,
            self.timeout,
            self.retries,
            self.backoff,
            self.concurrency,
            all_or_none=True,
        )


@dataclass
class Served:
    """One model that a server answers for; see `ServerEngine.serving`."""

    engine: ServerEngine
    subject: Subject
    max_new_tokens: int
    end: tuple[int | None, str]
    root: Path
    held: contextlib.ExitStack  # what is undone at the end
    problem: str = ""  # why prompts have no answer, on one line
    _asked: tuple[Endpoint, str] | None = None  # once it runs: where, and how it calls the model
    _process: subprocess.Popen[bytes] | None = None
    _said: Path | None = None  # its own output

    def ask(self, questions: Mapping[str, Question]) -> dict[str, tuple[str, bool | None]]:
        """Have questions answered; of those without an answer there is none, and ``problem`` says why.

        Returns:
            By name the answer, and whether it is that of this process: False for a tie, None where it was not compared.

        Raises:
            InputError: the server does not start, reads other tokens than ours, or is another model's.
        """
        names, asked = [*questions], [*questions.values()]
        own: list[tuple[list[int], list[float]]] = []
        first = self._asked is None
        if first:
            own = [self._own(question) for question in asked[: self.engine.compare]]
            self._asked = self._start()
        assert self._asked is not None
        endpoint, name = self._asked
        bodies = [self._body(question, name) for question in asked]
        replies = endpoint.ask(bodies[:1]) if first else []  # which tells whether it reads what is meant
        self._require_read(asked, replies)
        if all(reply.text is not None for reply in replies):
            replies += endpoint.ask(bodies[len(replies) :])
        self._require_read(asked, replies)
        told: dict[str, tuple[str, bool | None]] = {}
        for i, (one, reply) in enumerate(zip(names, replies, strict=False)):
            if reply.text is not None:
                text = reply.text.partition(self.end[1])[0] if self.end[1] else reply.text
                told[one] = text, self._same(i, text, *own[i]) if i < len(own) else None
        if len(told) < len(asked):
            reason = next(reply.problem for reply in replies if reply.text is None)
            self.problem = (
                f"evaluation.engine: {endpoint.base_url} gave no answer to {len(asked) - len(told)} of {len(asked)} "
                f"prompts ({reason}{self._last_words()}); what it answered is kept, and the same command goes on from "
                "there"
            )
        return told

    def _require_read(self, asked: Sequence[Question], replies: Sequence[Reply]) -> None:
        """Raise `InputError` where the server counts other tokens in a prompt than there are."""
        for question, reply in zip(asked, replies, strict=False):
            if reply.prompt_tokens not in (None, len(question.ids)):
                cut = ", or evaluation.max_prompt_tokens cut it" if self.engine.prompts == "messages" else ""
                raise InputError(
                    f"evaluation.engine: the server reads {reply.prompt_tokens} tokens where the prompt has "
                    f"{len(question.ids)}: its tokenizer or chat template differs from this model's{cut}"
                )

    def _own(self, question: Question) -> tuple[list[int], list[float]]:
        from fairpriv.language_models.engines.generation import answer_with_leads

        return answer_with_leads(
            self.subject.model, self.subject.tokenizer, question.ids, max_new_tokens=self.max_new_tokens, end=self.end
        )

    def _same(self, number: int, text: str, row: list[int], leads: list[float]) -> bool:
        """Tell whether a text is this model's own answer, or parts from it at a tie; refuse any other."""
        tokenizer, half = self.subject.tokenizer, self.subject.model.dtype.itemsize < 4  # type: ignore[operator]
        lead = parting(tokenizer, row, leads, text, self.end[1])
        if lead is None:
            return True
        tie = HALF_TIE if half else TIE
        if lead <= tie:
            return False
        own = tokenizer.decode(row, skip_special_tokens=True)
        raise InputError(
            f"evaluation.engine: prompt {number + 1} is answered {text[:60]!r} by the server, {str(own)[:60]!r} here, "
            f"and they part by a logit of {lead:.3g} (a tie is {tie:g}): it serves another model or precision"
        )

    def _body(self, question: Question, model: str) -> dict[str, Any]:
        from fairpriv.language_models.data.tokens import as_messages

        body: dict[str, Any] = {"model": model, "max_tokens": self.max_new_tokens, "temperature": 0}
        if self.engine.prompts == "messages":
            return body | {"messages": as_messages(question.prompt, self.subject.form.system)}
        if self.engine.prompts == "tokens":
            return body | {"prompt": list(question.ids)}
        return body | {"prompt": sent_text(self.subject.tokenizer, question.ids)}

    def _start(self) -> tuple[Endpoint, str]:
        """Write the model and start the server, where that is asked for; return where it is, and the model's name."""
        engine = self.engine
        if engine.base_url is not None and engine.model is not None:
            return engine._endpoint(engine.base_url), engine.model
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = Path(
            self.held.enter_context(tempfile.TemporaryDirectory(prefix=".serving-", dir=self.root))
        ).absolute()
        if engine.command is not None:
            self.held.enter_context(self._aside())
        from fairpriv.language_models.engines.generation import greedy_defaults

        model, tokenizer = self.subject.model, self.subject.tokenizer
        with greedy_defaults(model, tokenizer, self.max_new_tokens, self.end[0]):  # a server's, too
            export(model, tokenizer, scratch / "model")
        if engine.base_url is not None:
            return engine._endpoint(engine.base_url), str(scratch / "model")
        self._said = scratch / "server.log"
        return engine._endpoint(self._run(scratch / "model")), str(scratch / "model")

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Make room on the GPU for the server's copy of the model."""
        import torch

        model: Any = self.subject.model
        device = model.device
        if device.type == "cpu" or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
            yield
            return
        model.to("cpu")
        torch.cuda.empty_cache()
        try:
            yield
        finally:
            model.to(device)

    def _run(self, folder: Path) -> str:
        """Start the server and wait until it answers; it ends with ``held``."""
        engine, said = self.engine, self._said
        assert engine.command is not None
        assert said is not None
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        values = {"{model}": folder, "{port}": port, "{dtype}": str(self.subject.model.dtype).removeprefix("torch.")}
        words = engine.command
        for name, value in values.items():
            words = [word.replace(name, str(value)) for word in words]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # also of no active venv
        program = shutil.which(words[0], path=path)
        if program is None:
            raise InputError(f"evaluation.engine.command: {words[0]} cannot be started: is it installed?")
        started = time.monotonic()
        with said.open("wb") as output:
            process = supervised([program, *words[1:]], folder.parent, output)
        self._process = process
        self.held.callback(_end, process)
        while True:
            if process.poll() is not None:
                raise InputError(f"evaluation.engine: {words[0]} ended before it answered{self._last_words()}")
            try:
                with opened(f"http://127.0.0.1:{port}/health", 5.0):
                    break
            except HTTPError as error:
                with error:
                    if error.code not in (502, 503):  # which says that it is loading
                        break
            except OSError:
                pass
            if time.monotonic() - started > engine.start:
                raise InputError(
                    f"evaluation.engine: {words[0]} does not answer within {engine.start:g} s (evaluation.engine.start)"
                    f"{self._last_words()}"
                )
            time.sleep(POLL)
        log.info("engine: %s answers after %.1f s", words[0], time.monotonic() - started)
        return f"http://127.0.0.1:{port}/v1"

    def _last_words(self) -> str:
        """Return how the server that was started here ended, and the last line that it wrote."""
        if self._process is None or self._said is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        lines = [line for line in self._said.read_text(errors="replace").splitlines() if line.strip()]
        status = self._process.poll()
        ended = "" if status is None else f"; it ended with status {status}"
        return f"{ended}; its last line: {' '.join(lines[-1].split())[:200]}" if lines else ended


def supervised(words: Sequence[str], folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a command that ends when this process ends, in whatever way that happens; ``folder`` is removed then.

    Args:
        words: of the command, whose output goes to ``output``.
        folder: what the command needs, and nobody after it.
        output: a file that is open for writing.

    Returns:
        What waits for the command, and has its exit status; it leads the command's process group.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _SUPERVISOR, str(folder), *words],
        stdin=subprocess.PIPE,  # nothing is sent
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it has started."""
    for word in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, word)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    assert process.stdin is not None
    process.stdin.close()


def parting(
    tokenizer: PreTrainedTokenizerBase, row: Sequence[int], leads: Sequence[float], text: str, end: str = ""
) -> float | None:
    """Find where a text parts from an answer, and how close the next best token was there.

    Args:
        tokenizer: of the answer.
        row: its tokens, without an end token.
        leads: by how much the logit of each token was above the next best; where an end token followed, its too.
        text: the other answer.
        end: a text that ends answers.

    Returns:
        The smallest lead of the tokens among which they part, several where they make up one character; None where the
        texts are the same, but for blanks around them, and a character that was cut.
    """

    def read(tokens: Sequence[int]) -> str:
        written = str(tokenizer.decode([*tokens], skip_special_tokens=True))
        return (written.partition(end)[0] if end else written).lstrip()

    other = text.strip()
    if read(row).rstrip("\ufffd").strip() == other.rstrip("\ufffd").strip():
        return None
    agreed = 0
    for i in range(1, len(row) + 1):
        written = read(row[:i])
        if other.startswith(written.rstrip()):
            agreed = i
        elif not other.startswith(written.rstrip("\ufffd").rstrip()):
            return min(leads[agreed:i])
    return min(leads[agreed:], default=math.inf)


def sent_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Write the text that a server reads as these tokens, by a tokenizer as this one.

    Raises:
        InputError: there is none.
    """
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and list(ids[:1]) == [tokenizer.bos_token_id]
    text = str(tokenizer.decode([*ids[begins:]], clean_up_tokenization_spaces=False))
    if list(tokenizer(text)["input_ids"]) != list(ids):
        raise InputError(
            "evaluation.engine.prompts=text: a prompt's tokens are not those that its text is read as: send tokens, "
            "where the server takes them"
        )
    return text
