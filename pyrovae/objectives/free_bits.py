r"""Free bits: a floor under the KL divergence of each latent dimension, so that none is given up early.

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
    r"""The ELBO with at least :math:`\lambda` nats paid for every latent dimension, used or not.

    .. math::
        \sum_n s_n E_q[\log p(x_n \mid z)] - S \sum_j \max\Big(\lambda, \frac{1}{S} \sum_n s_n \mathrm{KL}_{n, j}\Big),
        \qquad S = \sum_n s_n.

    The floor is under the mean over the batch. A dimension below it gets no gradient from its KL term, so nothing is
    gained by giving it up. Dimensions are those of all latent sites; a site whose prior or posterior does not factorize
    over its dimensions counts as one. KL divergences are exact where torch has their formula (and, in a hierarchy, the
    model draws no parent of a site that the guide draws after it), otherwise estimated by
    :math:`\log q(z_j) - \log p(z_j)`. Annealing multiplies the second sum, so the floor is in nats of the divergence
    itself.

    Args:
        nats: The floor, :math:`\lambda`, at least 0; with 0 and exact divergences it is the ELBO.
        num_particles: Draws per datum.
        **options: As of :class:`IWAE`.

    Raises:
        ValueError: If ``nats`` is negative or infinite, or ``num_particles`` is less than 1; when called, if a latent
            site is not reparameterized or is the guide's alone, or the program has a site outside its data plate or
            enumerates sites.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016), appendix C.8.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(50, 4), objective=pv.objectives.FreeBits(0.25), epochs=1)
    """

    is_of_batch = True

    def __init__(self, nats: float, num_particles: int = 1, **options: Unpack[Options]) -> None:
        if not 0 <= nats < math.inf:
            raise ValueError(f"the floor under a KL divergence is at least 0 nats and finite, got nats={nats}")
        super().__init__(num_particles, **options)
        self.nats = nats

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, nats summed over the data, shape ``()``, to be differentiated."""
        self._nesting(model, guide, args, kwargs)  # looked for now, since it would be a run more to keep
        of_model, of_guide = Latents(), Latents()
        weights = self._weights(of_model(model), of_guide(guide), args, kwargs)
        reconstruction = self._densities(weights).likelihood.mean(0)
        scale = torch.as_tensor(weights.scale).to(reconstruction).expand_as(reconstruction)
        loss = -(scale * reconstruction).sum()
        for name, sites in of_guide.runs.items():
            if name not in of_model.runs:
                raise ValueError(
                    f"latent site {name!r} is the guide's alone, so there is no prior to keep it from; train with IWAE"
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
    """Divergences as ``(groups, N)``, the mean over the run's draws."""
    units = divergence.ndim - len(q["fn"].batch_shape)
    moved = divergence.movedim(data_dim - units, -1)
    return (moved.mean(0) if vectorized else moved).reshape(-1, moved.shape[-1])
