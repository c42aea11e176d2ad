r"""MMD-VAE, InfoVAE and Wasserstein autoencoder: a two-sample statistic compares the aggregate posterior and the prior.

Let :math:`z_i` be drawn by the guide and :math:`z'_i` by the model, one draw for each of N data. Then

.. math::
    \widehat{\mathrm{MMD}}^2 = \frac{1}{N (N - 1)} \sum_{i \ne j} \big( k(z_i, z_j) + k(z'_i, z'_j) \big)
        - \frac{2}{N^2} \sum_{i, j} k(z_i, z'_j), \qquad
    k(a, b) = \frac{C}{C + \| a - b \|^2}, \quad C = 2 d s^2,

for d latent dimensions and a kernel scale s, where C is the mean squared distance of two independent draws from
:math:`N(0, s^2 I)`.

:class:`pyro.infer.Trace_MMD` is a different objective. It uses the particles as the sample, and the whole batch as one
event. It therefore compares :math:`\prod_n q(z_n \mid x_n)` with :math:`\prod_n p(z_n)` in N d dimensions, instead of
q(z) with p(z). ``Trace_MMD`` also includes the pairs i = j, for which the kernel is 1, so it gives equal distributions
a positive distance.
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
    r"""Objective that combines reconstruction, a fraction of the KL term, and the squared MMD between q(z) and p(z).

    .. math::
        \sum_n s_n \big( E_q[\log p(x_n \mid z)] - (1 - \alpha)\, \mathrm{KL}_n \big)
            - \lambda\, S\, \widehat{\mathrm{MMD}}^2, \qquad S = \sum_n s_n.

    The factor :math:`s_n` is the scale of the data plate (subsampling).

    With :math:`\alpha = 1`, this is the objective of the MMD-VAE, and of the Wasserstein autoencoder with an MMD
    penalty. With :math:`\alpha < 1`, it is the objective of the InfoVAE for
    :math:`\lambda = \alpha + \lambda_\text{InfoVAE} - 1`. The estimate of the squared maximum mean discrepancy (MMD) is
    unbiased for independently drawn data, and can be negative. All latent sites of a datum form a single vector, so a
    hierarchy is compared as a whole. The draws from the prior come from a run of the model. Annealing (``kl_warmup``)
    multiplies the KL term and the MMD by the same factor.

    Args:
        weight: Weight of the discrepancy, :math:`\lambda`, at least 0.
        alpha: Fraction of the KL term that is left out, at most 1.
        kernel_scale: Scale of the latents, s, to which the kernel is most sensitive.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        retain_graph: Passed to ``backward``, as in Pyro's objectives.

    Raises:
        ValueError: If an argument is out of range. When called, if the batch is a single datum; if a latent site has no
            reparameterized draws in the guide; if the prior of a latent site has parameters but no reparameterized
            draws; if a latent site is not in the model; or if the program has a site outside its data plate or
            enumerates sites.

    Source:
        *InfoVAE: Balancing Learning and Inference in Variational Autoencoders* (Zhao, Song and Ermon, 2019);
        *Wasserstein Auto-Encoders* (Tolstikhin, Bousquet, Gelly and Schölkopf, 2018); *A Kernel Two-Sample Test*
        (Gretton et al., 2012).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> def guide_at(loc):
        ...     def guide(x):
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("z", dist.Normal(loc, 1.0))
        ...     return guide
        >>> objective = pv.objectives.MMD(weight=10.0)
        >>> near, far = (objective.loss(model, guide_at(loc), torch.zeros(100)) / 100 for loc in (0.0, 3.0))
        >>> far > near + 1
        True
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
            raise ValueError(
                f"weight, the weight of the discrepancy, must be finite and at least 0, got weight={weight}"
            )
        if not -math.inf < alpha <= 1:
            raise ValueError(
                f"alpha, the fraction of the KL term to leave out, must be at most 1 and finite, got alpha={alpha}"
            )
        if not 0 < kernel_scale < math.inf:
            raise ValueError(f"kernel_scale must be positive and finite, got kernel_scale={kernel_scale}")
        super().__init__(vectorize_particles=False, plate=plate, retain_graph=retain_graph)
        self.weight, self.alpha, self.kernel_scale = weight, alpha, kernel_scale

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return minus the objective in nats, summed over the data, shape ``()``, differentiable."""
        weights = self._weights(model, guide, args, kwargs)
        densities = self._densities(weights)
        posterior = {site["name"]: site for site in weights.guide_sites if not site["is_observed"]}
        prior = run_guide(model, args, kwargs=kwargs).latents
        if alone := sorted(set(posterior) - set(prior)):
            raise ValueError(
                f"latent site {alone[0]!r} is in the guide but not in the model, so there is no prior to compare it "
                f"with. Train with IWAE."
            )
        if weights.plate.size < 2:
            raise ValueError(
                "MMD compares the latents of at least 2 data, got a batch with a single datum. Choose a batch size "
                "for which the last batch has at least 2 data."
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
    """Return an unbiased estimate of the squared maximum mean discrepancy of two samples, shapes ``(N, d)``."""
    c = 2 * a.shape[-1] * scale**2

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return c / (c + (first.unsqueeze(1) - second).square().sum(-1))

    def within(sample: Tensor) -> Tensor:
        n = len(sample)
        return (kernel(sample, sample).sum() - n) / (n * (n - 1))  # k(z, z) = 1

    return within(a) + within(b) - 2 * kernel(a, b).mean()


def _per_datum(sites: dict[str, Site], names: list[str], data_dim: Any) -> Tensor:
    """Return all latents of each datum as one vector, shape ``(N, d)``."""
    vectors = []
    for site in (sites[name] for name in names):
        value = site["value"]
        if not site["fn"].has_rsample and site["fn"].log_prob(value.detach()).requires_grad:
            raise ValueError(
                f"the prior of latent site {site['name']!r} has parameters but no reparameterized draws, so MMD cannot "
                f"train it. Freeze the prior with requires_grad_(False), or use a StandardNormal or a NormalizingFlow."
            )
        value = value.movedim(data_dim - site["fn"].event_dim, 0)
        vectors.append(value.reshape(len(value), -1))
    return torch.cat(vectors, dim=-1)
