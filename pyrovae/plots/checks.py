"""Figures of posterior predictive checks and simulation-based calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.plots.style import axes_for, color, legend_above, marker

_SIMULATIONS = 4000  # number of simulated sets of uniform ranks for the band


def posterior_predictive(check: xr.Dataset, *, statistic: str = "statistic", ax: Axes | None = None) -> Axes:
    """Plot the mean and central 90% interval of each datum's replicated statistic against its observed statistic.

    If the model generates data like the observed data, about nine of ten intervals cross the diagonal.

    Args:
        check: Result of :func:`pyrovae.evaluation.posterior_predictive_check`.
        statistic: Name of the statistic, with its unit, for the axes.
        ax: Axes to draw on; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If the result holds no observed or no replicated statistics.

    Source:
        *Posterior Predictive Assessment of Model Fitness via Realized Discrepancies* (Gelman, Meng and Stern, 1996).

    Example:
        >>> import numpy as np, pyrovae as pv, xarray as xr
        >>> random = np.random.default_rng(0)
        >>> replicated = (("draw", "datum"), random.normal(size=(200, 30)))
        >>> check = xr.Dataset({"observed": ("datum", random.normal(size=30)), "replicated": replicated})
        >>> pv.plots.posterior_predictive(check, statistic="largest pixel").get_xlabel()
        'observed largest pixel'
    """
    if missing := [name for name in ("observed", "replicated") if name not in check]:
        raise ValueError(
            f"The result has no {missing}. Pass a result of pyrovae.evaluation.posterior_predictive_check."
        )
    observed, replicated = check.observed.values, check.replicated.transpose("draw", "datum").values
    low, high = np.nanquantile(replicated, [0.05, 0.95], axis=0)
    mean = np.nanmean(replicated, axis=0)
    outside = (observed < low) | (observed > high)
    with axes_for(ax, (3.6, 3.6)) as ax:
        ax.axline((observed.mean(), observed.mean()), slope=1, color="0.6", linestyle=":", linewidth=1, zorder=0)
        for i, (part, name) in enumerate(((~outside, "observed within 90% interval"), (outside, "observed outside"))):
            bars = [(mean - low)[part], (high - mean)[part]]
            style: dict[str, Any] = {
                "color": color(i),
                "marker": marker(i),
                "markersize": 3,
                "elinewidth": 0.6,
                "alpha": 0.8,
            }
            label = f"{name} ({part.mean():.0%})"
            ax.errorbar(observed[part], mean[part], bars, linestyle="none", **style, label=label)
        ax.set(xlabel=f"observed {statistic}", ylabel=f"replicated {statistic}")
        legend_above(ax)
    return ax


def calibration(result: xr.Dataset, *, site: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot how far the ranks of simulation-based calibration are from uniform, for each unit of a latent site.

    A unit is one entry of the site's value. The line of a unit is the empirical distribution function of its ranks
    minus the uniform distribution function. If the guide is calibrated, all lines lie inside the grey band with a
    probability of at least 95%. A line above zero, like an inverted U, shows that the latents lie below the guide's
    draws. An S shape that rises first shows that the guide is too narrow.

    Args:
        result: Result of :func:`pyrovae.evaluation.simulation_based_calibration`.
        site: Name of the latent site; may be omitted if there is only one.
        ax: Axes to draw on; by default the axes of a new figure.

    Returns:
        The axes. Units that leave the band are coloured and listed in the legend.

    Raises:
        ValueError: If the result has no ranks of the site, or if ``site`` is omitted although there are several sites.

    Source:
        *Graphical Test for Discrete Uniformity and its Applications in Goodness-of-Fit Evaluation and Multiple Sample
        Comparison* (Sailynoja, Burkner and Vehtari, 2022). Here, the half-width of the band is c standard deviations of
        the empirical distribution function everywhere; the factor c is computed by simulation, with a Bonferroni
        correction for the number of units.

    Example:
        >>> import numpy as np, pyrovae as pv, xarray as xr
        >>> ranks = np.random.default_rng(0).integers(0, 100, (500, 2))
        >>> result = xr.Dataset({"z": (("simulation", "z_unit"), ranks)}, attrs={"num_draws": 99})
        >>> pv.plots.calibration(result).get_ylabel()
        'ECDF minus uniform'
    """
    sites = [str(name) for name in result.data_vars if "simulation" in result[name].dims]
    if site is None and len(sites) == 1:
        site = sites[0]
    if site not in sites:
        raise ValueError(
            f"The result has ranks of the sites {sites}, but site={site!r}. Pass one of these sites as site=."
        )
    ranks = result[site].transpose("simulation", ...).values.reshape(result.sizes["simulation"], -1)
    num_draws = int(result.attrs.get("num_draws", ranks.max()))
    levels = np.arange(num_draws + 1)
    uniform = (levels + 1) / (num_draws + 1)
    band = _band(len(ranks), uniform, ranks.shape[1])
    with axes_for(ax) as ax:
        ax.fill_between(uniform, -band, band, color="0.9", linewidth=0, label="95% band of uniform ranks")
        ax.axhline(0.0, color="0.6", linewidth=1, linestyle=":")
        found = 0
        for unit, values in enumerate(ranks.T):
            difference = (values[:, None] <= levels).mean(0) - uniform
            style: dict[str, Any] = {"color": "0.55", "linewidth": 0.8}
            if (np.abs(difference) > band + 1e-12).any():
                every = max(1, len(levels) // 8)
                style = {"color": color(found), "marker": marker(found), "markersize": 4, "markevery": every}
                style["label"] = f"{site}, unit {unit}"
                found += 1
            ax.plot(uniform, difference, **style)
        ax.set(xlabel="rank among the guide's draws (fraction)", ylabel="ECDF minus uniform")
        legend_above(ax)
    return ax


def _band(size: int, uniform: np.ndarray, units: int) -> np.ndarray:
    """Return the half-width of a band around the uniform distribution function, for each entry of ``uniform``.

    If the ranks of each unit are uniform, the probability that the band contains the empirical distribution functions
    of all units is at least 95%.

    Args:
        size: Number of ranks of each unit.
        uniform: Values of the uniform distribution function.
        units: Number of units. A unit is one entry of the latent site's value.
    """
    random = np.random.RandomState(0)
    counts = random.multinomial(size, np.full(len(uniform), 1 / len(uniform)), _SIMULATIONS)
    deviation = np.sqrt(uniform * (1 - uniform) / size)
    inner = deviation > 1e-9  # the last value is always one
    largest = (np.abs(counts.cumsum(1) / size - uniform)[:, inner] / deviation[inner]).max(1)
    return float(np.quantile(largest, 1 - 0.05 / units)) * deviation
