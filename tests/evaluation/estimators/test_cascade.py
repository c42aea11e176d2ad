"""``log_likelihood`` is right if log p(x) is known, has valid intervals if not, and is cheap."""

from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import compare, evaluate, log_likelihood, verdicts
from tests.oracle import Oracle
from tests.truth.programs import X_SCALE, pair


def errors_of(results: object, exact: Tensor) -> np.ndarray:
    return results.log_likelihood.values - exact.numpy()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "scale", "shift"), [("exact", 1.0, 0.0), ("narrow", 0.3, 0.0), ("shifted", 1.0, 2.0), ("wide", 3.0, 0.0)]
)
def test_wrong_guides_increase_only_the_cost(kind: str, scale: float, shift: float) -> None:
    oracle = Oracle(scale, shift)
    x = oracle.data(60)
    results = log_likelihood(oracle.vae.model, oracle.vae.guide, x, seed=0)
    error = errors_of(results, oracle.log_likelihood(x))
    assert results.reliable.all()
    assert (abs(error) < 5 * results.mcse.values + 1e-6).all()
    assert abs(error.mean()) < 0.02
    assert (
        set(results.estimator.values) == ({"guide"} if scale == 1.0 and shift == 0.0 else {"refined"}) or scale == 3.0
    )


@pytest.mark.parametrize("scale", [0.6, pytest.param(0.3, marks=pytest.mark.slow)])
def test_intervals_of_the_cascade_cover(scale: float) -> None:
    """The estimator is chosen by a pilot run, which must not invalidate the interval."""
    oracle = Oracle(scale, 0.5)
    x = oracle.data(1).expand(2000, -1)
    results = log_likelihood(oracle.vae.model, oracle.vae.guide, x, num_samples=500, seed=0)
    error = errors_of(results, oracle.log_likelihood(x))
    covered = (abs(error) < 1.96 * results.mcse.values).mean()
    spread = (0.95 * 0.05 / 2000) ** 0.5
    assert abs(covered - 0.95) < max(0.02, 4 * spread)
    assert abs(error.mean()) < 4 * error.std() / 2000**0.5 + 0.003  # half of the variance is the bias of a logarithm


class Modes:
    """A posterior with several modes. The guide has one or all of them."""

    def __init__(self, places: tuple[float, ...], known: tuple[float, ...]) -> None:
        self.places, self.known = torch.tensor(places), torch.tensor(known)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            components = dist.Normal(self.places, 0.3)
            weights = dist.Categorical(torch.ones(len(self.places)))
            z = pyro.sample("z", dist.MixtureSameFamily(weights, components).expand([len(x)]))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            components = dist.Normal(self.known, 0.4)
            weights = dist.Categorical(torch.ones(len(self.known)))
            pyro.sample("z", dist.MixtureSameFamily(weights, components).expand([len(x)]))


@pytest.mark.parametrize("places", [(-3.0, 3.0), (-4.0, 0.0, 4.0)], ids=["two", "three"])
def test_modes_of_the_guide_are_not_missed(places: tuple[float, ...]) -> None:
    modes, x = Modes(places, places), torch.linspace(-1, 1, 25)
    results = log_likelihood(modes.model, modes.guide, x, seed=0)
    error = errors_of(results, dist.Normal(0.0, 1.0).log_prob(x))
    assert (~results.reliable.values | (abs(error) < 5 * results.mcse.values)).all()


def gamma(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def gamma_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal(torch.zeros_like(x), 1.0))


def test_a_bounded_support() -> None:
    x = torch.arange(12.0)
    exact = dist.NegativeBinomial(2.0, torch.tensor(0.5)).log_prob(x)  # a Poisson with a gamma rate
    results = log_likelihood(gamma, gamma_guide, x, seed=0)
    assert results.reliable.all()
    assert (abs(errors_of(results, exact)) < 5 * results.mcse.values).all()


def test_a_program_that_cannot_be_refined_is_evaluated_with_its_guide() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.4)))

    x = torch.linspace(-1, 2, 9)
    results = log_likelihood(model, guide, x, seed=0)
    exact = torch.logaddexp(dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(1.0, 1.0).log_prob(x)) - np.log(2)
    assert set(results.estimator.values) == {"guide"}
    assert (abs(errors_of(results, exact)) < 5 * results.mcse.values).all()


