"""Long evaluations of a small model in processes of their own, which tests kill at random times."""

import pickle
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import checkpoint
from tests.conftest import small_vae
from tests.faulty import PROCESSES, make_slow
from tests.oracle import Oracle

NUM_DATA = 24


def model_and_data(num_data: int = NUM_DATA) -> tuple[pv.VAE, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_vae(), torch.bernoulli(torch.full((num_data, 6), 0.4))


def evaluated(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    options = {"seed": 1, "memory": 2**13, "progress": False, **options}
    return pv.evaluation.evaluate(vae.model, vae.guide, x, 50, checkpoint=folder, **options)


def oracle_and_data() -> tuple[pv.VAE, Tensor]:
    """A model whose posterior is too narrow, so that it is refined, and data for several batches of at least 8."""
    oracle = Oracle(0.5)
    return oracle.vae, oracle.data(48)


def refined(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = oracle_and_data()
    guide = pv.guides.Refined(vae.model, vae.guide)
    return pv.evaluation.evaluate(vae.model, guide, x, 50, checkpoint=folder, **options)


def log_likelihood(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = oracle_and_data()
    return pv.evaluation.log_likelihood(vae.model, vae.guide, x, num_samples=150, checkpoint=folder, **options)


def rqmc(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.rqmc(vae.model, vae.guide, x, 64, num_replicates=8, checkpoint=folder, **options)


def ais(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.ais(vae.model, vae.guide, x, 4, num_temperatures=5, checkpoint=folder, **options)


def bdmc(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.bdmc(vae.model, vae.guide, x, 4, num_temperatures=5, checkpoint=folder, **options)


def nuts(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.nuts(
        vae.model, vae.guide, x, 30, warmup_steps=10, num_chains=1, max_tree_depth=3, checkpoint=folder, **options
    )


def inference_gaps(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    reference = evaluated(None)
    return pv.evaluation.inference_gaps(
        vae.model, vae.guide, x, reference, num_steps=5, num_particles=10, num_samples=20, checkpoint=folder, **options
    )


def calibration(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.simulation_based_calibration(
        vae.model, vae.guide, x, num_draws=20, num_simulations=60, checkpoint=folder, **options
    )


ESTIMATORS: dict[str, tuple[Callable[..., xr.Dataset], int]] = {  # with the memory that gives them batches of few data
    "evaluate": (evaluated, 2**13),
    "refined": (refined, 2**10),
    "log_likelihood": (log_likelihood, 2**10),
    "rqmc": (rqmc, 2**13),
    "ais": (ais, 2**13),
    "bdmc": (bdmc, 2**13),
    "nuts": (nuts, 2**20),
    "inference_gaps": (inference_gaps, 2**13),
    "simulation_based_calibration": (calibration, 2**13),
}


def compute(name: str, folder: Path | None, seed: int | None = 1) -> xr.Dataset:
    estimator, memory = ESTIMATORS[name]
    return estimator(folder, seed=seed, memory=memory, progress=False)


def run(name: str, folder: Path | None, seed: int | None, out: Path, tells: Connection) -> None:
    """Evaluate with slow writes after every batch, and store the result in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs that a shell starts in the background
    checkpoint.SAVE_SECONDS = 0.0
    make_slow(tells)
    tells.send("started")
    out.write_bytes(pickle.dumps(compute(name, folder, seed)))


def start(name: str, folder: Path | None, out: Path, seed: int | None = 1) -> tuple[Any, Connection]:
    """Start an evaluation in a process of its own, which reports every phase of a write."""
    told, tells = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run, args=(name, folder, seed, out, tells), daemon=True)
    process.start()
    tells.close()
    return process, told


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    found, expected = (result.assign_attrs(seconds=0.0) for result in (found, expected))
    xr.testing.assert_identical(found, expected)
