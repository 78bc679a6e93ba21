"""What one language model says on the prompt sets, what a judge and scorers find in it, and how two models differ."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from fairpriv import processes, signs
from fairpriv.config.settings import EvaluationSettings
from fairpriv.data.texts import Example, choose
from fairpriv.errors import InputError, returned
from fairpriv.functional.verdicts import Known
from fairpriv.identity import code_of, content_hash, kind_of
from fairpriv.language_models.analyses import Flip, Row, cautions, flips
from fairpriv.language_models.data.pairs import Pairs
from fairpriv.language_models.data.tokens import Prompt, opens_thinking, without_thinking
from fairpriv.language_models.dimensions.awareness import (
    accuracy,
    agreement,
    awareness,
    corrected,
    over_refusal,
    triviality,
)
from fairpriv.language_models.dimensions.dimension import Dimension
from fairpriv.language_models.engines.generation import require_room, respond
from fairpriv.language_models.engines.server import COMPARED, TIES, Question
from fairpriv.language_models.judges.judge import Judge, NoVerdictsError, Verdict
from fairpriv.language_models.scorers.scorer import Scored, Subject, scores
from fairpriv.language_models.settings import Settings
from fairpriv.metrics import Measured

log = logging.getLogger(__name__)

Judging = tuple[Judge, list[Any]]  # a judge, and what determines its verdicts

PART = 256  # prompts whose answers are kept together


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one dimension: those whose answers are judged, the benign ones, or what its own scorer reads."""

    dimension: Dimension
    kind: Literal["evaluate", "benign", "scored"]
    examples: list[Example]

    @property
    def name(self) -> str:
        """The dimension's name."""
        return self.dimension.name

    @property
    def answered(self) -> bool:
        """Whether the prompts are answered; some scorers read the model and not its answers."""
        return self.kind != "scored" or (self.dimension.scorer is not None and self.dimension.scorer.answered)


def prompt_sets(
    dimensions: Mapping[str, Dimension], settings: EvaluationSettings, pairs: Pairs, seed: int
) -> list[PromptSet]:
    """Draw what every dimension is measured on.

    Prompts are the same in every cell of equal ``settings``. A scorer may ask about what the model is trained on
    instead, which ``pairs`` and the cell's ``seed`` tell.

    Raises:
        InputError: none of the dimensions has anything to be measured on, or a scorer cannot ask about these pairs.
    """

    def at_most(examples: list[Example], wanted: int | None, what: str) -> list[Example]:
        if wanted is not None and wanted > len(examples):  # dimensions differ in size
            log.info("%s: %d are wanted, there are %d", what, wanted, len(examples))
            wanted = None
        return choose(examples, wanted, settings.seed)

    found: list[PromptSet] = []
    for dimension in dimensions.values():
        if examples := dimension.measured_on():
            examples = at_most(examples, settings.prompts, f"evaluation.prompts of {dimension.name}")
        if dimension.scorer is not None:
            trained = dimension.scorer.of_training(pairs, dimensions, seed)
            found.append(PromptSet(dimension, "scored", (examples or []) if trained is None else trained))
        elif examples:
            found.append(PromptSet(dimension, "evaluate", examples))
        if dimension.benign is not None and settings.benign != 0:
            examples = at_most(dimension.benign_prompts(), settings.benign, f"evaluation.benign of {dimension.name}")
            found.append(PromptSet(dimension, "benign", examples))
    if not any(prompts.kind != "benign" for prompts in found):
        raise InputError(
            f"dimension={[*dimensions]}: none of them has evaluation prompts, so there is nothing to measure"
        )
    return found


@dataclass(frozen=True)
class Observation:
    """What was observed of one model on one prompt set.

    Attributes:
        prompts: the set.
        answers: one an example; none where they are not asked for.
        verdicts: of the first judge, one an example; none where it is not asked. Of benign prompts, those of the
            dimension's judge of refusals, whose "safe" is a refusal.
        scored: what the dimension's own scorer found; None where there is none.
        judge: the name of the judge whose verdicts these are.
        others: the verdicts of further judges, by name.
    """

    prompts: PromptSet
    answers: list[str]
    verdicts: list[Verdict]
    scored: Scored | None
    judge: str = ""
    others: Mapping[str, list[Verdict]] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[Verdict]:
        """The verdict on every example, be it the judge's or the scorer's; none where there are no such outcomes."""
        told = self.scored.outcomes if self.scored is not None else None
        judged = self.verdicts if self.prompts.kind == "evaluate" else []
        return judged or [Verdict(one if one is None else bool(one), "scorer") for one in told or []]


