r"""Normal densities fitted to posteriors with the draws and gradients of short Hamiltonian chains.

**Motivation.** The regression of :mod:`pyrovae._refinement.regression` minimizes KL(q || p). If a posterior is skewed,
the fitted density lies at the steep side of the posterior and covers its long tail badly. The weights p/q are then
large in this tail. A density with the mean and covariance of the posterior covers the tail. In many dimensions,
however, a covariance that is estimated from few draws is too noisy. Gradients at the draws remove most of the noise.

**The fit.** Let the chains visit points u with scores :math:`g = \nabla \log p(x, u)`. The normal density
:math:`N(m, \Sigma)` with the least Fisher divergence,
:math:`\mathrm{E}_p \big[(g + \Sigma^{-1}(u - m))^\top \Sigma\, (g + \Sigma^{-1}(u - m))\big]`, satisfies

.. math:: \Sigma \,\mathrm{Cov}(g)\, \Sigma = \mathrm{Cov}(u), \qquad m = \bar u + \Sigma\, \bar g,

where bars are means over the draws. For a normal posterior, g is linear in u, so D + 1 draws determine the density
exactly. The noise of the fit comes only from the departure of the posterior from a normal density.

**The chains** start at draws from a mixture of the guide and wider copies of a first normal density. This density is
usually the result of the regression. The chains make a few transitions in coordinates in which the first density is
standard normal. A second density is fitted to their states, and the chains continue in coordinates in which the second
density is standard normal. The last fit uses the draws of all runs of the chains, except a burn-in of the first run.

Source:
    *Preconditioning Hamiltonian Monte Carlo by Minimizing Fisher Divergence* (Seyboldt, Carlson and Carpenter, 2026).
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pyrovae._refinement.hamiltonian import adapted, transition
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.posterior import Posterior, value_and_gradient

NUM_CHAINS, NUM_TRANSITIONS, NUM_LEAPFROG = 32, 9, 2  # number of chains for up to 50 dimensions
BURN_IN = 3  # number of transitions of the first run that the fit does not use
ACCEPTANCE = 0.7
FIRST_STEP = 1.2  # first step size times the fourth root of D, in standard deviations
_LARGEST = 1e12  # largest entry of a matrix whose eigenvalues are computed
RIDGE = 0.05  # weight of the identity in the second moments of draws and of gradients


class State(NamedTuple):
    """States of the chains, with the values and gradients of log p(x, u).

    Attributes:
        v: Positions in whitened coordinates, shape ``(num_chains, N, D)``.
        log_p: log p(x, u), shape ``(num_chains, N)``, nats.
        slope: Gradient of log p(x, u) with respect to v, shape ``(num_chains, N, D)``.
    """

    v: Tensor
    log_p: Tensor
    slope: Tensor

    def where(self, condition: Tensor, other: Self) -> Self:
        """Return the states of ``self`` where ``condition`` is true, and the states of ``other`` elsewhere.

        The condition has one value for each chain and datum, shape ``(num_chains, N)``.
        """
        rows = condition[..., None]
        return type(self)(
            torch.where(rows, self.v, other.v),
            torch.where(condition, self.log_p, other.log_p),
            torch.where(rows, self.slope, other.slope),
        )


@dataclass(frozen=True)
class Visited:
    """Draws of chains and the scores at these draws, in coordinates in which a given density is standard normal.

    Attributes:
        density: Normal densities of N data, which define the coordinates.
        v: Draws in these coordinates, shape ``(N, S, D)``.
        score: Gradients of log p with respect to v, shape ``(N, S, D)``.
    """

    density: Normal
    v: Tensor
    score: Tensor

    @property
    def u(self) -> Tensor:
        """The draws in the coordinates u, shape ``(S, N, D)``."""
        return self.density.place(self.v.movedim(0, 1))

    def last(self, count: int) -> Tensor:
        """Return the positions u of ``count`` chains after the last transition, shape ``(count, N, D)``."""
        return self.density.place(self.v[:, -count:].movedim(0, 1))

    def seen_from(self, density: Normal) -> Self:
        """Return the same draws and scores in the coordinates in which ``density`` is a standard normal density."""
        u = self.density.mean[:, None] + self.v @ self.density.root.mT
        v = (u - density.mean[:, None]) @ density.inverse_root.mT
        return type(self)(density, v, self.score @ self.density.inverse_root @ density.root)

    def joined(self, other: Self) -> Self:
        """Return the draws of ``self`` followed by those of ``other``, all in the coordinates of ``other``."""
        mine = self.seen_from(other.density)
        return type(self)(other.density, torch.cat([mine.v, other.v], 1), torch.cat([mine.score, other.score], 1))


def visit(posterior: Posterior, density: Normal, start: Tensor, runs: int, batch_size: int | None = None) -> Visited:
    """Run chains several times, each time from their last positions, in coordinates of a density fitted to all draws.

    Args:
        posterior: Posteriors of N data.
        density: Normal densities of N data, in whose coordinates the first run moves.
        start: First positions u, shape ``(num_chains, N, D)``.
        runs: Number of runs, at least 1.
        batch_size: Largest number of gradients that are computed together, one for each chain and datum; by default
            all.

    Returns:
        The draws of all runs after the burn-in, with their scores.
    """
    visited = run_chains(posterior, density, start, batch_size, burn_in=BURN_IN)
    for _ in range(runs - 1):
        visited = visited.joined(run_chains(posterior, fit_to_chains(visited), visited.last(len(start)), batch_size))
    return visited


def run_chains(
    posterior: Posterior,
    density: Normal,
    start: Tensor,
    batch_size: int | None = None,
    *,
    burn_in: int = 0,
    num_transitions: int = NUM_TRANSITIONS,
    local_step: bool = False,
) -> Visited:
    """Run short Hamiltonian chains from given starting points.

    Args:
        posterior: Posteriors of N data.
        density: Normal densities of N data. The chains move in coordinates in which these densities
            are standard normal.
        start: First positions u, shape ``(num_chains, N, D)``.
        batch_size: Largest number of gradients that are computed together, one for each chain and datum; by default
            all.
        burn_in: Number of transitions that are not returned.
        num_transitions: Number of transitions.
        local_step: If true, the first step size is shorter for data whose scores at the starting points are longer than
            those of a standard normal density. Use it if the density is much wider than the posterior in places.

    Returns:
        The draws after the burn-in, with their scores.
    """

    def evaluate(v: Tensor) -> State:
        value, gradient = value_and_gradient(posterior, density.place(v), batch_size)
        return State(v, value, density.pull(gradient).movedim(1, 0))

    state = evaluate(density.whiten(start))
    step = state.log_p.new_full((posterior.size,), FIRST_STEP * posterior.dim**-0.25)
    if local_step:
        length = state.slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).norm(dim=-1).median(0).values
        step = step * (posterior.dim**0.5 / length.clamp_min(1e-30)).clamp_max(1.0)
    kept: list[State] = []
    for i in range(num_transitions):
        state, acceptance = transition(state, evaluate, _density, step, NUM_LEAPFROG)
        step = adapted(step, acceptance, ACCEPTANCE)
        if i >= burn_in:
            kept.append(state)
    v, score = (torch.cat([getattr(state, name) for state in kept]).movedim(0, 1) for name in ("v", "slope"))
    return Visited(density, v, score)


def _density(state: State) -> tuple[Tensor, Tensor]:
    """Return the log-density and its gradient. Entries of the gradient that are NaN or infinite are set to zero."""
    return state.log_p, state.slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def num_chains(dim: int) -> int:
    """Return the number of chains per datum. It grows with D, because a ``D x D`` covariance needs more draws."""
    return max(NUM_CHAINS, NUM_CHAINS * dim // 50)


def gradients_of_chains(dim: int) -> int:
    """Return the number of gradients that one run of the chains computes for each datum."""
    return num_chains(dim) * (1 + NUM_TRANSITIONS * NUM_LEAPFROG)


def fit_to_chains(visited: Visited) -> Normal:
    """Fit a normal density to the draws and scores of each datum by minimizing the Fisher divergence.

    The docstring of this module has the formulas.
    """
    v, score = visited.v.double(), visited.score.double()
    mean, mean_score = v.mean(1), score.mean(1)
    covariance = ridged(second_moment(v - mean[:, None]))
    information = ridged(second_moment(score - mean_score[:, None]))
    root, inverse_root = _powers(information, 0.5, -0.5)
    (middle,) = _powers(root @ covariance @ root, 0.5)
    fitted = symmetric(inverse_root @ middle @ inverse_root)
    centre = mean + (fitted @ mean_score[..., None])[..., 0]
    like = visited.density.mean
    return visited.density.within(centre.to(like), fitted.to(like))


def second_moment(vectors: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the mean over S of the outer products of ``vectors`` and ``others``, shape ``(N, D, D)``.

    Both arguments have shape ``(N, S, D)``. By default, ``others`` is equal to ``vectors``.
    """
    return vectors.mT @ (vectors if others is None else others) / vectors.shape[1]


