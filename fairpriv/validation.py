"""``fairpriv validate``: compose and check every config; with ``--deep``, open what they name and try five samples."""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from fairpriv.config.compose import CONFIG_ERRORS, SECTIONS, build, compose, explain, groups, plain, target_of
from fairpriv.config.plugins import plugin_folders
from fairpriv.config.schema import TASKS, check, check_task, nearest, tasks_of
from fairpriv.errors import InputError, returned
from fairpriv.identity import content_hash

if TYPE_CHECKING:
    from fairpriv.data.texts import Example, Texts
    from fairpriv.language_models.dimensions.dimension import Dimension
    from fairpriv.language_models.scorers.scorer import Scorer

SAMPLES = 5  # of everything that is tried
RANDOM = "a random model of two layers"  # stands in for a language model; its answers mean nothing

AGAINST = {"prompt": "the same prompt", "any": "any prompt"}  # what a pair may stand against, by `Tuning.contrast`

Grids = dict[str, list[list[str]]]  # of every option: further overrides, one list for each grid
Problems = list[tuple[str, str]]  # option, and what is wrong with it


def validate(conf: Path, folders: Sequence[Path], *, deep: bool) -> int:
    """Compose every option of every group and check keys, types and targets; return the exit status (0 or 2).

    Args:
        conf: the project's own configs.
        folders: the user's configs.
        deep: also try the user's own options, or all of them where there is no folder of theirs: see `Trial`.
    """
    known = groups([conf, *plugin_folders(), *folders])
    problems: Problems = []
    found = _composed(conf, folders, known, problems)
    for option, text in problems:
        print(f"fairpriv: {option}: {text}", file=sys.stderr)
    if deep:
        mine = {group: names for group, names in (groups(folders) if folders else known).items() if group in TRIED}
        wrong = {option for option, _ in problems}
        trial = Trial(problems)
        for group in sorted(mine, key=lambda group: group == "experiment"):  # last: it chooses among the rest
            for name in mine[group]:
                option = f"{group}={name}"
                for grid in found.get(option, [[]]) if option not in wrong else ():
                    trial.run(option, plain(compose(conf, folders, [option, *_task(option, known), *grid])))
    count = len({option for option, _ in problems})
    print(f"{sum(map(len, known.values()))} configs checked, {count} with problems")
    return 2 if problems else 0


def _composed(
    conf: Path, folders: Sequence[Path], known: Mapping[str, Mapping[str, Path]], problems: Problems
) -> Grids:
    """Compose and check every option; return the grids of the experiments."""
    # One composition takes about 0.1 s, so options of different groups share it; experiments may override them.
    words = {group: [f"{group}={option}" for option in options] for group, options in known.items()}
    alone = [[word] for group in ("experiment", "debug", "task") for word in words.pop(group, [])]
    files = {f"experiment={name}": file for name, file in known.get("experiment", {}).items()}
    tasks = {word: _task(word, known) for of_group in words.values() for word in of_group}
    together = [
        [*task, *(word for word in row if word)]
        for task in map(list, dict.fromkeys(map(tuple, tasks.values())))
        for row in itertools.zip_longest(*([w for w in of_group if tasks[w] == task] for of_group in words.values()))
    ]
    grids: Grids = {}

    def problem(overrides: list[str]) -> str | None:
        try:
            for option in overrides:
                if option in files:
                    grids[option] = _grids(files[option], known) or [[]]
            for grid in grids.get(overrides[0], [[]]):
                config = plain(compose(conf, folders, [*overrides, *grid]))
                check(config, missing_allowed=True)
                if overrides[0] in files:  # its parts are meant to go together
                    check_task(config)
        except InputError as error:
            return str(error)
        except CONFIG_ERRORS as error:
            return explain(error, conf, folders, overrides)
        return None

    for overrides in alone + together:
        if text := problem(overrides):  # composed one at a time, to see which one is wrong
            own = [word for word in overrides if not word.startswith("task=") or len(overrides) == 1]
            each = {word: p for word in own if (p := problem([word, *_task(word, known)]))}
            each = each or {" ".join(overrides): text}
            problems += [(of, " ".join(p.removeprefix(of.replace("=", "/") + ": ").split())) for of, p in each.items()]
    return grids


