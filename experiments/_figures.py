"""Figures as files: the figure that a function of ``pyrovae.plots`` drew on."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def figure_of(axes: Any) -> Figure:
    """Return the figure of axes, or of an array of axes."""
    figure: Figure = np.asarray(axes, dtype=object).flat[0].figure
    return figure
