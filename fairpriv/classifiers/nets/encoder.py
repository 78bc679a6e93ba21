"""Classifiers of texts and images: an encoder of transformers, the mean of its last states, and an MLP on top.

With ``tune: all`` everything is trained. With ``tune: head`` the encoder stays as pretrained: its features are computed
once for the whole dataset and kept on the disk, and the MLP is trained on them as on a table.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.checkpoint import checkpoint

from fairpriv.classifiers.data.reader import Encoding, Reader, Standardized, Unchanged
from fairpriv.classifiers.nets.architecture import Architecture
from fairpriv.classifiers.nets.classifier import MLP, LargeNetwork
from fairpriv.data.pretrained_encoder import PretrainedEncoder, computed, width_of, without_pooler
from fairpriv.errors import InputError
from fairpriv.identity import code_of
from fairpriv.store import Store

log = logging.getLogger(__name__)

Tune = Literal["head", "all"]

_FROZEN_ROWS = 256  # rows that pass through a frozen encoder together


class TextBody(nn.Module):
    """Encoder of token ids ``[N, T]``, -1 after the text's end, as features ``[N, D]``: the mean over the tokens."""

    kind: ClassVar[str] = "text_body"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = width_of(model, "input_ids", "model.path")

    def extra_repr(self) -> str:
        """Return the settings that features depend on besides weights and layers."""
        return f"config={computed(self.model.config)}"

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features ``[N, D]``."""
        mask = ids >= 0
        mask = mask[:, : max(1, int(mask.sum(1).max()) if len(mask) else 1)]
        ids = ids[:, : mask.shape[1]].clamp(min=0).long()
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask[..., None].to(states)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class ImageBody(nn.Module):
    """Encoder of pixels uint8 ``[N, 3, S, S]`` as features ``[N, D]``: the mean over places or patches.

    With augmentation, images in training are mirrored, moved and scaled at random, see `augmented`.
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
        """Return the settings that features depend on besides weights and layers."""
        mean, deviation = self.mean.flatten().tolist(), self.deviation.flatten().tolist()
        return f"config={computed(self.model.config)}, mean={mean}, deviation={deviation}, augment={self.augment}"

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features ``[N, D]``."""
        x = pixels.float() / 255
        if self.training and self.augment:
            x = augmented(x)
        states = self.model(pixel_values=(x - self.mean) / self.deviation).last_hidden_state
        return states.flatten(2).mean(2) if states.dim() == 4 else states.mean(1)


def augmented(x: Tensor) -> Tensor:
    """Augment images ``[N, 3, S, S]``: mirror each with probability 1/2, move it by up to 1/8, scale it by up to 1/10.

    New pixels at the border repeat the border.
    """
    drawn = torch.rand(4, len(x), device=x.device)
    scale = 0.9 + 0.2 * drawn[0]
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = torch.where(drawn[1] < 0.5, -scale, scale)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = (drawn[2:].T - 0.5) / 2  # of a side that is 2 long
    return grid_sample(x, affine_grid(theta, list(x.shape), align_corners=False), "bilinear", "border", False)


class EncoderClassifier(LargeNetwork):
    """An encoder with an MLP on its features; without a body, the MLP on features that were computed before.

    More rows than ``micro_batch_size`` pass through in parts. In training, activations are recomputed for the gradient,
    so the loss is that of the whole batch and the memory that of a part. (Batch normalisation sees parts, each of which
    moves its running statistics once.)
    """

    def __init__(
        self,
        body: TextBody | ImageBody | None,
        features: int,
        classes: int,
        *,
        hidden: list[int] | None,
        dropout: float,
        encoder_lr: float,
        micro_batch_size: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.head = MLP(features if body is None else body.width, classes, hidden=hidden, dropout=dropout)
        self.encoder_lr, self.micro_batch_size = encoder_lr, micro_batch_size

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits ``[N, C]``."""
        body = self.body
        if body is None or len(X) <= self.micro_batch_size:
            return self._logits(X)
        again = functools.partial(checkpoint, self._logits, use_reentrant=False, context_fn=self._contexts)
        part_of = again if torch.is_grad_enabled() else self._logits
        return torch.cat([part_of(part) for part in X.split(self.micro_batch_size)])

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Make the contexts of a part's forward pass and of its repetition, which moves no running statistics."""
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
        """Return the head's parameters with ``lr``, and the encoder's with ``encoder_lr * lr``."""
        groups: list[dict[str, Any]] = [{"params": self.head.parameters(), "lr": lr}]
        if self.body is not None:
            groups.append({"params": self.body.parameters(), "lr": lr * self.encoder_lr})
        return groups

    def extra_repr(self) -> str:
        """Return the settings that training depends on besides the layers."""
        return f"encoder_lr={self.encoder_lr}, micro_batch_size={self.micro_batch_size}"


