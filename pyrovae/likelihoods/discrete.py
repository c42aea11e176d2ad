r"""Likelihoods of binary values, counts and levels of grey.

Counts and levels are scored as they are, 0, 1, 2, ..., or in a ``unit``: grey images in [0, 1] with 256 levels are
multiples of 1/255, and ``Categorical(network, levels=256, unit=1 / 255)`` takes them as they come. A discrete
log-likelihood is that of the level, whatever the unit.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.arguments import check_whole
from pyrovae.distributions import DiscretizedLogistic as DiscretizedLogisticDistribution
from pyrovae.distributions import Lattice
from pyrovae.distributions import NegativeBinomial as NegativeBinomialDistribution
from pyrovae.likelihoods.events import event_dim
from pyrovae.networks import split


class Bernoulli(nn.Module):
    r"""Binary data, :math:`p(x \mid z) = \prod_d \mathrm{Bernoulli}(x_d; \sigma(f_d(z)))`.

    Its log-density is minus the lecture's sum of binary cross-entropies. Data must be exactly 0 or 1.

    Args:
        network: Gives the logits, ``(*batch, latent) -> (*batch, *event)``.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix C.1.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Bernoulli(pv.networks.mlp(2, 16, (28, 28)))
        >>> p = likelihood(torch.zeros(7, 3, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([7, 3]), torch.Size([28, 28]))
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z) for ``z``, shape ``(*batch, latent)``; a network of several contexts gets them all."""
        logits = self.network(*context)
        return dist.Bernoulli(logits=logits).to_event(event_dim(logits.ndim, context, self.network))


class _Discrete(nn.Module):
    """Counts or levels in a unit."""

    def __init__(self, network: nn.Module, unit: float, *, least: int = 1, **counts: int) -> None:
        super().__init__()
        if not 0 < unit < math.inf:
            raise ValueError(f"the unit of a {type(self).__name__} likelihood must be positive and finite, got {unit}")
        check_whole(**counts)
        for name, number in counts.items():
            if number < least:
                raise ValueError(f"the {name} of a {type(self).__name__} must be at least {least}, got {number}")
        self.network, self.unit = network, unit

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z) for ``z``, shape ``(*batch, latent)``; a network of several contexts gets them all."""
        p = Lattice(self._distribution(self.network(*context)), self.unit)
        return p.to_event(event_dim(len(p.batch_shape), context, self.network))

    def _distribution(self, output: Tensor) -> Any:
        raise NotImplementedError

    def _split(self, output: Tensor, count: int) -> tuple[Tensor, ...]:
        return split(output, count, f"likelihoods.{type(self).__name__}")


class Binomial(_Discrete):
    r"""Counts of successes in T trials, :math:`p(x \mid z) = \prod_d \mathrm{Binomial}(x_d; T, \sigma(f_d(z)))`.

    The 8 x 8 digits are such counts, 0 to 16: ``Binomial(network, 16, unit=1 / 16)`` scores them in [0, 1].

    Args:
        network: Gives the logits, ``(*batch, latent) -> (*batch, *event)``.
        total_count: Number of trials, T.
        unit: The value of one count in the data.

    Raises:
        ValueError: If ``total_count`` or ``unit`` is not positive.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), with the probabilities of Pyro's ``Binomial``.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Binomial(pv.networks.mlp(2, 16, 5), 16)
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.full((3, 5), 7.0)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, total_count: int, *, unit: float = 1.0) -> None:
        super().__init__(network, unit, total_count=total_count)
        self.total_count = total_count

    def _distribution(self, output: Tensor) -> Any:
        return dist.Binomial(self.total_count, logits=output)


class Poisson(_Discrete):
    r"""Counts, :math:`p(x \mid z) = \prod_d \mathrm{Poisson}(x_d; e^{f_d(z)})`.

    Args:
        network: Gives the log-rates, ``(*batch, latent) -> (*batch, *event)``.
        unit: The value of one count in the data.

    Raises:
        ValueError: If ``unit`` is not positive.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), with the probabilities of Pyro's ``Poisson``.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Poisson(pv.networks.mlp(2, 16, 5))
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.full((3, 5), 7.0)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, *, unit: float = 1.0) -> None:
        super().__init__(network, unit)

    def _distribution(self, output: Tensor) -> Any:
        return dist.Poisson(output.exp())


