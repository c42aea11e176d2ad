"""Pyro's distributions where its own are not exact: extreme logits, large dispersions, the ends of an interval."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import logsigmoid


class ContinuousBernoulli(dist.ContinuousBernoulli):  # type: ignore[misc]  # Pyro makes its class when imported
    r"""Pyro's distribution, exact for any logit s.

    .. math::
        \log p(x) = s x - \log \frac{e^s - 1}{s}, \qquad
        \log \frac{e^s - 1}{s} = \max(s, 0) + \log \frac{1 - e^{-|s|}}{|s|}.

    Torch computes the constant and the draws from a probability that is kept off 0 and 1 by the precision of its dtype,
    so that in float32 they are those of :math:`|s| \le 16` whatever s is: for s = -100, a pixel that is always black,
    draws have mean 0.06 instead of 0.01, and the density has mass 0.16 instead of 1.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``value`` in [0, 1]."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self.logits.clamp(min=0) - self._log_mass()

    def _log_mass(self) -> Tensor:
        """The logarithm of (1 - exp(-t)) / t at t = |s|, by its series where t is small."""
        t = self.logits.abs()
        large = t.clamp(min=0.1)
        return torch.where(t < 0.1, -t / 2 + t**2 / 24 - t**4 / 2880, (-torch.expm1(-large) / large).log())

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        t = self.logits.abs()
        large = t.clamp(min=0.1)
        mean = torch.where(
            t < 0.1, 0.5 - t / 12 + t**3 / 720, 1 / large + torch.exp(-large) / torch.expm1(-large)
        )  # of s = -t
        return torch.where(self.logits > 0, 1 - mean, mean)

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        t = self.logits.abs()
        large = t.clamp(min=0.3)
        exact = 1 / large**2 - torch.exp(-large) / torch.expm1(-large) ** 2
        return torch.where(t < 0.3, 1 / 12 - t**2 / 240 + t**4 / 6048, exact)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles of probabilities."""
        t = self.logits.abs()
        large = t.clamp(min=1e-4)
        probability = torch.where(self.logits > 0, 1 - value, value)
        quantile = -torch.log1p(probability * torch.expm1(-large)) / large  # of s = -t
        quantile = torch.where(t < 1e-4, probability, quantile).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - quantile, quantile)


class NegativeBinomial(dist.NegativeBinomial):  # type: ignore[misc]
    r"""Pyro's distribution, exact for any dispersion r.

    .. math::
        \log p(n) = r \log \sigma(-l) + n \log \sigma(l) + \log \frac{\Gamma(r + n)}{\Gamma(r)\, n!}, \qquad
        l = \log(m / r).

    Torch takes the difference of two log-gammas, which for large r, near the Poisson distribution, loses all digits: in
    float32 some nats an entry at r = 1e6. By Stirling's series for r > 50 they are never taken apart,

    .. math::
        \log \frac{\Gamma(r + n)}{\Gamma(r)} = \big(r - \tfrac12\big) \log\big(1 + \tfrac{n}{r}\big)
            + n \log(r + n) - n + \tfrac{1}{12} \Big(\frac{1}{r + n} - \frac{1}{r}\Big) + O(r^{-3}).
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of ``value``."""
        if self._validate_args:
            self._validate_sample(value)
        odds = self.total_count * logsigmoid(-self.logits) + value * logsigmoid(self.logits)
        small, large = self.total_count.clamp(max=50), self.total_count.clamp(min=50)
        exact = torch.lgamma(small + value) - torch.lgamma(small)
        series = (large - 0.5) * torch.log1p(value / large) + value * torch.log(large + value) - value
        series = series + (1 / (large + value) - 1 / large) / 12
        rising = torch.where(self.total_count > 50, series, exact).masked_fill(value == 0, 0)
        return odds + rising - torch.lgamma(value + 1)


class _OpenUnitInterval(constraints.Constraint):
    """What torch has no name for."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


_open_unit_interval: Any = _OpenUnitInterval()


class Beta(dist.Beta):
    """A beta distribution whose support leaves out 0 and 1, where its density is zero or infinite."""

    support = _open_unit_interval
    hint = "its values lie strictly between 0 and 1: dequantize grey levels (pyrovae.data.dequantize)"
