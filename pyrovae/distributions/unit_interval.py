"""Distributions of values in the unit interval, numerically exact for extreme logits and large concentrations."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import register_kl

from pyrovae.distributions.saddle_point import deviance, log1p_ratio, log_factorial_excess

_SMALL = 0.5  # |logit| below which series are used; their first omitted term is below 1e-13


class ContinuousBernoulli(dist.ContinuousBernoulli):  # type: ignore[misc]  # Pyro creates its class at import
    r"""Pyro's continuous Bernoulli distribution, numerically exact for any logit s.

    .. math:: \log p(x) = s x - \log \frac{e^s - 1}{s}.

    PyTorch computes the normalizing constant and the draws from a probability that is clamped away from 0 and 1. In
    float32, the constant and the draws are therefore those of a logit with :math:`|s| \le 16`. At s = -100, for a pixel
    that is always black, PyTorch's draws have mean 0.06 instead of 0.01, and the integral of its density is 0.16
    instead of 1. Near s = 0, this class uses power series in s, so values and gradients are exact there as well.

    Args:
        probs: Probability :math:`\sigma(s)`, strictly between 0 and 1. Pass either ``probs`` or ``logits``.
        logits: Logit s.

    Source:
        *The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders* (Loaiza-Ganem and Cunningham,
        2019).

    Example:
        >>> import torch
        >>> from pyrovae.distributions import ContinuousBernoulli
        >>> ContinuousBernoulli(logits=torch.tensor([-1000.0, 0.0, 1000.0])).mean
        tensor([0.0010, 0.5000, 0.9990])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value`` in [0, 1], nats."""
        if self._validate_args:
            self._validate_sample(value)
        s = self.logits
        near, t = _split_at_zero(s)
        distance = torch.where(s > 0, 1 - value, value)  # distance from the end at which the density is largest
        return torch.where(s.abs() < _SMALL, near * (value - 0.5) - _log_sinh_ratio(near), -t * distance - _log_mass(t))

    @property
    def mean(self) -> Tensor:
        """The mean of x."""
        near, t = _split_at_zero(self.logits)
        distance = _mean_distance(t)
        far = torch.where(self.logits > 0, 1 - distance, distance)
        return torch.where(self.logits.abs() < _SMALL, 0.5 + near * _polynomial(near * near, _MEAN), far)

    @property
    def variance(self) -> Tensor:
        """The variance of x."""
        near, t = _split_at_zero(self.logits)
        far = 1 / t**2 - torch.exp(-t) / torch.expm1(-t) ** 2
        return torch.where(self.logits.abs() < _SMALL, _polynomial(near * near, _VARIANCE), far)

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(x <= value) for ``value`` in [0, 1]."""
        if self._validate_args:
            self._validate_sample(value)
        s = self.logits
        near, t = _split_at_zero(s)
        distance = torch.where(s > 0, 1 - value, value)
        mass = torch.expm1(-t * distance) / torch.expm1(-t)
        far = torch.where(s > 0, 1 - mass, mass)
        return torch.where(s.abs() < _TINY, _polynomial(near.expand_as(far), _bernoulli_polynomials(value)), far)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantiles at the probabilities ``value``."""
        s = self.logits
        near, t = _split_at_zero(s)
        below, above = torch.where(s > 0, 1 - value, value), torch.where(s > 0, value, 1 - value)
        distance = (-_log_complement(below, above, t) / t).clamp(0, 1)
        far = torch.where(s > 0, 1 - distance, distance)
        return torch.where(s.abs() < _TINY, _polynomial(near.expand_as(far), _cumulants(value)), far)

    def entropy(self) -> Tensor:
        """Return the differential entropy, nats.

        The log-density is linear in x, so the mean of x determines the entropy.
        """
        near, t = _split_at_zero(self.logits)
        small = _log_sinh_ratio(near) - near * near * _polynomial(near * near, _MEAN)
        return torch.where(self.logits.abs() < _SMALL, small, t * _mean_distance(t) + _log_mass(t))


@register_kl(ContinuousBernoulli, ContinuousBernoulli)  # type: ignore[untyped-decorator]
def _kl(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    return -p.entropy() - q.log_prob(p.mean)


# Power series in s^2 of log(sinh(s / 2) / (s / 2)) / s^2, of (mean - 1 / 2) / s, and of the variance.
_LOG_SINH = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000)
_MEAN = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600)
_VARIANCE = (
    1 / 12,
    -1 / 240,
    1 / 6048,
    -1 / 172800,
    1 / 5322240,
    -691 / 118879488000,
    1 / 5748019200,
    -3617 / 711374856192000,
)
_TINY = 0.04  # |logit| below which series replace the distribution function and the quantiles


def _polynomial(x: Tensor, coefficients: tuple[Any, ...]) -> Tensor:
    """Return the sum of ``coefficients[k] * x**k``."""
    total = torch.zeros_like(x) + coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _split_at_zero(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors: the argument of power series near s = 0, and that of closed forms that divide by abs(s).

    The first result is s, or 0 where s is not near 0. The second result is abs(s), but at least ``_TINY``.
    """
    small = s.abs() < _SMALL
    return torch.where(small, s, 0.0), torch.where(s.abs() < _TINY, _TINY, s.abs())


