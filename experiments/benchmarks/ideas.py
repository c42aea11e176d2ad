"""Further optimizations of a compiled training step.

Each optimization is tried alone, and compared with the step of :func:`pyrovae.fit`. ``trainers/idea.py`` has them all.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from experiments.benchmarks import training
from experiments.benchmarks.rounds import race

PLAIN = "pyrovae, as fit does"
NAMES = (
    "as fit does",
    "adam in the graph",
    "several steps in a graph",
    "noise at once",
    "denormals flushed",
    "products tuned",
    "products by mkl",
    "softplus by log1p",
    "pages kept",
    "data in parts",
    "products in bfloat16",
)


@dataclass
class Options(training.Options):
    """Options of the benchmark. Its contenders are the optimizations."""

    rounds: int = 15
    """Number of rounds, after one warm-up round."""
    contenders: tuple[str, ...] = NAMES
    """The ideas."""


def main(options: Options) -> pd.DataFrame:
    """Try the optimizations. Print and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        training.make_problem(options).write(Path(folder))
        module = "experiments.benchmarks.trainers.idea"
        result = race(
            {
                f"pyrovae, {name}": [sys.executable, "-m", module, folder, name.replace(" ", "_")]
                for name in options.contenders
            },
            options.rounds,
        )
    table = result.table(PLAIN, options.steps)
    shown = pd.DataFrame(
        {"ms per step": training.spreads(table, "ms"), "/ as fit does": training.spreads(table, "ratio")}, table.index
    )
    print(f"\n{training.describe(options)}: median [quartiles] of {options.rounds} rounds\n")
    print(shown.to_string())
    training.write(options, "ideas", shown, {"all": result})
    return shown


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
