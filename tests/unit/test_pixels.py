import numpy as np
import pytest
import torch

from fairpriv.classifiers.nets.pixels import PixelMLP
from fairpriv.errors import InputError


def test_a_row_holds_the_mean_colours_of_an_images_squares():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8)).astype(np.uint8)
    reader = PixelMLP(side=2).reader(torch.device("cpu"))
    rows = reader.read(pixels)
    expected = [
        np.mean([pixels[i, colour, 4 * y + a, 4 * x + b] / 255 for a in range(4) for b in range(4)])
        for i in range(5)
        for colour in range(3)
        for y in range(2)
        for x in range(2)
    ]
    assert rows.shape == (5, 12)
    np.testing.assert_allclose(rows.ravel(), expected, rtol=1e-5)
    standard = reader.encode(rows[:4]).transform(rows[:4])
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(0), 1, rtol=1e-4)


def test_its_pools_are_those_of_its_networks_and_dropout_has_none():
    assert PixelMLP(hidden=[7, 5]).pool_hidden() == [7, 5]
    assert [layer.weight.shape for layer in PixelMLP(hidden=[7]).network(12, 2) if hasattr(layer, "weight")] == [
        (7, 12),
        (2, 7),
    ]
    with pytest.raises(InputError, match=r"model\.dropout=0"):
        PixelMLP(dropout=0.1).pool_hidden()
    with pytest.raises(InputError, match=r"model\.side=0"):
        PixelMLP(side=0)
