"""Posteriors: ``x -> q(z | x)``, with the batch shape of ``x`` and event shape ``(latent,)``.

A posterior is made from a network that returns the parameters of q, concatenated along the last dimension. A posterior
can also serve as a conditional prior ``p(z1 | z2)``, because its distribution depends on its input.
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
