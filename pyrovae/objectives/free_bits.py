r"""Free bits: the KL term of each latent dimension gets a lower limit, to prevent an early posterior collapse.

.. math::
    \sum_n E_q[\log p(x_n \mid z)] - N \sum_j \max\Big(\lambda, \frac{1}{N} \sum_n \mathrm{KL}_{n, j}\Big).
"""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from pyrovae._waist.divergences import divergence, is_mean_field
from pyrovae._waist.sites import Latents, Site
from pyrovae.objectives.base import Objective, Options
from pyrovae.objectives.tempering import temper


class FreeBits(Objective):
    r"""The ELBO in which the KL term of each latent dimension counts as at least :math:`\lambda` nats.

    .. math::
        \sum_n s_n E_q[\log p(x_n \mid z)] - S \sum_j \max\Big(\lambda, \frac{1}{S} \sum_n s_n \mathrm{KL}_{n, j}\Big),
        \qquad S = \sum_n s_n.

    The factor :math:`s_n` is the scale of the data plate (subsampling). The maximum compares :math:`\lambda` with the
    mean of the KL divergence over the batch. If the mean is below :math:`\lambda` for a dimension, this dimension gets
    no gradient from its KL term, so its collapse does not improve the objective. The sum over j runs over the
    dimensions of all latent sites. A site whose prior or posterior does not factorize over its dimensions counts as one
    dimension.

    The KL divergence of a site is exact if torch has a closed form for it. In a hierarchy, the guide must also draw the
    site after all sites on which its prior depends. If one of these conditions does not hold, the divergence is
    estimated by :math:`\log q(z_j) - \log p(z_j)`. Annealing (``kl_warmup``) multiplies the sum over j, after the
    maximum is taken. The limit :math:`\lambda` is therefore compared with the divergence before annealing.

    Args:
        nats: Lower limit :math:`\lambda`, at least 0. With ``nats=0`` and exact divergences, the objective is the ELBO.
        num_particles: Number of draws per datum.
        **options: Options of :class:`WeightObjective`: ``max_plate_nesting``, ``vectorize_particles``, ``plate``.

    Raises:
        ValueError: If ``nats`` is negative or infinite, or ``num_particles`` is less than 1. When called, if a latent
            site is not reparameterized or is not in the model; or if the program has a site outside its data plate or
            enumerates sites.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016), appendix C.8.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # x does not depend on z
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> def guide(x):  # KL(q || p) = 1 / 2
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> x = torch.zeros(1)
        >>> [round(pv.objectives.FreeBits(nats).loss(model, guide, x), 3) for nats in (0.25, 2.0)]
        [1.419, 2.919]
        >>> round(-float(dist.Normal(0.0, 1.0).log_prob(x)) + 2, 3)
        2.919
    """

    is_of_batch = True

    def __init__(self, nats: float, num_particles: int = 1, **options: Unpack[Options]) -> None:
        if not 0 <= nats < math.inf:
            raise ValueError(f"nats, the limit on a KL divergence, must be finite and at least 0, got nats={nats}")
        super().__init__(num_particles, **options)
        self.nats = nats

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return minus the bound as a differentiable tensor, summed over the data, shape ``()``, nats."""
        self._nesting(model, guide, args, kwargs)  # outside the recording of latents, which must not see the check
        of_model, of_guide = Latents(), Latents()
        weights = self._weights(of_model(model), of_guide(guide), args, kwargs)
        reconstruction = self._densities(weights).likelihood.mean(0)
        scale = torch.as_tensor(weights.scale).to(reconstruction).expand_as(reconstruction)
        loss = -(scale * reconstruction).sum()
        for name, sites in of_guide.runs.items():
            if name not in of_model.runs:
                raise ValueError(
                    f"latent site {name!r} is in the guide but not in the model, so it has no KL divergence from a "
                    f"prior. Train with IWAE."
                )
            exact = is_mean_field(name, list(of_model.runs), list(of_guide.runs))
            divergences = [
                _groups(divergence(q, p, exact=exact), q, weights.plate.dim, self.vectorize_particles)
                for q, p in zip(sites, of_model.runs[name], strict=True)
            ]
            batch_mean = (torch.stack(divergences).mean(0) * scale).sum(-1) / scale.sum()
            loss = (
                loss
                + temper(sites[0], of_model.runs[name][0], weights)
                * scale.sum()
                * batch_mean.clamp(min=self.nats).sum()
            )
        return loss


def _groups(divergence: Tensor, q: Site, data_dim: Any, vectorized: bool) -> Tensor:
    """Return the KL divergence of each group and datum, averaged over draws, shape ``(groups, N)``.

    A group is a dimension of the site, or the whole site if its prior or posterior does not factorize over dimensions.
    """
    units = divergence.ndim - len(q["fn"].batch_shape)
    moved = divergence.movedim(data_dim - units, -1)
    return (moved.mean(0) if vectorized else moved).reshape(-1, moved.shape[-1])
