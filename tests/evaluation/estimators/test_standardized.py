"""Coordinates in which conditional priors are standard: their map, their densities, and posteriors like funnels."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from experiments.benchmarks.known_posteriors import PROGRAMS as KNOWN
from pyrovae._refinement.refine import refine
from pyrovae._waist.sites import sample_sites
from pyrovae.evaluation import Problem, log_likelihood
from pyrovae.evaluation.unconstrained.conditional_priors import scaled_sites
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.standardized import Standardized
from pyrovae.evaluation.unconstrained.target import Target

X = torch.tensor([[0.3, -0.2, 0.4], [2.0, -1.5, 0.1]], dtype=torch.float64)


class Program(NamedTuple):
    """A model, a guide, and the names of the sites whose prior scale depends on other latents."""

    model: Callable[[Tensor], None]
    guide: Callable[[Tensor], None]
    scaled: tuple[str, ...]


def normal(x: Tensor, shape: tuple[int, ...], scale: float = 0.5) -> Any:
    zeros = torch.zeros(len(x), *shape, dtype=x.dtype)
    return dist.Normal(zeros, scale).to_event(len(shape))


def levels() -> Program:
    """Each of three levels determines the scale of the next."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            v = pyro.sample("v", dist.Normal(0.5 * w, (w / 2).exp()))
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=x.dtype), v.exp()[..., None]).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x, (3,)))  # not in the order of the model
            pyro.sample("w", normal(x, ()))
            pyro.sample("v", normal(x, ()))

    return Program(model, guide, ("v", "z"))


