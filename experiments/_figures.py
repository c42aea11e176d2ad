"""The figures of the experiments: their style, and the figure behind the axes that ``pyrovae.plots`` returns."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pyrovae.plots import style

Arguments = ParamSpec("Arguments")


def figure_of(axes: Any) -> Figure:
    """Return the figure of an axes object, or of an array of axes."""
    figure: Figure = np.asarray(axes, dtype=object).flat[0].figure
    return figure


def printed(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Let a function draw its figure in the style of ``pyrovae.plots``, with letters for a figure as wide as a page."""

    @wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with plt.rc_context({**style.PRINT, "axes.spines.top": False, "axes.spines.right": False}):
            figure = draw(*args, **kwargs)
        for ax in figure.axes:
            ax.tick_params(which="both", labelsize=style.PRINT["xtick.labelsize"])
        return figure

    return drawn
