"""The two distributions of the distribution-inference game, drawn from one table.

How rows are dealt (the definition is ours). All rows are put in one random order, stratified by (label, group) and
seeded, and cut into consecutive parts: the adversary's half, then the victim's validation, rates, gap and train.
Within each part two worlds are drawn without sharing a row. With property group A, the rest R and
``n = min(rows of A, rows of R)`` (in train at most ``game.rows``), each world has n rows: world 0 takes
``round(alpha * n)`` of A and fills up from R, world 1 is the mirror image. Draws are stratified: labels keep their
proportions within every group, and the groups of R theirs within R. What one side has beyond n is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from fairpriv.data.attributes import Attributed
from fairpriv.data.tabular import Encoder, Table, TabularDataset
from fairpriv.errors import InputError
from fairpriv.schema import GameConfig

if TYPE_CHECKING:
    from fairpriv.modules.encoder import Encoding, Reader

Dataset = TabularDataset | Attributed
Part = Literal["train", "validation", "rates", "gap", "shadow", "query"]
_PARTS: tuple[Part, ...] = ("validation", "rates", "gap", "train")
_ADVERSARY_PARTS: tuple[Part, ...] = ("shadow", "query")


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows of one part and world, in random order."""

    X: Tensor  # float32 [N, F]; or int32 [N, T] tokens, -1 after the end; or uint8 [N, 3, S, S] pixels
    y: Tensor  # int64 [N], code of the label
    s: Tensor  # int64 [N], code of the sensitive group
    index: Tensor  # int64 [N], row numbers in the table

    def take(self, index: Tensor) -> Rows:
        """The rows at these places."""
        return Rows(self.X[index], self.y[index], self.s[index], self.index[index])

    def __add__(self, other: Rows) -> Rows:
        """These rows and then those."""
        return Rows(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


class GameDataModule(LightningDataModule):
    """One game on one dataset: disjoint halves, parts and worlds (see the module's text), as encoded tensors.

    Features are encoded by what the victim's train rows of both worlds hold together: a preprocessing fitted to one
    world alone would tell the secret bit by itself. ``game.world`` changes nothing here: both directions share data.
    Texts and images are read by the model's ``reader``, a table by its dataset.
    """

    table: Table
    encoder: Encoder | Encoding

    def __init__(self, dataset: Dataset, game: GameConfig, seed: int, reader: Reader | None = None) -> None:
        super().__init__()
        if not 0 <= game.alpha <= 1:
            raise InputError(f"game.alpha={game.alpha}: it is a share, from 0 to 1")
        if game.world not in (0, 1):
            raise InputError(f"game.world={game.world}: it is 0 or 1")
        if not 0 <= game.adversary_share < 1:
            raise InputError(
                f"game.adversary_share={game.adversary_share}: it is a share of all rows, from 0 to below 1"
            )
        if not (game.test_share > 0 and game.validation_share > 0 and game.test_share + game.validation_share < 1):
            raise InputError(
                f"game.test_share={game.test_share}, game.validation_share={game.validation_share}: both must be above "
                "0 and their sum below 1, since the victim trains on the rest"
            )
        if not 0 < game.query_share < 1:
            raise InputError(
                f"game.query_share={game.query_share}: it is a share of the adversary's half, above 0 below 1"
            )
        if game.rows is not None and game.rows < 1:
            raise InputError(f"game.rows={game.rows}: it is at least 1, or null for as many as there are")
        if seed < 0:
            raise InputError(f"seed={seed}: it is 0 or more")
        self.dataset = dataset
        self.game = game
        self.seed = seed
        self.reader = reader
        self._rows: dict[tuple[Part, int], Rows] = {}
        self._adversary: Rows | None = None

    def prepare_data(self) -> None:
        """Fetch the files, if need be, in one process alone."""
        self.dataset.source.locate()

    def setup(self, stage: str | None = None) -> None:
        """Load, deal and encode, once; raises `InputError`."""
        if self._rows:
            return
        self.table = table = self.dataset.load()
        self._check_groups()
        groups = len(table.group_names)
        order = interleave(table.y * groups + table.s, np.random.default_rng(self.seed))
        victim = len(order) - round(self.game.adversary_share * len(order))
        validation, test = round(self.game.validation_share * victim), round(self.game.test_share * victim)
        cuts = np.cumsum([len(order) - victim, validation, test // 2, test - test // 2])
        adversary, *parts = np.split(order, cuts)

        worlds = {}
        for place, (part, rows) in enumerate(zip(_PARTS, parts, strict=True)):
            # a stream of its own, so that the rows drawn in one part do not depend on the other parts
            worlds[part] = self._draw(part, rows, np.random.default_rng([self.seed, place]))
            self._check_cells(part, worlds[part])
        self._items = self.reader.read(np.asarray(table.features)) if self.reader else table.features
        train = self._take(np.sort(np.concatenate(worlds["train"])))
        self.encoder = self.reader.encode(train) if self.reader else cast(TabularDataset, self.dataset).encode(train)
        self._rows = {(part, world): self._encode(rows) for part in _PARTS for world, rows in enumerate(worlds[part])}
        self._adversary_index = adversary

    def part(self, name: Part, world: int) -> Rows:
        """Rows of a part in world 0 or 1: of the victim's half, or, where an attack is played, of the adversary's.

        ``query`` holds what the adversary asks about, ``shadow`` what its own models are trained on.
        """
        if (name, world) not in self._rows:
            self._deal_adversary()
        return self._rows[name, world]

    def _deal_adversary(self) -> None:
        half = self._adversary_index
        if not len(half):
            raise InputError("game.adversary_share=0 leaves an adversary no rows: an attack needs a share of the data")
        shadow, query = np.split(half, [len(half) - round(self.game.query_share * len(half))])
        for place, (part, rows) in enumerate(zip(_ADVERSARY_PARTS, (shadow, query), strict=True), len(_PARTS)):
            worlds = self._draw(part, rows, np.random.default_rng([self.seed, place]))
            self._rows |= {(part, world): self._encode(drawn) for world, drawn in enumerate(worlds)}

    @property
    def adversary(self) -> Rows:
        """The adversary's whole half, every group in its natural proportion."""
        if self._adversary is None:
            self._adversary = self._encode(self._adversary_index)
        return self._adversary

    @property
    def features(self) -> int:
        """Number of encoded features, F; of texts and images, what their model's reader says."""
        return self.encoder.features

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, by code."""
        return self.table.label_names

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the sensitive groups, by code."""
        return self.table.group_names

    @property
    def property_code(self) -> int:
        """Code of the property group A."""
        name = self.group_names[0] if self.game.property is None else self.game.property
        if name not in self.group_names:
            raise InputError(
                f"game.property={name}: no such group of '{self.table.sensitive}' in {self.table.name}; "
                f"there are {', '.join(self.group_names)}"
            )
        return self.group_names.index(name)

    def _draw(self, part: Part, rows: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
        """Row numbers of world 0 and world 1."""
        y, s = self.table.y[rows], self.table.s[rows]
        cells = y * len(self.group_names) + s
        in_property = s == self.property_code
        # any stretch of either is stratified
        own, rest = (rows[mask][interleave(cells[mask], rng)] for mask in (in_property, ~in_property))
        n = min(len(own), len(rest))
        if part == "train" and self.game.rows is not None:
            if self.game.rows > n:
                raise InputError(
                    f"game.rows={self.game.rows}: {self.table.name} has {n} training rows per world "
                    f"({len(own)} of {self.group_names[self.property_code]}, {len(rest)} of the others)"
                )
            n = self.game.rows
        cut = round(self.game.alpha * n)
        worlds = (own[:cut], rest[: n - cut]), (own[cut:n], rest[n - cut : n])
        return tuple(rng.permutation(np.concatenate(world)) for world in worlds)

    def _check_groups(self) -> None:
        table = self.table
        counts = np.bincount(table.s, minlength=len(table.group_names))
        for name, count in zip(table.group_names, counts, strict=True):
            if count < 2:
                raise InputError(
                    f"group '{name}' of '{table.sensitive}' has one row in {table.name}: it cannot be both trained on "
                    f"and measured; leave it out of dataset.groups.{table.sensitive} or pool it by dataset.recode"
                )

    def _check_cells(self, part: Part, worlds: tuple[NDArray[np.int64], ...]) -> None:
        """Check for enough rows of every (label, group) where they are measured, and for every label in each world.

        Validation, where lambda is chosen, needs one row a cell; training none.
        """
        table = self.table
        needed = {"rates": self.game.min_cell, "gap": self.game.min_cell, "validation": min(1, self.game.min_cell)}
        wanted = needed.get(part, 0)
        both = np.concatenate(worlds)
        or_label = ", or such labels by dataset.min_cell_rows" if isinstance(self.dataset, Attributed) else ""
        for label, label_name in enumerate(table.label_names):
            for group, group_name in enumerate(table.group_names):
                count = int(((table.y[both] == label) & (table.s[both] == group)).sum())
                if count < wanted:
                    total = int(((table.y == label) & (table.s == group)).sum())
                    raise InputError(
                        f"{table.name}: part '{part}' has {count} rows with label '{label_name}' and {table.sensitive} "
                        f"'{group_name}' in its two worlds of {len(worlds[0])} rows (in all the data: {total}), fewer "
                        f"than {wanted}: lower game.min_cell (so few rows measure little), raise game.test_share or "
                        f"game.validation_share, or leave the group out of dataset.groups.{table.sensitive}{or_label}"
                    )
            for world, rows in enumerate(worlds):
                if self.game.min_cell and not (table.y[rows] == label).any():
                    raise InputError(
                        f"{table.name}: part '{part}' of world {world} has no row with label '{label_name}' among its "
                        f"{len(rows)}: raise that part's share or give more data"
                    )

    def _take(self, index: NDArray[np.int64]) -> Any:
        return self._items.iloc[index] if isinstance(self._items, pd.DataFrame) else self._items[index]

    def _encode(self, index: NDArray[np.int64]) -> Rows:
        return Rows(
            X=torch.from_numpy(self.encoder.transform(self._take(index))),
            y=torch.from_numpy(self.table.y[index]),
            s=torch.from_numpy(self.table.s[index]),
            index=torch.from_numpy(index.astype(np.int64)),
        )


def interleave(cells: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Random order of the rows ``[N]`` in which every stretch holds each cell in about its overall proportion.

    The rows of a cell are spread evenly, from a random start (systematic sampling): a stretch that is a share q of the
    whole holds q times the cell's rows, give or take about one.
    """
    position = np.empty(len(cells))
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell)
        position[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")
