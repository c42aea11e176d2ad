"""Figures of EM, after figures 9.8 and 9.11 to 9.14 of *Pattern Recognition and Machine Learning* (Bishop, 2006)."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from experiments._figures import printed
from experiments.em.expectation_maximization import HalfStep, Parameters, elbo, log_likelihood
from pyrovae.plots import style


@printed
def bound(x: Tensor, path: list[HalfStep], table: pd.DataFrame, iterations: int = 5) -> Figure:
    """Draw Bishop's figures: log p(x) split into ELBO and KL at each half-step, and the bounds along two M steps."""
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(style.PAGE, 3.0), layout="constrained")
    first = table[table.iteration <= iterations]
    names = ["start", *(f"{row.step}$_{{{row.iteration}}}$" for row in first.itertuples() if row.iteration)]
    floor = first.ELBO.iloc[0] - 0.05 * (first["log p(x)"].iloc[-1] - first.ELBO.iloc[0])
    bars.bar(names, first.ELBO - floor, bottom=floor, color=style.color(0), label=r"ELBO$(q, \theta)$")
    look: dict[str, Any] = {"color": style.color(1), "hatch": "//", "edgecolor": "white"}
    bars.bar(names, first.KL, bottom=first.ELBO, label=r"KL$(q \,\|\, p(z \mid x, \theta))$", **look)
    bars.scatter(names, first["log p(x)"], color="black", marker="_", s=100, label=r"$\log p(x \mid \theta)$")
    bars.set(ylabel="nats per datum", ylim=(floor, None), xlabel="half-step")
    bars.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1.0)
    _curves(curves, x, path)
    return figure


def _curves(ax: Axes, x: Tensor, path: list[HalfStep]) -> None:
    """Draw log p(x) along a curve from the start through the first M step, and the bounds of two E steps."""
    first, second = path[1], path[3]
    places = np.linspace(-0.3, 1.4, 80)
    thetas = [along(first.theta, second.theta, float(place)) for place in places]
    ax.plot(places, [log_likelihood(x, theta) / len(x) for theta in thetas], color="black")
    for i, (place, state) in enumerate(((0.0, first), (1.0, second))):
        values = [elbo(x, theta, state.q) / len(x) for theta in thetas]
        ax.plot(places, values, color=style.color(i), linestyle=style.LINES[i], label=f"ELBO$(q_{i + 1}, \\theta)$")
        ax.plot(place, elbo(x, state.theta, state.q) / len(x), color=style.color(i), marker=style.marker(i))
    ax.axvline(1.0, color="0.7", linestyle=":", linewidth=1, zorder=0)
    ax.set(xlabel=r"$\theta$, from $\theta_0$ (0) through $\theta_1$ (1)", ylabel="nats per datum")
    ax.plot([], [], color="black", label=r"$\log p(x \mid \theta)$")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1.0)


def along(begin: Parameters, end: Parameters, place: float) -> Parameters:
    """Return a point on the curve through two parameters, straight in log-weights, means and Cholesky factors."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        return a + place * (b - a)

    factors = between(*map(torch.linalg.cholesky, (begin.covariances, end.covariances)))
    weights = between(begin.weights.log(), end.weights.log()).softmax(-1)
    return Parameters(weights, between(begin.means, end.means), factors @ factors.mT)


@printed
def mixture(x: Tensor, path: list[HalfStep]) -> Figure:
    """Draw the data, coloured by q, and the two-sigma ellipses of the components, at three iterations."""
    last = path[-1].iteration
    shown = [state for state in path if state.step != "E" and state.iteration in {0, 1, min(5, last), last}]
    figure, axes = plt.subplots(1, len(shown), figsize=(style.PAGE, 2.0), layout="constrained")
    low, high = x.numpy().min(0), x.numpy().max(0)
    limits = np.array([low, high]) + 0.1 * np.array([low - high, high - low])
    colors = plt.get_cmap("Set2")(np.arange(len(path[0].theta.weights)))
    for ax, state in zip(np.atleast_1d(axes), shown, strict=True):
        ax.scatter(*x.T, s=5, c=np.clip(state.q.probs.numpy() @ colors, 0, 1))
        for mean, covariance in zip(state.theta.means, state.theta.covariances, strict=True):
            ellipse(ax, mean, covariance, "black")
        ax.spines[:].set_visible(True)
        plural = "" if state.iteration == 1 else "s"
        title = "start" if state.iteration == 0 else f"after {state.iteration} iteration{plural}"
        ax.set(title=title, xticks=[], yticks=[], xlim=limits[:, 0], ylim=limits[:, 1], aspect="equal")
    return figure


def ellipse(ax: Axes, mean: Tensor, covariance: Tensor, color: str, **look: Any) -> None:
    """Draw the mean and the two-sigma ellipse of a normal distribution."""
    variances, axes = np.linalg.eigh(covariance.numpy())
    angle = float(np.degrees(np.arctan2(*axes[::-1, 1])))
    width, height = 4 * np.sqrt(variances[::-1])
    ax.add_patch(
        Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, fill=False, edgecolor=color, **look)
    )
    ax.plot(*mean.tolist(), color=color, marker="+", markersize=7)
