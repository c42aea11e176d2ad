"""Log-weights are exact for any chunk size and any program."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evaluation import evaluate, log_weights
from pyrovae.evaluation.batches import Batch
from tests.oracle import Oracle


class Numbered:
    """A program whose k-th draw of a datum has weight k, in any number of runs."""

    def __init__(self) -> None:
        self.drawn = 0

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0).mask(False))
            pyro.sample("x", dist.Normal(x, 1.0).mask(False), obs=x)
            pyro.factor("number", z)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", _Counting(self).mask(False))  # the same draw as in the model


class _Counting(pyro.distributions.TorchDistribution):
    """A program that counts its draws per datum."""

    has_rsample = True
    support = torch.distributions.constraints.real

    def __init__(self, owner: Numbered, batch_shape: tuple[int, ...] = ()) -> None:
        self.owner = owner
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_Counting":
        return _Counting(self.owner, batch_shape)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        draws = shape[0] if len(shape) == 2 else 1
        numbers = self.owner.drawn + torch.arange(draws, dtype=torch.float32)
        self.owner.drawn += draws
        return numbers[:, None].expand(draws, shape[-1]).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


@pytest.mark.parametrize("num_samples", [1, 2, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("memory", [1, 150, 1000, 10**9])
def test_no_draw_and_no_datum_is_lost(num_samples: int, size: int, memory: int) -> None:
    program = Numbered()
    weights = log_weights(program.model, program.guide, torch.zeros(size), num_samples, memory=memory)
    assert weights.shape == (num_samples, size)
    numbered = weights - weights[0]
    torch.testing.assert_close(numbered, torch.arange(num_samples, dtype=torch.float32)[:, None].expand(-1, size))


@pytest.mark.parametrize("memory", [1, 10_000, 10**9])
@pytest.mark.parametrize("vectorize", [True, False])
def test_chunks_belong_to_their_data(memory: int, vectorize: bool) -> None:
    oracle = Oracle()  # every weight is the datum's own log p(x), so a datum out of place would show
    x = oracle.data(11)
    weights = log_weights(oracle.vae.model, oracle.vae.guide, x, 9, memory=memory, vectorize=vectorize)
    torch.testing.assert_close(weights, oracle.log_likelihood(x).expand(9, 11))


def test_the_same_seed_gives_the_same_draws(vae: pv.VAE, x: Tensor) -> None:
    first, second, other = (log_weights(vae.model, vae.guide, x, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    unseeded = evaluate(vae.model, vae.guide, x, 5)
    again = evaluate(vae.model, vae.guide, x, 5, seed=unseeded.attrs["seed"])
    xr.testing.assert_equal(unseeded, again)


def script(subsample_size: int | None, size: int) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A plain Pyro script with an exact posterior, so that every log-weight is log p(x)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", size, subsample_size=subsample_size) as indices:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[indices])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", size, subsample_size=subsample_size) as indices:
            pyro.sample("z", dist.Normal(x[indices] / 2, math.sqrt(0.5)))

    return model, guide


@pytest.mark.parametrize("size", [2, 3, 7, 10])
@pytest.mark.parametrize("subsample_size", [None, 1, 2, 3, 5])
def test_programs_with_a_plate_of_their_own(size: int, subsample_size: int | None) -> None:
    x = torch.randn(size, dtype=torch.float64)
    model, guide = script(subsample_size and min(subsample_size, size), size)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    for memory in (1, 10**9):
        weights = log_weights(model, guide, x, 6, memory=memory)
        torch.testing.assert_close(weights, exact.expand(6, size))


@pytest.mark.parametrize("memory", [2000, 10**9])
def test_a_plate_that_takes_a_part_of_many_data_loses_none(memory: int) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=min(10, len(x))) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=min(10, len(x))) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, math.sqrt(0.5)))

    x = torch.randn(53, dtype=torch.float64)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(log_weights(model, guide, x, 4, memory=memory), exact.expand(4, 53))


NOISY: list[Callable[[Tensor], dist.Normal]] = [
    lambda x: dist.Normal(x / 2 + 0.1 * torch.rand((), dtype=x.dtype), 1.0),
    lambda x: dist.Normal(x / 2 + 0.1 * torch.randn_like(x), 1.0),
    lambda x: dist.Normal(x / 2, 0.8 + 0.2 * torch.rand((), dtype=x.dtype)),
]


@pytest.mark.parametrize("posterior", NOISY)
@pytest.mark.parametrize("subsample_size", [4, 5])
def test_a_guide_of_another_density_in_every_run_may_take_a_part_of_the_data(
    subsample_size: int, posterior: Callable[[Tensor], dist.Normal]
) -> None:
    model, _ = script(subsample_size, 12)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 12, subsample_size=subsample_size) as indices:
            pyro.sample("z", posterior(x[indices]))

    x = torch.linspace(-2, 2, 12, dtype=torch.float64)
    result = evaluate(model, guide, x, 2000, seed=0, progress=False)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    assert (abs(result.log_likelihood - exact.numpy()) < 5 * result.mcse).all()


def counted_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0)), 1.0), obs=x)


def counted_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


@pytest.mark.parametrize("bad", [[0], [5], [3, 11]])
def test_a_datum_that_fails_is_nan_in_a_column_of_counts(bad: list[int]) -> None:
    x = torch.arange(12.0)
    problem = pv.evaluation.Problem(counted_model, counted_guide, x, seed=0, progress=False)

    def count(batch: Batch) -> dict[str, Tensor]:
        if any(float(i) in batch.args[0] for i in bad):
            raise RuntimeError("a datum that cannot be counted")
        return {"count": (problem.log_weights(batch, 30) > -5).sum(0)}

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = pv.evaluation.report(problem, count, estimator="count", width=2, num_samples=30)
    assert [str(warning.message) for warning in told[:-1]] == [
        f"data [{i}] raise an error, and their rows are NaN: a datum that cannot be counted" for i in bad
    ]
    assert f"count of data {bad} are NaN" in str(told[-1].message)
    assert np.flatnonzero(result["count"].isnull()).tolist() == bad
    assert result["count"].dropna("datum").isin(range(31)).all()


def test_an_autoguide_that_has_seen_no_data_is_refused(vae: pv.VAE, x: Tensor) -> None:
    guide = AutoNormal(vae.model)
    with pytest.raises(ValueError, match="autoguide has not been initialized"):
        log_weights(vae.model, guide, x, 3)
    guide(x)
    assert log_weights(vae.model, guide, x, 3).shape == (3, 12)


def test_a_plate_of_another_size_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:4])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(x[:4], 1.0))

    with pytest.raises(ValueError, match="plate 'data' has size 4 but x has 9 data"):
        log_weights(model, guide, torch.zeros(9), 3)


class Convolutional(nn.Module):
    """A program as in Pyro's tutorials: pyro.module, and a network that accepts one batch dimension only."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(1))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def test_a_program_that_takes_no_further_dimension() -> None:
    program, x = Convolutional(), torch.randn(5, 4)
    with pytest.raises(ValueError, match="vectorize=False to run the program once for each draw"):
        log_weights(program.model, program.guide, x, 3, vectorize=True)
    weights = log_weights(program.model, program.guide, x, 3, vectorize=False, seed=0)
    assert weights.shape == (3, 5)
    with pytest.warns(UserWarning, match="runs once for each draw"):
        assert torch.equal(log_weights(program.model, program.guide, x, 3, seed=0), weights)
    assert not torch.equal(weights[0], weights[1])


def test_tuples_are_passed_on() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y.to(x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2, math.sqrt(0.5)))

    x, y = torch.randn(7, dtype=torch.float64), torch.arange(7)
    exact = dist.Normal(y.double(), math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(log_weights(model, guide, (x, y), 4, memory=1), exact.expand(4, 7))


def test_a_batch_that_fails_is_computed_datum_by_datum_with_a_warning() -> None:
    problem = pv.evaluation.Problem(counted_model, counted_guide, torch.arange(7.0), seed=0, progress=False)

    def count(batch: Batch) -> dict[str, Tensor]:
        if batch.size > 3:
            raise RuntimeError("too many data")
        return {"count": (problem.log_weights(batch, 30) > -5).sum(0)}

    with pytest.warns(UserWarning, match="data 0 to 4 raise an error together, but not alone.*too many data"):
        result = pv.evaluation.report(problem, count, estimator="count", width=5, num_samples=30)
    assert result["count"].isin(range(31)).all()
