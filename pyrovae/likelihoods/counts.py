"""Likelihoods of binary data and counts, with or without excess zeros, in any unit.

The unit is the value of one count in the data: 1 for plain counts, or 1/16 for counts from 0 to 16 that are stored as
0, 1/16, ..., 1. The log-likelihood is the log-probability of the count itself, so it does not depend on the unit.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.arguments import check_whole
from pyrovae.distributions import Binomial as BinomialDistribution
from pyrovae.distributions import Lattice
from pyrovae.distributions import NegativeBinomial as NegativeBinomialDistribution
from pyrovae.distributions import Poisson as PoissonDistribution
from pyrovae.likelihoods.base import Likelihood


class Bernoulli(Likelihood):
    r"""Bernoulli likelihood of binary data, :math:`p(x \mid z) = \prod_d \mathrm{Bernoulli}(x_d; \sigma(f_d(z)))`.

    The negative log-likelihood is the sum of the binary cross-entropies of the entries. Data must be exactly 0 or 1.

    Args:
        network: Returns the logits, ``(*batch, latent) -> (*batch, *event)``.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix C.1.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Bernoulli(pv.networks.mlp(2, 16, (28, 28)))
        >>> p = likelihood(torch.zeros(7, 3, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([7, 3]), torch.Size([28, 28]))
        >>> logits, x = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1.0, 0.0, 1.0])
        >>> log_prob = pv.likelihoods.Bernoulli(torch.nn.Identity())(logits).log_prob(x)
        >>> cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        >>> torch.allclose(log_prob, -cross_entropy)
        True
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def _distribution(self, logits: Tensor) -> Any:
        return dist.Bernoulli(logits=logits)


class Discrete(Likelihood):
    """Base of likelihoods of counts or levels. A count n is stored in the data as n times ``unit``.

    Subclasses implement the distribution of the counts.
    """

    _of_counts: Callable[..., Any]

    def __init__(self, network: nn.Module, unit: float, dim: int = -1) -> None:
        super().__init__(network, dim)
        if not 0 < unit < math.inf:
            raise ValueError(f"likelihoods.{type(self).__name__}: unit={unit} must be positive and finite")
        self.unit = unit

    def _distribution(self, *parameters: Tensor) -> Any:
        return Lattice(self._of_counts(*parameters), self.unit)

    def _check_at_least(self, least: int, **numbers: int) -> None:
        check_whole(**numbers)
        for name, number in numbers.items():
            if number < least:
                raise ValueError(f"likelihoods.{type(self).__name__}: {name}={number} must be at least {least}")


class Binomial(Discrete):
    r"""Binomial likelihood of successes in T trials, :math:`\prod_d \mathrm{Binomial}(x_d; T, \sigma(f_d(z)))`.

    For example, pixels of the 8 x 8 digits of :mod:`pyrovae.data` are counts from 0 to 16 divided by 16: use
    ``Binomial(network, 16, unit=1 / 16)``.

    Args:
        network: Returns the logits, ``(*batch, latent) -> (*batch, *event)``.
        total_count: Number of trials, T.
        unit: Value of one count in the data.

    Raises:
        TypeError: If ``total_count`` is not an integer.
        ValueError: If ``total_count`` or ``unit`` is not positive.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), with the probabilities of Pyro's ``Binomial``.

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = pv.likelihoods.Binomial(torch.nn.Identity(), 2, unit=0.5)
        >>> [round(float(likelihood(torch.zeros(1)).log_prob(torch.tensor([x])).exp()), 3) for x in (0.0, 0.5, 1.0)]
        [0.25, 0.5, 0.25]
    """

    def __init__(self, network: nn.Module, total_count: int, *, unit: float = 1.0) -> None:
        super().__init__(network, unit)
        self._check_at_least(1, total_count=total_count)
        self.total_count = total_count

    def _of_counts(self, logits: Tensor) -> Any:
        return BinomialDistribution(self.total_count, logits=logits)


class _Inflatable(Discrete):
    """Base of likelihoods of counts that may have excess zeros.

    With ``zero_inflated=True``, the last parameter from the network is the logit of the probability of an excess zero.
    """

    _of_rates: Callable[..., Any]

    def __init__(self, network: nn.Module, *, unit: float = 1.0, zero_inflated: bool = False, dim: int = -1) -> None:
        super().__init__(network, unit, dim)
        self.zero_inflated = zero_inflated
        self.num_parameters += zero_inflated

    def _of_counts(self, *parameters: Tensor) -> Any:
        if not self.zero_inflated:
            return self._of_rates(*parameters)
        *rates, gate_logits = parameters
        return dist.ZeroInflatedDistribution(self._of_rates(*rates), gate_logits=gate_logits)


