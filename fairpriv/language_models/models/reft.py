"""LoReFT: low-rank interventions on the hidden states of a frozen causal language model.

Source: Wu et al., "ReFT: Representation Finetuning for Language Models", NeurIPS 2024. Initial values and the place of
dropout follow the authors' released code. One intervention per layer serves all its positions (the paper's tied form).
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from fairpriv.errors import InputError
from fairpriv.functional.decoder import text_config, text_decoder
from fairpriv.result import write_whole

WEIGHTS, SETTINGS = "reft_model.safetensors", "reft_config.json"


@dataclass
class LoReFTConfig:
    """Where and how strongly LoReFT intervenes.

    Args:
        rank: r, rows of R; 1 or more, at most the model's hidden size.
        layers: decoder layers by index, negative ones from the end, or "all".
        first: number of positions at the start of the prompt, 0 or more.
        last: number of positions at its end, 0 or more; ``first + last`` is at least 1. A position that is in both
            is intervened on once.
        dropout: on the hidden state after the intervention, in [0, 1).

    Raises:
        InputError: a value out of its range.
    """

    kind: ClassVar[str] = "loreft"

    rank: int = 4
    layers: list[int] | str = "all"
    first: int = 1
    last: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"LoReFT: rank is {self.rank}; it should be 1 or more")
        if self.first < 0 or self.last < 0 or self.first + self.last == 0:
            raise InputError(
                f"LoReFT: first is {self.first} and last is {self.last}; both should be 0 or more, one of them above 0"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"LoReFT: dropout is {self.dropout}; it should be at least 0 and less than 1")
        if self.layers == "all":
            return
        if isinstance(self.layers, str) or not len(self.layers) or not all(isinstance(n, int) for n in self.layers):
            raise InputError(f'LoReFT: layers is {self.layers!r}; it should be "all" or a list of layer indices')
        self.layers = list(self.layers)


class _UnitDiagonal(nn.Module):
    """Set the diagonal to its signs: torch's Householder map truncates it to integers.

    Weight decay takes it from 1 to 0.9999, which would make the whole of R zero.
    """

    def forward(self, X: Tensor) -> Tensor:
        diagonal = X.diagonal()
        return X.diagonal_scatter(torch.ones_like(diagonal).copysign(diagonal))

    def right_inverse(self, X: Tensor) -> Tensor:
        return X


class LoReFT(nn.Module):
    """One intervention, ``h <- h + R^T (W h + b - R h)``: the identity exactly when W = R and b = 0.

    R [r, d] has orthonormal rows. Parameters and arithmetic are float32 whatever the dtype of h, also after
    ``.to(dtype)`` and under autocast.

    Args:
        hidden_size: d.
        rank: r, at most d.
        dropout: on the result.
        device: of the parameters.
    """

    def __init__(
        self, hidden_size: int, rank: int, *, dropout: float = 0.0, device: torch.device | None = None
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.source = nn.Linear(hidden_size, rank, **place)  # W and b
        self.rotation = nn.Linear(hidden_size, rank, bias=False, **place)  # R
        parametrize.register_parametrization(self.rotation, "weight", _UnitDiagonal())
        # Trivialisation, torch's default, would keep a d x d matrix for each layer.
        orthogonal(self.rotation, orthogonal_map="householder", use_trivialization=False)
        self.rotation.weight = nn.init.orthogonal_(torch.empty(rank, hidden_size, **place))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Change hidden states [..., d] -> [..., d] of the same dtype."""
        with torch.autocast(h.device.type, enabled=False):
            R, x = self.rotation.weight, h.float()
            x = x + linear(x, self.source.weight - R, self.source.bias) @ R
        return self.dropout(x.to(h.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(keep_dtype, recurse)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Find the decoder layers of a causal LM: its outermost ``nn.ModuleList`` of ``num_hidden_layers`` modules.

    Of a multimodal model those of its text decoder are found.

    Raises:
        InputError: the model's config names no number of layers, or no list has that length.
    """
    count = getattr(text_config(model), "num_hidden_layers", None)
    for module in text_decoder(model).modules():  # parents come before their children
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(
        f"{type(model).__name__} has no nn.ModuleList of its {count} decoder layers (config.num_hidden_layers), "
        "as decoders have such as Llama, Qwen2, Mistral, Gemma, GPT-NeoX or GPT-2"
    )


def prompt_positions(attended: Tensor, labels: Tensor | None, *, first: int, last: int) -> Tensor:
    """Mask the first and last positions of every row's prompt.

    Args:
        attended: bool [B, T], False for padding on either side.
        labels: [B, T]; the prompt of a row is what is attended before its first label other than -100. Without labels,
            and in a row without a target, all that is attended is prompt.
        first, last: how many positions; where they overlap a position counts once.

    Returns:
        bool [B, T].
    """
    prompt = attended if labels is None else attended & ((labels != -100).cumsum(1) == 0)
    rank = prompt.cumsum(1)  # 1 for the first position of the prompt
    return prompt & ((rank <= first) | (rank > rank[:, -1:] - last))


class ReftModel(nn.Module):
    """A frozen Hugging Face causal LM with LoReFT on the output of some of its decoder layers.

    The interventions are forward hooks on ``model``, which is changed in place: every call of it is intervened on,
    whether made through this object or not, until ``remove()``. A call that extends a cache is left alone. Whatever
    this class does not define (``config``, ``generation_config``, ``device``, ``dtype``,
    ``gradient_checkpointing_enable``, ...) is read from the wrapped model.

    Args:
        model: the causal LM; its parameters are frozen.
        config: where to intervene.

    Raises:
        InputError: as `places`.
    """

    def __init__(self, model: nn.Module, config: LoReFTConfig) -> None:
        super().__init__()
        self.layers = places(model, config)
        decoder, hidden_size = decoder_layers(model), int(text_config(model).hidden_size)
        self.model = model
        self.reft_config = config
        self.interventions = nn.ModuleDict(
            {
                str(index): LoReFT(
                    hidden_size, config.rank, dropout=config.dropout, device=next(decoder[index].parameters()).device
                )
                for index in self.layers
            }
        )
        self._arguments = list(inspect.signature(model.forward).parameters)
        self._prompt: Tensor | None = None  # while generating: positions of the prompt that are intervened on
        self._targets: Tensor | None = None  # of this call
        self._shape = torch.Size()
        self._places: tuple[Tensor, ...] = ()  # rows and columns of the call; backward may run the layers once more
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            *(
                decoder[index].register_forward_hook(
                    functools.partial(self._after_layer, self.interventions[str(index)])
                )
                for index in self.layers
            ),
        ]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        **kw: Any,
    ) -> Any:
        """Return the wrapped model's output.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], 0 for padding on either side; None: every token is attended.
            labels: [B, T], -100 where no loss. They also say where a row's prompt ends; without them every attended
                token is prompt.
            targets: [B, T], in place of labels: say where prompts end, and ask for no loss.
            **kw: passed on.
        """
        self._targets = targets
        try:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kw)
        finally:
            self._targets = None

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kw: Any) -> Any:
        """Generate as the wrapped model does, with the interventions on the prompt and on no generated token.

        Args:
            input_ids: [B, T], the prompts.
            attention_mask: [B, T], 0 for padding; None: every token is attended.
            **kw: passed on; with or without a cache, beams, several sequences per prompt.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        generate: Any = self.model.generate
        self._prompt = self._positions(attention_mask.bool(), None)
        try:
            return generate(input_ids=input_ids, attention_mask=attention_mask, **kw)
        finally:
            self._prompt = None

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the interventions; those of the model are frozen."""
        return list(self.interventions.parameters())

    def remove(self) -> None:
        """Take the interventions off the model, which is then as it was, ``requires_grad`` included."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._handles, self._trainable = [], []

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter only: ``reft_model.safetensors`` and ``reft_config.json``, each whole."""
        tensors = {name: tensor.contiguous() for name, tensor in self.interventions.state_dict().items()}
        write_whole(Path(folder) / WEIGHTS, save(tensors))
        settings = {**asdict(self.reft_config), "layers": self.layers, **_fits(self.model)}
        write_whole(Path(folder) / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path) -> Self:
        """Put a saved adapter on ``model``.

        Raises:
            InputError: the folder holds no adapter that can be read, or one for another hidden size or number of
                layers; the model is then unchanged.
        """
        folder = Path(folder)
        try:
            settings = json.loads((folder / SETTINGS).read_bytes())
            tensors = load((folder / WEIGHTS).read_bytes())
        except OSError as error:
            raise InputError(f"{folder}: no ReFT adapter ({error.filename}: {error.strerror})") from None
        except (ValueError, SafetensorError) as error:
            raise InputError(f"{folder}: a ReFT adapter that cannot be read, truncated perhaps ({error})") from None
        fits = _fits(model)
        try:
            for name, size in fits.items():
                if settings[name] != size:
                    raise InputError(f"{folder}: a ReFT adapter for {name} {settings[name]}; this model has {size}")
            config = LoReFTConfig(**{key: value for key, value in settings.items() if key not in fits})
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{folder / SETTINGS}: not the settings of a ReFT adapter ({error!r})") from None
        reft = cls(model, config)
        try:
            reft.interventions.load_state_dict(tensors)
        except RuntimeError:
            reft.remove()
            raise InputError(f"{folder}: {WEIGHTS} does not hold the layers and rank of {SETTINGS}") from None
        return reft

    def _positions(self, attended: Tensor, labels: Tensor | None) -> Tensor:
        return prompt_positions(attended, labels, first=self.reft_config.first, last=self.reft_config.last)

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the positions of this call, which the layers' hooks cannot see."""
        call = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        tokens = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
        rows, columns = shape = tokens.shape[:2]
        cache, mask = call.get("past_key_values"), call.get("attention_mask")
        seen = 0 if cache is None else int(cache.get_seq_length())
        if self._prompt is not None:  # [prompts, T0]; beams repeat a row, later columns are generated
            copies, rest = divmod(rows, len(self._prompt))
            if rest:
                raise RuntimeError(f"{rows} rows in a step that generates for {len(self._prompt)} prompts")
            chosen = self._prompt.repeat_interleave(copies, 0)[:, seen : seen + columns]
            chosen = pad(chosen, (0, columns - chosen.shape[1]))
        elif seen:
            chosen = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        elif mask is not None and mask.shape != shape:
            raise ValueError(
                f"ReFT finds the prompt by a mask of [{rows}, {columns}] as the tokens; attention_mask is "
                f"{list(mask.shape)}"
            )
        else:
            attended = torch.ones(shape, device=tokens.device) if mask is None else mask
            chosen = self._positions(attended.bool(), call.get("labels") if self._targets is None else self._targets)
        self._shape, self._places = shape, chosen.nonzero(as_tuple=True)

    def _after_layer(self, intervention: nn.Module, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[:2] != self._shape:
            raise RuntimeError(
                f"hidden states of {list(hidden.shape[:2])} in a call of {list(self._shape)} tokens: call the causal "
                "LM that ReFT wraps, not its decoder, and run backward before the next forward"
            )
        places = tuple(index.to(hidden.device) for index in self._places)
        if not (torch.is_grad_enabled() or len(places[0])):
            return output  # a step that extends a cache
        hidden = hidden.index_put(places, intervention(hidden[places]))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def places(model: nn.Module, config: LoReFTConfig) -> list[int]:
    """Return the indices of the layers to intervene on, ascending and none of them negative.

    Raises:
        InputError: a layer that the model does not have or that is named twice, a rank above its hidden size, a model
            whose decoder layers cannot be found, or one that goes on from a state and no cache of keys: how much it has
            read does not show, so that a prompt cannot be told from what follows it.
    """
    count, hidden_size = len(decoder_layers(model)), int(text_config(model).hidden_size)
    if config.rank > hidden_size:
        raise InputError(f"LoReFT: rank is {config.rank}, more than the model's hidden size {hidden_size}")
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"LoReFT: {type(model).__name__} goes on from a state, and not from keys of the tokens before: its prompt "
            "cannot be told from the answer; choose another defence, such as lora"
        )
    return layer_indices(config.layers, count, "LoReFT: layers")


def _fits(model: nn.Module) -> dict[str, int]:
    """Return what an adapter demands of a model."""
    return {"hidden_size": int(text_config(model).hidden_size), "num_hidden_layers": len(decoder_layers(model))}


def layer_indices(layers: Sequence[int] | str, count: int, what: str) -> list[int]:
    """Return the indices of layers, ascending and none of them negative; a text names all.

    Args:
        layers: negative ones count from the end.
        count: how many the model has.
        what: what messages call them.

    Raises:
        InputError: a layer that the model does not have, or that is named twice.
    """
    if isinstance(layers, str):
        return list(range(count))
    for index in layers:
        if not -count <= index < count:
            raise InputError(f"{what} has {index}; the model's {count} layers are {-count} to {count - 1}")
    chosen = sorted({index % count for index in layers})
    if len(chosen) < len(layers):
        raise InputError(f"{what} {layers} name a layer of the model's {count} twice")
    return chosen
