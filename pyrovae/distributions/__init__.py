"""Distributions that Pyro lacks, and numerically exact versions of some of Pyro's distributions."""

from pyrovae.distributions.columns import Columns, entrywise
from pyrovae.distributions.counts import Binomial, NegativeBinomial, Poisson
from pyrovae.distributions.discrete import DiscretizedLogistic, Lattice
from pyrovae.distributions.flow_support import support_of_flow
from pyrovae.distributions.heavy_tails import StudentT
from pyrovae.distributions.mixtures import mixture
from pyrovae.distributions.reparameterized import MultivariateNormal, NormalizingFlow
from pyrovae.distributions.unit_interval import Beta, ContinuousBernoulli

__all__ = [
    "Beta",
    "Binomial",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Lattice",
    "MultivariateNormal",
    "NegativeBinomial",
    "NormalizingFlow",
    "Poisson",
    "StudentT",
    "entrywise",
    "mixture",
    "support_of_flow",
]
