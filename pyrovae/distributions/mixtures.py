"""Mixtures of distributions, with a fast density for mixtures of diagonal normal distributions."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


def mixture(weights: dist.Categorical, components: dist.TorchDistribution) -> dist.MixtureSameFamily:
    """Return the mixture of distributions of one family.

    A mixture of diagonal normal distributions is a :class:`DiagonalNormalMixture`, which computes its density faster.

    Args:
        weights: Distribution of the component's index, batch shape ``()``, C categories.
        components: The C components, batch shape ``(C,)``, event shape ``(latent,)``.
    """
    is_vector = type(components) is dist.Independent and components.reinterpreted_batch_ndims == 1
    is_diagonal_normal = is_vector and type(components.base_dist) is dist.Normal and len(components.batch_shape) == 1
    family = DiagonalNormalMixture if is_diagonal_normal else dist.MixtureSameFamily
    return family(weights, components)


class DiagonalNormalMixture(dist.MixtureSameFamily):  # type: ignore[misc]  # Pyro creates its class at import
    r"""Mixture of C diagonal normal distributions, :math:`p(z) = \sum_c \pi_c N(z; \mu_c, \mathrm{diag}(\sigma_c^2))`.

    The log-densities of the components are one matrix product, because each is linear in :math:`z_d^2` and
    :math:`z_d`:

    .. math:: \log N(z; \mu_c, \sigma_c) = \mathrm{const}_c
        + \sum_d \left( -\frac{z_d^2}{2 \sigma_{cd}^2} + \frac{z_d \mu_{cd}}{\sigma_{cd}^2} \right).

    Torch's class instead creates a tensor with an entry for each value, component and dimension. The terms of the
    sum over d can cancel, so values and parameters in float32 are summed in float64. The error is then less than the
    effect of rounding z to float32. In float64, and on a device without float64, the density is that of torch's class.

    Args:
        mixture_distribution: Distribution of the component's index, batch shape ``()``, C categories.
        component_distribution: The components, ``Normal(loc, scale).to_event(1)`` with batch shape ``(C,)``.
    """

    _unexpanded: "DiagonalNormalMixture | None" = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormalMixture":
        """Return the same mixture with a larger batch shape.

        Its density is computed from the parameters before the expansion.
        """
        expanded = super().expand(batch_shape, _instance)
        expanded._unexpanded = self._unexpanded or self
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z), shape ``(*batch,)``, nats, at ``value``, shape ``(*batch, latent)``."""
        one = self._unexpanded or self
        normal = one.component_distribution.base_dist
        dtype = torch.result_type(value, normal.loc)
        if dtype == torch.float64 or value.device.type == "mps":
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        loc, scale = normal.loc.double(), normal.scale.double()
        precision = scale.pow(-2)
        constant = (-0.5 * loc.square() * precision - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        constant = constant + one.mixture_distribution.logits.double().log_softmax(-1)
        z = value.double().clamp(-_LARGEST, _LARGEST)  # an infinite value would give the difference of two infinities
        products = torch.cat([z.square(), z], -1) @ torch.cat([-0.5 * precision, loc * precision], -1).mT
        log_prob = (products + constant).logsumexp(-1).to(dtype)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))
