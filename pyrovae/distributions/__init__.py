"""Distributions that Pyro does not have, or not so that every value can be scored."""

from pyrovae.distributions.discrete import DiscretizedLogistic, Lattice
from pyrovae.distributions.exact import Beta, ContinuousBernoulli, NegativeBinomial
from pyrovae.distributions.reparameterized import MultivariateNormal, NormalizingFlow

__all__ = [
    "Beta",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Lattice",
    "MultivariateNormal",
    "NegativeBinomial",
    "NormalizingFlow",
]
