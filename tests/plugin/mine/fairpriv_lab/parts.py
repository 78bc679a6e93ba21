from dataclasses import dataclass
from pathlib import Path

import torch

from fairpriv.classifiers.attacks.attack import Attack
from fairpriv.classifiers.contract import Defended, Defense
from fairpriv.classifiers.nets.pool import Pool
from fairpriv.functional.intervals import wilson_interval
from fairpriv.identity import content_hash
from fairpriv.language_models.judges.judge import Judge, Verdict
from fairpriv.language_models.scorers.scorer import SCORE, Scored, Scorer
from fairpriv.metrics import Metric

SIGMA = Metric("defense/sigma", "noise", "Deviation of the noise on weights.", low=0.0)


@dataclass
class Shipped:
    """A file beside this one."""

    file: str

    def locate(self):
        return [Path(__file__).with_name(self.file)]

    def digest(self):
        return content_hash(self.locate()[0].read_text())


@dataclass
class MeanOutput(Attack):
    name: str

    def run(self, game):
        zero, one = (probs.mean() for probs in game.shadow_probs(self.name))
        return game.result(self.name, (one - zero) * game.victim_probs.mean(1))


@dataclass
class Noise(Defense):
    name: str
    sigma: float

    def defend(self, owner):
        net, generator = owner.base(), torch.Generator().manual_seed(owner.seed)
        with torch.no_grad():
            for weight in net.parameters():
                weight += self.sigma * torch.randn(weight.shape, generator=generator)
        return Defended(net, SIGMA.of(self.sigma))

    def defend_pool(self, owner):
        pool = owner.base()
        return Pool([(weight + self.sigma, bias) for weight, bias in pool.weights], pool.diverged)


@dataclass
class Wordlist(Judge):
    name: str
    unsafe: list[str]

    def judge(self, prompts, responses):
        return [Verdict(not any(word in text for word in self.unsafe), "words") for text in responses]

    def digest(self):
        return self.unsafe


@dataclass
class Brevity(Scorer):
    words: int
    required, optional = ("prompt",), ()
    answered = True

    def score(self, subject, examples, responses):
        short = [len(response.split()) <= self.words for response in responses]
        hits, n = sum(short), len(short)
        return Scored(SCORE.of(hits / n, wilson_interval(hits, n)), [{"response": r} for r in responses], short)

    def digest(self):
        return self.words
