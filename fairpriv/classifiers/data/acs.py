"""ACSIncome of the American Community Survey, from the census' own files or from files that others derived."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd

from fairpriv.classifiers.data.columns import text
from fairpriv.classifiers.data.dataset import Table
from fairpriv.classifiers.data.tabular import TabularDataset


@dataclass
class ACSIncome(TabularDataset):
    """Description of ACSIncome: a `TabularDataset` that recognises files which are filtered already.

    If a file's target is 0 and 1, or False and True, it holds ACSIncome's rows: ``positive_above``, the filter on the
    target, and filters on columns that are not in the file have been applied before and are skipped.
    """

    kind: ClassVar[str] = "acs_income"

    def _table(self, frame: pd.DataFrame, files: str) -> Table:
        values = {text(value) for value in frame[self.target].dropna().unique()} if self.target in frame else {""}
        if self.positive_above is None or not values <= {"0", "1", "False", "True"}:
            return super()._table(frame, files)
        filters = {name: rule for name, rule in self.filters.items() if name in frame and name != self.target}
        made = replace(self, positive=["1", "True"], positive_above=None, filters=filters)
        return TabularDataset._table(made, frame, files)
