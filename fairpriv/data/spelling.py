"""How names are spelled: what is a blank, and which names are one to a reader."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # blanks without a width, which `str.strip` leaves


def trimmed(value: Any) -> str:
    """Return a value's text without outer blanks, those without a width included."""
    return str(value).strip().strip(_INVISIBLE).strip()


def alike(names: Iterable[str]) -> list[list[str]]:
    """Group names that hardly differ; leave out all others.

    They differ only in case, blanks, the Unicode form of their letters, hyphens between words, quotation marks around
    them, a full stop at the end, or zeros before a number; or in that one is 1 and the other true, one & and the other
    &amp;.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        shown = html.unescape(unicodedata.normalize("NFKC", name))
        shown = "".join(c for c in shown if c.isprintable() or c.isspace())
        shown = re.sub(r"\s*([^\w\s])\s*", r"\1", shown)
        shown = re.sub(r"(?<=[^\W_])[-_](?=[^\W_])", " ", shown.casefold()).strip(" '\"").rstrip(".")
        shown = {"true": "1", "false": "0"}.get(shown, shown)
        if shown.isdecimal():
            shown = shown.lstrip("0") or "0"
        found.setdefault(" ".join(shown.split()), []).append(name)
    return [sorted(same) for same in found.values() if len(same) > 1]


def unnamed(found: Iterable[str], named: Iterable[str]) -> list[str]:
    """List what is found and not named, but hardly differs from what is."""
    told = set(named)
    same = alike(sorted({*found, *told}))
    return sorted(name for names in same if told.intersection(names) for name in names if name not in told)
