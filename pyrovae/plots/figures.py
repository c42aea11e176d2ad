"""Figures of training and evaluation: learning curves, bounds, images, aggregate posteriors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

if TYPE_CHECKING:
    from pyrovae.training import History


def learning_curves(histories: Mapping[str, History], ax: Axes | None = None) -> Axes:
    """Draws the bound on training and validation data against the epoch, for each of several runs.

    Where the KL weight grew, a dotted line marks the epoch that reached 1; before it the training bound is weighted.

    Args:
        histories: What :func:`pyrovae.fit` returned, by name.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> import pyrovae as pv
        >>> history = pv.History("Trace_ELBO", train=[-44.0, -30.5], valid=[-36.0, -29.0])
        >>> ax = pv.plots.learning_curves({"VAE": history})
        >>> [line.get_label() for line in ax.lines]
        ['VAE, train', 'VAE, valid']
    """
    ax = _axes(ax)
    best = []
    for i, (name, history) in enumerate(histories.items()):
        epochs = np.arange(1, len(history.train) + 1)
        ax.plot(epochs, history.train, color=f"C{i}", linestyle="--", linewidth=1, label=f"{name}, train")
        if history.valid:
            ax.plot(epochs, history.valid, color=f"C{i}", label=f"{name}, valid")
        best += (history.valid or history.train)[len(history.train) // 10 :] + history.train[len(history.train) // 10 :]
    for warmup in {sum(weight < 1 for weight in history.kl_weight) for history in histories.values()} - {0}:
        ax.axvline(warmup + 1, color="0.6", linestyle=":", linewidth=1, zorder=0, label="KL weight reaches 1")
    if best:  # the first steps would squeeze all the rest into a line
        margin = 0.05 * (max(best) - min(best)) or 1.0
        ax.set_ylim(min(best) - margin, max(best) + margin)
    ax.set(xlabel="epoch", ylabel="bound (nats per datum)")
    if len(histories) > 2:  # so many lines leave no room among them
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    else:
        ax.legend(frameon=False)
    return ax


def bounds(results: Mapping[str, xr.Dataset], ax: Axes | None = None) -> Axes:
    """Draws IWAE_k against the number of draws k, with its errors, for each of several models.

    Error bars are 95% Monte Carlo intervals, bands one standard error over the data. The left end, k = 1, is the ELBO;
    the right end is the estimate of log p(x).

    Args:
        results: What :func:`pyrovae.evaluation.evaluate` returned, by name.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(10, 4), num_samples=50, seed=0)
        >>> pv.plots.bounds({"VAE": results}).get_xlabel()
        'draws $k$'
    """
    ax = _axes(ax)
    for i, (name, result) in enumerate(results.items()):
        k, mean = result.k.values, result.iwae.mean("datum").values
        sampling_error = (result.iwae.std("datum", ddof=1) / np.sqrt(result.sizes["datum"])).values
        monte_carlo_error = np.sqrt((result.iwae_mcse**2).sum("datum")).values / result.sizes["datum"]
        ax.fill_between(k, mean - sampling_error, mean + sampling_error, color=f"C{i}", alpha=0.15, linewidth=0)
        ax.errorbar(k, mean, 1.96 * monte_carlo_error, color=f"C{i}", marker="o", markersize=4, capsize=3, label=name)
    ax.set(xscale="log", xlabel="draws $k$", ylabel="IWAE$_k$ (nats per datum)")
    ax.legend(frameon=False, loc="lower right")
    return ax


def images(panels: Mapping[str, Tensor], *, columns: int, stacked: bool = False) -> Figure:
    """Draws panels of grey images in [0, 1], each with its name.

    Args:
        panels: Images, shape ``(n, height, width)``, by name.
        columns: Images per row of a panel.
        stacked: Whether the panels stand under each other, to be compared column by column, or side by
            side, five a row.

    Returns:
        A new figure.

    Raises:
        ValueError: If some images do not have shape ``(n, height, width)``.

    Example:
        >>> import torch, pyrovae as pv
        >>> figure = pv.plots.images({"noise": torch.rand(10, 8, 8), "paper": torch.zeros(10, 8, 8)}, columns=5)
        >>> [ax.get_title() for ax in figure.axes]
        ['noise', 'paper']
    """
    for name, batch in panels.items():
        if batch.ndim != 3:
            raise ValueError(f"images of {name!r} must have shape (n, height, width), got {tuple(batch.shape)}")
    tiles = {
        name: make_grid(batch.detach().cpu().float().unsqueeze(1), nrow=columns, padding=1, pad_value=0.5)[0].numpy()
        for name, batch in panels.items()
    }
    height, width = next(iter(tiles.values())).shape
    per_row = 1 if stacked else min(len(tiles), 5)
    rows = -(-len(tiles) // per_row)
    panel = (7.0, 7.0 * height / width + 0.25) if stacked else (3.5, 3.5 * height / width + 0.3)
    size = (per_row * panel[0], rows * panel[1])
    figure, axes = plt.subplots(rows, per_row, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, tile) in zip(axes.flat, tiles.items(), strict=False):
        ax.imshow(tile, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(name, fontsize=10, loc="left" if stacked else "center")
    return figure


def aggregate_posteriors(draws: Mapping[str, tuple[Tensor, Tensor]], *, columns: int = 3) -> Figure:
    """Draws the aggregate posterior against the prior, for each of several models.

    Each panel shows the first two principal components of the aggregate posterior, the average of q(z | x) over data.
    Where prior and aggregate posterior part, the prior draws latents that the likelihood has never seen.

    Args:
        draws: Draws from the aggregate posterior and from the prior, both of shape ``(n, latent)``, by name.
        columns: Panels per row.

    Returns:
        A new figure.

    Raises:
        ValueError: If some draws do not have shape ``(n, latent)`` with at least two latent dimensions.

    Source:
        *ELBO Surgery: Yet Another Way to Carve Up the Variational Evidence Lower Bound* (Hoffman and Johnson, 2016), on
        what it means that the two differ.

    Example:
        >>> import torch, pyrovae as pv
        >>> figure = pv.plots.aggregate_posteriors({"VAE": (0.5 * torch.randn(100, 3), torch.randn(100, 3))})
        >>> figure.axes[0].get_title()
        'VAE'
    """
    for name, pair in draws.items():
        if any(part.ndim != 2 or part.shape[1] < 2 for part in pair):
            shapes = [tuple(part.shape) for part in pair]
            raise ValueError(f"draws of {name!r} must have shape (n, latent) with latent >= 2, got {shapes}")
    columns = min(columns, len(draws))
    rows = -(-len(draws) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.6 * rows + 0.4), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, (posterior, prior)) in zip(axes.flat, draws.items(), strict=False):
        z, noise = (part.detach().cpu().double() for part in (posterior, prior))
        directions = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh[:2].T
        points = (torch.cat([noise, z]) - z.mean(0)) @ directions
        colors = np.array(["C1"] * len(noise) + ["C0"] * len(z))
        mixed = np.random.RandomState(0).permutation(len(points))  # so that neither lies on top of the other
        ax.scatter(
            *points[mixed].T,
            s=float(np.clip(6000 / len(points), 2, 8)),
            c=colors[mixed],
            alpha=0.4,
            linewidths=0,
            rasterized=True,
        )
        ax.set_axis_on()
        ax.set(title=name, xticks=[], yticks=[])
        ax.set_aspect("equal", adjustable="datalim")
        ax.title.set_fontsize(10)
    for label, color in (("prior", "C1"), ("aggregate posterior", "C0")):
        axes[0, 0].scatter([], [], s=20, color=color, label=label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(5.5, 3.8), layout="constrained")[1] if ax is None else ax
