r"""The KL term in three parts, each with a weight of its own; the middle one is what disentanglement penalizes.

With :math:`q(z) = \frac{1}{D} \sum_n q(z \mid x_n)` over D data,

.. math::
    E_n\, \mathrm{KL}\big(q(z \mid x_n) \,\|\, p(z)\big)
    = \underbrace{E \log \frac{q(z \mid x_n)}{q(z)}}_\text{mutual information}
    + \underbrace{E \log \frac{q(z)}{\prod_j q(z_j)}}_\text{total correlation}
    + \underbrace{\sum_j E \log \frac{q(z_j)}{p(z_j)}}_\text{dimension-wise KL}.

A batch of B data knows q(z) at the draws of datum i only by sampling. The datum itself is in the sum for certain, and
stands for one of D; the others are a sample of the other D - 1 and share their weight,

.. math::
    \hat q(z) = \frac{1}{D} q(z \mid x_i) + \frac{D - 1}{D (B - 1)} \sum_{m \ne i} q(z \mid x_m),

likewise for :math:`q(z_j)`. This is the paper's stratified sampling, with its odd weight spread over the batch:
unbiased for q(z), and exact where the batch is the data set. Its minibatch-weighted sampling is neither: the weights,
1 / (D B) each, add up to 1 / D.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae._waist.sites import Latents, Site, factors
from pyrovae._waist.weights import Weights
from pyrovae.objectives.base import Objective
from pyrovae.objectives.tempering import temper


class Decomposition(NamedTuple):
    """The ELBO's terms, by one draw for each datum, shape ``(N,)``, nats; the last three add up to the KL term.

    Attributes:
        reconstruction: log p(x | z).
        mutual_information: log q(z | x) - log q(z), of latents and data.
        total_correlation: log q(z) - sum of log q(z_j), how far latent dimensions are from independence.
        dimension_wise_kl: Sum of log q(z_j) - log p(z_j).
    """

    reconstruction: Tensor
    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


class BetaTC(Objective):
    r"""The ELBO with mutual information, total correlation and dimension-wise KL weighed apart.

    .. math::
        \sum_n s_n \big( E_q[\log p(x_n \mid z)] - \alpha\, \mathrm{MI}_n - \beta\, \mathrm{TC}_n
            - \gamma\, \mathrm{DW}_n \big).

    With all weights 1 it is the ELBO. Each datum has one draw, compared with the posteriors of all data in the batch:
    time and memory grow with the square of the batch size. The logarithm of an unbiased density is biased; batches
    should be large.

    Args:
        alpha: Weight of the mutual information.
        beta: Weight of the total correlation.
        gamma: Weight of the dimension-wise KL.
        data_size: Number of data that batches are drawn from, D.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        retain_graph: Passed to ``backward``, as in Pyro's objectives.

    Raises:
        ValueError: If a weight is negative or ``data_size`` is less than 2; when called, if the batch is larger than
            that or a single datum, the program has not one latent site in one plate, its posterior or prior does not
            factorize over dimensions, its draws are not reparameterized, or a site is outside the data plate.

    Source:
        *Isolating Sources of Disentanglement in Variational Autoencoders* (Chen, Li, Grosse and Duvenaud, 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> objective = pv.objectives.BetaTC(beta=6.0, data_size=50)
        >>> history = pv.fit(vae, torch.randn(50, 4), objective=objective, epochs=1)
        >>> objective.terms(vae.model, vae.guide, torch.randn(50, 4)).total_correlation.shape
        torch.Size([50])
    """

    is_of_batch = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        *,
        data_size: int,
        plate: str | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        for name, weight in {"alpha": alpha, "beta": beta, "gamma": gamma}.items():
            if not weight >= 0:
                raise ValueError(f"the weights of BetaTC are at least 0, got {name}={weight}")
        if data_size < 2:
            raise ValueError(f"BetaTC compares data with one another and needs at least 2, got data_size={data_size}")
        super().__init__(vectorize_particles=False, plate=plate, retain_graph=retain_graph)
        self.alpha, self.beta, self.gamma, self.data_size = alpha, beta, gamma, data_size

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the weighted bound, nats summed over the data, shape ``()``, to be differentiated."""
        weights, site_temper, terms = self._terms(model, guide, args, kwargs)
        penalty = (
            self.alpha * terms.mutual_information
            + self.beta * terms.total_correlation
            + self.gamma * terms.dimension_wise_kl
        )
        return -(weights.scale * (terms.reconstruction - site_temper * penalty)).sum()

    def terms(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Decomposition:
        """Returns the terms that the loss weighs, of each datum, without gradient."""
        with torch.no_grad():
            return self._terms(model, guide, args, kwargs)[2]

    def _terms(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Weights, float | Tensor, Decomposition]:
        of_model, of_guide = Latents(), Latents()
        weights = self._weights(of_model(model), of_guide(guide), args, kwargs)
        reconstruction = self._densities(weights).likelihood.squeeze(0)
        q, p = _only_site(of_guide), _only_site(of_model)
        q_fn, p_fn = _factors("posterior", q), _factors("prior", p)
        n = weights.plate.size
        if not 2 <= n <= self.data_size:
            raise ValueError(
                f"BetaTC got a batch of {n} out of data_size={self.data_size} data, and compares at least 2; choose a "
                f"batch size that leaves no single datum over, and the data_size of the training data"
            )
        of_pairs = q_fn.log_prob(q["value"].unsqueeze(1)).reshape(n, n, -1)  # draw i, posterior of datum m, dimension j
        share = _shares(of_pairs, self.data_size)
        log_q_of_x = of_pairs.diagonal().sum(0)
        log_q = (share + of_pairs.sum(-1)).logsumexp(1)
        log_q_apart = (share.unsqueeze(-1) + of_pairs).logsumexp(1).sum(-1)
        log_p = p_fn.log_prob(q["value"]).reshape(n, -1).sum(-1)
        terms = Decomposition(reconstruction, log_q_of_x - log_q, log_q - log_q_apart, log_q_apart - log_p)
        return weights, temper(q, p, weights), terms


def _shares(like: Tensor, data_size: int) -> Tensor:
    """Logarithm of what the posterior of datum m counts in q(z) at the draw of datum i, shape ``(N, N)``."""
    n = len(like)
    others = (data_size - 1) / (data_size * (n - 1))
    return like.new_full((n, n), math.log(others)).fill_diagonal_(-math.log(data_size))


def _only_site(latents: Latents) -> Site:
    if len(latents.runs) != 1:
        raise ValueError(
            f"BetaTC takes a program with one latent site, got {list(latents.runs)}, whose dimensions depend on one "
            f"another; make one site of them, or train with BetaELBO"
        )
    (site,) = latents.runs.values()
    return site[0]


def _factors(role: str, site: Site) -> Any:
    independent = factors(site["fn"])
    if independent is None:
        raise ValueError(
            f"the {role} of latent site {site['name']!r} does not factorize over its dimensions, and BetaTC needs the "
            f"density of each; use one such as DiagonalNormal or StandardNormal, or train with BetaELBO"
        )
    if len(site["fn"].batch_shape) != 1 or site["mask"] is not None:
        raise ValueError(
            f"latent site {site['name']!r} has batch shape {tuple(site['fn'].batch_shape)} and mask {site['mask']}, "
            f"and BetaTC takes one plate without a mask; declare event dimensions with .to_event(n), or train with "
            f"BetaELBO"
        )
    return independent
