"""Mixture priors: of Gaussians with parameters of their own, and of the posterior at pseudo-inputs (VampPrior)."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.arguments import check_whole


class GaussianMixture(nn.Module):
    r"""A mixture of Gaussians, :math:`p(z) = \sum_c \pi_c N(z; \mu_c, \mathrm{diag}(\sigma_c^2))`, all learned.

    Args:
        latent: Number of latent dimensions.
        components: Number of mixture components.

    Raises:
        ValueError: If ``latent`` or ``components`` is not positive.

    Source:
        *VAE with a VampPrior* (Tomczak and Welling, 2018), which compares it with the VampPrior (as MoG).

    Example:
        >>> import torch, pyrovae as pv
        >>> prior = pv.priors.GaussianMixture(5, components=10)
        >>> prior().log_prob(torch.zeros(7, 3, 5)).shape
        torch.Size([7, 3])
    """

    def __init__(self, latent: int, components: int = 10) -> None:
        super().__init__()
        _check_positive("GaussianMixture", latent=latent, components=components)
        # Means drawn from the standard normal, so that the mixture begins near it and no component is like another.
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> dist.TorchDistribution:
        """Returns p(z), batch shape ``()``, event shape ``(latent,)``."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class VampPrior(nn.Module):
    r"""The variational mixture of posteriors, :math:`p(z) = \frac{1}{C} \sum_c q(z \mid u_c)`.

    The pseudo-inputs :math:`u_c` are learned with the posterior q, which is that of the VAE that the prior belongs
    to: the VAE tells the prior its posterior whenever it runs or is asked for ``vae.prior``, and q's parameters are not
    held a second time here. Inside a VAE there is nothing to do; alone, call :meth:`bind_components` first.

    Args:
        components: Number of pseudo-inputs, C.
        event_shape: Shape of a datum; the pseudo-inputs then start near 0.5, the middle of the range of images.
        data: Data, shape ``(N, *event_shape)``, at least ``components``, of which some drawn at random are where the
            pseudo-inputs start. Give either these or the shape.

    Raises:
        TypeError: If the data are not floating-point.
        ValueError: If not exactly one of ``event_shape`` and ``data`` is given, or there are too few data; when called,
            if no VAE has told it its posterior.

    Source:
        *VAE with a VampPrior* (Tomczak and Welling, 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.VampPrior(10, data=torch.rand(100, 4)),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> vae.prior().event_shape
        torch.Size([2])
    """

    def __init__(
        self, components: int = 500, event_shape: Sequence[int] | None = None, *, data: Tensor | None = None
    ) -> None:
        super().__init__()
        _check_positive("VampPrior", components=components)
        if (event_shape is None) == (data is None):
            raise ValueError("VampPrior needs either the shape of a datum, event_shape=, or data= to start from")
        if data is None:
            start = 0.5 + 0.05 * torch.randn(components, *(event_shape or ()))
        elif not data.is_floating_point():
            raise TypeError(f"VampPrior learns its pseudo-inputs, so data must be floating-point, got {data.dtype}")
        elif len(data) < components:
            raise ValueError(f"VampPrior draws {components} pseudo-inputs from data, but got {len(data)} data")
        else:
            start = data[torch.randperm(len(data))[:components].to(data.device)].clone()
        self.pseudo_inputs = nn.Parameter(start)
        self._posterior: tuple[Callable[..., Any], ...] = ()  # a tuple hides a module: its parameters are not ours

    def bind_components(self, *, posterior: Callable[..., Any], **_: Any) -> None:
        """Tells the prior the posterior, ``x -> q(z | x)``; a refined one is taken as it was before refinement."""
        self._posterior = (getattr(posterior, "amortized", posterior),)

    def forward(self) -> dist.TorchDistribution:
        """Returns p(z), batch shape ``()``, event shape ``(latent,)``."""
        if not self._posterior:
            raise ValueError(
                "this VampPrior does not know its posterior; use it as the prior of a VAE, or call "
                "bind_components(posterior=...)"
            )
        components = self._posterior[0](self.pseudo_inputs)
        weights = dist.Categorical(logits=self.pseudo_inputs.new_zeros(len(self.pseudo_inputs)))
        return dist.MixtureSameFamily(weights, components)


def _check_positive(name: str, **numbers: int) -> None:
    check_whole(**numbers)
    for argument, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} needs {argument} to be at least 1, got {argument}={number}")
