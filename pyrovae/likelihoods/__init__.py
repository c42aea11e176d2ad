"""Likelihoods: ``z -> p(x | z)``, with the batch shape of ``z`` and the event shape of ``x``.

Each likelihood is named after the Pyro distribution that it returns. Its first argument is the network that maps ``z``
to the parameters of this distribution. If there are several parameters, the network returns them concatenated along
dimension ``dim``. The default is -1; pass -3 for the channels of images.
"""

from pyrovae.likelihoods.continuous import Beta, ContinuousBernoulli, Laplace, Normal, StudentT
from pyrovae.likelihoods.counts import Bernoulli, Binomial, NegativeBinomial, Poisson
from pyrovae.likelihoods.joint import Joint
from pyrovae.likelihoods.levels import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from pyrovae.likelihoods.masked import Masked

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Joint",
    "Laplace",
    "Masked",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
]
