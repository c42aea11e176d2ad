"""Annealed importance sampling is unbiased, its intervals cover, and the exact value lies between both directions."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation.estimators import hmc
from pyrovae.evaluation.estimators.ais import Path
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target
from tests.oracle import Oracle
from tests.scripts import SCRIPTS, GammaPoisson


def test_a_transition_leaves_its_density_invariant() -> None:
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def log_density(u: Tensor) -> tuple[Tensor, Tensor]:
        return dist.Normal(0.0, scale).log_prob(u).sum(-1), -u / scale**2

    u = scale * torch.randn(40_000, 1, 2, dtype=torch.float64)
    for _ in range(5):
        u, acceptance = hmc.transition(log_density, u, 0.9 * scale, 3)
    assert 0.5 < acceptance.mean() < 0.97  # some proposals are rejected
    torch.testing.assert_close(u.std((0, 1)), scale, rtol=0.015, atol=0)
    torch.testing.assert_close((u**4).mean((0, 1)), 3 * scale**4, rtol=0.06, atol=0)


def test_a_trajectory_into_nowhere_is_refused() -> None:
    u = torch.full((3, 1, 1), 0.5, dtype=torch.float64)
    moved, acceptance = hmc.transition(lambda u: (u.log().sum(-1), 1 / u), u, torch.tensor(100.0), 2)
    torch.testing.assert_close(moved, u)
    assert not acceptance.any()


@pytest.mark.parametrize(
    ("scale", "shift", "temperatures"), [(1.5, 0.5, 16), pytest.param(0.7, 1.0, 80, marks=pytest.mark.slow)]
)
def test_the_error_covers(scale: float, shift: float, temperatures: int) -> None:
    oracle = Oracle(scale, shift)
    x = oracle.data(2000)
    options = {"num_temperatures": temperatures, "num_leapfrog": 3, "seed": 1}
    result = pv.evaluation.ais(oracle.vae.model, oracle.vae.guide, x, 64, **options)
    error = result.log_likelihood.values - oracle.log_likelihood(x).numpy()
    assert abs(error.mean()) < 0.01
    assert 0.93 <= (abs(error) < 1.96 * result.mcse.values).mean() <= 0.97


def test_few_temperatures_are_unbiased_too() -> None:
    oracle = Oracle(0.8, 0.5)
    x = oracle.data(1).expand(4000, -1)
    result = pv.evaluation.ais(oracle.vae.model, oracle.vae.guide, x, 10, num_temperatures=4, num_leapfrog=2, seed=0)
    ratios = (torch.as_tensor(result.log_likelihood.values) - oracle.log_likelihood(x)).exp()
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / 4000**0.5
    assert ratios.std() > 0.05


@pytest.mark.slow
def test_annealing_repairs_a_proposal_that_importance_sampling_cannot_use() -> None:
    oracle = Oracle(0.3, 2.0)
    x = oracle.data(16)
    exact = oracle.log_likelihood(x).numpy()
    plain = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 5000, seed=0)
    annealed = pv.evaluation.ais(oracle.vae.model, oracle.vae.guide, x, num_temperatures=150, num_leapfrog=5, seed=0)
    error = abs(plain.log_likelihood - exact).mean()
    assert error > 0.3
    assert (abs(annealed.log_likelihood - exact) < 5 * annealed.mcse).all()
    assert annealed.mcse.mean() < error / 2
    assert (annealed.acceptance > 0.4).all()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: type(script).__name__)
def test_any_program(script: GammaPoisson) -> None:
    x = script.data(200)
    result = pv.evaluation.ais(script.model, script.guide, x, 30, num_temperatures=20, seed=0, memory=2**20)
    error = (result.log_likelihood.values - script.log_likelihood(x).numpy()) / result.mcse.values
    assert abs(error.mean()) < 0.4
    assert 0.7 < error.std() < 1.5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: type(script).__name__)
def test_the_exact_value_lies_between_the_bounds(script: GammaPoisson) -> None:
    x = script.data(2000)
    bounds = pv.evaluation.bdmc(
        script.model, script.guide, x, 1, num_temperatures=3, num_leapfrog=2, seed=0, memory=2**20
    )
    exact = script.log_likelihood(torch.as_tensor(bounds.simulated_0.values)).numpy()
    for gap in (exact - bounds.lower, bounds.upper - exact):
        assert 4 * gap.std() / 2000**0.5 < gap.mean() < 0.3
        ratio = np.exp(-gap)  # estimate / p(x) if the estimate is unbiased, p(x) / estimate if its inverse is
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / 2000**0.5


def test_the_inverse_weights_of_reverse_chains_are_unbiased() -> None:
    oracle = Oracle(0.6, 0.8)
    bounds = pv.evaluation.bdmc(
        oracle.vae.model, oracle.vae.guide, oracle.data(8000), 1, num_temperatures=3, num_leapfrog=3, seed=0
    )
    exact = oracle.log_likelihood(torch.as_tensor(bounds.simulated_0.values)).numpy()
    ratio = np.exp(exact - bounds.upper.values)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 8000**0.5


@pytest.mark.slow
def test_the_sandwich_closes_on_the_oracle() -> None:
    oracle = Oracle(0.5, 1.0)
    widths = []
    for temperatures in (5, 80):
        bounds = pv.evaluation.bdmc(
            oracle.vae.model, oracle.vae.guide, oracle.data(300), 16, num_temperatures=temperatures, seed=0
        )
        exact = oracle.log_likelihood(torch.as_tensor(bounds.simulated_0.values)).numpy()
        widths.append(((exact - bounds.lower).mean().item(), (bounds.upper - exact).mean().item()))
    assert all(width > 0.1 for width in widths[0])
    assert all(abs(width) < 0.03 for width in widths[1])


def test_simulated_data_are_of_the_model() -> None:
    oracle = Oracle()
    bounds = pv.evaluation.bdmc(
        oracle.vae.model, oracle.vae.guide, torch.zeros(5000, 5).double(), 1, num_temperatures=1
    )
    x = torch.as_tensor(bounds.simulated_0.values)
    covariance = oracle.w @ oracle.w.T + oracle.sigma**2 * torch.eye(5)
    torch.testing.assert_close(x.mean(0), oracle.b, atol=0.1, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.25, rtol=0)


def test_the_prior_may_be_the_guide() -> None:
    oracle = Oracle()
    x = oracle.data(20)
    prior = poutine.block(oracle.vae.model, hide_fn=lambda site: site["is_observed"])
    result = pv.evaluation.ais(oracle.vae.model, prior, x, num_temperatures=100, num_leapfrog=5, seed=0)
    assert (abs(result.log_likelihood - oracle.log_likelihood(x).numpy()) < 5 * result.mcse).all()
    assert result.mcse.mean() < 0.2  # a prior of which nothing is annealed has errors of nats


def test_a_mixture_may_be_the_start() -> None:
    shares, locs = torch.tensor([[0.3, 0.7], [-1.0, 1.5]], dtype=torch.float64)
    mixture = dist.MixtureSameFamily(dist.Categorical(shares), dist.Normal(locs, 1.0))

    def prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", mixture)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", mixture)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = torch.linspace(-2, 3, 30, dtype=torch.float64)
    result = pv.evaluation.ais(model, prior, x, 64, num_temperatures=60, seed=0)
    density = dist.Normal(locs, 1.25**0.5).log_prob(x[:, None]).exp()
    exact = (density * shares).sum(-1).log()
    assert (abs(result.log_likelihood - exact.numpy()) < 5 * result.mcse).all()


def test_step_sizes_are_fixed_before_the_chains_that_count() -> None:
    oracle = Oracle(0.5)
    with Problem(oracle.vae.model, oracle.vae.guide, oracle.data(50), seed=0) as problem:
        path = Path(Target(Space(problem), next(problem.batches(50))), 40, 3)
        steps = [step.clone() for step in path.steps]
        path.upwards(16)
    assert len(steps) == 39
    assert all(torch.equal(before, after) for before, after in zip(steps, path.steps, strict=True))
    assert (path.betas[0], path.betas[-1]) == (0, 1)
    assert (path.acceptance - 0.65).abs().mean() < 0.12


def test_it_is_repeatable_and_records_its_settings() -> None:
    oracle = Oracle(1.5)
    x = oracle.data(7)
    first, again, other = (
        pv.evaluation.ais(oracle.vae.model, oracle.vae.guide, x, 8, num_temperatures=5, seed=seed, binarization="none")
        for seed in (3, 3, 4)
    )
    assert first.equals(again)
    assert not first.equals(other)
    assert first.attrs["estimator"] == "annealed importance sampling"
    plain = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 10, binarization="none")
    same = ("data_sha1", "binarization", "base_measure")
    assert [first.attrs[name] for name in same] == [plain.attrs[name] for name in same]


def test_programs_that_cannot_be_annealed_are_refused(vae: pv.VAE, x: Tensor) -> None:
    for name in ("num_temperatures", "num_leapfrog"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            pv.evaluation.ais(vae.model, vae.guide, x, **{name: 0})

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.3))

    with pytest.raises(ValueError, match="latent site 'y' is discrete, a Bernoulli"):
        pv.evaluation.ais(model, guide, torch.zeros(5))


def test_a_guide_that_changes_with_every_run_is_refused(vae: pv.VAE, x: Tensor) -> None:
    vae.posterior = pv.posteriors.SemiAmortized(vae.posterior, steps=3)
    with pytest.raises(ValueError, match=r"density of the guide differs by .*SemiAmortized"):
        pv.evaluation.ais(vae.model, vae.guide, x, 4, num_temperatures=3)
    vae.posterior = vae.posterior.amortized
    assert pv.evaluation.ais(vae.model, vae.guide, x, 4, num_temperatures=3).sizes["datum"] == 12


def test_a_site_of_the_model_is_summed_out() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.linspace(-2, 2, 5)
    result = pv.evaluation.ais(model, guide, x, 64, num_temperatures=40, seed=0)
    parts = [dist.Normal(float(y), 2**0.5).log_prob(x) - math.log(2) for y in (0, 1)]
    exact = torch.logaddexp(*parts).numpy()
    assert (abs(result.log_likelihood - exact) < 5 * result.mcse).all()


def test_the_sandwich_of_one_datum() -> None:
    oracle = Oracle(1.3)
    bounds = pv.evaluation.bdmc(oracle.vae.model, oracle.vae.guide, oracle.data(1), 8, num_temperatures=20, seed=0)
    assert math.isfinite(float(bounds.upper[0] - bounds.lower[0]))


def test_a_support_that_depends_on_other_latents_is_refused() -> None:
    def prior(x: Tensor) -> Tensor:
        a = pyro.sample("a", dist.Uniform(torch.ones_like(x), 3.0))
        return pyro.sample("z", dist.Uniform(torch.zeros_like(x), a))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(prior(x), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior(x)

    with pytest.raises(ValueError, match="the support of latent site 'z' depends on other latents"):
        pv.evaluation.ais(model, guide, torch.randn(5))


def test_a_guide_of_points_is_refused() -> None:
    script = SCRIPTS[2]

    def points(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Delta(x / 2))
            pyro.sample("z2", dist.Delta(x / 3))

    for estimator in (pv.evaluation.ais, pv.evaluation.evaluate):
        with pytest.raises(ValueError, match="the guide puts all mass of latent site 'z1' on a point"):
            estimator(script.model, points, torch.randn(5))


def test_data_that_a_plate_takes_in_part_are_not_simulated() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, 1.0))

    for function in (pv.evaluation.bdmc, pv.evaluation.simulation_based_calibration):
        with pytest.raises(ValueError, match="subsamples 4 of 10 data in each run, so the data cannot all"):
            function(model, guide, torch.randn(10))
