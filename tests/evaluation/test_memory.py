"""The memory of an evaluation is bounded, and constant tensors do not make batches small."""

import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrovae.evaluation import evaluate, log_weights
from tests.oracle import Oracle


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_data() -> None:
    code = """
import torch, pyrovae as pv
torch.set_num_threads(1)
vae = pv.VAE(
    pv.priors.StandardNormal(50),
    pv.likelihoods.Bernoulli(pv.networks.mlp(50, 200, 200, 784)),
    pv.posteriors.DiagonalNormal(pv.networks.mlp(784, 200, 200, 100)),
)
x = torch.bernoulli(torch.full((300, 784), 0.2))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pv.evaluation.evaluate(vae.model, vae.guide, x[:20], 5000)
before = resident()
pv.evaluation.evaluate(vae.model, vae.guide, x, 5000)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**27, "the heap grows with the number of data"


def test_memory_bound_holds() -> None:
    oracle = Oracle(size=500)
    x = oracle.data(200)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.nbytes if isinstance(result, Tensor) else 0)
            return result

    memory = 2**20
    with Watch():
        evaluate(oracle.vae.model, oracle.vae.guide, x, 200, seed=0, memory=memory)
    assert largest <= max(memory, x.nbytes)


@pytest.mark.parametrize("constant", [0, 10**6])
def test_a_large_tensor_that_never_grows_does_not_make_batches_small(constant: int) -> None:
    runs = 0

    def model(x: Tensor) -> None:
        nonlocal runs
        runs += 1
        zero = torch.ones(constant).cos().sum() * 0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    weights = log_weights(model, guide, torch.zeros(400), 100, memory=2**22)
    assert weights.shape == (100, 400)
    assert runs < 100, "with the constant counted in a run on three data, a run would have 17 log-weights"


def test_a_tensor_that_grows_in_steps_stays_within_the_memory() -> None:
    largest = 0

    def model(x: Tensor) -> None:
        nonlocal largest
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            flat = z.reshape(-1, 3)
            padded = nn.functional.pad(flat, (0, 0, 0, max(0, 256 - len(flat)))) @ torch.ones(3, 500)
            largest = max(largest, padded.nbytes)
            loc = z.sum(-1) + 0 * padded[: len(flat), 0].reshape(z.shape[:-1])
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))

    evaluate(model, guide, torch.zeros(200), 200, seed=0, memory=2**21)
    assert largest <= 2**21


def test_data_that_fail_do_not_end_the_search_for_constant_tensors() -> None:
    def model(x: Tensor) -> None:
        if x.isnan().any():
            raise RuntimeError("NaN")
        zero = torch.ones(10**5).cos().sum() * 0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    x = torch.arange(12.0)
    x[torch.tensor([0, 1, 2, 4, 5, 7, 8, 10])] = math.nan
    with pytest.warns(UserWarning, match="raise an error"), pytest.warns(UserWarning, match="of 12"):
        result = evaluate(model, guide, x, 50, seed=0, progress=False)
    assert int(result.log_likelihood.isnull().sum()) == 8
