"""The two distributions of the distribution-inference game, drawn from one table.

How rows are dealt (the definition is ours; Suri and Evans' released code has one pool of rows, which it filters anew
for every model). All rows are put in one random order, which is stratified by (label, group) and seeded, and cut into
consecutive parts. The first is the adversary's half: the rows it asks about, and the rows that its shadows draw from.
Then come the victim's validation, rates, gap and train. Twins, rows that are equal in features, label and group, stay
in one part.

From each part, two worlds are drawn that share no row. With property group A, the rest R and
``n = min(rows of A, rows of R)`` (in train at most ``game.rows``), each world has n rows: world 0 takes
``round(alpha * n)`` rows of A and fills up from R, world 1 is the mirror image. Draws are stratified: labels keep their
proportions within every group, and the groups of R keep theirs within R. Rows that one side has beyond n are not used.

The single model is trained on the worlds of the part ``train``. Every model of a pool draws worlds of its own from its
side's half. So the pools of the two worlds differ in their distribution, and not in a fixed set of rows. Victims draw
from train and validation together, shadows from the adversary's rows that it does not ask about. No model ever sees
the rows that victims are measured on, rates and gap.

With ``game.poison`` the adversary sets rows aside from those it would ask about, of the property group, and gives them
the group's rarest label. Every model of a pool trains on them, too, in either world: they are the same for all, so they
tell nothing of the world by themselves. Validation rows stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from fairpriv.classifiers.data.dataset import Dataset, Table
from fairpriv.classifiers.data.reader import Encoding, Reader
from fairpriv.classifiers.data.rows import Rows
from fairpriv.config.settings import GameSettings
from fairpriv.errors import InputError, how_many
from fairpriv.identity import derived_seed
from fairpriv.metrics import Measured, Metric

Part = Literal["train", "validation", "rates", "gap", "query"]
Side = Literal["victim", "adversary"]
_PARTS: tuple[Part, ...] = ("validation", "rates", "gap", "train")

_LARGEST_SAMPLE = 2000  # largest default of game.model_rows
_SAMPLED = 0.4  # largest default as a share of the scarcer side's rows: models that share most rows differ too little
_VALIDATION = 0.2  # default of game.model_validation_rows, per training row
_LEAST_VALIDATION = 20
_FEW = 100  # rows of a part's world, below which a warning says so


@dataclass(frozen=True, eq=False)
class Deal:
    """The two worlds that one model of a pool draws for itself, to train on and to validate with.

    Attributes:
        half: the rows that its side draws from, and those that the adversary adds.
        train: places in ``half`` of the training rows of world 0 and of world 1; no row is in both, but for those that
            the adversary adds.
        validation: likewise of the validation rows, which have no row and no twin in common with ``train``.
    """

    half: Rows
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]


class GameDataModule(LightningDataModule):
    """One game on one dataset: disjoint halves, parts and worlds (see the module's text), as encoded tensors.

    The encoder is fitted to the victim's train rows of both worlds together, because preprocessing fitted to one world
    alone would reveal the secret bit. ``game.world`` changes nothing here: both directions share data. Texts and images
    are read by the model's ``reader``, a table by its dataset.
    """

    table: Table
    encoder: Encoding

    def __init__(self, dataset: Dataset, game: GameSettings, seed: int, reader: Reader | None = None) -> None:
        super().__init__()
        self.dataset = dataset
        self.game = game
        self.seed = seed
        self.reader = reader
        self._rows: dict[tuple[Part, int], Rows] = {}
        self._halves: dict[Side, Rows] = {}
        self._poisoned: dict[Side, Rows] = {}
        self._strata: dict[str, list[tuple[NDArray[np.int64], Strata]]] = {}

    def prepare_data(self) -> None:
        """Fetch the files if necessary, in one process only."""
        self.dataset.source.locate()

    def setup(self, stage: str | None = None) -> None:
        """Load, deal and encode, once; raises `InputError`."""
        if self._rows:
            return
        self.table = table = self.dataset.load()
        self._check_groups()
        self.twins = twins(table)
        order = interleave(self._cells(), np.random.default_rng(self.seed), self.twins)
        victim = len(order) - round(self.game.adversary_share * len(order))
        validation, test = round(self.game.validation_share * victim), round(self.game.test_share * victim)
        sizes = [len(order) - victim, validation, test // 2, test - test // 2]
        adversary, *parts = self._split(order, np.cumsum(sizes))
        self.parts: dict[Part, NDArray[np.int64]] = dict(zip(_PARTS, parts, strict=True))
        shadow, self.parts["query"] = self._split(
            adversary, [len(adversary) - round(self.game.query_share * len(adversary))]
        )
        self._drawn_from: dict[Side, NDArray[np.int64]] = {
            "victim": np.concatenate([self.parts["train"], self.parts["validation"]]),
            "adversary": shadow,
        }
        self._set_poison_aside()
        worlds = {}
        for place, part in enumerate(_PARTS):
            # every part has its own random stream, so that its rows do not depend on the other parts
            worlds[part] = self._worlds(part, np.random.default_rng([self.seed, place]))
            self._check_cells(part, worlds[part])
        self._items = self.reader.read(np.asarray(table.features)) if self.reader else table.features
        train = self._take(np.sort(np.concatenate(worlds["train"])))
        self.encoder = self.reader.encode(train) if self.reader else self.dataset.encode(train)
        self._rows = {(part, world): self._encode(rows) for part in _PARTS for world, rows in enumerate(worlds[part])}

    def repeat(self, number: int) -> GameDataModule:
        """Deal the same data anew for repeated split ``number``; split 0 is this module itself."""
        if not number:
            return self
        other = GameDataModule(self.dataset, self.game, derived_seed(self.seed, number), self.reader)
        other.setup()
        return other

    def part(self, name: Part, world: int) -> Rows:
        """Return the rows of a part in world 0 or 1; ``query`` holds the adversary's own rows that it asks about."""
        if (name, world) not in self._rows:
            self._refuse_no_adversary()
            drawn = self._worlds(name, np.random.default_rng([self.seed, len(_PARTS)]))
            self._rows |= {(name, b): self._encode(rows) for b, rows in enumerate(drawn)}
        return self._rows[name, world]

    def half(self, side: Side) -> Rows:
        """Return all rows that the models of one side draw from, every group in its natural proportion."""
        if side not in self._halves:
            if side == "adversary":
                self._refuse_no_adversary()
            self._halves[side] = self._encode(self._drawn_from[side])
        return self._halves[side]

    @property
    def test(self) -> Rows:
        """The test rows of both worlds, on which no model is trained, stopped or tuned."""
        parts = [self.part(part, world) for part in ("rates", "gap") for world in (0, 1)]
        return parts[0] + parts[1] + parts[2] + parts[3]

    def units(self, rows: Rows) -> Tensor:
        """Number the rows ``[N]``: equal ones, which are dealt together, have the same number."""
        return torch.from_numpy(self.twins)[rows.index]

    def deal(self, side: Side, seed: Sequence[int], alpha: float | None = None) -> Deal:
        """Draw the worlds of one model of a pool from its side's half.

        Args:
            side: whose half.
            seed: of the draw; every model has another one.
            alpha: the share of the property group in world 0; None: ``game.alpha``.

        Raises:
            InputError: the half holds too few rows; it says of which group, and how many are missing.
        """
        if side not in self._poisoned:
            self._poisoned[side] = self._with_poison(self.half(side))
        half, sizes = self._poisoned[side], self.model_rows()
        # the draw gives row numbers of the table; a deal holds places in the half
        drawn = self._draw(self._drawn_from[side], np.random.default_rng(seed), sizes, what=side, alpha=alpha)
        place = np.zeros(len(self.table.y), dtype=np.int64)
        place[self._drawn_from[side]] = np.arange(len(self._drawn_from[side]))
        train, validation = ((torch.from_numpy(place[a]), torch.from_numpy(place[b])) for a, b in drawn)
        added = torch.arange(len(self._drawn_from[side]), len(half.y))
        return Deal(half, (torch.cat((train[0], added)), torch.cat((train[1], added))), validation)

    def model_rows(self) -> tuple[int, int]:
        """Return how many training and validation rows per world every model of a pool has, victim or shadow.

        Raises:
            InputError: a half holds fewer rows of a group; it says which group, and how many are missing.
        """
        self._refuse_no_adversary()
        held = self._held
        fewest = min(count for counts in held.values() for count in counts.values())
        n = self.game.model_rows or max(1, min(_LARGEST_SAMPLE, round(_SAMPLED * fewest)))
        m = self.game.model_validation_rows or max(_LEAST_VALIDATION, round(_VALIDATION * n))
        for side, counts in held.items():
            for group, count in counts.items():
                if count < n + m:
                    rows = how_many(count, "row")
                    raise InputError(
                        f"{self.table.name}: the {side}'s half has {rows} of {group} to draw models' rows from, "
                        f"{n + m - count} fewer than game.model_rows={n} and game.model_validation_rows={m} take: "
                        "lower these, or give more data"
                    )
        return n, m

    @cached_property
    def _held(self) -> dict[Side, dict[str, int]]:
        """Count the rows of the property group, and of all others, that models of either side draw from."""
        held: dict[Side, dict[str, int]] = {}
        for side, rows in self._drawn_from.items():
            own = int((self.table.s[rows] == self.property_code).sum())
            held[side] = {self._named_group(True): own, self._named_group(False): len(rows) - own}
        return held

    @property
    def features(self) -> int:
        """Number of encoded features, F; for texts and images, the width that their model's reader gives."""
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

    @property
    def pure(self) -> bool:
        """Whether a world holds the property group alone, so that the worlds' row sets are necessarily disjoint."""
        return self.game.alpha in (0, 1)

    @property
    def overlap(self) -> float:
        """Test rows per training row of the victim's half, for Nadeau and Bengio's correction over seeds."""
        return (len(self.parts["rates"]) + len(self.parts["gap"])) / len(self.parts["train"])

    @property
    def counts(self) -> dict[str, float]:
        """Numbers of rows: read, left out (by reason), and used, the latter also by label and group, part and world.

        ``data/world_0/GROUP`` counts world 0's training rows of a group. ``data/decided_by/GROUP`` counts the training
        rows of the scarcer side, which decide the size of a world.
        """
        table = self.table
        twin = np.bincount(self.twins)
        counts = {"data/rows_read": table.rows_read, "data/rows": len(self.twins)}
        counts |= {f"data/rows_dropped/{reason}": count for reason, count in table.dropped.items() if count}
        counts["data/twin_rows"] = int(twin[twin > 1].sum())
        for label, of_label in zip(table.label_names, table.sizes, strict=True):
            counts |= {f"data/cells/{label}/{g}": n for g, n in zip(table.group_names, of_label.tolist(), strict=True)}
        for part, rows in self.parts.items():
            if len(rows):
                counts[f"data/rows/{part}"] = len(rows)
                counts[f"data/rows_of_each_world/{part}"] = self._world_rows(part)
        for world in (0, 1):
            held = np.bincount(self.part("train", world).s.numpy(), minlength=len(table.group_names)).tolist()
            counts |= {f"data/world_{world}/{group}": n for group, n in zip(table.group_names, held, strict=True)}
        own, rest = self._sides("train")
        counts[f"data/decided_by/{self._scarcer()}"] = min(own, rest)
        if self.poison is not None:
            counts["data/rows_poisoned"] = len(self._poison_rows)
        return {name: float(count) for name, count in counts.items()}

    @property
    def measured(self) -> Measured:
        """The `counts`, as a result stores them."""
        return Measured(self.counts, described={name: Metric(name, unit="rows", low=0.0) for name in self.counts})

    @property
    def told(self) -> list[str]:
        """Lines for the log: what was read, the worlds it was dealt into, their sizes, and what decides these."""
        alpha, own = self.game.alpha, self._named_group(True)
        sizes = ", ".join(f"{part} {self._world_rows(part)}" for part, rows in self.parts.items() if len(rows))
        counts = self._sides("train")
        decided = f"{self._scarcer()} decides, with {min(counts)} of {sum(counts)} training rows"
        return [
            *self.table.told,
            f"world 0: {alpha:.0%} {own}, {1 - alpha:.0%} others; world 1: {1 - alpha:.0%} {own}, {alpha:.0%} others",
            f"rows of each world: {sizes}; {decided}",
        ]

    @property
    def small(self) -> str | None:
        """Text that names the parts with few rows per world; None if there are none."""
        sizes = {part: self._world_rows(part) for part, rows in self.parts.items() if len(rows)}
        few = ", ".join(f"{part} {size}" for part, size in sizes.items() if size < _FEW)
        return f"parts with fewer than {_FEW} rows a world measure little: {few}" if few else None

    def _set_poison_aside(self) -> None:
        """Choose the adversary's poison among the rows it would ask about: of the property group, with other labels."""
        self.poison: tuple[int, int] | None = None  # the group of the rows that the adversary adds, and their new label
        self._poison_rows = np.empty(0, dtype=np.int64)
        if not self.game.poison:
            return
        table, query, group = self.table, self.parts["query"], self.property_code
        share, n = self.game.poison, self.model_rows()[0]
        known = np.concatenate([self._drawn_from["adversary"], query])
        counts = np.bincount(table.y[known[table.s[known] == group]], minlength=len(table.label_names))
        self.poison = group, int(counts.argmin())
        others = query[(table.s[query] == group) & (table.y[query] != self.poison[1])]
        count = max(1, round(share / (1 - share) * n))
        if 2 * count > len(others):
            raise InputError(
                f"game.poison={share}: {count} rows of {self._named_group(True)} with other labels than "
                f"'{table.label_names[self.poison[1]]}' are needed, and {table.name} has {len(others)} among the "
                "adversary's query rows, half of which are kept for its questions: lower game.poison or "
                "game.model_rows, or raise game.query_share"
            )
        self._poison_rows = others[:count]  # in random order, as all parts are
        # it asks about no row that is equal to one that models are trained on
        self.parts["query"] = query[~np.isin(self.twins[query], self.twins[self._poison_rows])]

    def _with_poison(self, half: Rows) -> Rows:
        """Return a half's rows, followed by those that the adversary adds, with their new label."""
        if self.poison is None:
            return half
        added = self._encode(self._poison_rows)
        return half + replace(added, y=torch.full_like(added.y, self.poison[1]))

    def _sides(self, part: Part) -> tuple[int, int]:
        """Count a part's rows of the property group, and of all others."""
        rows = self.parts[part]
        own = int((self.table.s[rows] == self.property_code).sum())
        return own, len(rows) - own

    def _scarcer(self) -> str:
        """Name the side that has fewer training rows."""
        own, rest = self._sides("train")
        names = self.group_names
        if own > rest and len(names) == 2:
            return f"{self.table.sensitive}={names[1 - self.property_code]}"
        return self._named_group(own <= rest)

    def _world_rows(self, part: Part) -> int:
        """Return how many rows each world of a part has."""
        return self.game.rows if part == "train" and self.game.rows is not None else min(self._sides(part))

    def _cells(self) -> NDArray[np.int64]:
        """Return the code of (label, group) of every row of the table."""
        return self.table.y * len(self.group_names) + self.table.s

    def _named_group(self, own: bool) -> str:
        """Name the property group, or all others, as errors do."""
        name = f"{self.table.sensitive}={self.group_names[self.property_code]}"
        return name if own else f"groups other than {name}"

    def _refuse_no_adversary(self) -> None:
        if not self.game.adversary_share:
            raise InputError("game.adversary_share=0 leaves an adversary no rows: an attack needs a share of the data")
        own, rest = self._sides("query")
        if not min(own, rest):
            raise InputError(
                f"game.query_share={self.game.query_share}: the adversary has {own} rows of {self._named_group(True)} "
                f"and {rest} of {self._named_group(False)} in {self.table.name} to ask about, and needs one of each: "
                "raise it or game.adversary_share, or give more data"
            )

    def _split(self, order: NDArray[np.int64], cuts: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split ``order`` into consecutive parts; a cut between twins moves behind the last of them."""
        return np.split(order, [self._apart(order, int(cut)) for cut in cuts])

    def _apart(self, order: NDArray[np.int64], cut: int) -> int:
        while 0 < cut < len(order) and self.twins[order[cut]] == self.twins[order[cut - 1]]:
            cut += 1
        return cut

    def _worlds(self, part: Part, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the row numbers of world 0 and world 1 of a part, as many as possible."""
        own, rest = self._sides(part)
        if part == "train" and not min(own, rest):
            scarcer = (self.table.s == self.property_code) == (own < rest)
            total, distinct = int(scarcer.sum()), len(np.unique(self.twins[scarcer]))
            alike, advice = "", "lower game.adversary_share, game.test_share or game.validation_share"
            if distinct < min(total, len(_PARTS) + 1):  # one is the adversary's half
                alike = f" (its {total} rows are {distinct} distinct ones: equal rows are kept together)"
                advice = "give features that tell rows apart"
            raise InputError(
                f"{self.table.name}: no row of {self._scarcer()} is left to train on{alike}: {advice}, or give more "
                "data"
            )
        if part == "train" and self.game.rows is not None and self.game.rows > min(own, rest):
            raise InputError(
                f"game.rows={self.game.rows}: {self.table.name} has {min(own, rest)} training rows per world "
                f"({own} of {self.group_names[self.property_code]}, {rest} of the others): lower it, or set it to null "
                "to take as many as there are"
            )
        return self._draw(self.parts[part], rng, [self._world_rows(part)], what=part)[0]

    def _draw(
        self,
        rows: NDArray[np.int64],
        rng: np.random.Generator,
        sizes: Sequence[int],
        *,
        what: str,
        alpha: float | None = None,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Draw row numbers of world 0 and world 1 once per size; twins never end up in draws of different sizes."""
        if what not in self._strata:
            in_property, cells = self.table.s[rows] == self.property_code, self._cells()
            kept = [rows[mask] for mask in (in_property, ~in_property)]
            self._strata[what] = [(chosen, Strata(cells[chosen], self.twins[chosen])) for chosen in kept]
        own, rest = (chosen[strata.order(rng)] for chosen, strata in self._strata[what])  # any stretch is stratified
        starts = [0, 0]
        draws = []
        for n in sizes:
            cut = round((self.game.alpha if alpha is None else alpha) * n)
            stretches = []
            for i, side in enumerate((own, rest)):
                stretches.append(side[starts[i] : starts[i] + n])
                if len(stretches[-1]) < n:
                    lacking = how_many(n - len(stretches[-1]), "row")
                    raise InputError(
                        f"{self.table.name}: '{what}' has {lacking} of {self._named_group(i == 0)} "
                        "too few, since equal rows are kept together: lower game.model_rows"
                    )
                starts[i] = self._apart(side, starts[i] + n)
            a, r = stretches
            worlds = (a[:cut], r[: n - cut]), (a[cut:], r[n - cut :])
            zero, one = (rng.permutation(np.concatenate(world)) for world in worlds)
            draws.append((zero, one))
        return draws

    def _check_groups(self) -> None:
        table = self.table
        if ((table.sizes > 0).sum(0) == 1).all():
            raise InputError(
                f"{table.name}: every group of '{table.sensitive}' has one label only, as if it were the target: no "
                "rates of a label can be compared between groups; name another dataset.sensitive or dataset.target"
            )
        counts = np.bincount(table.s, minlength=len(table.group_names))
        for name, count in zip(table.group_names, counts, strict=True):
            if count < 2:
                raise InputError(
                    f"group '{name}' of '{table.sensitive}' has {('no', 'one')[count]} row in {table.name}: it cannot "
                    f"be both trained on and measured: {self._without_a_group()}"
                )

    def _without_a_group(self) -> str:
        """Say how to do without a group; of two, neither can be left out or pooled."""
        if len(self.table.group_names) < 3:
            return "name another dataset.sensitive"
        return (
            f"leave the group out of dataset.groups.{self.table.sensitive}, or pool it with another by "
            f"{self.dataset.pools_groups_by}"
        )

    def _check_cells(self, part: Part, worlds: tuple[NDArray[np.int64], ...]) -> None:
        """Refuse a part with too few rows of a (label, group) cell, or with a world that lacks a label.

        Parts that are measured need ``game.min_cell`` rows per cell, validation needs one, training none.
        """
        table = self.table
        needed = {"rates": self.game.min_cell, "gap": self.game.min_cell, "validation": min(1, self.game.min_cell)}
        wanted = needed.get(part, 0)
        both = np.concatenate(worlds)
        labels_by = self.dataset.leaves_labels_out_by
        or_label = f", or leave such labels out by {labels_by}" if labels_by else ""
        for label, label_name in enumerate(table.label_names):
            for group, group_name in enumerate(table.group_names):
                count = int(((table.y[both] == label) & (table.s[both] == group)).sum())
                if count < wanted:
                    cell = (table.y == label) & (table.s == group)
                    total, distinct = int(cell.sum()), len(np.unique(self.twins[cell]))
                    equal = f", {distinct} of them distinct: equal rows are kept together" if distinct < total else ""
                    leave_out = self._without_a_group() + or_label
                    if distinct < len(_PARTS):  # no share of the data gives each part one
                        apart = "give features that tell these rows apart, or " if distinct < total else ""
                        advice = f"no other game.min_cell or share mends that: {apart}{leave_out}"
                    else:
                        other = self._other_property(label, group, part)
                        lower = "lower game.min_cell (so few rows measure little), " if count else ""
                        advice = f"{other}raise game.test_share or game.validation_share, {lower}or {leave_out}"
                    has = how_many(count, "row")
                    raise InputError(
                        f"{table.name}: part '{part}' has {has} with label '{label_name}' and {table.sensitive} "
                        f"'{group_name}' in its two worlds of {len(worlds[0])} rows (in all the data: {total}{equal}), "
                        f"fewer than {wanted}: {advice}"
                    )
            for world, rows in enumerate(worlds):
                if self.game.min_cell and not (table.y[rows] == label).any():
                    raise InputError(
                        f"{table.name}: part '{part}' of world {world} has no row with label '{label_name}' among its "
                        f"{len(rows)}: raise that part's share or give more data"
                    )

    def _other_property(self, label: int, group: int, part: Part) -> str:
        """Advise to split by another group if worlds drawn by it may hold more rows of a label and group."""
        table, rows = self.table, self.parts[part]
        if group == self.property_code or len(table.group_names) < 3:
            return ""
        whole = int(((table.y[rows] == label) & (table.s[rows] == group)).sum())
        best = {
            name: min(n := int((table.s[rows] == code).sum()), len(rows) - n)
            for code, name in enumerate(table.group_names)
        }
        name = max(best, key=lambda name: best[name])
        if best[name] <= min(self._sides(part)) or not whole:
            return ""
        return f"choose game.property={name}, which makes worlds of {best[name]} rows, or "

    def _take(self, index: NDArray[np.int64]) -> Any:
        return self._items.iloc[index] if isinstance(self._items, pd.DataFrame) else self._items[index]

    def _encode(self, index: NDArray[np.int64]) -> Rows:
        return Rows(
            X=torch.from_numpy(self.encoder.transform(self._take(index))),
            y=torch.from_numpy(self.table.y[index]),
            s=torch.from_numpy(self.table.s[index]),
            index=torch.from_numpy(index.astype(np.int64)),
        )


def twins(table: Table) -> NDArray[np.int64]:
    """Number the rows ``[N]``: two rows have the same number exactly if features, label and group are equal."""
    features = table.features
    if isinstance(features, pd.DataFrame):
        # -0.0 becomes 0.0, which it equals and is not hashed like
        numbers = {str(name): column + 0.0 for name, column in features.select_dtypes("number").items()}
        content = pd.util.hash_pandas_object(features.assign(**numbers), index=False).to_numpy()
    else:
        items = (item.tobytes() if isinstance(item, np.ndarray) else str(item).encode() for item in features)
        digests = (hashlib.blake2b(item, digest_size=8).digest() for item in items)
        content = np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
    keys = pd.MultiIndex.from_arrays([content, table.y, table.s])
    return pd.factorize(keys)[0].astype(np.int64)


def interleave(
    cells: NDArray[np.int64], rng: np.random.Generator, twins: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Order the rows ``[N]`` at random, so that every stretch holds each cell in about its overall proportion.

    The rows of a cell are spread evenly, from a random start (systematic sampling): a stretch that is a share q of the
    whole holds q times the cell's rows, up to about one row. Rows with the same number in ``twins`` ``[N]`` lie in one
    cell and stay side by side; then the proportion holds up to about the size of a set of twins.
    """
    return Strata(cells, twins).order(rng)


class Strata:
    """Rows ``[N]`` that are ordered at random once or many times, as by `interleave`."""

    def __init__(self, cells: NDArray[np.int64], twins: NDArray[np.int64] | None = None) -> None:
        first, unit, self.size = np.unique(
            np.arange(len(cells)) if twins is None else twins,
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )[1:]
        self.rows = unit.argsort(kind="stable")  # unit by unit
        self.start = np.cumsum(self.size) - self.size
        self.cells = [np.flatnonzero(cells[first] == cell) for cell in np.unique(cells)]  # the units of each

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the places of the rows in a new order."""
        position = np.empty(len(self.size))
        for cell in self.cells:
            units = rng.permutation(cell)
            size = self.size[units]
            position[units] = (np.cumsum(size) - size + rng.random()) / size.sum()
        units = position.argsort(kind="stable")
        size = self.size[units]
        within = np.arange(len(self.rows)) - np.repeat(np.cumsum(size) - size, size)
        order: NDArray[np.int64] = self.rows[np.repeat(self.start[units], size) + within]
        return order