def test_a_datum_that_fails_affects_no_other() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.where(x == 123.0, torch.nan, z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 1, 0.3))

    x = torch.linspace(-1, 1, 30)
    x[17] = 123.0
    with pytest.warns(UserWarning, match="17"):
        results = log_likelihood(model, guide, x, seed=0)
    keep = np.arange(30) != 17
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
    assert np.isnan(results.log_likelihood.values[17])
    assert not results.reliable.values[17]
    assert (abs(results.log_likelihood.values - exact)[keep] < 5 * results.mcse.values[keep]).all()


def test_gradients_that_are_nan_leave_no_reliable_number() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            # The gradient of the branch that is not taken is NaN times zero.
            loc = torch.where(x > 100, z * torch.nan, z)
            pyro.sample("x", dist.Normal(loc, 0.05), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + 0.05, 0.015))

    x = torch.linspace(4, 5, 30)  # the prior is far from these data, so only the guide is left
    results = log_likelihood(model, guide, x, seed=0)
    error = abs(errors_of(results, dist.Normal(0.0, 1.0025**0.5).log_prob(x)))
    assert (~results.reliable.values | (error < 5 * results.mcse.values)).all()
    assert results.reliable.mean() < 0.2


def test_it_repeats_resumes_and_is_compared(tmp_path: Path) -> None:
    oracle = Oracle(0.5)
    x = oracle.data(20)
    first, again = (log_likelihood(oracle.vae.model, oracle.vae.guide, x, seed=3) for _ in range(2))
    kept = [log_likelihood(oracle.vae.model, oracle.vae.guide, x, seed=3, checkpoint=tmp_path) for _ in range(2)]
    for other in (again, *kept):
        np.testing.assert_array_equal(first.log_likelihood.values, other.log_likelihood.values)
    by_guide = evaluate(oracle.vae.model, oracle.vae.guide, x, 500, seed=0)
    table = compare({"log_likelihood": first, "evaluate": by_guide})
    assert table.reliable["log_likelihood"] == 1.0
    assert verdicts(first)["data"]["reliable"] == 20
    assert (first.evaluations > 2000).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": 0.0}, "must be positive"),
        ({"budget": 0}, "must be positive"),
        ({"num_samples": 50}, "must exceed 100"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    oracle = Oracle()
    with pytest.raises(ValueError, match=message):
        log_likelihood(oracle.vae.model, oracle.vae.guide, oracle.data(4), **options)


def test_a_refined_guide_is_a_guide() -> None:
    oracle = Oracle(0.4, 1.0)
    x = oracle.data(30)
    refined = pv.guides.Refined(oracle.vae.model, oracle.vae.guide)
    exact = oracle.log_likelihood(x)
    for results in (
        evaluate(oracle.vae.model, refined, x, 1000, seed=0),
        pv.evaluation.ais(oracle.vae.model, refined, x, 50, num_temperatures=5, seed=0),
    ):
        assert (abs(errors_of(results, exact)) < 5 * results.mcse.values).all()
    check = pv.evaluation.posterior_predictive_check(oracle.vae.model, refined, x, lambda x: x.mean(-1), 500, seed=0)
    assert (check.ess > 100).all()
    loss = pyro.infer.Trace_ELBO(num_particles=20).loss(oracle.vae.model, refined, x)
    assert -loss < float(exact.sum())
    with pytest.raises(ValueError, match=r"Pass the guide that the proposal refines, refined\.guide"):
        pv.evaluation.kl_per_dimension(oracle.vae.model, refined, x)


@pytest.mark.parametrize(("of_data", "of_guide"), [(torch.double, torch.float), (torch.float, torch.double)])
def test_data_and_guide_may_differ_in_precision(of_data: torch.dtype, of_guide: torch.dtype) -> None:
    model, guide = pair(
        lambda x: dist.Normal(0.0, 1.0), lambda x: dist.Normal(torch.zeros(len(x), dtype=of_guide), 1.2)
    )
    x = torch.linspace(-2, 4, 5, dtype=of_data)
    found = log_likelihood(model, guide, x, seed=0, progress=False)
    exact = dist.Normal(0.0, (1 + X_SCALE**2) ** 0.5).log_prob(x).numpy()
    assert found.reliable.all()
    assert set(found.estimator.values) == {"refined"}
    assert (abs(found.log_likelihood - exact) < 4.5 * found.mcse).all()