def ridged(moment: Tensor, ridge: float = RIDGE) -> Tensor:
    """Average a second moment and the identity matrix, with weights ``1 - ridge`` and ``ridge``.

    The moment is that of draws or of scores, in whitened coordinates. It is the identity matrix if the posterior is
    standard normal in these coordinates.
    """
    return (1 - ridge) * moment + ridge * torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)


def symmetric(matrix: Tensor) -> Tensor:
    """Return the symmetric part of matrices."""
    return (matrix + matrix.mT) / 2


def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of symmetric matrices, shape ``(N, D, D)``.

    The eigenvalues are NaN for a matrix with an entry that is NaN or larger than ``_LARGEST``, because the algorithm
    would not converge.
    """
    regular = (matrix.abs() < _LARGEST).all(-1).all(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.where(regular[:, None, None], matrix, identity))
    return values.masked_fill(~regular[:, None], torch.nan), vectors


def _powers(matrix: Tensor, *exponents: float) -> list[Tensor]:
    """Raise symmetric positive definite matrices, ``(N, D, D)``, to each exponent; return one tensor per exponent."""
    values, vectors = decomposed(symmetric(matrix))
    values = values.clamp_min(1e-8)
    return [(vectors * values[:, None, :] ** exponent) @ vectors.mT for exponent in exponents]
