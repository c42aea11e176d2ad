"""Evaluation in several processes: results, refused calls, files, and behaviour after an error."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import pyrovae as pv
from experiments import elbo_vs_iwae
from pyrovae import archives, parallel
from pyrovae.evaluation import evaluate, log_weights
from tests.conftest import small_vae
from tests.faulty import newest
from tests.processes import in_each
from tests.training.gradients.examples import Outcome, layers, vae_with


def refused(make: Callable[[], nn.Module], x: Tensor, **options: Any) -> str:
    with pytest.raises(ValueError, match="process") as error:
        pv.fit(make(), x, epochs=1, progress=False, **options)
    return str(error.value)


class OfBatch(nn.Module):
    """A penalty of a user that depends on the whole batch, inside of a list inside of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.penalties = [pv.autoencoders.KLSparsity(1.0)]

    def forward(self, network: Any, x: Tensor, codes: Tensor) -> Tensor:
        return self.penalties[0](network, x, codes)


def run_refused() -> list[str]:
    same = torch.ones(8, 6)
    encoder, decoder = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()), nn.Linear(4, 6)
    sparse = pv.autoencoders.Autoencoder(encoder, decoder, penalty=pv.autoencoders.KLSparsity(1.0))
    other = pv.autoencoders.Autoencoder(encoder, decoder, penalty=OfBatch())
    model = small_vae()
    with pytest.raises(
        ValueError, match=r"the data or parameters of an evaluation differ between process 1 .*in_first"
    ):
        log_weights(model.model, model.guide, same, 5, seed=0)
    return [
        refused(small_vae, torch.rand(8, 6).round()),
        refused(lambda: sparse, same),
        refused(lambda: other, same),
    ]


def test_calls_with_another_result_are_refused_in_all_processes() -> None:
    first, second = in_each(2, run_refused)
    assert first == second
    assert "the training data differ between process 1 and the first process. Create them from the same" in first[0]
    assert all("the loss of Autoencoder is not known to be a sum over the data" in reason for reason in first[1:])