@dataclass(kw_only=True)
class EncoderSpec(Architecture):
    """Base class of descriptions of an encoder with an MLP on top.

    Attributes:
        name: of the model in tables.
        tune: ``head`` reads features of the frozen encoder, ``all`` trains it on tokens or pixels.
        hidden, dropout: of the MLP.
        encoder_lr: learning rate of the encoder, as a multiple of the MLP's.
        micro_batch_size: rows that pass through the encoder together.
        cache: folder below which a frozen encoder's features are kept, in ``cache/features``.

    Raises:
        InputError: keys that exclude each other.
    """

    name: str
    tune: Tune
    hidden: list[int] | None = None
    dropout: float = 0.0
    encoder_lr: float
    micro_batch_size: int
    cache: str = field(default="outputs", metadata={"outcome": False})

    def __post_init__(self) -> None:
        if self.tune not in ("head", "all"):
            raise InputError(f"model.tune={self.tune}: it is head or all")
        if self.tune == "head" and self.weights is None:
            raise InputError(
                "model.tune=head freezes an encoder that was never trained: set model.path to one that was"
            )
        if self.micro_batch_size < 1 or not self.encoder_lr >= 0:
            raise InputError(
                f"model.micro_batch_size={self.micro_batch_size}, encoder_lr={self.encoder_lr}: at least 1, and at "
                "least 0"
            )
        self.reads_features = self.tune == "head"

    @property
    @abstractmethod
    def weights(self) -> PretrainedEncoder | None:
        """The pretrained weights; None if the encoder starts from fresh ones."""

    @abstractmethod
    def body(self, size: int, *, training: bool) -> TextBody | ImageBody:
        """Make the encoder for rows of this width; one that is trained may augment its input at random."""

    def inputs(self, items: NDArray[Any]) -> NDArray[Any]:
        """Turn texts or pixels into the encoder's input ``[N, ...]``."""
        return items

    @property
    def depends_on(self) -> list[Any]:
        """Settings that features depend on besides weights and rows."""
        return ["mean"]

    def network(self, features: int, classes: int) -> EncoderClassifier:
        """Make encoder and MLP; with ``tune: head`` only the MLP, on rows of ``features``."""
        return EncoderClassifier(
            None if self.reads_features else self.body(features, training=True),
            features,
            classes,
            hidden=self.hidden,
            dropout=self.dropout,
            encoder_lr=self.encoder_lr,
            micro_batch_size=self.micro_batch_size,
        )

    def reader(self, device: torch.device) -> EncoderReader:
        """Return the reader of texts or images for this encoder."""
        return EncoderReader(self, device)

    def digests(self) -> dict[str, str]:
        """Return the digest of the pretrained weights."""
        return {} if self.weights is None else {"model.path": self.weights.digest()}

    def pool_hidden(self) -> list[int]:
        """Return the hidden sizes of the MLP on frozen features; errors as in the base class."""
        return super().pool_hidden() if self.dropout or not self.reads_features else MLP.sizes(self.hidden)


@dataclass(kw_only=True)
class TextClassifier(EncoderSpec):
    """Classifier of documents by any encoder that transformers' AutoModel loads.

    Attributes:
        path, revision, package, inside: location of the encoder, as in `PretrainedEncoder`.
        max_tokens: longer texts lose their end.
    """

    kind: ClassVar[str] = "text_encoder"
    not_outcome: ClassVar[tuple[str, ...]] = ("revision", "package", "inside")  # path counts by its digest
    modality: ClassVar[str] = "text"

    name: str = "text_encoder"
    path: str
    revision: str | None = None
    package: str | None = None
    inside: str | None = None
    tune: Tune = "head"
    max_tokens: int = 128
    encoder_lr: float = 0.01
    micro_batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 3:
            raise InputError(
                f"model.max_tokens={self.max_tokens}: must be at least 3, two of which mark beginning and end"
            )

    @functools.cached_property
    def weights(self) -> PretrainedEncoder:
        where = (self.name, self.path, self.revision, self.package, self.inside)
        return PretrainedEncoder(*where, max_tokens=self.max_tokens)

    @property
    def depends_on(self) -> list[Any]:
        """Settings that features depend on besides weights and rows."""
        return ["mean", self.max_tokens]

    def body(self, size: int, *, training: bool) -> TextBody:
        """Load the encoder."""
        return TextBody(self.weights.load())

    def inputs(self, items: NDArray[Any]) -> NDArray[np.int32]:
        """Turn texts ``[N]`` into token ids ``[N, T]``, -1 after the end."""
        ids = self.weights.tokenizer()(list(items), truncation=True, max_length=self.max_tokens)["input_ids"]
        rows = np.full((len(ids), max(map(len, ids), default=1)), -1, dtype=np.int32)
        for row, values in zip(rows, ids, strict=True):
            row[: len(values)] = values
        return rows


