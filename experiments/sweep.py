"""Do a better prior and a tighter objective add up, under any likelihood, and by more than seeds differ?

Every prior is combined with every likelihood and every objective, and each combination is trained from several seeds;
nothing else is changed. The estimates of log p(x) are averaged over the seeds. Differences are paired, over the seeds
and over the test data, between models of the same likelihood: binary and grey digits are not comparable. The cells of
the grid are computed in parallel on Ray where it is installed, else in order; those that are finished are kept, so that
another run computes only what is missing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Literal

import pandas as pd
import pyro
import torch
import tyro
import xarray as xr
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._cells import Executor, Settings, fill, in_order
from experiments._comparison import mlp
from experiments._ray import is_installed, on_ray
from experiments._seeds import Model, draw, summarize
from pyrovae.versions import version


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    priors: tuple[str, ...] = ("StandardNormal", "VampPrior")
    """Priors of the grid; there is NormalizingFlow too."""
    likelihoods: tuple[str, ...] = ("Bernoulli", "DiscretizedLogistic")
    """Likelihoods of the grid; DiscretizedLogistic needs a data set of grey images."""
    objectives: tuple[str, ...] = ("ELBO", "IWAE")
    """Objectives of the grid."""
    models: tuple[str, ...] = ()
    """Only these combinations, such as "VampPrior, Bernoulli, IWAE" [default: all of the grid]."""
    repeats: int = 3
    """Number of seeds for each combination, from the first on."""
    seed: int = 0
    """The first seed, of initial weights, training and evaluation."""
    latent: int = 20
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = (200,)
    """Widths of the hidden layers, from data to latent."""
    components: int = 50
    """Pseudo-inputs of the VampPrior."""
    num_particles: int = 5
    """Draws per datum of the IWAE objective."""
    epochs: int = 20
    """Passes over the training data."""
    kl_warmup: int = 10
    """Epochs over which the weight of the latent sites grows to 1."""
    num_samples: int = 200
    """Draws per test datum of the evaluation."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where a cell is computed."""
    threads: int = 1
    """Threads of a cell on the CPU; another number adds in another order, to results that differ by rounding."""
    parallel: bool = True
    """Whether to use Ray where it is installed."""
    address: str | None = None
    """Address of a running Ray cluster [default: Ray on this machine alone]."""
    cores: int | None = None
    """Cores of this machine to use [default: all]."""
    retries: int = 2
    """How often a cell that fails is tried again."""
    out: Path = Path("results/sweep")
    """Folder for the cells, tables and figures."""


PRIORS: dict[str, Callable[[Options, torch.Tensor], nn.Module]] = {
    "StandardNormal": lambda options, _train: pv.priors.StandardNormal(options.latent),
    "VampPrior": lambda options, train: pv.priors.VampPrior(options.components, data=train),
    "NormalizingFlow": lambda options, _train: pv.priors.NormalizingFlow(
        options.latent, pv.flows.coupling(options.latent)
    ),
}
LIKELIHOODS: dict[str, Callable[[Options, torch.Tensor], nn.Module]] = {
    "Bernoulli": lambda options, train: pv.likelihoods.Bernoulli(decoder(options, train, 1)),
    "DiscretizedLogistic": lambda options, train: pv.likelihoods.DiscretizedLogistic(
        decoder(options, train, 2), levels(options), unit=1 / (levels(options) - 1)
    ),
}
OF_GREY_LEVELS = {"DiscretizedLogistic"}
OBJECTIVES: dict[str, Callable[[Options], ELBO]] = {
    "ELBO": lambda _options: Trace_ELBO(),
    "IWAE": lambda options: pv.objectives.IWAE(options.num_particles),
}

INHERITED = {field.name for field in fields(comparison.Options)} - {"models", "root", "out"}
OF_A_CELL = sorted(INHERITED | {"components", "num_particles", "threads"})  # what a cell's numbers depend on
PACKAGES = ("pyrovae", "torch", "pyro-ppl", "zuko", "numpy")  # and the versions of these


