"""The posterior of a categorical label."""

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
        >>> classifier = pv.posteriors.OneHotCategorical(torch.nn.Identity())
        >>> q = classifier(torch.tensor([0.25, 0.75]).log())
        >>> round(float(q.log_prob(torch.tensor([0.0, 1.0])).exp()), 3)
        0.75
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(y | x) for ``x``, shape ``(*batch, *event)``. Further arguments are passed to the network too."""
        return dist.OneHotCategorical(logits=self.network(*context))
