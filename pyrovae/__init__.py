"""Variational autoencoders as ordinary Pyro programs.

A VAE is three conditional distributions: a prior and a likelihood make the ``model``, an amortized posterior makes the
``guide``. Objectives, training and evaluation take any ``(model, guide)``.
"""

import logging

from pyrovae import (
    autoencoders,
    data,
    evaluation,
    flows,
    likelihoods,
    networks,
    objectives,
    parallel,
    plots,
    posteriors,
    priors,
)
from pyrovae.models import bayesian
from pyrovae.models.bayesian import BayesianVAE
from pyrovae.models.hierarchical import HierarchicalVAE
from pyrovae.models.semi_supervised import SemiSupervisedVAE
from pyrovae.models.vae import VAE
from pyrovae.training import SVI, CheckpointError, DivergenceError, History, fit, load, save
from pyrovae.versions import __version__ as __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged is seen where someone asks for it

__all__ = [
    "SVI",
    "VAE",
    "BayesianVAE",
    "CheckpointError",
    "DivergenceError",
    "HierarchicalVAE",
    "History",
    "SemiSupervisedVAE",
    "autoencoders",
    "bayesian",
    "data",
    "evaluation",
    "fit",
    "flows",
    "likelihoods",
    "load",
    "networks",
    "objectives",
    "parallel",
    "plots",
    "posteriors",
    "priors",
    "save",
]
