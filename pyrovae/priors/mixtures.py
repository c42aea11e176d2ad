"""Mixture priors: a mixture of Gaussians, and the mixture of posteriors at pseudo-inputs (VampPrior)."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.arguments import check_whole
from pyrovae.components import Described
from pyrovae.distributions import mixture


class GaussianMixture(Described):
    r"""Mixture of Gaussians with learned parameters, :math:`\sum_c \pi_c N(z; \mu_c, \mathrm{diag}(\sigma_c^2))`.

    Args:
        latent: Number of latent dimensions.
        components: Number of mixture components.

    Raises:
        ValueError: If ``latent`` or ``components`` is not positive.

    Source:
        *VAE with a VampPrior* (Tomczak and Welling, 2018), which uses this prior as a baseline (MoG).

    Example:
        >>> import torch, pyrovae as pv
        >>> prior = pv.priors.GaussianMixture(1, components=2)
        >>> prior.loc.data = torch.tensor([[-3.0], [3.0]])  # N(-3, 1) and N(3, 1) with equal weights
        >>> p = prior()
        >>> p.mean.tolist(), p.variance.tolist()
        ([0.0], [10.0])
    """

    def __init__(self, latent: int, components: int = 10) -> None:
        super().__init__()
        _check_positive("GaussianMixture", latent=latent, components=components)
        self.latent, self.components = latent, components
        # Means start as standard normal draws, so the mixture is near the standard normal but its components differ.
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch shape ``()``, event shape ``(latent,)``."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return mixture(dist.Categorical(logits=self.logits), components)


class VampPrior(Described):
    r"""Variational mixture of posteriors, :math:`p(z) = \frac{1}{C} \sum_c q(z \mid u_c)`.

    The pseudo-inputs :math:`u_c` are learned together with q, the posterior of the VAE to which the prior belongs. The
    VAE passes its posterior to the prior whenever the VAE runs or returns ``vae.prior``. The prior does not hold a
    second copy of q's parameters. Outside a VAE, call :meth:`bind_components` first.

    Args:
        components: Number of pseudo-inputs, C.
        event_shape: Shape of a datum. If given, the pseudo-inputs start near 0.5, the middle of the range [0, 1] of
            images.
        data: At least ``components`` data, shape ``(N, *event_shape)``. If given, the pseudo-inputs start at randomly
            chosen data. Pass either ``event_shape`` or ``data``.

    Raises:
        TypeError: If the data are not floating-point.
        ValueError: If not exactly one of ``event_shape`` and ``data`` is given, or if there are fewer data than
            ``components``. When called, if no posterior has been passed to the prior.

    Source:
        *VAE with a VampPrior* (Tomczak and Welling, 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.VampPrior(1, data=torch.rand(100, 4)),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> z = torch.zeros(1, 2)
        >>> torch.allclose(vae.prior().log_prob(z), vae.posterior(vae.prior.pseudo_inputs).log_prob(z))
        True
    """

    def __init__(
        self, components: int = 500, event_shape: Sequence[int] | None = None, *, data: Tensor | None = None
    ) -> None:
        super().__init__()
        _check_positive("VampPrior", components=components)
        if (event_shape is None) == (data is None):
            raise ValueError("priors.VampPrior needs the shape of a datum. Pass exactly one of event_shape= and data=.")
        if data is None:
            start = 0.5 + 0.05 * torch.randn(components, *(event_shape or ()))
        elif not data.is_floating_point():
            raise TypeError(
                f"priors.VampPrior: the pseudo-inputs are learned, so data must be floating-point, got {data.dtype}. "
                f"Call data.float()."
            )
        elif len(data) < components:
            raise ValueError(
                f"priors.VampPrior chooses components={components} pseudo-inputs from the data, but there are only "
                f"{len(data)} data. Pass more data, or fewer components."
            )
        else:
            start = data[torch.randperm(len(data))[:components].to(data.device)].clone()
        self.components, self.event_shape = components, tuple(start.shape[1:])
        self.pseudo_inputs = nn.Parameter(start)
        # A tuple, because a module would register the posterior and its parameters as its own.
        self._posterior: tuple[Callable[..., Any], ...] = ()

    def bind_components(self, *, posterior: Callable[..., Any], **_: Any) -> None:
        """Store a posterior, ``x -> q(z | x)``. For a ``SemiAmortized`` posterior, store the posterior inside it."""
        self._posterior = (getattr(posterior, "amortized", posterior),)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch shape ``()``, event shape ``(latent,)``."""
        if not self._posterior:
            raise ValueError(
                "priors.VampPrior: the posterior is not known. Use the prior in a pyrovae.VAE, or call "
                "bind_components(posterior=...)."
            )
        components = self._posterior[0](self.pseudo_inputs)
        weights = dist.Categorical(logits=self.pseudo_inputs.new_zeros(len(self.pseudo_inputs)))
        return mixture(weights, components)


def _check_positive(name: str, **numbers: int) -> None:
    check_whole(**numbers)
    for argument, number in numbers.items():
        if number < 1:
            raise ValueError(f"priors.{name}: {argument}={number} must be at least 1")
