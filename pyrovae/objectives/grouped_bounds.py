r"""MIWAE, CIWAE and PIWAE: variants of the importance-weighted bound with a less noisy gradient for the guide.

More draws make the importance-weighted bound a better objective for the model, but they make the guide's gradient
noisier. For M groups of K draws, let :math:`\mathcal{L}_K^{(m)}` be the importance-weighted bound of group m. Then

.. math::
    \text{MIWAE} = \frac{1}{M} \sum_m \mathcal{L}_K^{(m)}, \qquad
    \text{CIWAE} = \beta\, \mathcal{L}_1 + (1 - \beta)\, \mathcal{L}_K, \qquad
    \text{PIWAE} = \begin{cases} \mathcal{L}_{MK} & \text{for the model} \\ \text{MIWAE} & \text{for the guide.}
    \end{cases}

Source: *Tighter Variational Bounds are Not Necessarily Better* (Rainforth et al., 2018).
"""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from pyrovae.objectives.base import Objective, Options, WeightObjective, log_mean_exp
from pyrovae.objectives.gradient_parts import Leaves, with_gradient


class MIWAE(WeightObjective):
    r"""The mean of several importance-weighted bounds for each datum.

    .. math:: \mathcal{L} = \sum_n \frac{s_n}{M} \sum_{m=1}^M \log \frac{1}{K} \sum_{k=1}^K w_n^{(m, k)}.

    The factor :math:`s_n` is the scale of the data plate (subsampling). The loss has the expectation of
    ``IWAE(num_particles)`` and a variance that is M times smaller.

    Args:
        num_particles: Number of draws in a group, K.
        num_groups: Number of groups per datum, M.
        **options: Options of :class:`WeightObjective`: ``max_plate_nesting``, ``vectorize_particles``, ``plate``,
            ``retain_graph``.

    Raises:
        ValueError: If ``num_particles`` or ``num_groups`` is less than 1. When called, if a latent site is not
            reparameterized, or the program has a site outside its data plate.

    Source:
        *Tighter Variational Bounds are Not Necessarily Better* (Rainforth et al., 2018), section 5.

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
        >>> round(pv.objectives.MIWAE(num_particles=8, num_groups=8).loss(model, guide, x), 3)
        2.781
    """

    def __init__(self, num_particles: int = 8, num_groups: int = 8, **options: Unpack[Options]) -> None:
        super().__init__(num_particles, num_groups, **options)

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return bounds, shape ``(N,)``, from log-weights, shape ``(num_groups * num_particles, N)``, nats."""
        return _by_group(log_weights, self.num_particles).mean(0)


class CIWAE(WeightObjective):
    r"""A convex combination of the ELBO and the importance-weighted bound for each datum.

    .. math::
        \mathcal{L} = \sum_n s_n \Big(\frac{\beta}{K} \sum_k \log w_n^{(k)}
            + (1 - \beta) \log \frac{1}{K} \sum_k w_n^{(k)}\Big).

    The factor :math:`s_n` is the scale of the data plate (subsampling).

    Args:
        num_particles: Number of draws per datum, K.
        beta: Weight of the ELBO, from 0 to 1.
        **options: Options of :class:`WeightObjective`: ``max_plate_nesting``, ``vectorize_particles``, ``plate``,
            ``retain_graph``.

    Raises:
        ValueError: If ``beta`` is not in [0, 1] or ``num_particles`` is less than 1. When called, if a latent site is
            not reparameterized, or the program has a site outside its data plate.

    Source:
        *Tighter Variational Bounds are Not Necessarily Better* (Rainforth et al., 2018), section 5.

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
        >>> round(pv.objectives.CIWAE(num_particles=5, beta=0.5).loss(model, guide, x), 3)
        2.781
    """

    def __init__(self, num_particles: int = 5, beta: float = 0.5, **options: Unpack[Options]) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta, the weight of the ELBO, must be in [0, 1], got beta={beta}")
        super().__init__(num_particles, **options)
        self.beta = beta

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the bound of each datum, shape ``(N,)``, from log-weights, shape ``(num_particles, N)``, nats."""
        return self.beta * log_weights.mean(0) + (1 - self.beta) * log_mean_exp(log_weights)


class PIWAE(Objective):
    r"""Objective with the gradient of ``IWAE(M * K)`` for the model and of ``MIWAE(K, M)`` for the guide.

    Both gradients are computed from the same draws. The weights :math:`\tilde w` are normalized over all draws of a
    datum, and :math:`\tilde v` over the draws of a group. The gradient is

    .. math::
        \sum_{m, k} \Big[ \tilde w_{m, k} \, \partial_\lambda \log p(x, z_{m, k})
        + \frac{\tilde v_{m, k}}{M} \Big( \partial_z \log w_{m, k} \, \partial_\lambda z_{m, k}
        - \partial_\lambda \log q(z_{m, k} \mid x) \Big) \Big].

    The formula also holds for parameters that model and guide share, such as the encoder's parameters with a
    VampPrior. The loss has the value of ``IWAE(M * K)``.

    Args:
        num_particles: Number of draws in a group, K.
        num_groups: Number of groups per datum, M.
        **options: Options of :class:`WeightObjective`: ``max_plate_nesting``, ``vectorize_particles``, ``plate``,
            ``retain_graph``.

    Raises:
        ValueError: If ``num_particles`` or ``num_groups`` is less than 1. When called, if a latent site is not
            reparameterized, or if the program enumerates sites or has a site outside its data plate.

    Source:
        *Tighter Variational Bounds are Not Necessarily Better* (Rainforth et al., 2018), section 5.

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
        >>> round(pv.objectives.PIWAE(num_particles=8, num_groups=8).loss(model, guide, x), 3)
        2.781
    """

    def __init__(self, num_particles: int = 8, num_groups: int = 8, **options: Unpack[Options]) -> None:
        super().__init__(num_particles, num_groups, **options)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return minus the IWAE bound, summed over the data, shape ``()``, nats. Its gradient is that of PIWAE."""
        if not torch.is_grad_enabled():
            weights = self._weights(model, guide, args, kwargs)
            return -(weights.scale * log_mean_exp(weights.log_weights)).sum()
        with Leaves() as leaves:
            weights = self._weights(model, guide, args, kwargs)
        densities = self._densities(weights)
        of_all = weights.log_weights.detach()
        in_group = of_all.unflatten(0, (-1, self.num_particles)).softmax(1).flatten(0, 1)
        guide_part = in_group * self.num_particles / self.num_draws
        value = (weights.scale * log_mean_exp(weights.log_weights)).sum()
        return -with_gradient(
            value, weights, densities, leaves, model=of_all.softmax(0), score=guide_part, path=guide_part
        )


def _by_group(log_weights: Tensor, size: int) -> Tensor:
    """Return the importance-weighted bound of each group, shape ``(num_groups, N)``, nats."""
    return log_weights.unflatten(0, (-1, size)).logsumexp(1) - math.log(size)
