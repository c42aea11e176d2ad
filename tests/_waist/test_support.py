"""The common support of a site has numbers as bounds, which combine with tensors on every device."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to

from pyrovae._waist.support import common_support


@pytest.mark.parametrize(
    "distribution", [dist.Uniform(torch.full((3,), -1.0), torch.full((3,), 2.0)), dist.Pareto(1.0, torch.ones(3))]
)
def test_a_common_support_fits_tensors_on_another_device(distribution: dist.TorchDistribution) -> None:
    bijection = biject_to(common_support(distribution.support))
    real = torch.zeros(5, 3, device="meta")  # a device other than that of the bounds
    value = bijection(real)
    assert {value.device, bijection.inv(value).device} == {real.device}
    assert bijection.log_abs_det_jacobian(real, value).device == real.device


def test_bounds_with_several_values_have_no_common_support() -> None:
    assert common_support(dist.Uniform(torch.tensor([0.0, 1.0]), 2.0).support) is None
