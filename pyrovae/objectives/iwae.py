r"""The importance-weighted bound, with three estimators of its gradient.

.. math::
    \mathcal{L}_K = \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
    w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x), \qquad
    \tilde w_k = \frac{w_k}{\sum_j w_j}.

The derivative of the bound to :math:`\log w_k` is :math:`\tilde w_k`, so its gradient is (:mod:`.leaves`)

.. math::
    \sum_k \tilde w_k \, \partial_\lambda \log p(x, z_k) - \tilde w_k \, \partial_\lambda \log q(z_k \mid x)
        + \tilde w_k \, \partial_z \log w_k \, \partial_\lambda z_k.

With K = 1 the middle term, the score of the guide, is zero in expectation but noisy. *Sticking the landing* leaves it
out for any K: less variance, and biased for K > 1.

*Doubly reparameterized*, the score is not left out but turned into a path. For any function f of a reparameterized draw

.. math:: E\big[f(z_k)\, \partial_\lambda \log q(z_k \mid x)\big] = E\big[\partial_z f(z_k)\, \partial_\lambda z_k\big],

and for :math:`f = \tilde w_k`, as a function of draw k, :math:`\partial_z f = (\tilde w_k - \tilde w_k^2)\,
\partial_z \log w_k`. What remains is the path with coefficients :math:`\tilde w_k - (\tilde w_k - \tilde w_k^2) =
\tilde w_k^2`: no bias, and a signal-to-noise ratio that does not fall with K.

Annealing, :math:`\log w = \log p(x \mid z) + t \log p(z) - t \log q(z \mid x)`, multiplies the score by t, while draws
are still from q, so that the identity gives a path with coefficients

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
    r"""The importance-weighted bound, per datum.

    .. math::
        \mathcal{L}_K = \sum_n s_n \log \frac{1}{K} \sum_{k=1}^K w_n^{(k)}, \qquad
        w_n^{(k)} = \frac{p(x_n, z_n^{(k)})}{q(z_n^{(k)} \mid x_n)}, \quad z_n^{(k)} \sim q(z \mid x_n).

    ``ELBO <= L_K <= log p(x)`` in expectation, and :math:`\mathcal{L}_1` is the ELBO. The scale :math:`s_n` of the data
    plate (subsampling) and one common to all sites stand outside the logarithm; a scale of single sites (annealing)
    tempers the weights inside.

    Unlike :class:`pyro.infer.RenyiELBO` with ``alpha=0``, which takes one logarithm over the whole batch, it keeps the
    data apart, and it has a ``differentiable_loss``: it serves as ``SVI(model, guide, optim, loss=IWAE(5))`` and as
    ``IWAE(5)(model, guide)(x)``.

    A discrete site that model or guide enumerate is summed out of every weight. So q(y | x) has no influence on the
    bound, and its parameters get no gradient.

    Args:
        num_particles: Draws per datum, K.
        gradient: Its estimator; the value of the loss is the same for all.

            * ``"reparameterized"``: of the bound as it is computed.
            * ``"sticking_the_landing"``: without the guide's score. For K = 1, where its expectation is the same and it
              vanishes at the exact posterior; for more draws the guide's gradient is biased.
            * ``"doubly_reparameterized"``: the guide's score made a path. The same expectation for any K, with a
              variance that falls with K; with K = 1 it is sticking the landing.

            Both of these score draws that the guide has not just made, which an inverse autoregressive flow has to be
            inverted for, one latent dimension after the other.
        **options: ``max_plate_nesting``, the depth of the program's plates, found by a run of the program where not
            given; ``vectorize_particles``, whether all draws are made in one run, to be turned off for programs that
            cannot take a dimension to the left of their plates; ``plate``, the name of the data plate, by default the
            outermost plate that all latent sites share; ``retain_graph``, passed to ``backward``.

    Raises:
        ValueError: If ``num_particles`` is less than 1 or there is no such gradient; when called, if a latent site is
            not reparameterized, the program has a site outside its data plate or, but for the first gradient,
            enumerates sites.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016); *Sticking the Landing: Simple,
        Lower-Variance Gradient Estimators for Variational Inference* (Roeder, Wu and Duvenaud, 2017); *Doubly
        Reparameterized Gradient Estimators for Monte Carlo Objectives* (Tucker, Lawson, Gu and Maddison, 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> loss = pv.objectives.IWAE(num_particles=5, gradient="doubly_reparameterized")(vae.model, vae.guide)
        >>> loss(torch.zeros(10, 4)).backward()
    """

    def __init__(
        self, num_particles: int = 5, *, gradient: Gradient = "reparameterized", **options: Unpack[Options]
    ) -> None:
        if gradient not in get_args(Gradient):
            raise ValueError(f"the gradient of IWAE is one of {get_args(Gradient)}, got {gradient!r}")
        super().__init__(num_particles, **options)
        self.gradient = gradient

    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each datum, shape ``(N,)``, from log-weights, shape ``(num_particles, N)``."""
        return log_mean_exp(log_weights)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, nats summed over the data, shape ``()``, to be differentiated."""
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
