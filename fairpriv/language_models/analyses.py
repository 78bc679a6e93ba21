"""Analyses that go with a language model's cell: where dimensions couple, how far they depend on one another, what
its responses say, and which of them turned. Each is a function of what the cell has; the plots are in
report/analysis_plots.py."""

from __future__ import annotations

import functools
import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fairpriv.data.texts import Example, choose
from fairpriv.editing import SpinEdit, place
from fairpriv.errors import InputError
from fairpriv.functional.coupling import TopWeights
from fairpriv.functional.hsic import hsic_change, hsic_test
from fairpriv.functional.importance import matrices_of
from fairpriv.functional.intervals import paired_rate_difference_interval, wilson_interval
from fairpriv.functional.overlap import overlap
from fairpriv.language_models.contract import Tuning, require_choice
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.engines.generation import evaluating
from fairpriv.language_models.judges.judge import Verdict
from fairpriv.language_models.judges.refusal import CAUTIONS, caution_families, is_refusal
from fairpriv.metrics import Measured, Metric, share_metric

LEAST = 5  # prompts that HSIC and its change need
Tops = Mapping[str, Mapping[str, TopWeights]]  # by dimension or excluded set, then by weight name
Row = dict[str, Any]


JACCARD = share_metric(
    "analysis/jaccard/{pair}", "Jaccard of {pair}", "Overlap of two sets' top weights, over all matrices."
)
JACCARD_BY_CHANCE = share_metric(
    "analysis/jaccard_by_chance/{pair}",
    "Jaccard of {pair} by chance",
    "Its mean for random sets of the same sizes, with the central 95 % of that distribution.",
)
CAUTION = {
    "rate": share_metric(
        "analysis/caution/{dimension}/rate", "{dimension} cautions", "Share of responses with a cautionary phrase."
    ),
    "rate_before": share_metric(
        "analysis/caution/{dimension}/rate_before", "{dimension} cautions before", "The same of the untouched model."
    ),
    "rate_change": replace(
        share_metric(
            "analysis/caution/{dimension}/rate_change", "{dimension} cautions, change", "The one minus the other."
        ),
        low=-1.0,
    ),
}
FLIPS = {
    safe: Metric(
        f"analysis/flips/{{dimension}}/{way}",
        f"{{dimension}} {way.replace('_', ' ')}",
        "Prompts whose verdict turned.",
        "prompts",
        low=0.0,
    )
    for safe, way in ((True, "unsafe_to_safe"), (False, "safe_to_unsafe"))
}
_hsic = functools.partial(Metric, meaning="Dependence of two dimensions' representations, over all layers.")
HSIC = {
    key: _hsic(f"analysis/{{which}}/{{pair}}/{key}", f"{{which}} of {{pair}} {key}")
    for key in ("before", "after", "change")
}
HSIC |= {
    f"p_{key}": share_metric(
        f"analysis/{{which}}/{{pair}}/p_{key}", f"{{which}} of {{pair}}, p {key}", "Permutation test of independence."
    )
    for key in ("before", "after")
}


def coupling(tops: Tops, dimensions: Sequence[str], edit: SpinEdit) -> tuple[Measured, list[Row]]:
    """Count the weights that an edit suppresses by layer and module, and the overlap of the dimensions' top weights.

    Args:
        tops: the top weights of every dimension and excluded set, at the ratio of the edit; of the same matrices.
        dimensions: two or more, all in ``tops``; the other sets in it are excluded ones.
        edit: made of them, or a control.

    Returns:
        Metrics, for each pair ``a+b`` of sets: ``analysis/jaccard/<pair>``, over all matrices, and beside it
        ``analysis/jaccard_by_chance/<pair>``, its mean for random sets of the same sizes within each matrix, with the
        central 95 % of that distribution in place of a confidence interval. An index of two empty sets is left out.
        And rows: one a matrix, one a layer (``module`` None), one a module (``layer`` None) and one of all; each with
        ``suppressed``, which is 0 where nothing is, and all pairs.
    """
    numel = {weight: top.numel for weight, top in tops[dimensions[0]].items()}
    parts: dict[tuple[str | None, str | None], list[str]] = {}
    for weight in numel:
        layer, module = place(weight)
        for part in ((layer, module), (layer, None), (None, module), (None, None)):
            parts.setdefault(part, []).append(weight)
    rows: list[Row] = []
    for (layer_of, module_of), weights in parts.items():
        pairs = {}
        for a, b in combinations(sorted(tops), 2):
            first, second = ({weight: tops[name][weight].indices for weight in weights} for name in (a, b))
            found = overlap(first, second, {weight: numel[weight] for weight in weights})
            if not math.isnan(found.jaccard):
                pairs[f"{a}+{b}"] = {
                    "shared": found.shared,
                    "jaccard": found.jaccard,
                    "by_chance": found.expected,
                    "by_chance_interval": list(found.interval),
                }
        row = {
            "layer": layer_of,
            "module": module_of,
            "entries": sum(numel[weight] for weight in weights),
            "suppressed": sum(len(edit.indices.get(weight, ())) for weight in weights),
            "top": {name: sum(len(top[weight].indices) for weight in weights) for name, top in tops.items()},
            "pairs": pairs,
        }
        rows.append(row)
    whole = rows[[*parts].index((None, None))]["pairs"]
    measured = Measured()
    for pair, found in whole.items():
        low, high = found["by_chance_interval"]
        measured |= JACCARD.named(pair=pair).of(found["jaccard"])
        measured |= JACCARD_BY_CHANCE.named(pair=pair).of(found["by_chance"], (low, high))
    return measured, rows


