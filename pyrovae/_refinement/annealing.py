r"""Annealed importance sampling from the mixture of :mod:`pyrovae._refinement.mixture` to the posterior.

The mixture contains widened copies of a normal density :math:`N(m, A A^\top)`, which is fitted to the posterior of a
datum. The chains do not move in the latent vector u, but in coordinates v, where :math:`u = m + A v`. In these
coordinates, the posterior is close to a standard normal density, so one step size suits all dimensions. The
intermediate densities between the mixture :math:`q(v)` and the posterior are

.. math:: f_t(v) = q(v)^{1 - \beta_t}\, p(x, v)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1.

At each t from 1 to T - 1, a chain makes one Hamiltonian transition of a few leapfrog steps. The values and gradients of
log p and log q at a state are enough to compute :math:`\log f_t` and its gradient for every t. These values and
gradients are therefore computed once per leapfrog step, and not again when t changes. The weight of a chain has the
same formula as in :func:`pyrovae.evaluation.ais`, and is an unbiased estimate of p(x) for any T. Pilot chains determine
the step sizes and are then discarded.

Source: *Annealed Importance Sampling* (Neal, 2001).
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from pyrovae._refinement.hamiltonian import adapted, transition
from pyrovae._refinement.mixture import Mixture
from pyrovae._refinement.posterior import Posterior

PILOT_CHAINS = 8
WARM_UP = 10  # moves of the pilot chains that find the first step size
ACCEPTANCE = 0.65  # target of the tuning; near the optimum of HMC in many dimensions


class State(NamedTuple):
    """Positions of the chains, with the values and gradients of log p(x, v) and log q(v) at these positions.

    The positions v are in whitened coordinates; see the docstring of the module. The annealing starts at the mixture,
    with density q(v), and ends at the posterior, which is proportional to p(x, v).

    Attributes:
        v: Positions of the chains, shape ``(num_chains, N, D)``.
        log_p: log p(x, v), shape ``(num_chains, N)``, nats.
        log_q: log q(v), shape ``(num_chains, N)``, nats.
        slope_p: Gradient of log p(x, v), shape ``(num_chains, N, D)``.
        slope_q: Gradient of log q(v), shape ``(num_chains, N, D)``.
    """

    v: Tensor
    log_p: Tensor
    log_q: Tensor
    slope_p: Tensor
    slope_q: Tensor

    def value(self, beta: float) -> Tensor:
        """Return the log-density at inverse temperature ``beta``, shape ``(num_chains, N)``, nats."""
        return beta * self.log_p + (1 - beta) * self.log_q

    def slope(self, beta: float) -> Tensor:
        """Return the gradient of the log-density at inverse temperature ``beta``, shape ``(num_chains, N, D)``."""
        return beta * self.slope_p + (1 - beta) * self.slope_q

    def where(self, condition: Tensor, other: Self) -> Self:
        """Return the chains of ``self`` where ``condition`` is true, and those of ``other`` elsewhere."""
        pairs = zip(self, other, strict=True)
        return type(self)(*(torch.where(condition[..., None] if a.ndim == 3 else condition, a, b) for a, b in pairs))


class Annealing:
    """Annealed importance sampling from the mixtures to the posteriors of N data.

    Args:
        posterior: Posteriors of N data.
        mixture: Mixtures for the same data, from which the chains start.
        num_temperatures: Number of steps, T, in which the inverse temperature rises from 0 (mixture) to 1 (posterior).
        num_leapfrog: Leapfrog steps per transition.
        batch_size: Largest number of states, over chains and data, that are evaluated together; by default all.

    Attributes:
        evaluations: Number of evaluations of log p(x, u) for each datum so far. An evaluation with a gradient
            counts as 3.
        acceptance: Mean acceptance probability of the chains of each datum, shape ``(N,)``.
    """

    def __init__(
        self,
        posterior: Posterior,
        mixture: Mixture,
        num_temperatures: int,
        num_leapfrog: int = 1,
        batch_size: int | None = None,
    ) -> None:
        self.posterior, self.mixture, self.density = posterior, mixture, mixture.density
        self.num_leapfrog, self.evaluations, self.batch_size = num_leapfrog, 0, batch_size
        ramp = torch.sigmoid(torch.linspace(-3, 3, num_temperatures + 1, dtype=torch.float64))
        self.betas = ((ramp - ramp[0]) / (ramp[-1] - ramp[0])).tolist()
        self.steps = self._tune()
        self.acceptance = torch.zeros_like(self.steps[0])

    def log_weights(self, num_chains: int) -> Tensor:
        """Run chains from mixture to posterior, and return their log-weights, shape ``(num_chains, N)``, nats."""
        state = self._start(num_chains)
        log_w = self.betas[1] * (state.log_p - state.log_q)
        for t in range(1, len(self.betas) - 1):
            state, acceptance = self._move(state, self.betas[t], self.steps[t - 1])
            self.acceptance += acceptance.mean(0) / (len(self.betas) - 2)
            log_w = log_w + (self.betas[t + 1] - self.betas[t]) * (state.log_p - state.log_q)
        return log_w

    def _start(self, num_chains: int) -> State:
        drawn = self.mixture.draw(num_chains)
        self.evaluations += num_chains
        return self._state(self.density.whiten(drawn.u))

    def _state(self, v: Tensor) -> State:
        """Return the state at positions ``v``, with the values and gradients of log p and log q."""
        self.evaluations += 3 * len(v)
        rows = len(v) if self.batch_size is None else max(1, self.batch_size // v.shape[1])
        parts = [self._evaluated(part) for part in v.split(rows)]
        return State(*map(torch.cat, zip(*parts, strict=True)))

    def _evaluated(self, v: Tensor) -> State:
        with torch.enable_grad():
            at = v.detach().requires_grad_()
            u = self.density.place(at)
            log_p, log_guide = self.posterior.log_densities(u)
            log_q = self.mixture.log_density(u, log_guide)
            (slope_p,) = torch.autograd.grad(log_p.sum(), at, retain_graph=True)
            (slope_q,) = torch.autograd.grad(log_q.sum(), at)
        log_det = self.density.log_det
        return State(v.detach(), log_p.detach() + log_det, log_q.detach() + log_det, slope_p, slope_q)

    def _move(self, state: State, beta: float, step: Tensor) -> tuple[State, Tensor]:
        """Move each chain once; return the new state and the acceptance probabilities, shape ``(num_chains, N)``."""
        return transition(state, self._state, lambda at: (at.value(beta), at.slope(beta)), step, self.num_leapfrog)

    def _tune(self) -> list[Tensor]:
        """Tune the step sizes with pilot chains.

        Returns:
            A list with one tensor for each transition. The tensor holds the step size of each datum, shape ``(N,)``.
        """
        state = self._start(PILOT_CHAINS)
        step, steps = state.log_p.new_full((self.posterior.size,), self.posterior.dim**-0.25), []
        for t in (*[1] * WARM_UP, *range(1, len(self.betas) - 1)):
            state, acceptance = self._move(state, self.betas[t], step)
            steps.append(step)
            step = adapted(step, acceptance, ACCEPTANCE)
        return steps[WARM_UP:]
