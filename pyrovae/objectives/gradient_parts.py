r"""Gradients taken apart: what the model, the guide's density and the path of the draws each add to a bound's gradient.

The draws are :math:`z = T_\lambda(\epsilon)`, and a bound B is a function of the log-weights. By the chain rule

.. math::
    \frac{d B}{d \lambda} = \sum_k a_k \Big(
        \underbrace{\partial_\lambda \log p(x, z_k)}_\text{model}
        - \underbrace{\partial_\lambda \log q(z_k \mid x)}_\text{score}
        + \underbrace{\partial_z \log w_k \, \partial_\lambda T_\lambda(\epsilon_k)}_\text{path} \Big),
    \qquad a_k = \frac{\partial B}{\partial \log w_k}.

Other estimators give each of the three its own coefficients. To have them apart, the run goes on with a *leaf* in the
place of every draw, a copy without its path: at leaves, the densities have the model's gradient and the score alone.
:math:`\lambda` may be any parameter, shared by model and guide or not.

Where a guide draws several sites, :math:`z_l = T_l(\epsilon_l; z_{<l}, \lambda)` starts from the leaves before it. With
:math:`g_l` the derivative of the weighted :math:`\log w` at leaf l, the path is :math:`\sum_l A_l \, \partial_\lambda
T_l` with all leaves fixed, where A is found from the last site to the first,

.. math:: A_l = g_l + \sum_{m > l} A_m \, \partial_{z_l} T_m.

So the guide runs once, and dropout in it is the same in draws and densities.
"""

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.densities import Densities
from pyrovae._waist.sites import Site
from pyrovae._waist.weights import Weights


class Leaves(Messenger):
    """Makes the draws that nobody else has made, and lets the program go on with leaves in their place.

    Used as a context outside all other handlers, which are to have expanded the distributions by then.
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
        """A number, shape ``()``, whose gradient is the path's.

        Args:
            log_weights: At the leaves, shape ``(num_draws, N)``.
            coefficients: Of the path, likewise.
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
    """The value of a bound, with a gradient put together from its three parts.

    Args:
        value: Sum over the data, shape ``()``.
        weights: At the leaves.
        densities: Theirs.
        leaves: What the weights were made with.
        model: Coefficients of the model's part for each draw, shape ``(num_draws, N)``.
        score: Of the guide's density.
        path: Of the draws.
    """
    at_leaves = model * (densities.likelihood + densities.prior) - score * densities.guide
    surrogate = (weights.scale * at_leaves).sum() + leaves.path(weights.log_weights, weights.scale * path)
    return value.detach() + (surrogate - surrogate.detach())


def _slopes(outputs: Tensor, inputs: list[Tensor], coefficients: Tensor) -> list[Tensor]:
    """Derivatives of a weighted sum of outputs, zero at inputs that it does not depend on."""
    if not inputs:
        return []
    return list(torch.autograd.grad(outputs, inputs, coefficients, retain_graph=True, materialize_grads=True))
