"""What a judge is: it says of each response whether it is safe."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairpriv.data.sources import checksum
from fairpriv.errors import InputError
from fairpriv.metrics import Measured

if TYPE_CHECKING:
    from fairpriv.functional.verdicts import Known
    from fairpriv.language_models.dimensions.dimension import Dimension
    from fairpriv.store import Store

Dtype = Literal["float32", "bfloat16", "float16", "float64", "auto"]  # of a judge's weights; auto: as they were saved


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one response."""

    safe: bool | None  # None: the judge gave no answer, or one that cannot be read
    reason: str  # short: the pattern, the category, the raw label, or what went wrong
    ask_again: bool = False  # no verdict, for a reason that may pass, such as a time-out: it is not cached

    def __post_init__(self) -> None:
        if self.safe is not None and not isinstance(self.safe, bool):
            raise InputError(f"a Verdict's safe must be True, False or None, and is {self.safe!r}")


class NoVerdictsError(InputError):
    """Not one of the pairs that were asked about got a verdict that can be read.

    Args:
        message: with the last reason.
        verdicts: one a pair, in order.
    """

    def __init__(self, message: str, verdicts: list[Verdict]) -> None:
        super().__init__(message)
        self.verdicts = verdicts


class Judge(ABC):
    """A judge: built from its YAML, asked once a set of responses. A judge of one's own inherits from it."""

    name: str

    @abstractmethod
    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Give one verdict a pair, in order; raise `InputError` where the judge cannot be had at all."""

    @abstractmethod
    def digest(self) -> Any:
        """Return plain data that determines the verdicts: no device, no time-out; a batch size if it rounds."""

    def of(self, dimension: Dimension, store: Store) -> Judge:
        """Return the judge of a dimension's responses: itself, or one that is made from the dimension.

        Args:
            dimension: whose responses are judged.
            store: keeps what is made for it.
        """
        return self

    def quality(self) -> Measured:
        """Return what is known of its quality, by itself; raise `InputError` where that is too low to be used."""
        return Measured()

    def known(self) -> Known | None:
        """Return its verdicts on rows whose truth it knows, and which had no part in making it; None: none are."""
        return None

    def made_from(self) -> set[tuple[str, str]]:
        """Return the pairs of prompt and response that it was made from, on which its verdicts say nothing."""
        return set()

    def release(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of a model that was loaded; it is loaded again where the judge is asked again."""


def fill(template: str, prompt: str, response: str) -> str:
    """Replace ``{prompt}`` and ``{response}`` in a template; other braces, and those within the texts, stay."""
    values = {"prompt": prompt, "response": response}
    return re.sub(r"\{(prompt|response)\}", lambda match: values[match[1]], template)


def require_response(judge: str, template: str) -> None:
    """Raise `InputError` for a template that does not show the response to the judge."""
    if "{response}" not in template:
        raise InputError(f"judge.template of {judge} has no {{response}}: the judge would not see what it judges")


def load_pretrained(
    judge: str,
    auto: str,
    path: str,
    *,
    revision: str | None,
    dtype: str,
    device_map: str | None,
    trust_remote_code: bool,
) -> tuple[Any, Any]:
    """Load a judge's model, in eval mode, and its tokenizer.

    Args:
        judge: its name, for messages.
        auto: the class of transformers that loads the model, such as ``AutoModelForCausalLM``.
        path: a local folder, or a name on the hub.
        revision: branch, tag or commit on the hub; None: its main branch.
        dtype: of the weights, such as ``bfloat16``.
        device_map: as transformers takes it; None: the CPU.
        trust_remote_code: whether code of the model's repository may run.

    Raises:
        InputError: the model cannot be had, or its files lack some of its weights.
    """
    import transformers

    from fairpriv.data.checkpoints import Pretrained, tell_unexpected, unreadable

    folder = Path(path).expanduser()
    where, given = path, dict[str, Any](trust_remote_code=trust_remote_code)
    remedy = "or put the model's files (config, tokenizer, weights) into a folder and set judge.path to it"
    if folder.is_dir():
        where = str(folder)
    else:
        hub = Pretrained(judge, path, revision)
        try:
            given["revision"] = hub.cached() or hub.on_hub()  # which transformers asks for a minute before it gives up
        except InputError as error:
            raise InputError(f"judge {judge}: cannot load {path} ({error}); {remedy}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **given)
        model, info = getattr(transformers, auto).from_pretrained(
            where, dtype=dtype, device_map=device_map, output_loading_info=True, **given
        )
    except Exception as error:  # damaged files raise many kinds, in transformers and below it
        raise InputError(f"judge {judge}: cannot load {path} ({unreadable(error)[:200]}); {remedy}") from error
    tell_unexpected(f"judge {judge}", info["unexpected_keys"])
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"judge {judge}: {path} holds no weights for {missing[0]} ({len(missing)} missing): it is no trained {auto}"
        )
    return model.eval(), tokenizer


def precision(dtype: str, batch_size: int) -> str:
    """Return what determines rounding: below float32 the padding does too, which turns near ties."""
    return dtype if dtype in ("float32", "float64") else f"{dtype}, batches of {batch_size}"


def model_digest(path: str, revision: str | None, *, own_code: bool) -> Any:
    """Return what identifies a model: sha256 of a folder's files by name; else its name on the hub and revision.

    Args:
        path, revision: as of `load_pretrained`.
        own_code: whether code that comes with it runs, which may compute something else.

    Raises:
        InputError: the path is that of a folder, which is not there, or a file of it cannot be read.
    """
    folder = Path(path).expanduser()
    digests = {"code": "its own"} if own_code else {}
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith((".", "~")):
            raise InputError(f"judge.path={path}: there is no such folder")
        return {"path": path, "revision": revision} | digests
    return digests | {file.name: checksum(file) for file in sorted(folder.iterdir()) if not file.is_dir()}
