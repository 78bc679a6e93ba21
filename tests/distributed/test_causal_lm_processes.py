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
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule

from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.models.causal_lm import CausalLM, fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM

DEFENSES = ["full", "lora", "reft"]
SHARDED = [("llama", "full"), ("llama", "lora"), ("llama", "dora"), ("llama", "reft"), ("qwen2", "full")]


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
    if name in ("lora", "dora"):
        defense.adapter.lora_dropout = 0.0  # which is drawn for other rows in two processes
    torch.manual_seed(0)
    adapted = defense._adapted(PretrainedLM("tiny", str(folder), dtype="float32").load()[0])
    module = CausalLM(adapted, lr=1e-3, clip=1.0, micro_batch_size=1, stage=name)
    start = {key: weight.double() for key, weight in module.state_dict().items()}
    made = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False, **trainer)
    fit_causal_lm(module, rows(), epochs=2, batch_size=3, trainer=made, seed=0)
    marks = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
    assert not [part for part in module.model.modules() if type(part).__name__.startswith("FSDP")]
    assert not [part for part in module.model.modules() for mark in marks if hasattr(part, mark)]
    assert {type(p) for p in module.model.parameters()} == {torch.nn.Parameter}
    return {"losses": module.losses, "way": {key: w.double() - start[key] for key, w in module.state_dict().items()}}


def process(rank: int, port: int, models, folder) -> None:
    exchanged: list[bool] = []
    sync, block = FSDPModule.set_requires_gradient_sync, DDPStrategy.block_backward_sync
    FSDPModule.set_requires_gradient_sync = lambda self, on: exchanged.append(on) or sync(self, on)
    DDPStrategy.block_backward_sync = lambda self: exchanged.append(False) or block(self)
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
        trained["ddp", "llama", name] = fit(models["llama"], name, strategy=strategy, devices=2)
        trained["ddp", "llama", name]["exchanged"] = exchanged[:]
        exchanged.clear()
    for family, name in SHARDED:
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
        strategy.cluster_environment = LightningEnvironment()
        trained["fsdp", family, name] = fit(models[family], name, strategy=strategy, devices=2)
        trained["fsdp", family, name]["exchanged"] = exchanged[:]
        exchanged.clear()
    torch.save(trained, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory, tiny_lms, in_two_processes):
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    in_two_processes(process, port, tiny_lms, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), SHARDED)
def test_two_processes_train_what_one_trains(by_rank, tiny_lms, family, name):
    alone = fit(tiny_lms[family], name, devices=1)
    assert len(alone["losses"]) == 6
    shared = [ranks[key] for ranks in by_rank for key in ranks if key[1:] == (family, name)]
    assert len(shared) >= 2
    for trained in shared:
        assert trained["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert trained["way"].keys() == alone["way"].keys()
        for key, way in alone["way"].items():
            assert float((trained["way"][key] - way).abs().max()) < 1e-5


@pytest.mark.slow
def test_gradients_are_exchanged_once_a_step_where_there_is_room_for_them(by_rank):
    """Two parts of one row in two steps of an epoch, one in the third; sharded full tuning has no room."""
    found = {key: trained["exchanged"] for key, trained in by_rank[0].items()}
    assert found["ddp", "llama", "full"] == [False, False] * 2
    assert found["fsdp", "llama", "lora"] == [False, True, False, True, True] * 2
    assert found["fsdp", "llama", "full"] == [True] * 10
