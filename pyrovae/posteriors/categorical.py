"""The posterior of a label."""

import pyro.distributions as dist
from torch import Tensor, nn


class OneHotCategorical(nn.Module):
    r"""A classifier, :math:`q(y \mid x) = \mathrm{softmax}(f(x))`, of labels as one-hot vectors.

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
        """Returns q(y | x) for ``x``, shape ``(*batch, *event)``; a network of several contexts gets them all."""
        return dist.OneHotCategorical(logits=self.network(*context))
