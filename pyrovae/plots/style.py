"""The style that all figures share: sizes for print, a colour-blind-safe palette, axes, panels and legends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

PAGE = 6.5  # width of a page's text, inches; figures are drawn at the width at which they are printed
# The first seven are those of Okabe and Ito (2008); three more keep the classes of ten digits apart.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A", "#999999", "#C7CC00"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
PRINT: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def color(i: int) -> str:
    """Return the colour of the i-th model or class."""
    return COLORS[i % len(COLORS)]


def marker(i: int) -> str:
    """Return the marker of the i-th model or class; colours and markers together distinguish 40 models or classes."""
    return MARKERS[i % len(MARKERS)]


@contextmanager
def axes_for(ax: Axes | None, size: tuple[float, float] = (4.8, 3.4)) -> Iterator[Axes]:
    """Yield the given axes unchanged or, if ``ax`` is None, new axes with the size and fonts of a printed figure."""
    if ax is not None:
        yield ax
        return
    with plt.rc_context(PRINT):
        ax = plt.subplots(figsize=size, layout="constrained")[1]
        ax.spines[["top", "right"]].set_visible(False)
        yield ax
        ax.tick_params(labelsize=PRINT["xtick.labelsize"])


@contextmanager
def panels_for(
    names: Sequence[str],
    ax: Axes | None,
    axes: Any,
    columns: int,
    size: tuple[float, float],
    extra: tuple[float, float] = (0.0, 0.0),
) -> Iterator[tuple[Any, list[Axes]]]:
    """Make the axes of a figure with several panels, or check given axes, and yield two values.

    The first value is what a plotting function returns: the argument ``ax`` or ``axes`` as given, or an array of new
    axes if both are None. The second value is a list with one axes for each panel.

    Args:
        names: Names of the panels, in order.
        ax: Axes for a single panel.
        axes: Axes for all panels, in an array or a sequence of any shape.
        columns: Number of panels per row of a new figure.
        size: Width and height of a panel of a new figure, in inches.
        extra: Additional width and height of a new figure, for a legend, in inches.

    Raises:
        ValueError: If there are no panels, or the numbers of axes and panels differ.
    """
    if not names:
        raise ValueError("There is nothing to plot. Pass at least one panel, by its name.")
    if ax is not None or axes is not None:
        given = list(np.atleast_1d(np.asarray(ax if axes is None else axes, dtype=object)).flat)
        if len(given) != len(names) or (ax is not None and axes is not None):
            raise ValueError(f"There are {len(names)} panels but {len(given)} axes. Pass one axes for each panel.")
        yield (ax if axes is None else axes), given
        return
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    with plt.rc_context(PRINT):
        figure_size = (columns * size[0] + extra[0], rows * size[1] + extra[1])
        _, grid = plt.subplots(rows, columns, figsize=figure_size, squeeze=False, layout="constrained")
        for unused in grid.flat[len(names) :]:
            unused.remove()
        panels = grid.flatten()[: len(names)]
        yield panels, list(panels)
        for panel in panels:
            panel.tick_params(labelsize=PRINT["xtick.labelsize"])


def wrapped(ax: Axes, text: str, character: float = 0.075) -> str:
    """Return the text with line breaks, so that its lines fit the width of the axes.

    The argument ``character`` is the width of a character in inches.
    """
    width = ax.get_window_extent().width / ax.figure.dpi
    return textwrap.fill(text, max(8, int(width / character)))


def title(ax: Axes, name: str, *, loc: Any = "center") -> None:
    """Write the title of a panel, broken into lines that fit the panel's width."""
    ax.set_title(wrapped(ax, name, 0.085), loc=loc)


def legend_above(ax: Axes) -> None:
    """Put the legend above the axes, where it covers no data."""
    labels = ax.get_legend_handles_labels()[1]
    if labels:
        width = ax.get_window_extent().width / ax.figure.dpi  # inches
        columns = max(1, min(len(labels), int(width / (0.5 + 0.065 * max(map(len, labels))))))
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2)


def legend_beside(axes: Sequence[Axes], handles: Mapping[str, Any], name: str | None = None) -> None:
    """Put a legend to the right of the first row of axes, where it covers no data.

    The legend has several columns if it has more than three entries and a single column would be higher than the axes.
    """
    tops = [ax.get_position().y1 for ax in axes]
    row = [ax for ax, top in zip(axes, tops, strict=True) if top > max(tops) - 1e-3]
    last = max(row, key=lambda ax: ax.get_position().x1)
    lines = max(3, int(last.get_window_extent().height / last.figure.dpi / 0.19))
    last.legend(
        list(handles.values()),
        list(handles),
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.05),
        title=name,
        ncols=-(-len(handles) // lines),
        columnspacing=0.8,
        handletextpad=0.2,
    )
