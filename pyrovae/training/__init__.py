"""Training by stochastic variational inference, with any Pyro ELBO and with data that stay on the device."""

from pyrovae.training.checkpoints import CheckpointError
from pyrovae.training.fit import fit
from pyrovae.training.history import History
from pyrovae.training.nonfinite import DivergenceError
from pyrovae.training.saving import load, save
from pyrovae.training.svi import SVI

__all__ = ["SVI", "CheckpointError", "DivergenceError", "History", "fit", "load", "save"]
