"""Figures from results of training and evaluation; the plotting functions neither train nor evaluate.

Every function draws on ``ax=``, or on ``axes=`` if it has several panels, and returns these axes. Without given axes,
it creates a figure in printed size, with text of 8 to 10 points, and returns the new axes: a single object, or an array
with one entry for each panel. ``axes[0].figure.savefig("figure.pdf")`` writes the figure. The first seven
colours are those of Okabe and Ito, which readers with a colour vision deficiency can tell apart, and three more colours
follow. Markers and line styles differ as well.

Only :func:`explorer` runs a model: it writes an HTML page in which the likelihood runs without Python.
"""

from pyrovae.plots.checks import calibration, posterior_predictive
from pyrovae.plots.curves import bounds, differences, learning_curves
from pyrovae.plots.latents import aggregate_posteriors, codes
from pyrovae.plots.page import explorer
from pyrovae.plots.pictures import images, manifold, strips

__all__ = [
    "aggregate_posteriors",
    "bounds",
    "calibration",
    "codes",
    "differences",
    "explorer",
    "images",
    "learning_curves",
    "manifold",
    "posterior_predictive",
    "strips",
]
