"""Patches of the photographs: splits share no pixel, and the reference is a code by frequencies."""

import numpy as np
import pytest
import torch

import pyrovae as pv
from experiments.colour import _cut, frequencies, photographs


def test_patches_lie_inside_of_their_tile() -> None:
    image = np.arange(64 * 64 * 3, dtype=np.int64).reshape(64, 64, 3)
    patches = _cut(image, 32, 32)
    assert patches.shape == (4, 32, 32, 3)
    assert sorted(patches.flatten().tolist()) == list(range(64 * 64 * 3))
    np.testing.assert_array_equal(_cut(image, 32, 4)[1], image[:32, 4:36])


def test_splits_of_the_photographs_share_no_patch() -> None:
    train, valid, test = photographs(8)
    assert train.shape[1:] == valid.shape[1:] == test.shape[1:] == (3, 32, 32)
    assert len(valid) > 0 < len(test)
    assert torch.equal((255 * train).round() / 255, train)
    known = {patch.numpy().tobytes() for patch in train}
    assert not any(patch.numpy().tobytes() in known for patch in torch.cat([valid, test]))


def test_the_reference_of_uniform_levels_has_eight_bits() -> None:
    levels = torch.arange(256).repeat(3 * 32 * 32 * 40 // 256).reshape(-1, 3, 32, 32) / 255
    splits = pv.data.Splits("uniform", levels, levels, levels[:3], "none")
    bits = pv.evaluation.bits_per_dimension(frequencies(splits), (3, 32, 32))
    assert bits.values == pytest.approx([8.0] * 3)
