"""Time of a training step whose images come from memory, from a memory-mapped file, or from a torch ``Dataset``.

The three sources hold the same bytes, and ``fit`` turns the bytes of a batch into zeros and ones. The sources take
turns in one process. Each turn trains a new VAE from the same weights for two epochs. The processor time of the second
epoch counts, which other work on the machine hardly changes.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor
from torch.utils.data import Dataset

import pyrovae as pv
from experiments.benchmarks import training
from experiments.benchmarks.rounds import spread

SHAPES = (28, 28), (32, 32, 3)
BATCH = 100


@dataclass
class Options:
    """Options of the benchmark."""

    num_data: int = 10_000
    """Number of images."""
    hidden: int = 400
    """Hidden units of each network."""
    rounds: int = 5
    """Number of rounds, after one warm-up round."""
    compile: tuple[bool, ...] = (False, True)
    """Ways to compute a step: eagerly if false, compiled if true."""
    device: str = "auto"
    """Device."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""


class Images(Dataset[Tensor]):
    """A data set that returns one image at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Return an image as bytes."""
        return torch.from_numpy(self.images[index])


def main(options: Options) -> pd.DataFrame:
    """Measure. Print and write the table."""
    rows = {}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            images = np.random.RandomState(0).randint(0, 256, (options.num_data, *shape), dtype=np.uint8)
            np.save(Path(folder) / "images.npy", images)
            mapped = np.load(Path(folder) / "images.npy", mmap_mode="r")
            sources = {"memory": torch.from_numpy(images), "mapped file": mapped, "Dataset": Images(images)}
            for compiled in options.compile:
                seconds = race(sources, shape, compiled, options)
                steps = options.num_data / BATCH
                row = {"memory, ms per step": f"{1000 * seconds['memory'].median() / steps:.3g}"}
                for name in ("mapped file", "Dataset"):
                    ratio = seconds[name] / seconds["memory"]
                    row[f"{name} / memory"] = spread(*ratio.quantile([0.5, 0.25, 0.75]))
                size = " x ".join(map(str, shape))
                rows[f"{size}, {'compiled' if compiled else 'eager'}"] = row
                print(size, compiled, row, flush=True)
    table = pd.DataFrame(rows).T
    training.write(options, "streaming", table, {})
    return table


def race(sources: dict[str, Any], shape: tuple[int, ...], compiled: bool, options: Options) -> pd.DataFrame:
    """Return the seconds of an epoch, one row for each round and one column for each source."""
    rounds = [
        {name: epoch(source, shape, compiled, options) for name, source in sources.items()}
        for _ in range(options.rounds + 1)
    ]
    return pd.DataFrame(rounds[1:])


def epoch(source: Any, shape: tuple[int, ...], compiled: bool, options: Options) -> float:
    """Train for two epochs, and return the seconds of processor time of the second."""
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(20),
        pv.likelihoods.Bernoulli(pv.networks.mlp(20, options.hidden, shape)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(shape, options.hidden, 2 * 20)),
    )
    shared: Any = {"epochs": 2, "batch_size": BATCH, "seed": 0, "compile": compiled, "device": options.device}
    ends: list[float] = []
    note = lambda _: ends.append(time.process_time())  # noqa: E731
    pv.fit(vae, source, transform=lambda x: (x > 127).float(), progress=False, callback=note, **shared)
    return ends[1] - ends[0]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
