"""Classifiers of texts and of images: an encoder of transformers, the mean of its last states, and an MLP on top.

With ``tune: all`` everything is trained. With ``tune: head`` the encoder stays as it was pretrained: its features are
computed once for the whole dataset, kept on the disk, and the MLP is trained on them as on a table.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.checkpoint import checkpoint

from fairpriv.classifiers.nets.classifier import MLP
from fairpriv.configs import build
from fairpriv.data.checkpoints import Pretrained
from fairpriv.errors import InputError
from fairpriv.identity import content_hash
from fairpriv.store import Store
from fairpriv.trainer import device_of

log = logging.getLogger(__name__)

Tune = Literal["head", "all"]
Input = Literal["input_ids", "pixel_values"]  # transformers' names of tokens and of pixels

_FROZEN_ROWS = 256  # rows that pass through a frozen encoder together


class Encoding(Protocol):
    """What is fitted to training rows, and turns rows into a network's input."""

    @property
    def features(self) -> int:
        """Width of a row: of its features, its tokens, or pixels a side."""
        ...

    def transform(self, rows: Any, /) -> NDArray[Any]:
        """Inputs ``[N, ...]``."""
        ...


@dataclass(frozen=True)
class Standardized:
    """Features with mean 0 and deviation 1 over the training rows; constant ones are 0."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def fit(cls, train: NDArray[np.float32]) -> Standardized:
        """Of training rows ``[N, F]``."""
        return cls(train.mean(0), train.std(0))

    @property
    def features(self) -> int:
        """F."""
        return len(self.mean)

    def transform(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features ``[N, F]``."""
        varies = self.deviation > 1e-6
        return np.where(varies, (rows - self.mean) / np.where(varies, self.deviation, 1), 0).astype(np.float32)


@dataclass(frozen=True)
class Unchanged:
    """Tokens or pixels as they are; ``features`` is the width of their last dimension."""

    features: int

    def transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows."""
        return rows


@dataclass
class Reader:
    """How a model reads what is no table.

    Attributes:
        modality: what it reads: ``text`` or ``image``.
        tune: whether it reads features of a frozen encoder (``head``) or tokens or pixels (``all``).
        weights: the pretrained weights; None: there are none.
        tokens: turns texts ``[N]`` into token ids ``[N, T]``; None where nothing is to be turned.
        body: the encoder, for rows of this width.
        settings: what features depend on beside weights and rows.
        store: keeps finished features.
        device: what computes them.
    """

    modality: str
    tune: Tune
    weights: PretrainedEncoder | None
    tokens: Callable[[NDArray[Any]], NDArray[np.int32]] | None
    body: Callable[[int], nn.Module]
    settings: list[Any]
    store: Store
    device: torch.device

    def __post_init__(self) -> None:
        if self.tune not in ("head", "all"):
            raise InputError(f"model.tune={self.tune}: it is head or all")
        if self.tune == "head" and self.weights is None:
            raise InputError(
                "model.tune=head freezes an encoder that was never trained: set model.path to one that was"
            )

    def read(self, items: NDArray[Any]) -> NDArray[Any]:
        """Rows ``[N, ...]`` of the texts or pixels of a whole dataset."""
        if self.tune == "all":
            return self.tokens(items) if self.tokens else items
        return self._frozen(items)

    def encode(self, train: NDArray[Any]) -> Encoding:
        """What is fitted to training rows."""
        return Standardized.fit(train) if self.tune == "head" else Unchanged(train.shape[-1])

    def _frozen(self, items: NDArray[Any]) -> NDArray[np.float32]:
        assert self.weights is not None
        digest = hashlib.sha256("\0".join(items).encode() if items.dtype == object else items.tobytes()).hexdigest()
        key = {"items": [digest, *items.shape], "encoder": self.weights.digest(), "settings": self.settings}
        features = self.store.cached(
            "features",
            key,
            lambda: self._computed(items),
            save=lambda features: ({"features": features}, None),
            load=lambda tensors, _: tensors["features"],
        )
        return cast(NDArray[np.float32], features.numpy())

    @torch.no_grad()
    def _computed(self, items: NDArray[Any]) -> Tensor:
        assert self.weights is not None
        started = time.perf_counter()
        log.info("%s: features of %d rows by the frozen encoder, once", self.weights.name, len(items))
        rows = torch.from_numpy(self.tokens(items) if self.tokens else items)
        order = torch.arange(len(rows))
        if self.tokens:  # rows of like length together, since a batch is as wide as its longest
            order = (rows >= 0).sum(1).argsort(stable=True)
        body = self.body(rows.shape[-1]).to(self.device).eval()
        parts = order.split(_FROZEN_ROWS)
        found = []
        for number, index in enumerate(parts, start=1):
            found.append(body(rows[index].to(self.device)).cpu())
            if len(parts) > 20 and number % (len(parts) // 10) == 0:
                log.info(
                    "%s: %d %%, %.0f s", self.weights.name, 100 * number // len(parts), time.perf_counter() - started
                )
        return torch.cat(found)[order.argsort()]


def reader_of(config: Mapping[str, Any]) -> Reader | None:
    """How the config's model reads texts or images; None for one of tables.

    Raises:
        InputError: the model's keys do not go together.
    """
    make = build(config, "model", _partial_=True)
    reader = getattr(make.func, "reader", None)
    return reader(device_of(config), **make.keywords) if reader else None


@dataclass
class PretrainedEncoder(Pretrained):
    """An encoder and its tokenizer, found and loaded. Code that comes with a model is never run."""

    inside: str | None = None  # the model's folder inside ``package``
    reads: Input = "input_ids"  # what it is to be given
    max_tokens: int = 0  # the longest text that it is to be given

    def _inside(self) -> str | None:
        return self.inside

    def digest(self) -> str:
        """As `Pretrained.digest`, of an encoder that is fit for what it is to be given, by its config alone.

        Raises:
            InputError: as there; or it reads something else, or has no positions for ``max_tokens``.
        """
        self._checked  # noqa: B018, for its errors
        return super().digest()

    def load(self) -> Any:
        """The encoder in eval mode, float32, without a pooling layer that has weights.

        Raises:
            InputError: as `digest`; or the files hold no encoder that transformers can build.
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
        """Its tokenizer; errors as `load`."""
        from transformers import AutoTokenizer

        return self._opened(AutoTokenizer.from_pretrained, trust_remote_code=False)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of the channels that it was trained with, 0.5 each where its files do not say."""
        from transformers.utils.hub import cached_file

        found = self._opened(cached_file, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        said = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
        return said.get("image_mean", [0.5] * 3), said.get("image_std", [0.5] * 3)

    @functools.cached_property
    def _checked(self) -> None:
        """That it is fit for what it is to be given; seen once, for it takes up to a second."""
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
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            said = " ".join(str(error).split())
            if "trust_remote_code" in said:  # which is no key of encoders
                said = "it wants to run code of its own: choose an encoder that transformers itself can build"
            raise InputError(f"model.path={self.path}: {said[:400]}") from error


def width_of(model: Any, reads: Input, where: str) -> int:
    """Width of the last states of an encoder.

    Raises:
        InputError: it reads something else than ``reads``, or its config names no width; it begins with ``where``.
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
    """The longest row of tokens that an encoder has positions for; infinity where its config sets no end.

    RoBERTa and its kind count positions from the padding's number on, and have as many fewer.
    """
    most = getattr(model.config, "max_position_embeddings", None) or 0
    if most < 1:  # XLNet says -1
        return float("inf")
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((index for table in tables if (index := getattr(table, "padding_idx", None)) is not None), -1)
    return int(most - padding - 1)


