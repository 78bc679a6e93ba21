"""Texts with a label and a sensitive group, such as biographies with a profession and a gender."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from fairpriv.classifiers.data.attributes import Attributed
from fairpriv.classifiers.data.columns import MISSING, text
from fairpriv.classifiers.data.dataset import Table
from fairpriv.data.texts import Texts
from fairpriv.errors import InputError


@dataclass(kw_only=True)
class Documents(Attributed):
    """Description of a labelled text dataset, and its reader; formats and ``where`` are as in `Texts`."""

    kind: ClassVar[str] = "documents"

    modality: ClassVar[str] = "text"

    text: str  # column of the text
    where: dict[str, Any] = field(default_factory=dict)  # column: condition; rows that do not fulfil it are left out
    # Columns whose value, or its name in ``values``, is replaced by "_" wherever it stands in the text by itself, since
    # a label in the text would give itself away. Blanks, hyphens and underscores within it are the same.
    mask: list[str] = field(default_factory=list)
    missing: Literal["error", "drop"] = "error"  # rows with an empty text, label or group: drop leaves them out

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.missing not in ("error", "drop"):
            raise InputError(f"dataset.missing: '{self.missing}'; it is error or drop")

    def _load(self) -> Table:
        files = ", ".join(path.name for path in self.source.locate())
        named = dict.fromkeys([self.text, *self._attributes(), *self.mask])
        # A misspelt one would do nothing.
        columns: dict[str, str | list[str]] = {f"groups.{name}": name for name in self.groups if name not in self.bins}
        columns |= {f"values.{name}": name for name in self.values} | {name: name for name in named}
        table = Texts(self.source, columns, self.where).table()
        frame = pd.DataFrame(table, dtype=object)
        for name in self._attributes():
            frame[name] = frame[name].map(lambda value: None if text(value).casefold() in MISSING else value)
        complete = pd.Series(True, index=frame.index)
        for name in named:
            empty = frame[name].isna()
            if empty.all() or (empty.any() and self.missing == "error"):
                advice = "name another column" if empty.all() else "set dataset.missing=drop to leave such rows out"
                raise InputError(
                    f"column '{name}' of {files} is empty in {int(empty.sum())} of {len(frame)} rows, first in "
                    f"{frame['row'][empty].iloc[0]}: {advice}"
                )
            complete &= ~empty
        missing = int((~complete).sum())
        frame = frame[complete]
        for row, value in zip(frame["row"], frame[self.text], strict=True):
            if not isinstance(value, str):
                raise InputError(f"dataset.text: '{self.text}' holds a {type(value).__name__} in {row}, not text")
        chosen = self._chosen(frame, files)
        frame = frame.iloc[chosen.index]
        texts = list(frame[self.text])
        for name in self.mask:
            names = {text(old): text(new) for old, new in self.values.get(name, {}).items()}
            words = [names.get(text(word), text(word)) for word in frame[name]]
            texts = [_masked(value, word) for value, word in zip(texts, words, strict=True)]
        items = np.array(texts, dtype=object)
        return chosen.table(self, items, np.ones(len(items), dtype=bool), missing=missing)


def _masked(value: str, phrase: str) -> str:
    """Replace a phrase by "_" wherever it stands in a text by itself, in any case."""
    words = r"[\s_-]+".join(re.escape(word) for word in re.split(r"[\s_-]+", phrase) if word)
    return re.sub(rf"(?<!\w){words}(?!\w)", "_", value, flags=re.IGNORECASE) if words else value
