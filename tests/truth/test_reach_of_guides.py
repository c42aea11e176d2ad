"""A guide that cannot draw a part of the posterior is refused, for every kind of support."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions.transforms import AffineTransform

import pyrovae as pv
from tests.truth.programs import Program, by_quadrature, check_close, pair

E = pv.evaluation
X = torch.tensor([0.3, 1.2, 2.0, 0.7, 3.0])
PRIOR = torch.tensor([0.2, 0.5, 0.3])
MEANS = torch.tensor([-1.0, 0.0, 2.0])
REFUSED = r"the guide has no density for .* of the posterior of datum"


def normal(z: Tensor) -> Any:
    return dist.Normal(z, 0.7)


def programs(prior: Any, posterior: Callable[[Tensor], Any], likelihood: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


def of_classes(posterior: Callable[[Tensor], Any]) -> tuple[Program, Program]:
    return programs(dist.Categorical(PRIOR), posterior, lambda y: normal(MEANS[y]))


def of_one_hots(posterior: Callable[[Tensor], Any]) -> tuple[Program, Program]:
    return programs(dist.OneHotCategorical(PRIOR), posterior, lambda y: normal((y * MEANS).sum(-1)))


def of_reals(posterior: Callable[[Tensor], Any]) -> tuple[Program, Program]:
    return programs(dist.Normal(0.0, 1.0), posterior, normal)


def nearest(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot((x[:, None] - MEANS).abs().argmin(-1), 3).float()


def narrow_for_large_data(x: Tensor) -> Tensor:
    return torch.where((x > 2.5).unsqueeze(-1), torch.tensor([1.0, 1.0, 0.0]), torch.ones(3))


SMALL: dict[str, tuple[Program, Program]] = {
    "half normal": of_reals(lambda x: dist.HalfNormal(torch.ones_like(x))),
    "uniform": of_reals(lambda x: dist.Uniform(x / 1.49 - 0.3, x / 1.49 + 0.3)),
    "very narrow uniform": of_reals(lambda x: dist.Uniform(x / 1.49 - 1e-3, x / 1.49 + 1e-3)),
    "Pareto": of_reals(lambda x: dist.Pareto(0.1 + 0 * x, 1.0)),
    "Beta": of_reals(lambda x: dist.Beta(1.0 + 0 * x, 1.0)),
    "shifted half-line": of_reals(
        lambda x: dist.TransformedDistribution(dist.Exponential(1.0 + 0 * x), [AffineTransform(0.3, 1.0)])
    ),
    "interval of a half-line": programs(dist.Gamma(2.0, 1.0), lambda x: dist.Uniform(0 * x, 1.0), normal),
    "interval of an interval": programs(dist.Uniform(-2.0, 2.0), lambda x: dist.Uniform(0 * x - 0.5, 1.0), normal),
    "two of three classes": of_classes(lambda x: dist.Categorical(torch.tensor([0.6, 0.4]).expand(len(x), 2))),
    "a class of probability zero": of_classes(
        lambda x: dist.Categorical(torch.tensor([0.6, 0.4, 0]).expand(len(x), 3))
    ),
    "a logit of -inf": of_classes(
        lambda x: dist.Categorical(logits=torch.tensor([0, 0, -torch.inf]).expand(len(x), 3))
    ),
    "a point of classes": of_classes(lambda x: dist.Categorical(nearest(x))),
    "the last datum": of_classes(lambda x: dist.Categorical(narrow_for_large_data(x))),
    "a point of one-hots": of_one_hots(lambda x: dist.OneHotCategorical(nearest(x))),
    "a Bernoulli point": programs(dist.Bernoulli(0.4), lambda x: dist.Bernoulli(torch.ones_like(x)), normal),
    "binomial for Poisson": programs(
        dist.Poisson(3.0), lambda x: dist.Binomial(2, 0.5 + 0 * x), lambda k: dist.Normal(k, 0.7)
    ),
    "bits": programs(
        dist.Bernoulli(torch.full((4,), 0.5)).to_event(1),
        lambda x: dist.Bernoulli(torch.tensor([0.5, 0.5, 0.5, 0.0]).expand(len(x), 4)).to_event(1),
        lambda b: dist.Normal(b.sum(-1), 0.7),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_guide_that_cannot_draw_a_part_of_the_posterior_is_refused(name: str) -> None:
    model, guide = SMALL[name]
    for seed in range(3):
        with pytest.raises(ValueError, match=REFUSED):
            E.evaluate(model, guide, X, 200, seed=seed)
    for call in (
        lambda: E.log_likelihood(model, guide, X, seed=0),
        lambda: E.log_weights(model, guide, X, 20, seed=0, vectorize=False),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            call()


def test_a_guide_that_is_too_small_in_one_of_many_dimensions() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            width = torch.full((len(x), 20), 3.0)
            pyro.sample("z", dist.Uniform(-0.3 * width, width).to_event(1))

    with pytest.raises(ValueError, match=REFUSED):
        E.evaluate(model, guide, X, 100, seed=0)


def bits(prior: float, rates: Callable[[Tensor], Tensor], scale: float) -> tuple[Program, Program]:
    """Return a model of independent bits with a given prior probability, and a guide with given probabilities."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((x.shape[1],), prior)).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(rates(x)).to_event(1))

    return model, guide


