"""Descriptions of classifiers in configs, which make networks and say what these read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from fairpriv.classifiers.data.reader import Reader
from fairpriv.classifiers.nets.classifier import MLP, require_logits
from fairpriv.config.compose import build
from fairpriv.errors import InputError


class Architecture(ABC):
    """Base class of descriptions of classifiers; a config's class that is not one is taken for a network of tables.

    Attributes:
        name: of the model, in tables and reports.
        modality: what it reads: ``table``, ``text`` or ``image``.
        reads_features: whether its networks read rows of features, rather than tokens or pixels.
    """

    name: str
    modality: ClassVar[str] = "table"
    reads_features: bool = True

    @abstractmethod
    def network(self, features: int, classes: int) -> nn.Module:
        """Make a network with fresh or pretrained weights, from rows of this width to logits ``[N, C]``."""

    def reader(self, device: torch.device) -> Reader | None:
        """Return the reader of a dataset's items for this model, on this device; None for tables."""
        return None

    def digests(self) -> dict[str, str]:
        """Return digests of its input files, by the config keys that locate them."""
        return {}

    def pool_hidden(self) -> list[int]:
        """Return the sizes of the hidden layers of a pool of such networks.

        Raises:
            InputError: the networks are not perceptrons without dropout, which a pool needs.
        """
        raise InputError(
            f"model={self.name}: attacks and dimensions such as membership train pools of model=mlp with "
            "model.dropout=0 (or pixel_mlp), or of such networks on a frozen encoder's features (model.tune=head), and "
            "of no other"
        )

    def refuse_other_than(self, modality: str, dataset: str) -> None:
        """Raise InputError if a dataset holds what the model cannot read."""
        if self.modality != modality:
            fitting = {"table": "mlp", "text": "text_encoder", "image": "resnet, vit or pixel_mlp"}[modality]
            raise InputError(
                f"model={self.name} reads {self.modality}s and dataset={dataset} holds {modality}s: choose "
                f"model={fitting}"
            )


@dataclass(frozen=True)
class TableNetwork(Architecture):
    """Networks of tables, made by any class that is called with the numbers of features and of classes."""

    name: str
    network_class: Any
    settings: Mapping[str, Any]

    def network(self, features: int, classes: int) -> nn.Module:
        """Make a network with fresh weights.

        Raises:
            InputError: the constructor refuses, with its message; or the network gives no logits of random rows.
        """
        try:
            made: nn.Module = self.network_class(features, classes, **self.settings)
        except (TypeError, ValueError) as error:
            raise InputError(f"model: {error}") from error
        if self.network_class is not MLP:
            rows = torch.randn(4, features, generator=torch.Generator().manual_seed(0))
            try:
                require_logits(made, rows, classes, f"model={self.name}")
            except RuntimeError as error:
                why = " ".join(str(error).split())
                raise InputError(f"model={self.name}: rows of {features} features do not go through: {why}") from error
            made.train()
        return made

    def pool_hidden(self) -> list[int]:
        """Return the hidden sizes of an `MLP`; errors as in the base class."""
        if self.network_class is not MLP or self.settings.get("dropout"):
            return super().pool_hidden()
        return MLP.sizes(self.settings.get("hidden"))


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Build the description in the config's ``model``; raise InputError if its keys exclude each other."""
    made = build(config, "model", _partial_=True)
    if isinstance(made.func, type) and issubclass(made.func, Architecture):
        described: Architecture = build(config, "model")
        return described
    return TableNetwork(config["model"]["name"], made.func, made.keywords)
