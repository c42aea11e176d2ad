r"""How a denoising autoencoder spoils what it is given: x to :math:`\tilde x`, of the same shape."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Corruption = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Masking:
    """Sets each entry of the data to 0 with probability u.

    Args:
        u: Between 0 and 1.

    Raises:
        ValueError: If it is not.

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
            raise ValueError(f"entries are set to 0 with a probability between 0 and 1, got u={self.u}")

    def __call__(self, x: Tensor) -> Tensor:
        """Corrupts x, shape ``(N, *event)``."""
        return x * torch.bernoulli(torch.full_like(x, 1 - self.u))


@dataclass(frozen=True)
class GaussianNoise:
    """Adds independent normal noise to each entry of the data.

    Args:
        scale: Its standard deviation.

    Raises:
        ValueError: If it is negative or infinite.

    Source:
        *Stacked Denoising Autoencoders: Learning Useful Representations in a Deep Network with a Local Denoising
        Criterion* (Vincent et al., 2010).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.autoencoders.GaussianNoise(0.5)(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"the standard deviation of noise is finite and not negative, got scale={self.scale}")

    def __call__(self, x: Tensor) -> Tensor:
        """Corrupts x, shape ``(N, *event)``."""
        return x + self.scale * torch.randn_like(x)
