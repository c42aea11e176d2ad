"""Student's t distribution, numerically exact for any degrees of freedom and for far outliers."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

_SERIES_FROM = 20.0  # the remainder of the series is then below 1e-16


class StudentT(dist.StudentT):  # type: ignore[misc]  # Pyro creates its class at import
    r"""Pyro's Student's t distribution, numerically exact for many degrees of freedom and for far outliers.

    .. math::
        \log p(x) = \log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2})} - \tfrac12 \log (\pi \nu \sigma^2)
            - \tfrac{\nu + 1}{2} \log\Big(1 + \frac{y^2}{\nu}\Big), \qquad y = \frac{x - \mu}{\sigma}.

    In float32, the difference of log-gammas in PyTorch is wrong by 0.3 nats for a million degrees of freedom. PyTorch
    also gives a log-density of minus infinity to a value that is 1e20 scales away from the location, because the square
    of its distance overflows.

    Args:
        df: Degrees of freedom :math:`\nu`, positive.
        loc: Location :math:`\mu`.
        scale: Scale :math:`\sigma`, positive; the standard deviation is larger.

    Source:
        *Digital Library of Mathematical Functions* (NIST, 2010), section 5.11, for the ratio of gamma functions.

    Example:
        >>> import torch
        >>> from pyrovae.distributions import StudentT
        >>> StudentT(torch.tensor(1.0)).log_prob(torch.tensor([0.0, 1e25]))
        tensor([  -1.1447, -116.2740])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, nats."""
        if self._validate_args:
            self._validate_sample(value)
        y = (value - self.loc) / self.scale / self.df.sqrt()
        constant = _log_gamma_ratio(self.df / 2) - 0.5 * (math.pi * self.df).log() - self.scale.log()
        return constant - 0.5 * (self.df + 1) * _log1p_square(y)


def _log1p_square(y: Tensor) -> Tensor:
    """Return log(1 + y^2) without squaring large numbers."""
    far = y.abs() > 1
    inside, outside = torch.where(far, 0.0, y), torch.where(far, y.abs(), 1.0)
    return torch.where(far, 2 * outside.log() + torch.log1p((1 / outside) ** 2), torch.log1p(inside**2))


def _log_gamma_ratio(a: Tensor) -> Tensor:
    """Return log(Gamma(a + 1 / 2) / Gamma(a))."""
    small, inverse = a.clamp(max=_SERIES_FROM), 1 / a.clamp(min=_SERIES_FROM)
    square = inverse**2
    series = inverse * (-1 / 8 + square * (1 / 192 + square * (-1 / 640 + square * (17 / 14336 - square * 31 / 18432))))
    exact = torch.lgamma(small + 0.5) - torch.lgamma(small)
    return torch.where(a < _SERIES_FROM, exact, 0.5 * a.clamp(min=_SERIES_FROM).log() + series)
