"""Verdicts on few chains, on rounded log-weights and on guides that pack all data, and the effect of their advice."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, autoguide
from pyro.optim import Adam
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program, check_close, exact_normal, normal_guide, normal_model

E = pv.evaluation
X = torch.randn(24, generator=torch.Generator().manual_seed(0))


def narrow(scale: float, shift: float = 0.0) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift, scale))

    return guide


@pytest.mark.parametrize(("chains", "temperatures"), [(32, 3), (99, 3), (100, 10), (150, 3), (150, 10)])
@pytest.mark.parametrize("scale", [0.001, 0.01, 0.05])
def test_annealing_that_is_far_off_is_not_reliable(scale: float, chains: int, temperatures: int) -> None:
    found = E.ais(normal_model, narrow(scale), X, chains, num_temperatures=temperatures, seed=0)
    verdict = E.diagnose(found, precision=0.2).verdict.values
    off = abs(found.log_likelihood.values - exact_normal(X)) > 5 * found.mcse.values
    assert not (off & (verdict == "reliable")).any()
    assert (verdict == "reliable").mean() < 0.1
    if chains <= 100:
        assert set(verdict) <= {"more draws", "proposal too narrow"}


@pytest.mark.slow
def test_more_temperatures_and_chains_make_annealing_reliable() -> None:
    few = E.ais(normal_model, narrow(0.2), X, 32, num_temperatures=30, seed=0)
    table = E.verdicts(few, precision=0.2)
    assert int(table["data"]["more draws"]) == len(X)
    chains = int(table.draws_needed["more draws"])
    assert chains > 100
    found = E.ais(normal_model, narrow(0.2), X, 4 * chains, num_temperatures=200, seed=0)
    verdict = E.diagnose(found, precision=0.2).verdict.values
    assert (verdict == "reliable").mean() > 0.9
    check_close(found, exact_normal(X))


def test_a_few_weights_are_never_reliable_and_have_no_error() -> None:
    for number, has_error in ((100, False), (101, True)):
        found = E.evaluate(normal_model, normal_guide, X, number, seed=0)
        verdict = E.diagnose(found, precision=0.5).verdict.values
        assert ("reliable" in verdict) is has_error
        row = E.compare({"a": found, "b": found.copy()}).iloc[0]
        assert np.isfinite(row.mcse) == np.isfinite(row.bias) == has_error


@pytest.mark.parametrize("scale", [0.2, 0.3])
def test_compare_prints_no_error_of_a_narrow_guide(scale: float) -> None:
    found = {"a": E.evaluate(normal_model, narrow(scale), X, 100, seed=0)}
    assert np.isnan(E.compare(found).mcse["a"])


def with_constant(constant: float) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.factor("constant", constant + 0 * x)

    return model


@pytest.mark.parametrize("constant", [2e6, -2e6, 2e7])
def test_rounding_is_reported_and_float64_removes_it(constant: float) -> None:
    model = with_constant(constant)
    rounded = E.evaluate(model, normal_guide, X, 2000, seed=0)
    diagnosis = E.diagnose(rounded)
    assert set(diagnosis.verdict.values) == {"rounding"}
    assert np.isinf(diagnosis.draws_needed.values).all()
    assert "float64" in E.verdicts(rounded).what_to_do["rounding"]
    exact = E.evaluate(model, normal_guide, X.double(), 2000, seed=0)
    assert set(E.diagnose(exact).verdict.values) == {"reliable"}
    check_close(exact, exact_normal(X) + constant)


def test_draws_needed_with_some_rounding_can_be_reached() -> None:
    model = with_constant(3e5)  # rounding takes 0.036 of 0.05 nats
    first = E.evaluate(model, narrow(0.65), X, 200, seed=0)
    needed = int(E.draws_needed(first, 0.05).max())
    assert needed < 10_000
    assert float(E.evaluate(model, narrow(0.65), X, max(2 * needed, 200), seed=1).mcse.max()) < 0.05


def local_model(x: Tensor) -> None:
    normal_model(x)


def mixed_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 0.1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def trained(guide: Any, model: Program) -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, Adam({"lr": 0.03}), Trace_ELBO(num_particles=4, vectorize_particles=False))
    for _ in range(300):
        svi.step(X[:5])
    return guide


PACKING = [autoguide.AutoDiagonalNormal, autoguide.AutoMultivariateNormal, autoguide.AutoLowRankMultivariateNormal]


@pytest.mark.parametrize("make", PACKING)
@pytest.mark.parametrize("model", [local_model, mixed_model])
def test_a_guide_that_packs_all_data_is_named(model: Program, make: Callable[..., Any]) -> None:
    guide = make(model)
    guide(X[:5])
    for estimate in (E.evaluate, E.evaluate_globals):
        with pytest.raises(ValueError, match=rf"_{make.__name__}_latent.*AutoNormal\(model\)"):
            estimate(model, guide, X[:5], 100, seed=0)


def test_the_advice_on_packing_works() -> None:
    guide = trained(autoguide.AutoNormal(local_model), local_model)
    check_close(E.evaluate(local_model, guide, X[:5], 5000, seed=0), exact_normal(X[:5]))


@pytest.mark.slow
def test_the_advice_on_packing_works_beside_a_shared_latent() -> None:
    guide = trained(autoguide.AutoNormal(mixed_model), mixed_model)
    found = E.evaluate_globals(mixed_model, guide, X[:5], 5000, num_draws=8, seed=0)
    right = dist.Normal(0.0, 2**0.5).log_prob(X[:5]).numpy()
    assert abs(found.log_predictive.values - right).max() < 0.25  # w is near 0


@pytest.mark.parametrize(
    "make", [autoguide.AutoNormal, *(pytest.param(make, marks=pytest.mark.slow) for make in PACKING[:2])]
)
def test_a_guide_of_shared_latents_alone_is_evaluated(make: Callable[..., Any]) -> None:
    guide = trained(make(shared_model), shared_model)
    found = E.evaluate_globals(shared_model, guide, X[:5], 200, num_draws=20, seed=0)
    right = dist.Normal(0.0, 1.0).log_prob(X[:5]).numpy()
    assert abs(found.log_predictive.values - right).max() < 0.25
    assert np.isfinite(found.log_likelihood.values).all()


def test_warnings_are_fewer_than_data() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        E.diagnose(E.evaluate(normal_model, normal_guide, X, 200, seed=0))
    assert not caught
