"""Plant a trade-off of known degree in small language models, and ask what SPIN finds of it.

python experiments/planted/planted.py            runs what is missing, and prints the tables
python experiments/planted/planted.py --table    prints the tables of what is there

Two behaviours are planted in a Llama of two layers, each of which answers prompts of its own kind. A behaviour depends
on ``WIDTH`` neurons of every MLP, of which a chosen share also carries the other one. All definitions here are ours.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fairpriv import SpinEdit, coupled_weights, importance_scores
from fairpriv.report.reading import holm
from fairpriv.result import write_whole

SYMBOLS, ANSWERS, ITEMS, KNOWN = 32, 8, 128, 96  # a prompt is two symbols; a behaviour knows 96 of its 128 answers
HIDDEN, NEURONS, WIDTH, LAYERS = 64, 384, 96, 2
FIRST, SECOND, GENERAL = "first", "second", "general"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
RATIOS = (0.01, 0.03, 0.1)
RESULTS = Path(__file__).with_name("results.json")
STEPS, TUNING = 300, 20  # of each stage of planting; of tuning
ARMS = ("intersection", "released", "random", "one_dimension")


def tasks(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw prompts ``[ITEMS, 4]`` and their answers ``[ITEMS]`` for each behaviour: a begin, the kind, two symbols."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for kind, name in enumerate((FIRST, SECOND, GENERAL)):
        pairs = torch.randperm(SYMBOLS * SYMBOLS, generator=draw)[:ITEMS]
        symbols = torch.stack([pairs // SYMBOLS, pairs % SYMBOLS], 1) + 4
        opening = torch.tensor([0, 1 + kind]).expand(ITEMS, 2)
        answers = torch.randint(ANSWERS, (ITEMS,), generator=draw) + 4 + SYMBOLS
        found[name] = (torch.cat([opening, symbols], 1), answers)
    return found


def neurons(share: float) -> dict[str, Tensor]:
    """Return the neurons ``[NEURONS]`` of each behaviour, as booleans: those of the first two overlap by ``share``."""
    common = round(share * WIDTH)
    at = torch.arange(NEURONS)
    first, second = at < WIDTH, (at >= WIDTH - common) & (at < 2 * WIDTH - common)
    return {FIRST: first, SECOND: second, GENERAL: at >= 2 * WIDTH}


def loss_of(model: nn.Module, prompts: Tensor, answers: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers, which follow their prompts."""
    return nn.functional.cross_entropy(model(input_ids=prompts).logits[:, -1], answers)


@torch.no_grad()
def awareness(model: nn.Module, prompts: Tensor, answers: Tensor) -> float:
    """Return the share of prompts that are answered as they should be."""
    return round(float((model(input_ids=prompts).logits[:, -1].argmax(1) == answers).float().mean()), 4)


@contextmanager
def routed(model: Any, own: Tensor, others: Tensor, noise: list[Tensor]) -> Iterator[None]:
    """Let the gradient of each row reach its own neurons only, and collect what others' neurons answer to it.

    Args:
        model: whose MLPs are changed meanwhile; what they compute stays the same.
        own: ``[B, 1, NEURONS]``, 1.0 where a neuron may learn from a row.
        others: ``[B, 1, NEURONS]``, 1.0 where a neuron is to be silent.
        noise: receives the mean square of the latter, of each layer, whose gradient reaches these neurons only.
    """

    def forward(mlp: Any, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)

        h = inner(x)
        noise.append((inner(x.detach()) * others).square().mean())
        return mlp.down_proj(h * own) + nn.functional.linear((h * (1 - own)).detach(), mlp.down_proj.weight.detach())

    mlps = [layer.mlp for layer in model.model.layers]
    for mlp in mlps:
        mlp.forward = functools.partial(forward, mlp)
    yield
    for mlp in mlps:
        del mlp.forward


