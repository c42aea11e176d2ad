"""InferenceData holds draws from the right distributions under the right names, and ArviZ works with it."""

import copy
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from tests.evaluation.posterior.inference_data import GROUPS, groups_of, moments, to_inference_data
from tests.oracle import Oracle

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0
    import arviz as az


def test_log_likelihoods_that_rank_the_wrong_way_are_left_out(vae: pv.VAE, x: Tensor) -> None:
    assert "log_likelihood" not in groups_of(pv.evaluation.to_inference_data(vae.model, vae.guide, x, 40, seed=0))


def posterior_of(oracle: Oracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean, shape ``(n, latent)``, and the variance, shape ``(latent,)``, of p(z | x)."""
    variance = 1 / (1 + (oracle.w**2).sum(0) / oracle.sigma**2)
    return (x - oracle.b) @ oracle.w / oracle.sigma**2 * variance, variance


def test_resampled_draws_are_the_exact_posteriors_though_the_guide_is_wrong() -> None:
    oracle = Oracle(scale=1.5, shift=0.8)
    x = oracle.data(40)
    data = to_inference_data(oracle.vae.model, oracle.vae.guide, x, 4000, num_draws=3000, seed=0)
    loc, variance = posterior_of(oracle, x)
    mean, spread = moments(data["posterior"]["z"])
    np.testing.assert_allclose(mean, loc, atol=0.1)
    np.testing.assert_allclose(spread.mean("datum"), variance, rtol=0.03)
    assert abs(mean - loc.numpy()).mean() < 0.02

    z = torch.from_numpy(data["posterior"]["z"].values)
    exact = oracle.vae.likelihood(z).log_prob(x).detach()
    np.testing.assert_allclose(data["log_likelihood"]["x"], exact)

    mean, spread = moments(data["posterior_predictive"]["x"])
    np.testing.assert_allclose(mean, loc @ oracle.w.T + oracle.b, atol=0.12)
    exact_spread = ((oracle.w**2) * variance).sum(1) + oracle.sigma**2
    np.testing.assert_allclose(spread.mean("datum"), exact_spread, rtol=0.03)
    np.testing.assert_array_equal(data["observed_data"]["x"], x)


def test_raw_draws_with_their_weights_are_the_posterior() -> None:
    oracle = Oracle(scale=1.5, shift=0.8)
    x = oracle.data(40)
    data = to_inference_data(oracle.vae.model, oracle.vae.guide, x, 4000, weights="raw", num_prior_draws=0, seed=0)
    weights, z = data["sample_stats"]["weights"], data["posterior"]["z"]
    assert dict(z.sizes) == {"chain": 1, "draw": 4000, "datum": 40, "z_dim_0": 2}
    np.testing.assert_allclose(weights.sum(["chain", "draw"]), 1)
    loc, variance = posterior_of(oracle, x)
    np.testing.assert_allclose((weights * z).sum(["chain", "draw"]), loc, atol=0.1)
    unweighted, spread = moments(z)
    np.testing.assert_allclose(unweighted, loc + 0.8 * variance.sqrt(), atol=0.06)  # the guide's
    np.testing.assert_allclose(spread.mean("datum"), 1.5**2 * variance, rtol=0.03)

    latents = torch.from_numpy(z.values[0])
    log_joint = oracle.vae.prior().log_prob(latents) + oracle.vae.likelihood(latents).log_prob(x)
    exact = log_joint - oracle.vae.posterior(x).log_prob(latents)
    np.testing.assert_allclose(data["sample_stats"]["log_weights"][0], exact.detach(), atol=1e-9)
    smoothed, pareto_k = pv.evaluation.psis(exact)
    np.testing.assert_allclose(weights[0], smoothed.exp(), atol=1e-9)
    np.testing.assert_allclose(data["sample_stats"]["pareto_k"], pareto_k, atol=1e-6)
    np.testing.assert_allclose(data["sample_stats"]["ess"], 1 / (exact.softmax(0) ** 2).sum(0).detach())


def test_resampled_weights_belong_to_their_draws() -> None:
    oracle = Oracle(scale=1.4)
    x = oracle.data(5)
    data = to_inference_data(oracle.vae.model, oracle.vae.guide, x, 100, num_draws=30, seed=0)
    z = torch.from_numpy(data["posterior"]["z"].values[0])
    log_joint = oracle.vae.prior().log_prob(z) + oracle.vae.likelihood(z).log_prob(x)
    exact = (log_joint - oracle.vae.posterior(x).log_prob(z)).detach()
    np.testing.assert_allclose(data["sample_stats"]["log_weights"][0], exact, atol=1e-9)
    assert "weights" not in data["sample_stats"]


def test_the_prior_is_the_models() -> None:
    oracle = Oracle(scale=1.5, shift=0.8)
    data = to_inference_data(
        oracle.vae.model, oracle.vae.guide, oracle.data(50), 30, num_draws=10, num_prior_draws=500, seed=0
    )
    z, x = (
        data[group][site].values.reshape(-1, n) for group, site, n in (("prior", "z", 2), ("prior_predictive", "x", 5))
    )
    np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.03)
    np.testing.assert_allclose(x.mean(0), oracle.b, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), oracle.w @ oracle.w.T + oracle.sigma**2 * torch.eye(5), atol=0.12)
    noise = x - z @ oracle.w.T.numpy() - oracle.b.numpy()
    np.testing.assert_allclose(noise.var(0), oracle.sigma**2, rtol=0.05)  # the noise belongs to the same draws of z


def test_names_dimensions_and_coordinates() -> None:
    oracle = Oracle()
    x = oracle.data(3)
    data = to_inference_data(
        oracle.vae.model, oracle.vae.guide, x, 30, num_draws=10, num_prior_draws=4, seed=5, binarization="none",
        coords={"latent": ["left", "right"], "datum": ["a", "b", "c"], "unused": [1]}, dims={"z": ["latent"]},
    )  # fmt: skip
    assert groups_of(data) == GROUPS
    z = data["posterior"]["z"]
    assert z.dims == ("chain", "draw", "datum", "latent")
    assert z.sel(latent="right", datum="b").shape == (1, 10)
    assert data["prior"]["z"].dims == z.dims
    assert data["prior"]["z"].shape == (1, 4, 3, 2)
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "x_dim_0")
    assert data["observed_data"]["x"].dims == ("datum", "x_dim_0")
    assert data["log_likelihood"]["x"].dims == data["sample_stats"]["log_weights"].dims == ("chain", "draw", "datum")
    assert data["sample_stats"]["pareto_k"].dims == ("datum",)
    assert "unused" not in data["posterior"].coords
    attrs = data["posterior"].attrs
    assert (attrs["num_samples"], attrs["num_draws"], attrs["seed"], attrs["weights"]) == (30, 10, 5, "resampled")
    assert attrs["binarization"] == "none"


def test_a_diverged_model_raises_an_error(vae: pv.VAE, x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.likelihood(z), obs=x)
            pyro.factor("zero", torch.full((len(x),), -torch.inf))

    with pytest.raises(FloatingPointError, match="all draws of a datum have weight zero"):
        to_inference_data(model, vae.guide, x, 5, num_prior_draws=0)


def test_chunks_of_data_and_draws_are_put_together() -> None:
    oracle = Oracle(1.3)
    x = oracle.data(9)
    for options in ({"memory": 1}, {"memory": 20_000}, {"vectorize": False}):
        data = to_inference_data(oracle.vae.model, oracle.vae.guide, x, 50, num_draws=25, seed=0, **options)
        z = torch.from_numpy(data["posterior"]["z"].values)
        np.testing.assert_allclose(data["log_likelihood"]["x"], oracle.vae.likelihood(z).log_prob(x).detach())
        np.testing.assert_array_equal(data["observed_data"]["x"], x)
        error = data["posterior_predictive"]["x"].values - (z @ oracle.w.T + oracle.b).numpy()
        np.testing.assert_allclose(error.std(), oracle.sigma, rtol=0.1)


@pytest.mark.parametrize("weights", ["resampled", "raw"])
def test_it_is_saved_and_read_again(vae: pv.VAE, x: Tensor, tmp_path: Path, weights: str) -> None:
    data = to_inference_data(vae.model, vae.guide, x, 40, num_draws=20, weights=weights, seed=0)
    data.to_netcdf(tmp_path / "data.nc")
    again = az.from_netcdf(tmp_path / "data.nc")
    assert groups_of(again) == groups_of(data) == GROUPS
    for group in GROUPS:
        one, other = (part[group].dataset if isinstance(part, xr.DataTree) else part[group] for part in (data, again))
        xr.testing.assert_identical(one.load(), other.load())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib warns about ArviZ
def test_tables_and_figures_of_arviz() -> None:
    oracle = Oracle(1.3)
    data = to_inference_data(oracle.vae.model, oracle.vae.guide, oracle.data(3), 200, num_draws=100, seed=0)
    table = az.summary(data, var_names=["z"])
    assert len(table) == 6
    np.testing.assert_allclose(
        table["mean"].astype(float), data["posterior"]["z"].mean(["chain", "draw"]).values.ravel(), atol=0.05
    )
    if not isinstance(data, xr.DataTree):
        az.plot_posterior(data, var_names=["z"])
        az.plot_ppc(data, num_pp_samples=20)
        az.plot_dist_comparison(data, var_names=["z"], coords={"datum": 0, "z_dim_0": 0})
    else:
        az.plot_dist(data, var_names=["z"])
        az.plot_ppc_dist(data, num_samples=20)
        az.plot_prior_posterior(data, var_names=["z"])
    az.plot_forest(data, var_names=["z"])
    az.plot_trace(data, var_names=["z"])
    assert plt.get_fignums()
    plt.close("all")


def test_the_seed_decides_and_nothing_changes(vae: pv.VAE, x: Tensor) -> None:
    state, before = torch.get_rng_state(), copy.deepcopy(vae.state_dict())
    one, same, other = (to_inference_data(vae.model, vae.guide, x, 40, num_draws=20, seed=seed) for seed in (1, 1, 2))
    assert one["posterior"]["z"].equals(same["posterior"]["z"])
    assert one["prior_predictive"]["x"].equals(same["prior_predictive"]["x"])
    assert not one["posterior"]["z"].equals(other["posterior"]["z"])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert vae.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "smoothed"}, "weights must be 'resampled' or 'raw', got 'smoothed'"),
        ({"num_prior_draws": -1}, "num_prior_draws must be at least 0, got -1"),
        ({"num_draws": 0}, "must be at least 1, got num_samples=1000 and num_draws=0"),
        ({"num_samples": 0}, "must be at least 1, got num_samples=0 and num_draws=5"),
        (
            {"dims": {"z": ["a", "b"]}},
            r"dims holds the names \['a', 'b'\] for site 'z', but .*'z': \['z_dim_0'\].*one name for each",
        ),
        ({"dims": {"latent": ["a"]}}, r"dims holds the names \['a'\] for site 'latent'"),
    ],
)
def test_bad_arguments(vae: pv.VAE, x: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_inference_data(vae.model, vae.guide, x, **{"num_draws": 5, **options})
