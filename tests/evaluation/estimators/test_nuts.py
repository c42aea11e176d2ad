"""NUTS draws from the posterior of a few data, and bridge sampling gives their log p(x)."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation.estimators.nuts import _bridge
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target
from tests.oracle import Oracle
from tests.scripts import SCRIPTS, Chain, GammaPoisson


@pytest.mark.slow
def test_the_posterior_of_the_oracle() -> None:
    oracle = Oracle(0.3, 2.0)  # a guide that is far off
    x = oracle.data(2)
    reference = pv.evaluation.nuts(
        oracle.vae.model, oracle.vae.guide, x, 300, warmup_steps=100, max_tree_depth=5, seed=0, progress=False
    )
    exact = Oracle().vae.posterior(x)
    draws = reference.z.stack(sample=("chain", "draw"))
    mean, std = exact.mean.detach().numpy(), exact.stddev.detach().numpy()
    ess = reference.ess.values[:, None]
    assert (abs(draws.mean("sample").values - mean) < 5 * std / np.sqrt(ess)).all()
    assert (abs(draws.std("sample").values / std - 1) < 5 / np.sqrt(2 * ess)).all()
    assert (reference.r_hat < 1.05).all()
    assert (reference.ess > 200).all()
    error = abs(reference.log_likelihood - oracle.log_likelihood(x).numpy())
    assert (error < 4 * reference.mcse).all()
    assert (reference.mcse < 0.05).all()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: type(script).__name__)
def test_any_program(script: GammaPoisson) -> None:
    x = script.data(3)
    options = {"warmup_steps": 100, "num_chains": 1, "max_tree_depth": 5, "seed": 0, "progress": False}
    reference = pv.evaluation.nuts(script.model, script.guide, x, 300, **options)
    error = abs(reference.log_likelihood - script.log_likelihood(x).numpy())
    assert (error < 4 * reference.mcse).all()
    assert (reference.mcse < 0.1).all()
    if isinstance(script, Chain):
        assert reference.z1.dims == ("chain", "draw", "datum")
        assert_mean(reference.z1, 2 / 3 * x.numpy(), reference.ess)  # E[z1 | x]
    elif isinstance(script, GammaPoisson):
        assert (reference.z > 0).all()
        assert_mean(reference.z, (3 + x.numpy()) / 2, reference.ess)


def assert_mean(draws: xr.DataArray, exact: np.ndarray, ess: xr.DataArray) -> None:
    """Assert that the mean of the draws is within five standard errors of the exact one."""
    error = draws.std(("chain", "draw")) / np.sqrt(ess)
    assert (abs(draws.mean(("chain", "draw")) - exact) < 5 * error).all()


@pytest.mark.parametrize(("scale", "repeats"), [(1.0, 1), (0.7, 1), (0.7, 5)])
def test_the_error_of_the_bridge_covers(scale: float, repeats: int) -> None:
    oracle = Oracle()
    x = oracle.data(2000)
    with Problem(oracle.vae.model, oracle.vae.guide, x, seed=0) as problem:
        target = Target(Space(problem), next(problem.batches(2000)))
        draws = torch.stack([target.draw(200)[0] for _ in range(2)])  # from the exact posterior
        draws[:, :100] = draws[:, :100] * scale  # a normal density fitted to the wrong draws is a worse bridge
        draws = draws.repeat_interleave(repeats, 1)  # draws that depend on each other are worth fewer
        log_p, mcse = _bridge(target, draws, 10**6)
    covered = ((log_p - oracle.log_likelihood(x)).abs() < 1.96 * mcse).double().mean()
    assert 0.93 <= covered <= 0.97


def test_it_records_its_settings_and_is_repeatable() -> None:
    script = Chain()
    options = {"num_samples": 30, "warmup_steps": 60, "max_tree_depth": 4, "seed": 1, "progress": False}
    first, again = (
        pv.evaluation.nuts(script.model, script.guide, torch.zeros(2).double(), **options) for _ in range(2)
    )
    assert first.equals(again)
    assert first.attrs["estimator"] == "NUTS and bridge sampling"
    assert first.attrs["divergences"] <= 12  # a tenth of the draws


def test_too_few_draws_are_refused() -> None:
    script = Chain()
    with pytest.raises(ValueError, match=r"2 chains of 8 draws are too few .* 2 dimensions\. Make at least 10 draws"):
        pv.evaluation.nuts(script.model, script.guide, torch.zeros(2).double(), 8)
    with pytest.raises(ValueError, match="num_chains must be at least 1, got 0"):
        pv.evaluation.nuts(script.model, script.guide, torch.zeros(2).double(), num_chains=0)


def test_chains_leave_the_support_of_the_guide() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.HalfNormal(torch.ones_like(x)))

    x = torch.zeros(3, dtype=torch.float64)
    options = {"warmup_steps": 100, "num_chains": 1, "max_tree_depth": 4, "seed": 0, "progress": False}
    reference = pv.evaluation.nuts(model, guide, x, 300, **options)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert (abs(reference.log_likelihood - exact.numpy()) < 4 * reference.mcse).all()
    assert abs((reference.z < 0).mean() - 0.5) < 0.15


def test_chains_that_do_not_move_are_refused() -> None:
    oracle = Oracle()
    with Problem(oracle.vae.model, oracle.vae.guide, oracle.data(4), seed=0) as problem:
        target = Target(Space(problem), next(problem.batches(4)))
        draws = target.draw(100)[0].unsqueeze(0)
        draws[:, :, 2] = 1.0
        with pytest.raises(ValueError, match="the chains of 1 of 4 data did not move"):
            _bridge(target, draws, 10**6)


def observed_where_not_nan(fill: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(~x.isnan()), obs=fill(x))

    return model


def guide_of_numbers(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.nan_to_num() / 2, 1.0))


def test_masked_nan_stops_chains_and_the_message_says_so() -> None:
    x, options = torch.tensor([0.5, torch.nan, -1.0]), {"seed": 0, "progress": False}
    small: Any = {"num_samples": 100, "warmup_steps": 60, "num_chains": 1, "max_tree_depth": 3, **options}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = pv.evaluation.nuts(observed_where_not_nan(lambda x: x), guide_of_numbers, x, **small)
    assert "data [1] raise an error" in str(told[0].message)
    assert "Observe numbers: obs=x.nan_to_num()" in str(told[0].message)
    assert found.log_likelihood.isnull().values.tolist() == [False, True, False]
    with pytest.warns(UserWarning, match=r"some chains of annealing do not move: .*obs=x.nan_to_num\(\)"):
        pv.evaluation.ais(observed_where_not_nan(lambda x: x), guide_of_numbers, x, 40, num_temperatures=4, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pv.evaluation.nuts(observed_where_not_nan(Tensor.nan_to_num), guide_of_numbers, x, **small)
    assert abs(found.log_likelihood[1]) < 0.05  # an empty datum has probability 1