class Wayward(nn.Module):
    """A program that draws more in one process than in another, and has a buffer that depends on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6))
        self.register_buffer("seen", torch.zeros(6))

    def loss(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen.copy_(x.mean(0))  # type: ignore[operator]
            for _ in range(parallel.rank()):
                torch.rand(len(x), 6)
        return (x - self.weight).square().mean()


def train_wayward() -> tuple[Any, ...]:
    module, x = Wayward(), torch.rand(20, 6, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings(record=True) as told:
        history = pv.fit(module, x, batch_size=4, epochs=2, compile=True, progress=False)
    assert ["train without compilation" in str(warning.message) for warning in told] == [True] * parallel.is_first()
    return module.state_dict(), torch.get_rng_state(), history.train


def test_processes_stay_in_step_for_any_module() -> None:
    first, second = in_each(2, train_wayward)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def evaluate_in_pieces() -> list[Any]:
    """Return the results of several programs for data in many chunks."""
    torch.manual_seed(7)
    vae, x = small_vae(), torch.rand(23, 6).round()
    results = [
        log_weights(vae.model, vae.guide, x, 20, seed=1, memory=2**17),
        log_weights(vae.model, vae.guide, x, 20, seed=1, memory=2**17, vectorize=False),
        log_weights(vae.model, vae.guide, x[:1], 20, seed=1),
    ]
    table = evaluate(vae.model, vae.guide, x, 40, seed=1, memory=2**17, progress=False)
    options: Any = {"num_samples": 200, "memory": 2**17, "progress": False}
    quoted = pv.evaluation.log_likelihood(vae.model, vae.guide, x, seed=1, **options)
    unseeded = evaluate(vae.model, vae.guide, x, 10, progress=False)
    with torch.no_grad():
        vae.likelihood.network[2].bias[:] = torch.inf
    with pytest.raises(FloatingPointError, match="log-weights of all 23 data are NaN or infinite"):
        evaluate(vae.model, vae.guide, x, 10, progress=False)
    return [*results, table.to_array().values, quoted.log_likelihood.values, quoted.mcse.values, unseeded.attrs["seed"]]


def test_an_evaluation_is_that_of_one_process_bit_for_bit() -> None:
    ((*alone, _),), (first, second), thirds = (in_each(size, evaluate_in_pieces) for size in (1, 2, 3))
    assert first[-1] == second[-1]
    for found in (first, second, *thirds):
        for one, other in zip(alone, found[:-1], strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def diverge(folder: Path) -> tuple[Any, ...]:
    torch.manual_seed(7)
    vae, x = small_vae(), torch.rand(40, 6).round()
    objective, options = pv.objectives.IWAE(5), {"batch_size": 10, "learning_rate": 1e9, "seed": 0, "progress": False}
    with pytest.raises(pv.DivergenceError) as error:
        pv.fit(vae, x, objective=objective, epochs=20, checkpoint=folder, **options)
    return str(error.value), error.value.epoch, error.value.step, error.value.history.train


def test_a_divergence_is_the_same_error_in_all_processes(tmp_path: Path) -> None:
    (alone,), (first, second) = (in_each(size, diverge, tmp_path / str(size)) for size in (1, 2))
    assert first == second
    assert first[1:3] == alone[1:3]
    assert first[0] == alone[0].replace(str(tmp_path / "1"), str(tmp_path / "2"))
    assert "the first site that is not finite is" in first[0]


class Signalled:
    """A binarization that sends a signal to its own process at a training step, in one process only."""

    def __init__(self, rank: int, at: int, number: int) -> None:
        self.rank, self.left, self.number = rank, at, number

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and parallel.rank() == self.rank:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
        return pv.data.binarize(x * np.random.uniform(0.8, 1.0))


def train(folder: Path | None, epochs: int = 4, at: int = -1, number: int = signal.SIGINT) -> Outcome:
    pyro.set_rng_seed(7 + parallel.rank())  # weights and noise are the first's, for all
    vae = vae_with(nn.Sequential(*layers()))
    x = torch.rand(23, 6, generator=torch.Generator().manual_seed(1)).double()
    options = {"epochs": epochs, "batch_size": 5, "transform": Signalled(1, at, number), "progress": False}
    history = pv.fit(vae, x, x.round(), checkpoint=folder, learning_rate=0.01, **options)
    assert history.interrupted == (at > 0)
    return vae.state_dict(), {"train": history.train, "valid": history.valid}


def train_in_parts(folder: Path) -> list[Any]:
    write = archives.write
    if not parallel.is_first():
        archives.write = None  # type: ignore[assignment]  # only the first process may write
    whole = train(None)
    train(folder, at=8)  # amid the second epoch
    names = sorted(path.name for path in folder.iterdir())
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))  # by which each would end
    train(folder, at=5, number=signal.SIGTERM)
    assert ended == [signal.SIGTERM]
    resumed = train(folder)
    if parallel.is_first():
        archives.write = fail
    with pytest.raises(pv.CheckpointError, match=r"cannot be written \(No space left on device\)\. .* is complete"):
        train(folder, epochs=5)
    archives.write = write
    return [whole, names, resumed]


def fail(*_: Any) -> None:
    raise OSError(28, os.strerror(28))


def test_the_first_process_writes_and_all_stop_and_go_on_together(tmp_path: Path) -> None:
    first, second = in_each(2, train_in_parts, tmp_path)
    whole, names, resumed = first
    for other in (resumed, second[0], second[2]):
        torch.testing.assert_close(other, whole, rtol=0, atol=0)
    assert names[-1] == "checkpoint-000001-000003.pt"


def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    whole, _ = in_each(2, train, None)
    in_each(2, train, tmp_path, 2)
    (alone,) = in_each(1, train, tmp_path)
    torch.testing.assert_close(alone, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_torchrun_restarts_an_experiment_one_of_whose_processes_is_killed(tmp_path: Path) -> None:
    """The results are those of one uninterrupted process, and only the first process prints."""
    options: dict[str, Any] = {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 8, "kl_warmup": 2, "num_samples": 60, "test_size": 15
    }  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name != "hidden"]
    places = [f"--out={tmp_path / 'two'}", f"--checkpoint={tmp_path / 'kept'}", "--hidden", "16", "--device=cpu"]
    command = [*torchrun, "-m", "experiments.elbo_vs_iwae", *arguments, *places]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while newest(tmp_path / "kept" / "IWAE") < (2, 0):
            assert run.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        printed, told = run.communicate()
    assert run.returncode == 0, told
    assert "failed (exitcode: -9)" in told
    assert printed.count("nats per datum") == 1
    assert json.loads((tmp_path / "two" / "results.json").read_text())["options"]["epochs"] == 8
    elbo_vs_iwae.main(elbo_vs_iwae.Options(**options, device="cpu", out=tmp_path / "one"))
    with xr.open_dataset(tmp_path / "one/evaluation.nc") as one, xr.open_dataset(tmp_path / "two/evaluation.nc") as two:
        for bound in ("elbo", "log_likelihood"):
            torch.testing.assert_close(*(torch.tensor(of[bound].values) for of in (two, one)), rtol=1e-4, atol=1e-3)
