"""One cell of the tug of war: tune or edit a language model for some dimensions, and measure what becomes of all."""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from transformers import PreTrainedModel

from fairpriv import processes
from fairpriv.data.texts import Example
from fairpriv.editing import SpinEdit
from fairpriv.errors import InputError, returned
from fairpriv.identity import code_of, content_hash
from fairpriv.language_models.analyses import coupling
from fairpriv.language_models.contract import ModelOwner, Tuned, Tuning
from fairpriv.language_models.data.pairs import Pairs, drawn
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.engines.harness import Harness
from fairpriv.language_models.engines.perplexity import PERPLEXITY, SCORED_TOKENS, perplexity, windows
from fairpriv.language_models.inputs import Loaded, encoded, load, read, trained_on
from fairpriv.language_models.models.causal_lm import fit_causal_lm
from fairpriv.language_models.observation import Comparison, Observation, Observer, compare
from fairpriv.language_models.records import Records, flip_rows, judge_rows, response_rows, score_rows
from fairpriv.language_models.scorers.scorer import Subject
from fairpriv.language_models.settings import Settings
from fairpriv.metrics import Measured
from fairpriv.model_card import cell_card
from fairpriv.result import Result, Stage
from fairpriv.store import checksum


class TugOfWar:
    """One cell: built from its config, run by ``measure``.

    Raises:
        InputError: as `Settings.read`.
    """

    def __init__(self, config: Mapping[str, Any], pairs: Pairs, defense: Tuning) -> None:
        self.settings = Settings.read(config, pairs, defense)

    def digests(self) -> dict[str, str]:
        """Return the content of every input, by the config key that its place stands in."""
        settings = self.settings
        found = {"model.path": settings.model.digest()}
        if settings.model.half:  # rounding depends on the padding, and turns near ties
            found["model.dtype"] = f"{settings.model.dtype}, batches of {settings.evaluation.batch_size}"
        if (template := settings.model.template()) is not None:
            found["model.chat_template"] = content_hash(template)
        for name, dimension in settings.dimensions.items():
            found |= {f"dimensions.{name}.{key}": digest for key, digest in dimension.digests().items()}
        if settings.text is not None:
            found["evaluation.text.source"] = settings.text.source.digest()
        if settings.harness.tasks:
            tasks = settings.harness.digest()
            found["utility.tasks"] = content_hash([tasks, self._utility_batches]) if settings.model.half else tasks
        if settings.judges:
            judging = list(settings.judging.values())
            found["judge"] = content_hash(judging[0] if len(judging) == 1 else judging)
        return found

    def measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        """Run the cell: read, load, observe, defend, observe again, compare, record.

        Of several processes all train, and each answers a share of the prompts and measures a share of the scored sets
        and of lm-eval's tasks. The first one measures the rest.

        Args:
            result: what is measured is added to it.
            folder: where the records are written.
            logger: of the training.
            stage: times a part of the cell, under a name.
        """
        with letting_go(self.settings):
            self._measure(result, folder, logger, stage)

    def _measure(self, result: Result, folder: Path, logger: Logger | None, stage: Stage) -> None:
        settings, records, first = self.settings, Records(folder, result.artifacts), processes.rank() == 0
        defense = settings.defense
        with stage("data"):  # before the model, so that a fault in the data shows soon
            data = read(settings)
            observer = Observer(data.sets, settings)
            if first:  # a judge that is no good is refused before anything is trained
                result.add(observer.quality | trained_on(data))
        with stage("model"):
            loaded = load(settings, data)
            subject = loaded.subject
        trainer = settings.trainer()
        with stage("before"):
            origin = settings.model.origin(subject.model, settings.evaluation.batch_size)
            before = observer.observe(subject, origin)
            if defense.trains:  # training needs the memory
                settings.release()
                let_go()
        with stage("defend"):
            fit = functools.partial(fit_causal_lm, trainer=trainer, logger=logger)
            owner = self.owner(loaded, fit, records, result)
            tuned = returned(Tuned, defense.tune(owner), f"defense={defense.name}: tune")
        subject = replace(subject, model=tuned.model)
        result.add(tuned.measured)
        made_by = code_of(type(defense))  # a user's own says what determines the model, and not how
        content = None if tuned.content is None else [origin, tuned.content, *([made_by] if made_by else [])]
        now = content if defense.changes else origin
        with stage("evaluate"):
            after = observer.observe(subject, now) if defense.changes else before
            if first:
                found = compare(after, before if defense.changes else None, observer.known)
                result.add(found.measured)
                result.add(observer.ties)
                if loaded.text is not None:
                    result.add(self.perplexity(subject, loaded.text, now))
        if settings.harness.tasks:
            with stage("utility"):
                result.add(self.utility(subject, now))
        if not first:
            return
        self.record(records, after, before if defense.changes else None, found)
        if tuned.edit is not None:
            measured, rows = coupling(tuned.tops, defense.coupled, tuned.edit)
            result.add(measured)
            records.write("overlaps", rows)
            if settings.analysis is not None:
                with stage("analyse"):
                    result.add(self.analyse(subject, tuned, tuned.edit, data.common, records))

    def owner(self, loaded: Loaded, fit: Callable[..., None], records: Records, result: Result) -> ModelOwner:
        """Hand the model to its defence, with what it may be tuned on."""
        settings, model, tokenizer = self.settings, loaded.subject.model, loaded.subject.tokenizer
        path = Path(settings.model.path)
        name = path.resolve().name if path.is_dir() else settings.model.path

        def keep(tuned: Any) -> None:
            folder = records.file("model")
            if processes.rank() == 0:
                tuned.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                library = "transformers" if isinstance(tuned, PreTrainedModel) else "fairpriv"
                if (folder / "adapter_config.json").is_file():
                    library = "peft"
                card = cell_card(result.id, result.config, name, settings.model.digest(), library)
                (folder / "README.md").write_text(card, encoding="utf-8")  # PEFT has left one with blanks to fill in

        def rows(dimension: str, split: str, samples: int | None) -> list[Encoded]:
            if found := loaded.rows.get((dimension, split, samples)):
                return found
            return encoded(settings, tokenizer, drawn(settings.dimensions, dimension, split, samples, settings.seed))[0]

        return ModelOwner(
            model,
            tokenizer,
            loaded.pad_id,
            settings.seed,
            pairs=lambda: loaded.pairs,
            fit=fit,
            keep=keep,
            rows=rows,
            file=records.file,
            store=settings.store,
            origin={"revision": settings.model.digest(), "dtype": str(model.dtype).removeprefix("torch.")}
            | ({"code": "its own"} if settings.model.trust_remote_code else {}),
            name=name,
            fitting=[settings.model.origin(model, None), settings.fitting],
        )

    def kept(self, kind: str, origin: Any, key: Mapping[str, Any], make: Callable[[], Measured]) -> Measured:
        """Return what ``make`` measures, from the store where the model has an ``origin``."""
        if origin is None:
            return make()
        return Measured.of(self.settings.store.cached(kind, {"model": origin, **key}, lambda: asdict(make())))

    def perplexity(self, subject: Subject, text: Tensor, origin: Any) -> Measured:
        """Measure perplexity on the tokens of the evaluation text, and mark what guesses no better than at random."""
        evaluation = self.settings.evaluation
        config: Any = subject.model.config
        window, stride = windows(config, evaluation.window, evaluation.stride)

        def make() -> Measured:
            try:
                value, scored = perplexity(
                    subject.model,
                    text,
                    window=window,
                    stride=stride,
                    batch_size=max(1, subject.batch_tokens // 4 // window),  # the logits take much memory
                    progress="perplexity" if subject.progress else None,
                )
            except ValueError as error:
                raise InputError(f"evaluation: {error}") from error
            return PERPLEXITY.of(value) | SCORED_TOKENS.of(scored)

        key = {"text": checksum({"text": text.cpu()}), "window": window, "stride": stride}
        measured = self.kept("perplexity", origin, key, make)
        value, tokens = measured.metrics[PERPLEXITY.name], config.get_text_config().vocab_size
        worse = f"perplexity {value:.4g} is no better than a guess among all {tokens} tokens"
        return measured | Measured(degenerate=[] if value < tokens else [worse])

    def utility(self, subject: Subject, origin: Any) -> Measured:
        """Measure general capability, task by task, so that a cell that is killed goes on with the next one.

        Of several processes each measures a share of the tasks.
        """

        settings = self.settings

        def of(task: Harness) -> Measured:
            which = [task.limit, *(["first"] if task.first else [])]
            key = {"task": task.digest(), "settings": [*which, task.chat, *subject.asked]}
            if settings.model.half:
                key["batches"] = self._utility_batches
            make = functools.partial(
                task.measure,
                subject.model,
                subject.tokenizer,
                batch_size=task.batch_size,
                system=subject.form.system,
                end=subject.end(),
                progress=subject.progress,
            )
            return self.kept("utility", origin, key, make)

        jobs = [functools.partial(of, task) for task in settings.harness.apart()]
        return functools.reduce(operator.or_, processes.dealt(jobs), Measured())

    @property
    def _utility_batches(self) -> str:
        """What rounds likelihoods of lm-eval's tasks, beside the weights, in half precision."""
        return f"batches of {self.settings.harness.batch_size}"

    def analyse(
        self, subject: Subject, tuned: Tuned, edit: SpinEdit, examples: Sequence[Example], records: Records
    ) -> Measured:
        """Measure how far the dimensions depend on one another, before and after the edit."""
        settings, evaluation = self.settings, self.settings.evaluation
        assert settings.analysis is not None
        measured, rows = settings.analysis.measure(
            subject.model,
            edit,
            tuned.tops,
            settings.defense.coupled,
            subject.prompt_ids([example.asked for example in examples]),
            batch_size=evaluation.batch_size,
            seed=evaluation.seed,
        )
        records.write("hsic", rows)
        return measured

    def record(
        self,
        records: Records,
        after: Sequence[Observation],
        before: Sequence[Observation] | None,
        found: Comparison,
    ) -> None:
        """Write what was observed."""
        if any(seen.answers for seen in after):
            records.write("responses", response_rows(after, before))
        if rows := judge_rows(after):
            records.write("judges", rows)
        if any(seen.scored for seen in after):
            records.write("scores", score_rows(after, before))
        if found.cautions:
            records.write("cautions", found.cautions)
        if before is not None:
            records.write("flips", flip_rows(found.flips))


@contextlib.contextmanager
def letting_go(settings: Settings) -> Iterator[None]:
    """Free the memory of all models afterwards, and before that of models that a failed cell has left."""
    let_go()
    try:
        yield
    finally:
        settings.release()
        let_go()


def let_go() -> None:
    """Free the memory of models that nothing refers to any more, cycles included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
