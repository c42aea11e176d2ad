r"""Divergences of a misspecified model with known densities: a normal density, fitted to a mixture of two normals.

The variational bound uses draws only. With known densities the divergence is an integral, so the fit of :mod:`.vdm` can
be compared with the numerical optimum. KL(P || Q) is the criterion of maximum likelihood. Its optimum is the normal
density with the mean and the variance of P, which also puts mass between the modes. The reverse KL(Q || P) has its
optimum at one mode. All three divergences have a single minimum for this P.

Source: section 2.5 of *f-GAN: Training Generative Neural Samplers using Variational Divergence Minimization* (Nowozin,
Cseke and Tomioka, 2016), which makes the same comparison.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pyro import distributions as dist
from scipy.optimize import minimize
from torch import Tensor, nn

import pyrovae as pv
from experiments._figures import printed
from experiments.blurriness.divergences import DIVERGENCES, Divergence
from experiments.blurriness.vdm import Schedule, minimize_divergence
from pyrovae.plots import style

WEIGHTS, LOCS, SCALES = (0.7, 0.3), (-1.0, 2.0), (0.6, 1.2)
GRID = torch.linspace(-9.0, 12.0, 4001, dtype=torch.float64)


def mixture() -> dist.MixtureSameFamily:
    """Return the density P of the data."""
    weights, locs, scales = (torch.tensor(values, dtype=torch.float64) for values in (WEIGHTS, LOCS, SCALES))
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales))


def integral(divergence: Divergence, p: dist.TorchDistribution, q: dist.TorchDistribution) -> float:
    """Return D_f(P || Q) of two univariate densities by quadrature."""
    log_q = q.log_prob(GRID)
    return float(torch.trapezoid(log_q.exp() * divergence.f((p.log_prob(GRID) - log_q).exp()), GRID))


def normal(loc: float, scale: float) -> dist.Normal:
    """Return the density Q of the model."""
    return dist.Normal(*torch.tensor((loc, scale), dtype=torch.float64))


def optimum(divergence: Divergence) -> tuple[float, float]:
    """Return the mean and the scale of the normal density that minimizes the integral."""

    def objective(parameters: np.ndarray) -> float:
        return integral(divergence, mixture(), normal(parameters[0], np.exp(parameters[1])))

    loc, log_scale = minimize(objective, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}).x
    return float(loc), math.exp(log_scale)


def fit(divergence: Divergence, steps: int, seed: int, batch_size: int = 512) -> tuple[float, float, float]:
    """Return the mean, scale and final bound of a fit by variational divergence minimization."""
    torch.manual_seed(seed)
    p, loc, log_scale = mixture(), nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(math.log(2.0)))
    critic = nn.Sequential(pv.networks.mlp(1, 64, 64, 1, activation=nn.Tanh), nn.Flatten(0))

    def draws() -> Tensor:
        return loc + log_scale.exp() * torch.randn(batch_size, 1)

    bounds = minimize_divergence(
        divergence,
        lambda: p.sample((batch_size, 1)).float(),
        draws,
        [loc, log_scale],
        critic,
        Schedule(steps, model_rate=1e-2, critic_rate=1e-2, max_norm=10.0),
    )
    return loc.item(), log_scale.exp().item(), float(np.mean(bounds[-len(bounds) // 10 :]))


def compare(steps: int, seed: int) -> pd.DataFrame:
    """Return one row for each divergence: the numerical optimum and the fit from draws."""
    rows = {}
    for divergence in DIVERGENCES:
        best, (loc, scale, bound) = optimum(divergence), fit(divergence, steps, seed)
        rows[divergence.name] = {
            "loc": best[0],
            "loc, f-GAN": loc,
            "scale": best[1],
            "scale, f-GAN": scale,
            "divergence": integral(divergence, mixture(), normal(*best)),
            "of f-GAN's fit": integral(divergence, mixture(), normal(loc, scale)),
            "bound": bound,
        }
    return pd.DataFrame(rows).T


@printed
def draw(table: pd.DataFrame) -> Figure:
    """Draw the density of the data, the best normal densities and the normal densities fitted to draws."""
    figure, ax = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
    shown = GRID[(GRID > -4.5) & (GRID < 6.5)]
    ax.fill_between(shown, mixture().log_prob(shown).exp(), color="0.85", label="data")
    for i, (name, row) in enumerate(table.iterrows()):
        best = normal(row["loc"], row["scale"]).log_prob(shown).exp()
        found = normal(row["loc, f-GAN"], row["scale, f-GAN"]).log_prob(shown).exp()
        ax.plot(shown, best, color=style.color(i), linestyle=style.LINES[i], label=name)
        ax.plot(shown, found, style.marker(i), color=style.color(i), markersize=4, markevery=(30 * i, 90))
    ax.plot([], [], "k-", label="lines: numerical optimum")
    ax.plot([], [], "ko", markersize=4, label="markers: f-GAN, from draws")
    ax.set(xlabel="x", ylabel="density", ylim=(0, None))
    ax.legend(frameon=False)
    return figure
