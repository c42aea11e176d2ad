"""Table and figure of a grid of models, each trained from several seeds.

Differences are paired over the seeds and over the test data, and have two errors. The error over the seeds states how
much the difference varies between trainings, and the error over the data how much it varies between test sets.
"""

import json
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

import pyrovae as pv
from experiments._figures import printed
from pyrovae.plots import style

Model = tuple[str, str, str]  # prior, likelihood, objective
Runs = dict[int, xr.Dataset]  # by seed


def summarize(models: Mapping[str, Model], runs: Mapping[str, Runs]) -> pd.DataFrame:
    """Return one row for each combination: the estimates over the seeds, and the difference from the reference."""
    references: dict[str, str] = {}
    for name in runs:
        references.setdefault(models[name][1], name)
    rows = {}
    for name, by_seed in runs.items():
        results = list(by_seed.values())
        draws = results[0].attrs["num_samples"]
        reference = references[models[name][1]]
        rows[name] = {
            "seeds": str(len(results)),
            "ELBO": over_seeds([float(result.elbo.mean()) for result in results]),
            f"IWAE_{draws}": over_seeds([float(result.log_likelihood.mean()) for result in results]),
            "log p(x)": over_seeds([float(result.quoted.mean()) for result in results]),
            "reliable": f"{np.mean([result.reliable.mean() for result in results]):.0%}",
            **gain(by_seed, runs[reference], is_reference=name == reference),
            "k-hat > 0.7": f"{np.mean([(result.pareto_k > 0.7).mean() for result in results]):.0%}",
            "active units": f"{np.mean([result.attrs['active_units'] for result in results]):.0f}",
            "seconds": f"{np.mean([json.loads(result.attrs['history'])['seconds'][-1] for result in results]):.0f}",
        }
    return pd.DataFrame(rows).T


def gain(runs: Runs, reference: Runs, *, is_reference: bool) -> dict[str, str]:
    """Return the paired difference from the reference, with its errors over the seeds and over the test data."""
    seeds = [seed for seed in runs if seed in reference]
    if is_reference or not seeds:
        return {"difference": "", "error over data": ""}
    paired = {name: [quoted(of[seed]) for seed in seeds] for name, of in {"a": reference, "b": runs}.items()}
    pairs = [
        pv.evaluation.compare(dict(zip(paired, pair, strict=True))).difference["b"]
        for pair in zip(*paired.values(), strict=True)
    ]
    means = {name: mean_over_seeds(results) for name, results in paired.items()}
    row = pv.evaluation.compare(means).loc["b"]
    share = np.mean([result.reliable.mean() for results in paired.values() for result in results])
    monte_carlo = f" ({row.difference_mcse:.2f})" if share >= 0.99 else ""
    return {"difference": over_seeds(pairs), "error over data": f"{row.difference_error:.2f}{monte_carlo}"}


def quoted(result: xr.Dataset) -> xr.Dataset:
    """Return the estimates of ``pyrovae.evaluation.log_likelihood`` that a cell holds beside those of the encoder."""
    names = {"quoted": "log_likelihood", "quoted_mcse": "mcse"}
    return result[[*names, "reliable"]].rename(names)


def mean_over_seeds(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the estimates of log p(x) of each datum, averaged over models that differ in their seed."""
    seeds = xr.concat([result[["log_likelihood", "mcse"]] for result in results], "seed", combine_attrs="override")
    mcse = (seeds.mcse**2).sum("seed") ** 0.5 / len(results)
    return seeds.mean("seed", keep_attrs=True).assign(mcse=mcse)


def over_seeds(values: Sequence[float]) -> str:
    """Return the mean ± standard error, or the value alone if there is only one."""
    error = f" ± {pd.Series(values).sem():.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{error}"


@printed
def draw(models: Mapping[str, Model], runs: Mapping[str, Runs]) -> Figure:
    """Draw log p(x) with its error over the seeds for each prior and objective, in one panel per likelihood."""
    priors, likelihoods, objectives = (list(dict.fromkeys(models[name][i] for name in runs)) for i in range(3))
    figure, axes = plt.subplots(1, len(likelihoods), figsize=(style.PAGE, 3.0), squeeze=False, layout="constrained")
    for ax, likelihood in zip(axes[0], likelihoods, strict=True):
        for i, objective in enumerate(objectives):
            for j, prior in enumerate(priors):
                by_seed = runs.get(", ".join((prior, likelihood, objective)), {})
                values = pd.Series([float(result.quoted.mean()) for result in by_seed.values()], dtype=float)
                x = j + 0.2 * (i - (len(objectives) - 1) / 2)
                ax.plot([x] * len(values), values, style.marker(i), color=style.color(i), alpha=0.35, markersize=3)
                ax.errorbar(
                    x, values.mean(), values.sem(), color=style.color(i), marker=style.marker(i), markersize=5,
                    capsize=4, label=objective if j == 0 else None,
                )  # fmt: skip
        ax.set_xticks(range(len(priors)), priors, rotation=20)
        style.title(ax, likelihood)
        ax.margins(x=0.15)
    axes[0, 0].set_ylabel(r"$\log p(x)$ (nats per datum)")
    legend = axes[0, -1].get_legend_handles_labels()
    figure.legend(*legend, frameon=False, title="objective", loc="outside right center")
    return figure
