"""The device that a model is measured on is the one that it is trained on, and is named."""

import multiprocessing

import pytest
import torch

from fairpriv.classifiers.settings import Settings
from fairpriv.config.compose import compose, plain
from fairpriv.config.plugins import CONF
from fairpriv.run import device_name
from fairpriv.trainer import device_of

WARM = multiprocessing.get_context("forkserver")


@pytest.mark.parametrize(
    ("devices", "expected"), [([3], "cuda:3"), ([2, 0], "cuda:2"), (1, "cuda"), ("auto", "cuda"), (None, "cuda")]
)
def test_a_listed_gpu_is_the_one(monkeypatch, devices, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of({"trainer": {"accelerator": "auto", "devices": devices}}) == torch.device(expected)
    assert device_of({"trainer": {"devices": devices}}) == torch.device(expected)  # as Lightning does
    assert device_of({"trainer": {"accelerator": "cpu", "devices": devices}}) == torch.device("cpu")


def test_a_trainer_of_one_s_own_may_leave_the_accelerator_to_lightning(tmp_path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "own.yaml").write_text("_target_: lightning.Trainer\n")
    config = plain(compose(CONF, [tmp_path], ["trainer=own", "logger=none"]))
    assert Settings.read(config).accelerator == "auto"


def names(way):
    """What is set holds for the process."""
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda device: {None: "H100", 1: "T4"}[device.index]
    config = {"trainer": {"accelerator": "auto"}}
    assert device_name(config) == "H100"
    assert device_name({"trainer": {"accelerator": "gpu", "devices": [1]}}) == "T4"
    assert device_name({"trainer": {"accelerator": "cpu"}}).startswith("cpu, ")
    if way == "of old":
        torch.set_float32_matmul_precision("high")
    elif way == "of the products":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.backends.fp32_precision = "tf32"
    assert device_name(config) == "H100, float32 products in TF32", device_name(config)


@pytest.mark.parametrize("way", ["of all backends", "of old", "of the products"])
def test_a_gpu_that_rounds_factors_says_so_however_it_was_told(way):
    process = WARM.Process(target=names, args=(way,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
