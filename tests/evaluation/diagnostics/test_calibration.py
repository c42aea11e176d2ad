"""Simulated data come from the model, and ranks distinguish a calibrated guide from a wrong one."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import simulation_based_calibration
from pyrovae.evaluation.simulation import simulate
from tests.models.examples import hierarchical
from tests.oracle import Oracle
from tests.processes import in_each


def test_simulated_data_come_from_the_latents() -> None:
    oracle = Oracle()
    torch.manual_seed(0)
    latents, (x,) = simulate(oracle.vae.model, (torch.zeros(20_000, 5).double(),))
    z = latents["z"]
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(2).double(), atol=0.04, rtol=0)
    noise = x - z @ oracle.w.T - oracle.b
    torch.testing.assert_close(noise.T.cov(), oracle.sigma**2 * torch.eye(5).double(), atol=0.03, rtol=0)
    assert noise.mean(0).abs().max() < 0.03


def test_simulation_gives_later_sites_what_earlier_ones_drew() -> None:
    def model(x: Tensor, y: Tensor, offset: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("y", dist.Normal(100.0, 1.0), obs=y.unsqueeze(-1))
            z = pyro.sample("z", dist.Normal(y.unsqueeze(-1), 0.01))  # reads the argument, not the site
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal(z + offset.unsqueeze(-1), 0.01), obs=x)
            pyro.sample("after", dist.Normal(x.mean(1, keepdim=True), 0.01))

    offset = torch.full((5,), 7.0)
    latents, (x, y, same) = simulate(model, (torch.zeros(5, 3), torch.ones(5), offset))
    assert same is offset
    assert (y > 90).all()
    assert y.std() > 0.1
    torch.testing.assert_close(latents["z"].squeeze(-1), y, atol=0.1, rtol=0)
    torch.testing.assert_close(x, (y + 7).unsqueeze(-1).expand(5, 3), atol=0.2, rtol=0)
    torch.testing.assert_close(latents["after"].squeeze(-1), y + 7, atol=0.2, rtol=0)


def test_a_conditioned_latent_is_given_to_the_simulation() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 0.01), obs=x)

    latents, (x,) = simulate(pyro.condition(model, data={"loc": torch.tensor(50.0)}), (torch.zeros(4),))
    assert latents == {}
    torch.testing.assert_close(x, torch.full((4,), 50.0), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        (
            lambda x, y: pyro.sample("x", dist.Normal(0.0, 1.0), obs=2 * x),
            r"at site 'x', shape \(4,\), is neither a view nor a copy of an arg",
        ),
        (lambda x, y: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.clone()), "equals several arguments of the model"),
        (lambda x, y: [pyro.sample(n, dist.Normal(0.0, 1.0), obs=x) for n in "ab"], "'a' and 'b' observe the same"),
        (lambda x, y: pyro.factor("f", x), "'f' is a pyro.factor, a weight without a distribution"),
        (lambda x, y: None, "the model observes nothing inside a plate"),
        (
            lambda x, y: pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=x),
            r"draws a value of shape \(4, 4\) but observes an argument of shape \(4,\)",
        ),
    ],
)
def test_programs_that_cannot_be_simulated_are_refused(observe: object, message: str) -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", 4):
            observe(x, y)

    x = torch.arange(4.0)
    with pytest.raises(ValueError, match=message):
        simulate(model, (x, x.clone()))


def test_ranks_of_the_exact_posterior_are_uniform() -> None:
    oracle = Oracle()
    result = simulation_based_calibration(
        oracle.vae.model, oracle.vae.guide, oracle.data(300), num_simulations=4000, seed=0
    )
    ranks = result["z"].values
    assert result["z"].dims == ("simulation", "z_unit")
    assert ranks.shape == (4000, 2)
    assert (ranks.min(), ranks.max()) == (0, 99)
    assert (result["z_p_value"] > 0.01).all()
    np.testing.assert_allclose(ranks.mean(0), 49.5, atol=1.5)
    np.testing.assert_allclose(ranks.std(0), math.sqrt((100**2 - 1) / 12), rtol=0.03)


@pytest.mark.parametrize(
    ("scale", "shift", "spread", "centre"), [(0.7, 0.0, 1, 0), (1.4, 0.0, -1, 0), (1.0, 0.4, 0, -1)]
)
def test_ranks_of_a_wrong_posterior_are_not(scale: float, shift: float, spread: int, centre: int) -> None:
    oracle = Oracle(scale, shift)
    result = simulation_based_calibration(
        oracle.vae.model, oracle.vae.guide, oracle.data(500), num_simulations=2000, seed=0
    )
    assert (result["z_p_value"] < 1e-6).all()
    ranks = result["z"].values / 99
    assert (np.sign(((ranks.std(0) - 12**-0.5) / 0.03).round()) == spread).all()
    assert (np.sign((ranks.mean(0) - 0.5).round(1)) == centre).all()


def test_p_values_of_calibrated_guides_are_uniform() -> None:
    """Bins have unequal sizes, because 30 draws give 31 ranks."""
    oracle = Oracle()
    x = oracle.data(500)
    p_values = [
        simulation_based_calibration(oracle.vae.model, oracle.vae.guide, x, 30, num_simulations=500, seed=seed)[
            "z_p_value"
        ]
        for seed in range(40)
    ]
    assert 0.38 < np.mean(p_values) < 0.62
    assert 0.2 < np.std(p_values) < 0.38


def test_several_sites_and_given_arguments(x: Tensor) -> None:
    vae = hierarchical()
    result = simulation_based_calibration(vae.model, vae.guide, torch.zeros(7, 2, 2), 9, num_simulations=60, seed=0)
    assert set(result) == {"z1", "z1_p_value", "z2", "z2_p_value"}
    assert result["z1"].shape == (60, 3)
    likelihood = pv.likelihoods.Masked(pv.likelihoods.Bernoulli(pv.networks.mlp(2, 6)))
    posterior = pv.posteriors.DiagonalNormal(pv.networks.ZeroFilled(pv.networks.mlp((2, 6), 4), event_dim=1))
    masked = pv.VAE(pv.priors.StandardNormal(2), likelihood, posterior)
    mask = torch.rand(12, 6) < 0.5
    assert simulation_based_calibration(masked.model, masked.guide, (x, mask), seed=0)["z"].shape == (1000, 2)


def exchangeable() -> tuple[object, object]:
    """A plain script with a scalar and a discrete latent and an inner plate. Its guide, the prior, is exact."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("s", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("kind", dist.Bernoulli(0.3))
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("s", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("kind", dist.Bernoulli(0.3))

    return model, guide


@pytest.mark.parametrize("vectorize", [True, False])
def test_inner_plates_and_discrete_units(vectorize: bool) -> None:
    model, guide = exchangeable()
    result = simulation_based_calibration(
        model, guide, torch.zeros(250, 3), 19, num_simulations=1000, seed=0, vectorize=vectorize
    )
    assert result["s"].shape == (1000, 1)
    assert result["kind"].shape == (1000, 3)
    assert (result["kind_p_value"] > 0.005).all()
    assert (result["s_p_value"] > 0.005).all()


def test_calibration_is_the_seeds_and_changes_nothing() -> None:
    vae = hierarchical().train()
    state = torch.get_rng_state()
    x = torch.zeros(60, 2, 2)
    one, same, other = (
        simulation_based_calibration(vae.model, vae.guide, x, 9, num_simulations=60, seed=seed) for seed in (1, 1, 2)
    )
    assert one["z1"].equals(same["z1"])
    assert not one["z1"].equals(other["z1"])
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    cut = simulation_based_calibration(vae.model, vae.guide, x, 9, num_simulations=60, seed=1, memory=5000)
    assert cut["z1"].shape == (60, 3)


@pytest.mark.parametrize("arguments", [{"num_draws": 0}, {"num_simulations": 10}])
def test_too_few_draws_or_simulations(arguments: dict[str, int]) -> None:
    vae = hierarchical()
    with pytest.raises(ValueError, match="num_draws must be at least 1 and num_simulations at least 50"):
        simulation_based_calibration(vae.model, vae.guide, torch.zeros(3, 2, 2), **arguments)


def test_masked_entries_are_simulated_as_they_are_in_the_data() -> None:
    mask = (torch.arange(40).reshape(10, 4) % 3 > 0).double()

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
            loc = z.unsqueeze(-1) + torch.zeros_like(x)
            pyro.sample("x", dist.Normal(loc, 1.0).mask(mask.bool()).to_event(1), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:  # relies on zeros where nothing was observed
        with pyro.plate("data", len(x)):
            precision = 1 + mask.sum(-1)
            pyro.sample("z", dist.Normal(x.sum(-1) / precision, precision**-0.5))

    data = torch.zeros(10, 4, dtype=torch.float64), mask
    ranks = pv.evaluation.simulation_based_calibration(model, guide, data, num_simulations=2000, seed=0)
    assert float(ranks.z_p_value[0]) > 1e-3
    with torch.no_grad():
        _, (x, _) = simulate(model, data)
    assert (x[mask == 0] == 0).all()
    assert (x[mask == 1] != 0).all()


def calibrated(**options: Any) -> Any:
    vae = hierarchical_of_a_seed()
    return simulation_based_calibration(vae.model, vae.guide, torch.zeros(20, 2, 2), 9, **{**CALIBRATION, **options})


CALIBRATION: dict[str, Any] = {"num_simulations": 90, "seed": 3, "memory": 2**17, "progress": False}


def hierarchical_of_a_seed() -> pv.HierarchicalVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hierarchical()


def ranks_in_a_process() -> dict[str, Any]:
    return {name: values.values.tolist() for name, values in calibrated().items()}


@pytest.mark.slow
def test_processes_divide_a_calibration() -> None:
    one = ranks_in_a_process()
    assert len(one["z1"]) == 90
    assert all(result == one for result in in_each(2, ranks_in_a_process))


def test_a_calibration_goes_on_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, draw = calibrated(), pv.evaluation.Problem.draw
    calls: list[None] = []

    def interrupted(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(pv.evaluation.Problem, "draw", interrupted)
    with pytest.warns(UserWarning, match=r"interrupted, and the result holds only the first \d+ rows"):
        part = calibrated(checkpoint=tmp_path)
    monkeypatch.undo()
    done = part.sizes["simulation"]
    assert 0 < done < 90
    np.testing.assert_array_equal(part["z1"], whole["z1"][:done])
    assert calibrated(checkpoint=tmp_path).equals(whole)
    assert calibrated(checkpoint=tmp_path).equals(whole)  # all rows are in the folder


def test_a_simulation_that_fails_is_a_row_of_nan() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        if (x > 3).any():
            raise RuntimeError("the guide takes no datum above 3")
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = simulation_based_calibration(model, guide, torch.zeros(50), 20, num_simulations=1000, seed=0)
    missing = result["z"].isnull().values[:, 0]
    assert re.match(r"data \[.*\d\] raise an error, and their rows are NaN: the guide takes no", str(told[0].message))
    assert 0.002 < missing.mean() < 0.05  # x is normal with variance 2: 1.7% are above 3
    assert set(np.unique(result["z"].values[~missing])) == set(range(21))
    assert 0 <= float(result["z_p_value"][0]) <= 1
