"""Long evaluations of a small model in processes of their own, which tests kill at random times."""

import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

import pyrovae as pv
from pyrovae import archives
from pyrovae.evaluation import checkpoint
from pyrovae.evaluation.rows import Rows
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


@cache
def first_evaluation() -> xr.Dataset:
    """Evaluate once, so that an interruption cannot hit the reference of a second call."""
    return evaluated(None)


def inference_gaps(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    reference = first_evaluation()
    return pv.evaluation.inference_gaps(
        vae.model, vae.guide, x, reference, num_steps=5, num_particles=10, num_samples=20, checkpoint=folder, **options
    )


def calibration(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.simulation_based_calibration(
        vae.model, vae.guide, x, num_draws=20, num_simulations=60, checkpoint=folder, **options
    )


def compiled(folder: Path | None, **options: Any) -> xr.Dataset:
    return evaluated(folder, compile=True, **options)


def log_weights(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    found = pv.evaluation.log_weights(vae.model, vae.guide, x, 50, checkpoint=folder, **options)
    return xr.Dataset({"log_weights": (("draw", "datum"), found.numpy())})


def divergences(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.kl_per_dimension(vae.model, vae.guide, x, 20, checkpoint=folder, **options)


def surgery(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.elbo_surgery(vae.model, vae.guide, x, 20, checkpoint=folder, **options)


def predictive_check(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    return pv.evaluation.posterior_predictive_check(
        vae.model, vae.guide, x, total, num_samples=20, num_draws=5, checkpoint=folder, **options
    )


def total(x: Tensor) -> Tensor:
    return x.sum(-1)


def masked_model(x: Tensor, mask: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(torch.nn.Identity()(z), torch.ones(6)).mask(mask).to_event(1), obs=x)


def masked_guide(x: Tensor, mask: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.mean(-1), 1.0))


def imputed(folder: Path | None, **options: Any) -> xr.Dataset:
    x = model_and_data()[1]
    given = x, torch.arange(6).expand_as(x) < 4
    return pv.evaluation.impute(masked_model, masked_guide, given, 20, checkpoint=folder, **options)


def global_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(torch.nn.Identity()(z) + w, torch.ones(6)).to_event(1), obs=x)


def global_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.mean(-1), 1.0))


def averaged(folder: Path | None, **options: Any) -> xr.Dataset:
    x = model_and_data()[1]
    return pv.evaluation.evaluate_globals(global_model, global_guide, x, 20, num_draws=3, checkpoint=folder, **options)


def drawn(folder: Path | None, **options: Any) -> xr.Dataset:
    vae, x = model_and_data()
    found = pv.evaluation.to_inference_data(
        vae.model, vae.guide, x, num_samples=20, num_draws=5, checkpoint=folder, **options
    )
    return found["posterior"].to_dataset() if hasattr(found["posterior"], "to_dataset") else found["posterior"]


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
    "compiled": (compiled, 2**13),
}
OTHERS: dict[str, tuple[Callable[..., xr.Dataset], int]] = {
    "log_weights": (log_weights, 2**13),
    "kl_per_dimension": (divergences, 2**11),
    "elbo_surgery": (surgery, 2**11),
    "posterior_predictive_check": (predictive_check, 2**11),
    "impute": (imputed, 2**11),
    "to_inference_data": (drawn, 2**11),
}


def compute(name: str, folder: Path | None, seed: int | None = 1) -> xr.Dataset:
    estimator, memory = (ESTIMATORS | OTHERS)[name]
    return estimator(folder, seed=seed, memory=memory, progress=False)


@contextmanager
def sending(number: signal.Signals, after: int) -> Iterator[None]:
    """Send this process a signal in the middle of a batch, once so many batches are finished."""
    finished: list[int] = []
    add, restore = Rows.add, checkpoint.Checkpoint.restore

    def begin(*args: Any) -> None:
        restore(*args)
        finished.append(0)

    def count(*args: Any) -> None:
        add(*args)
        finished.append(1)

    def send(*_: Any) -> None:
        if finished and sum(finished) == after:
            hook.remove()
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "add", count)
        patch.setattr(checkpoint.Checkpoint, "restore", begin)
        hook = register_module_forward_pre_hook(send)
        try:
            yield
        finally:
            hook.remove()


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


def run_until_a_signal(name: str, folder: Path, number: signal.Signals, after: int) -> None:
    """Evaluate, and receive a signal in the middle of a batch once so many batches are finished."""
    torch.set_num_threads(1)
    with sending(number, after=after):
        compute(name, folder)


def num_rows(folder: Path) -> int:
    """Return the number of rows in a folder, whose file must be complete."""
    if not (folder / "rows.pt").exists():
        return 0
    kept = archives.read(folder / "rows.pt")
    name = next(iter(kept["columns"]))
    axis = kept["dims"].get(name, ("datum",)).index("datum")
    return int(kept["columns"][name].shape[axis])
