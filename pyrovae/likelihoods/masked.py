"""A likelihood of what was observed of a datum."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Masked(nn.Module):
    r"""Scores the observed entries only, :math:`p(x_\mathrm{obs} \mid z) = \prod_{d: m_d = 1} p(x_d \mid z)`.

    For data that are missing completely at random, or at random: data are then ``(x, mask)``, the likelihood is called
    as ``likelihood(z, mask)`` and the posterior as ``posterior(x, mask)`` (see :class:`pyrovae.networks.ZeroFilled`).
    The missing entries of x must hold some value in the support, zero for most; it has no influence.
    :func:`pyrovae.evaluation.impute` fills them in.

    Args:
        likelihood: Any likelihood whose entries are independent given z.

    Raises:
        TypeError: When called, if the entries are not independent given z.

    Source:
        *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets* (Mattei and Frellsen, 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Masked(pv.likelihoods.Normal(pv.networks.mlp(2, 5)))
        >>> mask = torch.rand(3, 5) < 0.5
        >>> likelihood(torch.zeros(3, 2), mask).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])
    """

    def __init__(self, likelihood: Callable[..., Any]) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x_obs | z) for ``z``, shape ``(*batch, latent)``, and a mask, shape ``(*batch, *event)``."""
        *others, mask = context
        p = self.likelihood(*others)
        if not isinstance(p, torch.distributions.Independent) or len(p.event_shape) != p.reinterpreted_batch_ndims:
            raise TypeError(
                f"likelihoods.Masked scores entries apart, but those of a {type(p).__name__} are not independent given "
                f"z; give it a distribution made by .to_event(n)"
            )
        return p.base_dist.mask(mask.bool()).to_event(p.reinterpreted_batch_ndims)
