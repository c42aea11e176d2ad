"""Bits per dimension: discrete and continuous likelihoods of the same levels are comparable."""

import math

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv


def test_bits_of_a_uniform_distribution_over_levels() -> None:
    discrete = 12 * math.log(1 / 256)
    assert pv.evaluation.bits_per_dimension(discrete, (3, 4)) == pytest.approx(8)
    assert pv.evaluation.bits_per_dimension(0.0, (3, 4), bin_width=1 / 256) == pytest.approx(8)


def test_a_density_of_dequantized_values_bounds_the_bits_of_its_own_levels() -> None:
    torch.manual_seed(0)
    p = dist.Beta(2.0, 5.0)
    mass = p.sample((200_000,)).histc(16, 0, 1) / 200_000
    levels = torch.multinomial(mass, 20_000, replacement=True)
    discrete = mass.log()[levels].mean().item()
    continuous = p.log_prob(pv.data.dequantize(levels / 15, levels=16)).mean().item()
    bits = [
        pv.evaluation.bits_per_dimension(discrete, (1,)),
        pv.evaluation.bits_per_dimension(continuous, (1,), bin_width=1 / 16),
    ]
    assert bits[0] < bits[1] < bits[0] + 0.05


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"event_shape must be the shape of a datum, .*got \(\)"):
        pv.evaluation.bits_per_dimension(0.0, ())
    with pytest.raises(ValueError, match="got 0"):
        pv.evaluation.bits_per_dimension(0.0, (3,), bin_width=0)
