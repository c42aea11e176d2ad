"""Likelihoods: ``z -> p(x | z)``, with the batch shape of ``z`` and the event shape of ``x``.

Each is named after the Pyro distribution that it returns, and takes the network that maps ``z`` to its parameters.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.networks import split


class Bernoulli(nn.Module):
    r"""Binary data, :math:`p(x \mid z) = \prod_d \mathrm{Bernoulli}(x_d; \sigma(f_d(z)))`.

    Its log-density is minus the lecture's sum of binary cross-entropies. Data must be exactly 0 or 1.

    Args:
        network: Gives the logits, ``(*batch, latent) -> (*batch, *event)``.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix C.1.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Bernoulli(pv.networks.mlp(2, 16, (28, 28)))
        >>> p = likelihood(torch.zeros(7, 3, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([7, 3]), torch.Size([28, 28]))
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z) for ``z``, shape ``(*batch, latent)``."""
        logits = self.network(z)
        return dist.Bernoulli(logits=logits).to_event(logits.ndim - (z.ndim - 1))


class Normal(nn.Module):
    r"""Real data, :math:`p(x \mid z) = \prod_d N(x_d; f_d(z), \sigma^2)`, in one of three ways.

    * ``Normal(network, scale=0.1)``: the scale is given. Then
      :math:`-\log p(x \mid z) = \lVert x - f(z) \rVert^2 / 2 \sigma^2 + D \log(\sigma \sqrt{2 \pi})`, least squares
      plus a constant.
    * ``Normal(network, scale=0.1, learn_scale=True)``: one scale shared by all dimensions is learned, from there on.
    * ``Normal(network, scale=None)``: the network gives a scale for every dimension and datum.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)``, the means; with ``scale=None`` its output is
            ``(*batch, *event[:-1], 2 * event[-1])``: means and log-scales side by side on the last dimension.
        scale: Standard deviation, positive, or ``None``.
        learn_scale: Whether ``scale`` is where a learned one starts.

    Raises:
        ValueError: If ``scale`` is not positive and finite, or is to be learned and not given.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix C.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Normal(pv.networks.mlp(2, 16, 2 * 5), scale=None)
        >>> likelihood(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    log_scale: Tensor

    def __init__(self, network: nn.Module, scale: float | None = 1.0, *, learn_scale: bool = False) -> None:
        super().__init__()
        self.network = network
        self.network_gives_scale = scale is None
        if scale is None:
            if learn_scale:
                raise ValueError("learn_scale=True needs the scale to start from; with scale=None the network gives it")
            return
        if not 0 < scale < math.inf:
            raise ValueError(f"the scale of a Normal likelihood must be positive and finite, got {scale}")
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z) for ``z``, shape ``(*batch, latent)``."""
        output = self.network(z)
        loc, log_scale = (
            split(output, 2, "likelihoods.Normal") if self.network_gives_scale else (output, self.log_scale)
        )
        return dist.Normal(loc, log_scale.exp()).to_event(loc.ndim - (z.ndim - 1))
