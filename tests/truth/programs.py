"""Programs that several test modules use, and the comparison of a result with its exact value."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
from scipy import integrate, stats
from torch import Tensor

X_SCALE = 0.3
ROOT_2 = math.sqrt(2)

Program = Callable[..., None]


def normal_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def exact_normal(x: Tensor) -> np.ndarray:
    """log p(x) of ``normal_model``."""
    return stats.norm.logpdf(x.double().numpy(), 0, ROOT_2)


def pair(prior: Callable[[Tensor], Any], posterior: Callable[[Tensor], Any]) -> tuple[Program, Program]:
    """A program with one latent site and normal noise, with a prior and a posterior made from the data."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(x))
            pyro.sample("x", dist.Normal(z, X_SCALE), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


def by_quadrature(x: Tensor, density: Callable[[float], float], low: float, high: float) -> np.ndarray:
    """log p(x) of ``pair`` from the density of its prior."""
    integrals = [
        integrate.quad(lambda z, x=x: density(z) * stats.norm.pdf(x, z, X_SCALE), low, high, limit=200)[0]
        for x in x.double().tolist()
    ]
    return np.log(integrals)


def check_close(results: Any, exact: Any, extra: float = 1e-3) -> None:
    """Compare with five standard errors."""
    error = np.abs(results.log_likelihood.values - np.asarray(exact))
    assert (error <= 5 * results.mcse.values + extra).all(), (error, results.mcse.values)
