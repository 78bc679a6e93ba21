"""Where the text decoder of a model is, which in a multimodal model stands beside towers for images or sounds."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_config(model: nn.Module) -> Any:
    """Return the config of the text decoder: the model's own, or a part of a multimodal one; None without a config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def text_decoder(model: nn.Module) -> nn.Module:
    """Return the module that holds the decoder layers for text: the model itself, unless it is multimodal.

    Args:
        model: any module; one of transformers is multimodal where its text config is a part of its config.
    """
    if text_config(model) is getattr(model, "config", None):
        return model
    found: nn.Module = model.get_decoder()  # type: ignore[operator]
    return found
