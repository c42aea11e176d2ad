"""Quasi-Monte Carlo draws follow the guide and are unbiased, and their intervals cover."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_median
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.distributions import MultivariateNormal, NormalizingFlow
from pyrovae.evaluation.estimators.rqmc import _quantile
from tests.oracle import Oracle
from tests.scripts import SCRIPTS, GammaPoisson

LOC = torch.tensor([0.5, -1.0], dtype=torch.float64)
TRIL = torch.tensor([[1.0, 0.0], [0.7, 0.5]], dtype=torch.float64)
FLOW = pv.flows.inverse_autoregressive(2).double()
DISTRIBUTIONS: dict[str, Callable[[], Any]] = {  # made in the test, because torch imports sympy for some
    "Normal": lambda: dist.Normal(LOC, 2.0).to_event(1),
    "Laplace": lambda: dist.Laplace(LOC, 2.0).to_event(1),
    "LogNormal": lambda: dist.LogNormal(LOC, 0.5).to_event(1),
    "own MultivariateNormal": lambda: MultivariateNormal(LOC, scale_tril=TRIL),
    "MultivariateNormal": lambda: dist.MultivariateNormal(LOC, scale_tril=TRIL),
    "LowRankMultivariateNormal": lambda: dist.LowRankMultivariateNormal(LOC, TRIL[:, :1], torch.ones(2).double()),
    "NormalizingFlow": lambda: NormalizingFlow(dist.Normal(LOC, 1.0).to_event(1), FLOW()),
}


def products(draws: Tensor) -> Tensor:
    """Return the products of centred coordinates. Their means are the covariances."""
    centred = draws - draws.mean(0)
    return (centred[:, :, None] * centred[:, None]).flatten(1)


def assert_same_mean(quasi: Tensor, plain: Tensor) -> None:
    """Assert that two means differ by at most five standard errors of the plain one."""
    assert ((quasi.mean(0) - plain.mean(0)).abs() < 5 * plain.std(0) / len(plain) ** 0.5).all()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_uniform_points_become_draws(name: str) -> None:
    fn = DISTRIBUTIONS[name]()
    uniform = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(2**14, dtype=torch.float64)
    with torch.no_grad():
        draws, others = _quantile("z", fn.expand([2**14]), uniform), fn.sample((200_000,))
    assert draws.dtype == torch.float64
    assert_same_mean(draws, others)
    assert_same_mean(products(draws), products(others))
    levels = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.98], dtype=torch.float64)
    torch.testing.assert_close(draws.quantile(levels, 0), others.quantile(levels, 0), atol=0.04, rtol=0.02)


@pytest.mark.parametrize(("scale", "shift"), [(1.5, 0.0), (1.2, 0.5)])
def test_the_error_covers(scale: float, shift: float) -> None:
    oracle = Oracle(scale, shift)
    x = oracle.data(2000)
    result = pv.evaluation.rqmc(oracle.vae.model, oracle.vae.guide, x, 1024, seed=0)
    plain = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 1024, seed=0)
    error = result.log_likelihood.values - oracle.log_likelihood(x).numpy()
    assert 0.93 <= (abs(error) < 1.96 * result.mcse.values).mean() <= 0.97
    assert result.mcse.mean() < plain.mcse.mean() / 2
    bound = result.elbo.values - oracle.elbo(x).numpy()
    assert 0.93 <= (abs(bound) < 1.96 * result.elbo_mcse.values).mean() <= 0.97


def test_data_have_points_of_their_own() -> None:
    oracle = Oracle(1.5)
    x = oracle.data(1).expand(100, -1)
    result = pv.evaluation.rqmc(oracle.vae.model, oracle.vae.guide, x, 64, seed=0)
    assert len(set(result.log_likelihood.values.tolist())) == 100


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: type(script).__name__)
def test_any_program(script: GammaPoisson) -> None:
    x = script.data(150)
    result = pv.evaluation.rqmc(script.model, script.guide, x, 2048, seed=0, memory=2**20)
    error = (result.log_likelihood.values - script.log_likelihood(x).numpy()) / result.mcse.values
    assert abs(error.mean()) < 0.5
    assert 0.7 < error.std() < 1.5


def test_a_flow_scores_its_draws_without_being_inverted() -> None:
    network = pv.networks.mlp(5, 2 * 2 + 3)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, 5)),
        pv.posteriors.InverseAutoregressiveFlow(network, 2, context=3),
    ).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    quasi = pv.evaluation.rqmc(vae.model, vae.guide, x, 8192, seed=0)
    plain = pv.evaluation.evaluate(vae.model, vae.guide, x, 50_000, seed=0)
    error = np.hypot(quasi.mcse, plain.mcse)
    keep = plain.pareto_k < 0.7  # the weights of the other data have infinite variance
    assert keep.sum() >= 2
    assert (abs(quasi.log_likelihood - plain.log_likelihood) < 5 * error)[keep].all()


def test_it_runs_in_single_precision_and_repeats(vae: pv.VAE, x: Tensor) -> None:
    first, again = (pv.evaluation.rqmc(vae.model, vae.guide, x, 128, seed=1, memory=2**16) for _ in range(2))
    assert first.equals(again)
    assert first.attrs["estimator"] == "randomized quasi-Monte Carlo"


def test_distributions_without_quantiles_are_refused(x: Tensor) -> None:
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.mlp(2, 6)),
        pv.posteriors.StudentT(pv.networks.mlp(6, 2 * 2), df=5.0),
    )
    with pytest.raises(ValueError, match="latent site 'z' is a StudentT, for which torch has no inverse"):
        pv.evaluation.rqmc(vae.model, vae.guide, x, 64)
    with pytest.raises(ValueError, match="num_replicates=32 and num_samples=100"):
        pv.evaluation.rqmc(vae.model, vae.guide, x, 100)


def test_a_program_that_subsamples() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(4).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, 1.0))

    x = torch.randn(10, dtype=torch.float64)
    result = pv.evaluation.rqmc(model, guide, x, 4096, seed=0)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
    assert abs(result.log_likelihood - exact).max() < 0.01


def test_networks_are_left_as_they_were(vae: pv.VAE, x: Tensor) -> None:
    vae.posterior.network.append(nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    pv.evaluation.rqmc(vae.model, vae.guide, x, 64)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_an_autoguide_has_points_that_it_computes() -> None:
    script = SCRIPTS[0]
    x = script.data(6)
    guide = AutoNormal(script.model, init_loc_fn=init_to_median)
    guide(x)
    quasi = pv.evaluation.rqmc(script.model, guide, x, 4096, seed=0)
    plain = pv.evaluation.evaluate(script.model, guide, x, 20_000, seed=0)
    assert (abs(quasi.elbo - plain.elbo) < 4 * plain.elbo_mcse).all()


def test_values_on_a_simplex_have_one_dimension_less() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(pyro.sample("p", dist.Dirichlet(torch.ones(3)))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.LogisticNormal(torch.zeros(len(x), 2), 1.5 * torch.ones(2)))

    found = pv.evaluation.rqmc(model, guide, torch.tensor([0, 1, 2]), num_samples=4096, seed=0, progress=False)
    assert (abs(found.log_likelihood - np.log(1 / 3)) < 4.5 * found.mcse).all()
    assert (found.mcse < 0.03).all()


def test_a_transform_to_more_dimensions_is_refused() -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    fn = dist.TransformedDistribution(base, dist.transforms.CorrCholeskyTransform())
    with pytest.raises(ValueError, match=r"latent site 'L' is a .* transforms values of 2 dimensions to values of 3"):
        _quantile("L", fn, torch.rand(5, 3, 3))