class Poisson(_Inflatable):
    r"""Poisson likelihood of counts, :math:`p(x \mid z) = \prod_d \mathrm{Poisson}(x_d; e^{f_d(z)})`.

    With ``zero_inflated=True`` an entry is 0 with probability :math:`\pi_d(z)`, and otherwise a Poisson count.

    Args:
        network: Returns the log-rates, ``(*batch, latent) -> (*batch, *event)``. With zero inflation, the output is
            twice as large as the data in dimension ``dim``: log-rates, then logits of :math:`\pi`.
        unit: Value of one count in the data.
        zero_inflated: If true, the likelihood has excess zeros, and the network also returns the logits of :math:`\pi`.
        dim: Dimension along which the parameters are concatenated: -1, or -3 for the channels of images.

    Raises:
        ValueError: If ``unit`` is not positive, or ``dim`` is not negative.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), with the probabilities of Pyro's ``Poisson``;
        *Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing* (Lambert, 1992).

    Example:
        >>> import torch, pyrovae as pv
        >>> log_rate, logit = torch.tensor([3.0]).log(), torch.zeros(1)
        >>> plain = pv.likelihoods.Poisson(torch.nn.Identity())
        >>> inflated = pv.likelihoods.Poisson(torch.nn.Identity(), zero_inflated=True)
        >>> round(float(plain(log_rate).log_prob(torch.zeros(1)).exp()), 3)  # exp(-3)
        0.05
        >>> round(float(inflated(torch.cat([log_rate, logit])).log_prob(torch.zeros(1)).exp()), 3)  # (1 + exp(-3)) / 2
        0.525
    """

    def _of_rates(self, log_rate: Tensor) -> Any:
        return PoissonDistribution(log_rate)


class NegativeBinomial(_Inflatable):
    r"""Negative binomial likelihood of overdispersed counts, with mean m and variance :math:`m + m^2 / r`.

    .. math:: p(x \mid z) = \prod_d \mathrm{NegativeBinomial}(x_d; r_d(z), m_d(z) / (m_d(z) + r_d(z))).

    With ``zero_inflated=True`` an entry is 0 with probability :math:`\pi_d(z)`, and a negative binomial count
    otherwise. The mean counts of a single cell are proportional to its library size, the total count of the cell. The
    second example shows a decoder that gets the logarithm of the library size in addition to z.

    Args:
        network: ``(*batch, latent) -> (*batch, *event)`` with an output that is twice as large as the data in dimension
            ``dim``: log m, then log r. With zero inflation, the output is three times as large, and ends with the
            logits of :math:`\pi`.
        unit: Value of one count in the data.
        zero_inflated: If true, the likelihood has excess zeros, and the network also returns the logits of :math:`\pi`.
        dim: Dimension along which the parameters are concatenated: -1, or -3 for the channels of images.

    Raises:
        ValueError: If ``unit`` is not positive, or ``dim`` is not negative.

    Source:
        *Deep Generative Modeling for Single-Cell Transcriptomics* (Lopez et al., 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> p = pv.likelihoods.NegativeBinomial(torch.nn.Identity())(torch.tensor([4.0, 2.0]).log())
        >>> round(float(p.mean), 3), round(float(p.variance), 3)  # m, m + m^2 / r
        (4.0, 12.0)

        The mean of a gene is the library size of the cell times the fraction of the gene:

        >>> class Library(torch.nn.Module):
        ...     def __init__(self, network):
        ...         super().__init__()
        ...         self.network = network
        ...     def forward(self, z, log_size):
        ...         logits, log_dispersion = self.network(z).chunk(2, -1)
        ...         return torch.cat([logits.log_softmax(-1) + log_size, log_dispersion + 0 * log_size], -1)
        >>> class First(torch.nn.Sequential):  # an encoder that ignores the size
        ...     def forward(self, x, log_size):
        ...         return super().forward(x)
        >>> mlp = pv.networks.mlp
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.NegativeBinomial(Library(mlp(2, 16, 2 * 5))),
        ...     pv.posteriors.DiagonalNormal(First(pv.networks.log1p(mlp(5, 16, 2 * 2)))),
        ... )
        >>> counts = torch.poisson(torch.rand(50, 5) * 1000)
        >>> history = pv.fit(vae, (counts, counts.sum(-1, keepdim=True).log()), epochs=2, progress=False)
        >>> len(history.train)
        2
    """

    num_parameters = 2

    def _of_rates(self, log_mean: Tensor, log_dispersion: Tensor) -> Any:
        # At these limits a count is Poisson, or zero, to all digits; beyond them the dispersion overflows.
        limits = torch.finfo(log_dispersion.dtype)
        log_dispersion = log_dispersion.clamp(math.log(limits.tiny), 0.5 * math.log(limits.max))
        return NegativeBinomialDistribution(log_dispersion.exp(), logits=log_mean - log_dispersion)
