"""Is a VAE's ELBO loose because of its posterior's family, or because of its encoder?

Cremer, Li and Duvenaud (2018) split log p(x) - ELBO into two gaps. The approximation gap remains under the best
posterior of the family, and the amortization gap is added by the encoder. This experiment measures both gaps for a VAE
with a mean-field posterior and for a VAE with a coupling flow, on training and on test data. log p(x) is estimated by
annealed importance sampling. The best mean-field normal and the best flow are found by gradient ascent for each digit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._comparison import mlp
from experiments._figures import printed
from pyrovae.plots import style


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    context: int = 32
    """Number of features of x that the encoder passes to the flow."""
    num_data: int = 50
    """Number of training data, and of test data, whose gaps are measured."""
    num_chains: int = 16
    """Number of chains of annealed importance sampling."""
    num_temperatures: int = 100
    """Number of intermediate densities between guide and posterior."""
    num_steps: int = 500
    """Steps of gradient ascent for each local posterior."""
    num_samples: int = 1000
    """Draws per datum of the ELBOs."""
    out: Path = Path("results/gaps")
    """Folder for tables and figures."""


def posteriors(options: Options, event_shape: tuple[int, ...]) -> dict[str, Callable[[], nn.Module]]:
    """Return functions that build the two families of amortized posteriors."""
    latent = options.latent

    def mean_field() -> nn.Module:
        return pv.posteriors.DiagonalNormal(mlp(event_shape, *options.hidden, 2 * latent))

    def flow() -> nn.Module:
        coupling = pv.flows.coupling(latent, context=options.context, depth=2, hidden=options.hidden[-1:])
        return pv.posteriors.NormalizingFlow(mean_field(), coupling, mlp(event_shape, *options.hidden, options.context))

    return {"mean field": mean_field, "flow": flow}


def main(options: Options) -> pd.DataFrame:
    """Train the models and measure their gaps. Print and write the table, the gaps per datum and the figure."""
    splits = comparison.load(options)
    gaps, histories = {}, {}
    for name, posterior in comparison.chosen(posteriors(options, splits.train.shape[1:]), options).items():
        pyro.set_rng_seed(options.seed)
        vae = pv.VAE(
            pv.priors.StandardNormal(options.latent),
            pv.likelihoods.Bernoulli(mlp(options.latent, *options.hidden[::-1], splits.train.shape[1:])),
            posterior(),
        )
        histories[name] = comparison.train(vae, splits, options)
        for split, x in some_data(splits, options).items():
            gaps[f"{name}, {split}"] = measure(vae, x.to(next(vae.parameters()).device), options)
    table = pd.DataFrame({name: row(result) for name, result in gaps.items()}).T
    print(f"\n{splits.name}, {options.num_data} data each, nats per datum")
    print("mean ± standard error over the data (Monte Carlo error)\n")
    print(table.to_string())
    comparison.write(options, table, {"gaps": draw(gaps)}, histories, gaps)
    return table


def some_data(splits: pv.data.Splits, options: Options) -> dict[str, Tensor]:
    """Return some of the training and of the test data, binarized in the same way."""
    torch.manual_seed(options.seed)
    train = splits.train[torch.randperm(len(splits.train))[: options.num_data]]
    return {
        "train": train if splits.transform is None else pv.data.binarize(train),
        "test": splits.test[: options.num_data],
    }


def measure(vae: pv.VAE, x: Tensor, options: Options) -> xr.Dataset:
    """Return the gaps of each datum under the best mean-field normal and under the best flow."""
    reference = pv.evaluation.ais(
        vae.model,
        vae.guide,
        x,
        options.num_chains,
        num_temperatures=options.num_temperatures,
        seed=options.seed,
    )
    families: dict[Any, xr.Dataset] = {
        family: pv.evaluation.inference_gaps(
            vae.model,
            vae.guide,
            x,
            reference,
            family=family,
            num_steps=options.num_steps,
            num_samples=options.num_samples,
            seed=options.seed,
        )
        for family in ("normal", "flow")
    }
    return xr.concat(families.values(), pd.Index(families, name="family"), combine_attrs="drop_conflicts")


def row(result: xr.Dataset) -> dict[str, str]:
    """Return the table row of one model and split."""
    normal, flow = result.sel(family="normal"), result.sel(family="flow")
    columns = {
        "log p(x), AIS": (normal.log_likelihood, normal.mcse),
        "best flow": (flow.local_elbo, flow.local_elbo_mcse),
        "best normal": (normal.local_elbo, normal.local_elbo_mcse),
        "ELBO": (normal.elbo, normal.elbo_mcse),
        "approximation, normal": (normal.approximation_gap, np.hypot(normal.mcse, normal.local_elbo_mcse)),
        "approximation, flow": (flow.approximation_gap, np.hypot(flow.mcse, flow.local_elbo_mcse)),
        "amortization, normal": (normal.amortization_gap, np.hypot(normal.local_elbo_mcse, normal.elbo_mcse)),
        "amortization, flow": (flow.amortization_gap, np.hypot(flow.local_elbo_mcse, flow.elbo_mcse)),
    }
    return {name: comparison.cell(values, mcse) for name, (values, mcse) in columns.items()}


@printed
def draw(gaps: Mapping[str, xr.Dataset]) -> Figure:
    """Draw stacked gaps of each model and split in its own family: normal for mean field, flow for the flow."""
    figure, ax = plt.subplots(figsize=(style.PAGE, 0.5 * len(gaps) + 1.0), layout="constrained")
    for i, (name, result) in enumerate(gaps.items()):
        own = result.sel(family="flow" if name.startswith("flow") else "normal")
        left = 0.0
        for j, kind in enumerate(("approximation", "amortization")):
            gap = own[f"{kind}_gap"]
            error = float(gap.std(ddof=1)) / gap.size**0.5
            look: dict[str, Any] = {
                "color": style.color(j),
                "hatch": ("", "//")[j],
                "edgecolor": "white",
                "height": 0.6,
                "capsize": 3,
            }
            label = f"{kind} gap" if i == 0 else None
            ax.barh(name, float(gap.mean()), left=left, xerr=error, label=label, **look)
            left += float(gap.mean())
    ax.invert_yaxis()
    ax.set_xlabel(r"$\log p(x) -$ ELBO (nats per datum)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
