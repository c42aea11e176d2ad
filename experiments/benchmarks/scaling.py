"""Growth of time and memory with the data, the draws, the latents, the layers, and the size of images.

One quantity grows and all others stay fixed. Each value is measured in a process of its own with one thread: the
processor time of a training step, of an estimate by encoder draws, and of ``log_likelihood``, and the largest memory of
the process. Other work on the machine hardly changes processor times. The *exponent*
is the slope between two successive values on logarithmic axes: 1 is linear growth, and less than 1 means that a fixed
cost or unused capacity of the processor remains.
"""

import math
import multiprocessing
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
import tyro
from torch import nn

import pyrovae as pv
from experiments.benchmarks import training

VALUES: dict[str, tuple[int, ...]] = {
    "data": (500, 2000, 8000, 32_000),
    "draws": (250, 1000, 4000, 16_000),
    "latents": (2, 8, 32, 128),
    "layers": (1, 2, 4, 8),
    "pixels": (8, 16, 32, 64),
}


@dataclass
class Options:
    """Options of the benchmark. A quantity that does not grow has the value given here."""

    data: int = 1000
    """Number of data."""
    draws: int = 500
    """Encoder draws per datum."""
    latents: int = 16
    """Number of latent dimensions."""
    layers: int = 1
    """Number of hidden layers of 200 units in each network."""
    pixels: int = 16
    """Height and width of an image."""
    evaluated: int = 64
    """Number of data of the estimates, unless the number of data grows."""
    quantities: tuple[str, ...] = tuple(VALUES)
    """Quantities to vary."""
    device: str = "cpu"
    """Device, for the record of the machine."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""


def main(options: Options) -> pd.DataFrame:
    """Measure at all values. Print and write the table."""
    tables = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for quantity in options.quantities:
            rows = {}
            for value in VALUES[quantity]:
                grown: dict[str, Any] = {quantity: value}
                rows[value] = pool.apply(measure, (replace(options, **grown), quantity == "data"))
                print(quantity, value, rows[value], flush=True)
            tables.append(tabulate(quantity, pd.DataFrame(rows).T))
    table = pd.concat(tables)
    print(table.to_string())
    training.write(options, "scaling", table, {})
    return table


def measure(options: Options, all_data: bool) -> dict[str, float]:
    """Return the times and the largest memory at one set of sizes.

    Args:
        options: The sizes.
        all_data: If true, all data are evaluated.
    """
    torch.set_num_threads(1)
    shape, hidden = (options.pixels, options.pixels), [200] * options.layers
    x = torch.rand(options.data, *shape, generator=torch.Generator().manual_seed(0)).round()
    pyro.set_rng_seed(0)
    mlp: Any = pv.networks.mlp
    vae = pv.VAE(
        pv.priors.StandardNormal(options.latents),
        pv.likelihoods.Bernoulli(mlp(options.latents, *hidden, shape, activation=nn.Softplus)),
        pv.posteriors.DiagonalNormal(mlp(shape, *hidden, 2 * options.latents, activation=nn.Softplus)),
    )
    ends: list[float] = []
    epochs = max(4, 4000 // options.data)
    options_of_fit: Any = {"epochs": epochs, "compile": False, "seed": 0, "progress": False}
    pv.fit(vae, x, callback=lambda _: ends.append(time.process_time()), **options_of_fit)
    epoch = float(np.median(np.diff(ends)))
    given = x if all_data else x[: options.evaluated]
    seconds = {"evaluate": math.inf, "log_likelihood": math.inf}
    for _ in range(1 if all_data else 3):
        start = time.process_time()
        pv.evaluation.evaluate(vae, given, options.draws, seed=0, progress=False)
        middle = time.process_time()
        pv.evaluation.log_likelihood(vae, given[: options.evaluated], seed=0, progress=False)
        taken = {"evaluate": middle - start, "log_likelihood": time.process_time() - middle}
        seconds = {name: min(seconds[name], taken[name]) for name in seconds}
    return {
        "step, ms": 1000 * epoch / math.ceil(options.data / 100),
        "epoch, s": epoch,
        "evaluate, s": seconds["evaluate"],
        "log_likelihood, s": seconds["log_likelihood"],
        "memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def tabulate(quantity: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the measurements of a quantity as text, each with the exponent of its growth from the value before."""
    steps = np.diff(np.log(rows.index.to_numpy(float)))
    told = {}
    for name, column in rows.items():
        exponents = ["", *(f" ({slope:.2f})" for slope in np.diff(np.log(column)) / steps)]
        told[name] = [f"{_rounded(value)}{exponent}" for value, exponent in zip(column, exponents, strict=True)]
    return pd.DataFrame(told).set_axis([f"{value:,} {quantity}" for value in rows.index])


def _rounded(value: float) -> str:
    """Return a number with three significant digits and without an exponent."""
    return f"{float(f'{value:.3g}'):,g}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
