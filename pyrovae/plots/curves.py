"""Figures of training and evaluation: learning curves, bounds, paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyrovae.plots.style import axes_for, color, legend_above, marker, wrapped

if TYPE_CHECKING:
    from pyrovae.training import History


def learning_curves(histories: Mapping[str, History], ax: Axes | None = None) -> Axes:
    """Plot the bound on training and validation data against the index of the epoch, for several runs.

    If the KL weight grew during training, a dotted line marks the epoch in which the weight reached 1. Before that
    epoch, the training bound has a smaller KL weight.

    Args:
        histories: Histories that :func:`pyrovae.fit` returned, by name.
        ax: Axes to draw on; by default the axes of a new figure.

    Returns:
        The axes.

    Example:
        >>> import pyrovae as pv
        >>> history = pv.History("Trace_ELBO", train=[-44.0, -30.5], valid=[-36.0, -29.0])
        >>> ax = pv.plots.learning_curves({"VAE": history})
        >>> [line.get_label() for line in ax.lines]
        ['VAE, train', 'VAE, valid']
    """
    shown = []
    with axes_for(ax) as ax:
        for i, (name, history) in enumerate(histories.items()):
            epochs = np.arange(len(history.train))  # as in History.best_epoch and to_dataframe
            every = max(1, len(epochs) // 8)
            style: dict[str, Any] = {
                "color": color(i),
                "marker": marker(i),
                "markersize": 4,
                "markevery": (i % every, every),
            }
            ax.plot(epochs, history.train, linestyle="--", linewidth=1, **style, label=f"{name}, train")
            if history.valid:
                ax.plot(epochs[: len(history.valid)], history.valid, **style, label=f"{name}, valid")
            skipped = len(history.train) // 10
            shown += [value for curve in (history.valid, history.train) for value in (curve or [])[skipped:]]
        for warmup in {sum(weight < 1 for weight in history.kl_weight) for history in histories.values()} - {0}:
            ax.axvline(warmup, color="0.6", linestyle=":", linewidth=1, zorder=0, label="KL weight reaches 1")
        shown = [value for value in shown if np.isfinite(value)]
        if shown:  # the first epochs would compress the rest of a curve
            margin = 0.05 * (max(shown) - min(shown)) or 1.0
            ax.set_ylim(min(shown) - margin, max(shown) + margin)
        ax.set(xlabel="epoch", ylabel="bound (nats per datum)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        legend_above(ax)
    return ax


def bounds(results: Mapping[str, xr.Dataset], ax: Axes | None = None) -> Axes:
    """Plot the importance-weighted bound IWAE_k, with errors, against the number of draws k, for several models.

    Error bars are 95% Monte Carlo intervals, and bands are one standard error over the data. The value at k = 1 is the
    ELBO, and the value at the largest k is the estimate of log p(x). If k-hat exceeds 0.7 for some data, the estimate
    of log p(x) is a lower bound with an unknown error. Its marker is then hollow and has no error bar.

    Args:
        results: Results of :func:`pyrovae.evaluation.evaluate`, by name.
        ax: Axes to draw on; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If a result has no bounds, or if the results are log-densities with respect to different base
            measures.

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
    _check_bounds(results)
    with axes_for(ax) as ax:
        for i, (name, result) in enumerate(results.items()):
            k, mean = result.k.values, result.iwae.mean("datum").values
            sampling_error = (result.iwae.std("datum", ddof=1) / np.sqrt(result.sizes["datum"])).values
            monte_carlo_error = np.sqrt((result.iwae_mcse**2).sum("datum")).values / result.sizes["datum"]
            ax.fill_between(k, mean - sampling_error, mean + sampling_error, color=color(i), alpha=0.15, linewidth=0)
            style: dict[str, Any] = {"color": color(i), "marker": marker(i), "markersize": 4, "capsize": 3}
            doubtful = "pareto_k" in result and bool((result.pareto_k > 0.7).any())
            errors = np.where(doubtful & (k == k.max()), np.nan, 1.96 * monte_carlo_error)
            ax.errorbar(k, mean, errors, **style, label=name)
            if doubtful:
                hollow: dict[str, Any] = {"color": color(i), "marker": marker(i), "markerfacecolor": "white"}
                ax.plot(k[-1], mean[-1], **hollow, markersize=4, zorder=3)  # above the filled marker of the error bars
        ax.set(xscale="log", xlabel="draws $k$", ylabel="IWAE$_k$ (nats per datum)")
        legend_above(ax)
    return ax


