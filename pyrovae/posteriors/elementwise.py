"""Posteriors whose dimensions are independent given x: normal, Laplace and Student's t."""

import math

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.components import Described
from pyrovae.distributions import StudentT as StudentTDistribution
from pyrovae.networks import split


class _LocationScale(Described):
    """Base of posteriors whose network returns locations and log-scales, concatenated along the last dimension."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def _parameters_of(self, context: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        loc, log_scale = split(self.network(*context), 2, f"posteriors.{type(self).__name__}")
        return loc, log_scale.exp()


class DiagonalNormal(_LocationScale):
    r"""Mean-field normal posterior, :math:`q(z \mid x) = N(z; \mu(x), \mathrm{diag}(\sigma(x)^2))`.

    Args:
        network: ``(*batch, *event) -> (*batch, 2 * latent)``: means, then log-scales.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix C.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> posterior = pv.posteriors.DiagonalNormal(pv.networks.mlp((28, 28), 16, 2 * 5))
        >>> q = posterior(torch.zeros(3, 28, 28))
        >>> q.batch_shape, q.event_shape
        (torch.Size([3]), torch.Size([5]))
        >>> q = pv.posteriors.DiagonalNormal(torch.nn.Identity())(torch.tensor([4.0, 0.0]))
        >>> q.mean.tolist(), q.stddev.tolist()
        ([4.0], [1.0])
    """

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for ``x``, shape ``(*batch, *event)``. Further arguments are passed to the network too."""
        return dist.Normal(*self._parameters_of(context)).to_event(1)


class Laplace(_LocationScale):
    r"""Laplace posterior, :math:`q(z \mid x) = \prod_i \mathrm{Laplace}(z_i; \mu_i(x), b_i(x))`.

    Its tails are heavier than the tails of a normal posterior, so it is a safer proposal for importance sampling.

    Args:
        network: ``(*batch, *event) -> (*batch, 2 * latent)``: locations, then log-scales.

    Source:
        *Stochastic Backpropagation and Approximate Inference in Deep Generative Models* (Rezende et al., 2014), for
        amortized posteriors of any reparameterized family.

    Example:
        >>> import torch, pyrovae as pv
        >>> far = torch.tensor([10.0])
        >>> laplace = pv.posteriors.Laplace(torch.nn.Identity())(torch.zeros(2)).log_prob(far)
        >>> normal = pv.posteriors.DiagonalNormal(torch.nn.Identity())(torch.zeros(2)).log_prob(far)
        >>> round(float(laplace), 1), round(float(normal), 1)
        (-10.7, -50.9)
    """

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for ``x``, shape ``(*batch, *event)``. Further arguments are passed to the network too."""
        return dist.Laplace(*self._parameters_of(context)).to_event(1)


class StudentT(_LocationScale):
    r"""Student's t posterior with polynomial tails, :math:`q(z \mid x) = \prod_i t_\nu(z_i; \mu_i(x), \sigma_i(x))`.

    Args:
        network: ``(*batch, *event) -> (*batch, 2 * latent)``: locations, then log-scales.
        df: Degrees of freedom, positive. If ``df <= 2``, the variance is not finite.

    Raises:
        ValueError: If ``df`` is not positive and finite.

    Source:
        *Student-t Variational Autoencoder for Robust Density Estimation* (Takahashi et al., 2018), for Student's t in
        VAEs.

    Example:
        >>> import torch, pyrovae as pv
        >>> far = torch.tensor([10.0])
        >>> student = pv.posteriors.StudentT(torch.nn.Identity(), df=5.0)(torch.zeros(2)).log_prob(far)
        >>> normal = pv.posteriors.DiagonalNormal(torch.nn.Identity())(torch.zeros(2)).log_prob(far)
        >>> round(float(student), 1), round(float(normal), 1)
        (-10.1, -50.9)
    """

    def __init__(self, network: nn.Module, df: float = 5.0) -> None:
        super().__init__(network)
        if not 0 < df < math.inf:
            raise ValueError(f"posteriors.StudentT: df={df}, the degrees of freedom, must be positive and finite")
        self.df = df

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for ``x``, shape ``(*batch, *event)``. Further arguments are passed to the network too."""
        return StudentTDistribution(self.df, *self._parameters_of(context)).to_event(1)
