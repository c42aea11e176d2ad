"""Cost of a training step, compared with stock Pyro, NumPyro, pythae and PyTorch without a library.

All contenders train the same model by Adam, from the same weights and on the same data in random order. Each
contender runs in a process of its own and trains for one epoch in a turn. The time of a step is that of an epoch
divided by its steps, and ratios are taken within rounds. Before that, all contenders report the loss and the norm of
its gradient for the same data and noise, and must agree. Tools that are not installed are left out; ``uv run --group
benchmarks`` installs them.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro

from experiments.benchmarks.models import model
from experiments.benchmarks.problem import Problem, Sizes, check_agreement, checked_noise
from experiments.benchmarks.rounds import Race, machine, race, spread

TRAINERS = {
    "Pyro": ("stock_pyro",),
    "Pyro, unvalidated": ("stock_pyro", "--unvalidated"),
    "PyTorch": ("pytorch",),
    "PyTorch, compiled": ("pytorch", "--compile"),
    "pyrovae": ("ours",),
    "pyrovae, compiled": ("ours", "--compile"),
    "NumPyro": ("numpyro_",),
    "pythae": ("pythae_",),
}
BASELINES = ("Pyro", "PyTorch", "PyTorch, compiled", "NumPyro")


@dataclass
class Options(Sizes):
    """Options of the benchmark."""

    rounds: int = 7
    """Number of rounds, after one warm-up round."""
    contenders: tuple[str, ...] = tuple(TRAINERS)
    """Names of the contenders."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""


def main(options: Options) -> pd.DataFrame:
    """Run the race. Print and write the table."""
    result = compete(options, options.contenders, options.rounds)
    table = summarize(result, options)
    print(f"\n{describe(options)}: median [quartiles] of {options.rounds} rounds\n")
    print(table.to_string())
    write(options, "training" if options.model == "perceptron" else f"training_{options.model}", table, {"all": result})
    return table


def compete(sizes: Sizes, names: Sequence[str], rounds: int) -> Race:
    """Check that the named contenders do the same work, and let them train in turns.

    Raises:
        ValueError: If a name is unknown, or a contender does other work than the others.
    """
    if unknown := set(names) - set(TRAINERS):
        raise ValueError(f"{min(unknown)!r} is not a contender. Choose from {list(TRAINERS)}.")
    with tempfile.TemporaryDirectory() as folder:
        make_problem(sizes).write(Path(folder))
        commands = {}
        for name in names:
            module, *flags = TRAINERS[name]
            commands[name] = [sys.executable, "-m", f"experiments.benchmarks.trainers.{module}", folder, *flags]
        result = race(commands, rounds)
    check_agreement(result.facts)
    return result


def make_problem(sizes: Sizes) -> Problem:
    """Make the problem: the model's data, repeated if there are too few, and torch's default initial weights."""
    made = model(sizes.model)
    x = made.data(sizes)
    torch.manual_seed(sizes.seed)
    weights = {name: value.numpy() for name, value in made.by_hand(made.build(sizes, x)).state_dict().items()}
    return Problem(sizes, np.resize(x, (sizes.num_data, *x.shape[1:])), checked_noise(sizes), weights)


def summarize(result: Race, options: Options) -> pd.DataFrame:
    """Return one row for each contender: time and memory."""
    tables = {name: result.table(name, options.steps) for name in BASELINES}
    table = tables[BASELINES[0]]
    columns = {"ms per step": spreads(table, "ms")}
    columns |= {f"/ {name}": spreads(tables[name], "ratio") for name in BASELINES}
    columns["start and first epoch, s"] = [f"{seconds:.1f}" for seconds in table.ready_seconds + table.first_seconds]
    columns["peak memory, MiB"] = [f"{peak:.0f}" for peak in table.peak_mb]
    return pd.DataFrame(columns, index=table.index)


def spreads(table: pd.DataFrame, name: str) -> list[str]:
    """Return the column of that name with its quartiles, as text."""
    return [spread(*row) for row in table[[name, f"{name}_low", f"{name}_high"]].to_numpy()]


def describe(sizes: Sizes) -> str:
    """Return a description of the problem."""
    bound = "ELBO" if sizes.k == 1 else f"IWAE_{sizes.k}"
    return (
        f"{sizes.model}, {bound}, {sizes.hidden} hidden units, {sizes.latent} latent, batches of {sizes.batch_size} on "
        f"{sizes.device}"
    )


def write(options: Any, name: str, table: pd.DataFrame, races: Mapping[Any, Race]) -> None:
    """Write the table and all measurements of a benchmark as JSON, and print the missing contenders."""
    for contender, reason in {item for result in races.values() for item in result.missing.items()}:
        print(f"\n{contender} is missing: {reason}")
    record = {
        "options": {key: value for key, value in asdict(options).items() if not isinstance(value, Path)},
        "machine": machine(options.device),
        "table": table.to_dict("index"),
        "races": {key: {**vars(result), "seconds": result.seconds.to_dict("list")} for key, result in races.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=2, default=str))
    print(f"\nresults are in {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
