"""Figures of images: panels of samples and reconstructions, manifolds, and strips along a path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae.plots.style import PAGE, axes_for, panels_for, title


def images(
    panels: Mapping[str, Tensor],
    *,
    columns: int,
    stacked: bool = False,
    ax: Axes | None = None,
    axes: Any = None,
) -> Any:
    """Plot several panels of images, each with its name as title.

    Args:
        panels: Images by name of the panel. Grey images have shape ``(n, height, width)`` or
            ``(n, 1, height, width)``, and colour images have shape ``(n, 3, height, width)``. Values are bytes or lie
            in [0, 1]; other values are clipped.
        columns: Number of images per row of a panel.
        stacked: If true, panels are drawn below each other, for comparison column by column. If false, they are drawn
            next to each other, at most four in a row.
        ax: Axes for a single panel.
        axes: Axes for all panels, one for each; by default the axes of a new figure.

    Returns:
        ``ax`` or ``axes`` as given; by default an array with the axes of each panel.

    Raises:
        ValueError: If images have another shape, or the numbers of axes and panels differ.

    Example:
        >>> import torch, pyrovae as pv
        >>> axes = pv.plots.images({"noise": torch.rand(10, 3, 8, 8), "paper": torch.zeros(10, 8, 8)}, columns=5)
        >>> [ax.get_title() for ax in axes]
        ['noise', 'paper']
    """
    tiles = {name: _tiled(_pixels(name, batch), columns) for name, batch in panels.items()}
    per_row = 1 if stacked else min(max(len(tiles), 1), 4)
    width = PAGE / per_row if stacked or per_row > 1 else PAGE / 2
    aspect = max((tile.shape[0] / tile.shape[1] for tile in tiles.values()), default=1.0)
    lines = max((1 + len(name) // max(8, int(width / 0.085)) for name in tiles), default=1)
    with panels_for(list(tiles), ax, axes, per_row, (width, width * aspect + 0.08 + 0.17 * lines)) as (given, chosen):
        for panel, (name, tile) in zip(chosen, tiles.items(), strict=True):
            _show(panel, tile)
            panel.set_axis_off()
            title(panel, name, loc="left" if stacked else "center")
    return given


def manifold(images: Tensor, *, x: Tensor | None = None, y: Tensor | None = None, ax: Axes | None = None) -> Axes:
    """Plot the data manifold of two latent dimensions: images of a grid of codes, without gaps between the images.

    Args:
        images: Images in [0, 1]; the first row is on top. Grey images have shape ``(rows, columns, height, width)``,
            and colour images have shape ``(rows, columns, 3, height, width)``.
        x: Values of the first latent dimension, shape ``(columns,)``, written below some columns.
        y: Values of the second latent dimension, shape ``(rows,)``, from top to bottom, written beside some rows.
        ax: Axes to draw on; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If the images have another shape.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), figure 4.

    Example:
        >>> import torch, pyrovae as pv
        >>> ax = pv.plots.manifold(torch.rand(5, 5, 8, 8), x=torch.linspace(-2, 2, 5))
        >>> ax.get_xlabel()
        '$z_1$'
    """
    if images.ndim not in (4, 5):
        raise ValueError(
            f"The images of a manifold must have shape (rows, columns, height, width) or "
            f"(rows, columns, 3, height, width), got {tuple(images.shape)}. Decode a grid of codes."
        )
    rows, columns = images.shape[:2]
    picture = _tiled(_pixels("the manifold", images.flatten(0, 1)), columns, gap=0)
    height, width = picture.shape[0] / rows, picture.shape[1] / columns
    size = 4.8 / max(picture.shape[:2])
    with axes_for(ax, (size * picture.shape[1] + 0.5, size * picture.shape[0] + 0.5)) as ax:
        ax.spines[:].set_visible(True)
        _show(ax, picture, extent=(0, columns, rows, 0), aspect=height / width)
        for axis, values, name in ((ax.xaxis, x, "$z_1$"), (ax.yaxis, y, "$z_2$")):
            places = np.array([], int) if values is None else np.linspace(0, len(values) - 1, 5).round().astype(int)
            axis.set_ticks(places + 0.5, [] if values is None else [_number(values[place]) for place in places])
            axis.set_label_text("" if values is None else name)
        ax.tick_params(length=2)
    return ax


def strips(
    rows: Mapping[str, Tensor],
    *,
    marks: Mapping[int, str] | None = None,
    ax: Axes | None = None,
    axes: Any = None,
) -> Any:
    """Plot rows of images, such as interpolations or traversals. The name of a row stands to the left of its images.

    Args:
        rows: Images in [0, 1] by name of the row. Grey images have shape ``(n, height, width)``, and colour images
            have shape ``(n, 3, height, width)``. All rows have the same shape.
        marks: Text above columns, by index of the column.
        ax: Axes for a single row.
        axes: Axes for all rows, one for each; by default the axes of a new figure.

    Returns:
        ``ax`` or ``axes`` as given; by default an array with the axes of each row.

    Raises:
        ValueError: If the shape of the images is not supported or differs between rows, or if the numbers of axes and
            rows differ.

    Example:
        >>> import torch, pyrovae as pv
        >>> axes = pv.plots.strips({"from 0 to 1": torch.rand(7, 8, 8)}, marks={0: "0", 6: "1"})
        >>> axes[0].get_ylabel()
        'from 0 to 1'
    """
    pictures = {name: _pixels(name, batch) for name, batch in rows.items()}
    shapes = {name: tuple(batch.shape) for name, batch in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"The images of all rows must have the same shape, got {shapes}. Crop or pad them.")
    n, height, width = next(iter(pictures.values())).shape[:3] if pictures else (1, 1, 1)
    cell = (PAGE - 0.2 - 0.075 * max(map(len, rows), default=0)) / n  # the names take the rest of the width
    size, marked = (PAGE, cell * height / width + 0.08), (0.0, 0.25 if marks else 0.0)
    with panels_for(list(rows), ax, axes, 1, size, marked) as (given, chosen):
        for panel, (name, batch) in zip(chosen, pictures.items(), strict=True):
            _show(panel, _tiled(batch, n, gap=0))
            panel.set_ylabel(name, rotation=0, ha="right", va="center")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_color("0.8")
        top = chosen[0]
        top.xaxis.tick_top()
        top.set_xticks([(i + 0.5) * width - 0.5 for i in marks or {}], list((marks or {}).values()))
        top.tick_params(length=0)
    return given


def _number(value: Tensor) -> str:
    return f"{float(value):.1f}".replace("-", "\N{MINUS SIGN}")


def _pixels(name: str, batch: Tensor) -> np.ndarray:
    """Return images as pixels in [0, 1], shape ``(n, height, width, 1 or 3)``."""
    found = tuple(batch.shape)
    if batch.ndim == 3:
        batch = batch.unsqueeze(1)
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise ValueError(
            f"The images of {name!r} must have shape (n, height, width) or (n, 3, height, width), got {found}. "
            f"Reshape them."
        )
    values = batch.detach().cpu()
    values = values / 255 if values.dtype == torch.uint8 else values
    return values.float().clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _tiled(pixels: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Return a picture of all images, ``columns`` in each row, with grey lines of ``gap`` pixels around each image."""
    n, height, width, channels = pixels.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    picture = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 0.5, np.float32)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        picture[top : top + height, left : left + width] = image
    return picture


def _show(ax: Axes, picture: np.ndarray, **options: Any) -> None:
    """Show a picture. In a grey picture, a value is the amount of ink on paper: 0 is white and 1 is black."""
    grey = picture.shape[-1] == 1
    shades: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 1} if grey else {}
    ax.imshow(picture[..., 0] if grey else picture, interpolation="nearest", **shades, **options)
