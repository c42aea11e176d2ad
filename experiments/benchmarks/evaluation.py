r"""Cost of an estimate of log p(x), compared with pythae, NumPyro and PyTorch without a library.

All contenders estimate log p(x) of the same test digits from 5,000 draws each, with the same trained VAE. Each
contender runs in a process of its own and evaluates all images in a turn, and ratios are taken within rounds. Before
that, all contenders must agree on the estimates. The sum of the parts is the time of noise, matrix products,
activations and densities alone. Tools that are not installed are left out; ``uv run --group benchmarks`` installs them.

``--peak 50 200 800`` measures memory instead. It evaluates 50, 200 and 800 images in one call each, and prints the peak
memory of each call.
"""

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tyro

import pyrovae as pv
from experiments.benchmarks import training
from experiments.benchmarks.estimates import check_estimates, given_noise
from experiments.benchmarks.evaluators.ours import build
from experiments.benchmarks.networks import to_device
from experiments.benchmarks.problem import Problem, Sizes, check_agreement
from experiments.benchmarks.rounds import Race, race

OURS, PYTHAE, PARTS = "pyrovae", "pythae", "sum of parts"
EVALUATORS = {
    PYTHAE: ("pythae_", "100"),  # the default of pythae
    "pythae, larger batches": ("pythae_", "{rows}"),
    "NumPyro": ("numpyro_", "--rows", "{rows}"),
    "PyTorch": ("pytorch", "--rows", "{rows}"),
    "PyTorch, compiled": ("pytorch", "--rows", "{rows}", "--compile"),
    OURS: ("ours",),
    "pyrovae, compiled": ("ours", "--compile"),
    "pyrovae, bfloat16": ("ours", "--precision", "bfloat16"),
    "pyrovae, compiled, bfloat16": ("ours", "--compile", "--precision", "bfloat16"),
    PARTS: ("parts", "--rows", "{rows}"),
}
ROWS = {"cpu": 1000, "cuda": 100_000}
WHOLE = {OURS: ("ours", "--whole"), "pyrovae, compiled": ("ours", "--whole", "--compile")}


