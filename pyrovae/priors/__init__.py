"""Priors: ``() -> p(z)``, a distribution with event shape ``(latent,)``."""

from pyrovae.priors.flow import NormalizingFlow
from pyrovae.priors.mixtures import GaussianMixture, VampPrior
from pyrovae.priors.normal import Fixed, StandardNormal

__all__ = ["Fixed", "GaussianMixture", "NormalizingFlow", "StandardNormal", "VampPrior"]