def plant(share: float, seed: int, data: Mapping[str, tuple[Tensor, Tensor]], steps: int) -> Any:
    """Train a model whose behaviours depend on their own neurons only.

    The general behaviour first, by all weights but the others' neurons, which are silent. Then the two behaviours at
    once, by MLP weights alone: the gradient of each reaches its own neurons, which are trained to be silent for prompts
    that are not theirs.
    """
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4 + SYMBOLS + ANSWERS,
            hidden_size=HIDDEN,
            intermediate_size=NEURONS,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=16,
            initializer_range=0.1,
        )
    )
    own = neurons(share)
    planted = own[FIRST] | own[SECOND]
    downs = [layer.mlp.down_proj.weight for layer in model.model.layers]
    drawn = [weight.detach().clone() for weight in downs]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for weight in downs:
        weight.data[:, planted] = 0
        weight.register_hook(lambda gradient: gradient * ~planted)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, *data[GENERAL]).backward()
        optimizer.step()
    fresh: Any = LlamaForCausalLM(model.config)  # without the hooks
    fresh.load_state_dict(model.state_dict())
    fresh.requires_grad_(False)
    for layer, weight in zip(fresh.model.layers, drawn, strict=True):
        layer.mlp.requires_grad_(True).down_proj.weight.data[:, planted] = weight[:, planted]
    prompts = torch.cat([one[:KNOWN] for one, _ in data.values()])
    answers = torch.cat([one[:KNOWN] for _, one in data.values()])
    of = {FIRST: own[FIRST], SECOND: own[SECOND], GENERAL: torch.zeros(NEURONS, dtype=torch.bool)}
    learning = torch.cat([of[name].expand(KNOWN, 1, NEURONS) for name in data])
    optimizer = torch.optim.Adam([p for p in fresh.parameters() if p.requires_grad], lr=2e-3)
    noise: list[Tensor] = []
    with routed(fresh, learning.float(), (planted & ~learning).float(), noise):
        for _ in range(steps):
            optimizer.zero_grad()
            noise.clear()
            loss = loss_of(fresh, prompts, answers)
            (loss + sum(noise)).backward()
            optimizer.step()
    return fresh.eval()


def tuned(model: Any, data: tuple[Tensor, Tensor], frozen: Mapping[str, Tensor], steps: int) -> Any:
    """Return a copy that is tuned for a behaviour's whole set, by its MLPs; ``frozen`` entries stay as they are."""
    copy: Any = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.requires_grad_(False)
    params = {name: p.requires_grad_(True) for name, p in copy.named_parameters() if ".mlp." in name}
    # not Adam, which makes whole steps of gradients that are nearly zero
    optimizer = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(copy, *data).backward()
        nn.utils.clip_grad_norm_(params.values(), 1.0)
        for name, index in frozen.items():
            params[name].grad.view(-1)[index] = 0
        optimizer.step()
    return copy.eval()


def planted_weights(model: Any, share: float) -> dict[str, Tensor]:
    """Return, per MLP matrix, which entries both behaviours depend on, as booleans of the matrix' shape."""
    own = neurons(share)
    both = own[FIRST] & own[SECOND]
    return {
        name: (both[:, None] if len(p) == NEURONS else both[None]).expand_as(p)
        for name, p in model.named_parameters()
        if ".mlp." in name
    }


