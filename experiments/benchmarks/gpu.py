"""All benchmarks of a GPU in one run, each with a time limit, for a machine that is lent for some minutes.

Each benchmark runs in a process of its own and writes its table to the folder ``out``. A benchmark that fails or
exceeds its limit does not stop the others. ``--dry`` prints the commands. On a machine without a network, install
pyro-ppl, arviz, tyro and NumPyro from wheels before the run.
"""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its module, its options, and its time limit in seconds."""

    module: str
    options: tuple[str, ...]
    limit: int


SMALL = ("--num-data", "20000", "--rounds", "7", "--device", "cuda")
BENCHMARKS = {
    "step": Benchmark("training", SMALL, 120),
    "step, IWAE_50": Benchmark("training", (*SMALL, "--k", "50"), 120),
    "step, convolutional": Benchmark("training", (*SMALL, "--model", "convolutional"), 120),
    "step, colour": Benchmark("training", (*SMALL, "--model", "colour"), 120),
    "evaluation": Benchmark("evaluation", ("--device", "cuda"), 120),
    "accuracy": Benchmark("accuracy", ("--device", "cuda", "--data", "100"), 180),
}


@dataclass
class Options:
    """Options of the run."""

    out: Path = Path("results/benchmarks/cuda")
    """Folder for the tables, one subfolder for each benchmark."""
    names: tuple[str, ...] = tuple(BENCHMARKS)
    """Benchmarks to run, in this order."""
    dry: bool = False
    """Print the commands and run nothing."""


def main(options: Options) -> dict[str, str]:
    """Run the benchmarks one after the other. Return and print the outcome of each."""
    outcomes = {}
    for name in options.names:
        command, limit = command_of(name, options.out), BENCHMARKS[name].limit
        print(f"{name}: {shlex.join(command)}", flush=True)
        if options.dry:
            continue
        start = time.perf_counter()
        try:
            code = subprocess.run(command, check=False, timeout=limit).returncode
            outcomes[name] = f"{'done' if code == 0 else f'failed with exit status {code}'}"
        except subprocess.TimeoutExpired:
            outcomes[name] = f"stopped at its limit of {limit} s"
        outcomes[name] += f" after {time.perf_counter() - start:.0f} s"
        print(f"{name}: {outcomes[name]}", flush=True)
    return outcomes


def command_of(name: str, out: Path) -> list[str]:
    """Return the command line of a benchmark."""
    benchmark = BENCHMARKS[name]
    folder = out / name.replace(", ", "_").replace(" ", "_")
    module = f"experiments.benchmarks.{benchmark.module}"
    return [sys.executable, "-m", module, *benchmark.options, "--out", str(folder)]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
