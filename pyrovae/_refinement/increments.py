r"""Normal densities near points with large weights, which are added to a mixture step by step.

If a few points have much larger weights than most draws from a mixture, the mixture covers their neighbourhood badly.
It then gets further densities near these points. Let v be such a point and g the score at v, in coordinates in which
the fitted density is standard normal. The new density has mean v + g and the covariance of the fitted density. If the
posterior near v is a normal density with this covariance, v + g is its mean. A new density costs a single gradient.

The estimate comes from new draws, after the densities have been added. The draws that showed where to add them are
discarded, because the new densities cover exactly these draws, and their weights would therefore be too small.

Source:
    *Estimating and Projecting Trends in HIV/AIDS Generalized Epidemics Using Incremental Mixture Importance Sampling*
    (Raftery and Bao, 2010).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pyrovae._refinement.modes import whitened_mean_near
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.posterior import Posterior

NUM_ADDED, NUM_STEPS = 16, 3  # densities that a datum gets in one step, and the largest number of steps


@dataclass(frozen=True)
class Increments:
    """Further normal densities of N data, with the covariance of the fitted density.

    Attributes:
        means: Means, in coordinates in which the fitted density is standard normal, shape ``(N, K, D)``. K is the
            largest number of further densities of a datum.
        count: Number of densities of each datum, shape ``(N,)``. The first ``count`` means are in use.
    """

    means: Tensor
    count: Tensor

    @classmethod
    def none(cls, density: Normal) -> Self:
        """Return increments without densities."""
        size, dim = density.mean.shape
        means = density.mean.new_zeros(size, NUM_ADDED * NUM_STEPS, dim)
        return cls(means, torch.zeros(size, dtype=torch.long, device=means.device))

    @property
    def full(self) -> Tensor:
        """True for data that cannot get further densities, shape ``(N,)``."""
        return self.count + NUM_ADDED > self.means.shape[1]

    def narrowed(self) -> Self:
        """Return the same densities without the columns of ``means`` that no datum uses."""
        return type(self)(self.means[:, : int(self.count.max())], self.count)

    def select(self, indices: Tensor) -> Self:
        """Return the increments of the data at ``indices``."""
        return type(self)(self.means[indices], self.count[indices])

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the densities of the data at ``indices`` by those of ``other``."""
        self.means[indices], self.count[indices] = other.means, other.count

    def add(self, posterior: Posterior, density: Normal, heavy: Tensor, batch_size: int | None = None) -> None:
        """Add, in place, a density near each of the given points.

        Args:
            posterior: Posteriors of the N data.
            density: Normal densities that were fitted to the posteriors.
            heavy: Points with large weights, shape ``(NUM_ADDED, N, D)``.
            batch_size: Largest number of gradients that are computed together; by default all.
        """
        means = whitened_mean_near(posterior, density, heavy, batch_size).movedim(1, 0)
        rows = torch.arange(len(means), device=means.device)[:, None]
        self.means[rows, self.count[:, None] + torch.arange(NUM_ADDED, device=means.device)] = means
        self.count.add_(NUM_ADDED)
