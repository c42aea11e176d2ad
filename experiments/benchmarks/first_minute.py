"""Seconds before a user sees a result: the import, the first compilation, and the script of the README.

Each measurement runs in a new process. The processes take turns, and the table shows the median and the quartiles over
the rounds. A compilation is *cold* if the disk cache of inductor is empty, and *warm* if it holds the result. The
seconds of a compilation are those of a compiled run of two steps minus those of an eager run of two steps.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tyro

from experiments.benchmarks import training
from experiments.benchmarks.rounds import spread

README = Path(__file__).parents[2] / "README.md"
IMPORT = """
import time
start = time.perf_counter()
import pyrovae
print(time.perf_counter() - start)
"""
TWO_STEPS = """
import time
import pyro, torch
import pyrovae as pv
torch.set_num_threads({threads})
pyro.set_rng_seed(0)
vae = pv.VAE(
    prior=pv.priors.StandardNormal(20),
    likelihood=pv.likelihoods.Bernoulli(pv.networks.mlp(20, 400, 784)),
    posterior=pv.posteriors.DiagonalNormal(pv.networks.mlp(784, 400, 2 * 20)),
)
x = torch.rand(200, 784).round()
start = time.perf_counter()
pv.fit(vae, x, epochs=1, batch_size=100, compile={compiled}, progress=False)
print(time.perf_counter() - start)
"""
SCRIPT = """
import time
start = time.perf_counter()
{script}
print(time.perf_counter() - start)
"""


@dataclass
class Options:
    """Options of the benchmark."""

    rounds: int = 3
    """Number of rounds."""
    threads: int = 1
    """CPU threads of the two steps."""
    with_script: bool = True
    """Run the script of the README too."""
    device: Literal["cpu"] = "cpu"
    """Device of the two steps."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""


def main(options: Options) -> pd.DataFrame:
    """Measure the seconds. Print and write the table."""
    measured = pd.DataFrame([one_round(options) for _ in range(options.rounds)])
    quartiles = measured.quantile((0.5, 0.25, 0.75))
    table = pd.DataFrame({"seconds": {name: spread(*quartiles[name]) for name in measured}})
    print(table.to_string())
    training.write(options, "first_minute", table, {})
    return table


def one_round(options: Options) -> dict[str, float]:
    """Return the seconds of each measurement, each in a new process."""
    found = {"import pyrovae": seconds_of(IMPORT)}
    with tempfile.TemporaryDirectory() as cache:
        eager, *compiled = (
            seconds_of(TWO_STEPS.format(threads=options.threads, compiled=compiled), TORCHINDUCTOR_CACHE_DIR=cache)
            for compiled in (False, True, True)
        )
    found |= {"two eager steps": eager}
    found |= dict(
        zip(("first compilation, cold", "first compilation, warm"), np.subtract(compiled, eager), strict=True)
    )
    if options.with_script:
        found["script of the README"] = seconds_of(SCRIPT.format(script=script_of(README)))
    return found


def script_of(page: Path) -> str:
    """Return the first Python block of a page."""
    block = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    if block is None:
        raise ValueError(f"{page} has no Python block.")
    return block[1]


def seconds_of(script: str, **variables: str) -> float:
    """Run a script in a new process and return the number in its last line of output.

    Raises:
        subprocess.CalledProcessError: If the script fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