def computed(config: Any) -> str:
    """Hash of all that a transformers config says of what is computed: heads and dropout have no weights."""
    without = ("_name_or_path", "transformers_version")
    said = json.loads(
        config.to_json_string(use_diff=False),
        object_hook=lambda node: {key: value for key, value in node.items() if key not in without},
    )
    return content_hash(said)


def without_pooler(model: Any) -> Any:
    """The encoder without a pooling layer of weights that the mean of the last states does not read."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.pooler = None
    return model


class TextBody(nn.Module):
    """Token ids ``[N, T]``, -1 after the text's end -> features ``[N, D]``: the mean over the text's tokens."""

    kind: ClassVar[str] = "text_body"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = width_of(model, "input_ids", "model.path")

    def extra_repr(self) -> str:
        """What features depend on beside weights and layers."""
        return f"config={computed(self.model.config)}"

    def forward(self, ids: Tensor) -> Tensor:
        """Features ``[N, D]``."""
        mask = ids >= 0
        mask = mask[:, : max(1, int(mask.sum(1).max()) if len(mask) else 1)]
        ids = ids[:, : mask.shape[1]].clamp(min=0).long()
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask[..., None].to(states)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class ImageBody(nn.Module):
    """Pixels uint8 ``[N, 3, S, S]`` -> features ``[N, D]``: the mean over places or patches.

    In training an image is mirrored by chance, moved by up to an eighth and scaled by up to a tenth.
    """

    kind: ClassVar[str] = "image_body"

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Any, mean: Sequence[float], deviation: Sequence[float], *, augment: bool) -> None:
        super().__init__()
        self.model = model
        self.width = width_of(model, "pixel_values", "model.config")
        self.augment = augment
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def extra_repr(self) -> str:
        """What features depend on beside weights and layers."""
        mean, deviation = self.mean.flatten().tolist(), self.deviation.flatten().tolist()
        return f"config={computed(self.model.config)}, mean={mean}, deviation={deviation}, augment={self.augment}"

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[N, D]``."""
        x = pixels.float() / 255
        if self.training and self.augment:
            x = augmented(x)
        states = self.model(pixel_values=(x - self.mean) / self.deviation).last_hidden_state
        return states.flatten(2).mean(2) if states.dim() == 4 else states.mean(1)


