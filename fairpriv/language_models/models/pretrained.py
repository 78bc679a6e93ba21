"""Pretrained models: from a local folder, the Hugging Face hub, or an installed package that carries them."""

from __future__ import annotations

import copy
import datetime
import logging
import re
import sys
import time
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairpriv import patches
from fairpriv.data.checkpoints import Pretrained, tell_unexpected, unreadable
from fairpriv.errors import InputError
from fairpriv.store import Store

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from fairpriv.language_models.data.tokens import PromptFormat

log = logging.getLogger(__name__)


@dataclass
class PretrainedLM(Pretrained):
    """A causal language model and its tokenizer, found and loaded.

    What ``package`` carries is ``gguf``, a file that is dequantised once into ``cache``.
    Pickled checkpoints are loaded by ``torch.load`` with ``weights_only=True`` (as transformers does).
    """

    kind: ClassVar[str] = "causal_lm"

    # the GGUF file inside it
    gguf: str | None = field(default=None, metadata={"outcome": False})
    # below which dequantised models are kept, in cache/models
    cache: str = field(default="outputs", metadata={"outcome": False})
    # of the weights; auto: as they were saved; fastest: bfloat16 where this machine computes it clearly faster than
    # float32, and the defence does not need float32
    dtype: Literal["float32", "bfloat16", "float16", "auto", "fastest"] = "auto"
    quantization: Any = None  # transformers' config of it, such as BitsAndBytesConfig; null: weights as they are
    # transformers' device_map: null puts the model on one device, "auto" spreads it
    device_map: Any = field(default=None, metadata={"outcome": False})
    attn_implementation: str | None = None  # eager, sdpa, flash_attention_2 ...; null: transformers decides
    # auto: the tokenizer's own, if it has one; none: plain text; else a Jinja template, or a file that holds one
    chat_template: str = "auto"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # what the template reads, by name
    system: str | None = None  # system message
    separator: str = ""  # between prompt and response where no template is used
    append_eos: bool = True  # an end token after responses that are trained on, where the template writes no end
    strip_thinking: bool = True  # what a model thinks, up to </think>, is not part of its answer
    date: str = "2024-07-26"  # what a chat template that writes today's date takes for it, as YEAR-MONTH-DAY
    trust_remote_code: bool = False  # true: run Python code that comes with the model
    gradient_checkpointing: bool = False  # less memory in training, for a third more time

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except (TypeError, ValueError):
            raise InputError(f"model.date={self.date}: must be a day, such as 2024-07-26") from None
        if self.chat_template == "none" and self.chat_template_kwargs:
            raise InputError("model.chat_template_kwargs: with model.chat_template=none no template reads them")
        self.template()
        named = getattr(self.quantization, "quant_method", None)
        if getattr(named, "value", named) == "bitsandbytes" and find_spec("bitsandbytes") is None:
            raise InputError("model.quantization needs bitsandbytes: pip install 'fairpriv[bitsandbytes]'")

    def _inside(self) -> str | None:
        return self.gguf

    @property
    def half(self) -> bool:
        """Whether the weights are in half precision, which for ``dtype=auto`` the files' config says."""
        if self.quantization is not None:  # which computes so
            return True
        if (dtype := self._settled) != "auto":
            return dtype != "float32"
        from transformers import AutoConfig

        where, digest = self._found
        if where.startswith("gguf:"):  # dequantised into float32
            return False
        given = {} if Path(where).is_dir() else {"revision": digest}
        try:
            config = AutoConfig.from_pretrained(where, trust_remote_code=self.trust_remote_code, **given)
        except Exception:  # which `load` explains
            return False
        return "float16" in str(config.dtype)  # torch.bfloat16, too

    @property
    def _settled(self) -> str:
        """The dtype, decided: a cell's is by its config, see `settled`; this is for a model that is in no cell."""
        if self.dtype != "fastest":
            return self.dtype
        from fairpriv.language_models.models.precision import fastest
        from fairpriv.trainer import device_of

        return fastest(device_of({"trainer": {}}).type)

    @property
    def form(self) -> PromptFormat:
        """How prompts and responses are written, by a tokenizer that was made to by `pin`."""
        from fairpriv.language_models.data.tokens import PromptFormat

        mode: Literal["auto", "none"] = "none" if self.chat_template == "none" else "auto"
        return PromptFormat(mode, self.system, self.separator, self.append_eos)

    def template(self) -> str | None:
        """Read the template that stands in the config, or in the file that it names; None: it gives none.

        Raises:
            InputError: there is no such file, or it cannot be read.
        """
        if self.chat_template in ("auto", "none"):
            return None
        if "{{" in self.chat_template or "{%" in self.chat_template:
            return self.chat_template
        try:
            return Path(self.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
            raise InputError(
                f"model.chat_template={self.chat_template}: {reason}; it is auto, none, a file that holds a Jinja "
                "template, or the template itself, with {{ and }}"
            ) from None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model in eval mode with ``dtype`` on ``device_map``, and its tokenizer, padding on the left.

        Raises:
            InputError: as `digest`; or the files hold no causal language model that transformers can build.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
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
            whole = AutoConfig.from_pretrained(where, **common)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=self._settled,
                device_map=self.device_map,
                attn_implementation=self.attn_implementation,
                quantization_config=copy.deepcopy(self.quantization),
                output_loading_info=True,
                **_text_decoder(whole),
                **common,
            )
        except Exception as error:  # damaged or hostile files raise many kinds, in transformers and below it
            raise InputError(f"model.path={self.path}: {unreadable(error)}") from error
        model, info = loaded
        if type(model.config) is not type(whole):
            model._weight_conversions = None  # `save_pretrained` would undo the renaming, and fail at it
            log.info(
                "model %s: a multimodal checkpoint, of which the text decoder is used (%s); %d weights of other parts "
                "are left out",
                self.name,
                type(model).__name__,
                len(info["unexpected_keys"]),
            )
        else:
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

    def require_one_device(self, trainer: str) -> None:
        """Raise `InputError` for a model spread over devices, where ``trainer``, as messages name it, trains it."""
        if self.device_map is not None:
            raise InputError(
                f"model.device_map={self.device_map} spreads the model over devices, and {trainer} trains it on one: "
                "leave it null"
            )

    def origin(self, model: nn.Module, batch_size: int | None) -> list[Any]:
        """Return what determines the untouched model's numbers, to the last bit that can turn an answer."""
        # In half precision padding does, which turns near ties; in float32 it has never been seen to.
        batch_size = batch_size if self.half else None
        found = [self.digest(), str(model.dtype), self.attn_implementation, batch_size]
        found += ["code of its own"] if self.trust_remote_code else []
        return found if self.quantization is None else [*found, self.quantization.to_dict()]

    def pin(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make the tokenizer write what the config says: its template, what that reads, and ``date`` for today.

        Everything that uses the tokenizer then writes the same: training, answers, lm-eval, and what is saved.

        Raises:
            InputError: ``chat_template_kwargs`` names what the template does not read, or there is no template.
        """
        given = self.template()
        if given is not None:
            tokenizer.chat_template = given
        if self.chat_template_kwargs:
            if not tokenizer.chat_template:
                raise InputError(f"model.chat_template_kwargs: the tokenizer of {self.name} has no chat template")
            template = tokenizer.get_chat_template()
            for name in self.chat_template_kwargs:
                if not re.search(rf"\b{re.escape(name)}\b", template):
                    raise InputError(f"model.chat_template_kwargs.{name}: the chat template reads nothing of that name")
            # Jinja writes texts, numbers, lists and None as Python does
            read = "".join(f"{{%- set {name} = {value!r} -%}}" for name, value in self.chat_template_kwargs.items())
            tokenizer.chat_template = f"{read}{template}"
        if pin_date(tokenizer, self.date) and self.chat_template != "none":
            log.info("model %s: its chat template writes a date, which is %s (model.date)", self.name, self.date)

    def _dequantised(self, file: Path, digest: str) -> Path:
        """Return the folder with the GGUF's weights as ordinary float32 ones, made at the first call."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        def make(folder: Path) -> None:
            print(f"{self.name}: dequantising {file.name} into {folder.parent} (half a minute, once)", file=sys.stderr)
            source = {"gguf_file": file.name}
            try:
                with patches.gguf_parsed_once():
                    AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(folder)
                    config = AutoConfig.from_pretrained(file.parent, **source)
                    loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
            except ImportError as error:
                told = f"model={self.name}: `pip install --no-deps gguf` reads GGUF files ({error})"
                raise InputError(told) from None
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            # A model that was loaded from GGUF refuses save_pretrained: its weights move into a plain one.
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            plain.load_state_dict(loaded.state_dict())
            plain.generation_config = loaded.generation_config
            plain.save_pretrained(folder)

        return Store(self.cache).cached_folder("models", {"gguf": digest}, make)


def _text_decoder(whole: PreTrainedConfig) -> dict[str, Any]:
    """Return what makes transformers load the text decoder alone of a multimodal checkpoint; empty for any other.

    Unasked it loads some whole, such as Gemma 3, some not at all, such as Llava, and of some the decoder.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    text = whole.get_text_config()
    if text is whole or type(text) not in CAUSAL or getattr(whole, "auto_map", None):
        return {}
    if type(whole) in CAUSAL and getattr(CAUSAL[type(whole)], "config_class", None) is type(text):
        return {}
    for key in ("tie_word_embeddings", "quantization_config"):
        if getattr(whole, key, None) is not None:
            setattr(text, key, getattr(whole, key))
    prefix = r"^(model\.)?language_model\."
    return {"config": text, "key_mapping": {f"{prefix}lm_head": "lm_head", rf"{prefix}(model\.)?": "model."}}


def quantised(model: nn.Module) -> str | None:
    """Name the method by which a model's weights were quantised as it was loaded; None where they were not."""
    method = getattr(model, "quantization_method", None)
    return None if method is None else str(getattr(method, "value", method))


def pin_date(tokenizer: PreTrainedTokenizerBase, date: str) -> bool:
    """Make a tokenizer's chat template take ``date`` for today, where it asks ``strftime_now``; tell whether it does.

    Args:
        tokenizer: whose template is changed.
        date: as YEAR-MONTH-DAY.
    """
    template, day = tokenizer.chat_template, datetime.date.fromisoformat(date)
    if not isinstance(template, str) or "strftime_now" not in template:
        return False
    # A macro: transformers lets templates see neither functions nor dates.
    written = "format"
    for directive in "aAbBcdDeFhHIjklmMnpPrRsStTuUVwWxXyYzZ":
        for code in (f"%-{directive}", f"%{directive}"):
            written += f".replace({code!r}, {day.strftime(code)!r})"
    tokenizer.chat_template = f"{{%- macro strftime_now(format) -%}}{{{{ {written} }}}}{{%- endmacro %}}\n{template}"
    return True


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Merge a PEFT adapter of a local folder into the weights of ``model``, and return it.

    Raises:
        InputError: the weights are in half precision, which would round much of the adapter away; or the adapter is
            not of this model, or cannot be merged.
    """
    from peft import PeftModel

    if model.dtype.itemsize < 4:
        raise InputError(
            f"adapter {adapter}: it is to be merged into weights of {model.dtype}, which would round much of it away: "
            "merge it into float32 weights, and make the edit of those (model.dtype=float32)"
        )

    try:
        with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5 under an old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            tuned: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except Exception as error:
        raise InputError(f"adapter {adapter}: {unreadable(error)}") from error
    whole: PreTrainedModel = tuned.eval()
    return whole
