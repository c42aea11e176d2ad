r"""How a denoising autoencoder spoils what it is given: x to :math:`\tilde x`, of the same shape."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Corruption = Callable[[Tensor], Tensor]


class Masking(nn.Module):
    """Sets each input to 0 with probability u.

    Args:
        u: Between 0 and 1.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, u: float = 0.25) -> None:
        super().__init__()
        if not 0 <= u <= 1:
            raise ValueError(f"inputs are set to 0 with a probability between 0 and 1, got u={u}")
        self.u = u

    def forward(self, x: Tensor) -> Tensor:
        """Corrupts x, shape ``(N, *event)``."""
        return x * torch.bernoulli(torch.full_like(x, 1 - self.u))


class GaussianNoise(nn.Module):
    """Adds Gaussian noise.

    Args:
        scale: Its standard deviation.

    Raises:
        ValueError: If it is negative or infinite.
    """

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        if not 0 <= scale < math.inf:
            raise ValueError(f"the standard deviation of noise is finite and not negative, got scale={scale}")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Corrupts x, shape ``(N, *event)``."""
        return x + self.scale * torch.randn_like(x)
