"""Densities near the heaviest draws of a mixture make estimates of curved posteriors reliable, and bias none."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae._refinement.increments import NUM_ADDED, NUM_STEPS, Increments
from pyrovae._refinement.mixture import INCREMENT_REACH, INCREMENT_WEIGHT, MEMBERS, Draws, Mixture
from pyrovae._refinement.refine import by_regression, refine, refine_by_chains
from pyrovae.evaluation import psis
from tests._refinement.posteriors import ClosedForm, curved, gaussian, log_gamma, student_t


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def heaviest(draws: Draws) -> Tensor:
    indices = draws.log_weights.topk(NUM_ADDED, 0).indices
    return draws.u.gather(0, indices[..., None].expand(-1, -1, draws.u.shape[-1]))


def reliable(draws: Draws) -> float:
    return float(((psis(draws.log_weights)[1] < 0.7) & (draws.log_likelihood()[1] < 0.1)).double().mean())


def test_curved_posteriors_become_reliable() -> None:
    posterior = curved(60, 6)
    found = by_regression(posterior)
    draws = found.mixture(posterior, score_guide=True).draw(4000)
    assert reliable(draws) < 0.2
    for _ in range(NUM_STEPS):
        found.increments.add(posterior, found.density, heaviest(draws))
        draws = found.mixture(posterior, score_guide=True).draw(4000)
    assert reliable(draws) > 0.85
    estimates, mcse = draws.log_likelihood()
    assert abs(float(estimates.mean())) < 0.05  # half of the precision; a few percent of the mass have no draws
    assert (estimates.abs() < 4 * mcse).double().mean() > 0.95


@pytest.mark.parametrize("build", [lambda: log_gamma(2000, 3), lambda: student_t(2000, 3), lambda: curved(2000, 2)])
def test_increments_bias_no_estimate(build: Callable[[], ClosedForm]) -> None:
    """The draws that placed the densities are discarded, so the mean of the likelihoods is p(x)."""
    posterior = build()
    found = by_regression(posterior)
    found.increments.add(posterior, found.density, heaviest(found.mixture(posterior, score_guide=True).draw(300)))
    estimates, mcse = found.mixture(posterior, score_guide=True).draw(1000).log_likelihood()
    ratios = estimates.exp()
    assert abs(float(ratios.mean() - 1)) < 4 * float(ratios.std()) / 2000**0.5
    assert (estimates.abs() < 1.96 * mcse).double().mean() > 0.92


def test_the_density_of_the_mixture_is_that_of_its_parts() -> None:
    """The parts are computed by torch.distributions; one datum has no increments."""
    posterior = gaussian(3, 2, shift=0.5)
    found = by_regression(posterior)
    some = torch.tensor([0, 2])
    part = found.increments.select(some)
    part.add(posterior.subset(some), found.density.select(some), torch.randn(NUM_ADDED, 2, 2).double())
    found.increments.put(some, part)
    assert found.increments.count.tolist() == [NUM_ADDED, 0, NUM_ADDED]
    u = torch.randn(50, 3, 2, dtype=torch.float64)
    log_guide = posterior.log_densities(u)[1]
    log_q = found.mixture(posterior, score_guide=True).log_density(u, log_guide)
    covariance, sum_of_weights = found.density.root @ found.density.root.mT, sum(weight for weight, _ in MEMBERS)
    for i in range(3):
        taken = INCREMENT_WEIGHT if i != 1 else 0.0
        parts = [log_guide[:, i] + math.log(1 - sum_of_weights)]
        for member in MEMBERS:
            normal = MultivariateNormal(found.density.mean[i], covariance[i] * member.width(2) ** 2)
            parts.append(normal.log_prob(u[:, i]) + math.log(member.weight * (1 - taken)))
        for v in found.increments.means[i, :NUM_ADDED] if taken else ():
            mean = found.density.mean[i] + found.density.root[i] @ v
            normal = MultivariateNormal(mean, covariance[i] * (1 + INCREMENT_REACH / 2**0.5) ** 2)
            parts.append(normal.log_prob(u[:, i]) + math.log(sum_of_weights * taken / NUM_ADDED))
        assert torch.allclose(log_q[:, i], torch.stack(parts).logsumexp(0), atol=1e-9)


def test_draws_come_from_the_density_that_scores_them() -> None:
    """The mean of q / p over draws from a normal density p and that of p / q over draws from q are both 1."""
    posterior = gaussian(1, 2)
    found = by_regression(posterior)
    found.increments.add(posterior, found.density, 4 * torch.randn(NUM_ADDED, 1, 2).double())
    far = found.increments.means[0] + torch.tensor([3.0, 0.0])  # as far from the other components as in no posterior
    found.increments.means[0] = far
    mixture = found.mixture(posterior, score_guide=True)
    draws = mixture.draw(20_000)
    added = (draws.member >= len(MEMBERS)) & ~mixture.is_guide(draws.member)
    assert float(added.double().mean()) == pytest.approx(INCREMENT_WEIGHT * sum(w for w, _ in MEMBERS), abs=1e-3)
    wide = found.density.place(6.0 * torch.randn(200_000, 1, 2, dtype=torch.float64))
    log_p = found.density.log_prob(wide, 6.0)
    ratios = (mixture.log_density(wide, posterior.log_densities(wide)[1]) - log_p).exp()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / len(ratios) ** 0.5
    # A statistic under draws from q, and under draws from p weighted by q / p:
    v, w = found.density.whiten(draws.u)[:, 0, 0], found.density.whiten(wide)[:, 0, 0]
    weighted = w * ratios[:, 0]
    error = (v.var() / len(v) + weighted.var() / len(w)).sqrt()
    assert abs(float(v.mean() - weighted.mean())) < 4 * float(error)


def test_the_new_means_of_a_normal_posterior_are_its_mean() -> None:
    posterior = gaussian(4, 3)
    mean, covariance = posterior.parameters["mean"], posterior.parameters["covariance"]
    shifted = by_regression(posterior).density.from_covariance(mean + 0.3, covariance)
    increments = Increments.none(shifted)
    assert not increments.full.any()
    draws = shifted.place(torch.randn(NUM_ADDED, 4, 3, dtype=torch.float64).clamp(-2, 2))
    increments.add(posterior, shifted, draws)
    added = increments.narrowed()
    assert added.means.shape == (4, NUM_ADDED, 3)
    assert torch.allclose(shifted.place(added.means.movedim(1, 0)), mean.expand(NUM_ADDED, -1, -1), atol=1e-8)
    assert (posterior.gradients[0] > 0).all()
    for _ in range(NUM_STEPS - 1):
        assert not increments.full.any()
        increments.add(posterior, shifted, draws)
    assert increments.full.all()


def test_chains_that_move_the_density_drop_its_increments() -> None:
    posterior = curved(20, 4)
    found = refine(posterior)
    found.increments.add(posterior, found.density, heaviest(found.mixture(posterior, score_guide=True).draw(300)))
    again = refine_by_chains(posterior, found)
    moved = (again.density.mean != found.density.mean).any(-1)
    assert moved.any()
    assert torch.equal(again.increments.count, torch.where(moved, 0, NUM_ADDED))
    assert (found.increments.count == NUM_ADDED).all()


def test_the_mixture_of_a_failed_datum_stays_the_guide() -> None:
    posterior = gaussian(2, 2)
    found = by_regression(posterior)
    found.increments.add(posterior, found.density, torch.randn(NUM_ADDED, 2, 2).double())
    failed = torch.tensor([False, True])
    mixture = Mixture(posterior, found.density, increments=found.increments, failed=failed)
    draws = mixture.draw(200)
    assert mixture.is_guide(draws.member[:, 1]).all()
    assert torch.allclose(draws.log_q[:, 1], posterior.log_densities(draws.u)[1][:, 1])
    assert not mixture.is_guide(draws.member[:, 0]).all()
