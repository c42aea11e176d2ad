r"""Training objectives beyond Pyro's own, as subclasses of :class:`pyro.infer.ELBO` that share one log-weight function.

An objective is *minimized*. It is minus a bound in nats, summed over the data and multiplied by the scale of the data
plate. All objectives take any pair (model, guide): ``SVI(model, guide, optim, loss=objective)``,
``objective(model, guide)(x)`` or ``pyrovae.fit(..., objective=objective)``. Your own objective is a subclass of
:class:`WeightObjective`.

The options that objectives share ( ``max_plate_nesting``, ``vectorize_particles``, ``plate``, ``retain_graph``) are
described once, at :class:`WeightObjective`.
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