@dataclass(kw_only=True)
class ImageClassifier(EncoderSpec):
    """Classifier of images by a ResNet, a ViT or any other encoder of transformers, pretrained or from a config.

    Attributes:
        path, revision: location of a pretrained encoder, as in `PretrainedEncoder`; None: fresh weights.
        config: of transformers, for fresh weights; its image size is that of the data.
        augment: whether training mirrors, moves and scales images.
    """

    kind: ClassVar[str] = "image_encoder"
    not_outcome: ClassVar[tuple[str, ...]] = ("revision",)  # path counts by its digest
    modality: ClassVar[str] = "image"

    path: str | None = None
    revision: str | None = None
    config: Any = None
    augment: bool = True
    tune: Tune = "all"
    encoder_lr: float = 1.0
    micro_batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is None and self.config is None:
            raise InputError("model.path, the weights, or model.config, for fresh ones: one of them is wanted")

    @functools.cached_property
    def weights(self) -> PretrainedEncoder | None:
        """The pretrained weights; None if the encoder starts from fresh ones."""
        return PretrainedEncoder(self.name, self.path, self.revision, reads="pixel_values") if self.path else None

    def body(self, size: int, *, training: bool) -> ImageBody:
        """Load or make the encoder, for images of ``size`` pixels per side."""
        return image_body(self.weights, self.config, size, augment=training and self.augment)


@dataclass(frozen=True)
class EncoderReader(Reader):
    """Reader of texts or images for an encoder: as tokens or pixels, or as features that are computed once."""

    spec: EncoderSpec
    device: torch.device

    def read(self, items: NDArray[Any]) -> NDArray[Any]:
        """Turn the texts or pixels of a whole dataset into rows ``[N, ...]``."""
        if not self.spec.reads_features:
            return self.spec.inputs(items)
        return self._frozen(items)

    def encode(self, train: NDArray[Any]) -> Encoding:
        """Fit an encoding to training rows."""
        return Standardized.fit(train) if self.spec.reads_features else Unchanged(train.shape[-1])

    def _frozen(self, items: NDArray[Any]) -> NDArray[np.float32]:
        assert self.spec.weights is not None
        digest = hashlib.sha256("\0".join(items).encode() if items.dtype == object else items.tobytes()).hexdigest()
        key: dict[str, Any] = {
            "items": [digest, *items.shape],
            "encoder": self.spec.weights.digest(),
            "settings": self.spec.depends_on,
        }
        if code := code_of(type(self.spec)):
            key["code"] = code
        features = Store(self.spec.cache).cached(
            "features",
            key,
            lambda: self._computed(items),
            save=lambda features: ({"features": features}, None),
            load=lambda tensors, _: tensors["features"],
        )
        return cast(NDArray[np.float32], features.numpy())

    @torch.no_grad()
    def _computed(self, items: NDArray[Any]) -> Tensor:
        started, name = time.perf_counter(), self.spec.name
        log.info("%s: features of %d rows by the frozen encoder, once", name, len(items))
        rows = torch.from_numpy(self.spec.inputs(items))
        order = torch.arange(len(rows))
        if self.spec.modality == "text":  # rows of similar length together, since a batch is as wide as its longest row
            order = (rows >= 0).sum(1).argsort(stable=True)
        body = self.spec.body(rows.shape[-1], training=False).to(self.device).eval()
        parts = order.split(_FROZEN_ROWS)
        found = []
        for number, index in enumerate(parts, start=1):
            found.append(body(rows[index].to(self.device)).cpu())
            if len(parts) > 20 and number % (len(parts) // 10) == 0:
                done, spent = 100 * number // len(parts), time.perf_counter() - started
                log.info("%s: %d %%, %.0f s", name, done, spent)
        return torch.cat(found)[order.argsort()]


def image_body(weights: PretrainedEncoder | None, config: Any, size: int, *, augment: bool) -> ImageBody:
    """Load or make the encoder for images of ``size`` pixels per side, pretrained or fresh.

    Raises:
        InputError: it was pretrained for another size, or is not an encoder.
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