class NegativeBinomial(_Discrete):
    r"""Overdispersed counts with mean m and dispersion r: variance :math:`m + m^2 / r`.

    .. math:: p(x \mid z) = \prod_d \mathrm{NegativeBinomial}(x_d; r_d(z), m_d(z) / (m_d(z) + r_d(z))).

    Args:
        network: ``(*batch, latent) -> (*batch, *event[:-1], 2 * event[-1])``: log m and log r side by side.
        unit: The value of one count in the data.

    Raises:
        ValueError: If ``unit`` is not positive.

    Source:
        *Deep Generative Modeling for Single-Cell Transcriptomics* (Lopez et al., 2018), for the mean and dispersion.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.NegativeBinomial(pv.networks.mlp(2, 16, 2 * 5))
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.full((3, 5), 7.0)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, *, unit: float = 1.0) -> None:
        super().__init__(network, unit)

    def _distribution(self, output: Tensor) -> Any:
        log_mean, log_dispersion = self._split(output, 2)
        return NegativeBinomialDistribution(log_dispersion.exp(), logits=log_mean - log_dispersion)


class Categorical(_Discrete):
    r"""Levels 0, ..., L - 1 without an order, :math:`p(x \mid z) = \prod_d \mathrm{softmax}(f_d(z))_{x_d}`.

    Args:
        network: ``(*batch, latent) -> (*batch, *event[:-1], levels * event[-1])``: for every entry of the last
            dimension the logits of all levels, one level after another side by side.
        levels: Number of levels, L.
        unit: The value of one level in the data; 1/255 for grey images in [0, 1].

    Raises:
        ValueError: If ``levels`` or ``unit`` is not positive.

    Source:
        *Pixel Recurrent Neural Networks* (van den Oord et al., 2016), section 2.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Categorical(pv.networks.mlp(2, 16, 256 * 5), unit=1 / 255)
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.ones(3, 5)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, levels: int = 256, *, unit: float = 1.0) -> None:
        super().__init__(network, unit, levels=levels)
        self.levels = levels

    def _distribution(self, output: Tensor) -> Any:
        return dist.Categorical(logits=torch.stack(self._split(output, self.levels), dim=-1))


class DiscretizedLogistic(_Discrete):
    r"""Levels 0, ..., L - 1 with an order: each has the mass of a logistic distribution between the middles.

    See :class:`pyrovae.distributions.DiscretizedLogistic` for the formula. Locations and scales are in units of the
    whole range, so networks work in [0, 1] whatever the number of levels.

    Args:
        network: ``(*batch, latent) -> (*batch, *event[:-1], 2 * event[-1])``: locations and log-scales side by side.
        levels: Number of levels, L, at least 2.
        unit: The value of one level in the data; 1/255 for grey images in [0, 1].

    Raises:
        ValueError: If ``levels`` is less than 2 or ``unit`` is not positive.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016), section 5.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.DiscretizedLogistic(pv.networks.mlp(2, 16, 2 * 5), unit=1 / 255)
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.ones(3, 5)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, levels: int = 256, *, unit: float = 1.0) -> None:
        super().__init__(network, unit, least=2, levels=levels)
        self.levels = levels

    def _distribution(self, output: Tensor) -> Any:
        loc, log_scale = self._split(output, 2)
        return DiscretizedLogisticDistribution(loc, log_scale.exp(), self.levels)


class DiscretizedLogisticMixture(_Discrete):
    r"""Levels 0, ..., L - 1 from a mixture of C discretized logistics an entry.

    Args:
        network: ``(*batch, latent) -> (*batch, *event[:-1], 3 * components * event[-1])``: logits of the components,
            locations and log-scales side by side, each of them one component after another.
        components: Number of components, C.
        levels: Number of levels, L, at least 2.
        unit: The value of one level in the data; 1/255 for grey images in [0, 1].

    Raises:
        TypeError: If ``components`` or ``levels`` is no integer.
        ValueError: If ``components`` or ``unit`` is not positive, or ``levels`` is less than 2.

    Source:
        *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood* (Salimans et al., 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.DiscretizedLogisticMixture(pv.networks.mlp(2, 16, 3 * 4 * 5), components=4)
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.full((3, 5), 255.0)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, components: int = 5, levels: int = 256, *, unit: float = 1.0) -> None:
        super().__init__(network, unit, components=components)
        check_whole(levels=levels)
        if levels < 2:
            raise ValueError(f"the levels of a DiscretizedLogisticMixture must be at least 2, got {levels}")
        self.components, self.levels = components, levels

    def _distribution(self, output: Tensor) -> Any:
        parts = self._split(output, 3 * self.components)
        logits, loc, log_scale = (
            torch.stack(parts[i * self.components : (i + 1) * self.components], dim=-1) for i in range(3)
        )
        components = DiscretizedLogisticDistribution(loc, log_scale.exp(), self.levels)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
