"""Removal of secrets from configs and messages: entries that are named like secrets, and secrets within texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise, takewhile
from typing import Any

MASK = "***"

_ALWAYS = {"password", "passwd", "pwd", "passphrase", "passcode", "secret", "credential", "cred", "apikey"}
_WITH_TEXT = {"authorization", "auth", "oauth", "bearer", "cookie", "jwt", "dsn", "pat"}  # `use_cookies: true` is none
_RUN_TOGETHER = ("apikey", "authtoken", "accesstoken", "accesskey", "secretkey", "privatekey", "connectionstring")
_ENDINGS = ("password", "passwd", "passphrase", "secret", "token", "cookie", "bearer")  # of names such as HFTOKEN
# Tokens of a tokenizer: <pad>, <s>, special tokens, ...
_VOCABULARY = {"pad", "bos", "eos", "unk", "mask", "sep", "cls", "special", "additional", "added", "stop", "image"}

_NAMED = re.compile(
    r"""(?P<name>[\w.-]+)(?P<sign>["']?\s*[=:]\s*)(?!//)"""
    r"""(?P<value>(?:(?:Bearer|Basic|Token|Digest)\s+)?(?:"[^"]*"|'[^']*'|\[[^]]*\]|\{[^}]*\}|[^\s&;,"'}\])]+))""",
    re.IGNORECASE,
)
_SHAPES = [
    (re.compile(r"""(\w[\w+.-]*://)(?:[^/\s"'<>]*|[^/\s:"'<>]+:[^\s"'<>,]*)@"""), rf"\1{MASK}@"),
    (re.compile(r"""(?<![\w.%+-])[\w.%+-]+:[^\s/@"'<>]+@(?=[\w\[])"""), f"{MASK}@"),
    (re.compile(r"\b(bearer\s+)[^\s\"',;]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"([?&;](?:sig|signature|x-\w+-(?:signature|credential))=)[^&;\s\"']+", re.IGNORECASE), rf"\1{MASK}"),
    # as hubs, clouds and code hosts make them
    (re.compile(r"\b(?:hf_|gh[opsur]_|github_pat_|glpat-|xox[abp]-|AKIA|sk-)[\w-]{16,}"), MASK),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), MASK),
    (re.compile(r"(hooks\.slack\.com/services/)[^\s\"']+"), rf"\1{MASK}"),
]


def without_secrets(config: Any) -> Any:
    """Copy plain data without the entries whose key names a secret, and with secrets within texts masked.

    This holds at any depth. A word such as ``password``, ``secret`` or ``credential`` anywhere in a key drops the
    entry. ``token`` and ``key`` drop it as the key's last word, or if its value is a text (``hf_token``, ``api_key``,
    ``token_value: abc``). ``tokens``, ``keys``, ``authorization``, ``cookie``, ``jwt``, ``dsn``, ``pat`` and the like
    drop it if its value is a text. Counts and vocabularies stay: ``max_new_tokens``, ``tokenizer``,
    ``num_key_value_heads: 8``, ``eos_token_id: 2``, ``pad_token``.
    """
    if isinstance(config, Mapping):
        return {key: without_secrets(value) for key, value in config.items() if not secret(str(key), value)}
    if isinstance(config, list | tuple):
        return [without_secrets(value) for value in config]
    return masked(config) if isinstance(config, str) else config


def secret(key: str, value: Any) -> bool:
    """Return whether a key names its value as a secret."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower()
    parts = [part for part in (word.strip("0123456789") for word in re.split(r"[^a-z0-9]+", words)) if part]
    singular = [part.removesuffix("s") for part in parts]
    if _ALWAYS & set(singular) or any(name in "".join(parts) for name in _RUN_TOGETHER):
        return True
    if _WITH_TEXT & set(singular):
        return _holds_text(value)
    if any(first in _VOCABULARY and second == "token" for first, second in pairwise(singular)):
        return False
    if any(part.endswith(_ENDINGS) and part not in _ENDINGS for part in singular):
        return _holds_text(value) and not any(part == f"{first}token" for part in singular for first in _VOCABULARY)
    if not {"token", "key"} & set(singular):
        return False
    return parts[-1] in ("token", "key") or _holds_text(value)


def masked(text: str) -> str:
    """Replace what looks like a secret in the text by ``***``.

    That is a user and password before a host, a value after a name of a secret (``?api_key=...``,
    ``Authorization: ...``), the text after ``Bearer``, and tokens of well-known forms.
    """
    if not _SUSPICIOUS.search(text):
        return text
    text = _NAMED.sub(_mask_value, text)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


_SUSPICIOUS = re.compile(r"[=:@]|bearer|hf_|gh._|_pat_|glpat|xox|AKIA|sk-|eyJ", re.IGNORECASE)


def _mask_value(match: re.Match[str]) -> str:
    name, sign, text = match["name"], match["sign"], match["value"]
    word = name.lower().rpartition(".")[2]
    # "unknown key: lr", "KeyError: 'lr'"
    prose = ":" in sign and (word in ("token", "key") or word.endswith(("tokens", "keys", "error")))
    # "write key=value"
    prose |= name.lower() in ("key", "keys") and match.string[: match.start()].endswith(" ")
    value: Any = 1 if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?:?|true|false|null|none", text, re.IGNORECASE) else text
    if not prose and any(secret(part, value) for part in name.split(".")):
        return f"{name}{sign}{MASK}"
    # the value may contain names, too: "url=https://host/?token=..."
    return f"{name}{sign}{_NAMED.sub(_mask_value, text)}"


def without(text: str, known: str | None) -> str:
    """Remove a known secret from the text, including a first part of it.

    It is found whole or cut off after its eighth character or later, in plain form and as JSON, addresses and pages
    write it.
    """
    if not known:
        return text
    import html
    import json
    from urllib.parse import quote, quote_plus

    as_json = json.dumps(known)[1:-1]
    forms = {known, as_json, as_json.replace("/", r"\/"), quote(known, ""), quote(known), quote_plus(known)}
    ordered = sorted({*forms, html.escape(known), repr(known)[1:-1]}, key=len, reverse=True)
    text = re.sub("|".join(map(re.escape, ordered)), MASK, text, flags=re.IGNORECASE)
    for form in ordered:
        first, *others = text.split(form[:8])
        text = first + "".join(MASK + other[_shared(other, form[8:]) :] for other in others)
    return text


def _shared(text: str, other: str) -> int:
    """Count the characters that two texts share at their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return not isinstance(value, int | float | None)
