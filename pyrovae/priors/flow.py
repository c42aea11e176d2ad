"""A normalizing flow as a prior."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import nn

from pyrovae import flows
from pyrovae.components import Described
from pyrovae.distributions import NormalizingFlow as NormalizingFlowDistribution
from pyrovae.priors.normal import StandardNormal


class NormalizingFlow(Described):
    r"""Normalizing flow prior, :math:`z = f(\epsilon)` with :math:`\epsilon \sim p_0` and a learned, invertible f.

    Args:
        latent: Number of latent dimensions.
        flow: Module whose call returns f as a transform: one of :mod:`pyrovae.flows`, or ``transform.inv`` of a flow of
            the library zuko, which maps latents to noise. The default is ``pyrovae.flows.coupling(latent)``.
        base: Prior of the noise; by default the standard normal prior.

    Raises:
        ValueError: If ``latent`` is not positive.

    Source:
        *Variational Lossy Autoencoder* (Chen et al., 2017); *Density Estimation using Real NVP* (Dinh et al., 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> prior = pv.priors.NormalizingFlow(1, pv.flows.autoregressive(1), base=pv.priors.GaussianMixture(1))
        >>> grid = torch.linspace(-50.0, 50.0, 20_001)[:, None]
        >>> total = prior().log_prob(grid).exp().sum().item() * 0.005  # the integral of the density
        >>> abs(total - 1) < 0.01
        True
    """

    def __init__(self, latent: int, flow: nn.Module | None = None, *, base: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.latent = latent
        self.base = StandardNormal(latent) if base is None else base
        self.flow = flows.coupling(latent) if flow is None else flow

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch shape ``()``, event shape ``(latent,)``."""
        return NormalizingFlowDistribution(self.base(), self.flow())
