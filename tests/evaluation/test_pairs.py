"""Every evaluation accepts a module with a model and a guide in place of the two programs."""

import inspect
import pickle
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from tests.conftest import small_vae

FEW: dict[str, dict[str, Any]] = {
    "evaluate": {"num_samples": 30},
    "log_likelihood": {"num_samples": 120, "budget": 500},
    "ais": {"num_chains": 4, "num_temperatures": 4},
    "rqmc": {"num_samples": 32},
    "kl_per_dimension": {"num_samples": 10},
    "elbo_surgery": {"num_samples": 10},
    "posterior_predictive_check": {"statistic": lambda x: x.sum(-1), "num_samples": 30, "num_draws": 10},
    "simulation_based_calibration": {"num_simulations": 100, "num_draws": 9},
}


@pytest.mark.parametrize("name", FEW)
def test_a_vae_stands_for_its_programs(name: str, x: Tensor) -> None:
    evaluation, vae = getattr(pv.evaluation, name), small_vae()
    first = evaluation(vae.model, vae.guide, x, **FEW[name], seed=0, progress=False)
    second = evaluation(vae, x, **FEW[name], seed=0, progress=False)
    assert isinstance(second, xr.Dataset)
    xr.testing.assert_equal(first, second)


def test_other_arguments_keep_their_places(vae: pv.VAE, x: Tensor) -> None:
    assert pv.evaluation.evaluate(vae, x, 40, seed=0).attrs["num_samples"] == 40
    assert pv.evaluation.log_weights(vae, x, 7, seed=0).shape == (7, 12)
    assert pv.evaluation.evaluate(vae, x=x, num_samples=30, seed=0).sizes["datum"] == 12
    assert pv.evaluation.evaluate(model=vae.model, guide=vae.guide, x=x, num_samples=30, seed=0).sizes["datum"] == 12


def test_a_guide_that_is_no_program_is_named(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"evaluate takes \(model, guide, x\), or \(vae, x\).* the guide is a Tensor"):
        pv.evaluation.evaluate(vae.model, x, 30)
    autoencoder = pv.autoencoders.Autoencoder(torch.nn.Linear(6, 2), torch.nn.Linear(2, 6))
    with pytest.raises(TypeError, match="the guide is a Tensor"):
        pv.evaluation.log_likelihood(autoencoder, x)


def test_the_function_stays_what_it_was() -> None:
    evaluate = pv.evaluation.evaluate
    assert list(inspect.signature(evaluate).parameters)[:4] == ["model", "guide", "x", "num_samples"]
    assert evaluate.__doc__
    assert pickle.loads(pickle.dumps(evaluate)) is evaluate
