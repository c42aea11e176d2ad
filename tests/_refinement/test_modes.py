"""Witnesses find modes that the fitted density misses, and leave posteriors with one mode alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae._refinement.mixture import Member
from pyrovae._refinement.modes import Modes, find_witnesses, mean_near
from pyrovae._refinement.refine import add_modes, by_regression, refine
from tests._refinement.posteriors import ClosedForm, gaussian, log_gamma, scattered


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_modes_that_the_density_misses_are_added_where_they_are() -> None:
    posterior = scattered(40, [[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [0.5, 0.5])
    found = refine(posterior)
    narrow = (found.density.root @ found.density.root.mT)[:, 0, 0] < 0.25  # others are wide and cover both modes
    other = -found.density.mean[:, 0].sign() * 2
    added = found.modes.chosen[:, 0] & narrow
    assert narrow.double().mean() > 0.5
    assert added.sum() > 0.9 * narrow.sum()
    near = (found.modes.densities[0].mean[added, 0] - other[added]).abs() < 0.5
    assert near.double().mean() > 0.9
    draws = found.mixture(posterior, score_guide=True).draw(2000)
    estimates, mcse = draws.log_likelihood()
    assert ((estimates < 5 * mcse) & (estimates > -5 * mcse))[added].double().mean() > 0.95


@pytest.mark.parametrize("build", [lambda: gaussian(60, 20, shift=1.0, scale=0.5), lambda: log_gamma(60, 5)])
def test_posteriors_with_one_mode_get_no_further_densities(build: Callable[[], ClosedForm]) -> None:
    found = refine(build())
    assert found.modes.chosen.double().mean() < 0.05


def test_a_mode_of_negligible_probability_changes_no_estimate() -> None:
    posterior = scattered(40, [[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [1 - 1e-5, 1e-5])
    found = refine(posterior)
    estimates, mcse = found.mixture(posterior, score_guide=True).draw(2000).log_likelihood()
    right = found.density.mean[:, 0] < 0
    assert right.double().mean() > 0.5
    assert (estimates.abs() < 5 * mcse)[right].all()


def test_the_mean_of_a_normal_mode_is_exact() -> None:
    posterior = gaussian(5, 4)
    mean = posterior.parameters["mean"]
    exact = by_regression(posterior).density.from_covariance(mean, posterior.parameters["covariance"])
    assert torch.allclose(
        mean_near(posterior, exact, exact.place(torch.randn(3, 5, 4).double())), mean.expand(3, -1, -1), atol=1e-8
    )
    witnesses = find_witnesses(posterior, exact)
    assert not torch.allclose(witnesses.u[:-1], mean.expand_as(witnesses.u[:-1]))
    assert torch.equal(witnesses.u[0], witnesses.u[-1])


@pytest.mark.parametrize("total", [0.1, 0.5, 0.9])
def test_weights_stay_positive_for_any_weight_of_the_copies(total: float) -> None:
    posterior = scattered(2, [[-2.0], [2.0]], [0.5, 0.5])
    found = by_regression(posterior)
    for _ in range(3):
        found.modes.add(found.density)
    draws = found.mixture(posterior, (Member(total, 1.0),), score_guide=True).draw(200)
    assert draws.log_weights.isfinite().all()
    assert abs(float((draws.member == draws.member.max()).double().mean()) - (1 - total)) < 0.02


def test_densities_fill_the_free_places_of_each_datum() -> None:
    density = by_regression(gaussian(3, 2)).density
    modes = Modes.none(density)
    first = modes.select(torch.tensor([0, 2]))
    first.add(replace(density, mean=density.mean + 7).select(torch.tensor([0, 2])))
    modes.put(torch.tensor([0, 2]), first)
    modes.add(replace(density, mean=density.mean + 9))
    assert modes.chosen.tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    assert torch.allclose(modes.densities[0].mean - density.mean, torch.tensor([[7.0], [9.0], [7.0]]).double())
    assert torch.allclose((modes.densities[1].mean - density.mean)[::2], torch.tensor(9.0).double())


def test_a_mixture_with_modes_integrates_to_one() -> None:
    posterior = scattered(1, [[-2.0], [2.0]], [0.5, 0.5])
    found = by_regression(posterior)
    found.modes.add(replace(found.density, mean=-found.density.mean))
    mixture = found.mixture(posterior, score_guide=True)
    grid = torch.linspace(-150.0, 150.0, 200001, dtype=torch.float64)[:, None, None]
    log_q = mixture.log_density(grid, posterior.log_densities(grid)[1])[:, 0]
    assert float(torch.trapezoid(log_q.exp(), grid[:, 0, 0])) == pytest.approx(1.0, abs=1e-6)
    index = mixture.draw(4000).member
    assert 0.1 < float((index == index.max() - 3).double().mean()) < 0.2  # the first of three places before the guide


def test_scores_of_values_are_the_weights_of_draws() -> None:
    posterior = scattered(3, [[-2.0], [2.0]], [0.5, 0.5])
    mixture = refine(posterior).mixture(posterior, score_guide=True)
    draws = mixture.draw(50)
    assert torch.allclose(mixture.score(draws.u), draws.log_weights)


def test_evaluations_count_every_witness_and_pilot() -> None:
    posterior, calls = scattered(4, [[-2.0, 0.0], [2.0, 0.0]], [0.5, 0.5]), [0]
    original = posterior.log_density

    def counted(u: Tensor, **parameters: Tensor) -> Tensor:
        calls[0] += u[..., 0].numel() * (3 if u.requires_grad else 1)
        return original(u, **parameters)

    counting = replace(posterior, log_density=counted)
    found = by_regression(counting)
    counted_before, paid_before = calls[0], float(found.evaluations.sum())
    add_modes(counting, found)
    assert float(found.evaluations.sum()) - paid_before == calls[0] - counted_before
