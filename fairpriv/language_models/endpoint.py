"""An OpenAI-compatible server, of a judge or of the model: requests, retries, time-outs, and a key that never shows."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from time import sleep, time
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

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
    prompt_tokens: int | None = None  # as the server counts them; None: it does not say


@dataclass
class Endpoint:
    """Sends requests to an OpenAI-compatible server, several at once.

    Answers 429, 5xx and the like, time-outs and broken connections are tried again after ``backoff``, 2 ``backoff``,
    4 ``backoff``, ... seconds (with up to a quarter more at random, so that requests spread), or after what the server
    asks for in ``Retry-After``.

    Attributes:
        who: is asked, for messages, as ``judge endpoint``.
        keys: the config section that the settings below stand in, for messages.
        base_url: such as ``http://localhost:8000/v1``.
        api_key_env: the environment variable that holds the key; None: no key is sent.
        timeout: seconds without a sign of the server before a request is given up.
        retries: further tries of a request.
        backoff: seconds before the first of them.
        concurrency: requests under way at once.
        all_or_none: whether no further request is sent once one has failed for good; and an answer may be empty.
    """

    who: str
    keys: str
    base_url: str
    api_key_env: str | None
    timeout: float
    retries: int
    backoff: float
    concurrency: int
    all_or_none: bool = False
    _reached: set[bool] = field(default_factory=set, init=False, repr=False)  # holds True once it has said anything

    def __post_init__(self) -> None:
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise InputError(
                f"{self.keys}.api_key_env must be the name of an environment variable, and never the key itself"
            )
        address = urlsplit(self.base_url)
        if address.username or address.password or address.query:
            raise InputError(
                f"{self.keys}.base_url must hold no user, password or query: name a variable in {self.keys}.api_key_env"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"{self.keys}.base_url={self.base_url}: must be an address as http://localhost:8000/v1")
        if self.timeout <= 0:
            raise InputError(f"{self.keys}.timeout={self.timeout}: must be above 0 seconds")
        for key, least in {"retries": 0, "backoff": 0, "concurrency": 1}.items():
            if getattr(self, key) < least:
                raise InputError(f"{self.keys}.{key}={getattr(self, key)}: must be at least {least}")

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """Send one request a body, and return the replies in order.

        A body with ``messages`` goes to ``/chat/completions``, one with a ``prompt`` to ``/completions``.

        Raises:
            InputError: the key's variable is not set, the key or the address is refused, or the server was never
                reached.
        """
        key = self.key()
        failed: list[Reply] = []

        def ask(body: Mapping[str, Any]) -> Reply:
            if self.all_or_none and failed:
                return failed[0]
            reply = self._reply(body, key)
            if reply.text is None:
                failed.append(reply)
            return reply

        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(ask, bodies))

    def key(self) -> str | None:
        """Return the key that the environment holds, which no text may show; None: none is sent."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise InputError(
                f"{self.who}: the environment variable {self.api_key_env} ({self.keys}.api_key_env) is not set; "
                f"set it to the server's key, or {self.keys}.api_key_env to null where no key is needed"
            )
        if not (key.isascii() and key.isprintable()):  # an error of http.client would show it
            raise InputError(f"{self.who}: {self.api_key_env} holds no key: it is not one line of ASCII")
        return key

    def _reply(self, body: Mapping[str, Any], key: str | None) -> Reply:
        tries = 0
        while True:
            try:
                reply = self._ask(body, key)
                self._reached.add(True)
                return reply
            except _FailedError as error:
                reason = str(error)
                if error.reached:
                    self._reached.add(True)
                wait = error.wait if error.wait is not None else self.backoff * 2**tries * random.uniform(1, 1.25)
                if error.retry and tries < self.retries and wait <= LONGEST_WAIT:
                    tries += 1
                    sleep(wait)
                    continue
                if not self._reached:
                    raise InputError(
                        f"{self.who}: {self.base_url} cannot be reached ({reason}): is the server running?"
                    ) from None
                if tries:
                    reason += f", after {tries + 1} tries"
                return Reply(None, reason, ask_again=not error.final)

    def _ask(self, body: Mapping[str, Any], key: str | None) -> Reply:
        chat = "messages" in body
        url = f"{self.base_url.rstrip('/')}/{'chat/' if chat else ''}completions"
        request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # not to another server
        try:
            with opened(request, self.timeout) as reply:
                page = json.loads(reply.read())
                choice, used = page["choices"][0], page.get("usage")
                content = choice["message"]["content"] if chat else choice["text"]
                ended = choice.get("finish_reason")
                tokens = used.get("prompt_tokens") if isinstance(used, Mapping) else None
        except HTTPError as error:
            told = b""
            with error, contextlib.suppress(OSError, HTTPException):
                told = error.read(READ)
            said = without(f"HTTP {error.code} {error.reason}: {told.decode(errors='replace')}", key)  # before any cut
            if key and len(told) == READ:
                said = said[: -len(key)]  # its first few characters may stand at the end
            reason = " ".join(said.split())[:230].rstrip(": ")
            if error.code in _REFUSES_ALL:
                advice = f"{self.keys}.api_key_env names the key"
                if error.code != 401:
                    advice = f"look at {self.keys}.base_url and model"
                raise InputError(f"{self.who}: {url} answers {reason} ({advice})") from None
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
        if not isinstance(content, str) or (ended == "length" and not content.strip() and not self.all_or_none):
            longer = f": it thought up to the limit, so raise {self.keys}.max_new_tokens" if ended == "length" else ""
            raise _FailedError(f"the answer has no text{longer}", final=True)
        return Reply(content, prompt_tokens=tokens if isinstance(tokens, int) else None)


def opened(request: Request | str, timeout: float) -> Any:
    """Open a request; one to this machine goes past any proxy."""
    host = urlsplit(request if isinstance(request, str) else request.full_url).hostname
    proxies = [ProxyHandler({})] if host in ("localhost", "127.0.0.1", "::1") else []
    return build_opener(*proxies).open(request, timeout=timeout)


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
