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


def with_sites(*sites: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> Callable[[Tensor], None]:
    """Return a model with two latents z for the locations, a latent v and two latents w for the scales."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for i, make in enumerate(sites):
                fn = make(v, w, z, x)
                pyro.sample(f"x{i}", fn, obs=x[:, : fn.event_shape[0]])

    return model


def of_all(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("v", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("w", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 0.5).to_event(1))


EXACT = lambda v, w, z, x: dist.Normal(z, v.exp()[..., None]).to_event(1)  # noqa: E731
OTHER_SITE = lambda v, w, z, x: dist.Normal(torch.zeros(4), w[..., :1].exp()).to_event(1)  # noqa: E731
PAIRS = lambda z: z.repeat_interleave(2, -1)  # noqa: E731
STRUCTURES: dict[str, tuple[list[Any], bool]] = {
    "another site has more entries": ([EXACT, OTHER_SITE], True),
    "half of the entries are masked": (
        [
            lambda v, w, z, x: (
                dist.Normal(PAIRS(z), v.exp()[..., None]).mask(torch.tensor([True, False] * 2)).to_event(1)
            )
        ],
        True,
    ),
    "an affine transform": (
        [
            lambda v, w, z, x: dist.TransformedDistribution(
                dist.Normal(z, v.exp()[..., None]), [dist.transforms.AffineTransform(1.0, 2.0)]
            ).to_event(1)
        ],
        True,
    ),
    "a scale for each entry": ([lambda v, w, z, x: dist.Normal(z.sum(-1, keepdim=True), w.exp()).to_event(1)], True),
    "the location is fixed": (
        [
            lambda v, w, z, x: dist.Normal(torch.zeros(2), v.exp()[..., None]).to_event(1),
            lambda v, w, z, x: dist.Normal(z, torch.tensor(1.0)).to_event(1),
        ],
        False,
    ),
    "entries of different size, bounded": (
        [lambda v, w, z, x: dist.Normal(z, torch.tensor([0.01, 1.0]) * (1 + v.exp()[..., None])).to_event(1)],
        False,
    ),
    "too many entries": ([lambda v, w, z, x: dist.Normal(PAIRS(z), v.exp()[..., None]).to_event(1)], False),
    "no location": ([lambda v, w, z, x: dist.Poisson((z + v[..., None]).exp()).to_event(1)], False),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("vectorize", [True, False])
def test_the_entries_that_share_a_noise_and_the_latents_that_move_them_are_counted(name: str, vectorize: bool) -> None:
    sites, expected = STRUCTURES[name]
    x = torch.linspace(0.0, 3.0, 12).round().reshape(3, 4)
    with Problem(with_sites(*sites), of_all, x, seed=0, vectorize=vectorize) as problem:
        assert can_fit_exactly(Space(problem)) == expected


def test_programs_without_gradients_can_be_evaluated_with_draws_from_the_guide() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.from_numpy(z.numpy()), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.75))

    results: Any = log_likelihood(model, guide, torch.tensor([0.5, 1.0, 2.0]), seed=0)
    assert (results.estimator == "guide").all()


def test_the_estimates_are_not_reliable_and_a_warning_says_why() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        known = PROGRAMS["scale of the noise"](10)
    with pytest.warns(UserWarning, match="can fit these entries exactly"):
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
