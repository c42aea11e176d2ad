"""Error and cost of estimates of log p(x), where the exact value or bounds on it are known.

Four estimates bound log p(x) from below: the ELBO, importance sampling (IWAE_K), importance sampling with quasi-Monte
Carlo draws, and annealed importance sampling. They become tighter with more draws or more temperatures. Reverse
annealing from exact posterior draws bounds log p(x) from above. The first model is probabilistic PCA of the digits,
whose log p(x) has a closed form, with a guide of wrong scales. The second model is a VAE on digits that it simulated
itself, so that the two directions of annealing enclose the exact value. Finally, importance sampling and annealing are
compared on real test digits, for which no upper bound is available.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import tyro
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._figures import printed
from pyrovae.plots import style

Exact = Callable[[Tensor], Tensor]
PCA, VAE, TEST = "probabilistic PCA, simulated digits", "VAE, simulated digits", "VAE, test digits"


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    num_data: int = 20
    """Number of data, simulated and real."""
    draws: tuple[int, ...] = (128, 1024, 8192, 65536)
    """Numbers of draws per datum of importance sampling; multiples of 32."""
    temperatures: tuple[int, ...] = (10, 30, 100, 300)
    """Numbers of intermediate densities between guide and posterior in annealing."""
    num_chains: int = 16
    """Number of annealing chains."""
    pca_latent: int = 20
    """Number of principal components."""
    pca_scale: float = 0.6
    """Scales of the guide of probabilistic PCA, relative to those of the posterior."""
    out: Path = Path("results/evaluation")
    """Folder for tables and figures."""


def pca(splits: pv.data.Splits, options: Options) -> tuple[pv.VAE, Exact]:
    """Return probabilistic PCA, fitted by maximum likelihood (Tipping and Bishop, 1999), and its exact log p(x)."""
    event_shape = splits.train.shape[1:]
    x = splits.train.double().flatten(1)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(x.T.cov()))
    variances, noise = values[: options.pca_latent], values[options.pca_latent :].mean()
    weight = vectors[:, : options.pca_latent] * (variances - noise).sqrt()
    # The columns of the weight are orthogonal, so the dimensions of the posterior are independent.
    gain, scale = weight.T / variances[:, None], (noise / variances).sqrt()
    log_scale = (options.pca_scale * scale).log()
    encoder = affine(torch.cat([gain, torch.zeros_like(gain)]), torch.cat([-gain @ x.mean(0), log_scale]))
    vae = pv.VAE(
        pv.priors.StandardNormal(options.pca_latent),
        pv.likelihoods.Normal(
            nn.Sequential(affine(weight, x.mean(0)), nn.Unflatten(-1, event_shape)), scale=float(noise.sqrt())
        ),
        pv.posteriors.DiagonalNormal(nn.Sequential(nn.Flatten(-len(event_shape)), encoder)),
    ).double()
    marginal = torch.distributions.LowRankMultivariateNormal(x.mean(0), weight, noise.expand(x.shape[1]))
    return vae, lambda x: marginal.log_prob(x.flatten(1))


def affine(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the map x -> weight x + bias."""
    layer = nn.Linear(*weight.shape[::-1]).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def digits(splits: pv.data.Splits, options: Options) -> pv.VAE:
    """Return the VAE of the other experiments, trained with the ELBO."""
    vae = comparison.build(options, splits.train.shape[1:])
    comparison.train(vae, splits, options)
    return vae


def main(options: Options) -> pd.DataFrame:
    """Evaluate both models at every cost. Print and write the table and the figure."""
    splits = comparison.load(options)
    template = splits.test[: options.num_data]
    oracle, exact = pca(splits, options)
    vae = digits(splits, options)
    place = next(vae.parameters()).device
    truth: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for model, program, x in ((PCA, oracle, template.double()), (VAE, vae, template.to(place))):
        bounds = {cost: sandwich(program, x, cost, options) for cost in options.temperatures}
        simulated = torch.as_tensor(next(iter(bounds.values())).simulated_0.values).to(x.device)
        if model == PCA:
            truth[model] = float(exact(simulated).mean())
        rows += lower_bounds(model, program, simulated, options)
        for cost, result in bounds.items():
            rows.append(
                row(model, "annealing, backwards", cost, result.upper, result.upper_mcse, result.attrs["seconds"])
            )
    rows += lower_bounds(TEST, vae, template.to(place), options)
    table = pd.DataFrame(rows)
    table["error"] = table.estimate - table.model.map(truth)
    print(f"\n{splits.name}, {options.num_data} data, nats per datum, seconds per datum\n")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep=""))
    for model, value in truth.items():
        print(f"\nexact log p(x) of {model}: {value:.3f}")
    comparison.write(options, table, {"evaluation": draw(table, truth)})
    return table