def _task(option: str, known: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """Find the override that an option needs with it if it is of one task only."""
    group, _, name = option.partition("=")
    owners = [task for task, kind in TASKS.items() if SECTIONS.get(group, group) in kind.sections]
    if group == "dimension" and name in known[group]:
        owners = tasks_of(group, target_of(known[group], name))
    return [f"task={owner}" for owner in owners] if len(owners) == 1 else []


def _grids(file: Path, known: Mapping[str, Mapping[str, Path]]) -> list[list[str]]:
    """Take the first choice of every key that an experiment varies, per grid; group choices must all exist."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = OmegaConf.select(OmegaConf.load(file), "hydra.sweeper") or {}
    params = {f"params.{key}": value for key, value in (sweeper.get("params") or {}).items()}
    grids = [
        params | {f"grids[{i}].{key}": value for key, value in grid.items()}
        for i, grid in enumerate(sweeper.get("grids") or [{}])
    ]
    parser = OverridesParser.create()
    found = []
    for grid in grids:
        first = {}
        for where, value in grid.items():
            key = where.partition(".")[2]
            override = parser.parse_override(f"{key}={value}")
            choices = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [str(value)]
            for choice in choices if key in known else ():
                if choice not in known[key]:
                    raise InputError(f"hydra.sweeper.{where}: there is no {key}={choice}{nearest(choice, known[key])}")
            first[key] = f"{key}={choices[0]}"
        found.append(list(first.values()))
    return found


class Trial:
    """A trial of options on five samples, which prints a line for each part, or what is wrong with it.

    Each part is tried once, and one that still needs a value (``???``) is not tried. No language model is loaded or
    fetched: scorers are tried on a random one, as the lines say.

    Args:
        problems: the list to which problems are added.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.option = ""  # whose parts are tried
        self._tried: set[str] = set()

    def run(self, option: str, config: Mapping[str, Any]) -> None:
        """Try what ``option``, given as ``group=name``, contributes to a config composed with it."""
        self.option = option
        group = option.partition("=")[0]
        for part in ["dimension", *PARTS] if group == "experiment" else [group]:
            several = {"dimension": config.get("dimensions", {}), "attack": config.get("attack", {})}
            nodes = several[part] if part in several else {part: config.get(part)}
            for name, node in nodes.items():
                key = content_hash([part, node])
                what = "" if part == group else part if part == name else f"{part} {name}"
                if node is None or key in self._tried:
                    continue
                self._tried.add(key)
                if waiting := list(_waiting(node)):
                    self.say(what, f"not tried: {', '.join(waiting)} must be given")
                elif part == "dimension":
                    self.dimension(config, name, what)
                else:
                    self.part(what, functools.partial(PARTS[part], config, name))

    def dimension(self, config: Mapping[str, Any], name: str, what: str) -> None:
        """Read its pairs and prompts; if nothing is wrong, ask its scorer or the judge about five of them."""
        before = len(self.problems)
        node = config["dimensions"][name]
        if config["task"] == "classifier":
            self.part(what, lambda: f"{type(build(config['dimensions'], name, name=name)).__name__} is built")
            return
        texts = {f"train.{split}": part for split, part in (node.get("train") or {}).items()}
        texts |= {key: node[key] for key in ("evaluate", "benign") if node.get(key)}
        for key in texts:
            self.part(f"{what} {key}".strip(), functools.partial(_rows, texts, key))
        self.part(what, lambda: _dimension(config, name))
        if len(self.problems) == before and (node.get("evaluate") or node.get("scorer")):
            target = node["scorer"]["_target_"].rpartition(".")[2] if node.get("scorer") else None
            judge = config["judge"].get("name") or ", ".join(config["judge"])
            by = f"scorer {target}" if target else f"judge {judge}"
            self.part(f"{what} {by}".strip(), lambda: _tried(config, name))

    def part(self, what: str, attempt: Callable[[], str]) -> None:
        """Print the return value of ``attempt``, or what is wrong, and remember the latter."""
        try:
            self.say(what, attempt())
        except Exception as error:  # the user's own code may raise anything
            reason = str(error) if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {error}"
            text = " ".join(f"{f'{what}: ' if what else ''}{reason}".split())
            self.problems.append((self.option, text))
            print(f"fairpriv: {self.option}: {text}", file=sys.stderr, flush=True)

    def say(self, what: str, text: str) -> None:
        """Print what was found."""
        print(f"{self.option}: {f'{what}: ' if what else ''}{text}", flush=True)


def _waiting(node: Any, where: str = "") -> Iterator[str]:
    """Yield the keys that have no value yet."""
    if node == MISSING:
        yield where
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _waiting(value, f"{where}.{key}" if where else str(key))


def _built(config: Mapping[str, Any], name: str) -> str:
    return f"{type(build(config, name)).__name__} is built"


def _defense(config: Mapping[str, Any], name: str) -> str:
    """Build a defence; of a language model's, name the pairs that it reads."""
    from fairpriv.language_models.contract import Tuning

    defense = build(config, name)
    told = f"{type(defense).__name__} is built"
    if not isinstance(defense, Tuning):
        return told
    pairs = ["those of dataset=pairs"] if defense.trains else []
    if defense.contrast is not None:
        pairs[0] += f", each against a response of the other split to {AGAINST[defense.contrast]}"
    pairs += [f"{split} ones of {dimension}" for dimension, split, _ in defense.sets]
    return f"{told}, and reads pairs: {', '.join(pairs)}" if pairs else told


def _attack(config: Mapping[str, Any], name: str) -> str:
    return _built(config["attack"], name)


def _dataset(config: Mapping[str, Any], name: str) -> str:
    """Read a dataset and profile the columns of a table; run five rows of it through a classifier."""
    from fairpriv.classifiers.data.tabular import TabularDataset
    from fairpriv.classifiers.known_truth import World
    from fairpriv.classifiers.nets.architecture import architecture_of

    dataset = build(config, name)
    if config["task"] == "language_model":
        return "pairs of dimensions"  # which are read separately
    if isinstance(dataset, World):  # simulated, with models of its own
        return f"the best possible adversary's advantage is {dataset.optimal_advantage:.3f}"
    table = dataset.load()
    told = f"{len(table.y)} rows of {_named([path.name for path in dataset.source.locate()])}; "
    told += f"{dataset.target}: {_named(table.label_names)}; {table.sensitive}: {_named(table.group_names)}"
    if not isinstance(dataset, TabularDataset):
        return told
    columns = "".join(f"\n  {' '.join(line.split())}" for line in dataset.profile())
    if not _takes_features(config):  # options are tried that no run would combine
        return told + columns
    import torch

    from fairpriv.classifiers.nets.classifier import require_logits

    features = torch.as_tensor(dataset.encode(table.features).transform(table.features.head(SAMPLES)))
    architecture, classes = architecture_of(config), len(table.label_names)
    require_logits(architecture.network(features.shape[1], classes), features, classes, f"model={architecture.name}")
    return f"{told}; {len(features)} rows went through model={config['model']['name']}{columns}"


def _model(config: Mapping[str, Any], name: str) -> str:
    """Find pretrained weights; run five random rows through a network that reads tables."""
    if tasks_of("model", config[name]["_target_"]) == ["language_model"]:
        return f"{config[name]['path']} is there, not loaded ({build(config, name).digest()[:12]})"
    import torch

    from fairpriv.classifiers.nets.architecture import architecture_of
    from fairpriv.classifiers.nets.classifier import require_logits

    architecture = architecture_of(config)
    if architecture.modality != "table":
        there = [f"{config[name]['path']} is there, not loaded ({d[:12]})" for d in architecture.digests().values()]
        return f"reads {architecture.modality}s; {''.join(there) or 'from fresh weights'}"
    rows = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(0))
    require_logits(architecture.network(8, 2), rows, 2, f"model={architecture.name}")
    return f"{SAMPLES} random rows of 8 features went through it"