@dataclass(frozen=True)
class Observer:
    """Asks models the same prompts, and the judge and the scorers about them.

    Attributes:
        sets: what is asked.
        settings: the judges, the length of a response, and where things are kept between cells.
    """

    sets: Sequence[PromptSet]
    settings: Settings
    compared: list[bool] = field(default_factory=list)  # of answers by a server, whether this process's are the same

    def __post_init__(self) -> None:
        judged = [prompts.name for prompts in self.sets if prompts.kind == "evaluate"]
        if judged and not self.settings.judges:
            raise InputError(f"judge: none is chosen, and {judged[0]} has prompts to be judged")

    def observe(self, subject: Subject, origin: Any = None) -> list[Observation]:
        """Have a model answer every set, have the answers judged, and the examples scored.

        Of several processes each answers a share of the prompts and scores a share of the sets. The first one has the
        answers judged; others return nothing.

        Args:
            subject: the model, and how it is asked.
            origin: plain data that determines the model's numbers, under which its answers and scores are kept in the
                cache; None: they are not kept.
        """
        answers = self._answers(subject, origin)
        jobs = {
            index: functools.partial(self._scored, subject, prompts, told, origin)
            for index, (prompts, told) in enumerate(zip(self.sets, answers, strict=True))
            if prompts.kind == "scored"
        }
        scored = dict(zip(jobs, processes.dealt([*jobs.values()]), strict=True))
        if processes.rank() > 0:
            return []
        seen = []
        for index, (prompts, told) in enumerate(zip(self.sets, answers, strict=True)):
            pairs = [(example.prompt, answer) for example, answer in zip(prompts.examples, told, strict=False)]
            asked = self._judges[prompts.name] if prompts.kind == "evaluate" else self._of_refusals(prompts)
            signs.step(f"{len(pairs)} responses on {prompts.name}, by {', '.join(asked)}" if asked else prompts.name)
            said = {name: self._verdicts(judging, pairs) for name, judging in asked.items()}
            first = next(iter(said), "")
            verdicts = said.pop(first, [])
            seen.append(Observation(prompts, told, verdicts, scored.get(index), first, said))
        return seen

    @property
    def ties(self) -> Measured:
        """How a server's answers compare with this process's; nothing where there is no server."""
        if self.settings.engine is None:
            return Measured()
        return COMPARED.of(len(self.compared)) | TIES.of(self.compared.count(False))

    @cached_property
    def quality(self) -> Measured:
        """What is known of the judges, by dimension; `InputError` where one is too bad to be used."""
        measured = Measured()
        for name, judges in self._judges.items():
            for judge, (one, _) in judges.items():
                measured |= one.quality()
                if known := self.known.get(name, {}).get(judge):
                    measured |= accuracy(judge, name, known)
        return measured

    @cached_property
    def known(self) -> dict[str, dict[str, Known]]:
        """By dimension and judge, the verdicts on responses whose truth is known, where there are such.

        They are those that the dimension holds as ``labelled``, of copies one; else those that a judge has of its own.
        `InputError` where labelled responses are among those that a judge is made from.
        """
        found: dict[str, dict[str, Known]] = {}
        for prompts in self.sets:
            if prompts.kind != "evaluate":
                continue
            dimension, judges = prompts.dimension, self._judges[prompts.name]
            splits = {
                split: list(dict.fromkeys((e.prompt, str(e.response)) for e in texts.load()))
                for split, texts in dimension.labelled.items()
            }
            for name, judging in judges.items():
                known = judging[0].known()
                if splits:
                    seen = judging[0].made_from() & {pair for pairs in splits.values() for pair in pairs}
                    if seen:
                        raise InputError(
                            f"dimensions.{dimension.name}.labelled: {len(seen)} of its responses are among those that "
                            f"judge={name} is made from: give others, or leave labelled out"
                        )
                    said = {
                        split: [v.safe for v in self._verdicts(judging, pairs) if v.safe is not None]
                        for split, pairs in splits.items()
                    }
                    safe, unsafe = said["safe"], said["unsafe"]
                    known = Known(len(safe), sum(safe), len(unsafe), len(unsafe) - sum(unsafe))
                if known is not None:
                    found.setdefault(dimension.name, {})[name] = known
        return found

    @cached_property
    def _judges(self) -> dict[str, dict[str, Judging]]:
        """The judges of each dimension whose responses are judged, with what determines their verdicts."""
        settings = self.settings
        found: dict[str, dict[str, Judging]] = {}
        for prompts in self.sets:
            if prompts.kind != "evaluate":
                continue
            found[prompts.name] = {}
            for name, judge in settings.judges.items():
                one = judge.of(prompts.dimension, settings.store)
                judging = settings.judging[name] if one is judge else [kind_of(type(one)), one.digest()]
                found[prompts.name][name] = one, judging
        return found

    def _of_refusals(self, prompts: PromptSet) -> dict[str, Judging]:
        """Return the dimension's own judge of refusals, for its benign prompts, where it has one."""
        judge = prompts.dimension.refusals
        if prompts.kind != "benign" or judge is None:
            return {}
        return {"refusals": (judge, [kind_of(type(judge)), judge.digest()])}

    def _answers(self, subject: Subject, origin: Any) -> list[list[str]]:
        """Have every set answered greedily; no answers to sets that are not answered."""
        asked = [example.asked for prompts in self.sets if prompts.answered for example in prompts.examples]
        ids = subject.prompt_ids(asked)
        if self.settings.engine is None:
            told = self._told(subject, ids, origin)
        else:
            told = processes.told(lambda: self._served(subject, asked, ids, origin))
        if self.settings.model.strip_thinking:
            opened = opens_thinking(subject.tokenizer, subject.form)
            told = [without_thinking(answer, opened=opened) for answer in told]
        rest = iter(told)
        return [[next(rest) for _ in prompts.examples] if prompts.answered else [] for prompts in self.sets]

    def _told(self, subject: Subject, ids: list[list[int]], origin: Any) -> list[str]:
        """Answer prompts in this process, or in all that train together, each its share of the parts."""
        end = subject.end()

        def make(part: list[list[int]]) -> list[str]:
            return respond(
                subject.model,
                subject.tokenizer,
                part,
                max_new_tokens=self.settings.evaluation.max_new_tokens,
                batch_tokens=subject.batch_tokens,
                end=end,
                progress="answers" if subject.progress else None,
            )

        # In parts, each kept as soon as it is answered, and sorted as they are answered, so that few batches are cut.
        known: dict[tuple[int, ...], str] = {}
        unique = sorted(dict.fromkeys(map(tuple, ids)), key=len, reverse=True)
        for first in range(PART * processes.rank(), len(unique), PART * processes.count()):
            part = [list(prompt) for prompt in unique[first : first + PART]]
            key = {
                "prompts": hashlib.sha256(json.dumps(part).encode()).hexdigest(),
                "end": list(end),
                "max_new_tokens": self.settings.evaluation.max_new_tokens,
            }
            told = self._once("responses", origin, key, functools.partial(make, part))
            known |= dict(zip(map(tuple, part), told, strict=True))
        for theirs in processes.gather(known):
            known |= theirs
        return [known[tuple(prompt)] for prompt in ids]

    def _served(self, subject: Subject, asked: Sequence[Prompt], ids: list[list[int]], origin: Any) -> list[str]:
        """Have prompts answered by a server; each answer is kept, whatever becomes of the others."""
        engine, store, limit = self.settings.engine, self.settings.store, self.settings.evaluation.max_new_tokens
        assert engine is not None
        end = subject.end()
        require_room(subject.model, ids, limit)
        key = {"model": origin, "engine": engine.digest(), "end": list(end), "max_new_tokens": limit}
        named = {content_hash(tokens): Question(tuple(tokens), one) for tokens, one in zip(ids, asked, strict=True)}
        names = [*named]
        known: dict[str, Any] = {}
        with engine.serving(subject, max_new_tokens=limit, end=end, root=store.root / "cache") as served:

            def make(part: list[str]) -> dict[str, Any]:
                return {name: list(told) for name, told in served.ask({name: named[name] for name in part}).items()}

            for first in range(0, len(names), PART):
                part = names[first : first + PART]
                known |= make(part) if origin is None else store.cached_each("responses", key, part, make)
                if served.problem:
                    raise InputError(served.problem)
        same = [told[1] for told in known.values() if told[1] is not None]
        self.compared.extend(same)
        log.info(
            "engine: %d answers are compared with this process's, %d differ at a tie", len(same), same.count(False)
        )
        return [known[content_hash(tokens)][0] for tokens in ids]

    def _verdicts(self, judging: Judging, texts: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Have a judge read responses, given with their prompts.

        Each pair of a prompt and a response is asked about once, and its verdict read in every other cell; only where
        the judge gave none for a reason that may pass, such as a time-out, it is asked again.
        """
        judge, key = judging
        pairs = [content_hash(list(text)) for text in texts]
        by_pair = dict(zip(pairs, texts, strict=True))
        again: dict[str, Verdict] = {}

        def ask(new: list[str]) -> dict[str, Any]:
            try:
                told = judge.judge([by_pair[pair][0] for pair in new], [by_pair[pair][1] for pair in new])
            except NoVerdictsError as error:
                if len(new) == len(by_pair):
                    raise
                told = error.verdicts
            told = returned(list, told, f"judge {judge.name}: judge")
            if len(told) != len(new):
                raise InputError(f"judge {judge.name}: judge returned {len(told)} verdicts on {len(new)} responses")
            for one in told:
                returned(Verdict, one, f"judge {judge.name}: judge, for each response,")
            asked = dict(zip(new, told, strict=True))
            again.update({pair: one for pair, one in asked.items() if one.ask_again})
            return {pair: [one.safe, one.reason] for pair, one in asked.items() if not one.ask_again}

        known = self.settings.store.cached_each("verdicts", {"judge": key, **_code(judge)}, list(by_pair), ask)
        verdicts = {pair: Verdict(*told) for pair, told in known.items()} | again
        return [verdicts[pair] for pair in pairs]

    def _scored(self, subject: Subject, prompts: PromptSet, responses: Sequence[str], origin: Any) -> Scored | None:
        """Have the dimension's own scorer measure the model."""
        scorer = prompts.dimension.scorer
        if prompts.kind != "scored" or scorer is None:
            return None
        texts = [[example.prompt, example.messages, example.response, example.fields] for example in prompts.examples]
        key = {
            "scorer": prompts.dimension.scoring,
            **_code(scorer),
            "asked": subject.asked,
            "texts": hashlib.sha256(json.dumps([texts, list(responses)], default=str).encode()).hexdigest(),
        }

        def score() -> list[Any]:
            where = f"dimensions.{prompts.dimension.name}.scorer: score"
            found = returned(Scored, scorer.score(subject, prompts.examples, responses), where)
            return [asdict(found.checked(where))]

        told = self._once("scored", origin, key, score)
        return Scored.of(told[0])

    def _once(self, kind: str, origin: Any, key: Mapping[str, Any], make: Callable[[], list[Any]]) -> list[Any]:
        """Return what ``make`` returns, from the store where the model has an ``origin``."""
        if origin is None:
            return make()
        return self.settings.store.cached(kind, {"model": origin, **key}, make)


def _code(part: object) -> dict[str, Any]:
    """Return what a key of the cache holds of a user's own code, beside a part's digest."""
    return {"code": code} if (code := code_of(type(part))) else {}


@dataclass(frozen=True)
class Comparison:
    """What a model came to, beside the untouched one; and the details, for the cell's records."""

    measured: Measured
    cautions: list[Row]
    flips: list[Flip]


def compare(
    after: Sequence[Observation],
    before: Sequence[Observation] | None,
    known: Mapping[str, Mapping[str, Known]] | None = None,
) -> Comparison:
    """Compute the rates of a model, and their changes against the untouched model.

    Args:
        after: what was observed of the model.
        before: what was observed of the untouched model on the same sets; None: this is the untouched model.
        known: by dimension and judge, verdicts on responses whose truth is known, see `Observer.known`.
    """
    measured, said, turned = Measured(), [], []
    for now, then in zip(after, before if before is not None else [None] * len(after), strict=True):
        name = now.prompts.name
        if now.prompts.kind == "benign":
            prompts = [example.prompt for example in now.prompts.examples]
            measured |= over_refusal(name, now.answers, now.verdicts or None, prompts)
        elif now.verdicts:
            measured |= awareness(name, now.verdicts, then.verdicts if then else None)
            measured |= corrected(name, now.verdicts, (known or {}).get(name, {}).get(now.judge))
            measured |= agreement(name, {now.judge: now.verdicts, **now.others})
        if now.scored is not None and (scorer := now.prompts.dimension.scorer) is not None:
            untouched = then.scored if then else None
            scored = scorer.against(now.scored, untouched) if untouched is not None else now.scored
            measured |= scores(name, scored, untouched, scorer.rescore)
        if now.answers:
            rates, rows = cautions(name, now.answers, then.answers if then else None)
            said += [{"set": now.prompts.kind} | row for row in rows]
            if now.prompts.kind != "benign":
                measured |= rates
        if then is not None and now.outcomes and then.outcomes:
            # what a scorer reads off the model itself is counted, and has no answers to be shown
            blank = [""] * len(now.outcomes)
            prompts = [example.prompt for example in now.prompts.examples] if now.answers else blank
            counts, found = flips(
                name, prompts, now.answers or blank, now.outcomes, then.answers or blank, then.outcomes
            )
            measured |= counts
            turned += found if now.answers else []
    answers = [answer for seen in after for answer in seen.answers]
    return Comparison(measured | Measured(degenerate=triviality(answers) if answers else []), said, turned)
