r"""The variational Rényi bound, a family that contains the ELBO and the importance-weighted bound.

.. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^K w_k^{1 - \alpha}.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from pyrovae.objectives.base import Options, WeightObjective, log_mean_exp

CLOSE = 0.5  # if the exponent is smaller in absolute value, the mean of powers is computed as a difference from 1


class Renyi(WeightObjective):
    r"""The variational Rényi bound for each datum.

    .. math::
        \mathcal{L}_{\alpha, K} = \sum_n \frac{s_n}{1 - \alpha}
            \log \frac{1}{K} \sum_{k=1}^K \big(w_n^{(k)}\big)^{1 - \alpha}.

    The bound decreases with :math:`\alpha`. With :math:`\alpha = 0` it is the importance-weighted bound, and with
    :math:`\alpha = 1` it is the ELBO, the limit of the formula. With :math:`\alpha > 1` the guide is mode-seeking. With
    :math:`\alpha < 0` the value can exceed log p(x), so it is not a lower bound.

    The weight :math:`w_n^{(k)}` is :math:`p(x_n, z) / q(z \mid x_n)` at draw k. The factor :math:`s_n`, the scale of
    the data plate, multiplies the logarithm. In :class:`pyro.infer.RenyiELBO`, by contrast, the scale multiplies the
    log-weights inside the logarithm.

    Args:
        alpha: Order of the bound, any real number.
        num_particles: Number of draws per datum, K.
        **options: Options of :class:`WeightObjective`: ``max_plate_nesting``, ``vectorize_particles``, ``plate``,
            ``retain_graph``.

    Raises:
        ValueError: If ``alpha`` is not finite or ``num_particles`` is less than 1. When called, if a latent site is not
            reparameterized, or the program has a site outside its data plate.

    Source:
        *Rényi Divergence Variational Inference* (Li and Turner, 2016).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, for which the bound equals log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> round(-float(dist.Normal(0.0, 2**0.5).log_prob(x).sum()), 3)
        2.781
        >>> [round(pv.objectives.Renyi(alpha, num_particles=5).loss(model, guide, x), 3) for alpha in (0.0, 0.5, 1.0)]
        [2.781, 2.781, 2.781]
    """

    def __init__(self, alpha: float, num_particles: int = 5, **options: Unpack[Options]) -> None:
        if not math.isfinite(alpha):
            raise ValueError(f"alpha, the order of a Renyi bound, must be finite, got alpha={alpha}")
        super().__init__(num_particles, **options)
        self.alpha = alpha

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the bound of each datum, shape ``(N,)``, from log-weights, shape ``(num_particles, N)``, nats."""
        order, mean = 1 - self.alpha, log_weights.mean(0)
        if order == 0:
            return mean
        # Near alpha = 1 all powers are close to 1. The logarithm of their mean would lose digits that the division by
        # 1 - alpha amplifies, so the difference from 1 is averaged instead.
        exponents = order * (log_weights - mean)
        is_close = (exponents.abs() <= CLOSE).all(0)
        around_one = torch.where(is_close, exponents, 0.0).expm1().mean(0).log1p() / order
        return torch.where(is_close, mean + around_one, log_mean_exp(order * log_weights) / order)
