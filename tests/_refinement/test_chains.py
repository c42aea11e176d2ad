"""Densities fitted to chains are exact for normal posteriors, better for skewed ones, and never worse than before."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae._refinement.chains import Visited, fit_to_chains, run_chains
from pyrovae._refinement.refine import Refinement, by_regression, refine, refine_by_chains, starting_points
from pyrovae._refinement.regression import fit, fit_to_draws
from pyrovae._refinement.split import split
from tests._refinement.posteriors import ClosedForm, gaussian, log_gamma, normal_guide


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def visited_by(posterior: ClosedForm) -> Visited:
    density = fit_to_draws(posterior)
    return run_chains(posterior, density, posterior.draw(32)[0])


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_the_scores_of_a_normal_posterior_determine_its_density_for_any_draws(dim: int) -> None:
    """Without a ridge, D + 1 draws from anywhere would do; the ridge leaves a known part of the first density."""
    posterior = gaussian(4, dim, shift=1.0, scale=0.5)
    mean, covariance = posterior.parameters["mean"], posterior.parameters["covariance"]
    exact = fit_to_draws(posterior).from_covariance(mean, covariance)
    v = torch.randn(4, 40 * dim, dim, dtype=torch.float64)
    fitted = fit_to_chains(Visited(exact, v, -v))
    # The second moments of v and of its score are equal, so their geometric mean is I, and the mean is exact.
    assert torch.allclose(fitted.root @ fitted.root.mT, covariance, atol=1e-10)
    assert torch.allclose(fitted.mean, mean, atol=1e-10)


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_chains_of_a_normal_posterior_find_its_density(dim: int) -> None:
    posterior = gaussian(6, dim, shift=1.0, scale=0.5)
    density = fit_to_chains(visited_by(posterior))
    for _ in range(3):  # each fit is nearer, as the ridge draws less towards a density that is right
        density = fit_to_chains(run_chains(posterior, density, posterior.draw(32)[0]))
    mean, covariance = posterior.parameters["mean"], posterior.parameters["covariance"]
    inverse = torch.linalg.inv(covariance)
    off = density.mean - mean
    assert (off.unsqueeze(-2) @ inverse @ off.unsqueeze(-1) < 0.05 * dim).all()
    relative = inverse @ (density.root @ density.root.mT)
    assert (relative - torch.eye(dim, dtype=torch.float64)).abs().max() < 0.2


def test_draws_seen_from_another_density_are_the_same_draws() -> None:
    posterior = log_gamma(3, 4)
    visited = visited_by(posterior)
    other = fit(posterior).density
    moved = visited.seen_from(other)
    u, again = visited.density.place(visited.v.movedim(0, 1)), other.place(moved.v.movedim(0, 1))
    assert torch.allclose(u, again)
    leaf = again.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(posterior.log_joint(leaf).sum(), leaf)
    assert torch.allclose(other.pull(gradient), moved.score)


def shares(posterior: ClosedForm, found: Refinement) -> Tensor:
    weights = found.mixture(posterior, score_guide=True).draw(4000).log_weights.softmax(0)
    return 1 / (4000 * weights.square().sum(0))


def skewed(n: int, dim: int, num_skewed: int) -> ClosedForm:
    """Normal coordinates, some of which are also observed through five positive answers of a logistic model."""
    zeros = torch.zeros(n, dim, dtype=torch.float64)

    def log_density(u: Tensor, **_: Tensor) -> Tensor:
        answers = 5 * torch.nn.functional.logsigmoid(2 * u[..., :num_skewed])
        return torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(-1) + answers.sum(-1)

    return ClosedForm(log_density, normal_guide, {"loc": zeros, "scale": zeros + 1.0})


def test_chains_improve_the_proposal_of_a_skewed_posterior() -> None:
    posterior = skewed(20, 10, 3)
    before = by_regression(posterior)
    after = refine_by_chains(posterior, before)
    assert shares(posterior, after).median() > 1.2 * shares(posterior, before).median()


def test_chains_that_do_not_help_change_nothing() -> None:
    posterior = log_gamma(20, 10)
    posterior.parameters["shape"] = 0.3 * posterior.parameters["shape"]  # long exponential tails
    before = by_regression(posterior)
    before = replace(before, share=shares(posterior, before))
    after = refine_by_chains(posterior, before)
    kept = after.share == before.share
    assert torch.equal(after.density.mean[kept], before.density.mean[kept])
    assert not after.split.chosen[kept].any()
    assert (after.share > before.share / 2).all()


def test_the_halves_divide_a_posterior_along_its_skewness() -> None:
    posterior = skewed(5, 6, 1)
    visited = visited_by(posterior)
    first, second = split(visited.seen_from(fit_to_chains(visited)))
    variances = [(half.root @ half.root.mT).diagonal(dim1=-2, dim2=-1) for half in (first, second)]
    ratio = (variances[0] / variances[1]).log().abs()
    assert (ratio[:, 0] > ratio[:, 1:].max(-1).values).all()


def integral_of_answers() -> float:
    """Return log of the integral over one coordinate of :func:`skewed` that is observed through answers."""
    u = torch.linspace(-12.0, 12.0, 20001, dtype=torch.float64)
    value = torch.distributions.Normal(0.0, 1.0).log_prob(u) + 5 * torch.nn.functional.logsigmoid(2 * u)
    return float(torch.trapezoid(value.exp(), u).log())


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_estimates_by_chains_have_no_bias_and_intervals_that_cover(kind: str) -> None:
    """The tails of both posteriors are normal. Under exponential tails, fewer than 95% of the intervals cover."""
    is_normal = kind == "normal"
    log_p = 3.0 if is_normal else 2 * integral_of_answers()
    posterior = gaussian(1000, 3, shift=1.0, scale=0.5) if is_normal else skewed(1000, 3, 2)
    draws = refine_by_chains(posterior, by_regression(posterior)).mixture(posterior, score_guide=True).draw(500)
    estimates, mcse = draws.log_likelihood()
    ratios = (estimates - log_p).exp()
    assert abs(float(ratios.mean() - 1)) < 4 * float(ratios.std()) / 1000**0.5
    covered = ((estimates - log_p).abs() < 1.96 * mcse).double().mean()
    assert abs(float(covered) - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5


def test_a_datum_whose_chains_break_keeps_its_density() -> None:
    posterior = skewed(3, 2, 1)

    def log_density(u: Tensor, **parameters: Tensor) -> Tensor:
        value, total = original(u.nan_to_num(), **parameters).clone(), u[:, 1].sum(-1)
        value[:, 1] = value[:, 1] + (total - total.detach()).sqrt()  # adds 0, with an infinite slope
        return value

    original, before = posterior.log_density, by_regression(posterior)
    after = refine_by_chains(replace(posterior, log_density=log_density), before)
    assert torch.equal(after.density.mean[1], before.density.mean[1])
    assert after.split.chosen.tolist() == [True, False, True]


def test_only_hard_posteriors_pay_for_chains() -> None:
    easy, hard = refine(gaussian(10, 3)), refine(log_gamma(10, 30, scale=0.3))
    assert not easy.split.chosen.any()
    assert float(easy.evaluations.max()) < 2000
    assert float(hard.evaluations.max()) > 3000


def test_a_mixture_with_halves_integrates_to_one() -> None:
    posterior = log_gamma(1, 1)
    mixture = refine_by_chains(posterior, by_regression(posterior)).mixture(posterior, score_guide=True)
    grid = torch.linspace(-15.0, 10.0, 20001, dtype=torch.float64)[:, None, None]
    log_q = mixture.log_density(grid, posterior.log_densities(grid)[1])[:, 0]
    assert float(torch.trapezoid(log_q.exp(), grid[:, 0, 0])) == pytest.approx(1.0, abs=1e-6)
    assert len(mixture.draw(50).member.unique()) > 4


def test_data_with_enormous_scores_get_no_density_and_leave_the_others_unchanged() -> None:
    posterior = gaussian(3, 4, shift=1.0)
    visited = visited_by(posterior)
    good = fit_to_chains(visited)
    score = visited.score.clone()
    score[1] *= 1e30
    score[2, 0] = torch.inf
    fitted = fit_to_chains(replace(visited, score=score))
    assert torch.allclose(fitted.mean[0], good.mean[0])
    assert not fitted.mean[1:].isfinite().any()


def test_chains_do_not_start_at_draws_with_negligible_weights() -> None:
    """The guide of the second datum is so wide that most of its draws have a weight of zero."""
    posterior = gaussian(2, 3)
    posterior.parameters["scale"] = posterior.parameters["scale"] * torch.tensor([[1.0], [1e4]])
    found = by_regression(posterior)
    found.failed.fill_(True)  # the mixture is the guide alone
    drawn = found.mixture(posterior, score_guide=True).draw(400)
    starts = starting_points(drawn)
    assert torch.equal(starts[:, 0], drawn.u[:, 0])
    far = drawn.log_weights[:, 1] < drawn.log_weights[:, 1].max() - 2e4
    assert far.any()
    assert torch.equal(starts[~far, 1], drawn.u[~far, 1])
    assert torch.isin(starts[far, 1, 0], drawn.u[~far, 1, 0]).all()
