"""Quantised weights: refused where they would be trained or edited, and frozen under an adapter (QLoRA)."""

import functools
import subprocess
import sys

import lightning
import pytest
import torch

from fairpriv.cli import CONF
from fairpriv.config import schema
from fairpriv.config.compose import compose, plain
from fairpriv.config.schema import check
from fairpriv.errors import InputError
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.defenses.spin import Spin
from fairpriv.language_models.defenses.supervised_tuning import SupervisedTuning
from fairpriv.language_models.models.causal_lm import CausalLM, fit_causal_lm
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.language_models.models.sharding import require_shardable

FOUR_BITS = "model.quantization={_target_: transformers.BitsAndBytesConfig, load_in_4bit: true}"
ASKED = ["experiment=quickstart_llm", FOUR_BITS]


@pytest.mark.parametrize(
    ("defense", "why"),
    [("full", "defense=full, which trains all"), ("spin", "defense=spin, which edits"), ("lora_spin", "lora_spin, wh")],
)
def test_what_would_change_quantised_weights_is_refused(defense, why):
    with pytest.raises(InputError, match=rf"^model\.quantization with .*{why}"):
        check(plain(compose(CONF, [], [*ASKED, f"defense={defense}"])))


def test_an_adapter_beside_them_is_not_refused():
    check(plain(compose(CONF, [], [*ASKED, "defense=lora"])))


HALF = ["experiment=quickstart_llm", "model.dtype=bfloat16"]


def test_weights_in_half_precision_are_not_trained():
    with pytest.raises(InputError, match=r"^model\.dtype=bfloat16 with defense=full.*set model\.dtype=float32"):
        check(plain(compose(CONF, [], [*HALF, "defense=full"])))
    for beside in (["defense=lora"], ["defense=spin"], ["defense=full", "model.dtype=float32"]):
        check(plain(compose(CONF, [], [*HALF, *beside])))


@pytest.mark.parametrize(
    ("asked", "why"), [(ASKED, "quantised weights are frozen"), (HALF, "half precision rounds most of its steps away")]
)
def test_the_refusal_waits_for_no_heavy_import(asked, why):
    code = f"""
import sys
from fairpriv.cli import main
try:
    main([*{asked!r}, "defense=full", "hydra.mode=RUN"])
except SystemExit as ended:
    assert ended.code == 2, ended.code
assert not {{"torch", "transformers", "lightning"}} & set(sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert why in ended.stderr


def test_weights_whose_files_are_quantised_are_refused_when_they_are_loaded(tiny_lm):
    model = PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]
    model.quantization_method = "gptq"  # what transformers writes down of such files
    with pytest.raises(InputError, match=r"^defense=full trains all weights, and gptq has quantised them"):
        SupervisedTuning("full").check(model)
    lora = SupervisedTuning("lora", adapter=object())
    lora.check(model)
    with pytest.raises(InputError, match=r"^defense=lora merges its adapter into the weights, and gptq"):
        lora.check(model, merged=True)
    with pytest.raises(InputError, match=r"^defense=spin edits single weights, and gptq"):
        Spin("spin", ["fairness", "privacy"]).check(model)
    with pytest.raises(InputError, match=r"^trainer\.strategy=fsdp: weights that gptq quantised"):
        require_shardable(model)


def test_bitsandbytes_that_is_not_installed_is_said_before_a_model_is_looked_for(monkeypatch):
    from transformers import BitsAndBytesConfig

    monkeypatch.setattr("fairpriv.language_models.models.pretrained.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"model\.quantization needs bitsandbytes: pip install 'fairpriv\[bitsand"):
        PretrainedLM("tiny", "owner/nowhere", quantization=BitsAndBytesConfig(load_in_4bit=True))


def test_an_optimiser_of_bitsandbytes_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr(schema, "_spec", lambda top, spec=schema._spec: None if top == "bitsandbytes" else spec(top))
    optimiser = "defense.optimizer={_target_: bitsandbytes.optim.AdamW8bit, _partial_: true}"
    with pytest.raises(InputError, match=r"bitsandbytes is not installed: pip install 'fairpriv\[bitsandbytes\]'"):
        check(plain(compose(CONF, [], ["experiment=quickstart_llm", "defense=full", optimiser])))


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes
def test_an_adapter_is_trained_on_four_bit_weights_that_stay(tiny_lm):
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    model = PretrainedLM("tiny", str(tiny_lm), quantization=BitsAndBytesConfig(load_in_4bit=True)).load()[0]
    lora = SupervisedTuning("lora", adapter=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    module = CausalLM(lora._adapted(model), lr=1e-2, micro_batch_size=2, stage="lora")
    four = {name: p.clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    rows = [Encoded(list(range(3 + n, 13 + n)), [-100] * 4 + list(range(7 + n, 13 + n))) for n in range(4)]
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", devices=1, enable_progress_bar=False)
    fit_causal_lm(module, rows, epochs=3, batch_size=2, trainer=trainer, seed=0)
    assert len(four) == 14
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in four.items())
    assert module.losses[-1] < module.losses[0]
    assert lora._merged(module, rows) is module.model  # a merge would round
