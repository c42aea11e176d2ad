"""Distributions of counts or levels, stored as multiples of a unit, and the discretized logistic distribution."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid


class Lattice(TorchDistribution):
    r"""Distribution of :math:`x = u\, n` for counts or levels n = 0, 1, 2, ... and a unit u.

    A discrete likelihood of grey values in [0, 1] scores :math:`n = x / u`. The log-probability of x is that of n,
    without a Jacobian. A value that is not a multiple of the unit is outside the support.

    Args:
        base: Distribution of the counts or levels n.
        unit: Unit u, the distance between neighbouring values.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_enumerate_support = False

    def __init__(self, base: dist.TorchDistribution, unit: float = 1.0) -> None:
        self.base_dist, self.unit = base, unit
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def hint(self) -> str:
        """Advice that an error message gives if values lie outside the support."""
        return (
            f"It scores multiples of unit={self.unit:.6g} by a {type(self.base_dist).__name__}: pass the unit of your "
            f"data (1/255 for 256 grey levels in [0, 1]), and data that are neither rescaled nor dequantized"
        )

    @property
    def support(self) -> Any:
        """Constraint for the values u * n, where u is the unit and n is in the support of the base distribution."""
        return _OnLattice(self.base_dist.support, self.unit)

    @property
    def mean(self) -> Tensor:
        """The mean of x, the unit times the mean of n. The categories of a categorical base are n = 0, 1, 2, ..."""
        if isinstance(self.base_dist, dist.Categorical):
            probs = self.base_dist.probs
            return self.unit * (probs * torch.arange(probs.shape[-1], device=probs.device)).sum(-1)
        return self.unit * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """The variance of x."""
        if isinstance(self.base_dist, dist.Categorical):
            probs = self.base_dist.probs
            return self.unit**2 * _central_moment(probs, self.mean / self.unit)
        return self.unit**2 * self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Lattice":
        """Return the same distribution with a larger batch shape."""
        return Lattice(self.base_dist.expand(batch_shape), self.unit)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw floating-point values."""
        draw: Tensor = self.base_dist.sample(sample_shape)
        return self.unit * (draw if draw.is_floating_point() else draw.to(self.base_dist.logits.dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of ``value`` in nats. ``value`` is a multiple of the unit."""
        if torch.distributions.Distribution._validate_args:
            self._validate_sample(value)
        return self.base_dist.log_prob((value / self.unit).round())


class DiscretizedLogistic(TorchDistribution):
    r"""Distribution of levels n = 0, ..., L - 1. P(n) is the mass of a logistic density in the interval around n.

    .. math::
        P(n) = \sigma\Big(\frac{b_{n+1} - \mu}{s}\Big) - \sigma\Big(\frac{b_n - \mu}{s}\Big), \qquad
        b_n = \frac{n - \frac12}{L - 1}, \quad b_0 = -\infty, \; b_L = \infty.

    Location and scale refer to levels rescaled to [0, 1]: level n is at n / (L - 1). The logarithm of a difference
    :math:`\sigma(a) - \sigma(b)` is computed as :math:`\log \sigma(a) + \log \sigma(-b) + \log(1 - e^{b - a})`, which
    is exact in the tails.

    Args:
        loc: Location :math:`\mu` of the logistic distribution.
        scale: Scale s of the logistic distribution, positive.
        levels: Number of levels, L.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016), section 5.2;
        *PixelCNN++* (Salimans et al., 2017).
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Integers from 0 to L - 1."""
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def probs(self) -> Tensor:
        """Probabilities of all levels, shape ``(*batch_shape, levels)``."""
        levels = torch.arange(self.levels, device=self.loc.device).to(self.loc.dtype)
        table = DiscretizedLogistic(self.loc.unsqueeze(-1), self.scale.unsqueeze(-1), self.levels)
        return table.log_prob(levels).exp()

    @property
    def mean(self) -> Tensor:
        """The mean of the level n."""
        return (self.probs * torch.arange(self.levels, device=self.loc.device)).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the level n."""
        return _central_moment(self.probs, self.mean)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        """Return the same distribution with a larger batch shape."""
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels, as floating-point numbers, by rounding draws from the logistic distribution."""
        with torch.no_grad():
            noise = torch.rand(
                self._extended_shape(torch.Size(sample_shape)), device=self.loc.device, dtype=self.loc.dtype
            )
            value = self.loc + self.scale * noise.clamp(torch.finfo(noise.dtype).tiny).logit()
            return (value * (self.levels - 1)).round().clamp(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the levels ``value``, nats."""
        if torch.distributions.Distribution._validate_args:
            self._validate_sample(value)
        width = 1 / (self.levels - 1) / self.scale
        middle = (value / (self.levels - 1) - self.loc) / self.scale
        above, below = logsigmoid(middle + width / 2), logsigmoid(width / 2 - middle)
        between = above + below + torch.log(-torch.expm1(-width))
        return torch.where(value == 0, above, torch.where(value == self.levels - 1, below, between))


class _OnLattice(constraints.Constraint):
    """Constraint: a value is a multiple u * n of the unit u, up to rounding, and n satisfies a base constraint."""

    is_discrete = True

    def __init__(self, base: Any, unit: float) -> None:
        self.base, self.unit = base, unit
        self.event_dim = base.event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        steps = value / self.unit
        near = (steps - steps.round()).abs() <= 1e-3
        return _all_rightmost(near, self.event_dim) & self.base.check(steps.round())

    def __repr__(self) -> str:
        return f"multiples of {self.unit:.6g}"


def _central_moment(probs: Tensor, mean: Tensor) -> Tensor:
    """Return the variance of the levels n as E[(n - E[n])^2].

    The formula E[n^2] - E[n]^2 would lose all digits of a small variance.
    """
    levels = torch.arange(probs.shape[-1], device=probs.device)
    return (probs * (levels - mean.unsqueeze(-1)) ** 2).sum(-1)


def _all_rightmost(value: Tensor, event_dim: int) -> Tensor:
    return value.reshape(*value.shape[: value.ndim - event_dim], -1).all(-1) if event_dim else value