def cautions(dimension: str, responses: Sequence[str], before: Sequence[str] | None) -> tuple[Measured, list[Row]]:
    """Count a dimension's responses that hold cautionary phrases, by the families of ``judges/refusal.py``.

    Args:
        dimension: its name.
        responses: to its prompts, ``[n]``.
        before: the untouched model's responses to the same prompts, ``[n]``; None: this is the untouched model.

    Returns:
        Metrics: ``analysis/caution/<dimension>/rate``, the share of responses that hold a phrase of any family, and
        ``.../rate_before``, with Wilson's intervals; ``.../rate_change``, the one minus the other, with Newcombe's
        interval for pairs. And rows with the same: of ``any`` family, of every family, and beside them of
        ``refusal``, that is any refusal's phrase.
    """
    n = len(responses)
    now, then = ([_families(text) for text in texts] for texts in (responses, before or []))
    rows: list[Row] = []
    for family in ("any", "refusal", *CAUTIONS):
        held = [family in found for found in now]
        row: Row = {"dimension": dimension, "family": family, "responses": n, "rate": sum(held) / n}
        row["rate_interval"] = wilson_interval(sum(held), n)
        if before is not None:
            held_before = [family in found for found in then]
            pairs = Counter(zip(held, held_before, strict=True))
            gained, lost = pairs[True, False], pairs[False, True]
            row |= {
                "rate_before": sum(held_before) / n,
                "rate_before_interval": wilson_interval(sum(held_before), n),
                "rate_change": (gained - lost) / n,
                "rate_change_interval": paired_rate_difference_interval(
                    pairs[True, True], gained, lost, pairs[False, False]
                ),
            }
        rows.append(row)
    measured = Measured()
    for key, metric in CAUTION.items():
        if key in rows[0]:
            measured |= metric.named(dimension=dimension).of(rows[0][key], rows[0][f"{key}_interval"])
    return measured, rows


def _families(text: str) -> set[str]:
    cautionary = caution_families(text)
    return cautionary | ({"any"} if cautionary else set()) | ({"refusal"} if is_refusal(text) else set())


@dataclass(frozen=True)
class Flip:
    """One prompt whose response was safe and is not any more, or the other way round."""

    dimension: str
    prompt: str
    before: str  # the untouched model's response
    after: str
    safe: bool  # whether the response after is
    reason_before: str  # the judge's
    reason_after: str


def flips(
    dimension: str,
    prompts: Sequence[str],
    responses: Sequence[str],
    verdicts: Sequence[Verdict],
    responses_before: Sequence[str],
    verdicts_before: Sequence[Verdict],
) -> tuple[Measured, list[Flip]]:
    """Find the prompts whose verdict turned; those with a verdict that cannot be read are left out.

    Returns:
        ``analysis/flips/<dimension>/unsafe_to_safe`` and ``.../safe_to_unsafe``, counts, which are what awareness
        gained and lost; and the flips, in the order of the prompts.
    """
    found = []
    together = zip(prompts, responses, verdicts, responses_before, verdicts_before, strict=True)
    for prompt, after, now, before, then in together:
        if None not in (now.safe, then.safe) and now.safe != then.safe:
            found.append(Flip(dimension, prompt, before, after, bool(now.safe), then.reason, now.reason))
    gained = sum(flip.safe for flip in found)
    to_safe, to_unsafe = (metric.named(dimension=dimension) for metric in FLIPS.values())
    return to_safe.of(gained) | to_unsafe.of(len(found) - gained), found


