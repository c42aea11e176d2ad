"""Code shared by the experiments: loading data, training, evaluation, and the table and figures of a comparison.

The models of a comparison have the same network widths, the same number of epochs and the same test data. Differences
are therefore paired: their standard error is that of the mean difference over the data.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
import xarray as xr
from matplotlib.figure import Figure
from pyro.infer import ELBO
from torch import nn

import pyrovae as pv
from experiments._figures import figure_of

mlp = partial(pv.networks.mlp, activation=nn.Softplus)
Model = TypeVar("Model")
EVALUATIONS = 3_000  # of the densities for a datum, a typical number for log_likelihood
DataSet = Literal["mnist5k", "digits", "mnist", "fashion_mnist", "static_mnist", "caltech101_silhouettes"]


@dataclass
class Options:
    """Options of every experiment."""

    data: DataSet = "mnist5k"
    """Data set; ``mnist5k`` and ``digits`` need no download."""
    binarization: Literal["none", "static", "dynamic"] = "dynamic"
    """Method that makes grey digits binary; ``none`` keeps grey values. Some data sets are already binary."""
    root: Path | None = None
    """Folder of the data [default: the environment variable PYROVAE_DATA, else ~/.cache/pyrovae]."""
    latent: int = 50
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers, in the order from data to latents."""
    epochs: int = 80
    """Passes over the training data."""
    batch_size: int = 100
    """Batch size."""
    learning_rate: float = 2e-3
    """Initial learning rate of Adam. A cosine schedule lowers it to a hundredth of this value."""
    kl_warmup: int = 60
    """Epochs over which the weight of the latent sites grows to 1, so that fewer latent dimensions become inactive."""
    num_samples: int = 5000
    """Draws per test datum in the evaluation."""
    models: tuple[str, ...] = ()
    """Names of the models to compare [default: all]."""
    test_size: int | None = None
    """Number of test data to evaluate, drawn at random [default: all]."""
    compile: bool = False
    """Compile training and every evaluation, which takes some seconds per model. Long evaluations always compile."""
    device: str = "auto"
    """Device; auto is a CUDA device if there is one, else the CPU."""
    seed: int = 0
    """Seed of the initial weights, the training and the evaluation."""
    out: Path = Path("results")
    """Folder for tables and figures."""


class Written(Protocol):
    """Options that name the folder of the results."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    out: Path


def load(options: Options) -> pv.data.Splits:
    """Read the data in the first of several processes, and draw a random subset of the test data if requested."""
    return pv.parallel.in_first(partial(_load, options))


def _load(options: Options) -> pv.data.Splits:
    choose = getattr(pv.data, options.data)
    match options.data:
        case "mnist5k" | "digits":
            splits = choose(options.binarization)
        case "mnist" | "fashion_mnist":
            splits = choose(options.binarization, root=options.root)
        case _:
            splits = choose(root=options.root)
    kept = np.sort(np.random.RandomState(options.seed).permutation(len(splits.test))[: options.test_size])
    labels = splits.labels and (*splits.labels[:2], splits.labels[2][kept])
    return replace(splits, test=splits.test[kept], labels=labels)


def chosen(models: Mapping[str, Model], options: Options) -> dict[str, Model]:
    """Return the models that the options name.

    Raises:
        ValueError: If the options name an unknown model.
    """
    if unknown := set(options.models) - set(models):
        raise ValueError(f"{min(unknown)!r} is not a model of this experiment. Choose from {list(models)}.")
    return {name: model for name, model in models.items() if name in (options.models or models)}


def run(options: Options, splits: pv.data.Splits, models: Mapping[str, Callable[[], pv.VAE]]) -> pd.DataFrame:
    """Train and evaluate the models from the same seed. Print and write the table and the figures."""
    vaes, histories, results, quoted, draws = {}, {}, {}, {}, {}
    for name, build in chosen(models, options).items():
        pyro.set_rng_seed(options.seed)
        vaes[name] = build()
        histories[name] = train(vaes[name], splits, options)
        results[name] = evaluate(vaes[name], splits, options)
        quoted[name] = log_likelihood(vaes[name], splits, options)
        draws[name] = latent_draws(vaes[name], splits.test)
    table = summarize(results, histories, likelihoods=quoted)
    table.insert(4, "difference", differences(quoted))
    report(splits, table)
    figures = draw(vaes, histories, results) | {"aggregate_posteriors": figure_of(pv.plots.aggregate_posteriors(draws))}
    write(options, table, figures, histories, {name: with_quoted(results[name], quoted[name]) for name in results})
    return table


def build(options: Options, event_shape: tuple[int, ...]) -> pv.VAE:
    """Return a VAE with the IWAE paper's layer widths, softplus units and the same initial weights at every call."""
    pyro.set_rng_seed(options.seed)
    return pv.VAE(
        prior=pv.priors.StandardNormal(options.latent),
        likelihood=pv.likelihoods.Bernoulli(mlp(options.latent, *options.hidden[::-1], event_shape)),
        posterior=pv.posteriors.DiagonalNormal(mlp(event_shape, *options.hidden, 2 * options.latent)),
    )


