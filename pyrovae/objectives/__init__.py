r"""Training objectives in addition to Pyro's own, all of them subclasses of :class:`pyro.infer.ELBO`.

The value of an objective is *minimized*. It is minus a bound in nats, summed over the data of the batch and multiplied
by the scale of the data plate. All objectives take any pair (model, guide):
``SVI(model, guide, optim, loss=objective)``, ``objective(model, guide)(x)`` or
``pyrovae.fit(..., objective=objective)``. To write your own objective, subclass :class:`WeightObjective`.

Most objectives take the options ``max_plate_nesting``, ``vectorize_particles``, ``plate`` and ``retain_graph``. The
docstring of :class:`WeightObjective` describes them.
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
