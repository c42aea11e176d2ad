"""The matplotlib figure behind the return value of a function of ``pyrovae.plots``."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def figure_of(axes: Any) -> Figure:
    """Return the figure of an axes object, or of an array of axes."""
    figure: Figure = np.asarray(axes, dtype=object).flat[0].figure
    return figure
