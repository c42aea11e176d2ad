"""A refined guide can replace a guide in every estimator, and corrects a wrong guide."""

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyrovae as pv
from pyrovae.evaluation import ais, evaluate, impute, nuts, rqmc, to_inference_data
from tests.oracle import Oracle


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(0.4, 0.5)


def refined(oracle: Oracle) -> pv.guides.Refined:
    return pv.guides.Refined(oracle.vae.model, oracle.vae.guide)


def test_importance_sampling_is_exact_within_its_error(oracle: Oracle) -> None:
    x = oracle.data(30)
    results = evaluate(oracle.vae.model, refined(oracle), x, 1000, seed=0)
    error = results.log_likelihood.values - oracle.log_likelihood(x).numpy()
    assert (abs(error) < 5 * results.mcse.values).all()
    assert float(results.ess.min()) > 300
    assert (results.elbo.values < results.log_likelihood.values).all()


def test_quasi_random_draws_of_the_normal_members_lower_the_error(oracle: Oracle) -> None:
    x = oracle.data(20)
    quasi = rqmc(oracle.vae.model, refined(oracle), x, 4096, num_replicates=16, seed=0)
    plain = evaluate(oracle.vae.model, refined(oracle), x, 4096, seed=0)
    error = quasi.log_likelihood.values - oracle.log_likelihood(x).numpy()
    assert (abs(error) < 5 * quasi.mcse.values).all()
    assert float(quasi.mcse.mean()) < 0.7 * float(plain.mcse.mean())


def test_quasi_random_estimates_have_no_bias(oracle: Oracle) -> None:
    x = oracle.data(1).expand(400, -1)
    results = rqmc(oracle.vae.model, refined(oracle), x, 128, num_replicates=2, seed=0)
    ratios = np.exp(results.log_likelihood.values - oracle.log_likelihood(x).numpy())
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / 400**0.5


@pytest.mark.slow
def test_chains_of_nuts_move_in_the_coordinates_of_its_density(oracle: Oracle) -> None:
    x = oracle.data(3)
    options = {"num_samples": 200, "warmup_steps": 50, "seed": 0, "progress": False}
    results = nuts(oracle.vae.model, refined(oracle), x, **options)
    error = results.log_likelihood.values - oracle.log_likelihood(x).numpy()
    assert (abs(error) < 5 * results.mcse.values).all()
    assert float(results.r_hat.max()) < 1.1
    posterior = Oracle().vae.posterior(x)
    draws = results.z.values.reshape(-1, 3, results.z.shape[-1])
    scale = posterior.stddev.detach().numpy()
    assert (abs(draws.mean(0) - posterior.mean.detach().numpy()) < 5 * scale / results.ess.values[:, None] ** 0.5).all()


def test_annealing_starts_from_it(oracle: Oracle) -> None:
    x = oracle.data(10)
    results = ais(oracle.vae.model, refined(oracle), x, 64, num_temperatures=8, seed=0)
    error = results.log_likelihood.values - oracle.log_likelihood(x).numpy()
    assert (abs(error) < 5 * results.mcse.values + 1e-6).all()


def test_draws_of_the_posterior_become_reliable(oracle: Oracle) -> None:
    x = oracle.data(5)
    data = to_inference_data(oracle.vae.model, refined(oracle), x, num_samples=2000, num_draws=500, seed=0)
    posterior = Oracle().vae.posterior(x)
    error = (
        abs(data.posterior.z.values[0].mean(0) - posterior.mean.detach().numpy()) / posterior.stddev.detach().numpy()
    )
    assert (error < 5 / 500**0.5).all()


def test_its_log_density_is_that_of_its_draws(oracle: Oracle) -> None:
    x, guide = oracle.data(6), refined(oracle)
    problem = pv.evaluation.Problem(oracle.vae.model, guide, x, seed=0)
    with problem:
        batch = problem.batch(0, 6)
        drawn = problem.draw(batch, 50)
        again = problem.log_guide(batch, drawn.values, 50)
    assert torch.allclose(drawn.log_q, again, atol=1e-4)


def test_pyros_elbo_takes_it(oracle: Oracle) -> None:
    x, guide = oracle.data(20), refined(oracle)
    losses = torch.tensor([Trace_ELBO().loss(oracle.vae.model, guide, x) for _ in range(10)])
    results = evaluate(oracle.vae.model, guide, x, 1000, seed=0)
    error = (float(losses.var()) / 10 + float((results.elbo_mcse**2).sum())) ** 0.5
    assert abs(float(losses.mean()) + float(results.elbo.sum())) < 5 * error
    assert float(losses.mean()) > float(-oracle.log_likelihood(x).sum())


def test_missing_entries_are_imputed_by_their_posterior(oracle: Oracle) -> None:
    """The encoder reads zeros at the missing entries, so its posterior is wrong. The refined posterior is exact."""
    x, mask = oracle.data(10), torch.rand(10, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    encoder = pv.networks.ZeroFilled(pv.networks.mlp((2, 5), 2 * 2), event_dim=1)
    likelihood = pv.likelihoods.Masked(oracle.vae.likelihood)
    vae = pv.VAE(oracle.vae.prior, likelihood, pv.posteriors.DiagonalNormal(encoder)).double()
    guide = pv.guides.Refined(vae.model, vae.guide)
    imputed = impute(vae.model, guide, (torch.where(mask, x, 0.0), mask), 4000, seed=0)
    for i in range(10):
        w = oracle.w[mask[i]]
        precision = torch.eye(2, dtype=torch.float64) + w.T @ w / oracle.sigma**2
        z = torch.linalg.solve(precision, w.T @ (x[i] - oracle.b)[mask[i]] / oracle.sigma**2)
        exact = torch.where(mask[i], x[i], oracle.w @ z + oracle.b).numpy()
        error = 5 * imputed["std"].values[i] / float(imputed["ess"][i]) ** 0.5
        assert (abs(imputed["mean"].values[i] - exact) <= error + 1e-6).all()
    assert float(imputed["ess"].min()) > 400