def _log_sinh_ratio(s: Tensor) -> Tensor:
    """Return log((exp(s) - 1) / s) - s / 2 for s near zero."""
    square = s * s
    return square * _polynomial(square, _LOG_SINH)


def _log_mass(t: Tensor) -> Tensor:
    """Return the logarithm of (1 - exp(-t)) / t for t > 0."""
    return (-torch.expm1(-t) / t).log()


def _mean_distance(t: Tensor) -> Tensor:
    """Return the mean distance of x from 0 or 1, whichever has the higher density.

    The argument t is the absolute value of the logit s, which must not be 0.
    """
    return 1 / t + torch.exp(-t) / torch.expm1(-t)


def _log_complement(p: Tensor, rest: Tensor, t: Tensor) -> Tensor:
    """Return log(1 - p (1 - exp(-t))), accurate even if p is 1 and t is large; ``rest`` is 1 - p."""
    removed = p * torch.expm1(-t)
    far = torch.logaddexp(rest.log(), p.clamp(min=0.5).log() - t)
    return torch.where(removed > -0.5, torch.log1p(removed.clamp(min=-0.5)), far)


def _cumulants(p: Tensor) -> tuple[Tensor, ...]:
    """Return the coefficients of the quantile at p as a power series in the logit s.

    The coefficient of s^(k - 1) is the k-th cumulant of a Bernoulli distribution with probability p, divided by k!.
    """
    v = p * (1 - p)
    skew = 1 - 2 * p
    return (
        p,
        v / 2,
        v * skew / 6,
        v * (1 - 6 * v) / 24,
        v * skew * (1 - 12 * v) / 120,
        v * (1 - 30 * v + 120 * v**2) / 720,
        v * skew * (1 - 60 * v + 360 * v**2) / 5040,
        v * (1 - 126 * v + 1680 * v**2 - 5040 * v**3) / 40320,
    )


def _bernoulli_polynomials(x: Tensor) -> tuple[Tensor, ...]:
    """Return the coefficients of the distribution function at x as a power series in the logit s.

    The coefficient of s^(k - 1) is (B_k(x) - B_k) / k!, with the Bernoulli polynomial B_k(x) and its value B_k at 0.
    """
    v = x * (1 - x)
    skew = 1 - 2 * x
    return (
        x,
        -v / 2,
        v * skew / 12,
        v**2 / 24,
        -v * skew * (1 + 3 * v) / 720,
        -(v**2) * (v + 0.5) / 720,
        v * skew * (1 + 3 * v + 3 * v**2) / 30240,
        v**2 * (2 + 4 * v + 3 * v**2) / 120960,
    )


class OpenUnitInterval(constraints.Constraint):
    """The open unit interval, for which PyTorch has no constraint."""

    def check(self, value: Tensor) -> Tensor:
        """Return a mask of the values strictly between 0 and 1."""
        return (value > 0) & (value < 1)


_open_unit_interval: Any = OpenUnitInterval()


class Beta(dist.Beta):
    r"""Beta distribution on the open unit interval, numerically exact for large concentrations.

    At 0 and 1 the density can be zero or infinite, so the support excludes 0 and 1. With N = a + b, this class computes

    .. math::
        \log p(x) = \log \frac{a b}{N x (1 - x)} + G(N) - G(a) - G(b) - D(a; N x) - D(b; N (1 - x)).

    The functions G and D are defined in :mod:`pyrovae.distributions.saddle_point`. PyTorch computes a difference of
    log-gammas instead, which is wrong by several nats at a = b = 1e6 in float32.

    Args:
        concentration1: Concentration a, positive; x has the exponent a - 1 in the density.
        concentration0: Concentration b, positive; 1 - x has the exponent b - 1 in the density.

    Source:
        *Fast and Accurate Computation of Binomial Probabilities* (Loader, 2000), for G and D.

    Example:
        >>> import torch
        >>> from pyrovae.distributions import Beta
        >>> f"{Beta(torch.tensor(1e6), torch.tensor(1e6)).log_prob(torch.tensor(0.5)):.2f}"
        '7.03'
    """

    support = _open_unit_interval
    hint = "Its values lie strictly between 0 and 1: dequantize grey levels (pyrovae.data.dequantize)"

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value`` in nats. The values lie strictly between 0 and 1."""
        if self._validate_args:
            self._validate_sample(value)
        a, b, x = torch.broadcast_tensors(self.concentration1, self.concentration0, value)
        log_x, log_rest = x.log(), torch.log1p(-x)
        difference = b * x - a * (1 - x)  # N x - a
        deviances = deviance(a, difference, log_x + log1p_ratio(b, a)) + deviance(
            b, -difference, log_rest + log1p_ratio(a, b)
        )
        constants = log_factorial_excess(a + b) - log_factorial_excess(a) - log_factorial_excess(b)
        smaller, larger = torch.minimum(a, b), torch.maximum(a, b)
        return smaller.log() - log1p_ratio(smaller, larger) - log_x - log_rest + constants - deviances