def train(
    vae: nn.Module, splits: pv.data.Splits, options: Options, *, objective: ELBO | None = None, **others: Any
) -> pv.History:
    """Train by Adam with a cosine schedule and a KL warm-up, and keep the weights of the best validation epoch."""
    return pv.fit(
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
        compile=options.compile,
        seed=options.seed,
        device=options.device,
        **{"transform": splits.transform, **others},
    )


def evaluate(vae: Any, splits: pv.data.Splits, options: Options, **others: Any) -> xr.Dataset:
    """Evaluate a model on the test data, and add the number of active units as an attribute of the result."""
    test = splits.test.to(next(vae.parameters()).device)
    result = pv.evaluation.evaluate(
        vae.model,
        vae.guide,
        test,
        options.num_samples,
        seed=options.seed,
        compile=_compiles(options, options.num_samples * len(test)),
        binarization=splits.binarization,
        **others,
    )
    active = pv.evaluation.active_units(vae.guide, test, seed=options.seed)
    return result.assign_attrs(active_units=int(sum(active[site].sum() for site in active.attrs["sites"])))


def log_likelihood(vae: Any, splits: pv.data.Splits, options: Options, **others: Any) -> xr.Dataset:
    """Return the estimates of ``pyrovae.evaluation.log_likelihood`` for the test data."""
    return pv.evaluation.log_likelihood(
        vae.model,
        vae.guide,
        splits.test.to(next(vae.parameters()).device),
        seed=options.seed,
        compile=_compiles(options, EVALUATIONS * len(splits.test)),
        binarization=splits.binarization,
        **others,
    )


def _compiles(options: Options, evaluations: int) -> bool:
    """Return true if an evaluation is compiled, as the option ``compile`` requests, or because it is long."""
    return options.compile or evaluations >= 10**6


def with_quoted(result: xr.Dataset, quoted: xr.Dataset) -> xr.Dataset:
    """Return the result of the encoder with ``log_likelihood`` as ``quoted``, ``quoted_mcse`` and ``reliable``."""
    return result.assign(quoted=quoted.log_likelihood, quoted_mcse=quoted.mcse, reliable=quoted.reliable)


def has_error(result: xr.Dataset) -> bool:
    """Return whether k-hat permits a Monte Carlo error for the estimate from all draws."""
    return float((result.pareto_k > 0.7).mean()) <= 0.01


def summarize(
    results: Mapping[str, xr.Dataset],
    histories: Mapping[str, pv.History],
    ks: Sequence[int] = (),
    likelihoods: Mapping[str, xr.Dataset] = MappingProxyType({}),
) -> pd.DataFrame:
    """Return one row for each model: bounds, the estimate of log p(x), and diagnostics of the proposal."""
    rows = {}
    for name, result in results.items():
        reported = [k for k in result.k.values.tolist() if k in (*ks, result.attrs["num_samples"])]
        rows[name] = {
            "ELBO": cell(result.elbo, result.elbo_mcse),
            **{f"IWAE_{k}": _bound(result, k) for k in reported},
            **_quoted(likelihoods.get(name)),
            "ESS": f"{float(result.ess.mean()):.0f}",
            "k-hat > 0.7": f"{float((result.pareto_k > 0.7).mean()):.0%}",
            "active units": str(result.attrs["active_units"]),
            "seconds": f"{max(histories[name].seconds, default=0.0):.0f}",
        }
    return pd.DataFrame(rows).T


