"""Training by stochastic variational inference: any Pyro ELBO, one fused optimizer, data that stay on the device."""

from pyrovae.training.history import History
from pyrovae.training.loop import fit

__all__ = ["History", "fit"]