def positive() -> Program:
    """A positive scale, a log-normal site, and a multivariate normal site with correlations."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            tau = pyro.sample("tau", dist.HalfCauchy(torch.ones((), dtype=x.dtype)))
            a = pyro.sample("a", dist.LogNormal(torch.log(tau), tau))
            root = tau[..., None, None] * torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=x.dtype)
            b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(2, dtype=x.dtype), scale_tril=root))
            mean = torch.cat([b, a[..., None]], -1)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        zeros = torch.zeros(len(x), dtype=x.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample("tau", dist.LogNormal(zeros, 0.5))
            pyro.sample("a", dist.LogNormal(zeros, 0.5))
            pyro.sample("b", normal(x, (2,)))

    return Program(model, guide, ("a", "b"))


def constant() -> Program:
    """The location of a prior depends on a latent, but no scale does."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z = pyro.sample("z", dist.Normal(v[..., None].expand(*v.shape, 3), 0.7).to_event(1))
            pyro.sample("x", dist.Normal(z, v.exp()[..., None]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("v", normal(x, ()))
            pyro.sample("z", normal(x, (3,)))

    return Program(model, guide, ())


def enumerated() -> Program:
    """The scale depends on a latent and on a discrete site that the model enumerates."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            half = torch.full((2,), 0.5, dtype=x.dtype)
            k = pyro.sample("k", dist.Categorical(half), infer={"enumerate": "parallel"})
            scale = (v.exp() * (1.0 + k))[..., None].expand(*torch.broadcast_shapes(v.shape, k.shape), 3)
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=x.dtype), scale).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("v", normal(x, ()))
            pyro.sample("z", normal(x, (3,)))

    return Program(model, guide, ())


PROGRAMS = {make.__name__: make for make in (levels, positive, constant, enumerated)}


def test_a_site_that_only_one_run_has_does_no_harm() -> None:
    first, again = (sample_sites(pyro.poutine.trace(levels().model).get_trace(X)) for _ in range(2))
    assert scaled_sites(first, again) == ("v", "z")
    assert scaled_sites(first, again[:2]) == ("v",)
    assert scaled_sites(first[1:], again) == ("v", "z")


@pytest.fixture(params=[True, False], ids=["vectorized", "one run for each draw"])
def vectorize(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["levels", "positive"])
def target(request: pytest.FixtureRequest, vectorize: bool) -> Iterator[Target]:
    program = PROGRAMS[request.param]()
    with Problem(program.model, program.guide, X, seed=0, vectorize=vectorize) as problem:
        yield Target(Space(problem), next(problem.batches(2)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_sites_whose_prior_scale_depends_on_other_latents_are_found(name: str) -> None:
    program = PROGRAMS[name]()
    with Problem(program.model, program.guide, X, seed=0) as problem:
        assert Space(problem).scaled == program.scaled


def test_the_two_maps_are_inverse_and_their_determinant_is_that_of_the_jacobian(target: Target) -> None:
    standardized = Standardized(target)
    standard = torch.randn(3, 2, target.dim, dtype=torch.float64)
    u, log_det = standardized.place(standard)
    back, same = standardized.standardize(u)
    assert torch.allclose(back, standard)
    assert torch.allclose(same, log_det)
    assert not torch.allclose(u, standard)
    for s in range(3):
        jacobian: Any = torch.func.jacrev(lambda e: standardized.place(e[None])[0][0].sum(0))(standard[s])
        assert torch.allclose(torch.linalg.slogdet(jacobian.movedim(1, 0))[1], log_det[s])


def test_densities_change_by_the_determinant_and_gradients_are_those_of_the_density(target: Target) -> None:
    standardized = Standardized(target)
    standard = torch.randn(3, 2, target.dim, dtype=torch.float64)
    u, log_det = standardized.place(standard)
    joint, guide = standardized.log_densities(standard)
    assert torch.allclose(joint, target.log_joint(u) + log_det)
    assert torch.allclose(guide, target.log_guide(u) + log_det)
    assert torch.allclose(standardized.log_guide(standard), guide)
    value, gradient = standardized.value_and_gradient(standard)
    with torch.enable_grad():
        at = standard.clone().requires_grad_()
        (expected,) = torch.autograd.grad(standardized.log_joint(at).sum(), at)
    assert torch.allclose(value, joint)
    assert torch.allclose(gradient, expected)


def test_draws_have_the_log_density_that_is_returned_with_them(target: Target) -> None:
    standardized = Standardized(target)
    for posterior in (standardized, standardized.subset(torch.tensor([1]))):
        standard, log_q = posterior.draw(4)
        assert torch.allclose(log_q, posterior.log_densities(standard)[1], atol=1e-5)


def test_a_mixture_takes_the_place_of_the_guide(target: Target) -> None:
    fitted = refine(target)
    standardized = Standardized(target, fitted)
    standard, log_q = standardized.draw(400)
    u, log_det = standardized.place(standard)
    mixture = fitted.mixture(target, score_guide=True)
    assert torch.allclose(log_q, mixture.log_density(u, target.log_guide(u)) + log_det, atol=1e-5)
    assert torch.allclose(log_q, standardized.log_densities(standard)[1], atol=1e-5)
    assert torch.allclose(log_q[:, 1:], standardized.subset(torch.tensor([1])).log_guide(standard[:, 1:]), atol=1e-5)


def test_a_program_with_a_fixed_number_of_data_has_the_same_coordinates() -> None:
    """An autoguide has parameters for each datum, so every run scores the whole batch."""
    program = levels()
    with pyro.get_param_store().scope():
        autoguide = AutoNormal(program.model)
        autoguide(X)
        with Problem(program.model, autoguide, X, seed=0) as problem:
            assert not problem.probe.cuttable
            whole = Target(Space(problem), next(problem.batches(2)))
            part, standard = whole.subset(torch.tensor([1])), torch.randn(3, 2, whole.dim, dtype=torch.float64)
            expected, found = Standardized(whole), Standardized(part)
            some = standard[:, 1:]
            assert torch.allclose(found.place(some)[0], expected.place(standard)[0][:, 1:])
            assert torch.allclose(found.log_joint(some), expected.log_joint(standard)[:, 1:])
            pairs = zip(found.value_and_gradient(some), expected.value_and_gradient(standard), strict=True)
            assert all(torch.allclose(one, other[:, 1:]) for one, other in pairs)
            drawn, log_q = found.draw(5)
            assert torch.allclose(log_q, found.log_guide(drawn), atol=1e-5)


def test_a_scale_without_a_gradient_does_no_harm() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            scale = torch.where(v > 0, 1.0, 0.1)[..., None].to(x)
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=x.dtype), scale).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    with Problem(model, levels_without_w, X, seed=0) as problem:
        target = Standardized(Target(Space(problem), next(problem.batches(2))))
        standard = torch.randn(3, 2, target.dim, dtype=torch.float64)
        value, gradient = target.value_and_gradient(standard)
        with torch.enable_grad():
            at = standard.clone().requires_grad_()
            (expected,) = torch.autograd.grad(target.log_joint(at).sum(), at)
        assert torch.allclose(value, target.log_joint(standard))
        assert torch.allclose(gradient, expected)


def levels_without_w(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("v", normal(x, ()))
        pyro.sample("z", normal(x, (3,)))


@pytest.mark.parametrize("num_draws", [15, 61])
def test_a_mixture_in_standardized_coordinates_is_unbiased_although_its_guide_is_a_mixture(num_draws: int) -> None:
    """The outer mixture takes one draw more from the inner mixture for some data than for others."""
    program = levels()
    x = X[:1].expand(64, 3)
    with Problem(program.model, program.guide, x, seed=0) as problem:
        base = Target(Space(problem), next(problem.batches(64)))
        inner = refine(base)
        inner = inner.select(torch.zeros(64, dtype=torch.long))  # all data have the same mixture
        standardized = Standardized(base, inner)
        outer = refine(standardized).select(torch.zeros(64, dtype=torch.long))
        mixture = outer.mixture(standardized, score_guide=True)
        means = []
        for _ in range(100):
            drawn = mixture.draw(num_draws)
            guide = standardized.log_guide(drawn.u)
            means.append((guide - drawn.log_q).exp().mean())  # its expectation is 1
    means_of = torch.stack(means)
    assert abs(float(means_of.mean()) - 1) < 4 * float(means_of.std()) / len(means) ** 0.5


@pytest.mark.parametrize("budget", [1000, 6000])
def test_every_datum_of_a_funnel_gets_an_estimate_within_a_small_budget(budget: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        known = KNOWN["funnel, 30 latents"](12)
    results: Any = log_likelihood(known.model, known.guide, known.x, budget=budget, seed=0)
    assert results.log_likelihood.notnull().all()
    assert (results.estimator != "none").all()