@dataclass
class Dependence:
    """How far the representations of two dimensions depend on one another, before and after an edit, by HSIC.

    The definition is ours; the paper of SPIN leaves it open. HSIC needs paired rows, so both representations are of
    the same prompts: the evaluation prompts of all edited dimensions together, each once. Of one prompt, dimension d's
    representation in a layer is the output of that layer's scored matrices at the prompt's last token, from which the
    response starts, at the rows in which d's top weights lie (before exclusion): the projection of the hidden state on
    the coordinates that these weights write. Over all layers it is all these coordinates together. Rows and not
    columns, since the entry W[r, c] acts on output r alone: an edit shows in the layer that it edits, whose inputs it
    leaves alone. Every coordinate is centred and scaled to unit variance over the prompts, before and after each for
    itself, lest a few large ones be all that counts; one without spread, beyond rounding, becomes 0.

    Two dimensions with top weights in one row have this coordinate in common, and depend on one another through it
    whatever the model computes. So all is measured twice: ``hsic``, with all rows, and ``hsic_apart``, without those
    that both have in common. Nor is the rest zero in a model without a trade-off: every hidden state is a function of
    the same prompt, and prompts of several dimensions differ in topic. So p values near 0 are to be expected; compare
    before with after, and that with a control of the same size (``defense.score=random``), not with zero.
    """

    kind: ClassVar[str] = "dependence"

    name: str = "hsic"
    prompts: int | None = 64  # of each dimension, drawn by evaluation.seed; null: all
    kernel: Literal["rbf", "linear"] = "rbf"
    bandwidth: float | str = "median"  # of rbf; median: the median distance, on each side, before and after
    permutations: int = 500  # of the test of independence; its p value is at least 1 / (1 + permutations)

    def __post_init__(self) -> None:
        require_choice(self, "analysis", "kernel")
        if self.bandwidth != "median" and (isinstance(self.bandwidth, str) or not 0 < self.bandwidth < math.inf):
            raise InputError(f"analysis.bandwidth={self.bandwidth}: must be a positive number, or median")
        if self.permutations < 1 or (self.prompts is not None and self.prompts < 1):
            raise InputError(
                f"analysis.prompts={self.prompts}, analysis.permutations={self.permutations}: each is at least 1"
            )

    def require_edit(self, defense: Tuning) -> None:
        """Raise `InputError` for a defence that makes no edit."""
        if not defense.coupled:
            raise InputError(
                f"analysis: compares a model before and after an edit, which defense={defense.name} does not make: "
                "choose defense=spin or lora_spin"
            )

    def draw(self, dimensions: Mapping[str, Dimension], defense: Tuning, seed: int) -> list[Example]:
        """Draw what all edited dimensions are compared on: what each is measured on, else the prompts of its pairs.

        Raises:
            InputError: fewer than ``LEAST`` different prompts.
        """
        found: list[Example] = []
        for name in defense.coupled:
            split = next(split for dimension, split, _ in defense.sets if dimension == name)
            examples = [example for example in dimensions[name].measured_on() or [] if example.prompt]
            found += choose(examples or dimensions[name].pairs(split), self.prompts, seed, key="analysis.prompts")
        require_least(len({example.prompt for example in found}))
        return found

    def measure(
        self,
        model: nn.Module,
        edit: SpinEdit,
        tops: Tops,
        dimensions: Sequence[str],
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int = 16,
        seed: int = 0,
    ) -> tuple[Measured, list[Row]]:
        """Compare a model before and after an edit.

        Args:
            model: with the edit applied, as it is again afterwards.
            edit: what it is reverted by for a while.
            tops: the top weights of every dimension, at the ratio of the edit.
            dimensions: two or more, all in ``tops``.
            prompts: token ids of every prompt; equal ones count once.
            batch_size: prompts of one forward pass.
            seed: of the permutations.

        Returns:
            Metrics, for each pair of dimensions, by ``hsic`` and ``hsic_apart``: ``analysis/<which>/<a>+<b>/before``,
            ``/after``, ``/change`` with its jackknife interval, ``/p_before`` and ``/p_after``, over all layers. And
            rows with the same, of all layers (``layer`` None) and of each. What has no coordinates is left out.

        Raises:
            InputError: fewer than ``LEAST`` different prompts.
        """
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        require_least(len(distinct))  # which cutting of long ones may have made equal
        rows = {
            weight: _rows(model, weight, [tops[name][weight] for name in dimensions]) for weight in tops[dimensions[0]]
        }
        rows = {weight: index for weight, index in rows.items() if len(index)}
        after = hidden_states(model, rows, distinct, batch_size=batch_size)
        edit.revert(model)
        try:
            before = hidden_states(model, rows, distinct, batch_size=batch_size)
        finally:
            edit.apply(model)
        rounding = 4 * torch.finfo(next(model.parameters()).dtype).eps
        states = [{weight: _scaled(state, rounding) for weight, state in seen.items()} for seen in (before, after)]
        measured = Measured()
        found: list[Row] = []
        layers: dict[str | None, list[str]] = {None: [*rows]}
        for weight in rows:
            layers.setdefault(place(weight)[0], []).append(weight)
        for a, b in combinations(sorted(dimensions), 2):
            own = {
                weight: [torch.isin(index, _rows(model, weight, [tops[name][weight]])) for name in (a, b)]
                for weight, index in rows.items()
            }
            for which in ("hsic", "hsic_apart"):
                for layer, weights in layers.items():
                    row = self._compared(states, own, weights, apart=which == "hsic_apart", seed=seed)
                    if row is None:
                        continue
                    found.append({"measure": which, "pair": f"{a}+{b}", "layer": layer, **row})
                    for key, metric in HSIC.items() if layer is None else ():
                        interval = row["change_interval"] if key == "change" else None
                        measured |= metric.named(which=which, pair=f"{a}+{b}").of(row[key], interval)
        return measured, found

    def _compared(
        self,
        states: Sequence[Mapping[str, Tensor]],
        own: Mapping[str, Sequence[Tensor]],
        weights: Sequence[str],
        *,
        apart: bool,
        seed: int,
    ) -> Row | None:
        """Compute HSIC before and after, over the coordinates of some matrices; None where a side has none."""
        masks = {
            weight: [mask & ~(own[weight][1 - i] & apart) for i, mask in enumerate(own[weight])] for weight in weights
        }
        sizes = [sum(int(masks[weight][i].sum()) for weight in weights) for i in (0, 1)]
        if not all(sizes):
            return None
        pairs = []
        for seen in states:
            x, y = (torch.cat([seen[weight][:, masks[weight][i]] for weight in weights], dim=1) for i in (0, 1))
            pairs.append((x, y))
        how: dict[str, Any] = {"kernel": self.kernel, "bandwidth": self.bandwidth}
        (then, p_then), (now, p_now) = (
            hsic_test(x, y, permutations=self.permutations, seed=seed, **how) for x, y in pairs
        )
        change, interval = hsic_change(pairs[0], pairs[1], **how)
        return {
            "prompts": len(pairs[0][0]),
            "coordinates": sizes,
            "shared": sum(int((masks[weight][0] & masks[weight][1]).sum()) for weight in weights),
            "before": float(then),
            "p_before": p_then,
            "after": float(now),
            "p_after": p_now,
            "change": float(change),
            "change_interval": interval,
        }


