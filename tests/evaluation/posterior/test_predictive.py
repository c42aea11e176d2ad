"""Posterior predictive p-values agree with the oracle for any guide, and are extreme for data from another model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import posterior_predictive_check
from tests.oracle import Oracle

Program = Callable[..., Any]


def exact_p_values(oracle: Oracle, x: Tensor, direction: Tensor) -> np.ndarray:
    """Return Pr(a'x' >= a'x | x) for x' given x, a normal with mean W E[z | x] + b, covariance W V W' + sigma^2 I."""
    variance = 1 / (1 + (oracle.w**2).sum(0) / oracle.sigma**2)
    loc = (x - oracle.b) @ oracle.w / oracle.sigma**2 * variance
    mean = (loc @ oracle.w.T + oracle.b) @ direction
    spread = oracle.w @ (variance.unsqueeze(1) * oracle.w.T) + oracle.sigma**2 * torch.eye(oracle.size).double()
    return norm.sf((x @ direction - mean) / (direction @ spread @ direction).sqrt())


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.5, 0.5)])
def test_p_values_are_the_oracles_though_the_guide_is_wrong(scale: float, shift: float) -> None:
    oracle = Oracle(scale, shift)
    x, direction = oracle.data(100), torch.linspace(-1, 1, 5).double()
    check = posterior_predictive_check(
        oracle.vae.model, oracle.vae.guide, x, lambda x: x @ direction, 3000, num_draws=2000, seed=0
    )
    exact = exact_p_values(oracle, x, direction)
    np.testing.assert_allclose(check.observed, x @ direction)
    np.testing.assert_allclose(check.p_value, exact, atol=0.05)
    assert abs(float((check.p_value - exact).mean())) < 0.005


def test_the_dataset_records_its_settings() -> None:
    oracle = Oracle(1.3)
    x = oracle.data(7)
    check = posterior_predictive_check(oracle.vae.model, oracle.vae.guide, x, lambda x: x.sum(1), num_draws=50, seed=0)
    assert set(check) == {"observed", "replicated", "p_value", "pareto_k", "ess"}
    assert check.replicated.dims == ("draw", "datum")
    assert check.replicated.shape == (50, 7)
    assert (check.attrs["num_samples"], check.attrs["num_draws"], check.attrs["seed"]) == (1000, 50, 0)
    evaluated = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 1000, seed=0)
    np.testing.assert_allclose(check.ess, evaluated.ess, rtol=0.2)
    assert (check.pareto_k < 0.7).all()


def test_data_that_are_not_the_models_are_extreme() -> None:
    oracle = Oracle(1.2)
    x = oracle.data(50)
    spread = oracle.b + 5 * oracle.sigma * torch.randn(50, 5).double()  # too wide
    p_values = [
        posterior_predictive_check(
            oracle.vae.model, oracle.vae.guide, data, lambda x: (x - oracle.b).pow(2).sum(1), num_draws=200, seed=0
        ).p_value.values
        for data in (x, spread)
    ]
    assert 0.3 < np.median(p_values[0]) < 0.7
    assert (p_values[1] < 0.05).mean() > 0.8


def test_a_statistic_of_data_and_mask_sees_replicates_of_data_alone(x: Tensor) -> None:
    likelihood = pv.likelihoods.Masked(pv.likelihoods.Bernoulli(pv.networks.mlp(2, 6)))
    posterior = pv.posteriors.DiagonalNormal(pv.networks.ZeroFilled(pv.networks.mlp((2, 6), 4), event_dim=1))
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, posterior)
    mask = (torch.rand(12, 6) < 0.5).float()
    seen = []

    def statistic(x: Tensor, mask: Tensor) -> Tensor:
        seen.append(mask)
        return (x * mask).sum(1)

    check = posterior_predictive_check(vae.model, vae.guide, (x, mask), statistic, 50, num_draws=20, seed=0)
    np.testing.assert_array_equal(check.observed, (x * mask).sum(1))
    assert (check.replicated <= mask.sum(1).numpy()).all()
    assert len(np.unique(check.replicated)) > 2
    assert all(torch.equal(part, mask.repeat(len(part) // 12, 1)) for part in seen)


def test_several_observed_sites_replace_their_arguments() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + 100, 0.1), obs=y)
            pyro.sample("x", dist.Normal(torch.stack([z, z], -1), 0.1).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.1))

    x, y = torch.zeros(4, 2), torch.full((4,), 100.0)
    check = posterior_predictive_check(model, guide, (x, y), lambda x, y: y - x.sum(1), num_draws=50, seed=0)
    np.testing.assert_allclose(check.observed, 100)
    np.testing.assert_allclose(check.replicated, 100, atol=1.5)
    assert float(check.replicated.std()) > 0.05


