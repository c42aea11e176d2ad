r"""Annealed importance sampling from a fitted mixture, in the coordinates in which its normal density is standard.

With :math:`u = m + A v` for the fitted density :math:`N(m, A A^\top)`, the posterior of v is close to a standard normal
density. So one step size serves all dimensions, and few temperatures are needed. The chains start from the mixture, and
their weights are those of :func:`pyrovae.evaluation.ais`.
"""

import torch
from torch import Tensor

from pyrovae.guides._mixture import Mixture
from pyrovae.guides._posterior import Posterior


class Whitened:
    """A posterior and a mixture in the coordinates of the mixture's normal density.

    Args:
        posterior: Posteriors of N data.
        mixture: Mixtures for them.

    Attributes:
        size: Number of data, N.
        dim: Number of latent dimensions, D.
        evaluations: Evaluations of log p(x, u) for each datum so far; a gradient counts 3.
    """

    def __init__(self, posterior: Posterior, mixture: Mixture) -> None:
        self.posterior, self.mixture, self.density = posterior, mixture, mixture.density
        self.size, self.dim, self.evaluations = posterior.size, posterior.dim, 0

    def draw(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw v from the mixture, shape ``(num_samples, N, D)``, with its log-density, ``(num_samples, N)``."""
        drawn = self.mixture.draw(num_samples)
        self.evaluations += num_samples
        return self._standard(drawn.u), drawn.log_q + self.density.log_det

    def log_densities(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, v) and the log-density of the mixture at v, shapes ``(num_samples, N)``, nats."""
        self.evaluations += len(v)
        u = self.density.place(v)
        log_joint, log_guide = self.posterior.log_densities(u)
        log_det = self.density.log_det
        return log_joint + log_det, self.mixture.log_density(u, log_guide) + log_det

    def value_and_gradient(self, v: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Return a log-density between mixture and posterior, and its gradient."""
        self.evaluations += 2 * len(v)
        with torch.enable_grad():
            at = v.detach().requires_grad_()
            log_joint, log_mixture = self.log_densities(at)
            value = beta * log_joint + (1 - beta) * log_mixture
            (gradient,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), gradient

    def _standard(self, u: Tensor) -> Tensor:
        centered = (u - self.density.mean).movedim(0, 1)
        return (centered @ self.density.inverse_root.mT).movedim(1, 0)