def require_least(prompts: int) -> None:
    """Raise `InputError` for fewer different prompts than HSIC needs."""
    if prompts < LEAST:
        raise InputError(f"analysis.prompts: {prompts} different prompts; HSIC needs {LEAST} at least")


def hidden_states(
    model: nn.Module, rows: Mapping[str, Tensor], prompts: Sequence[Sequence[int]], *, batch_size: int
) -> dict[str, Tensor]:
    """Record what chosen rows of weight matrices give out at the last token of every prompt.

    Args:
        model: a causal language model; left in the mode it was in.
        rows: per weight name of a linear layer, the rows of its matrix.
        prompts: token ids, none empty.
        batch_size: prompts of one forward pass, on which the states do not depend, up to rounding.

    Returns:
        per weight name, float32 ``[prompts, rows]`` on the CPU; of a weight that is used several times, the sum.
    """
    states = {weight: torch.zeros(len(prompts), len(index)) for weight, index in rows.items()}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    part: list[int] = []
    last = torch.zeros(0)

    def listen(weight: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            chosen = output[torch.arange(len(part), device=output.device), last.to(output.device)]
            states[weight][part] += chosen[:, rows[weight].to(output.device)].float().cpu()

        return hook

    matrices = matrices_of(model, "all")
    hooks = [layer.register_forward_hook(listen(weight)) for weight in rows for layer in matrices[weight]]
    takes = inspect.signature(model.forward).parameters
    extra = {key: value for key, value in {"use_cache": False, "logits_to_keep": 1}.items() if key in takes}
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                longest = len(prompts[part[0]])
                last = torch.tensor([len(prompts[i]) - 1 for i in part])
                # What is behind the last token is not seen by it: any filler will do, and no mask.
                ids = [[*prompts[i], *[prompts[i][-1]] * (longest - len(prompts[i]))] for i in part]
                model(input_ids=torch.tensor(ids, device=device), **extra)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def _rows(model: nn.Module, weight: str, tops: Sequence[TopWeights]) -> Tensor:
    """Return the rows of a matrix that any of these entries lie in: int64, ascending."""
    columns = model.get_parameter(weight).shape[1]
    return torch.cat([top.indices // columns for top in tops]).unique()


def _scaled(state: Tensor, rounding: float) -> Tensor:
    """Scale columns to mean 0 and variance 1; to 0 where the spread is within ``rounding`` of the largest value."""
    centred = state.double() - state.double().mean(0)
    spread = centred.square().mean(0).sqrt()
    flat = spread <= rounding * state.double().abs().amax(0)
    return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, spread))
