r"""Further modes of posteriors, found by short chains that start at draws from the guide.

A normal density that is fitted to one mode of a posterior has nearly equal weights p/q, although it misses all other
modes. Draws from it cannot show this. Each datum therefore has *witnesses*: the last states of a few short Hamiltonian
chains that start at draws from the guide.

Let r be the weight of a witness, divided by the mean weight of n draws from the mixture. If all weights in a region
have this size, and the posterior probability of the region is m, then the region is expected to contain n m / r of the
draws. If r is not small compared with n, the draws may miss the region, and the estimate of log p(x) may be too low by
-log(1 - m).

If the weight of a witness is too large, the mixture gets a further normal density near the witness. It has the
covariance of the fitted density. Its mean is v + g, where v is the witness and g the score at v, in coordinates in
which the fitted density is standard normal. If the region is a normal mode with the covariance of the fitted density,
this is the exact mean. A region with a negligible probability does no harm: it takes draws, but their small weights
show that it is negligible.

If a posterior has the shape of a funnel, chains in these coordinates do not reach its narrow end. The function
:func:`explore` runs chains in coordinates that the caller chooses, such as those of
:mod:`pyrovae.evaluation.unconstrained.standardized`. All of their states are tested, about ten times as many points as
witnesses. Some states of a heavy tail have large weights by chance, so the limit for these points is higher.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pyrovae._refinement.chains import BURN_IN, NUM_LEAPFROG, NUM_TRANSITIONS, fit_to_chains, run_chains
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.posterior import Posterior, value_and_gradient

NUM_WITNESSES = 8
NUM_EXPLORERS, NUM_RUNS = 6, 2  # chains that explore posteriors without a fitted density, and their runs
NUM_MODES = 3  # largest number of further densities of a datum
NUM_DRAWS = 64  # draws from the guide that determine scales
HEAVY = math.log(100)  # a mixture misses a point whose weight exceeds the mean weight by more than this, nats
REMOTE = math.log(1e4)  # limit for the points of explore, nats; there are more of these points
_STEP = 2.0  # longest step from a state to the mean, in standard deviations per dimension


@dataclass(frozen=True)
class Witnesses:
    """Points of high posterior density, which the mixture of a datum should cover.

    Attributes:
        u: Points, shape ``(W, N, D)``.
    """

    u: Tensor

    def select(self, indices: Tensor) -> Self:
        """Return the witnesses of the data at ``indices``."""
        return type(self)(self.u[:, indices])

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the witnesses of the data at ``indices`` by those of ``other``."""
        self.u[:, indices] = other.u

    def replace_last(self, indices: Tensor, u: Tensor) -> None:
        """Replace, in place, the last witness of the data at ``indices`` by u, shape ``(n, D)``."""
        self.u[-1, indices] = u


