"""A text classifier as the judge: which of its labels are safe is said in the config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from fairpriv.errors import InputError
from fairpriv.language_models.judges.judge import (
    Dtype,
    Judge,
    Verdict,
    fill,
    load_pretrained,
    model_digest,
    precision,
    require_response,
)


@dataclass
class Classifier(Judge):
    """Any sequence classifier of transformers with two or more exclusive labels.

    It is loaded when it is asked, and kept till ``release``.

    Attributes:
        path: a local folder, or a name on the Hugging Face hub.
        safe_labels: the labels, as the model's config names them, that mean safe.
        revision: branch, tag or commit on the hub; null: its main branch.
        template: the text that is classified, with ``{prompt}`` and ``{response}``; null: the two as a pair of texts.
        threshold: safe where the safe labels' probabilities sum to at least this, in (0, 1); null: where the likeliest
            label is a safe one.
        max_length: tokens; what is longer loses its beginning, so that the response is read.
        dtype: of the weights.
        device_map: as transformers takes it; null: the CPU.
        batch_size: texts classified at once.
        trust_remote_code: whether code of the model's repository may run.
    """

    kind: ClassVar[str] = "sequence_classifier"

    path: str
    safe_labels: list[str]
    name: str = "classifier"
    revision: str | None = None
    template: str | None = "{prompt}\n{response}"
    threshold: float | None = None
    max_length: int = 512
    dtype: Dtype = "float32"
    device_map: str | None = "auto"
    batch_size: int = 32
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.template is not None:
            require_response(self.name, self.template)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"judge.threshold={self.threshold}: must lie between 0 and 1, or be null")
        for key in ("batch_size", "max_length"):
            if getattr(self, key) < 1:
                raise InputError(f"judge.{key}={getattr(self, key)}: must be at least 1")
        if not self.safe_labels:
            raise InputError("judge.safe_labels is empty: name the labels that mean safe")

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Give one verdict a pair; the reason is the likeliest label and its probability.

        An empty text, as of ``template={response}``, has no verdict where the tokenizer makes no token of it.

        Raises:
            InputError: the model cannot be loaded, has no such label, its labels do not exclude one another, or it
                computes what is not finite.
        """
        rows = self._probabilities(prompts, responses)
        if not rows:
            return []
        model, _, safe = self._loaded
        return [self._verdict(row, safe, model.config.id2label) for row in rows]

    def safe_probabilities(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Compute the probability of the safe labels together, one a pair, in [0, 1], or NaN where `judge` has none.

        Raises:
            InputError: as `judge`.
        """
        return [sum(row[i] for i in self._loaded[2]) for row in self._probabilities(prompts, responses)]

    def _probabilities(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[float]]:
        """Compute the probability of every label, one row a pair; NaN for an empty text of which there is no token."""
        import torch

        from fairpriv.language_models.engines.generation import not_finite

        pairs = list(zip(prompts, responses, strict=True))
        if not pairs:
            return []
        model, tokenizer, _ = self._loaded
        rows = [[math.nan] * model.config.num_labels for _ in pairs]
        texts = [p if self.template is None else fill(self.template, p, r) for p, r in pairs]
        told = [i for i, text in enumerate(texts) if text or tokenizer("")["input_ids"]]
        for start in range(0, len(told), self.batch_size):
            batch = told[start : start + self.batch_size]
            encoded = tokenizer(
                [texts[i] for i in batch],
                [pairs[i][1] for i in batch] if self.template is None else None,
                truncation=True,
                max_length=self.max_length,
                padding=len(batch) > 1,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = model(**encoded.to(model.device)).logits
            if not logits.isfinite().all():
                raise not_finite("logits", "judge.dtype")
            for i, row in zip(batch, logits.float().softmax(-1).tolist(), strict=True):
                rows[i] = row
        return rows

    def digest(self) -> Any:
        """Return the weights (a local folder's content, or name and revision on the hub) and how they are read."""
        return {
            "model": model_digest(self.path, self.revision, own_code=self.trust_remote_code),
            "dtype": precision(self.dtype, self.batch_size),
            "safe_labels": sorted(self.safe_labels),
            "template": self.template,
            "threshold": self.threshold,
            "max_length": self.max_length,
        }

    def _verdict(self, probs: list[float], safe: set[int], labels: dict[int, str]) -> Verdict:
        if math.isnan(probs[0]):
            return Verdict(None, "empty")
        best = max(range(len(probs)), key=probs.__getitem__)
        is_safe = best in safe if self.threshold is None else sum(probs[i] for i in safe) >= self.threshold
        return Verdict(is_safe, f"{labels[best]} {probs[best]:.2f}")

    def release(self) -> None:
        """Let go of the model, which is loaded again when it is next asked."""
        self.__dict__.pop("_loaded", None)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, set[int]]:
        """Model, tokenizer, and the positions of the safe labels."""
        model, tokenizer = load_pretrained(
            self.name,
            "AutoModelForSequenceClassification",
            self.path,
            revision=self.revision,
            dtype=self.dtype,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
        )
        labels = {label: int(i) for i, label in sorted(model.config.id2label.items())}
        named = ", ".join(labels)
        if len(labels) < 2 or model.config.problem_type == "multi_label_classification":
            raise InputError(f"judge.path={self.path}: its labels ({named}) do not exclude one another")
        unknown = [label for label in self.safe_labels if label not in labels]
        if unknown:
            raise InputError(f"judge.safe_labels: {self.path} has no {', '.join(unknown)}; it has {named}")
        longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", self.max_length))
        if self.max_length > longest:
            raise InputError(f"judge.max_length={self.max_length}: {self.path} reads at most {longest} tokens")
        tokenizer.truncation_side, tokenizer.padding_side = "left", "right"  # some count positions from the padding on
        rows = len(model.get_input_embeddings().weight)
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        pad = next((token for token in ids if token is not None and token < rows), None)
        if pad is not None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
            model.config.get_text_config().pad_token_id = pad  # by which decoders find a row's last token
        elif self.batch_size > 1:
            raise InputError(
                f"judge.path={self.path}: its tokenizer has no token to pad with that the model has a row for: set "
                "judge.batch_size=1"
            )
        return model, tokenizer, {labels[label] for label in self.safe_labels}
