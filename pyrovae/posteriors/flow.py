"""Flow posteriors: the inverse autoregressive flow, and any flow on any base posterior."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae import flows
from pyrovae.components import Described
from pyrovae.distributions import NormalizingFlow as NormalizingFlowDistribution


class InverseAutoregressiveFlow(Described):
    r"""Inverse autoregressive flow on a normal base, amortized by one encoder network.

    .. math:: z_0 = \mu(x) + \sigma(x) \odot \epsilon, \qquad z_t = \sigma_t \odot z_{t-1} + (1 - \sigma_t) \odot m_t,

    where :math:`(m_t, s_t)` are the outputs of an autoregressive network with the inputs :math:`z_{t-1}` and
    :math:`h(x)`, and :math:`\sigma_t = \mathrm{sigmoid}(s_t + 2)`. A draw of z and its density together need one
    pass of each layer. The density of any other z needs ``latent`` passes of each layer. For example, a VampPrior
    computes such densities.

    Args:
        network: ``(*batch, *event) -> (*batch, 2 * latent + context)``: means, then log-scales, then h.
        latent: Number of latent dimensions.
        context: Number of features of h, which may be 0.
        depth: Number of layers.
        hidden: Widths of the autoregressive networks.

    Raises:
        ValueError: If ``latent`` or ``depth`` is not positive; when called, if the last dimension of the network's
            output is not ``2 * latent + context``.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> posterior = pv.posteriors.InverseAutoregressiveFlow(pv.networks.mlp(4, 2 * 5 + 8), 5, context=8)
        >>> q = posterior(torch.zeros(3, 4))
        >>> z = q.rsample()
        >>> z.shape, torch.allclose(q.log_prob(z), q.log_prob(z.clone()), atol=1e-3)  # the copy is scored by inversion
        (torch.Size([3, 5]), True)
    """

    def __init__(
        self, network: nn.Module, latent: int, *, context: int = 0, depth: int = 2, hidden: Sequence[int] = (128,)
    ) -> None:
        super().__init__()
        self.network, self.latent, self.context = network, latent, context
        self.depth, self.hidden, self.sizes = depth, tuple(hidden), (latent, latent, context)
        self.flow = flows.inverse_autoregressive(latent, context=context, depth=depth, hidden=hidden)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for ``x``, shape ``(*batch, *event)``. Further arguments are passed to the network too."""
        output = self.network(*context)
        if output.shape[-1] != sum(self.sizes):
            raise ValueError(
                f"posteriors.InverseAutoregressiveFlow: the network's output has shape {tuple(output.shape)}, but "
                f"{self.sizes[0]} latent dimensions and a context of {self.sizes[2]} need a last dimension of "
                f"{sum(self.sizes)}. Change the width of the network."
            )
        loc, log_scale, h = output.split(self.sizes, dim=-1)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return NormalizingFlowDistribution(base, self.flow(h if self.sizes[2] else None))


class NormalizingFlow(Described):
    r"""Flow on any posterior, :math:`z = f(\epsilon; h(x))` with :math:`\epsilon \sim q_0(\epsilon \mid x)`.

    Args:
        base: Posterior of the noise, ``x -> q_0``.
        flow: Module ``h -> transform``: one of :mod:`pyrovae.flows`, or ``transform.inv`` of a flow of the library
            zuko, which maps latents to noise.
        network: ``(*batch, *event) -> (*batch, context)``, the context h of the flow. Without this network, f is the
            same for all data.

    Source:
        *Variational Inference with Normalizing Flows* (Rezende and Mohamed, 2015).

    Example:
        >>> import torch, pyrovae as pv
        >>> base = pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2))
        >>> flow = pv.flows.autoregressive(1, context=8)
        >>> posterior = pv.posteriors.NormalizingFlow(base, flow, pv.networks.mlp(4, 8))
        >>> q = posterior(torch.zeros(3, 4))  # three densities on the real line
        >>> grid = torch.linspace(-50.0, 50.0, 20_001)[:, None, None]
        >>> torch.allclose(q.log_prob(grid).exp().sum(0) * 0.005, torch.ones(3), atol=0.01)
        True
    """

    def __init__(self, base: Callable[..., Any], flow: nn.Module, network: nn.Module | None = None) -> None:
        super().__init__()
        self.base, self.flow, self.network = base, flow, network

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for ``x``, shape ``(*batch, *event)``. Further arguments are passed to base and network."""
        h = None if self.network is None else self.network(*context)
        return NormalizingFlowDistribution(self.base(*context), self.flow(h))
