r"""The aggregated posterior held to the prior by a two-sample statistic: MMD-VAE, InfoVAE and the Wasserstein VAE.

With :math:`z_i` drawn by the guide and :math:`z'_i` by the model, one for each of N data,

.. math::
    \widehat{\mathrm{MMD}}^2 = \frac{1}{N (N - 1)} \sum_{i \ne j} \big( k(z_i, z_j) + k(z'_i, z'_j) \big)
        - \frac{2}{N^2} \sum_{i, j} k(z_i, z'_j), \qquad
    k(a, b) = \frac{C}{C + \| a - b \|^2}, \quad C = 2 d s^2,

for d latent dimensions and a kernel scale s: C is the mean squared distance of two draws from :math:`N(0, s^2 I)`.

:class:`pyro.infer.Trace_MMD` is another objective. It takes the particles for the sample and the whole batch for one
event, so that it compares :math:`\prod_n q(z_n \mid x_n)` with :math:`\prod_n p(z_n)` rather than q(z) with p(z), in N
times d dimensions; and it counts the pairs i = j, which are 1 whatever the draws, so that equal distributions are at a
distance.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae._waist.draws import run_guide
from pyrovae._waist.sites import Site
from pyrovae.objectives.base import Objective
from pyrovae.objectives.tempering import common_temper


class MMD(Objective):
    r"""Reconstruction, a share of the KL term, and the maximum mean discrepancy between q(z) and p(z).

    .. math::
        \sum_n s_n \big( E_q[\log p(x_n \mid z)] - (1 - \alpha)\, \mathrm{KL}_n \big)
            - \lambda\, S\, \widehat{\mathrm{MMD}}^2, \qquad S = \sum_n s_n.

    :math:`\alpha = 1` is the MMD-VAE and the Wasserstein autoencoder with this penalty; :math:`\alpha < 1` the InfoVAE,
    whose weight is :math:`\lambda = \alpha + \lambda_\text{InfoVAE} - 1`. The statistic is unbiased for data drawn
    independently, and can be negative. All latent sites of a datum make one vector, so that a hierarchy is compared as
    a whole. The prior's draws are those of a run of the model. Annealing multiplies both penalties.

    Args:
        weight: Weight of the discrepancy, :math:`\lambda`, at least 0.
        alpha: What is left out of the KL term, at most 1.
        kernel_scale: Scale of the latents, s, at which the kernel sees most.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        retain_graph: Passed to ``backward``, as in Pyro's objectives.

    Raises:
        ValueError: If an argument is out of range; when called, if the batch is a single datum, a latent site is not
            reparameterized, in the guide or with parameters in the model, or is the guide's alone, or the program has a
            site outside its data plate or enumerates sites.

    Source:
        *InfoVAE: Balancing Learning and Inference in Variational Autoencoders* (Zhao, Song and Ermon, 2019);
        *Wasserstein Auto-Encoders* (Tolstikhin, Bousquet, Gelly and Schölkopf, 2018); *A Kernel Two-Sample Test*
        (Gretton et al., 2012).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(50, 4), objective=pv.objectives.MMD(weight=10.0), epochs=1)
    """

    is_of_batch = True

    def __init__(
        self,
        weight: float,
        *,
        alpha: float = 1.0,
        kernel_scale: float = 1.0,
        plate: str | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of the discrepancy is at least 0 and finite, got weight={weight}")
        if not -math.inf < alpha <= 1:
            raise ValueError(f"alpha leaves out at most all of the KL term, 1, and is finite, got alpha={alpha}")
        if not 0 < kernel_scale < math.inf:
            raise ValueError(f"the kernel's scale is positive and finite, got kernel_scale={kernel_scale}")
        super().__init__(vectorize_particles=False, plate=plate, retain_graph=retain_graph)
        self.weight, self.alpha, self.kernel_scale = weight, alpha, kernel_scale

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the objective, nats summed over the data, shape ``()``, to be differentiated."""
        weights = self._weights(model, guide, args, kwargs)
        densities = self._densities(weights)
        posterior = {site["name"]: site for site in weights.guide_sites if not site["is_observed"]}
        prior = run_guide(model, args, kwargs=kwargs).latents
        if alone := sorted(set(posterior) - set(prior)):
            raise ValueError(
                f"latent site {alone[0]!r} is the guide's alone, so there is no prior to hold it to; train with IWAE"
            )
        if weights.plate.size < 2:
            raise ValueError(
                "MMD got a single datum and compares the latents of at least 2; choose a batch size that leaves no "
                "single datum over"
            )
        discrepancy = mmd_squared(
            _per_datum(posterior, list(posterior), weights.plate.dim),
            _per_datum(prior, list(posterior), weights.plate.dim),
            self.kernel_scale,
        )
        elbo = densities.likelihood + (1 - self.alpha) * (densities.prior - densities.guide)
        total = torch.as_tensor(weights.scale).to(elbo).expand_as(elbo[0]).sum()
        temper = common_temper(list(posterior.values()), weights)
        return temper * self.weight * total * discrepancy - (weights.scale * elbo).sum()


def mmd_squared(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy, shape ``()``, from two samples, shape ``(N, d)``."""
    c = 2 * a.shape[-1] * scale**2

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return c / (c + (first.unsqueeze(1) - second).square().sum(-1))

    def within(sample: Tensor) -> Tensor:
        n = len(sample)
        return (kernel(sample, sample).sum() - n) / (n * (n - 1))  # k(z, z) = 1

    return within(a) + within(b) - 2 * kernel(a, b).mean()


def _per_datum(sites: dict[str, Site], names: list[str], data_dim: Any) -> Tensor:
    """All latents of a datum as one vector, shape ``(N, d)``."""
    vectors = []
    for site in (sites[name] for name in names):
        value = site["value"]
        if not site["fn"].has_rsample and site["fn"].log_prob(value.detach()).requires_grad:
            raise ValueError(
                f"the prior of latent site {site['name']!r} has parameters and no reparameterized draws, so MMD could "
                f"not train it; freeze it with requires_grad_(False), or take a StandardNormal or a NormalizingFlow"
            )
        value = value.movedim(data_dim - site["fn"].event_dim, 0)
        vectors.append(value.reshape(len(value), -1))
    return torch.cat(vectors, dim=-1)
