"""Distributions that use the noise of a draw to compute the log-density of this draw."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class _Scored:
    """A draw of a distribution and its log-density, which was computed together with the draw."""

    def __init__(self, value: Tensor, log_prob: Tensor) -> None:
        self.value, self.log_prob = value, log_prob
        self.version, self.with_gradient = _version(value), torch.is_grad_enabled()

    def is_of(self, value: Tensor) -> bool:
        """Return true if a value is the stored draw, so that the stored log-density is valid for the value.

        The result is false if the draw has been changed in place since, or if gradients are enabled now but were
        disabled when the draw was made.
        """
        same = value is self.value and _version(value) == self.version
        return same and (self.with_gradient or not torch.is_grad_enabled())


def _version(value: Tensor) -> int | None:
    """Return how often a tensor was changed in place, or None if it was made in ``torch.inference_mode``."""
    return None if value.is_inference() else value._version


class NormalizingFlow(TorchDistribution):
    r"""Distribution of :math:`z = f(\epsilon)` for a base distribution of :math:`\epsilon` and an invertible f.

    .. math:: \log p(z) = \log p_0(f^{-1}(z)) + \log \left| \det \frac{\partial f^{-1}(z)}{\partial z} \right|.

    A conditional transform depends on a context, such as the output of an encoder. Pyro's ``TransformedDistribution``
    does not have the batch shape of this context. Pyro's flows also cache their last value in the transform, which
    breaks deep copies and tracing. A distribution of this class has the batch shape of its base, and caches the
    log-density of its last draw. An inverse autoregressive flow thus scores its own draws without an inversion.

    Args:
        base: Distribution of the noise, event shape ``(latent,)``. If the transform has a context, the base must have
            the batch shape of the context.
        transform: Invertible transform f, from noise to draws.

    Source:
        *Variational Inference with Normalizing Flows* (Rezende and Mohamed, 2015).
    """

    support = constraints.real_vector
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch declares it in the same way

    def __init__(self, base: dist.TorchDistribution, transform: Any) -> None:
        self.base_dist, self.transform = base, transform
        self._last: _Scored | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """True if draws of the base distribution carry gradients."""
        return self.base_dist.has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NormalizingFlow":
        """Return the same flow with a larger batch shape."""
        return NormalizingFlow(self.base_dist.expand(batch_shape), self.transform)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, shape ``sample_shape + batch_shape + event_shape``."""
        return self.of_noise(self.base_dist.rsample(sample_shape))

    def of_noise(self, noise: Tensor) -> Tensor:
        """Return the draws z = f(noise), for noise that was drawn from the base distribution."""
        value, log_det = self.transform.call_and_ladj(noise)
        self._last = _Scored(value, self.base_dist.log_prob(noise) - log_det)
        return value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values without gradients."""
        with torch.no_grad():
            return self.transform(self.base_dist.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, which may have additional leading dimensions, nats."""
        if self._last is not None and self._last.is_of(value):
            return self._last.log_prob
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        noise, log_det = self.transform.inv.call_and_ladj(value)
        return self.base_dist.log_prob(noise) + log_det


class MultivariateNormal(dist.MultivariateNormal):
    r"""Pyro's multivariate normal distribution, which computes the log-density of its own draws from their noise.

    With :math:`z = \mu + L \epsilon`,

    .. math:: \log q(z) = \log N(\epsilon; 0, I) - \sum_i \log L_{ii}.

    Recovering the noise from z instead, by solving with L, would multiply the rounding error of z by the norm of the
    inverse of L. This norm grows exponentially with the number of dimensions, so training in float32 would end in NaN.
    """

    _last: "_Scored | None" = None

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, shape ``sample_shape + batch_shape + event_shape``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.of_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def of_noise(self, noise: Tensor) -> Tensor:
        """Return the draws for given standard normal noise."""
        value = self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        constant = -0.5 * noise.shape[-1] * math.log(2 * math.pi) - 0.5 * noise.square().sum(-1)
        log_det = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._last = _Scored(value, constant - log_det)
        return value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values without gradients."""
        with torch.no_grad():
            draw: Tensor = super().rsample(torch.Size(sample_shape))
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, nats."""
        if self._last is not None and self._last.is_of(value):
            return self._last.log_prob
        return super().log_prob(value)
