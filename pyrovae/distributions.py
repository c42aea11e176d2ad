"""Distributions that Pyro does not have: flows that keep the contract, values on a lattice, discretized logistics."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid


class _Scored:
    """A draw with its log-density, as drawing has computed it."""

    def __init__(self, value: Tensor, log_prob: Tensor) -> None:
        self.value, self.log_prob = value, log_prob
        self.version, self.with_gradient = _version(value), torch.is_grad_enabled()

    def is_of(self, value: Tensor) -> bool:
        """Whether this is the very draw, not changed since, and with the gradient that is now asked for."""
        same = value is self.value and _version(value) == self.version
        return same and (self.with_gradient or not torch.is_grad_enabled())


def _version(value: Tensor) -> int | None:
    """How often a tensor was changed in place, which one made under ``torch.inference_mode`` does not count."""
    return None if value.is_inference() else value._version


class NormalizingFlow(TorchDistribution):
    r"""The distribution of :math:`z = f(\epsilon)` for a base distribution of :math:`\epsilon` and an invertible f.

    .. math:: \log p(z) = \log p_0(f^{-1}(z)) + \log \left| \det \frac{\partial f^{-1}(z)}{\partial z} \right|.

    Pyro's ``TransformedDistribution`` under a conditional transform does not report the batch shape of its context, and
    its flows keep their last value in the transform, where deep copies and tracers find it. Here the batch shape is
    that of the base, and what a draw has computed is kept beside the draw, so that an inverse autoregressive flow
    scores its own draws without being inverted.

    Args:
        base: Distribution of the noise, event shape ``(latent,)``, batch shape that of any context of the transform.
        transform: f, from noise to draws.

    Source:
        *Variational Inference with Normalizing Flows* (Rezende and Mohamed, 2015).
    """

    support = constraints.real_vector
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # as in torch

    def __init__(self, base: dist.TorchDistribution, transform: Any) -> None:
        self.base_dist, self.transform = base, transform
        self._last: _Scored | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry gradients, as those of the base do."""
        return self.base_dist.has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NormalizingFlow":
        """Returns the same flow with a larger batch shape."""
        return NormalizingFlow(self.base_dist.expand(batch_shape), self.transform)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, shape ``sample_shape + batch_shape + event_shape``."""
        return self.of_noise(self.base_dist.rsample(sample_shape))

    def of_noise(self, noise: Tensor) -> Tensor:
        """The draws that some draws of the base make."""
        value, log_det = self.transform.call_and_ladj(noise)
        self._last = _Scored(value, self.base_dist.log_prob(noise) - log_det)
        return value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws without gradient."""
        with torch.no_grad():
            return self.transform(self.base_dist.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``value``, which may have more leading dimensions than the batch shape."""
        if self._last is not None and self._last.is_of(value):
            return self._last.log_prob
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        noise, log_det = self.transform.inv.call_and_ladj(value)
        return self.base_dist.log_prob(noise) + log_det


class MultivariateNormal(dist.MultivariateNormal):
    r"""Pyro's distribution, scoring its own draws from their noise.

    With :math:`z = \mu + L \epsilon`,

    .. math:: \log q(z) = \log N(\epsilon; 0, I) - \sum_i \log L_{ii}.

    To solve for the noise instead multiplies the rounding error of z by the norm of the inverse of L, which grows
    exponentially with the number of dimensions: in training, float32 then ends in NaN.
    """

    _last: "_Scored | None" = None

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, shape ``sample_shape + batch_shape + event_shape``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.of_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def of_noise(self, noise: Tensor) -> Tensor:
        """The draws that some standard normal noise makes."""
        value = self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        constant = -0.5 * noise.shape[-1] * math.log(2 * math.pi) - 0.5 * noise.square().sum(-1)
        log_det = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._last = _Scored(value, constant - log_det)
        return value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws without gradient."""
        with torch.no_grad():
            draw: Tensor = super().rsample(torch.Size(sample_shape))
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``value``."""
        if self._last is not None and self._last.is_of(value):
            return self._last.log_prob
        return super().log_prob(value)


class Lattice(TorchDistribution):
    r"""The distribution of :math:`x = u\, n` for counts or levels n = 0, 1, 2, ... and a unit u.

    A discrete likelihood of grey values in [0, 1] scores :math:`n = x / u`: its log-probability is that of n, with no
    Jacobian. A value that is no multiple of the unit is outside the support.

    Args:
        base: Distribution of n.
        unit: u, the distance between neighbouring values.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_enumerate_support = False

    def __init__(self, base: dist.TorchDistribution, unit: float = 1.0) -> None:
        self.base_dist, self.unit = base, unit
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def hint(self) -> str:
        """What to do about a value that cannot be scored."""
        return (
            f"it scores a {type(self.base_dist).__name__} of multiples of unit={self.unit:.6g}: pass the unit of your "
            f"data (1/255 for 256 levels of grey in [0, 1]), and data that have neither been rescaled nor dequantized"
        )

    @property
    def support(self) -> Any:
        """The multiples of the unit that the base allows."""
        return _OnLattice(self.base_dist.support, self.unit)

    @property
    def mean(self) -> Tensor:
        """E[x]; that of a categorical base is the mean of its levels."""
        if isinstance(self.base_dist, dist.Categorical):
            probs = self.base_dist.probs
            return self.unit * (probs * torch.arange(probs.shape[-1], device=probs.device)).sum(-1)
        return self.unit * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        if isinstance(self.base_dist, dist.Categorical):
            probs = self.base_dist.probs
            return self.unit**2 * _central_moment(probs, self.mean / self.unit)
        return self.unit**2 * self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Lattice":
        """Returns the same distribution with a larger batch shape."""
        return Lattice(self.base_dist.expand(batch_shape), self.unit)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, floating-point."""
        draw: Tensor = self.base_dist.sample(sample_shape)
        return self.unit * (draw if draw.is_floating_point() else draw.to(self.base_dist.logits.dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of ``value``, a multiple of the unit."""
        if torch.distributions.Distribution._validate_args:
            self._validate_sample(value)
        return self.base_dist.log_prob((value / self.unit).round())


class DiscretizedLogistic(TorchDistribution):
    r"""Levels n = 0, ..., L - 1 with the mass of a logistic distribution between the middles of neighbours.

    .. math::
        P(n) = \sigma\Big(\frac{b_{n+1} - \mu}{s}\Big) - \sigma\Big(\frac{b_n - \mu}{s}\Big), \qquad
        b_n = \frac{n - \frac12}{L - 1}, \quad b_0 = -\infty, \; b_L = \infty.

    Location and scale are in units of the whole range, so that level L - 1 lies at 1. The difference is computed as
    :math:`\log \sigma(a) + \log \sigma(-b) + \log(1 - e^{b - a})`, exact in the tails.

    Args:
        loc: Location of the logistic distribution.
        scale: Its scale, positive.
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
        """The integers from 0 to L - 1."""
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def probs(self) -> Tensor:
        """Probabilities of all levels, shape ``(*batch_shape, levels)``."""
        levels = torch.arange(self.levels, device=self.loc.device).to(self.loc.dtype)
        table = DiscretizedLogistic(self.loc.unsqueeze(-1), self.scale.unsqueeze(-1), self.levels)
        return table.log_prob(levels).exp()

    @property
    def mean(self) -> Tensor:
        """E[n]."""
        return (self.probs * torch.arange(self.levels, device=self.loc.device)).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Var[n]."""
        return _central_moment(self.probs, self.mean)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        """Returns the same distribution with a larger batch shape."""
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of n, floating-point, by rounding draws of the logistic distribution."""
        with torch.no_grad():
            noise = torch.rand(
                self._extended_shape(torch.Size(sample_shape)), device=self.loc.device, dtype=self.loc.dtype
            )
            value = self.loc + self.scale * noise.clamp(torch.finfo(noise.dtype).tiny).logit()
            return (value * (self.levels - 1)).round().clamp(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the levels ``value``."""
        if torch.distributions.Distribution._validate_args:
            self._validate_sample(value)
        width = 1 / (self.levels - 1) / self.scale
        middle = (value / (self.levels - 1) - self.loc) / self.scale
        above, below = logsigmoid(middle + width / 2), logsigmoid(width / 2 - middle)
        between = above + below + torch.log(-torch.expm1(-width))
        return torch.where(value == 0, above, torch.where(value == self.levels - 1, below, between))


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


class _OnLattice(constraints.Constraint):
    """Multiples of a unit that, as integers, satisfy another constraint; rounding errors of the value are allowed."""

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
    """Variance of levels; E[n^2] - E[n]^2 would lose all digits of a small one."""
    levels = torch.arange(probs.shape[-1], device=probs.device)
    return (probs * (levels - mean.unsqueeze(-1)) ** 2).sum(-1)


def _all_rightmost(value: Tensor, event_dim: int) -> Tensor:
    return value.reshape(*value.shape[: value.ndim - event_dim], -1).all(-1) if event_dim else value
