"""InferenceData of programs with several sites, inner plates, masks, enumerated labels, factors and subsamples."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from tests.evaluation.posterior.inference_data import groups_of, moments, to_inference_data
from tests.models.examples import hierarchical, labels, m2

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0


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
    """A plain script with a latent for each datum, a vector for each pixel, and two observed sites."""
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


def test_dimensions_without_a_plate_to_the_right_of_the_data() -> None:
    """Like MuVI, a multi-view factor model: a vector of latents forms a batch next to a plate of the features."""
    x, weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0.5, 0], [0, 1, 2]])

    def model(x: Tensor) -> None:
        with pyro.plate("sample", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
            with pyro.plate("feature", 3, dim=-1):
                pyro.sample("x", dist.Normal(z @ weights, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("sample", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x @ weights.T / 5, 0.6))

    data = to_inference_data(model, guide, x, 2000, num_draws=1000, seed=0)
    z = data["posterior"]["z"]
    assert z.dims == ("chain", "draw", "datum", "z_dim_0")
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "feature")
    precision = torch.eye(2) + weights @ weights.T
    exact = torch.linalg.solve(precision, weights @ x.T).T
    assert np.abs(z.values[0].mean(0) - exact.numpy()).max() < 5 / 300**0.5
