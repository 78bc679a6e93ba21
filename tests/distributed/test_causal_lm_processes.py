"""A language model that two processes fine-tune is the one that a single process fine-tunes."""

import functools
import logging
import os
import socket

import lightning
import pytest
import torch
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import multiprocessing

from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.models.causal_lm import CausalLM, fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM

DEFENSES = ["full", "lora", "reft"]


def rows():
    """Seven rows in steps of three: two and one a process, and at the end one and none."""
    g = torch.Generator().manual_seed(0)
    made = []
    for targets in (1, 30, 5, 11, 2, 60, 8):
        ids = torch.randint(3, 290, (4 + targets,), generator=g).tolist()
        made.append(Encoded(ids, [-100] * 4 + ids[4:]))
    return made


def fit(folder, name, **trainer):
    node = compose(CONF, [], [f"defense={name}"]).defense
    defense = instantiate(node, _convert_="all")
    if name == "lora":
        defense.adapter.lora_dropout = 0.0  # which is drawn for other rows in two processes
    torch.manual_seed(0)
    adapted = defense._adapted(PretrainedLM("tiny", str(folder), dtype="float32").load()[0])
    module = CausalLM(adapted, lr=1e-3, clip=1.0, micro_batch_size=1, stage=name)
    start = {key: weight.double() for key, weight in module.state_dict().items()}
    made = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False, **trainer)
    fit_causal_lm(module, rows(), epochs=2, batch_size=3, trainer=made, seed=0)
    return {"losses": module.losses, "way": {key: w.double() - start[key] for key, w in module.state_dict().items()}}


def process(rank: int, port: int, model, folder) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    trained = {}
    for name in DEFENSES:
        strategy = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
        trained[name] = fit(model, name, strategy=strategy, devices=2)
    torch.save(trained, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory, tiny_lm):
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(process, args=(port, tiny_lm, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFENSES)
def test_two_processes_train_what_one_trains(by_rank, tiny_lm, name):
    alone = fit(tiny_lm, name, devices=1)
    assert len(alone["losses"]) == 6
    for trained in by_rank:
        assert trained[name]["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert trained[name]["way"].keys() == alone["way"].keys()
        # As a whole: Adam turns the rounding of a gradient near zero into a visible step of that weight.
        way, expected = (torch.cat([w.flatten() for w in one["way"].values()]) for one in (trained[name], alone))
        assert (way - expected).norm() < 0.01 * expected.norm()
