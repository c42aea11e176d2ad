"""Priors: ``() -> p(z)``, a distribution with event shape ``(latent,)``."""

import pyro.distributions as dist
import torch
from torch import nn


class StandardNormal(nn.Module):
    """The standard normal prior, ``p(z) = N(z; 0, I)``.

    Args:
        latent: Number of latent dimensions.

    Raises:
        ValueError: If ``latent`` is not positive.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014).

    Example:
        >>> import pyrovae as pv
        >>> pv.priors.StandardNormal(50)().event_shape
        torch.Size([50])
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        if latent < 1:
            raise ValueError(f"StandardNormal needs at least one latent dimension, got latent={latent}")
        # Buffers follow the module's device and dtype; they are constants, so the state dict does without them.
        self.register_buffer("loc", torch.zeros(latent), persistent=False)
        self.register_buffer("scale", torch.ones(latent), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Returns p(z), batch shape ``()``, event shape ``(latent,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)