def augmented(x: Tensor) -> Tensor:
    """Images ``[N, 3, S, S]``, each mirrored with probability 1/2, moved by up to 1/8 and scaled by up to 1/10.

    What comes into view at the border repeats the border.
    """
    drawn = torch.rand(4, len(x), device=x.device)
    scale = 0.9 + 0.2 * drawn[0]
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = torch.where(drawn[1] < 0.5, -scale, scale)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = (drawn[2:].T - 0.5) / 2  # of a side that is 2 long
    return grid_sample(x, affine_grid(theta, list(x.shape), align_corners=False), "bilinear", "border", False)


class EncoderClassifier(nn.Module):
    """An encoder's features and an MLP on them; without a body, the MLP on features that were computed before.

    More rows than ``micro_batch_size`` pass through in parts, in training with activations computed anew for the
    gradient: the loss is that of the whole batch and memory that of a part. (Batch normalisation sees parts, each of
    which moves its running statistics once.)
    """

    def __init__(
        self,
        body: TextBody | ImageBody | None,
        features: int,
        classes: int,
        *,
        name: str,
        hidden: list[int] | None,
        dropout: float,
        encoder_lr: float,
        micro_batch_size: int,
    ) -> None:
        super().__init__()
        if micro_batch_size < 1 or not encoder_lr >= 0:
            raise InputError(
                f"model.micro_batch_size={micro_batch_size}, encoder_lr={encoder_lr}: at least 1, and at least 0"
            )
        self.body = body
        self.head = MLP(features if body is None else body.width, classes, hidden=hidden, dropout=dropout)
        self.name, self.encoder_lr, self.micro_batch_size = name, encoder_lr, micro_batch_size

    def forward(self, X: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        body = self.body
        if body is None or len(X) <= self.micro_batch_size:
            return self._logits(X)
        again = functools.partial(checkpoint, self._logits, use_reentrant=False, context_fn=self._contexts)
        part_of = again if torch.is_grad_enabled() else self._logits
        return torch.cat([part_of(part) for part in X.split(self.micro_batch_size)])

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of a part's forward pass, and of its repetition, which moves no running statistics."""
        return contextlib.nullcontext(), self._buffers_kept()

    @contextlib.contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        kept = [(module, *item) for module in self.modules() for item in module.named_buffers(recurse=False)]
        for module, name, buffer in kept:
            setattr(module, name, buffer.clone())
        try:
            yield
        finally:
            for module, name, buffer in kept:
                setattr(module, name, buffer)

    def _logits(self, X: Tensor) -> Tensor:
        logits: Tensor = self.head(X if self.body is None else self.body(X))
        return logits

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head's parameters at ``lr``, the encoder's at ``encoder_lr`` times as much."""
        groups: list[dict[str, Any]] = [{"params": self.head.parameters(), "lr": lr}]
        if self.body is not None:
            groups.append({"params": self.body.parameters(), "lr": lr * self.encoder_lr})
        return groups

    def extra_repr(self) -> str:
        """What training depends on beside layers."""
        return f"encoder_lr={self.encoder_lr}, micro_batch_size={self.micro_batch_size}"


class TextClassifier(EncoderClassifier):
    """Documents by any encoder that transformers' AutoModel loads.

    Args:
        features: width of a row: tokens, or a frozen encoder's features.
        classes: number of labels C.
        name: of the model in tables.
        path, revision, package, inside: where the encoder is, as `PretrainedEncoder`.
        tune: ``head`` or ``all``.
        hidden, dropout: of the head.
        max_tokens: longer texts lose their end.
        encoder_lr: learning rate of the encoder, as a multiple of the head's.
        micro_batch_size: rows that pass through the encoder together.
        cache: folder below which a frozen encoder's features are kept, in ``cache/features``.
    """

    kind: ClassVar[str] = "text_encoder"
    not_outcome: ClassVar[tuple[str, ...]] = ("revision", "package", "inside", "cache")  # path counts by its digest

    modality: ClassVar[str] = "text"

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        path: str,
        name: str = "text_encoder",
        revision: str | None = None,
        package: str | None = None,
        inside: str | None = None,
        tune: Tune = "head",
        hidden: list[int] | None = None,
        dropout: float = 0.0,
        max_tokens: int = 128,
        encoder_lr: float = 0.01,
        micro_batch_size: int = 64,
        cache: str = "outputs",
    ) -> None:
        body = None
        if tune == "all":
            body = TextBody(PretrainedEncoder(name, path, revision, package, inside, max_tokens=max_tokens).load())
        super().__init__(
            body,
            features,
            classes,
            name=name,
            hidden=hidden,
            dropout=dropout,
            encoder_lr=encoder_lr,
            micro_batch_size=micro_batch_size,
        )

    @classmethod
    def reader(
        cls,
        device: torch.device,
        *,
        path: str,
        name: str = "text_encoder",
        revision: str | None = None,
        package: str | None = None,
        inside: str | None = None,
        tune: Tune = "head",
        max_tokens: int = 128,
        cache: str = "outputs",
        **_: Any,
    ) -> Reader:
        """How it reads texts."""
        if max_tokens < 3:
            raise InputError(f"model.max_tokens={max_tokens}: must be at least 3, two of which mark beginning and end")
        weights = PretrainedEncoder(name, path, revision, package, inside, max_tokens=max_tokens)

        def tokens(texts: NDArray[Any]) -> NDArray[np.int32]:
            ids = weights.tokenizer()(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
            rows = np.full((len(ids), max(map(len, ids), default=1)), -1, dtype=np.int32)
            for row, values in zip(rows, ids, strict=True):
                row[: len(values)] = values
            return rows

        def body(_: int) -> nn.Module:
            return TextBody(weights.load())

        return Reader(cls.modality, tune, weights, tokens, body, ["mean", max_tokens], Store(cache), device)


class ImageClassifier(EncoderClassifier):
    """Images by a ResNet, a ViT or any other encoder of transformers, pretrained or from a config.

    Args:
        features: width of a row: pixels a side, or a frozen encoder's features.
        classes: number of labels C.
        name: of the model in tables.
        path, revision: where a pretrained encoder is, as `PretrainedEncoder`; None: fresh weights.
        config: of transformers, for fresh weights; its image size is that of the data.
        augment: whether training mirrors, moves and scales images.
        tune: ``head``, which needs a path, or ``all``.
        hidden, dropout: of the head.
        encoder_lr: learning rate of the encoder, as a multiple of the head's.
        micro_batch_size: rows that pass through the encoder together.
        cache: folder below which a frozen encoder's features are kept, in ``cache/features``.
    """

    kind: ClassVar[str] = "image_encoder"
    not_outcome: ClassVar[tuple[str, ...]] = ("revision", "cache")  # path counts by its digest

    modality: ClassVar[str] = "image"

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        name: str,
        path: str | None = None,
        revision: str | None = None,
        config: Any = None,
        augment: bool = True,
        tune: Tune = "all",
        hidden: list[int] | None = None,
        dropout: float = 0.0,
        encoder_lr: float = 1.0,
        micro_batch_size: int = 256,
        cache: str = "outputs",
    ) -> None:
        body = None
        if tune == "all":
            weights = PretrainedEncoder(name, path, revision, reads="pixel_values") if path else None
            body = image_body(weights, config, features, augment=augment)
        super().__init__(
            body,
            features,
            classes,
            name=name,
            hidden=hidden,
            dropout=dropout,
            encoder_lr=encoder_lr,
            micro_batch_size=micro_batch_size,
        )

    @classmethod
    def reader(
        cls,
        device: torch.device,
        *,
        name: str,
        path: str | None = None,
        revision: str | None = None,
        config: Any = None,
        tune: Tune = "all",
        cache: str = "outputs",
        **_: Any,
    ) -> Reader:
        """How it reads images."""
        weights = PretrainedEncoder(name, path, revision, reads="pixel_values") if path else None
        if weights is None and config is None:
            raise InputError("model.path, the weights, or model.config, for fresh ones: one of them is wanted")

        def body(size: int) -> nn.Module:
            return image_body(weights, config, size, augment=False)

        return Reader(cls.modality, tune, weights, None, body, ["mean"], Store(cache), device)


def image_body(weights: PretrainedEncoder | None, config: Any, size: int, *, augment: bool) -> ImageBody:
    """The encoder for images of ``size`` pixels a side, pretrained or fresh.

    Raises:
        InputError: pretrained for another size, or no encoder.
    """
    if weights is not None:
        model, (mean, deviation) = weights.load(), weights.normalisation()
        wanted = getattr(model.config, "image_size", size)
        if wanted not in (size, [size, size], (size, size)):
            raise InputError(f"dataset.size={size}: {weights.path} takes images of {wanted} pixels: set dataset.size")
    else:
        from transformers import AutoModel

        mean, deviation = [0.5] * 3, [0.5] * 3
        if hasattr(config, "image_size"):
            config.image_size = size
        model = without_pooler(AutoModel.from_config(config, trust_remote_code=False))
    return ImageBody(model, mean, deviation, augment=augment)
