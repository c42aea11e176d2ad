"""Variational autoencoders as ordinary Pyro programs.

A VAE is three conditional distributions: a prior and a likelihood make the ``model``, an amortized posterior makes the
``guide``. Objectives, training and evaluation take any ``(model, guide)``.
"""

from pyrovae import data, evaluation, likelihoods, networks, objectives, plots, posteriors, priors
from pyrovae.training import History, fit
from pyrovae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "History",
    "data",
    "evaluation",
    "fit",
    "likelihoods",
    "networks",
    "objectives",
    "plots",
    "posteriors",
    "priors",
]
