"""Flows of zuko as priors state their support, and estimators that move in this support accept them."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import biject_to

import pyrovae as pv
from pyrovae.distributions import support_of_flow

FLOWS: dict[str, Callable[[], nn.Module]] = {
    "MAF": lambda: zuko.flows.MAF(2, transforms=2, hidden_features=(8,)),
    "NSF": lambda: zuko.flows.NSF(2, transforms=2, hidden_features=(8,)),
    "NICE": lambda: zuko.flows.NICE(2, transforms=2, hidden_features=(8,)),
    "Gaussianization": lambda: zuko.flows.GF(2, transforms=1),
}


class FlowPrior(nn.Module):
    """A program whose prior is a flow of zuko, as in Pyro's tutorial, with normal data."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def model(self, x: Tensor) -> None:
        pyro.module("flow", self.flow)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", ZukoToPyro(self.flow()))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.6).to_event(1))

    def exact(self, x: Tensor) -> np.ndarray:
        """Return log p(x) by a sum over a grid of z."""
        axis = torch.linspace(-6, 6, 241)
        z = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            log_joint = self.flow().log_prob(z) + dist.Normal(z, 0.5).to_event(1).log_prob(x.unsqueeze(1))
        return (log_joint.logsumexp(1) + 2 * math.log(axis[1] - axis[0])).numpy()


@pytest.mark.parametrize("name", FLOWS)
def test_flows_on_real_vectors(name: str) -> None:
    flow: Any = FLOWS[name]()
    for distribution in (flow(), ZukoToPyro(flow()), ZukoToPyro(flow()).expand([3])):
        support = support_of_flow(distribution)
        assert support is not None
        assert support.event_dim == 1
        assert biject_to(support)(torch.zeros(3, 2)).shape == (3, 2)


@pytest.mark.parametrize("other", [dist.Normal(0.0, 1.0), zuko.flows.NCSF(2)(), ZukoToPyro(zuko.flows.NCSF(2)())])
def test_other_supports_are_not_guessed(other: Any) -> None:
    assert support_of_flow(other) is None


@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE"])
def test_annealing_takes_a_flow_prior(name: str) -> None:
    torch.manual_seed(1)
    program, x = FlowPrior(FLOWS[name]()), torch.randn(2, 2)
    options: dict[str, Any] = {"num_temperatures": 12, "num_leapfrog": 2, "seed": 0, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short chains give warnings
        found = pv.evaluation.ais(program.model, program.guide, x, 64, **options)
        bounds = pv.evaluation.bdmc(program.model, program.guide, x, 8, **options)
    assert (np.abs(found.log_likelihood.values - program.exact(x)) < 4 * found.mcse.values + 0.02).all()
    assert all(np.isfinite(column).all() for column in bounds.data_vars.values())


def test_nuts_takes_a_flow_prior() -> None:
    torch.manual_seed(1)
    program, x = FlowPrior(FLOWS["NICE"]()), torch.randn(1, 2)
    options: dict[str, Any] = {"warmup_steps": 20, "num_chains": 2, "seed": 0, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pv.evaluation.nuts(program.model, program.guide, x, 30, **options)
    assert np.abs(found.log_likelihood.values - program.exact(x)).max() < 1
