import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors on shared cores: more threads only wait for one another."""
    torch.set_num_threads(1)
