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

    Use this likelihood if entries are missing at random. Data are then the tuple ``(x, mask)``, and a VAE calls
    ``likelihood(z, mask)`` and ``posterior(x, mask)`` (see :class:`pyrovae.networks.ZeroFilled`). Fill the missing
    entries of x with any value in the support, such as 0. This value has no effect. :func:`pyrovae.evaluation.impute`
    imputes the missing entries.

    Args:
        likelihood: Any likelihood whose entries are independent given z.

    Raises:
        TypeError: When called, if the entries are not independent given z.
        ValueError: When called, if the mask holds values other than 0 and 1, because a mask cannot weight entries.

    Source:
        *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets* (Mattei and Frellsen, 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> normal = pv.likelihoods.Normal(torch.nn.Identity())
        >>> masked, z, x = pv.likelihoods.Masked(normal), torch.zeros(2), torch.tensor([1.0, 100.0])
        >>> float(masked(z, torch.tensor([True, False])).log_prob(x)) == float(normal(z[:1]).log_prob(x[:1]))
        True
    """

    def __init__(self, likelihood: Callable[..., Any]) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return the distribution p(x_obs | z).

        Args:
            *context: ``z``, shape ``(*batch, latent)``; further inputs of the likelihood, if it has any; and last the
                mask of the observed entries, shape ``(*batch, *event)``.
        """
        *others, mask = context
        p = self.likelihood(*others)
        entries = entrywise(p, "likelihoods.Masked")
        return entries.mask(as_mask(mask, "likelihoods.Masked")).to_event(p.reinterpreted_batch_ndims)
