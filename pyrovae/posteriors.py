"""Amortized posteriors: ``x -> q(z | x)``, with the batch shape of ``x`` and event shape ``(latent,)``."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.networks import split


class DiagonalNormal(nn.Module):
    r"""Mean-field normal posterior, :math:`q(z \mid x) = N(z; \mu(x), \mathrm{diag}\, \sigma^2(x))`.

    Args:
        network: Gives :math:`\mu` and :math:`\log \sigma` side by side, ``(*batch, *event) -> (*batch, 2 * latent)``.

    Raises:
        ValueError: When called, if the network's last dimension is odd.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014).

    Example:
        >>> import torch, pyrovae as pv
        >>> posterior = pv.posteriors.DiagonalNormal(pv.networks.mlp((28, 28), 16, 2 * 5))
        >>> q = posterior(torch.zeros(3, 28, 28))
        >>> q.batch_shape, q.event_shape
        (torch.Size([3]), torch.Size([5]))
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Returns q(z | x) for ``x``, shape ``(*batch, *event)``."""
        loc, log_scale = split(self.network(x), 2, "posteriors.DiagonalNormal")
        return dist.Normal(loc, log_scale.exp()).to_event(1)
