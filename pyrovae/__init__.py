"""Variational autoencoders as ordinary Pyro programs.

A VAE consists of three distributions. A prior and a likelihood make up the ``model``, and an amortized posterior makes
up the ``guide``. Objectives, training and evaluation take any pair ``(model, guide)``.

``pyrovae.data``, ``pyrovae.evaluation`` and ``pyrovae.plots`` depend on large packages such as torchvision, xarray and
matplotlib. These modules are imported when they are first used, so that ``import pyrovae`` is fast.
"""

import logging
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from pyrovae import autoencoders, flows, likelihoods, networks, objectives, parallel, posteriors, priors
from pyrovae.models import bayesian
from pyrovae.models.bayesian import BayesianVAE
from pyrovae.models.hierarchical import HierarchicalVAE
from pyrovae.models.semi_supervised import SemiSupervisedVAE
from pyrovae.models.vae import VAE
from pyrovae.training import SVI, CheckpointError, DivergenceError, History, fit, load, save
from pyrovae.versions import __version__ as __version__

if TYPE_CHECKING:
    from pyrovae import data, evaluation, guides, plots, testing

logging.getLogger(__name__).addHandler(logging.NullHandler())  # log records are shown only if the user enables logging

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
    "guides",
    "likelihoods",
    "load",
    "networks",
    "objectives",
    "parallel",
    "plots",
    "posteriors",
    "priors",
    "save",
    "testing",
]

_LAZY = ("data", "evaluation", "guides", "plots", "testing")


def __getattr__(name: str) -> ModuleType:
    """Import a lazy submodule when it is first used."""
    if name in _LAZY:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
