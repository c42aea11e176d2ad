"""Training by stochastic variational inference: any Pyro ELBO, one fused optimizer, data that stay on the device."""

from pyrovae.training.checkpoints import CheckpointError
from pyrovae.training.fit import fit
from pyrovae.training.history import History
from pyrovae.training.nonfinite import DivergenceError
from pyrovae.training.saving import load, save

__all__ = ["CheckpointError", "DivergenceError", "History", "fit", "load", "save"]