@dataclass
class Options:
    """Options of the benchmark."""

    data: int = 64
    """Number of images that are evaluated in a turn."""
    draws: int = 5000
    """Draws per image."""
    hidden: int = 400
    """Number of hidden units of each network."""
    latent: int = 20
    """Number of latent dimensions."""
    epochs: int = 20
    """Epochs of training."""
    rows: int | None = None
    """Batch size of the decoder, in draws. NumPyro, PyTorch and the parts mix draws of several images in a batch, and
    pythae takes draws of one image [default: the fastest, 1000 on a CPU and 100000 on a GPU]."""
    rounds: int = 7
    """Number of rounds, after one warm-up round."""
    contenders: tuple[str, ...] = tuple(EVALUATORS)
    """Names of the contenders."""
    peak: tuple[int, ...] = ()
    """Numbers of images for the measurement of memory. If they are given, nothing else is measured."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the computations."""
    seed: int = 0
    """Seed of the initial weights, the training and the draws."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""

    def __post_init__(self) -> None:
        if unknown := set(self.contenders) - set(EVALUATORS):
            raise ValueError(f"{min(unknown)!r} is not a contender. Choose from {list(EVALUATORS)}.")


def main(options: Options) -> pd.DataFrame:
    """Run the race, or measure memory alone. Print and write the table."""
    return measure_memory(options) if options.peak else measure_time(options)


def measure_time(options: Options) -> pd.DataFrame:
    """Run the race. Print and write the table."""
    problem = make_problem(options, options.data, train(options))
    result = run(problem, {name: EVALUATORS[name] for name in options.contenders}, options)
    check(problem, result)
    table = summarize(result, options)
    print(f"\n{describe(options)}: median [quartiles] of {options.rounds} rounds\n")
    print(table.to_string())
    tell_facts(result, options)
    training.write(options, "evaluation", table, {"all": result})
    return table


def measure_memory(options: Options) -> pd.DataFrame:
    """Evaluate each number of images in one call. Print and write the seconds and the memory."""
    weights, races, rows = train(options), {}, []
    for size in options.peak:
        races[size] = run(make_problem(options, size, weights), WHOLE, options, rounds=0)
        rows += [
            {
                "contender": name,
                "images": size,
                "ms per image": round(1000 * races[size].first[name] / size, 2),
                "memory before, MiB": round(races[size].facts[name]["before_mb"]),
                "peak memory, MiB": round(races[size].peaks[name]),
            }
            for name in WHOLE
        ]
    table = pd.DataFrame(rows).set_index(["contender", "images"]).sort_index()
    print(f"\n{describe(options)}: one evaluation, including its preparation\n")
    print(table.to_string())
    flat = table.set_axis([f"{name}, {size} images" for name, size in table.index])
    training.write(options, "evaluation_memory", flat, races)
    return table


def train(options: Options) -> dict[str, np.ndarray]:
    """Train the VAE on binary digits, from the initial weights of the training benchmark."""
    vae = build(training.make_problem(sizes_of(options, 100)))
    x = digits().train.flatten(1)
    pv.fit(vae, x, epochs=options.epochs, seed=options.seed, device=options.device, progress=False)
    return {
        f"{name}.{key.partition('network.')[2]}": value.cpu().numpy()
        for name, program in {"encoder": vae.guide, "decoder": vae.model}.items()
        for key, value in program.state_dict().items()
    }


def make_problem(options: Options, size: int, weights: dict[str, np.ndarray]) -> Problem:
    """Make the problem of ``size`` test digits, repeated if there are too few."""
    sizes, x = sizes_of(options, size), digits().test.flatten(1).numpy()
    return Problem(sizes, np.resize(x, (size, x.shape[1])), given_noise(sizes), weights)


@cache
def digits() -> pv.data.Splits:
    """Return binary digits. They are cached because reading them takes seconds."""
    return pv.data.mnist5k("static")


def sizes_of(options: Options, size: int) -> Sizes:
    """Return the sizes of a problem of ``size`` images."""
    return Sizes(
        hidden=options.hidden,
        latent=options.latent,
        k=options.draws,
        batch_size=size,
        num_data=size,
        device=options.device,
        seed=options.seed,
    )


def run(problem: Problem, contenders: Mapping[str, Sequence[str]], options: Options, rounds: int | None = None) -> Race:
    """Run a race between contenders, each given by its module and its arguments."""
    rows = ROWS[options.device] if options.rows is None else options.rows
    with tempfile.TemporaryDirectory() as folder:
        problem.write(Path(folder))
        commands = {}
        for name, (module, *arguments) in contenders.items():
            given = [argument.format(rows=rows) for argument in arguments]
            commands[name] = [sys.executable, "-m", f"experiments.benchmarks.evaluators.{module}", folder, *given]
        return race(commands, options.rounds if rounds is None else rounds)


def check(problem: Problem, result: Race) -> None:
    """Check that all contenders estimate the same values, and that a separate evaluation agrees."""
    check_agreement(result.facts)
    vae, x = build(problem), to_device(problem, problem.x)
    seed = problem.sizes.seed + 1
    reference = pv.evaluation.evaluate(vae.model, vae.guide, x, problem.sizes.k, seed=seed, progress=False)
    facts = {"another evaluation": {"log_likelihood": float(reference.log_likelihood.mean())}, **result.facts}
    check_estimates(facts, mcse=math.sqrt(float((reference.mcse**2).sum())) / len(x))


def summarize(result: Race, options: Options) -> pd.DataFrame:
    """Return one row for each contender: time and memory."""
    tables = {name: result.table(name, options.data) for name in (PYTHAE, PARTS)}
    table = tables[PYTHAE]
    turn = table.ms * options.data / 1000
    cold = pd.Series({name: facts.get("cold_seconds") for name, facts in result.facts.items()}, dtype=float)
    columns = {"ms per image": training.spreads(table, "ms")}
    columns |= {f"/ {name}": training.spreads(tables[name], "ratio") for name in tables}
    columns["set-up, s"] = in_seconds(cold - turn)
    columns["once more, s"] = in_seconds((pd.Series(result.first) - turn).where(cold.notna()))
    columns["peak memory, MiB"] = [f"{peak:.0f}" for peak in table.peak_mb]
    return pd.DataFrame(columns, index=table.index)


def in_seconds(values: pd.Series) -> list[str]:
    """Return seconds as text. NaN becomes an empty string, and negative values become zero."""
    return ["" if math.isnan(value) else f"{max(0.0, value):.1f}" for value in values]


def tell_facts(result: Race, options: Options) -> None:
    """Print the times of the parts, and the rounding errors of the estimates."""
    for name, facts in result.facts.items():
        if "mean_rounding_error" in facts:
            print(
                f"\n{name}: estimates from the same draws differ by {facts['mean_rounding_error']:.2g} nats on average "
                f"and by {facts['largest_rounding_error']:.2g} at most"
            )
        parts = {key: value for key, value in facts.items() if name == PARTS and key.endswith("_seconds")}
        if parts:
            told = [f"{key.removesuffix('_seconds')} {1000 * value / options.data:.3g}" for key, value in parts.items()]
            print(f"\n{name}, ms per image: {', '.join(told)}")


def describe(options: Options) -> str:
    """Return a description of the problem."""
    return (
        f"log p(x) from {options.draws} draws, {options.hidden} hidden units, {options.latent} latent, on "
        f"{options.device}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
