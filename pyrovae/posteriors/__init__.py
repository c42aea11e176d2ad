"""Posteriors: ``x -> q(z | x)``, with the batch shape of ``x`` and event shape ``(latent,)``.

Each takes the network that gives its parameters side by side on the last dimension. As callables that return a
distribution given something, they serve as conditional priors ``p(z1 | z2)`` too.
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
