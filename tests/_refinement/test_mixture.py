"""Mixtures of a fitted density with the guide estimate log p(x) without bias, with intervals that cover it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae._refinement.mixture import MEMBERS, Draws, Member, Mixture
from pyrovae._refinement.regression import fit
from pyrovae.evaluation import psis
from tests._refinement.posteriors import ClosedForm, gaussian, log_gamma, logit_beta, modes, normal_guide, student_t


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def estimate(posterior: ClosedForm, num_samples: int, *, score_guide: bool = True) -> Draws:
    fitted = fit(posterior)
    return Mixture(posterior, fitted.density, failed=fitted.failed, score_guide=score_guide).draw(num_samples)


GUIDES = {
    "narrow": {"scale": 0.4},
    "shifted": {"shift": 1.5},
    "wide": {"scale": 2.5},
}


@pytest.mark.parametrize("score_guide", [True, False], ids=["scored", "divided"])
@pytest.mark.parametrize("wrong", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize(("build", "log_p"), [(gaussian, 3.0), (log_gamma, 0.0)], ids=["normal", "skewed"])
def test_intervals_cover_log_p_in_two_thousand_repeats(
    build: Any, log_p: float, wrong: dict[str, float], score_guide: bool
) -> None:
    draws = estimate(build(2000, 3, **wrong), 500, score_guide=score_guide)
    estimates, mcse = draws.log_likelihood()
    covered = ((estimates - log_p).abs() < 1.96 * mcse).double().mean()
    assert 0.93 < float(covered) < 0.97
    # The mean of the likelihoods has no bias, and that of their logarithms is a lower bound by half the variance.
    ratios = (estimates - log_p).exp()
    assert abs(float(ratios.mean() - 1)) < 4 * float(ratios.std()) / 2000**0.5
    assert float((estimates - log_p).abs().mean()) < 0.1


def test_a_guide_of_low_rank_is_corrected() -> None:
    """The guide has a hundredth of the true scale in two of four dimensions."""
    posterior = gaussian(200, 4)
    posterior.parameters["scale"] = posterior.parameters["scale"] * torch.tensor([1.0, 0.01, 1.0, 0.01])
    estimates, mcse = estimate(posterior, 1000).log_likelihood()
    assert abs(float(estimates.mean() - 3)) < 0.02
    assert ((estimates - 3).abs() < 5 * mcse).all()


@pytest.mark.parametrize("dim", [1, 2, 50, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_p_is_right_in_few_and_in_many_dimensions(dim: int, dtype: torch.dtype) -> None:
    estimates, mcse = estimate(gaussian(4, dim, shift=0.5, scale=0.5, dtype=dtype), 2000).log_likelihood()
    assert ((estimates - 3).abs() < 5 * mcse + 1e-3).all()
    assert (mcse < 0.1).all()


TWO = torch.tensor([[-4.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
THREE = torch.tensor([[-5.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 6.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("score_guide", [True, False], ids=["scored", "divided"])
@pytest.mark.parametrize(
    ("centers", "weights", "guide_weights"),
    [(TWO, [0.5, 0.5], [0.5, 0.5]), (TWO, [0.9, 0.1], [0.3, 0.7]), (THREE, [0.4, 0.3, 0.3], [0.6, 0.2, 0.2])],
    ids=["two equal", "two unequal", "three"],
)
def test_modes_that_the_normal_density_misses_are_counted_through_the_guide(
    centers: Tensor, weights: list[float], guide_weights: list[float], score_guide: bool
) -> None:
    posterior = modes(300, centers, torch.tensor(weights).double(), torch.tensor(guide_weights).double())
    draws = estimate(posterior, 4000, score_guide=score_guide)
    estimates, mcse = draws.log_likelihood()
    assert abs(float(estimates.exp().mean() - 1)) < 4 * float(estimates.exp().std()) / 300**0.5
    assert ((estimates.abs() < 1.96 * mcse).double().mean()) > 0.9
    assert (estimates.abs() < 0.5).all()  # a missed mode would cost log 2, or log 10 at the smaller of two


def reliable(draws: Draws) -> Tensor:
    return (psis(draws.log_weights)[1] < 0.7) & (draws.log_likelihood()[1] < 0.1)


def funnel(n: int, dim: int) -> ClosedForm:
    """Neal's funnel, whose log p(x) is 0."""
    zeros = torch.zeros(n, dim, dtype=torch.float64)

    def log_density(u: Tensor, **_: Tensor) -> Tensor:
        neck, rest = u[..., :1], u[..., 1:]
        log_neck = torch.distributions.Normal(0.0, 1.5).log_prob(neck).sum(-1)
        return log_neck + torch.distributions.Normal(0.0, (neck / 2).exp()).log_prob(rest).sum(-1)

    return ClosedForm(log_density, normal_guide, {"loc": zeros, "scale": zeros + 1.0})


