"""Results record their data and programs, one bad datum affects no other, and the data plate is not confused."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program, exact_normal, normal_guide, normal_model

X = torch.randn(12, generator=torch.Generator().manual_seed(0))


def with_noise(scale: float | Tensor) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    return model


def with_argument(scale: float, x: Tensor) -> None:
    with_noise(scale)(x)


@pytest.mark.parametrize(
    "make", [with_noise, lambda scale: with_noise(torch.tensor(scale)), lambda scale: partial(with_argument, scale)]
)
def test_a_reference_with_other_constants_is_refused(make: Callable[[float], Program]) -> None:
    reference = pv.evaluation.evaluate(make(0.5), normal_guide, X, 100, seed=0)
    pv.evaluation.inference_gaps(make(0.5), normal_guide, X, reference, num_steps=2, num_samples=2, seed=0)
    with pytest.raises(ValueError, match="other parameters"):
        pv.evaluation.inference_gaps(make(2.0), normal_guide, X, reference, num_steps=2, seed=0)


def raising(x: Tensor) -> None:
    if (x == 123.0).any():
        raise RuntimeError("no such datum")
    normal_model(x)


def diverging(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.where(x == 123.0, torch.nan, z), 1.0), obs=x)


def negative_scale(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, torch.where(x == 123.0, -1.0, 1.0)), obs=x)


@pytest.mark.parametrize("index", [0, 5, 11])
@pytest.mark.parametrize("model", [raising, diverging, negative_scale])
def test_a_datum_that_fails_affects_no_other(model: Program, index: int) -> None:
    x = X.clone()
    x[index] = 123.0
    keep = np.arange(12) != index
    with pytest.warns(UserWarning, match=rf"\[{index}\]"):
        found = pv.evaluation.evaluate(model, normal_guide, x, 1000, seed=0)
    assert np.isnan(found.log_likelihood.values[index])
    error = abs(found.log_likelihood.values - exact_normal(x))[keep]
    assert (error < 5 * found.mcse.values[keep] + 1e-3).all()


def test_ais_of_a_datum_that_fails() -> None:
    x = torch.cat([torch.tensor([123.0]), X[:3]])
    with pytest.warns(UserWarning, match=r"\[0\]"):
        found = pv.evaluation.ais(raising, normal_guide, x, 4, num_temperatures=5, seed=0)
    assert np.isnan(found.log_likelihood.values).tolist() == [True, False, False, False]


@pytest.mark.parametrize("model", [raising, diverging])
def test_if_all_data_fail_the_error_is_raised(model: Program) -> None:
    with pytest.raises((RuntimeError, FloatingPointError), match=r"no such datum|diverged"):
        pv.evaluation.evaluate(model, normal_guide, torch.full((5,), 123.0), 10, seed=0)


def test_columns_other_than_log_p_are_announced_if_they_are_missing() -> None:
    x = X.clone()
    x[4] = torch.nan

    def guide(x: Tensor) -> None:
        normal_guide(x.nan_to_num(0.0))

    with pytest.warns(UserWarning, match=r"reconstruction of data \[4\] are NaN"):
        pv.evaluation.elbo_surgery(normal_model, guide, x, 2, seed=0)


def test_a_plate_of_the_same_size_is_no_data_plate() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("features", 12):
            pyro.sample("w", dist.Normal(torch.arange(12.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"share no plate.*plate="):
        pv.evaluation.active_units(guide, X, seed=0)
    assert pv.evaluation.active_units(guide, X, plate="data", seed=0).attrs["sites"] == ["z"]
