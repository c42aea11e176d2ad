"""Likelihoods of real values: on the line (Normal, Laplace, StudentT) and in the unit interval."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.distributions import Beta as BetaDistribution
from pyrovae.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution
from pyrovae.likelihoods.events import event_dim
from pyrovae.networks import split


class _LocationScale(nn.Module):
    """A location from the network, and a scale that is given, learned and shared, or from the network too."""

    log_scale: Tensor

    def __init__(
        self, network: nn.Module, scale: float | None = 1.0, *, learn_scale: bool = False, min_scale: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.min_scale = network, min_scale
        self.network_gives_scale = scale is None
        name = type(self).__name__
        if not 0 <= min_scale < math.inf:
            raise ValueError(f"the min_scale of a {name} likelihood must be at least 0 and finite, got {min_scale}")
        if scale is None:
            if learn_scale:
                raise ValueError("learn_scale=True needs the scale to start from; with scale=None the network gives it")
            return
        if not 0 < scale < math.inf:
            raise ValueError(f"the scale of a {name} likelihood must be positive and finite, got {scale}")
        if scale <= min_scale:
            raise ValueError(f"the scale of a {name} likelihood must be above min_scale={min_scale}, got {scale}")
        log_scale = torch.tensor(math.log(scale - min_scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z) for ``z``, shape ``(*batch, latent)``; a network of several contexts gets them all."""
        output = self.network(*context)
        loc, log_scale = (
            split(output, 2, f"likelihoods.{type(self).__name__}")
            if self.network_gives_scale
            else (output, self.log_scale)
        )
        return self._distribution(loc, self.min_scale + log_scale.exp()).to_event(
            event_dim(loc.ndim, context, self.network)
        )

    def _distribution(self, loc: Tensor, scale: Tensor) -> Any:
        raise NotImplementedError


class Normal(_LocationScale):
    r"""Real data, :math:`p(x \mid z) = \prod_d N(x_d; f_d(z), \sigma^2)`, in one of three ways.

    * ``Normal(network, scale=0.1)``: the scale is given. Then
      :math:`-\log p(x \mid z) = \lVert x - f(z) \rVert^2 / 2 \sigma^2 + D \log(\sigma \sqrt{2 \pi})`, least squares
      plus a constant.
    * ``Normal(network, scale=0.1, learn_scale=True)``: one scale shared by all dimensions is learned, from there on.
    * ``Normal(network, scale=None)``: the network gives a scale for every dimension and datum. Without a floor under it
      the likelihood is unbounded wherever an entry can be reconstructed exactly, such as a pixel that is always black:
      give ``min_scale``.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)``, the means; with ``scale=None`` its output is
            ``(*batch, *event[:-1], 2 * event[-1])``: means and log-scales side by side on the last dimension.
        scale: Standard deviation, positive, or ``None``.
        learn_scale: Whether ``scale`` is where a learned one starts.
        min_scale: Floor of the scale, which is ``min_scale`` plus the exponential of the log-scale.

    Raises:
        ValueError: If ``scale`` is not above ``min_scale`` and finite, or is to be learned and not given.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix C.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Normal(pv.networks.mlp(2, 16, 2 * 5), scale=None, min_scale=1e-2)
        >>> likelihood(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def _distribution(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.Normal(loc, scale)


class Laplace(_LocationScale):
    r"""Real data with outliers, :math:`p(x \mid z) = \prod_d \mathrm{Laplace}(x_d; f_d(z), b)`.

    With a given scale its log-density is least absolute deviations plus a constant.

    Args:
        network: As of :class:`Normal`.
        scale: As of :class:`Normal`; the scale b, which is not the standard deviation.
        learn_scale: As of :class:`Normal`.
        min_scale: As of :class:`Normal`.

    Raises:
        ValueError: As :class:`Normal`.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), section 2.4, for location-scale families.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.likelihoods.Laplace(pv.networks.mlp(2, 16, 5), scale=0.1)(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def _distribution(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.Laplace(loc, scale)


class StudentT(_LocationScale):
    r"""Real data with gross outliers, :math:`p(x \mid z) = \prod_d t_\nu(x_d; f_d(z), \sigma)`.

    Args:
        network: As of :class:`Normal`.
        scale: As of :class:`Normal`; the scale, which is not the standard deviation.
        df: Degrees of freedom, positive.
        learn_scale: As of :class:`Normal`.
        min_scale: As of :class:`Normal`.

    Raises:
        ValueError: As :class:`Normal`; if ``df`` is not positive and finite.

    Source:
        *Student-t Variational Autoencoder for Robust Density Estimation* (Takahashi et al., 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.likelihoods.StudentT(pv.networks.mlp(2, 16, 5), scale=0.1, df=3.0)(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def __init__(
        self,
        network: nn.Module,
        scale: float | None = 1.0,
        *,
        df: float = 4.0,
        learn_scale: bool = False,
        min_scale: float = 0.0,
    ) -> None:
        super().__init__(network, scale, learn_scale=learn_scale, min_scale=min_scale)
        if not 0 < df < math.inf:
            raise ValueError(f"the degrees of freedom of a StudentT likelihood must be positive and finite, got {df}")
        self.df = df

    def _distribution(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.StudentT(self.df, loc, scale)


class ContinuousBernoulli(nn.Module):
    r"""Values in [0, 1], :math:`p(x \mid z) = \prod_d C(\lambda_d)\, \lambda_d^{x_d} (1 - \lambda_d)^{1 - x_d}`.

    The Bernoulli density with the constant that normalizes it over [0, 1], which grey values need.

    Args:
        network: Gives the logits of :math:`\lambda`, ``(*batch, latent) -> (*batch, *event)``.

    Source:
        *The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders* (Loaiza-Ganem and Cunningham,
        2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.likelihoods.ContinuousBernoulli(pv.networks.mlp(2, 16, 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z) for ``z``, shape ``(*batch, latent)``; a network of several contexts gets them all."""
        logits = self.network(*context)
        return ContinuousBernoulliDistribution(logits=logits).to_event(event_dim(logits.ndim, context, self.network))


class Beta(nn.Module):
    r"""Values strictly between 0 and 1, :math:`p(x \mid z) = \prod_d \mathrm{Beta}(x_d; \alpha_d(z), \beta_d(z))`.

    At 0 and 1 the density is zero or infinite, so data that hold them are refused; see :func:`pyrovae.data.dequantize`.

    Args:
        network: ``(*batch, latent) -> (*batch, *event[:-1], 2 * event[-1])``: log alpha (``concentration1``) and log
            beta (``concentration0``) side by side on the last dimension.
        min_concentration: Floor of both, which are it plus the exponentials; without one the density is unbounded.

    Raises:
        ValueError: If ``min_concentration`` is negative.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), with the density of Pyro's ``Beta``.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.likelihoods.Beta(pv.networks.mlp(2, 16, 2 * 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, min_concentration: float = 0.0) -> None:
        super().__init__()
        if not 0 <= min_concentration < math.inf:
            raise ValueError(f"the min_concentration of a Beta likelihood must be at least 0, got {min_concentration}")
        self.network, self.min_concentration = network, min_concentration

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z) for ``z``, shape ``(*batch, latent)``; a network of several contexts gets them all."""
        logs = split(self.network(*context), 2, "likelihoods.Beta")
        alpha, beta = (self.min_concentration + log.exp() for log in logs)
        return BetaDistribution(alpha, beta).to_event(event_dim(alpha.ndim, context, self.network))
