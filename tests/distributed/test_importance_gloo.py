"""Scores of two processes, each with its own samples, are those of one process with all of them."""

import pytest
import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from fairpriv.functional import importance_scores

ARMS = {"plain": {}, "groups": {"memory_budget": 6000}, "checkpointed": {"gradient_checkpointing": True}}


def make() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50))


def batches(count=3):
    g = torch.Generator().manual_seed(1)
    ids = [torch.randint(50, (rows, 7), generator=g) for rows in (2, 1, 4)[:count]]
    return [{"input_ids": part, "labels": part} for part in ids]


def score(rank: int, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(make())
    found = {name: importance_scores(model, batches()[rank::2], target="all", **how) for name, how in ARMS.items()}
    found["idle rank"] = importance_scores(model, batches() if rank == 0 else [], target="all")
    broken = batches()
    broken[0]["labels"] = torch.full((2, 7), -100)
    try:
        importance_scores(model, broken if rank == 0 else batches())
    except (ValueError, RuntimeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory, in_two_processes):
    folder = tmp_path_factory.mktemp("importance")
    in_two_processes(score, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", [*ARMS, "idle rank"])
def test_every_rank_has_the_scores_over_all_samples(by_rank, name):
    alone = importance_scores(make(), batches(), target="all")
    for found in by_rank:
        assert list(found[name]) == list(alone)
        for weight, score in alone.items():
            torch.testing.assert_close(found[name][weight], score, rtol=1e-4, atol=1e-4 * float(score.max()))


def test_no_rank_waits_for_one_that_failed(by_rank):
    assert by_rank[0]["error"].startswith("ValueError: sample 0 (row 0 of its batch) has no target token")
    assert by_rank[1]["error"] == "DistError: another process could not score its samples; its own error says why"