@pytest.mark.parametrize(
    "posterior",
    [funnel(100, 3), funnel(100, 6), student_t(100, 2), student_t(100, 10)],
    ids=["funnel, 3", "funnel, 6", "heavy tails, 2", "heavy tails, 10"],
)
def test_hard_posteriors_are_right_or_unreliable(posterior: ClosedForm) -> None:
    draws = estimate(posterior, 2000)
    believed = reliable(draws)
    estimates, mcse = draws.log_likelihood()
    wrong = (estimates.abs() > 4 * mcse + 0.1) & believed
    assert int(wrong.sum()) <= 2


@pytest.mark.parametrize("posterior", [log_gamma(50, 1), log_gamma(50, 8), logit_beta(50, 1), logit_beta(50, 8)])
def test_bounded_supports_are_right_in_unconstrained_coordinates(posterior: ClosedForm) -> None:
    draws = estimate(posterior, 2000)
    estimates, mcse = draws.log_likelihood()
    assert reliable(draws).double().mean() > 0.9
    assert ((estimates.abs() < 1.96 * mcse).double().mean()) > 0.8
    assert abs(float(estimates.mean())) < 0.02


def test_a_failed_datum_is_left_to_the_guide_alone() -> None:
    posterior = gaussian(3, 2, scale=2.0)
    fitted = fit(posterior)
    draws = Mixture(posterior, fitted.density, failed=torch.tensor([False, True, False])).draw(1000)
    _, log_guide = posterior.log_densities(draws.u)
    assert torch.allclose(draws.log_q[:, 1], log_guide[:, 1])
    assert (draws.member[:, 1] == len(MEMBERS)).all()
    assert not torch.allclose(draws.log_q[:, 0], log_guide[:, 0])


@pytest.mark.parametrize("num_samples", [1, 7, 100, 999])
def test_draws_are_stratified_over_the_members(num_samples: int) -> None:
    posterior = gaussian(500, 2)
    members = (Member(0.5, 1.0), Member(0.25, 1.5))
    draws = Mixture(posterior, fit(posterior).density, members).draw(num_samples)
    counts = torch.stack([(draws.member == j).sum(0) for j in range(3)]).double()
    expected = num_samples * torch.tensor([0.5, 0.25, 0.25])[:, None]
    assert ((counts - expected).abs() < 1).all()
    assert torch.allclose(counts.mean(1, keepdim=True), expected.double(), atol=0.1)


def test_a_mixture_integrates_to_one() -> None:
    """Draws of one mixture are weighted by the density of another, in one dimension."""
    posterior = gaussian(1, 1)
    density = fit(posterior).density
    draws = Mixture(posterior, density, (Member(0.4, 1.0), Member(0.4, 2.0))).draw(40000)
    histogram = torch.histc(draws.u[:, 0, 0], 60, float(draws.u.min()), float(draws.u.max())) / 40000
    order = draws.u[:, 0, 0].argsort()
    integral = torch.trapezoid(draws.log_q[order, 0].exp(), draws.u[order, 0, 0])
    assert float(integral) == pytest.approx(1.0, abs=0.01)
    assert float(histogram.sum()) == pytest.approx(1.0, abs=1e-6)


def test_draws_joined_are_those_of_their_parts() -> None:
    posterior = gaussian(3, 2)
    mixture = Mixture(posterior, fit(posterior).density)
    parts = [mixture.draw(5), mixture.draw(8)]
    joined = Draws.cat(parts)
    assert joined.u.shape == (13, 3, 2)
    assert torch.equal(joined.log_weights, torch.cat([part.log_weights for part in parts]))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            (Member(0.6, 1.0), Member(0.4, 1.2)),
            "weights of the normal components sum to 1, but must sum to less than 1",
        ),
        ((Member(0.5, -0.1),), "needs a positive weight"),
        ((Member(-0.5, 1.0),), "needs a positive weight"),
    ],
)
def test_impossible_members_raise(members: tuple[Member, ...], message: str) -> None:
    posterior = gaussian(2, 2)
    density = fit(posterior).density
    with pytest.raises(ValueError, match=message):
        Mixture(posterior, density, members)
