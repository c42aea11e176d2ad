"""Mixtures of distributions, with a fast density for mixtures of diagonal normal distributions."""

import math
from functools import reduce
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

MANY = 50  # components from which the density by a matrix product is faster
_LARGEST = torch.finfo(torch.float32).max


def mixture(weights: dist.Categorical, components: dist.TorchDistribution) -> dist.MixtureSameFamily:
    """Return the mixture of distributions of one family.

    The density of a mixture of many diagonal normal distributions is faster than that of torch's class.

    Args:
        weights: Distribution of the component's index, batch shape ``()``, C categories.
        components: The C components, batch shape ``(C,)``, event shape ``(latent,)``.
    """
    is_vector = type(components) is dist.Independent and components.reinterpreted_batch_ndims == 1
    is_diagonal_normal = is_vector and type(components.base_dist) is dist.Normal and len(components.batch_shape) == 1
    if is_diagonal_normal and components.batch_shape[0] >= MANY:
        return _DiagonalNormalMixture(weights, components)
    return dist.MixtureSameFamily(weights, components)


class _DiagonalNormalMixture(dist.MixtureSameFamily):  # type: ignore[misc]  # Pyro creates its class at import
    r"""Mixture of C diagonal normal distributions, :math:`p(z) = \sum_c \pi_c N(z; \mu_c, \mathrm{diag}(\sigma_c^2))`.

    The log-densities of the components are one matrix product, because each is linear in :math:`z_d^2` and
    :math:`z_d`:

    .. math:: \log N(z; \mu_c, \sigma_c) = \mathrm{const}_c
        + \sum_d \left( -\frac{z_d^2}{2 \sigma_{cd}^2} + \frac{z_d \mu_{cd}}{\sigma_{cd}^2} \right).

    The density of torch's class has a tensor with an entry for each value, component and dimension. The terms of the
    sum over d can cancel, so values and parameters in float32 are summed in float64. The component with the largest
    density is computed again from the differences :math:`z_d - \mu_{cd}`, which is exact even if its scales are 1e-10.
    In float64, and on a device without float64, the density is that of torch's class.
    """

    _unexpanded: "_DiagonalNormalMixture | None" = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_DiagonalNormalMixture":
        """Return the same mixture with a larger batch shape. Its density uses the parameters without copies."""
        expanded = super().expand(batch_shape, _instance)
        expanded._unexpanded = self._unexpanded or self
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z), shape ``(*batch,)``, nats, at ``value``, shape ``(*batch, latent)``."""
        one = self._unexpanded or self
        normal, logits = one.component_distribution.base_dist, one.mixture_distribution.logits
        dtype = reduce(torch.promote_types, [each.dtype for each in (value, normal.loc, normal.scale, logits)])
        if dtype == torch.float64 or value.device.type == "mps":
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        log_prob = _log_density(*(each.double() for each in (value, normal.loc, normal.scale, logits))).to(dtype)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape)).contiguous()


def _log_density(z: Tensor, loc: Tensor, scale: Tensor, logits: Tensor) -> Tensor:
    """Return the log-density of a mixture, shape ``(*batch,)``, nats.

    Args:
        z: Values, shape ``(*batch, latent)``, float64.
        loc: Means of the components, shape ``(C, latent)``, float64.
        scale: Standard deviations of the components, shape ``(C, latent)``, float64.
        logits: Unnormalized log-weights of the components, shape ``(C,)``, float64.
    """
    # Infinite values would give differences of infinities.
    z, loc = z.clamp(-_LARGEST, _LARGEST), loc.clamp(-_LARGEST, _LARGEST)
    precision = scale.pow(-2)
    products = torch.cat([z.square(), z], -1) @ torch.cat([-0.5 * precision, loc * precision], -1).mT
    exponents = products - 0.5 * (loc.square() * precision).sum(-1)
    constants = logits.log_softmax(-1) - (scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
    largest = (exponents + constants).detach().argmax(-1, keepdim=True)
    differences = (z - loc[largest[..., 0]]) / scale[largest[..., 0]]
    exponents = exponents.clamp(max=0).scatter(-1, largest, -0.5 * differences.square().sum(-1, keepdim=True))
    return (exponents + constants).logsumexp(-1)
