"""Figures of the latent-space experiment: interpolations, traversals, moved codes and maps of codes."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

import pyrovae as pv
from experiments._arithmetic import Space, attribute_direction, class_means, interpolate, pairs
from experiments._figures import figure_of
from experiments._strokes import ATTRIBUTES
from pyrovae.plots import style


def draw(
    spaces: Mapping[str, Space],
    moves: Mapping[tuple[str, str], Mapping[str, Any]],
    traversals: Mapping[str, pd.DataFrame],
    *,
    cells: int,
    seed: int,
) -> dict[str, Figure]:
    """Draw the interpolations, the traversals, the moved digits and the codes of all models."""
    figures = {"response": draw_response(moves)}
    panels = {}
    for name, space in spaces.items():
        short, labels = name.replace(" ", "_"), space.test.labels
        if space.codes.shape[1] == 2:
            z = dist.Normal(0.0, 1.0).icdf((torch.arange(cells) + 0.5) / cells)
            grid = torch.stack(torch.meshgrid(z, z.flip(0), indexing="xy"), dim=-1)
            figures["manifold"] = figure_of(pv.plots.manifold(space.decode(grid), x=z, y=z.flip(0)))
            panels[f"{name}: codes"] = (space.codes, labels)
        else:
            panels[f"{name}: PCA"] = (space.codes, labels)
            panels[f"{name}: t-SNE"] = (torch.as_tensor(tsne(space)), labels)
        figures[f"interpolation_{short}"] = draw_interpolation(space, seed)
        figures[f"traversals_{short}"] = draw_traversals(space, traversals[name])
        figures[f"attributes_{short}"] = draw_attributes(space)
        figures[f"classes_{short}"] = draw_classes(space)
    return {**figures, "codes": figure_of(pv.plots.codes(panels))}


def draw_interpolation(space: Space, seed: int) -> Figure:
    """Draw straight and spherical interpolations between three pairs of digits."""
    start, end = pairs(space, 3, seed)
    rows: dict[str, Tensor] = {}
    for kind in ("straight", "spherical"):
        images = space.decode(interpolate(start, end, 11, spherical=kind == "spherical"))
        rows |= {f"pair {i + 1}, {kind}": images[:, i] for i in range(len(start))}
    return figure_of(pv.plots.strips(dict(sorted(rows.items(), key=lambda row: row[0].split(",")[0]))))


def draw_traversals(space: Space, table: pd.DataFrame, most: int = 10) -> Figure:
    """Draw one test digit with each latent dimension varied from -3 to 3, in descending order of KL."""
    values = torch.linspace(-3, 3, 11)
    rows: dict[str, Tensor] = {}
    for label, kl in table["KL"][:most].items():
        j = int(str(label).removeprefix("z_")) - 1
        z = space.codes[0].repeat(len(values), 1)
        z[:, j] = values
        rows[f"$z_{{{j + 1}}}$, {kl:.2f} nats"] = space.decode(z)
    return figure_of(pv.plots.strips(rows, marks={0: "$-3$", 5: "0", 10: "3"}))


def draw_attributes(space: Space) -> Figure:
    """Draw three test digits, moved along the directions of the attributes."""
    steps = torch.linspace(-2, 2, 9)
    rows: dict[str, Tensor] = {}
    for attribute in ATTRIBUTES:
        shift = steps[:, None] * attribute_direction(space, attribute) * space.test.attributes[attribute].std()
        rows |= {f"{attribute}, digit {i + 1}": space.decode(space.codes[i] + shift) for i in range(3)}
    return figure_of(pv.plots.strips(rows, marks={0: "$-2$ sd", 4: "reconstruction", 8: "$+2$ sd"}))


def draw_classes(space: Space) -> Figure:
    """Draw one test digit of each class, moved to every class. The diagonal shows the reconstructions."""
    means, rows = class_means(space), {}
    for own in space.test.labels.unique().tolist():
        code = space.codes[(space.test.labels == own).int().argmax()]
        rows[f"a {own}"] = space.decode(torch.stack([code + mean - means[own] for mean in means.values()]))
    return figure_of(pv.plots.strips(rows, marks={i: f"as {label}" for i, label in enumerate(means)}))


def draw_response(moves: Mapping[tuple[str, str], Mapping[str, Any]]) -> Figure:
    """Draw the measured against the requested change: mean and standard deviation over the digits."""
    figure, axes = plt.subplots(1, len(ATTRIBUTES), figsize=(7.5, 3.6), sharey=True, layout="constrained")
    names = list(dict.fromkeys(name for name, _ in moves))
    for ax, attribute in zip(axes, ATTRIBUTES, strict=True):
        ax.axline((0, 0), slope=1, color="0.7", linestyle=":", linewidth=1, label="equal to the requested change")
        for i, name in enumerate(names):
            move = moves[name, attribute]
            order = np.argsort([*move["asked"], 0])
            asked, shown = (np.array([*values, 0])[order] for values in (move["asked"], move["shown"].mean(1)))
            spread = np.array([*move["shown"].std(1), 0])[order]
            ax.errorbar(
                asked, shown, spread, color=style.color(i), marker=style.marker(i), markersize=4, capsize=3, label=name
            )
        ax.set_title(attribute, fontsize=10)
        ax.set_xlabel("requested change (standard deviations)")
    axes[0].set_ylabel("measured change (standard deviations)")
    axes[0].legend(frameon=False)
    return figure


def tsne(space: Space) -> np.ndarray:
    """Return the t-SNE map of the codes of the test data."""
    points: np.ndarray = TSNE(2, perplexity=min(30, len(space.codes) / 4), random_state=0).fit_transform(space.codes)
    return points
