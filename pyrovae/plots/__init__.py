"""Figures from results: each function takes what training or evaluation returned, and neither trains nor evaluates.

:func:`explorer` alone runs a model: it writes a page in which the likelihood runs again, without Python.
"""

from pyrovae.plots.figures import aggregate_posteriors, bounds, images, learning_curves
from pyrovae.plots.latents import codes, manifold, strips
from pyrovae.plots.page import explorer

__all__ = [
    "aggregate_posteriors",
    "bounds",
    "codes",
    "explorer",
    "images",
    "learning_curves",
    "manifold",
    "strips",
]
