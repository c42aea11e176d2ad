r"""Short chains from remarkable draws of a mixture, which look for regions that the mixture misses.

If the draws from a mixture give no reliable estimate, a later mixture may give one only because its draws miss a part
of the posterior. Short Hamiltonian chains therefore start at two kinds of draws. Draws with the largest weights lie at
the border of the region that the mixture covers, so chains from them lead out of it. Draws from the guide with the
largest densities p(x, u) lie near modes, also near those that the other components miss.

Let w be the weight of a state of the chains, and n the number of draws. If w exceeds n times the mean weight, this
single state as a draw would double the estimate of p(x). The mixture then misses the region of the state.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pyrovae._refinement.chains import NUM_LEAPFROG, run_chains
from pyrovae._refinement.mixture import Draws, Mixture
from pyrovae._refinement.posterior import Posterior

NUM_HEAVY, NUM_STARTS = 16, 8  # draws with the largest weights that are kept; starts of each kind
NUM_TRANSITIONS = 6


@dataclass(frozen=True)
class Remarkable:
    """Draws of each of N data with the largest weights, and draws from the guide with the largest densities.

    Attributes:
        log_weights: The largest log-weights, in descending order, shape ``(NUM_HEAVY, N)``, nats.
        heavy: Draws with these weights, shape ``(NUM_HEAVY, N, D)``.
        log_joint: The largest log p(x, u) of draws from the guide, shape ``(NUM_STARTS, N)``, nats.
        dense: Draws with these densities, shape ``(NUM_STARTS, N, D)``.
    """

    log_weights: Tensor
    heavy: Tensor
    log_joint: Tensor
    dense: Tensor

    @classmethod
    def of(cls, draws: Draws, mixture: Mixture) -> Self:
        """Return the remarkable draws among some draws from a mixture."""
        log_joint = draws.log_joint.masked_fill(~mixture.is_guide(draws.member), -math.inf)
        return cls(*_top(draws.log_weights, draws.u, NUM_HEAVY), *_top(log_joint, draws.u, NUM_STARTS))

    def joined(self, other: Self) -> Self:
        """Return the remarkable draws among those of ``self`` and ``other``."""
        weights, joints = torch.cat([self.log_weights, other.log_weights]), torch.cat([self.log_joint, other.log_joint])
        heavy, dense = torch.cat([self.heavy, other.heavy]), torch.cat([self.dense, other.dense])
        return type(self)(*_top(weights, heavy, NUM_HEAVY), *_top(joints, dense, NUM_STARTS))

    def select(self, indices: Tensor) -> Self:
        """Return the draws of the data at ``indices``."""
        return type(self)(*(part[:, indices] for part in (self.log_weights, self.heavy, self.log_joint, self.dense)))


def walk(
    posterior: Posterior, mixture: Mixture, found: Remarkable, batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Run chains from remarkable draws.

    Args:
        posterior: Posteriors of N data.
        mixture: Mixture that should cover the states of the chains.
        found: Remarkable draws from this mixture.
        batch_size: Largest number of gradients that are computed together, over chains and data; by default all.

    Returns:
        The largest log-weight of the states of each datum, shape ``(N,)``, nats, and the ``NUM_HEAVY`` points with the
        largest weights among these states and ``found.heavy``, shape ``(NUM_HEAVY, N, D)``.
    """
    start = torch.cat([found.heavy[:NUM_STARTS], found.dense])
    options: Any = {"num_transitions": NUM_TRANSITIONS, "local_step": True}
    u = run_chains(posterior, mixture.density, start, batch_size, **options).u
    log_weights = mixture.score(u).nan_to_num(nan=-math.inf)
    heavy = _top(torch.cat([found.log_weights, log_weights]), torch.cat([found.heavy, u]), NUM_HEAVY)[1]
    return log_weights.amax(0), heavy


def gradients_of_walk() -> int:
    """Return the number of gradients per datum of :func:`walk`."""
    return 2 * NUM_STARTS * (1 + NUM_TRANSITIONS * NUM_LEAPFROG)


def states_of_walk() -> int:
    """Return the number of states per datum whose weights :func:`walk` computes."""
    return 2 * NUM_STARTS * NUM_TRANSITIONS


def _top(values: Tensor, u: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values of each datum, and the points of these values."""
    top = values.nan_to_num(nan=-math.inf).topk(min(count, len(values)), 0)
    return top.values, u.gather(0, top.indices[..., None].expand(-1, -1, u.shape[-1]))