@dataclass(frozen=True)
class Modes:
    """Further normal densities of each datum.

    Attributes:
        densities: ``NUM_MODES`` normal densities of each of N data.
        chosen: True for each density that belongs to the mixture of a datum, shape ``(N, NUM_MODES)``.
    """

    densities: tuple[Normal, ...]
    chosen: Tensor

    @classmethod
    def none(cls, density: Normal) -> Self:
        """Return modes of which none is chosen. All densities are copies of ``density``."""
        everything = torch.arange(len(density.mean), device=density.mean.device)
        chosen = torch.zeros(len(everything), NUM_MODES, dtype=torch.bool, device=everything.device)
        return cls(tuple(density.select(everything) for _ in range(NUM_MODES)), chosen)

    def select(self, indices: Tensor) -> Self:
        """Return the modes of the data at ``indices``."""
        return type(self)(tuple(each.select(indices) for each in self.densities), self.chosen[indices])

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the modes of the data at ``indices`` by those of ``other``."""
        for mine, theirs in zip(self.densities, other.densities, strict=True):
            mine.put(indices, theirs)
        self.chosen[indices] = other.chosen

    def add(self, density: Normal) -> None:
        """Add, in place, a density to each datum, in its first free place."""
        free = (~self.chosen).int().argmax(-1)
        for j, mine in enumerate(self.densities):
            here = (free == j).nonzero()[:, 0]
            mine.put(here, density.select(here))
            self.chosen[here, j] = True


def allowed_excess(num_samples: int) -> float:
    """Return by how much the log-weight of a point may exceed the mean weight of that many draws, nats.

    With 1,000 draws or more, a region of such points with a posterior probability of m is expected to contain at least
    10 m draws.
    """
    return max(math.log(num_samples / 10), HEAVY)


def find_witnesses(posterior: Posterior, density: Normal, batch_size: int | None = None) -> Witnesses:
    """Run short chains from draws of the guide, and return their last states.

    The last witness is a copy of the first. :meth:`Witnesses.replace_last` can replace the copy by another point.

    Args:
        posterior: Posteriors of N data, with the guide.
        density: Normal densities of N data; the chains move in coordinates in which these are standard normal.
        batch_size: Largest number of gradients that are computed together, over chains and data; by default all.
    """
    last = run_chains(posterior, density, posterior.draw(NUM_WITNESSES)[0], batch_size).last(NUM_WITNESSES)
    return Witnesses(torch.cat([last, last[:1]]))


def cost_of_witnesses() -> int:
    """Return the number of gradients per datum of :func:`find_witnesses`."""
    return NUM_WITNESSES * (1 + NUM_TRANSITIONS * NUM_LEAPFROG)


def explore(posterior: Posterior, batch_size: int | None = None) -> Tensor:
    """Run short chains from draws of the guide, without densities that are fitted to the posteriors.

    The first run moves in coordinates that suit the draws from the guide. If the guide is too narrow, the second run
    moves further, in coordinates of a density that is fitted to the draws and scores of the first run.

    Returns:
        The states of the chains after a burn-in, shape ``(W, N, D)``. States of the second run are NaN for data to
        which no density could be fitted.
    """
    position, density, states = posterior.draw(NUM_EXPLORERS)[0], _typical(posterior), list[Tensor]()
    for _ in range(NUM_RUNS):
        visited = run_chains(posterior, density, position, batch_size, burn_in=BURN_IN)
        position, density = visited.last(NUM_EXPLORERS), fit_to_chains(visited)
        states.append(visited.u)
    return torch.cat(states)


def cost_of_exploring() -> int:
    """Return the number of gradients per datum of :func:`explore`."""
    return NUM_EXPLORERS * NUM_RUNS * (1 + NUM_TRANSITIONS * NUM_LEAPFROG)


def _typical(posterior: Posterior) -> Normal:
    """Return normal densities with diagonal covariances and the quantiles of draws from the guide.

    The draws can have long tails, so their standard deviations can be too large.
    """
    draws = posterior.draw(NUM_DRAWS)[0]
    low, middle, high = draws.quantile(draws.new_tensor([0.16, 0.5, 0.84]), 0)
    return Normal.from_covariance(middle, torch.diag_embed(((high - low) / 2).square()))


def mean_near(posterior: Posterior, density: Normal, u: Tensor, batch_size: int | None = None) -> Tensor:
    """Estimate the means of the modes near points u, both of shape ``(S, N, D)``, from the scores at these points."""
    return density.place(whitened_mean_near(posterior, density, u, batch_size))


def whitened_mean_near(posterior: Posterior, density: Normal, u: Tensor, batch_size: int | None = None) -> Tensor:
    """Return the result of :func:`mean_near` in coordinates in which ``density`` is standard normal."""
    _, gradient = value_and_gradient(posterior, u, batch_size)
    return density.whiten(u) + _bounded(density.pull(gradient).movedim(1, 0))


def _bounded(score: Tensor) -> Tensor:
    """Shorten scores that are longer than ``_STEP`` per dimension. Entries that are not finite become zero."""
    score = score.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    limit = _STEP * score.shape[-1] ** 0.5
    return score * (limit / score.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
