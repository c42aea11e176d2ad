"""Programs whose latents can fit the data exactly while another latent removes the noise."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from experiments.benchmarks.known_posteriors import PROGRAMS
from pyrovae.evaluation import Problem, log_likelihood
from pyrovae.evaluation.unconstrained.exact_fits import can_fit_exactly
from pyrovae.evaluation.unconstrained.space import Space

LEARNED = nn.Parameter(torch.tensor(-1.0))
SCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "latent": lambda v, z: v.exp()[..., None],
    "latent, squared": lambda v, z: (1e-3 + v.square())[..., None],
    "latent, small lower bound": lambda v, z: (0.01 + v.exp())[..., None],
    "latent, rarely small": lambda v, z: (0.2 * v).exp()[..., None],
    "latent, bounded": lambda v, z: (1.0 + v.exp())[..., None],
    "of the fit itself": lambda v, z: z.exp(),
    "learned": lambda v, z: LEARNED.exp(),
    "fixed": lambda v, z: torch.tensor(0.5),
}


def program(scale: str, num_entries: int = 2) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], Tensor]:
    """Two latents z are the means of the data, and a latent v is available for their scale."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z.repeat_interleave(num_entries // 2, -1)
            pyro.sample("x", dist.Normal(mean, SCALES[scale](v, z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("z", dist.Normal(x[:, :2], 0.5).to_event(1))

    return model, guide, torch.linspace(-1.0, 1.0, 3 * num_entries).reshape(3, num_entries)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("vectorize", [True, False])
def test_an_exact_fit_needs_a_scale_that_another_latent_makes_small(scale: str, vectorize: bool) -> None:
    model, guide, x = program(scale)
    with Problem(model, guide, x, seed=0, vectorize=vectorize) as problem:
        expected = scale in ("latent", "latent, squared", "latent, small lower bound")
        assert can_fit_exactly(Space(problem)) == expected


def test_an_exact_fit_needs_as_many_latents_as_entries() -> None:
    model, guide, x = program("latent", num_entries=4)
    with Problem(model, guide, x, seed=0) as problem:
        assert not can_fit_exactly(Space(problem))


def test_the_estimates_are_not_reliable_and_a_warning_says_why() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        known = PROGRAMS["scale of the noise"](10)
    with pytest.warns(UserWarning, match="can fit the data exactly"):
        results: Any = log_likelihood(known.model, known.guide, known.x, seed=0)
    assert not results.reliable[results.estimator != "guide"].any()


def test_the_advice_works() -> None:
    """With a lower bound, the number is right and no warning appears."""
    model, guide, x = program("latent, bounded")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results: Any = log_likelihood(model, guide, x, seed=0)
    v = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    deviation = ((1 + v.exp()) ** 2 + 1).sqrt()
    terms = dist.Normal(0.0, 1.0).log_prob(v) + sum(dist.Normal(0.0, deviation).log_prob(x[:, i, None]) for i in (0, 1))
    exact = terms.logsumexp(-1) + torch.tensor(16 / 4000).log()
    assert results.reliable.all()
    assert (abs(results.log_likelihood.values - exact.numpy()) < 4 * results.mcse.values + 1e-3).all()
