r"""The beta-TCVAE: the KL term in three parts, with a larger weight for the total correlation.

With :math:`q(z) = \frac{1}{D} \sum_n q(z \mid x_n)` over D data,

.. math::
    E_n\, \mathrm{KL}\big(q(z \mid x_n) \,\|\, p(z)\big)
    = \underbrace{E \log \frac{q(z \mid x_n)}{q(z)}}_\text{mutual information}
    + \underbrace{E \log \frac{q(z)}{\prod_j q(z_j)}}_\text{total correlation}
    + \underbrace{\sum_j E \log \frac{q(z_j)}{p(z_j)}}_\text{dimension-wise KL}.

In a mini-batch of B = M + 1 data, q(z) at the draws of datum i is estimated from the posteriors of the batch,

.. math:: \hat q(z) = \sum_m w_{im}\, q(z \mid x_m).

Datum i is always in the sum and stands for one of D terms of q(z), so :math:`w_{ii} = 1 / D`. The M other data are
drawn from the remaining D - 1 data without replacement. Each of these M data is equally likely to be any of the
remaining D - 1. The estimate of q(z) is therefore unbiased if and only if the weights of these M data add up to (D - 1)
/ D.

* ``weights="even"`` gives the M other data equal weights, :math:`w_{im} = (D - 1) / (D M)`.
* ``weights="stratified"`` is the minibatch stratified sampling of the paper. All but one of the M other data have
  weight 1 / M, as in an average over M data:

  .. math:: \hat q(z) = \frac{1}{D} q(z \mid x_i) + \frac{1}{M} \sum_{m \ne i, i + 1} q(z \mid x_m)
      + \frac{D - M}{D M} q(z \mid x_{i + 1}),

  where i + 1 is taken modulo B. The weights of the M other data add up to (M - 1) / M + (D - M) / (D M) = (D - 1) / D.

If the datum with the weight (D - M) / (D M) is chosen at random, the mean of the stratified weights over this choice
gives the even weights. The estimate with even weights therefore has at most the variance of the stratified estimate. If
the batch is the whole data set, the estimate with even weights is exact, and the stratified estimate is not. The
minibatch-weighted sampling of the paper is biased: its weights, 1 / (D B) each, add up to 1 / D instead of 1.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyrovae._waist.sites import Latents, Site, factors
from pyrovae._waist.weights import Weights
from pyrovae.objectives.base import Objective
from pyrovae.objectives.tempering import temper

BatchWeights = Literal["even", "stratified"]


class Decomposition(NamedTuple):
    """Four terms of the ELBO, estimated from one draw for each datum; the last three add up to the KL term.

    Each term has shape ``(N,)``, in nats.

    Attributes:
        reconstruction: log p(x | z).
        mutual_information: log q(z | x) - log q(z). Its mean is the mutual information of latents and data.
        total_correlation: log q(z) minus the sum of log q(z_j) over the latent dimensions j. Its mean measures the
            dependence between latent dimensions.
        dimension_wise_kl: Sum of log q(z_j) - log p(z_j) over the latent dimensions j.
    """

    reconstruction: Tensor
    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


class BetaTC(Objective):
    r"""The ELBO with its KL term split into mutual information, total correlation and dimension-wise KL.

    .. math::
        \sum_n s_n \big( E_q[\log p(x_n \mid z)] - \alpha\, \mathrm{MI}_n - \beta\, \mathrm{TC}_n
            - \gamma\, \mathrm{DW}_n \big).

    The factor :math:`s_n` is the scale of the data plate (subsampling).

    If :math:`\alpha = \beta = \gamma = 1`, the objective is the ELBO. The density q(z) at the draw of each datum is
    estimated from the posteriors of all data in the batch. Time and memory therefore grow with the square of the batch
    size. The estimate of q(z) is unbiased, but its logarithm is biased. The bias is small only if batches are large.

    Args:
        alpha: Weight of the mutual information.
        beta: Weight of the total correlation.
        gamma: Weight of the dimension-wise KL.
        data_size: Number of data from which batches are drawn.
        weights: Weights of the posteriors in the estimate of q(z): ``"even"``, or ``"stratified"`` as in the paper. The
            docstring of the module :mod:`pyrovae.objectives.beta_tc` derives both choices.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        retain_graph: Passed to ``backward``, as in Pyro's objectives.

    Raises:
        ValueError: If ``alpha``, ``beta`` or ``gamma`` is negative, ``data_size`` is less than 2, or ``weights`` is
            unknown. When called, if the batch has fewer than 2 data or more than ``data_size`` data; if the program
            does not have exactly one latent site, in one plate and without a mask; if the posterior or prior of this
            site does not factorize over dimensions; if the draws of this site are not reparameterized; or if a site
            lies outside the data plate.

    Source:
        *Isolating Sources of Disentanglement in Variational Autoencoders* (Chen, Li, Grosse and Duvenaud, 2018).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # x does not depend on z
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> def guide(x):  # all posteriors are equal
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> objective = pv.objectives.BetaTC(beta=6.0, data_size=100)
        >>> terms = objective.terms(model, guide, torch.zeros(50))
        >>> bool((terms.mutual_information.abs() < 1e-4).all()), bool((terms.total_correlation.abs() < 1e-4).all())
        (True, True)
    """

    is_of_batch = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        *,
        data_size: int,
        weights: BatchWeights = "even",
        plate: str | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        for name, weight in {"alpha": alpha, "beta": beta, "gamma": gamma}.items():
            if not weight >= 0:
                raise ValueError(f"BetaTC: {name}={weight} must be at least 0")
        if data_size < 2:
            raise ValueError(
                f"BetaTC: data_size={data_size} must be at least 2, because data are compared with each other"
            )
        if weights not in get_args(BatchWeights):
            raise ValueError(f"BetaTC: weights={weights!r} must be one of {get_args(BatchWeights)}")
        super().__init__(vectorize_particles=False, plate=plate, retain_graph=retain_graph)
        self.alpha, self.beta, self.gamma, self.data_size = alpha, beta, gamma, data_size
        self.weights = weights

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return minus the weighted bound in nats, summed over the data, shape ``()``, differentiable."""
        weights, site_temper, terms = self._terms(model, guide, args, kwargs)
        penalty = (
            self.alpha * terms.mutual_information
            + self.beta * terms.total_correlation
            + self.gamma * terms.dimension_wise_kl
        )
        return -(weights.scale * (terms.reconstruction - site_temper * penalty)).sum()

    def terms(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Decomposition:
        """Return the four terms of the ELBO for each datum, without gradients; see :class:`Decomposition`."""
        with torch.no_grad():
            return self._terms(model, guide, args, kwargs)[2]

    def _terms(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Weights, float | Tensor, Decomposition]:
        self._nesting(model, guide, args, kwargs)  # outside the recording of latents, which must not see the check
        of_model, of_guide = Latents(), Latents()
        weights = self._weights(of_model(model), of_guide(guide), args, kwargs)
        reconstruction = self._densities(weights).likelihood.squeeze(0)
        q, p = _only_site(of_guide), _only_site(of_model)
        q_fn, p_fn = _factors("posterior", q), _factors("prior", p)
        n = weights.plate.size
        if not 2 <= n <= self.data_size:
            raise ValueError(
                f"BetaTC: a batch has {n} data, but needs at least 2 and at most data_size={self.data_size}. Set "
                f"data_size to the number of training data, and choose a batch size for which the last batch has at "
                f"least 2 data."
            )
        of_pairs = q_fn.log_prob(q["value"].unsqueeze(1)).reshape(n, n, -1)  # draw i, posterior of datum m, dimension j
        log_weight = log_batch_weights(of_pairs, self.data_size, self.weights)
        log_q_of_x = of_pairs.diagonal().sum(0)
        log_q = (log_weight + of_pairs.sum(-1)).logsumexp(1)
        log_q_apart = (log_weight.unsqueeze(-1) + of_pairs).logsumexp(1).sum(-1)
        log_p = p_fn.log_prob(q["value"]).reshape(n, -1).sum(-1)
        terms = Decomposition(reconstruction, log_q_of_x - log_q, log_q - log_q_apart, log_q_apart - log_p)
        return weights, temper(q, p, weights), terms


def log_batch_weights(like: Tensor, data_size: int, weights: BatchWeights) -> Tensor:
    """Return the logarithms of weights, ``(N, N)``: entry (i, m) weights q(z | x_m) in the estimate of q(z_i)."""
    others = len(like) - 1
    if weights == "even":
        table = like.new_full((others + 1, others + 1), math.log((data_size - 1) / (data_size * others)))
    else:
        table = like.new_full((others + 1, others + 1), -math.log(others))
        rows = torch.arange(others + 1, device=like.device)
        table[rows, (rows + 1) % (others + 1)] = math.log((data_size - others) / (data_size * others))
    return table.fill_diagonal_(-math.log(data_size))


def _only_site(latents: Latents) -> Site:
    if len(latents.runs) != 1:
        raise ValueError(
            f"BetaTC needs a program with one latent site, got {list(latents.runs)}. Combine the sites into one, or "
            f"train with BetaELBO."
        )
    (site,) = latents.runs.values()
    return site[0]


def _factors(role: str, site: Site) -> Any:
    independent = factors(site["fn"])
    if independent is None:
        raise ValueError(
            f"the {role} of latent site {site['name']!r} does not factorize over its dimensions. Use a distribution "
            f"that does, such as DiagonalNormal or StandardNormal, or train with BetaELBO."
        )
    if len(site["fn"].batch_shape) != 1 or site["mask"] is not None:
        raise ValueError(
            f"latent site {site['name']!r} has batch shape {tuple(site['fn'].batch_shape)} and mask {site['mask']}, "
            f"but BetaTC needs a single plate without a mask. Declare event dimensions with .to_event(n), or train "
            f"with BetaELBO."
        )
    return independent
