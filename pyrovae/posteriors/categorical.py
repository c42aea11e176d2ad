"""The posterior of a label."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.components import Described


class OneHotCategorical(Described):
    r"""Classifier of one-hot labels, :math:`q(y \mid x) = \mathrm{softmax}(f(x))`.

    Args:
        network: ``(*batch, *event) -> (*batch, classes)``, the logits.

    Source:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma et al., 2014).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.posteriors.OneHotCategorical(pv.networks.mlp(4, 10))(torch.zeros(3, 4)).event_shape
        torch.Size([10])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(y | x) for ``x``, shape ``(*batch, *event)``; a network of several contexts gets all of them."""
        return dist.OneHotCategorical(logits=self.network(*context))
