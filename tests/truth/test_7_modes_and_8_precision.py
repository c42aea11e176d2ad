"""Programs are evaluated in evaluation mode, and never in half precision."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from tests.truth.programs import Program

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def decoder(rate: float = 0.5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(rate), nn.Linear(8, 4))


def model(x: Tensor, network: Callable[[Tensor], Tensor]) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(network(z), 0.5).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


class Holder:
    def __init__(self, network: nn.Module) -> None:
        self.networks = {"decoder": network}

    def __call__(self, x: Tensor) -> None:
        model(x, self.networks["decoder"])


def by_default(network: nn.Module) -> Program:
    def program(x: Tensor, *, network: nn.Module = network) -> None:
        model(x, network)

    return program


def registered(network: nn.Module) -> Program:
    return lambda x: model(x, pyro.module("decoder", network))


WAYS: dict[str, Callable[[nn.Module], Program]] = {
    "closure": lambda network: lambda x: model(x, network),
    "default": by_default,
    "partial": lambda network: partial(model, network=network),
    "dictionary of an object": Holder,
    "pyro.module": registered,
    "bound forward": lambda network: lambda x, forward=network.forward: model(x, forward),
}


@pytest.mark.parametrize("way", WAYS)
def test_dropout_is_off_in_every_network(way: str) -> None:
    right = pv.evaluation.evaluate(partial(model, network=decoder(0.0).eval()), guide, X, 200, seed=0)
    network = decoder().train()
    found = pv.evaluation.evaluate(WAYS[way](network), guide, X, 200, seed=0)
    np.testing.assert_allclose(found.log_likelihood, right.log_likelihood, atol=1e-4)
    assert all(module.training for module in network.modules())


NOISY: dict[str, Callable[[Tensor], Tensor]] = {
    "functional dropout": lambda z: nn.functional.dropout(z, 0.5) @ torch.ones(2, 4),
    "noise": lambda z: (z + 0.1 * torch.randn_like(z)) @ torch.ones(2, 4),
    "random features": lambda z: z @ torch.randn(2, 4),
}


@pytest.mark.parametrize("name", NOISY)
def test_random_numbers_outside_of_sites_are_refused(name: str) -> None:
    for tool in (pv.evaluation.evaluate, pv.evaluation.ais):
        with pytest.raises(ValueError, match="random numbers of torch outside sample sites"):
            tool(partial(model, network=NOISY[name]), guide, X, 16, seed=0)


def cast(z: Tensor) -> Tensor:
    return (z.bfloat16() @ torch.ones(2, 4, dtype=torch.bfloat16)).float()


def autocast(z: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return z @ torch.ones(2, 4)


def parameter(z: Tensor) -> Tensor:
    return z.half() @ pyro.param("weight", torch.ones(2, 4, dtype=torch.float16))


@pytest.mark.parametrize("network", [cast, autocast, parameter])
def test_a_program_that_computes_in_half_precision_is_refused(network: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"half precision.*precision='bfloat16'"):
        pv.evaluation.evaluate(partial(model, network=network), guide, X, 16, seed=0)


def test_autocast_around_an_evaluation_is_named_and_keeps_vectorized_draws() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = pv.evaluation.evaluate(partial(model, network=decoder()), guide, X, 16, seed=0)
    assert result.attrs["autocast"] == "bfloat16"