def sandwich(vae: pv.VAE, x: Tensor, num_temperatures: int, options: Options) -> xr.Dataset:
    """Return lower and upper bounds on log p(x) of simulated data, which are the same at every cost."""
    return pv.evaluation.bdmc(
        vae.model, vae.guide, x, options.num_chains, num_temperatures=num_temperatures, seed=options.seed
    )


def lower_bounds(model: str, vae: pv.VAE, x: Tensor, options: Options) -> Iterator[dict[str, Any]]:
    """Yield the table rows of all lower bounds, at every cost."""
    both = vae.model, vae.guide, x
    for cost in options.draws:
        result = pv.evaluation.evaluate(*both, cost, seed=options.seed)
        if cost == max(options.draws):
            yield row(model, "ELBO", 1, result.elbo, result.elbo_mcse, result.attrs["seconds"] / cost)
        yield row(model, "importance sampling", cost, result.log_likelihood, result.mcse, result.attrs["seconds"])
    for cost in options.draws:
        result = pv.evaluation.rqmc(*both, cost, seed=options.seed)
        yield row(model, "quasi-Monte Carlo", cost, result.log_likelihood, result.mcse, result.attrs["seconds"])
    for cost in options.temperatures:
        result = pv.evaluation.ais(*both, options.num_chains, num_temperatures=cost, seed=options.seed)
        yield row(model, "annealing", cost, result.log_likelihood, result.mcse, result.attrs["seconds"])


def row(
    model: str, estimator: str, cost: int, estimate: xr.DataArray, mcse: xr.DataArray, seconds: float
) -> dict[str, Any]:
    """Return a table row: the mean over the data with its Monte Carlo error."""
    return {
        "model": model,
        "estimator": estimator,
        "cost": cost,
        "seconds": seconds / estimate.size,
        "estimate": float(estimate.mean()),
        "mcse": math.sqrt(float((mcse**2).sum())) / estimate.size,
    }


@printed
def draw(table: pd.DataFrame, truth: dict[str, float]) -> Figure:
    """Draw the estimates against the seconds, in one panel per model."""
    models = table.model.unique()
    figure, axes = plt.subplots(1, len(models), figsize=(style.PAGE, 3.2), layout="constrained")
    for ax, model in zip(axes, models, strict=True):
        panel(ax, table[table.model == model], truth.get(model))
        style.title(ax, model)
    axes[0].set_ylabel("log p(x) (nats per datum)")
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def panel(ax: Axes, table: pd.DataFrame, truth: float | None) -> None:
    """Draw the estimates of one model with their 95% Monte Carlo intervals."""
    for i, estimator in enumerate(("importance sampling", "quasi-Monte Carlo", "annealing", "annealing, backwards")):
        own = table[table.estimator == estimator]
        if len(own):
            ax.errorbar(
                own.seconds,
                own.estimate,
                1.96 * own.mcse,
                color=style.color(i),
                marker=style.marker(i),
                linestyle=style.LINES[i],
                markersize=4,
                capsize=2,
                label=estimator,
            )
    bound = float(table.estimate[table.estimator == "ELBO"].iloc[0])
    ax.text(0.97, 0.03, f"ELBO {bound:.1f}", transform=ax.transAxes, ha="right", fontsize=8)
    if truth is not None:
        ax.axhline(truth, color="black", linestyle=":", linewidth=1, label="exact")
    ax.set(xscale="log", xlabel="seconds per datum")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
