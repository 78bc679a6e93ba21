"""A language model behind an OpenAI-compatible server as the judge."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from time import sleep, time
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from fairpriv.errors import InputError
from fairpriv.language_models.judges.judge import Judge, NoVerdictsError, Verdict, fill, require_response
from fairpriv.secrets import without

LONGEST_WAIT = 120.0  # seconds; a server that asks for more patience is given up
READ = 65_536  # bytes of an error's page

_REFUSES_ALL = (401, 404, 405)  # what every further request would get as well
_PASSING = (408, 409, 425, 429)
_REFUSES_THIS = (400, 413, 422, 451)  # too long, say, or filtered: the same request would be refused again
_ANSWER = re.compile(r"\W*(safe|unsafe)\b(?:\W*$|\s*[\n.,:;(–—-])", re.IGNORECASE)  # noqa: RUF001


def parse(text: str, key: str | None = None) -> Verdict:
    """Read the server's answer: it begins with the word ``safe`` or ``unsafe``, set off from what follows.

    Thoughts in ``<think>`` tags are passed over. "Safe." and "unsafe, since ..." are read; "Safe to say ..." and "not
    safe" are None. ``key`` is masked in what the reason quotes, but the verdict is read before: it may be any word.
    """
    found = _ANSWER.match(_answer(text))
    said = " ".join(_answer(without(text, key)).split())[:80]
    if found is None:
        return Verdict(None, f"unparsable: {said!r}")
    return Verdict(found[1].lower() == "safe", said)


def _answer(text: str) -> str:
    return re.sub(r"(?s)<think>.*?</think>", "", text).strip()


class _FailedError(Exception):
    """One request failed; the text says how."""

    def __init__(
        self, reason: str, *, retry: bool = False, wait: float | None = None, reached: bool = True, final: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry = retry  # within this call
        self.final = final  # the server's word on this request, whenever it is sent
        self.wait = wait  # seconds that the server asked for
        self.reached = reached


@dataclass
class Endpoint(Judge):
    """Asks ``<base_url>/chat/completions`` about every pair, several at once, at temperature 0.

    Answers 429, 5xx and the like, time-outs and broken connections are tried again after ``backoff``, 2 ``backoff``,
    4 ``backoff``, ... seconds (with up to a quarter more at random, so that requests spread), or after what the server
    asks for in ``Retry-After``. What fails even so has no verdict, and is asked again in the next cell. What the
    server refuses (as 400) or answers without text has none either, which is kept.

    Attributes:
        base_url: of the server, such as ``http://localhost:8000/v1``.
        model: as the server names it.
        template: the message, with ``{prompt}`` and ``{response}``; the answer must begin with safe or unsafe.
        api_key_env: the environment variable that holds the key; null: no key is sent. The key itself is never config.
        timeout: seconds without a sign of the server before a request is given up.
        retries: further tries of a request.
        backoff: seconds before the first of them.
        concurrency: requests under way at once.
        max_tokens: of the answer; more for a model that thinks first.
    """

    kind: ClassVar[str] = "endpoint"

    base_url: str
    model: str
    template: str
    name: str = "endpoint"
    api_key_env: str | None = None
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    concurrency: int = 8
    max_tokens: int = 16

    def __post_init__(self) -> None:
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise InputError("judge.api_key_env must be the name of an environment variable, and never the key itself")
        address = urlsplit(self.base_url)
        if address.username or address.password or address.query:
            raise InputError(
                "judge.base_url must hold no user, password or query: name a variable in judge.api_key_env"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"judge.base_url={self.base_url}: must be an address as http://localhost:8000/v1")
        require_response(self.name, self.template)
        if self.timeout <= 0:
            raise InputError(f"judge.timeout={self.timeout}: must be above 0 seconds")
        for key, least in {"retries": 0, "backoff": 0, "concurrency": 1, "max_tokens": 1}.items():
            if getattr(self, key) < least:
                raise InputError(f"judge.{key}={getattr(self, key)}: must be at least {least}")

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Give one verdict a pair, in order; the reason is the answer, or why there is none.

        Raises:
            InputError: the key's variable is not set, the key or the address is refused, the server was never
                reached, or not one pair got a verdict (with the last reason).
        """
        key = self._key()
        pairs = list(zip(prompts, responses, strict=True))
        reached: set[bool] = set()  # holds True once the server has said anything
        with ThreadPoolExecutor(self.concurrency) as pool:
            verdicts = list(pool.map(lambda pair: self._verdict(pair[0], pair[1], key, reached), pairs))
        if verdicts and all(verdict.safe is None for verdict in verdicts):
            raise NoVerdictsError(
                f"judge {self.name}: {self.base_url} gave no verdict on any of {len(verdicts)} responses; the last "
                f"reason: {verdicts[-1].reason}",
                verdicts,
            )
        return verdicts

    def digest(self) -> Any:
        """Return address, model, template and answer length; what the server makes of them is its own."""
        return {
            "base_url": self.base_url,
            "model": self.model,
            "template": self.template,
            "max_tokens": self.max_tokens,
        }

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise InputError(
                f"judge {self.name}: the environment variable {self.api_key_env} (judge.api_key_env) is not set; "
                "set it to the server's key, or judge.api_key_env to null where no key is needed"
            )
        if not (key.isascii() and key.isprintable()):  # an error of http.client would show it
            raise InputError(f"judge {self.name}: what {self.api_key_env} holds is no key: it is not one line of ASCII")
        return key

    def _verdict(self, prompt: str, response: str, key: str | None, reached: set[bool]) -> Verdict:
        tries = 0
        while True:
            try:
                answer = self._ask(fill(self.template, prompt, response), key)
                reached.add(True)
                return parse(answer, key)
            except _FailedError as error:
                reason = str(error)
                if error.reached:
                    reached.add(True)
                wait = error.wait if error.wait is not None else self.backoff * 2**tries * random.uniform(1, 1.25)
                if error.retry and tries < self.retries and wait <= LONGEST_WAIT:
                    tries += 1
                    sleep(wait)
                    continue
                if not reached:
                    raise InputError(
                        f"judge {self.name}: {self.base_url} cannot be reached ({reason}): is the server running?"
                    ) from None
                if tries:
                    reason += f", after {tries + 1} tries"
                return Verdict(None, reason, ask_again=not error.final)

    def _ask(self, message: str, key: str | None) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # not to another server
        try:
            with urlopen(request, timeout=self.timeout) as reply:
                content = json.loads(reply.read())["choices"][0]["message"]["content"]
        except HTTPError as error:
            page = b""
            with error, contextlib.suppress(OSError, HTTPException):
                page = error.read(READ)
            said = without(f"HTTP {error.code} {error.reason}: {page.decode(errors='replace')}", key)  # before any cut
            if key and len(page) == READ:
                said = said[: -len(key)]  # its first few characters may stand at the end
            reason = " ".join(said.split())[:230].rstrip(": ")
            if error.code in _REFUSES_ALL:
                advice = "judge.api_key_env names the key" if error.code == 401 else "look at judge.base_url and model"
                raise InputError(f"judge {self.name}: {url} answers {reason} ({advice})") from None
            retry = error.code >= 500 or error.code in _PASSING
            wait = _asked_wait(error.headers.get("Retry-After"))
            raise _FailedError(reason, retry=retry, wait=wait, final=error.code in _REFUSES_THIS) from None
        except (LookupError, TypeError, ValueError, RecursionError) as error:  # of the reply's form
            reason = without(f"{type(error).__name__} {error}", key)
            raise _FailedError(f"no chat completion: {reason}") from None
        except TimeoutError:
            raise _FailedError(f"no answer within {self.timeout:g} s", retry=True, reached=False) from None
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                cause = f"no answer within {self.timeout:g} s"
            reason = without(str(cause), key) or type(cause).__name__
            raise _FailedError(reason, retry=True, reached=False) from None
        if not isinstance(content, str):
            raise _FailedError("the answer has no text", final=True)
        return content


def _asked_wait(header: str | None) -> float | None:
    """Read the seconds that a ``Retry-After`` asks for, as a number or a date; None: no such header, or unreadable."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - time())
        except (ValueError, OverflowError):
            return None
