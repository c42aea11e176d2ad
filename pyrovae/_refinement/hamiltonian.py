"""Hamiltonian transitions of many chains for many data, in coordinates that make posteriors nearly standard normal."""

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor


class Chains(Protocol):
    """Protocol for a class that holds the states of many chains and the log-densities at these states."""

    @property
    def v(self) -> Tensor:
        """Positions, shape ``(num_chains, N, D)``."""

    def where(self, condition: Tensor, other: Any) -> Self:
        """Return the chains of ``self`` where ``condition`` is true, and those of ``other`` elsewhere."""


S = TypeVar("S", bound=Chains)


def transition(
    state: S,
    evaluate: Callable[[Tensor], S],
    density: Callable[[S], tuple[Tensor, Tensor]],
    step: Tensor,
    num_leapfrog: int,
) -> tuple[S, Tensor]:
    """Make one Hamiltonian transition of each chain.

    Args:
        state: States of the chains.
        evaluate: Function from positions, shape ``(num_chains, N, D)``, to the states at these positions.
        density: Function that returns the log-density of a state, ``(num_chains, N)``, and its gradient,
            ``(num_chains, N, D)``.
        step: Step size of each datum, shape ``(N,)``.
        num_leapfrog: Number of leapfrog steps.

    Returns:
        The new states, and the acceptance probability of each chain and datum, shape ``(num_chains, N)``.
    """
    size = step[:, None]
    value, slope = density(state)
    momentum = torch.randn_like(state.v)
    energy = momentum.square().sum(-1) / 2 - value
    moved, momentum = state, momentum + size / 2 * slope
    for i in range(num_leapfrog):
        moved = evaluate(moved.v + size * momentum)
        value, slope = density(moved)
        momentum = momentum + (size if i < num_leapfrog - 1 else size / 2) * slope
    change = energy - (momentum.square().sum(-1) / 2 - value)
    acceptance = change.clamp(max=0).exp().nan_to_num(nan=0.0)
    return moved.where(torch.rand_like(acceptance) < acceptance, state), acceptance


def adapted(step: Tensor, acceptance: Tensor, target: float) -> Tensor:
    """Return adapted step sizes, shape ``(N,)``.

    The step size of a datum grows if its mean acceptance probability exceeds ``target``, and shrinks otherwise.
    """
    return step * (acceptance.mean(0) - target).mul(0.5).exp()
