"""Likelihoods of levels 0, ..., L - 1, such as the levels of grey or colour images, in any unit.

The unit is the distance between adjacent levels in the data: 1/255 for images of 256 levels in [0, 1]. The
log-likelihood is the log-probability of the level itself, so it does not depend on the unit.
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
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is ``levels`` times as large as the data
            in dimension ``dim``: the logits of level 0 for all entries, then the logits of level 1, and so on.
        levels: Number of levels, L.
        unit: Distance between adjacent levels in the data; 1/255 for images of 256 levels in [0, 1].
        dim: Dimension along which the logits of the levels are concatenated: -1, or -3 for the channels of images.

    Raises:
        TypeError: If ``levels`` is not an integer.
        ValueError: If ``levels`` or ``unit`` is not positive, or ``dim`` is not negative.

    Source:
        *Pixel Recurrent Neural Networks* (van den Oord et al., 2016), section 2.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Categorical(torch.nn.Identity(), unit=1 / 255)
        >>> p = likelihood(torch.zeros(256 * 5))  # all levels of the 5 entries have the same probability
        >>> round(float(p.log_prob(torch.ones(5)) / 5), 3)  # -log(256)
        -5.545
    """

    def __init__(self, network: nn.Module, levels: int = 256, *, unit: float = 1.0, dim: int = -1) -> None:
        super().__init__(network, unit, dim)
        self._check_at_least(1, levels=levels)
        self.levels = self.num_parameters = levels

    def _of_counts(self, *logits: Tensor) -> Any:
        return dist.Categorical(logits=torch.stack(logits, dim=-1))


class DiscretizedLogistic(Discrete):
    r"""Likelihood of ordered levels: the probability of a level is the integral of a logistic density around it.

    See :class:`pyrovae.distributions.DiscretizedLogistic` for the formula. Locations and scales are relative to the
    range of the levels: location 0 is the lowest level and location 1 the highest, for any number of levels and any
    unit.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is twice as large as the data in dimension
            ``dim``: locations, then log-scales.
        levels: Number of levels, L, at least 2.
        unit: Distance between adjacent levels in the data; 1/255 for images of 256 levels in [0, 1].
        dim: Dimension along which both parameters are concatenated: -1, or -3 for the channels of images.

    Raises:
        TypeError: If ``levels`` is not an integer.
        ValueError: If ``levels`` is less than 2, ``unit`` is not positive, or ``dim`` is not negative.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016), section 5.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.DiscretizedLogistic(torch.nn.Identity(), levels=4, unit=1 / 3)
        >>> p = likelihood(torch.tensor([0.5, -1.0]).expand(4, 2))
        >>> round(float(p.log_prob(torch.arange(4.0).unsqueeze(1) / 3).exp().sum()), 3)  # over all levels
        1.0
    """

    num_parameters = 2

    def __init__(self, network: nn.Module, levels: int = 256, *, unit: float = 1.0, dim: int = -1) -> None:
        super().__init__(network, unit, dim)
        self._check_at_least(2, levels=levels)
        self.levels = levels

    def _of_counts(self, loc: Tensor, log_scale: Tensor) -> Any:
        return DiscretizedLogisticDistribution(loc, log_scale.exp(), self.levels)


class DiscretizedLogisticMixture(Discrete):
    r"""Likelihood of ordered levels: for each entry, a mixture of C discretized logistic distributions.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is ``3 * components`` times as large as
            the data in dimension ``dim``: logits of the components, then locations, then log-scales. Each of these
            three blocks holds the values of component 1 for all entries, then the values of component 2, and so on.
        components: Number of components, C.
        levels: Number of levels, L, at least 2.
        unit: Distance between adjacent levels in the data; 1/255 for images of 256 levels in [0, 1].
        dim: Dimension along which the parameters are concatenated: -1, or -3 for the channels of images.

    Raises:
        TypeError: If ``components`` or ``levels`` is not an integer.
        ValueError: If ``components`` or ``unit`` is not positive, ``levels`` is less than 2, or ``dim`` is not
            negative.

    Source:
        *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood* (Salimans et al., 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.DiscretizedLogisticMixture(torch.nn.Identity(), components=2, levels=4)
        >>> logits, locs, log_scales = torch.zeros(2), torch.tensor([0.1, 0.9]), torch.full((2,), -2.0)
        >>> p = likelihood(torch.cat([logits, locs, log_scales]).expand(4, 6))
        >>> probabilities = p.log_prob(torch.arange(4.0).unsqueeze(1)).exp()
        >>> round(float(probabilities.sum()), 3), bool(probabilities[0] > probabilities[1])  # two modes
        (1.0, True)
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
