"""Codes are moved along directions of a known latent space."""

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from experiments._arithmetic import Digits, Space, attribute_direction, exchange_class, move_attribute, slopes
from experiments._strokes import measure
from tests.experiments.strokes import stroke


def decode(z: Tensor) -> Any:
    """Return a stroke with slant 10 z_1 in degrees and thickness 3 + z_2 / 2 in pixels. z_3 has no effect."""
    images = [stroke(3 + float(code[1]) / 2, 10 * float(code[0])) for code in z.reshape(-1, 3)]
    return dist.Normal(torch.stack(images).reshape(*z.shape[:-1], 28, 28).float(), 1.0).to_event(2)


def encode(x: Tensor) -> Any:
    """Return the code, which a corner of the image stores."""
    return dist.Normal(10 * x[:, 0, :3], 1.0).to_event(1)


@pytest.fixture(scope="module")
def space() -> Space:
    def digits(n: int) -> Digits:
        z = torch.randn(n, 3).clamp(-2, 2)
        x = torch.zeros(n, 28, 28)
        x[:, 0, :3] = z / 10
        return Digits(x, decode(z).mean, (z[:, 0] > 0).long() + 4)

    torch.manual_seed(0)
    vae = pv.VAE(pv.priors.StandardNormal(3), decode, encode)
    vae.register_parameter("somewhere", torch.nn.Parameter(torch.zeros(1)))
    return Space(vae, digits(150), digits(30))


def test_the_direction_of_an_attribute_is_the_slope_of_the_codes(space: Space) -> None:
    direction = attribute_direction(space, "slant")
    assert direction[0] == pytest.approx(0.1, abs=0.005)
    assert direction[1:].abs().max() < 0.03


def test_a_linear_attribute_moves_as_requested(space: Space) -> None:
    move = move_attribute(space, "slant", lambda images: (measure(images)["slant"] > 0).long() + 4, seed=0)
    own, other, random = (slopes(move["asked"], move[key]) for key in ("shown", "other", "random"))
    assert own.mean() == pytest.approx(1, abs=0.05)
    assert abs(other.mean()) < 0.3
    assert np.abs(random).mean() < 0.8
    assert move["readout"] > 0.98
    assert 0.5 < move["kept"] < 0.75  # two standard deviations turn many over


def test_a_class_is_exchanged_by_the_difference_of_the_means(space: Space) -> None:
    codes, classes = exchange_class(space, seed=0)
    assert (classes == 9 - space.test.labels).all()  # there are two
    shift = (codes - space.codes)[:, 0] * (classes - space.test.labels)
    assert shift.mean() == pytest.approx(2 * math.sqrt(2 / math.pi), abs=0.25)


def test_slopes_are_least_squares_through_the_origin() -> None:
    asked = np.array([-2.0, -1.0, 1.0, 2.0])
    shown = np.outer(asked, [0.5, 1.0]) + np.array([[1.0], [1.0], [1.0], [1.0]])
    np.testing.assert_allclose(slopes(asked, shown), [0.5, 1.0])
