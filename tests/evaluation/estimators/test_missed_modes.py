"""Programs whose guide is broad and whose posterior has several modes or long tails: no wrong number is reliable."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.evaluation import log_likelihood

Program = Callable[[Tensor], None]
Case = tuple[Program, Program, Tensor, Tensor]
GRID = torch.linspace(-12.0, 12.0, 20001, dtype=torch.float64)
ZERO = torch.tensor(0.0, dtype=torch.float64)


def integral(values: Tensor) -> Tensor:
    """Return the log of the integral over ``GRID`` of the exponential of the values, over the last dimension."""
    return values.logsumexp(-1) + math.log(float(GRID[1] - GRID[0]))


def magnitudes(dim: int, factor: float) -> Case:
    """Only |z| is observed, so the posterior has 2^D modes of equal probability; the guide is the prior."""
    z = torch.randn(60, dim)
    x = (factor * z).abs() + 0.3 * torch.randn(60, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((factor * z).abs(), 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    prior = dist.Normal(ZERO, 1.0).log_prob(GRID)
    exact = integral(prior + dist.Normal((factor * GRID).abs(), 0.3).log_prob(x.double()[..., None])).sum(-1)
    return model, guide, x, exact


def parabola(dim: int, curvature: float, scale: float) -> Case:
    """The observation depends on z1 through its square, so the posterior is curved and has two modes for large x."""
    z = torch.randn(60, dim)
    x = curvature * z**2 + scale * torch.randn(60, dim) + scale * torch.randn(60, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(curvature * z1**2, scale).to_event(1))
            pyro.sample("x", dist.Normal(z2, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(x, scale).to_event(1))

    likelihood = dist.Normal(curvature * GRID**2, scale * 2**0.5).log_prob(x.double()[..., None])
    return model, guide, x, integral(dist.Normal(ZERO, 1.0).log_prob(GRID) + likelihood).sum(-1)


def counts(dim: int, scale: float) -> Case:
    """Poisson counts with log-normal rates; the posteriors of small counts have long tails."""
    x = torch.poisson((scale * torch.randn(60, dim) - 1).exp())

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(-torch.ones(dim), scale).to_event(1))
            pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + 0.3).log(), 1 / (x + 0.5).sqrt()).to_event(1))

    exact = integral(
        dist.Normal(ZERO - 1, scale).log_prob(GRID) + dist.Poisson(GRID.exp()).log_prob(x.double()[..., None])
    )
    return model, guide, x, exact.sum(-1)


CASES = {
    "4 modes": (lambda: magnitudes(2, 2.0), 0.7),
    "16 modes": (lambda: magnitudes(4, 1.0), 0.6),
    "two curved modes": (lambda: parabola(1, 1.0, 0.3), 0.8),
    "1,024 curved modes": (lambda: parabola(10, 0.5, 0.5), 0.0),
    "counts": (lambda: counts(10, 2.0), 0.95),
}


@pytest.mark.parametrize("name", CASES)
def test_estimates_that_are_called_reliable_are_right(name: str) -> None:
    make, least = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, guide, x, exact = make()
    results: Any = log_likelihood(model, guide, x, seed=0)
    reliable = results.reliable.values
    errors = (results.log_likelihood.values - exact.numpy())[reliable]
    errors_in_units = abs(errors) / results.mcse.values[reliable]
    assert reliable.mean() >= least
    spread = float((results.mcse.values[reliable] ** 2).mean()) ** 0.5
    assert abs(errors.mean()) < 0.03 + 4 * spread / len(errors) ** 0.5
    assert (errors_in_units < 2).mean() > 0.8
    assert np.median(abs(errors)) < 0.1
