"""Figures of latent codes in two dimensions: codes coloured by labels, and aggregate posteriors against priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from pyrovae.plots.style import PAGE, color, legend_beside, marker, panels_for, title

_LEGEND = 0.9  # width of a legend, inches
_MOST_CLASSES = 20  # integers with more different values are treated as numbers, not as classes


def codes(
    panels: Mapping[str, tuple[Any, Any]],
    *,
    projection: Callable[[np.ndarray], np.ndarray] | None = None,
    label: str | None = None,
    columns: int = 3,
    ax: Axes | None = None,
    axes: Any = None,
) -> Any:
    """Plot latent codes in two dimensions, coloured by class or by a value.

    Args:
        panels: Pair ``(codes, labels)`` for each panel, by name, with shapes ``(n, latent)`` and ``(n,)``. Labels are
            classes if they are strings, booleans, or up to 20 different integers. Each class has its own colour and
            marker. Other labels are values, shown by colours with a colour bar; NaN is grey.
        projection: Function from ``(n, latent)`` to ``(n, 2)``, such as ``sklearn.manifold.TSNE().fit_transform``. If
            there are more than two latent dimensions, the default is the projection on the first two principal
            components (PC) of each panel; axis labels state the fraction of the variance along each component.
        label: Title of the legend or of the colour bar: what the labels are, with the unit.
        columns: Number of panels per row.
        ax: Axes for a single panel.
        axes: Axes for all panels, one for each; by default the axes of a new figure.

    Returns:
        ``ax`` or ``axes`` as given; by default an array with the axes of each panel.

    Raises:
        TypeError: If codes are a distribution instead of a tensor.
        ValueError: If codes do not have shape ``(n, latent)`` with at least two dimensions, labels do not have length
            ``n``, the projection does not have shape ``(n, 2)``, or the numbers of axes and panels differ.

    Example:
        >>> import torch, pyrovae as pv
        >>> axes = pv.plots.codes({"VAE": (torch.randn(50, 8), ["cat", "dog"] * 25)}, label="animal")
        >>> axes[0].get_legend().get_title().get_text(), axes[0].get_xlabel()[:4]
        ('animal', 'PC 1')
    """
    planes, labels = {}, {}
    for name, (points, given) in panels.items():
        labels[name] = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        if isinstance(points, torch.distributions.Distribution):
            raise TypeError(
                f"Codes of {name!r} must be a tensor, got the distribution {type(points).__name__}. Pass its mean, "
                f"such as vae.encode(x).mean."
            )
        z = torch.as_tensor(points).detach().cpu().numpy()
        if z.ndim != 2 or z.shape[1] < 2 or labels[name].shape != z.shape[:1]:
            shapes = [z.shape, labels[name].shape]
            raise ValueError(
                f"Codes and labels of {name!r} must have shapes (n, latent) and (n,), with latent at least 2, got "
                f"{shapes}. Pass one label for each code."
            )
        planes[name] = _in_plane(name, z, projection)
    everything = np.concatenate(list(labels.values())) if labels else np.array([])
    size = (PAGE - _LEGEND) / min(columns, len(panels)) if len(panels) > 1 else 3.4
    with panels_for(list(panels), ax, axes, columns, (size, size + 0.3), (_LEGEND, 0.0)) as (result, chosen):
        draw = _by_class if _are_classes(everything) else _by_value
        for panel, (name, (_, names)) in zip(chosen, planes.items(), strict=True):
            panel.set(xlabel=names[0], ylabel=names[1])
            if projection is not None:
                panel.set(xticks=[], yticks=[])  # the coordinates of a projection have no meaning
            if ax is None:
                title(panel, name)
        drawn = [(plane, panel, labels[name]) for panel, (name, (plane, _)) in zip(chosen, planes.items(), strict=True)]
        draw(drawn, everything, label)
    return result


def aggregate_posteriors(
    draws: Mapping[str, tuple[Tensor, Tensor]], *, columns: int = 3, ax: Axes | None = None, axes: Any = None
) -> Any:
    """Plot draws from the aggregate posterior together with draws from the prior, in one panel for each model.

    The aggregate posterior is the mean of q(z | x) over the data. A panel shows the first two principal components
    (PC) of the draws from the aggregate posterior. The likelihood was not trained in regions where only the prior has
    mass, so data generated from latents in these regions may be poor.

    Args:
        draws: Mapping from the name of each model to a pair ``(posterior, prior)``: draws from the aggregate posterior
            and draws from the prior, each of shape ``(n, latent)``.
        columns: Number of panels per row.
        ax: Axes for a single panel.
        axes: Axes for all panels, one for each; by default the axes of a new figure.

    Returns:
        ``ax`` or ``axes`` as given; by default an array with the axes of each panel.

    Raises:
        ValueError: If draws do not have shape ``(n, latent)`` with at least two latent dimensions, or the numbers of
            axes and panels differ.

    Source:
        *ELBO Surgery: Yet Another Way to Carve Up the Variational Evidence Lower Bound* (Hoffman and Johnson, 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> axes = pv.plots.aggregate_posteriors({"VAE": (0.5 * torch.randn(100, 3), torch.randn(100, 3))})
        >>> axes[0].get_title()
        'VAE'
    """
    for name, pair in draws.items():
        if any(part.ndim != 2 or part.shape[1] < 2 for part in pair):
            shapes = [tuple(part.shape) for part in pair]
            raise ValueError(
                f"Draws of {name!r} must have shape (n, latent) with latent at least 2, got {shapes}. Use a histogram "
                f"for one dimension."
            )
    size = (PAGE - 1.5 * _LEGEND) / max(1, min(columns, len(draws))) if len(draws) > 1 else 3.4
    handles: dict[str, Any] = {}
    with panels_for(list(draws), ax, axes, columns, (size, size + 0.2), (1.5 * _LEGEND, 0.0)) as (given, chosen):
        for panel, (name, (posterior, prior)) in zip(chosen, draws.items(), strict=True):
            z, noise = (part.detach().cpu().double().numpy() for part in (posterior, prior))
            directions = np.linalg.svd(z - z.mean(0), full_matrices=False)[2][:2]
            parts = {"prior": noise, "aggregate posterior": z}
            points = {part: (values - z.mean(0)) @ directions.T for part, values in parts.items()}
            area = float(np.clip(6000 / (len(z) + len(noise)), 2, 8))
            for i, part in enumerate(points):
                handles[part] = panel.scatter([], [], s=20, color=color(1 - i))
            mixed = np.random.RandomState(0).permutation(len(z) + len(noise))  # so that neither covers the other
            colors = np.array([color(1)] * len(noise) + [color(0)] * len(z))[mixed]
            every = np.concatenate(list(points.values()))[mixed]
            panel.scatter(every[:, 0], every[:, 1], s=area, c=colors, alpha=0.4, linewidths=0, rasterized=True)
            panel.set(xlabel="PC 1", ylabel="PC 2")
            panel.set_aspect("equal", adjustable="datalim")
            if ax is None:
                title(panel, name)
        legend_beside(chosen, handles)
    return given


def _in_plane(
    name: str, z: np.ndarray, projection: Callable[[np.ndarray], np.ndarray] | None
) -> tuple[np.ndarray, tuple[str, str]]:
    """Return codes in two dimensions, shape ``(n, 2)``, and the labels of the two axes."""
    if projection is not None:
        plane = np.asarray(projection(z))
        if plane.shape != (len(z), 2):
            raise ValueError(f"The projection of {name!r} must have shape {(len(z), 2)}, got {plane.shape}.")
        return plane, ("projection 1", "projection 2")
    if z.shape[1] == 2:
        return z, ("$z_1$", "$z_2$")
    centred = z.astype(np.float64) - z.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    shares = singular[:2] ** 2 / max(float((singular**2).sum()), 1e-300)
    names = [f"PC {i + 1} ({share:.0%})" for i, share in enumerate(shares)]
    return centred @ directions[:2].T, (names[0], names[1])


def _are_classes(labels: np.ndarray) -> bool:
    if labels.dtype.kind in "iu":
        return len(np.unique(labels)) <= _MOST_CLASSES
    return labels.dtype.kind != "f"


def _by_class(panels: list[tuple[np.ndarray, Axes, np.ndarray]], everything: np.ndarray, label: str | None) -> None:
    texts = everything.astype(str) if everything.dtype.kind not in "iu" else everything
    order = {kind: i for i, kind in enumerate(np.unique(texts).tolist())}
    handles: dict[str, Any] = {}
    for plane, panel, labels in panels:
        own = labels.astype(texts.dtype)
        for kind, i in order.items():
            if (chosen := own == kind).any():
                look: dict[str, Any] = {"color": color(i), "marker": marker(i), "linewidths": 0}
                panel.scatter(plane[chosen, 0], plane[chosen, 1], s=9, alpha=0.8, rasterized=True, **look)
                handles[str(kind)] = panel.scatter([], [], s=20, **look)
    shown = {str(kind): handles[str(kind)] for kind in order}
    legend_beside([panel for _, panel, _ in panels], shown, "class" if label is None else label)


def _by_value(panels: list[tuple[np.ndarray, Axes, np.ndarray]], everything: np.ndarray, label: str | None) -> None:
    finite = everything[np.isfinite(everything)]
    norm = Normalize(*((finite.min(), finite.max()) if len(finite) else (0, 1)))
    for plane, panel, labels in panels:
        known = np.isfinite(labels)
        panel.scatter(plane[~known, 0], plane[~known, 1], s=7, color="0.8", linewidths=0, rasterized=True)
        drawn = panel.scatter(
            plane[known, 0], plane[known, 1], s=7, c=labels[known], norm=norm, linewidths=0, rasterized=True
        )
    axes = [panel for _, panel, _ in panels]
    bar = axes[0].figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label("value" if label is None else label)