def _check_bounds(results: Mapping[str, xr.Dataset]) -> None:
    """Check that results have bounds that can be compared in one figure.

    Raises:
        ValueError: If a result has no bounds, or the base measures differ.
    """
    for name, result in results.items():
        if "k" not in result.dims:
            raise ValueError(
                f"plots.bounds draws IWAE_k against k, but the result {name!r} has no bounds. Pass results of "
                f"pyrovae.evaluation.evaluate. To draw estimates of log p(x), use plots.differences."
            )
    measures = {name: result.attrs.get("base_measure") for name, result in results.items()}
    if len(set(measures.values())) > 1:
        raise ValueError(
            f"the results have different base measures, {measures}, so their bounds cannot be compared. Draw them in "
            f"separate figures."
        )


def differences(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the paired difference in log p(x) between each model and the reference model, with errors.

    The thin bar is a 95% interval over the data, and the thick bar is a 95% Monte Carlo interval. A model is better
    than the reference if both bars lie to the right of zero.

    Args:
        table: Table of :func:`pyrovae.evaluation.compare`, one row per model.
        ax: Axes to draw on; by default the axes of a new figure.

    Returns:
        The axes, with the models from top to bottom in the order of the table.

    Raises:
        ValueError: If the table lacks a column, or has no model other than the reference.

    Source:
        *Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC* (Vehtari, Gelman and Gabry,
        2017), section 5.2, on paired differences.

    Example:
        >>> import pandas as pd, pyrovae as pv
        >>> columns = {"difference": [0.0, 1.5], "difference_error": [0.0, 0.2], "difference_mcse": [0.0, 0.1]}
        >>> ax = pv.plots.differences(pd.DataFrame(columns, index=["VAE", "VampPrior"]))
        >>> ax.get_xlabel()
        'log $p(x)$ minus that of VAE (nats per datum)'
    """
    needed = ["difference", "difference_error", "difference_mcse"]
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"The table has no columns {missing}. Pass the table of pyrovae.evaluation.compare.")
    reference = (table.difference == 0.0) & (table.difference_mcse.fillna(0.0) == 0.0)
    rows = table[~reference]
    if rows.empty:
        raise ValueError(f"The table holds only the reference, {list(table.index)}. Compare at least two models.")
    with axes_for(ax, (4.8, 0.32 * len(rows) + 0.95)) as ax:
        places = np.arange(len(rows))
        style: dict[str, Any] = {"color": color(0), "linestyle": "none", "zorder": 2}
        ax.axvline(0.0, color="0.6", linewidth=1, linestyle=":", zorder=0)
        difference, sampling, monte_carlo = rows[needed].to_numpy(dtype=float).T * [[1.0], [1.96], [1.96]]
        ax.errorbar(difference, places, xerr=sampling, **style, marker="o", markersize=4, label="95%, data")
        ax.errorbar(difference, places, xerr=monte_carlo, **style, elinewidth=4, alpha=0.5, label="95%, Monte Carlo")
        ax.set_yticks(places, [str(name) for name in rows.index])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        name = ", ".join(map(str, table.index[reference])) or "the reference"
        ax.set_xlabel(wrapped(ax, f"log $p(x)$ minus that of {name} (nats per datum)"))
        legend_above(ax)
    return ax
