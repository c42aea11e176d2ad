"""Chains from remarkable draws find what a mixture misses, and find nothing if it covers the posterior."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae._refinement.chains import run_chains
from pyrovae._refinement.mixture import Draws
from pyrovae._refinement.refine import by_regression
from pyrovae._refinement.walks import (
    NUM_HEAVY,
    NUM_STARTS,
    Remarkable,
    gradients_of_walk,
    states_of_walk,
    walk,
)
from tests._refinement.posteriors import ClosedForm, curved, gaussian, log_gamma, scattered

NUM_DRAWS = 2000


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def misses(posterior: ClosedForm) -> Tensor:
    """Fit a normal density by regression, and return whether chains show that its mixture misses a region."""
    found = by_regression(posterior)
    mixture = found.mixture(posterior, score_guide=True)
    draws = mixture.draw(NUM_DRAWS)
    largest, _ = walk(posterior, mixture, Remarkable.of(draws, mixture))
    return largest > draws.log_likelihood()[0] + math.log(NUM_DRAWS)


def test_a_mode_that_the_mixture_misses_is_found() -> None:
    posterior = scattered(40, [[-2.0, *[0.0] * 7], [2.0, *[0.0] * 7]], [0.5, 0.5])
    found = by_regression(posterior)
    narrow = (found.density.root @ found.density.root.mT)[:, 0, 0] < 0.25  # others are wide and cover both modes
    assert narrow.double().mean() > 0.5
    torch.manual_seed(0)
    assert misses(posterior)[narrow].double().mean() > 0.9


def test_the_ends_of_a_curved_ridge_are_found() -> None:
    assert misses(curved(40, 12)).double().mean() > 0.5


@pytest.mark.parametrize(
    "build", [lambda: gaussian(60, 20, shift=1.0, scale=0.5), lambda: log_gamma(60, 5), lambda: log_gamma(60, 1)]
)
def test_a_mixture_that_covers_the_posterior_misses_nothing(build: Callable[[], ClosedForm]) -> None:
    assert not misses(build()).any()


def test_the_points_with_the_largest_weights_are_returned() -> None:
    posterior = curved(5, 4)
    mixture = by_regression(posterior).mixture(posterior, score_guide=True)
    draws = mixture.draw(300)
    found = Remarkable.of(draws, mixture)
    largest, points = walk(posterior, mixture, found)
    weights = mixture.score(points)
    assert points.shape == (NUM_HEAVY, 5, 4)
    assert (weights.diff(dim=0) <= 1e-9).all()
    assert (weights >= found.log_weights - 1e-9).all()
    assert torch.allclose(weights[0], torch.maximum(largest, found.log_weights[0]))


def test_remarkable_draws_are_the_same_in_one_part_and_in_many() -> None:
    posterior = log_gamma(4, 3)
    mixture = by_regression(posterior).mixture(posterior, score_guide=True)
    draws = mixture.draw(400)
    whole = Remarkable.of(draws, mixture)
    pieces = [
        Draws(*(part[rows] for part in (draws.u, draws.log_joint, draws.log_q, draws.member)))
        for rows in torch.arange(400).split([7, 193, 200])
    ]
    first, *others = (Remarkable.of(piece, mixture) for piece in pieces)
    for other in others:
        first = first.joined(other)
    for name in ("log_weights", "heavy", "log_joint", "dense"):
        assert torch.equal(getattr(first, name), getattr(whole, name))
    weights, guide = draws.log_weights, mixture.is_guide(draws.member)
    for i in range(4):
        assert torch.equal(whole.log_weights[:, i], weights[:, i].sort(descending=True).values[:NUM_HEAVY])
        densest = draws.log_joint[guide[:, i], i].sort(descending=True).values[:NUM_STARTS]
        assert torch.equal(whole.log_joint[:, i], densest)
    assert torch.equal(whole.select(torch.tensor([2])).heavy, whole.heavy[:, [2]])
    assert torch.allclose(posterior.log_joint(whole.dense), whole.log_joint)


def test_the_cost_counts_every_gradient_and_state() -> None:
    posterior, calls = curved(3, 4), {True: 0, False: 0}
    original = posterior.log_density

    def counted(u: Tensor, **parameters: Tensor) -> Tensor:
        calls[u.requires_grad] += u[..., 0].numel()
        return original(u, **parameters)

    counting = replace(posterior, log_density=counted)
    mixture = by_regression(counting).mixture(counting, score_guide=True)
    found = Remarkable.of(mixture.draw(300), mixture)
    before = dict(calls)
    walk(counting, mixture, found)
    assert calls[True] - before[True] == 3 * gradients_of_walk()
    assert calls[False] - before[False] == 3 * states_of_walk()


def test_a_local_step_suits_posteriors_that_are_much_narrower_than_the_density() -> None:
    posterior = gaussian(20, 5)
    covariance = posterior.parameters["covariance"]
    wide = by_regression(posterior).density.from_covariance(posterior.parameters["mean"], 400 * covariance)
    start = by_regression(posterior).density.place(torch.randn(16, 20, 5, dtype=torch.float64))
    moved = {}
    for local in (False, True):
        last = run_chains(posterior, wide, start, num_transitions=3, local_step=local).last(16)
        moved[local] = float(((last - start).abs() > 1e-8).any(-1).double().mean())
    assert moved[False] < 0.1
    assert moved[True] > 0.8
