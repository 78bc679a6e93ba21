"""Finding, checking and loading of pretrained encoders of texts and images."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fairpriv.data.checkpoints import Pretrained, unreadable
from fairpriv.errors import InputError
from fairpriv.identity import content_hash

Input = Literal["input_ids", "pixel_values"]  # transformers' names of tokens and of pixels


@dataclass
class PretrainedEncoder(Pretrained):
    """A pretrained encoder and its tokenizer. Code that comes with a model is never run."""

    inside: str | None = None  # the model's folder inside ``package``
    reads: Input = "input_ids"  # the kind of its input
    max_tokens: int = 0  # length of the longest text that it must read

    def _inside(self) -> str | None:
        return self.inside

    def digest(self) -> str:
        """Return the digest as `Pretrained.digest`, after checking by the config that the encoder fits its input.

        Raises:
            InputError: as there; or it reads something else, or has no positions for ``max_tokens``.
        """
        self._checked  # noqa: B018, for its errors
        return super().digest()

    def load(self) -> Any:
        """Load the encoder in eval mode, float32, without a pooling layer that has weights.

        Raises:
            InputError: as in `digest`; or the files hold no encoder that transformers can build.
        """
        self._checked  # noqa: B018
        from transformers import AutoModel
        from transformers.utils import logging as hf_logging

        hf_logging.set_verbosity_error()  # of unused weights' lists and the like
        hf_logging.disable_progress_bar()
        loaded: Any = self._opened(
            AutoModel.from_pretrained, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        model, info = loaded
        if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
            raise InputError(
                f"model.path={self.path}: no weights for {missing[0]} ({len(missing)} missing): it is no encoder, or "
                "not a whole one"
            )
        return without_pooler(model).eval()

    def tokenizer(self) -> Any:
        """Load the tokenizer; errors as in `load`."""
        from transformers import AutoTokenizer

        return self._opened(AutoTokenizer.from_pretrained, trust_remote_code=False)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Return the channels' mean and deviation in its pretraining, 0.5 each if its files do not say."""
        from transformers.utils.hub import cached_file

        found = self._opened(cached_file, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        said = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
        return said.get("image_mean", [0.5] * 3), said.get("image_std", [0.5] * 3)

    @functools.cached_property
    def _checked(self) -> None:
        """Check that the encoder fits its input; done once, because it takes up to a second."""
        from transformers import AutoConfig, AutoModel

        config = self._opened(AutoConfig.from_pretrained, trust_remote_code=False)
        with torch.device("meta"):  # no weights
            model = self._opened(lambda *_, **__: AutoModel.from_config(config, trust_remote_code=False))
        width_of(model, self.reads, f"model.path={self.path}")
        if self.max_tokens > (most := positions(model)):
            raise InputError(
                f"model.max_tokens={self.max_tokens}: {self.path} has positions for {most} tokens: set {most} or less"
            )

    def _opened(self, open_it: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        where, digest = self._found
        if not Path(where).is_dir():
            kwargs["revision"] = digest
        try:
            return open_it(where, *args, **kwargs)
        except Exception as error:  # damaged files raise many kinds, in transformers and below it
            said = unreadable(error)
            if "trust_remote_code" in str(error):  # which is no key of encoders
                said = "it wants to run code of its own: choose an encoder that transformers itself can build"
            raise InputError(f"model.path={self.path}: {said}") from error


def width_of(model: Any, reads: Input, where: str) -> int:
    """Return the width of the last states of an encoder.

    Raises:
        InputError: it does not read ``reads``, or its config names no width; the message begins with ``where``.
    """
    kind = model.config.model_type
    if model.main_input_name != reads:
        raise InputError(
            f"{where}: a {kind} model reads {model.main_input_name}: choose an encoder of "
            f"{'texts' if reads == 'input_ids' else 'images'}, which reads {reads}"
        )
    sizes = getattr(model.config, "hidden_sizes", None)  # of the stages of a ResNet
    width = sizes[-1] if sizes else getattr(model.config, "hidden_size", None)
    if width is None:
        raise InputError(
            f"{where}: the config of a {kind} model has no hidden_size, the width of its states: choose one with a "
            "single encoder, such as bert for texts or vit for images"
        )
    return int(width)


def positions(model: Any) -> float:
    """Return the longest row of tokens that an encoder has positions for; infinity if its config sets no limit.

    RoBERTa and similar models count positions from the padding's number on, and have as many fewer.
    """
    most = getattr(model.config, "max_position_embeddings", None) or 0
    if most < 1:  # XLNet says -1
        return float("inf")
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((index for table in tables if (index := getattr(table, "padding_idx", None)) is not None), -1)
    return int(most - padding - 1)


def computed(config: Any) -> str:
    """Hash what a transformers config says about the computation, since e.g. heads and dropout have no weights."""
    without = ("_name_or_path", "transformers_version")
    said = json.loads(
        config.to_json_string(use_diff=False),
        object_hook=lambda node: {key: value for key, value in node.items() if key not in without},
    )
    return content_hash(said)


def without_pooler(model: Any) -> Any:
    """Remove a pooling layer with weights from the encoder, since the mean of the last states does not use it."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.pooler = None
    return model
