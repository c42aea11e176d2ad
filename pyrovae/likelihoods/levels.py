"""Likelihoods of levels 0, ..., L - 1, such as those of grey or colour images, in any unit.

The unit is the value of one level in the data: 1/255 for images of 256 levels in [0, 1]. A discrete log-likelihood is
that of the level, whatever the unit.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.distributions import DiscretizedLogistic as DiscretizedLogisticDistribution
from pyrovae.likelihoods.counts import Discrete


class Categorical(Discrete):
    r"""Categorical likelihood of levels without an order, :math:`\prod_d \mathrm{softmax}(f_d(z))_{x_d}`.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is ``levels`` times as large in dimension
            ``dim``: the logits of level 0 for all entries, then those of level 1, and so on.
        levels: Number of levels, L.
        unit: Value of one level in the data; 1/255 for grey images in [0, 1].
        dim: Dimension along which the levels stand side by side: -1, or -3 for the channels of images.

    Raises:
        TypeError: If ``levels`` is not an integer.
        ValueError: If ``levels`` or ``unit`` is not positive, or ``dim`` is not negative.

    Source:
        *Pixel Recurrent Neural Networks* (van den Oord et al., 2016), section 2.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Categorical(pv.networks.mlp(2, 16, 256 * 5), unit=1 / 255)
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.ones(3, 5)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, levels: int = 256, *, unit: float = 1.0, dim: int = -1) -> None:
        super().__init__(network, unit, dim)
        self._check_at_least(1, levels=levels)
        self.levels = self.num_parameters = levels

    def _of_counts(self, *logits: Tensor) -> Any:
        return dist.Categorical(logits=torch.stack(logits, dim=-1))


class DiscretizedLogistic(Discrete):
    r"""Discretized logistic likelihood of ordered levels: each has the mass of a logistic density around it.

    See :class:`pyrovae.distributions.DiscretizedLogistic` for the formula. Locations and scales are in units of the
    whole range, so networks work in [0, 1] whatever the number of levels.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is twice as large in dimension ``dim``:
            locations, then log-scales.
        levels: Number of levels, L, at least 2.
        unit: Value of one level in the data; 1/255 for grey images in [0, 1].
        dim: Dimension along which both parameters stand side by side: -1, or -3 for the channels of images.

    Raises:
        TypeError: If ``levels`` is not an integer.
        ValueError: If ``levels`` is less than 2, ``unit`` is not positive, or ``dim`` is not negative.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016), section 5.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> decoder = pv.networks.conv_decoder(2, 16, out_shape=(2 * 3, 8, 8))
        >>> pv.likelihoods.DiscretizedLogistic(decoder, unit=1 / 255, dim=-3)(torch.zeros(7, 2)).event_shape
        torch.Size([3, 8, 8])
    """

    num_parameters = 2

    def __init__(self, network: nn.Module, levels: int = 256, *, unit: float = 1.0, dim: int = -1) -> None:
        super().__init__(network, unit, dim)
        self._check_at_least(2, levels=levels)
        self.levels = levels

    def _of_counts(self, loc: Tensor, log_scale: Tensor) -> Any:
        return DiscretizedLogisticDistribution(loc, log_scale.exp(), self.levels)


class DiscretizedLogisticMixture(Discrete):
    r"""Likelihood of ordered levels from a mixture of C discretized logistic distributions for each entry.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is ``3 * components`` times as large in
            dimension ``dim``: logits of the components, then locations, then log-scales, each of them one component
            after another.
        components: Number of components, C.
        levels: Number of levels, L, at least 2.
        unit: Value of one level in the data; 1/255 for grey images in [0, 1].
        dim: Dimension along which the parameters stand side by side: -1, or -3 for the channels of images.

    Raises:
        TypeError: If ``components`` or ``levels`` is not an integer.
        ValueError: If ``components`` or ``unit`` is not positive, ``levels`` is less than 2, or ``dim`` is not
            negative.

    Source:
        *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood* (Salimans et al., 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.DiscretizedLogisticMixture(pv.networks.mlp(2, 16, 3 * 4 * 5), components=4)
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.full((3, 5), 255.0)).shape
        torch.Size([3])
    """

    def __init__(
        self, network: nn.Module, components: int = 5, levels: int = 256, *, unit: float = 1.0, dim: int = -1
    ) -> None:
        super().__init__(network, unit, dim)
        self._check_at_least(1, components=components)
        self._check_at_least(2, levels=levels)
        self.components, self.levels = components, levels
        self.num_parameters = 3 * components

    def _of_counts(self, *parameters: Tensor) -> Any:
        count = self.components
        logits, loc, log_scale = (torch.stack(parameters[i * count : (i + 1) * count], dim=-1) for i in range(3))
        components = DiscretizedLogisticDistribution(loc, log_scale.exp(), self.levels)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
