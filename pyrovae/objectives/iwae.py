r"""The importance-weighted bound, with three estimators of its gradient.

.. math::
    \mathcal{L}_K = \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
    w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x), \qquad
    \tilde w_k = \frac{w_k}{\sum_j w_j}.

The derivative of the bound with respect to :math:`\log w_k` is :math:`\tilde w_k`. The gradient of the bound is
therefore (see :mod:`pyrovae.objectives.gradient_parts`)

.. math::
    \sum_k \tilde w_k \, \partial_\lambda \log p(x, z_k) - \tilde w_k \, \partial_\lambda \log q(z_k \mid x)
        + \tilde w_k \, \partial_z \log w_k \, \partial_\lambda z_k.

The middle term is the score term, and the last term is the path term. With K = 1 the score term is zero in expectation
but noisy. *Sticking the landing* omits the score term for any K. The variance then decreases, but the gradient is
biased for K > 1.

*Doubly reparameterized* gradients convert the score term to a second path term instead. For any function f of a
reparameterized draw,

.. math:: E\big[f(z_k)\, \partial_\lambda \log q(z_k \mid x)\big] = E\big[\partial_z f(z_k)\, \partial_\lambda z_k\big].

For :math:`f = \tilde w_k`, as a function of draw k,
:math:`\partial_z f = (\tilde w_k - \tilde w_k^2)\, \partial_z \log w_k`. The two path terms together have the
coefficients :math:`\tilde w_k - (\tilde w_k - \tilde w_k^2) = \tilde w_k^2`. This gradient is unbiased, and its
signal-to-noise ratio does not decrease with K.

With annealing, :math:`\log w = \log p(x \mid z) + t \log p(z) - t \log q(z \mid x)`. The score term is then multiplied
by t, but the draws still come from q. By the identity above, the two path terms together have the coefficients

.. math:: \tilde w_k - t\, (\tilde w_k - \tilde w_k^2) = (1 - t)\, \tilde w_k + t\, \tilde w_k^2.
"""

from collections.abc import Callable
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor

from pyrovae.objectives.base import Options, WeightObjective, log_mean_exp
from pyrovae.objectives.gradient_parts import Leaves, with_gradient
from pyrovae.objectives.tempering import common_temper

Gradient = Literal["reparameterized", "sticking_the_landing", "doubly_reparameterized"]


class IWAE(WeightObjective):
    r"""The importance-weighted bound for each datum.

    .. math::
        \mathcal{L}_K = \sum_n s_n \log \frac{1}{K} \sum_{k=1}^K w_n^{(k)}, \qquad
        w_n^{(k)} = \frac{p(x_n, z_n^{(k)})}{q(z_n^{(k)} \mid x_n)}, \quad z_n^{(k)} \sim q(z \mid x_n).

    ``ELBO <= L_K <= log p(x)`` holds in expectation, and :math:`\mathcal{L}_1` is the ELBO. The logarithm is multiplied
    by the scale :math:`s_n` of the data plate (subsampling), and by a scale that all sites share. A scale that only
    some sites have (annealing) tempers the weights inside the logarithm.

    :class:`pyro.infer.RenyiELBO` with ``alpha=0`` multiplies the log-weights by the scale of a mini-batch, inside the
    logarithm. Its bound may therefore exceed log p(x). Besides ``SVI(model, guide, optim, loss=IWAE(5))``,
    ``IWAE`` can be used as ``IWAE(5)(model, guide)(x)``, because it has a ``differentiable_loss``, unlike
    ``RenyiELBO``.

    A discrete site y that the model or the guide enumerates is summed out of every weight. The parameters of its
    posterior q(y | x) then have no effect on the bound and get no gradient.

    Args:
        num_particles: Number of draws per datum, K.
        gradient: Gradient estimator; the value of the loss is the same for all of them.

            * ``"reparameterized"``: gradient of the bound by automatic differentiation.
            * ``"sticking_the_landing"``: gradient without the guide's score. For K = 1 it is unbiased, and it vanishes
              at the exact posterior. For K > 1 the guide's gradient is biased.
            * ``"doubly_reparameterized"``: gradient in which the guide's score is rewritten as a gradient through the
              draws. It is unbiased for any K, and its variance decreases with K. For K = 1 it equals sticking the
              landing.

            The last two estimators evaluate the guide's density at detached copies of the draws. For this, an inverse
            autoregressive flow must be inverted, one latent dimension after another.
        **options: Options of :class:`WeightObjective`: ``max_plate_nesting``, ``vectorize_particles``, ``plate``,
            ``retain_graph``.

    Raises:
        ValueError: If ``num_particles`` is less than 1 or ``gradient`` is unknown. When called, if a latent site is not
            reparameterized; if the program has a site outside its data plate; or if the program enumerates sites and
            ``gradient`` is not ``"reparameterized"``.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016); *Sticking the Landing: Simple,
        Lower-Variance Gradient Estimators for Variational Inference* (Roeder, Wu and Duvenaud, 2017); *Doubly
        Reparameterized Gradient Estimators for Monte Carlo Objectives* (Tucker, Lawson, Gu and Maddison, 2019).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.zeros(1000)
        >>> elbo, iwae = (-pv.objectives.IWAE(k).loss(model, guide, x) / len(x) for k in (1, 50))
        >>> exact = float(dist.Normal(0.0, 2**0.5).log_prob(x).mean())
        >>> elbo < iwae, abs(iwae - exact) < 0.05
        (True, True)
    """

    def __init__(
        self, num_particles: int = 5, *, gradient: Gradient = "reparameterized", **options: Unpack[Options]
    ) -> None:
        if gradient not in get_args(Gradient):
            raise ValueError(f"gradient must be one of {get_args(Gradient)}, got {gradient!r}")
        super().__init__(num_particles, **options)
        self.gradient = gradient

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the bound of each datum, shape ``(N,)``, from log-weights, shape ``(num_particles, N)``, nats."""
        return log_mean_exp(log_weights)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return minus the bound, summed over the data, shape ``()``, nats. The result is differentiable."""
        if self.gradient == "reparameterized" or not torch.is_grad_enabled():
            return super().differentiable_loss(model, guide, *args, **kwargs)
        with Leaves() as leaves:
            weights = self._weights(model, guide, args, kwargs)
        densities = self._densities(weights)
        normalized = weights.log_weights.detach().softmax(0)
        path = normalized
        if self.gradient == "doubly_reparameterized":
            path = normalized - common_temper(leaves.sites, weights) * (normalized - normalized**2)
        value = (weights.scale * self.bound(weights.log_weights)).sum()
        score = torch.zeros_like(path)
        return -with_gradient(value, weights, densities, leaves, model=normalized, score=score, path=path)
