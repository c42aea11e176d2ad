"""Figures of a latent space: images of codes, over a plane or along a path, and the codes themselves."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def manifold(images: Tensor, *, x: Tensor | None = None, y: Tensor | None = None) -> Figure:
    """Draws the images of a grid of codes, side by side and without gaps: the data manifold for two latent dimensions.

    Args:
        images: Grey images in [0, 1], shape ``(rows, columns, height, width)``, the first row on top.
        x: Values of the first dimension, shape ``(columns,)``, written below some columns.
        y: Values of the second, shape ``(rows,)``, from top to bottom, written beside some rows.

    Returns:
        A new figure.

    Raises:
        ValueError: If the images do not have shape ``(rows, columns, height, width)``.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), figure 4.

    Example:
        >>> import torch, pyrovae as pv
        >>> figure = pv.plots.manifold(torch.rand(5, 5, 8, 8), x=torch.linspace(-2, 2, 5))
        >>> figure.axes[0].get_xlabel()
        '$z_1$'
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape (rows, columns, height, width), got {tuple(images.shape)}")
    rows, columns, height, width = images.shape
    picture = images.detach().cpu().transpose(1, 2).reshape(rows * height, columns * width).numpy()
    size = 6.0 / max(picture.shape)
    figure, ax = plt.subplots(figsize=(size * columns * width + 0.5, size * rows * height + 0.5), layout="constrained")
    ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1, extent=(0, columns, rows, 0), aspect=height / width)
    for axis, values, name in ((ax.xaxis, x, "$z_1$"), (ax.yaxis, y, "$z_2$")):
        places = np.array([], int) if values is None else np.linspace(0, len(values) - 1, 5).round().astype(int)
        axis.set_ticks(places + 0.5, [] if values is None else [f"{float(values[place]):.1f}" for place in places])
        axis.set_label_text("" if values is None else name)
    ax.tick_params(length=2, labelsize=8)
    return figure


def strips(rows: Mapping[str, Tensor], *, marks: Mapping[int, str] | None = None) -> Figure:
    """Draws rows of images, each with its name at its left: interpolations, traversals, steps of any kind.

    Args:
        rows: Grey images in [0, 1], shape ``(n, height, width)``, by name.
        marks: What stands above some columns, by their index.

    Returns:
        A new figure.

    Raises:
        ValueError: If some images do not have shape ``(n, height, width)``, or not that of the other rows.

    Example:
        >>> import torch, pyrovae as pv
        >>> figure = pv.plots.strips({"from 0 to 1": torch.rand(7, 8, 8)}, marks={0: "0", 6: "1"})
        >>> figure.axes[0].get_ylabel()
        'from 0 to 1'
    """
    for name, batch in rows.items():
        expected = next(iter(rows.values())).shape
        if batch.ndim != 3 or batch.shape != expected:
            raise ValueError(
                f"images of {name!r} must have shape (n, height, width), the same in all rows, got {tuple(batch.shape)}"
            )
    n, height, width = next(iter(rows.values())).shape
    cell = 7.0 / n
    size = (8.2, len(rows) * (cell * height / width + 0.08) + 0.3)
    figure, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="constrained")
    for ax, (name, batch) in zip(axes.flat, rows.items(), strict=True):
        picture = batch.detach().cpu().transpose(0, 1).reshape(height, n * width).numpy()
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("0.8")
    top = axes[0, 0]
    top.xaxis.tick_top()
    top.set_xticks([(i + 0.5) * width - 0.5 for i in marks or {}], list((marks or {}).values()), fontsize=8)
    top.tick_params(length=0)
    return figure


def codes(panels: Mapping[str, tuple[Tensor, Tensor]], *, columns: int = 3) -> Figure:
    """Draws codes in the plane, coloured by class: two latent dimensions, or a projection of more.

    Args:
        panels: Points, shape ``(n, 2)``, and their classes, 0 to 9, shape ``(n,)``, by name.
        columns: Panels per row.

    Returns:
        A new figure.

    Raises:
        ValueError: If some points do not have shape ``(n, 2)``, or some classes not ``(n,)``.

    Example:
        >>> import torch, pyrovae as pv
        >>> figure = pv.plots.codes({"VAE": (torch.randn(50, 2), torch.arange(50) % 10)})
        >>> figure.axes[0].get_title()
        'VAE'
    """
    for name, (points, labels) in panels.items():
        if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
            shapes = [tuple(points.shape), tuple(labels.shape)]
            raise ValueError(f"points and classes of {name!r} must have shapes (n, 2) and (n,), got {shapes}")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.3 * columns + 0.6, 3.3 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, (points, labels)) in zip(axes.flat, panels.items(), strict=False):
        z, y = points.detach().cpu().numpy(), labels.detach().cpu().numpy()
        for label in np.unique(y):
            ax.scatter(*z[y == label].T, s=7, color=f"C{label}", linewidths=0, alpha=0.8, rasterized=True)
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=10)
    classes = sorted({int(label) for _, labels in panels.values() for label in labels.unique()})
    for label in classes:
        axes[0, 0].scatter([], [], s=20, color=f"C{label}", label=str(label))
    figure.legend(loc="outside right center", frameon=False, title="class")
    return figure