def _takes_features(config: Mapping[str, Any]) -> bool:
    """Return whether the model is a network that reads tables."""
    from fairpriv.classifiers.nets.architecture import architecture_of

    return (
        "classifier" in tasks_of("model", config["model"]["_target_"]) and architecture_of(config).modality == "table"
    )


def _evaluation(config: Mapping[str, Any], name: str) -> str:
    """Read the text that perplexity is measured on."""
    if not config[name]["text"]:
        return "no text, so no perplexity"
    build(config[name], "text").takes(["prompt"], ["response"], "evaluation.text")
    return f"text: {_rows(config[name], 'text')}"


def _utility(config: Mapping[str, Any], name: str) -> str:
    """Load tasks of lm-eval, and their data."""
    harness = build(config, name)
    return f"tasks {', '.join(harness.metrics())}" if harness.tasks else "no tasks"


def _judge(config: Mapping[str, Any], name: str) -> str:
    """Ask a judge about five pairs of each kind that come with the project."""
    from fairpriv.data.sources import Bundled
    from fairpriv.data.texts import Texts
    from fairpriv.language_models.dimensions.dimension import Dimension

    if far := _unfetched(config[name]):
        return far
    ours = {
        split: Texts(Bundled([f"fairness_{split}.csv"]), {"prompt": "prompt", "response": "response"})
        for split in ("safe", "unsafe")
    }
    sets = {f"our {split} pairs": texts.load()[:SAMPLES] for split, texts in ours.items()}
    return _judged(config, Dimension("fairness", train=ours), sets)