def test_a_guide_that_cannot_draw_one_of_many_bits() -> None:
    """Draws from the prior do not find the posterior, and the joint probability of the other bits shows nothing."""
    truth = torch.rand(6, 16, generator=torch.Generator().manual_seed(0)).round()
    truth[:, 5] = 1.0

    def rates(x: Tensor) -> Tensor:
        rate = x.round().clamp(0.05, 0.95)
        rate[:, 5] = 1e-9
        return rate

    with pytest.raises(ValueError, match=REFUSED):
        E.evaluate(*bits(0.05, rates, 0.3), truth, 200, seed=0)


def test_a_guide_of_many_bits_that_covers_the_posterior_is_accepted() -> None:
    """The probability of any value of 60 fair bits is below that of a value that is never drawn."""
    found = E.evaluate(*bits(0.5, lambda x: torch.full_like(x, 0.5), 10.0), torch.zeros(6, 60), 2000, seed=0)
    per_bit = np.log((stats.norm.pdf(0, 0, 10) + stats.norm.pdf(0, 1, 10)) / 2)
    check_close(found, np.full(6, 60 * per_bit))


def test_the_datum_is_named() -> None:
    x = torch.full((2500,), 3.0)
    x[1700] = -1.0
    model, guide = of_reals(lambda x: dist.HalfNormal(torch.ones_like(x)))
    with pytest.raises(ValueError, match=r"of the posterior of datum 1700"):
        E.evaluate(model, guide, x, 20, seed=0)


@pytest.mark.slow
def test_other_classes_of_distributions_with_the_same_support_are_right() -> None:
    x = torch.tensor([0.1, 0.5, 1.2])
    fine = {
        "LogNormal for Gamma": (
            pair(lambda x: dist.Gamma(2.0, 2.0), lambda x: dist.LogNormal(x.log() / 2, 1.0)),
            (lambda z: stats.gamma.pdf(z, 2, scale=0.5), 0, 10),
        ),
        "Beta for Uniform": (
            pair(lambda x: dist.Uniform(0.0, 1.0), lambda x: dist.Beta(1.0 + 0 * x, 1.0)),
            (stats.uniform.pdf, 0, 1),
        ),
        "Exponential for HalfNormal": (
            pair(lambda x: dist.HalfNormal(1.0), lambda x: dist.Exponential(1.0 + 0 * x)),
            (stats.halfnorm.pdf, 0, 10),
        ),
        "wide Uniform for Normal": (
            pair(lambda x: dist.Normal(0.0, 10.0), lambda x: dist.Uniform(x - 2.5, x + 2.5)),
            (lambda z: stats.norm.pdf(z, 0, 10), -3, 4),
        ),
    }
    for (model, guide), (density, low, high) in fine.values():
        for vectorize in (None, False):
            found = E.evaluate(model, guide, x, 1500, seed=0, vectorize=vectorize)
            check_close(found, by_quadrature(x, density, low, high), extra=5e-3)


DISCRETE: dict[str, tuple[tuple[Program, Program], Any]] = {
    "all classes": (
        of_classes(lambda x: dist.Categorical(torch.softmax(-((x[:, None] - MEANS) ** 2), -1))),
        np.log(np.exp(stats.norm.logpdf(X.numpy()[:, None], MEANS.numpy(), 0.7)) @ PRIOR.numpy()),
    ),
    "a class that has no mass": (
        programs(
            dist.Categorical(torch.tensor([0.4, 0.6, 0.0])),
            lambda x: dist.Categorical(torch.tensor([0.5, 0.5]).expand(len(x), 2)),
            lambda y: normal(MEANS[y]),
        ),
        np.log(np.exp(stats.norm.logpdf(X.numpy()[:, None], [-1.0, 0.0], 0.7)) @ [0.4, 0.6]),
    ),
    "a class that the datum excludes": (
        programs(
            dist.Categorical(PRIOR),
            lambda x: dist.Categorical(torch.tensor([0.5, 0.5]).expand(len(x), 2)),
            lambda y: normal(torch.tensor([-1.0, 0.0, 40.0])[y]),
        ),
        np.log(np.exp(stats.norm.logpdf(X.numpy()[:, None], [-1.0, 0.0], 0.7)) @ PRIOR.numpy()[:2]),
    ),
    "Poisson": (
        programs(dist.Poisson(3.0), lambda x: dist.Poisson(2.0 + x), lambda k: dist.Normal(k, 0.7)),
        np.log(
            sum(stats.poisson.pmf(k, 3) * stats.norm.pdf(X.numpy(), k, 0.7) for k in range(40)),
        ),
    ),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_guides_that_reach_the_posterior_are_right(name: str) -> None:
    (model, guide), exact = DISCRETE[name]
    for seed in range(3):
        check_close(E.evaluate(model, guide, X, 4000, seed=seed), exact)
