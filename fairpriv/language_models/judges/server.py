"""An OpenAI-compatible server that judges are asked over: requests, retries, time-outs, and a key that never shows."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from time import sleep, time
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from fairpriv.errors import InputError
from fairpriv.secrets import without

LONGEST_WAIT = 120.0  # seconds; a server that asks for more patience is given up
READ = 65_536  # bytes of an error's page

_REFUSES_ALL = (401, 404, 405)  # what every further request would get as well
_PASSING = (408, 409, 425, 429)
_REFUSES_THIS = (400, 413, 422, 451)  # too long, say, or filtered: the same request would be refused again


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


@dataclass(frozen=True)
class Reply:
    """What a server says to one request."""

    text: str | None  # None: there is no answer
    problem: str = ""  # why there is none, on one line, with the key masked
    ask_again: bool = False  # whether it may answer in the next cell


@dataclass
class Server:
    """Sends requests to an OpenAI-compatible server, several at once.

    Answers 429, 5xx and the like, time-outs and broken connections are tried again after ``backoff``, 2 ``backoff``,
    4 ``backoff``, ... seconds (with up to a quarter more at random, so that requests spread), or after what the server
    asks for in ``Retry-After``.

    Attributes:
        judge: the name of the judge, for messages.
        base_url: such as ``http://localhost:8000/v1``.
        api_key_env: the environment variable that holds the key; None: no key is sent.
        timeout: seconds without a sign of the server before a request is given up.
        retries: further tries of a request.
        backoff: seconds before the first of them.
        concurrency: requests under way at once.
    """

    judge: str
    base_url: str
    api_key_env: str | None
    timeout: float
    retries: int
    backoff: float
    concurrency: int

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
        if self.timeout <= 0:
            raise InputError(f"judge.timeout={self.timeout}: must be above 0 seconds")
        for key, least in {"retries": 0, "backoff": 0, "concurrency": 1}.items():
            if getattr(self, key) < least:
                raise InputError(f"judge.{key}={getattr(self, key)}: must be at least {least}")

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """Send one request a body, and return the replies in order.

        A body with ``messages`` goes to ``/chat/completions``, one with a ``prompt`` to ``/completions``.

        Raises:
            InputError: the key's variable is not set, the key or the address is refused, or the server was never
                reached.
        """
        key = self.key()
        reached: set[bool] = set()  # holds True once the server has said anything
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda body: self._reply(body, key, reached), bodies))

    def key(self) -> str | None:
        """Return the key that the environment holds, which no text may show; None: none is sent."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise InputError(
                f"judge {self.judge}: the environment variable {self.api_key_env} (judge.api_key_env) is not set; "
                "set it to the server's key, or judge.api_key_env to null where no key is needed"
            )
        if not (key.isascii() and key.isprintable()):  # an error of http.client would show it
            raise InputError(f"judge {self.judge}: {self.api_key_env} holds no key: it is not one line of ASCII")
        return key

    def _reply(self, body: Mapping[str, Any], key: str | None, reached: set[bool]) -> Reply:
        tries = 0
        while True:
            try:
                answer = self._ask(body, key)
                reached.add(True)
                return Reply(answer)
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
                        f"judge {self.judge}: {self.base_url} cannot be reached ({reason}): is the server running?"
                    ) from None
                if tries:
                    reason += f", after {tries + 1} tries"
                return Reply(None, reason, ask_again=not error.final)

    def _ask(self, body: Mapping[str, Any], key: str | None) -> str:
        chat = "messages" in body
        url = f"{self.base_url.rstrip('/')}/{'chat/' if chat else ''}completions"
        request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # not to another server
        try:
            with urlopen(request, timeout=self.timeout) as reply:
                choice = json.loads(reply.read())["choices"][0]
                content = choice["message"]["content"] if chat else choice["text"]
                ended = choice.get("finish_reason")
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
                raise InputError(f"judge {self.judge}: {url} answers {reason} ({advice})") from None
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
        if not isinstance(content, str) or (ended == "length" and not content.strip()):
            longer = ": it thought up to the limit, so raise judge.max_new_tokens" if ended == "length" else ""
            raise _FailedError(f"the answer has no text{longer}", final=True)
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