def _dimension(config: Mapping[str, Any], name: str) -> str:
    dimension: Dimension = build(config["dimensions"], name, name=name)
    measured = dimension.evaluate is not None or dimension.scorer is not None
    return f"dimension {name}, " + (f"measured as eval/{name}/..." if measured else "not measured: it has no evaluate")


def _rows(config: Mapping[str, Any], name: str) -> str:
    texts: Texts = build(config, name)
    count = len(texts.load())
    columns = [name for held in texts.columns.values() for name in (held if isinstance(held, list) else [held])]
    files = _named([path.name for path in texts.source.locate()])
    return f"{count} rows of {files}; columns {', '.join(dict.fromkeys(columns))}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tried(config: Mapping[str, Any], name: str) -> str:
    """Try five samples on a dimension's scorer with the random model, or on the judge with responses of their own."""
    dimension: Dimension = build(config["dimensions"], name, name=name)
    examples = dimension.measured_on() or []
    samples = examples[:SAMPLES]
    by = config["judge"] if dimension.scorer is None else config["dimensions"][name]["scorer"]
    if far := _unfetched(by):
        return far
    if dimension.scorer is None:
        pairs = {f"train.{split}": dimension.pairs(split)[:SAMPLES] for split in dimension.train}
        return _judged(config, dimension, pairs or {RANDOM: _answered(samples)})
    if not samples:
        return "has data of its own: its settings were checked, and nothing scored"
    return _scored(dimension.scorer, name, samples)


def _scored(scorer: Scorer, dimension: str, samples: Sequence[Example]) -> str:
    """Score samples on the random model; only the names of its figures mean anything."""
    from fairpriv.language_models.scorers.scorer import Scored, Subject

    scorer.digest()
    responses = [str(example.response) for example in _answered(samples)] if scorer.answered else []
    found = returned(Scored, scorer.score(Subject(*_random_model(), batch_size=SAMPLES), samples, responses), "score")
    json.dumps(found.records)  # each is to be a line of the cell's scores.jsonl
    score = found.measured.metrics.get("score", math.nan)
    if not 0 <= score <= 1:
        raise InputError(f"its score on {len(samples)} samples is {score}: it must lie within 0 and 1")
    names = _named([f"eval/{dimension}/{name}" for name in found.measured.metrics])
    return f"{len(samples)} samples scored on {RANDOM}: {names}"


