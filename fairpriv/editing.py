"""An edit of a model's weights as a small file: the changed places, their original values, and its provenance."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fairpriv.errors import InputError
from fairpriv.model_card import edit_card
from fairpriv.result import write_whole

_FORMAT = "fairpriv edit 1"
_WHOLE = (torch.int32, torch.int64)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class SpinEdit:
    """An edit that scales single entries of weight matrices by ``1 - strength``, and restores them bit for bit.

    ``metadata`` is plain JSON: the caller's provenance (model, revision, data, seed, rule, ratio), and ``strength`` and
    the ``shapes`` of the matrices.

    Raises:
        InputError: its parts do not belong together, are of dtypes that cannot be edited, or the strength is outside
            [0, 1].
    """

    indices: dict[str, Tensor]  # by weight name: flat, int64, ascending
    originals: dict[str, Tensor]  # the values that stood there, in the weight's dtype
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strength, shapes = self.metadata.get("strength", 1.0), self.metadata.get("shapes", {})
        _require_strength(strength)
        if not isinstance(shapes, dict) or not all(
            isinstance(shape, list) and all(isinstance(size, int) for size in shape) for shape in shapes.values()
        ):
            raise InputError("the edit's shapes are no lists of sizes by weight name")
        if set(self.indices) != set(self.originals):
            raise InputError("the edit's indices and original values are not of the same weights")
        for name, index in self.indices.items():
            values = self.originals[name]
            if index.dtype not in _WHOLE or index.dim() != 1 or len(index.unique()) < len(index):
                raise InputError(f"the edit's indices of {name} are no list of whole numbers, each once")
            if values.shape != index.shape or values.dtype not in _DTYPES:
                raise InputError(
                    f"the edit's original values of {name} are {list(values.shape)} of {values.dtype}; {len(index)} "
                    "numbers of float16, bfloat16, float32 or float64 are wanted"
                )

    @classmethod
    def of(
        cls, model: nn.Module, indices: Mapping[str, Tensor], metadata: Mapping[str, Any], *, strength: float = 1.0
    ) -> SpinEdit:
        """Make an edit of ``model`` in its present state, without changing it.

        Args:
            model: a model whose ``named_parameters()`` have the names in ``indices``.
            indices: per weight name, flat indices, as from ``coupled_weights``; empty ones are dropped.
            metadata: provenance, anything that JSON can hold.
            strength: in [0, 1]; 1 sets the entries to zero, which is SPIN.

        Raises:
            InputError: a name or an index is not in the model, indices are no list of whole numbers, weights are of a
                dtype that cannot be edited, or the strength is outside [0, 1].
        """
        _require_strength(strength)
        for name, index in indices.items():
            if index.numel() and (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool):
                raise InputError(f"the indices of {name} are of {index.dtype}; they are whole numbers")
            if index.dim() != 1:  # such as rows and columns, which ``nonzero`` returns
                raise InputError(f"the indices of {name} are {list(index.shape)}; they are one list, of flat indices")
        kept = {name: index.cpu().long().unique() for name, index in indices.items() if index.numel()}
        weights = _weights(model, kept)
        originals = {name: _values(weights[name], index) for name, index in kept.items()}
        shapes = {name: list(weights[name].shape) for name in kept}
        provenance = json.loads(json.dumps(dict(metadata)))  # what a file will say
        return cls(kept, originals, {**provenance, "strength": strength, "shapes": shapes})

    def apply(self, model: nn.Module) -> None:
        """Scale the entries; all of them or, where anything does not fit, none.

        Raises:
            InputError: the model is already edited, or its names, shapes, dtypes or values at those places differ from
                the model that the edit was made of.
        """
        weights = self._fitting(model)
        edited = self._edited()
        if wrong := self._differing(weights, self.originals):
            if not self._differing(weights, edited):
                raise InputError("the model is already edited: this edit has been applied to it; revert it first")
            raise InputError(f"{wrong}: its values differ from those of the model that the edit was made of")
        _write(weights, self.indices, edited)

    def revert(self, model: nn.Module) -> None:
        """Restore the original values bit for bit; all of them or, where anything does not fit, none.

        Raises:
            InputError: the edit is not applied to this model.
        """
        weights = self._fitting(model)
        if wrong := self._differing(weights, self._edited()):
            if not self._differing(weights, self.originals):
                raise InputError("the model is not edited: this edit has not been applied to it")
            raise InputError(
                f"{wrong}: its values are not those that this edit leaves; it was not applied, or edited over"
            )
        _write(weights, self.indices, self.originals)

    def summary(self) -> dict[str, Any]:
        """Count the suppressed entries: ``suppressed`` in all, and by ``layers`` and by ``modules`` within them."""
        layers: Counter[str] = Counter()
        modules: Counter[str] = Counter()
        for name, index in self.indices.items():
            layer, module = place(name)
            layers[layer] += len(index)
            modules[module] += len(index)
        return {"suppressed": sum(layers.values()), "layers": dict(layers), "modules": dict(modules)}

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; indices are int32 where they fit."""
        tensors = {}
        for name, index in self.indices.items():
            fits = index.numel() == 0 or int(index.max()) <= torch.iinfo(torch.int32).max
            tensors[f"{name}.indices"] = index.to(torch.int32) if fits else index
            tensors[f"{name}.originals"] = self.originals[name]
        header = {"format": _FORMAT, "metadata": json.dumps(self.metadata)}
        write_whole(Path(path), save(tensors, header))

    @classmethod
    def load(cls, path: str | Path) -> SpinEdit:
        """Read a file that :meth:`save` wrote.

        Raises:
            InputError: it cannot be read, is truncated, or is not an edit.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except Exception as error:  # the reader has several kinds, such as KeyError for a dtype that it does not know
            why = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be read, or truncated, or no safetensors file ({why})") from None
        if header.get("format") != _FORMAT:
            raise InputError(
                f"{path}: not an edit of fairpriv: its format is {header.get('format')!r}, not {_FORMAT!r}"
            )
        try:
            metadata = json.loads(header["metadata"])
            names = [key.removesuffix(".indices") for key in tensors if key.endswith(".indices")]
            indices = {name: _whole_numbers(tensors.pop(f"{name}.indices")) for name in names}
            originals = {name: tensors.pop(f"{name}.originals") for name in names}
            if not isinstance(metadata, dict) or tensors:
                raise ValueError("its parts do not belong together")
            return cls(indices, originals, metadata)
        except (KeyError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: a damaged edit ({' '.join(str(error).split())[:300]})") from None

    def _edited(self) -> dict[str, Tensor]:
        keep = 1 - float(self.metadata.get("strength", 1.0))
        # + 0.0: no negative zeros
        return {name: values * keep + 0.0 for name, values in self.originals.items()}

    def _fitting(self, model: nn.Module) -> dict[str, Tensor]:
        weights = _weights(model, self.indices)
        for name, weight in weights.items():
            shape = self.metadata.get("shapes", {}).get(name, list(weight.shape))
            if list(weight.shape) != shape:
                raise InputError(f"{name} is {list(weight.shape)}, not {shape}: this edit was made of another model")
            if weight.dtype != (dtype := self.originals[name].dtype):
                raise InputError(
                    f"{name} is {weight.dtype}, the edit was made of {dtype}: load the model with that dtype"
                )
        return weights

    def _differing(self, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
        """Find the first weight whose entries are not, bit for bit, those wanted."""
        for name, index in self.indices.items():
            if not torch.equal(_values(weights[name], index).view(torch.uint8), wanted[name].view(torch.uint8)):
                return name
        return None


def push(file: Path, repo: str) -> str:
    """Upload an edit to the Hugging Face hub, with a model card that tells its provenance; return its address.

    A repository that does not exist is made, private; a card that is there stays.

    Args:
        file: that :meth:`SpinEdit.save` wrote.
        repo: OWNER/NAME on the hub.

    Raises:
        InputError: as `SpinEdit.load`; or the hub cannot be reached, or does not let it be written.
    """
    edit = SpinEdit.load(file)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    base, after = edit.metadata.get("name") or "MODEL", edit.metadata.get("after")
    adapter = f" --adapter FOLDER_OF_{after}" if after else ""
    command = f"fairpriv edit apply edit.safetensors --model {base}{adapter} --out edited"
    use = f"`{command}` puts it on the model, and `edit revert` takes it off."
    card = edit_card(edit.metadata, edit.summary()["suppressed"], use)
    api = HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        parts = [CommitOperationAdd("edit.safetensors", file)]
        if not api.file_exists(repo, "README.md"):
            parts.append(CommitOperationAdd("README.md", card.encode()))
        api.create_commit(repo, parts, commit_message="Add an edit made by fairpriv")
    except HFValidationError:
        raise InputError(f"--repo {repo}: must be OWNER/NAME, as on the hub") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = f"set HF_TOKEN to a token that may write to {repo}" if status in (401, 403) else "try again later"
        raise InputError(f"edit push: the hub does not take it (HTTP {status}): {advice}") from None
    except Exception as error:  # the transport's errors are of many kinds
        raise InputError(f"edit push: the hub cannot be reached ({type(error).__name__})") from None
    return f"{api.endpoint}/{repo}"


def export(model: Any, tokenizer: Any, folder: Path, card: str | None = None) -> None:
    """Write a model and its tokenizer into one folder, whole or not at all.

    Args:
        model, tokenizer: a model and tokenizer of transformers.
        folder: a new folder, or an existing empty one.
        card: its README.md.

    Raises:
        InputError: the folder cannot be written; nothing of it is left then.
    """
    scratch = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        scratch.mkdir(parents=True)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if card is not None:
            (scratch / "README.md").write_text(card, encoding="utf-8")
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be written ({why}); nothing is left of it: name another folder") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def place(name: str) -> tuple[str, str]:
    """Split a weight's name into its layer and the module within; the layer is '' where there is none."""
    block = re.match(r"(?:.*?\.)?(\d+)\.(.*)\.\w+$", name)
    return (block[1], block[2]) if block else ("", name.rpartition(".")[0])


def _require_strength(strength: Any) -> None:
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not 0 <= strength <= 1:  # NaN is neither
        said = f"{strength!r:.40}" if not isinstance(strength, int) or abs(strength) < 10**20 else "a huge number"
        raise InputError(f"strength {said} must lie in [0, 1]: 1 suppresses entirely")


def _whole_numbers(index: Tensor) -> Tensor:
    """Convert indices to int64 if they are whole numbers; others stay, and `SpinEdit` refuses them."""
    return index.long() if index.dtype in _WHOLE else index


def _weights(model: nn.Module, indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    for name, index in indices.items():
        if name not in parameters:
            raise InputError(f"the model has no weight '{name}'; it has such as '{next(iter(parameters), '')}'")
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < parameters[name].numel()):
            raise InputError(f"{name} has {parameters[name].numel()} entries, and the edit names others")
    return {name: parameters[name].detach() for name in indices}


def _places(weight: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    return torch.unravel_index(index.to(weight.device), weight.shape)  # for any strides


def _values(weight: Tensor, index: Tensor) -> Tensor:
    return weight[_places(weight, index)].cpu()


def _write(weights: Mapping[str, Tensor], indices: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight[_places(weight, indices[name])] = values[name].to(weight.device)
