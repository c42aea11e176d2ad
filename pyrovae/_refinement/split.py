r"""Fit of two normal densities to a posterior that is not normal, from draws of chains and the scores at these draws.

Let v be a draw in coordinates in which the posterior has approximately mean 0 and covariance I, and let g be the score
at v, the gradient of log p. The score of a normal posterior is :math:`-v`, so :math:`r = g + v` measures the departure
from normality. The quadratic part of r is strongest along the direction w that maximizes
:math:`\mathrm{E}[(w^\top r)\,((w^\top v)^2 - 1)]`. This expectation is approximately the mean third derivative of log p
along w. A power iteration, :math:`w \propto \mathrm{E}[r\,((w^\top v)^2 - 1)]`, finds w.

The draws are divided softly into two halves along w: a draw has weight :math:`\sigma(w^\top v)` in one half and
:math:`\sigma(-w^\top v)` in the other, where :math:`\sigma` is the logistic function. In each half, a weighted
linear regression of the scores on the draws has a slope of -P, where P is a precision. The normal density whose score
is this linear function has precision P and mean :math:`\bar v + P^{-1} \bar g`, where bars are weighted
means. Together, the two densities follow a posterior whose curvature changes along w.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pyrovae._refinement.chains import Visited, decomposed, ridged, second_moment, symmetric
from pyrovae._refinement.normal import Normal

NUM_STARTS, NUM_ITERATIONS = 4, 15  # starts and iterations of the power iteration
RIDGE = 0.2
EIGENVALUES = (0.2, 5.0)  # bounds on a local precision


@dataclass(frozen=True)
class Split:
    """Two normal densities per datum, which describe posteriors that a single normal density describes badly.

    Attributes:
        densities: The two densities of each of N data. They have no meaning for a datum for which ``chosen`` is false.
        chosen: True for each datum whose posterior is described by the two densities, shape ``(N,)``.
    """

    densities: tuple[Normal, ...]
    chosen: Tensor

    @classmethod
    def none(cls, density: Normal) -> Self:
        """Return a split whose ``chosen`` is false for all data. Both of its densities are copies of ``density``."""
        everything = torch.arange(len(density.mean), device=density.mean.device)
        halves = density.select(everything), density.select(everything)
        return cls(halves, torch.zeros_like(everything, dtype=torch.bool))

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the densities of the data at ``indices`` by those of ``other``."""
        for mine, theirs in zip(self.densities, other.densities, strict=True):
            mine.put(indices, theirs)
        self.chosen[indices] = other.chosen

    def select(self, indices: Tensor) -> Self:
        """Return a split with only the data at ``indices``."""
        first, second = self.densities
        return type(self)((first.select(indices), second.select(indices)), self.chosen[indices])


def split(visited: Visited) -> tuple[Normal, Normal]:
    """Divide the draws from the posterior of each datum into two halves, and fit a normal density to each half.

    The halves overlap: each draw counts for both, with two weights that add up to one.

    Args:
        visited: Draws of chains, and the scores at these draws. In their coordinates, the normal density that was
            fitted to all draws is standard normal.

    Returns:
        The normal densities of the first halves, one for each datum, and those of the second halves.
    """
    v, score = visited.v.double(), visited.score.double()
    along = _along(v, _direction(v, score))
    first, second = (_local(visited, v, score, (sign * along).sigmoid()) for sign in (1, -1))
    return first, second


def _direction(v: Tensor, score: Tensor) -> Tensor:
    """Return the unit vector along which each posterior departs most from a normal density, shape ``(N, D)``."""
    rest = score + v
    rest = rest - rest.mean(1, keepdim=True)
    best, highest = torch.zeros_like(v[:, 0]), torch.full_like(v[:, 0, 0], -torch.inf)
    for _ in range(NUM_STARTS):
        direction = _unit(torch.randn_like(best))
        for _ in range(NUM_ITERATIONS):
            direction = _unit(_contraction(v, rest, direction))
        third = (direction * _contraction(v, rest, direction)).sum(-1)
        best = torch.where((third > highest)[:, None], direction, best)
        highest = torch.maximum(third, highest)
    return best


def _contraction(v: Tensor, rest: Tensor, direction: Tensor) -> Tensor:
    return (rest * (_along(v, direction).square() - 1)[..., None]).mean(1)


def _along(v: Tensor, direction: Tensor) -> Tensor:
    """Return the component of each draw along a direction, shape ``(N, S)``."""
    return (v @ direction[..., None])[..., 0]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def _local(visited: Visited, v: Tensor, score: Tensor, weights: Tensor) -> Normal:
    """Fit a normal density to the weighted draws of each datum.

    The score of a normal density is a linear function of the position. A weighted linear regression of the scores on
    the draws finds the coefficients of this function, and they determine the mean and the covariance.
    """
    weights = (weights / weights.mean(1, keepdim=True))[..., None]
    mean, mean_score = (weights * v).mean(1), (weights * score).mean(1)
    centered, slopes = v - mean[:, None], score - mean_score[:, None]
    covariance = ridged(second_moment(weights * centered, centered), RIDGE)
    slope = ridged(-second_moment(weights * centered, slopes), RIDGE)
    precision = symmetric(torch.linalg.solve(covariance, slope))
    values, vectors = decomposed(precision)
    fitted = symmetric((vectors / values.clamp(*EIGENVALUES)[:, None, :]) @ vectors.mT)
    centre = mean + (fitted @ mean_score[..., None])[..., 0]
    like = visited.density.mean
    return visited.density.within(centre.to(like), fitted.to(like))
