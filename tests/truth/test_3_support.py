"""A draw outside of the model's support has weight zero, and guides that cannot reach the posterior are refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import by_quadrature, check_close, normal_model, pair

X = torch.tensor([0.1, 0.5, 1.2])
CASES: dict[str, tuple[Callable[[Tensor], Any], Callable[[float], float], float, float]] = {
    "Gamma": (lambda x: dist.Gamma(2.0, 2.0), lambda z: stats.gamma.pdf(z, 2, scale=0.5), 0, 10),
    "Beta": (lambda x: dist.Beta(2.0, 3.0), lambda z: stats.beta.pdf(z, 2, 3), 0, 1),
    "LogNormal": (lambda x: dist.LogNormal(0.0, 1.0), lambda z: stats.lognorm.pdf(z, 1), 0, 10),
    "HalfNormal": (lambda x: dist.HalfNormal(1.0), stats.halfnorm.pdf, 0, 10),
    "Uniform": (lambda x: dist.Uniform(0.0, 1.0), stats.uniform.pdf, 0, 1),
}


def around(x: Tensor) -> Any:
    return dist.Normal(x, 0.5)


@pytest.mark.parametrize("name", CASES)
def test_a_guide_that_steps_outside(name: str) -> None:
    prior, density, low, high = CASES[name]
    model, guide = pair(prior, around)
    exact = by_quadrature(X, density, low, high)
    check_close(pv.evaluation.evaluate(model, guide, X, 4000, seed=0), exact)
    check_close(pv.evaluation.rqmc(model, guide, X, 2048, seed=0), exact, extra=5e-3)
    losses = [pv.objectives.IWAE(500).loss(model, guide, X) for _ in range(10)]
    assert abs(np.mean(losses) + exact.sum()) < 5 * np.std(losses) / 10**0.5 + 0.05
    for tool in (pv.evaluation.ais, pv.evaluation.nuts):
        with pytest.raises(ValueError, match="'z' has another support in the guide"):
            tool(model, guide, X, 16, seed=0)


def test_a_support_that_depends_on_the_datum() -> None:
    model, guide = pair(lambda x: dist.Uniform(torch.zeros(len(x)), x), lambda x: dist.Normal(0.8 * x, 0.3))
    exact = [by_quadrature(X[i : i + 1], lambda _, x=float(X[i]): 1 / x, 0, float(X[i]))[0] for i in range(len(X))]
    check_close(pv.evaluation.evaluate(model, guide, X, 4000, seed=0), exact)
    with pytest.raises(ValueError, match="support of latent site 'z' depends"):
        pv.evaluation.ais(model, guide, X, 4, seed=0)


def test_a_support_that_depends_on_another_latent_that_is_outside() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Exponential(1.0))
            b = pyro.sample("b", dist.Uniform(0.0, a))
            pyro.sample("x", dist.Normal(b, 0.3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x + 0.7, 1.0))
            pyro.sample("b", dist.Normal(x, 0.5))

    exact = [
        np.log(
            integrate.quad(
                lambda b, x=x: integrate.quad(lambda a: np.exp(-a) / a, b, 30)[0] * stats.norm.pdf(x, b, 0.3), 0, 6
            )[0]
        )
        for x in X.tolist()
    ]
    check_close(pv.evaluation.evaluate(model, guide, X, 20_000, seed=0), exact, extra=0.01)
    assert np.isfinite(pv.objectives.IWAE(100).loss(model, guide, X))


@pytest.mark.parametrize("values", [4, 6])
def test_a_discrete_draw_that_the_model_has_no_entry_for(values: int) -> None:
    table, p = torch.tensor([0.0, 1.0, 5.0]), [0.2, 0.5, 0.3]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor(p)))
            pyro.sample("x", dist.Normal(table[k], 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.ones(len(x), values) / values))

    exact = np.log(sum(w * stats.norm.pdf(X.numpy(), m, 0.5) for w, m in zip(p, table.tolist(), strict=True)))
    check_close(pv.evaluation.evaluate(model, guide, X, 4000, seed=0), exact)


@pytest.mark.parametrize("validate", [True, False])
def test_gradients_where_draws_lie_outside(validate: bool) -> None:
    shift = torch.tensor(0.1, requires_grad=True)
    model, _ = pair(lambda x: dist.Gamma(2.0, 2.0), around)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + shift, 0.5))

    with pyro.validation_enabled(validate):
        pv.objectives.IWAE(200).loss_and_grads(model, guide, X)
    assert shift.grad is not None
    assert shift.grad.isfinite()


NARROW = {
    "Gamma": lambda x: dist.Gamma(2.0 + 0 * x, 2.0),
    "HalfNormal": lambda x: dist.HalfNormal(1.0 + 0 * x),
    "Uniform": lambda x: dist.Uniform(-1.0 + 0 * x, 1.0),
}


@pytest.mark.parametrize("name", NARROW)
def test_a_guide_that_misses_a_part_of_the_posterior_is_refused(name: str) -> None:
    _, guide = pair(around, NARROW[name])
    for tool in (pv.evaluation.evaluate, pv.evaluation.log_weights, pv.evaluation.rqmc):
        with pytest.raises(ValueError, match="the guide has no density for about"):
            tool(normal_model, guide, torch.tensor([0.3, -1.0, 2.0]), 64, seed=0)


def test_a_bounded_guide_around_the_posterior_is_right() -> None:
    model, guide = pair(lambda x: dist.Normal(0.0, 10.0), lambda x: dist.Uniform(x - 2.5, x + 2.5))
    exact = stats.norm.logpdf(X.double().numpy(), 0, np.hypot(10, 0.3))
    check_close(pv.evaluation.evaluate(model, guide, X, 4000, seed=0), exact)


MEASURES = {
    "a density beside probabilities": (lambda x: dist.Poisson(2.0), lambda x: dist.Normal(x, 1.0)),
    "probabilities beside a density": (lambda x: dist.Normal(0.0, 1.0), lambda x: dist.Poisson(1 + x)),
    "real numbers beside angles": (lambda x: dist.VonMises(0.0, 0.5), lambda x: dist.Normal(x, 2.0)),
    "angles beside real numbers": (lambda x: dist.Normal(0.0, 1.0), lambda x: dist.VonMises(x, 2.0)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_densities_without_a_common_measure_are_refused(name: str) -> None:
    model, guide = pair(*MEASURES[name])
    for call in (
        lambda: pv.evaluation.evaluate(model, guide, X, 10, seed=0),
        lambda: pv.evaluation.ais(model, guide, X, 4, seed=0),
        lambda: pv.objectives.IWAE(2).loss(model, guide, X),
    ):
        with pytest.raises(ValueError, match=r"'z' is .* not an importance weight"):
            call()


def test_a_simplex_is_no_plane() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(2)))
            pyro.sample("x", dist.Normal(p[..., 0], 0.3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Normal(torch.full((len(x), 2), 0.5), 0.3).to_event(1))

    with pytest.raises(ValueError, match="a density on the simplex in the model"):
        pv.evaluation.evaluate(model, guide, X, 10, seed=0)
