r"""The variational Rényi bound: a family from the ELBO to the importance-weighted bound, and beyond.

.. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^K w_k^{1 - \alpha}.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from pyrovae.objectives.base import Options, WeightObjective, log_mean_exp

CLOSE = 0.5  # largest exponent, in absolute value, for which the mean of powers is computed around 1


class Renyi(WeightObjective):
    r"""The variational Rényi bound, per datum.

    .. math::
        \mathcal{L}_{\alpha, K} = \sum_n \frac{s_n}{1 - \alpha}
            \log \frac{1}{K} \sum_{k=1}^K \big(w_n^{(k)}\big)^{1 - \alpha}.

    It falls with :math:`\alpha`: 0 is the importance-weighted bound, 1 the ELBO (the limit, taken exactly), and above 1
    the guide seeks modes. With :math:`\alpha < 0` it is no lower bound of log p(x), even for many draws.

    Unlike :class:`pyro.infer.RenyiELBO` it keeps the data apart and their plate's scale outside the logarithm.

    Args:
        alpha: Any real number.
        num_particles: Draws per datum, K.
        **options: As of :class:`IWAE`.

    Raises:
        ValueError: If ``alpha`` is not finite or ``num_particles`` is less than 1; when called, if a latent site is not
            reparameterized, or the program has a site outside its data plate.

    Source:
        *Rényi Divergence Variational Inference* (Li and Turner, 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(50, 4), objective=pv.objectives.Renyi(0.5, num_particles=5), epochs=1)
    """

    def __init__(self, alpha: float, num_particles: int = 5, **options: Unpack[Options]) -> None:
        if not math.isfinite(alpha):
            raise ValueError(f"the order of a Renyi bound is a finite number, got alpha={alpha}")
        super().__init__(num_particles, **options)
        self.alpha = alpha

    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each datum, shape ``(N,)``, from log-weights, shape ``(num_particles, N)``."""
        order, mean = 1 - self.alpha, log_weights.mean(0)
        if order == 0:
            return mean
        # Near alpha = 1 all powers are close to 1. The logarithm of their mean would lose what a division by 1 - alpha
        # brings back, so the difference from 1 is averaged instead.
        exponents = order * (log_weights - mean)
        is_close = (exponents.abs() <= CLOSE).all(0)
        around_one = torch.where(is_close, exponents, 0.0).expm1().mean(0).log1p() / order
        return torch.where(is_close, mean + around_one, log_mean_exp(order * log_weights) / order)
