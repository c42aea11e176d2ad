r"""What error several ways of evaluating reach in equal seconds.

A way is an estimator and how fast it is computed. Monte Carlo errors are measured for several numbers of draws, K.
Those of importance sampling would fall as :math:`K^{-1/2}` if the weights had a variance, which for a posterior as poor
as that of most VAEs is not so; a power law is fitted to them and to those of quasi-Monte Carlo.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv


def measure(vae: pv.VAE, x: Tensor, draws: Iterable[int], seed: int) -> pd.DataFrame:
    """Measures Monte Carlo errors.

    Returns:
        One row a number of draws: the mean over the data of the errors of importance sampling (``evaluate``) and
        quasi-Monte Carlo (``rqmc``), nats, and the share of data with a k-hat above 0.7 (``poor``).
    """
    rows = {}
    for number in draws:
        plain, quasi = (
            estimator(vae.model, vae.guide, x, number, seed=seed, progress=False)
            for estimator in (pv.evaluation.evaluate, pv.evaluation.rqmc)
        )
        poor = float((plain.pareto_k > 0.7).mean())
        rows[number] = {"evaluate": float(plain.mcse.mean()), "rqmc": float(quasi.mcse.mean()), "poor": poor}
    return pd.DataFrame(rows).T


def at_equal_time(points: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """What each way reaches in so many seconds, by power laws through its points.

    Args:
        points: A row a way and number of draws: the ``name`` of the way, ``draws``, ``seconds`` per datum and ``mcse``,
            the error.
        seconds: Seconds per datum.

    Returns:
        One row a way: ``draws`` and ``mcse``.
    """
    return pd.DataFrame(
        {
            name: {key: _power_law(group.seconds, group[key], seconds) for key in ("draws", "mcse")}
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
        ax.plot(group.seconds, group.mcse, marker=marker, markersize=4, label=name)
    ax.set(xscale="log", yscale="log", xlabel="seconds per image", ylabel="Monte Carlo error per image (nats)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    ax.legend(frameon=False, fontsize="small")
    return figure
