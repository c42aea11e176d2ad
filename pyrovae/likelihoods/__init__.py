"""Likelihoods: ``z -> p(x | z)``, with the batch shape of ``z`` and the event shape of ``x``.

Each is named after the Pyro distribution that it returns, and takes the network that maps ``z`` to its parameters, side
by side on the last dimension where there are several.
"""

from pyrovae.likelihoods.continuous import Beta, ContinuousBernoulli, Laplace, Normal, StudentT
from pyrovae.likelihoods.discrete import (
    Bernoulli,
    Binomial,
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    NegativeBinomial,
    Poisson,
)
from pyrovae.likelihoods.masked import Masked

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Laplace",
    "Masked",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
]
