"""The table and the figures: every training method in comparison with real data."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._figures import figure_of
from experiments.blurriness.features import Classifier
from experiments.blurriness.measures import (
    coverage,
    detail,
    grey_ink,
    kernel_distance,
    laplacian_variance,
    power_spectrum,
)
from experiments.blurriness.setting import LEVELS, Setting, Trained
from pyrovae.plots import style

REAL = "real, training data"
KINDS = ("mean", "draw", "reconstruction")
Images = Mapping[str, Tensor]


def real_images(setting: Setting, seed: int) -> Images:
    """Return as many training data as there are test data, in place of draws from a perfect model."""
    torch.manual_seed(seed)
    train = setting.grey.train
    return {"draw": train[torch.randperm(len(train))[: len(setting.grey.test)]]}


def measure(images: Images, test: Tensor, classifier: Classifier) -> dict[str, float]:
    """Return sharpness of all kinds of images, and grey ink, distance and coverage of samples, with standard errors."""
    scale, n = float(laplacian_variance(test).mean()), len(test)
    row = {}
    for kind, batch in images.items():
        sharp = laplacian_variance(batch) / scale
        row[f"sharpness, {kind}"], row[f"sharpness, {kind}, error"] = float(sharp.mean()), float(sharp.std()) / n**0.5
        row[f"detail, {kind}"] = detail(batch, test)
        if kind == "reconstruction":
            continue
        grey = grey_ink(batch)
        row[f"grey ink, {kind}"], row[f"grey ink, {kind}, error"] = float(grey.mean()), float(grey.std()) / n**0.5
        real, made = (classifier.features(x)[-1] for x in (test, batch))
        share = coverage(real, made)
        row[f"kernel distance, {kind}"] = kernel_distance(real, made)
        row[f"coverage, {kind}"], row[f"coverage, {kind}, error"] = share, (share * (1 - share) / n) ** 0.5
    return row


def score(trained: Trained, setting: Setting) -> xr.Dataset:
    """Return the bounds on the test data, with bits per dimension."""
    splits, width = (setting.grey, 1.0) if trained.discrete else (setting.noisy, 1 / LEVELS)
    result = comparison.evaluate(trained.vae, splits, setting.options)
    shape = (setting.height, setting.width)
    return result.assign(bits=pv.evaluation.bits_per_dimension(result.log_likelihood, shape, bin_width=width))


def likelihood(result: xr.Dataset) -> dict[str, float]:
    """Return bits per dimension, and the importance-weighted bound minus the ELBO, nats."""
    return {
        "bits": float(result.bits.mean()),
        "bits, error": float(result.bits.std(ddof=1)) / result.sizes["datum"] ** 0.5,
        "gap": float((result.log_likelihood - result.elbo).mean()),
        "active units": result.attrs["active_units"],
    }


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table to print. Cells of measures that a model lacks are empty."""
    columns = {f"sharpness: {kind}": (f"sharpness, {kind}", 2) for kind in KINDS}
    columns |= {f"detail: {kind}": (f"detail, {kind}", 2) for kind in KINDS}
    columns |= {f"{name}: {kind}": (f"{name}, {kind}", 2) for name in ("grey ink", "coverage") for kind in KINDS[:2]}
    columns |= {f"distance: {kind}": (f"kernel distance, {kind}", 3) for kind in KINDS[:2]}
    columns |= {"bits/dim": ("bits", 3), "ELBO gap": ("gap", 1), "active units": ("active units", 0)}
    columns |= {"seconds": ("seconds", 0)}
    table = pd.DataFrame(index=rows.index)
    table["explanation"] = rows["explanation"]
    for title, (column, digits) in columns.items():
        errors = _column(rows, f"{column}, error")
        table[title] = [_cell(*pair, digits) for pair in zip(_column(rows, column), errors, strict=True)]
    return table


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    """Return a column, which is empty if no model has it."""
    return rows[name] if name in rows else pd.Series(np.nan, rows.index)


def _cell(value: float, error: float, digits: int) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")


def draw_samples(images: Mapping[str, Images], test: Tensor, kind: str) -> Figure:
    """Draw images of one kind from all models that have it, together with real images."""
    panels = {"real": test[:48]} | {name: own[kind][:48] for name, own in images.items() if kind in own}
    return figure_of(pv.plots.images(panels, columns=8))


def draw_summary(rows: pd.DataFrame) -> Figure:
    """Draw sharpness, coverage and likelihood of all models, one below the other."""
    figure, axes = plt.subplots(
        1, 4, figsize=(10.5, 0.28 * len(rows) + 1.2), sharey=True, layout="constrained", width_ratios=(3, 2, 2, 2)
    )
    heights = np.arange(len(rows))
    styles = {
        "mean": ("o", style.color(0), style.color(0)),
        "reconstruction": ("o", style.color(0), "white"),
        "draw": ("x", style.color(1), style.color(1)),
    }
    labels = {"mean": "samples, E[x | z]", "reconstruction": "reconstructions, E[x | z]", "draw": "samples, draws of x"}
    for kind, (marker, color, face) in styles.items():
        look = {"marker": marker, "color": color, "markerfacecolor": face, "linestyle": "", "markersize": 5}
        for ax, name in zip(axes, ("sharpness", "detail", "coverage"), strict=False):
            values, errors = _column(rows, f"{name}, {kind}"), _column(rows, f"{name}, {kind}, error")
            ax.errorbar(values, heights, xerr=errors, label=labels[kind], **look)
    look = {"marker": "s", "color": "0.3", "linestyle": "", "markersize": 4}
    axes[3].errorbar(_column(rows, "bits"), heights, xerr=_column(rows, "bits, error"), **look)
    for ax in axes[:2]:
        ax.axvline(1, color="0.6", linewidth=1, linestyle=":")
    axes[0].set(xlabel="sharpness, relative to test data", xscale="log")
    axes[1].set(xlabel="detail, relative", xlim=(0, None))
    axes[2].set(xlabel="coverage", xlim=(0, 1.03))
    axes[3].set(xlabel="bits per dimension")
    axes[0].set_yticks(heights, rows.index)
    axes[0].invert_yaxis()
    _separate(axes, rows["explanation"])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def _separate(axes: np.ndarray, groups: pd.Series) -> None:
    """Draw a line between the groups of two explanations."""
    ax: Axes
    for ax in axes:
        ax.grid(axis="x", color="0.92")
        for i in np.flatnonzero(groups.values[1:] != groups.values[:-1]):
            ax.axhline(i + 0.5, color="0.7", linewidth=0.8)


def draw_spectra(images: Mapping[str, Images], test: Tensor, names: list[str]) -> Figure:
    """Draw the power of means and of draws against frequency, relative to real data."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True, layout="constrained")
    frequency, real = power_spectrum(test)
    for ax, kind in zip(axes, KINDS[:2], strict=True):
        for i, name in enumerate(names):
            if kind in images.get(name, {}):
                color = "0.3" if name == REAL else style.color(i)
                ax.semilogy(frequency, power_spectrum(images[name][kind])[1] / real, color=color, label=name)
        ax.axhline(1, color="0.6", linewidth=1, linestyle=":")
        ax.set(xlabel="spatial frequency (cycles per pixel)", title=f"samples: {'E[x | z]' if kind == 'mean' else 'x'}")
    axes[0].set_ylabel("power, relative to test data")
    handles = dict(pair[::-1] for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize="small")
    return figure
