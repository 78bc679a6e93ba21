"""SPIN: set to zero the few weights that two or more dimensions depend on. Nothing is trained."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fairpriv import processes
from fairpriv.editing import SpinEdit, place
from fairpriv.errors import InputError
from fairpriv.functional.coupling import TopWeights, coupled_weights, selected, smallest_ratio, top_weights
from fairpriv.functional.importance import iter_importance_scores, matrices_of
from fairpriv.functional.wanda import wanda_scores
from fairpriv.identity import code_of
from fairpriv.language_models.contract import Draw, ModelOwner, Tuned, Tuning, require_base, require_choice
from fairpriv.language_models.data.tokens import Encoded, collate
from fairpriv.language_models.models.pretrained import quantised
from fairpriv.metrics import SHARE, Measured, Metric
from fairpriv.store import Store, checksum

log = logging.getLogger(__name__)

SUPPRESSED = Metric("edit/suppressed", "weights suppressed", "Weights that the edit sets.", "weights", low=0.0)
SUPPRESSED_SHARE = Metric("edit/share", "share suppressed", "Of the target's weights.", SHARE, low=0.0, high=1.0)
COUPLED = Metric("edit/coupled/{layer}", "suppressed in layer {layer}", "Weights.", "weights", low=0.0)
KEPT = 1e-3  # share of each matrix whose scores are kept: every ratio up to it is answered from the cache


@dataclass
class Spin(Tuning):
    """Scores each dimension's safe pairs, couples, suppresses; after another defence where ``after`` names one.

    The top weights of each dimension are cached by content, so that a sweep over ratio, rule, target and strength
    scores once. ``score`` and ``rule`` also give the controls without which no effect is an effect of coupling:

    - ``importance``: the paper's ``|W| * mean |dL/dW|``;
    - ``wanda``, ``magnitude``: coupled by another score (by magnitude all dimensions agree, so nothing is excluded);
    - ``random``: as many weights as importance couples, at random within the same matrices;
    - ``first_dimension``: as many, the first dimension's most important ones, coupled or not.
    """

    kind: ClassVar[str] = "spin"

    name: str
    dimensions: list[str]
    exclude: list[str] = field(default_factory=lambda: ["general"])
    ratio: float = 1e-5  # share of a matrix's entries that counts as a dimension's own
    exclude_ratio: float | None = None  # the same for the excluded sets; null: ratio
    target: Literal["mlp", "self_attn", "all"] = "mlp"
    rule: Literal["intersection", "released"] = "intersection"
    score: Literal["importance", "wanda", "magnitude", "random", "first_dimension"] = "importance"
    strength: float = 1.0  # 1: to zero; between: scaled by 1 - strength
    samples: int | None = 128  # pairs of each dimension; null: all
    split: Literal["safe", "unsafe"] = "safe"
    batch_size: int = 4  # pairs of one forward and backward pass
    # bytes for the scores; null: one number for each scored weight
    memory_budget: int | None = field(default=None, metadata={"outcome": False})
    after: Tuning | None = None  # a defence that is applied first

    def __post_init__(self) -> None:
        if self.after is not None:
            require_base(self.after, Tuning, "defense.after")
        names = [*self.dimensions, *self.exclude]
        if len(self.dimensions) < 2 or len(set(names)) < len(names):
            raise InputError(
                f"defense.dimensions={self.dimensions}, defense.exclude={self.exclude}: SPIN couples two or more "
                "dimensions, each once and none of them among the excluded"
            )
        require_choice(self, "defense", "target", "rule", "score", "split")
        for key in ("ratio", "exclude_ratio"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= KEPT:
                raise InputError(f"defense.{key}={value}: must lie above 0 and at most at {KEPT:g}")
        if not 0 <= self.strength <= 1:
            raise InputError(f"defense.strength={self.strength}: must lie in [0, 1]; 1 suppresses entirely")
        if self.rule == "released" and self.exclude_ratio not in (None, self.ratio):
            raise InputError(
                f"defense.rule=released needs defense.exclude_ratio equal to defense.ratio={self.ratio}, "
                f"not {self.exclude_ratio}: the released code fails there as well"
            )
        if self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise InputError(
                f"defense.batch_size={self.batch_size}, defense.samples={self.samples}: each is at least 1"
            )

    @property
    def trains(self) -> bool:
        """Whether the defence before it trains; SPIN itself does not."""
        return self.after is not None and self.after.trains

    @property
    def full_precision(self) -> bool:
        """Whether the defence before it is merged; what SPIN edits may be of any precision."""
        return self.trains

    @property
    def contrast(self) -> Literal["prompt", "any"] | None:
        """What the defence before it asks for."""
        return self.after.contrast if self.after is not None else None

    @property
    def coupled(self) -> list[str]:
        """The dimensions whose common weights it edits."""
        return self.dimensions

    @property
    def sets(self) -> list[Draw]:
        """The pairs of every dimension and excluded set."""
        coupled: list[Draw] = [(name, self.split, self.samples) for name in self.dimensions]
        return coupled + [(name, "safe", self.samples) for name in self.exclude]

    def check(self, model: nn.Module, *, merged: bool = False) -> None:
        """Raise `InputError` for weights that cannot be scored, or that the defence before it cannot leave plain."""
        if method := quantised(model):
            raise InputError(
                f"defense={self.name} edits single weights, and {method} has quantised them: set "
                "model.quantization=null, or give weights that are not quantised"
            )
        if self.after is not None:
            self.after.check(model, merged=True)
        if self.ratio < (least := smallest_ratio(max(self._sizes(model).values()))):
            log.warning(
                "SPIN: defense.ratio=%r selects no weight, so that nothing is edited; %r is the smallest that does",
                self.ratio,
                least,
            )

    def tune(self, owner: ModelOwner) -> Tuned:
        """Apply the defence before this one, then edit; the edit is kept in the cell's folder."""
        before = self.after.tune(owner) if self.after is not None else Tuned(owner.model)
        rows = {name: owner.rows(name, split, samples) for name, split, samples in self.sets}
        origin = owner.origin if self.after is None else _weights_hash(before.model)
        known = owner.origin if self.after is None else [owner.origin, origin]  # equal weights may compute otherwise
        tops = self.tops(before.model, rows, pad_id=owner.pad_id, store=owner.store, origin=known)
        edit, measured = self.edit(before.model, rows, seed=owner.seed, origin=origin, tops=tops)
        after = self.after.name if self.after is not None else None
        edit.metadata.update({"name": owner.name, "base": owner.origin, "after": after})
        path = owner.file("edit.safetensors")
        if processes.rank() == 0:
            edit.save(path)
        edit.apply(before.model)
        content = None
        if self.after is None or before.content is not None:
            found = {f"{name}.indices": index for name, index in edit.indices.items()} | {
                f"{name}.values": values for name, values in edit.originals.items()
            }
            first = code_of(type(self.after))
            content = [self.kind, before.content, *([first] if first else []), self.strength, checksum(found)]
        return Tuned(before.model, before.measured | measured, content, edit, self._narrowed(tops))

    def edit(
        self,
        model: nn.Module,
        rows: Mapping[str, Sequence[Encoded]],
        *,
        pad_id: int = 0,
        seed: int = 0,
        store: Store | None = None,
        origin: Any = None,
        tops: Mapping[str, Mapping[str, TopWeights]] | None = None,
    ) -> tuple[SpinEdit, Measured]:
        """Make the edit of ``model``, not yet applied, with its metrics, and why it is trivial, if it is.

        Args:
            model: the causal language model.
            rows: encoded pairs of every dimension and excluded set.
            pad_id: fills up shorter rows of a batch.
            seed: of ``score=random``.
            store: keeps top weights.
            origin: plain data that tells what ``model`` is; None: its weights are hashed.
            tops: what `tops` returned, where it has been called already.

        Raises:
            InputError: as `tops` and ``coupled_weights``.
        """
        origin = origin or _weights_hash(model)
        scores = tops or self.tops(model, rows, pad_id=pad_id, store=store, origin=origin)
        exclude = self._excluded
        first = scores[self.dimensions[0]]
        without = [name for name, top in first.items() if not selected(top.numel, self.ratio)]
        if 0 < len(without) < len(first):
            log.warning(
                "SPIN: defense.ratio=%r selects no weight in %d of %d matrices, such as %s",
                self.ratio,
                len(without),
                len(first),
                without[0],
            )

        def coupled(ratio: float) -> dict[str, Tensor]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # said above and below, once
                return coupled_weights(
                    scores,
                    dimensions=self.dimensions,
                    exclude=exclude,
                    ratio=ratio,
                    exclude_ratio=self.exclude_ratio,
                    rule=self.rule,
                )

        indices = self._control(coupled(self.ratio), first, seed)
        metadata = {
            "model": origin,
            "dimensions": self.dimensions,
            "exclude": exclude,
            "ratio": self.ratio,
            "exclude_ratio": self.exclude_ratio,
            "target": self.target,
            "rule": self.rule,
            "score": self.score,
            "split": self.split,
            "samples": {name: len(encoded) for name, encoded in rows.items()},
            "data": {name: _rows_hash(encoded) for name, encoded in rows.items()},
            "seed": seed,
        }
        edit = SpinEdit.of(model, indices, metadata, strength=self.strength)
        summary = edit.summary()
        measured = SUPPRESSED.of(summary["suppressed"])
        measured |= SUPPRESSED_SHARE.of(summary["suppressed"] / sum(top.numel for top in first.values()))
        layers = dict.fromkeys((place(name)[0] for name in first), 0) | summary["layers"]
        for layer, count in layers.items():
            measured |= COUPLED.named(layer=str(layer)).of(count)
        degenerate = []
        if not summary["suppressed"]:
            degenerate.append(self._why_empty(scores, coupled))
        elif self.strength == 0:
            degenerate.append("defense.strength=0 changes no weight")
        log.info("SPIN: %d weights of %d matrices", summary["suppressed"], len(edit.indices))
        return edit, measured | Measured(degenerate=degenerate)

    def tops(
        self,
        model: nn.Module,
        rows: Mapping[str, Sequence[Encoded]],
        *,
        pad_id: int = 0,
        store: Store | None = None,
        origin: Any = None,
    ) -> dict[str, dict[str, TopWeights]]:
        """Find the top weights of the target's matrices, for every dimension and excluded set; arguments as of `edit`.

        Raises:
            InputError: as ``importance_scores``, and a gradient that is not finite.
        """
        self._warn_of_shared(rows)
        wanted = self._sizes(model)
        if self.ratio < smallest_ratio(max(wanted.values())):  # there is nothing to score for
            none = torch.empty(0)
            return {name: {w: TopWeights(none.long(), none, wanted[w], KEPT) for w in wanted} for name in rows}
        origin = origin or _weights_hash(model)
        scores = {name: self._top(name, model, encoded, pad_id, store, origin) for name, encoded in rows.items()}
        return {name: {w: top for w, top in tops.items() if w in wanted} for name, tops in scores.items()}

    def _sizes(self, model: nn.Module) -> dict[str, int]:
        """Count each of the target's weights; raise `InputError` where there are none, or one cannot be scored."""
        try:
            return {name: layers[0].weight.numel() for name, layers in matrices_of(model, self.target).items()}
        except ValueError as error:
            raise InputError(f"SPIN: {error}") from error

    @property
    def _excluded(self) -> list[str]:
        return [] if self.score == "magnitude" else self.exclude

    def _narrowed(self, tops: Mapping[str, Mapping[str, TopWeights]]) -> dict[str, dict[str, TopWeights]]:
        """Return each dimension's and excluded set's own weights: its top weights at the ratio that is asked for."""
        exclude_ratio = self.ratio if self.exclude_ratio is None else self.exclude_ratio
        ratios = dict.fromkeys(self.dimensions, self.ratio) | dict.fromkeys(self._excluded, exclude_ratio)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of matrices without any, which `edit` has named
            return {name: top_weights(tops[name], max_ratio=ratio) for name, ratio in ratios.items()}

    def _control(self, indices: Mapping[str, Tensor], first: Mapping[str, TopWeights], seed: int) -> dict[str, Tensor]:
        """Choose as many weights of the same matrices in another way, where ``score`` is such a control."""
        if self.score == "random":
            generator = torch.Generator().manual_seed(seed)
            return {
                name: torch.randperm(first[name].numel, generator=generator)[: len(index)].sort().values
                for name, index in indices.items()
            }
        if self.score == "first_dimension":
            return {
                name: first[name]
                .indices[first[name].values.argsort(descending=True, stable=True)[: len(index)]]
                .sort()
                .values
                for name, index in indices.items()
            }
        return dict(indices)

    def _why_empty(self, scores: Mapping[str, Mapping[str, TopWeights]], coupled: Any) -> str:
        empty = f"the edit is empty: defense.ratio={self.ratio!r}"
        least = smallest_ratio(max(top.numel for top in scores[self.dimensions[0]].values()))
        if self.ratio < least:
            return f"{empty} selects no weight; {least!r} is the smallest that does"
        ratio = self.ratio
        while ratio < KEPT:
            ratio = min(KEPT, float(f"{ratio * 1.25:.1e}"))  # tried as it is printed
            if any(len(index) for index in coupled(ratio).values()):
                return f"{empty} couples no weight; {ratio!r} couples some"
        return f"{empty} couples no weight, and none up to {KEPT!r} does"

    def _warn_of_shared(self, rows: Mapping[str, Sequence[Encoded]]) -> None:
        seen: dict[str, str] = {}
        for name, encoded in rows.items():
            key = _rows_hash(sorted(encoded, key=lambda row: row.input_ids))
            if key in seen:
                spared = {seen[key], name} & set(self.exclude)
                outcome = "what they couple is excluded" if spared else "everything couples"
                log.warning("SPIN: %s and %s have the same pairs: %s", seen[key], name, outcome)
            seen[key] = name

    def _top(
        self, which: str, model: nn.Module, rows: Sequence[Encoded], pad_id: int, store: Store | None, origin: Any
    ) -> dict[str, TopWeights]:
        """Return the top weights of one set of pairs in all linear layers, from the store where they are known."""
        kind = self.score if self.score in ("wanda", "magnitude") else "importance"
        scope = self._scope(model)
        if store is None:
            return self._scored(which, kind, model, rows, pad_id, scope)
        key = {
            "origin": origin,
            "dtype": str(next(model.parameters()).dtype),
            "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
            "score": kind,
            "data": None if kind == "magnitude" else _rows_hash(rows),
            "kept": KEPT,
        }
        if scope != "all":
            key["target"] = scope
        if kind != "magnitude" and any(weight.dtype.itemsize < 4 for weight in model.parameters()):
            key["batch_size"] = self.batch_size  # padding changes how half precision rounds
        if code := code_of(type(self)):
            key["code"] = code

        def make() -> dict[str, TopWeights]:
            return self._scored(which, kind, model, rows, pad_id, scope)

        return store.cached("top_weights", key, make, save=_saved, load=_loaded, together=True)

    def _scope(self, model: nn.Module) -> str:
        """Choose the matrices that are scored: all, for every target to read; the target's, if others cannot be."""
        try:
            matrices_of(model, "all")
        except ValueError:  # a mixture of experts, say, of which attention alone can be scored exactly
            return self.target
        return "all"

    def _scored(
        self, which: str, kind: str, model: nn.Module, rows: Sequence[Encoded], pad_id: int, scope: str
    ) -> dict[str, TopWeights]:
        """Find the top weights of one set of pairs by one way to score, all processes together."""
        # Long rows together, so that little is padded; the mean over samples does not mind.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids))
        parts = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        if kind == "importance":  # which adds up what several processes have scored
            parts = parts[processes.rank() :: processes.count()]
        scored = [i for part in parts for i in part]
        batches = [collate([rows[i] for i in part], pad_id) for part in parts]
        tops: dict[str, TopWeights] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                if kind == "wanda":
                    tops = top_weights(wanda_scores(model, batches, target=scope), max_ratio=KEPT)
                elif kind == "magnitude":
                    for name, layers in matrices_of(model, scope).items():
                        tops |= top_weights({name: layers[0].weight.detach().float().abs()}, max_ratio=KEPT)
                else:
                    for name, score in iter_importance_scores(
                        model,
                        batches,
                        target=scope,
                        memory_budget=self.memory_budget,
                        gradient_checkpointing=_checkpointing(model),
                    ):
                        tops |= top_weights({name: score}, max_ratio=KEPT)
            except MemoryError as error:
                raise RuntimeError(f"SPIN: {error}; set defense.memory_budget, in bytes") from error
            except torch.OutOfMemoryError as error:
                raise RuntimeError(
                    "SPIN: out of memory: set defense.memory_budget, in bytes, lower "
                    f"defense.batch_size={self.batch_size}, or set model.gradient_checkpointing=true"
                ) from error
            except (ValueError, FloatingPointError) as error:
                text = re.sub(
                    r"sample (\d+) \(row \d+ of its batch\)", lambda m: f"sample {scored[int(m[1])]}", str(error)
                )
                raise InputError(f"SPIN: {which}: {text}") from error
        return tops


def _saved(tops: Mapping[str, TopWeights]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {}
    for name, top in tops.items():
        small = top.numel <= torch.iinfo(torch.int32).max
        tensors[f"{name}.indices"] = top.indices.to(torch.int32) if small else top.indices
        tensors[f"{name}.values"] = top.values
    return tensors, {name: [top.numel, top.max_ratio] for name, top in tops.items()}


def _loaded(tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, TopWeights]:
    return {
        name: TopWeights(tensors[f"{name}.indices"].long(), tensors[f"{name}.values"], numel, ratio)
        for name, (numel, ratio) in sizes.items()
    }


def _rows_hash(rows: Sequence[Encoded]) -> str:
    return hashlib.sha256(json.dumps([[row.input_ids, row.labels] for row in rows]).encode()).hexdigest()


def _checkpointing(model: nn.Module) -> bool:
    """Tell whether ``model.gradient_checkpointing`` has switched it on; transformers' own works in training only."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
