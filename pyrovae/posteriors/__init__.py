"""Posteriors: ``x -> q(z | x)``, with the batch shape of ``x`` and event shape ``(latent,)``.

Each takes the network that returns its parameters, concatenated along the last dimension. A posterior returns a
distribution that depends on its input, so it can also serve as a conditional prior ``p(z1 | z2)``.
"""

from pyrovae.posteriors.categorical import OneHotCategorical
from pyrovae.posteriors.elementwise import DiagonalNormal, Laplace, StudentT
from pyrovae.posteriors.flow import InverseAutoregressiveFlow, NormalizingFlow
from pyrovae.posteriors.multivariate import MultivariateNormal
from pyrovae.posteriors.refinement import SemiAmortized

__all__ = [
    "DiagonalNormal",
    "InverseAutoregressiveFlow",
    "Laplace",
    "MultivariateNormal",
    "NormalizingFlow",
    "OneHotCategorical",
    "SemiAmortized",
    "StudentT",
]
