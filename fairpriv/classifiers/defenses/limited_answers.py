"""Defences that change only what a trained model tells of its probabilities; the predicted label never changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fairpriv.classifiers.contract import ClassifierOwner, Defended, Defense, PoolOwner
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.classifier import logits, predict
from fairpriv.classifiers.nets.models import Models
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.classifiers.nets.pool_training import member_seed
from fairpriv.errors import InputError
from fairpriv.undefended import Undefended


@dataclass
class LimitedAnswers(Defense):
    """A trained network behind a filter of its answers: labels only, the top class, rounding, or noise.

    Nothing is trained for it, and accuracy stays what it was. It hides something only from those who ask the model, so
    attacks that read weights are left out; the robustness of the network is measured on its gradients all the same, but
    for ``label``, where accuracy under attack is left out.

    ``label`` tells the predicted label (Choquette-Choo et al., ICML 2021, show what that still reveals). ``top1`` tells
    only the largest probability, and spreads the rest evenly. ``rounded`` rounds to ``digits`` decimals (Shokri et al.,
    S&P 2017, on both). ``noise`` adds normal noise to the log probabilities and keeps the label, after the idea of
    MemGuard (Jia et al., CCS 2019), whose noise is instead made against one attack. The noise is a function of a row
    and a secret key, so that asking twice reveals nothing more; asking about near copies of a row does.

    Attributes:
        estimator: the defence whose network answers; ``none``: the base model, trained on G_b.
        answers: what is told.
        digits: decimals of ``rounded``.
        noise: standard deviation of ``noise``, in log probabilities.
    """

    kind: ClassVar[str] = "limited_answers"

    name: str = "rounded"
    estimator: Defense = field(default_factory=Undefended)
    answers: Literal["label", "top1", "rounded", "noise"] = "rounded"
    digits: int = 1
    noise: float = 1.0

    one_network: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (isinstance(self.estimator, Defense) and self.estimator.one_network):
            raise InputError(
                f"defense.estimator={getattr(self.estimator, 'name', self.estimator)} leaves no single network, whose "
                "answers could be limited: choose none, rehearsal, dp_sgd or another that trains a network"
            )
        if not 0 <= self.digits <= 15 or not 0 <= self.noise < float("inf"):
            raise InputError(
                f"defense.digits={self.digits}, noise={self.noise}: digits are from 0 to 15, noise is a number of at "
                "least 0"
            )

    @property
    def control(self) -> bool:
        """Whether its estimator is a null control."""
        return self.estimator.control

    @property
    def answers_only(self) -> bool:
        """Whether it tells labels."""
        return self.answers == "label"

    def refuse_inputs(self) -> None:
        """Refuse the inputs that its estimator refuses."""
        self.estimator.refuse_inputs()

    def defend(self, owner: ClassifierOwner) -> Defended:
        """Train the estimator, and limit what it tells."""
        if self.answers == "top1" and len(owner.data.label_names) == 2:
            raise InputError(
                "defense.answers=top1 hides nothing where there are two labels, since the largest probability gives "
                "the other one: choose label, rounded or noise"
            )
        before = self.estimator.defend(owner)
        net, key = cast(nn.Module, before.net), member_seed(owner.seed, 0)
        if self.answers == "label":
            return Defended(None, before.measured, lambda rows: predict(net, rows.X), before.rows, budget=before.budget)

        def tells(rows: Rows) -> Tensor:
            return self.limit(logits(net, rows.X).softmax(1), rows.X, key)

        return Defended(net, before.measured, rows=before.rows, tells=tells, budget=before.budget)

    def defend_pool(self, owner: PoolOwner) -> Limited:
        """Limit the answers of every member; each has a key of its own."""
        pool = cast(Pool, self.estimator.defend_pool(owner))
        return Limited(pool, self, [member_seed(owner.seed, member) for member in range(len(pool))])

    def limit(self, probs: Tensor, X: Tensor, key: int) -> Tensor:
        """Return what is told of one model's probabilities ``[N, C]`` on rows ``[N, ...]``; rows sum to 1."""
        top, label = probs.max(-1, keepdim=True)
        hot = one_hot(label[..., 0], probs.shape[-1]).to(probs)
        if self.answers == "label":
            return hot
        if self.answers == "top1":
            return torch.where(hot.bool(), top, (1 - top) / (probs.shape[-1] - 1))
        if self.answers == "rounded":
            rounded = probs.round(decimals=self.digits)
            ahead = rounded.gather(-1, label)
            tied = ((rounded == ahead).sum(-1, keepdim=True) > 1).to(probs)
            rounded = rounded + hot * tied * 0.1**self.digits / 4  # the label stays the first one
            return rounded / rounded.sum(-1, keepdim=True)
        disturbed = (probs.clamp(min=1e-12).log() + self.noise * keyed_noise(X, key, probs.shape[-1])).softmax(-1)
        ahead, first = disturbed.max(-1, keepdim=True)
        own = disturbed.gather(-1, label)
        return disturbed.scatter(-1, first, own).scatter(-1, label, ahead)  # the label's probability stays the largest


def keyed_noise(X: Tensor, key: int, columns: int) -> Tensor:
    """Return standard normal noise ``[N, columns]`` that is a function of the rows ``[N, ...]`` and a key.

    Rows are hashed by their bits, with random multipliers from the key and the last steps of MurmurHash3, so equal rows
    have equal noise and rows that differ a little have noise that looks independent. It is no cryptographic hash.
    """
    whole = X.flatten(1).float() + 0.0  # -0.0 becomes 0.0: the same row must not get another draw by its sign
    bits = whole.contiguous().view(torch.int32).long()
    generator = torch.Generator().manual_seed(key)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1] + 1, columns), generator=generator)
    hashed = bits @ factors[:-1] + factors[-1]  # modulo 2^64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        # Upper bits move down, so that a constant difference of rows does not stay one.
        hashed = (hashed ^ ((hashed >> 33) & (2**31 - 1))) * (factor - 2**64)
    hashed = hashed ^ ((hashed >> 33) & (2**31 - 1))
    uniform = ((hashed >> 11) + 2**52).double() / 2**53
    return torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)).float()


class Limited(Models):
    """M networks behind one filter of answers."""

    def __init__(self, networks: Pool, rule: LimitedAnswers, keys: Sequence[int]) -> None:
        self.networks, self.rule, self.keys = networks, rule, keys
        self.diverged, self.told = networks.diverged, networks.told

    def __len__(self) -> int:
        return len(self.networks)

    def __getitem__(self, index: Sequence[int]) -> Limited:
        return Limited(self.networks[index], self.rule, [self.keys[i] for i in index])

    def predict_proba(self, X: Tensor, *groups: Tensor) -> Tensor:
        """Return what every member tells: P(y=1) ``[M, N]``, or ``[M, N, C]``, at features ``[N, F]``."""
        probs = self.networks.predict_proba(X)
        if probs.dim() == 3:
            return torch.stack([self.rule.limit(own, X, key) for own, key in zip(probs, self.keys, strict=True)])
        both = torch.stack([1 - probs, probs], -1)
        return torch.stack([self.rule.limit(own, X, key)[:, 1] for own, key in zip(both, self.keys, strict=True)])
