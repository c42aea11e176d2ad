"""Gap between the ELBO and log p(x), and the likelihood gained by training with the IWAE bound.

The same VAE is trained twice by Pyro's SVI, from the same initial weights and on the same digits: once with the ELBO
and once with the importance-weighted bound. Both models are then evaluated on the test digits by the ELBO, IWAE_k and
log p(x), with standard errors, effective sample size and k-hat.

Two processes share the work under torchrun --nproc-per-node=2 -m experiments.elbo_vs_iwae.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._comparison import cell
from experiments._figures import figure_of


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    num_particles: int = 5
    """Draws per datum of the IWAE objective, k."""
    checkpoint: Path | None = None
    """Folder of the training checkpoints. The same command resumes from them [default: no checkpoints]."""
    out: Path = Path("results/elbo_vs_iwae")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Train and evaluate the two models. Print and write the table and the figures."""
    with pv.parallel.join(options.device):
        return compare(options)


def compare(options: Options) -> pd.DataFrame:
    """Train and evaluate the two models, in one process or in several."""
    splits = comparison.load(options)
    objectives = {"VAE": Trace_ELBO(), "IWAE": pv.objectives.IWAE(options.num_particles)}
    vaes, histories, results, likelihoods = {}, {}, {}, {}
    for name, objective in comparison.chosen(objectives, options).items():
        vaes[name] = vae = comparison.build(options, splits.train.shape[1:])
        folder = None if options.checkpoint is None else options.checkpoint / name
        histories[name] = comparison.train(vae, splits, options, objective=objective, checkpoint=folder)
        results[name] = comparison.evaluate(vae, splits, options)
        likelihoods[name] = comparison.log_likelihood(vae, splits, options)

    table = comparison.summarize(results, histories, ks=(5, 50), likelihoods=likelihoods)
    if len(results) == 2:
        table = pd.concat([table, difference(results, likelihoods)])[table.columns].fillna("")
    comparison.report(splits, table)
    figures = comparison.draw(vaes, histories, results) | {"reconstructions": reconstructions(vaes, splits.test[:14])}
    comparison.write(options, table, figures, histories, results)
    return table


def difference(results: Mapping[str, xr.Dataset], likelihoods: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return the bounds of the second model minus those of the first, on the same data."""
    first, second = results.values()
    row = {"ELBO": cell(second.elbo - first.elbo, np.hypot(first.elbo_mcse, second.elbo_mcse))}
    for k in (k for k in first.k.values.tolist() if k in (5, 50, first.attrs["num_samples"])):
        a, b = first.sel(k=k), second.sel(k=k)
        is_last = k == first.attrs["num_samples"] and not (comparison.has_error(first) and comparison.has_error(second))
        mcse = None if is_last else np.hypot(a.iwae_mcse, b.iwae_mcse)
        row[f"IWAE_{k}"] = cell(b.iwae - a.iwae, mcse)
    first, second = likelihoods.values()
    row["log p(x)"] = cell(second.log_likelihood - first.log_likelihood, np.hypot(first.mcse, second.mcse))
    return pd.DataFrame({"difference": row}).T


def reconstructions(vaes: Mapping[str, pv.VAE], test: torch.Tensor) -> Figure:
    """Draw test data above their reconstructions by each model."""
    x = test.to(next(next(iter(vaes.values())).parameters()).device)
    panels = {f"{name} reconstructions": vae.reconstruct(x, mean=True) for name, vae in vaes.items()}
    return figure_of(pv.plots.images({"test data": x, **panels}, columns=len(x), stacked=True))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
