"""How far is the ELBO from log p(x), and does training with the IWAE bound buy likelihood?

The same variational autoencoder, from the same initial weights and on the same digits, is trained twice by Pyro's SVI:
once with the ELBO and once with the importance-weighted bound. Both are then judged alike: ELBO, IWAE_k and the
importance-sampling estimate of log p(x) on the test digits, with standard errors, effective sample size and k-hat.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
import tyro
import xarray as xr
from pyro.infer import Trace_ELBO

import pyrovae as pv


@dataclass
class Options:
    """Options of the experiment."""

    data: Literal["mnist5k", "digits", "mnist", "fashion_mnist", "static_mnist", "caltech101_silhouettes"] = "mnist5k"
    """Data set; the first two need no download."""
    binarization: Literal["static", "dynamic"] = "dynamic"
    """How grey digits become binary; some sets are binary already."""
    root: Path | None = None
    """Folder of the data [default: PYROVAE_DATA, else ~/.cache/pyrovae]."""
    latent: int = 50
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers, from data to latent."""
    num_particles: int = 5
    """Draws per datum of the IWAE objective."""
    epochs: int = 80
    """Passes over the training data."""
    batch_size: int = 100
    """Data per step."""
    learning_rate: float = 2e-3
    """Learning rate of Adam, which a cosine takes to a hundredth of it."""
    kl_warmup: int = 60
    """Epochs over which the weight of the latent sites grows to 1, so that no latent dimension is given up early."""
    num_samples: int = 5000
    """Draws per test datum of the evaluation."""
    test_size: int | None = None
    """Evaluate so many test data, drawn at random [default: all]."""
    device: str = "auto"
    """Where to compute; auto is a CUDA device if there is one, else the CPU."""
    seed: int = 0
    """Seed of the initial weights, the training and the evaluation."""
    out: Path = Path("results/elbo_vs_iwae")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Trains and evaluates the two models; prints and writes the table and the figures."""
    splits = load(options)
    objectives = {"VAE": Trace_ELBO(), "IWAE": pv.objectives.IWAE(options.num_particles)}
    vaes, histories, results, seconds, active = {}, {}, {}, {}, {}
    for name, objective in objectives.items():
        vaes[name] = vae = build(options, event_shape=splits.train.shape[1:])
        histories[name] = history = pv.fit(
            vae,
            splits.train,
            splits.valid,
            objective=objective,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            scheduler=partial(
                torch.optim.lr_scheduler.CosineAnnealingLR, T_max=options.epochs, eta_min=options.learning_rate / 100
            ),
            kl_warmup=options.kl_warmup,
            transform=splits.transform,
            seed=options.seed,
            device=options.device,
        )
        test = splits.test.to(next(vae.parameters()).device)
        results[name] = pv.evaluation.evaluate(
            vae.model, vae.guide, test, options.num_samples, seed=options.seed, binarization=splits.binarization
        )
        active[name] = int(pv.evaluation.active_units(vae.guide, test, seed=options.seed)["z"].sum())
        seconds[name] = max(history.seconds, default=0.0)

    table = summarize(results, active, seconds)
    print(f"\n{splits.name}, {splits.binarization} binarization, {len(splits.test)} test data, nats per datum:")
    print("mean ± standard error over the data (Monte Carlo error); seconds are those of training\n")
    print(table.to_string())

    options.out.mkdir(parents=True, exist_ok=True)
    write(options, table, histories, results)
    draw(options.out, vaes, histories, results, splits.test)
    print(f"\nresults and figures are in {options.out}")
    return table


def load(options: Options) -> pv.data.Splits:
    """Reads the data, and draws a subset of the test data if one is asked for."""
    choose = getattr(pv.data, options.data)
    match options.data:
        case "mnist5k" | "digits":
            splits = choose(options.binarization)
        case "mnist" | "fashion_mnist":
            splits = choose(options.binarization, root=options.root)
        case _:
            splits = choose(root=options.root)
    chosen = np.random.RandomState(options.seed).permutation(len(splits.test))[: options.test_size]
    return replace(splits, test=splits.test[np.sort(chosen)])


def build(options: Options, event_shape: tuple[int, ...]) -> pv.VAE:
    """The widths of the IWAE paper's network under softplus, with the same initial weights at every call."""
    pyro.set_rng_seed(options.seed)
    mlp = partial(pv.networks.mlp, activation=torch.nn.Softplus)
    return pv.VAE(
        prior=pv.priors.StandardNormal(options.latent),
        likelihood=pv.likelihoods.Bernoulli(mlp(options.latent, *options.hidden[::-1], event_shape)),
        posterior=pv.posteriors.DiagonalNormal(mlp(event_shape, *options.hidden, 2 * options.latent)),
    )


