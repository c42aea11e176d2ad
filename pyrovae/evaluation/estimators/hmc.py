r"""Hamiltonian Monte Carlo for many chains and data at once, with a separate acceptance step for each chain and datum.

A trajectory of datum n takes leapfrog steps of size :math:`\epsilon_n` on the Hamiltonian
:math:`H(u, r) = -\log f_n(u) + \frac12 r^\top r`. Let the Hamiltonian be :math:`H_0` at the start of the trajectory and
:math:`H_1` at its end. The end is accepted with probability :math:`\min(1, e^{H_0 - H_1})`, so the density :math:`f_n`
is invariant. Pyro's HMC kernel accepts or rejects all chains and data of a run together, but annealed importance
sampling needs a separate decision for each chain and datum.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]


def transition(value_and_gradient: Gradient, u: Tensor, step: Tensor, num_leapfrog: int) -> tuple[Tensor, Tensor]:
    """Make one transition of every chain.

    Args:
        value_and_gradient: Function from states of shape ``(num_chains, N, D)`` to the log-density up to a constant,
            shape ``(num_chains, N)``, and its gradient.
        u: States, shape ``(num_chains, N, D)``.
        step: Step size of each datum and dimension, which broadcasts to ``(N, D)``. Step sizes in proportion to the
            scales of the dimensions are equivalent to rescaling the dimensions.
        num_leapfrog: Number of leapfrog steps.

    Returns:
        The new states, and the acceptance probability of each chain and datum, shape ``(num_chains, N)``. A trajectory
        is rejected if the log-density at its end is NaN or minus infinity.

    Source:
        *MCMC Using Hamiltonian Dynamics* (Neal, 2011).
    """
    start, momentum = u, torch.randn_like(u)
    log_f, gradient = value_and_gradient(u)
    energy = momentum.square().sum(-1) / 2 - log_f
    momentum = momentum + step / 2 * gradient
    for i in range(num_leapfrog):
        u = u + step * momentum
        log_f, gradient = value_and_gradient(u)
        momentum = momentum + (step if i < num_leapfrog - 1 else step / 2) * gradient
    change = energy - (momentum.square().sum(-1) / 2 - log_f)
    acceptance = change.clamp(max=0).exp().nan_to_num(nan=0.0)
    accepted = torch.rand_like(acceptance) < acceptance
    return torch.where(accepted.unsqueeze(-1), u, start), acceptance