def pixels(x: Tensor) -> tuple[object, object]:
    """A plain script whose plates lie next to the data plate, in another order."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 5.0))
            with pyro.plate("pixels", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 0.1), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.1))

    return model, guide


@pytest.mark.parametrize("vectorize", [True, False])
def test_data_observed_in_another_layout_are_a_datum_a_row(vectorize: bool) -> None:
    x = 10 * torch.arange(6.0).unsqueeze(1).expand(6, 3) + torch.tensor([0.0, 0.1, -0.1])
    model, guide = pixels(x)
    check = posterior_predictive_check(
        model, guide, x, lambda x: x.mean(1), 60, num_draws=20, seed=0, vectorize=vectorize
    )
    np.testing.assert_allclose(check.observed, x.mean(1))
    np.testing.assert_allclose(check.replicated, np.broadcast_to(x.mean(1), (20, 6)), atol=1)


def steps(x: Tensor, loc: Tensor) -> tuple[object, object]:
    """Return programs that observe one column of the data at a time, the second one masked where it is negative."""

    def model(x: Tensor, loc: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            for t in range(3):
                mask = x[:, 1] >= 0 if t == 1 else True
                pyro.sample(f"x_{t}", dist.Normal(z + 10 * t, 0.01).mask(mask), obs=x[:, t])

    def guide(x: Tensor, loc: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 0.01))

    return model, guide


@pytest.mark.parametrize("vectorize", [True, False])
def test_columns_of_an_argument_are_replaced_except_for_masked_entries(vectorize: bool) -> None:
    loc = torch.arange(6.0)
    x = loc.unsqueeze(1) + torch.tensor([0.0, 10.0, 20.0])
    x[:2, 1] = -7
    seen = []

    def statistic(x: Tensor, loc: Tensor) -> Tensor:
        seen.append((x, loc))
        return x.sum(1)

    model, guide = steps(x, loc)
    posterior_predictive_check(model, guide, (x, loc), statistic, 60, num_draws=20, seed=0, vectorize=vectorize)
    for values, locs in seen[1:]:
        assert torch.equal(locs, loc.repeat(len(locs) // 6))
        np.testing.assert_allclose(values.unflatten(0, (-1, 6)), x.expand(len(locs) // 6, 6, 3), atol=0.2)
        assert torch.equal(values[values < -1], values.new_full(((len(locs) // 6) * 2,), -7))
        assert values.unflatten(0, (-1, 6))[:, 2:].ne(x[2:]).all()


def test_a_program_that_subsamples_is_checked_on_all_data() -> None:
    x = torch.arange(7.0) * 10

    def model(x: Tensor) -> None:
        with pyro.plate("data", 7, subsample_size=3) as batch:
            z = pyro.sample("z", dist.Normal(0.0, 50.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x[batch])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 7, subsample_size=3) as batch:
            pyro.sample("z", dist.Normal(x[batch], 0.1))

    check = posterior_predictive_check(model, guide, x, lambda x: x, 50, num_draws=20, seed=0)
    np.testing.assert_array_equal(check.observed, x)
    np.testing.assert_allclose(check.replicated, np.broadcast_to(x, (20, 7)), atol=2)


def test_chunks_are_of_the_same_data(vae: pv.VAE, x: Tensor) -> None:
    checks = [
        posterior_predictive_check(vae.model, vae.guide, x, lambda x: x.sum(1), 40, num_draws=30, seed=0, memory=memory)
        for memory in (1, 3000, 2**26)
    ]
    for check in checks:
        np.testing.assert_array_equal(check.observed, x.sum(1))
        np.testing.assert_allclose(check.replicated.mean("draw"), checks[0].replicated.mean("draw"), atol=1.5)


def test_the_seed_decides_and_nothing_changes(vae: pv.VAE, x: Tensor) -> None:
    state = torch.get_rng_state()
    one, same, other = (
        posterior_predictive_check(vae.model, vae.guide, x, lambda x: x.sum(1), 40, num_draws=30, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one.replicated.equals(same.replicated)
    assert not one.replicated.equals(other.replicated)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        (lambda x: x, r"a tensor of shape \(12,\) for data of shape \(12, 6\), got shape \(12, 6\)\. Sum or average"),
        (lambda x: 1.0, r"got a float"),
    ],
)
def test_a_statistic_gives_a_number_per_datum(vae: pv.VAE, x: Tensor, statistic: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posterior_predictive_check(vae.model, vae.guide, x, statistic, 5, num_draws=5)


def test_what_cannot_be_checked_is_refused(vae: pv.VAE, x: Tensor) -> None:
    for options in ({"num_samples": 0}, {"num_draws": 0}):
        with pytest.raises(ValueError, match=r"num_draws \(draws from the posterior\) must be at least 1"):
            posterior_predictive_check(vae.model, vae.guide, x, lambda x: x.sum(1), **options)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.factor("f", pyro.sample("z", vae.prior()).sum(-1))

    with pytest.raises(ValueError, match="observes no data that could be replicated"):
        posterior_predictive_check(model, vae.guide, x, lambda x: x.sum(1))


def test_an_expanded_argument_observed_in_another_layout() -> None:
    x = torch.tensor([0.0, 0.1, -0.1]).expand(4, 3)
    model, guide = pixels(x)
    check = posterior_predictive_check(model, guide, x, lambda x: x[:, 1], 60, num_draws=20, seed=0)
    np.testing.assert_allclose(check.observed, 0.1)
    assert check.replicated.std() > 0.05