def _answered(samples: Sequence[Example]) -> list[Example]:
    """Give the samples the random model's responses, where they have none of their own."""
    from fairpriv.language_models.data.tokens import PLAIN, encode_prompt
    from fairpriv.language_models.engines.generation import respond

    if all(example.response is not None for example in samples):
        return list(samples)
    model, tokenizer = _random_model()
    asked = [encode_prompt(tokenizer, example.asked, form=PLAIN, max_tokens=512) for example in samples]
    told = respond(model, tokenizer, asked, max_new_tokens=8, batch_tokens=1024)
    return [replace(example, response=response) for example, response in zip(samples, told, strict=True)]


def _judged(config: Mapping[str, Any], dimension: Dimension, sets: Mapping[str, Sequence[Example]]) -> str:
    """Report the judges' verdicts on sets of responses; the name of each set says whose they are."""
    from fairpriv.language_models.judges.judge import Verdict
    from fairpriv.language_models.settings import judges_of
    from fairpriv.store import Store

    judges = judges_of(config["judge"])
    told = []
    for (name, judge), (whose, examples) in itertools.product(judges.items(), sets.items()):
        judge = judge.of(dimension, Store(config["paths"]["root"]))
        judge.digest()
        found = judge.judge([e.prompt for e in examples], [str(e.response) for e in examples])
        verdicts = [returned(Verdict, one, "judge, for each response,") for one in returned(list, found, "judge")]
        if len(verdicts) != len(examples):
            raise InputError(f"gives {len(verdicts)} verdicts on {len(examples)} responses: it must give one each")
        counts = Counter({True: "safe", False: "unsafe", None: "unreadable"}[verdict.safe] for verdict in verdicts)
        by = f"{name}: " if len(judges) > 1 else ""
        told.append(
            f"{by}{', '.join(f'{n} {word}' for word, n in counts.items())} among {len(examples)} responses of {whose}"
        )
    return "; ".join(told)


@functools.cache
def _random_model() -> tuple[Any, Any]:
    """Make a random causal language model of two layers, in eval mode, and a tokenizer that reads bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    end = "<|end|>"
    alphabet = [end, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE({text: i for i, text in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=end, padding_side="left")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval(), tokenizer


def _unfetched(node: Any) -> str | None:
    """Describe a judge or a scorer whose model is only on the hub; None where there is nothing to fetch.

    Raises:
        InputError: the hub cannot be reached, or has no such model.
    """
    if not isinstance(node, Mapping):
        return None
    path = node.get("path")
    if not isinstance(path, str) or node.get("base_url") or node.get("package") or Path(path).expanduser().is_dir():
        return next(filter(None, map(_unfetched, node.values())), None)
    from huggingface_hub import try_to_load_from_cache

    from fairpriv.language_models.models.pretrained import PretrainedLM

    try:
        found = PretrainedLM("judge", path, node.get("revision")).digest()
    except InputError as error:
        raise InputError(str(error).replace("model.path", "path")) from None
    if isinstance(try_to_load_from_cache(path, "config.json", revision=found), str):
        return None
    return f"{path} is on the hub ({found[:12]}), and was not fetched: nothing was judged"


# What is tried beside dimensions, and how: given the composed config and the name of the node.
PARTS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "dataset": _dataset,
    "model": _model,
    "defense": _defense,
    "attack": _attack,
    "judge": _judge,
    "evaluation": _evaluation,
    "utility": _utility,
    "analysis": _built,
}
TRIED = ("dimension", *PARTS, "experiment")
