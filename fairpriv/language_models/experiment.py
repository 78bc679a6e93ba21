"""One cell of the tug of war: tune or edit a language model for some dimensions, and measure what becomes of all."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fairpriv import processes
from fairpriv.configs import build
from fairpriv.data.texts import Example, Texts, choose
from fairpriv.errors import InputError
from fairpriv.identity import OUTCOME_VERSION, content_hash, kind_of
from fairpriv.language_models.analyses import LEAST, Dependence, cautions, coupling, flips
from fairpriv.language_models.contract import ModelOwner, Tuned, Tuning
from fairpriv.language_models.data.pairs import Pairs
from fairpriv.language_models.data.tokens import Encoded, encode_all, encode_prompt, pad_token_id, response_end
from fairpriv.language_models.dimensions.awareness import awareness, over_refusal, triviality
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.engines.generation import require_room, respond
from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.engines.perplexity import encode_text, perplexity, require_window
from fairpriv.language_models.judges.judge import Judge, NoVerdictsError, Verdict
from fairpriv.language_models.models.causal_lm import fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.scorers.scorer import Scored, Scorer, Subject, scores
from fairpriv.report.flips import FLIPS, Flip, write_flips
from fairpriv.result import Result, write_rows, write_whole
from fairpriv.run import Stage
from fairpriv.schema import nearest
from fairpriv.settings import EvaluationSettings
from fairpriv.store import Store, read_json, write_json
from fairpriv.trainer import device_of, trainer_of

log = logging.getLogger(__name__)


@dataclass
class PromptSet:
    """Prompts of one dimension: those whose answers are judged, the benign ones, or what its own scorer reads."""

    dimension: str
    kind: str  # evaluate, benign or scored
    examples: list[Example]
    answered: bool = True  # some scorers read the model and not its answers


class TugOfWar:
    """The parts of one cell, built from its config; ``measure`` runs it.

    Raises:
        InputError: the config names a part that does not belong to language models, or one that does not exist.
    """

    def __init__(self, config: Mapping[str, Any], pairs: Pairs, defense: Tuning) -> None:
        self.config = config
        self.store = Store(config["paths"]["root"])
        self.pairs = pairs
        self.defense = defense
        self.model: PretrainedLM = build(config, "model")
        self.dimensions: dict[str, Dimension] = {
            name: build(config["dimensions"], name, name=name) for name in config["dimensions"]
        }
        if self.model.device_map is not None and defense.trains:
            raise InputError(
                f"model.device_map={self.model.device_map} spreads the model over devices, and defense={defense.name} "
                "trains it on one: leave it null"
            )
        self.judge: Judge | None = build(config, "judge") if config["judge"] else None
        self.settings = EvaluationSettings(**{k: v for k, v in config["evaluation"].items() if k != "text"})
        self.text: Texts | None = build(config["evaluation"], "text") if config["evaluation"]["text"] else None
        if self.text:
            self.text.takes(["prompt"], ["response"], "evaluation.text")
        self.harness: Harness = build(config, "utility") if config.get("utility") else Harness()
        self.analysis: Dependence | None = build(config, "analysis") if config.get("analysis") else None
        if self.analysis and not hasattr(defense, "tops"):
            raise InputError(
                f"analysis: compares a model before and after an edit, which defense={defense.name} does not make: "
                "choose defense=spin or lora_spin"
            )

    def digests(self) -> dict[str, str]:
        """Content of every input, by the config key that its place stands in."""
        found = {"model.path": self.model.digest()}
        if self.model.half:  # rounding depends on the padding, and turns near ties
            found["model.dtype"] = f"{self.model.dtype}, batches of {self.settings.batch_size}"
        for name, dimension in self.dimensions.items():
            found |= {f"dimensions.{name}.{key}": digest for key, digest in dimension.digests().items()}
        if self.text:
            found["evaluation.text.source"] = self.text.source.digest()
        if self.harness.tasks:
            found["utility.tasks"] = self.harness.digest()
        if self.judge:
            found["judge"] = content_hash(self.judging)
        return found

    @functools.cached_property
    def judging(self) -> list[Any]:
        """What determines the judge's verdicts; reading a model's files for it takes its time, so it is done once."""
        return [kind_of(type(self.judge)), self.judge.digest() if self.judge else None]

    def measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        """Run the cell and write what it came to into ``result``; responses go to a file of ``folder``."""
        let_go()  # of what a cell that failed has left
        try:
            self._measure(result, folder, logger, stage)
        finally:
            self.release()
            let_go()

    def release(self) -> None:
        """Let go of the models of judge and scorers, which are loaded again where they are asked again."""
        for judge in (self.judge, *(getattr(d.scorer, "classifier", None) for d in self.dimensions.values())):
            if judge is not None and hasattr(judge, "release"):
                judge.release()

    def _measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        with stage("data"):  # before the model, so that a fault in the data shows soon
            examples = self.pairs.load(self.dimensions, self.config["seed"]) if self.defense.trains else []
            for name, drawn in getattr(self.defense, "sets", {}).items():
                self.drawn(name, *drawn)
            sets = self.prompt_sets()
            common = self.common_prompts() if self.analysis else []
            text = "\n\n".join(_joined(example) for example in self.text.load()) if self.text else None
        if judged := [which.dimension for which in sets if which.kind == "evaluate" and self.judge is None]:
            raise InputError(f"judge: none is chosen, and {judged[0]} has prompts to be judged")
        with stage("model"):
            model, tokenizer = self.model.load()
            self.model.pin(tokenizer)
            if self.model.device_map is None:
                model.to(device_of(self.config))  # type: ignore[arg-type]
            if self.model.gradient_checkpointing:
                # transformers 5.23 deplores the old name, earlier ones know no other
                getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            # Whatever cannot be done with this model shows before anything is measured.
            if hasattr(self.defense, "check"):
                self.defense.check(model)
            pairs = self.encoded(tokenizer, examples) if self.defense.trains else ([], 0)
            picked = {
                (name, *drawn): self.rows(tokenizer, name, *drawn)
                for name, drawn in getattr(self.defense, "sets", {}).items()
            }
            trained = [row.input_ids for rows in (pairs[0], *picked.values()) for row in rows]
            require_room(model, trained, lower="dataset.max_tokens")
            ids = None if text is None else encode_text(tokenizer, text)[: self.settings.text_tokens]
            if ids is not None and len(ids):
                require_window(model, ids, self.settings.window)
        trainer = trainer_of(self.config)
        alone = processes.rank() == 0  # the first process measures, the whole of every set; the others only train
        with stage("before"):
            before = self.answers(model, tokenizer, sets, untouched=True) if alone else []
            verdicts_before = self.verdicts(sets, before) if alone else []
            scored_before = self.scores(model, tokenizer, sets, before, untouched=True) if alone else {}
            if self.defense.trains:  # training needs the memory
                self.release()
                let_go()
        owner = ModelOwner(
            model,
            tokenizer,
            pad_token_id(tokenizer, len(model.get_input_embeddings().weight)),  # type: ignore[arg-type]
            self.config["seed"],
            pairs=lambda: pairs,
            fit=functools.partial(fit_causal_lm, trainer=trainer, logger=logger),
            keep=lambda tuned: self.keep(tuned, tokenizer, folder, result),
            rows=lambda *which: picked[which] if which in picked else self.rows(tokenizer, *which),
            file=lambda name: self.file(name, folder, result),
            store=self.store,
            origin={"revision": self.model.digest(), "dtype": str(model.dtype).removeprefix("torch.")},
            name=self.model.path if not Path(self.model.path).is_dir() else Path(self.model.path).resolve().name,
        )
        with stage("defend"):
            tuned: Tuned = self.defense.tune(owner)
        if not alone:
            return
        result.metrics |= tuned.metrics
        result.degenerate += tuned.degenerate
        with stage("evaluate"):
            after = before if not self.tunes else self.answers(tuned.model, tokenizer, sets)
            verdicts = verdicts_before if not self.tunes else self.verdicts(sets, after)
            for which, told in zip(sets, after, strict=True):
                if which.kind == "benign":
                    self._add(result, over_refusal(which.dimension, told))
            for which, now, then in zip(sets, verdicts, verdicts_before, strict=True):
                if now:
                    self._add(result, awareness(which.dimension, now, then if self.tunes else None))
            scored = scored_before if not self.tunes else self.scores(tuned.model, tokenizer, sets, after)
            for name, found in scored.items():
                rescore = getattr(self.dimensions[name].scorer, "rescore", None)
                self._add(result, scores(name, found, scored_before[name] if self.tunes else None, rescore))
            if any(after):
                result.degenerate += triviality([response for told in after for response in told])
            if ids is not None:
                result.metrics |= self.utility(tuned.model, ids)
        if self.harness.tasks:
            with stage("utility"):
                utility = self.harness.measure(
                    tuned.model,
                    tokenizer,
                    batch_size=max(1, self.settings.batch_size // 4),
                    system=self.model.system,
                    progress=self.watched,
                )
            self._add(result, utility)
        if any(after):
            self.write_responses(self.file("responses.jsonl", folder, result), sets, after, verdicts, before)
        if scored:
            self.write_scores(self.file("scores.jsonl", folder, result), scored, scored_before)
        outcomes, outcomes_before = (
            [told or _outcomes(which, found) for which, told in zip(sets, judged, strict=True)]
            for judged, found in ((verdicts, scored), (verdicts_before, scored_before))
        )
        self.analyse_answers(result, folder, sets, after, outcomes, before, outcomes_before)
        if tuned.edit is not None:
            chosen: list[str] = tuned.edit.metadata["dimensions"]
            rates, rows = coupling(tuned.tops, chosen, tuned.edit)
            self._add(result, rates)
            write_rows(self.file("overlaps.jsonl", folder, result), rows)
            if self.analysis:
                with stage("analyse"):
                    rates, rows = self.analysis.measure(
                        tuned.model,
                        tuned.edit,
                        tuned.tops,
                        chosen,
                        self.prompt_ids(tokenizer, common),
                        batch_size=self.settings.batch_size,
                        seed=self.settings.seed,
                    )
                self._add(result, rates)
                write_rows(self.file("hsic.jsonl", folder, result), rows)

    @property
    def tunes(self) -> bool:
        """Whether the defence touches the model at all."""
        return self.defense.name != "none"

    @property
    def watched(self) -> bool:
        """Whether a person watches this one cell; a sweep has a bar of its own."""
        return not self.config["sweep"] and sys.stderr.isatty()

    def prompt_sets(self) -> list[PromptSet]:
        """The prompts of every dimension, the same in every cell of equal ``evaluation``."""
        found = []
        for name, dimension in self.dimensions.items():
            examples, scorer, settings = dimension.measured_on(), dimension.scorer, self.settings
            if examples:
                examples = self.at_most(examples, settings.prompts, f"evaluation.prompts of {name}")
            if scorer is not None:
                found.append(PromptSet(name, "scored", examples or [], scorer.answered))
            elif examples:
                found.append(PromptSet(name, "evaluate", examples))
            if dimension.benign is not None and settings.benign != 0:
                examples = self.at_most(dimension.benign.load(), settings.benign, f"evaluation.benign of {name}")
                found.append(PromptSet(name, "benign", examples))
        if not any(which.kind != "benign" for which in found):
            raise InputError(
                f"dimension={[*self.dimensions]}: none of them has evaluation prompts, so there is nothing to measure"
            )
        return found

    def at_most(self, examples: Sequence[Example], wanted: int | None, what: str) -> list[Example]:
        """As many as wanted, or all of a smaller set: dimensions differ in size."""
        if wanted is not None and wanted > len(examples):
            log.info("%s: %d are wanted, there are %d", what, wanted, len(examples))
            wanted = None
        return choose(examples, wanted, self.settings.seed)

    def common_prompts(self) -> list[Example]:
        """What all edited dimensions are compared on: the prompts that each is measured on, else those of its pairs."""
        assert self.analysis is not None
        found = []
        for name in self.defense.dimensions:  # type: ignore[attr-defined]
            dimension, (split, _) = self.dimensions[name], self.defense.sets[name]  # type: ignore[attr-defined]
            examples = [example for example in dimension.measured_on() or [] if example.prompt]
            examples = examples or dimension.pairs(split)
            found += choose(examples, self.analysis.prompts, self.settings.seed, key="analysis.prompts")
        if (distinct := len({example.prompt for example in found})) < LEAST:
            raise InputError(f"analysis.prompts: {distinct} different prompts; HSIC needs {LEAST} at least")
        return found

    def encoded(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> tuple[list[Encoded], int]:
        """The training pairs as tokens, and how many were dropped."""
        return encode_all(
            tokenizer,
            examples,
            chat_template=self.model.chat_template,
            system=self.model.system,
            max_tokens=self.pairs.max_tokens,
            truncate=self.pairs.truncate,
        )

    def rows(
        self, tokenizer: PreTrainedTokenizerBase, dimension: str, split: str, samples: int | None
    ) -> list[Encoded]:
        """Encoded pairs of one dimension, drawn by the cell's seed."""
        return self.encoded(tokenizer, self.drawn(dimension, split, samples))[0]

    def drawn(self, dimension: str, split: str, samples: int | None) -> list[Example]:
        """Pairs that the defence reads, drawn by the cell's seed; `InputError` where there are none or too few."""
        if dimension not in self.dimensions:
            raise InputError(
                f"defense: {dimension} is not among the chosen dimensions {', '.join(self.dimensions)}"
                f"{nearest(dimension, self.dimensions)}: add it to dimension=[...], or take it out of "
                "defense.dimensions and defense.exclude"
            )
        examples = self.dimensions[dimension].pairs(split)
        return choose(examples, samples, self.config["seed"], key="defense.samples")

    def file(self, name: str, folder: Path, result: Result) -> Path:
        """Where the cell keeps a file of this name, which its result then lists."""
        result.artifacts[Path(name).stem] = name
        return folder / name

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
        """Tokens from which the responses are generated."""
        return [
            encode_prompt(
                tokenizer,
                example.prompt,
                chat_template=self.model.chat_template,
                system=self.model.system,
                max_tokens=self.settings.max_prompt_tokens,
            )
            for example in examples
        ]

    def answers(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sets: Sequence[PromptSet],
        *,
        untouched: bool = False,
    ) -> list[list[str]]:
        """The model's greedy responses to every set; those of the untouched model are made once and then read."""
        prompts = self.prompt_ids(
            tokenizer, [example for which in sets if which.answered for example in which.examples]
        )

        end = response_end(tokenizer, chat_template=self.model.chat_template, system=self.model.system)

        def make() -> list[str]:
            return respond(
                model,
                tokenizer,
                prompts,
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.batch_size,
                end=end,
                progress="answers" if self.watched else None,
            )

        if untouched:
            key = {
                "model": self.numbers_of(model),
                "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
                "end": list(end),
                "max_new_tokens": self.settings.max_new_tokens,
            }
            flat = self.store.cached("responses", key, make)
        else:
            flat = make()
        found, rest = [], iter(flat)
        for which in sets:
            found.append([next(rest) for _ in which.examples] if which.answered else [])
        return found

    def verdicts(self, sets: Sequence[PromptSet], answers: Sequence[Sequence[str]]) -> list[list[Verdict]]:
        """The judge's verdicts on the sets that are judged, an empty list for the others.

        Each pair of a prompt and a response is asked about once, and its verdict read in every other cell; only where
        the judge gave none for a reason that may pass, such as a time-out, it is asked again.
        """
        judge = self.judge
        found: list[list[Verdict]] = []
        if judge is None:
            return [[] for _ in sets]
        folder = self.store.root.joinpath("cache", "verdicts", content_hash([OUTCOME_VERSION, self.judging]))
        known: dict[str, Verdict] = {}
        for path in sorted(folder.glob("*.json")):  # one of each time that it was asked
            known |= {pair: Verdict(*told) for pair, told in (read_json(path) or {}).items()}
        for which, responses in zip(sets, answers, strict=True):
            if which.kind != "evaluate":
                found.append([])
                continue
            texts = [(example.prompt, answer) for example, answer in zip(which.examples, responses, strict=True)]
            pairs = [content_hash(list(text)) for text in texts]
            if new := {pair: text for pair, text in zip(pairs, texts, strict=True) if pair not in known}:
                try:
                    told = judge.judge([prompt for prompt, _ in new.values()], [answer for _, answer in new.values()])
                except NoVerdictsError as error:
                    if not known.keys() & set(pairs):
                        raise
                    told = error.verdicts
                asked = dict(zip(new, told, strict=True))
                known |= asked
                if final := {pair: [one.safe, one.reason] for pair, one in asked.items() if not one.ask_again}:
                    write_json(folder / f"{content_hash(sorted(final))}.json", final)
            found.append([known[pair] for pair in pairs])
        return found

    def scores(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sets: Sequence[PromptSet],
        answers: Sequence[Sequence[str]],
        *,
        untouched: bool = False,
    ) -> dict[str, Scored]:
        """What each dimension's own scorer finds of the model; of the untouched one it is found once and then read."""
        asked = {
            "chat_template": self.model.chat_template,
            "system": self.model.system,
            "max_prompt_tokens": self.settings.max_prompt_tokens,
        }
        subject = Subject(
            model,
            tokenizer,
            batch_size=self.settings.batch_size,
            progress=self.watched,
            **asked,  # type: ignore[arg-type]
        )
        found = {}
        for which, responses in zip(sets, answers, strict=True):
            dimension = self.dimensions[which.dimension]
            scorer, examples = dimension.scorer, which.examples
            if which.kind != "scored" or scorer is None:
                continue

            def make(
                scorer: Scorer = scorer, examples: list[Example] = examples, responses: Sequence[str] = responses
            ) -> list[dict[str, Any]]:
                return [asdict(scorer.score(subject, examples, responses))]

            if untouched:
                texts = [[example.prompt, example.fields] for example in examples]
                key = {
                    "model": self.numbers_of(model),
                    "scorer": dimension.scoring,
                    "asked": asked,
                    "texts": hashlib.sha256(json.dumps([texts, list(responses)], default=str).encode()).hexdigest(),
                }
                told = self.store.cached("scores", key, make)
            else:
                told = make()
            found[which.dimension] = Scored(**told[0])
        return found

    def utility(self, model: nn.Module, ids: Tensor) -> dict[str, float]:
        """Perplexity on the tokens of the evaluation text."""
        try:
            value, scored = perplexity(
                model,
                ids,
                window=self.settings.window,
                stride=self.settings.stride,
                batch_size=max(1, self.settings.batch_size // 4),
                progress="perplexity" if self.watched else None,
            )
        except ValueError as error:
            raise InputError(f"evaluation: {error}") from error
        return {"eval/utility/perplexity": value, "evaluation/scored_tokens": float(scored)}

    def keep(self, model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, result: Result) -> None:
        """Keep the tuned adapter or model, and the tokenizer, in the cell's folder."""
        result.artifacts["model"] = "model"
        if processes.rank() == 0:
            model.save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")

    def write_responses(
        self,
        path: Path,
        sets: Sequence[PromptSet],
        after: Sequence[Sequence[str]],
        verdicts: Sequence[Sequence[Verdict]],
        before: Sequence[Sequence[str]],
    ) -> None:
        """One line a response: prompt, verdict, judge, and what the untouched model answered."""
        lines = []
        for which, told, judged, then in zip(sets, after, verdicts, before, strict=True):
            for i, response in enumerate(told):
                line: dict[str, Any] = {"dimension": which.dimension, "set": which.kind}
                line["prompt"] = which.examples[i].prompt
                line["response"] = response
                if judged:
                    name = self.judge.name if self.judge else None
                    line |= {"safe": judged[i].safe, "reason": judged[i].reason, "judge": name}
                if self.tunes:
                    line["before"] = then[i]
                lines.append(json.dumps(line, ensure_ascii=False))
        write_whole(path, ("\n".join(lines) + "\n").encode())

    def write_scores(self, path: Path, scored: Mapping[str, Scored], before: Mapping[str, Scored]) -> None:
        """One line an example that a scorer read: what it found, and what was different in the untouched model."""
        lines = []
        for dimension, found in scored.items():
            for record, then in zip(found.records, before[dimension].records, strict=True):
                line = {"dimension": dimension, **record}
                if self.tunes:
                    line["before"] = {name: value for name, value in then.items() if value != record.get(name)}
                lines.append(json.dumps(line, ensure_ascii=False))
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())

    def analyse_answers(
        self,
        result: Result,
        folder: Path,
        sets: Sequence[PromptSet],
        after: Sequence[Sequence[str]],
        verdicts: Sequence[Sequence[Verdict]],
        before: Sequence[Sequence[str]],
        verdicts_before: Sequence[Sequence[Verdict]],
    ) -> None:
        """What the responses say, and whose outcome the defence turned; details go to files of ``folder``."""
        found: list[Flip] = []
        rows = []
        for which, told, now, told_before, then in zip(sets, after, verdicts, before, verdicts_before, strict=True):
            if told:
                rates, said = cautions(which.dimension, told, told_before if self.tunes else None)
                rows += [{"set": which.kind} | row for row in said]
                if which.kind != "benign":
                    self._add(result, rates)
            if self.tunes and now and then:
                prompts = [example.prompt for example in which.examples] if told else [""] * len(now)
                counts, more = flips(which.dimension, prompts, told or prompts, now, told_before or prompts, then)
                result.metrics |= counts
                found += more if told else []  # what is read off the model itself has nothing to be shown
        if rows:
            write_rows(self.file("cautions.jsonl", folder, result), rows)
        if self.tunes:
            write_flips(self.file(FLIPS, folder, result), found)

    def numbers_of(self, model: Any) -> list[Any]:
        """What determines the untouched model's numbers, to the last bit that can turn an answer."""
        # In half precision padding does, which turns near ties; in float32 it has never been seen to.
        half = model.dtype in (torch.float16, torch.bfloat16)
        batch_size = self.settings.batch_size if half else None
        return [self.model.digest(), str(model.dtype), self.model.attn_implementation, batch_size]

    @staticmethod
    def _add(result: Result, rates: tuple[dict[str, float], dict[str, tuple[float, float]]]) -> None:
        result.metrics |= rates[0]
        result.intervals |= {name: list(ends) for name, ends in rates[1].items()}


def let_go() -> None:
    """Free the memory of models that nothing refers to any more, cycles included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _outcomes(which: PromptSet, found: Mapping[str, Scored]) -> list[Verdict]:
    """What a scorer found of each example, in a judge's form; none where its score is no share of examples."""
    outcomes = found[which.dimension].outcomes if which.kind == "scored" else None
    return [Verdict(outcome, "scorer") for outcome in outcomes or []]


def _joined(example: Example) -> str:
    return example.prompt if example.response is None else f"{example.prompt}\n{example.response}"
