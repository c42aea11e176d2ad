r"""Decomposition of a bound's gradient into three parts: model, score of the guide, and path of the draws.

The draws are :math:`z = T_\lambda(\epsilon)`, and a bound B is a function of the log-weights. By the chain rule

.. math::
    \frac{d B}{d \lambda} = \sum_k a_k \Big(
        \underbrace{\partial_\lambda \log p(x, z_k)}_\text{model}
        - \underbrace{\partial_\lambda \log q(z_k \mid x)}_\text{score}
        + \underbrace{\partial_z \log w_k \, \partial_\lambda T_\lambda(\epsilon_k)}_\text{path} \Big),
    \qquad a_k = \frac{\partial B}{\partial \log w_k}.

Other gradient estimators give each of the three parts its own coefficients instead of :math:`a_k`. To separate the
parts, every draw is replaced by a *leaf*: a copy of the draw that does not depend on :math:`\lambda`. The rest of the
run uses the leaf, so the gradient of the densities consists of the model part and the score part only.
:math:`\lambda` may be any parameter, whether model and guide share it or not.

If a guide draws several sites, the draw :math:`z_l = T_l(\epsilon_l; z_{<l}, \lambda)` of site l is computed from the
leaves of the earlier sites. Let :math:`g_l` be the derivative of :math:`\log w` with respect to leaf l, times the
coefficient of the path part. The path part is then :math:`\sum_l A_l \, \partial_\lambda T_l` with all leaves fixed,
where A is computed from the last site to the first,

.. math:: A_l = g_l + \sum_{m > l} A_m \, \partial_{z_l} T_m.

All three parts come from a single run of the guide, so its dropout masks are the same for the draws and for the
densities.
"""

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.densities import Densities
from pyrovae._waist.sites import Site
from pyrovae._waist.weights import Weights


class Leaves(Messenger):
    """Pyro handler that draws each latent site and replaces the draw by a leaf of the autograd graph.

    A site that already has a value is not drawn. This handler must be the outermost one. All other handlers then
    process a site before this handler, so plates have already expanded the distribution of the site when this handler
    draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self.paths: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        draw = msg["fn"](*msg["args"], **msg["kwargs"])
        leaf: Tensor = draw.detach()
        msg["value"] = leaf
        if msg["fn"].has_rsample:
            self.sites.append(msg)
            self.paths.append(draw)
            self.leaves.append(leaf.requires_grad_())

    def path(self, log_weights: Tensor, coefficients: Tensor) -> Tensor:
        """Return a scalar whose gradient is the pathwise (reparameterization) part of the bound's gradient.

        Args:
            log_weights: Log-weights, computed from the leaves of the run, shape ``(num_draws, N)``, nats. The docstring
                of the module defines leaves.
            coefficients: Coefficients of the path part for each draw, shape ``(num_draws, N)``.
        """
        slopes = _slopes(log_weights, self.leaves, coefficients)
        total = log_weights.new_zeros(())
        for i in reversed(range(len(self.leaves))):
            path, before = self.paths[i], self.leaves[:i]
            if path.requires_grad:
                total = total + (slopes[i] * path).sum()
                if before:
                    further = _slopes(path, before, slopes[i])
                    slopes[:i] = [slope + more for slope, more in zip(slopes[:i], further, strict=True)]
        return total


def with_gradient(
    value: Tensor, weights: Weights, densities: Densities, leaves: Leaves, *, model: Tensor, score: Tensor, path: Tensor
) -> Tensor:
    """Return a tensor that has the value of a bound, but another gradient.

    The gradient is the sum of the model part, the score part and the path part, each with the given coefficients. The
    docstring of the module defines leaves and the three parts.

    Args:
        value: Bound, summed over the data, shape ``()``.
        weights: Log-weights, computed from the leaves.
        densities: Densities of model and guide, computed from the leaves.
        leaves: Handler that replaced the draws of the run by leaves.
        model: Coefficients of the model part for each draw, shape ``(num_draws, N)``.
        score: Coefficients of the score part for each draw, shape ``(num_draws, N)``.
        path: Coefficients of the path part for each draw, shape ``(num_draws, N)``.
    """
    at_leaves = model * (densities.likelihood + densities.prior) - score * densities.guide
    surrogate = (weights.scale * at_leaves).sum() + leaves.path(weights.log_weights, weights.scale * path)
    return value.detach() + (surrogate - surrogate.detach())


def _slopes(outputs: Tensor, inputs: list[Tensor], coefficients: Tensor) -> list[Tensor]:
    """Return the derivative of a weighted sum of outputs by each input; zeros if the input does not affect the sum."""
    if not inputs:
        return []
    return list(torch.autograd.grad(outputs, inputs, coefficients, retain_graph=True, materialize_grads=True))