def differences(results: Mapping[str, xr.Dataset]) -> list[str]:
    """Return the estimates of log p(x) of all models minus those of the first model, on the same data."""
    columns = ["difference", "difference_error", "difference_mcse"]
    compared = pv.evaluation.compare(results).loc[list(results), columns]
    return ["", *(_with_errors(*row) for row in compared.values[1:])]


def _bound(result: xr.Dataset, k: int) -> str:
    """Return the table cell of a bound. The Monte Carlo error is left out if k-hat makes it invalid."""
    is_last = k == result.attrs["num_samples"]
    return cell(result.iwae.sel(k=k), None if is_last and not has_error(result) else result.iwae_mcse.sel(k=k))


def _quoted(result: xr.Dataset | None) -> dict[str, str]:
    """Return the table cells of the estimate of log p(x) and of the fraction of reliable data."""
    if result is None:
        return {}
    share = float(result.reliable.mean())
    quoted = cell(result.log_likelihood, result.mcse if share >= 0.99 else None)
    return {"log p(x)": quoted, "reliable": f"{share:.0%}"}


def cell(values: xr.DataArray, mcse: xr.DataArray | None, digits: int = 2) -> str:
    """Return the mean over the data ± its standard error, and in brackets its Monte Carlo error if it is known."""
    n = values.sizes["datum"]
    monte_carlo = math.nan if mcse is None else float((mcse**2).sum()) ** 0.5 / n
    return _with_errors(float(values.mean()), float(values.std(ddof=1)) / n**0.5, monte_carlo, digits=digits)


def _with_errors(mean: float, error: float, monte_carlo: float, digits: int = 2) -> str:
    brackets = "" if math.isnan(monte_carlo) else f" ({monte_carlo:.{digits}f})"
    return f"{mean:.{digits}f} ± {error:.{digits}f}{brackets}"


def report(splits: pv.data.Splits, table: pd.DataFrame) -> None:
    """Print the table in the first of several processes."""
    if not pv.parallel.is_first():
        return
    values = "grey values" if splits.binarization == "none" else f"{splits.binarization} binarization"
    print(f"\n{splits.name}, {values}, {len(splits.test)} test data, nats per datum:")
    print("mean ± standard error over the data (Monte Carlo error); seconds are those of training\n")
    print(table.to_string())


def write(
    options: Written,
    table: pd.DataFrame,
    figures: Mapping[str, Figure],
    histories: Mapping[str, pv.History] = MappingProxyType({}),
    results: Mapping[str, xr.Dataset] = MappingProxyType({}),
) -> None:
    """Write the table and histories as JSON, the results per datum as NetCDF, and the figures, in the first process."""
    if not pv.parallel.is_first():
        return
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "options": asdict(options),
        "table": table.to_dict("index"),
        "histories": {name: asdict(history) for name, history in histories.items()},
        "evaluation": {name: result.attrs for name, result in results.items()},
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=2, default=str))
    if results:
        models = xr.concat(results.values(), pd.Index(results, name="model"), combine_attrs="drop_conflicts")
        models.to_netcdf(options.out / "evaluation.nc")
    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png", dpi=200, bbox_inches="tight")
        plt.close(figure)
    print(f"\nresults and figures are in {options.out}")


def draw(
    vaes: Mapping[str, pv.VAE],
    histories: Mapping[str, pv.History],
    results: Mapping[str, xr.Dataset],
) -> dict[str, Figure]:
    """Draw the bounds, the learning curves, and the samples side by side."""
    axes = {
        "bounds": pv.plots.bounds(results),
        "learning_curves": pv.plots.learning_curves(histories),
        "samples": pv.plots.images({name: samples(vae) for name, vae in vaes.items()}, columns=8),
    }
    return {name: figure_of(drawn) for name, drawn in axes.items()}


@torch.no_grad()
def samples(vae: pv.VAE, n: int = 64) -> torch.Tensor:
    """Return the means of p(x | z) for draws of z from the prior, with the same random numbers for every model."""
    torch.manual_seed(0)
    return vae.generate(n, mean=True)


@torch.no_grad()
def latent_draws(vae: pv.VAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a posterior draw for each datum, and as many prior draws, each of shape ``(N, latent)``."""
    x = x.to(next(vae.parameters()).device)
    return vae.posterior(x).sample(), vae.prior().sample((len(x),))
