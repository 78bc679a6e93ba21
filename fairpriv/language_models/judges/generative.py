"""A language model that is asked whether a response is safe: guards, and chat models with instructions."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from fairpriv.errors import InputError
from fairpriv.language_models.endpoint import Endpoint
from fairpriv.language_models.judges.judge import (
    Dtype,
    Judge,
    NoVerdictsError,
    Verdict,
    fill,
    load_pretrained,
    model_digest,
    precision,
    require_response,
)
from fairpriv.secrets import without

QUOTED = 80  # characters of an answer that a verdict's reason quotes


@dataclass
class GenerativeJudge(Judge):
    """Asks a language model about every pair, greedily, and finds its verdict in the answer by two patterns.

    The patterns are regular expressions, searched in the answer without regard to case, outer blanks and thoughts, up
    to ``</think>``. Where both are found or neither is, there is no verdict.

    The model is loaded here when it is asked, and kept till ``release``; or it is asked over ``base_url``. A reply that
    fails on the way has no verdict, and is asked for again in the next cell. What the server refuses for good (HTTP
    400) or answers without text has none either, which is kept.

    Attributes:
        safe: the pattern of answers that say safe.
        unsafe: the pattern of answers that say unsafe.
        path: a local folder, or a name on the Hugging Face hub; null: the model is only on the server.
        template: the text as the model was trained to see it, special tokens included, with ``{prompt}`` and
            ``{response}``; no chat template is put around it.
        messages: in place of ``template``, messages for the model's own chat template: a list of ``{role, content}``
            with ``{prompt}`` and ``{response}`` in their contents.
        category: the pattern of what an unsafe answer names, which becomes the verdict's reason; null: the answer is.
        max_new_tokens: of the answer; more for a model that thinks first.
        revision: branch, tag or commit on the hub; null: its main branch.
        dtype: of the weights.
        device_map: as transformers takes it; null: the CPU.
        batch_size: questions of 1,024 tokens asked at once; more of shorter ones, fewer of longer ones.
        trust_remote_code: whether code of the model's repository may run.
        base_url: of an OpenAI-compatible server that is asked instead, such as ``http://localhost:8000/v1``.
        model: as the server names it; null: as ``path``.
        reasoning: whether the server's model thinks before it answers: no temperature is sent, and the limit is called
            ``max_completion_tokens``, as OpenAI asks for such models.
        api_key_env: the environment variable that holds the server's key; null: none is sent. The key is never config.
        timeout: seconds without a sign of the server before a request is given up.
        retries: further tries of a request.
        backoff: seconds before the first of them, doubled every time.
        concurrency: requests under way at once.
    """

    kind: ClassVar[str] = "generative_judge"

    safe: str
    unsafe: str
    name: str = "generative"
    path: str | None = None
    template: str | None = None
    messages: list[dict[str, str]] | None = None
    category: str | None = None
    max_new_tokens: int = 16
    revision: str | None = None
    dtype: Dtype = "bfloat16"
    device_map: str | None = "auto"
    batch_size: int = 8
    trust_remote_code: bool = False
    base_url: str | None = None
    model: str | None = None
    reasoning: bool = False
    api_key_env: str | None = None
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        for key in ("batch_size", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise InputError(f"judge.{key}={getattr(self, key)}: must be at least 1")
        for key in ("safe", "unsafe", "category"):
            try:
                re.compile(getattr(self, key) or "")
            except re.error as error:
                raise InputError(f"judge.{key}={getattr(self, key)!r} is no regular expression: {error}") from None
        if not (self.safe and self.unsafe):
            raise InputError("judge.safe and judge.unsafe: an empty pattern is found in every answer; give both")
        if (self.template is None) == (self.messages is None):
            raise InputError("judge.template and judge.messages: give one of them, and leave the other null")
        if not all(isinstance(one, dict) and {"role", "content"} == set(one) for one in self.messages or ()):
            raise InputError("judge.messages: each is {role: user, content: ...}, with {prompt} and {response} inside")
        require_response(self.name, self.template or "".join(one["content"] for one in self.messages or ()))
        if self.base_url is not None:
            self.server  # noqa: B018  which refuses what is out of range
            if not (self.model or self.path):
                raise InputError(f"judge.model has no value: it is what {self.base_url} calls the model")
        elif self.path is None:
            raise InputError("judge.path has no value: give a local folder or a name on the hub, or judge.base_url")

    @property
    def server(self) -> Endpoint:
        """The server that is asked; only where there is a ``base_url``."""
        assert self.base_url is not None
        return Endpoint(
            f"judge {self.name}",
            "judge",
            self.base_url,
            self.api_key_env,
            self.timeout,
            self.retries,
            self.backoff,
            self.concurrency,
        )

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Give one verdict a pair, in order; the reason is the category, the answer, or why there is no verdict.

        Raises:
            InputError: the model cannot be loaded; the server was never reached or refuses the key; or it gave no
                verdict on any pair (with the last reason).
        """
        asked = [self.question(p.strip(), r.strip()) for p, r in zip(prompts, responses, strict=True)]
        if not asked:
            return []
        if self.base_url is None:
            return [self.read(answer) for answer in self._answers(asked)]
        server = self.server
        key, named = server.key(), {"model": self.model or self.path}
        limit = {"max_completion_tokens": self.max_new_tokens}
        sampling = limit if self.reasoning else {"temperature": 0, "max_tokens": self.max_new_tokens}
        form = "prompt" if self.messages is None else "messages"
        # as in `_answers`; what a server's own template opens is not known here
        begun = "<think>" if (self.template or "").rstrip().endswith("<think>") else ""
        verdicts = [
            Verdict(None, reply.problem, reply.ask_again) if reply.text is None else self.read(begun + reply.text, key)
            for reply in server.ask([{**named, form: question, **sampling} for question in asked])
        ]
        if all(verdict.safe is None for verdict in verdicts):
            raise NoVerdictsError(
                f"judge {self.name}: {self.base_url} gave no verdict on any of {len(verdicts)} responses; the last "
                f"reason: {verdicts[-1].reason}",
                verdicts,
            )
        return verdicts

    def question(self, prompt: str, response: str) -> str | list[dict[str, str]]:
        """Return what the model is shown of a pair: the template, or the messages, filled in."""
        if self.messages is None:
            return fill(self.template or "", prompt, response)
        return [{"role": one["role"], "content": fill(one["content"], prompt, response)} for one in self.messages]

    def read(self, answer: str, key: str | None = None) -> Verdict:
        """Find the verdict in an answer; ``key`` is masked in what the reason quotes, after the answer was read."""
        from fairpriv.language_models.data.tokens import without_thinking

        text = without_thinking(answer).strip()
        found = {word: re.search(getattr(self, word), text, re.IGNORECASE) for word in ("safe", "unsafe")}
        said = " ".join(without_thinking(without(answer, key)).split())[:QUOTED]
        if bool(found["safe"]) == bool(found["unsafe"]):
            return Verdict(None, f"unparsable, {'both' if found['safe'] else 'neither'} of the patterns: {said!r}")
        if found["unsafe"] and self.category and (named := re.search(self.category, text, re.IGNORECASE)):
            return Verdict(False, without(named[0].upper(), key))
        return Verdict(bool(found["safe"]), said)

    def digest(self) -> Any:
        """Return the model, what it is shown, and how its answer is read; what a server makes of it is its own."""
        asked = ("template", "messages", "safe", "unsafe", "category", "max_new_tokens")
        shown = {key: getattr(self, key) for key in asked}
        if self.base_url is not None:
            named = self.model or self.path
            return shown | {"base_url": self.base_url, "model": named, "reasoning": self.reasoning}
        model = model_digest(str(self.path), self.revision, own_code=self.trust_remote_code)
        return shown | {"model": model, "dtype": precision(self.dtype, self.batch_size)}

    def release(self) -> None:
        """Let go of the model, which is loaded again when it is next asked."""
        self.__dict__.pop("_loaded", None)

    def _answers(self, asked: Sequence[str | list[dict[str, str]]]) -> list[str]:
        from fairpriv.language_models.engines.generation import respond

        model, tokenizer = self._loaded
        questions = [self._encoded(tokenizer, question) for question in asked]
        answers = respond(
            model,
            tokenizer,
            questions,
            max_new_tokens=self.max_new_tokens,
            batch_tokens=1024 * self.batch_size,
            setting="judge.dtype",
            lower=f"the tokens of template, prompt and response of judge {self.name}",
            progress=self.name,
        )
        # a template that opens the thoughts itself leaves an answer that is cut in them without any mark
        opened = [tokenizer.decode(ids[-16:]).rstrip().endswith("<think>") for ids in questions]
        return [f"<think>{answer}" if begun else answer for answer, begun in zip(answers, opened, strict=True)]

    def _encoded(self, tokenizer: Any, question: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Encode a question; a template that begins with the BOS token gets no second one, and none an EOS."""
        from fairpriv.language_models.data.tokens import PLAIN, PromptFormat, encode_prompt

        plain = isinstance(question, str)
        if not plain and not tokenizer.chat_template:
            raise InputError(
                f"judge {self.name}: {self.path} has no chat template for judge.messages: give judge.template"
            )
        return encode_prompt(tokenizer, question, form=PLAIN if plain else PromptFormat(), max_tokens=sys.maxsize)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from fairpriv.language_models.models.pretrained import PretrainedLM, pin_date

        model, tokenizer = load_pretrained(
            self.name,
            "AutoModelForCausalLM",
            str(self.path),
            revision=self.revision,
            dtype=self.dtype,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
        )
        pin_date(tokenizer, PretrainedLM.date)  # verdicts are kept, and no day of theirs with them
        return model, tokenizer
