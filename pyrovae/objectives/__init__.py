r"""Training objectives beyond Pyro's own, as :class:`pyro.infer.ELBO` classes over the one log-weight function.

An objective is *minimized*: each is minus a bound in nats, summed over the data with their plate's scale outside. All
take any (model, guide), as ``SVI(model, guide, optim, loss=objective)``, as ``objective(model, guide)(x)`` and as
``pyrovae.fit(..., objective=objective)``. An objective of your own is a subclass of :class:`WeightObjective`.
"""

from pyrovae.objectives.base import WeightObjective
from pyrovae.objectives.beta import BetaELBO
from pyrovae.objectives.beta_tc import BetaTC
from pyrovae.objectives.free_bits import FreeBits
from pyrovae.objectives.grouped_bounds import CIWAE, MIWAE, PIWAE
from pyrovae.objectives.iwae import IWAE
from pyrovae.objectives.mmd import MMD
from pyrovae.objectives.renyi import Renyi
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep

__all__ = [
    "CIWAE",
    "IWAE",
    "MIWAE",
    "MMD",
    "PIWAE",
    "BetaELBO",
    "BetaTC",
    "FreeBits",
    "Renyi",
    "ReweightedWakeSleep",
    "WeightObjective",
]
