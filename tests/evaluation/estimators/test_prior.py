"""Draws from the prior show which regions of a posterior the guide misses, and then join the guide."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation.estimators import guide_stage
from pyrovae.evaluation.estimators.estimates import Estimates
from pyrovae.evaluation.unconstrained.flat import target_of
from pyrovae.evaluation.unconstrained.prior import Reach, WithPrior, reach_of_prior
from pyrovae.evaluation.unconstrained.space import Space

OPTIONS: Any = {"seed": 0, "progress": False}


def model(x: Tensor, size: int | None = None) -> None:
    with pyro.plate("data", size or len(x)):
        s = pyro.sample("s", dist.Gamma(2.0, 3.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), s[..., None]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def guide(x: Tensor, size: int | None = None) -> None:
    with pyro.plate("data", size or len(x)):
        pyro.sample("z", dist.Normal(x[:, None] / 2, torch.ones(2)).to_event(1))
        pyro.sample("s", dist.Gamma(1.0, torch.ones_like(x)))


def of_four(x: Tensor) -> None:
    model(x, 4)


def guide_of_four(x: Tensor) -> None:
    guide(x, 4)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("pair", [(model, guide), (of_four, guide_of_four)])
def test_draws_from_the_prior_and_their_density(pair: tuple[Any, Any], vectorize: bool) -> None:
    x = torch.zeros(4)
    with pv.evaluation.Problem(*pair, x, vectorize=vectorize, **OPTIONS) as problem:
        space = Space(problem)
        target = target_of(space, next(problem.batches(4))).subset(torch.tensor([2, 0, 3]))
        u, log_prior = target.draw_prior(500)
        values = space.split(u)
        s, z = values["s"].squeeze(1).double(), values["z"].squeeze(1).double()  # u holds the logarithm of s
        of_s = dist.Gamma(2.0, 3.0).log_prob(s.exp()) + s
        expected = of_s + dist.Normal(0.0, s.exp()[..., None]).log_prob(z).sum(-1)
        torch.testing.assert_close(log_prior.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(target.log_prior(u), log_prior, rtol=1e-4, atol=1e-4)
        assert u.shape == (500, 3, 3)
        mean, error = float(s.exp().mean()), float(s.exp().std()) / s.numel() ** 0.5
        assert abs(mean - 2 / 3) < 4 * error
        assert abs(float((z / s.exp()[..., None]).std()) - 1) < 4 / (2 * z.numel()) ** 0.5


def test_the_mixture_of_guide_and_prior_is_a_density_of_its_draws() -> None:
    """The mean of prior / mixture over draws from the mixture is 1, and half of the draws come from the prior."""
    x = torch.full((50,), 3.0)
    with pv.evaluation.Problem(model, guide, x, **OPTIONS) as problem:
        base = target_of(Space(problem), next(problem.batches(50)))
        target = WithPrior(base).subset(torch.arange(10, 50))
        for density in (target.base.log_prior, target.base.log_guide):
            drawn = [target.draw(count) for count in (1,) * 100 + (7,) * 100]
            ratios = torch.cat([(density(u) - log_q).exp() for u, log_q in drawn]).double()
            assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / ratios.numel() ** 0.5
        u, log_q = target.draw(5)
        torch.testing.assert_close(log_q, target.log_guide(u))
        torch.testing.assert_close(target.log_joint(u), target.base.log_joint(u))


def normal_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)


def guide_at(center: float) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(center * x, 0.1))

    return guide


def test_near_and_missed() -> None:
    """The guide covers one of two modes. The prior reaches both modes of small x, and no mode of x = 9."""
    x = torch.tensor([0.5, 1.0, 9.0])
    with pv.evaluation.Problem(normal_model, guide_at(1.0), x, **OPTIONS) as problem:
        target = target_of(Space(problem), next(problem.batches(3)))
        u, log_q = target.draw(1000)
        level = (target.log_joint(u) - log_q).double().logsumexp(0) - math.log(1000)
        found = reach_of_prior(target, level)
        assert found.near.tolist() == [True, True, False]
        assert found.missed.tolist() == [True, True, False]
        assert found.evaluations.tolist() == [640, 640, 128]
        assert reach_of_prior(target, level * math.nan).missed.all()


def test_a_guide_at_one_of_two_modes_does_not_hide_the_other() -> None:
    x = torch.linspace(0.4, 1.5, 30)
    both = [dist.Normal(0.0, 1.01**0.5).log_prob(x), dist.Normal(0.0, 1.0).log_prob(x)]
    grid = torch.linspace(-8, 8, 32001, dtype=torch.float64)
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid.abs(), 0.1).log_prob(x.double()[:, None])
    exact = joint.logsumexp(-1) + math.log(16 / 32000)
    assert (exact > torch.stack(both).amax(0) + 0.5).all()  # one mode alone would be wrong by log 2
    found = pv.evaluation.log_likelihood(normal_model, guide_at(1.0), x, seed=0)
    reliable = found.reliable.values
    assert reliable.mean() > 0.7
    errors = (found.log_likelihood.values - exact.numpy())[reliable]
    assert (abs(errors) < 2 * found.mcse.values[reliable]).mean() > 0.8
    assert abs(errors.mean()) < 0.03 + 4 * float((found.mcse.values[reliable] ** 2).sum()) ** 0.5 / len(errors)


@pytest.mark.parametrize("compiles", [False, True])
def test_data_far_from_the_prior_get_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, interpreted: None, compiles: bool
) -> None:
    x = torch.linspace(8.0, 9.0, 12)
    options: Any = {"compile": compiles, **OPTIONS}
    found = pv.evaluation.log_likelihood(normal_model, guide_at(0.9), x, **options)
    monkeypatch.setattr(guide_stage, "reach_of_prior", lambda target, _: Reach.unknown(target.size))
    plain = pv.evaluation.log_likelihood(normal_model, guide_at(0.9), x, **options)
    np.testing.assert_array_equal(found.log_likelihood, plain.log_likelihood)


FLOW = dist.transforms.AffineAutoregressive(pyro.nn.AutoRegressiveNN(2, [4]))


def test_a_program_may_fail_at_draws_from_the_prior() -> None:
    def fragile(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if len(z) > 3 and (abs(z) > 2.5).any():
                raise RuntimeError("too far")
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    x = torch.linspace(-0.5, 0.5, 4)
    with pv.evaluation.Problem(fragile, guide_at(1.0), x, **OPTIONS) as problem:
        space = Space(problem)
        stage = guide_stage.GuideStage(problem, space, 0.1, 2000)
        batch, estimates = next(problem.batches(4)), Estimates(4)
        assert space.has_prior
        with pytest.warns(UserWarning, match="no draws from the prior for data 0 to 3.*too far"):
            assert not stage.reach_of_prior(batch, estimates).near.any()
    with pytest.warns(UserWarning, match="no draws from the prior"):
        found = pv.evaluation.log_likelihood(fragile, guide_at(1.0), x, seed=0)
    assert found.reliable.all()


def flow_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [FLOW]))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def flow_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


def observed_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def improper_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        flat = dist.ImproperUniform(dist.constraints.real_vector, torch.Size([len(x)]), torch.Size([2]))
        z = pyro.sample("z", flat)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, None].expand(-1, 2))


def test_an_improper_prior_is_evaluated() -> None:
    """The posterior of a flat prior is the likelihood, whose integral over z is 1."""
    found = pv.evaluation.log_likelihood(improper_model, flow_guide, torch.tensor([0.0, 0.5]), seed=0)
    assert (abs(found.log_likelihood) < 4 * found.mcse + 1e-4).all()


def enumerated_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) + k, 1.0), obs=x)


@pytest.mark.parametrize(
    ("program", "expected"),
    [(flow_model, False), (enumerated_model, False), (improper_model, False), (observed_model, True)],
)
def test_priors_that_are_slow_or_unknown_are_not_used(program: Any, expected: bool) -> None:
    with pv.evaluation.Problem(program, flow_guide, torch.zeros(3), **OPTIONS) as problem:
        assert Space(problem).has_prior == expected


def test_a_mixture_prior_of_several_entries_is_refined() -> None:
    """The support of such a site is an independent mixture support, whose components have the same map to reals."""

    def mixed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Normal(torch.zeros(len(x), 3, 2), torch.tensor([0.5, 3.0]))
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), parts).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def its_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    x = torch.tensor([[4.0, -3.0, 0.0], [1.0, 2.0, 6.0]])
    found = pv.evaluation.log_likelihood(mixed, its_guide, x, seed=0)
    parts = [dist.Normal(0.0, (1 + scale**2) ** 0.5).log_prob(x.double()) for scale in (0.5, 3.0)]
    exact = (torch.logaddexp(*parts) - math.log(2)).sum(-1).numpy()
    assert found.estimator.values.tolist() == ["refined", "refined"]
    assert (abs(found.log_likelihood - exact) < 4 * found.mcse).all()