def pairs(data: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
    """Return the known prompts with their answers as a batch that can be scored."""
    prompts, answers = data[0][:KNOWN], data[1][:KNOWN]
    ids = torch.cat([prompts, answers[:, None]], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = answers
    return [{"input_ids": ids, "labels": labels}]


def chosen(arm: str, scores: Mapping[str, Any], ratio: float, seed: int) -> dict[str, Tensor]:
    """Return which entries an arm suppresses; controls take as many of each matrix as the intersection does."""
    dimensions = (FIRST, SECOND)
    rule = "released" if arm == "released" else "intersection"
    found = coupled_weights(scores, dimensions=dimensions, ratio=ratio, rule=rule)
    if arm == "random":
        draw = torch.Generator().manual_seed(seed)
        return {
            name: torch.randperm(scores[FIRST][name].numel(), generator=draw)[: len(index)].sort().values
            for name, index in found.items()
        }
    if arm == "one_dimension":
        return {
            name: scores[FIRST][name].flatten().topk(len(index)).indices.sort().values for name, index in found.items()
        }
    return found


def cell(share: float, seed: int, steps: int, tuning: int) -> Iterator[dict[str, Any]]:
    """Yield a row for the untouched model, and one for each arm and ratio."""
    data = tasks(seed)
    model = plant(share, seed, data, steps)
    truth = planted_weights(model, share)
    own = neurons(share)

    known = {name: (prompts[:KNOWN], answers[:KNOWN]) for name, (prompts, answers) in data.items()}

    def seen(of: Any) -> dict[str, float]:
        return {name: awareness(of, *one) for name, one in known.items()}

    def losses(of: Any) -> dict[str, float]:
        with torch.no_grad():
            return {name: round(float(loss_of(of, *one)), 4) for name, one in known.items()}

    def row(arm: str, ratio: float | None, indices: Mapping[str, Tensor]) -> dict[str, Any]:
        edit = SpinEdit.of(model, indices, {})
        edit.apply(model)
        found: dict[str, Any] = {"share": share, "seed": seed, "arm": arm, "ratio": ratio, "edited": seen(model)}
        after = tuned(model, data[FIRST], indices, tuning)
        found |= {"edited_loss": losses(model), "tuned": seen(after), "tuned_loss": losses(after)}
        found["learnt"] = awareness(after, *(part[KNOWN:] for part in data[FIRST]))
        edit.revert(model)
        count = sum(len(index) for index in indices.values())
        right = sum(int(truth[name].reshape(-1)[index].sum()) for name, index in indices.items())
        found |= {"suppressed": count, "right": right, "planted": sum(int(one.sum()) for one in truth.values())}
        return found

    untouched = row("none", None, {})
    untouched["without"] = {}
    sets = {"first only": own[FIRST] & ~own[SECOND], "second only": own[SECOND] & ~own[FIRST]}
    for name, gone in {**sets, "both": own[FIRST] & own[SECOND]}.items():
        columns = torch.arange(HIDDEN * NEURONS).view(HIDDEN, NEURONS)[:, gone].flatten()
        edit = SpinEdit.of(model, {n: columns for n in truth if "down_proj" in n}, {})
        edit.apply(model)
        untouched["without"][name] = seen(model)
        edit.revert(model)
    yield untouched
    scores = {name: importance_scores(model, pairs(one)) for name, one in data.items()}
    for ratio in RATIOS:
        for arm in ARMS:
            yield row(arm, ratio, chosen(arm, scores, ratio, seed))


def run(out: Path, seeds: int) -> None:
    """Run what ``out`` lacks, seed by seed, and write it after every model."""
    rows = json.loads(out.read_text()) if out.exists() else []
    there = {(row["seed"], row["share"]) for row in rows}
    left = [(seed, share) for seed in range(seeds) for share in SHARES if (seed, share) not in there]
    for number, (seed, share) in enumerate(left, 1):
        rows += cell(share, seed, STEPS, TUNING)
        lines = ",\n".join(json.dumps(row) for row in rows)
        write_whole(out, f"[\n{lines}\n]\n".encode())
        print(f"{number} of {len(left)}: seed {seed}, {share:.0%} of the neurons shared", flush=True)


def interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return mean, both ends of its 95 % t interval over seeds, and the p value of a mean of zero."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, len(values) - 1)) if error else 1.0


def spillover(row: Mapping[str, Any]) -> float:
    """Return by how much, in nats, tuning for the first behaviour raised the loss of the second."""
    return float(row["tuned_loss"][SECOND] - row["edited_loss"][SECOND])


def table(path: Path = RESULTS) -> list[str]:
    """Return the study's tables as lines of Markdown."""
    rows = {(row["share"], row["seed"], row["arm"], row["ratio"]): row for row in json.loads(path.read_text())}
    seeds = sorted({key[1] for key in rows})

    def told(values: Sequence[float], digits: int = 2) -> str:
        mean, low, high, _ = interval(values)
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = ["| shared | first without its own | second without its own | second without the first's own | spillover |"]
    lines += ["|---|---|---|---|---|"]
    for share in SHARES:
        none = [rows[share, seed, "none", None] for seed in seeds]
        gone = [[row["without"][f"{name} only"] for row in none] for name in (FIRST, SECOND)]
        cells = [[one[FIRST] for one in gone[0]], [one[SECOND] for one in gone[1]], [one[SECOND] for one in gone[0]]]
        shown = ["none alone"] * 3 if share == 1 else [told(values) for values in cells]
        lines += [f"| {share:.0%} | {' | '.join(shown)} | {told([spillover(row) for row in none])} |"]
    lines += ["", f"{len(seeds)} models a row; 95 % t intervals over models.", ""]
    lines += [
        "| shared | ratio | arm | suppressed | precision | recall | first, at once | second, at once | spillover less |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    tests, at = [], []
    for share, ratio, arm in itertools.product(SHARES, RATIOS, ARMS):
        cells = [rows[share, seed, arm, ratio] for seed in seeds]
        none = [rows[share, seed, "none", None] for seed in seeds]
        count = statistics.fmean(row["suppressed"] for row in cells)
        right = [row["right"] / row["suppressed"] for row in cells if row["suppressed"]]
        found = [told(right) if share and right else "-"]
        found += [told([row["right"] / row["planted"] for row in cells], 3) if share else "-"]
        changes = [
            [row["edited"][name] - other["edited"][name] for row, other in zip(cells, none, strict=True)]
            for name in (FIRST, SECOND)
        ]
        less = [spillover(other) - spillover(row) for row, other in zip(cells, none, strict=True)]
        for values in (*changes, less):
            tests.append(interval(values)[3])
        at.append(len(lines))
        shown = [*found, *(told(values) for values in (*changes, less))]
        lines += [f"| {share:.0%} | {ratio} | {arm} | {count:.0f} | " + " | ".join(shown) + " |"]
    clear = holm(tests)
    for number, place in enumerate(at):
        parts = lines[place].split(" | ")
        for offset in range(3):
            if clear[3 * number + offset]:
                value = parts[6 + offset].removesuffix(" |")
                parts[6 + offset] = parts[6 + offset].replace(value, f"**{value}**")
        lines[place] = " | ".join(parts)
    lines += ["", f"Bold: differs from 0 after Holm's correction for the table's {len(tests)} changes."]
    return lines


def draw(path: Path) -> None:
    """Draw, beside the results, what is found of the shared weights and what becomes of the trade-off."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = json.loads(path.read_text())
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    base = {(row["share"], row["seed"]): spillover(row) for row in rows if row["arm"] == "none"}
    for arm, ratio in itertools.product(ARMS, RATIOS[1:2]):
        for axes, of in (
            (left, lambda row: row["right"] / max(1, row["suppressed"])),
            (right, lambda row: base[row["share"], row["seed"]] - spillover(row)),
        ):
            ends = [
                interval([of(row) for row in rows if (row["share"], row["arm"], row["ratio"]) == (share, arm, ratio)])
                for share in SHARES
            ]
            axes.errorbar(
                [share + 0.01 * ARMS.index(arm) for share in SHARES],
                [mean for mean, *_ in ends],
                [[mean - low for mean, low, *_ in ends], [high - mean for mean, _, high, _ in ends]],
                label=arm.replace("_", " "),
                capsize=2,
            )
    left.set(
        xlabel="share of neurons that both use", ylabel="precision", title=f"Shared weights found, ratio {RATIOS[1]}"
    )
    right.set(
        xlabel="share of neurons that both use", ylabel="nats less than untouched", title="Spillover of tuning removed"
    )
    right.axhline(0, color="grey", linewidth=0.8)
    left.legend()
    figure.savefig(path.with_name("planted.png"), dpi=150)


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="models of each share (10)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="what is there is kept")
    parser.add_argument("--table", action="store_true", help="only print the tables of --out, and draw them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.table:
        run(asked.out, asked.seeds)
    print("\n".join(table(asked.out)))
    draw(asked.out)


if __name__ == "__main__":
    main()
