"""ArviZ gets draws from the right distributions under the right names; its tables, figures and files work on them."""

import copy
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from tests.models.examples import hierarchical, labels, m2
from tests.oracle import Oracle

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0
    import arviz as az


def to_inference_data(*args: Any, **options: Any) -> Any:
    """The group of log-likelihoods is there on request, and tested with the others."""
    return pv.evaluation.to_inference_data(*args, **{"log_likelihood": True, **options})


def test_log_likelihoods_that_rank_the_wrong_way_are_left_out(vae: pv.VAE, x: Tensor) -> None:
    assert "log_likelihood" not in groups_of(pv.evaluation.to_inference_data(vae.model, vae.guide, x, 40, seed=0))


def posterior_of(oracle: Oracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, shape ``(n, latent)``, and variance, shape ``(latent,)``, of p(z | x)."""
    variance = 1 / (1 + (oracle.w**2).sum(0) / oracle.sigma**2)
    return (x - oracle.b) @ oracle.w / oracle.sigma**2 * variance, variance


def moments(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    return values.mean(["chain", "draw"]), values.var(["chain", "draw"])


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
    np.testing.assert_allclose(noise.var(0), oracle.sigma**2, rtol=0.05)  # of the very draws of z


GROUPS = {
    "posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive", "observed_data",
}  # fmt: skip


def groups_of(data: object) -> set[str]:
    return {str(name) for name in (data.children if isinstance(data, xr.DataTree) else data.groups())}


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


def test_several_latent_sites() -> None:
    vae, x = hierarchical(), torch.bernoulli(torch.full((5, 2, 2), 0.5))
    data = to_inference_data(vae.model, vae.guide, x, 40, num_draws=20, seed=0)
    assert data["posterior"]["z1"].shape == (1, 20, 5, 3)
    assert data["posterior"]["z2"].dims == ("chain", "draw", "datum", "z2_dim_0")
    assert data["prior_predictive"]["x"].shape == (1, 20, 5, 2, 2)
    z1, z2 = (torch.from_numpy(data["posterior"][name].values[0]) for name in ("z1", "z2"))
    log_joint = vae.priors[1]().log_prob(z2) + vae.priors[0](z2).log_prob(z1) + vae.likelihood(z1).log_prob(x)
    log_q = vae.posteriors[0](x).log_prob(z1) + vae.posteriors[1](z1).log_prob(z2)  # draws of both sites go together
    np.testing.assert_allclose(data["sample_stats"]["log_weights"][0], (log_joint - log_q).detach(), atol=1e-4)


def plates(x: Tensor, data_dim: int) -> tuple[object, object]:
    """A plain script with an auxiliary-free latent per datum, a vector per pixel, and two kinds of data."""
    other = -3 - data_dim

    def shaped(value: Tensor) -> Tensor:
        return value if data_dim == -2 else value.transpose(0, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=data_dim):
            s = pyro.sample("s", dist.Normal(0.0, 1.0))
            count = x.sum(1, keepdim=True).abs().floor()
            pyro.sample("count", dist.Poisson(torch.exp(0.1 * s)), obs=shaped(count) if data_dim == -2 else count[:, 0])
            with pyro.plate("pixels", 3, dim=other):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1) + s, 0.5), obs=shaped(x))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=data_dim):
            pyro.sample(
                "s",
                dist.Normal(
                    shaped(x).mean(other, keepdim=True).squeeze(0) if data_dim == -1 else x.mean(1, keepdim=True), 0.5
                ),
            )
            with pyro.plate("pixels", 3, dim=other):
                pyro.sample("z", dist.Normal(shaped(x).unsqueeze(-1).expand(*shaped(x).shape, 2) / 3, 0.7).to_event(1))

    return model, guide


@pytest.mark.parametrize("data_dim", [-1, -2])
@pytest.mark.parametrize("vectorize", [True, False])
def test_inner_plates_and_several_observed_sites(data_dim: int, vectorize: bool) -> None:
    x = torch.randn(6, 3)
    model, guide = plates(x, data_dim)
    data = to_inference_data(model, guide, x, 40, num_draws=20, seed=0, vectorize=vectorize)
    posterior, log_likelihood = data["posterior"], data["log_likelihood"]
    assert posterior["z"].dims == ("chain", "draw", "datum", "pixels", "z_dim_0")
    assert posterior["z"].shape == (1, 20, 6, 3, 2)
    assert posterior["s"].dims == ("chain", "draw", "datum")
    np.testing.assert_array_equal(data["observed_data"]["x"], x)
    np.testing.assert_array_equal(data["observed_data"]["count"], x.sum(1).abs().floor())
    assert data["posterior_predictive"]["x"].shape == data["prior_predictive"]["x"].shape == (1, 20, 6, 3)
    s, z = (torch.from_numpy(posterior[name].values[0]) for name in ("s", "z"))
    by_hand = dist.Normal(z.sum(-1) + s.unsqueeze(-1), 0.5).log_prob(x).sum(-1)
    np.testing.assert_allclose(log_likelihood["x"][0], by_hand, atol=1e-4)
    by_hand = dist.Poisson(torch.exp(0.1 * s)).log_prob(x.sum(1).abs().floor())
    np.testing.assert_allclose(log_likelihood["count"][0], by_hand, atol=1e-4)


def test_masks_are_kept(x: Tensor) -> None:
    likelihood = pv.likelihoods.Masked(pv.likelihoods.Bernoulli(pv.networks.mlp(2, 6)))
    posterior = pv.posteriors.DiagonalNormal(pv.networks.ZeroFilled(pv.networks.mlp((2, 6), 4), event_dim=1))
    vae, mask = pv.VAE(pv.priors.StandardNormal(2), likelihood, posterior), torch.rand(12, 6) < 0.5
    data = to_inference_data(vae.model, vae.guide, (x, mask), 40, num_draws=20, seed=0)
    z = torch.from_numpy(data["posterior"]["z"].values)
    entries = vae.likelihood.likelihood(z).base_dist.log_prob(x).detach()
    np.testing.assert_allclose(data["log_likelihood"]["x"], (entries * mask).sum(-1), atol=1e-5)


def test_labels_that_the_guide_enumerates_are_drawn(x: Tensor) -> None:
    vae, y = m2(), labels(12, known=4)
    data = to_inference_data(vae.model, vae.guide, (x, y), 60, num_draws=40, seed=0)
    drawn = data["posterior"]["y"].values
    assert drawn.shape == (1, 40, 12, 3)
    assert (drawn.sum(-1) == 1).all()
    assert (drawn[:, :, 4:].mean((0, 1)) < 1).all()
    z = torch.from_numpy(data["posterior"]["z"].values)
    label = torch.where(y.sum(-1, keepdim=True) > 0, y, torch.from_numpy(drawn))
    log_p = vae.likelihood(z, label).log_prob(x).detach()
    np.testing.assert_allclose(data["log_likelihood"]["x"], log_p, atol=1e-4)
    known = torch.where(
        y.sum(-1) > 0, vae.label_prior().log_prob(torch.where(y.sum(-1, keepdim=True) > 0, y, label[0, 0])), 0
    )
    np.testing.assert_allclose(data["log_likelihood"]["label"], known.expand(1, 40, 12), atol=1e-5)
    log_joint = log_p + vae.prior().log_prob(z) + vae.label_prior().log_prob(label)
    log_q = vae.posterior(x, label).log_prob(z) + torch.where(y.sum(-1) > 0, 0, vae.classifier(x).log_prob(label))
    np.testing.assert_allclose(data["sample_stats"]["log_weights"], (log_joint - log_q).detach(), atol=1e-4)


def test_a_factor_has_a_posterior_but_no_prior() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", -((z - x) ** 2) / 2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.tensor([-2.0, 4.0])
    with pytest.raises(ValueError, match=r"'f' is a pyro\.factor, a weight without a distribution.*num_prior_draws=0"):
        to_inference_data(model, guide, x, 50)
    data = to_inference_data(model, guide, x, 4000, num_prior_draws=0, seed=0)
    mean, variance = moments(data["posterior"]["z"])
    np.testing.assert_allclose(mean, x / 2, atol=0.12)
    np.testing.assert_allclose(variance, 0.5, atol=0.12)
    assert groups_of(data) == {"posterior", "log_likelihood", "sample_stats"}


def test_a_diverged_model_says_so(vae: pv.VAE, x: Tensor) -> None:
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


def test_a_program_that_subsamples_gives_all_data() -> None:
    x = torch.arange(7.0) * 10

    def model(x: Tensor) -> None:
        with pyro.plate("data", 7, subsample_size=3) as batch:
            z = pyro.sample("z", dist.Normal(0.0, 50.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x[batch])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 7, subsample_size=3) as batch:
            pyro.sample("z", dist.Normal(x[batch], 0.1))

    data = to_inference_data(model, guide, x, 50, num_draws=20, seed=0)
    np.testing.assert_array_equal(data["observed_data"]["x"], x)
    np.testing.assert_allclose(data["posterior"]["z"][0], np.broadcast_to(x, (20, 7)), atol=1)
    z = torch.from_numpy(data["posterior"]["z"].values)
    np.testing.assert_allclose(data["log_likelihood"]["x"], dist.Normal(z, 0.1).log_prob(x), atol=1e-4)


@pytest.mark.parametrize("weights", ["resampled", "raw"])
def test_it_is_saved_and_read_again(vae: pv.VAE, x: Tensor, tmp_path: Path, weights: str) -> None:
    data = to_inference_data(vae.model, vae.guide, x, 40, num_draws=20, weights=weights, seed=0)
    data.to_netcdf(tmp_path / "data.nc")
    again = az.from_netcdf(tmp_path / "data.nc")
    assert groups_of(again) == groups_of(data) == GROUPS
    for group in GROUPS:
        one, other = (part[group].dataset if isinstance(part, xr.DataTree) else part[group] for part in (data, again))
        xr.testing.assert_identical(one.load(), other.load())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of matplotlib, about ArviZ
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
        ({"num_draws": 0}, "must be at least 1, got 1000 and 0"),
        ({"num_samples": 0}, "must be at least 1, got 0 and 5"),
        ({"dims": {"z": ["a", "b"]}}, r"dims names \['a', 'b'\] for 'z', but .*'z': \['z_dim_0'\].*; name as many"),
        ({"dims": {"latent": ["a"]}}, r"dims names \['a'\] for 'latent'"),
    ],
)
def test_bad_arguments(vae: pv.VAE, x: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_inference_data(vae.model, vae.guide, x, **{"num_draws": 5, **options})
