r"""EM for a Gaussian mixture that is a Pyro program.

With p(z = k) = pi_k and p(x | z = k) = N(mu_k, Sigma_k), for any q(z),

    log p(x) = ELBO(q, theta) + KL(q || p(z | x, theta)).

The E step sets q to the posterior, which Pyro computes by enumeration of z. The KL is then 0, and the bound equals
log p(x). The M step moves theta to the maximum of the bound, in closed form:

    N_k = sum_n q_nk,  pi_k = N_k / N,  mu_k = sum_n q_nk x_n / N_k,
    Sigma_k = sum_n q_nk (x_n - mu_k) (x_n - mu_k)^T / N_k.

log p(x) then increases by at least as much as the bound, and the difference is the new KL. The three terms are computed
independently (torch's density of a mixture, an enumerated ``TraceEnum_ELBO``, Bayes' rule), so the identity is a check.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

import pyrovae as pv


class Parameters(NamedTuple):
    """theta: weights (K,), means (K, D) and covariances (K, D, D)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


class HalfStep(NamedTuple):
    """State of EM after a step: parameters, and a categorical q(z) for each datum."""

    iteration: int
    step: str
    theta: Parameters
    q: dist.Categorical


def model(x: Tensor, theta: Parameters) -> None:
    """Run the mixture as a Pyro program, whose z is to be enumerated."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(theta.weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(theta.means[z], theta.covariances[z]), obs=x)


def guide(x: Tensor, q: dist.Categorical) -> None:
    """Run a guide with any q(z), which is enumerated too."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", q, infer={"enumerate": "parallel"})


def no_guide(x: Tensor) -> None:
    """Run a guide without sites, which leaves z to the model."""


def e_step(x: Tensor, theta: Parameters) -> dist.Categorical:
    """Return the q(z) that maximizes the bound: p(z | x, theta)."""
    return TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(partial(model, theta=theta), no_guide, x)["z"]


def m_step(x: Tensor, q: dist.Categorical) -> Parameters:
    """Return the parameters that maximize the bound: moments of the data, weighted by q."""
    sizes = q.probs.sum(0)
    means = q.probs.T @ x / sizes[:, None]
    centred = x - means[:, None]
    covariances = torch.einsum("nk,kni,knj->kij", q.probs, centred, centred) / sizes[:, None, None]
    return Parameters(sizes / len(x), means, covariances)


def log_likelihood(x: Tensor, theta: Parameters) -> float:
    """Return log p(x | theta), nats summed over the data."""
    components = dist.MultivariateNormal(theta.means, theta.covariances)
    return float(dist.MixtureSameFamily(dist.Categorical(theta.weights), components).log_prob(x).sum())


def elbo(x: Tensor, theta: Parameters, q: dist.Categorical) -> float:
    """Return the ELBO, nats summed over the data. z is enumerated, so there is no Monte Carlo error."""
    return -TraceEnum_ELBO(max_plate_nesting=1).loss(partial(model, theta=theta), partial(guide, q=q), x)


def gap(x: Tensor, theta: Parameters, q: dist.Categorical) -> float:
    """Return KL(q || p(z | x, theta)) by Bayes' rule, nats summed over the data."""
    of_component = dist.MultivariateNormal(theta.means, theta.covariances).log_prob(x[:, None])
    return float(kl_divergence(q, dist.Categorical(logits=theta.weights.log() + of_component)).sum())


def start(x: Tensor, components: int, seed: int) -> HalfStep:
    """Return the initial state: means at random data, the covariance of all data, and a uniform q."""
    chosen = np.random.RandomState(seed).choice(len(x), components, replace=False)
    weights = x.new_full((components,), 1 / components)
    theta = Parameters(weights, x[chosen], x.T.cov().expand(components, -1, -1))
    return HalfStep(0, "start", theta, dist.Categorical(weights.expand(len(x), -1)))


def climb(x: Tensor, state: HalfStep, tolerance: float, max_iterations: int) -> Iterator[HalfStep]:
    """Yield the initial state, and the states after alternating E and M steps until log p(x) converges."""
    yield state
    before = log_likelihood(x, state.theta)
    for iteration in range(1, max_iterations + 1):
        q = e_step(x, state.theta)
        yield HalfStep(iteration, "E", state.theta, q)
        state = HalfStep(iteration, "M", m_step(x, q), q)
        yield state
        now = log_likelihood(x, state.theta)
        if now - before < tolerance * len(x):
            return
        before = now


def load(classes: tuple[int, ...]) -> Tensor:
    """Return digits of the given classes by two principal components, in units of the grey range, float64."""
    splits = pv.data.digits()
    if splits.labels is None:
        raise ValueError("The data have no labels.")
    images = splits.train[torch.isin(splits.labels[0], torch.tensor(classes))].flatten(1).double()
    centred = images - images.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
