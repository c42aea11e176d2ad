"""Training runs that tests kill, in processes of their own. A fork server imports this module for a fast start.

The server never runs torch before it forks, so the children miss no thread of torch's pools.
"""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import archives
from tests.conftest import small_vae

PROCESSES = multiprocessing.get_context("forkserver")
# The first optimizer of a process imports torch._dynamo. Imported here once, these modules cost a process no seconds.
PROCESSES.set_forkserver_preload(
    ["tests.faulty", "torch._dynamo", "pyrovae.evaluation", "xarray", "experiments.elbo_vs_iwae"]
)
PAUSE = 0.02


def regularized_vae() -> pv.VAE:
    """Return a VAE with dropout and batch normalization, which has buffers."""
    vae = small_vae()
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4)
    vae.posterior = pv.posteriors.DiagonalNormal(nn.Sequential(*layers))
    return vae


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    grey = torch.rand(60, 6, generator=generator)
    return grey[:40], grey[40:].round()


def train(folder: Path | None, epochs: int, **options: Any) -> tuple[dict[str, Tensor], pv.History]:
    """Train with everything that has a state: annealing, schedule, data noise, dropout, buffers, best weights."""
    pyro.set_rng_seed(0)
    vae = regularized_vae()
    splits = data()
    usual = {
        "objective": pv.objectives.IWAE(2),
        "batch_size": 11,
        "learning_rate": 0.01,
        "kl_warmup": 5,
        "transform": pv.data.binarize,
        "scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99),
        "seed": 3,
        "progress": False,
    }
    history = pv.fit(vae, *splits, epochs=epochs, checkpoint=folder, **{**usual, **options})
    return vae.state_dict(), history


def record(path: Path, state: dict[str, Tensor], history: pv.History) -> None:
    archives.write(path, {"state": state, "history": asdict(history)})


def run(folder: Path, epochs: int, told: Connection, slow: bool, options: dict[str, Any]) -> None:
    """Train to the end, store the result in ``result``, and report each phase of a write if writes are slow."""
    if slow:
        make_slow(told)
    told.send("started")
    record(folder / "result", *train(folder, epochs, **options))


def make_slow(told: Connection) -> None:
    """Make each phase of writing a checkpoint slow."""

    def paused(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            told.send(phase)
            time.sleep(PAUSE)
            return function(*args)

        return slow

    def slow_open(*args: Any, **kwargs: Any) -> Any:
        return Halting(Path(args[0]).open(*args[1:], **kwargs), told)

    archives.open = slow_open  # type: ignore[attr-defined]
    os.fsync = paused("fsync", os.fsync)
    os.replace = paused("rename", os.replace)


class Halting:
    """A file that halts in the middle of every write."""

    def __init__(self, file: Any, told: Connection) -> None:
        self.file, self.told = file, told

    def __enter__(self) -> "Halting":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, content: Any) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.told.send("write")
        time.sleep(PAUSE)
        self.file.write(content[len(content) // 2 :])

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


def start(folder: Path, epochs: int, *, slow: bool = False, **options: Any) -> tuple[Any, Connection]:
    """Start a run in a process of its own, whose messages can be received."""
    told, tells = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run, args=(folder, epochs, tells, slow, options), daemon=True)
    process.start()
    tells.close()
    return process, told


def wait_amid_writing(told: Connection, chance: random.Random) -> str | None:
    """Wait for a phase of a write, and return the phase, or None if the run has ended."""
    phase = None
    try:
        for _ in range(chance.randrange(1, 40)):
            phase = told.recv()
        time.sleep(chance.uniform(0, PAUSE))
    except EOFError:
        return None
    return phase


def newest(folder: Path) -> tuple[int, int]:
    """Return the epoch and the step of the newest checkpoint."""
    names = [path.stem.split("-")[1:] for path in folder.glob("checkpoint-*.pt")]
    return max(((int(epoch), int(step)) for epoch, step in names), default=(0, 0))
