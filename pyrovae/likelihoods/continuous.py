"""Likelihoods of real values (Normal, Laplace, StudentT) and of values in [0, 1] (ContinuousBernoulli, Beta)."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.distributions import Beta as BetaDistribution
from pyrovae.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution
from pyrovae.distributions import StudentT as StudentTDistribution
from pyrovae.likelihoods.base import Likelihood


class _LocationScale(Likelihood):
    """Base of likelihoods with a location and a scale.

    The network returns the location. The scale is fixed, learned, or returned by the network too.
    """

    log_scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        scale: float | None = 1.0,
        *,
        learn_scale: bool = False,
        min_scale: float = 0.0,
        dim: int = -1,
    ) -> None:
        super().__init__(network, dim)
        self.scale, self.learn_scale, self.min_scale = scale, learn_scale, min_scale
        name = f"likelihoods.{type(self).__name__}"
        if not 0 <= min_scale < math.inf:
            raise ValueError(f"{name}: min_scale={min_scale} must be at least 0 and finite")
        if scale is None:
            if learn_scale:
                raise ValueError(
                    f"{name}: learn_scale=True needs a starting value, but scale is None. Pass scale=1.0, or omit "
                    f"learn_scale so that the network returns the scales."
                )
            self.num_parameters = 2
            return
        if not 0 < scale < math.inf:
            raise ValueError(f"{name}: scale={scale} must be positive and finite")
        if scale <= min_scale:
            raise ValueError(f"{name}: scale={scale} must exceed min_scale={min_scale}")
        log_scale = torch.tensor(math.log(scale - min_scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def _distribution(self, loc: Tensor, log_scale: Tensor | None = None) -> Any:
        return self._of_scale(loc, self.min_scale + (self.log_scale if log_scale is None else log_scale).exp())

    def _of_scale(self, loc: Tensor, scale: Tensor) -> Any:
        """Return the distribution with this location and scale. Each subclass implements this method."""
        raise NotImplementedError


class Normal(_LocationScale):
    r"""Normal likelihood of real data, :math:`p(x \mid z) = \prod_d N(x_d; f_d(z), \sigma^2)`.

    * ``Normal(network, scale=0.1)``: the scale is fixed. Then
      :math:`-\log p(x \mid z) = \lVert x - f(z) \rVert^2 / 2 \sigma^2 + D \log(\sigma \sqrt{2 \pi})`, least squares
      plus a constant.
    * ``Normal(network, scale=0.1, learn_scale=True)``: one scale for all dimensions is learned, starting at 0.1.
    * ``Normal(network, scale=None)``: the network returns a scale for every dimension and datum. The density then has
      no upper bound if an entry can be reconstructed exactly, such as a pixel that is always black. A positive
      ``min_scale`` bounds the density.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)``, the means. With ``scale=None``, the output is twice as large
            as the data in dimension ``dim``: means, then log-scales.
        scale: Standard deviation, positive, or ``None`` if the network returns the scales.
        learn_scale: If true, ``scale`` is the starting value of a learned scale.
        min_scale: Lower bound of the scale. The scale is ``min_scale`` plus the exponential of the log-scale.
        dim: Dimension along which means and log-scales are concatenated: -1, or -3 for the channels of images.

    Raises:
        ValueError: If ``scale`` is not positive and finite or does not exceed ``min_scale``, if ``min_scale`` is
            negative or infinite, if ``learn_scale`` is true but ``scale`` is None, or if ``dim`` is not negative.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix C.2.

    Example:
        >>> import math, torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Normal(torch.nn.Identity(), scale=0.1)
        >>> z, x = torch.zeros(1, 2), torch.tensor([[0.1, 0.2]])
        >>> round(float(likelihood(z).log_prob(x)), 3)
        0.267
        >>> round(-float((x - z).square().sum()) / 0.02 - 2 * math.log(0.1 * math.sqrt(2 * math.pi)), 3)
        0.267

        The network may return the scales of images too, along the channels:

        >>> decoder = pv.networks.conv_decoder(2, 16, out_shape=(2 * 3, 8, 8))
        >>> likelihood = pv.likelihoods.Normal(decoder, scale=None, min_scale=1e-2, dim=-3)
        >>> likelihood(torch.zeros(7, 2)).event_shape
        torch.Size([3, 8, 8])
    """

    def _of_scale(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.Normal(loc, scale)


class Laplace(_LocationScale):
    r"""Laplace likelihood of real data with outliers, :math:`p(x \mid z) = \prod_d \mathrm{Laplace}(x_d; f_d(z), b)`.

    With a fixed scale, the negative log-density is the sum of absolute deviations, divided by b, plus a constant.

    Args:
        network: See :class:`Normal`.
        scale: Scale b, positive, or ``None``; see :class:`Normal`. The scale is not the standard deviation.
        learn_scale: See :class:`Normal`.
        min_scale: See :class:`Normal`.
        dim: See :class:`Normal`.

    Raises:
        ValueError: See :class:`Normal`.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), section 2.4, for location-scale families.

    Example:
        >>> import torch, pyrovae as pv
        >>> families = pv.likelihoods.Laplace, pv.likelihoods.Normal
        >>> z, outlier = torch.zeros(1, 1), torch.full((1, 1), 5.0)
        >>> laplace, normal = (family(torch.nn.Identity(), scale=1.0)(z).log_prob(outlier) for family in families)
        >>> round(float(laplace), 2), round(float(normal), 2)
        (-5.69, -13.42)
    """

    def _of_scale(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.Laplace(loc, scale)


class StudentT(_LocationScale):
    r"""Student's t likelihood of real data with gross outliers, :math:`\prod_d t_\nu(x_d; f_d(z), \sigma)`.

    Args:
        network: See :class:`Normal`.
        scale: Scale :math:`\sigma`, positive, or ``None``; see :class:`Normal`. This scale is not the standard
            deviation.
        df: Degrees of freedom :math:`\nu`, positive.
        learn_scale: See :class:`Normal`.
        min_scale: See :class:`Normal`.
        dim: See :class:`Normal`.

    Raises:
        ValueError: If ``df`` is not positive and finite; otherwise see :class:`Normal`.

    Source:
        *Student-t Variational Autoencoder for Robust Density Estimation* (Takahashi et al., 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> z, outlier = torch.zeros(1, 1), torch.full((1, 1), 100.0)
        >>> student = pv.likelihoods.StudentT(torch.nn.Identity(), scale=1.0, df=3.0)(z).log_prob(outlier)
        >>> normal = pv.likelihoods.Normal(torch.nn.Identity(), scale=1.0)(z).log_prob(outlier)
        >>> round(float(student), 1), round(float(normal), 1)
        (-17.2, -5000.9)
    """

    def __init__(
        self,
        network: nn.Module,
        scale: float | None = 1.0,
        *,
        df: float = 4.0,
        learn_scale: bool = False,
        min_scale: float = 0.0,
        dim: int = -1,
    ) -> None:
        super().__init__(network, scale, learn_scale=learn_scale, min_scale=min_scale, dim=dim)
        if not 0 < df < math.inf:
            raise ValueError(f"likelihoods.StudentT: df={df}, the degrees of freedom, must be positive and finite")
        self.df = df

    def _of_scale(self, loc: Tensor, scale: Tensor) -> Any:
        return StudentTDistribution(self.df, loc, scale)


class ContinuousBernoulli(Likelihood):
    r"""Continuous Bernoulli likelihood of values in [0, 1].

    .. math:: p(x \mid z) = \prod_d C(\lambda_d)\, \lambda_d^{x_d} (1 - \lambda_d)^{1 - x_d}.

    The density is the Bernoulli probability, extended to values between 0 and 1, times the constant C that makes its
    integral over [0, 1] equal to 1. Use this likelihood for grey values.

    Args:
        network: Returns the logits of :math:`\lambda`, ``(*batch, latent) -> (*batch, *event)``.

    Source:
        *The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders* (Loaiza-Ganem and Cunningham,
        2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> logits, grid = torch.full((1000, 1), 2.0), (torch.arange(1000.0).unsqueeze(1) + 0.5) / 1000
        >>> density = pv.likelihoods.ContinuousBernoulli(torch.nn.Identity())(logits).log_prob(grid).exp()
        >>> round(float(density.mean()), 3)  # the integral over [0, 1]
        1.0
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def _distribution(self, logits: Tensor) -> Any:
        return ContinuousBernoulliDistribution(logits=logits)


class Beta(Likelihood):
    r"""Beta likelihood of values strictly between 0 and 1, :math:`\prod_d \mathrm{Beta}(x_d; \alpha_d(z), \beta_d(z))`.

    At 0 and 1, the density is zero or infinite, so data with these values raise an error.
    :func:`pyrovae.data.dequantize` maps grey values in [0, 1] to values strictly between 0 and 1.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is twice as large as the data in dimension
            ``dim``: log alpha (``concentration1``), then log beta (``concentration0``).
        min_concentration: Value that is added to both concentrations. If ``min_concentration`` is below 1, the density
            is unbounded near 0 and 1.
        dim: Dimension along which both parameters are concatenated: -1, or -3 for the channels of images.

    Raises:
        ValueError: If ``min_concentration`` is negative or infinite, or ``dim`` is not negative.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), with the density of Pyro's ``Beta``.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Beta(torch.nn.Identity())
        >>> log_concentrations = torch.tensor([[2.0, 2.0]]).log()
        >>> round(float(likelihood(log_concentrations).log_prob(torch.full((1, 1), 0.5)).exp()), 3)  # 6 x (1 - x)
        1.5
    """

    num_parameters = 2

    def __init__(self, network: nn.Module, min_concentration: float = 0.0, *, dim: int = -1) -> None:
        super().__init__(network, dim)
        if not 0 <= min_concentration < math.inf:
            raise ValueError(f"likelihoods.Beta: min_concentration={min_concentration} must be at least 0 and finite")
        self.min_concentration = min_concentration

    def _distribution(self, log_alpha: Tensor, log_beta: Tensor) -> Any:
        return BetaDistribution(self.min_concentration + log_alpha.exp(), self.min_concentration + log_beta.exp())
