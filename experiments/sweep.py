"""Do a better prior and a tighter objective add up, under any likelihood, and do their gains exceed the seed noise?

Every prior is combined with every likelihood and every objective, and each combination is trained from several seeds.
Everything else stays the same. The estimates of log p(x) are averaged over the seeds. Differences are paired over the
seeds and over the test data. They are taken between models of the same likelihood, because binary and grey digits are
not comparable. The cells of the grid are computed in parallel by Ray if it is installed, and otherwise in order.
Finished cells are stored, so that a second run computes only the missing ones.
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
    """Priors of the grid. NormalizingFlow is available too."""
    likelihoods: tuple[str, ...] = ("Bernoulli", "DiscretizedLogistic")
    """Likelihoods of the grid. DiscretizedLogistic needs a data set of grey images."""
    objectives: tuple[str, ...] = ("ELBO", "IWAE")
    """Objectives of the grid."""
    models: tuple[str, ...] = ()
    """Combinations to compute, such as "VampPrior, Bernoulli, IWAE" [default: all of the grid]."""
    repeats: int = 3
    """Number of seeds for each combination."""
    seed: int = 0
    """First of the consecutive seeds. A seed sets the initial weights, the training and the evaluation."""
    latent: int = 20
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = (200,)
    """Widths of the hidden layers, in the order from data to latents."""
    components: int = 50
    """Number of pseudo-inputs of the VampPrior."""
    num_particles: int = 5
    """Draws per datum of the IWAE objective."""
    epochs: int = 20
    """Passes over the training data."""
    kl_warmup: int = 10
    """Epochs over which the weight of the latent sites grows to 1."""
    test_size: int | None = 250
    """Number of test data to evaluate, drawn at random, the same for all cells."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device that computes a cell."""
    threads: int = 1
    """CPU threads per cell. Another number changes the order of sums, so results differ by rounding."""
    parallel: bool = True
    """Use Ray if it is installed."""
    address: str | None = None
    """Address of a running Ray cluster [default: Ray on this machine alone]."""
    cores: int | None = None
    """Number of cores of this machine to use [default: all]."""
    retries: int = 2
    """Number of further attempts for a cell that fails."""
    out: Path = Path("results/sweep")
    """Folder for cells, tables and figures."""


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
OF_A_CELL = sorted(INHERITED | {"components", "num_particles", "threads"})  # options that change a cell's numbers
PACKAGES = ("pyrovae", "torch", "pyro-ppl", "zuko", "numpy")  # packages whose versions change a cell's numbers


def main(options: Options) -> pd.DataFrame:
    """Compute the missing cells. Print and write the table and the figure.

    Raises:
        ValueError: If a name is not in the grid, or a likelihood of grey levels is combined with binary data.
        SystemExit: If cells failed. The table of the other cells is written first.
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
        raise SystemExit("All cells failed. The messages above state the reasons.")
    table = summarize(models, runs)
    print(f"\n{options.data}, nats per datum: mean ± standard error over the seeds")
    print("differences are from the first row of the same likelihood; seconds are those of training\n")
    print(table.to_string())
    comparison.write(options, table, {"sweep": draw(models, runs)})
    if filled.failed:
        raise SystemExit(
            f"{len(filled.failed)} of {len(cells)} cells failed. Run the same command again to compute them."
        )
    return table


def grid(options: Options) -> dict[str, Model]:
    """Return the combinations that the options select, by name."""
    priors = comparison.chosen(PRIORS, replace(options, models=options.priors))
    likelihoods = comparison.chosen(LIKELIHOODS, replace(options, models=options.likelihoods))
    objectives = comparison.chosen(OBJECTIVES, replace(options, models=options.objectives))
    models = {", ".join(model): model for model in product(priors, likelihoods, objectives)}
    return comparison.chosen(models, options)


def settings(options: Options, model: Model, seed: int) -> Settings:
    """Return everything that determines the numbers of a cell: model, seed, options, versions."""
    return {
        **{name: getattr(options, name) for name in OF_A_CELL},
        **dict(zip(("prior", "likelihood", "objective"), model, strict=True)),
        "seed": seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute a cell."""
    return {package: version(package) for package in PACKAGES}


def load(options: Options, names: set[str]) -> dict[str, pv.data.Splits]:
    """Return the data by likelihood, with the same test data for all seeds."""
    data = {}
    for name in sorted(names):
        binarization = "none" if name in OF_GREY_LEVELS else options.binarization
        data[name] = comparison.load(replace(options, binarization=binarization, seed=0))
        if name in OF_GREY_LEVELS and data[name].binarization != "none":
            raise ValueError(f"{options.data} has no grey levels for {name}. Choose --likelihoods Bernoulli.")
    return data


def executor(options: Options) -> Executor:
    """Return the function that computes the cells."""
    if options.address is not None and not is_installed():
        raise ModuleNotFoundError("A cluster needs Ray, which is not installed. Run uv sync --group sweep.")
    if not options.parallel or not is_installed():
        return in_order
    return on_ray(
        options.address,
        cores=options.cores,
        cpus_per_cell=options.threads,
        gpus_per_cell=int(options.device == "cuda"),
    )


def compute(cell: Settings, data: Mapping[str, pv.data.Splits]) -> xr.Dataset:
    """Train and evaluate one cell.

    Raises:
        RuntimeError: If the versions of the packages differ from those of the process that started the sweep.
    """
    if versions() != cell["versions"]:
        raise RuntimeError(f"This node has {versions()}, but the sweep was started with {cell['versions']}.")
    options, splits = Options(**{name: cell[name] for name in OF_A_CELL}), data[cell["likelihood"]]
    with torch_threads(options.threads):
        pyro.set_rng_seed(options.seed)
        vae = pv.VAE(
            likelihood=LIKELIHOODS[cell["likelihood"]](options, splits.train),
            posterior=pv.posteriors.DiagonalNormal(mlp(splits.train.shape[1:], *options.hidden, 2 * options.latent)),
            prior=PRIORS[cell["prior"]](
                options, splits.train
            ),  # built last, so that the networks have the same initial weights
        )
        objective = OBJECTIVES[cell["objective"]](options)
        history = comparison.train(vae, splits, options, objective=objective, progress=False)
        result = comparison.evaluate(vae, splits, options, progress=False)
        quoted = comparison.log_likelihood(vae, splits, options, progress=False)
    return comparison.with_quoted(result, quoted).assign_attrs(history=json.dumps(asdict(history)))


def decoder(options: Options, train: torch.Tensor, parameters: int) -> nn.Module:
    """Return a network with ``parameters`` outputs per pixel."""
    *rows, columns = train.shape[1:]
    return mlp(options.latent, *options.hidden[::-1], (*rows, parameters * columns))


def levels(options: Options) -> int:
    """Return the number of grey levels of the data."""
    return 17 if options.data == "digits" else 256


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` CPU threads inside this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
