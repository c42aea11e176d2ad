r"""Corruptions, which map the input x of a denoising autoencoder to a corrupted copy :math:`\tilde x`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Corruption = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Masking:
    """Corruption that sets each entry of the data to 0 with probability u.

    Args:
        u: Probability, between 0 and 1.

    Raises:
        ValueError: If ``u`` is not between 0 and 1.

    Source:
        *Extracting and Composing Robust Features with Denoising Autoencoders* (Vincent et al., 2008).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.autoencoders.Masking(1.0)(torch.ones(2, 3)).sum()
        tensor(0.)
    """

    u: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.u <= 1:
            raise ValueError(f"autoencoders.Masking: u={self.u} must be a probability between 0 and 1")

    def __call__(self, x: Tensor) -> Tensor:
        """Return a corrupted copy of x, shape ``(N, *event)``."""
        return x * torch.bernoulli(torch.full_like(x, 1 - self.u))


@dataclass(frozen=True)
class GaussianNoise:
    """Corruption that adds independent normal noise to each entry of the data.

    Args:
        scale: Standard deviation of the noise.

    Raises:
        ValueError: If ``scale`` is negative or infinite.

    Source:
        *Stacked Denoising Autoencoders: Learning Useful Representations in a Deep Network with a Local Denoising
        Criterion* (Vincent et al., 2010).

    Example:
        >>> import torch, pyrovae as pv
        >>> noisy = pv.autoencoders.GaussianNoise(0.5)(torch.zeros(10_000))
        >>> 0.47 < noisy.std().item() < 0.53
        True
    """

    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"autoencoders.GaussianNoise: scale={self.scale} must be at least 0 and finite")

    def __call__(self, x: Tensor) -> Tensor:
        """Return a corrupted copy of x, shape ``(N, *event)``."""
        return x + self.scale * torch.randn_like(x)
