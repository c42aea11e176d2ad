"""Figures from results: each function draws what training or evaluation returned, and neither trains nor evaluates.

Every function draws on ``ax=``, or on ``axes=`` if it has several panels, and returns what was given. Without axes it
makes a figure in the size in which it is printed, with text of 8 to 10 points, and returns the axes: one, or an array
with one for each panel. ``axes[0].figure.savefig("figure.pdf")`` writes it. The palette is that of Okabe and Ito, which
readers with a colour vision deficiency can tell apart; markers and line styles differ as well.

:func:`explorer` alone runs a model: it writes a page in which the likelihood runs again, without Python.
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
