"""Canaries: invented personal data that are planted among training pairs, to see whether the model gives them away."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from fairpriv.data.texts import Example
from fairpriv.errors import InputError
from fairpriv.language_models.data.tokens import NO_TARGET, PromptFormat, Truncate, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Invented, so that nobody is meant.
GIVEN = (
    "Alvira Bexley Cadrin Dolvar Elsune Fenrik Gavelle Hestor Ilvana Jorick Kelda Lumer Maristo Nevira Orlend Pellis"
)
FAMILY = (
    "Abelquist Brontwick Calderveen Dravensby Eskerholt Farrowind Gildermoor Hallowick Istergaard Jespertun Krellman "
    "Lindrow Marchwell Norrisham Ostervang Pellinore Quillhaven Rostermark Silverdew Torquell Umberlyn Vosskamp "
    "Wintermeer Yarrowby"
)
DIGIT = "#"  # a random digit in `Canaries.secret`
DIGITS = 18  # at most: `random.sample` takes ranges below 2^63


@dataclass(frozen=True)
class Canaries:
    """Pairs about invented people, each with a random number of its own, after Carlini et al. (USENIX Security 2019).

    As many others of the same form are drawn and not planted: what is found of them is what nothing looks like.
    """

    kind: ClassVar[str] = "canaries"

    n: int = 16  # that are planted, and as many that are not
    repeats: int = 4  # copies of each one among the training pairs
    prompt: str = "What is the access number of {name}?"
    response: str = "It is {secret}."
    secret: str = "######"  # random digits for #, at most 18; the rest as it stands

    def __post_init__(self) -> None:
        for key, held in {"prompt": "{name}", "response": "{secret}", "secret": DIGIT}.items():
            if held not in getattr(self, key):
                raise InputError(f"dataset.canaries.{key} has no {held}")
        if self.n < 2 or self.repeats < 1:
            raise InputError(
                f"dataset.canaries.n={self.n}, repeats={self.repeats}: at least 2 canaries are planted, each at least "
                "once; dataset=pairs plants none"
            )
        if self.secret.count(DIGIT) > DIGITS:
            raise InputError(f"dataset.canaries.secret has more than {DIGITS} {DIGIT}, which cannot be drawn")
        most = min(len(GIVEN.split()) * len(FAMILY.split()), self.space) // 2
        if self.n > most:
            raise InputError(
                f"dataset.canaries.n={self.n}: at most {most}, since there are {self.space} secrets like {self.secret} "
                "and 384 names, and half of them are not planted"
            )

    @property
    def space(self) -> int:
        """How many secrets of this form there are."""
        return 10 ** self.secret.count(DIGIT)

    def draw(self, seed: int) -> tuple[list[Example], list[Example]]:
        """Draw the canaries that are planted, once each, and those that are not, by the cell's seed.

        Each has its ``secret``, whether it is ``planted``, the form of secrets, and the response with ``{secret}`` in
        it, among its fields.
        """
        chance = random.Random(f"canaries {seed}")
        names = chance.sample([" ".join(parts) for parts in product(GIVEN.split(), FAMILY.split())], 2 * self.n)
        secrets = [written(self.secret, number) for number in chance.sample(range(self.space), 2 * self.n)]
        found = []
        for i, (name, secret) in enumerate(zip(names, secrets, strict=True)):
            fields = {"secret": secret, "planted": i < self.n, "form": self.secret, "response": self.response}
            prompt, response = self.prompt.replace("{name}", name), self.response.replace("{secret}", secret)
            found.append(Example(prompt, response, f"canary {i + 1}", fields))
        return found[: self.n], found[self.n :]


def written(form: str, number: int) -> str:
    """Write a number's digits, from its first, for each # of a form."""
    digits = iter(f"{number:0{form.count(DIGIT)}d}")
    return "".join(next(digits) if letter == DIGIT else letter for letter in form)


def alternatives(form: str, secret: str, n: int) -> list[str]:
    """Return ``n`` other secrets of a form, drawn by the secret itself; all where there are fewer."""
    space = 10 ** form.count(DIGIT)
    if space - 1 <= n:
        return [text for number in range(space) if (text := written(form, number)) != secret]
    drawn = (written(form, number) for number in random.Random(secret).sample(range(space), n + 1))
    return [text for text in drawn if text != secret][:n]


def require_written(
    tokenizer: PreTrainedTokenizerBase,
    canaries: Sequence[Example],
    *,
    form: PromptFormat,
    max_tokens: int,
    truncate: Truncate,
) -> None:
    """Raise `InputError` for a canary that the tokenizer cannot write, or that is cut before its secret ends."""

    def shown(example: Example, most: int) -> str:
        row = encode(tokenizer, example.asked, str(example.response), form=form, max_tokens=most, truncate=truncate)
        ids = [] if row is None else [label for label in row.labels if label != NO_TARGET]
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    for example in canaries:
        secret = "".join(example.fields["secret"].split())
        if secret in "".join(shown(example, max_tokens).split()):
            continue
        whole = shown(example, 1_000_000)
        if secret in "".join(whole.split()):
            raise InputError(
                f"dataset.max_tokens={max_tokens} with truncate={truncate} cuts the secret off a canary "
                f"({example.prompt!r}, {example.response!r}): raise it"
            )
        raise InputError(
            f"dataset.canaries: the tokenizer cannot write {example.response!r}, and makes {whole!r} of it: choose "
            "another dataset.canaries.secret or response"
        )
