"""Data outside of a support that depends on latent sites have weight zero at that draw only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ExpTransform

import pyrovae as pv
from tests.truth.programs import Program, by_quadrature, check_close, pair

E = pv.evaluation
COUNTS, REALS = torch.tensor([0.0, 2.0, 5.0, 3.0]), torch.tensor([0.3, 1.2, -0.4, 2.0])


def programs(
    prior: Any, likelihood: Callable[[Tensor], Any], guide: Callable[[Tensor], Any]
) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    def own_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide(x))

    return model, own_guide


def shifted_exponential(z: Tensor) -> Any:
    return dist.TransformedDistribution(dist.Exponential(torch.ones_like(z)), [AffineTransform(z, 1.0)])


def scaled(z: Tensor) -> Any:
    return dist.TransformedDistribution(
        dist.Uniform(torch.zeros_like(z), 1.0), [AffineTransform(z, 2.0), ExpTransform()]
    )


def integral(density: Callable[[float, float], float], x: Tensor) -> list[float]:
    return [
        np.log(integrate.quad(lambda z, v=v: stats.norm.pdf(z) * density(v, z), -9, 9, limit=400, points=[v, v - 2])[0])
        for v in x.tolist()
    ]


CASES: dict[str, tuple[tuple[Program, Program], Tensor, Any]] = {
    "binomial": (
        programs(dist.Poisson(5.0), lambda n: dist.Binomial(n, 0.4), lambda x: dist.Poisson(5.0 + 0 * x)),
        COUNTS,
        stats.poisson.logpmf(COUNTS, 2),
    ),
    "uniform below": (
        programs(dist.Gamma(2.0, 1.0), lambda z: dist.Uniform(0.0, z), lambda x: dist.Gamma(2.0 + 0 * x, 0.8)),
        REALS.abs(),
        -REALS.abs().numpy(),  # uniform data below a Gamma(2, 1) latent
    ),
    "uniform around": (
        programs(dist.Normal(0.0, 1.0), lambda z: dist.Uniform(z - 5.0, z + 1.5), lambda x: dist.Normal(0.2 * x, 1.1)),
        REALS,
        np.log((stats.norm.cdf(REALS + 5) - stats.norm.cdf(REALS - 1.5)) / 6.5),
    ),
    "shifted exponential": (
        programs(dist.Normal(0.0, 1.0), shifted_exponential, lambda x: dist.Normal(x - 1, 1.2)),
        REALS,
        stats.exponnorm.logpdf(REALS.double(), 1.0),
    ),
    "Pareto": (
        programs(dist.Gamma(2.0, 1.0), lambda z: dist.Pareto(z, 2.0), lambda x: dist.Gamma(2.0 + 0 * x, 1.0)),
        REALS.abs(),
        [
            np.log(integrate.quad(lambda z, v=v: z * np.exp(-z) * 2 * z**2 / v**3, 0, v)[0])
            for v in REALS.abs().tolist()
        ],
    ),
    "two transforms": (
        programs(dist.Normal(0.0, 1.0), scaled, lambda x: dist.Normal(x.log() - 1.0, 0.9)),
        REALS.exp(),
        np.array(integral(lambda y, z: 0.5 * (z < y < z + 2), REALS)) - REALS.double().numpy(),
    ),
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
@pytest.mark.parametrize("name", CASES)
def test_data_outside_of_the_support_at_one_draw(name: str, seed: int) -> None:
    (model, guide), x, exact = CASES[name]
    check_close(E.evaluate(model, guide, x, 6000, seed=seed), exact, extra=0.01)
    log_weights = E.log_weights(model, guide, x, 400, seed=seed, vectorize=False).double()
    assert log_weights.isneginf().any()
    estimate, error = pv.evaluation.bounds.log_likelihood(log_weights)
    assert (abs(estimate.numpy() - exact) < 6 * error.numpy()).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("validate", [True, False])
def test_losses_where_data_lie_outside_at_some_draws(name: str, validate: bool) -> None:
    (model, guide), x, exact = CASES[name]
    with pyro.validation_enabled(validate):
        objective = pv.objectives.ReweightedWakeSleep(300)
        losses = [float(objective.loss(model, guide, x)[0]) for _ in range(12)]
    assert abs(np.mean(losses) + np.sum(exact)) < 5 * np.std(losses) / 12**0.5 + 0.1


def test_gradients_where_data_lie_outside_at_some_draws() -> None:
    shift = torch.tensor(0.1, requires_grad=True)
    (model, _), x, _ = CASES["uniform around"]
    guide = programs(None, lambda z: z, lambda x: dist.Normal(0.2 * x + shift, 1.1))[1]
    pv.objectives.IWAE(200).loss_and_grads(model, guide, x)
    assert shift.grad is not None
    assert shift.grad.isfinite()


@pytest.mark.parametrize("classes", [7, 10])
def test_an_enumerated_count(classes: int) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Categorical(torch.ones(classes)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Binomial(n.float(), 0.4), obs=x)

    exact = [np.log(np.mean([stats.binom.pmf(v, n, 0.4) for n in range(classes)])) for v in COUNTS.tolist()]
    found = E.evaluate(model, lambda x: None, COUNTS, 20, seed=0)
    np.testing.assert_allclose(found.log_likelihood, exact, atol=1e-4)
    with pytest.raises(ValueError, match=r"datum 2 lies outside the support for each of 64 draws"):
        E.evaluate(model, lambda x: None, torch.tensor([0.0, 1.0, 11.0]), 20, seed=0)


@pytest.mark.parametrize("bad", [-1.0, 2.5])
@pytest.mark.parametrize(("size", "index"), [(4, 3), (2000, 1999)])
def test_data_outside_at_all_draws_are_refused(bad: float, size: int, index: int) -> None:
    x = COUNTS.repeat(size // 4)
    x[index] = bad
    with pytest.raises(ValueError, match=rf"Binomial.*datum {index} lies outside the support"):
        E.evaluate(*CASES["binomial"][0], x, 10, seed=0)


def test_grey_values_are_refused() -> None:
    model, guide = programs(dist.Normal(0.0, 1.0), lambda z: dist.Bernoulli(logits=z), lambda x: dist.Normal(x, 1.0))
    for index in (0, 5, 2999):
        x = torch.zeros(3000)
        x[index] = 0.5
        with pytest.raises(ValueError, match="Bernoulli likelihoods cannot score grey values"):
            E.evaluate(model, guide, x, 10, seed=0)


@pytest.mark.parametrize("by_entry", [True, False])
def test_a_masked_value_may_lie_outside(by_entry: bool) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            n = pyro.sample("z", dist.Poisson(5.0))
            binomial = dist.Binomial(n.unsqueeze(-1), torch.tensor([0.4]))
            mask = x >= 0
            likelihood = binomial.mask(mask).to_event(1) if by_entry else binomial.to_event(1).mask(mask[:, 0])
            pyro.sample("x", likelihood, obs=x)

    guide = CASES["binomial"][0][1]
    x = torch.tensor([[2.0], [-1.0], [3.0]])
    found = E.evaluate(model, lambda x: guide(x[:, 0]), x, 6000, seed=0)
    check_close(found, np.where([True, False, True], stats.poisson.logpmf([2, 0, 3], 2), 0.0), extra=0.01)


def test_a_latent_with_a_prior_on_a_shifted_half_line() -> None:
    x = torch.tensor([0.7, 1.2, 2.0])
    model, guide = pair(
        lambda x: dist.TransformedDistribution(dist.Exponential(1.0), [AffineTransform(0.5, 1.0)]),
        lambda x: dist.Normal(x, 0.5),
    )
    exact = by_quadrature(x, lambda z: float(np.exp(0.5 - z)) * (z > 0.5), 0.5, 9)
    check_close(E.evaluate(model, guide, x, 6000, seed=0), exact)
