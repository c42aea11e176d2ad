r"""What error several ways of evaluating reach in equal seconds.

A way is an estimator and how fast it is computed. Errors are measured for several numbers of draws, K, against an
estimate from far more of them. The errors that an estimator states of itself would not do: where the posterior is as
poor as that of most VAEs, the weights have no variance, errors do not fall as :math:`K^{-1/2}`, and most of an error is
that the estimate is too low. So a power law is fitted to what is measured.
"""

from collections.abc import Iterable
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv


def measure(vae: pv.VAE, x: Tensor, draws: Iterable[int], reference: int, seed: int) -> pd.DataFrame:
    """Measures the errors of estimates of log p(x).

    Args:
        vae: What the estimates are of.
        x: Data, shape ``(N, *event)``.
        draws: Numbers of draws.
        reference: Number of draws of the estimate that is taken for the truth.
        seed: Seed of that one; the others have the next.

    Returns:
        One row a number of draws: the errors of importance sampling (``evaluate``) and quasi-Monte Carlo (``rqmc``),
        nats, root mean square over the data; and the share of data with a k-hat above 0.7 (``poor``).
    """
    evaluate, rqmc = (
        partial(estimator, vae.model, vae.guide, x, progress=False)
        for estimator in (pv.evaluation.evaluate, pv.evaluation.rqmc)
    )
    truth = evaluate(reference, seed=seed).log_likelihood
    rows = {}
    for number in draws:
        plain, quasi = (estimate(number, seed=seed + 1) for estimate in (evaluate, rqmc))
        rows[number] = {
            "evaluate": _root_mean_square(plain.log_likelihood - truth),
            "rqmc": _root_mean_square(quasi.log_likelihood - truth),
            "poor": float((plain.pareto_k > 0.7).mean()),
        }
    return pd.DataFrame(rows).T


def _root_mean_square(errors: xr.DataArray) -> float:
    return float((errors**2).mean() ** 0.5)


def at_equal_time(points: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """What each way reaches in so many seconds, by power laws through its points.

    Args:
        points: A row a way and number of draws: the ``name`` of the way, ``draws``, ``seconds`` per datum and
            ``error``.
        seconds: Seconds per datum.

    Returns:
        One row a way: ``draws`` and ``error``.
    """
    return pd.DataFrame(
        {
            name: {key: _power_law(group.seconds, group[key], seconds) for key in ("draws", "error")}
            for name, group in points.groupby("name", sort=False)
        }
    ).T


def _power_law(x: pd.Series, y: pd.Series, at: float) -> float:
    slope, offset = np.polyfit(np.log(x.to_numpy(float)), np.log(y.to_numpy(float)), 1)
    return float(np.exp(offset + slope * np.log(at)))


def draw(points: pd.DataFrame) -> Figure:
    """Draws the errors against the seconds."""
    figure, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for marker, (name, group) in zip("osD^vPX", points.groupby("name", sort=False), strict=False):
        ax.plot(group.seconds, group.error, marker=marker, markersize=4, label=name)
    ax.set(xscale="log", xlabel="seconds per image", ylabel="error of log p(x) (nats, root mean square)")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(frameon=False, fontsize="small")
    return figure