def main(options: Options) -> pd.DataFrame:
    """Computes the cells that are missing; prints and writes the table and the figure.

    Raises:
        ValueError: If a name is not in the grid, or a likelihood of grey levels meets data that are binary.
        SystemExit: If cells failed, after the table of the others is written.
    """
    models = grid(options)
    seeds = range(options.seed, options.seed + options.repeats)
    cells = {f"{name}, seed {seed}": settings(options, model, seed) for name, model in models.items() for seed in seeds}
    data = load(options, {likelihood for _, likelihood, _ in models.values()})
    filled = fill(
        options.out / "cells", cells, compute, shared=data, execute=executor(options), retries=options.retries
    )
    print(f"\n{filled}")

    runs = {
        name: {seed: filled.results[cell] for seed in seeds if (cell := f"{name}, seed {seed}") in filled.results}
        for name in models
    }
    runs = {name: by_seed for name, by_seed in runs.items() if by_seed}
    if not runs:
        raise SystemExit("no cell could be computed")
    table = summarize(models, runs)
    print(f"\n{options.data}, {options.num_samples} draws, nats per datum: mean ± standard error over the seeds")
    print("differences are from the first row of the same likelihood; seconds are those of training\n")
    print(table.to_string())
    comparison.write(options, table, {"sweep": draw(models, runs)})
    if filled.failed:
        raise SystemExit(f"{len(filled.failed)} of {len(cells)} cells failed; run again to compute them alone")
    return table


def grid(options: Options) -> dict[str, Model]:
    """The combinations that the options ask for, by name."""
    priors = comparison.chosen(PRIORS, replace(options, models=options.priors))
    likelihoods = comparison.chosen(LIKELIHOODS, replace(options, models=options.likelihoods))
    objectives = comparison.chosen(OBJECTIVES, replace(options, models=options.objectives))
    models = {", ".join(model): model for model in product(priors, likelihoods, objectives)}
    return comparison.chosen(models, options)


def settings(options: Options, model: Model, seed: int) -> Settings:
    """Everything that the numbers of a cell depend on: model, seed, options, versions."""
    return {
        **{name: getattr(options, name) for name in OF_A_CELL},
        **dict(zip(("prior", "likelihood", "objective"), model, strict=True)),
        "seed": seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what a cell computes with."""
    return {package: version(package) for package in PACKAGES}


def load(options: Options, names: set[str]) -> dict[str, pv.data.Splits]:
    """The data by likelihood, the same test data for all seeds."""
    data = {}
    for name in sorted(names):
        binarization = "none" if name in OF_GREY_LEVELS else options.binarization
        data[name] = comparison.load(replace(options, binarization=binarization, seed=0))
        if name in OF_GREY_LEVELS and data[name].binarization != "none":
            raise ValueError(f"{options.data} has no grey levels for {name}; choose --likelihoods Bernoulli")
    return data


def executor(options: Options) -> Executor:
    """What computes the cells."""
    if options.address is not None and not is_installed():
        raise ModuleNotFoundError("a cluster needs Ray, which is not installed: uv sync --group sweep")
    if not options.parallel or not is_installed():
        return in_order
    return on_ray(
        options.address,
        cores=options.cores,
        cpus_per_cell=options.threads,
        gpus_per_cell=int(options.device == "cuda"),
    )


def compute(cell: Settings, data: Mapping[str, pv.data.Splits]) -> xr.Dataset:
    """Trains and evaluates one cell.

    Raises:
        RuntimeError: If the packages here have other versions than where the sweep was started.
    """
    if versions() != cell["versions"]:
        raise RuntimeError(f"this node has {versions()}, but the sweep was started with {cell['versions']}")
    options, splits = Options(**{name: cell[name] for name in OF_A_CELL}), data[cell["likelihood"]]
    with torch_threads(options.threads):
        pyro.set_rng_seed(options.seed)
        vae = pv.VAE(
            likelihood=LIKELIHOODS[cell["likelihood"]](options, splits.train),
            posterior=pv.posteriors.DiagonalNormal(mlp(splits.train.shape[1:], *options.hidden, 2 * options.latent)),
            prior=PRIORS[cell["prior"]](
                options, splits.train
            ),  # last, so that the networks start from the same weights
        )
        objective = OBJECTIVES[cell["objective"]](options)
        history = comparison.train(vae, splits, options, objective=objective, progress=False)
        result = comparison.evaluate(vae, splits, options, progress=False)
    return result.assign_attrs(history=json.dumps(asdict(history)))


def decoder(options: Options, train: torch.Tensor, parameters: int) -> nn.Module:
    """A network with so many outputs a pixel."""
    *rows, columns = train.shape[1:]
    return mlp(options.latent, *options.hidden[::-1], (*rows, parameters * columns))


def levels(options: Options) -> int:
    """Grey levels of the data."""
    return 17 if options.data == "digits" else 256


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Computes with so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
