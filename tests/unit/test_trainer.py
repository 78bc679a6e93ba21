"""The device that a model is measured on is the one that it is trained on, and is named."""

import pytest
import torch

from fairpriv.run import device_name
from fairpriv.trainer import device_of


@pytest.mark.parametrize(
    ("devices", "expected"), [([3], "cuda:3"), ([2, 0], "cuda:2"), (1, "cuda"), ("auto", "cuda"), (None, "cuda")]
)
def test_a_listed_gpu_is_the_one(monkeypatch, devices, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of({"trainer": {"accelerator": "auto", "devices": devices}}) == torch.device(expected)
    assert device_of({"trainer": {"accelerator": "cpu", "devices": devices}}) == torch.device("cpu")


def test_a_gpu_that_rounds_factors_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert device_name() == "H100"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert device_name() == "H100, float32 products in TF32"