def summarize(
    results: Mapping[str, xr.Dataset], active: Mapping[str, int], seconds: Mapping[str, float]
) -> pd.DataFrame:
    """One row a model, and one for their difference on the same data."""
    rows = {}
    for name, result in results.items():
        rows[name] = {
            "ELBO": cell(result.elbo, result.elbo_mcse),
            **{f"IWAE_{k}": cell(result.iwae.sel(k=k), result.iwae_mcse.sel(k=k)) for k in reported(result)},
            "ESS": f"{float(result.ess.mean()):.0f}",
            "k-hat > 0.7": f"{float((result.pareto_k > 0.7).mean()):.0%}",
            "active units": str(active[name]),
            "seconds": f"{seconds[name]:.0f}",
        }
    first, second = results.values()
    rows["difference"] = {
        "ELBO": cell(second.elbo - first.elbo, np.hypot(first.elbo_mcse, second.elbo_mcse)),
        **{
            f"IWAE_{k}": cell(
                (second - first).iwae.sel(k=k), np.hypot(first.iwae_mcse.sel(k=k), second.iwae_mcse.sel(k=k))
            )
            for k in reported(first)
        },
    }
    return pd.DataFrame(rows).T.fillna("")


def reported(result: xr.Dataset) -> list[int]:
    """The numbers of draws that the table shows: 5, 50 and all."""
    return [k for k in result.k.values.tolist() if k in (5, 50, result.attrs["num_samples"])]


def cell(values: xr.DataArray, mcse: xr.DataArray) -> str:
    """Mean over the data ± its standard error (Monte Carlo error of the mean)."""
    n = values.sizes["datum"]
    error, monte_carlo = float(values.std(ddof=1)) / n**0.5, float((mcse**2).sum()) ** 0.5 / n
    return f"{float(values.mean()):.2f} ± {error:.2f} ({monte_carlo:.2f})"


def write(
    options: Options, table: pd.DataFrame, histories: Mapping[str, pv.History], results: Mapping[str, xr.Dataset]
) -> None:
    """Writes the table with its histories as JSON, and all results per datum as NetCDF."""
    record: dict[str, Any] = {
        "options": asdict(options),
        "table": table.to_dict("index"),
        "histories": {name: asdict(history) for name, history in histories.items()},
        "evaluation": {name: result.attrs for name, result in results.items()},
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=2, default=str))
    models = xr.concat(results.values(), pd.Index(results, name="model"), combine_attrs="drop_conflicts")
    models.to_netcdf(options.out / "evaluation.nc")


def draw(
    out: Path,
    vaes: Mapping[str, pv.VAE],
    histories: Mapping[str, pv.History],
    results: Mapping[str, xr.Dataset],
    test: torch.Tensor,
) -> None:
    """Draws bounds, learning curves, reconstructions and samples."""
    x = test[:14].to(next(next(iter(vaes.values())).parameters()).device)
    figures = {name: plt.figure(figsize=(5.5, 3.8), layout="constrained") for name in ("bounds", "learning_curves")}
    pv.plots.bounds(results, ax=figures["bounds"].subplots())
    pv.plots.learning_curves(histories, ax=figures["learning_curves"].subplots())
    figures |= {
        "reconstructions": pv.plots.images(
            {
                "test data": x,
                **{f"{name} reconstructions": vae.reconstruct(x, mean=True) for name, vae in vaes.items()},
            },
            columns=len(x),
            stacked=True,
        ),
        "samples": pv.plots.images({name: vae.generate(64, mean=True) for name, vae in vaes.items()}, columns=8),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=200, bbox_inches="tight")
        plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
