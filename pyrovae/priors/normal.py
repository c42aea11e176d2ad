"""The standard normal prior, and fixed distributions as priors."""

import copy
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.arguments import check_whole
from pyrovae.components import Described


class StandardNormal(Described):
    """Standard normal prior, ``p(z) = N(z; 0, I)``.

    Args:
        latent: Number of latent dimensions.

    Raises:
        TypeError: If ``latent`` is not an integer.
        ValueError: If ``latent`` is not positive.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014).

    Example:
        >>> import torch, pyrovae as pv
        >>> p = pv.priors.StandardNormal(50)()
        >>> p.event_shape, round(float(p.log_prob(torch.zeros(50)) / 50), 3)  # -log(2 pi) / 2 per dimension
        (torch.Size([50]), -0.919)
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        check_whole(latent=latent)
        if latent < 1:
            raise ValueError(f"priors.StandardNormal: latent={latent}, the number of dimensions, must be at least 1")
        self.latent = latent
        # Buffers follow the device and dtype of the module. They are constants, so the state dict leaves them out.
        self.register_buffer("loc", torch.zeros(latent), persistent=False)
        self.register_buffer("scale", torch.ones(latent), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch shape ``()``, event shape ``(latent,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class Fixed(Described):
    """Prior that returns a given distribution, whose tensors follow the device and dtype of the module.

    :class:`pyrovae.VAE` wraps a plain distribution in this class, so that ``VAE(prior=dist.Laplace(...).to_event(1),
    ...)`` works.

    Args:
        distribution: p(z), event shape ``(latent,)``. Its tensors are not trained.

    Raises:
        TypeError: If ``distribution`` is not a distribution.

    Example:
        >>> import torch, pyro.distributions as dist, pyrovae as pv
        >>> prior = pv.priors.Fixed(dist.Laplace(torch.zeros(5), 1.0).to_event(1))
        >>> round(float(prior().log_prob(torch.zeros(5)) / 5), 3)  # -log(2) per dimension
        -0.693
    """

    def __init__(self, distribution: dist.TorchDistribution) -> None:
        super().__init__()
        if not isinstance(distribution, torch.distributions.Distribution):
            raise TypeError(
                f"priors.Fixed takes a distribution, got a {type(distribution).__name__}. Pass a prior that is a "
                f"module to the VAE directly."
            )
        self.distribution = distribution

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return p(z), expanded to the batch shape of the arguments.

        Args:
            *context: Arguments that a conditional prior would use. Here, only their batch shapes are used.
        """
        if not context:
            return self.distribution
        return self.distribution.expand(torch.broadcast_shapes(*(part.shape[:-1] for part in context)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fixed":
        super()._apply(fn, recurse)
        self.distribution = _map_tensors(self.distribution, fn)
        return self


def _map_tensors(part: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a distribution, with ``fn`` applied to all its tensors and to those of inner distributions."""
    if isinstance(part, Tensor):
        return fn(part)
    if isinstance(part, list | tuple):
        return type(part)(_map_tensors(item, fn) for item in part)
    if isinstance(part, torch.distributions.Distribution | torch.distributions.Transform):
        mapped = copy.copy(part)
        mapped.__dict__ = {name: _map_tensors(value, fn) for name, value in vars(part).items()}
        return mapped
    return part
