"""The likelihood of the observed entries of a datum."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyrovae.components import Described
from pyrovae.distributions import entrywise
from pyrovae.networks import as_mask


class Masked(Described):
    r"""Likelihood of the observed entries, :math:`p(x_\mathrm{obs} \mid z) = \prod_{d: m_d = 1} p(x_d \mid z)`.

    It is meant for entries that are missing at random. Data are then ``(x, mask)``, the likelihood is called as
    ``likelihood(z, mask)`` and the posterior as ``posterior(x, mask)`` (see :class:`pyrovae.networks.ZeroFilled`). The
    missing entries of x must hold some value in the support, such as 0; the value has no influence.
    :func:`pyrovae.evaluation.impute` fills the missing entries in.

    Args:
        likelihood: Any likelihood whose entries are independent given z.

    Raises:
        TypeError: When called, if the entries are not independent given z.
        ValueError: When called, if the mask holds values other than 0 and 1. A mask selects entries; it does not weigh
            them.

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
        """Return p(x_obs | z) for ``z``, shape ``(*batch, latent)``, and a mask, shape ``(*batch, *event)``."""
        *others, mask = context
        p = self.likelihood(*others)
        entries = entrywise(p, "likelihoods.Masked")
        return entries.mask(as_mask(mask, "likelihoods.Masked")).to_event(p.reinterpreted_batch_ndims)
